// The crepe network on a GPU: the n-gram branch (ngrams.cu) and the convolutional branch. native/conv_branch.h
// describes the convolutional branch; both implementations are equivalent except for rounding.
//
// Activations are Element [documents][positions][WIDTH]: CHANNELS channels, and zeros up to a multiple of SIDE. A max
// pool halves the positions after each of the first POOLED_BLOCKS blocks. The level of an array is the number of max
// pools before it. A document has a position for every `stride` symbols of its text. Elements after its last position
// are never read.

#include "ngrams.cu"
#include "product.cuh"

constexpr int WIDTH = (CHANNELS + SIDE - 1) / SIDE * SIDE;
constexpr int TILE = TILE_BYTES / sizeof(Element);  // Positions that a block of threads computes at a time, in 48 KB.
constexpr int GAP = CONV_KERNEL_SIZE / 2;
// Distances of rows in shared memory, in elements and in floats. Rows begin in different banks, which avoids bank
// conflicts.
constexpr int ROW_STRIDE = WIDTH + 16;
constexpr int SUM_STRIDE = WIDTH + 8;
constexpr int TILES_PER_ROW = WIDTH / SIDE;
constexpr int WARPS = TILE / SIDE;  // Warps of a block that computes a convolution.

// Returns the number of positions of a document at a level. length: symbols of the document.
__device__ inline int positions_at(int length, int stride, int level) {
    int positions = (length + stride - 1) / stride;
    for (int i = 0; i < level; ++i) positions = (positions + 1) / 2;
    return positions;
}

__device__ inline float relu(float value) { return value > 0 ? value : 0.0f; }

// Returns the element of a channel in an array of CHANNELS numbers, and 0 for the padding channels.
__device__ inline float channel_value(const float* numbers, int channel) {
    return channel < CHANNELS ? numbers[channel] : 0.0f;
}

// ---- embedding -----------------------------------------------------------------------------------------------------

// Writes the rows of the n-grams that start at each symbol to out [documents][places][maxn], and NO_ROW for n-grams
// that do not exist. places: number of symbols of a document, rounded up to whole positions.
KERNEL(THREADS) hash_positions(
    const u8* texts, const i32* lengths, int documents, int symbols, int places, int maxn, int rows, u32* out
) {
    for (i64 i = global_thread(); i < i64(documents) * places; i += num_grid_threads()) {
        const int document = int(i / places), start = int(i % places);
        for (int n = 0; n < maxn; ++n) out[i * maxn + n] = NO_ROW;
        visit_ngrams(texts + i64(document) * symbols, start, lengths[document], maxn, rows, [&](int n, u32 row) {
            out[i * maxn + n] = row;
        });
    }
}

// Writes the embedding of each position: relu(dropout(sum of the rows of the n-grams of the position)). ngrams: number
// of n-grams of a position. first: number of the batch's first document in the global batch. A thread computes
// GROUP_CHANNELS channels of a position.
constexpr int GROUP_CHANNELS = 4;
struct alignas(16) ChannelGroup {
    float at[GROUP_CHANNELS];
};
KERNEL(THREADS) embed(
    const u32* rows, const i32* lengths, int documents, int positions, int stride, int ngrams, const float* table, u64
    seed, int threshold, float scale, u64 first, Element* out
) {
    const Dropout dropout{seed, threshold, scale};
    constexpr int PIECES = WIDTH / GROUP_CHANNELS;
    for (i64 i = global_thread(); i < i64(documents) * positions * PIECES; i += num_grid_threads()) {
        const i64 place = i / PIECES;
        const int channel = int(i % PIECES) * GROUP_CHANNELS;
        const int document = int(place / positions), position = int(place % positions);
        if (position >= positions_at(lengths[document], stride, 0)) continue;
        ChannelGroup sum{};
        for (int n = 0; n < ngrams; n += GROUP_CHANNELS) {
            const PrefetchedRows<GROUP_CHANNELS> prefetched(rows + place * ngrams, n, 1, ngrams);
            ChannelGroup values[GROUP_CHANNELS]{};
#pragma unroll
            for (int k = 0; k < GROUP_CHANNELS; ++k) {
                const float* const numbers = table + i64(prefetched.at[k]) * CHANNELS;
                if (prefetched.at[k] == NO_ROW) continue;
                if constexpr (CHANNELS == WIDTH) values[k] = *reinterpret_cast<const ChannelGroup*>(numbers + channel);
                else for (int c = 0; c < GROUP_CHANNELS; ++c) values[k].at[c] = channel_value(numbers, channel + c);
            }
#pragma unroll
            for (int k = 0; k < GROUP_CHANNELS; ++k)
                for (int c = 0; c < GROUP_CHANNELS; ++c) sum.at[c] += values[k].at[c];
        }
        const u64 unit = ((first + document) * positions + position) * CHANNELS + channel;
        for (int c = 0; c < GROUP_CHANNELS; ++c) {
            const float value = threshold > 0 ? dropout(unit + c, sum.at[c]) : sum.at[c];
            put(out[place * WIDTH + channel + c], relu(value));
        }
    }
}

