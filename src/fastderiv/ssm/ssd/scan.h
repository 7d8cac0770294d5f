/* scan.h: the loops of the SSD forward pass over states in registers (docs/derivations.md §6.2).
 *
 * The state S of a head is [n][p], p in the lanes.  One step of the recurrence is
 *
 *     S[n][p] += b[n]·x[p],    y[p] = Σ_n c[n]·S[n][p],
 *
 * two multiply–adds an element.  There is no decay in it: S is scaled, and where the scale changes,
 * a new run of steps begins.  SSD_UB rows of S by SSD_UV vectors stay in registers for a whole block
 * of time.  Sums over n are chains in ascending order through memory, so that results do not depend
 * on SSD_UB and SSD_UV.
 */
#ifndef FASTDERIV_SSD_SCAN_H
#define FASTDERIV_SSD_SCAN_H
#include "simd.h"

/* SSD_ROWS  N is padded to a multiple of it with zeros, on every level: −0 + 0 is 0
 * SSD_UB    rows in registers.  8 × 2 vectors use 29 of 32 registers; 4 × 2, 14 of 16. */
#if VB == 64 || defined(__aarch64__)
enum { SSD_UB = 8 };
#else
enum { SSD_UB = 4 };
#endif
/* SSD_LEAST: the smallest normal number; what falls below it becomes 0 */
#ifdef SIMD_F64
# define SSD_LEAST 0x1p-1022
#else
# define SSD_LEAST 0x1p-126f
#endif
enum { SSD_ROWS = 8, SSD_UV = 2 };

/* Runs of steps in which S keeps one scale: run k ends before step end[k], and S is multiplied by
 * ratio[k] before its first step. */
typedef struct {
    ptrdiff_t count;
    const ptrdiff_t *end;
    const real *ratio;
} SsdRuns;

typedef struct {
    const real *x;            /* [t][p], rows of `width` numbers */
    real *y;                  /* OUT [t][p], rows of `width` */
    const real *b, *c;        /* [t][n], rows b_row and c_row apart */
    ptrdiff_t b_row, c_row;
    real *S;                  /* IN OUT [n][p], rows of `width` */
    ptrdiff_t states, width;  /* states a multiple of SSD_ROWS, width of VL */
    const SsdRuns *runs;
} SsdLoop;

/* Lines to fetch while a loop runs: `count` rows of `bytes` bytes.  A few are asked for with every
 * SSD_UB rows of S.  The rows lie pages apart, so that hardware does not foresee them. */
enum { SSD_STREAMS = 5 };
typedef struct {
    const char *p;
    ptrdiff_t row, count, bytes;
} SsdStream;

VINL void ssd_fetch(const SsdStream *streams, ptrdiff_t panel, ptrdiff_t panels)
{
    int i;
    for (i = 0; i < SSD_STREAMS; i++) {
        const SsdStream *s = streams + i;
        const ptrdiff_t each = (s->count + panels - 1) / panels;
        ptrdiff_t t, k;
        for (t = panel * each; t < (panel + 1) * each && t < s->count; t++)
            for (k = 0; k < s->bytes; k += 64) vprefetch(s->p + t * s->row + k);
    }
}

/* `rows` rows of S from `row` on by nv vectors from `column` on, through the block.  `fresh`: y
 * begins at 0. */
VINL void ssd_tile(const SsdLoop *loop, ptrdiff_t row, ptrdiff_t column, const int rows,
                   const int nv, const int with_y, const int fresh)
{
    const SsdRuns *runs = loop->runs;
    const ptrdiff_t width = loop->width, b_row = loop->b_row, c_row = loop->c_row;
    const real *x = loop->x + column, *b = loop->b + row, *c = loop->c + row;
    real *y = loop->y + column, *S = loop->S + row * width + column;
    const vf least = vset1(SSD_LEAST);
    vf s[SSD_UB][SSD_UV];
    ptrdiff_t k, t = 0;
    int i, v;
    UNROLLED
    for (i = 0; i < rows; i++) {
        UNROLLED
        for (v = 0; v < nv; v++) s[i][v] = vload(S + i * width + v * VL);
    }
    for (k = 0; k < runs->count; k++) {
        const ptrdiff_t end = runs->end[k];
        if (runs->ratio[k] != 1) {
            const vf ratio = vset1(runs->ratio[k]);
            UNROLLED
            for (i = 0; i < rows; i++) {
                UNROLLED
                for (v = 0; v < nv; v++) {
                    s[i][v] *= ratio;
                    s[i][v] = vsel_lt(vabs(s[i][v]), least, vset1(0), s[i][v]);
                }
            }
        }
        for (; t < end; t++) {
            vf xv[SSD_UV], yv[SSD_UV];
            UNROLLED
            for (v = 0; v < nv; v++) {
                xv[v] = vload(x + v * VL);
                if (with_y) yv[v] = fresh ? vset1(0) : vload(y + v * VL);
            }
            UNROLLED
            for (i = 0; i < rows; i++) {
                const vf bi = vset1(b[i]);
                UNROLLED
                for (v = 0; v < nv; v++) s[i][v] = vfma(bi, xv[v], s[i][v]);
                if (with_y) {
                    const vf ci = vset1(c[i]);
                    UNROLLED
                    for (v = 0; v < nv; v++) yv[v] = vfma(ci, s[i][v], yv[v]);
                }
            }
            if (with_y) {
                UNROLLED
                for (v = 0; v < nv; v++) vstore(y + v * VL, yv[v]);
            }
            x += width, y += width, b += b_row, c += c_row;
        }
    }
    UNROLLED
    for (i = 0; i < rows; i++) {
        UNROLLED
        for (v = 0; v < nv; v++) vstore(S + i * width + v * VL, s[i][v]);
    }
}

/* Rows of S in turn, all columns of each. */
VINL void ssd_rows(const SsdLoop *loop, ptrdiff_t row, const int rows, const int with_y,
                   const int fresh)
{
    ptrdiff_t v = 0;
    for (; v + SSD_UV * VL <= loop->width; v += SSD_UV * VL)
        ssd_tile(loop, row, v, rows, SSD_UV, with_y, fresh);
    for (; v < loop->width; v += VL) ssd_tile(loop, row, v, rows, 1, with_y, fresh);
}

/* A block of a head: OUT y, IN OUT S.  There is at least one state. */
static void ssd_block(const SsdLoop *loop, const SsdStream *ahead)
{
    const ptrdiff_t panels = loop->states / SSD_UB;
    ptrdiff_t i;
    for (i = 0; i < panels; i++) {
        ssd_fetch(ahead, i, panels);
        if (i)
            ssd_rows(loop, i * SSD_UB, SSD_UB, 1, 0);
        else
            ssd_rows(loop, 0, SSD_UB, 1, 1);
    }
}

/* The same without y: only states. */
static void ssd_block_states(const SsdLoop *loop)
{
    ptrdiff_t i;
    for (i = 0; i < loop->states; i += SSD_UB) ssd_rows(loop, i, SSD_UB, 0, 0);
}

/* As ssd_block for `states` that are no multiple of anything: no padded row takes part, whose 0 · inf
 * would be NaN. */
static void ssd_block_exact(const SsdLoop *loop)
{
    ptrdiff_t i;
    for (i = 0; i < loop->states; i++)
        if (i)
            ssd_rows(loop, i, 1, 1, 0);
        else
            ssd_rows(loop, 0, 1, 1, 1);
}

#endif
