# A plane of two inputs: ranges of f, ∂f/∂x and ∂f/∂y over boxes.
#
# Lanes are boxes [x0, x1] × [y0, y1].  Every number below is an end of an interval that holds the
# exact range, whatever the rounding: docs/rounding.md §3.  A sum is wrong by `error` at most, its
# value at a point by `value_error` at most, a sum of n slopes by (n + 4) u times the sum of its
# terms' magnitudes.  Every end e is moved outwards by 32u |e| + LEAST.
# docs/derivations.md §2.10.
# needs: Layer, LEAST, Net, padded, ROUND, WIDE (_net.pxi)

cdef enum:
    # distances in what is stored of a unit
    UP = VL                             # from the lower end of an interval to its upper end
    XS = 2 * VL                         # from a unit's value to its slopes along x and along y
    YS = 4 * VL
    LARGEST = 6 * VL                    # to the larger magnitudes of these two, one after the other
    CENTRE = 8 * VL                     # to its value at the centre
    UNIT_SIZE = 9 * VL

cdef struct Boxes:
    const Net *net                      # two inputs, one output
    const real *errors                  # of each layer: its sums, then its values at a point
    const real *box                     # (4, m): x0, x1, y0, y1
    real *out                           # (4, m), see `judge_vector`
    ix m, task_boxes                    # multiples of GL
    bint slopes                         # whether out is what `store_slopes` says, not `store_gaps`

cdef struct Box:                        # VL of them
    vf end[4]                           # x0, x1, y0, y1
    vf x, y, hx, hy                     # the centre and how far it is to the sides, at most

cdef struct UnitSum:                    # bias + Σ w y over n terms
    const real *w                       # GL apart
    ix n
    real bias
    real error, value_error             # what rounding does to the sum, and to its value at a point

cdef struct SumRange:                   # ends of a sum and of its slopes, its value at the centre
    vf z0, z1, x0, x1, y0, y1, c


cdef inline vf below(vf a) noexcept nogil:
    """a moved down, below every exact value that it stands for."""
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
    """INOUT p, a unit: z, ∂z/∂x, ∂z/∂y become σ(z) and its slopes.

    σ rises; σ' rises up to 0 and falls from there.
    """
    cdef vf zero = vset1(0), one = vset1(1), a = vload(p), b = vload(p + UP), least, most
    cdef vf s = vabs(vtail(a)), t = vabs(vtail(b))
    vstore(p, below(vsel_lt(a, zero, s, one - s)))
    vstore(p + UP, above(vsel_lt(b, zero, t, one - t)))
    vstore(p + CENTRE, vsigmoid(vload(p + CENTRE)))
    s, t = s * (one - s), t * (one - t)
    least = vmax(below(vmin(s, t)), zero)
    most = vmax(s, t)
    most = above(vsel_lt(a, zero, vsel_lt(zero, b, vset1(0.25), most), most))
    scale_slope(p + XS, p + LARGEST, least, most)
    scale_slope(p + YS, p + LARGEST + VL, least, most)


cdef inline void store_sum(const SumRange *sum, const Box *box, real value_error,
                           real *z) noexcept nogil:
    """OUT z: the slopes, the value at the centre, and what two ranges of the sum have in common.

    These are z0 to z1, and the mean value form c ± value_error ± |∂z/∂x| hx ± |∂z/∂y| hy.
    """
    cdef vf reach
    vstore(z + XS, sum.x0)
    vstore(z + XS + UP, sum.x1)
    vstore(z + YS, sum.y0)
    vstore(z + YS + UP, sum.y1)
    vstore(z + CENTRE, sum.c)
    reach = (above(vmax(vabs(sum.x0), vabs(sum.x1)) * box.hx)
             + above(vmax(vabs(sum.y0), vabs(sum.y1)) * box.hy) + vset1(value_error))
    # if the mean value form is NaN, vmax and vmin return their second operand, the plain range
    vstore(z, vmax(below(sum.c - above(reach)), sum.z0))
    vstore(z + UP, vmin(above(sum.c + above(reach)), sum.z1))


cdef inline void weighted_sum(const UnitSum *sum, const real *y, const Box *box, real *z,
                              const bint last) noexcept nogil:
    """IN y: n units; OUT z: bias + Σ w y and its slopes.  A negative weight swaps the ends.

    What rounding does to either end of the slopes is judged by the magnitudes of that end's terms
    in the `last` layer.  The other layers, which have many weights, take the larger ones of both
    ends, for half the work.
    """
    cdef vf z0 = vset1(sum.bias), z1 = z0, c = z0, x0 = vset1(0), x1 = x0, y0 = x0, y1 = x0, v, a
    cdef vf xm0 = x0, xm1 = x0, ym0 = x0, ym1 = x0, gamma = vset1((sum.n + 4) * ROUND)
    cdef vf error = vset1(sum.error)
    cdef SumRange to
    cdef ix k, lo, hi
    for k in range(sum.n):
        v = vset1(sum.w[k * GL])
        a = vabs(v)
        lo = 0 if sum.w[k * GL] >= 0 else UP
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
    to.z0, to.z1, to.c = below(z0 - error), above(z1 + error), c
    to.x0, to.x1 = below(x0 - gamma * xm0), above(x1 + gamma * xm1)
    to.y0, to.y1 = below(y0 - gamma * ym0), above(y1 + gamma * ym1)
    store_sum(&to, box, sum.value_error, z)


