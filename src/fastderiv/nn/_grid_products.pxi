# Products of a strip's rows with packed weights, and sums over its rows: docs/derivations.md §4.4.
#
# Functions that take a worker leave their result incomplete when the call was interrupted.
#
# needs: new_array, reals_of (_arrays.pxi)
# needs: multiply_outer, multiply_rows, TALL, WIDE (_gemm.pxi)
# needs: Panels, SLOW_WEIGHTS (_grid_problem.pxi)

# ---- rows times weights --------------------------------------------------------------------------

cdef inline void rows_times_panel(const Panels *p, const real *const *rows, ix n, const real *w,
                                  real *z, ix ldz, const int vectors) noexcept nogil:
    cdef ix r = 0
    while r + TALL <= n:
        multiply_rows(rows + r, p.segments, p.n, w, z + r * ldz, ldz, TALL, vectors)
        r += TALL
    while r + 2 <= n:
        multiply_rows(rows + r, p.segments, p.n, w, z + r * ldz, ldz, 2, vectors)
        r += 2
    if r < n:
        multiply_rows(rows + r, p.segments, p.n, w, z + r * ldz, ldz, 1, vectors)


cdef void rows_times(const Panels *p, const real *const *rows, ix n, real *z,
                     Worker *worker) noexcept nogil:
    """OUT z (n, p.vectors · VL) += rows · weights.

    The pointers of a segment's rows begin STRIP behind those of the segment before it.
    """
    cdef ix v = 0, ldz = p.vectors * VL
    cdef bint slow = p.total * ldz > SLOW_WEIGHTS
    while v + WIDE <= p.vectors:
        if slow and interrupted(worker):
            return
        rows_times_panel(p, rows, n, p.w + v * VL * p.total, z + v * VL, ldz, WIDE)
        v += WIDE
    while v < p.vectors:
        rows_times_panel(p, rows, n, p.w + v * VL * p.total, z + v * VL, ldz, 1)
        v += 1


cdef cnp.ndarray set_panels(Panels *p, cnp.ndarray weights, int segments,
                            ix n0, ix n1=0, ix n2=0):
    """Weights (n0 + n1 + n2, units), contiguous, in panels.

    The panels point into the array that is returned.
    """
    cdef ix units = cnp.PyArray_DIM(weights, 1), v = 0, vectors, k, u
    cdef const real *src = reals_of(weights)
    cdef real *to
    p.vectors, p.total = ceil_div(units, VL), n0 + n1 + n2
    p.n[0], p.n[1], p.n[2] = n0, n1, n2
    p.segments = segments
    cdef cnp.ndarray owner = new_array(p.vectors * VL * p.total, True)
    p.w = to = reals_of(owner)
    while v < p.vectors:
        PyErr_CheckSignals()
        vectors = WIDE if v + WIDE <= p.vectors else 1
        for k in range(p.total):
            for u in range(v * VL, min((v + vectors) * VL, units)):
                to[u - v * VL] = src[k * units + u]
            to += vectors * VL
        v += vectors
    return owner


# ---- sums over rows ------------------------------------------------------------------------------

cdef inline void outer_panel(const real *const *rows, ix n, ix units, const real *b,
                             real *z, ix width, const int vectors) noexcept nogil:
    cdef ix u = 0
    while u + TALL <= units:
        multiply_outer(rows, u, n, b, z + u * width, width, TALL, vectors)
        u += TALL
    while u + 2 <= units:
        multiply_outer(rows, u, n, b, z + u * width, width, 2, vectors)
        u += 2
    if u < units:
        multiply_outer(rows, u, n, b, z + u * width, width, 1, vectors)


cdef void add_outer(const real *const *rows, ix n, ix units, const real *b, real *z, ix width,
                    Worker *worker) noexcept nogil:
    """OUT z (units, width) += rowsᵀ b, of n rows of `units` reals and b (n, width).

    The sum over the n rows is formed before it is added.
    """
    cdef ix v = 0
    cdef bint slow = units * width > SLOW_WEIGHTS
    while v + WIDE * VL <= width:
        if slow and interrupted(worker):
            return
        outer_panel(rows, n, units, b + v, z + v, width, WIDE)
        v += WIDE * VL
    if WIDE > 2 and v + 2 * VL <= width:
        outer_panel(rows, n, units, b + v, z + v, width, 2)
        v += 2 * VL
    while v < width:
        outer_panel(rows, n, units, b + v, z + v, width, 1)
        v += VL
