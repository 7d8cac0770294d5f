# The adjoint of the scan; included by _kernels.pyx.
#
# A task takes channels, a few logical groups at a time, through a range of segments: forward once, keeping the state before
# every PART steps, then back block by block, replaying one part at a time with all that the way back needs of it.  Steps bear
# the numbers they have in scan_block: 1. step sizes, 2. recurrence, 3. gate.

cdef enum:
    AHEAD = 7                           # arrays of which a block prefetches lines
    GROUPS = 4                          # logical groups of channels that share a look at B and C, and one addition to dB and dC
    PART = 32                           # steps replayed at once, so that what is kept of them fits the first-level cache
    PTILE = PART * VL + 7 * GL
    KEPT = 3 * PTILE                    # scale, rest and the state before of one state's steps
    TERMS = 2 * FOURS * NS * TILE       # four states' terms of dB and dC
    SOME = 256                          # states that go back between two looks for signals

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
    real *checkpoints                   # [part, N, lane]: the states before every part, and the last
    real *g                             # [N, lane]: Ā·h̄ of the step after
    real *sums                          # [row, lane]: as in Adjoint
    real *low                           # [row, lane]: what rounding took from them
    real *used                          # [lane]: 1 where there is a channel, else 0
    bint full                           # whether there is one everywhere
    bint tame                           # whether constant B and C are finite

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


cdef inline void back_step(Row *r, ix t, vf d, vf x, vf dy, vf *y, vf *dx, vf *dd, vf *B, vf *C, const bint careful,
                           const bint gate, const bint cb, const bint cc) noexcept nogil:
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
    if careful:                                         # rest may be negative, and inf − inf is not what IEEE says of Ā·inf
        r.g = vsel_lt(vabs(g), vset1(<real>INFINITY), r.g, g)
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


