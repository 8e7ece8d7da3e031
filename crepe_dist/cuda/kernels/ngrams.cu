// The n-gram table: logits are means of the rows that a document's distinct n-grams hash to. native/ngrams.h is
// equivalent up to the order of additions.

#include "loss.cuh"
#include "optimizer.cuh"
#include "texts.cuh"

constexpr u32 GROUP_BIT = 30, ROW = (1u << GROUP_BIT) - 1;  // a row number has its group in its highest bits
constexpr u32 EMPTY = NO_ROW;
constexpr int FINDERS = 1024;  // threads that find the n-grams of a document
constexpr int AHEAD = 8;

// The slot of a hash set that has a row, or the first empty one; `size` is a power of two.
__device__ inline u32 first_slot(u32 row, u32 size) { return (row * 2654435769u) & (size - 1); }

// Finds the distinct rows of each document's n-grams and words: writes a row to ngrams [documents][longest + 1][length +
// 2] where the text has its first n-gram or word, with its group, and NO_ROW elsewhere; and the numbers of each group's to
// counts [documents][NUM_BUCKET_GROUPS]. The last `words` rows are those of words. sets: scratch [documents][2][size], of rows and of the place of each row's first n-gram.
// A block for each document.
KERNEL(FINDERS) find_ngrams(
    const u8* texts, const i32* lengths, int symbols, int longest, int rows, int letters, int words, const float* significant,
    u32* sets, int size, u32* ngrams, i32* counts
) {
    const int document = blockIdx.x, length = lengths[document], places = (longest + 1) * symbols, first = rows - words;
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
        visit_ngrams(text, start, length, longest, first, [&](int n, u32 row) { add(u32(n * symbols + start), row); });
        visit_words(text, start, length, letters, words,
                    [&](int place, u32 row) { add(u32(longest * symbols + place), first + row); });
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

// The factor of the rows of one group of a document.
__device__ inline float factor_of(int count) {
    const float number = float(count > 1 ? count : 1);
    return fminf(NGRAM_SCALE, NGRAM_ROOT_SCALE * sqrtf(number)) / number;
}

// Writes the logits [documents][classes]. Blocks: (documents, pieces of the classes); `wide` classes, a power of two up
// to THREADS, are a piece.
KERNEL(THREADS) table_logits(
    const u32* ngrams, int places, const i32* counts, const float* weight, const float* bias, int classes, int wide,
    float* logits
) {
    __shared__ float memory[NUM_BUCKET_GROUPS][THREADS];
    const int document = blockIdx.x, column = threadIdx.x % wide, n = blockIdx.y * wide + column;
    float sums[NUM_BUCKET_GROUPS] = {};
    const int step = THREADS / wide;
    for (int i = threadIdx.x / wide; i < places; i += AHEAD * step) {
        const Ahead<AHEAD> rows(ngrams + i64(document) * places, i, step, places);
        float values[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; ++k)
            values[k] = rows.at[k] != NO_ROW && n < classes ? weight[i64(rows.at[k] & ROW) * classes + n] : 0;
#pragma unroll
        for (int k = 0; k < AHEAD; ++k)
            for (u32 group = 0; group < NUM_BUCKET_GROUPS; ++group) sums[group] += group == rows.at[k] >> GROUP_BIT ? values[k] : 0;
    }
    for (int group = 0; group < NUM_BUCKET_GROUPS; ++group) memory[group][threadIdx.x] = sums[group];
    __syncthreads();
    for (int half = THREADS / 2; half >= wide; half /= 2) {
        if (int(threadIdx.x) < half)
            for (int group = 0; group < NUM_BUCKET_GROUPS; ++group) memory[group][threadIdx.x] += memory[group][threadIdx.x + half];
        __syncthreads();
    }
    if (int(threadIdx.x) >= wide || n >= classes) return;
    float logit = bias[n];
    for (int group = 0; group < NUM_BUCKET_GROUPS; ++group) logit += factor_of(counts[NUM_BUCKET_GROUPS * document + group]) * memory[group][column];
    logits[i64(document) * classes + n] = logit;
}

// Adds each document's terms to the gradients of the weights and of the bias, in quanta of 1 / per_unit, and writes the
// size of the largest number of each term to largest and largest_bias [documents]. Blocks: (documents, pieces of their n-grams).
KERNEL(THREADS) table_gradients(
    const u32* ngrams, int places, const i32* counts, const float* logit_gradients, int classes, int wide, float per_unit,
    float bias_per_unit, i32* weight, i32* bias, u32* largest, u32* largest_bias
) {
    __shared__ u32 memory[THREADS];
    const int document = blockIdx.x;
    const float* const gradients = logit_gradients + i64(document) * classes;
    float factors[NUM_BUCKET_GROUPS];
    for (int group = 0; group < NUM_BUCKET_GROUPS; ++group) factors[group] = factor_of(counts[NUM_BUCKET_GROUPS * document + group]);
    if (blockIdx.y == 0) {
        u32 size = 0, size_bias = 0;
        for (int n = threadIdx.x; n < classes; n += THREADS) {
            add_term(bias + n, gradients[n] * bias_per_unit);
            size_bias = Larger()(size_bias, size_bits(gradients[n] * bias_per_unit));
            for (float factor : factors) size = Larger()(size, size_bits(factor * gradients[n] * per_unit));
        }
        size = over_block(size, memory, Larger());
        size_bias = over_block(size_bias, memory, Larger());
        if (threadIdx.x == 0) {
            largest[document] = size;
            largest_bias[document] = size_bias;
        }
    }
    const int step = gridDim.y * (THREADS / wide), first = blockIdx.y * (THREADS / wide) + threadIdx.x / wide;
    for (int n = threadIdx.x % wide; n < classes; n += wide)
        for (int i = first; i < places; i += AHEAD * step) {
            const Ahead<AHEAD> rows(ngrams + i64(document) * places, i, step, places);
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                const float term = factors[rows.at[k] >> GROUP_BIT] * gradients[n] * per_unit;
                if (rows.at[k] != NO_ROW) add_term(weight + i64(rows.at[k] & ROW) * classes + n, term);
            }
        }
}
