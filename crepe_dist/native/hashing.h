// Hashing of n-grams and words to rows of a table. crepe_dist/networks/ngrams/hashing.py describes the hash and lists
// the other implementations. All of them must give the same rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "constants.hpp"

// Copies the character ids of a text to `out`, up to the last known character. The copy begins and ends with a boundary
// symbol, whose id is alphabet_size. Unknown characters become BLANK. If the text has no known characters, the copy is
// empty.
inline void add_boundary_symbols(const uint8_t* codes, long length, long alphabet_size, std::vector<uint8_t>& out) {
    out.clear();
    while (length && codes[length - 1] >= alphabet_size) --length;
    if (!length) return;
    out.push_back(uint8_t(alphabet_size));
    for (long i = 0; i < length; ++i) out.push_back(codes[i] < alphabet_size ? codes[i] : BLANK);
    out.push_back(uint8_t(alphabet_size));
}

// Returns the key of an n-gram that is longer by one known character. N-grams of up to seven characters have distinct
// keys, because RADIX^7 < 2^64.
inline uint64_t extend_key(uint64_t key, uint8_t code) {
    return key * RADIX + code + 1;
}

// Hashes a key to a row. The key is mixed by the output function of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014). The
// upper 32 bits are scaled to the number of rows by a multiplication, which is faster than a division (Lemire, "Fast
// random integer generation in an interval", 2019).
inline uint32_t hash_to_row(uint64_t key, long rows) {
    key = (key ^ (key >> 30)) * MULTIPLIER1;
    key = (key ^ (key >> 27)) * MULTIPLIER2;
    key ^= key >> 31;
    return uint32_t((key >> 32) * uint64_t(rows) >> 32);
}

// Calls visit(key) for each word of a text, and for each pair of neighbouring words. The ids below num_word_char_ids
// are the word characters.
template <class Visit> inline void visit_words(const std::vector<uint8_t>& text, long num_word_char_ids, Visit visit) {
    uint64_t key = 0, before = 0;
    for (const uint8_t code : text) {  // The final boundary symbol is not a word character, so it ends the last word.
        if (code < num_word_char_ids) {
            key = extend_key(key, code);
        } else if (key) {
            visit(key);
            if (before) visit(before * GOLDEN + key);
            before = key;
            key = 0;
        }
    }
}

// Extends n-grams by one character each, and writes their rows to `out`. If an n-gram has an unknown character, its
// element of `out` does not change.
inline void extend_ngrams(
    uint64_t* __restrict keys, const uint8_t* __restrict codes, long count, long rows, uint32_t* __restrict out
) {
    constexpr uint64_t UNKNOWN = UINT64_MAX;
    for (long i = 0; i < count; ++i) {  // The loop has no branches, so that the compiler vectorises it.
        const bool known = (codes[i] != BLANK) & (keys[i] != UNKNOWN);
        keys[i] = known ? extend_key(keys[i], codes[i]) : UNKNOWN;
        const uint32_t row = hash_to_row(keys[i], rows);
        out[i] = known ? row : out[i];
    }
}
