"""The LSTM and its adjoint: docs/derivations.md §4.

    forward         a task carries up to 12 rows of the batch through all of time: rows never wait for each other
    adjoint         the same tasks backwards: the gates' adjoints ā, and from them h̄, c̄ and x̄
    weight_sums     W̄ = Σ ā ⊗ input over all steps and rows: a task is a piece of W̄

Rows are sorted by descending length, so that those still running at a step are the first ones: a prefix.
What is kept for the adjoint, and ā, are [unit vector][t·B + row][gate][VL]: written in one piece, read as a panel.
"""

cdef enum:
    MANY_ROWS = 12                     # of a task: each step reads all of W_hh once per task
    FEW_ROWS = 6                        # the same of small batches, where that makes no more than
    MANY_BLOCKS = 8                     # such tasks: one tile's rows cost at most a twentieth more, and keep more threads busy
    CHUNK_ROWS = 48                     # (step, row) pairs projected at once
    CHUNK_BYTES = 1 << 19               # their pre-activations, if more than one step
    SUM_STEPS = 128                     # pairs summed in registers by weight_sums
    SUM_COLUMNS = 192                   # at most so many inputs and unit vectors in one of its tasks
    SUM_UNITS = 8

cdef struct Lstm:
    ix steps, batch, inputs, hidden
    ix units, wide                      # vectors of hidden units; numbers between rows of hidden units in scratch
    ix blocks, rows, chunk              # tasks; the most rows of one; the most pairs projected at once
    bint slow                           # a step takes milliseconds: signals are looked for amid it
    const ix *order                     # the row of the batch at a sorted position
    const ix *lengths                   # sorted, descending
    const real *x                       # (T, B, D)
    const real *h0                      # (B, H), or NULL: zeros
    const real *c0
    const real *w_x                     # [units][D][gate][VL]
    const real *w_h                     # [units][H][gate][VL]
    const real *bias                    # [units][gate][VL]
    real *h                             # (T, B, H), or NULL
    real *h_n                           # (B, H)
    real *c_n
    real *gates                         # [units][T·B][gate][VL]: tails of i, f, o and pre-activation of g; or NULL
    real *cells                         # [units][T·B][VL]

cdef struct LstmAdjoint:
    Lstm f                              # without x, h, h_n, c_n and packed weights
    const real *dh                      # (T, B, H)
    const real *dh_n                    # (B, H), or NULL: zeros
    const real *dc_n
    const real *w_x                     # [panels of D][gate, H][PW]
    const real *w_h                     # [panels of H][gate, H][PW]
    ix x_panels, h_panels
    real *abar                          # as gates, which it may be
    real *h                             # (T·B, H) in sorted rows
    real *dx                            # (T, B, D) or NULL
    real *dh0                           # (B, H)
    real *dc0
    real *hbar                          # (T, B, H) or NULL
    real *cbar

cdef struct Sums:                       # of one kind of input: x, or the states before each step
    ix columns, blocks                  # inputs, and blocks of them
    real *weights                       # [units][columns][gate][VL]

cdef struct WeightSums:
    Lstm f                              # x, h0 and the sorting
    const real *abar
    const real *h                       # (T·B, H) in sorted rows
    Sums x, recurrent
    real *bias                          # [units][gate][VL]


# ---- rows and vectors -----------------------------------------------------------------------------------------------

cdef inline void store_some(real *p, vf v, ix n) noexcept nogil:
    """The first n lanes, n ≤ VL."""
    cdef real spill[64]
    if n == VL:
        vstore(p, v)
    else:
        vstore(spill, v)
        memcpy(p, spill, n * sizeof(real))


cdef inline vf load_some(const real *p, ix n) noexcept nogil:
    """The first n lanes and zeros, n ≤ VL; zeros where there is none."""
    cdef real spill[64]
    if p is not NULL and n == VL:
        return vload(p)
    memset(spill, 0, sizeof(spill))
    if p is not NULL:
        memcpy(spill, p, n * sizeof(real))
    return vload(spill)


cdef inline void copy_row(real *dst, const real *src, ix n) noexcept nogil:
    """dst = src, or zeros where there is none."""
    if src is NULL:
        memset(dst, 0, n * sizeof(real))
    else:
        memcpy(dst, src, n * sizeof(real))


cdef inline const real *at(const real *a, ix i) noexcept nogil:
    """a + i, or NULL where there is no array."""
    if a is NULL:
        return NULL
    return a + i


cdef inline real *out_at(real *a, ix i) noexcept nogil:
    return <real *>at(a, i)


