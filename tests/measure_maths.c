/* The largest errors of simd_math.h's functions, and where they were found.
 *
 *     cc -O2 -fno-math-errno -ffp-contract=off -march=x86-64-v3 -DSIMD_FMA [-DSIMD_F64] \
 *         -Isrc/fastderiv/_core tests/measure_maths.c -lm -o measure && ./measure [millions]
 *
 * Every function is compared with long double arithmetic, whose own error is below 0.001 of a
 * float64's last place (on x86-64, where long double has 64 bits).  float32: numbers of all
 * magnitudes and signs, evenly spaced in their bits.  float64: random ones, uniform in the range,
 * uniform in the exponent, and close to the ends of the range.  Results below the smallest normal
 * number are left out, as they may be flushed to 0.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "simd_math.h"

static uint64_t state = 1;

static uint64_t random_bits(void)
{
    uint64_t z = state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

static double uniform(double lo, double hi)
{
    return lo + (hi - lo) * (double)(random_bits() >> 11) * 0x1p-53;
}

#ifdef SIMD_F64
# define REACH    760.0
# define DIGITS   53
# define SMALLEST 0x1p-1022L
# define LARGEST  0x1.fffffffffffffp1023L
#else
# define REACH    110.0
# define DIGITS   24
# define SMALLEST 0x1p-126L
# define LARGEST  0x1.fffffep127L
#endif

static real number(long i, long count)
{
#ifdef SIMD_F64
    (void)count;
    switch (i % 4) {
    case 0: return uniform(-REACH, REACH);
    case 1: return uniform(-2, 2);
    case 2: return ldexp(uniform(0.5, 1), (int)uniform(-60, 10)) * (random_bits() & 1 ? 1 : -1);
    default: return uniform(-40, 40);
    }
#else
    /* every float from 2**-40 to REACH, or as many as were asked for */
    const uint32_t lo = 0x2b800000, hi = 0x42dc0000;
    const uint32_t bits = lo + (uint32_t)((double)i / (double)count * (double)(hi - lo));
    const uint32_t signed_bits = bits | (random_bits() & 1 ? 0x80000000u : 0);
    real x;
    memcpy(&x, &signed_bits, sizeof x);
    return x;
#endif
}

static long double exact_sigmoid(long double x)
{
    return x < 0 ? expl(x) / (1 + expl(x)) : 1 / (1 + expl(-x));
}

static long double exact_exp(long double x) { return expl(x); }
static long double exact_exp2(long double x) { return exp2l(x); }
static long double exact_tail(long double x) { return copysignl(exact_sigmoid(-fabsl(x)), x); }
static long double exact_silu(long double x) { return x * exact_sigmoid(x); }
static long double exact_softplus(long double x)
{
    return (x > 0 ? x : 0) + log1pl(expl(-fabsl(x)));
}
static long double exact_log1p(long double x) { return log1pl(x); }
static long double exact_tanh(long double x) { return tanhl(x); }
static long double exact_sigmoid_grad(long double x)
{
    const long double e = expl(-fabsl(x));
    return e / ((1 + e) * (1 + e));
}
static long double exact_silu_slope(long double x)
{
    return exact_sigmoid(x) * (1 + x * exact_sigmoid(-x));
}
static long double exact_tanh_slope(long double x)
{
    const long double e = expl(-2 * fabsl(x));
    return 4 * e / ((1 + e) * (1 + e));
}

static vf slope_of_silu(vf x)
{
    vf slope;
    vsilu_slope(x, &slope);
    return slope;
}
static vf silu_beside_slope(vf x)
{
    vf slope;
    return vsilu_slope(x, &slope);
}
static vf slope_of_softplus(vf x)
{
    vf slope;
    vsoftplus_slope(x, &slope);
    return slope;
}
static vf softplus_beside_slope(vf x)
{
    vf slope;
    return vsoftplus_slope(x, &slope);
}
static vf slope_of_tanh(vf x)
{
    vf slope;
    vtanh_slope(x, &slope);
    return slope;
}
static vf tanh_beside_slope(vf x)
{
    vf slope;
    return vtanh_slope(x, &slope);
}
static vf exp2_of(vf x) { return vexp2_any(x, vset1(1)); }
static vf exp2_neg_of(vf x) { return vexp2_neg(x, vset1(1)); }
static vf log1p_of(vf x) { return vlog1p01(x); }
static vf exp_of(vf x) { return vexp(x); }
static vf exp_neg_of(vf x) { return vexp_neg(x); }
static vf sigmoid_of(vf x) { return vsigmoid(x); }
static vf tail_of(vf x) { return vtail(x); }
static vf sigmoid_grad_of(vf x) { return vsigmoid_grad(x); }
static vf silu_of(vf x) { return vsilu(x); }
static vf softplus_of(vf x) { return vsoftplus(x); }
static vf tanh_of(vf x) { return vtanh(x); }

