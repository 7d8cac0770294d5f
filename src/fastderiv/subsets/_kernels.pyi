"""What the compiled modules of this room offer, each for one real type and one CPU level."""

from typing import Protocol

import numpy as np

class Kernels(Protocol):
    """``real`` is the module's type, float32 or float64; arrays of it may have any strides."""

    MASKS_PER_TASK: int  # the subsets that one task enumerates: a power of two

    def sums(self, x: np.ndarray, out: np.ndarray, first: int, reused: bool) -> None:
        """Write subset sums of the rows of `x`.

        x (..., n) real, n <= 62; OUT out (..., 2**bits) real: at position j the sum of the mask
        ``first + j``.  `first` is a multiple of 2**bits.  `reused`: `out` has been written before.
        """
    def enumerate_rows(self, x: np.ndarray, out: np.ndarray) -> None:
        """Log Σ_S exp(Σ_{i∈S} x_i) of each row.

        x (..., n) real, 2**n <= MASKS_PER_TASK; OUT out (...) real.
        """
    def enumerate_masks(self, x: np.ndarray, first: int, partial: np.ndarray) -> None:
        """Σ exp(sum − peak(x)) over MASKS_PER_TASK consecutive masks for each entry of `partial`.

        x (n,) real, n <= 62, with a finite peak; `first`, the first mask, is a multiple of
        MASKS_PER_TASK.  OUT partial (p,) float64, contiguous; where the empty subset is among the
        masks, the result is less by 1.
        """
    def peak(self, x: np.ndarray) -> float:
        """The largest subset sum of x (n,) real, n <= 62."""
    def closed_parts(self, n: int) -> int:
        """How many partial sums `closed` makes of a row of `n` entries."""
    def closed(self, x: np.ndarray, partial: np.ndarray) -> None:
        """Σ softplus(x_i) over the parts of each row.

        x (..., n) real; OUT partial (rows, closed_parts(n)) float64, contiguous.
        """
