// Parts that all CUDA kernels share: integer types, reductions in a fixed order, dropout, and fixed-point gradients.
//
// Constants in capitals that no file defines are macros of the compilation. engines/cuda_engine.py passes them. Their
// values are in native/constants.py and in `constants` of networks/*/cuda.py.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i32 = int;
using u64 = unsigned long long;
using i64 = long long;

// Returns the dynamic shared memory of a block.
__device__ inline u8* dynamic_shared() {
    extern __shared__ __align__(32) u8 memory[];
    return memory;
}
#define KERNEL(threads) extern "C" __global__ __launch_bounds__(threads, (threads) > 512 ? 1 : 512 / (threads)) void

constexpr u32 NO_ROW = 0xFFFFFFFFu;
constexpr int THREADS = 256;  // Threads of a block, unless a kernel says otherwise.

// Return the number of the calling thread in the grid, and the number of threads of the grid.
__device__ inline i64 global_thread() { return i64(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline i64 num_grid_threads() { return i64(gridDim.x) * blockDim.x; }

struct Add {
    template <class T> __device__ T operator()(T a, T b) const { return a + b; }
};
struct Max {
    template <class T> __device__ T operator()(T a, T b) const { return a > b ? a : b; }
};

// Combines the values of all threads of a block, and returns the result to all of them. The order of the tree reduction
// is fixed, so sums are reproducible. memory: shared memory, one element per thread. The number of threads is a power
// of two.
template <class T, class Combine> __device__ T block_reduce(T value, T* memory, Combine combine) {
    __syncthreads();  // An earlier reduction may still read the memory.
    memory[threadIdx.x] = value;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (int(threadIdx.x) < half) memory[threadIdx.x] = combine(memory[threadIdx.x], memory[threadIdx.x + half]);
        __syncthreads();
    }
    return memory[0];
}

// Combines the values of `lanes` neighbouring threads of a warp, and returns the result to each of them. lanes: a power
// of two up to 32.
template <class T, class Combine> __device__ T warp_reduce(T value, int lanes, Combine combine) {
    for (int other = lanes / 2; other > 0; other /= 2)
        value = combine(value, __shfl_xor_sync(0xFFFFFFFFu, value, other));
    return value;
}

// Dropout of single units. `Dropout` in native/engine.h describes it and gives the same result.
struct Dropout {
    u64 seed;
    i32 threshold;  // Smallest 16-bit number of a unit that is retained.
    float scale;    // Factor that multiplies the units that are retained.

    __device__ u64 hash(u64 group) const {
        u64 z = seed + (group + 1) * u64(GOLDEN);
        z = (z ^ (z >> 30)) * u64(MULTIPLIER1);
        z = (z ^ (z >> 27)) * u64(MULTIPLIER2);
        return z ^ (z >> 31);
    }

    __device__ float operator()(u64 unit, float value) const {
        const i32 bits = i32(hash(unit / 4) >> (16 * (unit % 4)) & 0xFFFF);
        return bits >= threshold ? value * scale : 0.0f;
    }
};

// ---- fixed-point gradients, see optim/fixed_point.py ----------------------------------------------------------------

// Rounds a term to an integer and adds it to a gradient. Integer sums are the same in any order, so the order of the
// atomic operations does not matter. The addition of 0 is skipped, because atomic operations are slow.
__device__ inline void add_term(i32* total, float term) {
    const i32 rounded = __float2int_rn(term);
    if (rounded) atomicAdd(reinterpret_cast<u32*>(total), u32(rounded));
}

constexpr u32 INFINITY_BITS = 0x7F800000u;

// Returns the bits of the absolute value of a number. They are ordered like the absolute values. The bits of a NaN are
// larger than the bits of infinity.
__device__ inline u32 size_bits(float value) { return __float_as_uint(value) & 0x7FFFFFFFu; }
