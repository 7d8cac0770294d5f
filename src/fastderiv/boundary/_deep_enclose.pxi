# Any number of hidden layers along a line: f, f' and f'' enclosed layer by layer.
#
#     z_0 = a t + s,   y_k = σ(z_k),   z_{k+1} = W_k y_k + b_k,   f = the only output
#
# (docs/derivations.md §2.5).  An enclosure of f on X = [l, r] around m runs two things side by side
# through the layers, units in lanes: the point (z, z') at m, whose radii are rounding only, and
# ranges of (z, z', z'') on X.  Sums pass between layers as mid ± radius.  Behind every linear map
# the ranges are cut by the centred forms, h = max(r − m, m − l):
#
#     z' ∈ z'(m) ± h |z''(X)|        z ∈ z(m) ± min(h |z'(X)|, h |z'(m)| + h²/2 |z''(X)|)
#
# Radii and ends hold the exact values, whatever the rounding: docs/rounding.md §2.
# needs: Layer, Net, padded, ROUND (_net.pxi)

cdef extern from "flow.h" nogil:
    enum: STREAMS, POINT, CELL, TOGETHER
    ctypedef struct FlowMap:
        const real *w
        const real *b
        ix panel, n
        real k, tiny
    void flow_block(const FlowMap *map, const real *y, real *z, int NV, int NP)

cdef double HUGE = 1e307, TINY = 1e-307

cdef struct Unit:                       # one vector of units
    vf z, e                             # at the point: z ± e
    vf g, ge                            # its slope
    vf lo, hi, lo1, hi1, lo2, hi2       # on the interval: z, z', z''

cdef struct Toll:                       # bounds of what a map of n inputs loses by rounding
    vf sums, values, slopes             # in sums of radii; in values; in slopes and curvatures

cdef struct Interval:
    double lo, hi

cdef struct Ball:
    double mid, rad

cdef struct Where:                      # an interval and the point in it that it is enclosed around
    double l, m, r

cdef struct MarginRange:                # f and f' at the point; f, f', f'' on the interval
    Ball f, slope
    Interval range, slopes, curvatures

cdef struct Flow:                       # one row on its way, in a worker's scratch
    const Net *net
    real *a                             # first layer: z = a t + s, |s − exact s| ≤ es
    real *s
    real *es
    real *y                             # streams, CELL numbers for every GL units
    real *z
    Worker *watch                       # asked for interrupts; NULL if a pass is short
    double scale                        # 1 / max |a|: on smaller scales f is smooth in t
    double spread                       # 1 / rms a


cdef inline vf less(vf x) noexcept nogil:
    """What is surely below the exact result that was rounded to x."""
    return x - vset1(4 * ROUND) * vabs(x)


cdef inline vf more(vf x) noexcept nogil:
    return x + vset1(4 * ROUND) * vabs(x)


cdef inline vf larger(vf lo, vf hi) noexcept nogil:
    return vmax(vabs(lo), vabs(hi))


cdef inline void known(vf *m, vf *r) noexcept nogil:
    """INOUT m ± r: it becomes 0 ± ∞ where it overflows or is NaN."""
    cdef vf size = vabs(m[0]) + r[0]
    m[0] = vsel_lt(size, vset1(HUGE), m[0], vset1(0))
    r[0] = vsel_lt(size, vset1(HUGE), r[0], vset1(INFINITY))


cdef inline void range_of(const real *z, vf *lo, vf *hi) noexcept nogil:
    """[lo, hi] ⊇ m ± r."""
    cdef vf m = vload(z), r = vload(z + GL)
    known(&m, &r)
    lo[0], hi[0] = less(m - r), more(m + r)


cdef inline void store_radius(real *r, vf m, vf rad, vf k, const Toll *pay) noexcept nogil:
    """OUT r: the radius of m ± rad, with what the next map will lose (rounding.md §2.1)."""
    vstore(r, vfma(rad, pay.sums, vfma(k, vabs(m), vset1(TINY))))


