# A second look at clusters: those that reach to ±∞ are cut, and some prove to be one root or none.
# docs/rounding.md §1.5.
# needs: ROUND (_net.pxi)
# needs: Found, inside, TaskRows (_enclosures.pxi)
# needs: dsigma, preactivation, Sigmoids, slope_error, Task (_isolate_terms.pxi)
# needs: narrow, Point, visit (_isolate_newton.pxi)

cdef bint decided_beyond(const Task *task, ix row, real t, ix side) noexcept nogil:
    """Whether f has one sign from t to ±∞ (side 1 or 0).

    It has one sign if the slowest units outweigh the others at t, and so further out too, and if
    the limit of f is 0 or has the sign of their sum.
    """
    cdef const Sigmoids *f = task.call.f
    cdef real z, e, delta, nearest = INFINITY, slow = 0, size = 0, rest = 0
    cdef ix i
    if not (f.limit[side] == f.limit[side]) or not task.es[row] < 1e-6:
        return False
    for i in range(f.units):
        z = fma(f.a[i], t, task.s[i * task.call.task_rows + row])
        if not 1 < (z if (f.a[i] > 0) == (side > 0) else -z) < 1e9:
            return False
        if fabs(f.a[i]) == f.slowest:
            nearest = min(nearest, fabs(z))
    for i in range(f.units):
        z = fabs(fma(f.a[i], t, task.s[i * task.call.task_rows + row]))
        e = exp(nearest - z)
        delta = -f.d[i] if (f.a[i] > 0) == (side > 0) else f.d[i]
        if fabs(f.a[i]) == f.slowest:
            slow += delta * e
            size += (fabs(delta) + 1e-318) * e
            rest += fabs(delta) * e * exp(-z)
        else:
            rest += (fabs(delta) + 1e-318) * e
    if not fabs(slow) > 1.001 * rest + 1e-5 * size + 1e-310:
        return False
    return f.limit[side] == 0 or (f.limit[side] > 0) == (slow > 0)


cdef bint cut(const Task *task, ix row, real *lower, real *upper) noexcept nogil:
    """Cut off the infinite part of a cluster if f has one sign there; whether anything is left."""
    cdef real far = 32 / task.call.f.slowest, end
    cdef ix k
    if upper[0] == INFINITY and lower[0] > -INFINITY:
        for k in range(24):
            end = lower[0] + far * ((1 << k) - 1)
            if decided_beyond(task, row, end, 1):
                upper[0] = end
                return k > 0
    elif lower[0] == -INFINITY and upper[0] < INFINITY:
        for k in range(24):
            end = upper[0] - far * ((1 << k) - 1)
            if decided_beyond(task, row, end, 0):
                lower[0] = end
                return k > 0
    return True


cdef real steepness(const Task *task, ix row, real l, const Point *x, real r) noexcept nogil:
    """What |f'| surely exceeds on [l, r] around x; not positive if f' may vanish there.

    It comes from the ranges of the terms of f' on [l, r], and from f'(x) ± h sup |f''|, where
    h = max(r − x, x − l).
    """
    cdef const Sigmoids *f = task.call.f
    cdef vf es = vset1(task.es[row]), s, zl, zr, pl, pr, p
    cdef real h = max(r - x.x, x.x - l) * (1 + 4 * ROUND), m = 0, M = 0, T = 0, slope = 0, size = 0
    cdef real curve = 0, k, g, top, low, most
    cdef ix i
    for i in range(f.units):
        s, g = vset1(task.s[i * task.call.task_rows + row]), f.g[i]
        k = fabs(f.a[i]) * h
        zl = vtail(preactivation(f, i, vset1(l), s))
        zr = vtail(preactivation(f, i, vset1(r), s))
        pl, pr, p = dsigma(zl), dsigma(zr), dsigma(vtail(preactivation(f, i, vset1(x.x), s)))
        top = vget(vsel_neg(vxor(zl, zr), vset1(0.25), vmax(pl, pr)), 0)
        low = vget(vmin(pl, pr), 0)
        m, M = m + min(g * top, g * low), M + max(g * top, g * low)
        T += fabs(g) * top
        slope += g * vget(p, 0)
        size += fabs(g) * vget(p, 0)
        if k > 0:
            most = 0.0963
            if task.es[row] < 0.01:
                most = min(most, (vget(p, 0) + 4e-308) * exp(k))
            curve += (fabs(g) + fabs(f.a[i]) * 1e-323) * k * most
    k = vget(slope_error(f, vset1(T), es), 0)
    m, M = m - k, M + k
    k = vget(slope_error(f, vset1(size), es), 0) + curve * 1.03 + 1e-300
    return max(max(m, slope - k), max(-M, -slope - k))