// Writes the fixed-point gradient of each position to terms [documents][positions][WIDTH]. This gradient is added to
// the row of each n-gram of the position. Also writes to largest [documents] the bits of a bound of each document's
// contribution to a row. max_equal_rows: see `PositionEmbeddingConfig` in native/position_embedding.h. inverse_scale:
// includes the scale of the dropout. Blocks: documents.
KERNEL(THREADS) quantize_embedding_gradients(
    const Element* __restrict__ gradients, const i32* lengths, int positions, int stride, int max_equal_rows, float
    inverse_scale, i32* __restrict__ terms, u32* largest
) {
    __shared__ u32 memory[THREADS];
    __shared__ float sizes[THREADS];
    constexpr int PARALLEL_POSITIONS = THREADS / WIDTH;
    const int document = blockIdx.x, channel = threadIdx.x % WIDTH;
    const int last = positions_at(lengths[document], stride, 0);
    const int end = int(threadIdx.x) < PARALLEL_POSITIONS * WIDTH ? min(last, positions) : 0;
    float size = 0;
#pragma unroll 8
    for (int p = threadIdx.x / WIDTH; p < end; p += PARALLEL_POSITIONS) {
        const i64 at = (i64(document) * positions + p) * WIDTH + channel;
        const float value = to_float(gradients[at]) * inverse_scale;
        terms[at] = __float2int_rn(value);
        size += fabsf(value) + (fabsf(value) > 0.25f ? 1.0f : 0.0f);
    }
    sizes[threadIdx.x] = size;
    __syncthreads();
    if (threadIdx.x < WIDTH)
        for (int other = 1; other < PARALLEL_POSITIONS; ++other) size += sizes[threadIdx.x + other * WIDTH];
    const u32 bits = threadIdx.x < WIDTH ? size_bits(size * float(max_equal_rows)) : 0;
    const u32 most = block_reduce(bits, memory, Max());
    if (threadIdx.x == 0) largest[document] = most;
}

// Adds the terms of each position to the gradients of the rows of its n-grams.
KERNEL(THREADS) add_embedding_gradients(
    const i32* terms, const u32* rows, const i32* lengths, int documents, int positions, int stride, int ngrams, i32*
    table
) {
    for (i64 i = global_thread(); i < i64(documents) * positions * CHANNELS; i += num_grid_threads()) {
        const i64 place = i / CHANNELS;
        const int document = int(place / positions), channel = int(i % CHANNELS);
        if (place % positions >= positions_at(lengths[document], stride, 0)) continue;
        const u32 term = u32(terms[place * WIDTH + channel]);
        if (term == 0) continue;
        for (int n = 0; n < ngrams; n += GROUP_CHANNELS) {
            const PrefetchedRows<GROUP_CHANNELS> prefetched(rows + place * ngrams, n, 1, ngrams);
#pragma unroll
            for (const u32 row : prefetched.at)
                if (row != NO_ROW) atomicAdd(reinterpret_cast<u32*>(table) + i64(row) * CHANNELS + channel, term);
        }
    }
}

// ---- convolutions --------------------------------------------------------------------------------------------------

// Packs the weights of each convolution, float32 [out][in][taps], for `convolve`: forward [taps][out][in], and backward
// [taps][in][out] with reversed taps for the gradient of the input. `MatrixTile::place` gives the order inside a tap.
// Blocks: (parts, convolutions).
KERNEL(THREADS) pack_convolutions(const float* const* all, Element* forward, Element* backward) {
    const float* const weights = all[blockIdx.y];
    forward += i64(blockIdx.y) * CONV_KERNEL_SIZE * WIDTH * WIDTH;
    backward += i64(blockIdx.y) * CONV_KERNEL_SIZE * WIDTH * WIDTH;
    for (i64 i = global_thread(); i < CONV_KERNEL_SIZE * WIDTH * WIDTH; i += num_grid_threads()) {
        const int tap = int(i % CONV_KERNEL_SIZE), in = int(i / CONV_KERNEL_SIZE % WIDTH),
                  out = int(i / CONV_KERNEL_SIZE / WIDTH);
        const bool is_weight = in < CHANNELS && out < CHANNELS;
        const float weight = is_weight ? weights[(out * CHANNELS + in) * CONV_KERNEL_SIZE + tap] : 0.0f;
        put(forward[tap * WIDTH * WIDTH + MatrixTile::place(out, in, WIDTH)], weight);
        put(backward[(CONV_KERNEL_SIZE - 1 - tap) * WIDTH * WIDTH + MatrixTile::place(in, out, WIDTH)], weight);
    }
}

