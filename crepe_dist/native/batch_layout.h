// Arrangement of a batch in the arrays of the convolutional branch.
//
// Each document has its own number of positions. The rows of a batch are the positions of its documents, one document
// after the other. GAP rows of zeros separate the documents. The convolutions read these rows as the padding of both
// documents.
//
// The max-pooling layers halve the number of positions. Level 0 is the embedding, and each max-pooling layer leads to
// the next level. Each level has its own arrangement.
#pragma once

#include <algorithm>
#include <vector>

#include "constants.hpp"
#include "gemm_block.h"

constexpr long GAP = CONV_KERNEL_SIZE / 2;
constexpr long LEVELS = POOLED_BLOCKS + 1;
constexpr long MARGIN = 2 * BLOCK;  // Rows before the first and after the last document that products may read.

// Documents [first, last) that a thread computes together, while their activations are in the cache of its core.
struct Chunk {
    long first, last;
};

class BatchLayout {
  public:
    // Arranges a batch of `documents` documents. length_of(document): number of positions at level 0.
    //
    // A chunk ends after each reduction_group documents, and before it has more than MAX_CHUNK_ROWS rows. The chunks do
    // not depend on the number of threads, because each chunk rounds its gradients to fixed point.
    template <class Length> void arrange(long documents, long reduction_group, Length length_of) {
        documents_ = documents;
        for (long level = 0; level < LEVELS; ++level) {
            lengths_[level].resize(documents);
            starts_[level].resize(documents + 1);
            starts_[level][0] = MARGIN;
            for (long document = 0; document < documents; ++document) {
                long& length = lengths_[level][document];
                length = level ? (lengths_[level - 1][document] + 1) / 2 : length_of(document);
                starts_[level][document + 1] = starts_[level][document] + length + GAP;
            }
        }
        constexpr long MAX_CHUNK_ROWS = 448;
        chunks_.clear();
        for (long document = 0; document < documents; ++document) {
            if (document % reduction_group == 0 ||
                starts_[0][document + 1] - starts_[0][chunks_.back().first] > MAX_CHUNK_ROWS)
                chunks_.push_back({document, document});
            chunks_.back().last = document + 1;
        }
    }

    long documents() const { return documents_; }
    const std::vector<Chunk>& chunks() const { return chunks_; }

    // Returns the number of positions of a document at a level.
    long length(long level, long document) const { return lengths_[level][document]; }

    // Returns the first row of a document at a level. For document number documents(), it is the end of the last gap.
    long start(long level, long document) const { return starts_[level][document]; }

    // Returns the number of rows of a chunk at a level, without the gap behind its last document.
    long chunk_rows(long level, const Chunk& chunk) const {
        return starts_[level][chunk.last] - GAP - starts_[level][chunk.first];
    }

    // Returns the maximum number of rows of a chunk at level 0, with all gaps.
    long max_chunk_rows() const {
        long longest = 0;
        for (const Chunk& chunk : chunks_)
            longest = std::max(longest, starts_[0][chunk.last] - starts_[0][chunk.first]);
        return longest;
    }

    // Returns the number of rows of an array at a level, with the margins.
    long array_rows(long level) const { return starts_[level][documents_] + MARGIN; }

    // Returns the level of the input of a block. If `block` is the number of blocks, the result is the level of the
    // output of the last block.
    static long level_of(long block) { return std::min(block, LEVELS - 1); }

    // Returns true if a block ends in a max pool.
    static bool ends_in_pool(long block) { return block + 1 < LEVELS; }

  private:
    long documents_ = 0;
    std::vector<long> lengths_[LEVELS], starts_[LEVELS];
    std::vector<Chunk> chunks_;
};
