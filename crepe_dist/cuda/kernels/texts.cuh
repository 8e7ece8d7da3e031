// Texts of a batch, and the rows of their n-grams and words. networks/ngrams/hashing.py describes the hash.
#pragma once

#include "common.cuh"

// Copies the character ids of each document up to its last known character, between two boundary symbols, to texts
// [documents][length + 2]. Writes the number of symbols to lengths [documents]. A text without a known character has 0
// symbols. Blocks: documents.
KERNEL(THREADS) add_boundary_symbols(const u8* packed, int stride, int length, int alphabet, u8* texts, i32* lengths) {
    __shared__ i32 ends[THREADS];
    const u8* const codes = packed + i64(blockIdx.x) * stride;
    u8* const text = texts + i64(blockIdx.x) * (length + 2);
    i32 end = 0;
    for (int i = threadIdx.x; i < length; i += THREADS)
        if (codes[i] < alphabet) end = i + 1;
    end = block_reduce(end, ends, Max());
    if (threadIdx.x == 0) lengths[blockIdx.x] = end ? end + 2 : 0;
    for (int i = threadIdx.x; i < length + 2; i += THREADS) {
        const bool is_edge = end && (i == 0 || i == end + 1);
        const bool is_known = i > 0 && i <= end && codes[i - 1] < alphabet;
        text[i] = u8(is_edge ? alphabet : is_known ? codes[i - 1] : BLANK);
    }
}

__device__ inline u32 hash_to_row(u64 key, int rows) {
    key = (key ^ (key >> 30)) * u64(MULTIPLIER1);
    key = (key ^ (key >> 27)) * u64(MULTIPLIER2);
    key ^= key >> 31;
    return u32((key >> 32) * u64(rows) >> 32);
}

// COUNT row numbers: the elements `first`, `first` + `step`, … before `end`, and NO_ROW for elements beyond the end.
// The thread requests all of them before it waits for the first one, which hides the latency of the memory.
template <int COUNT> struct PrefetchedRows {
    u32 at[COUNT];

    __device__ PrefetchedRows(const u32* rows, int first, int step, int end) {
#pragma unroll
        for (int k = 0; k < COUNT; ++k) at[k] = first + k * step < end ? rows[first + k * step] : NO_ROW;
    }
};

// Calls visit(n - 1, row) for the row of each n-gram of n = 1 to maxn known characters that starts at a place of a
// text.
template <class Visit>
__device__ void visit_ngrams(const u8* text, int start, int length, int maxn, int rows, Visit visit) {
    u64 key = 0;
    for (int n = 0; n < maxn && start + n < length && text[start + n] != BLANK; ++n) {
        key = key * RADIX + text[start + n] + 1;
        visit(n, hash_to_row(key, rows));
    }
}

// If a word starts at a place of a text, calls visit(place, row) for the row of the word, and for the row of the pair
// of this word and the next word. The place of a word is its start. The place of a pair is the end of its second word.
template <class Visit>
__device__ void visit_words(const u8* text, int start, int length, int num_word_char_ids, int rows, Visit visit) {
    if (text[start] >= num_word_char_ids || (start && text[start - 1] < num_word_char_ids)) return;
    const auto key_from = [&](int& at) {
        u64 key = 0;
        for (; at < length && text[at] < num_word_char_ids; ++at) key = key * RADIX + text[at] + 1;
        return key;
    };
    int at = start;
    const u64 key = key_from(at);
    visit(start, hash_to_row(key, rows));
    while (at < length && text[at] >= num_word_char_ids) ++at;
    if (at == length) return;
    const u64 second = key_from(at);
    visit(at, hash_to_row(key * u64(GOLDEN) + second, rows));
}