typedef struct {
    const char *name;
    vf (*ours)(vf);
    long double (*exact)(long double);
    long double lo, hi; /* the function's domain */
} Case;

static const Case CASES[] = {
    {"vexp2_any(x, 1)", exp2_of, exact_exp2, -INFINITY, INFINITY},
    {"vexp2_neg(x, 1)", exp2_neg_of, exact_exp2, -INFINITY, 0},
    {"vexp", exp_of, exact_exp, -INFINITY, INFINITY},
    {"vexp_neg", exp_neg_of, exact_exp, -INFINITY, 0},
    {"vsigmoid", sigmoid_of, exact_sigmoid, -INFINITY, INFINITY},
    {"vtail", tail_of, exact_tail, -INFINITY, INFINITY},
    {"vsigmoid_grad", sigmoid_grad_of, exact_sigmoid_grad, -INFINITY, INFINITY},
    {"vsilu", silu_of, exact_silu, -INFINITY, INFINITY},
    {"vsilu_slope", silu_beside_slope, exact_silu, EXP_LO, INFINITY},
    {"vsilu_slope: slope, x > -1", slope_of_silu, exact_silu_slope, -1, INFINITY},
    {"vsilu_slope: slope, x < -2", slope_of_silu, exact_silu_slope, EXP_LO, -2},
    {"vlog1p01", log1p_of, exact_log1p, 0, 1},
    {"vsoftplus", softplus_of, exact_softplus, -INFINITY, INFINITY},
    {"vsoftplus_slope", softplus_beside_slope, exact_softplus, -INFINITY, INFINITY},
    {"vsoftplus_slope: slope", slope_of_softplus, exact_sigmoid, -INFINITY, INFINITY},
    {"vtanh", tanh_of, exact_tanh, -INFINITY, INFINITY},
    {"vtanh_slope", tanh_beside_slope, exact_tanh, -INFINITY, INFINITY},
    {"vtanh_slope: slope", slope_of_tanh, exact_tanh_slope, -INFINITY, INFINITY},
};

static long double last_place(long double exact)
{
    int exponent;
    frexpl(exact, &exponent);
    return ldexpl(1, exponent - DIGITS);
}

static void measure(const Case *c, long count)
{
    real x[VL], y[VL], where = 0;
    long double worst = 0;
    long i;
    int k;
    for (i = 0; i < count; i += VL) {
        for (k = 0; k < VL; k++) {
            x[k] = number(i + k, count);
            if (!(x[k] > c->lo && x[k] < c->hi)) x[k] = -x[k];
            if (!(x[k] > c->lo && x[k] < c->hi)) x[k] = (real)(c->hi < INFINITY ? c->hi : c->lo);
        }
        vstore(y, c->ours(vload(x)));
        for (k = 0; k < VL; k++) {
            const long double exact = c->exact(x[k]);
            if (fabsl(exact) < SMALLEST || fabsl(exact) > LARGEST) continue;
            const long double error = fabsl(y[k] - exact) / last_place(exact);
            if (error > worst || error != error) worst = error, where = x[k];
        }
    }
    printf("%-28s %.2Lf ulp at x = %.9g\n", c->name, worst, (double)where);
}

/* 2**(d·a) as scale·(1 + rest), which is never rounded: its relative error in units of 2**-DIGITS. */
static void measure_ratio(long count)
{
    real d[VL], a[VL], scale[VL], rest[VL];
    long double worst = 0;
    double where = 0;
    long i;
    int k;
    for (i = 0; i < count; i += VL) {
        vf r;
        for (k = 0; k < VL; k++) {
            a[k] = (real)uniform(-16, 0), d[k] = (real)ldexp(uniform(0.5, 1), (int)uniform(-20, 4));
        }
        vstore(scale, vratio_safe(vload(d), vload(a), &r)), vstore(rest, r);
        for (k = 0; k < VL; k++) {
            const real p = d[k] * a[k];
            const real left = (real)fma(d[k], a[k], -p);
            const long double exact = exp2l(p) * (1 + 0.6931471805599453L * left);
            const long double ours = (long double)scale[k] * (1 + (long double)rest[k]);
            const long double error = ldexpl(fabsl(ours / exact - 1), DIGITS);
            if (fabsl(p) < EXP2_SAFE && error > worst) worst = error, where = p;
        }
    }
    printf("%-28s %.2Lf u relatively at d·a = %.9g\n", "vratio_safe", worst, where);
}

int main(int argc, char **argv)
{
    const long count = (argc > 1 ? atol(argv[1]) : 16) * 1024 * 1024;
    size_t i;
    for (i = 0; i < sizeof CASES / sizeof *CASES; i++) measure(&CASES[i], count);
    measure_ratio(count);
    return 0;
}
