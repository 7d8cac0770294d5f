/* gemm.h against its definition, bit for bit, and what it must not read.
 *
 *     cc -O2 -ffp-contract=off [-march=x86-64-v3 -DSIMD_FMA] [-DSIMD_F64] \
 *         -Isrc/fastderiv/_core tests/gemm_chains.c -lm -o chains && ./chains
 *
 * Products of random sizes, strides and triangles: every output must be one chain over ascending k
 * that starts at 0 and is then added to C.  What lies outside of triangles is NaN, and so is C where
 * it is only written.  The exit status says whether all bits agree and nothing else was written.
 */
#include <stdio.h>
#include <stdlib.h>

#include "gemm.h"

enum { PRODUCTS = 4000, MOST_M = 40, MOST_VECTORS = 9, MOST_K = 48, ROOM = 1 << 14 };

static real a[ROOM], b[ROOM], c[ROOM], expected[ROOM];
static unsigned state = 1;

static int below(int n)
{
    state = state * 1664525u + 1013904223u;
    return (int)((state >> 8) % (unsigned)n);
}

static void fill(real *p, int plain)
{
    int i;
    for (i = 0; i < ROOM; i++) p[i] = plain ? (real)(below(2001) - 1000) / 997 : (real)NAN;
}

static real multiply_add(real x, real y, real sum)
{
#if defined(SIMD_F64) && defined(SIMD_FMA)
    return fma(x, y, sum);
#elif defined(SIMD_FMA)
    return fmaf(x, y, sum);
#else
    return x * y + sum;
#endif
}

static int has(int how, ptrdiff_t i, ptrdiff_t k)
{
    return how & GEMM_LOWER ? k <= i : how & GEMM_UPPER ? k >= i : 1;
}

/* OUT `expected`; entries of A outside of the triangle become NaN. */
static void define(const Gemm *g, int how)
{
    ptrdiff_t i, j, k;
    real sum;
    for (i = 0; i < g->M; i++) {
        for (k = 0; k < g->K; k++)
            if (!has(how, i, k)) a[i * g->a_row + k * g->a_step] = (real)NAN;
        for (j = 0; j < g->N; j++) {
            for (sum = 0, k = 0; k < g->K; k++)
                if (has(how, i, k))
                    sum = multiply_add(a[i * g->a_row + k * g->a_step], b[k * g->b_row + j], sum);
            expected[i * g->c_row + j] = how & GEMM_SET ? sum : expected[i * g->c_row + j] + sum;
        }
    }
}

int main(void)
{
    const int triangles[] = {0, GEMM_LOWER, GEMM_UPPER};
    int n;
    for (n = 0; n < PRODUCTS; n++) {
        const int how = below(2) * GEMM_SET + triangles[below(3)] + below(2) * GEMM_FAR;
        const int turned = below(2), M = below(MOST_M), K = below(MOST_K);
        const int N = below(MOST_VECTORS) * VL, lda = (turned ? M : K) + below(3);
        const Gemm g = {M, N,           K, a, turned ? 1 : lda, turned ? lda : 1, b, N + below(9),
                        c, N + below(9)};
        fill(a, 1), fill(b, 1), fill(c, !(how & GEMM_SET));
        memcpy(expected, c, sizeof c);
        define(&g, how);
        gemm(&g, how);
        if (memcmp(c, expected, sizeof c)) {
            printf("product %d: M %d N %d K %d how %d\n", n, M, N, K, how);
            return 1;
        }
    }
    return 0;
}
