// Messages between the hosts in a training step: rows of sharded embeddings, and gradients.
//
// For each shard of another host, one process of this host sends a request to the owner of the shard, and receives a
// reply. Later, it sends the gradients of the requested rows to the owner. A step has three kinds of messages:
//
// 1. Request: for each embedding, the number of rows, uint32; then the row ids of all embeddings, uint32.
// 2. Reply: the values of the requested rows of all embeddings, float16.
// 3. Gradients: the receiver's piece of the dense gradients, int32; then the gradients of the requested rows, int16,
//    padded to a multiple of four bytes; then an Excess for each gradient that does not fit in 16 bits. Few do not fit.
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

class RowExchange {
  public:
    // owners: rank that owns each shard. requesters: ranks that request rows of this process's shard.
    RowExchange(std::vector<ShardedEmbedding*> embeddings, RowSharding sharding, int local_process, int ranks,
                const int* owners, std::vector<int> requesters, int threads)
        : embeddings_(std::move(embeddings)),
          ranks_(ranks),
          threads_(threads),
          owners_(owners, owners + sharding.num_shards),
          requesters_(std::move(requesters)),
          bounds_(sharding.num_shards + 1) {
        for (int shard = 0; shard < sharding.num_shards; ++shard)
            if (!sharding.is_local(shard) && sharding.local_process_for(shard) == local_process)
                remote_shards_.push_back(shard);
    }

    // Lists the remote rows that this process requests, and packs the requests.
    void pack_requests(Messages out) {
        requested_.clear();
        std::vector<int64_t> numbers(ranks_), bytes(ranks_);
        for (ShardedEmbedding* embedding : embeddings_) {
            SparseRows<float16>& remote = embedding->collect_remote_rows(remote_shards_, bounds_.data());
            const long columns = embedding->shape().columns;
            for (int shard : remote_shards_) {
                const long first = bounds_[shard], count = bounds_[shard + 1] - first;
                const int owner = owners_[shard];
                requested_.push_back(
                    {owner, embedding, remote.row_ids + first, count, numbers[owner], remote.values + first * columns});
                numbers[owner] += count * columns;
                bytes[owner] += (1 + count) * ID_BYTES;
            }
        }
        reserve(bytes, out);
        std::vector<uint32_t*> next(ranks_);
        for (int rank = 0; rank < ranks_; ++rank) next[rank] = reinterpret_cast<uint32_t*>(out.addresses[rank]);
        for (const RowList& list : requested_) *next[list.rank]++ = uint32_t(list.count);
        for (const RowList& list : requested_) next[list.rank] = std::copy_n(list.rows, list.count, next[list.rank]);
    }

    // Reads requests, and packs the replies. Returns -1, or the rank that sent a wrong message.
    int pack_replies(Received in, Messages out) {
        owed_.clear();
        const std::vector<int64_t> starts = find_starts(in);
        const uint32_t* const words = reinterpret_cast<const uint32_t*>(in.data);
        received_.assign(words, words + starts[ranks_] / ID_BYTES);
        std::vector<int64_t> bytes(ranks_);
        for (int rank = 0; rank < ranks_; ++rank) {
            const bool is_requester = std::count(requesters_.begin(), requesters_.end(), rank);
            const uint32_t* const counts = received_.data() + starts[rank] / ID_BYTES;
            const long num_counts = is_requester ? long(embeddings_.size()) : 0;
            long left = in.sizes[rank] / ID_BYTES - num_counts, place = 0;
            if (left < 0 || in.sizes[rank] % ID_BYTES) return rank;
            const uint32_t* rows = counts + num_counts;
            for (long i = 0; i < num_counts; rows += counts[i++]) {
                if ((left -= counts[i]) < 0 || !embeddings_[i]->owns(rows, counts[i])) return rank;
                owed_.push_back({rank, embeddings_[i], rows, long(counts[i]), place, nullptr});
                place += owed_.back().numbers();
            }
            if (left) return rank;
            bytes[rank] = place * HALF_BYTES;
        }
        reserve(bytes, out);
        in_parallel(owed_, [&](const RowList& list, long first, long count, std::vector<Excess>&) {
            float16* const values = reinterpret_cast<float16*>(out.addresses[list.rank]) + list.place;
            list.embedding->read_local(list.rows + first, count, values + first * list.columns());
        });
        return -1;
    }

    // Stores the values of the requested rows. Returns -1, or the rank that sent a wrong message.
    int store_replies(Received in) {
        const std::vector<int64_t> starts = find_starts(in), numbers = count_numbers(requested_);
        for (int rank = 0; rank < ranks_; ++rank)
            if (in.sizes[rank] != numbers[rank] * HALF_BYTES) return rank;
        in_parallel(requested_, [&](const RowList& list, long first, long count, std::vector<Excess>&) {
            const long columns = list.columns(), done = first * columns;
            std::memcpy(list.values + done, in.data + starts[list.rank] + (list.place + done) * HALF_BYTES,
                        count * columns * HALF_BYTES);
        });
        return -1;
    }

