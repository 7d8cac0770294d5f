# ---- a plane of two inputs: enclosures over boxes ------------------------------------------------------------------
#
# Ranges of f, ∂f/∂x and ∂f/∂y over a box [x0, x1] × [y0, y1], lanes = boxes.  Every number below is an end of an interval that
# holds the exact range, whatever the rounding; u = 2⁻⁵³.
# - A sum b + Σ w y of n terms with 0 ≤ y ≤ 1 + 40u is off by at most (n + 2) u (|b| + Σ |w|), fused or not, in any order; the first
#   layer's s + a x + b y by at most 5u (|s| + |a x| + |b y|), plus what s is off by.  These are constants of a unit, `wide`, and
#   its interval is made so much wider.  So nothing that follows knows of errors in z.
# - The tail t = σ(−|z|) is off by 4.2u relatively; 1 − t, at least ½, by 5.2u; so σ by 5.2u and σ' = t (1 − t) by 10.4u.
#   `below` and `above` go 32u further out, and a product has room there.  Tails below the smallest normal number are 0: TINY.
# - A sum of slopes is off by (n + 4) u Σ |w| |g|, relative to the slopes present: where a single steep unit is left, its sign is
#   known for as long as its slope is a normal number.
# The last layer's weights are differences of two parameters and may be off by u relatively: `wide` and (n + 4) include it.
# derivations §2.
from libc.math cimport INFINITY

from fastderiv._core.simd cimport vabs, vfma, vmax, vmin, vsel_lt, vset1, vtail

cdef extern from *:
    """
    static const real UNIT = (real)1.1102230246251565e-16, WIDE = (real)3.5527136788005009e-15;     /* u, 32 u */
    static const real TINY = (real)2.2250738585072014e-308;
    """
    const real UNIT, WIDE, TINY

cdef enum:
    UP = VL                             # from the lower end of an interval to its upper end
    XS = 2 * VL                         # from a unit's value to its slopes along x and along y
    YS = 4 * VL
    LARGEST = 6 * VL                    # to the larger magnitudes of these two, one after the other
    UNIT_SIZE = 8 * VL

cdef struct Boxes:
    const Net *net                      # two inputs, one output
    const real *wide                    # layer after layer, each padded to GL
    const real *box                     # (4, m): x0, x1, y0, y1
    real *out                           # (4, m), see `judge`
    ix m, task                          # m is a multiple of GL; boxes of a task


cdef inline vf below(vf a) noexcept nogil:
    return a - vabs(a) * vset1(WIDE) - vset1(TINY)


cdef inline vf above(vf a) noexcept nogil:
    return a + vabs(a) * vset1(WIDE) + vset1(TINY)


cdef inline void scale_slope(real *g, real *largest, vf least, vf most) noexcept nogil:
    """IN g: an interval, least ≤ σ' ≤ most; OUT g = σ' g and the larger magnitude of its ends."""
    cdef vf zero = vset1(0), a = vload(g), b = vload(g + UP)
    a = below(a * vsel_lt(a, zero, most, least))
    b = above(b * vsel_lt(zero, b, most, least))
    vstore(g, a)
    vstore(g + UP, b)
    vstore(largest, vmax(vabs(a), vabs(b)))


cdef inline void activate(real *p, const bint slopes) noexcept nogil:
    """INOUT p, a unit: z, ∂z/∂x, ∂z/∂y become σ(z) and its slopes.  σ rises; σ' rises up to 0 and falls from there."""
    cdef vf zero = vset1(0), one = vset1(1), a = vload(p), b = vload(p + UP), s, t, least, most
    s, t = vabs(vtail(a)), vabs(vtail(b))
    vstore(p, below(vsel_lt(a, zero, s, one - s)))
    vstore(p + UP, above(vsel_lt(b, zero, t, one - t)))
    if slopes:
        s, t = s * (one - s), t * (one - t)
        least = vmax(below(vmin(s, t)), zero)
        most = vmax(s, t)
        most = above(vsel_lt(a, zero, vsel_lt(zero, b, vset1(0.25), most), most))
        scale_slope(p + XS, p + LARGEST, least, most)
        scale_slope(p + YS, p + LARGEST + VL, least, most)


