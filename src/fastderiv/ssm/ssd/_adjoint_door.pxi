# The door of the SSD scan's adjoint: it fills a struct from arrays and runs tasks on it.
# Included by _kernels.pyx.

cdef int set_ssd_gradient(const Ssd *ssd, cnp.ndarray a, SsdCoefficient *gradient) except -1:
    """OUT gradient: dB or dC, a (Bt, L, G, N)."""
    set_ssd_coefficient(ssd, a, True, gradient)
    if not cnp.PyArray_IS_C_CONTIGUOUS(a):
        refuse(a, "C-contiguous")
    return 0


cdef int set_ssd_kept(SsdAdjoint *adj, cnp.ndarray kept) except -1:
    """The states that a cache holds, or None."""
    cdef ix shape[4]
    adj.kept = NULL
    if kept is None:
        return 0
    shape[0], shape[1] = ssd_slots(&adj.ssd), adj.ssd.heads
    shape[2], shape[3] = adj.ssd.states, adj.ssd.width
    expect_array(kept, 4, shape, False)
    if not cnp.PyArray_IS_C_CONTIGUOUS(kept):
        refuse(kept, "C-contiguous")
    adj.kept = data(kept)
    return 0


cdef int run_ssd_adjoint(SsdAdjoint *adj, object dtype) except -1:
    """OUT dB and dC, and everything else."""
    cdef Ssd *ssd = &adj.ssd
    cdef SsdTiles tiles
    cdef double seconds = ssd_adjoint_seconds(adj)
    cdef double rows = <double>ssd.batch * ssd.steps * ssd.groups * ssd.states
    shape = adj.slices - 1, ssd.batch, ssd.steps, ssd.groups, ssd.states
    cdef cnp.ndarray shared_dB = empty("shared rows of dB", shape, dtype)
    cdef cnp.ndarray shared_dC = empty("shared rows of dC", shape, dtype)
    adj.shared_dB, adj.shared_dC = data(shared_dB), data(shared_dC)
    run_with(ssd_adjoint_task, adj, counted(<double>adj.ranges * ssd.groups * adj.slices),
             ssd_lay_out(adj, NULL, &tiles), seconds)
    if adj.slices > 1:
        run(ssd_join_task, adj, ceil_div(ssd.batch * ssd.steps, SSD_MOST), 0,
            0.3e-9 * rows * adj.slices)
    return 0


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
    set_ssd_kept(&adj, kept)
    set_ssd_signal(ssd, dx, True, &adj.dx)
    set_ssd_signal(ssd, dz, True, &adj.dz)
    set_ssd_steps(ssd, ddt, True, &adj.ddt)
    set_ssd_state(ssd, dinitial_state, True, &adj.dinitial_state)
    set_ssd_gradient(ssd, dB, &adj.dB)
    set_ssd_gradient(ssd, dC, &adj.dC)
    adj.head_sums = 2
    if D is not None:
        adj.head_sums += ssd.width if cnp.PyArray_NDIM(D) == 2 else 1
    ssd_divide_adjoint(&adj, ssd.steps if cu_seqlens is None else longest)
    sums = empty("sums of heads", (adj.ranges, ssd.heads, adj.head_sums), np.float64, np.zeros)
    adj.sums = <double *>cnp.PyArray_DATA(sums)
    if ssd.segments > 0 and ssd.heads > 0:
        run_ssd_adjoint(&adj, x.dtype)
    return sums
