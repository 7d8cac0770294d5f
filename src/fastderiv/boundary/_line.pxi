# One row at a time, units in lanes: the margin along one input, for scalar root finders.
# docs/derivations.md §2.1.
# needs: Layer, Net, padded, PANELS, units_block (_net.pxi)
# needs: logistic, logistic_and_slope, times (_tiles.pxi)

cdef struct Row:                        # a network along one input, the others fixed
    const Net *net
    ix coordinate
    real *x                             # (n_in,)
    real *prefix                        # (layer 0's n_out,): bias and inputs before `coordinate`
    real *y                             # (widest,) twice, for values
    real *z
    real *dy                            # and for tangents
    real *dz

cdef struct LineCall:                   # one call of a method of `Line`
    const Row *row
    const real *x                       # IN of `prepare`: the row of X
    real t, out                         # IN of the others: t; OUT the value or the slope there

cdef enum:
    ROW_QUICK = 1 << 21                 # a row of no more multiply–adds does not look for signals


cdef void units(const real *w, ix panel, const real *b, const real *y, real *z, ix n, ix n_out,
                Worker *watch) noexcept nogil:
    """IN y (n,); OUT z (n_out, padded to GL) = b + Wᵀ y.

    `panel` is the distance from one panel to the next.  If `watch` is not NULL and was interrupted,
    the rest of z is left uncomputed.
    """
    cdef ix left = ceil_div(n_out, GL)
    while left >= PANELS:
        if watch is not NULL and interrupted(watch):
            return
        units_block(w, panel, b, y, z, n, PANELS)
        w, b, z, left = w + PANELS * panel, b + PANELS * GL, z + PANELS * GL, left - PANELS
    while left > 0:
        units_block(w, panel, b, y, z, n, 1)
        w, b, z, left = w + panel, b + GL, z + GL, left - 1


cdef inline void next_layer(const Layer *layer, const real *b, const real *y, real *z,
                            Worker *watch) noexcept nogil:
    """OUT z = b + Wᵀ y for one row."""
    units(layer.w, layer.n_in * GL, b, y, z, layer.n_in, layer.n_out, watch)


cdef inline void first_layer(const Row *row, real t, real *z, Worker *watch) noexcept nogil:
    """OUT z: the first layer's sums, continued from `prefix`.

    The order of every sum, and so its bits, are those of `units` over all inputs.
    """
    cdef const Layer *layer = &row.net.layers[0]
    cdef ix c = row.coordinate
    row.x[c] = t
    units(layer.w + c * GL, layer.n_in * GL, row.prefix, row.x + c, z, layer.n_in - c, layer.n_out,
          watch)


cdef void prepare_task(void *args, ix i, Worker *watch) noexcept nogil:
    """OUT the row's inputs and, of the first layer's sums, the part before `coordinate`."""
    cdef const LineCall *call = <const LineCall *>args
    cdef const Row *row = call.row
    cdef const Layer *layer = &row.net.layers[0]
    memcpy(row.x, call.x, layer.n_in * sizeof(real))
    units(layer.w, layer.n_in * GL, layer.b, row.x, row.prefix, row.coordinate, layer.n_out, watch)


cdef void value_task(void *args, ix i, Worker *watch) noexcept nogil:
    """OUT the only output at input `coordinate` = t."""
    cdef LineCall *call = <LineCall *>args
    cdef const Net *net = call.row.net
    cdef const Layer *layer
    cdef real *y = call.row.y
    cdef real *z = call.row.z
    cdef ix k
    first_layer(call.row, call.t, y, watch)
    for k in range(1, net.depth):
        layer = &net.layers[k]
        logistic(y, padded(layer.n_in))
        next_layer(layer, layer.b, y, z, watch)
        y, z = z, y
    call.out = y[0]


cdef void slope_task(void *args, ix i, Worker *watch) noexcept nogil:
    """OUT its derivative with respect to t: the tangent runs along with the value."""
    cdef LineCall *call = <LineCall *>args
    cdef const Row *row = call.row
    cdef const Net *net = row.net
    cdef const Layer *layer = &net.layers[0]
    cdef real *y = row.y
    cdef real *z = row.z
    cdef real *dy = row.dy
    cdef real *dz = row.dz
    cdef real one = 1
    cdef ix k
    first_layer(row, call.t, y, watch)
    units(layer.w + row.coordinate * GL, layer.n_in * GL, net.zeros, &one, dy, 1, layer.n_out,
          watch)
    for k in range(1, net.depth):
        layer = &net.layers[k]
        logistic_and_slope(y, z, padded(layer.n_in))
        times(dy, z, padded(layer.n_in))
        next_layer(layer, layer.b, y, z, watch)
        next_layer(layer, net.zeros, dy, dz, watch)
        y, z, dy, dz = z, y, dz, dy
    call.out = dy[0]


cdef int run_once(const Net *net, task_t task, void *args) except -1:
    """task(args, 0, …) in the default floating-point state.

    Signals interrupt it if `net` is large.  The pointer is volatile: the compiler cannot inline
    the task, and then move its arithmetic to where the state is the caller's.
    """
    cdef volatile task_t opaque = task
    cdef fp_word state
    if net.macs > ROW_QUICK:
        return run(task, args, 1, 0, 0)
    state = fp_enter()
    opaque(args, 0, NULL)
    fp_leave(state)
    return 0
