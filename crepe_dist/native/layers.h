// Convolutions and max pooling of a chunk of documents. One thread calls each function, except where a comment says
// otherwise.
//
// Activations are rows of `width` channels, one row per position. The documents of a chunk follow each other. A
// convolution runs over the whole chunk as if it were one long text. Because there is no padding between the documents,
// the last taps - 1 rows of each document mix two documents. These rows are never read, and their gradients are zero.
//
// `taps` is the kernel size. Gradients of parameters are in fixed point, see fixed_point.h.
#pragma once

#include <algorithm>

#include "gemm_block.h"
#include "constants.hpp"
#include "fixed_point.h"

// Argmax of a pooling window whose values are all 0 after ReLU. Such a window has no gradient.
constexpr int NO_MAXIMUM = PAPER_POOL;

constexpr long PANEL_ROWS = 96;  // Number of rows that are multiplied by a panel of weights while the panel is cached.

// Returns n, rounded up to a multiple of 32.
inline long padded(long n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

// ---- the first layer ---------------------------------------------------------------------------------------------

// Computes the first layer of the paper's network: convolution of one-hot encoded characters, ReLU, and max pool of
// size 3. The product with a one-hot matrix is a sum of rows of a table [width / 32][taps][symbols][32]. The last
// symbol is the blank, whose rows are zero.
//
// written: number of pooling windows that see text and not only the trailing padding. All later windows have the same
// value, so it is computed once and copied. from: argmax within each window, or NO_MAXIMUM.
template <class T>
void first_layer(
    const uint8_t* codes, long written, long pooled, long width, long taps, long symbols, const float* table,
    const float* bias, T* out, uint8_t* from
) {
    constexpr long VECTORS = BLOCK / LANES;
    for (long channel = 0; channel < width; channel += BLOCK, table += taps * symbols * BLOCK)
        for (long p = 0; p < pooled; ++p) {
            if (p > written) {
                const long index = p * width + channel;
                std::memcpy(static_cast<void*>(out + index), out + index - width, BLOCK * sizeof(T));
                std::memcpy(from + index, from + index - width, BLOCK);
                continue;
            }
            const uint8_t* window = codes + p * PAPER_POOL;
            FloatVec sums[PAPER_POOL][VECTORS];
            for (long s = 0; s < PAPER_POOL; ++s)
                for (long v = 0; v < VECTORS; ++v) sums[s][v] = load(bias + channel + v * LANES);
            for (long tap = 0; tap < taps; ++tap)
                for (long s = 0; s < PAPER_POOL; ++s) {
                    const float* row = table + (tap * symbols + window[s + tap]) * BLOCK;
                    for (long v = 0; v < VECTORS; ++v) sums[s][v] += load(row + v * LANES);
                }
            for (long v = 0; v < VECTORS; ++v) {
                FloatVec best = sums[0][v];
                IntVec at = {};
                for (int s = 1; s < PAPER_POOL; ++s) {
                    const IntVec is_larger = sums[s][v] > best;
                    at = is_larger ? IntVec{} + s : at;
                    best = is_larger ? sums[s][v] : best;
                }
                const long index = p * width + channel + v * LANES;
                store(from + index, best > 0 ? at : IntVec{} + NO_MAXIMUM);
                store(out + index, relu(best));
            }
        }
}

// Adds to the float32 gradients of the table and of the bias. The gradient of the table has the layout of the table.
// The rows of the blank are meaningless.
template <class T>
void first_layer_gradient(
    const uint8_t* codes, long written, long pooled, long width, long taps, long symbols, const T* gradient,
    const uint8_t* from, float* table, float* bias
) {
    constexpr long VECTORS = BLOCK / LANES;
    for (long channel = 0; channel < width; channel += BLOCK, table += taps * symbols * BLOCK) {
        FloatVec total[VECTORS] = {};
        for (long p = 0; p < pooled; ++p) {
            const uint8_t* window = codes + p * PAPER_POOL;
            FloatVec parts[PAPER_POOL][VECTORS];
            for (long v = 0; v < VECTORS; ++v) {
                const long index = p * width + channel + v * LANES;
                const FloatVec value = load(gradient + index);
                const IntVec at = load(from + index);
                for (int s = 0; s < PAPER_POOL; ++s) {
                    parts[s][v] = select_or_zero(at == s, value);
                    total[v] += parts[s][v];
                }
            }
            if (p >= written) continue;
            for (long tap = 0; tap < taps; ++tap)
                for (long s = 0; s < PAPER_POOL; ++s) {
                    float* to = table + (tap * symbols + window[s + tap]) * BLOCK;
                    for (long v = 0; v < VECTORS; ++v) store(to + v * LANES, load(to + v * LANES) + parts[s][v]);
                }
        }
        for (long v = 0; v < VECTORS; ++v) {
            float* to = bias + channel + v * LANES;
            store(to, load(to) + total[v]);
        }
    }
}

// ---- the other convolutions --------------------------------------------------------------------------------------

// Computes a convolution of `rows` rows, and calls finish(at, channel, sums) for each vector of the output. at: index
// of the vector in [rows][width]. weights: panels [width / 32][taps][width / PAIR][32][PAIR]. The function reads up to
// 32 + taps rows after the last row.
template <class T, class Finish>
void convolve(const T* in, long rows, long width, long taps, const T* weights, Finish finish) {
    alignas(64) float sums[PANEL_ROWS * BLOCK];
    for (long top = 0; top < rows; top += PANEL_ROWS)
        for (long channel = 0; channel < width; channel += BLOCK) {
            const long count = std::min(PANEL_ROWS, rows - top);
            block(in + top * width, width, count, taps, width, weights + channel * taps * width, sums, BLOCK, false);
            for (long m = 0; m < count; ++m)
                for (long v = 0; v < BLOCK; v += LANES)
                    finish((top + m) * width + channel + v, channel + v, load(sums + m * BLOCK + v));
        }
}

// Computes convolution, bias and ReLU: out [rows][width].
template <class T>
void convolution(const T* in, long rows, long width, long taps, const T* weights, const float* bias, T* out) {
    convolve(in, rows, width, taps, weights,
             [&](long at, long channel, FloatVec sums) { store(out + at, relu(sums + load(bias + channel))); });
}

// Computes the gradient of the input of a convolution. gradient: gradient of the output, preceded by taps - 1 rows of
// zeros. weights: with reversed taps and transposed channels. activations: the input of the convolution, if this input
// is the output of a ReLU; the gradient is 0 where the input is 0. Otherwise null.
template <class T>
void convolution_input_gradient(
    const T* gradient, long rows, long width, long taps, const T* weights, const T* activations, T* out
) {
    convolve(gradient - (taps - 1) * width, rows, width, taps, weights, [&](long at, long, FloatVec sums) {
        store(out + at, activations ? select_or_zero(load(activations + at) > 0, sums) : sums);
    });
}

// Returns row `row` of [rows][width] as words. For bfloat16, a word also contains the next row. Rows after the last row
// are zero.
inline UIntVec pair_of_rows(const float* in, long row, long rows, long width, long channel) {
    return row < rows ? (UIntVec)load(in + row * width + channel) : UIntVec{};
}
inline UIntVec pair_of_rows(const bfloat16* in, long row, long rows, long width, long channel) {
    static const bfloat16 zeros[LANES] = {};
    const bfloat16* first = in + row * width + channel;
    return interleave_pairs(row < rows ? first : zeros, row + 1 < rows ? first + width : zeros);
}

constexpr long SIDE = 16;  // Rows and columns of the squares that transpose_words transposes.

// Transposes 32 columns of [rows][width] to [32][stride], padded with zeros up to `depth` rows. depth: a multiple of
// SIDE * PAIR.
template <class T> void transpose(const T* in, long rows, long width, long depth, T* out, long stride) {
    alignas(64) uint32_t words[SIDE][SIDE];
    for (long channel = 0; channel < BLOCK; channel += SIDE)
        for (long row = 0; row < depth; row += SIDE * PAIR<T>) {
            for (long i = 0; i < SIDE; ++i)
                for (long v = 0; v < SIDE; v += LANES) {
                    const UIntVec pair = pair_of_rows(in, row + i * PAIR<T>, rows, width, channel + v);
                    std::memcpy(words[i] + v, &pair, sizeof pair);
                }
            transpose_words(words[0], SIDE, (uint32_t*)(out + channel * stride + row), stride / PAIR<T>);
        }
}

// Packs 32 columns of [rows][width] into a panel [depth / PAIR][32][PAIR], padded with zeros up to `depth` rows.
template <class T> void pack_panel(const T* in, long rows, long width, long depth, T* out) {
    for (long row = 0; row < depth; row += PAIR<T>, out += PAIR<T> * BLOCK)
        for (long v = 0; v < BLOCK; v += LANES) {
            const UIntVec pair = pair_of_rows(in, row, rows, width, v);
            std::memcpy(static_cast<void*>(out + v * PAIR<T>), &pair, sizeof pair);
        }
}

// Transposes a contiguous matrix of 32-bit words: out[j][i] = in[i][j]. rows and columns: multiples of 16.
inline void transpose_words(const void* in, long rows, long columns, void* out) {
    for (long i = 0; i < rows; i += SIDE)
        for (long j = 0; j < columns; j += SIDE)
            transpose_words((const uint32_t*)in + i * columns + j, columns, (uint32_t*)out + j * rows + i, rows);
}

// Converts 32 rows of a panel to 32 rows of the panel of the transposed matrix.
template <class T> void transpose_panel(const T* in, T* out) {
    alignas(64) T square[BLOCK * BLOCK];
    transpose_words(in, BLOCK / PAIR<T>, BLOCK, square);
    pack_panel(square, BLOCK, BLOCK, BLOCK, out);
}

// Adds a term to the gradient of a bias. The term is the sum of the rows of the gradient [rows][width].
template <class T>
void add_bias_gradient(const T* in, long rows, long width, int32_t* totals, FixedPointScale& grad_scale) {
    for (long channel = 0; channel < width; channel += LANES) {
        FloatVec sum = {};
        for (long row = 0; row < rows; ++row) sum += load(in + row * width + channel);
        wrapping_add(totals + channel, grad_scale.quantize(sum));
    }
    grad_scale.end_term();
}

// Adds a term to the gradients of the weights of a convolution, total [taps][width / 32][width][32] (tap, block of
// inputs, output, input), and of the bias [width]. grad_scales: scales of the weights and of the bias.
//
// The gradient of a tap is the product of the transposed output gradient and the input, shifted by the tap. A bfloat16
// panel holds pairs of rows, so it can only be shifted by an even number of rows. For odd taps, the transposed gradient
// is therefore also shifted by one row. The row before it is zero.
//
// transposed: scratch, T [SIDE + width * transposed_depth(rows)]. Its first SIDE elements are zero.
// packed: scratch, T [transposed_depth(rows) + SHIFTS][32].
constexpr long SHIFTS = 8;  // A multiple of PAIR that is not smaller than the largest tap.
template <class T> long transposed_depth(long rows) { return padded(rows + PAIR<T> - 1); }
template <class T>
void convolution_weight_gradient(const T* in, const T* gradient, long rows, long width, long taps, int32_t* total,
                                 int32_t* bias, FixedPointScale* grad_scales, T* transposed, T* packed) {
    const long depth = transposed_depth<T>(rows), tall = depth + SHIFTS;
    const long steps = (rows + PAIR<T> - 1 + STEP<T> - 1) / STEP<T> * STEP<T>;
    transposed += SIDE;
    add_bias_gradient(gradient, rows, width, bias, grad_scales[1]);
    for (long to = 0; to < width; to += BLOCK)
        transpose(gradient + to, rows, width, depth, transposed + to * depth, depth);
    alignas(64) float sums[PANEL_ROWS * BLOCK];
    for (long from = 0; from < width; from += BLOCK) {
        pack_panel(in + from, rows + taps - 1, width, tall, packed);
        for (long tap = 0; tap < taps; ++tap)
            for (long to = 0; to < width; to += PANEL_ROWS) {
                const long odd = tap % PAIR<T>, count = std::min(PANEL_ROWS, width - to);
                block(transposed + to * depth - odd, depth, count, 1, steps, packed + (tap - odd) * BLOCK, sums, BLOCK,
                      false);
                grad_scales[0].add(total + (tap * width + from) * width + to * BLOCK, sums, count * BLOCK);
            }
    }
    grad_scales[0].end_term();
}

// Packs the weights of a convolution, [channels][channels][taps] as in Gluon, into the panels of `convolution` and of
// `convolution_input_gradient`. All threads of a parallel region call this function together.
template <class T> void pack_convolution(const float* weights, long channels, long taps, T* forward, T* backward) {
    const long width = padded(channels);
#pragma omp for schedule(static) collapse(2)
    for (long out = 0; out < width; out += BLOCK)
        for (long in = 0; in < width; in += BLOCK)
            for (long tap = 0; tap < taps; ++tap) {
                alignas(64) T square[BLOCK * BLOCK] = {};
                for (long m = 0; m < std::min(BLOCK, channels - out); ++m)
                    for (long n = 0; n < std::min(BLOCK, channels - in); ++n)
                        store_scalar(square[m * BLOCK + n], weights[((out + m) * channels + in + n) * taps + tap]);
                transpose_words(square, BLOCK, BLOCK / PAIR<T>,
                                forward + (out * taps + tap * BLOCK) * width + in * BLOCK);
                pack_panel(square, BLOCK, BLOCK, BLOCK,
                           backward + (in * taps + (taps - 1 - tap) * BLOCK) * width + out * BLOCK);
            }
}

// Adds the weight gradients of an output channel over all threads, and converts them from the layout of
// `convolution_weight_gradient` to Gluon's layout. total(scratch): returns the array of a thread.
template <class Scratches, class Total>
void reduce_channel(const Scratches& scratches, Total total, long out, long channels, long taps, int32_t* weights) {
    const long width = padded(channels);
    for (long from = 0; from < width; from += BLOCK)
        for (long tap = 0; tap < taps; ++tap) {
            const long at = (tap * width + from) * width + out * BLOCK;
            alignas(64) int32_t sums[BLOCK] = {};
            for (const auto& scratch : scratches)
                for (long v = 0; v < BLOCK; v += LANES)
                    wrapping_add(sums + v, load_unaligned<IntVec>(total(scratch) + at + v));
            int32_t* to = weights + (out * channels + from) * taps + tap;
            for (long n = 0; n < std::min(BLOCK, channels - from); ++n) to[n * taps] = sums[n];
        }
}

// ---- pooling -----------------------------------------------------------------------------------------------------

// Computes the max pool of one document: in [3 * pooled][width], after ReLU, to out [pooled][width]. from: argmax
// within each window, or NO_MAXIMUM.
template <class T> void pool(const T* in, long pooled, long width, T* out, uint8_t* from) {
    for (long p = 0; p < pooled; ++p)
        for (long c = 0; c < width; c += LANES) {
            const T* column = in + p * PAPER_POOL * width + c;
            FloatVec best = load(column);
            IntVec at = {};
            for (int s = 1; s < PAPER_POOL; ++s) {
                const FloatVec other = load(column + s * width);
                const IntVec is_larger = other > best;
                at = is_larger ? IntVec{} + s : at;
                best = is_larger ? other : best;
            }
            store(out + p * width + c, best);
            store(from + p * width + c, best > 0 ? at : IntVec{} + NO_MAXIMUM);
        }
}

// Computes the gradient of the input of a max pool, `rows` rows of one document. The gradient is zero for rows after
// the last window.
template <class T> void unpool(const T* gradient, const uint8_t* from, long pooled, long rows, long width, T* out) {
    for (long p = 0; p < pooled; ++p)
        for (long c = 0; c < width; c += LANES) {
            const FloatVec value = load(gradient + p * width + c);
            const IntVec at = load(from + p * width + c);
            for (int s = 0; s < PAPER_POOL; ++s)
                store(out + (p * PAPER_POOL + s) * width + c, select_or_zero(at == s, value));
        }
    std::memset(static_cast<void*>(out + pooled * PAPER_POOL * width), 0,
                (rows - pooled * PAPER_POOL) * width * sizeof(T));
}
