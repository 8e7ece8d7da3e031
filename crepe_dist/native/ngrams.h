// The n-gram branch on a CPU. It is the network `ngrams`, and the first branch of the network `crepe`.
//
// The n-grams and the words of a document are hashed to buckets, which are rows of a table. The logits are the sum,
// over the four groups of buckets, of a scaled mean of the rows of the group. crepe_dist/networks/ngrams/hashing.py
// describes the hash.
#pragma once

#include <omp.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "cache.h"
#include "engine.h"
#include "hashing.h"
#include "simd.h"
#include "memory.h"
#include "row_set.h"
#include "touched_rows.h"
#include "fixed_point.h"

struct NGramConfig {
    long alphabet_size, length, num_classes, maxn, buckets, num_word_char_ids, word_buckets;

    // Returns the number of buckets of n-grams. These buckets precede the buckets of words.
    long ngrams() const { return buckets - word_buckets; }

    // Returns the array size that the buckets of a document require.
    long max_buckets() const { return std::min(buckets, (length + 2) * (maxn + 1)) + SPARE; }
};

// Finder of the distinct buckets of documents. crepe_dist/networks/ngrams/hashing.py has an equivalent function in
// Python.
class NGramFinder {
  public:
    explicit NGramFinder(long buckets) : bitmap_(buckets) {}

    // Finds the buckets of all n-grams of 1 to maxn known characters, and of all words and pairs of words. Calls
    // visit(number, bits) for each non-zero word of the bitmap of these buckets, in ascending order.
    template <class Visit> void find_bits(const uint8_t* codes, const NGramConfig& config, Visit visit) {
        add_boundary_symbols(codes, config.length, config.alphabet_size, text_);
        const long length = long(text_.size());
        if (!length) return;
        uint64_t* const keys = keys_.reserve(length);
        uint32_t* const rows = rows_.reserve(length);
        std::fill_n(keys, length, 0);
        // The row of an n-gram with an unknown character is replaced by a row that the text has in any case: the row of
        // the first symbol, or of the shorter n-gram at the same position.
        std::fill_n(rows, length, hash_to_row(extend_key(0, text_[0]), config.ngrams()));
        for (long n = 0; n < std::min(length, config.maxn); ++n) {
            extend_ngrams(keys, text_.data() + n, length - n, config.ngrams(), rows);
            bitmap_.add(rows, length - n);
        }
        uint32_t* end = rows;
        if (config.word_buckets)
            visit_words(text_, config.num_word_char_ids, [&](uint64_t key) {
                *end++ = uint32_t(config.ngrams() + hash_to_row(key, config.word_buckets));
            });
        bitmap_.add(rows, end - rows);
        bitmap_.drain(visit);
    }

    // Fills a list with the buckets of a document, in ascending order.
    void find(const uint8_t* codes, const NGramConfig& config, std::vector<uint32_t>& out) {
        uint32_t* const begin = scratch_.reserve(config.max_buckets());
        uint32_t* end = begin;
        find_bits(codes, config, [&](uint32_t number, uint64_t bits) { end = write_bits(bits, number * WORD, end); });
        out.assign(begin, end);
    }

    // Fills the four lists of the buckets of a document: ordinary n-grams, significant n-grams, ordinary words,
    // significant words. significant: bitmap of the significant buckets.
    void find(const uint8_t* codes, const NGramConfig& config, const uint64_t* selected, BucketGroups& out) {
        uint32_t* const begin = scratch_.reserve(2 * config.max_buckets());
        uint32_t* const begin1 = begin + config.max_buckets();
        uint32_t *end = begin, *end1 = begin1;
        find_bits(codes, config, [&](uint32_t number, uint64_t bits) {
            const uint64_t in = bits & selected[number];
            if (bits & (bits - 1)) {
                end = write_bits(bits ^ in, number * WORD, end);
                end1 = write_bits(in, number * WORD, end1);
            } else {
                // Most words have one set bit. The bucket is written to both lists, but only its own list grows. A
                // branch on the list would be mispredicted.
                const int bit = __builtin_ctzll(bits);
                const long is_in = long(in >> bit);
                *end = *end1 = number * WORD + uint32_t(bit);
                end += 1 - is_in;
                end1 += is_in;
            }
        });
        for (const auto& [first, last, group] : {std::tuple(begin, end, 0), std::tuple(begin1, end1, 1)}) {
            uint32_t* const words = std::lower_bound(first, last, uint32_t(config.ngrams()));
            out[group].assign(first, words);
            out[2 + group].assign(words, last);
        }
    }

