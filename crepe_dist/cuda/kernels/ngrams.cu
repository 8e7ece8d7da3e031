// The n-gram branch on a GPU. native/ngrams.h describes the branch; both implementations are equivalent except for the
// order of float32 additions.

#include "loss.cuh"
#include "optimizer.cuh"
#include "texts.cuh"

constexpr u32 GROUP_BIT = 30, ROW = (1u << GROUP_BIT) - 1;  // The two highest bits of a row number are the row's group.
constexpr u32 EMPTY = NO_ROW;
constexpr int FINDERS = 1024;  // Threads that find the n-grams of a document.
constexpr int ROWS_IN_FLIGHT = 8;  // Row numbers that a thread loads at a time; see PrefetchedRows.

// Returns the slot of a hash set where the search for a row starts. size: number of slots, a power of two. The factor is
// 2^32 divided by the golden ratio (Knuth, "The Art of Computer Programming", volume 3, multiplicative hashing).
__device__ inline u32 first_slot(u32 row, u32 size) { return (row * 2654435769u) & (size - 1); }

// Finds the distinct rows of each document's n-grams and words.
//
// ngrams [documents][maxn + 1][symbols] receives each row, with its group, at the first n-gram or word of the text that
// has this row, and NO_ROW elsewhere. counts [documents][NUM_BUCKET_GROUPS] receives the number of rows of each group.
// The last word_buckets rows are the rows of words. sets: scratch [documents][2][size], hash sets of the rows, and the
// place of each row's first n-gram. The atomic minimum makes this place independent of the order of the threads.
// Blocks: documents.
KERNEL(FINDERS) find_ngrams(
    const u8* texts, const i32* lengths, int symbols, int maxn, int rows, int num_word_char_ids, int word_buckets,
    const float* significant, u32* sets, int size, u32* ngrams, i32* counts
) {
    const int document = blockIdx.x, length = lengths[document], places = (maxn + 1) * symbols,
              first = rows - word_buckets;
    const u8* const text = texts + i64(document) * symbols;
    u32 *const keys = sets + i64(document) * 2 * size, *const firsts = keys + size;
    u32* const found = ngrams + i64(document) * places;
    __shared__ i32 numbers[NUM_BUCKET_GROUPS];
    if (threadIdx.x < NUM_BUCKET_GROUPS) numbers[threadIdx.x] = 0;
    for (int i = threadIdx.x; i < 2 * size; i += FINDERS) keys[i] = EMPTY;
    for (int i = threadIdx.x; i < places; i += FINDERS) found[i] = NO_ROW;
    __syncthreads();
    const auto add = [&](u32 place, u32 row) {
        found[place] = row;
        u32 slot = first_slot(row, size);
        for (u32 other; (other = atomicCAS(keys + slot, EMPTY, row)) != EMPTY && other != row;)
            slot = (slot + 1) & (size - 1);
        atomicMin(firsts + slot, place);
    };
    for (int start = threadIdx.x; start < length; start += FINDERS) {
        visit_ngrams(text, start, length, maxn, first, [&](int n, u32 row) { add(u32(n * symbols + start), row); });
        visit_words(text, start, length, num_word_char_ids, word_buckets,
                    [&](int place, u32 row) { add(u32(maxn * symbols + place), first + row); });
    }
    __syncthreads();
    for (int i = threadIdx.x; i < places; i += FINDERS) {
        const u32 row = found[i];
        if (row == NO_ROW) continue;
        u32 slot = first_slot(row, size);
        while (keys[slot] != row) slot = (slot + 1) & (size - 1);
        const u32 group = u32(significant[row] != 0) + 2 * u32(int(row) >= first);
        if (firsts[slot] == u32(i)) atomicAdd(numbers + group, 1);
        found[i] = firsts[slot] == u32(i) ? row | group << GROUP_BIT : NO_ROW;
    }
    __syncthreads();
    if (threadIdx.x < NUM_BUCKET_GROUPS) counts[NUM_BUCKET_GROUPS * document + threadIdx.x] = numbers[threadIdx.x];
}

// Returns the factor of the rows of a group. count: number of rows of the group in the document.
__device__ inline float factor_of(int count) {
    const float number = float(count > 1 ? count : 1);
    return fminf(NGRAM_SCALE, NGRAM_ROOT_SCALE * sqrtf(number)) / number;
}

