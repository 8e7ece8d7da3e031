// The Crepe network: the n-gram table, and the tower. native/conv_branch.h is equivalent up to rounding, and describes it.
//
// Activations are Number [documents][positions][WIDTH]: CHANNELS channels, and zeros up to a multiple of SIDE. A pool halves
// the positions after each of the first POOLED_BLOCKS blocks. A document has a position for every `stride` symbols of its
// text; what comes after its last one is not read.

#include "ngrams.cu"
#include "product.cuh"

constexpr int WIDTH = (CHANNELS + SIDE - 1) / SIDE * SIDE;
constexpr int TILE = TILE_BYTES / sizeof(Number);  // positions that a block of threads computes at a time, in 48 KB
constexpr int GAP = CONV_KERNEL_SIZE / 2;
constexpr int NUMBERS = WIDTH + 16;  // from one row to the next in shared memory, so that they begin in different banks
constexpr int SUMS = WIDTH + 8;      // likewise, float32
constexpr int SQUARES = WIDTH / SIDE;
constexpr int WARPS = TILE / SIDE;   // of a convolution

// The positions of a document at a level, after so many pools.
__device__ inline int positions_at(int length, int stride, int level) {
    int positions = (length + stride - 1) / stride;
    for (int i = 0; i < level; ++i) positions = (positions + 1) / 2;
    return positions;
}

__device__ inline float relu(float value) { return value > 0 ? value : 0.0f; }

// The number of a channel in an array of CHANNELS; 0 for the others.
__device__ inline float of_channel(const float* numbers, int channel) {
    return channel < CHANNELS ? numbers[channel] : 0.0f;
}

// ---- embedding -----------------------------------------------------------------------------------------------------

// Writes the rows of the n-grams that start at each symbol, NO_ROW for those that do not exist: [documents][places][reach].
// places: symbols of a document, rounded up to whole positions.
KERNEL(THREADS) hash_positions(
    const u8* texts, const i32* lengths, int documents, int symbols, int places, int reach, int rows, u32* out
) {
    for (i64 i = thread_number(); i < i64(documents) * places; i += all_threads()) {
        const int document = int(i / places), start = int(i % places);
        for (int n = 0; n < reach; ++n) out[i * reach + n] = NO_ROW;
        visit_ngrams(texts + i64(document) * symbols, start, lengths[document], reach, rows, [&](int n, u32 row) {
            out[i * reach + n] = row;
        });
    }
}

// x = relu(dropout(sum of the rows of the n-grams of a position)). ngrams: of a position. A thread computes FEW channels.
constexpr int FEW = 4;
struct alignas(16) Few {
    float at[FEW];
};
KERNEL(THREADS) embed(
    const u32* rows, const i32* lengths, int documents, int positions, int stride, int ngrams, const float* table, u64 seed,
    int threshold, float scale, u64 first, Number* out
) {
    const Dropout dropout{seed, threshold, scale};
    constexpr int PIECES = WIDTH / FEW;
    for (i64 i = thread_number(); i < i64(documents) * positions * PIECES; i += all_threads()) {
        const i64 place = i / PIECES;
        const int channel = int(i % PIECES) * FEW;
        const int document = int(place / positions), position = int(place % positions);
        if (position >= positions_at(lengths[document], stride, 0)) continue;
        Few sum{};
        for (int n = 0; n < ngrams; n += FEW) {
            const Ahead<FEW> some(rows + place * ngrams, n, 1, ngrams);
            Few values[FEW]{};
#pragma unroll
            for (int k = 0; k < FEW; ++k) {
                const float* const numbers = table + i64(some.at[k]) * CHANNELS;
                if (some.at[k] == NO_ROW) continue;
                if constexpr (CHANNELS == WIDTH) values[k] = *reinterpret_cast<const Few*>(numbers + channel);
                else for (int c = 0; c < FEW; ++c) values[k].at[c] = of_channel(numbers, channel + c);
            }
#pragma unroll
            for (int k = 0; k < FEW; ++k)
                for (int c = 0; c < FEW; ++c) sum.at[c] += values[k].at[c];
        }
        const u64 unit = ((first + document) * positions + position) * CHANNELS + channel;
        for (int c = 0; c < FEW; ++c) {
            const float value = threshold > 0 ? dropout(unit + c, sum.at[c]) : sum.at[c];
            put(out[place * WIDTH + channel + c], relu(value));
        }
    }
}

