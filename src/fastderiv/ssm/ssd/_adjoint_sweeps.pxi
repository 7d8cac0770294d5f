# The adjoint of the SSD scan (docs/derivations.md §6.4): some heads of a group through a segment,
# forward for the states before each chunk, and back.  Included by _kernels.pyx.
# needs: Ssd, SSD_CHUNK, ssd_kept_state, ssd_segment, SsdCoefficient, SsdSignal,
#        SsdState (ssd/_problem.pxi)
# needs: ssd_add, ssd_advance, ssd_back_head, ssd_lines, ssd_load, SSD_MOST, ssd_multiply, ssd_own,
#        ssd_plane, ssd_store, ssd_transpose, ssd_triangle, SsdAdjoint, SsdBack, SsdFetch, SsdPart,
#        SsdTiles (ssd/_adjoint.pxi)

cdef SsdPart ssd_part(SsdBack *back, ix number) noexcept nogil:
    """Chunk `number` of the segment."""
    cdef const SsdAdjoint *adj = back.adj
    cdef SsdPart part
    part.number, part.start = number, back.segment.start + number * back.steps
    part.steps = min(back.steps, back.segment.stop - part.start)
    part.past = number > 0 or adj.ssd.initial_state.p is not NULL
    part.future = number < back.chunks - 1 or adj.dlast_state.p is not NULL
    return part


cdef void ssd_load_coefficient(SsdBack *back, const SsdPart *part,
                               const SsdCoefficient *coefficient, real *tile) noexcept nogil:
    ssd_load(coefficient.p + back.segment.batch * coefficient.b + part.start * coefficient.t
             + back.group * coefficient.g, coefficient.t, coefficient.n, part.steps,
             back.adj.ssd.states, tile, back.adj.n_row)


cdef void ssd_load_chunk_state(SsdBack *back, const SsdState *state, ix head,
                         real *tile) noexcept nogil:
    """OUT tile: a state, or zeros if there is none."""
    cdef const SsdAdjoint *adj = back.adj
    if state.p is NULL:
        memset(tile, 0, adj.state * sizeof(real))
    else:
        ssd_load(state.p + back.number * state.s + head * state.h, state.p_, state.n,
                 adj.ssd.width, adj.ssd.states, tile, adj.n_row)


# ---- fetching ahead -----------------------------------------------------------------------------

cdef void ssd_plane_of(SsdBack *back, const SsdPart *part, const SsdSignal *signal,
                       ix head) noexcept nogil:
    """Fetch the rows of a head in a chunk ahead."""
    if signal.p is not NULL:
        ssd_plane(&back.ahead, signal.p + back.segment.batch * signal.b + part.start * signal.t
                  + head * signal.h, signal.t, signal.p_, part.steps, back.adj.ssd.width)


cdef void ssd_plane_of_group(SsdBack *back, const SsdPart *part,
                             const SsdCoefficient *coefficient) noexcept nogil:
    """Fetch the rows of B or C of a chunk ahead."""
    ssd_plane(&back.ahead, coefficient.p + back.segment.batch * coefficient.b
              + part.start * coefficient.t + back.group * coefficient.g, coefficient.t,
              coefficient.n, part.steps, back.adj.ssd.states)


