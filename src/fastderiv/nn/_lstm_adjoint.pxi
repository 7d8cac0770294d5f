# The LSTM backwards: docs/derivations.md §4.1, the equations of h̄, c̄, ā and x̄.
#
# The parts have the numbers of _lstm_forward.pxi, in reverse order.  Of the products, only W_hhᵀ ā
# must be formed step by step; x̄ is one product for each chunk.
#
# needs: product, PW (_gemm.pxi)
# needs: copy_or_zero, load_some, offset, out_offset, store_some (_rows.pxi)
# needs: first_row, Lstm, sigma, sigma_grad, still_running (_lstm_problem.pxi)

cdef struct LstmAdjoint:
    Lstm f                              # sizes, c0, gates and cells; no inputs, results or weights
    const real *dh                      # (T, B, H)
    const real *dh_n                    # (B, H), or NULL: zeros
    const real *dc_n                    # the same
    const real *w_x                     # [panel of D][gate, H][panel]
    const real *w_h                     # [panel of H][gate, H][panel]
    ix x_panels, h_panels
    real *abar                          # as gates, which it may be; or NULL
    real *h                             # [entry][H], or NULL
    real *dx                            # (T, B, D), or NULL
    real *dh0                           # (B, H)
    real *dc0                           # (B, H)
    real *hbar                          # (T, B, H), or NULL
    real *cbar                          # (T, B, H), or NULL


cdef struct AdjointTask:                # a task's rows, where they are in time, and its scratch
    ix start, rows                      # sorted rows from `start` on
    ix t, running                       # the step, and how many of the rows have it
    ix later_running                    # the number of rows that have step t + 1
    ix later_at                         # the entry of `a` where their ā begin
    # ā of the step after the chunk, then of the chunk, its last step first
    real *a                             # [rows + chunk][gate][stride]
    real *hbar                          # [rows][h_panels·panel]
    real *carry                         # [rows][stride]: c̄ ⊙ f of step t + 1
    real *dx                            # [chunk][panel]


cdef struct UnitVector:                 # one vector of hidden units of one entry
    const real *gates                   # what the forward pass kept: [gate][VL]
    const real *cell                    # c
    const real *cell_before             # c of the step before, or NULL: zeros
    ix lanes                            # lanes that are hidden units
    ix lanes_before                     # lanes of cell_before that may be read
    const real *hbar
    real *carry                         # IN c̄ ⊙ f of the step after, OUT of this one
    real *a                             # OUT ā, its gates `stride` apart
    ix stride
    real *abar                          # OUT ā as [gate][VL], or NULL
    real *h                             # OUT h, if abar is not NULL
    real *cbar                          # OUT c̄, or NULL


cdef double adjoint_scratch(const LstmAdjoint *s) noexcept nogil:
    cdef const Lstm *f = &s.f
    cdef double stride = f.stride, rows = f.task_rows
    cdef double reals = (rows + f.chunk) * 4 * stride + rows * (<double>s.h_panels * f.panel + stride)
    return (reals + f.chunk * f.panel + 4 * GL) * sizeof(real)


cdef void set_adjoint_task(AdjointTask *w, const LstmAdjoint *s, ix task,
                           void *scratch) noexcept nogil:
    cdef const Lstm *f = &s.f
    w.start = first_row(f, task)
    w.rows = first_row(f, task + 1) - w.start
    w.t, w.later_running, w.later_at = f.steps, 0, 0
    w.dx = <real *>scratch
    w.hbar = w.dx + f.chunk * f.panel
    w.a = w.hbar + f.task_rows * s.h_panels * f.panel
    w.carry = w.a + (f.task_rows + f.chunk) * 4 * f.stride


cdef void lstm_backward(void *args, ix task, Worker *worker) noexcept nogil:
    """OUT dh0, dc0 and, unless NULL, ā, h, dx, h̄ and c̄ of a task's rows."""
    cdef const LstmAdjoint *s = <const LstmAdjoint *>args
    cdef const Lstm *f = &s.f
    cdef AdjointTask w
    cdef ix end, entry, chunk_at
    set_adjoint_task(&w, s, task, worker.scratch)
    # 0. c̄ of the last states
    load_last_adjoints(s, &w)
    while w.t > 0:
        # 2. step by step, as many as a chunk holds
        end = w.t
        chunk_at = entry = w.later_running
        w.running = still_running(f, w.start, w.rows, w.t - 1)
        while w.t > 0 and entry - chunk_at + w.running <= f.chunk:
            w.t -= 1
            adjoint_step(s, &w, entry, worker)
            w.later_running, w.later_at = w.running, entry
            entry += w.running
            w.running = still_running(f, w.start, w.rows, w.t - 1) if w.t > 0 else 0
            if interrupted(worker):
                return
        # 1. x̄ of the chunk, in one product
        if s.dx is not NULL:
            input_adjoints(s, &w, end, chunk_at, entry - chunk_at, worker)
        memmove(w.a, w.a + w.later_at * 4 * f.stride,
                w.later_running * 4 * f.stride * sizeof(real))
        w.later_at = 0
    # 0. h̄ and c̄ of the states before the first step
    w.t, w.running = -1, w.rows
    seed_hbar(s, &w)
    add_later_adjoints(s, &w, worker)
    store_initial_adjoints(s, &w)


