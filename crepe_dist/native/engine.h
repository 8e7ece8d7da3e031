// Common to all networks: the interface, the objective and dropout.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

constexpr long LABEL_BYTES = 5;  // after the codes of a row: the label in two bytes, the weight in three, low first

// The label bytes of a row.
inline const uint8_t* label_bytes(const uint8_t* batch, long row, long length) {
    return batch + row * (length + LABEL_BYTES) + length;
}

struct Dropout {
    double probability;
    uint64_t seed;
};

// Tells if dropout keeps unit `index` of the global batch, for any number of threads and ranks. A hash of the index by
// SplitMix64 (Steele, Lea & Flood 2014); `kept` in networks/dropout.py is equivalent.
inline bool kept(const Dropout& dropout, uint64_t index) {
    uint64_t z = dropout.seed + (index + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return int64_t(z >> 11) >= int64_t(std::ceil(dropout.probability * 0x1p53));
}

// Cross-entropy with smoothed labels (Szegedy et al. 2016, arXiv:1512.00567), times the weights of row and class.
struct Objective {
    double smoothing;
    std::vector<float> weights;  // one per class

    // Returns the loss of a row and writes its gradient with respect to the logits.
    float operator()(const float* logits, const uint8_t* bytes, float* gradient) const {
        const long classes = long(weights.size()), label = bytes[0] + 256L * bytes[1];
        const float weight = (bytes[2] + 256 * bytes[3] + 65536 * bytes[4]) / 65536.0f * weights[label];
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
};

class Table;

// The memory of the parameters given to `set` must stay valid until the end of the next pass. `anew` is false if only
// parameters that are trained may have changed since the last call.
class Engine {
  public:
    virtual ~Engine() = default;
    virtual void set(const float* const* parameters, bool anew) = 0;
    virtual void objective(Objective objective) = 0;
    // Trains a parameter in a table instead of that of `set`; `which` counts those that the network can train so.
    // cache_bytes: memory in which to remember the rows that documents touch.
    virtual void use(int /*which*/, Table* /*table*/, size_t /*cache_bytes*/) {}
    virtual void forward(const uint8_t* codes, long stride, long rows, float* logits) = 0;
    virtual void train_forward(const uint8_t* batch, long rows, Dropout dropout, uint64_t first, float* losses) = 0;
    virtual void train_backward(float* const* gradients) = 0;
    // The number of gradients that `train_backward` writes.
    virtual long gradients() const { return 0; }
};
