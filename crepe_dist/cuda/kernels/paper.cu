// The paper's network on a GPU. native/paper.h describes the network; both implementations are equivalent except for
// rounding.
//
// Activations are Element [documents][positions][width]: the channels of a convolution or the units of a dense layer,
// and zeros up to a multiple of SIDE. A dense layer has one position. A convolution has no padding, so it has `taps` - 1
// positions fewer than its input. Packed weights are Element [taps][outputs][inputs], where both are such widths.

#include "block_product.cuh"
#include "loss.cuh"
#include "optimizer.cuh"
#include "texts.cuh"

constexpr int NO_MAXIMUM = PAPER_POOL;  // Argmax of a pooling window whose values are all 0. It has no gradient.

__device__ inline float relu(float value) { return value > 0 ? value : 0.0f; }

__device__ inline int divide_up(int number, int by) { return (number + by - 1) / by; }
__device__ inline i64 padded(i64 width) { return (width + SIDE - 1) / SIDE * SIDE; }

// ---- weights -------------------------------------------------------------------------------------------------------

// Weights of a layer, float32 [outputs][inputs][taps], and their packed copy. networks/paper/cuda.py writes this struct.
struct Layer {
    const float* weights;
    Element* packed;
    i64 outputs, inputs, taps;
};

// Packs the weights of all layers but the first. Blocks: (parts, layers).
KERNEL(THREADS) pack_layers(const Layer* layers) {
    const Layer layer = layers[blockIdx.y];
    const i64 inputs = padded(layer.inputs), outputs = padded(layer.outputs);
    for (i64 i = global_thread(); i < layer.taps * outputs * inputs; i += num_grid_threads()) {
        const i64 in = i % inputs, out = i / inputs % outputs, tap = i / inputs / outputs;
        const bool is_weight = in < layer.inputs && out < layer.outputs;
        put(layer.packed[i], is_weight ? layer.weights[(out * layer.inputs + in) * layer.taps + tap] : 0.0f);
    }
}

// Writes the weights of the first layer, float32 [channels][alphabet][taps], to table [taps][alphabet + 1][width]. The
// row of the last symbol, which is the blank, is zero.
KERNEL(THREADS) pack_first_layer(const float* weights, int channels, int width, int alphabet, int taps, float* table) {
    for (i64 i = global_thread(); i < i64(taps) * (alphabet + 1) * width; i += num_grid_threads()) {
        const int channel = int(i % width), symbol = int(i / width % (alphabet + 1)),
                  tap = int(i / width / (alphabet + 1));
        const bool is_weight = channel < channels && symbol < alphabet;
        table[i] = is_weight ? weights[(i64(channel) * alphabet + symbol) * taps + tap] : 0.0f;
    }
}

// ---- operands of products ------------------------------------------------------------------------------------------

// Positions of activations as the left operand of a convolution, whose depth is taps × width. A position of the product
// sees `taps` positions of its document, from `before` positions before it. Positions outside the document are zeros.
struct ConvolutionInputs {
    using Tile = OperandTile<false>;
    const Element* words[WORDS];
    int positions[WORDS];
    int of_document, width, tap = 0, k;

    __device__ ConvolutionInputs(
        const Element* in, int in_positions, int out_positions, int before, int documents, int width, int first_row,
        int first_k = 0
    ) : of_document(in_positions), width(width), k(first_k) {
        for (int i = 0; i < WORDS; ++i) {
            const int row = first_row + Tile::line(i), document = row / out_positions;
            positions[i] = document < documents ? row % out_positions - before : -of_document;
            words[i] = in + (i64(document) * in_positions + positions[i]) * width + Tile::first(i);
        }
    }

    __device__ void load(Word (&to)[WORDS]) {
        for (int i = 0; i < WORDS; ++i) {
            const int position = positions[i] + tap;
            const bool is_inside = position >= 0 && position < of_document && k + Tile::first(i) < width;
            to[i] = is_inside ? load_word(words[i] + i64(tap) * width + k) : Word{};
        }
        k += DEPTH;
        if (k >= width) {
            k = 0;
            ++tap;
        }
    }
};

