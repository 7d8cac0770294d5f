# The checkpoints of a block on its way back, from scratch or from a cache (docs/derivations.md
# §6.8): what the cache lacks of them is computed once more.  Included by _kernels.pyx.
# needs: Block, CoefficientRows, INTERVAL, Lanes, Scan, Segment, segment_of (s6/_problem.pxi)
# needs: all_finite, copy_states, load_initial_state (s6/_lanes.pxi)
# needs: Leave, remembered_at, unpack_states (s6/_remembered.pxi)
# needs: scan_block (s6/_scan.pxi)
# needs: AdjointLoop, Back (s6/_replay.pxi)

cdef inline real *checkpoint(const Back *back, ix N, ix t) noexcept nogil:
    """The state t steps into a segment, t a multiple of INTERVAL."""
    return back.checkpoints + t // INTERVAL * N * VL


cdef void sweep(const Scan *scan, const Block *span, Lanes *lanes, const CoefficientRows *B,
                real *tiles, real *checkpoints) noexcept nogil:
    """Forward through a span, leaving checkpoints.  IN lanes.h: the state before it."""
    cdef Scan forward = scan[0]
    cdef CoefficientRows none
    cdef Leave leave
    cdef uint64_t *sums = lanes.sums
    cdef ix N = forward.states
    forward.out.p = NULL
    none.p, none.row, none.constant = NULL, 0, True
    leave.p, leave.every, leave.rows, leave.first = checkpoints, INTERVAL, VL, True
    lanes.finite = all_finite(lanes, lanes.h, N)
    lanes.sums = NULL                   # the way back takes the checksums
    scan_block(&forward, span, lanes, B, &none, tiles, &leave)
    copy_states(lanes.h, lanes, N, checkpoints + span.steps // INTERVAL * N * VL)
    lanes.sums = sums


cdef void recall_checkpoints(const Scan *scan, ix number, const Block *block,
                             const CoefficientRows *B, const AdjointLoop *loop) noexcept nogil:
    """OUT the checkpoints of a block, from a cache; those that it lacks are computed once more."""
    cdef Segment segment = segment_of(scan, number)
    cdef Lanes *lanes = loop.lanes
    cdef CoefficientRows own = B[0]
    cdef Block span = block[0]
    cdef real *to = loop.back.checkpoints
    cdef ix N = scan.states, size = scan.remembered.span, t = 0, first
    while t < block.steps:
        first = block.start + t - segment.start
        if first == 0:
            load_initial_state(scan, number, lanes)
        else:
            unpack_states(remembered_at(scan, &segment, lanes, first), lanes, N, lanes.h)
        span.start = span.after = block.start + t
        # the last interval leads to a state that the cache has, or that no step needs
        span.steps = (min(size, block.steps - t) - 1) // INTERVAL * INTERVAL
        if span.steps == 0:
            copy_states(lanes.h, lanes, N, to)
        else:
            own.p = B.p if B.constant else B.p + t
            sweep(scan, &span, lanes, &own, loop.tiles, to)
        to += size // INTERVAL * N * VL
        t += size


cdef const real *checkpoints_of(const Scan *scan, ix number, const Block *block,
                                const CoefficientRows *B, const AdjointLoop *loop) noexcept nogil:
    """The checkpoints of a block, [interval, N, lane]: in scratch or, if they are all there, in the
    cache."""
    cdef Segment segment = segment_of(scan, number)
    cdef ix t = block.start - segment.start
    if scan.remembered.p is NULL:
        return checkpoint(loop.back, scan.states, t)
    if t > 0 and scan.remembered.span == INTERVAL and loop.lanes.rows == VL:
        return remembered_at(scan, &segment, loop.lanes, t)
    recall_checkpoints(scan, number, block, B, loop)
    return loop.back.checkpoints
