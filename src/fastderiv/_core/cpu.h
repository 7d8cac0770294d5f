/* cpu.h: which compiler built this, and which x86-64 level this CPU and its system support.
 *
 * FASTDERIV_FLAGS and FASTDERIV_LEVELS come from setup.py. */
#ifndef FASTDERIV_CPU_H
#define FASTDERIV_CPU_H

#if defined(_MSC_VER) && !defined(__clang__)
# define FASTDERIV_STR2(x)  #x
# define FASTDERIV_STR(x)   FASTDERIV_STR2(x)
# define FASTDERIV_COMPILER "MSVC " FASTDERIV_STR(_MSC_VER)
#elif defined(__clang__)
# define FASTDERIV_COMPILER "Clang " __clang_version__
#elif defined(__GNUC__)
# define FASTDERIV_COMPILER "GCC " __VERSION__
#else
# define FASTDERIV_COMPILER "unknown"
#endif

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
# include <cpuid.h>

/* Whether the CPU has LZCNT, MOVBE and F16C: -march=x86-64-v3 permits them, and not every
 * __builtin_cpu_supports knows them. */
static int lzcnt_movbe_f16c(void)
{
    unsigned a, b, c, d, e;
    return __get_cpuid(1, &a, &b, &c, &d) && c >> 22 & 1 && c >> 29 & 1 &&
           __get_cpuid(0x80000001, &a, &b, &e, &d) && e >> 5 & 1;
}
#endif

/* 1, 3 or 4: the highest level of x86-64 whose kernels may run; 1 on other CPUs. */
#if defined(_MSC_VER) && defined(__clang__) && defined(__x86_64__)
/* clang-cl: its __builtin_cpu_supports needs a library that is not linked there. */
static int cpu_level(void)
{
    const unsigned osxsave_avx_fma = 0x18001000, avx2_bmi_bmi2 = 0x128;
    const unsigned f_dq_cd_bw_vl = 0xd0030000;
    unsigned a, b, c, d, saved, high;
    if (!lzcnt_movbe_f16c() || !__get_cpuid(1, &a, &b, &c, &d)) return 1;
    if ((c & osxsave_avx_fma) != osxsave_avx_fma) return 1;
    __asm__ __volatile__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if ((saved & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 1;
    if ((b & avx2_bmi_bmi2) != avx2_bmi_bmi2) return 1;
    return (saved & 0xe0) == 0xe0 && (b & f_dq_cd_bw_vl) == f_dq_cd_bw_vl ? 4 : 3;
}
#elif (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
/* __builtin_cpu_supports checks XGETBV too: the operating system must save the registers. */
static int cpu_level(void)
{
    __builtin_cpu_init();
    if (!lzcnt_movbe_f16c()) return 1;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        return 4;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"))
        return 3;
    return 1;
}
#else
static int cpu_level(void) { return 1; }
#endif

#endif
