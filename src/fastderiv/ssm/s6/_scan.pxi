# The scan forward (docs/derivations.md §1.1): h[l] = exp(Δ·A)·h[l−1] + Δ·u·B and y = C·h.  A block
# runs through the recurrence, a segment block by block, a task through several work_items.  How the
# recurrence is rounded is in §1.6.  Included by _kernels.pyx.
# needs: Block, ChannelBlock, CoefficientRows, divide_channels, Lanes, MANY, Scan, Segment,
#        segment_of, Signal, TB (s6/_problem.pxi)
# needs: load_signal, plan_prefetch, Prefetch, prefetch, store_signal, TILE (s6/_tiles.pxi)
# needs: all_finite, coefficient, copy_states, gathered_size, lanes_size, load_coefficients,
#        load_initial_state, own_rows, piece_at, set_up_channel_block, stopped,
#        store_state (s6/_lanes.pxi)
# needs: begin_sums, Leave, leave_remembered, place_of, Stir, stir, stir_begin, stirred_first,
#        stirred_second (s6/_remembered.pxi)

cdef enum:
    CARRY = 4                           # Lanes of a channel_block if they share copies of B and C;
                                        # otherwise it has one

cdef struct Loop:                       # a block of one Lanes, as its states run through it
    Lanes *lanes
    const real *dt                      # [time, lane]: Δ
    const real *du                      # [time, lane]: Δ·u
    real *y                             # [time, lane]: C·h is added; NULL if only states are wanted
    CoefficientRows B, C
    Leave leave
    ix states, steps
    bint safe                           # whether every Δ·A is well inside the range of exp


# ---- the recurrence, step 2 of a block --------------------------------------------------------

cdef inline vf advance(vf dt, vf a, vf h, vf du, vf b, const bint safe) noexcept nogil:
    """exp(Δ·A)·h + Δ·u·B."""
    return vdecay_safe(dt, a, h, du, b) if safe else vdecay_any(dt, a, h, du, b)


cdef inline bint leaves_at(const Loop *loop, ix t) noexcept nogil:
    """Whether states are left before step t of the block, where a part of it begins."""
    return t > 0 or loop.leave.first


cdef inline void leave_state(const Loop *loop, ix n, ix t, vf h) noexcept nogil:
    """Leave h, state n before step t of the block."""
    cdef ix number = t // loop.leave.every * loop.states + n
    vstore_some(loop.leave.p + number * loop.leave.rows, h, loop.leave.rows)


cdef inline void four_states(const Loop *loop, ix n, const bint leaves, const bint safe,
                             const bint B_constant, const bint C_constant,
                             const bint with_y) noexcept nogil:
    """States n … n+3 through a block: h stays in registers, tiles are read once for all four."""
    cdef const real *dt = loop.dt
    cdef const real *du = loop.du
    cdef real *y = loop.y
    cdef const real *a = loop.lanes.a + n * VL
    cdef real *h = loop.lanes.h + n * VL
    cdef ix ldb = loop.B.row, ldc = loop.C.row, T = loop.steps, t, start = 0, end
    cdef const real *B = loop.B.p + n * ldb
    cdef const real *C = loop.C.p + n * ldc
    cdef vf a0 = vload(a), a1 = vload(a + VL), a2 = vload(a + 2 * VL), a3 = vload(a + 3 * VL)
    cdef vf h0 = vload(h), h1 = vload(h + VL), h2 = vload(h + 2 * VL), h3 = vload(h + 3 * VL)
    cdef vf d, x, s
    while True:
        end = min(start + loop.leave.every, T) if leaves else T
        if leaves and leaves_at(loop, start):
            leave_state(loop, n, start, h0)
            leave_state(loop, n + 1, start, h1)
            leave_state(loop, n + 2, start, h2)
            leave_state(loop, n + 3, start, h3)
        for t in range(start, end):
            d = vload(dt + t * VL)
            x = vload(du + t * VL)
            h0 = advance(d, a0, h0, x, coefficient(B, t, B_constant), safe)
            h1 = advance(d, a1, h1, x, coefficient(B + ldb, t, B_constant), safe)
            h2 = advance(d, a2, h2, x, coefficient(B + 2 * ldb, t, B_constant), safe)
            h3 = advance(d, a3, h3, x, coefficient(B + 3 * ldb, t, B_constant), safe)
            if with_y:
                s = vfma(h0, coefficient(C, t, C_constant), vload(y + t * VL))
                s = vfma(h1, coefficient(C + ldc, t, C_constant), s)
                s = vfma(h2, coefficient(C + 2 * ldc, t, C_constant), s)
                s = vfma(h3, coefficient(C + 3 * ldc, t, C_constant), s)
                vstore(y + t * VL, s)
        start = end
        if not leaves or start >= T:
            break
    vstore(h, h0)
    vstore(h + VL, h1)
    vstore(h + 2 * VL, h2)
    vstore(h + 3 * VL, h3)


