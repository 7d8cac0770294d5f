# A short segment of the SSD scan as one chunk (docs/derivations.md §6.3): y = P·(G ∘ causal)·Δx/P
# with G = C·Bᵀ, which all heads of a group share.  Included by _kernels.pyx.
# needs: Ssd, SSD_CHUNK, ssd_step_sizes, SsdCoefficient (ssd/_problem.pxi)
# needs: ssd_block_states, ssd_find_runs, SSD_ROWS, SSD_UB, SsdCarry, SsdDecays, SsdLoop,
#        SsdRuns (ssd/_scan_decays.pxi)
# needs: ssd_load_rows, ssd_panel, ssd_panels, ssd_scale_rows, SsdPlace,
#        SsdRows (ssd/_scan_rows.pxi)
# needs: ssd_coefficient_at, ssd_end_panel, ssd_finish_panel, ssd_keep, ssd_pack_rows, ssd_place,
#        ssd_rows_of_state, ssd_set_panel, SSD_TB, SsdScan, SsdWork (ssd/_scan.pxi)

cdef extern from "ssd/short.h" nogil:
    ctypedef struct SsdGram:
        const real *B
        const real *CT
        ix b_row, c_row, states, steps, padded
        real *G
    ctypedef struct SsdCausal:
        const real *G
        const real *x
        real *y
        ix first, count, width
        const SsdRuns *runs
    void ssd_gram(const SsdGram *gram)
    void ssd_causal(const SsdCausal *causal)

cdef enum:
    SSD_LONGEST = 256                   # steps that one chunk may have
    SSD_LARGEST = 65536                 # numbers that B of one chunk may have

cdef struct SsdShort:                   # a segment as one chunk; arrays are scratch
    real *G
    real *CT                            # [n][t], rows c_row apart
    real *x                             # [s][p]: a panel of Δ·x in the scale of its run
    ix steps, padded                    # padded: a multiple of SSD_UB and of VL
    ix c_row


