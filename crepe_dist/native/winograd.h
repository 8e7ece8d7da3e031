// Convolutions of TOWER_TAPS taps by minimal filtering (Winograd 1980; Lavin & Gray 2016, arXiv:1509.09308): a tile of
// 4 rows takes 8 products instead of 20. A product of polynomials is computed from their values at POINTS points.
//
//     out = A' [(G weights) * (B' in)]                   A [POINTS][TILE], G [POINTS][TOWER_TAPS], B' [POINTS][POINTS]
//     gradient of the weights = G' [(A gradient of out) * (B' in)]
//
// The tiles of a document begin at its first row, and see zeros around it, so its numbers do not depend on others.
#pragma once

#include <vector>

#include "layers.h"

// AMX takes less time for the other products than vectors for the combinations.
#if defined(__AMX_BF16__)
template <class T> constexpr bool FILTERS = PAIR<T> == 1;
#else
template <class T> constexpr bool FILTERS = true;
#endif

constexpr long TILE = 4, POINTS = TILE + TOWER_TAPS - 1;
constexpr long TILES = 24;  // at a time: their values fit in the L2 cache

template <long COLUMNS> struct Matrix {
    float at[POINTS][COLUMNS];
};

// The points, except infinity, which is the last one. Powers of a point are divided by those of its size.
constexpr double POINT[] = {0, 1, -1, 2, -2, 0.5, -0.5}, SIZE[] = {1, 1, 1, 2, 2, 1, 1};
static_assert(sizeof POINT / sizeof *POINT >= POINTS - 1);

// The values at the points of a polynomial with given coefficients.
template <long COLUMNS> constexpr Matrix<COLUMNS> powers() {
    Matrix<COLUMNS> result{};
    for (long p = 0; p < POINTS - 1; ++p) {
        double power = 1;
        for (long i = 1; i < COLUMNS; ++i) power /= SIZE[p];
        for (long i = 0; i < COLUMNS; ++i, power *= POINT[p]) result.at[p][i] = float(power);
    }
    result.at[POINTS - 1][COLUMNS - 1] = 1;
    return result;
}

// Transposed, the coefficients of the polynomial with given values at the points: that of Lagrange.
constexpr Matrix<POINTS> interpolation() {
    Matrix<POINTS> result{};
    for (long p = 0; p < POINTS; ++p) {
        double polynomial[POINTS] = {1}, scale = 1;
        for (long q = 0; q < POINTS - 1; ++q) {
            if (q == p) continue;
            for (long i = POINTS - 1; i >= 0; --i)
                polynomial[i] = (i ? polynomial[i - 1] : 0) - POINT[q] * polynomial[i];
            if (p < POINTS - 1) scale /= POINT[p] - POINT[q];
        }
        for (long i = 2; p < POINTS - 1 && i < TILE + TOWER_TAPS; ++i) scale *= SIZE[p];
        for (long i = 0; i < POINTS; ++i) result.at[p][i] = float(scale * polynomial[i]);
    }
    return result;
}

inline constexpr Matrix<TILE> MATRIX_A = powers<TILE>();
inline constexpr Matrix<TOWER_TAPS> MATRIX_G = powers<TOWER_TAPS>();
inline constexpr Matrix<POINTS> MATRIX_B = interpolation();

// Rows of the output from `first` on, at most TILE, and of the input, at most POINTS.
struct Tile {
    long first, rows, inputs;
};

// The number of tiles, rounded up to whole pairs.
template <class T> long paired_tiles(long number) { return (number + PAIR<T> - 1) / PAIR<T> * PAIR<T>; }

// Appends the tiles of a document of `length` rows from `first` on.
inline void add_tiles(long first, long length, std::vector<Tile>& tiles) {
    for (long i = 0; i < length; i += TILE)
        tiles.push_back({first + i, std::min(TILE, length - i), std::min(POINTS, length + TOWER_TAPS - 1 - i)});
}

