# ---- any number of hidden layers: f, f', f'' enclosed layer by layer ----------------------------------------------
# All roots of the margin f(t) along one input t, certified, for networks of any depth.
#
#     z_0 = a t + s,   y_k = σ(z_k),   z_{k+1} = W_k y_k + b_k,   f = the only output.                   docs/derivations.md §2
#
# An *enclosure* of f on X = [l, r] around m runs two things side by side through the layers, units in lanes:
# the point (z, z') at m, whose radii are rounding only, and ranges of (z, z', z'') on X.  Behind every linear map the ranges
# are cut by the centred forms, h = max(r − m, m − l):
#
#     z' ∈ z'(m) ± h |z''(X)|        z ∈ z(m) ± min(h |z'(X)|, h |z'(m)| + h²/2 |z''(X)|)
#
# σ is monotone, σ' unimodal, σ'' extreme at ∓1.31696: their ranges are exact.  t = ±∞ is an ordinary point.
#
# Judging X, with E the radius of a computed f (a statement is made only where it clears it; NaN and inf make none):
#     no root      0 outside f(X); or f' of one sign and f of the same sign at both ends; parts of X close to l, m and r where f
#                  cannot reach 0 by its slope, or by its slope at m and its curvature
#     one root     f' of one sign, f of opposite signs at the ends: Newton inside, then x ± (|f(x)|
#                  + E) / min |f'(X)|, where X shrinks: min |f'| is renewed, and signs of f just
#                  beyond where E hides them cut X (`narrow_root`)
#     cluster      |f| ≤ 4E on all of X, or X a few ulps wide, or wider the more work the row has
#                  taken (`too_narrow`)
#     else         halves, without the parts known to be free of roots.
# Clusters that touch become one; where f has opposite signs a little beyond its hull and f' one
# sign there, part by part, it is one root.  Units that are equal or mirror images were merged
# before (_units.py).
#
# Rounding (to nearest, u = 2⁻⁵³; no directed modes).  Sums pass between layers as m ± r.
#  1. Map, n inputs.  m = fl(b + Σ w y), GL by GL: every term meets at most D = GL + ⌈n/GL⌉ + 2
#     roundings (its product, which a fused one has not; GL − 1 sums within its group, as the first
#     adds to 0; one for each group); the bias only those of the groups. r = fl(Σ |w| r_i + …) loses
#     at most n + 2: n sums, a product, the bias.  Both are paid in advance: the inputs' r_i are
#     stored as r_i (1 + (n + 32) u) + K |y_i| + TINY.  w and b may be rounded once, as differences
#     of two weights or sums over equal units: one u more.  A product that underflows is wrong by
#     2⁻¹⁰⁷⁵: each output's radius begins with TINY, more than n of them.
#  2. σ: t = σ(−|z|) is within 5u relatively (3.9u with a fused operation, 4.31u without, proven by
#     ball arithmetic over the reduced argument in tests/test_sigmoid_error.py), or flushed to 0 below 2.3e-308 (TINY pays). y = t within 5u; y = 1 − t ≥ ½
#     within (5u t + u/2)/y ≤ 6u.  p = t(1 − t) = σ' within 5u (1 − 2t)/(1 − t) + 2u ≤ 7u of itself.
#     p(1 − 2t) = |σ''| within 7u |σ''| + p (10u t + u/2) + u |σ''| ≤ 16u p.  So K = (D + 14) u for
#     values (D, rounded w 1, σ 6, the rounding of K |y| itself 2) and (D + 30) u for slopes and
#     curvatures.  Ranges are stored as m ± r with an end within 6u of max(|lo|, |hi|) ≤ |m| + r:
#     (14 − 3) u |m| of K and (32 − 8) u r of the factor, n + 2 apart, are more.
#  3. A point's z ± e, e < 1/2: |σ''| ≤ σ' gives |σ(z + δ) − σ(z)| and |σ'(z + δ) − σ'(z)| ≤ σ'(z) (exp e − 1) ≤ σ'(z) (e + e²).
#     Beyond, as long as the sign of z is known, both σ's, and σ', are below σ(e − |z|) away from 0 or 1.
#  4. First layer: s is a sum of at most n_in terms, of which each meets a product, unless fused,
#     and n_in − 1 sums, and in a linear network w is a rounded difference: |ŝ − s| ≤ es = (n_in +
#     4) u (|b| + Σ|w x|) unit by unit, the rest paying for es' own rounding; where the sum
#     overflows es is ∞.  z = a t + s is rounded once, on every level (vfma_once): it adds u |z|,
#     however large s is, and 3u |z| is added.  A product a t rounded by itself would add u |a t|,
#     which is u |s| where they cancel.
#  5. m − r and the like are wrong by at most u of their result: 4u of it is added.  Products of ranges: 32u of their largest terms.
#  6. |m| + r beyond HUGE, or NaN: the range becomes (−∞, ∞).  vmin and vmax return their second operand where one is NaN:
#     what may be NaN (a centred form) comes first, what may not (a plain range) second.
# All errors of f' are relative to the slopes present: a saturated unit, however steep, adds nothing.

