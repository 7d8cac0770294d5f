# What is made of step sizes: their sums, and rows of the hidden attention; included by _kernels.pyx.

# ---- sums of step sizes ---------------------------------------------------------------------------------------------

cdef struct Sum:                        # of very many terms: compensated, as a step repeated would be rounded the same way each time
    double value, lost


cdef inline void accumulate(Sum *s, double x) noexcept nogil:
    cdef double value = s.value + x, added = value - s.value
    s.lost += (s.value - (value - added)) + (x - added)
    s.value = value


cdef inline double sum_of(Sum *s) noexcept nogil:
    return s.value + s.lost if isfinite(s.lost) else s.value


cdef struct StepSum:
    Signal delta
    PerChannel bias
    real *total                         # (Bt, D), contiguous
    bint softplus
    ix channels, steps, chunks


cdef void step_sum_task(void *args, ix i, Worker *worker) noexcept nogil:
    """Σ Δ of a vector of channels: eight steps in `real`, the rest compensated in float64."""
    cdef StepSum *s = <StepSum *>args
    cdef Vector v
    cdef real *dt = <real *>worker.scratch
    cdef real *bias = dt + TILE
    cdef Sum total[GL]
    cdef ix batch = i // s.chunks, t = 0, T, k, lane
    cdef vf d, sum
    v.channel = i % s.chunks * VL
    v.rows = min(<ix>VL, s.channels - v.channel)
    memset(bias, 0, VL * sizeof(real))
    memset(total, 0, sizeof(total))
    if s.bias.p is not NULL:
        copy(s.bias.p + v.channel * s.bias.d, s.bias.d, bias, 1, v.rows)
    while t < s.steps:
        if interrupted(worker):
            return
        T = min(<ix>TB, s.steps - t)
        load_signal(&s.delta, batch, &v, t, T, dt)
        sum = vset1(0)
        for k in range(T):
            d = vload(dt + k * VL) + vload(bias)
            sum = sum + (vsoftplus(d) if s.softplus else d)
            if k % 8 == 7 or k == T - 1:
                vstore(dt, sum)
                sum = vset1(0)
                for lane in range(VL):
                    accumulate(&total[lane], dt[lane])
        t += T
    for k in range(v.rows):
        s.total[batch * s.channels + v.channel + k] = <real>sum_of(&total[k])


def step_sum(cnp.ndarray delta, cnp.ndarray bias, bint softplus, cnp.ndarray total):
    """Checked arrays of one dtype: delta (Bt, D, L), bias (D,) or None; OUT total (Bt, D) = Σ Δ, C-contiguous."""
    cdef StepSum s
    cdef const ix *shape = <const ix *>cnp.PyArray_DIMS(delta)
    if cnp.PyArray_NDIM(delta) != 3 or not cnp.PyArray_IS_C_CONTIGUOUS(total):
        refuse(delta, ("batch", "D", "L"))
    expect_array(delta, 3, shape, False)
    expect_array(bias, 1, shape + 1, False)
    expect_array(total, 2, shape, True)
    s.channels, s.steps, s.softplus = shape[1], shape[2], softplus
    s.chunks = divided(s.channels, VL)
    set_signal(&s.delta, delta)
    set_per_channel(&s.bias, bias)
    s.total = <real *>cnp.PyArray_DATA(total)
    run(step_sum_task, &s, shape[0] * s.chunks, (TILE + VL) * sizeof(real),
        1e-9 * shape[0] * s.channels * s.steps)


# ---- hidden attention ---------------------------------------------------------------------------------------------
#
# α[l, j] = Σ_n C[l, n]·exp(A[n]·x[l, j])·Δ[j]·B[j, n] with x[l, j] = Δ[j+1] + … + Δ[l]: time j lies in the lanes, and columns
# are taken in blocks of AB.  With `gap`, the Δ from a block's end to row l, exp(A·x) is exp(A·gap)·exp(A·x[end, j]), and the
# rows below a block are a matrix product: (rows, N) times (N, AB), two exponentials an entry of either.  Where A <= 0 <= Δ
# no factor grows, so none overflows and nothing is lost.  The block that holds the diagonal, and blocks where that does not
# hold, take exp(A·x) itself, with x summed backwards from row l.

cdef enum:
    AB = 64                             # columns in a block: fewer cost more exp(A·gap), more a dearer diagonal
    RB = 64                             # rows of a task, at most: they share exp(A·x)·Δ·B

