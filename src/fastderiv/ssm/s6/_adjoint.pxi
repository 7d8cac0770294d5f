# The adjoint of the scan (docs/derivations.md §1.4): a channel_block goes through a segment forward
# once, keeping the state before every INTERVAL steps, then back block by block.  Steps have the
# numbers that they have in scan_block: 1. step sizes, 2. recurrence, 3. gate.
# Included by _kernels.pyx.
# needs: Block, ChannelBlock, CoefficientRows, first_channel, INTERVAL, Lanes, MANY, Scan, Segment,
#        segment_of, Signal, State, TB (s6/_problem.pxi)
# needs: load_signal, plan_prefetch, Prefetch, prefetch, prefetch_far, store_signal,
#        TILE (s6/_tiles.pxi)
# needs: all_finite, copy_states, load_coefficients, load_initial_state, load_state, own_rows,
#        stopped, store_state (s6/_lanes.pxi)
# needs: Leave, place_of, prefetch_remembered, Stir, stir, stir_begin, stirred_first,
#        stirred_second (s6/_remembered.pxi)
# needs: block_at, scan_block (s6/_scan.pxi)
# needs: add_terms, CoefficientGradient, gradient_rows, prefetch_rows,
#        TERMS (s6/_coefficient_sums.pxi)
# needs: add_exactly, adjoint_states, AdjointLoop, Back, DT, DTU, DY, GATE, HA, HB, KEPT, SLOPE,
#        TILES, U, Y (s6/_replay.pxi)
# needs: checkpoint, checkpoints_of (s6/_recall.pxi)

cdef enum:
    PLANS = 9                           # arrays of which a block prefetches lines

cdef enum:                              # a result is written over an input that only it needs
    DDELTA = DT
    DU = HB
    DZ = GATE

cdef struct Adjoint:
    Scan scan
    Signal dout, du, ddelta, dz
    State dlast_state, dinitial_state
    CoefficientGradient dB, dC
    real *sums                          # (ranges, rows, D): dA, constant dB and dC state by state,
                                        # dD, dbias
    ix rows
    ix slices, ranges                   # of the channel_blocks, and of the segments
    ix intervals                        # that have checkpoints in scratch


cdef ix slice_start(const Adjoint *adj, ix slice) noexcept nogil:
    """The first channel_block of a slice."""
    return slice * adj.scan.blocks.count // adj.slices


# ---- a block ----------------------------------------------------------------------------------

cdef inline bint prepare_steps(const Lanes *lanes, ix T, const Prefetch *plans, real *tiles,
                               const bint softplus, Stir *sums) noexcept nogil:
    """1. IN DT = delta, U; OUT DT = Δ, DTU, SLOPE; HB and HA zero; sums, unless NULL.  Returns
    whether every Δ·A of the block is well inside the range of exp."""
    cdef vf bias = vload(lanes.bias), top = vset1(0), odd = vset1(0)
    cdef vf d, slope
    cdef Prefetch first = plans[0], second = plans[1], third = plans[2], fourth = plans[3]
    cdef Prefetch dout = plans[7], z = plans[8]
    cdef ix t
    for t in range(T):
        prefetch_far(&first, t)
        prefetch_far(&second, t)
        prefetch_far(&third, t)
        prefetch_far(&fourth, t)
        prefetch(&dout, t)
        prefetch(&z, t)
        if sums is not NULL:
            stir(sums, tiles + DT + t * VL, tiles + U + t * VL, t)
        d = vload(tiles + DT + t * VL) + bias
        if softplus:
            d = vsoftplus_slope(d, &slope)
            vstore(tiles + SLOPE + t * VL, slope)
        top = vmax(top, vabs(d))
        odd = vfma(d, vset1(0), odd)
        vstore(tiles + DT + t * VL, d)
        vstore(tiles + DTU + t * VL, d * vload(tiles + U + t * VL))
        vstore(tiles + HB + t * VL, vset1(0))
        vstore(tiles + HA + t * VL, vset1(0))
    return vall_lt(vfma(top, vload(lanes.limits), odd), vset1(EXP2_SAFE))