cdef inline void store_range(real *y, vf lo, vf hi, vf extra, vf k, const Toll *pay) noexcept nogil:
    """OUT y: m ± r ⊇ [lo − extra, hi + extra]."""
    cdef vf m = vset1(0.5) * lo + vset1(0.5) * hi, r = vmax(hi - m, m - lo) + extra
    vstore(y, m)
    store_radius(y + GL, m, r, k, pay)


cdef inline void load_sums(const real *z, vf h, Unit *unit, const bint ranged) noexcept nogil:
    """OUT unit: pre-activations from a layer's sums; their ranges are cut by the centred forms."""
    cdef vf bend, rise, rho
    unit.z, unit.e = vload(z), vload(z + GL)
    unit.g, unit.ge = vload(z + 2 * GL), vload(z + 3 * GL)
    known(&unit.z, &unit.e)
    known(&unit.g, &unit.ge)
    if not ranged:
        return
    range_of(z + 4 * GL, &unit.lo, &unit.hi)
    range_of(z + 6 * GL, &unit.lo1, &unit.hi1)
    range_of(z + 8 * GL, &unit.lo2, &unit.hi2)
    # vmax and vmin take their second operand where one is NaN: the plain range (rounding.md §2.5)
    bend = h * larger(unit.lo2, unit.hi2)
    rho = (unit.ge + bend) * vset1(1 + 8 * ROUND)
    unit.lo1 = vmax(less(unit.g - rho), unit.lo1)
    unit.hi1 = vmin(more(unit.g + rho), unit.hi1)
    rise = vmin(h * (vabs(unit.g) + unit.ge + vset1(0.5) * bend), h * larger(unit.lo1, unit.hi1))
    rho = (unit.e + rise) * vset1(1 + 16 * ROUND)
    unit.lo = vmax(less(unit.z - rho), unit.lo)
    unit.hi = vmin(more(unit.z + rho), unit.hi)


cdef inline void activate_point(const Unit *unit, real *y, const Toll *pay) noexcept nogil:
    """OUT y: σ(z) and σ'(z) z' at a point, with the radii of rounding.md §2.3."""
    cdef vf z = unit.z, e = unit.e, one = vset1(1), half = vset1(0.5)
    cdef vf t = vabs(vtail(z)), p = t * (one - t), v = vsel_lt(z, vset1(0), t, one - t)
    cdef vf g = p * unit.g, ey = p * (e + e * e) * vset1(1.0001), ep = ey, far
    if not vall_lt(e, half):
        far = vabs(vtail(vabs(z) - e)) * vset1(1.0001) + vset1(4e-308)
        ey = vsel_lt(e, half, ey, vsel_lt(e, vabs(z), far, one))
        ep = vsel_lt(e, half, ep, vsel_lt(e, vabs(z), far, vset1(0.25)))
    ep = ep + vset1(4e-308)
    vstore(y, v)
    store_radius(y + GL, v, ey, pay.values, pay)
    vstore(y + 2 * GL, g)
    store_radius(y + 3 * GL, g, ep * (vabs(unit.g) + unit.ge) + p * unit.ge, pay.slopes, pay)


cdef inline vf times_up(vf least, vf most, vf x) noexcept nogil:
    """The largest of [least, most]·x, 0 ≤ least."""
    return vsel_lt(x, vset1(0), least, most) * x


cdef inline vf times_down(vf least, vf most, vf x) noexcept nogil:
    """The least of [least, most]·x, 0 ≤ least."""
    return vsel_lt(vset1(0), x, least, most) * x


