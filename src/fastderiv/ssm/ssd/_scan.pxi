# The SSD scan forward (docs/derivations.md §6.1): h[l] = exp(Δ·A)·h[l−1] + Δ·x ⊗ B and y = h·C,
# with the state scaled as §6.2 says.  A few heads that share B and C run through a segment block by
# block.  Included by _kernels.pyx.
# needs: Ssd, SSD_CHUNK, ssd_kept_state, ssd_step_sizes, SsdCoefficient,
#        SsdSegment (ssd/_problem.pxi)
# needs: ssd_block, ssd_block_exact, ssd_block_states, ssd_find_runs, SSD_ROWS, SSD_STREAMS,
#        SsdCarry, SsdDecays, SsdLoop, SsdStream (ssd/_scan_decays.pxi)
# needs: ssd_at, ssd_finish, ssd_in_place, ssd_load_rows, ssd_load_skip, ssd_load_state, ssd_panel,
#        ssd_panels, ssd_scale_rows, ssd_store_rows, ssd_store_state, SsdFinish, SsdPlace,
#        SsdRows (ssd/_scan_rows.pxi)

cdef enum:
    SSD_TB = 32                         # steps in a block; divides SSD_CHUNK

cdef struct SsdScan:
    Ssd ssd
    real *kept                          # states before each chunk, see _problem.pxi; may be NULL
    ix short                            # segments of at most so many steps are one chunk (§6.3)
    bint all_short                      # whether every segment is
    ix parts                            # of the heads of a group, one work_item each
    ix work_items                       # segments × groups × parts
    ix items_per_task

cdef struct SsdWork:                    # a work_item, and scratch
    ix number                           # of the segment
    SsdSegment segment
    ix group, first, count              # its heads: first … first+count−1
    bint careful                        # whether the states have no scale, lest they overflow
    SsdDecays decays
    SsdCarry *carry                     # [head]
    real *packed                        # B and C of a block, where they are copied
    const real *b                       # B and C of a block [t][n]
    const real *c
    ix b_row, c_row
    real *x                             # tiles
    real *y
    real *z
    real *skip                          # [p]: D
    real *states                        # [head][panel][n][p]
    Worker *worker


# ---- where things lie -------------------------------------------------------------------------

cdef inline ix ssd_rows_of_state(const Ssd *ssd) noexcept nogil:
    """Rows of a state in scratch."""
    return round_up(ssd.states, max(<ix>SSD_ROWS, <ix>VL))


cdef inline real *ssd_state_of(const SsdScan *scan, const SsdWork *work, ix head,
                               ix panel) noexcept nogil:
    cdef ix number = (head - work.first) * ssd_panels(&scan.ssd) + panel
    return work.states + number * ssd_rows_of_state(&scan.ssd) * ssd_panel(&scan.ssd)


cdef inline SsdPlace ssd_place(const Ssd *ssd, const SsdWork *work, ix start,
                               ix steps) noexcept nogil:
    """Steps start … start+steps−1 of the segment's batch item; head and panel are yet to be set."""
    cdef SsdPlace place
    place.batch, place.start, place.steps = work.segment.batch, start, steps
    place.head = place.column = place.count = place.width = 0
    return place


cdef inline void ssd_set_panel(const Ssd *ssd, ix head, ix panel, SsdPlace *place) noexcept nogil:
    place.head, place.column = head, panel * ssd_panel(ssd)
    place.count = min(ssd_panel(ssd), ssd.width - place.column)
    place.width = round_up(place.count, VL)


# ---- B and C of a block -----------------------------------------------------------------------

cdef inline const real *ssd_coefficient_at(const SsdCoefficient *a, const SsdWork *work,
                                           ix start) noexcept nogil:
    return a.p + work.segment.batch * a.b + start * a.t + work.group * a.g


cdef void ssd_pack_rows(const Ssd *ssd, const SsdCoefficient *coefficient, const real *p, ix steps,
                        real *packed) noexcept nogil:
    """OUT packed [t][n]: B or C of any strides, with zeros behind the last state."""
    cdef ix t, n, rows = round_up(ssd.states, SSD_ROWS)
    for t in range(steps):
        for n in range(ssd.states):
            packed[t * rows + n] = p[t * coefficient.t + n * coefficient.n]
        for n in range(ssd.states, rows):
            packed[t * rows + n] = 0


cdef void ssd_point_at_coefficients(const Ssd *ssd, SsdWork *work, ix start,
                                    ix steps) noexcept nogil:
    """OUT work.b and work.c: B and C of a block, in place or packed; B twice without a C."""
    cdef const SsdCoefficient *B = &ssd.B
    cdef const SsdCoefficient *C = B if ssd.C.p is NULL else &ssd.C
    cdef ix rows = round_up(ssd.states, SSD_ROWS)
    work.b, work.b_row = ssd_coefficient_at(B, work, start), B.t
    work.c, work.c_row = ssd_coefficient_at(C, work, start), C.t
    if B.n != 1 or rows != ssd.states:
        ssd_pack_rows(ssd, B, work.b, steps, work.packed)
        work.b, work.b_row = work.packed, rows
    if C.n != 1 or rows != ssd.states:
        ssd_pack_rows(ssd, C, work.c, steps, work.packed + SSD_TB * rows)
        work.c, work.c_row = work.packed + SSD_TB * rows, rows


