// From the text of a program to instructions; see ptx.h.
#pragma once

#include <cctype>
#include <sstream>

#include "instructions.h"

namespace ptx {
using Words = std::vector<std::string>;

std::string trimmed(const std::string &text) {
  const size_t start = text.find_first_not_of(" \t\n\r");
  return start == std::string::npos ? "" : text.substr(start, text.find_last_not_of(" \t\n\r") - start + 1);
}
// Split at a separator that is in no brackets.
Words split(const std::string &text, char separator) {
  Words words;
  std::string word;
  int depth = 0;
  for (char each : text) {
    depth += (each == '{' || each == '[') - (each == '}' || each == ']');
    if (each == separator && !depth) {
      words.push_back(trimmed(word));
      word.clear();
    } else {
      word += each;
    }
  }
  if (!trimmed(word).empty()) words.push_back(trimmed(word));
  return words;
}
bool has(const Words &words, const std::string &wanted) {
  return std::find(words.begin(), words.end(), wanted) != words.end();
}
size_t bytes_of(const std::string &type) {  // u32, b64, …
  const int bits = atoi(type.c_str() + type.find_first_of("0123456789"));
  return size_t(bits) / 8;
}

// The instantiation of an instruction for a type.
template <class F> Run of_words(const std::string &type, F choose) {
  if (type == "u32" || type == "b32") return choose(uint32_t());
  if (type == "s32") return choose(int32_t());
  if (type == "u64" || type == "b64") return choose(uint64_t());
  return type == "s64" ? choose(int64_t()) : nullptr;
}
template <class F> Run of_bits(const std::string &type, F choose) {
  if (type == "u16" || type == "b16") return choose(uint16_t());
  return type == "s16" ? choose(int16_t()) : of_words(type, choose);
}
template <class F> Run of_floats(const std::string &type, F choose) {
  return type == "f32" ? choose(float()) : type == "f64" ? choose(double()) : nullptr;
}
template <class F> Run of_numbers(const std::string &type, F choose) {
  const Run found = of_floats(type, choose);
  return found ? found : of_bits(type, choose);
}
template <class F> Run of_all(const std::string &type, F choose) {
  if (type == "u8" || type == "b8") return choose(uint8_t());
  return type == "s8" ? choose(int8_t()) : of_numbers(type, choose);
}
template <class F> Run of_conversion(const std::string &type, F choose) {
  return type == "f16" ? choose(Half()) : type == "bf16" ? choose(Brain()) : of_all(type, choose);
}
// clang-format off
#define TYPED(types, function) types(type, [](auto zero) -> Run { using T = decltype(zero); return function; })
// clang-format on

template <int WHICH = 0> Run comparison(const std::string &which, const std::string &type) {
  if (which == COMPARISONS[WHICH]) return TYPED(of_numbers, (compare<T, WHICH, false>));
  if (which == COMPARISONS[WHICH] + std::string("u")) return TYPED(of_floats, (compare<T, WHICH, true>));
  if constexpr (WHICH < 5) return comparison<WHICH + 1>(which, type);
  return nullptr;
}
template <class S> Run conversion_from(const std::string &type) {
  return of_conversion(type, [](auto zero) -> Run { return convert<decltype(zero), S>; });
}
Run atomic_operation(const Words &words, const std::string &type) {
  if (has(words, "add")) return TYPED(of_words, (atomic<OfTwo<Add>, T>));
  if (has(words, "min")) return TYPED(of_words, (atomic<OfTwo<Least>, T>));
  if (has(words, "max")) return TYPED(of_words, (atomic<OfTwo<Largest>, T>));
  if (has(words, "cas")) return TYPED(of_words, (atomic<CompareAndSwap, T>));
  return nullptr;
}

// Instructions whose operands are all of their type: (result, a, b, c).
Run plain(const std::string &name, const std::string &type) {
  const bool is_predicate = type == "pred";
  if (name == "add") return TYPED(of_numbers, (compute<Add, T, T, T>));
  if (name == "sub") return TYPED(of_numbers, (compute<Subtract, T, T, T>));
  if (name == "mul") return TYPED(of_numbers, (compute<Multiply, T, T, T>));
  if (name == "div") return TYPED(of_numbers, (compute<Divide, T, T, T>));
  if (name == "rem") return TYPED(of_bits, (compute<Remainder, T, T, T>));
  if (name == "min") return TYPED(of_numbers, (compute<Least, T, T, T>));
  if (name == "max") return TYPED(of_numbers, (compute<Largest, T, T, T>));
  if (name == "abs") return TYPED(of_numbers, (compute<Size, T, T>));
  if (name == "neg") return TYPED(of_numbers, (compute<Negate, T, T>));
  if (name == "sqrt") return TYPED(of_floats, (compute<Root, T, T>));
  if (name == "fma") return TYPED(of_floats, (compute<Fused, T, T, T, T>));
  if (name == "mad") return TYPED(of_bits, (compute<MultiplyAdd, T, T, T, T>));
  if (name == "and") return is_predicate ? predicates<And> : TYPED(of_bits, (compute<And, T, T, T>));
  if (name == "or") return is_predicate ? predicates<Or> : TYPED(of_bits, (compute<Or, T, T, T>));
  if (name == "xor") return is_predicate ? predicates<Xor> : TYPED(of_bits, (compute<Xor, T, T, T>));
  if (name == "not") return is_predicate ? predicates<Xor> : TYPED(of_bits, (compute<Not, T, T>));
  if (name == "mov") return is_predicate ? predicates<And> : TYPED(of_numbers, (compute<Same, T, T>));
  return nullptr;
}

class Parser {
 public:
  explicit Parser(const std::string &text) : text_(without_comments(text)) {}

