/* adjoint.h: what the adjoint of an SSD scan does with the tiles (adjoint_tiles.h) of one head in a
 * chunk, apart from products: decays, pairs of steps, inputs, what flows through the decays.
 *
 * Symbols are those of docs/derivations.md §6.4: s is an earlier step, t a later one, and c_t the
 * logarithm of the decay since the chunk's start.  It is kept to base 2, as a sum of two numbers.
 */
#ifndef FASTDERIV_SSD_ADJOINT_H
#define FASTDERIV_SSD_ADJOINT_H
#include "ssd/adjoint_tiles.h"

/* The most steps of a chunk. */
enum { SSD_MOST = 128 };

/* Decays below e**−64, in float64 e**−600, count as 0: products with them would be subnormal, and
 * such a product takes a hundred times as long. */
#ifdef SIMD_F64
# define SSD_FORGOTTEN -865.0
#else
# define SSD_FORGOTTEN -92.33f
#endif

/* 2**(high + low), |low| being far below 1; 0 below SSD_FORGOTTEN, inf above the largest number. */
VINL vf ssd_power(vf high, vf low)
{
    const vf k = high + vset1(MAGIC), x = high + low;
    vf y = vscale2(vpoly2((high - (k - vset1(MAGIC))) + low, 1), k);
    y = vsel_lt(x, vset1(SSD_FORGOTTEN), vset1(0), y);
    y = vsel_lt(vset1(EXP2_HI), x, vset1((real)INFINITY), y);
    return vkeep_nan(x, y);
}

/* ---- decays --------------------------------------------------------------------------------- */

typedef struct {
    real size[SSD_MOST + GL], slope[SSD_MOST + GL]; /* Δ and dΔ/d(dt + bias) */
    real high[SSD_MOST + GL], low[SSD_MOST + GL];   /* c_t·log2(e), inclusive of step t */
    real past[SSD_MOST + GL];                       /* exp(c_t): from the chunk's start to t */
    real rest[SSD_MOST + GL];                       /* exp(c_T − c_t): from t to the end */
    real kept[SSD_MOST + GL];                       /* Δ_t times it */
    real all;                                       /* exp(c_T) */
} SsdChunkDecays;

/* IN d->size; OUT the decays of a chunk of `steps` steps. */
static void ssd_chunk_decays(real A, ssd_ix steps, SsdChunkDecays *d)
{
    const ssd_ix lanes = (steps + GL - 1) / GL * GL;
    const double rate = A * 1.4426950408889634;
    double sum = 0, lost = 0;
    vf high, low;
    ssd_ix t;
    for (t = 0; t < steps; t++) { /* what each sum loses is kept */
        const double term = d->size[t] * rate, next = sum + term, back = next - sum;
        lost += (sum - (next - back)) + (term - back);
        sum = next;
        d->high[t] = (real)sum;
        d->low[t] = (real)((sum - (double)d->high[t]) + lost);
    }
    for (; t < lanes; t++) d->high[t] = d->high[steps - 1], d->low[t] = d->low[steps - 1];
    high = vset1(d->high[steps - 1]), low = vset1(d->low[steps - 1]);
    for (t = 0; t < lanes; t += VL) {
        const vf h = vload(d->high + t), l = vload(d->low + t), rest = ssd_power(high - h, low - l);
        vstore(d->past + t, ssd_power(h, l));
        vstore(d->rest + t, rest);
        vstore(d->kept + t, rest * vload(d->size + t));
    }
    d->all = d->past[steps - 1];
}

/* ---- pairs of steps ------------------------------------------------------------------------- */

typedef struct {
    ssd_ix steps, row;
    const SsdChunkDecays *decays;
    const real *products; /* B_s·C_t */
    const real *inner;    /* x_s·ȳ_t */
    real *mixing;         /* OUT W_st B_s·C_t */
    real *terms;          /* += Δ_s W_st x_s·ȳ_t */
    real *dots;           /* OUT row s: what flows through the decay of step s + 1 */
} SsdPairs;

/* W_st = exp(c_t − c_s) of the lanes t and the rows `from` ≤ s < `to`, and what is made of it.
 * flow: Σ over the rows so far of what x_s has to y_t's part of the loss, in lanes t behind the
 * last row. */
