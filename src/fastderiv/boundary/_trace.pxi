# ---- a plane of two inputs: enclosures over boxes ------------------------------------------------------------------
#
# Ranges of f, ∂f/∂x and ∂f/∂y over a box [x0, x1] × [y0, y1], lanes = boxes.  Every number below is an end of an
# interval that holds the exact range, whatever the rounding; u = 2⁻⁵³.
# - What is assumed of the kernels' σ: exp within 4u relatively (simd.h).  Then the tail t = σ(−|z|)
#   = e/(1 + e) is off by 4u (1 − t), and u for the sum and u for the quotient: at most 6u
#   relatively.  1 − t, at least ½, is off by 6u t/(1 − t) + u ≤ 7u; σ by 7u relatively, and
#   absolutely by (4u t(1 − t) ≤ u) + 2u ≤ 3u.  σ' = t (1 − t): the errors of t enter it times (1 −
#   2t)/(1 − t) ≤ 1, and two roundings: 8u.
# - `below` and `above` go 32u (and LEAST) further out: 24u are left for the product with a slope,
#   u, and for whatever the assumption may be wrong by.  Tails below the smallest normal number are
#   0: LEAST.
# - A sum b + Σ w y of n terms with 0 ≤ y ≤ 1 + 40u is off by at most (n + 1) u (1 + 2nu) (|b| + Σ
#   |w|)(1 + 40u), fused or not, in any order: each term meets one product and n sums at most.  The
#   last layer's weights are differences of two parameters, off by u relatively: (n + 2) u.  `wide`
#   has (n + 4) u · 1.001, n < 10⁸.
# - The first layer's s + a x + b y, fused or not, is off by at most 2u |a x| + 3u |b y| + 2u |s|
#   and their products, so by 5u (|s| + |a x| + |b y|) generously; `wide` takes |x| and |y| at the
#   far ends of the box.  s itself is a sum of n products and a bias made before: (n + 1) u of the
#   sum of their magnitudes, and `wide` has (n + 2) u · 1.001.  Nothing here depends on the size of
#   s: it enters `wide` by its magnitude, up to where sums overflow; then `wide` is infinite or an
#   end is NaN, and nothing is decided.  Underflow of a product loses 2⁻¹⁰⁷⁵, n of them less than
#   LEAST.
# - So a unit's interval [z0 − wide, z1 + wide] holds the exact sum, and nothing that follows knows
#   of errors in z.  Twice: the plain sum, and the mean value form about the centre: c is a computed
#   value there, off by what `wide` says of values at a point: an error e of z passes σ as min(e/4,
#   1), and 3u of σ itself come to it.  The slopes are those of the box.
# - A sum of slopes is off by (n + 1) u Σ |w| |g|, u more in the last layer; gamma has (n + 4) u,
#   relative to the slopes present, and Σ |w| |g|, which is itself rounded, by n u of that.  `below`
#   and `above` pay for the last subtraction. Where a single steep unit is left, its sign is known
#   for as long as its slope is a normal number.
# derivations §2.
cdef extern from *:
    """
    static const real WIDE = (real)3.5527136788005009e-15;              /* 32 u */
    static const real LEAST = (real)2.2250738585072014e-308;
    """
    const real WIDE, LEAST

cdef enum:
    UP = VL                             # from the lower end of an interval to its upper end
    XS = 2 * VL                         # from a unit's value to its slopes along x and along y
    YS = 4 * VL
    LARGEST = 6 * VL                    # to the larger magnitudes of these two, one after the other
    CENTRE = 8 * VL                     # to its value at the centre
    UNIT_SIZE = 9 * VL

cdef struct Boxes:
    const Net *net                      # two inputs, one output
    const real *wide                    # layer by layer: what sums may be off by, then values at a point; padded to GL
    const real *box                     # (4, m): x0, x1, y0, y1
    real *out                           # (4, m), see `judge_vector`
    ix m, task                          # m is a multiple of GL; boxes of a task
    bint slopes                         # out is what `store_slopes` says

cdef struct Box:                        # VL of them
    vf end[4]                           # x0, x1, y0, y1
    vf x, y, hx, hy                     # the centre and how far it is to the sides, at most


cdef inline vf below(vf a) noexcept nogil:
    return a - vabs(a) * vset1(WIDE) - vset1(LEAST)


cdef inline vf above(vf a) noexcept nogil:
    return a + vabs(a) * vset1(WIDE) + vset1(LEAST)


cdef inline void scale_slope(real *g, real *largest, vf least, vf most) noexcept nogil:
    """IN g: an interval, least ≤ σ' ≤ most; OUT g = σ' g and the larger magnitude of its ends."""
    cdef vf zero = vset1(0), a = vload(g), b = vload(g + UP)
    a = below(a * vsel_lt(a, zero, most, least))
    b = above(b * vsel_lt(zero, b, most, least))
    vstore(g, a)
    vstore(g + UP, b)
    vstore(largest, vmax(vabs(a), vabs(b)))


