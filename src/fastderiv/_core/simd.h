/* simd.h: one logical vector type `vf` of VL lanes of `real`, picked by the CPU level this file is compiled for.
 *
 * A kernel written on it is one source for every level.  Compiled with -ffp-contract=off and with every fused
 * multiply-add written as vfma, x86-64-v3 and -v4 give the same bits; a level without FMA differs in rounding only.
 * Sums over lanes go over logical groups of GL = 64 bytes with an adjacent-pair tree: the same bits for every VL.
 */
#ifndef FASTDERIV_SIMD_H
#define FASTDERIV_SIMD_H
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__FAST_MATH__) || defined(_M_FP_FAST)
# error "fastderiv needs IEEE arithmetic: build it without -ffast-math"
#endif

#ifdef SIMD_F64
typedef double real; typedef uint64_t rint_t;
#else
typedef float real; typedef uint32_t rint_t;
#endif

#ifndef VB                                             /* bytes in a vector; 0: scalar code, VL = 1 */
# if !defined(__GNUC__) && !defined(__clang__)
#  define VB 0
# elif defined(__AVX512F__) && defined(__AVX512DQ__)
#  define VB 64
# elif defined(__AVX2__)
#  define VB 32
# elif defined(__SSE2__) || defined(__aarch64__) || defined(__VSX__)
#  define VB 16
# else
#  define VB 0
# endif
#endif

#if VB
# define VINL static inline __attribute__((always_inline))
#elif defined(_MSC_VER)
# define VINL static __forceinline
#else
# define VINL static inline
#endif
#if defined(__x86_64__) && VB
# include <immintrin.h>
#elif defined(__aarch64__) && VB
# include <arm_neon.h>
# define SIMD_FMA                                      /* part of the base architecture */
#endif

/* Cython's `cdef inline` must mean it: kernels are templates over constant flags. */
#if VB
# undef CYTHON_INLINE
# define CYTHON_INLINE inline __attribute__((always_inline, unused))
#endif

/* ---- loads, stores, bits -------------------------------------------------------------------------------------- */
#if VB
enum { VL = VB / sizeof(real) };
typedef real   vf  __attribute__((vector_size(VB)));
typedef rint_t vi  __attribute__((vector_size(VB)));
typedef real   vfu __attribute__((vector_size(VB), aligned(sizeof(real)), may_alias));
VINL vf   vload(const real *p)         { return *(const vfu *)p; }
VINL void vstore(real *p, vf v)        { *(vfu *)p = v; }
VINL vf   vset1(real x)                { return x - (vf){0}; }
VINL vi   viset1(rint_t x)             { return x - (vi){0}; }
VINL vf   as_f(vi x)                   { return (vf)x; }
VINL vi   as_i(vf x)                   { return (vi)x; }
VINL real vget(vf v, int i)            { return v[i]; }
VINL vf   vneg(vf a)                   { return -a; }
# define VCMP(a, op, b) ((vi)((a) op (b)))
VINL vf   vpick(vi m, vf a, vf b)      { return (vf)((m & (vi)a) | (~m & (vi)b)); }
VINL void vprefetch(const void *p)     { __builtin_prefetch(p); }
#else
enum { VL = 1 };
typedef real vf; typedef rint_t vi;
VINL vf   vload(const real *p)         { return *p; }
VINL void vstore(real *p, vf v)        { *p = v; }
VINL vf   vset1(real x)                { return x; }
VINL vi   viset1(rint_t x)             { return x; }
VINL vf   as_f(vi x)                   { vf y; memcpy(&y, &x, sizeof y); return y; }
VINL vi   as_i(vf x)                   { vi y; memcpy(&y, &x, sizeof y); return y; }
VINL real vget(vf v, int i)            { (void)i; return v; }
VINL vf   vneg(vf a)                   { return -a; }
# define VCMP(a, op, b) ((vi)-(rint_t)((a) op (b)))
VINL vf   vpick(vi m, vf a, vf b)      { return m ? a : b; }
VINL void vprefetch(const void *p)     { (void)p; }
#endif

