/* Included before every C++ file of llama.cpp as `anyorder bench --peers` builds it.
 *
 * GCC 12's _tile_loadconfig declares that it reads 8 of the 64 bytes of a tile configuration, so
 * the compiler may leave out the writes to the others, and the processor then refuses what it
 * finds. The instruction with a clobber of all memory has no such hole.
 */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
static inline void anyorder_tile_loadconfig(const void *config) {
    __asm__ volatile("ldtilecfg (%0)" : : "r"(config) : "memory");
}
#define _tile_loadconfig anyorder_tile_loadconfig
#endif
