// Embedding table whose rows are sharded over the ranks. Each training step touches few of its rows.
//
// The file contains the gradient of the touched rows, the sum of the gradients over processes, and the optimizer.
// crepe_dist/parallel/sharded_embedding.py is the Python side.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "fixed_point.h"
#include "memory.h"
#include "optimizer.h"
#include "row_set.h"
#include "simd.h"

struct EmbeddingShape {
    long rows, columns;

    // Returns the number of floats of a record: the values, the first moments, the second moment of the row, and the
    // number of the row's last update. Small records have a power of two of floats, so that no record crosses a cache
    // line.
    long stride() const {
        const long numbers = 2 * columns + 2;
        if (numbers > 16) return (numbers + 15) / 16 * 16;
        long power = 4;
        while (power < numbers) power *= 2;
        return power;
    }
};

// Division of the rows among ranks. Each rank owns a shard, which is a contiguous block of rows. The shards of a host
// are neighbours. crepe_dist/parallel/sharded_embedding.py has the ctypes mirror of this struct.
struct RowSharding {
    int num_shards;         // Number of ranks of the cluster.
    int first_local_shard;  // First shard of this host.
    int num_local_shards;   // Number of shards of this host, which is its number of processes.

    // Returns the number of rows of a shard. The last shards may have fewer rows.
    long rows_per_shard(long rows) const { return (bitmap_words(rows) + num_shards - 1) / num_shards * WORD; }

    bool has_other_hosts() const { return num_shards > num_local_shards; }

    bool is_local(int shard) const {
        return shard >= first_local_shard && shard < first_local_shard + num_local_shards;
    }

    // Returns the process of this host that exchanges rows with a shard on another host.
    int local_process_for(long shard) const { return int(shard % num_local_shards); }

    // Returns the maximum number of remote rows that a process collects in a step.
    long max_remote_rows(long rows, long max_rows) const {
        return std::min(num_local_shards * max_rows, (num_shards - 1) / num_local_shards * rows_per_shard(rows));
    }
};

// A set of rows as an index and as a list, with the values of the rows [rows][columns]. The arrays are in one block of
// memory, which processes of a host can share. Number: int32_t for fixed-point gradients (see fixed_point.h), or float16
// for parameters.
template <class Number> struct SparseRows {
    RowIndex index;
    uint32_t* row_ids;
    Number* values;

    // memory: `list_bytes` for the index and the list, then memory for the values.
    SparseRows(char* memory, EmbeddingShape shape, long max_rows)
        : SparseRows(memory, reinterpret_cast<Number*>(memory + list_bytes(shape, max_rows)), shape) {}

    SparseRows(char* lists, Number* values, EmbeddingShape shape) : values(values) {
        index.size = bitmap_words(shape.rows);
        index.words = reinterpret_cast<uint64_t*>(lists);
        index.before = reinterpret_cast<uint32_t*>(index.words + index.size);
        row_ids = index.before + whole_lines(index.size + 1);
    }

    static long bytes(EmbeddingShape shape, long max_rows) {
        const long values = max_rows * shape.columns * long(sizeof(Number));
        return (list_bytes(shape, max_rows) + values + 63) / 64 * 64;
    }

    static long list_bytes(EmbeddingShape shape, long max_rows) {
        const long words = bitmap_words(shape.rows), lists = whole_lines(words + 1) + whole_lines(max_rows + SPARE);
        return (words * long(sizeof(uint64_t)) + lists * 4 + 63) / 64 * 64;
    }

    // Fills the list from the bitmap, appends NO_ROW, and completes the index.
    void list() {
        uint32_t* next = row_ids;
        for (long word = 0; word < index.size; ++word) {
            index.before[word] = uint32_t(next - row_ids);
            next = write_bits(index.words[word], uint32_t(word * WORD), next);
        }
        index.before[index.size] = uint32_t(next - row_ids);
        *next = NO_ROW;
    }

    static long whole_lines(long numbers) { return (numbers + 15) / 16 * 16; }
};
using RowGrads = SparseRows<int32_t>;