  Module module() {
    while (at_ < text_.size()) {
      if (isspace(static_cast<unsigned char>(text_[at_]))) {
        ++at_;
        continue;
      }
      const std::string line = text_.substr(at_, text_.find('\n', at_) - at_);
      if (line.rfind(".version", 0) == 0 || line.rfind(".target", 0) == 0 || line.rfind(".address_size", 0) == 0) {
        if (line.rfind(".target", 0) == 0) module_.target = atoi(line.c_str() + line.find("sm_") + 3);
        at_ += line.size();
      } else if (line.find(".entry") != std::string::npos) {
        entry();
      } else if (line[0] == '.') {
        const std::string statement = until(";");
        if (statement.find(".extern .shared") == 0) dynamic_ = name_of(statement);
      } else {
        fail("no PTX: " + line.substr(0, 80));
      }
    }
    return module_;
  }

 private:
  std::string text_, dynamic_;
  size_t at_ = 0;
  Module module_;
  Kernel *kernel_ = nullptr;
  std::map<std::string, Operand> registers_;
  std::map<std::string, Variable> variables_;
  std::map<std::string, int> labels_;
  std::map<std::pair<uint64_t, size_t>, Operand> constants_;

  static std::string without_comments(const std::string &text) {
    std::string result;
    std::istringstream lines(text.c_str());
    for (std::string line; std::getline(lines, line);) result += line.substr(0, line.find("//")) + "\n";
    return result;
  }
  std::string until(const std::string &ends) {
    const size_t start = at_, end = text_.find_first_of(ends, at_);
    if (end == std::string::npos) fail("the program ends early");
    at_ = end + 1;
    return trimmed(text_.substr(start, end - start));
  }
  // The name at the end of a declaration, with its size in brackets or without.
  static std::string name_of(const std::string &declaration) {
    const std::string before = trimmed(declaration.substr(0, declaration.find('[')));
    return before.substr(before.find_last_of(" \t") + 1);
  }
  // Place and bytes of what a declaration adds: .param .u64 name, .shared .align 4 .b8 name[4096]
  static Parameter sized(const std::string &declaration, size_t after) {
    size_t size = 0, alignment = 0;
    std::istringstream words(declaration);
    for (std::string word; words >> word;) {
      if (word == ".align") words >> alignment;
      else if (word[0] == '.' && word.size() > 2 && word.size() < 5 && isdigit(static_cast<unsigned char>(word[2])))
        size = bytes_of(word);
    }
    const size_t bracket = declaration.find('[');
    if (!alignment) alignment = size;
    if (bracket != std::string::npos) size *= size_t(atol(declaration.c_str() + bracket + 1));
    return {(after + alignment - 1) / alignment * alignment, size};
  }
  Operand allocate(size_t size) {
    const size_t at = kernel_->file;
    kernel_->file += size ? size * LANES : 64;
    return {int(at), int(size)};
  }

