// CUDA C++ for g++: the threads of a block are fibers on one thread of the system, and blocks are shared out over cores.
// libnvrtc.cpp includes it before each program; libcuda.cpp calls `emulate`.
#pragma once
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define CUDA_EMULATED 1
#define __global__ __attribute__((visibility("default")))
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __constant__ static
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __grid_constant__
// Makes a kernel callable by its name, with the sizes of its parameters.
#define EXPORT(name)                                                                                      \
  extern "C" __attribute__((visibility("default"))) void emulated_##name(void **parameters) {             \
    emulator::call(name, parameters);                                                                     \
  }                                                                                                       \
  extern "C" __attribute__((visibility("default"))) void emulated_parameters_##name(emulator::Visit *visit, void *to) { \
    emulator::visit(name, visit, to);                                                                     \
  }

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
#define EMULATED_VECTORS(type, name)                                                                 \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                           \
  struct name##3_ { type x, y, z; };                                                                 \
  struct alignas(4 * sizeof(type) > 16 ? 16 : 4 * sizeof(type)) name##4 { type x, y, z, w; };        \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                                   \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATED_VECTORS(char, char)
EMULATED_VECTORS(unsigned char, uchar)
EMULATED_VECTORS(short, short)
EMULATED_VECTORS(unsigned short, ushort)
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(unsigned, uint)
EMULATED_VECTORS(float, float)
EMULATED_VECTORS(double, double)
EMULATED_VECTORS(long long, longlong)
EMULATED_VECTORS(unsigned long long, ulonglong)

namespace emulator {

constexpr int WARP = 32;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t STACK = 256 << 10;  // of a fiber, and its alignment
#else
constexpr size_t STACK = 64 << 10;
#endif
constexpr size_t GUARD = 4096;  // a stack that overflows faults there
constexpr int TOGETHER = 64;  // stacks that are allocated at once

typedef void Visit(void *to, unsigned size, bool is_pointer);

enum State { NEW, READY, AT_BARRIER, AT_WARP, DONE };

struct Fiber {
  void *stack_pointer = nullptr;
  int stack = -1;  // index in the worker's pool
  State state = NEW;
  unsigned mask = 0;  // lanes that the fiber waits for
  uint3 thread{};
  int number = 0;
  void *asan = nullptr;
};

struct Worker;
// At the top of each stack: thread-local variables of a library that is opened late are slow.
struct Top {
  Worker *worker;
  Fiber *fiber;
};
inline Top *top() {
  uintptr_t stack;
  asm("mov %%rsp, %0" : "=r"(stack));
  return reinterpret_cast<Top *>((stack | (STACK - 1)) + 1) - 1;
}

struct Warp {
  unsigned arrived = 0;  // lanes that wait
  unsigned counts[WARP] = {};  // operations of the groups, by the lowest lane of each
  unsigned long long values[WARP][2][WARP];
};

struct Launch {
  void (*kernel)(void **);
  void **parameters;
  dim3 grid, block;
  size_t shared;
  const char *name;
  std::atomic<unsigned long long> next{0};
  std::atomic<bool> failed{false};
  bool reversed = getenv("EMULATOR_REVERSED") != nullptr;
  uintptr_t fault = 0;  // address that could not be read or written
  char error[512] = "";
};

extern "C" void emulated_switch(void **from, void *to);
extern "C" void emulated_continue();  // its second half
#ifdef __x86_64__
asm(R"(
.text
.hidden emulated_switch
.globl emulated_switch
.type emulated_switch,@function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
.hidden emulated_continue
.globl emulated_continue
emulated_continue:
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmpq *%rcx
.size emulated_switch,.-emulated_switch
)");
#else
#error "The emulator's fibers are written for x86-64."
#endif

struct Worker {
  Launch *launch = nullptr;
  std::vector<char *> stacks, mapped;
  std::vector<int> free_stacks;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<int> ready;  // ring of fibers that can run
  size_t first = 0, count = 0;
  int at_barrier = 0, done = 0;
  int votes[2] = {}, vote = 0;  // of __syncthreads_count, in turns
  void *scheduler = nullptr;
  Fiber *ended = nullptr;
  const void *scheduler_stack = nullptr;
  size_t scheduler_size = 0;
  uint3 block{};
  std::vector<char> dynamic;