cdef inline void one_state(const Loop *loop, ix n, const bint leaves, const bint safe,
                           const bint B_constant, const bint C_constant,
                           const bint with_y) noexcept nogil:
    """State n through a block."""
    cdef const real *dt = loop.dt
    cdef const real *du = loop.du
    cdef real *y = loop.y
    cdef const real *B = loop.B.p + n * loop.B.row
    cdef const real *C = loop.C.p + n * loop.C.row
    cdef vf a = vload(loop.lanes.a + n * VL), h = vload(loop.lanes.h + n * VL), b
    cdef ix t, T = loop.steps, start = 0, end
    while True:
        end = min(start + loop.leave.every, T) if leaves else T
        if leaves and leaves_at(loop, start):
            leave_state(loop, n, start, h)
        for t in range(start, end):
            b = coefficient(B, t, B_constant)
            h = advance(vload(dt + t * VL), a, h, vload(du + t * VL), b, safe)
            if with_y:
                vstore(y + t * VL, vfma(h, coefficient(C, t, C_constant), vload(y + t * VL)))
        start = end
        if not leaves or start >= T:
            break
    vstore(loop.lanes.h + n * VL, h)


cdef inline void states_in_fours(const Loop *loop, ix n, ix end, const bint leaves,
                                 const bint safe, const bint B_constant, const bint C_constant,
                                 const bint with_y) noexcept nogil:
    while n + 4 <= end:
        four_states(loop, n, leaves, safe, B_constant, C_constant, with_y)
        n += 4
    while n < end:
        one_state(loop, n, leaves, safe, B_constant, C_constant, with_y)
        n += 1


# B and C are constant or vary, states may be left, and y may not be wanted.  What is common has a
# loop of its own, and what is rare has one loop for all.

cdef void advance_any(const Loop *loop, ix n, ix end) noexcept nogil:
    """For any Δ·A."""
    states_in_fours(loop, n, end, loop.leave.p is not NULL, False, loop.B.constant,
                    loop.C.constant, loop.y is not NULL)


cdef void advance_mixed(const Loop *loop, ix n, ix end) noexcept nogil:
    """Where every Δ·A is in range."""
    states_in_fours(loop, n, end, loop.leave.p is not NULL, True, loop.B.constant,
                    loop.C.constant, loop.y is not NULL)


cdef void advance_piece(const Loop *loop, ix n, ix end) noexcept nogil:
    """States n … end−1 through a block."""
    cdef bint leaves = loop.leave.p is not NULL
    if not loop.safe:
        advance_any(loop, n, end)
    elif loop.y is NULL and leaves and not loop.B.constant:
        states_in_fours(loop, n, end, True, True, False, True, False)
    elif loop.y is NULL or loop.B.constant != loop.C.constant:
        advance_mixed(loop, n, end)
    elif loop.B.constant and leaves:
        advance_mixed(loop, n, end)
    elif loop.B.constant:
        states_in_fours(loop, n, end, False, True, True, True, True)
    elif leaves:
        states_in_fours(loop, n, end, True, True, False, False, True)
    else:
        states_in_fours(loop, n, end, False, True, False, False, True)


cdef void advance_states(const Loop *loop) noexcept nogil:
    """All states through a block, some of which are left on the way.  The terms of y are added
    state by state, for any number of states."""
    cdef ix n = 0
    while n < loop.states and not stopped(loop.lanes, n):
        advance_piece(loop, n, n + piece_at(n, loop.states))
        n += MANY
    loop.lanes.finite = all_finite(loop.lanes, loop.lanes.h, loop.states)


# ---- a block ----------------------------------------------------------------------------------