  void entry() {
    until("y");  // .entry
    const std::string name = until("(");
    kernel_ = &module_.kernels[name];
    kernel_->name = name;
    registers_.clear(), variables_.clear(), labels_.clear(), constants_.clear();
    for (size_t each = 0; each < 12; ++each) {
      kernel_->specials[each] = allocate(4);
      static const char *const names[] = {"%tid.", "%ntid.", "%ctaid.", "%nctaid."};
      registers_[names[each / 3] + std::string(1, "xyz"[each % 3])] = kernel_->specials[each];
    }
    for (const std::string &declaration : split(until(")"), ',')) {
      const Parameter found = sized(declaration, kernel_->parameter_bytes);
      kernel_->parameters.push_back(found);
      kernel_->parameter_bytes = found.at + found.size;
      variables_[name_of(declaration)] = {PARAMETER, int64_t(found.at)};
    }
    const std::string limits = until("{");
    const size_t most = limits.find(".maxntid");
    if (most != std::string::npos) kernel_->most_threads = size_t(atol(limits.c_str() + most + 8));
    body();
    for (Instruction &each : kernel_->code)
      if (each.kind == BRANCHES) each.target = labels_.at(each.text.substr(each.text.find('$')));
    kernel_->code.emplace_back().kind = RETURNS;
  }
  void body() {
    std::string statement;
    int scopes = 1, braces = 0;
    for (; scopes; ++at_) {
      const char next = text_.at(at_);
      const bool begins = trimmed(statement).empty();
      if (next == '{' && begins) {
        ++scopes;
      } else if (next == '}' && begins) {
        --scopes;
      } else if (next == ':' && !braces) {
        labels_[trimmed(statement)] = int(kernel_->code.size());
        statement.clear();
      } else if (next == ';') {
        declare_or_add(trimmed(statement));
        statement.clear();
      } else {
        braces += (next == '{') - (next == '}');
        statement += next;
      }
    }
  }
  void declare_or_add(const std::string &statement) {
    if (statement.rfind(".pragma", 0) == 0) return;
    if (statement.rfind(".reg", 0) == 0) {
      std::istringstream words(statement);
      std::string type, names;
      words >> type >> type;
      std::getline(words, names);
      const size_t size = type == ".pred" ? 0 : bytes_of(type);
      for (const std::string &name : split(names, ',')) {
        const size_t bracket = name.find('<');
        const std::string stem = name.substr(0, bracket);
        if (bracket == std::string::npos) registers_[name] = allocate(size);
        else
          for (int each = 0; each < atoi(name.c_str() + bracket + 1); ++each)
            registers_[stem + std::to_string(each)] = allocate(size);
      }
    } else if (statement.rfind(".shared", 0) == 0 || statement.rfind(".local", 0) == 0) {
      const bool is_shared = statement[1] == 's';
      size_t &end = is_shared ? kernel_->shared : kernel_->local;
      const Parameter found = sized(statement, end);
      end = found.at + found.size;
      variables_[name_of(statement)] = {is_shared ? SHARED : LOCAL, int64_t(found.at)};
    } else {
      try {
        kernel_->code.push_back(instruction(statement));
      } catch (const Error &error) {
        fail(kernel_->name + ": " + statement + ": " + error.what());
      }
    }
  }