// Packed weights as the right operand of a product. If BACK, the product is the gradient of the layer's input: its
// depth are the outputs, and the taps are reversed.
template <bool BACK> struct PackedWeights {
    using Tile = OperandTile<BACK>;
    const Element* weights;
    int outputs, inputs, tap, first_column, k;

    __device__ PackedWeights(const Element* weights, int outputs, int inputs, int taps, int column, int first_k = 0)
        : weights(weights), outputs(outputs), inputs(inputs), tap(BACK ? taps - 1 : 0), first_column(column),
          k(first_k) {}

    __device__ void load(Word (&to)[WORDS]) {
        for (int i = 0; i < WORDS; ++i) {
            const int out = BACK ? k + Tile::line(i) : first_column + Tile::line(i);
            const int in = BACK ? first_column + Tile::first(i) : k + Tile::first(i);
            const bool is_inside = tap >= 0 && out < outputs && in < inputs;
            to[i] = is_inside ? load_word(weights + (i64(tap) * outputs + out) * inputs + in) : Word{};
        }
        k += DEPTH;
        if (k >= (BACK ? outputs : inputs)) {
            k = 0;
            tap += BACK ? -1 : 1;
        }
    }
};

// Channels of activations as an operand of a weight gradient, whose depth are the positions of a group of documents.
// `positions` of the in_positions of each document are read, from position `tap`.
struct GroupChannels {
    using Tile = OperandTile<true>;
    const Element* in;
    int positions, in_positions, width, column, row, end;

    __device__ GroupChannels(
        const Element* in, int in_positions, int positions, int tap, int width, int column, int document, int documents
    ) : in(in + i64(tap) * width), positions(positions), in_positions(in_positions), width(width), column(column),
        row(document * positions), end((document + documents) * positions) {}

    __device__ void load(Word (&to)[WORDS]) {
        for (int i = 0; i < WORDS; ++i) {
            const int at = row + Tile::line(i), channel = column + Tile::first(i);
            const i64 position = at + i64(at / positions) * (in_positions - positions);
            to[i] = at < end && channel < width ? load_word(in + position * width + channel) : Word{};
        }
        row += DEPTH;
    }
};

struct alignas(16) EightElements {
    Element at[8];
};

// ---- convolutions --------------------------------------------------------------------------------------------------

// Computes the first layer, ReLU and max pool of each document: out [documents][pooled][width], and the argmax of each
// window in `from`, or NO_MAXIMUM. The product with one-hot characters is a sum of rows of the table. texts: as
// `add_boundary_symbols` writes them. A thread computes four channels of a window. Blocks: (windows, parts of 64
// channels).
struct alignas(16) Channels {
    float at[4];
};
KERNEL(THREADS) convolve_characters(
    const u8* texts, int symbols, const float* table, const float* bias, int documents, int pooled, int channels, int
    width, int alphabet, int taps, Element* out, u8* from
) {
    const i64 window = i64(blockIdx.x) * (THREADS / 16) + threadIdx.x / 16;
    const int channel = blockIdx.y * 64 + threadIdx.x % 16 * 4;
    if (window >= i64(documents) * pooled || channel >= width) return;
    const u8* const text = texts + window / pooled * symbols + 1 + window % pooled * PAPER_POOL;
    Channels sums[PAPER_POOL];
    for (Channels& sum : sums)
        for (int c = 0; c < 4; ++c) sum.at[c] = channel + c < channels ? bias[channel + c] : 0.0f;
    for (int tap = 0; tap < taps; ++tap)
#pragma unroll
        for (int p = 0; p < PAPER_POOL; ++p) {
            const int symbol = min(int(text[tap + p]), alphabet);
            const i64 row = i64(tap) * (alphabet + 1) + symbol;
            const Channels weights = *reinterpret_cast<const Channels*>(table + row * width + channel);
            for (int c = 0; c < 4; ++c) sums[p].at[c] += weights.at[c];
        }
    for (int c = 0; c < 4; ++c) {
        float best = sums[0].at[c];
        int at = 0;
        for (int p = 1; p < PAPER_POOL; ++p)
            if (sums[p].at[c] > best) {
                best = sums[p].at[c];
                at = p;
            }
        put(out[window * width + channel + c], relu(best));
        from[window * width + channel + c] = u8(best > 0 ? at : NO_MAXIMUM);
    }
}

