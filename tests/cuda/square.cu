// Products of one square of SIDE rows and columns over DEPTH numbers, in both layouts of product.cuh.
#include "product.cuh"

constexpr int STRIDE = DEPTH + 16;  // from one row to the next, as in the kernels of the tower
constexpr int SUMS = SIDE + 8;

// out = left · transposed right: [SIDE][DEPTH] · [SIDE][DEPTH]; in float32, right is transposed, as Square::place says
KERNEL(32) straight(const Number* left, const Number* right, float* out) {
    Number* const shared = reinterpret_cast<Number*>(dynamic_shared());
    for (int i = threadIdx.x; i < SIDE * DEPTH; i += 32) shared[i / DEPTH * STRIDE + i % DEPTH] = left[i];
    __syncthreads();
    Square square;
    square.clear();
    for (int k = 0; k < DEPTH; k += SIDE) 
        square.add(Square::Left<false>(shared + k, STRIDE), right + (PRECISION ? k : k * SIDE), PRECISION ? DEPTH : SIDE);
    __syncthreads();
    float* const sums = reinterpret_cast<float*>(shared);
    square.store(sums, SUMS);
    __syncthreads();
    for (int i = threadIdx.x; i < SIDE * SIDE; i += 32) out[i] = sums[i / SIDE * SUMS + i % SIDE];
}

// out = transposed left · right: [DEPTH][SIDE] · [DEPTH][SIDE]
KERNEL(32) turned(const Number* left, const Number* right, float* out) {
    constexpr int WIDE = SIDE + 16;
    Number *const first = reinterpret_cast<Number*>(dynamic_shared()), *const second = first + DEPTH * WIDE;
    for (int i = threadIdx.x; i < SIDE * DEPTH; i += 32) {
        first[i / SIDE * WIDE + i % SIDE] = left[i];
        second[i / SIDE * WIDE + i % SIDE] = right[i];
    }
    __syncthreads();
    Square square;
    square.clear();
    for (int k = 0; k < DEPTH; k += SIDE) square.add(Square::Left<true>(first + k * WIDE, WIDE), second + k * WIDE, WIDE);
    square.store(out, SIDE);
}
