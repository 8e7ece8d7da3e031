// The paper's network (Zhang, Zhao & LeCun 2015, arXiv:1509.01626) on a CPU: six convolutions over one-hot encoded
// characters, three max-pooling layers, and three dense layers.
//
// Each thread takes a chunk of a few documents through all convolutions, so that the activations stay in its core's
// cache. The dense layers have many weights, so they process the whole batch at once.
#pragma once

#include <omp.h>

#include <cmath>
#include <iterator>
#include <numeric>
#include <vector>

#include "dense.h"
#include "engine.h"
#include "memory.h"

constexpr int CONVOLUTIONS = std::size(PAPER_KERNEL_SIZES);
constexpr long GUARD = 2 * BLOCK;  // Rows before the first row and after the last row that products may read.

struct PaperConfig {
    long alphabet_size, length, num_classes, filters, units;
};

template <class T> class PaperNetwork final : public Engine {
  public:
    PaperNetwork(PaperConfig shape, int threads) : config_(shape), threads_(threads), scratch_(threads) {
        width_ = padded(shape.filters);
        units_ = padded(shape.units);
        symbols_ = shape.alphabet_size + 1;
        positions_[0] = (shape.length - PAPER_KERNEL_SIZES[0] + 1) / PAPER_POOL;
        positions_[1] = (positions_[0] - PAPER_KERNEL_SIZES[1] + 1) / PAPER_POOL;
        positions_[2] = (positions_[1] - 4 * (PAPER_KERNEL_SIZES[2] - 1)) / PAPER_POOL;
        features_ = positions_[2] * shape.filters;
        widths_[0] = features_;
        widths_[1] = widths_[2] = shape.units;
        widths_[3] = shape.num_classes;
    }

    void set_parameters(const CompressedArray* parameters, bool) override {
        table_.reserve(width_ * PAPER_KERNEL_SIZES[0] * symbols_);
        for (int i = 0; i < CONVOLUTIONS; ++i) {
            bias_[i].reserve(width_);
            std::memcpy(bias_[i].get(), parameters[2 * i + 1].values, config_.filters * sizeof(float));
            if (i > 0) {
                forward_[i].reserve(PAPER_KERNEL_SIZES[i] * width_ * width_);
                backward_[i].reserve(PAPER_KERNEL_SIZES[i] * width_ * width_);
            }
        }
        for (int i = 0; i < 3; ++i) {
            dense_[i].reserve(padded(widths_[i]) * padded(widths_[i + 1]));
            const float* bias = parameters[2 * (CONVOLUTIONS + i) + 1].floats();
            std::copy_n(bias, widths_[i + 1], dense_bias_[i].reserve(widths_[i + 1]));
        }
#pragma omp parallel num_threads(threads_)
        {
            pack_first_layer(parameters[0].floats());
            for (int i = 1; i < CONVOLUTIONS; ++i)
                pack_convolution(parameters[2 * i].floats(), config_.filters, PAPER_KERNEL_SIZES[i], forward_[i].get(),
                                 backward_[i].get());
            for (int i = 0; i < 3; ++i)
                dense_panels(parameters[2 * (CONVOLUTIONS + i)].floats(), widths_[i + 1], widths_[i], dense_[i].get());
        }
    }

    void set_loss(Loss loss) override { loss_ = std::move(loss); }

    void forward(const uint8_t* codes, long stride, long rows, float* logits) override {
        prepare(rows, false);
        dropout_ = Dropout{0, 0};
        activate(codes, stride, 0);
        add_bias(logits);
    }

    void train_forward(const uint8_t* batch, long rows, Dropout dropout, uint64_t first, float* losses) override {
        prepare(rows, true);
        dropout_ = dropout;
        activate(batch, loss_.stride(config_.length), first);
        logits_.reserve(rows * config_.num_classes);
        add_bias(logits_.get());
        compute_loss(logits_.get(), batch, losses);
    }

    long num_trained() const override { return 2 * (CONVOLUTIONS + 3); }

    void train_backward(int32_t* const* gradients, const int32_t* exponents, double bound_unit,
                        float* bounds) override {
        const long all = padded(rows_);
        for (Scratch& scratch : scratch_)
            for (long i = 0; i < num_trained(); ++i) scratch.grad_scales[i].start(exponents[i], bound_unit);
#pragma omp parallel num_threads(threads_)
        {
            TileRegisters tiles;
            Scratch& scratch = scratch_[omp_get_thread_num()];
#pragma omp for schedule(static)
            for (int i = 0; i < threads_; ++i) clear(scratch_[i]);
            for (int i = 2; i >= 0; --i) {
                const int index = 2 * (CONVOLUTIONS + i);
                const T* gradient = gradients_[i + 1].get();
                dense_weight_gradient(activations_[i].get(), gradient, rows_, widths_[i + 1], widths_[i],
                                      gradients[index], gradients[index + 1], scratch_[0].grad_scales + index,
                                      transposed_.get(), packed_.get());
                dense_input_gradient(
                    gradient, all, dense_[i].get(), widths_[i + 1], widths_[i], scratch.packed.get(),
                    [&](long row, long column, const float* sums) { mask_hidden_gradient(i, row, column, sums); });
            }
#pragma omp for schedule(static)
            for (long first = 0; first < rows_; first += chunk_)
                backward(first, std::min(chunk_, rows_ - first), scratch);
            reduce_gradients(gradients);
        }
        write_bounds(scratch_, num_trained(), bounds);
    }

  private:
    // Scratch memory of one thread.
    struct Scratch {
        Buffer<T> rows[2], transposed, packed, pooled;
        Buffer<float> first_layer;  // A gradient term of the first layer's weights and bias.
        Buffer<int32_t> total[CONVOLUTIONS], bias[CONVOLUTIONS];
        FixedPointScale grad_scales[2 * (CONVOLUTIONS + 3)];  // Scale of each trained parameter.
    };

    const PaperConfig config_;
    const int threads_;
    std::vector<Scratch> scratch_;
    Loss loss_;
    long width_, units_, symbols_, features_;
    long positions_[3];  // Positions of a document after each pool.
    long widths_[4];     // Widths of the dense layers: features, units, units, classes.

    Buffer<float> table_, bias_[CONVOLUTIONS], dense_bias_[3];
    Buffer<T> forward_[CONVOLUTIONS], backward_[CONVOLUTIONS], dense_[3];

    long rows_ = 0, chunk_ = 1,
         conv1_chunk_ = 1;  // Number of documents of the batch, of a chunk, and of one pass of convolution 1.
    Buffer<uint8_t> codes_, from_[3];
    Buffer<T> inputs_[CONVOLUTIONS];  // Inputs of convolutions 1 to 5.
    Buffer<T> activations_[3];        // Inputs of the dense layers.
    Buffer<T> gradients_[4];          // Gradients of activations_ and of the logits.
    Buffer<T> transposed_, packed_;   // Scratch of the dense layers.
    Buffer<float> sums_, logits_;
    Dropout dropout_{0, 0};

    long stride(int i) const { return positions_[i > 1]; }  // Rows per document in the input of convolution i.
    // Returns the number of weights of convolution i, with padded widths.
    long weights(int i) const { return PAPER_KERNEL_SIZES[i] * width_ * (i > 0 ? width_ : symbols_); }

    // Returns the number of pooling windows of the first layer that see text and not only the trailing padding.
    long num_written_pools(const uint8_t* symbols) const {
        long end = config_.length;
        while (end > 0 && symbols[end - 1] == config_.alphabet_size) --end;
        return std::min(positions_[0], (end + PAPER_POOL - 1) / PAPER_POOL);
    }

    // Returns the number of documents that are computed at a time: the largest power of two such that these documents
    // have at most 448 rows together.
    static long max_documents_at_once(long rows_each) {
        long documents = PAPER_REDUCTION_GROUP;
        while (documents > 1 && documents * rows_each > 448) documents /= 2;
        return documents;
    }

    // Allocates the memory of a batch, and divides the batch into chunks.
    void prepare(long rows, bool training) {
        // About 400 rows are enough for efficient products, and few enough for the L1 cache. In training, the chunks do
        // not depend on the number of threads, because each chunk rounds its gradients to fixed point.
        rows_ = rows;
        chunk_ = max_documents_at_once(positions_[1]);
        if (!training) chunk_ = std::max(1L, std::min(chunk_, (rows + threads_ - 1) / threads_));
        conv1_chunk_ = std::min(chunk_, max_documents_at_once(positions_[0]));
        codes_.reserve(rows * config_.length);
        for (int i = 0; i < 3; ++i) from_[i].reserve(rows * positions_[i] * width_);
        for (int i = 1; i < CONVOLUTIONS; ++i) inputs_[i].reserve((rows * stride(i) + GUARD) * width_);
        for (int i = 0; i < 4; ++i) {
            const long count = padded(rows) * padded(widths_[i]);
            if (i < 3) activations_[i].reserve(count);
            if (training) gradients_[i].reserve(count);
        }
        if (training) {
            transposed_.reserve(term_depth<T>(rows) * std::max(padded(config_.units), padded(config_.num_classes)));
            packed_.reserve(term_depth<T>(rows) * std::max(padded(features_), padded(config_.units)));
        }
        sums_.reserve(padded(rows) * std::max(padded(config_.units), padded(config_.num_classes)));
        const long longest = std::max(conv1_chunk_ * positions_[0], chunk_ * positions_[1]);
        for (Scratch& scratch : scratch_) {
            scratch.pooled.reserve(chunk_ * positions_[2] * width_);
            scratch.rows[0].reserve((chunk_ * positions_[0] + 2 * GUARD) * width_);
            if (!training) continue;
            for (int i = 0; i < CONVOLUTIONS; ++i) {
                scratch.total[i].reserve(weights(i));
                scratch.bias[i].reserve(width_);
            }
            scratch.first_layer.reserve(weights(0) + width_);
            scratch.rows[1].reserve((chunk_ * positions_[0] + 2 * GUARD) * width_);
            scratch.transposed.reserve(SIDE + width_ * transposed_depth<T>(longest));
            scratch.packed.reserve(BLOCK * std::max(transposed_depth<T>(longest) + SHIFTS,
                                     std::max(units_, padded(config_.num_classes))));
        }
        // Padding rows may hold values of an earlier, larger batch. They are cleared, because sums over rows include
        // the padding.
        for (int i = 0; i < 3; ++i) {
            const long width = padded(widths_[i]);
            std::memset(static_cast<void*>(activations_[i].get() + rows * width), 0,
                        (padded(rows) - rows) * width * sizeof(T));
        }
    }

    void clear(Scratch& scratch) {
        for (int i = 0; i < CONVOLUTIONS; ++i) {
            std::memset(scratch.total[i].get(), 0, weights(i) * sizeof(int32_t));
            std::memset(scratch.bias[i].get(), 0, width_ * sizeof(int32_t));
        }
    }

    void pack_first_layer(const float* weights) {
#pragma omp for schedule(static)
        for (long channel = 0; channel < config_.filters; ++channel)
            for (long tap = 0; tap < PAPER_KERNEL_SIZES[0]; ++tap)
                for (long symbol = 0; symbol < config_.alphabet_size; ++symbol)
                    table_.get()[((channel / BLOCK * PAPER_KERNEL_SIZES[0] + tap) * symbols_ + symbol) * BLOCK +
                                 channel % BLOCK] =
                        weights[(channel * config_.alphabet_size + symbol) * PAPER_KERNEL_SIZES[0] + tap];
    }

    // Computes all layers except the bias of the last layer. The products of the last layer are in sums_ afterwards.
    void activate(const uint8_t* codes, long stride, uint64_t first_row) {
#pragma omp parallel num_threads(threads_)
        {
            TileRegisters tiles;
            Scratch& scratch = scratch_[omp_get_thread_num()];
#pragma omp for schedule(static)
            for (long first = 0; first < rows_; first += chunk_)
                convolutions(codes, stride, first, std::min(chunk_, rows_ - first), scratch);
            for (int i = 0; i < 3; ++i) {
                dense(activations_[i].get(), padded(rows_), widths_[i], widths_[i + 1], dense_[i].get(), sums_.get());
                if (i < 2) activate_hidden(i, first_row);
            }
        }
    }

    void convolutions(const uint8_t* codes, long stride, long first, long count, Scratch& scratch) {
        for (long row = first; row < first + count; ++row) {
            uint8_t* symbols = codes_.get() + row * config_.length;
            for (long i = 0; i < config_.length; ++i)
                symbols[i] = uint8_t(std::min(long(codes[row * stride + i]), config_.alphabet_size));
            first_layer(symbols, num_written_pools(symbols), positions_[0], width_, PAPER_KERNEL_SIZES[0], symbols_,
                        table_.get(), bias_[0].get(), inputs_[1].get() + row * positions_[0] * width_,
                        from_[0].get() + row * positions_[0] * width_);
        }
        T* rows = scratch.rows[0].get() + GUARD * width_;
        for (long part = first; part < first + count; part += conv1_chunk_) {
            const long part_count = std::min(conv1_chunk_, first + count - part);
            convolution(inputs_[1].get() + part * positions_[0] * width_, part_count * positions_[0], width_,
                        PAPER_KERNEL_SIZES[1], forward_[1].get(), bias_[1].get(), rows);
            for (long row = 0; row < part_count; ++row)
                pool(rows + row * positions_[0] * width_, positions_[1], width_,
                     inputs_[2].get() + (part + row) * positions_[1] * width_,
                     from_[1].get() + (part + row) * positions_[1] * width_);
        }
        for (int i = 2; i < CONVOLUTIONS; ++i) {
            const long start = first * positions_[1] * width_;
            T* out = i + 1 < CONVOLUTIONS ? inputs_[i + 1].get() + start : rows;
            convolution(inputs_[i].get() + start, count * positions_[1], width_, PAPER_KERNEL_SIZES[i],
                        forward_[i].get(), bias_[i].get(), out);
        }
        for (long row = 0; row < count; ++row) {
            T* pooled = scratch.pooled.get();
            pool(rows + row * positions_[1] * width_, positions_[2], width_, pooled,
                 from_[2].get() + (first + row) * positions_[2] * width_);
            T* features = activations_[0].get() + (first + row) * padded(features_);
            for (long c = 0; c < config_.filters; ++c)
                for (long p = 0; p < positions_[2]; ++p) features[c * positions_[2] + p] = pooled[p * width_ + c];
        }
    }

    // Applies bias, ReLU and dropout of hidden dense layer i to sums_, and writes activations_[i + 1]. All threads must
    // call this function.
    void activate_hidden(int i, uint64_t first_row) {
        const float* bias = dense_bias_[i].get();
        const float scale = dropout_.scale();
#pragma omp for schedule(static)
        for (long row = 0; row < rows_; ++row)
            for (long n = 0; n < config_.units; ++n) {
                float value = std::max(sums_.get()[row * units_ + n] + bias[n], 0.0f);
                if (dropout_.probability > 0) {
                    const uint64_t index = ((first_row + row) * 2 + i) * config_.units + n;
                    value = dropout_.retains(index) ? value * scale : 0.0f;
                }
                store_scalar(activations_[i + 1].get()[row * units_ + n], value);
            }
    }

    // Masks a block of the gradient of dense layer i's input. Units that dropout or ReLU has set to zero pass no
    // gradient.
    void mask_hidden_gradient(int i, long row, long column, const float* sums) {
        const long width = padded(widths_[i]);
        const float scale = i > 0 ? dropout_.scale() : 1.0f;
        for (long m = 0; m < BLOCK; ++m)
            for (long v = 0; v < BLOCK; v += LANES) {
                const long index = (row + m) * width + column + v;
                const IntVec mask = load(activations_[i].get() + index) > 0;
                store(gradients_[i].get() + index, select_or_zero(mask, load(sums + m * BLOCK + v) * scale));
            }
    }

    void add_bias(float* logits) const {
        const float* bias = dense_bias_[2].get();
        for (long row = 0; row < rows_; ++row)
            for (long n = 0; n < config_.num_classes; ++n)
                logits[row * config_.num_classes + n] = sums_.get()[row * padded(config_.num_classes) + n] + bias[n];
    }

    void compute_loss(const float* logits, const uint8_t* batch, float* losses) {
        const long width = padded(config_.num_classes);
        std::memset(static_cast<void*>(gradients_[3].get()), 0, padded(rows_) * width * sizeof(T));
        std::vector<float> gradient(config_.num_classes);
        for (long row = 0; row < rows_; ++row) {
            losses[row] = loss_(logits + row * config_.num_classes, batch, row, config_.length, gradient.data());
            for (long n = 0; n < config_.num_classes; ++n)
                store_scalar(gradients_[3].get()[row * width + n], gradient[n]);
        }
    }

    void backward(long first, long count, Scratch& scratch) {
        T *gradient = scratch.rows[0].get() + GUARD * width_, *next = scratch.rows[1].get() + GUARD * width_;
        for (long row = 0; row < count; ++row) {
            const T* features = gradients_[0].get() + (first + row) * padded(features_);
            T* pooled = scratch.pooled.get();
            for (long c = 0; c < config_.filters; ++c)
                for (long p = 0; p < positions_[2]; ++p) pooled[p * width_ + c] = features[c * positions_[2] + p];
            unpool(pooled, from_[2].get() + (first + row) * positions_[2] * width_, positions_[2], positions_[1],
                   width_, gradient + row * positions_[1] * width_);
        }
        for (int i = CONVOLUTIONS - 1; i >= 2; --i) {
            const T* in = inputs_[i].get() + first * positions_[1] * width_;
            const long rows = count * positions_[1];
            convolution_weight_gradient(in, gradient, rows, width_, PAPER_KERNEL_SIZES[i], scratch.total[i].get(),
                                        scratch.bias[i].get(), scratch.grad_scales + 2 * i, scratch.transposed.get(),
                                        scratch.packed.get());
            convolution_input_gradient(gradient, rows, width_, PAPER_KERNEL_SIZES[i], backward_[i].get(),
                                       i > 2 ? in : nullptr, next);
            std::swap(gradient, next);
        }
        for (long row = 0; row < count; ++row)
            unpool(gradient + row * positions_[1] * width_,
                   from_[1].get() + (first + row) * positions_[1] * width_, positions_[1], positions_[0], width_,
                   next + row * positions_[0] * width_);
        std::swap(gradient, next);
        for (long part = 0; part < count; part += conv1_chunk_) {
            const long rows = std::min(conv1_chunk_, count - part) * positions_[0];
            const long start = part * positions_[0] * width_;
            convolution_weight_gradient(inputs_[1].get() + first * positions_[0] * width_ + start, gradient + start,
                                        rows, width_, PAPER_KERNEL_SIZES[1], scratch.total[1].get(),
                                        scratch.bias[1].get(), scratch.grad_scales + 2, scratch.transposed.get(),
                                        scratch.packed.get());
        }
        convolution_input_gradient<T>(gradient, count * positions_[0], width_, PAPER_KERNEL_SIZES[1],
                                      backward_[1].get(), nullptr, next);
        float *const table = scratch.first_layer.get(), *const bias = table + weights(0);
        std::fill(table, bias + width_, 0.0f);
        for (long row = 0; row < count; ++row) {
            const uint8_t* symbols = codes_.get() + (first + row) * config_.length;
            const long start = (first + row) * positions_[0] * width_;
            first_layer_gradient(symbols, num_written_pools(symbols), positions_[0], width_, PAPER_KERNEL_SIZES[0],
                                 symbols_, next + row * positions_[0] * width_, from_[0].get() + start, table, bias);
        }
        scratch.grad_scales[0].add(scratch.total[0].get(), table, weights(0));
        scratch.grad_scales[1].add(scratch.bias[0].get(), bias, width_);
        for (int i : {0, 1}) scratch.grad_scales[i].end_term();
    }

    // Adds the gradients of all threads, and writes the sums in Gluon's layout. All threads must call this function.
    void reduce_gradients(int32_t* const* gradients) {
        const long filters = config_.filters;
#pragma omp for schedule(static)
        for (long out = 0; out < filters; ++out) {
            const long block_of = out / BLOCK, column = out % BLOCK;
            for (int i = 0; i < CONVOLUTIONS; ++i) {
                int32_t total = 0;
                for (const Scratch& scratch : scratch_) wrapping_add(total, scratch.bias[i].get()[out]);
                gradients[2 * i + 1][out] = total;
            }
            for (long tap = 0; tap < PAPER_KERNEL_SIZES[0]; ++tap)
                for (long in = 0; in < config_.alphabet_size; ++in) {
                    const long at = ((block_of * PAPER_KERNEL_SIZES[0] + tap) * symbols_ + in) * BLOCK + column;
                    int32_t total = 0;
                    for (const Scratch& scratch : scratch_) wrapping_add(total, scratch.total[0].get()[at]);
                    gradients[0][(out * config_.alphabet_size + in) * PAPER_KERNEL_SIZES[0] + tap] = total;
                }
            for (int i = 1; i < CONVOLUTIONS; ++i)
                reduce_channel(
                    scratch_, [i](const Scratch& scratch) { return scratch.total[i].get(); }, out, filters,
                    PAPER_KERNEL_SIZES[i], gradients[2 * i]);
        }
    }
};
