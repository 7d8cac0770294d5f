# Lanes: the parameters and the state of VL channels, [N, lane], in scratch.  However many states
# there are, they are taken in pieces of MANY with a look for signals between two of them; what an
# interrupted function leaves behind is never used.  Included by _kernels.pyx.
# needs: Block, ChannelBlock, Coefficient, CoefficientRows, end_channel, first_channel, Lanes, MANY,
#        Scan, State (s6/_problem.pxi)
# needs: copy, load_tile, store_tile (s6/_tiles.pxi)

cdef inline bint stopped(const Lanes *lanes, ix n) noexcept nogil:
    """Whether the call was interrupted.  This is not looked up at the first state, so that few
    states cost nothing."""
    return n > 0 and interrupted(lanes.worker)


cdef inline ix piece_at(ix n, ix N) noexcept nogil:
    """How many of N states the piece that begins at n has."""
    return min(<ix>MANY, N - n)


cdef void load_rows(const real *src, ix sd, ix sn, const Lanes *lanes, ix N,
                    real *dst) noexcept nogil:
    """OUT dst [N, lane] = the channels' rows of src (D, N); lanes without a channel are zero."""
    cdef ix n = 0, m
    while n < N and not stopped(lanes, n):
        m = piece_at(n, N)
        if lanes.rows < VL:
            memset(dst + n * VL, 0, m * VL * sizeof(real))
        load_tile(src + lanes.channel * sd + n * sn, sd, sn, lanes.rows, m, dst + n * VL, VL)
        n += m


cdef void store_rows(const real *src, const Lanes *lanes, ix N, real *dst, ix sd,
                     ix sn) noexcept nogil:
    """load_rows backwards: lanes without a channel are left out."""
    cdef ix n = 0, m
    while n < N and not stopped(lanes, n):
        m = piece_at(n, N)
        store_tile(src + n * VL, VL, dst + lanes.channel * sd + n * sn, sd, sn, lanes.rows, m)
        n += m


cdef void copy_states(const real *src, const Lanes *lanes, ix N, real *dst) noexcept nogil:
    """OUT dst [N, lane] = src."""
    cdef ix n = 0, m
    while n < N and not stopped(lanes, n):
        m = piece_at(n, N)
        memcpy(dst + n * VL, src + n * VL, m * VL * sizeof(real))
        n += m


cdef void clear_states(const Lanes *lanes, ix N, real *dst) noexcept nogil:
    """OUT dst [N, lane] = 0."""
    cdef ix n = 0, m
    while n < N and not stopped(lanes, n):
        m = piece_at(n, N)
        memset(dst + n * VL, 0, m * VL * sizeof(real))
        n += m


cdef bint all_finite(const Lanes *lanes, const real *h, ix N) noexcept nogil:
    """Whether h [N, lane] has neither NaN nor inf."""
    cdef vf odd = vset1(0)              # becomes NaN as soon as one state is not finite
    cdef ix n = 0, end
    while n < N and not stopped(lanes, n):
        end = n + piece_at(n, N)
        while n < end:
            odd = vfma(vload(h + n * VL), vset1(0), odd)
            n += 1
    return vall_lt(odd, vset1(1))


# ---- setting up -------------------------------------------------------------------------------

cdef double lanes_size(double N) noexcept nogil:
    """Scratch of one Lanes, in reals."""
    return (5 * N + 3) * VL + 5 * GL


cdef void load_transitions(const Scan *scan, Lanes *lanes) noexcept nogil:
    """OUT a = A·log2(e), and limits."""
    cdef ix N = scan.states, n = 0, end
    cdef vf a, top = vset1(0), odd = vset1(0)
    load_rows(scan.A, scan.A_d, scan.A_n, lanes, N, lanes.a)
    while n < N and not stopped(lanes, n):
        end = n + piece_at(n, N)
        while n < end:
            a = vload(lanes.a + n * VL) * vset1(LOG2E)
            vstore(lanes.a + n * VL, a)
            top = vmax(top, vabs(a))
            odd = vfma(a, vset1(0), odd)
            n += 1
    vstore(lanes.limits, top + odd)


cdef void set_up_lanes(const Scan *scan, Lanes *lanes, real *scratch) noexcept nogil:
    """Lay out scratch and fill in what depends on the channels alone, not on the segment."""
    cdef ix N = scan.states
    lanes.a = scratch
    lanes.h = lanes.a + N * VL
    lanes.before = lanes.h + N * VL
    lanes.b = lanes.before + N * VL
    lanes.c = lanes.b + N * VL
    lanes.limits = lanes.c + N * VL
    lanes.D = lanes.limits + VL
    lanes.bias = lanes.D + VL
    load_transitions(scan, lanes)
    if scan.B.constant:
        load_rows(scan.B.p, scan.B.g, scan.B.n, lanes, N, lanes.b)
    if scan.C.p is not NULL and scan.C.constant:
        load_rows(scan.C.p, scan.C.g, scan.C.n, lanes, N, lanes.c)
    memset(lanes.D, 0, 2 * VL * sizeof(real))
    if scan.D.p is not NULL:
        copy(scan.D.p + lanes.channel * scan.D.d, scan.D.d, lanes.D, 1, lanes.rows)
    if scan.bias.p is not NULL:
        copy(scan.bias.p + lanes.channel * scan.bias.d, scan.bias.d, lanes.bias, 1, lanes.rows)


