# All roots between the bounds: from a few points of every row, by splitting what is undecided.
# docs/derivations.md §2.3, §2.4.
# needs: count_units, emit_clusters, Isolate, MOST_BREAKS, Pieces, preactivation, real_row,
#        Sigmoids, Stack, Task (_isolate_terms.pxi)
# needs: decide (_isolate_verdicts.pxi)
# needs: middle, refine (_isolate_newton.pxi)
# needs: decide_whole (_isolate_polynomial.pxi)

cdef enum:
    BUDGET = 4000                       # splits of a row; what is still undecided becomes a cluster
    MANY = 300                          # splits of a row after which polynomials judge it too
    DEPTH = 192                         # room kept free on the stack: so many items may be pushed
                                        # while intervals are split one at a time


cdef inline void make_room(Task *task, const int H) noexcept nogil:
    """Refine the brackets where the next intervals might fill their stack."""
    if task.bracket.n > task.bracket.cap - (MOST_BREAKS + 2) * VL:
        refine(task, H)


# 1. From the bounds and a few points in between

cdef inline void centres(const Task *task, ix row, const int H) noexcept nogil:
    """OUT task.t = lo, the points, hi, for VL rows.

    The points are the units' centres, or quantiles of some of them, within the bounds.  They lie
    beside the centres: symmetric networks have roots exactly at these.
    """
    cdef const Isolate *call = task.call
    cdef const Sigmoids *f = call.f
    cdef ix n = count_units(f, H), picked = min(n, <ix>MOST_BREAKS), i, k, unit
    cdef vf lo = vset1(call.lo), hi = vset1(call.hi), t, other
    cdef real *at = task.t + VL
    for i in range(picked):
        unit = i * n // picked
        t = vset1(0)
        if f.a[unit] != 0:
            t = (vset1(0.0371) - vload(task.s + unit * call.task_rows + row)) / vset1(f.a[unit])
        t = vmin(vmax(t, lo), hi)
        for k in range(i):                              # insertion sort
            other = vload(at + k * VL)
            vstore(at + k * VL, vmin(t, other))
            t = vmax(t, other)
        vstore(at + i * VL, t)
    if call.breaks < picked:
        for k in range(call.breaks):
            unit = (2 * k + 1) * picked // (2 * call.breaks)
            vstore(at + k * VL, vload(at + unit * VL))
    vstore(task.t, lo)
    vstore(at + call.breaks * VL, hi)


cdef inline void at_point(const Task *task, ix row, vf t, real *q, const int H) noexcept nogil:
    """OUT q of VL rows from `row` at t."""
    cdef const Sigmoids *f = task.call.f
    cdef ix i
    for i in range(count_units(f, H)):
        vstore(q + i * VL,
               vtail(preactivation(f, i, t, vload(task.s + i * task.call.task_rows + row))))


cdef inline void at_infinity(const Task *task, ix row, real side, real *q,
                             const int H) noexcept nogil:
    """OUT q at t = ±∞: it is ±0 for every unit that depends on t."""
    cdef const Sigmoids *f = task.call.f
    cdef ix i
    for i in range(count_units(f, H)):
        if f.a[i] == 0:
            vstore(q + i * VL, vtail(vload(task.s + i * task.call.task_rows + row)))
        else:
            vstore(q + i * VL, vset1(0.0 if (f.a[i] > 0) == (side > 0) else -0.0))


cdef inline void begin_rows(Task *task, ix row, vf rows, const int H) noexcept nogil:
    """Judge the intervals between the first points of VL rows, which are numbered `rows`."""
    cdef const Isolate *call = task.call
    cdef ix n = count_units(call.f, H), last = call.breaks + 1, k
    cdef real *q
    cdef Pieces at
    centres(task, row, H)
    at.row, at.es, at.l = rows, vload(task.es + row), vset1(call.lo)
    for k in range(last + 1):
        q = task.points + (k & 1) * n * VL
        at.r, at.qr, at.ql = vload(task.t + k * VL), q, task.points + (~k & 1) * n * VL
        if (k == 0 and call.lo == -INFINITY) or (k == last and call.hi == INFINITY):
            at_infinity(task, row, call.hi if k else call.lo, q, H)
        else:
            at_point(task, row, at.r, q, H)
        if k:
            decide(task, &at, vlt(rows, vset1(task.rows)), H)
        at.l = at.r


