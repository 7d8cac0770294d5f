# The doors of the SSD functions: what Python calls, declared to Python in _kernels.pyi.
# Included by _kernels.pyx.
# needs: counted, data, expect_array, expect_integers, nothing, refuse, run_with (_arrays.pxi)
# needs: Ssd (ssd/_problem.pxi)
# needs: set_ssd_inputs, set_ssd_kept, set_ssd_per_head, set_ssd_segments, set_ssd_signal,
#        set_ssd_sizes, set_ssd_state, set_ssd_steps (ssd/_door.pxi)
# needs: SsdScan (ssd/_scan.pxi)
# needs: ssd_divide_scan, ssd_scan_scratch, ssd_scan_task (ssd/_scan_task.pxi)
# needs: divide_ssd_step, set_ssd_step_coefficients, set_ssd_step_heads, set_ssd_step_signal,
#        set_ssd_step_state, ssd_step_scratch, ssd_step_task, SsdStep (ssd/_step.pxi)
# needs: divide_ssd_attention, ssd_attention_scratch, ssd_attention_task,
#        SsdAttention (ssd/_attention.pxi)
# needs: SSD_CHUNK_HEADS, SSD_CHUNK_STEPS, ssd_chunk_task, SsdChunk (ssd/_chunks.pxi)
# needs: SsdAdjoint (ssd/_adjoint.pxi)
# needs: run_ssd_adjoint, set_ssd_gradient, ssd_divide_adjoint (ssd/_adjoint_task.pxi)

# ---- the scan ---------------------------------------------------------------------------------

def ssd_scan(cnp.ndarray x, cnp.ndarray dt, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C,
             cnp.ndarray D, cnp.ndarray z, cnp.ndarray dt_bias, bint dt_softplus, double low,
             double high, cnp.ndarray initial_state, cnp.ndarray cu_seqlens,
             cnp.ndarray last_state, cnp.ndarray kept, cnp.ndarray out):
    """See _kernels.pyi."""
    cdef SsdScan scan
    cdef Ssd *ssd = &scan.ssd
    cdef double seconds
    set_ssd_inputs(ssd, x, dt, A, B, C)
    set_ssd_per_head(ssd, D, &ssd.D)
    set_ssd_signal(ssd, z, False, &ssd.z)
    set_ssd_sizes(ssd, dt_bias, dt_softplus, low, high)
    set_ssd_segments(ssd, cu_seqlens, initial_state)
    set_ssd_state(ssd, last_state, True, &ssd.last_state)
    set_ssd_signal(ssd, out, True, &ssd.y)
    scan.kept = set_ssd_kept(ssd, kept, True)
    if nothing(out) and nothing(last_state) and nothing(kept):
        return
    seconds = ssd_divide_scan(&scan)
    scan.work_items = counted(<double>ssd.segments * ssd.groups * scan.parts)
    run_with(ssd_scan_task, &scan, ceil_div(scan.work_items, scan.items_per_task),
             ssd_scan_scratch(&scan), seconds)


# ---- one step, attention, chunks --------------------------------------------------------------

def ssd_step(cnp.ndarray state, cnp.ndarray x, cnp.ndarray dt, cnp.ndarray A, cnp.ndarray B,
             cnp.ndarray C, cnp.ndarray D, cnp.ndarray z, cnp.ndarray dt_bias, bint dt_softplus,
             cnp.ndarray out):
    """See _kernels.pyi."""
    cdef SsdStep step
    cdef Ssd *ssd = &step.ssd
    cdef double seconds
    cdef int axes = cnp.PyArray_NDIM(state)
    cdef const ix *shape = <const ix *>cnp.PyArray_DIMS(state)
    set_ssd_step_state(&step, state)
    set_ssd_step_signal(x, axes - 1, shape, False, &ssd.x)
    set_ssd_step_signal(z, axes - 1, shape, False, &ssd.z)
    set_ssd_step_signal(out, axes - 1, shape, True, &ssd.y)
    set_ssd_step_heads(ssd, dt, A, axes - 2, shape)
    set_ssd_step_coefficients(ssd, B, C, axes - 1)
    set_ssd_per_head(ssd, D, &ssd.D)
    set_ssd_sizes(ssd, dt_bias, dt_softplus, 0, 0)
    if nothing(out):
        return
    seconds = divide_ssd_step(&step)
    run(ssd_step_task, &step, ceil_div(step.work_items, step.items_per_task),
        ssd_step_scratch(ssd), seconds, False)


