/* rows.h: what happens to x before the loops of the SSD scan, and to y after them.
 *
 * Signals are rows [t][p] of whole vectors, `row` numbers apart; tiles are rows of `width` numbers.
 */
#ifndef FASTDERIV_SSD_ROWS_H
#define FASTDERIV_SSD_ROWS_H
#include "simd_lanes.h"
#include "simd_math.h"

typedef struct {
    real *p;
    ptrdiff_t row;
} SsdRows;

/* OUT scaled[t] = x[t]·factor[t]: Δ·x in the scale of the run.  `scaled` may be x itself. */
static void ssd_scale_rows(const SsdRows *x, const real *factor, ptrdiff_t steps, ptrdiff_t width,
                           real *scaled)
{
    ptrdiff_t t, i;
    for (t = 0; t < steps; t++) {
        const real *from = x->p + t * x->row;
        const vf f = vset1(factor[t]);
        for (i = 0; i < width; i += VL) vstore(scaled + t * width + i, vload(from + i) * f);
    }
}

typedef struct {
    const real *y;            /* a tile: C·S, in the scale of the run */
    const real *scale;        /* [t]: the scale of the run */
    const real *D;            /* [p] */
    SsdRows x, z, out;        /* x.p NULL: no skip connection; z.p NULL: no gate */
    ptrdiff_t steps, width;
} SsdFinish;

VINL void ssd_finish_rows(const SsdFinish *f, vi *odd, const int with_skip, const int with_gate)
{
    ptrdiff_t t, i;
    vi seen = viset1(0);
    for (t = 0; t < f->steps; t++) {
        const vf scale = vset1(f->scale[t]);
        const real *y = f->y + t * f->width, *x = f->x.p + t * f->x.row, *z = f->z.p + t * f->z.row;
        real *out = f->out.p + t * f->out.row;
        for (i = 0; i < f->width; i += VL) {
            vf v = vload(y + i);
            seen |= as_i(v * vset1(0)); /* a chain of one cycle a turn; a sum would be one of four */
            v = with_skip ? vfma(v, scale, vload(x + i) * vload(f->D + i)) : v * scale;
            if (with_gate) v *= vsilu(vload(z + i));
            vstore(out + i, v);
        }
    }
    *odd = seen;
}

/* OUT out = (scale·y + D·x)·silu(z).  Whether all of y is finite. */
static int ssd_finish(const SsdFinish *f)
{
    vi odd;
    if (f->x.p) {
        if (f->z.p)
            ssd_finish_rows(f, &odd, 1, 1);
        else
            ssd_finish_rows(f, &odd, 1, 0);
    } else {
        if (f->z.p)
            ssd_finish_rows(f, &odd, 0, 1);
        else
            ssd_finish_rows(f, &odd, 0, 0);
    }
    return vall_lt(vabs(as_f(odd)), vset1(1));
}
#endif
