# The grid RNN, diagonal by diagonal, and its adjoint; included by _kernels.pyx.
#
# A task carries a few batch items over the whole grid: nothing waits for another task.  On an anti-diagonal every cell
# of these items is one row of a product whose weights were packed once, so BLAS would only add copies: rows are read
# where they lie, [x | west | north], through pointers.  On the way back a diagonal's share of every gradient is taken
# while its rows are in the cache: as products over all cells at the end, by BLAS, they took longer than both sweeps.
from libc.string cimport memcpy, memset
from fastderiv._core.simd cimport vprefetch

cdef enum:
    CHUNK = 8 * TALL                    # rows worked on between two looks at the weights
    ENOUGH = 24                         # rows on an average diagonal of a task
    SHARES = 16                         # of the weights' gradients, at most: one to a task of the adjoint
    CHUNKS = 32                         # summed up before they go into a share
    SLOW = 1 << 18                      # weights that take a millisecond or more for a chunk: signals are looked for amid it


cdef struct Panels:                     # weights (k, units) cut into panels of WIDE vectors, then single ones
    const real *w                       # zero padded
    ix vectors                          # over all panels
    ix total                            # k over all segments
    ix n[3]                             # k of each
    int segments


cdef struct Cells:                      # (batch, G1, G2, width), the last axis contiguous
    real *p
    ix item, row, cell                  # strides


cdef struct Grid:
    ix G1, G2, batch, items             # items of a task
    ix D, H
    Panels panels                       # of the sweep
    Cells x, h                          # IN x; h OUT, on the way back IN
    Cells slope                         # φ'(pre-activation): OUT, if anywhere
    real *bias                          # (H,), zero padded to vectors
    real *zeros                         # (max(D, H),), what is outside the grid
    Curve curve
    # on the way back
    Panels turned                       # of the sweep
    Cells dh                            # IN
    Cells da                            # IN OUT: φ' becomes ā
    Cells dx                            # OUT
    Panels back                         # W_in, for dx
    double *shares                      # IN OUT (tasks, H, width): gradients of [W_in | W_west | W_north | b], padded
    ix width                            # whole vectors


cdef struct Chunk:                      # rows of one diagonal
    const real *rows[3 * CHUNK]         # operands of the sweep, by segment
    const real *da[CHUNK]               # of the gradients: ā
    ix item[CHUNK]
    ix i[CHUNK]
    ix j[CHUNK]
    ix n
    real *z                             # (CHUNK, a multiple of VL): sums
    real *seen                          # (CHUNK, width): [x | west | north | 1], what the weights have met
    real *sums                          # (H, width): the gradients of some chunks
    ix summed                           # so many


cdef inline real *cell(const Cells *c, ix item, ix i, ix j) noexcept nogil:
    return c.p + item * c.item + i * c.row + j * c.cell


cdef inline void prefetch(const Cells *c, ix item, ix i, ix j) noexcept nogil:
    """A cell that will be met on the next diagonal: no hardware foresees this path."""
    cdef const real *p = cell(c, item, i, j)
    cdef ix k = 0
    while k < c.cell:
        vprefetch(p + k)
        k += GL


# ---- products of rows with panels --------------------------------------------------------------------------------------

cdef inline void rows_times_panel(const Panels *p, const real *const *rows, ix n, const real *w,
                                  real *z, ix ldz, const int V) noexcept nogil:
    cdef ix r = 0
    while r + TALL <= n:
        tile_rows(rows + r, CHUNK, p.segments, p.n, w, z + r * ldz, ldz, TALL, V)
        r += TALL
    while r + 2 <= n:
        tile_rows(rows + r, CHUNK, p.segments, p.n, w, z + r * ldz, ldz, 2, V)
        r += 2
    if r < n:
        tile_rows(rows + r, CHUNK, p.segments, p.n, w, z + r * ldz, ldz, 1, V)


cdef void rows_times(const Panels *p, const real *const *rows, ix n, real *z, Worker *worker) noexcept nogil:
    """z (n, vectors · VL) += rows · weights; the rows of a segment begin CHUNK pointers behind those of the one before.
    Incomplete when interrupted, as are all functions here that take a worker."""
    cdef ix v = 0, ldz = p.vectors * VL
    cdef bint slow = p.total * ldz > SLOW
    while v + WIDE <= p.vectors:
        if slow and interrupted(worker):
            return
        rows_times_panel(p, rows, n, p.w + v * VL * p.total, z + v * VL, ldz, WIDE)
        v += WIDE
    while v < p.vectors:
        rows_times_panel(p, rows, n, p.w + v * VL * p.total, z + v * VL, ldz, 1)
        v += 1


