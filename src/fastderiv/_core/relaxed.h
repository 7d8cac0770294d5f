/* relaxed.h: a number that one thread writes and others see some time later, in no order relative
 * to other memory. */
#ifndef FASTDERIV_RELAXED_H
#define FASTDERIV_RELAXED_H

#if defined(__GNUC__) || defined(__clang__)
typedef int relaxed;
static inline int get(const relaxed *number) { return __atomic_load_n(number, __ATOMIC_RELAXED); }
static inline void put(relaxed *number, int to) { __atomic_store_n(number, to, __ATOMIC_RELAXED); }
#else
# include <intrin.h>
typedef volatile long relaxed;
static inline int get(const relaxed *number)
{
    return __iso_volatile_load32((const volatile __int32 *)number);
}
static inline void put(relaxed *number, int to)
{
    __iso_volatile_store32((volatile __int32 *)number, to);
}
#endif

#endif
