/* adjoint_tiles.h: tiles of the adjoint of an SSD scan: loading, storing, turning, scaling, sums
 * over their columns; products that fetch ahead what the next head reads.
 *
 *     tile       rows of one step each, or of one row of a state, `row` numbers apart; the columns
 *                from the last one up to a multiple of GL hold zeros
 *     dots       what is summed over the columns of a tile: GL sums for each row, which
 *                ssd_row_sums adds up; column i belongs to sum i % GL at every level
 */
#ifndef FASTDERIV_SSD_ADJOINT_TILES_H
#define FASTDERIV_SSD_ADJOINT_TILES_H
#include "gemm.h"
#include "simd.h"
#include "simd_lanes.h"
#include "simd_math.h"

typedef ptrdiff_t ssd_ix;

/* ---- fetching ahead --------------------------------------------------------------------------
 * Rows of signals and states that the next head needs come from far away.  They are asked for a few
 * lines at a time, between the pieces of this head's products. */

enum { SSD_LINE = 64, SSD_PLANES = 8 };
typedef struct {
    const char *p;
    ssd_ix row, length, rows; /* bytes from row to row, bytes of a row, rows */
} SsdPlane;
typedef struct {
    SsdPlane planes[SSD_PLANES];
    ssd_ix row, byte; /* of the first plane that is not done */
    int count, done, each;
} SsdFetch;

/* OUT ahead: with one more plane of `rows` rows of `length` numbers; none if they are apart. */
static void ssd_plane(SsdFetch *ahead, const real *p, ssd_ix row, ssd_ix stride, ssd_ix rows,
                      ssd_ix length)
{
    const SsdPlane plane = {(const char *)p, row * (ssd_ix)sizeof(real),
                            length * (ssd_ix)sizeof(real), rows};
    if (stride == 1 && rows > 0 && ahead->count < SSD_PLANES) ahead->planes[ahead->count++] = plane;
}

static ssd_ix ssd_lines(const SsdFetch *ahead)
{
    ssd_ix lines = 0;
    int i;
    for (i = 0; i < ahead->count; i++)
        lines += ahead->planes[i].rows * ((ahead->planes[i].length + SSD_LINE - 1) / SSD_LINE);
    return lines;
}

/* Ask for the next lines. */
static void ssd_fetch_lines(SsdFetch *ahead)
{
    int n;
    for (n = 0; n < ahead->each && ahead->done < ahead->count; n++) {
        const SsdPlane *plane = &ahead->planes[ahead->done];
        vprefetch(plane->p + ahead->row * plane->row + ahead->byte);
        ahead->byte += SSD_LINE;
        if (ahead->byte < plane->length) continue;
        ahead->byte = 0;
        if (++ahead->row < plane->rows) continue;
        ahead->row = 0;
        ahead->done++;
    }
}

/* OUT C, as of gemm, in pieces between which lines are asked for. */
static void ssd_multiply(const Gemm *g, int how, SsdFetch *ahead)
{
    const int whole = how & (GEMM_LOWER | GEMM_UPPER);
    Gemm piece = *g;
    ssd_ix at, i, tiles;
    for (at = 0; at < g->N; at += 2 * VL) {
        piece.N = g->N - at < 2 * VL ? g->N - at : 2 * VL;
        piece.b = g->b + at;
        tiles = whole ? 1 : (g->M + GEMM_ROWS - 1) / GEMM_ROWS;
        for (i = 0; tiles > 0; tiles--, i += piece.M) {
            piece.M = (g->M - i + tiles - 1) / tiles;
            piece.a = g->a + i * g->a_row;
            piece.c = g->c + i * g->c_row + at;
            ssd_fetch_lines(ahead);
            gemm(&piece, how);
        }
    }
}

/* ---- tiles ---------------------------------------------------------------------------------- */

/* OUT tile = `rows` rows of `columns` numbers at src, then rows of zeros up to a multiple of GL. */
static void ssd_load(const real *src, ssd_ix row_stride, ssd_ix stride, ssd_ix rows, ssd_ix columns,
                     real *tile, ssd_ix row)
{
    const ssd_ix width = (columns + GL - 1) / GL * GL, height = (rows + GL - 1) / GL * GL;
    ssd_ix r, i;
    if (stride == 1) {
        for (r = 0; r < rows; r++) {
            for (i = 0; i + VL <= columns; i += VL)
                vstore(tile + r * row + i, vload(src + r * row_stride + i));
            for (; i < columns; i++) tile[r * row + i] = src[r * row_stride + i];
        }
    } else {
        for (i = 0; i < columns; i++)
            for (r = 0; r < rows; r++) tile[r * row + i] = src[r * row_stride + i * stride];
    }
    if (columns < width)
        for (r = 0; r < rows; r++)
            memset(tile + r * row + columns, 0, (size_t)(width - columns) * sizeof(real));
    for (r = rows; r < height; r++) memset(tile + r * row, 0, (size_t)width * sizeof(real));
}

