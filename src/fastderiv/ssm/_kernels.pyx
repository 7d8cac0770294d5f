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
from fastderiv._core.threads cimport Worker, interrupted, run, task_t
from fastderiv._core.arrays import check_fits, empty

cnp.import_array()

cdef enum:
    TB = 128                            # time steps in a block
    TILE = TB * VL + 7 * GL             # tiles an odd number of cache lines apart: no 4 KiB aliasing
    CARRY = 4                           # vectors of channels a task carries, where they share gathered B and C
    MANY = 4096                         # states between two looks for signals, a multiple of 4
    ALONE = 1 << 30                     # bytes of scratch beyond which only one thread works

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
    Worker *worker                      # who works on it, and is told to stop

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


# ---- all states of a vector, however many: in pieces, and once interrupted not at all ---------------

cdef inline bint stopped(Vector *v, ix n) noexcept nogil:
    """Whether to leave at the n-th state: never at the first, so that few states cost nothing."""
    return n > 0 and interrupted(v.worker)


cdef inline ix piece_at(ix n, ix N) noexcept nogil:
    return min(<ix>MANY, N - n)


cdef void load_rows(const real *src, ix sd, ix sn, Vector *v, ix N, real *dst) noexcept nogil:
    """OUT dst [N, lane] = the rows of the vector's channels in src (D, N), unused lanes zero."""
    cdef ix n = 0, m
    while n < N and not stopped(v, n):
        m = piece_at(n, N)
        if v.rows < VL:
            memset(dst + n * VL, 0, m * VL * sizeof(real))
        load_tile(src + v.channel * sd + n * sn, sd, sn, v.rows, m, dst + n * VL, VL)
        n += m


cdef void store_rows(const real *src, Vector *v, ix N, real *dst, ix sd, ix sn) noexcept nogil:
    """load_rows backwards: the lanes in use."""
    cdef ix n = 0, m
    while n < N and not stopped(v, n):
        m = piece_at(n, N)
        store_tile(src + n * VL, VL, dst + v.channel * sd + n * sn, sd, sn, v.rows, m)
        n += m


cdef void copy_states(const real *src, Vector *v, ix N, real *dst) noexcept nogil:
    """OUT dst [N, lane] = src."""
    cdef ix n = 0, m
    while n < N and not stopped(v, n):
        m = piece_at(n, N)
        memcpy(dst + n * VL, src + n * VL, m * VL * sizeof(real))
        n += m


cdef void clear_states(Vector *v, ix N, real *dst) noexcept nogil:
    """OUT dst [N, lane] = 0."""
    cdef ix n = 0, m
    while n < N and not stopped(v, n):
        m = piece_at(n, N)
        memset(dst + n * VL, 0, m * VL * sizeof(real))
        n += m


cdef bint all_finite(Vector *v, const real *h, ix N) noexcept nogil:
    """Whether all of h [N, lane] is."""
    cdef vf odd = vset1(0)
    cdef ix n = 0, end
    while n < N and not stopped(v, n):
        end = n + piece_at(n, N)
        while n < end:
            odd = vfma(vload(h + n * VL), vset1(0), odd)
            n += 1
    return vall_lt(odd, vset1(1))


# ---- from arrays to the struct ------------------------------------------------------------------------------------

cdef int expect_array(cnp.ndarray a, int axes, const ix *shape, bint written) except -1:
    """A mistake in Python must not become a read of foreign memory: a TypeError unless `a` is None or
    has this shape, the kernel's type, and can be `written`."""
    cdef int i
    cdef bint good
    if a is None:
        return 0
    good = (cnp.PyArray_NDIM(a) == axes and cnp.PyArray_ISFLOAT(a)
            and cnp.PyArray_ITEMSIZE(a) == sizeof(real) and cnp.PyArray_ISBEHAVED_RO(a)
            and (not written or cnp.PyArray_ISWRITEABLE(a)))
    if good:
        for i in range(axes):
            good = good and cnp.PyArray_DIM(a, i) == shape[i]
    if not good:
        refuse(a, tuple([shape[i] for i in range(axes)]))
    return 0


