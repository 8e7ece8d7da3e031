// A table of parameters of which each step touches a few rows: its gradient, its sum over processes, and its optimizer.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "memory.h"
#include "optimizer.h"
#include "row_set.h"
#include "fixed_point.h"

struct TableShape {
    long rows, columns;

    // Numbers of a record: values and first moments, the row's second moment, and the update that it was written in.
    // Small records do not cross the border of a cache line.
    long stride() const {
        const long numbers = 2 * columns + 2;
        if (numbers > 16) return (numbers + 15) / 16 * 16;
        long power = 4;
        while (power < numbers) power *= 2;
        return power;
    }
};

// The ranks that own rows of a table, a block each. Those of a host are neighbours.
struct Owners {
    int all, first, processes;  // of the cluster; this host's first; number of this host's

    // The rows of a block; the last ones are smaller.
    long rows_each(long rows) const { return (words_of(rows) + all - 1) / all * WORD; }

    // The process of this host that deals with an owner on another host.
    int keeper(long owner) const { return int(owner % processes); }

    // The most rows of owners on other hosts that a process keeps in a step.
    long most_kept(long rows, long most_rows) const {
        return std::min(processes * most_rows, (all - 1) / processes * rows_each(rows));
    }
};

// Rows as an index and as a list, with numbers of each [rows][columns]: gradients in quanta (see fixed_point.h), or values.
struct SomeRows {
    RowIndex index;
    uint32_t* rows;
    int32_t* numbers;

    SomeRows(char* memory, TableShape shape, long most_rows) {
        index.size = words_of(shape.rows);
        index.words = reinterpret_cast<uint64_t*>(memory);
        index.before = reinterpret_cast<uint32_t*>(index.words + index.size);
        rows = index.before + whole_lines(index.size + 1);
        numbers = reinterpret_cast<int32_t*>(rows + whole_lines(most_rows + SPARE));
    }

    static long bytes(TableShape shape, long most_rows) {
        const long words = words_of(shape.rows);
        const long numbers = whole_lines(words + 1) + whole_lines(most_rows + SPARE) + most_rows * shape.columns;
        return (words * long(sizeof(uint64_t)) + numbers * 4 + 63) / 64 * 64;
    }

    // Lists the rows whose bits are set, and NO_ROW behind them.
    void list() {
        uint32_t* next = rows;
        for (long word = 0; word < index.size; ++word) {
            index.before[word] = uint32_t(next - rows);
            next = write_bits(index.words[word], uint32_t(word * WORD), next);
        }
        index.before[index.size] = uint32_t(next - rows);
        *next = NO_ROW;
    }

    static long whole_lines(long numbers) { return (numbers + 15) / 16 * 16; }
};

