# What a scan remembers for its adjoint (docs/derivations.md §6.8): the states before every `span`
# steps, so that the adjoint need not run forward again, and checksums of the signals, by which
# Python knows that both calls had the same ones.  Included by _kernels.pyx.
# needs: Block, ChannelBlock, Lanes, MANY, Remembered, Scan, Segment, SIGNALS, TB (s6/_problem.pxi)
# needs: stopped (s6/_lanes.pxi)

cdef extern from "s6/tile_sum.h" nogil:
    ctypedef struct Stir:               # checksums of one or two tiles on their way
        pass
    void stir_begin(Stir *sums, uint64_t place)
    void stir(Stir *sums, const real *first, const real *second, ix t)
    uint64_t stirred_first(Stir *sums, ix steps)
    uint64_t stirred_second(Stir *sums, ix steps)

cdef struct Leave:                      # where a block leaves states on its way
    real *p                             # the state before the block; NULL if it leaves none
    ix every                            # steps from one to the next
    ix rows                             # lanes of each that are kept
    bint first                          # whether the state before the block is one of them


# ---- states -----------------------------------------------------------------------------------

cdef inline real *remembered_at(const Scan *scan, const Segment *segment, const Lanes *lanes,
                                ix t) noexcept nogil:
    """Where the state t steps into a segment is, t a positive multiple of the span: [N, lane] of
    the lanes that have a channel.

    A batch item has states for the steps span, 2·span, … of its time axis.  A packed segment takes
    those from the one that lies in it, or before its start, on; no two segments share any."""
    cdef const Remembered *kept = &scan.remembered
    cdef ix number = segment.start // kept.span + t // kept.span - 1
    cdef ix channel = segment.batch * scan.channels + lanes.channel
    return kept.p + (channel * kept.count + number * lanes.rows) * scan.states


cdef void unpack_states(const real *src, const Lanes *lanes, ix N, real *h) noexcept nogil:
    """OUT h [N, lane] = src [N, the lanes that have a channel]; the others are zero."""
    cdef ix n
    for n in range(N):
        if n % MANY == 0 and stopped(lanes, n):
            return
        vstore(h + n * VL, vload_some(src + n * lanes.rows, lanes.rows))


cdef Leave leave_remembered(const Scan *scan, const Segment *segment, const Block *block,
                            const Lanes *lanes) noexcept nogil:
    """Where a block of the scan forward leaves states.  Before the first step of a segment is the
    initial state, which is no part of what is kept."""
    cdef Leave leave
    cdef ix t = block.start - segment.start
    leave.p, leave.every, leave.rows = NULL, TB, lanes.rows
    leave.first = t > 0
    if scan.remembered.p is not NULL and t % scan.remembered.span == 0:
        leave.p, leave.every = remembered_at(scan, segment, lanes, t), scan.remembered.span
    return leave


cdef void prefetch_remembered(const Scan *scan, const Segment *segment, const Block *block,
                              const Lanes *next) noexcept nogil:
    """Prefetch the states that the Lanes `next` will need for the block at block.after: as many as
    caches hold."""
    cdef ix n, size = min(scan.states, <ix>MANY) * next.rows
    cdef ix t = block.after - segment.start, end = min(t + TB, segment.stop - segment.start)
    cdef const real *p
    while t < end:
        if t > 0:
            p = remembered_at(scan, segment, next, t)
            n = 0
            while n < size:
                vprefetch_far(p + n)
                n += GL
        t += scan.remembered.span


# ---- checksums --------------------------------------------------------------------------------

cdef inline uint64_t place_of(const Scan *scan, const Lanes *lanes,
                              const Block *block) noexcept nogil:
    """A number that no other block of the signals has."""
    return (block.batch * scan.channels + lanes.channel) * scan.steps + block.start


cdef void begin_sums(const Remembered *kept, ix task, ChannelBlock *carried) noexcept nogil:
    """OUT the sums of a task, zero."""
    carried.sums = NULL
    if kept.sums is not NULL:
        carried.sums = kept.sums + task * SIGNALS
        memset(carried.sums, 0, SIGNALS * sizeof(uint64_t))
