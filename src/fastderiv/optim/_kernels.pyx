"""The arithmetic of reversible momentum (docs/derivations.md §4).

    _momentum.pxi     the floating-point step and its inverse, arrays of any strides
    _fixed.pxi        the same map on 64-bit fixed point with an information buffer, exactly reversible; `real` is the
                      gradient's type, everything else is the same integers in both modules and on every CPU level
"""
from libc.stdint cimport int64_t, uint16_t
from libc.string cimport memset
cimport numpy as cnp
import numpy as np
from fastderiv._core.simd cimport VL, ix, real, vf, vfma, vload, vset1, vstore
from fastderiv._core.threads cimport Worker, run

cnp.import_array()

# Functions that Python calls take arrays that were checked where they came in; whatever a mistake of ours hands over, they compare
# ranks, types and sizes before anything is touched.

cdef int expect(bint right) except -1:
    if not right:
        raise ValueError("a kernel was given arrays of the wrong type, rank or size")
    return 0


cdef bint holds(cnp.ndarray a, int kind, cnp.npy_intp size) noexcept:
    """Whether `a` is a contiguous array of so many numbers of this type."""
    return a is not None and cnp.PyArray_TYPE(a) == kind and cnp.PyArray_ISCARRAY_RO(a) and cnp.PyArray_SIZE(a) == size


cdef int of_real() noexcept:
    return cnp.NPY_FLOAT if sizeof(real) == 4 else cnp.NPY_DOUBLE


include "_momentum.pxi"
include "_fixed.pxi"
