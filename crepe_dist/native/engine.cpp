// C interface for Python, called through ctypes; see library.py and model/kernels.py.

#include <sys/syscall.h>
#include <unistd.h>

#include "two_branch.h"
#include "ngrams.h"
#include "glibc_compat.h"
#include "paper.h"
#include "conv_branch.h"

namespace {

// shape: alphabet, length, classes, longest, buckets, letters, words.
NGramShape ngram_shape(const int64_t* shape) {
    return {shape[0], shape[1], shape[2], shape[3], shape[4], shape[5], shape[6]};
}

// Multiplies two size × size matrices `times` times in each thread, with the blocks that the network uses. Their numbers
// are between -1 and 1: products of zeros take less power, and with AMX the clock is then a sixth higher.
template <class T> void products(long size, int threads, int times) {
    std::vector<Buffer<T>> left(threads), right(threads);
    std::vector<Buffer<float>> result(threads);
    for (int i = 0; i < threads; ++i) {
        left[i].need(size * size);
        right[i].need(size * size);
        result[i].need(size * size);
    }
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        const int thread = omp_get_thread_num();
        for (long n = 0; n < size * size; ++n) {
            const float number = float(uint32_t(n) * 2654435761u) / 0x1p31f - 1;
            put(left[thread].get()[n], number);
            put(right[thread].get()[n], number);
        }
        for (int i = 0; i < times; ++i)
            for (long column = 0; column < size; column += BLOCK)
                block(left[thread].get(), size, size, 1, size, right[thread].get() + column * size,
                      result[thread].get() + column, size, false);
    }
}