cdef inline void squash(real *p) noexcept nogil:
    """INOUT p, a unit: z, ∂z/∂x, ∂z/∂y become σ(z) and its slopes.  σ rises; σ' rises up to 0 and falls from there."""
    cdef vf zero = vset1(0), one = vset1(1), a = vload(p), b = vload(p + UP), s, t, least, most
    s, t = vabs(vtail(a)), vabs(vtail(b))
    vstore(p, below(vsel_lt(a, zero, s, one - s)))
    vstore(p + UP, above(vsel_lt(b, zero, t, one - t)))
    vstore(p + CENTRE, vsigmoid(vload(p + CENTRE)))
    s, t = s * (one - s), t * (one - t)
    least = vmax(below(vmin(s, t)), zero)
    most = vmax(s, t)
    most = above(vsel_lt(a, zero, vsel_lt(zero, b, vset1(0.25), most), most))
    scale_slope(p + XS, p + LARGEST, least, most)
    scale_slope(p + YS, p + LARGEST + VL, least, most)


cdef inline void store_sum(real *z, vf z0, vf z1, vf x0, vf x1, vf y0, vf y1, vf c, const Box *box,
                           real off) noexcept nogil:
    """OUT z: the slopes, the value at the centre, and of two ranges of the sum the part that is in both: z0 to z1, and
    c ± off ± |∂z/∂x| hx ± |∂z/∂y| hy, the mean value form."""
    cdef vf reach
    vstore(z + XS, x0)
    vstore(z + XS + UP, x1)
    vstore(z + YS, y0)
    vstore(z + YS + UP, y1)
    vstore(z + CENTRE, c)
    reach = above(vmax(vabs(x0), vabs(x1)) * box.hx) + above(vmax(vabs(y0), vabs(y1)) * box.hy) + vset1(off)
    vstore(z, vmax(below(c - above(reach)), z0))                 # in this order NaN loses
    vstore(z + UP, vmin(above(c + above(reach)), z1))


cdef inline void weighted_sum(const real *w, ix n, real bias, real wide, real off, const real *y, const Box *box,
                              real *z, const bint last) noexcept nogil:
    """IN y: n units; OUT z: bias + Σ w y and its slopes, w[k] being GL apart.  A negative weight swaps the ends.

    What rounding does to either end of the slopes is judged by the magnitudes of that end's terms in the `last` layer;
    in the others, whose weights are many, for half the work by the larger ones of both ends.
    """
    cdef vf z0 = vset1(bias), z1 = z0, c = z0, x0 = vset1(0), x1 = x0, y0 = x0, y1 = x0, v, a
    cdef vf xm0 = x0, xm1 = x0, ym0 = x0, ym1 = x0, gamma = vset1((n + 4) * ROUND)
    cdef ix k, lo, hi
    for k in range(n):
        v = vset1(w[k * GL])
        a = vabs(v)
        lo = 0 if w[k * GL] >= 0 else UP
        hi = UP - lo
        z0 = vfma(v, vload(y + lo), z0)
        z1 = vfma(v, vload(y + hi), z1)
        x0 = vfma(v, vload(y + XS + lo), x0)
        x1 = vfma(v, vload(y + XS + hi), x1)
        y0 = vfma(v, vload(y + YS + lo), y0)
        y1 = vfma(v, vload(y + YS + hi), y1)
        c = vfma(v, vload(y + CENTRE), c)
        if last:
            xm0 = vfma(a, vabs(vload(y + XS + lo)), xm0)
            xm1 = vfma(a, vabs(vload(y + XS + hi)), xm1)
            ym0 = vfma(a, vabs(vload(y + YS + lo)), ym0)
            ym1 = vfma(a, vabs(vload(y + YS + hi)), ym1)
        else:
            xm0 = vfma(a, vload(y + LARGEST), xm0)
            ym0 = vfma(a, vload(y + LARGEST + VL), ym0)
        y += UNIT_SIZE
    if not last:
        xm1, ym1 = xm0, ym0
    store_sum(z, below(z0 - vset1(wide)), above(z1 + vset1(wide)), below(x0 - gamma * xm0), above(x1 + gamma * xm1),
              below(y0 - gamma * ym0), above(y1 + gamma * ym1), c, box, off)


cdef inline void first_sum(const real *w, real s, real wide, const Box *box, real *z) noexcept nogil:
    """OUT z: s + a x + b y and its slopes a, b, which lie GL apart at w; ends of the box by their signs."""
    cdef vf a = vset1(w[0]), b = vset1(w[GL]), shift = vset1(s)
    cdef int x = 0 if w[0] >= 0 else 1, y = 2 if w[GL] >= 0 else 3
    cdef vf z0 = vfma(a, box.end[x], vfma(b, box.end[y], shift))
    cdef vf z1 = vfma(a, box.end[1 - x], vfma(b, box.end[5 - y], shift))
    store_sum(z, below(z0 - vset1(wide)), above(z1 + vset1(wide)), below(a), above(a), below(b), above(b),
              vfma(a, box.x, vfma(b, box.y, shift)), box, wide)


