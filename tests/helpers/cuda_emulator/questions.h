/* What the NVIDIA driver answers without a context, in C and C++. The answers come from the environment.
 *
 * It has DRIVER_GPUS GPUs, of which it shows those of CUDA_VISIBLE_DEVICES. Their UUIDs are made of DRIVER_MACHINE, which
 * stands for the machine, and of the GPU's number there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifndef API
#define API
#endif

static const char *told(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value ? value : otherwise;
}
static int seen(int *number, int wanted) {
  const char *shown = getenv("CUDA_VISIBLE_DEVICES");
  int all = atoi(told("DRIVER_GPUS", "0")), count = 0, read = 0, each = 0;
  if (!shown) {
    *number = wanted;
    return all;
  }
  for (; sscanf(shown, "%d%n", &each, &read) == 1 && each < all; shown += read + (shown[read] == ',')) {
    if (count++ == wanted) *number = each;
  }
  return count;
}
static int is_device(int device) {
  int number;
  return device >= 0 && device < seen(&number, -1);
}
static void capability(int *major, int *minor) {
  *major = *minor = 0;
  sscanf(told("DRIVER_CAPABILITY", "8.6"), "%d.%d", major, minor);
}
static int most_shared(void) { /* bytes that a block can have: CUDA C++ Programming Guide, compute capabilities */
  int major, minor;
  capability(&major, &minor);
  if (major < 7) return 48 << 10;
  if (major == 7) return (minor < 5 ? 96 : 64) << 10;
  if (major == 8) return (minor == 6 || minor == 9 ? 99 : 163) << 10;
  return (major == 12 ? 99 : 227) << 10;
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
  snprintf(text, (size_t)size, "GPU of a test");
  return is_device(device) ? 0 : 101;
}
API int cuDeviceGetPCIBusId(char *text, int size, int device) {
  int number = 0;
  seen(&number, device);
  snprintf(text, (size_t)size, "0000:%02x:00.0", getenv("DRIVER_SLICES") ? 1 : number + 1);
  return is_device(device) ? 0 : 101;
}
API int cuDeviceGetUuid_v2(char *bytes, int device) {
  int number = 0;
  seen(&number, device);
  memset(bytes, 0, 16);
  snprintf(bytes, 12, "%s", told("DRIVER_MACHINE", "machine"));
  bytes[15] = (char)number;
  return 0;
}
API int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int major, minor;
  capability(&major, &minor);
  switch (attribute) {
    case 75: *value = major; break;               /* COMPUTE_CAPABILITY_MAJOR */
    case 76: *value = minor; break;               /* COMPUTE_CAPABILITY_MINOR */
    default: *value = -1;
  }
  return is_device(device) ? 0 : 101;
}