cdef inline void first_sum(const UnitSum *sum, const Box *box, real *z) noexcept nogil:
    """OUT z: bias + a x + b y and its slopes a, b; each takes the box's ends by its sign."""
    cdef vf a = vset1(sum.w[0]), b = vset1(sum.w[GL]), shift = vset1(sum.bias)
    cdef vf error = vset1(sum.error)
    cdef int x = 0 if sum.w[0] >= 0 else 1, y = 2 if sum.w[GL] >= 0 else 3
    cdef SumRange to
    to.z0 = below(vfma(a, box.end[x], vfma(b, box.end[y], shift)) - error)
    to.z1 = above(vfma(a, box.end[1 - x], vfma(b, box.end[5 - y], shift)) + error)
    to.x0, to.x1, to.y0, to.y1 = below(a), above(a), below(b), above(b)
    to.c = vfma(a, box.x, vfma(b, box.y, shift))
    store_sum(&to, box, sum.value_error, z)


cdef inline UnitSum sum_of(const Layer *layer, const real *errors, ix k) noexcept nogil:
    """The sum of unit k of a layer, whose errors begin at `errors`."""
    cdef UnitSum sum
    sum.w, sum.n = layer.w + k // GL * layer.n_in * GL + k % GL, layer.n_in
    sum.bias, sum.error, sum.value_error = layer.b[k], errors[k], errors[padded(layer.n_out) + k]
    return sum


cdef inline real *enclose_box(const Boxes *call, const Box *box, real *y) noexcept nogil:
    """Returns where the output's intervals lie.  y is scratch for 2·widest units."""
    cdef const Net *net = call.net
    cdef const Layer *layer = &net.layers[0]
    cdef const real *errors = call.errors
    cdef real *z = y + net.widest * UNIT_SIZE
    cdef UnitSum sum
    cdef ix i, k
    for k in range(layer.n_out):
        sum = sum_of(layer, errors, k)
        first_sum(&sum, box, y + k * UNIT_SIZE)
    for i in range(1, net.depth):
        errors += 2 * padded(layer.n_out)
        layer = &net.layers[i]
        for k in range(layer.n_in):
            squash(y + k * UNIT_SIZE)
        for k in range(layer.n_out):
            sum = sum_of(layer, errors, k)
            if i == net.depth - 1:      # one output
                weighted_sum(&sum, y, box, z, True)
            else:
                weighted_sum(&sum, y, box, z + k * UNIT_SIZE, False)
        y, z = z, y
    return y


cdef inline vf signed_gap(vf a, vf b) noexcept nogil:
    """The end of [a, b] next to zero, or 0 if zero is inside; 0 where an end is NaN."""
    cdef vf zero = vset1(0), largest = vset1(INFINITY)
    cdef vf upper = vsel_lt(b, zero, vsel_lt(-largest, b, b, zero), zero)
    return vsel_lt(zero, a, vsel_lt(a, largest, a, zero), upper)


cdef inline void load_boxes(const Boxes *call, ix first, Box *box) noexcept nogil:
    cdef vf half = vset1(0.5)
    cdef int i
    for i in range(4):
        box.end[i] = vload(call.box + i * call.m + first)
    box.x = box.end[0] + (box.end[1] - box.end[0]) * half
    box.y = box.end[2] + (box.end[3] - box.end[2]) * half
    box.hx = above(vmax(box.end[1] - box.x, box.x - box.end[0]))
    box.hy = above(vmax(box.end[3] - box.y, box.y - box.end[2]))


cdef inline void store_slopes(const Boxes *call, ix first, const real *f) noexcept nogil:
    """OUT the least and largest ∂f/∂x, then those of ∂f/∂y."""
    cdef int i
    for i in range(4):
        vstore(call.out + i * call.m + first, vload(f + XS + i * UP))


cdef inline void store_gaps(const Boxes *call, ix first, const real *f) noexcept nogil:
    """OUT signed gaps between zero and the ranges of f, ∂f/∂x and ∂f/∂y, and the largest |f|."""
    cdef real *out = call.out + first
    vstore(out, signed_gap(vload(f), vload(f + UP)))
    vstore(out + call.m, signed_gap(vload(f + XS), vload(f + XS + UP)))
    vstore(out + 2 * call.m, signed_gap(vload(f + YS), vload(f + YS + UP)))
    vstore(out + 3 * call.m, vmax(vabs(vload(f)), vabs(vload(f + UP))))


cdef void judge_vector(const Boxes *call, ix first, real *scratch) noexcept nogil:
    """OUT for VL boxes: what `store_slopes` or `store_gaps` says."""
    cdef Box box
    cdef const real *f
    load_boxes(call, first, &box)
    f = enclose_box(call, &box, scratch)
    if call.slopes:
        store_slopes(call, first, f)
    else:
        store_gaps(call, first, f)


cdef void boxes_task(void *args, ix i, Worker *worker) noexcept nogil:
    """OUT out at the boxes of task i."""
    cdef Boxes *call = <Boxes *>args
    cdef ix first = i * call.task_boxes, end = min(call.m, (i + 1) * call.task_boxes)
    while first < end and not interrupted(worker):
        judge_vector(call, first, <real *>worker.scratch)
        first += VL
