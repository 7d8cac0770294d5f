# The scale of the state in the SSD forward pass: from step sizes to runs of steps
# (docs/derivations.md §6.2).  Included by _kernels.pyx.

cdef extern from "ssd/scan.h" nogil:
    enum: SSD_ROWS, SSD_STREAMS, SSD_UB
    ctypedef struct SsdRuns:                # steps in which the state keeps one scale
        ix count
        const ix *end
        const real *ratio
    ctypedef struct SsdLoop:
        const real *x
        real *y
        const real *b
        const real *c
        ix b_row, c_row
        real *S
        ix states, width
        const SsdRuns *runs
    ctypedef struct SsdStream:          # rows to fetch
        const char *p
        ix row, count, bytes
    void ssd_block(const SsdLoop *loop, const SsdStream *ahead)
    void ssd_block_states(const SsdLoop *loop)
    void ssd_block_exact(const SsdLoop *loop)

cdef double SSD_LOWEST = -41.58883083359672     # log 2⁻⁶⁰: a run ends before its scale is lower
cdef double SSD_HIGHEST = 5.545177444479562     # log 2⁸: nor may it be higher, or small x vanish

cdef struct SsdCarry:                   # what a head takes from one block to the next
    double c, rest                      # the logarithm of the scale: a sum of Δ·A, and its rounding
    real P                              # the scale after the last step
    bint wrong                          # whether a y was not finite

cdef struct SsdDecays:                  # of some steps of a head; arrays are scratch
    real *dt                            # [t]: Δ
    real *P                             # [t]: the scale, by which C·S is y
    real *factor                        # [t]: Δ/P, by which x enters S
    ix *end                             # of the runs
    real *ratio
    real *rest                          # work
    SsdRuns runs


cdef inline void ssd_split(double c, double rest, real *high, real *low) noexcept nogil:
    """OUT high + low = c + rest; low is 0 where exp(c) is 0, inf or NaN."""
    high[0] = <real>c
    low[0] = <real>((c - high[0]) + rest) if -1000 < c < 1000 else 0


cdef inline void ssd_exponentials(real *high, const real *low, ix count) noexcept nogil:
    """high = exp(high + low)."""
    cdef ix t = 0
    cdef vf e
    while t < count:
        e = vexp(vload(high + t))
        vstore(high + t, vsel_lt(e, vset1(INFINITY), vfma(e, vload(low + t), e), e))
        t += VL


cdef void ssd_find_runs(SsdDecays *decays, ix steps, double A, bint careful,
                        SsdCarry *carry) noexcept nogil:
    """IN decays.dt.  OUT decays.P, factor and runs, which go on from `carry`.

    The logarithm c of the scale is a compensated sum in double.  `careful`: each step is a run of
    its own, so that the state has no scale.  All arrays have room for round_up(steps, VL).
    """
    cdef double c = carry.c, rest = carry.rest, a, s, v
    cdef ix t, n = 0
    decays.ratio[0] = decays.rest[0] = 0
    for t in range(steps):
        a = decays.dt[t] * A
        s = c + a
        v = s - c
        rest += (c - (s - v)) + (a - v)
        c = s
        if careful or not SSD_LOWEST <= c <= SSD_HIGHEST:
            if t:
                decays.end[n] = t
                n += 1
            ssd_split(c, rest, decays.ratio + n, decays.rest + n)
            c = rest = 0
        ssd_split(c, rest, decays.P + t, decays.factor + t)
    decays.end[n] = steps
    ssd_exponentials(decays.P, decays.factor, steps)
    ssd_exponentials(decays.ratio, decays.rest, n + 1)
    t = 0
    while t < steps:
        vstore(decays.factor + t, vload(decays.dt + t) / vload(decays.P + t))
        t += VL
    decays.runs.count, decays.runs.end, decays.runs.ratio = n + 1, decays.end, decays.ratio
    carry.c, carry.rest = c, rest
    if steps:
        carry.P = decays.P[steps - 1]
