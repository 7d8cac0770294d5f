# Enclosures of ties: as a task finds them, in order, and listed for all rows of a call.
# docs/derivations.md §2.4.

cdef enum:
    CLUSTER, UNIQUE                     # it may hold any roots, or none; exactly one, a simple one
    NARROWEST = 8                       # an interval narrower than so many u times the larger
                                        # magnitude of its ends is not cut any more
    SMALL = 1024                        # listings with room for at most so many are copied

# A task's enclosures, in any order.  Every field is real, even row and kind, because vcompress
# writes reals.
cdef struct Sink:
    real *row
    real *lower
    real *upper
    real *x
    real *kind
    ix n, cap                           # n counts all enclosures; only the first cap are stored

# The results of a call: the enclosures of task i begin at index i·cap, in order.
cdef struct Found:
    real *lower
    real *upper
    real *x
    char *unique
    ix *count                           # (rows,)
    ix *needed                          # (tasks,) how many it found; those beyond cap are missing
    ix cap


cdef inline void emit(Sink *sink, ix row, real lower, real upper, real x, char kind) noexcept nogil:
    cdef ix n = sink.n
    if n < sink.cap:
        sink.row[n], sink.lower[n], sink.upper[n] = row, lower, upper
        sink.x[n], sink.kind[n] = x, kind
    sink.n += 1


cdef inline real inside(real lower, real upper) noexcept nogil:
    """A finite number in the middle of [lower, upper], at its only finite end, or 0."""
    if lower == -INFINITY:
        return 0 if upper == INFINITY else upper
    return lower if upper == INFINITY else 0.5 * lower + 0.5 * upper


cdef void sort_by_lower(const Sink *sink, ix *order, ix n) noexcept nogil:
    """INOUT order (n,), the enclosures of a row: sorted by Shell's method, as there are few."""
    cdef ix gap = 1, i, k, one
    while gap < n // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, n):
            k, one = i, order[i]
            while k >= gap and sink.lower[order[k - gap]] > sink.lower[one]:
                order[k] = order[k - gap]
                k -= gap
            order[k] = one
        gap //= 3


cdef struct TaskRows:                   # the rows of a task
    ix task, first, n


cdef void count_rows(const Sink *sink, const TaskRows *rows, ix *start, ix *order,
                     Found *found) noexcept nogil:
    """OUT found.count; order (n,), enclosures row by row; start (rows + 1,), each row's first."""
    cdef ix *count = &found.count[rows.first]
    cdef ix i, row
    memset(start, 0, (rows.n + 1) * sizeof(ix))
    for i in range(sink.n):
        start[<ix>sink.row[i] + 1] += 1
    for row in range(rows.n):
        start[row + 1] += start[row]
    for i in range(sink.n):
        row = <ix>sink.row[i]
        order[start[row] + count[row]] = i
        count[row] += 1


cdef ix list_row(const Sink *sink, const ix *order, ix n, ix begin, Found *found) noexcept nogil:
    """OUT found, from `begin` on: the n enclosures of a row, in the order of `order`.

    Clusters that touch become one.  Returns how many enclosures are left.
    """
    cdef ix at = begin, i, j
    for j in range(n):
        i = order[j]
        if (at > begin and sink.kind[i] == CLUSTER and not found.unique[at - 1]
                and found.upper[at - 1] >= sink.lower[i]):
            found.upper[at - 1] = max(found.upper[at - 1], sink.upper[i])
            found.x[at - 1] = inside(found.lower[at - 1], found.upper[at - 1])
        else:
            found.lower[at], found.upper[at] = sink.lower[i], sink.upper[i]
            found.x[at], found.unique[at] = sink.x[i], sink.kind[i] == UNIQUE
            at += 1
    return at - begin


cdef void order_rows(const Sink *sink, const TaskRows *rows, ix *start, ix *order,
                     Found *found) noexcept nogil:
    """OUT found: the enclosures of the task's rows, ascending.

    Clusters that touch become one.  start (rows + 1,) and order (cap,) are scratch.
    """
    cdef ix *count = &found.count[rows.first]
    cdef ix row, at = rows.task * found.cap
    found.needed[rows.task] = sink.n
    memset(count, 0, rows.n * sizeof(ix))
    if sink.n > found.cap:
        return
    count_rows(sink, rows, start, order, found)
    for row in range(rows.n):
        sort_by_lower(sink, order + start[row], count[row])
        count[row] = list_row(sink, order + start[row], count[row], at, found)
        at += count[row]
