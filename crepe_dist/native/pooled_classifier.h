// Output of the convolutional branch: global pooling over the positions of a document, and a linear layer.
//
//     features = dropout(max over positions of x, mean over positions of x)
//     logits = weights · features + bias
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "engine.h"
#include "fixed_point.h"
#include "layers.h"
#include "memory.h"

// The linear layer, and the features of a batch. T: type of the activations. Features are float32 [documents][2][padded
// channels]: the maxima, then the means.
template <class T> class PooledClassifier {
  public:
    PooledClassifier(long channels, long num_classes)
        : channels_(channels), width_(padded(channels)), num_classes_(num_classes) {}

    // weights: [num_classes][2][channels]. bias: [num_classes].
    void set_parameters(const float* weights, const float* bias) {
        weights_ = weights;
        bias_ = bias;
    }

    // Allocates the memory of a batch.
    void reserve(long documents) {
        features_.reserve(documents * 2 * width_);
        argmax_.reserve(documents * width_);
    }

    // Computes the features of a document. in: activations of its positions, [length][padded channels]. first_row:
    // number of the batch's first document in the global batch.
    void pool(long document, const T* in, long length, const Dropout& dropout, uint64_t first_row) {
        float *const maximum = features_.get() + document * 2 * width_, *const mean = maximum + width_;
        int32_t* const argmax = argmax_.get() + document * width_;
        std::fill_n(maximum, 2 * width_, 0.0f);
        std::fill_n(argmax, width_, -1);
        for (long p = 0; p < length; ++p)
            for (long c = 0; c < width_; c += LANES) {
                const FloatVec value = load(in + p * width_ + c);
                const FloatVec largest = load(maximum + c);
                IntVec position;
                std::memcpy(&position, argmax + c, sizeof position);
                const IntVec is_larger = value > largest;
                position = is_larger ? IntVec{} + int32_t(p) : position;
                std::memcpy(argmax + c, &position, sizeof position);
                store(maximum + c, is_larger ? value : largest);
                store(mean + c, load(mean + c) + value);
            }
        const float scale = dropout.scale();
        for (long c = 0; c < width_; ++c) mean[c] /= float(std::max(1L, length));
        if (dropout.probability > 0)
            for (long c = 0; c < width_; ++c)
                for (int i : {0, 1}) {
                    const uint64_t unit = ((first_row + document) * 2 + i) * channels_ + c;
                    float& value = maximum[i * width_ + c];
                    value = dropout.retains(unit) ? value * scale : 0.0f;
                    if (value == 0.0f && i == 0) argmax[c] = -1;
                }
    }

    // Computes the logits of a document, [num_classes]. All builds have the same number of partial sums, so that the
    // order of the additions is the same in all builds.
    void classify(long document, float* logits) const {
        const float* const features = features_.get() + document * 2 * width_;
        for (long n = 0; n < num_classes_; ++n) {
            FloatVec sums[BLOCK / LANES] = {};
            for (int i : {0, 1})
                for (long c = 0; c < channels_; c += LANES)
                    sums[c % BLOCK / LANES] += load_partial(weights_ + (2 * n + i) * channels_ + c, channels_ - c) *
                                               load(features + i * width_ + c);
            float logit = bias_[n];
            for (const FloatVec& part : sums)
                for (long v = 0; v < LANES; ++v) logit += part[v];
            logits[n] = logit;
        }
    }

    // Writes the gradient of the pooled activations of a document to out [length][padded channels]. logit_gradient:
    // [num_classes]. The mean has a gradient at each position, the maximum only at its position.
    void input_gradient(long document, const float* logit_gradient, long length, const Dropout& dropout, T* out) const {
        std::vector<float> maximum(width_, 0.0f), mean(width_, 0.0f);
        const float scale = dropout.scale();
        const float* const features = features_.get() + document * 2 * width_;
        for (long n = 0; n < num_classes_; ++n)
            for (long c = 0; c < channels_; ++c) {
                maximum[c] += logit_gradient[n] * weights_[n * 2 * channels_ + c];
                mean[c] += logit_gradient[n] * weights_[n * 2 * channels_ + channels_ + c];
            }
        for (long c = 0; c < width_; ++c) {
            maximum[c] *= scale;
            mean[c] *= features[width_ + c] != 0 ? scale / float(std::max(1L, length)) : 0.0f;
        }
        for (long p = 0; p < length; ++p)
            for (long c = 0; c < width_; c += LANES) {
                IntVec position;
                std::memcpy(&position, argmax_.get() + document * width_ + c, sizeof position);
                store(out + p * width_ + c,
                      load(mean.data() + c) + select_or_zero(position == int32_t(p), load(maximum.data() + c)));
            }
    }

    // Computes the fixed-point gradients of the weights and of the bias. Each document is a term. grad_scales: scales
    // of the weights and of the bias. gradients: weights, bias.
    void weight_gradient(
        long documents, const float* logit_gradients, FixedPointScale* grad_scales, int32_t* const* gradients
    ) const {
        FixedPointScale *const weights = grad_scales, *const bias = grad_scales + 1;
        std::memset(gradients[0], 0, num_classes_ * 2 * channels_ * sizeof(int32_t));
        std::memset(gradients[1], 0, num_classes_ * sizeof(int32_t));
        for (long document = 0; document < documents; ++document) {
            const float* const logit_gradient = logit_gradients + document * num_classes_;
            for (long n = 0; n < num_classes_; ++n)
                for (int i : {0, 1}) {
                    const float* const features = features_.get() + (document * 2 + i) * width_;
                    int32_t* const to = gradients[0] + (n * 2 + i) * channels_;
                    for (long c = 0; c < channels_; c += LANES)
                        wrapping_add(to + c, weights->quantize(logit_gradient[n] * load(features + c)), channels_ - c);
                }
            bias->add(gradients[1], logit_gradient, num_classes_);
            weights->end_term();
            bias->end_term();
        }
    }

  private:
    const long channels_, width_, num_classes_;  // width_ is channels_, padded to a multiple of 32.
    const float *weights_ = nullptr, *bias_ = nullptr;
    Buffer<float> features_;
    Buffer<int32_t> argmax_;  // Position of each maximum, [documents][padded channels]. -1: all are 0, or dropped.
};
