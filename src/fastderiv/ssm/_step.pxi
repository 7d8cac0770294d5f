# One step of the scan; included by _kernels.pyx.
#
# States that lie contiguous go into the lanes as they are, and only the new ones are turned around, for C·h to be added in
# the scan's order; others go through the scan's tiles.  Elementwise operations give the scan's bits either way.

cdef enum:
    STEP_CARRY = 8                      # vectors of channels a unit of a single step takes
    SLOTS = STEP_CARRY * VL
    WIDTH = 16                          # states a square of it holds
    STEP_SCRATCH = 5 * SLOTS + 4 * VL * WIDTH


cdef struct Square:                     # VL channels × WIDTH states, or what is left of them
    const real *dt                      # [lane]: Δ
    const real *du                      # [lane]: Δ·u
    const real *a                       # A, if by_rows [channel, state] and rows lda apart, else [state, lane]
    const real *h                       # the old states, likewise
    const real *B                       # [state]
    const real *C
    real *rows                          # [channel, state]: the new states, if by_rows
    real *turned                        # [state, lane]: the new states
    ix lda, ldh, B_n, C_n, channels, states
    bint by_rows


cdef inline vf advance_rows(Square *q, const bint safe) noexcept nogil:
    """OUT turned = exp(Δ·A)·h + Δ·u·B, states in the lanes.  max |Δ·A| log2(e) of each lane, NaN left out."""
    cdef const real *dt = q.dt
    cdef const real *du = q.du
    cdef const real *a = q.a
    cdef const real *h = q.h
    cdef real *rows = q.rows
    cdef ix lda = q.lda, ldh = q.ldh, channels = q.channels, n = 0, i
    cdef vf b, d, s, top = vset1(0)
    while n < q.states:
        b = vload(q.B + n)
        for i in range(channels):
            d = vset1(dt[i])
            s = vload(a + i * lda + n) * vset1(LOG2E)
            top = vmax(vabs(d * s), top)
            vstore(rows + i * WIDTH + n, advance(d, s, vload(h + i * ldh + n), vset1(du[i]), b, safe))
        vtranspose(rows + n, WIDTH, q.turned + n * VL, VL)
        n += VL
    return top


cdef inline vf advance_columns(Square *q, const bint safe) noexcept nogil:
    """The same, channels in the lanes."""
    cdef vf d = vload(q.dt), x = vload(q.du), s, top = vset1(0)
    cdef ix n
    for n in range(q.states):
        s = vload(q.a + n * q.lda) * vset1(LOG2E)
        top = vmax(vabs(d * s), top)
        vstore(q.turned + n * VL, advance(d, s, vload(q.h + n * q.ldh), x, vset1(q.B[n * q.B_n]), safe))
    return top


cdef inline bint advance_square(Square *q, real *y, const bint safe) noexcept nogil:
    """y += C·h, or False where `safe` turns out to be wrong: no state may be infinite or NaN, and then y is not finite."""
    cdef const real *C = q.C
    cdef const real *turned = q.turned
    cdef ix C_n = q.C_n, n
    cdef vf top = advance_rows(q, safe) if q.by_rows else advance_columns(q, safe)
    cdef vf total = vload(y)
    for n in range(q.states):
        total = vfma(vload(turned + n * VL), vset1(C[n * C_n]), total)
    if safe and not vall_lt(vfma(total, vset1(0), top), vset1(EXP2_SAFE)):
        return False
    vstore(y, total)
    return True


cdef void load_square(Scan *s, Square *q, const real *a, const real *h, real *tiles) noexcept nogil:
    """A and h by state, through tiles."""
    load_tile(a, s.A_d, s.A_n, q.channels, q.states, tiles, VL)
    load_tile(h, s.first.d, s.first.n, q.channels, q.states, tiles + VL * WIDTH, VL)
    q.a, q.h, q.lda, q.ldh = tiles, tiles + VL * WIDTH, VL, VL


cdef void store_square(Scan *s, Square *q, real *h) noexcept nogil:
    store_tile(q.turned, VL, h, s.first.d, s.first.n, q.channels, q.states)


