/* activations.h: silu', gelu, gelu' and relu, each relatively accurate far into both tails.
 *
 * docs/derivations.md §3.2.  Each is a closed form in e = exp(-|x|) or exp(-x²/2) that cancels only
 * around a zero of its own (silu' and gelu' have one).  Where e is below the smallest normal number
 * and the result is not, the power of two is applied last.
 *
 * "Largest error" is in units in the last place (ulp) of the result, with FMA and without.  It was
 * found among nine million float32 arguments, compared with SciPy's float64 functions, and sixty
 * thousand float64 arguments, compared with mpmath.  Results below the smallest normal number do
 * not count.  Around a zero of the function the error is absolute, in ulp of 1/4.
 * test_nn_dense.py::test_activations_and_slopes_have_their_digits_in_the_tails checks the bounds.
 */
#ifndef FASTDERIV_ACTIVATIONS_H
#define FASTDERIV_ACTIVATIONS_H
#include "simd.h"

#ifdef SIMD_F64
# define SILU_SLOPE_LO -714.9672556330942 /* here |silu'| is the smallest normal number, */
# define GELU_HI       37.61586831395599  /* here t·Q(t), */
# define GELU_SLOPE_HI 37.71224633973855  /* and here |gelu'(-t)| */
# define HEAD          (~(rint_t)0 << 27) /* keeps 26 bits, whose square is exact */
#else
# define SILU_SLOPE_LO -91.84571f
# define GELU_HI       13.146247f
# define GELU_SLOPE_HI 13.341882f
# define HEAD          (~(rint_t)0 << 12)
#endif

/* silu'(x) = σ(x)·(1 + x·σ(-x)), and (1 + x)·exp(x) below EXP_LO.
 * Domain: all reals; 0 below SILU_SLOPE_LO, 1 at +inf.  Zero at -1.2785.
 * Largest error: float32 / float64 5.2 / 4.0 with FMA, at -4.8; 5.8 / 4.8 without, at -4.8 / -4.1.
 * From -2.5 to -0.8 absolutely 1.4 / 1.2 and 1.5 / 1.2. */
VINL vf vsilu_grad(vf x)
{
    const vf t = vneg(vabs(x)), zero = vset1(0), one = vset1(1);
    vf k, p = vexp_parts(t, &k), e = vsel_lt(t, vset1(EXP_LO), zero, vscale2(p, k));
    vf r = one / (one + e), q = e * r, y;
    const vf finite = vsel_lt(vset1(1e30), x, zero, x); /* at x = inf not inf·0 */
    y = vsel_lt(x, zero, q, r) * vfma(finite, vsel_lt(x, zero, r, q), one);
    y = vsel_lt(x, vset1(EXP_LO), vscale2((one + x) * p, k), y);
    return vkeep_nan(x, vsel_lt(x, vset1(SILU_SLOPE_LO), zero, y));
}

/* The upper tail of the normal distribution, Q(t) = 2**k · p · R(t): R is returned.
 * OUT p, k with p·2**k = exp(-t²/2).  t² is formed in two parts; k carries MAGIC (see vexp_parts).
 * Domain: 0 <= t <= 40.
 * Largest error: R, a quotient of polynomials without a negative coefficient, is within 6e-9
 * (float32) and 5e-17 (float64) of the function relatively, before rounding. */
