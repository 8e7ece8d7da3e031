// Optimizers with MXNet's rules (checked with MXNet 1.9.1: src/operator/optimizer_op-inl.h), in one pass over memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>

enum class Rule { adam, sgd };

// Returns a × b + c. Written as such, a sum of two products might be rounded differently by different builds.
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// An update of a table's row.
struct RowRule {
    float kept, added, along, scale, weight_decay;

    // Updates a number of the row, and its moment, with its gradient in quanta.
    void update(float& value, float& moment, int32_t whole) const {
        const float gradient = multiply_add(scale, float(whole), weight_decay * value);
        moment = multiply_add(kept, moment, added * gradient);
        value = multiply_add(along, moment, value);
    }
};

struct Optimizer {
    Rule rule;
    double decay, decay2, epsilon;  // Adam's beta1, beta2 and epsilon; SGD's momentum, 0 and 0

    // Updates values with the gradients times `scale`, plus `weight_decay` × value.
    //
    // moments: first moments, or momentum; null without momentum. seconds: Adam's second moments.
    // rate: learning rate; for Adam with the correction of its bias.
    void update(
        long count, float* __restrict values, float* __restrict moments, float* __restrict seconds,
        const float* __restrict gradients, float rate, float scale, float weight_decay
    ) const {
        const float first = float(decay), second = float(decay2), least = float(epsilon);
        if (rule == Rule::adam) {
            for (long i = 0; i < count; ++i) {
                const float gradient = scale * gradients[i] + weight_decay * values[i];
                moments[i] = first * moments[i] + (1 - first) * gradient;
                seconds[i] = second * seconds[i] + (1 - second) * gradient * gradient;
                values[i] -= rate * moments[i] / (std::sqrt(seconds[i]) + least);
            }
        } else if (!moments) {
            for (long i = 0; i < count; ++i) values[i] -= rate * (scale * gradients[i] + weight_decay * values[i]);
        } else {
            for (long i = 0; i < count; ++i) {
                moments[i] = first * moments[i] - rate * (scale * gradients[i] + weight_decay * values[i]);
                values[i] += moments[i];
            }
        }
    }

    // Returns the update of a row whose numbers share their second moment, which averages `square`, the mean square of
    // the row's gradient. past: what is left of the first moment after the updates that the row was not in.
    RowRule of_row(float& moment, float square, float past, float rate, float scale, float weight_decay) const {
        const float first = float(decay), second = float(decay2);
        if (rule == Rule::sgd) return {first * past, -rate, 1, scale, weight_decay};
        moment = multiply_add(second, moment, (1 - second) * square);
        return {first * past, 1 - first, along(rate, moment), scale, weight_decay};
    }

    // An update without a gradient adds to a row's values a multiple of their first moments. Over several updates the
    // multiples are a geometric series, from `drift(rate)` × `drift_ratio()`, times `along_drift`.
    double drift(double rate) const { return rule == Rule::sgd ? 1.0 : rate; }
    double drift_ratio() const { return rule == Rule::sgd ? decay : decay / std::sqrt(decay2); }
    float along_drift(float drift, float moment) const { return rule == Rule::sgd ? drift : along(drift, moment); }

  private:
    float along(float rate, float moment) const { return -rate / (std::sqrt(moment) + float(epsilon)); }
};

// The mean of the squares of `scale` × the whole numbers of a row.
template <class Width> float mean_square(const int32_t* whole, Width width, float scale) {
    constexpr long SUMS = 16;
    const long even = width / SUMS * SUMS;
    float sums[SUMS] = {};
    const auto add = [&](float& sum, int32_t number) {
        const float value = scale * float(number);
        sum = multiply_add(value, value, sum);
    };
    for (long n = 0; n < even; n += SUMS)
        for (long k = 0; k < SUMS; ++k) add(sums[k], whole[n + k]);
    for (long n = even; n < width; ++n) add(sums[0], whole[n]);
    return std::accumulate(sums, sums + SUMS, 0.0f) / float(width);
}
