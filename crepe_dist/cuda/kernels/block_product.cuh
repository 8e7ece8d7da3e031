// Products of large matrices. A block of threads computes BLOCK_SIDE × BLOCK_SIDE sums. It reads both operands through
// shared memory, with two buffers: while one is multiplied, the next numbers are on their way from global memory.
#pragma once

#include "product.cuh"

constexpr int BLOCK_SIDE = 128;                // Rows and columns of the sums of a block.
constexpr int DEPTH = 64 / sizeof(Element);    // Numbers of each row and column that are multiplied at a time.
constexpr int WARP_ROWS = 64, WARP_COLUMNS = 32;  // Sums of a warp.
constexpr int TILE_ROWS = WARP_ROWS / SIDE, TILE_COLUMNS = WARP_COLUMNS / SIDE;
// Padding of a line in shared memory: the smallest that wmma allows, which is the size of a fragment. With bfloat16 and
// float32, lines then begin in different banks.
constexpr int PADDING = (PRECISION == 1 ? 32 : 16) / sizeof(Element);

// The largest access of a thread.
struct alignas(16) Word {
    u32 at[4];
};
constexpr int WORD = 16 / sizeof(Element);
constexpr int WORDS = 2;  // Words of an operand that a thread copies at a time.

// Part of an operand in shared memory: [BLOCK_SIDE][DEPTH], or [DEPTH][BLOCK_SIDE] if DEPTH_FIRST. It has the order of
// the operand in global memory, whose lines are rows or columns of the product, or their numbers.
template <bool DEPTH_FIRST> struct OperandTile {
    static constexpr int LENGTH = DEPTH_FIRST ? BLOCK_SIDE : DEPTH, STRIDE = LENGTH + PADDING;
    static constexpr int LINES = DEPTH_FIRST ? DEPTH : BLOCK_SIDE;
    static constexpr int SIZE = LINES * STRIDE, APART = PRECISION == 1 ? 2 : 4;
    static_assert(DEPTH_FIRST || APART * STRIDE * sizeof(Element) % 128 == 64, "two lines are in the same banks");

    // Returns the line, and the first element in the line, of word number `i` of the calling thread.
    // Eight neighbouring threads access shared memory together. Their two lines are APART lines apart, and so in
    // different banks, which repeat every 128 bytes.
    static __device__ int line(int i) {
        const int line = (threadIdx.x + i * THREADS) / (LENGTH / WORD);
        return DEPTH_FIRST ? line : line / (2 * APART) * (2 * APART) + line % 2 * APART + line / 2 % APART;
    }
    static __device__ int first(int i) { return (threadIdx.x + i * THREADS) % (LENGTH / WORD) * WORD; }

    static __device__ void store(Element* tile, const Word (&words)[WORDS]) {
        for (int i = 0; i < WORDS; ++i) *reinterpret_cast<Word*>(tile + line(i) * STRIDE + first(i)) = words[i];
    }
    // Returns the address of element k of a row or column.
    static __device__ const Element* at(const Element* tile, int side, int k) {
        return tile + (DEPTH_FIRST ? k * STRIDE + side : side * STRIDE + k);
    }
};

__device__ inline Word load_word(const Element* from) { return *reinterpret_cast<const Word*>(from); }

