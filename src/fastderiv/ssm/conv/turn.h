/* turn.h: a few neighbouring numbers of each channel of a vector, such as its taps or its state,
 * into rows [number, lane] and back.
 *
 *     conv_load_few, conv_store_few
 *
 * CONV_TURN numbers at a time, as many as a 128-bit part of a vector holds: they are copied so that
 * squares within the parts remain to be transposed, which is one or two shuffles a row.  Copying
 * number by number took three times as long.
 */
#ifndef FASTDERIV_CONV_TURN_H
#define FASTDERIV_CONV_TURN_H
#include "simd.h"
#include "simd_lanes.h"

#if VB
enum { CONV_TURN = 16 / sizeof(real) };
/* CONV_PARTS: an index for each number of a vector, from those of the parts. */
# if VB == 64
#  define CONV_PARTS(IN, P) IN(0), IN(P), IN(2 * P), IN(3 * P)
#  define CONV_VL(P)        (4 * P)
# elif VB == 32
#  define CONV_PARTS(IN, P) IN(0), IN(P)
#  define CONV_VL(P)        (2 * P)
# else
#  define CONV_PARTS(IN, P) IN(0)
#  define CONV_VL(P)        P
# endif

/* IN OUT rows: CONV_TURN vectors, of which the squares within parts are transposed. */
VINL void conv_turn(vf *r)
{
# ifdef SIMD_F64
#  define CONV_LO(i) i, i + CONV_VL(2)
#  define CONV_HI(i) i + 1, i + 1 + CONV_VL(2)
    const vf lo = SHUF(r[0], r[1], CONV_PARTS(CONV_LO, 2));
    const vf hi = SHUF(r[0], r[1], CONV_PARTS(CONV_HI, 2));
    r[0] = lo, r[1] = hi;
# else
#  define CONV_LO(i)  i, i + CONV_VL(4), i + 1, i + 1 + CONV_VL(4)
#  define CONV_HI(i)  i + 2, i + 2 + CONV_VL(4), i + 3, i + 3 + CONV_VL(4)
#  define CONV_LO2(i) i, i + 1, i + CONV_VL(4), i + 1 + CONV_VL(4)
#  define CONV_HI2(i) i + 2, i + 3, i + 2 + CONV_VL(4), i + 3 + CONV_VL(4)
    const vf a = SHUF(r[0], r[1], CONV_PARTS(CONV_LO, 4));
    const vf b = SHUF(r[0], r[1], CONV_PARTS(CONV_HI, 4));
    const vf c = SHUF(r[2], r[3], CONV_PARTS(CONV_LO, 4));
    const vf d = SHUF(r[2], r[3], CONV_PARTS(CONV_HI, 4));
    r[0] = SHUF(a, c, CONV_PARTS(CONV_LO2, 4)), r[1] = SHUF(a, c, CONV_PARTS(CONV_HI2, 4));
    r[2] = SHUF(b, d, CONV_PARTS(CONV_LO2, 4)), r[3] = SHUF(b, d, CONV_PARTS(CONV_HI2, 4));
# endif
}
#else
enum { CONV_TURN = 1 };
VINL void conv_turn(vf *r) { (void)r; }
#endif

/* The same of VL channels whose CONV_TURN numbers follow each other: the vectors are in the order
 * of memory before they are turned, and CONV_SORTED puts the channels into order then;
 * CONV_UNSORTED undoes it.  Vectors that are loaded from where they were stored in parts wait. */
