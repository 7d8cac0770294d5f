# One step of the scan (docs/derivations.md §1.1), as a decoder takes it.  Included by _kernels.pyx.
#
# Contiguous states are loaded into the lanes as they are, and only the new states are transposed,
# so that C·h is added in the order in which the scan adds it; other layouts go through tiles.
# Either way the bits are those of the scan, as every operation works on each lane alone.
# needs: data, expect_array, refuse, stride (_arrays.pxi)
# needs: Coefficient, divide_channels, end_channel, first_channel, PerChannel, Scan, Signal,
#        State (s6/_problem.pxi)
# needs: load_tile, store_tile (s6/_tiles.pxi)
# needs: group_channels (s6/_door.pxi)
# needs: advance (s6/_scan.pxi)

cdef enum:
    STEP_CARRY = 8                      # Lanes of a work_item of a single step
    SLOTS = STEP_CARRY * VL
    WIDTH = 16                          # states of a square
    STEP_SCRATCH = 5 * SLOTS + 4 * VL * WIDTH


cdef struct Square:                     # VL channels times WIDTH states, or what is left of them
    const real *dt                      # [lane]: Δ
    const real *du                      # [lane]: Δ·u
    const real *a                       # A, [channel, state] if by_rows, else [state, lane]
    const real *h                       # the old states, likewise
    const real *B                       # [state]
    const real *C
    real *rows                          # [channel, state]: the new states, if by_rows
    real *turned                        # [state, lane]: the new states
    ix lda, ldh                         # from one row of a and of h to the next
    ix B_n, C_n, channels, states
    bint by_rows


# ---- a square ---------------------------------------------------------------------------------

cdef inline vf advance_rows(const Square *square, const bint safe) noexcept nogil:
    """OUT turned = exp(Δ·A)·h + Δ·u·B, states in the lanes.  The maximum of |Δ·A| log2(e) in each
    lane, NaN left out."""
    cdef const real *dt = square.dt
    cdef const real *du = square.du
    cdef const real *a = square.a
    cdef const real *h = square.h
    cdef real *rows = square.rows
    cdef ix lda = square.lda, ldh = square.ldh, channels = square.channels, n = 0, i
    cdef vf b, d, s, top = vset1(0)
    while n < square.states:
        b = vload(square.B + n)
        for i in range(channels):
            d = vset1(dt[i])
            s = vload(a + i * lda + n) * vset1(LOG2E)
            top = vmax(vabs(d * s), top)                # vmax returns its second operand for a NaN
            s = advance(d, s, vload(h + i * ldh + n), vset1(du[i]), b, safe)
            vstore(rows + i * WIDTH + n, s)
        vtranspose(rows + n, WIDTH, square.turned + n * VL, VL)
        n += VL
    return top


cdef inline vf advance_columns(const Square *square, const bint safe) noexcept nogil:
    """As `advance_rows`, channels in the lanes."""
    cdef vf d = vload(square.dt), x = vload(square.du), s, h, top = vset1(0)
    cdef ix n
    for n in range(square.states):
        s = vload(square.a + n * square.lda) * vset1(LOG2E)
        top = vmax(vabs(d * s), top)
        h = vload(square.h + n * square.ldh)
        vstore(square.turned + n * VL, advance(d, s, h, x, vset1(square.B[n * square.B_n]), safe))
    return top


cdef inline bint advance_square(const Square *square, real *y, const bint safe) noexcept nogil:
    """y += C·h.  If `safe` turns out to be wrong, returns False and leaves y unchanged: if a Δ·A is
    outside the range of exp, or a new state is infinite or NaN, which then shows in y."""
    cdef const real *C = square.C
    cdef const real *turned = square.turned
    cdef ix C_n = square.C_n, n
    cdef vf top = advance_rows(square, safe) if square.by_rows else advance_columns(square, safe)
    cdef vf total = vload(y)
    for n in range(square.states):
        total = vfma(vload(turned + n * VL), vset1(C[n * C_n]), total)
    if safe and not vall_lt(vfma(total, vset1(0), top), vset1(EXP2_SAFE)):
        return False
    vstore(y, total)
    return True


cdef void load_square(const Scan *scan, const real *a, const real *h, real *tiles,
                      Square *square) noexcept nogil:
    """OUT the square's A and h, [state, lane] in tiles."""
    cdef ix channels = square.channels, states = square.states
    load_tile(a, scan.A_d, scan.A_n, channels, states, tiles, VL)
    load_tile(h, scan.initial_state.d, scan.initial_state.n, channels, states, tiles + VL * WIDTH,
              VL)
    square.a, square.h, square.lda, square.ldh = tiles, tiles + VL * WIDTH, VL, VL


cdef void store_square(const Scan *scan, const Square *square, real *h) noexcept nogil:
    store_tile(square.turned, VL, h, scan.initial_state.d, scan.initial_state.n, square.channels,
               square.states)


