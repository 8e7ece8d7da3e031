// Input of the convolutional branch: an embedding of the n-grams at each position of a text.
//
// The embedding of a position is the sum of the table rows of the n-grams that start in the `stride` characters of the
// position, followed by dropout and ReLU.
#pragma once

#include <omp.h>

#include <cstring>
#include <vector>

#include "batch_layout.h"
#include "compressed_array.h"
#include "engine.h"
#include "fixed_point.h"
#include "hashing.h"
#include "layers.h"
#include "memory.h"
#include "sorted_terms.h"
#include "touched_rows.h"

// Python passes these sizes; see crepe_open_crepe in engine.cpp. maxn: maximum length of an n-gram. rows and width:
// shape of the table. stride: characters of a position.
struct PositionEmbeddingConfig {
    long alphabet_size, length, maxn, rows, width, stride;

    // Returns the maximum number of positions of a text, which includes the two boundary symbols.
    long max_positions() const { return (length + 2 + stride - 1) / stride; }

    // Returns the number of n-grams of a position.
    long ngrams() const { return maxn * stride; }

    // Returns the number of n-grams of a position that the bound of a sum counts for a row. In a large table, the bound
    // counts the n-grams of one length, although n-grams of a second length may have the same row. The sum of both still
    // fits, because the largest bound is half of the largest int32.
    long max_equal_rows() const { return rows < MIN_DISTINCT_ROWS ? ngrams() : stride; }
};

// Hashes the n-grams of 1 to maxn known characters that start at each character of a text, and writes their rows to out
// [characters][maxn]. The function does not write the elements of n-grams that do not exist, so the caller must first
// set all elements to NO_ROW. `hash_positions` in crepe_dist/networks/crepe/config.py computes the same rows.
inline void hash_positions(const std::vector<uint8_t>& text, const PositionEmbeddingConfig& config, uint32_t* out) {
    const long characters = long(text.size());
    for (long start = 0; start < characters; ++start, out += config.maxn) {
        const long longest = std::min(config.maxn, characters - start);
        uint64_t key = 0;
        for (long n = 0; n < longest && text[start + n] != BLANK; ++n) {
            key = extend_key(key, text[start + n]);
            out[n] = hash_to_row(key, config.rows);
        }
    }
}

