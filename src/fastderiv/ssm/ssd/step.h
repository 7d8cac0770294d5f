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

/* SSD_STEP_AHEAD  bytes between what is read and what is fetched into the second-level cache: a
 *                 page, whose first lines the hardware's own prefetching waits for
 * SSD_STEP_FETCH  logical groups of a row, of which one is fetched so: fetching all of them, or
 *                 into the first-level cache, made steps 1.2 times as long on Zen 4
 * SSD_STEP_NEXT   cache lines behind the rows that are fetched so too: memory is busy with them
 *                 while the rows' sums are added (0.96 of the time for 24 heads) */
enum { SSD_STEP_AHEAD = 4096, SSD_STEP_FETCH = 8, SSD_STEP_NEXT = 32 };
#ifdef SIMD_F64
# define SSD_STEP_BELOW 0x1p-51
#else
# define SSD_STEP_BELOW 0x1p-22f
#endif

/* OUT ratio + lost = 2**(size·rate), to twice the precision where the exponent is below 60, and
 * 0 < lost < 2·SSD_STEP_BELOW·ratio there.  Beyond, they are equal halves, right for 0 and inf too.
 *
 * A ratio close to 1 must not be rounded: its last bit would be the same in every step, and after
 * 1/|ΔA| steps the whole error.  `lost` is positive, so that an infinite state stays infinite: its
 * two products have one sign. */
VINL void ssd_split_ratio(vf size, vf rate, vf *ratio, vf *lost)
{
    vf rest;
    const vf near = vabs(size * rate), scale = vratio_any(size, rate, &rest);
    const vf whole = vfma(rest, scale, scale), low = vfma(rest, scale, scale - whole);
    const vf below = whole - whole * vset1(SSD_STEP_BELOW);
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
    int fresh;         /* whether the sums begin at 0 here */
} SsdStepRows;

/* The new state from the old; ratio[0] + ratio[1] = exp(ΔA). */
VINL vf ssd_step_advance(const vf ratio[2], vf h, vf x, vf b)
{
    return vfma(ratio[0], h, vfma(ratio[1], h, x * b));
}

/* The numbers at p, loaded once: GCC would read memory again for each of their two uses, and where
 * vectors cross cache lines, as in most of NumPy's arrays, that is a fifth of the time. */
VINL vf ssd_step_load(const real *p)
{
    vf h = vload(p);
#if VB && defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
    __asm__("" : "+v"(h));
#endif
    return h;
}

VINL void ssd_step_fetch(const real *p) { vprefetch_far((const char *)p + SSD_STEP_AHEAD); }

