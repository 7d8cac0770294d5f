# The scan forward: a block through the recurrence, a segment block by block, a task of several; included by _kernels.pyx.

# ---- the recurrence -----------------------------------------------------------------------------------------------

cdef inline vf advance(vf dt, vf a, vf h, vf du, vf b, const bint safe) noexcept nogil:
    return vdecay_safe(dt, a, h, du, b) if safe else vdecay_any(dt, a, h, du, b)


cdef inline vf coefficient(const real *p, ix t, const bint constant) noexcept nogil:
    return vload(p) if constant else vset1(p[t])


cdef inline void four_states(const real *dt, const real *du, real *y, const real *a, real *h, const real *B, ix ldb,
                             const real *C, ix ldc, ix T, const bint safe, const bint cb, const bint cc,
                             const bint silent) noexcept nogil:
    """y += C·h over a block, if not silent: h in registers, the tiles read once for four states."""
    cdef vf a0 = vload(a), a1 = vload(a + VL), a2 = vload(a + 2 * VL), a3 = vload(a + 3 * VL)
    cdef vf h0 = vload(h), h1 = vload(h + VL), h2 = vload(h + 2 * VL), h3 = vload(h + 3 * VL)
    cdef vf d, x, s
    cdef ix t
    for t in range(T):
        d = vload(dt + t * VL)
        x = vload(du + t * VL)
        h0 = advance(d, a0, h0, x, coefficient(B, t, cb), safe)
        h1 = advance(d, a1, h1, x, coefficient(B + ldb, t, cb), safe)
        h2 = advance(d, a2, h2, x, coefficient(B + 2 * ldb, t, cb), safe)
        h3 = advance(d, a3, h3, x, coefficient(B + 3 * ldb, t, cb), safe)
        if not silent:
            s = vfma(h0, coefficient(C, t, cc), vload(y + t * VL))
            s = vfma(h1, coefficient(C + ldc, t, cc), s)
            s = vfma(h2, coefficient(C + 2 * ldc, t, cc), s)
            s = vfma(h3, coefficient(C + 3 * ldc, t, cc), s)
            vstore(y + t * VL, s)
    vstore(h, h0)
    vstore(h + VL, h1)
    vstore(h + 2 * VL, h2)
    vstore(h + 3 * VL, h3)


cdef inline void one_state(const real *dt, const real *du, real *y, const real *a, real *h, const real *B, const real *C,
                           ix T, const bint safe, const bint cb, const bint cc, const bint silent) noexcept nogil:
    cdef vf a0 = vload(a), h0 = vload(h)
    cdef ix t
    for t in range(T):
        h0 = advance(vload(dt + t * VL), a0, h0, vload(du + t * VL), coefficient(B, t, cb), safe)
        if not silent:
            vstore(y + t * VL, vfma(h0, coefficient(C, t, cc), vload(y + t * VL)))
    vstore(h, h0)


cdef inline void all_states(const real *dt, const real *du, real *y, Vector *v, ix N, const real *B, ix ldb,
                            const real *C, ix ldc, ix T, const bint safe, const bint cb, const bint cc,
                            const bint silent) noexcept nogil:
    cdef ix n = 0
    while n + 4 <= N:
        four_states(dt, du, y, v.a + n * VL, v.h + n * VL, B + n * ldb, ldb, C + n * ldc, ldc, T, safe, cb, cc, silent)
        n += 4
    while n < N:
        one_state(dt, du, y, v.a + n * VL, v.h + n * VL, B + n * ldb, C + n * ldc, T, safe, cb, cc, silent)
        n += 1


cdef void recur(const real *dt, const real *du, real *y, Vector *v, ix N, const real *B, ix ldb, const real *C, ix ldc,
                ix T, bint safe, bint cb, bint cc) noexcept nogil:
    """2. h = exp(Δ·A)·h + Δ·u·B, and y += C·h unless y is NULL: pick the loop made for these flags."""
    if cb:
        B, ldb = v.b, VL
    if cc:
        C, ldc = v.c, VL
    if y is NULL:
        if safe and cb:
            all_states(dt, du, y, v, N, B, ldb, C, ldc, T, True, True, True, True)
        elif safe:
            all_states(dt, du, y, v, N, B, ldb, C, ldc, T, True, False, True, True)
        elif cb:
            all_states(dt, du, y, v, N, B, ldb, C, ldc, T, False, True, True, True)
        else:
            all_states(dt, du, y, v, N, B, ldb, C, ldc, T, False, False, True, True)
    elif safe and not cb and not cc:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, True, False, False, False)
    elif safe and cb and cc:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, True, True, True, False)
    elif safe and cb:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, True, True, False, False)
    elif safe:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, True, False, True, False)
    elif not cb and not cc:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, False, False, False, False)
    elif cb and cc:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, False, True, True, False)
    elif cb:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, False, True, False, False)
    else:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, False, False, True, False)


