// What all networks have in common: how they are called, their objective, and their dropout.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

constexpr long LABEL_BYTES = 3;  // behind the codes of a row: label, low and high, and weight

inline const uint8_t* behind(const uint8_t* batch, long row, long length) {
    return batch + row * (length + LABEL_BYTES) + length;
}

struct Dropout {
    double probability;
    uint64_t seed;
};

// SplitMix64 (Steele, Lea & Flood 2014): the unit `index` of the batch is kept, whatever the threads and ranks.
inline bool kept(const Dropout& dropout, uint64_t index) {
    uint64_t z = dropout.seed + (index + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return double(z >> 11) * 0x1p-53 >= dropout.probability;
}

// Cross-entropy of a row with its label, smoothed over all classes (Szegedy et al. 2016, arXiv:1512.00567), times the
// weights of the row and of its class.
struct Objective {
    double smoothing;
    std::vector<float> weights;  // of the classes

    // The loss of a row, and its gradient by the logits.
    float operator()(const float* logits, const uint8_t* behind, float* gradient) const {
        const long classes = long(weights.size()), label = behind[0] + 256L * behind[1];
        const float weight = behind[2] * weights[label];
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

// The memory of the parameters must stay where it was at the last `set` until the pass that follows is done.
class Engine {
  public:
    virtual ~Engine() = default;
    virtual void set(const float* const* parameters) = 0;
    virtual void objective(Objective objective) = 0;
    virtual void forward(const uint8_t* codes, long stride, long rows, float* logits) = 0;
    virtual void train_forward(const uint8_t* batch, long rows, Dropout dropout, uint64_t first, float* losses) = 0;
    virtual void train_backward(float* const* gradients) = 0;
};