cdef inline vf sigma(vf tail) noexcept nogil:
    """σ(a) from σ(−|a|) with the sign of a; that sign may be a zero's."""
    cdef vf t = vabs(tail)
    return vsel_lt(vcopysign(vset1(1), tail), vset1(0), t, vset1(1) - t)


cdef inline vf sigma_grad(vf tail) noexcept nogil:
    cdef vf t = vabs(tail)
    return t * (vset1(1) - t)


cdef inline ix block_start(const Lstm *s, ix block) noexcept nogil:
    return block * s.batch // s.blocks


cdef inline ix still_running(const Lstm *s, ix start, ix rows, ix t) noexcept nogil:
    """Of the first `rows` rows from `start`, those with a step t."""
    while rows > 0 and s.lengths[start + rows - 1] <= t:
        rows -= 1
    return rows


# ---- forward --------------------------------------------------------------------------------------------------------

cdef struct Forward:                    # a task's scratch
    real *x                             # [chunk][D]
    real *z                             # [units][chunk][gate][VL]: pre-activations
    real *h                             # [2][rows][wide]: before and after a step
    real *c                             # [rows][wide]


cdef double forward_scratch(const Lstm *s) noexcept nogil:
    return (<double>s.chunk * s.inputs + <double>s.units * s.chunk * PW + 3. * s.rows * s.wide + 4 * GL) * sizeof(real)


cdef void set_forward(Forward *w, const Lstm *s, void *scratch) noexcept nogil:
    w.z = <real *>scratch
    w.h = w.z + s.units * s.chunk * PW
    w.c = w.h + 2 * s.rows * s.wide
    w.x = w.c + s.rows * s.wide


cdef void forward(void *args, ix block, Worker *worker) noexcept nogil:
    """IN x, packed weights, h0, c0; OUT h, h_n, c_n and, if asked for, gates and cells, of one block of rows."""
    cdef const Lstm *s = <const Lstm *>args
    cdef Forward w
    cdef ix start = block_start(s, block), rows = block_start(s, block + 1) - start
    cdef ix t = 0, end, n, m = rows, i
    cdef real *h
    set_forward(&w, s, worker.scratch)
    h = w.h
    # 0. the states before the first step, which are the last of rows without any
    for i in range(rows):
        memset(w.c + i * s.wide, 0, s.wide * sizeof(real))
        copy_row(h + i * s.wide, at(s.h0, s.order[start + i] * s.hidden), s.hidden)
        copy_row(w.c + i * s.wide, at(s.c0, s.order[start + i] * s.hidden), s.hidden)
        finish(s, &w, h, start, i)
    while t < s.steps:
        # 1. as many steps as a chunk holds: their inputs' part of the pre-activations, in one product
        n, end, m = 0, t, still_running(s, start, m, t)
        i = m
        while end < s.steps and n + i <= s.chunk:
            n = gather(s, &w, start, i, end, n)
            end += 1
            i = still_running(s, start, i, end)
        project(s, &w, n, worker)
        # 2. step by step
        n = 0
        while t < end:
            m = still_running(s, start, m, t)
            step(s, &w, h, w.h if h != w.h else w.h + s.rows * s.wide, start, m, t, n, worker)
            h = w.h if h != w.h else w.h + s.rows * s.wide
            for i in range(m, rows if s.h is not NULL else 0):
                memset(s.h + (t * s.batch + s.order[start + i]) * s.hidden, 0, s.hidden * sizeof(real))
            n += m
            t += 1
            for i in range(still_running(s, start, m, t) if t < s.steps else 0, m):
                finish(s, &w, h, start, i)
            if interrupted(worker):
                return


cdef ix gather(const Lstm *s, Forward *w, ix start, ix m, ix t, ix n) noexcept nogil:
    """Inputs of m rows at step t into the chunk from n; n after them."""
    cdef ix i
    for i in range(m):
        memcpy(w.x + (n + i) * s.inputs, s.x + (t * s.batch + s.order[start + i]) * s.inputs, s.inputs * sizeof(real))
    return n + m


cdef void project(const Lstm *s, Forward *w, ix n, Worker *worker) noexcept nogil:
    """z = x W_ihᵀ + b of n pairs."""
    cdef ix u, i
    cdef real *z
    for u in range(s.units):
        if s.slow and interrupted(worker):
            return
        z = w.z + u * s.chunk * PW
        for i in range(n):
            memcpy(z + i * PW, s.bias + u * PW, PW * sizeof(real))
        product(w.x, s.inputs, n, s.w_x + u * s.inputs * PW, s.inputs, z, PW)


