# ---- all roots of f(t) = c + Σ d_i σ(a_i t + s_i) in [lo, hi], for many rows s ------------------------------------
#
# Lanes are (row, interval).  At a point t only q_i = σ(−|z_i|) with the sign of z_i = a_i t + s_i is kept: σ and σ' at
# t come from it, and so do the ranges of every term of f (monotone) and of f' (unimodal) on an interval, from its two ends.
# t = ±∞ is a point like others.  An interval is excluded, or a bracket of exactly one simple root, or a cluster, or split.
#
# Rounding.  u = 2⁻⁵³; es ≥ |ŝ_i − s_i|; edc = Σ|d̂_i − d_i| + |ĉ − c|; D = Σ|d_i|; G = Σ|a_i d_i|.
#     ẑ = (a t + ŝ)(1 + δ), |δ| ≤ u
#   for all sizes of a t and s, as the operation is rounded once on every level (vfma_once, and
#   fma): rounded twice, it would be wrong by u |a t|, which is 0.1 for offsets of 1e15.  Where it
#   underflows, its sign is right; where it overflows, σ' is 0.  Nothing else adds a product to a
#   sum that it may cancel: what es holds (below, `offsets`) is a bound relative to Σ |w x| + |b|.
#   No statement is made unless it clears
#     |f̂ − f| ≤ E = 1.001 (u D (0.225 + 2.5) + (H + 3) u (|c| + D) + edc) + 0.251 es D
#   0.225: δ, and sup |z σ'(z)| = 0.2239.  2.5: vtail is within 1.13u (proven, simd.h), and 1 − t
#   adds u/2.  H + 3: products and sums in any order, fused or not.  0.251: sup σ' = ¼.
#     |f̂' − f'| ≤ E' = T ((750 + H) u + 1.02 es) + G (es²/15 + 4e−308) + A 1e−323 + 1e−320,
#     T = Σ |a_i d_i| max σ'_i,   A = Σ |a_i|,   es < 0.01
#   (log σ')' = 1 − 2σ is in [−1, 1]: δ costs |z| u ≤ 708 u of σ', beyond 708 both are below 4e−308,
#   and es costs e^es − 1.  7u for t(1 − t): vtail's 4.31u (1 − 2t)/(1 − t), u/2 and u; 3u for a d
#   and the product, H u for the sum.  es²/15: a centre within es of an end may seem to lie outside,
#   which takes es²/16 of ¼.  For larger es, 0.0964 es G.  A 1e−323: d_i so small that scaling has
#   taken bits; 1e−320: products that underflow, times the widest interval.
#     |f''| ≤ M₂ = max|a| (0.0964 Σ |a_i / max|a|| (|a_i d_i| + |a_i| 1e−323) + 1e−320),
#     sup |σ''| = 1/(6√3)
#   M₂ is that of the whole line.  Where it is too much: `steepness`, |σ''| near a point; `narrow`,
#   signs alone; and `decide_whole`, a polynomial with its rest.  They say themselves what rounding
#   costs them.
# Everything is scaled so that the largest of |d_i| and |c| is about 1.

from libc.math cimport fma
from libc.stdint cimport int64_t

cdef struct Sigmoids:
    ix units
    const real *a
    const real *d
    const real *g                       # a·d
    real c
    real E, E_s                         # E = E + E_s·es
    real slope_u, slopes, least_slope   # (750 + H)u, G, and what does not depend on T or es
    real curvature, widest              # M₂ / max|a|, which neither overflows nor vanishes, and max|a|
    real beyond[2]                      # how far from an end the way to −∞ or ∞ is split
    real limit[2]                       # f(±∞), its sign exactly; NaN where a unit stays in between
    real narrow, slowest                # 16/max|a|, nothing happens on a smaller scale; the least |a| but 0
    bint few                            # every row has one root at most, and then it is simple

cdef struct Stack:                      # fields of `cap` numbers each
    real *p
    ix n, cap

cdef struct Isolate:                    # a call
    const Sigmoids *f
    Batch other                         # the other inputs; its net makes the offsets s
    const Layer *magnitudes             # the same with absolute values
    real lo, hi, xtol
    ix block                            # rows of a task
    ix breaks                           # points at which every row is cut to begin with
    ix todo_cap, bracket_cap
    Found found

cdef struct Block:                      # one task, in scratch
    const Isolate *a
    Worker *worker
    ix rows
    real *s                             # (units, block)
    real *es                            # (block,)
    real *spent                         # (block,) splits
    real *points                        # (2, units, VL) the q of two neighbours
    real *item                          # (3 + 2·units, VL)
    real *t                             # (MOST_BREAKS + 2, VL)
    real *x                             # (n_in, block) the other inputs
    real *magnitudes                    # (units, block) the sums of absolute values
    Stack todo                          # undecided: row, l, r, q at l, q at r
    Stack bracket                       # row, the end with f < 0, the end with f > 0, first guess, least |f'|
    Sink sink
    ix *start
    ix *order

cdef struct Verdict:                    # bit i: lane i
    unsigned none, one, any
    vf fl, fr, slope                    # f at both ends, least |f'|

cdef enum:
    MOST_BREAKS = 16
    BUDGET = 4000                       # splits of a row; what is undecided then is a cluster
    MANY = 300                          # splits; then polynomials judge a row's intervals too
    DEPTH = 192                         # items that one lane at a time may add to a full stack
    STEPS = 100                         # of Newton's method; bisections among them

cdef inline vf sigma(vf q) noexcept nogil:
    return vsel_neg(q, vabs(q), vset1(1) - vabs(q))


cdef inline vf dsigma(vf q) noexcept nogil:
    return vabs(q) * (vset1(1) - vabs(q))


cdef inline ix count_units(const Sigmoids *f, const int H) noexcept nogil:
    return H if H else f.units


