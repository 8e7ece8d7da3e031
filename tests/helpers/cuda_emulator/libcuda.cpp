// A stand-in for libcuda.so.1 that computes on the processor, when a stream is waited for or asked, and checks its
// calls. Its answers come from the environment: tests/helpers/cuda_emulator/__init__.py.
#include <unistd.h>

#include <chrono>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))
#include "ptx.h"

// ---- answers without a context ---

static const char *told(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value ? value : otherwise;
}
// The UUID of a GPU of the machine: its name, and the number of the GPU.
static void uuid(unsigned char bytes[16], int number) {
  memset(bytes, 0, 16);
  snprintf(reinterpret_cast<char *>(bytes), 12, "%s", told("DRIVER_MACHINE", "machine"));
  bytes[15] = static_cast<unsigned char>(number);
}
// The GPU of the machine that an entry of CUDA_VISIBLE_DEVICES names: its number, or its UUID or the start of it.
static int named(const std::string &entry, int all) {
  const bool is_uuid = entry.compare(0, 4, getenv("DRIVER_SLICES") ? "MIG-" : "GPU-") == 0 && entry.size() > 4;
  for (int number = 0; number < all; ++number) {
    unsigned char bytes[16];
    char text[37], *end = text;
    uuid(bytes, number);
    for (int byte = 0; byte < 16; ++byte) end += sprintf(end, "-%02x" + !(byte > 3 && byte < 11 && byte % 2 == 0), bytes[byte]);
    if (is_uuid ? std::string(text).compare(0, entry.size() - 4, entry, 4) == 0 : entry == std::to_string(number)) return number;
  }
  return -1;
}
static int seen(int *number, int wanted) {
  const char *shown = getenv("CUDA_VISIBLE_DEVICES");
  int all = atoi(told("DRIVER_GPUS", "0")), count = 0;
  if (!shown) {
    *number = wanted;
    return all;
  }
  for (std::string entry;; shown += entry.size() + 1) {  // CUDA ignores all entries after the first that is wrong.
    entry.assign(shown, strcspn(shown, ","));
    int each = named(entry, all);
    if (each < 0) return count;
    if (count++ == wanted) *number = each;
    if (!shown[entry.size()]) return count;
  }
}
static int is_device(int device) {
  int number;
  return device >= 0 && device < seen(&number, -1);
}
static void capability(int *major, int *minor) {
  *major = *minor = 0;
  sscanf(told("DRIVER_CAPABILITY", "8.8"), "%d.%d", major, minor);
}
static pid_t initialised; /* the process that called cuInit: one that was forked from it cannot use CUDA */

API int cuInit(unsigned flags) {
  int number, failure = atoi(told("DRIVER_FAILS", "0"));
  if (failure || flags) return failure ? failure : 1;
  if (initialised && initialised != getpid()) return 3;
  if (seen(&number, -1) == 0) return 100;
  initialised = getpid();
  return 0;
}
API int cuDriverGetVersion(int *version) {
  *version = atoi(told("DRIVER_VERSION", "12040"));
  return 0;
}
API int cuDeviceGetCount(int *count) {
  int number;
  *count = seen(&number, -1);
  return 0;
}
API int cuDeviceGet(int *device, int number) {
  *device = number;
  return is_device(number) ? 0 : 101;
}
API int cuDeviceGetName(char *text, int size, int device) {
  snprintf(text, static_cast<size_t>(size), getenv("DRIVER_SLICES") ? "GPU of a test MIG 1g.5gb" : "GPU of a test");
  return is_device(device) ? 0 : 101;
}
API int cuDeviceGetPCIBusId(char *text, int size, int device) {
  int number = 0;
  seen(&number, device);
  snprintf(text, static_cast<size_t>(size), "0000:%02x:00.0", getenv("DRIVER_SLICES") ? 1 : number + 1);
  return is_device(device) ? 0 : 101;
}
API int cuDeviceGetUuid_v2(char *bytes, int device) {
  int number = 0;
  seen(&number, device);
  uuid(reinterpret_cast<unsigned char *>(bytes), number);
  return 0;
}
API int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int major, minor;
  capability(&major, &minor);
  switch (attribute) {
    case 75: *value = major; break; /* COMPUTE_CAPABILITY_MAJOR */
    case 76: *value = minor; break; /* COMPUTE_CAPABILITY_MINOR */
    case 20: *value = atoi(told("DRIVER_COMPUTE_MODE", "0")); break;
    default: *value = -1;
  }
  return is_device(device) ? 0 : 101;
}

