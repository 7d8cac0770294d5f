# Rows of the hidden attention (docs/derivations.md §1.2), with the time j in the lanes:
#
#     α[l, j] = Σ_n C[l, n]·exp(A[n]·x[l, j])·Δ[j]·B[j, n],      x[l, j] = Δ[j+1] + … + Δ[l]
#
# Columns are taken in blocks of AB.  With the gap g between a block's end e and a row, the sum of
# the Δ behind e up to l, exp(A·x[l, j]) = exp(A·g)·exp(A·x[e, j]): the rows below a block are a
# matrix product, (rows, N) times (N, AB), and each factor takes one exponential an entry.  Where A
# ≤ 0 ≤ Δ no factor grows, so that none overflows and nothing is lost.  Elsewhere, and in the block
# that holds the diagonal, exp(A·x) is formed directly, with x summed backwards from row l.
# Included by _kernels.pyx.
# needs: Coefficient, MANY, Scan, Signal (s6/_problem.pxi)
# needs: copy, load_tile (s6/_tiles.pxi)
# needs: piece_at (s6/_lanes.pxi)
# needs: accumulate, Sum, sum_of (s6/_step_sum.pxi)

cdef enum:
    AB = 64                             # columns of a block: with fewer, more exp(A·g) are
                                        # computed; with more, diagonal blocks take longer
    RB = 64                             # rows of a task, at most: they share exp(A·x)·Δ·B

cdef struct Attention:
    Scan scan                           # of which delta, A, B, C, bias, softplus and sizes are set
    const ix *rows                      # their steps
    real *out                           # (Bt, D, rows, L), contiguous and zero
    ix count, per_task, tasks           # rows; rows of a task; tasks of a channel

cdef struct Columns:                    # a block of columns of one channel, in scratch
    real *a                             # [N]: A·log2(e)
    real *dt                            # [time]: Δ
    real *x                             # [time]: Σ Δ behind it, up to the block's end
    real *x_row                         # [time]: Σ Δ behind it, up to a row
    real *b                             # [N, time]: B
    real *decayed                       # [N, time]: exp(A·x)·Δ·B
    real *y                             # [time]: a row in the block that holds its diagonal
    double total                        # Σ Δ of the block
    ix states
    bint decays                         # whether -inf < A <= 0
    bint split                          # whether Δ >= 0 too, so that exp(A·x) may be split
    Worker *worker                      # the thread at work, which is told to stop

cdef struct AttentionRow:
    ix l
    real *c                             # [N]: C
    real *g                             # [N]: exp(A·gap)·C
    real *out
    Sum gap                             # Σ Δ from the block's end to l


cdef inline bint halted(const Columns *held, ix n) noexcept nogil:
    """Whether the call was interrupted, which is looked up at every MANY-th state only."""
    return n % MANY == 0 and n > 0 and interrupted(held.worker)


cdef inline bint halted_amid(const Columns *held, ix N) noexcept nogil:
    """As `halted`, between two vectors of columns, each of which takes all N states."""
    return N > MANY and interrupted(held.worker)


cdef double sum_behind(const real *dt, ix n, real *x) noexcept nogil:
    """OUT x[j] = dt[j+1] + … + dt[n−1]; the sum of all."""
    cdef double sum = 0
    cdef ix j
    for j in range(n - 1, -1, -1):
        x[j] = <real>sum
        sum += dt[j]
    return sum


cdef void load_steps(const Scan *scan, ix batch, ix channel, ix t, ix T,
                     Columns *held) noexcept nogil:
    """OUT Δ of the block t … t+T−1, and its sums."""
    cdef vf bias = vset1(0 if scan.bias.p is NULL else scan.bias.p[channel * scan.bias.d]), d
    cdef const Signal *delta = &scan.delta
    cdef ix j = 0
    if T < AB:
        memset(held.dt, 0, AB * sizeof(real))
        memset(held.x, 0, AB * sizeof(real))
    copy(delta.p + batch * delta.b + channel * delta.d + t * delta.t, delta.t, held.dt, 1, T)
    while j < T:
        d = vload(held.dt + j) + bias
        vstore(held.dt + j, vsoftplus(d) if scan.softplus else d)
        j += VL
    held.total = sum_behind(held.dt, T, held.x)
    held.split = held.decays
    for j in range(T):
        held.split = held.split and held.dt[j] >= 0


