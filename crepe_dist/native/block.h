// The matrix product that all layers are built on: a block of 32 × 32 float32 sums.
//
// Elements are float, or bfloat16 with PAIR = 2: one instruction multiplies and adds two neighbours along k. A block
// computes
//
//     c[m][n] (+)= sum over tap, k of a[m + tap][k] * b[tap][k][n],    0 <= m, n < 32
//
// a: rows of lda elements, k contiguous. With taps > 1 this is a convolution along the rows, without copying them.
// b: a panel [taps * k / PAIR][32][PAIR], contiguous.
// k is a multiple of 32.
#pragma once

#include "lanes.h"

constexpr long BLOCK = 32;

template <class T> constexpr long PAIR = 1;
template <> inline constexpr long PAIR<bfloat16> = 2;

// ---- float32 ---------------------------------------------------------------------------------------------------

constexpr long ROWS = LANES == 16 ? 8 : LANES == 8 ? 2 : 1;  // rows at a time: their sums fit in the registers

inline void block(const float* a, long lda, long taps, long k, const float* b, float* c, long ldc, bool accumulate) {
    constexpr long COLUMNS = BLOCK / LANES;
    // All rows use the panel of a tap while it is in the L1 cache.
    for (long tap = 0; tap < taps; ++tap, b += k * BLOCK, accumulate = true)
        for (long top = 0; top < BLOCK; top += ROWS) {
            Lanes sums[ROWS][COLUMNS];
            for (long m = 0; m < ROWS; ++m)
                for (long n = 0; n < COLUMNS; ++n)
                    sums[m][n] = accumulate ? load(c + (top + m) * ldc + n * LANES) : Lanes{};
            const float* row = a + (top + tap) * lda;
            for (long i = 0; i < k; ++i) {
                Lanes column[COLUMNS];
                for (long n = 0; n < COLUMNS; ++n) column[n] = load(b + i * BLOCK + n * LANES);
                for (long m = 0; m < ROWS; ++m) {
                    const Lanes one = row[m * lda + i] - Lanes{};
                    for (long n = 0; n < COLUMNS; ++n) sums[m][n] += one * column[n];
                }
            }
            for (long m = 0; m < ROWS; ++m)
                for (long n = 0; n < COLUMNS; ++n) store(c + (top + m) * ldc + n * LANES, sums[m][n]);
        }
}

// ---- bfloat16 with float32 sums ----------------------------------------------------------------------------------

#if defined(__AMX_BF16__)

inline void block(
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

#if defined(__AVX512BF16__)

inline void block(
    const bfloat16* a, long lda, long taps, long k, const bfloat16* b, float* c, long ldc, bool accumulate
) {
    for (long top = 0; top < BLOCK; top += ROWS) {
        __m512 sums[ROWS][2];
        for (long m = 0; m < ROWS; ++m)
            for (long n = 0; n < 2; ++n)
                sums[m][n] = accumulate ? _mm512_loadu_ps(c + (top + m) * ldc + n * 16) : _mm512_setzero_ps();
        const bfloat16* panel = b;
        for (long tap = 0; tap < taps; ++tap) {
            const bfloat16* row = a + (top + tap) * lda;
            for (long i = 0; i < k; i += 2, panel += 2 * BLOCK) {
                const __m512bh left = (__m512bh)_mm512_loadu_si512(panel);
                const __m512bh right = (__m512bh)_mm512_loadu_si512(panel + 32);
                for (long m = 0; m < ROWS; ++m) {
                    int pair;
                    std::memcpy(&pair, row + m * lda + i, sizeof pair);
                    const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
                    sums[m][0] = _mm512_dpbf16_ps(sums[m][0], both, left);
                    sums[m][1] = _mm512_dpbf16_ps(sums[m][1], both, right);
                }
            }
        }
        for (long m = 0; m < ROWS; ++m)
            for (long n = 0; n < 2; ++n) _mm512_storeu_ps(c + (top + m) * ldc + n * 16, sums[m][n]);
    }
}

#endif
#endif