cdef bint finite_block(Vector *v, const real *p, ix ld, ix N, ix T) noexcept nogil:
    """Whether a block of a time-varying B or C is; true of no block at all."""
    cdef vf odd = vset1(0)
    cdef real rest = 0
    cdef ix n, t
    if p is NULL:
        return True
    for n in range(N):
        if n % MANY == 0 and stopped(v, n):
            break
        for t in range(T // VL):
            odd = vfma(vload(p + n * ld + t * VL), vset1(0), odd)
        for t in range(T // VL * VL, T):
            rest += p[n * ld + t] * 0
    return vall_lt(odd + vset1(rest), vset1(1))


cdef inline bint finite(vf h) noexcept nogil:
    return vall_lt(vfma(h, vset1(0), vset1(0)), vset1(1))


cdef inline bint replay(real *w, Row *r0, Row *r1, Row *r2, Row *r3, ix T, const ix rows, const bint safe,
                        const bint cb) noexcept nogil:
    """2. Forward through a part.  Whether the states stayed finite."""
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


cdef inline void back(real *w, Row *r0, Row *r1, Row *r2, Row *r3, ix T, const real *used, real *terms, bint more, const ix rows,
                      const bint careful, const bint gate, const bint cb, const bint cc) noexcept nogil:
    """2. Back through it: h̄, and what it adds to every gradient."""
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
        back_step(r0, t, d, x, dy, &y, &dx, &dd, &B[0], &C[0], careful, gate, cb, cc)
        if rows == 4:
            back_step(r1, t, d, x, dy, &y, &dx, &dd, &B[1], &C[1], careful, gate, cb, cc)
            back_step(r2, t, d, x, dy, &y, &dx, &dd, &B[2], &C[2], careful, gate, cb, cc)
            back_step(r3, t, d, x, dy, &y, &dx, &dd, &B[3], &C[3], careful, gate, cb, cc)
        vstore(w + DX + t * VL, dx)
        vstore(w + DD + t * VL, dd)
        if gate:
            vstore(w + Y + t * VL, y)
        if not cb:
            add_up(B, used, terms + t * VL, more, careful)
        if not cc:
            add_up(C, used, terms + TERMS // 2 + t * VL, more, careful)


cdef inline void add_up(vf *four, const real *used, real *terms, bint more, const bint careful) noexcept nogil:
    """Sum the lanes within parts, and onto what the groups before have left."""
    cdef vf sums[FOURS]
    cdef ix i
    if careful:                                         # in unused lanes 0·inf may have made a NaN
        for i in range(4):
            four[i] = vsel_lt(vset1(0), vload(used), four[i], vset1(0))
    vpartsums(four[0], four[1], four[2], four[3], sums)
    for i in range(FOURS):
        if more:
            sums[i] = sums[i] + vload(terms + i * NS * TILE)
        vstore(terms + i * NS * TILE, sums[i])


cdef inline void some_rows(real *w, ix t, Vector *v, Back *k, const real *h, ix n, ix N, const real *B, ix ldb, const real *C,
                           ix ldc, ix T, real *terms, bint more, bint safe, const ix rows, const bint gate, const bint cb,
                           const bint cc) noexcept nogil:
    """Both ways for `rows` states, 1 or 4, through the part of T steps from t."""
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
            safe = replay(w, &r0, &r1, &r2, &r3, T, rows, False, cb) and safe
        elif safe and replay(w, &r0, &r1, &r2, &r3, T, rows, True, cb):
            break
    if safe and k.full:
        back(w, &r0, &r1, &r2, &r3, T, k.used, terms, more, rows, False, gate, cb, cc)
    else:
        back(w, &r0, &r1, &r2, &r3, T, k.used, terms, more, rows, True, gate, cb, cc)
    end_row(&r0, n, N, k, cb, cc)
    if rows == 4:
        end_row(&r1, n + 1, N, k, cb, cc)
        end_row(&r2, n + 2, N, k, cb, cc)
        end_row(&r3, n + 3, N, k, cb, cc)


cdef inline void all_rows(real *w, Vector *v, Back *k, const real *h, ix N, const real *B, ix ldb, const real *C, ix ldc,
                          ix T, real *terms, bint more, bint safe, const bint gate, const bint cb, const bint cc) noexcept nogil:
    cdef ix n = 0, t
    while n < N and not (n % SOME == 0 and stopped(v, n)):
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
    """2. Every part of a block, from the last to the first: pick the loop made for these flags."""
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
    """1. IN DT = delta, U; OUT DT, X, SLOPE; DX and DD zero.  Whether every Δ·A of the block is well inside exp's range."""
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


cdef inline bint prepare_gate(real *w, Vector *v, ix T, Ahead *ahead, const bint gate) noexcept nogil:
    """3. IN DY = dout, DZ = z, U; OUT DY, DZ = dout·silu'(z), Y = D·u; without a gate only DY is
    looked at.  Whether DY is finite.  A loop of its own: with the one above in one, too few steps are in flight at once."""
    cdef vf skip = vload(v.D)
    cdef vf g, s, slope, odd = vset1(0)
    cdef ix t
    for t in range(T):
        prefetch(ahead, t)
        prefetch(ahead + 1, t)
        prefetch(ahead + 2, t)
        g = vload(w + DY + t * VL)
        if gate:
            s = vsilu_slope(vload(w + DZ + t * VL), &slope)
            vstore(w + DY + t * VL, g * s)
            vstore(w + DZ + t * VL, g * slope)
            vstore(w + Y + t * VL, vload(w + U + t * VL) * skip)
            g = g * s
        odd = vfma(g, vset1(0), odd)
    return vall_lt(odd, vset1(1))


cdef inline void finish(real *w, Vector *v, Back *k, ix rows, ix T, bint skipped, const bint softplus,
                        const bint gate) noexcept nogil:
    """3. OUT DZ = dz; 1. OUT DT = ddelta, DX = du; dD and dbias into the sums."""
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
        dx = dx * vload(w + DT + t * VL)
        vstore(w + DX + t * VL, vfma(dy, skip, dx) if skipped else dx)
        vstore(w + DT + t * VL, dd)
        if gate:
            vstore(w + DZ + t * VL, vload(w + DZ + t * VL) * vload(w + Y + t * VL))
    add(k.sums + (rows - 2) * VL, k.low + (rows - 2) * VL, dD)
    add(k.sums + (rows - 1) * VL, k.low + (rows - 1) * VL, dbias)


cdef void adjoint_block(Adjoint *j, Vector *v, Back *k, const real *h, ix batch, ix t, ix T, Vector *next, ix then,
                        const real *B, ix ldb, const real *C, ix ldc, real *terms, bint more, bint safe,
                        real *w) noexcept nogil:
    """One vector of channels back through steps t … t+T−1, whose parts begin from the states h; then comes the vector `next`
    from step `then`.
    Its terms of dB and dC are added to `terms` if there are `more`, that is some already."""
    cdef Scan *s = &j.s
    cdef Ahead ahead[AHEAD]
    cdef bint gate = s.z.p is not NULL
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
        safe = prepare_steps(w, v, T, ahead, True) and safe
    else:
        safe = prepare_steps(w, v, T, ahead, False) and safe
    if gate:
        safe = prepare_gate(w, v, T, ahead + 4, True) and safe
    else:
        safe = prepare_gate(w, v, T, ahead + 4, False) and safe
    if gate and s.D.p is NULL:                          # not u·0: u may be inf
        memset(w + Y, 0, T * VL * sizeof(real))
    safe = safe and all_finite(v, k.g, s.states)
    there_and_back(w, v, k, h, s.states, B, ldb, C, ldc, T, terms, more, safe, gate,
                   s.B.constant, s.C.constant)
    finish(w, v, k, j.rows, T, s.D.p is not NULL, s.softplus, gate)
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


cdef void add_terms(Vector *v, const real *terms, ix vectors, ix N, ix T, real *to,
                    ix L) noexcept nogil:
    """to[n, t] += the terms, summed over all lanes of the logical group."""
    cdef real square[NS * VL * VL]
    cdef ix slot, n, rows, i, t, m
    for slot in range(slots(N)):
        if slot % SOME == 0 and stopped(v, slot):
            return
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
    """Have rows [n, time] of dB or dC at hand when terms are added to them: as many as caches hold."""
    cdef ix n, t
    for n in range(min(N, <ix>MANY)):
        t = 0
        while t < T:
            vprefetch(p + n * stride + t)
            t += GL


cdef real *checkpoint(Back *k, ix N, ix t) noexcept nogil:
    """The state t steps into a segment, t a multiple of PART."""
    return k.checkpoints + t // PART * N * VL


cdef bint leave_checkpoints(Adjoint *j, ix batch, ix start, ix stop, Vector *v, Back *k, ix vectors, real *gathered, real *tiles,
                            Worker *worker) noexcept nogil:
    """Forward through steps start … stop−1; False if interrupted."""
    cdef Scan forward = j.s
    cdef ix N = forward.states, ldb = 0, t = start, T, ahead, m
    cdef const real *B
    forward.out.p = NULL
    while t < stop:
        if interrupted(worker):
            return False
        T = min(<ix>TB, stop - t)
        ahead = T if t + T < stop else (T - 1) // PART * PART       # the state after the last part is nobody's
        B = block_of(&forward.B, batch, v, N, t, T, gathered, TB + GL, &ldb)
        for m in range(vectors):
            scan_block(&forward, &v[m], batch, t, ahead, stop, B, ldb, NULL, 0, tiles, checkpoint(&k[m], N, t - start))
            copy_states(v[m].h, &v[m], N, checkpoint(&k[m], N, t - start + ahead))
        t += T
    return True


cdef bint come_back(Adjoint *j, ix batch, ix start, ix stop, ix i, Vector *v, Back *k, ix vectors, real *gathered, real *tiles,
                    Worker *worker) noexcept nogil:
    """Back through them, as part of slice i; False if interrupted."""
    cdef Scan *s = &j.s
    cdef ix N = s.states, ldb = 0, ldc = 0, t = start + (stop - start - 1) // TB * TB, T, m
    cdef bint last, safe
    cdef real *gathered_C = gathered + (N * (TB + GL) if s.B.gather else 0)
    cdef real *terms = tiles + TILES + 4 * KEPT
    cdef real *dB
    cdef real *dC
    cdef const real *B
    cdef const real *C
    while t >= start:
        if interrupted(worker):
            return False
        T = min(<ix>TB, stop - t)
        B = block_of(&s.B, batch, v, N, t, T, gathered, TB + GL, &ldb)
        C = block_of(&s.C, batch, v, N, t, T, gathered_C, TB + GL, &ldc)
        dB = NULL if s.B.constant else target(j, &j.dB, j.more_B, i, batch, v.channel) + t
        dC = NULL if s.C.constant else target(j, &j.dC, j.more_C, i, batch, v.channel) + t
        safe = finite_block(v, B, ldb, N, T) and finite_block(v, C, ldc, N, T)
        fetch_rows(dB, s.steps, 0 if s.B.constant else N, T)
        fetch_rows(dC, s.steps, 0 if s.C.constant else N, T)
        for m in range(vectors):
            last = m == vectors - 1
            adjoint_block(j, &v[m], &k[m], checkpoint(&k[m], N, t - start), batch, t, T, &v[0] if last else &v[m + 1],
                          max(t - TB, start) if last else t, B, ldb, C, ldc, terms + m % NS * TILE, m >= NS,
                          safe and k[m].tame, tiles)
        if not s.B.constant:
            add_terms(v, terms, vectors, N, T, dB, s.steps)
        if not s.C.constant:
            add_terms(v, terms + TERMS // 2, vectors, N, T, dC, s.steps)
        t -= TB
    return True


cdef bint adjoint_segment(Adjoint *j, ix segment, ix i, Vector *v, Back *k, ix vectors, real *gathered, real *tiles,
                          Worker *worker) noexcept nogil:
    """The channels of a chunk, part of slice i, through a segment and back; False if interrupted."""
    cdef Scan *s = &j.s
    cdef ix start, stop, m, batch = span(s, segment, &start, &stop)
    for m in range(vectors):
        first_state(s, &v[m], segment)
        load_state(&j.dlast, segment, &v[m], s.states, k[m].g)
    if start < stop:
        if not leave_checkpoints(j, batch, start, stop, v, k, vectors, gathered, tiles, worker):
            return False
        if not come_back(j, batch, start, stop, i, v, k, vectors, gathered, tiles, worker):
            return False
    for m in range(vectors):
        store_state(&j.dfirst, segment, &v[m], s.states, k[m].g)
    return True


cdef double back_size(const Adjoint *j) noexcept nogil:
    """Scratch of one Back, in reals."""
    return ((<double>j.blocks * (TB // PART) + 1) * j.s.states + 2. * j.rows + 1) * VL


cdef void set_up_back(Adjoint *j, Vector *v, Back *k, real *scratch) noexcept nogil:
    cdef ix N = j.s.states, i
    k.checkpoints = scratch
    k.g = checkpoint(k, N, j.blocks * TB)
    k.sums = k.g + N * VL
    k.low = k.sums + j.rows * VL
    clear_states(v, 2 * j.rows, k.sums)
    k.used, k.full = k.low + j.rows * VL, v.rows == VL
    for i in range(VL):
        k.used[i] = i < v.rows
    k.tame = ((not j.s.B.constant or all_finite(v, v.b, N))
              and (not j.s.C.constant or all_finite(v, v.c, N)))


cdef void store_sums(Adjoint *j, ix i, Vector *v, Back *k) noexcept nogil:
    cdef real *to = j.sums + i * j.rows * j.s.channels + v.channel
    cdef vf sum, low
    cdef ix row
    for row in range(j.rows):
        if row % MANY == 0 and stopped(v, row):
            return
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
    cdef real *own = gathered + (s.B.gather + s.C.gather) * s.states * (TB + GL)
    cdef real *kept = own + s.carry * <ix>vector_size(s.states)
    cdef ix piece = i % j.slices, r = i // j.slices, size = <ix>back_size(j)
    cdef ix chunk, segment, vectors, m
    for chunk in range(slice_start(j, piece), slice_start(j, piece + 1)):
        vectors = set_up_chunk(s, chunk, v, own, worker)
        for m in range(vectors):
            set_up_back(j, &v[m], &k[m], kept + m * size)
        for segment in range(range_start(j, r), range_start(j, r + 1)):
            if segment % SOME == 0 and interrupted(worker):     # there may be very many empty ones
                return
            if not adjoint_segment(j, segment, piece, v, k, vectors, gathered, tiles, worker):
                return
        for m in range(vectors):
            store_sums(j, r, &v[m], &k[m])


cdef void join_task(void *args, ix i, Worker *worker) noexcept nogil:
    """Row n of dB and dC of a batch item: add what slices have put aside for groups that slices before them began."""
    cdef Adjoint *j = <Adjoint *>args
    cdef ix p
    for p in range(1, j.slices):
        if not j.s.B.constant:
            join(j, &j.dB, j.more_B, p, i // j.s.states, i % j.s.states, worker)
        if not j.s.C.constant:
            join(j, &j.dC, j.more_C, p, i // j.s.states, i % j.s.states, worker)


cdef void join(Adjoint *j, Coefficient *c, real *more, ix p, ix batch, ix n,
               Worker *worker) noexcept nogil:
    cdef ix channel = first_channel(&j.s, slice_start(j, p)), i, t = 0
    cdef const real *src = target(j, c, more, p, batch, channel) + n * j.s.steps
    cdef real *dst = c.p + ((batch * (j.s.channels // c.channels) + channel // c.channels) * j.s.states + n) * j.s.steps
    if src is dst:
        return
    while t < j.s.steps and not interrupted(worker):
        for i in range(t, min(j.s.steps, t + JOINED)):
            dst[i] += src[i]
        t += JOINED


cdef enum:
    TASKS = 32                          # at most, of an adjoint
    JOINED = 1 << 20                    # steps of dB or dC joined between two looks for signals


def adjoint(cnp.ndarray dout, cnp.ndarray u, cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C, cnp.ndarray D,
            cnp.ndarray z, cnp.ndarray bias, bint softplus, cnp.ndarray first, cnp.ndarray starts,
            cnp.ndarray dlast, ix longest,
            cnp.ndarray du, cnp.ndarray ddelta, cnp.ndarray dz, cnp.ndarray dfirst, cnp.ndarray dB, cnp.ndarray dC):
    """As `scan`, of segments of at most `longest` steps.  OUT du, ddelta, dz (Bt, D, L);
    dfirst (segments, D, N); dB, dC (Bt, G, N, L), zeros before; dz, dfirst and,
    where B or C is constant, dB or dC may be None.  Returns sums over batch and time (ranges, rows, D), yet to be summed over
    the ranges, rows being dA state by state, dB and dC likewise where constant, dD and dbias."""
    cdef Adjoint j
    cdef Scan *s = &j.s
    cdef double seconds, scratch, N, batch = cnp.PyArray_DIM(u, 0)
    cdef ix tasks
    cdef cnp.ndarray sums, more_B = None, more_C = None
    set_scan(s, u, delta, A, B, C, D, z, bias, softplus, first, starts)
    expect_results(s, dout, dlast, du, ddelta, dz, dfirst, dB, dC, cnp.PyArray_DIM(u, 0))
    N = s.states
    j.rows = s.states * (1 + s.B.constant + s.C.constant) + 2
    s.B.gather, s.C.gather = not s.B.constant, not s.C.constant     # rows of a long sequence lie on a page each: copy every block
    if s.segments == 0 or s.channels == 0:
        return np.zeros((1, j.rows, s.channels), u.dtype)
    set_signal(&j.dout, dout)
    set_signal(&j.du, du)
    set_signal(&j.ddelta, ddelta)
    set_signal(&j.dz, dz)
    set_state(&j.dlast, dlast)
    set_state(&j.dfirst, dfirst)
    set_coefficient(&j.dB, dB, s.channels)
    set_coefficient(&j.dC, dC, s.channels)
    j.blocks = divided(s.steps if starts is None else longest, TB)
    seconds = 1e-9 * sizeof(real) / 4 * batch * s.channels * (1. + s.steps) * (4 + 0.6 * N)
    tasks = 1 + <ix>min(<double>(TASKS - 1), seconds / 100e-6)
    # no more ranges than that their sums take a twentieth of inputs and outputs
    j.ranges = min(s.segments, tasks, 1 + <ix>(batch * s.steps / (4. * j.rows)))
    set_slices(&j, batch, divided(tasks, j.ranges))
    sums = empty("shares of sums", (j.ranges, j.rows, s.channels), u.dtype)
    j.sums = <real *>cnp.PyArray_DATA(sums)
    shape = j.slices - 1, cnp.PyArray_DIM(u, 0), s.states, s.steps
    if dB is not None:
        more_B = empty("shares of dB", shape, u.dtype, np.zeros)
        j.more_B = <real *>cnp.PyArray_DATA(more_B)
    if dC is not None:
        more_C = empty("shares of dC", shape, u.dtype, np.zeros)
        j.more_C = <real *>cnp.PyArray_DATA(more_C)
    scratch = TILES + 4 * KEPT + slots(s.states) * <double>TERMS
    scratch += (s.B.gather + s.C.gather) * N * (TB + GL)
    scratch += s.carry * (vector_size(N) + back_size(&j))
    run_with(adjoint_task, &j, j.ranges * j.slices, scratch * sizeof(real), seconds)
    if j.slices > 1:
        seconds = 1e-9 * batch * N * s.steps * j.slices
        run(join_task, &j, cnp.PyArray_DIM(u, 0) * s.states, 0, seconds)
    return sums


cdef int expect_results(const Scan *s, cnp.ndarray dout, cnp.ndarray dlast, cnp.ndarray du,
                        cnp.ndarray ddelta, cnp.ndarray dz, cnp.ndarray dfirst, cnp.ndarray dB,
                        cnp.ndarray dC, ix batch) except -1:
    cdef ix shape[3]
    set_shape(s, shape)
    expect_array(dlast, 3, shape, False)
    expect_array(dfirst, 3, shape, True)
    shape[0], shape[2] = batch, s.steps
    expect_array(dout, 3, shape, False)
    expect_array(du, 3, shape, True)
    expect_array(ddelta, 3, shape, True)
    expect_array(dz, 3, shape, True)
    expect_coefficient(dB, batch, s.channels, s.states, s.steps, True)
    expect_coefficient(dC, batch, s.channels, s.states, s.steps, True)
    return 0


cdef void set_slices(Adjoint *j, double batch, ix wanted):
    """Slices of the channels, and logical groups at a time: what slices put aside of dB and dC takes at most a twelfth of
    inputs and outputs, and the checkpoints of two threads, wherever one group allows it, a sixteenth."""
    cdef Scan *s = &j.s
    cdef ix groups
    cdef double N = s.states, varying = N * ((not s.B.constant) + (not s.C.constant))
    cdef double total = (5. if s.z.p is NULL else 7.) * s.channels + 2 * varying    # of a step
    cdef ix most = min(wanted, set_chunks(s, NS))
    if varying:
        most = min(most, 1 + <ix>(total / (12 * varying)))
    groups = <ix>min(<double>min(<ix>GROUPS, divided(s.chunks, most)),
                     batch * total * PART / (32 * GL * max(N, 1.)))
    set_chunks(s, NS * max(<ix>1, groups))
    j.slices = divided(s.chunks, divided(s.chunks, most))
