"""The arithmetic of reversible momentum (docs/derivations.md §4)."""
cimport numpy as cnp
import numpy as np
from fastderiv._core.simd cimport ix, real
from fastderiv._core.threads cimport Worker, interrupted, run

cnp.import_array()
