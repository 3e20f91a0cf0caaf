// Numbers and registers: what the kernels need of each instruction set.
//
// Every namespace defines, for T = float and T = bf16:
//
//   Sums, LANES        a register of floats, and how many it holds
//   zero, total        of floats; their total in a fixed order
//   totals             of LANES registers: lane i is the total of register i, bit for bit
//   exponential        e^x of each float, to 2 units in the last place; 0 below -87
//   Step<T>            how products are summed: Values, COUNT of them, load, add(sums, a, b); the same
//                      bits as floats (`floats`, `of`), and one such float in every lane (`repeat`)
//   transpose          of LANES registers: lane j of register i becomes lane i of register j
//   Wide<T>            load and store of LANES values as floats, and of int8_t
//   MOST_ROWS          input rows of a tile; 4 * MOST_ROWS sums must fit into the registers

#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace anyorder {

template <int N>
using Count = std::integral_constant<int, N>;

struct bf16 {
    uint16_t bits;
};

inline float to_float(float value) { return value; }
inline void from_float(float value, float* out) { *out = value; }

inline float to_float(bf16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

inline void from_float(float value, bf16* out) {  // to nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    out->bits = is_nan ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// e^r for |r| <= ln(2) / 2 (Taylor to r^7; error below 1e-8), from e^x = 2^n e^r.
#define ANYORDER_POLYNOMIAL(r)                                                               \
    (1.0f + r * (1.0f + r * (0.5f + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 +       \
     r * (1.0f / 720 + r * (1.0f / 5040))))))))
// The first step of `transpose`, four rows at a time: parts[i + j] holds in its 128-bit part q column
// 4 q + j of rows i to i + 3. `M` begins the names of the registers' instructions.
#define ANYORDER_COLUMNS(M, rows, parts)                                                     \
    for (int i = 0; i < LANES; i += 4) {                                                     \
        const Sums a = M##_unpacklo_ps(rows[i], rows[i + 1]);                                \
        const Sums b = M##_unpackhi_ps(rows[i], rows[i + 1]);                                \
        const Sums c = M##_unpacklo_ps(rows[i + 2], rows[i + 3]);                            \
        const Sums d = M##_unpackhi_ps(rows[i + 2], rows[i + 3]);                            \
        parts[i] = M##_shuffle_ps(a, c, 0x44), parts[i + 1] = M##_shuffle_ps(a, c, 0xee);    \
        parts[i + 2] = M##_shuffle_ps(b, d, 0x44), parts[i + 3] = M##_shuffle_ps(b, d, 0xee); \
    }
constexpr int OUTPUTS = 4;  // rows of a weight matrix in a tile
constexpr ptrdiff_t MANY_ROWS = 64;  // input rows that stay in a core's own cache
constexpr float LOG2_E = 1.44269504f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;

