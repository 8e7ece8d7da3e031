// The n-gram network on a CPU: logits are means of the table rows that a document's n-grams hash to.
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

struct NGramShape {
    long alphabet, length, classes, longest, buckets, letters, words;

    long ngrams() const { return buckets - words; }  // buckets of n-grams, which come first

    // Room for the buckets of a document.
    long most() const { return std::min(buckets, (length + 2) * (longest + 1)) + SPARE; }
};

// Finds the distinct buckets of documents; equivalent to `look_up` in networks/ngrams/hashing.py.
class Finder {
  public:
    explicit Finder(long buckets) : found_(buckets) {}

    // Calls visit(number, bits) for the parts of the bitmap of the buckets of all n-grams of 1 to `longest` known
    // characters, and of all words, in ascending order.
    template <class Visit> void find_bits(const uint8_t* codes, const NGramShape& shape, Visit visit) {
        read_text(codes, shape.length, shape.alphabet, text_);
        const long length = long(text_.size());
        if (!length) return;
        uint64_t* const keys = keys_.need(length);
        uint32_t* const rows = rows_.need(length);
        std::fill_n(keys, length, 0);
        // Where an n-gram has an unknown character, a row that the text has anyway: its first symbol's, or a shorter
        // n-gram's.
        std::fill_n(rows, length, row_of(extended(0, text_[0]), shape.ngrams()));
        for (long n = 0; n < std::min(length, shape.longest); ++n) {
            extend_all(keys, text_.data() + n, length - n, shape.ngrams(), rows);
            found_.add(rows, length - n);
        }
        uint32_t* end = rows;
        if (shape.words)
            visit_words(text_, shape.letters,
                        [&](uint64_t key) { *end++ = uint32_t(shape.ngrams() + row_of(key, shape.words)); });
        found_.add(rows, end - rows);
        found_.drain(visit);
    }

    // Fills a list with the buckets, in ascending order.
    void find(const uint8_t* codes, const NGramShape& shape, std::vector<uint32_t>& out) {
        uint32_t* const begin = scratch_.need(shape.most());
        uint32_t* end = begin;
        find_bits(codes, shape, [&](uint32_t number, uint64_t bits) { end = write_bits(bits, number * WORD, end); });
        out.assign(begin, end);
    }

    // Fills the lists of the buckets of n-grams that are not in a bitmap, of those that are, and likewise of words.
    void find(const uint8_t* codes, const NGramShape& shape, const uint64_t* selected, Groups& out) {
        uint32_t *const begin = scratch_.need(2 * shape.most()), *const begin1 = begin + shape.most();
        uint32_t *end = begin, *end1 = begin1;
        find_bits(codes, shape, [&](uint32_t number, uint64_t bits) {
            const uint64_t in = bits & selected[number];
            if (bits & (bits - 1)) {
                end = write_bits(bits ^ in, number * WORD, end);
                end1 = write_bits(in, number * WORD, end1);
            } else {  // most have one bit, and a branch that depends on its list would be mispredicted
                const int bit = __builtin_ctzll(bits);
                const long is_in = long(in >> bit);
                *end = *end1 = number * WORD + uint32_t(bit);
                end += 1 - is_in;
                end1 += is_in;
            }
        });
        for (const auto& [first, last, group] : {std::tuple(begin, end, 0), std::tuple(begin1, end1, 1)}) {
            uint32_t* const words = std::lower_bound(first, last, uint32_t(shape.ngrams()));
            out[group].assign(first, words);
            out[2 + group].assign(words, last);
        }
    }

  private:
    RowSet found_;
    std::vector<uint8_t> text_;
    Buffer<uint64_t> keys_;  // of the n-gram that starts at each character
    Buffer<uint32_t> rows_, scratch_;
};

// The part of an ascending list with first <= element < last.
inline std::pair<const uint32_t*, const uint32_t*> between(const std::vector<uint32_t>& list, long first, long last) {
    const uint32_t* const end = list.data() + list.size();
    const uint32_t* const begin = std::lower_bound(list.data(), end, uint32_t(first));
    return {begin, std::lower_bound(begin, end, uint32_t(last))};
}

