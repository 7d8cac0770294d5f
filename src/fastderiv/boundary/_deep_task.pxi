# A task of the search in networks of any depth: a few rows, their first layers, their roots.
# docs/derivations.md §2.5.
# needs: Layer, Net, padded, ROUND (_net.pxi)
# needs: expect_length, expect_reals (_door.pxi)
# needs: enclose, Flow, MarginRange, STREAMS, TINY (_deep_enclose.pxi)
# needs: Deep, Search, Span (_deep_roots.pxi)
# needs: solve_linear, solve_row, SPANS (_deep_search.pxi)

cdef enum:
    DEEP_QUICK = 1 << 17                # a network of no more multiply–adds is enclosed within 1 ms


cdef void deep_offsets(const Deep *call, ix row, Flow *flow) noexcept nogil:
    """OUT s (n_out,) = b + Σ W x over the inputs but the chosen one, and es (rounding.md §2.4)."""
    cdef const Layer *layer = &call.net.layers[0]
    cdef const real *x = call.x_other + row * call.x_row
    cdef const real *panel
    cdef vf s, size, v, share = vset1((layer.n_in + 4) * ROUND)
    cdef ix i, o, k
    for i in range(padded(layer.n_out) // VL):
        if flow.watch is not NULL and interrupted(flow.watch):
            return
        o = i * VL
        panel = layer.w + o // GL * layer.n_in * GL + o % GL
        s = vload(layer.b + o)
        size = vabs(s)
        for k in range(layer.n_in):
            if k != call.coordinate:
                v = vset1(x[(k - (k > call.coordinate)) * call.x_col])
                s = vfma(vload(panel + k * GL), v, s)
                size = vfma(vabs(vload(panel + k * GL)), vabs(v), size)
        vstore(flow.s + o, s)
        vstore(flow.es + o, vfma(size, share, vset1(TINY)))


cdef void slopes_of(const Deep *call, Flow *flow) noexcept nogil:
    """OUT a (n_out,), the chosen input's weights, and the scales of t that they set."""
    cdef const Layer *layer = &call.net.layers[0]
    cdef double most = 0, squares = 0
    cdef ix o, used = 0
    for o in range(padded(layer.n_out) // GL):
        memcpy(flow.a + o * GL, layer.w + (o * layer.n_in + call.coordinate) * GL,
               GL * sizeof(real))
    for o in range(layer.n_out):
        most = max(most, fabs(flow.a[o]))
    for o in range(layer.n_out):
        if flow.a[o] != 0:
            squares, used = squares + (flow.a[o] / most) * (flow.a[o] / most), used + 1
    flow.scale = min(1 / most, 1e300) if most > 0 else 1.0
    flow.spread = flow.scale * sqrt(used / squares) if most > 0 else 1.0


cdef double deep_scratch(const Net *net) noexcept nogil:
    """Bytes of scratch that a task needs: a flow, then the stack of spans."""
    return (3. + 2 * STREAMS) * (net.widest + GL) * sizeof(real) + (SPANS + 1) * sizeof(Span)


cdef real *lay_flow(const Net *net, real *at, Flow *flow) noexcept nogil:
    """OUT flow: where it lies in the scratch, from `at` on; returns where the rest begins."""
    cdef ix n = net.widest + GL
    flow.net, flow.a, flow.s, flow.es = net, at, at + n, at + 2 * n
    flow.y, flow.z = at + 3 * n, at + (3 + STREAMS) * n
    return at + (3 + 2 * STREAMS) * n


cdef int take_other_rows(const Net *net, ix coordinate, cnp.ndarray X, Deep *call) except -1:
    """OUT call: the rows X (m, n_in − 1), float64 of any strides, and nothing else."""
    memset(call, 0, sizeof(Deep))
    expect_reals("X", X, 2, False)
    expect_length("X.shape[1]", X.shape[1], net.layers[0].n_in - 1)
    call.net, call.coordinate = net, coordinate
    call.m, call.x_other = X.shape[0], <const real *>cnp.PyArray_DATA(X)
    call.x_row = cnp.PyArray_STRIDE(X, 0) // <ix>sizeof(real)
    call.x_col = cnp.PyArray_STRIDE(X, 1) // <ix>sizeof(real)
    return 0


cdef void deep_task(void *args, ix task, Worker *worker) noexcept nogil:
    """OUT found: all enclosures of the rows of a task, row by row and ascending."""
    cdef const Deep *call = <const Deep *>args
    cdef ix i
    cdef Flow flow
    cdef Span *stack = <Span *>lay_flow(call.net, <real *>worker.scratch, &flow)
    cdef Search search
    flow.watch = worker if call.net.macs > DEEP_QUICK else NULL
    slopes_of(call, &flow)
    search.call, search.flow, search.worker = call, &flow, worker
    call.found.needed[task] = 0
    for i in range(task * call.task_rows, min(call.m, (task + 1) * call.task_rows)):
        search.row, search.work, search.pending = i, 0, False
        call.found.count[i] = 0
        deep_offsets(call, i, &flow)
        if call.net.depth == 1:
            solve_linear(&search)
        else:
            solve_row(&search, stack)
        if call.work is not NULL:
            call.work[i] = search.work
        if interrupted(worker):
            return


cdef struct OneSpan:                    # one call of `enclosure`
    const Deep *call
    Flow flow
    double l, m, r
    MarginRange f                       # OUT


cdef void enclose_task(void *args, ix i, Worker *worker) noexcept nogil:
    """OUT f: an enclosure for the only row of a call."""
    cdef OneSpan *one = <OneSpan *>args
    one.flow.watch = worker
    slopes_of(one.call, &one.flow)
    deep_offsets(one.call, 0, &one.flow)
    enclose(&one.flow, one.l, one.m, one.r, &one.f)


cdef double deep_seconds(const Net *net) noexcept:
    """What a row is expected to take: some hundred enclosures."""
    return 60 * (net.macs * STREAMS / (VL * 5e9) + net.sigmoids * 100 / (VL * 3e9) + 5e-8)
