// Vectors of float32 with the width of this build (GCC's vector extensions), and their conversion from and to elements.
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
struct float16 {  // of IEEE 754
    uint16_t bits;
};

#if defined(__AVX512F__)
constexpr long LANES = 16;
#elif defined(__AVX2__)
constexpr long LANES = 8;
#else
constexpr long LANES = 4;
#endif
typedef float Lanes __attribute__((vector_size(LANES * 4)));
typedef int32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

template <class Vector, class From> inline Vector copy_in(const From* from) {
    Vector result;
    std::memcpy(&result, from, sizeof result);
    return result;
}

inline Lanes load(const float* from) { return copy_in<Lanes>(from); }
inline Lanes load(const bfloat16* from) {
    return (Lanes)(__builtin_convertvector(copy_in<Halves>(from), Bits) << 16);
}

inline Lanes from_half(Halves halves) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_cvtph_ps((__m256i)halves);
#elif defined(__F16C__)
    return (Lanes)_mm256_cvtph_ps((__m128i)halves);
#else
    const Bits bits = __builtin_convertvector(halves, Bits), size = bits & 0x7FFF;
    const Bits small = (Bits)(__builtin_convertvector((Words)size, Lanes) * 0x1p-24f), large = (size << 13) + (112 << 23);
    const Bits finite = size < 0x400 ? small : large;
    return (Lanes)((size < 0x7C00 ? finite : large + (112 << 23)) | (bits & 0x8000) << 16);
#endif
}

// Rounds to the nearest float16, ties to even; NaNs become quiet.
inline Halves to_half(Lanes value) {
#if defined(__AVX512F__)
    return (Halves)_mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
    return (Halves)_mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT);
#else
    const Bits bits = (Bits)value, size = bits & 0x7FFFFFFF;
    // Below 2^-14, float16 has multiples of 2^-24; so does float32 from 0.5 on.
    const Bits small = (Bits)((Lanes)size + 0.5f) - 0x3F000000, large = (size + 0xFFF + (size >> 13 & 1) - (112 << 23)) >> 13;
    const Bits finite = size < 0x38800000 ? small : large, nan = (size >> 13 & 0x3FF) | 0x7E00;
    const Bits other = size > 0x7F800000 ? nan : Bits{} + 0x7C00;
    return __builtin_convertvector((size < 0x477FF000 ? finite : other) | (bits >> 16 & 0x8000), Halves);
#endif
}

inline Words load(const uint8_t* from) { return __builtin_convertvector(copy_in<Bytes>(from), Words); }

// Loads up to LANES of `count` values, padded with 0; reads no others.
inline Lanes load_some(const float* from, long count) {
    if (count >= LANES) return load(from);
    if (count <= 0) return Lanes{};
#if defined(__AVX512F__)
    return (Lanes)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), from);
#elif defined(__AVX2__)
    const __m256i number = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (Lanes)_mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), number));
#else
    float values[LANES] = {};
    std::memcpy(values, from, count * sizeof(float));
    return load(values);
#endif
}

inline Lanes load_some(const float16* from, long count) {
    if (count >= LANES) return from_half(copy_in<Halves>(from));
#if defined(__AVX512F__)
    return from_half((Halves)_mm256_maskz_loadu_epi16(__mmask16((1u << std::max(count, 0L)) - 1), from));
#else
    // Joined in registers: a vector would have to wait for its parts in memory.
    typedef uint64_t Parts __attribute__((vector_size(sizeof(Halves))));
    Parts parts{};
    for (long i = 0; i < LANES; i += 4) {
        uint64_t part = 0;
        if (count >= i + 4) part = copy_in<uint64_t>(from + i);
        else for (long n = count - 1; n >= i; --n) part = part << 16 | from[n].bits;
        parts[i / 4] = part;
    }
    return from_half((Halves)parts);
#endif
}

// Adds a product, rounded once if it is `fused` and the build can do so. Left alone, the compiler would decide by the kind of
// the values, and the bits would depend on it.
inline Lanes add_product(Lanes sum, float factor, Lanes values, [[maybe_unused]] bool fused) {
#if defined(__FMA__)
#if defined(__AVX512F__)
    if (fused) return (Lanes)_mm512_fmadd_ps(_mm512_set1_ps(factor), (__m512)values, (__m512)sum);
#else
    if (fused) return (Lanes)_mm256_fmadd_ps(_mm256_set1_ps(factor), (__m256)values, (__m256)sum);
#endif
    values *= factor;
    asm("" : "+x"(values));
    return sum + values;
#else
    return sum + factor * values;
#endif
}

// Rounds float32 to bfloat16 (to nearest, ties to even), in the upper half of each word.
inline Bits rounded(Lanes value) {
    const Bits bits = (Bits)value;
    return bits + 0x7FFF + ((bits >> 16) & 1);
}

inline void store(float* to, Lanes value) { std::memcpy(to, &value, sizeof value); }
inline void store(bfloat16* to, Lanes value) {
#if defined(__AVX512BF16__)
    const __m256bh halves = _mm512_cvtneps_pbh((__m512)value);
#else
    const Halves halves = __builtin_convertvector(rounded(value) >> 16, Halves);
#endif
    std::memcpy(to, &halves, sizeof halves);
}
inline void store(uint8_t* to, Words value) {
    const Bytes bytes = __builtin_convertvector(value, Bytes);
    std::memcpy(to, &bytes, sizeof bytes);
}

// Selects `value` where the comparison `mask` is true, else 0.
inline Lanes where(Words mask, Lanes value) { return (Lanes)(mask & (Words)value); }
inline Lanes relu(Lanes value) { return where(value > 0, value); }

// Words of pairs along k, for blocks: two neighbouring rows of bfloat16, or a single row of float.
inline Bits paired(const bfloat16* first, const bfloat16* second) {
    return __builtin_convertvector(copy_in<Halves>(first), Bits) |
           __builtin_convertvector(copy_in<Halves>(second), Bits) << 16;
}
inline Bits paired(Lanes first, Lanes second) { return rounded(first) >> 16 | (rounded(second) & 0xFFFF0000); }

inline float to_float(float value) { return value; }
inline float to_float(bfloat16 value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void put(float& to, float value) { to = value; }
inline void put(bfloat16& to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    to.bits = uint16_t((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// out[j][i] = in[i][j], 16 × 16 words, rows of the given strides (in words).
inline void transpose_words(const uint32_t* in, long in_stride, uint32_t* out, long out_stride) {
#if defined(__AVX512F__)
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