// Runs `work` and returns 1 if memory ran out, so that Python raises an error instead of the process ending.
template <class Work> int guarded(Work work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace

extern "C" {

// Returns 1 if this process can run the processor's instructions for products in bfloat16, and this build has them.
int crepe_has_bfloat16() {
#if defined(__AMX_BF16__)
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // Linux requires a process to request AMX before use
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#elif defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

void* crepe_open_paper(int bfloat, const int64_t* shape, int threads) {
    const Shape sizes{shape[0], shape[1], shape[2], shape[3], shape[4]};
    Engine* engine = nullptr;
    guarded([&] {
        if (bfloat) engine = new Paper<bfloat16>(sizes, threads);
        else engine = new Paper<float>(sizes, threads);
    });
    return engine;
}

void* crepe_open_ngrams(const int64_t* shape, int threads) {
    Engine* engine = nullptr;
    guarded([&] { engine = new NGrams(ngram_shape(shape), threads); });
    return engine;
}

// shape: that of the n-grams, then reach, rows, width, blocks, stride, group_size.
void* crepe_open(int bfloat, const int64_t* shape, double feature_dropout, int threads) {
    const EmbeddingShape embedding{shape[0], shape[1], shape[7], shape[8], shape[9], shape[11]};
    const TowerShape sizes{embedding, shape[2], shape[10], shape[12], feature_dropout};
    Engine* engine = nullptr;
    guarded([&] {
        std::unique_ptr<Engine> tower;
        if (bfloat) tower = std::make_unique<Tower<bfloat16>>(sizes, threads);
        else tower = std::make_unique<Tower<float>>(sizes, threads);
        auto table = std::make_unique<NGrams>(ngram_shape(shape), threads);
        engine = new Joined(std::move(table), std::move(tower), 3, shape[2]);
    });
    return engine;
}

// Writes the distinct buckets of each row's n-grams to buckets [rows][most], in ascending order, and their number to
// counts [rows]; pads with all buckets in turn.
int crepe_ngrams(
    const uint8_t* codes, int64_t stride, int64_t rows, const int64_t* shape, int64_t most, int32_t* buckets,
    int64_t* counts, int threads
) {
    return guarded([&] {
        std::vector<Finder> finders;
        for (int i = 0; i < threads; ++i) finders.emplace_back(shape[4]);
        std::vector<std::vector<uint32_t>> lists(threads);
#pragma omp parallel for num_threads(team(threads, rows)) schedule(dynamic)
        for (int64_t row = 0; row < rows; ++row) {
            std::vector<uint32_t>& list = lists[omp_get_thread_num()];
            finders[omp_get_thread_num()].find(codes + row * stride, ngram_shape(shape), list);
            counts[row] = int64_t(list.size());
            std::copy_n(list.begin(), std::min(most, counts[row]), buckets + row * most);
            for (int64_t i = counts[row]; i < most; ++i) buckets[row * most + i] = int32_t((row * most + i) % shape[4]);
        }
    });
}

// Adds to counts, int32 [buckets][classes]; see count_ngrams.
int crepe_count_ngrams(
    const uint8_t* codes, int64_t stride, int64_t rows, const int64_t* shape, const int32_t* labels, int32_t* counts,
    int threads
) {
    return guarded([&] {
        count_ngrams(codes, stride, rows, ngram_shape(shape), labels, counts,
                     threads);
    });
}

void crepe_close(void* engine) { delete static_cast<Engine*>(engine); }

// weights: one per class.
int crepe_objective(void* engine, const ObjectiveConstants* constants, const float* weights, int64_t classes) {
    return guarded([&] { static_cast<Engine*>(engine)->objective({*constants, {weights, weights + classes}}); });
}

int crepe_set(void* engine, const Stored* parameters, int anew) {
    return guarded([&] { static_cast<Engine*>(engine)->set(parameters, anew); });
}

int crepe_forward(void* engine, const uint8_t* codes, int64_t stride, int64_t rows, float* logits) {
    return guarded([&] { static_cast<Engine*>(engine)->forward(codes, stride, rows, logits); });
}

int crepe_forward_parts(void* engine, const uint8_t* codes, int64_t stride, int64_t rows, float* logits) {
    return guarded([&] { static_cast<Engine*>(engine)->parts(codes, stride, rows, logits); });
}

// size: a multiple of 32.
int crepe_products(int bfloat, int64_t size, int threads, int times) {
    return guarded([&] {
        if (bfloat) products<bfloat16>(size, threads, times);
        else products<float>(size, threads, times);
    });
}

int crepe_find_rows(void* engine, const uint8_t* batch, int64_t rows) {
    return guarded([&] { static_cast<Engine*>(engine)->find_rows(batch, rows); });
}

// Writes the gradients and their bounds, see Engine, and the sum of the losses, see `rounded` in model/loss.py.
int crepe_train(
    void* engine, const uint8_t* batch, int64_t rows, double dropout, uint64_t seed, uint64_t first,
    int32_t* const* gradients, const int32_t* exponents, double unit, float* bounds, double* loss
) {
    return guarded([&] {
        std::vector<float> losses(rows);
        Engine* const network = static_cast<Engine*>(engine);
        network->train_forward(batch, rows, Dropout{dropout, seed}, first, losses.data());
        *loss = 0;
        for (const float of_row : losses) *loss += std::nearbyint(double(of_row) / LOSS_UNIT) * LOSS_UNIT;
        network->train_backward(gradients, exponents, unit, bounds);
    });
}

// Writes the two sums of SumOfSquares for an array.
void crepe_squares(const int32_t* values, int64_t count, uint64_t* out) {
    const SumOfSquares sum = sum_of_squares(values, count);
    out[0] = sum.low;
    out[1] = sum.high;
}

// Rounds rows [count][columns] to float16. kept [count]: set to tell which rows are not zeros, the only ones converted; null:
// all are. Returns the number of rows converted, or -1 if a number has changed.
int64_t crepe_to_half(const float* rows, int64_t count, int64_t columns, bool* kept, uint16_t* out) {
    Words changed{};
    int64_t converted = 0;
    with_width(columns, [&](auto width) {
        for (long row = 0; row < count; ++row, rows += width) {
            if (kept && !(kept[row] = std::any_of(rows, rows + width, [](float number) { return number != 0; }))) continue;
            for (long n = 0; n < width; n += LANES) {
                const long some = std::min(LANES, width - n);
                const Lanes numbers = load_some(rows + n, some);
                const Halves halves = to_half(numbers);
                changed |= numbers != from_half(halves);
                std::memcpy(out + n, &halves, some * sizeof *out);
            }
            out += width;
            ++converted;
        }
    });
    for (long lane = 0; lane < LANES; ++lane)
        if (changed[lane]) return -1;
    return converted;
}

// Updates several parameters with their gradients in whole numbers times `scales`; see Optimizer. rule and constants as
// for crepe_table_open. Those of moments and seconds may be null.
void crepe_update(
    int rule, const double* constants, int parameters, const int64_t* sizes, float* const* values, float* const* moments,
    float* const* seconds, const int32_t* const* gradients, const double* rates, const double* scales,
    double weight_decay, int threads
) {
    constexpr int64_t LINE = 16;     // numbers of a cache line
    constexpr int64_t PIECE = 1024;  // numbers whose gradients fit into the L1 cache
    constexpr int64_t FEW = 1 << 16;  // for which waking other threads takes longer
    const Optimizer optimizer{Rule(rule), constants[0], constants[1], constants[2]};
    const bool alone = std::accumulate(sizes, sizes + parameters, int64_t{0}) < FEW;
#pragma omp parallel for num_threads(threads) if (!alone)
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

// Tables; see sharded_embedding.h. shape: rows, columns, most rows of a step.
int64_t crepe_table_bytes(const int64_t* shape, const Owners* owners) {
    return Table::bytes({shape[0], shape[1]}, shape[2], *owners);
}

// Returns the number of rows of each owner; the last ones have fewer.
int64_t crepe_table_rows_each(const int64_t* shape, const Owners* owners) { return owners->rows_each(shape[0]); }

// rule: 0 adam, 1 sgd; constants: those of Optimizer.
void* crepe_table_open(
    const int64_t* shape, int rule, const double* constants, char* const* memories, const Owners* owners, int process,
    int threads
) {
    Table* table = nullptr;
    guarded([&] {
        const Optimizer optimizer{Rule(rule), constants[0], constants[1], constants[2]};
        table = new Table({shape[0], shape[1]}, optimizer, memories, *owners, process, shape[2], threads);
    });
    return table;
}

void crepe_table_close(void* table) { delete static_cast<Table*>(table); }

// See Engine::use.
int crepe_use_table(void* engine, int which, void* table, int64_t cache_bytes) {
    return guarded([&] { static_cast<Engine*>(engine)->use(which, static_cast<Table*>(table), size_t(cache_bytes)); });
}

void crepe_table_read(void* table, const uint32_t* rows, int64_t count, float* out) {
    static_cast<Table*>(table)->read(rows, count, out);
}

// Writes the addresses of the rows and of their numbers, too.
void crepe_table_keep(void* table, int64_t* bounds, void** addresses) {
    const SomeRows& kept = static_cast<Table*>(table)->keep(bounds);
    addresses[0] = kept.rows;
    addresses[1] = kept.numbers;
}

int crepe_table_sum_kept(void* table) {
    return guarded([&] { static_cast<Table*>(table)->sum_kept(); });
}

int crepe_table_add(
    void* table, const uint32_t* const* rows, const int32_t* const* sums, const int64_t* counts, int lists
) {
    return guarded([&] { static_cast<Table*>(table)->add(rows, sums, counts, lists); });
}

// Writes the two sums of SumOfSquares for the last sum.
void crepe_table_squares(void* table, uint64_t* out) {
    const SumOfSquares sum = static_cast<Table*>(table)->squares();
    out[0] = sum.low;
    out[1] = sum.high;
}

int crepe_table_update(void* table, double rate, double scale, double weight_decay) {
    return guarded([&] { static_cast<Table*>(table)->update(rate, scale, weight_decay); });
}

int crepe_table_flush(void* table) {
    return guarded([&] { static_cast<Table*>(table)->flush(); });
}

int crepe_table_load(
    void* table, const float* values, const float* moments, const float* seconds, const int32_t* from,
    const double* history, int64_t count
) {
    return guarded([&] {
        static_cast<Table*>(table)->load(values, moments, seconds, from);
        static_cast<Table*>(table)->restart({history, history + count});
    });
}

void crepe_table_store(
    void* table, int64_t first, int64_t last, float* values, float* moments, float* seconds, int32_t* from
) {
    static_cast<Table*>(table)->store(first, last, values, moments, seconds, from);
}

// Writes the drift since each update to out, if it is not null; returns the number of its elements.
int64_t crepe_table_history(void* table, double* out) {
    const std::vector<double>& history = static_cast<Table*>(table)->history();
    if (out) std::copy(history.begin(), history.end(), out);
    return int64_t(history.size());
}

}  // extern "C"