// Rows that another process has requested, and the gradients of these rows that it has sent [count][columns].
struct ReceivedGrads {
    const uint32_t* rows;
    long count;
    const int16_t* sums;
};

// Rounds to the nearest float16 number, ties to even, as NumPy does. Numbers beyond the range of float16 are rounded to
// 11 significant bits instead of becoming infinite.
inline float round_to_float16(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    const uint32_t sign = bits & 0x80000000u, size = bits ^ sign;
    // Below 2^-14, the float16 numbers are the multiples of 2^-24. The float32 numbers around 0.75 have the same
    // spacing, so the addition of 0.75 rounds to a multiple of 2^-24.
    float magnitude;
    std::memcpy(&magnitude, &size, sizeof magnitude);
    const float multiple = (magnitude + 0.75f) - 0.75f;
    uint32_t small;
    std::memcpy(&small, &multiple, sizeof small);
    const uint32_t large = (size + 0xfff + (size >> 13 & 1)) & ~0x1fffu;
    const uint32_t finite = size < 0x38800000u ? small : large;
    bits = sign | (size < 0x7f800000u ? finite : size);
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

// Sharded embedding table with its optimizer state.
//
// Each row has one owner among all ranks, whose memory stores it. All processes of a host read the rows of this host in
// shared memory. If there are several hosts, the owner adds the gradients of all ranks, and updates the row. For each
// shard of another host, one process of this host collects the touched rows, requests their values from the owner, and
// later sends the sums of this host's gradients to the owner. On a single host, the touched rows are divided evenly
// among the processes, independent of their owners. Each process adds and updates its part. row_exchange.h packs the
// messages between hosts.
//
// Training reads the values of rows rounded to float16, the format of model files and of messages between hosts. The
// records contain float32 numbers.
//
// Lazy updates: Adam and SGD with momentum also change rows without a gradient, by their momentum. Writing all rows in
// each step would be too slow. A record is written only when its row has a gradient, and contains the number of that
// update. A later reader adds the change that the updates since then have made. The change is a multiple of the first
// moments of the row. drift_[k] is the factor for records that were written in update k. For Adam, this factor is
// divided by the root of the row's second moment. This is exact except for two approximations: weight decay acts only
// on rows with a gradient, and epsilon is not rescaled relative to the decaying root.
class ShardedEmbedding {
  public:
    // memories: for each process of this host, the memory of its gradient, its remote rows, its records, and, if there
    // are several hosts, its second list of touched rows, in this order.
    ShardedEmbedding(EmbeddingShape shape, Optimizer optimizer, char* const* memories, RowSharding sharding,
                     int process, long max_rows, int threads)
        : shape_(shape),
          optimizer_(optimizer),
          sharding_(sharding),
          process_(process),
          threads_(threads),
          stride_(shape.stride()),
          rows_per_shard_(sharding.rows_per_shard(shape.rows)),
          drift_(1, 0.0),
          beta1_powers_(1, 1.0f),
          beta2_powers_(1, 1.0f) {
        const long max_remote_rows = sharding.max_remote_rows(shape.rows, max_rows);
        for (int i = 0; i < sharding.num_local_shards; ++i) {
            char* const remote = memories[i] + RowGrads::bytes(shape, max_rows);
            char* const records = remote + SparseRows<float16>::bytes(shape, max_remote_rows);
            local_grads_[0].emplace_back(memories[i], shape, max_rows);
            remote_rows_.emplace_back(remote, shape, max_remote_rows);
            records_.push_back(reinterpret_cast<float*>(records));
            if (sharding.has_other_hosts())
                local_grads_[1].emplace_back(records + record_bytes(shape, sharding), local_grads_[0][i].values, shape);
        }
    }

    static long bytes(EmbeddingShape shape, long max_rows, RowSharding sharding) {
        return RowGrads::bytes(shape, max_rows) +
               SparseRows<float16>::bytes(shape, sharding.max_remote_rows(shape.rows, max_rows)) +
               record_bytes(shape, sharding) +
               (sharding.has_other_hosts() ? RowGrads::list_bytes(shape, max_rows) : 0);
    }

    // Starts a new list of the rows that this process touches. If there are several hosts, the list of the step before
    // is kept, because `gradient` of that step may not have been sent yet.
    void start_list() { newest_ ^= sharding_.has_other_hosts(); }

    // Returns the newest list. Its values are the gradient of this process.
    RowGrads& gradient() { return local_grads_[newest_][process_]; }

    // Returns the memory for the gradient of the rows of the newest list.
    int32_t* start_gradient() {
        summed_ = newest_;
        return gradient().values;
    }

    EmbeddingShape shape() const { return shape_; }

    // Copies the current values of rows to out [count][columns]. rows: ascending.
    void read_rows(const uint32_t* rows, long count, float* out) const {
#pragma omp parallel for num_threads(threads_)
        for (int part = 0; part < threads_; ++part) {
            const long first = count * part / threads_, last = count * (part + 1) / threads_;
            read_range(rows + first, last - first, out + first * shape_.columns);
        }
    }

    // Copies the current values of rows of this host to out [count][columns]. Number: float or float16.
    template <class Number> void read_local(const uint32_t* rows, long count, Number* out) const {
        constexpr long BLOCK_BYTES = 1 << 12;
        dispatch_width(shape_.columns, [&](auto columns) {
            const long width = columns, block_rows = std::max(1L, BLOCK_BYTES / 4 / width);
            std::vector<float> block(block_rows * width);
            for (long first = 0; first < count; first += block_rows) {
                const long last = std::min(count, first + block_rows);
                float* next = block.data();
                for (long i = first; i < last; ++i, next += width) {
                    if (i + lookahead() < count) prefetch(record_of(rows[i + lookahead()]));
                    const float* const record = record_of(rows[i]);
                    const float since = drift_since(record);
                    for (long n = 0; n < columns; ++n) next[n] = multiply_add(since, record[width + n], record[n]);
                }
                for (long n = 0; n < (last - first) * width; n += LANES)
                    store_half(out + first * width + n, block.data() + n, (last - first) * width - n);
            }
        });
    }

    // Collects the rows of remote shards in the newest lists of the processes of this host. The caller copies their values to
    // `values` of the result. bounds [num_shards + 1]: place of the first row of each shard.
    SparseRows<float16>& collect_remote_rows(const std::vector<int>& shards, int64_t* bounds) {
        SparseRows<float16>& remote = remote_rows_[process_];
        std::fill_n(remote.index.words, remote.index.size, 0);
        for (int shard : shards)
            for (long word = first_word(shard); word < first_word(shard + 1); ++word)
                remote.index.words[word] = touched_on_host(word, local_grads_[newest_]);
        remote.list();
        for (int shard = 0; shard <= sharding_.num_shards; ++shard)
            bounds[shard] = remote.index.before[first_word(shard)];
        return remote;
    }

    // Calls visit(sums) for each of `rows`: the sums of the row's gradient over the processes of this host. rows: some
    // neighbours in the list of the remote rows.
    template <class Visit> void for_each_remote_sum(const uint32_t* rows, long count, Visit visit) const {
        dispatch_width(shape_.columns, [&](auto columns) {
            for_each_sum(summed_grads(), rows[0], rows[count - 1] + 1, columns,
                         [&](uint32_t, const int32_t* sums) { visit(sums, columns); });
        });
    }

    // Returns whether rows are in ascending order and belong to this process's shard.
    bool owns(const uint32_t* rows, long count) const {
        const long own = own_shard();
        return count == 0 || (rows[0] >= first_row(own) && rows[count - 1] < first_row(own + 1) &&
                              std::is_sorted(rows, rows + count, std::less_equal<uint32_t>()));
    }

    // Adds the gradients of the rows of this process's shard: the gradients of this host, and the sums of the other
    // hosts.
    void accumulate(const std::vector<ReceivedGrads>& lists) {
        const long begin = first_word(own_shard()), end = first_word(own_shard() + 1);
        long max_rows = 0;
        for (const ReceivedGrads& list : lists) max_rows += list.count;
        for (const RowGrads& gradient : summed_grads())
            max_rows += gradient.index.before[end] - gradient.index.before[begin];
        RowGrads all(total_.reserve(RowGrads::bytes(shape_, max_rows)), shape_, max_rows);
        std::fill_n(all.index.words, all.index.size, 0);
        for (long word = begin; word < end; ++word) all.index.words[word] = touched_on_host(word, summed_grads());
        for (const ReceivedGrads& list : lists)
            for (long k = 0; k < list.count; ++k)
                all.index.words[list.rows[k] / WORD] |= uint64_t{1} << (list.rows[k] % WORD);
        all.list();
#pragma omp parallel for num_threads(threads_)
        for (int part = 0; part < threads_; ++part) {
            const auto row_at = [&](long number) { return uint32_t((begin + (end - begin) * number / threads_) * WORD); };
            add_range(all, lists, row_at(part), row_at(part + 1));
        }
        inter_host_sum_ = {all};
    }

    // Adds to one number of the gradient that `accumulate` has summed.
    void add_to_sum(uint32_t row, long column, int32_t term) {
        RowGrads& all = inter_host_sum_[0];
        wrapping_add(all.values[all.index.place(row) * shape_.columns + column], term);
    }

    // Updates the rows of this process that have a gradient. The gradient is scale × fixed-point sum + weight_decay ×
    // value. All processes must call this function. No process may read rows before the call has returned in all
    // processes.
    //
    // learning_rate: for Adam, it includes the bias correction.
    void update(double learning_rate, double scale, double weight_decay) {
#pragma omp parallel for num_threads(threads_)
        for (int thread = 0; thread < threads_; ++thread) {
            const auto [begin, end] = row_range(thread, threads_);
            update(begin, end, learning_rate, float(scale), float(weight_decay));
        }
        advance(learning_rate);
    }

    // Applies the lazy updates to all records of this process's shard, and rounds the values to float16, as in model
    // files. All processes must call this function. No process may read rows before the call has returned in all
    // processes.
    void apply_lazy_updates() {
        if (drift_.size() == 1) return;
        const long columns = shape_.columns;
        for_each_own_row([&](uint32_t row) {
            float* const record = record_of(row);
            const float since = drift_since(record), past = beta1_powers_[age(record)];
            for (long n = 0; n < columns; ++n) {
                record[n] = round_to_float16(multiply_add(since, record[columns + n], record[n]));
                record[columns + n] *= past;
            }
            second_moment(record) *= beta2_powers_[age(record)];
            set_last_update(record, 0);
        });
        set_drift_history({0.0});
    }

    // Loads the rows of this process's shard from arrays of all rows: values [rows][columns], first moments
    // [rows][columns], second moments [rows], and numbers of the last update `from` [rows]. All but `values` may be
    // null.
    void load(const float* values, const float* moments, const float* seconds, const int32_t* from) {
        const long columns = shape_.columns;
        for_each_own_row([&](uint32_t row) {
            float* const record = record_of(row);
            std::copy_n(values + row * columns, columns, record);
            if (moments) {
                std::copy_n(moments + row * columns, columns, record + columns);
            } else {
                std::fill_n(record + columns, columns, 0.0f);
            }
            second_moment(record) = seconds ? seconds[row] : 0.0f;
            set_last_update(record, from ? from[row] : 0);
        });
    }

    // Stores the rows [first, last) of this host to arrays of all rows; see `load`. Each array may be null.
    void store(long first, long last, float* values, float* moments, float* seconds, int32_t* from) const {
        const long columns = shape_.columns;
#pragma omp parallel for num_threads(threads_)
        for (long row = first; row < last; ++row) {
            float* const record = record_of(uint32_t(row));
            if (values) std::copy_n(record, columns, values + row * columns);
            if (moments) std::copy_n(record + columns, columns, moments + row * columns);
            if (seconds) seconds[row] = second_moment(record);
            if (from) from[row] = last_update(record);
        }
    }

    // Returns the drift since each update. Element k belongs to the records that were written in update k.
    const std::vector<double>& drift_history() const { return drift_; }

    void set_drift_history(std::vector<double> history) {
        drift_ = std::move(history);
        beta1_powers_.resize(1);
        beta2_powers_.resize(1);
        for (size_t k = 1; k < drift_.size(); ++k) add_powers();
    }

  private:
    static constexpr long LINE = 16;   // Number of floats of a cache line.
    static constexpr long AHEAD = 64;  // Prefetch distance, in cache lines of records.

    const EmbeddingShape shape_;
    const Optimizer optimizer_;
    const RowSharding sharding_;
    const int process_, threads_;
    const long stride_, rows_per_shard_;
    // Two alternating lists of rows with the same values. Each has one element per process of this host, as the next two
    // vectors. On one host, only the first list is used.
    std::vector<RowGrads> local_grads_[2];
    int newest_ = 0, summed_ = 0;  // The list of the newest batch, and the list that the gradients belong to.
    std::vector<SparseRows<float16>> remote_rows_;
    std::vector<float*> records_;
    std::vector<RowGrads> inter_host_sum_;  // Result of `accumulate`. Empty with one host.
    Buffer<char> total_;
    // Drift since each update, see drift_history. Its size is 1 + the number of updates since apply_lazy_updates.
    std::vector<double> drift_;
    std::vector<float> beta1_powers_, beta2_powers_;  // Powers of beta1 and beta2.

    // Returns the record of a row of this host.
    float* record_of(uint32_t row) const {
        const uint32_t rows_per_shard = uint32_t(rows_per_shard_), shard = row / rows_per_shard;
        return records_[shard - sharding_.first_local_shard] + long(row - shard * rows_per_shard) * stride_;
    }

    long own_shard() const { return sharding_.first_local_shard + process_; }

    // Returns the index of the bitmap word that contains the first row of a shard.
    long first_word(long shard) const { return std::min(bitmap_words(shape_.rows), shard * rows_per_shard_ / WORD); }

    // Returns the first row of a shard.
    uint32_t first_row(long shard) const { return uint32_t(std::min(shape_.rows, shard * rows_per_shard_)); }

    // Returns the gradients whose sum updates this process's rows.
    const std::vector<RowGrads>& grad_lists() const {
        return inter_host_sum_.empty() ? summed_grads() : inter_host_sum_;
    }

    // Returns the rows [begin, end) that a thread updates. If there are several hosts, the range is a part of the
    // process's shard. If there is one host, the range is a part of all rows. All parts have the same number of rows of
    // the first gradient, so that the threads have about the same work.
    std::pair<uint32_t, uint32_t> row_range(int thread, int threads) const {
        const bool alone = inter_host_sum_.empty();
        const RowGrads& some = grad_lists()[0];
        const long count = some.index.rows(), part = alone ? process_ * threads + thread : thread;
        const long parts = alone ? long(summed_grads().size()) * threads : threads;
        const auto row_at = [&](long number) {
            return number == 0 ? 0 : number == parts ? uint32_t(shape_.rows) : some.row_ids[count * number / parts];
        };
        return {row_at(part), row_at(part + 1)};
    }

    // Returns the place in an ascending list where the rows of a shard begin.
    const uint32_t* find_shard(const uint32_t* begin, const uint32_t* end, long shard) const {
        return std::lower_bound(begin, end, first_row(shard));
    }

    static long record_bytes(EmbeddingShape shape, RowSharding sharding) {
        return sharding.rows_per_shard(shape.rows) * shape.stride() * long(sizeof(float));
    }

    // Returns the gradients of the processes of this host.
    const std::vector<RowGrads>& summed_grads() const { return local_grads_[summed_]; }

    // Returns a word of the bitmap of the rows that any of the lists contains.
    static uint64_t touched_on_host(long word, const std::vector<RowGrads>& lists) {
        uint64_t all = 0;
        for (const RowGrads& gradient : lists) all |= gradient.index.words[word];
        return all;
    }

    void read_range(const uint32_t* rows, long count, float* out) const {
        const long columns = shape_.columns;
        const uint32_t *const end = rows + count, *const local_begin =
                                                      find_shard(rows, end, sharding_.first_local_shard);
        const uint32_t* const local_end =
            find_shard(local_begin, end, sharding_.first_local_shard + sharding_.num_local_shards);
        copy_remote(rows, local_begin - rows, out);
        read_local(local_begin, local_end - local_begin, out + (local_begin - rows) * columns);
        copy_remote(local_end, end - local_end, out + (local_end - rows) * columns);
    }

    // Copies the values of remote rows, which the processes of this host have collected.
    void copy_remote(const uint32_t* rows, long count, float* out) const {
        const long columns = shape_.columns;
        for (long i = 0; i < count; ++i) {
            const SparseRows<float16>& remote = remote_rows_[sharding_.local_process_for(rows[i] / rows_per_shard_)];
            const float16* const values = remote.values + remote.index.place(rows[i]) * columns;
            for (long n = 0; n < columns; n += LANES)
                store_partial(out + i * columns + n, load_partial(values + n, columns - n), columns - n);
        }
    }

    float& second_moment(float* record) const { return record[2 * shape_.columns]; }

    int32_t last_update(const float* record) const {
        int32_t number;
        std::memcpy(&number, record + 2 * shape_.columns + 1, sizeof number);
        return number;
    }

    void set_last_update(float* record, int32_t number) const {
        std::memcpy(record + 2 * shape_.columns + 1, &number, sizeof number);
    }

    // Returns the number of updates since a record was written.
    long age(const float* record) const { return long(drift_.size()) - 1 - last_update(record); }

    // Returns a factor. Its product with a record's first moments is the change of the record's values by the updates
    // since the record was written.
    float drift_since(const float* record) const {
        return optimizer_.momentum_drift(float(drift_[last_update(record)]), record[2 * shape_.columns]);
    }

    // Returns the prefetch distance, in records.
    long lookahead() const { return std::max(1L, AHEAD * LINE / stride_); }

    // Prefetches a record into the L2 cache. The L2 cache has more buffers for outstanding lines than the L1 cache.
    void prefetch(const float* record) const {
        for (long line = 0; line < stride_; line += LINE) __builtin_prefetch(record + line, 0, 2);
    }

    // Prefetches a record that will be written; see prefetch_line_for_write.
    void prefetch_to_write(const float* record) const {
        for (long line = 0; line < stride_; line += LINE) prefetch_line_for_write(record + line);
    }

    void add_powers() {
        const double k = double(beta1_powers_.size());
        beta1_powers_.push_back(float(std::pow(optimizer_.beta1, k)));
        beta2_powers_.push_back(float(std::pow(optimizer_.beta2, k)));
    }

    // Records an update: the drift of all records that were written before this update increases. The geometric series
    // ends when its terms are negligible.
    void advance(double learning_rate) {
        constexpr double NEGLIGIBLE = 1e-12;
        double change = optimizer_.drift(learning_rate);
        const double ratio = optimizer_.drift_ratio();
        const double least = change * NEGLIGIBLE;
        for (size_t k = drift_.size(); k-- > 0;) {
            change *= ratio;
            if (change <= least) break;
            drift_[k] += change;
        }
        drift_.push_back(0.0);
        add_powers();
    }

    template <class Work> void for_each_own_row(Work work) {
        const long begin = std::min(shape_.rows, rows_per_shard_ * (sharding_.first_local_shard + process_));
        const long end = std::min(shape_.rows, begin + rows_per_shard_);
#pragma omp parallel for num_threads(threads_)
        for (long row = begin; row < end; ++row) work(uint32_t(row));
    }

    static void ignore(uint32_t) {}

    // Merges the lists: calls visit(row, sums) for each row in [begin, end) that at least one list contains, in
    // ascending order. sums: sums of the row's values over the lists. soon(row) is called some rows before visit(row),
    // for a prefetch. The values of other processes are in the caches of other cores, so they are also prefetched.
    template <class Width, class Visit, class Soon = void(uint32_t)>
    void for_each_sum(const std::vector<RowGrads>& lists, uint32_t begin, uint32_t end, Width width, Visit visit,
                      const Soon& soon = ignore) const {
        struct Head {
            const uint32_t *row, *end;
            const int32_t* values;
        };
        std::vector<Head> heads;
        for (const RowGrads& list : lists) {
            const uint32_t *const all = list.row_ids, *const last = all + list.index.rows();
            const uint32_t* const first = std::lower_bound(all, last, begin);
            heads.push_back({first, std::lower_bound(first, last, end), list.values + (first - all) * width});
        }
        const long columns = width, lookahead = this->lookahead();
        if (lists.size() == 1) {
            for (auto [row, last, numbers] = heads[0]; row < last; ++row, numbers += columns) {
                if (row + lookahead < last) soon(row[lookahead]);
                visit(*row, numbers);
            }
            return;
        }
        const std::vector<int32_t> none(columns);
        std::vector<int32_t> sums_of_row(columns);
        int32_t* __restrict const sums = sums_of_row.data();
        while (true) {
            uint32_t row = NO_ROW;
            for (const Head& head : heads) row = std::min(row, *head.row);
            if (row >= end) return;
            std::fill_n(sums, long(width), 0);
            for (Head& head : heads) {
                const bool has_row = *head.row == row;
                // A branch on `has_row` would be mispredicted. A list without this row adds zeros instead.
                const int32_t* const terms = has_row ? head.values : none.data();
                for (long n = 0; n < width; ++n) wrapping_add(sums[n], terms[n]);
                for (long n = 0; n < width; n += LINE) __builtin_prefetch(head.values + AHEAD * LINE + n);
                if (head.row + lookahead < head.end) soon(head.row[lookahead]);
                head.row += has_row;
                head.values += has_row * columns;
            }
            visit(row, sums);
        }
    }

    // Adds the gradients of the rows [begin, end) to `all`; see `accumulate`.
    void add_range(RowGrads& all, const std::vector<ReceivedGrads>& lists, uint32_t begin, uint32_t end) const {
        dispatch_width(shape_.columns, [&](auto columns) {
            const long width = columns;
            std::fill(all.values + all.index.before[begin / WORD] * width, all.values + all.index.before[end / WORD] * width, 0);
            const auto add_row = [&](uint32_t row, const auto* numbers) {
                int32_t* const to = all.values + all.index.place(row) * width;
                for (long n = 0; n < columns; ++n) wrapping_add(to[n], numbers[n]);
            };
            for_each_sum(summed_grads(), begin, end, columns, add_row);
            for (const ReceivedGrads& list : lists) {
                const uint32_t* const last = std::lower_bound(list.rows, list.rows + list.count, end);
                for (const uint32_t* row = std::lower_bound(list.rows, last, begin); row < last; ++row)
                    add_row(*row, list.sums + (row - list.rows) * width);
            }
        });
    }

    // Updates the rows from `begin` to `end`.
    void update(uint32_t begin, uint32_t end, double learning_rate, float scale, float weight_decay) {
        const int32_t next = int32_t(drift_.size());
        dispatch_width(shape_.columns, [&](auto columns) {
            const auto update_row = [&](uint32_t row, const int32_t* __restrict sums) {
                float* __restrict const record = record_of(row);
                const float since = drift_since(record), past = beta1_powers_[age(record)];
                float& second = this->second_moment(record);
                second *= beta2_powers_[age(record)];
                const RowUpdate row_update = optimizer_.row_update(second, mean_square(sums, columns, scale), past,
                                                                   float(learning_rate), scale, weight_decay);
                for (long n = 0; n < columns; ++n) {
                    record[n] = multiply_add(since, record[columns + n], record[n]);
                    row_update.update(record[n], record[columns + n], sums[n]);
                }
                set_last_update(record, next);
            };
            for_each_sum(grad_lists(), begin, end, columns, update_row,
                         [&](uint32_t row) { prefetch_to_write(record_of(row)); });
        });
    }
};
