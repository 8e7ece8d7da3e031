// SIMD vectors of this build, and the conversions between float32, bfloat16 and float16.
//
// The vector types are GCC's vector extensions ("Using Vector Instructions through Built-in Functions" in the manual of
// GCC), so arithmetic is written with operators. Intrinsics (Intel Intrinsics Guide) are used only where GCC does not
// generate the desired instruction from portable code. Every function here gives the same bits in all builds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

struct bfloat16 {
    uint16_t bits;
};
struct float16 {  // IEEE 754 binary16
    uint16_t bits;
};

// Number of float32 lanes of a vector.
#if defined(__AVX512F__)
constexpr long LANES = 16;
#elif defined(__AVX2__)
constexpr long LANES = 8;
#else
constexpr long LANES = 4;
#endif
typedef float FloatVec __attribute__((vector_size(LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));
typedef uint32_t UIntVec __attribute__((vector_size(LANES * 4)));
typedef uint16_t U16Vec __attribute__((vector_size(LANES * 2)));
typedef uint8_t U8Vec __attribute__((vector_size(LANES)));

// Loads a vector or a scalar from an address without alignment. memcpy avoids the undefined behaviour of a cast, and
// compiles to one load instruction.
template <class Vector, class From> inline Vector load_unaligned(const From* from) {
    Vector result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

inline FloatVec load(const float* from) { return load_unaligned<FloatVec>(from); }
inline FloatVec load(const bfloat16* from) {
    return (FloatVec)(__builtin_convertvector(load_unaligned<U16Vec>(from), UIntVec) << 16);
}

// Converts float16 numbers to float32. The conversion is exact.
inline FloatVec from_half(U16Vec halves) {
#if defined(__AVX512F__)
    return (FloatVec)_mm512_cvtph_ps((__m256i)halves);
#elif defined(__F16C__)
    return (FloatVec)_mm256_cvtph_ps((__m128i)halves);
#else
    const UIntVec bits = __builtin_convertvector(halves, UIntVec), size = bits & 0x7FFF;
    const UIntVec small = (UIntVec)(__builtin_convertvector((IntVec)size, FloatVec) * 0x1p-24f),
                  large = (size << 13) + (112 << 23);
    const UIntVec finite = size < 0x400 ? small : large;
    return (FloatVec)((size < 0x7C00 ? finite : large + (112 << 23)) | (bits & 0x8000) << 16);
#endif
}

// Rounds to the nearest float16, ties to even. NaNs become quiet NaNs, as with the instruction VCVTPS2PH.
inline U16Vec to_half(FloatVec value) {
#if defined(__AVX512F__)
    return (U16Vec)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    return (U16Vec)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
#else
    const UIntVec bits = (UIntVec)value, size = bits & 0x7FFFFFFF;
    // Below 2^-14, the float16 numbers are the multiples of 2^-24. From 0.5 on, the float32 numbers have the same
    // spacing. The addition of 0.5 therefore rounds to a multiple of 2^-24.
    const UIntVec small = (UIntVec)((FloatVec)size + 0.5f) - 0x3F000000,
                  large = (size + 0xFFF + (size >> 13 & 1) - (112 << 23)) >> 13;
    const UIntVec finite = size < 0x38800000 ? small : large, nan = (size >> 13 & 0x3FF) | 0x7E00;
    const UIntVec other = size > 0x7F800000 ? nan : UIntVec{} + 0x7C00;
    return __builtin_convertvector((size < 0x477FF000 ? finite : other) | (bits >> 16 & 0x8000), U16Vec);
#endif
}

inline IntVec load(const uint8_t* from) { return __builtin_convertvector(load_unaligned<U8Vec>(from), IntVec); }

// Loads the first min(count, LANES) values and fills the other lanes with 0. It reads no memory behind the values,
// which may lie outside the array.
inline FloatVec load_partial(const float* from, long count) {
    if (count >= LANES) return load(from);
    if (count <= 0) return FloatVec{};
#if defined(__AVX512F__)
    return (FloatVec)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), from);
#elif defined(__AVX2__)
    const __m256i number = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (FloatVec)_mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), number));
#else
    float values[LANES] = {};
    std::memcpy(values, from, count * sizeof(float));
    return load(values);
#endif
}

inline FloatVec load_partial(const float16* from, long count) {
    if (count >= LANES) return from_half(load_unaligned<U16Vec>(from));
#if defined(__AVX512F__)
    return from_half((U16Vec)_mm256_maskz_loadu_epi16(__mmask16((1u << std::max(count, 0L)) - 1), from));
#else
    // The parts are combined in registers. If they were written to memory and loaded as one vector, the load would have
    // to wait for the stores, because a processor cannot forward several stores to one load.
    typedef uint64_t Parts __attribute__((vector_size(sizeof(U16Vec))));
    Parts parts{};
    for (long i = 0; i < LANES; i += 4) {
        uint64_t part = 0;
        if (count >= i + 4) part = load_unaligned<uint64_t>(from + i);
        else for (long n = count - 1; n >= i; --n) part = part << 16 | from[n].bits;
        parts[i / 4] = part;
    }
    return from_half((U16Vec)parts);
#endif
}

