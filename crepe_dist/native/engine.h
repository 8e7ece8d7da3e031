// Parts that all networks share: the interface `Engine`, the loss, and dropout.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "constants.hpp"
#include "compressed_array.h"

// Dropout by a hash of the unit's number in the global batch. The decision does not depend on the number of threads and
// ranks.
//
// SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) hashes the number of a group of four neighbouring units to 64 bits.
// Each unit has 16 of these bits. The drop probability is therefore rounded up to a multiple of 2^-16.
// crepe_dist/cuda/kernels/common.cuh implements the same function.
struct Dropout {
    static constexpr uint64_t UNITS_PER_HASH = 4;

    double probability;
    uint64_t seed;

    // Returns the 64 bits of a group of units. The lowest 16 bits belong to the first unit, UNITS_PER_HASH * group.
    uint64_t hash(uint64_t group) const {
        uint64_t z = seed + (group + 1) * GOLDEN;
        z = (z ^ (z >> 30)) * MULTIPLIER1;
        z = (z ^ (z >> 27)) * MULTIPLIER2;
        return z ^ (z >> 31);
    }

    // Returns the smallest 16-bit number of a unit that is retained.
    int32_t threshold() const { return int32_t(std::ceil(probability * 0x1p16)); }

    bool retains(uint64_t unit) const {
        return int32_t(hash(unit / UNITS_PER_HASH) >> (16 * (unit % UNITS_PER_HASH)) & 0xFFFF) >= threshold();
    }

    // Returns the factor of units that are retained (inverted dropout).
    float scale() const { return float(1 / (1 - probability)); }
};

// Settings of the loss. crepe_dist/model/loss.py has the ctypes mirror of this struct, and describes the losses.
struct LossConstants {
    double smoothing = 0;
    int32_t max_labels = 0;     // Number of (class, probability) pairs of a row. 0: a row has one label.
    int32_t is_multilabel = 0;  // 1 if the classes are independent, 0 if their probabilities form a distribution.
};

// Cross-entropy with label smoothing (Szegedy et al. 2016, arXiv:1512.00567), times the weight of the row and the
// weight of the class.
//
// A row of a batch has these bytes: the character ids; then the label in 2 bytes, or max_labels pairs of a class and
// its probability with 2 bytes each; then the weight of the row in 3 bytes. All numbers are little-endian.
//
// Sums over classes are in double, in ascending order of the classes.
struct Loss : LossConstants {
    std::vector<float> weights;  // Weight of each class, [num_classes].

    long target_bytes() const { return max_labels ? 4L * max_labels : 2; }
    // Returns the number of bytes of a row with `length` character ids.
    long stride(long length) const { return length + target_bytes() + 3; }

    // Returns the loss of row `row` of a batch, in nats, and writes its gradient with respect to the logits
    // [num_classes].
    float operator()(const float* logits, const uint8_t* batch, long row, long length, float* gradient) const {
        const uint8_t* const bytes = batch + row * stride(length) + length;
        const uint8_t* const last = bytes + target_bytes();
        const float weight = (last[0] + 256 * last[1] + 65536 * last[2]) / 65536.0f;
        if (is_multilabel) return multilabel_loss(logits, label_probs(bytes), weight, gradient);
        if (max_labels) return soft_label_loss(logits, label_probs(bytes), weight, gradient);
        return single_label_loss(logits, bytes[0] + 256L * bytes[1], weight, gradient);
    }

  private:
    float single_label_loss(const float* logits, long label, float weight, float* gradient) const {
        const long num_classes = long(weights.size());
        weight *= weights[label];
        const float max_logit = *std::max_element(logits, logits + num_classes);
        double total = 0;
        for (long n = 0; n < num_classes; ++n) total += std::exp(double(logits[n] - max_logit));
        double target = logits[label] - max_logit;
        if (smoothing > 0) {
            const double mean = std::accumulate(logits, logits + num_classes, 0.0) / num_classes - max_logit;
            target += smoothing * (mean - target);
        }
        for (long n = 0; n < num_classes; ++n) {
            const double probability = std::exp(double(logits[n] - max_logit)) / total;
            const double target_prob = (1 - smoothing) * (n == label) + smoothing / num_classes;
            gradient[n] = weight * float(probability - target_prob);
        }
        return weight * float(std::log(total) - target);
    }

