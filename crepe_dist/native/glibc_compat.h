// Symbol versions for old C libraries.
//
// The kernels must load with glibc 2.28 (manylinux_2_28, PEP 600), even if a later glibc compiled them. glibc 2.29 has
// a second version of exp, log and pow, which differs only in the reporting of errors. These assembler directives
// select the first version (manual of GNU as, ".symver").
#pragma once

#include <features.h>

#if defined(__GLIBC__) && defined(__x86_64__)
asm(".symver exp, exp@GLIBC_2.2.5\n.symver log, log@GLIBC_2.2.5\n.symver pow, pow@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
asm(".symver exp, exp@GLIBC_2.17\n.symver log, log@GLIBC_2.17\n.symver pow, pow@GLIBC_2.17");
#endif
