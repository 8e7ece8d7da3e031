// The layers of the network over one stretch of documents, each called by one thread.
//
// Activations are rows of `width` channels, a row a position; the documents of a stretch follow each other at a fixed
// stride of rows. A convolution runs over the whole stretch as over one long text: the last taps - 1 rows of each
// document then mix two documents, and nobody reads them (the gradients of these rows are zero).
#pragma once

#include <algorithm>

#include "block.h"

constexpr long POOL = 3;
constexpr uint8_t NONE = POOL;  // where no position of a pool passes on a gradient, because ReLU held all of them

inline long padded(long n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

// ---- the first layer ---------------------------------------------------------------------------------------------

// Convolution of the one-hot codes, ReLU, maximum of 3. The product with a one-hot matrix is a sum of rows of a table
// [width / 32][taps][symbols][32], whose last symbol is blank and zero.
template <class T>
void first_layer(
    const uint8_t* codes, long pooled, long width, long taps, long symbols, const float* table, const float* bias,
    T* out, uint8_t* from
) {
    constexpr long VECTORS = BLOCK / LANES;
    for (long channel = 0; channel < width; channel += BLOCK, table += taps * symbols * BLOCK) {
        for (long p = 0; p < pooled; ++p) {
            const uint8_t* window = codes + p * POOL;
            float sums[POOL][BLOCK];
            for (long s = 0; s < POOL; ++s) {
                Lanes total[VECTORS];
                for (long v = 0; v < VECTORS; ++v) total[v] = *(const Lanes*)(bias + channel + v * LANES);
                for (long tap = 0; tap < taps; ++tap) {
                    const float* row = table + (tap * symbols + window[s + tap]) * BLOCK;
                    for (long v = 0; v < VECTORS; ++v) total[v] += *(const Lanes*)(row + v * LANES);
                }
                for (long v = 0; v < VECTORS; ++v) *(Lanes*)(sums[s] + v * LANES) = total[v];
            }
            T* to = out + p * width + channel;
            uint8_t* index = from + p * width + channel;
            for (long c = 0; c < BLOCK; ++c) {
                float best = sums[0][c];
                int at = 0;
                at = sums[1][c] > best ? 1 : at;
                best = std::max(best, sums[1][c]);
                at = sums[2][c] > best ? 2 : at;
                best = std::max(best, sums[2][c]);
                index[c] = uint8_t(best > 0 ? at : NONE);
                put(to[c], std::max(best, 0.0f));
            }
        }
    }
}

// Adds the gradient of the table, of the shape of the table, and that of the bias.
template <class T>
void first_layer_gradient(
    const uint8_t* codes, long pooled, long width, long taps, long symbols, const T* gradient, const uint8_t* from,
    float* table, float* bias
) {
    constexpr long VECTORS = BLOCK / LANES;
    for (long channel = 0; channel < width; channel += BLOCK, table += taps * symbols * BLOCK) {
        float total[BLOCK] = {};
        for (long p = 0; p < pooled; ++p) {
            const uint8_t* window = codes + p * POOL;
            const T* row = gradient + p * width + channel;
            const uint8_t* index = from + p * width + channel;
            float parts[POOL][BLOCK];
            for (long c = 0; c < BLOCK; ++c) {
                const float value = to_float(row[c]);
                total[c] += index[c] < NONE ? value : 0.0f;
                for (long s = 0; s < POOL; ++s) parts[s][c] = index[c] == s ? value : 0.0f;
            }
            for (long s = 0; s < POOL; ++s)
                for (long tap = 0; tap < taps; ++tap) {
                    float* to = table + (tap * symbols + window[s + tap]) * BLOCK;
                    for (long v = 0; v < VECTORS; ++v)
                        *(Lanes*)(to + v * LANES) += *(const Lanes*)(parts[s] + v * LANES);
                }
        }
        for (long c = 0; c < BLOCK; ++c) bias[channel + c] += total[c];
    }
}

// ---- the other convolutions --------------------------------------------------------------------------------------

// Calls finish(row, channel, sums [32][32]) for each block of the convolution of `rows` rows; reads up to 32 + taps
// rows behind the last one. `weights` are panels [width / 32][taps][width / PAIR][32][PAIR].
template <class T, class Finish>
void convolve(const T* in, long rows, long width, long taps, const T* weights, Finish finish) {
    alignas(64) float sums[BLOCK * BLOCK];
    for (long row = 0; row < rows; row += BLOCK)
        for (long channel = 0; channel < width; channel += BLOCK) {
            block(in + row * width, width, taps, width, weights + channel * taps * width, sums, BLOCK, false);
            finish(row, channel, sums);
        }
}

// ReLU of the convolution into out [rows][width].
template <class T>
void convolution(const T* in, long rows, long width, long taps, const T* weights, const float* bias, T* out) {
    convolve(in, rows, width, taps, weights, [&](long row, long channel, const float* sums) {
        const long count = std::min(BLOCK, rows - row);
        for (long m = 0; m < count; ++m)
            for (long n = 0; n < BLOCK; ++n)
                put(out[(row + m) * width + channel + n], std::max(sums[m * BLOCK + n] + bias[channel + n], 0.0f));
    });
}

// Gradient of the input out of that of the output, which has taps - 1 rows of zeros before its first one; `weights`
// are turned round in taps and transposed. With `activations` (the input itself) it is masked by the ReLU before.
template <class T>
void convolution_input_gradient(
    const T* gradient, long rows, long width, long taps, const T* weights, const T* activations, T* out
) {
    convolve(gradient - (taps - 1) * width, rows, width, taps, weights, [&](long row, long channel, const float* sums) {
        const long count = std::min(BLOCK, rows - row);
        for (long m = 0; m < count; ++m) {
            T* to = out + (row + m) * width + channel;
            if (activations) {
                const T* seen = activations + (row + m) * width + channel;
                for (long n = 0; n < BLOCK; ++n) put(to[n], positive(seen[n]) ? sums[m * BLOCK + n] : 0.0f);
            } else {
                for (long n = 0; n < BLOCK; ++n) put(to[n], sums[m * BLOCK + n]);
            }
        }
    });
}

// out [width][stride], a row a channel; rows behind the last one up to `stride` are zero.
template <class T> void transpose(const T* in, long rows, long width, long stride, T* out) {
    constexpr long SIDE = 16;
    for (long row = 0; row < rows; row += SIDE) {
        const long count = std::min(SIDE, rows - row);
        for (long channel = 0; channel < width; channel += SIDE) {
            T tile[SIDE][SIDE] = {};
            for (long m = 0; m < count; ++m)
                for (long n = 0; n < SIDE; ++n) tile[n][m] = in[(row + m) * width + channel + n];
            for (long n = 0; n < SIDE; ++n)
                std::memcpy(out + (channel + n) * stride + row, tile[n], std::min(SIDE, stride - row) * sizeof(T));
        }
    }
    for (long channel = 0; channel < width; ++channel) {
        const long done = std::min(stride, (rows + SIDE - 1) / SIDE * SIDE);
        std::memset(static_cast<void*>(out + channel * stride + done), 0, (stride - done) * sizeof(T));
    }
}

// Rows [rows][width] as panels [width / 32][depth / PAIR][32][PAIR]; rows behind the last one up to `depth` are zero.
template <class T> void panels(const T* in, long rows, long width, long depth, T* out) {
    for (long channel = 0; channel < width; channel += BLOCK)
        for (long row = 0; row < depth; row += PAIR<T>, out += PAIR<T> * BLOCK)
            for (long pair = 0; pair < PAIR<T>; ++pair) {
                if (row + pair < rows) {
                    const T* from = in + (row + pair) * width + channel;
                    for (long n = 0; n < BLOCK; ++n) out[n * PAIR<T> + pair] = from[n];
                } else {
                    for (long n = 0; n < BLOCK; ++n) out[n * PAIR<T> + pair] = T{};
                }
            }
}

// Adds to `total` [taps][width / 32][width / 32][32][32] (tap, input, output) and `bias` [width].
//
// turned: scratch, T [width][padded(rows) + 32]; packed: scratch, T [padded(rows)][width].
template <class T>
void convolution_weight_gradient(
    const T* in, const T* gradient, long rows, long width, long taps, float* total, float* bias, T* turned, T* packed
) {
    const long depth = padded(rows), stride = depth + BLOCK, side = width / BLOCK;
    transpose(in, rows + taps - 1, width, stride, turned);
    panels(gradient, rows, width, depth, packed);
    for (long row = 0; row < rows; ++row)
        for (long n = 0; n < width; ++n) bias[n] += to_float(gradient[row * width + n]);
    for (long to = 0; to < side; ++to)
        for (long from = 0; from < side; ++from)
            for (long tap = 0; tap < taps; ++tap) {
                float* sums = total + ((tap * side + from) * side + to) * BLOCK * BLOCK;
                block(turned + from * BLOCK * stride + tap, stride, 1, depth, packed + to * depth * BLOCK, sums, BLOCK,
                      true);
            }
}

// ---- pooling -----------------------------------------------------------------------------------------------------

// Maximum of 3 rows of one document: in [3 * pooled][width], after ReLU → out [pooled][width] and where it was.
template <class T> void pool(const T* in, long pooled, long width, T* out, uint8_t* from) {
    for (long p = 0; p < pooled; ++p)
        for (long c = 0; c < width; ++c) {
            const T* column = in + p * POOL * width + c;
            T best = column[0];
            uint8_t at = 0;
            for (uint8_t s = 1; s < POOL; ++s) {
                const bool more = to_float(column[s * width]) > to_float(best);
                best = more ? column[s * width] : best;
                at = more ? s : at;
            }
            out[p * width + c] = best;
            from[p * width + c] = positive(best) ? at : NONE;
        }
}

// Gradient of `rows` rows of one document; those that no pool has taken are zero.
template <class T> void unpool(const T* gradient, const uint8_t* from, long pooled, long rows, long width, T* out) {
    for (long p = 0; p < pooled; ++p)
        for (long s = 0; s < POOL; ++s) {
            T* to = out + (p * POOL + s) * width;
            for (long c = 0; c < width; ++c) to[c] = from[p * width + c] == s ? gradient[p * width + c] : T{};
        }
    std::memset(static_cast<void*>(out + pooled * POOL * width), 0, (rows - pooled * POOL) * width * sizeof(T));
}
