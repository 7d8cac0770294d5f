# The adjoint of the causal convolution (docs/derivations.md §6.6).  A task takes one group of
# channels through one share of the steps, counted through all segments.  Each share has its own
# sums for the gradients of weight and bias, which Python adds up.  Included by _kernels.pyx.
# needs: Signal, State (s6/_problem.pxi)
# needs: store_tile (s6/_tiles.pxi)
# needs: Conv, conv_at, CONV_BLOCK, CONV_CHUNK, CONV_DIRECT, conv_divide_channels,
#        conv_divide_steps, conv_fetch, CONV_FEW, conv_fill, conv_lanes, conv_load, conv_next,
#        conv_part, conv_rows, conv_segment_at, conv_set_group, conv_stopped, conv_tile_size,
#        CONV_TILES, conv_total, ConvGroup, ConvLanes, ConvNext, ConvPace, ConvPart,
#        ConvRows (conv/_problem.pxi)

cdef extern from "conv/adjoint.h" nogil:
    ctypedef struct ConvAdjointRows:
        ConvRows rows
        const real *dy
        real *dx
        real *pending
        real *sums
        ix dy_t, dx_t, dy_ahead
        bint summed
    void conv_adjoint_rows(const ConvAdjointRows *rows)
    void conv_errors(const real *s, real *e, ix n)
    void conv_tap_sums(const ConvAdjointRows *rows, const real *e, ix n)
    void conv_input_rows(const ConvAdjointRows *rows, const real *e, ix n, ix first, ix end)

cdef enum:
    CONV_SHARES = 64                    # at most
    CONV_SHARE = 256                    # steps of a share, at least

cdef struct ConvAdjoint:
    Conv conv
    Signal dout, dx
    State dlast_state, dinitial_state   # (segments, D, K−1)
    real *sums                          # (shares, K + 1, D): of dweight and dbias
    bint few                            # whether conv_adjoint_rows serves the number of taps
    ix after                            # rows of a tile behind its last step, K − 1 or more

cdef struct ConvAdjointGroup:           # the channels of a task, and its scratch
    ConvGroup channels
    real *pending                       # [K − 1][slots]
    real *sums                          # [2 (K + 1)][slots]
    real *x                             # tiles, each of one vector of channels
    real *dy
    real *dx
    real *s

cdef struct ConvChunk:                  # steps t … t+n−1 of a part, and the `halo` steps behind
    ix t, n, halo                       # them, whose errors have a part in dx
    ix whole                            # of how many of the n steps dx becomes complete
    bint starts, ends                   # whether it begins its segment; whether nothing follows
    ConvNext next


# ---- a chunk in tiles -------------------------------------------------------------------------

cdef inline ix conv_halo(const ConvAdjoint *adj, const ConvPart *part, ix end) noexcept nogil:
    """Steps of the segment that lie behind `end` and within the reach of the step before it."""
    return min(adj.conv.taps - 1, part.stop - end)


cdef ConvChunk conv_chunk_at(const ConvAdjoint *adj, const ConvPart *part, ix t,
                             ix n) noexcept nogil:
    cdef ConvChunk chunk
    chunk.t, chunk.n, chunk.whole = t, n, n
    chunk.halo = conv_halo(adj, part, t + n)
    chunk.starts, chunk.ends = t == part.start, t + n + chunk.halo == part.stop
    chunk.next.channel, chunk.next.t = 0, part.stop     # nothing
    return chunk


cdef void conv_fetch_next(const ConvAdjoint *adj, const ConvPart *part, const ConvChunk *chunk,
                          ix t) noexcept nogil:
    conv_fetch(&adj.conv.x, part, &chunk.next, t)
    conv_fetch(&adj.dout, part, &chunk.next, t)
    conv_fetch(&adj.dx, part, &chunk.next, t)


cdef void conv_load_chunk(const ConvAdjoint *adj, const ConvPart *part, const ConvChunk *chunk,
                          const ConvLanes *lanes, const ConvAdjointGroup *group) noexcept nogil:
    """OUT tiles of x and dy.  If time is contiguous, more of the steps behind are loaded than are
    needed, so that whole squares are transposed."""
    cdef ix end = chunk.t + chunk.n, more = chunk.halo
    if more and adj.conv.x.t == 1:
        more = min(adj.after, part.stop - end)
    conv_fill(&adj.conv, part, lanes, chunk.t, chunk.n + more, group.x)
    more = chunk.halo
    if more and adj.dout.t == 1:
        more = min(adj.after, part.stop - end)
    conv_load(&adj.dout, part, lanes, chunk.t, chunk.n + more, group.dy)


