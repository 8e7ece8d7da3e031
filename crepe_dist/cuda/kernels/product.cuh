// Matrix products of a warp with float32 sums. 16-bit operands use tensor cores (PTX ISA, "Warp Level Matrix Multiply-
// Accumulate Instructions": wmma). float32 operands use the CUDA cores.
#pragma once

#include "common.cuh"

// Types of activations, and of the weights that are multiplied by them. PRECISION is 0 for float32, 1 for float16 and 2
// for bfloat16.
struct Float16 {
    u16 bits;
};
struct BFloat16 {
    u16 bits;
};

__device__ inline float to_float(float value) { return value; }
__device__ inline void put(float& to, float value) { to = value; }

__device__ inline float to_float(BFloat16 value) { return __uint_as_float(u32(value.bits) << 16); }

// The conversions round to nearest, ties to even. They use conversion instructions, because rounding by integer
// arithmetic would overflow for the NaN of GPUs, in which all bits are set.
__device__ inline float to_float(Float16 value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
}
__device__ inline void put(Float16& to, float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(value)); }
__device__ inline void put(BFloat16& to, float value) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(value)); }

#if PRECISION == 0
using Element = float;
#elif PRECISION == 1
using Element = Float16;
#else
using Element = BFloat16;
#endif

// Tile of SIDE × SIDE = 16 × 16 sums of products. The threads of a warp hold eight sums each.
//
// All threads of the warp call each function together. Rows begin at multiples of 32 bytes.
struct MatrixTile {
    float sums[8];

    // Returns the index of a weight in its packed square matrix. Tensor cores read weights along k, and CUDA cores
    // read them along the rows.
    static __device__ int place(int row, int k, int width) { return PRECISION > 0 ? row * width + k : k * width + row; }

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[i] = 0.0f;
    }

#if PRECISION > 0
#define EIGHT(kind, array) \
    kind(array[0]), kind(array[1]), kind(array[2]), kind(array[3]), kind(array[4]), kind(array[5]), kind(array[6]), \
        kind(array[7])
#define FOUR(kind, array) kind(array[0]), kind(array[1]), kind(array[2]), kind(array[3])
#if PRECISION == 1
#define LOAD_OPERAND(layout, which, space, operand, from, stride)                                       \
    asm volatile("wmma.load." which ".sync.aligned." layout                                             \
                 ".m16n16k16" space ".f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;"                  \
                 : EIGHT("=r", operand)                                                                 \
                 : "l"(from), "r"(stride)                                                               \
                 : "memory")
#define MULTIPLY(layout) /* of both operands */                                                         \
    asm volatile("wmma.mma.sync.aligned." layout ".m16n16k16.f32.f32 "                              \
                 "{%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11, %12, %13, %14, %15}, "           \
                 "{%16, %17, %18, %19, %20, %21, %22, %23}, {%0, %1, %2, %3, %4, %5, %6, %7};"          \
                 : EIGHT("+f", sums)                                                                    \
                 : EIGHT("r", left.parts), EIGHT("r", right.parts))
    static constexpr int PARTS = 8;
#else
#define LOAD_OPERAND(layout, which, space, operand, from, stride)                                       \
    asm volatile("wmma.load." which ".sync.aligned." layout                                             \
                 ".m16n16k16" space ".bf16 {%0, %1, %2, %3}, [%4], %5;"                                 \
                 : FOUR("=r", operand)                                                                  \
                 : "l"(from), "r"(stride)                                                               \
                 : "memory")
#define MULTIPLY(layout) /* of both operands */                                                         \
    asm volatile("wmma.mma.sync.aligned." layout ".m16n16k16.f32.bf16.bf16.f32 "                    \
                 "{%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, {%12, %13, %14, %15}, "         \
                 "{%0, %1, %2, %3, %4, %5, %6, %7};"                                                    \
                 : EIGHT("+f", sums)                                                                    \
                 : FOUR("r", left.parts), FOUR("r", right.parts))
    static constexpr int PARTS = 4;