cdef extern from *:
    """
    /* Streams of a layer, in groups of GL units: mid and radius of the point's value and slope, then of the ranges of value,
     * slope and curvature.  POINT: how many there are without ranges. */
    enum { STREAMS = 10, POINT = 4, CELL = STREAMS * GL };
    enum { TOGETHER = VL == 8 ? 2 : 1 };            /* vectors of outputs: what 32 or 16 registers hold of all streams */

    /* z = (b) + sum over the n inputs of w·(mid ± radius), for NV vectors of outputs and NP pairs of streams: one look at w
     * for all of them.  Values, pairs 0 and 2, have the bias.  Mids are summed GL by GL, so that few roundings meet a term. */
    VINL void flow_block(const real *w, ptrdiff_t panel, const real *b, real k, real tiny, const real *y, real *z, ptrdiff_t n,
                         const int NV, const int NP)
    {
        vf m[2][5], r[2][5], x[2], size[2];
        int i, p, v;
    # define AT(s) (z + v / NS * CELL + (s) * GL + v % NS * VL)
        UNROLLED
        for (v = 0; v < NV; v++) {
            const vf bias = vload(b + v * VL);
            UNROLLED
            for (p = 0; p < NP; p++) {
                const int value = p == 0 || p == 2;
                vstore(AT(2 * p), value ? bias : vset1(0));
                r[v][p] = value ? vfma(vabs(bias), vset1(k), vset1(tiny)) : vset1(tiny);
            }
        }
        for (; n > 0; n -= GL, y += CELL) {
            const int c = n < GL ? (int)n : GL;
            UNROLLED
            for (v = 0; v < NV; v++)
                UNROLLED
                for (p = 0; p < NP; p++) m[v][p] = vset1(0);
            for (i = 0; i < c; i++, w += GL) {
                UNROLLED
                for (v = 0; v < NV; v++) {
                    x[v] = vload(w + v / NS * panel + v % NS * VL);
                    size[v] = vabs(x[v]);
                }
                UNROLLED
                for (p = 0; p < NP; p++) {
                    const vf mid = vset1(y[2 * p * GL + i]), rad = vset1(y[(2 * p + 1) * GL + i]);
                    UNROLLED
                    for (v = 0; v < NV; v++) {
                        m[v][p] = vfma(x[v], mid, m[v][p]);
                        r[v][p] = vfma(size[v], rad, r[v][p]);
                    }
                }
            }
            UNROLLED
            for (v = 0; v < NV; v++)
                UNROLLED
                for (p = 0; p < NP; p++) vstore(AT(2 * p), vload(AT(2 * p)) + m[v][p]);
        }
        UNROLLED
        for (v = 0; v < NV; v++)
            UNROLLED
            for (p = 0; p < NP; p++) vstore(AT(2 * p + 1), r[v][p]);
    # undef AT
    }
    """
    enum: STREAMS, POINT, CELL, TOGETHER
    void flow_block(const real *w, ix panel, const real *b, real k, real tiny, const real *y, real *z, ix n, int NV, int NP) noexcept nogil

cdef enum:
    DEEP_QUICK = 1 << 17                # multiply–adds of a network that is enclosed within a millisecond
    SPANS = 2048                        # undecided parts of a row at once: halving floats goes at most 1100 deep
    WORK = 20000                        # enclosures a row may take
    HARD = 1000                         # ordinary rows take fewer; from here on a row's rest counts

cdef double HUGE = 1e307, TINY = 1e-307
cdef double FIRST_SPLIT = 0.0371        # of the widest unit's scale: symmetric networks have roots exactly at 0


cdef struct Unit:                       # one vector of units
    vf z, e                             # at the point: z ± e
    vf g, ge                            # its slope
    vf lo, hi, lo1, hi1, lo2, hi2       # on the interval: z, z', z''

cdef struct Toll:                       # what a map of n inputs loses: of its radii, of values, of slopes
    vf sums, values, slopes

cdef struct Interval:
    double lo, hi

cdef struct Ball:
    double mid, rad

cdef struct Margin:                     # f and f' at the point; f, f', f'' on the interval
    Ball f, slope
    Interval range, slopes, curvatures

cdef struct Deep:                       # a call
    const Net *net
    ix coordinate, m
    const real *x_other                 # (m, n_in − 1)
    ix x_row, x_col                     # strides in elements
    double lo, hi, xtol
    ix rows                             # of a task
    Found found
    ix *work                            # (m,): OUT enclosures computed, or NULL

cdef struct Flow:                       # one row on its way, in a worker's scratch
    const Net *net
    real *a                             # first layer: z = a t + s, |s − exact s| ≤ es
    real *s
    real *es
    real *y                             # streams, CELL numbers for every GL units
    real *z
    Worker *watch                       # whom to ask for interrupts on the way; NULL: a pass is short
    double scale                        # 1 / max |a|: below it, f is smooth in t
    double spread                       # 1 / rms a


# ---- through the layers -------------------------------------------------------------------------------------------

cdef inline vf less(vf x) noexcept nogil:
    """What is surely below the exact result that was rounded to x."""
    return x - vset1(4 * ROUND) * vabs(x)


cdef inline vf more(vf x) noexcept nogil:
    return x + vset1(4 * ROUND) * vabs(x)


cdef inline vf larger(vf lo, vf hi) noexcept nogil:
    return vmax(vabs(lo), vabs(hi))


cdef inline void known(vf *m, vf *r) noexcept nogil:
    """Any real number where m ± r is none."""
    cdef vf size = vabs(m[0]) + r[0]
    m[0] = vsel_lt(size, vset1(HUGE), m[0], vset1(0))
    r[0] = vsel_lt(size, vset1(HUGE), r[0], vset1(INFINITY))


cdef inline void range_of(const real *z, vf *lo, vf *hi) noexcept nogil:
    """[lo, hi] ⊇ m ± r."""
    cdef vf m = vload(z), r = vload(z + GL)
    known(&m, &r)
    lo[0], hi[0] = less(m - r), more(m + r)


cdef inline void store_radius(real *r, vf m, vf rad, vf k, const Toll *pay) noexcept nogil:
    """m ± rad, with what the next map will lose."""
    vstore(r, vfma(rad, pay.sums, vfma(k, vabs(m), vset1(TINY))))


cdef inline void store_range(real *y, vf lo, vf hi, vf extra, vf k, const Toll *pay) noexcept nogil:
    """m ± r ⊇ [lo − extra, hi + extra]."""
    cdef vf m = vset1(0.5) * lo + vset1(0.5) * hi, r = vmax(hi - m, m - lo) + extra
    vstore(y, m)
    store_radius(y + GL, m, r, k, pay)


