// Loss of a batch, and the statistics of a step. `Loss` in native/engine.h describes the losses; both implementations
// are equivalent.
#pragma once

#include "common.cuh"

// Reader of the targets of a row. `Loss` in native/engine.h describes the bytes of a row.
struct Targets {
    const u8 *bytes, *weight_bytes;
    int max_labels;

    __device__ Targets(const u8* row, int length, int max_labels)
        : bytes(row + length), weight_bytes(bytes + (max_labels ? 4 * max_labels : 2)), max_labels(max_labels) {}

    __device__ float weight() const {
        return float(weight_bytes[0] + 256 * weight_bytes[1] + 65536 * weight_bytes[2]) / 65536.0f;
    }

    __device__ double label_prob(int of_class) const {
        if (!max_labels) return bytes[0] + 256 * bytes[1] == of_class;
        double prob = 0;
        for (const u8* pair = bytes; pair < bytes + 4 * max_labels; pair += 4)
            if (pair[0] + 256 * pair[1] == of_class) prob += (pair[2] + 256 * pair[3]) / 65535.0;
        return prob;
    }
};

// Writes the loss of each document and branch to out [branches][documents], and the gradients with respect to the
// logits, times `scale`, to gradients [branches][documents][classes]. logits have the shape of the gradients.
// smoothing, max_labels and is_multilabel: the constants of model/loss.py. Blocks: (documents, branches).
KERNEL(THREADS) compute_losses(
    const float* logits, int classes, const u8* packed, int stride, int length, double smoothing, int max_labels, int
    is_multilabel, const float* class_weights, float scale, float* gradients, float* out
) {
    __shared__ double memory[THREADS];
    const int document = blockIdx.x;
    const i64 row = i64(blockIdx.y) * gridDim.x + document;
    const float* const logit = logits + row * classes;
    float* const gradient = gradients + row * classes;
    const Targets targets(packed + i64(document) * stride, length, max_labels);
    const float weight = targets.weight();
    if (is_multilabel) {
        double loss = 0;
        for (int n = threadIdx.x; n < classes; n += THREADS) {
            const double value = logit[n], target_prob = (1 - smoothing) * targets.label_prob(n) + smoothing / 2;
            const double exp_neg_abs = exp(value < 0 ? value : -value);
            loss += class_weights[n] * ((value > 0 ? value : 0.0) + log1p(exp_neg_abs) - target_prob * value);
            gradient[n] = scale * (weight * class_weights[n] *
                                   float((value >= 0 ? 1 : exp_neg_abs) / (1 + exp_neg_abs) - target_prob));
        }
        loss = block_reduce(loss, memory, Add());
        if (threadIdx.x == 0) out[row] = weight * float(loss);
        return;
    }
    double max_logit = logit[0];
    for (int n = threadIdx.x; n < classes; n += THREADS) max_logit = Max()(double(logit[n]), max_logit);
    max_logit = block_reduce(max_logit, memory, Max());
    double total = 0, target = 0, class_weight = 0;
    for (int n = threadIdx.x; n < classes; n += THREADS) {
        const double prob = targets.label_prob(n), target_prob = (1 - smoothing) * prob + smoothing / classes;
        total += exp(logit[n] - max_logit);
        class_weight += prob * class_weights[n];
        target += target_prob * (logit[n] - max_logit);
    }
    total = block_reduce(total, memory, Add());
    target = block_reduce(target, memory, Add());
    const float document_weight = weight * float(block_reduce(class_weight, memory, Add()));
    for (int n = threadIdx.x; n < classes; n += THREADS) {
        const double target_prob = (1 - smoothing) * targets.label_prob(n) + smoothing / classes;
        gradient[n] = scale * (document_weight * float(exp(logit[n] - max_logit) / total - target_prob));
    }
    if (threadIdx.x == 0) out[row] = document_weight * float(log(total) - target);
}

// Writes the statistics of a step to this rank's row of table [ranks][parameters + 4], which parallel/cuda_optimizer.py
// describes: a bound of each parameter's gradient sum, the loss, the step, the global batch size, and the requested
// action. Writes zeros to the rows of the other ranks.
//
// `FixedPointScale` in native/fixed_point.h computes the same bounds. largest: for each parameter and document, the
// bits of the largest absolute value of the document's term [parameters][documents]; the kernel resets the bits to 0.
// losses: [branches][documents]. Blocks: parameters + 1.
KERNEL(THREADS) write_step_stats(
    u32* largest, int documents, double bound_unit, const float* losses, int num_branches, double step, double
    global_batch_size, double action, int rank, int ranks, double* table
) {
    __shared__ double memory[THREADS];
    const int parameters = gridDim.x - 1, width = parameters + 4, column = blockIdx.x;
    double sum = 0;
    for (int i = threadIdx.x; i < documents; i += THREADS) {
        if (column < parameters) {
            u32& bits = largest[i64(column) * documents + i];
            if (bits)
                sum += bits < INFINITY_BITS ? ceil((double(__uint_as_float(bits)) + 1) / bound_unit)
                                            : __uint_as_float(bits) - __uint_as_float(bits);
            bits = 0;
        } else {
            float loss = 0;
            for (int branch = 0; branch < num_branches; ++branch) loss += losses[branch * documents + i];
            sum += rint(double(loss) / LOSS_UNIT) * LOSS_UNIT;
        }
    }
    sum = block_reduce(sum, memory, Add());
    for (int other = threadIdx.x; other < ranks; other += THREADS) {
        double* const row = table + i64(other) * width;
        const bool own = other == rank;
        row[column] = own ? sum : 0.0;
        if (column < parameters) continue;
        row[column + 1] = own ? step : 0.0;
        row[column + 2] = own ? global_batch_size : 0.0;
        row[column + 3] = own ? action : 0.0;
    }
}
