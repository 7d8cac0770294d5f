# The doors of the linear recurrence: what Python calls, declared to Python in _kernels.pyi.
# Included by _kernels.pyx.
# needs: data, expect_array, refuse, run_with, stride (_arrays.pxi)
# needs: Linear, LINEAR_AXES, LINEAR_STREAM, LinearArray, OF_A, OF_B, OF_DA, OF_DB, OF_DFIRST,
#        OF_DLAST, OF_DOUT, OF_FIRST, OF_LAST, OF_OUT, OF_SUMS,
#        order_linear_axes (linear/_problem.pxi)
# needs: chains_are_faster, divide_linear_columns, linear_adjoint_task, linear_scan_task,
#        LINEAR_SCRATCH, linear_total_task, LinearTotal (linear/_task.pxi)

cdef struct LinearShape:                # of b, copied: another thread may reshape it meanwhile
    ix whole[LINEAR_AXES]
    ix columns[LINEAR_AXES]             # without time
    int axes, time


cdef int set_linear_shape(Linear *call, cnp.ndarray b, int axis, LinearShape *shape) except -1:
    """OUT the sizes of the call, without any array."""
    cdef int i, k = 0
    cdef double columns = 1
    shape.axes, shape.time = cnp.PyArray_NDIM(b), axis
    if not 0 <= axis < shape.axes <= LINEAR_AXES:
        raise TypeError(f"axis {axis} of {shape.axes}")
    memset(call, 0, sizeof(Linear))
    call.columns = 1
    for i in range(shape.axes):
        shape.whole[i] = cnp.PyArray_DIM(b, i)
        if i == axis:
            call.steps = shape.whole[i]
            continue
        shape.columns[k] = call.shape[k] = shape.whole[i]
        call.columns *= shape.whole[i]
        k += 1
    call.axes = k
    return 0


cdef int set_timed(Linear *call, int array, const LinearShape *shape, cnp.ndarray a, bint reverse,
                   bint written) except -1:
    """An array of b's shape, or None."""
    cdef LinearArray *x = &call.arrays[array]
    cdef int i, k = 0
    if a is None:
        return 0
    expect_array(a, shape.axes, shape.whole, written)
    x.given, x.p = True, data(a)
    for i in range(shape.axes):
        if i == shape.time:
            x.t = stride(a, i)
        else:
            x.c[k] = stride(a, i)
            k += 1
    if reverse:
        x.p, x.t = x.p + (call.steps - 1) * x.t, -x.t
    return 0


cdef int set_untimed(Linear *call, int array, const LinearShape *shape, cnp.ndarray a,
                     bint written) except -1:
    """An array of b's shape without time, or None."""
    cdef LinearArray *x = &call.arrays[array]
    cdef int k
    if a is None:
        return 0
    expect_array(a, shape.axes - 1, shape.columns, written)
    x.given, x.p = True, data(a)
    for k in range(shape.axes - 1):
        x.c[k] = stride(a, k)
    return 0


cdef int set_factor(Linear *call, const LinearShape *shape, cnp.ndarray a, bint reverse) except -1:
    """a, of b's shape, b's shape without time, or a single number."""
    call.constant = cnp.PyArray_NDIM(a) != shape.axes
    if not call.constant:
        return set_timed(call, OF_A, shape, a, reverse, False)
    if cnp.PyArray_NDIM(a) > 0:
        return set_untimed(call, OF_A, shape, a, False)
    expect_array(a, 0, shape.columns, False)
    call.arrays[OF_A].given, call.arrays[OF_A].p = True, data(a)
    return 0


cdef int set_linear_sums(Linear *call, const LinearShape *shape, cnp.ndarray sums) except -1:
    """float64, contiguous, of b's shape without time."""
    cdef int k
    cdef ix step = 1
    if (cnp.PyArray_TYPE(sums) != cnp.NPY_FLOAT64 or not cnp.PyArray_ISCARRAY(sums)
            or cnp.PyArray_SIZE(sums) != call.columns):
        refuse(sums, tuple([shape.columns[k] for k in range(shape.axes - 1)]))
    call.sums = <double *>cnp.PyArray_DATA(sums)
    for k in range(shape.axes - 2, -1, -1):
        call.arrays[OF_SUMS].c[k] = step
        step *= shape.columns[k]
    return 0


cdef double prepare_linear(Linear *call, int results) noexcept:
    """The order of axes, and the division into tasks; the seconds of a call."""
    cdef double size = <double>call.columns * call.steps
    cdef double seconds = size * results * sizeof(real) * 0.1e-9
    call.stream = size * sizeof(real) >= LINEAR_STREAM
    order_linear_axes(call)
    divide_linear_columns(call)
    call.items_per_task = max(<ix>1, <ix>(call.work_items * 50e-6 / max(seconds, 1e-9)))
    return seconds


def linear_scan(cnp.ndarray a, cnp.ndarray b, int axis, bint reverse, cnp.ndarray initial_state,
                cnp.ndarray last_state, cnp.ndarray out):
    """See _kernels.pyi."""
    cdef Linear call
    cdef LinearShape shape
    cdef double seconds
    set_linear_shape(&call, b, axis, &shape)
    set_factor(&call, &shape, a, reverse)
    set_timed(&call, OF_B, &shape, b, reverse, False)
    set_timed(&call, OF_OUT, &shape, out, reverse, True)
    set_untimed(&call, OF_FIRST, &shape, initial_state, False)
    set_untimed(&call, OF_LAST, &shape, last_state, True)
    if call.columns == 0 or (call.steps == 0 and last_state is None):
        return
    seconds = prepare_linear(&call, 2)
    call.chained = chains_are_faster(&call)
    run_with(linear_scan_task, &call, ceil_div(call.work_items, call.items_per_task),
             LINEAR_SCRATCH * sizeof(real), seconds)


def linear_adjoint(cnp.ndarray dout, cnp.ndarray a, cnp.ndarray b, int axis, bint reverse,
                   cnp.ndarray initial_state, cnp.ndarray dlast_state, cnp.ndarray da,
                   cnp.ndarray db, cnp.ndarray dinitial_state, cnp.ndarray sums,
                   cnp.ndarray total):
    """See _kernels.pyi."""
    cdef Linear call
    cdef LinearShape shape
    cdef LinearTotal last
    cdef double seconds
    set_linear_shape(&call, b, axis, &shape)
    set_factor(&call, &shape, a, reverse)
    set_timed(&call, OF_B, &shape, b, reverse, False)
    set_timed(&call, OF_DOUT, &shape, dout, reverse, False)
    set_timed(&call, OF_DB, &shape, db, reverse, True)
    set_untimed(&call, OF_FIRST, &shape, initial_state, False)
    set_untimed(&call, OF_DLAST, &shape, dlast_state, False)
    set_untimed(&call, OF_DFIRST, &shape, dinitial_state, True)
    if call.constant:
        set_linear_sums(&call, &shape, sums)
    else:
        set_timed(&call, OF_DA, &shape, da, reverse, True)
    last.sums, last.count = call.sums, call.columns
    if call.columns > 0:
        seconds = prepare_linear(&call, 4)
        run_with(linear_adjoint_task, &call, ceil_div(call.work_items, call.items_per_task),
                 LINEAR_SCRATCH * sizeof(real), seconds)
    if total is not None:
        expect_array(total, 0, shape.columns, True)
        last.total = data(total)
        run_with(linear_total_task, &last, 1, 0, 0)
