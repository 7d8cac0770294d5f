"""The arithmetic of the layers (docs/derivations.md §3–5), in one compiled module."""
from libc.string cimport memcpy, memmove, memset
cimport numpy as cnp
import numpy as np
from fastderiv._core.simd cimport (GL, NS, VL, ix, real, vabs, vcopysign, vf, vfma, vkeep_nan, vload, vsel_lt, vset1, vstore,
                                   vtail, vtanh, vtanh_slope, vtranspose)
from fastderiv._core.threads cimport Worker, interrupted, run, task_t

cnp.import_array()

include "_activations.pxi"
include "_dense.pxi"
include "_gemm.pxi"
include "_lstm.pxi"
include "_grid.pxi"
