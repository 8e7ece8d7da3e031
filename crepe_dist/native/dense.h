// Dense layers over a whole batch, each function called by all threads of a parallel region and sharing its work out.
//
// Weights are float32 [outputs][inputs], as Gluon keeps them. Activations are rows [padded(documents)][padded(width)],
// zero where padded.
#pragma once

#include <vector>

#include "layers.h"

// Weights → panels [padded(outputs) / 32][padded(inputs) / PAIR][32][PAIR].
template <class T> void dense_panels(const float* weights, long outputs, long inputs, T* out) {
    const long depth = padded(inputs);
#pragma omp for schedule(static)
    for (long output = 0; output < padded(outputs); output += BLOCK) {
        T* panel = out + output * depth;
        for (long n = 0; n < BLOCK; ++n)
            for (long i = 0; i < depth; i += PAIR<T>)
                for (long pair = 0; pair < PAIR<T>; ++pair) {
                    const bool inside = output + n < outputs && i + pair < inputs;
                    put(panel[i * BLOCK + n * PAIR<T> + pair],
                        inside ? weights[(output + n) * inputs + i + pair] : 0.0f);
                }
    }
}

// sums [rows][padded(outputs)] = in [rows][padded(inputs)] times the panels; rows is a multiple of 32.
template <class T> void dense(const T* in, long rows, long inputs, long outputs, const T* panels, float* sums) {
    constexpr long CHUNK = 512;  // of the inputs, so that these columns of all rows stay in the second-level cache
    const long depth = padded(inputs), width = padded(outputs);
#pragma omp for schedule(static)
    for (long output = 0; output < width; output += BLOCK)
        for (long first = 0; first < depth; first += CHUNK)
            for (long row = 0; row < rows; row += BLOCK)
                block(in + row * depth + first, depth, 1, std::min(CHUNK, depth - first),
                      panels + output * depth + first * BLOCK, sums + row * width + output, width, first > 0);
}

// Gradient of the input, given to finish(row, input, sums [32][32]) block by block.
template <class T, class Finish>
void dense_input_gradient(const T* gradient, long rows, const float* weights, long outputs, long inputs, Finish finish) {
    const long depth = padded(outputs);
    std::vector<T> panel(depth * BLOCK);
    alignas(64) float sums[BLOCK * BLOCK];
#pragma omp for schedule(static)
    for (long input = 0; input < padded(inputs); input += BLOCK) {
        const long count = std::min(BLOCK, inputs - input);
        for (long output = 0; output < outputs; ++output) {
            T* to = panel.data() + output / PAIR<T> * PAIR<T> * BLOCK + output % PAIR<T>;
            for (long n = 0; n < count; ++n) put(to[n * PAIR<T>], weights[output * inputs + input + n]);
            for (long n = count; n < BLOCK; ++n) to[n * PAIR<T>] = T{};
        }
        for (long row = 0; row < rows; row += BLOCK) {
            block(gradient + row * depth, depth, 1, depth, panel.data(), sums, BLOCK, false);
            finish(row, input, sums);
        }
    }
}

// Gradients of the weights and the bias. turned: scratch of all threads, T [padded(outputs)][rows].
template <class T>
void dense_weight_gradient(
    const T* in, const T* gradient, long rows, long outputs, long inputs, float* weights, float* bias, T* turned
) {
    const long width = padded(outputs);
#pragma omp for schedule(static)
    for (long output = 0; output < width; output += BLOCK)
        for (long n = output; n < output + BLOCK; ++n) {
            float total = 0;
            for (long row = 0; row < rows; ++row) {
                turned[n * rows + row] = gradient[row * width + n];
                total += to_float(gradient[row * width + n]);
            }
            if (n < outputs) bias[n] = total;
        }
    std::vector<T> panel(rows * BLOCK);
    alignas(64) float sums[BLOCK * BLOCK];
#pragma omp for schedule(static)
    for (long input = 0; input < padded(inputs); input += BLOCK) {
        for (long row = 0; row < rows; ++row) {
            T* to = panel.data() + row / PAIR<T> * PAIR<T> * BLOCK + row % PAIR<T>;
            for (long n = 0; n < BLOCK; ++n) to[n * PAIR<T>] = in[row * padded(inputs) + input + n];
        }
        for (long output = 0; output < width; output += BLOCK) {
            block(turned + output * rows, rows, 1, rows, panel.data(), sums, BLOCK, false);
            const long wide = std::min(BLOCK, inputs - input);
            for (long m = 0; m < std::min(BLOCK, outputs - output); ++m)
                std::memcpy(weights + (output + m) * inputs + input, sums + m * BLOCK, wide * sizeof(float));
        }
    }
}
