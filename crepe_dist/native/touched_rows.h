// The rows of a table that a batch touches, in training: their values, and the sums of their gradients.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "memory.h"
#include "row_set.h"
#include "sharded_embedding.h"

// The rows and their gradients belong to a table, if there is one, or to this object.
class TouchedRows {
  public:
    TouchedRows(TableShape shape, int threads) : shape_(shape), threads_(threads) {}

    void use(Table* table) { table_ = table; }
    bool has_table() const { return table_; }

    // The set of the rows. Whoever has filled its words calls `list`.
    RowIndex& index() { return gradient().index; }
    long count() { return index().rows(); }

    void list() {
        if (!table_) {
            index().count();
            own_->rows = own_rows_.need(count() + SPARE);
        }
        gradient().list();
    }

    // Returns the values of the rows [count][columns]; weights: those of all rows, read without a table.
    const float* read(const float* weights) {
        const long columns = shape_.columns, count = this->count();
        const uint32_t* const rows = gradient().rows;
        float* const out = read_.need(count * columns);
        if (table_) {
            table_->read(rows, count, out);
            return out;
        }
#pragma omp parallel for num_threads(threads_)
        for (long i = 0; i < count; ++i) std::copy_n(weights + rows[i] * columns, columns, out + i * columns);
        return out;
    }

    // The sums of the gradients [count][columns], in quanta, to be written.
    int32_t* sums() { return table_ ? gradient().numbers : sums_.need(count() * shape_.columns); }

    // Copies the sums to a gradient of all rows.
    void scatter(int32_t* gradient) {
        const long columns = shape_.columns;
        std::memset(gradient, 0, shape_.rows * columns * sizeof(int32_t));
        for (long i = 0; i < count(); ++i)
            std::copy_n(sums_.get() + i * columns, columns, gradient + own_->rows[i] * columns);
    }

  private:
    const TableShape shape_;
    const int threads_;
    Table* table_ = nullptr;
    std::vector<char> own_memory_;
    std::optional<SomeRows> own_;
    Buffer<uint32_t> own_rows_;
    Buffer<float> read_;
    Buffer<int32_t> sums_;

    SomeRows& gradient() {
        if (table_) return table_->gradient();
        if (!own_) {  // inference needs none
            own_memory_.resize(SomeRows::bytes(shape_, 0));
            own_.emplace(own_memory_.data(), shape_, 0);
        }
        return *own_;
    }
};