// Copies the positions [first, first + count) of a document to shared memory. Positions outside the document become
// zeros. The copies have 16 bytes, the largest access of a thread.
__device__ inline void copy_in(const Element* document, int first, int count, int positions, Element* to) {
    constexpr int WORDS = WIDTH * int(sizeof(Element)) / 16;
    struct alignas(16) Word {
        u32 at[4];
    };
    for (int i = threadIdx.x; i < count * WORDS; i += blockDim.x) {
        const int row = i / WORDS, word = i % WORDS, position = first + row;
        Word value{};
        if (position >= 0 && position < positions)
            value = reinterpret_cast<const Word*>(document + position * WIDTH)[word];
        reinterpret_cast<Word*>(to + row * ROW_STRIDE)[word] = value;
    }
}

// Computes a convolution of a residual block: out = relu(convolution + bias + residual).
//
// If `bias` is null, the kernel computes the gradient of the input of a convolution, without ReLU. residual is added if
// it is not null. hidden: the input of the convolution; if it is not null, the result is 0 where hidden is 0. places:
// positions of a document in the arrays. Blocks: (documents, tiles of positions), of WARPS warps.
KERNEL(WARPS * 32) convolve(
    const Element* in, const Element* weights, const float* bias, const Element* residual, const Element* hidden,
    const i32* lengths, int stride, int level, int places, Element* out
) {
    u8* const shared = dynamic_shared();
    Element* const rows = reinterpret_cast<Element*>(shared);
    float* const sums = reinterpret_cast<float*>(shared);  // The sums overwrite the rows after the products.
    const int document = blockIdx.x, first = blockIdx.y * TILE, warp = threadIdx.x / 32;
    const int positions = positions_at(lengths[document], stride, level);
    if (first >= positions) return;
    copy_in(in + i64(document) * places * WIDTH, first - GAP, TILE + CONV_KERNEL_SIZE - 1, positions, rows);
    __syncthreads();
    MatrixTile tiles[TILES_PER_ROW];
#pragma unroll
    for (MatrixTile& tile : tiles) tile.clear();
#pragma unroll 1  // An unrolled loop would need more registers than a thread has.
    for (int tap = 0; tap < CONV_KERNEL_SIZE; ++tap)
#pragma unroll 2
        for (int k = 0; k < WIDTH; k += SIDE) {
            const MatrixTile::LeftOperand<false> left(rows + (warp * SIDE + tap) * ROW_STRIDE + k, ROW_STRIDE);
#pragma unroll
            for (int n = 0; n < TILES_PER_ROW; ++n)
                tiles[n].add(left, weights + tap * WIDTH * WIDTH + MatrixTile::place(n * SIDE, k, WIDTH), WIDTH);
        }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < TILES_PER_ROW; ++n) tiles[n].store(sums + warp * SIDE * SUM_STRIDE + n * SIDE, SUM_STRIDE);
    __syncthreads();
    const int count = min(TILE, positions - first);
    for (int i = threadIdx.x; i < count * WIDTH; i += WARPS * 32) {
        const int channel = i % WIDTH;
        const i64 index = (i64(document) * places + first) * WIDTH + i;
        float value = sums[i / WIDTH * SUM_STRIDE + channel] + (bias ? channel_value(bias, channel) : 0.0f);
        if (residual) value += to_float(residual[index]);
        if (hidden && !(to_float(hidden[index]) > 0)) value = 0.0f;
        put(out[index], bias ? relu(value) : value);
    }
}

