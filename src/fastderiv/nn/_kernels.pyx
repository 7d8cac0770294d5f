"""The arithmetic of the layers (docs/derivations.md §3–5), in one compiled module."""
from libc.string cimport memcpy, memmove, memset
cimport numpy as cnp
import numpy as np
from fastderiv._core.simd cimport (GL, NS, VL, ix, real, vabs, vcopysign, vf, vfma, vkeep_nan, vload, vsel_lt, vset1, vstore,
                                   vtail, vtanh, vtanh_slope, vtranspose)
from fastderiv._core.threads cimport Worker, interrupted, run, task_t

cnp.import_array()


cdef cnp.ndarray numbers(ix size, bint zeros):
    """An array of so many.  By NumPy's C interface: a call of np.empty takes four times as much code, in every module."""
    cdef cnp.npy_intp n = size
    cdef int kind = cnp.NPY_FLOAT if sizeof(real) == 4 else cnp.NPY_DOUBLE
    return cnp.PyArray_ZEROS(1, &n, kind, 0) if zeros else cnp.PyArray_EMPTY(1, &n, kind, 0)


include "_activations.pxi"
include "_dense.pxi"
include "_gemm.pxi"
include "_lstm.pxi"
include "_grid.pxi"