VINL vf ssd_pair_rows(const SsdPairs *p, ssd_ix at, ssd_ix from, ssd_ix to, vf flow,
                      const int diagonal)
{
    const SsdChunkDecays *d = p->decays;
    const vf high = vload(d->high + at), low = vload(d->low + at);
    vf lane = vset1(0);
    ssd_ix s, i;
    if (diagonal) {
        real lanes[VL];
        for (i = 0; i < VL; i++) lanes[i] = (real)(at + i);
        lane = vload(lanes);
    }
    for (s = from; s < to; s++) {
        const ssd_ix o = s * p->row + at;
        const vf w = ssd_power(high - vset1(d->high[s]), low - vset1(d->low[s]));
        const vf b_c = vload(p->products + o);
        const vf e = w * vset1(d->size[s]) * vload(p->inner + o);
        real *dots = p->dots + s * GL + at % GL;
        vstore(p->mixing + o, w * b_c);
        vstore(p->terms + o, vload(p->terms + o) + e);
        flow = vfma(e, b_c, flow);
        if (diagonal) flow = vsel_lt(vset1((real)s), lane, flow, vset1(0));
        vstore(dots, vload(dots) + flow);
    }
    return flow;
}

static void ssd_pairs(const SsdPairs *p)
{
    ssd_ix at, end;
    memset(p->dots, 0, (size_t)(p->steps * GL) * sizeof(real));
    for (at = 0; at < p->steps; at += VL) {
        const vf flow = ssd_pair_rows(p, at, 0, at, vset1(0), 0);
        end = at + VL < p->steps ? at + VL : p->steps;
        ssd_pair_rows(p, at, at, end, flow, 1);
    }
}

/* ---- inputs --------------------------------------------------------------------------------- */

typedef struct {
    ssd_ix steps, columns, row;
    const SsdChunkDecays *decays;
    const real *e;    /* ȳ */
    const real *skip; /* D of each column, or zeros */
    real *x;          /* OUT x_t times Δ_t exp(c_T − c_t) */
    real *dx;         /* IN d(Δx); OUT Δ d(Δx) + D ȳ */
    real *dots;       /* OUT of x · d(Δx) */
    real *dD;         /* OUT Σ_t ȳ_t x_t */
} SsdInputs;

static void ssd_inputs(const SsdInputs *in)
{
    ssd_ix r, i;
    int j;
    memset(in->dD, 0, (size_t)in->columns * sizeof(real));
    for (r = 0; r < in->steps; r++) {
        const vf size = vset1(in->decays->size[r]), kept = vset1(in->decays->kept[r]);
        const real *e = in->e + r * in->row;
        real *x = in->x + r * in->row, *dx = in->dx + r * in->row;
        vf s[NS] = {vset1(0)};
        for (i = 0; i < in->columns; i += GL) {
            UNROLLED
            for (j = 0; j < NS; j++) {
                const ssd_ix o = i + j * VL;
                const vf v = vload(x + o), d = vload(dx + o), w = vload(e + o);
                s[j] = vfma(v, d, s[j]);
                vstore(in->dD + o, vfma(v, w, vload(in->dD + o)));
                vstore(dx + o, vfma(size, d, vload(in->skip + o) * w));
                vstore(x + o, kept * v);
            }
        }
        ssd_put_dots(in->dots + r * GL, s);
    }
}

/* ---- what flows through the decays ---------------------------------------------------------- */

typedef struct {
    ssd_ix steps;
    const SsdChunkDecays *decays;
    const real *inside;  /* [t]: from steps before t to t and later steps of the chunk */
    const real *to_y;    /* from the state before the chunk to y_t */
    const real *to_end;  /* from x_t to the state behind the chunk, apart from Δ_t */
    const real *own;     /* x_t · d(Δx)_t */
    double through;      /* from the state before the chunk to the one behind */
    double A, dA, dbias; /* OUT dA and dbias: the chunk's sums */
    real *ddt;           /* OUT, with a stride */
    ssd_ix stride;
} SsdFlows;

/* dL/d(Δ_t A) is the sum of all that passes through the decay of step t.  Only sums: none is the
 * difference of others, which would leave nothing where decays are strong. */
static void ssd_flows(SsdFlows *f)
{
    const SsdChunkDecays *d = f->decays;
    double before[SSD_MOST], sum = 0;
    ssd_ix t;
    for (t = 0; t < f->steps; t++) {
        before[t] = sum;
        sum += (double)f->to_end[t] * d->size[t];
    }
    f->dA = f->dbias = sum = 0;
    for (t = f->steps - 1; t >= 0; t--) {
        double flow, dt;
        sum += f->to_y[t];
        flow = (f->through + before[t]) + ((t ? f->inside[t - 1] : 0) + sum);
        dt = (f->A * flow + f->own[t]) * d->slope[t];
        f->dA += d->size[t] * flow;
        f->dbias += dt;
        f->ddt[t * f->stride] = (real)dt;
    }
}
#endif
