// Messages between the hosts in a training step: statistics, gradients, and rows of sharded embeddings.
//
// For each shard of another host, one process of this host requests rows from the owner of the shard, and sends the
// gradients of these rows to the owner. The ranks with the same slice of the dense gradients divide it into pieces. A
// step has two kinds of messages between each pair of partners:
//
// 1. Gradients: the statistics of the processes of the sender's host, float64; the receiver's piece of the dense
//    gradients, int32; the gradients of the rows that the sender has requested, int16, padded to a multiple of four
//    bytes; the number of excesses, uint32, and an Excess for each gradient that does not fit in 16 bits (few do not).
//    Then a request for the rows of the next batch: for each embedding, the number of rows, uint32; then the row ids of
//    all embeddings, uint32.
// 2. Rows: the sender's piece of the sum of the dense gradients, int32; then the values of the requested rows of all
//    embeddings, float16.
//
// The request travels with the gradients of the step before, and the values travel with the sums of that step. A step
// therefore waits for other hosts only twice. Before the first step of an epoch, the first message has only a request,
// and the second message only values.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "sharded_embedding.h"

// Messages to all ranks, by rank.
struct Messages {
    char** addresses;
    int64_t* sizes;  // In bytes.
};

// Messages from all ranks. They are adjacent, in the order of ranks.
struct Received {
    const char* data;
    const int64_t* sizes;  // In bytes.
};

// What a rank exchanges with each rank besides rows. Numbers are counted in elements.
struct DenseExchange {
    int32_t* grads;            // This process's slice of the dense gradients.
    const int64_t* pieces;     // [ranks + 1]: start of each rank's piece, and the end of the last piece.
    const int64_t* own_piece;  // [ranks]: size of this process's piece for the ranks with the same slice, 0 for others.
    int64_t own_piece_start;
    double* stats;             // Statistics of all processes.
    const int64_t* stats_starts;  // [ranks]: start of the statistics of the rank's host.
    const int64_t* stats_sizes;   // [ranks]: number of statistics of the rank's host. 0: the rank is no partner.
    int64_t stats_start, stats_size;  // The statistics of this host.
};

class RowExchange {
  public:
    // owners: rank that owns each shard. requesters: ranks that request rows of this process's shard.
    RowExchange(std::vector<ShardedEmbedding*> embeddings, RowSharding sharding, int local_process, int ranks,
                const int* owners, std::vector<int> requesters, const DenseExchange& dense, int threads)
        : embeddings_(std::move(embeddings)),
          dense_(dense),
          ranks_(ranks),
          threads_(threads),
          owners_(owners, owners + sharding.num_shards),
          requesters_(std::move(requesters)),
          bounds_(sharding.num_shards + 1) {
        for (int shard = 0; shard < sharding.num_shards; ++shard)
            if (!sharding.is_local(shard) && sharding.local_process_for(shard) == local_process)
                remote_shards_.push_back(shard);
    }

    // Packs the messages of the first kind. has_grads: false before the first step of an epoch. has_request: false in
    // the last step of an epoch.
    void pack_grads(bool has_grads, bool has_request, Messages out) {
        std::swap(summed_, requested_);
        requested_.lists.clear();
        if (!has_grads) summed_.lists.clear();
        if (has_request) list_requests();
        const std::vector<int64_t> numbers = count_numbers(summed_.lists);
        std::vector<int64_t> bytes(ranks_), grad_starts(ranks_);
        for (const RowList& list : requested_.lists) bytes[list.rank] += (1 + list.count) * ID_BYTES;
        for (int rank = 0; has_grads && rank < ranks_; ++rank) {
            if (!is_partner(rank)) continue;
            grad_starts[rank] = dense_.stats_size * long(sizeof(double)) + piece_bytes(rank);
            bytes[rank] += grad_starts[rank] + padded_bytes(numbers[rank]) + ID_BYTES +
                           numbers[rank] * long(sizeof(Excess));
        }
        reserve(bytes, out);
        for (int rank = 0; rank < ranks_; ++rank) {
            out.sizes[rank] = 0;
            if (!has_grads || !is_partner(rank)) continue;
            append(dense_.stats + dense_.stats_start, dense_.stats_size, rank, out);
            append(dense_.grads + dense_.pieces[rank], dense_.pieces[rank + 1] - dense_.pieces[rank], rank, out);
            out.sizes[rank] += padded_bytes(numbers[rank]);
            if (numbers[rank] % 2) std::memset(out.addresses[rank] + out.sizes[rank] - HALF_BYTES, 0, HALF_BYTES);
        }
        in_parallel(summed_.lists, [&](const RowList& list, long first, long count, std::vector<Excess>& excesses) {
            int16_t* const begin = reinterpret_cast<int16_t*>(out.addresses[list.rank] + grad_starts[list.rank]);
            int16_t* next = begin + list.place + first * list.columns();
            list.embedding->for_each_remote_sum(list.rows + first, count, [&](const int32_t* sums, auto columns) {
                uint32_t any = 0;
                for (long n = 0; n < columns; ++n) {
                    next[n] = int16_t(sums[n]);
                    any |= excess_of(sums[n]);
                }
                for (long n = 0; any && n < columns; ++n)
                    if (const uint32_t term = excess_of(sums[n])) excesses.push_back({uint32_t(next + n - begin), term});
                next += columns;
            });
        });
        std::vector<uint32_t> num_excesses(ranks_);
        for (size_t i = 0; i < pieces_.size(); ++i)
            num_excesses[pieces_[i].list->rank] += uint32_t(excesses_[i].size());
        for (int rank = 0; has_grads && rank < ranks_; ++rank)
            if (is_partner(rank)) append(&num_excesses[rank], 1, rank, out);
        for (size_t i = 0; i < pieces_.size(); ++i)
            append(excesses_[i].data(), excesses_[i].size(), pieces_[i].list->rank, out);
        for (const RowList& list : requested_.lists) {
            const uint32_t count = uint32_t(list.count);
            append(&count, 1, list.rank, out);
        }
        for (const RowList& list : requested_.lists) append(list.rows, list.count, list.rank, out);
    }