// Computes a block of a convolution of `in`, [documents][in_positions][in_width], to out [documents][out_positions]
// [out_width], and calls finish(value, column, index) for each sum.
template <bool BACK, class Finish>
__device__ void convolve_block(
    const Element* in, const Element* weights, int documents, int in_positions, int out_positions, int taps, int
    in_width, int out_width, Element* out, Finish finish
) {
    const int columns = divide_up(out_width, BLOCK_SIDE), rows = documents * out_positions;
    const int row = blockIdx.x / columns * BLOCK_SIDE, column = blockIdx.x % columns * BLOCK_SIDE;
    BlockProduct<false, BACK> product;
    product.multiply(
        ConvolutionInputs(in, in_positions, out_positions, BACK ? taps - 1 : 0, documents, in_width, row),
        PackedWeights<BACK>(weights, BACK ? in_width : out_width, BACK ? out_width : in_width, taps, column),
        taps * divide_up(in_width, DEPTH) * DEPTH, rows - row, out_width - column
    );
    product.visit(product.sums, [&](int m, int n, const float* sums) {
        if (row + m >= rows || column + n >= out_width) return;
        const i64 index = i64(row + m) * out_width + column + n;
        EightElements results;
        finish(sums, column + n, index, results);
        *reinterpret_cast<EightElements*>(out + index) = results;
    });
}

// Computes a convolution with ReLU: out = relu(convolution + bias). Blocks: tiles of the product.
KERNEL(THREADS) convolve_positions(
    const Element* in, const Element* weights, const float* bias, int documents, int in_positions, int out_positions,
    int taps, int in_width, int out_width, int channels, Element* out
) {
    convolve_block<false>(in, weights, documents, in_positions, out_positions, taps, in_width, out_width, out,
        [&](const float* sums, int channel, i64, EightElements& results) {
            for (int i = 0; i < 8; ++i)
                put(results.at[i], relu(sums[i] + (channel + i < channels ? bias[channel + i] : 0.0f)));
        });
}

// Computes the gradient of a convolution's input, which is 0 where the input is 0. Blocks: tiles of the product.
KERNEL(THREADS) convolve_gradients(
    const Element* gradients, const Element* weights, const Element* inputs, int documents, int in_positions, int
    out_positions, int taps, int in_width, int out_width, Element* out
) {
    convolve_block<true>(gradients, weights, documents, in_positions, out_positions, taps, in_width, out_width, out,
        [&](const float* sums, int, i64 index, EightElements& results) {
            const EightElements masks = *reinterpret_cast<const EightElements*>(inputs + index);
            for (int i = 0; i < 8; ++i) put(results.at[i], to_float(masks.at[i]) > 0 ? sums[i] : 0.0f);
        });
}

// ---- gradients of weights ------------------------------------------------------------------------------------------

// Adds the terms of a part of 32 channels to the gradients of a bias; see `add_weight_gradients`.
__device__ inline void add_bias_gradients(
    const Element* gradients, int part, int documents, int positions, int channels, float inverse_scale, i32* bias,
    u32* largest
) {
    float* const sums = reinterpret_cast<float*>(dynamic_shared());
    const int warp = threadIdx.x / 32, channel = part * 32 + threadIdx.x % 32, width = int(padded(channels));
    for (int group = blockIdx.y * PAPER_REDUCTION_GROUP; group < documents;
         group += gridDim.y * PAPER_REDUCTION_GROUP) {
        const int end = min(documents, group + PAPER_REDUCTION_GROUP) * positions;
        float sum = 0;
#pragma unroll 8
        for (int row = group * positions + warp; row < end; row += THREADS / 32)
            sum += channel < channels ? to_float(gradients[i64(row) * width + channel]) : 0.0f;
        __syncthreads();  // The sums of the group before may still be read.
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (warp > 0 || channel >= channels) continue;
        for (int other = 32; other < THREADS; other += 32) sum += sums[threadIdx.x + other];
        add_term(bias + channel, sum * inverse_scale);
        atomicMax(largest + group, size_bits(sum * inverse_scale));
    }
}

