# The LSTM's problem: sizes, packed weights and the order of sequences (docs/derivations.md §4.1).
#
#     _lstm_forward.pxi         a task carries up to TASK_ROWS sequences through all of time:
#                               sequences never wait for each other
#     _lstm_adjoint.pxi         the same tasks backwards: the adjoints of the gates' pre-activations
#                               ā, and from them h̄, c̄ and x̄
#     _lstm_weight_sums.pxi W̄ = Σ ā ⊗ input over all steps and sequences: a task is a part of W̄
#
# A row is a sequence of the batch.  Rows are sorted by descending length, so that the rows that
# still run at a step are the first ones.  An entry is one step of one sorted row, number t·batch +
# row.  What the forward pass keeps for the adjoint, and ā, lie as [unit vector][entry][gate][VL]:
# they are written in one piece, and read as a panel.
#
# needs: aligned_array, expect, holds, ranked, reals_of (_arrays.pxi)
# needs: PW (_gemm.pxi)

cdef enum:
    # Rows of a task.  Each step reads all of W_hh once per task, so tasks have more of them where it
    # does not fit into the L2 cache, whose size in bytes is taken to be this.
    TASK_ROWS = 12
    LARGE_TASK_ROWS = 24
    CACHED_WEIGHTS = 1 << 20
    # A batch that makes no more than SMALL_TASKS tasks of SMALL_TASK_ROWS rows is cut into these.
    # They keep more threads busy, and cost at most a twentieth more than large ones.
    SMALL_TASK_ROWS = 6
    SMALL_TASKS = 8
    CHUNK_ENTRIES = 48                  # entries whose inputs are projected in one product
    CHUNK_BYTES = 1 << 19               # of their pre-activations, unless one step takes more


cdef struct Lstm:
    ix steps, batch, inputs, hidden
    ix unit_vectors                     # vectors that hold the hidden units
    ix stride, x_stride                 # reals between rows of hidden units, or inputs, in scratch
    ix panel                            # columns of a panel of weights: two vectors or four
    ix tasks, task_rows                 # tasks; the most rows of one
    ix chunk                            # the most entries projected at once
    bint slow                           # a step takes milliseconds: it looks for signals itself
    const ix *order                     # the batch's row at a sorted position
    const ix *lengths                   # sorted, descending
    const real *x                       # (T, B, D)
    const real *h0                      # (B, H), or NULL: zeros
    const real *c0                      # the same
    const real *w_x                     # [unit vector][panel][D][gates of a panel][VL]
    const real *w_h                     # [unit vector][panel][H][gates of a panel][VL]
    const real *bias                    # [unit vector][gate][VL]
    real *h                             # (T, B, H), or NULL
    real *h_n                           # (B, H)
    real *c_n                           # (B, H)
    # what the adjoint needs, or NULL: `vtail` of i, f and o, the pre-activation of g (§4.2); and c
    real *gates                         # [unit vector][entry][gate][VL]
    real *cells                         # [unit vector][entry][VL]


# ---- σ and σ' from what the forward pass keeps: §4.2 ---------------------------------------------

cdef inline vf sigma(vf tail) noexcept nogil:
    """σ(a) from `tail`, which is σ(−|a|) with the sign of a; a zero has a sign, too."""
    cdef vf t = vabs(tail)
    return vsel_lt(vcopysign(vset1(1), tail), vset1(0), t, vset1(1) - t)


cdef inline vf sigma_grad(vf tail) noexcept nogil:
    cdef vf t = vabs(tail)
    return t * (vset1(1) - t)


# ---- which rows a task has, and which of them still run ------------------------------------------

cdef inline ix first_row(const Lstm *s, ix task) noexcept nogil:
    return task * s.batch // s.tasks


cdef inline ix still_running(const Lstm *s, ix start, ix rows, ix t) noexcept nogil:
    """How many of the `rows` sorted rows from `start` on have a step t."""
    while rows > 0 and s.lengths[start + rows - 1] <= t:
        rows -= 1
    return rows


# ---- what the door calls -------------------------------------------------------------------------

cdef double lstm_seconds(double multiply_adds) noexcept:
    """A low estimate of what a hidden unit's products take, four gates each."""
    return 4 * multiply_adds / (VL * 4e9)


cdef bint holds_indices(cnp.ndarray a, ix size) noexcept:
    """Whether `a` is a contiguous array of `size` indices."""
    return (ranked(a, 1) and cnp.PyArray_TYPE(a) == cnp.NPY_INTP
            and cnp.PyArray_ISCARRAY_RO(a) and cnp.PyArray_SIZE(a) == size)


