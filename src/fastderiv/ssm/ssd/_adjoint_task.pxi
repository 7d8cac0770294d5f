# How the adjoint of the SSD scan (docs/derivations.md §6.4) is divided among tasks: a task takes a
# slice of the heads of one group through a range of the segments, `carry` heads at a time.
# Included by _kernels.pyx.
# needs: counted, data, refuse, run_with (_arrays.pxi)
# needs: Ssd, SSD_CHUNK, SsdCoefficient (ssd/_problem.pxi)
# needs: set_ssd_coefficient (ssd/_door.pxi)
# needs: ssd_add, SSD_MOST, SsdAdjoint, SsdBack, SsdChunkDecays, SsdTiles (ssd/_adjoint.pxi)
# needs: ssd_back_segment (ssd/_adjoint_sweeps.pxi)

cdef enum:
    SSD_SLICE = 6                       # heads of a slice, about
    SSD_CARRY = 6                       # heads that go through time together, at most
    SSD_WINDOW = 32                     # chunks of a window, at most
    SSD_RANGES = 32                     # of the segments, at most


cdef ix ssd_range_start(const SsdAdjoint *adj, ix i) noexcept nogil:
    """The first segment of range i: ranges have equally many segments, or about equally many packed
    steps."""
    cdef const ix *starts = adj.ssd.starts
    cdef ix low = 0, high = adj.ssd.segments, middle
    if starts is NULL or i == adj.ranges or i == 0:
        return i * adj.ssd.segments // adj.ranges
    while low < high:
        middle = (low + high) // 2
        if starts[middle] < i * (adj.ssd.steps // adj.ranges):
            low = middle + 1
        else:
            high = middle
    return low


# ---- memory of a task -------------------------------------------------------------------------

cdef struct SsdLayout:                  # where a task's tiles lie in its scratch
    double used                         # bytes
    char *base                          # or NULL, to count only


cdef real *ssd_tile_at(SsdLayout *layout, double reals) noexcept nogil:
    """A place for so many numbers, which begins at a multiple of 64 bytes."""
    cdef double at = layout.used
    layout.used += 64 * <double><ix>((reals * sizeof(real) + 63) / 64)
    return NULL if layout.base is NULL else <real *>(layout.base + <ix>at)


cdef double ssd_lay_out(const SsdAdjoint *adj, char *base, SsdTiles *tiles) noexcept nogil:
    """OUT tiles in the scratch at `base`, unless it is NULL; the bytes that they take."""
    cdef SsdLayout layout = SsdLayout(0, base)
    cdef double t = adj.most, state = adj.state
    cdef double tall = t * adj.p_row, deep = t * adj.n_row, square = t * adj.t_row
    cdef bint gate = adj.ssd.z.p is not NULL
    tiles.sums = <double *>ssd_tile_at(&layout, adj.carry * <double>adj.head_sums
                                       * (sizeof(double) // sizeof(real)))
    tiles.decays = <SsdChunkDecays *>ssd_tile_at(&layout, sizeof(SsdChunkDecays) / sizeof(real))
    tiles.G = ssd_tile_at(&layout, adj.carry * state)
    tiles.b, tiles.c = ssd_tile_at(&layout, deep), ssd_tile_at(&layout, deep)
    tiles.turned_c = ssd_tile_at(&layout, adj.deep * <double>adj.t_row)
    tiles.products, tiles.terms = ssd_tile_at(&layout, square), ssd_tile_at(&layout, square)
    tiles.dB, tiles.dC = ssd_tile_at(&layout, deep), ssd_tile_at(&layout, deep)
    tiles.x, tiles.e = ssd_tile_at(&layout, tall), ssd_tile_at(&layout, tall)
    tiles.past_e, tiles.dx = ssd_tile_at(&layout, tall), ssd_tile_at(&layout, tall)
    tiles.turned_e = ssd_tile_at(&layout, adj.wide * <double>adj.t_row)
    tiles.inner, tiles.mixing = ssd_tile_at(&layout, square), ssd_tile_at(&layout, square)
    tiles.turned_state = ssd_tile_at(&layout, adj.deep * <double>adj.p_row)
    tiles.far = ssd_tile_at(&layout, deep)
    tiles.z, tiles.y = ssd_tile_at(&layout, tall * gate), ssd_tile_at(&layout, tall * gate)
    tiles.dots = ssd_tile_at(&layout, t * GL)
    tiles.skip, tiles.dD = ssd_tile_at(&layout, adj.wide), ssd_tile_at(&layout, adj.wide)
    tiles.inside, tiles.to_y = ssd_tile_at(&layout, t), ssd_tile_at(&layout, t)
    tiles.to_end, tiles.own = ssd_tile_at(&layout, t), ssd_tile_at(&layout, t)
    tiles.H = ssd_tile_at(&layout, adj.carry * adj.places * state)
    tiles.starts = ssd_tile_at(&layout, adj.carry * adj.windows * state)
    return layout.used


# ---- tasks ------------------------------------------------------------------------------------

cdef void ssd_store_sums(SsdBack *back, ix range_) noexcept nogil:
    """OUT the sums of some heads over a range of the segments."""
    cdef const SsdAdjoint *adj = back.adj
    memcpy(adj.sums + (range_ * adj.ssd.heads + back.first) * adj.head_sums, back.tiles.sums,
           back.heads * adj.head_sums * sizeof(double))


cdef void ssd_aim(SsdBack *back, ix slice) noexcept nogil:
    """OUT back: where the terms of dB and dC of a slice go."""
    cdef const SsdAdjoint *adj = back.adj
    cdef ix size = adj.ssd.batch * adj.ssd.steps * adj.ssd.groups * adj.ssd.states
    back.dB, back.dC = adj.dB, adj.dC
    if slice > 0:
        back.dB.p = adj.shared_dB + (slice - 1) * size
        back.dC.p = adj.shared_dC + (slice - 1) * size


cdef void ssd_adjoint_task(void *args, ix i, Worker *worker) noexcept nogil:
    """A slice of the heads of one group through a range of the segments."""
    cdef const SsdAdjoint *adj = <const SsdAdjoint *>args
    cdef ix slice = i % adj.slices, j = i // adj.slices, range_ = j // adj.ssd.groups
    cdef ix size = adj.ssd.per_group, first, stop, segment
    cdef SsdBack back
    back.adj, back.worker, back.group = adj, worker, j % adj.ssd.groups
    ssd_lay_out(adj, <char *>worker.scratch, &back.tiles)
    memset(back.tiles.skip, 0, adj.wide * sizeof(real))
    ssd_aim(&back, slice)
    back.first = back.group * size + slice * size // adj.slices
    stop = back.group * size + (slice + 1) * size // adj.slices
    first = back.first
    while back.first < stop:
        back.heads, back.add = min(adj.carry, stop - back.first), back.first > first
        memset(back.tiles.sums, 0, back.heads * adj.head_sums * sizeof(double))
        for segment in range(ssd_range_start(adj, range_), ssd_range_start(adj, range_ + 1)):
            if interrupted(worker) or not ssd_back_segment(&back, segment):
                return
        ssd_store_sums(&back, range_)
        back.first += back.heads


cdef void ssd_join_task(void *args, ix i, Worker *worker) noexcept nogil:
    """Step i of all batch items as one: add what the slices but the first have to dB and dC."""
    cdef const SsdAdjoint *adj = <const SsdAdjoint *>args
    cdef ix row = adj.ssd.groups * adj.ssd.states, size = adj.ssd.batch * adj.ssd.steps * row
    cdef ix start = i * SSD_MOST * row, slice
    cdef ix count = min(SSD_MOST * row, size - start)
    for slice in range(adj.slices - 1):
        if interrupted(worker):
            return
        ssd_add(adj.shared_dB + slice * size + start, count, 1, count, adj.dB.p + start, count, 1)
        ssd_add(adj.shared_dC + slice * size + start, count, 1, count, adj.dC.p + start, count, 1)


# ---- dividing the work ------------------------------------------------------------------------

cdef double ssd_adjoint_seconds(const SsdAdjoint *adj) noexcept nogil:
    """What the adjoint will take on one thread."""
    cdef const Ssd *ssd = &adj.ssd
    cdef double products = 5. * adj.wide * adj.deep + SSD_CHUNK * (adj.wide + 64.)
    return 1e-9 * sizeof(real) / 4 * ssd.batch * (1. + ssd.steps) * ssd.heads * products / 40


cdef void ssd_divide_heads(SsdAdjoint *adj) noexcept nogil:
    """Slices and `carry`.  They depend on the sizes of a step alone, as the order of dB's and dC's
    sums does on them.  Shared rows take at most a sixth of inputs and outputs."""
    cdef const Ssd *ssd = &adj.ssd
    cdef double step = 3. * ssd.per_group * ssd.width + 4. * ssd.states     # numbers, of a group
    cdef ix most = 1 + <ix>(step / (12. * max(ssd.states, 1))), heads
    adj.slices = min(ceil_div(ssd.per_group, SSD_SLICE), most)
    if adj.slices == 1 and ssd.groups == 1 and ssd.per_group > 3:
        adj.slices = min(<ix>2, most)
    if adj.slices % 2 and adj.slices > 1 and ssd.groups % 2:        # two threads take equal parts
        adj.slices += 1 if adj.slices < most else -1
    heads = ceil_div(ssd.per_group, adj.slices)
    adj.carry = max(<ix>1, min(<ix>SSD_CARRY, (1 << 19) // max(<ix>1, adj.state)))
    adj.carry = max(<ix>1, ceil_div(heads, max(<ix>1, ceil_div(heads, adj.carry))))


cdef void ssd_divide_adjoint(SsdAdjoint *adj, ix longest) noexcept nogil:
    """Sizes of tiles and windows, slices and ranges, by the size of the call alone."""
    cdef const Ssd *ssd = &adj.ssd
    cdef ix chunks
    adj.wide, adj.deep = round_up(ssd.width, GL), round_up(ssd.states, GL)
    adj.most = min(<ix>SSD_MOST, round_up(longest, GL))
    if longest > SSD_MOST and ssd.starts is NULL:       # else short segments may be packed with it
        adj.most = SSD_CHUNK
    adj.p_row, adj.n_row, adj.t_row = adj.wide + GL, adj.deep + GL, adj.most + GL
    adj.state = adj.wide * adj.n_row
    ssd_divide_heads(adj)
    chunks = ceil_div(longest, SSD_CHUNK)
    adj.window = (1 << 21) // max(<ix>1, adj.carry * adj.state)
    adj.window = min(max(<ix>8, adj.window), <ix>SSD_WINDOW)
    adj.window = max(<ix>1, min(adj.window, chunks))
    if adj.kept is not NULL:
        adj.window = 1
    adj.places = adj.window | 1
    adj.windows = max(<ix>1, ceil_div(chunks, adj.window)) if adj.kept is NULL else 1
    # sums of a range take little memory beside its inputs
    adj.ranges = min(<ix>SSD_RANGES, 1 + ssd.batch * ssd.steps // SSD_CHUNK)
    adj.ranges = max(<ix>1, min(adj.ranges, ssd.segments))


# ---- for the door -----------------------------------------------------------------------------

cdef int set_ssd_gradient(const Ssd *ssd, cnp.ndarray a, SsdCoefficient *gradient) except -1:
    """OUT gradient: dB or dC, a (Bt, L, G, N)."""
    set_ssd_coefficient(ssd, a, True, gradient)
    if not cnp.PyArray_IS_C_CONTIGUOUS(a):
        refuse(a, "C-contiguous")
    return 0


cdef int run_ssd_adjoint(SsdAdjoint *adj, object dtype) except -1:
    """OUT dB and dC, and everything else."""
    cdef Ssd *ssd = &adj.ssd
    cdef SsdTiles tiles
    cdef double seconds = ssd_adjoint_seconds(adj)
    cdef double rows = <double>ssd.batch * ssd.steps * ssd.groups * ssd.states
    shape = adj.slices - 1, ssd.batch, ssd.steps, ssd.groups, ssd.states
    cdef cnp.ndarray shared_dB = empty("shared rows of dB", shape, dtype)
    cdef cnp.ndarray shared_dC = empty("shared rows of dC", shape, dtype)
    adj.shared_dB, adj.shared_dC = data(shared_dB), data(shared_dC)
    run_with(ssd_adjoint_task, adj, counted(<double>adj.ranges * ssd.groups * adj.slices),
             ssd_lay_out(adj, NULL, &tiles), seconds)
    if adj.slices > 1:
        run(ssd_join_task, adj, ceil_div(ssd.batch * ssd.steps, SSD_MOST), 0,
            0.3e-9 * rows * adj.slices)
    return 0