#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
using Sums = __m256;
constexpr int LANES = 8, MOST_ROWS = 2;
static inline Sums zero() { return _mm256_setzero_ps(); }
static inline float total(Sums sums) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
static inline Sums totals(const Sums* sums) {
    float each[LANES];
    for (int i = 0; i < LANES; i++) each[i] = total(sums[i]);
    return _mm256_loadu_ps(each);
}
static inline void transpose(Sums* rows) {
    Sums parts[LANES];
    ANYORDER_COLUMNS(_mm256, rows, parts)
    for (int j = 0; j < 4; j++) {
        rows[j] = _mm256_permute2f128_ps(parts[j], parts[4 + j], 0x20);
        rows[4 + j] = _mm256_permute2f128_ps(parts[j], parts[4 + j], 0x31);
    }
}
static inline Sums exponential(Sums x) {
    const Sums limited = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87.0f)),
                                       _mm256_set1_ps(88.0f));
    const Sums n = _mm256_round_ps(limited * LOG2_E, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Sums r = limited - n * LN2_HIGH - n * LN2_LOW;
    const __m256i power =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    const Sums value = ANYORDER_POLYNOMIAL(r) * _mm256_castsi256_ps(power);
    return _mm256_and_ps(value, _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_GE_OQ));
}
template <class T>
struct Step;
template <class T>
struct Wide;
template <>
struct Step<float> {
    using Values = __m256;
    static constexpr int COUNT = 8;
    static inline Values load(const float* from) { return _mm256_loadu_ps(from); }
    static inline Sums floats(Values values) { return values; }
    static inline Values of(Sums floats) { return floats; }
    static inline Values repeat(const float* from) { return _mm256_broadcast_ss(from); }
    static inline Sums add(Sums sums, Values a, Values b) { return _mm256_fmadd_ps(a, b, sums); }
};
template <>
struct Wide<float> {
    static inline Sums load(const float* from) { return _mm256_loadu_ps(from); }
    static inline void store(Sums values, float* to) { _mm256_storeu_ps(to, values); }
};
template <>
struct Wide<bf16> {
    static inline Sums load(const bf16* from) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    static inline void store(Sums values, bf16* to) {
        float floats[8];
        _mm256_storeu_ps(floats, values);
        for (int i = 0; i < 8; i++) from_float(floats[i], to + i);
    }
};
template <>
struct Wide<int8_t> {
    static inline Sums load(const int8_t* from) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    }
    static inline void store(Sums values, int8_t* to) {  // to nearest, ties to even
        int32_t rounded[8];
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(rounded), _mm256_cvtps_epi32(values));
        for (int i = 0; i < 8; i++) to[i] = static_cast<int8_t>(rounded[i]);
    }
};
template <>
struct Step<bf16> : Step<float> {
    static inline Values load(const bf16* from) { return Wide<bf16>::load(from); }
};
#include "unquantized.inc"
#include "linear.inc"
#include "layers.inc"
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
namespace avx512 {
using Sums = __m512;
constexpr int LANES = 16, MOST_ROWS = 4;
static inline Sums zero() { return _mm512_setzero_ps(); }
static inline float total(Sums sums) { return _mm512_reduce_add_ps(sums); }
static inline Sums totals(const Sums* sums) {  // lanes are paired as in `total`: 8 apart, 4, 2, 1
    Sums two[8], four[4], eight[2];
    for (int i = 0; i < 8; i++) {
        const Sums a = sums[i / 2 + i % 2 * 8], b = sums[i / 2 + i % 2 * 8 + 4];
        two[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
    for (int i = 0; i < 4; i++)
        four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(two[2 * i], two[2 * i + 1], 0x88),
                                _mm512_shuffle_f32x4(two[2 * i], two[2 * i + 1], 0xdd));
    for (int i = 0; i < 2; i++)
        eight[i] = _mm512_add_ps(_mm512_shuffle_ps(four[2 * i], four[2 * i + 1], 0x44),
                                 _mm512_shuffle_ps(four[2 * i], four[2 * i + 1], 0xee));
    return _mm512_add_ps(_mm512_shuffle_ps(eight[0], eight[1], 0x88),
                         _mm512_shuffle_ps(eight[0], eight[1], 0xdd));
}
static inline void transpose(Sums* rows) {
    Sums parts[LANES];
    ANYORDER_COLUMNS(_mm512, rows, parts)
    for (int j = 0; j < 4; j++) {
        const Sums even_low = _mm512_shuffle_f32x4(parts[j], parts[4 + j], 0x88);
        const Sums odd_low = _mm512_shuffle_f32x4(parts[j], parts[4 + j], 0xdd);
        const Sums even_high = _mm512_shuffle_f32x4(parts[8 + j], parts[12 + j], 0x88);
        const Sums odd_high = _mm512_shuffle_f32x4(parts[8 + j], parts[12 + j], 0xdd);
        rows[j] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
        rows[4 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
        rows[8 + j] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
        rows[12 + j] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
    }
}
static inline Sums exponential(Sums x) {
    const Sums limited = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.0f)),
                                       _mm512_set1_ps(88.0f));
    const Sums n = _mm512_roundscale_ps(limited * LOG2_E, _MM_FROUND_TO_NEAREST_INT);
    const Sums r = limited - n * LN2_HIGH - n * LN2_LOW;
    const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_GE_OQ);
    return _mm512_maskz_scalef_ps(kept, ANYORDER_POLYNOMIAL(r), n);
}
template <class T>
struct Step;
template <class T>
struct Wide;
template <>
struct Step<float> {
    using Values = __m512;
    static constexpr int COUNT = 16;
    static inline Values load(const float* from) { return _mm512_loadu_ps(from); }
    static inline Sums floats(Values values) { return values; }
    static inline Values of(Sums floats) { return floats; }
    static inline Values repeat(const float* from) { return _mm512_set1_ps(*from); }
    static inline Sums add(Sums sums, Values a, Values b) { return _mm512_fmadd_ps(a, b, sums); }
};
template <>
struct Wide<float> {
    static inline Sums load(const float* from) { return _mm512_loadu_ps(from); }
    static inline void store(Sums values, float* to) { _mm512_storeu_ps(to, values); }
};
template <>
struct Wide<bf16> {
    static inline Sums load(const bf16* from) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    static inline void store(Sums values, bf16* to) {
        const __m512i bits = _mm512_castps_si512(values);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        const __mmask16 is_nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
        const __m512i high = _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), is_nan,
                                                   _mm512_set1_epi32(0x7fc0));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(high));
    }
};
template <>
struct Wide<int8_t> {
    static inline Sums load(const int8_t* from) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    }
    static inline void store(Sums values, int8_t* to) {  // to nearest, ties to even
        const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(values));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
    }
};
template <>
struct Step<bf16> : Step<float> {
    static inline Values load(const bf16* from) { return Wide<bf16>::load(from); }
};
#include "unquantized.inc"
#include "linear.inc"
#include "layers.inc"
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")
namespace avx512_vnni {
using avx512::exponential, avx512::LANES, avx512::MOST_ROWS, avx512::Step, avx512::Sums;
using avx512::total, avx512::totals, avx512::transpose, avx512::Wide, avx512::zero;
#include "quantized.inc"
#include "linear.inc"
#include "layers.inc"
}  // namespace avx512_vnni
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,fma,f16c")
namespace avx512_bf16 {
using avx512::exponential, avx512::LANES, avx512::MOST_ROWS, avx512::Sums, avx512::total, avx512::totals;
using avx512::transpose, avx512::Wide, avx512::zero;
template <class T>
struct Step : avx512::Step<T> {};
template <>
struct Step<bf16> {
    using Values = __m512bh;
    static constexpr int COUNT = 32;
    static inline Sums floats(Values values) { return reinterpret_cast<Sums>(values); }
    static inline Values of(Sums floats) { return reinterpret_cast<Values>(floats); }
    static inline Values repeat(const float* from) { return of(_mm512_set1_ps(*from)); }
    static inline Values load(const bf16* from) {
        return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from));
    }
    static inline Sums add(Sums sums, Values a, Values b) { return _mm512_dpbf16_ps(sums, a, b); }
};
#include "quantized.inc"
#include "linear.inc"
#include "layers.inc"
}  // namespace avx512_bf16
#pragma GCC pop_options

}  // namespace anyorder