cdef inline void load_sums(const real *z, vf h, Unit *c, const bint ranged) noexcept nogil:
    """A layer's pre-activations from its sums: the plain ranges cut by the centred forms."""
    cdef vf bend, rise, rho
    c.z, c.e, c.g, c.ge = vload(z), vload(z + GL), vload(z + 2 * GL), vload(z + 3 * GL)
    known(&c.z, &c.e)
    known(&c.g, &c.ge)
    if not ranged:
        return
    range_of(z + 4 * GL, &c.lo, &c.hi)
    range_of(z + 6 * GL, &c.lo1, &c.hi1)
    range_of(z + 8 * GL, &c.lo2, &c.hi2)
    bend = h * larger(c.lo2, c.hi2)
    rho = (c.ge + bend) * vset1(1 + 8 * ROUND)
    c.lo1, c.hi1 = vmax(less(c.g - rho), c.lo1), vmin(more(c.g + rho), c.hi1)
    rise = vmin(h * (vabs(c.g) + c.ge + vset1(0.5) * bend), h * larger(c.lo1, c.hi1))
    rho = (c.e + rise) * vset1(1 + 16 * ROUND)
    c.lo, c.hi = vmax(less(c.z - rho), c.lo), vmin(more(c.z + rho), c.hi)


cdef inline void activate_point(const Unit *c, real *y, const Toll *pay) noexcept nogil:
    """y = σ(z), y' = σ'(z) z' at a point."""
    cdef vf t = vabs(vtail(c.z)), p = t * (vset1(1) - t), v = vsel_lt(c.z, vset1(0), t, vset1(1) - t), g = p * c.g
    cdef vf far, ey = p * (c.e + c.e * c.e) * vset1(1.0001), ep = ey
    if not vall_lt(c.e, vset1(0.5)):
        far = vabs(vtail(vabs(c.z) - c.e)) * vset1(1.0001) + vset1(4e-308)
        ey = vsel_lt(c.e, vset1(0.5), ey, vsel_lt(c.e, vabs(c.z), far, vset1(1)))
        ep = vsel_lt(c.e, vset1(0.5), ep, vsel_lt(c.e, vabs(c.z), far, vset1(0.25)))
    ep = ep + vset1(4e-308)
    vstore(y, v)
    store_radius(y + GL, v, ey, pay.values, pay)
    vstore(y + 2 * GL, g)
    store_radius(y + 3 * GL, g, ep * (vabs(c.g) + c.ge) + p * c.ge, pay.slopes, pay)


cdef inline vf times_up(vf least, vf most, vf x) noexcept nogil:
    """The largest of [least, most]·x, 0 ≤ least."""
    return vsel_lt(x, vset1(0), least, most) * x


cdef inline vf times_down(vf least, vf most, vf x) noexcept nogil:
    return vsel_lt(vset1(0), x, least, most) * x


cdef inline void activate_range(const Unit *c, real *y, const Toll *pay) noexcept nogil:
    """y = σ(z), y' = σ'(z) z', y'' = σ''(z) z'² + σ'(z) z''."""
    cdef vf zero = vset1(0), one = vset1(1)
    cdef vf tl = vabs(vtail(c.lo)), th = vabs(vtail(c.hi)), pl = tl * (one - tl), ph = th * (one - th)
    cdef vf least = vmin(pl, ph) * vset1(1 - 16 * ROUND), most = vmax(pl, ph) * vset1(1 + 16 * ROUND) + vset1(4e-308)
    cdef vf cl, ch, top, bottom, err, a, b, most2, least2
    store_range(y, vsel_lt(c.lo, zero, tl, one - tl), vsel_lt(c.hi, zero, th, one - th), zero, pay.values, pay)
    most = vsel_lt(c.lo, zero, vsel_lt(zero, c.hi, vset1(0.25), most), most)
    store_range(y + 2 * GL, times_down(least, most, c.lo1), times_up(least, most, c.hi1), zero, pay.slopes, pay)
    # the range of σ''
    err = vset1(16 * ROUND) * most + vset1(4e-308)
    cl, ch = vcopysign(pl * (one - (tl + tl)), zero - c.lo), vcopysign(ph * (one - (th + th)), zero - c.hi)
    top, bottom = vmax(cl, ch) + err, vmin(cl, ch) - err
    top = vsel_lt(c.lo, vset1(-1.3169), vsel_lt(vset1(-1.3171), c.hi, vset1(0.0962251), top), top)
    bottom = vsel_lt(c.lo, vset1(1.3171), vsel_lt(vset1(1.3169), c.hi, vset1(-0.0962251), bottom), bottom)
    # the range of z'², then the sum
    a, b = c.lo1 * c.lo1, c.hi1 * c.hi1
    most2, least2 = vmax(a, b) * vset1(1 + 4 * ROUND), vmin(a, b) * vset1(1 - 4 * ROUND)
    least2 = vsel_lt(c.lo1, zero, vsel_lt(zero, c.hi1, zero, least2), least2)
    store_range(y + 4 * GL,
                vsel_lt(zero, bottom, least2, most2) * bottom + times_down(least, most, c.lo2),
                vsel_lt(top, zero, least2, most2) * top + times_up(least, most, c.hi2),
                vset1(32 * ROUND) * most * (most2 + larger(c.lo2, c.hi2)), pay.slopes, pay)


cdef inline void along(vf a, vf s, vf es, double t, vf *z, vf *e) noexcept nogil:
    """z ± e ∋ a t + s; t may be infinite, then exact unless a = 0."""
    z[0], e[0] = s, es
    if isfinite(t):
        z[0] = vfma_once(a, vset1(t), s)
        e[0] = es + vset1(3 * ROUND) * vabs(z[0])
    known(z, e)
    if not isfinite(t):
        z[0] = vsel_lt(vset1(0), vabs(a), a * vset1(t), z[0])
        e[0] = vsel_lt(vset1(0), vabs(a), vset1(0), e[0])


