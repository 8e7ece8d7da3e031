// A residual convolutional network over the n-grams at each position of a text.
//
//     x0 = relu(embedding)                                per position: the sum of the rows of the n-grams of `stride`
//                                                         characters
//     x' = relu(x + conv2(relu(conv1(x))))                for each block; then a max pool of 2 after the first two
//     logits = out(max over positions of x, mean of x)
//
// Each document has its own number of positions. The rows of a batch are those of its documents, one after the other,
// with GAP rows of zeros between them, which the convolutions read as the padding of both.
#pragma once

#include <omp.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "engine.h"
#include "winograd.h"
#include "hashing.h"
#include "layers.h"
#include "memory.h"
#include "touched_rows.h"

constexpr long GAP = CONV_KERNEL_SIZE / 2, LEVELS = POOLED_BLOCKS + 1;
constexpr long MARGIN = 2 * BLOCK;  // rows before the first and after the last document that may be read

constexpr long AHEAD = GAP;  // positions whose rows are fetched in advance; those of a gap have none
constexpr long SOON = 16;    // rows of gradients that are fetched in advance

struct PositionEmbeddingConfig {
    long alphabet_size, length, maxn, rows, width, stride;

    long positions() const { return (length + 2 + stride - 1) / stride; }  // with the symbols of both edges
    long ngrams() const { return maxn * stride; }  // of a position
};

// Hashes the n-grams of 1 to `longest` known characters that start at each character of a text to out
// [characters][longest], which has NO_ROW everywhere. `look_up` in networks/crepe/tower.py is equivalent.
inline void hash_positions(const std::vector<uint8_t>& text, const PositionEmbeddingConfig& shape, uint32_t* out) {
    const long characters = long(text.size());
    for (long start = 0; start < characters; ++start, out += shape.maxn) {
        const long most = std::min(shape.maxn, characters - start);
        uint64_t key = 0;
        for (long n = 0; n < most && text[start + n] != BLANK; ++n) {
            key = extend_key(key, text[start + n]);
            out[n] = hash_to_row(key, shape.rows);
        }
    }
}

struct ConvBranchConfig {
    PositionEmbeddingConfig embedding;
    long num_classes, blocks, group_size;  // documents that share a term of the gradients
    double feature_dropout;
};

