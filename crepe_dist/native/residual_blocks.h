// Residual blocks of the convolutional branch (He et al. 2016, arXiv:1512.03385):
//
//     x' = relu(x + conv2(relu(conv1(x))))
//
// The first POOLED_BLOCKS blocks end in a max pool of size 2. Activations have the arrangement of batch_layout.h.
#pragma once

#include <omp.h>

#include <cstring>
#include <utility>
#include <vector>

#include "batch_layout.h"
#include "compressed_array.h"
#include "fixed_point.h"
#include "layers.h"
#include "memory.h"
#include "winograd.h"

// The blocks: their weights, their activations of a batch, and the gradients of their weights. T: type of the
// activations.
template <class T> class ResidualBlocks {
  public:
    // channels: number of channels, which is the width of the embedding.
    ResidualBlocks(long blocks, long channels, long reduction_group, int threads)
        : channels_(channels),
          width_(padded(channels)),
          reduction_group_(reduction_group),
          threads_(threads),
          blocks_(blocks),
          scratch_(threads) {}

    long num_blocks() const { return long(blocks_.size()); }

    // Packs the weights of all convolutions. parameters: for each block, the weights [channels][channels][taps] and the
    // bias [channels] of its first and its second convolution.
    void set_parameters(const CompressedArray* parameters) {
        for (Block& block : blocks_)
            for (int i : {0, 1}) {
                Convolution& convolution = block.convolutions[i];
                std::memcpy(convolution.bias.reserve(width_), parameters[1].values, channels_ * sizeof(float));
                constexpr long PANELS = USES_WINOGRAD<T> ? WINOGRAD_POINTS : CONV_KERNEL_SIZE;
                T* const forward = convolution.forward.reserve(PANELS * width_ * width_);
                T* const backward = convolution.backward.reserve(PANELS * width_ * width_);
#pragma omp parallel num_threads(threads_)
                {
                    if constexpr (USES_WINOGRAD<T>)
                        pack_winograd_weights(parameters[0].floats(), channels_, forward, backward);
                    else pack_convolution(parameters[0].floats(), channels_, CONV_KERNEL_SIZE, forward, backward);
                }
                parameters += 2;
            }
    }

    // Allocates the memory of a batch.
    void reserve(const BatchLayout& layout) {
        const auto size = [&](long level) { return layout.array_rows(level) * width_; };
        for (long i = 0; i < num_blocks(); ++i) {
            blocks_[i].in.reserve(size(layout.level_of(i)));
            blocks_[i].hidden.reserve(size(layout.level_of(i)));
            if (layout.ends_in_pool(i)) blocks_[i].argmax.reserve(size(layout.level_of(i + 1)));
        }
        out_.reserve(size(layout.level_of(num_blocks())));
        const long longest = layout.max_chunk_rows();
        for (Scratch& scratch : scratch_) {
            for (auto& buffer : scratch.rows) buffer.reserve((longest + 2 * MARGIN) * width_);
            if (USES_WINOGRAD<T>) {
                const long tiles = TILES_AT_ONCE + longest / TILE_ROWS + reduction_group_;
                scratch.winograd_values.reserve(2 * WINOGRAD_POINTS * tiles * width_);
            } else {
                scratch.transposed.reserve(SIDE + width_ * transposed_depth<T>(longest));
                scratch.packed.reserve(BLOCK * (transposed_depth<T>(longest) + SHIFTS));
            }
        }
        // The margin after the last document may hold rows of an earlier batch.
        for (long i = 0; i < num_blocks(); ++i)
            for (Buffer<T>* buffer : {&blocks_[i].in, &blocks_[i].hidden})
                clear(buffer->get(), layout.start(layout.level_of(i), layout.documents()), MARGIN);
    }

    // Returns the input of the first block, which the embedding writes.
    T* input() { return blocks_[0].in.get(); }

    // Returns the output of the last block.
    const T* output() const { return out_.get(); }

    // Computes all blocks for a chunk.
    void forward(const BatchLayout& layout, const Chunk& chunk) {
        Scratch& scratch = scratch_[omp_get_thread_num()];
        for (long i = 0; i < num_blocks(); ++i) {
            Block& block = blocks_[i];
            const long level = layout.level_of(i), start = layout.start(level, chunk.first);
            const long rows = layout.chunk_rows(level, chunk);
            if (rows <= 0) break;
            // The gap before the chunk belongs to another thread, which may clear the gap later. Until then, the gap
            // may hold rows of an earlier batch.
            clear(block.in.get(), start - GAP, GAP);
            clear(block.hidden.get(), start - GAP, GAP);
            const T* const in = block.in.get() + start * width_;
            T* const hidden = block.hidden.get() + start * width_;
            list_tiles(layout, chunk, level, scratch);
            const float* const bias0 = block.convolutions[0].bias.get();
            convolve_chunk(in, rows, block.convolutions[0].forward, scratch, [&](long at, long channel, FloatVec sums) {
                store(hidden + at, relu(sums + load(bias0 + channel)));
            });
            clear_gaps(block.hidden.get(), 0, level, layout, chunk);
            const bool pools = layout.ends_in_pool(i);
            T* const out = pools ? scratch.rows[0].get() + MARGIN * width_ : output_of(i) + start * width_;
            const float* const bias1 = block.convolutions[1].bias.get();
            convolve_chunk(hidden, rows, block.convolutions[1].forward, scratch,
                           [&](long at, long channel, FloatVec sums) {
                               store(out + at, relu(sums + load(bias1 + channel) + load(in + at)));
                           });
            if (pools) {
                clear_gaps(out, start, level, layout, chunk);
                for (long document = chunk.first; document < chunk.last; ++document) {
                    const long pooled_at = layout.start(level + 1, document) * width_;
                    max_pool(out + (layout.start(level, document) - start) * width_, layout.length(level + 1, document),
                             output_of(i) + pooled_at, block.argmax.get() + pooled_at);
                }
            }
            clear_gaps(output_of(i), 0, layout.level_of(i + 1), layout, chunk);
        }
    }

    // Clears the weight gradients of all threads, and starts a backward pass. All threads of a parallel region call this
    // function together.
    void start_backward() {
#pragma omp for
        for (int thread = 0; thread < threads_; ++thread) {
            Scratch& scratch = scratch_[thread];
            scratch.weights.resize(2 * num_blocks());
            scratch.bias.resize(2 * num_blocks());
            const long size = CONV_KERNEL_SIZE * width_ * width_;
            for (long i = 0; i < 2 * num_blocks(); ++i) {
                std::memset(scratch.weights[i].reserve(size), 0, size * sizeof(int32_t));
                std::memset(scratch.bias[i].reserve(width_), 0, width_ * sizeof(int32_t));
            }
        }
    }

    // Computes the gradients of all blocks for a chunk.
    //
    // write_output_gradient(document, out): writes the gradient of a document's output. input_gradient: gradient of the
    // input of the first block. grad_scales: scales of the weights and the bias of each convolution, in the calling
    // thread.
    template <class WriteOutputGradient>
    void backward(const BatchLayout& layout, const Chunk& chunk, WriteOutputGradient write_output_gradient,
                  T* input_gradient, FixedPointScale* grad_scales) {
        Scratch& scratch = scratch_[omp_get_thread_num()];
        T *gradient = scratch.rows[0].get() + MARGIN * width_, *destination = scratch.rows[1].get() + MARGIN * width_;
        T* const hidden_gradient = scratch.rows[2].get() + MARGIN * width_;
        for (T* rows : {gradient, destination, hidden_gradient}) clear(rows, -MARGIN, MARGIN);
        const long top = layout.level_of(num_blocks());
        if (layout.chunk_rows(top, chunk) <= 0) return;
        for (long document = chunk.first; document < chunk.last; ++document)
            write_output_gradient(document,
                                  gradient + (layout.start(top, document) - layout.start(top, chunk.first)) * width_);
        for (long i = num_blocks() - 1; i >= 0; --i) {
            Block& block = blocks_[i];
            const long level = layout.level_of(i), start = layout.start(level, chunk.first);
            const long rows = layout.chunk_rows(level, chunk);
            if (layout.ends_in_pool(i)) {
                const long pooled_start = layout.start(level + 1, chunk.first);
                for (long document = chunk.first; document < chunk.last; ++document) {
                    const long pooled_row = layout.start(level + 1, document);
                    max_pool_gradient(gradient + (pooled_row - pooled_start) * width_,
                                      block.argmax.get() + pooled_row * width_, layout.length(level + 1, document),
                                      destination + (layout.start(level, document) - start) * width_);
                }
                std::swap(gradient, destination);
            } else {
                const T* const out = output_of(i) + start * width_;
                for (long at = 0; at < rows * width_; at += LANES)
                    store(gradient + at, select_or_zero(load(out + at) > 0, load(gradient + at)));
            }
            clear_gaps(gradient, start, level, layout, chunk);
            const T* const hidden = block.hidden.get() + start * width_;
            const T* const in = block.in.get() + start * width_;
            list_tiles(layout, chunk, level, scratch);
            add_weight_gradient(hidden, gradient, rows, 2 * i + 1, scratch, grad_scales);
            convolve_chunk(gradient, rows, block.convolutions[1].backward, scratch, [&](long at, long, FloatVec sums) {
                store(hidden_gradient + at, select_or_zero(load(hidden + at) > 0, sums));
            });
            clear_gaps(hidden_gradient, start, level, layout, chunk);
            add_weight_gradient(in, hidden_gradient, rows, 2 * i, scratch, grad_scales);
            T* const out = i ? destination : input_gradient + start * width_;
            const T* const residual = gradient;
            convolve_chunk(hidden_gradient, rows, block.convolutions[0].backward, scratch,
                           [&](long at, long, FloatVec sums) { store(out + at, sums + load(residual + at)); });
            std::swap(gradient, destination);
        }
    }

    // Adds the weight gradients of all threads, and writes the sums in Gluon's layout. All threads of a parallel region
    // call this function together. gradients: weights and bias of each convolution.
    void reduce_gradients(int32_t* const* gradients) {
#pragma omp for schedule(static)
        for (long out = 0; out < channels_; ++out)
            for (long i = 0; i < 2 * num_blocks(); ++i) {
                int32_t total = 0;
                for (const Scratch& scratch : scratch_) wrapping_add(total, scratch.bias[i].get()[out]);
                gradients[2 * i + 1][out] = total;
                const auto weights_of = [i](const Scratch& scratch) { return scratch.weights[i].get(); };
                reduce_channel(scratch_, weights_of, out, channels_, CONV_KERNEL_SIZE, gradients[2 * i]);
            }
    }

  private:
    // Weights of a convolution, packed for the forward pass and for the gradient of the input.
    struct Convolution {
        Buffer<T> forward, backward;
        Buffer<float> bias;
    };
    struct Block {
        Convolution convolutions[2];
        Buffer<T> in, hidden;    // Input, and output of the first convolution.
        Buffer<uint8_t> argmax;  // Position of each maximum of the max pool.
    };
    // Memory of one thread.
    struct Scratch {
        Buffer<T> rows[3], transposed, packed, winograd_values;
        std::vector<Tile> tiles;                      // Winograd tiles of the chunk.
        std::vector<Buffer<int32_t>> weights, bias;   // Fixed-point gradients of each convolution.
    };

    const long channels_, width_;  // width_ is channels_, padded to a multiple of 32.
    const long reduction_group_;
    const int threads_;
    std::vector<Block> blocks_;
    std::vector<Scratch> scratch_;
    Buffer<T> out_;

    // Returns the array that receives the output of a block.
    T* output_of(long block) { return block + 1 < num_blocks() ? blocks_[block + 1].in.get() : out_.get(); }

    void clear(T* rows, long first, long count) const {
        std::memset(static_cast<void*>(rows + first * width_), 0, count * width_ * sizeof(T));
    }

    // Clears the gaps behind the documents of a chunk. rows: array that begins with row `origin` of the level.
    void clear_gaps(T* rows, long origin, long level, const BatchLayout& layout, const Chunk& chunk) const {
        for (long document = chunk.first; document < chunk.last; ++document)
            clear(rows, layout.start(level, document) + layout.length(level, document) - origin, GAP);
    }

    // Lists the Winograd tiles of a chunk at a level.
    void list_tiles(const BatchLayout& layout, const Chunk& chunk, long level, Scratch& scratch) const {
        scratch.tiles.clear();
        for (long document = chunk.first; document < chunk.last; ++document)
            add_tiles(layout.start(level, document) - layout.start(level, chunk.first), layout.length(level, document),
                      scratch.tiles);
    }

    // Computes a convolution of the rows of a chunk, and calls finish(at, channel, sums) for each vector of the output.
    // at: index of the vector in [rows][width].
    template <class Finish>
    void convolve_chunk(const T* in, long rows, const Buffer<T>& weights, Scratch& scratch, Finish finish) const {
        if constexpr (USES_WINOGRAD<T>) {
            winograd_convolve(in - GAP * width_, scratch.tiles, width_, weights.get(), scratch.winograd_values.get(),
                              finish);
        } else {
            convolve(in - GAP * width_, rows, width_, CONV_KERNEL_SIZE, weights.get(), finish);
        }
    }

    // Adds a term to the gradients of the weights and the bias of a convolution.
    void add_weight_gradient(
        const T* in, const T* gradient, long rows, long convolution, Scratch& scratch, FixedPointScale* grad_scales
    ) const {
        int32_t *const weights = scratch.weights[convolution].get(), *const bias = scratch.bias[convolution].get();
        FixedPointScale* const scales = grad_scales + 2 * convolution;
        if constexpr (USES_WINOGRAD<T>) {
            winograd_weight_gradient(in - GAP * width_, gradient, scratch.tiles, width_, weights, scales[0],
                                     scratch.winograd_values.get());
            add_bias_gradient(gradient, rows, width_, bias, scales[1]);
        } else {
            convolution_weight_gradient(in - GAP * width_, gradient, rows, width_, CONV_KERNEL_SIZE, weights, bias,
                                        scales, scratch.transposed.get(), scratch.packed.get());
        }
    }

    // Computes the max pool of size 2 of one document: in, after ReLU, to out [pooled][width]. A row of zeros follows
    // `in`. It completes the last window if the number of positions is odd. argmax: 0, 1, or NO_MAXIMUM.
    void max_pool(const T* in, long pooled, T* out, uint8_t* argmax) const {
        for (long p = 0; p < pooled; ++p)
            for (long c = 0; c < width_; c += LANES) {
                const FloatVec first = load(in + 2 * p * width_ + c), second = load(in + (2 * p + 1) * width_ + c);
                const IntVec is_larger = second > first;
                const FloatVec best = is_larger ? second : first;
                store(out + p * width_ + c, best);
                const IntVec position = is_larger ? IntVec{} + 1 : IntVec{};
                store(argmax + p * width_ + c, best > 0 ? position : IntVec{} + NO_MAXIMUM);
            }
    }

    // Computes the gradient of the input of a max pool.
    void max_pool_gradient(const T* gradient, const uint8_t* argmax, long pooled, T* out) const {
        for (long p = 0; p < pooled; ++p)
            for (long c = 0; c < width_; c += LANES) {
                const FloatVec value = load(gradient + p * width_ + c);
                const IntVec position = load(argmax + p * width_ + c);
                for (int s : {0, 1}) store(out + (2 * p + s) * width_ + c, select_or_zero(position == s, value));
            }
    }
};
