// Convolutions with CONV_KERNEL_SIZE taps by Winograd's minimal filtering algorithm (Winograd, "Arithmetic Complexity
// of Computations", 1980; Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2016, arXiv:1509.09308).
//
// A convolution is a product of polynomials. The product is computed from the values of the polynomials at
// WINOGRAD_POINTS points: a tile of 4 output rows takes 8 products per pair of channels instead of 20.
//
//     out = A' [(G weights) * (B' in)]    with A [POINTS][TILE_ROWS], G [POINTS][CONV_KERNEL_SIZE], B' [POINTS][POINTS]
//     gradient of the weights = G' [(A gradient of out) * (B' in)]
//
// (* is the element-wise product, and ' is the transpose.)
//
// The tiles of a document begin at its first row, and see zeros around the document. The results of a document
// therefore do not depend on the documents around it.
#pragma once

#include <vector>

#include "layers.h"

// True if the convolutions of a build and type use Winograd's algorithm. With AMX, bfloat16 convolutions do not: the
// saved products take less time in AMX tiles than the additional linear combinations take in vectors.
#if defined(__AMX_BF16__)
template <class T> constexpr bool USES_WINOGRAD = PAIR<T> == 1;
#else
template <class T> constexpr bool USES_WINOGRAD = true;
#endif

constexpr long TILE_ROWS = 4, WINOGRAD_POINTS = TILE_ROWS + CONV_KERNEL_SIZE - 1;
constexpr long TILES_AT_ONCE = 24;  // Number of tiles whose values fit in the L2 cache.

template <long COLUMNS> struct Matrix {
    float at[WINOGRAD_POINTS][COLUMNS];
};

// The finite points. The last point is infinity. The powers of a point are divided by the powers of its SIZE. This
// keeps the elements of the matrices small, and therefore also the rounding errors.
constexpr double POINT[] = {0, 1, -1, 2, -2, 0.5, -0.5}, SIZE[] = {1, 1, 1, 2, 2, 1, 1};
static_assert(sizeof POINT / sizeof *POINT >= WINOGRAD_POINTS - 1);

// Returns the matrix that maps the coefficients of a polynomial to its values at the points.
template <long COLUMNS> constexpr Matrix<COLUMNS> powers() {
    Matrix<COLUMNS> result{};
    for (long p = 0; p < WINOGRAD_POINTS - 1; ++p) {
        double power = 1;
        for (long i = 1; i < COLUMNS; ++i) power /= SIZE[p];
        for (long i = 0; i < COLUMNS; ++i, power *= POINT[p]) result.at[p][i] = float(power);
    }
    result.at[WINOGRAD_POINTS - 1][COLUMNS - 1] = 1;
    return result;
}

// Returns the transpose of the matrix that maps values at the points to the coefficients of the polynomial with these
// values. The columns are the coefficients of the Lagrange polynomials.
constexpr Matrix<WINOGRAD_POINTS> interpolation() {
    Matrix<WINOGRAD_POINTS> result{};
    for (long p = 0; p < WINOGRAD_POINTS; ++p) {
        double polynomial[WINOGRAD_POINTS] = {1}, scale = 1;
        for (long q = 0; q < WINOGRAD_POINTS - 1; ++q) {
            if (q == p) continue;
            for (long i = WINOGRAD_POINTS - 1; i >= 0; --i)
                polynomial[i] = (i ? polynomial[i - 1] : 0) - POINT[q] * polynomial[i];
            if (p < WINOGRAD_POINTS - 1) scale /= POINT[p] - POINT[q];
        }
        for (long i = 2; p < WINOGRAD_POINTS - 1 && i < TILE_ROWS + CONV_KERNEL_SIZE; ++i) scale *= SIZE[p];
        for (long i = 0; i < WINOGRAD_POINTS; ++i) result.at[p][i] = float(scale * polynomial[i]);
    }
    return result;
}

inline constexpr Matrix<TILE_ROWS> MATRIX_A = powers<TILE_ROWS>();
inline constexpr Matrix<CONV_KERNEL_SIZE> MATRIX_G = powers<CONV_KERNEL_SIZE>();
inline constexpr Matrix<WINOGRAD_POINTS> MATRIX_B = interpolation();

// A tile: output rows [first, first + rows), at most TILE_ROWS, and number of input rows, at most WINOGRAD_POINTS.
struct Tile {
    long first, rows, inputs;
};

// Returns the number of tiles, rounded up to whole pairs for bfloat16.
template <class T> long paired_tiles(long number) { return (number + PAIR<T> - 1) / PAIR<T> * PAIR<T>; }

