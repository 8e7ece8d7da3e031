// Matrix product (GEMM) of a block of 32 columns. All layers are built on it.
//
// Elements are float32, or bfloat16 with float32 sums. For bfloat16, PAIR is 2: one instruction multiplies two
// neighbouring elements along k and adds both products. A block computes
//
//     c[m][n] (+)= sum over tap, k of a[m + tap][k] * b[tap][k][n],    0 <= m < rows, 0 <= n < 32
//
// a: rows of lda elements, contiguous along k. If taps > 1, the block computes a convolution along the rows, without a
// copy of the rows (no im2col).
// b: a panel [taps * k / PAIR][32][PAIR], contiguous. Packing weights into such panels is the usual technique of GEMM
// libraries (Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008).
// c: rows of ldc float32 numbers.
//
// k is a multiple of STEP. The version in vector registers accepts other distances along k in `strides`, in elements of
// a and b. Blocks of transposed or wider matrices use this argument. The AMX version reads and writes the rows up to
// the next multiple of 32.
//
// The order of the additions along k is part of the result: it must not change.
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

// ---- GEMM blocks held in vector registers ------------------------------------------------------------------------

// A strip has STRIP_ROWS rows of VECTORS vectors. Its sums fit in the registers: 16 of 32 registers with AVX-512, 12 of
// 16 with AVX2. They are enough independent sums to hide the latency of the additions (Intel 64 and IA-32 Architectures
// Optimization Reference Manual, on FMA latency).
constexpr long STRIP_ROWS = LANES == 16 ? 8 : 6, VECTORS = 2;

// Adds the products of 32-bit words. A word is one float32 number or a pair of bfloat16 numbers.
template <class T> FloatVec dot_pair_add(FloatVec sum, UIntVec left, UIntVec right) {
#if defined(__AVX512BF16__)
    if constexpr (PAIR<T> == 2) return (FloatVec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
#else
    // The emulation adds in the order of VDPBF16PS: the upper halves first. The product of two bfloat16 numbers is
    // exact in float32, so fused and separate operations give the same bits.
    if constexpr (PAIR<T> == 2) {
        sum += (FloatVec)(left & 0xFFFF0000) * (FloatVec)(right & 0xFFFF0000);
        return sum + (FloatVec)(left << 16) * (FloatVec)(right << 16);
    }
#endif
    return sum + (FloatVec)left * (FloatVec)right;
}

// Distances of neighbouring elements (or pairs) along k, in elements.
struct Strides {
    long a, b;
};
template <class T> constexpr Strides CONTIGUOUS = {PAIR<T>, BLOCK * PAIR<T>};

template <long R, class T>
void strip(const T* a, long lda, long taps, long k, const T* b, float* c, long ldc, bool accumulate, Strides strides) {
    FloatVec sums[R][VECTORS];
    for (long m = 0; m < R; ++m)
        for (long v = 0; v < VECTORS; ++v) sums[m][v] = accumulate ? load(c + m * ldc + v * LANES) : FloatVec{};
    for (long tap = 0; tap < taps; ++tap, a += lda) {
        const T* left_at = a;
        for (long i = 0; i < k; i += PAIR<T>, left_at += strides.a, b += strides.b) {
            UIntVec right[VECTORS];
            for (long v = 0; v < VECTORS; ++v) right[v] = load_unaligned<UIntVec>(b + v * LANES * PAIR<T>);
            for (long m = 0; m < R; ++m) {
                const UIntVec left = load_unaligned<uint32_t>(left_at + m * lda) - UIntVec{};
                for (long v = 0; v < VECTORS; ++v) sums[m][v] = dot_pair_add<T>(sums[m][v], left, right[v]);
            }
        }
    }
    for (long m = 0; m < R; ++m)
        for (long v = 0; v < VECTORS; ++v) store(c + m * ldc + v * LANES, sums[m][v]);
}

// Computes a strip of `rows` rows, at most R: selects the instantiation strip<rows>.
template <long R, class T>
void strip(
    long rows, const T* a, long lda, long taps, long k, const T* b, float* c, long ldc, bool accumulate, Strides strides
) {
    if constexpr (R > 0) {
        if (rows == R) return strip<R>(a, lda, taps, k, b, c, ldc, accumulate, strides);
        strip<R - 1>(rows, a, lda, taps, k, b, c, ldc, accumulate, strides);
    }
}

// Computes a block; see the top of this file.
template <class T>
void block(
    const T* a, long lda, long rows, long taps, long k, const T* b, float* c, long ldc, bool accumulate,
    Strides strides = CONTIGUOUS<T>
) {
    // All strips of a column of b are computed while the column is in the L1 cache.
    for (long n = 0; n < BLOCK; n += VECTORS * LANES)
        for (long top = 0; top < rows; top += STRIP_ROWS)
            strip<STRIP_ROWS>(std::min(STRIP_ROWS, rows - top), a + top * lda, lda, taps, k, b + n * PAIR<T>,
                              c + top * ldc + n, ldc, accumulate, strides);
}

// ---- GEMM blocks held in AMX tile registers ----------------------------------------------------------------------

#if defined(__AMX_BF16__)

// Computes 32 rows of a block in AMX tile registers (Intel 64 and IA-32 Architectures Software Developer's Manual,
// "Intel AMX instruction set"). Tiles 0 to 3 hold the sums of the four 16 × 16 quarters, tiles 4 and 5 the rows of a,
// and tiles 6 and 7 the columns of b. The loads alternate with the products, so that the products hide the latency of
// the loads.
inline void tile_block(
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
    for (long top = 0; top < rows; top += BLOCK)
        tile_block(a + top * lda, lda, taps, k, b, c + top * ldc, ldc, accumulate);
}

// Configuration of the AMX tile registers of a thread. A thread that computes blocks holds such an object. Its
// destructor releases the registers, so that the kernel need not save 8 KB at each context switch.
class TileRegisters {
  public:
    TileRegisters() {
        struct {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shape;
        _tile_loadconfig(&shape);
    }
    ~TileRegisters() { _tile_release(); }
};

#else

struct TileRegisters {
    TileRegisters() {}
    ~TileRegisters() {}
};

#endif
