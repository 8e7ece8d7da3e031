// Sets of row numbers as bitmaps, and the ranks of rows in these sets.
//
// The bitmap of a million rows has 128 KB, which fits into the L2 cache of a core.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

constexpr long WORD = 64;  // Rows per word of a bitmap.
constexpr uint32_t NO_ROW = UINT32_MAX;

// Returns the number of words of a bitmap of `rows` rows.
inline long bitmap_words(long rows) { return (rows + WORD - 1) / WORD; }

// Calls work(width). For frequent widths, the argument is a compile-time constant, so that the compiler unrolls the
// loops over a row.
template <class Work> void dispatch_width(long width, Work work) {
    switch (width) {
        case 2: return work(std::integral_constant<long, 2>());
        case 3: return work(std::integral_constant<long, 3>());
        case 4: return work(std::integral_constant<long, 4>());
        case 5: return work(std::integral_constant<long, 5>());
        case 8: return work(std::integral_constant<long, 8>());
        case 10: return work(std::integral_constant<long, 10>());
        case 14: return work(std::integral_constant<long, 14>());
        case 64: return work(std::integral_constant<long, 64>());
        default: return work(width);
    }
}

// Copies a row and converts its numbers to float32. The loop avoids the call of memcpy for a few numbers.
template <class Number, class Width> inline void copy_row(const Number* from, Width width, float* to) {
    for (long n = 0; n < width; ++n) to[n] = float(from[n]);
}

// Writes the row numbers of the set bits of a word to `out`, in ascending order, and returns the end of the output.
// first: row number of bit 0.
//
// Each round writes four row numbers, because processors mispredict the end of loops with one or two rounds. `out`
// therefore needs space for SPARE more row numbers.
constexpr long SPARE = 4;
inline uint32_t* write_bits(uint64_t word, uint32_t first, uint32_t* out) {
    const int count = __builtin_popcountll(word);
    for (int done = 0;; done += 4) {
        for (int i = 0; i < 4; ++i) {
            out[done + i] = first + uint32_t(__builtin_ctzll(word | uint64_t{1} << 63));
            word &= word - 1;
        }
        if (done + 4 >= count) return out + count;
    }
}

// Set of rows that are added in any order and removed in ascending order.
class RowSet {
  public:
    explicit RowSet(long rows)
        : words_(bitmap_words(rows)), filled_(bitmap_words(long(words_.size()))), numbers_(words_.size() + SPARE) {}

    void add(const uint32_t* rows, long count) {
        uint64_t *const words = words_.data(), *const filled = filled_.data();
        for (long i = 0; i < count; ++i) {
            words[rows[i] / WORD] |= uint64_t{1} << (rows[i] % WORD);
            filled[rows[i] / (WORD * WORD)] |= uint64_t{1} << (rows[i] / WORD % WORD);
        }
    }

    // Calls visit(number, word) for each word of the bitmap that is not 0, and clears the word. The second bitmap,
    // `filled_`, limits the search to these words.
    template <class Visit> void drain(Visit visit) {
        uint64_t *const words = words_.data(), *const filled = filled_.data();
        uint32_t *const begin = numbers_.data(), *end = begin;
        for (size_t i = 0; i < filled_.size(); ++i) {
            end = write_bits(filled[i], uint32_t(i * WORD), end);
            filled[i] = 0;
        }
        for (const uint32_t* number = begin; number < end; ++number) {
            const uint64_t word = words[*number];
            words[*number] = 0;
            visit(*number, word);
        }
    }

  private:
    std::vector<uint64_t> words_;    // The bitmap.
    std::vector<uint64_t> filled_;   // One bit for each word of the bitmap. The bit is set if the word is not 0.
    std::vector<uint32_t> numbers_;  // Scratch: numbers of the words that are not 0.
};

// Index of a set of rows whose values are in a compact array, in ascending order of the rows. It maps a row to its
// place in the compact array by counting the set bits before the row (the rank operation of succinct data structures).
//
// words [size]: bitmap. before [size + 1]: number of set bits in the words before this word.
struct RowIndex {
    uint64_t* words;
    uint32_t* before;
    long size;  // Number of words.

    // Fills `before` from the bitmap.
    void count() {
        uint32_t sum = 0;
        for (long i = 0; i < size; ++i) {
            before[i] = sum;
            sum += uint32_t(__builtin_popcountll(words[i]));
        }
        before[size] = sum;
    }

    // Returns the number of rows of the set.
    long rows() const { return before[size]; }

    bool has(uint32_t row) const { return words[row / WORD] >> (row % WORD) & 1; }

    // Returns the place of a row in the compact array. The row must be in the set.
    uint32_t place(uint32_t row) const {
        const uint64_t below = (uint64_t{1} << (row % WORD)) - 1;
        return before[row / WORD] + uint32_t(__builtin_popcountll(words[row / WORD] & below));
    }

    // Replaces rows by their places, leaves out rows that are not in the set, and returns the end of the output. The
    // loop has no branch on the set, because the processor would mispredict the branch.
    uint32_t* to_places(const uint32_t* row, const uint32_t* end, uint32_t* out) const {
        for (; row < end; ++row) {
            const bool is_in = has(*row);
            *out = place(*row);
            out += is_in;
        }
        return out;
    }
};
