// Optimizers, with the rules of native/optimizer.h, on gradients in whole numbers.
#pragma once

#include "common.cuh"

enum Rule { ADAM, SGD };

// Updates `count` numbers with their gradients times `scale`. moments: first moments, or momentum; null without
// momentum. seconds: Adam's second moments. rate: for Adam with the correction of its bias.
KERNEL(THREADS) update(
    int rule, i64 count, float* values, float* moments, float* seconds, const i32* gradients, float rate, float scale,
    float weight_decay, float decay, float decay2, float epsilon
) {
    for (i64 i = thread_number(); i < count; i += all_threads()) {
        const float gradient = scale * float(gradients[i]) + weight_decay * values[i];
        if (rule == ADAM) {
            moments[i] = decay * moments[i] + (1 - decay) * gradient;
            seconds[i] = decay2 * seconds[i] + (1 - decay2) * gradient * gradient;
            values[i] -= rate * moments[i] / (sqrtf(seconds[i]) + epsilon);
        } else if (!moments) {
            values[i] -= rate * gradient;
        } else {
            moments[i] = decay * moments[i] - rate * gradient;
            values[i] += moments[i];
        }
    }
}

// Updates a table [rows][columns], whose rows have one second moment each. `lanes` neighbouring threads, a power of two
// up to 32, have a row; it moves on by its momentum also without a gradient, but weight decay then leaves it alone.
KERNEL(THREADS) update_rows(
    int rule, int rows, int columns, int lanes, float* values, float* moments, float* seconds, const i32* gradients,
    float rate, float scale, float weight_decay, float decay, float decay2, float epsilon
) {
    const int lane = threadIdx.x % lanes, rows_at_once = int(all_threads() / lanes);
    for (int first = 0; first < rows; first += rows_at_once) {  // all threads of a warp, which share their sums
        const int row = first + int(thread_number() / lanes);
        const i64 start = i64(row) * columns;
        float squares = 0;
        u32 touched = 0;
        for (int n = lane; row < rows && n < columns; n += lanes) {
            const i32 whole = gradients[start + n];
            touched |= u32(whole);
            squares += (scale * float(whole)) * (scale * float(whole));
        }
        for (int other = lanes / 2; other > 0; other /= 2) {
            squares += __shfl_xor_sync(0xFFFFFFFFu, squares, other);
            touched |= __shfl_xor_sync(0xFFFFFFFFu, touched, other);
        }
        float along = 1.0f, added = -rate, second = 0.0f;
        if (rule == ADAM && row < rows) {
            second = decay2 * seconds[row] + (1 - decay2) * (squares / float(columns));
            added = 1 - decay;
            along = -rate / (sqrtf(second) + epsilon);
        }
        __syncwarp();  // all lanes have read the second moment
        if (rule == ADAM && row < rows && lane == 0) seconds[row] = second;
        for (int n = lane; row < rows && n < columns; n += lanes) {
            const i64 i = start + n;
            const float before = moments ? moments[i] : 0.0f;
            if (!touched && before == 0.0f) continue;
            const float value = values[i];
            const float gradient = touched ? scale * float(gradients[i]) + weight_decay * value : 0.0f;
            const float moment = decay * before + added * gradient;
            if (moments) moments[i] = moment;
            values[i] = value + along * moment;
        }
    }
}

// Adds the squares of whole numbers to sums: the low and the high 32 bits of each square apart.
KERNEL(THREADS) add_squares(const i32* numbers, i64 count, u64* sums) {
    __shared__ u64 memory[THREADS];
    u64 low = 0, high = 0;
    for (i64 i = thread_number(); i < count; i += all_threads()) {
        const u64 square = u64(i64(numbers[i]) * numbers[i]);
        low += square & 0xFFFFFFFFu;
        high += square >> 32;
    }
    low = over_block(low, memory, Plus());
    high = over_block(high, memory, Plus());
    if (threadIdx.x == 0) {
        atomicAdd(sums, low);
        atomicAdd(sums + 1, high);
    }
}

// Rounds numbers to those that float16 holds, as `rounded_to_half` of native/table.h does.
KERNEL(THREADS) round_to_half(float* numbers, i64 count) {
    for (i64 i = thread_number(); i < count; i += all_threads()) {
        const u32 bits = __float_as_uint(numbers[i]), sign = bits & 0x80000000u, size = bits ^ sign;
        const u32 small = __float_as_uint((__uint_as_float(size) + 0.75f) - 0.75f);
        const u32 large = (size + 0xFFFu + (size >> 13 & 1)) & ~0x1FFFu;
        const u32 finite = size < 0x38800000u ? small : large;
        numbers[i] = __uint_as_float(sign | (size < 0x7F800000u ? finite : size));
    }
}
