"""The selective scan, forward, in one fused pass (docs/derivations.md §1).

VL channels lie in the lanes of a vector.  A task carries a few such vectors through time in blocks of TB steps; a block of
each input is transposed into a tile [time, lane], every four states run through the block with h in registers, and the
finished tile of y is transposed out.  No array of D·L·N elements exists.  Every output is computed by the same operations
in the same order whatever the strides, the blocks, the tasks and the threads are.
"""
from libc.math cimport isfinite
from libc.string cimport memcpy, memset
cimport numpy as cnp
import numpy as np
from fastderiv._core.simd cimport (EXP2_SAFE, FOURS, GL, LOG2E, NS, PARTS, SHARE, VL, ix, real, vabs, vall_lt, vdecay_any, vdecay_safe, vexp2_any,
                                   vexp2_neg, vf, vfma, vload, vmax, vpartsums, vprefetch, vratio_any, vratio_safe, vsel_lt,
                                   vset1, vsilu, vsilu_slope, vsoftplus, vsoftplus_slope, vstore, vtranspose)
from fastderiv._core.threads cimport Worker, interrupted, run

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
    """Pick the loop made for these flags."""
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


cdef void recur_in_parts(const real *dt, const real *du, real *y, Vector *v, ix N, const real *B, ix ldb, const real *C, ix ldc,
                         ix T, bint safe, bint cb, bint cc, real *checkpoints) noexcept nogil:
    """The same; with `checkpoints`, leave the state before every PART steps there, and y alone."""
    cdef ix t = 0
    if checkpoints is NULL:
        recur(dt, du, y, v, N, B, ldb, C, ldc, T, safe, cb, cc)
        return
    while t < T:
        memcpy(checkpoints + t // PART * N * VL, v.h, N * VL * sizeof(real))
        recur(dt + t * VL, du + t * VL, NULL, v, N, B if cb else B + t, ldb, C, ldc, min(<ix>PART, T - t), safe, cb, cc)
        t += PART


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
                     real *tiles, real *checkpoints) noexcept nogil:
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
        recur_in_parts(dt, du, y, v, s.states, B, ldb, C, ldc, T, True, s.B.constant, s.C.constant, checkpoints)
        v.finite = all_finite(v.h, s.states)
    if not (safe and v.finite):                         # out of exp's range, or overflowed on the way: again, with care
        if safe:
            memcpy(v.h, v.before, s.states * VL * sizeof(real))
            skip_connection(s, v, batch, t, T, y)
        recur_in_parts(dt, du, y, v, s.states, B, ldb, C, ldc, T, False, s.B.constant, s.C.constant, checkpoints)
        v.finite = all_finite(v.h, s.states)
    if s.out.p is NULL:                                 # only the state counts: the adjoint's first pass, a chunk's summary
        return
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
    if s.C.p is NULL:
        memset(v.c, 0, N * VL * sizeof(real))
    elif s.C.constant:
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


cdef ix first_channel(Scan *s, ix chunk) noexcept nogil:
    cdef ix per_part = (s.part + s.carry * VL - 1) // (s.carry * VL)        # chunks in a part
    return chunk // per_part * s.part + chunk % per_part * s.carry * VL


