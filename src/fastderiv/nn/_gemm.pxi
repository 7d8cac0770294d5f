# Matrix products for the recurrent layers; gemm.h has the micro-kernel and says how sums are
# formed.

cdef extern from "gemm.h" nogil:
    enum: MR                            # rows of a register tile of panels
    enum: PW                            # columns of a panel: four vectors
    enum: TALL, WIDE                    # rows and vectors of the grid RNN's register tile
    enum: STRIP                         # rows that a segment has pointers for
    void multiply_panel(const real *a, ix row, ix step, const real *w, ix K,
                        real *c, ix ldc, int rows)
    void multiply_rows(const real *const *x, int segments, const ix *n, const real *w,
                       real *c, ix ldc, int rows, int vectors)
    void multiply_outer(const real *const *x, ix column, ix K, const real *b,
                        real *c, ix ld, int rows, int vectors)


cdef void product(const real *a, ix lda, ix rows, const real *w, ix K,
                  real *c, ix ldc) noexcept nogil:
    """OUT c (rows, PW) += a (rows, K) @ panel w (K, PW).

    The rows of a and c lie lda and ldc apart.  The register tiles have as equal numbers of rows as
    possible.
    """
    cdef ix i = 0, m, tiles = ceil_div(rows, MR)
    while tiles > 0:
        m = ceil_div(rows - i, tiles)
        multiply_panel(a + i * lda, lda, 1, w, K, c + i * ldc, ldc, <int>m)
        i += m
        tiles -= 1