cdef const real *coefficient_at(const Coefficient *coefficient, ix batch, ix channel,
                                ix t) noexcept nogil:
    """B or C of a channel at step t: its first state."""
    if coefficient.constant:
        return coefficient.p + channel * coefficient.g
    return (coefficient.p + batch * coefficient.b + t * coefficient.t
            + channel // coefficient.channels * coefficient.g)


cdef void load_columns(const Scan *scan, ix batch, ix channel, ix t, ix T,
                       Columns *held) noexcept nogil:
    """OUT Δ, its sums, and B of the block t … t+T−1."""
    cdef const real *B = coefficient_at(&scan.B, batch, channel, t)
    cdef ix j, n = 0, m, N = scan.states
    load_steps(scan, batch, channel, t, T, held)
    if scan.B.constant:
        for n in range(N):
            if halted(held, n):
                return
            for j in range(AB):
                held.b[n * AB + j] = B[n * scan.B.n]
        return
    while n < N and not halted(held, n):
        m = piece_at(n, N)
        if T < AB:
            memset(held.b + n * AB, 0, AB * m * sizeof(real))
        load_tile(B + n * scan.B.n, scan.B.t, scan.B.n, T, m, held.b + n * AB, AB)
        n += m


cdef inline void exact_row(const Columns *held, const real *x, const real *c, ix T, real *y,
                           const bint decays) noexcept nogil:
    """OUT y[j] = Σ_n C·exp(A·x[j])·B·Δ: no factor but exp(A·x)."""
    cdef ix j = 0, n, N = held.states
    cdef vf sum, xs, e
    while j < T and not halted_amid(held, N):
        sum, xs = vset1(0), vload(x + j)
        for n in range(N):
            e = vexp2_neg(xs, vset1(held.a[n])) if decays else vexp2_any(xs, vset1(held.a[n]))
            sum = vfma(e * vload(held.b + n * AB + j), vset1(c[n]), sum)
        vstore(y + j, sum * vload(held.dt + j))
        j += VL


cdef void diagonal_row(Columns *held, AttentionRow *row, ix t) noexcept nogil:
    """A row through the block that holds its diagonal; OUT its gap."""
    cdef ix n = row.l - t + 1
    row.gap.value, row.gap.lost = sum_behind(held.dt, n, held.x_row), 0
    if held.split:
        exact_row(held, held.x_row, row.c, n, held.y, True)
    else:
        exact_row(held, held.x_row, row.c, n, held.y, False)
    memcpy(row.out + t, held.y, n * sizeof(real))


cdef void direct_row(Columns *held, const AttentionRow *row, ix t) noexcept nogil:
    """A row through a whole block in which factors may grow."""
    cdef double gap = sum_of(&row.gap)
    cdef ix j
    for j in range(AB):
        held.x_row[j] = <real>(gap + held.x[j])
    exact_row(held, held.x_row, row.c, AB, row.out + t, False)


cdef void decay_columns(Columns *held) noexcept nogil:
    """OUT decayed = exp(A·x)·Δ·B."""
    cdef ix j, n
    cdef vf a, db
    for n in range(held.states):
        if halted(held, n):
            return
        a, j = vset1(held.a[n]), 0
        while j < AB:
            db = vload(held.dt + j) * vload(held.b + n * AB + j)
            vstore(held.decayed + n * AB + j, vexp2_neg(vload(held.x + j), a) * db)
            j += VL


cdef void decay_row(const Columns *held, AttentionRow *row) noexcept nogil:
    """OUT g = exp(A·gap)·C."""
    cdef ix n = 0, N = held.states
    cdef vf gap = vset1(<real>sum_of(&row.gap))
    while n < N and not halted(held, n):
        vstore(row.g + n, vexp2_neg(gap, vload(held.a + n)) * vload(row.c + n))
        n += VL


cdef void four_rows(const Columns *held, AttentionRow **row, ix t) noexcept nogil:
    """out[row, t … t+AB−1] = g[row]·decayed."""
    cdef const real *g0 = row[0].g
    cdef const real *g1 = row[1].g
    cdef const real *g2 = row[2].g
    cdef const real *g3 = row[3].g
    cdef vf a0, a1, a2, a3, b0, b1, b2, b3, p, q
    cdef ix j = 0, n, N = held.states
    while j < AB and not halted_amid(held, N):
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = vset1(0)
        for n in range(N):
            p, q = vload(held.decayed + n * AB + j), vload(held.decayed + n * AB + j + VL)
            a0, b0 = vfma(vset1(g0[n]), p, a0), vfma(vset1(g0[n]), q, b0)
            a1, b1 = vfma(vset1(g1[n]), p, a1), vfma(vset1(g1[n]), q, b1)
            a2, b2 = vfma(vset1(g2[n]), p, a2), vfma(vset1(g2[n]), q, b2)
            a3, b3 = vfma(vset1(g3[n]), p, a3), vfma(vset1(g3[n]), q, b3)
        vstore(row[0].out + t + j, a0)
        vstore(row[0].out + t + j + VL, b0)
        vstore(row[1].out + t + j, a1)
        vstore(row[1].out + t + j + VL, b1)
        vstore(row[2].out + t + j, a2)
        vstore(row[2].out + t + j + VL, b2)
        vstore(row[3].out + t + j, a3)
        vstore(row[3].out + t + j + VL, b3)
        j += 2 * VL


cdef void below_block(Columns *held, AttentionRow *rows, ix count, ix t) noexcept nogil:
    """The rows below a whole block: as a matrix product, where no factor grows."""
    cdef AttentionRow *four[4]
    cdef ix i, k = 0
    cdef bint fresh = True
    for i in range(count):
        if rows[i].l < t + AB:
            continue
        if not (held.split and sum_of(&rows[i].gap) >= 0):
            direct_row(held, &rows[i], t)
            continue
        if fresh:
            decay_columns(held)
            fresh = False
        decay_row(held, &rows[i])
        four[k] = &rows[i]
        k += 1
        if k == 4:
            four_rows(held, four, t)
            k = 0
    if k:
        for i in range(k, 4):
            four[i] = four[0]
        four_rows(held, four, t)


cdef void set_up_columns(const Scan *scan, ix channel, real *scratch, Worker *worker,
                         Columns *held) noexcept nogil:
    """OUT held: scratch laid out, and the channel's A."""
    cdef ix n, N = scan.states
    held.worker, held.states = worker, N
    held.dt = scratch
    held.x = held.dt + AB
    held.x_row = held.x + AB
    held.y = held.x_row + AB
    held.b = held.y + AB
    held.decayed = held.b + AB * N
    held.a = held.decayed + AB * N
    held.decays = True
    for n in range(N):
        if halted(held, n):
            return
        held.a[n] = scan.A[channel * scan.A_d + n * scan.A_n] * LOG2E
        held.decays = held.decays and isfinite(held.a[n]) and held.a[n] <= 0


cdef void set_up_row(const Scan *scan, ix batch, ix channel, const Columns *held, real *scratch,
                     AttentionRow *row) noexcept nogil:
    """IN row.l; OUT its C, and scratch laid out."""
    cdef ix n
    cdef const real *C = coefficient_at(&scan.C, batch, channel, row.l)
    row.c, row.g = scratch, scratch + round_up(scan.states, GL)
    for n in range(scan.states):
        if halted(held, n):
            return
        row.c[n] = C[n * scan.C.n]


cdef void attention_task(void *args, ix i, Worker *worker) noexcept nogil:
    """Some rows of one channel, from the last block of columns to the first."""
    cdef const Attention *att = <const Attention *>args
    cdef const Scan *scan = &att.scan
    cdef Columns held
    cdef AttentionRow *rows = <AttentionRow *>worker.scratch
    cdef real *scratch = <real *>(rows + att.per_task)
    cdef ix item = i // att.tasks, first = i % att.tasks * att.per_task, k, t = 0
    cdef ix batch = item // scan.channels, channel = item % scan.channels
    cdef ix count = min(att.per_task, att.count - first), row = round_up(scan.states, GL)
    set_up_columns(scan, channel, scratch, worker, &held)
    scratch = held.a + row
    for k in range(count):
        rows[k].l, rows[k].out = att.rows[first + k], att.out
        rows[k].out += (item * att.count + first + k) * scan.steps
        set_up_row(scan, batch, channel, &held, scratch + 2 * k * row, &rows[k])
        t = max(t, rows[k].l // AB * AB)
    while t >= 0:
        if interrupted(worker):
            return
        load_columns(scan, batch, channel, t, min(<ix>AB, scan.steps - t), &held)
        below_block(&held, rows, count, t)
        for k in range(count):
            if rows[k].l >= t + AB:
                accumulate(&rows[k].gap, held.total)
            elif rows[k].l >= t:
                diagonal_row(&held, &rows[k], t)
        t -= AB


cdef double attention_scratch(const Attention *att) noexcept nogil:
    """Bytes of scratch of a thread."""
    cdef double N = att.scan.states
    cdef double reals = 4 * AB + 2 * AB * N + (1 + 2 * att.per_task) * (N + GL)
    return att.per_task * sizeof(AttentionRow) + reals * sizeof(real)


cdef void divide_attention(Attention *att) noexcept nogil:
    """Tasks by the number of states: what a task holds of its rows stays in the caches."""
    att.per_task = RB
    while att.per_task > 4 and att.per_task * <double>att.scan.states > 16384:
        att.per_task //= 2
    att.tasks = ceil_div(att.count, att.per_task)