// Appends the tiles of a document whose `length` rows begin at row `first`.
inline void add_tiles(long first, long length, std::vector<Tile>& tiles) {
    for (long i = 0; i < length; i += TILE_ROWS)
        tiles.push_back(
            {first + i, std::min(TILE_ROWS, length - i), std::min(WINOGRAD_POINTS, length + CONV_KERNEL_SIZE - 1 - i)});
}

// Computes the linear combinations of `count` rows with the coefficients in the rows of a matrix: a vector for each
// point. The loops are unrolled, and the matrix is a constant, so that GCC drops the products with 0.
template <const auto& MATRIX, class T> void combine_rows(const T* in, long count, long width, FloatVec* out) {
    constexpr long COLUMNS = sizeof MATRIX.at[0] / sizeof(float);
    FloatVec values[COLUMNS];
#pragma GCC unroll 8
    for (long i = 0; i < COLUMNS; ++i) values[i] = i < count ? load(in + i * width) : FloatVec{};
#pragma GCC unroll 8
    for (long p = 0; p < WINOGRAD_POINTS; ++p) {
        out[p] = FloatVec{};
#pragma GCC unroll 8
        for (long i = 0; i < COLUMNS; ++i)
            if (MATRIX.at[p][i] != 0) out[p] += MATRIX.at[p][i] * values[i];
    }
}

// Computes the linear combinations of the rows of each tile: out [WINOGRAD_POINTS][tiles][width]. count: the member
// of Tile that contains the number of rows.
template <const auto& MATRIX, class T>
void combine_tiles(const T* in, const Tile* tiles, long number, long Tile::*count, long width, T* out) {
    for (long tile = 0; tile < number; ++tile)
        for (long c = 0; c < width; c += LANES) {
            FloatVec values[WINOGRAD_POINTS];
            combine_rows<MATRIX>(in + tiles[tile].first * width + c, tiles[tile].*count, width, values);
            for (long p = 0; p < WINOGRAD_POINTS; ++p) store(out + (p * number + tile) * width + c, values[p]);
        }
}

// Like `combine_tiles`, but interleaves PAIR tiles: out [WINOGRAD_POINTS][tiles / PAIR][width][PAIR].
template <const auto& MATRIX, class T>
void combine_pairs(const T* in, const Tile* tiles, long number, long Tile::*count, long width, T* out) {
    const long depth = paired_tiles<T>(number);
    if constexpr (PAIR<T> == 1) return combine_tiles<MATRIX>(in, tiles, number, count, width, out);
    for (long tile = 0; tile < number; tile += 2)
        for (long c = 0; c < width; c += LANES) {
            FloatVec first[WINOGRAD_POINTS], second[WINOGRAD_POINTS] = {};
            combine_rows<MATRIX>(in + tiles[tile].first * width + c, tiles[tile].*count, width, first);
            if (tile + 1 < number)
                combine_rows<MATRIX>(in + tiles[tile + 1].first * width + c, tiles[tile + 1].*count, width, second);
            for (long p = 0; p < WINOGRAD_POINTS; ++p) {
                const UIntVec pairs = interleave_pairs(first[p], second[p]);
                std::memcpy(static_cast<void*>(out + (p * depth + tile) * width + 2 * c), &pairs, sizeof pairs);
            }
        }
}

// Computes the linear combinations of the vectors of all points, in [WINOGRAD_POINTS][stride], with the coefficients in
// the columns of a matrix. Calls visit(column, vector) for each column.
template <const auto& MATRIX, class Visit> void combine_points(const float* in, long stride, Visit visit) {
    constexpr long COLUMNS = sizeof MATRIX.at[0] / sizeof(float);
    FloatVec values[WINOGRAD_POINTS];
#pragma GCC unroll 8
    for (long p = 0; p < WINOGRAD_POINTS; ++p) values[p] = load(in + p * stride);
#pragma GCC unroll 8
    for (long i = 0; i < COLUMNS; ++i) {
        FloatVec sum = {};
#pragma GCC unroll 8
        for (long p = 0; p < WINOGRAD_POINTS; ++p)
            if (MATRIX.at[p][i] != 0) sum += MATRIX.at[p][i] * values[p];
        visit(i, sum);
    }
}

