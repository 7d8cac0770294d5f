"""Points among a network's inputs: their checks, and how far they are from being ties."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .._core import arrays
from .._core.fpstate import ieee
from ._network import SigmoidMLP, check_names

CLOSE = 1e-6  # a point that is nearer to the boundary, in units of max(1, |x|), counts as a tie


def check_point(name: str, net: SigmoidMLP, x: ArrayLike) -> np.ndarray:
    """`x` as a finite float64 (n_inputs,) array of our own."""
    x = _own(name, net, x)
    arrays.expect(name, x, (net.n_inputs,), "(n_inputs,)")
    return arrays.finite(name, x)


def check_samples(name: str, net: SigmoidMLP, x: ArrayLike) -> np.ndarray:
    """`x`, (n_inputs,) or several samples (m, n_inputs), as a finite float64 array of our own."""
    x, n = _own(name, net, x), net.n_inputs
    if x.ndim not in (1, 2) or x.shape[-1] != n:
        raise ValueError(
            f"{name} has shape {x.shape}; expected (n_inputs,) or (m, n_inputs) = (m, {n})"
        )
    return arrays.finite(name, x)


def _own(name: str, net: SigmoidMLP, x: ArrayLike) -> np.ndarray:
    """A float64 copy, which nobody changes after it was checked."""
    check_names(net, name, x, row=True)
    with ieee():
        return np.array(arrays.float64(name, x))


def check_tie(name: str, x: np.ndarray, margin: float, gradient: np.ndarray) -> None:
    """A ValueError unless the boundary passes within `CLOSE` of `x`.

    The distance is Newton's step |margin| / |gradient|.
    """
    allowed, slope = CLOSE * max(1.0, abs(x).max(initial=0.0)), float(np.linalg.norm(gradient))
    if not abs(margin) <= allowed * slope:
        away = (
            f"about {abs(margin) / slope:.3g} from the boundary"
            if slope
            else "where the margin's gradient is zero"
        )
        raise ValueError(
            f"{name} is no tie: the margin is {margin:.6g} there, {away}; "
            f"expected a point within {allowed:.3g} of it"
        )


def check_box(
    name: str, bounds: ArrayLike, size: int, meaning: str, *, equal: bool = False
) -> np.ndarray:
    """`bounds` as (size, 2); one pair stands for all.

    Every row has lo < hi, or lo ≤ hi if the two may be `equal`.
    """
    with ieee():
        box = np.array(arrays.float64(name, bounds))
    if box.shape not in ((2,), (size, 2)):
        raise ValueError(f"{name} has shape {box.shape}; expected {meaning} = (2,) or {(size, 2)}")
    box = np.broadcast_to(box, (size, 2))
    good = box[:, 0] <= box[:, 1] if equal else box[:, 0] < box[:, 1]
    if not good.all():
        k = int(np.argmin(good))
        raise ValueError(
            f"{name} has the pair {box[k].tolist()} for input {k}; "
            f"expected lo {'≤' if equal else '<'} hi"
        )
    if not np.isfinite(box[box[:, 0] == box[:, 1]]).all():
        raise ValueError(
            f"{name} has a pair of equal infinities; expected finite numbers where lo = hi"
        )
    return box