#endif

    // The left operand, in shared memory: 16 rows of a matrix, or 16 columns if TRANSPOSED.
    template <bool TRANSPOSED> struct LeftOperand {
        u32 parts[PARTS];
        __device__ LeftOperand(const Element* from, int stride) {
            const size_t at = __cvta_generic_to_shared(from);
            if constexpr (TRANSPOSED) LOAD_OPERAND("col", "a", ".shared", parts, at, stride);
            else LOAD_OPERAND("row", "a", ".shared", parts, at, stride);
        }
    };

    // The right operand, in shared memory: 16 columns of a matrix that is stored by columns, or by rows if TRANSPOSED.
    template <bool TRANSPOSED> struct RightOperand {
        u32 parts[PARTS];
        __device__ RightOperand(const Element* from, int stride) {
            const size_t at = __cvta_generic_to_shared(from);
            if constexpr (TRANSPOSED) LOAD_OPERAND("row", "b", ".shared", parts, at, stride);
            else LOAD_OPERAND("col", "b", ".shared", parts, at, stride);
        }
    };

    // Adds the product of two operands. LEFT and RIGHT: whether they are transposed.
    template <bool LEFT, bool RIGHT>
    __device__ void add(const LeftOperand<LEFT>& left, const RightOperand<RIGHT>& right) {
        static_assert(!LEFT || RIGHT, "no network needs the fourth product");
        if constexpr (LEFT) MULTIPLY("col.row");
        else if constexpr (RIGHT) MULTIPLY("row.row");
        else MULTIPLY("row.col");
    }

    // Adds the product of the left operand and a right operand of 16 rows. If TRANSPOSED, the right operand is the rows
    // in shared memory. Otherwise it is the transpose of the rows in global memory. Tensor cores then read both
    // operands along k, which is their fastest layout.
    template <bool TRANSPOSED>
    __device__ void add(const LeftOperand<TRANSPOSED>& left, const Element* from, int stride) {
        if constexpr (TRANSPOSED) {
            add(left, RightOperand<true>(from, stride));
        } else {
            struct {
                u32 parts[PARTS];
            } right;
            LOAD_OPERAND("col", "b", ".global", right.parts, __cvta_generic_to_global(from), stride);
            MULTIPLY("row.col");
        }
    }

    __device__ void store(float* to, int stride) const {
        asm volatile("wmma.store.d.sync.aligned.row.m16n16k16.f32 [%0], {%1, %2, %3, %4, %5, %6, %7, %8}, %9;"
                     :
                     : "l"(to), EIGHT("f", sums), "r"(stride)
                     : "memory");
    }
#else
    template <bool TRANSPOSED> struct LeftOperand {
        const Element* from;
        int stride;
        __device__ LeftOperand(const Element* from, int stride) : from(from), stride(stride) {}
        __device__ float operator()(int row, int k) const {
            return to_float(TRANSPOSED ? from[k * stride + row] : from[row * stride + k]);
        }
    };

    // Each thread computes half a row of the tile.
    struct alignas(16) Eight {
        float at[8];
    };
    static __device__ int row() { return threadIdx.x % 32 / 2; }
    static __device__ int column() { return threadIdx.x % 2 * 8; }

    template <bool TRANSPOSED>
    __device__ void add(const LeftOperand<TRANSPOSED>& left, const Element* from, int stride) {
#pragma unroll 4
        for (int k = 0; k < SIDE; ++k) {
            const float factor = left(row(), k);
            const Eight numbers = *reinterpret_cast<const Eight*>(from + k * stride + column());
#pragma unroll
            for (int i = 0; i < 8; ++i) sums[i] += factor * numbers.at[i];
        }
    }

    __device__ void store(float* to, int stride) const {
#pragma unroll
        for (int i = 0; i < 8; ++i) to[row() * stride + column() + i] = sums[i];
    }
#endif
};