cdef inline void weighted_sum(const real *w, ix n, real bias, real wide, const real *y, real *z, const bint slopes) noexcept nogil:
    """IN y: n units; OUT z: bias + Σ w y and its slopes, w[k] being GL apart.  A negative weight swaps the ends."""
    cdef vf z0 = vset1(bias), z1 = z0, x0 = vset1(0), x1 = x0, y0 = x0, y1 = x0, xm = x0, ym = x0, v
    cdef ix k, lo, hi
    for k in range(n):
        v = vset1(w[k * GL])
        lo = 0 if w[k * GL] >= 0 else UP
        hi = UP - lo
        z0 = vfma(v, vload(y + lo), z0)
        z1 = vfma(v, vload(y + hi), z1)
        if slopes:
            x0 = vfma(v, vload(y + XS + lo), x0)
            x1 = vfma(v, vload(y + XS + hi), x1)
            y0 = vfma(v, vload(y + YS + lo), y0)
            y1 = vfma(v, vload(y + YS + hi), y1)
            v = vabs(v)
            xm = vfma(v, vload(y + LARGEST), xm)
            ym = vfma(v, vload(y + LARGEST + VL), ym)
        y += UNIT_SIZE
    vstore(z, below(z0 - vset1(wide)))
    vstore(z + UP, above(z1 + vset1(wide)))
    if slopes:
        xm, ym = xm * vset1((n + 4) * UNIT), ym * vset1((n + 4) * UNIT)
        vstore(z + XS, below(x0 - xm))
        vstore(z + XS + UP, above(x1 + xm))
        vstore(z + YS, below(y0 - ym))
        vstore(z + YS + UP, above(y1 + ym))


cdef inline void first_sums(const Layer *l, const real *wide, const vf *box, real *z, const bint slopes) noexcept nogil:
    """OUT z: s + a x + b y and its slopes a, b for every unit of the first layer; ends of the box by the signs of a and b."""
    cdef ix o
    cdef const real *w
    cdef vf a, b
    cdef int x, y
    for o in range(l.n_out):
        w = l.w + o // GL * 2 * GL + o % GL
        a, b = vset1(w[0]), vset1(w[GL])
        x, y = 0 if w[0] >= 0 else 1, 2 if w[GL] >= 0 else 3
        vstore(z, below(vfma(a, box[x], vfma(b, box[y], vset1(l.b[o]))) - vset1(wide[o])))
        vstore(z + UP, above(vfma(a, box[1 - x], vfma(b, box[5 - y], vset1(l.b[o]))) + vset1(wide[o])))
        if slopes:
            vstore(z + XS, below(a))
            vstore(z + XS + UP, above(a))
            vstore(z + YS, below(b))
            vstore(z + YS + UP, above(b))
        z += UNIT_SIZE


