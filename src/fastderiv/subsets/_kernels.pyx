"""Sums over the subsets of a row x (n,): bit i of a mask says whether x[i] is in the subset.  derivations §1, the theorem.

The bits of a subset sum do not depend on blocks, CPU level or threads: it is low + high, low the ascending sum of the
chosen x[i], i < K, high that of the others.  The 2**K low sums of a row are a table that stays in the first-level cache.
"""
from libc.math cimport log1p
from libc.stdint cimport uint64_t, uintptr_t
from libc.string cimport memset
cimport numpy as cnp
from fastderiv._core.simd cimport (EXP2_SAFE, GL, LOG2E, VL, gsum, ix, real, vexp2_neg, vexp2_safe, vf, vload, vsel_lt, vset1,
                                   vsoftplus, vstore, vstream, vstream_end)
from fastderiv._core.threads cimport Worker, run

cnp.import_array()

cdef extern from *:
    """
    enum { LOG_VL = VL == 16 ? 4 : VL == 8 ? 3 : VL == 4 ? 2 : VL == 2 ? 1 : 0 };
    static const real LANE[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    static const real LANE_BIT[4][16] = {                   /* bit i of the lane's number */
        {0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1}, {0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1},
        {0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1}, {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}};
    """
    enum: LOG_VL
    const real LANE[16]
    const real LANE_BIT[4][16]

cdef enum:
    K = 10                              # bits of the low table: part of the definition of the bits
    CHUNK_BITS = 18                     # subsets of one task, about 0.1 ms
    MAX_N = 62
    MAX_AXES = 64                       # of NumPy's arrays
    ROW = MAX_N + K + 16                # a row with zeros behind it: what first_sums may read
    PIECE = 16384                       # entries of one task of the closed form
    BUFFER = 1024                       # entries of it at a time, a multiple of GL
    STREAM = 32 << 20                   # bytes of a result that bypasses the caches: about the size of the last of them

cdef struct Scratch:                    # of one task
    char low[(8 << K) + 4096 + 128]     # the table, wherever `low_table` puts it
    real high[(1 << (CHUNK_BITS - K)) + 16]

cdef struct Rows:                       # x (..., n) and a result (..., m) or (...), any strides
    const char *x
    char *out
    int nd                              # leading axes
    cnp.npy_intp shape[MAX_AXES]        # copies: another thread may give the arrays other shapes
    cnp.npy_intp xs[MAX_AXES]           # strides in bytes
    cnp.npy_intp os[MAX_AXES]
    ix rows, n, per, parts              # a task does `per` rows, or one of `parts` of a row

cdef struct Sums:
    Rows r
    uint64_t first                      # mask of the result's position 0, a multiple of 2**bits
    int bits                            # OUT (..., 2**bits)
    int part_bits                       # a part is 2**part_bits of them
    bint stream                         # the result is large and contiguous along its last axis
    bint packed                         # rows lie one behind the other, each of them whole and within the table

cdef struct Closed:
    Rows r
    double *partial                     # (rows, parts)

cdef struct Enumerated:
    Rows r
    uint64_t first
    double *partial                     # (parts,): NULL if a task finishes rows itself


# ---- rows of any strides -------------------------------------------------------------------------------------------------
cdef int expect_array(cnp.ndarray a) except -1:
    """A mistake in Python must not become a read of foreign memory: a TypeError unless kernels of this
    type can read `a`."""
    if not (cnp.PyArray_ISFLOAT(a) and cnp.PyArray_ITEMSIZE(a) == sizeof(real)
            and cnp.PyArray_ISBEHAVED_RO(a)):
        raise TypeError(f"a kernel for {8 * sizeof(real)}-bit numbers was handed an array of dtype "
                        f"{a.dtype}, or one not aligned")
    return 0


