# log Σ_S exp(Σ_{i∈S} x_i) over all subsets S, as Σ_i softplus(x_i) (derivations §1.3).
# needs: Call, some_entries (_call.pxi)

cdef enum:
    PIECE = 16384                       # entries of one task
    AT_ONCE = 1024                      # entries gathered at a time: a multiple of GL

cdef struct Closed:                     # the arguments of `closed`
    Call call
    double *partial                     # (rows, parts)


cdef inline ix parts_of(ix n) noexcept nogil:
    """How many partial sums a row of n entries has."""
    return max(<ix>1, ceil_div(n, PIECE))


cdef inline void add_lanes(const real *y, ix n, double *lanes) noexcept nogil:
    """IN y (n,); IN OUT lanes (GL,): lanes[i % GL] += y[i] for i ascending, always in float64."""
    cdef ix i = 0, k
    while i + GL <= n:
        for k in range(GL):
            lanes[k] += y[i + k]
        i += GL
    for k in range(n - i):
        lanes[k] += y[i + k]


cdef inline double tree(double *lanes, ix n) noexcept nogil:
    """The sum of the first n lanes, adjacent pairs first.  Overwrites the lanes; those from n on,
    up to GL, are 0."""
    cdef ix k, width = 1
    while width < n and width < GL:
        width *= 2
    while width > 1:
        width //= 2
        for k in range(width):
            lanes[k] = lanes[2 * k] + lanes[2 * k + 1]
    return lanes[0]


cdef inline void softplus_all(real *y, ix n) noexcept nogil:
    """IN OUT y (n,).  Whole vectors are computed: y has room for them and holds numbers there."""
    cdef ix i = 0
    while i < n:
        vstore(y + i, vsoftplus(vload(y + i)))
        i += VL


cdef inline double closed_part(const Call *call, ix row, ix first, ix n, real *y) noexcept nogil:
    """Σ softplus over the n entries from `first` on of a row that is longer than y (AT_ONCE,)."""
    cdef double lanes[GL]
    cdef ix done = 0, m
    memset(lanes, 0, sizeof(lanes))
    while done < n:
        m = min(<ix>AT_ONCE, n - done)
        some_entries(call, row, first + done, m, y)
        softplus_all(y, m)
        add_lanes(y, m, lanes)
        done += m
    return tree(lanes, GL)


cdef inline void closed_rows(const Call *call, ix row, ix count, real *y,
                             double *out) noexcept nogil:
    """OUT out (count,) = Σ softplus of each row from `row` on.

    The rows lie in y (AT_ONCE,) one behind the other and share vectors, as softplus does not depend
    on which row a lane belongs to."""
    cdef ix n = call.rows.entries, k
    cdef double lanes[GL]
    for k in range(count):
        some_entries(call, row + k, 0, n, y + k * n)
    softplus_all(y, count * n)
    for k in range(count):
        memset(lanes, 0, sizeof(lanes))
        add_lanes(y + k * n, n, lanes)
        out[k] = tree(lanes, n)


cdef void closed_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef const Closed *a = <const Closed *>args
    cdef const Call *call = &a.call
    cdef ix n = call.rows.entries, row, end, m, first
    cdef real *y = <real *>worker.scratch
    if n > AT_ONCE:
        first = i % call.rows.parts * PIECE
        m = min(<ix>PIECE, n - first)
        a.partial[i] = closed_part(call, i // call.rows.parts, first, m, y)
        return
    row = i * call.rows.per_task
    end = min(call.rows.count, row + call.rows.per_task)
    while row < end:
        m = min(end - row, AT_ONCE // max(n, <ix>1))
        closed_rows(call, row, m, y, a.partial + row)
        row += m
