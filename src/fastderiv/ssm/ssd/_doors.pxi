# The doors of the SSD functions: what Python calls, declared to Python in _kernels.pyi.
# Included by _kernels.pyx.
# needs: counted, nothing, run_with (_arrays.pxi)
# needs: Ssd (ssd/_problem.pxi)
# needs: set_ssd_inputs, set_ssd_kept, set_ssd_per_head, set_ssd_segments, set_ssd_signal,
#        set_ssd_sizes, set_ssd_state (ssd/_door.pxi)
# needs: SsdScan (ssd/_scan.pxi)
# needs: ssd_divide_scan, ssd_scan_scratch, ssd_scan_task (ssd/_scan_task.pxi)

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
