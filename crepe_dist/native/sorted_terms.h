// Terms of the gradient of touched rows, sorted by ranges of these rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "row_set.h"

// Equal division of `rows` touched rows into ranges, one for each thread.
struct RowRanges {
    long rows, count;

    // Returns the first row of a range. For range number `count`, it is the number of rows.
    long first(long range) const { return rows * range / count; }
};

// The gradient of one position, which is added to one touched row.
struct Term {
    uint32_t place;  // Place of the row among the touched rows.
    uint32_t row;    // Row of the position in the batch.
};

// The terms of some documents. One thread sorts them, and afterwards each thread reads the terms of its own range.
class SortedTerms {
  public:
    // Sorts the terms of the positions [begin, end). places: place of each n-gram among the touched rows, or NO_ROW,
    // [positions of the batch][ngrams].
    void sort(const uint32_t* places, long begin, long end, long ngrams, RowRanges ranges) {
        terms_.resize((end - begin) * ngrams + 1);
        scratch_.resize(terms_.size());
        first_.resize(ranges.count + 1);
        Term* last = terms_.data();
        for (long row = begin; row < end; ++row)
            for (long n = 0; n < ngrams; ++n) {
                const uint32_t place = places[row * ngrams + n];
                *last = {place, uint32_t(row)};
                last += place != NO_ROW;
            }
        first_[ranges.count] = last;
        split(terms_.data(), last, ranges, 0, ranges.count);
    }

    // Returns the first and the end of the terms of a range.
    std::pair<const Term*, const Term*> range(long number) const { return {first_[number], first_[number + 1]}; }

  private:
    std::vector<Term> terms_, scratch_;
    std::vector<const Term*> first_;  // First term of each range.

    // Sorts the terms [begin, end) of the ranges [low, high). The loop has no branch on the terms, because the
    // processor would mispredict it.
    void split(Term* begin, Term* end, RowRanges ranges, long low, long high) {
        if (high - low == 1) {
            first_[low] = begin;
            return;
        }
        const long middle = (low + high) / 2, boundary = ranges.first(middle);
        Term *below = begin, *above = scratch_.data();
        for (const Term* term = begin; term < end; ++term) {
            const bool is_below = term->place < boundary;
            *above = *term;
            *below = *term;
            below += is_below;
            above += !is_below;
        }
        std::copy(scratch_.data(), above, below);
        split(begin, below, ranges, low, middle);
        split(below, end, ranges, middle, high);
    }
};