cdef void step(const Lstm *s, Forward *w, const real *before, real *h, ix start, ix m, ix t, ix n, Worker *worker) noexcept nogil:
    """z += h[t−1] W_hhᵀ, the gates, c and h of m rows; their pre-activations lie in the chunk from n."""
    cdef ix u, i, row
    cdef real *z
    for u in range(s.units):
        if s.slow and interrupted(worker):
            return
        z = w.z + (u * s.chunk + n) * PW
        product(before, s.wide, m, s.w_h + u * s.hidden * PW, s.hidden, z, PW)
        for i in range(m):
            row = t * s.batch + start + i
            open_gates(s, u, z + i * PW, w.c + i * s.wide + u * VL, h + i * s.wide + u * VL, row,
                     out_at(s.h, (t * s.batch + s.order[start + i]) * s.hidden + u * VL))


cdef inline void open_gates(const Lstm *s, ix u, const real *z, real *c, real *h, ix row, real *out) noexcept nogil:
    """One vector of units of one row: i, f, o = σ(z), g = tanh(z), c = f ⊙ c + i ⊙ g, h = o ⊙ tanh(c)."""
    cdef vf zi = vload(z), zf = vload(z + VL), zg = vload(z + 2 * VL), zo = vload(z + 3 * VL), y
    cdef real *kept
    zi, zf, zo = vkeep_nan(zi, vtail(zi)), vkeep_nan(zf, vtail(zf)), vkeep_nan(zo, vtail(zo))
    y = vfma(sigma(zf), vload(c), sigma(zi) * vtanh(zg))
    vstore(c, y)
    if s.gates is not NULL:
        kept = s.gates + (u * s.steps * s.batch + row) * PW
        vstore(kept, zi)
        vstore(kept + VL, zf)
        vstore(kept + 2 * VL, zg)
        vstore(kept + 3 * VL, zo)
        vstore(s.cells + (u * s.steps * s.batch + row) * VL, y)
    y = sigma(zo) * vtanh(y)
    vstore(h, y)
    if out is not NULL:
        store_some(out, y, min(<ix>VL, s.hidden - u * VL))


cdef void finish(const Lstm *s, Forward *w, const real *h, ix start, ix i) noexcept nogil:
    """A row's last states go out."""
    cdef ix row = s.order[start + i]
    memcpy(s.h_n + row * s.hidden, h + i * s.wide, s.hidden * sizeof(real))
    memcpy(s.c_n + row * s.hidden, w.c + i * s.wide, s.hidden * sizeof(real))


# ---- adjoint --------------------------------------------------------------------------------------------------------

cdef struct Backward:                   # a task's scratch
    real *a                             # [rows + chunk][gate][wide]: ā of the step after, then of the chunk's
    real *hbar                          # [rows][h_panels·PW]
    real *cbar                          # [rows][wide]: c̄ ⊙ f of the step after
    real *dx                            # [chunk][PW]


cdef double backward_scratch(const LstmAdjoint *s) noexcept nogil:
    cdef const Lstm *f = &s.f
    cdef double wide = f.wide
    return ((f.rows + f.chunk) * 4 * wide + f.rows * (<double>s.h_panels * PW + wide) + f.chunk * PW + 4 * GL) * sizeof(real)


cdef void set_backward(Backward *w, const LstmAdjoint *s, void *scratch) noexcept nogil:
    w.dx = <real *>scratch
    w.hbar = w.dx + s.f.chunk * PW
    w.a = w.hbar + s.f.rows * s.h_panels * PW
    w.cbar = w.a + (s.f.rows + s.f.chunk) * 4 * s.f.wide


