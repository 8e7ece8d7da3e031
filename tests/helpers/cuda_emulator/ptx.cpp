#include <sched.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>

#include "instructions.h"
#include "parser.h"

namespace ptx {

// Take the group that is least far; those at one place are one.
void Warp::choose() {
  if (mask) groups.push_back({at, mask, false});
  std::sort(groups.begin(), groups.end(), [](const Group &a, const Group &b) { return a.at < b.at; });
  for (size_t i = 1; i < groups.size();) {
    if (groups[i].at == groups[i - 1].at) {
      groups[i - 1] = {groups[i].at, groups[i].mask | groups[i - 1].mask, groups[i].waits && groups[i - 1].waits};
      groups.erase(groups.begin() + long(i));
    } else {
      ++i;
    }
  }
  auto next = std::find_if(groups.begin(), groups.end(), [](const Group &group) { return !group.waits; });
  if (next == groups.end() && groups.size() == 1) next = groups.begin();
  if (next == groups.end()) fail("waits for lanes of its warp that wait elsewhere");
  at = next->at;
  mask = next->mask;
  groups.erase(next);
  stop = std::numeric_limits<int>::max();
  for (const Group &group : groups)
    if (group.at > at) stop = std::min(stop, group.at);
}

// Compute until a barrier of the block, or the end.
void Warp::run() {
  const std::vector<Instruction> &code = block->launch.kernel.code;
  at_barrier = false;
  uint64_t done = 0;
  try {
    while (live) {
      const Instruction &next = code[size_t(at)];
      ++done;
      uint32_t here = mask;
      if (next.guard.at >= 0) here &= next.negated ? ~*lanes<uint32_t>(next.guard) : *lanes<uint32_t>(next.guard);
      if (next.kind == COMPUTES) {
        if (here) next.run(*this, next, here);
        if (++at >= stop) choose();
      } else if (next.kind == BRANCHES) {
        if (here == mask) {
          at = next.target;
        } else {
          ++at;
          if (here) groups.push_back({next.target, here, false});
          mask &= ~here;
        }
        if (!groups.empty()) choose();
      } else if (next.kind == RETURNS) {
        live &= ~here;
        mask &= ~here;
        ++at;
        if (live && (!mask || !groups.empty())) choose();
      } else {
        const uint32_t wanted =
            next.kind == WAITS_FOR_WARP ? lanes<uint32_t>(next.members)[__builtin_ctz(here)] & live : live;
        if ((wanted & here) != wanted) {
          groups.push_back({at, mask, true});
          mask = 0;
          choose();
        } else if (next.kind == WAITS_FOR_WARP) {
          next.run(*this, next, here);
          if (++at >= stop) choose();
        } else if (live != all) {
          fail("waits for threads that have returned");
        } else {
          ++at;
          at_barrier = true;
          break;
        }
      }
    }
  } catch (Error &error) {
    const Launch &of = block->launch;
    const auto [x, y, z] = block->number;
    fail(joined(of.kernel.name, ": block (", x, ", ", y, ", ", z, "), threads ", LANES * number, " to ",
                LANES * number + LANES - 1, ": ", error.what(), ": ", code[size_t(at)].text),
         error.is_address);
  }
  block->counts.of[INSTRUCTIONS] += done;
}

Block::Block(const Launch &of) : launch(of) {
  const Kernel &kernel = of.kernel;
  const size_t threads = size_t(of.block[0]) * of.block[1] * of.block[2];
  shared.resize(kernel.shared + of.shared);
  cells.resize(shared.size() / CELL);
  warps.resize((threads + LANES - 1) / LANES);
  for (size_t each = 0; each < warps.size(); ++each) {
    Warp &warp = warps[each];
    warp.block = this;
    warp.number = int(each);
    warp.file.resize(kernel.file);
    warp.local.resize(kernel.local * LANES);
    for (auto &[at, constant] : kernel.constants)
      for (int lane = 0; lane < LANES; ++lane)
        memcpy(warp.file.data() + at + size_t(lane) * constant[1], &constant[0], constant[1] ? constant[1] : 4);
    for (size_t lane = 0; lane < LANES; ++lane) {
      size_t thread = each * LANES + lane;
      for (size_t axis = 0; axis < 3; thread /= of.block[axis++]) {
        warp.lanes<uint32_t>(kernel.specials[axis])[lane] = uint32_t(thread % of.block[axis]);
        warp.lanes<uint32_t>(kernel.specials[3 + axis])[lane] = of.block[axis];
        warp.lanes<uint32_t>(kernel.specials[9 + axis])[lane] = of.grid[axis];
      }
    }
  }
}

void Block::run() {
  begun = ++barrier;
  memset(shared.data(), 0xA5, shared.size());
  const size_t threads = size_t(launch.block[0]) * launch.block[1] * launch.block[2];
  std::vector<Warp *> ready;
  for (Warp &warp : warps) {
    const size_t rest = threads - size_t(warp.number) * LANES;
    warp.all = warp.live = warp.mask = rest >= LANES ? ALL : (1u << rest) - 1;
    warp.at = 0;
    warp.stop = std::numeric_limits<int>::max();
    warp.groups.clear();
    for (size_t axis = 0; axis < 3; ++axis)
      for (int lane = 0; lane < LANES; ++lane)
        warp.lanes<uint32_t>(launch.kernel.specials[6 + axis])[lane] = number[axis];
    ready.push_back(&warp);
  }
  while (!ready.empty()) {
    std::shuffle(ready.begin(), ready.end(), random);
    for (Warp *warp : ready) warp->run();
    const auto waiting = std::count_if(warps.begin(), warps.end(), [](Warp &warp) { return warp.at_barrier; });
    if (waiting && waiting < long(warps.size()))
      fail(launch.kernel.name + ": threads wait at __syncthreads for others that have returned");
    if (!waiting) break;
    ++barrier;
  }
}

static std::mutex of_counts;
static std::map<std::string, Counts> totals;

Module parse(const std::string &text) { return Parser(text).module(); }

void run(const Launch &launch) {
  const Kernel &kernel = launch.kernel;
  if (size_t(launch.block[0]) * launch.block[1] * launch.block[2] > kernel.most_threads)
    fail(kernel.name + ": more threads than its launch bounds");
  const uint64_t blocks = uint64_t(launch.grid[0]) * launch.grid[1] * launch.grid[2];
  std::atomic<uint64_t> next{0};
  std::unique_ptr<Error> error;
  std::mutex mutex;
  Counts total;
  const auto work = [&] {
    Block block(launch);
    try {
      for (uint64_t number; (number = next++) < blocks;) {
        block.number = {unsigned(number % launch.grid[0]), unsigned(number / launch.grid[0] % launch.grid[1]),
                        unsigned(number / launch.grid[0] / launch.grid[1])};
        block.random.seed(unsigned(number + 1));
        block.run();
      }
    } catch (const Error &found) {
      next = blocks;
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::make_unique<Error>(found);
    }
    std::lock_guard<std::mutex> lock(mutex);
    total += block.counts;
  };
  cpu_set_t set;
  const uint64_t cores = launch.watches || sched_getaffinity(0, sizeof set, &set) ? 1 : uint64_t(CPU_COUNT(&set));
  std::vector<std::thread> others;
  for (uint64_t other = 1; other < std::min(cores, blocks); ++other) others.emplace_back(work);
  work();
  for (std::thread &other : others) other.join();
  if (error) throw *error;
  std::lock_guard<std::mutex> lock(of_counts);
  ++total.of[LAUNCHES];
  totals[kernel.name] += total;
}

std::string counted() {
  static const char *const names[] = {"launches", "instructions", "bytes", "sectors", "atomics"};
  std::lock_guard<std::mutex> lock(of_counts);
  std::string text;
  for (auto &[kernel, counts] : totals) {
    text += joined(text.empty() ? "{" : ", ", '"', kernel, "\": ");
    for (int each = 0; each < COUNTED; ++each)
      text += joined(each ? ", " : "{", '"', names[each], "\": ", counts.of[each]);
    text += "}";
  }
  return text.empty() ? "{}" : text + "}";
}

}  // namespace ptx