cdef int expect_partial(cnp.ndarray a, ix size) except -1:
    """So many float64, contiguous."""
    if (cnp.PyArray_TYPE(a) != cnp.NPY_FLOAT64 or not cnp.PyArray_ISCARRAY(a)
            or cnp.PyArray_SIZE(a) != size):
        raise TypeError(f"a kernel was handed {(<object>a).shape} {a.dtype} for partial sums; "
                        f"expected {size} contiguous float64")
    return 0


cdef int expect_leading(cnp.ndarray x, cnp.ndarray out, int axes) except -1:
    """`out` writeable, of so many axes, the leading ones as x has them."""
    cdef int axis, leading = cnp.PyArray_NDIM(x) - 1
    cdef bint good = cnp.PyArray_NDIM(out) == axes and cnp.PyArray_ISWRITEABLE(out)
    expect_array(out)
    for axis in range(leading if good else 0):
        good = good and cnp.PyArray_DIM(x, axis) == cnp.PyArray_DIM(out, axis)
    return 0 if good else refuse(x, out)


cdef int refuse(cnp.ndarray x, cnp.ndarray out) except -1:
    raise TypeError(f"a kernel was handed x {(<object>x).shape} and out {(<object>out).shape}, "
                    "which do not fit")


cdef int rows_of(Rows *r, cnp.ndarray x, cnp.ndarray out) except -1:
    """How x and a result lie.  The product of the leading axes fits, as NumPy's own size does."""
    cdef int axis
    expect_array(x)
    if cnp.PyArray_NDIM(x) < 1:
        raise TypeError("a kernel was handed x without axes")
    r.x, r.out = <const char *>cnp.PyArray_DATA(x), <char *>cnp.PyArray_DATA(out)
    for axis in range(cnp.PyArray_NDIM(x)):
        r.shape[axis], r.xs[axis] = cnp.PyArray_DIM(x, axis), cnp.PyArray_STRIDE(x, axis)
    for axis in range(cnp.PyArray_NDIM(out)):
        r.os[axis] = cnp.PyArray_STRIDE(out, axis)
    r.nd, r.rows, r.per, r.parts = cnp.PyArray_NDIM(x) - 1, 1, 1, 1
    r.n = r.shape[r.nd]
    for axis in range(r.nd):
        r.rows *= r.shape[axis]
    return 0


cdef inline ix offset(const Rows *r, ix row, const cnp.npy_intp *strides) noexcept nogil:
    """Bytes from the first row to this one."""
    cdef ix bytes = 0
    cdef int axis = r.nd - 1
    while axis > 0:
        bytes += row % r.shape[axis] * strides[axis]
        row //= r.shape[axis]
        axis -= 1
    return bytes + row * strides[0] if r.nd else 0


cdef inline void gather(const Rows *r, ix row, ix first, ix n, real *x) noexcept nogil:
    """OUT x (n,) = entries first … first + n − 1 of the row."""
    cdef const char *source = r.x + offset(r, row, r.xs) + first * r.xs[r.nd]
    cdef ix i
    for i in range(n):
        x[i] = (<const real *>(source + i * r.xs[r.nd]))[0]


# ---- the sums ------------------------------------------------------------------------------------------------------------
cdef inline void plus(const real *t, real c, ix size, real *out) noexcept nogil:
    """OUT out (size,) = t + c; out may be t."""
    cdef ix j = 0
    while j + VL <= size:
        vstore(out + j, vload(t + j) + vset1(c))
        j += VL
    while j < size:
        out[j] = t[j] + c
        j += 1


cdef inline vf first_sums(const real *x) noexcept nogil:
    """The ascending sums of x (LOG_VL,), lane = mask.  Built in a register: rows of few entries are done with it."""
    cdef vf sums = vset1(0)
    cdef int i
    for i in range(LOG_VL):
        sums = sums + vsel_lt(vset1(0), vload(&LANE_BIT[i][0]), vset1(x[i]), vset1(0))
    return sums