/* OUT dst = the numbers of a tile, added to those that are there if `add`. */
VINL void ssd_put_rows(const real *tile, ssd_ix row, ssd_ix rows, ssd_ix columns, real *dst,
                       ssd_ix row_stride, ssd_ix stride, const int add)
{
    ssd_ix r, i;
    if (stride == 1) {
        for (r = 0; r < rows; r++) {
            real *to = dst + r * row_stride;
            const real *from = tile + r * row;
            for (i = 0; i + VL <= columns; i += VL)
                vstore(to + i, add ? vload(to + i) + vload(from + i) : vload(from + i));
            for (; i < columns; i++) to[i] = add ? to[i] + from[i] : from[i];
        }
        return;
    }
    for (r = 0; r < rows; r++) {
        real *to = dst + r * row_stride;
        for (i = 0; i < columns; i++)
            to[i * stride] = add ? to[i * stride] + tile[r * row + i] : tile[r * row + i];
    }
}
static void ssd_store(const real *tile, ssd_ix row, ssd_ix rows, ssd_ix columns, real *dst,
                      ssd_ix row_stride, ssd_ix stride)
{
    ssd_put_rows(tile, row, rows, columns, dst, row_stride, stride, 0);
}
static void ssd_add(const real *tile, ssd_ix row, ssd_ix rows, ssd_ix columns, real *dst,
                    ssd_ix row_stride, ssd_ix stride)
{
    ssd_put_rows(tile, row, rows, columns, dst, row_stride, stride, 1);
}

/* OUT dst[j, i] = src[i, j] for i < rows and j < columns, both multiples of VL. */
static void ssd_transpose(const real *src, ssd_ix row, ssd_ix rows, ssd_ix columns, real *dst,
                          ssd_ix dst_row)
{
    ssd_ix i, j;
    for (i = 0; i < rows; i += VL)
        for (j = 0; j < columns; j += VL)
            vtranspose(src + i * row + j, row, dst + j * dst_row + i, dst_row);
}

/* OUT dst[r, :] = factor[r] · src[r, :], `columns` a multiple of VL; src may be dst. */
static void ssd_scale_tile(const real *src, const real *factor, ssd_ix rows, ssd_ix columns,
                           ssd_ix row, real *dst)
{
    ssd_ix r, i;
    for (r = 0; r < rows; r++) {
        const vf f = vset1(factor[r]);
        for (i = 0; i < columns; i += VL) vstore(dst + r * row + i, f * vload(src + r * row + i));
    }
}

/* OUT sum[r, :] += factor[r] · a[r, :]. */
static void ssd_scale_and_add(const real *factor, const real *a, ssd_ix rows, ssd_ix columns,
                              ssd_ix row, real *sum)
{
    ssd_ix r, i;
    for (r = 0; r < rows; r++) {
        const vf f = vset1(factor[r]);
        for (i = r * row; i < r * row + columns; i += VL)
            vstore(sum + i, vfma(f, vload(a + i), vload(sum + i)));
    }
}

/* OUT to = factor · from, `count` numbers, a multiple of VL; they may be the same. */
static void ssd_scale_state(const real *from, real factor, ssd_ix count, real *to)
{
    const vf f = vset1(factor);
    ssd_ix i;
    for (i = 0; i < count; i += VL) vstore(to + i, f * vload(from + i));
}

/* ȳ and what dz is y times.  IN dout, z; OUT dout = dout · silu(z), z = dout · silu'(z). */
static void ssd_gate(ssd_ix rows, ssd_ix columns, ssd_ix row, real *dout, real *z)
{
    ssd_ix r, i;
    for (r = 0; r < rows; r++) {
        for (i = r * row; i < r * row + columns; i += VL) {
            vf slope, gate = vsilu_slope(vload(z + i), &slope), d = vload(dout + i);
            vstore(dout + i, d * gate);
            vstore(z + i, d * slope);
        }
    }
}

