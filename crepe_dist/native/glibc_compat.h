// Lets the kernels load with the C and C++ libraries of 2018, glibc 2.28 and those of GCC 8, though compiled with later
// ones. Version 2.29 of these functions differs from the one before only in how it reports errors.
#pragma once

#include <features.h>

#if defined(__GLIBC__) && defined(__x86_64__)
asm(".symver exp, exp@GLIBC_2.2.5\n.symver log, log@GLIBC_2.2.5\n.symver pow, pow@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
asm(".symver exp, exp@GLIBC_2.17\n.symver log, log@GLIBC_2.17\n.symver pow, pow@GLIBC_2.17");
#endif
