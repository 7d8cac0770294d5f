# The LSTM forwards: docs/derivations.md §4.1, the equations of a, i, f, g, o, c and h.
#
# A chunk is as many consecutive steps as CHUNK_ENTRIES allow: the product of their inputs with W_ih
# does not depend on the states, so it is one product for the chunk.  The products with W_hh are one
# for each step.
#
# needs: product, PW (_gemm.pxi)
# needs: copy_or_zero, offset, out_offset, store_some (_rows.pxi)
# needs: first_row, Lstm, sigma, still_running (_lstm_problem.pxi)

cdef struct ForwardTask:                # a task's rows, where they are in time, and its scratch
    ix start, rows                      # sorted rows from `start` on
    ix t, running                       # the step, and how many of the rows have it
    real *x                             # [chunk][x_stride]
    real *z                             # [unit vector][chunk][gate][VL]: pre-activations
    real *h                             # [rows][stride]: h after the last step done
    real *h_next                        # [rows][stride]: h after step t
    real *c                             # [rows][stride]


cdef double forward_scratch(const Lstm *s) noexcept nogil:
    cdef double reals = <double>s.chunk * s.x_stride + <double>s.unit_vectors * s.chunk * PW
    return (reals + 3. * s.task_rows * s.stride + 4 * GL) * sizeof(real)


cdef void set_forward_task(ForwardTask *w, const Lstm *s, ix task, void *scratch) noexcept nogil:
    w.start = first_row(s, task)
    w.rows = first_row(s, task + 1) - w.start
    w.t, w.running = 0, w.rows
    w.z = <real *>scratch
    w.h = w.z + s.unit_vectors * s.chunk * PW
    w.h_next = w.h + s.task_rows * s.stride
    w.c = w.h_next + s.task_rows * s.stride
    w.x = w.c + s.task_rows * s.stride


cdef void lstm_forward(void *args, ix task, Worker *worker) noexcept nogil:
    """OUT h, h_n, c_n and, unless NULL, gates and cells of a task's rows."""
    cdef const Lstm *s = <const Lstm *>args
    cdef ForwardTask w
    cdef ix entry, entries, end
    set_forward_task(&w, s, task, worker.scratch)
    # 0. the states before the first step
    load_initial_states(s, &w)
    while w.t < s.steps:
        # 1. a chunk of steps: what their inputs add to the pre-activations, in one product
        w.running = still_running(s, w.start, w.running, w.t)
        entries = gather_inputs(s, &w, &end)
        project(s, &w, entries, worker)
        # 2. step by step
        entry = 0
        while w.t < end:
            w.running = still_running(s, w.start, w.running, w.t)
            lstm_step(s, &w, entry, worker)
            entry += w.running
            finish_step(s, &w)
            if interrupted(worker):
                return


cdef void load_initial_states(const Lstm *s, ForwardTask *w) noexcept nogil:
    """OUT h and c before the first step.

    Rows without any step end with these states, so they are stored as last states at once.
    """
    cdef ix i, row
    for i in range(w.rows):
        row = s.order[w.start + i] * s.hidden
        memset(w.c + i * s.stride, 0, s.stride * sizeof(real))
        copy_or_zero(w.h + i * s.stride, offset(s.h0, row), s.hidden)
        copy_or_zero(w.c + i * s.stride, offset(s.c0, row), s.hidden)
        store_last_state(s, w, i)


cdef ix gather_inputs(const Lstm *s, ForwardTask *w, ix *end) noexcept nogil:
    """OUT x of the chunk that begins with step t, and its end; the number of its entries."""
    cdef ix entries = 0, t = w.t, running = w.running, i
    cdef const real *src
    while t < s.steps and entries + running <= s.chunk:
        for i in range(running):
            src = s.x + (t * s.batch + s.order[w.start + i]) * s.inputs
            memcpy(w.x + (entries + i) * s.x_stride, src, s.inputs * sizeof(real))
        entries += running
        t += 1
        running = still_running(s, w.start, running, t)
    end[0] = t
    return entries


cdef void project(const Lstm *s, ForwardTask *w, ix entries, Worker *worker) noexcept nogil:
    """OUT z = x W_ihᵀ + b of the chunk's entries."""
    cdef ix u, i
    cdef real *z
    for u in range(s.unit_vectors):
        if s.slow and interrupted(worker):
            return
        z = w.z + u * s.chunk * PW
        for i in range(entries):
            memcpy(z + i * PW, s.bias + u * PW, PW * sizeof(real))
        multiply_unit(s, w.x, s.x_stride, entries, s.w_x + u * s.inputs * PW, s.inputs, z)