// Writes what each position adds to the gradient of each of its rows, in quanta, to terms [documents][positions][WIDTH],
// and to largest [documents] what a document adds to a row at most. per_unit: times the scale of the dropout. A block for
// each document.
KERNEL(THREADS) embedding_terms(
    const Number* __restrict__ gradients, const i32* lengths, int positions, int stride, float per_unit,
    i32* __restrict__ terms, u32* largest
) {
    __shared__ u32 memory[THREADS];
    __shared__ float sizes[THREADS];
    constexpr int TOGETHER = THREADS / WIDTH;  // positions
    const int document = blockIdx.x, channel = threadIdx.x % WIDTH;
    const int last = positions_at(lengths[document], stride, 0);
    const int end = int(threadIdx.x) < TOGETHER * WIDTH ? min(last, positions) : 0;
    float size = 0;
#pragma unroll 8
    for (int p = threadIdx.x / WIDTH; p < end; p += TOGETHER) {
        const i64 at = (i64(document) * positions + p) * WIDTH + channel;
        const float value = to_float(gradients[at]) * per_unit;
        terms[at] = __float2int_rn(value);
        size += fabsf(value) + (fabsf(value) > 0.25f ? 1.0f : 0.0f);
    }
    sizes[threadIdx.x] = size;
    __syncthreads();
    if (threadIdx.x < WIDTH)
        for (int other = 1; other < TOGETHER; ++other) size += sizes[threadIdx.x + other * WIDTH];
    const u32 bits = threadIdx.x < WIDTH ? size_bits(size * float(stride)) : 0;
    const u32 most = over_block(bits, memory, Larger());
    if (threadIdx.x == 0) largest[document] = most;
}

// Adds the terms of each position to the gradients of its rows.
KERNEL(THREADS) add_embedding_terms(
    const i32* terms, const u32* rows, const i32* lengths, int documents, int positions, int stride, int ngrams, i32* table
) {
    for (i64 i = thread_number(); i < i64(documents) * positions * CHANNELS; i += all_threads()) {
        const i64 place = i / CHANNELS;
        const int document = int(place / positions), channel = int(i % CHANNELS);
        if (place % positions >= positions_at(lengths[document], stride, 0)) continue;
        const u32 term = u32(terms[place * WIDTH + channel]);
        if (term == 0) continue;
        for (int n = 0; n < ngrams; n += FEW) {
            const Ahead<FEW> some(rows + place * ngrams, n, 1, ngrams);
#pragma unroll
            for (const u32 row : some.at)
                if (row != NO_ROW) atomicAdd(reinterpret_cast<u32*>(table) + i64(row) * CHANNELS + channel, term);
        }
    }
}

// ---- convolutions --------------------------------------------------------------------------------------------------

// Rearranges the weights of each convolution, float32 [out][in][taps], for `convolve`: forward [taps][out][in], and
// backward [taps][in][out] in reverse order of taps, for the gradient of the input; both as `Square::place` says.
// Blocks: (pieces, convolutions).
KERNEL(THREADS) pack_convolutions(const float* const* all, Number* forward, Number* backward) {
    const float* const weights = all[blockIdx.y];
    forward += i64(blockIdx.y) * CONV_KERNEL_SIZE * WIDTH * WIDTH;
    backward += i64(blockIdx.y) * CONV_KERNEL_SIZE * WIDTH * WIDTH;
    for (i64 i = thread_number(); i < CONV_KERNEL_SIZE * WIDTH * WIDTH; i += all_threads()) {
        const int tap = int(i % CONV_KERNEL_SIZE), in = int(i / CONV_KERNEL_SIZE % WIDTH), out = int(i / CONV_KERNEL_SIZE / WIDTH);
        const bool is_weight = in < CHANNELS && out < CHANNELS;
        const float weight = is_weight ? weights[(out * CHANNELS + in) * CONV_KERNEL_SIZE + tap] : 0.0f;
        put(forward[tap * WIDTH * WIDTH + Square::place(out, in, WIDTH)], weight);
        put(backward[(CONV_KERNEL_SIZE - 1 - tap) * WIDTH * WIDTH + Square::place(in, out, WIDTH)], weight);
    }
}