/* where plain C operators do not reach the instruction; max and min return the second operand if either is NaN */
#ifdef SIMD_F64
# define X512(op) _mm512_##op##_pd
# define X256(op) _mm256_##op##_pd
# define X128(op) _mm_##op##_pd
# define NEON(op) op##q_f64
# define NEON_T   float64x2_t
#else
# define X512(op) _mm512_##op##_ps
# define X256(op) _mm256_##op##_ps
# define X128(op) _mm_##op##_ps
# define NEON(op) op##q_f32
# define NEON_T   float32x4_t
#endif
#if VB == 64
VINL vf vmax(vf a, vf b) { return (vf)X512(max)(a, b); }
VINL vf vmin(vf a, vf b) { return (vf)X512(min)(a, b); }
VINL void vstream(real *p, vf v) { X512(stream)(p, v); }
#elif VB == 32
VINL vf vmax(vf a, vf b) { return (vf)X256(max)(a, b); }
VINL vf vmin(vf a, vf b) { return (vf)X256(min)(a, b); }
VINL void vstream(real *p, vf v) { X256(stream)(p, v); }
#elif VB == 16 && defined(__SSE2__)
VINL vf vmax(vf a, vf b) { return (vf)X128(max)(a, b); }
VINL vf vmin(vf a, vf b) { return (vf)X128(min)(a, b); }
VINL void vstream(real *p, vf v) { X128(stream)(p, v); }
#else
VINL vf vmax(vf a, vf b) { return vpick(VCMP(a, >, b), a, b); }
VINL vf vmin(vf a, vf b) { return vpick(VCMP(a, <, b), a, b); }
VINL void vstream(real *p, vf v) { vstore(p, v); }
#endif
VINL void vstream_end(void)
{
#if defined(__SSE2__) && VB
    _mm_sfence();
#endif
}

#if VB == 64 && defined(SIMD_FMA)
VINL vf vfma(vf a, vf b, vf c) { return (vf)X512(fmadd)(a, b, c); }
VINL vf vfms(vf a, vf b, vf c) { return (vf)X512(fmsub)(a, b, c); }
#elif VB == 32 && defined(SIMD_FMA)
VINL vf vfma(vf a, vf b, vf c) { return (vf)X256(fmadd)(a, b, c); }
VINL vf vfms(vf a, vf b, vf c) { return (vf)X256(fmsub)(a, b, c); }
#elif VB == 16 && defined(__aarch64__)
VINL vf vfma(vf a, vf b, vf c) { return (vf)NEON(vfma)((NEON_T)c, (NEON_T)a, (NEON_T)b); }
VINL vf vfms(vf a, vf b, vf c) { return vfma(a, b, -c); }
#else
VINL vf vfma(vf a, vf b, vf c) { return a * b + c; }
VINL vf vfms(vf a, vf b, vf c) { return a * b - c; }
#endif

/* a < b ? x : y, lane by lane (false where a or b is NaN) */
#if VB == 64
# ifdef SIMD_F64
VINL vf vsel_lt(vf a, vf b, vf x, vf y) { return (vf)_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), y, x); }
# else
VINL vf vsel_lt(vf a, vf b, vf x, vf y) { return (vf)_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x); }
# endif
#else
VINL vf vsel_lt(vf a, vf b, vf x, vf y) { return vpick(VCMP(a, <, b), x, y); }
#endif
VINL vf vkeep_nan(vf x, vf y) { return vpick(VCMP(x, ==, x), y, x); }       /* x where x is NaN, else y */
VINL int vall_lt(vf a, vf b)                                                /* every lane a < b */
{
#if VB == 64
# ifdef SIMD_F64
    return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ) == 0xff;
# else
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) == 0xffff;
# endif
#else
    int i;
    for (i = 0; i < VL; i++)
        if (!(vget(a, i) < vget(b, i))) return 0;
    return 1;
#endif
}
VINL vf vabs(vf a) { return as_f(as_i(a) & viset1((rint_t)-1 >> 1)); }
VINL vf vcopysign(vf a, vf b)                                               /* |a| with the sign of b, -0 and NaN included */
{
    const vi m = viset1((rint_t)-1 >> 1);
    return as_f((as_i(a) & m) | (as_i(b) & ~m));
}

/* ---- lanes as bits, lane 0 the lowest ------------------------------------------------------------------------- */
VINL unsigned vlt(vf a, vf b)                                               /* which lanes have a < b */
{
#if VB == 64 && defined(SIMD_F64)
    return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ);
#elif VB == 64
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
#elif VB == 32
    return (unsigned)X256(movemask)((vf)VCMP(a, <, b));
#elif VB == 16 && defined(__SSE2__)
    return (unsigned)X128(movemask)((vf)VCMP(a, <, b));
