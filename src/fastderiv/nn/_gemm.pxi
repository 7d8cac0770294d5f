# Matrix products for the recurrent layers; gemm.h has the micro-kernel and says how sums are
# formed.

cdef extern from "rows_of_pointers.h" nogil:
    enum: TALL, WIDE                    # rows and vectors of the grid RNN's register tile
    enum: STRIP                         # rows that a segment has pointers for
    void multiply_rows(const real *const *x, int segments, const ix *n, const real *w,
                       real *c, ix ldc, int rows, int vectors)
    void multiply_outer(const real *const *x, ix column, ix K, const real *b,
                        real *c, ix ld, int rows, int vectors)

cdef enum:
    PW = 4 * VL                         # columns of a panel: a vector per gate


cdef void product(const real *a, ix lda, ix rows, const real *w, ix K,
                  real *c, ix ldc) noexcept nogil:
    """OUT c (rows, PW) += a (rows, K) @ panel w (K, PW); the rows of a and c lie lda and ldc apart."""
    cdef Gemm g
    g.M, g.N, g.K = rows, PW, K
    g.a, g.a_row, g.a_step = a, lda, 1
    g.b, g.b_row = w, PW
    g.c, g.c_row = c, ldc
    gemm(&g, 0)
