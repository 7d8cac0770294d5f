# A call as structs: its arrays, how its channels and segments are divided among tasks, and what a
# task carries through time (docs/derivations.md §1.1).  Included by _kernels.pyx.

cdef enum:
    TB = 128                            # steps in a block
    INTERVAL = 32                       # steps between checkpoints: what the adjoint keeps of so
                                        # many steps fits into the first-level cache
    INTERVALS = 4                       # of a block
    SIGNALS = 3                         # that a checksum is taken of: delta, u and z, in this order
    MANY = 4096                         # states between two looks for signals, a multiple of 4


# ---- arrays -----------------------------------------------------------------------------------

cdef struct Signal:                     # u, delta, z, out (Bt, D, L): strides in elements
    real *p
    ix b, d, t

cdef struct Coefficient:                # B or C
    real *p
    ix b, g, n, t                       # strides of (D, N) if constant, g of D; else (Bt, G, N, L)
    ix channels                         # in a channel_group
    bint constant
    bint gather                         # whether every block is copied: its rows are not contiguous

cdef struct State:                      # initial or last state (segments, D, N)
    real *p
    ix s, d, n

cdef struct PerChannel:                 # D or delta_bias (D,)
    real *p
    ix d

cdef struct Remembered:                 # states that a scan keeps for its adjoint
    real *p                             # see `remembered_at`; NULL if none are kept
    ix span                             # steps from one to the next
    ix count                            # of a channel of a batch item
    uint64_t *sums                      # (tasks, SIGNALS): checksums; NULL if none are taken


# ---- the division of channels -----------------------------------------------------------------

cdef struct ChannelBlocks:              # each lies within one channel_group
    ix channels
    ix group                            # channels of a channel_group
    ix carry                            # Lanes of a channel_block, at most
    ix count                            # channel_blocks


cdef ix divide_channels(ChannelBlocks *blocks, ix carry) noexcept nogil:
    """Form channel_blocks of at most `carry` Lanes; their number."""
    blocks.carry = carry
    blocks.count = blocks.channels // blocks.group * ceil_div(blocks.group, carry * VL)
    return blocks.count


cdef ix first_channel(const ChannelBlocks *blocks, ix number) noexcept nogil:
    """The first channel of a channel_block."""
    cdef ix per_group = ceil_div(blocks.group, blocks.carry * VL)
    return number // per_group * blocks.group + number % per_group * blocks.carry * VL


cdef ix end_channel(const ChannelBlocks *blocks, ix channel) noexcept nogil:
    """The channel behind the channel_block that begins at `channel`."""
    return min(channel + blocks.carry * VL, (channel // blocks.group + 1) * blocks.group)


# ---- a call -----------------------------------------------------------------------------------

cdef struct Scan:
    Signal u, delta, z, out
    Coefficient B, C
    State initial_state, last_state
    real *A                             # (D, N)
    ix A_d, A_n
    PerChannel D, bias
    Remembered remembered
    bint softplus
    const ix *starts                    # of packed segments; NULL: one segment a batch item
    ix batch, segments, channels, states, steps
    ix block                            # steps of a block, at most TB
    ChannelBlocks blocks
    ix work_items                       # one channel_block of one segment each
    ix items_per_task

cdef struct Segment:                    # the steps start … stop−1 of a batch item
    ix batch, start, stop


cdef Segment segment_of(const Scan *scan, ix number) noexcept nogil:
    cdef Segment segment
    if scan.starts is NULL:
        segment.batch, segment.start, segment.stop = number, 0, scan.steps
    else:
        segment.batch, segment.start = 0, scan.starts[number]
        segment.stop = scan.starts[number + 1]
    return segment


# ---- what a task works on ---------------------------------------------------------------------

cdef struct Lanes:                      # VL neighbouring channels and their state, in scratch
    real *a                             # [N, lane]: A·log2(e)
    real *h                             # [N, lane]
    real *before                        # [N, lane]: h at the start of the block
    real *b                             # [N, lane]: constant B
    real *c                             # [N, lane]: constant C
    real *limits                        # [lane]: max |A| log2(e), NaN if any is not finite
    real *D                             # [lane]
    real *bias                          # [lane]
    ix channel, rows                    # the first channel, and how many lanes have one
    bint finite                         # whether all of h is finite
    uint64_t *sums                      # (SIGNALS,) of the task; NULL if none are taken
    Worker *worker                      # the thread at work, which is told to stop

cdef struct Block:                      # steps start … start+steps−1 of a batch item
    ix batch, start, steps
    ix after                            # where the block begins that is prefetched meanwhile

cdef struct CoefficientRows:            # B or C over a block
    const real *p                       # [N, time]; [N, lane] if constant
    ix row                              # from one row to the next
    bint constant

cdef struct ChannelBlock:               # the Lanes of a work_item, and the scratch that they share
    Lanes *lanes
    ix count
    real *gathered                      # B and C of a block, where they are copied
    real *tiles
    uint64_t *sums                      # as in Lanes
    Worker *worker
