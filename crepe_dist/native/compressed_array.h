// Parameters in the format of model files: without rows of zeros, as float32, float16, or codes of a codebook. See
// crepe_dist/model/quantization.py.
//
// Inference reads tables in this format, because such tables take less memory than float32 tables and need no
// conversion when a model is loaded. A row that is not stored is a row of zeros, which does not change a sum that
// starts at 0.
#pragma once

#include <type_traits>
#include <utility>

#include "simd.h"
#include "row_set.h"

// A parameter. Python fills its mirror, `CParameter` in library.py, and checks the sizes.
struct CompressedArray {
    RowIndex stored_rows;  // Rows that are stored. If stored_rows.words is null, all rows are stored.
    const void* values;    // float32 or float16 [stored rows][columns], or the codebook, float32 [256][vector_size].
                           // If it is null, all stored values are 1.
    const uint8_t* codes;  // Codes of product quantization, [stored rows][ceil(columns / vector_size)], or null.
    int64_t vector_size;   // Number of columns that one code stands for.
    int64_t is_half;       // 1 if `values` are float16, 0 if they are float32.

    const float* floats() const { return static_cast<const float*>(values); }
};

// Returns a float32 array that stores all rows.
inline CompressedArray dense_array(const float* values) { return {{}, values, nullptr, 0, 0}; }

// Prefetches a row into the L2 cache. The L2 cache has more buffers for outstanding lines than the L1 cache.
template <class Number> inline void prefetch_row(const Number* row, long columns) {
    for (long c = 0; c < columns; c += 64 / sizeof(Number)) __builtin_prefetch(row + c, 0, 2);
}

// Readers of a table. `row` is the place of a row among the stored rows.
//
// load(row, column) returns the LANES numbers of a row that begin at `column`, and 0 after the last column. The
// column is a multiple of LANES. load_all(row, column) is for columns that are followed by at least LANES numbers.
//
// `Width` and `VectorSize` are either long or std::integral_constant, so that the compiler can unroll the loops.
//
// Reader of uncompressed rows, float32 or float16.
template <class Number, class Width> struct DenseReader {
    const Number* values;
    Width columns;

    FloatVec load(uint32_t row, long column) const {
        return load_partial(values + row * columns + column, columns - column);
    }
    FloatVec load_all(uint32_t row, long column) const { return load_partial(values + row * columns + column, LANES); }
    void prefetch(uint32_t row) const { prefetch_row(values + row * columns, columns); }
};

// Reader of rows that are compressed by product quantization (Jégou, Douze & Schmid 2011). Each code selects a vector
// of the codebook. The vector contains the values of vector_size neighbouring columns.
template <class Width, class VectorSize> struct CodebookReader {
    const float* vectors;
    const uint8_t* codes;
    Width columns;
    VectorSize vector_size;
    long codes_per_row = (columns + vector_size - 1) / vector_size;

    FloatVec load(uint32_t row, long column) const {
        if (codes_per_row == 1) return load_partial(vectors + codes[row] * vector_size + column, columns - column);
        if (columns - column >= LANES) return load_all(row, column);
        return any_vector(codes + row * codes_per_row, column, std::make_index_sequence<LANES>());
    }

    FloatVec load_all(uint32_t row, long column) const {
        const uint8_t* const from = codes + row * codes_per_row;
        if constexpr (std::is_same_v<VectorSize, long>)
            return any_vector(from, column, std::make_index_sequence<LANES>());
        else if constexpr (VectorSize() % LANES == 0)
            return ::load(vectors + from[column / vector_size] * vector_size + column % vector_size);
        else if constexpr (VectorSize() % 2 == 0)
            return pairs(from + column / vector_size, std::make_index_sequence<LANES / 2>());
        else return singles(from + column, std::make_index_sequence<LANES>());
    }

    void prefetch(uint32_t row) const { prefetch_row(codes + row * codes_per_row, codes_per_row); }

  private:
    template <size_t... I> FloatVec singles(const uint8_t* from, std::index_sequence<I...>) const {
        constexpr long BYTES = std::min(LANES, 8L);  // One load of a word is faster than a load of each of its bytes.
        using Word = std::conditional_t<BYTES == 8, uint64_t, uint32_t>;
        return FloatVec{vectors[load_unaligned<Word>(from + I / BYTES * BYTES) >> (8 * (I % BYTES)) & 255]...};
    }

    template <size_t... I> FloatVec pairs(const uint8_t* from, std::index_sequence<I...>) const {
        constexpr long N = VectorSize() / 2;
        typedef uint64_t Pairs __attribute__((vector_size(sizeof(FloatVec))));
        return (FloatVec)Pairs{load_unaligned<uint64_t>(vectors + 2 * (from[I / N] * N + I % N))...};
    }

    template <size_t... I> FloatVec any_vector(const uint8_t* from, long column, std::index_sequence<I...>) const {
        const auto element = [&](long n) {
            return n < columns ? vectors[from[n / vector_size] * vector_size + n % vector_size] : 0.0f;
        };
        return FloatVec{element(column + long(I))...};
    }
};

// Calls work(reader) with a reader of the type that the table requires. columns: number of columns of the table, as a
// long or as an integral constant.
template <class Width, class Work> void visit_rows(const CompressedArray& table, Width columns, Work work) {
    const auto coded = [&](auto vector_size) {
        work(CodebookReader<Width, decltype(vector_size)>{table.floats(), table.codes, columns, vector_size});
    };
    if (!table.codes) {
        if (table.is_half) return work(DenseReader<float16, Width>{static_cast<const float16*>(table.values), columns});
        return work(DenseReader<float, Width>{table.floats(), columns});
    }
    switch (table.vector_size) {
        case 1: return coded(std::integral_constant<long, 1>());
        case 2: return coded(std::integral_constant<long, 2>());
        case 4: return coded(std::integral_constant<long, 4>());
        case 8: return coded(std::integral_constant<long, 8>());
        default: return coded(long(table.vector_size));
    }
}