cdef inline void activate_range(const Unit *unit, real *y, const Toll *pay) noexcept nogil:
    """OUT y: ranges of σ(z), σ'(z) z' and σ''(z) z'² + σ'(z) z''; rounding by rounding.md §2.5."""
    cdef vf zero = vset1(0), one = vset1(1), lo = unit.lo, hi = unit.hi
    cdef vf tl = vabs(vtail(lo)), th = vabs(vtail(hi)), pl = tl * (one - tl), ph = th * (one - th)
    cdef vf least = vmin(pl, ph) * vset1(1 - 16 * ROUND)
    cdef vf most = vmax(pl, ph) * vset1(1 + 16 * ROUND) + vset1(4e-308)
    cdef vf cl, ch, top, bottom, err, a, b, most2, least2
    # 1. σ and σ' z'
    store_range(y, vsel_lt(lo, zero, tl, one - tl), vsel_lt(hi, zero, th, one - th), zero,
                pay.values, pay)
    most = vsel_lt(lo, zero, vsel_lt(zero, hi, vset1(0.25), most), most)
    store_range(y + 2 * GL, times_down(least, most, unit.lo1), times_up(least, most, unit.hi1),
                zero, pay.slopes, pay)
    # 2. the range of σ'', whose extremes are at ∓1.31696
    err = vset1(16 * ROUND) * most + vset1(4e-308)
    cl = vcopysign(pl * (one - (tl + tl)), zero - lo)
    ch = vcopysign(ph * (one - (th + th)), zero - hi)
    top, bottom = vmax(cl, ch) + err, vmin(cl, ch) - err
    a = vsel_lt(vset1(-1.3171), hi, vset1(0.0962251), top)
    b = vsel_lt(vset1(1.3169), hi, vset1(-0.0962251), bottom)
    top = vsel_lt(lo, vset1(-1.3169), a, top)
    bottom = vsel_lt(lo, vset1(1.3171), b, bottom)
    # 3. the range of z'², then the sum
    a, b = unit.lo1 * unit.lo1, unit.hi1 * unit.hi1
    most2, least2 = vmax(a, b) * vset1(1 + 4 * ROUND), vmin(a, b) * vset1(1 - 4 * ROUND)
    least2 = vsel_lt(unit.lo1, zero, vsel_lt(zero, unit.hi1, zero, least2), least2)
    store_range(y + 4 * GL,
                vsel_lt(zero, bottom, least2, most2) * bottom + times_down(least, most, unit.lo2),
                vsel_lt(top, zero, least2, most2) * top + times_up(least, most, unit.hi2),
                vset1(32 * ROUND) * most * (most2 + larger(unit.lo2, unit.hi2)), pay.slopes, pay)


cdef inline void along(vf a, vf s, vf es, double t, vf *z, vf *e) noexcept nogil:
    """OUT z ± e ∋ a t + s (rounding.md §2.4).  t may be infinite: z is then exact unless a = 0."""
    z[0], e[0] = s, es
    if isfinite(t):
        z[0] = vfma_once(a, vset1(t), s)
        e[0] = es + vset1(3 * ROUND) * vabs(z[0])
    known(z, e)
    if not isfinite(t):
        z[0] = vsel_lt(vset1(0), vabs(a), a * vset1(t), z[0])
        e[0] = vsel_lt(vset1(0), vabs(a), vset1(0), e[0])


cdef inline void first_units(const Flow *flow, ix i, const Where *at, Unit *unit,
                             const bint ranged) noexcept nogil:
    """OUT unit: the first layer's pre-activations, affine in t."""
    cdef vf zl, zr, el, er, a = vload(flow.a + i), s = vload(flow.s + i), es = vload(flow.es + i)
    along(a, s, es, at.m, &unit.z, &unit.e)
    unit.g, unit.ge = a, vset1(0)
    if ranged:
        along(a, s, es, at.l, &zl, &el)
        along(a, s, es, at.r, &zr, &er)
        unit.lo, unit.hi = less(vmin(zl - el, zr - er)), more(vmax(zl + el, zr + er))
        unit.lo1, unit.hi1, unit.lo2, unit.hi2 = a, a, vset1(0), vset1(0)


cdef inline void activate(const Unit *unit, real *y, const Toll *pay,
                          const bint ranged) noexcept nogil:
    """OUT y: the streams of σ(z)."""
    activate_point(unit, y, pay)
    if ranged:
        activate_range(unit, y + POINT * GL, pay)


