# One row of a network of any depth: the line is cut until every part is decided.
# docs/rounding.md §2.6.
#
# A span is free of roots if 0 is outside f(X), or if f' has one sign and f the same sign at both
# ends; it holds one root if f' has one sign and f opposite signs there; it is a cluster if rounding
# hides the sign of f on all of it, or if it is too narrow.  Otherwise it is halved, and the parts
# close to its ends and its middle where f cannot reach 0 are left out.
# needs: ROUND (_net.pxi)
# needs: CLUSTER, NARROWEST, UNIQUE (_enclosures.pxi)
# needs: enclose, evaluate, HUGE, MarginRange (_deep_enclose.pxi)
# needs: cut_at, Deep, End, end_at, found_cluster, found_root, HARD, least_slope, list_enclosure,
#        resolution, Search, settle, Span, WORK (_deep_roots.pxi)

cdef enum:
    SPANS = 2048                        # room for undecided spans: floats can be halved 1100 times


cdef inline double clear_of(const End *e, const MarginRange *f, int way) noexcept nogil:
    """How far beyond e, to the right (way = 1) or left, f surely keeps its sign.

    By the slopes on the whole span (rounding.md §2.6); −1 where the sign is unknown.
    """
    cdef double fall
    if e.sign == 0 or not isfinite(e.t):
        return -1
    fall = -f.slopes.lo if e.sign * way > 0 else f.slopes.hi
    if not (fall <= HUGE):
        return 0
    if fall <= 0:
        return INFINITY
    return min(HUGE, e.least / fall * (1 - 8 * ROUND))


cdef inline double clear_of_point(const End *e, const MarginRange *f, int way) noexcept nogil:
    """As `clear_of`, from the span's inner point, where f' is known too.

    At a distance δ, |f| ≥ least + rise·δ − bend·δ²/2.
    """
    cdef double plain = clear_of(e, f, way), bend, rise, square, root
    if e.sign == 0 or not isfinite(e.t):
        return -1
    bend = max(fabs(f.curvatures.lo), fabs(f.curvatures.hi)) * (1 + 8 * ROUND)
    rise = e.sign * way * f.slope.mid - f.slope.rad
    if not (bend < HUGE and fabs(rise) < HUGE and bend > 0):
        return plain
    rise = rise - 4 * ROUND * fabs(rise)
    square = rise * rise + 2 * bend * e.least
    if not (1e-280 < square < HUGE):    # nothing overflows, and what underflows does not matter
        return plain
    root = sqrt(square)
    root = (rise + root) / bend if rise > 0 else 2 * e.least / (root - rise)
    return max(plain, min(HUGE, root * (1 - 32 * ROUND)))


cdef inline void push_span(Span *stack, ix *n, const End *l, const End *r) noexcept nogil:
    """INOUT stack and n: the span from l to r on top; there is room for it."""
    stack[n[0]].l, stack[n[0]].r = l[0], r[0]
    n[0] += 1


cdef inline End moved(const End *e, double by, int way) noexcept nogil:
    """e, moved by what is known to be free of roots; e itself if that is lost in rounding."""
    cdef End at = e[0]
    cdef double t
    if by > 1e-300:
        t = e.t + way * by
        t = t - way * 4 * ROUND * fabs(t)
        if (t - e.t) * way > 0:
            at.t, at.least = t, 0
    return at


cdef bint divide(const Span *span, double m, const MarginRange *f, Span *stack,
                 ix *n) noexcept nogil:
    """Push what is left of both halves, the left one last; False if there is no room."""
    cdef End mid = end_at(m, &f.f)
    cdef End l = moved(&span.l, clear_of(&span.l, f, 1), 1)
    cdef End r = moved(&span.r, clear_of(&span.r, f, -1), -1)
    cdef End before = moved(&mid, clear_of_point(&mid, f, -1), -1)
    cdef End after = moved(&mid, clear_of_point(&mid, f, 1), 1)
    if n[0] + 2 > SPANS:
        return False
    if l.t > after.t:
        after = l
    if after.t < r.t:
        push_span(stack, n, &after, &r)
    if r.t < before.t:
        before = r
    if l.t < before.t:
        push_span(stack, n, &l, &before)
    return True


