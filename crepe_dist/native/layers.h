// Convolutions and pools of a chunk of documents; each function is called by one thread.
//
// Activations are rows of `width` channels, one row per position; the documents of a chunk follow each other at a fixed
// stride. A convolution runs over the whole chunk as if over one long text. The last taps - 1 rows of each document
// then mix two documents; they are never read, and their gradients are zero.
#pragma once

#include <algorithm>

#include "gemm_block.h"
#include "constants.hpp"
#include "fixed_point.h"

constexpr int NONE = PAPER_POOL;  // marks a pool without gradient, because ReLU made all its inputs zero

constexpr long TOGETHER = 96;  // rows that use a panel of weights while it is cached
inline long padded(long n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

// ---- the first layer ---------------------------------------------------------------------------------------------

// Convolution of the one-hot codes, ReLU and max pool of 3. The product with a one-hot matrix is a sum of rows of a
// table [width / 32][taps][symbols][32]; the last symbol is blank and its rows are zero. From pool `written` on, all
// symbols are blank.
template <class T>
void first_layer(
    const uint8_t* codes, long written, long pooled, long width, long taps, long symbols, const float* table,
    const float* bias, T* out, uint8_t* from
) {
    constexpr long VECTORS = BLOCK / LANES;
    for (long channel = 0; channel < width; channel += BLOCK, table += taps * symbols * BLOCK)
        for (long p = 0; p < pooled; ++p) {
            if (p > written) {
                const long here = p * width + channel;
                std::memcpy(static_cast<void*>(out + here), out + here - width, BLOCK * sizeof(T));
                std::memcpy(from + here, from + here - width, BLOCK);
                continue;
            }
            const uint8_t* window = codes + p * PAPER_POOL;
            Lanes sums[PAPER_POOL][VECTORS];
            for (long s = 0; s < PAPER_POOL; ++s)
                for (long v = 0; v < VECTORS; ++v) sums[s][v] = load(bias + channel + v * LANES);
            for (long tap = 0; tap < taps; ++tap)
                for (long s = 0; s < PAPER_POOL; ++s) {
                    const float* row = table + (tap * symbols + window[s + tap]) * BLOCK;
                    for (long v = 0; v < VECTORS; ++v) sums[s][v] += load(row + v * LANES);
                }
            for (long v = 0; v < VECTORS; ++v) {
                Lanes best = sums[0][v];
                Words at = {};
                for (int s = 1; s < PAPER_POOL; ++s) {
                    const Words more = sums[s][v] > best;
                    at = more ? Words{} + s : at;
                    best = more ? sums[s][v] : best;
                }
                const long here = p * width + channel + v * LANES;
                store(from + here, best > 0 ? at : Words{} + NONE);
                store(out + here, relu(best));
            }
        }
}

// Adds to the gradients of the table, in its layout and except for the blank symbol, and of the bias.
template <class T>
void first_layer_gradient(
    const uint8_t* codes, long written, long pooled, long width, long taps, long symbols, const T* gradient,
    const uint8_t* from, float* table, float* bias
) {
    constexpr long VECTORS = BLOCK / LANES;
    for (long channel = 0; channel < width; channel += BLOCK, table += taps * symbols * BLOCK) {
        Lanes total[VECTORS] = {};
        for (long p = 0; p < pooled; ++p) {
            const uint8_t* window = codes + p * PAPER_POOL;
            Lanes parts[PAPER_POOL][VECTORS];
            for (long v = 0; v < VECTORS; ++v) {
                const long here = p * width + channel + v * LANES;
                const Lanes value = load(gradient + here);
                const Words at = load(from + here);
                for (int s = 0; s < PAPER_POOL; ++s) {
                    parts[s][v] = where(at == s, value);
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

// Calls finish(at, channel, sums) for each vector of a convolution of `rows` rows, where `at` is its place in
// [rows][width]. Reads up to 32 + taps rows after the last one. weights: panels
// [width / 32][taps][width / PAIR][32][PAIR].
template <class T, class Finish>
void convolve(const T* in, long rows, long width, long taps, const T* weights, Finish finish) {
    alignas(64) float sums[TOGETHER * BLOCK];
    for (long top = 0; top < rows; top += TOGETHER)
        for (long channel = 0; channel < width; channel += BLOCK) {
            const long count = std::min(TOGETHER, rows - top);
            block(in + top * width, width, count, taps, width, weights + channel * taps * width, sums, BLOCK, false);
            for (long m = 0; m < count; ++m)
                for (long v = 0; v < BLOCK; v += LANES)
                    finish((top + m) * width + channel + v, channel + v, load(sums + m * BLOCK + v));
        }
}

// Convolution, bias and ReLU → out [rows][width].
template <class T>
void convolution(const T* in, long rows, long width, long taps, const T* weights, const float* bias, T* out) {
    convolve(in, rows, width, taps, weights,
             [&](long at, long channel, Lanes sums) { store(out + at, relu(sums + load(bias + channel))); });
}

// Gradient of a convolution's input. gradient: that of the output, preceded by taps - 1 rows of zeros. weights: taps
// reversed, channels transposed. activations: the input, to apply the mask of the preceding ReLU; or null.
template <class T>
void convolution_input_gradient(
    const T* gradient, long rows, long width, long taps, const T* weights, const T* activations, T* out
) {
    convolve(gradient - (taps - 1) * width, rows, width, taps, weights, [&](long at, long, Lanes sums) {
        store(out + at, activations ? where(load(activations + at) > 0, sums) : sums);
    });
}

// Row `row` of [rows][width], paired with the next one for bfloat16; rows after the last are zero.
inline Bits pair_of_rows(const float* in, long row, long rows, long width, long channel) {
    return row < rows ? (Bits)load(in + row * width + channel) : Bits{};
}
inline Bits pair_of_rows(const bfloat16* in, long row, long rows, long width, long channel) {
    static const bfloat16 zeros[LANES] = {};
    const bfloat16* first = in + row * width + channel;
    return paired(row < rows ? first : zeros, row + 1 < rows ? first + width : zeros);
}

constexpr long SIDE = 16;  // of the squares that transpose_words transposes

// Transposes 32 columns of [rows][width] → [32][stride], padded with zeros up to `depth`, a multiple of SIDE * PAIR.
template <class T> void transpose(const T* in, long rows, long width, long depth, T* out, long stride) {
    alignas(64) uint32_t words[SIDE][SIDE];
    for (long channel = 0; channel < BLOCK; channel += SIDE)
        for (long row = 0; row < depth; row += SIDE * PAIR<T>) {
            for (long i = 0; i < SIDE; ++i)
                for (long v = 0; v < SIDE; v += LANES) {
                    const Bits pair = pair_of_rows(in, row + i * PAIR<T>, rows, width, channel + v);
                    std::memcpy(words[i] + v, &pair, sizeof pair);
                }
            transpose_words(words[0], SIDE, (uint32_t*)(out + channel * stride + row), stride / PAIR<T>);
        }
}

// Packs 32 columns of [rows][width] into a panel [depth / PAIR][32][PAIR], padded with zeros up to `depth` rows.
template <class T> void panel(const T* in, long rows, long width, long depth, T* out) {
    for (long row = 0; row < depth; row += PAIR<T>, out += PAIR<T> * BLOCK)
        for (long v = 0; v < BLOCK; v += LANES) {
            const Bits pair = pair_of_rows(in, row, rows, width, v);
            std::memcpy(static_cast<void*>(out + v * PAIR<T>), &pair, sizeof pair);
        }
}

// out[j][i] = in[i][j] for words, i < rows, j < columns, multiples of 16; in and out are contiguous.
inline void transpose_words(const void* in, long rows, long columns, void* out) {
    for (long i = 0; i < rows; i += SIDE)
        for (long j = 0; j < columns; j += SIDE)
            transpose_words((const uint32_t*)in + i * columns + j, columns, (uint32_t*)out + j * rows + i, rows);
}

// Turns 32 rows of a panel into 32 rows of the panel of the transposed matrix.
template <class T> void turn(const T* in, T* out) {
    alignas(64) T square[BLOCK * BLOCK];
    transpose_words(in, BLOCK / PAIR<T>, BLOCK, square);
    panel(square, BLOCK, BLOCK, BLOCK, out);
}

// Adds to totals a term for each column: the sum of [rows][width].
template <class T> void add_rows(const T* in, long rows, long width, int32_t* totals, Quanta& quanta) {
    for (long channel = 0; channel < width; channel += LANES) {
        Lanes sum = {};
        for (long row = 0; row < rows; ++row) sum += load(in + row * width + channel);
        add_whole(totals + channel, quanta(sum));
    }
    quanta.end_term();
}

// Adds a term to the gradients of the weights, total [taps][width / 32][width][32] (tap, inputs, output, input), and of
// the bias [width]. quanta: of the weights and of the bias.
//
// The input is shifted by the tap. A panel can only be shifted by whole pairs of rows; for odd taps the gradient is
// shifted by a row as well, towards the zeros before it.
//
// turned: scratch, T [SIDE + width * turned_depth(rows)], of which the first SIDE are zero; packed: scratch,
// T [turned_depth(rows) + SHIFTS][32].
constexpr long SHIFTS = 8;  // at least the largest tap, a multiple of PAIR
template <class T> long turned_depth(long rows) { return padded(rows + PAIR<T> - 1); }
template <class T>
void convolution_weight_gradient(
    const T* in, const T* gradient, long rows, long width, long taps, int32_t* total, int32_t* bias, Quanta* quanta,
    T* turned, T* packed
) {
    const long depth = turned_depth<T>(rows), tall = depth + SHIFTS;
    const long steps = (rows + PAIR<T> - 1 + STEP<T> - 1) / STEP<T> * STEP<T>;
    turned += SIDE;
    add_rows(gradient, rows, width, bias, quanta[1]);
    for (long to = 0; to < width; to += BLOCK) transpose(gradient + to, rows, width, depth, turned + to * depth, depth);
    alignas(64) float sums[TOGETHER * BLOCK];
    for (long from = 0; from < width; from += BLOCK) {
        panel(in + from, rows + taps - 1, width, tall, packed);
        for (long tap = 0; tap < taps; ++tap)
            for (long to = 0; to < width; to += TOGETHER) {
                const long odd = tap % PAIR<T>, count = std::min(TOGETHER, width - to);
                block(turned + to * depth - odd, depth, count, 1, steps, packed + (tap - odd) * BLOCK, sums, BLOCK,
                      false);
                quanta[0].add(total + (tap * width + from) * width + to * BLOCK, sums, count * BLOCK);
            }
    }
    quanta[0].end_term();
}

// Packs the weights of a convolution, [channels][channels][taps] as in Gluon, into the panels of `convolution` and of
// `convolution_input_gradient`. All threads of a parallel region call it.
template <class T> void pack_convolution(const float* weights, long channels, long taps, T* forward, T* backward) {
    const long width = padded(channels);
#pragma omp for schedule(static) collapse(2)
    for (long out = 0; out < width; out += BLOCK)
        for (long in = 0; in < width; in += BLOCK)
            for (long tap = 0; tap < taps; ++tap) {
                alignas(64) T square[BLOCK * BLOCK] = {};
                for (long m = 0; m < std::min(BLOCK, channels - out); ++m)
                    for (long n = 0; n < std::min(BLOCK, channels - in); ++n)
                        put(square[m * BLOCK + n], weights[((out + m) * channels + in + n) * taps + tap]);
                transpose_words(square, BLOCK, BLOCK / PAIR<T>, forward + (out * taps + tap * BLOCK) * width + in * BLOCK);
                panel(square, BLOCK, BLOCK, BLOCK, backward + (in * taps + (taps - 1 - tap) * BLOCK) * width + out * BLOCK);
            }
}

// Sums what each thread has of the gradients of an output channel's weights, in the layout of
// `convolution_weight_gradient`, into Gluon's. total(scratch): the array of a thread.
template <class Scratches, class Total>
void sum_channel(const Scratches& scratches, Total total, long out, long channels, long taps, int32_t* weights) {
    const long width = padded(channels);
    for (long from = 0; from < width; from += BLOCK)
        for (long tap = 0; tap < taps; ++tap) {
            const long at = (tap * width + from) * width + out * BLOCK;
            alignas(64) int32_t sums[BLOCK] = {};
            for (const auto& scratch : scratches)
                for (long v = 0; v < BLOCK; v += LANES) add_whole(sums + v, copy_in<Words>(total(scratch) + at + v));
            int32_t* to = weights + (out * channels + from) * taps + tap;
            for (long n = 0; n < std::min(BLOCK, channels - from); ++n) to[n * taps] = sums[n];
        }
}

// ---- pooling -----------------------------------------------------------------------------------------------------

// Max pool of one document: in [3 * pooled][width], after ReLU → out [pooled][width] and the position of the maximum.
template <class T> void pool(const T* in, long pooled, long width, T* out, uint8_t* from) {
    for (long p = 0; p < pooled; ++p)
        for (long c = 0; c < width; c += LANES) {
            const T* column = in + p * PAPER_POOL * width + c;
            Lanes best = load(column);
            Words at = {};
            for (int s = 1; s < PAPER_POOL; ++s) {
                const Lanes other = load(column + s * width);
                const Words more = other > best;
                at = more ? Words{} + s : at;
                best = more ? other : best;
            }
            store(out + p * width + c, best);
            store(from + p * width + c, best > 0 ? at : Words{} + NONE);
        }
}

// Gradient of a max pool's input, `rows` rows of one document; zero for rows after the last pool.
template <class T> void unpool(const T* gradient, const uint8_t* from, long pooled, long rows, long width, T* out) {
    for (long p = 0; p < pooled; ++p)
        for (long c = 0; c < width; c += LANES) {
            const Lanes value = load(gradient + p * width + c);
            const Words at = load(from + p * width + c);
            for (int s = 0; s < PAPER_POOL; ++s) store(out + (p * PAPER_POOL + s) * width + c, where(at == s, value));
        }
    std::memset(static_cast<void*>(out + pooled * PAPER_POOL * width), 0, (rows - pooled * PAPER_POOL) * width * sizeof(T));
}
