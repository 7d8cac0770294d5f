/* fixed.h: momentum on 64-bit integers, LANES parameters at a time; _fixed.pxi has the formulas and
 * docs/derivations.md §4.6 to §4.8 the proofs.
 *
 * θ and p are integers in [−2**62, 2**62); the number 1 is 2**44.  β = n/d with d = 2**16.  The
 * buffer i of a parameter is a whole number below 2**50.4, kept as a double: a quotient by n is
 * then one multiplication and two additions on any CPU, and exact, while a 64-bit division takes 20
 * to 40 cycles.  Only α·2**44·g is rounded, once; so every CPU level gives the same bits.
 */
#ifndef FASTDERIV_OPTIM_FIXED_H
#define FASTDERIV_OPTIM_FIXED_H
#include "simd.h"

/* ---- vectors of double (vd) and of uint64_t (vu), whatever `real` is ------------------- */
#if VB
enum { LANES = VB / 8 };
typedef double vd __attribute__((vector_size(VB)));
typedef uint64_t vu __attribute__((vector_size(VB)));
typedef double vd_memory __attribute__((vector_size(VB), aligned(8), may_alias));
typedef uint64_t vu_memory __attribute__((vector_size(VB), aligned(8), may_alias));
VINL vd load_d(const double *p) { return *(const vd_memory *)p; }
VINL void store_d(double *p, vd v) { *(vd_memory *)p = v; }
VINL vu load_u(const int64_t *p) { return *(const vu_memory *)p; }
VINL void store_u(int64_t *p, vu v) { *(vu_memory *)p = v; }
VINL vd all_d(double x) { return x - (vd){0}; }
VINL vu all_u(uint64_t x) { return x - (vu){0}; }
VINL vu bits_of(vd x) { return (vu)x; }
VINL vd of_bits(vu x) { return (vd)x; }
VINL vu below(vd a, vd b) { return (vu)(a < b); }
VINL uint64_t lane(vu a, int i) { return a[i]; }
# ifdef SIMD_F64
VINL vd load_real(const real *p) { return load_d(p); }
# else
typedef float half_memory __attribute__((vector_size(VB / 2), aligned(4), may_alias));
VINL vd load_real(const real *p) { return __builtin_convertvector(*(const half_memory *)p, vd); }
# endif
#else
enum { LANES = 1 };
typedef double vd;
typedef uint64_t vu;
VINL vd load_d(const double *p) { return *p; }
VINL void store_d(double *p, vd v) { *p = v; }
VINL vu load_u(const int64_t *p) { return (uint64_t)*p; }
VINL void store_u(int64_t *p, vu v) { *p = (int64_t)v; }
VINL vd all_d(double x) { return x; }
VINL vu all_u(uint64_t x) { return x; }
VINL vu bits_of(vd x)
{
    vu y;
    memcpy(&y, &x, sizeof y);
    return y;
}
VINL vd of_bits(vu x)
{
    vd y;
    memcpy(&y, &x, sizeof y);
    return y;
}
VINL vu below(vd a, vd b) { return 0 - (vu)(a < b); }
VINL uint64_t lane(vu a, int i)
{
    (void)i;
    return a;
}
VINL vd load_real(const real *p) { return (double)*p; }
#endif

/* Whether bit 63 of any lane is set. */
VINL int any_top(vu a)
{
    uint64_t bits = 0;
    int i;
    for (i = 0; i < LANES; i++) bits |= lane(a, i);
    return (int)(bits >> 63);
}

/* The products, of 64 bits, of the low 32 bits of a and b. */
VINL vu low_product(vu a, vu b)
{
#if VB == 64
    return (vu)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif VB == 32
    return (vu)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif VB == 16 && defined(__SSE2__)
    return (vu)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & all_u(0xffffffff)) * (b & all_u(0xffffffff));
#endif
}

/* ---- whole numbers as doubles and as integers ------------------------------------------ */
#define ONES       6755399441055744.0 /* 1.5·2**52: x + ONES has the integer in its low bits */
#define WHOLE      4503599627370496.0 /* 2**52: the same for numbers that are not negative */
#define WHOLE_BITS 0x4330000000000000u
#define HALF_RANGE ((uint64_t)1 << 62)

/* The whole number nearest to x, |x| < 2**51. */
VINL vd nearest(vd x) { return (x + all_d(ONES)) - all_d(ONES); }

/* A whole number, from 0 to 2**52, from one type to the other. */
VINL vu integer(vd x) { return bits_of(x + all_d(WHOLE)) - all_u(WHOLE_BITS); }
VINL vd real_of(vu x) { return of_bits(x | all_u(WHOLE_BITS)) - all_d(WHOLE); }

typedef struct {
    vd n, inverse, shift;
    vu count;
} Divisor;

VINL Divisor divisor(unsigned n)
{
    Divisor v;
    v.n = all_d(n), v.inverse = all_d(1.0 / n), v.shift = all_d(0.5 * (1.0 / n) - 0.5);
    v.count = all_u(n);
    return v;
}

/* floor(x / n) = nearest((x + 1/2)/n − 1/2) for a whole number x, 0 <= x < 2**50.4.  What `nearest`
 * is given lies at least 1/(2n) from a tie; the three roundings before it move it by less than
 * 1.5·2**-52·x/n + 2**-54. */
VINL vd quotient(vd x, const Divisor *v) { return nearest(x * v->inverse + v->shift); }

/* ---- a step and its inverse ----------------------------------------------------- */