cdef inline bint too_narrow(const Search *search, const Span *span) noexcept nogil:
    """Whether a span is not split any more: the least width grows with the work of its row.

    It begins at a few ulps.  Rows are searched from left to right: a stretch where units cancel, so
    that nothing can be decided, must not use up the work that is meant for the rest of the row.
    """
    cdef double width = span.r.t - span.l.t, size = max(fabs(span.l.t), fabs(span.r.t))
    if width <= NARROWEST * ROUND * size < INFINITY or search.work >= WORK:
        return True
    size = max(size, search.flow.spread)
    return search.work >= HARD and width <= resolution(search.work) * size < INFINITY


cdef inline bint hopeless(const Search *search, const Span *span,
                          const MarginRange *f) noexcept nogil:
    """Whether a span is a cluster because rounding hides the sign of f.

    It does so on all of the span or, in a row that has taken much work, at its ends and in between.
    """
    cdef double size = max(max(fabs(span.l.t), fabs(span.r.t)), search.flow.spread)
    if max(-f.range.lo, f.range.hi) <= 4 * f.f.rad < INFINITY:
        return True
    return (search.work >= HARD and span.l.sign == 0 and span.r.sign == 0
            and fabs(f.f.mid) <= f.f.rad and span.r.t - span.l.t <= 1e-2 * size < INFINITY)


cdef void solve_row(Search *search, Span *stack) noexcept nogil:
    """Isolate the roots from left to right; undecided spans wait on the stack."""
    cdef const Deep *call = search.call
    cdef MarginRange f
    cdef Span span
    cdef double m
    cdef ix n = 1
    evaluate(search.flow, call.lo, &f)
    stack[0].l = end_at(call.lo, &f.f)
    evaluate(search.flow, call.hi, &f)
    stack[0].r = end_at(call.hi, &f.f)
    search.before = call.lo
    while n > 0:
        if (search.work % 8 == 0 or search.flow.watch is not NULL) and interrupted(search.worker):
            return
        n -= 1
        span = stack[n]
        m = cut_at(search.flow, span.l.t, span.r.t)
        if not (span.l.t < m < span.r.t) or too_narrow(search, &span):
            found_cluster(search, span.l.t, span.r.t)
            continue
        enclose(search.flow, span.l.t, m, span.r.t, &f)
        search.work += 1
        if f.range.lo > 0 or f.range.hi < 0:
            continue
        if least_slope(&f) > 0 and span.l.sign != 0 and span.r.sign != 0:
            if span.l.sign == span.r.sign:
                continue
            if isfinite(span.r.t - span.l.t):
                found_root(search, &span, &f, m)
                continue
        if hopeless(search, &span, &f) or not divide(&span, m, &f, stack, &n):
            found_cluster(search, span.l.t, span.r.t)
    if search.pending:
        settle(search, call.hi)


cdef void solve_linear(Search *search) noexcept nogil:
    """No hidden layer: f = a t + s; a and s are differences of two numbers (rounding.md §2.7)."""
    cdef const Deep *call = search.call
    cdef double a = search.flow.a[0], s = search.flow.s[0], es = search.flow.es[0]
    cdef double x, radius, lower, upper
    search.work = 1
    if a == 0 or not (isfinite(a) and fabs(s) + es < HUGE):
        if not (a == 0 and fabs(s) > es):
            list_enclosure(search, call.lo, call.hi, 0, CLUSTER)
        return
    x = min(max(-s / a, -DBL_MAX), DBL_MAX)
    if fabs(x) + es / fabs(a) > HUGE:   # the root is beyond the range of floats, or nearly so
        lower, upper, radius = -INFINITY, INFINITY, INFINITY
        if fabs(s) > es and x > 0:
            lower = 0
        elif fabs(s) > es:
            upper = 0
    else:
        radius = (es / fabs(a) + 8 * ROUND * (fabs(x) + es / fabs(a))) * (1 + 8 * ROUND) + 1e-300
        lower, upper = x - radius, x + radius
    if call.lo < lower and upper < call.hi and radius < INFINITY:
        list_enclosure(search, lower, upper, x, UNIQUE)
    elif lower <= call.hi and call.lo <= upper:
        list_enclosure(search, max(lower, call.lo), min(upper, call.hi), x, CLUSTER)
