# The adjoints of one strip, and what it adds to the weights' gradients: docs/derivations.md §4.4,
#     ā = (h̄ + W_westᵀ ā_east + W_northᵀ ā_south) ⊙ φ',
#     x̄ = W_inᵀ ā,  W̄ = Σ ā [x | west | north | 1]ᵀ.
#
# A strip adds to every gradient while its rows are in the cache.  Products of BLAS over all cells
# at the end took longer than both sweeps.
#
# needs: STRIP (_gemm.pxi)
# needs: cell_at, Grid, prefetch_cell, SLOW_WEIGHTS, Strip (_grid_problem.pxi)
# needs: add_outer, rows_times (_grid_products.pxi)

cdef inline void multiply_slopes(const real *z, const real *slope, real *da, ix n) noexcept nogil:
    """OUT da (n,) = z ⊙ slope; it may be slope."""
    cdef ix u = 0
    while u + VL <= n:
        vstore(da + u, vload(z + u) * vload(slope + u))
        u += VL
    while u < n:
        da[u] = z[u] * slope[u]
        u += 1


cdef void adjoint_strip(const Grid *g, Strip *s, Worker *worker) noexcept nogil:
    """OUT ā of the strip's cells."""
    cdef ix r, b, i, j, ldz = g.turned.vectors * VL
    for r in range(s.n):
        b, i, j = s.item[r], s.i[r], s.j[r]
        s.rows[r] = cell_at(&g.da, b, i, j + 1) if j + 1 < g.G2 else g.zeros
        s.rows[STRIP + r] = cell_at(&g.da, b, i + 1, j) if i + 1 < g.G1 else g.zeros
        memcpy(s.z + r * ldz, cell_at(&g.dh, b, i, j), g.H * sizeof(real))
    rows_times(&g.turned, s.rows, s.n, s.z, worker)
    for r in range(s.n):
        b, i, j = s.item[r], s.i[r], s.j[r]
        s.da[r] = cell_at(&g.da, b, i, j)
        multiply_slopes(s.z + r * ldz, s.da[r], <real *>s.da[r], g.H)
        if j:
            prefetch_cell(&g.dh, b, i, j - 1)
            prefetch_cell(&g.da, b, i, j - 1)
            prefetch_cell(&g.h, b, i, max(<ix>0, j - 2))


cdef void input_adjoint_strip(const Grid *g, Strip *s, Worker *worker) noexcept nogil:
    """OUT x̄ of the strip's cells."""
    cdef ix r, ldz = g.turned_in.vectors * VL
    memset(s.z, 0, s.n * ldz * sizeof(real))
    rows_times(&g.turned_in, s.da, s.n, s.z, worker)
    for r in range(s.n):
        memcpy(cell_at(&g.dx, s.item[r], s.i[r], s.j[r]), s.z + r * ldz, g.D * sizeof(real))


cdef void add_weight_gradients(const Grid *g, Strip *s, Worker *worker) noexcept nogil:
    """OUT sums += ā [x | west | north | 1]ᵀ of the strip's cells."""
    cdef ix r, b, i, j
    cdef real *seen = s.seen
    for r in range(s.n):
        b, i, j = s.item[r], s.i[r], s.j[r]
        memcpy(seen, cell_at(&g.x, b, i, j), g.D * sizeof(real))
        memcpy(seen + g.D, cell_at(&g.h, b, i, j - 1) if j else g.zeros, g.H * sizeof(real))
        memcpy(seen + g.D + g.H, cell_at(&g.h, b, i - 1, j) if i else g.zeros,
               g.H * sizeof(real))
        seen[g.D + 2 * g.H] = 1
        seen += g.width
    add_outer(s.da, s.n, g.H, s.seen, s.sums, g.width, worker)
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
