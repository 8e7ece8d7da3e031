// Stand-in for CUDA 11's runtime and parts of its driver, on a machine without a GPU. Memory is main memory, which begins
// as float32 ones; copies copy; kernels and libraries do nothing but count their calls. So numbers are meaningless, but
// all of MXNet's own code for GPUs runs: contexts, streams, memory pool, graphs, choice of operators. NVRTC is NVIDIA's,
// which needs no GPU to compile the kernels that MXNet fuses.
//
// It is compiled together with the driver of tests/helpers/cuda_driver.py and with the functions that stand_in.py generates.
#include <pthread.h>
#include <stddef.h>
#include <unistd.h>

typedef struct { unsigned x, y, z; } Size;
enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, NOT_SUPPORTED = 801 };

// Counts. COUNTS is a file; each process appends its id and writes "count<tab>name" lines when it ends.

static struct { char name[200]; long count; } counts[4096];
static int named;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void write_counts(void) {
  char path[4096];
  snprintf(path, sizeof path, "%s.%d", getenv("COUNTS"), getpid());
  FILE *file = fopen(path, "w");
  for (int i = 0; file && i < named; i++) fprintf(file, "%ld\t%s\n", counts[i].count, counts[i].name);
  if (file) fclose(file);
}

void count(const char *name) {
  if (!getenv("COUNTS")) return;
  pthread_mutex_lock(&lock);
  if (!named) atexit(write_counts);
  int i = 0;
  while (i < named && strncmp(counts[i].name, name, sizeof counts[i].name - 1)) i++;
  if (i == named && named < 4096) strncpy(counts[named++].name, name, sizeof counts[i].name - 1);
  if (i < 4096) counts[i].count++;
  pthread_mutex_unlock(&lock);
}

// Devices.

static __thread int device;

static int devices(void) { int number; return seen(&number, -1); }
int cudaGetDeviceCount(int *count) { *count = devices(); return *count ? SUCCESS : NO_DEVICE; }
int cudaGetDevice(int *number) { *number = device; return SUCCESS; }
int cudaSetDevice(int number) { if (number >= devices()) return INVALID_DEVICE; device = number; return SUCCESS; }
int cudaDriverGetVersion(int *version) { *version = 12040; return SUCCESS; }
int cudaRuntimeGetVersion(int *version) { *version = 11080; return SUCCESS; }
int cudaDeviceCanAccessPeer(int *can, int first, int second) { *can = 0; return SUCCESS; }
int cudaDeviceEnablePeerAccess(int peer, unsigned flags) { return SUCCESS; }
int cudaDeviceGetP2PAttribute(int *value, int attribute, int first, int second) { *value = 0; return SUCCESS; }
int cudaDeviceSynchronize(void) { count("cudaDeviceSynchronize"); return SUCCESS; }

// An A100's numbers, by CUdevice_attribute.
static const int attributes[][2] = {
  {1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535}, {7, 65535}, {8, 49152}, {9, 65536}, {10, 32},
  {12, 65536}, {16, 108}, {39, 2048}, {75, 8}, {76, 0}, {97, 166912},
};

int cudaDeviceGetAttribute(int *value, int attribute, int number) {
  *value = 1;
  for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++)
    if (attributes[i][0] == attribute) *value = attributes[i][1];
  return SUCCESS;
}

// The first fields of cudaDeviceProp.
typedef struct {
  char name[256], uuid[16], luid[8];
  unsigned luid_mask;
  size_t memory, shared_memory_per_block;
  int registers_per_block, warp_size;
  size_t pitch;
  int threads_per_block, block[3], grid[3], clock_rate;
  size_t constant_memory;
  int major, minor;
  size_t texture_alignment, texture_pitch_alignment;
  int overlap, processors;
} Properties;

int cudaGetDeviceProperties(Properties *properties, int number) {
  *properties = (Properties){
    .name = "stand-in", .memory = 40ul << 30, .shared_memory_per_block = 49152, .registers_per_block = 65536,
    .warp_size = 32, .threads_per_block = 1024, .block = {1024, 1024, 64}, .grid = {2147483647, 65535, 65535},
    .major = 8, .minor = 0, .overlap = 1, .processors = 108,
  };
  return SUCCESS;
}

// Memory.