cdef inline vf preactivation(const Sigmoids *f, ix i, vf t, vf s) noexcept nogil:
    if f.a[i] == 0:                     # 0·∞
        return s
    return vfma_once(vset1(f.a[i]), t, s)


cdef inline vf error(const Sigmoids *f, vf es) noexcept nogil:
    return vfma(vset1(f.E_s), es, vset1(f.E))


cdef inline vf bend(const Sigmoids *f, vf t) noexcept nogil:
    """How much f' may change within t, M₂ t; ∞ or NaN where t is infinite."""
    return vset1(f.curvature) * (vset1(f.widest) * t)


cdef inline vf slope_error(const Sigmoids *f, vf T, vf es) noexcept nogil:
    cdef vf G = vset1(f.slopes), near = T * (1.02 * es) + es * es * (0.0667 * G), far = es * (0.0964 * G)
    return T * vset1(f.slope_u) + vsel_lt(es, vset1(0.01), near, far) + vset1(f.least_slope)


# 1. What is known about an interval

cdef inline void judge(const Isolate *a, vf l, vf r, const real *ql, const real *qr, vf es, Verdict *v, const int H) noexcept nogil:
    """IN q at both ends; OUT v: the lanes whose interval holds no root, exactly one simple root, or
    stays a cluster.

    Two slopes: where f > 0 at both ends and m ≤ f' ≤ M, m < 0 < M, f is nowhere below the point
    where the line with m from the left meets that with M from the right.  |f| is taken 3E smaller,
    2E more than needed: that pays for its rounding.
    """
    cdef const Sigmoids *f = a.f
    cdef vf fl = vset1(f.c), fr = fl, low = fl, high = fl, m = vset1(0), M = m, T = m
    cdef vf yl, yr, pl, pr, top, bottom, E, Ep, w, A, B, p, drop, zero = vset1(0)
    cdef ix i
    cdef unsigned same, monotone, flat
    for i in range(count_units(f, H)):
        yl, yr = vload(ql + i * VL), vload(qr + i * VL)
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
    E, Ep, w = error(f, es), slope_error(f, T, es), r - l
    m, M = m - Ep, M + Ep
    same = (vlt(E, fl) & vlt(E, fr)) | (vlt(fl, -E) & vlt(fr, -E))
    monotone = vlt(zero, m) | vlt(M, zero)
    v.slope = vmax(vmax(m, -M), zero)
    if f.few:
        monotone = ~0
    flat = vlt(vmax(vabs(fl), vabs(fr)) + 0.5 * w * vmax(M, -m), 4.0 * E)
    v.none = vlt(E, low) | vlt(high, -E) | (same & monotone)
    if same & ~v.none:
        A, B, p = vabs(fl) - 3.0 * E, vabs(fr) - 3.0 * E, m
        m, M = vsel_neg(fl, -M, m), vsel_neg(fl, -p, M)         # f < 0: turned around
        p = M / (M - m)
        drop = (m * w) * p
        v.none |= same & vlt(zero, (A * p + B * (vset1(1) - p)) + drop) & vlt(zero, A) & vlt(zero, B) & vlt(m, zero) & vlt(zero, M)
    v.one = ((vlt(E, fl) & vlt(fr, -E)) | (vlt(fl, -E) & vlt(E, fr))) & monotone & ~v.none
    v.any = flat | ~(vlt(4.0 * E, high) | vlt(low, -4.0 * E)) | vlt(w, vset1(1e-300))
    v.any = (v.any | (vlt(w, 8 * ROUND * vmax(vabs(l), vabs(r))) & vlt(w, vset1(INFINITY)))) & ~v.none & ~v.one
    v.fl, v.fr = fl, fr


cdef inline void push(Stack *s, ix field, vf v, unsigned lanes) noexcept nogil:
    vcompress(s.p + field * s.cap + s.n, v, lanes)


cdef inline void push_bracket(Block *b, vf row, vf l, vf r, vf fl, vf fr, vf slope,
                              unsigned lanes) noexcept nogil:
    """The lanes whose interval holds one simple root: opposite signs of f at the ends, and |f'| ≥
    slope."""
    push(&b.bracket, 0, row, lanes)
    push(&b.bracket, 1, vsel_neg(fl, l, r), lanes)
    push(&b.bracket, 2, vsel_neg(fl, r, l), lanes)
    push(&b.bracket, 3, vmin(vmax(vfma(r - l, fl / (fl - fr), l), l), r), lanes)
    push(&b.bracket, 4, slope, lanes)
    b.bracket.n += vcount(lanes)


cdef inline void emit_clusters(Block *b, vf row, vf l, vf r, unsigned lanes) noexcept nogil:
    cdef ix i
    while lanes:
        i = vfirst(lanes)
        emit(&b.sink, <ix>vget(row, i), vget(l, i), vget(r, i), inside(vget(l, i), vget(r, i)),
             CLUSTER)
        lanes &= lanes - 1


cdef inline void decide(Block *b, vf row, vf l, vf r, const real *ql, const real *qr, vf es, unsigned live, const int H) noexcept nogil:
    """Judge the intervals of the lanes `live`: brackets and undecided ones go to their stacks,
    clusters to the sink."""
    cdef const Isolate *a = b.a
    cdef Verdict v
    cdef ix n = count_units(a.f, H), i
    cdef unsigned one, rest
    judge(a, l, r, ql, qr, es, &v, H)
    live &= vlt(l, r) & ~v.none
    one = live & v.one & vlt(vset1(-INFINITY), l) & vlt(r, vset1(INFINITY))     # an infinite end is no bracket: split once more
    rest = live & ~one & ~v.any
    if one:
        push_bracket(b, row, l, r, v.fl, v.fr, v.slope, one)
    if rest:
        push(&b.todo, 0, row, rest)
        push(&b.todo, 1, l, rest)
        push(&b.todo, 2, r, rest)
        for i in range(n):
            push(&b.todo, 3 + i, vload(ql + i * VL), rest)
            push(&b.todo, 3 + n + i, vload(qr + i * VL), rest)
        b.todo.n += vcount(rest)
    emit_clusters(b, row, l, r, live & v.any)