cdef void recur_in_pieces(const real *dt, const real *du, real *y, Vector *v, ix N, const real *B,
                          ix ldb, const real *C, ix ldc, ix T, bint safe, bint cb,
                          bint cc) noexcept nogil:
    """The same for any number of states, with looks for signals amid very many: y gathers its terms in
    the same order."""
    cdef Vector some = v[0]
    cdef ix n = 0
    while n < N and not stopped(v, n):
        recur(dt, du, y, &some, piece_at(n, N), B if cb else B + n * ldb, ldb,
              C if cc or y is NULL else C + n * ldc, ldc, T, safe, cb, cc)
        n += MANY
        some.a, some.h = some.a + MANY * VL, some.h + MANY * VL
        some.b, some.c = some.b + MANY * VL, some.c + MANY * VL


cdef void recur_in_parts(const real *dt, const real *du, real *y, Vector *v, ix N, const real *B, ix ldb, const real *C, ix ldc,
                         ix T, bint safe, bint cb, bint cc, real *checkpoints) noexcept nogil:
    """The same; with `checkpoints`, leave the state before every PART steps there, y unchanged."""
    cdef ix t = 0
    if checkpoints is NULL:
        recur_in_pieces(dt, du, y, v, N, B, ldb, C, ldc, T, safe, cb, cc)
        return
    while t < T:
        copy_states(v.h, v, N, checkpoints + t // PART * N * VL)
        recur_in_pieces(dt + t * VL, du + t * VL, NULL, v, N, B if cb else B + t, ldb, C, ldc,
                        min(<ix>PART, T - t), safe, cb, cc)
        t += PART


cdef inline bint step_sizes(Vector *v, real *dt, real *du, real *y, ix T, const bint softplus, Ahead *ahead) noexcept nogil:
    """1. IN dt = delta, du = u; OUT dt = Δ, du = Δ·u, y = D·u.  Whether every Δ·A of the block is well inside exp's range."""
    cdef vf bias = vload(v.bias), skip = vload(v.D)
    cdef vf d, x, top = vset1(0), odd = vset1(0)        # odd becomes NaN with any Δ that is NaN or inf
    cdef ix t
    for t in range(T):
        prefetch(ahead, t)
        prefetch(ahead + 1, t)
        prefetch(ahead + 2, t)
        d = vload(dt + t * VL) + bias
        if softplus:
            d = vsoftplus(d)
        x = vload(du + t * VL)
        top = vmax(top, vabs(d))
        odd = vfma(d, vset1(0), odd)
        vstore(dt + t * VL, d)
        vstore(du + t * VL, d * x)
        vstore(y + t * VL, x * skip)
    return vall_lt(vfma(top, vload(v.limits), odd), vset1(EXP2_SAFE))


cdef void skip_connection(Scan *s, Vector *v, ix batch, ix t, ix T, real *y) noexcept nogil:
    """OUT y = D·u of a block, as `step_sizes` leaves it."""
    cdef vf skip = vload(v.D)
    cdef ix i
    if s.D.p is NULL:
        memset(y, 0, T * VL * sizeof(real))
        return
    load_signal(&s.u, batch, v, t, T, y)
    for i in range(T):
        vstore(y + i * VL, vload(y + i * VL) * skip)


cdef void scan_block(Scan *s, Vector *v, ix batch, ix t, ix T, ix stop, const real *B, ix ldb, const real *C, ix ldc,
                     real *tiles, real *checkpoints) noexcept nogil:
    """One vector of channels through steps t … t+T−1: 1. step sizes, 2. recurrence, 3. gate."""
    cdef real *dt = tiles
    cdef real *du = tiles + TILE
    cdef real *y = tiles + 2 * TILE
    cdef real *wanted = NULL if s.out.p is NULL else y  # else only the state counts: the adjoint's first pass, a chunk's summary
    cdef bint safe
    cdef Ahead ahead[3]
    cdef ix i, after = t + T if t + T < stop else t
    look_ahead(ahead, &s.delta, batch, v, after)
    look_ahead(ahead + 1, &s.u, batch, v, after)
    look_ahead(ahead + 2, &s.u if s.z.p is NULL else &s.z, batch, v, t)
    load_signal(&s.delta, batch, v, t, T, dt)
    load_signal(&s.u, batch, v, t, T, du)
    if s.softplus:
        safe = step_sizes(v, dt, du, y, T, True, ahead)
    else:
        safe = step_sizes(v, dt, du, y, T, False, ahead)
    if s.D.p is NULL and wanted is not NULL:            # not u·0: u may be inf
        memset(y, 0, T * VL * sizeof(real))
    safe = safe and v.finite
    if safe:
        copy_states(v.h, v, s.states, v.before)
        recur_in_parts(dt, du, wanted, v, s.states, B, ldb, C, ldc, T, True, s.B.constant, s.C.constant, checkpoints)
        v.finite = all_finite(v, v.h, s.states)
    if not (safe and v.finite):                         # out of exp's range, or overflowed on the way: again, with care
        if safe:
            copy_states(v.before, v, s.states, v.h)
            if wanted is not NULL:
                skip_connection(s, v, batch, t, T, y)
        recur_in_parts(dt, du, wanted, v, s.states, B, ldb, C, ldc, T, False, s.B.constant, s.C.constant, checkpoints)
        v.finite = all_finite(v, v.h, s.states)
    if wanted is NULL:
        return
    if s.z.p is not NULL:                               # 3.
        load_signal(&s.z, batch, v, t, T, dt)
        for i in range(T):
            vstore(y + i * VL, vload(y + i * VL) * vsilu(vload(dt + i * VL)))
    store_signal(&s.out, batch, v, t, T, y)


# ---- a unit of work: a few vectors of channels through one segment ------------------------------------------------

cdef double vector_size(double N) noexcept nogil:
    """Scratch of one Vector, in reals."""
    return (5 * N + 3) * VL + 5 * GL


cdef void set_up(Scan *s, Vector *v, real *scratch) noexcept nogil:
    """What depends on the channels alone."""
    cdef ix N = s.states, n = 0, end
    cdef vf a, top = vset1(0), odd = vset1(0)
    v.a = scratch
    v.h = v.a + N * VL
    v.before = v.h + N * VL
    v.b = v.before + N * VL
    v.c = v.b + N * VL
    v.limits = v.c + N * VL
    v.D = v.limits + VL
    v.bias = v.D + VL
    load_rows(s.A, s.A_d, s.A_n, v, N, v.a)
    while n < N and not stopped(v, n):
        end = n + piece_at(n, N)
        while n < end:
            a = vload(v.a + n * VL) * vset1(LOG2E)
            vstore(v.a + n * VL, a)
            top = vmax(top, vabs(a))
            odd = vfma(a, vset1(0), odd)
            n += 1
    vstore(v.limits, top + odd)
    if s.B.constant:
        load_rows(s.B.p, s.B.g, s.B.n, v, N, v.b)
    if s.C.p is not NULL and s.C.constant:
        load_rows(s.C.p, s.C.g, s.C.n, v, N, v.c)
    memset(v.D, 0, 2 * VL * sizeof(real))
    if s.D.p is not NULL:
        copy(s.D.p + v.channel * s.D.d, s.D.d, v.D, 1, v.rows)
    if s.bias.p is not NULL:
        copy(s.bias.p + v.channel * s.bias.d, s.bias.d, v.bias, 1, v.rows)


cdef void load_state(State *s, ix segment, Vector *v, ix N, real *h) noexcept nogil:
    """OUT h [N, lane], zero where there is no state."""
    if s.p is NULL:
        clear_states(v, N, h)
    else:
        load_rows(s.p + segment * s.s, s.d, s.n, v, N, h)


cdef void store_state(State *s, ix segment, Vector *v, ix N, const real *h) noexcept nogil:
    """Does nothing if the caller wants no such state."""
    if s.p is not NULL:
        store_rows(h, v, N, s.p + segment * s.s, s.d, s.n)


cdef void first_state(Scan *s, Vector *v, ix segment) noexcept nogil:
    load_state(&s.first, segment, v, s.states, v.h)
    v.finite = all_finite(v, v.h, s.states)


cdef ix span(Scan *s, ix segment, ix *start, ix *stop) noexcept nogil:
    """The steps of a segment; the batch item that they belong to."""
    if s.starts is NULL:
        start[0], stop[0] = 0, s.steps
        return segment
    start[0], stop[0] = s.starts[segment], s.starts[segment + 1]
    return 0


cdef ix set_up_chunk(Scan *s, ix chunk, Vector *v, real *scratch, Worker *worker) noexcept nogil:
    """The vectors of a chunk; how many they are."""
    cdef ix channel = first_channel(s, chunk)
    cdef ix end = end_channel(s, channel), k = 0, size = <ix>vector_size(s.states)
    while channel < end:
        v[k].channel, v[k].rows, v[k].worker = channel, min(<ix>VL, end - channel), worker
        set_up(s, &v[k], scratch + k * size)
        channel += VL
        k += 1
    return k


cdef const real *block_of(Coefficient *c, ix batch, Vector *v, ix N, ix t, ix T, real *gathered,
                          ix ld, ix *stride) noexcept nogil:
    """Rows [n, time] of a time-varying B or C: in place where time is contiguous, else copied."""
    cdef const real *p
    cdef ix n = 0, m
    if c.constant:
        return NULL
    p = c.p + batch * c.b + v.channel // c.channels * c.g + t * c.t
    if not c.gather:
        stride[0] = c.n
        return p
    while n < N and not stopped(v, n):
        m = piece_at(n, N)
        load_tile(p + n * c.n, c.t, c.n, T, m, gathered + n * ld, ld)
        n += m
    stride[0] = ld
    return gathered


cdef bint scan_segment(Scan *s, ix segment, Vector *v, ix vectors, real *gathered, real *tiles, Worker *worker) noexcept nogil:
    """A chunk through a segment; False if interrupted."""
    cdef ix t, stop, batch = span(s, segment, &t, &stop)
    cdef ix k, T, ldb = 0, ldc = 0, ld = s.block + GL
    cdef const real *B
    cdef const real *C
    cdef real *gathered_C = gathered + (s.states * ld if s.B.gather else 0)
    for k in range(vectors):
        first_state(s, &v[k], segment)
    while t < stop:
        if interrupted(worker):
            return False
        T = min(s.block, stop - t)
        B = block_of(&s.B, batch, v, s.states, t, T, gathered, ld, &ldb)
        C = block_of(&s.C, batch, v, s.states, t, T, gathered_C, ld, &ldc)
        for k in range(vectors):
            scan_block(s, &v[k], batch, t, T, stop, B, ldb, C, ldc, tiles, NULL)
        t += T
    for k in range(vectors):
        store_state(&s.last, segment, &v[k], s.states, v[k].h)
    return True


cdef void scan_task(void *args, ix i, Worker *worker) noexcept nogil:
    """A few units.  Long segments share B and C among the chunks of a batch item, short ones the channels' set-up."""
    cdef Scan *s = <Scan *>args
    cdef Vector v[CARRY]
    cdef real *tiles = <real *>worker.scratch
    cdef real *gathered = tiles + 3 * TILE
    cdef real *own = gathered + (s.B.gather + s.C.gather) * s.states * (s.block + GL)
    cdef ix unit, segment, chunk, vectors = 0, ready = -1
    for unit in range(i * s.units_per_task, min(s.units, (i + 1) * s.units_per_task)):
        if s.units_per_task > 1:
            chunk, segment = unit // s.segments, unit % s.segments
        else:
            segment, chunk = unit // s.chunks, unit % s.chunks
        if chunk != ready:
            vectors = set_up_chunk(s, chunk, v, own, worker)
            ready = chunk
        if not scan_segment(s, segment, v, vectors, gathered, tiles, worker):
            return


cdef bint nothing(cnp.ndarray a):
    """Whether there is nothing to write."""
    return a is None or cnp.PyArray_SIZE(a) == 0


def scan(cnp.ndarray u, cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C, cnp.ndarray D, cnp.ndarray z,
         cnp.ndarray bias, bint softplus, cnp.ndarray first, cnp.ndarray last, cnp.ndarray starts, cnp.ndarray out):
    """Checked arrays of one dtype: u, delta, z, out (Bt, D, L); A (D, N); B, C (D, N) or (Bt, G, N, L); D, bias (D,);
    first, last (segments, D, N); starts (segments + 1,) intp.  C, D, z, bias, first, last, starts and out may be None."""
    cdef Scan s
    cdef double N, unit, scratch                        # unit: seconds
    cdef ix shape[3]
    set_scan(&s, u, delta, A, B, C, D, z, bias, softplus, first, starts)
    N = s.states
    set_shape(&s, shape)
    expect_array(last, 3, shape, True)
    shape[0], shape[2] = cnp.PyArray_DIM(u, 0), s.steps
    expect_array(out, 3, shape, True)
    if nothing(out) and nothing(last):
        return
    set_signal(&s.out, out)
    set_state(&s.last, last)
    s.block = TB
    while (s.B.gather or s.C.gather) and s.block > 16 and s.block * N > 16384:
        s.block //= 2
    set_chunks(&s, CARRY if (s.B.gather or s.C.gather) and N <= 256 else 1)
    s.units = counted(<double>s.segments * s.chunks)
    unit = 1e-9 * sizeof(real) / 4 * VL * s.carry * (1 + <double>s.steps / (1 if starts is None else s.segments)) * (2 + 0.3 * N)
    s.units_per_task = max(1, <ix>(20e-6 / unit))
    scratch = 3 * TILE + s.carry * vector_size(N) + (s.B.gather + s.C.gather) * N * (s.block + GL)
    run_with(scan_task, &s, divided(s.units, s.units_per_task), scratch * sizeof(real),
             unit * s.units)