cdef inline void first_units(const Flow *w, ix i, double l, double m, double r, Unit *c, const bint ranged) noexcept nogil:
    """The first layer's pre-activations: affine in t."""
    cdef vf zl, zr, el, er, a = vload(w.a + i), s = vload(w.s + i), es = vload(w.es + i)
    along(a, s, es, m, &c.z, &c.e)
    c.g, c.ge = a, vset1(0)
    if ranged:
        along(a, s, es, l, &zl, &el)
        along(a, s, es, r, &zr, &er)
        c.lo, c.hi = less(vmin(zl - el, zr - er)), more(vmax(zl + el, zr + er))
        c.lo1, c.hi1, c.lo2, c.hi2 = a, a, vset1(0), vset1(0)


cdef inline void activate(const Unit *c, real *y, const Toll *pay, const bint ranged) noexcept nogil:
    activate_point(c, y, pay)
    if ranged:
        activate_range(c, y + POINT * GL, pay)


cdef inline ix roundings(ix n) noexcept nogil:
    """D of a map of n inputs."""
    return GL + (n + GL - 1) // GL + 2


cdef inline Toll toll(ix n) noexcept nogil:
    cdef Toll pay
    pay.sums, pay.values = vset1(1 + (n + 32) * ROUND), vset1((roundings(n) + 14) * ROUND)
    pay.slopes = vset1((roundings(n) + 30) * ROUND)
    return pay


cdef inline ix cell(ix v) noexcept nogil:
    """Where the streams of the v-th vector of units begin."""
    return v // NS * CELL + v % NS * VL


cdef inline void map_layer(const Layer *l, const real *y, real *z, Worker *watch,
                           const bint ranged) noexcept nogil:
    """IN y, the streams of n_in units; OUT z, of n_out sums, or anything if `watch` sees an interrupt."""
    cdef ix v = 0, end, vectors = padded(l.n_out) // VL, panel = l.n_in * GL
    cdef double k = (roundings(l.n_in) + 14) * ROUND
    cdef const real *w
    while v < vectors:
        end = vectors
        if watch is not NULL:
            end = min(vectors, v + 2)
            if interrupted(watch):
                return
        while v < end:
            w = l.w + v // NS * panel + v % NS * VL
            if TOGETHER == 2 and v + 2 <= end:
                flow_block(w, panel, l.b + v * VL, k, TINY, y, z + cell(v), l.n_in, 2, 5 if ranged else 2)
                v += 2
            else:
                flow_block(w, panel, l.b + v * VL, k, TINY, y, z + cell(v), l.n_in, 1, 5 if ranged else 2)
                v += 1