#if VB == 64 && !defined(SIMD_F64)
# define CONV_SORTED   0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15
# define CONV_UNSORTED CONV_SORTED
#elif VB == 64
# define CONV_SORTED   0, 2, 4, 6, 1, 3, 5, 7
# define CONV_UNSORTED 0, 4, 1, 5, 2, 6, 3, 7
#elif VB == 32 && !defined(SIMD_F64)
# define CONV_SORTED   0, 4, 1, 5, 2, 6, 3, 7
# define CONV_UNSORTED 0, 2, 4, 6, 1, 3, 5, 7
#elif VB == 32
# define CONV_SORTED   0, 2, 1, 3
# define CONV_UNSORTED CONV_SORTED
#endif
VINL void conv_load_contiguous(const real *src, real *rows, ptrdiff_t ld)
{
    vf r[CONV_TURN];
    int i;
    UNROLLED
    for (i = 0; i < CONV_TURN; i++) r[i] = vload(src + i * VL);
    conv_turn(r);
    UNROLLED
    for (i = 0; i < CONV_TURN; i++) {
#ifdef CONV_SORTED
        r[i] = SHUF(r[i], r[i], CONV_SORTED);
#endif
        vstore(rows + i * ld, r[i]);
    }
}

VINL void conv_store_contiguous(const real *rows, ptrdiff_t ld, real *dst)
{
    vf r[CONV_TURN];
    int i;
    UNROLLED
    for (i = 0; i < CONV_TURN; i++) {
        r[i] = vload(rows + i * ld);
#ifdef CONV_SORTED
        r[i] = SHUF(r[i], r[i], CONV_UNSORTED);
#endif
    }
    conv_turn(r);
    UNROLLED
    for (i = 0; i < CONV_TURN; i++) vstore(dst + i * VL, r[i]);
}

/* The same of VL channels with three numbers each, in three vectors: two shuffles a row. */
#if VB
# if VB == 64 && !defined(SIMD_F64)
#  define CONV_LANES(F, k)                                                                         \
      F(0, k), F(1, k), F(2, k), F(3, k), F(4, k), F(5, k), F(6, k), F(7, k), F(8, k), F(9, k),    \
          F(10, k), F(11, k), F(12, k), F(13, k), F(14, k), F(15, k)
# elif VB == 64 || (VB == 32 && !defined(SIMD_F64))
#  define CONV_LANES(F, k) F(0, k), F(1, k), F(2, k), F(3, k), F(4, k), F(5, k), F(6, k), F(7, k)
# elif VB == 32 || !defined(SIMD_F64)
#  define CONV_LANES(F, k) F(0, k), F(1, k), F(2, k), F(3, k)
# else
#  define CONV_LANES(F, k) F(0, k), F(1, k)
# endif
/* Lane i of row k is number 3i + k.  CONV_OF_2: from the first two vectors, if it is there;
 * CONV_OF_3: from these and the third vector. */
# define CONV_OF_2(i, k) (3 * (i) + (k) < 2 * VL ? 3 * (i) + (k) : 0)
# define CONV_OF_3(i, k) (3 * (i) + (k) < 2 * VL ? (i) : 3 * (i) + (k) - VL)
/* Number n = i + k·VL is in row n % 3, lane n / 3: from the first two rows, and from the third. */
# define CONV_IN_2(i, k) (((i) + (k) * VL) % 3 * VL + ((i) + (k) * VL) / 3) % (2 * VL)
# define CONV_IN_3(i, k) (((i) + (k) * VL) % 3 < 2 ? (i) : VL + ((i) + (k) * VL) / 3)
# define CONV_ROW(k)     SHUF(SHUF(a, b, CONV_LANES(CONV_OF_2, k)), c, CONV_LANES(CONV_OF_3, k))
# define CONV_VECTOR(k)  SHUF(SHUF(a, b, CONV_LANES(CONV_IN_2, k)), c, CONV_LANES(CONV_IN_3, k))
VINL void conv_load_threes(const real *src, real *rows, ptrdiff_t ld)
{
    const vf a = vload(src), b = vload(src + VL), c = vload(src + 2 * VL);
    vstore(rows, CONV_ROW(0));
    vstore(rows + ld, CONV_ROW(1));
    vstore(rows + 2 * ld, CONV_ROW(2));
}
VINL void conv_store_threes(const real *rows, ptrdiff_t ld, real *dst)
{
    const vf a = vload(rows), b = vload(rows + ld), c = vload(rows + 2 * ld);
    vstore(dst, CONV_VECTOR(0));
    vstore(dst + VL, CONV_VECTOR(1));
    vstore(dst + 2 * VL, CONV_VECTOR(2));
}
#else
VINL void conv_load_threes(const real *src, real *rows, ptrdiff_t ld)
{
    rows[0] = src[0], rows[ld] = src[1], rows[2 * ld] = src[2];
}
VINL void conv_store_threes(const real *rows, ptrdiff_t ld, real *dst)
{
    dst[0] = rows[0], dst[1] = rows[ld], dst[2] = rows[2 * ld];
}
#endif

