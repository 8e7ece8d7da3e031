// Thread pool behind OpenMP's pragmas: the functions that GCC calls for them (manual of libgomp, "The libgomp ABI").
//
// These functions replace libgomp. Many systems without a compiler do not have libgomp, and a copy of libgomp in the
// wheel would need a C library as new as the C library of the build machine. This file supports only the pragmas that
// the kernels use: loops that count up, no `nowait`, and one thread for a nested region.

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr size_t LINE = 64;  // Bytes of a cache line. Variables of different threads are in different lines.

// Returns how often a thread polls before it sleeps. A thread polls for some tenths of a millisecond, because the
// next region usually begins soon. If it polled as long as a thread of libgomp, a step beside two other busy processes
// would take 69 ms instead of 15 ms. A thread does not poll if there are more threads than cores, or if OMP_WAIT_POLICY
// is passive.
int max_polls(int threads) {
    static const int cores = [] {
        cpu_set_t allowed;
        const char* const policy = std::getenv("OMP_WAIT_POLICY");
        if (policy && strcasecmp(policy, "passive") == 0) return 0;
        return sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 0;
    }();
    return threads <= cores ? 20'000 : 0;
}

// Tells the core that this is a polling loop, which saves power and lets the other hyper-thread run (Intel's PAUSE).
void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Counter that one thread increments while other threads wait for a new value. A waiting thread polls first, and then
// sleeps in a futex (futex(2)).
class alignas(LINE) Signal {
  public:
    int32_t count() const { return count_.load(); }

    // Increments the counter, and wakes sleeping threads. `count_` is incremented before `sleeping_` is read, and
    // `wait` does the opposite. Both orders are sequentially consistent, so no wake-up is lost.
    void raise() {
        count_.fetch_add(1);
        if (sleeping_.load()) syscall(SYS_futex, &count_, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
    }

    // Waits until the counter is not `last`. max_polls: polls before the thread sleeps.
    void wait(int32_t last, int max_polls) {
        for (int i = 0; i < max_polls; ++i, pause())
            if (count_.load(std::memory_order_acquire) != last) return;
        sleeping_.fetch_add(1);
        while (count_.load() == last) syscall(SYS_futex, &count_, FUTEX_WAIT_PRIVATE, last, nullptr, nullptr, 0);
        sleeping_.fetch_sub(1);
    }

  private:
    std::atomic<int32_t> count_{0};
    std::atomic<int32_t> sleeping_{0};
};

class Team;

// State of a thread in a parallel region.
struct Member {
    Team* team;
    int number;
    uint64_t start, step, iterations, chunk;  // Its current loop with schedule(dynamic).
};
thread_local Member* member = nullptr;

// A thread that opens parallel regions, and its worker threads.
class Team {
  public:
    Team() = default;
    Team(const Team&) = delete;

    ~Team() {
        work_ = nullptr;
        for (auto& worker : workers_) worker->start.raise();
        for (auto& worker : workers_) worker->thread.join();
    }

    int size() const { return size_; }

    // Runs work(data) in `size` threads. The calling thread is one of them. If the system refuses new threads, fewer
    // threads run.
    void run(void (*work)(void*), void* data, int size) {
        try {
            while (int(workers_.size()) + 1 < size) start_worker();
        } catch (const std::system_error&) {
            size = int(workers_.size()) + 1;
        }
        work_ = work;
        data_ = data;
        size_ = size;
        for (int i = 0; i + 1 < size; ++i) workers_[i]->start.raise();
        run_member(0);
        barrier();
    }

    // Waits until all members of the team have called this function.
    void barrier() {
        const int32_t round = passed_.count();
        if (!arrive()) passed_.wait(round, max_polls(size_));
    }

    // Returns true for exactly one of the members that call this function between two barriers.
    bool is_first() { return !entered_.exchange(true); }

    // Assigns the next iterations of a dynamic loop to the caller, and returns the first of them.
    uint64_t take(uint64_t iterations) { return taken_.fetch_add(iterations); }

  private:
    struct Worker {
        Signal start;
        std::thread thread;
    };