cdef inline void step_square(Scan *s, Square *q, const real *a, real *h, real *y, real *tiles) noexcept nogil:
    """IN a, where the square begins in A; IN OUT h, where it does in the state, and y [lane]."""
    cdef ix i, n
    q.by_rows = q.states % VL == 0 and s.A_n == 1 and s.first.n == 1 and s.B.n == 1
    if q.by_rows:
        q.a, q.h, q.lda, q.ldh = a, h, s.A_d, s.first.d
    else:
        load_square(s, q, a, h, tiles)
    if not advance_square(q, y, True):
        advance_square(q, y, False)
    if q.by_rows:
        for i in range(q.channels):
            n = 0
            while n < q.states:
                vstore(h + i * s.first.d + n, vload(q.rows + i * WIDTH + n))
                n += VL
    else:
        store_square(s, q, h)


cdef void load_lanes(const real *src, ix stride, ix n, real *lanes) noexcept nogil:
    """lanes[i] = src[i·stride], zero up to a whole vector; zero everywhere without src."""
    cdef ix whole = 0 if src is NULL else n - n % VL
    memset(lanes + whole, 0, divided(n - whole, VL) * VL * sizeof(real))
    if src is not NULL:
        load_tile(src, stride, 0, n, 1, lanes, SLOTS)


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


cdef void step_unit(Scan *s, ix batch, ix channel, ix channels, real *scratch) noexcept nogil:
    """Up to SLOTS channels of a batch item, in three passes: their long chains of operations then overlap."""
    cdef real *dt = scratch
    cdef real *du = dt + SLOTS
    cdef real *y = du + SLOTS
    cdef real *lanes = y + SLOTS
    cdef real *tiles = lanes + 2 * SLOTS
    cdef const real *B = s.B.p + batch * s.B.b + channel // s.B.channels * s.B.g
    cdef const real *C = s.C.p + batch * s.C.b + channel // s.C.channels * s.C.g
    cdef const real *A = s.A + channel * s.A_d
    cdef real *h = s.first.p + batch * s.first.s + channel * s.first.d
    cdef Square q
    cdef ix i, n
    load_lanes(s.u.p + batch * s.u.b + channel * s.u.d, s.u.d, channels, du)
    load_lanes(s.delta.p + batch * s.delta.b + channel * s.delta.d, s.delta.d, channels, dt)
    load_lanes(NULL if s.bias.p is NULL else s.bias.p + channel * s.bias.d, s.bias.d, channels, lanes)
    load_lanes(NULL if s.D.p is NULL else s.D.p + channel * s.D.d, s.D.d, channels, lanes + SLOTS)
    if s.softplus:
        single_sizes(lanes, lanes + SLOTS, channels, dt, du, y, True)
    else:
        single_sizes(lanes, lanes + SLOTS, channels, dt, du, y, False)
    if s.D.p is NULL:                                   # not u·0: u may be inf
        memset(y, 0, SLOTS * sizeof(real))
    q.rows, q.turned, q.B_n, q.C_n = tiles + 2 * VL * WIDTH, tiles + 3 * VL * WIDTH, s.B.n, s.C.n
    i = 0
    while i < channels:
        q.dt, q.du, q.channels = dt + i, du + i, min(<ix>VL, channels - i)
        n = 0
        while n < s.states:
            q.B, q.C, q.states = B + n * s.B.n, C + n * s.C.n, min(<ix>WIDTH, s.states - n)
            step_square(s, &q, A + i * s.A_d + n * s.A_n, h + i * s.first.d + n * s.first.n, y + i, tiles)
            n += WIDTH
        i += VL
    if s.z.p is not NULL:
        load_lanes(s.z.p + batch * s.z.b + channel * s.z.d, s.z.d, channels, lanes)
        i = 0
        while i < channels:
            vstore(y + i, vload(y + i) * vsilu(vload(lanes + i)))
            i += VL
    store_tile(y, SLOTS, s.out.p + batch * s.out.b + channel * s.out.d, s.out.d, 0, channels, 1)