// Rounds to the nearest number that float16 holds, as NumPy does. Numbers beyond its range keep 11 bits.
inline float rounded_to_half(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    const uint32_t sign = bits & 0x80000000u, size = bits ^ sign;
    // Below 2^-14, float16 has multiples of 2^-24; so does float32 around 0.75.
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

// Each row, with its optimizer state, has one owner among all ranks, which adds up the gradients of all ranks, and updates
// the row. Any process reads the rows of its host in shared memory. For rows of other hosts, one process of a host lists
// those that its batch touches, gets their values from their owners, and later sends them the host's sums.
// On a single host, each process updates as many of the touched rows as the others, whoever owns them.
//
// The optimizers would also change rows without a gradient, by their momentum. A record is written only when its row has
// a gradient, and holds the number of that update. Whoever reads it later adds what the updates since then would have
// changed: a multiple of the row's first moments. `drift_` holds the multiple for each update that a record may be from;
// Adam's is divided by the root of the row's second moment. Neglected are weight decay, and the change of Adam's epsilon
// relative to that root.
class Table {
  public:
    // memories: of each process of this host, its gradient, the rows of other hosts that it keeps, and its own records.
    Table(TableShape shape, Optimizer optimizer, char* const* memories, Owners owners, int process, long most_rows,
          int threads)
        : shape_(shape), optimizer_(optimizer), owners_(owners), process_(process), threads_(threads),
          stride_(shape.stride()), rows_each_(owners.rows_each(shape.rows)), drift_(1, 0.0), powers_(1, 1.0f),
          powers2_(1, 1.0f) {
        const long most_kept = owners.most_kept(shape.rows, most_rows);
        for (int i = 0; i < owners.processes; ++i) {
            char* const kept = memories[i] + SomeRows::bytes(shape, most_rows);
            gradients_.emplace_back(memories[i], shape, most_rows);
            kept_.emplace_back(kept, shape, most_kept);
            records_.push_back(reinterpret_cast<float*>(kept + SomeRows::bytes(shape, most_kept)));
        }
    }

    static long bytes(TableShape shape, long most_rows, Owners owners) {
        return SomeRows::bytes(shape, most_rows) + SomeRows::bytes(shape, owners.most_kept(shape.rows, most_rows)) +
               owners.rows_each(shape.rows) * shape.stride() * long(sizeof(float));
    }

    SomeRows& gradient() { return gradients_[process_]; }

    // Copies the current values of rows, in ascending order, to out [count][columns].
    void read(const uint32_t* rows, long count, float* out) const {
#pragma omp parallel for num_threads(threads_)
        for (int part = 0; part < threads_; ++part) {
            const long first = count * part / threads_, last = count * (part + 1) / threads_;
            read_part(rows + first, last - first, out + first * shape_.columns);
        }
    }

    // Lists the rows of other hosts that this process keeps: those with a bit in an index of its host. Their values are to
    // be copied to the numbers. bounds [owners + 1]: the places where the rows of each owner begin.
    SomeRows& keep(int64_t* bounds) {
        SomeRows& kept = kept_[process_];
        std::fill_n(kept.index.words, kept.index.size, 0);
        for_each_other_owner([&](int owner) {
            for (long word = first_word(owner); word < first_word(owner + 1); ++word)
                kept.index.words[word] = on_host(word);
        });
        kept.list();
        for (int owner = 0; owner <= owners_.all; ++owner) bounds[owner] = kept.index.before[first_word(owner)];
        return kept;
    }

    // Replaces the numbers of the rows of `keep` by the sums of their gradients on this host.
    void sum_kept() {
        SomeRows& kept = kept_[process_];
        with_width(shape_.columns, [&](auto columns) {
            for_each_other_owner([&](int owner) {
                int32_t* next = kept.numbers + kept.index.before[first_word(owner)] * columns;
                const auto copy = [&](uint32_t, const int32_t* sums) { next = std::copy_n(sums, long(columns), next); };
                for_each_sum(gradients_, first_row(owner), first_row(owner + 1), columns, copy);
            });
        });
    }

    // Adds up the gradients of this process's rows: those of this host, and the sums of others, as lists of rows, and
    // their numbers [rows][columns].
    void add(const uint32_t* const* rows, const int32_t* const* sums, const int64_t* counts, int lists) {
        const long columns = shape_.columns, own = owners_.first + process_;
        const long begin = first_word(own), end = first_word(own + 1);
        long most = std::accumulate(counts, counts + lists, 0L);
        for (const SomeRows& gradient : gradients_) most += gradient.index.before[end] - gradient.index.before[begin];
        SomeRows all(total_.need(SomeRows::bytes(shape_, most)), shape_, most);
        const auto add_row = [&](uint32_t row, const int32_t* numbers) {
            int32_t* const to = all.numbers + all.index.place(row) * columns;
            for (long n = 0; n < columns; ++n) add_whole(to[n], numbers[n]);
        };
        std::fill_n(all.index.words, all.index.size, 0);
        for (long word = begin; word < end; ++word) all.index.words[word] = on_host(word);
        for (int i = 0; i < lists; ++i)
            for (long k = 0; k < counts[i]; ++k) all.index.words[rows[i][k] / WORD] |= uint64_t{1} << (rows[i][k] % WORD);
        all.list();
        std::fill_n(all.numbers, all.index.rows() * columns, 0);
        for_each_sum(gradients_, first_row(own), first_row(own + 1), columns, add_row);
        for (int i = 0; i < lists; ++i)
            for (long k = 0; k < counts[i]; ++k) add_row(rows[i][k], sums[i] + k * columns);
        total_of_hosts_ = {all};
    }

    // The sum of the squares of the last sum, in quanta.
    SumOfSquares squares() const {
        SumOfSquares all;
        const auto [begin, end] = share(0, 1);
        for_each_sum(summands(), begin, end, shape_.columns, [&](uint32_t, const int32_t* sums) {
            const SumOfSquares of_row = sum_of_squares(sums, shape_.columns);
            all.low += of_row.low;
            all.high += of_row.high;
        });
        return all;
    }

    // Updates a share of the host's rows that have a gradient, which is `scale` × its last sum, in quanta, + `weight_decay`
    // × value. All processes call it, and none reads before all have returned.
    //
    // rate: learning rate; for Adam with the correction of its bias.
    void update(double rate, double scale, double weight_decay) {
#pragma omp parallel for num_threads(threads_)
        for (int thread = 0; thread < threads_; ++thread) {
            const auto [begin, end] = share(thread, threads_);
            update(begin, end, rate, float(scale), float(weight_decay));
        }
        advance(rate);
    }

    // Writes all records of this process's rows as if each had been part of the last update, with values that float16
    // holds, as files have them. All processes call it, and none reads before all have returned.
    void flush() {
        if (drift_.size() == 1) return;
        const long columns = shape_.columns;
        for_each_own_row([&](uint32_t row) {
            float* const entry = record(row);
            const float since = drift_since(entry), past = powers_[age(entry)];
            for (long n = 0; n < columns; ++n) {
                entry[n] = rounded_to_half(multiply_add(since, entry[columns + n], entry[n]));
                entry[columns + n] *= past;
            }
            second(entry) *= powers2_[age(entry)];
            set_written(entry, 0);
        });
        restart({0.0});
    }

    // Copies this process's rows from arrays. moments [rows][columns], seconds [rows] and from [rows] may be null.
    void load(const float* values, const float* moments, const float* seconds, const int32_t* from) {
        const long columns = shape_.columns;
        for_each_own_row([&](uint32_t row) {
            float* const entry = record(row);
            std::copy_n(values + row * columns, columns, entry);
            if (moments) {
                std::copy_n(moments + row * columns, columns, entry + columns);
            } else {
                std::fill_n(entry + columns, columns, 0.0f);
            }
            second(entry) = seconds ? seconds[row] : 0.0f;
            set_written(entry, from ? from[row] : 0);
        });
    }

    // Copies the records of rows [first, last), of this host, to arrays of all rows, each of which may be null; see `load`.
    void store(long first, long last, float* values, float* moments, float* seconds, int32_t* from) const {
        const long columns = shape_.columns;
#pragma omp parallel for num_threads(threads_)
        for (long row = first; row < last; ++row) {
            float* const entry = record(uint32_t(row));
            if (values) std::copy_n(entry, columns, values + row * columns);
            if (moments) std::copy_n(entry + columns, columns, moments + row * columns);
            if (seconds) seconds[row] = second(entry);
            if (from) from[row] = written(entry);
        }
    }

    // The drift since each update: for a record from update k, element k.
    const std::vector<double>& history() const { return drift_; }

    void restart(std::vector<double> history) {
        drift_ = std::move(history);
        powers_.resize(1);
        powers2_.resize(1);
        for (size_t k = 1; k < drift_.size(); ++k) add_powers();
    }

  private:
    static constexpr long LINE = 16;   // numbers of a cache line
    static constexpr long AHEAD = 64;  // lines of records to fetch in advance

    const TableShape shape_;
    const Optimizer optimizer_;
    const Owners owners_;
    const int process_, threads_;
    const long stride_, rows_each_;
    std::vector<SomeRows> gradients_, kept_;  // of each process of this host
    std::vector<float*> records_;
    std::vector<SomeRows> total_of_hosts_;    // the result of `add`, if there are several hosts
    Buffer<char> total_;
    std::vector<double> drift_;            // see `history`; its size is the number of updates since `flush`, plus 1
    std::vector<float> powers_, powers2_;  // powers of the decays

    // The record of a row of this host.
    float* record(uint32_t row) const {
        const uint32_t rows_each = uint32_t(rows_each_), owner = row / rows_each;
        return records_[owner - owners_.first] + long(row - owner * rows_each) * stride_;
    }

    // Calls visit(owner) for the owners on other hosts with which this process deals.
    template <class Visit> void for_each_other_owner(Visit visit) const {
        for (int owner = process_; owner < owners_.all; owner += owners_.processes)
            if (owner < owners_.first || owner >= owners_.first + owners_.processes) visit(owner);
    }

    // The word of a bitmap where the rows of an owner begin.
    long first_word(long owner) const { return std::min(words_of(shape_.rows), owner * rows_each_ / WORD); }

    // The row where those of an owner begin.
    uint32_t first_row(long owner) const { return uint32_t(std::min(shape_.rows, owner * rows_each_)); }

    // The gradients whose sum updates this process's share of the rows.
    const std::vector<SomeRows>& summands() const { return total_of_hosts_.empty() ? gradients_ : total_of_hosts_; }

    // The rows [begin, end) that a thread updates: a part of this process's block, if other hosts have sent their sums of
    // these; else a part of all rows. The parts have as many rows of the first of the summands.
    std::pair<uint32_t, uint32_t> share(int thread, int threads) const {
        const bool alone = total_of_hosts_.empty();
        const SomeRows& some = summands()[0];
        const long count = some.index.rows(), part = alone ? process_ * threads + thread : thread;
        const long parts = alone ? long(gradients_.size()) * threads : threads;
        const auto row_at = [&](long number) {
            return number == 0 ? 0 : number == parts ? uint32_t(shape_.rows) : some.rows[count * number / parts];
        };
        return {row_at(part), row_at(part + 1)};
    }

    // The place in an ascending list where the rows of an owner begin.
    const uint32_t* lower(const uint32_t* begin, const uint32_t* end, long owner) const {
        return std::lower_bound(begin, end, first_row(owner));
    }

    // The word of the bitmap of all rows that this host's processes touch.
    uint64_t on_host(long word) const {
        uint64_t all = 0;
        for (const SomeRows& gradient : gradients_) all |= gradient.index.words[word];
        return all;
    }

    void read_part(const uint32_t* rows, long count, float* out) const {
        const long columns = shape_.columns;
        const uint32_t *const end = rows + count, *const here = lower(rows, end, owners_.first);
        const uint32_t* const after = lower(here, end, owners_.first + owners_.processes);
        copy_kept(rows, here - rows, out);
        read_here(here, after - here, out + (here - rows) * columns);
        copy_kept(after, end - after, out + (after - rows) * columns);
    }

    void read_here(const uint32_t* rows, long count, float* out) const {
        with_width(shape_.columns, [&](auto columns) {
            for (long i = 0; i < count; ++i) {
                if (i + ahead() < count) prefetch(record(rows[i + ahead()]));
                const float* const entry = record(rows[i]);
                const float since = drift_since(entry);
                for (long n = 0; n < columns; ++n) out[i * columns + n] = multiply_add(since, entry[columns + n], entry[n]);
            }
        });
    }

    // Copies the values of rows of other hosts, which the processes of this host keep.
    void copy_kept(const uint32_t* rows, long count, float* out) const {
        const long columns = shape_.columns;
        for (long i = 0; i < count; ++i) {
            const SomeRows& kept = kept_[owners_.keeper(rows[i] / rows_each_)];
            std::memcpy(out + i * columns, kept.numbers + kept.index.place(rows[i]) * columns, columns * sizeof *out);
        }
    }

    float& second(float* record) const { return record[2 * shape_.columns]; }

    int32_t written(const float* record) const {
        int32_t number;
        std::memcpy(&number, record + 2 * shape_.columns + 1, sizeof number);
        return number;
    }

    void set_written(float* record, int32_t number) const {
        std::memcpy(record + 2 * shape_.columns + 1, &number, sizeof number);
    }

    // The number of updates since a record was written.
    long age(const float* record) const { return long(drift_.size()) - 1 - written(record); }

    // The multiple of a record's first moments that the updates since it was written have added to its values.
    float drift_since(const float* record) const {
        return optimizer_.along_drift(float(drift_[written(record)]), record[2 * shape_.columns]);
    }

    // The number of records by which one is fetched before it is used.
    long ahead() const { return std::max(1L, AHEAD * LINE / stride_); }

    // Fetches a record into the L2 cache, which can wait for more lines at once than the L1 cache.
    void prefetch(const float* record) const {
        for (long line = 0; line < stride_; line += LINE) __builtin_prefetch(record + line, 0, 2);
    }

    // Fetches a record that will be written, so that no other core keeps a copy of it.
    void prefetch_to_write(const float* record) const {
        for (long line = 0; line < stride_; line += LINE) take_line(record + line);
    }

    void add_powers() {
        const double k = double(powers_.size());
        powers_.push_back(float(std::pow(optimizer_.decay, k)));
        powers2_.push_back(float(std::pow(optimizer_.decay2, k)));
    }

    // Counts an update: older records have drifted further.
    void advance(double rate) {
        constexpr double NEGLIGIBLE = 1e-12;
        double change = optimizer_.drift(rate);
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
        const long begin = std::min(shape_.rows, rows_each_ * (owners_.first + process_));
        const long end = std::min(shape_.rows, begin + rows_each_);
#pragma omp parallel for num_threads(threads_)
        for (long row = begin; row < end; ++row) work(uint32_t(row));
    }

    static void ignore(uint32_t) {}

    // Calls visit(row, sums) for each row from `begin` to `end` that has numbers in some of the lists, in ascending order,
    // with their sums, and soon(row) some rows before. Numbers of other processes are in the caches of other cores, from
    // which they are fetched in advance.
    template <class Width, class Visit, class Soon = void(uint32_t)>
    void for_each_sum(const std::vector<SomeRows>& lists, uint32_t begin, uint32_t end, Width width, Visit visit,
                      const Soon& soon = ignore) const {
        struct Head {
            const uint32_t *row, *end;
            const int32_t* numbers;
        };
        std::vector<Head> heads;
        for (const SomeRows& list : lists) {
            const uint32_t *const all = list.rows, *const last = all + list.index.rows();
            const uint32_t* const first = std::lower_bound(all, last, begin);
            heads.push_back({first, std::lower_bound(first, last, end), list.numbers + (first - all) * width});
        }
        const long columns = width, ahead = this->ahead();
        if (lists.size() == 1) {
            for (auto [row, last, numbers] = heads[0]; row < last; ++row, numbers += columns) {
                if (row + ahead < last) soon(row[ahead]);
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
                const bool has = *head.row == row;
                const int32_t* const terms = has ? head.numbers : none.data();  // no branch, which would be mispredicted
                for (long n = 0; n < width; ++n) add_whole(sums[n], terms[n]);
                for (long n = 0; n < width; n += LINE) __builtin_prefetch(head.numbers + AHEAD * LINE + n);
                if (head.row + ahead < head.end) soon(head.row[ahead]);
                head.row += has;
                head.numbers += has * columns;
            }
            visit(row, sums);
        }
    }

    // Updates the rows from `begin` to `end`.
    void update(uint32_t begin, uint32_t end, double rate, float scale, float weight_decay) {
        const int32_t next = int32_t(drift_.size());
        with_width(shape_.columns, [&](auto columns) {
            const auto update_row = [&](uint32_t row, const int32_t* __restrict sums) {
                float* __restrict const entry = record(row);
                const float since = drift_since(entry), past = powers_[age(entry)];
                float& second = this->second(entry);
                second *= powers2_[age(entry)];
                const RowRule rule =
                    optimizer_.of_row(second, mean_square(sums, columns, scale), past, float(rate), scale, weight_decay);
                for (long n = 0; n < columns; ++n) {
                    entry[n] = multiply_add(since, entry[columns + n], entry[n]);
                    rule.update(entry[n], entry[columns + n], sums[n]);
                }
                set_written(entry, next);
            };
            for_each_sum(summands(), begin, end, columns, update_row, [&](uint32_t row) { prefetch_to_write(record(row)); });
        });
    }
};