static int allocate(void **memory, size_t bytes) {
  count("cudaMalloc");
  bytes = (bytes + 127) / 64 * 64;
  float *numbers = aligned_alloc(64, bytes);
  if (!numbers) return OUT_OF_MEMORY;
  for (size_t i = 0; i < bytes / sizeof *numbers; i++) numbers[i] = 1;
  *memory = numbers;
  return SUCCESS;
}

int cudaMalloc(void **memory, size_t bytes) { return allocate(memory, bytes); }
int cudaHostAlloc(void **memory, size_t bytes, unsigned flags) { return allocate(memory, bytes); }
int cudaMallocPitch(void **memory, size_t *pitch, size_t width, size_t height) {
  *pitch = (width + 511) / 512 * 512;
  return allocate(memory, *pitch * height);
}
int cudaFree(void *memory) { free(memory); return SUCCESS; }
int cudaFreeHost(void *memory) { free(memory); return SUCCESS; }
int cudaMemGetInfo(size_t *available, size_t *total) { *available = 38ul << 30; *total = 40ul << 30; return SUCCESS; }

// What the host reads are float32 numbers, perhaps from memory that held bytes before. A run could not end with a loss
// that overflows.
static int copy(void *to, const void *from, size_t bytes, int kind) {
  enum { TO_HOST = 2 };
  memmove(to, from, bytes);
  float *numbers = to;
  for (size_t i = 0; kind == TO_HOST && i < bytes / sizeof *numbers; i++)
    if (!(numbers[i] > -1000 && numbers[i] < 1000)) numbers[i] = 1;
  return SUCCESS;
}

int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) { count("cudaMemcpy"); return copy(to, from, bytes, kind); }
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  count("cudaMemcpyAsync");
  return copy(to, from, bytes, kind);
}
int cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t bytes, void *stream) {
  count("cudaMemcpyPeerAsync");
  memmove(to, from, bytes);
  return SUCCESS;
}
int cudaMemcpy2DAsync(
  char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t height, int kind, void *stream
) {
  count("cudaMemcpy2DAsync");
  for (size_t row = 0; row < height; row++) copy(to + row * to_pitch, from + row * from_pitch, width, kind);
  return SUCCESS;
}
int cudaMemsetAsync(void *to, int value, size_t bytes, void *stream) {
  count("cudaMemsetAsync");
  memset(to, value, bytes);
  return SUCCESS;
}

// Streams and events.

static int handle(void **made) { *made = calloc(1, 256); return *made ? SUCCESS : OUT_OF_MEMORY; }
int cudaStreamCreate(void **stream) { return handle(stream); }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return handle(stream); }
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return handle(stream); }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return SUCCESS; }
int cudaStreamDestroy(void *stream) { free(stream); return SUCCESS; }
int cudaStreamSynchronize(void *stream) { count("cudaStreamSynchronize"); return SUCCESS; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) { return SUCCESS; }
int cudaEventCreate(void **event) { return handle(event); }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return handle(event); }
int cudaEventDestroy(void *event) { free(event); return SUCCESS; }
int cudaEventRecord(void *event, void *stream) { return SUCCESS; }
int cudaEventQuery(void *event) { return SUCCESS; }
int cudaEventSynchronize(void *event) { count("cudaEventSynchronize"); return SUCCESS; }
int cudaEventElapsedTime(float *milliseconds, void *from, void *to) { *milliseconds = 1; return SUCCESS; }

// Kernels. The compiler's code registers each with its name, and starts it by the address that it registered.

static struct Kernel { const void *address; const char *name; } *kernels;
static int registered, room;
static pthread_once_t once = PTHREAD_ONCE_INIT;

void **__cudaRegisterFatBinary(void *binary) { static void *any; return &any; }
void __cudaRegisterFatBinaryEnd(void **binary) {}
void __cudaUnregisterFatBinary(void **binary) {}
char __cudaInitModule(void **binary) { return 1; }
void __cudaRegisterVar(void **b, char *host, char *address, const char *name, int e, size_t n, int c, int g) {}
void __cudaRegisterFunction(
  void **binary, const char *address, char *function, const char *name, int limit, void *a, void *b, void *c, void *d, int *w
) {
  if (registered == room) kernels = realloc(kernels, (room = 2 * room + 1024) * sizeof *kernels);
  kernels[registered++] = (struct Kernel){address, name};
}

