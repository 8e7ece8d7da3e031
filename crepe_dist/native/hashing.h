// Hashing of n-grams and words to the rows of a table.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "constants.hpp"

// Copies the codes of a text up to its last known character, between two symbols, whose code follows those of the
// alphabet. networks/ngrams/hashing.py describes the hash. A text without a known character is empty.
inline void read_text(const uint8_t* codes, long length, long alphabet, std::vector<uint8_t>& out) {
    out.clear();
    while (length && codes[length - 1] >= alphabet) --length;
    if (!length) return;
    out.push_back(uint8_t(alphabet));
    for (long i = 0; i < length; ++i) out.push_back(codes[i] < alphabet ? codes[i] : BLANK);
    out.push_back(uint8_t(alphabet));
}

// The key of an n-gram that is one known character longer. N-grams of up to seven characters have distinct keys.
inline uint64_t extended(uint64_t key, uint8_t code) {
    return key * RADIX + code + 1;
}

// Mixes a key as SplitMix64 does (Steele, Lea & Flood 2014) and scales the upper 32 bits to the rows.
inline uint32_t row_of(uint64_t key, long rows) {
    key = (key ^ (key >> 30)) * MULTIPLIER1;
    key = (key ^ (key >> 27)) * MULTIPLIER2;
    key ^= key >> 31;
    return uint32_t((key >> 32) * uint64_t(rows) >> 32);
}

// Calls visit(key) for each word of a text and for each pair of neighbouring words.
template <class Visit> inline void visit_words(const std::vector<uint8_t>& text, long letters, Visit visit) {
    uint64_t key = 0, before = 0;
    for (const uint8_t code : text) {  // the last one is no letter
        if (code < letters) {
            key = extended(key, code);
        } else if (key) {
            visit(key);
            if (before) visit(before * GOLDEN + key);
            before = key;
            key = 0;
        }
    }
}

// Makes n-grams one character longer. The row of an n-gram with an unknown character stays as it is.
inline void extend_all(
    uint64_t* __restrict keys, const uint8_t* __restrict codes, long count, long rows, uint32_t* __restrict out
) {
    constexpr uint64_t UNKNOWN = UINT64_MAX;
    for (long i = 0; i < count; ++i) {  // without branches, so that the compiler uses vectors
        const bool known = (codes[i] != BLANK) & (keys[i] != UNKNOWN);
        keys[i] = known ? extended(keys[i], codes[i]) : UNKNOWN;
        const uint32_t row = row_of(keys[i], rows);
        out[i] = known ? row : out[i];
    }
}