cdef inline void multiply_unit(const Lstm *s, const real *a, ix lda, ix rows, const real *w, ix K,
                               real *z) noexcept nogil:
    """OUT z (rows, PW) += a (rows, K) @ w, the panels of one vector of hidden units."""
    cdef ix at = 0
    while at < PW:
        product(a, lda, rows, w + at * K, K, z + at, PW, s.panel)
        at += s.panel


cdef void lstm_step(const Lstm *s, ForwardTask *w, ix entry, Worker *worker) noexcept nogil:
    """z += h W_hhᵀ, and from it c and h_next of the running rows.

    Their pre-activations lie in the chunk from its `entry`-th on.
    """
    cdef ix u, i, at_unit, row
    cdef real *z
    for u in range(s.unit_vectors):
        if s.slow and interrupted(worker):
            return
        z = w.z + (u * s.chunk + entry) * PW
        multiply_unit(s, w.h, s.stride, w.running, s.w_h + u * s.hidden * PW, s.hidden, z)
        for i in range(w.running):
            row = w.t * s.batch + w.start + i
            update_cell(s, u, row, z + i * PW, w.c + i * s.stride + u * VL)
        for i in range(w.running):
            at_unit, row = i * s.stride + u * VL, w.t * s.batch + s.order[w.start + i]
            update_hidden(s, u, z + i * PW, w.c + at_unit, w.h_next + at_unit,
                          out_offset(s.h, row * s.hidden + u * VL))


cdef inline void update_cell(const Lstm *s, ix u, ix entry, real *z, real *c) noexcept nogil:
    """OUT c = f ⊙ c + i ⊙ g, and o in the place of its z, with i, f, o = σ(z) and g = tanh(z).

    All are one vector of hidden units of one entry.
    """
    cdef vf zi = vload(z), zf = vload(z + VL), zg = vload(z + 2 * VL), zo = vload(z + 3 * VL), y
    cdef real *kept
    zi, zf, zo = vkeep_nan(zi, vtail(zi)), vkeep_nan(zf, vtail(zf)), vkeep_nan(zo, vtail(zo))
    y = vfma(sigma(zf), vload(c), sigma(zi) * vtanh(zg))
    vstore(c, y)
    vstore(z + 3 * VL, sigma(zo))
    if s.gates is not NULL:
        kept = s.gates + (u * s.steps * s.batch + entry) * PW
        vstore(kept, zi)
        vstore(kept + VL, zf)
        vstore(kept + 2 * VL, zg)
        vstore(kept + 3 * VL, zo)
        vstore(s.cells + (u * s.steps * s.batch + entry) * VL, y)


cdef inline void update_hidden(const Lstm *s, ix u, const real *z, const real *c,
                               real *h, real *out) noexcept nogil:
    """OUT h = o ⊙ tanh(c); `out` is where h goes in the result, or NULL.

    This is not done in one go with c, for which it would have to wait: no core looks far enough
    ahead to begin with the next row meanwhile.
    """
    cdef vf y = vload(z + 3 * VL) * vtanh(vload(c))
    vstore(h, y)
    if out is not NULL:
        store_some(out, y, min(<ix>VL, s.hidden - u * VL))


cdef void finish_step(const Lstm *s, ForwardTask *w) noexcept nogil:
    """Write zeros for rows that have ended, store the last states of rows that end with step t, and
    go on to step t + 1."""
    cdef ix i, still
    w.h, w.h_next = w.h_next, w.h
    if s.h is not NULL:
        for i in range(w.running, w.rows):
            memset(s.h + (w.t * s.batch + s.order[w.start + i]) * s.hidden, 0,
                   s.hidden * sizeof(real))
    w.t += 1
    still = still_running(s, w.start, w.running, w.t) if w.t < s.steps else 0
    for i in range(still, w.running):
        store_last_state(s, w, i)


cdef void store_last_state(const Lstm *s, ForwardTask *w, ix i) noexcept nogil:
    cdef ix row = s.order[w.start + i]
    memcpy(s.h_n + row * s.hidden, w.h + i * s.stride, s.hidden * sizeof(real))
    memcpy(s.c_n + row * s.hidden, w.c + i * s.stride, s.hidden * sizeof(real))