cdef void adjoint(void *args, ix block, Worker *worker) noexcept nogil:
    """IN dh, dh_n, dc_n, gates, cells, packed weights; OUT ā, h, dx, dh0, dc0 and h̄, c̄ where asked for, of one block."""
    cdef const LstmAdjoint *s = <const LstmAdjoint *>args
    cdef const Lstm *f = &s.f
    cdef Backward w
    cdef ix start = block_start(f, block), rows = block_start(f, block + 1) - start
    cdef ix t = f.steps, end, n, m, i
    cdef ix after = 0, there = 0, base              # rows that run at t + 1, and the pair where their ā begin
    set_backward(&w, s, worker.scratch)
    # 0. c̄ of the last states
    for i in range(rows):
        memset(w.cbar + i * f.wide, 0, f.wide * sizeof(real))
        copy_row(w.cbar + i * f.wide, at(s.dc_n, f.order[start + i] * f.hidden), f.hidden)
    while t > 0:
        # 2. step by step, as many as a chunk holds
        end, base, n, m = t, after, after, still_running(f, start, rows, t - 1)
        while t > 0 and n - base + m <= f.chunk:
            t -= 1
            seed(s, &w, start, m, after, t)
            pull(s, &w, after, there, worker)
            back(s, &w, start, m, t, n)
            clear(s, start + m, start + rows, t)
            after, there = m, n
            n += m
            m = still_running(f, start, rows, t - 1) if t > 0 else 0
            if interrupted(worker):
                return
        # 1. x̄ of the chunk, in one product
        if s.dx is not NULL:
            unproject(s, &w, start, rows, t, end, base, n - base, worker)
        memmove(w.a, w.a + there * 4 * f.wide, after * 4 * f.wide * sizeof(real))
        there = 0
    # 0. h̄ and c̄ of the states before the first step
    seed(s, &w, start, rows, after, -1)
    pull(s, &w, after, 0, worker)
    for i in range(rows):
        memcpy(s.dh0 + f.order[start + i] * f.hidden, w.hbar + i * s.h_panels * PW, f.hidden * sizeof(real))
        memcpy(s.dc0 + f.order[start + i] * f.hidden, w.cbar + i * f.wide, f.hidden * sizeof(real))


cdef void seed(const LstmAdjoint *s, Backward *w, ix start, ix m, ix after, ix t) noexcept nogil:
    """h̄ = the caller's dh[t] and, where t is the row's last step, dh_n."""
    cdef const Lstm *f = &s.f
    cdef ix i, j, row
    cdef const real *last
    cdef real *hbar
    for i in range(m):
        row, hbar = f.order[start + i], w.hbar + i * s.h_panels * PW
        memset(hbar, 0, s.h_panels * PW * sizeof(real))
        copy_row(hbar, at(s.dh if t >= 0 else NULL, (t * f.batch + row) * f.hidden), f.hidden)
        last = at(s.dh_n, row * f.hidden)
        if i >= after and last is not NULL:
            for j in range(f.hidden):
                hbar[j] += last[j]


cdef void pull(const LstmAdjoint *s, Backward *w, ix after, ix there, Worker *worker) noexcept nogil:
    """h̄ += ā[t+1] W_hh of the rows that run at t + 1."""
    cdef ix p, gate, H = s.f.hidden, wide = s.f.wide
    for p in range(s.h_panels):
        if s.f.slow and interrupted(worker):
            return
        for gate in range(4):
            product(w.a + there * 4 * wide + gate * wide, 4 * wide, after, s.w_h + (p * 4 + gate) * H * PW, H,
                    w.hbar + p * PW, s.h_panels * PW)


cdef void back(const LstmAdjoint *s, Backward *w, ix start, ix m, ix t, ix n) noexcept nogil:
    """ā of m rows at step t, into the chunk from n."""
    cdef const Lstm *f = &s.f
    cdef ix i, u, row, place, some, pairs = f.steps * f.batch
    cdef real *hbar
    cdef const real *before
    for i in range(m):
        row, place = t * f.batch + start + i, (t * f.batch + f.order[start + i]) * f.hidden
        hbar = w.hbar + i * s.h_panels * PW
        for u in range(f.units):
            some = min(<ix>VL, f.hidden - u * VL)
            if t > 0:
                before = f.cells + (u * pairs + row - f.batch) * VL
            else:
                before = at(f.c0, f.order[start + i] * f.hidden + u * VL)
            differentiate(s, f.gates + (u * pairs + row) * PW, f.cells + (u * pairs + row) * VL, before,
                          VL if t > 0 else some, hbar + u * VL, w.cbar + i * f.wide + u * VL,
                          w.a + (n + i) * 4 * f.wide + u * VL, f.wide,
                          out_at(s.abar, (u * pairs + row) * PW),
                          out_at(s.h, row * f.hidden + u * VL),
                          out_at(s.cbar, place + u * VL), some)
        if s.hbar is not NULL:
            memcpy(s.hbar + place, hbar, f.hidden * sizeof(real))


