/* gemm.h: the micro-kernel of the recurrent layers' products, for three ways of reading rows.
 *
 *     multiply_panel     rows at fixed distances times a panel of PW columns (LSTM)
 *     multiply_rows      rows behind pointers, in segments: states are read in place (grid RNN)
 *     multiply_outer     rows behind pointers, read down their columns: a sum over rows, for the
 *                        gradients of weights (grid RNN)
 *
 * Every output is one chain of fused multiply-adds over ascending k, which starts at 0 and is then
 * added to what the output held before.  Its bits therefore depend neither on VL, nor on how rows
 * are grouped, nor on threads.
 *
 * A register tile is as many sums as registers hold.  The LSTM's has three rows by four vectors
 * where there are 16 registers, because the four vectors of its panels are the four gates.  The
 * grid RNN's has six rows by two vectors, because fewer of its columns are then left over when
 * there are few hidden units.  Weights are packed once per call, and every step uses them; a BLAS
 * would pack them again in every product.
 */
#ifndef FASTDERIV_ROWS_H
#define FASTDERIV_ROWS_H
#include "simd.h"

#if VB == 64 || (VB == 16 && defined(__aarch64__))
# define FASTDERIV_REGISTERS 32
enum { MR = 6, WIDE = 4 }; /* 24 sums */
#else
# define FASTDERIV_REGISTERS 16
enum { MR = 3, WIDE = 2 }; /* 12 sums */
#endif
enum {
    PW = 4 * VL,     /* columns of a panel: a vector per gate */
    TALL = 6,        /* grid RNN's tile: TALL x WIDE vectors */
    STRIP = 8 * TALL /* rows that a segment has pointers for */
};

VINL void zero_sums(vf sums[][4], const int rows, const int vectors)
{
    int i, j;
    UNROLLED
    for (i = 0; i < rows; i++) {
        UNROLLED
        for (j = 0; j < vectors; j++) sums[i][j] = vset1(0);
    }
}

/* sums[i][j] += x[i][k] · w[j].  The tile's shorter side is loaded first and stays in registers. */
VINL void multiply_add(vf sums[][4], const real *const x[], ptrdiff_t k, const real *w,
                       const int rows, const int vectors)
{
    vf a[TALL], b[4];
    int i, j;
    if (rows < vectors) {
        UNROLLED
        for (i = 0; i < rows; i++) a[i] = vset1(x[i][k]);
        UNROLLED
        for (j = 0; j < vectors; j++) {
            b[0] = vload(w + j * VL);
            UNROLLED
            for (i = 0; i < rows; i++) sums[i][j] = vfma(a[i], b[0], sums[i][j]);
        }
    } else {
        UNROLLED
        for (j = 0; j < vectors; j++) b[j] = vload(w + j * VL);
        UNROLLED
        for (i = 0; i < rows; i++) {
            a[0] = vset1(x[i][k]);
            UNROLLED
            for (j = 0; j < vectors; j++) sums[i][j] = vfma(a[0], b[j], sums[i][j]);
        }
    }
}

VINL void add_sums(real *c, ptrdiff_t ldc, vf sums[][4], const int rows, const int vectors)
{
    int i, j;
    UNROLLED
    for (i = 0; i < rows; i++) {
        UNROLLED
        for (j = 0; j < vectors; j++)
            vstore(c + i * ldc + j * VL, vload(c + i * ldc + j * VL) + sums[i][j]);
    }
}

/* OUT c[i, :] += Σ over segments g and k < n[g] of x[g·STRIP + i][k] · w[g, k, :] for i < rows; w
 * and c have `vectors` vectors of columns. */
VINL void multiply_rows(const real *const *x, int segments, const ptrdiff_t *n, const real *w,
                        real *c, ptrdiff_t ldc, const int rows, const int vectors)
{
    vf sums[TALL][4];
    const real *row[TALL];
    ptrdiff_t k;
    int i, g;
    zero_sums(sums, rows, vectors);
    for (g = 0; g < segments; g++, x += STRIP) {
        UNROLLED
        for (i = 0; i < rows; i++) row[i] = x[i];
        for (k = 0; k < n[g]; k++, w += vectors * VL) multiply_add(sums, row, k, w, rows, vectors);
    }
    add_sums(c, ldc, sums, rows, vectors);
}

/* OUT c[i, :] += Σ_{k < K} x[k][column + i] · b[k, :] for i < rows; b and c have `vectors` vectors
 * of columns, and their rows lie ld apart. */
VINL void multiply_outer(const real *const *x, ptrdiff_t column, ptrdiff_t K, const real *b,
                         real *c, ptrdiff_t ld, const int rows, const int vectors)
{
    vf sums[TALL][4];
    const real *row[TALL];
    ptrdiff_t k;
    int i;
    zero_sums(sums, rows, vectors);
    for (k = 0; k < K; k++, b += ld) {
        UNROLLED
        for (i = 0; i < rows; i++) row[i] = x[k] + i;
        multiply_add(sums, row, column, b, rows, vectors);
    }
    add_sums(c, ld, sums, rows, vectors);
}
#endif
