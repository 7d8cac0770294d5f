# From arrays to the structs of a scan.  Included by _kernels.pyx.
# needs: data, expect_array, expect_axes, expect_integers, refuse, stride (_arrays.pxi)
# needs: Coefficient, INTERVAL, PerChannel, Scan, Signal, SIGNALS, State, TB (s6/_problem.pxi)

cdef int expect_coefficient(const Scan *scan, cnp.ndarray a) except -1:
    """A TypeError unless `a` can be B or C: (D, N), (Bt, G, N, L) with G dividing D, or None."""
    cdef ix shape[2]
    if a is not None and cnp.PyArray_NDIM(a) == 2:
        shape[0], shape[1] = scan.channels, scan.states
        return expect_array(a, 2, shape, False)
    return expect_varying(scan, a, False)


cdef int expect_varying(const Scan *scan, cnp.ndarray a, bint written) except -1:
    """A TypeError unless `a` can be a time-varying B or C, or the gradient of one: (Bt, G, N, L)
    with G dividing D, or None."""
    cdef ix shape[4]
    if a is None:
        return 0
    shape[0], shape[1], shape[2], shape[3] = scan.batch, 0, scan.states, scan.steps
    if cnp.PyArray_NDIM(a) == 4:
        shape[1] = cnp.PyArray_DIM(a, 1)
    if shape[1] == 0 or scan.channels % shape[1]:
        refuse(a, (scan.batch, "G", scan.states, scan.steps))
    return expect_array(a, 4, shape, written)


# ---- one array --------------------------------------------------------------------------------

cdef int set_signal(const Scan *scan, cnp.ndarray a, bint written, Signal *signal) except -1:
    """OUT signal: a (Bt, D, L), or None."""
    cdef ix shape[3]
    signal.p = NULL
    if a is None:
        return 0
    shape[0], shape[1], shape[2] = scan.batch, scan.channels, scan.steps
    expect_array(a, 3, shape, written)
    signal.p, signal.b, signal.d, signal.t = data(a), stride(a, 0), stride(a, 1), stride(a, 2)
    return 0


cdef int set_state(const Scan *scan, cnp.ndarray a, bint written, State *state) except -1:
    """OUT state: a (segments, D, N), or None."""
    cdef ix shape[3]
    state.p = NULL
    if a is None:
        return 0
    shape[0], shape[1], shape[2] = scan.segments, scan.channels, scan.states
    expect_array(a, 3, shape, written)
    state.p, state.s, state.d, state.n = data(a), stride(a, 0), stride(a, 1), stride(a, 2)
    return 0


cdef int set_per_channel(const Scan *scan, cnp.ndarray a, PerChannel *values) except -1:
    """OUT values: a (D,), or None."""
    values.p = NULL
    if a is None:
        return 0
    expect_array(a, 1, &scan.channels, False)
    values.p, values.d = data(a), stride(a, 0)
    return 0


cdef int set_coefficient(const Scan *scan, cnp.ndarray a, Coefficient *coefficient) except -1:
    """OUT coefficient: a (D, N) or (Bt, G, N, L), or None, which counts as constant."""
    expect_coefficient(scan, a)
    coefficient.p, coefficient.constant, coefficient.gather = NULL, True, False
    coefficient.channels = scan.channels
    if a is None:
        return 0
    coefficient.p = data(a)
    if cnp.PyArray_NDIM(a) == 2:
        coefficient.g, coefficient.n = stride(a, 0), stride(a, 1)
        return 0
    coefficient.constant = False
    coefficient.b, coefficient.g = stride(a, 0), stride(a, 1)
    coefficient.n, coefficient.t = stride(a, 2), stride(a, 3)
    coefficient.channels = scan.channels // cnp.PyArray_DIM(a, 1)
    coefficient.gather = coefficient.t != 1 and cnp.PyArray_DIM(a, 3) > 1
    return 0


cdef int set_remembered(Scan *scan, cnp.ndarray a, ix span) except -1:
    """Where states are kept, `span` steps apart; nowhere if that is None."""
    cdef ix size
    scan.remembered.p, scan.remembered.sums, scan.remembered.span = NULL, NULL, TB
    if a is None:
        return 0
    if span <= 0 or span % INTERVAL or TB % span:
        raise TypeError(f"a kernel was handed a span of {span} steps")
    scan.remembered.span, scan.remembered.count = span, scan.steps // span
    size = scan.batch * scan.channels * scan.remembered.count * scan.states
    expect_array(a, 1, &size, True)
    if not cnp.PyArray_IS_C_CONTIGUOUS(a):
        refuse(a, "C-contiguous")
    scan.remembered.p = data(a)
    return 0


