// Dense layers over a whole batch. All threads of a parallel region call each function and share its work.
//
// Weights are float32 [outputs][inputs], as in Gluon. Activations are [padded(documents)][padded(width)], padded with
// zeros.
#pragma once

#include "layers.h"

// Loads up to LANES of `count` values, padded with 0.
inline Lanes load_some(const float* from, long count) {
    if (count >= LANES) return load(from);
    float values[LANES] = {};
    if (count > 0) std::memcpy(values, from, count * sizeof(float));
    return load(values);
}

// Converts neighbouring inputs of an output to words of pairs.
inline void narrow(const float* from, long count, uint32_t* to, float) {
    for (long i = 0; i < 16; i += LANES) store((float*)to + i, load_some(from + i, count - i));
}
inline void narrow(const float* from, long count, uint32_t* to, bfloat16) {
    for (long i = 0; i < 32; i += LANES) store((bfloat16*)to + i, load_some(from + i, count - i));
}

// Packs weights into panels [padded(outputs) / 32][padded(inputs) / PAIR][32][PAIR].
template <class T> void dense_panels(const float* weights, long outputs, long inputs, T* out) {
    const long depth = padded(inputs);
#pragma omp for schedule(static)
    for (long output = 0; output < padded(outputs); output += SIDE) {
        uint32_t* panel = (uint32_t*)(out + output / BLOCK * BLOCK * depth) + output % BLOCK;
        alignas(64) uint32_t words[SIDE][SIDE] = {};
        for (long i = 0; i < depth; i += SIDE * PAIR<T>) {
            for (long n = 0; n < std::min(SIDE, outputs - output); ++n)
                narrow(weights + (output + n) * inputs + i, inputs - i, words[n], T{});
            transpose_words(words[0], SIDE, panel + i / PAIR<T> * BLOCK, BLOCK);
        }
    }
}

// sums [rows][padded(outputs)] = in [rows][padded(inputs)] × panels; rows is a multiple of 32.
template <class T> void dense(const T* in, long rows, long inputs, long outputs, const T* panels, float* sums) {
    constexpr long CHUNK = 256 * PAIR<T>;  // inputs at a time: these columns of all rows fit in the L2 cache
    const long depth = padded(inputs), width = padded(outputs);
#pragma omp for schedule(static)
    for (long output = 0; output < width; output += BLOCK)
        for (long first = 0; first < depth; first += CHUNK)
            for (long row = 0; row < rows; row += BLOCK)
                block(in + row * depth + first, depth, 1, std::min(CHUNK, depth - first),
                      panels + output * depth + first * BLOCK, sums + row * width + output, width, first > 0);
}

// Gradient of the input: calls finish(row, input, sums [32][32]) for each block. packed: scratch of each thread,
// T [padded(outputs)][32].
template <class T, class Finish>
void dense_input_gradient(
    const T* gradient, long rows, const T* panels, long outputs, long inputs, T* packed, Finish finish
) {
    const long depth = padded(outputs);
    alignas(64) float sums[BLOCK * BLOCK];
#pragma omp for schedule(static)
    for (long input = 0; input < padded(inputs); input += BLOCK) {
        for (long output = 0; output < depth; output += BLOCK)
            turn(panels + output * padded(inputs) + input * BLOCK, packed + output * BLOCK);
        for (long row = 0; row < rows; row += BLOCK) {
            block(gradient + row * depth, depth, 1, depth, packed, sums, BLOCK, false);
            finish(row, input, sums);
        }
    }
}

// Gradients of the weights and the bias. turned and packed: shared scratch, T [padded(outputs)][rows] and
// T [padded(inputs)][rows].
template <class T>
void dense_weight_gradient(
    const T* in, const T* gradient, long rows, long outputs, long inputs, float* weights, float* bias, T* turned,
    T* packed
) {
    constexpr long RUN = 64 * BLOCK;  // inputs at a time: an output's weights are written to few pages of memory
    const long width = padded(outputs), depth = padded(inputs);
#pragma omp for schedule(static)
    for (long output = 0; output < width; output += BLOCK) {
        transpose(gradient + output, rows, width, rows, turned + output * rows);
        for (long n = output; n < std::min(outputs, output + BLOCK); ++n) {
            float total = 0;
            for (long row = 0; row < rows; ++row) total += to_float(turned[n * rows + row]);
            bias[n] = total;
        }
    }
#pragma omp for schedule(static)
    for (long input = 0; input < depth; input += BLOCK) panel(in + input, rows, depth, rows, packed + input * rows);
    alignas(64) float sums[BLOCK * BLOCK];
#pragma omp for schedule(static) collapse(2)
    for (long first = 0; first < depth; first += RUN)
        for (long output = 0; output < width; output += BLOCK)
            for (long input = first; input < std::min(depth, first + RUN); input += BLOCK) {
                block(turned + output * rows, rows, 1, rows, packed + input * rows, sums, BLOCK, false);
                const long wide = std::min(BLOCK, inputs - input);
                for (long m = 0; m < std::min(BLOCK, outputs - output); ++m)
                    std::memcpy(weights + (output + m) * inputs + input, sums + m * BLOCK, wide * sizeof(float));
            }
}
