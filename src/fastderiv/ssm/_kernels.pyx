"""The selective scan, forward, in one fused pass (docs/derivations.md §1).

VL channels lie in the lanes of a vector.  A task carries a few such vectors through time in blocks of TB steps; a block of
each input is transposed into a tile [time, lane], every four states run through the block with h in registers, and the
finished tile of y is transposed out.  No array of D·L·N elements exists.  Every output is computed by the same operations
in the same order whatever the strides, the blocks, the tasks and the threads are.
"""
from libc.string cimport memcpy, memset
cimport numpy as cnp
from fastderiv._core.simd cimport (EXP2_SAFE, GL, LOG2E, VL, ix, real, vabs, vall_lt, vdecay_any, vdecay_safe, vf, vfma,
                                   vload, vmax, vprefetch, vset1, vsilu, vsoftplus, vstore, vtranspose)
from fastderiv._core.threads cimport Worker, interrupted, run, task_t

cnp.import_array()

cdef enum:
    TB = 128                            # time steps in a block
    TILE = TB * VL + 7 * GL             # tiles an odd number of cache lines apart: no 4 KiB aliasing
    CARRY = 4                           # vectors of channels a task carries, where they share gathered B and C
    STEP_CARRY = 8                      # vectors of channels a unit of a single step takes
    SLOTS = STEP_CARRY * VL
    WIDTH = 16                          # states a square of it holds
    STEP_SCRATCH = 5 * SLOTS + 4 * VL * WIDTH

cdef struct Signal:                     # u, delta, z, out: strides of batch, channel, time, in elements
    real *p
    ix b, d, t

cdef struct Coefficient:                # B or C: (D, N) if constant, then g is the channel's stride, else (Bt, G, N, L)
    real *p
    ix b, g, n, t
    ix channels                         # in a group
    bint constant, gather               # gather: time is not contiguous, copy each block

cdef struct State:                      # initial or last state (segments, D, N)
    real *p
    ix s, d, n

cdef struct PerChannel:                 # D or delta_bias (D,)
    real *p
    ix d

cdef struct Vector:                     # one vector of channels within a task, in scratch
    real *a                             # [N, lane]: A·log2(e)
    real *h                             # [N, lane]
    real *before                        # [N, lane]: h at the start of the block
    real *b                             # [N, lane]: constant B
    real *c                             # [N, lane]: constant C
    real *limits                        # [lane]: max |A| log2(e), NaN if any is
    real *D
    real *bias
    ix channel, rows                    # first channel, channels in use
    bint finite                         # whether all of h is

cdef struct Scan:
    Signal u, delta, z, out
    Coefficient B, C
    State first, last
    real *A
    ix A_d, A_n
    PerChannel D, bias
    bint softplus
    const ix *starts                    # segments packed along time, or NULL: one segment a batch item
    ix segments, channels, states, steps
    ix block                            # time steps gathered at once
    ix part, carry, chunks              # channels that share B and C; vectors a task carries; chunks of a segment
    ix units, units_per_task            # a unit is one chunk of one segment


# ---- tiles --------------------------------------------------------------------------------------------------------

cdef inline void load_tile(const real *src, ix si, ix sj, ix ni, ix nj, real *dst, ix ld) noexcept nogil:
    """dst[j, i] = src[i, j] for i < ni, j < nj; src has strides si, sj and dst rows ld apart."""
    cdef ix i, j = 0
    cdef ix whole = ni - ni % VL
    if sj == 1:
        while j + VL <= nj:
            i = 0
            while i < whole:
                vtranspose(src + i * si + j, si, dst + j * ld + i, ld)
                i += VL
            while i < ni:
                copy(src + i * si + j, 1, dst + j * ld + i, ld, VL)
                i += 1
            j += VL
    elif si == 1:
        while j < nj:
            i = 0
            while i < whole:
                vstore(dst + j * ld + i, vload(src + j * sj + i))
                i += VL
            copy(src + j * sj + i, 1, dst + j * ld + i, 1, ni - i)
            j += 1
    while j < nj:
        copy(src + j * sj, si, dst + j * ld, 1, ni)
        j += 1


