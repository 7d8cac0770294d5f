# One row of a network of any depth: its roots and clusters, as they are found and proven.
# docs/derivations.md §2.5; docs/rounding.md §2.6.
# needs: Net, ROUND (_net.pxi)
# needs: CLUSTER, Found, inside, UNIQUE (_enclosures.pxi)
# needs: Ball, enclose, evaluate, Flow, MarginRange (_deep_enclose.pxi)

cdef enum:
    WORK = 20000                        # enclosures a row may take
    HARD = 1000                         # a row that has taken more is decided more coarsely

# Times `scale`, where the whole line is cut.  It is not 0, as symmetric networks have roots there.
cdef double FIRST_SPLIT = 0.0371

cdef struct Deep:                       # a call
    const Net *net
    ix coordinate, m
    const real *x_other                 # (m, n_in − 1)
    ix x_row, x_col                     # strides in elements
    double lo, hi, xtol
    ix task_rows
    Found found
    ix *work                            # (m,): OUT enclosures computed, or NULL

cdef struct End:                        # an end t of a span, and what is proven of f(t)
    double t
    double least                        # |f(t)| is at least this
    int sign                            # 1 or −1; 0 if it is unknown

cdef struct Span:                       # a part of the line that is not decided yet
    End l, r

cdef struct Search:                     # the search of one row, from left to right
    const Deep *call
    Flow *flow
    Worker *worker
    ix row, work                        # the row; enclosures that it has taken
    bint pending                        # a cluster not yet listed: [lower, upper]
    double lower, upper
    double before                       # the end of what is listed, or of the bounds


cdef inline void list_enclosure(Search *search, double lower, double upper, double x,
                                char kind) noexcept nogil:
    """List [lower, upper] behind the row's others, with x, moved into it if it is outside."""
    cdef const Found *out = &search.call.found
    cdef ix task = search.row // search.call.task_rows, at = task * out.cap + out.needed[task]
    if out.needed[task] < out.cap:
        out.lower[at], out.upper[at] = lower, upper
        out.x[at], out.unique[at] = min(max(x, lower), upper), kind == UNIQUE
    out.needed[task] += 1
    out.count[search.row] += 1
    search.before = upper


cdef inline End end_at(double t, const Ball *f) noexcept nogil:
    """The end t of a span, from f there."""
    cdef End e
    e.t, e.sign, e.least = t, 0, 0
    if fabs(f.mid) > f.rad:
        e.sign, e.least = 1 if f.mid > 0 else -1, (fabs(f.mid) - f.rad) * (1 - 4 * ROUND)
    return e


cdef inline double least_slope(const MarginRange *f) noexcept nogil:
    """min |f'| on the interval, 0 if f' may vanish."""
    return max(0.0, max(f.slopes.lo, -f.slopes.hi))


cdef inline double cut_at(const Flow *flow, double l, double r) noexcept nogil:
    """Where to cut [l, r]: in the middle, or at the geometric mean where magnitudes differ much."""
    cdef double a = min(fabs(l), fabs(r)), b = max(fabs(l), fabs(r)), m
    if not isfinite(l) and not isfinite(r):
        return FIRST_SPLIT * flow.scale
    if not isfinite(r):
        return max(l + 4 * flow.spread, l + fabs(l))
    if not isfinite(l):
        return min(r - 4 * flow.spread, r - fabs(r))
    a = max(a, flow.scale)
    if b > 4096 * a:
        if l < 0 < r and min(-l, r) > flow.scale:
            return FIRST_SPLIT * flow.scale
        m = sqrt(a) * sqrt(b)
        return m if r == b else -m
    return 0.5 * l + 0.5 * r


cdef inline double resolution(ix work) noexcept nogil:
    """The least width of a span, relative to t or to where things happen: from 1e-9 to 1e-2."""
    cdef double spent = <double>work / WORK
    if spent < 0.25:
        return 1e-9 if spent < 0.125 else 1e-6
    return 1e-4 if spent < 0.375 else 1e-3 if spent < 0.5 else 1e-2


cdef struct Root:                       # the only one in (l, r), simple
    double l, r, slope                  # f has opposite signs at l and r, and |f'| ≥ slope between
    int rising                          # the sign of f'
    double x                            # where f was evaluated last
    double lower, upper                 # the root lies between them


