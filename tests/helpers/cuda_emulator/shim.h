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
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__ __attribute__((visibility("default")))
#define __device__
#define __shared__ static thread_local
#define __launch_bounds__(...)
// Makes a kernel callable by its name, with the sizes of its parameters.
#define EXPORT(name)                                                                                      \
  extern "C" __attribute__((visibility("default"))) void emulated_##name(void **parameters) {             \
    emulator::call(name, parameters);                                                                     \
  }                                                                                                       \
  extern "C" __attribute__((visibility("default"))) void emulated_parameters_##name(emulator::Visit *visit, void *to) { \
    emulator::visit(name, visit, to);                                                                     \
  }

struct uint3 { unsigned x, y, z; };

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
  unsigned count = 0;    // of the operations
  unsigned long long values[2][WARP];
};

struct Launch {
  void (*kernel)(void **);
  void **parameters;
  uint3 grid, block;
  size_t shared;
  const char *name;
  std::atomic<unsigned long long> next{0};
  std::atomic<bool> failed{false};
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
  for (size_t each = 0; each < needed; ++each) warps[each].arrived = 0;
  ready.assign(threads, 0);
  first = count = 0;
  at_barrier = done = 0;
  if (dynamic.size() < of.shared + 64) dynamic.resize(of.shared + 64);
  memset(dynamic.data(), 0xA5, of.shared + 64);  // what shared memory holds at first is not defined
  for (size_t each = 0; each < threads; ++each) {
    Fiber &fiber = fibers[each];
    fiber.number = static_cast<int>(each);
    fiber.thread = {static_cast<unsigned>(each % of.block.x), static_cast<unsigned>(each / of.block.x % of.block.y),
                    static_cast<unsigned>(each / of.block.x / of.block.y)};
  }
  for (size_t each = 0; each < threads; ++each) push(static_cast<int>(each));
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
    run_block(of, each);
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
  for (Fiber &each : here.fibers) {
    if (&each != top()->fiber) here.push(each.number);
  }
}

// Exchange a value with the other lanes of the warp; returns what all of them gave. Each resumed fiber reads it before the
// next operation can overwrite it: two buffers in turns, and fibers run in the order in which they were woken.
inline const unsigned long long *exchanged(unsigned mask, unsigned long long value) {
  Worker &here = *top()->worker;
  Fiber &fiber = *top()->fiber;
  int lane = fiber.number % WARP, base = fiber.number - lane, lanes = static_cast<int>(here.fibers.size()) - base;
  Warp &warp = here.warps[fiber.number / WARP];
  if (mask != ~0u) {
    here.fail("an operation of a part of a warp, which is not emulated");
    here.suspend();
  }
  unsigned long long *values = warp.values[warp.count & 1];
  values[lane] = value;
  fiber.state = AT_WARP;
  warp.arrived |= 1u << lane;
  if (warp.arrived == ~0u >> (lanes < WARP ? WARP - lanes : 0)) {
    warp.arrived = 0;
    ++warp.count;
    for (int each = base; each < base + WARP && each < base + lanes; ++each) here.push(each);
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

// The block's dynamic shared memory.
inline void *emulated_shared() {
  uintptr_t start = reinterpret_cast<uintptr_t>(emulator::top()->worker->dynamic.data());
  return reinterpret_cast<void *>((start + 63) & ~static_cast<uintptr_t>(63));
}

inline void __syncthreads() { emulator::barrier(); }
inline void __syncwarp() { emulator::exchanged(~0u, 0); }
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int with) {
  emulator::Worker &here = *emulator::top()->worker;
  int other = emulator::top()->fiber->number ^ with;
  const unsigned long long *values = emulator::exchanged(mask, emulator::packed(value));
  if (other >= static_cast<int>(here.fibers.size())) here.fail("a shuffle reads from a lane that is not there");
  return emulator::unpacked<T>(values[other % emulator::WARP]);
}

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
  inline type atomicMax(type *to, type by) { return emulator::replaced(to, [=](type old) { return old > by ? old : by; }); } \
  inline type atomicMin(type *to, type by) { return emulator::replaced(to, [=](type old) { return old < by ? old : by; }); } \
  inline type atomicCAS(type *to, type compared, type by) {                                                        \
    __atomic_compare_exchange_n(to, &compared, by, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                     \
    return compared;                                                                                               \
  }
EMULATED_WHOLE(int)
EMULATED_WHOLE(unsigned)
EMULATED_WHOLE(unsigned long long)

// A conversion saturates, and a NaN becomes 0, as PTX's cvt does.
inline int __float2int_rn(float value) {
  if (std::isnan(value)) return 0;
  return value >= 2147483648.0f ? INT_MAX : value < -2147483648.0f ? INT_MIN : static_cast<int>(nearbyint(value));
}
inline unsigned __float_as_uint(float value) { return emulator::unpacked<unsigned>(emulator::packed(value)); }
inline float __uint_as_float(unsigned bits) { return emulator::unpacked<float>(bits); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