cdef inline void step_square(const Scan *scan, Square *square, const real *a, real *h, real *y,
                             real *tiles) noexcept nogil:
    """IN a, where the square begins in A; IN OUT h, where it does in the state, and y [lane]."""
    cdef ix i, n
    square.by_rows = (square.states % VL == 0 and scan.A_n == 1 and scan.initial_state.n == 1
                      and scan.B.n == 1)
    if square.by_rows:
        square.a, square.h, square.lda, square.ldh = a, h, scan.A_d, scan.initial_state.d
    else:
        load_square(scan, a, h, tiles, square)
    if not advance_square(square, y, True):
        advance_square(square, y, False)
    if not square.by_rows:
        store_square(scan, square, h)
        return
    for i in range(square.channels):
        n = 0
        while n < square.states:
            vstore(h + i * scan.initial_state.d + n, vload(square.rows + i * WIDTH + n))
            n += VL


# ---- a work_item: up to SLOTS channels of a batch item ----------------------------------------

cdef void load_lanes(const real *src, ix stride, ix n, real *lanes) noexcept nogil:
    """lanes[i] = src[i·stride], zero up to a whole vector; zero everywhere without src."""
    cdef ix whole = 0 if src is NULL else n - n % VL
    memset(lanes + whole, 0, round_up(n - whole, VL) * sizeof(real))
    if src is not NULL:
        load_tile(src, stride, 0, n, 1, lanes, SLOTS)


cdef inline void load_step(const Signal *signal, ix batch, ix channel, ix n,
                           real *lanes) noexcept nogil:
    """OUT lanes: n channels of a signal, which may be missing."""
    cdef const real *src = NULL
    if signal.p is not NULL:
        src = signal.p + batch * signal.b + channel * signal.d
    load_lanes(src, signal.d, n, lanes)


cdef inline void load_channels(const PerChannel *values, ix channel, ix n,
                               real *lanes) noexcept nogil:
    """OUT lanes: D or delta_bias of n channels, which may be missing."""
    cdef const real *src = NULL if values.p is NULL else values.p + channel * values.d
    load_lanes(src, values.d, n, lanes)


cdef inline void single_sizes(const real *bias, const real *skip, ix n, real *dt, real *du, real *y,
                              const bint softplus) noexcept nogil:
    """As `step_sizes`, of n channels."""
    cdef vf d, x
    cdef ix i = 0
    while i < n:
        d = vload(dt + i) + vload(bias + i)
        if softplus:
            d = vsoftplus(d)
        x = vload(du + i)
        vstore(dt + i, d)
        vstore(du + i, d * x)
        vstore(y + i, x * vload(skip + i))
        i += VL


cdef inline void start_step(const Scan *scan, ix batch, ix channel, ix n,
                            real *scratch) noexcept nogil:
    """1. OUT Δ, Δ·u and D·u of n channels, each [SLOTS] of scratch."""
    cdef real *dt = scratch
    cdef real *du = scratch + SLOTS
    cdef real *y = scratch + 2 * SLOTS
    cdef real *bias = scratch + 3 * SLOTS
    cdef real *skip = scratch + 4 * SLOTS
    load_step(&scan.u, batch, channel, n, du)
    load_step(&scan.delta, batch, channel, n, dt)
    load_channels(&scan.bias, channel, n, bias)
    load_channels(&scan.D, channel, n, skip)
    if scan.softplus:
        single_sizes(bias, skip, n, dt, du, y, True)
    else:
        single_sizes(bias, skip, n, dt, du, y, False)
    if scan.D.p is NULL:                                # u·0 would be NaN if u is inf
        memset(y, 0, SLOTS * sizeof(real))


cdef inline void step_states(const Scan *scan, ix batch, ix channel, ix n,
                             real *scratch) noexcept nogil:
    """2. IN Δ, Δ·u; IN OUT y and the state: the recurrence, square by square."""
    cdef real *y = scratch + 2 * SLOTS
    cdef real *tiles = scratch + 5 * SLOTS
    cdef const real *B = scan.B.p + batch * scan.B.b + channel // scan.B.channels * scan.B.g
    cdef const real *C = scan.C.p + batch * scan.C.b + channel // scan.C.channels * scan.C.g
    cdef const real *A = scan.A + channel * scan.A_d
    cdef const State *state = &scan.initial_state
    cdef real *h = state.p + batch * state.s + channel * state.d
    cdef Square square
    cdef ix i = 0, m
    square.rows, square.turned = tiles + 2 * VL * WIDTH, tiles + 3 * VL * WIDTH
    square.B_n, square.C_n = scan.B.n, scan.C.n
    while i < n:
        square.dt, square.du = scratch + i, scratch + SLOTS + i
        square.channels, m = min(<ix>VL, n - i), 0
        while m < scan.states:
            square.B, square.C = B + m * scan.B.n, C + m * scan.C.n
            square.states = min(<ix>WIDTH, scan.states - m)
            step_square(scan, &square, A + i * scan.A_d + m * scan.A_n,
                        h + i * state.d + m * state.n, y + i, tiles)
            m += WIDTH
        i += VL