cdef void conv_few_taps(const ConvAdjoint *adj, const ConvPart *part, const ConvChunk *chunk,
                        ConvAdjointRows *rows) noexcept nogil:
    """OUT rows of dx, and sums.  If the segment ends with the chunk, the pending rows are all that
    will come."""
    cdef ix K = adj.conv.taps, t = 0, k
    while t < chunk.n:
        rows.rows.steps = min(<ix>CONV_BLOCK, chunk.n - t)
        conv_fetch_next(adj, part, chunk, t)
        conv_adjoint_rows(rows)
        rows.rows.x += rows.rows.steps * VL
        rows.dy += rows.rows.steps * VL
        rows.dx += rows.rows.steps * VL
        t += rows.rows.steps
    if chunk.halo:
        rows.summed, rows.rows.steps = False, chunk.halo
        conv_adjoint_rows(rows)
        rows.dx += chunk.halo * VL
    if chunk.ends:
        for k in range(K - 1):
            vstore(rows.dx + (k - K + 1) * VL, vload(rows.pending + k * rows.rows.slots))


cdef void conv_many_taps(const ConvAdjoint *adj, const ConvPart *part, const ConvChunk *chunk,
                         ConvAdjointRows *rows, real *e, real *s) noexcept nogil:
    """The same for any number of taps.  IN e = dy."""
    cdef ix n = chunk.n + chunk.halo, t = 0, first = 1 - adj.conv.taps if chunk.starts else 0
    if adj.conv.silu:
        rows.rows.y, rows.rows.y_t, rows.rows.steps, rows.rows.silu = s, VL, n, False
        conv_rows(&rows.rows)
        conv_errors(s, e, n)
    conv_input_rows(rows, e, n, first, chunk.n)
    while t < chunk.n:
        conv_fetch_next(adj, part, chunk, t)
        conv_tap_sums(rows, e + t * VL, min(<ix>CONV_BLOCK, chunk.n - t))
        rows.rows.x += CONV_BLOCK * VL
        t += CONV_BLOCK


cdef void conv_add_last(const ConvAdjoint *adj, const ConvPart *part, const ConvChunk *chunk,
                        const ConvLanes *lanes, real *dx) noexcept nogil:
    """Add the gradients of the last state, inputs of the segment's end, to rows of dx."""
    cdef const State *last = &adj.dlast_state
    cdef const real *src = last.p + part.segment * last.s + lanes.channel * last.d
    cdef ix K = adj.conv.taps, first = part.stop - K + 1 - chunk.t, j, i
    for j in range(max(<ix>0, 1 - K - first), min(K - 1, chunk.n - first)):
        for i in range(lanes.rows):
            dx[(first + j) * VL + i] += src[i * last.d + j * last.n]


cdef void conv_store_chunk(const ConvAdjoint *adj, const ConvPart *part, const ConvChunk *chunk,
                           const ConvLanes *lanes, const real *dx) noexcept nogil:
    """OUT the rows of dx that are complete, and those of the initial state."""
    cdef const State *init = &adj.dinitial_state
    cdef ix K = adj.conv.taps
    store_tile(dx, VL, conv_at(&adj.dx, part, lanes.channel, chunk.t), adj.dx.d, adj.dx.t,
               lanes.rows, chunk.whole)
    if chunk.starts and init.p is not NULL:
        store_tile(dx - (K - 1) * VL, VL, init.p + part.segment * init.s + lanes.channel * init.d,
                   init.d, init.n, lanes.rows, K - 1)


cdef void conv_adjoint_chunk(const ConvAdjoint *adj, const ConvPart *part, const ConvChunk *chunk,
                             ix v, const ConvAdjointGroup *group) noexcept nogil:
    """A chunk of a vector of channels."""
    cdef ConvLanes lanes = conv_lanes(&group.channels, v)
    cdef real *dx = group.dx + adj.conv.before * VL
    cdef ConvAdjointRows rows
    cdef ix k
    conv_load_chunk(adj, part, chunk, &lanes, group)
    rows.rows.x, rows.rows.x_t = group.x + adj.conv.before * VL, VL
    rows.rows.w, rows.rows.slots, rows.rows.taps = lanes.w, lanes.slots, adj.conv.taps
    rows.rows.silu, rows.rows.vectors, rows.rows.last = adj.conv.silu, 1, 0
    rows.rows.ahead, rows.dy_ahead, rows.summed = 0, 0, True
    rows.dy, rows.dx, rows.dy_t, rows.dx_t = group.dy, dx, VL, VL
    rows.pending, rows.sums = group.pending + v * VL, group.sums + v * VL
    if adj.few:
        for k in range(adj.conv.taps - 1):
            vstore(rows.pending + k * lanes.slots, vset1(0))
        conv_few_taps(adj, part, chunk, &rows)
    else:
        conv_many_taps(adj, part, chunk, &rows, group.dy, group.s)
    if adj.dlast_state.p is not NULL:
        conv_add_last(adj, part, chunk, &lanes, dx)
    conv_store_chunk(adj, part, chunk, &lanes, dx)


