// Parameters as their file has them, without rows of zeros, in float16 or in bytes; see model/quantization.py. Inference reads
// tables so: they take less memory, and need no conversion. A row that is left out adds nothing to a sum that starts at 0.
#pragma once

#include <type_traits>
#include <utility>

#include "simd.h"
#include "row_set.h"

// Written by Python, which has checked the sizes; see `Compact`.
struct Stored {
    RowIndex kept;         // no words: all rows
    const void* values;    // float or float16 [kept rows][columns], or the float vectors [256][numbers]; null: each is 1
    const uint8_t* codes;  // of the vectors [kept rows][⌈columns / numbers⌉]; null: no vectors
    int64_t numbers;       // of a vector
    int64_t is_half;

    const float* floats() const { return static_cast<const float*>(values); }
};

inline Stored dense(const float* values) { return {{}, values, nullptr, 0, 0}; }

// Fetches a row into the L2 cache, which can wait for more lines at once than the L1 cache.
template <class Number> inline void prefetch_row(const Number* row, long columns) {
    for (long c = 0; c < columns; c += 64 / sizeof(Number)) __builtin_prefetch(row + c, 0, 2);
}

// Readers of a table by the places of kept rows. `load` returns up to LANES numbers of a row from a column on, a multiple of
// LANES, padded with 0; `load_all` returns LANES of them.
template <class Number, class Width> struct Plain {
    const Number* values;
    Width columns;

    Lanes load(uint32_t row, long column) const { return load_some(values + row * columns + column, columns - column); }
    Lanes load_all(uint32_t row, long column) const { return load_some(values + row * columns + column, LANES); }
    void prefetch(uint32_t row) const { prefetch_row(values + row * columns, columns); }
};

template <class Width, class Numbers> struct Coded {
    const float* vectors;
    const uint8_t* codes;
    Width columns;
    Numbers numbers;
    long each = (columns + numbers - 1) / numbers;  // codes of a row

    Lanes load(uint32_t row, long column) const {
        if (each == 1) return load_some(vectors + codes[row] * numbers + column, columns - column);
        if (columns - column >= LANES) return load_all(row, column);
        return some(codes + row * each, column, std::make_index_sequence<LANES>());
    }

    Lanes load_all(uint32_t row, long column) const {
        const uint8_t* const from = codes + row * each;
        if constexpr (std::is_same_v<Numbers, long>) return some(from, column, std::make_index_sequence<LANES>());
        else if constexpr (Numbers() % LANES == 0) return ::load(vectors + from[column / numbers] * numbers + column % numbers);
        else if constexpr (Numbers() % 2 == 0) return pairs(from + column / numbers, std::make_index_sequence<LANES / 2>());
        else return singles(from + column, std::make_index_sequence<LANES>());
    }

    void prefetch(uint32_t row) const { prefetch_row(codes + row * each, each); }

  private:
    template <size_t... I> Lanes singles(const uint8_t* from, std::index_sequence<I...>) const {
        constexpr long BYTES = std::min(LANES, 8L);  // a word is loaded faster than its bytes
        using Word = std::conditional_t<BYTES == 8, uint64_t, uint32_t>;
        return Lanes{vectors[copy_in<Word>(from + I / BYTES * BYTES) >> (8 * (I % BYTES)) & 255]...};
    }

    template <size_t... I> Lanes pairs(const uint8_t* from, std::index_sequence<I...>) const {
        constexpr long N = Numbers() / 2;
        typedef uint64_t Pairs __attribute__((vector_size(sizeof(Lanes))));
        return (Lanes)Pairs{copy_in<uint64_t>(vectors + 2 * (from[I / N] * N + I % N))...};
    }

    template <size_t... I> Lanes some(const uint8_t* from, long column, std::index_sequence<I...>) const {
        const auto at = [&](long n) { return n < columns ? vectors[from[n / numbers] * numbers + n % numbers] : 0.0f; };
        return Lanes{at(column + long(I))...};
    }
};

// Calls work(reader). columns: of the table, a constant or not.
template <class Width, class Work> void read_through(const Stored& table, Width columns, Work work) {
    const auto coded = [&](auto numbers) {
        work(Coded<Width, decltype(numbers)>{table.floats(), table.codes, columns, numbers});
    };
    if (!table.codes) {
        if (table.is_half) return work(Plain<float16, Width>{static_cast<const float16*>(table.values), columns});
        return work(Plain<float, Width>{table.floats(), columns});
    }
    switch (table.numbers) {
        case 1: return coded(std::integral_constant<long, 1>());
        case 2: return coded(std::integral_constant<long, 2>());
        case 4: return coded(std::integral_constant<long, 4>());
        case 8: return coded(std::integral_constant<long, 8>());
        default: return coded(long(table.numbers));
    }
}
