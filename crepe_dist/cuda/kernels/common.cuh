// Common to all kernels: numbers, reductions in a fixed order, dropout, and gradients in whole numbers.
//
// Constants in capitals that no file defines are options of the compilation: see engines/cuda_engine.py and native/constants.py.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i32 = int;
using u64 = unsigned long long;
using i64 = long long;

// The dynamic shared memory of a block.
__device__ inline u8* dynamic_shared() {
    extern __shared__ __align__(32) u8 memory[];
    return memory;
}
#define KERNEL(threads) extern "C" __global__ __launch_bounds__(threads, (threads) > 512 ? 1 : 512 / (threads)) void

constexpr u32 NO_ROW = 0xFFFFFFFFu;
constexpr int THREADS = 256;  // of a block, unless a kernel says otherwise

// The number of a thread in the grid, and the number of all threads.
__device__ inline i64 thread_number() { return i64(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline i64 all_threads() { return i64(gridDim.x) * blockDim.x; }

struct Plus {
    template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};
struct Larger {
    template <class T> __device__ T operator()(T a, T b) const { return a > b ? a : b; }
};

// Combines what all threads of a block have, always in the same order; every thread gets the result. memory: shared,
// one element for each thread. The number of threads is a power of two.
template <class T, class Combine> __device__ T over_block(T value, T* memory, Combine combine) {
    __syncthreads();  // whoever used the memory before
    memory[threadIdx.x] = value;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (int(threadIdx.x) < half) memory[threadIdx.x] = combine(memory[threadIdx.x], memory[threadIdx.x + half]);
        __syncthreads();
    }
    return memory[0];
}

// Combines what `lanes` neighbouring threads of a warp have, a power of two; each of them gets the result.
template <class T, class Combine> __device__ T over_lanes(T value, int lanes, Combine combine) {
    for (int other = lanes / 2; other > 0; other /= 2) value = combine(value, __shfl_xor_sync(0xFFFFFFFFu, value, other));
    return value;
}

// Dropout of single units: see native/engine.h, to which it is equivalent.
struct Dropout {
    u64 seed;
    i32 threshold;  // smallest bits of units that are kept
    float scale;    // factor of units that are kept

    __device__ u64 hash(u64 number) const {
        u64 z = seed + (number + 1) * u64(GOLDEN);
        z = (z ^ (z >> 30)) * u64(MULTIPLIER1);
        z = (z ^ (z >> 27)) * u64(MULTIPLIER2);
        return z ^ (z >> 31);
    }

    __device__ float operator()(u64 unit, float value) const {
        const i32 bits = i32(hash(unit / 4) >> (16 * (unit % 4)) & 0xFFFF);
        return bits >= threshold ? value * scale : 0.0f;
    }
};

// ---- gradients in whole numbers, see optim/fixed_point.py -----------------------------------------------------------

// Adds a term, in quanta, to a gradient. Whole numbers add up to the same sum in any order.
__device__ inline void add_term(i32* total, float quanta) {
    const i32 whole = __float2int_rn(quanta);
    if (whole) atomicAdd(reinterpret_cast<u32*>(total), u32(whole));
}

constexpr u32 INFINITE = 0x7F800000u;  // bits of infinity

// The size of a number as bits, which ascend as sizes do; those of NaN are above all.
__device__ inline u32 size_bits(float value) { return __float_as_uint(value) & 0x7FFFFFFFu; }
