// What instructions do; see ptx.h.
#pragma once

#include "ptx.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>

namespace ptx {
constexpr int LANES = 32;
constexpr uint32_t ALL = ~0u;
// Generic addresses of shared memory; those of the GPU's memory are the process's own.
constexpr uint64_t WINDOW = 1ull << 60;

// Who last wrote or read a cell of memory, and when: after so many barriers of the block, and of the warp.
constexpr int OF_WARP = 1 << 11, MANY = 1 << 12, ATOMIC = 1 << 13;  // beyond threads: OF_WARP + a warp, all of it
struct Access {
  uint32_t barrier = 0, of_warp = 0;
  int who = -1;
};
struct Cell {
  Access write, read;
};
constexpr size_t CELL = 2;  // bytes, of shared memory; of the GPU's memory 1

struct Block;
struct Group {
  int at;
  uint32_t mask;
  bool waits;
};

struct Warp {
  Block *block;
  int number;
  std::vector<char> file, local;
  uint32_t all, live, mask;  // lanes of the block, that have not returned, of the group that runs
  int at, stop;              // the first place where another group may have to run
  uint32_t barriers;         // of the warp
  bool at_barrier;
  std::vector<Group> groups;  // the others
  Range known{0, 0};
  template <class T> T *lanes(Operand operand) { return reinterpret_cast<T *>(file.data() + operand.at); }
  void run();
  void choose();
};

enum Counted { LAUNCHES, INSTRUCTIONS, BYTES, SECTORS, ATOMICS, COUNTED };
struct Counts {
  uint64_t of[COUNTED] = {};
  void operator+=(const Counts &other) {
    for (int each = 0; each < COUNTED; ++each) of[each] += other.of[each];
  }
};

struct Block {
  const Launch &launch;
  std::array<unsigned, 3> number;
  std::vector<char> shared;
  std::vector<Cell> cells;
  std::unordered_map<uint64_t, Cell> of_gpu;  // if the launch watches the GPU's memory
  uint32_t barrier = 0, begun = 0;
  std::vector<Warp> warps;
  std::minstd_rand random;
  Counts counts;

