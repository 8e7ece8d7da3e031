// A stand-in for libnccl.so.2: sums of int32 over the processes of one host, as work on a stream of libcuda.cpp.
// With EMULATOR_NCCL_DEAF it does not notice that a peer is gone, as NCCL does not on one host: its kernel waits for ever,
// or fails with that code, or NCCL fails with it if it is negative.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#define API extern "C" __attribute__((visibility("default")))

struct Stream;
extern "C" int emulatorEnqueue(Stream *stream, int (*work)(void *), void *data);
extern "C" const char *emulatorOutside(uintptr_t address, size_t size);

namespace {
enum { SUCCESS = 0, SYSTEM_ERROR = 2, INTERNAL_ERROR = 3, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };
constexpr int INT32 = 2, SUM = 0, MOST_RANKS = 64, NOT_READY = 600;

// Memory of rank 0 that all ranks map.
struct Shared {
  struct Rank {
    std::atomic<int> process, file;  // the file has the numbers that it adds
    std::atomic<uint64_t> count, arrived, finished;  // operations, counted from 1
  } ranks[MOST_RANKS];
};
struct Id {
  int process, file;
  char rest[120];
};
static_assert(sizeof(Id) == 128, "");
struct Config {
  size_t size;
  unsigned magic, version;
  int blocking;
};
struct Communicator {
  Shared *shared;
  int rank, size, file, error = SUCCESS, unfinished = 0;
  bool aborted = false;
  uint64_t operations = 0;
};
struct Operation {
  Communicator *communicator;
  uintptr_t from, to;
  size_t count;
  uint64_t number;
  bool arrived;
};
thread_local std::string last_error;

int failed(int code, const std::string &what) {
  last_error = what;
  fprintf(stderr, "NCCL emulator: %s\n", what.c_str());
  return code;
}
void *map(int process, int file, size_t size) {
  std::string path = "/proc/" + std::to_string(process) + "/fd/" + std::to_string(file);
  int opened = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (opened < 0) return nullptr;
  void *memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, opened, 0);
  close(opened);
  return memory == MAP_FAILED ? nullptr : memory;
}
bool is_gone(int process) {
  std::string path = "/proc/" + std::to_string(process) + "/stat";
  FILE *file = fopen(path.c_str(), "r");
  if (!file) return true;
  char text[512] = "";
  size_t length = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[length] = 0;
  const char *name_end = strrchr(text, ')');
  return !name_end || name_end[2] == 'Z' || name_end[2] == 'X';
}
// Notes that a peer is gone; the caller goes on waiting, as a kernel of NCCL does, or fails with what is returned.
int look(Communicator *communicator) {
  const char *deaf = getenv("EMULATOR_NCCL_DEAF");
  for (int rank = 0; rank < communicator->size; ++rank) {
    int process = communicator->shared->ranks[rank].process;
    if (!process || !is_gone(process) || communicator->error) continue;
    if (deaf && atoi(deaf) < 0) communicator->error = -atoi(deaf);
    if (deaf) return atoi(deaf) > 0 ? atoi(deaf) : NOT_READY;
    communicator->error = failed(REMOTE_ERROR, "rank " + std::to_string(rank) + " is gone");
  }
  return NOT_READY;
}
template <typename F> bool all(Communicator *communicator, F is_so) {
  for (int rank = 0; rank < communicator->size; ++rank) {
    if (!is_so(communicator->shared->ranks[rank])) return false;
  }
  return true;
}

int work(void *data) {
  Operation *operation = static_cast<Operation *>(data);
  Communicator *communicator = operation->communicator;
  Shared::Rank &own = communicator->shared->ranks[communicator->rank];
  size_t bytes = 4 * operation->count;
  if (communicator->aborted) {
    delete operation;
    return SUCCESS;
  }
  if (!operation->arrived) {
    // Until all have read what they added in the operation before.
    if (!all(communicator, [=](Shared::Rank &each) { return each.finished >= operation->number - 1; })) {
      return look(communicator);
    }
    if (ftruncate(communicator->file, static_cast<off_t>(bytes ? bytes : 1))) return 999;
    if (bytes) {
      void *memory = map(getpid(), communicator->file, bytes);
      if (!memory) return 999;
      memcpy(memory, reinterpret_cast<void *>(operation->from), bytes);
      munmap(memory, bytes);
    }
    own.count = operation->count;
    own.arrived = operation->number;
    operation->arrived = true;
  }
  if (!all(communicator, [=](Shared::Rank &each) { return each.arrived >= operation->number; })) {
    return look(communicator);
  }
  if (!all(communicator, [=](Shared::Rank &each) { return each.count == operation->count; })) {
    if (!communicator->error) communicator->error = failed(INVALID_USAGE, "the ranks add different numbers of elements");
    return NOT_READY;
  }
  unsigned *sums = reinterpret_cast<unsigned *>(operation->to);
  memset(sums, 0, bytes);
  for (int rank = 0; bytes && rank < communicator->size; ++rank) {
    Shared::Rank &each = communicator->shared->ranks[rank];
    unsigned *terms = static_cast<unsigned *>(map(each.process, each.file, bytes));
    if (!terms) {
      return look(communicator);
    }
    for (size_t number = 0; number < operation->count; ++number) sums[number] += terms[number];
    munmap(terms, bytes);
  }
  own.finished = operation->number;
  delete operation;
  return SUCCESS;
}
}  // namespace

