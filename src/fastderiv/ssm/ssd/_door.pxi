# From arrays to the structs of the SSD functions.  Included by _kernels.pyx.
# needs: data, expect_array, expect_axes, expect_integers, refuse, stride (_arrays.pxi)
# needs: Ssd, ssd_slots, SsdCoefficient, SsdPerHead, SsdSignal, SsdState,
#        SsdSteps (ssd/_problem.pxi)

cdef int set_ssd_signal(const Ssd *ssd, cnp.ndarray a, bint written, SsdSignal *signal) except -1:
    """OUT signal: a (Bt, L, H, P), or None."""
    cdef ix shape[4]
    signal.p = NULL
    if a is None:
        return 0
    shape[0], shape[1], shape[2], shape[3] = ssd.batch, ssd.steps, ssd.heads, ssd.width
    expect_array(a, 4, shape, written)
    signal.p = data(a)
    signal.b, signal.t, signal.h, signal.p_ = stride(a, 0), stride(a, 1), stride(a, 2), stride(a, 3)
    return 0


cdef int set_ssd_state(const Ssd *ssd, cnp.ndarray a, bint written, SsdState *state) except -1:
    """OUT state: a (segments, H, P, N), or None."""
    cdef ix shape[4]
    state.p = NULL
    if a is None:
        return 0
    shape[0], shape[1], shape[2], shape[3] = ssd.segments, ssd.heads, ssd.width, ssd.states
    expect_array(a, 4, shape, written)
    state.p = data(a)
    state.s, state.h, state.p_, state.n = stride(a, 0), stride(a, 1), stride(a, 2), stride(a, 3)
    return 0


cdef int set_ssd_steps(const Ssd *ssd, cnp.ndarray a, bint written, SsdSteps *steps) except -1:
    """OUT steps: a (Bt, L, H)."""
    cdef ix shape[3]
    shape[0], shape[1], shape[2] = ssd.batch, ssd.steps, ssd.heads
    expect_array(a, 3, shape, written)
    steps.p, steps.b, steps.t, steps.h = data(a), stride(a, 0), stride(a, 1), stride(a, 2)
    return 0


cdef int set_ssd_coefficient(const Ssd *ssd, cnp.ndarray a, bint written,
                             SsdCoefficient *coefficient) except -1:
    """OUT coefficient: a (Bt, L, G, N), or None."""
    cdef ix shape[4]
    coefficient.p = NULL
    if a is None:
        return 0
    shape[0], shape[1], shape[2], shape[3] = ssd.batch, ssd.steps, ssd.groups, ssd.states
    expect_array(a, 4, shape, written)
    coefficient.p = data(a)
    coefficient.b, coefficient.t = stride(a, 0), stride(a, 1)
    coefficient.g, coefficient.n = stride(a, 2), stride(a, 3)
    return 0


cdef int set_ssd_per_head(const Ssd *ssd, cnp.ndarray a, SsdPerHead *values) except -1:
    """OUT values: a (H,) or (H, P), or None."""
    cdef ix shape[2]
    values.p = NULL
    if a is None:
        return 0
    shape[0], shape[1] = ssd.heads, ssd.width
    expect_array(a, 2 if cnp.PyArray_NDIM(a) == 2 else 1, shape, False)
    values.p, values.h = data(a), stride(a, 0)
    values.p_ = stride(a, 1) if cnp.PyArray_NDIM(a) == 2 else 0
    return 0


cdef int set_ssd_inputs(Ssd *ssd, cnp.ndarray x, cnp.ndarray dt, cnp.ndarray A,
                        cnp.ndarray B, cnp.ndarray C) except -1:
    """The sizes of the problem, which are those of x, or of dt if x is None, and of B."""
    expect_axes(dt, 3, ("Bt", "L", "H"))
    ssd.batch, ssd.steps = cnp.PyArray_DIM(dt, 0), cnp.PyArray_DIM(dt, 1)
    ssd.heads, ssd.width = cnp.PyArray_DIM(dt, 2), 1
    if x is not None:
        expect_axes(x, 4, ("Bt", "L", "H", "P"))
        ssd.width = cnp.PyArray_DIM(x, 3)
    expect_axes(B, 4, ("Bt", "L", "G", "N"))
    ssd.groups, ssd.states = cnp.PyArray_DIM(B, 2), cnp.PyArray_DIM(B, 3)
    if ssd.groups == 0 or ssd.heads % ssd.groups:
        refuse(B, (ssd.batch, ssd.steps, "G", "N"))
    ssd.per_group = ssd.heads // ssd.groups
    set_ssd_signal(ssd, x, False, &ssd.x)
    set_ssd_steps(ssd, dt, False, &ssd.dt)
    expect_array(A, 1, &ssd.heads, False)
    set_ssd_per_head(ssd, A, &ssd.A)
    set_ssd_coefficient(ssd, B, False, &ssd.B)
    return set_ssd_coefficient(ssd, C, False, &ssd.C)


cdef int set_ssd_sizes(Ssd *ssd, cnp.ndarray dt_bias, bint dt_softplus, double low,
                       double high) except -1:
    """How dt becomes a step size."""
    expect_array(dt_bias, 1, &ssd.heads, False)
    set_ssd_per_head(ssd, dt_bias, &ssd.bias)
    ssd.softplus, ssd.low, ssd.high = dt_softplus, <real>low, <real>high
    return 0


cdef int set_ssd_segments(Ssd *ssd, cnp.ndarray starts, cnp.ndarray initial_state) except -1:
    """The segments, and the state before each."""
    ssd.starts, ssd.segments = NULL, ssd.batch
    if starts is not None:
        expect_integers(starts)
        ssd.starts, ssd.segments = <ix *>cnp.PyArray_DATA(starts), cnp.PyArray_DIM(starts, 0) - 1
    return set_ssd_state(ssd, initial_state, False, &ssd.initial_state)


cdef real *set_ssd_kept(const Ssd *ssd, cnp.ndarray a, bint written) except? NULL:
    """The states before chunks: (slots, H, N, P), contiguous, or None."""
    cdef ix shape[4]
    if a is None:
        return NULL
    shape[0], shape[1], shape[2], shape[3] = ssd_slots(ssd), ssd.heads, ssd.states, ssd.width
    expect_array(a, 4, shape, written)
    if not cnp.PyArray_IS_C_CONTIGUOUS(a):
        refuse(a, "C-contiguous")
    return data(a)
