"""The arithmetic of the selective scan (docs/derivations.md §1), in one compiled module.

    _kernels.pyx      the structs that describe a call, tiles, and how arrays become structs
    _scan.pxi         scan: forward, in one fused pass
    _adjoint.pxi      adjoint: forward once more, and back
    _step.pxi         step: one step, as a decoder takes it
    _attention.pxi    step_sum and attention: sums of step sizes, rows of the expanded recurrence

VL channels lie in the lanes of a vector.  A task carries a few such vectors through time in blocks of TB steps; a block of
each input is transposed into a tile [time, lane], every four states run through the block with h in registers, and the
finished tile of y is transposed out.  No array of D·L·N elements exists.  Every output is computed by the same operations
in the same order whatever the strides, the blocks, the tasks and the threads are.
"""
from libc.math cimport INFINITY, isfinite
from libc.string cimport memcpy, memset
cimport numpy as cnp
import numpy as np
from fastderiv._core.simd cimport (EXP2_SAFE, FOURS, GL, LOG2E, NS, PARTS, SHARE, VL, ix, real, vabs, vall_lt, vdecay_any,
                                   vdecay_safe, vexp2_any, vexp2_neg, vf, vfma, vload, vmax, vpartsums, vprefetch, vratio_any,
                                   vratio_safe, vsel_lt, vset1, vsilu, vsilu_slope, vsoftplus, vsoftplus_slope, vstore, vtranspose)
from fastderiv._core.threads cimport Worker, interrupted, run

cnp.import_array()

cdef enum:
    TB = 128                            # time steps in a block
    TILE = TB * VL + 7 * GL             # tiles an odd number of cache lines apart: no 4 KiB aliasing
    CARRY = 4                           # vectors of channels a task carries, where they share gathered B and C

cdef struct Signal:                     # u, delta, z, out: strides of batch, channel, time, in elements
    real *p
    ix b, d, t

cdef struct Coefficient:                # B or C: (D, N) if constant, then g is the channel's stride, else (Bt, G, N, L)
    real *p
    ix b, g, n, t
    ix channels                         # in a group
    bint constant, gather               # gather: time is not contiguous, copy each block

cdef struct State:                      # initial or last state (segments, D, N)
    real *p
    ix s, d, n

cdef struct PerChannel:                 # D or delta_bias (D,)
    real *p
    ix d

cdef struct Vector:                     # one vector of channels within a task, in scratch
    real *a                             # [N, lane]: A·log2(e)
    real *h                             # [N, lane]
    real *before                        # [N, lane]: h at the start of the block
    real *b                             # [N, lane]: constant B
    real *c                             # [N, lane]: constant C
    real *limits                        # [lane]: max |A| log2(e), NaN if any is not finite
    real *D                             # [lane]
    real *bias
    ix channel, rows                    # first channel, channels in use
    bint finite                         # whether all of h is

cdef struct Scan:
    Signal u, delta, z, out
    Coefficient B, C
    State first, last
    real *A
    ix A_d, A_n
    PerChannel D, bias
    bint softplus
    const ix *starts                    # segments packed along time, or NULL: one segment a batch item
    ix segments, channels, states, steps
    ix block                            # time steps gathered at once
    ix part, carry, chunks              # channels that share B and C; vectors a task carries; chunks of a segment
    ix units, units_per_task            # a unit is one chunk of one segment


# ---- tiles --------------------------------------------------------------------------------------------------------

cdef inline void load_tile(const real *src, ix si, ix sj, ix ni, ix nj, real *dst, ix ld) noexcept nogil:
    """dst[j, i] = src[i, j] for i < ni, j < nj; src has strides si, sj and dst rows ld apart."""
    cdef ix i, j = 0
    cdef ix whole = ni - ni % VL
    if sj == 1:
        while j + VL <= nj:
            i = 0
            while i < whole:
                vtranspose(src + i * si + j, si, dst + j * ld + i, ld)
                i += VL
            while i < ni:
                copy(src + i * si + j, 1, dst + j * ld + i, ld, VL)
                i += 1
            j += VL
    elif si == 1:
        while j < nj:
            i = 0
            while i < whole:
                vstore(dst + j * ld + i, vload(src + j * sj + i))
                i += VL
            copy(src + j * sj + i, 1, dst + j * ld + i, 1, ni - i)
            j += 1
    while j < nj:
        copy(src + j * sj, si, dst + j * ld, 1, ni)
        j += 1


cdef inline void store_tile(const real *src, ix ld, real *dst, ix si, ix sj, ix ni, ix nj) noexcept nogil:
    """dst[i, j] = src[j, i]: load_tile backwards."""
    cdef ix i, j = 0
    cdef ix whole = ni - ni % VL
    if sj == 1:
        while j + VL <= nj:
            i = 0
            while i < whole:
                vtranspose(src + j * ld + i, ld, dst + i * si + j, si)
                i += VL
            while i < ni:
                copy(src + j * ld + i, ld, dst + i * si + j, 1, VL)
                i += 1
            j += VL
    elif si == 1:
        while j < nj:
            i = 0
            while i < whole:
                vstore(dst + j * sj + i, vload(src + j * ld + i))
                i += VL
            copy(src + j * ld + i, 1, dst + j * sj + i, 1, ni - i)
            j += 1
    while j < nj:
        copy(src + j * ld, 1, dst + j * sj, si, ni)
        j += 1


cdef inline void copy(const real *src, ix ss, real *dst, ix ds, ix n) noexcept nogil:
    cdef ix i
    for i in range(n):
        dst[i * ds] = src[i * ss]


