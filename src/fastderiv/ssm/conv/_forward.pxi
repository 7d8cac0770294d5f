# The causal convolution (docs/derivations.md §6.6): y[t] = act(bias + Σ_k w[k]·x[t−K+1+k]).  A task
# computes a span of the steps, counted through all segments, of one group of channels.
# Included by _kernels.pyx.
# needs: Signal, State (s6/_problem.pxi)
# needs: copy, store_tile (s6/_tiles.pxi)
# needs: Conv, conv_at, CONV_CHUNK, CONV_DIRECT, conv_divide_channels, conv_divide_steps, CONV_FEW,
#        conv_fill, conv_gather, conv_group_start, conv_lanes, conv_line, CONV_LINES,
#        conv_long_line, conv_part, conv_rows, conv_segment_at, conv_set_group, CONV_SHUFFLES,
#        conv_stopped, conv_tile_size, CONV_TILES, conv_total, ConvGroup, ConvLanes, ConvLine,
#        ConvPace, ConvPart, ConvRows (conv/_problem.pxi)

cdef enum:
    CONV_STEPS = 8                      # steps of a block that is read in place
    CONV_LINE = 1 << 14                 # steps between two looks for signals
    CONV_WIDTH = 2048                   # channels of a group, at most, where they are contiguous


cdef inline void fill_zeros(real *dst, ix ds, ix n) noexcept nogil:
    cdef ix i
    for i in range(n):
        dst[i * ds] = 0


# ---- channels in the lanes --------------------------------------------------------------------

cdef void conv_chunk(const Conv *conv, const ConvPart *part, const ConvLanes *lanes, ix t, ix n,
                     real *tiles) noexcept nogil:
    """n steps of a vector of channels through tiles."""
    cdef real *y = tiles + conv_tile_size(conv.before + conv.chunk)
    cdef const Signal *out = &conv.out
    cdef ConvRows rows
    conv_fill(conv, part, lanes, t, n, tiles)
    rows.x, rows.y, rows.x_t, rows.y_t = tiles + conv.before * VL, y, VL, VL
    rows.w, rows.slots, rows.taps, rows.silu = lanes.w, lanes.slots, conv.taps, conv.silu
    rows.steps, rows.vectors, rows.last, rows.ahead = n, 1, 0, 0
    conv_rows(&rows)
    store_tile(y, VL, conv_at(out, part, lanes.channel, t), out.d, out.t, lanes.rows, n)


cdef void conv_direct(const Conv *conv, const ConvPart *part, const ConvGroup *group, ix t,
                      ix n) noexcept nogil:
    """n steps of all channels of the group, in place."""
    cdef ConvRows rows
    rows.x = conv_at(&conv.x, part, group.channel, t)
    rows.y = conv_at(&conv.out, part, group.channel, t)
    rows.x_t, rows.y_t, rows.w, rows.slots = conv.x.t, conv.out.t, group.w, group.slots
    rows.steps, rows.vectors, rows.last = n, group.vectors, group.channels - VL
    rows.taps, rows.silu = conv.taps, conv.silu
    rows.ahead = CONV_STEPS * conv.x.t if t + n + CONV_STEPS <= part.stop else 0
    conv_rows(&rows)


cdef bint conv_rows_part(const Conv *conv, const ConvPart *part, const ConvGroup *group,
                         real *tiles, ConvPace *pace) noexcept nogil:
    """A part, block by block; False if interrupted."""
    cdef ConvLanes lanes
    cdef ix t = part.first, n, v
    while t < part.end:
        n = min(<ix>CONV_STEPS if conv.path == CONV_DIRECT else conv.chunk, part.end - t)
        if conv.path == CONV_DIRECT and t - part.start >= conv.taps - 1:
            conv_direct(conv, part, group, t, n)
        else:
            for v in range(group.vectors):
                lanes = conv_lanes(group, v)
                conv_chunk(conv, part, &lanes, t, n, tiles)
        t += n
        if conv_stopped(conv, n * group.channels, pace):
            return False
    return True


# ---- time in the lanes ------------------------------------------------------------------------

cdef void conv_long_stretch(const Conv *conv, const ConvPart *part, ix channel, ix t, ix end,
                            ConvLine *line, real *buffer) noexcept nogil:
    """The steps t … end−1 of a channel from copies of its inputs."""
    cdef ix K = conv.taps
    line.x, line.taps = buffer + K - 1, K
    while t < end:
        line.steps = min(conv.chunk, end - t)
        conv_gather(conv, part, channel, t - K + 1, t + line.steps, buffer)
        memset(buffer + K - 1 + line.steps, 0, VL * sizeof(real))
        line.y = conv_at(&conv.out, part, channel, t)
        conv_long_line(line)
        t += line.steps


cdef void conv_short_stretch(const Conv *conv, const ConvPart *part, ix channel, ix t, ix end,
                             ConvLine *line, real *buffer) noexcept nogil:
    """The same for few taps, in place."""
    line.x, line.y = conv_at(&conv.x, part, channel, t), conv_at(&conv.out, part, channel, t)
    line.before, line.steps, line.taps = line.x - VL, end - t, conv.taps
    if t - part.start < VL:
        conv_gather(conv, part, channel, t - VL, t, buffer)
        line.before = buffer
    conv_line(line)


