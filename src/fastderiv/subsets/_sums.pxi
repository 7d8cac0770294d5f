# The sums of all subsets of a row, written out one after the other (derivations §1.3).
# needs: LOW_BITS, PADDED_ROW (_kernels.pyx)
# needs: Call, entries (_call.pxi)
# needs: ascending, fill, LANE, plus, Scratch, Table, table_for, table_memory (_table.pxi)

cdef enum:
    # Results of this size or more bypass the caches.  It is about the size of the last-level cache.
    STREAM_BYTES = 32 << 20

cdef struct Sums:                       # the arguments of `sums`
    Call call                           # the result is (..., 2**bits)
    uint64_t first                      # the mask of the result's position 0: a multiple of 2**bits
    int bits
    int part_bits                       # a task writes 2**part_bits sums of a row at once
    bint stream                         # the stores bypass the caches
    bint packed                         # the result is contiguous and its rows fit into the table


cdef inline void store(real *p, vf v, const bint stream) noexcept nogil:
    if stream:
        vstream(p, v)
    else:
        vstore(p, v)


cdef inline void join_stores(const Table *t, real *out, const bint stream) noexcept nogil:
    """OUT out[h·lows + j] = low[j] + high[h].

    Every store writes one aligned vector, as a cache line written in two halves costs as much as
    two lines.  The vector that lies across two h is put together in a register; it needs a copy of
    the first VL low sums behind the last one."""
    cdef const real *low = t.low
    cdef const real *high = t.high
    cdef ix size = t.lows, highs = t.highs
    cdef ix head = min(size, (-<ix>(<uintptr_t>out // sizeof(real))) & (VL - 1))
    cdef ix h, j = head
    cdef vf c
    plus(low, high[0], head, out)
    for h in range(highs):
        c = vset1(high[h])
        j = head
        # Two vectors a turn: with one, a turn takes 1 or 1.5 cycles, depending on the address that
        # the linker gives the loop.
        while j + 2 * VL <= size:
            store(out + j, vload(low + j) + c, stream)
            store(out + j + VL, vload(low + j + VL) + c, stream)
            j += 2 * VL
        if j + VL <= size:
            store(out + j, vload(low + j) + c, stream)
            j += VL
        if j < size and h + 1 < highs:
            c = vsel_lt(vload(LANE), vset1(size - j), c, vset1(high[h + 1]))
            store(out + j, vload(low + j) + c, stream)
        out += size
    plus(low + j, high[highs - 1], size - j, out - size + j)
    if stream:
        vstream_end()


cdef inline void join(const Table *t, real *out, bint stream) noexcept nogil:
    if stream:
        join_stores(t, out, True)
    else:
        join_stores(t, out, False)


cdef inline void join_strided(const Table *t, char *out, ix stride) noexcept nogil:
    """As `join`, for a result whose sums lie `stride` bytes apart."""
    cdef const real *low = t.low
    cdef ix size = t.lows, h, j
    cdef real c
    for h in range(t.highs):
        c = t.high[h]
        j = 0
        while j + 2 <= size:
            (<real *>out)[0] = low[j] + c
            (<real *>(out + stride))[0] = low[j + 1] + c
            out += 2 * stride
            j += 2
        if j < size:
            (<real *>out)[0] = low[j] + c
            out += stride


cdef inline void sums_from(const Sums *a, const real *x, uint64_t first, char *out,
                           Scratch *s) noexcept nogil:
    """IN x (PADDED_ROW,); OUT out (2**part_bits,) = the sums of the masks from `first` on."""
    cdef Table t = table_for(a.part_bits, s, out)
    cdef ix stride = a.call.out.strides[a.call.rows.leading]
    fill(&t, x, a.part_bits, first)
    if stride != sizeof(real):
        join_strided(&t, out, stride)
        return
    plus(t.low, 0, VL, t.low + t.lows)
    join(&t, <real *>out, a.stream)


cdef inline void packed_rows(const Sums *a, ix row, ix count, real *x, Scratch *s) noexcept nogil:
    """OUT the sums of `count` rows from `row` on, which the table holds together.

    x (PADDED_ROW,) takes one row after the other; its numbers behind the row are 0."""
    cdef char *out = a.call.out.data + (row << a.bits) * <ix>sizeof(real)
    cdef Table t
    cdef ix k
    t.low, t.high = table_memory(s, out), s.high
    t.lows, t.highs = count << a.bits, 1
    for k in range(count):
        entries(&a.call, row + k, x)
        # a row shorter than a vector writes a whole one; the next row overwrites what is too much
        ascending(x, a.bits, 0, t.low + (k << a.bits))
    t.high[0] = 0
    join(&t, <real *>out, a.stream)


cdef void sums_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef const Sums *a = <const Sums *>args
    cdef const Rows *rows = &a.call.rows
    cdef Scratch *s = <Scratch *>worker.scratch
    cdef real x[PADDED_ROW]
    cdef ix row = i // rows.parts * rows.per_task, start = (i % rows.parts) << a.part_bits
    cdef ix end = min(rows.count, row + rows.per_task), count
    cdef ix stride = a.call.out.strides[rows.leading]
    memset(x, 0, sizeof(x))
    if a.packed:
        while row < end:
            count = min(end - row, <ix>1 << (LOW_BITS - a.bits))
            packed_rows(a, row, count, x, s)
            row += count
        return
    for row in range(row, end):
        entries(&a.call, row, x)
        sums_from(a, x, a.first + start, row_start(rows, &a.call.out, row) + start * stride, s)