/* What is left of a row behind n, less than a logical group. */
VINL void ssd_step_rest(const SsdStepRows *r, real *h, ptrdiff_t n, const vf ratio[2], vf x,
                        vf *sum)
{
    static const real lanes[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int v;
    for (v = 0; v < NS && n < r->states; v++, n += VL) {
        const ptrdiff_t left = r->states - n, count = left < VL ? left : VL;
        vf now = ssd_step_advance(ratio, vload_some(h + n, count), x, vload(r->b + n));
        vstore_some(h + n, now, count);
        now = vsel_lt(vload(lanes), vset1((real)count), now, vset1(0)); /* exp(ΔA) may be inf */
        sum[v] = vfma(now, vload(r->c + n), sum[v]);
    }
}

/* `groups` logical groups of a row from n on. */
VINL void ssd_step_groups(const SsdStepRows *r, real *h, ptrdiff_t n, const vf ratio[2], vf x,
                          vf *sum, const int groups)
{
    int g, v;
    UNROLLED
    for (g = 0; g < groups; g++) {
        UNROLLED
        for (v = 0; v < NS; v++) {
            const ptrdiff_t k = n + g * GL + v * VL;
            const vf now = ssd_step_advance(ratio, ssd_step_load(h + k), x, vload(r->b + k));
            vstore(h + k, now);
            sum[v] = vfma(now, vload(r->c + k), sum[v]);
        }
    }
}

/* One row after the other, so that memory is read in one stream: four rows at once took 1.8 times
 * as long. */
static void ssd_step_rows(const SsdStepRows *r, ptrdiff_t rows)
{
    const SsdStepRows own =
        *r; /* r itself could be changed by a store, for all the compiler knows */
    const vf ratio[] = {vset1(own.ratio), vset1(own.lost)};
    ptrdiff_t i, n;
    int v;
    for (i = 0; i < rows; i++) {
        real *const h = own.h + i * own.row, *const sums = own.sums + i * GL;
        const vf x = vset1(own.dx[i]);
        vf sum[NS];
        UNROLLED
        for (v = 0; v < NS; v++) sum[v] = own.fresh ? vset1(0) : vload(sums + v * VL);
        for (n = 0; n + SSD_STEP_FETCH * GL <= own.states; n += SSD_STEP_FETCH * GL) {
            ssd_step_fetch(h + n);
            ssd_step_groups(&own, h, n, ratio, x, sum, SSD_STEP_FETCH);
        }
        if (n < own.states) ssd_step_fetch(h + n);
        for (; n + GL <= own.states; n += GL) ssd_step_groups(&own, h, n, ratio, x, sum, 1);
        if (n < own.states) ssd_step_rest(&own, h, n, ratio, x, sum);
        UNROLLED
        for (v = 0; v < NS; v++) vstore(sums + v * VL, sum[v]);
    }
    for (n = 0; n < SSD_STEP_NEXT; n++) vprefetch_far(own.h + rows * own.row + n * GL);
}

/* A 128-bit part of a vector: SHARE numbers. */
#if VB
typedef real ssd_step_part __attribute__((vector_size(16), aligned(sizeof(real)), may_alias));
#else
typedef real ssd_step_part;
#endif

/* OUT y [4]: the sums over lanes of four rows of `sums` [p, GL], adjacent pairs first: those within
 * parts by shuffles, then those of the parts, [FOURS][part][SHARE]. */
VINL void ssd_step_add_lanes(const real *sums, real *y)
{
    real parts[4 * PARTS];
    vf four[FOURS];
    int v, i, k, n;
    UNROLLED
    for (v = 0; v < NS; v++) {
        const real *s = sums + v * VL;
        vpartsums(vload(s), vload(s + GL), vload(s + 2 * GL), vload(s + 3 * GL), four);
        UNROLLED
        for (i = 0; i < FOURS; i++) vstore(parts + i * GL + v * VL, four[i]);
    }
    UNROLLED
    for (i = 0; i < FOURS; i++) {
        ssd_step_part part[PARTS];
        UNROLLED
        for (k = 0; k < PARTS; k++) part[k] = *(const ssd_step_part *)(parts + i * GL + k * SHARE);
        UNROLLED
        for (n = 1; n < PARTS; n *= 2) {
            UNROLLED
            for (k = 0; k < PARTS; k += 2 * n) part[k] = part[k] + part[k + n];
        }
        *(ssd_step_part *)(y + i * SHARE) = part[0];
    }
}

/* to[i] = p[i·stride] for i < n, and zero up to a whole vector; all zero if p is NULL. */
VINL void ssd_step_load_lanes(const real *p, ptrdiff_t stride, ptrdiff_t n, real *to)
{
    ptrdiff_t i, k;
    for (i = 0; i < n; i += VL) {
        const ptrdiff_t left = n - i, count = left < VL ? left : VL;
        real lanes[VL] = {0};
        if (stride == 1 || p == NULL) {
            vstore(to + i, vload_some(p == NULL ? p : p + i, p == NULL ? 0 : count));
        } else {
            for (k = 0; k < count; k++) lanes[k] = p[(i + k) * stride];
            vstore(to + i, vload(lanes));
        }
    }
}

/* p[i·stride] = from[i] for i < n. */
VINL void ssd_step_store_lanes(const real *from, real *p, ptrdiff_t stride, ptrdiff_t n)
{
    ptrdiff_t i;
    if (stride == 1) {
        for (i = 0; i < n; i += VL) vstore_some(p + i, vload(from + i), n - i < VL ? n - i : VL);
    } else {
        for (i = 0; i < n; i++) p[i * stride] = from[i];
    }
}
#endif