    void start_worker() {
        auto worker = std::make_unique<Worker>();
        workers_.reserve(workers_.size() + 1);
        worker->thread = std::thread(&Team::run_worker, this, worker.get(), int(workers_.size()) + 1);
        workers_.push_back(std::move(worker));
    }

    // Loop of a worker thread: it waits for a region, runs it, and arrives at the barrier at the end of the region. It
    // does not wait there, because it waits for the next region anyway.
    void run_worker(Worker* worker, int number) {
        for (int32_t regions = 0;; ++regions) {
            worker->start.wait(regions, max_polls(number + 1));
            if (!work_) return;
            run_member(number);
            arrive();
        }
    }

    // Runs the region in the calling thread, as member `number` of the team.
    void run_member(int number) {
        Member self{this, number, 0, 0, 0, 0};
        Member* const outer = std::exchange(member, &self);
        work_(data_);
        member = outer;
    }

    // Arrives at the barrier, and returns true for the last member. The last member resets the team's counters before
    // it releases the others. After the release, the next region may change all members of this object.
    bool arrive() {
        const int size = size_;
        if (arrived_.fetch_add(1) + 1 < size) return false;
        arrived_.store(0);
        entered_.store(false);
        taken_.store(0);
        passed_.raise();
        return true;
    }

    void (*work_)(void*) = nullptr;
    void* data_ = nullptr;
    int size_ = 1;
    std::vector<std::unique_ptr<Worker>> workers_;
    Signal passed_;
    alignas(LINE) std::atomic<int> arrived_{0};
    alignas(LINE) std::atomic<bool> entered_{false};
    alignas(LINE) std::atomic<uint64_t> taken_{0};
};

// The team of the calling thread. Each thread that calls the kernels has its own team.
thread_local std::unique_ptr<Team> own;

// After a fork, the child process does not have its parent's threads, so it abandons its copy of the thread team: the
// destructor would try to join these threads.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { own.release(); });

template <class T> bool next(T* first, T* last) {
    const uint64_t at = member->team->take(member->chunk);
    if (at >= member->iterations) return false;
    *first = T(member->start + at * member->step);
    *last = T(member->start + std::min(at + member->chunk, member->iterations) * member->step);
    return true;
}

template <class T> bool begin(T start, T end, T step, T chunk, T* first, T* last) {
    if (step <= 0) std::abort();
    member->start = uint64_t(start);
    member->step = uint64_t(step);
    member->iterations = start < end ? (uint64_t(end) - uint64_t(start) + uint64_t(step) - 1) / uint64_t(step) : 0;
    member->chunk = uint64_t(chunk);
    return next(first, last);
}

using Unsigned = unsigned long long;

}  // namespace

// The functions are hidden, because another library of the process may load libgomp.
#pragma GCC visibility push(hidden)
extern "C" {

void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned) {
    if (member) {
        Team().run(work, data, 1);
        return;
    }
    if (!own) own = std::make_unique<Team>();
    own->run(work, data, std::max(1, int(threads)));
}

void GOMP_barrier() { member->team->barrier(); }

bool GOMP_single_start() { return member->team->is_first(); }

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long chunk, long* first, long* last) {
    return begin(start, end, step, chunk, first, last);
}

bool GOMP_loop_nonmonotonic_dynamic_next(long* first, long* last) { return next(first, last); }

bool GOMP_loop_ull_nonmonotonic_dynamic_start(
    bool up, Unsigned start, Unsigned end, Unsigned step, Unsigned chunk, Unsigned* first, Unsigned* last
) {
    if (!up) std::abort();
    return begin(start, end, step, chunk, first, last);
}

bool GOMP_loop_ull_nonmonotonic_dynamic_next(Unsigned* first, Unsigned* last) { return next(first, last); }

void GOMP_loop_end() { GOMP_barrier(); }

void GOMP_loop_end_nowait() {}  // The end of the region follows, which has a barrier.

int omp_get_thread_num() { return member ? member->number : 0; }

int omp_get_num_threads() { return member ? member->team->size() : 1; }

}  // extern "C"
#pragma GCC visibility pop