#else
    unsigned k = 0;
    int i;
    for (i = 0; i < VL; i++) k |= (unsigned)(vget(a, i) < vget(b, i)) << i;
    return k;
#endif
}
#if VB
VINL int vcount(unsigned lanes) { return __builtin_popcount(lanes); }
VINL int vfirst(unsigned lanes) { return __builtin_ctz(lanes); }            /* lanes != 0 */
#else
VINL int vcount(unsigned lanes) { return (int)lanes & 1; }
VINL int vfirst(unsigned lanes) { (void)lanes; return 0; }
#endif
/* The chosen lanes of v, close together, to p; what follows them in the VL numbers at p may be overwritten.
 * (Compressing straight to memory is microcode on some CPUs.) */
VINL void vcompress(real *p, vf v, unsigned lanes)
{
#if VB == 64 && defined(SIMD_F64)
    vstore(p, (vf)_mm512_maskz_compress_pd((__mmask8)lanes, v));
#elif VB == 64
    vstore(p, (vf)_mm512_maskz_compress_ps((__mmask16)lanes, v));
#else
    for (; lanes; lanes &= lanes - 1) *p++ = vget(v, vfirst(lanes));
#endif
}

/* ---- exp and its family ---------------------------------------------------------------------------------------
 * 2**x = 2**k · p(f), k = round(x), |f| <= 1/2.  p is minimax with p(0) = 1 and, in float32, p'(0) = ln 2 to the last bit
 * (float64: to 6e-15): the slope at 0 is what a slowly decaying recurrence accumulates.  k is added to the exponent field
 * of p, so a result is wrong only beyond the normal range, where the callers below select 0 or inf.
 * Largest errors against mpmath, in units of the last place (tests/test_core.py): exp 1.4 / 1.5 (float32 / float64),
 * sigmoid 2.5 / 2.1, silu 3.3 / 2.6, softplus 3.0 / 2.5, tanh 3.4 / 3.4, its derivative 6 / 6;
 * results below the smallest normal number become 0.
 */
#ifdef SIMD_F64
# define MAGIC    6755399441055744.0                  /* 1.5 * 2**52: adding it rounds to an integer in the low bits */
# define MBITS    52
# define EXP_BIAS 1023.0
# define EXP_LO   -708.3964185322641                  /* log of the smallest normal number */
# define EXP_HI   709.782712893384
# define SILU_LO  -714.9686572379664                  /* |x| exp(x) is the smallest normal number */
# define LN2_HI   0.6931471803691238                  /* 32 bits: k * LN2_HI is exact */
# define LN2_LO   1.9082149292705877e-10
# define EXP2_SAFE 1020.0                             /* |x| below this: 2**x is normal */
# define EXP2_LO  -1022.0                              /* the ends of the normal range */
# define EXP2_HI  1023.9999999999999
# define LOG2E    1.4426950408889634
#else
# define MAGIC    12582912.0f
# define MBITS    23
# define EXP_BIAS 127.0f
# define EXP_LO   -87.33654f
# define EXP_HI   88.72283f
# define SILU_LO  -91.856775f
# define LN2_HI   0.693359375f
# define LN2_LO   -2.12194440e-4f
# define EXP2_SAFE 125.0f
# define EXP2_LO  -126.0f
# define EXP2_HI  127.99999f
# define LOG2E    1.44269504f
#endif

/* (2**f - 1)/f, |f| <= 1/2; 2**f is within 1e-7 / 2.2e-16 relatively, sharp 3e-9 / 4e-18 with the exact slope.  float64
 * keeps even and odd powers apart: half the latency of Horner's chain. */