// Copies `count` positions of a document from `first` on into shared memory, zeros for those outside the document.
__device__ inline void copy_in(const Number* document, int first, int count, int positions, Number* to) {
    constexpr int WORDS = WIDTH * int(sizeof(Number)) / 16;
    struct alignas(16) Word {
        u32 at[4];
    };
    for (int i = threadIdx.x; i < count * WORDS; i += blockDim.x) {
        const int row = i / WORDS, word = i % WORDS, position = first + row;
        Word value{};
        if (position >= 0 && position < positions) value = reinterpret_cast<const Word*>(document + position * WIDTH)[word];
        reinterpret_cast<Word*>(to + row * NUMBERS)[word] = value;
    }
}

// out = relu(convolution + bias + residual): without `bias` the gradient of an input, which is not rectified, and zero
// where `hidden`, that input, is; without `residual` or `hidden` it goes without them. Blocks: (documents, tiles of
// positions), of WARPS warps.
KERNEL(WARPS * 32) convolve(
    const Number* in, const Number* weights, const float* bias, const Number* residual, const Number* hidden,
    const i32* lengths, int stride, int level, int places, Number* out
) {
    u8* const shared = dynamic_shared();
    Number* const rows = reinterpret_cast<Number*>(shared);
    float* const sums = reinterpret_cast<float*>(shared);  // once the rows are multiplied
    const int document = blockIdx.x, first = blockIdx.y * TILE, warp = threadIdx.x / 32;
    const int positions = positions_at(lengths[document], stride, level);
    if (first >= positions) return;
    copy_in(in + i64(document) * places * WIDTH, first - GAP, TILE + CONV_KERNEL_SIZE - 1, positions, rows);
    __syncthreads();
    Square squares[SQUARES];
#pragma unroll
    for (Square& square : squares) square.clear();
#pragma unroll 1  // more would take more registers than there are
    for (int tap = 0; tap < CONV_KERNEL_SIZE; ++tap)
#pragma unroll 2
        for (int k = 0; k < WIDTH; k += SIDE) {
            const Square::Left<false> left(rows + (warp * SIDE + tap) * NUMBERS + k, NUMBERS);
#pragma unroll
            for (int n = 0; n < SQUARES; ++n) squares[n].add(left, weights + tap * WIDTH * WIDTH + Square::place(n * SIDE, k, WIDTH), WIDTH);
        }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < SQUARES; ++n) squares[n].store(sums + warp * SIDE * SUMS + n * SIDE, SUMS);
    __syncthreads();
    const int count = min(TILE, positions - first);
    for (int i = threadIdx.x; i < count * WIDTH; i += WARPS * 32) {
        const int channel = i % WIDTH;
        const i64 index = (i64(document) * places + first) * WIDTH + i;
        float value = sums[i / WIDTH * SUMS + channel] + (bias ? of_channel(bias, channel) : 0.0f);
        if (residual) value += to_float(residual[index]);
        if (hidden && !(to_float(hidden[index]) > 0)) value = 0.0f;
        put(out[index], bias ? relu(value) : value);
    }
}

// Adds each document's terms to the gradients of a convolution's weights, [taps][in][out] so that neighbouring threads add
// to neighbouring numbers, and bias; and the sizes of their largest numbers to largest and largest_bias [documents]. Blocks: (documents, taps), with a warp for SIDE inputs.
KERNEL(2 * WIDTH) convolution_gradients(
    const Number* in, const Number* gradients, const i32* lengths, int stride, int level, int places, float per_unit,
    float bias_per_unit, i32* weights, i32* bias, u32* largest, u32* largest_bias
) {
    u8* const shared = dynamic_shared();
    Number *const rows = reinterpret_cast<Number*>(shared), *const turned = rows + TILE * NUMBERS;
    float* const sums = reinterpret_cast<float*>(shared) + threadIdx.x / 32 * SIDE * SIDE;
    const int document = blockIdx.x, tap = blockIdx.y, from = threadIdx.x / 32 * SIDE, lane = threadIdx.x % 32;
    const int positions = positions_at(lengths[document], stride, level);
    if (positions == 0) return;
    const i64 start = i64(document) * places * WIDTH;
    Square squares[SQUARES];
#pragma unroll
    for (Square& square : squares) square.clear();
    float of_bias = 0;
    for (int first = 0; first < positions; first += TILE) {
        copy_in(in + start, first + tap - GAP, TILE, positions, rows);
        copy_in(gradients + start, first, TILE, positions, turned);
        __syncthreads();
#pragma unroll 1
        for (int k = 0; k < TILE; k += SIDE) {
            const Square::Left<true> left(rows + k * NUMBERS + from, NUMBERS);
#pragma unroll
            for (int n = 0; n < SQUARES; ++n) squares[n].add(left, turned + k * NUMBERS + n * SIDE, NUMBERS);
        }
        if (tap == 0 && threadIdx.x < CHANNELS)
            for (int p = 0; p < TILE; ++p) of_bias += to_float(turned[p * NUMBERS + threadIdx.x]);
        __syncthreads();
    }
    u32 size = 0;
#pragma unroll
    for (int n = 0; n < SQUARES; ++n) {
        squares[n].store(sums, SIDE);
        __syncwarp();
        for (int i = lane; i < SIDE * SIDE; i += 32) {
            const int in_channel = from + i / SIDE, out_channel = n * SIDE + i % SIDE;
            const float quanta = sums[i] * per_unit;
            if (in_channel >= CHANNELS || out_channel >= CHANNELS) continue;
            add_term(weights + (tap * CHANNELS + in_channel) * CHANNELS + out_channel, quanta);
            size = Larger()(size, size_bits(quanta));
        }
        __syncwarp();
    }
    size = over_lanes(size, 32, Larger());
    if (lane == 0) atomicMax(largest + document, size);
    if (tap == 0 && threadIdx.x < CHANNELS) {
        add_term(bias + threadIdx.x, of_bias * bias_per_unit);
        atomicMax(largest_bias + document, size_bits(of_bias * bias_per_unit));
    }
}

