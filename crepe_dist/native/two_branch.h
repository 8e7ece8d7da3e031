// Two networks that answer with the sum of their logits, scaled. Each learns from a loss of its own.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "engine.h"
#include "memory.h"

// Each network has half of the loss, so that the sum is their mean.
class Joined final : public Engine {
  public:
    // parameters: number of the first network's parameters.
    Joined(std::unique_ptr<Engine> first, std::unique_ptr<Engine> second, long parameters, long classes)
        : engines_{std::move(first), std::move(second)}, parameters_(parameters), classes_(classes) {}

    void set(const Stored* parameters, bool anew) override {
        engines_[0]->set(parameters, anew);
        engines_[1]->set(parameters + parameters_, anew);
    }

    void objective(Objective objective) override {
        for (float& weight : objective.weights) weight /= 2;
        for (auto& engine : engines_) engine->objective(objective);
    }

    void use(int which, Table* table, size_t cache_bytes) override { engines_[which]->use(0, table, cache_bytes); }
    long trained() const override { return engines_[0]->trained() + engines_[1]->trained(); }

    void parts(const uint8_t* codes, long stride, long rows, float* logits) override {
        for (int which : {0, 1}) engines_[which]->forward(codes, stride, rows, logits + which * rows * classes_);
    }

    void forward(const uint8_t* codes, long stride, long rows, float* logits) override {
        const long count = rows * classes_;
        float* const both = logits_.need(2 * count);
        parts(codes, stride, rows, both);
        for (long i = 0; i < count; ++i) logits[i] = (both[i] + both[count + i]) * SUM_SCALE;
    }

    void find_rows(const uint8_t* batch, long rows) override {
        for (auto& engine : engines_) engine->find_rows(batch, rows);
    }

    void train_forward(const uint8_t* batch, long rows, Dropout dropout, uint64_t first, float* losses) override {
        std::vector<float> second(rows);
        engines_[0]->train_forward(batch, rows, dropout, first, losses);
        engines_[1]->train_forward(batch, rows, dropout, first, second.data());
        for (long row = 0; row < rows; ++row) losses[row] += second[row];
    }

    void train_backward(int32_t* const* gradients, const int32_t* exponents, double unit, float* bounds) override {
        const long first_trained = engines_[0]->trained();
        engines_[0]->train_backward(gradients, exponents, unit, bounds);
        engines_[1]->train_backward(gradients + first_trained, exponents + first_trained, unit, bounds + first_trained);
    }

  private:
    std::unique_ptr<Engine> engines_[2];
    Buffer<float> logits_;  // of both, [2][rows][classes]
    const long parameters_, classes_;
};
