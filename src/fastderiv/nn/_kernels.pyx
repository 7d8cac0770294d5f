"""The arithmetic of the layers (docs/derivations.md §3–5), in one compiled module."""
from libc.string cimport memcpy, memmove, memset
cimport numpy as cnp
import numpy as np
from fastderiv._core.simd cimport (GL, NS, VL, ix, real, vabs, vcopysign, vf, vfma, vkeep_nan, vload, vsel_lt, vset1, vstore,
                                   vtail, vtanh, vtanh_slope, vtranspose)
from cpython.exc cimport PyErr_CheckSignals
from fastderiv._core.threads cimport Worker, interrupted, run

cnp.import_array()


cdef cnp.ndarray numbers(ix size, bint zeros):
    """An array of so many.  By NumPy's C interface: a call of np.empty takes four times as much code, in every module."""
    cdef cnp.npy_intp n = size
    cdef int kind = cnp.NPY_FLOAT if sizeof(real) == 4 else cnp.NPY_DOUBLE
    return cnp.PyArray_ZEROS(1, &n, kind, 0) if zeros else cnp.PyArray_EMPTY(1, &n, kind, 0)


# Functions that Python calls take arrays of ours, checked where they came in; whatever a mistake of ours hands over, they
# compare ranks, types and sizes before anything is read.

cdef bint holds(cnp.ndarray a, double size) noexcept:
    """Whether `a` is a contiguous array of so many `real`s."""
    cdef int kind = cnp.NPY_FLOAT if sizeof(real) == 4 else cnp.NPY_DOUBLE
    return (a is not None and cnp.PyArray_TYPE(a) == kind
            and cnp.PyArray_ISCARRAY_RO(a) and <double>cnp.PyArray_SIZE(a) == size)


cdef bint may_hold(cnp.ndarray a, double size) noexcept:
    """The same, or None."""
    return a is None or holds(a, size)


cdef bint ranked(cnp.ndarray a, int nd) noexcept:
    return a is not None and cnp.PyArray_NDIM(a) == nd


cdef int expect(bint right) except -1:
    if not right:
        raise ValueError("a kernel was given arrays of the wrong type, rank or size")
    return 0


include "_activations.pxi"
include "_dense.pxi"
include "_gemm.pxi"
include "_lstm.pxi"
include "_grid.pxi"