// Adds to counts [buckets][classes]: the number of documents of each class that contain a bucket.
inline void count_ngrams(
    const uint8_t* codes, long stride, long rows, NGramShape shape, const int32_t* labels, int32_t* counts, int threads
) {
    constexpr long AT_ONCE = 256;  // documents
    std::vector<Finder> finders;
    for (int i = 0; i < threads; ++i) finders.emplace_back(shape.buckets);
    std::vector<std::vector<uint32_t>> lists(AT_ONCE);
    for (long first = 0; first < rows; first += AT_ONCE) {
        const long count = std::min(AT_ONCE, rows - first);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (long row = 0; row < count; ++row) {
            lists[row].clear();
            finders[omp_get_thread_num()].find(codes + (first + row) * stride, shape, lists[row]);
        }
#pragma omp parallel for num_threads(threads)
        for (int part = 0; part < threads; ++part)  // each counts a range of buckets
            for (long row = 0; row < count; ++row) {
                const auto [begin, end] = between(lists[row], shape.buckets * part / threads,
                                                  shape.buckets * (part + 1) / threads);
                for (auto bucket = begin; bucket < end; ++bucket)
                    ++counts[long(*bucket) * shape.classes + labels[first + row]];
            }
    }
}

class NGrams final : public Engine {
  public:
    NGrams(NGramShape shape, int threads)
        : shape_(shape), threads_(threads), touched_({shape.buckets, shape.classes}, threads) {
        for (int i = 0; i < threads; ++i) finders_.emplace_back(shape.buckets);
    }

    // weights [buckets][classes], bias [classes], significant [buckets], 0 or 1
    void set(const Stored* parameters, bool anew) override {
        weights_ = parameters[0];
        bias_ = parameters[1].floats();
        significant_ = parameters[2].kept.words;
        if (significant_) return;
        if (anew) list_significant(parameters[2].floats());
        significant_ = own_significant_.data();
    }

    void objective(Objective objective) override { objective_ = std::move(objective); }

    void use(int, Table* table, size_t cache_bytes) override {
        touched_.use(table);
        cache_bytes_ = cache_bytes;
        cache_ = std::make_unique<BucketCache>(cache_bytes);
    }

    long trained() const override { return 2; }

    void forward(const uint8_t* codes, long stride, long rows, float* logits) override {
        const long classes = shape_.classes;
#pragma omp parallel for num_threads(team(threads_, rows)) schedule(dynamic)
        for (long row = 0; row < rows; ++row) {
            Groups groups;
            float factors[GROUPS];
            find(codes + row * stride, groups, factors);
            if (weights_.kept.words)
                for (auto& group : groups) {
                    uint32_t* const begin = group.data();
                    group.resize(weights_.kept.places(begin, begin + group.size(), begin) - begin);
                }
            add_up(groups, factors, weights_, logits + row * classes);
        }
    }

    void find_rows(const uint8_t* batch, long rows) override {
        const long stride = objective_.stride(shape_.length);
        found_.resize(rows);
        factors_.resize(GROUPS * rows);
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
        for (long row = 0; row < rows; ++row)
            find(batch + row * stride, found_[row], factors_.data() + GROUPS * row);
        join();
    }

    void train_forward(const uint8_t* batch, long rows, Dropout, uint64_t, float* losses) override {
        const long classes = shape_.classes;
        float* const gradients = gradients_.need(rows * classes);
        const Stored weights = dense(touched_.read(weights_.floats()));
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
        for (long row = 0; row < rows; ++row) {
            for (auto& group : found_[row])
                for (uint32_t& bucket : group) bucket = touched_.index().place(bucket);
            std::vector<float> logits(classes);
            add_up(found_[row], factors_.data() + GROUPS * row, weights, logits.data());
            losses[row] = objective_(logits.data(), batch, row, shape_.length, gradients + row * classes);
        }
    }

    void train_backward(int32_t* const* gradients, const int32_t* exponents, double unit, float* bounds) override {
        const long classes = shape_.classes, rows = long(found_.size()), touched = touched_.count();
        const float* const logit_gradients = gradients_.get();
        int32_t* __restrict const values = touched_.sums();
        int32_t* const terms = terms_.need(GROUPS * rows * classes);
        Quanta weight, bias;
        weight.begin(exponents[0], unit);
        bias.begin(exponents[1], unit);
        std::vector<float> term(classes);
        std::memset(gradients[1], 0, classes * sizeof(int32_t));
        for (long row = 0; row < rows; ++row) {
            std::memset(terms + GROUPS * row * classes, 0, GROUPS * classes * sizeof(int32_t));
            for (int group = 0; group < GROUPS; ++group) {
                const float factor = factors_[GROUPS * row + group];
                for (long n = 0; n < classes; ++n) term[n] = factor * logit_gradients[row * classes + n];
                weight.add(terms + (GROUPS * row + group) * classes, term.data(), classes);
            }
            bias.add(gradients[1], logit_gradients + row * classes, classes);
            weight.end_term();
            bias.end_term();
        }
        bounds[0] = weight.bound();
        bounds[1] = bias.bound();
#pragma omp parallel for num_threads(threads_)
        for (int part = 0; part < threads_; ++part) {  // each thread owns a range of the touched rows
            const long first = touched * part / threads_, last = touched * (part + 1) / threads_;
            std::fill(values + first * classes, values + last * classes, 0);
            with_width(classes, [&](auto width) {
                for (long row = 0; row < rows; ++row)
                    for (int group = 0; group < GROUPS; ++group) {
                        const int32_t* const term = terms + (GROUPS * row + group) * width;
                        const auto [begin, end] = between(found_[row][group], first, last);
                        for (auto place = begin; place < end; ++place)
                            for (long n = 0; n < width; ++n) add_whole(values[*place * width + n], term[n]);
                    }
            });
        }
        if (!touched_.has_table()) touched_.scatter(gradients[0]);
    }

