/* adjoint.h: the adjoint of the causal convolution (docs/derivations.md §6.6).  With s[t] the sum
 * over taps and e[t] = dy[t]·act'(s[t]),
 *
 *     dx[t] = Σ_k w[k]·e[t + K − 1 − k],  dw[k] = Σ_t e[t]·x[t − K + 1 + k],  dbias = Σ_t e[t].
 *
 *     conv_adjoint_rows   few taps, in one pass: dx[t − K + 1] is complete when e[t] is known
 *     conv_errors, conv_tap_sums, conv_input_rows    any K, one after the other
 *
 * Channels are in the lanes.  dx is a chain of fused multiply-adds that takes the e's in ascending
 * order.  dw and dbias are chains over a block of steps, whose sums are added up with their
 * rounding errors.
 */
#ifndef FASTDERIV_CONV_ADJOINT_H
#define FASTDERIV_CONV_ADJOINT_H
#include "taps.h"

/* Some steps of neighbouring channels; rows are steps. */
typedef struct {
    ConvRows rows;  /* x, its taps, and their shape; y is not used */
    const real *dy; /* the first step's row */
    real *dx;       /* the first step's row; results begin K − 1 rows before it */
    real *pending;  /* [K − 1][slots]: dx of the K − 1 steps before, as far as it is known */
    real *sums;     /* [2 (K + 1)][slots]: of dw and dbias, then their rounding errors */
    ptrdiff_t dy_t, dx_t;
    ptrdiff_t dy_ahead; /* from dy to what is fetched meanwhile */
    int summed;         /* whether dw and dbias are wanted */
} ConvAdjointRows;

/* sum + low += v, low being the errors of sum's rounding. */
VINL void conv_add(real *sum, real *low, vf v)
{
    const vf s = vload(sum), t = s + v, z = t - s;
    vstore(low, vload(low) + ((s - (t - z)) + (v - z)));
    vstore(sum, t);
}

/* dy·act'(s). */
VINL vf conv_error(vf s, vf dy, const int silu)
{
    vf slope;
    if (!silu) return dy;
    vsilu_slope(s, &slope);
    return dy * slope;
}

VINL void conv_adjoint_window(const ConvAdjointRows *a, const int K, const int silu)
{
    const ConvRows *r = &a->rows;
    const ptrdiff_t slots = r->slots, x_t = r->x_t, dy_t = a->dy_t, dx_t = a->dx_t;
    ptrdiff_t v, t;
    int k;
    for (v = 0; v < r->vectors; v++) {
        const ptrdiff_t c = conv_column(v, r->vectors, r->last);
        const ptrdiff_t ahead = r->ahead, dy_ahead = a->dy_ahead, steps = r->steps;
        const real *x = r->x + c, *dy = a->dy + c, *taps = r->w + v * VL;
        real *dx = a->dx + c - (K - 1) * dx_t, *pending = a->pending + v * VL;
        const vf bias = vload(taps + K * slots);
        vf w[CONV_FEW], past[CONV_FEW], g[CONV_FEW], sum[CONV_FEW + 1];
        UNROLLED
        for (k = 0; k < K; k++) w[k] = vload(taps + k * slots);
        UNROLLED
        for (k = 0; k + 1 < K; k++) past[k] = vload(x + (k - K + 1) * x_t);
        UNROLLED
        for (k = 0; k + 1 < K; k++) g[k] = vload(pending + k * slots);
        UNROLLED
        for (k = 0; k <= K; k++) sum[k] = vset1(0);
        for (t = 0; t < steps; t++) {
            vf s = bias, e;
            past[K - 1] = vload(x);
            vprefetch(x + ahead);
            vprefetch(dy + dy_ahead);
            UNROLLED
            for (k = 0; k < K; k++) s = vfma(w[k], past[k], s);
            e = conv_error(s, vload(dy), silu);
            UNROLLED
            for (k = 0; k < K; k++) sum[k] = vfma(e, past[k], sum[k]);
            sum[K] += e;
            vstore(dx, vfma(w[0], e, g[0]));
            UNROLLED
            for (k = 0; k + 2 < K; k++) g[k] = vfma(w[k + 1], e, g[k + 1]);
            g[K - 2] = w[K - 1] * e;
            UNROLLED
            for (k = 0; k + 1 < K; k++) past[k] = past[k + 1];
            x += x_t, dy += dy_t, dx += dx_t;
        }
        UNROLLED
        for (k = 0; k + 1 < K; k++) vstore(pending + k * slots, g[k]);
        if (!a->summed) continue;
        UNROLLED
        for (k = 0; k <= K; k++) {
            real *to = a->sums + v * VL + k * slots;
            conv_add(to, to + (K + 1) * slots, sum[k]);
        }
    }
}

