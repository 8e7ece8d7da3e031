// The convolutional branch of the crepe network: a residual convolutional network over the n-grams at each position of
// a text.
//
//     x0 = relu(sum of the embeddings of a position's n-grams)    position_embedding.h
//     x' = relu(x + conv2(relu(conv1(x))))                        residual_blocks.h: for each block, and max pools
//     logits = out(max of x, mean of x)                           pooled_classifier.h: over all positions
//
// This file combines these three parts into an Engine. batch_layout.h describes the arrays of a batch.
#pragma once

#include <omp.h>

#include <vector>

#include "batch_layout.h"
#include "engine.h"
#include "pooled_classifier.h"
#include "position_embedding.h"
#include "residual_blocks.h"

// Python passes these sizes; see crepe_open_crepe in engine.cpp. reduction_group: maximum number of documents whose
// gradients are added in floating point before they are rounded to fixed point. feature_dropout: dropout probability of
// the features.
struct ConvBranchConfig {
    PositionEmbeddingConfig embedding;
    long num_classes, blocks, reduction_group;
    double feature_dropout;
};

// T: type of the activations and of the packed weights, float or bfloat16.
template <class T> class ConvBranch final : public Engine {
  public:
    ConvBranch(ConvBranchConfig config, int threads)
        : config_(config),
          threads_(threads),
          width_(padded(config.embedding.width)),
          embedding_(config.embedding, threads),
          blocks_(config.blocks, config.embedding.width, config.reduction_group, threads),
          classifier_(config.embedding.width, config.num_classes),
          threads_scales_(threads) {}

    // parameters: embedding table [rows][width]; weights and bias of each convolution; weights and bias of the last
    // layer.
    void set_parameters(const CompressedArray* parameters, bool) override {
        embedding_.set_table(parameters[0]);
        blocks_.set_parameters(parameters + 1);
        classifier_.set_parameters(parameters[last_layer()].floats(), parameters[last_layer() + 1].floats());
    }

    void set_loss(Loss loss) override { loss_ = std::move(loss); }
    void attach(int, ShardedEmbedding* embedding, size_t) override { embedding_.attach(embedding); }
    long num_trained() const override { return last_layer() + 2; }

    void forward(const uint8_t* codes, long stride, long rows, float* logits) override {
        prepare(codes, stride, rows);
        embedding_dropout_ = feature_dropout_ = NO_DROPOUT;
        compute_features(embedding_.table(), 0,
                         [&](long row) { classifier_.classify(row, logits + row * config_.num_classes); });
    }

    void find_rows(const uint8_t* batch, long rows) override {
        prepare(batch, loss_.stride(config_.embedding.length), rows);
        embedding_.find_touched_rows(layout_);
    }

    void train_forward(const uint8_t* batch, long, Dropout dropout, uint64_t first, float* losses) override {
        const long num_classes = config_.num_classes, length = config_.embedding.length;
        embedding_dropout_ = dropout;
        feature_dropout_ = {config_.feature_dropout, dropout.seed ^ FEATURE_DROPOUT_STREAM};
        float* const gradients = logit_gradients_.reserve(layout_.documents() * num_classes);
        compute_features(embedding_.touched_values(), first, [&](long row) {
            std::vector<float> logits(num_classes);
            classifier_.classify(row, logits.data());
            losses[row] = loss_(logits.data(), batch, row, length, gradients + row * num_classes);
        });
    }

    void train_backward(int32_t* const* gradients, const int32_t* exponents, double bound_unit,
                        float* bounds) override {
        for (ThreadScales& scales : threads_scales_) scales.start(num_trained(), exponents, bound_unit);
        embedding_.reserve_gradient(layout_);
        const long top = layout_.level_of(config_.blocks);
        const auto write_output_gradient = [&](long row, T* out) {
            const float* const logit_gradient = logit_gradients_.get() + row * config_.num_classes;
            classifier_.input_gradient(row, logit_gradient, layout_.length(top, row), feature_dropout_, out);
        };
#pragma omp parallel num_threads(threads_)
        {
            TileRegisters tiles;
            std::vector<FixedPointScale>& grad_scales = threads_scales_[omp_get_thread_num()].grad_scales;
            blocks_.start_backward();
#pragma omp for schedule(dynamic)
            for (size_t i = 0; i < layout_.chunks().size(); ++i)
                blocks_.backward(layout_, layout_.chunks()[i], write_output_gradient, embedding_.gradient(),
                                 &grad_scales[1]);
            blocks_.reduce_gradients(gradients + 1);
            embedding_.quantize_gradient(layout_, embedding_dropout_, blocks_.input(), grad_scales[0]);
        }
        classifier_.weight_gradient(layout_.documents(), logit_gradients_.get(),
                                    &threads_scales_[0].grad_scales[last_layer()], gradients + last_layer());
        embedding_.add_to_rows(layout_);
        embedding_.scatter(gradients[0]);
        write_bounds(threads_scales_, num_trained(), bounds);
    }

  private:
    // Fixed-point scales of all trained parameters. Each thread has its own object.
    struct ThreadScales {
        std::vector<FixedPointScale> grad_scales;

        void start(long parameters, const int32_t* exponents, double bound_unit) {
            grad_scales.resize(parameters);
            for (long i = 0; i < parameters; ++i) grad_scales[i].start(exponents[i], bound_unit);
        }
    };
    static constexpr Dropout NO_DROPOUT{0, 0};

    const ConvBranchConfig config_;
    const int threads_;
    const long width_;  // Number of channels, padded to a multiple of 32.
    PositionEmbedding<T> embedding_;
    ResidualBlocks<T> blocks_;
    PooledClassifier<T> classifier_;
    std::vector<ThreadScales> threads_scales_;
    Loss loss_;

    // State of the current batch.
    BatchLayout layout_;
    Dropout embedding_dropout_ = NO_DROPOUT, feature_dropout_ = NO_DROPOUT;
    Buffer<float> logit_gradients_;

    // Returns the index of the last layer's weights among the trained parameters. The table and four parameters of each
    // block precede the last layer's weights.
    long last_layer() const { return 1 + 4 * config_.blocks; }

    // Arranges a batch, allocates its memory, and hashes its n-grams.
    void prepare(const uint8_t* codes, long stride, long rows) {
        embedding_.read_texts(codes, stride, rows);
        layout_.arrange(rows, config_.reduction_group, [&](long row) { return embedding_.num_positions(row); });
        blocks_.reserve(layout_);
        classifier_.reserve(rows);
        embedding_.hash(layout_);
    }

    // Computes the features of all documents, and calls finish(row) for each document.
    template <class Finish> void compute_features(const CompressedArray& table, uint64_t first_row, Finish finish) {
        const long top = layout_.level_of(config_.blocks);
#pragma omp parallel num_threads(team_size(threads_, layout_.documents()))
        {
            TileRegisters tiles;
#pragma omp for schedule(dynamic)
            for (size_t i = 0; i < layout_.chunks().size(); ++i) {
                const Chunk& chunk = layout_.chunks()[i];
                embedding_.forward(layout_, chunk, table, embedding_dropout_, first_row, blocks_.input());
                blocks_.forward(layout_, chunk);
                for (long row = chunk.first; row < chunk.last; ++row) {
                    const T* const in = blocks_.output() + layout_.start(top, row) * width_;
                    classifier_.pool(row, in, layout_.length(top, row), feature_dropout_, first_row);
                    finish(row);
                }
            }
        }
    }
};
