# The doors of the selective scan: what Python calls, declared to Python in _kernels.pyi.  A door
# fills a struct from arrays and runs tasks on it.  Included by _kernels.pyx.
# needs: counted, data, expect_array, expect_integers, nothing, refuse, run_with (_arrays.pxi)
# needs: divide_channels, Scan (s6/_problem.pxi)
# needs: TILE (s6/_tiles.pxi)
# needs: add_sums, expect_varying, point_at_A, set_channels, set_coefficients, set_inputs,
#        set_remembered, set_segments, set_signal, set_state, set_sums,
#        set_transition (s6/_door.pxi)
# needs: divide_scan, scan_scratch, scan_task (s6/_scan.pxi)
# needs: Adjoint (s6/_adjoint.pxi)
# needs: adjoint_scratch, adjoint_seconds, adjoint_task, divide_adjoint, join_task,
#        set_coefficient_gradient (s6/_adjoint_task.pxi)
# needs: divide_step, set_step_coefficient, set_step_signal, set_step_state, STEP_SCRATCH,
#        step_task (s6/_step.pxi)
# needs: step_sum_task, StepSum (s6/_step_sum.pxi)
# needs: Attention, attention_scratch, attention_task, divide_attention (s6/_attention.pxi)

def scan(cnp.ndarray u, cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C,
         cnp.ndarray D, cnp.ndarray z, cnp.ndarray delta_bias, bint delta_softplus,
         cnp.ndarray initial_state, cnp.ndarray cu_seqlens, cnp.ndarray last_state,
         cnp.ndarray out, cnp.ndarray states, ix span, cnp.ndarray checks):
    """See _kernels.pyi."""
    cdef Scan scan
    cdef double seconds                                 # of a work_item
    cdef cnp.ndarray sums                               # kept alive for the tasks
    cdef ix tasks
    set_inputs(&scan, u, delta, z)
    set_transition(&scan, A)
    set_coefficients(&scan, B, C)
    set_channels(&scan, D, delta_bias, delta_softplus)
    set_segments(&scan, cu_seqlens, initial_state)
    set_state(&scan, last_state, True, &scan.last_state)
    set_signal(&scan, out, True, &scan.out)
    set_remembered(&scan, states, span)
    if nothing(out) and nothing(last_state):
        return
    seconds = divide_scan(&scan)
    scan.work_items = counted(<double>scan.segments * scan.blocks.count)
    tasks = ceil_div(scan.work_items, scan.items_per_task)
    sums = set_sums(&scan, checks, tasks)
    run_with(scan_task, &scan, tasks, scan_scratch(&scan), seconds * scan.work_items)
    add_sums(sums, checks)


def adjoint(cnp.ndarray dout, cnp.ndarray u, cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B,
            cnp.ndarray C, cnp.ndarray D, cnp.ndarray z, cnp.ndarray delta_bias,
            bint delta_softplus, cnp.ndarray initial_state, cnp.ndarray cu_seqlens, ix longest,
            cnp.ndarray dlast_state, cnp.ndarray du, cnp.ndarray ddelta, cnp.ndarray dz,
            cnp.ndarray dinitial_state, cnp.ndarray dB, cnp.ndarray dC, cnp.ndarray states, ix span,
            cnp.ndarray checks):
    """See _kernels.pyi."""
    cdef Adjoint adj
    cdef Scan *scan = &adj.scan
    cdef double seconds
    cdef cnp.ndarray sums, checked, shared_dB, shared_dC  # kept alive for the tasks
    set_inputs(scan, u, delta, z)
    set_transition(scan, A)
    set_coefficients(scan, B, C)
    set_channels(scan, D, delta_bias, delta_softplus)
    set_segments(scan, cu_seqlens, initial_state)
    set_signal(scan, dout, False, &adj.dout)
    set_state(scan, dlast_state, False, &adj.dlast_state)
    set_signal(scan, du, True, &adj.du)
    set_signal(scan, ddelta, True, &adj.ddelta)
    set_signal(scan, dz, True, &adj.dz)
    set_state(scan, dinitial_state, True, &adj.dinitial_state)
    expect_varying(scan, dB, True)
    expect_varying(scan, dC, True)
    set_remembered(scan, states, span)
    adj.rows = scan.states * (1 + scan.B.constant + scan.C.constant) + 2
    if scan.segments == 0 or scan.channels == 0:
        return np.zeros((1, adj.rows, scan.channels), u.dtype)
    seconds = adjoint_seconds(scan)
    divide_adjoint(&adj, scan.steps if cu_seqlens is None else longest, seconds)
    sums = empty("shares of sums", (adj.ranges, adj.rows, scan.channels), u.dtype)
    adj.sums = data(sums)
    # these two names keep the memory of the shared rows alive
    shared_dB = set_coefficient_gradient(&adj, &scan.B, dB, &adj.dB)  # no-cython-lint
    shared_dC = set_coefficient_gradient(&adj, &scan.C, dC, &adj.dC)  # no-cython-lint
    checked = set_sums(scan, checks, adj.ranges * adj.slices)
    run_with(adjoint_task, &adj, adj.ranges * adj.slices, adjoint_scratch(&adj), seconds)
    if adj.slices > 1:
        seconds = 1e-9 * scan.batch * scan.states * scan.steps * adj.slices
        run(join_task, &adj, scan.batch * scan.states, 0, seconds)
    add_sums(checked, checks)
    return sums


