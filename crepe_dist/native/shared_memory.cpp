// C functions for processes of one host that share memory: a barrier, sums of int32 numbers, and the compression of
// these sums for messages to other hosts.
//
// Python calls them through ctypes: crepe_dist/parallel/host_shared_memory.py, shared_memory_optimizer.py,
// inter_host.py.

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

namespace {

// Barrier in shared memory. The memory is zero before the first use. `round` counts how often all processes have
// arrived. The operations are sequentially consistent: writes to the shared memory before the barrier are visible after
// it.
struct Barrier {
    std::atomic<int32_t> arrived;
    std::atomic<int32_t> round;
};
static_assert(std::atomic<int32_t>::is_always_lock_free, "an atomic with a lock does not work across processes");

// A message contains each number in 16 bits. ESCAPE stands for a number that does not fit. These numbers follow
// the 16-bit numbers, in 32 bits. Most numbers fit.
constexpr int16_t ESCAPE = INT16_MIN;
constexpr uint32_t MAX_OFFSET_VALUE = 2 * INT16_MAX;  // Maximum of number + INT16_MAX for a number that fits.
constexpr int64_t CHECKED_AT_ONCE = 32;  // Numbers that one comparison tests. In most groups, all of them fit.

// Returns the number of 32-bit words that hold `count` numbers of 16 bits.
int64_t packed_words(int64_t count) { return (count + 1) / 2; }

}  // namespace

// Arrives at the barrier, and returns the round to pass to crepe_barrier_wait. The last process resets the counter
// before it increments the round, so that a process cannot arrive at the next barrier too early.
extern "C" int crepe_barrier_arrive(void* memory, int processes) {
    Barrier* const barrier = static_cast<Barrier*>(memory);
    const int32_t round = barrier->round.load();
    if (barrier->arrived.fetch_add(1) + 1 == processes) {
        barrier->arrived.store(0);
        barrier->round.fetch_add(1);
    }
    return round;
}

// Waits until all processes have arrived at the barrier. Returns 1, or 0 after `seconds` seconds.
extern "C" int crepe_barrier_wait(void* memory, int round, double seconds) {
    using Clock = std::chrono::steady_clock;
    constexpr double SPIN = 0.002;  // Seconds of spinning before the first sleep. Spinning has a lower latency.
    const Barrier* const barrier = static_cast<Barrier*>(memory);
    const auto start = Clock::now();
    while (barrier->round.load() == round) {
        const double waited = std::chrono::duration<double>(Clock::now() - start).count();
        if (waited > seconds) return 0;
        if (waited < SPIN) {
            sched_yield();  // Another process may need this core to arrive.
        } else {
            const timespec pause{0, 50'000};
            nanosleep(&pause, nullptr);
        }
    }
    return 1;
}

// Adds the elements [start, end) of all arrays, and writes the sums into the array number `into`, or into all arrays if
// `into` is negative. Sums that overflow wrap around.
extern "C" void crepe_sum_int32(uint32_t* const* arrays, int processes, int into, int64_t start, int64_t end) {
    if (processes == 1) return;
    constexpr int64_t CHUNK = 4096;  // Number of elements whose sums fit in the L1 cache.
    uint32_t sums[CHUNK];
    for (; start < end; start += CHUNK) {
        const int64_t count = std::min(CHUNK, end - start);
        std::copy_n(arrays[0] + start, count, sums);
        for (int i = 1; i < processes; ++i)
            for (int64_t k = 0; k < count; ++k) sums[k] += arrays[i][start + k];
        for (int i = 0; i < processes; ++i)
            if (into < 0 || into == i) std::copy_n(sums, count, arrays[i] + start);
    }
}

// Packs int32 numbers into a message of 16-bit numbers, and returns the number of 32-bit words of the message. It
// may also write after the end of the message, because the store has no branch. `out` therefore needs space for
// count / 2 + 1 + count words.
extern "C" int64_t crepe_pack_int16(const int32_t* __restrict values, int64_t count, int16_t* __restrict out) {
    int32_t *const words = reinterpret_cast<int32_t*>(out), *escaped = words + packed_words(count);
    if (count) escaped[-1] = 0;  // An odd count leaves the last half word unwritten.
    for (int64_t start = 0; start < count; start += CHECKED_AT_ONCE) {
        const int64_t end = std::min(count, start + CHECKED_AT_ONCE);
        uint32_t largest = 0;
        for (int64_t i = start; i < end; ++i) {
            out[i] = int16_t(values[i]);
            largest = std::max(largest, uint32_t(values[i]) + INT16_MAX);
        }
        for (int64_t i = largest > MAX_OFFSET_VALUE ? start : end; i < end; ++i) {
            const bool is_escaped = uint32_t(values[i]) + INT16_MAX > MAX_OFFSET_VALUE;
            out[i] = is_escaped ? ESCAPE : out[i];
            *escaped = values[i];
            escaped += is_escaped;
        }
    }
    return escaped - words;
}

// Unpacks a message of crepe_pack_int16 with `words` words. Returns 1 if the message does not contain `count` numbers,
// which means that it is damaged. Otherwise it returns 0.
extern "C" int crepe_unpack_int16(const int16_t* __restrict message, int64_t words, int64_t count,
                                  int32_t* __restrict values) {
    const int32_t *const begin = reinterpret_cast<const int32_t*>(message), *escaped = begin + packed_words(count);
    if (words < packed_words(count)) return 1;
    for (int64_t start = 0; start < count; start += CHECKED_AT_ONCE) {
        const int64_t end = std::min(count, start + CHECKED_AT_ONCE);
        int16_t smallest = 0;
        for (int64_t i = start; i < end; ++i) {
            values[i] = message[i];
            smallest = std::min(smallest, message[i]);
        }
        for (int64_t i = smallest == ESCAPE ? start : end; i < end; ++i) {
            if (message[i] != ESCAPE) continue;
            if (escaped == begin + words) return 1;
            values[i] = *escaped++;
        }
    }
    return escaped != begin + words;
}