template <class T> class ConvBranch final : public Engine {
  public:
    ConvBranch(ConvBranchConfig shape, int threads)
        : config_(shape), threads_(threads), scratch_(threads), width_(padded(shape.embedding.width)),
          touched_({shape.embedding.rows, shape.embedding.width}, threads), blocks_(shape.blocks) {}

    // table [rows][width]; for each block two convolutions, weights [width][width][taps] and bias [width]; the last
    // layer's weights [classes][2 * width] and bias [classes]
    void set_parameters(const CompressedArray* parameters, bool) override {
        table_ = parameters[0];
        const long width = config_.embedding.width;
        const CompressedArray* next = parameters + 1;
        for (Block& block : blocks_)
            for (int i : {0, 1}) {
                Convolution& one = block.convolutions[i];
                std::memcpy(one.bias.reserve(width_), next[1].values, width * sizeof(float));
                constexpr long PANELS = USES_WINOGRAD<T> ? WINOGRAD_POINTS : CONV_KERNEL_SIZE;
                one.forward.reserve(PANELS * width_ * width_);
                one.backward.reserve(PANELS * width_ * width_);
#pragma omp parallel num_threads(threads_)
                {
                    if constexpr (USES_WINOGRAD<T>) pack_winograd_weights(next[0].floats(), width, one.forward.get(), one.backward.get());
                    else pack_convolution(next[0].floats(), width, CONV_KERNEL_SIZE, one.forward.get(), one.backward.get());
                }
                next += 2;
            }
        out_ = next[0].floats();
        out_bias_ = next[1].floats();
    }

    void set_loss(Loss loss) override { loss_ = std::move(loss); }
    void attach(int, ShardedEmbedding* embedding, size_t) override { touched_.attach(embedding); }
    long num_trained() const override { return 1 + 4 * config_.blocks + 2; }

    void forward(const uint8_t* codes, long stride, long rows, float* logits) override {
        prepare(codes, stride, rows);
        dropouts_ = {};
        activate(table_, 0, [&](long row) { classify(row, logits + row * config_.num_classes); });
    }

    void find_rows(const uint8_t* batch, long rows) override {
        prepare(batch, loss_.stride(config_.embedding.length), rows);
        touch();
    }

    void train_forward(const uint8_t* batch, long rows, Dropout dropout, uint64_t first, float* losses) override {
        const long num_classes = config_.num_classes, length = config_.embedding.length;
        dropouts_ = {Dropout{config_.feature_dropout, dropout.seed ^ FEATURE_DROPOUT_STREAM}, dropout};
        float* const gradients = gradients_.reserve(rows * num_classes);
        activate(dense_array(touched_.read(table_.floats())), first, [&](long row) {
            std::vector<float> logits(num_classes);
            classify(row, logits.data());
            losses[row] = loss_(logits.data(), batch, row, length, gradients + row * num_classes);
        });
    }

    void train_backward(int32_t* const* gradients, const int32_t* exponents, double bound_unit, float* bounds) override {
        for (Scratch& scratch : scratch_) scratch.begin_gradient(config_.blocks, width_, exponents, bound_unit);
        terms_.reserve(starts_[0][rows_] * width_);
        embedding_gradient_.reserve((starts_[0][rows_] + MARGIN) * width_);
#pragma omp parallel num_threads(threads_)
        {
            TileRegisters tiles;
            Scratch& scratch = scratch_[omp_get_thread_num()];
#pragma omp for schedule(dynamic)
            for (size_t i = 0; i < chunks_.size(); ++i) backward(chunks_[i], scratch);
            reduce_gradients(gradients + 1);
            embedding_terms(scratch.grad_scales[0]);
        }
        last_layer_gradient(gradients + last_layer());
        rows_gradient();
        if (!touched_.is_attached()) touched_.scatter(gradients[0]);
        write_bounds(scratch_, num_trained(), bounds);
    }

  private:
    struct Convolution {
        Buffer<T> forward, backward;
        Buffer<float> bias;
    };
    struct Block {
        Convolution convolutions[2];
        Buffer<T> in, hidden;    // at the block's level
        Buffer<uint8_t> from;    // of its pool
    };
    // Memory of one thread.
    struct Scratch {
        Buffer<T> rows[3], transposed, packed, values;
        std::vector<Tile> tiles;  // of the chunk's documents
        std::vector<Buffer<int32_t>> total, bias;
        std::vector<FixedPointScale> grad_scales;  // of each trained parameter

        void begin_gradient(long blocks, long width, const int32_t* exponents, double bound_unit) {
            total.resize(2 * blocks);
            bias.resize(2 * blocks);
            for (long i = 0; i < 2 * blocks; ++i) {
                std::memset(total[i].reserve(CONV_KERNEL_SIZE * width * width), 0, CONV_KERNEL_SIZE * width * width * sizeof(int32_t));
                std::memset(bias[i].reserve(width), 0, width * sizeof(int32_t));
            }
            grad_scales.resize(4 * blocks + 3);
            for (size_t i = 0; i < grad_scales.size(); ++i) grad_scales[i].start(exponents[i], bound_unit);
        }
    };
    struct Chunk {
        long first, last;  // documents
    };

    const ConvBranchConfig config_;
    const int threads_;
    std::vector<Scratch> scratch_;
    Loss loss_;
    const long width_;
    TouchedRows touched_;
    std::vector<Block> blocks_;
    CompressedArray table_{};
    const float *out_ = nullptr, *out_bias_ = nullptr;

    // Of the batch.
    long rows_ = 0;
    std::vector<std::vector<uint8_t>> texts_;
    std::vector<long> lengths_[LEVELS], starts_[LEVELS];  // positions of each document, and its first row
    std::vector<Chunk> chunks_;
    Buffer<uint32_t> buckets_;         // [rows of level 0][longest]; in training, their places
    Buffer<T> last_, embedding_gradient_;   // output of the last block; gradient of the embedding
    Buffer<float> features_, gradients_;
    Buffer<int32_t> terms_;            // what each position adds to the gradient of each of its rows
    Buffer<int32_t> best_;             // row of each feature's maximum
    struct {
        Dropout features{0, 0}, embedding{0, 0};
    } dropouts_;

    static long level(long block) { return std::min(block, LEVELS - 1); }
    static bool pools(long block) { return block + 1 < LEVELS; }
    long last_level() const { return level(config_.blocks); }
    long last_layer() const { return 1 + 4 * config_.blocks; }  // its place among the trained parameters

    // Lays out the rows of a batch, divides its documents into chunks, and hashes its n-grams.
    void prepare(const uint8_t* codes, long stride, long rows) {
        rows_ = rows;
        texts_.resize(rows);
#pragma omp parallel for num_threads(team_size(threads_, rows))
        for (long row = 0; row < rows; ++row)
            add_boundary_symbols(codes + row * stride, config_.embedding.length, config_.embedding.alphabet_size, texts_[row]);
        for (long l = 0; l < LEVELS; ++l) {
            lengths_[l].resize(rows);
            starts_[l].resize(rows + 1);
            starts_[l][0] = MARGIN;
            for (long row = 0; row < rows; ++row) {
                long& length = lengths_[l][row];
                if (l) {
                    length = (lengths_[l - 1][row] + 1) / 2;
                } else {
                    length = (long(texts_[row].size()) + config_.embedding.stride - 1) / config_.embedding.stride;
                }
                starts_[l][row + 1] = starts_[l][row] + length + GAP;
            }
        }
        constexpr long ROWS_AT_A_TIME = 448;
        chunks_.clear();
        for (long row = 0; row < rows; ++row) {
            if (row % config_.group_size == 0 || starts_[0][row + 1] - starts_[0][chunks_.back().first] > ROWS_AT_A_TIME)
                chunks_.push_back({row, row});
            chunks_.back().last = row + 1;
        }
        const auto all = [&](long l) { return (starts_[l][rows] + MARGIN) * width_; };
        for (long i = 0; i < config_.blocks; ++i) {
            blocks_[i].in.reserve(all(level(i)));
            blocks_[i].hidden.reserve(all(level(i)));
            if (pools(i)) blocks_[i].from.reserve(all(level(i + 1)));
        }
        last_.reserve(all(last_level()));
        features_.reserve(rows * 2 * width_);
        best_.reserve(rows * width_);
        long longest = 0;
        for (const Chunk& chunk : chunks_) longest = std::max(longest, starts_[0][chunk.last] - starts_[0][chunk.first]);
        for (Scratch& scratch : scratch_) {
            for (auto& buffer : scratch.rows) buffer.reserve((longest + 2 * MARGIN) * width_);
            if (USES_WINOGRAD<T>) {
                scratch.values.reserve(2 * WINOGRAD_POINTS * (TILES_AT_ONCE + longest / TILE_ROWS + config_.group_size) * width_);
            } else {
                scratch.transposed.reserve(SIDE + width_ * transposed_depth<T>(longest));
                scratch.packed.reserve(BLOCK * (transposed_depth<T>(longest) + SHIFTS));
            }
        }
        // The margin after the last document holds rows of an earlier batch.
        for (long i = 0; i < config_.blocks; ++i)
            for (Buffer<T>* buffer : {&blocks_[i].in, &blocks_[i].hidden}) clear(buffer->get(), starts_[level(i)][rows], MARGIN);
        buckets_.reserve(starts_[0][rows] * config_.embedding.ngrams());
        std::fill_n(buckets_.get(), starts_[0][rows] * config_.embedding.ngrams(), NO_ROW);
#pragma omp parallel for num_threads(team_size(threads_, rows))
        for (long row = 0; row < rows; ++row)
            hash_positions(texts_[row], config_.embedding, buckets_.get() + starts_[0][row] * config_.embedding.ngrams());
    }

    // Collects the rows of the table that the batch needs, and replaces them by their places.
    void touch() {
        uint32_t *const begin = buckets_.get(), *const end = begin + starts_[0][rows_] * config_.embedding.ngrams();
        RowIndex& index = touched_.index();
        std::fill_n(index.words, index.size, 0);
        for (const uint32_t* row = begin; row < end; ++row)
            if (*row != NO_ROW) index.words[*row / WORD] |= uint64_t{1} << (*row % WORD);
        touched_.list();
#pragma omp parallel for num_threads(threads_)
        for (uint32_t* row = begin; row < end; ++row)
            if (*row != NO_ROW) *row = index.place(*row);
    }

    void clear(T* rows, long first, long count) const {
        std::memset(static_cast<void*>(rows + first * width_), 0, count * width_ * sizeof(T));
    }

    // Clears the gaps of a chunk's documents. rows: row `origin` of the level is the first.
    void clear_gaps(T* rows, long origin, long l, const Chunk& chunk) const {
        for (long row = chunk.first; row < chunk.last; ++row)
            clear(rows, starts_[l][row] + lengths_[l][row] - origin, GAP);
    }

    // Computes the features of all documents, and calls finish(row) for each.
    template <class Finish> void activate(const CompressedArray& table, uint64_t first_row, Finish finish) {
#pragma omp parallel num_threads(team_size(threads_, rows_))
        {
            TileRegisters tiles;
            Scratch& scratch = scratch_[omp_get_thread_num()];
#pragma omp for schedule(dynamic)
            for (size_t i = 0; i < chunks_.size(); ++i) {
                const Chunk& chunk = chunks_[i];
                forward(chunk, table, first_row, scratch);
                for (long row = chunk.first; row < chunk.last; ++row) {
                    summarise(row, first_row);
                    finish(row);
                }
            }
        }
    }

    void forward(const Chunk& chunk, const CompressedArray& table, uint64_t first_row, Scratch& scratch) {
        if (table.stored_rows.words) place(chunk, table.stored_rows);
        visit_rows(table, config_.embedding.width, [&](const auto& reader) { look(chunk, reader, first_row); });
        for (long i = 0; i < config_.blocks; ++i) {
            Block& block = blocks_[i];
            const long l = level(i), start = starts_[l][chunk.first];
            const long rows = starts_[l][chunk.last] - GAP - start;
            if (rows <= 0) break;
            // Another thread writes the gap before, which may hold rows of an earlier batch until then.
            clear(block.in.get(), start - GAP, GAP);
            clear(block.hidden.get(), start - GAP, GAP);
            const T* const in = block.in.get() + start * width_;
            T* const hidden = block.hidden.get() + start * width_;
            list_tiles(chunk, l, scratch);
            const float* const bias0 = block.convolutions[0].bias.get();
            convolve_chunk(in, rows, block.convolutions[0].forward, scratch, [&](long at, long channel, FloatVec sums) {
                store(hidden + at, relu(sums + load(bias0 + channel)));
            });
            clear_gaps(block.hidden.get(), 0, l, chunk);
            T* const out = pools(i) ? scratch.rows[0].get() + MARGIN * width_ : next_in(i) + start * width_;
            const float* const bias1 = block.convolutions[1].bias.get();
            convolve_chunk(hidden, rows, block.convolutions[1].forward, scratch, [&](long at, long channel, FloatVec sums) {
                store(out + at, relu(sums + load(bias1 + channel) + load(in + at)));
            });
            if (pools(i)) {
                clear_gaps(out, start, l, chunk);
                for (long row = chunk.first; row < chunk.last; ++row)
                    pool_two(out + (starts_[l][row] - start) * width_, lengths_[l + 1][row],
                             next_in(i) + starts_[l + 1][row] * width_, block.from.get() + starts_[l + 1][row] * width_);
            }
            clear_gaps(next_in(i), 0, level(i + 1), chunk);
        }
    }

    T* next_in(long block) { return block + 1 < config_.blocks ? blocks_[block + 1].in.get() : last_.get(); }

    // Replaces the rows of a chunk's n-grams by their places among those kept.
    void place(const Chunk& chunk, const RowIndex& kept) {
        uint32_t* const end = buckets_.get() + starts_[0][chunk.last] * config_.embedding.ngrams();
        for (uint32_t* row = buckets_.get() + starts_[0][chunk.first] * config_.embedding.ngrams(); row < end; ++row)
            if (*row != NO_ROW) *row = kept.has(*row) ? kept.place(*row) : NO_ROW;
    }

    // Sums the rows of the n-grams at each position, with dropout and ReLU.
    template <class Reader> void look(const Chunk& chunk, const Reader& table, uint64_t first_row) {
        const long width = config_.embedding.width, ngrams = config_.embedding.ngrams();
        const Dropout dropout = dropouts_.embedding;
        T* const out = blocks_[0].in.get();
        for (long row = chunk.first; row < chunk.last; ++row) {
            for (long position = 0; position < lengths_[0][row]; ++position) {
                const long here = starts_[0][row] + position;
                const uint32_t* const buckets = buckets_.get() + here * ngrams;
                for (long n = 0; n < ngrams; ++n)
                    if (buckets[AHEAD * ngrams + n] != NO_ROW) table.prefetch(buckets[AHEAD * ngrams + n]);
                const uint64_t index = ((first_row + row) * config_.embedding.positions() + position) * width;
                for (long channel = 0; channel < width_; channel += BLOCK) {
                    FloatVec sums[BLOCK / LANES] = {};
                    const auto add_up = [&](auto load) {
                        for (long n = 0; n < ngrams; ++n) {
                            if (buckets[n] == NO_ROW) continue;
                            for (long c = 0; c < BLOCK; c += LANES) sums[c / LANES] += load(buckets[n], channel + c);
                        }
                    };
                    if (channel + BLOCK <= width) add_up([&](uint32_t row, long at) { return table.load_all(row, at); });
                    else add_up([&](uint32_t row, long at) { return table.load(row, at); });
                    if (dropout.probability > 0) drop(dropout, index + channel, sums);
                    for (long c = 0; c < BLOCK; c += LANES)
                        store(out + here * width_ + channel + c, relu(sums[c / LANES]));
                }
            }
            clear(out, starts_[0][row] + lengths_[0][row], GAP);
        }
    }

    // Applies dropout to the 32 units from `first` on.
    static void drop(const Dropout& dropout, uint64_t first, FloatVec* units) {
        alignas(64) uint64_t hashes[BLOCK / Dropout::UNITS_PER_HASH + 1];
        for (uint64_t i = 0; i < BLOCK / Dropout::UNITS_PER_HASH + 1; ++i) hashes[i] = dropout.hash(first / Dropout::UNITS_PER_HASH + i);
        const uint16_t* const bits = reinterpret_cast<uint16_t*>(hashes) + first % Dropout::UNITS_PER_HASH;
        for (long c = 0; c < BLOCK; c += LANES) {
            const IntVec kept = __builtin_convertvector(load_unaligned<U16Vec>(bits + c), IntVec) >= dropout.threshold();
            units[c / LANES] = select_or_zero(kept, units[c / LANES] * dropout.scale());
        }
    }

    // Max pool of 2 of one document: in, followed by a row of zeros, after ReLU → out [pooled][width].
    void pool_two(const T* in, long pooled, T* out, uint8_t* from) const {
        for (long p = 0; p < pooled; ++p)
            for (long c = 0; c < width_; c += LANES) {
                const FloatVec first = load(in + 2 * p * width_ + c), second = load(in + (2 * p + 1) * width_ + c);
                const IntVec more = second > first;
                const FloatVec best = more ? second : first;
                store(out + p * width_ + c, best);
                store(from + p * width_ + c, best > 0 ? (more ? IntVec{} + 1 : IntVec{}) : IntVec{} + NO_MAXIMUM);
            }
    }

    // Writes the features of a document: the maximum and the mean of each channel, with dropout.
    void summarise(long row, uint64_t first_row) {
        const long l = last_level(), length = lengths_[l][row];
        const T* const in = last_.get() + starts_[l][row] * width_;
        float *const most = features_.get() + row * 2 * width_, *const mean = most + width_;
        int32_t* const best = best_.get() + row * width_;
        std::fill_n(most, 2 * width_, 0.0f);
        std::fill_n(best, width_, -1);
        for (long p = 0; p < length; ++p)
            for (long c = 0; c < width_; c += LANES) {
                const FloatVec value = load(in + p * width_ + c);
                const FloatVec before = load(most + c);
                IntVec at;
                std::memcpy(&at, best + c, sizeof at);
                const IntVec more = value > before;
                at = more ? IntVec{} + int32_t(p) : at;
                std::memcpy(best + c, &at, sizeof at);
                store(most + c, more ? value : before);
                store(mean + c, load(mean + c) + value);
            }
        const Dropout dropout = dropouts_.features;
        const float scale = dropout.scale();
        for (long c = 0; c < width_; ++c) mean[c] /= float(std::max(1L, length));
        if (dropout.probability > 0)
            for (long c = 0; c < width_; ++c)
                for (int i : {0, 1}) {
                    const uint64_t index = ((first_row + row) * 2 + i) * config_.embedding.width + c;
                    float& value = most[i * width_ + c];
                    value = dropout.retains(index) ? value * scale : 0.0f;
                    if (value == 0.0f && i == 0) best[c] = -1;
                }
    }

    void classify(long row, float* logits) const {
        const long width = config_.embedding.width;
        const float* const features = features_.get() + row * 2 * width_;
        for (long n = 0; n < config_.num_classes; ++n) {
            FloatVec sums[BLOCK / LANES] = {};  // as many numbers in every build, so that all add in the same order
            for (int i : {0, 1})
                for (long c = 0; c < width; c += LANES)
                    sums[c % BLOCK / LANES] +=
                        load_partial(out_ + (2 * n + i) * width + c, width - c) * load(features + i * width_ + c);
            float logit = out_bias_[n];
            for (const FloatVec& part : sums)
                for (long v = 0; v < LANES; ++v) logit += part[v];
            logits[n] = logit;
        }
    }

    void backward(const Chunk& chunk, Scratch& scratch) {
        T *gradient = scratch.rows[0].get() + MARGIN * width_, *destination = scratch.rows[1].get() + MARGIN * width_;
        T* const spare = scratch.rows[2].get() + MARGIN * width_;
        for (T* rows : {gradient, destination, spare}) clear(rows, -MARGIN, MARGIN);
        const long top = last_level(), top_start = starts_[top][chunk.first];
        if (starts_[top][chunk.last] - GAP - top_start <= 0) return;
        for (long row = chunk.first; row < chunk.last; ++row)
            spread(row, gradient + (starts_[top][row] - top_start) * width_);
        for (long i = config_.blocks - 1; i >= 0; --i) {
            Block& block = blocks_[i];
            const long l = level(i), start = starts_[l][chunk.first], rows = starts_[l][chunk.last] - GAP - start;
            if (pools(i)) {
                const long above = starts_[l + 1][chunk.first];
                for (long row = chunk.first; row < chunk.last; ++row)
                    unpool_two(gradient + (starts_[l + 1][row] - above) * width_,
                               block.from.get() + starts_[l + 1][row] * width_, lengths_[l + 1][row],
                               destination + (starts_[l][row] - start) * width_);
                std::swap(gradient, destination);
            } else {
                const T* const out = next_in(i) + start * width_;
                for (long at = 0; at < rows * width_; at += LANES)
                    store(gradient + at, select_or_zero(load(out + at) > 0, load(gradient + at)));
            }
            clear_gaps(gradient, start, l, chunk);
            const T* const hidden = block.hidden.get() + start * width_;
            const T* const in = block.in.get() + start * width_;
            list_tiles(chunk, l, scratch);
            weight_gradient(hidden, gradient, rows, 2 * i + 1, scratch);
            convolve_chunk(gradient, rows, block.convolutions[1].backward, scratch, [&](long at, long, FloatVec sums) {
                store(spare + at, select_or_zero(load(hidden + at) > 0, sums));
            });
            clear_gaps(spare, start, l, chunk);
            weight_gradient(in, spare, rows, 2 * i, scratch);
            T* const out = i ? destination : embedding_gradient_.get() + start * width_;
            const T* const residual = gradient;
            convolve_chunk(spare, rows, block.convolutions[0].backward, scratch, [&](long at, long, FloatVec sums) {
                store(out + at, sums + load(residual + at));
            });
            std::swap(gradient, destination);
        }
    }

    void list_tiles(const Chunk& chunk, long l, Scratch& scratch) const {
        scratch.tiles.clear();
        for (long row = chunk.first; row < chunk.last; ++row)
            add_tiles(starts_[l][row] - starts_[l][chunk.first], lengths_[l][row], scratch.tiles);
    }

    // Calls finish(at, channel, sums) for each vector of a convolution of the rows of a chunk, in [rows][width].
    template <class Finish>
    void convolve_chunk(const T* in, long rows, const Buffer<T>& weights, Scratch& scratch, Finish finish) const {
        if constexpr (USES_WINOGRAD<T>) {
            winograd_convolve(in - GAP * width_, scratch.tiles, width_, weights.get(), scratch.values.get(), finish);
        } else {
            convolve(in - GAP * width_, rows, width_, CONV_KERNEL_SIZE, weights.get(), finish);
        }
    }

    // Adds terms to the gradients of the weights and the bias of a convolution.
    void weight_gradient(const T* in, const T* gradient, long rows, long convolution, Scratch& scratch) const {
        int32_t *const total = scratch.total[convolution].get(), *const bias = scratch.bias[convolution].get();
        FixedPointScale* const grad_scales = scratch.grad_scales.data() + 1 + 2 * convolution;
        if constexpr (USES_WINOGRAD<T>) {
            winograd_weight_gradient(in - GAP * width_, gradient, scratch.tiles, width_, total, grad_scales[0], scratch.values.get());
            add_bias_gradient(gradient, rows, width_, bias, grad_scales[1]);
        } else {
            convolution_weight_gradient(in - GAP * width_, gradient, rows, width_, CONV_KERNEL_SIZE, total, bias, grad_scales,
                                        scratch.transposed.get(), scratch.packed.get());
        }
    }

    // Writes the gradient of the last block's output from that of a document's features.
    void spread(long row, T* out) {
        const long l = last_level(), length = lengths_[l][row], width = config_.embedding.width;
        std::vector<float> most(width_, 0.0f), mean(width_, 0.0f);
        const float scale = dropouts_.features.scale();
        const float* const features = features_.get() + row * 2 * width_;
        const float* const gradient = gradients_.get() + row * config_.num_classes;
        for (long n = 0; n < config_.num_classes; ++n)
            for (long c = 0; c < width; ++c) {
                most[c] += gradient[n] * out_[n * 2 * width + c];
                mean[c] += gradient[n] * out_[n * 2 * width + width + c];
            }
        for (long c = 0; c < width_; ++c) {
            most[c] *= scale;
            mean[c] *= features[width_ + c] != 0 ? scale / float(std::max(1L, length)) : 0.0f;
        }
        for (long p = 0; p < length; ++p)
            for (long c = 0; c < width_; c += LANES) {
                IntVec at;
                std::memcpy(&at, best_.get() + row * width_ + c, sizeof at);
                store(out + p * width_ + c, load(mean.data() + c) + select_or_zero(at == int32_t(p), load(most.data() + c)));
            }
    }

    void unpool_two(const T* gradient, const uint8_t* from, long pooled, T* out) const {
        for (long p = 0; p < pooled; ++p)
            for (long c = 0; c < width_; c += LANES) {
                const FloatVec value = load(gradient + p * width_ + c);
                const IntVec at = load(from + p * width_ + c);
                for (int s : {0, 1}) store(out + (2 * p + s) * width_ + c, select_or_zero(at == s, value));
            }
    }

    // Sums the gradients of all threads into Gluon's layout.
    void reduce_gradients(int32_t* const* gradients) {
        const long width = config_.embedding.width;
#pragma omp for schedule(static)
        for (long out = 0; out < width; ++out)
            for (long i = 0; i < 2 * config_.blocks; ++i) {
                int32_t total = 0;
                for (const Scratch& scratch : scratch_) wrapping_add(total, scratch.bias[i].get()[out]);
                gradients[2 * i + 1][out] = total;
                reduce_channel(scratch_, [i](const Scratch& scratch) { return scratch.total[i].get(); }, out, width, CONV_KERNEL_SIZE, gradients[2 * i]);
            }
    }

    // The gradients of the last layer's weights and bias: a term for each document.
    void last_layer_gradient(int32_t* const* gradients) {
        const long width = config_.embedding.width, num_classes = config_.num_classes;
        FixedPointScale *const weights = scratch_[0].grad_scales.data() + last_layer(), *const bias = weights + 1;
        std::memset(gradients[0], 0, num_classes * 2 * width * sizeof(int32_t));
        std::memset(gradients[1], 0, num_classes * sizeof(int32_t));
        for (long row = 0; row < rows_; ++row) {
            const float* const scratch = gradients_.get() + row * num_classes;
            for (long n = 0; n < num_classes; ++n)
                for (int i : {0, 1}) {
                    const float* const features = features_.get() + (row * 2 + i) * width_;
                    int32_t* const to = gradients[0] + (n * 2 + i) * width;
                    for (long c = 0; c < width; c += LANES)
                        wrapping_add(to + c, weights->quantize(scratch[n] * load(features + c)), width - c);
                }
            bias->add(gradients[1], scratch, num_classes);
            weights->end_term();
            bias->end_term();
        }
    }

    // Converts the gradient of each position, and bounds what a document may add to a row, which each of a position's
    // characters may touch.
    void embedding_terms(FixedPointScale& grad_scale) {
        const float scale = dropouts_.embedding.scale();
        const T *const gradients = embedding_gradient_.get(), *const embedding = blocks_[0].in.get();
        int32_t* const terms = terms_.get();
        std::vector<float> sizes(width_);
#pragma omp for
        for (long row = 0; row < rows_; ++row) {
            std::fill_n(sizes.begin(), width_, 0.0f);
            for (long here = starts_[0][row]; here < starts_[0][row] + lengths_[0][row]; ++here)
                for (long c = 0; c < width_; c += LANES) {
                    const long at = here * width_ + c;
                    const FloatVec value = select_or_zero(load(embedding + at) > 0, load(gradients + at)) * (scale * grad_scale.inverse_scale());
                    const IntVec term = round_to_int(value);
                    std::memcpy(terms + at, &term, sizeof term);
                    const FloatVec size = value < 0 ? -value : value;
                    store(sizes.data() + c, load(sizes.data() + c) + size + select_or_zero(size > 0.25f, FloatVec{} + 1));
                }
            grad_scale.end_term(max_abs(sizes.data(), width_) * float(config_.embedding.stride));
        }
    }

    // Sums the terms of the positions of each touched row. Each thread owns a range of rows, and first lists its own n-grams
    // of a document, because a branch at each would be mispredicted.
    void rows_gradient() {
        struct Term {
            uint32_t place, position;
        };
        const long ngrams = config_.embedding.ngrams(), touched = touched_.count();
        int32_t* __restrict const values = touched_.sums();
        const int32_t* const terms = terms_.get();
        dispatch_width(config_.embedding.width, [&](auto width) {
#pragma omp parallel for num_threads(threads_)
            for (int part = 0; part < threads_; ++part) {
                const long first = touched * part / threads_, last = touched * (part + 1) / threads_;
                std::fill(values + first * width, values + last * width, 0);
                std::vector<Term> own(config_.embedding.positions() * ngrams + 1);
                for (long row = 0; row < rows_; ++row) {
                    Term* end = own.data();
                    for (long here = starts_[0][row]; here < starts_[0][row] + lengths_[0][row]; ++here)
                        for (long n = 0; n < ngrams; ++n) {
                            const uint32_t place = buckets_.get()[here * ngrams + n];
                            *end = {place, uint32_t(here)};
                            end += place - uint32_t(first) < uint32_t(last - first);  // NO_ROW is larger than all
                        }
                    for (const Term* term = own.data(); term < end; ++term) {
                        if (term + SOON < end) prefetch_row(values + term[SOON].place * long(width), width);
                        int32_t* const to = values + term->place * long(width);
                        const int32_t* const from = terms + term->position * width_;
                        for (long c = 0; c < width; c += LANES) wrapping_add(to + c, load_unaligned<IntVec>(from + c), width - c);
                    }
                }
            }
        });
    }
};
