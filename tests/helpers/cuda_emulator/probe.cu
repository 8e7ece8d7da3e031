// Kernels for tests of the emulator, the driver and the compiler.
#ifndef FACTOR
#define FACTOR 1
#endif

// Adds i * FACTOR to each number.
extern "C" __global__ void add_index(float *numbers, int count, float scale) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) numbers[i] += scale * i * FACTOR;
}

// Adds all numbers: by shuffles in a warp, in dynamic shared memory in a block, by atomics over blocks.
extern "C" __global__ void __launch_bounds__(256) add_all(const int *numbers, int count, unsigned long long *sum, int *most) {
  extern __shared__ long long warps[];
  __shared__ int block_most;
  if (threadIdx.x == 0) block_most = -2147483647 - 1;
  __syncthreads();
  long long own = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    own += numbers[i];
    atomicMax(&block_most, numbers[i]);
  }
  for (int by = 16; by; by /= 2) own += __shfl_xor_sync(0xffffffffu, own, by);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = own;
  __syncthreads();
  if (threadIdx.x < 32) {
    own = threadIdx.x < blockDim.x / 32 ? warps[threadIdx.x] : 0;
    for (int by = 16; by; by /= 2) own += __shfl_xor_sync(0xffffffffu, own, by);
    if (threadIdx.x == 0) {
      atomicAdd(sum, static_cast<unsigned long long>(own));
      atomicMax(most, block_most);
    }
  }
}

// A conversion, which differs between CUDA and C++, under a predicate that is a constant.
extern "C" __global__ void numbers_of(const float *given, int count, int *whole) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count)
    asm("{ .reg .pred always; mov.pred always, -1; @always cvt.rni.s32.f32 %0, %1; }" : "=r"(whole[i]) : "f"(given[i]));
}