cdef void set_up_channel_block(const Scan *scan, ix number, real *scratch,
                               ChannelBlock *carried) noexcept nogil:
    """OUT the Lanes of a channel_block, and how many they are."""
    cdef ix channel = first_channel(&scan.blocks, number), end = end_channel(&scan.blocks, channel)
    cdef ix size = <ix>lanes_size(scan.states)
    cdef Lanes *lanes
    carried.count = 0
    while channel < end:
        lanes = carried.lanes + carried.count
        lanes.channel, lanes.rows = channel, min(<ix>VL, end - channel)
        lanes.worker, lanes.sums = carried.worker, carried.sums
        set_up_lanes(scan, lanes, scratch + carried.count * size)
        channel += VL
        carried.count += 1


# ---- states of segments -----------------------------------------------------------------------

cdef void load_state(const State *state, ix segment, const Lanes *lanes, ix N,
                     real *h) noexcept nogil:
    """OUT h [N, lane], zero if the caller gave no such state."""
    if state.p is NULL:
        clear_states(lanes, N, h)
    else:
        load_rows(state.p + segment * state.s, state.d, state.n, lanes, N, h)


cdef void store_state(const State *state, ix segment, const Lanes *lanes, ix N,
                      const real *h) noexcept nogil:
    """Does nothing if the caller wants no such state."""
    if state.p is not NULL:
        store_rows(h, lanes, N, state.p + segment * state.s, state.d, state.n)


cdef void load_initial_state(const Scan *scan, ix segment, Lanes *lanes) noexcept nogil:
    load_state(&scan.initial_state, segment, lanes, scan.states, lanes.h)
    lanes.finite = all_finite(lanes, lanes.h, scan.states)


# ---- B and C ----------------------------------------------------------------------------------

cdef inline ix gathered_row(const Scan *scan) noexcept nogil:
    """The distance between the rows of a copied block of B or C."""
    return scan.block + GL


cdef double gathered_size(const Scan *scan) noexcept nogil:
    """Scratch of copied blocks of B and C, in reals."""
    return (scan.B.gather + scan.C.gather) * <double>scan.states * gathered_row(scan)


cdef CoefficientRows coefficient_rows(const Scan *scan, const Coefficient *coefficient,
                                      const Lanes *lanes, const Block *block,
                                      real *gathered) noexcept nogil:
    """A block of a time-varying B or C: in place where time is contiguous, else copied to
    `gathered`.  For a constant B or C the pointer is NULL, as each Lanes has its own copy."""
    cdef CoefficientRows rows
    cdef const real *p
    cdef ix n = 0, m, N = scan.states
    rows.p, rows.row, rows.constant = NULL, 0, coefficient.constant
    if coefficient.constant:
        return rows
    p = coefficient.p + block.batch * coefficient.b + block.start * coefficient.t
    p += lanes.channel // coefficient.channels * coefficient.g
    rows.p, rows.row = p, coefficient.n
    if not coefficient.gather:
        return rows
    rows.p, rows.row = gathered, gathered_row(scan)
    while n < N and not stopped(lanes, n):
        m = piece_at(n, N)
        load_tile(p + n * coefficient.n, coefficient.t, coefficient.n, block.steps, m,
                  gathered + n * rows.row, rows.row)
        n += m
    return rows


cdef void load_coefficients(const Scan *scan, const ChannelBlock *carried, const Block *block,
                            CoefficientRows *B, CoefficientRows *C) noexcept nogil:
    """OUT the block's B and C, which a channel_block shares."""
    cdef real *second = carried.gathered
    if scan.B.gather:
        second += scan.states * gathered_row(scan)
    B[0] = coefficient_rows(scan, &scan.B, carried.lanes, block, carried.gathered)
    C[0] = coefficient_rows(scan, &scan.C, carried.lanes, block, second)


cdef inline CoefficientRows own_rows(const CoefficientRows *shared, const real *own) noexcept nogil:
    """For a constant coefficient its own rows, `own` [N, lane]; for one that varies, the shared
    rows."""
    cdef CoefficientRows rows = shared[0]
    if shared.constant:
        rows.p, rows.row = own, VL
    return rows


cdef inline vf coefficient(const real *p, ix t, const bint constant) noexcept nogil:
    """B or C of one state at step t."""
    return vload(p) if constant else vset1(p[t])