    // Packs gradients. dense, pieces [ranks + 1]: this process's slice of the dense gradients, and the place of each
    // rank's piece.
    void pack_grads(const int32_t* dense, const int64_t* pieces, Messages out) {
        const std::vector<int64_t> numbers = count_numbers(requested_);
        std::vector<int64_t> bytes(ranks_), dense_bytes(ranks_);
        for (int rank = 0; rank < ranks_; ++rank) {
            dense_bytes[rank] = (pieces[rank + 1] - pieces[rank]) * long(sizeof *dense);
            bytes[rank] = dense_bytes[rank] + padded_bytes(numbers[rank]) + numbers[rank] * long(sizeof(Excess));
        }
        reserve(bytes, out);
        for (int rank = 0; rank < ranks_; ++rank) {
            std::memcpy(out.addresses[rank], dense + pieces[rank], dense_bytes[rank]);
            out.sizes[rank] = dense_bytes[rank] + padded_bytes(numbers[rank]);
            if (numbers[rank] % 2) std::memset(out.addresses[rank] + out.sizes[rank] - HALF_BYTES, 0, HALF_BYTES);
        }
        in_parallel(requested_, [&](const RowList& list, long first, long count, std::vector<Excess>& excesses) {
            int16_t* const begin = reinterpret_cast<int16_t*>(out.addresses[list.rank] + dense_bytes[list.rank]);
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
        for (size_t i = 0; i < pieces_.size(); ++i) {
            int64_t& size = out.sizes[pieces_[i].list->rank];
            const long excess_bytes = long(excesses_[i].size() * sizeof(Excess));
            std::memcpy(out.addresses[pieces_[i].list->rank] + size, excesses_[i].data(), excess_bytes);
            size += excess_bytes;
        }
    }

    // Adds the dense gradients to this process's piece `dense`, and sums the gradients of the rows that this process
    // owns. counts [ranks]: number of dense gradients that each rank sends. Returns -1, or the rank that sent a wrong
    // message.
    int add_grads(Received in, const int64_t* counts, int32_t* dense) {
        const std::vector<int64_t> starts = find_starts(in), numbers = count_numbers(owed_);
        std::vector<const int16_t*> sums(ranks_);
        std::vector<std::vector<Excess>> excesses(ranks_);
        for (int rank = 0; rank < ranks_; ++rank) {
            const char *const message = in.data + starts[rank], *const end = message + in.sizes[rank];
            const char* const rows = message + counts[rank] * long(sizeof *dense);
            const char* const excess = rows + padded_bytes(numbers[rank]);
            if (excess > end || (end - excess) % long(sizeof(Excess))) return rank;
            sums[rank] = reinterpret_cast<const int16_t*>(rows);
            excesses[rank].resize((end - excess) / long(sizeof(Excess)));
            std::memcpy(excesses[rank].data(), excess, end - excess);
            for (const Excess& each : excesses[rank])
                if (each.place >= numbers[rank]) return rank;
        }
        for (int rank = 0; rank < ranks_; ++rank) {
            const int32_t* const terms = reinterpret_cast<const int32_t*>(in.data + starts[rank]);
#pragma omp parallel for num_threads(threads_) if (counts[rank] > FEW)
            for (long k = 0; k < counts[rank]; ++k) wrapping_add(dense[k], terms[k]);
        }
        for (ShardedEmbedding* embedding : embeddings_) {
            std::vector<ReceivedGrads> lists;
            for (const RowList& list : owed_)
                if (list.embedding == embedding) lists.push_back({list.rows, list.count, sums[list.rank] + list.place});
            embedding->accumulate(lists);
        }
        for (const RowList& list : owed_)
            for (const Excess& each : excesses[list.rank]) {
                const long place = long(each.place) - list.place;
                if (place < 0 || place >= list.numbers()) continue;
                const long row = place / list.columns();
                list.embedding->add_to_sum(list.rows[row], place % list.columns(), int32_t(each.term));
            }
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

    const std::vector<ShardedEmbedding*> embeddings_;
    const int ranks_, threads_;
    const std::vector<int> owners_, requesters_;
    std::vector<int> remote_shards_;  // The shards of other hosts whose rows this process requests.
    std::vector<int64_t> bounds_;     // Scratch: see ShardedEmbedding::collect_remote_rows.
    std::vector<RowList> requested_, owed_;  // Rows that this process requested, and rows that it owns.
    std::vector<uint32_t> received_;         // Copy of the received requests.
    std::vector<Piece> pieces_;
    std::vector<std::vector<Excess>> excesses_;  // For each piece.
    std::unique_ptr<char[]> buffer_;             // Messages. Most of the space for Excess is never touched.
    int64_t buffer_bytes_ = 0;

    static uint32_t excess_of(int32_t gradient) { return uint32_t(gradient) - uint32_t(int32_t(int16_t(gradient))); }

    static long padded_bytes(long halves) { return (halves + 1) / 2 * 4; }

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
