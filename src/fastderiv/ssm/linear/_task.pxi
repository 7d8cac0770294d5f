# The linear recurrence and its adjoint (docs/derivations.md §6.7): how the columns of a call are
# divided among tasks, and what a task does with its own.  Included by _kernels.pyx.
# needs: Linear, LINEAR_ARRAYS, linear_backwards, LINEAR_CHAINED, linear_forwards, LINEAR_LANES,
#        linear_offset, linear_place, LINEAR_SLOPES, LINEAR_STATES, LINEAR_SUMS, linear_total,
#        LINEAR_WIDE, LINEAR_WIDEST, LinearArray, LinearColumns, LinearPass, LinearScratch, OF_A,
#        OF_B, OF_DA, OF_DB, OF_DFIRST, OF_DLAST, OF_DOUT, OF_FIRST, OF_LAST, OF_OUT, OF_SUMS,
#        read_linear_columns, TIMED, write_linear_columns (linear/_problem.pxi)
# needs: LINEAR_LANES_MEMORY, run_linear_lanes (linear/_lanes.pxi)
# needs: run_linear_chains (linear/_chains.pxi)
# needs: run_linear_wide (linear/_wide.pxi)

cdef enum:
    LINEAR_SCRATCH = 5 * LINEAR_WIDEST + LINEAR_LANES_MEMORY


# ---- the columns of a work_item ---------------------------------------------------------------

cdef void divide_linear_columns(Linear *call) noexcept:
    """OUT the form of work_items, and their number."""
    cdef int k
    cdef ix inner = call.shape[0], outer = call.columns // inner
    cdef const LinearArray *x
    call.wide = inner >= VL
    for k in range(TIMED):
        x = &call.arrays[k]
        if x.given and not (k == OF_A and call.constant):
            call.wide = call.wide and x.c[0] == 1
    if call.wide:
        call.pieces = ceil_div(inner, LINEAR_WIDEST)
        call.work_items = outer * call.pieces
    elif inner >= VL:
        call.pieces = ceil_div(inner, VL)
        call.work_items = outer * call.pieces
    else:
        call.pieces = 0
        call.work_items = ceil_div(call.columns, VL)


cdef bint chains_are_faster(const Linear *call) noexcept:
    """Whether a varies in time, steps are neighbours, and rows do not share the same few places of
    the first-level cache.  (If a is constant, lanes gain more, as they store past the caches.)"""
    cdef int k
    cdef ix apart
    cdef const LinearArray *x
    if call.constant:
        return False
    for k in range(TIMED):
        x = &call.arrays[k]
        if not x.given:
            continue
        apart = abs(x.c[0]) * <ix>sizeof(real) % 4096
        if (x.t != 1 and x.t != -1) or not 256 <= apart <= 3840:
            return False
    return True


cdef void choose_linear_columns(const Linear *call, ix item, LinearColumns *columns) noexcept nogil:
    """OUT columns: those of a work_item."""
    cdef ix inner = call.shape[0], first, piece
    if call.pieces == 0:
        first = item * VL
        columns.count = min(<ix>VL, call.columns - first)
    else:
        piece = item % call.pieces
        first = item // call.pieces * inner
        if call.wide:
            columns.count = (piece + 1) * inner // call.pieces - piece * inner // call.pieces
            first += piece * inner // call.pieces
        else:
            columns.count = min(<ix>VL, inner - piece * VL)
            first += piece * VL
    columns.kind = LINEAR_CHAINED if columns.count < VL or call.chained else LINEAR_LANES
    if call.wide:
        columns.kind = LINEAR_WIDE
    place_linear_columns(call, first, columns)


cdef void place_linear_columns(const Linear *call, ix first, LinearColumns *columns) noexcept nogil:
    """OUT where each array has so many columns from the first on."""
    cdef int k
    cdef ix i
    cdef const LinearArray *x
    for k in range(LINEAR_ARRAYS):
        x = &call.arrays[k]
        columns.at[k][0], columns.distance[k] = linear_offset(call, x, first), x.c[0]
        if columns.kind != LINEAR_WIDE:
            for i in range(1, columns.count):
                columns.at[k][i] = linear_offset(call, x, first + i)
                if columns.at[k][i] != columns.at[k][0] + i * x.c[0]:
                    columns.distance[k] = 0
        columns.neighbours[k] = columns.count == VL and columns.distance[k] == 1


cdef void lay_linear_scratch(void *memory, LinearScratch *scratch) noexcept nogil:
    cdef real *p = <real *>memory
    scratch.totals = <double *>p
    p += 2 * LINEAR_WIDEST                                     # a double takes up to two reals
    scratch.h, scratch.a, scratch.sums = p, p + LINEAR_WIDEST, p + 2 * LINEAR_WIDEST
    scratch.lanes = p + 3 * LINEAR_WIDEST


cdef void run_linear_pass(const LinearPass *run, const LinearColumns *columns,
                          LinearScratch *scratch, Worker *worker) noexcept nogil:
    if columns.kind == LINEAR_WIDE:
        run_linear_wide(run, columns, scratch, worker)
    elif columns.kind == LINEAR_LANES:
        run_linear_lanes(run, columns, scratch, worker)
    else:
        run_linear_chains(run, columns, scratch, worker)
    if run.stream:
        vstream_end()


# ---- forward ----------------------------------------------------------------------------------

