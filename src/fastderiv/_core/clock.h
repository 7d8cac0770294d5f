/* clock.h: the time in seconds, to tell short spans from long ones. */
#ifndef FASTDERIV_CLOCK_H
#define FASTDERIV_CLOCK_H
#include <time.h>

static double now(void)
{
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