cdef inline bint step_sizes(const Lanes *lanes, real *tiles, ix T, const Prefetch *plans,
                            const bint softplus, Stir *sums) noexcept nogil:
    """1. IN delta, u; OUT Δ, Δ·u, D·u, in the same three tiles; sums, unless NULL.  Whether every
    Δ·A of the block is well inside the range of exp."""
    cdef real *dt = tiles
    cdef real *du = tiles + TILE
    cdef real *y = tiles + 2 * TILE
    cdef vf bias = vload(lanes.bias), skip = vload(lanes.D)
    cdef vf d, x, top = vset1(0)
    cdef vf odd = vset1(0)              # becomes NaN with any Δ that is NaN or inf
    cdef Prefetch first = plans[0], second = plans[1], third = plans[2]
    cdef ix t
    for t in range(T):
        prefetch(&first, t)
        prefetch(&second, t)
        prefetch(&third, t)
        if sums is not NULL:
            stir(sums, dt + t * VL, du + t * VL, t)
        d = vload(dt + t * VL) + bias
        if softplus:
            d = vsoftplus(d)
        x = vload(du + t * VL)
        top = vmax(top, vabs(d))
        odd = vfma(d, vset1(0), odd)
        vstore(dt + t * VL, d)
        vstore(du + t * VL, d * x)
        vstore(y + t * VL, x * skip)
    return vall_lt(vfma(top, vload(lanes.limits), odd), vset1(EXP2_SAFE))


cdef void skip_connection(const Scan *scan, const Lanes *lanes, const Block *block,
                          real *y) noexcept nogil:
    """OUT y = D·u of a block, as `step_sizes` leaves it."""
    cdef vf skip = vload(lanes.D)
    cdef ix t
    if scan.D.p is NULL:
        memset(y, 0, block.steps * VL * sizeof(real))
        return
    load_signal(&scan.u, lanes, block, y)
    for t in range(block.steps):
        vstore(y + t * VL, vload(y + t * VL) * skip)


cdef bint start_block(const Scan *scan, Lanes *lanes, const Block *block,
                      real *tiles) noexcept nogil:
    """1. OUT the tiles as `step_sizes` leaves them; whether all Δ·A are inside the range of exp."""
    cdef Prefetch plans[3]
    cdef const Signal *third = &scan.u if scan.z.p is NULL else &scan.z
    cdef Stir sums
    cdef bint safe
    plan_prefetch(&scan.delta, block.batch, lanes, block.after, plans)
    plan_prefetch(&scan.u, block.batch, lanes, block.after, plans + 1)
    plan_prefetch(third, block.batch, lanes, block.start, plans + 2)
    load_signal(&scan.delta, lanes, block, tiles)
    load_signal(&scan.u, lanes, block, tiles + TILE)
    if lanes.sums is NULL:
        if scan.softplus:
            return step_sizes(lanes, tiles, block.steps, plans, True, NULL)
        return step_sizes(lanes, tiles, block.steps, plans, False, NULL)
    stir_begin(&sums, place_of(scan, lanes, block))
    if scan.softplus:
        safe = step_sizes(lanes, tiles, block.steps, plans, True, &sums)
    else:
        safe = step_sizes(lanes, tiles, block.steps, plans, False, &sums)
    lanes.sums[0] += stirred_first(&sums, block.steps)
    lanes.sums[1] += stirred_second(&sums, block.steps)
    return safe


cdef inline void apply_gate(const real *z, real *y, ix T, Stir *sums) noexcept nogil:
    """3. y = y·silu(z); OUT sums, unless NULL."""
    cdef ix t
    for t in range(T):
        if sums is not NULL:
            stir(sums, z + t * VL, NULL, t)
        vstore(y + t * VL, vload(y + t * VL) * vsilu(vload(z + t * VL)))


cdef void gate_block(const Scan *scan, Lanes *lanes, const Block *block, real *z,
                     real *y) noexcept nogil:
    """3. y = y·silu(z); OUT the tile z."""
    cdef Stir sums
    load_signal(&scan.z, lanes, block, z)
    if lanes.sums is NULL:
        apply_gate(z, y, block.steps, NULL)
    else:
        stir_begin(&sums, place_of(scan, lanes, block))
        apply_gate(z, y, block.steps, &sums)
        lanes.sums[2] += stirred_first(&sums, block.steps)


