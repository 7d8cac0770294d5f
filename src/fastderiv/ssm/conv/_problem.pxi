# A causal convolution as structs: its arrays, how channels and steps are divided among tasks, and
# blocks of it in tiles (docs/derivations.md §6.6).  Included by _kernels.pyx.
# needs: PerChannel, Signal, State (s6/_problem.pxi)
# needs: copy, load_tile (s6/_tiles.pxi)

cdef extern from "conv/taps.h" nogil:
    enum: CONV_FEW, CONV_SHUFFLES
    ctypedef struct ConvRows:
        const real *x
        real *y
        const real *w
        ix x_t, y_t, slots, steps, vectors, last, ahead, taps
        bint silu
    ctypedef struct ConvLine:
        const real *x
        real *y
        const real *before
        const real *w
        ix steps, taps
        bint silu
    void conv_rows(const ConvRows *rows)
    void conv_line(const ConvLine *line)
    void conv_long_line(const ConvLine *line)

cdef extern from "conv/turn.h" nogil:
    void conv_load_few(const real *src, ix d, ix channels, ix n, real *rows, ix ld)
    void conv_store_few(const real *rows, ix ld, real *dst, ix d, ix channels, ix n)

cdef enum:
    CONV_BLOCK = 16                     # steps of a block, after which sums are put aside
    CONV_CHUNK = 128                    # steps of a tile, a multiple of CONV_BLOCK

cdef enum ConvPath:
    CONV_DIRECT                         # channels are contiguous, and rows are read in place
    CONV_TILES                          # rows are copied
    CONV_LINES                          # time is contiguous, and in the lanes

cdef struct Conv:
    Signal x, out
    State initial_state, last_state     # (segments, D, K−1)
    State weight                        # (D, K): d, n
    PerChannel bias
    bint silu
    const ix *starts                    # of packed segments; NULL: one segment a batch item
    ix batch, segments, channels, steps, taps
    ConvPath path
    bint apart                          # whether no two vectors have a channel in common
    ix span, spans                      # steps of a task, counted through all segments; how many
    ix unit, width, groups              # groups of channels: of at most `width` units each
    ix before                           # rows of a tile before its first step, K − 1 or more
    ix chunk                            # steps of a tile

cdef struct ConvPart:                   # what lies within a span of one segment
    ix batch, segment, start, stop      # the segment
    ix first, end                       # the steps to be computed

cdef struct ConvLanes:                  # a vector of channels: the rows that have a channel, and
    ix channel, rows                    # where its taps are
    const real *w
    ix slots

cdef struct ConvNext:                   # what is computed next, and fetched meanwhile
    ix channel, t

cdef struct ConvPace:                   # of looks for signals
    Worker *worker
    ix done                             # since the last one

cdef struct ConvGroup:                  # the channels of a task, and their taps in scratch
    ix channel, channels, vectors, slots
    real *w                             # [K + 1][slots]
    bint apart                          # whether no two vectors have a channel in common


