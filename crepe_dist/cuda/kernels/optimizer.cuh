// Optimizers, with the rules of native/optimizer.h, on gradients in whole numbers.
#pragma once

#include "common.cuh"

enum Rule { ADAM, SGD };

// A parameter, as parallel/cuda_optimizer.py describes it.
struct Trained {
    i64 count;
    float* values;
    i32* gradients;
    float *moments, *seconds;  // first moments, or momentum: null without momentum; Adam's second moments
    i64 columns, lanes;        // of a table whose rows have one second moment each; else columns is 0
    i64 channels;              // of a convolution, whose gradients are [taps][in][out]; else 0

    // The gradient of a number.
    __device__ i32& gradient(i64 i) const {
        if (!channels) return gradients[i];
        const int number = int(i), size = int(channels), of_tap = number / CONV_KERNEL_SIZE;
        return gradients[(number % CONV_KERNEL_SIZE * size + of_tap % size) * size + of_tap / size];
    }
};

// What a block computes of a parameter: a piece of so many.
struct Piece {
    int parameter, number, of;

    __device__ i64 first() const { return i64(number) * THREADS + threadIdx.x; }
    __device__ i64 step() const { return i64(of) * THREADS; }
};

// An update with the gradients times `scale`, which leaves zeros in their place. rate: for Adam with the correction of
// its bias.
struct Update {
    Piece piece;
    int rule;
    float rate, scale, weight_decay, decay, decay2, epsilon;

    __device__ void numbers(const Trained& of) const {
        for (i64 i = piece.first(); i < of.count; i += piece.step()) {
            i32& whole = of.gradient(i);
            const float gradient = scale * float(whole) + weight_decay * of.values[i];
            whole = 0;
            if (rule == ADAM) {
                of.moments[i] = decay * of.moments[i] + (1 - decay) * gradient;
                of.seconds[i] = decay2 * of.seconds[i] + (1 - decay2) * gradient * gradient;
                of.values[i] -= rate * of.moments[i] / (sqrtf(of.seconds[i]) + epsilon);
            } else if (!of.moments) {
                of.values[i] -= rate * gradient;
            } else {
                of.moments[i] = decay * of.moments[i] - rate * gradient;
                of.values[i] += of.moments[i];
            }
        }
    }

    // Of a table: `lanes` neighbouring threads, a power of two up to 32, have a row. It moves on by its momentum also
    // without a gradient, but weight decay then leaves it alone.
    __device__ void rows(const Trained& of) const {
        const int columns = int(of.columns), lanes = int(of.lanes), lane = threadIdx.x % lanes;
        const i64 rows = of.count / columns, rows_at_once = piece.step() / lanes;
        for (i64 first = 0; first < rows; first += rows_at_once) {  // all threads of a warp, which share their sums
            const i64 row = first + piece.first() / lanes, start = row * columns;
            float squares = 0;
            u32 touched = 0;
            for (int n = lane; row < rows && n < columns; n += lanes) {
                const i32 whole = of.gradients[start + n];
                touched |= u32(whole);
                squares += (scale * float(whole)) * (scale * float(whole));
            }
            squares = over_lanes(squares, lanes, Plus());
            touched = over_lanes(touched, lanes, Larger());
            float along = 1.0f, added = -rate, second = 0.0f;
            if (rule == ADAM && row < rows) {
                second = decay2 * of.seconds[row] + (1 - decay2) * (squares / float(columns));
                added = 1 - decay;
                along = -rate / (sqrtf(second) + epsilon);
            }
            __syncwarp();  // all lanes have read the second moment
            if (second > 0 && lane == 0) of.seconds[row] = second;
            const bool may_move = row < rows && (touched || rule == SGD || second > 0);  // else it never had a gradient
            for (int n = lane; may_move && n < columns; n += lanes) {
                const i64 i = start + n;
                const float before = of.moments ? of.moments[i] : 0.0f;
                if (!touched && before == 0.0f) continue;
                const float value = of.values[i];
                const float gradient = touched ? scale * float(of.gradients[i]) + weight_decay * value : 0.0f;
                const float moment = decay * before + added * gradient;
                if (of.moments) of.moments[i] = moment;
                of.values[i] = value + along * moment;
                if (touched) of.gradients[i] = 0;
            }
        }
    }
};

// Updates all parameters. rates: rate and scale of each. Blocks: pieces.
KERNEL(THREADS) update(
    const Trained* parameters, const Piece* pieces, const float* rates, int rule, float weight_decay, float decay,
    float decay2, float epsilon
) {
    const Piece piece = pieces[blockIdx.x];
    const Trained parameter = parameters[piece.parameter];
    const float* const own = rates + 2 * piece.parameter;
    const Update update{piece, rule, own[0], own[1], weight_decay, decay, decay2, epsilon};
    if (parameter.columns) update.rows(parameter);
    else update.numbers(parameter);
}

// Adds the squares of each parameter's gradients to sums [parameters][2]: the low and the high 32 bits of each square
// apart. Blocks: pieces.
KERNEL(THREADS) add_squares(const Trained* parameters, const Piece* pieces, u64* sums) {
    __shared__ u64 memory[THREADS];
    const Piece piece = pieces[blockIdx.x];
    const Trained parameter = parameters[piece.parameter];
    u64 low = 0, high = 0;
    for (i64 i = piece.first(); i < parameter.count; i += piece.step()) {
        const u64 square = u64(i64(parameter.gradients[i]) * parameter.gradients[i]);
        low += square & 0xFFFFFFFFu;
        high += square >> 32;
    }
    low = over_block(low, memory, Plus());
    high = over_block(high, memory, Plus());
    if (threadIdx.x == 0) {
        atomicAdd(sums + 2 * piece.parameter, low);
        atomicAdd(sums + 2 * piece.parameter + 1, high);
    }
}

// Rounds numbers to those that float16 holds, as `rounded_to_half` of native/sharded_embedding.h does.
KERNEL(THREADS) round_to_half(float* numbers, i64 count) {
    for (i64 i = thread_number(); i < count; i += all_threads()) {
        const u32 bits = __float_as_uint(numbers[i]), sign = bits & 0x80000000u, size = bits ^ sign;
        const u32 small = __float_as_uint((__uint_as_float(size) + 0.75f) - 0.75f);
        const u32 large = (size + 0xFFFu + (size >> 13 & 1)) & ~0x1FFFu;
        const u32 finite = size < 0x38800000u ? small : large;
        numbers[i] = __uint_as_float(sign | (size < 0x7F800000u ? finite : size));
    }
}
