# One step of the SSD recurrence (docs/derivations.md §6.5), as a decoder takes it.  Included by
# _kernels.pyx.
#
# A head's state is taken in blocks of rows: step.h advances them and leaves GL sums of each row,
# which are then added in adjacent pairs.  States that are not contiguous along N go through a tile.
# Every operation works on each row alone: the bits depend on no layout.
# needs: data, expect_array, refuse, stride (_arrays.pxi)
# needs: load_tile, store_tile (s6/_tiles.pxi)
# needs: Ssd, SsdCoefficient, SsdSignal, SsdState (ssd/_problem.pxi)
# needs: set_ssd_per_head (ssd/_door.pxi)

cdef extern from "ssd/step.h" nogil:
    ctypedef struct SsdStepRows:
        real *h
        ix row, states
        const real *b
        const real *c
        const real *dx
        real ratio, lost
        real *sums
        bint fresh
    void ssd_split_ratio(vf size, vf rate, vf *ratio, vf *lost)
    void ssd_step_rows(const SsdStepRows *rows, ix count)
    void ssd_step_add_lanes(const real *sums, real *y)
    void ssd_step_load_lanes(const real *p, ix stride, ix n, real *to)
    void ssd_step_store_lanes(const real *source, real *p, ix stride, ix n)

cdef enum:
    SSD_STEP_HEADS = 64                      # heads of a work_item, at most
    SSD_STEP_BLOCK = 4 * GL                  # rows of a block
    SSD_STEP_PIECE = 32                      # states of a tile, a multiple of GL
    SSD_STEP_FIXED = 3 * SSD_STEP_HEADS + SSD_STEP_BLOCK * (3 + GL + SSD_STEP_PIECE)

cdef struct SsdStep:
    Ssd ssd                             # its strides along time are 0
    SsdState state                      # as if a batch item were a segment
    ix per_item                         # heads of a work_item
    ix items                            # work_items of a batch item
    ix work_items, items_per_task

cdef struct SsdStepScratch:
    real *size                          # [head]: Δ
    real *ratio                         # [head]: ratio + lost = exp(ΔA)
    real *lost
    real *x                             # [p], and so on: of a block of rows
    real *dx                            # [p]: Δ·x
    real *y                             # [p]
    real *sums                          # [p, GL]
    real *tile                          # [p, SSD_STEP_PIECE]
    real *b                             # [N]: B and C, zero up to a multiple of GL
    real *c

cdef struct SsdStepBlock:               # up to SSD_STEP_BLOCK rows of a head
    ix batch, head, first, rows


cdef inline real *ssd_step_signal(const SsdSignal *signal,
                                  const SsdStepBlock *block) noexcept nogil:
    return signal.p + block.batch * signal.b + block.head * signal.h + block.first * signal.p_


# ---- heads ------------------------------------------------------------------------------------

cdef void ssd_step_heads(const Ssd *ssd, ix batch, ix head, ix n,
                         const SsdStepScratch *scratch) noexcept nogil:
    """OUT Δ and exp(ΔA) of n heads."""
    cdef const real *bias = NULL if ssd.bias.p is NULL else ssd.bias.p + head * ssd.bias.h
    cdef vf size, own, ratio, lost
    cdef ix i = 0
    ssd_step_load_lanes(ssd.dt.p + batch * ssd.dt.b + head * ssd.dt.h, ssd.dt.h, n, scratch.size)
    ssd_step_load_lanes(bias, ssd.bias.h, n, scratch.ratio)
    ssd_step_load_lanes(ssd.A.p + head * ssd.A.h, ssd.A.h, n, scratch.lost)
    while i < n:
        size = vload(scratch.size + i) + vload(scratch.ratio + i)
        if ssd.softplus:
            size = vsoftplus_slope(size, &own)          # the bits of ssd_step_sizes
        vstore(scratch.size + i, size)
        ssd_split_ratio(size, vload(scratch.lost + i) * vset1(LOG2E), &ratio, &lost)
        vstore(scratch.ratio + i, ratio)
        vstore(scratch.lost + i, lost)
        i += VL


cdef inline void ssd_step_coefficient(const SsdCoefficient *a, ix batch, ix group, ix n,
                                      real *to) noexcept nogil:
    """OUT to: B or C of a group, zero up to a multiple of GL."""
    memset(to + n - n % GL, 0, GL * sizeof(real))
    ssd_step_load_lanes(a.p + batch * a.b + group * a.g, a.n, n, to)


# ---- a block of rows --------------------------------------------------------------------------

cdef void ssd_start_rows(const Ssd *ssd, const SsdStepBlock *block, real size,
                         const SsdStepScratch *scratch) noexcept nogil:
    """1. OUT x and Δ·x."""
    cdef ix i = 0
    ssd_step_load_lanes(ssd_step_signal(&ssd.x, block), ssd.x.p_, block.rows, scratch.x)
    while i < block.rows:
        vstore(scratch.dx + i, vset1(size) * vload(scratch.x + i))
        i += VL


