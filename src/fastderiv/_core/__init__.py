"""What every room stands on: argument checks, threads, the choice of CPU level, vector maths.

The path of a call through this room, for `fastderiv.selective_scan` as for every other function::

    import      cpu.pyx ──► dispatch.py       which CPU level's modules a room imports
    arguments   plain.pyx ──► arrays.py       nothing to convert, or conversions and errors
    kernel      threads.pyx ──► fpstate.h     tasks on the pool, each in the default floating-point
                                              state
    arithmetic  simd.h, simd_math.h, simd_lanes.h
    result      cache.pyx                     what the forward pass keeps for the adjoint, if asked

Which file holds what:

    arrays.py       arrays and scalars as users pass them; `out=`; the errors that name an argument
    plain.pyx       whether arrays are already as kernels want them
    dispatch.py     `kernels(room)`: the compiled modules of the chosen level; cpu.pyx, by cpu.h:
                    which are possible
    threads.pyx     `run`: the pool; threads.pxd is how kernels use it; scratch.h: the memory that a
                    task borrows; clock.h: the time; thread_count.h: how many threads, and who said
                    so; relaxed.h: a number that threads share
    fpstate.pyx     ``with ieee()``: the floating-point state, by fpstate.h; floats.py: the same
                    as a decorator
    simd.h          the vector type; simd_math.h: exp and its family; simd_lanes.h: across lanes;
                    simd.pxd declares all three
    gemm.h          the one small matrix product of kernels; gemm.pxd declares it
    ints.pxd        sizes in pieces; rows.pxd: rows of arrays of any strides; checks.pxd: assertions
                    of debug builds
    products.py     matrix products by NumPy's BLAS, and arrays in the layout that they need
    _kernels.pyx    element-wise curves; maths.py: the same as functions of arrays
    cache.pyx       opaque caches, and checksums by checksum.h
    config.py       `set_num_threads`, `show_config`; processors.py: how many there are to use
    progress.py     ``progress=``
"""
