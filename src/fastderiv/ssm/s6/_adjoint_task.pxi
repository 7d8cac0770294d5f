# How the adjoint (docs/derivations.md §1.4) is divided among tasks: a task takes one slice of the
# channels, one channel_block after the other, through one range of the segments.
# Included by _kernels.pyx.
# needs: data, refuse (_arrays.pxi)
# needs: ChannelBlock, Coefficient, divide_channels, first_channel, INTERVAL, INTERVALS, Lanes,
#        MANY, Scan, TB (s6/_problem.pxi)
# needs: copy (s6/_tiles.pxi)
# needs: all_finite, clear_states, gathered_size, lanes_size, set_up_channel_block,
#        stopped (s6/_lanes.pxi)
# needs: expect_varying (s6/_door.pxi)
# needs: begin_sums (s6/_remembered.pxi)
# needs: CoefficientGradient, join, slots, SOME, TERMS (s6/_coefficient_sums.pxi)
# needs: Back, KEPT, TILES (s6/_replay.pxi)
# needs: checkpoint (s6/_recall.pxi)
# needs: Adjoint, adjoint_segment, slice_start (s6/_adjoint.pxi)

cdef enum:
    LANE_GROUPS = 4                     # of a channel_block, at most: they share copies of B and C,
                                        # and their terms are added to dB and dC at once
    MOST_TASKS = 32                     # of an adjoint


