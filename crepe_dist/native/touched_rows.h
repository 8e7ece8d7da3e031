// The rows of an embedding table that a training batch touches: their values, and the sums of their gradients.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "memory.h"
#include "row_set.h"
#include "sharded_embedding.h"

// The list of rows and their gradients are in a sharded embedding, if one is attached. Otherwise they belong to this
// object, and the caller copies the gradients to a gradient of all rows by `scatter`.
class TouchedRows {
  public:
    TouchedRows(EmbeddingShape shape, int threads) : shape_(shape), threads_(threads) {}

    void attach(ShardedEmbedding* embedding) { embedding_ = embedding; }
    bool is_attached() const { return embedding_; }

    RowIndex& index() { return gradient().index; }
    long count() { return index().rows(); }

    // Lists the rows that a batch touches. add_rows(first, last, bitmap) adds the rows of the items [first, last) of the
    // batch to a bitmap. Each thread has a bitmap of its own, because several threads may add the same row.
    template <class AddRows> void list(long items, AddRows add_rows) {
        if (embedding_) embedding_->start_list();
        RowIndex& index = this->index();
        bitmaps_.resize(threads_);
#pragma omp parallel num_threads(threads_)
        {
#pragma omp for
            for (int part = 0; part < threads_; ++part) {
                bitmaps_[part].assign(index.size, 0);
                add_rows(items * part / threads_, items * (part + 1) / threads_, bitmaps_[part].data());
            }
#pragma omp for
            for (long word = 0; word < index.size; ++word) {
                index.words[word] = 0;
                for (const auto& bitmap : bitmaps_) index.words[word] |= bitmap[word];
            }
        }
        if (!embedding_) {
            index.count();
            own_->row_ids = own_rows_.reserve(count() + SPARE);
        }
        gradient().list();
    }

    // Returns the values of the touched rows [count][columns]. weights: values of all rows, which are used only if no
    // sharded embedding is attached.
    const float* read(const float* weights) {
        const long columns = shape_.columns, count = this->count();
        const uint32_t* const rows = gradient().row_ids;
        float* const out = read_.reserve(count * columns);
        if (embedding_) {
            embedding_->read_rows(rows, count, out);
            return out;
        }
#pragma omp parallel for num_threads(threads_)
        for (long i = 0; i < count; ++i) std::copy_n(weights + rows[i] * columns, columns, out + i * columns);
        return out;
    }

    // Returns the memory for the sums of the gradients [count][columns], in fixed point. The caller writes them.
    int32_t* sums() { return embedding_ ? embedding_->start_gradient() : sums_.reserve(count() * shape_.columns); }

    // Copies the sums to a gradient of all rows [rows][columns].
    void scatter(int32_t* gradient) {
        const long columns = shape_.columns;
        std::memset(gradient, 0, shape_.rows * columns * sizeof(int32_t));
        for (long i = 0; i < count(); ++i)
            std::copy_n(sums_.get() + i * columns, columns, gradient + own_->row_ids[i] * columns);
    }

  private:
    const EmbeddingShape shape_;
    const int threads_;
    ShardedEmbedding* embedding_ = nullptr;
    std::vector<char> own_memory_;
    std::optional<RowGrads> own_;
    Buffer<uint32_t> own_rows_;
    Buffer<float> read_;
    Buffer<int32_t> sums_;
    std::vector<std::vector<uint64_t>> bitmaps_;  // Bitmap of each thread in `list`.

    RowGrads& gradient() {
        if (embedding_) return embedding_->gradient();
        if (!own_) {  // The memory is allocated at the first training step, because inference does not need it.
            own_memory_.resize(RowGrads::bytes(shape_, 0));
            own_.emplace(own_memory_.data(), shape_, 0);
        }
        return *own_;
    }
};