  explicit Block(const Launch &of);
  void run();
};

template <class... Parts> std::string joined(const Parts &...parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}
[[noreturn]] inline void fail(const std::string &what, bool is_address = false) { throw Error(what, is_address); }
// Out of line, so that the code that checks each access stays small.
template <class... Parts> [[noreturn, gnu::cold, gnu::noinline]] void fail_access(const Parts &...parts) {
  fail(joined(parts...), true);
}
[[noreturn, gnu::cold, gnu::noinline]] inline void fail_plainly(const char *what) { fail(what); }

template <class F> inline void each(uint32_t mask, F work) {
  if (mask == ALL) {
#pragma GCC ivdep
    for (int lane = 0; lane < LANES; ++lane) work(lane);
  } else {
    for (uint32_t rest = mask; rest; rest &= rest - 1) work(__builtin_ctz(rest));
  }
}

// A lane's number in a register of `size` bytes, which may be wider than T.
template <class T> T get(Warp &warp, Operand from, int lane) {
  T value;
  memcpy(&value, warp.file.data() + from.at + lane * from.size, sizeof value);
  return value;
}
template <class T> void put(Warp &warp, Operand to, int lane, T value) {
  char *place = warp.file.data() + to.at + lane * to.size;
  if constexpr (std::is_integral<T>::value) {
    if (to.size == int(sizeof value)) {  // of a constant size, which the compiler copies without a call
      memcpy(place, &value, sizeof value);
      return;
    }
    const int64_t wide = static_cast<int64_t>(value);
    memcpy(place, &wide, static_cast<size_t>(to.size));
  } else {
    memcpy(place, &value, sizeof value);
  }
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------

// Compute F::of for each lane, of operands of the types From.
template <class F, class To, class... From, size_t... I>
void compute_lanes(Warp &warp, const Instruction &of, uint32_t mask, std::index_sequence<I...>) {
  To *to = warp.lanes<To>(of.to);
  const Operand operands[] = {of.a, of.b, of.c};
  const std::tuple<const From *...> from{warp.lanes<From>(operands[I])...};
  each(mask, [=](int lane) { to[lane] = F::of(std::get<I>(from)[lane]...); });
}
template <class F, class To, class... From> void compute(Warp &warp, const Instruction &of, uint32_t mask) {
  compute_lanes<F, To, From...>(warp, of, mask, std::index_sequence_for<From...>());
}
template <class T> using Wide = std::conditional_t<
    sizeof(T) == 2, std::conditional_t<std::is_signed<T>::value, int32_t, uint32_t>,
    std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed<T>::value, int64_t, uint64_t>,
                       std::conditional_t<std::is_signed<T>::value, __int128, unsigned __int128>>>;
struct WideProduct {
  template <class T> static Wide<T> of(T a, T b) { return Wide<T>(a) * b; }
  template <class T> static Wide<T> of(T a, T b, Wide<T> c) { return Wide<T>(a) * b + c; }
};

#define OPERATION(name, parameters, result)                      \
  struct name {                                                  \
    template <class T> static T of parameters { return result; } \
  };
OPERATION(Add, (T a, T b), T(a + b))
OPERATION(Subtract, (T a, T b), T(a - b))
OPERATION(Multiply, (T a, T b), T(a *b))
OPERATION(High, (T a, T b), T(Wide<T>(a) * Wide<T>(b) >> 8 * sizeof(T)))
OPERATION(Divide, (T a, T b), std::is_floating_point<T>::value ? T(a / b) : b == 0 ? T(-1) : T(a / b))
OPERATION(Remainder, (T a, T b), b == 0 ? a : T(a % b))
OPERATION(MultiplyAdd, (T a, T b, T c), T(a *b + c))
OPERATION(Least, (T a, T b), a != a ? b : b != b ? a : b < a ? b : a)
OPERATION(Largest, (T a, T b), a != a ? b : b != b ? a : a < b ? b : a)
OPERATION(And, (T a, T b), T(a &b))
OPERATION(Or, (T a, T b), T(a | b))
OPERATION(Xor, (T a, T b), T(a ^ b))
OPERATION(Not, (T a), T(~a))
OPERATION(Negate, (T a), T(-a))
OPERATION(Size, (T a), std::is_floating_point<T>::value ? T(std::fabs(a)) : a < 0 ? T(-a) : a)
OPERATION(Same, (T a), a)
OPERATION(Left, (T a, uint32_t by), by < 8 * sizeof(T) ? T(a << by) : T(0))
OPERATION(Right, (T a, uint32_t by), by < 8 * sizeof(T) ? T(a >> by) : a < 0 ? T(-1) : T(0))
OPERATION(Root, (T a), std::sqrt(a))
struct Fused {
  static float of(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static double of(double a, double b, double c) { return __builtin_fma(a, b, c); }
};
struct Inverse {  // rcp.approx.ftz.f64 has the upper 32 bits
  static double of(double a) {
    uint64_t bits;
    a = 1 / a;
    memcpy(&bits, &a, 8);
    bits &= ~0xFFFFFFFFull;
    memcpy(&a, &bits, 8);
    return a;
  }
};
// mov between the register a and its parts. The first part has the lowest bits.
template <bool SPLITS> void move_parts(Warp &warp, const Instruction &of, uint32_t mask) {
  each(mask, [&](int lane) {
    char *whole = warp.file.data() + of.a.at + lane * of.a.size;
    for (const Operand &part : of.parts) {
      char *const one = warp.file.data() + part.at + lane * part.size;
      memcpy(SPLITS ? one : whole, SPLITS ? whole : one, size_t(part.size));
      whole += part.size;
    }
  });
}
template <class T>
void insert(Warp &warp, const Instruction &of, uint32_t mask) {  // bfi: c is the position, members the length
  each(mask, [&](int lane) {
    const uint32_t at = get<uint32_t>(warp, of.c, lane) & 255, count = get<uint32_t>(warp, of.members, lane) & 255;
    T ones = count >= 8 * sizeof(T) ? T(-1) : T((T(1) << count) - 1), a = get<T>(warp, of.a, lane),
      b = get<T>(warp, of.b, lane);
    ones = at < 8 * sizeof(T) ? T(ones << at) : T(0);
    put<T>(warp, of.to, lane, T((b & ~ones) | (at < 8 * sizeof(T) ? T(a << at) & ones : T(0))));
  });
}
void permute(Warp &warp, const Instruction &of, uint32_t mask) {
  each(mask, [&](int lane) {
    const uint64_t from = get<uint32_t>(warp, of.a, lane) | uint64_t(get<uint32_t>(warp, of.b, lane)) << 32;
    const uint32_t selectors = get<uint32_t>(warp, of.c, lane);
    uint32_t result = 0;
    for (int byte = 0; byte < 4; ++byte) {
      const uint32_t selector = selectors >> (4 * byte) & 15;
      uint32_t value = uint32_t(from >> (8 * (selector & 7)) & 255);
      if (selector & 8) value = value & 128 ? 255 : 0;  // its sign, as often as it fits
      result |= value << (8 * byte);
    }
    put<uint32_t>(warp, of.to, lane, result);
  });
}

void write_bits(Warp &warp, Operand predicate, uint32_t bits, uint32_t mask) {
  uint32_t &to = *warp.lanes<uint32_t>(predicate);
  to = (to & ~mask) | (bits & mask);
}
const char *const COMPARISONS[] = {"eq", "ne", "lt", "le", "gt", "ge"};
template <class T, int WHICH, bool UNORDERED> void compare(Warp &warp, const Instruction &of, uint32_t mask) {
  const T *a = warp.lanes<T>(of.a), *b = warp.lanes<T>(of.b);
  uint32_t found = 0;
  for (int lane = 0; lane < LANES; ++lane) {
    const T x = a[lane], y = b[lane];
    const bool results[] = {x == y, x != y, x<y, x <= y, x> y, x >= y}, nan = x != x || y != y;
    found |= uint32_t(nan ? UNORDERED : results[WHICH]) << lane;
  }
  write_bits(warp, of.to, found, mask);
}
template <class F> void predicates(Warp &warp, const Instruction &of, uint32_t mask) {
  const uint32_t a = *warp.lanes<uint32_t>(of.a), b = of.b.at < 0 ? ALL : *warp.lanes<uint32_t>(of.b);
  write_bits(warp, of.to, F::of(a, b), mask);
}
template <class T> void select(Warp &warp, const Instruction &of, uint32_t mask) {
  T *to = warp.lanes<T>(of.to);
  const T *a = warp.lanes<T>(of.a), *b = warp.lanes<T>(of.b);
  const uint32_t which = *warp.lanes<uint32_t>(of.c);
  each(mask, [=](int lane) { to[lane] = which >> lane & 1 ? a[lane] : b[lane]; });
}

// ---- conversions ---------------------------------------------------------------------------------------------------

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};
enum Rounding { NEAREST, ZERO, DOWN, UP, NONE };  // to a whole number
template <class S> auto known(S value) { return value; }
float known(Half value) {
  _Float16 half;
  memcpy(&half, &value, 2);
  return float(half);
}
float known(Brain value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}
template <class D, class S> D converted(S value, Rounding whole) {
  if constexpr (std::is_same<D, Half>::value) {
    const _Float16 half = _Float16(value);
    Half result;
    memcpy(&result, &half, 2);
    if (value != value) result.bits = 0x7FFF;
    return result;
  } else if constexpr (std::is_same<D, Brain>::value) {
    const float single = float(value);
    uint32_t bits;
    memcpy(&bits, &single, 4);
    return {value == value ? uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) : uint16_t(0x7FFF)};
  } else if constexpr (std::is_floating_point<S>::value) {
    const S rounded[] = {std::nearbyint(value), std::trunc(value), std::floor(value), std::ceil(value), value};
    value = rounded[whole];
    if constexpr (std::is_floating_point<D>::value) return D(value);
    else {
      if (value != value) return sizeof(S) + sizeof(D) > 8 ? D(1ull << (8 * sizeof(D) - 1)) : D(0);
      const S least = S(std::numeric_limits<D>::min()), most = std::ldexp(S(1), std::numeric_limits<D>::digits);
      return value < least ? std::numeric_limits<D>::min() : value >= most ? std::numeric_limits<D>::max() : D(value);
    }
  } else {
    return D(value);
  }
}
template <class D, class S> void convert(Warp &warp, const Instruction &of, uint32_t mask) {
  each(mask, [&](int lane) {
    put<D>(warp, of.to, lane, converted<D>(known(get<S>(warp, of.a, lane)), Rounding(of.number)));
  });
}

// ---- memory --------------------------------------------------------------------------------------------------------

template <Space space> Cell &cell_of(Block &block, uint64_t at) {
  if constexpr (space == SHARED) return block.cells[at];
  else return block.of_gpu[at];
}
template <Space space>
[[gnu::always_inline]] inline void note(Warp &warp, int lane, uint64_t address, size_t size, bool writes,
                                        bool is_atomic) {
  Block &block = *warp.block;
  const int who = lane < 0 ? OF_WARP + warp.number : warp.number * LANES + lane;
  const auto races = [&](const Access &with) {
    const bool other_block = space == GLOBAL && with.barrier && with.barrier < block.begun;
    if (!other_block && (with.barrier != block.barrier || with.who == who)) return false;
    if (other_block || with.who & ATOMIC) return !(with.who & ATOMIC && is_atomic);
    if (with.who & MANY) return true;
    const int other = with.who & OF_WARP ? with.who - OF_WARP : with.who / LANES;
    return other != warp.number || with.of_warp == warp.barriers;
  };
  const size_t bytes = space == SHARED ? CELL : 1;
  if (size < bytes) fail_plainly("single bytes of shared memory are not emulated");
  for (uint64_t at = address / bytes; at < (address + size) / bytes; ++at) {
    Cell &cell = cell_of<space>(block, at);
    if (space == SHARED && cell.write.barrier < block.begun && (!writes || is_atomic))
      fail_plainly("reads shared memory that nobody has written");
    if (races(cell.write) || (writes && races(cell.read))) fail_plainly("races with another thread in memory");
    Access &access = writes ? cell.write : cell.read;
    int now = is_atomic ? ATOMIC : who;
    if (!writes && access.barrier == block.barrier && access.who != who) {
      const int other = access.who & OF_WARP ? access.who - OF_WARP : access.who / LANES;
      now = access.who < MANY && other == warp.number ? OF_WARP + warp.number : MANY;
    }
    access = {block.barrier, warp.barriers, now};
  }
}

// Return where a lane's memory is; lane -1 for all of a warp.
[[gnu::always_inline]] inline char *find(Warp &warp, const Instruction &of, int lane, uint64_t address, size_t size,
                                         size_t alignment, bool writes, bool is_atomic = false) {
  Block &block = *warp.block;
  const Launch &launch = block.launch;
  if (address % alignment) fail_access("accesses ", size, " bytes at an address not a multiple of ", alignment);
  Space space = of.space;
  if (space == GENERIC) {
    space = address >= WINDOW ? SHARED : GLOBAL;
    if (space == SHARED) address -= WINDOW;
  }
  if (space == GLOBAL) {
    if (address < warp.known.start || address + size > warp.known.end) {
      auto range = std::upper_bound(launch.memory.begin(), launch.memory.end(), address,
                                    [](uint64_t wanted, const Range &each) { return wanted < each.start; });
      if (range-- == launch.memory.begin()) fail_access("accesses ", size, " bytes at no memory of the GPU");
      if (address + size > range->end)
        fail_access("accesses ", size, " bytes at byte ", address - range->start, " of an allocation of ",
                    range->end - range->start);
      warp.known = *range;
    }
    if (launch.watches) note<GLOBAL>(warp, lane, address, size, writes, is_atomic);
    return reinterpret_cast<char *>(address);
  }
  if (space == SHARED) {
    if (address + size > block.shared.size())
      fail_access("accesses byte ", address, " of ", block.shared.size(), " in shared memory");
    note<SHARED>(warp, lane, address, size, writes, is_atomic);
    return block.shared.data() + address;
  }
  if (space == LOCAL) {
    if (address + size > launch.kernel.local) fail_access("accesses local memory that it does not have");
    return warp.local.data() + launch.kernel.local * size_t(lane) + address;
  }
  return const_cast<char *>(launch.parameters.data()) + address;
}

// Count an access of a warp to the GPU's memory, and the sectors of 32 bytes that it touches.
void count(Warp &warp, const Instruction &of, uint32_t mask, size_t size) {
  static const bool wanted = getenv("EMULATOR_COUNTS") != nullptr;
  if (!wanted || of.space != GLOBAL) return;
  std::array<uint64_t, LANES> sectors;
  size_t number = 0;
  each(mask & warp.mask,
       [&](int lane) { sectors[number++] = (warp.lanes<uint64_t>(of.a)[lane] + uint64_t(of.number)) / 32; });
  std::sort(sectors.begin(), sectors.begin() + number);
  warp.block->counts.of[SECTORS] += uint64_t(std::unique(sectors.begin(), sectors.begin() + number) - sectors.begin());
  warp.block->counts.of[BYTES] += number * size;
}

uint64_t address_of(Warp &warp, const Instruction &of, int lane) {
  const uint64_t base = of.a.at < 0      ? 0
                        : of.a.size == 8 ? warp.lanes<uint64_t>(of.a)[lane]
                                         : warp.lanes<uint32_t>(of.a)[lane];
  return base + uint64_t(of.number);
}
template <class T, size_t PARTS> void load_parts(Warp &warp, const Instruction &of, uint32_t mask) {
  constexpr size_t SIZE = sizeof(T) * PARTS;
  std::array<const char *, LANES> from;
  if (of.space == SHARED) {
    // Lanes that read the same address leave the same notes as two of them, so the others are not noted.
    std::array<std::pair<uint64_t, int>, LANES> readers{};
    each(mask, [&](int lane) {
      const uint64_t address = address_of(warp, of, lane);
      auto &[read, number] = readers[address / SIZE % LANES];
      if (read != address) read = address, number = 0;
      from[size_t(lane)] = ++number > 2 ? warp.block->shared.data() + address
                                        : find(warp, of, lane, address, SIZE, SIZE, false);
    });
  } else {
    const size_t alignment = of.space == PARAMETER ? 1 : SIZE;
    each(mask, [&](int lane) {
      from[size_t(lane)] = find(warp, of, lane, address_of(warp, of, lane), SIZE, alignment, false);
    });
  }
  for (size_t part = 0; part < PARTS; ++part) {
    const Operand to = of.parts[part];
    char *const place = warp.file.data() + to.at;
    if (to.size == int(sizeof(T))) {
      each(mask, [&from, place, part](int lane) {
        memcpy(place + size_t(lane) * sizeof(T), from[size_t(lane)] + part * sizeof(T), sizeof(T));
      });
      continue;
    }
    each(mask, [&](int lane) {
      T value;
      memcpy(&value, from[size_t(lane)] + part * sizeof(T), sizeof(T));
      put<T>(warp, to, lane, value);
    });
  }
}
template <class T> void load(Warp &warp, const Instruction &of, uint32_t mask) {
  count(warp, of, mask, sizeof(T) * of.parts.size());
  if (of.space == GLOBAL && of.parts.size() == 1 && of.parts[0].size == sizeof(T) && !warp.block->launch.watches) {
    const uint64_t *const addresses = warp.lanes<uint64_t>(of.a), offset = uint64_t(of.number);
    uint64_t least = ~0ull, most = 0, bits = 0;
    each(mask, [&](int lane) {
      const uint64_t address = addresses[lane] + offset;
      least = std::min(least, address), most = std::max(most, address), bits |= address;
    });
    if (least >= warp.known.start && most + sizeof(T) <= warp.known.end && bits % sizeof(T) == 0) {
      T *const to = warp.lanes<T>(of.parts[0]);
      return each(mask, [=](int lane) { to[lane] = *reinterpret_cast<const T *>(addresses[lane] + offset); });
    }
  }
  switch (of.parts.size()) {
    case 1: return load_parts<T, 1>(warp, of, mask);
    case 2: return load_parts<T, 2>(warp, of, mask);
    case 4: return load_parts<T, 4>(warp, of, mask);
    default: fail("loads a vector of another size");
  }
}
template <class T> void store(Warp &warp, const Instruction &of, uint32_t mask) {
  const size_t size = sizeof(T) * of.parts.size();
  count(warp, of, mask, size);
  if (of.parts.size() == 1)  // with a constant size
    return each(mask, [&](int lane) {
      char *to = find(warp, of, lane, address_of(warp, of, lane), sizeof(T), sizeof(T), true);
      const T value = get<T>(warp, of.parts[0], lane);
      memcpy(to, &value, sizeof(T));
    });
  each(mask, [&](int lane) {
    char *to = find(warp, of, lane, address_of(warp, of, lane), size, size, true);
    for (size_t part = 0; part < of.parts.size(); ++part) {
      const T value = get<T>(warp, of.parts[part], lane);
      memcpy(to + part * sizeof(T), &value, sizeof(T));
    }
  });
}
// atom and red: F gives the new number of the old one and the operands.
template <class F, class T> void atomic(Warp &warp, const Instruction &of, uint32_t mask) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  count(warp, of, mask, sizeof(T));
  warp.block->counts.of[ATOMICS] += uint64_t(__builtin_popcount(mask));
  each(mask, [&](int lane) {
    Bits *place =
        reinterpret_cast<Bits *>(find(warp, of, lane, address_of(warp, of, lane), sizeof(T), sizeof(T), true, true));
    const T b = get<T>(warp, of.b, lane), c = of.c.at < 0 ? T() : get<T>(warp, of.c, lane);
    Bits before = __atomic_load_n(place, __ATOMIC_RELAXED), after;
    T old;
    do {
      memcpy(&old, &before, sizeof old);
      const T value = F::of(old, b, c);
      memcpy(&after, &value, sizeof after);
    } while (!__atomic_compare_exchange_n(place, &before, after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    if (of.to.at >= 0) put<T>(warp, of.to, lane, old);
  });
}
template <class F> struct OfTwo {
  template <class T> static T of(T old, T b, T) { return F::of(old, b); }
};
OPERATION(CompareAndSwap, (T old, T b, T c), old == b ? c : old)

// ---- warps ---------------------------------------------------------------------------------------------------------

// shfl.sync.bfly within the whole warp: parts are the result and, if asked for, a predicate.
void shuffle(Warp &warp, const Instruction &of, uint32_t mask) {
  ++warp.barriers;
  uint32_t results[LANES];
  each(mask, [&](int lane) {
    const int from = lane ^ int(get<uint32_t>(warp, of.b, lane) & 31);
    if (get<uint32_t>(warp, of.c, lane) != LANES - 1 || !(mask >> from & 1))
      fail("shuffles from a lane that is not there");
    results[lane] = get<uint32_t>(warp, of.a, from);
  });
  each(mask, [&](int lane) { put<uint32_t>(warp, of.parts[0], lane, results[lane]); });
  if (of.parts.size() > 1) write_bits(warp, of.parts[1], mask, mask);
}
void meet(Warp &warp, const Instruction &, uint32_t) { ++warp.barriers; }  // bar.warp.sync

// Fragments of wmma. PTX does not say which element of a matrix is where, so any place is right that only depends on
// what a program must know: the operand, its layout and type. A lane has eight elements in turn, of float16 twice.
constexpr int SIDE = 16, EACH = SIDE * SIDE / LANES;
int place_of(int row, int column, bool by_columns) {
  return by_columns ? (column * SIDE + row) ^ 5 : row * SIDE + column;
}
// b is the stride, c whether it is stored by columns.
void load_fragment(Warp &warp, const Instruction &of, uint32_t mask) {
  if (mask != ALL) fail("wmma in a part of a warp");
  const uint64_t from = address_of(warp, of, 0), stride = warp.lanes<uint32_t>(of.b)[0];
  const bool by_columns = warp.lanes<uint32_t>(of.c)[0];
  const size_t alignment = 4 * of.parts.size();  // The size of a lane's fragment, see "Matrix Storage for WMMA".
  for (int line = 0; line < SIDE; ++line) {  // rows, or columns
    const char *memory = find(warp, of, -1, from + 2 * stride * uint64_t(line), 2 * SIDE, alignment, false);
    for (int along = 0; along < SIDE; ++along) {
      const int place = by_columns ? place_of(along, line, true) : place_of(line, along, false), lane = place / EACH,
                slot = place % EACH;
      for (size_t copy = 0; copy < of.parts.size() / 4; ++copy)
        memcpy(warp.file.data() + of.parts[size_t(slot / 2) + 4 * copy].at + 4 * lane + slot % 2 * 2,
               memory + 2 * along, 2);
    }
  }
  if (of.space == GLOBAL) warp.block->counts.of[BYTES] += 2 * SIDE * SIDE, warp.block->counts.of[SECTORS] += SIDE;
}
void store_fragment(Warp &warp, const Instruction &of, uint32_t mask) {
  if (mask != ALL || warp.lanes<uint32_t>(of.c)[0]) fail("wmma in a part of a warp, or stored by columns");
  const uint64_t to = address_of(warp, of, 0), stride = warp.lanes<uint32_t>(of.b)[0];
  for (int row = 0; row < SIDE; ++row) {
    char *memory = find(warp, of, -1, to + 4 * stride * uint64_t(row), 4 * SIDE, 2 * SIDE, true);
    for (int column = 0; column < SIDE; ++column) {
      const int place = place_of(row, column, false);
      memcpy(memory + 4 * column, warp.lanes<float>(of.parts[size_t(place % EACH)]) + place / EACH, 4);
    }
  }
}
// parts: 8 results, the left operand, the right one, 8 summands. number: bits: left by columns, right by columns.
template <class T> void multiply(Warp &warp, const Instruction &of, uint32_t mask) {
  if (mask != ALL) fail("wmma in a part of a warp");
  const size_t size = (of.parts.size() - 2 * EACH) / 2;
  float left[SIDE][SIDE], right[SIDE][SIDE];
  for (int row = 0; row < SIDE; ++row)
    for (int column = 0; column < SIDE; ++column)
      for (bool is_right : {false, true}) {
        const int place = place_of(row, column, of.number >> is_right & 1), slot = place % EACH;
        T value;
        memcpy(&value,
               warp.file.data() + of.parts[EACH + is_right * size + size_t(slot / 2)].at + 4 * (place / EACH) +
                   slot % 2 * 2,
               2);
        (is_right ? right : left)[row][column] = known(value);
      }
  for (int row = 0; row < SIDE; ++row) {
    float sums[SIDE];
    for (int column = 0; column < SIDE; ++column) {
      const int place = place_of(row, column, false);
      sums[column] = warp.lanes<float>(of.parts[EACH + 2 * size + size_t(place % EACH)])[place / EACH];
    }
    for (int k = 0; k < SIDE; ++k)
      for (int column = 0; column < SIDE; ++column) sums[column] += left[row][k] * right[k][column];
    for (int column = 0; column < SIDE; ++column) {
      const int place = place_of(row, column, false);
      warp.lanes<float>(of.parts[size_t(place % EACH)])[place / EACH] = sums[column];
    }
  }
}

}  // namespace ptx
