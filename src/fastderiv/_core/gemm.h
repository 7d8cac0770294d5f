/* gemm.h: products of matrices that lie in scratch, for the chunks and steps of recurrent layers.
 *
 *     Gemm g = {M, N, K, a, a_row, a_step, b, b_row, c, c_row};
 *     gemm(&g, how);
 *
 * C (M, N) += A (M, K) · B (K, N), where
 *
 *     A[i, k] = a[i·a_row + k·a_step]    a transposed A is an exchange of its two strides
 *     B[k, j] = b[k·b_row + j]           rows of consecutive numbers
 *     C[i, j] = c[i·c_row + j]
 *
 * M and K are any numbers ≥ 0, and N is a multiple of VL: the caller pads the rows of B and C with
 * whatever he likes, as no column has to do with another.  C overlaps neither A nor B.  Nothing
 * needs to be aligned, though loads of B are faster when its rows begin at multiples of 64 bytes.
 * Rows of B and of A whose distance is a multiple of 512 bytes share few sets of the L1 cache: let
 * them be 64 bytes longer.
 *
 * `how` is 0 or a sum of
 *
 *     GEMM_SET      C = A · B: C is written without being read
 *     GEMM_LOWER    row i of A has columns k ≤ i only (causal); others are not read
 *     GEMM_UPPER    row i of A has columns k ≥ i only; others are not read
 *     GEMM_FAR      B is far away, beyond the L1 cache: its rows are fetched before they are needed
 *
 * Triangles are exact: what A and B hold outside them never enters, NaN included.
 *
 * Every output is one chain of fused multiply-adds over its ascending k, which starts at 0 and is
 * then added to what the output held before.  Its bits therefore depend neither on VL, nor on how
 * rows and columns are grouped, nor on threads.
 *
 * A register tile is up to GEMM_ROWS rows by two vectors, or up to half as many rows by four: 24
 * sums where there are 32 registers, and 12 where there are 16.  So many hide each other's latency
 * even on cores that start two multiply-adds per cycle, which then load one vector and one number
 * per cycle, and read 11 bytes of B where they read weights beyond the L1 cache.  A caller that
 * wants only a part of C (a triangle of outputs, say) calls this for blocks of GEMM_ROWS rows.
 */
#ifndef FASTDERIV_CORE_GEMM_H
#define FASTDERIV_CORE_GEMM_H
#include "simd.h"

#if VB == 64 || (VB == 16 && defined(__aarch64__))
enum { GEMM_ROWS = 12 };
# define GEMM_FEW(tile)  tile(1) tile(2) tile(3) tile(4) tile(5) tile(6)
# define GEMM_MANY(tile) tile(7) tile(8) tile(9) tile(10) tile(11) tile(12)
# define GEMM_SOME(tile) tile(1) tile(2) tile(4) tile(8) tile(12)
#else
enum { GEMM_ROWS = 6 };
# define GEMM_FEW(tile)  tile(1) tile(2) tile(3)
# define GEMM_MANY(tile) tile(4) tile(5) tile(6)
# define GEMM_SOME(tile) tile(1) tile(2) tile(4) tile(6)
#endif
enum { GEMM_SET = 1, GEMM_LOWER = 2, GEMM_UPPER = 4, GEMM_FAR = 8 };
enum { GEMM_LINE = 64 / sizeof(real) }; /* numbers of a line of the caches */
/* How many rows of B ahead GEMM_FAR fetches into the L1 cache; into the L2 cache, eight times. */
enum { GEMM_AHEAD = 16 };

typedef struct {
    ptrdiff_t M, N, K;
    const real *a;
    ptrdiff_t a_row, a_step;
    const real *b;
    ptrdiff_t b_row;
    real *c;
    ptrdiff_t c_row;
} Gemm;

/* Fetch into the L2 cache. */
VINL void gemm_fetch(const void *p)
{
#if VB
    __builtin_prefetch(p, 0, 2);
#else
    (void)p;
#endif
}

