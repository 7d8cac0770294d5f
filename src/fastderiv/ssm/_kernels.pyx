"""The selective scan, forward, in one fused pass (docs/derivations.md §1).

VL channels lie in the lanes of a vector.  A task carries a few such vectors through time in blocks of TB steps; a block of
each input is transposed into a tile [time, lane], every four states run through the block with h in registers, and the
finished tile of y is transposed out.  No array of D·L·N elements exists.  Every output is computed by the same operations
in the same order whatever the strides, the blocks, the tasks and the threads are.
"""
from libc.math cimport isfinite
from libc.string cimport memcpy, memset
cimport numpy as cnp
from fastderiv._core.simd cimport (EXP2_SAFE, GL, LOG2E, VL, ix, real, vabs, vall_lt, vdecay_any, vdecay_safe, vexp2_any,
                                   vexp2_neg, vf, vfma, vload, vmax, vprefetch, vset1, vsilu, vsoftplus, vstore, vtranspose)
from fastderiv._core.threads cimport Worker, interrupted, run

cnp.import_array()

cdef enum:
    TB = 128                            # time steps in a block
    TILE = TB * VL + 7 * GL             # tiles an odd number of cache lines apart: no 4 KiB aliasing
    CARRY = 4                           # vectors of channels a task carries, where they share gathered B and C

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
    if s.out.p is not NULL:
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


cdef ix set_up_chunk(Scan *s, ix chunk, Vector *v, real *scratch) noexcept nogil:
    """The vectors of a chunk; how many they are."""
    cdef ix per_part = (s.part + s.carry * VL - 1) // (s.carry * VL)        # chunks in a part
    cdef ix channel = chunk // per_part * s.part + chunk % per_part * s.carry * VL
    cdef ix end = min(channel + s.carry * VL, (chunk // per_part + 1) * s.part), k = 0
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


# ---- sums of step sizes ---------------------------------------------------------------------------------------------

cdef struct Sum:                        # of very many terms: compensated, as a step repeated would be rounded the same way each time
    double value, lost


cdef inline void add(Sum *s, double x) noexcept nogil:
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
                    add(&total[lane], dt[lane])
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

cdef struct Row:
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


cdef void own_row(Channel *v, Row *row, ix N, ix t) noexcept nogil:
    """A row through the block that holds its diagonal."""
    cdef ix n = row.l - t + 1
    row.gap.value, row.gap.lost = sum_behind(v.dt, n, v.own), 0
    if v.tame:
        exact_row(v, v.own, row.c, N, n, v.y, True)
    else:
        exact_row(v, v.own, row.c, N, n, v.y, False)
    memcpy(row.out + t, v.y, n * sizeof(real))


cdef void wild_row(Channel *v, Row *row, ix N, ix t) noexcept nogil:
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


cdef void decay_row(Channel *v, Row *row, ix N) noexcept nogil:
    """OUT g = exp(A·gap)·C."""
    cdef ix n = 0
    cdef vf gap = vset1(<real>sum_of(&row.gap))
    while n < N:
        vstore(row.g + n, vexp2_neg(gap, vload(v.a + n)) * vload(row.c + n))
        n += VL


cdef void four_rows(Channel *v, Row **row, ix N, ix t) noexcept nogil:
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


cdef void below_block(Channel *v, Row *rows, ix count, ix N, ix t) noexcept nogil:
    """The rows below a whole block: as a matrix product, where no factor grows."""
    cdef Row *four[4]
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


cdef void set_up_rows(Attention *s, ix batch, ix channel, ix first, ix count, Row *rows, real *scratch) noexcept nogil:
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
    cdef Row *rows = <Row *>worker.scratch
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
                add(&rows[k].gap, v.total)
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


cdef ix common_divisor(ix a, ix b) noexcept:
    while b:
        a, b = b, a % b
    return a


def scan(cnp.ndarray u, cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C, cnp.ndarray D, cnp.ndarray z,
         cnp.ndarray bias, bint softplus, cnp.ndarray first, cnp.ndarray last, cnp.ndarray starts, cnp.ndarray out,
         bint interruptible=True):
    """Checked arrays of one dtype: u, delta, z, out (Bt, D, L); A (D, N); B, C (D, N) or (Bt, G, N, L); D, bias (D,);
    first, last (segments, D, N), which may be the same array; starts (segments + 1,) intp.  C, D, z, bias, first, last,
    starts and out may be None."""
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

    s.part = common_divisor(s.B.channels, s.C.channels)
    s.carry = CARRY if (s.B.gather or s.C.gather) and N <= 256 else 1
    s.block = TB
    while (s.B.gather or s.C.gather) and s.block > 16 and s.block * N > 16384:
        s.block //= 2
    s.chunks = s.channels // s.part * ((s.part + s.carry * VL - 1) // (s.carry * VL))
    s.units = s.segments * s.chunks
    unit = 1e-9 * sizeof(real) / 4 * VL * s.carry * (1 + <double>s.steps / (1 if starts is None else s.segments)) * (2 + 0.3 * N)
    s.units_per_task = max(1, <ix>(20e-6 / unit))
    scratch = 3 * TILE + s.carry * vector_size(N) + (s.B.gather + s.C.gather) * N * (s.block + GL)
    run(scan_task, &s, (s.units + s.units_per_task - 1) // s.units_per_task, scratch * sizeof(real), unit * s.units, interruptible)


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
    scratch = s.block * sizeof(Row) + (4 * AB + 2 * AB * N + (1 + 2 * s.block) * whole_vectors(N)) * sizeof(real)
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