// ---- pools ---------------------------------------------------------------------------------------------------------

// Max pool of 2: in [documents][places][WIDTH] → out [documents][places / 2, rounded up][WIDTH]. from: the place of the
// maximum. level: of the input.
KERNEL(THREADS) pool(
    const Number* in, const i32* lengths, int documents, int stride, int level, int places, Number* out, u8* from
) {
    const int pooled = (places + 1) / 2;
    for (i64 i = thread_number(); i < i64(documents) * pooled * WIDTH; i += all_threads()) {
        const int channel = int(i % WIDTH), p = int(i / WIDTH % pooled), document = int(i / WIDTH / pooled);
        const int positions = positions_at(lengths[document], stride, level);
        if (2 * p >= positions) continue;
        const Number* const pair = in + (i64(document) * places + 2 * p) * WIDTH + channel;
        const float first = to_float(pair[0]), second = 2 * p + 1 < positions ? to_float(pair[WIDTH]) : 0.0f;
        put(out[i], second > first ? second : first);
        from[i] = second > first;
    }
}

// Gradient of a max pool's input from that of its output.
KERNEL(THREADS) unpool(
    const Number* gradients, const u8* from, const i32* lengths, int documents, int stride, int level, int places, Number* out
) {
    const int pooled = (places + 1) / 2;
    for (i64 i = thread_number(); i < i64(documents) * places * WIDTH; i += all_threads()) {
        const int channel = int(i % WIDTH), p = int(i / WIDTH % places), document = int(i / WIDTH / places);
        if (p >= positions_at(lengths[document], stride, level)) continue;
        const i64 above = (i64(document) * pooled + p / 2) * WIDTH + channel;
        put(out[i], from[above] == p % 2 ? to_float(gradients[above]) : 0.0f);
    }
}

// ---- features and logits -------------------------------------------------------------------------------------------

constexpr int FEATURES = 2 * CHANNELS;  // of a document: the maximum and the mean of each channel

// Writes the features [documents][2][CHANNELS], with dropout, and the position of each maximum, best
// [documents][CHANNELS], -1 without one. A block for each document.
KERNEL(THREADS) summarise(
    const Number* in, const i32* lengths, int stride, int level, int places, u64 seed, int threshold, float scale, u64 first,
    float* features, i32* best
) {
    __shared__ float most[THREADS], sum[THREADS];
    __shared__ i32 at[THREADS];
    constexpr int TOGETHER = THREADS / WIDTH;
    const int document = blockIdx.x, channel = threadIdx.x % WIDTH;
    const int positions = positions_at(lengths[document], stride, level);
    float largest = 0, total = 0;
    i32 where = -1;
    const int end = int(threadIdx.x) < TOGETHER * WIDTH ? positions : 0;
#pragma unroll 8
    for (int p = threadIdx.x / WIDTH; p < end; p += TOGETHER) {
        const float value = to_float(in[(i64(document) * places + p) * WIDTH + channel]);
        if (value > largest) {
            largest = value;
            where = p;
        }
        total += value;
    }
    most[threadIdx.x] = largest;
    sum[threadIdx.x] = total;
    at[threadIdx.x] = where;
    __syncthreads();
    if (threadIdx.x >= CHANNELS) return;
    for (int i = threadIdx.x + WIDTH; i < TOGETHER * WIDTH; i += WIDTH) {
        if (most[i] > largest || (most[i] == largest && at[i] >= 0 && at[i] < where)) {
            largest = most[i];
            where = at[i];
        }
        total += sum[i];
    }
    float mean = total / float(max(1, positions));
    if (threshold > 0) {
        const Dropout dropout{seed, threshold, scale};
        const u64 unit = (first + document) * FEATURES + channel;
        largest = dropout(unit, largest);
        mean = dropout(unit + CHANNELS, mean);
        if (largest == 0) where = -1;
    }
    features[i64(document) * FEATURES + channel] = largest;
    features[i64(document) * FEATURES + CHANNELS + channel] = mean;
    best[i64(document) * CHANNELS + channel] = where;
}

