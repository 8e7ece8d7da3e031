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

    // Numbers of a record: values, first and second moments, and the update that it was written in.
    // Small records do not cross the border of a cache line.
    long stride() const {
        const long numbers = 3 * columns + 1;
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

// The rows are divided among the processes that share memory: each keeps the records of its rows, sums their gradients
// over all processes, and updates them. Any process reads any row.
//
// The optimizers would also change rows without a gradient, by their momentum. A record is written only when its row has
// a gradient, and holds the number of that update. Whoever reads it later adds what the updates since then would have
// changed: a multiple of the row's direction. `drift_` holds the multiple for each update that a record may be from.
// Neglected are weight decay, and the change of Adam's epsilon relative to the root of the second moment.
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
        for_each_piece(0, count, [&](long first, long rows_here, long column, auto width) {
            float values[PIECE], direction[PIECE], second[PIECE], factor[PIECE];
            for (long i = 0; i < rows_here; ++i) {
                prefetch(rows, first + i, count);
                const float* entry = record(rows[first + i]);
                take_row(entry, column, width, values + i * width, direction + i * width, second + i * width);
                const float since = float(drift_[written(entry)]);
                for (long n = 0; n < width; ++n) factor[i * width + n] = since;
            }
            drift(values, direction, second, factor, rows_here * width);
            for (long i = 0; i < rows_here; ++i)
                copy_row(values + i * width, width, out + (first + i) * shape_.columns + column);
        });
    }

    // Sums the gradients of this process's rows over the processes.
    void sum() {
        const long begin = std::min(words_of(shape_.rows), words_each_ * process_);
        const long end = std::min(words_of(shape_.rows), begin + words_each_);
        if (gradients_.size() == 1) {
            summed_ = {gradient().rows, gradient().index.rows(), gradient().values};
            return;
        }
        union_.resize(end - begin);
        starts_.resize(end - begin + 1);
        RowIndex all{union_.data(), starts_.data(), end - begin};
        for (long word = begin; word < end; ++word) {
            union_[word - begin] = 0;
            for (const Gradient& gradient : gradients_) union_[word - begin] |= gradient.index.words[word];
        }
        all.count();
        uint32_t *const rows = rows_.need(all.rows() + SPARE), *next = rows;
        for (long word = begin; word < end; ++word) next = write_bits(union_[word - begin], uint32_t(word * WORD), next);
        int32_t* const sums = sums_.need(all.rows() * shape_.columns);
        summed_ = {rows, all.rows(), sums};
#pragma omp parallel for num_threads(threads_)
        for (int part = 0; part < threads_; ++part)
            sum(all, begin, (end - begin) * part / threads_, (end - begin) * (part + 1) / threads_, sums);
    }

    // The number of rows of the last sum.
    long summed() const { return summed_.count; }

    // Copies the part of the last sum with rows in [first, last) to out: records of a row number and its sums. Returns
    // their number.
    long give(long first, long last, int32_t* out) const {
        const uint32_t* const begin = std::lower_bound(summed_.rows, summed_.rows + summed_.count, uint32_t(first));
        const uint32_t* const end = std::lower_bound(begin, summed_.rows + summed_.count, uint32_t(last));
        for (const uint32_t* row = begin; row < end; ++row, out += shape_.columns + 1) {
            std::memcpy(out, row, sizeof *row);
            std::copy_n(summed_.values + (row - summed_.rows) * shape_.columns, shape_.columns, out + 1);
        }
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
    SumOfSquares squares() const { return sum_of_squares(summed_.values, summed_.count * shape_.columns); }

    // Updates this process's rows that have a gradient, which is `scale` × the last sum, in quanta, + `weight_decay` ×
    // value. All processes call it, and none reads before all have returned.
    //
    // rate: learning rate; for Adam with the correction of its bias.
    void update(double rate, double scale, double weight_decay) {
        const long count = summed_.count;
#pragma omp parallel for num_threads(threads_)
        for (int part = 0; part < threads_; ++part)
            update(count * part / threads_, count * (part + 1) / threads_, float(rate), float(scale), float(weight_decay));
        advance(rate);
    }

    // Writes all records of this process's rows as if each had been part of the last update. All processes call it, and
    // none reads before all have returned.
    void flush() {
        const long columns = shape_.columns, now = long(drift_.size()) - 1;
        for_each_own_row([&](uint32_t row) {
            float* entry = record(row);
            const int32_t from = written(entry);
            const float factor = float(drift_[from]), past = powers_[now - from], past2 = powers2_[now - from];
            for (long n = 0; n < columns; ++n) {
                drift(entry + n, entry + columns + n, entry + 2 * columns + n, &factor, 1);
                entry[columns + n] *= past;
                entry[2 * columns + n] *= past2;
            }
            set_written(entry, 0);
        });
        restart({0.0});
    }

    // Copies this process's rows from arrays. moments and seconds [rows][columns] and written [rows] may be null.
    void load(const float* values, const float* moments, const float* seconds, const int32_t* from) {
        const long columns = shape_.columns;
        for_each_own_row([&](uint32_t row) {
            float* entry = record(row);
            std::copy_n(values + row * columns, columns, entry);
            for (long n = 0; n < columns; ++n) {
                entry[columns + n] = moments ? moments[row * columns + n] : 0.0f;
                entry[2 * columns + n] = seconds ? seconds[row * columns + n] : 0.0f;
            }
            set_written(entry, from ? from[row] : 0);
        });
    }

    // Copies the records of all rows to arrays; see `load`.
    void store(float* values, float* moments, float* seconds, int32_t* from) const {
        const long columns = shape_.columns;
#pragma omp parallel for num_threads(threads_)
        for (long row = 0; row < shape_.rows; ++row) {
            const float* entry = record(uint32_t(row));
            std::copy_n(entry, columns, values + row * columns);
            if (moments) std::copy_n(entry + columns, columns, moments + row * columns);
            if (seconds) std::copy_n(entry + 2 * columns, columns, seconds + row * columns);
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
    static constexpr long PIECE = 512;  // numbers of a piece, whose arrays fit into the L1 cache
    static constexpr long AHEAD = 16;   // records to fetch in advance

    const TableShape shape_;
    const Optimizer optimizer_;
    const int process_, threads_;
    const long stride_, words_each_;
    std::vector<Gradient> gradients_;
    std::vector<float*> records_;
    struct {
        const uint32_t* rows;
        long count;
        const int32_t* values;
    } summed_{};                     // the last sum
    std::vector<uint64_t> union_;    // the rows of all gradients, and its index
    std::vector<uint32_t> starts_;
    Buffer<uint32_t> rows_;
    Buffer<int32_t> sums_;
    std::vector<double> drift_;            // see `history`; its size is the number of updates since `flush`, plus 1
    std::vector<float> powers_, powers2_;  // powers of the decays

    float* record(uint32_t row) const {
        const uint32_t rows_each = uint32_t(words_each_ * WORD), owner = row / rows_each;
        return records_[owner] + long(row - owner * rows_each) * stride_;
    }

    int32_t written(const float* record) const {
        int32_t number;
        std::memcpy(&number, record + 3 * shape_.columns, sizeof number);
        return number;
    }

    void set_written(float* record, int32_t number) const {
        std::memcpy(record + 3 * shape_.columns, &number, sizeof number);
    }

    template <class Width>
    void take_row(const float* record, long column, Width width, float* values, float* first, float* second) const {
        copy_row(record + column, width, values);
        copy_row(record + column + shape_.columns, width, first);
        copy_row(record + column + 2 * shape_.columns, width, second);
    }

    void prefetch(const uint32_t* rows, long i, long count) const {
        if (i + AHEAD < count) __builtin_prefetch(record(rows[i + AHEAD]));
    }

    // Adds what the updates since a record was written have changed.
    void drift(float* values, const float* moment, const float* second, const float* factor, long count) const {
        if (optimizer_.rule == Rule::adam) {
            const float epsilon = float(optimizer_.epsilon);
            for (long i = 0; i < count; ++i) values[i] -= factor[i] * moment[i] / (std::sqrt(second[i]) + epsilon);
        } else {
            for (long i = 0; i < count; ++i) values[i] += factor[i] * moment[i];
        }
    }

    void add_powers() {
        const double k = double(powers_.size());
        powers_.push_back(float(std::pow(optimizer_.decay, k)));
        powers2_.push_back(float(std::pow(optimizer_.decay2, k)));
    }

    // Counts an update: older records have drifted further.
    void advance(double rate) {
        constexpr double NEGLIGIBLE = 1e-12;
        const bool adam = optimizer_.rule == Rule::adam;
        const double ratio = adam ? optimizer_.decay / std::sqrt(optimizer_.decay2) : optimizer_.decay;
        double change = adam ? rate : optimizer_.rule == Rule::sgd ? 1.0 : optimizer_.decay;
        const double least = change * NEGLIGIBLE;
        for (size_t k = drift_.size(); k-- > 0;) {
            change *= ratio;
            if (change <= least) break;
            drift_[k] += change;
        }
        drift_.push_back(0.0);
        add_powers();
    }

    // Calls work(first row, rows, first column, columns) for pieces of at most PIECE numbers.
    template <class Work> void for_each_piece(long start, long end, Work work) const {
        with_width(std::min(shape_.columns, PIECE), [&](auto width) {
            const long rows = PIECE / width;
            for (long first = start; first < end; first += rows) {
                long column = 0;
                for (; column + width <= shape_.columns; column += width)
                    work(first, std::min(rows, end - first), column, width);
                if (column < shape_.columns) work(first, std::min(rows, end - first), column, shape_.columns - column);
            }
        });
    }

    template <class Work> void for_each_own_row(Work work) {
        const long begin = std::min(shape_.rows, words_each_ * process_ * WORD);
        const long end = std::min(shape_.rows, begin + words_each_ * WORD);
#pragma omp parallel for num_threads(threads_)
        for (long row = begin; row < end; ++row) work(uint32_t(row));
    }

    // Sums the gradients of the rows in words [start, end) of the union, which begins at word `begin` of the table.
    void sum(const RowIndex& all, long begin, long start, long end, int32_t* sums) {
        with_width(shape_.columns, [&](auto columns) {
            std::fill(sums + all.before[start] * columns, sums + all.before[end] * columns, 0);
            for (const Gradient& gradient : gradients_)
                for (uint32_t i = gradient.index.before[begin + start]; i < gradient.index.before[begin + end]; ++i) {
                    int32_t* const sum = sums + all.place(uint32_t(gradient.rows[i] - begin * WORD)) * long(columns);
                    for (long n = 0; n < columns; ++n) add_whole(sum[n], gradient.values[i * long(columns) + n]);
                }
        });
    }

    // The mean of the squares of `scale` × the row at a place of the last sum.
    float mean_square(long place, float scale) const {
        const int32_t* const sums = summed_.values + place * shape_.columns;
        float total = 0;
        for (long n = 0; n < shape_.columns; ++n) total += scale * float(sums[n]) * (scale * float(sums[n]));
        return total / float(shape_.columns);
    }

    // Updates the rows at the places [start, end) of the last sum.
    void update(long start, long end, float rate, float scale, float weight_decay) {
        const uint32_t* const rows = summed_.rows;
        const long now = long(drift_.size()) - 1, columns = shape_.columns;
        for_each_piece(start, end, [&](long first, long rows_here, long column, auto width) {
            float values[PIECE], moment[PIECE], second[PIECE], factor[PIECE], past[PIECE], past2[PIECE], gradient[PIECE],
                squares[PIECE];
            const long all = rows_here * width;
            for (long i = 0; i < rows_here; ++i) {
                prefetch(rows, first + i, end);
                const float* record = this->record(rows[first + i]);
                take_row(record, column, width, values + i * width, moment + i * width, second + i * width);
                copy_row(summed_.values + (first + i) * columns + column, width, gradient + i * width);
                const int32_t from = written(record);
                const float since = float(drift_[from]), power = powers_[now - from], power2 = powers2_[now - from];
                for (long n = i * width; n < (i + 1) * width; ++n) {
                    factor[n] = since;
                    past[n] = power;
                    past2[n] = power2;
                }
                if (optimizer_.by_row) std::fill_n(squares + i * width, width, mean_square(first + i, scale));
            }
            drift(values, moment, second, factor, all);
            for (long i = 0; i < all; ++i) {
                moment[i] *= past[i];
                second[i] *= past2[i];
            }
            optimizer_.update(all, values, moment, second, gradient, optimizer_.by_row ? squares : nullptr, rate, scale,
                              weight_decay);
            for (long i = 0; i < rows_here; ++i) {
                float* record = this->record(rows[first + i]);
                copy_row(values + i * width, width, record + column);
                copy_row(moment + i * width, width, record + column + columns);
                copy_row(second + i * width, width, record + column + 2 * columns);
                if (column + width == columns) set_written(record, int32_t(now + 1));
            }
        });
    }
};
