"""What this CPU can run and what this build holds."""

cdef extern from *:
    """
    #if defined(_MSC_VER) && !defined(__clang__)
    # define FASTDERIV_STR2(x) #x
    # define FASTDERIV_STR(x) FASTDERIV_STR2(x)
    # define FASTDERIV_COMPILER "MSVC " FASTDERIV_STR(_MSC_VER)
    #elif defined(__clang__)
    # define FASTDERIV_COMPILER "Clang " __clang_version__
    #elif defined(__GNUC__)
    # define FASTDERIV_COMPILER "GCC " __VERSION__
    #else
    # define FASTDERIV_COMPILER "unknown"
    #endif
    #if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
    #include <cpuid.h>
    /* what -march=x86-64-v3 permits and not every __builtin_cpu_supports knows */
    static int lzcnt_movbe_f16c(void)
    {
        unsigned a, b, c, d, e;
        return __get_cpuid(1, &a, &b, &c, &d) && c >> 22 & 1 && c >> 29 & 1 && __get_cpuid(0x80000001, &a, &b, &e, &d) && e >> 5 & 1;
    }
    #endif
    static int cpu_level(void)
    {
    #if defined(_MSC_VER) && defined(__clang__) && defined(__x86_64__)
        /* clang-cl, whose __builtin_cpu_supports needs a library that is not linked there */
        unsigned a, b, c, d, saved, high;
        if (!lzcnt_movbe_f16c() || !__get_cpuid(1, &a, &b, &c, &d) || (c & 0x18001000) != 0x18001000) return 1;    /* OSXSAVE, AVX, FMA */
        __asm__ __volatile__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
        if ((saved & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & 0x128) != 0x128) return 1;        /* AVX2, BMI, BMI2 */
        return (saved & 0xe0) == 0xe0 && (b & 0xd0030000) == 0xd0030000 ? 4 : 3;                                  /* F, DQ, CD, BW, VL */
    #elif (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
        __builtin_cpu_init();     /* checks XGETBV too: the operating system must save the registers */
        if (!lzcnt_movbe_f16c()) return 1;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) return 4;
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi")
            && __builtin_cpu_supports("bmi2")) return 3;
    #endif
        return 1;
    }
    """
    int cpu_level()
    const char *FASTDERIV_COMPILER
    const char *FASTDERIV_FLAGS
    const char *FASTDERIV_LEVELS

COMPILER = FASTDERIV_COMPILER.decode()
FLAGS = FASTDERIV_FLAGS.decode()
COMPILED = FASTDERIV_LEVELS.decode().split()        # tags in ascending order, or ["any"]
SUPPORTED = [tag for tag in COMPILED if tag == "any" or int(tag[1:]) <= cpu_level()]