    // Reads messages of the first kind: stores the statistics, adds the dense gradients to this process's piece, sums
    // the gradients of the rows that this process owns, and stores the requests. Returns -1, or the rank that sent a
    // wrong message.
    int read_grads(bool has_grads, bool has_request, Received in) {
        std::swap(received_, owed_);
        owed_.lists.clear();
        if (!has_grads) received_.lists.clear();
        const std::vector<int64_t> starts = find_starts(in), numbers = count_numbers(received_.lists);
        std::vector<const char*> terms(ranks_);
        std::vector<const int16_t*> sums(ranks_);
        std::vector<std::vector<Excess>> excesses(ranks_);
        for (int rank = 0; rank < ranks_; ++rank) {
            const char* next = in.data + starts[rank];
            const char* const end = next + in.sizes[rank];
            if (has_grads && is_partner(rank)) {
                terms[rank] = next + dense_.stats_sizes[rank] * long(sizeof(double));
                const char* const rows = terms[rank] + dense_.own_piece[rank] * long(sizeof(int32_t));
                next = rows + padded_bytes(numbers[rank]);
                uint32_t count;
                if (end - next < ID_BYTES) return rank;
                std::memcpy(&count, next, sizeof count);
                next += ID_BYTES;
                if ((end - next) / long(sizeof(Excess)) < long(count)) return rank;
                sums[rank] = reinterpret_cast<const int16_t*>(rows);
                excesses[rank].resize(count);
                std::memcpy(excesses[rank].data(), next, count * sizeof(Excess));
                next += count * sizeof(Excess);
                for (const Excess& each : excesses[rank])
                    if (each.place >= numbers[rank]) return rank;
            }
            if (has_request && std::count(requesters_.begin(), requesters_.end(), rank)) {
                const uint32_t* count = reinterpret_cast<const uint32_t*>(next);
                long left = (end - next) / ID_BYTES - long(embeddings_.size()), place = 0;
                if (left < 0) return rank;
                const uint32_t* rows = count + embeddings_.size();
                for (ShardedEmbedding* embedding : embeddings_) {
                    if ((left -= *count) < 0 || !embedding->owns(rows, *count)) return rank;
                    owed_.lists.push_back({rank, embedding, rows, long(*count), place, nullptr});
                    place += owed_.lists.back().numbers();
                    rows += *count++;
                }
                next = reinterpret_cast<const char*>(rows);
            }
            if (next != end) return rank;
        }
        copy_rows(owed_);
        if (!has_grads) return -1;
        for (int rank = 0; rank < ranks_; ++rank) {
            if (!is_partner(rank)) continue;
            std::memcpy(dense_.stats + dense_.stats_starts[rank], in.data + starts[rank],
                        dense_.stats_sizes[rank] * sizeof(double));
            const int32_t* const added = reinterpret_cast<const int32_t*>(terms[rank]);
            const long count = dense_.own_piece[rank];
#pragma omp parallel for num_threads(threads_) if (count > FEW)
            for (long k = 0; k < count; ++k) wrapping_add(own_piece()[k], added[k]);
        }
        for (ShardedEmbedding* embedding : embeddings_) {
            std::vector<ReceivedGrads> lists;
            for (const RowList& list : received_.lists)
                if (list.embedding == embedding) lists.push_back({list.rows, list.count, sums[list.rank] + list.place});
            embedding->accumulate(lists);
        }
        for (const RowList& list : received_.lists)
            for (const Excess& each : excesses[list.rank]) {
                const long place = long(each.place) - list.place;
                if (place < 0 || place >= list.numbers()) continue;
                const long row = place / list.columns();
                list.embedding->add_to_sum(list.rows[row], place % list.columns(), int32_t(each.term));
            }
        return -1;
    }