// Returns sum + factor * values. If `fused` is true and the build has FMA instructions, the result is rounded once.
// Otherwise the product and the sum are rounded separately. Without the explicit choice, GCC would decide by the
// context whether it fuses the operations (-ffp-contract=fast), and the bits would depend on the type of the table. The
// empty asm statement hides the product from this optimisation.
inline FloatVec add_product(FloatVec sum, float factor, FloatVec values, [[maybe_unused]] bool fused) {
#if defined(__FMA__)
#if defined(__AVX512F__)
    if (fused) return (FloatVec)_mm512_fmadd_ps(_mm512_set1_ps(factor), (__m512)values, (__m512)sum);
#else
    if (fused) return (FloatVec)_mm256_fmadd_ps(_mm256_set1_ps(factor), (__m256)values, (__m256)sum);
#endif
    values *= factor;
    asm("" : "+x"(values));
    return sum + values;
#else
    return sum + factor * values;
#endif
}

// Rounds float32 to bfloat16, to nearest, ties to even. The result is in the upper half of each 32-bit lane.
inline UIntVec round_to_bfloat16(FloatVec value) {
    const UIntVec bits = (UIntVec)value;
    return bits + 0x7FFF + ((bits >> 16) & 1);
}

inline void store(float* to, FloatVec value) { std::memcpy(to, &value, sizeof value); }
inline void store(bfloat16* to, FloatVec value) {
#if defined(__AVX512BF16__)
    const __m256bh halves = _mm512_cvtneps_pbh((__m512)value);
#else
    const U16Vec halves = __builtin_convertvector(round_to_bfloat16(value) >> 16, U16Vec);
#endif
    std::memcpy(to, &halves, sizeof halves);
}
// Stores the first min(count, LANES) values.
inline void store_partial(float* to, FloatVec value, long count) {
    if (count >= LANES) store(to, value);
    else std::memcpy(to, &value, count * sizeof *to);
}

// Rounds min(count, LANES) numbers to float16, and stores them as float16 or as float32.
inline void store_half(float16* to, const float* from, long count) {
    const U16Vec halves = to_half(load_partial(from, count));
    std::memcpy(to, &halves, std::min(count, LANES) * sizeof *to);
}
inline void store_half(float* to, const float* from, long count) {
    store_partial(to, from_half(to_half(load_partial(from, count))), count);
}

inline void store(uint8_t* to, IntVec value) {
    const U8Vec bytes = __builtin_convertvector(value, U8Vec);
    std::memcpy(to, &bytes, sizeof bytes);
}

// Returns `value` in the lanes where the comparison `mask` is true, and 0 in the other lanes.
inline FloatVec select_or_zero(IntVec mask, FloatVec value) { return (FloatVec)(mask & (IntVec)value); }
inline FloatVec relu(FloatVec value) { return select_or_zero(value > 0, value); }

// Interleaves two rows of bfloat16: lane i of the result has first[i] in its lower half and second[i] in its upper
// half. This is the operand format of the bfloat16 dot-product instructions, see gemm_block.h.
inline UIntVec interleave_pairs(const bfloat16* first, const bfloat16* second) {
    return __builtin_convertvector(load_unaligned<U16Vec>(first), UIntVec) |
           __builtin_convertvector(load_unaligned<U16Vec>(second), UIntVec) << 16;
}
inline UIntVec interleave_pairs(FloatVec first, FloatVec second) {
    return round_to_bfloat16(first) >> 16 | (round_to_bfloat16(second) & 0xFFFF0000);
}

inline float to_float(float value) { return value; }
inline float to_float(bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

// Stores one number, rounded to the type of the destination.
inline void store_scalar(float& to, float value) { to = value; }
inline void store_scalar(bfloat16& to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    to.bits = uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// Transposes a 16 × 16 matrix of 32-bit words: out[j][i] = in[i][j]. The strides are the distances of rows, in words.
inline void transpose_words(const uint32_t* in, long in_stride, uint32_t* out, long out_stride) {
#if defined(__AVX512F__)
    // Four rounds of 16 shuffles exchange blocks of 1, 2, 4 and 8 words between pairs of rows.
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(in + i * in_stride);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; ++j) {
            b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
            b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xDD);
        }
    for (int j = 0; j < 8; ++j) {
        const __m512i low = _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88);
        const __m512i high = _mm512_shuffle_i32x4(b[j], b[j + 8], 0xDD);
        _mm512_storeu_si512(out + j * out_stride, low);
        _mm512_storeu_si512(out + (j + 8) * out_stride, high);
    }
#else
    for (long i = 0; i < 16; ++i)
        for (long j = 0; j < 16; ++j) out[j * out_stride + i] = in[i * in_stride + j];
#endif
}