VINL vf vslope2(vf f, const int sharp)
{
#ifdef SIMD_F64
    const vf q = f * f;
    vf e, o;
    if (sharp) {
        e = vset1(7.073271274866685e-09), o = vset1(4.4389322778368475e-10);
        o = vfma(o, q, vset1(1.0178159783001461e-07));
        e = vfma(e, q, vset1(1.3215438598561965e-06));
        o = vfma(o, q, vset1(1.5252733634039083e-05));
        e = vfma(e, q, vset1(0.0001540353044955291));
        o = vfma(o, q, vset1(0.001333355814654691));
        e = vfma(e, q, vset1(0.009618129107601148));
        o = vfma(o, q, vset1(0.055504108664821715));
        e = vfma(e, q, vset1(0.24022650695910108));
        o = vfma(o, q, vset1(0.6931471805599453));
    } else {
        e = vset1(7.038175296843389e-09), o = vset1(1.0208323032598086e-07);
        e = vfma(e, q, vset1(1.3215653627079829e-06));
        o = vfma(o, q, vset1(1.5252659428861379e-05));
        e = vfma(e, q, vset1(0.0001540352999417233));
        o = vfma(o, q, vset1(0.001333355822579508));
        e = vfma(e, q, vset1(0.009618129107983191));
        o = vfma(o, q, vset1(0.05550410866448188));
        e = vfma(e, q, vset1(0.240226506959091));
        o = vfma(o, q, vset1(0.6931471805599492));
    }
    return vfma(e, f, o);
#else
    vf p;
    if (sharp) {
        p = vset1(0.00015324279956985265f);
        p = vfma(p, f, vset1(0.0013390980893746018f));
        p = vfma(p, f, vset1(0.009618517942726612f));
        p = vfma(p, f, vset1(0.05550359562039375f));
        p = vfma(p, f, vset1(0.24022647738456726f));
    } else {
        p = vset1(0.0013300590217113495f);
        p = vfma(p, f, vset1(0.00966971181333065f));
        p = vfma(p, f, vset1(0.05550558492541313f));
        p = vfma(p, f, vset1(0.24022281169891357f));
    }
    return vfma(p, f, vset1(0.6931471824645996f));
#endif
}
VINL vf vpoly2(vf f, const int sharp) { return vfma(vslope2(f, sharp), f, vset1(1)); }
VINL vf vscale2(vf p, vf k) { return as_f(as_i(p) + (as_i(k) << MBITS)); }  /* p * 2**k, k still carrying MAGIC */

/* 2**(d*a) where |d*a| < EXP2_SAFE is known: ten instructions */
VINL vf vexp2_safe(vf d, vf a)
{
    vf k = vfma(d, a, vset1(MAGIC));
    return vscale2(vpoly2(vfms(d, a, k - vset1(MAGIC)), 0), k);
}
/* 2**(d*a) for any d and a: 0 below the smallest normal number, inf above the largest, NaN stays; same bits as above */
VINL vf vexp2_any(vf d, vf a)
{
    const vf x = d * a;
    vf y = vexp2_safe(d, a);
    y = vsel_lt(x, vset1(EXP2_LO), vset1(0), y);
    y = vsel_lt(vset1(EXP2_HI), x, vset1((real)INFINITY), y);
    return vkeep_nan(x, y);
}

/* 2**(d*a) for d*a below EXP2_SAFE, -inf included: 0 below the smallest normal number; same bits as above */
VINL vf vexp2_neg(vf d, vf a) { return vsel_lt(d * a, vset1(EXP2_LO), vset1(0), vexp2_safe(d, a)); }

/* One step of a recurrence, h·2**(d·a) + x·b, where |d·a| < EXP2_SAFE is known and h finite.  2**(d·a) = scale·(1 + rest),
 * scale = 2**k, is never rounded: near 1 its last bit, the same in every step where d is constant, would be the whole error
 * after 1/|d·a| steps.  scale·h is exact, and rest·scale·h is small where the decay is slow. */
VINL vf vratio_safe(vf d, vf a, vf *rest)
{
    const vf k = vfma(d, a, vset1(MAGIC + EXP_BIAS)), f = vfms(d, a, k - vset1(MAGIC + EXP_BIAS));
    *rest = vslope2(f, 0) * f;
    return as_f(as_i(k) << MBITS);
}
VINL vf vdecay_safe(vf d, vf a, vf h, vf x, vf b)
{
    vf rest;
    const vf g = vratio_safe(d, a, &rest) * h;
    return vfma(rest, g, vfma(x, b, g));
}
/* the same for any d, a and h: same bits where the above is finite and in range, else as IEEE says */
VINL vf vdecay_any(vf d, vf a, vf h, vf x, vf b)
{
    const vf y = vdecay_safe(d, a, h, x, b), z = vfma(vexp2_any(d, a), h, x * b);
    return vsel_lt(vabs(d * a), vset1(EXP2_SAFE), vsel_lt(vabs(y), vset1((real)INFINITY), y, z), z);
}
/* scale and rest for any d and a; beyond the range, scale is the whole ratio */
VINL vf vratio_any(vf d, vf a, vf *rest)
{
    const vf x = vabs(d * a), scale = vratio_safe(d, a, rest);
    *rest = vsel_lt(x, vset1(EXP2_SAFE), *rest, vset1(0));
    return vsel_lt(x, vset1(EXP2_SAFE), scale, vexp2_any(d, a));
}