cdef struct Attention:
    Signal delta
    Coefficient B, C
    PerChannel bias
    real *A
    ix A_d, A_n
    const ix *rows
    real *out                           # (Bt, D, rows, L), contiguous and zero
    bint softplus
    ix channels, states, steps
    ix count, block, blocks             # rows; rows of a task; tasks of a channel

cdef struct Channel:                    # what a task holds, in scratch
    real *a                             # [N]: A·log2(e)
    real *dt                            # [time]: Δ of the block
    real *x                             # [time]: Σ Δ behind it, up to the block's end
    real *own                           # [time]: Σ Δ behind it, up to a row
    real *b                             # [N, time]: B
    real *w                             # [N, time]: exp(A·x)·Δ·B
    real *y                             # [time]: a row's part of the block, where it is not stored whole
    double total                        # Σ Δ of the block
    bint decays, tame                   # -inf < A <= 0; and Δ >= 0 too
    Worker *worker                      # who works on it, and is told to stop

cdef struct Query:
    ix l
    real *c                             # [N]: C
    real *g                             # [N]: exp(A·gap)·C
    real *out
    Sum gap                             # Σ Δ from the block's end to l


cdef inline bint halted(Channel *v, ix n) noexcept nogil:
    """Whether to leave at the n-th state: as `stopped`, asked at every state."""
    return n % MANY == 0 and n > 0 and interrupted(v.worker)


cdef inline bint halted_amid(Channel *v, ix N) noexcept nogil:
    """Whether to leave between two vectors of columns, each of which takes all N states."""
    return N > MANY and interrupted(v.worker)


cdef double sum_behind(const real *dt, ix n, real *x) noexcept nogil:
    """OUT x[j] = dt[j+1] + … + dt[n−1]; the sum of all."""
    cdef double s = 0
    cdef ix j
    for j in range(n - 1, -1, -1):
        x[j] = <real>s
        s += dt[j]
    return s


cdef void load_columns(Attention *s, Channel *v, ix batch, ix channel, ix t, ix T) noexcept nogil:
    """Δ, its sums, and B of the block t … t+T−1."""
    cdef vf bias = vset1(0 if s.bias.p is NULL else s.bias.p[channel * s.bias.d]), d
    cdef const real *B
    cdef ix j = 0, n = 0, m, N = s.states
    if T < AB:
        memset(v.dt, 0, AB * sizeof(real))
        memset(v.x, 0, AB * sizeof(real))
    copy(s.delta.p + batch * s.delta.b + channel * s.delta.d + t * s.delta.t, s.delta.t, v.dt, 1, T)
    while j < T:
        d = vload(v.dt + j) + bias
        vstore(v.dt + j, vsoftplus(d) if s.softplus else d)
        j += VL
    v.total = sum_behind(v.dt, T, v.x)
    v.tame = v.decays
    for j in range(T):
        v.tame = v.tame and v.dt[j] >= 0
    if s.B.constant:
        B = s.B.p + channel * s.B.g
        for n in range(N):
            if halted(v, n):
                return
            for j in range(AB):
                v.b[n * AB + j] = B[n * s.B.n]
        return
    B = s.B.p + batch * s.B.b + channel // s.B.channels * s.B.g + t * s.B.t
    while n < N and not halted(v, n):
        m = piece_at(n, N)
        if T < AB:
            memset(v.b + n * AB, 0, AB * m * sizeof(real))
        load_tile(B + n * s.B.n, s.B.t, s.B.n, T, m, v.b + n * AB, AB)
        n += m


cdef inline void exact_row(Channel *v, const real *x, const real *c, ix N, ix T, real *y, const bint tame) noexcept nogil:
    """OUT y[j] = Σ_n C·exp(A·x[j])·B·Δ: no factor but exp(A·x)."""
    cdef ix j = 0, n
    cdef vf sum, r
    while j < T and not halted_amid(v, N):
        sum, r = vset1(0), vload(x + j)
        for n in range(N):
            if tame:
                sum = vfma(vexp2_neg(r, vset1(v.a[n])) * vload(v.b + n * AB + j), vset1(c[n]), sum)
            else:
                sum = vfma(vexp2_any(r, vset1(v.a[n])) * vload(v.b + n * AB + j), vset1(c[n]), sum)
        vstore(y + j, sum * vload(v.dt + j))
        j += VL


