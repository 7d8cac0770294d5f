# VL columns of the linear recurrence in the lanes of a vector (docs/derivations.md §6.7), one block
# of steps after the other.  Included by _kernels.pyx.
#
# An array whose columns are neighbours is read and written where it is.  One whose steps are
# neighbours is transposed, GL steps at a time; its rows are first copied side by side where they do
# not lie at equal distances, or where they end.  Any other is gathered number by number.
# needs: linear_collect, LINEAR_DOWN, linear_fetch, LINEAR_FIRST, LINEAR_LAST, linear_read_run,
#        LINEAR_SLOPES, LINEAR_STATES, LINEAR_SUMS, linear_to_line, linear_write_lines,
#        linear_write_run, LinearColumns, LinearPass, LinearScratch,
#        LinearStream (linear/_problem.pxi)

cdef enum:
    LINEAR_STEPS = 128                  # of a block, a multiple of GL
    LINEAR_AHEAD = 64                   # steps from those at work to those that are fetched
    LINEAR_ROW = LINEAR_STEPS + 3 * GL  # from one lane's row in scratch to the next
    LINEAR_SQUARE = GL * VL             # numbers of GL steps, [step, lane]
    LINEAR_TILE = LINEAR_ROW * VL       # numbers of a block: [step, lane], or rows
    LINEAR_LANES_MEMORY = 4 * LINEAR_TILE + 4 * LINEAR_SQUARE + VL * GL + 8 * GL

cdef struct LinearWindow:               # some steps of an array, [step, lane]
    real *p
    ix row                              # from one step to the next

cdef struct LinearSide:                 # one array in a block
    LinearStream x
    bint rows                           # whether its steps are neighbours, so that it is transposed
    real *p                             # the first lane's first step of the block
    ix lane                             # from one lane to the next, if `rows`
    ix t                                # from one step to the next
    real *tile                          # LINEAR_TILE numbers
    real *square                        # LINEAR_SQUARE numbers

cdef struct LinearSides:
    LinearSide a, b, dh, out
    ix head                             # steps of the block before b's first whole cache line, or 0

cdef struct LinearWindows:
    LinearWindow a, b, dh, out


# ---- reading ----------------------------------------------------------------------------------

cdef inline real *lowest_step(const LinearStream *x, const LinearColumns *columns, ix start,
                              ix steps, ix lane) noexcept nogil:
    """Where, in memory, the steps of a block begin that are neighbours."""
    cdef ix first = start if x.t == 1 else start + steps - 1
    return x.p + columns.at[x.array][lane] + first * x.t


cdef void gather_linear_block(LinearSide *side, const LinearColumns *columns, ix start,
                              ix steps) noexcept nogil:
    """Copy a block to the tile, [step, lane]."""
    cdef const LinearStream *x = &side.x
    cdef const real *src
    cdef ix i, k
    for i in range(VL):
        src = x.p + columns.at[x.array][i] + start * x.t
        for k in range(steps):
            side.tile[k * VL + i] = src[k * x.t]
    side.p, side.t = side.tile, VL


cdef void copy_linear_rows(LinearSide *side, const LinearColumns *columns, ix start,
                           ix steps) noexcept nogil:
    """Copy a block to the tile, row by row, with room for GL numbers before each."""
    cdef const LinearStream *x = &side.x
    cdef ix i
    for i in range(VL):
        linear_read_run(lowest_step(x, columns, start, steps, i), x.t * LINEAR_STEPS, steps,
                        side.tile + i * LINEAR_ROW + GL)
    side.p, side.lane = side.tile + GL + (0 if x.t == 1 else steps - 1), LINEAR_ROW


cdef void read_linear_block(LinearSide *side, const LinearColumns *columns, ix start, ix steps,
                            bint whole) noexcept nogil:
    """Have a block where `linear_window` finds it; `whole`: it has all steps of every window."""
    cdef const LinearStream *x = &side.x
    side.rows = False
    side.p, side.t = x.p + columns.at[x.array][0] + start * x.t, x.t
    if columns.neighbours[x.array]:
        return
    if x.t != 1 and x.t != -1:
        gather_linear_block(side, columns, start, steps)
        return
    side.rows, side.lane = True, columns.distance[x.array]
    if not whole or side.lane == 0:
        copy_linear_rows(side, columns, start, steps)