cdef void load_signal(Signal *s, ix batch, Vector *v, ix t, ix T, real *tile) noexcept nogil:
    """tile[time, lane] of a block; unused lanes are zero."""
    if v.rows < VL:
        memset(tile, 0, T * VL * sizeof(real))
    load_tile(s.p + batch * s.b + v.channel * s.d + t * s.t, s.d, s.t, v.rows, T, tile, VL)


cdef void store_signal(Signal *s, ix batch, Vector *v, ix t, ix T, const real *tile) noexcept nogil:
    """load_signal backwards: the lanes in use."""
    store_tile(tile, VL, s.p + batch * s.b + v.channel * s.d + t * s.t, s.d, s.t, v.rows, T)


cdef struct Ahead:                      # one cache line to prefetch with every step: lines of a later block, spread out
    const real *p
    ix mask, lane, shift, line


cdef void look_ahead(Ahead *a, Signal *s, ix batch, Vector *v, ix t) noexcept nogil:
    """Step k of a block prefetches a line of the block at t: a lane's next line, or all lanes of one time."""
    a.p = s.p + batch * s.b + v.channel * s.d + t * s.t
    a.mask, a.lane, a.shift, a.line = 0, 0, 0, s.t
    if s.t == 1:
        a.mask, a.lane, a.line = VL - 1, s.d, GL
        while 1 << a.shift < VL:
            a.shift += 1


cdef inline void prefetch(Ahead *a, ix k) noexcept nogil:
    vprefetch(a.p + (k & a.mask) * a.lane + (k >> a.shift) * a.line)


# ---- from arrays to the struct ------------------------------------------------------------------------------------

cdef inline ix stride(cnp.ndarray a, int axis):
    return cnp.PyArray_STRIDE(a, axis) // <ix>sizeof(real)


cdef void set_signal(Signal *s, cnp.ndarray a):
    if a is None:
        s.p = NULL
        return
    s.p, s.b, s.d, s.t = <real *>cnp.PyArray_DATA(a), stride(a, 0), stride(a, 1), stride(a, 2)


cdef void set_state(State *s, cnp.ndarray a):
    if a is None:
        s.p = NULL
        return
    s.p, s.s, s.d, s.n = <real *>cnp.PyArray_DATA(a), stride(a, 0), stride(a, 1), stride(a, 2)


cdef void set_per_channel(PerChannel *s, cnp.ndarray a):
    if a is None:
        s.p = NULL
        return
    s.p, s.d = <real *>cnp.PyArray_DATA(a), stride(a, 0)


cdef void set_coefficient(Coefficient *c, cnp.ndarray a, ix channels):
    if a is None:
        c.p, c.constant, c.gather, c.channels = NULL, True, False, channels
        return
    c.p, c.constant, c.gather, c.channels = <real *>cnp.PyArray_DATA(a), cnp.PyArray_NDIM(a) == 2, False, channels
    if c.constant:
        c.g, c.n = stride(a, 0), stride(a, 1)
        return
    c.b, c.g, c.n, c.t = stride(a, 0), stride(a, 1), stride(a, 2), stride(a, 3)
    c.channels = channels // cnp.PyArray_DIM(a, 1)
    c.gather = c.t != 1 and cnp.PyArray_DIM(a, 3) > 1


cdef ix common_divisor(ix a, ix b) noexcept:
    while b:
        a, b = b, a % b
    return a


cdef void set_scan(Scan *s, cnp.ndarray u, cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C, cnp.ndarray D,
                   cnp.ndarray z, cnp.ndarray bias, bint softplus, cnp.ndarray first, cnp.ndarray starts):
    s.channels, s.steps, s.states, s.softplus = cnp.PyArray_DIM(u, 1), cnp.PyArray_DIM(u, 2), cnp.PyArray_DIM(A, 1), softplus
    s.segments = cnp.PyArray_DIM(u, 0) if starts is None else cnp.PyArray_DIM(starts, 0) - 1
    set_signal(&s.u, u)
    set_signal(&s.delta, delta)
    set_signal(&s.z, z)
    set_coefficient(&s.B, B, s.channels)
    set_coefficient(&s.C, C, s.channels)
    set_state(&s.first, first)
    s.A, s.A_d, s.A_n = <real *>cnp.PyArray_DATA(A), stride(A, 0), stride(A, 1)
    set_per_channel(&s.D, D)
    set_per_channel(&s.bias, bias)
    s.starts = NULL if starts is None else <ix *>cnp.PyArray_DATA(starts)
    s.part = common_divisor(s.B.channels, s.C.channels)


cdef inline ix divided(ix n, ix size) noexcept nogil:
    """Pieces of `size` that hold n."""
    return (n + size - 1) // size


cdef ix set_chunks(Scan *s, ix carry):
    """Chunks of so many vectors; how many there are."""
    s.carry = carry
    s.chunks = s.channels // s.part * divided(s.part, carry * VL)
    return s.chunks


cdef ix first_channel(Scan *s, ix chunk) noexcept nogil:
    cdef ix per_part = divided(s.part, s.carry * VL)    # chunks in a part
    return chunk // per_part * s.part + chunk % per_part * s.carry * VL


cdef ix end_channel(Scan *s, ix channel) noexcept nogil:
    """The end of the chunk that begins at `channel`."""
    return min(channel + s.carry * VL, (channel // s.part + 1) * s.part)


include "_scan.pxi"
include "_adjoint.pxi"
include "_step.pxi"
include "_attention.pxi"
