/* fpstate.h: the floating-point control register of a thread: rounding mode, gradual underflow,
 * traps.
 *
 * fp_enter() puts the thread into the default state (rounding to nearest, gradual underflow, no
 * traps) and returns the state before; fp_leave() puts that back.  Both cost a few nanoseconds, and
 * write the register only if it differs from what is wanted.  Arithmetic between the two must be in
 * functions that the compiler calls through a pointer: it does not know that the register matters,
 * and may move other arithmetic across the two calls.
 */
#ifndef FASTDERIV_FPSTATE_H
#define FASTDERIV_FPSTATE_H

#if defined(__x86_64__) || defined(_M_X64) || defined(__SSE2__)
# include <stdint.h>
# include <xmmintrin.h>
/* MXCSR, and above it the control word of the x87 unit, in which BLAS and LAPACK compute norms.
 * FP_CONTROL leaves out the six lowest bits: they are flags that operations set, not control.
 * FP_X87 is what Linux and macOS start threads with: to nearest, 64 bits, no traps.  Compilers
 * without inline assembly leave that unit alone. */
typedef uint64_t fp_word;
# define FP_CONTROL 0xFFFF0000FFC0u
# if (defined(__GNUC__) || defined(__clang__)) && !defined(_WIN32)
#  define FP_X87 0x037Fu
/* fnclex clears the flags: a flag left set would trap as soon as the caller's control word unmasks
 * it. */
static inline uint16_t x87_get(void)
{
    uint16_t w;
    __asm__ __volatile__("fnstcw %0" : "=m"(w));
    return w;
}
static inline void x87_set(uint16_t w) { __asm__ __volatile__("fnclex\n\tfldcw %0" : : "m"(w)); }
# else
#  define FP_X87 0u
static inline uint16_t x87_get(void) { return 0; }
static inline void x87_set(uint16_t w) { (void)w; }
# endif
static inline fp_word fp_default(void) { return (uint64_t)FP_X87 << 32 | 0x1F80u; }
static inline fp_word fp_get(void) { return (uint64_t)x87_get() << 32 | _mm_getcsr(); }
static inline void fp_set(fp_word w)
{
    _mm_setcsr((unsigned)w);
    x87_set((uint16_t)(w >> 32));
}
static inline int fp_same(fp_word a, fp_word b) { return !((a ^ b) & FP_CONTROL); }
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
# include <stdint.h>
typedef uint64_t fp_word;
static inline fp_word fp_default(void) { return 0; }
static inline fp_word fp_get(void)
{
    fp_word w;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(w));
    return w;
}
static inline void fp_set(fp_word w) { __asm__ __volatile__("msr fpcr, %0" : : "r"(w) : "memory"); }
static inline int fp_same(fp_word a, fp_word b) { return a == b; }
#else
# include <fenv.h>
# include <string.h>
typedef fenv_t fp_word;
static inline fp_word fp_default(void) { return *FE_DFL_ENV; }
static inline fp_word fp_get(void)
{
    fp_word w;
    fegetenv(&w);
    return w;
}
static inline void fp_set(fp_word w) { fesetenv(&w); }
static inline int fp_same(fp_word a, fp_word b) { return !memcmp(&a, &b, sizeof a); }
#endif

/* Puts the thread into the state `wanted`; OUT the state before. */
static inline fp_word fp_change(fp_word wanted)
{
    const fp_word before = fp_get();
    if (!fp_same(before, wanted)) fp_set(wanted);
    return before;
}

static inline fp_word fp_enter(void) { return fp_change(fp_default()); }
static inline void fp_leave(fp_word before) { fp_change(before); }

#endif
