// Kernels for tests of the emulator, the driver and the compiler.
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
    for (int by = 16; by; by /= 2) own += __shfl_xor_sync(0xffffffffu, own, by);
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
  if (mistake == 6) numbers[0] = __shfl_xor_sync(0x0000ffffu, i, 1);    // of a part of the warp
}
EXPORT(go_wrong)

// A conversion, which differs between CUDA and C++.
extern "C" __global__ void numbers_of(const float *given, int count, int *whole) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) whole[i] = __float2int_rn(given[i]);
}
EXPORT(numbers_of)
