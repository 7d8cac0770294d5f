# log Σ_S exp(Σ_{i∈S} x_i) over all subsets S, by enumeration (derivations §1.3).
# All exponentials are taken relative to the largest subset sum, so that none overflows.
# needs: LOW_BITS, PADDED_ROW, TASK_BITS (_kernels.pyx)
# needs: Call, entries (_call.pxi)
# needs: fill, LANE, Scratch, Table, table_for (_table.pxi)

cdef struct Enumerated:                 # the arguments of `enumerate_rows` and `enumerate_masks`
    Call call                           # of enumerate_rows: the result is (...)
    uint64_t first                      # of enumerate_masks: its first mask
    double *partial                     # of enumerate_masks: (tasks,); NULL in enumerate_rows


cdef inline real peak_of(const real *x, ix n) noexcept nogil:
    """The largest subset sum of x (n,), to the bit.

    It is that of the positive entries, as rounding is monotone.  NaN and +inf in x are in the sum
    too; −inf is not."""
    cdef real low = 0, high = 0
    cdef ix i
    for i in range(n):
        # a conditional expression becomes one instruction; branches on signs are hard to predict
        if i < LOW_BITS:
            low += 0 if 0 > x[i] else x[i]
        else:
            high += 0 if 0 > x[i] else x[i]
    return low + high


cdef inline vf exp_terms(const real *low, vf c, const bint near) noexcept nogil:
    """exp(low + c), VL of them."""
    cdef vf z = vload(low) + c
    return vexp2_safe(z, vset1(LOG2E)) if near else vexp2_neg(z, vset1(LOG2E))


cdef inline real exp_total(const real *low, ix size, real c, real start,
                           const bint near) noexcept nogil:
    """start + Σ_j exp(low[j] + c), j < size; `near` promises that no term underflows.

    Each lane of a logical group has its own sum, and even and odd groups have theirs: with one
    chain of additions x86-64-v3 took 1.5 times as long in float32."""
    cdef real group[GL]
    cdef ix first = 0, j
    cdef vf even, odd
    while first < GL:
        # `start` enters in lane 0 of the group
        even = vsel_lt(vload(LANE), vset1(1 - first), vset1(start), vset1(0))
        odd = vset1(0)
        j = first
        while j + GL < size:
            even = even + exp_terms(low + j, vset1(c), near)
            odd = odd + exp_terms(low + j + GL, vset1(c), near)
            j += 2 * GL
        if size <= GL:
            even = even + exp_terms(low + j, vset1(c), near)
        vstore(group + first, even + odd)
        first += VL
    if size < GL:
        memset(group + size, 0, (GL - size) * sizeof(real))
    return gsum(group)


cdef inline double exp_sums(const real *x, uint64_t first, int bits, real peak,
                            Scratch *s) noexcept nogil:
    """Σ exp(sum − peak) over the 2**bits masks from `first` on, less 1 if the empty subset is one
    of them.  `first` is 0 where bits < LOW_BITS, and else a multiple of 2**LOW_BITS.

    The 1 is subtracted before anything is added.  If no entry is positive, the peak is 0 and that 1
    is the term of the empty subset, so that the rest keeps its digits however small it is.
    Otherwise the whole sum is at least 1 and loses nothing."""
    cdef Table t = table_for(bits, s, NULL)
    cdef real least = 0, c, start
    cdef double total = 0
    cdef ix h, i
    memset(t.low, 0, GL * sizeof(real))     # a short table ends within a group, which is read whole
    fill(&t, x, bits, first)
    for i in range(LOW_BITS):
        least += x[i] if x[i] < 0 else 0    # no low sum is smaller
    for h in range(t.highs):
        c = t.high[h] - peak
        start = -1 if first == 0 and h == 0 else 0
        if (least + c) * LOG2E > -EXP2_SAFE:
            total += exp_total(t.low, t.lows, c, start, True)
        else:
            total += exp_total(t.low, t.lows, c, start, False)
    return total


cdef inline real log_of_sum(const real *x, ix n, Scratch *s) noexcept nogil:
    """log Σ_S exp(Σ_{i∈S} x_i) of x (n,), n <= TASK_BITS.  A peak of NaN or inf is the result."""
    cdef real peak = peak_of(x, n)
    if peak - peak == 0:
        peak = <real>(peak + log1p(exp_sums(x, 0, <int>n, peak, s)))
    return peak


cdef void rows_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef const Enumerated *a = <const Enumerated *>args
    cdef const Rows *rows = &a.call.rows
    cdef real x[PADDED_ROW]
    cdef ix row
    cdef real *out
    memset(x, 0, sizeof(x))
    for row in range(i * rows.per_task, min(rows.count, (i + 1) * rows.per_task)):
        entries(&a.call, row, x)
        out = <real *>row_start(rows, &a.call.out, row)
        out[0] = log_of_sum(x, rows.entries, <Scratch *>worker.scratch)


cdef void masks_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef const Enumerated *a = <const Enumerated *>args
    cdef real x[PADDED_ROW]
    cdef uint64_t first = a.first + (<uint64_t>i << TASK_BITS)
    cdef real peak
    memset(x, 0, sizeof(x))
    entries(&a.call, 0, x)
    peak = peak_of(x, a.call.rows.entries)
    a.partial[i] = exp_sums(x, first, TASK_BITS, peak, <Scratch *>worker.scratch)
