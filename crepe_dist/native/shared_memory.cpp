// Sums of whole numbers in memory shared by the processes of one host, and messages of them to other hosts, called through
// ctypes; see parallel/shared_memory_optimizer.py and parallel/inter_host.py.

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

namespace {

// Barrier in shared memory that is initially zero.
struct Barrier {
    std::atomic<int32_t> arrived;
    std::atomic<int32_t> round;
};
static_assert(std::atomic<int32_t>::is_always_lock_free, "an atomic with a lock does not work across processes");

// In a message a whole number has 16 bits. LARGE stands for one that does not fit, which follows behind all, in 32 bits.
constexpr int16_t LARGE = INT16_MIN;
constexpr uint32_t MOST = 2 * INT16_MAX;  // the largest sum of INT16_MAX and a number that fits
constexpr int64_t BLOCK = 32;  // numbers of which mostly all fit

// The number of 32-bit words of `count` numbers of 16 bits.
int64_t words_of(int64_t count) { return (count + 1) / 2; }

}  // namespace

// Enters the barrier; returns the round to wait for with crepe_passed.
extern "C" int crepe_arrive(void* memory, int processes) {
    Barrier* const barrier = static_cast<Barrier*>(memory);
    const int32_t round = barrier->round.load();
    if (barrier->arrived.fetch_add(1) + 1 == processes) {
        barrier->arrived.store(0);
        barrier->round.fetch_add(1);
    }
    return round;
}

// Waits until all processes have entered the barrier; returns 0 after `seconds`.
extern "C" int crepe_passed(void* memory, int round, double seconds) {
    using Clock = std::chrono::steady_clock;
    constexpr double SPIN = 0.002;  // seconds of spinning, for low latency, before sleeping
    const Barrier* const barrier = static_cast<Barrier*>(memory);
    const auto start = Clock::now();
    while (barrier->round.load() == round) {
        const double waited = std::chrono::duration<double>(Clock::now() - start).count();
        if (waited > seconds) return 0;
        if (waited < SPIN) {
            sched_yield();  // processes may share a core
        } else {
            const timespec pause{0, 50'000};
            nanosleep(&pause, nullptr);
        }
    }
    return 1;
}

// Sums whole numbers from start to end over all arrays, and writes the sums into one of them, or into all if `into` is
// negative. Sums that overflow wrap around.
extern "C" void crepe_add_whole(uint32_t* const* arrays, int processes, int into, int64_t start, int64_t end) {
    if (processes == 1) return;
    constexpr int64_t CHUNK = 4096;  // elements whose sums fit in the L1 cache
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

// Writes whole numbers in 16 bits, and returns the number of 32-bit words. Up to count / 2 + 1 + count words are written.
extern "C" int64_t crepe_shorten(const int32_t* __restrict numbers, int64_t count, int16_t* __restrict out) {
    int32_t *const words = reinterpret_cast<int32_t*>(out), *large = words + words_of(count);
    if (count) large[-1] = 0;  // also the half that nothing is written to
    for (int64_t start = 0; start < count; start += BLOCK) {
        const int64_t end = std::min(count, start + BLOCK);
        uint32_t largest = 0;
        for (int64_t i = start; i < end; ++i) {
            out[i] = int16_t(numbers[i]);
            largest = std::max(largest, uint32_t(numbers[i]) + INT16_MAX);
        }
        for (int64_t i = largest > MOST ? start : end; i < end; ++i) {
            const bool is_large = uint32_t(numbers[i]) + INT16_MAX > MOST;
            out[i] = is_large ? LARGE : out[i];
            *large = numbers[i];
            large += is_large;
        }
    }
    return large - words;
}

// Reads the result of crepe_shorten, of so many words; returns 1 if there are not `count` numbers in it.
extern "C" int crepe_widen(const int16_t* __restrict message, int64_t words, int64_t count, int32_t* __restrict numbers) {
    const int32_t *const begin = reinterpret_cast<const int32_t*>(message), *large = begin + words_of(count);
    if (words < words_of(count)) return 1;
    for (int64_t start = 0; start < count; start += BLOCK) {
        const int64_t end = std::min(count, start + BLOCK);
        int16_t smallest = 0;
        for (int64_t i = start; i < end; ++i) {
            numbers[i] = message[i];
            smallest = std::min(smallest, message[i]);
        }
        for (int64_t i = smallest == LARGE ? start : end; i < end; ++i) {
            if (message[i] != LARGE) continue;
            if (large == begin + words) return 1;
            numbers[i] = *large++;
        }
    }
    return large != begin + words;
}