/* OUT z · (y + skip x) in z: dz. */
static void ssd_gate_gradient(ssd_ix rows, ssd_ix columns, ssd_ix row, const real *y, const real *x,
                              const real *skip, real *z)
{
    ssd_ix r, i;
    for (r = 0; r < rows; r++)
        for (i = 0; i < columns; i += VL) {
            const vf whole = vfma(vload(skip + i), vload(x + r * row + i), vload(y + r * row + i));
            vstore(z + r * row + i, vload(z + r * row + i) * whole);
        }
}

/* ---- sums over columns ---------------------------------------------------------------------- */

/* OUT sums[r] = the sum of the GL numbers of row r of `dots`, adjacent pairs first.  Both have room
 * for round_up(rows, VL) rows. */
static void ssd_row_sums(const real *dots, ssd_ix rows, real *sums)
{
    real lanes[GL * VL];
    ssd_ix r;
    int i, n;
    for (r = 0; r < rows; r += VL) {
        vf a[GL];
        for (i = 0; i < GL; i += VL) vtranspose(dots + r * GL + i, GL, lanes + i * VL, VL);
        UNROLLED
        for (i = 0; i < GL; i++) a[i] = vload(lanes + i * VL);
        UNROLLED
        for (n = GL / 2; n; n /= 2) {
            UNROLLED
            for (i = 0; i < n; i++) a[i] = a[2 * i] + a[2 * i + 1];
        }
        vstore(sums + r, a[0]);
    }
}

VINL void ssd_put_dots(real *dots, const vf sums[NS])
{
    int j;
    UNROLLED
    for (j = 0; j < NS; j++) vstore(dots + j * VL, sums[j]);
}

/* OUT sum += a, and dots of a · b. */
static void ssd_add_and_dot(const real *a, const real *b, ssd_ix rows, ssd_ix columns, ssd_ix row,
                            real *sum, real *dots)
{
    ssd_ix r, i;
    int j;
    for (r = 0; r < rows; r++) {
        vf s[NS] = {vset1(0)};
        for (i = r * row; i < r * row + columns; i += GL) {
            UNROLLED
            for (j = 0; j < NS; j++) {
                const vf y = vload(a + i + j * VL);
                vstore(sum + i + j * VL, vload(sum + i + j * VL) + y);
                s[j] = vfma(y, vload(b + i + j * VL), s[j]);
            }
        }
        ssd_put_dots(dots + r * GL, s);
    }
}

/* OUT a[r, :] = factor[r] · a[r, :], and dots of a · b. */
static void ssd_scale_and_dot(const real *factor, const real *b, ssd_ix rows, ssd_ix columns,
                              ssd_ix row, real *a, real *dots)
{
    ssd_ix r, i;
    int j;
    for (r = 0; r < rows; r++) {
        const vf f = vset1(factor[r]);
        vf s[NS] = {vset1(0)};
        for (i = r * row; i < r * row + columns; i += GL) {
            UNROLLED
            for (j = 0; j < NS; j++) {
                const vf y = f * vload(a + i + j * VL);
                vstore(a + i + j * VL, y);
                s[j] = vfma(y, vload(b + i + j * VL), s[j]);
            }
        }
        ssd_put_dots(dots + r * GL, s);
    }
}

/* Σ a·b over `rows` rows of two states.  Four rows at a time have sums of their own. */
static double ssd_state_dot(const real *a, const real *b, ssd_ix rows, ssd_ix columns, ssd_ix row)
{
    vf s[4][NS];
    real lanes[GL];
    double sum = 0;
    ssd_ix r, i;
    int j, k;
    for (k = 0; k < 4; k++)
        for (j = 0; j < NS; j++) s[k][j] = vset1(0);
    for (r = 0; r + 4 <= rows; r += 4) {
        for (i = r * row; i < r * row + columns; i += GL) {
            UNROLLED
            for (k = 0; k < 4; k++) {
                UNROLLED
                for (j = 0; j < NS; j++) {
                    const ssd_ix o = i + k * row + j * VL;
                    s[k][j] = vfma(vload(a + o), vload(b + o), s[k][j]);
                }
            }
        }
    }
    for (; r < rows; r++)
        for (i = r * row; i < r * row + columns; i += GL)
            for (j = 0; j < NS; j++)
                s[0][j] = vfma(vload(a + i + j * VL), vload(b + i + j * VL), s[0][j]);
    for (k = 0; k < 4; k++) {
        for (j = 0; j < NS; j++) vstore(lanes + j * VL, s[k][j]);
        for (j = 0; j < GL; j++) sum += lanes[j];
    }
    return sum;
}
#endif
