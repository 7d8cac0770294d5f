"""`positions`: the check of `rows`, which steps of the hidden attention are wanted."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._core.arrays import integers, pieces


def positions(rows: ArrayLike, steps: int) -> NDArray[np.intp]:
    """Row numbers in [0, steps), contiguous."""
    positions = integers("rows", rows)
    if positions.ndim != 1:
        raise ValueError(f"rows has shape {positions.shape}; expected (R,)")
    for part in pieces(positions.shape):
        piece = positions[part]
        out = np.flatnonzero((piece < -steps) | (piece >= steps))
        if out.size:
            at = int(out[0]) + (part[0].start if isinstance(part[0], slice) else 0)
            expected = f"integers from {-steps} to {steps - 1}"
            raise IndexError(f"rows[{at}] is {piece[out[0]]}; expected {expected}")
        piece[piece < 0] += steps
    return positions
