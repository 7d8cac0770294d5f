/* taps.h: the sum over taps of the causal convolution (docs/derivations.md §6.6),
 * y[t] = act(bias + Σ_k w[k]·x[t − K + 1 + k]).
 *
 *     conv_rows          channels in the lanes, a window of inputs in registers where K is small
 *     conv_line          time in the lanes, for K ≤ 4: earlier steps come from shuffles
 *     conv_long_line     time in the lanes, any K: earlier steps come from loads
 *
 * Every result is one chain of fused multiply-adds that begins with the bias and takes the taps in
 * ascending order, whatever lies in the lanes.
 */
#ifndef FASTDERIV_CONV_TAPS_H
#define FASTDERIV_CONV_TAPS_H
#include "simd.h"
#include "simd_lanes.h"
#include "simd_math.h"

enum { CONV_FEW = 4 }; /* taps that have loops of their own */

/* Some steps of neighbouring channels; rows are steps. */
typedef struct {
    const real *x; /* the first step's row; the K − 1 rows before it are read too */
    real *y;
    const real *w; /* [K + 1][slots]: the taps, then the bias; a vector of channels has VL slots */
    ptrdiff_t x_t, y_t, slots; /* from one row to the next */
    ptrdiff_t steps, vectors;
    ptrdiff_t last;  /* the channel at which the last vector begins: it may overlap the others */
    ptrdiff_t ahead; /* from x to what is fetched meanwhile */
    ptrdiff_t taps;
    int silu;
} ConvRows;

VINL vf conv_act(vf s, const int silu) { return silu ? vsilu(s) : s; }

VINL ptrdiff_t conv_column(ptrdiff_t v, ptrdiff_t vectors, ptrdiff_t last)
{
    return v + 1 < vectors ? v * VL : last;
}

VINL void conv_window(const ConvRows *r, const int K, const int silu)
{
    ptrdiff_t v, t;
    int k;
    for (v = 0; v < r->vectors; v++) {
        const ptrdiff_t c = conv_column(v, r->vectors, r->last), x_t = r->x_t, y_t = r->y_t;
        const ptrdiff_t ahead = r->ahead, steps = r->steps;
        const real *x = r->x + c;
        real *y = r->y + c;
        const vf bias = vload(r->w + v * VL + K * r->slots);
        vf w[CONV_FEW], past[CONV_FEW];
        UNROLLED
        for (k = 0; k < K; k++) w[k] = vload(r->w + v * VL + k * r->slots);
        UNROLLED
        for (k = 0; k + 1 < K; k++) past[k] = vload(x + (k - K + 1) * x_t);
        for (t = 0; t < steps; t++) {
            vf s = bias;
            past[K - 1] = vload(x);
            vprefetch(x + ahead);
            UNROLLED
            for (k = 0; k < K; k++) s = vfma(w[k], past[k], s);
            UNROLLED
            for (k = 0; k + 1 < K; k++) past[k] = past[k + 1];
            vstore(y, conv_act(s, silu));
            x += x_t, y += y_t;
        }
    }
}

/* n steps of one vector of channels, any K. */
VINL void conv_chains(const ConvRows *r, ptrdiff_t v, ptrdiff_t t, const int n, const int silu)
{
    const ptrdiff_t c = conv_column(v, r->vectors, r->last), K = r->taps;
    const real *x = r->x + c + (t - K + 1) * r->x_t;
    const real *w = r->w + v * VL;
    vf s[4];
    ptrdiff_t k;
    int i;
    UNROLLED
    for (i = 0; i < n; i++) s[i] = vload(w + K * r->slots);
    for (k = 0; k < K; k++, x += r->x_t, w += r->slots) {
        const vf tap = vload(w);
        UNROLLED
        for (i = 0; i < n; i++) s[i] = vfma(tap, vload(x + i * r->x_t), s[i]);
    }
    UNROLLED
    for (i = 0; i < n; i++) vstore(r->y + c + (t + i) * r->y_t, conv_act(s[i], silu));
}

VINL void conv_any_taps(const ConvRows *r, const int silu)
{
    ptrdiff_t v, t;
    for (v = 0; v < r->vectors; v++) {
        for (t = 0; t + 4 <= r->steps; t += 4) conv_chains(r, v, t, 4, silu);
        for (; t < r->steps; t++) conv_chains(r, v, t, 1, silu);
    }
}

VINL void conv_rows_with(const ConvRows *r, const int silu)
{
    switch (r->taps) {
    case 2: conv_window(r, 2, silu); break;
    case 3: conv_window(r, 3, silu); break;
    case 4: conv_window(r, 4, silu); break;
    default: conv_any_taps(r, silu);
    }
}

static void conv_rows(const ConvRows *r)
{
    if (r->silu) conv_rows_with(r, 1);
    else conv_rows_with(r, 0);
}

/* ---- time in the lanes --------------------------------------------------------------------- */