  private:
    RowSet bitmap_;
    std::vector<uint8_t> text_;
    Buffer<uint64_t> keys_;  // Key of the n-gram that starts at each character.
    Buffer<uint32_t> rows_, scratch_;
};

// Returns the part of an ascending list with first <= element < last.
inline std::pair<const uint32_t*, const uint32_t*> sublist(const std::vector<uint32_t>& list, long first, long last) {
    const uint32_t* const end = list.data() + list.size();
    const uint32_t* const begin = std::lower_bound(list.data(), end, uint32_t(first));
    return {begin, std::lower_bound(begin, end, uint32_t(last))};
}

// Counts the documents of each class that contain each bucket, and adds the numbers to counts [buckets][num_classes].
// Each thread counts a range of the buckets, so that no two threads write to the same number.
inline void count_ngrams(const uint8_t* codes, long stride, long rows, NGramConfig config, const int32_t* labels,
                         int32_t* counts, int threads) {
    constexpr long MAX_DOCUMENTS_AT_ONCE = 256;
    std::vector<NGramFinder> finders;
    for (int i = 0; i < threads; ++i) finders.emplace_back(config.buckets);
    std::vector<std::vector<uint32_t>> lists(MAX_DOCUMENTS_AT_ONCE);
    for (long first = 0; first < rows; first += MAX_DOCUMENTS_AT_ONCE) {
        const long count = std::min(MAX_DOCUMENTS_AT_ONCE, rows - first);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (long row = 0; row < count; ++row) {
            lists[row].clear();
            finders[omp_get_thread_num()].find(codes + (first + row) * stride, config, lists[row]);
        }
#pragma omp parallel for num_threads(threads)
        for (int part = 0; part < threads; ++part)
            for (long row = 0; row < count; ++row) {
                const auto [begin, end] = sublist(lists[row], config.buckets * part / threads,
                                                  config.buckets * (part + 1) / threads);
                for (auto bucket = begin; bucket < end; ++bucket)
                    ++counts[long(*bucket) * config.num_classes + labels[first + row]];
            }
    }
}

class NGramBranch final : public Engine {
  public:
    NGramBranch(NGramConfig config, int threads)
        : config_(config), threads_(threads), touched_({config.buckets, config.num_classes}, threads) {
        for (int i = 0; i < threads; ++i) finders_.emplace_back(config.buckets);
    }

    // parameters: weights [buckets][num_classes], bias [num_classes], significant [buckets] (0 or 1). If
    // `significant` is compressed, the bitmap of its stored rows is used directly.
    void set_parameters(const CompressedArray* parameters, bool buffers_changed) override {
        weights_ = parameters[0];
        bias_ = parameters[1].floats();
        significant_ = parameters[2].stored_rows.words;
        if (significant_) return;
        if (buffers_changed) build_significant_bitmap(parameters[2].floats());
        significant_ = own_significant_.data();
    }

    void set_loss(Loss loss) override { loss_ = std::move(loss); }

    void attach(int, ShardedEmbedding* embedding, size_t cache_bytes) override {
        touched_.attach(embedding);
        cache_bytes_ = cache_bytes;
        cache_ = std::make_unique<BucketCache>(cache_bytes);
    }

    long num_trained() const override { return 2; }