cdef void own_row(Channel *v, Query *row, ix N, ix t) noexcept nogil:
    """A row through the block that holds its diagonal."""
    cdef ix n = row.l - t + 1
    row.gap.value, row.gap.lost = sum_behind(v.dt, n, v.own), 0
    if v.tame:
        exact_row(v, v.own, row.c, N, n, v.y, True)
    else:
        exact_row(v, v.own, row.c, N, n, v.y, False)
    memcpy(row.out + t, v.y, n * sizeof(real))


cdef void wild_row(Channel *v, Query *row, ix N, ix t) noexcept nogil:
    """A row through a whole block where factors may grow."""
    cdef double gap = sum_of(&row.gap)
    cdef ix j
    for j in range(AB):
        v.own[j] = <real>(gap + v.x[j])
    exact_row(v, v.own, row.c, N, AB, row.out + t, False)


cdef void decay_columns(Channel *v, ix N) noexcept nogil:
    """OUT w = exp(A·x)·Δ·B."""
    cdef ix j, n
    cdef vf a
    for n in range(N):
        if halted(v, n):
            return
        a, j = vset1(v.a[n]), 0
        while j < AB:
            vstore(v.w + n * AB + j, vexp2_neg(vload(v.x + j), a) * (vload(v.dt + j) * vload(v.b + n * AB + j)))
            j += VL


cdef void decay_row(Channel *v, Query *row, ix N) noexcept nogil:
    """OUT g = exp(A·gap)·C."""
    cdef ix n = 0
    cdef vf gap = vset1(<real>sum_of(&row.gap))
    while n < N and not halted(v, n):
        vstore(row.g + n, vexp2_neg(gap, vload(v.a + n)) * vload(row.c + n))
        n += VL


cdef void four_rows(Channel *v, Query **row, ix N, ix t) noexcept nogil:
    """out[row, t … t+AB−1] = g[row]·w."""
    cdef const real *g0 = row[0].g
    cdef const real *g1 = row[1].g
    cdef const real *g2 = row[2].g
    cdef const real *g3 = row[3].g
    cdef vf a0, a1, a2, a3, b0, b1, b2, b3, p, q
    cdef ix j = 0, n
    while j < AB and not halted_amid(v, N):
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = vset1(0)
        for n in range(N):
            p, q = vload(v.w + n * AB + j), vload(v.w + n * AB + j + VL)
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


cdef void below_block(Channel *v, Query *rows, ix count, ix N, ix t) noexcept nogil:
    """The rows below a whole block: as a matrix product, where no factor grows."""
    cdef Query *four[4]
    cdef ix i, k = 0
    cdef bint fresh = True
    for i in range(count):
        if rows[i].l < t + AB:
            continue
        if not (v.tame and sum_of(&rows[i].gap) >= 0):
            wild_row(v, &rows[i], N, t)
            continue
        if fresh:
            decay_columns(v, N)
            fresh = False
        decay_row(v, &rows[i], N)
        four[k] = &rows[i]
        k += 1
        if k == 4:
            four_rows(v, four, N, t)
            k = 0
    if k:
        for i in range(k, 4):
            four[i] = four[0]
        four_rows(v, four, N, t)


cdef inline ix whole_vectors(ix n) noexcept nogil:
    return divided(n, GL) * GL


cdef void set_up_channel(Attention *s, Channel *v, ix channel, real *scratch,
                         Worker *worker) noexcept nogil:
    cdef ix n, N = s.states
    v.worker = worker
    v.dt = scratch
    v.x = v.dt + AB
    v.own = v.x + AB
    v.y = v.own + AB
    v.b = v.y + AB
    v.w = v.b + AB * N
    v.a = v.w + AB * N
    v.decays = True
    for n in range(N):
        if halted(v, n):
            return
        v.a[n] = s.A[channel * s.A_d + n * s.A_n] * LOG2E
        v.decays = v.decays and isfinite(v.a[n]) and v.a[n] <= 0


cdef void set_up_rows(Attention *s, Channel *v, ix batch, ix channel, ix first, ix count, Query *rows,
                      real *scratch) noexcept nogil:
    cdef ix i, n, N = s.states, ld = whole_vectors(N)
    cdef const real *own
    cdef const real *C = s.C.p + channel * s.C.g
    if not s.C.constant:
        C = s.C.p + batch * s.C.b + channel // s.C.channels * s.C.g
    for i in range(count):
        rows[i].l = s.rows[first + i]
        rows[i].c = scratch + 2 * i * ld
        rows[i].g = rows[i].c + ld
        rows[i].out = s.out + ((batch * s.channels + channel) * s.count + first + i) * s.steps
        own = C if s.C.constant else C + rows[i].l * s.C.t
        for n in range(N):
            if halted(v, n):
                return
            rows[i].c[n] = own[n * s.C.n]