# ---- a block of a panel -----------------------------------------------------------------------

cdef inline void ssd_plan(const void *p, ix row, ix count, ix numbers,
                          SsdStream *stream) noexcept nogil:
    stream.p, stream.row = <const char *>p, row * sizeof(real)
    stream.count, stream.bytes = count, numbers * sizeof(real)


cdef void ssd_plan_ahead(const SsdScan *scan, const SsdWork *work, const SsdPlace *here,
                         SsdStream *ahead) noexcept nogil:
    """OUT ahead: what to fetch while a panel runs, the rows that come next."""
    cdef const Ssd *ssd = &scan.ssd
    cdef SsdPlace after = here[0]
    cdef ix panel = here.column // ssd_panel(ssd) + 1
    memset(ahead, 0, SSD_STREAMS * sizeof(SsdStream))
    if panel == ssd_panels(ssd):
        panel = 0
        after.head += 1
    if after.head == work.first + work.count:
        after.head = work.first
        after.start += after.steps
        after.steps = min(after.steps, work.segment.stop - after.start)
        if after.steps <= 0:
            return
        ssd_plan(ssd_coefficient_at(&ssd.B, work, after.start), ssd.B.t, after.steps, ssd.states,
                 ahead + 3)
        ssd_plan(ssd_coefficient_at(&ssd.C, work, after.start), ssd.C.t, after.steps, ssd.states,
                 ahead + 4)
    ssd_set_panel(ssd, after.head, panel, &after)
    if ssd.x.p_ == 1:
        ssd_plan(ssd_at(&ssd.x, &after), ssd.x.t, after.steps, after.count, ahead)
    if ssd.y.p_ == 1:
        ssd_plan(ssd_at(&ssd.y, &after), ssd.y.t, after.steps, after.count, ahead + 1)
    if ssd.z.p is not NULL and ssd.z.p_ == 1:
        ssd_plan(ssd_at(&ssd.z, &after), ssd.z.t, after.steps, after.count, ahead + 2)


cdef bint ssd_finish_panel(const Ssd *ssd, const SsdWork *work, const SsdPlace *place,
                           const real *P, SsdRows *x) noexcept nogil:
    """y of a block from work.y, which it overwrites: scale, skip connection, gate.  x holds the
    rows of x.  Whether C·S is finite."""
    cdef SsdFinish finish
    cdef bint finite
    finish.y, finish.scale, finish.D, finish.x = work.y, P, work.skip, x[0]
    finish.steps, finish.width = place.steps, place.width
    if ssd.D.p is NULL:
        finish.x.p = NULL
    else:
        ssd_load_skip(&ssd.D, place, work.skip)
    finish.z = ssd_load_rows(&ssd.z, place, work.z)
    if ssd_in_place(&ssd.y, place):
        finish.out.p, finish.out.row = ssd_at(&ssd.y, place), ssd.y.t
    else:
        finish.out.p, finish.out.row = work.y, place.width
    finite = ssd_finish(&finish)
    ssd_store_rows(&ssd.y, place, &finish.out)
    return finite


cdef bint ssd_scan_panel(const SsdScan *scan, const SsdWork *work, const SsdPlace *place,
                         real *S) noexcept nogil:
    """A panel through a block.  Whether C·S is finite."""
    cdef const Ssd *ssd = &scan.ssd
    cdef SsdLoop loop
    cdef SsdStream ahead[SSD_STREAMS]
    cdef SsdRows x = ssd_load_rows(&ssd.x, place, work.x)
    ssd_scale_rows(&x, work.decays.factor, place.steps, place.width, work.x)
    loop.x, loop.y, loop.S, loop.runs = work.x, work.y, S, &work.decays.runs
    loop.b, loop.c = work.b, work.c
    loop.b_row, loop.c_row = work.b_row, work.c_row
    loop.states, loop.width = round_up(ssd.states, SSD_ROWS), place.width
    if ssd.y.p is NULL:
        ssd_block_states(&loop)
        return True
    if ssd.states == 0:
        memset(work.y, 0, place.steps * place.width * sizeof(real))
    elif work.careful:
        loop.states = ssd.states
        ssd_block_exact(&loop)
    else:
        ssd_plan_ahead(scan, work, place, ahead)
        ssd_block(&loop, ahead)
    if ssd.D.p is not NULL:
        x = ssd_load_rows(&ssd.x, place, work.x)
    return ssd_finish_panel(ssd, work, place, work.decays.P, &x)


# ---- a segment --------------------------------------------------------------------------------

