# The grid RNN's tasks: all diagonals of a few batch items, forwards, or there and back
# (docs/derivations.md §4.4).
#
# needs: expect, holds, may_hold, new_array, ranked, reals_of (_arrays.pxi)
# needs: Curve (_activations.pxi)
# needs: Grid, next_strip, set_cells, set_strip, Strip (_grid_problem.pxi)
# needs: set_panels (_grid_products.pxi)
# needs: forward_strip (_grid_forward.pxi)
# needs: add_to_share, add_weight_gradients, adjoint_strip, input_adjoint_strip (_grid_adjoint.pxi)

cdef enum:
    DIAGONAL_ROWS = 24                  # rows that a task has on an average diagonal, about
    MAX_SHARES = 16                     # tasks of the adjoint, each with a share of the gradients
    SHARE_STRIPS = 32                   # strips summed up before they are added to a share


cdef bint sweep(const Grid *g, Strip *s, ix first, ix last, Worker *worker) noexcept nogil:
    """OUT all states of the items [first, last); False when interrupted."""
    cdef ix d = 0, at = 0
    while d < g.G1 + g.G2 - 1:
        if interrupted(worker):
            return False
        at = next_strip(g, s, first, last, d, at)
        forward_strip(g, s, worker)
        if at == 0:
            d += 1
    return True


cdef void grid_forward_task(void *args, ix task, Worker *worker) noexcept nogil:
    cdef const Grid *g = <const Grid *>args
    cdef ix first = task * g.task_items
    sweep(g, set_strip(g, worker), first, min(g.batch, first + g.task_items), worker)


cdef void grid_adjoint_task(void *args, ix task, Worker *worker) noexcept nogil:
    """OUT dx and a share of the weights' gradients.

    The states of the task's items are computed again, into the scratch, where a cache may hold
    them.
    """
    cdef Grid g = (<const Grid *>args)[0]
    cdef Strip *s = set_strip(&g, worker)
    cdef double *share = g.shares + task * g.H * g.width
    cdef ix first = task * g.task_items, last = min(g.batch, first + g.task_items)
    cdef ix d = g.G1 + g.G2 - 2, at = 0
    g.h.p = s.sums + g.H * g.width - first * g.h.item
    g.slope.p = g.h.p + g.task_items * g.h.item
    g.da = g.slope
    if not sweep(&g, s, first, last, worker):
        return
    while d >= 0 and not interrupted(worker):
        at = next_strip(&g, s, first, last, d, at)
        adjoint_strip(&g, s, worker)
        input_adjoint_strip(&g, s, worker)
        add_weight_gradients(&g, s)
        if s.summed == SHARE_STRIPS:
            add_to_share(&g, s, share, worker)
        if at == 0:
            d -= 1
    if d < 0:                           # not interrupted: adding to a share can take long
        add_to_share(&g, s, share, worker)


# ---- what the door calls -------------------------------------------------------------------------

cdef double grid_seconds(const Grid *g) noexcept:
    """A low estimate of what one sweep takes."""
    cdef double work = <double>g.batch * g.G1 * g.G2 * g.H * (g.D + 2 * g.H + 16)
    return work * 0.012e-9 * sizeof(real) / 4


cdef ix items_of_task(const Grid *g) noexcept:
    cdef ix items = DIAGONAL_ROWS * (g.G1 + g.G2 - 1) // (g.G1 * g.G2)
    return max(<ix>1, min(g.batch, items))


cdef double count_cells(cnp.ndarray x) noexcept:
    cdef double items = cnp.PyArray_DIM(x, 0)
    return items * cnp.PyArray_DIM(x, 1) * cnp.PyArray_DIM(x, 2)


cdef tuple set_grid(Grid *g, cnp.ndarray x, cnp.ndarray weights, cnp.ndarray bias, Curve curve):
    """What both directions have in common.  The grid points into the arrays that are returned."""
    expect(ranked(x, 4) and ranked(weights, 2))
    cdef double H = cnp.PyArray_DIM(weights, 1), D = cnp.PyArray_DIM(x, 3), cells = count_cells(x)
    expect(holds(x, cells * D) and holds(weights, (D + 2 * H) * H) and may_hold(bias, H))
    expect(cnp.PyArray_DIM(weights, 0) == D + 2 * H and cells > 0 and H > 0)
    g.batch, g.G1, g.G2 = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), cnp.PyArray_DIM(x, 2)
    g.D, g.H = cnp.PyArray_DIM(x, 3), cnp.PyArray_DIM(weights, 1)
    g.width, g.curve = round_up(g.D + 2 * g.H + 1, VL), curve
    g.stride, g.shares = g.width + GL, NULL
    set_cells(&g.x, g, g.D, x)
    set_cells(&g.h, g, g.H, None)
    set_cells(&g.slope, g, g.H, None)
    panels = set_panels(&g.panels, weights)
    cdef cnp.ndarray padded_bias = new_array(round_up(g.H, VL), True)
    cdef cnp.ndarray zeros = new_array(g.H, True)
    g.bias, g.zeros = reals_of(padded_bias), reals_of(zeros)
    if bias is not None:
        memcpy(g.bias, reals_of(bias), g.H * sizeof(real))
    return panels, padded_bias, zeros


cdef tuple set_grid_adjoint(Grid *g, cnp.ndarray dh, cnp.ndarray W_in, cnp.ndarray turned,
                            cnp.ndarray dx):
    """What only the way back has.  The grid points into the arrays that are returned.

    The last of them holds the tasks' shares of the weights' gradients.  It has at most about a
    quarter as many numbers as all states, or two shares if these are more.
    """
    cdef ix cells = g.batch * g.G1 * g.G2, tasks = cells // (4 * (g.D + 2 * g.H))
    cdef double H = g.H, D = g.D
    expect(holds(dh, cells * H) and holds(dx, cells * D))
    expect(ranked(turned, 2) and holds(turned, 2 * H * H) and cnp.PyArray_DIM(turned, 1) == H)
    expect(ranked(W_in, 2) and holds(W_in, H * D) and cnp.PyArray_DIM(W_in, 1) == D)
    set_cells(&g.dh, g, g.H, dh)
    set_cells(&g.dx, g, g.D, dx)
    set_cells(&g.da, g, g.H, None)
    panels = set_panels(&g.turned, turned), set_panels(&g.turned_in, W_in)
    tasks = min(<ix>MAX_SHARES, max(<ix>2, tasks))
    g.task_items = max(items_of_task(g), ceil_div(g.batch, tasks))
    cdef cnp.ndarray shares = np.zeros((ceil_div(g.batch, g.task_items), g.H, g.width))
    g.shares = <double *>cnp.PyArray_DATA(shares)
    return panels, shares
