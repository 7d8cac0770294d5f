/* simd_lanes.h: what moves or looks at single lanes.  Lanes as bits, compress and gather; vectors
 * that memory holds in part; transposes; sums over lanes. */
#ifndef FASTDERIV_SIMD_LANES_H
#define FASTDERIV_SIMD_LANES_H
#include <assert.h>
#include "simd.h"

/* ---- lanes as bits: bit i is lane i -------------------------------------------------------- */

/* Whether every lane has a < b. */
VINL int vall_lt(vf a, vf b)
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

/* Which lanes have a < b. */
VINL unsigned vlt(vf a, vf b)
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

/* vcount: how many lanes; vfirst: the lowest of them, lanes != 0. */
#if VB
VINL int vcount(unsigned lanes) { return __builtin_popcount(lanes); }
VINL int vfirst(unsigned lanes)
{
    assert(lanes);
    return __builtin_ctz(lanes);
}
#else
VINL int vcount(unsigned lanes) { return (int)lanes & 1; }
VINL int vfirst(unsigned lanes)
{
    (void)lanes;
    return 0;
}
#endif

/* OUT p = the chosen lanes of v, close together; what follows them in the VL numbers at p may be
 * overwritten.  (Compressing straight to memory is microcode on some CPUs.) */
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

/* p[at], at being whole numbers below 2**31. */
VINL vf vgather(const real *p, vf at)
{
    assert(vall_lt(vset1(-1), at) && vall_lt(at, vset1((real)0x1p31)));
#if VB == 64 && defined(SIMD_F64)
    return (vf)_mm512_i64gather_pd(_mm512_cvttpd_epi64(at), p, 8);
#elif VB == 32 && defined(SIMD_F64)
    return (vf)_mm256_i32gather_pd(p, _mm256_cvttpd_epi32(at), 8);
#else
    real y[VL];
    int i;
    for (i = 0; i < VL; i++) y[i] = p[(ptrdiff_t)vget(at, i)];
    return vload(y);
#endif
}

/* ---- vectors that memory holds in part ----------------------------------------------------- */

/* The first n ≤ VL numbers at p, then zeros; p is not read if n = 0, and may then be NULL. */
VINL vf vload_some(const real *p, ptrdiff_t n)
{
    real lanes[VL] = {0};
    assert(0 <= n && n <= VL);
    if (n == VL) return vload(p);
    if (n > 0) memcpy(lanes, p, (size_t)n * sizeof(real));
    return vload(lanes);
}

/* OUT p = the first n ≤ VL lanes of v. */
VINL void vstore_some(real *p, vf v, ptrdiff_t n)
{
    real lanes[VL];
    assert(0 <= n && n <= VL);
    if (n == VL) {
        vstore(p, v);
    } else if (n > 0) {
        vstore(lanes, v);
        memcpy(p, lanes, (size_t)n * sizeof(real));
    }
}

/* ---- across lanes -----------------------------------------------------------------------------
 * Sums over lanes go over logical groups of GL numbers, 64 bytes, by a tree of adjacent pairs.  GL
 * is the same at every level, and so are the bits of the sums; NS is how many vectors a group has.
 * */
enum { GL = 64 / sizeof(real) };
enum { NS = GL / VL };

#if VB
# if defined(__clang__) || __GNUC__ >= 12
#  define SHUF(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
# else
#  define SHUF(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
# endif
/* Shuffles of whole vectors cost several times what shuffles within 128-bit parts and shuffles of
 * 128-bit parts cost, so only the latter two are used.  A part holds W numbers.  LO and HI
 * interleave two vectors part by part, LO2 and HI2 do so by pairs of numbers, EVEN and ODD select;
 * PARTS0 and PARTS1 are the even and the odd parts of one vector, then those of the other. */