/* exp(x) as p * 2**k (k carrying MAGIC), Cody-Waite reduction; x within the normal range */
VINL vf vexp_parts(vf x, vf *k)
{
    vf r;
    *k = vfma(x, vset1(LOG2E), vset1(MAGIC));
    r = *k - vset1(MAGIC);
    r = vfma(r, vset1(-(real)LN2_LO), vfma(r, vset1(-(real)LN2_HI), x));
    return vpoly2(r * vset1(LOG2E), 1);
}
VINL vf vexp(vf x)
{
    vf k, p = vexp_parts(x, &k), y = vscale2(p, k);
    y = vsel_lt(x, vset1(EXP_LO), vset1(0), y);
    y = vsel_lt(vset1(EXP_HI), x, vset1((real)INFINITY), y);
    return vkeep_nan(x, y);
}
VINL vf vexp_neg(vf x)                                 /* exp(x) for x <= 0; anything where x is NaN */
{
    vf k, p = vexp_parts(x, &k);
    return vsel_lt(x, vset1(EXP_LO), vset1(0), vscale2(p, k));
}
VINL vf vsigmoid(vf x)                                 /* accurate relatively in both tails */
{
    vf e = vexp_neg(vneg(vabs(x)));
    return vkeep_nan(x, vsel_lt(x, vset1(0), e, vset1(1)) / (vset1(1) + e));
}
/* σ(−|x|) with the sign of x: keeps what σ(x) and σ'(x) = t(1 − t), t = σ(−|x|), need in both tails; x not NaN */
VINL vf vtail(vf x)
{
    const vf e = vexp_neg(vneg(vabs(x)));
    return vcopysign(e / (vset1(1) + e), x);
}
VINL vf vsigmoid_grad(vf x)                            /* σ'(x) = e/(1 + e)², e = exp(−|x|): relative in both tails */
{
    vf e = vexp_neg(vneg(vabs(x))), s = vset1(1) + e;
    return vkeep_nan(x, e / (s * s));
}
VINL vf vsilu(vf x)                                    /* x·σ(x); the numerator x·e^x stays normal below EXP_LO */
{
    vf t = vneg(vabs(x)), k, p = vexp_parts(t, &k), e = vsel_lt(t, vset1(EXP_LO), vset1(0), vscale2(p, k)), y;
    y = vsel_lt(x, vset1(0), vscale2(x * p, k), x) / (vset1(1) + e);
    return vkeep_nan(x, vsel_lt(x, vset1(SILU_LO), vset1(0), y));
}
VINL vf vsilu_slope(vf x, vf *slope)                    /* silu and its derivative σ(x)·(1 + x·σ(−x)) */
{
    const vf e = vexp_neg(vneg(vabs(x))), r = vset1(1) / (vset1(1) + e), q = e * r, zero = vset1(0);
    const vf s = vsel_lt(x, zero, q, r), near = vsel_lt(vabs(x), vset1(1e30), x, zero);       /* not inf·0 */
    *slope = vkeep_nan(x, s * vfma(near, vsel_lt(x, zero, r, q), vset1(1)));
    return vsel_lt(x, vset1(-1e30), zero, x * s);
}
VINL vf vatanh2(vf s)                                  /* 2·atanh(s) = log(1 + e) for s = e/(e + 2), 0 <= e <= 1 */
{
    vf q = s * s, p;                                   /* atanh(s) = s + s·q·p(q), p minimax: 5e-9 / 5e-17 of the log */
#ifdef SIMD_F64
    p = vset1(0.08870679496528426);
    p = vfma(p, q, vset1(0.04951028188532982));
    p = vfma(p, q, vset1(0.06793232925940534));
    p = vfma(p, q, vset1(0.07682139702172487));
    p = vfma(p, q, vset1(0.09091407531881));
    p = vfma(p, q, vset1(0.11111096434638917));
    p = vfma(p, q, vset1(0.14285714529345822));
    p = vfma(p, q, vset1(0.19999999998021586));
    p = vfma(p, q, vset1(0.33333333333338855));
#else
    p = vset1(0.14006762206554413f);
    p = vfma(p, q, vset1(0.14000749588012695f));
    p = vfma(p, q, vset1(0.20010772347450256f));
    p = vfma(p, q, vset1(0.3333320915699005f));
#endif
    s = s + s;
    return vfma(s * q, p, s);
}
VINL vf vsoftplus_slope(vf x, vf *slope)               /* softplus and its derivative σ(x), from one exp and one quotient */
{
    const vf e = vexp_neg(vneg(vabs(x))), p = e + vset1(1), q = e + vset1(2), r = vset1(1) / (p * q);
    *slope = vkeep_nan(x, vsel_lt(x, vset1(0), e, vset1(1)) * (q * r));
    return vmax(vset1(0), x) + vatanh2(e * (p * r));
}
VINL vf vlog1p01(vf e) { return vatanh2(e / (e + vset1(2))); }
VINL vf vsoftplus(vf x) { return vmax(vset1(0), x) + vlog1p01(vexp_neg(vneg(vabs(x)))); }