cdef void load_last_adjoints(const LstmAdjoint *s, AdjointTask *w) noexcept nogil:
    cdef const Lstm *f = &s.f
    cdef ix i
    for i in range(w.rows):
        memset(w.carry + i * f.stride, 0, f.stride * sizeof(real))
        copy_or_zero(w.carry + i * f.stride, offset(s.dc_n, f.order[w.start + i] * f.hidden),
                     f.hidden)


cdef void store_initial_adjoints(const LstmAdjoint *s, AdjointTask *w) noexcept nogil:
    cdef const Lstm *f = &s.f
    cdef ix i, row
    for i in range(w.rows):
        row = f.order[w.start + i]
        memcpy(s.dh0 + row * f.hidden, w.hbar + i * s.h_panels * f.panel, f.hidden * sizeof(real))
        memcpy(s.dc0 + row * f.hidden, w.carry + i * f.stride, f.hidden * sizeof(real))


cdef void adjoint_step(const LstmAdjoint *s, AdjointTask *w, ix entry,
                       Worker *worker) noexcept nogil:
    """OUT h̄, c̄ and ā of step t; ā of its rows lie in `a` from the given entry on."""
    seed_hbar(s, w)
    add_later_adjoints(s, w, worker)
    gate_adjoints(s, w, entry)
    zero_behind_ends(s, w)


cdef void seed_hbar(const LstmAdjoint *s, AdjointTask *w) noexcept nogil:
    """h̄ = the caller's dh[t], and dh_n where t is the row's last step."""
    cdef const Lstm *f = &s.f
    cdef ix i, j, row
    cdef const real *last
    cdef real *hbar
    for i in range(w.running):
        row, hbar = f.order[w.start + i], w.hbar + i * s.h_panels * f.panel
        memset(hbar, 0, s.h_panels * f.panel * sizeof(real))
        copy_or_zero(hbar, offset(s.dh if w.t >= 0 else NULL, (w.t * f.batch + row) * f.hidden),
                     f.hidden)
        last = offset(s.dh_n, row * f.hidden)
        if i >= w.later_running and last is not NULL:
            for j in range(f.hidden):
                hbar[j] += last[j]


cdef void add_later_adjoints(const LstmAdjoint *s, AdjointTask *w, Worker *worker) noexcept nogil:
    """h̄ += ā[t+1] W_hh of the rows that have step t + 1."""
    cdef ix p, gate, H = s.f.hidden, P = s.f.panel, row = 4 * s.f.stride
    cdef const real *a
    for p in range(s.h_panels):
        if s.f.slow and interrupted(worker):
            return
        for gate in range(4):
            a = w.a + w.later_at * row + gate * s.f.stride
            product(a, row, w.later_running, s.w_h + (p * 4 + gate) * H * P, H,
                    w.hbar + p * P, s.h_panels * P, P)


cdef void gate_adjoints(const LstmAdjoint *s, AdjointTask *w, ix entry) noexcept nogil:
    """OUT ā and c̄ of the running rows at step t.

    What the forward pass kept of a vector of hidden units lies together for all rows, and far from
    the next vector's, which is fetched meanwhile.
    """
    cdef const Lstm *f = &s.f
    cdef ix i, u, row, at_row, entries = f.steps * f.batch
    cdef UnitVector v
    v.stride = f.stride
    for u in range(f.unit_vectors):
        for i in range(w.running):
            row = w.t * f.batch + w.start + i
            at_row = (w.t * f.batch + f.order[w.start + i]) * f.hidden
            v.gates = f.gates + (u * entries + row) * PW
            v.cell = f.cells + (u * entries + row) * VL
            v.lanes = v.lanes_before = min(<ix>VL, f.hidden - u * VL)
            if u + 1 < f.unit_vectors:
                prefetch_unit(v.gates + entries * PW, v.cell + entries * VL)
            if w.t > 0:
                v.cell_before, v.lanes_before = v.cell - f.batch * VL, VL
            else:
                v.cell_before = offset(f.c0, f.order[w.start + i] * f.hidden + u * VL)
            v.hbar = w.hbar + i * s.h_panels * f.panel + u * VL
            v.carry = w.carry + i * f.stride + u * VL
            v.a = w.a + (entry + i) * 4 * f.stride + u * VL
            v.abar = out_offset(s.abar, (u * entries + row) * PW)
            v.h = out_offset(s.h, row * f.hidden + u * VL)
            v.cbar = out_offset(s.cbar, at_row + u * VL)
            differentiate(&v)
    for i in range(w.running if s.hbar is not NULL else 0):
        at_row = (w.t * f.batch + f.order[w.start + i]) * f.hidden
        memcpy(s.hbar + at_row, w.hbar + i * s.h_panels * f.panel, f.hidden * sizeof(real))


