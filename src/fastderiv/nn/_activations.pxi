# Activations and their derivatives, relative into both tails; included by _kernels.pyx.
#
# Each derivative is a closed form in e = exp(−|x|) that cancels nowhere but around a zero of its own (silu', gelu');
# where e is below the smallest normal number and the result is not, the power of two is applied last.
from libc.string cimport memcpy, memset
from fastderiv._core.simd cimport vmax, vsel_lt, vset1, vsigmoid, vsigmoid_grad, vsilu, vsoftplus, vtanh, vtanh_slope

cdef extern from *:
    """
    #ifdef SIMD_F64
    # define SILU_SLOPE_LO -714.9672556330942            /* |silu'(x)| is the smallest normal number */
    # define GELU_HI        37.61586831395599            /* t·Q(t) is, Q the upper tail of the normal distribution */
    # define GELU_SLOPE_HI  37.71224633973855
    # define HEAD ((rint_t)-1 << 27)                     /* 26 bits: their square is exact */
    #else
    # define SILU_SLOPE_LO -91.84571f
    # define GELU_HI        13.146247f
    # define GELU_SLOPE_HI  13.341882f
    # define HEAD ((rint_t)-1 << 12)
    #endif

    VINL vf vsilu_grad(vf x)                            /* σ(x)·(1 + x·σ(−x)); (1 + x)·exp(x) below EXP_LO */
    {
        const vf t = vneg(vabs(x)), zero = vset1(0), one = vset1(1);
        vf k, p = vexp_parts(t, &k), e = vsel_lt(t, vset1(EXP_LO), zero, vscale2(p, k)), r = one / (one + e), q = e * r, y;
        y = vsel_lt(x, zero, q, r) * vfma(vsel_lt(vset1(1e30), x, zero, x), vsel_lt(x, zero, r, q), one);  /* not inf·0 */
        y = vsel_lt(x, vset1(EXP_LO), vscale2((one + x) * p, k), y);
        return vkeep_nan(x, vsel_lt(x, vset1(SILU_SLOPE_LO), zero, y));
    }

    /* Q(t) = 2**k · p · R(t) for t >= 0: p·2**k = exp(−t²/2), t² in two parts, k carrying MAGIC; R is within 6e-9 / 5e-17
     * relatively, a quotient of polynomials without a negative coefficient. */
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
        n = vfma(n, t, vset1(0.00003725577260619216572)), d = vfma(d, t, vset1(0.00009338637300576782604));
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
    VINL vf vgelu(vf x)                                 /* x·Φ(x) = max(x, 0) − |x|·Q(|x|) */
    {
        const vf t = vmin(vabs(x), vset1(40));
        vf p, k, r = vnormal_tail(t, &p, &k), tail = vscale2(p * (t * r), k);
        tail = vsel_lt(vset1(GELU_HI), t, vset1(0), tail);
        return vkeep_nan(x, vmax(x, vset1(0)) - tail);
    }
    VINL vf vgelu_grad(vf x)                            /* Φ(x) + x·φ(x) = [x > 0] ± exp(−x²/2)·(R(|x|) − |x|/√(2π)) */
    {
        const vf t = vmin(vabs(x), vset1(40)), zero = vset1(0);
        vf p, k, r = vnormal_tail(t, &p, &k), e = vscale2(p, k), y;
        r = vfma(t, vset1((real)-0.398942280401432678), r);
        y = vsel_lt(t, vset1(1), e * r, vscale2(p * r, k));                     /* below 1 r may be 0 */
        y = vsel_lt(vset1(GELU_SLOPE_HI), t, zero, y);
        return vkeep_nan(x, vsel_lt(zero, x, vset1(1) - y, y));
    }
    VINL vf vrelu(vf x) { return vmax(vset1(0), x); }   /* NaN stays */
    """
    vf vkeep_nan(vf x, vf y) nogil
    vf vsilu_grad(vf x) nogil
    vf vgelu(vf x) nogil
    vf vgelu_grad(vf x) nogil
    vf vrelu(vf x) nogil

cdef enum Curve:                        # in the order of _activations.NAMES
    IDENTITY, SIGMOID, TANH, RELU, SOFTPLUS, SILU, GELU


cdef inline vf phi(vf x, const Curve curve) noexcept nogil:
    if curve == SIGMOID:
        return vsigmoid(x)
    if curve == TANH:
        return vtanh(x)
    if curve == RELU:
        return vrelu(x)
    if curve == SOFTPLUS:
        return vsoftplus(x)
    if curve == SILU:
        return vsilu(x)
    if curve == GELU:
        return vgelu(x)
    return x


cdef inline vf phi_slope(vf x, vf *slope, const Curve curve, const bint keep) noexcept nogil:
    """φ(x), and φ'(x) in `slope` if `keep`."""
    if keep and curve == TANH:
        return vtanh_slope(x, slope)
    if keep:
        slope[0] = phi_vjp(x, vset1(1), curve)
    return phi(x, curve)


cdef inline vf phi_vjp(vf x, vf dy, const Curve curve) noexcept nogil:
    """dy·φ'(x).  Where relu is 0 it hears nothing from dy, infinite or not."""
    cdef vf slope
    if curve == SIGMOID:
        return dy * vsigmoid_grad(x)
    if curve == TANH:
        vtanh_slope(x, &slope)
        return dy * slope
    if curve == RELU:
        return vkeep_nan(x, vsel_lt(vset1(0), x, dy, vset1(0)))
    if curve == SOFTPLUS:
        return dy * vsigmoid(x)
    if curve == SILU:
        return dy * vsilu_grad(x)
    if curve == GELU:
        return dy * vgelu_grad(x)
    return dy