static int by_address(const void *first, const void *second) {
  const char *one = ((const struct Kernel *)first)->address, *other = ((const struct Kernel *)second)->address;
  return (one > other) - (one < other);
}
static void sort_kernels(void) { qsort(kernels, registered, sizeof *kernels, by_address); }

static __thread struct { Size grid, block; size_t shared; void *stream; } call;

unsigned __cudaPushCallConfiguration(Size grid, Size block, size_t shared, void *stream) {
  call.grid = grid, call.block = block, call.shared = shared, call.stream = stream;
  return SUCCESS;
}
int __cudaPopCallConfiguration(Size *grid, Size *block, size_t *shared, void **stream) {
  *grid = call.grid, *block = call.block, *shared = call.shared, *stream = call.stream;
  return SUCCESS;
}
int cudaLaunchKernel(const void *address, Size grid, Size block, void **arguments, size_t shared, void *stream) {
  pthread_once(&once, sort_kernels);
  struct Kernel wanted = {address, 0};
  struct Kernel *found = bsearch(&wanted, kernels, registered, sizeof *kernels, by_address);
  char text[200];
  snprintf(text, sizeof text, "kernel %s", found ? found->name : "unknown");
  count(text);
  return SUCCESS;
}
int cuLaunchKernel(void) { count("kernel of NVRTC"); return SUCCESS; }

// The first fields of cudaFuncAttributes.
typedef struct { size_t shared, constant, local; int threads, registers, ptx, binary, cache, dynamic, carveout; } Function;

int cudaFuncGetAttributes(Function *attributes, const void *address) {
  *attributes = (Function){.threads = 1024, .registers = 32, .ptx = 80, .binary = 80, .dynamic = 49152};
  return SUCCESS;
}
int cudaFuncSetAttribute(const void *address, int attribute, int value) { return SUCCESS; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *a, int b, size_t s, unsigned f) {
  *n = 4;
  return SUCCESS;
}

const char *cudaGetErrorString(int error) { return "error of the stand-in"; }
const char *cudaGetErrorName(int error) { return "error of the stand-in"; }
int cudaGetLastError(void) { return SUCCESS; }
int cudaPeekAtLastError(void) { return SUCCESS; }
int cudaStreamBeginCapture(void *stream, int mode) { return NOT_SUPPORTED; }

// Driver, for kernels that MXNet compiles at run time.

int cuDevicePrimaryCtxRetain(void **context, int number) { return handle(context); }
int cuGetErrorString(int error, const char **text) { *text = "error of the stand-in"; return SUCCESS; }
int cuModuleGetFunction(void **function, void *module, const char *name) { return handle(function); }
int cuModuleLoadData(void **module, const void *image) {
  count(strstr(image, ".entry") ? "PTX" : "no PTX");
  return handle(module);
}
int cuModuleLoadDataEx(void **module, const void *image, unsigned n, void *options, void **values) {
  return cuModuleLoadData(module, image);
}
int cuModuleUnload(void *module) { free(module); return SUCCESS; }

// cuDNN. Of the two algorithms for a convolution, the faster one does not add in a fixed order.

typedef struct { int algorithm, status; float time; size_t memory; int determinism, math, reserved[3]; } Performance;

size_t cudnnGetVersion(void) { return 8906; }
const char *cudnnGetErrorString(int error) { return "error of the stand-in"; }
int cudnnDropoutGetStatesSize(void *cudnn, size_t *bytes) { *bytes = 1024; return SUCCESS; }
int cudnnDropoutGetReserveSpaceSize(void *tensor, size_t *bytes) { *bytes = 1024; return SUCCESS; }
int algorithms(int *found, Performance *results) {
  results[0] = (Performance){.algorithm = 0, .time = 0.1f, .memory = 1 << 20, .determinism = 0};
  results[1] = (Performance){.algorithm = 1, .time = 0.2f, .memory = 1 << 20, .determinism = 1};
  *found = 2;
  return SUCCESS;
}
static void count_number(const char *name, int number) {
  char text[200];
  snprintf(text, sizeof text, "%s %d", name, number);
  count(text);
}
int cudnnConvolutionBackwardFilter(void *h, void *f, void *a, void *b, void *c, void *d, void *e, int algorithm) {
  count_number("cudnnConvolutionBackwardFilter", algorithm);
  return SUCCESS;
}
int cudnnSetPooling2dDescriptor(void *pooling, int mode) {
  count_number("cudnnSetPooling2dDescriptor", mode);
  return SUCCESS;
}