// Adds each document's terms to the fixed-point gradients of a convolution's weights [taps][in][out] and bias. In this
// layout, neighbouring threads add to neighbouring numbers. Writes the bits of the largest absolute value of each term
// to largest and largest_bias [documents]. Blocks: (documents, taps), with one warp per SIDE inputs.
KERNEL(2 * WIDTH) add_convolution_gradients(
    const Element* in, const Element* gradients, const i32* lengths, int stride, int level, int places, float
    inverse_scale, float bias_inverse_scale, i32* weights, i32* bias, u32* largest, u32* largest_bias
) {
    u8* const shared = dynamic_shared();
    Element *const rows = reinterpret_cast<Element*>(shared), *const gradient_rows = rows + TILE * ROW_STRIDE;
    float* const sums = reinterpret_cast<float*>(shared) + threadIdx.x / 32 * SIDE * SIDE;
    const int document = blockIdx.x, tap = blockIdx.y, from = threadIdx.x / 32 * SIDE, lane = threadIdx.x % 32;
    const int positions = positions_at(lengths[document], stride, level);
    if (positions == 0) return;
    const i64 start = i64(document) * places * WIDTH;
    MatrixTile tiles[TILES_PER_ROW];
#pragma unroll
    for (MatrixTile& tile : tiles) tile.clear();
    float bias_sum = 0;
    for (int first = 0; first < positions; first += TILE) {
        copy_in(in + start, first + tap - GAP, TILE, positions, rows);
        copy_in(gradients + start, first, TILE, positions, gradient_rows);
        __syncthreads();
#pragma unroll 1
        for (int k = 0; k < TILE; k += SIDE) {
            const MatrixTile::LeftOperand<true> left(rows + k * ROW_STRIDE + from, ROW_STRIDE);
#pragma unroll
            for (int n = 0; n < TILES_PER_ROW; ++n)
                tiles[n].add(left, gradient_rows + k * ROW_STRIDE + n * SIDE, ROW_STRIDE);
        }
        if (tap == 0 && threadIdx.x < CHANNELS)
            for (int p = 0; p < TILE; ++p) bias_sum += to_float(gradient_rows[p * ROW_STRIDE + threadIdx.x]);
        __syncthreads();
    }
    u32 size = 0;
#pragma unroll
    for (int n = 0; n < TILES_PER_ROW; ++n) {
        tiles[n].store(sums, SIDE);
        __syncwarp();
        for (int i = lane; i < SIDE * SIDE; i += 32) {
            const int in_channel = from + i / SIDE, out_channel = n * SIDE + i % SIDE;
            const float term = sums[i] * inverse_scale;
            if (in_channel >= CHANNELS || out_channel >= CHANNELS) continue;
            add_term(weights + (tap * CHANNELS + in_channel) * CHANNELS + out_channel, term);
            size = Max()(size, size_bits(term));
        }
        __syncwarp();
    }
    size = warp_reduce(size, 32, Max());
    if (lane == 0) atomicMax(largest + document, size);
    if (tap == 0 && threadIdx.x < CHANNELS) {
        add_term(bias + threadIdx.x, bias_sum * bias_inverse_scale);
        atomicMax(largest_bias + document, size_bits(bias_sum * bias_inverse_scale));
    }
}

// ---- pools ---------------------------------------------------------------------------------------------------------

// Computes a max pool of size 2: in [documents][places][WIDTH] to out [documents][ceil(places / 2)][WIDTH]. from:
// position of the maximum, 0 or 1. level: level of the input.
KERNEL(THREADS) pool(
    const Element* in, const i32* lengths, int documents, int stride, int level, int places, Element* out, u8* from
) {
    const int pooled = (places + 1) / 2;
    for (i64 i = global_thread(); i < i64(documents) * pooled * WIDTH; i += num_grid_threads()) {
        const int channel = int(i % WIDTH), p = int(i / WIDTH % pooled), document = int(i / WIDTH / pooled);
        const int positions = positions_at(lengths[document], stride, level);
        if (2 * p >= positions) continue;
        const Element* const pair = in + (i64(document) * places + 2 * p) * WIDTH + channel;
        const float first = to_float(pair[0]), second = 2 * p + 1 < positions ? to_float(pair[WIDTH]) : 0.0f;
        put(out[i], second > first ? second : first);
        from[i] = second > first;
    }
}

// Computes the gradient of the input of a max pool. gradients: gradient of its output.
KERNEL(THREADS) unpool(
    const Element* gradients, const u8* from, const i32* lengths, int documents, int stride, int level, int places,
    Element* out
) {
    const int pooled = (places + 1) / 2;
    for (i64 i = global_thread(); i < i64(documents) * places * WIDTH; i += num_grid_threads()) {
        const int channel = int(i % WIDTH), p = int(i / WIDTH % places), document = int(i / WIDTH / places);
        if (p >= positions_at(lengths[document], stride, level)) continue;
        const i64 above = (i64(document) * pooled + p / 2) * WIDTH + channel;
        put(out[i], from[above] == p % 2 ? to_float(gradients[above]) : 0.0f);
    }
}

// ---- features and logits -------------------------------------------------------------------------------------------

constexpr int FEATURES = 2 * CHANNELS;  // Features of a document: the maximum and the mean of each channel.