cdef inline bint prepare_gate(const Lanes *lanes, ix T, const Prefetch *plans, real *tiles,
                              const bint gate, Stir *sums) noexcept nogil:
    """3. IN DY = dout, GATE = z, U; OUT DY = ȳ, GATE = dout·silu'(z), Y = D·u, sums unless NULL;
    without a gate DY is only read.  Returns whether ȳ is finite.  This is a loop of its own: in one
    with `prepare_steps` too few steps are in flight at once."""
    cdef vf skip = vload(lanes.D)
    cdef vf dout, dy, slope, odd = vset1(0)
    cdef Prefetch first = plans[0], second = plans[1], third = plans[2]
    cdef ix t
    for t in range(T):
        prefetch_far(&first, t)
        prefetch_far(&second, t)
        prefetch_far(&third, t)
        dy = vload(tiles + DY + t * VL)
        if gate:
            if sums is not NULL:
                stir(sums, tiles + GATE + t * VL, NULL, t)
            dout = dy
            dy = dout * vsilu_slope(vload(tiles + GATE + t * VL), &slope)
            vstore(tiles + DY + t * VL, dy)
            vstore(tiles + GATE + t * VL, dout * slope)
            vstore(tiles + Y + t * VL, vload(tiles + U + t * VL) * skip)
        odd = vfma(dy, vset1(0), odd)
    return vall_lt(odd, vset1(1))


cdef inline void finish_steps(const Lanes *lanes, const Back *back, ix rows, ix T, real *tiles,
                              const bint skipped, const bint softplus,
                              const bint gate) noexcept nogil:
    """3. OUT DZ; 1. OUT DDELTA, DU; dD and dbias go into the sums."""
    cdef real *sums = back.sums + (rows - 2) * VL
    cdef real *low = back.low + (rows - 2) * VL
    cdef vf skip = vload(lanes.D), dD = vset1(0), dbias = vset1(0)
    cdef vf u, hb, dy, ddelta, du
    cdef ix t
    for t in range(T):
        u, hb = vload(tiles + U + t * VL), vload(tiles + HB + t * VL)
        dy = vload(tiles + DY + t * VL)
        ddelta = vfma(vload(tiles + HA + t * VL), vset1(1 / LOG2E), hb * u)
        if softplus:
            ddelta = ddelta * vload(tiles + SLOPE + t * VL)
        dD = vfma(dy, u, dD)
        dbias = dbias + ddelta
        du = hb * vload(tiles + DT + t * VL)
        vstore(tiles + DU + t * VL, vfma(dy, skip, du) if skipped else du)
        vstore(tiles + DDELTA + t * VL, ddelta)
        if gate:
            vstore(tiles + DZ + t * VL, vload(tiles + GATE + t * VL) * vload(tiles + Y + t * VL))
    add_exactly(dD, sums, low)
    add_exactly(dbias, sums + VL, low + VL)


cdef void plan_block(const Adjoint *adj, const Block *block, const Lanes *lanes, const Lanes *next,
                     Prefetch *plans) noexcept nogil:
    """OUT plans: to fetch what the Lanes `next` will read, what this block will write at its end,
    and once more, to the first-level cache, what this block will read soon."""
    cdef bint gate = adj.scan.z.p is not NULL
    cdef const Signal *z = &adj.scan.z if gate else &adj.scan.u
    cdef const Signal *dz = &adj.dz if gate else &adj.du
    plan_prefetch(&adj.scan.delta, block.batch, next, block.after, plans)
    plan_prefetch(&adj.scan.u, block.batch, next, block.after, plans + 1)
    plan_prefetch(&adj.dout, block.batch, next, block.after, plans + 2)
    plan_prefetch(z, block.batch, next, block.after, plans + 3)
    plan_prefetch(&adj.du, block.batch, lanes, block.start, plans + 4)
    plan_prefetch(&adj.ddelta, block.batch, lanes, block.start, plans + 5)
    plan_prefetch(dz, block.batch, lanes, block.start, plans + 6)
    plan_prefetch(&adj.dout, block.batch, lanes, block.start, plans + 7)
    plan_prefetch(z, block.batch, lanes, block.start, plans + 8)


cdef bint prepare_signals(const Adjoint *adj, const Block *block, const Lanes *lanes,
                          const Prefetch *plans, real *tiles) noexcept nogil:
    """1. OUT what `prepare_steps` says, and the checksums of delta and u if they are taken."""
    cdef const Scan *scan = &adj.scan
    cdef ix T = block.steps
    cdef Stir sums
    cdef bint safe
    load_signal(&scan.delta, lanes, block, tiles + DT)
    load_signal(&scan.u, lanes, block, tiles + U)
    if lanes.sums is NULL:
        if scan.softplus:
            return prepare_steps(lanes, T, plans, tiles, True, NULL)
        return prepare_steps(lanes, T, plans, tiles, False, NULL)
    stir_begin(&sums, place_of(scan, lanes, block))
    if scan.softplus:
        safe = prepare_steps(lanes, T, plans, tiles, True, &sums)
    else:
        safe = prepare_steps(lanes, T, plans, tiles, False, &sums)
    lanes.sums[0] += stirred_first(&sums, T)
    lanes.sums[1] += stirred_second(&sums, T)
    return safe