cdef inline void outer_panel(const real *const *rows, ix n, ix units, const real *b, real *z, ix width,
                             const int V) noexcept nogil:
    cdef ix u = 0
    while u + TALL <= units:
        tile_outer(rows, u, n, b, width, z + u * width, width, TALL, V)
        u += TALL
    while u + 2 <= units:
        tile_outer(rows, u, n, b, width, z + u * width, width, 2, V)
        u += 2
    if u < units:
        tile_outer(rows, u, n, b, width, z + u * width, width, 1, V)


cdef void add_outer(const real *const *rows, ix n, ix units, const real *b, real *z, ix width, Worker *worker) noexcept nogil:
    """z (units, width) += rowsᵀ b, n rows of `units` and b (n, width); their sum is formed before it is added."""
    cdef ix v = 0
    cdef bint slow = units * width > SLOW
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


cdef cnp.ndarray set_panels(Panels *p, cnp.ndarray weights, int segments, ix n0, ix n1=0, ix n2=0):
    """Weights (n0 + n1 + n2, units), contiguous, in panels.  Keep what is returned."""
    cdef ix units = cnp.PyArray_DIM(weights, 1), v = 0, V, k, u
    cdef const real *src = <real *>cnp.PyArray_DATA(weights)
    cdef real *to
    p.vectors, p.total = (units + VL - 1) // VL, n0 + n1 + n2
    p.n[0], p.n[1], p.n[2] = n0, n1, n2
    p.segments = segments
    cdef cnp.ndarray room = numbers(p.vectors * VL * p.total, True)
    p.w = to = <real *>cnp.PyArray_DATA(room)
    while v < p.vectors:
        PyErr_CheckSignals()
        V = WIDE if v + WIDE <= p.vectors else 1
        for k in range(p.total):
            for u in range(v * VL, min((v + V) * VL, units)):
                to[u - v * VL] = src[k * units + u]
            to += V * VL
        v += V
    return room


# ---- forward: a = W_in x + W_west h_west + W_north h_north + b, h = φ(a) ------------------------------------------------

cdef inline void finish_rows(const Grid *g, const Chunk *c, const Curve curve, const bint keep) noexcept nogil:
    """OUT h = φ(z), and slope = φ'(z) if `keep`; z is readable up to whole vectors, so that φ stands here once for all."""
    cdef ix r, u, some, ldz = g.panels.vectors * VL
    cdef real *h
    cdef real *slope
    cdef vf s
    for r in range(c.n):
        h = cell(&g.h, c.item[r], c.i[r], c.j[r])
        slope = cell(&g.slope, c.item[r], c.i[r], c.j[r]) if keep else NULL
        u = 0
        while u < g.H:
            some = min(<ix>VL, g.H - u)
            store_some(h + u, phi_slope(vload(c.z + r * ldz + u), &s, curve, keep), some)
            if keep:
                store_some(slope + u, s, some)
            u += VL


cdef inline void finish_chunk(const Grid *g, const Chunk *c, const bint keep) noexcept nogil:
    if g.curve == IDENTITY:
        finish_rows(g, c, IDENTITY, keep)
    elif g.curve == SIGMOID:
        finish_rows(g, c, SIGMOID, keep)
    elif g.curve == TANH:
        finish_rows(g, c, TANH, keep)
    elif g.curve == RELU:
        finish_rows(g, c, RELU, keep)
    elif g.curve == SOFTPLUS:
        finish_rows(g, c, SOFTPLUS, keep)
    elif g.curve == SILU:
        finish_rows(g, c, SILU, keep)
    else:
        finish_rows(g, c, GELU, keep)


cdef void forward_chunk(const Grid *g, Chunk *c, Worker *worker) noexcept nogil:
    cdef real *z = c.z
    cdef ix r, b, i, j, ldz = g.panels.vectors * VL
    for r in range(c.n):
        b, i, j = c.item[r], c.i[r], c.j[r]
        c.rows[r] = cell(&g.x, b, i, j)
        c.rows[CHUNK + r] = cell(&g.h, b, i, j - 1) if j else g.zeros
        c.rows[2 * CHUNK + r] = cell(&g.h, b, i - 1, j) if i else g.zeros
        memcpy(z + r * ldz, g.bias, ldz * sizeof(real))
        if j + 1 < g.G2:
            prefetch(&g.x, b, i, j + 1)
            prefetch(&g.h, b, i, j + 1)
    rows_times(&g.panels, c.rows, c.n, z, worker)
    if g.slope.p is NULL:
        finish_chunk(g, c, False)
    else:
        finish_chunk(g, c, True)


