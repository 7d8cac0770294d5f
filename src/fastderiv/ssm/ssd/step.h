/* step.h: one step of the SSD recurrence for rows of a head's state (docs/derivations.md §6.5).
 *
 *     h[p, n] = exp(ΔA)·h[p, n] + Δ·x[p]·B[n],      sums[p, n mod GL] += h[p, n]·C[n]
 *
 * Rows are contiguous along n.  A state is read and written once: memory sets the pace, so that
 * two more operations an element cost nothing.  The sums are chains over ascending n in a logical
 * group of GL lanes, the same at every level.
 */
#ifndef FASTDERIV_SSD_STEP_H
#define FASTDERIV_SSD_STEP_H
#include "simd.h"
#include "simd_lanes.h"
#include "simd_math.h"

/* SSD_ROWS     rows that are advanced together: their sums are independent chains
 * SSD_AHEAD    rows between what is read and what is prefetched */
enum { SSD_ROWS = 4, SSD_AHEAD = 8 };
#ifdef SIMD_F64
# define SSD_BELOW 0x1p-51
#else
# define SSD_BELOW 0x1p-22f
#endif

/* OUT ratio + lost = 2**(size·rate), to twice the precision where the exponent is below 60, and
 * 0 < lost < 2·SSD_BELOW·ratio there; beyond, equal halves, which are right for 0 and inf too.
 *
 * A ratio close to 1 must not be rounded: its last bit would be the same in every step, and after
 * 1/|ΔA| steps the whole error.  `lost` is positive, so that an infinite state stays infinite: its
 * two products have one sign. */
VINL void ssd_split_ratio(vf size, vf rate, vf *ratio, vf *lost)
{
    vf rest;
    const vf near = vabs(size * rate), scale = vratio_any(size, rate, &rest);
    const vf whole = vfma(rest, scale, scale), low = vfma(rest, scale, scale - whole);
    const vf below = whole - whole * vset1(SSD_BELOW);
    const vf half = vset1((real)0.5) * vexp2_any(size, rate);
    *ratio = vsel_lt(near, vset1(60), below, half);
    *lost = vsel_lt(near, vset1(60), low + (whole - below), half);
}

typedef struct {
    real *h;           /* the first row */
    ptrdiff_t row;     /* from one row to the next */
    ptrdiff_t states;  /* numbers of a row */
    const real *b, *c; /* [n], zero up to a multiple of GL */
    const real *dx;    /* [p]: Δ·x */
    real ratio, lost;  /* ratio + lost = exp(ΔA), to twice the precision */
    real *sums;        /* [p, GL] */
} SsdRows;

/* The new state from the old.  `lost` is at least 0, so that infinities meet with one sign. */
VINL vf ssd_advance(const SsdRows *r, vf h, vf x, vf b)
{
    return vfma(vset1(r->ratio), h, vfma(vset1(r->lost), h, x * b));
}

/* What is left of the rows behind `n`, less than a logical group. */
VINL void ssd_step_rest(const SsdRows *r, ptrdiff_t first, ptrdiff_t n, vf sum[][NS],
                        const int rows)
{
    static const real lanes[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int i, v;
    for (v = 0; v < NS; v++, n += VL) {
        const ptrdiff_t left = r->states - n, count = left < VL ? left : VL;
        const vf b = vload(r->b + n), c = vload(r->c + n);
        if (left <= 0) return;
        UNROLLED
        for (i = 0; i < rows; i++) {
            real *p = r->h + (first + i) * r->row + n;
            vf h = ssd_advance(r, vload_some(p, count), vset1(r->dx[first + i]), b);
            vstore_some(p, h, count);
            h = vsel_lt(vload(lanes), vset1((real)count), h, vset1(0)); /* exp(ΔA) may be inf */
            sum[i][v] = vfma(h, c, sum[i][v]);
        }
    }
}

/* `rows` rows from `first` on. */
VINL void ssd_step_some(const SsdRows *r, ptrdiff_t first, const int rows)
{
    vf sum[SSD_ROWS][NS];
    ptrdiff_t n;
    int i, v;
    UNROLLED
    for (i = 0; i < rows; i++) {
        UNROLLED
        for (v = 0; v < NS; v++) sum[i][v] = vload(r->sums + (first + i) * GL + v * VL);
    }
    for (n = 0; n + GL <= r->states; n += GL) {
        UNROLLED
        for (v = 0; v < NS; v++) {
            const vf b = vload(r->b + n + v * VL), c = vload(r->c + n + v * VL);
            UNROLLED
            for (i = 0; i < rows; i++) {
                real *p = r->h + (first + i) * r->row + n + v * VL;
                const vf h = ssd_advance(r, vload(p), vset1(r->dx[first + i]), b);
                if (v == 0) vprefetch(p + SSD_AHEAD * r->row);
                vstore(p, h);
                sum[i][v] = vfma(h, c, sum[i][v]);
            }
        }
    }
    if (n < r->states) ssd_step_rest(r, first, n, sum, rows);
    UNROLLED
    for (i = 0; i < rows; i++) {
        UNROLLED
        for (v = 0; v < NS; v++) vstore(r->sums + (first + i) * GL + v * VL, sum[i][v]);
    }
}

static void ssd_step_rows(const SsdRows *r, ptrdiff_t count)
{
    ptrdiff_t i = 0;
    for (; i + SSD_ROWS <= count; i += SSD_ROWS) ssd_step_some(r, i, SSD_ROWS);
    for (; i < count; i++) ssd_step_some(r, i, 1);
}
#endif