    void forward(const uint8_t* codes, long stride, long rows, float* logits) override {
        const long num_classes = config_.num_classes;
#pragma omp parallel for num_threads(team_size(threads_, rows)) schedule(dynamic)
        for (long row = 0; row < rows; ++row) {
            BucketGroups groups;
            float factors[NUM_BUCKET_GROUPS];
            find_groups(codes + row * stride, groups, factors);
            if (weights_.stored_rows.words)
                for (auto& group : groups) {
                    uint32_t* const begin = group.data();
                    group.resize(weights_.stored_rows.to_places(begin, begin + group.size(), begin) - begin);
                }
            compute_logits(groups, factors, weights_, logits + row * num_classes);
        }
    }

    void find_rows(const uint8_t* batch, long rows) override {
        const long stride = loss_.stride(config_.length);
        batch_groups_.resize(rows);
        factors_.resize(NUM_BUCKET_GROUPS * rows);
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
        for (long row = 0; row < rows; ++row)
            find_groups(batch + row * stride, batch_groups_[row], factors_.data() + NUM_BUCKET_GROUPS * row);
        touched_.list(rows, [&](long first, long last, uint64_t* bitmap) {
            for (long row = first; row < last; ++row)
                for (const auto& group : batch_groups_[row])
                    for (const uint32_t bucket : group) bitmap[bucket / WORD] |= uint64_t{1} << (bucket % WORD);
        });
    }

    void train_forward(const uint8_t* batch, long rows, Dropout, uint64_t, float* losses) override {
        const long num_classes = config_.num_classes;
        float* const gradients = gradients_.reserve(rows * num_classes);
        const CompressedArray weights = dense_array(touched_.read(weights_.floats()));
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
        for (long row = 0; row < rows; ++row) {
            for (auto& group : batch_groups_[row])
                for (uint32_t& bucket : group) bucket = touched_.index().place(bucket);
            std::vector<float> logits(num_classes);
            compute_logits(batch_groups_[row], factors_.data() + NUM_BUCKET_GROUPS * row, weights, logits.data());
            losses[row] = loss_(logits.data(), batch, row, config_.length, gradients + row * num_classes);
        }
    }

    void train_backward(int32_t* const* gradients, const int32_t* exponents, double bound_unit,
                        float* bounds) override {
        const long num_classes = config_.num_classes, rows = long(batch_groups_.size()), touched = touched_.count();
        const float* const logit_gradients = gradients_.get();
        int32_t* __restrict const values = touched_.sums();
        int32_t* const terms = terms_.reserve(NUM_BUCKET_GROUPS * rows * num_classes);
        FixedPointScale weight, bias;
        weight.start(exponents[0], bound_unit);
        bias.start(exponents[1], bound_unit);
        std::vector<float> term(num_classes);
        std::memset(gradients[1], 0, num_classes * sizeof(int32_t));
        for (long row = 0; row < rows; ++row) {
            std::memset(terms + NUM_BUCKET_GROUPS * row * num_classes, 0,
                        NUM_BUCKET_GROUPS * num_classes * sizeof(int32_t));
            for (int group = 0; group < NUM_BUCKET_GROUPS; ++group) {
                const float factor = factors_[NUM_BUCKET_GROUPS * row + group];
                for (long n = 0; n < num_classes; ++n) term[n] = factor * logit_gradients[row * num_classes + n];
                weight.add(terms + (NUM_BUCKET_GROUPS * row + group) * num_classes, term.data(), num_classes);
            }
            bias.add(gradients[1], logit_gradients + row * num_classes, num_classes);
            weight.end_term();
            bias.end_term();
        }
        bounds[0] = weight.sum_bound();
        bounds[1] = bias.sum_bound();
#pragma omp parallel for num_threads(threads_)
        for (int part = 0; part < threads_; ++part) {  // Each thread adds to a range of the touched rows.
            const long first = touched * part / threads_, last = touched * (part + 1) / threads_;
            std::fill(values + first * num_classes, values + last * num_classes, 0);
            dispatch_width(num_classes, [&](auto width) {
                for (long row = 0; row < rows; ++row)
                    for (int group = 0; group < NUM_BUCKET_GROUPS; ++group) {
                        const int32_t* const term = terms + (NUM_BUCKET_GROUPS * row + group) * width;
                        const auto [begin, end] = sublist(batch_groups_[row][group], first, last);
                        for (auto place = begin; place < end; ++place)
                            for (long n = 0; n < width; ++n) wrapping_add(values[*place * width + n], term[n]);
                    }
            });
        }
        if (!touched_.is_attached()) touched_.scatter(gradients[0]);
    }

