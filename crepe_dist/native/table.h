// A table of parameters of which each step touches a few rows: its gradient, its sum over processes, and its optimizer.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "memory.h"
#include "optimizer.h"
#include "rows.h"
#include "whole.h"

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

// A process's gradient: the rows that it touched, as an index and as a list, and their values [rows][columns], in quanta
// (see whole.h).
struct Gradient {
    RowIndex index;
    uint32_t* rows;
    int32_t* values;

    Gradient(char* memory, TableShape shape, long most_rows) {
        index.size = words_of(shape.rows);
        index.words = reinterpret_cast<uint64_t*>(memory);
        index.before = reinterpret_cast<uint32_t*>(index.words + index.size);
        rows = index.before + whole_lines(index.size + 1);
        values = reinterpret_cast<int32_t*>(rows + whole_lines(most_rows + SPARE));
    }

    static long bytes(TableShape shape, long most_rows) {
        const long words = words_of(shape.rows);
        const long numbers = whole_lines(words + 1) + whole_lines(most_rows + SPARE) + most_rows * shape.columns;
        return words * long(sizeof(uint64_t)) + numbers * 4;
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

// The rows are divided among the processes that share memory: each keeps the records of its rows, sums their gradients
// over all processes, and updates them. Any process reads any row.
//
// The optimizers would also change rows without a gradient, by their momentum. A record is written only when its row has
// a gradient, and holds the number of that update. Whoever reads it later adds what the updates since then would have
// changed: a multiple of the row's first moments. `drift_` holds the multiple for each update that a record may be from;
// Adam's is divided by the root of the row's second moment. Neglected are weight decay, and the change of Adam's epsilon
// relative to that root.
class Table {
  public:
    // memories: of each process, its gradient, then the records of its rows.
    Table(TableShape shape, Optimizer optimizer, char* const* memories, int processes, int process, long most_rows,
          int threads)
        : shape_(shape), optimizer_(optimizer), process_(process), threads_(threads), stride_(shape.stride()),
          words_each_(rows_each(shape.rows, processes) / WORD), drift_(1, 0.0), powers_(1, 1.0f),
          powers2_(1, 1.0f) {
        const long gradient = Gradient::bytes(shape, most_rows);
        for (int i = 0; i < processes; ++i) {
            gradients_.emplace_back(memories[i], shape, most_rows);
            records_.push_back(reinterpret_cast<float*>(memories[i] + (gradient + 63) / 64 * 64));
        }
    }

    static long bytes(TableShape shape, long most_rows, long processes) {
        return (Gradient::bytes(shape, most_rows) + 63) / 64 * 64 +
               rows_each(shape.rows, processes) * shape.stride() * long(sizeof(float));
    }

    // The number of rows that each process keeps; the last has fewer.
    static long rows_each(long rows, long processes) { return (words_of(rows) + processes - 1) / processes * WORD; }

    Gradient& gradient() { return gradients_[process_]; }

    // Copies the current values of rows to out [count][columns].
    void read(const uint32_t* rows, long count, float* out) const {
        with_width(shape_.columns, [&](auto columns) {
            for (long i = 0; i < count; ++i) {
                prefetch(rows, i, count);
                const float* const entry = record(rows[i]);
                const float since = drift_since(entry);
                for (long n = 0; n < columns; ++n) out[i * columns + n] = multiply_add(since, entry[columns + n], entry[n]);
            }
        });
    }

    // Lists this process's rows that have a gradient in any process. The terms are added up where the sum is used, so all
    // gradients remain as they are until then.
    void collect() {
        if (gradients_.size() == 1) {
            summed_ = {gradient().rows, gradient().index.rows(), gradient().values};
            return;
        }
        const long begin = std::min(words_of(shape_.rows), words_each_ * process_);
        const long end = std::min(words_of(shape_.rows), begin + words_each_);
        long most = 0;
        for (const Gradient& gradient : gradients_) most += gradient.index.before[end] - gradient.index.before[begin];
        uint32_t *const rows = rows_.need(most + SPARE), *next = rows;
        for (long word = begin; word < end; ++word) {
            uint64_t all = 0;
            for (const Gradient& gradient : gradients_) all |= gradient.index.words[word];
            next = write_bits(all, uint32_t(word * WORD), next);
        }
        summed_ = {rows, next - rows, nullptr};
    }

    // The number of rows of the last sum.
    long summed() const { return summed_.count; }

    // Copies the part of the last sum with rows in [first, last) to out: records of a row number and its sums. Returns
    // their number.
    long give(long first, long last, int32_t* out) const {
        const uint32_t* const begin = std::lower_bound(summed_.rows, summed_.rows + summed_.count, uint32_t(first));
        const uint32_t* const end = std::lower_bound(begin, summed_.rows + summed_.count, uint32_t(last));
        for_each_sum(begin - summed_.rows, end - summed_.rows, shape_.columns, [&](long i, const int32_t* sums) {
            std::memcpy(out, summed_.rows + i, sizeof *summed_.rows);
            std::copy_n(sums, shape_.columns, out + 1);
            out += shape_.columns + 1;
        });
        return end - begin;
    }

    // Replaces the last sum by that of several lists of records; see `give`.
    void take(const int32_t* const* lists, const int64_t* counts, int number) {
        const long columns = shape_.columns;
        std::vector<int64_t> next(number, 0);
        std::vector<uint32_t> rows;
        std::vector<int32_t> sums;
        const auto row_of = [&](int list) { return uint32_t(lists[list][next[list] * (columns + 1)]); };
        for (;;) {
            uint32_t least = UINT32_MAX;
            for (int i = 0; i < number; ++i)
                if (next[i] < counts[i]) least = std::min(least, row_of(i));
            if (least == UINT32_MAX) break;
            rows.push_back(least);
            const size_t start = sums.size();
            sums.resize(start + columns, 0);
            for (int i = 0; i < number; ++i) {
                if (next[i] == counts[i] || row_of(i) != least) continue;
                const int32_t* values = lists[i] + next[i]++ * (columns + 1) + 1;
                for (long n = 0; n < columns; ++n) add_whole(sums[start + n], values[n]);
            }
        }
        summed_ = {rows_.need(rows.size()), long(rows.size()), sums_.need(sums.size())};
        std::copy(rows.begin(), rows.end(), rows_.get());
        std::copy(sums.begin(), sums.end(), sums_.get());
    }

    // The sum of the squares of the last sum, in quanta.
    SumOfSquares squares() const {
        SumOfSquares all;
        for_each_sum(0, summed_.count, shape_.columns, [&](long, const int32_t* sums) {
            const SumOfSquares of_row = sum_of_squares(sums, shape_.columns);
            all.low += of_row.low;
            all.high += of_row.high;
        });
        return all;
    }

    // Updates this process's rows that have a gradient, which is `scale` × the last sum, in quanta, + `weight_decay` ×
    // value. All processes call it, and none reads before all have returned.
    //
    // rate: learning rate; for Adam with the correction of its bias.
    void update(double rate, double scale, double weight_decay) {
        const long count = summed_.count;
#pragma omp parallel for num_threads(threads_)
        for (int part = 0; part < threads_; ++part)
            update(count * part / threads_, count * (part + 1) / threads_, rate, float(scale), float(weight_decay));
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

    // Copies the records of all rows to arrays, each of which may be null; see `load`.
    void store(float* values, float* moments, float* seconds, int32_t* from) const {
        const long columns = shape_.columns;
#pragma omp parallel for num_threads(threads_)
        for (long row = 0; row < shape_.rows; ++row) {
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
    const int process_, threads_;
    const long stride_, words_each_;
    std::vector<Gradient> gradients_;
    std::vector<float*> records_;
    struct {
        const uint32_t* rows;
        long count;
        const int32_t* sums;  // null if their terms are in the gradients
    } summed_{};              // the last sum
    Buffer<uint32_t> rows_;
    Buffer<int32_t> sums_;
    std::vector<double> drift_;            // see `history`; its size is the number of updates since `flush`, plus 1
    std::vector<float> powers_, powers2_;  // powers of the decays

    float* record(uint32_t row) const {
        const uint32_t rows_each = uint32_t(words_each_ * WORD), owner = row / rows_each;
        return records_[owner] + long(row - owner * rows_each) * stride_;
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

    // Fetches the record that is used a few records after number i of a list.
    void prefetch(const uint32_t* rows, long i, long count) const {
        const long next = i + std::max(1L, AHEAD * LINE / stride_);
        if (next >= count) return;
        const float* const entry = record(rows[next]);
        // Into the L2 cache, which can wait for more lines at once than the L1 cache.
        for (long line = 0; line < stride_; line += LINE) __builtin_prefetch(entry + line, 0, 2);
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
        const long begin = std::min(shape_.rows, words_each_ * process_ * WORD);
        const long end = std::min(shape_.rows, begin + words_each_ * WORD);
#pragma omp parallel for num_threads(threads_)
        for (long row = begin; row < end; ++row) work(uint32_t(row));
    }

    // Calls visit(i, sums) for the rows at the places [start, end) of the last sum. The gradients of other processes are in
    // the caches of other cores, from which they are fetched in advance.
    template <class Width, class Visit> void for_each_sum(long start, long end, Width width, Visit visit) const {
        const long columns = width;
        if (summed_.sums || start == end) {
            for (long i = start; i < end; ++i) visit(i, summed_.sums + i * columns);
            return;
        }
        const size_t processes = gradients_.size();
        const std::vector<int32_t> none(columns);
        std::vector<int32_t> sums_of_row(columns);
        int32_t* __restrict const sums = sums_of_row.data();
        std::vector<const int32_t*> next(processes);  // values of each gradient's next row
        for (size_t k = 0; k < processes; ++k)
            next[k] = gradients_[k].values + gradients_[k].index.place(summed_.rows[start]) * columns;
        for (long i = start; i < end; ++i) {
            std::fill_n(sums, long(width), 0);
            for (size_t k = 0; k < processes; ++k) {
                const bool has = gradients_[k].index.has(summed_.rows[i]);
                const int32_t* const terms = has ? next[k] : none.data();  // no branch, which would be mispredicted
                for (long n = 0; n < width; ++n) add_whole(sums[n], terms[n]);
                for (long n = 0; n < width; n += LINE) __builtin_prefetch(next[k] + AHEAD * LINE + n);
                next[k] += has * columns;
            }
            visit(i, sums);
        }
    }

    // Updates the rows at the places [start, end) of the last sum.
    void update(long start, long end, double rate, float scale, float weight_decay) {
        const int32_t next = int32_t(drift_.size());
        with_width(shape_.columns, [&](auto columns) {
            for_each_sum(start, end, columns, [&](long i, const int32_t* __restrict sums) {
                prefetch(summed_.rows, i, end);
                float* __restrict const entry = record(summed_.rows[i]);
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
            });
        });
    }
};