cdef void scan_columns(const Linear *call, const LinearColumns *columns, LinearScratch *scratch,
                       Worker *worker) noexcept nogil:
    """h ← a h + b."""
    cdef LinearPass run
    run.what, run.steps = LINEAR_STATES, call.steps
    run.constant, run.stream = call.constant, call.stream
    run.a, run.b = linear_forwards(call, OF_A), linear_forwards(call, OF_B)
    run.out = linear_forwards(call, OF_OUT)
    run.dh = run.b                                      # which is not used
    if call.constant:
        read_linear_columns(call, OF_A, columns, scratch.a)
    read_linear_columns(call, OF_FIRST, columns, scratch.h)
    run_linear_pass(&run, columns, scratch, worker)
    write_linear_columns(call, OF_LAST, columns, scratch.h)


cdef void linear_scan_task(void *args, ix i, Worker *worker) noexcept nogil:
    """A few work_items."""
    cdef const Linear *call = <const Linear *>args
    cdef LinearScratch scratch
    cdef LinearColumns columns
    cdef ix item
    lay_linear_scratch(worker.scratch, &scratch)
    for item in range(i * call.items_per_task, min(call.work_items, (i + 1) * call.items_per_task)):
        if interrupted(worker):
            return
        choose_linear_columns(call, item, &columns)
        scan_columns(call, &columns, &scratch, worker)


# ---- adjoint ----------------------------------------------------------------------------------

cdef void last_adjoint(const Linear *call, const LinearColumns *columns, real *h) noexcept nogil:
    """1. OUT h = db[L−1] = dlast + dout[L−1]."""
    cdef ix i, end = call.steps - 1
    cdef const LinearArray *dout = &call.arrays[OF_DOUT]
    cdef const LinearArray *db = &call.arrays[OF_DB]
    read_linear_columns(call, OF_DLAST, columns, h)
    for i in range(columns.count):
        h[i] = h[i] + dout.p[linear_place(columns, OF_DOUT, i) + end * dout.t]
        db.p[linear_place(columns, OF_DB, i) + end * db.t] = h[i]


cdef void run_back(const Linear *call, const LinearColumns *columns, LinearScratch *scratch,
                   Worker *worker) noexcept nogil:
    """2. OUT db[t] = a[t+1] db[t+1] + dout[t], linear_backwards in time from t = L−2."""
    cdef LinearPass run
    cdef ix end = call.steps - 1
    run.what, run.steps = LINEAR_STATES, end
    run.constant, run.stream = call.constant, call.stream
    run.a, run.b = linear_backwards(call, OF_A, end), linear_backwards(call, OF_DOUT, end - 1)
    run.out = linear_backwards(call, OF_DB, end - 1)
    run.dh = run.b                                      # which is not used
    run_linear_pass(&run, columns, scratch, worker)


cdef void first_adjoint(const Linear *call, const LinearColumns *columns, real *h) noexcept nogil:
    """3. IN h = db[0], or dlast if there is no step; OUT dfirst = a[0] h, or h."""
    cdef ix i
    cdef const LinearArray *a = &call.arrays[OF_A]
    if call.steps > 0 and call.arrays[OF_DFIRST].given:
        for i in range(columns.count):
            h[i] = h[i] * a.p[linear_place(columns, OF_A, i)]
    write_linear_columns(call, OF_DFIRST, columns, h)


cdef void run_again(const Linear *call, const LinearColumns *columns, LinearScratch *scratch,
                    Worker *worker) noexcept nogil:
    """4. The recurrence once more, forwards: OUT da[t] = db[t] h[t−1], or their sum over time."""
    cdef LinearPass run
    cdef ix i
    run.what, run.steps = LINEAR_SUMS if call.constant else LINEAR_SLOPES, call.steps
    run.constant, run.stream = call.constant, call.stream
    run.a, run.b = linear_forwards(call, OF_A), linear_forwards(call, OF_B)
    run.dh, run.out = linear_forwards(call, OF_DB), linear_forwards(call, OF_DA)
    read_linear_columns(call, OF_FIRST, columns, scratch.h)
    memset(scratch.sums, 0, round_up(columns.count, VL) * sizeof(real))
    memset(scratch.totals, 0, round_up(columns.count, VL) * sizeof(double))
    run_linear_pass(&run, columns, scratch, worker)
    if call.constant:
        for i in range(columns.count):
            call.sums[linear_place(columns, OF_SUMS, i)] = scratch.totals[i]


cdef void linear_adjoint_task(void *args, ix i, Worker *worker) noexcept nogil:
    """A few work_items."""
    cdef const Linear *call = <const Linear *>args
    cdef LinearScratch scratch
    cdef LinearColumns columns
    cdef ix item
    lay_linear_scratch(worker.scratch, &scratch)
    for item in range(i * call.items_per_task, min(call.work_items, (i + 1) * call.items_per_task)):
        if interrupted(worker):
            return
        choose_linear_columns(call, item, &columns)
        if call.constant:
            read_linear_columns(call, OF_A, &columns, scratch.a)
        if call.steps > 0:
            last_adjoint(call, &columns, scratch.h)
            run_back(call, &columns, &scratch, worker)
        else:
            read_linear_columns(call, OF_DLAST, &columns, scratch.h)
        first_adjoint(call, &columns, scratch.h)
        run_again(call, &columns, &scratch, worker)


cdef struct LinearTotal:
    const double *sums
    ix count
    real *total


cdef void linear_total_task(void *args, ix i, Worker *worker) noexcept nogil:
    """OUT total: the sum over all columns, in the order of b's axes."""
    cdef const LinearTotal *call = <const LinearTotal *>args
    call.total[0] = <real>linear_total(call.sums, call.count)