cdef inline void store_tile(const real *src, ix ld, real *dst, ix si, ix sj, ix ni, ix nj) noexcept nogil:
    """dst[i, j] = src[j, i]: load_tile backwards."""
    cdef ix i, j = 0
    cdef ix whole = ni - ni % VL
    if sj == 1:
        while j + VL <= nj:
            i = 0
            while i < whole:
                vtranspose(src + j * ld + i, ld, dst + i * si + j, si)
                i += VL
            while i < ni:
                copy(src + j * ld + i, ld, dst + i * si + j, 1, VL)
                i += 1
            j += VL
    elif si == 1:
        while j < nj:
            i = 0
            while i < whole:
                vstore(dst + j * sj + i, vload(src + j * ld + i))
                i += VL
            copy(src + j * ld + i, 1, dst + j * sj + i, 1, ni - i)
            j += 1
    while j < nj:
        copy(src + j * ld, 1, dst + j * sj, si, ni)
        j += 1


cdef inline void copy(const real *src, ix ss, real *dst, ix ds, ix n) noexcept nogil:
    cdef ix i
    for i in range(n):
        dst[i * ds] = src[i * ss]


cdef void load_signal(Signal *s, ix batch, Vector *v, ix t, ix T, real *tile) noexcept nogil:
    """tile[time, lane] of a block; unused lanes are zero."""
    if v.rows < VL:
        memset(tile, 0, T * VL * sizeof(real))
    load_tile(s.p + batch * s.b + v.channel * s.d + t * s.t, s.d, s.t, v.rows, T, tile, VL)


cdef struct Ahead:                      # one cache line to prefetch with every step: lines of a later block, spread out
    const real *p
    ix mask, lane, shift, line


cdef void look_ahead(Ahead *a, Signal *s, ix batch, Vector *v, ix t) noexcept nogil:
    """Step k of a block prefetches a line of the block at t: a lane's next line, or all lanes of one time."""
    a.p = s.p + batch * s.b + v.channel * s.d + t * s.t
    a.mask, a.lane, a.shift, a.line = 0, 0, 0, s.t
    if s.t == 1:
        a.mask, a.lane, a.line = VL - 1, s.d, GL
        while 1 << a.shift < VL:
            a.shift += 1


cdef inline void prefetch(Ahead *a, ix k) noexcept nogil:
    vprefetch(a.p + (k & a.mask) * a.lane + (k >> a.shift) * a.line)


# ---- the recurrence -----------------------------------------------------------------------------------------------

cdef inline vf advance(vf dt, vf a, vf h, vf du, vf b, const bint safe) noexcept nogil:
    return vdecay_safe(dt, a, h, du, b) if safe else vdecay_any(dt, a, h, du, b)


cdef inline vf coefficient(const real *p, ix t, const bint constant) noexcept nogil:
    return vload(p) if constant else vset1(p[t])


cdef inline void four_states(const real *dt, const real *du, real *y, const real *a, real *h, const real *B, ix ldb,
                             const real *C, ix ldc, ix T, const bint safe, const bint cb, const bint cc) noexcept nogil:
    """y += C·h over a block: h in registers, the tiles read once for four states."""
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
                           ix T, const bint safe, const bint cb, const bint cc) noexcept nogil:
    cdef vf a0 = vload(a), h0 = vload(h)
    cdef ix t
    for t in range(T):
        h0 = advance(vload(dt + t * VL), a0, h0, vload(du + t * VL), coefficient(B, t, cb), safe)
        vstore(y + t * VL, vfma(h0, coefficient(C, t, cc), vload(y + t * VL)))
    vstore(h, h0)


cdef inline void all_states(const real *dt, const real *du, real *y, Vector *v, ix N, const real *B, ix ldb,
                            const real *C, ix ldc, ix T, const bint safe, const bint cb, const bint cc) noexcept nogil:
    cdef ix n = 0
    while n + 4 <= N:
        four_states(dt, du, y, v.a + n * VL, v.h + n * VL, B + n * ldb, ldb, C + n * ldc, ldc, T, safe, cb, cc)
        n += 4
    while n < N:
        one_state(dt, du, y, v.a + n * VL, v.h + n * VL, B + n * ldb, C + n * ldc, T, safe, cb, cc)
        n += 1


