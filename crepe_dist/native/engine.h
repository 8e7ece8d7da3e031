// Common to all networks: the interface, the objective and dropout.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "constants.hpp"
#include "compressed_array.h"

// Dropout tells for each unit of the global batch if it is kept, for any number of threads and ranks. A hash of the
// number of four neighbouring units, by SplitMix64 (Steele, Lea & Flood 2014), has 16 bits for each of them, so the
// probability is raised to a multiple of 2^-16; `kept` in engines/gluon/dropout.py is equivalent.
struct Dropout {
    static constexpr uint64_t UNITS = 4;  // of a hash

    double probability;
    uint64_t seed;

    // The hash of the units from UNITS * number on; the lowest bits are those of the first.
    uint64_t hash(uint64_t number) const {
        uint64_t z = seed + (number + 1) * GOLDEN;
        z = (z ^ (z >> 30)) * MULTIPLIER1;
        z = (z ^ (z >> 27)) * MULTIPLIER2;
        return z ^ (z >> 31);
    }

    // The smallest bits of units that are kept.
    int32_t threshold() const { return int32_t(std::ceil(probability * 0x1p16)); }

    bool keeps(uint64_t unit) const {
        return int32_t(hash(unit / UNITS) >> (16 * (unit % UNITS)) & 0xFFFF) >= threshold();
    }

    // The factor of kept units.
    float scale() const { return float(1 / (1 - probability)); }
};

// Cross-entropy with smoothed labels (Szegedy et al. 2016, arXiv:1512.00567), times the weights of row and class. See
// model/loss.py for rows with several labels, and with soft ones.
//
// After the codes of a row come its label in two bytes, or `pairs` pairs of a class and its share in two bytes each, and
// its weight in three bytes, all low bytes first.
struct ObjectiveConstants {  // as in model/loss.py
    double smoothing = 0;
    int32_t pairs = 0, several = 0;  // several: the classes of the pairs are independent
};

struct Objective : ObjectiveConstants {
    std::vector<float> weights;  // one per class

    long target_bytes() const { return pairs ? 4L * pairs : 2; }
    long stride(long length) const { return length + target_bytes() + 3; }

    // Returns the loss of row `row` of a batch and writes its gradient with respect to the logits.
    float operator()(const float* logits, const uint8_t* batch, long row, long length, float* gradient) const {
        const uint8_t* const bytes = batch + row * stride(length) + length;
        const uint8_t* const last = bytes + target_bytes();
        const float weight = (last[0] + 256 * last[1] + 65536 * last[2]) / 65536.0f;
        if (several) return independent(logits, shares(bytes), weight, gradient);
        if (pairs) return shared(logits, shares(bytes), weight, gradient);
        return single(logits, bytes[0] + 256L * bytes[1], weight, gradient);
    }

  private:
    float single(const float* logits, long label, float weight, float* gradient) const {
        const long classes = long(weights.size());
        weight *= weights[label];
        const float highest = *std::max_element(logits, logits + classes);
        double total = 0;
        for (long n = 0; n < classes; ++n) total += std::exp(double(logits[n] - highest));
        double target = logits[label] - highest;
        if (smoothing > 0) {
            const double mean = std::accumulate(logits, logits + classes, 0.0) / classes - highest;
            target += smoothing * (mean - target);
        }
        for (long n = 0; n < classes; ++n) {
            const double probability = std::exp(double(logits[n] - highest)) / total;
            const double wanted = (1 - smoothing) * (n == label) + smoothing / classes;
            gradient[n] = weight * float(probability - wanted);
        }
        return weight * float(std::log(total) - target);
    }

    // The share of each class; a pair of another class does not count.
    std::vector<double> shares(const uint8_t* bytes) const {
        std::vector<double> result(weights.size());
        for (long pair = 0; pair < pairs; ++pair, bytes += 4) {
            const size_t label = bytes[0] + 256u * bytes[1];
            if (label < result.size()) result[label] += (bytes[2] + 256 * bytes[3]) / 65535.0;
        }
        return result;
    }

    // Cross-entropy with a distribution over the classes.
    float shared(const float* logits, const std::vector<double>& share, float weight, float* gradient) const {
        const long classes = long(weights.size());
        const float highest = *std::max_element(logits, logits + classes);
        double total = 0, target = 0, factor = 0;
        for (long n = 0; n < classes; ++n) {
            total += std::exp(double(logits[n] - highest));
            factor += share[n] * weights[n];
        }
        weight *= float(factor);
        for (long n = 0; n < classes; ++n) {
            const double wanted = (1 - smoothing) * share[n] + smoothing / classes;
            target += wanted * (logits[n] - highest);
            gradient[n] = weight * float(std::exp(double(logits[n] - highest)) / total - wanted);
        }
        return weight * float(std::log(total) - target);
    }

    // Sum of the binary cross-entropies of all classes.
    float independent(const float* logits, const std::vector<double>& share, float weight, float* gradient) const {
        double loss = 0;
        for (size_t n = 0; n < weights.size(); ++n) {
            const double logit = logits[n], wanted = (1 - smoothing) * share[n] + smoothing / 2;
            const double small = std::exp(-std::abs(logit));
            loss += weights[n] * (std::max(logit, 0.0) + std::log1p(small) - wanted * logit);
            gradient[n] = weight * weights[n] * float((logit >= 0 ? 1 : small) / (1 + small) - wanted);
        }
        return weight * float(loss);
    }
};

// The number of threads for so many documents. Each is the work of one thread: to wake another for a single text takes
// longer than the text, and much longer where other programs use the cores.
inline int team(int threads, long documents) { return int(std::clamp<long>(documents, 1, threads)); }

class Table;

// The memory of the parameters given to `set` must stay valid until the end of the next pass. `anew` is false if only
// parameters that are trained may have changed since the last call.
class Engine {
  public:
    virtual ~Engine() = default;
    virtual void set(const Stored* parameters, bool anew) = 0;
    virtual void objective(Objective objective) = 0;
    // Trains a parameter in a table instead of that of `set`; `which` counts those that the network can train so.
    // cache_bytes: memory in which to remember the rows that documents touch.
    virtual void use(int /*which*/, Table* /*table*/, size_t /*cache_bytes*/) {}
    virtual void forward(const uint8_t* codes, long stride, long rows, float* logits) = 0;
    // Computes the logits of both parts, [2][rows][classes], of a network that has two.
    virtual void parts(const uint8_t* /*codes*/, long /*stride*/, long /*rows*/, float* /*logits*/) {}
    // Finds the rows of tables that a batch touches, before `train_forward` of the same batch reads them.
    virtual void find_rows(const uint8_t* /*batch*/, long /*rows*/) {}
    virtual void train_forward(const uint8_t* batch, long rows, Dropout dropout, uint64_t first, float* losses) = 0;
    // Writes the gradients of the trained parameters, in quanta of 2^exponent, and bounds of them, in `unit` quanta; see
    // fixed_point.h. A gradient is null if a table takes it.
    virtual void train_backward(int32_t* const* gradients, const int32_t* exponents, double unit, float* bounds) = 0;
    // The number of trained parameters.
    virtual long trained() const = 0;
};