cdef inline real *enclose(const Net *net, const real *wide, const vf *box, real *y, real *z, const bint slopes) noexcept nogil:
    """Where the output's interval, and those of its slopes, lie in the end: in y or z, (widest) units each."""
    cdef const Layer *l = &net.layers[0]
    cdef ix i, k
    first_sums(l, wide, box, y, slopes)
    for i in range(1, net.depth):
        wide += padded(l.n_out)
        l = &net.layers[i]
        for k in range(l.n_in):
            activate(y + k * UNIT_SIZE, slopes)
        for k in range(l.n_out):
            weighted_sum(l.w + k // GL * l.n_in * GL + k % GL, l.n_in, l.b[k], wide[k], y, z + k * UNIT_SIZE, slopes)
        y, z = z, y
    return y


cdef inline vf signed_gap(vf a, vf b) noexcept nogil:
    """The end of [a, b] next to zero, or 0 if zero is inside; 0 where an end is NaN."""
    cdef vf zero = vset1(0)
    return vsel_lt(zero, a, vsel_lt(a, vset1(INFINITY), a, zero), vsel_lt(b, zero, vsel_lt(vset1(-INFINITY), b, b, zero), zero))


cdef void judge(const Boxes *a, ix first, real *scratch) noexcept nogil:
    """OUT for VL boxes: signed gaps between zero and the ranges of f, ∂f/∂x, ∂f/∂y, and the largest |f|.

    The range of f is the better of two: term by term, and f(centre) ± |∂f/∂x| hx ± |∂f/∂y| hy.
    """
    cdef vf box[4]
    cdef vf centre[4]
    cdef vf x0, x1, y0, y1, f0, f1, hx, hy, reach
    cdef real *z = scratch + a.net.widest * UNIT_SIZE
    cdef real *f
    cdef int i
    for i in range(4):
        box[i] = vload(a.box + i * a.m + first)
    f = enclose(a.net, a.wide, box, scratch, z, True)
    f0, f1 = vload(f), vload(f + UP)
    x0, x1, y0, y1 = vload(f + XS), vload(f + XS + UP), vload(f + YS), vload(f + YS + UP)
    for i in range(0, 4, 2):
        centre[i] = centre[i + 1] = box[i] + (box[i + 1] - box[i]) * vset1(0.5)
    f = enclose(a.net, a.wide, centre, scratch, z, False)
    hx = above(vmax(box[1] - centre[0], centre[0] - box[0]))
    hy = above(vmax(box[3] - centre[2], centre[2] - box[2]))
    reach = above(above(vmax(vabs(x0), vabs(x1)) * hx) + above(vmax(vabs(y0), vabs(y1)) * hy))
    f0 = vmax(below(vload(f) - reach), f0)                       # in this order NaN loses
    f1 = vmin(above(vload(f + UP) + reach), f1)
    vstore(a.out + first, signed_gap(f0, f1))
    vstore(a.out + a.m + first, signed_gap(x0, x1))
    vstore(a.out + 2 * a.m + first, signed_gap(y0, y1))
    vstore(a.out + 3 * a.m + first, vmax(vabs(f0), vabs(f1)))


cdef void boxes_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Boxes *a = <Boxes *>args
    cdef ix first = i * a.task, end = min(a.m, (i + 1) * a.task)
    while first < end and not interrupted(worker):
        judge(a, first, <real *>worker.scratch)
        first += VL


def judge_boxes(Program program, cnp.ndarray wide, cnp.ndarray boxes):
    """(4, n): signed gaps between zero and the ranges of f, ∂f/∂x and ∂f/∂y over the boxes, and the largest |f| there.

    `program` has two inputs and one output; wide: float64, what the units' sums are off by, layer after layer, each padded to
    GL = 8; boxes (4, n): x0, x1, y0, y1, finite.
    """
    cdef Boxes a
    cdef ix n = boxes.shape[1], m = padded(n)
    cdef cnp.ndarray box = np.zeros((4, m))
    cdef cnp.ndarray out = np.empty((4, m))
    cdef double each = (4e-9 * program.net.macs + 30e-9 * program.net.sigmoids + 20e-9) / VL
    box[:, :n] = boxes
    a.net, a.wide, a.m = &program.net, <const real *>cnp.PyArray_DATA(wide), m
    a.box, a.out = <const real *>cnp.PyArray_DATA(box), <real *>cnp.PyArray_DATA(out)
    a.task = max(<ix>1, <ix>(50e-6 / (each * GL))) * GL
    run(boxes_task, &a, (m + a.task - 1) // a.task, 2 * program.net.widest * UNIT_SIZE * sizeof(real), m * each, True)
    return out[:, :n]