    // Returns the probability of each class [num_classes]. Pairs with a class beyond the classes are padding.
    std::vector<double> label_probs(const uint8_t* bytes) const {
        std::vector<double> result(weights.size());
        for (long i = 0; i < max_labels; ++i, bytes += 4) {
            const size_t label = bytes[0] + 256u * bytes[1];
            if (label < result.size()) result[label] += (bytes[2] + 256 * bytes[3]) / 65535.0;
        }
        return result;
    }

    // Returns the cross-entropy with a distribution over the classes.
    float soft_label_loss(const float* logits, const std::vector<double>& label_prob, float weight,
                          float* gradient) const {
        const long num_classes = long(weights.size());
        const float max_logit = *std::max_element(logits, logits + num_classes);
        double total = 0, target = 0, class_weight = 0;
        for (long n = 0; n < num_classes; ++n) {
            total += std::exp(double(logits[n] - max_logit));
            class_weight += label_prob[n] * weights[n];
        }
        weight *= float(class_weight);
        for (long n = 0; n < num_classes; ++n) {
            const double target_prob = (1 - smoothing) * label_prob[n] + smoothing / num_classes;
            target += target_prob * (logits[n] - max_logit);
            gradient[n] = weight * float(std::exp(double(logits[n] - max_logit)) / total - target_prob);
        }
        return weight * float(std::log(total) - target);
    }

    // Returns the sum of the binary cross-entropies of all classes. The formulas use exp(-|logit|), which cannot
    // overflow.
    float multilabel_loss(const float* logits, const std::vector<double>& label_prob, float weight,
                          float* gradient) const {
        double loss = 0;
        for (size_t n = 0; n < weights.size(); ++n) {
            const double logit = logits[n], target_prob = (1 - smoothing) * label_prob[n] + smoothing / 2;
            const double exp_neg_abs = std::exp(-std::abs(logit));
            loss += weights[n] * (std::max(logit, 0.0) + std::log1p(exp_neg_abs) - target_prob * logit);
            gradient[n] = weight * weights[n] * float((logit >= 0 ? 1 : exp_neg_abs) / (1 + exp_neg_abs) - target_prob);
        }
        return weight * float(loss);
    }
};

// Returns the number of threads for a number of documents: at most one thread per document. For a single text, waking
// another thread takes longer than computing the text. If other programs use the cores, waking the thread takes even
// longer.
inline int team_size(int threads, long documents) { return int(std::clamp<long>(documents, 1, threads)); }

class ShardedEmbedding;

// A network on the CPU. `rows` is the number of documents of a batch, and `stride` is the distance of their character
// ids, in bytes. `first` is the number of the batch's first document in the global batch; dropout depends on it.
//
// A training step calls find_rows, train_forward and train_backward with the same batch.
class Engine {
  public:
    virtual ~Engine() = default;
    // Loads the parameters. Their memory must stay valid until the end of the next pass. buffers_changed: false if only
    // trained parameters may have changed since the last call.
    virtual void set_parameters(const CompressedArray* parameters, bool buffers_changed) = 0;
    virtual void set_loss(Loss loss) = 0;
    // Trains a row-sparse parameter in a sharded embedding, instead of in the memory of set_parameters. which: number
    // of the parameter among the row-sparse parameters of the network. cache_bytes: limit of the cache of documents'
    // buckets.
    virtual void attach(int /*which*/, ShardedEmbedding* /*embedding*/, size_t /*cache_bytes*/) {}
    // Computes the logits [rows][num_classes].
    virtual void forward(const uint8_t* codes, long stride, long rows, float* logits) = 0;
    // Computes the logits of both branches, [2][rows][num_classes]. Only networks with two branches implement it.
    virtual void branch_logits(const uint8_t* /*codes*/, long /*stride*/, long /*rows*/, float* /*logits*/) {}
    // Collects the rows of row-sparse parameters that a batch touches. `train_forward` reads them afterwards.
    virtual void find_rows(const uint8_t* /*batch*/, long /*rows*/) {}
    // Computes the losses [rows], and prepares `train_backward`.
    virtual void train_forward(const uint8_t* batch, long rows, Dropout dropout, uint64_t first, float* losses) = 0;
    // Writes two results: the gradients of the trained parameters, as fixed-point numbers in units of 2^exponent, and
    // bounds on their sums, in the unit that `bound_unit` defines (see fixed_point.h). The pointer to a gradient is
    // null if a sharded embedding receives this gradient.
    virtual void train_backward(int32_t* const* gradients, const int32_t* exponents, double bound_unit,
                                float* bounds) = 0;
    // Returns the number of trained parameters.
    virtual long num_trained() const = 0;
};
