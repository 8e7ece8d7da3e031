// The training objective: see `Objective` in native/engine.h, to which it is equivalent.
#pragma once

#include "common.cuh"

// After the codes of a document come its label, or pairs of a class and its share, and its weight.
struct Targets {
    const u8 *bytes, *weight_bytes;
    int pairs;

    __device__ Targets(const u8* row, int length, int pairs)
        : bytes(row + length), weight_bytes(bytes + (pairs ? 4 * pairs : 2)), pairs(pairs) {}

    __device__ float weight() const {
        return float(weight_bytes[0] + 256 * weight_bytes[1] + 65536 * weight_bytes[2]) / 65536.0f;
    }

    __device__ double share(int of_class) const {
        if (!pairs) return bytes[0] + 256 * bytes[1] == of_class;
        double share = 0;
        for (const u8* pair = bytes; pair < bytes + 4 * pairs; pair += 4)
            if (pair[0] + 256 * pair[1] == of_class) share += (pair[2] + 256 * pair[3]) / 65535.0;
        return share;
    }
};

// Writes the loss of each document, and its gradient with respect to the logits times `scale`. The objective's
// constants are those of model/objective.py. A block for each document.
KERNEL(THREADS) losses(
    const float* logits, int classes, const u8* packed, int stride, int length, double smoothing, int pairs, int several,
    const float* class_weights, float scale, float* gradients, float* out
) {
    __shared__ double memory[THREADS];
    const int document = blockIdx.x;
    const float* const logit = logits + i64(document) * classes;
    float* const gradient = gradients + i64(document) * classes;
    const Targets targets(packed + i64(document) * stride, length, pairs);
    const float weight = targets.weight();
    if (several) {
        double loss = 0;
        for (int n = threadIdx.x; n < classes; n += THREADS) {
            const double value = logit[n], wanted = (1 - smoothing) * targets.share(n) + smoothing / 2;
            const double small = exp(value < 0 ? value : -value);
            loss += class_weights[n] * ((value > 0 ? value : 0.0) + log1p(small) - wanted * value);
            gradient[n] = scale * (weight * class_weights[n] * float((value >= 0 ? 1 : small) / (1 + small) - wanted));
        }
        loss = over_block(loss, memory, Plus());
        if (threadIdx.x == 0) out[document] = weight * float(loss);
        return;
    }
    double highest = logit[0];
    for (int n = threadIdx.x; n < classes; n += THREADS) highest = Larger()(double(logit[n]), highest);
    highest = over_block(highest, memory, Larger());
    double total = 0, target = 0, factor = 0;
    for (int n = threadIdx.x; n < classes; n += THREADS) {
        const double share = targets.share(n), wanted = (1 - smoothing) * share + smoothing / classes;
        total += exp(logit[n] - highest);
        factor += share * class_weights[n];
        target += wanted * (logit[n] - highest);
    }
    total = over_block(total, memory, Plus());
    target = over_block(target, memory, Plus());
    const float of_document = weight * float(over_block(factor, memory, Plus()));
    for (int n = threadIdx.x; n < classes; n += THREADS) {
        const double wanted = (1 - smoothing) * targets.share(n) + smoothing / classes;
        gradient[n] = scale * (of_document * float(exp(logit[n] - highest) / total - wanted));
    }
    if (threadIdx.x == 0) out[document] = of_document * float(log(total) - target);
}

// Bounds the sum of the terms of each parameter, as `Quanta` of native/whole.h does: float [parameters]. largest: the
// size of the largest number of each document's term, in quanta, as bits [parameters][documents]. A block for each
// parameter.
KERNEL(THREADS) bound_sums(const u32* largest, int documents, double unit, float* bounds) {
    __shared__ double memory[THREADS];
    double bound = 0;
    for (int i = threadIdx.x; i < documents; i += THREADS) {
        const u32 bits = largest[i64(blockIdx.x) * documents + i];
        if (bits) bound += bits < INFINITE ? ceil((double(__uint_as_float(bits)) + 1) / unit) : __uint_as_float(bits) - __uint_as_float(bits);
    }
    bound = over_block(bound, memory, Plus());
    if (threadIdx.x == 0) bounds[blockIdx.x] = float(bound);
}