# ---- adjoint: ā = (h̄ + W_westᵀ ā_east + W_northᵀ ā_south) ⊙ φ' ---------------------------------------------------------

cdef inline void adjoint_row(const real *z, const real *slope, real *da, ix n) noexcept nogil:
    """OUT da (n,) = z ⊙ slope; may be slope."""
    cdef ix u = 0
    while u + VL <= n:
        vstore(da + u, vload(z + u) * vload(slope + u))
        u += VL
    while u < n:
        da[u] = z[u] * slope[u]
        u += 1


cdef void adjoint_rows(const Grid *g, Chunk *c, Worker *worker) noexcept nogil:
    """OUT the chunk's ā."""
    cdef ix r, b, i, j, ldz = g.turned.vectors * VL
    for r in range(c.n):
        b, i, j = c.item[r], c.i[r], c.j[r]
        c.rows[r] = cell(&g.da, b, i, j + 1) if j + 1 < g.G2 else g.zeros
        c.rows[CHUNK + r] = cell(&g.da, b, i + 1, j) if i + 1 < g.G1 else g.zeros
        memcpy(c.z + r * ldz, cell(&g.dh, b, i, j), g.H * sizeof(real))
    rows_times(&g.turned, c.rows, c.n, c.z, worker)
    for r in range(c.n):
        b, i, j = c.item[r], c.i[r], c.j[r]
        c.da[r] = cell(&g.da, b, i, j)
        adjoint_row(c.z + r * ldz, c.da[r], <real *>c.da[r], g.H)
        if j:
            prefetch(&g.dh, b, i, j - 1)
            prefetch(&g.da, b, i, j - 1)
            prefetch(&g.h, b, i, max(<ix>0, j - 2))


cdef void input_adjoint_rows(const Grid *g, Chunk *c, Worker *worker) noexcept nogil:
    """x̄ = W_inᵀ ā"""
    cdef ix r, ldz = g.back.vectors * VL
    memset(c.z, 0, c.n * ldz * sizeof(real))
    rows_times(&g.back, c.da, c.n, c.z, worker)
    for r in range(c.n):
        memcpy(cell(&g.dx, c.item[r], c.i[r], c.j[r]), c.z + r * ldz, g.D * sizeof(real))


cdef void add_weight_gradients(const Grid *g, Chunk *c, Worker *worker) noexcept nogil:
    """W̄ += ā [x | west | north | 1]ᵀ over the rows."""
    cdef ix r, b, i, j
    cdef real *seen = c.seen
    for r in range(c.n):
        b, i, j = c.item[r], c.i[r], c.j[r]
        memcpy(seen, cell(&g.x, b, i, j), g.D * sizeof(real))
        memcpy(seen + g.D, cell(&g.h, b, i, j - 1) if j else g.zeros, g.H * sizeof(real))
        memcpy(seen + g.D + g.H, cell(&g.h, b, i - 1, j) if i else g.zeros, g.H * sizeof(real))
        seen[g.D + 2 * g.H] = 1
        seen += g.width
    add_outer(c.da, c.n, g.H, c.seen, c.sums, g.width, worker)
    c.summed += 1


cdef void settle(const Grid *g, Chunk *c, double *share, Worker *worker) noexcept nogil:
    """Sums go into the task's share, in float64: a running float32 sum over a million cells has three digits left."""
    cdef ix k, row
    cdef bint slow = g.H * g.width > SLOW
    for row in range(g.H):
        if slow and interrupted(worker):
            return
        for k in range(row * g.width, (row + 1) * g.width):
            share[k] += c.sums[k]
        memset(c.sums + row * g.width, 0, g.width * sizeof(real))
    c.summed = 0


# ---- tasks -------------------------------------------------------------------------------------------------------------

cdef inline ix whole(ix n) noexcept nogil:
    return (n + VL - 1) // VL * VL


