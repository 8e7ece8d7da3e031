// C functions for processes of one host that share memory: a barrier, and sums of int32 numbers.
//
// Python calls them through ctypes: crepe_dist/parallel/host_shared_memory.py, shared_memory_optimizer.py.

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
