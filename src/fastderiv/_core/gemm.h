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
 * where there are 16: two loads of B and one broadcast for each row, whose 24 or 12 multiply-adds
 * hide each other's latency even on cores that start two of them per cycle.  A caller that wants
 * only a part of C (a triangle of outputs, say) calls this for blocks of GEMM_ROWS rows.
 */
#ifndef FASTDERIV_CORE_GEMM_H
#define FASTDERIV_CORE_GEMM_H
#include "simd.h"

#if VB == 64 || (VB == 16 && defined(__aarch64__))
enum { GEMM_ROWS = 12 };
# define GEMM_EVERY_TILE(tile) tile(1) tile(2) tile(3) tile(4) tile(6) tile(8) tile(10) tile(12)
#else
enum { GEMM_ROWS = 6 };
# define GEMM_EVERY_TILE(tile) tile(1) tile(2) tile(3) tile(4) tile(6)
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

/* sums[i] += A[i, k] · B[k, :] for `count` numbers k, of which a and b are at the first.  With
 * `edge`, the k-th of them is left out for the rows i < k (GEMM_LOWER) or i > k (GEMM_UPPER).
 *
 * There is one pointer for three rows, and one distance: a pointer for each of twelve rows, or
 * twelve distances, do not fit into the general registers, and what GCC spilled to vector registers
 * took 3 % of the time. */
VINL void gemm_terms(vf sums[][GEMM_WIDE], const Gemm *g, const real *a, const real *b,
                     ptrdiff_t count, const int edge, const int rows, const int vectors)
{
    const ptrdiff_t row = g->a_row, step = g->a_step, b_row = g->b_row;
    const real *x[(GEMM_ROWS + 2) / 3];
    vf w[GEMM_WIDE], y;
    ptrdiff_t k;
    int i, j;
    UNROLLED
    for (i = 0; i < rows; i += 3) x[i / 3] = a + i * row;
    for (k = 0; k < count; k++, b += b_row) {
        UNROLLED
        for (j = 0; j < vectors; j++) w[j] = vload(b + j * VL);
        UNROLLED
        for (i = 0; i < rows; i++) {
            if (edge && (edge == GEMM_LOWER ? i < k : i > k)) continue;
            y = vset1(x[i / 3][i % 3 * row]);
            UNROLLED
            for (j = 0; j < vectors; j++) sums[i][j] = vfma(y, w[j], sums[i][j]);
        }
        UNROLLED
        for (i = 0; i < rows; i += 3) x[i / 3] += step;
    }
}

/* OUT rows i … i + rows − 1 of C, `vectors` vectors of columns from column `at` on. */
VINL void gemm_tile(const Gemm *g, ptrdiff_t i, ptrdiff_t at, int how, const int rows,
                    const int vectors)
{
    vf sums[GEMM_ROWS][GEMM_WIDE];
    const real *a = g->a + i * g->a_row, *b = g->b + at;
    real *c = g->c + i * g->c_row + at;
    const ptrdiff_t K = g->K, start = i < K ? i : K, end = i + rows < K ? i + rows : K;
    const ptrdiff_t first = how & GEMM_UPPER ? end : 0, last = how & GEMM_LOWER ? start : K;
    int r, j;
    UNROLLED
    for (r = 0; r < rows; r++) {
        UNROLLED
        for (j = 0; j < vectors; j++) sums[r][j] = vset1(0);
    }
    if (how & GEMM_UPPER)
        gemm_terms(sums, g, a + start * g->a_step, b + start * g->b_row, end - start, GEMM_UPPER,
                   rows, vectors);
    gemm_terms(sums, g, a + first * g->a_step, b + first * g->b_row, last - first, 0, rows,
               vectors);
    if (how & GEMM_LOWER)
        gemm_terms(sums, g, a + start * g->a_step, b + start * g->b_row, end - start, GEMM_LOWER,
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

/* A case of the switch in `gemm`: n rows. */
#define GEMM_CASE(n)                                                                               \
case n:                                                                                            \
    if (N - at >= GEMM_WIDE * VL) gemm_tile(g, i, at, how, n, GEMM_WIDE);                          \
    else gemm_tile(g, i, at, how, n, 1);                                                           \
    break;

/* How many rows the next tile has, when `rest` of them are left.  Tiles are as equal as those allow
 * that there is code for: even numbers, 1 and 3. */
static inline int gemm_tile_rows(ptrdiff_t rest)
{
    const ptrdiff_t tiles = (rest + GEMM_ROWS - 1) / GEMM_ROWS, rows = (rest + tiles - 1) / tiles;
    if (rows < 4 || rows % 2 == 0) return (int)rows;
    return (int)(tiles > 1 ? rows + 1 : rows - 3);
}

/* OUT C, as the head of this file says.  The panel of B that is in the L1 cache meets all rows of A
 * before the next one. */
static void gemm(const Gemm *g, int how)
{
    const ptrdiff_t N = g->N, M = g->M;
    ptrdiff_t at, i;
    int rows;
    for (at = 0; at < N; at += GEMM_WIDE * VL) {
        for (i = 0; i < M; i += rows) {
            rows = gemm_tile_rows(M - i);
            switch (rows) {
                GEMM_EVERY_TILE(GEMM_CASE)
            }
        }
    }
}
#endif
