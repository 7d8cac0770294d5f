# Logits and gradients of many rows, tile by tile: docs/derivations.md §2.1.
#
# Activations of a tile are (unit, row) with the rows in lanes.  The whole network runs over one
# tile before the next is read, so that nothing of size (m, H) exists.
# needs: AT_ONCE, Batch, dense_block, Layer, Net, padded, Panel (_net.pxi)

cdef enum:
    STEP = 16                           # rows of a tile, a multiple of: two vectors of any level
    MAX_ROWS = 128
    TILE_BYTES = 32768                  # of a layer's activations: they fit the first-level cache
    QUICK = 1 << 24                     # a tile of no more multiply–adds does not look for signals


cdef inline void panel_times(const Panel *panel, const real *y, real *z, ix ts, ix outputs,
                             const bint turned) noexcept nogil:
    """IN y (n, ts); OUT z (outputs ≤ GL, ts), whose rows up to GL may be overwritten."""
    cdef Panel second
    cdef ix r = 0
    while r < ts:
        if outputs == 1:
            dense_block(panel, y + r, z + r, ts, 1, turned)
        elif AT_ONCE == 8 and outputs > 4:
            dense_block(panel, y + r, z + r, ts, 8, turned)
        else:
            dense_block(panel, y + r, z + r, ts, 4, turned)
            if outputs > 4:
                second = panel[0]
                second.w, second.b = panel.w + (4 * GL if turned else 4), panel.b + 4
                dense_block(&second, y + r, z + 4 * ts + r, ts, 4, turned)
        r += 2 * VL


cdef bint dense(const Layer *layer, const real *y, real *z, ix ts, Worker *watch) noexcept nogil:
    """IN y (n_in, ts); OUT z (n_out, ts) = b + Wᵀ y.

    True if `watch`, unless it is NULL, was interrupted on the way.
    """
    cdef Panel panel
    cdef ix o = 0
    panel.n, panel.next = layer.n_in, GL * GL
    while o < layer.n_out:
        if watch is not NULL and interrupted(watch):
            return True
        panel.w, panel.b = layer.w + o * layer.n_in, layer.b + o
        panel_times(&panel, y, z + o * ts, ts, min(<ix>GL, layer.n_out - o), False)
        o += GL
    return False


cdef bint dense_vjp(const Layer *layer, const real *zeros, const real *dz, real *dy, ix ts,
                    Worker *watch) noexcept nogil:
    """IN dz (n_out, ts); OUT dy (n_in, ts) = W dz, outputs ascending.  `watch` as in `dense`."""
    cdef Panel panel
    cdef ix i = 0
    panel.n, panel.next, panel.b = layer.n_out, layer.n_in * GL, zeros
    while i < layer.n_in:
        if watch is not NULL and interrupted(watch):
            return True
        panel.w = layer.w + i * GL
        panel_times(&panel, dz, dy + i * ts, ts, min(<ix>GL, layer.n_in - i), True)
        i += GL
    return False


