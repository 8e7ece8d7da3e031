// The matrix product that all layers are built on: blocks of 32 columns of float32 sums.
//
// Elements are float, or bfloat16 with PAIR = 2: one instruction multiplies and adds two neighbours along k. A block
// computes
//
//     c[m][n] (+)= sum over tap, k of a[m + tap][k] * b[tap][k][n],    0 <= m < rows, 0 <= n < 32
//
// a: rows of lda elements, k contiguous. With taps > 1 this is a convolution along the rows, without copying them.
// b: a panel [taps * k / PAIR][32][PAIR], contiguous.
// In vector registers, other strides of k, in elements of a and b, make blocks of transposed and of wider matrices.
// k is a multiple of STEP. With AMX, rows up to the next multiple of 32 are read and written.
#pragma once

#include <algorithm>

#include "simd.h"

constexpr long BLOCK = 32;

template <class T> constexpr long PAIR = 1;
template <> inline constexpr long PAIR<bfloat16> = 2;

#if defined(__AMX_BF16__)
template <class T> constexpr long STEP = PAIR<T> == 1 ? 1 : 32;
#else
template <class T> constexpr long STEP = PAIR<T>;
#endif

// ---- in vector registers -----------------------------------------------------------------------------------------

// A strip is ROWS rows of VECTORS vectors, whose sums fit in the registers and are enough to hide the latency of their
// additions.
constexpr long ROWS = LANES == 16 ? 8 : 6, VECTORS = 2;

// Adds the products of words, which are a float or a pair of bfloat16.
template <class T> Lanes multiply_add(Lanes sum, Bits left, Bits right) {
#if defined(__AVX512BF16__)
    if constexpr (PAIR<T> == 2) return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
#else
    // As the instruction: the upper halves first. Their products are exact in float32, so fused additions change nothing.
    if constexpr (PAIR<T> == 2) {
        sum += (Lanes)(left & 0xFFFF0000) * (Lanes)(right & 0xFFFF0000);
        return sum + (Lanes)(left << 16) * (Lanes)(right << 16);
    }
#endif
    return sum + (Lanes)left * (Lanes)right;
}

struct Strides {
    long a, b;  // of k
};
template <class T> constexpr Strides CONTIGUOUS = {PAIR<T>, BLOCK * PAIR<T>};

template <long R, class T>
void strip(const T* a, long lda, long taps, long k, const T* b, float* c, long ldc, bool accumulate, Strides strides) {
    Lanes sums[R][VECTORS];
    for (long m = 0; m < R; ++m)
        for (long v = 0; v < VECTORS; ++v) sums[m][v] = accumulate ? load(c + m * ldc + v * LANES) : Lanes{};
    for (long tap = 0; tap < taps; ++tap, a += lda) {
        const T* left_at = a;
        for (long i = 0; i < k; i += PAIR<T>, left_at += strides.a, b += strides.b) {
            Bits right[VECTORS];
            for (long v = 0; v < VECTORS; ++v) right[v] = copy_in<Bits>(b + v * LANES * PAIR<T>);
            for (long m = 0; m < R; ++m) {
                const Bits left = copy_in<uint32_t>(left_at + m * lda) - Bits{};
                for (long v = 0; v < VECTORS; ++v) sums[m][v] = multiply_add<T>(sums[m][v], left, right[v]);
            }
        }
    }
    for (long m = 0; m < R; ++m)
        for (long v = 0; v < VECTORS; ++v) store(c + m * ldc + v * LANES, sums[m][v]);
}

// A strip of `rows` rows, at most R.
template <long R, class T>
void strip(
    long rows, const T* a, long lda, long taps, long k, const T* b, float* c, long ldc, bool accumulate, Strides strides
) {
    if constexpr (R > 0) {
        if (rows == R) return strip<R>(a, lda, taps, k, b, c, ldc, accumulate, strides);
        strip<R - 1>(rows, a, lda, taps, k, b, c, ldc, accumulate, strides);
    }
}

template <class T>
void block(
    const T* a, long lda, long rows, long taps, long k, const T* b, float* c, long ldc, bool accumulate,
    Strides strides = CONTIGUOUS<T>
) {
    // All strips use the columns of a panel while they are in the L1 cache.
    for (long n = 0; n < BLOCK; n += VECTORS * LANES)
        for (long top = 0; top < rows; top += ROWS)
            strip<ROWS>(std::min(ROWS, rows - top), a + top * lda, lda, taps, k, b + n * PAIR<T>, c + top * ldc + n,
                        ldc, accumulate, strides);
}

// ---- in AMX's tiles ----------------------------------------------------------------------------------------------

#if defined(__AMX_BF16__)

inline void tiles(
    const bfloat16* a, long lda, long taps, long k, const bfloat16* b, float* c, long ldc, bool accumulate
) {
    const long stride = ldc * 4;
    float *c01 = c + 16, *c10 = c + 16 * ldc, *c11 = c10 + 16;
    if (accumulate) {
        _tile_loadd(0, c, stride);
        _tile_loadd(1, c01, stride);
        _tile_loadd(2, c10, stride);
        _tile_loadd(3, c11, stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (long tap = 0; tap < taps; ++tap) {
        const bfloat16* top = a + tap * lda;
        const bfloat16* bottom = top + 16 * lda;
        for (long i = 0; i < k; i += 32, b += 32 * BLOCK) {
            _tile_loadd(4, top + i, lda * 2);
            _tile_loadd(6, b, 2 * BLOCK * 2);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, b + 32, 2 * BLOCK * 2);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, bottom + i, lda * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, stride);
    _tile_stored(1, c01, stride);
    _tile_stored(2, c10, stride);
    _tile_stored(3, c11, stride);
}

inline void block(
    const bfloat16* a, long lda, long rows, long taps, long k, const bfloat16* b, float* c, long ldc, bool accumulate
) {
    for (long top = 0; top < rows; top += BLOCK) tiles(a + top * lda, lda, taps, k, b, c + top * ldc, ldc, accumulate);
}

// Configures the thread's tile registers while it computes blocks.
class Tiles {
  public:
    Tiles() {
        struct {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shape;
        _tile_loadconfig(&shape);
    }
    ~Tiles() { _tile_release(); }
};

#else

struct Tiles {
    Tiles() {}
    ~Tiles() {}
};

#endif