  ~Worker() {
    for (char *stack : mapped) munmap(stack, (TOGETHER + 1) * STACK);
  }
  void push(int number) {
    ready[(first + count++) % ready.size()] = number;
  }
  int pop() {
    int number = ready[first];
    first = (first + 1) % ready.size();
    --count;
    return number;
  }
  int take_stack() {
    if (free_stacks.empty()) {
      void *made = mmap(nullptr, (TOGETHER + 1) * STACK, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (made == MAP_FAILED) {
        perror("emulator: no memory for fibers");
        abort();
      }
      mapped.push_back(static_cast<char *>(made));
      char *first_stack = reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(made) + STACK - 1) & ~(STACK - 1));
      for (int each = 0; each < TOGETHER; ++each) {
        mprotect(first_stack + each * STACK, GUARD, PROT_NONE);
        free_stacks.push_back(static_cast<int>(stacks.size()));
        stacks.push_back(first_stack + each * STACK);
      }
    }
    int stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
  }
  void *place(Fiber &fiber);
  void resume(Fiber &fiber);
  void suspend();
  void run_block(Launch &of, unsigned long long number);
  void run();
  void fail(const char *what);
};

inline void fiber_main() {
  Worker *worker = top()->worker;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  Launch &launch = *worker->launch;
  launch.kernel(launch.parameters);
  top()->fiber->state = DONE;
  worker->suspend();
  abort();
}

// Where a fiber continues, on a new stack for one that begins.
inline void *Worker::place(Fiber &fiber) {
  if (fiber.state == NEW) {
    fiber.stack = take_stack();
    Top *top = reinterpret_cast<Top *>(stacks[fiber.stack] + STACK) - 1;
    *top = {this, &fiber};
    void **frame = reinterpret_cast<void **>(top);
    *--frame = nullptr;  // alignment, as after a call
    *--frame = reinterpret_cast<void *>(fiber_main);
    for (int saved = 0; saved < 6; ++saved) *--frame = nullptr;
    fiber.stack_pointer = frame;
  }
  fiber.state = READY;
  return fiber.stack_pointer;
}

// Run fibers until one returns, or none can continue.
inline void Worker::resume(Fiber &fiber) {
  void *to = place(fiber);
#ifdef __SANITIZE_ADDRESS__
  void *own = nullptr;
  __sanitizer_start_switch_fiber(&own, stacks[fiber.stack], STACK);
#endif
  emulated_switch(&scheduler, to);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
#endif
  if (ended) {
    free_stacks.push_back(ended->stack);
    ended = nullptr;
    ++done;
  }
}

// Leave a fiber, for the next one that can run.
inline void Worker::suspend() {
  Fiber &fiber = *top()->fiber;
  if (fiber.state == DONE) ended = &fiber;
  // The scheduler takes the stack of one that has ended.
  Fiber *next = count && !ended && !launch->failed.load(std::memory_order_relaxed) ? &fibers[pop()] : nullptr;
  if (next == &fiber) {
    fiber.state = READY;
    return;
  }
  void *to = next ? place(*next) : scheduler;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(ended ? nullptr : &fiber.asan, next ? stacks[next->stack] : scheduler_stack,
                                 next ? STACK : scheduler_size);
#endif
  emulated_switch(&fiber.stack_pointer, to);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fiber.asan, nullptr, nullptr);
#endif
}

inline void Worker::fail(const char *what) {
  if (!launch->failed.exchange(true)) {
    snprintf(launch->error, sizeof launch->error, "%s: block (%u, %u, %u): %s", launch->name, block.x, block.y, block.z,
             what);
  }
}