cdef inline void differentiate(const LstmAdjoint *s, const real *gates, const real *cell, const real *before, ix known,
                               const real *hbar, real *carry, real *a, ix wide, real *abar, real *h, real *cbar,
                               ix some) noexcept nogil:
    """One vector of units of one row and step.  `before` is c[t−1], of which `known` lanes may be read."""
    cdef vf zi = vload(gates), zf = vload(gates + VL), zo = vload(gates + 3 * VL), i = sigma(zi), f = sigma(zf), o = sigma(zo)
    cdef vf dg, dtanh, g = vtanh_slope(vload(gates + 2 * VL), &dg), tanh_c = vtanh_slope(vload(cell), &dtanh)
    cdef vf dh = vload(hbar), dc = vfma(dh * o, dtanh, vload(carry))
    cdef vf ai = dc * g * sigma_grad(zi), af = dc * load_some(before, known) * sigma_grad(zf)
    cdef vf ag = dc * i * dg, ao = dh * tanh_c * sigma_grad(zo)
    vstore(carry, dc * f)
    vstore(a, ai)
    vstore(a + wide, af)
    vstore(a + 2 * wide, ag)
    vstore(a + 3 * wide, ao)
    if abar is not NULL:
        vstore(abar, ai)
        vstore(abar + VL, af)
        vstore(abar + 2 * VL, ag)
        vstore(abar + 3 * VL, ao)
        store_some(h, o * tanh_c, some)
    if cbar is not NULL:
        store_some(cbar, dc, some)


cdef void clear(const LstmAdjoint *s, ix start, ix end, ix t) noexcept nogil:
    """Zeros for what lies behind a row's end."""
    cdef const Lstm *f = &s.f
    cdef ix i, u, row
    for i in range(start, end):
        row = t * f.batch + f.order[i]
        if s.abar is not NULL:
            for u in range(f.units):
                memset(s.abar + ((u * f.steps + t) * f.batch + i) * PW, 0, PW * sizeof(real))
        if s.dx is not NULL:
            memset(s.dx + row * f.inputs, 0, f.inputs * sizeof(real))
        if s.hbar is not NULL:
            memset(s.hbar + row * f.hidden, 0, f.hidden * sizeof(real))
            memset(s.cbar + row * f.hidden, 0, f.hidden * sizeof(real))


cdef void unproject(const LstmAdjoint *s, Backward *w, ix start, ix rows, ix first, ix end, ix base, ix n,
                    Worker *worker) noexcept nogil:
    """dx = ā W_ih of the steps [first, end), whose n pairs lie in the chunk from `base`, the last step first."""
    cdef const Lstm *f = &s.f
    cdef ix p, gate, t, i, m, k, some
    for p in range(s.x_panels):
        if f.slow and interrupted(worker):
            return
        memset(w.dx, 0, n * PW * sizeof(real))
        for gate in range(4):
            product(w.a + base * 4 * f.wide + gate * f.wide, 4 * f.wide, n, s.w_x + (p * 4 + gate) * f.hidden * PW, f.hidden,
                    w.dx, PW)
        some, k = min(<ix>PW, f.inputs - p * PW), 0
        for t in range(end - 1, first - 1, -1):
            m = still_running(f, start, rows, t)
            for i in range(m):
                memcpy(s.dx + (t * f.batch + f.order[start + i]) * f.inputs + p * PW, w.dx + (k + i) * PW, some * sizeof(real))
            k += m


# ---- sums over steps and rows -----------------------------------------------------------------------------------------

cdef void weight_sums(void *args, ix task, Worker *worker) noexcept nogil:
    """IN ā, x, h; OUT weights += Σ input ⊗ ā of a block of inputs and of units and, for the first of h, bias += Σ ā."""
    cdef const WeightSums *s = <const WeightSums *>args
    cdef ix pairs = s.f.steps * s.f.batch, k = 0, K, u, j, block = task % (s.x.blocks + s.recurrent.blocks)
    cdef ix unit = task // (s.x.blocks + s.recurrent.blocks) * SUM_UNITS, end = min(unit + SUM_UNITS, s.f.units)
    cdef bint recurrent = block >= s.x.blocks
    cdef const Sums *out = &s.recurrent if recurrent else &s.x
    cdef real *inputs = <real *>worker.scratch
    cdef const real *a
    cdef ix first, n
    block = block - s.x.blocks if recurrent else block
    first = block * out.columns // out.blocks
    n = (block + 1) * out.columns // out.blocks - first
    while k < pairs:
        K = min(<ix>SUM_STEPS, pairs - k)
        interleave(s, recurrent, k, K, first, n, inputs)
        for u in range(unit, end):
            a = s.abar + (u * pairs + k) * PW
            j = 0
            while j < n:
                tile_of(inputs + j * SUM_STEPS, 1, MR, a, K, out.weights + (u * out.columns + first + j) * PW, PW,
                        <int>min(<ix>MR, n - j))
                j += MR
            if recurrent and block == 0:
                add_up(a, K, s.bias + u * PW)
        k += K
        if interrupted(worker):
            return