cdef inline void learn_sign(Root *root, double t, const Ball *f) noexcept nogil:
    """INOUT root: f(t), where it has a sign, tells on which side of t it lies."""
    if fabs(f.mid) > f.rad:
        if (f.mid > 0) == (root.rising > 0):
            root.r, root.upper = min(root.r, t), min(root.upper, t)
        else:
            root.l, root.lower = max(root.l, t), max(root.lower, t)


cdef inline void learn_distance(Root *root, const Ball *f) noexcept nogil:
    """INOUT root: it is within (|f(x)| + E) / min |f'| of x (rounding.md §2.6)."""
    cdef double radius = (fabs(f.mid) + f.rad) / root.slope * (1 + 8 * ROUND)
    radius += 2 * ROUND * fabs(root.x) + 1e-300
    root.lower = max(root.lower, max(root.l, root.x - radius))
    root.upper = min(root.upper, min(root.r, root.x + radius))


cdef inline bint root_is_wide(const Search *search, const Root *root) noexcept nogil:
    """Whether the enclosure is wider than asked."""
    return root.upper - root.lower > search.call.xtol * max(1.0, fabs(root.x))


cdef void newton(Search *search, double l, double r, int rising, double slope,
                 double x) noexcept nogil:
    """List the one root in (l, r), where f has opposite signs at the ends and |f'| ≥ slope > 0.

    Newton's method from x, kept in the bracket.
    """
    cdef Root root
    cdef MarginRange f
    cdef double next
    cdef int i
    root.l, root.r, root.lower, root.upper, root.slope, root.rising = l, r, l, r, slope, rising
    for i in range(100):
        if not (root.l < x < root.r):
            x = 0.5 * root.l + 0.5 * root.r
        root.x = x
        evaluate(search.flow, x, &f)
        learn_sign(&root, x, &f.f)
        learn_distance(&root, &f.f)
        if not root_is_wide(search, &root) or not (fabs(f.f.mid) > f.f.rad):
            break
        if root.r - root.l <= 4 * ROUND * fabs(x):
            break
        next = x - f.f.mid / f.slope.mid
        x = next if root.l < next < root.r else 0.5 * root.l + 0.5 * root.r
        if i >= 16 and i % 2:           # on an exponential all Newton steps have one size
            x = cut_at(search.flow, root.l, root.r)
    if root_is_wide(search, &root):
        narrow_root(search, &root, &f)
    next = root.x - f.f.mid / f.slope.mid
    if not (root.lower < next < root.upper):
        next = root.x
    list_enclosure(search, root.lower, root.upper, next, UNIQUE)


cdef void narrow_root(Search *search, Root *root, MarginRange *f) noexcept nogil:
    """Narrow the enclosure as far as rounding allows; INOUT f, at root.x.

    Every round computes the least |f'| on the enclosure that is left.  Where that does not help,
    because f' nearly vanishes elsewhere or its range is poor, the nearest points at which the sign
    of f is certain make a new bracket.
    """
    cdef double width, reach
    cdef int i
    for i in range(64):
        width = root.upper - root.lower
        root.x = min(max(root.x, root.lower), root.upper)
        enclose(search.flow, root.lower, root.x, root.upper, f)
        search.work += 1
        root.slope = max(root.slope, least_slope(f))
        learn_sign(root, root.x, &f.f)
        learn_distance(root, &f.f)
        if root_is_wide(search, root) and root.upper - root.lower > 0.5 * width:
            reach = 4 * (fabs(f.f.mid) + f.f.rad) / max(fabs(f.slope.mid), root.slope)
            reach += 4 * ROUND * fabs(root.x) + 1e-300
            probe_root(search, root, reach, -1)
            probe_root(search, root, reach, 1)
        if not root_is_wide(search, root) or not (root.upper - root.lower <= 0.5 * width):
            return


cdef void probe_root(Search *search, Root *root, double reach, int way) noexcept nogil:
    """Cut the enclosure on one side of x, near the first point where the sign of f is certain.

    The points tried are x ± reach, x ± 4 reach and so on until one cuts, then nearer ones.
    """
    cdef double x = root.x, inner = x, t = x + way * reach
    cdef int i
    while root.lower < t < root.upper and not cut_off(search, root, t, way):
        inner = t
        reach *= 4
        t = x + way * reach
    for i in range(4):
        t = 0.5 * inner + 0.5 * (root.upper if way > 0 else root.lower)
        if not (root.lower < t < root.upper):
            return
        if not cut_off(search, root, t, way):
            inner = t


