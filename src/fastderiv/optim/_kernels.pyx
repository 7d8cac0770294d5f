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

include "_momentum.pxi"
include "_fixed.pxi"
