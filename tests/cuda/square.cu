// Matrix products of one tile of SIDE rows and columns over DEPTH numbers, in both layouts of product.cuh.
#include "product.cuh"

constexpr int STRIDE = DEPTH + 16;  // Distance of rows in shared memory, as in crepe.cu.
constexpr int SUM_STRIDE = SIDE + 8;

// out = left · transposed right: [SIDE][DEPTH] · [SIDE][DEPTH]; in float32, right is transposed, as MatrixTile::place says
KERNEL(32) straight(const Element* left, const Element* right, float* out) {
    Element* const shared = reinterpret_cast<Element*>(dynamic_shared());
    for (int i = threadIdx.x; i < SIDE * DEPTH; i += 32) shared[i / DEPTH * STRIDE + i % DEPTH] = left[i];
    __syncthreads();
    MatrixTile tile;
    tile.clear();
    for (int k = 0; k < DEPTH; k += SIDE) 
        tile.add(MatrixTile::LeftOperand<false>(shared + k, STRIDE), right + (PRECISION ? k : k * SIDE), PRECISION ? DEPTH : SIDE);
    __syncthreads();
    float* const sums = reinterpret_cast<float*>(shared);
    tile.store(sums, SUM_STRIDE);
    __syncthreads();
    for (int i = threadIdx.x; i < SIDE * SIDE; i += 32) out[i] = sums[i / SIDE * SUM_STRIDE + i % SIDE];
}

// out = transposed left · right: [DEPTH][SIDE] · [DEPTH][SIDE]
KERNEL(32) transposed(const Element* left, const Element* right, float* out) {
    constexpr int WIDE = SIDE + 16;
    Element *const first = reinterpret_cast<Element*>(dynamic_shared()), *const second = first + DEPTH * WIDE;
    for (int i = threadIdx.x; i < SIDE * DEPTH; i += 32) {
        first[i / SIDE * WIDE + i % SIDE] = left[i];
        second[i / SIDE * WIDE + i % SIDE] = right[i];
    }
    __syncthreads();
    MatrixTile tile;
    tile.clear();
    for (int k = 0; k < DEPTH; k += SIDE) tile.add(MatrixTile::LeftOperand<true>(first + k * WIDE, WIDE), second + k * WIDE, WIDE);
    tile.store(out, SIDE);
}
