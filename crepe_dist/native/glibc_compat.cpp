// Functions that compilers call and the C++ library of GCC 8 lacks; see glibc_compat.h. Hidden: others have the library's.

#include <exception>
#include <new>

extern "C" {

[[noreturn, gnu::visibility("hidden")]] void throw_bad_array_new_length() asm("_ZSt28__throw_bad_array_new_lengthv");
[[noreturn, gnu::visibility("hidden")]] void call_terminate(void*) asm("__cxa_call_terminate");

// Called from GCC 11 on, for vectors that are too long.
void throw_bad_array_new_length() { throw std::bad_array_new_length(); }

// Called from GCC 14 on, for an exception where none may pass.
void call_terminate(void*) { std::terminate(); }

}  // extern "C"