cdef void ssd_advance_rows(const SsdStep *step, const SsdStepBlock *block, SsdStepRows *rows,
                           const SsdStepScratch *scratch) noexcept nogil:
    """2. The new state; sums += h·C, by lanes."""
    cdef const SsdState *state = &step.state
    cdef ix n = 0, N = step.ssd.states
    cdef real *h = state.p + block.batch * state.s + block.head * state.h
    h += block.first * state.p_
    rows.fresh = True
    if state.n == 1 or N == 0:
        rows.h, rows.row, rows.states, rows.b, rows.c = h, state.p_, N, scratch.b, scratch.c
        ssd_step_rows(rows, block.rows)
        return
    rows.h, rows.row = scratch.tile, SSD_STEP_PIECE
    while n < N:
        rows.states = min(<ix>SSD_STEP_PIECE, N - n)
        rows.b, rows.c = scratch.b + n, scratch.c + n
        load_tile(h + n * state.n, state.n, state.p_, rows.states, block.rows, scratch.tile,
                  SSD_STEP_PIECE)
        ssd_step_rows(rows, block.rows)
        store_tile(scratch.tile, SSD_STEP_PIECE, h + n * state.n, state.n, state.p_, rows.states,
                   block.rows)
        rows.fresh = False
        n += SSD_STEP_PIECE


cdef void ssd_finish_rows(const Ssd *ssd, const SsdStepBlock *block,
                          const SsdStepScratch *scratch) noexcept nogil:
    """3. y = the sums of lanes; out = (y + D·x)·silu(z)."""
    cdef real *y = scratch.y
    cdef real *factor = scratch.dx
    cdef ix i = 0
    while i < block.rows:
        ssd_step_add_lanes(scratch.sums + i * GL, y + i)
        i += 4
    if ssd.D.p is not NULL:
        ssd_step_load_lanes(ssd.D.p + block.head * ssd.D.h + block.first * ssd.D.p_, ssd.D.p_,
                       block.rows, factor)
        i = 0
        while i < block.rows:
            vstore(y + i, vfma(vload(factor + i), vload(scratch.x + i), vload(y + i)))
            i += VL
    if ssd.z.p is not NULL:
        ssd_step_load_lanes(ssd_step_signal(&ssd.z, block), ssd.z.p_, block.rows, factor)
        i = 0
        while i < block.rows:
            vstore(y + i, vload(y + i) * vsilu(vload(factor + i)))
            i += VL
    ssd_step_store_lanes(y, ssd_step_signal(&ssd.y, block), ssd.y.p_, block.rows)


# ---- tasks ------------------------------------------------------------------------------------

cdef void ssd_step_head(const SsdStep *step, SsdStepBlock *block, SsdStepRows *rows, real size,
                        const SsdStepScratch *scratch) noexcept nogil:
    """All rows of a head."""
    cdef const Ssd *ssd = &step.ssd
    block.first = 0
    while block.first < ssd.width:
        block.rows = min(<ix>SSD_STEP_BLOCK, ssd.width - block.first)
        ssd_start_rows(ssd, block, size, scratch)
        ssd_advance_rows(step, block, rows, scratch)
        ssd_finish_rows(ssd, block, scratch)
        block.first += SSD_STEP_BLOCK