cdef ix set_up_chunk(Scan *s, ix chunk, Vector *v, real *scratch) noexcept nogil:
    """The vectors of a chunk; how many they are."""
    cdef ix channel = first_channel(s, chunk)
    cdef ix end = min(channel + s.carry * VL, (channel // s.part + 1) * s.part), k = 0
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
            scan_block(s, &v[k], batch, t, T, stop, B, ldb, C, ldc, tiles, NULL)
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
        channel = first_channel(s, unit % s.chunks)
        end = min(channel + s.carry * VL, (channel // s.part + 1) * s.part)
        step_unit(s, unit // s.chunks, channel, end - channel, <real *>worker.scratch)


# ---- the adjoint --------------------------------------------------------------------------------------------------
# A task takes channels, a few logical groups at a time, through a range of segments: forward once, keeping the state before
# every block, then back, replaying one block at a time with all that the way back needs of it.

cdef enum:
    AHEAD = 7
    GROUPS = 4                          # logical groups of channels that share a look at B and C, and one addition to dB and dC
    PART = 32                           # steps replayed at once, so that what is kept of them fits the first-level cache
    PTILE = PART * VL + 7 * GL
    KEPT = 3 * PTILE                    # scale, rest and the state before of one state's steps
    TERMS = 2 * FOURS * NS * TILE       # four states' terms of dB and dC

cdef struct Adjoint:
    Scan s
    Signal dout, du, ddelta, dz
    State dlast, dfirst
    Coefficient dB, dC                  # where they vary in time
    real *more_B                        # (slices − 1, Bt, N, L): of the group that a slice shares with the slice before
    real *more_C
    real *sums                          # (ranges, rows, D): dA, constant dB and dC state by state, dD, dbias
    ix rows
    ix slices, ranges                   # a task is one slice of the channels through one range of the segments
    ix blocks                           # of the longest segment

cdef struct Back:                       # what the way back adds to a Vector, in scratch
    real *checkpoints                   # [block, N, lane]
    real *g                             # [N, lane]: Ā·h̄ of the step after
    real *sums                          # [rows, lane]
    real *low                           # [rows, lane]: what rounding took from them

cdef struct Row:                        # one state of a vector, in registers
    vf a, h, g, dA, dB, dC
    const real *B
    const real *C
    real *kept


cdef inline void replay_step(Row *r, ix t, vf d, vf x, const bint safe, const bint cb) noexcept nogil:
    cdef vf b = coefficient(r.B, t, cb), rest
    cdef vf scale = vratio_safe(d, r.a, &rest) if safe else vratio_any(d, r.a, &rest)
    cdef vf g = scale * r.h
    vstore(r.kept + t * VL, scale)
    vstore(r.kept + PTILE + t * VL, rest)
    vstore(r.kept + 2 * PTILE + t * VL, r.h)
    r.h = vfma(rest, g, vfma(x, b, g)) if safe else vdecay_any(d, r.a, r.h, x, b)


cdef inline void back_step(Row *r, ix t, vf d, vf x, vf dy, vf *y, vf *dx, vf *dd, vf *B, vf *C, const bint gate, const bint cb,
                           const bint cc) noexcept nogil:
    """h̄[t] and its part in every gradient: y += C·h, dx += h̄·B, dd += Ā̄·Ā·A; OUT B, C: the lanes' terms of dB[t] and dC[t]."""
    cdef vf c = coefficient(r.C, t, cc)
    cdef vf g = vfma(dy, c, r.g), q
    if gate:
        y[0] = vfma(r.h, c, y[0])
    if cc:
        r.dC = vfma(dy, r.h, r.dC)
    else:
        C[0] = dy * r.h
    if cb:
        r.dB = vfma(g, x, r.dB)
    else:
        B[0] = g * x
    dx[0] = vfma(g, coefficient(r.B, t, cb), dx[0])
    g = g * vload(r.kept + t * VL)
    r.g = vfma(vload(r.kept + PTILE + t * VL), g, g)
    r.h = vload(r.kept + 2 * PTILE + t * VL)
    q = r.g * r.h
    dd[0] = vfma(q, r.a, dd[0])
    r.dA = vfma(q, d, r.dA)


cdef enum:                              # tiles of one vector's block, [time, lane] each
    DT = 0 * TILE                       # Δ
    X = 1 * TILE                        # Δ·u
    U = 2 * TILE
    SLOPE = 3 * TILE                    # dΔ/dδ
    DY = 4 * TILE                       # dout·silu(z)
    DZ = 5 * TILE                       # dout·silu'(z), then dz
    Y = 6 * TILE                        # C·h + D·u
    DX = 7 * TILE                       # Σ h̄·B
    DD = 8 * TILE                       # Σ Ā̄·Ā·A·log2(e)
    TILES = 9 * TILE


cdef inline void start_row(Row *r, ix n, Vector *v, Back *w, const real *h, const real *B, ix ldb, const real *C, ix ldc,
                           real *kept) noexcept nogil:
    r.a, r.h, r.g = vload(v.a + n * VL), vload(h + n * VL), vload(w.g + n * VL)
    r.dA = r.dB = r.dC = vset1(0)
    r.B, r.C, r.kept = B + n * ldb, C + n * ldc, kept


cdef inline void add(real *sum, real *low, vf x) noexcept nogil:
    """sum + low += x, with what rounding takes from sum going to low."""
    cdef vf a = vload(sum)
    cdef vf s = a + x
    cdef vf b = s - a
    vstore(sum, s)
    vstore(low, vload(low) + ((a - (s - b)) + (x - b)))


cdef inline void end_row(Row *r, ix n, ix N, Back *w, const bint cb, const bint cc) noexcept nogil:
    cdef ix row = n
    vstore(w.g + n * VL, r.g)
    add(w.sums + row * VL, w.low + row * VL, r.dA)
    if cb:
        row += N
        add(w.sums + row * VL, w.low + row * VL, r.dB)
    if cc:
        row += N
        add(w.sums + row * VL, w.low + row * VL, r.dC)


cdef inline bint finite(vf h) noexcept nogil:
    return vall_lt(vfma(h, vset1(0), vset1(0)), vset1(1))


cdef inline bint replay(real *w, Row *r0, Row *r1, Row *r2, Row *r3, ix T, const ix rows, const bint safe, const bint cb) noexcept nogil:
    """1. Forward through a block.  Whether the states stayed finite."""
    cdef vf d, x
    cdef ix t
    if safe and not finite(r0.h + r1.h + r2.h + r3.h if rows == 4 else r0.h):
        return False
    for t in range(T):
        d = vload(w + DT + t * VL)
        x = vload(w + X + t * VL)
        replay_step(r0, t, d, x, safe, cb)
        if rows == 4:
            replay_step(r1, t, d, x, safe, cb)
            replay_step(r2, t, d, x, safe, cb)
            replay_step(r3, t, d, x, safe, cb)
    return finite(r0.h + r1.h + r2.h + r3.h if rows == 4 else r0.h)


cdef inline void back(real *w, Row *r0, Row *r1, Row *r2, Row *r3, ix T, real *terms, bint more, const ix rows, const bint gate,
                      const bint cb, const bint cc) noexcept nogil:
    """2. Back through it."""
    cdef vf B[4]
    cdef vf C[4]
    cdef vf d, x, dy, y = vset1(0), dx, dd
    cdef ix i, t
    for i in range(4):
        B[i] = C[i] = vset1(0)
    for i in range(T):
        t = T - 1 - i
        d, x, dy = vload(w + DT + t * VL), vload(w + X + t * VL), vload(w + DY + t * VL)
        dx, dd = vload(w + DX + t * VL), vload(w + DD + t * VL)
        if gate:
            y = vload(w + Y + t * VL)
        back_step(r0, t, d, x, dy, &y, &dx, &dd, &B[0], &C[0], gate, cb, cc)
        if rows == 4:
            back_step(r1, t, d, x, dy, &y, &dx, &dd, &B[1], &C[1], gate, cb, cc)
            back_step(r2, t, d, x, dy, &y, &dx, &dd, &B[2], &C[2], gate, cb, cc)
            back_step(r3, t, d, x, dy, &y, &dx, &dd, &B[3], &C[3], gate, cb, cc)
        vstore(w + DX + t * VL, dx)
        vstore(w + DD + t * VL, dd)
        if gate:
            vstore(w + Y + t * VL, y)
        if not cb:
            add_up(B, terms + t * VL, more)
        if not cc:
            add_up(C, terms + TERMS // 2 + t * VL, more)


cdef inline void add_up(const vf *four, real *terms, bint more) noexcept nogil:
    """Sum the lanes within parts, and onto what the groups before have left."""
    cdef vf sums[FOURS]
    cdef ix i
    vpartsums(four[0], four[1], four[2], four[3], sums)
    for i in range(FOURS):
        if more:
            sums[i] = sums[i] + vload(terms + i * NS * TILE)
        vstore(terms + i * NS * TILE, sums[i])


cdef inline void some_rows(real *w, ix t, Vector *v, Back *k, const real *h, ix n, ix N, const real *B, ix ldb, const real *C,
                           ix ldc, ix T, real *terms, bint more, bint safe, const ix rows, const bint gate, const bint cb,
                           const bint cc) noexcept nogil:
    """Both ways for `rows` states, 1 or 4, through T steps from t."""
    cdef Row r0, r1, r2, r3
    cdef real *kept = w + TILES
    cdef ix again
    if not cb:
        B += t
    if not cc:
        C += t
    w += t * VL
    h += t // PART * N * VL
    terms += t * VL
    for again in range(2):
        start_row(&r0, n, v, k, h, B, ldb, C, ldc, kept)
        if rows == 4:
            start_row(&r1, n + 1, v, k, h, B, ldb, C, ldc, kept + KEPT)
            start_row(&r2, n + 2, v, k, h, B, ldb, C, ldc, kept + 2 * KEPT)
            start_row(&r3, n + 3, v, k, h, B, ldb, C, ldc, kept + 3 * KEPT)
        if again:
            replay(w, &r0, &r1, &r2, &r3, T, rows, False, cb)
        elif safe and replay(w, &r0, &r1, &r2, &r3, T, rows, True, cb):
            break
    back(w, &r0, &r1, &r2, &r3, T, terms, more, rows, gate, cb, cc)
    end_row(&r0, n, N, k, cb, cc)
    if rows == 4:
        end_row(&r1, n + 1, N, k, cb, cc)
        end_row(&r2, n + 2, N, k, cb, cc)
        end_row(&r3, n + 3, N, k, cb, cc)


cdef inline void all_rows(real *w, Vector *v, Back *k, const real *h, ix N, const real *B, ix ldb, const real *C, ix ldc,
                          ix T, real *terms, bint more, bint safe, const bint gate, const bint cb, const bint cc) noexcept nogil:
    cdef ix n = 0, t
    while n < N:
        t = (T - 1) // PART * PART
        while t >= 0:
            if n + 4 <= N:
                some_rows(w, t, v, k, h, n, N, B, ldb, C, ldc, min(<ix>PART, T - t), terms, more, safe, 4, gate, cb, cc)
            else:
                some_rows(w, t, v, k, h, n, N, B, ldb, C, ldc, min(<ix>PART, T - t), terms, more, safe, 1, gate, cb, cc)
            t -= PART
        n += 4 if n + 4 <= N else 1
        terms += TERMS


cdef void there_and_back(real *w, Vector *v, Back *k, const real *h, ix N, const real *B, ix ldb, const real *C, ix ldc,
                         ix T, real *terms, bint more, bint safe, bint gate, bint cb, bint cc) noexcept nogil:
    """Pick the loop made for these flags."""
    if cb:
        B, ldb = v.b, VL
    if cc:
        C, ldc = v.c, VL
    if gate and not cb and not cc:
        all_rows(w, v, k, h, N, B, ldb, C, ldc, T, terms, more, safe, True, False, False)
    elif gate and cb and cc:
        all_rows(w, v, k, h, N, B, ldb, C, ldc, T, terms, more, safe, True, True, True)
    elif gate and cb:
        all_rows(w, v, k, h, N, B, ldb, C, ldc, T, terms, more, safe, True, True, False)
    elif gate:
        all_rows(w, v, k, h, N, B, ldb, C, ldc, T, terms, more, safe, True, False, True)
    elif not cb and not cc:
        all_rows(w, v, k, h, N, B, ldb, C, ldc, T, terms, more, safe, False, False, False)
    elif cb and cc:
        all_rows(w, v, k, h, N, B, ldb, C, ldc, T, terms, more, safe, False, True, True)
    elif cb:
        all_rows(w, v, k, h, N, B, ldb, C, ldc, T, terms, more, safe, False, True, False)
    else:
        all_rows(w, v, k, h, N, B, ldb, C, ldc, T, terms, more, safe, False, False, True)


cdef inline bint prepare_steps(real *w, Vector *v, ix T, Ahead *ahead, const bint softplus) noexcept nogil:
    """IN DT = delta, U; OUT DT, X, SLOPE; DX and DD zero.  Whether every Δ·A of the block is well inside exp's range."""
    cdef vf bias = vload(v.bias), top = vset1(0), odd = vset1(0)
    cdef vf d, slope
    cdef ix t
    for t in range(T):
        prefetch(ahead, t)
        prefetch(ahead + 1, t)
        prefetch(ahead + 2, t)
        prefetch(ahead + 3, t)
        d = vload(w + DT + t * VL) + bias
        if softplus:
            d = vsoftplus_slope(d, &slope)
            vstore(w + SLOPE + t * VL, slope)
        top = vmax(top, vabs(d))
        odd = vfma(d, vset1(0), odd)
        vstore(w + DT + t * VL, d)
        vstore(w + X + t * VL, d * vload(w + U + t * VL))
        vstore(w + DX + t * VL, vset1(0))
        vstore(w + DD + t * VL, vset1(0))
    return vall_lt(vfma(top, vload(v.limits), odd), vset1(EXP2_SAFE))


cdef inline void prepare_gate(real *w, Vector *v, ix T, Ahead *ahead, const bint gate) noexcept nogil:
    """IN DY = dout, DZ = z, U; OUT DY, DZ = dout·silu'(z), Y = D·u; without a gate nothing but prefetches.

    A loop of its own: with the one above in one, too few steps are in flight at once."""
    cdef vf skip = vload(v.D)
    cdef vf g, s, slope
    cdef ix t
    for t in range(T):
        prefetch(ahead, t)
        prefetch(ahead + 1, t)
        prefetch(ahead + 2, t)
        if gate:
            g = vload(w + DY + t * VL)
            s = vsilu_slope(vload(w + DZ + t * VL), &slope)
            vstore(w + DY + t * VL, g * s)
            vstore(w + DZ + t * VL, g * slope)
            vstore(w + Y + t * VL, vload(w + U + t * VL) * skip)


cdef inline void finish(real *w, Vector *v, Back *k, ix rows, ix T, const bint softplus, const bint gate) noexcept nogil:
    """3. From h̄ to the arguments: dt = ddelta, dx = du, dz; dD and dbias into the sums."""
    cdef vf skip = vload(v.D), dD = vset1(0), dbias = vset1(0)
    cdef vf x, dx, dy, dd
    cdef ix t
    for t in range(T):
        x, dx, dy = vload(w + U + t * VL), vload(w + DX + t * VL), vload(w + DY + t * VL)
        dd = vfma(vload(w + DD + t * VL), vset1(1 / LOG2E), dx * x)
        if softplus:
            dd = dd * vload(w + SLOPE + t * VL)
        dD = vfma(dy, x, dD)
        dbias = dbias + dd
        vstore(w + DX + t * VL, vfma(dx, vload(w + DT + t * VL), dy * skip))
        vstore(w + DT + t * VL, dd)
        if gate:
            vstore(w + DZ + t * VL, vload(w + DZ + t * VL) * vload(w + Y + t * VL))
    add(k.sums + (rows - 2) * VL, k.low + (rows - 2) * VL, dD)
    add(k.sums + (rows - 1) * VL, k.low + (rows - 1) * VL, dbias)


cdef void store_signal(Signal *s, ix batch, Vector *v, ix t, ix T, const real *tile) noexcept nogil:
    store_tile(tile, VL, s.p + batch * s.b + v.channel * s.d + t * s.t, s.d, s.t, v.rows, T)


cdef void adjoint_block(Adjoint *j, Vector *v, Back *k, const real *h, ix batch, ix t, ix T, Vector *next, ix then,
                        const real *B, ix ldb, const real *C, ix ldc, real *terms, bint more, real *w) noexcept nogil:
    """One vector of channels through steps t … t+T−1 from state h, and back; then comes the vector `next` from step `then`.
    Its terms of dB and dC are added to `terms` if there are `more`, that is some already."""
    cdef Scan *s = &j.s
    cdef Ahead ahead[AHEAD]
    cdef bint safe, gate = s.z.p is not NULL
    look_ahead(ahead, &s.delta, batch, next, then)
    look_ahead(ahead + 1, &s.u, batch, next, then)
    look_ahead(ahead + 2, &j.dout, batch, next, then)
    look_ahead(ahead + 3, &s.z if gate else &s.u, batch, next, then)
    look_ahead(ahead + 4, &j.du, batch, v, t)           # to be written at the end of this block
    look_ahead(ahead + 5, &j.ddelta, batch, v, t)
    look_ahead(ahead + 6, &j.dz if gate else &j.du, batch, v, t)
    load_signal(&s.delta, batch, v, t, T, w + DT)
    load_signal(&s.u, batch, v, t, T, w + U)
    load_signal(&j.dout, batch, v, t, T, w + DY)
    if gate:
        load_signal(&s.z, batch, v, t, T, w + DZ)
    if s.softplus:
        safe = prepare_steps(w, v, T, ahead, True)
    else:
        safe = prepare_steps(w, v, T, ahead, False)
    if gate:
        prepare_gate(w, v, T, ahead + 4, True)
    else:
        prepare_gate(w, v, T, ahead + 4, False)
    if gate and s.D.p is NULL:                          # not u·0: u may be inf
        memset(w + Y, 0, T * VL * sizeof(real))
    there_and_back(w, v, k, h, s.states, B, ldb, C, ldc, T, terms, more, safe, gate,
                   s.B.constant, s.C.constant)
    finish(w, v, k, j.rows, T, s.softplus, gate)
    store_signal(&j.du, batch, v, t, T, w + DX)
    store_signal(&j.ddelta, batch, v, t, T, w + DT)
    if gate:
        store_signal(&j.dz, batch, v, t, T, w + DZ)

cdef ix slice_start(Adjoint *j, ix i) noexcept nogil:
    """The first chunk of slice i."""
    return i * j.s.chunks // j.slices


cdef ix range_start(Adjoint *j, ix i) noexcept nogil:
    """The first segment of range i: ranges of equally many segments, or of about equally many packed steps."""
    cdef const ix *starts = j.s.starts
    cdef ix low = 0, high = j.s.segments, middle
    if starts is NULL or i == j.ranges or i == 0:
        return i * j.s.segments // j.ranges
    while low < high:
        middle = (low + high) // 2
        if starts[middle] < i * (j.s.steps // j.ranges):
            low = middle + 1
        else:
            high = middle
    return low


cdef real *target(Adjoint *j, Coefficient *c, real *more, ix i, ix batch, ix channel) noexcept nogil:
    """Where slice i adds its share of dB or dC: [N, L] of the channel's group, or of what the slices before have begun."""
    cdef ix start = first_channel(&j.s, slice_start(j, i)), group = channel // c.channels
    cdef ix items = j.s.segments if j.s.starts is NULL else 1
    if start > 0 and group == (start - 1) // c.channels:
        return more + ((i - 1) * items + batch) * j.s.states * j.s.steps
    return c.p + (batch * (j.s.channels // c.channels) + group) * j.s.states * j.s.steps


cdef ix slots(ix N) noexcept nogil:
    """Of terms: one for four states, one for each that remains."""
    return N // 4 + N % 4


cdef void add_row(const real *parts, real *to, ix n) noexcept nogil:
    """to += the sum of a logical group's parts, SHARE rows apart, adjacent pairs first."""
    cdef vf sums[PARTS]
    cdef real last[VL]
    cdef ix i, m = PARTS
    for i in range(PARTS):
        sums[i] = vload(parts + i * SHARE * VL)
    while m > 1:
        m //= 2
        for i in range(m):
            sums[i] = sums[2 * i] + sums[2 * i + 1]
    if n == VL:
        vstore(to, vload(to) + sums[0])
        return
    vstore(last, sums[0])
    for i in range(n):
        to[i] += last[i]


cdef void add_terms(const real *terms, ix vectors, ix N, ix T, real *to, ix L) noexcept nogil:
    """to[n, t] += the terms, summed over all lanes of the logical group."""
    cdef real square[NS * VL * VL]
    cdef ix slot, n, rows, i, t, m
    for slot in range(slots(N)):
        rows = 4 if slot < N // 4 else 1
        n = 4 * slot if rows == 4 else slot + N // 4 * 3
        for i in range(FOURS):
            t = 0
            while t < T:
                for m in range(NS):
                    if m < vectors:
                        vtranspose(terms + slot * TERMS + (i * NS + m) * TILE + t * VL, VL, square + m * VL * VL, VL)
                    else:
                        memset(square + m * VL * VL, 0, VL * VL * sizeof(real))
                for m in range(i * SHARE, min(rows, (i + 1) * SHARE)):
                    add_row(square + (m - i * SHARE) * VL, to + (n + m) * L + t, min(<ix>VL, T - t))
                t += VL


cdef void fetch_rows(const real *p, ix stride, ix N, ix T) noexcept nogil:
    """Have rows [n, time] of dB or dC at hand when terms are added to them."""
    cdef ix n, t
    for n in range(N):
        t = 0
        while t < T:
            vprefetch(p + n * stride + t)
            t += GL


cdef real *checkpoint(Back *k, ix N, ix t) noexcept nogil:
    """The state t steps into a segment, t a multiple of PART."""
    return k.checkpoints + t // PART * N * VL


cdef bint adjoint_segment(Adjoint *j, ix segment, ix i, Vector *v, Back *k, ix vectors, real *gathered, real *tiles,
                          Worker *worker) noexcept nogil:
    """The channels of a logical group through a segment and back; False if interrupted."""
    cdef Scan *s = &j.s
    cdef Scan forward = j.s
    cdef ix N = s.states, ld = s.block + GL, ldb = 0, ldc = 0, batch = 0, start = 0, stop = s.steps, block, t, T, m, ahead
    cdef bint last
    cdef real *gathered_C = gathered + (N * ld if s.B.gather else 0)
    cdef real *terms = tiles + TILES + 4 * KEPT
    cdef real *dB
    cdef real *dC
    cdef const real *B
    cdef const real *C
    forward.out.p = NULL
    if s.starts is NULL:
        batch = segment
    else:
        start, stop = s.starts[segment], s.starts[segment + 1]
    for m in range(vectors):
        first_state(s, &v[m], segment)
        first_state_adjoint(j, &v[m], &k[m], segment)
    block = 0
    t = start
    while t < stop:
        if interrupted(worker):
            return False
        T = min(<ix>TB, stop - t)
        ahead = T if t + T < stop else (T - 1) // PART * PART       # the state after the last part is nobody's
        B = block_of(&s.B, batch, v.channel, N, t, T, gathered, ld, &ldb)
        for m in range(vectors):
            scan_block(&forward, &v[m], batch, t, ahead, stop, B, ldb, NULL, 0, tiles, checkpoint(&k[m], N, t - start))
            memcpy(checkpoint(&k[m], N, t - start + ahead), v[m].h, N * VL * sizeof(real))
        block += 1
        t += T
    while block > 0:
        if interrupted(worker):
            return False
        block -= 1
        t = start + block * TB
        T = min(<ix>TB, stop - t)
        B = block_of(&s.B, batch, v.channel, N, t, T, gathered, ld, &ldb)
        C = block_of(&s.C, batch, v.channel, N, t, T, gathered_C, ld, &ldc)
        dB = NULL if s.B.constant else target(j, &j.dB, j.more_B, i, batch, v.channel) + t
        dC = NULL if s.C.constant else target(j, &j.dC, j.more_C, i, batch, v.channel) + t
        fetch_rows(dB, s.steps, 0 if s.B.constant else N, T)
        fetch_rows(dC, s.steps, 0 if s.C.constant else N, T)
        for m in range(vectors):
            last = m == vectors - 1
            adjoint_block(j, &v[m], &k[m], checkpoint(&k[m], N, t - start), batch, t, T, &v[0] if last else &v[m + 1],
                          max(t - TB, start) if last else t, B, ldb, C, ldc, terms + m % NS * TILE, m >= NS, tiles)
        if not s.B.constant:
            add_terms(terms, vectors, N, T, dB, s.steps)
        if not s.C.constant:
            add_terms(terms + TERMS // 2, vectors, N, T, dC, s.steps)
    if j.dfirst.p is not NULL:
        for m in range(vectors):
            store_tile(k[m].g, VL, j.dfirst.p + segment * j.dfirst.s + v[m].channel * j.dfirst.d, j.dfirst.d, j.dfirst.n, v[m].rows, N)
    return True


cdef void first_state_adjoint(Adjoint *j, Vector *v, Back *k, ix segment) noexcept nogil:
    if j.dlast.p is NULL:
        memset(k.g, 0, j.s.states * VL * sizeof(real))
    else:
        load_rows(j.dlast.p + segment * j.dlast.s, j.dlast.d, j.dlast.n, v, j.s.states, k.g)


cdef ix back_size(Adjoint *j) noexcept nogil:
    """Scratch of one Back, in reals."""
    return ((j.blocks * (TB // PART) + 1) * j.s.states + 2 * j.rows) * VL


cdef void set_up_back(Adjoint *j, Back *k, real *scratch) noexcept nogil:
    cdef ix N = j.s.states
    k.checkpoints = scratch
    k.g = checkpoint(k, N, j.blocks * TB)
    k.sums = k.g + N * VL
    k.low = k.sums + j.rows * VL
    memset(k.sums, 0, 2 * j.rows * VL * sizeof(real))


cdef void store_sums(Adjoint *j, ix i, Vector *v, Back *k) noexcept nogil:
    cdef real *to = j.sums + i * j.rows * j.s.channels + v.channel
    cdef vf sum, low
    cdef ix row
    for row in range(j.rows):
        sum, low = vload(k.sums + row * VL), vload(k.low + row * VL)
        vstore(k.sums + row * VL, vsel_lt(vabs(low), vset1(1e30), sum + low, sum))      # an infinite sum has NaN for its low part
        copy(k.sums + row * VL, 1, to + row * j.s.channels, 1, v.rows)


cdef void adjoint_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Adjoint *j = <Adjoint *>args
    cdef Scan *s = &j.s
    cdef Vector v[GROUPS * NS]
    cdef Back k[GROUPS * NS]
    cdef real *tiles = <real *>worker.scratch
    cdef real *gathered = tiles + TILES + 4 * KEPT + slots(s.states) * TERMS
    cdef real *own = gathered + (s.B.gather + s.C.gather) * s.states * (s.block + GL)
    cdef ix piece = i % j.slices, r = i // j.slices, chunk, segment, vectors, m
    for chunk in range(slice_start(j, piece), slice_start(j, piece + 1)):
        vectors = set_up_chunk(s, chunk, v, own)
        for m in range(vectors):
            set_up_back(j, &k[m], own + s.carry * vector_size(s.states) + m * back_size(j))
        for segment in range(range_start(j, r), range_start(j, r + 1)):
            if not adjoint_segment(j, segment, piece, v, k, vectors, gathered, tiles, worker):
                return
        for m in range(vectors):
            store_sums(j, r, &v[m], &k[m])


cdef void join_task(void *args, ix i, Worker *worker) noexcept nogil:
    """dB and dC of batch item i: add what slices have put aside for groups that slices before them began."""
    cdef Adjoint *j = <Adjoint *>args
    cdef ix p
    for p in range(1, j.slices):
        if not j.s.B.constant:
            join(j, &j.dB, j.more_B, p, i)
        if not j.s.C.constant:
            join(j, &j.dC, j.more_C, p, i)


cdef void join(Adjoint *j, Coefficient *c, real *more, ix p, ix batch) noexcept nogil:
    cdef ix channel = first_channel(&j.s, slice_start(j, p)), m
    cdef const real *src = target(j, c, more, p, batch, channel)
    cdef real *dst = c.p + (batch * (j.s.channels // c.channels) + channel // c.channels) * j.s.states * j.s.steps
    if src is not dst:
        for m in range(j.s.states * j.s.steps):
            dst[m] += src[m]


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

cdef struct Query:
    ix l
    real *c                             # [N]: C
    real *g                             # [N]: exp(A·gap)·C
    real *out
    Sum gap                             # Σ Δ from the block's end to l


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
    cdef ix j = 0, n, N = s.states
    if T < AB:
        memset(v.dt, 0, AB * sizeof(real))
        memset(v.x, 0, AB * sizeof(real))
        memset(v.b, 0, AB * N * sizeof(real))
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
            for j in range(AB):
                v.b[n * AB + j] = B[n * s.B.n]
    else:
        B = s.B.p + batch * s.B.b + channel // s.B.channels * s.B.g + t * s.B.t
        load_tile(B, s.B.t, s.B.n, T, N, v.b, AB)


cdef inline void exact_row(Channel *v, const real *x, const real *c, ix N, ix T, real *y, const bint tame) noexcept nogil:
    """OUT y[j] = Σ_n C·exp(A·x[j])·B·Δ: no factor but exp(A·x)."""
    cdef ix j = 0, n
    cdef vf sum, r
    while j < T:
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
        a, j = vset1(v.a[n]), 0
        while j < AB:
            vstore(v.w + n * AB + j, vexp2_neg(vload(v.x + j), a) * (vload(v.dt + j) * vload(v.b + n * AB + j)))
            j += VL


cdef void decay_row(Channel *v, Query *row, ix N) noexcept nogil:
    """OUT g = exp(A·gap)·C."""
    cdef ix n = 0
    cdef vf gap = vset1(<real>sum_of(&row.gap))
    while n < N:
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
    while j < AB:
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
    return (n + GL - 1) // GL * GL


cdef void set_up_channel(Attention *s, Channel *v, ix channel, real *scratch) noexcept nogil:
    cdef ix n, N = s.states
    v.dt = scratch
    v.x = v.dt + AB
    v.own = v.x + AB
    v.y = v.own + AB
    v.b = v.y + AB
    v.w = v.b + AB * N
    v.a = v.w + AB * N
    copy(s.A + channel * s.A_d, s.A_n, v.a, 1, N)
    v.decays = True
    for n in range(N):
        v.a[n] = v.a[n] * LOG2E
        v.decays = v.decays and isfinite(v.a[n]) and v.a[n] <= 0


cdef void set_up_rows(Attention *s, ix batch, ix channel, ix first, ix count, Query *rows, real *scratch) noexcept nogil:
    cdef ix i, N = s.states, ld = whole_vectors(N)
    cdef const real *C = s.C.p + channel * s.C.g
    if not s.C.constant:
        C = s.C.p + batch * s.C.b + channel // s.C.channels * s.C.g
    for i in range(count):
        rows[i].l = s.rows[first + i]
        rows[i].c = scratch + 2 * i * ld
        rows[i].g = rows[i].c + ld
        rows[i].out = s.out + ((batch * s.channels + channel) * s.count + first + i) * s.steps
        copy(C if s.C.constant else C + rows[i].l * s.C.t, s.C.n, rows[i].c, 1, N)


cdef void attention_task(void *args, ix i, Worker *worker) noexcept nogil:
    """Some rows of one channel, from the last block of columns to the first."""
    cdef Attention *s = <Attention *>args
    cdef Channel v
    cdef Query *rows = <Query *>worker.scratch
    cdef real *scratch = <real *>(rows + s.block)
    cdef ix item = i // s.blocks, first = i % s.blocks * s.block, N = s.states, k, t = 0
    cdef ix batch = item // s.channels, channel = item % s.channels, count = min(s.block, s.count - first)
    set_up_channel(s, &v, channel, scratch)
    set_up_rows(s, batch, channel, first, count, rows, v.a + whole_vectors(N))
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
    if a is None:
        c.p, c.constant, c.gather, c.channels = NULL, True, False, channels
        return
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


cdef void set_scan(Scan *s, cnp.ndarray u, cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C, cnp.ndarray D,
                   cnp.ndarray z, cnp.ndarray bias, bint softplus, cnp.ndarray first, cnp.ndarray starts):
    s.channels, s.steps, s.states, s.softplus = cnp.PyArray_DIM(u, 1), cnp.PyArray_DIM(u, 2), cnp.PyArray_DIM(A, 1), softplus
    s.segments = cnp.PyArray_DIM(u, 0) if starts is None else cnp.PyArray_DIM(starts, 0) - 1
    set_signal(&s.u, u)
    set_signal(&s.delta, delta)
    set_signal(&s.z, z)
    set_coefficient(&s.B, B, s.channels)
    set_coefficient(&s.C, C, s.channels)
    set_state(&s.first, first)
    s.A, s.A_d, s.A_n = <real *>cnp.PyArray_DATA(A), stride(A, 0), stride(A, 1)
    set_per_channel(&s.D, D)
    set_per_channel(&s.bias, bias)
    s.starts = NULL if starts is None else <ix *>cnp.PyArray_DATA(starts)
    s.part = common_divisor(s.B.channels, s.C.channels)


cdef ix set_chunks(Scan *s, ix carry):
    """Chunks of so many vectors; how many there are."""
    s.carry = carry
    s.chunks = s.channels // s.part * ((s.part + carry * VL - 1) // (carry * VL))
    return s.chunks


def scan(cnp.ndarray u, cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C, cnp.ndarray D, cnp.ndarray z,
         cnp.ndarray bias, bint softplus, cnp.ndarray first, cnp.ndarray last, cnp.ndarray starts, cnp.ndarray out):
    """Checked arrays of one dtype: u, delta, z, out (Bt, D, L); A (D, N); B, C (D, N) or (Bt, G, N, L); D, bias (D,);
    first, last (segments, D, N); starts (segments + 1,) intp.  C, D, z, bias, first, last, starts and out may be None."""
    cdef Scan s
    cdef ix N = cnp.PyArray_DIM(A, 1), scratch
    cdef double unit                                    # seconds
    if cnp.PyArray_DIM(u, 1) == 0:
        return
    set_scan(&s, u, delta, A, B, C, D, z, bias, softplus, first, starts)
    if s.segments == 0:
        return
    set_signal(&s.out, out)
    set_state(&s.last, last)
    s.block = TB
    while (s.B.gather or s.C.gather) and s.block > 16 and s.block * N > 16384:
        s.block //= 2
    s.units = s.segments * set_chunks(&s, CARRY if (s.B.gather or s.C.gather) and N <= 256 else 1)
    unit = 1e-9 * sizeof(real) / 4 * VL * s.carry * (1 + <double>s.steps / (1 if starts is None else s.segments)) * (2 + 0.3 * N)
    s.units_per_task = max(1, <ix>(20e-6 / unit))
    scratch = 3 * TILE + s.carry * vector_size(N) + (s.B.gather + s.C.gather) * N * (s.block + GL)
    run(scan_task, &s, (s.units + s.units_per_task - 1) // s.units_per_task, scratch * sizeof(real), unit * s.units)


def step(cnp.ndarray h, cnp.ndarray x, cnp.ndarray dt, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C, cnp.ndarray D,
         cnp.ndarray z, cnp.ndarray bias, bint softplus, cnp.ndarray y):
    """Checked arrays of one dtype: h (Bt, D, N), overwritten; x, dt, z, y (Bt, D); A (D, N); B, C (Bt, N) or (Bt, G, N);
    D, bias (D,).  D, z and bias may be None; without Bt, it is missing everywhere.  Never interrupted."""
    cdef Scan s
    cdef double unit                                    # seconds
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
    s.part = common_divisor(s.B.channels, s.C.channels)
    s.units = s.segments * set_chunks(&s, STEP_CARRY)
    unit = 1e-9 * sizeof(real) / 4 * SLOTS * (1 + 0.3 * s.states)
    s.units_per_task = max(1, <ix>(20e-6 / unit))
    run(step_task, &s, divided(s.units, s.units_per_task), STEP_SCRATCH * sizeof(real), unit * s.units, False)


cdef void set_result(Coefficient *c, cnp.ndarray a, ix channels):
    """dB or dC: as B or C, contiguous."""
    if a is not None:
        set_coefficient(c, a, channels)


cdef enum:
    TASKS = 32                          # at most, of an adjoint


def adjoint(cnp.ndarray dout, cnp.ndarray u, cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C, cnp.ndarray D,
            cnp.ndarray z, cnp.ndarray bias, bint softplus, cnp.ndarray first, cnp.ndarray starts, cnp.ndarray dlast,
            cnp.ndarray du, cnp.ndarray ddelta, cnp.ndarray dz, cnp.ndarray dfirst, cnp.ndarray dB, cnp.ndarray dC):
    """As `scan`.  OUT du, ddelta, dz (Bt, D, L); dfirst (segments, D, N); dB, dC (Bt, G, N, L), zeros before; dz, dfirst and,
    where B or C is constant, dB or dC may be None.  Returns sums over batch and time (ranges, rows, D), yet to be summed over the ranges,
    rows being dA state by state, dB and dC likewise where constant, dD and dbias."""
    cdef Adjoint j
    cdef Scan *s = &j.s
    cdef ix N = cnp.PyArray_DIM(A, 1), scratch, longest = cnp.PyArray_DIM(u, 2), i, tasks
    cdef double seconds
    cdef cnp.ndarray sums, more_B, more_C
    set_scan(s, u, delta, A, B, C, D, z, bias, softplus, first, starts)
    j.rows = N * (1 + s.B.constant + s.C.constant) + 2
    s.B.gather, s.C.gather = not s.B.constant, not s.C.constant     # rows of a long sequence lie on a page each: copy every block
    if s.segments == 0 or s.channels == 0:
        return np.zeros((1, j.rows, s.channels), u.dtype)
    set_signal(&j.dout, dout)
    set_signal(&j.du, du)
    set_signal(&j.ddelta, ddelta)
    set_signal(&j.dz, dz)
    set_state(&j.dlast, dlast)
    set_state(&j.dfirst, dfirst)
    set_result(&j.dB, dB, s.channels)
    set_result(&j.dC, dC, s.channels)
    if starts is not None:
        longest = 0
        for i in range(s.segments):
            longest = max(longest, s.starts[i + 1] - s.starts[i])
    j.blocks = (longest + TB - 1) // TB
    s.block = TB
    seconds = 1e-9 * sizeof(real) / 4 * cnp.PyArray_DIM(u, 0) * s.channels * (1 + s.steps) * (4 + 0.6 * N)
    tasks = min(<ix>TASKS, 1 + <ix>(seconds / 100e-6))
    j.ranges = min(s.segments, tasks)
    set_slices(&j, (tasks + j.ranges - 1) // j.ranges)
    sums = np.empty((j.ranges, j.rows, s.channels), u.dtype)
    j.sums = <real *>cnp.PyArray_DATA(sums)
    more_B = more_C = None
    if dB is not None:
        more_B = np.zeros((j.slices - 1, cnp.PyArray_DIM(u, 0), N, s.steps), u.dtype)
        j.more_B = <real *>cnp.PyArray_DATA(more_B)
    if dC is not None:
        more_C = np.zeros((j.slices - 1, cnp.PyArray_DIM(u, 0), N, s.steps), u.dtype)
        j.more_C = <real *>cnp.PyArray_DATA(more_C)
    scratch = TILES + 4 * KEPT + slots(N) * TERMS + (s.B.gather + s.C.gather) * N * (TB + GL) + s.carry * (vector_size(N) + back_size(&j))
    run(adjoint_task, &j, j.ranges * j.slices, scratch * sizeof(real), seconds)
    if j.slices > 1:
        run(join_task, &j, cnp.PyArray_DIM(u, 0), 0, 0)
    return sums


cdef void set_slices(Adjoint *j, ix wanted):
    """Slices of the channels, few enough that what they put aside of dB and dC takes a twelfth of inputs and outputs."""
    cdef Scan *s = &j.s
    cdef double varying = s.states * ((not s.B.constant) + (not s.C.constant))
    cdef ix most = min(wanted, set_chunks(s, NS))
    if varying:
        most = min(most, 1 + <ix>(7 * s.channels / (12 * varying)))
    set_chunks(s, NS * min(<ix>GROUPS, (s.chunks + most - 1) // most))
    j.slices = divided(s.chunks, divided(s.chunks, most))


cdef ix divided(ix n, ix size) noexcept:
    """Pieces of `size` that hold n."""
    return (n + size - 1) // size


def attention(cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C, cnp.ndarray bias, bint softplus,
              cnp.ndarray rows, cnp.ndarray out):
    """Checked arrays of one dtype, as for `scan`; rows (R,) intp in [0, L); out (Bt, D, R, L), C-contiguous and zero."""
    cdef Attention s
    cdef ix N = cnp.PyArray_DIM(A, 1), scratch
    cdef double entries                                 # rows times columns
    s.channels, s.steps, s.states, s.softplus = cnp.PyArray_DIM(delta, 1), cnp.PyArray_DIM(delta, 2), N, softplus
    s.count = cnp.PyArray_DIM(rows, 0)
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
    s.blocks = (s.count + s.block - 1) // s.block
    entries = <double>cnp.PyArray_SIZE(out) / 2
    scratch = s.block * sizeof(Query) + (4 * AB + 2 * AB * N + (1 + 2 * s.block) * whole_vectors(N)) * sizeof(real)
    run(attention_task, &s, cnp.PyArray_DIM(delta, 0) * s.channels * s.blocks, scratch, 0.1e-9 * entries * (10 + N))


def step_sum(cnp.ndarray delta, cnp.ndarray bias, bint softplus, cnp.ndarray total):
    """Checked arrays of one dtype: delta (Bt, D, L), bias (D,) or None; OUT total (Bt, D) = Σ Δ, C-contiguous."""
    cdef StepSum s
    s.channels, s.steps, s.softplus = cnp.PyArray_DIM(delta, 1), cnp.PyArray_DIM(delta, 2), softplus
    s.chunks = (s.channels + VL - 1) // VL
    set_signal(&s.delta, delta)
    set_per_channel(&s.bias, bias)
    s.total = <real *>cnp.PyArray_DATA(total)
    run(step_sum_task, &s, cnp.PyArray_DIM(delta, 0) * s.chunks, (TILE + VL) * sizeof(real), 1e-9 * cnp.PyArray_SIZE(delta))
