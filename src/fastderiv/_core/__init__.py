"""What every room stands on: argument checks, threads, the choice of CPU level, vector maths.

The path of a call through this room, for `fastderiv.selective_scan` as for every other function::

    import      cpu.pyx ──► dispatch.py       which level's modules a room's kernels are
    arguments   plain.pyx ──► arrays.py       nothing to convert, or conversions and errors
    kernel      threads.pyx ──► fpstate.h     tasks on the pool, each in the default floating-point
                                              state
    arithmetic  simd.h, simd_math.h, simd_lanes.h
    result      cache.pyx                     what the forward pass keeps for the adjoint, if asked

Which file holds what:

    arrays.py       arrays and scalars as users pass them; `out=`; the errors that name an argument
    plain.pyx       whether arrays are already as kernels want them
    dispatch.py     `kernels(room)`: the compiled modules of the chosen level; cpu.pyx: which are
                    possible
    threads.pyx     `run`: the pool; threads.pxd is how kernels use it
    fpstate.pyx     ``with ieee()``: the floating-point state; floats.py: the same as a decorator
    simd.h          the vector type; simd_math.h: exp and its family; simd_lanes.h: across lanes;
                    simd.pxd declares all three
    ints.pxd        sizes in pieces; checks.pxd: assertions of debug builds
    _kernels.pyx    element-wise curves; maths.py: the same as functions of arrays
    cache.pyx       opaque caches and checksums
    config.py       `set_num_threads`, `show_config`; processors.py: how many there are to use
    progress.py     ``progress=``
"""