# ifdef SIMD_F64
#  define W        2
#  define PART(i)  i, i + 1
#  define IN_LO(i) i, i + VLN
#  define IN_HI(i) i + 1, i + 1 + VLN
#  define IN_EVEN  IN_LO
#  define IN_ODD   IN_HI
# else
#  define W          4
#  define PART(i)    i, i + 1, i + 2, i + 3
#  define IN_LO(i)   i, i + VLN, i + 1, i + 1 + VLN
#  define IN_HI(i)   i + 2, i + 2 + VLN, i + 3, i + 3 + VLN
#  define IN_LO2(i)  i, i + 1, i + VLN, i + 1 + VLN
#  define IN_HI2(i)  i + 2, i + 3, i + 2 + VLN, i + 3 + VLN
#  define IN_EVEN(i) i, i + 2, i + VLN, i + 2 + VLN
#  define IN_ODD(i)  i + 1, i + 3, i + 1 + VLN, i + 3 + VLN
# endif
/* VLN is VL, for the preprocessor. */
# define VLN (VB / 16 * W)
# if VB == 64
#  define EACH(IN) IN(0), IN(W), IN(2 * W), IN(3 * W)
#  define PARTS0   PART(0), PART(2 * W), PART(VLN), PART(VLN + 2 * W)
#  define PARTS1   PART(W), PART(3 * W), PART(VLN + W), PART(VLN + 3 * W)
# elif VB == 32
#  define EACH(IN) IN(0), IN(W)
#  define PARTS0   PART(0), PART(VLN)
#  define PARTS1   PART(W), PART(VLN + W)
# else
#  define EACH(IN) IN(0)
# endif

/* OUT dst[j, i] = src[i, j] for a VL × VL square with row strides ss and ds: W × W squares within
 * the parts are transposed first, then the parts are. */
static inline void vtranspose(const real *src, ptrdiff_t ss, real *dst, ptrdiff_t ds)
{
    vf a[VLN];
    int i;
    UNROLLED
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
    UNROLLED
    for (i = 0; i < W; i++) {
# if VB == 64
        const vf e = SHUF(a[i], a[i + W], PARTS0), f = SHUF(a[i + 2 * W], a[i + 3 * W], PARTS0);
        const vf o = SHUF(a[i], a[i + W], PARTS1), q = SHUF(a[i + 2 * W], a[i + 3 * W], PARTS1);
        vstore(dst + i * ds, SHUF(e, f, PARTS0));
        vstore(dst + (i + 2 * W) * ds, SHUF(e, f, PARTS1));
        vstore(dst + (i + W) * ds, SHUF(o, q, PARTS0));
        vstore(dst + (i + 3 * W) * ds, SHUF(o, q, PARTS1));
# elif VB == 32
        vstore(dst + i * ds, SHUF(a[i], a[i + W], PARTS0));
        vstore(dst + (i + W) * ds, SHUF(a[i], a[i + W], PARTS1));
# else
        vstore(dst + i * ds, a[i]);
# endif
    }
}

/* The sums of adjacent lanes, part by part: of a, then of b. */
VINL vf vpairs(vf a, vf b) { return SHUF(a, b, EACH(IN_EVEN)) + SHUF(a, b, EACH(IN_ODD)); }

/* OUT out: of four vectors, the sums over the lanes of each 128-bit part, adjacent pairs first.
 * These are FOURS vectors, in which each part holds SHARE results. */
enum { SHARE = W, FOURS = 4 / W };
VINL void vpartsums(vf a, vf b, vf c, vf d, vf *out)
{
# ifdef SIMD_F64
    out[0] = vpairs(a, b), out[1] = vpairs(c, d);
# else
    out[0] = vpairs(vpairs(a, b), vpairs(c, d));
# endif
}
/* W, PART and EACH are too short names to leave behind. */
# undef W
# undef PART
# undef EACH
#else
VINL void vtranspose(const real *src, ptrdiff_t ss, real *dst, ptrdiff_t ds)
{
    (void)ss;
    (void)ds;
    *dst = *src;
}
enum { SHARE = 1, FOURS = 4 };
VINL void vpartsums(vf a, vf b, vf c, vf d, vf *out)
{
    out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}
#endif

/* PARTS: 128-bit parts in a logical group. */
enum { PARTS = GL / SHARE };

/* The sum of a logical group of GL numbers, adjacent pairs first. */
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