  private:
    const NGramConfig config_;
    const int threads_;
    std::vector<NGramFinder> finders_;  // One finder per thread.
    std::vector<uint64_t> own_significant_;
    const uint64_t* significant_ = nullptr;  // Bitmap in the parameters, or own_significant_.
    Loss loss_;
    TouchedRows touched_;
    size_t cache_bytes_ = 0;
    std::unique_ptr<BucketCache> cache_ = std::make_unique<BucketCache>(0);
    // Parameters of the network: the arguments of the most recent call of set_parameters.
    CompressedArray weights_{};
    const float* bias_ = nullptr;

    // State of the current batch. train_forward replaces the buckets in batch_groups_ by their places among the touched
    // rows.
    std::vector<BucketGroups> batch_groups_;
    std::vector<float> factors_;  // Factor of the rows of each group, [rows][NUM_BUCKET_GROUPS].
    Buffer<float> gradients_;
    Buffer<int32_t> terms_;       // Gradient of each bucket of a group, [rows][NUM_BUCKET_GROUPS][num_classes].

    // Builds the bitmap of the significant buckets. If the bitmap has changed, the cached bucket groups are outdated.
    void build_significant_bitmap(const float* significant) {
        const std::vector<uint64_t> previous = std::move(own_significant_);
        own_significant_.resize(bitmap_words(config_.buckets));
#pragma omp parallel for num_threads(threads_)
        for (long word = 0; word < bitmap_words(config_.buckets); ++word)
            for (long bucket = word * WORD; bucket < std::min(config_.buckets, (word + 1) * WORD); ++bucket)
                own_significant_[word] |= uint64_t{significant[bucket] != 0} << (bucket % WORD);
        if (previous != own_significant_) cache_->clear(cache_bytes_);
    }

    // Finds the buckets of a document, and the factors of their groups. See NGRAM_SCALE in constants.py.
    void find_groups(const uint8_t* codes, BucketGroups& groups, float* factors) {
        long length = config_.length;
        while (length && codes[length - 1] >= config_.alphabet_size) --length;
        if (!cache_->get(codes, length, groups)) {
            finders_[omp_get_thread_num()].find(codes, config_, significant_, groups);
            cache_->put(codes, length, groups);
        }
        for (int group = 0; group < NUM_BUCKET_GROUPS; ++group) {
            const float number = float(std::max<size_t>(groups[group].size(), 1));
            factors[group] = std::min(NGRAM_SCALE, NGRAM_ROOT_SCALE * std::sqrt(number)) / number;
        }
    }

    // Computes the logits of a document from the rows of its buckets. The rows are added in ascending order of the
    // groups and of the buckets.
    void compute_logits(const BucketGroups& groups, const float* factors, const CompressedArray& weights,
                        float* logits) const {
        dispatch_width(config_.num_classes, [&](auto num_classes) {
            visit_rows(weights, num_classes, [&](const auto& table) {
                for (long first = 0; first < num_classes; first += LANES) {
                    const long count = std::min(LANES, num_classes - first);
                    FloatVec sum = load_partial(bias_ + first, count);
                    for (int group = 0; group < NUM_BUCKET_GROUPS; ++group)
                        for (const uint32_t row : groups[group])
                            sum = add_product(sum, factors[group], table.load(row, first), count < LANES);
                    std::memcpy(logits + first, &sum, count * sizeof(float));
                }
            });
        });
    }
};