// The combinations of `count` rows by the rows of a matrix.
template <const auto& MATRIX, class T> void combine_rows(const T* in, long count, long width, Lanes* out) {
    constexpr long COLUMNS = sizeof MATRIX.at[0] / sizeof(float);
    Lanes values[COLUMNS];
#pragma GCC unroll 8
    for (long i = 0; i < COLUMNS; ++i) values[i] = i < count ? load(in + i * width) : Lanes{};
#pragma GCC unroll 8
    for (long p = 0; p < POINTS; ++p) {
        out[p] = Lanes{};
#pragma GCC unroll 8
        for (long i = 0; i < COLUMNS; ++i)
            if (MATRIX.at[p][i] != 0) out[p] += MATRIX.at[p][i] * values[i];
    }
}

// out [POINTS][tiles][width]: the combinations of the rows of each tile, `count` of them, by the rows of a matrix.
template <const auto& MATRIX, class T>
void combine_tiles(const T* in, const Tile* tiles, long number, long Tile::*count, long width, T* out) {
    for (long tile = 0; tile < number; ++tile)
        for (long c = 0; c < width; c += LANES) {
            Lanes values[POINTS];
            combine_rows<MATRIX>(in + tiles[tile].first * width + c, tiles[tile].*count, width, values);
            for (long p = 0; p < POINTS; ++p) store(out + (p * number + tile) * width + c, values[p]);
        }
}

// As `combine_tiles`, with PAIR tiles as neighbours: [POINTS][tiles / PAIR][width][PAIR].
template <const auto& MATRIX, class T>
void combine_pairs(const T* in, const Tile* tiles, long number, long Tile::*count, long width, T* out) {
    const long depth = paired_tiles<T>(number);
    if constexpr (PAIR<T> == 1) return combine_tiles<MATRIX>(in, tiles, number, count, width, out);
    for (long tile = 0; tile < number; tile += 2)
        for (long c = 0; c < width; c += LANES) {
            Lanes first[POINTS], second[POINTS] = {};
            combine_rows<MATRIX>(in + tiles[tile].first * width + c, tiles[tile].*count, width, first);
            if (tile + 1 < number)
                combine_rows<MATRIX>(in + tiles[tile + 1].first * width + c, tiles[tile + 1].*count, width, second);
            for (long p = 0; p < POINTS; ++p) {
                const Bits pairs = paired(first[p], second[p]);
                std::memcpy(static_cast<void*>(out + (p * depth + tile) * width + 2 * c), &pairs, sizeof pairs);
            }
        }
}

// The combinations of vectors of all points, [POINTS][stride], by the columns of a matrix.
template <const auto& MATRIX, class Use> void combine_points(const float* in, long stride, Use use) {
    constexpr long COLUMNS = sizeof MATRIX.at[0] / sizeof(float);
    Lanes values[POINTS];
#pragma GCC unroll 8
    for (long p = 0; p < POINTS; ++p) values[p] = load(in + p * stride);
#pragma GCC unroll 8
    for (long i = 0; i < COLUMNS; ++i) {
        Lanes sum = {};
#pragma GCC unroll 8
        for (long p = 0; p < POINTS; ++p)
            if (MATRIX.at[p][i] != 0) sum += MATRIX.at[p][i] * values[p];
        use(i, sum);
    }
}

