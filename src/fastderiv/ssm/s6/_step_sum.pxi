# Sums of step sizes, Σ Δ of a channel, from which the product of a chunk's transitions follows
# (docs/derivations.md §1.7: P = exp(A·ΣΔ)).  Included by _kernels.pyx.
# needs: Block, end_channel, first_channel, Lanes, Scan, Segment, segment_of, TB (s6/_problem.pxi)
# needs: copy, load_signal, TILE (s6/_tiles.pxi)
# needs: block_at (s6/_scan.pxi)

cdef struct Sum:                        # compensated: the errors of equal steps would add up
    double value, lost


cdef inline void accumulate(Sum *sum, double x) noexcept nogil:
    cdef double value = sum.value + x, added = value - sum.value
    sum.lost += (sum.value - (value - added)) + (x - added)
    sum.value = value


cdef inline double sum_of(const Sum *sum) noexcept nogil:
    return sum.value + sum.lost if isfinite(sum.lost) else sum.value


cdef struct StepSum:
    Scan scan                           # of which delta, bias, softplus and sizes are set
    real *total                         # (Bt, D), contiguous


cdef void step_sum_block(const Scan *scan, const Lanes *lanes, const Block *block, real *tiles,
                         Sum *total) noexcept nogil:
    """total[lane] += Σ Δ of a block: eight steps in `real`, the rest compensated in float64."""
    cdef real *dt = tiles
    cdef vf bias = vload(lanes.bias), d, sum = vset1(0)
    cdef ix t, lane
    load_signal(&scan.delta, lanes, block, dt)
    for t in range(block.steps):
        d = vload(dt + t * VL) + bias
        sum = sum + (vsoftplus(d) if scan.softplus else d)
        if t % 8 == 7 or t == block.steps - 1:
            vstore(dt, sum)
            sum = vset1(0)
            for lane in range(VL):
                accumulate(&total[lane], dt[lane])


cdef void step_sum_task(void *args, ix i, Worker *worker) noexcept nogil:
    """Σ Δ of the channels of one Lanes in one batch item."""
    cdef const StepSum *sums = <const StepSum *>args
    cdef const Scan *scan = &sums.scan
    cdef Segment segment = segment_of(scan, i // scan.blocks.count)
    cdef Sum total[GL]
    cdef Lanes lanes
    cdef Block block
    cdef ix t = 0, lane
    cdef real *tile = <real *>worker.scratch
    cdef real *to = sums.total + segment.batch * scan.channels
    lanes.channel, lanes.bias = first_channel(&scan.blocks, i % scan.blocks.count), tile + TILE
    lanes.rows = end_channel(&scan.blocks, lanes.channel) - lanes.channel
    memset(lanes.bias, 0, VL * sizeof(real))
    memset(total, 0, sizeof(total))
    if scan.bias.p is not NULL:
        copy(scan.bias.p + lanes.channel * scan.bias.d, scan.bias.d, lanes.bias, 1, lanes.rows)
    while t < scan.steps:
        if interrupted(worker):
            return
        block = block_at(&segment, t, TB)
        step_sum_block(scan, &lanes, &block, tile, total)
        t += TB
    to += lanes.channel
    for lane in range(lanes.rows):
        to[lane] = <real>sum_of(&total[lane])
