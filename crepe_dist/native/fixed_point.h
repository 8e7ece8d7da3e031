// Gradients in whole multiples of a power of two, the quantum of their parameter. Whole numbers add up exactly in any
// order, so a sum does not depend on how threads and processes divide its terms.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"

// Rounds to whole numbers, to nearest; numbers without an int32 become garbage, which `Quanta::bound` tells.
inline Words nearest(Lanes value) {
#if defined(__AVX512F__)
    return (Words)_mm512_cvtps_epi32((__m512)value);
#elif defined(__AVX2__)
    return (Words)_mm256_cvtps_epi32((__m256)value);
#elif defined(__SSE2__)
    return (Words)_mm_cvtps_epi32((__m128)value);
#else
    return __builtin_convertvector(value + (value < 0 ? Lanes{} - 0.5f : Lanes{} + 0.5f), Words);
#endif
}

// Adds a whole number to a total. Totals that overflow wrap around, here and below; signed addition may not.
inline void add_whole(int32_t& total, int32_t term) { total = int32_t(uint32_t(total) + uint32_t(term)); }

// Adds whole numbers to totals, the first `count` of them if it is less than LANES.
inline void add_whole(int32_t* totals, Words terms, long count = LANES) {
    if (count >= LANES) {
        const Bits sum = copy_in<Bits>(totals) + (Bits)terms;
        std::memcpy(totals, &sum, sizeof sum);
    } else {
        for (long i = 0; i < count; ++i) add_whole(totals[i], terms[i]);
    }
}

// The largest of several sizes in bits, which ascend as numbers do; those of NaN are above all.
inline float largest_of(Words sizes) {
    int32_t bits = 0;
    for (long i = 0; i < LANES; ++i) bits = std::max(bits, sizes[i]);
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    return largest;
}

// The larger sizes, in bits.
inline Words larger(Words sizes, Lanes values) {
    const Words others = (Words)values & 0x7FFFFFFF;
    return others > sizes ? others : sizes;
}

// The largest size of `count` numbers, a multiple of LANES; NaN if there is one.
template <class T> float largest_of(const T* values, long count) {
    Words sizes{};
    for (long i = 0; i < count; i += LANES) sizes = larger(sizes, load(values + i));
    return largest_of(sizes);
}

// Converts the terms of one parameter's gradient, and bounds their sum. Each thread has its own.
class Quanta {
  public:
    // A quantum is 2^exponent. unit: of the bound, in quanta.
    void begin(int32_t exponent, double unit) {
        *this = {};
        per_unit_ = std::ldexp(1.0f, -exponent);
        unit_ = unit;
    }

    float per_unit() const { return per_unit_; }

    // Converts part of a term.
    Words operator()(Lanes values) {
        const Lanes quanta = values * per_unit_;
        largest_ = larger(largest_, quanta);
        return nearest(quanta);
    }

    // Adds part of a term to totals.
    void add(int32_t* totals, const float* values, long count) {
        for (long i = 0; i < count; i += LANES) add_whole(totals + i, (*this)(load_some(values + i, count - i)), count - i);
    }

    // Ends a term: no number of it was larger than those converted since the last call.
    void end_term() {
        end_term(largest_of(largest_));
        largest_ = Words{};
    }

    // Ends a term that is at most `largest` quanta, before rounding.
    void end_term(float largest) {
        if (largest == 0) return;  // also the rows that pad a batch
        bound_ += std::isfinite(largest) ? std::ceil((double(largest) + 1) / unit_) : NAN;
    }

    // Takes over the terms of another thread.
    void join(const Quanta& other) { bound_ += other.bound_; }

    // A bound of the sum of all terms, in its unit. Its sum over threads and processes is exact up to 2^24.
    float bound() const { return float(bound_); }

  private:
    float per_unit_ = 1;
    Words largest_{};
    double unit_ = 1, bound_ = 0;
};

// Writes the bounds of the terms of all threads. scratches: the memory of each thread, with `quanta` of each parameter.
template <class Scratches> void write_bounds(const Scratches& scratches, long parameters, float* bounds) {
    for (long i = 0; i < parameters; ++i) {
        Quanta all;
        for (const auto& scratch : scratches) all.join(scratch.quanta[i]);
        bounds[i] = all.bound();
    }
}

// The sum of the squares of whole numbers: low + high * 2^32. Both add up exactly over processes.
struct SumOfSquares {
    uint64_t low = 0, high = 0;
};

inline SumOfSquares sum_of_squares(const int32_t* values, long count) {
    SumOfSquares sum;
    for (long i = 0; i < count; ++i) {
        const uint64_t square = uint64_t(int64_t{values[i]} * values[i]);
        sum.low += square & 0xFFFFFFFF;
        sum.high += square >> 32;
    }
    return sum;
}
