// Vectors of float32 with the width of this build (GCC's vector extensions), and their conversion from and to elements.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

struct bfloat16 {
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
