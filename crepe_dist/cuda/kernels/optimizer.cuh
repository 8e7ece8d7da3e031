// Optimizers on fixed-point gradients. The formulas are the formulas of native/optimizer.h.
#pragma once

#include "common.cuh"

// A trained parameter. parallel/cuda_optimizer.py writes this struct.
struct TrainedParameter {
    i64 count;
    float* values;
    i32* gradients;
    float* moments;      // First moments of Adam, or momentum of SGD. Null for SGD without momentum.
    float* seconds;      // Second moments of Adam.
    i64 columns, lanes;  // For embedding tables, whose rows have one second moment each. Otherwise columns is 0.
    i64 inputs, taps;    // For convolutions, whose gradients are [taps][inputs][outputs]. Otherwise 0.

    // Returns the gradient of element i.
    __device__ i32& gradient(i64 i) const {
        if (!taps) return gradients[i];
        const int number = int(i), size = int(taps), of_tap = number / size, width = int(inputs);
        return gradients[(number % size * width + of_tap % width) * (count / (inputs * taps)) + of_tap / width];
    }
};

// Part of a parameter that a block of threads updates: slice `index` of `count` slices.
struct ParameterSlice {
    int parameter, index, count;

    __device__ i64 first() const { return i64(index) * THREADS + threadIdx.x; }
    __device__ i64 step() const { return i64(count) * THREADS; }
};

// Update of a slice. The gradient is scale × fixed-point gradient + weight_decay × value. The update resets the
// fixed-point gradients to 0. learning_rate: for Adam, it includes the bias correction.
struct Update {
    ParameterSlice slice;
    bool is_adam;  // True for Adam, false for SGD.
    float learning_rate, scale, weight_decay, beta1, beta2, epsilon;

    __device__ void update_dense(const TrainedParameter& parameter) const {
        for (i64 i = slice.first(); i < parameter.count; i += slice.step()) {
            i32& fixed_point = parameter.gradient(i);
            const float gradient = scale * float(fixed_point) + weight_decay * parameter.values[i];
            fixed_point = 0;
            if (is_adam) {
                parameter.moments[i] = beta1 * parameter.moments[i] + (1 - beta1) * gradient;
                parameter.seconds[i] = beta2 * parameter.seconds[i] + (1 - beta2) * gradient * gradient;
                parameter.values[i] -= learning_rate * parameter.moments[i] / (sqrtf(parameter.seconds[i]) + epsilon);
            } else if (!parameter.moments) {
                parameter.values[i] -= learning_rate * gradient;
            } else {
                parameter.moments[i] = beta1 * parameter.moments[i] - learning_rate * gradient;
                parameter.values[i] += parameter.moments[i];
            }
        }
    }

    // Updates the rows of an embedding table. `lanes` neighbouring threads, a power of two up to 32, update a row. The
    // momentum also moves rows without a gradient, but weight decay does not.
    __device__ void update_rows(const TrainedParameter& parameter) const {
        const int columns = int(parameter.columns), lanes = int(parameter.lanes), lane = threadIdx.x % lanes;
        const i64 rows = parameter.count / columns, rows_at_once = slice.step() / lanes;
        // The loop condition is the same in all threads of a warp, because they reduce sums together.
        for (i64 first = 0; first < rows; first += rows_at_once) {
            const i64 row = first + slice.first() / lanes, start = row * columns;
            float tiles = 0;
            u32 touched = 0;
            for (int n = lane; row < rows && n < columns; n += lanes) {
                const i32 fixed_point = parameter.gradients[start + n];
                touched |= u32(fixed_point);
                tiles += (scale * float(fixed_point)) * (scale * float(fixed_point));
            }
            tiles = warp_reduce(tiles, lanes, Add());
            touched = warp_reduce(touched, lanes, Max());
            float value_factor = 1.0f, grad_factor = -learning_rate, second = 0.0f;
            if (is_adam && row < rows) {
                second = beta2 * parameter.seconds[row] + (1 - beta2) * (tiles / float(columns));
                grad_factor = 1 - beta1;
                value_factor = -learning_rate / (sqrtf(second) + epsilon);
            }
            __syncwarp();  // All threads of the row have read the second moment.
            if (second > 0 && lane == 0) parameter.seconds[row] = second;
            // With Adam, a row whose second moment is 0 has never had a gradient.
            const bool may_move = row < rows && (touched || !is_adam || second > 0);
            for (int n = lane; may_move && n < columns; n += lanes) {
                const i64 i = start + n;
                const float previous = parameter.moments ? parameter.moments[i] : 0.0f;
                if (!touched && previous == 0.0f) continue;
                const float value = parameter.values[i];
                const float gradient = touched ? scale * float(parameter.gradients[i]) + weight_decay * value : 0.0f;
                const float moment = beta1 * previous + grad_factor * gradient;
                if (parameter.moments) parameter.moments[i] = moment;
                parameter.values[i] = value + value_factor * moment;
                if (touched) parameter.gradients[i] = 0;
            }
        }
    }
};

// Updates all parameters. rates: learning rate and gradient scale of each parameter. Blocks: slices.
KERNEL(THREADS) update_parameters(
    const TrainedParameter* parameters, const ParameterSlice* slices, const float* rates, int is_adam,
    float weight_decay, float beta1, float beta2, float epsilon
) {
    const ParameterSlice slice = slices[blockIdx.x];
    const TrainedParameter parameter = parameters[slice.parameter];
    const float* const own = rates + 2 * slice.parameter;
    const Update update{slice, is_adam != 0, own[0], own[1], weight_decay, beta1, beta2, epsilon};
    if (parameter.columns) update.update_rows(parameter);
    else update.update_dense(parameter);
}

// Rounds numbers to float16 numbers, as `round_to_float16` in native/sharded_embedding.h.
KERNEL(THREADS) round_to_float16(float* numbers, i64 count) {
    for (i64 i = global_thread(); i < count; i += num_grid_threads()) {
        const u32 bits = __float_as_uint(numbers[i]), sign = bits & 0x80000000u, size = bits ^ sign;
        const u32 small = __float_as_uint((__uint_as_float(size) + 0.75f) - 0.75f);
        const u32 large = (size + 0xFFFu + (size >> 13 & 1)) & ~0x1FFFu;
        const u32 finite = size < 0x38800000u ? small : large;
        numbers[i] = __uint_as_float(sign | (size < 0x7F800000u ? finite : size));
    }
}
