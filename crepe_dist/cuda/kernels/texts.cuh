// From packed documents to texts, n-grams, words and their rows. networks/ngrams/hashing.py describes the hash.
#pragma once

#include "common.cuh"

// Copies the codes of each document up to its last known character, between two symbols, to texts [documents][length +
// 2], and its number of symbols to lengths; a text without a known character is empty. A block for each document.
KERNEL(THREADS) read_texts(const u8* packed, int stride, int length, int alphabet, u8* texts, i32* lengths) {
    __shared__ i32 ends[THREADS];
    const u8* const codes = packed + i64(blockIdx.x) * stride;
    u8* const text = texts + i64(blockIdx.x) * (length + 2);
    i32 end = 0;
    for (int i = threadIdx.x; i < length; i += THREADS)
        if (codes[i] < alphabet) end = i + 1;
    end = over_block(end, ends, Larger());
    if (threadIdx.x == 0) lengths[blockIdx.x] = end ? end + 2 : 0;
    for (int i = threadIdx.x; i < length + 2; i += THREADS) {
        const bool is_edge = end && (i == 0 || i == end + 1);
        const bool is_known = i > 0 && i <= end && codes[i - 1] < alphabet;
        text[i] = u8(is_edge ? alphabet : is_known ? codes[i - 1] : BLANK);
    }
}

__device__ inline u32 row_of(u64 key, int rows) {
    key = (key ^ (key >> 30)) * u64(MULTIPLIER1);
    key = (key ^ (key >> 27)) * u64(MULTIPLIER2);
    key ^= key >> 31;
    return u32((key >> 32) * u64(rows) >> 32);
}

// COUNT of the row numbers before `end`, from `first` on, `step` apart; NO_ROW beyond it. Memory is asked for all of them
// before a thread waits for one.
template <int COUNT> struct Ahead {
    u32 at[COUNT];

    __device__ Ahead(const u32* rows, int first, int step, int end) {
#pragma unroll
        for (int k = 0; k < COUNT; ++k) at[k] = first + k * step < end ? rows[first + k * step] : NO_ROW;
    }
};

// Calls visit(n, row) for the rows of the n-grams of 1 to `longest` known characters that start at a place of a text,
// with n from 0.
template <class Visit>
__device__ void visit_ngrams(const u8* text, int start, int length, int longest, int rows, Visit visit) {
    u64 key = 0;
    for (int n = 0; n < longest && start + n < length && text[start + n] != BLANK; ++n) {
        key = key * RADIX + text[start + n] + 1;
        visit(n, row_of(key, rows));
    }
}

// Calls visit(place, row) for the row of the word that starts at a place of a text, if one does, and for that of it and
// the word after it. A word's place is its start; a pair's is the end of its second word.
template <class Visit>
__device__ void visit_words(const u8* text, int start, int length, int letters, int rows, Visit visit) {
    if (text[start] >= letters || (start && text[start - 1] < letters)) return;
    const auto key_from = [&](int& at) {
        u64 key = 0;
        for (; at < length && text[at] < letters; ++at) key = key * RADIX + text[at] + 1;
        return key;
    };
    int at = start;
    const u64 key = key_from(at);
    visit(start, row_of(key, rows));
    while (at < length && text[at] >= letters) ++at;
    if (at == length) return;
    const u64 second = key_from(at);
    visit(at, row_of(key * u64(GOLDEN) + second, rows));
}
