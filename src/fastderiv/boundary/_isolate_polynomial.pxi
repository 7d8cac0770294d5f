# Intervals of rows whose units nearly cancel: a Taylor polynomial of f with a bound of its rest
# decides them.
# docs/rounding.md §1.6.
# needs: ROUND (_net.pxi)
# needs: dsigma, emit_clusters, error, Pieces, push_bracket, sigma, Sigmoids, Task,
#        Verdict (_isolate_terms.pxi)

cdef struct Taylor:                     # f around t, a polynomial in τ = (x − t)/h, |τ| ≤ 1
    vf c0, c1, c2, c3, c4
    vf rest                             # a bound of all further terms
    vf size                             # Σ |d_i| |a_i h|ⁿ/n! σ', n from 1 to 4
    vf fl, fr                           # f at the ends


cdef inline void expand(const Task *task, const Pieces *at, const real *q, vf h,
                        Taylor *p) noexcept nogil:
    """OUT p, as computed, from q at t; h is how far the ends are from t, at most."""
    cdef const Sigmoids *f = task.call.f
    cdef ix n = f.units, i
    cdef vf zero = vset1(0), one = vset1(1)
    cdef vf c0 = vset1(f.c), c1 = zero, c2 = zero, c3 = zero, c4 = zero, fl = c0, fr = c0
    cdef vf rest = zero, size = zero, ql, qr, qt, k, s, d, e, top, slope
    for i in range(n):
        ql, qr, qt = vload(at.ql + i * VL), vload(at.qr + i * VL), vload(q + i * VL)
        d, k = vset1(f.d[i]), vset1(f.a[i]) * h
        fl, fr, c0 = vfma(d, sigma(ql), fl), vfma(d, sigma(qr), fr), vfma(d, sigma(qt), c0)
        slope, s = dsigma(qt), one - 2.0 * sigma(qt)
        top = vsel_neg(vxor(ql, qr), vset1(0.25), vmax(dsigma(ql), dsigma(qr)))
        top = top + at.es * at.es * 0.0667
        e = d * slope * k
        c1, size = c1 + e, size + vabs(e)
        e = e * k * 0.5
        c2, size = c2 + e * s, size + vabs(e)
        e = e * k * (1. / 3)
        c3, size = c3 + e * (one - 6.0 * slope), size + vabs(e)
        e = e * k * 0.25
        c4, size = c4 + e * s * (one - 12.0 * slope), size + vabs(e)
        e = k * k
        rest += vabs(d * k) * (e * e) * top
    p.c0, p.c1, p.c2, p.c3, p.c4, p.fl, p.fr = c0, c1, c2, c3, c4, fl, fr
    p.rest, p.size = rest * (1.02 / 120) + vset1(1e-100), size


cdef unsigned decide_whole(Task *task, const Pieces *at, vf t, unsigned live) noexcept nogil:
    """The lanes that f's polynomial of degree 4 at t decides; the q of t are in task.points."""
    cdef const Sigmoids *f = task.call.f
    cdef vf h = vmax(at.r - t, t - at.l) * (1 + 4 * ROUND), zero = vset1(0)
    cdef vf c0, c1, c2, c3, c4, E, low, wrong
    cdef unsigned flat, same, opposite
    cdef Verdict v
    cdef Taylor p
    live &= vlt(at.es, vset1(0.01)) & vlt(h * f.widest, vset1(1e30))
    if not live:
        return 0
    expand(task, at, task.points, h, &p)
    E = error(f, at.es)
    wrong = p.size * (vset1(f.slope_u + 100 * ROUND) + 1.02 * at.es)
    c0, c1, c2 = vabs(p.c0), vabs(p.c1), vsel_neg(p.c0, -p.c2, p.c2)
    c3, c4 = vabs(p.c3), vabs(p.c4)
    low = c0 - vsel_lt(c1, 2.0 * c2, c1 * c1 / (4.0 * c2), c1 - c2) - c3 - c4
    v.slope = c1 - 2.0 * vabs(c2) - 3.0 * c3 - 4.0 * c4 - 5.0 * p.rest - 8.0 * wrong
    same = (vlt(E, p.fl) & vlt(E, p.fr)) | (vlt(p.fl, -E) & vlt(p.fr, -E))
    opposite = (vlt(E, p.fl) & vlt(p.fr, -E)) | (vlt(p.fl, -E) & vlt(E, p.fr))
    v.none = vlt(3.0 * E + 2.0 * (wrong + p.rest), low) | (same & vlt(zero, v.slope))
    v.one = opposite & vlt(zero, v.slope) & ~v.none & live
    flat = vlt(c0 + c1 + vabs(c2) + c3 + c4 + p.rest + wrong, 3.0 * E)
    flat &= ~v.none & ~v.one & live
    if v.one:
        v.fl, v.fr = p.fl, p.fr
        v.slope = vmin(v.slope / h * (1 - 8 * ROUND), vset1(1e300))
        push_bracket(task, at, &v, v.one)
    emit_clusters(task, at, flat)
    return live & (v.none | v.one | flat)