cdef ix ssd_short_steps(const Ssd *ssd) noexcept nogil:
    """Up to how many steps a segment is one chunk.  It then takes L/2·P multiply–adds a step for y,
    and N·P more if states are wanted, instead of 2·N·P."""
    if ssd.initial_state.p is not NULL or ssd.states == 0 or ssd.y.p is NULL:
        return 0
    return min(min(<ix>SSD_LONGEST, ssd.states * 3 // 2), SSD_LARGEST // ssd.states)


cdef inline ix ssd_short_padded(ix steps) noexcept nogil:
    return round_up(steps, max(<ix>SSD_UB, <ix>VL))


cdef double ssd_short_size(const Ssd *ssd, ix most) noexcept nogil:
    """Scratch for a segment of `most` steps, in reals."""
    cdef double L = ssd_short_padded(most)
    if most == 0:
        return 0
    return (L * (L + SSD_UB) / 2 + round_up(ssd.states, VL) * (L + GL) + L * ssd_panel(ssd)
            + most * round_up(ssd.states, SSD_ROWS) + 4 * GL)


cdef void ssd_transpose_C(const SsdCoefficient *C, const real *c, ix states,
                          const SsdShort *short) noexcept nogil:
    """OUT short.CT, with zeros behind the last step."""
    cdef real square[VL * VL]
    cdef const real *from_
    cdef ix t = 0, n, i, k
    while t < short.padded:
        n = 0
        while n < states:
            from_ = c + t * C.t + n * C.n
            if C.n == 1 and t + VL <= short.steps and n + VL <= states:
                vtranspose(from_, C.t, short.CT + n * short.c_row + t, short.c_row)
            else:
                memset(square, 0, sizeof(square))
                for i in range(min(<ix>VL, short.steps - t)):
                    for k in range(min(<ix>VL, states - n)):
                        square[i * VL + k] = from_[i * C.t + k * C.n]
                vtranspose(square, VL, short.CT + n * short.c_row + t, short.c_row)
            n += VL
        t += VL


cdef SsdShort ssd_set_up_short(const SsdScan *scan, SsdWork *work, real *scratch) noexcept nogil:
    """G of the segment; work.b: its B."""
    cdef const Ssd *ssd = &scan.ssd
    cdef SsdShort short
    cdef SsdGram gram
    cdef real *B
    cdef ix L, start = work.segment.start
    short.steps = work.segment.stop - start
    L = short.padded = ssd_short_padded(short.steps)
    short.c_row = L + GL
    short.G = scratch
    short.x = short.G + round_up(L * (L + SSD_UB) // 2, GL)
    B = short.x + L * ssd_panel(ssd)
    short.CT = B + round_up(short.steps * round_up(ssd.states, SSD_ROWS), GL)
    work.b, work.b_row = ssd_coefficient_at(&ssd.B, work, start), ssd.B.t
    if ssd.B.n != 1 or ssd.states % SSD_ROWS:
        ssd_pack_rows(ssd, &ssd.B, work.b, short.steps, B)
        work.b, work.b_row = B, round_up(ssd.states, SSD_ROWS)
    ssd_transpose_C(&ssd.C, ssd_coefficient_at(&ssd.C, work, start), ssd.states, &short)
    gram.B, gram.CT, gram.b_row, gram.c_row = work.b, short.CT, work.b_row, short.c_row
    gram.states, gram.steps, gram.padded, gram.G = ssd.states, short.steps, L, short.G
    ssd_gram(&gram)
    return short


cdef void ssd_short_x(const SsdScan *scan, const SsdWork *work, const SsdShort *short,
                      SsdPlace *place) noexcept nogil:
    """OUT short.x: a panel of x in the scales of its runs, with zeros behind the last step."""
    cdef SsdRows x
    cdef ix t = 0
    while t < short.steps:
        place.start, place.steps = work.segment.start + t, min(<ix>SSD_TB, short.steps - t)
        x = ssd_load_rows(&scan.ssd.x, place, work.x)
        ssd_scale_rows(&x, work.decays.factor + t, place.steps, place.width,
                       short.x + t * place.width)
        t += place.steps
    memset(short.x + short.steps * place.width, 0,
           (short.padded - short.steps) * place.width * sizeof(real))


cdef bint ssd_short_y(const SsdScan *scan, const SsdWork *work, const SsdShort *short,
                      SsdPlace *place) noexcept nogil:
    """y of a panel from short.x.  Whether all sums are finite."""
    cdef const Ssd *ssd = &scan.ssd
    cdef SsdCausal causal
    cdef SsdRows x
    cdef SsdRuns runs = work.decays.runs
    cdef bint finite = True
    cdef ix t = 0
    work.decays.end[runs.count - 1] = short.padded
    causal.G, causal.x, causal.y, causal.runs = short.G, short.x, work.y, &runs
    causal.width = place.width
    while t < short.steps:
        place.start, place.steps = work.segment.start + t, min(<ix>SSD_TB, short.steps - t)
        causal.first, causal.count = t, round_up(place.steps, SSD_UB)
        ssd_causal(&causal)
        x.p, x.row = NULL, 0
        if ssd.D.p is not NULL:
            x = ssd_load_rows(&ssd.x, place, work.x)
        if not ssd_finish_panel(ssd, work, place, work.decays.P + t, &x):
            finite = False
        t += place.steps
    work.decays.end[runs.count - 1] = short.steps
    return finite


cdef void ssd_short_states(const SsdScan *scan, SsdWork *work, const SsdShort *short,
                           SsdPlace *place) noexcept nogil:
    """The last state of a panel from short.x, and those before chunks, if they are wanted."""
    cdef const Ssd *ssd = &scan.ssd
    cdef SsdDecays *decays = &work.decays
    cdef SsdLoop loop
    cdef SsdRuns runs
    cdef real *S = work.states
    cdef ix ends[SSD_LONGEST]
    cdef real ratios[SSD_LONGEST]
    cdef ix t = 0, stop, k, n
    cdef SsdCarry *carry = &work.carry[place.head - work.first]
    memset(S, 0, ssd_rows_of_state(ssd) * place.width * sizeof(real))
    loop.y, loop.c, loop.S, loop.runs = NULL, NULL, S, &runs
    loop.b_row, loop.c_row = work.b_row, 0
    loop.states, loop.width = round_up(ssd.states, SSD_ROWS), place.width
    runs.end, runs.ratio = ends, ratios
    carry.P = 1
    while t < short.steps:
        if scan.kept is not NULL:
            ssd_keep(scan, place, work, t // SSD_CHUNK, S)
        stop = min(t + SSD_CHUNK, short.steps)
        n = 0
        for k in range(decays.runs.count):
            # run k begins where the one before it ends
            if decays.end[k] > t and (k == 0 or decays.end[k - 1] < stop):
                ratios[n] = decays.ratio[k] if k and decays.end[k - 1] >= t else 1
                ends[n] = min(decays.end[k], stop) - t
                n += 1
        runs.count = n
        loop.x, loop.b = short.x + t * place.width, work.b + t * work.b_row
        ssd_block_states(&loop)
        carry.P = decays.P[stop - 1]
        t = stop
    ssd_end_panel(scan, work, place, S)


cdef bint ssd_scan_short(const SsdScan *scan, SsdWork *work, real *scratch) noexcept nogil:
    """The heads of `work` through its segment; False if interrupted."""
    cdef const Ssd *ssd = &scan.ssd
    cdef SsdShort short = ssd_set_up_short(scan, work, scratch)
    cdef SsdPlace place = ssd_place(ssd, work, 0, 0)
    cdef SsdCarry *carry
    cdef ix head, panel
    for head in range(work.first, work.first + work.count):
        if interrupted(work.worker):
            return False
        carry = &work.carry[head - work.first]
        carry.c, carry.rest, carry.P, carry.wrong = 0, 0, 1, False
        ssd_step_sizes(ssd, work.segment.batch, work.segment.start, short.steps, head,
                       work.decays.dt, NULL)
        ssd_find_runs(&work.decays, short.steps, ssd.A.p[head * ssd.A.h], False, carry)
        # the state before the first step is 0 and left out here; but 0·inf is not 0
        carry.wrong = not isfinite(work.decays.ratio[0])
        for panel in range(ssd_panels(ssd)):
            ssd_set_panel(ssd, head, panel, &place)
            ssd_short_x(scan, work, &short, &place)
            if not ssd_short_y(scan, work, &short, &place):
                carry.wrong = True
            if ssd.last_state.p is not NULL or scan.kept is not NULL:
                ssd_short_states(scan, work, &short, &place)
    return True