# ---- rows in place ----------------------------------------------------------------------------

cdef void conv_adjoint_direct(const ConvAdjoint *adj, const ConvPart *part, ix t, ix n, bint summed,
                              const ConvAdjointGroup *group) noexcept nogil:
    """n steps of all channels of the group.  OUT dx of n steps, K − 1 steps earlier."""
    cdef const ConvGroup *channels = &group.channels
    cdef ConvAdjointRows rows
    cdef bint far = t + n + CONV_BLOCK <= part.stop
    rows.rows.x = conv_at(&adj.conv.x, part, channels.channel, t)
    rows.dy = conv_at(&adj.dout, part, channels.channel, t)
    rows.dx = conv_at(&adj.dx, part, channels.channel, t)
    rows.rows.x_t, rows.dy_t, rows.dx_t = adj.conv.x.t, adj.dout.t, adj.dx.t
    rows.rows.w, rows.rows.slots, rows.rows.taps = channels.w, channels.slots, adj.conv.taps
    rows.rows.silu, rows.rows.vectors = adj.conv.silu, channels.vectors
    rows.rows.last, rows.rows.steps = channels.channels - VL, n
    rows.rows.ahead = CONV_BLOCK * adj.conv.x.t if far else 0
    rows.dy_ahead = CONV_BLOCK * adj.dout.t if far else 0
    rows.pending, rows.sums, rows.summed = group.pending, group.sums, summed
    conv_adjoint_rows(&rows)


cdef void conv_adjoint_end(const ConvAdjoint *adj, const ConvPart *part,
                           const ConvAdjointGroup *group) noexcept nogil:
    """OUT dx of the last steps of a part that ends within K − 1 steps of the end of its segment:
    what is pending, and the gradients of the last state."""
    cdef ConvLanes lanes
    cdef ix K = adj.conv.taps, first = part.stop - K + 1, v, k
    cdef ConvChunk chunk = conv_chunk_at(adj, part, first, part.end - first)
    for v in range(group.channels.vectors):
        lanes = conv_lanes(&group.channels, v)
        for k in range(chunk.n):
            vstore(group.dx + k * VL, vload(group.pending + v * VL + k * lanes.slots))
        if adj.dlast_state.p is not NULL:
            conv_add_last(adj, part, &chunk, &lanes, group.dx)
        conv_store_chunk(adj, part, &chunk, &lanes, group.dx)


cdef bint conv_adjoint_in_place(const ConvAdjoint *adj, const ConvPart *part,
                                const ConvAdjointGroup *group, ConvPace *pace) noexcept nogil:
    """A part of many steps; False if interrupted.  What the first steps reach lies before the part,
    so they go through tiles; from then on, dx is pending from block to block."""
    cdef ConvChunk chunk = conv_chunk_at(adj, part, part.first, CONV_BLOCK)
    cdef ix t = part.first + CONV_BLOCK, n, v
    chunk.halo, chunk.whole, chunk.ends = 0, CONV_BLOCK - adj.conv.taps + 1, False
    for v in range(group.channels.vectors):
        chunk.next = conv_next(&group.channels, v, part.first, CONV_BLOCK)
        conv_adjoint_chunk(adj, part, &chunk, v, group)
    while t < part.end:
        n = min(<ix>CONV_BLOCK, part.end - t)
        conv_adjoint_direct(adj, part, t, n, True, group)
        if conv_stopped(&adj.conv, 3 * n * group.channels.channels, pace):
            return False
        t += n
    n = conv_halo(adj, part, t)
    if n:
        conv_adjoint_direct(adj, part, t, n, False, group)
    if n < adj.conv.taps - 1:
        conv_adjoint_end(adj, part, group)
    return True


# ---- tasks ------------------------------------------------------------------------------------

cdef bint conv_adjoint_part(const ConvAdjoint *adj, const ConvPart *part,
                            const ConvAdjointGroup *group, ConvPace *pace) noexcept nogil:
    """A part, of which there may be nothing; False if interrupted."""
    cdef ConvChunk chunk
    cdef ix t = part.first, n, v
    if adj.conv.path == CONV_DIRECT and part.end - t >= 2 * CONV_BLOCK:
        return conv_adjoint_in_place(adj, part, group, pace)
    while t < part.end:
        n = min(adj.conv.chunk, part.end - t)
        chunk = conv_chunk_at(adj, part, t, n)
        for v in range(group.channels.vectors):
            chunk.next = conv_next(&group.channels, v, t, n)
            conv_adjoint_chunk(adj, part, &chunk, v, group)
            if conv_stopped(&adj.conv, 3 * n * VL, pace):
                return False
        t += n
    return True