/* Where the numbers of LANES parameters are.  words is NULL in a step that does not spill. */
typedef struct {
    int64_t *theta, *p;
    double *buffer;
    uint16_t *words;
} Parameters;

/* The rates: scale = α·2**44, and n of β. */
typedef struct {
    vd scale;
    Divisor divisor;
} Rates;

VINL Rates rates_of(double alpha, unsigned n)
{
    Rates rates;
    rates.scale = all_d(alpha * 17592186044416.0);
    rates.divisor = divisor(n);
    return rates;
}

/* k = round(scale·g) as an integer.  Where scale·g is NaN or not within ±2**62, bit 63 of `bad` is
 * set and k is 0. */
VINL vu increment(vd g, vd scale, vu *bad)
{
    const vu sign = all_u((uint64_t)1 << 63);
    vd x = g * scale, h;
    const vu inside = below(of_bits(bits_of(x) & ~sign), all_d(4611686018427387904.0));
    vu high, low;
    *bad |= ~inside;
    x = of_bits(bits_of(x) & inside);
    h = nearest(x * all_d(1.0 / 4294967296.0));
    x = x - h * all_d(4294967296.0); /* exact, and at most 2**31 */
    high = bits_of(h + all_d(ONES)) - bits_of(all_d(ONES));
    low = bits_of(x + all_d(ONES)) - bits_of(all_d(ONES));
    return (high << 32) + low;
}

VINL void to_words(uint16_t *words, vu r)
{
    int i;
    for (i = 0; i < LANES; i++) words[i] = (uint16_t)lane(r, i);
}

VINL vu of_words(const uint16_t *words)
{
    int64_t r[LANES];
    int i;
    for (i = 0; i < LANES; i++) r[i] = words[i];
    return load_u(r);
}

/* One step forwards with the gradient g.  `spill` says that r goes to the words and not to the
 * buffer.  Bit 63 of `bad` is set in lanes that leave the range; `unstep_lanes` with the same g
 * takes back what the step has written there, too. */
VINL void step_lanes(Parameters at, vd g, const Rates *rates, vu *bad, const int spill)
{
    const Divisor *v = &rates->divisor;
    const vd i = load_d(at.buffer), q = quotient(i, v);
    const vu s = integer(i - q * v->n), n = v->count;
    /* p·n + s by 16 binary digits: u = p + 2**62 = 2**16·high + (u mod 2**16) */
    const vu u = load_u(at.p) + all_u(HALF_RANGE), high = u >> 16;
    const vu low = low_product(u & all_u(0xffff), n) + s, r = low & all_u(0xffff);
    const vu product = low_product(high, n) + (low_product(high >> 32, n) << 32);
    const vu decayed = product + (low >> 16) - (n << 46);
    const vu p = decayed - increment(g, rates->scale, bad), theta = load_u(at.theta) + p;
    *bad |= (p + all_u(HALF_RANGE)) | (theta + all_u(HALF_RANGE));
    store_u(at.p, p);
    store_u(at.theta, theta);
    if (spill) {
        store_d(at.buffer, q);
        to_words(at.words, r);
    } else {
        store_d(at.buffer, q * all_d(65536) + real_of(r));
    }
}

/* One step backwards.  It needs p + k in [−n·2**46, n·2**46), as after any step.  `spilled` says
 * that r is in the words. */
VINL void unstep_lanes(Parameters at, vd g, const Rates *rates, const int spilled)
{
    const Divisor *v = &rates->divisor;
    vu bad = all_u(0); /* cannot_unstep has looked */
    const vu p = load_u(at.p), i = integer(load_d(at.buffer)), n = v->count;
    const vu r = spilled ? of_words(at.words) : i & all_u(0xffff);
    const vd above = real_of(spilled ? i : i >> 16);
    const vu u = p + increment(g, rates->scale, &bad) + (n << 46); /* 0 <= u < n·2**47 */
    /* (u·2**16 + r) / n, a long division of two digits: the upper one is u >> 13 */
    const vd high = real_of(u >> 13), q = quotient(high, v);
    const vu carry = integer(high - q * v->n);
    const vd rest = real_of((carry << 29) + ((u & all_u(0x1fff)) << 16) + r), e = quotient(rest, v);
    store_u(at.theta, load_u(at.theta) - p);
    store_u(at.p, (integer(q) << 29) + integer(e) - all_u(HALF_RANGE));
    store_d(at.buffer, above * v->n + (rest - e * v->n));
}

/* Bit 63 of the result is set in lanes where no step can have left p + k, or where θ − p is outside
 * the range. */
VINL vu cannot_unstep(Parameters at, vd g, const Rates *rates)
{
    vu bad = all_u(0);
    const vu n = rates->divisor.count, p = load_u(at.p);
    const vu u = p + increment(g, rates->scale, &bad) + (n << 46);
    return bad | u | ((n << 47) - all_u(1) - u) | (load_u(at.theta) - p + all_u(HALF_RANGE));
}

/* The real number x·2**-44 of an integer x, rounded once. */
VINL vd position(vu x)
{
    const vu u = x + all_u(HALF_RANGE + HALF_RANGE); /* not negative */
    const vd high = of_bits((u >> 32) | all_u(WHOLE_BITS)) - all_d(WHOLE + 2147483648.0);
    const vd low = real_of(u & all_u(0xffffffff));
    return (high * all_d(4294967296.0) + low) * all_d(1.0 / 17592186044416.0);
}

#endif
