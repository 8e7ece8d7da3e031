// A stand-in for libnvrtc.so.12: "cubins" are libraries that g++ compiles with shim.h.
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {
enum { SUCCESS, OUT_OF_MEMORY, CREATION_FAILURE, INVALID_INPUT, INVALID_PROGRAM, INVALID_OPTION, COMPILATION };

struct Program {
  std::string source, name, log;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string cubin, ptx;
};

std::string quoted(const std::string &text) {
  std::string result = "'";
  for (char each : text) result += each == '\'' ? std::string("'\\''") : std::string(1, each);
  return result + "'";
}
void write(const std::string &path, const std::string &text) { std::ofstream(path, std::ios::binary) << text; }
std::string read(const std::string &path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}
const char *told(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value ? value : otherwise;
}
}  // namespace

API const char *nvrtcGetErrorString(int result) {
  switch (result) {
    case SUCCESS: return "NVRTC_SUCCESS";
    case INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
    case INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
    case INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
    case COMPILATION: return "NVRTC_ERROR_COMPILATION";
  }
  return "NVRTC_ERROR unknown";
}
API int nvrtcVersion(int *major, int *minor) {
  *major = 12;
  *minor = 99;  // no cubin of this compiler is ever taken for one of NVIDIA's
  return SUCCESS;
}
static const int ARCHITECTURES[] = {50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 120};
API int nvrtcGetNumSupportedArchs(int *count) {
  *count = sizeof ARCHITECTURES / sizeof *ARCHITECTURES;
  return SUCCESS;
}
API int nvrtcGetSupportedArchs(int *architectures) {
  memcpy(architectures, ARCHITECTURES, sizeof ARCHITECTURES);
  return SUCCESS;
}
API int nvrtcCreateProgram(Program **made, const char *source, const char *name, int count, const char *const *headers,
                           const char *const *names) {
  if (!made || !source || count < 0) return INVALID_INPUT;
  *made = new Program{source, name ? name : "default_program", "", {}, "", ""};
  for (int each = 0; each < count; ++each) (*made)->headers.emplace_back(names[each], headers[each]);
  return SUCCESS;
}
API int nvrtcDestroyProgram(Program **program) {
  if (!program || !*program) return INVALID_PROGRAM;
  delete *program;
  *program = nullptr;
  return SUCCESS;
}
API int nvrtcCompileProgram(Program *program, int count, const char *const *options) {
  if (!program) return INVALID_PROGRAM;
  std::string architecture = "520", flags;
  bool is_ptx = true;
  for (int each = 0; each < count; ++each) {
    std::string option = options[each];
    if (option.rfind("--gpu-architecture=", 0) == 0) {
      size_t start = option.find('_');
      if (start == std::string::npos) return INVALID_OPTION;
      bool known = false;
      for (int number : ARCHITECTURES) known |= number == atoi(option.c_str() + start + 1);
      if (!known) {
        program->log = "nvrtc: error: invalid value for --gpu-architecture (-arch)\n";
        return INVALID_OPTION;
      }
      architecture = option.substr(start + 1) + "0";
      is_ptx = option.find("compute_") != std::string::npos;
    } else if (option.rfind("-D", 0) == 0 || option.rfind("-std=", 0) == 0) {
      flags += " " + quoted(option);
    } else if (option.rfind("--", 0) != 0) {
      program->log = "nvrtc: error: unrecognized option " + option + " found\n";
      return INVALID_OPTION;
    }
  }
  std::string folder = std::string(told("TMPDIR", "/tmp")) + "/emulated-XXXXXX";
  if (!mkdtemp(&folder[0])) return CREATION_FAILURE;
  write(folder + "/" + program->name, program->source);
  for (auto &[name, text] : program->headers) write(folder + "/" + name, text);
  std::string command = "cd " + quoted(folder) + " && exec g++ -std=c++17 -O2 -march=native -ffp-contract=off -w -g1 -fdebug-prefix-map=" + quoted(folder) + "=." +
                        " -shared -fPIC -pthread -fvisibility=hidden -fno-gnu-unique -Wl,-z,defs -D__CUDA_ARCH__=" + architecture +
                        (is_ptx ? " -DEMULATED_PTX" : "") + flags + " -I. -include " +
                        quoted(SHIM) + " " + told("EMULATOR_FLAGS", "") + " -x c++ " + quoted(program->name) +
                        " -o image.so 2>&1";
  FILE *output = popen(command.c_str(), "r");
  char buffer[4096];
  size_t length;
  while (output && (length = fread(buffer, 1, sizeof buffer, output)) > 0) program->log.append(buffer, length);
  int status = output ? pclose(output) : -1;
  program->ptx = status == 0 ? read(folder + "/image.so") : "";
  program->cubin = is_ptx ? "" : program->ptx;
  for (auto &[name, text] : program->headers) unlink((folder + "/" + name).c_str());
  unlink((folder + "/" + program->name).c_str());
  unlink((folder + "/image.so").c_str());
  rmdir(folder.c_str());
  return status == 0 ? SUCCESS : COMPILATION;
}
static int give_size(Program *program, size_t *size, size_t of) {
  if (!program || !size) return INVALID_PROGRAM;
  *size = of;
  return SUCCESS;
}
static int give(Program *program, char *to, const std::string &text, size_t size) {
  if (!program || !to) return INVALID_PROGRAM;
  memcpy(to, text.c_str(), size);
  return SUCCESS;
}
API int nvrtcGetProgramLogSize(Program *program, size_t *size) { return give_size(program, size, program->log.size() + 1); }
API int nvrtcGetProgramLog(Program *program, char *log) { return give(program, log, program->log, program->log.size() + 1); }
API int nvrtcGetCUBINSize(Program *program, size_t *size) { return give_size(program, size, program->cubin.size()); }
API int nvrtcGetCUBIN(Program *program, char *image) { return give(program, image, program->cubin, program->cubin.size()); }
API int nvrtcGetPTXSize(Program *program, size_t *size) { return give_size(program, size, program->ptx.size()); }
API int nvrtcGetPTX(Program *program, char *image) { return give(program, image, program->ptx, program->ptx.size()); }