/* sums += A[:, k] ⊗ B[k, :] for first ≤ k < last.
 *
 * There is one pointer for three rows, and one distance: a pointer for each of twelve rows, or
 * twelve distances, do not fit into the general registers, and what GCC spilled to vector registers
 * took 3 % of the time.  The tile's shorter side is loaded first and stays in registers.
 *
 * Tiles of two vectors fetch what lies `ahead` numbers behind b, and eight times as far, which is
 * almost free where that is b itself.  No hardware keeps up with them where B is in the L2 cache:
 * at x86-64-v3 the products of an LSTM went from 0.72 to 0.86 of the peak. */
VINL void gemm_terms(vf sums[][4], const Gemm *g, const real *a, const real *b, ptrdiff_t first,
                     ptrdiff_t last, ptrdiff_t ahead, const int rows, const int vectors)
{
    const ptrdiff_t row = g->a_row, step = g->a_step, b_row = g->b_row;
    const real *x[(GEMM_ROWS + 2) / 3];
    vf y[GEMM_ROWS], w[4];
    ptrdiff_t k;
    int i, j;
    UNROLLED
    for (i = 0; i < rows; i += 3) x[i / 3] = a + i * row + first * step;
    b += first * b_row;
    for (k = first; k < last; k++, b += b_row) {
        UNROLLED
        for (j = 0; j < 2 * VL && vectors == 2; j += GEMM_LINE) {
            vprefetch(b + ahead + j);
            gemm_fetch(b + 8 * ahead + j);
        }
        if (rows < vectors) {
            UNROLLED
            for (i = 0; i < rows; i++) y[i] = vset1(x[i / 3][i % 3 * row]);
            UNROLLED
            for (j = 0; j < vectors; j++) {
                w[0] = vload(b + j * VL);
                UNROLLED
                for (i = 0; i < rows; i++) sums[i][j] = vfma(y[i], w[0], sums[i][j]);
            }
        } else {
            UNROLLED
            for (j = 0; j < vectors; j++) w[j] = vload(b + j * VL);
            UNROLLED
            for (i = 0; i < rows; i++) {
                y[0] = vset1(x[i / 3][i % 3 * row]);
                UNROLLED
                for (j = 0; j < vectors; j++) sums[i][j] = vfma(y[0], w[j], sums[i][j]);
            }
        }
        UNROLLED
        for (i = 0; i < rows; i += 3) x[i / 3] += step;
    }
}

/* The same on the diagonal of a triangle: the rows i ≥ k − first have the number k (GEMM_LOWER), or
 * the rows i ≤ k − first (GEMM_UPPER). */
VINL void gemm_diagonal(vf sums[][4], const Gemm *g, const real *a, const real *b, ptrdiff_t first,
                        ptrdiff_t last, const int edge, const int rows, const int vectors)
{
    const int count = (int)(last - first);
    vf y;
    int i, j, k;
    a += first * g->a_step, b += first * g->b_row;
    for (k = 0; k < count; k++, a += g->a_step, b += g->b_row) {
        UNROLLED
        for (i = 0; i < rows; i++) {
            if (edge == GEMM_LOWER ? i < k : i > k) continue;
            y = vset1(a[i * g->a_row]);
            UNROLLED
            for (j = 0; j < vectors; j++) sums[i][j] = vfma(y, vload(b + j * VL), sums[i][j]);
        }
    }
}

