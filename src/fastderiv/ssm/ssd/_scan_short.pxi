# A short segment of the SSD scan as one chunk (docs/derivations.md §6.3): y = P·(G ∘ causal)·Δx/P with
# G = C·Bᵀ, which all heads of a group share.  Included by _kernels.pyx.
# needs: Ssd, SSD_CHUNK, ssd_step_sizes, SsdCoefficient (ssd/_problem.pxi)
# needs: ssd_block_states, ssd_find_runs, SSD_ROWS, SSD_UB, SsdCarry, SsdDecays, SsdLoop,
#        SsdRuns (ssd/_scan_decays.pxi)
# needs: ssd_load_rows, ssd_panel, ssd_panels, ssd_scale_rows, ssd_store_state, SsdPlace,
#        SsdRows (ssd/_scan_rows.pxi)
# needs: ssd_finish_panel, ssd_keep, ssd_place, ssd_rows_of_state, ssd_set_panel, SSD_TB, SsdScan,
#        SsdWork (ssd/_scan.pxi)

cdef extern from "ssd/short.h" nogil:
    ctypedef struct SsdGram:
        const real *B
        const real *CT
        ix b_row, c_row, states, steps
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
    real *B                             # [s][n], b_row apart
    real *CT                            # [n][t], c_row apart
    real *x                             # [s][p]: a panel of Δ·x in the scale of its run
    ix steps, padded                    # padded: round_up(steps, max(SSD_UB, VL))
    ix b_row, c_row


cdef ix ssd_short_steps(const Ssd *ssd) noexcept nogil:
    """Up to how many steps a segment is one chunk.  It then takes L/2·P multiply–adds a step for y,
    and N·P more if states are wanted, instead of 2·N·P."""
    if ssd.initial_state.p is not NULL or ssd.states == 0 or ssd.y.p is NULL:
        return 0
    return min(min(<ix>SSD_LONGEST, 2 * ssd.states), SSD_LARGEST // ssd.states)


cdef inline ix ssd_short_padded(ix steps) noexcept nogil:
    return round_up(steps, max(<ix>SSD_UB, <ix>VL))


cdef double ssd_short_size(const Ssd *ssd, ix most) noexcept nogil:
    """Scratch for a segment of `most` steps, in reals."""
    cdef double L = ssd_short_padded(most), rows = round_up(ssd.states, SSD_ROWS)
    if most == 0:
        return 0
    return L * (L + SSD_UB) / 2 + L * (rows + GL) + rows * (L + GL) + L * ssd_panel(ssd) + 4 * GL


cdef SsdShort ssd_set_up_short(const SsdScan *scan, const SsdWork *work,
                               real *scratch) noexcept nogil:
    """G, B and C of the segment."""
    cdef const Ssd *ssd = &scan.ssd
    cdef const SsdCoefficient *B = &ssd.B
    cdef const SsdCoefficient *C = &ssd.C
    cdef SsdShort short
    cdef SsdGram gram
    cdef const real *b
    cdef const real *c
    cdef ix t, n, L, rows = round_up(ssd.states, SSD_ROWS), start = work.segment.start
    short.steps = work.segment.stop - start
    L = short.padded = ssd_short_padded(short.steps)
    short.b_row, short.c_row = rows + GL, L + GL
    short.G = scratch
    short.B = short.G + round_up(L * (L + SSD_UB) // 2, GL)
    short.CT = short.B + L * short.b_row
    short.x = short.CT + round_up(rows * short.c_row, GL)
    memset(short.B, 0, (short.x - short.B) * sizeof(real))
    b = B.p + work.segment.batch * B.b + start * B.t + work.group * B.g
    c = C.p + work.segment.batch * C.b + start * C.t + work.group * C.g
    for t in range(short.steps):
        for n in range(ssd.states):
            short.B[t * short.b_row + n] = b[t * B.t + n * B.n]
            short.CT[n * short.c_row + t] = c[t * C.t + n * C.n]
    gram.B, gram.CT, gram.b_row, gram.c_row = short.B, short.CT, short.b_row, short.c_row
    gram.states, gram.steps, gram.G = rows, L, short.G
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
    loop.panel, loop.row = SSD_UB, short.b_row
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
        loop.x, loop.b = short.x + t * place.width, short.B + t * short.b_row
        ssd_block_states(&loop)
        carry.P = decays.P[stop - 1]
        t = stop
    if ssd.last_state.p is not NULL:
        ssd_store_state(&ssd.last_state, work.number, place, ssd.states, S, carry.P)


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
        for panel in range(ssd_panels(ssd)):
            ssd_set_panel(ssd, head, panel, &place)
            ssd_short_x(scan, work, &short, &place)
            if not ssd_short_y(scan, work, &short, &place):
                carry.wrong = True
            if ssd.last_state.p is not NULL or scan.kept is not NULL:
                ssd_short_states(scan, work, &short, &place)
    return True
