# One hidden layer along a line, f(t) = c + Σ d_i σ(a_i t + s_i) for many rows s: the sum itself,
# and what a task that isolates its roots holds.  docs/derivations.md §2.4.
#
# Lanes are (row, interval).  At a point t only q_i = σ(−|z_i|) with the sign of z_i = a_i t + s_i
# is kept: σ and σ' at t come from it, and so do the ranges of every term of f (monotone) and of f'
# (unimodal) on an interval, from its two ends.  t = ±∞ is a point like others.  An interval is
# excluded, or a bracket of exactly one simple root, or a cluster, or it is split.
#
# Every statement clears what rounding can do to it (docs/rounding.md §1):
#     |f̂ − f| ≤ E + E_s es,    |f̂' − f'| ≤ `slope_error`,    |f''| ≤ curvature · widest
# Everything is scaled so that the largest of |d_i| and |c| is about 1.
# needs: Batch, Layer (_net.pxi)
# needs: CLUSTER, emit, Found, inside, Sink (_enclosures.pxi)

cdef struct Sigmoids:
    ix units
    const real *a
    const real *d
    const real *g                       # a·d
    real c
    real E, E_s                         # rounding.md §1.1: f is wrong by E + E_s·es
    real slope_u, slopes, least_slope   # rounding.md §1.2: (750 + H)u, G, and the rest of E'
    real curvature, widest              # rounding.md §1.3: M₂ / max|a|, and max|a|
    real beyond[2]                      # an interval that reaches to −∞ or ∞ is cut at least so far
                                        # from its finite end
    real limit[2]                       # f(±∞) with its exact sign; NaN if some a is 0
    real narrow                         # 16/max|a|: nothing happens on a smaller scale
    real slowest                        # the least |a| that is not 0
    bint one_root_at_most               # in every row; a root is simple then

cdef struct Stack:                      # fields of `cap` numbers each
    real *p
    ix n, cap

cdef struct Isolate:                    # a call
    const Sigmoids *f
    Batch other                         # the other inputs; its net makes the offsets s
    const Layer *magnitudes             # the same with absolute values
    real lo, hi, xtol
    ix task_rows
    ix breaks                           # points at which every row is cut to begin with
    ix todo_cap, bracket_cap
    Found found

cdef struct Task:                       # in scratch
    const Isolate *call
    Worker *worker
    ix rows
    real *s                             # (units, task_rows)
    real *es                            # (task_rows,)
    real *spent                         # (task_rows,) splits
    real *points                        # (2, units, VL) the q of two neighbours
    real *item                          # (2, units, VL) the q of an interval from the stack
    real *t                             # (MOST_BREAKS + 2, VL)
    real *x                             # (n_in, task_rows) the other inputs
    real *magnitudes                    # (units, task_rows) the sums of absolute values
    Stack todo                          # undecided: row, l, r, q at l, q at r
    Stack bracket                       # the fields of `Bracket`
    Sink sink
    ix *start                           # scratch of `order_rows`
    ix *order

cdef struct Pieces:                     # VL intervals [l, r], each of its row
    vf row, l, r, es
    const real *ql                      # (units, VL) q at l
    const real *qr

cdef struct Verdict:                    # bit i of a mask: lane i
    unsigned none, one, cluster         # holds no root; exactly one; is given up as a cluster
    vf fl, fr, slope                    # f at both ends, least |f'|

cdef struct Bracket:                    # VL intervals that hold one simple root each
    vf row
    vf negative, positive               # the ends where f < 0 and where f > 0
    vf x                                # where the root may be
    vf least                            # |f'| is no less

cdef enum:
    MOST_BREAKS = 16


cdef inline vf sigma(vf q) noexcept nogil:
    return vsel_neg(q, vabs(q), vset1(1) - vabs(q))


cdef inline vf dsigma(vf q) noexcept nogil:
    return vabs(q) * (vset1(1) - vabs(q))


cdef inline ix count_units(const Sigmoids *f, const int H) noexcept nogil:
    """The number of units.  H is this number if the compiler knows it, else 0."""
    return H if H else f.units


cdef inline vf preactivation(const Sigmoids *f, ix i, vf t, vf s) noexcept nogil:
    if f.a[i] == 0:                     # 0·∞
        return s
    return vfma_once(vset1(f.a[i]), t, s)


cdef inline vf error(const Sigmoids *f, vf es) noexcept nogil:
    """E of rounding.md §1.1."""
    return vfma(vset1(f.E_s), es, vset1(f.E))


cdef inline vf slope_error(const Sigmoids *f, vf T, vf es) noexcept nogil:
    """E' of rounding.md §1.2."""
    cdef vf G = vset1(f.slopes), far = es * (0.0964 * G)
    cdef vf near = T * (1.02 * es) + es * es * (0.0667 * G)
    return T * vset1(f.slope_u) + vsel_lt(es, vset1(0.01), near, far) + vset1(f.least_slope)


cdef inline vf bend(const Sigmoids *f, vf t) noexcept nogil:
    """How much f' may change within t, M₂ t of rounding.md §1.3; ∞ or NaN where t is infinite."""
    return vset1(f.curvature) * (vset1(f.widest) * t)


cdef inline vf real_row(const Task *task, vf row) noexcept nogil:
    """`row`, clipped to valid rows: lanes beyond the stack's last item hold garbage."""
    return vmax(vmin(row, vset1(task.rows - 1)), vset1(0))


cdef inline void push(Stack *stack, ix field, vf v, unsigned lanes) noexcept nogil:
    vcompress(stack.p + field * stack.cap + stack.n, v, lanes)


cdef inline void emit_clusters(Task *task, const Pieces *at, unsigned lanes) noexcept nogil:
    """Put the intervals of the lanes into the sink, as clusters."""
    cdef real l, r
    cdef ix i
    while lanes:
        i = vfirst(lanes)
        l, r = vget(at.l, i), vget(at.r, i)
        emit(&task.sink, <ix>vget(at.row, i), l, r, inside(l, r), CLUSTER)
        lanes &= lanes - 1


cdef inline void push_bracket(Task *task, const Pieces *at, const Verdict *v,
                              unsigned lanes) noexcept nogil:
    """Push the intervals of the lanes, each with one simple root, to the stack of brackets."""
    cdef Stack *stack = &task.bracket
    cdef vf l = at.l, r = at.r
    push(stack, 0, at.row, lanes)
    push(stack, 1, vsel_neg(v.fl, l, r), lanes)
    push(stack, 2, vsel_neg(v.fl, r, l), lanes)
    push(stack, 3, vmin(vmax(vfma(r - l, v.fl / (v.fl - v.fr), l), l), r), lanes)
    push(stack, 4, v.slope, lanes)
    stack.n += vcount(lanes)