cdef void interleave(const WeightSums *s, bint recurrent, ix k, ix K, ix first, ix n, real *inputs) noexcept nogil:
    """inputs[tile of columns][pair][MR] = those of the pairs [k, k + K); zeros behind a row's end, whatever lies there."""
    cdef const Lstm *f = &s.f
    cdef ix t = k // f.batch, i = k % f.batch, p, j
    cdef const real *src
    for p in range(K):
        if t >= f.lengths[i]:
            src = NULL
        elif not recurrent:
            src = f.x + (t * f.batch + f.order[i]) * f.inputs + first
        elif t > 0:
            src = s.h + (k + p - f.batch) * f.hidden + first
        else:
            src = at(f.h0, f.order[i] * f.hidden + first)
        j = 0
        while j + MR <= n:
            copy_row(inputs + j * SUM_STEPS + p * MR, at(src, j), MR)
            j += MR
        copy_row(inputs + j * SUM_STEPS + p * MR, at(src, j), n - j)
        i += 1
        if i == f.batch:
            t, i = t + 1, 0


cdef void add_up(const real *a, ix K, real *sums) noexcept nogil:
    """sums (PW,) += Σ_k a (K, PW)."""
    cdef ix k, j
    cdef vf v
    for j in range(4):
        v = vset1(0)
        for k in range(K):
            v = v + vload(a + k * PW + j * VL)
        vstore(sums + j * VL, vload(sums + j * VL) + v)


# ---- from arrays to the structs -------------------------------------------------------------------------------------

cdef real *data(cnp.ndarray a) noexcept:
    return NULL if a is None else <real *>cnp.PyArray_DATA(a)


def aligned(ix size, /):
    """An array of so many numbers that begins on a cache line: vectors that straddle two cost twice."""
    cdef cnp.ndarray raw = numbers(size + GL, False)
    cdef ix start = -<ix>cnp.PyArray_DATA(raw) // <ix>sizeof(real) % GL
    return raw[(start + GL) % GL:][:size]


def lstm_units(ix hidden, /):
    """Vectors of hidden units, and lanes of one."""
    return (hidden + VL - 1) // VL, VL


cdef cnp.ndarray pack_gates(cnp.ndarray W, ix H):
    """W (4H, K) as [units][K][gate][VL], zeros for what is beyond H."""
    cdef ix K = cnp.PyArray_DIM(W, 1), units = (H + VL - 1) // VL, u, gate, k, lane, some
    cdef cnp.ndarray packed = aligned(units * K * PW)
    cdef real *dst
    cdef const real *src
    for u in range(units):
        PyErr_CheckSignals()
        some = min(<ix>VL, H - u * VL)
        for gate in range(4):
            src, dst, k = data(W) + (gate * H + u * VL) * K, data(packed) + u * K * PW + gate * VL, 0
            while some == VL and k + VL <= K:
                vtranspose(src + k, K, dst + k * PW, PW)
                k += VL
            while k < K:
                for lane in range(VL):
                    dst[k * PW + lane] = src[lane * K + k] if lane < some else 0
                k += 1
    return packed


cdef cnp.ndarray pack_panels(cnp.ndarray W):
    """W (4H, N) as [panels of N][4H][PW], zeros for what is beyond N."""
    cdef ix K = cnp.PyArray_DIM(W, 0), N = cnp.PyArray_DIM(W, 1), panels = (N + PW - 1) // PW, p, k, some
    cdef cnp.ndarray packed = aligned(panels * K * PW)
    for p in range(panels):
        PyErr_CheckSignals()
        some = min(<ix>PW, N - p * PW)
        for k in range(K):
            memset(data(packed) + (p * K + k) * PW + some, 0, (PW - some) * sizeof(real))
            memcpy(data(packed) + (p * K + k) * PW, data(W) + k * N + p * PW, some * sizeof(real))
    return packed


cdef double seconds(double multiplications) noexcept:
    """A low estimate of what so many take."""
    return multiplications / (VL * 4e9)


cdef bint indices(cnp.ndarray a, ix size) noexcept:
    """Whether `a` is a contiguous array of so many indices."""
    return ranked(a, 1) and cnp.PyArray_TYPE(a) == cnp.NPY_INTP and cnp.PyArray_ISCARRAY_RO(a) and cnp.PyArray_SIZE(a) == size