inline void Worker::run_block(Launch &of, unsigned long long number) {
  launch = &of;
  block = {static_cast<unsigned>(number % of.grid.x), static_cast<unsigned>(number / of.grid.x % of.grid.y),
           static_cast<unsigned>(number / of.grid.x / of.grid.y)};
  size_t threads = static_cast<size_t>(of.block.x) * of.block.y * of.block.z;
  fibers.assign(threads, Fiber());
  size_t needed = (threads + WARP - 1) / WARP;
  if (warps.size() < needed) warps.resize(needed);
  for (size_t each = 0; each < needed; ++each) {
    warps[each].arrived = 0;
    memset(warps[each].counts, 0, sizeof warps[each].counts);
  }
  ready.assign(threads, 0);
  first = count = 0;
  at_barrier = done = vote = 0;
  votes[0] = votes[1] = 0;
  if (dynamic.size() < of.shared + 64) dynamic.resize(of.shared + 64);
  memset(dynamic.data(), 0xA5, of.shared + 64);  // what shared memory holds at first is not defined
  for (size_t each = 0; each < threads; ++each) {
    Fiber &fiber = fibers[each];
    fiber.number = static_cast<int>(each);
    fiber.thread = {static_cast<unsigned>(each % of.block.x), static_cast<unsigned>(each / of.block.x % of.block.y),
                    static_cast<unsigned>(each / of.block.x / of.block.y)};
  }
  // Results may not depend on the order in which threads run.
  for (size_t each = 0; each < threads; ++each) {
    push(static_cast<int>(of.reversed ? threads - 1 - each : each));
  }
  while (count && !of.failed.load(std::memory_order_relaxed)) resume(fibers[pop()]);
  if (done == static_cast<int>(threads)) return;
  if (!of.failed) {
    char what[200];
    int in_warps = static_cast<int>(threads) - done - at_barrier;
    snprintf(what, sizeof what,
             "%d threads wait at __syncthreads and %d at an operation of a warp, for others that never come there: %d "
             "have returned",
             at_barrier, in_warps, done);
    fail(what);
  }
  free_stacks.clear();
  for (size_t stack = 0; stack < stacks.size(); ++stack) free_stacks.push_back(static_cast<int>(stack));
}

// A kernel that reads or writes what is not its memory ends with an error, as on a GPU.
inline thread_local Worker *running = nullptr;
inline struct sigaction before_faults[2];
inline void on_fault(int number, siginfo_t *about, void *context) {
  Worker *here = running;
  if (!here) {
    const struct sigaction &before = before_faults[number == SIGBUS];
    if (before.sa_flags & SA_SIGINFO) return before.sa_sigaction(number, about, context);
    sigaction(number, &before, nullptr);  // the instruction is run once more
    return;
  }
  greg_t *registers = static_cast<ucontext_t *>(context)->uc_mcontext.gregs;
  if (here->scheduler == nullptr) abort();
  uintptr_t stack = static_cast<uintptr_t>(registers[REG_RSP]);
  const Fiber &fiber = *((reinterpret_cast<Top *>((stack | (STACK - 1)) + 1) - 1)->fiber);
  char what[120];
  snprintf(what, sizeof what, "thread (%u, %u, %u) reads or writes where it may not", fiber.thread.x, fiber.thread.y,
           fiber.thread.z);
  if (!here->launch->failed) here->launch->fault = reinterpret_cast<uintptr_t>(about->si_addr);
  here->fail(what);
  registers[REG_RSP] = reinterpret_cast<greg_t>(here->scheduler);
  registers[REG_RIP] = reinterpret_cast<greg_t>(emulated_continue);
}

// Handles faults as long as it lives.
struct Faults {
  char *stack = nullptr;
  stack_t before_stack{};
  explicit Faults(Worker *worker) {
#ifndef __SANITIZE_ADDRESS__
    constexpr size_t size = 64 << 10;
    stack = new char[size];
    stack_t own{};
    own.ss_sp = stack;
    own.ss_size = size;
    sigaltstack(&own, &before_stack);
    running = worker;
#else
    (void)worker;
#endif
  }
  ~Faults() {
    running = nullptr;
    if (stack) sigaltstack(&before_stack, nullptr);
    delete[] stack;
  }
  static void handle(bool ours) {
#ifndef __SANITIZE_ADDRESS__
    for (int number : {SIGSEGV, SIGBUS}) {
      struct sigaction action {};
      action.sa_sigaction = on_fault;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK;
      if (ours) {
        sigaction(number, &action, &before_faults[number == SIGBUS]);
      } else {
        sigaction(number, &before_faults[number == SIGBUS], nullptr);
      }
    }
#else
    (void)ours;
#endif
  }
};

inline void Worker::run() {
  Faults faults(this);
#ifdef __SANITIZE_ADDRESS__
  pthread_attr_t about;
  void *start;
  pthread_getattr_np(pthread_self(), &about);
  pthread_attr_getstack(&about, &start, &scheduler_size);
  pthread_attr_destroy(&about);
  scheduler_stack = start;
#endif
  Launch &of = *launch;
  unsigned long long blocks = static_cast<unsigned long long>(of.grid.x) * of.grid.y * of.grid.z, each;
  while (!of.failed.load(std::memory_order_relaxed) && (each = of.next.fetch_add(1)) < blocks) {
    run_block(of, of.reversed ? blocks - 1 - each : each);
  }
}