cdef void ssd_look_ahead(SsdBack *back, const SsdPart *part, ix head, ix step,
                         bint forward) noexcept nogil:
    """Fetch what will be read after this head of this chunk; `step` leads to the next chunk."""
    cdef const SsdAdjoint *adj = back.adj
    cdef SsdFetch *ahead = &back.ahead
    cdef SsdPart next = part[0]
    cdef ix lines
    ahead.count = ahead.done = 0
    ahead.row = ahead.byte = 0
    head += 1
    if head == back.first + back.heads:
        head, next = back.first, ssd_part(back, part.number + step)
        if next.number < 0 or next.number >= back.chunks:
            return
        ssd_plane_of_group(back, &next, &adj.ssd.B)
        if not forward:
            ssd_plane_of_group(back, &next, &adj.ssd.C)
    ssd_plane_of(back, &next, &adj.ssd.x, head)
    if not forward:
        ssd_plane_of(back, &next, &adj.dout, head)
        ssd_plane_of(back, &next, &adj.ssd.z, head)
        ssd_plane_of(back, &next, &adj.dx, head)
    if adj.kept is NULL:
        ssd_plane(ahead, ssd_own(back, back.tiles.H, head, adj.places,
                                 (next.number + forward) % adj.window), adj.n_row, 1,
                  adj.ssd.width, adj.deep)
    elif not forward:
        ssd_plane(ahead, ssd_kept_state(&adj.ssd, <real *>adj.kept, back.number, next.number, head),
                  adj.ssd.width, 1, adj.ssd.states, adj.ssd.width)
    lines = ssd_lines(ahead)
    ahead.each = <int>(lines // (24 if forward else 90) + 1)


# ---- forward ----------------------------------------------------------------------------------

cdef bint ssd_skip_windows(SsdBack *back, ix windows) noexcept nogil:
    """OUT starts: the states before each window of the segment.  False: interrupted."""
    cdef const SsdAdjoint *adj = back.adj
    cdef const SsdTiles *tiles = &back.tiles
    cdef ix chunk, head, window = 0
    cdef SsdPart part
    cdef real *H
    for head in range(back.first, back.first + back.heads):
        ssd_load_chunk_state(back, &adj.ssd.initial_state, head,
                       ssd_own(back, tiles.starts, head, adj.windows, 0))
    for chunk in range((windows - 1) * adj.window):
        part = ssd_part(back, chunk)
        ssd_load_coefficient(back, &part, &adj.ssd.B, tiles.b)
        window = chunk // adj.window
        for head in range(back.first, back.first + back.heads):
            H = ssd_own(back, tiles.H, head, adj.places, 0)
            ssd_look_ahead(back, &part, head, 1, True)
            ssd_advance(back, &part, head,
                        ssd_own(back, tiles.starts, head, adj.windows, window)
                        if chunk % adj.window == 0 else H,
                        ssd_own(back, tiles.starts, head, adj.windows, window + 1)
                        if (chunk + 1) % adj.window == 0 else H)
            if interrupted(back.worker):
                return False
    return True


cdef bint ssd_fill_window(SsdBack *back, ix first, ix stop) noexcept nogil:
    """OUT H: the states before the chunks first … stop − 1 of a window.  False: interrupted."""
    cdef const SsdAdjoint *adj = back.adj
    cdef const SsdTiles *tiles = &back.tiles
    cdef ix chunk, head
    cdef SsdPart part
    for head in range(back.first, back.first + back.heads):
        memcpy(ssd_own(back, tiles.H, head, adj.places, 0),
               ssd_own(back, tiles.starts, head, adj.windows, first // adj.window),
               adj.state * sizeof(real))
    for chunk in range(first, stop - 1):
        part = ssd_part(back, chunk)
        ssd_load_coefficient(back, &part, &adj.ssd.B, tiles.b)
        for head in range(back.first, back.first + back.heads):
            ssd_look_ahead(back, &part, head, 1, True)
            ssd_advance(back, &part, head,
                        ssd_own(back, tiles.H, head, adj.places, chunk - first),
                        ssd_own(back, tiles.H, head, adj.places, chunk - first + 1))
            if interrupted(back.worker):
                return False
    return True


# ---- back -------------------------------------------------------------------------------------

cdef void ssd_load_group(SsdBack *back, const SsdPart *part) noexcept nogil:
    """OUT tiles: what the heads of a group share, and no terms of theirs yet."""
    cdef const SsdAdjoint *adj = back.adj
    cdef const SsdTiles *tiles = &back.tiles
    cdef ix steps = part.steps
    ssd_load_coefficient(back, part, &adj.ssd.B, tiles.b)
    ssd_load_coefficient(back, part, &adj.ssd.C, tiles.c)
    ssd_transpose(tiles.c, adj.n_row, round_up(steps, VL), adj.deep, tiles.turned_c, adj.t_row)
    ssd_triangle(steps, adj.ssd.states, tiles.b, adj.n_row, tiles.turned_c, adj.t_row,
                 tiles.products)
    memset(tiles.terms, 0, steps * adj.t_row * sizeof(real))
    memset(tiles.dB, 0, steps * adj.n_row * sizeof(real))
    memset(tiles.dC, 0, steps * adj.n_row * sizeof(real))


cdef void ssd_put_coefficient(SsdBack *back, const SsdPart *part, const real *tile,
                              const SsdCoefficient *gradient) noexcept nogil:
    cdef real *to = (gradient.p + back.segment.batch * gradient.b + part.start * gradient.t
                     + back.group * gradient.g)
    if back.add:
        ssd_add(tile, back.adj.n_row, part.steps, back.adj.ssd.states, to, gradient.t, 1)
    else:
        ssd_store(tile, back.adj.n_row, part.steps, back.adj.ssd.states, to, gradient.t, 1)


cdef void ssd_store_group(SsdBack *back, const SsdPart *part) noexcept nogil:
    """OUT dB and dC of a chunk: 9. the terms between its own steps, for all heads at once."""
    cdef const SsdAdjoint *adj = back.adj
    cdef const SsdTiles *tiles = &back.tiles
    cdef ix steps = part.steps
    cdef Gemm g = Gemm(steps, adj.deep, steps, tiles.terms, adj.t_row, 1, tiles.c, adj.n_row,
                       tiles.dB, adj.n_row)
    ssd_multiply(&g, GEMM_UPPER, &back.ahead)
    g = Gemm(steps, adj.deep, steps, tiles.terms, 1, adj.t_row, tiles.b, adj.n_row, tiles.dC,
             adj.n_row)
    ssd_multiply(&g, GEMM_LOWER, &back.ahead)
    ssd_put_coefficient(back, part, tiles.dB, &back.dB)
    ssd_put_coefficient(back, part, tiles.dC, &back.dC)


cdef const real *ssd_state_before(SsdBack *back, const SsdPart *part, ix head) noexcept nogil:
    """The state of a head before a chunk, (P, N) in rows n_row apart."""
    cdef const SsdAdjoint *adj = back.adj
    cdef const Ssd *ssd = &adj.ssd
    cdef real *H = ssd_own(back, back.tiles.H, head, adj.places, part.number % adj.window)
    if adj.kept is not NULL and part.past:
        ssd_load(ssd_kept_state(ssd, <real *>adj.kept, back.number, part.number, head), ssd.width,
                 1, ssd.states, ssd.width, back.tiles.turned_state, adj.p_row)
        ssd_transpose(back.tiles.turned_state, adj.p_row, adj.deep, adj.wide, H, adj.n_row)
    return H


cdef bint ssd_back_chunk(SsdBack *back, ix number) noexcept nogil:
    """All gradients of a chunk; OUT G: those of the states before it.  False: interrupted."""
    cdef SsdPart part = ssd_part(back, number)
    cdef ix head
    ssd_load_group(back, &part)
    for head in range(back.first, back.first + back.heads):
        ssd_look_ahead(back, &part, head, -1, False)
        ssd_back_head(back, &part, head, ssd_state_before(back, &part, head))
        if interrupted(back.worker):
            return False
    ssd_store_group(back, &part)
    return True


cdef void ssd_set_segment(SsdBack *back, ix number) noexcept nogil:
    """OUT back: the segment, and its chunks: a single one of a short segment."""
    cdef ix steps
    back.number, back.segment = number, ssd_segment(&back.adj.ssd, number)
    steps = back.segment.stop - back.segment.start
    back.steps = SSD_MOST if steps <= SSD_MOST else SSD_CHUNK
    back.chunks = ceil_div(steps, back.steps)


cdef bint ssd_back_segment(SsdBack *back, ix number) noexcept nogil:
    """Some heads of a segment.  False: interrupted."""
    cdef const SsdAdjoint *adj = back.adj
    cdef const SsdTiles *tiles = &back.tiles
    cdef bint whole = adj.ssd.initial_state.p is not NULL       # states before all chunks are used
    cdef ix windows, window, chunk, first, stop, head
    ssd_set_segment(back, number)
    windows = ceil_div(back.chunks, adj.window)
    if back.chunks > 1 or whole or adj.dlast_state.p is not NULL:
        for head in range(back.first, back.first + back.heads):
            ssd_load_chunk_state(back, &adj.dlast_state, head, ssd_own(back, tiles.G, head, 1, 0))
    whole = adj.kept is NULL and (back.chunks > 1 or whole)
    if whole and not ssd_skip_windows(back, windows):
        return False
    for window in range(windows - 1, -1, -1):
        first, stop = window * adj.window, min((window + 1) * adj.window, back.chunks)
        if whole and not ssd_fill_window(back, first, stop):
            return False
        for chunk in range(stop - 1, first - 1, -1):
            if not ssd_back_chunk(back, chunk):
                return False
    if adj.dinitial_state.p is not NULL:
        for head in range(back.first, back.first + back.heads):
            ssd_store(ssd_own(back, tiles.G, head, 1, 0), adj.n_row, adj.ssd.width, adj.ssd.states,
                      adj.dinitial_state.p + number * adj.dinitial_state.s
                      + head * adj.dinitial_state.h, adj.dinitial_state.p_, adj.dinitial_state.n)
    return True