cdef inline void enclose_as(const Flow *w, double l, double m, double r, Margin *f, const bint ranged) noexcept nogil:
    """OUT f at m and, if `ranged`, on [l, r].  1. first layer  2. map, centred forms, σ, layer by layer  3. the output."""
    cdef const Net *net = w.net
    cdef vf h = vset1(max(r - m, m - l) * (1 + 4 * ROUND))
    cdef ix i, v, n = net.layers[0].n_out
    cdef Toll pay = toll(n)
    cdef Unit c
    for v in range(padded(n) // VL):
        first_units(w, v * VL, l, m, r, &c, ranged)
        activate(&c, w.y + cell(v), &pay, ranged)
    for i in range(1, net.depth - 1):
        map_layer(&net.layers[i], w.y, w.z, w.watch, ranged)
        n = net.layers[i].n_out
        pay = toll(n)
        for v in range(padded(n) // VL):
            load_sums(w.z + cell(v), h, &c, ranged)
            activate(&c, w.y + cell(v), &pay, ranged)
    map_layer(&net.layers[net.depth - 1], w.y, w.z, w.watch, ranged)
    load_sums(w.z, h, &c, ranged)
    f.f.mid, f.f.rad, f.slope.mid, f.slope.rad = vget(c.z, 0), vget(c.e, 0), vget(c.g, 0), vget(c.ge, 0)
    if ranged:
        f.range.lo, f.range.hi = vget(c.lo, 0), vget(c.hi, 0)
        f.slopes.lo, f.slopes.hi = vget(c.lo1, 0), vget(c.hi1, 0)
        f.curvatures.lo, f.curvatures.hi = vget(c.lo2, 0), vget(c.hi2, 0)


cdef void enclose(const Flow *w, double l, double m, double r, Margin *f) noexcept nogil:
    enclose_as(w, l, m, r, f, True)


cdef void evaluate(const Flow *w, double t, Margin *f) noexcept nogil:
    enclose_as(w, t, t, t, f, False)


# ---- one row ------------------------------------------------------------------------------------------------------

cdef struct End:                        # of a span: f(t) has this proven sign, |f(t)| ≥ least there; sign 0: unknown
    double t, least
    int sign

cdef struct Span:
    End l, r

cdef struct Search:
    const Deep *call
    Flow *flow
    Worker *worker
    ix row, work
    bint pending                        # a cluster not yet listed: [lower, upper]
    double lower, upper
    double before                       # the end of what is listed, or of the bounds


cdef inline void list_enclosure(Search *row, double lower, double upper, double x, char kind) noexcept nogil:
    cdef const Found *out = &row.call.found
    cdef ix task = row.row // row.call.rows, at = task * out.cap + out.needed[task]
    if out.needed[task] < out.cap:
        out.lower[at], out.upper[at], out.x[at], out.unique[at] = lower, upper, min(max(x, lower), upper), kind == UNIQUE
    out.needed[task] += 1
    out.count[row.row] += 1
    row.before = upper


cdef inline End end_at(double t, const Ball *f) noexcept nogil:
    cdef End e
    e.t, e.sign, e.least = t, 0, 0
    if fabs(f.mid) > f.rad:
        e.sign, e.least = 1 if f.mid > 0 else -1, (fabs(f.mid) - f.rad) * (1 - 4 * ROUND)
    return e


cdef inline double least_slope(const Margin *f) noexcept nogil:
    """min |f'| on the interval, 0 if f' may vanish."""
    return max(0.0, max(f.slopes.lo, -f.slopes.hi))


cdef struct Root:                       # the only one in (l, r), simple
    double l, r, slope                  # f has opposite signs at l and r, and |f'| ≥ slope between
    int rising                          # the sign of f'
    double x                            # where f was evaluated last
    double lower, upper                 # between them the root is


cdef inline void learn_sign(Root *b, double t, const Ball *f) noexcept nogil:
    """The root lies to the left of t, or to the right, where f(t) has a sign."""
    if fabs(f.mid) > f.rad:
        if (f.mid > 0) == (b.rising > 0):
            b.r, b.upper = min(b.r, t), min(b.upper, t)
        else:
            b.l, b.lower = max(b.l, t), max(b.lower, t)


cdef inline void learn_distance(Root *b, const Ball *f) noexcept nogil:
    """The root is within (|f(x)| + E) / min |f'| of x."""
    cdef double radius = (fabs(f.mid) + f.rad) / b.slope * (1 + 8 * ROUND)
    radius += 2 * ROUND * fabs(b.x) + 1e-300
    b.lower, b.upper = max(b.lower, max(b.l, b.x - radius)), min(b.upper, min(b.r, b.x + radius))


cdef inline bint root_is_wide(const Search *row, const Root *b) noexcept nogil:
    return b.upper - b.lower > row.call.xtol * max(1.0, fabs(b.x))


cdef void newton(Search *row, double l, double r, int rising, double slope, double x) noexcept nogil:
    """Emit the one root in (l, r), where f has opposite signs at the ends and |f'| ≥ slope > 0: Newton, kept in the bracket."""
    cdef Root b
    cdef Margin f
    cdef double next
    cdef int i
    b.l, b.r, b.slope, b.rising, b.lower, b.upper = l, r, slope, rising, l, r
    for i in range(100):
        if not (b.l < x < b.r):
            x = 0.5 * b.l + 0.5 * b.r
        b.x = x
        evaluate(row.flow, x, &f)
        learn_sign(&b, x, &f.f)
        learn_distance(&b, &f.f)
        if not root_is_wide(row, &b) or not (fabs(f.f.mid) > f.f.rad):
            break
        if b.r - b.l <= 4 * ROUND * fabs(x):
            break
        next = x - f.f.mid / f.slope.mid
        x = next if b.l < next < b.r else 0.5 * b.l + 0.5 * b.r
        if i >= 16 and i % 2:           # down an exponential all steps have one size
            x = cut_at(row.flow, b.l, b.r)
    if root_is_wide(row, &b):
        narrow_root(row, &b, &f)
    next = b.x - f.f.mid / f.slope.mid
    list_enclosure(row, b.lower, b.upper, next if b.lower < next < b.upper else b.x, UNIQUE)


cdef void narrow_root(Search *row, Root *b, Margin *f) noexcept nogil:
    """Narrow the enclosure as far as rounding allows; INOUT f, at b.x.

    min |f'| over what is left, again and again; where that does not help, because f' nearly vanishes
    elsewhere or its range is poor, signs of f just beyond where its rounding hides them make a new bracket.
    """
    cdef double width, reach
    cdef int i
    for i in range(64):
        width = b.upper - b.lower
        b.x = min(max(b.x, b.lower), b.upper)
        enclose(row.flow, b.lower, b.x, b.upper, f)
        row.work += 1
        b.slope = max(b.slope, least_slope(f))
        learn_sign(b, b.x, &f.f)
        learn_distance(b, &f.f)
        if root_is_wide(row, b) and b.upper - b.lower > 0.5 * width:
            reach = 4 * (fabs(f.f.mid) + f.f.rad) / max(fabs(f.slope.mid), b.slope)
            reach += 4 * ROUND * fabs(b.x) + 1e-300
            probe_root(row, b, reach, -1)
            probe_root(row, b, reach, 1)
        if not root_is_wide(row, b) or not (b.upper - b.lower <= 0.5 * width):
            return


cdef void probe_root(Search *row, Root *b, double reach, int way) noexcept nogil:
    """Cut the enclosure about where f begins to have a sign: x ± reach, x ± 4 reach, …, then closer by."""
    cdef double x = b.x, inner = x, t = x + way * reach
    cdef int i
    while b.lower < t < b.upper and not cut_off(row, b, t, way):
        inner = t
        reach *= 4
        t = x + way * reach
    for i in range(4):
        t = 0.5 * inner + 0.5 * (b.upper if way > 0 else b.lower)
        if not (b.lower < t < b.upper):
            return
        if not cut_off(row, b, t, way):
            inner = t


cdef bint cut_off(Search *row, Root *b, double t, int way) noexcept nogil:
    """Whether f(t) shows that the root is not beyond t."""
    cdef Margin f
    evaluate(row.flow, t, &f)
    learn_sign(b, t, &f.f)
    return b.upper <= t if way > 0 else b.lower >= t


cdef void settle(Search *row, double after) noexcept nogil:
    """Emit the pending cluster; `after` is where the next enclosure or the end of the bounds lies.

    One root if f has opposite signs a little outside and f' has one sign in between; nothing at all if the signs agree.
    """
    cdef double x = inside(row.lower, row.upper), width = row.upper - row.lower
    cdef double least = 64 * ROUND * fabs(x) + 1e-300, reach
    cdef Margin f
    cdef int i
    row.pending = False
    if isfinite(width):
        evaluate(row.flow, x, &f)
        reach = 4 * (fabs(f.f.mid) + f.f.rad) / fabs(f.slope.mid) + width + least
        if settled(row, x, reach, after):
            return
        reach = 0.01 * width + least
        for i in range(6):              # closer by, f' more often has one sign; further out, f has
            if settled(row, x, reach, after):
                return
            reach *= 4
    list_enclosure(row, row.lower, row.upper, x, CLUSTER)


cdef bint settled(Search *row, double x, double reach, double after) noexcept nogil:
    """Whether the pending cluster, and `reach` to both sides, proves to hold one root, or none."""
    cdef double l = row.lower - reach, r = row.upper + reach, slope
    cdef End left, right
    cdef Margin f
    if not (row.before < l and r < after and isfinite(r - l)):
        return False
    evaluate(row.flow, l, &f)
    left = end_at(l, &f.f)
    evaluate(row.flow, r, &f)
    right = end_at(r, &f.f)
    if left.sign == 0 or right.sign == 0:
        return False
    slope = least_by_parts(row, l, x, r, 64 if left.sign != right.sign and row.work < HARD else 1)
    if not slope > 0:
        return False
    if left.sign != right.sign:
        newton(row, l, r, right.sign, slope, x)
    return True


cdef double least_by_parts(Search *row, double l, double m, double r, int most) noexcept nogil:
    """min |f'| on [l, r], 0 if f' may vanish, from at most so many parts, the first cut at m.

    0 also where f' is below its rounding: no part would show more.
    """
    cdef double ends[32]
    cdef double least = INFINITY
    cdef int n = 1, sign = 0, i
    cdef Margin f
    ends[0] = r
    for i in range(most):
        enclose(row.flow, l, m, ends[n - 1], &f)
        row.work += 1
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


cdef void found_cluster(Search *row, double lower, double upper) noexcept nogil:
    cdef double gap = max(1e-3, resolution(row.work)) * max(fabs(lower), row.flow.spread)
    if not row.work >= HARD:            # else thousands of small ones, which tell nothing, become a few
        gap = 0
    if row.pending and lower - row.upper <= gap:
        row.upper = max(row.upper, upper)
        return
    if row.pending:
        settle(row, lower)
    row.pending, row.lower, row.upper = True, lower, upper


cdef void found_root(Search *row, const Span *s, const Margin *f, double m) noexcept nogil:
    if row.pending:
        settle(row, s.l.t)
    newton(row, s.l.t, s.r.t, s.r.sign, least_slope(f), m - f.f.mid / f.slope.mid)


cdef inline double cut_at(const Flow *w, double l, double r) noexcept nogil:
    """Where to cut [l, r]: in the middle; at the geometric mean of numbers of different magnitudes."""
    cdef double a = min(fabs(l), fabs(r)), b = max(fabs(l), fabs(r)), m
    if not isfinite(l) and not isfinite(r):
        return FIRST_SPLIT * w.scale
    if not isfinite(r):
        return max(l + 4 * w.spread, l + fabs(l))
    if not isfinite(l):
        return min(r - 4 * w.spread, r - fabs(r))
    a = max(a, w.scale)
    if b > 4096 * a:
        if l < 0 < r and min(-l, r) > w.scale:
            return FIRST_SPLIT * w.scale
        m = sqrt(a) * sqrt(b)
        return m if r == b else -m
    return 0.5 * l + 0.5 * r


cdef inline double clear_of(const End *e, const Margin *f, int way) noexcept nogil:
    """How far beyond e, to the right (way = 1) or left, f surely keeps its sign: by the slopes on the whole span."""
    cdef double fall
    if e.sign == 0 or not isfinite(e.t):
        return -1
    fall = -f.slopes.lo if e.sign * way > 0 else f.slopes.hi
    if not (fall <= HUGE):
        return 0
    if fall <= 0:
        return INFINITY
    return min(HUGE, e.least / fall * (1 - 8 * ROUND))


cdef inline double clear_of_point(const End *e, const Margin *f, int way) noexcept nogil:
    """The same from the span's point, where f' is known too: |f| ≥ least + rise·δ − bend·δ²/2."""
    cdef double plain = clear_of(e, f, way), bend, rise, square, root
    if e.sign == 0 or not isfinite(e.t):
        return -1
    bend = max(fabs(f.curvatures.lo), fabs(f.curvatures.hi)) * (1 + 8 * ROUND)
    rise = e.sign * way * f.slope.mid - f.slope.rad
    if not (bend < HUGE and fabs(rise) < HUGE and bend > 0):
        return plain
    rise = rise - 4 * ROUND * fabs(rise)
    square = rise * rise + 2 * bend * e.least
    if not (1e-280 < square < HUGE):                    # where nothing overflows, and what underflows does not matter
        return plain
    root = sqrt(square)
    root = (rise + root) / bend if rise > 0 else 2 * e.least / (root - rise)
    return max(plain, min(HUGE, root * (1 - 32 * ROUND)))


cdef inline bint push_span(Span *stack, ix *n, const End *l, const End *r) noexcept nogil:
    if n[0] == SPANS:
        return False
    stack[n[0]].l, stack[n[0]].r = l[0], r[0]
    n[0] += 1
    return True


cdef inline End moved(const End *e, double by, int way) noexcept nogil:
    """e, moved over what is known to be free of roots; not at all if rounding takes that."""
    cdef End at = e[0]
    cdef double t
    if by > 1e-300:
        t = e.t + way * by
        t = t - way * 4 * ROUND * fabs(t)
        if (t - e.t) * way > 0:
            at.t, at.least = t, 0
    return at


cdef bint divide(const Span *s, double m, const Margin *f, Span *stack, ix *n) noexcept nogil:
    """Push what is left of both halves, the left one last; False if there is no room."""
    cdef End mid = end_at(m, &f.f)
    cdef End l = moved(&s.l, clear_of(&s.l, f, 1), 1), r = moved(&s.r, clear_of(&s.r, f, -1), -1)
    cdef End before = moved(&mid, clear_of_point(&mid, f, -1), -1), after = moved(&mid, clear_of_point(&mid, f, 1), 1)
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


cdef inline bint too_narrow(const Search *row, const Span *s) noexcept nogil:
    """Whether a span is to be split no more: a few ulps wide, or wider the more work its row has taken.

    Work goes from left to right: a stretch where units cancel and nothing can be decided must not take
    what is meant for the rest of the row.
    """
    cdef double width = s.r.t - s.l.t, size = max(fabs(s.l.t), fabs(s.r.t))
    if width <= 8 * ROUND * size < INFINITY or row.work >= WORK:
        return True
    size = max(size, row.flow.spread)
    return row.work >= HARD and width <= resolution(row.work) * size < INFINITY


cdef inline double resolution(ix work) noexcept nogil:
    """Relative to t, or to where things happen: from 1e-9 to 1e-2."""
    cdef double spent = <double>work / WORK
    if spent < 0.25:
        return 1e-9 if spent < 0.125 else 1e-6
    return 1e-4 if spent < 0.375 else 1e-3 if spent < 0.5 else 1e-2


cdef inline bint hopeless(const Search *row, const Span *s, const Margin *f) noexcept nogil:
    """Whether a span is a cluster: f is rounding on all of it or, in a hard row, at both ends and between."""
    cdef double size = max(max(fabs(s.l.t), fabs(s.r.t)), row.flow.spread)
    if max(-f.range.lo, f.range.hi) <= 4 * f.f.rad < INFINITY:
        return True
    return (row.work >= HARD and s.l.sign == 0 and s.r.sign == 0 and fabs(f.f.mid) <= f.f.rad
            and s.r.t - s.l.t <= 1e-2 * size < INFINITY)


cdef void solve_row(Search *row, Span *stack) noexcept nogil:
    """Isolate from left to right; what is undecided waits on the stack."""
    cdef const Deep *call = row.call
    cdef Margin f
    cdef Span s
    cdef double m
    cdef ix n = 1
    evaluate(row.flow, call.lo, &f)
    stack[0].l = end_at(call.lo, &f.f)
    evaluate(row.flow, call.hi, &f)
    stack[0].r = end_at(call.hi, &f.f)
    row.before = call.lo
    while n > 0:
        if (row.work % 8 == 0 or row.flow.watch is not NULL) and interrupted(row.worker):
            return
        n -= 1
        s = stack[n]
        m = cut_at(row.flow, s.l.t, s.r.t)
        if not (s.l.t < m < s.r.t) or too_narrow(row, &s):
            found_cluster(row, s.l.t, s.r.t)
            continue
        enclose(row.flow, s.l.t, m, s.r.t, &f)
        row.work += 1
        if f.range.lo > 0 or f.range.hi < 0:
            continue
        if least_slope(&f) > 0 and s.l.sign != 0 and s.r.sign != 0:
            if s.l.sign == s.r.sign:
                continue
            if isfinite(s.r.t - s.l.t):
                found_root(row, &s, &f, m)
                continue
        if hopeless(row, &s, &f) or not divide(&s, m, &f, stack, &n):
            found_cluster(row, s.l.t, s.r.t)
    if row.pending:
        settle(row, call.hi)


cdef void solve_linear(Search *row) noexcept nogil:
    """No hidden layer: f = a t + s, a and s differences of two numbers."""
    cdef const Deep *call = row.call
    cdef double a = row.flow.a[0], s = row.flow.s[0], es = row.flow.es[0], x, radius, lower, upper
    row.work = 1
    if a == 0 or not (isfinite(a) and fabs(s) + es < HUGE):
        if not (a == 0 and fabs(s) > es):
            list_enclosure(row, call.lo, call.hi, 0, CLUSTER)
        return
    x = min(max(-s / a, -DBL_MAX), DBL_MAX)
    if fabs(x) + es / fabs(a) > HUGE:   # the root is beyond the range of floats, or nearly
        lower, upper, radius = -INFINITY, INFINITY, INFINITY
        if fabs(s) > es and x > 0:
            lower = 0
        elif fabs(s) > es:
            upper = 0
    else:
        radius = (es / fabs(a) + 8 * ROUND * (fabs(x) + es / fabs(a))) * (1 + 8 * ROUND) + 1e-300
        lower, upper = x - radius, x + radius
    if call.lo < lower and upper < call.hi and radius < INFINITY:
        list_enclosure(row, lower, upper, x, UNIQUE)
    elif lower <= call.hi and call.lo <= upper:
        list_enclosure(row, max(lower, call.lo), min(upper, call.hi), x, CLUSTER)


# ---- rows, tasks --------------------------------------------------------------------------------------------------

cdef void deep_offsets(const Deep *call, ix row, Flow *w) noexcept nogil:
    """OUT s (n_out,) = b + Σ W x over the inputs but the chosen one, and es, its error."""
    cdef const Layer *l = &call.net.layers[0]
    cdef const real *x = call.x_other + row * call.x_row
    cdef const real *panel
    cdef vf s, size, v, share = vset1((l.n_in + 4) * ROUND)
    cdef ix i, o, k
    for i in range(padded(l.n_out) // VL):
        if w.watch is not NULL and interrupted(w.watch):
            return
        o = i * VL
        panel = l.w + o // GL * l.n_in * GL + o % GL
        s = vload(l.b + o)
        size = vabs(s)
        for k in range(l.n_in):
            if k != call.coordinate:
                v = vset1(x[(k - (k > call.coordinate)) * call.x_col])
                s = vfma(vload(panel + k * GL), v, s)
                size = vfma(vabs(vload(panel + k * GL)), vabs(v), size)
        vstore(w.s + o, s)
        vstore(w.es + o, vfma(size, share, vset1(TINY)))


cdef void slopes_of(const Deep *call, Flow *w) noexcept nogil:
    """OUT a (n_out,), the chosen input's weights, and the scales of t that they set."""
    cdef const Layer *l = &call.net.layers[0]
    cdef double most = 0, squares = 0
    cdef ix o, used = 0
    for o in range(padded(l.n_out) // GL):
        memcpy(w.a + o * GL, l.w + (o * l.n_in + call.coordinate) * GL, GL * sizeof(real))
    for o in range(l.n_out):
        most = max(most, fabs(w.a[o]))
    for o in range(l.n_out):
        if w.a[o] != 0:
            squares, used = squares + (w.a[o] / most) * (w.a[o] / most), used + 1
    w.scale = min(1 / most, 1e300) if most > 0 else 1.0
    w.spread = w.scale * sqrt(used / squares) if most > 0 else 1.0


cdef double deep_scratch(const Net *net) noexcept nogil:
    """Bytes of scratch that a task needs: a flow, then the stack of spans."""
    return (3. + 2 * STREAMS) * (net.widest + GL) * sizeof(real) + (SPANS + 1) * sizeof(Span)


cdef real *lay_flow(const Net *net, real *at, Flow *w) noexcept nogil:
    """Where everything of a flow lies in the scratch; what comes behind it."""
    cdef ix n = net.widest + GL
    w.net, w.a, w.s, w.es, w.y, w.z = net, at, at + n, at + 2 * n, at + 3 * n, at + (3 + STREAMS) * n
    return at + (3 + 2 * STREAMS) * n


cdef void deep_task(void *args, ix task, Worker *worker) noexcept nogil:
    """All enclosures of a few rows, row by row and ascending."""
    cdef const Deep *call = <const Deep *>args
    cdef ix i
    cdef Flow w
    cdef Span *stack = <Span *>lay_flow(call.net, <real *>worker.scratch, &w)
    cdef Search row
    w.watch = worker if call.net.macs > DEEP_QUICK else NULL
    slopes_of(call, &w)
    row.call, row.flow, row.worker = call, &w, worker
    call.found.needed[task] = 0
    for i in range(task * call.rows, min(call.m, (task + 1) * call.rows)):
        row.row, row.work, row.pending = i, 0, False
        call.found.count[i] = 0
        deep_offsets(call, i, &w)
        if call.net.depth == 1:
            solve_linear(&row)
        else:
            solve_row(&row, stack)
        if call.work is not NULL:
            call.work[i] = row.work
        if interrupted(worker):
            return


cdef struct OneSpan:                    # what `enclosure` asks
    const Deep *call
    Flow flow
    double l, m, r
    Margin f                            # OUT


cdef void enclose_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef OneSpan *a = <OneSpan *>args
    a.flow.watch = worker
    slopes_of(a.call, &a.flow)
    deep_offsets(a.call, 0, &a.flow)
    enclose(&a.flow, a.l, a.m, a.r, &a.f)


cdef double deep_seconds(const Net *net) noexcept:
    """What a row is expected to take: some hundred enclosures."""
    return 60 * (net.macs * STREAMS / (VL * 5e9) + net.sigmoids * 100 / (VL * 3e9) + 5e-8)


cdef class DeepNet(Solver):
    """The ties of a network of any depth along one input; the program's only output is the margin, whose last layer's numbers
    are differences of two, correctly rounded."""
    cdef Program program
    cdef ix coordinate

    def __cinit__(self, Program program not None, ix coordinate):
        expect_length("the number of outputs", program.net.outputs, 1)
        self.program = program
        self.coordinate = expect_index("coordinate", coordinate, program.net.layers[0].n_in)

    def enclosure(self, cnp.ndarray X not None, double l, double m, double r):
        """(mid, radius) of f and f' at m, then (lower, upper) of f, f', f'' on [l, r], for the one row of X."""
        cdef Deep a
        cdef OneSpan call
        cdef Margin *f = &call.f
        cdef cnp.ndarray store = reals(deep_scratch(&self.program.net) / sizeof(real))
        if self.program.net.depth < 2 or not l <= m <= r:
            raise ValueError(f"there are {self.program.net.depth - 1} hidden layers, and points {l}, {m}, {r}; "
                             "expected a layer, and ascending points")
        self.describe(&a, X)
        expect_length("X.shape[0]", a.m, 1)
        call.call, call.l, call.m, call.r = &a, l, m, r
        lay_flow(a.net, aligned(store), &call.flow)
        run_once(a.net, enclose_task, &call)
        return ((f.f.mid, f.f.rad), (f.slope.mid, f.slope.rad), (f.range.lo, f.range.hi), (f.slopes.lo, f.slopes.hi),
                (f.curvatures.lo, f.curvatures.hi))

    def effort(self, cnp.ndarray X not None, double lo, double hi, double xtol):
        """How many enclosures each row takes to solve, (m,) intp; what is found is not listed."""
        cdef cnp.ndarray work = np.zeros(X.shape[0], np.intp)
        cdef Buffers buffers = self.buffers(X.shape[0])
        buffers.reset(X.shape[0], Listing(X.shape[0]))
        self.run_rows(X, lo, hi, xtol, buffers, <ix *>cnp.PyArray_DATA(work))
        return work

    cdef int describe(self, Deep *a, cnp.ndarray X) except -1:
        memset(a, 0, sizeof(Deep))
        expect_reals("X", X, 2, False)
        expect_length("X.shape[1]", X.shape[1], self.program.net.layers[0].n_in - 1)
        a.net, a.coordinate, a.m, a.x_other = &self.program.net, self.coordinate, X.shape[0], <const real *>cnp.PyArray_DATA(X)
        a.x_row, a.x_col = cnp.PyArray_STRIDE(X, 0) // <ix>sizeof(real), cnp.PyArray_STRIDE(X, 1) // <ix>sizeof(real)
        return 0

    cdef ix task_rows(self) noexcept:
        return max(<ix>1, min(<ix>MAX_ROWS, <ix>(5e-4 / deep_seconds(&self.program.net))))

    cdef int search(self, cnp.ndarray X, double lo, double hi, double xtol, Buffers out) except -1:
        return self.run_rows(X, lo, hi, xtol, out, NULL)

    cdef int run_rows(self, cnp.ndarray X, double lo, double hi, double xtol, Buffers out,
                      ix *work) except -1:
        cdef Deep a
        self.describe(&a, X)
        if out.rows != a.m or out.tasks * out.task_rows < a.m:
            raise ValueError(f"there is room for {out.rows} rows; expected {a.m}")
        a.lo, a.hi, a.xtol, a.rows, a.found, a.work = lo, hi, xtol, out.task_rows, out.found, work
        return run(deep_task, &a, out.tasks, deep_scratch(a.net), a.m * deep_seconds(a.net))