// The embedding table, and the rows of a batch. T: type of the activations.
template <class T> class PositionEmbedding {
  public:
    PositionEmbedding(PositionEmbeddingConfig config, int threads)
        : config_(config),
          threads_(threads),
          width_(padded(config.width)),
          touched_({config.rows, config.width}, threads) {}

    void set_table(const CompressedArray& table) { table_ = table; }
    const CompressedArray& table() const { return table_; }
    void attach(ShardedEmbedding* embedding) { touched_.attach(embedding); }

    // Copies the texts of a batch, with boundary symbols. stride: distance of the texts' character ids, in bytes.
    void read_texts(const uint8_t* codes, long stride, long documents) {
        texts_.resize(documents);
#pragma omp parallel for num_threads(team_size(threads_, documents))
        for (long document = 0; document < documents; ++document)
            add_boundary_symbols(codes + document * stride, config_.length, config_.alphabet_size, texts_[document]);
    }

    // Returns the number of positions of a document.
    long num_positions(long document) const {
        return (long(texts_[document].size()) + config_.stride - 1) / config_.stride;
    }

    // Hashes the n-grams of all positions of the batch.
    void hash(const BatchLayout& layout) {
        const long ngrams = config_.ngrams(), margin = layout.start(0, 0) * ngrams;
        rows_.reserve(layout.start(0, layout.documents()) * ngrams);
        std::fill_n(rows_.get(), margin, NO_ROW);
#pragma omp parallel for num_threads(team_size(threads_, layout.documents()))
        for (long document = 0; document < layout.documents(); ++document) {
            uint32_t* const begin = rows_.get() + layout.start(0, document) * ngrams;
            std::fill(begin, rows_.get() + layout.start(0, document + 1) * ngrams, NO_ROW);
            hash_positions(texts_[document], config_, begin);
        }
    }

    // Collects the table rows that the batch touches, and replaces the row number of each n-gram with its index in that
    // list.
    void find_touched_rows(const BatchLayout& layout) {
        uint32_t* const begin = rows_.get();
        uint32_t* const end = begin + layout.start(0, layout.documents()) * config_.ngrams();
        touched_.list(end - begin, [&](long first, long last, uint64_t* bitmap) {
            for (const uint32_t* row = begin + first; row < begin + last; ++row)
                if (*row != NO_ROW) bitmap[*row / WORD] |= uint64_t{1} << (*row % WORD);
        });
        const RowIndex& index = touched_.index();
#pragma omp parallel for num_threads(threads_)
        for (uint32_t* row = begin; row < end; ++row)
            if (*row != NO_ROW) *row = index.place(*row);
    }

    // Returns the values of the touched rows. In training, they replace the table in `forward`.
    CompressedArray touched_values() { return dense_array(touched_.read(table_.floats())); }

    // Computes the embedding of a chunk, and clears the gaps behind its documents. first_row: number of the batch's
    // first document in the global batch. out: [rows of level 0][padded width].
    void forward(const BatchLayout& layout, const Chunk& chunk, const CompressedArray& table, const Dropout& dropout,
                 uint64_t first_row, T* out) {
        if (table.stored_rows.words) map_to_stored_rows(layout, chunk, table.stored_rows);
        visit_rows(table, config_.width,
                   [&](const auto& reader) { sum_rows(layout, chunk, reader, dropout, first_row, out); });
    }

    // Allocates the memory of the gradient of a batch.
    void reserve_gradient(const BatchLayout& layout) {
        terms_.reserve(layout.start(0, layout.documents()) * width_);
        gradient_.reserve(layout.array_rows(0) * width_);
    }

    // Returns the gradient of the embedding, [rows of level 0][padded width]. The blocks write it.
    T* gradient() { return gradient_.get(); }

    // Converts the gradient of each position to fixed point. All threads of a parallel region call this function
    // together. activations: output of `forward`. grad_scale: scale of the table, in the calling thread.
    //
    // The gradient of a position is added to the rows of all its n-grams. The bound of a document is therefore the sum
    // over its positions times `max_equal_rows`. The bound adds 1 to each number to cover the rounding, except to numbers
    // up to 0.25, which are rounded to 0.
    void quantize_gradient(const BatchLayout& layout, const Dropout& dropout, const T* activations,
                           FixedPointScale& grad_scale) {
        const float scale = dropout.scale();
        const T* const gradients = gradient_.get();
        int32_t* const terms = terms_.get();
        std::vector<float> sums(width_);
#pragma omp for
        for (long document = 0; document < layout.documents(); ++document) {
            std::fill_n(sums.begin(), width_, 0.0f);
            const long start = layout.start(0, document);
            for (long row = start; row < start + layout.length(0, document); ++row)
                for (long c = 0; c < width_; c += LANES) {
                    const long at = row * width_ + c;
                    const FloatVec value = select_or_zero(load(activations + at) > 0, load(gradients + at)) *
                                           (scale * grad_scale.inverse_scale());
                    const IntVec term = round_to_int(value);
                    std::memcpy(terms + at, &term, sizeof term);
                    const FloatVec size = value < 0 ? -value : value;
                    store(sums.data() + c, load(sums.data() + c) + size + select_or_zero(size > 0.25f, FloatVec{} + 1));
                }
            grad_scale.end_term(max_abs(sums.data(), width_) * float(config_.max_equal_rows()));
        }
    }

    // Adds the fixed-point gradients of the positions to the gradients of the touched rows. Each thread has a range of
    // these rows. The threads first sort the n-grams of some documents by range. Then each thread adds the n-grams of its
    // range. If each thread searched all n-grams for its range, many threads would take longer than one.
    void add_to_rows(const BatchLayout& layout) {
        const long documents = layout.documents(), documents_at_once = threads_ * SORTED_DOCUMENTS;
        const RowRanges ranges{touched_.count(), threads_};
        int32_t* __restrict const sums = touched_.sums();
        const int32_t* const terms = terms_.get();
        sorted_.resize(threads_);
        dispatch_width(config_.width, [&](auto width) {
#pragma omp parallel num_threads(threads_)
            for (long first = 0; first < documents; first += documents_at_once) {
                const long count = std::min(documents - first, documents_at_once);
#pragma omp for
                for (int part = 0; part < threads_; ++part)
                    sorted_[part].sort(rows_.get(), layout.start(0, first + count * part / threads_),
                                       layout.start(0, first + count * (part + 1) / threads_), config_.ngrams(),
                                       ranges);
#pragma omp for
                for (int range = 0; range < threads_; ++range) {
                    if (!first)
                        std::fill(sums + ranges.first(range) * width, sums + ranges.first(range + 1) * width, 0);
                    for (const SortedTerms& part : sorted_) {
                        const auto [begin, end] = part.range(range);
                        for (const Term* term = begin; term < end; ++term) {
                            if (term + PREFETCHED_TERMS < end)
                                prefetch_row(sums + term[PREFETCHED_TERMS].place * long(width), width);
                            int32_t* const to = sums + term->place * long(width);
                            const int32_t* const from = terms + term->row * width_;
                            for (long c = 0; c < width; c += LANES)
                                wrapping_add(to + c, load_unaligned<IntVec>(from + c), width - c);
                        }
                    }
                }
            }
        });
    }

    // Copies the gradients of the touched rows to a gradient of all rows, unless a sharded embedding has received them.
    void scatter(int32_t* gradient) {
        if (!touched_.is_attached()) touched_.scatter(gradient);
    }

  private:
    static constexpr long PREFETCHED_POSITIONS = GAP;  // The last ones may be in the gap, which has no n-grams.
    static constexpr long PREFETCHED_TERMS = 16;
    static constexpr long SORTED_DOCUMENTS = 32;  // Documents whose terms a thread sorts at once.

    const PositionEmbeddingConfig config_;
    const int threads_;
    const long width_;  // Width of the table, padded to a multiple of 32.
    TouchedRows touched_;
    CompressedArray table_{};

    // State of the current batch.
    std::vector<std::vector<uint8_t>> texts_;
    // Table row of each n-gram, or the place of the row among the touched rows, [rows of level 0][ngrams].
    Buffer<uint32_t> rows_;
    Buffer<T> gradient_;
    Buffer<int32_t> terms_;  // Fixed-point gradient of each position, [rows of level 0][padded width].
    std::vector<SortedTerms> sorted_;  // One object per thread.

    // Replaces the rows of a chunk's n-grams by their places among the stored rows. Rows that are not stored are zero.
    void map_to_stored_rows(const BatchLayout& layout, const Chunk& chunk, const RowIndex& stored_rows) {
        uint32_t* const end = rows_.get() + layout.start(0, chunk.last) * config_.ngrams();
        for (uint32_t* row = rows_.get() + layout.start(0, chunk.first) * config_.ngrams(); row < end; ++row)
            if (*row != NO_ROW) *row = stored_rows.has(*row) ? stored_rows.place(*row) : NO_ROW;
    }

    template <class Reader>
    void sum_rows(const BatchLayout& layout, const Chunk& chunk, const Reader& table, Dropout dropout,
                  uint64_t first_row, T* out) {
        const long width = config_.width, ngrams = config_.ngrams();
        for (long document = chunk.first; document < chunk.last; ++document) {
            for (long position = 0; position < layout.length(0, document); ++position) {
                const long row = layout.start(0, document) + position;
                const uint32_t* const rows = rows_.get() + row * ngrams;
                const uint32_t* const later = rows + PREFETCHED_POSITIONS * ngrams;
                for (long n = 0; n < ngrams; ++n)
                    if (later[n] != NO_ROW) table.prefetch(later[n]);
                const uint64_t unit = ((first_row + document) * config_.max_positions() + position) * width;
                for (long channel = 0; channel < width_; channel += BLOCK) {
                    FloatVec sums[BLOCK / LANES] = {};
                    const auto add_up = [&](auto load) {
                        for (long n = 0; n < ngrams; ++n) {
                            if (rows[n] == NO_ROW) continue;
                            for (long c = 0; c < BLOCK; c += LANES) sums[c / LANES] += load(rows[n], channel + c);
                        }
                    };
                    if (channel + BLOCK <= width)
                        add_up([&](uint32_t row, long column) { return table.load_all(row, column); });
                    else add_up([&](uint32_t row, long column) { return table.load(row, column); });
                    if (dropout.probability > 0) drop_units(dropout, unit + channel, sums);
                    for (long c = 0; c < BLOCK; c += LANES)
                        store(out + row * width_ + channel + c, relu(sums[c / LANES]));
                }
            }
            const long end = layout.start(0, document) + layout.length(0, document);
            std::memset(static_cast<void*>(out + end * width_), 0, GAP * width_ * sizeof(T));
        }
    }

    // Applies dropout to 32 units. first: number of the first unit.
    static void drop_units(const Dropout& dropout, uint64_t first, FloatVec* units) {
        constexpr uint64_t UNITS = Dropout::UNITS_PER_HASH;
        alignas(64) uint64_t hashes[BLOCK / UNITS + 1];
        for (uint64_t i = 0; i < BLOCK / UNITS + 1; ++i) hashes[i] = dropout.hash(first / UNITS + i);
        const uint16_t* const bits = reinterpret_cast<uint16_t*>(hashes) + first % UNITS;
        for (long c = 0; c < BLOCK; c += LANES) {
            const IntVec retained =
                __builtin_convertvector(load_unaligned<U16Vec>(bits + c), IntVec) >= dropout.threshold();
            units[c / LANES] = select_or_zero(retained, units[c / LANES] * dropout.scale());
        }
    }
};
