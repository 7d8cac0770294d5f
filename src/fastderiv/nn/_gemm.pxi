"""Matrix products for the recurrent layers: one micro-kernel, and three ways in which its rows may lie.

    tile            rows of numbers at fixed distances (LSTM): a panel of weights is PW = 4·VL columns wide, [k][PW]
    tile_rows       rows behind pointers, in segments (grid): states are read where they lie
    tile_outer      the same rows down their columns (grid): weights' gradients, a sum over rows

Every output is one chain of fused multiply–adds over k ascending, started at 0 and then added to what is there: its bits do not
depend on VL, on how rows are tiled, nor on threads.  A tile is as many sums as registers hold.  The LSTM's has three rows by four
vectors where there are 16 registers, since its panels are the four gates; the grid's has six by two, which leaves less behind of
a few hidden units.  Weights are packed once per call and used by every step; a BLAS packs them in every product.
"""
cdef extern from *:
    """
    #if VB == 64 || (VB == 16 && defined(__aarch64__))
    enum { MR = 6, WIDE = 4 };                         /* 24 sums in 32 registers */
    #else
    enum { MR = 3, WIDE = 2 };                         /* 12 in 16 */
    #endif
    enum { PW = 4 * VL, TALL = 6 };

    VINL void clear(vf s[][4], const int m, const int v)
    {
        int i, j;
        UNROLLED for (i = 0; i < m; i++) UNROLLED for (j = 0; j < v; j++) s[i][j] = vset1(0);
    }
    /* s[i, j] += x[i][k] w[j]; what there is less of waits in registers */
    VINL void multiply_add(vf s[][4], const real *const x[], ptrdiff_t k, const real *w, const int m, const int v)
    {
        vf a[TALL], b[4];
        int i, j;
        if (m < v) {
            UNROLLED for (i = 0; i < m; i++) a[i] = vset1(x[i][k]);
            UNROLLED for (j = 0; j < v; j++) {
                b[0] = vload(w + j * VL);
                UNROLLED for (i = 0; i < m; i++) s[i][j] = vfma(a[i], b[0], s[i][j]);
            }
        } else {
            UNROLLED for (j = 0; j < v; j++) b[j] = vload(w + j * VL);
            UNROLLED for (i = 0; i < m; i++) {
                a[0] = vset1(x[i][k]);
                UNROLLED for (j = 0; j < v; j++) s[i][j] = vfma(a[0], b[j], s[i][j]);
            }
        }
    }
    VINL void add_to(real *c, ptrdiff_t ldc, vf s[][4], const int m, const int v)
    {
        int i, j;
        UNROLLED for (i = 0; i < m; i++) UNROLLED for (j = 0; j < v; j++)
            vstore(c + i * ldc + j * VL, vload(c + i * ldc + j * VL) + s[i][j]);
    }

    /* c[i, j] += Σ_k a[i·row + k·step] w[k, j], i < m, j < PW */
    VINL void tile(const real *a, ptrdiff_t row, ptrdiff_t step, const real *w, ptrdiff_t K, real *c, ptrdiff_t ldc, const int m)
    {
        vf s[MR][4];
        const real *x[MR];
        ptrdiff_t k;
        int i;
        clear(s, m, 4);
        UNROLLED for (i = 0; i < m; i++) x[i] = a + i * row;
        for (k = 0; k < K; k++, w += PW) multiply_add(s, x, k * step, w, m, 4);
        add_to(c, ldc, s, m, 4);
    }
    /* c[i, :] += Σ over segments g and k < n[g] of rows[g·next + i][k] · w[g, k, :], m rows by v vectors */
    VINL void tile_rows(const real *const *rows, ptrdiff_t next, int segments, const ptrdiff_t *n, const real *w,
                        real *c, ptrdiff_t ldc, const int m, const int v)
    {
        vf s[TALL][4];
        const real *x[TALL];
        ptrdiff_t k;
        int i, g;
        clear(s, m, v);
        for (g = 0; g < segments; g++, rows += next) {
            UNROLLED for (i = 0; i < m; i++) x[i] = rows[i];
            for (k = 0; k < n[g]; k++, w += v * VL) multiply_add(s, x, k, w, m, v);
        }
        add_to(c, ldc, s, m, v);
    }
    /* c[i, :] += Σ over k < n of rows[k][at + i] · b[k, :], m rows by v vectors */
    VINL void tile_outer(const real *const *rows, ptrdiff_t at, ptrdiff_t n, const real *b, ptrdiff_t ldb,
                         real *c, ptrdiff_t ldc, const int m, const int v)
    {
        vf s[TALL][4];
        const real *x[TALL];
        ptrdiff_t k;
        int i;
        clear(s, m, v);
        for (k = 0; k < n; k++, b += ldb) {
            UNROLLED for (i = 0; i < m; i++) x[i] = rows[k] + i;
            multiply_add(s, x, at, b, m, v);
        }
        add_to(c, ldc, s, m, v);
    }
    static void tile_of(const real *a, ptrdiff_t row, ptrdiff_t step, const real *w, ptrdiff_t K, real *c, ptrdiff_t ldc, int m)
    {
        switch (m) {
        case 1: tile(a, row, step, w, K, c, ldc, 1); break;
        case 2: tile(a, row, step, w, K, c, ldc, 2); break;
        case 3: tile(a, row, step, w, K, c, ldc, 3); break;
    #if VB == 64 || (VB == 16 && defined(__aarch64__))
        case 4: tile(a, row, step, w, K, c, ldc, 4); break;
        case 5: tile(a, row, step, w, K, c, ldc, 5); break;
        case 6: tile(a, row, step, w, K, c, ldc, 6); break;
    #endif
        }
    }
    """
    enum: PW, MR, TALL, WIDE
    void tile_rows(const real *const *rows, ix next, int segments, const ix *n, const real *w, real *c, ix ldc,
                   int m, int v) noexcept nogil
    void tile_outer(const real *const *rows, ix at, ix n, const real *b, ix ldb, real *c, ix ldc, int m, int v) noexcept nogil
    void tile_of(const real *a, ix row, ix step, const real *w, ix K, real *c, ix ldc, int m) noexcept nogil


cdef void product(const real *a, ix row, ix rows, const real *w, ix K, real *c, ix ldc) noexcept nogil:
    """c (rows, PW) += a (rows, K) @ panel w; a and c have rows `row` and `ldc` apart.  Tiles of rows as equal as possible."""
    cdef ix i = 0, m
    cdef ix left = (rows + MR - 1) // MR
    while left > 0:
        m = (rows - i + left - 1) // left
        tile_of(a + i * row, row, 1, w, K, c + i * ldc, ldc, <int>m)
        i += m
        left -= 1
