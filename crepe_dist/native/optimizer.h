// Optimizers with MXNet's rules (checked with MXNet 1.9.1: src/operator/optimizer_op-inl.h), in one pass over memory. Only
// with Nesterov's momentum and weight decay there is a difference: MXNet takes the decay of the momentum from the value
// that it has just updated.
#pragma once

#include <cmath>

enum class Rule { adam, sgd, nag };

struct Optimizer {
    Rule rule;
    double decay, decay2, epsilon;  // of Adam: beta1, beta2 and epsilon; of the others: momentum, 0 and 0
    bool by_row = false;            // of Adam: the numbers of a row share their second moment

    // Updates values with the gradients times `scale`, plus `weight_decay` × value.
    //
    // moments: first moments, or momentum; null without momentum. seconds: Adam's second moments.
    // squares: of `scale` × gradients, that second moments are to average; null: those of the numbers themselves.
    // rate: learning rate; for Adam with the correction of its bias.
    void update(
        long count, float* __restrict values, float* __restrict moments, float* __restrict seconds,
        const float* __restrict gradients, const float* __restrict squares, float rate, float scale, float weight_decay
    ) const {
        const float first = float(decay), second = float(decay2), least = float(epsilon);
        if (rule == Rule::adam) {
            for (long i = 0; i < count; ++i) {
                const float gradient = scale * gradients[i] + weight_decay * values[i];
                moments[i] = first * moments[i] + (1 - first) * gradient;
                seconds[i] = second * seconds[i] + (1 - second) * (squares ? squares[i] : gradient * gradient);
                values[i] -= rate * moments[i] / (std::sqrt(seconds[i]) + least);
            }
        } else if (!moments) {
            for (long i = 0; i < count; ++i) values[i] -= rate * (scale * gradients[i] + weight_decay * values[i]);
        } else if (rule == Rule::sgd) {
            for (long i = 0; i < count; ++i) {
                moments[i] = first * moments[i] - rate * (scale * gradients[i] + weight_decay * values[i]);
                values[i] += moments[i];
            }
        } else {
            for (long i = 0; i < count; ++i) {
                const float gradient = scale * gradients[i] + weight_decay * values[i];
                moments[i] = first * moments[i] - rate * gradient;
                values[i] += first * moments[i] - rate * gradient;
            }
        }
    }
};