/* e4 = 4·exp(−2|x|) and, returned, exp(−2|x|) − 1 = 2**k·(2**f − 1) + (2**k − 1), which cancels nowhere: k = 0, or it is below
 * −1/4.  4e and not e, as it is 4e/(1 + e)² that may be the smallest normal number. */
#define SECH_LO ((real)(EXP_LO - 1.3862943611198906))
VINL vf vtanh_parts(vf x, vf *e4)
{
    const vf y = vmax(vset1(SECH_LO), vset1(-2) * vabs(x)), k = vfma(y, vset1(LOG2E), vset1(MAGIC + EXP_BIAS + 2));
    const vf n = k - vset1(MAGIC + EXP_BIAS + 2), r = vfma(n, vset1(-(real)LN2_LO), vfma(n, vset1(-(real)LN2_HI), y));
    const vf f = r * vset1(LOG2E), q = vslope2(f, 1) * f, scale4 = as_f(as_i(k) << MBITS), scale = vset1((real)0.25) * scale4;
    *e4 = vfma(scale4, q, scale4);
    return vfma(scale, q, scale - vset1(1));
}
VINL vf vtanh(vf x)                                    /* accurate relatively near 0; NaN stays */
{
    vf e4;
    const vf m = vtanh_parts(x, &e4);
    return vcopysign(m / (vset1(2) + m), x);
}
VINL vf vtanh_slope(vf x, vf *slope)                   /* tanh and 1 − tanh² = 4e/(1 + e)², relative in both tails */
{
    vf e4;
    const vf m = vtanh_parts(x, &e4), r = vset1(1) / (vset1(2) + m);
    *slope = vsel_lt(vset1(-2) * vabs(x), vset1(SECH_LO), vset1(0), e4 * r * r);
    return vcopysign(m * r, x);
}

/* ---- across lanes --------------------------------------------------------------------------------------------- */
enum { GL = 64 / sizeof(real), NS = GL / VL };         /* logical lane group, and vectors in it: GL is the same everywhere */
#if VB
# if defined(__clang__) || __GNUC__ >= 12
#  define SHUF(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
# else
#  define SHUF(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
# endif
/* Shuffles of whole vectors cost a multiple of those within 128 bits and of those of 128-bit parts: only these two are used.
 * A part holds W numbers; LO and HI interleave two vectors part by part, LO2 and HI2 pairs of numbers, EVEN and ODD select;
 * PARTS0 and PARTS1 are the even and the odd parts of one vector, then those of the other. */