cdef void step_task(void *args, ix i, Worker *worker) noexcept nogil:
    """A few units, each a chunk of channels of one batch item."""
    cdef Scan *s = <Scan *>args
    cdef ix unit, channel
    memset(worker.scratch, 0, STEP_SCRATCH * sizeof(real))              # lanes without a channel are computed with
    for unit in range(i * s.units_per_task, min(s.units, (i + 1) * s.units_per_task)):
        channel = first_channel(s, unit % s.chunks)
        step_unit(s, unit // s.chunks, channel, end_channel(s, channel) - channel, <real *>worker.scratch)


cdef int set_step_signal(Signal *s, cnp.ndarray a, int axes, const ix *shape,
                         bint written) except -1:
    """(Bt, D) or (D,), then b is never used."""
    if a is None:
        s.p = NULL
        return 0
    expect_array(a, axes, shape, written)
    s.p, s.b, s.d, s.t = <real *>cnp.PyArray_DATA(a), stride(a, 0), stride(a, axes - 1), 0
    return 0


cdef int set_step_coefficient(Coefficient *c, cnp.ndarray a, int axes, const ix *state) except -1:
    """(Bt, N) or (Bt, G, N), without Bt where the state has two `axes`; strides of missing axes are never used."""
    cdef int last = cnp.PyArray_NDIM(a) - 1
    cdef ix shape[3]
    shape[0], shape[1], shape[2] = state[0], state[1], state[2]
    c.g, c.channels = 0, shape[axes - 2]
    if last + 1 != axes:                                # without G
        shape[axes - 2] = shape[axes - 1]
        expect_array(a, axes - 1, shape, False)
    else:
        shape[axes - 2] = cnp.PyArray_DIM(a, axes - 2)
        expect_array(a, axes, shape, False)
        if shape[axes - 2] == 0 or c.channels % shape[axes - 2]:
            refuse(a, ("G", shape[axes - 1]))
        c.g, c.channels = stride(a, last - 1), c.channels // shape[axes - 2]
    c.p, c.b, c.n = <real *>cnp.PyArray_DATA(a), stride(a, 0), stride(a, last)
    return 0


def step(cnp.ndarray h, cnp.ndarray x, cnp.ndarray dt, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C, cnp.ndarray D,
         cnp.ndarray z, cnp.ndarray bias, bint softplus, cnp.ndarray y):
    """Checked arrays of one dtype: h (Bt, D, N), overwritten; x, dt, z, y (Bt, D); A (D, N); B, C (Bt, N) or (Bt, G, N);
    D, bias (D,).  D, z and bias may be None; without Bt, it is missing everywhere.  Never interrupted."""
    cdef Scan s
    cdef double unit                                    # seconds
    cdef int axes = cnp.PyArray_NDIM(h)
    cdef const ix *shape = <const ix *>cnp.PyArray_DIMS(h)
    if axes != 2 and axes != 3:
        refuse(h, ("batch", "D", "N"))
    expect_array(h, axes, shape, True)
    s.segments, s.channels, s.states, s.softplus = 1, shape[axes - 2], shape[axes - 1], softplus
    if axes == 3:
        s.segments = shape[0]
    set_step_signal(&s.u, x, axes - 1, shape, False)
    set_step_signal(&s.delta, dt, axes - 1, shape, False)
    set_step_signal(&s.z, z, axes - 1, shape, False)
    set_step_signal(&s.out, y, axes - 1, shape, True)
    set_step_coefficient(&s.B, B, axes, shape)
    set_step_coefficient(&s.C, C, axes, shape)
    expect_array(A, 2, shape + axes - 2, False)
    expect_array(D, 1, shape + axes - 2, False)
    expect_array(bias, 1, shape + axes - 2, False)
    if s.segments == 0 or s.channels == 0:
        return
    s.first.p, s.first.s = <real *>cnp.PyArray_DATA(h), stride(h, 0)
    s.first.d, s.first.n = stride(h, axes - 2), stride(h, axes - 1)
    s.A, s.A_d, s.A_n = <real *>cnp.PyArray_DATA(A), stride(A, 0), stride(A, 1)
    set_per_channel(&s.D, D)
    set_per_channel(&s.bias, bias)
    s.part = common_divisor(s.B.channels, s.C.channels)
    s.units = s.segments * set_chunks(&s, STEP_CARRY)   # y has more elements
    unit = 1e-9 * sizeof(real) / 4 * SLOTS * (1 + 0.3 * s.states)
    s.units_per_task = max(1, <ix>(20e-6 / unit))
    run(step_task, &s, divided(s.units, s.units_per_task), STEP_SCRATCH * sizeof(real), unit * s.units, False)
