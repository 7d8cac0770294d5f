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
 *
 * Triangles are exact: what A and B hold outside them never enters, NaN included.
 *
 * Every output is one chain of fused multiply-adds over its ascending k, which starts at 0 and is
 * then added to what the output held before.  Its bits therefore depend neither on VL, nor on how
 * rows and columns are grouped, nor on threads.
 *
 * The register tile is GEMM_ROWS rows by two vectors, 24 sums where there are 32 registers and 12
 * where there are 16.  A caller that wants only a part of C (a triangle of outputs, say) calls this
 * for blocks of GEMM_ROWS rows.
 */
#ifndef FASTDERIV_CORE_GEMM_H
#define FASTDERIV_CORE_GEMM_H
#include "simd.h"

#if VB == 64 || (VB == 16 && defined(__aarch64__))
# define GEMM_REGISTERS 32
enum { GEMM_ROWS = 12 };
#else
# define GEMM_REGISTERS 16
enum { GEMM_ROWS = 6 };
#endif
enum { GEMM_WIDE = 2 }; /* vectors of a register tile */
enum { GEMM_SET = 1, GEMM_LOWER = 2, GEMM_UPPER = 4 };

typedef struct {
    ptrdiff_t M, N, K;
    const real *a;
    ptrdiff_t a_row, a_step;
    const real *b;
    ptrdiff_t b_row;
    real *c;
    ptrdiff_t c_row;
} Gemm;

/* sums[i] += A[i, k] · B[k, :] for rows first ≤ i < last of the tile, for every k of `count`; with
 * every further k, `first` grows by later and `last` by longer.  OUT a and b: behind the last k. */
VINL void gemm_edge(vf sums[][GEMM_WIDE], const Gemm *g, const real *a, const real *b,
                    ptrdiff_t count, const int triangle, const int rows, const int vectors)
{
    vf w[GEMM_WIDE], x;
    ptrdiff_t k;
    int i, j;
    for (k = 0; k < count; k++, a += g->a_step, b += g->b_row) {
        UNROLLED
        for (j = 0; j < vectors; j++) w[j] = vload(b + j * VL);
        UNROLLED
        for (i = 0; i < rows; i++) {
            if (triangle == GEMM_LOWER ? i >= k : i <= k) {
                x = vset1(a[i * g->a_row]);
                UNROLLED
                for (j = 0; j < vectors; j++) sums[i][j] = vfma(x, w[j], sums[i][j]);
            }
        }
    }
}

/* sums[i] += Σ A[i, k] · B[k, :] over `count` numbers k, for all rows of the tile. */
VINL void gemm_all(vf sums[][GEMM_WIDE], const Gemm *g, const real *a, const real *b,
                   ptrdiff_t count, const int rows, const int vectors)
{
    vf w[GEMM_WIDE], x;
    ptrdiff_t k;
    int i, j;
    for (k = 0; k < count; k++, a += g->a_step, b += g->b_row) {
        UNROLLED
        for (j = 0; j < vectors; j++) w[j] = vload(b + j * VL);
        UNROLLED
        for (i = 0; i < rows; i++) {
            x = vset1(a[i * g->a_row]);
            UNROLLED
            for (j = 0; j < vectors; j++) sums[i][j] = vfma(x, w[j], sums[i][j]);
        }
    }
}

/* Rows i … i + rows − 1 and vectors of columns from column `at` on. */
VINL void gemm_tile(const Gemm *g, ptrdiff_t i, ptrdiff_t at, int how, const int rows,
                    const int vectors)
{
    vf sums[GEMM_ROWS][GEMM_WIDE];
    const real *a = g->a + i * g->a_row, *b = g->b + at;
    real *c = g->c + i * g->c_row + at;
    const ptrdiff_t K = g->K, start = i < K ? i : K, end = i + rows < K ? i + rows : K;
    ptrdiff_t first = 0, last = K;
    int r, j;
    UNROLLED
    for (r = 0; r < rows; r++) {
        UNROLLED
        for (j = 0; j < vectors; j++) sums[r][j] = vset1(0);
    }
    if (how & GEMM_UPPER) {
        gemm_edge(sums, g, a + start * g->a_step, b + start * g->b_row, end - start, GEMM_UPPER,
                  rows, vectors);
        first = end;
    }
    if (how & GEMM_LOWER) last = start;
    gemm_all(sums, g, a + first * g->a_step, b + first * g->b_row, last - first, rows, vectors);
    if (how & GEMM_LOWER)
        gemm_edge(sums, g, a + start * g->a_step, b + start * g->b_row, end - start, GEMM_LOWER,
                  rows, vectors);
    UNROLLED
    for (r = 0; r < rows; r++, c += g->c_row) {
        UNROLLED
        for (j = 0; j < vectors; j++) {
            if (!(how & GEMM_SET)) sums[r][j] = vload(c + j * VL) + sums[r][j];
            vstore(c + j * VL, sums[r][j]);
        }
    }
}

/* The same for a number of rows, from 1 to GEMM_ROWS, that the compiler does not know. */
VINL void gemm_rows(const Gemm *g, ptrdiff_t i, ptrdiff_t at, int how, int rows, const int vectors)
{
    switch (rows) {
    case 1: gemm_tile(g, i, at, how, 1, vectors); break;
    case 2: gemm_tile(g, i, at, how, 2, vectors); break;
    case 3: gemm_tile(g, i, at, how, 3, vectors); break;
    case 4: gemm_tile(g, i, at, how, 4, vectors); break;
    case 5: gemm_tile(g, i, at, how, 5, vectors); break;
    case 6: gemm_tile(g, i, at, how, 6, vectors); break;
#if GEMM_REGISTERS == 32
    case 7: gemm_tile(g, i, at, how, 7, vectors); break;
    case 8: gemm_tile(g, i, at, how, 8, vectors); break;
    case 9: gemm_tile(g, i, at, how, 9, vectors); break;
    case 10: gemm_tile(g, i, at, how, 10, vectors); break;
    case 11: gemm_tile(g, i, at, how, 11, vectors); break;
    case 12: gemm_tile(g, i, at, how, 12, vectors); break;
#endif
    }
}

/* OUT C, as the head of this file says.  The panel of B that is in the L1 cache meets all rows of A
 * before the next one; tiles have as equal numbers of rows as possible. */
static void gemm(const Gemm *g, int how)
{
    ptrdiff_t at, i, tiles, rows;
    for (at = 0; at < g->N; at += GEMM_WIDE * VL) {
        tiles = (g->M + GEMM_ROWS - 1) / GEMM_ROWS;
        for (i = 0; tiles > 0; i += rows, tiles--) {
            rows = (g->M - i + tiles - 1) / tiles;
            if (g->N - at >= GEMM_WIDE * VL) gemm_rows(g, i, at, how, (int)rows, GEMM_WIDE);
            else gemm_rows(g, i, at, how, (int)rows, 1);
        }
    }
}
#endif