cdef void recur(const real *dt, const real *du, real *y, Vector *v, ix N, const real *B, ix ldb, const real *C, ix ldc,
                ix T, bint safe, bint cb, bint cc) noexcept nogil:
    """Pick the loop made for these flags."""
    if cb:
        B, ldb = v.b, VL
    if cc:
        C, ldc = v.c, VL
    if safe and not cb and not cc:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, True, False, False)
    elif safe and cb and cc:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, True, True, True)
    elif safe and cb:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, True, True, False)
    elif safe:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, True, False, True)
    elif not cb and not cc:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, False, False, False)
    elif cb and cc:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, False, True, True)
    elif cb:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, False, True, False)
    else:
        all_states(dt, du, y, v, N, B, ldb, C, ldc, T, False, False, True)


cdef inline bint step_sizes(Vector *v, real *dt, real *du, real *y, ix T, const bint softplus, Ahead *ahead) noexcept nogil:
    """IN dt = delta, du = u; OUT dt = Δ, du = Δ·u, y = D·u.  Whether every Δ·A of the block is well inside exp's range."""
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
                     real *tiles) noexcept nogil:
    """One vector of channels through steps t … t+T−1."""
    cdef real *dt = tiles
    cdef real *du = tiles + TILE
    cdef real *y = tiles + 2 * TILE
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
    if s.D.p is NULL:                                   # not u·0: u may be inf
        memset(y, 0, T * VL * sizeof(real))
    safe = safe and v.finite
    if safe:
        memcpy(v.before, v.h, s.states * VL * sizeof(real))
        recur(dt, du, y, v, s.states, B, ldb, C, ldc, T, True, s.B.constant, s.C.constant)
        v.finite = all_finite(v.h, s.states)
    if not (safe and v.finite):                         # out of exp's range, or overflowed on the way: again, with care
        if safe:
            memcpy(v.h, v.before, s.states * VL * sizeof(real))
            skip_connection(s, v, batch, t, T, y)
        recur(dt, du, y, v, s.states, B, ldb, C, ldc, T, False, s.B.constant, s.C.constant)
        v.finite = all_finite(v.h, s.states)
    if s.z.p is not NULL:
        load_signal(&s.z, batch, v, t, T, dt)
        for i in range(T):
            vstore(y + i * VL, vload(y + i * VL) * vsilu(vload(dt + i * VL)))
    store_tile(y, VL, s.out.p + batch * s.out.b + v.channel * s.out.d + t * s.out.t, s.out.d, s.out.t, v.rows, T)


# ---- a unit of work: a few vectors of channels through one segment ------------------------------------------------

cdef ix vector_size(ix N) noexcept nogil:
    """Scratch of one Vector, in reals."""
    return (5 * N + 3) * VL + 5 * GL


cdef void load_rows(const real *src, ix sd, ix sn, Vector *v, ix N, real *dst) noexcept nogil:
    if v.rows < VL:
        memset(dst, 0, N * VL * sizeof(real))
    load_tile(src + v.channel * sd, sd, sn, v.rows, N, dst, VL)


cdef bint all_finite(const real *h, ix N) noexcept nogil:
    cdef vf odd = vset1(0)
    cdef ix n
    for n in range(N):
        odd = vfma(vload(h + n * VL), vset1(0), odd)
    return vall_lt(odd, vset1(1))