// As `convolve`, for the rows of tiles. weights: panels [POINTS][width / 32][width / PAIR][32][PAIR]; values: scratch
// [POINTS][TILES][width].
template <class T, class Finish>
void filter(const T* in, const std::vector<Tile>& all, long width, const T* weights, T* values, Finish finish) {
    constexpr long STRIDE = TILES * BLOCK;
    alignas(64) float sums[POINTS * STRIDE];
    for (size_t first = 0; first < all.size(); first += TILES) {
        const Tile* const tiles = all.data() + first;
        const long number = std::min(TILES, long(all.size() - first));
        combine_tiles<MATRIX_B>(in, tiles, number, &Tile::inputs, width, values);
        for (long channel = 0; channel < width; channel += BLOCK) {
            for (long p = 0; p < POINTS; ++p)
                block(values + p * number * width, width, number, 1, width, weights + (p * width + channel) * width,
                      sums + p * STRIDE, BLOCK, false);
            for (long tile = 0; tile < number; ++tile)
                for (long v = 0; v < BLOCK; v += LANES)
                    combine_points<MATRIX_A>(sums + tile * BLOCK + v, STRIDE, [&](long i, Lanes value) {
                        const long at = (tiles[tile].first + i) * width + channel + v;
                        if (i < tiles[tile].rows) finish(at, channel + v, value);
                    });
        }
    }
}

// As `convolution_weight_gradient`. values: scratch [2][POINTS][paired_tiles][width].
template <class T>
void filter_gradient(
    const T* in, const T* gradient, const std::vector<Tile>& tiles, long width, int32_t* total, Quanta& quanta,
    T* values
) {
    constexpr long ROWS_AT_A_TIME = 48, STRIDE = ROWS_AT_A_TIME * BLOCK;
    alignas(64) float sums[POINTS * STRIDE];
    const long number = long(tiles.size()), depth = paired_tiles<T>(number);
    T* const gradients = values + POINTS * depth * width;
    combine_pairs<MATRIX_B>(in, tiles.data(), number, &Tile::inputs, width, values);
    combine_pairs<MATRIX_A>(gradient, tiles.data(), number, &Tile::rows, width, gradients);
    for (long from = 0; from < width; from += BLOCK)
        for (long to = 0; to < width; to += ROWS_AT_A_TIME) {
            const long count = std::min(ROWS_AT_A_TIME, width - to);
            for (long p = 0; p < POINTS; ++p)
                block(gradients + p * depth * width + to * PAIR<T>, PAIR<T>, count, 1, depth,
                      values + p * depth * width + from * PAIR<T>, sums + p * STRIDE, BLOCK, false,
                      {width * PAIR<T>, width * PAIR<T>});
            for (long i = 0; i < count * BLOCK; i += LANES)
                combine_points<MATRIX_G>(sums + i, STRIDE, [&](long tap, Lanes value) {
                    add_whole(total + (tap * width + from) * width + to * BLOCK + i, quanta(value));
                });
        }
    quanta.end_term();
}

// As `pack_convolution`, for `filter`. All threads of a parallel region call it.
template <class T> void pack_filter(const float* weights, long channels, T* forward, T* backward) {
    const long width = padded(channels);
    const auto at = [=](long p, long k, long n) {
        return (p * width + n / BLOCK * BLOCK) * width + (k / PAIR<T> * BLOCK + n % BLOCK) * PAIR<T> + k % PAIR<T>;
    };
#pragma omp for schedule(static) collapse(2)
    for (long in = 0; in < channels; in += BLOCK)
        for (long out = 0; out < channels; ++out) {
            alignas(64) float taps[TOWER_TAPS][BLOCK] = {};
            const long count = std::min(BLOCK, channels - in);
            for (long n = 0; n < count; ++n)
                for (long tap = 0; tap < TOWER_TAPS; ++tap)
                    taps[tap][n] = weights[(out * channels + in + n) * TOWER_TAPS + tap];
            for (long p = 0; p < POINTS; ++p) {
                alignas(64) T values[BLOCK], reversed[BLOCK];
                for (long v = 0; v < BLOCK; v += LANES) {
                    Lanes sum = {}, other = {};
                    for (long tap = 0; tap < TOWER_TAPS; ++tap) {
                        sum += MATRIX_G.at[p][tap] * load(taps[tap] + v);
                        other += MATRIX_G.at[p][tap] * load(taps[TOWER_TAPS - 1 - tap] + v);
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
