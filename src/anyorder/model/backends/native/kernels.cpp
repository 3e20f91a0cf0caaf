// Kernels for a CPU: linear layers, and whole decoder layers.
//
// One decoded token multiplies every weight once, so its speed is that of memory. BLAS libraries
// reach it for one row at best; over the 2 to 30 rows of a draft check, a block or a batch they take
// as long as several passes. Here every weight is read once and used for all rows, and what lies
// between the products (norms, rotation, attention, activation) is done by the same threads without
// going back to Python. `native/` calls this through ctypes; it needs nothing of torch or Python.
//
// Sums are float. A row's result does not depend on the other rows or on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "layers.h"
#include "team.h"

namespace anyorder {
template <class T>
struct Linear {  // outputs [rows, outputs] = inputs [rows, width] weights^T + bias
    T* outputs;
    const T *inputs, *weights, *bias;
    ptrdiff_t num_rows, width, input_stride, output_stride;
};
}  // namespace anyorder

#if defined(__x86_64__) && defined(__GNUC__)
#include "vectors.h"
#else
namespace anyorder {
struct bf16 {
    uint16_t bits;
};
}  // namespace anyorder
#endif

namespace anyorder {
namespace {

int best_level() {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return !__builtin_cpu_supports("avx512vnni")   ? 2
               : !__builtin_cpu_supports("avx512bf16") ? 3
                                                       : 4;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1 : 0;
#else
    return 0;
#endif
}

int level = best_level();

#if defined(__x86_64__) && defined(__GNUC__)
#define ON_LEVEL(call)              \
    switch (level) {                \
        case 4: avx512_bf16::call;  break; \
        case 3: avx512_vnni::call;  break; \
        case 2: avx512::call;       break; \
        case 1: avx2::call;         break; \
    }
#else
#define ON_LEVEL(call)
#endif

// With fewer weights waking a thread takes longer than the work.
constexpr int64_t WORTH_SHARING = 32768;

template <class T>
void run_linear(const Matrix& matrix, const T* inputs, T* outputs, int64_t num_rows,
                int64_t input_stride, int64_t num_threads) {
    if (matrix.outputs * matrix.width < WORTH_SHARING) num_threads = 1;
    QuantizedRows quantized(matrix.bits ? num_rows : 0, matrix.width);
    Team::run(num_threads, [&](Team& team) {
        if (matrix.bits)
            team.share(num_rows, 1, [&](ptrdiff_t n, ptrdiff_t) {
                ON_LEVEL(quantize<T>(inputs + n * input_stride, 0, matrix.width, matrix.bits,
                                  quantized[n]));
            });
        const ptrdiff_t piece = matrix.outputs >= 4096 ? 256 : 64;
        team.share(matrix.outputs, piece, [&](ptrdiff_t begin, ptrdiff_t end) {
            ON_LEVEL(product<T>(matrix, inputs, input_stride, quantized, num_rows, outputs,
                                matrix.outputs, begin, end));
        });
    });
}

// Rows of a file into a quantised matrix's outputs from `first` on.
void run_pack(int64_t format, const uint8_t* rows, int64_t row_bytes, int64_t num_rows,
              int64_t first, const Matrix& matrix, int64_t num_threads) {
    if (num_rows * matrix.width < WORTH_SHARING) num_threads = 1;
    Team::run(num_threads, [&](Team& team) {
        team.share(num_rows, 64, [&](ptrdiff_t begin, ptrdiff_t end) {
            ON_LEVEL(pack(format, rows + begin * row_bytes, row_bytes, end - begin, first + begin,
                          matrix));
        });
    });
}

template <class T>
void run_expand(int64_t format, const uint8_t* groups, int64_t num_groups, T* weights,
                int64_t num_threads) {
    if (num_groups * 32 < WORTH_SHARING) num_threads = 1;
    Team::run(num_threads, [&](Team& team) {
        team.share(num_groups, 1024, [&](ptrdiff_t begin, ptrdiff_t end) {
            ON_LEVEL(expand(format, groups, begin, end, weights));
        });
    });
}

template <class T>
void run_layers(const Pass& pass) {
    ON_LEVEL(run_layers<T>(pass));
}

template <class T>
void run_attention(const Pass& pass, const T* queries, int64_t query_stride, T* mixed) {
    ON_LEVEL(run_attention<T>(pass, queries, query_stride, mixed));
}

}  // namespace
}  // namespace anyorder

using anyorder::bf16;

extern "C" {

// 0: none of these kernels runs here; 1: AVX2; 2: AVX-512; 3: with VNNI; 4: with bfloat16 products.
int anyorder_level() { return anyorder::level; }

// Use an instruction set below the best one, for tests. Returns what is used now.
int anyorder_set_level(int wanted) {
    return anyorder::level = std::min(wanted, anyorder::best_level());
}

// outputs [rows, outputs] = inputs [rows, width] matrix^T + bias. The stride is between rows of the
// inputs, in elements.
void anyorder_linear_float32(const anyorder::Matrix* matrix, const float* inputs, float* outputs,
                             int64_t num_rows, int64_t input_stride, int64_t num_threads) {
    anyorder::run_linear(*matrix, inputs, outputs, num_rows, input_stride, num_threads);
}

void anyorder_linear_bfloat16(const anyorder::Matrix* matrix, const bf16* inputs, bf16* outputs,
                              int64_t num_rows, int64_t input_stride, int64_t num_threads) {
    anyorder::run_linear(*matrix, inputs, outputs, num_rows, input_stride, num_threads);
}

// Rows of a file's format, of `row_bytes` each, into a quantised matrix's outputs from `first` on.
void anyorder_pack(int64_t format, const uint8_t* rows, int64_t row_bytes, int64_t num_rows,
                   int64_t first, const anyorder::Matrix* matrix, int64_t num_threads) {
    anyorder::run_pack(format, rows, row_bytes, num_rows, first, *matrix, num_threads);
}

// Groups of a file's format as numbers.
void anyorder_expand_float32(int64_t format, const uint8_t* groups, int64_t num_groups,
                             float* weights, int64_t num_threads) {
    anyorder::run_expand(format, groups, num_groups, weights, num_threads);
}

void anyorder_expand_bfloat16(int64_t format, const uint8_t* groups, int64_t num_groups,
                              bf16* weights, int64_t num_threads) {
    anyorder::run_expand(format, groups, num_groups, weights, num_threads);
}

// The weights [num_rows, width] of some outputs of a matrix of 8 bits.
void anyorder_unpack(const anyorder::Matrix* matrix, const int64_t* outputs, int64_t num_rows,
                     float* weights) {
    using namespace anyorder;
    ON_LEVEL(unpack(*matrix, outputs, num_rows, weights));
}

// What queries [rows, heads, head width] of a pass's only group read of its only layer's pages; the
// stride is between rows.
void anyorder_attention_float32(const anyorder::Pass* pass, const float* queries,
                                int64_t query_stride, float* mixed) {
    anyorder::run_attention(*pass, queries, query_stride, mixed);
}

void anyorder_attention_bfloat16(const anyorder::Pass* pass, const bf16* queries,
                                 int64_t query_stride, bf16* mixed) {
    anyorder::run_attention(*pass, queries, query_stride, mixed);
}

// All rows of a pass through the given layers; see layers.h.
void anyorder_layers_float32(const anyorder::Pass* pass) { anyorder::run_layers<float>(*pass); }
void anyorder_layers_bfloat16(const anyorder::Pass* pass) { anyorder::run_layers<bf16>(*pass); }
}