// Threads that wait for blocks to compute, and end with the library.
struct Pool {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_t one_launch = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t begin = PTHREAD_COND_INITIALIZER, end = PTHREAD_COND_INITIALIZER;
  std::vector<std::thread> threads;
  Worker own;
  Launch *launch = nullptr;
  unsigned long long turn = 0;
  int busy = 0;
  bool ending = false;

  static int cores() {
    if (const char *told = getenv("EMULATOR_THREADS")) return atoi(told);
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  }
  void work() {
    Worker mine;
    unsigned long long seen = 0;
    pthread_mutex_lock(&mutex);
    while (true) {
      while (!ending && turn == seen) pthread_cond_wait(&begin, &mutex);
      if (ending) break;
      seen = turn;
      mine.launch = launch;
      pthread_mutex_unlock(&mutex);
      mine.run();
      pthread_mutex_lock(&mutex);
      if (--busy == 0) pthread_cond_signal(&end);
    }
    pthread_mutex_unlock(&mutex);
  }
  void run(Launch &of) {
    pthread_mutex_lock(&one_launch);
    own.launch = &of;
    Faults::handle(true);
    if (static_cast<unsigned long long>(of.grid.x) * of.grid.y * of.grid.z > 1) {
      if (threads.empty()) {
        for (int each = 1; each < cores(); ++each) threads.emplace_back([this] { work(); });
      }
      pthread_mutex_lock(&mutex);
      launch = &of;
      busy = static_cast<int>(threads.size());
      ++turn;
      pthread_cond_broadcast(&begin);
      pthread_mutex_unlock(&mutex);
      own.run();
      pthread_mutex_lock(&mutex);
      while (busy) pthread_cond_wait(&end, &mutex);
      pthread_mutex_unlock(&mutex);
    } else {
      own.run();
    }
    Faults::handle(false);
    pthread_mutex_unlock(&one_launch);
  }
  ~Pool() {
    pthread_mutex_lock(&mutex);
    ending = true;
    pthread_cond_broadcast(&begin);
    pthread_mutex_unlock(&mutex);
    for (std::thread &each : threads) each.join();
  }
};
inline Pool pool;

inline void barrier() {
  Worker &here = *top()->worker;
  if (++here.at_barrier < static_cast<int>(here.fibers.size())) {
    top()->fiber->state = AT_BARRIER;
    here.suspend();
    return;
  }
  here.at_barrier = 0;
  here.vote ^= 1;
  here.votes[here.vote] = 0;
  int threads = static_cast<int>(here.fibers.size());
  for (int each = 0; each < threads; ++each) {
    int number = here.launch->reversed ? threads - 1 - each : each;
    if (&here.fibers[number] != top()->fiber) here.push(number);
  }
}

inline int barrier_count(bool yes) {
  Worker &here = *top()->worker;
  int which = here.vote;
  here.votes[which] += yes;
  barrier();
  return here.votes[which];
}

// Exchange a value with the lanes of `mask`; returns what all of them gave. Each resumed fiber reads it before another
// operation of the same lanes can overwrite it: two buffers in turns, and fibers run in the order in which they were woken.
inline const unsigned long long *exchanged(unsigned mask, unsigned long long value) {
  Worker &here = *top()->worker;
  Fiber &fiber = *top()->fiber;
  int lane = fiber.number % WARP, base = fiber.number - lane;
  Warp &warp = here.warps[fiber.number / WARP];
  int left = static_cast<int>(here.fibers.size()) - base;
  if (left < WARP) mask &= (1u << left) - 1;
  if (!(mask >> lane & 1)) {
    here.fail("a thread is not in the mask that it passes to an operation of its warp");
    here.suspend();
  }
  int leader = __builtin_ctz(mask);
  const unsigned long long *values = warp.values[leader][warp.counts[leader] & 1];
  warp.values[leader][warp.counts[leader] & 1][lane] = value;
  fiber.mask = mask;
  fiber.state = AT_WARP;
  warp.arrived |= 1u << lane;
  if ((warp.arrived & mask) == mask) {
    warp.arrived &= ~mask;
    ++warp.counts[leader];
    for (unsigned rest = mask; rest; rest &= rest - 1) {
      int other = base + __builtin_ctz(rest);
      if (here.fibers[other].mask != mask) here.fail("threads of a warp pass different masks to one operation");
      here.push(other);
    }
  }
  here.suspend();
  return values;
}