# 2. From the bounds and a few points in between

cdef inline void centres(const Block *b, ix row, const int H) noexcept nogil:
    """b.t = lo, the points, hi, for VL rows: the units' centres, or quantiles of some of them,
    within the bounds.

    Beside the centres: symmetric networks have roots exactly at them.
    """
    cdef const Isolate *a = b.a
    cdef const Sigmoids *f = a.f
    cdef ix n = count_units(f, H), picked = min(n, <ix>MOST_BREAKS), i, k, unit
    cdef vf lo = vset1(a.lo), hi = vset1(a.hi), t, other
    cdef real *at = b.t + VL
    for i in range(picked):
        unit = i * n // picked
        t = vset1(0)
        if f.a[unit] != 0:
            t = (vset1(0.0371) - vload(b.s + unit * a.block + row)) / vset1(f.a[unit])
        t = vmin(vmax(t, lo), hi)
        for k in range(i):                              # insertion sort
            other = vload(at + k * VL)
            vstore(at + k * VL, vmin(t, other))
            t = vmax(t, other)
        vstore(at + i * VL, t)
    if a.breaks < picked:
        for k in range(a.breaks):
            vstore(at + k * VL, vload(at + ((2 * k + 1) * picked // (2 * a.breaks)) * VL))
    vstore(b.t, lo)
    vstore(at + a.breaks * VL, hi)


cdef inline void at_point(const Block *b, ix row, vf t, real *q, const int H) noexcept nogil:
    """OUT q of VL rows from `row` at t."""
    cdef const Sigmoids *f = b.a.f
    cdef ix i
    for i in range(count_units(f, H)):
        vstore(q + i * VL, vtail(preactivation(f, i, t, vload(b.s + i * b.a.block + row))))


cdef inline void at_infinity(const Block *b, ix row, real side, real *q, const int H) noexcept nogil:
    """The same at t = ±∞: every exponential but those of units that do not see t is 0."""
    cdef const Sigmoids *f = b.a.f
    cdef ix i
    for i in range(count_units(f, H)):
        if f.a[i] == 0:
            vstore(q + i * VL, vtail(vload(b.s + i * b.a.block + row)))
        else:
            vstore(q + i * VL, vset1(0.0 if (f.a[i] > 0) == (side > 0) else -0.0))


cdef inline void begin(Block *b, const int H) noexcept nogil:
    """Judge the intervals between a row's first points, row by row in lanes."""
    cdef const Isolate *a = b.a
    cdef ix row, k, j, n = count_units(a.f, H)
    cdef real numbers[VL]
    cdef vf t, before, rows
    cdef real *q
    cdef real *last
    for k in range(VL):
        numbers[k] = k
    for j in range((b.rows + VL - 1) // VL):
        row = j * VL
        centres(b, row, H)
        rows = vload(numbers) + vset1(row)
        before = vset1(a.lo)
        for k in range(a.breaks + 2):
            q, last = b.points + (k & 1) * n * VL, b.points + (~k & 1) * n * VL
            t = vload(b.t + k * VL)
            if (k == 0 and a.lo == -INFINITY) or (k == a.breaks + 1 and a.hi == INFINITY):
                at_infinity(b, row, a.hi if k else a.lo, q, H)
            else:
                at_point(b, row, t, q, H)
            if k:
                decide(b, rows, before, t, last, q, vload(b.es + row), vlt(rows, vset1(b.rows)), H)
            before = t
        make_room(b, H)


# 3. Splitting

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
    cdef vf w = r - l
    cdef unsigned lanes = vlt(64.0 * (vmin(vabs(l), vabs(r)) + vset1(f.narrow)), w) | ~vlt(w, vset1(INFINITY))
    cdef real t[VL]
    cdef int i
    vstore(t, 0.5 * l + 0.5 * r)
    lanes &= (1 << VL) - 1
    while lanes:
        i = vfirst(lanes)
        t[i] = split_point(f, vget(l, i), vget(r, i))
        lanes &= lanes - 1
    return vload(t)


cdef inline unsigned afford(Block *b, vf row, vf l, vf r, unsigned live,
                            unsigned *hard) noexcept nogil:
    """The lanes of rows with splits left and where there is room for two more items; other
    intervals become clusters.  OUT hard: those of rows that have taken many splits.
    """
    cdef unsigned lanes = live
    cdef bint full = b.todo.n + 3 * VL > b.todo.cap
    cdef ix i, at
    hard[0] = 0
    while lanes:
        i = vfirst(lanes)
        lanes &= lanes - 1
        at = <ix>vget(row, i)
        b.spent[at] += 1
        if b.spent[at] > MANY:
            hard[0] |= 1u << i
        if full or b.spent[at] > BUDGET:
            emit(&b.sink, at, vget(l, i), vget(r, i), inside(vget(l, i), vget(r, i)), CLUSTER)
            live &= ~(1u << i)
    return live


cdef unsigned decide_whole(Block *b, vf row, vf l, vf t, vf r, vf es, unsigned live) noexcept nogil:
    """The lanes whose interval (its q are in b.item and b.points) f's polynomial of degree 4 at t
    decides.

    Units that cancel leave wide sums of their ranges, but a small polynomial: its coefficients are
    sums too, and cancel.  With h the larger half and τ = (x − t)/h in [−1, 1]:

        f = Σ_{n≤4} c_n τⁿ ± rest,   c_n = Σ_i d_i (a_i h)ⁿ/n! σ⁽ⁿ⁾(z_i),
        rest = Σ_i |d_i| |a_i h|⁵/120 max σ'_i

    as |σ⁽ⁿ⁾| ≤ σ' for n = 2, …, 5: with p = σ', s = 1 − 2σ they are p s, p (1 − 6p), p s (1 − 12p)
    and p (1 − 30p + 120p²).  For the same reason rounding costs each c_n as much as σ' relatively,
    (850 + H) u + 1.02 es of Σ_i |d_i| |a_i h|ⁿ/n! p.
    """
    cdef const Sigmoids *f = b.a.f
    cdef ix n = f.units, i
    cdef vf h = vmax(r - t, t - l) * (1 + 4 * ROUND), zero = vset1(0), one = vset1(1)
    cdef vf c0 = vset1(f.c), c1 = zero, c2 = zero, c3 = zero, c4 = zero, fl = c0, fr = c0
    cdef vf rest = zero, size = zero
    cdef vf ql, qr, q, k, p, s, d, e, top, E, low, slope, wrong
    cdef unsigned none, one_root, flat, same, opposite
    live &= vlt(es, vset1(0.01)) & vlt(h * f.widest, vset1(1e30))
    if not live:
        return 0
    for i in range(n):
        ql, qr, q = vload(b.item + i * VL), vload(b.item + (n + i) * VL), vload(b.points + i * VL)
        d, k = vset1(f.d[i]), vset1(f.a[i]) * h
        fl, fr, c0 = vfma(d, sigma(ql), fl), vfma(d, sigma(qr), fr), vfma(d, sigma(q), c0)
        p, s = dsigma(q), one - 2.0 * sigma(q)
        top = vsel_neg(vxor(ql, qr), vset1(0.25), vmax(dsigma(ql), dsigma(qr))) + es * es * 0.0667
        e = d * p * k
        c1, size = c1 + e, size + vabs(e)
        e = e * k * 0.5
        c2, size = c2 + e * s, size + vabs(e)
        e = e * k * (1. / 3)
        c3, size = c3 + e * (one - 6.0 * p), size + vabs(e)
        e = e * k * 0.25
        c4, size = c4 + e * s * (one - 12.0 * p), size + vabs(e)
        e = k * k
        rest += vabs(d * k) * (e * e) * top
    E = error(f, es)
    # 1.02: the errors of the slopes at the ends; 1e-100: what underflows
    rest = rest * (1.02 / 120) + vset1(1e-100)
    wrong = size * (vset1(f.slope_u + 100 * ROUND) + 1.02 * es)
    # |f| from below; |c0| and the others are paid for once more, for the rounding of what follows
    c1, c2 = vabs(c1), vsel_neg(c0, -c2, c2)
    low = vabs(c0) - vsel_lt(c1, 2.0 * c2, c1 * c1 / (4.0 * c2), c1 - c2) - vabs(c3) - vabs(c4)
    slope = c1 - 2.0 * vabs(c2) - 3.0 * vabs(c3) - 4.0 * vabs(c4) - 5.0 * rest - 8.0 * wrong
    same = (vlt(E, fl) & vlt(E, fr)) | (vlt(fl, -E) & vlt(fr, -E))
    opposite = (vlt(E, fl) & vlt(fr, -E)) | (vlt(fl, -E) & vlt(E, fr))
    none = vlt(3.0 * E + 2.0 * (wrong + rest), low) | (same & vlt(zero, slope))
    one_root = opposite & vlt(zero, slope) & ~none & live
    flat = vlt(vabs(c0) + c1 + vabs(c2) + vabs(c3) + vabs(c4) + rest + wrong, 3.0 * E)
    flat &= ~none & ~one_root & live
    if one_root:
        slope = vmin(slope / h * (1 - 8 * ROUND), vset1(1e300))
        push_bracket(b, row, l, r, fl, fr, slope, one_root)
    emit_clusters(b, row, l, r, flat)
    return live & (none | one_root | flat)


cdef inline void split(Block *b, const int H) noexcept nogil:
    """Split undecided intervals, newest first, VL at a time, until none is left; one at a time
    where memory is short."""
    cdef const Isolate *a = b.a
    cdef const Sigmoids *f = a.f
    cdef ix n = count_units(f, H), i, take, at, rounds = 0
    cdef real *ql = b.item
    cdef real *qr = b.item + n * VL
    cdef vf row, l, r, t, es
    cdef unsigned live, hard
    while b.todo.n > 0:
        take = min(<ix>VL, b.todo.n) if b.todo.n + DEPTH < b.todo.cap else 1
        b.todo.n -= take
        at = b.todo.n
        row, l, r = vload(b.todo.p + at), vload(b.todo.p + b.todo.cap + at), vload(b.todo.p + 2 * b.todo.cap + at)
        live = afford(b, row, l, r, (1u << take) - 1, &hard)
        if not live:
            continue
        row = vmax(vmin(row, vset1(b.rows - 1)), vset1(0))      # what lies behind the last item may be anything
        es, t = vgather(b.es, row), middle(f, l, r)
        for i in range(n):
            vstore(ql + i * VL, vload(b.todo.p + (3 + i) * b.todo.cap + at))
            vstore(qr + i * VL, vload(b.todo.p + (3 + n + i) * b.todo.cap + at))
        for i in range(n):
            vstore(b.points + i * VL, vtail(preactivation(f, i, t, vgather(b.s + i * a.block, row))))
        if hard & live:
            live &= ~decide_whole(b, row, l, t, r, es, hard & live)
        decide(b, row, l, t, ql, b.points, es, live, H)
        decide(b, row, t, r, b.points, qr, es, live, H)
        make_room(b, H)
        rounds += 1
        if rounds % 64 == 0 and interrupted(b.worker):
            return


cdef inline void make_room(Block *b, const int H) noexcept nogil:
    if b.bracket.n > b.bracket.cap - (MOST_BREAKS + 2) * VL:
        refine(b, H)


# 4. Newton's method, with a proof

cdef inline void values(const Block *b, vf row, vf x, vf *f, vf *slope, vf *T, vf *curve, const int H) noexcept nogil:
    """OUT f, f', T and f''/2 at x."""
    cdef const Sigmoids *p = b.a.f
    cdef vf q, y, e
    cdef ix i
    f[0] = vset1(p.c)
    slope[0] = T[0] = curve[0] = vset1(0)
    for i in range(count_units(p, H)):
        q = vtail(preactivation(p, i, x, vgather(b.s + i * b.a.block, row)))
        y = sigma(q)
        e = dsigma(q) * vset1(p.g[i])
        f[0] = vfma(vset1(p.d[i]), y, f[0])
        slope[0] += e
        T[0] += vabs(e)
        curve[0] = vfma(e * vset1(p.a[i]), vset1(0.5) - y, curve[0])


cdef struct Point:                      # f at x, one row alone
    real x, f, E, slope
    real reach                          # 2.2 (|f| + E)/|f'|: there |f| > E if f' hardly changes
    int sign                            # of f, 0 where it cannot be told


cdef void visit(const Block *b, ix row, real x, Point *p) noexcept nogil:
    cdef vf f, slope, T, curve
    values(b, vset1(row), vset1(x), &f, &slope, &T, &curve, 0)
    p.x, p.f, p.slope, p.E = x, vget(f, 0), vget(slope, 0), vget(error(b.a.f, vset1(b.es[row])), 0)
    p.sign = (p.f > p.E) - (p.f < -p.E)
    p.reach = 2.2 * (fabs(p.f) + p.E) / fabs(p.slope) + 4 * ROUND * fabs(x) + 1e-300


cdef void narrow(const Block *b, ix row, int rising, const Point *x, real *lower,
                 real *upper) noexcept nogil:
    """Signs of f further and further from x cut [lower, upper], which holds one root; before the
    root f has the sign −rising."""
    cdef real by = x.reach, l = lower[0], r = upper[0]
    cdef Point p
    cdef ix i
    for i in range(40):
        if lower[0] == l and x.x - by > l:
            visit(b, row, x.x - by, &p)
            if p.sign == -rising:
                lower[0] = p.x
            elif p.sign == rising:
                upper[0] = min(upper[0], p.x)
        if upper[0] == r and x.x + by < r:
            visit(b, row, x.x + by, &p)
            if p.sign == rising:
                upper[0] = p.x
            elif p.sign == -rising:
                lower[0] = max(lower[0], p.x)
        if not ((lower[0] == l and x.x - by > l) or (upper[0] == r and x.x + by < r)):
            return
        by *= 2


cdef void narrow_lanes(const Block *b, vf row, vf n, vf p, vf x, vf *lower, vf *upper,
                       unsigned lanes) noexcept nogil:
    """The same for enclosures in lanes, whose f < 0 towards n and > 0 towards p."""
    cdef real l[VL]
    cdef real r[VL]
    cdef Point at
    cdef int i
    vstore(l, lower[0])
    vstore(r, upper[0])
    while lanes:
        i = vfirst(lanes)
        lanes &= lanes - 1
        visit(b, <ix>vget(row, i), vget(x, i), &at)
        narrow(b, <ix>vget(row, i), 1 if vget(n, i) < vget(p, i) else -1, &at, &l[i], &r[i])
    lower[0], upper[0] = vload(l), vload(r)


cdef inline void refine(Block *b, const int H) noexcept nogil:
    """From brackets to enclosures: one step of all of them at a time, those that need another move
    up.

    |f'| is at least half of |f'(x)| within t of x if E' + M₂ t < |f'(x)|/2; if t = 2(|f| + E)/|f'|
    the root is there, and no other.  Where that fails the least |f'| on the bracket gives a radius.
    M₂ and the least |f'| are those of the whole line and of the first bracket: where f cannot be
    told from 0 any more and they leave too much, the signs of f around x, which need neither, are
    the end.
    """
    cdef const Isolate *a = b.a
    cdef Stack *s = &b.bracket
    cdef vf row, n, p, x, least, es, E, f, slope, T, curve, size, t, l, r, step, next, best
    cdef vf tol, ends, goal, one = vset1(1)
    cdef ix i, j, kept, step_number = 0
    cdef unsigned live, done, wide
    while s.n > 0:
        kept = 0
        for j in range((s.n + VL - 1) // VL):
            i = j * VL
            live = ((1 << min(<ix>VL, s.n - i)) - 1)
            row, n, p = vload(s.p + i), vload(s.p + s.cap + i), vload(s.p + 2 * s.cap + i)
            x, least = vload(s.p + 3 * s.cap + i), vload(s.p + 4 * s.cap + i)
            row = vmax(vmin(row, vset1(b.rows - 1)), vset1(0))
            es = vgather(b.es, row)
            values(b, row, x, &f, &slope, &T, &curve, H)
            E, size = error(a.f, es), vabs(slope)
            t = 2.0001 * (vabs(f) + E) / size
            step = 2.5 * t
            t = vsel_lt(slope_error(a.f, T, es) + bend(a.f, t), 0.4999 * size, t, vset1(INFINITY))
            tol = vmin(t, 1.0001 * (vabs(f) + E) / least)
            wide = ~vlt(tol, step)
            p, n = vsel_lt(E, f, x, p), vsel_lt(f, -E, x, n)
            l, r = vmin(n, p), vmax(n, p)
            step = f / slope                            # Halley's, its factor kept tame
            next = x - step / vmin(vmax(one - step * (curve / slope), vset1(0.5)), vset1(2))
            ends = tol * (1 + 4 * ROUND) + 2 * ROUND * vabs(x)
            goal = 0.4999 * a.xtol * vmax(one, vabs(x))
            done = vlt(ends, goal) | ~vlt(E, vabs(f)) | vlt(r - l, 4 * ROUND * vabs(x))
            if step_number >= STEPS:
                done = ~0
            done &= live
            live &= ~done
            if done:
                best = vsel_lt(t, vset1(INFINITY), vsel_lt(l, next, vsel_lt(next, r, next, x), x), x)
                l, r = vmax(l, x - ends), vmin(r, x + ends)
                wide &= done & ~vlt(0.5 * (r - l), goal)
                if wide:
                    narrow_lanes(b, row, n, p, x, &l, &r, wide)
                put(b, row, l, r, best, done)
                l, r = vmin(n, p), vmax(n, p)
            t = middle(a.f, l, r)
            x = vsel_lt(l, next, vsel_lt(next, r, next, t), t)
            if live:
                vcompress(s.p + kept, row, live)
                vcompress(s.p + s.cap + kept, n, live)
                vcompress(s.p + 2 * s.cap + kept, p, live)
                vcompress(s.p + 3 * s.cap + kept, x, live)
                vcompress(s.p + 4 * s.cap + kept, least, live)
                kept += vcount(live)
        s.n = kept
        step_number += 1


cdef inline void put(Block *b, vf row, vf lower, vf upper, vf x, unsigned lanes) noexcept nogil:
    """Enclosures of one root each to the sink, which has room for VL more than its cap."""
    cdef Sink *s = &b.sink
    if s.n <= s.cap:
        vcompress(s.row + s.n, row, lanes)
        vcompress(s.lower + s.n, lower, lanes)
        vcompress(s.upper + s.n, upper, lanes)
        vcompress(s.x + s.n, vmin(vmax(x, lower), upper), lanes)
        vcompress(s.kind + s.n, vset1(UNIQUE), lanes)
    s.n += vcount(lanes)


# 5. Clusters, once more

cdef bint decided_beyond(const Block *b, ix row, real t, ix side) noexcept nogil:
    """Whether f has one sign from t to ±∞ (side 1 or 0), because its limit has it or is 0, and so
    have the slowest units.

    z is rounded once, so it is wrong by u z + es < 1.2e-6: as much, relatively, is every e^(−z) and
    every sum of them of one sign, which 1e-5 and 1.001 pay for.  1e-318 and 1e-310 pay for numbers
    δ so small that they lost bits, and for products that underflow.

    Past all centres, f − f(±∞) = Σ δ_i τ_i with τ_i = σ(−|z_i|) within e^(−2|z_i|) of e^(−|z_i|).
    Further on, all of these shrink at least as fast as the slowest: if its sum outweighs the others
    at t, it does for good.
    """
    cdef const Sigmoids *f = b.a.f
    cdef real z, e, delta, nearest = INFINITY, slow = 0, size = 0, rest = 0
    cdef ix i
    if not (f.limit[side] == f.limit[side]) or not b.es[row] < 1e-6:
        return False
    for i in range(f.units):
        z = fma(f.a[i], t, b.s[i * b.a.block + row])
        if not 1 < (z if (f.a[i] > 0) == (side > 0) else -z) < 1e9:
            return False
        if fabs(f.a[i]) == f.slowest:
            nearest = min(nearest, fabs(z))
    for i in range(f.units):
        z = fabs(fma(f.a[i], t, b.s[i * b.a.block + row]))
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


cdef bint cut(const Block *b, ix row, real *lower, real *upper) noexcept nogil:
    """Take from a cluster what is decided on the way to ±∞; whether anything is left."""
    cdef real far = 32 / b.a.f.slowest, end
    cdef ix k
    if upper[0] == INFINITY and lower[0] > -INFINITY:
        for k in range(24):
            end = lower[0] + far * ((1 << k) - 1)
            if decided_beyond(b, row, end, 1):
                upper[0] = end
                return k > 0
    elif lower[0] == -INFINITY and upper[0] < INFINITY:
        for k in range(24):
            end = upper[0] - far * ((1 << k) - 1)
            if decided_beyond(b, row, end, 0):
                lower[0] = end
                return k > 0
    return True


cdef real steepness(const Block *b, ix row, real l, const Point *x, real r) noexcept nogil:
    """What |f'| surely exceeds on [l, r] around x; not positive if f' may vanish there.

    The ranges of the terms of f' on [l, r], cut by f'(x) ± h sup |f''|, h = max(r − x, x − l):
    within h of x no |σ''| is larger than 0.0963, nor than σ'(z) e^(|a| h), as (log σ')' and σ''/σ'
    are in [−1, 1].  1.03 pays for es < 0.01, exp and the sums, 4e-308 for what σ' flushed, 1e-323
    for bits d lost.
    """
    cdef const Sigmoids *f = b.a.f
    cdef vf es = vset1(b.es[row]), s, zl, zr, pl, pr, p
    cdef real h = max(r - x.x, x.x - l) * (1 + 4 * ROUND), m = 0, M = 0, T = 0, slope = 0, size = 0
    cdef real bend = 0, k, g, top, low, most
    cdef ix i
    for i in range(f.units):
        s, g, k = vset1(b.s[i * b.a.block + row]), f.g[i], fabs(f.a[i]) * h
        zl, zr = vtail(preactivation(f, i, vset1(l), s)), vtail(preactivation(f, i, vset1(r), s))
        pl, pr, p = dsigma(zl), dsigma(zr), dsigma(vtail(preactivation(f, i, vset1(x.x), s)))
        top, low = vget(vsel_neg(vxor(zl, zr), vset1(0.25), vmax(pl, pr)), 0), vget(vmin(pl, pr), 0)
        m, M = m + min(g * top, g * low), M + max(g * top, g * low)
        T += fabs(g) * top
        slope += g * vget(p, 0)
        size += fabs(g) * vget(p, 0)
        if k > 0:
            most = min(0.0963, (vget(p, 0) + 4e-308) * exp(k)) if b.es[row] < 0.01 else 0.0963
            bend += (fabs(g) + fabs(f.a[i]) * 1e-323) * k * most
    k = vget(slope_error(f, vset1(T), es), 0)
    m, M = m - k, M + k
    k = vget(slope_error(f, vset1(size), es), 0) + bend * 1.03 + 1e-300
    return max(max(m, slope - k), max(-M, -slope - k))


cdef void approach(const Block *b, ix row, real l, real r, Point *x) noexcept nogil:
    """OUT x in [l, r], nearer to a simple root: some steps of Newton's method."""
    cdef Point p
    cdef real next
    cdef ix i
    visit(b, row, inside(l, r), x)
    for i in range(8):
        next = x.x - x.f / x.slope
        if x.sign == 0 or not l <= next <= r:
            return
        visit(b, row, next, &p)
        if not fabs(p.f) < fabs(x.f):
            return
        x[0] = p


cdef int prove(const Block *b, ix row, real after, real before, real *lower, real *upper,
               real *at) noexcept nogil:
    """Try to make a cluster the enclosure of exactly one root, 1, or of none, 0; −1: it stays a
    cluster.

    The proof: f has signs a little outside, within the bounds and between the neighbours, and f'
    one sign in between.
    """
    cdef Point x, l, r
    cdef real by
    cdef ix i
    approach(b, row, lower[0], upper[0], &x)
    by = x.reach
    for i in range(8):
        visit(b, row, max(min(lower[0], x.x - by), max(after, b.a.lo)), &l)
        visit(b, row, min(max(upper[0], x.x + by), min(before, b.a.hi)), &r)
        if not (l.x < r.x and steepness(b, row, l.x, &x, r.x) > 0):
            return -1
        if l.sign != 0 and r.sign != 0:
            if l.sign == r.sign:
                return 0
            lower[0], upper[0] = l.x, r.x
            narrow(b, row, r.sign, &x, lower, upper)
            at[0] = min(max(x.x, lower[0]), upper[0])
            return 1
        by *= 2
    return -1


cdef void sharpen(const Block *b, ix task, Found *found) noexcept nogil:
    """Clusters that reach to ±∞ end where f is decided; those that prove to be one root are."""
    cdef ix row, j, at = task * found.cap, end, out = at, first = task * b.a.block, start
    cdef real after, before
    cdef int known
    for row in range(b.rows):
        end, start = at + found.count[first + row], out
        for j in range(at, end):
            if not found.unique[j]:
                if not cut(b, row, &found.lower[j], &found.upper[j]):
                    continue
                after = found.upper[out - 1] if out > start else -INFINITY
                before = found.lower[j + 1] if j + 1 < end else INFINITY
                found.x[j] = inside(found.lower[j], found.upper[j])
                if isfinite(found.lower[j]) and isfinite(found.upper[j]):
                    known = prove(b, row, after, before, &found.lower[j], &found.upper[j],
                                  &found.x[j])
                    if known == 0:
                        continue
                    found.unique[j] = known > 0
            found.lower[out], found.upper[out] = found.lower[j], found.upper[j]
            found.x[out], found.unique[out] = found.x[j], found.unique[j]
            out += 1
        found.count[first + row] = out - start
        at = end


# 6. A task: a block of rows

cdef void offsets(Block *b, ix first) noexcept nogil:
    """OUT s and es.  A sum of n products and a bias is wrong by (n + 1)u times that of the
    magnitudes at most."""
    cdef const Isolate *a = b.a
    cdef const Layer *l = &a.other.net.layers[0]
    cdef ix i, j, r, ts = a.block
    cdef vf most, bound = vset1(1.01 * (l.n_in + 2) * ROUND if l.n_in else 0.0), s
    load_rows(&a.other, first, b.rows, b.x, ts)
    dense(l, b.x, b.s, ts, b.worker)
    if l.n_in == 0:
        memset(b.es, 0, ts * sizeof(real))
        return
    for i in range(l.n_in * ts):
        b.x[i] = fabs(b.x[i])
    dense(a.magnitudes, b.x, b.magnitudes, ts, b.worker)
    for j in range(ts // VL):
        r = j * VL
        most = vset1(0)
        for i in range(l.n_out):
            most = vmax(most, vload(b.magnitudes + i * ts + r))
        most = vsel_lt(most, vset1(1e300), most * bound, vset1(INFINITY))       # beyond, nothing can be known
        vstore(b.es + r, most)
        if vall_lt(most, vset1(INFINITY)):
            continue
        for i in range(l.n_out):
            s = vload(b.s + i * ts + r)
            vstore(b.s + i * ts + r, vsel_lt(most, vset1(INFINITY), s, vset1(0)))


cdef inline real *carve(real *scratch, double *at, double size) noexcept nogil:
    """The next `size` numbers of the scratch, cache lines of their own; NULL without scratch, when
    only `at` counts."""
    cdef double here = at[0]
    at[0] = here + (GL * <double><int64_t>((size + (GL - 1)) / GL) if size < 1e18 else size)
    return NULL if scratch is NULL else scratch + <ix>here


cdef double lay_out(const Isolate *a, Block *b, real *scratch) noexcept nogil:
    """Where everything of a task is in the scratch; how many numbers that takes, as a double, which
    does not overflow."""
    cdef double at = 0, n = a.f.units, whole = padded(a.f.units), rows = a.block
    cdef double sink = <double>a.found.cap + VL
    b.a = a
    b.s, b.es = carve(scratch, &at, whole * rows), carve(scratch, &at, rows)
    b.spent = carve(scratch, &at, rows)
    b.x = carve(scratch, &at, a.other.net.layers[0].n_in * rows)
    b.magnitudes = carve(scratch, &at, whole * rows)
    b.points, b.item = carve(scratch, &at, 2 * n * VL), carve(scratch, &at, 2 * n * VL)
    b.t = carve(scratch, &at, (MOST_BREAKS + 2) * VL)
    b.todo.cap, b.bracket.cap = a.todo_cap, a.bracket_cap
    b.todo.p = carve(scratch, &at, (3 + 2 * n) * a.todo_cap + VL)
    b.bracket.p = carve(scratch, &at, 5. * a.bracket_cap + VL)
    b.sink.cap = a.found.cap
    b.sink.row, b.sink.lower = carve(scratch, &at, sink), carve(scratch, &at, sink)
    b.sink.upper, b.sink.x = carve(scratch, &at, sink), carve(scratch, &at, sink)
    b.sink.kind = carve(scratch, &at, sink)
    b.start = <ix *>carve(scratch, &at, rows + 1)
    b.order = <ix *>carve(scratch, &at, a.found.cap + 1.)
    return at


cdef inline void isolate(Block *b, const int H) noexcept nogil:
    begin(b, H)
    split(b, H)
    refine(b, H)


cdef void isolate_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Isolate *a = <Isolate *>args
    cdef Block b
    cdef ix first = i * a.block
    lay_out(a, &b, <real *>worker.scratch)
    b.worker, b.rows = worker, min(a.block, a.other.m - first)
    b.todo.n = b.bracket.n = b.sink.n = 0
    memset(b.spent, 0, a.block * sizeof(real))
    offsets(&b, first)
    if a.f.units == 3:
        isolate(&b, 3)
    else:
        isolate(&b, 0)
    order_rows(&b.sink, b.rows, first, i, &a.found, b.start, b.order)
    if b.sink.n <= a.found.cap:
        sharpen(&b, i, &a.found)


cdef class Isolator(Solver):
    """The ties of a network with one hidden layer along one input, packed once.

    a, d (H,), c: f as above; `error` = edc; `one_root_at_most`: one root at most in every row; limits: the signs
    of f(±∞), exactly.  offsets: the network of one layer that makes s from the other inputs,
    magnitudes: the same of absolute values.
    """
    cdef Sigmoids f
    cdef Program net, sizes
    cdef cnp.ndarray store

    def __cinit__(self, cnp.ndarray a, cnp.ndarray d, double c, double error, bint one_root_at_most, tuple limits, Program offsets,
                  Program magnitudes):
        cdef Sigmoids *f = &self.f
        cdef ix n = a.shape[0], i
        cdef real *at
        cdef real D = 0, G = 0, curvature = 0, widest = 0, slowest = INFINITY, size, lost = 0
        self.net, self.sizes, self.store = offsets, magnitudes, reals(3 * n)
        at = aligned(self.store)
        f.units, f.a, f.d, f.g, f.c, f.few = n, at, at + n, at + 2 * n, c, one_root_at_most
        for i in range(n):
            at[i], at[n + i] = (<real *>cnp.PyArray_DATA(a))[i], (<real *>cnp.PyArray_DATA(d))[i]
            at[2 * n + i] = at[i] * at[n + i]
            size = fabs(at[i])
            lost += size * 1e-323
            D, G = D + fabs(at[n + i]), G + fabs(at[2 * n + i])
            if size > 0:
                widest, slowest = max(widest, size), min(slowest, size)
        for i in range(n if widest > 0 else 0):
            curvature += fabs(at[i]) / widest * (fabs(at[2 * n + i]) + fabs(at[i]) * 1e-323)
        f.E = 1.001 * (ROUND * D * 2.725 + (n + 3) * ROUND * (fabs(c) + D) + error)
        f.E_s, f.slope_u, f.slopes = 0.251 * D, (750 + n) * ROUND, G
        f.curvature, f.widest = 0.0964 * curvature + 1e-320, widest
        f.least_slope = G * 4e-308 + lost + 1e-320
        f.narrow, f.slowest = 16 / widest if widest else 1, slowest if widest else 1
        for i in range(2):
            f.limit[i] = limits[i]
            f.beyond[i] = log(min(2 * D / max(fabs(f.limit[i]), <real>1e-18) + 1.1, <real>1e18)) / f.slowest
            if not f.beyond[i] > 0:
                f.beyond[i] = 1 / f.slowest

    cdef ix task_rows(self) noexcept:
        return MAX_ROWS if self.f.units <= 16 else 2 * STEP if self.f.units <= 64 else STEP

    cdef int search(self, cnp.ndarray X, double lo, double hi, double xtol, Buffers out) except -1:
        cdef Isolate a
        cdef Block b
        cdef ix n = self.f.units
        cdef double row = 3.2e-8 * (n + 2) * (n + 8) ** 0.5 / VL
        fill(&a.other, &self.net.net, X, X)
        a.f, a.magnitudes, a.lo, a.hi, a.xtol = &self.f, &self.sizes.net.layers[0], lo, hi, xtol
        a.block, a.found = out.task_rows, out.found
        a.breaks = n if n <= 4 else 4 if n <= 16 else 7
        a.todo_cap, a.bracket_cap = (a.breaks + 1) * a.block + DEPTH + 4 * VL, a.block + 2 * (MOST_BREAKS + 2) * VL
        return run(isolate_task, &a, out.tasks, lay_out(&a, &b, NULL) * sizeof(real), X.shape[0] * row)