cdef cnp.ndarray set_sums(Scan *scan, cnp.ndarray checks, ix tasks):
    """The array (tasks, SIGNALS) of the tasks' checksums, to be kept alive; None if there is no
    array `checks` (SIGNALS,) for their totals."""
    if checks is None:
        return None
    if (cnp.PyArray_TYPE(checks) != cnp.NPY_UINT64 or not cnp.PyArray_ISCARRAY(checks)
            or cnp.PyArray_NDIM(checks) != 1 or cnp.PyArray_DIM(checks, 0) != SIGNALS):
        raise TypeError("a kernel was handed no (3,) uint64 for checksums")
    sums = empty("checksums", (tasks, SIGNALS), checks.dtype, np.zeros)
    scan.remembered.sums = <uint64_t *>cnp.PyArray_DATA(sums)
    return sums


cdef void add_sums(cnp.ndarray sums, cnp.ndarray checks):
    """OUT checks (SIGNALS,) = the sums of all tasks modulo 2**64; nothing if there are none."""
    cdef const uint64_t *p
    cdef uint64_t *to
    cdef ix i, k
    if sums is None:
        return
    p, to = <const uint64_t *>cnp.PyArray_DATA(sums), <uint64_t *>cnp.PyArray_DATA(checks)
    for k in range(SIGNALS):
        to[k] = 0
        for i in range(cnp.PyArray_DIM(sums, 0)):
            to[k] += p[i * SIGNALS + k]


# ---- the arguments of a scan, in this order ---------------------------------------------------

cdef int set_inputs(Scan *scan, cnp.ndarray u, cnp.ndarray delta, cnp.ndarray z) except -1:
    """Sizes of batch, channels and steps, and the signals."""
    expect_axes(u, 3, ("batch", "D", "L"))
    scan.batch, scan.channels = cnp.PyArray_DIM(u, 0), cnp.PyArray_DIM(u, 1)
    scan.steps = cnp.PyArray_DIM(u, 2)
    set_signal(scan, u, False, &scan.u)
    set_signal(scan, delta, False, &scan.delta)
    return set_signal(scan, z, False, &scan.z)


cdef int set_transition(Scan *scan, cnp.ndarray A) except -1:
    """The number of states, and A (D, N)."""
    cdef ix shape[2]
    expect_axes(A, 2, ("D", "N"))
    shape[0] = scan.channels
    shape[1] = scan.states = cnp.PyArray_DIM(A, 1)
    expect_array(A, 2, shape, False)
    point_at_A(scan, A)
    return 0


cdef inline void point_at_A(Scan *scan, cnp.ndarray A):
    scan.A, scan.A_d, scan.A_n = data(A), stride(A, 0), stride(A, 1)


cdef int set_coefficients(Scan *scan, cnp.ndarray B, cnp.ndarray C) except -1:
    """B and C, and which channels share both."""
    set_coefficient(scan, B, &scan.B)
    set_coefficient(scan, C, &scan.C)
    group_channels(scan)
    return 0


cdef void group_channels(Scan *scan) noexcept:
    """Channels that share B and C form a channel_group."""
    scan.blocks.channels = scan.channels
    scan.blocks.group = common_divisor(scan.B.channels, scan.C.channels)


cdef ix common_divisor(ix a, ix b) noexcept:
    while b:
        a, b = b, a % b
    return a


cdef int set_channels(Scan *scan, cnp.ndarray D, cnp.ndarray delta_bias,
                      bint delta_softplus) except -1:
    """D and delta_bias, and whether delta goes through softplus."""
    scan.softplus = delta_softplus
    set_per_channel(scan, D, &scan.D)
    return set_per_channel(scan, delta_bias, &scan.bias)


cdef int set_segments(Scan *scan, cnp.ndarray starts, cnp.ndarray initial_state) except -1:
    """The segments, and the state before each."""
    scan.starts, scan.segments = NULL, scan.batch
    if starts is not None:
        expect_integers(starts)
        scan.starts, scan.segments = <ix *>cnp.PyArray_DATA(starts), cnp.PyArray_DIM(starts, 0) - 1
    return set_state(scan, initial_state, False, &scan.initial_state)
