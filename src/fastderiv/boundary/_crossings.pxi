# ---- enclosures as they are found, and in order -------------------------------------------------------------------

cdef extern from *:
    """
    #define ROUND 0x1p-53               /* u, half a unit in the last place of numbers from 1 on */
    """
    const double ROUND

cdef enum:
    CLUSTER, UNIQUE                     # what an enclosure is known to hold: any roots, or exactly one, simple
    SMALL = 1024                        # enclosures

cdef struct Sink:                       # enclosures of one task in any order, numbers throughout for vcompress
    real *row
    real *lower
    real *upper
    real *x
    real *kind
    ix n, cap                           # n counts on beyond cap, where nothing is stored

cdef struct Found:                      # OUT of a call: task i's enclosures from i·cap on, ordered
    real *lower
    real *upper
    real *x
    char *unique
    ix *count                           # (rows,)
    ix *needed                          # (tasks,) beyond cap: some are missing, the task wants that much
    ix cap


cdef inline void emit(Sink *s, ix row, real lower, real upper, real x, char kind) noexcept nogil:
    if s.n < s.cap:
        s.row[s.n], s.lower[s.n], s.upper[s.n], s.x[s.n], s.kind[s.n] = row, lower, upper, x, kind
    s.n += 1


cdef inline real inside(real lower, real upper) noexcept nogil:
    """A finite number in the middle of [lower, upper], at its only finite end, or 0."""
    if lower == -INFINITY:
        return 0 if upper == INFINITY else upper
    return lower if upper == INFINITY else 0.5 * lower + 0.5 * upper


cdef void by_lower(const Sink *s, ix *order, ix n) noexcept nogil:
    """Sort the enclosures that `order` (n,) names: Shell's method, as rows mostly have one and rarely thousands."""
    cdef ix gap = 1, i, k, one
    while gap < n // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, n):
            k, one = i, order[i]
            while k >= gap and s.lower[order[k - gap]] > s.lower[one]:
                order[k] = order[k - gap]
                k -= gap
            order[k] = one
        gap //= 3


cdef void order_rows(const Sink *s, ix rows, ix first, ix task, Found *found, ix *start, ix *order) noexcept nogil:
    """OUT the enclosures of the task's rows [first, first + rows), each row's ascending, clusters that touch as one.

    start (rows + 1,) and order (cap,) are scratch.
    """
    cdef ix i, j, k, row, at = task * found.cap, end
    found.needed[task] = s.n
    memset(&found.count[first], 0, rows * sizeof(ix))
    if s.n > found.cap:
        return
    memset(start, 0, (rows + 1) * sizeof(ix))
    for i in range(s.n):
        start[<ix>s.row[i] + 1] += 1
    for row in range(rows):
        start[row + 1] += start[row]
    for i in range(s.n):
        row = <ix>s.row[i]
        order[start[row] + found.count[first + row]] = i
        found.count[first + row] += 1
    for row in range(rows):
        k = at
        end = start[row] + found.count[first + row]
        by_lower(s, order + start[row], end - start[row])
        for j in range(start[row], end):
            i = order[j]
            if at > k and s.kind[i] == CLUSTER and not found.unique[at - 1] and found.upper[at - 1] >= s.lower[i]:
                found.upper[at - 1] = max(found.upper[at - 1], s.upper[i])
                found.x[at - 1] = inside(found.lower[at - 1], found.upper[at - 1])
            else:
                found.lower[at], found.upper[at] = s.lower[i], s.upper[i]
                found.x[at], found.unique[at] = s.x[i], s.kind[i] == UNIQUE
                at += 1
        found.count[first + row] = at - k