cdef bint cut_off(Search *search, Root *root, double t, int way) noexcept nogil:
    """Whether f(t) shows that the root is not beyond t."""
    cdef MarginRange f
    evaluate(search.flow, t, &f)
    learn_sign(root, t, &f.f)
    return root.upper <= t if way > 0 else root.lower >= t


cdef void settle(Search *search, double after) noexcept nogil:
    """List the pending cluster; `after` is where the next enclosure or the end of the bounds lies.

    It is one root if f has opposite signs a little outside and f' has one sign in between; it is
    not listed at all if the signs agree.
    """
    cdef double x = inside(search.lower, search.upper), width = search.upper - search.lower
    cdef double least = 64 * ROUND * fabs(x) + 1e-300, reach
    cdef MarginRange f
    cdef int i
    search.pending = False
    if isfinite(width):
        evaluate(search.flow, x, &f)
        reach = 4 * (fabs(f.f.mid) + f.f.rad) / fabs(f.slope.mid) + width + least
        if settled(search, x, reach, after):
            return
        reach = 0.01 * width + least
        # close to the cluster f' more often has one sign, further out the sign of f is certain
        for i in range(6):
            if settled(search, x, reach, after):
                return
            reach *= 4
    list_enclosure(search, search.lower, search.upper, x, CLUSTER)


cdef bint settled(Search *search, double x, double reach, double after) noexcept nogil:
    """Whether the pending cluster, and `reach` to both sides, proves to hold one root, or none."""
    cdef double l = search.lower - reach, r = search.upper + reach, slope
    cdef int parts
    cdef End left, right
    cdef MarginRange f
    if not (search.before < l and r < after and isfinite(r - l)):
        return False
    evaluate(search.flow, l, &f)
    left = end_at(l, &f.f)
    evaluate(search.flow, r, &f)
    right = end_at(r, &f.f)
    if left.sign == 0 or right.sign == 0:
        return False
    parts = 64 if left.sign != right.sign and search.work < HARD else 1
    slope = least_by_parts(search, l, x, r, parts)
    if not slope > 0:
        return False
    if left.sign != right.sign:
        newton(search, l, r, right.sign, slope, x)
    return True


cdef double least_by_parts(Search *search, double l, double m, double r, int most) noexcept nogil:
    """min |f'| on [l, r], or 0 if f' may vanish, from at most `most` enclosures, first around m.

    It is 0 also where f' is below its rounding, because no part would show more.
    """
    cdef double ends[32]
    cdef double least = INFINITY
    cdef int n = 1, sign = 0, i
    cdef MarginRange f
    ends[0] = r
    for i in range(most):
        enclose(search.flow, l, m, ends[n - 1], &f)
        search.work += 1
        if least_slope(&f) > 0:
            if sign * f.slopes.lo < 0:
                return 0
            least, sign = min(least, least_slope(&f)), 1 if f.slopes.lo > 0 else -1
            l, n = ends[n - 1], n - 1
            if n == 0:
                return least
        elif n == 32 or not (fabs(f.slope.mid) > f.slope.rad) or not (l < m < ends[n - 1]):
            return 0
        else:
            ends[n] = m
            n += 1
        m = 0.5 * l + 0.5 * ends[n - 1]
    return 0


cdef void found_cluster(Search *search, double lower, double upper) noexcept nogil:
    """Add [lower, upper] to the pending cluster, or settle that one and begin another.

    In rows that have taken much work, clusters that lie close together are joined: thousands of
    small ones tell nothing.
    """
    cdef double gap = max(1e-3, resolution(search.work)) * max(fabs(lower), search.flow.spread)
    if not search.work >= HARD:
        gap = 0
    if search.pending and lower - search.upper <= gap:
        search.upper = max(search.upper, upper)
        return
    if search.pending:
        settle(search, lower)
    search.pending, search.lower, search.upper = True, lower, upper


cdef void found_root(Search *search, const Span *span, const MarginRange *f,
                     double m) noexcept nogil:
    """List the one root in the span, which lies behind the pending cluster."""
    if search.pending:
        settle(search, span.l.t)
    newton(search, span.l.t, span.r.t, span.r.sign, least_slope(f), m - f.f.mid / f.slope.mid)
