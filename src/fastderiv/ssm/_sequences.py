"""Sequences packed along the time axis: the check of `cu_seqlens`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._core.arrays import integers
from .._core.plain import widest

_LOOK = 1 << 24  # boundaries checked between two looks for signals


def check_starts(
    cu_seqlens: ArrayLike, name: str, shape: tuple[int, ...], *, axes: int, time: int
) -> tuple[NDArray[np.intp], int]:
    """The boundaries, a copy of our own, and the length of the longest sequence.

    They pack the signal `name` of this shape along its axis `time`; it has `axes` axes if batched.
    """
    starts = integers("cu_seqlens", cu_seqlens)
    steps = shape[time]
    if len(shape) == axes and shape[0] != 1:
        raise ValueError(
            f"cu_seqlens packs sequences along L and needs batch 1; {name} has shape {shape}"
        )
    if starts.ndim != 1 or starts.size == 0:
        raise ValueError(f"cu_seqlens has shape {starts.shape}; expected (sequences + 1,)")
    longest = 0
    for first in range(0, len(starts) - 1, _LOOK):
        width = widest(starts[first : first + _LOOK + 1])
        if width < 0:
            break
        longest = max(longest, width)
    else:
        if starts[0] == 0 and starts[-1] == steps:
            return starts, longest
    expected = f"integers from 0 to L = {steps}, non-decreasing"
    raise ValueError(f"cu_seqlens is {starts}; expected {expected}")
