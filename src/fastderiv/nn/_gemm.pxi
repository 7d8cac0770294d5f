# Matrix products of the recurrent layers, with weights that are packed in panels once per call: a
# BLAS would pack them again in every product.  _core/gemm.h has the micro-kernel and says how sums
# are formed.

cdef enum:
    PW = 4 * VL                         # columns of a vector of hidden units: a vector per gate


cdef void product(const real *a, ix lda, ix rows, const real *w, ix K,
                  real *c, ix ldc, ix width) noexcept nogil:
    """OUT c (rows, width) += a (rows, K) @ panel w (K, width); rows of a and c lie lda and ldc apart.
    """
    cdef Gemm g
    g.M, g.N, g.K = rows, width, K
    g.a, g.a_row, g.a_step = a, lda, 1
    g.b, g.b_row = w, width
    g.c, g.c_row = c, ldc
    gemm(&g, GEMM_FAR)
