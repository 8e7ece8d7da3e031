// The functions that GCC calls for OpenMP's pragmas, as the manual of libgomp describes them under "The libgomp ABI".
// They replace libgomp: many systems without a compiler lack it, and a copy of it in the wheel would need a C library as
// new as that of the machine that builds the wheel. Only what the pragmas of these files need is here: loops that count
// up, no `nowait`, and one thread for a region inside another.

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

constexpr size_t LINE = 64;  // bytes of a cache line

// How often a thread looks before it sleeps: for some tenths of a millisecond, because the next region mostly comes soon.
// Longer, as with libgomp, and a step beside two other busy processes takes 69 instead of 15 ms. Not at all where the
// threads outnumber the cores, or where the environment asks for it.
int looks(int threads) {
    static const int cores = [] {
        cpu_set_t allowed;
        const char* const policy = std::getenv("OMP_WAIT_POLICY");
        if (policy && strcasecmp(policy, "passive") == 0) return 0;
        return sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 0;
    }();
    return threads <= cores ? 20'000 : 0;
}

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A count that one thread raises while others wait for it.
class alignas(LINE) Signal {
  public:
    int32_t count() const { return count_.load(); }

    void raise() {
        count_.fetch_add(1);
        if (sleeping_.load()) syscall(SYS_futex, &count_, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
    }

    // Waits until the count is no longer `last`.
    void wait(int32_t last, int looks) {
        for (int i = 0; i < looks; ++i, pause())
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

// What a thread is in the region that it runs.
struct Member {
    Team* team;
    int number;
    uint64_t start, step, iterations, chunk;  // of its loop with schedule(dynamic)
};
thread_local Member* member = nullptr;

// A thread and those that work for it.
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

    // Lets `size` threads, among them the calling one, do the work, or as many as the system lets this process have.
    void run(void (*work)(void*), void* data, int size) {
        try {
            while (int(workers_.size()) + 1 < size) hire();
        } catch (const std::system_error&) {
            size = int(workers_.size()) + 1;
        }
        work_ = work;
        data_ = data;
        size_ = size;
        for (int i = 0; i + 1 < size; ++i) workers_[i]->start.raise();
        be(0);
        meet();
    }

    // Waits for the other members.
    void meet() {
        const int32_t round = passed_.count();
        if (!arrive()) passed_.wait(round, looks(size_));
    }

    // Returns true for one of the members that call it between two meetings.
    bool is_first() { return !entered_.exchange(true); }

    // Returns the first of the next iterations.
    uint64_t take(uint64_t iterations) { return taken_.fetch_add(iterations); }

  private:
    struct Worker {
        Signal start;
        std::thread thread;
    };

    void hire() {
        auto worker = std::make_unique<Worker>();
        workers_.reserve(workers_.size() + 1);
        worker->thread = std::thread(&Team::serve, this, worker.get(), int(workers_.size()) + 1);
        workers_.push_back(std::move(worker));
    }

    void serve(Worker* worker, int number) {
        for (int32_t regions = 0;; ++regions) {
            worker->start.wait(regions, looks(number + 1));
            if (!work_) return;
            be(number);
            arrive();
        }
    }

    void be(int number) {
        Member self{this, number, 0, 0, 0, 0};
        Member* const before = std::exchange(member, &self);
        work_(data_);
        member = before;
    }

    // Returns true for the last member. All that follows may then be changed by the next region.
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

// Each thread that calls the kernels has a team of its own.
thread_local std::unique_ptr<Team> own;

// A child process has none of its parent's threads.
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

// Hidden: another library of the process may bring libgomp.
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

void GOMP_barrier() { member->team->meet(); }

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

void GOMP_loop_end_nowait() {}  // the end of the region follows

int omp_get_thread_num() { return member ? member->number : 0; }

int omp_get_num_threads() { return member ? member->team->size() : 1; }

}  // extern "C"
#pragma GCC visibility pop
