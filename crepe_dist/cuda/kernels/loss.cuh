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
// constants are those of model/loss.py. Of each
// summand of the network, whose logits are [summands][documents][classes]. Blocks: (documents, summands).
KERNEL(THREADS) losses(
    const float* logits, int classes, const u8* packed, int stride, int length, double smoothing, int pairs, int several,
    const float* class_weights, float scale, float* gradients, float* out
) {
    __shared__ double memory[THREADS];
    const int document = blockIdx.x;
    const i64 row = i64(blockIdx.y) * gridDim.x + document;
    const float* const logit = logits + row * classes;
    float* const gradient = gradients + row * classes;
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
        if (threadIdx.x == 0) out[row] = weight * float(loss);
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
    if (threadIdx.x == 0) out[row] = of_document * float(log(total) - target);
}

// Writes this rank's row of the table [ranks][parameters + 4] that parallel/cuda_optimizer.py describes, and zeros for the other
// ranks and for the squares [parameters][2] behind it: a bound of the sum of each parameter's terms, as `Quanta` of
// native/fixed_point.h computes it; the loss; and three numbers. largest: the size of the largest number of each document's term,
// in quanta, as bits [parameters][documents], which become zero. losses: [summands][documents]. Blocks: parameters + 1.
KERNEL(THREADS) write_row(
    u32* largest, int documents, double unit, const float* losses, int summands, double step, double of_all, double vote,
    int rank, int ranks, double* table
) {
    __shared__ double memory[THREADS];
    const int parameters = gridDim.x - 1, width = parameters + 4, column = blockIdx.x;
    double sum = 0;
    for (int i = threadIdx.x; i < documents; i += THREADS) {
        if (column < parameters) {
            u32& bits = largest[i64(column) * documents + i];
            if (bits) sum += bits < INFINITE ? ceil((double(__uint_as_float(bits)) + 1) / unit) : __uint_as_float(bits) - __uint_as_float(bits);
            bits = 0;
        } else {
            float loss = 0;
            for (int part = 0; part < summands; ++part) loss += losses[part * documents + i];
            sum += rint(double(loss) / LOSS_UNIT) * LOSS_UNIT;
        }
    }
    sum = over_block(sum, memory, Plus());
    for (int of_rank = threadIdx.x; of_rank < ranks; of_rank += THREADS) {
        double* const row = table + i64(of_rank) * width;
        const bool own = of_rank == rank;
        row[column] = own ? sum : 0.0;
        if (column < parameters) continue;
        row[column + 1] = own ? step : 0.0;
        row[column + 2] = own ? of_all : 0.0;
        row[column + 3] = own ? vote : 0.0;
    }
    if (threadIdx.x < 2 && column < parameters) table[i64(ranks) * width + 2 * column + threadIdx.x] = 0.0;
}