VINL vf vnormal_tail(vf t, vf *p, vf *k)
{
    const vf head = as_f(as_i(t) & viset1(HEAD)), half = vset1((real)-0.5);
    const vf hi = half * (head * head), lo = half * ((t - head) * (t + head));
    vf r, n, d;
    *k = vfma(hi + lo, vset1(LOG2E), vset1(MAGIC));
    r = *k - vset1(MAGIC);
    r = vfma(r, vset1(-(real)LN2_LO), vfma(r, vset1(-(real)LN2_HI), hi)) + lo;
    *p = vpoly2(r * vset1(LOG2E), 1);
#ifdef SIMD_F64
    n = vset1(1.385784335548032871e-6), d = vset1(3.473646198035753337e-6);
    n = vfma(n, t, vset1(3.725577260619216572e-5)), d = vfma(d, t, vset1(9.338637300576782604e-5));
    n = vfma(n, t, vset1(0.0004904329940155183038)), d = vfma(d, t, vset1(0.00123280685600868724));
    n = vfma(n, t, vset1(0.004089408888260769272)), d = vfma(d, t, vset1(0.01034401430765616216));
    n = vfma(n, t, vset1(0.02362281993847725838)), d = vfma(d, t, vset1(0.06043601472713633303));
    n = vfma(n, t, vset1(0.0977004753273181291)), d = vfma(d, t, vset1(0.2549626173794481574));
    n = vfma(n, t, vset1(0.2893347862557500853)), d = vfma(d, t, vset1(0.7820446986261641286));
    n = vfma(n, t, vset1(0.5940487897465621701)), d = vfma(d, t, vset1(1.714386909512054666));
    n = vfma(n, t, vset1(0.7748753016919601968)), d = vfma(d, t, vset1(2.561239431395976753));
    n = vfma(n, t, vset1(0.4999999999999999744)), d = vfma(d, t, vset1(2.347635164186775585));
#else
    n = vset1(0.004116249466170299372f), d = vset1(0.01031778760781088914f);
    n = vfma(n, t, vset1(0.04063310381930110295f)), d = vfma(d, t, vset1(0.1018585318884968508f));
    n = vfma(n, t, vset1(0.1832352099702982027f)), d = vfma(d, t, vset1(0.4694706930958157191f));
    n = vfma(n, t, vset1(0.4382957211398430953f)), d = vfma(d, t, vset1(1.202504522040666743f));
    n = vfma(n, t, vset1(0.500000002946929487f)), d = vfma(d, t, vset1(1.674476422681030477f));
#endif
    return n / vfma(d, t, vset1(1));
}

/* gelu(x) = x·Φ(x) = max(x, 0) - |x|·Q(|x|).
 * Domain: all reals; 0 below -GELU_HI.
 * Largest error: float32 / float64 6.0 / 6.3 with FMA, at -11.4 / -25.5; 7.9 / 8.2 without, at
 * -12.3 / -8.0. */
VINL vf vgelu(vf x)
{
    const vf t = vmin(vabs(x), vset1(40));
    vf p, k, r = vnormal_tail(t, &p, &k), tail = vscale2(p * (t * r), k);
    tail = vsel_lt(vset1(GELU_HI), t, vset1(0), tail);
    return vkeep_nan(x, vmax(x, vset1(0)) - tail);
}

/* gelu'(x) = Φ(x) + x·φ(x) = [x > 0] ± exp(-x²/2)·(R(|x|) - |x|/√(2π)), with - for x > 0.
 * Domain: all reals; 0 below -GELU_SLOPE_HI.  Zero at -0.7518.
 * Largest error: float32 / float64 4.2 / 3.9 with FMA, at -0.34 / -1.24; 5.6 / 4.2 without, at
 * -1.27 / -0.36.  From -1.2 to -0.4 absolutely 2.2 / 1.8 and 2.5 / 2.4. */
VINL vf vgelu_grad(vf x)
{
    const vf t = vmin(vabs(x), vset1(40)), zero = vset1(0);
    vf p, k, r = vnormal_tail(t, &p, &k), e = vscale2(p, k), y;
    r = vfma(t, vset1((real)-0.398942280401432678), r);
    y = vsel_lt(t, vset1(1), e * r, vscale2(p * r, k)); /* below 1, r may be 0 */
    y = vsel_lt(vset1(GELU_SLOPE_HI), t, zero, y);
    return vkeep_nan(x, vsel_lt(zero, x, vset1(1) - y, y));
}

/* relu(x) = max(0, x); NaN stays NaN.  Exact. */
VINL vf vrelu(vf x) { return vmax(vset1(0), x); }
#endif
