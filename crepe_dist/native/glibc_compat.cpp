// Functions that later compilers call and the C++ library of GCC 8 does not have. These functions let the kernels load
// with the C++ library of 2018; see glibc_compat.h for the C library. The functions are hidden: other libraries of the
// process must use the functions of the C++ library.

#include <exception>
#include <new>

extern "C" {

[[noreturn, gnu::visibility("hidden")]] void throw_bad_array_new_length() asm("_ZSt28__throw_bad_array_new_lengthv");
[[noreturn, gnu::visibility("hidden")]] void call_terminate(void*) asm("__cxa_call_terminate");

// GCC 11 and later call this function if the size of a new array is too large.
void throw_bad_array_new_length() { throw std::bad_array_new_length(); }

// GCC 14 and later call this function if an exception leaves a function that may not throw.
void call_terminate(void*) { std::terminate(); }

}  // extern "C"