// Computes a convolution of the rows of tiles, like `convolve` in layers.h. weights: panels
// [WINOGRAD_POINTS][width / 32][width / PAIR][32][PAIR]. values: scratch [WINOGRAD_POINTS][TILES_AT_ONCE][width].
template <class T, class Finish>
void winograd_convolve(const T* in, const std::vector<Tile>& all_tiles, long width, const T* weights, T* values,
                       Finish finish) {
    constexpr long STRIDE = TILES_AT_ONCE * BLOCK;
    alignas(64) float sums[WINOGRAD_POINTS * STRIDE];
    for (size_t first = 0; first < all_tiles.size(); first += TILES_AT_ONCE) {
        const Tile* const tiles = all_tiles.data() + first;
        const long number = std::min(TILES_AT_ONCE, long(all_tiles.size() - first));
        combine_tiles<MATRIX_B>(in, tiles, number, &Tile::inputs, width, values);
        for (long channel = 0; channel < width; channel += BLOCK) {
            for (long p = 0; p < WINOGRAD_POINTS; ++p)
                block(values + p * number * width, width, number, 1, width, weights + (p * width + channel) * width,
                      sums + p * STRIDE, BLOCK, false);
            for (long tile = 0; tile < number; ++tile)
                for (long v = 0; v < BLOCK; v += LANES)
                    combine_points<MATRIX_A>(sums + tile * BLOCK + v, STRIDE, [&](long i, FloatVec value) {
                        const long at = (tiles[tile].first + i) * width + channel + v;
                        if (i < tiles[tile].rows) finish(at, channel + v, value);
                    });
        }
    }
}

// Adds a term to the gradient of the weights, like `convolution_weight_gradient` in layers.h. values: scratch
// [2][WINOGRAD_POINTS][paired_tiles][width].
template <class T>
void winograd_weight_gradient(const T* in, const T* gradient, const std::vector<Tile>& tiles, long width,
                              int32_t* total, FixedPointScale& grad_scale, T* values) {
    constexpr long ROWS_AT_A_TIME = 48, STRIDE = ROWS_AT_A_TIME * BLOCK;
    alignas(64) float sums[WINOGRAD_POINTS * STRIDE];
    const long number = long(tiles.size()), depth = paired_tiles<T>(number);
    T* const gradients = values + WINOGRAD_POINTS * depth * width;
    combine_pairs<MATRIX_B>(in, tiles.data(), number, &Tile::inputs, width, values);
    combine_pairs<MATRIX_A>(gradient, tiles.data(), number, &Tile::rows, width, gradients);
    for (long from = 0; from < width; from += BLOCK)
        for (long to = 0; to < width; to += ROWS_AT_A_TIME) {
            const long count = std::min(ROWS_AT_A_TIME, width - to);
            for (long p = 0; p < WINOGRAD_POINTS; ++p)
                block(gradients + p * depth * width + to * PAIR<T>, PAIR<T>, count, 1, depth,
                      values + p * depth * width + from * PAIR<T>, sums + p * STRIDE, BLOCK, false,
                      {width * PAIR<T>, width * PAIR<T>});
            for (long i = 0; i < count * BLOCK; i += LANES)
                combine_points<MATRIX_G>(sums + i, STRIDE, [&](long tap, FloatVec value) {
                    wrapping_add(total + (tap * width + from) * width + to * BLOCK + i, grad_scale.quantize(value));
                });
        }
    grad_scale.end_term();
}

// Packs the weights of a convolution for `winograd_convolve`, like `pack_convolution` in layers.h. All threads of a
// parallel region call this function together.
template <class T> void pack_winograd_weights(const float* weights, long channels, T* forward, T* backward) {
    const long width = padded(channels);
    const auto at = [=](long p, long k, long n) {
        return (p * width + n / BLOCK * BLOCK) * width + (k / PAIR<T> * BLOCK + n % BLOCK) * PAIR<T> + k % PAIR<T>;
    };
#pragma omp for schedule(static) collapse(2)
    for (long in = 0; in < channels; in += BLOCK)
        for (long out = 0; out < channels; ++out) {
            alignas(64) float taps[CONV_KERNEL_SIZE][BLOCK] = {};
            const long count = std::min(BLOCK, channels - in);
            for (long n = 0; n < count; ++n)
                for (long tap = 0; tap < CONV_KERNEL_SIZE; ++tap)
                    taps[tap][n] = weights[(out * channels + in + n) * CONV_KERNEL_SIZE + tap];
            for (long p = 0; p < WINOGRAD_POINTS; ++p) {
                alignas(64) T values[BLOCK], reversed[BLOCK];
                for (long v = 0; v < BLOCK; v += LANES) {
                    FloatVec sum = {}, other = {};
                    for (long tap = 0; tap < CONV_KERNEL_SIZE; ++tap) {
                        sum += MATRIX_G.at[p][tap] * load(taps[tap] + v);
                        other += MATRIX_G.at[p][tap] * load(taps[CONV_KERNEL_SIZE - 1 - tap] + v);
                    }
                    store(values + v, sum);
                    store(reversed + v, other);
                }
                T *const column = forward + at(p, in, out), *const row = backward + at(p, out, in);
                for (long n = 0; n < count; ++n) column[n / PAIR<T> * BLOCK * PAIR<T> + n % PAIR<T>] = values[n];
                for (long n = 0; n < count; ++n) row[n * PAIR<T>] = reversed[n];
            }
        }
}