template <typename T> unsigned long long packed(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "");
  unsigned long long bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}
template <typename T> T unpacked(unsigned long long bits) {
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline int lane() { return top()->fiber->number % WARP; }

// The value of lane `source`, or one's own where that is outside of the part of `width` lanes or beyond the block's end.
template <typename T> T shuffled(unsigned mask, T value, int source, int width) {
  int own = lane(), part = own & ~(width - 1);
  const unsigned long long *values = exchanged(mask, packed(value));
  if (source < part || source >= part + width) source = own;
  if (!(mask >> source & 1)) {
    top()->worker->fail("a shuffle reads from a lane that is not in its mask");
    return value;
  }
  return unpacked<T>(values[source]);
}

template <typename... P, size_t... I>
void call_each(void (*kernel)(P...), void **parameters, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<P> *>(parameters[I])...);
}
template <typename... P> void call(void (*kernel)(P...), void **parameters) {
  call_each(kernel, parameters, std::index_sequence_for<P...>());
}
template <typename... P> void visit(void (*)(P...), Visit *visit, void *to) {
  (visit(to, sizeof(P), std::is_pointer<P>::value), ...);
}

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) const int emulated_architecture = __CUDA_ARCH__;
#ifdef EMULATED_PTX
extern "C" __attribute__((visibility("default"))) const bool emulated_is_ptx = true;
#else
extern "C" __attribute__((visibility("default"))) const bool emulated_is_ptx = false;
#endif

// Compute a kernel; returns whether it succeeded.
extern "C" __attribute__((visibility("default"))) bool emulate(void (*kernel)(void **), const char *name, void **parameters,
                                                               const unsigned *grid, const unsigned *block,
                                                               size_t shared, char *error, size_t error_size, uintptr_t *fault) {
  emulator::Launch launch;
  launch.kernel = kernel;
  launch.parameters = parameters;
  launch.grid = {grid[0], grid[1], grid[2]};
  launch.block = {block[0], block[1], block[2]};
  launch.shared = shared;
  launch.name = name;
  emulator::pool.run(launch);
  snprintf(error, error_size, "%s", launch.error);
  *fault = launch.fault;
  return !launch.failed;
}

#define threadIdx (emulator::top()->fiber->thread)
#define blockIdx (emulator::top()->worker->block)
#define blockDim (emulator::top()->worker->launch->block)
#define gridDim (emulator::top()->worker->launch->grid)
constexpr int warpSize = emulator::WARP;

// The block's dynamic shared memory.
inline void *emulated_shared() {
  uintptr_t start = reinterpret_cast<uintptr_t>(emulator::top()->worker->dynamic.data());
  return reinterpret_cast<void *>((start + 63) & ~static_cast<uintptr_t>(63));
}

inline void __syncthreads() { emulator::barrier(); }
inline int __syncthreads_count(int yes) { return emulator::barrier_count(yes != 0); }
inline int __syncthreads_or(int yes) { return emulator::barrier_count(yes != 0) > 0; }
inline int __syncthreads_and(int yes) { return emulator::barrier_count(yes == 0) == 0; }
inline void __syncwarp(unsigned mask = ~0u) { emulator::exchanged(mask, 0); }
template <typename T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emulator::shuffled(mask, value, (emulator::lane() & ~(width - 1)) + (source & (width - 1)), width);
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  return emulator::shuffled(mask, value, emulator::lane() - static_cast<int>(by), width);
}
template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  return emulator::shuffled(mask, value, emulator::lane() + static_cast<int>(by), width);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32) {
  return emulator::shuffled(mask, value, emulator::lane() ^ with, width);
}
inline unsigned __ballot_sync(unsigned mask, int yes) {
  const unsigned long long *values = emulator::exchanged(mask, yes != 0);
  unsigned voted = 0;
  for (; mask; mask &= mask - 1) {
    int lane = __builtin_ctz(mask);
    if (emulator::top()->fiber->mask >> lane & 1) voted |= static_cast<unsigned>(values[lane]) << lane;
  }
  return voted;
}
inline int __any_sync(unsigned mask, int yes) { return __ballot_sync(mask, yes) != 0; }
inline int __all_sync(unsigned mask, int yes) { return __ballot_sync(mask, !yes) == 0; }
template <typename T> unsigned __match_any_sync(unsigned mask, T value) {
  const unsigned long long *values = emulator::exchanged(mask, emulator::packed(value));
  unsigned same = 0;
  for (unsigned rest = emulator::top()->fiber->mask; rest; rest &= rest - 1) {
    int lane = __builtin_ctz(rest);
    if (values[lane] == emulator::packed(value)) same |= 1u << lane;
  }
  return same;
}
#define EMULATED_REDUCE(name, type, start, step)                                            \
  inline type __reduce_##name##_sync(unsigned mask, type value) {                           \
    const unsigned long long *values = emulator::exchanged(mask, emulator::packed(value));  \
    type all = start;                                                                       \
    for (unsigned rest = emulator::top()->fiber->mask; rest; rest &= rest - 1) {         \
      type each = emulator::unpacked<type>(values[__builtin_ctz(rest)]);                    \
      all = step;                                                                           \
    }                                                                                       \
    return all;                                                                             \
  }