  // A register, or else a constant of that size.
  Operand operand(const std::string &text, size_t size, bool may_differ = false) {
    const auto found = registers_.find(text);
    if (found == registers_.end()) return constant(value_of(text), size);
    if (size_t(found->second.size) != size && !may_differ) fail("a register of another size");
    return found->second;
  }
  Operand constant(uint64_t value, size_t size) {
    if (!size) value = value ? ALL : 0;  // a predicate
    auto &made = constants_[{value, size}];
    if (made.at < 0) {
      made = allocate(size);
      kernel_->constants[made.at] = {value, size};
    }
    return made;
  }
  uint64_t value_of(const std::string &text) {
    if (text.rfind("0f", 0) == 0 || text.rfind("0d", 0) == 0) return std::stoull(text.substr(2), nullptr, 16);
    if (isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-')
      return text[0] == '-' ? uint64_t(std::stoll(text, nullptr, 0)) : std::stoull(text, nullptr, 0);
    return uint64_t(variable(text).at);
  }
  Variable variable(const std::string &name) {
    if (name == dynamic_ && !variables_.count(name)) {
      kernel_->shared = (kernel_->shared + 127) / 128 * 128;
      variables_[name] = {SHARED, int64_t(kernel_->shared)};
    }
    const auto found = variables_.find(name);
    if (found == variables_.end()) fail("unknown: " + name);
    return found->second;
  }
  // [register + number], [variable + number]
  void address(const std::string &text, Instruction &to) {
    const Words parts = split(text.substr(1, text.size() - 2), '+');
    if (registers_.count(parts[0])) to.a = registers_[parts[0]];
    else to.number = variable(parts[0]).at;
    if (parts.size() > 1) to.number += std::stoll(parts[1], nullptr, 0);
  }
  // The result and the operands that are given, with their bytes.
  void operands(Instruction &of, const Words &given, std::initializer_list<size_t> sizes) {
    Operand *const places[] = {&of.to, &of.a, &of.b, &of.c, &of.members};
    if (given.size() > sizes.size()) fail("it has more operands than are emulated");
    for (size_t each = 0; each < given.size(); ++each) *places[each] = operand(given[each], sizes.begin()[each]);
  }
  void add_parts(const std::string &text, size_t size, Instruction &to) {
    for (const std::string &each : text[0] == '{' ? split(text.substr(1, text.size() - 2), ',') : Words{text})
      to.parts.push_back(each == "_" ? allocate(size) : operand(each, size, true));
  }

  Instruction instruction(const std::string &statement) {
    Instruction made;
    made.text = statement;
    std::string rest = statement;
    if (rest[0] == '@') {
      const size_t space = rest.find_first_of(" \t");
      made.negated = rest[1] == '!';
      made.guard = operand(rest.substr(made.negated ? 2 : 1, space - (made.negated ? 2 : 1)), 0);
      rest = trimmed(rest.substr(space));
    }
    const size_t end = rest.find_first_of(" \t");
    Words words = split(rest.substr(0, end), '.'),
          given = end == std::string::npos ? Words{} : split(rest.substr(end), ',');
    const std::string name = words[0], type = words.back();
    const size_t size = type == "pred" || !isdigit(static_cast<unsigned char>(type.back())) ? 0 : bytes_of(type);
    for (auto [word, space] :
         {std::pair<const char *, Space>{"global", GLOBAL}, {"shared", SHARED}, {"local", LOCAL}, {"param", PARAMETER}})
      if (has(words, word)) made.space = space;
    for (const char *each : {"sat", "satfinite", "relu", "rz", "rm", "rp", "full", "approx", "ftz", "cc", "hi"})
      if (has(words, each) && name != "rcp" && rest.rfind("mul.hi", 0)) fail("its modifier is not emulated");
    if (name == "bra") {
      made.kind = BRANCHES;
    } else if (name == "ret" || name == "exit") {
      made.kind = RETURNS;
    } else if ((name == "bar" || name == "barrier") && has(words, "sync") && given.size() == 1) {
      made.kind = has(words, "warp") ? WAITS_FOR_WARP : WAITS_FOR_BLOCK;
      made.run = meet;
      made.members = operand(given[0], 4);
    } else if (name == "shfl" && has(words, "bfly")) {
      const Words results = split(given[0], '|');
      made.kind = WAITS_FOR_WARP;
      made.run = shuffle;
      made.parts.push_back(operand(results[0], 4));
      if (results.size() > 1) made.parts.push_back(operand(results[1], 0));
      made.a = operand(given[1], 4), made.b = operand(given[2], 4), made.c = operand(given[3], 4);
      made.members = operand(given[4], 4);
    } else if (name == "wmma") {
      wmma(words, given, made);
    } else if (name == "ld" || name == "st") {
      const bool is_load = name == "ld";
      made.run = is_load ? TYPED(of_all, (load<T>)) : TYPED(of_all, (store<T>));
      address(given[is_load ? 1 : 0], made);
      add_parts(given[is_load ? 0 : 1], size, made);
    } else if (name == "atom" || name == "red") {
      const size_t first = name == "atom";
      made.run = atomic_operation(words, type);
      if (first) made.to = operand(given[0], size);
      address(given[first], made);
      made.b = operand(given[first + 1], size);
      if (given.size() > first + 2) made.c = operand(given[first + 2], size);
    } else if (name == "cvta") {
      if (has(words, "local")) fail("generic addresses of local memory are not emulated");
      const uint64_t moved = made.space != SHARED ? 0 : has(words, "to") ? -WINDOW : WINDOW;
      made.run = compute<Add, uint64_t, uint64_t, uint64_t>;
      operands(made, given, {8, 8});
      made.b = constant(moved, 8);
    } else if (name == "cvt") {
      const std::string from = words.back(), to = words[words.size() - 2];
      const char *const modes[] = {"rni", "rzi", "rmi", "rpi"};  // in the order of Rounding
      const auto mode = std::find_if(modes, modes + NONE, [&](const char *each) { return has(words, each); });
      made.number = mode - modes;
      made.run = of_conversion(from, [&](auto zero) -> Run { return conversion_from<decltype(zero)>(to); });
      made.to = operand(given[0], bytes_of(to), true), made.a = operand(given[1], bytes_of(from), true);
    } else if (name == "setp") {
      made.run = comparison(words[1], type);
      operands(made, given, {0, size, size});
    } else if (name == "selp") {
      made.run = TYPED(of_numbers, (select<T>));
      operands(made, given, {size, size, size, 0});
    } else if (name == "shl" || name == "shr") {
      made.run = name == "shl" ? TYPED(of_bits, (compute<Left, T, T, uint32_t>))
                               : TYPED(of_bits, (compute<Right, T, T, uint32_t>));
      operands(made, given, {size, size, 4});
    } else if (has(words, "wide")) {
      made.run = name == "mul" ? TYPED(of_bits, (compute<WideProduct, Wide<T>, T, T>))
                               : TYPED(of_bits, (compute<WideProduct, Wide<T>, T, T, Wide<T>>));
      operands(made, given, {2 * size, size, size, 2 * size});
    } else if (name == "bfi") {
      made.run = TYPED(of_bits, (insert<T>));
      operands(made, given, {size, size, size, 4, 4});
    } else if (name == "mov" && (given[0][0] == '{' || given[1][0] == '{')) {
      const bool splits = given[0][0] == '{';
      made.run = splits ? move_parts<true> : move_parts<false>;
      add_parts(given[splits ? 0 : 1], 0, made);
      made.a = operand(given[splits ? 1 : 0], size);
    } else {
      made.run = name == "prmt"                                           ? permute
                 : name == "rcp" && has(words, "approx") && type == "f64" ? compute<Inverse, double, double>
                 : name == "mul" && has(words, "hi")                      ? TYPED(of_bits, (compute<High, T, T, T>))
                                                                          : plain(name, type);
      operands(made, given, {size, size, size, size});
    }
    if (made.kind == COMPUTES && !made.run) fail("this instruction is not emulated");
    return made;
  }

  void wmma(const Words &words, const Words &given, Instruction &made) {
    made.kind = WAITS_FOR_WARP;
    made.members = constant(ALL, 4);
    if (const bool is_load = words[1] == "load"; is_load || words[1] == "store") {
      made.run = is_load ? load_fragment : store_fragment;
      add_parts(given[is_load ? 0 : 1], 4, made);
      address(given[is_load ? 1 : 0], made);
      made.b = operand(given[2], 4);
      made.c = constant(has(words, "col"), 4);
    } else {
      const bool is_brain = has(words, "bf16");
      made.run = is_brain ? multiply<Brain> : multiply<Half>;
      for (const std::string &each : given) add_parts(each, 4, made);
      made.number = (words[4] == "col") + 2 * (words[5] == "col");
    }
  }
};

}  // namespace ptx
