// Fixed-point gradients.
//
// A gradient is an int32 multiple of 2^exponent. Each parameter has its own exponent, which Python chooses
// (optim/fixed_point.py). Integer addition is associative, so the sum of a gradient is bit-identical for every division
// of its terms among threads and processes.
//
// A sum must fit in int32. Each term therefore also contributes to an upper bound on the absolute value of the sum. If
// the bound for a parameter is too large, Python repeats the step with a larger scale.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"

// Rounds to the nearest integers. Numbers outside the range of int32 give arbitrary integers. The caller detects them
// by `FixedPointScale::sum_bound`.
inline IntVec round_to_int(FloatVec value) {
#if defined(__AVX512F__)
    return (IntVec)_mm512_cvtps_epi32((__m512)value);
#elif defined(__AVX2__)
    return (IntVec)_mm256_cvtps_epi32((__m256)value);
#elif defined(__SSE2__)
    return (IntVec)_mm_cvtps_epi32((__m128)value);
#else
    return __builtin_convertvector(value + (value < 0 ? FloatVec{} - 0.5f : FloatVec{} + 0.5f), IntVec);
#endif
}

// Adds an integer to a total. A total that overflows wraps around. The addition is unsigned, because overflow of signed
// integers is undefined behaviour in C++.
inline void wrapping_add(int32_t& total, int32_t term) { total = int32_t(uint32_t(total) + uint32_t(term)); }

// Adds the first min(count, LANES) integers of a vector to totals.
inline void wrapping_add(int32_t* totals, IntVec terms, long count = LANES) {
    if (count >= LANES) {
        const UIntVec sum = load_unaligned<UIntVec>(totals) + (UIntVec)terms;
        std::memcpy(totals, &sum, sizeof sum);
    } else {
        for (long i = 0; i < count; ++i) wrapping_add(totals[i], terms[i]);
    }
}

// Returns the largest of non-negative floats that are given as bits. The bits of non-negative floats are ordered like
// the floats, and the bits of a NaN are larger than the bits of every number. The result is therefore NaN if one float
// is NaN.
inline float max_of_float_bits(IntVec bits) {
    int32_t largest_bits = 0;
    for (long i = 0; i < LANES; ++i) largest_bits = std::max(largest_bits, bits[i]);
    float largest;
    std::memcpy(&largest, &largest_bits, sizeof largest);
    return largest;
}

// Returns the lane-wise maximum of `max_bits` and the bits of the absolute values.
inline IntVec max_abs_bits(IntVec max_bits, FloatVec values) {
    const IntVec bits = (IntVec)values & 0x7FFFFFFF;
    return bits > max_bits ? bits : max_bits;
}

// Returns the largest absolute value of `count` numbers, or NaN if one of them is NaN. count: a multiple of LANES.
template <class T> float max_abs(const T* values, long count) {
    IntVec max_bits{};
    for (long i = 0; i < count; i += LANES) max_bits = max_abs_bits(max_bits, load(values + i));
    return max_of_float_bits(max_bits);
}

// Fixed-point scale of one parameter's gradient: it converts the terms of the gradient, and bounds their sum. Each
// thread has its own object.
//
// A term is the contribution of a fixed group of documents. The contributions of these documents are added in float32
// in a fixed order, and their sum is rounded.
class FixedPointScale {
  public:
    // Starts a step. The unit of the fixed-point numbers is 2^exponent. bound_unit: unit of `sum_bound`, in units of
    // the fixed-point numbers.
    void start(int32_t exponent, double bound_unit) {
        *this = {};
        inverse_scale_ = std::ldexp(1.0f, -exponent);
        bound_unit_ = bound_unit;
    }

    // Returns 2^-exponent, the factor that converts a gradient to fixed point.
    float inverse_scale() const { return inverse_scale_; }

    // Converts a part of a term, and records its largest absolute value.
    IntVec quantize(FloatVec values) {
        const FloatVec scaled = values * inverse_scale_;
        max_bits_ = max_abs_bits(max_bits_, scaled);
        return round_to_int(scaled);
    }

    // Converts a part of a term, and adds it to totals.
    void add(int32_t* totals, const float* values, long count) {
        for (long i = 0; i < count; i += LANES)
            wrapping_add(totals + i, quantize(load_partial(values + i, count - i)), count - i);
    }

    // Ends a term. The numbers that were converted since the last call bound the term.
    void end_term() {
        end_term(max_of_float_bits(max_bits_));
        max_bits_ = IntVec{};
    }

    // Ends a term whose numbers are at most `largest` units before rounding. Rounding adds less than 1 to a number.
    void end_term(float largest) {
        if (largest == 0) return;  // Rows that only pad a batch add nothing to the bound.
        sum_bound_ += std::isfinite(largest) ? std::ceil((double(largest) + 1) / bound_unit_) : NAN;
    }

    // Adds the terms of another thread.
    void merge(const FixedPointScale& other) { sum_bound_ += other.sum_bound_; }

    // Returns an upper bound on the absolute value of the sum of all terms, as a whole number of bound units, or NaN if
    // a term is not finite. Because the bounds are integers, float32 represents them and their sums over threads and
    // processes exactly up to 2^24.
    float sum_bound() const { return float(sum_bound_); }

  private:
    float inverse_scale_ = 1;
    IntVec max_bits_{};
    double bound_unit_ = 1, sum_bound_ = 0;
};

// Writes the bounds of the sums over all threads to bounds [parameters]. scratches: objects of the threads, each with
// the array `grad_scales` [parameters].
template <class Scratches> void write_bounds(const Scratches& scratches, long parameters, float* bounds) {
    for (long i = 0; i < parameters; ++i) {
        FixedPointScale total;
        for (const auto& scratch : scratches) total.merge(scratch.grad_scales[i]);
        bounds[i] = total.sum_bound();
    }
}