cdef bint prepare_block(const Adjoint *adj, const Block *block, const Lanes *lanes,
                        const Prefetch *plans, real *tiles) noexcept nogil:
    """1. and 3.: OUT the tiles that the recurrence reads.  Whether every Δ·A is inside the range of
    exp and ȳ is finite."""
    cdef const Scan *scan = &adj.scan
    cdef ix T = block.steps
    cdef Stir sums
    cdef bint safe = prepare_signals(adj, block, lanes, plans, tiles)
    load_signal(&adj.dout, lanes, block, tiles + DY)
    if scan.z.p is NULL:
        return prepare_gate(lanes, T, plans + 4, tiles, False, NULL) and safe
    load_signal(&scan.z, lanes, block, tiles + GATE)
    if lanes.sums is NULL:
        safe = prepare_gate(lanes, T, plans + 4, tiles, True, NULL) and safe
    else:
        stir_begin(&sums, place_of(scan, lanes, block))
        safe = prepare_gate(lanes, T, plans + 4, tiles, True, &sums) and safe
        lanes.sums[2] += stirred_first(&sums, T)
    if scan.D.p is NULL:                # u·0 would be NaN if u is inf
        memset(tiles + Y, 0, T * VL * sizeof(real))
    return safe


cdef void adjoint_block(const Adjoint *adj, const Block *block, AdjointLoop *loop,
                        const Lanes *next) noexcept nogil:
    """One Lanes back through a block.  IN loop: all but its steps, states and gate.  What the Lanes
    `next` will read of the block at `block.after` is prefetched."""
    cdef const Scan *scan = &adj.scan
    cdef Lanes *lanes = loop.lanes
    cdef real *tiles = loop.tiles
    cdef Prefetch plans[PLANS]
    plan_block(adj, block, lanes, next, plans)
    loop.steps, loop.states, loop.gate = block.steps, scan.states, scan.z.p is not NULL
    loop.safe = prepare_block(adj, block, lanes, plans, tiles) and loop.safe
    loop.safe = loop.safe and all_finite(lanes, loop.back.g, scan.states)
    adjoint_states(loop)                # 2.
    finish_steps(lanes, loop.back, adj.rows, block.steps, tiles, scan.D.p is not NULL,
                 scan.softplus, loop.gate)
    store_signal(&adj.du, lanes, block, tiles + DU)
    store_signal(&adj.ddelta, lanes, block, tiles + DDELTA)
    if loop.gate:
        store_signal(&adj.dz, lanes, block, tiles + DZ)


# ---- a channel_block through a segment --------------------------------------------------------

cdef bint leave_checkpoints(const Adjoint *adj, const Segment *segment, ChannelBlock *carried,
                            Back *backs) noexcept nogil:
    """Forward through a segment; False if interrupted.  The last interval is left out: it is
    replayed from the state before it, and no step needs the state after it."""
    cdef Scan forward = adj.scan
    cdef ix N = forward.states, t = segment.start, i, size
    cdef CoefficientRows B, C
    cdef Block block
    cdef Lanes *lanes
    cdef Leave leave
    leave.every, leave.rows, leave.first = INTERVAL, VL, True
    forward.out.p = NULL
    forward.C.constant = True           # without y it is never read, and need not be copied
    while t < segment.stop:
        if interrupted(carried.worker):
            return False
        block = block_at(segment, t, TB)
        size = block.steps
        load_coefficients(&forward, carried, &block, &B, &C)
        if t + size == segment.stop:
            block.steps = (size - 1) // INTERVAL * INTERVAL
            block.after = t + block.steps
        for i in range(carried.count):
            lanes = &carried.lanes[i]
            leave.p = checkpoint(&backs[i], N, t - segment.start)
            scan_block(&forward, &block, lanes, &B, &C, carried.tiles, &leave)
            copy_states(lanes.h, lanes, N,
                        checkpoint(&backs[i], N, t + block.steps - segment.start))
        t += size
    return True