// Adds the terms of each group of PAPER_REDUCTION_GROUP documents to the fixed-point gradients of a layer's weights
// [taps][left channels][right channels] and bias. Writes the bits of the largest absolute value of each term to largest
// and largest_bias [documents], at the first document of the group.
//
// A position of `right` belongs to `taps` positions of `left`. left: [documents][left_positions][left_width], right:
// [documents][right_positions][right_width]. is_bias_left: whether the gradients of the layer's outputs are `left`, for
// a dense layer, or `right`. A dense layer has one position, so the depth of a group is 8 documents. wmma multiplies 16
// numbers of 16 bits along the depth, so half of these products are zeros. Blocks: (tiles of the product and parts of 32
// bias channels, parts of the groups).
extern "C" __global__ __launch_bounds__(THREADS, 1) void add_weight_gradients(
    const Element* left, const Element* right, int documents, int left_positions, int right_positions, int taps, int
    left_channels, int right_channels, int is_bias_left, float inverse_scale, float bias_inverse_scale, i32* weights,
    i32* bias, u32* largest, u32* largest_bias
) {
    const int left_width = int(padded(left_channels)), right_width = int(padded(right_channels));
    const int left_tiles = divide_up(left_width, BLOCK_SIDE), right_tiles = divide_up(right_width, BLOCK_SIDE);
    const int tiles = taps * left_tiles * right_tiles;
    if (int(blockIdx.x) >= tiles) {
        const Element* const gradients = is_bias_left ? left : right;
        add_bias_gradients(gradients, blockIdx.x - tiles, documents, right_positions,
                           is_bias_left ? left_channels : right_channels, bias_inverse_scale, bias, largest_bias);
        return;
    }
    const int left_column = blockIdx.x / right_tiles % left_tiles * BLOCK_SIDE,
              right_column = blockIdx.x % right_tiles * BLOCK_SIDE, tap = blockIdx.x / right_tiles / left_tiles;
    BlockProduct<true, true> product;
    MatrixTile totals[TILE_ROWS][TILE_COLUMNS];  // int32 numbers
    for (auto& tiles : totals)
        for (MatrixTile& tile : tiles) tile.clear();
    for (int group = blockIdx.y * PAPER_REDUCTION_GROUP; group < documents;
         group += gridDim.y * PAPER_REDUCTION_GROUP) {
        const int count = min(PAPER_REDUCTION_GROUP, documents - group);
        product.multiply(
            GroupChannels(left, left_positions, right_positions, tap, left_width, left_column, group, count),
            GroupChannels(right, right_positions, right_positions, 0, right_width, right_column, group, count),
            count * right_positions, left_width - left_column, right_width - right_column
        );
        u32 size = 0;
#pragma unroll
        for (int m = 0; m < TILE_ROWS; ++m)
#pragma unroll
            for (int n = 0; n < TILE_COLUMNS; ++n)
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const float term = product.sums[m][n].sums[i] * inverse_scale;
                    float& total = totals[m][n].sums[i];
                    total = __uint_as_float(__float_as_uint(total) + u32(__float2int_rn(term)));
                    size = Max()(size, size_bits(term));
                }
        size = warp_reduce(size, 32, Max());
        if (size && threadIdx.x % 32 == 0) atomicMax(largest + group, size);
    }
    product.visit(totals, [&](int m, int n, const float* numbers) {
        for (int i = 0; i < 8; ++i) {
            const int row = left_column + m, column = right_column + n + i;
            const u32 total = __float_as_uint(numbers[i]);
            if (row < left_channels && column < right_channels && total)
                atomicAdd(reinterpret_cast<u32*>(weights) + (i64(tap) * left_channels + row) * right_channels + column,
                          total);
        }
    });
}