cdef void set_up(Scan *s, Vector *v, real *scratch) noexcept nogil:
    """What depends on the channels alone."""
    cdef ix N = s.states, n
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
    for n in range(N):
        a = vload(v.a + n * VL) * vset1(LOG2E)
        vstore(v.a + n * VL, a)
        top = vmax(top, vabs(a))
        odd = vfma(a, vset1(0), odd)
    vstore(v.limits, top + odd)
    if s.B.constant:
        load_rows(s.B.p, s.B.g, s.B.n, v, N, v.b)
    if s.C.constant:
        load_rows(s.C.p, s.C.g, s.C.n, v, N, v.c)
    memset(v.D, 0, 2 * VL * sizeof(real))
    if s.D.p is not NULL:
        copy(s.D.p + v.channel * s.D.d, s.D.d, v.D, 1, v.rows)
    if s.bias.p is not NULL:
        copy(s.bias.p + v.channel * s.bias.d, s.bias.d, v.bias, 1, v.rows)


cdef void first_state(Scan *s, Vector *v, ix segment) noexcept nogil:
    cdef State *h = &s.first
    if h.p is NULL:
        memset(v.h, 0, s.states * VL * sizeof(real))
    else:
        load_rows(h.p + segment * h.s, h.d, h.n, v, s.states, v.h)
    v.finite = all_finite(v.h, s.states)


cdef inline ix first_channel(Scan *s, ix chunk, ix *end) noexcept nogil:
    """Where the channels of a chunk begin and end: all within one part."""
    cdef ix per_part = (s.part + s.carry * VL - 1) // (s.carry * VL)        # chunks in a part
    cdef ix part = chunk // per_part
    cdef ix channel = part * s.part + chunk % per_part * s.carry * VL
    end[0] = min(channel + s.carry * VL, (part + 1) * s.part)
    return channel


cdef ix set_up_chunk(Scan *s, ix chunk, Vector *v, real *scratch) noexcept nogil:
    """The vectors of a chunk; how many they are."""
    cdef ix end, channel = first_channel(s, chunk, &end), k = 0
    while channel < end:
        v[k].channel, v[k].rows = channel, min(<ix>VL, end - channel)
        set_up(s, &v[k], scratch + k * vector_size(s.states))
        channel += VL
        k += 1
    return k


cdef const real *block_of(Coefficient *c, ix batch, ix channel, ix N, ix t, ix T, real *gathered, ix ld, ix *stride) noexcept nogil:
    """Rows [n, time] of a time-varying B or C: in place where time is contiguous, else copied."""
    cdef const real *p
    if c.constant:
        return NULL
    p = c.p + batch * c.b + channel // c.channels * c.g + t * c.t
    if not c.gather:
        stride[0] = c.n
        return p
    load_tile(p, c.t, c.n, T, N, gathered, ld)
    stride[0] = ld
    return gathered


cdef bint scan_segment(Scan *s, ix segment, Vector *v, ix vectors, real *gathered, real *tiles, Worker *worker) noexcept nogil:
    """A chunk through a segment; False if interrupted."""
    cdef ix batch = segment if s.starts is NULL else 0
    cdef ix t = 0 if s.starts is NULL else s.starts[segment]
    cdef ix stop = s.steps if s.starts is NULL else s.starts[segment + 1]
    cdef ix k, T, ldb = 0, ldc = 0, ld = s.block + GL
    cdef const real *B
    cdef const real *C
    for k in range(vectors):
        first_state(s, &v[k], segment)
    while t < stop:
        if interrupted(worker):
            return False
        T = min(s.block, stop - t)
        B = block_of(&s.B, batch, v.channel, s.states, t, T, gathered, ld, &ldb)
        C = block_of(&s.C, batch, v.channel, s.states, t, T, gathered + (s.states * ld if s.B.gather else 0), ld, &ldc)
        for k in range(vectors):
            scan_block(s, &v[k], batch, t, T, stop, B, ldb, C, ldc, tiles)
        t += T
    if s.last.p is not NULL:
        for k in range(vectors):
            store_tile(v[k].h, VL, s.last.p + segment * s.last.s + v[k].channel * s.last.d, s.last.d, s.last.n, v[k].rows, s.states)
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
            vectors = set_up_chunk(s, chunk, v, own)
            ready = chunk
        if not scan_segment(s, segment, v, vectors, gathered, tiles, worker):
            return


