/* scratch.h: memory that the thread pool lends to a task. */
#ifndef FASTDERIV_SCRATCH_H
#define FASTDERIV_SCRATCH_H
#include <stdint.h>
#include <stdlib.h>
#ifdef __linux__
# include <sys/mman.h>
#endif

/* malloc; a large piece is put into large pages where the system has them, as NumPy asks for its
 * arrays, so that there are fewer page faults.  Returns NULL if there is no memory.  free() gives
 * it back. */
static void *scratch_memory(size_t size)
{
    void *p = malloc(size);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (p && size >= (size_t)1 << 22) {
        const uintptr_t start = ((uintptr_t)p + 4095) & ~(uintptr_t)4095;
        madvise((void *)start, (uintptr_t)p + size - start, MADV_HUGEPAGE);
    }
#endif
    return p;
}

#endif