cdef void ssd_step_item(const SsdStep *step, ix batch, ix head, ix n,
                        const SsdStepScratch *scratch) noexcept nogil:
    """n heads of a batch item."""
    cdef const Ssd *ssd = &step.ssd
    cdef SsdStepBlock block
    cdef SsdStepRows rows
    cdef ix i
    block.batch, rows.sums, rows.dx = batch, scratch.sums, scratch.dx
    ssd_step_heads(ssd, batch, head, n, scratch)
    for i in range(n):
        block.head = head + i
        if i == 0 or block.head % ssd.per_group == 0:
            ssd_step_coefficient(&ssd.B, batch, block.head // ssd.per_group, ssd.states, scratch.b)
            ssd_step_coefficient(&ssd.C, batch, block.head // ssd.per_group, ssd.states, scratch.c)
        rows.ratio, rows.lost = scratch.ratio[i], scratch.lost[i]
        ssd_step_head(step, &block, &rows, scratch.size[i], scratch)


cdef void ssd_step_task(void *args, ix i, Worker *worker) noexcept nogil:
    """A few work_items."""
    cdef const SsdStep *step = <const SsdStep *>args
    cdef SsdStepScratch scratch
    cdef ix item, head
    scratch.size = <real *>worker.scratch
    scratch.ratio = scratch.size + SSD_STEP_HEADS
    scratch.lost = scratch.ratio + SSD_STEP_HEADS
    scratch.x = scratch.lost + SSD_STEP_HEADS
    scratch.dx = scratch.x + SSD_STEP_BLOCK
    scratch.y = scratch.dx + SSD_STEP_BLOCK
    scratch.sums = scratch.y + SSD_STEP_BLOCK
    scratch.tile = scratch.sums + SSD_STEP_BLOCK * GL
    scratch.b = scratch.tile + SSD_STEP_BLOCK * SSD_STEP_PIECE
    scratch.c = scratch.b + round_up(step.ssd.states + 1, GL)
    for item in range(i * step.items_per_task, min(step.work_items, (i + 1) * step.items_per_task)):
        head = item % step.items * step.per_item
        ssd_step_item(step, item // step.items, head, min(step.per_item, step.ssd.heads - head),
                      &scratch)


cdef double ssd_step_scratch(const Ssd *ssd) noexcept:
    """Bytes of scratch of a thread."""
    return (SSD_STEP_FIXED + 2. * GL + 2. * ssd.states) * sizeof(real)


cdef double divide_ssd_step(SsdStep *step) noexcept:
    """Work_items and tasks by the size of the call; the seconds that it takes."""
    cdef const Ssd *ssd = &step.ssd
    cdef double seconds = 20e-9 + ssd.width * (4e-9 + 0.08e-9 * sizeof(real) * ssd.states)
    step.per_item = max(1, <ix>min(<double>min(ssd.heads, <ix>SSD_STEP_HEADS), 20e-6 / seconds))
    step.items = ceil_div(ssd.heads, step.per_item)
    step.work_items = ssd.batch * step.items
    step.items_per_task = max(1, <ix>(20e-6 / (seconds * step.per_item)))
    return seconds * ssd.batch * ssd.heads


# ---- from arrays to the struct: as in _door.pxi, without time ---------------------------------

cdef int set_ssd_step_signal(cnp.ndarray a, int axes, const ix *shape, bint written,
                             SsdSignal *signal) except -1:
    """OUT signal: a (Bt, H, P), or (H, P), of which b is never used; or None."""
    signal.p = NULL
    if a is None:
        return 0
    expect_array(a, axes, shape, written)
    signal.p, signal.b, signal.t = data(a), stride(a, 0), 0
    signal.h, signal.p_ = stride(a, axes - 2), stride(a, axes - 1)
    return 0


cdef int set_ssd_step_coefficient(Ssd *ssd, cnp.ndarray a, int axes,
                                  SsdCoefficient *coefficient) except -1:
    """OUT coefficient: a (Bt, G, N), of so many `axes`, or (Bt, N), without Bt in a call that has
    none; the number of groups."""
    cdef bint grouped = cnp.PyArray_NDIM(a) == axes
    cdef int last = axes - 1 if grouped else axes - 2
    cdef ix shape[3]
    shape[0], shape[last], ssd.groups = ssd.batch, ssd.states, 1
    if grouped:
        ssd.groups = shape[last - 1] = cnp.PyArray_DIM(a, last - 1)
        if ssd.groups == 0 or ssd.heads % ssd.groups:
            refuse(a, (ssd.batch, "G", ssd.states))
    expect_array(a, last + 1, shape, False)
    coefficient.p, coefficient.b, coefficient.t = data(a), stride(a, 0), 0
    coefficient.g, coefficient.n = stride(a, last - 1) if grouped else 0, stride(a, last)
    return 0


cdef int set_ssd_step_coefficients(Ssd *ssd, cnp.ndarray B, cnp.ndarray C, int axes) except -1:
    """B and C, of the same groups."""
    cdef ix groups
    set_ssd_step_coefficient(ssd, B, axes, &ssd.B)
    groups = ssd.groups
    set_ssd_step_coefficient(ssd, C, axes, &ssd.C)
    if ssd.groups != groups:
        refuse(C, (ssd.batch, groups, ssd.states))
    ssd.per_group = ssd.heads // groups
    return 0


cdef int set_ssd_step_heads(Ssd *ssd, cnp.ndarray dt, cnp.ndarray A, int axes,
                            const ix *shape) except -1:
    """dt (Bt, H), or (H,), of so many `axes`; A (H,)."""
    expect_array(dt, axes, shape, False)
    ssd.dt.p, ssd.dt.b, ssd.dt.t, ssd.dt.h = data(dt), stride(dt, 0), 0, stride(dt, axes - 1)
    expect_array(A, 1, &ssd.heads, False)
    return set_ssd_per_head(ssd, A, &ssd.A)


cdef int set_ssd_step_state(SsdStep *step, cnp.ndarray h) except -1:
    """The sizes of a step, and its state (Bt, H, P, N) or (H, P, N), which is overwritten."""
    cdef int axes = cnp.PyArray_NDIM(h)
    cdef const ix *shape = <const ix *>cnp.PyArray_DIMS(h)
    cdef Ssd *ssd = &step.ssd
    if axes != 3 and axes != 4:
        refuse(h, ("batch", "H", "P", "N"))
    expect_array(h, axes, shape, True)
    ssd.batch = shape[0] if axes == 4 else 1
    ssd.heads, ssd.width, ssd.states = shape[axes - 3], shape[axes - 2], shape[axes - 1]
    step.state.p, step.state.s, step.state.h = data(h), stride(h, 0), stride(h, axes - 3)
    step.state.p_, step.state.n = stride(h, axes - 2), stride(h, axes - 1)
    return 0