# ---- one step -----------------------------------------------------------------------------------------------------
#
# States that lie contiguous go into the lanes as they are, and only the new ones are turned around, for C·h to be added in
# the scan's order; others go through the scan's tiles.  Elementwise operations give the scan's bits either way.

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
    memset(lanes + whole, 0, (n - whole + VL - 1) // VL * VL * sizeof(real))
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
    cdef ix unit, channel, end
    memset(worker.scratch, 0, STEP_SCRATCH * sizeof(real))              # lanes without a channel are computed with
    for unit in range(i * s.units_per_task, min(s.units, (i + 1) * s.units_per_task)):
        channel = first_channel(s, unit % s.chunks, &end)
        step_unit(s, unit // s.chunks, channel, end - channel, <real *>worker.scratch)


# ---- from arrays to the struct ------------------------------------------------------------------------------------

cdef inline ix stride(cnp.ndarray a, int axis):
    return cnp.PyArray_STRIDE(a, axis) // <ix>sizeof(real)


cdef void set_signal(Signal *s, cnp.ndarray a):
    if a is None:
        s.p = NULL
        return
    s.p, s.b, s.d, s.t = <real *>cnp.PyArray_DATA(a), stride(a, 0), stride(a, 1), stride(a, 2)


cdef void set_state(State *s, cnp.ndarray a):
    if a is None:
        s.p = NULL
        return
    s.p, s.s, s.d, s.n = <real *>cnp.PyArray_DATA(a), stride(a, 0), stride(a, 1), stride(a, 2)


cdef void set_per_channel(PerChannel *s, cnp.ndarray a):
    if a is None:
        s.p = NULL
        return
    s.p, s.d = <real *>cnp.PyArray_DATA(a), stride(a, 0)


cdef void set_coefficient(Coefficient *c, cnp.ndarray a, ix channels):
    c.p, c.constant, c.gather, c.channels = <real *>cnp.PyArray_DATA(a), cnp.PyArray_NDIM(a) == 2, False, channels
    if c.constant:
        c.g, c.n = stride(a, 0), stride(a, 1)
        return
    c.b, c.g, c.n, c.t = stride(a, 0), stride(a, 1), stride(a, 2), stride(a, 3)
    c.channels = channels // cnp.PyArray_DIM(a, 1)
    c.gather = c.t != 1 and cnp.PyArray_DIM(a, 3) > 1


cdef void set_step_signal(Signal *s, cnp.ndarray a):
    """(Bt, D) or (D,), then b is never used."""
    if a is None:
        s.p = NULL
        return
    s.p, s.b, s.d, s.t = <real *>cnp.PyArray_DATA(a), stride(a, 0), stride(a, cnp.PyArray_NDIM(a) - 1), 0


cdef void set_step_coefficient(Coefficient *c, cnp.ndarray a, int axes, ix channels):
    """(Bt, N) or (Bt, G, N), without Bt where the state has two `axes`; strides of missing axes are never used."""
    cdef int last = cnp.PyArray_NDIM(a) - 1
    c.p, c.b, c.n = <real *>cnp.PyArray_DATA(a), stride(a, 0), stride(a, last)
    c.g, c.channels = 0, channels
    if last + 1 == axes:
        c.g, c.channels = stride(a, last - 1), channels // cnp.PyArray_DIM(a, last - 1)


cdef ix common_divisor(ix a, ix b) noexcept:
    while b:
        a, b = b, a % b
    return a


cdef int run_units(task_t task, Scan *s, double unit, ix scratch, bint interruptible) except -1:
    """Cut the work into units of `unit` seconds, those into tasks, and run them with `scratch` reals each."""
    cdef ix tasks
    s.part = common_divisor(s.B.channels, s.C.channels)
    s.chunks = s.channels // s.part * ((s.part + s.carry * VL - 1) // (s.carry * VL))
    s.units = s.segments * s.chunks
    s.units_per_task = max(1, <ix>(20e-6 / unit))
    tasks = (s.units + s.units_per_task - 1) // s.units_per_task
    return run(task, s, tasks, scratch * sizeof(real), unit * s.units, interruptible)


def scan(cnp.ndarray u, cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C, cnp.ndarray D, cnp.ndarray z,
         cnp.ndarray bias, bint softplus, cnp.ndarray first, cnp.ndarray last, cnp.ndarray starts, cnp.ndarray out):
    """Checked arrays of one dtype: u, delta, z, out (Bt, D, L); A (D, N); B, C (D, N) or (Bt, G, N, L); D, bias (D,);
    first, last (segments, D, N); starts (segments + 1,) intp.  D, z, bias, first, last and starts may be None."""
    cdef Scan s
    cdef ix N = cnp.PyArray_DIM(A, 1), scratch
    cdef double unit                                    # seconds
    s.channels, s.steps, s.states, s.softplus = cnp.PyArray_DIM(u, 1), cnp.PyArray_DIM(u, 2), N, softplus
    s.segments = cnp.PyArray_DIM(u, 0) if starts is None else cnp.PyArray_DIM(starts, 0) - 1
    if s.segments == 0 or s.channels == 0:
        return
    set_signal(&s.u, u)
    set_signal(&s.delta, delta)
    set_signal(&s.z, z)
    set_signal(&s.out, out)
    set_coefficient(&s.B, B, s.channels)
    set_coefficient(&s.C, C, s.channels)
    set_state(&s.first, first)
    set_state(&s.last, last)
    s.A, s.A_d, s.A_n = <real *>cnp.PyArray_DATA(A), stride(A, 0), stride(A, 1)
    set_per_channel(&s.D, D)
    set_per_channel(&s.bias, bias)
    s.starts = NULL if starts is None else <ix *>cnp.PyArray_DATA(starts)

    s.carry = CARRY if (s.B.gather or s.C.gather) and N <= 256 else 1
    s.block = TB
    while (s.B.gather or s.C.gather) and s.block > 16 and s.block * N > 16384:
        s.block //= 2
    unit = 1e-9 * sizeof(real) / 4 * VL * s.carry * (1 + <double>s.steps / (1 if starts is None else s.segments)) * (2 + 0.3 * N)
    scratch = 3 * TILE + s.carry * vector_size(N) + (s.B.gather + s.C.gather) * N * (s.block + GL)
    run_units(scan_task, &s, unit, scratch, True)


def step(cnp.ndarray h, cnp.ndarray x, cnp.ndarray dt, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C, cnp.ndarray D,
         cnp.ndarray z, cnp.ndarray bias, bint softplus, cnp.ndarray y):
    """Checked arrays of one dtype: h (Bt, D, N), overwritten; x, dt, z, y (Bt, D); A (D, N); B, C (Bt, N) or (Bt, G, N);
    D, bias (D,).  D, z and bias may be None; without Bt, it is missing everywhere.  Never interrupted."""
    cdef Scan s
    cdef int axes = cnp.PyArray_NDIM(h)
    s.segments, s.channels, s.states, s.softplus = 1, cnp.PyArray_DIM(h, axes - 2), cnp.PyArray_DIM(h, axes - 1), softplus
    if axes == 3:
        s.segments = cnp.PyArray_DIM(h, 0)
    if s.segments == 0 or s.channels == 0:
        return
    set_step_signal(&s.u, x)
    set_step_signal(&s.delta, dt)
    set_step_signal(&s.z, z)
    set_step_signal(&s.out, y)
    set_step_coefficient(&s.B, B, axes, s.channels)
    set_step_coefficient(&s.C, C, axes, s.channels)
    s.first.p, s.first.s = <real *>cnp.PyArray_DATA(h), stride(h, 0)
    s.first.d, s.first.n = stride(h, axes - 2), stride(h, axes - 1)
    s.A, s.A_d, s.A_n = <real *>cnp.PyArray_DATA(A), stride(A, 0), stride(A, 1)
    set_per_channel(&s.D, D)
    set_per_channel(&s.bias, bias)
    s.carry = STEP_CARRY
    run_units(step_task, &s, 1e-9 * sizeof(real) / 4 * SLOTS * (1 + 0.3 * s.states), STEP_SCRATCH, False)
