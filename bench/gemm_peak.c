/* The product of _core/gemm.h alone, as a fraction of the peak of fused multiply-adds that is
 * measured in the same run.  bench_nn.py compiles and runs it: a line has shape, fraction, and the
 * peak in 10⁹ a second.
 *
 * In an SSD chunk all matrices lie in the L1 or L2 cache.  In an LSTM's step all panels of W_hh are
 * read in turn, for the rows of one task.  In a grid RNN's strip, [x | west | north] is multiplied
 * with all panels; its adjoint sums over the rows.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "gemm.h"

enum { ROUNDS = 15, MEMORY = 1 << 23, PANEL = 2 * VL };

typedef struct {
    const char *what;
    ptrdiff_t M, N, K;
    int turned, how;
    int panels; /* whether B is packed in panels of two vectors */
} Shape;

static const Shape SHAPES[] = {
    {"SSD chunk", 64, 64, 64, 0, 0, 0},
    {"SSD chunk", 64, 64, 128, 0, 0, 0},
    {"SSD chunk", 128, 64, 128, 0, 0, 0},
    {"SSD chunk", 128, 128, 64, 0, 0, 0},
    {"SSD chunk", 64, 64, 256, 0, 0, 0},
    {"SSD chunk, A transposed", 128, 64, 64, 1, 0, 0},
    {"SSD chunk, A transposed", 64, 128, 128, 1, 0, 0},
    {"SSD chunk, causal", 64, 64, 64, 0, GEMM_LOWER, 0},
    {"SSD chunk, causal", 128, 64, 128, 0, GEMM_LOWER, 0},
    {"SSD chunk, k >= i", 64, 64, 64, 0, GEMM_UPPER, 0},
    {"LSTM step", 1, 256, 64, 0, GEMM_FAR, 1},
    {"LSTM step", 6, 1024, 256, 0, GEMM_FAR, 1},
    {"LSTM step", 12, 1024, 256, 0, GEMM_FAR, 1},
    {"LSTM step", 16, 2048, 512, 0, GEMM_FAR, 1},
    {"LSTM inputs", 48, 2048, 512, 0, GEMM_FAR, 1},
    {"LSTM weight sums", 192, 64, 128, 1, GEMM_FAR, 0},
    {"grid strip", 12, 64, 144, 0, GEMM_FAR, 1},
    {"grid strip", 12, 128, 257, 0, GEMM_FAR, 1},
    {"grid weight sums", 64, 160, 48, 1, 0, 0},
};
enum { COUNT = sizeof SHAPES / sizeof *SHAPES };

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Fused multiply-adds a second, of twelve independent chains. */
static double peak(void)
{
    enum { TURNS = 1000000, CHAINS = 12 };
    volatile real numbers[] = {(real)0.999, (real)1e-3}, result; /* not constants in memory */
    const vf scale = vset1(numbers[0]), shift = vset1(numbers[1]);
    vf x[CHAINS], sum = vset1(0);
    double start;
    int i, turn;
    for (i = 0; i < CHAINS; i++) x[i] = vset1((real)i);
    start = seconds();
    for (turn = 0; turn < TURNS; turn++) {
        UNROLLED
        for (i = 0; i < CHAINS; i++) x[i] = vfma(x[i], scale, shift);
    }
    start = seconds() - start;
    for (i = 0; i < CHAINS; i++) sum = sum + x[i];
    result = vget(sum, 0);
    (void)result;
    return (double)TURNS * CHAINS * VL / start;
}

static double work(const Shape *s)
{
    double terms = 0;
    ptrdiff_t i;
    for (i = 0; i < s->M; i++) {
        ptrdiff_t k = s->K;
        if (s->how & GEMM_LOWER) k = i + 1 < k ? i + 1 : k;
        if (s->how & GEMM_UPPER) k = k > i ? k - i : 0;
        terms += (double)k;
    }
    return terms * (double)s->N;
}

/* Multiply-adds a second of one shape. */
static double rate(const Shape *s, real *memory)
{
    const ptrdiff_t line = 64 / (ptrdiff_t)sizeof(real), lda = (s->turned ? s->M : s->K) + line;
    const ptrdiff_t rows = s->turned ? s->K : s->M, width = s->panels ? PANEL : s->N;
    const ptrdiff_t ldc = s->N + line;
    real *c = memory + (rows * lda + line - 1) / line * line;
    real *b = c + (s->M * ldc + line - 1) / line * line;
    Gemm g = {s->M,
              width,
              s->K,
              memory,
              s->turned ? 1 : lda,
              s->turned ? lda : 1,
              b,
              s->panels ? PANEL : s->N + line,
              c,
              ldc};
    const int turns = (int)(1e7 / work(s)) + 1;
    double start = seconds();
    ptrdiff_t at;
    int turn;
    for (turn = 0; turn < turns; turn++) {
        for (at = 0; at < s->N; at += width) {
            g.b = b + at * s->K, g.c = c + at;
            gemm(&g, s->how);
        }
    }
    return work(s) * turns / (seconds() - start);
}

int main(void)
{
    real *memory = malloc(MEMORY * sizeof(real) + 64);
    real *aligned = (real *)(((uintptr_t)memory + 63) / 64 * 64);
    double best[COUNT] = {0}, most = 0, now;
    ptrdiff_t i, round;
    if (!memory) return 1;
    for (i = 0; i < MEMORY; i++) aligned[i] = (real)(i % 7 - 3) / 8;
    for (round = 0; round < ROUNDS; round++) {
        now = peak();
        if (now > most) most = now;
        for (i = 0; i < COUNT; i++) {
            /* C accumulates, but stays far below the largest number */
            now = rate(&SHAPES[i], aligned);
            if (now > best[i]) best[i] = now;
        }
    }
    for (i = 0; i < COUNT; i++)
        printf("%s (%d, %d, %d)\t%.3f\t%.1f\n", SHAPES[i].what, (int)SHAPES[i].M, (int)SHAPES[i].N,
               (int)SHAPES[i].K, best[i] / most, most / 1e9);
    free(memory);
    return 0;
}
