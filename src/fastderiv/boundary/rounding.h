/* The constants of docs/rounding.md; included by whatever makes a statement about exact numbers. */
#ifndef FASTDERIV_BOUNDARY_ROUNDING_H
#define FASTDERIV_BOUNDARY_ROUNDING_H

#include "simd.h"

#define ROUND 0x1p-53 /* u: half an ulp of numbers from 1 to 2 */

static const real WIDE = (real)3.5527136788005009e-15;   /* 32 u, rounding.md §3 */
static const real LEAST = (real)2.2250738585072014e-308; /* the smallest normal number */

#endif