EMULATED_REDUCE(add, unsigned, 0, all + each)
EMULATED_REDUCE(add, int, 0, static_cast<int>(static_cast<unsigned>(all) + static_cast<unsigned>(each)))
EMULATED_REDUCE(min, unsigned, UINT_MAX, each < all ? each : all)
EMULATED_REDUCE(min, int, INT_MAX, each < all ? each : all)
EMULATED_REDUCE(max, unsigned, 0, each > all ? each : all)
EMULATED_REDUCE(max, int, INT_MIN, each > all ? each : all)
EMULATED_REDUCE(or, unsigned, 0, all | each)
EMULATED_REDUCE(and, unsigned, ~0u, all &each)
EMULATED_REDUCE(xor, unsigned, 0, all ^ each)

// Atomic among blocks, which run on several threads.
namespace emulator {
template <typename T, typename F> T replaced(T *address, F next) {
  using Bits = std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned>;
  static_assert(sizeof(T) == sizeof(Bits), "");
  Bits *place = reinterpret_cast<Bits *>(address);
  Bits old = __atomic_load_n(place, __ATOMIC_RELAXED), wanted;
  do {
    T value = next(unpacked<T>(old));
    wanted = static_cast<Bits>(packed(value));
  } while (!__atomic_compare_exchange_n(place, &old, wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return unpacked<T>(old);
}
}  // namespace emulator
#define EMULATED_WHOLE(type)                                                                                       \
  inline type atomicAdd(type *to, type by) { return __atomic_fetch_add(to, by, __ATOMIC_RELAXED); }                \
  inline type atomicOr(type *to, type by) { return __atomic_fetch_or(to, by, __ATOMIC_RELAXED); }                  \
  inline type atomicAnd(type *to, type by) { return __atomic_fetch_and(to, by, __ATOMIC_RELAXED); }                \
  inline type atomicXor(type *to, type by) { return __atomic_fetch_xor(to, by, __ATOMIC_RELAXED); }                \
  inline type atomicExch(type *to, type by) { return __atomic_exchange_n(to, by, __ATOMIC_RELAXED); }              \
  inline type atomicMax(type *to, type by) { return emulator::replaced(to, [=](type old) { return old > by ? old : by; }); } \
  inline type atomicMin(type *to, type by) { return emulator::replaced(to, [=](type old) { return old < by ? old : by; }); } \
  inline type atomicCAS(type *to, type compared, type by) {                                                        \
    __atomic_compare_exchange_n(to, &compared, by, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                     \
    return compared;                                                                                               \
  }
EMULATED_WHOLE(int)
EMULATED_WHOLE(unsigned)
EMULATED_WHOLE(unsigned long long)
inline unsigned atomicSub(unsigned *to, unsigned by) { return __atomic_fetch_sub(to, by, __ATOMIC_RELAXED); }
inline int atomicSub(int *to, int by) { return __atomic_fetch_sub(to, by, __ATOMIC_RELAXED); }
inline float atomicAdd(float *to, float by) { return emulator::replaced(to, [=](float old) { return old + by; }); }
inline double atomicAdd(double *to, double by) { return emulator::replaced(to, [=](double old) { return old + by; }); }
inline float atomicExch(float *to, float by) { return emulator::replaced(to, [=](float) { return by; }); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __threadfence(); }
inline void __threadfence_system() { __threadfence(); }

// Numbers. Conversions saturate, and a NaN becomes 0, as PTX's cvt does.
namespace emulator {
template <typename To> To saturated(double value) {
  constexpr To least = std::numeric_limits<To>::min(), most = std::numeric_limits<To>::max();
  if (std::isnan(value)) return 0;
  if (value <= static_cast<double>(least)) return least;
  return value >= static_cast<double>(most) ? most : static_cast<To>(value);
}
}  // namespace emulator
#define EMULATED_CONVERSIONS(from, to, type)                                                                  \
  inline type __##from##2##to##_rn(from value) { return emulator::saturated<type>(nearbyint(value)); }        \
  inline type __##from##2##to##_rz(from value) { return emulator::saturated<type>(trunc(value)); }            \
  inline type __##from##2##to##_ru(from value) { return emulator::saturated<type>(ceil(value)); }             \
  inline type __##from##2##to##_rd(from value) { return emulator::saturated<type>(floor(value)); }
EMULATED_CONVERSIONS(float, int, int)
EMULATED_CONVERSIONS(float, uint, unsigned)
EMULATED_CONVERSIONS(float, ll, long long)
EMULATED_CONVERSIONS(float, ull, unsigned long long)
EMULATED_CONVERSIONS(double, int, int)
EMULATED_CONVERSIONS(double, uint, unsigned)
EMULATED_CONVERSIONS(double, ll, long long)
EMULATED_CONVERSIONS(double, ull, unsigned long long)
inline float __int2float_rn(int value) { return static_cast<float>(value); }
inline float __uint2float_rn(unsigned value) { return static_cast<float>(value); }
inline float __ll2float_rn(long long value) { return static_cast<float>(value); }
inline float __ull2float_rn(unsigned long long value) { return static_cast<float>(value); }
inline double __int2double_rn(int value) { return value; }
inline double __ll2double_rn(long long value) { return static_cast<double>(value); }
inline float __double2float_rn(double value) { return static_cast<float>(value); }
inline unsigned __float_as_uint(float value) { return emulator::unpacked<unsigned>(emulator::packed(value)); }
inline int __float_as_int(float value) { return emulator::unpacked<int>(emulator::packed(value)); }
inline float __uint_as_float(unsigned bits) { return emulator::unpacked<float>(bits); }
inline float __int_as_float(int bits) { return emulator::unpacked<float>(static_cast<unsigned>(bits)); }
inline long long __double_as_longlong(double value) { return emulator::unpacked<long long>(emulator::packed(value)); }
inline double __longlong_as_double(long long bits) { return emulator::unpacked<double>(static_cast<unsigned long long>(bits)); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1 / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float rsqrtf(float a) { return 1 / sqrtf(a); }
inline double rsqrt(double a) { return 1 / sqrt(a); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(static_cast<unsigned>(bits)) : 32; }
inline int __clzll(long long bits) { return bits ? __builtin_clzll(static_cast<unsigned long long>(bits)) : 64; }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
inline unsigned __brev(unsigned bits) {
  unsigned turned = 0;
  for (int bit = 0; bit < 32; ++bit) turned |= (bits >> bit & 1) << (31 - bit);
  return turned;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return static_cast<unsigned>(((static_cast<unsigned long long>(high) << 32 | low) << (by & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> (by & 31));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  unsigned long long both = static_cast<unsigned long long>(b) << 32 | a;
  unsigned result = 0;
  for (int byte = 0; byte < 4; ++byte) {
    unsigned choice = selector >> (4 * byte) & 15, value = static_cast<unsigned>(both >> (8 * (choice & 7))) & 255;
    if (choice & 8) value = value & 128 ? 255 : 0;
    result |= value << (8 * byte);
  }
  return result;
}
template <typename T> T __ldg(const T *address) { return *address; }
template <typename T> T __ldcg(const T *address) { return *address; }
template <typename T> T __ldcs(const T *address) { return *address; }
template <typename T> void __stcg(T *address, T value) { *address = value; }
template <typename T> void __stcs(T *address, T value) { *address = value; }

#define EMULATED_LEAST(type)                                     \
  inline type min(type a, type b) { return a < b ? a : b; }      \
  inline type max(type a, type b) { return a > b ? a : b; }
EMULATED_LEAST(int)
EMULATED_LEAST(unsigned)
EMULATED_LEAST(long)
EMULATED_LEAST(unsigned long)
EMULATED_LEAST(long long)
EMULATED_LEAST(unsigned long long)
inline unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
inline unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
