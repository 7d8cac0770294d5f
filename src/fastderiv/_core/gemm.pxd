"""gemm.h as Cython sees it; it says what the product computes and which bits."""
from fastderiv._core.simd cimport ix, real

cdef extern from "gemm.h" nogil:
    enum: GEMM_ROWS                     # rows of a register tile
    enum: GEMM_SET                      # C = A · B, instead of C += A · B
    enum: GEMM_LOWER                    # row i of A has columns k ≤ i only
    enum: GEMM_UPPER                    # row i of A has columns k ≥ i only
    enum: GEMM_FAR                      # B is beyond the L1 cache
    ctypedef struct Gemm:
        ix M, N, K                      # N is a multiple of VL
        const real *a                   # (M, K), A[i, k] = a[i·a_row + k·a_step]
        ix a_row, a_step
        const real *b                   # (K, N)
        ix b_row
        real *c                         # (M, N)
        ix c_row
    void gemm(const Gemm *g, int how)