// Sums of a block. LEFT and RIGHT: whether the lines of an operand are its depth.
template <bool LEFT, bool RIGHT> struct BlockProduct {
    using LeftTile = OperandTile<LEFT>;
    using RightTile = OperandTile<RIGHT>;
    static constexpr int BUFFER = LeftTile::SIZE + RightTile::SIZE;
    static_assert(2 * BUFFER * sizeof(Element) <= SHARED_BYTES, "the buffers do not fit into shared memory");

    MatrixTile sums[TILE_ROWS][TILE_COLUMNS];

    // Returns the shared memory of the block: two buffers, and afterwards a tile of sums for each warp.
    static __device__ Element* memory() { return reinterpret_cast<Element*>(dynamic_shared()); }
    static __device__ int row() { return threadIdx.x / 32 / (BLOCK_SIDE / WARP_COLUMNS) * WARP_ROWS; }
    static __device__ int column() { return threadIdx.x / 32 % (BLOCK_SIDE / WARP_COLUMNS) * WARP_COLUMNS; }

    // Computes the sums of `depth` products. rows and columns: those of the matrix that the block's sums cover; a warp
    // without any computes nothing. left and right: `load(words)` loads the calling thread's words of the next DEPTH
    // numbers, and zeros outside the operand.
    template <class Left, class Right>
    __device__ void multiply(Left left, Right right, int depth, int rows, int columns) {
        Element* const shared = memory();
        for (auto& tiles : sums)
            for (MatrixTile& tile : tiles) tile.clear();
        const bool is_needed = row() < rows && column() < columns;
        Word left_words[WORDS], right_words[WORDS];
        left.load(left_words);
        right.load(right_words);
        for (int k = 0, buffer = 0; k < depth; k += DEPTH, buffer = BUFFER - buffer) {
            LeftTile::store(shared + buffer, left_words);
            RightTile::store(shared + buffer + LeftTile::SIZE, right_words);
            __syncthreads();
            if (k + DEPTH < depth) {
                left.load(left_words);
                right.load(right_words);
            }
            if (is_needed) add(shared + buffer, shared + buffer + LeftTile::SIZE, min(DEPTH, depth - k));
        }
        __syncthreads();
    }

    __device__ void add(const Element* left, const Element* right, int depth) {
#if PRECISION > 0
#pragma unroll
        for (int k = 0; k < DEPTH; k += SIDE) {
            if (k >= depth) break;
            const auto right_at = [&](int n) { return RightTile::at(right, column() + n * SIDE, k); };
            const MatrixTile::RightOperand<RIGHT> rights[TILE_COLUMNS] = {
                {right_at(0), RightTile::STRIDE}, {right_at(1), RightTile::STRIDE}};
#pragma unroll
            for (int m = 0; m < TILE_ROWS; ++m) {
                const MatrixTile::LeftOperand<LEFT> operand(LeftTile::at(left, row() + m * SIDE, k), LeftTile::STRIDE);
#pragma unroll
                for (int n = 0; n < TILE_COLUMNS; ++n) sums[m][n].add(operand, rights[n]);
            }
        }
#else
#pragma unroll 2
        for (int k = 0; k < depth; ++k) {
            float numbers[TILE_COLUMNS][8];
#pragma unroll
            for (int n = 0; n < TILE_COLUMNS; ++n)
#pragma unroll
                for (int i = 0; i < 8; ++i)
                    numbers[n][i] = *RightTile::at(right, column() + n * SIDE + MatrixTile::column() + i, k);
#pragma unroll
            for (int m = 0; m < TILE_ROWS; ++m) {
                const float factor = *LeftTile::at(left, row() + m * SIDE + MatrixTile::row(), k);
#pragma unroll
                for (int n = 0; n < TILE_COLUMNS; ++n)
#pragma unroll
                    for (int i = 0; i < 8; ++i) sums[m][n].sums[i] += factor * numbers[n][i];
            }
        }
#endif
    }

    // Calls visit(row, column, numbers) for each eight neighbouring sums of the calling thread.
    template <class Visit> __device__ void visit(const MatrixTile (&tiles)[TILE_ROWS][TILE_COLUMNS], Visit visit) {
        float* const scratch = reinterpret_cast<float*>(memory()) + threadIdx.x / 32 * SIDE * SIDE;
        const int lane = threadIdx.x % 32, tile_row = lane / 2, tile_column = lane % 2 * 8;
#pragma unroll
        for (int m = 0; m < TILE_ROWS; ++m)
#pragma unroll
            for (int n = 0; n < TILE_COLUMNS; ++n) {
                tiles[m][n].store(scratch, SIDE);
                __syncwarp();
                visit(row() + m * SIDE + tile_row, column() + n * SIDE + tile_column,
                      scratch + tile_row * SIDE + tile_column);
                __syncwarp();
            }
    }
};