def step(cnp.ndarray state, cnp.ndarray x, cnp.ndarray dt, cnp.ndarray A, cnp.ndarray B,
         cnp.ndarray C, cnp.ndarray D, cnp.ndarray z, cnp.ndarray dt_bias, bint dt_softplus,
         cnp.ndarray out):
    """See _kernels.pyi."""
    cdef Scan scan
    cdef double seconds
    cdef int axes = cnp.PyArray_NDIM(state)
    cdef const ix *shape = <const ix *>cnp.PyArray_DIMS(state)
    set_step_state(&scan, state)
    set_step_signal(x, axes - 1, shape, False, &scan.u)
    set_step_signal(dt, axes - 1, shape, False, &scan.delta)
    set_step_signal(z, axes - 1, shape, False, &scan.z)
    set_step_signal(out, axes - 1, shape, True, &scan.out)
    expect_array(A, 2, shape + axes - 2, False)
    point_at_A(&scan, A)
    set_step_coefficient(B, axes, shape, &scan.B)
    set_step_coefficient(C, axes, shape, &scan.C)
    set_channels(&scan, D, dt_bias, dt_softplus)
    if scan.segments == 0 or scan.channels == 0:
        return
    seconds = divide_step(&scan)
    run(step_task, &scan, ceil_div(scan.work_items, scan.items_per_task),
        STEP_SCRATCH * sizeof(real), seconds, False)


def step_sum(cnp.ndarray delta, cnp.ndarray delta_bias, bint delta_softplus, cnp.ndarray total):
    """See _kernels.pyi."""
    cdef StepSum sums
    cdef Scan *scan = &sums.scan
    set_inputs(scan, delta, delta, None)
    set_channels(scan, None, delta_bias, delta_softplus)
    set_segments(scan, None, None)
    if not cnp.PyArray_IS_C_CONTIGUOUS(total):
        refuse(total, "C-contiguous")
    expect_array(total, 2, <const ix *>cnp.PyArray_DIMS(delta), True)
    sums.total = data(total)
    scan.blocks.channels, scan.blocks.group = scan.channels, max(<ix>1, scan.channels)
    run(step_sum_task, &sums, scan.batch * divide_channels(&scan.blocks, 1),
        (TILE + VL) * sizeof(real), 1e-9 * scan.batch * scan.channels * scan.steps)


def attention(cnp.ndarray delta, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C,
              cnp.ndarray delta_bias, bint delta_softplus, cnp.ndarray rows, cnp.ndarray out):
    """See _kernels.pyi."""
    cdef Attention att
    cdef Scan *scan = &att.scan
    cdef ix shape[4]
    set_inputs(scan, delta, delta, None)
    set_transition(scan, A)
    set_coefficients(scan, B, C)
    set_channels(scan, None, delta_bias, delta_softplus)
    expect_integers(rows)
    att.rows, att.count = <ix *>cnp.PyArray_DATA(rows), cnp.PyArray_DIM(rows, 0)
    shape[0], shape[1], shape[2], shape[3] = scan.batch, scan.channels, att.count, scan.steps
    expect_array(out, 4, shape, True)
    if not cnp.PyArray_IS_C_CONTIGUOUS(out):
        refuse(out, "C-contiguous")
    if cnp.PyArray_SIZE(out) == 0:
        return
    att.out = data(out)
    divide_attention(&att)
    run_with(attention_task, &att, scan.batch * scan.channels * att.tasks, attention_scratch(&att),
             0.05e-9 * cnp.PyArray_SIZE(out) * (10. + scan.states))