cdef inline bint conv_stopped(const Conv *conv, ix elements, ConvPace *pace) noexcept nogil:
    """Whether to return, after so many elements."""
    pace.done += elements * (1 + conv.taps // 8)
    if pace.done < 1 << 17:
        return False
    pace.done = 0
    return interrupted(pace.worker)


# ---- the division of work ---------------------------------------------------------------------

cdef ConvPart conv_part(const Conv *conv, ix segment, ix low, ix high) noexcept nogil:
    """The part of a segment within the steps low … high−1, counted through all segments."""
    cdef ConvPart part
    cdef ix base = 0 if conv.starts is not NULL else segment * conv.steps
    part.segment, part.batch = segment, segment
    part.start, part.stop = 0, conv.steps
    if conv.starts is not NULL:
        part.batch, part.start, part.stop = 0, conv.starts[segment], conv.starts[segment + 1]
    part.first, part.end = max(part.start, low - base), min(part.stop, high - base)
    return part


cdef ix conv_segment_at(const Conv *conv, ix position) noexcept nogil:
    """The first segment that ends behind a step, counted through all segments."""
    cdef ix low = 0, high = conv.segments, middle
    if conv.starts is NULL:
        return position // conv.steps
    while low < high:
        middle = (low + high) // 2
        if conv.starts[middle + 1] <= position:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline ix conv_total(const Conv *conv) noexcept nogil:
    """The steps of all segments."""
    return conv.batch * conv.steps


cdef void conv_divide_channels(Conv *conv, ix unit, ix width) noexcept nogil:
    """Groups of at most `width` units; they are as equal as can be, so that an incomplete unit is
    never a group alone if a group may have two."""
    conv.unit = unit
    conv.groups = max(<ix>1, ceil_div(ceil_div(conv.channels, unit), max(<ix>1, width)))
    conv.width = ceil_div(ceil_div(conv.channels, unit), conv.groups)


cdef inline ix conv_group_start(const Conv *conv, ix number) noexcept nogil:
    cdef ix units = ceil_div(conv.channels, conv.unit)
    return min(conv.channels, number * units // conv.groups * conv.unit)


cdef void conv_divide_steps(Conv *conv, double steps) noexcept nogil:
    """Spans of about so many steps."""
    cdef ix total = conv_total(conv)
    conv.span = round_up(max(<ix>1, <ix>min(<double>total, steps)), CONV_BLOCK)
    conv.spans = ceil_div(total, conv.span)


# ---- the channels of a task -------------------------------------------------------------------

cdef inline ConvLanes conv_lanes(const ConvGroup *group, ix v) noexcept nogil:
    """A vector of a group.  The last one begins earlier where it would be incomplete, if the group
    has so many channels."""
    cdef ConvLanes lanes
    cdef ix column = v * VL
    if v + 1 == group.vectors and group.channels >= VL and not group.apart:
        column = group.channels - VL
    lanes.channel, lanes.rows = group.channel + column, min(<ix>VL, group.channels - column)
    lanes.w, lanes.slots = group.w + v * VL, group.slots
    return lanes


cdef void conv_set_group(const Conv *conv, ix number, real *w, ConvGroup *group) noexcept nogil:
    """OUT group, and its taps and biases in w."""
    cdef ConvLanes lanes
    cdef ix v, K = conv.taps
    cdef const real *src
    cdef real *to
    group.channel = conv_group_start(conv, number)
    group.channels = conv_group_start(conv, number + 1) - group.channel
    group.vectors = ceil_div(group.channels, VL)
    group.slots, group.w = group.vectors * VL, w
    group.apart = conv.apart
    memset(w + K * group.slots, 0, group.slots * sizeof(real))
    if group.channels % VL:
        memset(w, 0, K * group.slots * sizeof(real))
    for v in range(group.vectors):
        lanes = conv_lanes(group, v)
        to = w + v * VL
        src = conv.weight.p + lanes.channel * conv.weight.d
        if conv.weight.n == 1 or K == 1:
            conv_load_few(src, conv.weight.d, lanes.rows, K, to, group.slots)
        else:
            load_tile(src, conv.weight.d, conv.weight.n, lanes.rows, K, to, group.slots)
        if conv.bias.p is not NULL:
            load_tile(conv.bias.p + lanes.channel * conv.bias.d, conv.bias.d, 0, lanes.rows, 1,
                      to + K * group.slots, group.slots)


cdef inline ConvNext conv_next(const ConvGroup *group, ix v, ix t, ix n) noexcept nogil:
    """What follows on n steps from t on of a vector: the next vector, or the first one later."""
    cdef ConvNext next
    next.channel, next.t = group.channel, t + n
    if v + 1 < group.vectors:
        next.channel, next.t = conv_lanes(group, v + 1).channel, t
    return next


# ---- tiles ------------------------------------------------------------------------------------

cdef inline ix conv_tile_size(ix rows) noexcept nogil:
    """Reals of a tile, an odd number of cache lines."""
    return round_up(rows * VL, 2 * GL) + GL


cdef inline real *conv_at(const Signal *signal, const ConvPart *part, ix channel,
                          ix t) noexcept nogil:
    return signal.p + part.batch * signal.b + channel * signal.d + t * signal.t


cdef inline void conv_load(const Signal *signal, const ConvPart *part, const ConvLanes *lanes, ix t,
                           ix n, real *tile) noexcept nogil:
    """OUT tile [time, lane] of the steps t … t+n−1; lanes without a channel are zero."""
    if lanes.rows < VL:
        memset(tile, 0, n * VL * sizeof(real))
    load_tile(conv_at(signal, part, lanes.channel, t), signal.d, signal.t, lanes.rows, n, tile, VL)


cdef void conv_fill(const Conv *conv, const ConvPart *part, const ConvLanes *lanes, ix t, ix n,
                    real *tile) noexcept nogil:
    """OUT tile: as many inputs before t as a tile has rows for, and the n inputs from t on.  Before
    the segment begins, inputs are those of the initial state; older ones are zero."""
    cdef ix first = t - conv.before, oldest = part.start - conv.taps + 1, skipped
    cdef const State *state = &conv.initial_state
    cdef const real *src
    if first < part.start:
        memset(tile, 0, (part.start - first) * VL * sizeof(real))
        skipped = max(<ix>0, first - oldest)
        if state.p is not NULL:
            src = state.p + part.segment * state.s + lanes.channel * state.d + skipped * state.n
            load_tile(src, state.d, state.n, lanes.rows, conv.taps - 1 - skipped,
                      tile + (oldest + skipped - first) * VL, VL)
        tile += (part.start - first) * VL
        first = part.start
    conv_load(&conv.x, part, lanes, first, t + n - first, tile)


cdef void conv_gather(const Conv *conv, const ConvPart *part, ix channel, ix first, ix end,
                      real *line) noexcept nogil:
    """OUT line: the inputs first … end−1 of a channel, contiguous, as `conv_fill` has them."""
    cdef const State *state = &conv.initial_state
    cdef const real *src
    cdef ix oldest = part.start - conv.taps + 1, n = min(end, part.start) - first
    if n > 0:
        memset(line, 0, n * sizeof(real))
        line, first = line + n, first + n
        if state.p is not NULL:
            n = min(n, first - oldest)                  # of them are in the state
            src = state.p + part.segment * state.s + channel * state.d
            copy(src + (first - n - oldest) * state.n, state.n, line - n, 1, n)
    if first < end:
        copy(conv_at(&conv.x, part, channel, first), conv.x.t, line, 1, end - first)


cdef inline void conv_fetch(const Signal *signal, const ConvPart *part, const ConvNext *next,
                            ix t) noexcept nogil:
    """Fetch CONV_BLOCK steps from t on of a vector of channels, a cache line each of its rows."""
    cdef const real *p = conv_at(signal, part, next.channel, next.t + t)
    cdef ix apart = signal.d if signal.t == 1 else signal.t, i
    if next.t + t + CONV_BLOCK <= part.stop:
        for i in range(CONV_BLOCK):
            vprefetch(p + i * apart)
