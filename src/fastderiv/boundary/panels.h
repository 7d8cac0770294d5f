/* Products with packed weights, z = b + Wᵀ y, in registers (docs/derivations.md §2.1).
 *
 * Weights lie in panels of GL outputs: w[k, o] is at ((o / GL)·n_in + k)·GL + o % GL, zero padded.
 * Every sum starts from the bias and runs over the inputs in ascending order with vfma, in both
 * functions below: a row has the same bits wherever and however it is computed.
 * Included by _net.pxi. */
#ifndef FASTDERIV_BOUNDARY_PANELS_H
#define FASTDERIV_BOUNDARY_PANELS_H

#include "simd.h"

enum {
    AT_ONCE = VL == 8 ? 8 : 4,   /* outputs of a block, for 32 or 16 registers */
    PANELS = NS < 8 ? 8 / NS : 1 /* of a row at once: eight accumulators hide the latency */
};

/* The weights from n inputs to some outputs of one panel. */
typedef struct {
    const real *w;
    const real *b; /* the biases of these outputs */
    ptrdiff_t n;
    ptrdiff_t next; /* the distance from the weights of GL inputs to those of the next GL */
} Panel;

/* IN y (n, ts); OUT z (NO, ts) for two vectors of rows, in lanes.
 * `turned` reads the panel as the transposed matrix. */
VINL void dense_block(const Panel *panel, const real *y, real *z, ptrdiff_t ts, const int NO,
                      const int turned)
{
    const real *w = panel->w;
    ptrdiff_t n = panel->n;
    vf acc[8][2];
    int j, k;
    UNROLLED
    for (j = 0; j < NO; j++) acc[j][0] = acc[j][1] = vset1(panel->b[j]);
    for (; n > 0; n -= GL, w += panel->next) {
        const int c = n < GL ? (int)n : GL;
        for (k = 0; k < c; k++, y += ts) {
            const vf y0 = vload(y), y1 = vload(y + VL);
            UNROLLED
            for (j = 0; j < NO; j++) {
                const vf a = vset1(turned ? w[j * GL + k] : w[k * GL + j]);
                acc[j][0] = vfma(a, y0, acc[j][0]);
                acc[j][1] = vfma(a, y1, acc[j][1]);
            }
        }
    }
    UNROLLED
    for (j = 0; j < NO; j++) {
        vstore(z + j * ts, acc[j][0]);
        vstore(z + j * ts + VL, acc[j][1]);
    }
}

/* IN y (n,), one row; OUT z (NP·GL,), outputs in lanes.  `panel`: the distance between panels. */
VINL void units_block(const real *w, ptrdiff_t panel, const real *b, const real *y, real *z,
                      ptrdiff_t n, const int NP)
{
    vf acc[8];
    ptrdiff_t k;
    int i;
    UNROLLED
    for (i = 0; i < NP * NS; i++) acc[i] = vload(b + i * VL);
    for (k = 0; k < n; k++) {
        const vf a = vset1(y[k]);
        UNROLLED
        for (i = 0; i < NP * NS; i++)
            acc[i] = vfma(a, vload(w + i / NS * panel + k * GL + i % NS * VL), acc[i]);
    }
    UNROLLED
    for (i = 0; i < NP * NS; i++) vstore(z + i * VL, acc[i]);
}

#endif