// Writes the logits [documents][classes]. Blocks: (documents, groups of classes_per_block classes). classes_per_block:
// a power of two up to THREADS.
KERNEL(THREADS) compute_ngram_logits(
    const u32* ngrams, int places, const i32* counts, const float* weight, const float* bias, int classes, int
    classes_per_block, float* logits
) {
    __shared__ float memory[NUM_BUCKET_GROUPS][THREADS];
    const int document = blockIdx.x, column = threadIdx.x % classes_per_block,
              n = blockIdx.y * classes_per_block + column;
    float sums[NUM_BUCKET_GROUPS] = {};
    const int step = THREADS / classes_per_block;
    for (int i = threadIdx.x / classes_per_block; i < places; i += ROWS_IN_FLIGHT * step) {
        const PrefetchedRows<ROWS_IN_FLIGHT> rows(ngrams + i64(document) * places, i, step, places);
        float values[ROWS_IN_FLIGHT];
#pragma unroll
        for (int k = 0; k < ROWS_IN_FLIGHT; ++k)
            values[k] = rows.at[k] != NO_ROW && n < classes ? weight[i64(rows.at[k] & ROW) * classes + n] : 0;
#pragma unroll
        for (int k = 0; k < ROWS_IN_FLIGHT; ++k)
            for (u32 group = 0; group < NUM_BUCKET_GROUPS; ++group)
                sums[group] += group == rows.at[k] >> GROUP_BIT ? values[k] : 0;
    }
    for (int group = 0; group < NUM_BUCKET_GROUPS; ++group) memory[group][threadIdx.x] = sums[group];
    __syncthreads();
    for (int half = THREADS / 2; half >= classes_per_block; half /= 2) {
        if (int(threadIdx.x) < half)
            for (int group = 0; group < NUM_BUCKET_GROUPS; ++group)
                memory[group][threadIdx.x] += memory[group][threadIdx.x + half];
        __syncthreads();
    }
    if (int(threadIdx.x) >= classes_per_block || n >= classes) return;
    float logit = bias[n];
    for (int group = 0; group < NUM_BUCKET_GROUPS; ++group)
        logit += factor_of(counts[NUM_BUCKET_GROUPS * document + group]) * memory[group][column];
    logits[i64(document) * classes + n] = logit;
}

// Adds each document's terms to the fixed-point gradients of the weights and of the bias. Writes the bits of the
// largest absolute value of each term to largest and largest_bias [documents]. Blocks: (documents, parts of their
// n-grams).
KERNEL(THREADS) add_ngram_gradients(
    const u32* ngrams, int places, const i32* counts, const float* logit_gradients, int classes, int
    classes_per_block, float inverse_scale, float bias_inverse_scale, i32* weight, i32* bias, u32* largest, u32*
    largest_bias
) {
    __shared__ u32 memory[THREADS];
    const int document = blockIdx.x;
    const float* const gradients = logit_gradients + i64(document) * classes;
    float factors[NUM_BUCKET_GROUPS];
    for (int group = 0; group < NUM_BUCKET_GROUPS; ++group)
        factors[group] = factor_of(counts[NUM_BUCKET_GROUPS * document + group]);
    if (blockIdx.y == 0) {
        u32 size = 0, size_bias = 0;
        for (int n = threadIdx.x; n < classes; n += THREADS) {
            add_term(bias + n, gradients[n] * bias_inverse_scale);
            size_bias = Max()(size_bias, size_bits(gradients[n] * bias_inverse_scale));
            for (float factor : factors) size = Max()(size, size_bits(factor * gradients[n] * inverse_scale));
        }
        size = block_reduce(size, memory, Max());
        size_bias = block_reduce(size_bias, memory, Max());
        if (threadIdx.x == 0) {
            largest[document] = size;
            largest_bias[document] = size_bias;
        }
    }
    const int step = gridDim.y * (THREADS / classes_per_block),
              first = blockIdx.y * (THREADS / classes_per_block) + threadIdx.x / classes_per_block;
    for (int n = threadIdx.x % classes_per_block; n < classes; n += classes_per_block)
        for (int i = first; i < places; i += ROWS_IN_FLIGHT * step) {
            const PrefetchedRows<ROWS_IN_FLIGHT> rows(ngrams + i64(document) * places, i, step, places);
#pragma unroll
            for (int k = 0; k < ROWS_IN_FLIGHT; ++k) {
                const float term = factors[rows.at[k] >> GROUP_BIT] * gradients[n] * inverse_scale;
                if (rows.at[k] != NO_ROW) add_term(weight + i64(rows.at[k] & ROW) * classes + n, term);
            }
        }
}
