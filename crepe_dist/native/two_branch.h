// The crepe network: two branches whose logits are added and scaled. Each branch is trained on its own loss.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "engine.h"
#include "memory.h"

// Network of two branches. The class weights of each branch are halved, so that the loss of the network is the mean of
// the losses of the branches.
class TwoBranchNetwork final : public Engine {
  public:
    // parameters: number of parameters of the first branch.
    TwoBranchNetwork(std::unique_ptr<Engine> first, std::unique_ptr<Engine> second, long parameters, long num_classes)
        : engines_{std::move(first), std::move(second)}, parameters_(parameters), num_classes_(num_classes) {}

    void set_parameters(const CompressedArray* parameters, bool buffers_changed) override {
        engines_[0]->set_parameters(parameters, buffers_changed);
        engines_[1]->set_parameters(parameters + parameters_, buffers_changed);
    }

    void set_loss(Loss loss) override {
        for (float& weight : loss.weights) weight /= 2;
        for (auto& engine : engines_) engine->set_loss(loss);
    }

    void attach(int which, ShardedEmbedding* embedding, size_t cache_bytes) override {
        engines_[which]->attach(0, embedding, cache_bytes);
    }
    long num_trained() const override { return engines_[0]->num_trained() + engines_[1]->num_trained(); }

    void branch_logits(const uint8_t* codes, long stride, long rows, float* logits) override {
        for (int which : {0, 1}) engines_[which]->forward(codes, stride, rows, logits + which * rows * num_classes_);
    }

    void forward(const uint8_t* codes, long stride, long rows, float* logits) override {
        const long count = rows * num_classes_;
        float* const both = logits_.reserve(2 * count);
        branch_logits(codes, stride, rows, both);
        for (long i = 0; i < count; ++i) logits[i] = (both[i] + both[count + i]) * BRANCH_SUM_SCALE;
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

    void train_backward(int32_t* const* gradients, const int32_t* exponents, double bound_unit,
                        float* bounds) override {
        const long first_trained = engines_[0]->num_trained();
        engines_[0]->train_backward(gradients, exponents, bound_unit, bounds);
        engines_[1]->train_backward(gradients + first_trained, exponents + first_trained, bound_unit,
                                    bounds + first_trained);
    }

  private:
    std::unique_ptr<Engine> engines_[2];
    Buffer<float> logits_;  // Logits of both branches, [2][rows][num_classes].
    const long parameters_, num_classes_;
};
