// Cache of the n-gram buckets of documents. Finding the buckets takes a third of a training step. The cache avoids the
// search in all epochs after the first.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "constants.hpp"

// Buckets of a document, an ascending list for each group. See NUM_BUCKET_GROUPS in constants.py.
using BucketGroups = std::array<std::vector<uint32_t>, NUM_BUCKET_GROUPS>;

// Lock-free hash table from the character ids of a document to its buckets. Several threads may call `get` and `put`
// concurrently.
//
// The lists are stored as 16-bit differences. New documents are ignored after the memory limit has been reached.
class BucketCache {
  public:
    explicit BucketCache(size_t bytes) : left_(long(bytes)), slots_(bytes ? SLOTS : 0) {}
    ~BucketCache() { clear(0); }
    BucketCache(const BucketCache&) = delete;

    // Fills the lists of a document. Returns false if the cache does not contain the document.
    bool get(const uint8_t* codes, long length, BucketGroups& out) const {
        if (slots_.empty()) return false;
        const uint64_t key = hash(codes, length);
        for (long i = 0; i < PROBES; ++i) {
            // The acquire load pairs with the exchange in `put`: this thread sees the complete document.
            const Document* document = slots_[(key + i) % SLOTS].load(std::memory_order_acquire);
            if (!document) return false;
            if (document->key != key || document->codes.size() != size_t(length)) continue;
            if (!std::equal(codes, codes + length, document->codes.begin())) continue;
            const uint16_t* next = document->differences.data();
            for (int group = 0; group < NUM_BUCKET_GROUPS; ++group) {
                out[group].resize(document->counts[group]);
                uint32_t bucket = 0;
                for (uint32_t& value : out[group]) {
                    for (; *next == FAR; ++next) bucket += FAR;
                    value = bucket += *next++;
                }
            }
            return true;
        }
        return false;
    }

    // Adds a document, unless the memory limit or the probed slots are exhausted.
    void put(const uint8_t* codes, long length, const BucketGroups& groups) {
        if (left_.load(std::memory_order_relaxed) <= 0) return;
        auto document = std::make_unique<Document>();
        document->key = hash(codes, length);
        document->codes.assign(codes, codes + length);
        for (int group = 0; group < NUM_BUCKET_GROUPS; ++group) {
            document->counts[group] = uint32_t(groups[group].size());
            uint32_t last = 0;
            for (const uint32_t bucket : groups[group]) {
                uint32_t difference = bucket - last;
                for (; difference >= FAR; difference -= FAR) document->differences.push_back(FAR);
                document->differences.push_back(uint16_t(difference));
                last = bucket;
            }
        }
        document->differences.shrink_to_fit();
        const long size =
            long(sizeof(Document) + document->codes.size() + document->differences.size() * sizeof(uint16_t));
        for (long i = 0; i < PROBES; ++i) {
            Document* none = nullptr;
            if (slots_[(document->key + i) % SLOTS].compare_exchange_strong(none, document.get())) {
                document.release();
                left_ -= size;
                return;
            }
        }
    }

    // Removes all documents, and sets the memory limit. No other thread may use the cache during the call.
    void clear(size_t bytes) {
        for (auto& slot : slots_) delete slot.exchange(nullptr);
        left_ = long(bytes);
    }

  private:
    static constexpr size_t SLOTS = 1 << 20;
    static constexpr long PROBES = 16;      // Maximum number of slots that a look-up examines.
    static constexpr uint16_t FAR = 65535;  // An element with this value adds 65535 to the next difference.

    struct Document {
        uint64_t key;
        std::array<uint32_t, NUM_BUCKET_GROUPS> counts;
        std::vector<uint8_t> codes;
        std::vector<uint16_t> differences;
    };

    std::atomic<long> left_;  // Remaining memory, in bytes. Concurrent calls of `put` may make it negative.
    std::vector<std::atomic<Document*>> slots_;

    static uint64_t hash(const uint8_t* codes, long length) {
        uint64_t key = uint64_t(length);
        for (long i = 0; i < length; i += 8) {
            uint64_t word = 0;
            std::memcpy(&word, codes + i, size_t(std::min(8L, length - i)));
            key = (key ^ word) * GOLDEN;
            key ^= key >> 29;
        }
        return key;
    }
};
