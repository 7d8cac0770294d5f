# The adjoints of one strip, and what it adds to the weights' gradients: docs/derivations.md §4.4,
#     ā = (h̄ + W_westᵀ ā_east + W_northᵀ ā_south) ⊙ φ',
#     x̄ = W_inᵀ ā,  W̄ = Σ ā [x | west | north | 1]ᵀ.
#
# A strip adds to every gradient while its rows are in the cache.  Products of BLAS over all cells
# at the end took longer than both sweeps.
#
# needs: copy_row (_rows.pxi)
# needs: cell_at, gather_inputs_of, GATHERED, Grid, prefetch_cell, SLOW_WEIGHTS,
#        Strip (_grid_problem.pxi)
# needs: add_outer, rows_times (_grid_products.pxi)

cdef inline void multiply_slopes(real *z, real *slope, ix n) noexcept nogil:
    """OUT z (n,) = z ⊙ slope, and slope is the same."""
    cdef ix u = 0
    cdef vf da
    while u + VL <= n:
        da = vload(z + u) * vload(slope + u)
        vstore(z + u, da)
        vstore(slope + u, da)
        u += VL
    while u < n:
        z[u] *= slope[u]
        slope[u] = z[u]
        u += 1


cdef void adjoint_strip(const Grid *g, Strip *s, Worker *worker) noexcept nogil:
    """OUT ā of the strip's cells, where φ' is, and in z."""
    cdef ix r, at = 0, m, b, i, j, H = g.H
    cdef real *row
    while at < s.n:
        m = min(<ix>GATHERED, s.n - at)
        for r in range(at, at + m):
            b, i, j, row = s.item[r], s.i[r], s.j[r], s.rows + (r - at) * g.stride
            copy_row(row, cell_at(&g.da, b, i, j + 1) if j + 1 < g.G2 else g.zeros, H)
            copy_row(row + H, cell_at(&g.da, b, i + 1, j) if i + 1 < g.G1 else g.zeros, H)
            copy_row(s.z + r * s.ldz, cell_at(&g.dh, b, i, j), H)
        rows_times(&g.turned, s.rows, g.stride, m, s.z + at * s.ldz, s.ldz, worker)
        at += m
    for r in range(s.n):
        b, i, j = s.item[r], s.i[r], s.j[r]
        multiply_slopes(s.z + r * s.ldz, cell_at(&g.da, b, i, j), g.H)
        if j:
            prefetch_cell(&g.dh, b, i, j - 1)
            prefetch_cell(&g.da, b, i, j - 1)
            prefetch_cell(&g.h, b, i, max(<ix>0, j - 2))


cdef void input_adjoint_strip(const Grid *g, Strip *s, Worker *worker) noexcept nogil:
    """OUT x̄ of the strip's cells."""
    cdef ix r, lddx = g.turned_in.vectors * VL
    memset(s.dx, 0, s.n * lddx * sizeof(real))
    rows_times(&g.turned_in, s.z, s.ldz, s.n, s.dx, lddx, worker)
    for r in range(s.n):
        copy_row(cell_at(&g.dx, s.item[r], s.i[r], s.j[r]), s.dx + r * lddx, g.D)


cdef void add_weight_gradients(const Grid *g, Strip *s) noexcept nogil:
    """OUT sums += ā [x | west | north | 1]ᵀ of the strip's cells."""
    cdef ix r
    for r in range(s.n):
        gather_inputs_of(g, s, r, s.rows + r * g.stride)
    add_outer(s.z, s.ldz, s.n, g.H, s.rows, g.stride, s.sums, g.width)
    s.summed += 1


cdef void add_to_share(const Grid *g, Strip *s, double *share, Worker *worker) noexcept nogil:
    """OUT share += sums, in float64, and sums = 0.

    A float32 sum over a million cells would have three digits left.
    """
    cdef ix k, row
    cdef bint slow = g.H * g.width > SLOW_WEIGHTS
    for row in range(g.H):
        if slow and interrupted(worker):
            return
        for k in range(row * g.width, (row + 1) * g.width):
            share[k] += s.sums[k]
        memset(s.sums + row * g.width, 0, g.width * sizeof(real))
    s.summed = 0