# ifdef SIMD_F64
#  define W 2
#  define PART(i) i, i + 1
#  define IN_LO(i) i, i + VLN
#  define IN_HI(i) i + 1, i + 1 + VLN
#  define IN_EVEN IN_LO
#  define IN_ODD IN_HI
# else
#  define W 4
#  define PART(i) i, i + 1, i + 2, i + 3
#  define IN_LO(i) i, i + VLN, i + 1, i + 1 + VLN
#  define IN_HI(i) i + 2, i + 2 + VLN, i + 3, i + 3 + VLN
#  define IN_LO2(i) i, i + 1, i + VLN, i + 1 + VLN
#  define IN_HI2(i) i + 2, i + 3, i + 2 + VLN, i + 3 + VLN
#  define IN_EVEN(i) i, i + 2, i + VLN, i + 2 + VLN
#  define IN_ODD(i) i + 1, i + 3, i + 1 + VLN, i + 3 + VLN
# endif
# define VLN (VB / 16 * W)                             /* VL, for the preprocessor */
# if VB == 64
#  define EACH(IN) IN(0), IN(W), IN(2 * W), IN(3 * W)
#  define PARTS0 PART(0), PART(2 * W), PART(VLN), PART(VLN + 2 * W)
#  define PARTS1 PART(W), PART(3 * W), PART(VLN + W), PART(VLN + 3 * W)
# elif VB == 32
#  define EACH(IN) IN(0), IN(W)
#  define PARTS0 PART(0), PART(VLN)
#  define PARTS1 PART(W), PART(VLN + W)
# else
#  define EACH(IN) IN(0)
# endif
/* dst[j, i] = src[i, j] for a VL x VL square with row strides ss, ds: W x W squares within the parts, then the parts */
static inline void vtranspose(const real *src, ptrdiff_t ss, real *dst, ptrdiff_t ds)
{
    vf a[VLN];
    int i;
# pragma GCC unroll 16
    for (i = 0; i < VLN; i += W) {
        const vf r0 = vload(src + i * ss), r1 = vload(src + (i + 1) * ss);
        const vf lo = SHUF(r0, r1, EACH(IN_LO)), hi = SHUF(r0, r1, EACH(IN_HI));
# ifdef SIMD_F64
        a[i] = lo, a[i + 1] = hi;
# else
        const vf r2 = vload(src + (i + 2) * ss), r3 = vload(src + (i + 3) * ss);
        const vf lo2 = SHUF(r2, r3, EACH(IN_LO)), hi2 = SHUF(r2, r3, EACH(IN_HI));
        a[i] = SHUF(lo, lo2, EACH(IN_LO2)), a[i + 1] = SHUF(lo, lo2, EACH(IN_HI2));
        a[i + 2] = SHUF(hi, hi2, EACH(IN_LO2)), a[i + 3] = SHUF(hi, hi2, EACH(IN_HI2));
# endif
    }
# pragma GCC unroll 16
    for (i = 0; i < W; i++) {
# if VB == 64
        const vf e = SHUF(a[i], a[i + W], PARTS0), f = SHUF(a[i + 2 * W], a[i + 3 * W], PARTS0);
        const vf o = SHUF(a[i], a[i + W], PARTS1), q = SHUF(a[i + 2 * W], a[i + 3 * W], PARTS1);
        vstore(dst + i * ds, SHUF(e, f, PARTS0)), vstore(dst + (i + 2 * W) * ds, SHUF(e, f, PARTS1));
        vstore(dst + (i + W) * ds, SHUF(o, q, PARTS0)), vstore(dst + (i + 3 * W) * ds, SHUF(o, q, PARTS1));
# elif VB == 32
        vstore(dst + i * ds, SHUF(a[i], a[i + W], PARTS0)), vstore(dst + (i + W) * ds, SHUF(a[i], a[i + W], PARTS1));
# else
        vstore(dst + i * ds, a[i]);
# endif
    }
}
VINL vf vpairs(vf a, vf b) { return SHUF(a, b, EACH(IN_EVEN)) + SHUF(a, b, EACH(IN_ODD)); }   /* sums of adjacent lanes */
/* Of four vectors, the sums over the lanes of each 128-bit part, adjacent pairs first: FOURS vectors of SHARE results a part */
enum { SHARE = W, FOURS = 4 / W };
VINL void vpartsums(vf a, vf b, vf c, vf d, vf *out)
{
# ifdef SIMD_F64
    out[0] = vpairs(a, b), out[1] = vpairs(c, d);
# else
    out[0] = vpairs(vpairs(a, b), vpairs(c, d));
# endif
}
# undef W                                              /* too short a name to leave behind */
# undef PART
# undef EACH
#else
VINL void vtranspose(const real *src, ptrdiff_t ss, real *dst, ptrdiff_t ds) { (void)ss; (void)ds; *dst = *src; }
enum { SHARE = 1, FOURS = 4 };
VINL void vpartsums(vf a, vf b, vf c, vf d, vf *out) { out[0] = a, out[1] = b, out[2] = c, out[3] = d; }
#endif

enum { PARTS = GL / SHARE };                            /* in a logical group */

/* the sum of a logical group of GL lanes, adjacent pairs first */
VINL real gsum(const real *g)
{
    real a[GL];
    int i, n;
    for (i = 0; i < GL; i++) a[i] = g[i];
    for (n = GL / 2; n; n /= 2)
        for (i = 0; i < n; i++) a[i] = a[2 * i] + a[2 * i + 1];
    return a[0];
}
#endif
