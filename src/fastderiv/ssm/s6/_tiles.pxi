# Tiles: blocks of a signal in scratch, [time, lane], and the prefetching of the next ones.
# Included by _kernels.pyx.
# needs: Block, Lanes, Signal, TB (s6/_problem.pxi)

cdef enum:
    TILE = TB * VL + 7 * GL             # an odd number of cache lines: no 4 KiB aliasing of tiles


cdef inline void copy(const real *src, ix ss, real *dst, ix ds, ix n) noexcept nogil:
    """dst[i·ds] = src[i·ss] for i < n."""
    cdef ix i
    for i in range(n):
        dst[i * ds] = src[i * ss]


cdef inline void load_tile(const real *src, ix si, ix sj, ix ni, ix nj, real *dst,
                           ix ld) noexcept nogil:
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


cdef inline void store_tile(const real *src, ix ld, real *dst, ix si, ix sj, ix ni,
                            ix nj) noexcept nogil:
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


cdef inline real *signal_at(const Signal *signal, ix batch, const Lanes *lanes,
                            ix t) noexcept nogil:
    """Where the first lane's channel has step t."""
    return signal.p + batch * signal.b + lanes.channel * signal.d + t * signal.t


cdef void load_signal(const Signal *signal, const Lanes *lanes, const Block *block,
                      real *tile) noexcept nogil:
    """OUT tile [time, lane] of a block; lanes without a channel are zero."""
    cdef const real *src = signal_at(signal, block.batch, lanes, block.start)
    if lanes.rows < VL:
        memset(tile, 0, block.steps * VL * sizeof(real))
    load_tile(src, signal.d, signal.t, lanes.rows, block.steps, tile, VL)


cdef void store_signal(const Signal *signal, const Lanes *lanes, const Block *block,
                       const real *tile) noexcept nogil:
    """load_signal backwards: lanes without a channel are left out."""
    cdef real *dst = signal_at(signal, block.batch, lanes, block.start)
    store_tile(tile, VL, dst, signal.d, signal.t, lanes.rows, block.steps)


# ---- prefetching ------------------------------------------------------------------------------

# At every step of a block, one cache line is fetched that will be needed later.  Loops over time
# work on copies of the plans, which stay in registers.
cdef struct Prefetch:
    const real *p                       # the line that the next step fetches
    ix step                             # from one line to the next
    ix jump                             # and what is added to that after every VL lines


cdef void plan_prefetch(const Signal *signal, ix batch, const Lanes *lanes, ix t,
                        Prefetch *plan) noexcept nogil:
    """OUT plan: step k of a block fetches one cache line of the block at t.

    If time is contiguous, it is the next line of lane k % VL.  Otherwise it is the line of step k,
    which holds all lanes if channels are contiguous."""
    plan.p = signal_at(signal, batch, lanes, t)
    plan.step, plan.jump = signal.t, 0
    if signal.t == 1:
        plan.step, plan.jump = signal.d, GL - VL * signal.d


cdef inline void go_on(Prefetch *plan, ix k) noexcept nogil:
    plan.p += plan.step
    if k % VL == VL - 1:
        plan.p += plan.jump


cdef inline void prefetch(Prefetch *plan, ix k) noexcept nogil:
    vprefetch(plan.p)
    go_on(plan, k)


cdef inline void prefetch_far(Prefetch *plan, ix k) noexcept nogil:
    """To the second-level cache: for blocks between which the first level is full of other data."""
    vprefetch_far(plan.p)
    go_on(plan, k)