// Writes the logits [documents][classes]; a warp for each.
KERNEL(THREADS) classify(
    const float* features, const float* weights, const float* bias, int documents, int classes, float* logits
) {
    const int lane = threadIdx.x % 32;
    for (i64 i = thread_number() / 32; i < i64(documents) * classes; i += all_threads() / 32) {
        const i64 document = i / classes, n = i % classes;
        float sum = 0;
        for (int f = lane; f < FEATURES; f += 32) sum += features[document * FEATURES + f] * weights[n * FEATURES + f];
        sum = over_lanes(sum, 32, Plus());
        if (lane == 0) logits[i] = sum + bias[n];
    }
}

// Adds each document's terms to the gradients of the last layer's weights [classes][FEATURES] and bias. A block for each
// document.
KERNEL(THREADS) last_layer_gradients(
    const float* features, const float* logit_gradients, int classes, float per_unit, float bias_per_unit, i32* weights,
    i32* bias, u32* largest, u32* largest_bias
) {
    __shared__ u32 memory[THREADS];
    const int document = blockIdx.x;
    const float* const gradients = logit_gradients + i64(document) * classes;
    u32 size = 0, size_bias = 0;
    for (i64 i = threadIdx.x; i < i64(classes) * FEATURES; i += THREADS) {
        const float quanta = gradients[i / FEATURES] * features[i64(document) * FEATURES + i % FEATURES] * per_unit;
        add_term(weights + i, quanta);
        size = Larger()(size, size_bits(quanta));
    }
    for (int n = threadIdx.x; n < classes; n += THREADS) {
        add_term(bias + n, gradients[n] * bias_per_unit);
        size_bias = Larger()(size_bias, size_bits(gradients[n] * bias_per_unit));
    }
    size = over_block(size, memory, Larger());
    size_bias = over_block(size_bias, memory, Larger());
    if (threadIdx.x == 0) {
        largest[document] = size;
        largest_bias[document] = size_bias;
    }
}

// Writes the gradient of the last block's output before its ReLU. scale: of the features' dropout. A block for each
// document.
KERNEL(THREADS) spread(
    const float* logit_gradients, int classes, const float* weights, const float* features, const i32* best,
    const Number* in, const i32* lengths, int stride, int level, int places, float scale, Number* out
) {
    __shared__ float of_feature[FEATURES];
    const int document = blockIdx.x, positions = positions_at(lengths[document], stride, level);
    const float* const gradients = logit_gradients + i64(document) * classes;
    for (int f = threadIdx.x; f < FEATURES; f += THREADS) {
        float sum = 0;
        for (int n = 0; n < classes; ++n) sum += gradients[n] * weights[i64(n) * FEATURES + f];
        const bool is_mean = f >= CHANNELS, dropped = features[i64(document) * FEATURES + f] == 0;
        of_feature[f] = is_mean ? (dropped ? 0.0f : sum * (scale / float(max(1, positions)))) : sum * scale;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < positions * WIDTH; i += THREADS) {
        const int p = i / WIDTH, channel = i % WIDTH;
        const i64 at = i64(document) * places * WIDTH + i;
        float gradient = 0;
        if (channel < CHANNELS && to_float(in[at]) > 0) {
            gradient = of_feature[CHANNELS + channel];
            if (best[i64(document) * CHANNELS + channel] == p) gradient += of_feature[channel];
        }
        put(out[at], gradient);
    }
}