API int ncclGetVersion(int *version) {
  const char *told = getenv("EMULATOR_NCCL_VERSION");
  *version = told ? atoi(told) : 22602;
  return SUCCESS;
}
API const char *ncclGetErrorString(int code) {
  switch (code) {
    case SUCCESS: return "no error";
    case SYSTEM_ERROR: return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case INTERNAL_ERROR: return "internal error - please report this issue to the NCCL developers";
    case INVALID_ARGUMENT: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case INVALID_USAGE: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case REMOTE_ERROR: return "remote process exited or there was a network error";
    case IN_PROGRESS: return "NCCL operation in progress";
  }
  return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
}
API int ncclGetUniqueId(Id *id) {
  memset(id, 0, sizeof *id);
  id->process = getpid();
  id->file = memfd_create("nccl", MFD_CLOEXEC);
  if (id->file < 0 || ftruncate(id->file, sizeof(Shared))) return SYSTEM_ERROR;
  return SUCCESS;
}
API int ncclCommInitRankConfig(Communicator **made, int size, Id id, int rank, const Config *config) {
  if (size < 1 || size > MOST_RANKS || rank < 0 || rank >= size) return failed(INVALID_ARGUMENT, "no such rank");
  if (!config || config->magic != 0xCAFEBEEF || config->size < sizeof(Config) - 4) return failed(INVALID_ARGUMENT, "the configuration");
  if (getenv("DRIVER_SLICES") && size > 1) return failed(INVALID_USAGE, "Duplicate GPU detected");
  if (const char *code = getenv("EMULATOR_NCCL_FAILS")) return failed(atoi(code), "as told");
  if (config->blocking) return failed(INVALID_ARGUMENT, "only communicators that do not block are emulated");
  Communicator *communicator = new Communicator;
  communicator->shared = static_cast<Shared *>(map(id.process, id.file, sizeof(Shared)));
  communicator->rank = rank;
  communicator->size = size;
  communicator->file = memfd_create("nccl-terms", MFD_CLOEXEC);
  if (!communicator->shared || communicator->file < 0) return failed(SYSTEM_ERROR, "rank 0 is gone");
  Shared::Rank &own = communicator->shared->ranks[rank];
  own.file = communicator->file;
  own.process = getpid();
  *made = communicator;
  return IN_PROGRESS;
}
API int ncclCommGetAsyncError(Communicator *communicator, int *state) {
  if (!all(communicator, [](Shared::Rank &each) { return each.process != 0; })) {
    look(communicator);
    *state = communicator->error ? communicator->error : int(IN_PROGRESS);
  } else if (communicator->unfinished) {
    --communicator->unfinished;
    *state = IN_PROGRESS;
  } else {
    *state = communicator->error;
  }
  return SUCCESS;
}
API int ncclAllReduce(const void *from, void *to, size_t count, int type, int operation, Communicator *communicator, Stream *stream) {
  if (type != INT32 || operation != SUM) return failed(INVALID_ARGUMENT, "only sums of int32 are emulated");
  int state;
  ncclCommGetAsyncError(communicator, &state);
  if (state) return failed(INVALID_USAGE, "a call before the one before has finished");
  uintptr_t source = reinterpret_cast<uintptr_t>(from), target = reinterpret_cast<uintptr_t>(to);
  for (uintptr_t address : {source, target}) {
    std::string what = emulatorOutside(address, 4 * count);
    if (!what.empty()) return failed(INVALID_ARGUMENT, what);
  }
  communicator->unfinished = 2;
  Operation *given = new Operation{communicator, source, target, count, ++communicator->operations, false};
  return emulatorEnqueue(stream, work, given) ? int(INVALID_ARGUMENT) : int(IN_PROGRESS);
}
API int ncclCommAbort(Communicator *communicator) {
  if (getenv("EMULATOR_NCCL_STUCK")) pause();
  communicator->aborted = true;  // what still waits on a stream names it, so it stays
  return SUCCESS;
}
