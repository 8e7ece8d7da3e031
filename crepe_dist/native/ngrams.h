// The n-gram network on a CPU: logits are means of the table rows that a document's n-grams hash to.
#pragma once

#include <omp.h>

#include <cstring>
#include <vector>

#include "engine.h"
#include "memory.h"

constexpr float SCALE = 300;  // factor of the means, as in model/ngrams.py

struct NGramShape {
    long alphabet, length, classes, longest, buckets;
};

// Finds the distinct buckets of a document; equivalent to `look_up` in model/ngrams.py.
class Seen {
  public:
    explicit Seen(long buckets) : buckets_(buckets), document_of_(buckets, 0) {}

    // Collects the buckets of all n-grams of 1 to `longest` known characters, each once, in the order of the text.
    void find(const uint8_t* codes, long length, long alphabet, long longest, std::vector<uint32_t>& out) {
        out.clear();
        if (++document_ == 0) {
            std::fill(document_of_.begin(), document_of_.end(), 0);
            document_ = 1;
        }
        for (long start = 0; start < length; ++start) {
            uint64_t key = 0;
            const long end = std::min(length, start + longest);
            for (long i = start; i < end && codes[i] < alphabet; ++i) {
                key = key * RADIX + codes[i] + 1;
                const uint32_t bucket = hashed(key);
                if (document_of_[bucket] == document_) continue;
                document_of_[bucket] = document_;
                out.push_back(bucket);
            }
        }
    }

  private:
    static constexpr uint64_t RADIX = 257;

    const long buckets_;
    std::vector<uint32_t> document_of_;
    uint32_t document_ = 0;

    // Mixes the key as SplitMix64 does (Steele, Lea & Flood 2014) and scales the upper 32 bits to the table.
    uint32_t hashed(uint64_t z) const {
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        z ^= z >> 31;
        return uint32_t((z >> 32) * uint64_t(buckets_) >> 32);
    }
};

using Found = std::vector<std::vector<uint32_t>>;  // buckets of each row

// Calls work(row, bucket) for all buckets. Each thread owns a range of buckets, so that the order of the sums does not
// depend on the number of threads.
template <class Work> void for_each_bucket(const Found& found, long rows, long buckets, int threads, Work work) {
#pragma omp parallel num_threads(threads)
    {
        const long thread = omp_get_thread_num(), all = omp_get_num_threads();
        const uint32_t begin = uint32_t(buckets * thread / all), count = uint32_t(buckets * (thread + 1) / all) - begin;
        for (long row = 0; row < rows; ++row)
            for (const uint32_t bucket : found[row])
                if (bucket - begin < count) work(row, bucket);
    }
}

// Adds to counts [buckets][classes]: the number of documents of each class that contain a bucket.
inline void count_ngrams(
    const uint8_t* codes, long stride, long rows, NGramShape shape, const int32_t* labels, int32_t* counts, int threads
) {
    constexpr long AT_ONCE = 256;  // documents
    std::vector<Seen> seen(threads, Seen(shape.buckets));
    Found found(AT_ONCE);
    for (long first = 0; first < rows; first += AT_ONCE) {
        const long some = std::min(AT_ONCE, rows - first);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
        for (long row = 0; row < some; ++row)
            seen[omp_get_thread_num()].find(codes + (first + row) * stride, shape.length, shape.alphabet, shape.longest,
                                            found[row]);
        for_each_bucket(found, some, shape.buckets, threads,
                   [&](long row, long bucket) { ++counts[bucket * shape.classes + labels[first + row]]; });
    }
}

class NGrams final : public Engine {
  public:
    NGrams(NGramShape shape, int threads)
        : shape_(shape), threads_(threads), seen_(threads, Seen(shape.buckets)), significant_(shape.buckets) {}

    // weights [buckets][classes], bias [classes], significant [buckets], 0 or 1
    void set(const float* const* parameters) override {
        weights_ = parameters[0];
        bias_ = parameters[1];
#pragma omp parallel for num_threads(threads_)
        for (long bucket = 0; bucket < shape_.buckets; ++bucket) significant_[bucket] = parameters[2][bucket] != 0;
    }

    void objective(Objective objective) override { objective_ = std::move(objective); }

    void forward(const uint8_t* codes, long stride, long rows, float* logits) override {
        answer(codes, stride, rows, logits);
    }

    void train_forward(const uint8_t* batch, long rows, Dropout, uint64_t, float* losses) override {
        const long classes = shape_.classes;
        float* logits = logits_.need(rows * classes);
        float* gradients = gradients_.need(rows * classes);
        answer(batch, shape_.length + LABEL_BYTES, rows, logits);
        for (long row = 0; row < rows; ++row)
            losses[row] = objective_(
                logits + row * classes, label_bytes(batch, row, shape_.length), gradients + row * classes
            );
    }

    void train_backward(float* const* gradients) override {
        const long classes = shape_.classes, rows = long(found_.size());
        const float* own = gradients_.get();
        std::memset(gradients[1], 0, classes * sizeof(float));
        for (long row = 0; row < rows; ++row)
            for (long n = 0; n < classes; ++n) gradients[1][n] += own[row * classes + n];
#pragma omp parallel for num_threads(threads_)
        for (long bucket = 0; bucket < shape_.buckets; ++bucket)
            std::fill_n(gradients[0] + bucket * classes, classes, 0.0f);
        for_each_bucket(found_, rows, shape_.buckets, threads_, [&](long row, long bucket) {
            const float factor = factors_[2 * row + significant_[bucket]];
            for (long n = 0; n < classes; ++n) gradients[0][bucket * classes + n] += factor * own[row * classes + n];
        });
    }

  private:
    const NGramShape shape_;
    const int threads_;
    std::vector<Seen> seen_;  // one per thread
    std::vector<uint8_t> significant_;
    Objective objective_;
    const float *weights_ = nullptr, *bias_ = nullptr;  // from the last `set`

    Found found_;                 // buckets of the batch
    std::vector<float> factors_;  // [rows][2]: factor of a row's other and of its significant buckets
    Buffer<float> logits_, gradients_;

    void answer(const uint8_t* codes, long stride, long rows, float* logits) {
        const long classes = shape_.classes;
        found_.resize(rows);
        factors_.resize(2 * rows);
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
        for (long row = 0; row < rows; ++row) {
            std::vector<uint32_t>& found = found_[row];
            seen_[omp_get_thread_num()].find(codes + row * stride, shape_.length, shape_.alphabet, shape_.longest, found);
            long counts[2] = {};
            for (const uint32_t bucket : found) ++counts[significant_[bucket]];
            float* factors = factors_.data() + 2 * row;
            for (int i = 0; i < 2; ++i) factors[i] = counts[i] ? SCALE / float(counts[i]) : 0.0f;
            float* own = logits + row * classes;
            std::copy_n(bias_, classes, own);
            for (const uint32_t bucket : found) {
                const float factor = factors[significant_[bucket]];
                for (long n = 0; n < classes; ++n) own[n] += factor * weights_[bucket * classes + n];
            }
        }
    }
};