cdef class Listing:
    """The enclosures of all rows of a call, row after row, in arrays that grow."""
    cdef ix rows, n, cap                # rows that are listed, enclosures, and room for these
    cdef cnp.ndarray count, lower, upper, x, unique

    def __cinit__(self, ix rows):
        self.cap = rows + 64
        self.count = np.zeros(rows + 1, np.intp)        # from 1 on
        self.lower, self.upper, self.x = (np.empty(self.cap) for _ in range(3))
        self.unique = np.empty(self.cap, np.bool_)

    cdef int reserve(self, ix more) except -1:
        if self.n + more > self.cap:
            self.resize(self.n + more + self.cap // 2)
        return 0

    cdef int resize(self, ix cap) except -1:
        for array in (self.lower, self.upper, self.x, self.unique):
            try:
                array.resize(cap, refcheck=False)
            except MemoryError:
                raise MemoryError(f"no memory for {25 * cap} bytes of enclosures") from None
        self.cap = cap
        return 0

    def arrays(self):
        """indptr (m + 1,), x, lower, upper, unique (k,).  Nothing can be listed any more."""
        cdef ix *count = <ix *>cnp.PyArray_DATA(self.count)
        cdef ix i, end = self.n
        for i in range(self.rows):
            count[i + 1] += count[i]
        if self.cap <= SMALL:           # copies cost less than telling the allocator
            return (self.count, self.x[:end].copy(), self.lower[:end].copy(), self.upper[:end].copy(),
                    self.unique[:end].copy())
        self.resize(end)
        return self.count, self.x, self.lower, self.upper, self.unique


cdef class Buffers:
    """Memory for the enclosures of up to so many rows, in tasks of `task_rows`, `cap` for each task."""
    cdef Found found
    cdef ix tasks, rows, task_rows
    cdef cnp.ndarray needed, lower, upper, x, unique

    def __cinit__(self, ix rows, ix task_rows, ix cap):
        cdef ix tasks = (rows + task_rows - 1) // task_rows
        self.task_rows = task_rows
        self.needed = np.empty(tasks, np.intp)
        self.lower, self.upper, self.x = (np.empty(tasks * cap) for _ in range(3))
        self.unique = np.empty(tasks * cap, np.bool_)
        self.found.needed = <ix *>cnp.PyArray_DATA(self.needed)
        self.found.lower, self.found.upper = <real *>cnp.PyArray_DATA(self.lower), <real *>cnp.PyArray_DATA(self.upper)
        self.found.x, self.found.unique = <real *>cnp.PyArray_DATA(self.x), <char *>cnp.PyArray_DATA(self.unique)
        self.found.cap = cap

    cdef void reset(self, ix rows, Listing listing) noexcept:
        self.rows, self.tasks = rows, (rows + self.task_rows - 1) // self.task_rows
        self.found.count = <ix *>cnp.PyArray_DATA(listing.count) + listing.rows + 1

    cdef ix most(self) noexcept:
        """What the greediest task needed."""
        cdef ix i, most = 0
        for i in range(self.tasks):
            most = max(most, self.found.needed[i])
        return most

    cdef int append(self, Listing listing) except -1:
        """List the segments, one behind the other."""
        cdef const Found *f = &self.found
        cdef ix i, n, row
        for i in range(self.tasks):
            n = 0
            for row in range(i * self.task_rows, min(self.rows, (i + 1) * self.task_rows)):
                n += f.count[row]
            listing.reserve(n)
            memcpy(<real *>cnp.PyArray_DATA(listing.lower) + listing.n, f.lower + i * f.cap, n * sizeof(real))
            memcpy(<real *>cnp.PyArray_DATA(listing.upper) + listing.n, f.upper + i * f.cap, n * sizeof(real))
            memcpy(<real *>cnp.PyArray_DATA(listing.x) + listing.n, f.x + i * f.cap, n * sizeof(real))
            memcpy(<char *>cnp.PyArray_DATA(listing.unique) + listing.n, f.unique + i * f.cap, n)
            listing.n += n
        listing.rows += self.rows
        return 0


cdef class Solver:
    """All ties along one input: what `Isolator` and `DeepNet` have in common."""

    cdef ix task_rows(self) noexcept:
        return 1

    cdef int search(self, cnp.ndarray X, double lo, double hi, double xtol, Buffers out) except -1:
        """OUT the enclosures of the rows X (m, n_in − 1)."""
        raise NotImplementedError

    def buffers(self, ix rows, ix cap=0):
        """Memory for so many rows at a time; without `cap`, for eight enclosures a row on average."""
        return Buffers(rows, self.task_rows(), cap or 8 * self.task_rows())

    def solve(self, cnp.ndarray X, double lo, double hi, double xtol, Buffers buffers, Listing listing):
        """List the enclosures of the rows X (m, n_in − 1), float64 of any strides."""
        cdef ix half
        buffers.reset(X.shape[0], listing)
        self.search(X, lo, hi, xtol, buffers)
        if buffers.most() <= buffers.found.cap:
            buffers.append(listing)
        elif buffers.tasks == 1:                           # its segment was too small
            self.solve(X, lo, hi, xtol, self.buffers(buffers.rows, buffers.most()), listing)
        else:
            half = buffers.tasks // 2 * buffers.task_rows
            self.solve(X[:half], lo, hi, xtol, buffers, listing)
            self.solve(X[half:], lo, hi, xtol, buffers, listing)
