// Sums of whole numbers in memory shared by the processes of one host, called through ctypes; see
// exchange/shared_memory.py.

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