cdef LinearWindow linear_window(const LinearSide *side, ix k) noexcept nogil:
    """Steps k … k+GL−1 of the block."""
    cdef LinearWindow w
    cdef const real *src
    cdef ix i = 0
    if not side.rows:
        w.p, w.row = side.p + k * side.t, side.t
        return w
    src = side.p + (k if side.t == 1 else 1 - k - GL)
    while i < GL:
        vtranspose(src + i, side.lane, side.square + i * VL, VL)
        i += VL
    for i in range(VL):
        linear_fetch(src + i * side.lane + side.t * LINEAR_AHEAD)
    w.p, w.row = side.square, VL
    if side.t == -1:
        w.p, w.row = side.square + (GL - 1) * VL, -VL
    return w


# ---- writing ----------------------------------------------------------------------------------

cdef inline void open_linear_block(LinearSide *side, const LinearColumns *columns, ix start,
                                   ix steps) noexcept nogil:
    """Say where results of a block go, in their array or in scratch."""
    cdef const LinearStream *x = &side.x
    side.rows, side.t = False, x.t
    if columns.neighbours[x.array]:
        side.p = x.p + columns.at[x.array][0] + start * x.t
    elif x.t == 1 or x.t == -1:
        side.rows, side.lane = True, LINEAR_ROW
        side.p = side.tile + GL + (0 if x.t == 1 else steps - 1)
    else:
        side.p, side.t = side.tile, VL


cdef inline LinearWindow window_to_write(const LinearSide *side, ix k) noexcept nogil:
    """Where steps k … k+GL−1 of a block are to be written, before `put_linear_window`."""
    cdef LinearWindow w
    w.p, w.row = side.p + k * side.t, side.t
    if side.rows:
        w.p, w.row = side.square, VL
        if side.t == -1:
            w.p, w.row = side.square + (GL - 1) * VL, -VL
    return w


cdef void put_linear_window(const LinearSide *side, ix k) noexcept nogil:
    cdef real *dst = side.p + (k if side.t == 1 else 1 - k - GL)
    cdef ix i = 0
    if side.rows:
        while i < GL:
            vtranspose(side.square + i * VL, VL, dst + i, side.lane)
            i += VL


cdef void write_linear_block(const LinearPass *run, LinearSide *side, const LinearColumns *columns,
                             ix start, ix steps, real *carry) noexcept nogil:
    """Bring results of a block from scratch to their array."""
    cdef const LinearStream *x = &side.x
    cdef ix i, k
    cdef int where = LINEAR_FIRST * (start == 0) + LINEAR_LAST * (start + steps == run.steps)
    cdef real *dst
    if x.t == -1:
        where += LINEAR_DOWN
    for i in range(VL):
        if side.rows:
            dst = lowest_step(x, columns, start, steps, i)
            if run.stream:
                linear_write_lines(side.tile + i * LINEAR_ROW + GL, steps, where, dst,
                                   carry + i * GL)
            else:
                linear_write_run(side.tile + i * LINEAR_ROW + GL, steps, dst)
        elif side.p == side.tile:
            dst = x.p + columns.at[x.array][i] + start * x.t
            for k in range(steps):
                dst[k * x.t] = side.tile[k * VL + i]


# ---- the recurrence ---------------------------------------------------------------------------

cdef inline void advance_lanes(const LinearWindows *w, ix steps, LinearScratch *scratch,
                               const int what, const bint constant) noexcept nogil:
    """IN OUT h.  OUT the states, or the products of dh and the state before; LINEAR_SUMS: sums +=
    these products."""
    cdef vf h = vload(scratch.h), sums = vload(scratch.sums), a = vload(w.a.p), before
    cdef ix k
    for k in range(steps):
        before = h
        if not constant:
            a = vload(w.a.p + k * w.a.row)
        h = vfma(a, before, vload(w.b.p + k * w.b.row))
        if what == LINEAR_STATES:
            vstore(w.out.p + k * w.out.row, h)
        elif what == LINEAR_SLOPES:
            vstore(w.out.p + k * w.out.row, vload(w.dh.p + k * w.dh.row) * before)
        else:
            sums = vfma(vload(w.dh.p + k * w.dh.row), before, sums)
    vstore(scratch.h, h)
    vstore(scratch.sums, sums)


