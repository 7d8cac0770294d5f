"""The arithmetic of the layers (docs/derivations.md §3–5), in one compiled module."""
cimport numpy as cnp
import numpy as np
from fastderiv._core.simd cimport GL, NS, VL, ix, real, vf, vload, vstore
from fastderiv._core.threads cimport Worker, interrupted, run, task_t

cnp.import_array()

include "_activations.pxi"
include "_dense.pxi"
include "_lstm.pxi"
include "_grid.pxi"
