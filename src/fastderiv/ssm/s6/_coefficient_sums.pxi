# The gradients of time-varying B and C, which are sums over channels (docs/derivations.md §1.4:
# B̅[l] += h̄·Δ·u, C̅[l] += ȳ·h).  Every step of the way back sums the lanes of a vector within
# parts of 128 bits.  Once a block these sums are added up, in an order that is the same for every
# vector length.  Included by _kernels.pyx.
# needs: ChannelBlock, MANY, Scan (s6/_problem.pxi)
# needs: TILE (s6/_tiles.pxi)
# needs: stopped (s6/_lanes.pxi)

cdef enum:
    TERMS = 2 * FOURS * NS * TILE       # four states' terms of dB, then of dC: [vector, time]
    JOINED = 1 << 20                    # steps of dB or dC joined between two looks for signals
    SOME = 256                          # states between two looks for signals where each takes long

cdef struct CoefficientGradient:        # dB or dC, if it varies in time
    real *p                             # (Bt, G, N, L), contiguous
    ix channels                         # in a channel_group
    real *shared                        # (slices − 1, Bt, N, L): see `gradient_rows`


cdef inline void sum_lanes(vf *four, const real *used, bint add, const bint careful,
                           real *terms) noexcept nogil:
    """terms = the sums of four rows' lanes within 128-bit parts, or += them if told to `add`."""
    cdef vf sums[FOURS]
    cdef ix i
    if careful:                         # lanes without a channel may hold a NaN, from 0·inf
        for i in range(4):
            four[i] = vsel_lt(vset1(0), vload(used), four[i], vset1(0))
    vpartsums(four[0], four[1], four[2], four[3], sums)
    for i in range(FOURS):
        if add:
            sums[i] = sums[i] + vload(terms + i * NS * TILE)
        vstore(terms + i * NS * TILE, sums[i])


cdef ix slots(ix N) noexcept nogil:
    """How many slots of TERMS reals the terms of N states take: four states share a slot, and each
    state that remains has its own."""
    return N // 4 + N % 4


cdef void add_row(const real *parts, real *to, ix n) noexcept nogil:
    """to += the sum of a lane_group's parts, which are SHARE rows apart, adjacent pairs first."""
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


cdef inline void turn_parts(const real *terms, ix count, real *square) noexcept nogil:
    """OUT square [part, time]: VL steps of terms [time, part]; those of Lanes behind `count` are
    zero."""
    cdef ix m
    for m in range(NS):
        if m < count:
            vtranspose(terms + m * TILE, VL, square + m * VL * VL, VL)
        else:
            memset(square + m * VL * VL, 0, VL * VL * sizeof(real))


cdef void add_terms(const ChannelBlock *carried, const real *terms, ix N, ix T, real *to,
                    ix L) noexcept nogil:
    """to[n, t] += the terms of a block, summed over all Lanes of a channel_block; rows of `to` are
    L apart."""
    cdef real square[NS * VL * VL]
    cdef ix slot, n, rows, i, t, m
    for slot in range(slots(N)):
        if slot % SOME == 0 and stopped(carried.lanes, slot):
            return
        rows = 4 if slot < N // 4 else 1
        n = 4 * slot if rows == 4 else slot + N // 4 * 3
        for i in range(FOURS):
            t = 0
            while t < T:
                turn_parts(terms + slot * TERMS + i * NS * TILE + t * VL, carried.count, square)
                for m in range(i * SHARE, min(rows, (i + 1) * SHARE)):
                    add_row(square + (m - i * SHARE) * VL, to + (n + m) * L + t, min(<ix>VL, T - t))
                t += VL


cdef void prefetch_rows(const real *p, ix row, ix N, ix T) noexcept nogil:
    """Prefetch the rows [n, time] of dB or dC that terms will be added to: as many as caches
    hold."""
    cdef ix n, t
    for n in range(min(N, <ix>MANY)):
        t = 0
        while t < T:
            vprefetch_far(p + n * row + t)
            t += GL


# ---- slices: tasks that have different channels of one channel_group --------------------------

cdef real *gradient_rows(const Scan *scan, const CoefficientGradient *gradient, ix slice, ix first,
                         ix batch, ix channel) noexcept nogil:
    """Where a slice, whose first channel is `first`, adds its terms of dB or dC for a channel: [N,
    L].

    That is in the gradient itself, but for a channel_group that begins in an earlier slice: two
    threads may be at work on it, and so the later slice has shared rows of its own, which `join`
    adds when all are done."""
    cdef ix group = channel // gradient.channels
    if first > 0 and group == (first - 1) // gradient.channels:
        return gradient.shared + ((slice - 1) * scan.batch + batch) * scan.states * scan.steps
    group += batch * (scan.channels // gradient.channels)
    return gradient.p + group * scan.states * scan.steps


cdef void join(const Scan *scan, const CoefficientGradient *gradient, ix slice, ix first, ix batch,
               ix n, Worker *worker) noexcept nogil:
    """Add row n of what a slice has put into shared rows, if it has, to the gradient."""
    cdef ix group = batch * (scan.channels // gradient.channels) + first // gradient.channels
    cdef const real *src = gradient_rows(scan, gradient, slice, first, batch, first)
    cdef real *dst = gradient.p + group * scan.states * scan.steps
    cdef ix t = 0, end
    if src is dst:
        return
    src, dst = src + n * scan.steps, dst + n * scan.steps
    while t < scan.steps and not interrupted(worker):
        end = min(scan.steps, t + JOINED)
        while t + VL <= end:
            vstore(dst + t, vload(dst + t) + vload(src + t))
            t += VL
        while t < end:
            dst[t] += src[t]
            t += 1
