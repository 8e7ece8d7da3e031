// Remembers the buckets of documents from one epoch to the next, since finding them takes a third of a step.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "constants.hpp"

using Groups = std::array<std::vector<uint32_t>, GROUPS>;  // ascending lists of a document's buckets

// A document is recognised by its codes. Lists are kept as differences of 16 bits, until the memory is used up. Several
// threads may call `get` and `put` at once.
class BucketCache {
  public:
    explicit BucketCache(size_t bytes) : left_(long(bytes)), slots_(bytes ? SLOTS : 0) {}
    ~BucketCache() { clear(0); }
    BucketCache(const BucketCache&) = delete;

    // Fills the lists of a document; returns false if it is not known.
    bool get(const uint8_t* codes, long length, Groups& out) const {
        if (slots_.empty()) return false;
        const uint64_t key = hash(codes, length);
        for (long i = 0; i < PROBES; ++i) {
            const Document* document = slots_[(key + i) % SLOTS].load(std::memory_order_acquire);
            if (!document) return false;
            if (document->key != key || document->codes.size() != size_t(length)) continue;
            if (!std::equal(codes, codes + length, document->codes.begin())) continue;
            const uint16_t* next = document->differences.data();
            for (int group = 0; group < GROUPS; ++group) {
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

    void put(const uint8_t* codes, long length, const Groups& groups) {
        if (left_.load(std::memory_order_relaxed) <= 0) return;
        auto made = std::make_unique<Document>();
        made->key = hash(codes, length);
        made->codes.assign(codes, codes + length);
        for (int group = 0; group < GROUPS; ++group) {
            made->counts[group] = uint32_t(groups[group].size());
            uint32_t last = 0;
            for (const uint32_t bucket : groups[group]) {
                uint32_t difference = bucket - last;
                for (; difference >= FAR; difference -= FAR) made->differences.push_back(FAR);
                made->differences.push_back(uint16_t(difference));
                last = bucket;
            }
        }
        made->differences.shrink_to_fit();
        const long size = long(sizeof(Document) + made->codes.size() + made->differences.size() * sizeof(uint16_t));
        for (long i = 0; i < PROBES; ++i) {
            Document* none = nullptr;
            if (slots_[(made->key + i) % SLOTS].compare_exchange_strong(none, made.get())) {
                made.release();
                left_ -= size;
                return;
            }
        }
    }

    // Forgets everything; no other thread uses the cache meanwhile.
    void clear(size_t bytes) {
        for (auto& slot : slots_) delete slot.exchange(nullptr);
        left_ = long(bytes);
    }

  private:
    static constexpr size_t SLOTS = 1 << 20;
    static constexpr long PROBES = 16;
    static constexpr uint16_t FAR = 65535;  // stands for a difference that is larger, of which it is a part

    struct Document {
        uint64_t key;
        std::array<uint32_t, GROUPS> counts;
        std::vector<uint8_t> codes;
        std::vector<uint16_t> differences;
    };

    std::atomic<long> left_;  // bytes
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