cdef bint conv_line_part(const Conv *conv, const ConvPart *part, ix channel, real *scratch,
                         ConvPace *pace) noexcept nogil:
    """A part of one channel, its taps at the start of scratch; False if interrupted."""
    cdef real *buffer = scratch + round_up(conv.taps + 1, GL)
    cdef ix t = part.first, end
    cdef ConvLine line
    line.w, line.silu = scratch, conv.silu
    while t < part.end:
        end = min(part.end, t + CONV_LINE)
        if conv.taps <= CONV_FEW and CONV_SHUFFLES:
            conv_short_stretch(conv, part, channel, t, end, &line, buffer)
        else:
            conv_long_stretch(conv, part, channel, t, end, &line, buffer)
        if conv_stopped(conv, end - t, pace):
            return False
        t = end
    return True


cdef bint conv_lines_part(const Conv *conv, const ConvPart *part, ix number, real *w,
                          ConvPace *pace) noexcept nogil:
    """A part of a group, channel by channel; False if interrupted."""
    cdef ix channel
    for channel in range(conv_group_start(conv, number), conv_group_start(conv, number + 1)):
        copy(conv.weight.p + channel * conv.weight.d, conv.weight.n, w, 1, conv.taps)
        w[conv.taps] = 0 if conv.bias.p is NULL else conv.bias.p[channel * conv.bias.d]
        if not conv_line_part(conv, part, channel, w, pace):
            return False
    return True


# ---- tasks ------------------------------------------------------------------------------------

cdef void conv_task(void *args, ix i, Worker *worker) noexcept nogil:
    """A span of one group."""
    cdef const Conv *conv = <const Conv *>args
    cdef real *scratch = <real *>worker.scratch
    cdef real *tiles = scratch + round_up((conv.taps + 1) * conv.width * VL, GL)
    cdef ConvPace pace
    cdef ConvGroup group
    cdef ConvPart part
    cdef ix number = i % conv.groups, low = i // conv.groups * conv.span, segment
    cdef ix high = min(conv_total(conv), low + conv.span)
    pace.worker, pace.done = worker, 0
    if conv.path != CONV_LINES:
        conv_set_group(conv, number, scratch, &group)
    for segment in range(conv_segment_at(conv, low), conv.segments):
        part = conv_part(conv, segment, low, high)
        if part.end < part.first:                       # the segment lies behind the span
            return
        if conv.path == CONV_LINES:
            if not conv_lines_part(conv, &part, number, scratch, &pace):
                return
        elif not conv_rows_part(conv, &part, &group, tiles, &pace):
            return


cdef void conv_divide(Conv *conv, double elements) noexcept:
    """How the call is computed, and tasks of about so many elements, by the layout and the size of
    the call."""
    cdef ix K = conv.taps, most
    cdef bint direct = conv.x.d == 1 and conv.out.d == 1 and conv.channels >= VL
    cdef bint lines = conv.x.t == 1 and conv.out.t == 1
    conv.before, conv.chunk, conv.apart = K - 1, CONV_CHUNK, False
    if conv.x.t == 1:                                   # transposed in whole squares
        conv.before = round_up(K - 1, GL)
    if lines and not (direct and conv.steps < VL):
        conv.path = CONV_LINES
        # a group has whole sequences, where they are short
        most = max(<ix>1, <ix>min(<double>conv.channels, elements / max(<ix>1, conv.steps)))
        conv_divide_channels(conv, 1, most)
    else:
        conv.path = CONV_DIRECT if direct else CONV_TILES
        most = CONV_WIDTH if conv.x.d == 1 else GL
        # the taps of a group take at most 64 KiB where they are few
        most = min(most, (1 << 16) // (<ix>sizeof(real) * (K + 1)))
        conv_divide_channels(conv, VL, most // VL)
    conv_divide_steps(conv, elements / (conv.width * conv.unit))


cdef double conv_scratch(const Conv *conv) noexcept:
    """Bytes of scratch of a thread."""
    cdef double K = conv.taps, reals
    if conv.path == CONV_LINES:
        reals = 2 * K + conv.chunk + 4. * GL
    else:
        reals = (K + 1) * conv.width * VL + (conv.before + 2. * conv.chunk) * VL + 8. * GL
    return reals * sizeof(real)


cdef void conv_state_task(void *args, ix i, Worker *worker) noexcept nogil:
    """The last state of a segment: its last K − 1 inputs, or those of the initial state."""
    cdef const Conv *conv = <const Conv *>args
    cdef ConvPart part = conv_part(conv, i, 0, 0)
    cdef const State *before = &conv.initial_state
    cdef ix c = 0, j, t, n
    cdef real *to
    while c < conv.channels and not interrupted(worker):
        n = min(<ix>1024, conv.channels - c)
        for j in range(conv.taps - 1):
            if j % 64 == 0 and interrupted(worker):
                return
            t = part.stop - conv.taps + 1 + j
            to = conv.last_state.p + i * conv.last_state.s + c * conv.last_state.d
            to += j * conv.last_state.n
            if t >= part.start:
                copy(conv_at(&conv.x, &part, c, t), conv.x.d, to, conv.last_state.d, n)
            elif before.p is NULL or t < part.start - conv.taps + 1:
                fill_zeros(to, conv.last_state.d, n)
            else:
                t += conv.taps - 1 - part.start
                copy(before.p + i * before.s + c * before.d + t * before.n, before.d, to,
                     conv.last_state.d, n)
        c += n
