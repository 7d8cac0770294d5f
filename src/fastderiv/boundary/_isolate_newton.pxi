# From a bracket to an enclosure: Newton's method, with a proof.  docs/rounding.md §1.4.
# needs: ROUND (_net.pxi)
# needs: Sink, UNIQUE (_enclosures.pxi)
# needs: bend, Bracket, count_units, dsigma, error, Isolate, preactivation, real_row, sigma,
#        Sigmoids, slope_error, Stack, Task (_isolate_terms.pxi)

cdef enum:
    STEPS = 100                         # steps for a bracket at most, bisections included

cdef struct Jet:                        # in lanes, at a point
    vf f, slope, T, curvature           # f, f', Σ |a_i d_i| σ'_i and f''/2

cdef struct Point:                      # f at x, one row alone
    real x, f, E, slope
    real reach                          # 2.2 (|f| + E)/|f'|: so far off, |f| > E if f' is steady
    int sign                            # of f, 0 where it cannot be told


cdef inline real split_point(const Sigmoids *f, real l, real r) noexcept nogil:
    """Where an infinite interval is cut, or one so wide that its exponents are halved."""
    cdef real near, far, t
    if l == -INFINITY:
        return 0 if r == INFINITY else max(r - max(f.beyond[0], 0.5 * fabs(r)), -DBL_MAX)
    if r == INFINITY:
        return min(l + max(f.beyond[1], 0.5 * fabs(l)), DBL_MAX)
    if l < 0 < r:
        return 0
    near, far = max(min(fabs(l), fabs(r)), f.narrow), max(fabs(l), fabs(r))
    t = sqrt(near) * sqrt(far)
    return -t if l < 0 else t


cdef inline vf middle(const Sigmoids *f, vf l, vf r) noexcept nogil:
    """Where intervals are cut: in the middle, or by `split_point` where they are wide."""
    cdef vf w = r - l, near = vmin(vabs(l), vabs(r)) + vset1(f.narrow)
    cdef unsigned lanes = vlt(64.0 * near, w) | ~vlt(w, vset1(INFINITY))
    cdef real t[VL]
    cdef int i
    vstore(t, 0.5 * l + 0.5 * r)
    lanes &= (1 << VL) - 1
    while lanes:
        i = vfirst(lanes)
        t[i] = split_point(f, vget(l, i), vget(r, i))
        lanes &= lanes - 1
    return vload(t)


cdef inline void values(const Task *task, vf row, vf x, Jet *at, const int H) noexcept nogil:
    """OUT f, f', T and f''/2 at x."""
    cdef const Sigmoids *f = task.call.f
    cdef vf value = vset1(f.c), slope = vset1(0), T = slope, curvature = slope, q, y, e
    cdef ix i
    for i in range(count_units(f, H)):
        q = vtail(preactivation(f, i, x, vgather(task.s + i * task.call.task_rows, row)))
        y = sigma(q)
        e = dsigma(q) * vset1(f.g[i])
        value = vfma(vset1(f.d[i]), y, value)
        slope += e
        T += vabs(e)
        curvature = vfma(e * vset1(f.a[i]), vset1(0.5) - y, curvature)
    at.f, at.slope, at.T, at.curvature = value, slope, T, curvature


cdef void visit(const Task *task, ix row, real x, Point *p) noexcept nogil:
    """OUT p: f of one row at x."""
    cdef Jet at
    values(task, vset1(row), vset1(x), &at, 0)
    p.x, p.f, p.slope = x, vget(at.f, 0), vget(at.slope, 0)
    p.E = vget(error(task.call.f, vset1(task.es[row])), 0)
    p.sign = (p.f > p.E) - (p.f < -p.E)
    p.reach = 2.2 * (fabs(p.f) + p.E) / fabs(p.slope) + 4 * ROUND * fabs(x) + 1e-300


cdef void narrow(const Task *task, ix row, int rising, const Point *x, real *lower,
                 real *upper) noexcept nogil:
    """Cut [lower, upper], which holds one root, by signs of f further and further from x.

    Before the root f has the sign −rising.
    """
    cdef real by = x.reach, l = lower[0], r = upper[0]
    cdef Point p
    cdef ix i
    for i in range(40):
        if lower[0] == l and x.x - by > l:
            visit(task, row, x.x - by, &p)
            if p.sign == -rising:
                lower[0] = p.x
            elif p.sign == rising:
                upper[0] = min(upper[0], p.x)
        if upper[0] == r and x.x + by < r:
            visit(task, row, x.x + by, &p)
            if p.sign == rising:
                upper[0] = p.x
            elif p.sign == -rising:
                lower[0] = max(lower[0], p.x)
        if not ((lower[0] == l and x.x - by > l) or (upper[0] == r and x.x + by < r)):
            return
        by *= 2


cdef void narrow_lanes(const Task *task, const Bracket *at, unsigned lanes, vf *lower,
                       vf *upper) noexcept nogil:
    """INOUT lower, upper: as `narrow` does, for the enclosures of the lanes."""
    cdef real l[VL]
    cdef real r[VL]
    cdef Point x
    cdef ix row
    cdef int i, rising
    vstore(l, lower[0])
    vstore(r, upper[0])
    while lanes:
        i = vfirst(lanes)
        lanes &= lanes - 1
        row, rising = <ix>vget(at.row, i), 1 if vget(at.negative, i) < vget(at.positive, i) else -1
        visit(task, row, vget(at.x, i), &x)
        narrow(task, row, rising, &x, &l[i], &r[i])
    lower[0], upper[0] = vload(l), vload(r)


