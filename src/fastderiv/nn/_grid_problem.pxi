# The grid RNN's problem and the strips that its sweeps work on: docs/derivations.md §4.4.
#
#     _grid_products.pxi        products of a strip's rows with packed weights, and sums over rows
#     _grid_forward.pxi         the states of one strip
#     _grid_adjoint.pxi         the adjoints of one strip, and its share of the weights' gradients
#     _grid_sweeps.pxi          tasks: all diagonals of a few batch items, there and back
#
# A task carries a few batch items over the whole grid, so that nothing waits for another task.  On
# an anti-diagonal every cell of these items is one row of a product.  A strip is up to STRIP of
# these rows, gathered side by side.
#
# needs: reals_of (_arrays.pxi)
# needs: Curve (_activations.pxi)
# needs: copy_row (_rows.pxi)

cdef enum:
    # Products with more weights than these take a millisecond or more for a strip, and look for
    # signals themselves.
    SLOW_WEIGHTS = 1 << 18
    STRIP = 48                          # rows of a strip, at most
    GATHERED = 12                       # rows gathered for one product: they stay in the L1 cache
    WIDE = 2                            # vectors of a panel: those of gemm.h's tile of many rows


# Weights (K, units), cut into panels of WIDE vectors and, for the rest, of one vector.
cdef struct Panels:
    const real *w                       # padded with zeros
    ix vectors                          # of all panels
    ix K


cdef struct Cells:                      # (batch, G1, G2, width), the last axis contiguous
    real *p
    ix item, row, cell                  # strides


cdef struct Grid:
    ix G1, G2, batch
    ix task_items                       # batch items of a task, at most
    ix D, H
    Panels panels                       # [W_in | W_west | W_north]
    Cells x                             # IN
    Cells h                             # OUT of the forward pass, IN of the adjoint
    Cells slope                         # OUT φ'(pre-activation), unless NULL
    real *bias                          # (H,), padded with zeros to whole vectors
    real *zeros                         # (H,), the states outside the grid
    Curve curve
    ix width                            # D + 2H + 1, padded to whole vectors
    ix stride                           # reals between gathered rows
    # for the adjoint alone
    Panels turned                       # [W_west ; W_north]
    Panels turned_in                    # W_in, for dx
    Cells dh                            # IN
    Cells da                            # IN φ', OUT ā
    Cells dx                            # OUT
    double *shares                      # OUT (tasks, H, width): [W̄_in | W̄_west | W̄_north | b̄], or
                                        # NULL in the forward pass


cdef struct Strip:                      # consecutive cells of one diagonal
    ix item[STRIP]
    ix i[STRIP]
    ix j[STRIP]
    ix n                                # cells
    real *rows                          # (STRIP, stride): [x | west | north | 1], or ā as [east | south]
    real *z                             # (STRIP, ldz): pre-activations, or ā
    ix ldz
    real *dx                            # (STRIP, whole vectors of D)
    real *sums                          # (H, width): the weights' gradients, summed over strips
    ix summed                           # how many strips `sums` holds


cdef inline real *cell_at(const Cells *c, ix item, ix i, ix j) noexcept nogil:
    return c.p + item * c.item + i * c.row + j * c.cell


cdef inline void gather_inputs_of(const Grid *g, const Strip *s, ix r, real *row) noexcept nogil:
    """OUT row: what the strip's r-th cell sees, [x | west | north | 1]."""
    cdef ix b = s.item[r], i = s.i[r], j = s.j[r], H = g.H
    copy_row(row, cell_at(&g.x, b, i, j), g.D)
    copy_row(row + g.D, cell_at(&g.h, b, i, j - 1) if j else g.zeros, H)
    copy_row(row + g.D + H, cell_at(&g.h, b, i - 1, j) if i else g.zeros, H)
    row[g.D + 2 * H] = 1


cdef inline void prefetch_cell(const Cells *c, ix item, ix i, ix j) noexcept nogil:
    """Fetch a cell of the next diagonal, since no hardware predicts this order of cells."""
    cdef const real *p = cell_at(c, item, i, j)
    cdef ix k = 0
    while k < c.cell:
        vprefetch(p + k)
        k += GL
    vprefetch(p + c.cell - 1)           # cells need not begin on a line


cdef inline double grid_scratch(const Grid *g) noexcept nogil:
    cdef double reals = STRIP * (<double>g.stride + round_up(g.H, VL) + GL)
    if g.shares is not NULL:
        reals += STRIP * <double>round_up(g.D, VL) + <double>g.H * g.width
    return round_up(sizeof(Strip), 64) + reals * sizeof(real)


cdef Strip *set_strip(const Grid *g, Worker *worker) noexcept nogil:
    """A strip in the scratch.

    Its memory is cleared, since products read the padding of rows, too.
    """
    cdef Strip *s = <Strip *>worker.scratch
    cdef ix row
    memset(s, 0, sizeof(Strip))
    s.ldz = round_up(g.H, VL) + GL      # no power of two: rows use different sets of the cache
    s.rows = <real *>(<char *>worker.scratch + round_up(sizeof(Strip), 64))
    s.z = s.rows + STRIP * g.stride
    s.dx = s.z + STRIP * s.ldz
    memset(s.rows, 0, (s.dx - s.rows) * sizeof(real))
    if g.shares is not NULL:
        s.sums = s.dx + STRIP * round_up(g.D, VL)
        for row in range(g.H):
            if g.H * g.width > SLOW_WEIGHTS and interrupted(worker):
                break
            memset(s.sums + row * g.width, 0, g.width * sizeof(real))
    return s


cdef inline ix next_strip(const Grid *g, Strip *s, ix first, ix last, ix d, ix at) noexcept nogil:
    """OUT the strip of diagonal d that begins with its row `at`, of the items [first, last).

    Returns where the next strip of the diagonal begins, or 0 if this was its last one.
    """
    cdef ix top = max(<ix>0, d - g.G2 + 1), cells = min(g.G1 - 1, d) - top + 1, r
    cdef ix rows = cells * (last - first)
    s.n = min(<ix>STRIP, rows - at)
    for r in range(s.n):
        s.item[r], s.i[r] = first + (at + r) // cells, top + (at + r) % cells
        s.j[r] = d - s.i[r]
    return 0 if at + s.n == rows else at + s.n


cdef void set_cells(Cells *c, const Grid *g, ix width, cnp.ndarray a) noexcept:
    """Cells of a contiguous array (batch, G1, G2, width), or of memory that is set later."""
    c.p = reals_of(a)
    c.cell = width
    c.row = width * g.G2
    c.item = c.row * g.G1