/* Where the numbers of a channel lie before they are turned. */
VINL ptrdiff_t conv_slot(ptrdiff_t channel)
{
    return channel % CONV_TURN * VL + channel / CONV_TURN * CONV_TURN;
}

/* The same for `n` numbers, a constant in the case that matters. */
VINL void conv_load_turned(const real *src, ptrdiff_t d, ptrdiff_t channels, const ptrdiff_t n,
                           real *rows, ptrdiff_t ld)
{
    real square[CONV_TURN * VL] = {0};
    vf r[CONV_TURN];
    ptrdiff_t c;
    int i;
    for (c = 0; c < channels; c++)
        memcpy(square + conv_slot(c), src + c * d, (size_t)n * sizeof(real));
    UNROLLED
    for (i = 0; i < CONV_TURN; i++) r[i] = vload(square + i * VL);
    conv_turn(r);
    for (i = 0; i < n; i++) vstore(rows + i * ld, r[i]);
}

VINL void conv_store_turned(const real *rows, ptrdiff_t ld, real *dst, ptrdiff_t d,
                            ptrdiff_t channels, const ptrdiff_t n)
{
    real square[CONV_TURN * VL];
    vf r[CONV_TURN];
    ptrdiff_t c;
    int i;
    UNROLLED
    for (i = 0; i < CONV_TURN; i++) r[i] = i < n ? vload(rows + i * ld) : vset1(0);
    conv_turn(r);
    UNROLLED
    for (i = 0; i < CONV_TURN; i++) vstore(square + i * VL, r[i]);
    for (c = 0; c < channels; c++)
        memcpy(dst + c * d, square + conv_slot(c), (size_t)n * sizeof(real));
}

/* OUT rows [number, lane], ld apart: n contiguous numbers of each channel, whose numbers are d
 * apart from the next one's; lanes without a channel are zero. */
static void conv_load_few(const real *src, ptrdiff_t d, ptrdiff_t channels, ptrdiff_t n, real *rows,
                          ptrdiff_t ld)
{
    if (n == 3 && d == 3 && channels == VL) {
        conv_load_threes(src, rows, ld);
        return;
    }
    for (; n > 0; n -= CONV_TURN, src += CONV_TURN, rows += CONV_TURN * ld) {
        if (n >= CONV_TURN && channels == VL && d == CONV_TURN) conv_load_contiguous(src, rows, ld);
        else if (n >= CONV_TURN && channels == VL)
            conv_load_turned(src, d, VL, CONV_TURN, rows, ld);
        else conv_load_turned(src, d, channels, n < CONV_TURN ? n : CONV_TURN, rows, ld);
    }
}

/* conv_load_few backwards. */
static void conv_store_few(const real *rows, ptrdiff_t ld, real *dst, ptrdiff_t d,
                           ptrdiff_t channels, ptrdiff_t n)
{
    if (n == 3 && d == 3 && channels == VL) {
        conv_store_threes(rows, ld, dst);
        return;
    }
    for (; n > 0; n -= CONV_TURN, dst += CONV_TURN, rows += CONV_TURN * ld) {
        if (n >= CONV_TURN && channels == VL && d == CONV_TURN)
            conv_store_contiguous(rows, ld, dst);
        else if (n >= CONV_TURN && channels == VL)
            conv_store_turned(rows, ld, dst, d, VL, CONV_TURN);
        else conv_store_turned(rows, ld, dst, d, channels, n < CONV_TURN ? n : CONV_TURN);
    }
}
#endif