cdef inline void begin(Task *task, const int H) noexcept nogil:
    """Judge the intervals between every row's first points, VL rows at a time."""
    cdef ix j, k
    cdef real numbers[VL]
    for k in range(VL):
        numbers[k] = k
    for j in range(ceil_div(task.rows, VL)):
        begin_rows(task, j * VL, vload(numbers) + vset1(j * VL), H)
        make_room(task, H)


# 2. Splitting

cdef inline unsigned afford(Task *task, const Pieces *at, unsigned live,
                            unsigned *hard) noexcept nogil:
    """The lanes that may be split: their rows have splits left, and the stack has room.

    The other intervals become clusters.  OUT hard: the lanes of rows that have taken many splits.
    """
    cdef unsigned lanes = live, spent = 0
    cdef bint full = task.todo.n + 3 * VL > task.todo.cap
    cdef ix i, row
    hard[0] = 0
    while lanes:
        i = vfirst(lanes)
        lanes &= lanes - 1
        row = <ix>vget(at.row, i)
        task.spent[row] += 1
        if task.spent[row] > MANY:
            hard[0] |= 1u << i
        if full or task.spent[row] > BUDGET:
            spent |= 1u << i
    emit_clusters(task, at, spent)
    return live & ~spent


cdef inline void pop_q(const Task *task, const int H) noexcept nogil:
    """OUT task.item: q at both ends of the VL intervals from the stack's top on."""
    cdef const Stack *todo = &task.todo
    cdef ix n = count_units(task.call.f, H), i
    cdef real *ql = task.item
    cdef real *qr = task.item + n * VL
    for i in range(n):
        vstore(ql + i * VL, vload(todo.p + (3 + i) * todo.cap + todo.n))
        vstore(qr + i * VL, vload(todo.p + (3 + n + i) * todo.cap + todo.n))


cdef inline void split_pieces(Task *task, const Pieces *at, unsigned live, unsigned hard,
                              const int H) noexcept nogil:
    """Cut the intervals of the lanes `live` in two, and judge both."""
    cdef const Isolate *call = task.call
    cdef const Sigmoids *f = call.f
    cdef vf t = middle(f, at.l, at.r)
    cdef Pieces half = at[0]
    cdef ix i
    for i in range(count_units(f, H)):
        vstore(task.points + i * VL,
               vtail(preactivation(f, i, t, vgather(task.s + i * call.task_rows, at.row))))
    if hard & live:
        live &= ~decide_whole(task, at, t, hard & live)
    half.r, half.qr = t, task.points
    decide(task, &half, live, H)
    half.l, half.r, half.ql, half.qr = t, at.r, task.points, at.qr
    decide(task, &half, live, H)


cdef inline void split(Task *task, const int H) noexcept nogil:
    """Split undecided intervals, newest first, VL at a time, until none is left.

    Where memory is short they are taken one at a time.
    """
    cdef const Isolate *call = task.call
    cdef Stack *todo = &task.todo
    cdef ix take, rounds = 0
    cdef const real *top
    cdef unsigned live, hard
    cdef Pieces at
    at.ql, at.qr = task.item, task.item + count_units(call.f, H) * VL
    while todo.n > 0:
        take = min(<ix>VL, todo.n) if todo.n + DEPTH < todo.cap else 1
        todo.n -= take
        top = todo.p + todo.n
        at.row, at.l, at.r = vload(top), vload(top + todo.cap), vload(top + 2 * todo.cap)
        live = afford(task, &at, (1u << take) - 1, &hard)
        if not live:
            continue
        at.row = real_row(task, at.row)
        at.es = vgather(task.es, at.row)
        pop_q(task, H)
        split_pieces(task, &at, live, hard, H)
        make_room(task, H)
        rounds += 1
        if rounds % 64 == 0 and interrupted(task.worker):
            return
