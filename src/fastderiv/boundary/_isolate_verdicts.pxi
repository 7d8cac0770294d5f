# What is known about an interval of f from its two ends: docs/rounding.md §1.4.
# needs: ROUND (_net.pxi)
# needs: NARROWEST (_enclosures.pxi)
# needs: count_units, dsigma, emit_clusters, error, Isolate, Pieces, push, push_bracket, sigma,
#        Sigmoids, slope_error, Stack, Task, Verdict (_isolate_terms.pxi)

cdef struct Ranges:                     # over an interval, in lanes
    vf fl, fr                           # f at the ends
    vf low, high                        # f
    vf m, M                             # f'
    vf T                                # Σ |a_i d_i| max σ'_i


cdef inline void sum_ranges(const Isolate *call, const Pieces *at, Ranges *to,
                            const int H) noexcept nogil:
    """OUT the ranges, as computed: every term of f is monotone and every σ' unimodal."""
    cdef const Sigmoids *f = call.f
    cdef vf fl = vset1(f.c), fr = fl, low = fl, high = fl, m = vset1(0), M = m, T = m
    cdef vf yl, yr, pl, pr, top, bottom
    cdef ix i
    for i in range(count_units(f, H)):
        yl, yr = vload(at.ql + i * VL), vload(at.qr + i * VL)
        pl, pr = dsigma(yl), dsigma(yr)
        top = vsel_neg(vxor(yl, yr), vset1(0.25), vmax(pl, pr)) * vset1(f.g[i])
        bottom = vmin(pl, pr) * vset1(f.g[i])
        T += vabs(top)
        yl = sigma(yl) * vset1(f.d[i])
        yr = sigma(yr) * vset1(f.d[i])
        fl += yl
        fr += yr
        if (f.a[i] < 0) == (f.d[i] < 0):
            low, high, m, M = low + yl, high + yr, m + bottom, M + top
        else:
            low, high, m, M = low + yr, high + yl, m + top, M + bottom
    to.fl, to.fr, to.low, to.high, to.m, to.M, to.T = fl, fr, low, high, m, M, T


cdef inline unsigned clear_of_zero(const Ranges *f, vf w, vf E) noexcept nogil:
    """The lanes where f has one sign at both ends and cannot reach 0 between them.

    It cannot because its slope stays in [m, M].  Where f > 0 at both ends and m < 0 < M, f is
    nowhere below the point where the line of slope m through the left end meets that of slope M
    through the right end.  |f| is taken 3E smaller (rounding.md §1.4).
    """
    cdef vf zero = vset1(0), A = vabs(f.fl) - 3.0 * E, B = vabs(f.fr) - 3.0 * E
    cdef vf m = vsel_neg(f.fl, -f.M, f.m), M = vsel_neg(f.fl, -f.m, f.M)    # −f where f < 0
    cdef vf p = M / (M - m), drop = (m * w) * p
    return (vlt(zero, (A * p + B * (vset1(1) - p)) + drop) & vlt(zero, A) & vlt(zero, B)
            & vlt(m, zero) & vlt(zero, M))


cdef inline void judge(const Isolate *call, const Pieces *at, Verdict *v,
                       const int H) noexcept nogil:
    """OUT v: for each lane, whether its interval holds no root, holds one simple root, or is given
    up as a cluster."""
    cdef const Sigmoids *f = call.f
    cdef Ranges to
    cdef vf E, Ep, w = at.r - at.l, zero = vset1(0)
    cdef unsigned same, opposite, monotone, flat
    sum_ranges(call, at, &to, H)
    E, Ep = error(f, at.es), slope_error(f, to.T, at.es)
    to.m, to.M = to.m - Ep, to.M + Ep
    same = (vlt(E, to.fl) & vlt(E, to.fr)) | (vlt(to.fl, -E) & vlt(to.fr, -E))
    opposite = (vlt(E, to.fl) & vlt(to.fr, -E)) | (vlt(to.fl, -E) & vlt(E, to.fr))
    monotone = vlt(zero, to.m) | vlt(to.M, zero)
    v.slope = vmax(vmax(to.m, -to.M), zero)
    if f.one_root_at_most:
        monotone = ~0
    flat = vlt(vmax(vabs(to.fl), vabs(to.fr)) + 0.5 * w * vmax(to.M, -to.m), 4.0 * E)
    v.none = vlt(E, to.low) | vlt(to.high, -E) | (same & monotone)
    if same & ~v.none:
        v.none |= same & clear_of_zero(&to, w, E)
    v.one = opposite & monotone & ~v.none
    v.cluster = flat | ~(vlt(4.0 * E, to.high) | vlt(to.low, -4.0 * E)) | vlt(w, vset1(1e-300))
    v.cluster |= vlt(w, NARROWEST * ROUND * vmax(vabs(at.l), vabs(at.r))) & vlt(w, vset1(INFINITY))
    v.cluster &= ~v.none & ~v.one
    v.fl, v.fr = to.fl, to.fr


cdef inline void decide(Task *task, const Pieces *at, unsigned live, const int H) noexcept nogil:
    """Judge the intervals of the lanes `live`.

    Brackets and undecided intervals go to their stacks, clusters to the sink.
    """
    cdef const Isolate *call = task.call
    cdef Stack *todo = &task.todo
    cdef Verdict v
    cdef ix n = count_units(call.f, H), i
    cdef unsigned one, rest
    judge(call, at, &v, H)
    live &= vlt(at.l, at.r) & ~v.none
    # an interval with an infinite end is no bracket yet: it is split once more
    one = live & v.one & vlt(vset1(-INFINITY), at.l) & vlt(at.r, vset1(INFINITY))
    rest = live & ~one & ~v.cluster
    if one:
        push_bracket(task, at, &v, one)
    if rest:
        push(todo, 0, at.row, rest)
        push(todo, 1, at.l, rest)
        push(todo, 2, at.r, rest)
        for i in range(n):
            push(todo, 3 + i, vload(at.ql + i * VL), rest)
            push(todo, 3 + n + i, vload(at.qr + i * VL), rest)
        todo.n += vcount(rest)
    emit_clusters(task, at, live & v.cluster)