/* OUT rows i … i + rows − 1 of C, and of these `vectors` vectors of columns from column `at` on. */
VINL void gemm_tile(const Gemm *g, ptrdiff_t i, ptrdiff_t at, int how, const int triangle,
                    const int rows, const int vectors)
{
    const ptrdiff_t K = g->K, start = i < K ? i : K, end = i + rows < K ? i + rows : K;
    const ptrdiff_t ahead = how & GEMM_FAR ? GEMM_AHEAD * g->b_row : 0;
    const real *a = g->a + i * g->a_row, *b = g->b + at;
    real *c = g->c + i * g->c_row + at;
    vf sums[GEMM_ROWS][4];
    int r, j;
    UNROLLED
    for (r = 0; r < rows; r++) {
        UNROLLED
        for (j = 0; j < vectors * VL; j += GEMM_LINE) vprefetch(c + r * g->c_row + j);
        UNROLLED
        for (j = 0; j < vectors; j++) sums[r][j] = vset1(0);
    }
    if (!triangle) {
        gemm_terms(sums, g, a, b, 0, K, ahead, rows, vectors);
    } else if (how & GEMM_LOWER) {
        gemm_terms(sums, g, a, b, 0, start, ahead, rows, vectors);
        gemm_diagonal(sums, g, a, b, start, end, GEMM_LOWER, rows, vectors);
    } else {
        gemm_diagonal(sums, g, a, b, start, end, GEMM_UPPER, rows, vectors);
        gemm_terms(sums, g, a, b, end, K, ahead, rows, vectors);
    }
    UNROLLED
    for (r = 0; r < rows; r++, c += g->c_row) {
        UNROLLED
        for (j = 0; j < vectors; j++) {
            if (!(how & GEMM_SET)) sums[r][j] = vload(c + j * VL) + sums[r][j];
            vstore(c + j * VL, sums[r][j]);
        }
    }
}

/* OUT all rows of C, and of these `vectors` vectors of columns from column `at` on.  Tiles have as
 * equal numbers of rows as possible. */
VINL void gemm_panel(const Gemm *g, ptrdiff_t at, int how)
{
    ptrdiff_t i = 0, tiles = (g->M + GEMM_ROWS - 1) / GEMM_ROWS, rows;
    for (; tiles > 0; tiles--, i += rows) {
        rows = (g->M - i + tiles - 1) / tiles;
        switch (rows) {
#define GEMM_CASE(n)                                                                               \
case n: gemm_tile(g, i, at, how, 0, n, 2); break;
            GEMM_FEW(GEMM_CASE)
            GEMM_MANY(GEMM_CASE)
#undef GEMM_CASE
        }
    }
}

/* The same of few rows, by four vectors of columns. */
VINL void gemm_wide(const Gemm *g, ptrdiff_t at, int how)
{
    switch (g->M) {
#define GEMM_CASE(n)                                                                               \
case n: gemm_tile(g, 0, at, how, 0, n, 4); break;
        GEMM_FEW(GEMM_CASE)
#undef GEMM_CASE
    }
}

/* The same by one vector of columns, or with a triangle. */
VINL void gemm_rest(const Gemm *g, ptrdiff_t at, int how, const int triangle, const int vectors)
{
    ptrdiff_t i = 0, rows = 0;
    for (; i < g->M; i += rows) {
#define GEMM_CASE(n) rows = g->M - i >= n ? n : rows;
        GEMM_SOME(GEMM_CASE)
#undef GEMM_CASE
        switch (rows) {
#define GEMM_CASE(n)                                                                               \
case n: gemm_tile(g, i, at, how, triangle, n, vectors); break;
            GEMM_SOME(GEMM_CASE)
#undef GEMM_CASE
        }
    }
}

/* The panel of B that is in the L1 cache meets all rows of A before the next one. */
static inline void gemm_whole(const Gemm *g, int how)
{
    ptrdiff_t at = 0;
    for (; 2 * g->M <= GEMM_ROWS && at + 4 * VL <= g->N; at += 4 * VL) gemm_wide(g, at, how);
    for (; at + 2 * VL <= g->N; at += 2 * VL) gemm_panel(g, at, how);
    if (at < g->N) gemm_rest(g, at, how, 0, 1);
}
static inline void gemm_triangle(const Gemm *g, int how)
{
    ptrdiff_t at = 0;
    for (; at + 2 * VL <= g->N; at += 2 * VL) gemm_rest(g, at, how, 1, 2);
    if (at < g->N) gemm_rest(g, at, how, 1, 1);
}

/* OUT C, as the head of this file says.  A room that has no triangles does not hold their code. */
VINL void gemm(const Gemm *g, int how)
{
    if (how & (GEMM_LOWER | GEMM_UPPER)) gemm_triangle(g, how);
    else gemm_whole(g, how);
}
#endif
