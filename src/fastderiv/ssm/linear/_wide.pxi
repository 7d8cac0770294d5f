# Columns of the linear recurrence that are neighbours in every array (docs/derivations.md §6.7),
# step by step.  Included by _kernels.pyx.
#
# Memory is read and written in long runs, as by a copy; the states stay in the caches.  What is
# left of a run at its end is done by a vector that overlaps the one before and leaves its lanes
# alone.
# needs: LANE_NUMBERS, linear_collect, LINEAR_SLOPES, LINEAR_STATES, LINEAR_SUMMED, LINEAR_SUMS,
#        linear_to_line, LinearColumns, LinearPass, LinearScratch,
#        LinearStream (linear/_problem.pxi)

cdef enum:
    LINEAR_LOOK = 256                   # steps between two looks for signals
    LINEAR_WIDE_AHEAD = 32 * GL         # columns from those at work to those that are fetched

cdef struct LinearRow:                    # one step of all columns
    const real *a
    const real *b
    const real *dh
    real *out
    real *h
    real *sums
    ix a_t, b_t, dh_t                   # to the next step
    ix columns
    ix rows_ahead                       # how many steps later what is fetched meanwhile is needed


cdef inline void advance_columns_at(const LinearRow *row, ix k, const int what,
                                    const bint stream) noexcept nogil:
    """VL columns from column k on."""
    cdef vf before = vload(row.h + k), result
    cdef vf h = vfma(vload(row.a + k), before, vload(row.b + k))
    vstore(row.h + k, h)
    if what == LINEAR_SUMS:
        vstore(row.sums + k, vfma(vload(row.dh + k), before, vload(row.sums + k)))
        return
    result = h if what == LINEAR_STATES else vload(row.dh + k) * before
    if stream:
        vstream(row.out + k, result)
    else:
        vstore(row.out + k, result)


cdef inline vf blend_lanes(vf chosen, vf others, ix first, ix stop) noexcept nogil:
    """Lanes first … stop−1 of one, and the rest of the other."""
    cdef vf lane = vload(&LANE_NUMBERS[0])
    return vsel_lt(lane, vset1(first), others, vsel_lt(lane, vset1(stop), chosen, others))


cdef void advance_some_columns(const LinearRow *row, ix k, ix first, ix stop,
                               int what) noexcept nogil:
    """Lanes first … stop−1 of the VL columns from column k on."""
    cdef real results[VL]
    cdef vf before = vload(row.h + k), sums
    cdef vf h = vfma(vload(row.a + k), before, vload(row.b + k))
    cdef ix i
    vstore(row.h + k, blend_lanes(h, before, first, stop))
    if what == LINEAR_SUMS:
        sums = vload(row.sums + k)
        vstore(row.sums + k,
               blend_lanes(vfma(vload(row.dh + k), before, sums), sums, first, stop))
        return
    vstore(results, h if what == LINEAR_STATES else vload(row.dh + k) * before)
    for i in range(first, stop):
        row.out[k + i] = results[i]


cdef inline void fetch_linear_row(const LinearRow *row, ix k, const int what) noexcept nogil:
    """Fetch what is needed at least so many columns later."""
    cdef ix at = k + LINEAR_WIDE_AHEAD, rows = 0
    if row.columns <= LINEAR_WIDE_AHEAD:
        at, rows = k, row.rows_ahead
    elif at >= row.columns:
        at, rows = at - row.columns, 1
    vprefetch(row.a + at + rows * row.a_t)
    vprefetch(row.b + at + rows * row.b_t)
    if what != LINEAR_STATES:
        vprefetch(row.dh + at + rows * row.dh_t)


cdef inline void advance_linear_row(const LinearRow *row, const int what) noexcept nogil:
    cdef ix k = 0
    while k + VL <= row.columns:
        if k % GL == 0:
            fetch_linear_row(row, k, what)
        advance_columns_at(row, k, what, False)
        k += VL
    if k < row.columns:
        advance_some_columns(row, row.columns - VL, k - row.columns + VL, VL, what)


cdef inline void stream_linear_row(const LinearRow *row, const int what) noexcept nogil:
    """A cache line is stored whole and past the caches, or in part and to them: a line that sees
    both costs several times as much."""
    cdef ix k = 0, j, head = linear_to_line(row.out)
    while k < head:
        advance_some_columns(row, k, 0, min(<ix>VL, head - k), what)
        k += VL
    k = head
    while k + GL <= row.columns:
        fetch_linear_row(row, k, what)
        for j in range(NS):
            advance_columns_at(row, k + j * VL, what, True)
        k += GL
    while k < row.columns:
        j = min(<ix>VL, row.columns - k)
        advance_some_columns(row, k + j - VL, VL - j, VL, what)
        k += j


cdef void advance_wide(const LinearPass *run, const LinearRow *row) noexcept nogil:
    cdef bint stream = run.stream and row.columns >= 2 * GL     # one line of each row is whole
    if run.what == LINEAR_SUMS:
        advance_linear_row(row, LINEAR_SUMS)
    elif run.what == LINEAR_SLOPES:
        if stream:
            stream_linear_row(row, LINEAR_SLOPES)
        else:
            advance_linear_row(row, LINEAR_SLOPES)
    elif stream:
        stream_linear_row(row, LINEAR_STATES)
    else:
        advance_linear_row(row, LINEAR_STATES)


cdef inline real *wide_start(const LinearStream *x, const LinearColumns *columns,
                             ix t) noexcept nogil:
    return x.p + columns.at[x.array][0] + t * x.t


cdef void set_linear_row(const LinearPass *run, const LinearColumns *columns,
                         const LinearScratch *scratch, ix t, LinearRow *row) noexcept nogil:
    """OUT row: step t."""
    row.columns, row.a_t, row.b_t, row.dh_t = columns.count, run.a.t, run.b.t, run.dh.t
    row.rows_ahead = ceil_div(LINEAR_WIDE_AHEAD, columns.count)
    row.b, row.a = wide_start(&run.b, columns, t), scratch.a
    if run.constant:
        row.a_t = 0
    else:
        row.a = wide_start(&run.a, columns, t)
    if run.what != LINEAR_STATES:
        row.dh = wide_start(&run.dh, columns, t)
    if run.what != LINEAR_SUMS:
        row.out = wide_start(&run.out, columns, t)
    row.h, row.sums = scratch.h, scratch.sums


cdef void run_linear_wide(const LinearPass *run, const LinearColumns *columns,
                          LinearScratch *scratch, Worker *worker) noexcept nogil:
    """All columns through time, step by step."""
    cdef LinearRow row
    cdef ix t = 0
    while t < run.steps and not (t % LINEAR_LOOK == 0 and interrupted(worker)):
        set_linear_row(run, columns, scratch, t, &row)
        advance_wide(run, &row)
        t += 1
        if run.what == LINEAR_SUMS and (t % LINEAR_SUMMED == 0 or t == run.steps):
            linear_collect(scratch.sums, columns.count, scratch.totals)
