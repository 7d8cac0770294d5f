# Steps of the causal convolution (docs/derivations.md §6.6), as a decoder takes them: the state
# holds the last W ≥ K − 1 inputs and is shifted in place.  The inputs of a vector of channels are
# put behind its state in a tile, so that the bits are those of a whole sequence.
# Included by _kernels.pyx.
# needs: Signal (s6/_problem.pxi)
# needs: store_tile (s6/_tiles.pxi)
# needs: Conv, conv_at, CONV_CHUNK, conv_divide_channels, conv_lanes, conv_load, conv_load_few,
#        conv_part, conv_rows, conv_set_group, conv_store_few, conv_tile_size, ConvGroup, ConvLanes,
#        ConvPart, ConvRows (conv/_problem.pxi)

cdef struct ConvStep:
    Conv conv                           # x and out (Bt, D, S)
    Signal state                        # (Bt, D, W)
    ix kept                             # W
    ix items                            # of the batch, in a task


cdef void conv_step_lanes(const ConvStep *step, const ConvPart *part, const ConvLanes *lanes,
                          real *tile, real *y) noexcept nogil:
    """All steps of a vector of channels of one batch item."""
    cdef const Conv *conv = &step.conv
    cdef const Signal *out = &conv.out
    cdef const Signal *state = &step.state
    cdef ix W = step.kept, t = 0, n = 0
    cdef real *kept = conv_at(state, part, lanes.channel, 0)
    cdef bint few = state.t == 1 or W == 1              # the usual layout
    cdef ConvRows rows
    if few:
        conv_load_few(kept, state.d, lanes.rows, W, tile, VL)
    else:
        conv_load(state, part, lanes, 0, W, tile)
    rows.y, rows.x_t, rows.y_t = y, VL, VL
    rows.w, rows.slots, rows.taps, rows.silu = lanes.w, lanes.slots, conv.taps, conv.silu
    rows.vectors, rows.last, rows.ahead = 1, 0, 0
    while t < conv.steps:
        if t:
            memmove(tile, tile + n * VL, W * VL * sizeof(real))
        rows.x, rows.steps = tile + W * VL, min(<ix>CONV_CHUNK, conv.steps - t)
        n = rows.steps
        conv_load(&conv.x, part, lanes, t, n, tile + W * VL)
        conv_rows(&rows)
        store_tile(y, VL, conv_at(out, part, lanes.channel, t), out.d, out.t, lanes.rows, n)
        t += n
    tile += n * VL                                      # its last W rows
    if few:
        conv_store_few(tile, VL, kept, state.d, lanes.rows, W)
    else:
        store_tile(tile, VL, kept, state.d, state.t, lanes.rows, W)


cdef void conv_step_task(void *args, ix i, Worker *worker) noexcept nogil:
    """Some batch items of one group of channels."""
    cdef const ConvStep *step = <const ConvStep *>args
    cdef const Conv *conv = &step.conv
    cdef real *scratch = <real *>worker.scratch
    cdef real *y = scratch + round_up((conv.taps + 1) * conv.width * VL, GL)
    cdef real *tile = y + conv_tile_size(CONV_CHUNK)
    cdef ConvGroup group
    cdef ConvLanes lanes
    cdef ConvPart part
    cdef ix first = i // conv.groups * step.items, b, v
    conv_set_group(conv, i % conv.groups, scratch, &group)
    for b in range(first, min(conv.batch, first + step.items)):
        part = conv_part(conv, b, 0, 0)
        for v in range(group.vectors):
            lanes = conv_lanes(&group, v)
            conv_step_lanes(step, &part, &lanes, tile, y)


cdef double conv_divide_step(ConvStep *step) noexcept:
    """Tasks by the size of the call; the seconds that it takes."""
    cdef Conv *conv = &step.conv
    cdef double seconds                                 # of a batch item of a group
    conv.apart = True                                   # a state must not be shifted twice
    conv_divide_channels(conv, VL, max(<ix>1, <ix>min(2048., 16384. / (conv.taps + 1)) // VL))
    seconds = 1e-9 * sizeof(real) / 4 * conv.width * VL * (
        2. * step.kept + conv.steps * (1 + 0.1 * conv.taps))
    step.items = max(<ix>1, <ix>(20e-6 / max(1e-9, seconds)))
    return seconds * conv.groups * conv.batch


cdef double conv_step_scratch(const ConvStep *step) noexcept:
    """Bytes of scratch of a thread."""
    cdef double K = step.conv.taps, W = step.kept
    cdef double reals = (K + 1) * step.conv.width * VL + (W + 2. * CONV_CHUNK) * VL + 8 * GL
    return reals * sizeof(real)