    // Packs the messages of the second kind. has_sums, has_values: whether the messages contain each part.
    void pack_rows(bool has_sums, bool has_values, Messages out) {
        const std::vector<int64_t> numbers = count_numbers(owed_.lists);
        std::vector<int64_t> bytes(ranks_), starts(ranks_);
        for (int rank = 0; rank < ranks_; ++rank) {
            starts[rank] = has_sums ? dense_.own_piece[rank] * long(sizeof(int32_t)) : 0;
            bytes[rank] = starts[rank] + (has_values ? numbers[rank] * HALF_BYTES : 0);
        }
        reserve(bytes, out);
        for (int rank = 0; rank < ranks_; ++rank) std::memcpy(out.addresses[rank], own_piece(), starts[rank]);
        if (!has_values) return;
        in_parallel(owed_.lists, [&](const RowList& list, long first, long count, std::vector<Excess>&) {
            float16* const values = reinterpret_cast<float16*>(out.addresses[list.rank] + starts[list.rank]) + list.place;
            list.embedding->read_local(list.rows + first, count, values + first * list.columns());
        });
    }

    // Reads messages of the second kind: stores the other pieces of this process's slice, and the values of the
    // requested rows. Returns -1, or the rank that sent a wrong message.
    int read_rows(bool has_sums, bool has_values, Received in) {
        const std::vector<int64_t> starts = find_starts(in), numbers = count_numbers(requested_.lists);
        std::vector<int64_t> sums_bytes(ranks_);
        for (int rank = 0; rank < ranks_; ++rank) {
            sums_bytes[rank] = has_sums && is_partner(rank) ? piece_bytes(rank) : 0;
            if (in.sizes[rank] != sums_bytes[rank] + (has_values ? numbers[rank] * HALF_BYTES : 0)) return rank;
        }
        for (int rank = 0; rank < ranks_; ++rank)
            std::memcpy(dense_.grads + dense_.pieces[rank], in.data + starts[rank], sums_bytes[rank]);
        if (!has_values) return -1;
        in_parallel(requested_.lists, [&](const RowList& list, long first, long count, std::vector<Excess>&) {
            const long columns = list.columns(), done = first * columns;
            const char* const values = in.data + starts[list.rank] + sums_bytes[list.rank];
            std::memcpy(list.values + done, values + (list.place + done) * HALF_BYTES, count * columns * HALF_BYTES);
        });
        return -1;
    }

  private:
    static constexpr long ID_BYTES = sizeof(uint32_t), HALF_BYTES = sizeof(float16);
    static constexpr long PIECE = 256;     // Rows that a thread handles at a time.
    static constexpr long FEW = 1 << 16;   // Number of additions below which waking other threads takes longer.

    // A list of rows in a message of another rank, or to it. The values and the gradients of all lists of a message are
    // adjacent.
    struct RowList {
        int rank;
        ShardedEmbedding* embedding;
        const uint32_t* rows;
        long count;
        long place;       // Place of the list's first number among the numbers of the message.
        float16* values;  // Memory for the values of the rows. Null if this process owns the rows.

        long columns() const { return embedding->shape().columns; }
        long numbers() const { return count * columns(); }
    };

    struct Piece {
        const RowList* list;
        long first, count;
    };

    // A gradient is int16_t(gradient) + term, modulo 2^32.
    struct Excess {
        uint32_t place;  // Place of the gradient among the numbers of the message.
        uint32_t term;
    };

    // Lists of rows, and the memory of their row ids.
    struct RowLists {
        std::vector<RowList> lists;
        std::vector<uint32_t> rows;
    };