// Adds the terms of each group of documents to the fixed-point gradients of the first layer's weights [taps][alphabet]
// [channels] and bias; see `add_weight_gradients`. gradients and from: of the windows, [documents][pooled][width]. A
// warp adds documents to a table of its own, [alphabet + 2][32]. The last two rows are for the blank and for the bias.
// Blocks: (groups and parts of 32 channels, taps). Shared memory: the tables.
KERNEL(THREADS) add_character_gradients(
    const u8* texts, int symbols, const Element* gradients, const u8* from, int documents, int pooled, int channels, int
    width, int alphabet, float inverse_scale, float bias_inverse_scale, i32* weights, i32* bias, u32* largest, u32*
    largest_bias
) {
    constexpr int AHEAD = 8;  // Windows whose numbers a thread requests before it waits for the first one.
    const int parts = divide_up(width, 32), group = blockIdx.x / parts * PAPER_REDUCTION_GROUP, tap = blockIdx.y;
    const int lane = threadIdx.x % 32, channel = blockIdx.x % parts * 32 + lane, size = (alphabet + 2) * 32;
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32, end = min(documents, group + PAPER_REDUCTION_GROUP);
    float *const tables = reinterpret_cast<float*>(dynamic_shared()), *const table = tables + warp * size + lane;
    for (int i = lane; i < size; i += 32) table[i - lane] = 0.0f;
    __syncwarp();
    float bias_sum = 0;
    for (int document = group + warp; document < end && channel < channels; document += warps) {
        const u8* const text = texts + i64(document) * symbols + 1 + tap;
        const i64 start = i64(document) * pooled * width + channel;
        for (int first = 0; first < pooled; first += AHEAD) {
            float values[AHEAD];
            int rows[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                const i64 at = start + i64(min(first + i, pooled - 1)) * width;
                const int position = min(int(from[at]), PAPER_POOL - 1);  // The gradient of NO_MAXIMUM is 0.
                values[i] = first + i < pooled ? to_float(gradients[at]) : 0.0f;
                rows[i] = min(int(text[min(first + i, pooled - 1) * PAPER_POOL + position]), alphabet) * 32;
            }
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                table[rows[i]] += values[i];
                bias_sum += values[i];
            }
        }
    }
    table[(alphabet + 1) * 32] = bias_sum;
    __syncthreads();
    u32 most = 0, most_bias = 0;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        const int symbol = i / 32, to = blockIdx.x % parts * 32 + i % 32;
        float sum = 0;
        for (int of = 0; of < warps; ++of) sum += tables[of * size + i];
        if (to >= channels || symbol == alphabet || (symbol > alphabet && tap)) continue;
        const bool is_bias = symbol > alphabet;
        const float term = sum * (is_bias ? bias_inverse_scale : inverse_scale);
        add_term(is_bias ? bias + to : weights + (i64(tap) * alphabet + symbol) * channels + to, term);
        most = Max()(most, is_bias ? 0 : size_bits(term));
        most_bias = Max()(most_bias, is_bias ? size_bits(term) : 0);
    }
    if (most) atomicMax(largest + group, most);
    if (most_bias) atomicMax(largest_bias + group, most_bias);
}

// ---- pools ---------------------------------------------------------------------------------------------------------

// Returns the index of a number of a pooled array: [documents][pooled][width], or [documents][features] with the
// positions of each channel in turn, as Gluon flattens it. features: 0, or the padded number of features.
__device__ inline i64 pooled_index(i64 document, int position, int channel, int pooled, int width, int features) {
    if (features) return document * features + channel * pooled + position;
    return (document * pooled + position) * width + channel;
}

// Computes a max pool of size PAPER_POOL without the positions of an incomplete window. from: argmax of each window, or
// NO_MAXIMUM, [documents][pooled][width].
KERNEL(THREADS) pool_positions(
    const Element* in, int documents, int positions, int pooled, int channels, int width, int features, Element* out,
    u8* from
) {
    for (i64 i = global_thread(); i < i64(documents) * pooled * width; i += num_grid_threads()) {
        const int channel = int(i % width), window = int(i / width % pooled);
        const i64 document = i / width / pooled;
        float best = 0;
        int at = NO_MAXIMUM;
        for (int p = 0; p < PAPER_POOL; ++p) {
            const float value = to_float(in[(document * positions + window * PAPER_POOL + p) * width + channel]);
            if (value > best) {
                best = value;
                at = p;
            }
        }
        from[i] = u8(at);
        if (channel < channels || !features)
            put(out[pooled_index(document, window, channel, pooled, width, features)], best);
    }
}

// Computes the gradient of the input of a max pool. gradients: gradient of its output.
KERNEL(THREADS) unpool_positions(
    const Element* gradients, const u8* from, int documents, int positions, int pooled, int channels, int width, int
    features, Element* out
) {
    for (i64 i = global_thread(); i < i64(documents) * positions * width; i += num_grid_threads()) {
        const int channel = int(i % width), position = int(i / width % positions), window = position / PAPER_POOL;
        const i64 document = i / width / positions;
        const bool is_maximum = window < pooled && channel < channels &&
                                from[(document * pooled + window) * width + channel] == position % PAPER_POOL;
        put(out[i], is_maximum ? to_float(gradients[pooled_index(document, window, channel, pooled, width, features)])
                               : 0.0f);
    }
}