cdef inline void advance_lanes_block(LinearSides *sides, ix steps, LinearScratch *scratch,
                                     const int what, const bint constant) noexcept nogil:
    cdef LinearWindows w
    cdef ix k = 0, n = sides.head if sides.head > 0 else <ix>GL
    w.a.p, w.a.row = scratch.a, 0
    while k < steps:
        if not constant:
            w.a = linear_window(&sides.a, k)
        w.b = linear_window(&sides.b, k)
        if what != LINEAR_STATES:
            w.dh = linear_window(&sides.dh, k)
        if what != LINEAR_SUMS:
            w.out = window_to_write(&sides.out, k)
        advance_lanes(&w, min(n, steps - k), scratch, what, constant)
        if what == LINEAR_SUMS:
            linear_collect(scratch.sums, VL, scratch.totals)
        else:
            put_linear_window(&sides.out, k)
        k, n = k + n, GL


cdef void choose_lanes_block(const LinearPass *run, LinearSides *sides, ix steps,
                             LinearScratch *scratch) noexcept nogil:
    if run.what == LINEAR_SUMS:
        advance_lanes_block(sides, steps, scratch, LINEAR_SUMS, True)
    elif run.what == LINEAR_SLOPES:
        advance_lanes_block(sides, steps, scratch, LINEAR_SLOPES, False)
    elif run.constant:
        advance_lanes_block(sides, steps, scratch, LINEAR_STATES, True)
    else:
        advance_lanes_block(sides, steps, scratch, LINEAR_STATES, False)


cdef void set_linear_side(const LinearStream *x, int number, LinearScratch *scratch,
                          LinearSide *side) noexcept nogil:
    side.x = x[0]
    side.tile = scratch.lanes + number * LINEAR_TILE
    side.square = scratch.lanes + 4 * LINEAR_TILE + number * LINEAR_SQUARE


cdef inline ix linear_block_steps(ix left, ix head) noexcept nogil:
    """Whole groups of GL steps, after the head, or less than GL where no more are left."""
    cdef ix steps = min(<ix>LINEAR_STEPS, left - head)
    if steps < GL:
        return min(left, <ix>LINEAR_STEPS)
    return head + steps - steps % GL


cdef ix steps_to_line(const LinearPass *run, const LinearColumns *columns) noexcept nogil:
    """Steps before the first cache line that is all of one row of b."""
    cdef const real *p = run.b.p + columns.at[run.b.array][0]
    if run.what == LINEAR_SUMS or columns.neighbours[run.b.array]:
        return 0                        # groups of products are the same for any alignment
    if run.b.t == 1:
        return linear_to_line(p)
    return (GL - linear_to_line(p + 1)) % GL if run.b.t == -1 else 0


cdef void run_linear_lanes(const LinearPass *run, const LinearColumns *columns,
                           LinearScratch *scratch, Worker *worker) noexcept nogil:
    """VL columns through time, block by block."""
    cdef LinearSides sides
    cdef ix start = 0, steps
    cdef bint whole
    cdef real *carry = scratch.lanes + 4 * (LINEAR_TILE + LINEAR_SQUARE)
    set_linear_side(&run.a, 0, scratch, &sides.a)
    set_linear_side(&run.b, 1, scratch, &sides.b)
    set_linear_side(&run.dh, 2, scratch, &sides.dh)
    set_linear_side(&run.out, 3, scratch, &sides.out)
    memset(scratch.lanes, 0, LINEAR_LANES_MEMORY * sizeof(real))   # steps that are not there
    sides.head = steps_to_line(run, columns)
    while start < run.steps and not interrupted(worker):
        steps = linear_block_steps(run.steps - start, sides.head)
        whole = steps >= GL and (steps - sides.head) % GL == 0
        if not run.constant:
            read_linear_block(&sides.a, columns, start, steps, whole)
        read_linear_block(&sides.b, columns, start, steps, whole)
        if run.what != LINEAR_STATES:
            read_linear_block(&sides.dh, columns, start, steps, whole)
        if run.what != LINEAR_SUMS:
            open_linear_block(&sides.out, columns, start, steps)
        choose_lanes_block(run, &sides, steps, scratch)
        if run.what != LINEAR_SUMS:
            write_linear_block(run, &sides.out, columns, start, steps, carry)
        start += steps
        sides.head = 0
