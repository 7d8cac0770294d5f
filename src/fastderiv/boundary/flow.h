/* A linear map of a layer's streams, each mid ± radius: docs/derivations.md §2.5, rounding.md §2.1.
 *
 * The streams of a layer lie in groups of GL units, CELL numbers for each: mid and radius of the
 * point's value and slope, then mid and radius of the ranges of value, slope and curvature.
 * Included by _deep_enclose.pxi. */
#ifndef FASTDERIV_BOUNDARY_FLOW_H
#define FASTDERIV_BOUNDARY_FLOW_H

#include "simd.h"

enum {
    STREAMS = 10,
    POINT = 4, /* the streams of a point, without ranges */
    CELL = STREAMS * GL,
    TOGETHER = VL == 8 ? 2 : 1 /* vectors of outputs: 32 or 16 registers hold all streams */
};

/* The weights from n inputs to some outputs, in panels as panels.h describes them. */
typedef struct {
    const real *w;
    const real *b;
    ptrdiff_t panel; /* the distance from one panel of GL outputs to the next */
    ptrdiff_t n;
    real k, tiny; /* a bias b is wrong by k |b|; each radius starts with tiny */
} FlowMap;

/* IN y, streams of n units; OUT z, of NV vectors of sums.  NP pairs of streams share every load of
 * w.  Pairs 0 and 2 are values and have the bias.  Mids are summed GL by GL, so that few roundings
 * meet a term. */
VINL void flow_block(const FlowMap *map, const real *y, real *z, const int NV, const int NP)
{
    const real *w = map->w;
    ptrdiff_t n = map->n;
    vf m[2][5], r[2][5], x[2], size[2];
    int i, p, v;
#define AT(s) (z + v / NS * CELL + (s) * GL + v % NS * VL)
    UNROLLED
    for (v = 0; v < NV; v++) {
        const vf bias = vload(map->b + v * VL);
        UNROLLED
        for (p = 0; p < NP; p++) {
            const int value = p == 0 || p == 2;
            vstore(AT(2 * p), value ? bias : vset1(0));
            r[v][p] = value ? vfma(vabs(bias), vset1(map->k), vset1(map->tiny)) : vset1(map->tiny);
        }
    }
    for (; n > 0; n -= GL, y += CELL) {
        const int c = n < GL ? (int)n : GL;
        UNROLLED
        for (v = 0; v < NV; v++) {
            UNROLLED
            for (p = 0; p < NP; p++) m[v][p] = vset1(0);
        }
        for (i = 0; i < c; i++, w += GL) {
            UNROLLED
            for (v = 0; v < NV; v++) {
                x[v] = vload(w + v / NS * map->panel + v % NS * VL);
                size[v] = vabs(x[v]);
            }
            UNROLLED
            for (p = 0; p < NP; p++) {
                const vf mid = vset1(y[2 * p * GL + i]), rad = vset1(y[(2 * p + 1) * GL + i]);
                UNROLLED
                for (v = 0; v < NV; v++) {
                    m[v][p] = vfma(x[v], mid, m[v][p]);
                    r[v][p] = vfma(size[v], rad, r[v][p]);
                }
            }
        }
        UNROLLED
        for (v = 0; v < NV; v++) {
            UNROLLED
            for (p = 0; p < NP; p++) vstore(AT(2 * p), vload(AT(2 * p)) + m[v][p]);
        }
    }
    UNROLLED
    for (v = 0; v < NV; v++) {
        UNROLLED
        for (p = 0; p < NP; p++) vstore(AT(2 * p + 1), r[v][p]);
    }
#undef AT
}

#endif
