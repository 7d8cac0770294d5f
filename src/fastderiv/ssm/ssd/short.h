/* short.h: the loops of an SSD scan over one chunk (docs/derivations.md §6.3).
 *
 *     G[t][s] = C[t]·B[s],    y[t] = Σ_{s ≤ t} G[t][s]·x[s]
 *
 * x is scaled as for scan.h, so that G is the same for all heads of a group.  Both sums are chains in
 * ascending order of n and s.
 */
#ifndef FASTDERIV_SSD_SHORT_H
#define FASTDERIV_SSD_SHORT_H
#include "scan.h"

/* G lies in panels of SSD_UB rows t: [t/SSD_UB][s][SSD_UB], s < end of the panel. */
VINL ptrdiff_t ssd_panel_of_G(ptrdiff_t panel) { return SSD_UB * SSD_UB * (panel * (panel + 1) / 2); }

typedef struct {
    const real *B;            /* [s][n], rows b_row apart */
    const real *CT;           /* [n][t], rows c_row apart, zeros behind the last step */
    ptrdiff_t b_row, c_row;
    ptrdiff_t states, steps, padded; /* padded: a multiple of SSD_UB and of VL */
    real *G;                  /* OUT */
} SsdGram;

/* The vector `sum` of G[t … t+VL−1][s], into its panels. */
VINL void ssd_store_gram(const SsdGram *g, ptrdiff_t s, ptrdiff_t t, vf sum)
{
    enum { PIECE = VL < SSD_UB ? VL : SSD_UB };
    real lanes[VL];
    ptrdiff_t l, panel;
    vstore(lanes, sum);
    for (l = 0; t + l < s && l < VL; l++) lanes[l] = 0;
    for (l = 0; l < VL; l += PIECE) {
        panel = (t + l) / SSD_UB;
        if (panel >= s / SSD_UB)
            memcpy(g->G + ssd_panel_of_G(panel) + s * SSD_UB + (t + l) % SSD_UB, lanes + l,
                   PIECE * sizeof(real));
    }
}

/* Columns s … s+SSD_UB−1 by VL rows from t on. */
VINL void ssd_gram_tile(const SsdGram *g, ptrdiff_t s, ptrdiff_t t)
{
    const real *B[SSD_UB], *C = g->CT + t;
    vf sum[SSD_UB];
    ptrdiff_t n;
    int i;
    UNROLLED
    for (i = 0; i < SSD_UB; i++) {
        const ptrdiff_t at = s + i < g->steps ? s + i : g->steps - 1; /* behind, G is 0 */
        B[i] = g->B + at * g->b_row, sum[i] = vset1(0);
    }
    for (n = 0; n < g->states; n++) {
        const vf c = vload(C);
        UNROLLED
        for (i = 0; i < SSD_UB; i++) sum[i] = vfma(vset1(B[i][n]), c, sum[i]);
        C += g->c_row;
    }
    UNROLLED
    for (i = 0; i < SSD_UB; i++) ssd_store_gram(g, s + i, t, sum[i]);
}

/* OUT g.G, with zeros where s > t. */
static void ssd_gram(const SsdGram *g)
{
    ptrdiff_t s, t;
    for (s = 0; s < g->padded; s += SSD_UB)
        for (t = s / VL * VL; t < g->padded; t += VL) ssd_gram_tile(g, s, t);
}

typedef struct {
    const real *G;
    const real *x;            /* [s][p], rows of `width` */
    real *y;                  /* OUT [t − first][p], rows of `width` */
    ptrdiff_t first, count;   /* rows t; multiples of SSD_UB */
    ptrdiff_t width;
    const SsdRuns *runs;      /* of the whole chunk; the last ends at or behind first+count */
} SsdCausal;

/* SSD_UB rows t by nv vectors.  Where a run begins at s, what was summed before is rescaled, but not
 * in rows t < s. */
VINL void ssd_causal_tile(const SsdCausal *f, ptrdiff_t panel, ptrdiff_t column, const int nv)
{
    const SsdRuns *runs = f->runs;
    const ptrdiff_t first = panel * SSD_UB, last = first + SSD_UB;
    const real *g = f->G + ssd_panel_of_G(panel), *x = f->x + column;
    real *y = f->y + (first - f->first) * f->width + column;
    const vf least = vset1(SSD_LEAST);
    vf sum[SSD_UB][SSD_UV];
    ptrdiff_t k, s = 0;
    int i, v;
    UNROLLED
    for (i = 0; i < SSD_UB; i++) {
        UNROLLED
        for (v = 0; v < nv; v++) sum[i][v] = vset1(0);
    }
    for (k = 0; s < last; k++) {
        const ptrdiff_t end = runs->end[k] < last ? runs->end[k] : last;
        if (s > 0) {
            UNROLLED
            for (i = 0; i < SSD_UB; i++) {
                const vf ratio = vset1(first + i < s ? 1 : runs->ratio[k]);
                UNROLLED
                for (v = 0; v < nv; v++) {
                    sum[i][v] *= ratio;
                    sum[i][v] = vsel_lt(vabs(sum[i][v]), least, vset1(0), sum[i][v]);
                }
            }
        }
        for (; s < end; s++) {
            vf xv[SSD_UV];
            UNROLLED
            for (v = 0; v < nv; v++) xv[v] = vload(x + v * VL);
            UNROLLED
            for (i = 0; i < SSD_UB; i++) {
                const vf gi = vset1(g[i]);
                UNROLLED
                for (v = 0; v < nv; v++) sum[i][v] = vfma(gi, xv[v], sum[i][v]);
            }
            x += f->width, g += SSD_UB;
        }
    }
    UNROLLED
    for (i = 0; i < SSD_UB; i++) {
        UNROLLED
        for (v = 0; v < nv; v++) vstore(y + i * f->width + v * VL, sum[i][v]);
    }
}

/* OUT f.y, in the scales of the runs. */
static void ssd_causal(const SsdCausal *f)
{
    ptrdiff_t v = 0, t;
    for (; v + SSD_UV * VL <= f->width; v += SSD_UV * VL)
        for (t = f->first; t < f->first + f->count; t += SSD_UB)
            ssd_causal_tile(f, t / SSD_UB, v, SSD_UV);
    for (; v < f->width; v += VL)
        for (t = f->first; t < f->first + f->count; t += SSD_UB)
            ssd_causal_tile(f, t / SSD_UB, v, 1);
}
#endif