cdef int expect_layer_of(cnp.ndarray w_ih, cnp.ndarray w_hh, double H, double D) except -1:
    expect(ranked(w_ih, 2) and holds(w_ih, 4 * H * D) and cnp.PyArray_DIM(w_ih, 1) == D and holds(w_hh, 4 * H * H))
    return 0


cdef int expect_kept(cnp.ndarray gates, cnp.ndarray cells, double pairs, ix H) except -1:
    cdef double size = pairs * ((H + VL - 1) // VL * VL)
    expect(holds(gates, 4 * size) and holds(cells, size))
    return 0


cdef void set_sizes(Lstm *s, ix steps, ix batch, ix inputs, ix hidden, cnp.ndarray order, cnp.ndarray lengths) noexcept:
    s.steps, s.batch, s.inputs, s.hidden = steps, batch, inputs, hidden
    s.units = (hidden + VL - 1) // VL
    s.wide = s.units * VL + GL                      # not a power of two: rows in cache sets of their own
    cdef ix rows = FEW_ROWS if batch <= FEW_ROWS * MANY_BLOCKS else MANY_ROWS
    s.blocks = (batch + rows - 1) // rows
    s.rows = min(batch, rows)
    s.chunk = max(s.rows, min(<ix>CHUNK_ROWS, CHUNK_BYTES // (4 * s.wide * <ix>sizeof(real))))
    s.slow = seconds(4. * s.rows * hidden * (hidden + inputs)) > 2e-3
    s.order, s.lengths = <ix *>cnp.PyArray_DATA(order), <ix *>cnp.PyArray_DATA(lengths)


def lstm(cnp.ndarray x, cnp.ndarray w_ih, cnp.ndarray w_hh, cnp.ndarray bias, cnp.ndarray h0, cnp.ndarray c0,
         cnp.ndarray order, cnp.ndarray lengths, cnp.ndarray h, cnp.ndarray h_n, cnp.ndarray c_n,
         cnp.ndarray gates, cnp.ndarray cells, /):
    """IN all C-contiguous, h0, c0 or None, rows sorted; OUT h, h_n, c_n, and gates and cells or None."""
    cdef Lstm s
    expect(ranked(x, 3) and ranked(w_hh, 2))
    cdef ix H = cnp.PyArray_DIM(w_hh, 1), B = cnp.PyArray_DIM(x, 1)
    cdef double states = <double>B * H, steps = cnp.PyArray_DIM(x, 0)
    expect_layer_of(w_ih, w_hh, H, cnp.PyArray_DIM(x, 2))
    expect(holds(x, steps * B * cnp.PyArray_DIM(x, 2)) and holds(bias, 4. * H) and ranked(bias, 2) and may_hold(h0, states)
           and may_hold(c0, states) and indices(order, B) and indices(lengths, B) and may_hold(h, steps * states)
           and holds(h_n, states) and holds(c_n, states) and (gates is None) == (cells is None))
    if gates is not None:
        expect_kept(gates, cells, steps * B, H)
    set_sizes(&s, cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), cnp.PyArray_DIM(x, 2), H, order, lengths)
    cdef cnp.ndarray w_x = pack_gates(w_ih, H), w_h = pack_gates(w_hh, H), b = pack_gates(bias, H)
    s.x, s.h0, s.c0, s.w_x, s.w_h, s.bias = data(x), data(h0), data(c0), data(w_x), data(w_h), data(b)
    s.h, s.h_n, s.c_n, s.gates, s.cells = data(h), data(h_n), data(c_n), data(gates), data(cells)
    run(forward, &s, s.blocks, forward_scratch(&s), seconds(4. * s.steps * s.batch * H * (H + s.inputs)))


def lstm_adjoint(cnp.ndarray dh, cnp.ndarray dh_n, cnp.ndarray dc_n, cnp.ndarray w_ih, cnp.ndarray w_hh, cnp.ndarray c0,
                 cnp.ndarray order, cnp.ndarray lengths, cnp.ndarray gates, cnp.ndarray cells, cnp.ndarray abar,
                 cnp.ndarray h, cnp.ndarray dx, cnp.ndarray dh0, cnp.ndarray dc0, cnp.ndarray hbar, cnp.ndarray cbar, /):
    """IN dh, dh_n and dc_n or None, what `lstm` kept; OUT abar, h, dx together or None, dh0, dc0, hbar and cbar or None."""
    cdef LstmAdjoint s
    expect(ranked(dh, 3) and ranked(w_ih, 2) and ranked(w_hh, 2))
    cdef ix H = cnp.PyArray_DIM(w_hh, 1), D = cnp.PyArray_DIM(w_ih, 1), B = cnp.PyArray_DIM(dh, 1)
    cdef double states = <double>B * H, steps = cnp.PyArray_DIM(dh, 0)
    expect_layer_of(w_ih, w_hh, H, D)
    expect_kept(gates, cells, steps * B, H)
    expect(holds(dh, steps * states) and may_hold(dh_n, states) and may_hold(dc_n, states) and may_hold(c0, states)
           and indices(order, B) and indices(lengths, B) and holds(dh0, states) and holds(dc0, states)
           and may_hold(hbar, steps * states) and may_hold(cbar, steps * states) and (hbar is None) == (cbar is None)
           and (abar is None) == (h is None) == (dx is None))
    if abar is not None:
        expect(holds(abar, cnp.PyArray_SIZE(gates)) and holds(h, steps * states) and holds(dx, steps * B * D))
    set_sizes(&s.f, cnp.PyArray_DIM(dh, 0), cnp.PyArray_DIM(dh, 1), D, H, order, lengths)
    cdef cnp.ndarray w_x = pack_panels(w_ih), w_h = pack_panels(w_hh)
    s.x_panels, s.h_panels = (D + PW - 1) // PW, (H + PW - 1) // PW
    s.f.c0, s.f.gates, s.f.cells = data(c0), data(gates), data(cells)
    s.dh, s.dh_n, s.dc_n, s.w_x, s.w_h = data(dh), data(dh_n), data(dc_n), data(w_x), data(w_h)
    s.abar, s.h, s.dx, s.dh0, s.dc0, s.hbar, s.cbar = data(abar), data(h), data(dx), data(dh0), data(dc0), data(hbar), data(cbar)
    run(adjoint, &s, s.f.blocks, backward_scratch(&s), seconds(4. * s.f.steps * s.f.batch * H * (H + (0 if dx is None else D))))


cdef cnp.ndarray clear_sums(Sums *s, ix units, ix columns):
    """Zeros that the sums go to."""
    cdef cnp.ndarray weights = aligned(units * columns * PW)
    cdef ix u
    s.columns, s.blocks, s.weights = columns, (columns + SUM_COLUMNS - 1) // SUM_COLUMNS, data(weights)
    for u in range(units):
        PyErr_CheckSignals()
        memset(s.weights + u * columns * PW, 0, columns * PW * sizeof(real))
    return weights


def lstm_weight_sums(cnp.ndarray abar, cnp.ndarray x, cnp.ndarray h, cnp.ndarray h0, cnp.ndarray order, cnp.ndarray lengths,
                     ix hidden, /):
    """Σ ā ⊗ x, Σ ā ⊗ h[t−1] and Σ ā, as [units][columns][gate][VL]."""
    cdef WeightSums s
    expect(ranked(x, 3))
    cdef double pairs = <double>cnp.PyArray_DIM(x, 0) * cnp.PyArray_DIM(x, 1)
    expect(hidden >= 0 and holds(x, pairs * cnp.PyArray_DIM(x, 2)) and holds(h, pairs * hidden)
           and holds(abar, pairs * 4 * ((hidden + VL - 1) // VL * VL)) and may_hold(h0, <double>cnp.PyArray_DIM(x, 1) * hidden)
           and indices(order, cnp.PyArray_DIM(x, 1)) and indices(lengths, cnp.PyArray_DIM(x, 1)))
    set_sizes(&s.f, cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), cnp.PyArray_DIM(x, 2), hidden, order, lengths)
    s.f.x, s.f.h0, s.abar, s.h = data(x), data(h0), data(abar), data(h)
    cdef ix units = s.f.units, inputs = s.f.inputs
    cdef cnp.ndarray w_x = clear_sums(&s.x, units, inputs), w_h = clear_sums(&s.recurrent, units, hidden), bias = aligned(units * PW)
    s.bias = data(bias)
    memset(s.bias, 0, units * PW * sizeof(real))
    run(weight_sums, &s, (s.x.blocks + s.recurrent.blocks) * ((units + SUM_UNITS - 1) // SUM_UNITS),
        SUM_STEPS * (SUM_COLUMNS + MR) * <double>sizeof(real), seconds(4. * s.f.steps * s.f.batch * hidden * (inputs + hidden)))
    return w_x, w_h, bias