cdef void conv_set_adjoint_group(const ConvAdjoint *adj, ix number, real *scratch,
                                 ConvAdjointGroup *group) noexcept nogil:
    """OUT group, its scratch laid out and its sums zero."""
    cdef const Conv *conv = &adj.conv
    cdef ix K = conv.taps, slots
    conv_set_group(conv, number, scratch, &group.channels)
    slots = group.channels.slots
    group.pending = scratch + (K + 1) * slots
    group.sums = group.pending + (K - 1) * slots
    group.x = group.sums + round_up(2 * (K + 1) * slots, GL)
    group.dy = group.x + conv_tile_size(conv.before + conv.chunk + adj.after)
    group.dx = group.dy + conv_tile_size(conv.chunk + adj.after)
    group.s = group.dx + conv_tile_size(conv.before + conv.chunk)
    memset(group.sums, 0, 2 * (K + 1) * slots * sizeof(real))


cdef void conv_store_sums(const ConvAdjoint *adj, ix share,
                          const ConvAdjointGroup *group) noexcept nogil:
    """OUT the sums of a share."""
    cdef ConvLanes lanes
    cdef ix K = adj.conv.taps, k, v
    cdef const real *src
    cdef real *to
    cdef vf sum, low
    cdef real row[VL]
    for v in range(group.channels.vectors):
        lanes = conv_lanes(&group.channels, v)
        for k in range(K + 1):
            src = group.sums + k * lanes.slots + v * VL
            sum, low = vload(src), vload(src + (K + 1) * lanes.slots)
            # an infinite sum has NaN for its low part
            vstore(row, vsel_lt(vabs(low), vset1(1e30), sum + low, sum))
            to = adj.sums + (share * (K + 1) + k) * adj.conv.channels + lanes.channel
            memcpy(to, row, lanes.rows * sizeof(real))


cdef void conv_adjoint_task(void *args, ix i, Worker *worker) noexcept nogil:
    """A share of the steps of one group."""
    cdef const ConvAdjoint *adj = <const ConvAdjoint *>args
    cdef const Conv *conv = &adj.conv
    cdef ConvPace pace
    cdef ConvAdjointGroup group
    cdef ConvPart part
    cdef ix share = i // conv.groups, low = share * conv.span, segment
    cdef ix high = min(conv_total(conv), low + conv.span)
    pace.worker, pace.done = worker, 0
    conv_set_adjoint_group(adj, i % conv.groups, <real *>worker.scratch, &group)
    for segment in range(conv_segment_at(conv, low), conv.segments):
        part = conv_part(conv, segment, low, high)
        if part.end < part.first:                       # the segment lies behind the share
            break
        if not conv_adjoint_part(adj, &part, &group, &pace):
            return
    conv_store_sums(adj, share, &group)


cdef void conv_divide_adjoint(ConvAdjoint *adj, double seconds) noexcept:
    """Shares by the size of the call alone, groups of channels by its layout too."""
    cdef Conv *conv = &adj.conv
    cdef ix K = conv.taps, total = conv_total(conv), shares, width = GL
    cdef bint rows = conv.x.d == 1 and adj.dout.d == 1 and adj.dx.d == 1
    adj.few, conv.apart = 2 <= K and K <= CONV_FEW, False
    conv.path = CONV_DIRECT if adj.few and rows and conv.channels >= VL else CONV_TILES
    conv.before, conv.chunk, adj.after = K - 1, CONV_CHUNK, K - 1
    if conv.x.t == 1 or adj.dout.t == 1:                # transposed in whole squares
        conv.before = adj.after = round_up(K - 1, GL)
    if not adj.few:                                     # errors of the halo are computed twice
        conv.chunk = max(<ix>CONV_CHUNK, round_up(2 * K, CONV_BLOCK))
    shares = min(<ix>CONV_SHARES, total // max(<ix>CONV_SHARE, CONV_BLOCK * (K + 1)))
    shares = max(<ix>1, min(shares, <ix>min(64., seconds / 100e-6)))
    conv_divide_steps(conv, <double>ceil_div(total, shares))
    if rows:
        width = 1024 if adj.few else 256
    conv_divide_channels(conv, VL, min(width, (1 << 16) // (<ix>sizeof(real) * (K + 1))) // VL)


cdef double conv_adjoint_scratch(const ConvAdjoint *adj) noexcept:
    """Bytes of scratch of a thread."""
    cdef const Conv *conv = &adj.conv
    cdef double K = conv.taps, slots = conv.width * <double>VL, rows
    rows = 2. * conv.before + 4. * conv.chunk + 3. * adj.after
    return ((4 * K + 2) * slots + rows * VL + 16. * GL) * sizeof(real)
