# Products of a strip's rows with packed weights, and sums over its rows: docs/derivations.md §4.4.
#
# Functions that take a worker leave their result incomplete when the call was interrupted.
#
# needs: aligned_array, reals_of (_arrays.pxi)
# needs: Panels, SLOW_WEIGHTS, WIDE (_grid_problem.pxi)

cdef void rows_times(const Panels *p, const real *rows, ix stride, ix n, real *z, ix ldz,
                     Worker *worker) noexcept nogil:
    """OUT z (n, p.vectors · VL) += rows (n, p.K) · weights; rows lie `stride` apart, and ldz."""
    cdef ix v = 0, vectors
    cdef bint slow = p.K * p.vectors * VL > SLOW_WEIGHTS
    cdef Gemm g
    g.M, g.K = n, p.K
    g.a, g.a_row, g.a_step = rows, stride, 1
    g.c_row = ldz
    while v < p.vectors:
        if slow and interrupted(worker):
            return
        vectors = min(<ix>WIDE, p.vectors - v)
        g.N = g.b_row = vectors * VL
        g.b, g.c = p.w + v * VL * p.K, z + v * VL
        gemm(&g, GEMM_FAR)
        v += vectors


cdef cnp.ndarray set_panels(Panels *p, cnp.ndarray weights):
    """Weights (K, units), contiguous, in panels.

    The panels point into the array that is returned.
    """
    cdef ix K = cnp.PyArray_DIM(weights, 0), units = cnp.PyArray_DIM(weights, 1)
    cdef ix v = 0, vectors, k, u
    cdef const real *src = reals_of(weights)
    cdef real *to
    p.vectors, p.K = ceil_div(units, VL), K
    cdef cnp.ndarray owner = aligned_array(p.vectors * VL * K)
    p.w = to = reals_of(owner)
    while v < p.vectors:
        PyErr_CheckSignals()
        vectors = min(<ix>WIDE, p.vectors - v)
        for k in range(K):
            for u in range(v * VL, (v + vectors) * VL):
                to[u - v * VL] = src[k * units + u] if u < units else 0
            to += vectors * VL
        v += vectors
    return owner


cdef void add_outer(const real *a, ix lda, ix n, ix units, const real *b, ix ldb, real *sums,
                    ix width) noexcept nogil:
    """OUT sums (units, width) += aᵀ b, of a (n, units) and b (n, width).

    The sum over the n rows is formed before it is added.
    """
    cdef Gemm g
    g.M, g.N, g.K = units, width, n
    g.a, g.a_row, g.a_step = a, 1, lda
    g.b, g.b_row = b, ldb
    g.c, g.c_row = sums, width
    gemm(&g, 0)