cdef inline double grid_scratch(const Grid *g) noexcept nogil:
    cdef double width = g.width
    return (sizeof(Chunk) + 63) // 64 * 64 + (CHUNK * (whole(max(g.D, g.H)) + width) + g.H * width) * sizeof(real)


cdef Chunk *set_chunk(const Grid *g, Worker *worker) noexcept nogil:
    """Padding is computed with: zeros, not what was there."""
    cdef Chunk *c = <Chunk *>worker.scratch
    cdef ix row
    memset(c, 0, sizeof(Chunk))
    c.z = <real *>(<char *>worker.scratch + (sizeof(Chunk) + 63) // 64 * 64)
    c.seen = c.z + CHUNK * whole(max(g.D, g.H))
    c.sums = c.seen + CHUNK * g.width
    memset(c.z, 0, (c.sums - c.z) * sizeof(real))
    for row in range(g.H if g.width else 0):
        if g.H * g.width > SLOW and interrupted(worker):
            break
        memset(c.sums + row * g.width, 0, g.width * sizeof(real))
    return c


cdef inline ix next_rows(const Grid *g, Chunk *c, ix first, ix last, ix d, ix at) noexcept nogil:
    """OUT the chunk from cell `at` of diagonal d on, of the items [first, last); where the next begins, 0 if nowhere."""
    cdef ix top = max(<ix>0, d - g.G2 + 1), cells = min(g.G1 - 1, d) - top + 1, rows = cells * (last - first), r
    c.n = min(<ix>CHUNK, rows - at)
    for r in range(c.n):
        c.item[r], c.i[r] = first + (at + r) // cells, top + (at + r) % cells
        c.j[r] = d - c.i[r]
    return 0 if at + c.n == rows else at + c.n


cdef bint sweep(const Grid *g, Chunk *c, ix first, ix last, Worker *worker) noexcept nogil:
    """All states of the items [first, last); False when interrupted."""
    cdef ix d = 0, at = 0
    while d < g.G1 + g.G2 - 1:
        if interrupted(worker):
            return False
        at = next_rows(g, c, first, last, d, at)
        forward_chunk(g, c, worker)
        if at == 0:
            d += 1
    return True


cdef void forward_task(void *args, ix t, Worker *worker) noexcept nogil:
    cdef const Grid *g = <const Grid *>args
    sweep(g, set_chunk(g, worker), t * g.items, min(g.batch, (t + 1) * g.items), worker)


cdef void adjoint_task(void *args, ix t, Worker *worker) noexcept nogil:
    """There and back: the states of a few items only, in the scratch, where caches may hold them."""
    cdef Grid g = (<const Grid *>args)[0]
    cdef Chunk *c = set_chunk(&g, worker)
    cdef double *share = g.shares + t * g.H * g.width
    cdef ix first = t * g.items, last = min(g.batch, first + g.items), d = g.G1 + g.G2 - 2, at = 0
    g.h.p = c.sums + g.H * g.width - first * g.h.item
    g.slope.p = g.h.p + g.items * g.h.item
    g.da = g.slope
    if not sweep(&g, c, first, last, worker):
        return
    memset(c.z, 0, CHUNK * whole(g.H) * sizeof(real))
    while d >= 0 and not interrupted(worker):
        at = next_rows(&g, c, first, last, d, at)
        adjoint_rows(&g, c, worker)
        input_adjoint_rows(&g, c, worker)
        add_weight_gradients(&g, c, worker)
        if c.summed == CHUNKS:
            settle(&g, c, share, worker)
        if at == 0:
            d -= 1
    if d < 0:                           # else interrupted, and a share of wide layers takes long to touch
        settle(&g, c, share, worker)


cdef void set_cells(Cells *c, const Grid *g, ix width, cnp.ndarray a) noexcept:
    """Contiguous; `a` may be None."""
    c.p = NULL
    if a is not None:
        c.p = <real *>cnp.PyArray_DATA(a)
    c.cell = width
    c.row = width * g.G2
    c.item = c.row * g.G1


cdef double grid_seconds(const Grid *g) noexcept:
    return <double>g.batch * g.G1 * g.G2 * g.H * (g.D + 2 * g.H + 16) * 0.012e-9 * sizeof(real) / 4


cdef ix items_of_task(const Grid *g) noexcept:
    return max(<ix>1, min(g.batch, ENOUGH * (g.G1 + g.G2 - 1) // (g.G1 * g.G2)))


cdef double cells_of(cnp.ndarray x) noexcept:
    return <double>cnp.PyArray_DIM(x, 0) * cnp.PyArray_DIM(x, 1) * cnp.PyArray_DIM(x, 2)


cdef tuple set_grid(Grid *g, cnp.ndarray x, cnp.ndarray weights, cnp.ndarray bias, Curve curve):
    """All that both ways have in common.  Keep what is returned."""
    expect(ranked(x, 4) and ranked(weights, 2))
    cdef double H = cnp.PyArray_DIM(weights, 1), D = cnp.PyArray_DIM(x, 3)
    expect(holds(x, cells_of(x) * D) and holds(weights, (D + 2 * H) * H) and cnp.PyArray_DIM(weights, 0) == D + 2 * H
           and may_hold(bias, H) and cells_of(x) > 0 and H > 0)
    g.batch, g.G1, g.G2, g.D = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), cnp.PyArray_DIM(x, 2), cnp.PyArray_DIM(x, 3)
    g.H, g.width, g.curve = cnp.PyArray_DIM(weights, 1), 0, curve
    set_cells(&g.x, g, g.D, x)
    set_cells(&g.h, g, g.H, None)
    set_cells(&g.slope, g, g.H, None)
    panels = set_panels(&g.panels, weights, 3, g.D, g.H, g.H)
    cdef cnp.ndarray b = numbers(whole(g.H), True), nothing = numbers(max(g.D, g.H), True)
    g.bias, g.zeros = <real *>cnp.PyArray_DATA(b), <real *>cnp.PyArray_DATA(nothing)
    if bias is not None:
        memcpy(g.bias, cnp.PyArray_DATA(bias), g.H * sizeof(real))
    return panels, b, nothing


def grid_forward(cnp.ndarray x, cnp.ndarray weights, cnp.ndarray bias, cnp.ndarray h, Curve curve, /):
    """OUT h (Bt, G1, G2, H).  x (Bt, G1, G2, D); weights (D + 2H, H), those of x, west and north one above the other;
    bias (H,) or None.  All contiguous, no axis empty but D."""
    cdef Grid g
    kept = set_grid(&g, x, weights, bias, curve)
    expect(holds(h, cells_of(x) * g.H))
    g.h.p = <real *>cnp.PyArray_DATA(h)
    g.items = items_of_task(&g)
    run(forward_task, &g, (g.batch + g.items - 1) // g.items, grid_scratch(&g), grid_seconds(&g))


def grid_adjoint(cnp.ndarray dh, cnp.ndarray x, cnp.ndarray weights, cnp.ndarray bias, cnp.ndarray W_in, cnp.ndarray turned,
                 cnp.ndarray dx, Curve curve, /):
    """OUT dx.  Returned, in float64 shares (tasks, H, ≥ D + 2H + 1) to be added up: the gradient of
    [W_in | W_west | W_north | b].  x, weights and bias as above; turned (2H, H): W_west and W_north one above the other."""
    cdef Grid g
    cdef ix tasks, cells
    cdef double states
    kept = set_grid(&g, x, weights, bias, curve)
    expect(holds(dh, cells_of(x) * g.H) and holds(dx, cells_of(x) * g.D) and ranked(turned, 2) and holds(turned, 2. * g.H * g.H)
           and cnp.PyArray_DIM(turned, 1) == g.H and ranked(W_in, 2) and holds(W_in, <double>g.H * g.D)
           and cnp.PyArray_DIM(W_in, 1) == g.D)
    set_cells(&g.dh, &g, g.H, dh)
    set_cells(&g.dx, &g, g.D, dx)
    panels = set_panels(&g.turned, turned, 2, g.H, g.H), set_panels(&g.back, W_in, 1, g.H)
    g.width = whole(g.D + 2 * g.H + 1)
    cells = g.batch * g.G1 * g.G2
    tasks = min(<ix>SHARES, max(<ix>2, cells // (4 * (g.D + 2 * g.H))))     # a quarter of all states at most, or two
    g.items = max(items_of_task(&g), (g.batch + tasks - 1) // tasks)
    tasks = (g.batch + g.items - 1) // g.items
    cdef cnp.ndarray shares = np.zeros((tasks, g.H, g.width))
    g.shares = <double *>cnp.PyArray_DATA(shares)
    states = 2. * g.items * g.h.item * sizeof(real)
    run(adjoint_task, &g, tasks, grid_scratch(&g) + states, 3 * grid_seconds(&g))
    return shares