// Writes the features with dropout to features [documents][2][CHANNELS]. Writes the position of each maximum to best
// [documents][CHANNELS], or -1 if the maximum is 0 or dropped. Blocks: documents.
KERNEL(THREADS) pool_features(
    const Element* in, const i32* lengths, int stride, int level, int places, u64 seed, int threshold, float scale,
    u64 first, float* features, i32* best
) {
    __shared__ float most[THREADS], sum[THREADS];
    __shared__ i32 at[THREADS];
    constexpr int PARALLEL_POSITIONS = THREADS / WIDTH;
    const int document = blockIdx.x, channel = threadIdx.x % WIDTH;
    const int positions = positions_at(lengths[document], stride, level);
    float largest = 0, total = 0;
    i32 where = -1;
    const int end = int(threadIdx.x) < PARALLEL_POSITIONS * WIDTH ? positions : 0;
#pragma unroll 8
    for (int p = threadIdx.x / WIDTH; p < end; p += PARALLEL_POSITIONS) {
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
    for (int i = threadIdx.x + WIDTH; i < PARALLEL_POSITIONS * WIDTH; i += WIDTH) {
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

// Writes the logits [documents][classes]. A warp computes a logit.
KERNEL(THREADS) compute_branch_logits(
    const float* features, const float* weights, const float* bias, int documents, int classes, float* logits
) {
    const int lane = threadIdx.x % 32;
    for (i64 i = global_thread() / 32; i < i64(documents) * classes; i += num_grid_threads() / 32) {
        const i64 document = i / classes, n = i % classes;
        float sum = 0;
        for (int f = lane; f < FEATURES; f += 32) sum += features[document * FEATURES + f] * weights[n * FEATURES + f];
        sum = warp_reduce(sum, 32, Add());
        if (lane == 0) logits[i] = sum + bias[n];
    }
}

// Adds each document's terms to the fixed-point gradients of the last layer's weights [classes][FEATURES] and bias.
// Writes the bits of the largest absolute value of each term to largest and largest_bias [documents]. Blocks:
// documents.
KERNEL(THREADS) add_last_layer_gradients(
    const float* features, const float* logit_gradients, int classes, float inverse_scale, float bias_inverse_scale,
    i32* weights, i32* bias, u32* largest, u32* largest_bias
) {
    __shared__ u32 memory[THREADS];
    const int document = blockIdx.x;
    const float* const gradients = logit_gradients + i64(document) * classes;
    u32 size = 0, size_bias = 0;
    for (i64 i = threadIdx.x; i < i64(classes) * FEATURES; i += THREADS) {
        const float term = gradients[i / FEATURES] * features[i64(document) * FEATURES + i % FEATURES] * inverse_scale;
        add_term(weights + i, term);
        size = Max()(size, size_bits(term));
    }
    for (int n = threadIdx.x; n < classes; n += THREADS) {
        add_term(bias + n, gradients[n] * bias_inverse_scale);
        size_bias = Max()(size_bias, size_bits(gradients[n] * bias_inverse_scale));
    }
    size = block_reduce(size, memory, Max());
    size_bias = block_reduce(size_bias, memory, Max());
    if (threadIdx.x == 0) {
        largest[document] = size;
        largest_bias[document] = size_bias;
    }
}

// Writes the gradient of the last block's output, before its ReLU. scale: scale of the features' dropout. Blocks:
// documents.
KERNEL(THREADS) unpool_features(
    const float* logit_gradients, int classes, const float* weights, const float* features, const i32* best, const
    Element* in, const i32* lengths, int stride, int level, int places, float scale, Element* out
) {
    __shared__ float feature_gradients[FEATURES];
    const int document = blockIdx.x, positions = positions_at(lengths[document], stride, level);
    const float* const gradients = logit_gradients + i64(document) * classes;
    for (int f = threadIdx.x; f < FEATURES; f += THREADS) {
        float sum = 0;
        for (int n = 0; n < classes; ++n) sum += gradients[n] * weights[i64(n) * FEATURES + f];
        const bool is_mean = f >= CHANNELS, dropped = features[i64(document) * FEATURES + f] == 0;
        feature_gradients[f] = is_mean ? (dropped ? 0.0f : sum * (scale / float(max(1, positions)))) : sum * scale;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < positions * WIDTH; i += THREADS) {
        const int p = i / WIDTH, channel = i % WIDTH;
        const i64 at = i64(document) * places * WIDTH + i;
        float gradient = 0;
        if (channel < CHANNELS && to_float(in[at]) > 0) {
            gradient = feature_gradients[CHANNELS + channel];
            if (best[i64(document) * CHANNELS + channel] == p) gradient += feature_gradients[channel];
        }
        put(out[at], gradient);
    }
}
