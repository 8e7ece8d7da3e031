// Dense layers of the paper's network, for a whole batch. All threads of a parallel region call each function together,
// because the functions contain `omp for` loops.
//
// Weights are float32 [outputs][inputs], as in Gluon. Activations are [padded(documents)][padded(width)], padded with
// zeros.
#pragma once

#include "layers.h"

// TERM_DEPTH: number of rows that a gradient term has in the scratch arrays. The documents of the term come first, and
// the other rows are zero. TERM_STEP: number of these rows that a matrix product reads.
template <class T> constexpr long TERM_DEPTH = SIDE * PAIR<T>;
#if defined(__AMX_BF16__)
template <class T> constexpr long TERM_STEP = PAIR<T> > 1 ? TERM_DEPTH<T> : PAPER_REDUCTION_GROUP;
#else
template <class T> constexpr long TERM_STEP = PAPER_REDUCTION_GROUP;
#endif
template <class T>
long term_depth(long rows) {
    return (rows + PAPER_REDUCTION_GROUP - 1) / PAPER_REDUCTION_GROUP * TERM_DEPTH<T>;
}

// Converts neighbouring weights of an output to 16 words, padded with zeros. A word is one float32 number or two
// bfloat16 numbers.
inline void convert_to_words(const float* from, long count, uint32_t* to, float) {
    for (long i = 0; i < 16; i += LANES) store((float*)to + i, load_partial(from + i, count - i));
}
inline void convert_to_words(const float* from, long count, uint32_t* to, bfloat16) {
    for (long i = 0; i < 32; i += LANES) store((bfloat16*)to + i, load_partial(from + i, count - i));
}

// Packs the weights of a layer into panels [padded(outputs) / 32][padded(inputs) / PAIR][32][PAIR].
template <class T> void dense_panels(const float* weights, long outputs, long inputs, T* out) {
    const long depth = padded(inputs);
#pragma omp for schedule(static)
    for (long output = 0; output < padded(outputs); output += SIDE) {
        uint32_t* panel = (uint32_t*)(out + output / BLOCK * BLOCK * depth) + output % BLOCK;
        alignas(64) uint32_t words[SIDE][SIDE] = {};
        for (long i = 0; i < depth; i += SIDE * PAIR<T>) {
            for (long n = 0; n < std::min(SIDE, outputs - output); ++n)
                convert_to_words(weights + (output + n) * inputs + i, inputs - i, words[n], T{});
            transpose_words(words[0], SIDE, panel + i / PAIR<T> * BLOCK, BLOCK);
        }
    }
}

// Computes sums [rows][padded(outputs)] = in [rows][padded(inputs)] × panels. rows: a multiple of 32.
template <class T> void dense(const T* in, long rows, long inputs, long outputs, const T* panels, float* sums) {
    constexpr long CHUNK = 256 * PAIR<T>;  // Number of inputs whose columns of all rows fit in the L2 cache.
    const long depth = padded(inputs), width = padded(outputs);
#pragma omp for schedule(static)
    for (long output = 0; output < width; output += BLOCK)
        for (long first = 0; first < depth; first += CHUNK)
            for (long row = 0; row < rows; row += BLOCK)
                block(in + row * depth + first, depth, BLOCK, 1, std::min(CHUNK, depth - first),
                      panels + output * depth + first * BLOCK, sums + row * width + output, width, first > 0);
}

// Computes the gradient of the input of a layer, and calls finish(row, input, sums [32][32]) for each block of it.
// packed: scratch of the calling thread, T [padded(outputs)][32].
template <class T, class Finish>
void dense_input_gradient(
    const T* gradient, long rows, const T* panels, long outputs, long inputs, T* packed, Finish finish
) {
    const long depth = padded(outputs);
    alignas(64) float sums[BLOCK * BLOCK];
#pragma omp for schedule(static)
    for (long input = 0; input < padded(inputs); input += BLOCK) {
        for (long output = 0; output < depth; output += BLOCK)
            transpose_panel(panels + output * padded(inputs) + input * BLOCK, packed + output * BLOCK);
        for (long row = 0; row < rows; row += BLOCK) {
            block(gradient + row * depth, depth, BLOCK, 1, depth, packed, sums, BLOCK, false);
            finish(row, input, sums);
        }
    }
}

// Computes the fixed-point gradients of the weights and of the bias of a layer. A term of the weights is the sum over
// PAPER_REDUCTION_GROUP documents. The bound counts each document as a separate term, so it is never too small.
//
// grad_scales: scales of the weights and of the bias. transposed and packed: scratch of all threads, T
// [padded(outputs)][depth] and T [padded(inputs)][depth], where depth = term_depth<T>(rows).
template <class T>
void dense_weight_gradient(
    const T* in, const T* gradient, long rows, long outputs, long inputs, int32_t* weights, int32_t* bias,
    FixedPointScale* grad_scales, T* transposed, T* packed
) {
    constexpr long RUN = 64 * BLOCK;  // Inputs per iteration: few, so that a thread writes to few memory pages.
    const long width = padded(outputs), inner = padded(inputs), depth = term_depth<T>(rows);
    const auto each_term = [&](auto work) {
        for (long row = 0, at = 0; row < rows; row += PAPER_REDUCTION_GROUP, at += TERM_DEPTH<T>)
            work(row, std::min(PAPER_REDUCTION_GROUP, rows - row), at);
    };
#pragma omp for schedule(static)
    for (long output = 0; output < width; output += BLOCK) {
        each_term([&](long row, long count, long at) {
            transpose(gradient + row * width + output, count, width, TERM_DEPTH<T>, transposed + output * depth + at,
                      depth);
        });
        for (long n = output; n < std::min(outputs, output + BLOCK); ++n) {
            bias[n] = 0;
            for (long row = 0; row < rows; ++row)
                wrapping_add(bias[n],
                             int32_t(std::lrint(grad_scales[1].inverse_scale() * to_float(gradient[row * width + n]))));
        }
    }
#pragma omp single
    for (long row = 0; row < rows; ++row) {
        const float largest = max_abs(gradient + row * width, width);
        grad_scales[0].end_term(grad_scales[0].inverse_scale() * largest * max_abs(in + row * inner, inner));
        grad_scales[1].end_term(grad_scales[1].inverse_scale() * largest);
    }
#pragma omp for schedule(static)
    for (long input = 0; input < inner; input += BLOCK)
        each_term([&](long row, long count, long at) {
            pack_panel(in + row * inner + input, count, inner, TERM_DEPTH<T>, packed + input * depth + at * BLOCK);
        });
    alignas(64) float sums[BLOCK * BLOCK];
    alignas(64) int32_t totals[BLOCK * BLOCK];
#pragma omp for schedule(static) collapse(2)
    for (long first = 0; first < inner; first += RUN)
        for (long output = 0; output < width; output += BLOCK)
            for (long input = first; input < std::min(inner, first + RUN); input += BLOCK) {
                std::fill_n(totals, BLOCK * BLOCK, 0);
                each_term([&](long, long, long at) {
                    block(transposed + output * depth + at, depth, BLOCK, 1, TERM_STEP<T>,
                          packed + input * depth + at * BLOCK, sums, BLOCK, false);
                    for (long i = 0; i < BLOCK * BLOCK; i += LANES)
                        wrapping_add(totals + i, round_to_int(load(sums + i) * grad_scales[0].inverse_scale()));
                });
                const long wide = std::min(BLOCK, inputs - input);
                for (long m = 0; m < std::min(BLOCK, outputs - output); ++m)
                    std::memcpy(weights + (output + m) * inputs + input, totals + m * BLOCK, wide * sizeof(int32_t));
            }
}