cdef int refuse(cnp.ndarray a, shape) except -1:
    raise TypeError(f"a kernel for {8 * sizeof(real)}-bit numbers was handed an array of shape "
                    f"{(<object>a).shape} and dtype {a.dtype}; expected an aligned one of shape {shape}")


cdef int expect_coefficient(cnp.ndarray a, ix batch, ix channels, ix states, ix steps,
                            bint written) except -1:
    """(D, N) or (Bt, G, N, L), G dividing D; or None."""
    cdef ix shape[4]
    shape[0], shape[1], shape[2], shape[3] = batch, 0, states, steps
    if a is None:
        return 0
    if cnp.PyArray_NDIM(a) == 2 and not written:
        shape[0], shape[1] = channels, states
        return expect_array(a, 2, shape, False)
    if cnp.PyArray_NDIM(a) == 4:
        shape[1] = cnp.PyArray_DIM(a, 1)
    if shape[1] == 0 or channels % shape[1]:
        refuse(a, (batch, "G", states, steps))
    return expect_array(a, 4, shape, written)


cdef int expect_integers(cnp.ndarray a) except -1:
    """(k,) intp, contiguous: what kernels index by."""
    if (cnp.PyArray_NDIM(a) != 1 or cnp.PyArray_TYPE(a) != cnp.NPY_INTP
            or not cnp.PyArray_ISCARRAY_RO(a)):
        raise TypeError(f"a kernel was handed {a.dtype} of shape {(<object>a).shape}; expected "
                        "contiguous (k,) intp")
    return 0


cdef ix counted(double n) except -1:
    """How many tasks, as an integer."""
    if n > 2.**62:
        raise MemoryError(f"no memory for what {n:.0f} tasks would write")
    return <ix>n


cdef int run_with(task_t task, void *args, ix n, double scratch, double seconds) except -1:
    """`run` with scratch of any size: a MemoryError if the machine has not so much, and one thread
    alone if it is huge."""
    if scratch > ALONE:
        check_fits("scratch", int(scratch))
        seconds = 0
    return run(task, args, n, scratch, seconds)


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


cdef int set_scan(Scan *s, cnp.ndarray u, cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B,
                  cnp.ndarray C, cnp.ndarray D, cnp.ndarray z, cnp.ndarray bias, bint softplus,
                  cnp.ndarray first, cnp.ndarray starts) except -1:
    cdef ix shape[3]
    cdef int axis
    if cnp.PyArray_NDIM(u) != 3:
        refuse(u, ("batch", "D", "L"))
    if cnp.PyArray_NDIM(A) != 2:
        refuse(A, ("D", "N"))
    for axis in range(3):
        shape[axis] = cnp.PyArray_DIM(u, axis)
    s.channels, s.steps, s.states, s.softplus = shape[1], shape[2], cnp.PyArray_DIM(A, 1), softplus
    expect_array(u, 3, shape, False)
    expect_array(delta, 3, shape, False)
    expect_array(z, 3, shape, False)
    expect_coefficient(B, shape[0], s.channels, s.states, s.steps, False)
    expect_coefficient(C, shape[0], s.channels, s.states, s.steps, False)
    expect_array(D, 1, shape + 1, False)
    expect_array(bias, 1, shape + 1, False)
    s.segments = shape[0]
    if starts is not None:
        expect_integers(starts)
        s.segments = cnp.PyArray_DIM(starts, 0) - 1
    set_shape(s, shape)
    expect_array(A, 2, shape + 1, False)
    expect_array(first, 3, shape, False)
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


cdef void set_shape(const Scan *s, ix *shape) noexcept:
    """OUT shape (segments, D, N): that of states."""
    shape[0], shape[1], shape[2] = s.segments, s.channels, s.states


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