def ssd_attention(cnp.ndarray dt, cnp.ndarray A, cnp.ndarray B, cnp.ndarray C,
                  cnp.ndarray dt_bias, bint dt_softplus, double low, double high,
                  cnp.ndarray rows, cnp.ndarray out):
    """See _kernels.pyi."""
    cdef SsdAttention att
    cdef Ssd *ssd = &att.ssd
    cdef double seconds
    cdef ix shape[4]
    set_ssd_inputs(ssd, None, dt, A, B, C)
    set_ssd_sizes(ssd, dt_bias, dt_softplus, low, high)
    expect_integers(rows)
    att.rows, att.count = <ix *>cnp.PyArray_DATA(rows), cnp.PyArray_DIM(rows, 0)
    shape[0], shape[1], shape[2], shape[3] = ssd.batch, ssd.heads, att.count, ssd.steps
    expect_array(out, 4, shape, True)
    if not cnp.PyArray_IS_C_CONTIGUOUS(out):
        refuse(out, "C-contiguous")
    if nothing(out):
        return
    att.out = data(out)
    seconds = divide_ssd_attention(&att)
    run(ssd_attention_task, &att,
        counted(<double>ssd.batch * ssd.groups * att.head_tasks * att.row_tasks),
        ssd_attention_scratch(), seconds)


def ssd_decay(cnp.ndarray dt, cnp.ndarray A, cnp.ndarray B, cnp.ndarray dt_bias,
              bint dt_softplus, double low, double high, cnp.ndarray out):
    """See _kernels.pyi."""
    cdef SsdChunk chunk
    cdef Ssd *ssd = &chunk.ssd
    cdef ix shape[2]
    set_ssd_inputs(ssd, None, dt, A, B, None)
    set_ssd_sizes(ssd, dt_bias, dt_softplus, low, high)
    shape[0], shape[1] = ssd.batch, ssd.heads
    expect_array(out, 2, shape, True)
    if not cnp.PyArray_IS_C_CONTIGUOUS(out):
        refuse(out, "C-contiguous")
    if nothing(out):
        return
    chunk.out, chunk.tasks = data(out), ceil_div(ssd.heads, SSD_CHUNK_HEADS)
    run(ssd_chunk_task, &chunk, ssd.batch * chunk.tasks, SSD_CHUNK_STEPS * sizeof(real),
        3e-9 * ssd.batch * ssd.heads * ssd.steps)


# ---- the adjoint ------------------------------------------------------------------------------

def ssd_adjoint(cnp.ndarray dout, cnp.ndarray x, cnp.ndarray dt, cnp.ndarray A, cnp.ndarray B,
                cnp.ndarray C, cnp.ndarray D, cnp.ndarray z, cnp.ndarray dt_bias,
                bint dt_softplus, double low, double high, cnp.ndarray initial_state,
                cnp.ndarray cu_seqlens, ix longest, cnp.ndarray dlast_state, cnp.ndarray kept,
                cnp.ndarray dx, cnp.ndarray ddt, cnp.ndarray dz, cnp.ndarray dinitial_state,
                cnp.ndarray dB, cnp.ndarray dC):
    """See _kernels.pyi."""
    cdef SsdAdjoint adj
    cdef Ssd *ssd = &adj.ssd
    cdef cnp.ndarray sums
    set_ssd_inputs(ssd, x, dt, A, B, C)
    set_ssd_per_head(ssd, D, &ssd.D)
    set_ssd_signal(ssd, z, False, &ssd.z)
    set_ssd_sizes(ssd, dt_bias, dt_softplus, low, high)
    set_ssd_segments(ssd, cu_seqlens, initial_state)
    set_ssd_signal(ssd, dout, False, &adj.dout)
    set_ssd_state(ssd, dlast_state, False, &adj.dlast_state)
    adj.kept = set_ssd_kept(ssd, kept, False)
    set_ssd_signal(ssd, dx, True, &adj.dx)
    set_ssd_signal(ssd, dz, True, &adj.dz)
    set_ssd_steps(ssd, ddt, True, &adj.ddt)
    set_ssd_state(ssd, dinitial_state, True, &adj.dinitial_state)
    set_ssd_gradient(ssd, dB, &adj.dB)
    set_ssd_gradient(ssd, dC, &adj.dC)
    adj.head_sums = 2
    if D is not None:
        adj.head_sums += ssd.width if cnp.PyArray_NDIM(D) == 2 else 1
    if ssd.segments == 0 or ssd.heads == 0:
        return np.zeros((1, ssd.heads, adj.head_sums))
    if nothing(ddt) and nothing(dinitial_state):
        return np.zeros((1, ssd.heads, adj.head_sums))
    # sizes below are integers
    check_fits("the state of a head", int(ssd.width) * int(ssd.states) * <int>sizeof(real))
    ssd_divide_adjoint(&adj, ssd.steps if cu_seqlens is None else longest)
    sums = empty("sums of heads", (adj.ranges, ssd.heads, adj.head_sums), np.float64)
    adj.sums = <double *>cnp.PyArray_DATA(sums)
    run_ssd_adjoint(&adj, x.dtype)
    return sums