namespace {

enum Result {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  NO_BINARY_FOR_GPU = 209,
  ECC_UNCORRECTABLE = 214,
  INVALID_PTX = 218,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  LAUNCH_OUT_OF_RESOURCES = 701,
  LAUNCH_FAILED = 719,
  UNKNOWN = 999,
};
const std::map<int, const char *> NAMES = {
    {0, "CUDA_SUCCESS"},
    {1, "CUDA_ERROR_INVALID_VALUE"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY"},
    {3, "CUDA_ERROR_NOT_INITIALIZED"},
    {4, "CUDA_ERROR_DEINITIALIZED"},
    {34, "CUDA_ERROR_STUB_LIBRARY"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE"},
    {100, "CUDA_ERROR_NO_DEVICE"},
    {101, "CUDA_ERROR_INVALID_DEVICE"},
    {200, "CUDA_ERROR_INVALID_IMAGE"},
    {201, "CUDA_ERROR_INVALID_CONTEXT"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE"},
    {217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED"},
    {218, "CUDA_ERROR_INVALID_PTX"},
    {221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
    {400, "CUDA_ERROR_INVALID_HANDLE"},
    {500, "CUDA_ERROR_NOT_FOUND"},
    {600, "CUDA_ERROR_NOT_READY"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT"},
    {719, "CUDA_ERROR_LAUNCH_FAILED"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"},
    {999, "CUDA_ERROR_UNKNOWN"},
};
constexpr size_t UNIT = 256;  // allocations are multiples of UNIT, as CUDA's are
constexpr unsigned char GARBAGE = 0xA5;

struct Context;
struct Stream {
  Context *context;
  std::recursive_mutex mutex;
  std::deque<std::function<int()>> waiting;
  unsigned long long given = 0, finished = 0;
};
struct Event {
  Context *context;
  Stream *stream;
  unsigned long long after;
  std::chrono::steady_clock::time_point at;
};
struct Context {
  int device, users = 0;
  explicit Context(int of) : device(of) {}
  int error = SUCCESS;  // stays: the context is lost
  std::set<Stream *> streams;
  std::set<Event *> events;
};
struct Allocation {
  size_t size;
  int device;
};
struct Module {
  Context *context;
  ptx::Module program;
};
struct Function {
  Module *module;
  const ptx::Kernel *kernel;
};

std::recursive_mutex guard;
std::map<uintptr_t, Allocation> allocations;  // by address
std::map<uintptr_t, size_t> locked;           // page-locked memory of the host
std::map<int, Context *> contexts;            // by device
std::map<uintptr_t, std::unique_ptr<Function>> functions;
std::map<std::string, int> calls;
thread_local Context *current = nullptr;

size_t all_memory() { return strtoull(told("DRIVER_MEMORY", "17179869184"), nullptr, 10); }

// Tell of a mistake of the caller; returns the code.
int wrong(int code, const char *format, ...) {
  char text[600];
  va_list rest;
  va_start(rest, format);
  vsnprintf(text, sizeof text, format, rest);
  va_end(rest);
  fprintf(stderr, "CUDA emulator: %s\n", text);
  return code;
}

// The injected result of a function: EMULATOR_FAILS="name=code@call,…", at that call, counted from 1, or at each.
int injected(const char *name) {
  const char *list = getenv("EMULATOR_FAILS");
  if (!list) return SUCCESS;
  std::lock_guard<std::recursive_mutex> lock(guard);
  int call = ++calls[name];
  size_t length = strlen(name);
  for (const char *each = list; each; each = strchr(each, ',') ? strchr(each, ',') + 1 : nullptr) {
    int code = 0, at = 0;
    if (strncmp(each, name, length) || each[length] != '=') continue;
    int read = sscanf(each + length + 1, "%d@%d", &code, &at);
    if (read == 1 || (read == 2 && at == call)) return code;
  }
  return SUCCESS;
}
bool is_lasting(int code) {
  return code == ILLEGAL_ADDRESS || code == LAUNCH_FAILED || code == ECC_UNCORRECTABLE || code == UNKNOWN || code == 46;
}

int check_started(const char *function) {
  if (int code = injected(function)) return code;
  // A process that was forked from one that used CUDA cannot use it.
  if (initialised != getpid()) return wrong(NOT_INITIALIZED, "%s without cuInit in this process", function);
  return SUCCESS;
}
int check_device(const char *function, int device) {
  if (int code = check_started(function)) return code;
  return is_device(device) ? SUCCESS : INVALID_DEVICE;
}
int check_context(const char *function) {
  if (int code = check_started(function)) {
    if (current && is_lasting(code)) current->error = code;
    return code;
  }
  if (!current) return wrong(INVALID_CONTEXT, "%s without a context in this thread", function);
  return current->error;
}
int check_stream(const char *function, Stream *stream) {
  if (int code = check_context(function)) return code;
  if (!stream) return wrong(INVALID_HANDLE, "%s on the default stream", function);
  if (!current->streams.count(stream))
    return wrong(INVALID_HANDLE, "%s on a stream of another context, or none", function);
  return SUCCESS;
}
// Returns what is wrong with the part of a GPU's memory; empty if nothing is.
std::string outside(uintptr_t address, size_t size, int device) {
  std::lock_guard<std::recursive_mutex> lock(guard);
  char text[200];
  auto found = allocations.upper_bound(address);
  if (found == allocations.begin()) return "it is no memory of a GPU";
  --found;
  const Allocation &memory = found->second;
  if (address > found->first + memory.size) return "it is no memory of a GPU, or was freed";
  if (memory.device != device) return "it is memory of another GPU";
  if (address + size <= found->first + memory.size) return "";
  snprintf(text, sizeof text, "bytes %zu to %zu of an allocation of %zu", static_cast<size_t>(address - found->first),
           static_cast<size_t>(address - found->first) + size, memory.size);
  return text;
}
int check_memory(const char *function, uintptr_t address, size_t size) {
  std::string what = outside(address, size, current->device);
  return what.empty() ? SUCCESS : wrong(INVALID_VALUE, "%s: %s", function, what.c_str());
}

// Compute what waits on a stream, up to a number; where `waits` is false, only as far as that needs nobody else.
int compute(Stream *stream, unsigned long long until, bool waits) {
  std::lock_guard<std::recursive_mutex> lock(stream->mutex);
  while (!stream->waiting.empty() && stream->finished < until && !stream->context->error) {
    int code = stream->waiting.front()();
    if (code == NOT_READY) {
      if (!waits) return NOT_READY;
      usleep(100);
      continue;
    }
    stream->waiting.pop_front();
    ++stream->finished;
    if (code) stream->context->error = code;
  }
  return stream->context->error;
}
int enqueue(Stream *stream, std::function<int()> work) {
  std::lock_guard<std::recursive_mutex> lock(stream->mutex);
  stream->waiting.push_back(std::move(work));
  ++stream->given;
  return SUCCESS;
}

int launch(ptx::Launch launch, int device) {
  {
    std::lock_guard<std::recursive_mutex> lock(guard);
    for (auto &[address, memory] : allocations)
      if (memory.device == device) launch.memory.push_back({address, address + memory.size});
  }
  try {
    ptx::run(launch);
    return SUCCESS;
  } catch (const ptx::Error &error) {
    return wrong(error.is_address ? ILLEGAL_ADDRESS : LAUNCH_FAILED, "%s", error.what());
  }
}

}  // namespace

API int cuGetErrorName(int code, const char **name) {
  auto found = NAMES.find(code);
  *name = found == NAMES.end() ? nullptr : found->second;
  return *name ? SUCCESS : INVALID_VALUE;
}

// Contexts.

API int cuDevicePrimaryCtxRetain(Context **context, int device) {
  if (int code = check_device("cuDevicePrimaryCtxRetain", device)) return code;
  std::lock_guard<std::recursive_mutex> lock(guard);
  Context *&found = contexts[device];
  if (!found) found = new Context(device);
  ++found->users;
  *context = found;
  return SUCCESS;
}
API int cuDevicePrimaryCtxRelease_v2(int device) {
  if (int code = check_device("cuDevicePrimaryCtxRelease_v2", device)) return code;
  std::lock_guard<std::recursive_mutex> lock(guard);
  auto found = contexts.find(device);
  if (found == contexts.end())
    return wrong(INVALID_CONTEXT, "cuDevicePrimaryCtxRelease_v2 of a context that nobody uses");
  if (--found->second->users == 0) contexts.erase(found);  // the object stays: somebody may still name it
  return SUCCESS;
}
API int cuCtxSetCurrent(Context *context) {
  if (int code = check_started("cuCtxSetCurrent")) return code;
  std::lock_guard<std::recursive_mutex> lock(guard);
  if (context && (!contexts.count(context->device) || contexts[context->device] != context)) {
    return wrong(INVALID_CONTEXT, "cuCtxSetCurrent of a context that was released");
  }
  current = context;
  return SUCCESS;
}

// Memory.

API int cuMemGetInfo_v2(size_t *left, size_t *all) {
  if (int code = check_context("cuMemGetInfo_v2")) return code;
  std::lock_guard<std::recursive_mutex> lock(guard);
  *all = all_memory();
  *left = *all - strtoull(told("DRIVER_TAKEN", "0"), nullptr, 10);
  for (auto &each : allocations) {
    if (each.second.device == current->device) *left -= (each.second.size + UNIT - 1) / UNIT * UNIT;
  }
  return SUCCESS;
}
API int cuMemAlloc_v2(uintptr_t *address, size_t size) {
  if (int code = check_context("cuMemAlloc_v2")) return code;
  if (!size) return wrong(INVALID_VALUE, "cuMemAlloc_v2 of no bytes");
  size_t left = 0, all = 0;
  cuMemGetInfo_v2(&left, &all);
  if (size > left) return OUT_OF_MEMORY;
  const size_t padded = (size + UNIT - 1) / UNIT * UNIT;
  void *memory = aligned_alloc(UNIT, padded);
  if (!memory) return OUT_OF_MEMORY;
  memset(memory, GARBAGE, padded);
  *address = reinterpret_cast<uintptr_t>(memory);
  std::lock_guard<std::recursive_mutex> lock(guard);
  allocations[*address] = {size, current->device};
  return SUCCESS;
}
API int cuMemFree_v2(uintptr_t address) {
  if (int code = check_context("cuMemFree_v2")) return code;
  for (Stream *stream : current->streams) compute(stream, ~0ull, true);
  std::lock_guard<std::recursive_mutex> lock(guard);
  auto found = allocations.find(address);
  if (found == allocations.end()) return wrong(INVALID_VALUE, "cuMemFree_v2 of what was not allocated, or is freed");
  if (found->second.device != current->device) return wrong(INVALID_VALUE, "cuMemFree_v2 of another GPU's memory");
  allocations.erase(found);
  free(reinterpret_cast<void *>(address));
  return SUCCESS;
}
API int cuMemHostAlloc(void **made, size_t size, unsigned) {
  if (int code = check_context("cuMemHostAlloc")) return code;
  *made = aligned_alloc(UNIT, (size + UNIT - 1) / UNIT * UNIT);
  if (!*made) return OUT_OF_MEMORY;
  std::lock_guard<std::recursive_mutex> lock(guard);
  locked[reinterpret_cast<uintptr_t>(*made)] = size;
  return SUCCESS;
}
API int cuMemFreeHost(void *memory) {
  if (int code = check_context("cuMemFreeHost")) return code;
  std::lock_guard<std::recursive_mutex> lock(guard);
  if (!locked.erase(reinterpret_cast<uintptr_t>(memory))) return wrong(INVALID_VALUE, "cuMemFreeHost of other memory");
  free(memory);
  return SUCCESS;
}
static bool is_locked(const void *memory, size_t size) {
  std::lock_guard<std::recursive_mutex> lock(guard);
  uintptr_t address = reinterpret_cast<uintptr_t>(memory);
  auto found = locked.upper_bound(address);
  return found != locked.begin() && (--found, address + size <= found->first + found->second);
}
API int cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t size, Stream *stream) {
  if (int code = check_stream("cuMemcpyHtoDAsync_v2", stream)) return code;
  if (int code = check_memory("cuMemcpyHtoDAsync_v2", to, size)) return code;
  if (is_locked(from, size)) {  // read when its turn comes: who writes there before that is found out
    return enqueue(stream, [=] { return memcpy(reinterpret_cast<void *>(to), from, size), 0; });
  }
  auto copy =
      std::make_shared<std::vector<char>>(static_cast<const char *>(from), static_cast<const char *>(from) + size);
  return enqueue(stream, [=] { return memcpy(reinterpret_cast<void *>(to), copy->data(), size), 0; });
}
API int cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t size, Stream *stream) {
  if (int code = check_stream("cuMemcpyDtoHAsync_v2", stream)) return code;
  if (int code = check_memory("cuMemcpyDtoHAsync_v2", from, size)) return code;
  enqueue(stream, [=] { return memcpy(to, reinterpret_cast<void *>(from), size), 0; });
  return is_locked(to, size) ? int(SUCCESS) : compute(stream, ~0ull, true);
}
API int cuMemsetD8Async(uintptr_t to, unsigned char byte, size_t size, Stream *stream) {
  if (int code = check_stream("cuMemsetD8Async", stream)) return code;
  if (int code = check_memory("cuMemsetD8Async", to, size)) return code;
  return enqueue(stream, [=] { return memset(reinterpret_cast<void *>(to), byte, size), 0; });
}

// Streams and events.

API int cuStreamCreate(Stream **stream, unsigned) {
  if (int code = check_context("cuStreamCreate")) return code;
  *stream = new Stream;
  (*stream)->context = current;
  current->streams.insert(*stream);
  return SUCCESS;
}
API int cuStreamDestroy_v2(Stream *stream) {
  if (int code = check_stream("cuStreamDestroy_v2", stream)) return code;
  int code = compute(stream, ~0ull, true);
  current->streams.erase(stream);
  return code;
}
API int cuStreamSynchronize(Stream *stream) {
  if (int code = check_stream("cuStreamSynchronize", stream)) return code;
  return compute(stream, ~0ull, true);
}
API int cuStreamQuery(Stream *stream) {
  if (int code = check_stream("cuStreamQuery", stream)) return code;
  return compute(stream, ~0ull, false);
}
API int cuEventCreate(Event **event, unsigned) {
  if (int code = check_context("cuEventCreate")) return code;
  *event = new Event{current, nullptr, 0, {}};
  current->events.insert(*event);
  return SUCCESS;
}
static int check_event(const char *function, Event *event) {
  if (int code = check_context(function)) return code;
  return current->events.count(event) ? int(SUCCESS) : wrong(INVALID_HANDLE, "%s: no event of this context", function);
}
API int cuEventRecord(Event *event, Stream *stream) {
  if (int code = check_event("cuEventRecord", event)) return code;
  if (int code = check_stream("cuEventRecord", stream)) return code;
  enqueue(stream, [=] { return event->at = std::chrono::steady_clock::now(), 0; });
  event->stream = stream;
  event->after = stream->given;
  return SUCCESS;
}
API int cuEventSynchronize(Event *event) {
  if (int code = check_event("cuEventSynchronize", event)) return code;
  return event->stream ? compute(event->stream, event->after, true) : int(SUCCESS);
}
API int cuEventElapsedTime(float *milliseconds, Event *start, Event *end) {
  if (int code = check_event("cuEventElapsedTime", start)) return code;
  if (int code = cuEventSynchronize(end)) return code;
  *milliseconds = std::chrono::duration<float, std::milli>(end->at - start->at).count();
  return SUCCESS;
}
// For libnccl.cpp: work that returns NOT_READY is asked again.
API int emulatorEnqueue(Stream *stream, int (*work)(void *), void *data) {
  if (int code = check_stream("a collective operation", stream)) return code;
  return enqueue(stream, [=] { return work(data); });
}
API const char *emulatorOutside(uintptr_t address, size_t size) {
  static thread_local std::string what;
  what = current ? outside(address, size, current->device) : "no context";
  return what.c_str();
}

// Modules and kernels.

API int cuModuleLoadData(Module **module, const void *image) {
  if (int code = check_context("cuModuleLoadData")) return code;
  const char *text = static_cast<const char *>(image);
  if (!memcmp(text,
              "\x7f"
              "ELF",
              4))
    return NO_BINARY_FOR_GPU;  // machine code
  try {
    auto made = std::make_unique<Module>(Module{current, ptx::parse(text)});
    int major, minor;
    capability(&major, &minor);
    if (made->program.target > 10 * major + minor) return NO_BINARY_FOR_GPU;
    *module = made.release();
    return SUCCESS;
  } catch (const ptx::Error &error) {
    return wrong(INVALID_PTX, "cuModuleLoadData: %s", error.what());
  }
}
API int cuModuleUnload(Module *module) {
  if (int code = check_context("cuModuleUnload")) return code;
  for (Stream *stream : current->streams) compute(stream, ~0ull, true);
  std::lock_guard<std::recursive_mutex> lock(guard);
  for (auto each = functions.begin(); each != functions.end();) {
    each = each->second->module == module ? functions.erase(each) : std::next(each);
  }
  delete module;
  return SUCCESS;
}
API int cuModuleGetFunction(Function **function, Module *module, const char *name) {
  if (int code = check_context("cuModuleGetFunction")) return code;
  auto found = module->program.kernels.find(name);
  if (found == module->program.kernels.end()) return NOT_FOUND;
  auto made = std::make_unique<Function>(Function{module, &found->second});
  *function = made.get();
  std::lock_guard<std::recursive_mutex> lock(guard);
  functions[reinterpret_cast<uintptr_t>(made.get())] = std::move(made);
  return SUCCESS;
}
API int cuLaunchKernel(Function *function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                       unsigned block_z, unsigned shared, Stream *stream, void **parameters, void **extra) {
  if (int code = check_stream("cuLaunchKernel", stream)) return code;
  {
    std::lock_guard<std::recursive_mutex> lock(guard);
    if (!functions.count(reinterpret_cast<uintptr_t>(function)))
      return wrong(INVALID_HANDLE, "cuLaunchKernel of no kernel");
  }
  const char *name = function->kernel->name.c_str();
  if (function->module->context != current) return wrong(INVALID_CONTEXT, "%s: a kernel of another context", name);
  if (extra) return wrong(INVALID_VALUE, "%s: extra is not emulated", name);
  if (!x || !y || !z || x > 0x7FFFFFFF || y > 65535 || z > 65535) {
    return wrong(INVALID_VALUE, "%s: a grid of %u × %u × %u blocks", name, x, y, z);
  }
  unsigned long long threads = static_cast<unsigned long long>(block_x) * block_y * block_z;
  if (!threads || threads > 1024 || block_x > 1024 || block_y > 1024 || block_z > 64) {
    return wrong(INVALID_VALUE, "%s: blocks of %u × %u × %u threads", name, block_x, block_y, block_z);
  }
  if (function->kernel->shared + shared > (48 << 10)) {  // more has to be asked for
    return wrong(INVALID_VALUE, "%s: %zu bytes of shared memory", name, function->kernel->shared + shared);
  }
  ptx::Launch given{*function->kernel,
                    std::vector<char>(function->kernel->parameter_bytes),
                    {x, y, z},
                    {block_x, block_y, block_z},
                    shared,
                    {},
                    getenv("EMULATOR_RACES") != nullptr};
  for (size_t each = 0; each < function->kernel->parameters.size(); ++each) {
    const ptx::Parameter &parameter = function->kernel->parameters[each];
    memcpy(given.parameters.data() + parameter.at, parameters[each], parameter.size);
  }
  int device = current->device;
  return enqueue(stream, [=] { return launch(given, device); });
}
// For counts: what the kernels of this process did so far.
API const char *emulatorCounts() {
  static thread_local std::string text;
  text = ptx::counted();
  return text.c_str();
}
