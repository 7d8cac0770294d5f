# The states of one strip: docs/derivations.md §4.4,
#     a = W_in x + W_west h_west + W_north h_north + b,  h = φ(a).
#
# needs: Curve, GELU, IDENTITY, phi_slope, RELU, SIGMOID, SILU, SOFTPLUS, TANH (_activations.pxi)
# needs: copy_row, store_some (_rows.pxi)
# needs: cell_at, gather_inputs_of, GATHERED, Grid, prefetch_cell, Strip (_grid_problem.pxi)
# needs: rows_times (_grid_products.pxi)

cdef inline void finish_rows(const Grid *g, const Strip *s, const Curve curve,
                             const bint with_slope) noexcept nogil:
    """OUT h = φ(z), and slope = φ'(z) if `with_slope`.

    z can be read up to whole vectors, so that the code holds each φ once.
    """
    cdef ix r, u, lanes
    cdef real *h
    cdef real *slope
    cdef vf phi_grad
    for r in range(s.n):
        h = cell_at(&g.h, s.item[r], s.i[r], s.j[r])
        slope = cell_at(&g.slope, s.item[r], s.i[r], s.j[r]) if with_slope else NULL
        u = 0
        while u < g.H:
            lanes = min(<ix>VL, g.H - u)
            store_some(h + u, phi_slope(vload(s.z + r * s.ldz + u), &phi_grad, curve, with_slope),
                       lanes)
            if with_slope:
                store_some(slope + u, phi_grad, lanes)
            u += VL


cdef inline void with_slopes(const Grid *g, const Strip *s, const Curve curve) noexcept nogil:
    if g.slope.p is NULL:
        finish_rows(g, s, curve, False)
    else:
        finish_rows(g, s, curve, True)


cdef inline void finish_strip(const Grid *g, const Strip *s) noexcept nogil:
    if g.curve == IDENTITY:
        with_slopes(g, s, IDENTITY)
    elif g.curve == SIGMOID:
        with_slopes(g, s, SIGMOID)
    elif g.curve == TANH:
        with_slopes(g, s, TANH)
    elif g.curve == RELU:
        with_slopes(g, s, RELU)
    elif g.curve == SOFTPLUS:
        with_slopes(g, s, SOFTPLUS)
    elif g.curve == SILU:
        with_slopes(g, s, SILU)
    else:
        with_slopes(g, s, GELU)


cdef void forward_strip(const Grid *g, Strip *s, Worker *worker) noexcept nogil:
    """OUT h, and slope unless NULL, of the strip's cells."""
    cdef ix r, at = 0, m, b, i, j
    while at < s.n:
        m = min(<ix>GATHERED, s.n - at)
        for r in range(at, at + m):
            b, i, j = s.item[r], s.i[r], s.j[r]
            gather_inputs_of(g, s, r, s.rows + (r - at) * g.stride)
            copy_row(s.z + r * s.ldz, g.bias, g.panels.vectors * VL)
            if j + 1 < g.G2:
                prefetch_cell(&g.x, b, i, j + 1)
                prefetch_cell(&g.h, b, i, j + 1)
        rows_times(&g.panels, s.rows, g.stride, m, s.z + at * s.ldz, s.ldz, worker)
        at += m
    finish_strip(g, s)