cdef inline void logistic(real *y, ix size) noexcept nogil:
    """y = σ(y)."""
    cdef ix i
    for i in range(size // VL):
        vstore(y + i * VL, vsigmoid(vload(y + i * VL)))


cdef inline void logistic_and_slope(real *y, real *slope, ix size) noexcept nogil:
    """slope = σ'(y) = e/(1 + e)², e = exp(−|y|); y = σ(y)."""
    cdef ix i
    cdef vf x
    for i in range(size // VL):
        x = vload(y + i * VL)
        vstore(y + i * VL, vsigmoid(x))
        vstore(slope + i * VL, vsigmoid_grad(x))


cdef inline void times(real *y, const real *slope, ix size) noexcept nogil:
    """y = y ⊙ slope."""
    cdef ix i
    for i in range(size // VL):
        vstore(y + i * VL, vload(y + i * VL) * vload(slope + i * VL))


cdef inline void gather(const real *x, ix x_step, real *y, ix y_step, ix n) noexcept nogil:
    """OUT y (n,) = x (n,), each with its own step."""
    cdef ix i
    for i in range(n):
        y[i * y_step] = x[i * x_step]


cdef void load_rows(const Batch *call, ix first, ix rows, real *y, ix ts) noexcept nogil:
    """OUT y (n_in, ts): the inputs of `rows` rows from `first`; the rest of the tile is zero."""
    cdef ix n_in = call.net.layers[0].n_in, r, k
    cdef const real *x
    if rows < ts:
        memset(y, 0, n_in * ts * sizeof(real))
    for k in range(n_in):
        x = call.X + k * call.x_col
        if call.pick is NULL:
            gather(x + first * call.x_row, call.x_row, y + k * ts, 1, rows)
        else:
            for r in range(rows):
                y[k * ts + r] = x[call.pick[first + r] * call.x_row]
    if call.t is not NULL:
        memcpy(y + call.coordinate * ts, call.t + first, rows * sizeof(real))


cdef void store_rows(const real *z, ix ts, real *out, ix rows, ix n) noexcept nogil:
    """OUT out (rows, n) from z (n, ts)."""
    cdef ix k
    for k in range(n):
        gather(z + k * ts, 1, out + k, n, rows)


cdef void forward_tile(const Batch *call, ix first, ix rows, real *y,
                       Worker *watch) noexcept nogil:
    """1. read the rows  2. layer by layer  3. write the logits, or σ of them.  y: scratch."""
    cdef const Net *net = call.net
    cdef const Layer *layer
    cdef ix ts = round_up(rows, STEP), n_out = net.layers[net.depth - 1].n_out, i
    cdef real *z = y + net.widest * ts + GL             # an odd number of cache lines apart
    load_rows(call, first, rows, y, ts)
    for i in range(net.depth):
        layer = &net.layers[i]
        if dense(layer, y, z, ts, watch):
            return
        if i < net.depth - 1 or call.squash:
            logistic(z, layer.n_out * ts)
        y, z = z, y
    store_rows(y, ts, call.out + first * n_out, rows, n_out)


cdef void gradient_tile(const Batch *call, ix first, ix rows, real *y,
                        Worker *watch) noexcept nogil:
    """The gradient of the only output.  y: scratch.

    1. read the rows  2. forward, keeping σ'  3. back, the last layer first  4. write the gradient
    """
    cdef const Net *net = call.net
    cdef const Layer *layer
    cdef ix ts = round_up(rows, STEP), n_in = net.layers[0].n_in, i
    cdef real *z = y + net.widest * ts + GL
    cdef real *slope = z + net.widest * ts + GL
    load_rows(call, first, rows, y, ts)
    for i in range(net.depth - 1):
        layer = &net.layers[i]
        if dense(layer, y, z, ts, watch):
            return
        logistic_and_slope(z, slope, layer.n_out * ts)
        slope += padded(layer.n_out) * ts
        y, z = z, y
    for i in range(ts):
        y[i] = 1
    for i in range(net.depth - 1, -1, -1):
        layer = &net.layers[i]
        if dense_vjp(layer, net.zeros, y, z, ts, watch):
            return
        if i > 0:
            slope -= padded(layer.n_in) * ts
            times(z, slope, layer.n_in * ts)
        y, z = z, y
    store_rows(y, ts, call.out + first * n_in, rows, n_in)


cdef void rows_task(void *args, ix i, Worker *worker) noexcept nogil:
    """OUT out at the rows of task i."""
    cdef Batch *call = <Batch *>args
    cdef ix first = i * call.task_rows, end = min(call.m, (i + 1) * call.task_rows), rows
    cdef Worker *watch = worker if call.net.macs * call.tile_rows > QUICK else NULL
    cdef real *scratch = <real *>worker.scratch
    while first < end:
        rows = min(call.tile_rows, end - first)
        if call.gradient:
            gradient_tile(call, first, rows, scratch, watch)
        else:
            forward_tile(call, first, rows, scratch, watch)
        first += call.tile_rows


cdef int run_tiles(Batch *call) except -1:
    """Cut the m rows into tiles and tasks, and run them."""
    cdef const Net *net = call.net
    cdef double mul_adds = 2e-10 * net.macs / VL, sigmoids = 5e-9 * (net.sigmoids + 1) / VL
    cdef double row = mul_adds + sigmoids + 1e-9 * net.layers[0].n_in
    cdef double row_bytes = (2. * net.widest + (net.slopes if call.gradient else 0)) * sizeof(real)
    cdef ix fits = TILE_BYTES // (max(<ix>1, net.widest) * <ix>sizeof(real))
    call.tile_rows = max(<ix>STEP, min(<ix>MAX_ROWS, fits // STEP * STEP))
    call.task_rows = call.tile_rows * max(<ix>1, <ix>(50e-6 / (call.tile_rows * row)))
    if call.m == 0 or (net.layers[0].n_in if call.gradient else net.outputs) == 0:
        return 0                        # 2**60 rows without an output would take ages
    return run(rows_task, call, ceil_div(call.m, call.task_rows),
               call.tile_rows * row_bytes + 64 * sizeof(real),
               call.m * row * (2 if call.gradient else 1))