cdef ix tasks_of(const Lstm *s) noexcept:
    """How many tasks there are; an even number of large ones, as two of them take very long."""
    cdef ix tasks
    if 4. * s.hidden * s.hidden * sizeof(real) > CACHED_WEIGHTS:
        tasks = ceil_div(s.batch, LARGE_TASK_ROWS)
        return tasks + tasks % 2 if tasks > 1 else min(<ix>2, ceil_div(s.batch, SMALL_TASK_ROWS))
    if s.batch <= SMALL_TASK_ROWS * SMALL_TASKS:
        return ceil_div(s.batch, SMALL_TASK_ROWS)
    return ceil_div(s.batch, TASK_ROWS)


cdef int set_sizes(Lstm *s, cnp.ndarray over_time, ix inputs, ix hidden,
                   cnp.ndarray order, cnp.ndarray lengths) except -1:
    """Steps and batch are those of `over_time` (T, B, …)."""
    s.steps, s.batch = cnp.PyArray_DIM(over_time, 0), cnp.PyArray_DIM(over_time, 1)
    s.inputs, s.hidden = inputs, hidden
    expect(holds_indices(order, s.batch) and holds_indices(lengths, s.batch))
    s.order, s.lengths = <ix *>cnp.PyArray_DATA(order), <ix *>cnp.PyArray_DATA(lengths)
    s.unit_vectors = ceil_div(hidden, VL)
    # no powers of two: rows use different sets of the cache
    s.stride, s.x_stride = s.unit_vectors * VL + GL, round_up(inputs, GL) + GL
    s.tasks = tasks_of(s)
    s.task_rows = ceil_div(s.batch, max(<ix>1, s.tasks))
    # gemm.h reads four vectors at a time where rows are few, and else two: what it reads is in one
    # piece, or 7 % of the products' time was lost at x86-64-v3
    s.panel = PW if 2 * s.task_rows <= GEMM_ROWS else 2 * VL
    cdef ix entry_bytes = 4 * s.stride * <ix>sizeof(real)
    s.chunk = max(s.task_rows, min(<ix>CHUNK_ENTRIES, CHUNK_BYTES // entry_bytes))
    s.slow = lstm_seconds(<double>s.task_rows * hidden * (hidden + inputs)) > 2e-3
    return 0


cdef int expect_weights(const Lstm *s, cnp.ndarray weight_ih, cnp.ndarray weight_hh) except -1:
    cdef double H = s.hidden
    expect(ranked(weight_ih, 2) and cnp.PyArray_DIM(weight_ih, 1) == s.inputs)
    return expect(holds(weight_ih, 4 * H * s.inputs) and holds(weight_hh, 4 * H * H))


cdef int expect_kept(const Lstm *s, cnp.ndarray gates, cnp.ndarray cells) except -1:
    cdef double size = <double>s.steps * s.batch * s.unit_vectors * VL
    return expect(holds(gates, 4 * size) and holds(cells, size))


cdef cnp.ndarray pack_gates(cnp.ndarray W, ix H, ix panel):
    """W (4H, K) as [unit vector][panel][K][gates of a panel][VL], zeros for what lies beyond H."""
    cdef ix K = cnp.PyArray_DIM(W, 1), unit_vectors = ceil_div(H, VL), u, gate, k, lane, lanes
    cdef cnp.ndarray packed = aligned_array(unit_vectors * K * PW)
    cdef real *dst
    cdef const real *src
    for u in range(unit_vectors):
        PyErr_CheckSignals()
        lanes = min(<ix>VL, H - u * VL)
        for gate in range(4):
            src = reals_of(W) + (gate * H + u * VL) * K
            dst = reals_of(packed) + u * K * PW + gate * VL // panel * K * panel + gate * VL % panel
            k = 0
            while lanes == VL and k + VL <= K:
                vtranspose(src + k, K, dst + k * panel, panel)
                k += VL
            while k < K:
                for lane in range(VL):
                    dst[k * panel + lane] = src[lane * K + k] if lane < lanes else 0
                k += 1
    return packed


cdef cnp.ndarray pack_panels(cnp.ndarray W, ix panel):
    """W (4H, N) as [panel of N][4H][panel], with zeros for what lies beyond N."""
    cdef ix K = cnp.PyArray_DIM(W, 0), N = cnp.PyArray_DIM(W, 1), panels = ceil_div(N, panel)
    cdef ix p, k, columns
    cdef cnp.ndarray packed = aligned_array(panels * K * panel)
    cdef real *dst = reals_of(packed)
    for p in range(panels):
        PyErr_CheckSignals()
        columns = min(<ix>panel, N - p * panel)
        for k in range(K):
            memset(dst + columns, 0, (panel - columns) * sizeof(real))
            memcpy(dst, reals_of(W) + k * N + p * panel, columns * sizeof(real))
            dst += panel
    return packed
