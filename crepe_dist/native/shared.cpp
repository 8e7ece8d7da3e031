// All-reduce of arrays in memory shared by the processes of one host, called through ctypes; see
// exchange/shared_memory.py.

#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>

namespace {

// Barrier in shared memory that is initially zero.
struct Barrier {
    std::atomic<int32_t> arrived;
    std::atomic<int32_t> round;
};
static_assert(std::atomic<int32_t>::is_always_lock_free, "an atomic with a lock does not work across processes");

// Tests the bits of the exponent, which no compiler flag for fast arithmetic can optimise away.
bool finite(const float* values, int64_t count) {
    constexpr uint32_t EXPONENT = 0x7f800000;
    uint32_t bad = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, values + i, sizeof bits);
        bad |= (bits & EXPONENT) == EXPONENT;
    }
    return bad == 0;
}

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

// Sums the elements from start to end over all arrays, in their order, and writes the sums into one of them, or into all
// if `into` is negative. Calls look(sums, count, start) for each chunk before its sums are written.
template <class Number, class Look>
void add_up(Number* const* arrays, int processes, int into, int64_t start, int64_t end, Look look) {
    constexpr int64_t CHUNK = 4096;  // elements whose sums fit in the L1 cache
    Number sums[CHUNK];
    for (; start < end; start += CHUNK) {
        const int64_t some = std::min(CHUNK, end - start);
        std::copy_n(arrays[0] + start, some, sums);
        for (int i = 1; i < processes; ++i)
            for (int64_t k = 0; k < some; ++k) sums[k] += arrays[i][start + k];
        look(sums, some, start);
        for (int i = 0; i < processes; ++i)
            if (into < 0 || into == i) std::copy_n(sums, some, arrays[i] + start);
    }
}

// Sums as `add_up`. Returns a bit mask of the processes with an infinity or NaN; all bits if only the sum overflowed.
extern "C" uint64_t crepe_add(float* const* arrays, int processes, int into, int64_t start, int64_t end) {
    uint64_t bad = 0;
    add_up(arrays, processes, into, start, end, [&](const float* sums, int64_t some, int64_t here) {
        if (finite(sums, some)) return;  // a non-finite element makes its sum non-finite
        uint64_t culprits = 0;
        for (int i = 0; i < processes; ++i)
            if (!finite(arrays[i] + here, some)) culprits |= uint64_t{1} << (i % 64);
        bad |= culprits ? culprits : ~uint64_t{0};
    });
    return bad;
}

// Sums whole numbers as `add_up`. Sums that overflow wrap around.
extern "C" void crepe_add_whole(uint32_t* const* arrays, int processes, int into, int64_t start, int64_t end) {
    add_up(arrays, processes, into, start, end, [](const uint32_t*, int64_t, int64_t) {});
}
