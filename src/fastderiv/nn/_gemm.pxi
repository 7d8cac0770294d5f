"""Matrix products for the recurrent layers: rows times packed panels.

A panel is PW = 4·VL columns wide, [k][PW].  Every output is one chain of fused multiply–adds over k ascending, started at 0
and then added to what is there: its bits do not depend on VL, on how rows are tiled, nor on threads.  Tiles of MR rows keep
4·MR sums in registers.  Weights are packed once per call and used by every step; a BLAS packs them in every product.
"""
cdef extern from *:
    """
    enum { PW = 4 * VL };
    #if VB == 64 || (VB == 16 && defined(__aarch64__))
    enum { MR = 6 };                                   /* 24 sums, 4 columns, 1 row in 32 registers */
    #else
    enum { MR = 3 };                                   /* 12 sums, 3 rows, 1 column in 16 */
    #endif
    #if VB
    # define UNROLLED _Pragma("GCC unroll 8")
    #else
    # define UNROLLED
    #endif
    /* c[i, j] += Σ_k a[i·row + k·step] w[k, j], i < m, j < PW */
    VINL void tile(const real *a, ptrdiff_t row, ptrdiff_t step, const real *w, ptrdiff_t K, real *c, ptrdiff_t ldc, const int m)
    {
        vf s[MR][4], x[MR], b;
        ptrdiff_t k;
        int i, j;
        UNROLLED for (i = 0; i < m; i++) UNROLLED for (j = 0; j < 4; j++) s[i][j] = vset1(0);
        for (k = 0; k < K; k++) {
            UNROLLED for (i = 0; i < m; i++) x[i] = vset1(a[i * row]);
            UNROLLED for (j = 0; j < 4; j++) {
                b = vload(w + j * VL);
                UNROLLED for (i = 0; i < m; i++) s[i][j] = vfma(x[i], b, s[i][j]);
            }
            a += step, w += PW;
        }
        UNROLLED for (i = 0; i < m; i++) UNROLLED for (j = 0; j < 4; j++)
            vstore(c + i * ldc + j * VL, vload(c + i * ldc + j * VL) + s[i][j]);
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
    enum: PW, MR
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