cdef inline void put(Task *task, vf row, vf lower, vf upper, vf x, unsigned lanes) noexcept nogil:
    """Put enclosures of one root each into the sink, which has room for VL more than its cap."""
    cdef Sink *sink = &task.sink
    if sink.n <= sink.cap:
        vcompress(sink.row + sink.n, row, lanes)
        vcompress(sink.lower + sink.n, lower, lanes)
        vcompress(sink.upper + sink.n, upper, lanes)
        vcompress(sink.x + sink.n, vmin(vmax(x, lower), upper), lanes)
        vcompress(sink.kind + sink.n, vset1(UNIQUE), lanes)
    sink.n += vcount(lanes)


cdef inline void load_bracket(const Stack *stack, ix i, Bracket *at) noexcept nogil:
    cdef const real *p = stack.p + i
    at.row, at.negative, at.positive = vload(p), vload(p + stack.cap), vload(p + 2 * stack.cap)
    at.x, at.least = vload(p + 3 * stack.cap), vload(p + 4 * stack.cap)


cdef inline void store_bracket(Stack *stack, ix i, const Bracket *at,
                               unsigned lanes) noexcept nogil:
    """Store the brackets of the lanes, close together from i on."""
    cdef real *p = stack.p + i
    vcompress(p, at.row, lanes)
    vcompress(p + stack.cap, at.negative, lanes)
    vcompress(p + 2 * stack.cap, at.positive, lanes)
    vcompress(p + 3 * stack.cap, at.x, lanes)
    vcompress(p + 4 * stack.cap, at.least, lanes)


cdef inline unsigned newton_step(Task *task, Bracket *at, unsigned live, bint last,
                                 const int H) noexcept nogil:
    """Take one step in the brackets `live`; those that are done become enclosures.

    If E' + M₂ t < |f'(x)|/2, then |f'| is at least half of |f'(x)| within t of x; with
    t = 2(|f| + E)/|f'| that interval holds the root, and no other.  If this test fails, the least
    |f'| on the bracket gives a radius.  If f cannot be told from 0 any more and both radii are too
    wide, the signs of f around x decide.  Returns the brackets that need another step.
    """
    cdef const Isolate *call = task.call
    cdef vf x = at.x, es = vgather(task.es, at.row), one = vset1(1)
    cdef vf E, size, t, step, tol, next, ends, goal, l, r, best, lower, upper
    cdef unsigned wide, done
    cdef Jet f
    values(task, at.row, x, &f, H)
    E, size = error(call.f, es), vabs(f.slope)
    t = 2.0001 * (vabs(f.f) + E) / size
    step = 2.5 * t
    t = vsel_lt(slope_error(call.f, f.T, es) + bend(call.f, t), 0.4999 * size, t, vset1(INFINITY))
    tol = vmin(t, 1.0001 * (vabs(f.f) + E) / at.least)
    wide = ~vlt(tol, step)
    at.positive = vsel_lt(E, f.f, x, at.positive)
    at.negative = vsel_lt(f.f, -E, x, at.negative)
    l, r = vmin(at.negative, at.positive), vmax(at.negative, at.positive)
    step = f.f / f.slope                # Halley's method, its factor kept between ½ and 2
    next = x - step / vmin(vmax(one - step * (f.curvature / f.slope), vset1(0.5)), vset1(2))
    ends = tol * (1 + 4 * ROUND) + 2 * ROUND * vabs(x)
    goal = 0.4999 * call.xtol * vmax(one, vabs(x))
    done = vlt(ends, goal) | ~vlt(E, vabs(f.f)) | vlt(r - l, 4 * ROUND * vabs(x))
    if last:
        done = ~0
    done &= live
    live &= ~done
    if done:
        best = vsel_lt(t, vset1(INFINITY), vsel_lt(l, next, vsel_lt(next, r, next, x), x), x)
        lower, upper = vmax(l, x - ends), vmin(r, x + ends)
        wide &= done & ~vlt(0.5 * (upper - lower), goal)
        if wide:
            narrow_lanes(task, at, wide, &lower, &upper)
        put(task, at.row, lower, upper, best, done)
    t = middle(call.f, l, r)
    at.x = vsel_lt(l, next, vsel_lt(next, r, next, t), t)
    return live


cdef inline void refine(Task *task, const int H) noexcept nogil:
    """Turn all brackets into enclosures.

    Each round takes one step in every bracket and packs the unfinished ones to the front.
    """
    cdef Stack *stack = &task.bracket
    cdef Bracket at
    cdef ix i, j, kept, step_number = 0
    cdef unsigned live
    while stack.n > 0:
        kept = 0
        for j in range(ceil_div(stack.n, VL)):
            i = j * VL
            load_bracket(stack, i, &at)
            at.row = real_row(task, at.row)
            live = (1 << min(<ix>VL, stack.n - i)) - 1
            live = newton_step(task, &at, live, step_number >= STEPS, H)
            if live:
                store_bracket(stack, kept, &at, live)
                kept += vcount(live)
        stack.n = kept
        step_number += 1