cdef void approach(const Task *task, ix row, real l, real r, Point *x) noexcept nogil:
    """OUT x in [l, r], nearer to a simple root: some steps of Newton's method."""
    cdef Point p
    cdef real next
    cdef ix i
    visit(task, row, inside(l, r), x)
    for i in range(8):
        next = x.x - x.f / x.slope
        if x.sign == 0 or not l <= next <= r:
            return
        visit(task, row, next, &p)
        if not fabs(p.f) < fabs(x.f):
            return
        x[0] = p


cdef struct Cluster:                    # of one row
    ix row
    real after, before                  # where the neighbours, or the bounds, end and begin
    real lower, upper, x


cdef int prove(const Task *task, Cluster *at) noexcept nogil:
    """1 if a cluster proves to hold exactly one root, which it then encloses; 0 if none; else −1.

    The proof: f has signs a little outside, within the bounds and between the neighbours, and f'
    has one sign in between.
    """
    cdef Point x, l, r
    cdef real by
    cdef ix i
    approach(task, at.row, at.lower, at.upper, &x)
    by = x.reach
    for i in range(8):
        visit(task, at.row, max(min(at.lower, x.x - by), at.after), &l)
        visit(task, at.row, min(max(at.upper, x.x + by), at.before), &r)
        if not (l.x < r.x and steepness(task, at.row, l.x, &x, r.x) > 0):
            return -1
        if l.sign != 0 and r.sign != 0:
            if l.sign == r.sign:
                return 0
            at.lower, at.upper = l.x, r.x
            narrow(task, at.row, r.sign, &x, &at.lower, &at.upper)
            at.x = min(max(x.x, at.lower), at.upper)
            return 1
        by *= 2
    return -1


cdef bint sharpen_one(const Task *task, Cluster *at, char *unique) noexcept nogil:
    """INOUT a cluster, which may become smaller or unique; False if it holds no root at all."""
    cdef int known
    if not cut(task, at.row, &at.lower, &at.upper):
        return False
    at.x = inside(at.lower, at.upper)
    if isfinite(at.lower) and isfinite(at.upper):
        known = prove(task, at)
        if known == 0:
            return False
        unique[0] = known > 0
    return True


cdef void sharpen(const Task *task, const TaskRows *rows, Found *found) noexcept nogil:
    """INOUT found: its clusters, some of which become smaller, unique enclosures, or nothing."""
    cdef real lo = task.call.lo, hi = task.call.hi
    cdef ix *count = &found.count[rows.first]
    cdef ix row, j, at = rows.task * found.cap, end, out = at, start
    cdef Cluster one
    for row in range(rows.n):
        end, start = at + count[row], out
        for j in range(at, end):
            one.row, one.lower, one.upper, one.x = row, found.lower[j], found.upper[j], found.x[j]
            if not found.unique[j]:
                one.after = max(found.upper[out - 1] if out > start else -INFINITY, lo)
                one.before = min(found.lower[j + 1] if j + 1 < end else INFINITY, hi)
                if not sharpen_one(task, &one, &found.unique[j]):
                    continue
            found.lower[out], found.upper[out] = one.lower, one.upper
            found.x[out], found.unique[out] = one.x, found.unique[j]
            out += 1
        count[row] = out - start
        at = end