cdef void ssd_keep(const SsdScan *scan, const SsdPlace *place, const SsdWork *work, ix chunk,
                   const real *S) noexcept nogil:
    """Keep the state P·S before a chunk, [n][p]."""
    cdef const Ssd *ssd = &scan.ssd
    cdef real P = work.carry[place.head - work.first].P
    cdef real *to = ssd_kept_state(ssd, scan.kept, work.number, chunk, place.head)
    cdef ix n, p
    to += place.column
    for n in range(ssd.states):
        p = 0
        while p + VL <= place.count:
            vstore(to + p, vload(S + p) * vset1(P))
            p += VL
        for p in range(p, place.count):
            to[p] = P * S[p]
        to += ssd.width
        S += place.width


cdef void ssd_start_head(const SsdScan *scan, SsdWork *work, ix head) noexcept nogil:
    """The state before the first step, in scale 1."""
    cdef const Ssd *ssd = &scan.ssd
    cdef SsdCarry *carry = &work.carry[head - work.first]
    cdef SsdPlace place = ssd_place(ssd, work, 0, 0)
    cdef ix panel, size = ssd_rows_of_state(ssd) * ssd_panel(ssd)
    cdef real *S
    carry.c, carry.rest, carry.P, carry.wrong = 0, 0, 1, False
    for panel in range(ssd_panels(ssd)):
        S = ssd_state_of(scan, work, head, panel)
        memset(S, 0, size * sizeof(real))
        if ssd.initial_state.p is not NULL:
            ssd_set_panel(ssd, head, panel, &place)
            ssd_load_state(&ssd.initial_state, work.number, &place, ssd.states, S)


cdef void ssd_end_panel(const SsdScan *scan, const SsdWork *work, const SsdPlace *place,
                        const real *S) noexcept nogil:
    """The state after the last step, if it is wanted.  S that has overflowed in its scale, at
    whatever step, is not finite here: nothing brings it back."""
    cdef const Ssd *ssd = &scan.ssd
    cdef SsdCarry *carry = &work.carry[place.head - work.first]
    cdef vf odd = vset1(0)
    cdef ix k = 0
    if ssd.last_state.p is NULL and scan.kept is NULL:
        return                          # y, which is finite or not as S is, is all that is wanted
    while k < ssd.states * place.width:
        odd = vfma(vload(S + k), vset1(0), odd)
        k += VL
    if not vall_lt(odd, vset1(1)):
        carry.wrong = True
    if ssd.last_state.p is not NULL:
        ssd_store_state(&ssd.last_state, work.number, place, ssd.states, S, carry.P)


cdef void ssd_end_head(const SsdScan *scan, SsdWork *work, ix head) noexcept nogil:
    """The end of a segment."""
    cdef SsdPlace place = ssd_place(&scan.ssd, work, 0, 0)
    cdef ix panel
    for panel in range(ssd_panels(&scan.ssd)):
        ssd_set_panel(&scan.ssd, head, panel, &place)
        ssd_end_panel(scan, work, &place, ssd_state_of(scan, work, head, panel))


cdef void ssd_scan_head(const SsdScan *scan, SsdWork *work, SsdPlace *place) noexcept nogil:
    """The head place.head through a block."""
    cdef const Ssd *ssd = &scan.ssd
    cdef SsdCarry *carry = &work.carry[place.head - work.first]
    cdef ix panel, head = place.head, done = place.start - work.segment.start
    cdef real *S
    if scan.kept is not NULL and done % SSD_CHUNK == 0:
        for panel in range(ssd_panels(ssd)):
            ssd_set_panel(ssd, head, panel, place)
            S = ssd_state_of(scan, work, head, panel)
            ssd_keep(scan, place, work, done // SSD_CHUNK, S)
    ssd_step_sizes(ssd, place.batch, place.start, place.steps, head, work.decays.dt, NULL)
    ssd_find_runs(&work.decays, place.steps, ssd.A.p[head * ssd.A.h], work.careful, carry)
    for panel in range(ssd_panels(ssd)):
        ssd_set_panel(ssd, head, panel, place)
        S = ssd_state_of(scan, work, head, panel)
        if not ssd_scan_panel(scan, work, place, S):
            carry.wrong = True


cdef bint ssd_scan_heads(const SsdScan *scan, SsdWork *work) noexcept nogil:
    """The heads of `work` through its segment; False if interrupted."""
    cdef const Ssd *ssd = &scan.ssd
    cdef SsdPlace place
    cdef ix head, t = work.segment.start
    for head in range(work.first, work.first + work.count):
        ssd_start_head(scan, work, head)
    while t < work.segment.stop:
        place = ssd_place(ssd, work, t, min(<ix>SSD_TB, work.segment.stop - t))
        ssd_point_at_coefficients(ssd, work, t, place.steps)
        for head in range(work.first, work.first + work.count):
            if interrupted(work.worker):
                return False
            place.head = head
            ssd_scan_head(scan, work, &place)
        t += place.steps
    for head in range(work.first, work.first + work.count):
        ssd_end_head(scan, work, head)
    return True