VINL void conv_adjoint_with(const ConvAdjointRows *a, const int silu)
{
    switch (a->rows.taps) {
    case 2: conv_adjoint_window(a, 2, silu); break;
    case 3: conv_adjoint_window(a, 3, silu); break;
    default: conv_adjoint_window(a, 4, silu);
    }
}

/* 2 ≤ K ≤ CONV_FEW. */
static void conv_adjoint_rows(const ConvAdjointRows *a)
{
    if (a->rows.silu) conv_adjoint_with(a, 1);
    else conv_adjoint_with(a, 0);
}

/* ---- any K, one vector of channels in tiles [time, lane] ------------------------------------ */

/* IN s, e = dy; OUT e = dy·silu'(s), of n steps. */
static void conv_errors(const real *s, real *e, ptrdiff_t n)
{
    ptrdiff_t t;
    for (t = 0; t < n * VL; t += VL) vstore(e + t, conv_error(vload(s + t), vload(e + t), 1));
}

/* `many` taps from k on, over a block of n steps. */
VINL void conv_some_sums(const ConvAdjointRows *a, const real *e, ptrdiff_t k, ptrdiff_t n,
                         const int many)
{
    const ptrdiff_t K = a->rows.taps, slots = a->rows.slots;
    const real *x = a->rows.x + (k - K + 1) * VL;
    vf sum[4];
    ptrdiff_t t;
    int i;
    UNROLLED
    for (i = 0; i < many; i++) sum[i] = vset1(0);
    for (t = 0; t < n; t++) {
        const vf at = vload(e + t * VL);
        UNROLLED
        for (i = 0; i < many; i++) sum[i] = vfma(at, vload(x + (t + i) * VL), sum[i]);
    }
    UNROLLED
    for (i = 0; i < many; i++) {
        real *to = a->sums + (k + i) * slots;
        conv_add(to, to + (K + 1) * slots, sum[i]);
    }
}

/* The sums of a block of n steps. */
static void conv_tap_sums(const ConvAdjointRows *a, const real *e, ptrdiff_t n)
{
    const ptrdiff_t K = a->rows.taps, slots = a->rows.slots;
    real *to = a->sums + K * slots;
    vf sum = vset1(0);
    ptrdiff_t k = 0, t;
    for (; k + 4 <= K; k += 4) conv_some_sums(a, e, k, n, 4);
    for (; k < K; k++) conv_some_sums(a, e, k, n, 1);
    for (t = 0; t < n; t++) sum += vload(e + t * VL);
    conv_add(to, to + (K + 1) * slots, sum);
}

/* OUT dx of `many` steps from t on; e has the steps 0 … n−1, and all of them lie in reach. */
VINL void conv_inputs(const ConvAdjointRows *a, const real *e, ptrdiff_t t, const int many)
{
    const ptrdiff_t K = a->rows.taps;
    const real *w = a->rows.w + (K - 1) * a->rows.slots;
    vf g[4];
    ptrdiff_t j;
    int i;
    UNROLLED
    for (i = 0; i < many; i++) g[i] = vset1(0);
    for (j = 0; j < K; j++, w -= a->rows.slots) {
        const vf tap = vload(w);
        UNROLLED
        for (i = 0; i < many; i++) g[i] = vfma(tap, vload(e + (t + j + i) * VL), g[i]);
    }
    UNROLLED
    for (i = 0; i < many; i++) vstore(a->dx + (t + i) * a->dx_t, g[i]);
}

/* OUT dx of the steps first … end−1, of which the first may lie before 0; e has the steps
 * 0 … n−1, and what lies outside of them has no part in any sum. */
static void conv_input_rows(const ConvAdjointRows *a, const real *e, ptrdiff_t n, ptrdiff_t first,
                            ptrdiff_t end)
{
    const ptrdiff_t K = a->rows.taps, slots = a->rows.slots;
    const real *w = a->rows.w + (K - 1) * slots;
    ptrdiff_t t = first, j;
    while (t < end) {
        if (0 <= t && t + 4 <= end && t + 4 + K - 1 <= n) {
            conv_inputs(a, e, t, 4);
            t += 4;
        } else {
            const ptrdiff_t stop = n - t < K ? n - t : K;
            vf g = vset1(0);
            for (j = t < 0 ? -t : 0; j < stop; j++)
                g = vfma(vload(w - j * slots), vload(e + (t + j) * VL), g);
            vstore(a->dx + t * a->dx_t, g);
            t++;
        }
    }
}
#endif