cdef inline ix roundings(ix n) noexcept nogil:
    """D of rounding.md §2.1, for a map of n inputs."""
    return GL + ceil_div(n, GL) + 2


cdef inline Toll toll(ix n) noexcept nogil:
    """What a map of n inputs loses, paid in advance: rounding.md §2.1."""
    cdef Toll pay
    pay.sums, pay.values = vset1(1 + (n + 32) * ROUND), vset1((roundings(n) + 14) * ROUND)
    pay.slopes = vset1((roundings(n) + 30) * ROUND)
    return pay


cdef inline ix cell(ix v) noexcept nogil:
    """Where the streams of the v-th vector of units begin."""
    return v // NS * CELL + v % NS * VL


cdef inline void map_layer(const Layer *layer, const real *y, real *z, Worker *watch,
                           const bint ranged) noexcept nogil:
    """IN y, streams of n_in units; OUT z, of n_out sums, or anything after an interrupt."""
    cdef ix v = 0, end, vectors = padded(layer.n_out) // VL
    cdef FlowMap map
    map.panel, map.n = layer.n_in * GL, layer.n_in
    map.k, map.tiny = (roundings(layer.n_in) + 14) * ROUND, TINY
    while v < vectors:
        end = vectors
        if watch is not NULL:
            end = min(vectors, v + 2)
            if interrupted(watch):
                return
        while v < end:
            map.w, map.b = layer.w + v // NS * map.panel + v % NS * VL, layer.b + v * VL
            if TOGETHER == 2 and v + 2 <= end:
                flow_block(&map, y, z + cell(v), 2, 5 if ranged else 2)
                v += 2
            else:
                flow_block(&map, y, z + cell(v), 1, 5 if ranged else 2)
                v += 1


cdef inline void enclose_as(const Flow *flow, const Where *at, MarginRange *f,
                            const bint ranged) noexcept nogil:
    """OUT f at m and, if `ranged`, on [l, r].

    1. the first layer  2. map, centred forms and σ, layer by layer  3. the output
    """
    cdef const Net *net = flow.net
    cdef vf h = vset1(max(at.r - at.m, at.m - at.l) * (1 + 4 * ROUND))
    cdef ix i, v, n = net.layers[0].n_out
    cdef Toll pay = toll(n)
    cdef Unit unit
    for v in range(padded(n) // VL):
        first_units(flow, v * VL, at, &unit, ranged)
        activate(&unit, flow.y + cell(v), &pay, ranged)
    for i in range(1, net.depth - 1):
        map_layer(&net.layers[i], flow.y, flow.z, flow.watch, ranged)
        n = net.layers[i].n_out
        pay = toll(n)
        for v in range(padded(n) // VL):
            load_sums(flow.z + cell(v), h, &unit, ranged)
            activate(&unit, flow.y + cell(v), &pay, ranged)
    map_layer(&net.layers[net.depth - 1], flow.y, flow.z, flow.watch, ranged)
    load_sums(flow.z, h, &unit, ranged)
    f.f.mid, f.f.rad = vget(unit.z, 0), vget(unit.e, 0)
    f.slope.mid, f.slope.rad = vget(unit.g, 0), vget(unit.ge, 0)
    if ranged:
        f.range.lo, f.range.hi = vget(unit.lo, 0), vget(unit.hi, 0)
        f.slopes.lo, f.slopes.hi = vget(unit.lo1, 0), vget(unit.hi1, 0)
        f.curvatures.lo, f.curvatures.hi = vget(unit.lo2, 0), vget(unit.hi2, 0)


cdef void enclose(const Flow *flow, double l, double m, double r, MarginRange *f) noexcept nogil:
    """OUT f and f' at m, f, f' and f'' on [l, r]."""
    cdef Where at
    at.l, at.m, at.r = l, m, r
    enclose_as(flow, &at, f, True)


cdef void evaluate(const Flow *flow, double t, MarginRange *f) noexcept nogil:
    """OUT f and f' at t; nothing about an interval."""
    cdef Where at
    at.l = at.m = at.r = t
    enclose_as(flow, &at, f, False)
