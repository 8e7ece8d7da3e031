// Sets of row numbers as bitmaps: 128 KB for a million rows, which fits into a core's cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

constexpr long WORD = 64;  // rows per word of a bitmap
constexpr uint32_t NO_ROW = UINT32_MAX;

inline long words_of(long rows) { return (rows + WORD - 1) / WORD; }

// Calls work(width), with a constant for widths that are common, so that the compiler unrolls loops over a row.
template <class Work> void with_width(long width, Work work) {
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

// Copies a row, and converts whole numbers, without the call of a library function for a few numbers.
template <class Number, class Width> inline void copy_row(const Number* from, Width width, float* to) {
    for (long n = 0; n < width; ++n) to[n] = float(from[n]);
}

// Writes the numbers of a word's set bits to out, in ascending order, and returns the end; `first` is the number of bit 0.
// Writes four at once, because loops that end after one or two rounds are mispredicted: out needs room for SPARE more.
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

// A set that is filled in any order, and emptied in ascending order.
class RowSet {
  public:
    explicit RowSet(long rows)
        : words_(words_of(rows)), filled_(words_of(long(words_.size()))), numbers_(words_.size() + SPARE) {}

    void add(const uint32_t* rows, long count) {
        uint64_t *const words = words_.data(), *const filled = filled_.data();
        for (long i = 0; i < count; ++i) {
            words[rows[i] / WORD] |= uint64_t{1} << (rows[i] % WORD);
            filled[rows[i] / (WORD * WORD)] |= uint64_t{1} << (rows[i] / WORD % WORD);
        }
    }

    // Calls visit(number, word) for each word of the bitmap that is not 0, and clears it.
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
    std::vector<uint64_t> words_, filled_;  // filled_: a bit for each word that is not 0
    std::vector<uint32_t> numbers_;
};

// Rows of a table that have values in a compact array, in ascending order.
//
// before [words + 1]: number of the set's rows in the words before this one.
struct RowIndex {
    uint64_t* words;
    uint32_t* before;
    long size;  // number of words

    void count() {
        uint32_t sum = 0;
        for (long i = 0; i < size; ++i) {
            before[i] = sum;
            sum += uint32_t(__builtin_popcountll(words[i]));
        }
        before[size] = sum;
    }

    long rows() const { return before[size]; }

    bool has(uint32_t row) const { return words[row / WORD] >> (row % WORD) & 1; }

    // The place of a row of the set in the compact array.
    uint32_t place(uint32_t row) const {
        const uint64_t below = (uint64_t{1} << (row % WORD)) - 1;
        return before[row / WORD] + uint32_t(__builtin_popcountll(words[row / WORD] & below));
    }

    // Replaces rows by their places, without those that are not in the set; returns the end.
    uint32_t* places(const uint32_t* row, const uint32_t* end, uint32_t* out) const {
        for (; row < end; ++row) {
            const bool is_in = has(*row);
            *out = place(*row);
            out += is_in;
        }
        return out;
    }
};
