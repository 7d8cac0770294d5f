# Signals and states of the SSD forward pass as rows of whole vectors, p in the lanes, in place or
# in tiles (docs/derivations.md §6.1).  Included by _kernels.pyx.
# needs: Ssd, SsdPerHead, SsdSignal, SsdState (ssd/_problem.pxi)

cdef extern from "ssd/rows.h" nogil:
    ctypedef struct SsdRows:                # [t][p], rows `row` numbers apart
        real *p
        ix row
    ctypedef struct SsdFinish:
        const real *y
        const real *scale
        const real *D
        SsdRows x, z, out
        ix steps, width
    void ssd_scale_rows(const SsdRows *x, const real *factor, ix steps, ix width, real *scaled)
    bint ssd_finish(const SsdFinish *finish)

cdef enum:
    SSD_PANEL_BYTES = 256               # of a row of a tile: 8 KiB a block of time

cdef struct SsdPlace:                   # a block of time of a head, and some of its P numbers
    ix batch, start, steps
    ix head, column, count              # p = column … column+count−1
    ix width                            # round_up(count, VL): what a tile has of them


cdef inline ix ssd_panel(const Ssd *ssd) noexcept nogil:
    """How many numbers p of a head are worked on together, a multiple of VL."""
    return min(<ix>(SSD_PANEL_BYTES // sizeof(real)), round_up(ssd.width, VL))


cdef inline ix ssd_panels(const Ssd *ssd) noexcept nogil:
    """Panels of a head."""
    return ceil_div(ssd.width, ssd_panel(ssd))


cdef inline real *ssd_at(const SsdSignal *signal, const SsdPlace *place) noexcept nogil:
    return (signal.p + place.batch * signal.b + place.start * signal.t + place.head * signal.h
            + place.column * signal.p_)


cdef inline bint ssd_in_place(const SsdSignal *signal, const SsdPlace *place) noexcept nogil:
    """Whether rows of the signal are whole vectors in memory."""
    return signal.p_ == 1 and place.count == place.width


cdef SsdRows ssd_load_rows(const SsdSignal *signal, const SsdPlace *place,
                           real *tile) noexcept nogil:
    """Rows of a signal: in place, or copied to `tile` with zeros behind them."""
    cdef SsdRows rows
    cdef const real *p
    cdef ix t, i, ld = place.width
    rows.p, rows.row = NULL, 0
    if signal.p is NULL:
        return rows
    p = ssd_at(signal, place)
    if ssd_in_place(signal, place):
        rows.p, rows.row = <real *>p, signal.t
        return rows
    for t in range(place.steps):
        for i in range(place.count):
            tile[t * ld + i] = p[t * signal.t + i * signal.p_]
        for i in range(place.count, ld):
            tile[t * ld + i] = 0
    rows.p, rows.row = tile, ld
    return rows


cdef void ssd_store_rows(const SsdSignal *signal, const SsdPlace *place,
                         const SsdRows *rows) noexcept nogil:
    """Copy `rows` to the signal, unless they are its own."""
    cdef real *p = ssd_at(signal, place)
    cdef ix t, i
    if rows.p == p:
        return
    for t in range(place.steps):
        for i in range(place.count):
            p[t * signal.t + i * signal.p_] = rows.p[t * rows.row + i]


cdef void ssd_load_skip(const SsdPerHead *D, const SsdPlace *place, real *skip) noexcept nogil:
    """OUT skip [width]: D, with zeros behind it."""
    cdef const real *p = D.p + place.head * D.h + place.column * D.p_
    cdef ix i
    if D.p_ == 0:
        i = 0
        while i < place.width:
            vstore(skip + i, vset1(p[0]))
            i += VL
        return
    for i in range(place.count):
        skip[i] = p[i * D.p_]
    for i in range(place.count, place.width):
        skip[i] = 0


# ---- states, which kernels hold as [n][p] and callers as [p][n] --------------------------------

cdef void ssd_load_state(const SsdState *state, ix segment, const SsdPlace *place, ix states,
                         real *S) noexcept nogil:
    """OUT S [round_up(states, VL)][width]: a head's state, with zeros behind it."""
    cdef const real *from_
    cdef real square[VL * VL]
    cdef ix n = 0, p, i, k, ld = place.width
    while n < states:
        p = 0
        while p < ld:
            from_ = state.p + segment * state.s + place.head * state.h
            from_ += (place.column + p) * state.p_ + n * state.n
            if state.n == 1 and n + VL <= states and p + VL <= place.count:
                vtranspose(from_, state.p_, S + n * ld + p, ld)
            else:
                memset(square, 0, sizeof(square))
                for i in range(min(<ix>VL, place.count - p)):
                    for k in range(min(<ix>VL, states - n)):
                        square[i * VL + k] = from_[i * state.p_ + k * state.n]
                vtranspose(square, VL, S + n * ld + p, ld)
            p += VL
        n += VL


cdef void ssd_store_state(const SsdState *state, ix segment, const SsdPlace *place, ix states,
                          const real *S, real P) noexcept nogil:
    """A head's state, P·S."""
    cdef real *to
    cdef real square[VL * VL]
    cdef ix n = 0, p, i, k, ld = place.width
    while n < states:
        p = 0
        while p < ld:
            vtranspose(S + n * ld + p, ld, square, VL)
            to = state.p + segment * state.s + place.head * state.h
            to += (place.column + p) * state.p_ + n * state.n
            for i in range(min(<ix>VL, place.count - p)):
                if state.n == 1 and n + VL <= states:
                    vstore(to + i * state.p_, vload(square + i * VL) * vset1(P))
                    continue
                for k in range(min(<ix>VL, states - n)):
                    to[i * state.p_ + k * state.n] = square[i * VL + k] * P
            p += VL
        n += VL