cdef inline void gate_step(const Scan *scan, ix batch, ix channel, ix n,
                           real *scratch) noexcept nogil:
    """3. y *= silu(z)."""
    cdef real *y = scratch + 2 * SLOTS
    cdef real *z = scratch + 3 * SLOTS
    cdef ix i = 0
    load_step(&scan.z, batch, channel, n, z)
    while i < n:
        vstore(y + i, vload(y + i) * vsilu(vload(z + i)))
        i += VL


cdef void step_item(const Scan *scan, ix batch, ix channel, ix n, real *scratch) noexcept nogil:
    """n channels of a batch item in three passes: the long chains of operations of their Lanes then
    overlap.  1. step sizes, 2. recurrence, 3. gate."""
    cdef const Signal *out = &scan.out
    start_step(scan, batch, channel, n, scratch)
    step_states(scan, batch, channel, n, scratch)
    if scan.z.p is not NULL:
        gate_step(scan, batch, channel, n, scratch)
    store_tile(scratch + 2 * SLOTS, SLOTS, out.p + batch * out.b + channel * out.d, out.d, 0, n, 1)


cdef void step_task(void *args, ix i, Worker *worker) noexcept nogil:
    """A few work_items, each a channel_block of one batch item."""
    cdef const Scan *scan = <const Scan *>args
    cdef real *scratch = <real *>worker.scratch
    cdef ix item, channel, end
    memset(scratch, 0, STEP_SCRATCH * sizeof(real))     # lanes without a channel are computed with
    for item in range(i * scan.items_per_task, min(scan.work_items, (i + 1) * scan.items_per_task)):
        channel = first_channel(&scan.blocks, item % scan.blocks.count)
        end = end_channel(&scan.blocks, channel)
        step_item(scan, item // scan.blocks.count, channel, end - channel, scratch)


cdef double divide_step(Scan *scan) noexcept:
    """Tasks by the size of the call; the seconds that it takes."""
    cdef double seconds = 1e-9 * sizeof(real) / 4 * SLOTS * (1 + 0.3 * scan.states)
    group_channels(scan)
    scan.work_items = scan.segments * divide_channels(&scan.blocks, STEP_CARRY)
    scan.items_per_task = max(1, <ix>(20e-6 / seconds))
    return seconds * scan.work_items


# ---- from arrays to the struct: as in _door.pxi, without time ---------------------------------

cdef int set_step_signal(cnp.ndarray a, int axes, const ix *shape, bint written,
                         Signal *signal) except -1:
    """OUT signal: a (Bt, D), or (D,), of which b is never used; or None."""
    signal.p = NULL
    if a is None:
        return 0
    expect_array(a, axes, shape, written)
    signal.p, signal.b, signal.d, signal.t = data(a), stride(a, 0), stride(a, axes - 1), 0
    return 0


cdef int set_step_coefficient(cnp.ndarray a, int axes, const ix *state,
                              Coefficient *coefficient) except -1:
    """OUT coefficient: a (Bt, N) or (Bt, G, N), without Bt if the state has two `axes`; strides of
    missing axes are never used."""
    cdef int last = cnp.PyArray_NDIM(a) - 1
    cdef ix shape[3]
    shape[0], shape[1], shape[2] = state[0], state[1], state[2]
    coefficient.g, coefficient.channels = 0, shape[axes - 2]
    if last + 1 != axes:                                # without G
        shape[axes - 2] = shape[axes - 1]
        expect_array(a, axes - 1, shape, False)
    else:
        shape[axes - 2] = cnp.PyArray_DIM(a, axes - 2)
        expect_array(a, axes, shape, False)
        if shape[axes - 2] == 0 or coefficient.channels % shape[axes - 2]:
            refuse(a, ("G", shape[axes - 1]))
        coefficient.g = stride(a, last - 1)
        coefficient.channels //= shape[axes - 2]
    coefficient.p, coefficient.b, coefficient.n = data(a), stride(a, 0), stride(a, last)
    return 0


cdef int set_step_state(Scan *scan, cnp.ndarray h) except -1:
    """The sizes of a step, and its state (Bt, D, N) or (D, N), which is overwritten."""
    cdef int axes = cnp.PyArray_NDIM(h)
    cdef const ix *shape = <const ix *>cnp.PyArray_DIMS(h)
    if axes != 2 and axes != 3:
        refuse(h, ("batch", "D", "N"))
    expect_array(h, axes, shape, True)
    scan.segments = shape[0] if axes == 3 else 1
    scan.channels, scan.states = shape[axes - 2], shape[axes - 1]
    scan.initial_state.p, scan.initial_state.s = data(h), stride(h, 0)
    scan.initial_state.d, scan.initial_state.n = stride(h, axes - 2), stride(h, axes - 1)
    return 0