// ---- dense layers --------------------------------------------------------------------------------------------------

// Computes a block of a dense layer's products: sums [parts][documents][out_width]. A part has `part` numbers of the
// depth, so that few documents also keep a GPU busy. The parts do not depend on the number of documents, because their
// sums are rounded.
template <bool BACK>
__device__ void multiply_dense_block(
    const Element* in, const Element* weights, int documents, int in_width, int out_width, int part, float* sums
) {
    const int columns = divide_up(out_width, BLOCK_SIDE), first = blockIdx.y * part;
    const int row = blockIdx.x / columns * BLOCK_SIDE, column = blockIdx.x % columns * BLOCK_SIDE;
    BlockProduct<false, BACK> product;
    product.multiply(
        ConvolutionInputs(in, 1, 1, 0, documents, in_width, row, first),
        PackedWeights<BACK>(weights, BACK ? in_width : out_width, BACK ? out_width : in_width, 1, column, first),
        min(part, in_width - first), documents - row, out_width - column
    );
    product.visit(product.sums, [&](int m, int n, const float* numbers) {
        if (row + m >= documents || column + n >= out_width) return;
        float* const to = sums + (i64(blockIdx.y) * documents + row + m) * out_width + column + n;
        for (int i = 0; i < 8; ++i) to[i] = numbers[i];
    });
}
KERNEL(THREADS) multiply_dense(
    const Element* in, const Element* weights, int documents, int in_width, int out_width, int part, float* sums
) {
    multiply_dense_block<false>(in, weights, documents, in_width, out_width, part, sums);
}
KERNEL(THREADS) multiply_dense_gradients(
    const Element* gradients, const Element* weights, int documents, int in_width, int out_width, int part, float* sums
) {
    multiply_dense_block<true>(gradients, weights, documents, in_width, out_width, part, sums);
}

// Returns the sum of the parts of number i. count: numbers of a part.
__device__ inline float sum_parts(const float* sums, int parts, i64 count, i64 i) {
    float sum = 0;
    for (int part = 0; part < parts; ++part) sum += sums[part * count + i];
    return sum;
}

// Computes the units of hidden dense layer `layer` with ReLU and dropout. first: number of the batch's first document in
// the global batch.
KERNEL(THREADS) finish_hidden_layer(
    const float* sums, int parts, int documents, int units, int width, const float* bias, u64 seed, int threshold, float
    scale, u64 first, int layer, Element* out
) {
    const Dropout dropout{seed, threshold, scale};
    const i64 count = i64(documents) * width;
    for (i64 i = global_thread(); i < count; i += num_grid_threads()) {
        const i64 document = i / width, unit = i % width;
        float value = unit < units ? relu(sum_parts(sums, parts, count, i) + bias[unit]) : 0.0f;
        if (threshold > 0) value = dropout(((first + document) * 2 + layer) * units + unit, value);
        put(out[i], value);
    }
}

// Computes the gradients of a dense layer's inputs. Inputs that are 0 get none. scale: scale of their dropout.
KERNEL(THREADS) finish_dense_gradients(
    const float* sums, int parts, int documents, int width, const Element* inputs, float scale, Element* out
) {
    const i64 count = i64(documents) * width;
    for (i64 i = global_thread(); i < count; i += num_grid_threads())
        put(out[i], to_float(inputs[i]) > 0 ? sum_parts(sums, parts, count, i) * scale : 0.0f);
}

// Computes the logits [documents][classes].
KERNEL(THREADS) finish_logits(
    const float* sums, int parts, int documents, int classes, int width, const float* bias, float* logits
) {
    for (i64 i = global_thread(); i < i64(documents) * classes; i += num_grid_threads()) {
        const i64 n = i % classes;
        logits[i] = sum_parts(sums, parts, i64(documents) * width, i / classes * width + n) + bias[n];
    }
}

// Rounds the gradients of the logits [documents][classes] to out [documents][width].
KERNEL(THREADS) round_logit_gradients(const float* gradients, int documents, int classes, int width, Element* out) {
    for (i64 i = global_thread(); i < i64(documents) * width; i += num_grid_threads())
        put(out[i], i % width < classes ? gradients[i / width * classes + i % width] : 0.0f);
}
