// Sum of arrays that lie in memory shared by the processes of one host. Called through ctypes; see
// cluster/shared_memory.py.

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

namespace {

// In shared memory, zero at first.
struct Barrier {
    std::atomic<int32_t> arrived;
    std::atomic<int32_t> round;
};
static_assert(std::atomic<int32_t>::is_always_lock_free, "an atomic with a lock does not work across processes");

bool wait(Barrier* barrier, int processes, double seconds) {
    const int32_t round = barrier->round.load();
    if (barrier->arrived.fetch_add(1) + 1 == processes) {
        barrier->arrived.store(0);
        barrier->round.fetch_add(1);
        return true;
    }
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (barrier->round.load() == round) {
        sched_yield();  // the processes may share a core
        if (std::chrono::steady_clock::now() > deadline) return false;
    }
    return true;
}

}  // namespace

// Every process calls it with the arrays of all in the same order; each adds up its share of the elements and writes
// the sums into all arrays. 0, or 1 if another process did not come within `seconds`.
extern "C" int crepe_sum(
    float* const* arrays, int processes, int mine, int64_t count, void* barrier, double seconds
) {
    constexpr int64_t CHUNK = 4096;  // elements whose sums stay in the first-level cache
    Barrier* const gate = static_cast<Barrier*>(barrier);
    if (!wait(gate, processes, seconds)) return 1;
    const int64_t end = count * (mine + 1) / processes;
    float sums[CHUNK];
    for (int64_t start = count * mine / processes; start < end; start += CHUNK) {
        const int64_t some = std::min(CHUNK, end - start);
        std::copy_n(arrays[0] + start, some, sums);
        for (int i = 1; i < processes; ++i)
            for (int64_t k = 0; k < some; ++k) sums[k] += arrays[i][start + k];
        for (int i = 0; i < processes; ++i) std::copy_n(sums, some, arrays[i] + start);
    }
    return wait(gate, processes, seconds) ? 0 : 1;
}