cdef inline real *enclose_box(const Net *net, const real *wide, const Box *box, real *y, real *z) noexcept nogil:
    """Where the output's intervals lie in the end: in y or z, (widest) units each."""
    cdef const Layer *l = &net.layers[0]
    cdef ix i, k, n = padded(l.n_out)
    for k in range(l.n_out):
        first_sum(l.w + k // GL * 2 * GL + k % GL, l.b[k], wide[k], box, y + k * UNIT_SIZE)
    for i in range(1, net.depth):
        wide += 2 * n
        l = &net.layers[i]
        n = padded(l.n_out)
        for k in range(l.n_in):
            squash(y + k * UNIT_SIZE)
        if i == net.depth - 1:
            weighted_sum(l.w, l.n_in, l.b[0], wide[0], wide[n], y, box, z, True)
        else:
            for k in range(l.n_out):
                weighted_sum(l.w + k // GL * l.n_in * GL + k % GL, l.n_in, l.b[k], wide[k], wide[n + k], y, box,
                             z + k * UNIT_SIZE, False)
        y, z = z, y
    return y


cdef inline vf signed_gap(vf a, vf b) noexcept nogil:
    """The end of [a, b] next to zero, or 0 if zero is inside; 0 where an end is NaN."""
    cdef vf zero = vset1(0), largest = vset1(INFINITY)
    return vsel_lt(zero, a, vsel_lt(a, largest, a, zero), vsel_lt(b, zero, vsel_lt(-largest, b, b, zero), zero))


cdef inline void load_boxes(const Boxes *a, ix first, Box *box) noexcept nogil:
    cdef vf half = vset1(0.5)
    cdef int i
    for i in range(4):
        box.end[i] = vload(a.box + i * a.m + first)
    box.x = box.end[0] + (box.end[1] - box.end[0]) * half
    box.y = box.end[2] + (box.end[3] - box.end[2]) * half
    box.hx = above(vmax(box.end[1] - box.x, box.x - box.end[0]))
    box.hy = above(vmax(box.end[3] - box.y, box.y - box.end[2]))


cdef inline void store_slopes(const Boxes *a, ix first, const real *f) noexcept nogil:
    """OUT the least and largest ∂f/∂x, then those of ∂f/∂y."""
    cdef int i
    for i in range(4):
        vstore(a.out + i * a.m + first, vload(f + XS + i * UP))


cdef void judge_vector(const Boxes *a, ix first, real *scratch) noexcept nogil:
    """OUT for VL boxes: signed gaps between zero and the ranges of f, ∂f/∂x, ∂f/∂y, and the largest
    |f|; or slopes.
    """
    cdef Box box
    cdef const real *f
    load_boxes(a, first, &box)
    f = enclose_box(a.net, a.wide, &box, scratch, scratch + a.net.widest * UNIT_SIZE)
    if a.slopes:
        store_slopes(a, first, f)
        return
    vstore(a.out + first, signed_gap(vload(f), vload(f + UP)))
    vstore(a.out + a.m + first, signed_gap(vload(f + XS), vload(f + XS + UP)))
    vstore(a.out + 2 * a.m + first, signed_gap(vload(f + YS), vload(f + YS + UP)))
    vstore(a.out + 3 * a.m + first, vmax(vabs(vload(f)), vabs(vload(f + UP))))


cdef void boxes_task(void *args, ix i, Worker *worker) noexcept nogil:
    cdef Boxes *a = <Boxes *>args
    cdef ix first = i * a.task, end = min(a.m, (i + 1) * a.task)
    while first < end and not interrupted(worker):
        judge_vector(a, first, <real *>worker.scratch)
        first += VL


def judge_boxes(Program program, cnp.ndarray errors, cnp.ndarray boxes, bint slopes=False):
    """(4, n): signed gaps between zero and the ranges of f, ∂f/∂x and ∂f/∂y over the boxes, and the
    largest |f| there; or if `slopes` the least and largest ∂f/∂x, and those of ∂f/∂y.

    `program` has two inputs and one output; errors: float64, layer after layer what its units' sums may be off by, padded
    to GL = 8, then what their values at a point may be off by; boxes (4, n): x0, x1, y0, y1, finite.
    """
    cdef Boxes a
    cdef ix n = boxes.shape[1], m = padded(n)
    cdef cnp.ndarray box = np.zeros((4, m))
    cdef cnp.ndarray out = np.empty((4, m))
    cdef double each = (2.5e-9 * program.net.macs + 35e-9 * program.net.sigmoids + 50e-9) / VL
    box[:, :n] = boxes
    a.net, a.wide, a.m, a.slopes = &program.net, <const real *>cnp.PyArray_DATA(errors), m, slopes
    a.box, a.out = <const real *>cnp.PyArray_DATA(box), <real *>cnp.PyArray_DATA(out)
    a.task = max(<ix>1, <ix>(50e-6 / (each * GL))) * GL
    run(boxes_task, &a, (m + a.task - 1) // a.task, 2 * program.net.widest * UNIT_SIZE * sizeof(real), m * each, True)
    return out[:, :n]