cdef ix range_start(const Adjoint *adj, ix i) noexcept nogil:
    """The first segment of range i: ranges have equally many segments, or about equally many packed
    steps."""
    cdef const ix *starts = adj.scan.starts
    cdef ix low = 0, high = adj.scan.segments, middle
    if starts is NULL or i == adj.ranges or i == 0:
        return i * adj.scan.segments // adj.ranges
    while low < high:
        middle = (low + high) // 2
        if starts[middle] < i * (adj.scan.steps // adj.ranges):
            low = middle + 1
        else:
            high = middle
    return low


cdef double back_size(const Adjoint *adj) noexcept nogil:
    """Scratch of one Back, in reals."""
    return ((adj.intervals + 1.) * adj.scan.states + 2. * adj.rows + 1) * VL


cdef void set_up_back(const Adjoint *adj, const Lanes *lanes, real *scratch,
                      Back *back) noexcept nogil:
    """OUT back: scratch laid out, and sums of zero."""
    cdef ix N = adj.scan.states, i
    back.checkpoints = scratch
    back.g = checkpoint(back, N, adj.intervals * INTERVAL)
    back.sums = back.g + N * VL
    back.low = back.sums + adj.rows * VL
    clear_states(lanes, 2 * adj.rows, back.sums)
    back.used, back.full = back.low + adj.rows * VL, lanes.rows == VL
    for i in range(VL):
        back.used[i] = i < lanes.rows
    back.tame = ((not adj.scan.B.constant or all_finite(lanes, lanes.b, N))
                 and (not adj.scan.C.constant or all_finite(lanes, lanes.c, N)))


cdef void store_sums(const Adjoint *adj, ix i, const Lanes *lanes, const Back *back) noexcept nogil:
    """OUT the sums of range i over its segments and their steps."""
    cdef real *to = adj.sums + i * adj.rows * adj.scan.channels + lanes.channel
    cdef vf sum, low
    cdef ix row
    for row in range(adj.rows):
        if row % MANY == 0 and stopped(lanes, row):
            return
        sum, low = vload(back.sums + row * VL), vload(back.low + row * VL)
        # an infinite sum has NaN for its low part
        sum = vsel_lt(vabs(low), vset1(1e30), sum + low, sum)
        vstore(back.sums + row * VL, sum)
        copy(back.sums + row * VL, 1, to + row * adj.scan.channels, 1, lanes.rows)


cdef void adjoint_task(void *args, ix i, Worker *worker) noexcept nogil:
    """A slice of the channels through a range of the segments; OUT its sums."""
    cdef const Adjoint *adj = <const Adjoint *>args
    cdef const Scan *scan = &adj.scan
    cdef Lanes lanes[LANE_GROUPS * NS]
    cdef Back backs[LANE_GROUPS * NS]
    cdef ChannelBlock carried
    cdef real *own
    cdef real *kept
    cdef ix slice = i % adj.slices, range_ = i // adj.slices, size = <ix>back_size(adj)
    cdef ix number, segment, m
    carried.lanes, carried.worker, carried.tiles = lanes, worker, <real *>worker.scratch
    carried.gathered = carried.tiles + TILES + 4 * KEPT + slots(scan.states) * TERMS
    own = carried.gathered + <ix>gathered_size(scan)
    kept = own + scan.blocks.carry * <ix>lanes_size(scan.states)
    begin_sums(&scan.remembered, i, &carried)
    for number in range(slice_start(adj, slice), slice_start(adj, slice + 1)):
        set_up_channel_block(scan, number, own, &carried)
        for m in range(carried.count):
            set_up_back(adj, &lanes[m], kept + m * size, &backs[m])
        for segment in range(range_start(adj, range_), range_start(adj, range_ + 1)):
            if segment % SOME == 0 and interrupted(worker):     # very many segments may be empty
                return
            if not adjoint_segment(adj, segment, slice, &carried, backs):
                return
        for m in range(carried.count):
            store_sums(adj, range_, &lanes[m], &backs[m])


cdef void join_task(void *args, ix i, Worker *worker) noexcept nogil:
    """Row n of dB and dC of a batch item: add what slices have put into shared rows."""
    cdef const Adjoint *adj = <const Adjoint *>args
    cdef const Scan *scan = &adj.scan
    cdef ix batch = i // scan.states, n = i % scan.states, slice, first
    for slice in range(1, adj.slices):
        first = first_channel(&scan.blocks, slice_start(adj, slice))
        if adj.dB.p is not NULL:
            join(scan, &adj.dB, slice, first, batch, n, worker)
        if adj.dC.p is not NULL:
            join(scan, &adj.dC, slice, first, batch, n, worker)


# ---- dividing the work ------------------------------------------------------------------------

cdef double adjoint_seconds(const Scan *scan) noexcept nogil:
    """What the adjoint will take on one thread."""
    cdef double batch = scan.batch, N = scan.states
    return 1e-9 * sizeof(real) / 4 * batch * scan.channels * (1. + scan.steps) * (4 + 0.6 * N)


cdef double adjoint_scratch(const Adjoint *adj) noexcept nogil:
    """Bytes of scratch of a thread."""
    cdef const Scan *scan = &adj.scan
    cdef double reals = TILES + 4 * KEPT + slots(scan.states) * <double>TERMS
    reals += gathered_size(scan)
    reals += scan.blocks.carry * (lanes_size(scan.states) + back_size(adj))
    return reals * sizeof(real)


cdef void set_slices(Adjoint *adj, ix wanted) noexcept:
    """Slices of the channels, and lane_groups of a channel_block.  Shared rows of dB and dC take at
    most a twelfth of the memory of inputs and outputs.  The checkpoints of two threads take at most
    a sixteenth of it, unless those of a single lane_group take more."""
    cdef Scan *scan = &adj.scan
    cdef ix lane_groups
    cdef double N = scan.states, varying = N * ((not scan.B.constant) + (not scan.C.constant))
    cdef double total = (5. if scan.z.p is NULL else 7.) * scan.channels + 2 * varying  # of a step
    cdef ix most = min(wanted, divide_channels(&scan.blocks, NS))
    if varying:
        most = min(most, 1 + <ix>(total / (12 * varying)))
    lane_groups = <ix>min(<double>min(<ix>LANE_GROUPS, ceil_div(scan.blocks.count, most)),
                          scan.batch * total * INTERVAL / (32 * GL * max(N, 1.)))
    divide_channels(&scan.blocks, NS * max(<ix>1, lane_groups))
    adj.slices = ceil_div(scan.blocks.count, ceil_div(scan.blocks.count, most))


cdef void divide_adjoint(Adjoint *adj, ix longest, double seconds) noexcept:
    """Ranges and slices, by the size of the call alone."""
    cdef Scan *scan = &adj.scan
    cdef ix tasks = 1 + <ix>min(<double>(MOST_TASKS - 1), seconds / 100e-6)
    # the most ranges whose sums take about a twentieth of the memory of inputs and outputs
    cdef ix few = 1 + <ix>(<double>scan.batch * scan.steps / (4. * adj.rows))
    scan.block = TB
    # in a long sequence every row lies on a page of its own, so blocks of B and C are copied
    scan.B.gather, scan.C.gather = not scan.B.constant, not scan.C.constant
    adj.intervals = INTERVALS
    if scan.remembered.p is NULL:
        adj.intervals *= ceil_div(longest, TB)
    adj.ranges = min(scan.segments, tasks, few)
    set_slices(adj, ceil_div(tasks, adj.ranges))


cdef object set_coefficient_gradient(const Adjoint *adj, const Coefficient *coefficient,
                                     cnp.ndarray a, CoefficientGradient *gradient):
    """OUT gradient: a (Bt, G, N, L), or None if the coefficient is constant.  The array of its
    shared rows, to be kept alive."""
    cdef const Scan *scan = &adj.scan
    gradient.p, gradient.shared = NULL, NULL
    expect_varying(scan, a, True)
    if a is None or coefficient.constant:
        return None
    if not cnp.PyArray_IS_C_CONTIGUOUS(a):
        refuse(a, "C-contiguous")
    gradient.p, gradient.channels = data(a), scan.channels // cnp.PyArray_DIM(a, 1)
    shape = adj.slices - 1, scan.batch, scan.states, scan.steps
    shared = empty("shared rows of dB or dC", shape, a.dtype, np.zeros)
    gradient.shared = data(shared)
    return shared