cdef inline void prefetch_unit(const real *gates, const real *cell) noexcept nogil:
    cdef ix k = 0
    vprefetch(cell)
    while k < PW:
        vprefetch(gates + k)
        k += GL


cdef inline void differentiate(const UnitVector *v) noexcept nogil:
    cdef vf zi = vload(v.gates), zf = vload(v.gates + VL), zo = vload(v.gates + 3 * VL)
    cdef vf i = sigma(zi), f = sigma(zf), o = sigma(zo)
    cdef vf dg, dtanh, g = vtanh_slope(vload(v.gates + 2 * VL), &dg)
    cdef vf tanh_c = vtanh_slope(vload(v.cell), &dtanh)
    cdef vf dh = vload(v.hbar), dc = vfma(dh * o, dtanh, vload(v.carry))
    cdef vf c_before = load_some(v.cell_before, v.lanes_before)
    cdef vf ai = dc * g * sigma_grad(zi), af = dc * c_before * sigma_grad(zf)
    cdef vf ag = dc * i * dg, ao = dh * tanh_c * sigma_grad(zo)
    vstore(v.carry, dc * f)
    vstore(v.a, ai)
    vstore(v.a + v.stride, af)
    vstore(v.a + 2 * v.stride, ag)
    vstore(v.a + 3 * v.stride, ao)
    if v.abar is not NULL:
        vstore(v.abar, ai)
        vstore(v.abar + VL, af)
        vstore(v.abar + 2 * VL, ag)
        vstore(v.abar + 3 * VL, ao)
        store_some(v.h, o * tanh_c, v.lanes)
    if v.cbar is not NULL:
        store_some(v.cbar, dc, v.lanes)


cdef void zero_behind_ends(const LstmAdjoint *s, AdjointTask *w) noexcept nogil:
    """OUT zeros in all results at step t, for rows that have ended before it."""
    cdef const Lstm *f = &s.f
    cdef ix i, u, row
    for i in range(w.start + w.running, w.start + w.rows):
        row = w.t * f.batch + f.order[i]
        if s.abar is not NULL:
            for u in range(f.unit_vectors):
                memset(s.abar + ((u * f.steps + w.t) * f.batch + i) * PW, 0, PW * sizeof(real))
        if s.dx is not NULL:
            memset(s.dx + row * f.inputs, 0, f.inputs * sizeof(real))
        if s.hbar is not NULL:
            memset(s.hbar + row * f.hidden, 0, f.hidden * sizeof(real))
            memset(s.cbar + row * f.hidden, 0, f.hidden * sizeof(real))


cdef void input_adjoints(const LstmAdjoint *s, AdjointTask *w, ix end, ix chunk_at, ix entries,
                         Worker *worker) noexcept nogil:
    """OUT dx = ā W_ih of the chunk, whose steps are [t, end) and whose ā begin at `chunk_at`."""
    cdef const Lstm *f = &s.f
    cdef ix p, gate, P = f.panel, row = 4 * f.stride
    for p in range(s.x_panels):
        if f.slow and interrupted(worker):
            return
        memset(w.dx, 0, entries * P * sizeof(real))
        for gate in range(4):
            product(w.a + chunk_at * row + gate * f.stride, row, entries,
                    s.w_x + (p * 4 + gate) * f.hidden * P, f.hidden, w.dx, P, P)
        scatter_dx(s, w, end, p)


cdef void scatter_dx(const LstmAdjoint *s, AdjointTask *w, ix end, ix p) noexcept nogil:
    """OUT the columns of dx that panel p holds."""
    cdef const Lstm *f = &s.f
    cdef ix P = f.panel, columns = min(P, f.inputs - p * P), entry = 0, t, i, running
    cdef real *dst
    for t in range(end - 1, w.t - 1, -1):
        running = still_running(f, w.start, w.rows, t)
        for i in range(running):
            dst = s.dx + (t * f.batch + f.order[w.start + i]) * f.inputs + p * P
            memcpy(dst, w.dx + (entry + i) * P, columns * sizeof(real))
        entry += running