  private:
    const NGramShape shape_;
    const int threads_;
    std::vector<Finder> finders_;  // one per thread
    std::vector<uint64_t> own_significant_;
    const uint64_t* significant_ = nullptr;  // bitmap, of the parameters or our own
    Objective objective_;
    TouchedRows touched_;
    size_t cache_bytes_ = 0;
    std::unique_ptr<BucketCache> cache_ = std::make_unique<BucketCache>(0);
    // From the last `set`.
    Stored weights_{};
    const float* bias_ = nullptr;

    // Of the batch. Forward replaces the buckets by their places among the touched rows.
    std::vector<Groups> found_;
    std::vector<float> factors_;  // [rows][GROUPS]: of the buckets of each group
    Buffer<float> gradients_;
    Buffer<int32_t> terms_;       // [rows][GROUPS][classes]: what a row adds to the gradient of each of its buckets

    // significant [buckets], 0 or 1
    void list_significant(const float* significant) {
        const std::vector<uint64_t> before = std::move(own_significant_);
        own_significant_.resize(words_of(shape_.buckets));
#pragma omp parallel for num_threads(threads_)
        for (long word = 0; word < words_of(shape_.buckets); ++word)
            for (long bucket = word * WORD; bucket < std::min(shape_.buckets, (word + 1) * WORD); ++bucket)
                own_significant_[word] |= uint64_t{significant[bucket] != 0} << (bucket % WORD);
        if (before != own_significant_) cache_->clear(cache_bytes_);
    }

    // Finds the groups of a document's buckets, and their factors.
    void find(const uint8_t* codes, Groups& groups, float* factors) {
        long length = shape_.length;
        while (length && codes[length - 1] >= shape_.alphabet) --length;
        if (!cache_->get(codes, length, groups)) {
            finders_[omp_get_thread_num()].find(codes, shape_, significant_, groups);
            cache_->put(codes, length, groups);
        }
        for (int group = 0; group < GROUPS; ++group) {
            const float number = float(std::max<size_t>(groups[group].size(), 1));
            factors[group] = std::min(NGRAM_SCALE, ROOT_SCALE * std::sqrt(number)) / number;
        }
    }

    // Computes the logits of a document from the rows of its buckets.
    void add_up(const Groups& groups, const float* factors, const Stored& weights, float* logits) const {
        with_width(shape_.classes, [&](auto classes) {
            read_through(weights, classes, [&](const auto& table) {
                for (long first = 0; first < classes; first += LANES) {
                    const long count = std::min(LANES, classes - first);
                    Lanes sum = load_some(bias_ + first, count);
                    for (int group = 0; group < GROUPS; ++group)
                        for (const uint32_t row : groups[group])
                            sum = add_product(sum, factors[group], table.load(row, first), count < LANES);
                    std::memcpy(logits + first, &sum, count * sizeof(float));
                }
            });
        });
    }

    // Collects the buckets of all documents.
    void join() {
        RowIndex& index = touched_.index();
#pragma omp parallel for num_threads(threads_)
        for (int part = 0; part < threads_; ++part) {
            const long first = index.size * part / threads_, last = index.size * (part + 1) / threads_;
            std::fill(index.words + first, index.words + last, 0);
            for (const Groups& groups : found_)
                for (const auto& group : groups) {
                    const auto [begin, end] = between(group, first * WORD, last * WORD);
                    for (auto bucket = begin; bucket < end; ++bucket)
                        index.words[*bucket / WORD] |= uint64_t{1} << (*bucket % WORD);
                }
        }
        touched_.list();
    }
};
