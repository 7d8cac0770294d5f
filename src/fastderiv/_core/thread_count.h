/* thread_count.h: how many threads a call may use, and who said so; included by threads.pyx only.
 *
 * threadpoolctl knows the library by the two exported functions. */
#ifndef FASTDERIV_THREAD_COUNT_H
#define FASTDERIV_THREAD_COUNT_H
#include "relaxed.h"

enum { BY_DEFAULT, BY_CALL, BY_ENVIRONMENT };
static relaxed num_threads = 1, chosen = BY_DEFAULT;

#ifdef _WIN32
# define EXPORTED __declspec(dllexport)
#else
# define EXPORTED __attribute__((visibility("default")))
#endif
EXPORTED int fastderiv_get_num_threads(void);
EXPORTED void fastderiv_set_num_threads(int n);

int fastderiv_get_num_threads(void) { return get(&num_threads); }

/* Does nothing if n < 1. */
void fastderiv_set_num_threads(int n)
{
    if (n < 1) return;
    put(&num_threads, n);
    put(&chosen, BY_CALL);
}

#endif