    const std::vector<ShardedEmbedding*> embeddings_;
    const DenseExchange dense_;
    const int ranks_, threads_;
    const std::vector<int> owners_, requesters_;
    std::vector<int> remote_shards_;  // The shards of other hosts whose rows this process requests.
    std::vector<int64_t> bounds_;     // Scratch: see ShardedEmbedding::collect_remote_rows.
    RowLists requested_, owed_;   // Rows that this process has requested, and rows that were requested from it.
    RowLists summed_, received_;  // The same for the batch before, whose gradients are sent and received.
    std::vector<Piece> pieces_;
    std::vector<std::vector<Excess>> excesses_;  // For each piece.
    std::unique_ptr<char[]> buffer_;             // Messages. Most of the space for Excess is never touched.
    int64_t buffer_bytes_ = 0;

    static uint32_t excess_of(int32_t gradient) { return uint32_t(gradient) - uint32_t(int32_t(int16_t(gradient))); }

    static long padded_bytes(long halves) { return (halves + 1) / 2 * 4; }

    bool is_partner(int rank) const { return dense_.stats_sizes[rank] > 0; }

    // Returns the size of the piece of the dense gradients that a rank sums, in bytes.
    int64_t piece_bytes(int rank) const {
        return (dense_.pieces[rank + 1] - dense_.pieces[rank]) * int64_t(sizeof(int32_t));
    }

    int32_t* own_piece() const { return dense_.grads + dense_.own_piece_start; }

    // Lists the remote rows of the next batch that this process requests.
    void list_requests() {
        std::vector<int64_t> numbers(ranks_);
        for (ShardedEmbedding* embedding : embeddings_) {
            SparseRows<float16>& remote = embedding->collect_remote_rows(remote_shards_, bounds_.data());
            const long columns = embedding->shape().columns;
            for (int shard : remote_shards_) {
                const long first = bounds_[shard], count = bounds_[shard + 1] - first;
                const int owner = owners_[shard];
                requested_.lists.push_back(
                    {owner, embedding, remote.row_ids + first, count, numbers[owner], remote.values + first * columns});
                numbers[owner] += count * columns;
            }
        }
        copy_rows(requested_);
    }

    // Copies the row ids of the lists to own memory. They are needed with the gradients, when their memory has already
    // been used again for the next batch.
    static void copy_rows(RowLists& all) {
        long total = 0;
        for (const RowList& list : all.lists) total += list.count;
        all.rows.resize(total);
        uint32_t* next = all.rows.data();
        for (RowList& list : all.lists) {
            std::copy_n(list.rows, list.count, next);
            list.rows = next;
            next += list.count;
        }
    }

    // Appends numbers to the message to a rank. `reserve` has provided the memory.
    template <class Number> static void append(const Number* numbers, int64_t count, int rank, Messages out) {
        std::memcpy(out.addresses[rank] + out.sizes[rank], numbers, count * sizeof(Number));
        out.sizes[rank] += count * int64_t(sizeof(Number));
    }

    // Returns the start of each message, and the end of the last message.
    std::vector<int64_t> find_starts(Received in) const {
        std::vector<int64_t> starts(ranks_ + 1);
        std::partial_sum(in.sizes, in.sizes + ranks_, starts.begin() + 1);
        return starts;
    }

    // Returns how many values or gradients the message of each rank contains.
    std::vector<int64_t> count_numbers(const std::vector<RowList>& lists) const {
        std::vector<int64_t> numbers(ranks_);
        for (const RowList& list : lists) numbers[list.rank] += list.numbers();
        return numbers;
    }

    // Provides memory for messages of these sizes.
    void reserve(const std::vector<int64_t>& bytes, Messages out) {
        const auto whole_lines = [](int64_t size) { return (size + 63) / 64 * 64; };
        int64_t total = 1;  // The addresses are never null.
        for (int64_t size : bytes) total += whole_lines(size);
        if (total > buffer_bytes_) {
            buffer_.reset();
            buffer_.reset(new char[total]);
            buffer_bytes_ = total;
        }
        char* next = buffer_.get();
        for (int rank = 0; rank < ranks_; next += whole_lines(bytes[rank++])) {
            out.addresses[rank] = next;
            out.sizes[rank] = bytes[rank];
        }
    }

    // Calls work(list, first, count, excesses) for pieces of the lists, in parallel.
    template <class Work> void in_parallel(const std::vector<RowList>& lists, Work work) {
        pieces_.clear();
        for (const RowList& list : lists)
            for (long first = 0; first < list.count; first += PIECE)
                pieces_.push_back({&list, first, std::min(PIECE, list.count - first)});
        if (excesses_.size() < pieces_.size()) excesses_.resize(pieces_.size());
#pragma omp parallel for num_threads(threads_)
        for (size_t i = 0; i < pieces_.size(); ++i) {
            excesses_[i].clear();
            work(*pieces_[i].list, pieces_[i].first, pieces_[i].count, excesses_[i]);
        }
    }
};