/* Some steps of one channel, contiguous. */
typedef struct {
    const real *x;
    real *y;
    const real *before; /* conv_line: the VL steps before x; of older ones than K − 1, anything */
    const real *w;      /* [K + 1]: the taps, then the bias */
    ptrdiff_t steps, taps;
    int silu;
} ConvLine;

/* CONV_SHUFFLES: whether a vector holds as many steps as a window of few taps reaches back.
 * conv_back: the vector `n` steps before b, of which a is the one before. */
#if VB == 64 && !defined(SIMD_F64)
# define CONV_BACK(n)                                                                              \
     16 - n, 17 - n, 18 - n, 19 - n, 20 - n, 21 - n, 22 - n, 23 - n, 24 - n, 25 - n, 26 - n,       \
         27 - n, 28 - n, 29 - n, 30 - n, 31 - n
#elif VB == 64 || (VB == 32 && !defined(SIMD_F64))
# define CONV_BACK(n) 8 - n, 9 - n, 10 - n, 11 - n, 12 - n, 13 - n, 14 - n, 15 - n
#elif VB == 32 || (VB == 16 && !defined(SIMD_F64))
# define CONV_BACK(n) 4 - n, 5 - n, 6 - n, 7 - n
#endif
#ifdef CONV_BACK
enum { CONV_SHUFFLES = 1 };
VINL vf conv_back(vf a, vf b, const int n)
{
    switch (n) {
    case 0: return b;
    case 1: return SHUF(a, b, CONV_BACK(1));
    case 2: return SHUF(a, b, CONV_BACK(2));
    default: return SHUF(a, b, CONV_BACK(3));
    }
}
#else
enum { CONV_SHUFFLES = 0 };
VINL vf conv_back(vf a, vf b, const int n)
{
    (void)n;
    (void)a;
    return b;
}
#endif

VINL void conv_shuffled(const ConvLine *line, const int K, const int silu)
{
    const real *x = line->x;
    real *y = line->y;
    const ptrdiff_t steps = line->steps;
    const vf bias = vset1(line->w[K]);
    vf w[CONV_FEW], a = vload(line->before);
    ptrdiff_t t;
    int k;
    UNROLLED
    for (k = 0; k < K; k++) w[k] = vset1(line->w[k]);
    for (t = 0; t + VL <= steps; t += VL) {
        const vf b = vload(x + t);
        vf s = bias;
        UNROLLED
        for (k = 0; k < K; k++) s = vfma(w[k], conv_back(a, b, K - 1 - k), s);
        vstore(y + t, conv_act(s, silu));
        a = b;
    }
    if (t < steps) {
        const vf b = vload_some(x + t, steps - t);
        vf s = bias;
        UNROLLED
        for (k = 0; k < K; k++) s = vfma(w[k], conv_back(a, b, K - 1 - k), s);
        vstore_some(y + t, conv_act(s, silu), steps - t);
    }
}

/* K ≤ CONV_FEW, where CONV_SHUFFLES. */
VINL void conv_line_with(const ConvLine *line, const int silu)
{
    switch (line->taps) {
    case 1: conv_shuffled(line, 1, silu); break;
    case 2: conv_shuffled(line, 2, silu); break;
    case 3: conv_shuffled(line, 3, silu); break;
    default: conv_shuffled(line, 4, silu);
    }
}

static void conv_line(const ConvLine *line)
{
    if (line->silu) conv_line_with(line, 1);
    else conv_line_with(line, 0);
}

/* n vectors of steps from t on, any K. */
VINL void conv_stretch(const ConvLine *line, ptrdiff_t t, const int n, const int silu)
{
    const ptrdiff_t K = line->taps, left = line->steps - t;
    const real *x = line->x + t - K + 1;
    vf s[4];
    ptrdiff_t k;
    int i;
    UNROLLED
    for (i = 0; i < n; i++) s[i] = vset1(line->w[K]);
    for (k = 0; k < K; k++) {
        const vf tap = vset1(line->w[k]);
        UNROLLED
        for (i = 0; i < n; i++) s[i] = vfma(tap, vload(x + k + i * VL), s[i]);
    }
    UNROLLED
    for (i = 0; i < n; i++) {
        const vf y = conv_act(s[i], silu);
        if (n > 1 || left >= VL) vstore(line->y + t + i * VL, y);
        else vstore_some(line->y + t, y, left);
    }
}

VINL void conv_stretches(const ConvLine *line, const int silu)
{
    ptrdiff_t t = 0;
    for (; t + 4 * VL <= line->steps; t += 4 * VL) conv_stretch(line, t, 4, silu);
    for (; t < line->steps; t += VL) conv_stretch(line, t, 1, silu);
}

/* The K − 1 numbers before x are the steps before; VL numbers behind the last step may be read. */
static void conv_long_line(const ConvLine *line)
{
    if (line->silu) conv_stretches(line, 1);
    else conv_stretches(line, 0);
}
#endif