cdef bint finite_rows(const Lanes *lanes, const CoefficientRows *rows, ix N, ix T) noexcept nogil:
    """Whether a block of a time-varying B or C has neither NaN nor inf.  True for a constant one:
    `Back.tame` says whether that is finite."""
    cdef vf odd = vset1(0)
    cdef real rest = 0
    cdef const real *p
    cdef ix n, t
    if rows.constant:
        return True
    for n in range(N):
        if n % MANY == 0 and stopped(lanes, n):
            break
        p = rows.p + n * rows.row
        for t in range(T // VL):
            odd = vfma(vload(p + t * VL), vset1(0), odd)
        for t in range(T // VL * VL, T):
            rest += p[t] * 0
    return vall_lt(odd + vset1(rest), vset1(1))


cdef real *begin_rows(const Adjoint *adj, const CoefficientGradient *gradient, ix slice,
                      const Block *block, const ChannelBlock *carried) noexcept nogil:
    """Where the terms of a block are added to dB or dC; NULL if B or C is constant."""
    cdef ix first = first_channel(&adj.scan.blocks, slice_start(adj, slice))
    cdef real *rows
    if gradient.p is NULL:
        return NULL
    rows = gradient_rows(&adj.scan, gradient, slice, first, block.batch, carried.lanes[0].channel)
    prefetch_rows(rows + block.start, adj.scan.steps, adj.scan.states, block.steps)
    return rows + block.start


cdef void block_back(const Adjoint *adj, ix number, ix t, ix slice, ChannelBlock *carried,
                     Back *backs) noexcept nogil:
    """All Lanes of a channel_block back through the block of a segment that begins at t."""
    cdef const Scan *scan = &adj.scan
    cdef Segment segment = segment_of(scan, number)
    cdef ix N = scan.states, L = scan.steps, i
    cdef Block block = block_at(&segment, t, TB)
    cdef CoefficientRows B, C
    cdef AdjointLoop loop
    cdef Lanes *next
    cdef real *terms = carried.tiles + TILES + 4 * KEPT
    cdef real *dB = begin_rows(adj, &adj.dB, slice, &block, carried)
    cdef real *dC = begin_rows(adj, &adj.dC, slice, &block, carried)
    cdef bint safe
    load_coefficients(scan, carried, &block, &B, &C)
    safe = finite_rows(carried.lanes, &B, N, block.steps)
    safe = safe and finite_rows(carried.lanes, &C, N, block.steps)
    loop.tiles, loop.kept = carried.tiles, carried.tiles + TILES
    for i in range(carried.count):
        loop.lanes, loop.back = &carried.lanes[i], &backs[i]
        loop.B, loop.C = own_rows(&B, loop.lanes.b), own_rows(&C, loop.lanes.c)
        loop.checkpoints = checkpoints_of(scan, number, &block, &B, &loop)
        loop.terms, loop.add = terms + i % NS * TILE, i >= NS
        loop.safe = safe and loop.back.tame
        next, block.after = loop.lanes + 1, t
        if i + 1 == carried.count:
            next, block.after = carried.lanes, max(t - TB, segment.start)
        if scan.remembered.p is not NULL:
            prefetch_remembered(scan, &segment, &block, next)
        adjoint_block(adj, &block, &loop, next)
    if dB is not NULL:
        add_terms(carried, terms, N, block.steps, dB, L)
    if dC is not NULL:
        add_terms(carried, terms + TERMS // 2, N, block.steps, dC, L)


cdef bint adjoint_segment(const Adjoint *adj, ix number, ix slice, ChannelBlock *carried,
                          Back *backs) noexcept nogil:
    """A channel_block of a slice through a segment and back; False if interrupted."""
    cdef Segment segment = segment_of(&adj.scan, number)
    cdef ix N = adj.scan.states, t, i
    cdef Lanes *lanes = carried.lanes
    for i in range(carried.count):
        load_initial_state(&adj.scan, number, &lanes[i])
        load_state(&adj.dlast_state, number, &lanes[i], N, backs[i].g)
    if segment.start < segment.stop:
        if adj.scan.remembered.p is NULL and not leave_checkpoints(adj, &segment, carried, backs):
            return False
        t = segment.start + (segment.stop - segment.start - 1) // TB * TB
        while t >= segment.start:
            if interrupted(carried.worker):
                return False
            block_back(adj, number, t, slice, carried, backs)
            t -= TB
    for i in range(carried.count):
        store_state(&adj.dinitial_state, number, &lanes[i], N, backs[i].g)
    return True
