// An interpreter of PTX (NVIDIA, "Parallel Thread Execution ISA"), for the instructions that NVRTC makes of our
// kernels.
//
// A warp's 32 lanes compute in lock step. Lanes that diverge form groups, and the group that is furthest behind runs.
// Warps run in a random order. An access outside of an allocation, or not aligned, ends the launch, and so does one in shared
// memory that races with another thread's, or reads what nobody has written.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

struct Warp;
struct Instruction;
using Run = void (*)(Warp &, const Instruction &, uint32_t mask);

// A register, or a constant: the place of its 32 lanes in a warp's file, and the bytes of a lane; 0 for a predicate,
// which is a word of 32 bits.
struct Operand {
  int at = -1, size = 0;
};
enum Kind { COMPUTES, BRANCHES, RETURNS, WAITS_FOR_BLOCK, WAITS_FOR_WARP };
enum Space { GENERIC, GLOBAL, SHARED, LOCAL, PARAMETER };
struct Instruction {
  Kind kind = COMPUTES;
  Run run = nullptr;
  Operand guard, to, a, b, c, members;
  bool negated = false;
  std::vector<Operand> parts;  // of a vector or a fragment: of the result, or of what is stored
  int64_t number = 0;          // added to an address, or told to the instruction
  int target = 0;              // of a branch
  Space space = GENERIC;
  std::string text;
};
struct Variable {
  Space space;
  int64_t at;
};
struct Parameter {
  size_t at, size;
};
struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0, shared = 0, local = 0, most_threads = 1024, file = 0;
  std::map<int, std::array<uint64_t, 2>> constants;  // by place: value, and bytes of a lane
  std::array<Operand, 12> specials;                  // tid, ntid, ctaid, nctaid: x, y, z
};
struct Module {
  int target = 0;  // sm_XY
  std::map<std::string, Kernel> kernels;
};

struct Error : std::runtime_error {
  bool is_address;
  Error(const std::string &what, bool is_address) : std::runtime_error(what), is_address(is_address) {}
};
struct Range {
  uintptr_t start, end;
};
struct Launch {
  const Kernel &kernel;
  std::vector<char> parameters;
  std::array<unsigned, 3> grid, block;
  size_t shared;              // dynamic
  std::vector<Range> memory;  // of the GPU, ascending
  bool watches;               // races in it, too
};

Module parse(const std::string &text);  // throws Error
void run(const Launch &launch);         // throws Error
std::string counted();                  // of all launches, in JSON: for each kernel

}  // namespace ptx
