# How the SSD scan forward is divided among tasks, and what a task does (docs/derivations.md §6.1).
# Included by _kernels.pyx.
# needs: Ssd, ssd_segment (ssd/_problem.pxi)
# needs: SsdCarry (ssd/_scan_decays.pxi)
# needs: ssd_panel, ssd_panels (ssd/_scan_rows.pxi)
# needs: ssd_rows_of_state, ssd_scan_heads, SSD_TB, SsdScan, SsdWork (ssd/_scan.pxi)
# needs: ssd_scan_short, ssd_short_size, ssd_short_steps (ssd/_scan_short.pxi)

cdef double SSD_TASK = 250e-6           # seconds that a task should take: as long as is worth a thread

cdef enum:
    SSD_HEADS = 8                       # of a task whose states are all in scratch


cdef ix ssd_parts(const SsdScan *scan, double seconds) noexcept nogil:
    """Into how many parts the heads of a group are divided, of which each takes `seconds`."""
    cdef const Ssd *ssd = &scan.ssd
    cdef double most = max(1., SSD_TASK / seconds)
    if scan.all_short:                  # C·Bᵀ, which each part computes, is at most a quarter of it
        most = max(most, 4. * ssd.states / ssd.width)
    else:
        most = min(most, <double>SSD_HEADS)
    return ceil_div(ssd.per_group, max(<ix>1, <ix>min(most, <double>ssd.per_group)))


cdef double ssd_work_size(const SsdScan *scan, ix count) noexcept nogil:
    """Scratch of a work_item of `count` heads but for one chunk, in reals."""
    cdef const Ssd *ssd = &scan.ssd
    cdef double rows = ssd_rows_of_state(ssd), width = ssd_panel(ssd)
    cdef double steps = max(<ix>SSD_TB, scan.short)
    cdef double states = rows * width * ssd_panels(ssd) * (1 if scan.all_short else count)
    cdef double carries = ceil_div(count * sizeof(SsdCarry), sizeof(real))
    cdef double decays = 5 * steps + steps * sizeof(ix) / sizeof(real)
    return 3 * SSD_TB * width + width + 2 * SSD_TB * rows + states + carries + decays + 16 * GL


cdef real *ssd_lend(real **free_, double count) noexcept nogil:
    """`count` numbers of the scratch, on a line of their own."""
    cdef real *lent = free_[0]
    free_[0] += round_up(<ix>count, GL)
    return lent


cdef real *ssd_set_up_work(const SsdScan *scan, ix count, Worker *worker,
                           SsdWork *work) noexcept nogil:
    """Scratch of a work_item of at most `count` heads.  Returns what is left of it."""
    cdef const Ssd *ssd = &scan.ssd
    cdef ix rows = ssd_rows_of_state(ssd), width = ssd_panel(ssd)
    cdef ix steps = round_up(max(<ix>SSD_TB, scan.short), VL)
    cdef real *free_ = <real *>worker.scratch
    work.worker, work.careful = worker, False
    work.carry = <SsdCarry *>ssd_lend(&free_, ceil_div(count * sizeof(SsdCarry), sizeof(real)))
    work.decays.end = <ix *>ssd_lend(&free_, steps * sizeof(ix) // sizeof(real))
    work.decays.dt = ssd_lend(&free_, steps)
    work.decays.P = ssd_lend(&free_, steps)
    work.decays.factor = ssd_lend(&free_, steps)
    work.decays.ratio = ssd_lend(&free_, steps)
    work.decays.rest = ssd_lend(&free_, steps)
    work.x = ssd_lend(&free_, SSD_TB * width)
    work.y = ssd_lend(&free_, SSD_TB * width)
    work.z = ssd_lend(&free_, SSD_TB * width)
    work.skip = ssd_lend(&free_, width)
    work.packed = ssd_lend(&free_, 2 * SSD_TB * rows)
    if scan.all_short:                  # then states are those of one head at a time
        count = 1
    work.states = ssd_lend(&free_, <double>count * rows * width * ssd_panels(ssd))
    return free_


cdef bint ssd_scan_work(const SsdScan *scan, SsdWork *work, real *scratch) noexcept nogil:
    """The heads of `work` through its segment; False if interrupted.

    A head whose sums overflowed, or that is not finite, runs once more without scale: what is not
    finite then is so by the recurrence itself, and only from the step on where it becomes so.
    """
    cdef ix head, first = work.first, count = work.count
    if 0 < work.segment.stop - work.segment.start <= scan.short:
        if not ssd_scan_short(scan, work, scratch):
            return False
    elif not ssd_scan_heads(scan, work):
        return False
    for head in range(first, first + count):
        if work.carry[head - first].wrong:
            work.first, work.count, work.careful = head, 1, True
            work.carry += head - first
            if not ssd_scan_heads(scan, work):
                return False
            work.carry -= head - first
    work.first, work.count, work.careful = first, count, False
    return True


cdef void ssd_scan_task(void *args, ix i, Worker *worker) noexcept nogil:
    """A few work_items: parts of the heads of a group, in a segment."""
    cdef const SsdScan *scan = <const SsdScan *>args
    cdef const Ssd *ssd = &scan.ssd
    cdef ix each = ceil_div(ssd.per_group, scan.parts), item, part
    cdef SsdWork work
    cdef real *rest = ssd_set_up_work(scan, each, worker, &work)
    for item in range(i * scan.items_per_task, min(scan.work_items, (i + 1) * scan.items_per_task)):
        part = item % scan.parts
        work.group = item // scan.parts % ssd.groups
        work.number = item // scan.parts // ssd.groups
        work.segment = ssd_segment(ssd, work.number)
        work.first = part * each
        work.count = min(each, ssd.per_group - work.first)
        work.first += work.group * ssd.per_group
        if work.count > 0 and not ssd_scan_work(scan, &work, rest):
            return


cdef double ssd_divide_scan(SsdScan *scan) noexcept nogil:
    """Parts and tasks by the size of the call; the seconds that it will take."""
    cdef const Ssd *ssd = &scan.ssd
    cdef double steps = ssd.steps * (1. if ssd.starts is NULL else 1. / ssd.segments)
    cdef double state = <double>ssd.width * ssd.states
    cdef double products = steps * (2 * state + 40. * ssd.width) + 2 * state    # of a head
    cdef double seconds
    scan.short = min(ssd_short_steps(ssd), ssd.steps)
    scan.all_short = ssd.starts is NULL and 0 < ssd.steps <= scan.short
    if steps <= scan.short:
        products = steps * ssd.width * (steps / 2 + 40)
        if ssd.last_state.p is not NULL or scan.kept is not NULL:
            products += steps * state + 2 * state
    seconds = 0.3e-6 + products * 0.3e-9 / VL
    scan.parts = ssd_parts(scan, seconds)
    scan.items_per_task = max(1, <ix>(20e-6 / seconds / ceil_div(ssd.per_group, scan.parts)))
    return seconds * ssd.segments * ssd.heads


cdef double ssd_scan_scratch(const SsdScan *scan) noexcept nogil:
    """Bytes of scratch of a thread."""
    cdef ix each = ceil_div(scan.ssd.per_group, scan.parts)
    return (ssd_work_size(scan, each) + ssd_short_size(&scan.ssd, scan.short)) * sizeof(real)
