# The doors of the causal convolution (docs/derivations.md §6.6): what Python calls, declared to
# Python in _kernels.pyi.  A door fills a struct from arrays and runs tasks on it.  Included by
# _kernels.pyx.
# needs: data, expect_array, expect_axes, expect_integers, nothing, refuse, run_with,
#        stride (_arrays.pxi)
# needs: Signal, State (s6/_problem.pxi)
# needs: Conv, conv_total (conv/_problem.pxi)
# needs: conv_divide, conv_scratch, conv_state_task, conv_task (conv/_forward.pxi)
# needs: conv_adjoint_scratch, conv_adjoint_task, conv_divide_adjoint,
#        ConvAdjoint (conv/_adjoint.pxi)
# needs: conv_divide_step, conv_step_scratch, conv_step_task, ConvStep (conv/_step.pxi)

cdef int conv_set_signal(const Conv *conv, cnp.ndarray a, bint written, Signal *signal) except -1:
    """OUT signal: a (Bt, D, L)."""
    cdef ix shape[3]
    shape[0], shape[1], shape[2] = conv.batch, conv.channels, conv.steps
    expect_array(a, 3, shape, written)
    signal.p, signal.b, signal.d, signal.t = data(a), stride(a, 0), stride(a, 1), stride(a, 2)
    return 0


cdef int conv_set_state(const Conv *conv, cnp.ndarray a, bint written, State *state) except -1:
    """OUT state: a (segments, D, K−1), or None."""
    cdef ix shape[3]
    state.p = NULL
    if a is None:
        return 0
    shape[0], shape[1], shape[2] = conv.segments, conv.channels, conv.taps - 1
    expect_array(a, 3, shape, written)
    state.p, state.s, state.d, state.n = data(a), stride(a, 0), stride(a, 1), stride(a, 2)
    return 0


cdef int conv_set_weight(Conv *conv, cnp.ndarray weight, cnp.ndarray bias) except -1:
    """The number of taps, weight (D, K) and bias (D,), which may be None."""
    cdef ix shape[2]
    expect_axes(weight, 2, ("D", "K"))
    shape[0] = conv.channels
    shape[1] = conv.taps = cnp.PyArray_DIM(weight, 1)
    expect_array(weight, 2, shape, False)
    if conv.taps < 1:
        refuse(weight, ("D", "K"))
    conv.weight.p, conv.weight.d, conv.weight.n = data(weight), stride(weight, 0), stride(weight, 1)
    conv.bias.p = NULL
    if bias is not None:
        expect_array(bias, 1, shape, False)
        conv.bias.p, conv.bias.d = data(bias), stride(bias, 0)
    return 0


cdef int conv_set_call(Conv *conv, cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias, bint silu,
                       cnp.ndarray initial_state, cnp.ndarray cu_seqlens) except -1:
    """The inputs of a call."""
    expect_axes(x, 3, ("batch", "D", "L"))
    conv.batch, conv.channels = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1)
    conv.steps = cnp.PyArray_DIM(x, 2)
    conv.silu, conv.starts, conv.segments = silu, NULL, conv.batch
    conv_set_signal(conv, x, False, &conv.x)
    conv_set_weight(conv, weight, bias)
    if cu_seqlens is not None:
        expect_integers(cu_seqlens)
        conv.starts = <ix *>cnp.PyArray_DATA(cu_seqlens)
        conv.segments = cnp.PyArray_DIM(cu_seqlens, 0) - 1
    return conv_set_state(conv, initial_state, False, &conv.initial_state)


cdef double conv_seconds(const Conv *conv) noexcept:
    """What the convolution will take on one thread."""
    cdef double elements = <double>conv.channels * conv_total(conv)
    return 0.25e-9 * sizeof(real) / 4 * elements * (1 + conv.silu + 0.1 * conv.taps)


def convolution(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias, bint silu,
                cnp.ndarray initial_state, cnp.ndarray cu_seqlens, cnp.ndarray last_state,
                cnp.ndarray out):
    """See _kernels.pyi."""
    cdef Conv conv
    cdef double seconds, elements
    conv_set_call(&conv, x, weight, bias, silu, initial_state, cu_seqlens)
    conv_set_state(&conv, last_state, True, &conv.last_state)
    conv_set_signal(&conv, out, True, &conv.out)
    if not nothing(out):
        elements = <double>conv.channels * conv_total(&conv)
        seconds = conv_seconds(&conv)
        conv_divide(&conv, max(1., 100e-6 * elements / seconds))
        run_with(conv_task, &conv, conv.spans * conv.groups, conv_scratch(&conv), seconds)
    if not nothing(last_state):
        run(conv_state_task, &conv, conv.segments, 0,
            1e-9 * conv.segments * conv.channels * conv.taps)


def convolution_adjoint(cnp.ndarray dout, cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias,
                        bint silu, cnp.ndarray initial_state, cnp.ndarray cu_seqlens,
                        cnp.ndarray dlast_state, cnp.ndarray dx, cnp.ndarray dinitial_state):
    """See _kernels.pyi."""
    cdef ConvAdjoint adj
    cdef Conv *conv = &adj.conv
    cdef double seconds
    cdef cnp.ndarray sums
    conv_set_call(conv, x, weight, bias, silu, initial_state, cu_seqlens)
    conv_set_signal(conv, dout, False, &adj.dout)
    conv_set_state(conv, dlast_state, False, &adj.dlast_state)
    conv_set_signal(conv, dx, True, &adj.dx)
    conv_set_state(conv, dinitial_state, True, &adj.dinitial_state)
    if nothing(x):
        return np.zeros((1, conv.taps + 1, conv.channels), x.dtype)
    seconds = 2.5 * conv_seconds(conv)
    conv_divide_adjoint(&adj, seconds)
    sums = empty("shares of sums", (conv.spans, conv.taps + 1, conv.channels), x.dtype)
    adj.sums = data(sums)
    run_with(conv_adjoint_task, &adj, conv.spans * conv.groups, conv_adjoint_scratch(&adj), seconds)
    return sums


def convolution_step(cnp.ndarray x, cnp.ndarray state, cnp.ndarray weight, cnp.ndarray bias,
                     bint silu, cnp.ndarray out):
    """See _kernels.pyi."""
    cdef ConvStep step
    cdef double seconds
    cdef ix shape[3]
    conv_set_call(&step.conv, x, weight, bias, silu, None, None)
    conv_set_signal(&step.conv, out, True, &step.conv.out)
    expect_axes(state, 3, ("batch", "D", "W"))
    shape[0], shape[1] = step.conv.batch, step.conv.channels
    shape[2] = step.kept = cnp.PyArray_DIM(state, 2)
    expect_array(state, 3, shape, True)
    if step.kept < step.conv.taps - 1:
        refuse(state, ("batch", "D", "W"))
    step.state.p, step.state.b = data(state), stride(state, 0)
    step.state.d, step.state.t = stride(state, 1), stride(state, 2)
    if nothing(x):
        return
    seconds = conv_divide_step(&step)
    run(conv_step_task, &step, step.conv.groups * ceil_div(step.conv.batch, step.items),
        conv_step_scratch(&step), seconds, False)
