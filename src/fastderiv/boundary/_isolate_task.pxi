# A task of the isolation: a few rows, their offsets, their roots.  docs/derivations.md §2.4.
# needs: Layer, padded, ROUND (_net.pxi)
# needs: dense, load_rows (_tiles.pxi)
# needs: order_rows, TaskRows (_enclosures.pxi)
# needs: Isolate, MOST_BREAKS, Sigmoids, Task (_isolate_terms.pxi)
# needs: refine (_isolate_newton.pxi)
# needs: begin, split (_isolate_search.pxi)
# needs: sharpen (_isolate_clusters.pxi)

cdef void offsets(Task *task, ix first) noexcept nogil:
    """OUT task.s and task.es, what rounding may do to s (docs/rounding.md §1.7)."""
    cdef const Isolate *call = task.call
    cdef const Layer *layer = &call.other.net.layers[0]
    cdef ix i, j, r, ts = call.task_rows
    cdef vf most, bound = vset1(1.01 * (layer.n_in + 2) * ROUND if layer.n_in else 0.0), s
    load_rows(&call.other, first, task.rows, task.x, ts)
    dense(layer, task.x, task.s, ts, task.worker)
    if layer.n_in == 0:
        memset(task.es, 0, ts * sizeof(real))
        return
    for i in range(layer.n_in * ts):
        task.x[i] = fabs(task.x[i])
    dense(call.magnitudes, task.x, task.magnitudes, ts, task.worker)
    for j in range(ts // VL):
        r = j * VL
        most = vset1(0)
        for i in range(layer.n_out):
            most = vmax(most, vload(task.magnitudes + i * ts + r))
        # beyond 1e300 nothing can be known
        most = vsel_lt(most, vset1(1e300), most * bound, vset1(INFINITY))
        vstore(task.es + r, most)
        if vall_lt(most, vset1(INFINITY)):
            continue
        for i in range(layer.n_out):
            s = vload(task.s + i * ts + r)
            vstore(task.s + i * ts + r, vsel_lt(most, vset1(INFINITY), s, vset1(0)))


cdef inline real *carve(real *scratch, double size, double *at) noexcept nogil:
    """The next `size` numbers of the scratch, which share no cache line with others.

    INOUT at: the number of reals before them, then behind them.  Returns NULL without scratch: then
    only the size is counted.
    """
    cdef double here = at[0]
    at[0] = here + (GL * <double><int64_t>((size + (GL - 1)) / GL) if size < 1e18 else size)
    return NULL if scratch is NULL else scratch + <ix>here


cdef double lay_out(const Isolate *call, real *scratch, Task *task) noexcept nogil:
    """OUT task: where everything of it is in the scratch.

    Returns how many numbers that takes, as a double, which does not overflow.
    """
    cdef double at = 0, n = call.f.units, whole = padded(call.f.units), rows = call.task_rows
    cdef double sink = <double>call.found.cap + VL
    task.call = call
    task.s, task.es = carve(scratch, whole * rows, &at), carve(scratch, rows, &at)
    task.spent = carve(scratch, rows, &at)
    task.x = carve(scratch, call.other.net.layers[0].n_in * rows, &at)
    task.magnitudes = carve(scratch, whole * rows, &at)
    task.points, task.item = carve(scratch, 2 * n * VL, &at), carve(scratch, 2 * n * VL, &at)
    task.t = carve(scratch, (MOST_BREAKS + 2) * VL, &at)
    task.todo.cap, task.bracket.cap = call.todo_cap, call.bracket_cap
    task.todo.p = carve(scratch, (3 + 2 * n) * call.todo_cap + VL, &at)
    task.bracket.p = carve(scratch, 5. * call.bracket_cap + VL, &at)
    task.sink.cap = call.found.cap
    task.sink.row, task.sink.lower = carve(scratch, sink, &at), carve(scratch, sink, &at)
    task.sink.upper, task.sink.x = carve(scratch, sink, &at), carve(scratch, sink, &at)
    task.sink.kind = carve(scratch, sink, &at)
    task.start = <ix *>carve(scratch, rows + 1, &at)
    task.order = <ix *>carve(scratch, call.found.cap + 1., &at)
    return at


cdef inline void isolate(Task *task, const int H) noexcept nogil:
    begin(task, H)
    split(task, H)
    refine(task, H)


cdef void isolate_task(void *args, ix i, Worker *worker) noexcept nogil:
    """OUT found: the enclosures of the rows of task i."""
    cdef Isolate *call = <Isolate *>args
    cdef TaskRows rows
    cdef Task task
    lay_out(call, <real *>worker.scratch, &task)
    rows.task, rows.first = i, i * call.task_rows
    rows.n = min(call.task_rows, call.other.m - rows.first)
    task.worker, task.rows = worker, rows.n
    task.todo.n = task.bracket.n = task.sink.n = 0
    memset(task.spent, 0, call.task_rows * sizeof(real))
    offsets(&task, rows.first)
    if call.f.units == 3:               # the smallest networks with several ties
        isolate(&task, 3)
    else:
        isolate(&task, 0)
    order_rows(&task.sink, &rows, task.start, task.order, &call.found)
    if task.sink.n <= call.found.cap:
        sharpen(&task, &rows, &call.found)


cdef void set_bounds(double error, Sigmoids *f) noexcept:
    """OUT f: the constants of docs/rounding.md §1.1 to §1.3, from a, d and g."""
    cdef real D = 0, G = 0, curvature = 0, widest = 0, slowest = INFINITY, size, lost = 0
    cdef ix n = f.units, i
    for i in range(n):
        size = fabs(f.a[i])
        lost += size * 1e-323
        D, G = D + fabs(f.d[i]), G + fabs(f.g[i])
        if size > 0:
            widest, slowest = max(widest, size), min(slowest, size)
    for i in range(n if widest > 0 else 0):
        curvature += fabs(f.a[i]) / widest * (fabs(f.g[i]) + fabs(f.a[i]) * 1e-323)
    f.E = 1.001 * (ROUND * D * 2.725 + (n + 3) * ROUND * (fabs(f.c) + D) + error)
    f.E_s, f.slope_u, f.slopes = 0.251 * D, (750 + n) * ROUND, G
    f.curvature, f.widest = 0.0964 * curvature + 1e-320, widest
    f.least_slope = G * 4e-308 + lost + 1e-320
    f.narrow, f.slowest = 16 / widest if widest else 1, slowest if widest else 1
    for i in range(2):
        f.beyond[i] = log(min(2 * D / max(fabs(f.limit[i]), <real>1e-18) + 1.1, <real>1e18))
        f.beyond[i] /= f.slowest
        if not f.beyond[i] > 0:
            f.beyond[i] = 1 / f.slowest
