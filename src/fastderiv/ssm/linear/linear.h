/* linear.h: what the linear recurrence (docs/derivations.md §6.7) needs and Cython cannot say.
 * Included by `_problem.pxi`. */
#ifndef FASTDERIV_LINEAR_H
#define FASTDERIV_LINEAR_H
#include "simd.h"
#include "simd_lanes.h"

/* a·b + c of single numbers, rounded as a lane of vfma is. */
VINL real linear_fma(real a, real b, real c)
{
#if defined(SIMD_FMA) && defined(SIMD_F64)
    return fma(a, b, c);
#elif defined(SIMD_FMA)
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* A few columns that lie anywhere: where each has its first step, and the strides of time. */
enum { CHAINS = 4 };
typedef struct {
    const real *a[CHAINS], *b[CHAINS], *dh[CHAINS];
    real *out[CHAINS];
    ptrdiff_t a_t, b_t, dh_t, out_t;
} LinearChains;

enum { LINEAR_STATES, LINEAR_SLOPES, LINEAR_SUMS };

/* Strides of time, constants where they are known once this is inlined. */
typedef struct {
    ptrdiff_t a, b, dh, out;
    int known;
} LinearStrides;

/* Steps of one column that stand together where strides are constants: then their addresses differ
 * by constants, so that twelve pointers need not be in registers at once.  The CPU looks far enough
 * ahead to overlap columns. */
enum { AT_ONCE = 8 };
#define LINEAR_STEP(t)                                                                             \
    {                                                                                              \
        const real before = s[i];                                                                  \
        s[i] = linear_fma(a[i][(t) * by.a], before, b[i][(t) * by.b]);                             \
        if (what == LINEAR_STATES) out[i][(t) * by.out] = s[i];                                    \
        else if (what == LINEAR_SLOPES) out[i][(t) * by.out] = dh[i][(t) * by.dh] * before;        \
        else part[i] = linear_fma(dh[i][(t) * by.dh], before, part[i]);                            \
    }

/* Steps t0 … t0+n−1 of `count` columns, interleaved, because each is a chain of operations that
 * wait for one another.  IN OUT h, the states.  OUT out: the states (LINEAR_STATES), or the
 * products of dh and the state before (LINEAR_SLOPES).  LINEAR_SUMS: sums += these products. */
VINL void linear_chains_of(const LinearChains *c, const LinearStrides by, const int count,
                           const int what, ptrdiff_t t0, ptrdiff_t n, real *h, real *sums)
{
    real s[CHAINS], part[CHAINS];
    const real *a[CHAINS], *b[CHAINS], *dh[CHAINS];
    real *out[CHAINS];
    ptrdiff_t t, m;
    int i, k;
    UNROLLED
    for (i = 0; i < count; i++) {
        s[i] = h[i], part[i] = what == LINEAR_SUMS ? sums[i] : 0;
        a[i] = c->a[i] + t0 * by.a, b[i] = c->b[i] + t0 * by.b;
        dh[i] = what == LINEAR_STATES ? NULL : c->dh[i] + t0 * by.dh;
        out[i] = what == LINEAR_SUMS ? NULL : c->out[i] + t0 * by.out;
    }
    for (t = 0; t < n; t += m) {
        m = by.known && n - t >= AT_ONCE ? AT_ONCE : 1;
        UNROLLED
        for (i = 0; i < count; i++) {
            if (m == AT_ONCE) {
                UNROLLED
                for (k = 0; k < AT_ONCE; k++) LINEAR_STEP(t + k)
            } else {
                LINEAR_STEP(t)
            }
        }
    }
    UNROLLED
    for (i = 0; i < count; i++) {
        h[i] = s[i];
        if (what == LINEAR_SUMS) sums[i] = part[i];
    }
}

#define LINEAR_COUNTS(what)                                                                        \
    switch (count) {                                                                               \
    case 4: linear_chains_of(c, by, 4, what, t0, n, h, sums); break;                               \
    case 3: linear_chains_of(c, by, 3, what, t0, n, h, sums); break;                               \
    case 2: linear_chains_of(c, by, 2, what, t0, n, h, sums); break;                               \
    default: linear_chains_of(c, by, 1, what, t0, n, h, sums);                                     \
    }

/* CHAINS columns whose steps are neighbours in memory, the common case: half the time. */
static int linear_side_by_side(const LinearChains *c, ptrdiff_t t0, ptrdiff_t n, real *h)
{
    const LinearStrides up = {1, 1, 0, 1, 1}, constant = {0, 1, 0, 1, 1}, down = {-1, -1, 0, -1, 1},
                        constant_down = {0, -1, 0, -1, 1};
    if (c->b_t != c->out_t || (c->a_t && c->a_t != c->b_t)) return 0;
    if (c->b_t == 1 && c->a_t) linear_chains_of(c, up, CHAINS, LINEAR_STATES, t0, n, h, NULL);
    else if (c->b_t == 1) linear_chains_of(c, constant, CHAINS, LINEAR_STATES, t0, n, h, NULL);
    else if (c->b_t == -1 && c->a_t)
        linear_chains_of(c, down, CHAINS, LINEAR_STATES, t0, n, h, NULL);
    else if (c->b_t == -1)
        linear_chains_of(c, constant_down, CHAINS, LINEAR_STATES, t0, n, h, NULL);
    else return 0;
    return 1;
}

static void linear_chains(const LinearChains *c, int count, int what, ptrdiff_t t0, ptrdiff_t n,
                          real *h, real *sums)
{
    const LinearStrides by = {c->a_t, c->b_t, c->dh_t, c->out_t, 0};
    if (count == CHAINS && what == LINEAR_STATES && linear_side_by_side(c, t0, n, h)) return;
    switch (what) {
    case LINEAR_STATES: LINEAR_COUNTS(LINEAR_STATES) break;
    case LINEAR_SLOPES: LINEAR_COUNTS(LINEAR_SLOPES) break;
    default: LINEAR_COUNTS(LINEAR_SUMS)
    }
}
#undef LINEAR_COUNTS
#undef LINEAR_STEP

/* Fetch into the second-level cache: rows whose distance is a power of two share a few places of
 * the first-level one, and would push each other out before they are needed. */
VINL void linear_fetch(const real *p)
{
#if VB
    __builtin_prefetch(p, 0, 2);
#else
    (void)p;
#endif
}

/* Numbers up to the next multiple of 64 bytes. */
VINL ptrdiff_t linear_to_line(const real *p)
{
    return (ptrdiff_t)((64 - ((uintptr_t)p & 63)) & 63) / (ptrdiff_t)sizeof(real);
}

/* 0, 1, …, VL − 1 */
static const real LANE_NUMBERS[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* dst = src, n numbers side by side; meanwhile those `ahead` of src are fetched. */
static void linear_read_run(const real *src, ptrdiff_t ahead, ptrdiff_t n, real *dst)
{
    ptrdiff_t i = 0, k;
    for (; i + GL <= n; i += GL) {
        linear_fetch(src + i + ahead);
        for (k = 0; k < GL; k += VL) vstore(dst + i + k, vload(src + i + k));
    }
    for (; i < n; i++) dst[i] = src[i];
}

/* dst = src, n numbers side by side. */
static void linear_write_run(const real *src, ptrdiff_t n, real *dst)
{
    ptrdiff_t i = 0;
    for (; i + VL <= n; i += VL) vstore(dst + i, vload(src + i));
    for (; i < n; i++) dst[i] = src[i];
}

/* dst = src as above, whole cache lines past the caches. */
static void linear_stream_run(const real *src, ptrdiff_t n, real *dst)
{
    ptrdiff_t i = linear_to_line(dst), k;
    if (i > n) i = n;
    linear_write_run(src, i, dst);
    for (; i + GL <= n; i += GL)
        for (k = 0; k < GL; k += VL) vstream(dst + i + k, vload(src + i + k));
    linear_write_run(src + i, n - i, dst + i);
}

/* Where a block stands in its row: LINEAR_FIRST and LINEAR_LAST as they are written, which is from
 * the end of the row to its start if LINEAR_DOWN. */
enum { LINEAR_FIRST = 1, LINEAR_LAST = 2, LINEAR_DOWN = 4 };

/* dst = block, n numbers side by side, past the caches, block after block of a row.  A cache line
 * that two blocks share is written whole by the later of them: until then its numbers are in
 * IN OUT carry (GL,).  There is room for GL numbers before and behind the block, and every block
 * but the last has GL numbers at least. */
static void linear_write_lines(real *block, ptrdiff_t n, int place, real *dst, real *carry)
{
    const ptrdiff_t line = GL, edge = linear_to_line(place & LINEAR_DOWN ? dst + n : dst);
    ptrdiff_t kept;
    if (place & LINEAR_DOWN) {
        if (!(place & LINEAR_FIRST)) {
            memcpy(block + n, carry, (size_t)edge * sizeof(real));
            n += edge;
        }
        kept = place & LINEAR_LAST ? 0 : linear_to_line(dst);
        memcpy(carry, block, (size_t)kept * sizeof(real));
        linear_stream_run(block + kept, n - kept, dst + kept);
        return;
    }
    if (!(place & LINEAR_FIRST)) {
        kept = (line - edge) % line;
        memcpy(block - kept, carry, (size_t)kept * sizeof(real));
        block -= kept, dst -= kept, n += kept;
    }
    kept = place & LINEAR_LAST ? 0 : (line - linear_to_line(dst + n)) % line;
    memcpy(carry, block + n - kept, (size_t)kept * sizeof(real));
    linear_stream_run(block, n - kept, dst);
}

/* totals += parts, n numbers; parts = 0. */
static void linear_collect(real *parts, ptrdiff_t n, double *totals)
{
    ptrdiff_t i;
    for (i = 0; i < n; i++) {
        totals[i] += (double)parts[i];
        parts[i] = 0;
    }
}

/* The sum of n numbers: eight chains, added in pairs. */
static double linear_total(const double *x, ptrdiff_t n)
{
    double s[8] = {0};
    ptrdiff_t i, k;
    for (i = 0; i + 8 <= n; i += 8)
        for (k = 0; k < 8; k++) s[k] += x[i + k];
    for (k = 0; i + k < n; k++) s[k] += x[i + k];
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}
#endif
