// C functions of networks, optimizers and sharded embeddings. Python calls them through ctypes: library.py declares
// their signatures, and crepe_dist/model/inference.py and crepe_dist/engines/cpu_engine.py call them.
//
// Functions that allocate memory return 0, or 1 if memory ran out. Functions that create an object return null in that
// case.

#include <sys/syscall.h>
#include <unistd.h>

#include "row_exchange.h"
#include "two_branch.h"
#include "ngrams.h"
#include "glibc_compat.h"
#include "paper.h"
#include "conv_branch.h"

namespace {

// Returns the sizes of an n-gram branch. shape: the members of NGramConfig, in declaration order.
NGramConfig ngram_config(const int64_t* shape) {
    return {shape[0], shape[1], shape[2], shape[3], shape[4], shape[5], shape[6]};
}

// Multiplies two size × size matrices `times` times in each thread, with the blocks that the networks use. The elements
// are between -1 and 1, and not 0. Products of zeros would take less power than other products, so with AMX, the clock
// frequency would be a sixth higher, and the timing would be wrong.
template <class T> void time_matmul(long size, int threads, int times) {
    std::vector<Buffer<T>> left(threads), right(threads);
    std::vector<Buffer<float>> result(threads);
    for (int i = 0; i < threads; ++i) {
        left[i].reserve(size * size);
        right[i].reserve(size * size);
        result[i].reserve(size * size);
    }
#pragma omp parallel num_threads(threads)
    {
        TileRegisters tiles;
        const int thread = omp_get_thread_num();
        for (long n = 0; n < size * size; ++n) {
            const float number = float(uint32_t(n) * 2654435761u) / 0x1p31f - 1;
            store_scalar(left[thread].get()[n], number);
            store_scalar(right[thread].get()[n], number);
        }
        for (int i = 0; i < times; ++i)
            for (long column = 0; column < size; column += BLOCK)
                block(left[thread].get(), size, size, 1, size, right[thread].get() + column * size,
                      result[thread].get() + column, size, false);
    }
}

// Runs `work`, and returns 1 if memory ran out. Python then raises MemoryError. An exception that left a C function
// would end the process.
template <class Work> int run_guarded(Work work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace

extern "C" {

// Returns 1 if this build has bfloat16 instructions and this process may use them.
int crepe_has_bfloat16() {
#if defined(__AMX_BF16__)
    // Linux requires a process to request the AMX tile data before their first use (arch_prctl, ARCH_REQ_XCOMP_PERM).
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#elif defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

// Creates the paper's network. shape: the members of PaperConfig, in declaration order. bfloat: 1 to compute in
// bfloat16.
void* crepe_open_paper(int bfloat, const int64_t* shape, int threads) {
    const PaperConfig config{shape[0], shape[1], shape[2], shape[3], shape[4]};
    Engine* engine = nullptr;
    run_guarded([&] {
        if (bfloat) engine = new PaperNetwork<bfloat16>(config, threads);
        else engine = new PaperNetwork<float>(config, threads);
    });
    return engine;
}

// Creates the n-gram network. shape: see ngram_config.
void* crepe_open_ngrams(const int64_t* shape, int threads) {
    Engine* engine = nullptr;
    run_guarded([&] { engine = new NGramBranch(ngram_config(shape), threads); });
    return engine;
}

// Creates the crepe network. shape: the 7 sizes of the n-gram branch, then the sizes of the convolutional branch: maxn
// of the embedding, rows and width of the embedding, number of blocks, stride, reduction group.
void* crepe_open_crepe(int bfloat, const int64_t* shape, double feature_dropout, int threads) {
    const PositionEmbeddingConfig embedding{shape[0], shape[1], shape[7], shape[8], shape[9], shape[11]};
    const ConvBranchConfig config{embedding, shape[2], shape[10], shape[12], feature_dropout};
    Engine* engine = nullptr;
    run_guarded([&] {
        std::unique_ptr<Engine> conv_branch;
        if (bfloat) conv_branch = std::make_unique<ConvBranch<bfloat16>>(config, threads);
        else conv_branch = std::make_unique<ConvBranch<float>>(config, threads);
        auto ngram_branch = std::make_unique<NGramBranch>(ngram_config(shape), threads);
        engine = new TwoBranchNetwork(std::move(ngram_branch), std::move(conv_branch), 3, shape[2]);
    });
    return engine;
}

// Writes the distinct buckets of each document to buckets [rows][max_buckets], in ascending order, and their numbers to
// counts [rows]. Unused elements are filled with all buckets in turn, which spreads the padding over the table.
int crepe_find_ngrams(
    const uint8_t* codes, int64_t stride, int64_t rows, const int64_t* shape, int64_t max_buckets, int32_t* buckets,
    int64_t* counts, int threads
) {
    return run_guarded([&] {
        std::vector<NGramFinder> finders;
        for (int i = 0; i < threads; ++i) finders.emplace_back(shape[4]);
        std::vector<std::vector<uint32_t>> lists(threads);
#pragma omp parallel for num_threads(team_size(threads, rows)) schedule(dynamic)
        for (int64_t row = 0; row < rows; ++row) {
            std::vector<uint32_t>& list = lists[omp_get_thread_num()];
            finders[omp_get_thread_num()].find(codes + row * stride, ngram_config(shape), list);
            counts[row] = int64_t(list.size());
            std::copy_n(list.begin(), std::min(max_buckets, counts[row]), buckets + row * max_buckets);
            for (int64_t i = counts[row]; i < max_buckets; ++i)
                buckets[row * max_buckets + i] = int32_t((row * max_buckets + i) % shape[4]);
        }
    });
}

// Counts the documents of each class that contain each bucket; see count_ngrams.
int crepe_count_ngrams(
    const uint8_t* codes, int64_t stride, int64_t rows, const int64_t* shape, const int32_t* labels, int32_t* counts,
    int threads
) {
    return run_guarded([&] {
        count_ngrams(codes, stride, rows, ngram_config(shape), labels, counts,
                     threads);
    });
}

void crepe_close(void* engine) { delete static_cast<Engine*>(engine); }

// Sets the loss. weights: weight of each class [num_classes].
int crepe_set_loss(void* engine, const LossConstants* constants, const float* weights, int64_t num_classes) {
    return run_guarded([&] { static_cast<Engine*>(engine)->set_loss({*constants, {weights, weights + num_classes}}); });
}

int crepe_set_parameters(void* engine, const CompressedArray* parameters, int buffers_changed) {
    return run_guarded([&] { static_cast<Engine*>(engine)->set_parameters(parameters, buffers_changed); });
}

int crepe_forward(void* engine, const uint8_t* codes, int64_t stride, int64_t rows, float* logits) {
    return run_guarded([&] { static_cast<Engine*>(engine)->forward(codes, stride, rows, logits); });
}

int crepe_branch_logits(void* engine, const uint8_t* codes, int64_t stride, int64_t rows, float* logits) {
    return run_guarded([&] { static_cast<Engine*>(engine)->branch_logits(codes, stride, rows, logits); });
}

// Multiplies matrices, for timing. size: a multiple of 32.
int crepe_time_matmul(int bfloat, int64_t size, int threads, int times) {
    return run_guarded([&] {
        if (bfloat) time_matmul<bfloat16>(size, threads, times);
        else time_matmul<float>(size, threads, times);
    });
}

int crepe_find_rows(void* engine, const uint8_t* batch, int64_t rows) {
    return run_guarded([&] { static_cast<Engine*>(engine)->find_rows(batch, rows); });
}

// Computes the gradients of a batch and their bounds, see Engine, and the sum of the losses. The loss of each document
// is rounded to a multiple of LOSS_UNIT, so that the sum is exact and does not depend on the order.
int crepe_forward_backward(
    void* engine, const uint8_t* batch, int64_t rows, double dropout, uint64_t seed, uint64_t first,
    int32_t* const* gradients, const int32_t* exponents, double bound_unit, float* bounds, double* loss
) {
    return run_guarded([&] {
        std::vector<float> losses(rows);
        Engine* const network = static_cast<Engine*>(engine);
        network->train_forward(batch, rows, Dropout{dropout, seed}, first, losses.data());
        *loss = 0;
        for (const float row_loss : losses) *loss += std::nearbyint(double(row_loss) / LOSS_UNIT) * LOSS_UNIT;
        network->train_backward(gradients, exponents, bound_unit, bounds);
    });
}

// Converts rows [count][columns] to float16. is_nonzero [count]: if it is not null, the function marks the rows that
// have a number other than 0, and converts only these rows. Returns the number of converted rows, or -1 if a
// number is not exact in float16.
int64_t crepe_to_half(const float* rows, int64_t count, int64_t columns, bool* is_nonzero, uint16_t* out) {
    IntVec changed{};
    int64_t converted = 0;
    dispatch_width(columns, [&](auto width) {
        for (long row = 0; row < count; ++row, rows += width) {
            if (is_nonzero &&
                !(is_nonzero[row] = std::any_of(rows, rows + width, [](float number) { return number != 0; })))
                continue;
            for (long n = 0; n < width; n += LANES) {
                const long chunk = std::min(LANES, width - n);
                const FloatVec numbers = load_partial(rows + n, chunk);
                const U16Vec halves = to_half(numbers);
                changed |= numbers != from_half(halves);
                std::memcpy(out + n, &halves, chunk * sizeof *out);
            }
            out += width;
            ++converted;
        }
    });
    for (long lane = 0; lane < LANES; ++lane)
        if (changed[lane]) return -1;
    return converted;
}

// Updates dense parameters; see Optimizer. The gradient of parameter i is its fixed-point gradient times scales[i].
// is_adam and constants: see crepe_embedding_open. moments, seconds: first and second moments of each parameter. If the
// optimizer does not have a moment, its pointer is null.
//
// Each parameter is split among the threads at multiples of a cache line, so two threads have at most one line in
// common.
void crepe_update_parameters(bool is_adam, const double* constants, int parameters, const int64_t* sizes,
                             float* const* values, float* const* moments, float* const* seconds,
                             const int32_t* const* gradients, const double* rates, const double* scales,
                             double weight_decay, int threads) {
    constexpr int64_t LINE = 16;      // Number of floats of a cache line.
    constexpr int64_t PIECE = 1024;   // Number of floats whose gradients fit in the L1 cache.
    constexpr int64_t FEW = 1 << 16;  // Number of floats below which waking other threads takes longer than the update.
    const Optimizer optimizer{is_adam, constants[0], constants[1], constants[2]};
    const bool is_small = std::accumulate(sizes, sizes + parameters, int64_t{0}) < FEW;
#pragma omp parallel for num_threads(threads) if (!is_small)
    for (int part = 0; part < threads; ++part)
        for (int i = 0; i < parameters; ++i) {
            const int64_t lines = sizes[i] / LINE;
            const int64_t last = part + 1 == threads ? sizes[i] : lines * (part + 1) / threads * LINE;
            for (int64_t at = lines * part / threads * LINE; at < last; at += PIECE) {
                const int64_t count = std::min(PIECE, last - at);
                float gradient[PIECE];
                for (int64_t k = 0; k < count; ++k) gradient[k] = float(gradients[i][at + k]);
                optimizer.update(count, values[i] + at, moments[i] ? moments[i] + at : nullptr,
                                 seconds[i] ? seconds[i] + at : nullptr, gradient, float(rates[i]), float(scales[i]),
                                 float(weight_decay));
            }
        }
}

// Returns the bytes of shared memory that each process provides for a sharded embedding; see sharded_embedding.h.
// shape: rows, columns, maximum number of rows that a process touches in a step.
int64_t crepe_embedding_bytes(const int64_t* shape, const RowSharding* sharding) {
    return ShardedEmbedding::bytes({shape[0], shape[1]}, shape[2], *sharding);
}

// Returns the number of rows of a shard. The last shards may have fewer rows.
int64_t crepe_embedding_rows_per_shard(const int64_t* shape, const RowSharding* sharding) {
    return sharding->rows_per_shard(shape[0]);
}

// Creates a sharded embedding. is_adam: true for Adam, false for SGD. constants: beta1, beta2 and epsilon; see
// Optimizer.
void* crepe_embedding_open(const int64_t* shape, bool is_adam, const double* constants, char* const* memories,
                           const RowSharding* sharding, int process, int threads) {
    ShardedEmbedding* embedding = nullptr;
    run_guarded([&] {
        const Optimizer optimizer{is_adam, constants[0], constants[1], constants[2]};
        embedding =
            new ShardedEmbedding({shape[0], shape[1]}, optimizer, memories, *sharding, process, shape[2], threads);
    });
    return embedding;
}

void crepe_embedding_close(void* embedding) { delete static_cast<ShardedEmbedding*>(embedding); }

// Attaches a sharded embedding to a network; see Engine::attach.
int crepe_attach_embedding(void* engine, int which, void* embedding, int64_t cache_bytes) {
    return run_guarded([&] {
        static_cast<Engine*>(engine)->attach(which, static_cast<ShardedEmbedding*>(embedding), size_t(cache_bytes));
    });
}

int crepe_embedding_update(void* embedding, double rate, double scale, double weight_decay) {
    return run_guarded([&] { static_cast<ShardedEmbedding*>(embedding)->update(rate, scale, weight_decay); });
}

int crepe_embedding_apply_lazy_updates(void* embedding) {
    return run_guarded([&] { static_cast<ShardedEmbedding*>(embedding)->apply_lazy_updates(); });
}

int crepe_embedding_load(
    void* embedding, const float* values, const float* moments, const float* seconds, const int32_t* from,
    const double* history, int64_t count
) {
    return run_guarded([&] {
        static_cast<ShardedEmbedding*>(embedding)->load(values, moments, seconds, from);
        static_cast<ShardedEmbedding*>(embedding)->set_drift_history({history, history + count});
    });
}

void crepe_embedding_store(
    void* embedding, int64_t first, int64_t last, float* values, float* moments, float* seconds, int32_t* from
) {
    static_cast<ShardedEmbedding*>(embedding)->store(first, last, values, moments, seconds, from);
}

// Writes the drift since each update to `out` if it is not null. Returns the number of elements.
int64_t crepe_embedding_drift_history(void* embedding, double* out) {
    const std::vector<double>& history = static_cast<ShardedEmbedding*>(embedding)->drift_history();
    if (out) std::copy(history.begin(), history.end(), out);
    return int64_t(history.size());
}

// Creates the messages between hosts; see RowExchange.
void* crepe_exchange_open(void* const* embeddings, int num_embeddings, const RowSharding* sharding, int local_process,
                          int ranks, const int* owners, const int* requesters, int num_requesters,
                          const DenseExchange* dense, int threads) {
    RowExchange* exchange = nullptr;
    run_guarded([&] {
        auto* const* const begin = reinterpret_cast<ShardedEmbedding* const*>(embeddings);
        exchange = new RowExchange({begin, begin + num_embeddings}, *sharding, local_process, ranks, owners,
                                   {requesters, requesters + num_requesters}, *dense, threads);
    });
    return exchange;
}

void crepe_exchange_close(void* exchange) { delete static_cast<RowExchange*>(exchange); }

// The next functions pack messages to all ranks, or read messages from all ranks. The functions that read also write
// to wrong_rank: -1, or the rank that sent a wrong message.
int crepe_exchange_pack_grads(void* exchange, bool has_grads, bool has_request, char** messages, int64_t* sizes) {
    return run_guarded(
        [&] { static_cast<RowExchange*>(exchange)->pack_grads(has_grads, has_request, {messages, sizes}); });
}

int crepe_exchange_read_grads(void* exchange, bool has_grads, bool has_request, const char* received,
                              const int64_t* received_sizes, int* wrong_rank) {
    return run_guarded([&] {
        *wrong_rank =
            static_cast<RowExchange*>(exchange)->read_grads(has_grads, has_request, {received, received_sizes});
    });
}

int crepe_exchange_pack_rows(void* exchange, bool has_sums, bool has_values, char** messages, int64_t* sizes) {
    return run_guarded(
        [&] { static_cast<RowExchange*>(exchange)->pack_rows(has_sums, has_values, {messages, sizes}); });
}

int crepe_exchange_read_rows(void* exchange, bool has_sums, bool has_values, const char* received,
                             const int64_t* received_sizes, int* wrong_rank) {
    return run_guarded([&] {
        *wrong_rank = static_cast<RowExchange*>(exchange)->read_rows(has_sums, has_values, {received, received_sizes});
    });
}

}  // extern "C"
