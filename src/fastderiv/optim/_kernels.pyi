"""What the compiled modules of this room offer, each for one real type and one CPU level."""

from typing import Protocol

import numpy as np

class Kernels(Protocol):
    """``real`` is the module's type, float32 or float64.

    ``padded`` is the number of parameters, rounded up to a multiple of 8; `n` is β·2**16.
    No call can be interrupted, so that none leaves a step half done.
    """

    def update(
        self,
        theta: np.ndarray,
        p: np.ndarray,
        grad: np.ndarray,
        alpha: float,
        beta: float,
        back: bool,
        copies: tuple[tuple[np.ndarray, np.ndarray], ...],
    ) -> None:
        """A step of momentum in floating point, or its inverse if `back`.

        IN OUT theta, p (..., n) real, any strides; IN grad, of the same shape; none of them empty.
        OUT the first array of each pair of `copies`; it becomes what the second one then holds.
        """
    def fixed_step(
        self,
        state: np.ndarray,
        count: np.ndarray,
        stack: list[np.ndarray],
        grad: np.ndarray,
        alpha: float,
        n: int,
        words: np.ndarray | None,
    ) -> bool:
        """A step of momentum in fixed point; whether it was taken.

        IN OUT state (3, padded) int64, contiguous: θ, p, and the buffers' bits, which are float64.
        IN OUT count (1,) int64, the number of steps, and stack, the words that have been spilled.
        IN grad (size,) real, contiguous.  OUT words (padded,) uint16 if the step spills, else None.
        """
    def fixed_unstep(
        self,
        state: np.ndarray,
        count: np.ndarray,
        stack: list[np.ndarray],
        grad: np.ndarray,
        alpha: float,
        n: int,
        spilled: bool,
    ) -> bool:
        """The inverse of `fixed_step`; whether it was taken.

        `spilled` says that the step to be undone has put words on the stack.
        """
    def positions(self, state: np.ndarray, row: int, before: bool, out: np.ndarray) -> None:
        """θ (row 0) or p (row 1) as real numbers; θ before the last step if `before`.

        IN state (3, padded) int64; OUT out (padded,) float64, contiguous.
        """