cdef void scan_block(const Scan *scan, const Block *block, Lanes *lanes, const CoefficientRows *B,
                     const CoefficientRows *C, real *tiles, const Leave *leave) noexcept nogil:
    """One Lanes through a block: 1. step sizes, 2. recurrence, 3. gate."""
    cdef real *dt = tiles
    cdef real *y = tiles + 2 * TILE
    cdef Loop loop
    cdef ix T = block.steps
    loop.lanes, loop.states, loop.steps = lanes, scan.states, T
    loop.dt, loop.du, loop.y = dt, tiles + TILE, y
    loop.B, loop.C = own_rows(B, lanes.b), own_rows(C, lanes.c)
    loop.leave = leave[0]
    loop.safe = start_block(scan, lanes, block, tiles) and lanes.finite
    if scan.out.p is NULL:              # only states are wanted: by the adjoint, or of a chunk
        loop.y = NULL
    elif scan.D.p is NULL:              # u·0 would be NaN if u is inf
        memset(y, 0, T * VL * sizeof(real))
    if loop.safe:                       # 2.
        copy_states(lanes.h, lanes, scan.states, lanes.before)
    advance_states(&loop)
    # a state overflowed: the block runs again with the slower arithmetic that follows IEEE
    if loop.safe and not lanes.finite:
        copy_states(lanes.before, lanes, scan.states, lanes.h)
        if loop.y is not NULL:
            skip_connection(scan, lanes, block, y)
        loop.safe = False
        advance_states(&loop)
    if loop.y is NULL:
        return
    if scan.z.p is not NULL:            # 3.
        gate_block(scan, lanes, block, dt, y)
    store_signal(&scan.out, lanes, block, y)


# ---- a work_item: a channel_block through a segment -------------------------------------------

cdef Block block_at(const Segment *segment, ix start, ix size) noexcept nogil:
    """The block of at most `size` steps that begins at `start`, and its successor to be
    prefetched."""
    cdef Block block
    block.batch, block.start = segment.batch, start
    block.steps = min(size, segment.stop - start)
    block.after = start + block.steps if start + block.steps < segment.stop else start
    return block


cdef bint scan_segment(const Scan *scan, ix number, ChannelBlock *carried) noexcept nogil:
    """A channel_block through a segment; False if interrupted."""
    cdef Segment segment = segment_of(scan, number)
    cdef ix t = segment.start, N = scan.states, i
    cdef CoefficientRows B, C
    cdef Block block
    cdef Leave leave
    for i in range(carried.count):
        load_initial_state(scan, number, &carried.lanes[i])
    while t < segment.stop:
        if interrupted(carried.worker):
            return False
        block = block_at(&segment, t, scan.block)
        load_coefficients(scan, carried, &block, &B, &C)
        for i in range(carried.count):
            leave = leave_remembered(scan, &segment, &block, &carried.lanes[i])
            scan_block(scan, &block, &carried.lanes[i], &B, &C, carried.tiles, &leave)
        t += block.steps
    for i in range(carried.count):
        store_state(&scan.last_state, number, &carried.lanes[i], N, carried.lanes[i].h)
    return True


cdef void scan_task(void *args, ix i, Worker *worker) noexcept nogil:
    """A few work_items.  Neighbouring ones share what is worth most: B and C among the
    channel_blocks of a long segment, the set-up of channels among short segments."""
    cdef const Scan *scan = <const Scan *>args
    cdef Lanes lanes[CARRY]
    cdef ChannelBlock carried
    cdef real *own
    cdef ix item, segment, number, ready = -1
    carried.lanes, carried.worker, carried.tiles = lanes, worker, <real *>worker.scratch
    carried.gathered = carried.tiles + 3 * TILE
    own = carried.gathered + <ix>gathered_size(scan)
    begin_sums(&scan.remembered, i, &carried)
    for item in range(i * scan.items_per_task, min(scan.work_items, (i + 1) * scan.items_per_task)):
        if scan.items_per_task > 1:
            number, segment = item // scan.segments, item % scan.segments
        else:
            segment, number = item // scan.blocks.count, item % scan.blocks.count
        if number != ready:
            set_up_channel_block(scan, number, own, &carried)
            ready = number
        if not scan_segment(scan, segment, &carried):
            return


cdef double scan_scratch(const Scan *scan) noexcept nogil:
    """Bytes of scratch of a thread."""
    cdef double reals = 3 * TILE + scan.blocks.carry * lanes_size(scan.states)
    return (reals + gathered_size(scan)) * sizeof(real)


cdef double divide_scan(Scan *scan) noexcept nogil:
    """Blocks, channel_blocks and tasks by the size of the call; the seconds it will take."""
    cdef bint gather = scan.B.gather or scan.C.gather
    cdef double N = scan.states, steps = scan.steps, seconds
    cdef ix least = 16 if scan.remembered.p is NULL else 32
    scan.block = TB
    # checksums are of 32 steps each
    while gather and scan.block > least and scan.block * N > 16384:
        scan.block //= 2
    divide_channels(&scan.blocks, CARRY if gather and N <= 256 else 1)
    if scan.starts is not NULL:
        steps /= scan.segments
    seconds = 1e-9 * sizeof(real) / 4 * VL * scan.blocks.carry * (1 + steps) * (2 + 0.3 * N)
    scan.items_per_task = max(1, <ix>(20e-6 / seconds))
    return seconds