cdef void attention_task(void *args, ix i, Worker *worker) noexcept nogil:
    """Some rows of one channel, from the last block of columns to the first."""
    cdef Attention *s = <Attention *>args
    cdef Channel v
    cdef Query *rows = <Query *>worker.scratch
    cdef real *scratch = <real *>(rows + s.block)
    cdef ix item = i // s.blocks, first = i % s.blocks * s.block, N = s.states, k, t = 0
    cdef ix batch = item // s.channels, channel = item % s.channels, count = min(s.block, s.count - first)
    set_up_channel(s, &v, channel, scratch, worker)
    set_up_rows(s, &v, batch, channel, first, count, rows, v.a + whole_vectors(N))
    for k in range(count):
        t = max(t, rows[k].l // AB * AB)
    while t >= 0:
        if interrupted(worker):
            return
        load_columns(s, &v, batch, channel, t, min(<ix>AB, s.steps - t))
        below_block(&v, rows, count, N, t)
        for k in range(count):
            if rows[k].l >= t + AB:
                accumulate(&rows[k].gap, v.total)
            elif rows[k].l >= t:
                own_row(&v, &rows[k], N, t)
        t -= AB


def attention(cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C, cnp.ndarray bias, bint softplus,
              cnp.ndarray rows, cnp.ndarray out):
    """Checked arrays of one dtype, as for `scan`; rows (R,) intp in [0, L); out (Bt, D, R, L), C-contiguous and zero."""
    cdef Attention s
    cdef double entries, scratch, N                     # entries: rows times columns
    cdef const ix *dims = <const ix *>cnp.PyArray_DIMS(delta)
    expect_attention(delta, A, B, C, bias, rows, out)
    s.channels, s.steps, s.states, s.softplus = dims[1], dims[2], cnp.PyArray_DIM(A, 1), softplus
    s.count, N = cnp.PyArray_DIM(rows, 0), s.states
    if cnp.PyArray_SIZE(out) == 0:
        return
    set_signal(&s.delta, delta)
    set_coefficient(&s.B, B, s.channels)
    set_coefficient(&s.C, C, s.channels)
    set_per_channel(&s.bias, bias)
    s.A, s.A_d, s.A_n = <real *>cnp.PyArray_DATA(A), stride(A, 0), stride(A, 1)
    s.rows, s.out = <ix *>cnp.PyArray_DATA(rows), <real *>cnp.PyArray_DATA(out)
    s.block = RB
    while s.block > 4 and s.block * N > 16384:
        s.block //= 2
    s.blocks = divided(s.count, s.block)
    entries = <double>cnp.PyArray_SIZE(out) / 2
    scratch = s.block * sizeof(Query)
    scratch += (4 * AB + 2 * AB * N + (1 + 2 * s.block) * (N + GL)) * sizeof(real)
    run_with(attention_task, &s, dims[0] * s.channels * s.blocks, scratch,
             0.1e-9 * entries * (10 + N))


cdef int expect_attention(cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C,
                          cnp.ndarray bias, cnp.ndarray rows, cnp.ndarray out) except -1:
    cdef ix shape[4]
    if cnp.PyArray_NDIM(delta) != 3:
        refuse(delta, ("batch", "D", "L"))
    if cnp.PyArray_NDIM(A) != 2:
        refuse(A, ("D", "N"))
    expect_integers(rows)
    shape[0], shape[1] = cnp.PyArray_DIM(delta, 0), cnp.PyArray_DIM(delta, 1)
    shape[2] = cnp.PyArray_DIM(delta, 2)
    expect_array(delta, 3, shape, False)
    expect_array(bias, 1, shape + 1, False)
    expect_coefficient(B, shape[0], shape[1], cnp.PyArray_DIM(A, 1), shape[2], False)
    expect_coefficient(C, shape[0], shape[1], cnp.PyArray_DIM(A, 1), shape[2], False)
    shape[2], shape[3] = cnp.PyArray_DIM(rows, 0), shape[2]
    expect_array(out, 4, shape, True)
    if not cnp.PyArray_IS_C_CONTIGUOUS(out):
        refuse(out, "C-contiguous")
    shape[2] = cnp.PyArray_DIM(A, 1)
    return expect_array(A, 2, shape + 1, False)
