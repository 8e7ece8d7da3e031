// Kernels for tests of the emulator, the driver and the compiler.
#ifndef CUDA_EMULATED
#define EXPORT(name)
#define emulated_shared() dynamic_shared
extern __shared__ unsigned char dynamic_shared[];
#endif
#ifndef FACTOR
#define FACTOR 1
#endif

// Adds i * FACTOR to each number.
extern "C" __global__ void add_index(float *numbers, int count, float scale) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) numbers[i] += scale * i * FACTOR;
}
EXPORT(add_index)

// Adds all numbers: by shuffles in a warp, in dynamic shared memory in a block, by atomics over blocks.
extern "C" __global__ void __launch_bounds__(256) add_all(const int *numbers, int count, unsigned long long *sum, int *most) {
  long long *warps = static_cast<long long *>(static_cast<void *>(emulated_shared()));
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
    for (int by = 16; by; by /= 2) own += __shfl_down_sync(0xffffffffu, own, by);
    if (threadIdx.x == 0) {
      atomicAdd(sum, static_cast<unsigned long long>(own));
      atomicMax(most, block_most);
    }
  }
}
EXPORT(add_all)

// Mistakes of a kernel, each by its number.
extern "C" __global__ void go_wrong(int *numbers, int count, int mistake) {
  int i = threadIdx.x;
  if (mistake == 1) numbers[count + i] = 1;                          // beyond the end
  if (mistake == 2) numbers[-1 - i] = 1;                             // before the start
  if (mistake == 3 && i == 7) *reinterpret_cast<volatile int *>(16) = 1;  // nowhere
  if (mistake == 4 && i == 7) return;                                // before a barrier
  __syncthreads();
  if (mistake == 5 && i != 3) numbers[0] = __shfl_xor_sync(0xffffffffu, i, 1);  // one of the warp does not come
  if (mistake == 6) numbers[0] = __shfl_sync(0x0000ffffu, i, 20);    // from or in a lane outside of the mask
  if (mistake == 7) numbers[256 << 10] = i;                          // far beyond the end
}
EXPORT(go_wrong)

// Votes and shuffles of a block of 40 threads, so that the last warp has 8.
extern "C" __global__ void vote(int *results) {
  int i = threadIdx.x;
  unsigned all = i < 32 ? 0xffffffffu : 0xffu;
  int own = 0;
  if (i % 2) own = __shfl_sync(all & 0xaaaaaaaau, i, 1);  // only odd lanes
  results[i] = own;
  results[40 + i] = static_cast<int>(__ballot_sync(all, i % 3 == 0));
  results[80 + i] = __syncthreads_count(i < 35);
  results[120 + i] = __any_sync(all, i == 33) + 2 * __all_sync(all, i < 39);
  results[160 + i] = __shfl_up_sync(all, i, 3, 8);
  __syncwarp(all);
  results[200 + i] = __shfl_down_sync(all, i, 1, 8) + 100 * __syncthreads_or(i == 39) + 1000 * __syncthreads_and(i < 39);
}
EXPORT(vote)

// Conversions and the least and largest, which differ between CUDA and C++.
extern "C" __global__ void numbers_of(const float *given, int count, int *whole, float *least) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  whole[i] = __float2int_rn(given[i]);
  least[i] = fminf(given[i], 1.0f);
}
EXPORT(numbers_of)

// Lacks a barrier: what a thread reads depends on the order of the threads.
extern "C" __global__ void race(int *results) {
  __shared__ int last;
  if (threadIdx.x == 0) last = -1;
  __syncthreads();
  last = threadIdx.x;
  results[threadIdx.x] = last;
  __syncthreads();
  if (threadIdx.x == 1) results[0] = last;
}
EXPORT(race)
