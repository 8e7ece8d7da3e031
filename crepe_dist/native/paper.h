// The paper's network on a CPU: logits, and the gradients of the loss.
//
// Each thread takes a few documents at a time (a chunk) through all convolutions while they are in its cache. The dense
// layers have many weights, so they process the whole batch at once.
#pragma once

#include <omp.h>

#include <cmath>
#include <iterator>
#include <numeric>
#include <vector>

#include "dense.h"
#include "engine.h"
#include "memory.h"

constexpr int CONVOLUTIONS = std::size(PAPER_TAPS);
constexpr long GUARD = 2 * BLOCK;                        // rows before the first and after the last that may be read

struct Shape {
    long alphabet, length, classes, filters, units;
};

template <class T> class Paper final : public Engine {
  public:
    Paper(Shape shape, int threads) : shape_(shape), threads_(threads), scratch_(threads) {
        width_ = padded(shape.filters);
        units_ = padded(shape.units);
        symbols_ = shape.alphabet + 1;
        positions_[0] = (shape.length - PAPER_TAPS[0] + 1) / PAPER_POOL;
        positions_[1] = (positions_[0] - PAPER_TAPS[1] + 1) / PAPER_POOL;
        positions_[2] = (positions_[1] - 4 * (PAPER_TAPS[2] - 1)) / PAPER_POOL;
        features_ = positions_[2] * shape.filters;
        widths_[0] = features_;
        widths_[1] = widths_[2] = shape.units;
        widths_[3] = shape.classes;
    }

    void set(const Stored* parameters, bool) override {
        table_.need(width_ * PAPER_TAPS[0] * symbols_);
        for (int i = 0; i < CONVOLUTIONS; ++i) {
            bias_[i].need(width_);
            std::memcpy(bias_[i].get(), parameters[2 * i + 1].values, shape_.filters * sizeof(float));
            if (i > 0) {
                forward_[i].need(PAPER_TAPS[i] * width_ * width_);
                backward_[i].need(PAPER_TAPS[i] * width_ * width_);
            }
        }
        for (int i = 0; i < 3; ++i) {
            dense_[i].need(padded(widths_[i]) * padded(widths_[i + 1]));
            const float* bias = parameters[2 * (CONVOLUTIONS + i) + 1].floats();
            std::copy_n(bias, widths_[i + 1], dense_bias_[i].need(widths_[i + 1]));
        }
#pragma omp parallel num_threads(threads_)
        {
            load_table(parameters[0].floats());
            for (int i = 1; i < CONVOLUTIONS; ++i)
                pack_convolution(parameters[2 * i].floats(), shape_.filters, PAPER_TAPS[i], forward_[i].get(),
                                 backward_[i].get());
            for (int i = 0; i < 3; ++i)
                dense_panels(parameters[2 * (CONVOLUTIONS + i)].floats(), widths_[i + 1], widths_[i], dense_[i].get());
        }
    }

    void objective(Objective objective) override { objective_ = std::move(objective); }

    void forward(const uint8_t* codes, long stride, long rows, float* logits) override {
        prepare(rows, false);
        dropout_ = Dropout{0, 0};
        activate(codes, stride, 0);
        add_bias(logits);
    }

    void train_forward(const uint8_t* batch, long rows, Dropout dropout, uint64_t first, float* losses) override {
        prepare(rows, true);
        dropout_ = dropout;
        activate(batch, objective_.stride(shape_.length), first);
        logits_.need(rows * shape_.classes);
        add_bias(logits_.get());
        loss(logits_.get(), batch, losses);
    }

    long trained() const override { return 2 * (CONVOLUTIONS + 3); }

    void train_backward(int32_t* const* gradients, const int32_t* exponents, double unit, float* bounds) override {
        const long all = padded(rows_);
        for (Scratch& scratch : scratch_)
            for (long i = 0; i < trained(); ++i) scratch.quanta[i].begin(exponents[i], unit);
#pragma omp parallel num_threads(threads_)
        {
            Tiles tiles;
            Scratch& scratch = scratch_[omp_get_thread_num()];
#pragma omp for schedule(static)
            for (int i = 0; i < threads_; ++i) clear(scratch_[i]);
            for (int i = 2; i >= 0; --i) {
                const int index = 2 * (CONVOLUTIONS + i);
                const T* gradient = gradients_[i + 1].get();
                dense_weight_gradient(activations_[i].get(), gradient, rows_, widths_[i + 1], widths_[i],
                                      gradients[index], gradients[index + 1], scratch_[0].quanta + index, turned_.get(),
                                      packed_.get());
                dense_input_gradient(
                    gradient, all, dense_[i].get(), widths_[i + 1], widths_[i], scratch.packed.get(),
                    [&](long row, long column, const float* sums) { hidden_gradient(i, row, column, sums); });
            }
#pragma omp for schedule(static)
            for (long first = 0; first < rows_; first += chunk_)
                backward(first, std::min(chunk_, rows_ - first), scratch);
            sum_up(gradients);
        }
        write_bounds(scratch_, trained(), bounds);
    }

  private:
    // Memory of one thread.
    struct Scratch {
        Buffer<T> rows[2], turned, packed, pooled;
        Buffer<float> first_layer;  // a term of its weights and bias
        Buffer<int32_t> total[CONVOLUTIONS], bias[CONVOLUTIONS];
        Quanta quanta[2 * (CONVOLUTIONS + 3)];  // of each trained parameter
    };

    const Shape shape_;
    const int threads_;
    std::vector<Scratch> scratch_;
    Objective objective_;
    long width_, units_, symbols_, features_;
    long positions_[3];  // after each pool
    long widths_[4];     // features, units, units, classes

    Buffer<float> table_, bias_[CONVOLUTIONS], dense_bias_[3];
    Buffer<T> forward_[CONVOLUTIONS], backward_[CONVOLUTIONS], dense_[3];

    long rows_ = 0, chunk_ = 1, few_ = 1;  // documents in the batch, in a chunk, and at a time in convolution 1
    Buffer<uint8_t> codes_, from_[3];
    Buffer<T> inputs_[CONVOLUTIONS];  // inputs of convolutions 1 to 5
    Buffer<T> activations_[3];        // inputs of the dense layers
    Buffer<T> gradients_[4];          // gradients of activations_ and of the logits
    Buffer<T> turned_, packed_;       // scratch of the dense layers
    Buffer<float> sums_, logits_;
    Dropout dropout_{0, 0};

    long stride(int i) const { return positions_[i > 1]; }  // rows per document in the input of convolution i
    long weights(int i) const { return PAPER_TAPS[i] * width_ * (i > 0 ? width_ : symbols_); }  // of convolution i, padded

    // Returns the number of pools of the first layer that see a symbol before the blank ones at the end.
    long written(const uint8_t* symbols) const {
        long end = shape_.length;
        while (end > 0 && symbols[end - 1] == shape_.alphabet) --end;
        return std::min(positions_[0], (end + PAPER_POOL - 1) / PAPER_POOL);
    }

    // The largest power of two of documents with that many rows each that are computed at a time.
    static long most_per_group(long rows_each) {
        long most = PAPER_GROUP;
        while (most > 1 && most * rows_each > 448) most /= 2;
        return most;
    }

    void prepare(long rows, bool training) {
        // About 400 rows at a time: enough for efficient products, few enough for the L1 cache. In training, the same
        // documents for any number of threads.
        rows_ = rows;
        chunk_ = most_per_group(positions_[1]);
        if (!training) chunk_ = std::max(1L, std::min(chunk_, (rows + threads_ - 1) / threads_));
        few_ = std::min(chunk_, most_per_group(positions_[0]));
        codes_.need(rows * shape_.length);
        for (int i = 0; i < 3; ++i) from_[i].need(rows * positions_[i] * width_);
        for (int i = 1; i < CONVOLUTIONS; ++i) inputs_[i].need((rows * stride(i) + GUARD) * width_);
        for (int i = 0; i < 4; ++i) {
            const long count = padded(rows) * padded(widths_[i]);
            if (i < 3) activations_[i].need(count);
            if (training) gradients_[i].need(count);
        }
        if (training) {
            turned_.need(term_depth<T>(rows) * std::max(padded(shape_.units), padded(shape_.classes)));
            packed_.need(term_depth<T>(rows) * std::max(padded(features_), padded(shape_.units)));
        }
        sums_.need(padded(rows) * std::max(padded(shape_.units), padded(shape_.classes)));
        const long longest = std::max(few_ * positions_[0], chunk_ * positions_[1]);
        for (Scratch& scratch : scratch_) {
            scratch.pooled.need(chunk_ * positions_[2] * width_);
            scratch.rows[0].need((chunk_ * positions_[0] + 2 * GUARD) * width_);
            if (!training) continue;
            for (int i = 0; i < CONVOLUTIONS; ++i) {
                scratch.total[i].need(weights(i));
                scratch.bias[i].need(width_);
            }
            scratch.first_layer.need(weights(0) + width_);
            scratch.rows[1].need((chunk_ * positions_[0] + 2 * GUARD) * width_);
            scratch.turned.need(SIDE + width_ * turned_depth<T>(longest));
            scratch.packed.need(BLOCK * std::max(turned_depth<T>(longest) + SHIFTS,
                                     std::max(units_, padded(shape_.classes))));
        }
        // Clear rows of an earlier, larger batch: the sums over rows include the padding.
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

    void load_table(const float* weights) {
#pragma omp for schedule(static)
        for (long channel = 0; channel < shape_.filters; ++channel)
            for (long tap = 0; tap < PAPER_TAPS[0]; ++tap)
                for (long symbol = 0; symbol < shape_.alphabet; ++symbol)
                    table_.get()[((channel / BLOCK * PAPER_TAPS[0] + tap) * symbols_ + symbol) * BLOCK + channel % BLOCK] =
                        weights[(channel * shape_.alphabet + symbol) * PAPER_TAPS[0] + tap];
    }

    // Computes all layers except the bias of the last one; leaves its products in sums_.
    void activate(const uint8_t* codes, long stride, uint64_t first_row) {
#pragma omp parallel num_threads(threads_)
        {
            Tiles tiles;
            Scratch& scratch = scratch_[omp_get_thread_num()];
#pragma omp for schedule(static)
            for (long first = 0; first < rows_; first += chunk_)
                convolutions(codes, stride, first, std::min(chunk_, rows_ - first), scratch);
            for (int i = 0; i < 3; ++i) {
                dense(activations_[i].get(), padded(rows_), widths_[i], widths_[i + 1], dense_[i].get(), sums_.get());
                if (i < 2) hidden(i, first_row);
            }
        }
    }

    void convolutions(const uint8_t* codes, long stride, long first, long count, Scratch& scratch) {
        for (long row = first; row < first + count; ++row) {
            uint8_t* symbols = codes_.get() + row * shape_.length;
            for (long i = 0; i < shape_.length; ++i)
                symbols[i] = uint8_t(std::min(long(codes[row * stride + i]), shape_.alphabet));
            first_layer(symbols, written(symbols), positions_[0], width_, PAPER_TAPS[0], symbols_, table_.get(),
                        bias_[0].get(), inputs_[1].get() + row * positions_[0] * width_,
                        from_[0].get() + row * positions_[0] * width_);
        }
        T* rows = scratch.rows[0].get() + GUARD * width_;
        for (long part = first; part < first + count; part += few_) {
            const long count_here = std::min(few_, first + count - part);
            convolution(inputs_[1].get() + part * positions_[0] * width_, count_here * positions_[0], width_, PAPER_TAPS[1],
                        forward_[1].get(), bias_[1].get(), rows);
            for (long row = 0; row < count_here; ++row)
                pool(rows + row * positions_[0] * width_, positions_[1], width_,
                     inputs_[2].get() + (part + row) * positions_[1] * width_,
                     from_[1].get() + (part + row) * positions_[1] * width_);
        }
        for (int i = 2; i < CONVOLUTIONS; ++i) {
            const long start = first * positions_[1] * width_;
            T* out = i + 1 < CONVOLUTIONS ? inputs_[i + 1].get() + start : rows;
            convolution(inputs_[i].get() + start, count * positions_[1], width_, PAPER_TAPS[i], forward_[i].get(),
                        bias_[i].get(), out);
        }
        for (long row = 0; row < count; ++row) {
            T* pooled = scratch.pooled.get();
            pool(rows + row * positions_[1] * width_, positions_[2], width_, pooled,
                 from_[2].get() + (first + row) * positions_[2] * width_);
            T* features = activations_[0].get() + (first + row) * padded(features_);
            for (long c = 0; c < shape_.filters; ++c)
                for (long p = 0; p < positions_[2]; ++p) features[c * positions_[2] + p] = pooled[p * width_ + c];
        }
    }

    // Applies bias, ReLU and dropout of hidden dense layer i: sums_ → activations_[i + 1].
    void hidden(int i, uint64_t first_row) {
        const float* bias = dense_bias_[i].get();
        const float scale = dropout_.scale();
#pragma omp for schedule(static)
        for (long row = 0; row < rows_; ++row)
            for (long n = 0; n < shape_.units; ++n) {
                float value = std::max(sums_.get()[row * units_ + n] + bias[n], 0.0f);
                if (dropout_.probability > 0) {
                    const uint64_t index = ((first_row + row) * 2 + i) * shape_.units + n;
                    value = dropout_.keeps(index) ? value * scale : 0.0f;
                }
                put(activations_[i + 1].get()[row * units_ + n], value);
            }
    }

    // Masks the gradient: units that are zero, by dropout or ReLU, pass no gradient on.
    void hidden_gradient(int i, long row, long column, const float* sums) {
        const long width = padded(widths_[i]);
        const float scale = i > 0 ? dropout_.scale() : 1.0f;
        for (long m = 0; m < BLOCK; ++m)
            for (long v = 0; v < BLOCK; v += LANES) {
                const long here = (row + m) * width + column + v;
                const Words mask = load(activations_[i].get() + here) > 0;
                store(gradients_[i].get() + here, where(mask, load(sums + m * BLOCK + v) * scale));
            }
    }

    void add_bias(float* logits) const {
        const float* bias = dense_bias_[2].get();
        for (long row = 0; row < rows_; ++row)
            for (long n = 0; n < shape_.classes; ++n)
                logits[row * shape_.classes + n] = sums_.get()[row * padded(shape_.classes) + n] + bias[n];
    }

    void loss(const float* logits, const uint8_t* batch, float* losses) {
        const long width = padded(shape_.classes);
        std::memset(static_cast<void*>(gradients_[3].get()), 0, padded(rows_) * width * sizeof(T));
        std::vector<float> gradient(shape_.classes);
        for (long row = 0; row < rows_; ++row) {
            losses[row] = objective_(logits + row * shape_.classes, batch, row, shape_.length, gradient.data());
            for (long n = 0; n < shape_.classes; ++n) put(gradients_[3].get()[row * width + n], gradient[n]);
        }
    }

    void backward(long first, long count, Scratch& scratch) {
        T *gradient = scratch.rows[0].get() + GUARD * width_, *next = scratch.rows[1].get() + GUARD * width_;
        for (long row = 0; row < count; ++row) {
            const T* features = gradients_[0].get() + (first + row) * padded(features_);
            T* pooled = scratch.pooled.get();
            for (long c = 0; c < shape_.filters; ++c)
                for (long p = 0; p < positions_[2]; ++p) pooled[p * width_ + c] = features[c * positions_[2] + p];
            unpool(pooled, from_[2].get() + (first + row) * positions_[2] * width_, positions_[2], positions_[1],
                   width_, gradient + row * positions_[1] * width_);
        }
        for (int i = CONVOLUTIONS - 1; i >= 2; --i) {
            const T* in = inputs_[i].get() + first * positions_[1] * width_;
            const long rows = count * positions_[1];
            convolution_weight_gradient(in, gradient, rows, width_, PAPER_TAPS[i], scratch.total[i].get(), scratch.bias[i].get(),
                                        scratch.quanta + 2 * i, scratch.turned.get(), scratch.packed.get());
            convolution_input_gradient(gradient, rows, width_, PAPER_TAPS[i], backward_[i].get(), i > 2 ? in : nullptr, next);
            std::swap(gradient, next);
        }
        for (long row = 0; row < count; ++row)
            unpool(gradient + row * positions_[1] * width_,
                   from_[1].get() + (first + row) * positions_[1] * width_, positions_[1], positions_[0], width_,
                   next + row * positions_[0] * width_);
        std::swap(gradient, next);
        for (long part = 0; part < count; part += few_) {
            const long rows = std::min(few_, count - part) * positions_[0];
            const long start = part * positions_[0] * width_;
            convolution_weight_gradient(inputs_[1].get() + first * positions_[0] * width_ + start, gradient + start,
                                        rows, width_, PAPER_TAPS[1], scratch.total[1].get(), scratch.bias[1].get(),
                                        scratch.quanta + 2, scratch.turned.get(), scratch.packed.get());
        }
        convolution_input_gradient<T>(gradient, count * positions_[0], width_, PAPER_TAPS[1], backward_[1].get(), nullptr,
                                      next);
        float *const table = scratch.first_layer.get(), *const bias = table + weights(0);
        std::fill(table, bias + width_, 0.0f);
        for (long row = 0; row < count; ++row) {
            const uint8_t* symbols = codes_.get() + (first + row) * shape_.length;
            const long start = (first + row) * positions_[0] * width_;
            first_layer_gradient(symbols, written(symbols), positions_[0], width_, PAPER_TAPS[0], symbols_,
                                 next + row * positions_[0] * width_, from_[0].get() + start, table, bias);
        }
        scratch.quanta[0].add(scratch.total[0].get(), table, weights(0));
        scratch.quanta[1].add(scratch.bias[0].get(), bias, width_);
        for (int i : {0, 1}) scratch.quanta[i].end_term();
    }

    // Sums the gradients of all threads into Gluon's layout.
    void sum_up(int32_t* const* gradients) {
        const long filters = shape_.filters;
#pragma omp for schedule(static)
        for (long out = 0; out < filters; ++out) {
            const long block_of = out / BLOCK, column = out % BLOCK;
            for (int i = 0; i < CONVOLUTIONS; ++i) {
                int32_t total = 0;
                for (const Scratch& scratch : scratch_) add_whole(total, scratch.bias[i].get()[out]);
                gradients[2 * i + 1][out] = total;
            }
            for (long tap = 0; tap < PAPER_TAPS[0]; ++tap)
                for (long in = 0; in < shape_.alphabet; ++in) {
                    int32_t total = 0;
                    for (const Scratch& scratch : scratch_)
                        add_whole(total, scratch.total[0].get()[((block_of * PAPER_TAPS[0] + tap) * symbols_ + in) * BLOCK + column]);
                    gradients[0][(out * shape_.alphabet + in) * PAPER_TAPS[0] + tap] = total;
                }
            for (int i = 1; i < CONVOLUTIONS; ++i)
                sum_channel(scratch_, [i](const Scratch& scratch) { return scratch.total[i].get(); }, out, filters, PAPER_TAPS[i], gradients[2 * i]);
        }
    }
};