cdef inline void ascending(const real *x, int bits, uint64_t fixed, real *t) noexcept nogil:
    """OUT t (2**bits,), room for VL: the ascending sums of x over the masks j | fixed; fixed has only bits above `bits`."""
    cdef int i = bits
    cdef ix size = max(<ix>VL, <ix>1 << bits)
    vstore(t, first_sums(x))
    for i in range(LOG_VL, bits):
        plus(t, x[i], <ix>1 << i, t + (<ix>1 << i))
    i = bits
    while fixed >> i:
        if fixed >> i & 1:
            plus(t, x[i], size, t)
        i += 1


cdef inline real *low_table(Scratch *s, const char *out) noexcept nogil:
    """Where to put the table: aligned like `out` to a cache line, and half a page off, lest its loads wait for stores that
    only look as if they were to the same address."""
    cdef uintptr_t base = <uintptr_t>s.low
    return <real *>(base + ((<uintptr_t>out + 2048 - base) & 4095))


cdef inline void store(real *p, vf v, const bint stream) noexcept nogil:
    if stream:
        vstream(p, v)
    else:
        vstore(p, v)


cdef inline void join(const real *low, ix size, const real *high, ix highs, real *out, const bint stream) noexcept nogil:
    """OUT out[h·size + j] = low[j] + high[h], past the caches or not.  Every store is of one aligned vector, put together in
    a register where it lies across two h: a line written in two halves costs as much as two.  low is followed by a copy of
    its first VL entries."""
    cdef ix head = min(size, (-<ix>(<uintptr_t>out // sizeof(real))) & (VL - 1))
    cdef ix h, j = head
    cdef vf c
    plus(low, high[0], head, out)
    for h in range(highs):
        c = vset1(high[h])
        j = head
        while j + VL <= size:
            store(out + j, vload(low + j) + c, stream)
            j += VL
        if j < size and h + 1 < highs:
            c = vsel_lt(vload(LANE), vset1(size - j), c, vset1(high[h + 1]))
            store(out + j, vload(low + j) + c, stream)
        out += size
    plus(low + j, high[highs - 1], size - j, out - size + j)
    if stream:
        vstream_end()


cdef inline void strided_join(const real *low, ix size, const real *high, ix highs, char *out, ix stride) noexcept nogil:
    cdef ix h, j
    for h in range(highs):
        for j in range(size):
            (<real *>out)[0] = low[j] + high[h]
            out += stride


cdef inline void span(const real *x, uint64_t first, int bits, char *out, ix stride, bint stream, Scratch *s) noexcept nogil:
    """OUT out (2**bits,) = the sums of the masks from `first` on."""
    cdef int low_bits = min(bits, <int>K)
    cdef ix size = <ix>1 << low_bits, highs = <ix>1 << (bits - low_bits)
    cdef real *low = low_table(s, out)
    cdef uint64_t low_mask = (<uint64_t>1 << K) - 1
    ascending(x, low_bits, first & low_mask, low)
    ascending(x + K, bits - low_bits, first >> K, s.high)
    if stride != sizeof(real):
        strided_join(low, size, s.high, highs, out, stride)
        return
    plus(low, 0, VL, low + size)
    if stream:
        join(low, size, s.high, highs, <real *>out, True)
    else:
        join(low, size, s.high, highs, <real *>out, False)


cdef inline void packed(const Rows *r, ix row, ix rows, int bits, real *x, real *out, bint stream, Scratch *s) noexcept nogil:
    """OUT out (rows, 2**bits), all of them together no longer than the table: their high sums are 0."""
    cdef real *table = low_table(s, <char *>out)
    cdef ix k
    for k in range(rows):
        gather(r, row + k, 0, r.n, x)
        ascending(x, bits, 0, table + (k << bits))          # a row shorter than a vector is cut by the next one
    s.high[0] = 0
    if stream:
        join(table, rows << bits, s.high, 1, out, True)
    else:
        join(table, rows << bits, s.high, 1, out, False)


cdef void sums_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Sums *a = <Sums *>args
    cdef Rows *r = &a.r
    cdef real x[ROW]
    cdef ix row = i // r.parts * r.per, part = i % r.parts, stride = r.os[r.nd], j
    cdef ix end = min(r.rows, row + r.per)
    memset(x, 0, sizeof(x))
    if a.packed:
        while row < end:
            j = min(end - row, <ix>1 << (K - a.bits))
            packed(r, row, j, a.bits, x, <real *>r.out + (row << a.bits), a.stream, <Scratch *>worker.scratch)
            row += j
        return
    for row in range(row, end):
        gather(r, row, 0, r.n, x)
        j = part << a.part_bits
        span(x, a.first + j, a.part_bits, r.out + offset(r, row, r.os) + j * stride, stride, a.stream, <Scratch *>worker.scratch)


def sums(cnp.ndarray x, cnp.ndarray out, uint64_t first, bint reused):
    """IN x (..., n); OUT out (..., 2**bits) = the sums of the masks first … first + 2**bits − 1.  `reused`: out's pages are
    there already; those of a new array come through the caches anyway, and are slower to bypass."""
    cdef Sums a
    cdef ix m
    rows_of(&a.r, x, out)
    expect_leading(x, out, a.r.nd + 1)
    m = cnp.PyArray_DIM(out, a.r.nd)
    a.first, a.bits = first, 0
    while a.bits < MAX_N and <ix>1 << a.bits < m:
        a.bits += 1
    if a.r.n > MAX_N or a.bits > a.r.n or m != <ix>1 << a.bits:
        refuse(x, out)
    a.part_bits = min(a.bits, <int>CHUNK_BITS)
    a.r.parts = <ix>1 << (a.bits - a.part_bits)
    a.r.per = max(<ix>1, (<ix>1 << CHUNK_BITS) // (m + 8))
    a.stream = reused and <double>m * a.r.rows * sizeof(real) >= STREAM
    a.packed = a.bits == a.r.n and a.r.n <= K and cnp.PyArray_IS_C_CONTIGUOUS(out)
    if a.r.parts > 1:
        a.r.per = 1
    run(sums_task, &a, (a.r.rows + a.r.per - 1) // a.r.per * a.r.parts, sizeof(Scratch),
        a.r.rows * (m + 8.) * 5e-11 * sizeof(real))


# ---- log Σ_S exp(Σ_{i∈S} x_i), every S ------------------------------------------------------------------------------------
cdef inline real peak_of(const real *x, ix n) noexcept nogil:
    """The largest of the subset sums, to the bit: that of the positive entries, as rounding is monotone.  inf and NaN of x
    come through, −inf does not."""
    cdef real low = 0, high = 0
    cdef ix i
    for i in range(n):
        if i < K:
            low += 0 if 0 > x[i] else x[i]                  # one instruction: signs are hard to predict
        else:
            high += 0 if 0 > x[i] else x[i]
    return low + high


cdef inline vf exp_terms(const real *low, vf c, const bint near) noexcept nogil:
    """exp(low + c)."""
    cdef vf z = vload(low) + c
    return vexp2_safe(z, vset1(LOG2E)) if near else vexp2_neg(z, vset1(LOG2E))


cdef inline real exp_total(const real *low, ix size, real c, real start, const bint near) noexcept nogil:
    """start + Σ_j exp(low[j] + c), lane by lane of logical groups, even and odd ones apart: with one chain of additions
    x86-64-v3 took 1.5 times as long in float32.  `near` promises that no term underflows."""
    cdef real group[GL]
    cdef ix first = 0, j
    cdef vf even, odd
    while first < GL:
        even = vsel_lt(vload(LANE), vset1(1 - first), vset1(start), vset1(0))       # in lane 0 of the group
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


cdef inline double exp_span(const real *x, uint64_t first, int bits, real peak, Scratch *s) noexcept nogil:
    """Σ exp(sum − peak) over the 2**bits masks from `first` on (0 where bits < K), less 1 if the empty subset is among them.

    The 1 is taken away before anything is added: if no entry is positive, the empty subset's own term is that 1, and what
    is left keeps its digits however small it is.  Otherwise the total is at least 1 and loses nothing."""
    cdef int low_bits = min(bits, <int>K)
    cdef ix size = <ix>1 << low_bits, highs = <ix>1 << (bits - low_bits), h, i
    cdef real *low = low_table(s, NULL)
    cdef real least = 0, c, start
    cdef double total = 0
    memset(low, 0, GL * sizeof(real))                       # lanes of a group beyond a short table
    ascending(x, low_bits, 0, low)
    ascending(x + K, bits - low_bits, first >> K, s.high)
    for i in range(K):
        least += x[i] if x[i] < 0 else 0                    # no entry of the table is below
    for h in range(highs):
        c = s.high[h] - peak
        start = -1 if first == 0 and h == 0 else 0
        if (least + c) * LOG2E > -EXP2_SAFE:
            total += exp_total(low, size, c, start, True)
        else:
            total += exp_total(low, size, c, start, False)
    return total


cdef void enumerate_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Enumerated *a = <Enumerated *>args
    cdef Rows *r = &a.r
    cdef Scratch *s = <Scratch *>worker.scratch
    cdef real x[ROW]
    cdef real peak
    cdef ix row
    memset(x, 0, sizeof(x))
    if a.partial is not NULL:
        gather(r, 0, 0, r.n, x)
        a.partial[i] = exp_span(x, a.first + (<uint64_t>i << CHUNK_BITS), CHUNK_BITS, peak_of(x, r.n), s)
        return
    for row in range(i * r.per, min(r.rows, (i + 1) * r.per)):
        gather(r, row, 0, r.n, x)
        peak = peak_of(x, r.n)
        if peak - peak == 0:
            peak = <real>(peak + log1p(exp_span(x, 0, <int>r.n, peak, s)))
        (<real *>(r.out + offset(r, row, r.os)))[0] = peak


cdef int expect_short(ix n, int most) except -1:
    if n > most:
        raise TypeError(f"a kernel was handed rows of {n} entries; expected at most {most}")
    return 0


def enumerate_rows(cnp.ndarray x, cnp.ndarray out):
    """IN x (..., n), n <= CHUNK_BITS; OUT out (...) = log Σ_S exp(Σ_{i∈S} x_i)."""
    cdef Enumerated a
    rows_of(&a.r, x, out)
    expect_leading(x, out, a.r.nd)
    expect_short(a.r.n, CHUNK_BITS)
    a.first, a.partial = 0, NULL
    a.r.per = max(<ix>1, (<ix>1 << CHUNK_BITS) // ((<ix>1 << a.r.n) + 32))
    run(enumerate_task, &a, (a.r.rows + a.r.per - 1) // a.r.per, sizeof(Scratch),
        a.r.rows * (40.0 + (<ix>1 << a.r.n)) * 5e-11 * sizeof(real))


def enumerate_span(cnp.ndarray x, uint64_t first, cnp.ndarray partial):
    """IN x (n,) finite; OUT partial (p,) float64 = Σ exp(sum − peak(x)) over p stretches of 2**CHUNK_BITS masks from `first`
    on; less 1 where the empty subset is among them."""
    cdef Enumerated a
    cdef ix parts = cnp.PyArray_SIZE(partial)
    rows_of(&a.r, x, partial)
    expect_short(a.r.n if a.r.nd == 0 else MAX_N + 1, MAX_N)
    expect_partial(partial, parts)
    a.first, a.partial = first, <double *>cnp.PyArray_DATA(partial)
    run(enumerate_task, &a, parts, sizeof(Scratch),
        <double>(<ix>1 << CHUNK_BITS) * parts * 5e-11 * sizeof(real))


def peak(cnp.ndarray x):
    """The largest subset sum of x (n,)."""
    cdef Rows r
    cdef real row[ROW]
    rows_of(&r, x, x)
    expect_short(r.n if r.nd == 0 else MAX_N + 1, MAX_N)
    gather(&r, 0, 0, r.n, row)
    return peak_of(row, r.n)


SPAN_BITS = CHUNK_BITS


# ---- the same number as Σ softplus(x_i) ------------------------------------------------------------------------------------
cdef inline void add_lanes(const real *y, ix n, double *lanes) noexcept nogil:
    """lanes[i % GL] += y[i], i ascending: for float32 too in float64."""
    cdef ix i = 0, k
    while i + GL <= n:
        for k in range(GL):
            lanes[k] += y[i + k]
        i += GL
    for k in range(n - i):
        lanes[k] += y[i + k]


cdef inline double tree(double *lanes, ix n) noexcept nogil:
    """The sum of the lanes, adjacent pairs first; those from n on hold zeros."""
    cdef ix k, width = 1
    while width < n and width < GL:
        width *= 2
    while width > 1:
        width //= 2
        for k in range(width):
            lanes[k] = lanes[2 * k] + lanes[2 * k + 1]
    return lanes[0]


cdef inline void softplus_all(real *y, ix n) noexcept nogil:
    """In place; y has room up to a multiple of VL, and nothing there that traps."""
    cdef ix i = 0
    while i < n:
        vstore(y + i, vsoftplus(vload(y + i)))
        i += VL


cdef inline double closed_part(const Rows *r, ix row, ix first, ix n, real *y) noexcept nogil:
    """Σ softplus over n entries of a row that is longer than the buffer y."""
    cdef double lanes[GL]
    cdef ix done = 0, m
    memset(lanes, 0, sizeof(lanes))
    while done < n:
        m = min(<ix>BUFFER, n - done)
        gather(r, row, first + done, m, y)
        softplus_all(y, m)
        add_lanes(y, m, lanes)
        done += m
    return tree(lanes, GL)


cdef inline void closed_rows(const Rows *r, ix row, ix rows, double *out, real *y) noexcept nogil:
    """OUT out (rows,): short rows packed into the buffer y, as the curve does not care which row a lane belongs to."""
    cdef double lanes[GL]
    cdef ix k
    for k in range(rows):
        gather(r, row + k, 0, r.n, y + k * r.n)
    softplus_all(y, rows * r.n)
    for k in range(rows):
        memset(lanes, 0, sizeof(lanes))
        add_lanes(y + k * r.n, r.n, lanes)
        out[k] = tree(lanes, r.n)


cdef void closed_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Closed *a = <Closed *>args
    cdef Rows *r = &a.r
    cdef ix row, end, m, first
    cdef real *y = <real *>worker.scratch
    if r.n > BUFFER:
        first = i % r.parts * PIECE
        a.partial[i] = closed_part(r, i // r.parts, first, min(<ix>PIECE, r.n - first), y)
        return
    row, end = i * r.per, min(r.rows, (i + 1) * r.per)
    while row < end:
        m = min(end - row, BUFFER // max(r.n, <ix>1))
        closed_rows(r, row, m, a.partial + row, y)
        row += m


def closed_parts(ix n):
    """How many partial sums a row of n entries has."""
    return max(<ix>1, (n + PIECE - 1) // PIECE)


def closed(cnp.ndarray x, cnp.ndarray partial):
    """IN x (..., n); OUT partial (rows, closed_parts(n)) float64, contiguous: Σ softplus(x_i) over the parts of each row."""
    cdef Closed a
    rows_of(&a.r, x, partial)
    a.partial = <double *>cnp.PyArray_DATA(partial)
    a.r.parts = closed_parts(a.r.n)
    expect_partial(partial, a.r.rows * a.r.parts)
    a.r.per = 1 if a.r.n > BUFFER else max(<ix>1, PIECE // (a.r.n + 8))
    run(closed_task, &a, (a.r.rows + a.r.per - 1) // a.r.per * a.r.parts, BUFFER * sizeof(real) + 64,
        a.r.rows * (a.r.n + 8.) * 2.5e-10 * sizeof(real))
