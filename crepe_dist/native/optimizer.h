// Adam and SGD with momentum, each in one pass over the memory. The formulas are the formulas of MXNet 1.9.1
// (src/operator/optimizer_op-inl.h).
#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>

// Returns a × b + c, rounded once in builds with FMA. If the expression were written with operators, GCC could fuse
// either of two products that are added, and builds would round differently.
inline float multiply_add(float a, float b, float c) {
#if defined(__FMA__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// Update of a row of an embedding table.
struct RowUpdate {
    float moment_factor, grad_factor, value_factor, scale, weight_decay;

    // Updates one number of the row and its first moment. fixed_point: gradient in fixed point.
    void update(float& value, float& moment, int32_t fixed_point) const {
        const float gradient = multiply_add(scale, float(fixed_point), weight_decay * value);
        moment = multiply_add(moment_factor, moment, grad_factor * gradient);
        value = multiply_add(value_factor, moment, value);
    }
};

struct Optimizer {
    bool is_adam;  // True for Adam, false for SGD.
    double beta1, beta2, epsilon;  // Constants of Adam. For SGD, beta1 is the momentum, and the others are 0.

    // Updates the values of a dense parameter. The gradient is scale × gradients + weight_decay × values.
    //
    // moments: first moments of Adam, or momentum of SGD; null for SGD without momentum. seconds: second moments of
    // Adam; null for SGD. learning_rate: for Adam, it includes the bias correction.
    void update(
        long count, float* __restrict values, float* __restrict moments, float* __restrict seconds,
        const float* __restrict gradients, float learning_rate, float scale, float weight_decay
    ) const {
        const float first = float(beta1), second = float(beta2), least = float(epsilon);
        if (is_adam) {
            for (long i = 0; i < count; ++i) {
                const float gradient = scale * gradients[i] + weight_decay * values[i];
                moments[i] = first * moments[i] + (1 - first) * gradient;
                seconds[i] = second * seconds[i] + (1 - second) * gradient * gradient;
                values[i] -= learning_rate * moments[i] / (std::sqrt(seconds[i]) + least);
            }
        } else if (!moments) {
            for (long i = 0; i < count; ++i)
                values[i] -= learning_rate * (scale * gradients[i] + weight_decay * values[i]);
        } else {
            for (long i = 0; i < count; ++i) {
                moments[i] = first * moments[i] - learning_rate * (scale * gradients[i] + weight_decay * values[i]);
                values[i] += moments[i];
            }
        }
    }

    // Returns the update of a row of an embedding table, and updates the second moment of the row. All numbers of a row
    // have one second moment, the running average of `square`, the mean square of the row's gradient (row-wise Adam).
    // decayed: factor by which the row's first moments have decayed since its last gradient, a power of beta1.
    RowUpdate row_update(float& moment, float square, float decayed, float learning_rate, float scale,
                         float weight_decay) const {
        const float first = float(beta1), second = float(beta2);
        if (!is_adam) return {first * decayed, -learning_rate, 1, scale, weight_decay};
        moment = multiply_add(second, moment, (1 - second) * square);
        return {first * decayed, 1 - first, adam_step_factor(learning_rate, moment), scale, weight_decay};
    }

    // An update without a gradient adds a multiple of the first moments to the values of a row. Over several updates,
    // these multiples are a geometric series. The first multiple is drift(learning_rate) × drift_ratio(), and each
    // following one is smaller by the factor drift_ratio(). momentum_drift converts the sum of the series to the factor
    // of the first moments.
    double drift(double learning_rate) const { return is_adam ? learning_rate : 1.0; }
    double drift_ratio() const { return is_adam ? beta1 / std::sqrt(beta2) : beta1; }
    float momentum_drift(float drift, float moment) const {
        return is_adam ? adam_step_factor(drift, moment) : drift;
    }

  private:
    float adam_step_factor(float learning_rate, float moment) const {
        return -learning_rate / (std::sqrt(moment) + float(epsilon));
    }
};

// Returns the mean of the squares of scale × the fixed-point numbers of a row. The number of partial sums is the same
// in all builds, so that the order of the additions is the same.
template <class Width> float mean_square(const int32_t* fixed_point, Width width, float scale) {
    constexpr long SUMS = 16;
    const long even = width / SUMS * SUMS;
    float sums[SUMS] = {};
    const auto add = [&](float& sum, int32_t number) {
        const float value = scale * float(number);
        sum = multiply_add(value, value, sum);
    };
    for (long n = 0; n < even; n += SUMS)
        for (long k = 0; k < SUMS; ++k) add(sums[k], fixed_point[n + k]);
    for (long n = even; n < width; ++n) add(sums[0], fixed_point[n]);
    return std::accumulate(sums, sums + SUMS, 0.0f) / float(width);
}
