// The n-gram network on a CPU: the logits are sums of rows of a table, those that the document's n-grams hash to.
#pragma once

#include <omp.h>

#include <cstring>
#include <vector>

#include "engine.h"
#include "memory.h"

constexpr double SCALE = 10;  // of the sums, as in model/ngrams.py

struct NGramShape {
    long alphabet, length, classes, longest, buckets;
};

// Which buckets a document has been in; as model/ngrams.py computes them without this library.
class Seen {
  public:
    explicit Seen(long buckets) : buckets_(buckets), document_of_(buckets, 0) {}

    // The buckets of all stretches of 1 to `longest` known characters, each once, in the order of the text.
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

    // The mixing of SplitMix64 (Steele, Lea & Flood 2014), and the upper half as a fraction of the table.
    uint32_t hashed(uint64_t z) const {
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        z ^= z >> 31;
        return uint32_t((z >> 32) * uint64_t(buckets_) >> 32);
    }
};

class NGrams final : public Engine {
  public:
    NGrams(NGramShape shape, int threads) : shape_(shape), threads_(threads), seen_(threads, Seen(shape.buckets)) {}

    // weights [buckets][classes], bias [classes]
    void set(const float* const* parameters) override {
        weights_ = parameters[0];
        bias_ = parameters[1];
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
            losses[row] = objective_(logits + row * classes, behind(batch, row, shape_.length), gradients + row * classes);
    }

    void train_backward(float* const* gradients) override {
        const long classes = shape_.classes, rows = long(found_.size());
        std::memset(gradients[1], 0, classes * sizeof(float));
        for (long row = 0; row < rows; ++row)
            for (long n = 0; n < classes; ++n) {
                float& gradient = gradients_.get()[row * classes + n];
                gradients[1][n] += gradient;
                gradient *= scales_[row];
            }
        // A thread owns a stretch of the table, so that the sums do not depend on how many threads there are.
#pragma omp parallel num_threads(threads_)
        {
            const long thread = omp_get_thread_num(), all = omp_get_num_threads();
            const uint32_t begin = uint32_t(shape_.buckets * thread / all);
            const uint32_t count = uint32_t(shape_.buckets * (thread + 1) / all) - begin;
            std::memset(gradients[0] + begin * classes, 0, count * classes * sizeof(float));
            for (long row = 0; row < rows; ++row) {
                const float* own = gradients_.get() + row * classes;
                for (const uint32_t bucket : found_[row])
                    if (bucket - begin < count)
                        for (long n = 0; n < classes; ++n) gradients[0][bucket * classes + n] += own[n];
            }
        }
    }

  private:
    const NGramShape shape_;
    const int threads_;
    std::vector<Seen> seen_;  // one a thread
    Objective objective_;
    const float *weights_ = nullptr, *bias_ = nullptr;  // where they were at the last `set`

    std::vector<std::vector<uint32_t>> found_;  // buckets of each row of the batch
    std::vector<float> scales_;                 // of each row's sum
    Buffer<float> logits_, gradients_;

    void answer(const uint8_t* codes, long stride, long rows, float* logits) {
        const long classes = shape_.classes;
        found_.resize(rows);
        scales_.resize(rows);
#pragma omp parallel for num_threads(threads_) schedule(dynamic)
        for (long row = 0; row < rows; ++row) {
            std::vector<uint32_t>& found = found_[row];
            seen_[omp_get_thread_num()].find(codes + row * stride, shape_.length, shape_.alphabet, shape_.longest, found);
            scales_[row] = found.empty() ? 0.0f : float(SCALE / std::sqrt(double(found.size())));
            float* own = logits + row * classes;
            std::fill_n(own, classes, 0.0f);
            for (const uint32_t bucket : found)
                for (long n = 0; n < classes; ++n) own[n] += weights_[bucket * classes + n];
            for (long n = 0; n < classes; ++n) own[n] = own[n] * scales_[row] + bias_[n];
        }
    }
};
