/* lanes.h: the numbers of the lanes of a vector, and their bits, for the tables of subset sums. */
#ifndef FASTDERIV_SUBSETS_LANES_H
#define FASTDERIV_SUBSETS_LANES_H
#include "simd.h"

/* VL = 2**LOG_VL: the sums of LOG_VL entries fill one vector. */
enum { LOG_VL = VL == 16 ? 4 : VL == 8 ? 3 : VL == 4 ? 2 : VL == 2 ? 1 : 0 };

static const real LANE[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* LANE_BIT[i][j] is bit i of j. */
static const real LANE_BIT[4][16] = {
    {0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1},
    {0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1},
    {0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1},
    {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1},
};

#endif
