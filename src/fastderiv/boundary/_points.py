"""One point among a network's inputs: its checks, and how far it is from being a tie."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .._core import arrays
from ._network import Outputs, SigmoidMLP

CLOSE = 1e-6  # a point nearer than this to the boundary, in units of max(1, |x|), is taken for a tie


def check_point(name: str, net: SigmoidMLP, x: ArrayLike) -> np.ndarray:
    """`x` as a finite float64 (n_inputs,) array of our own."""
    x = arrays.finite(name, np.array(arrays.float64(name, x)))
    arrays.expect(name, x, (net.n_inputs,), "(n_inputs,)")
    return x


def margin_and_gradient(net: SigmoidMLP, x: np.ndarray, outputs: Outputs) -> tuple[float, np.ndarray]:
    X = x[None]
    return float(net.margin(X, outputs)[0]), net.margin_gradient(X, outputs)[0]


def check_tie(name: str, x: np.ndarray, margin: float, gradient: np.ndarray) -> None:
    """A ValueError unless the boundary passes within `CLOSE` of `x`, by Newton's step |margin| / |gradient|."""
    allowed, slope = CLOSE * max(1.0, abs(x).max(initial=0.0)), float(np.linalg.norm(gradient))
    if not abs(margin) <= allowed * slope:
        away = f"about {abs(margin) / slope:.3g} from the boundary" if slope else "where the margin's gradient is zero"
        raise ValueError(
            f"{name} is no tie: the margin is {margin:.6g} there, {away}; expected a point within {allowed:.3g} of it"
        )


def check_box(name: str, bounds: ArrayLike, size: int, meaning: str, *, equal: bool = False) -> np.ndarray:
    """`bounds` as (size, 2), one pair standing for all: lo < hi in every row, or lo ≤ hi if they may be `equal`."""
    box = np.array(arrays.float64(name, bounds))  # our own: nobody changes it after it was checked
    if box.shape not in ((2,), (size, 2)):
        raise ValueError(f"{name} has shape {box.shape}; expected {meaning} = (2,) or {(size, 2)}")
    box = np.broadcast_to(box, (size, 2))
    good = box[:, 0] <= box[:, 1] if equal else box[:, 0] < box[:, 1]
    if not good.all():
        k = int(np.argmin(good))
        raise ValueError(f"{name} has the pair {box[k].tolist()} for input {k}; expected lo {'≤' if equal else '<'} hi")
    if not np.isfinite(box[box[:, 0] == box[:, 1]]).all():
        raise ValueError(f"{name} has a pair of equal infinities; expected finite numbers where lo = hi")
    return box


def rounding(net: SigmoidMLP, outputs: Outputs) -> float:
    """What rounding may add to a margin: it cannot be told from zero within."""
    d, dc = net._last_difference(net._columns(outputs))
    with np.errstate(over="ignore"):
        return 8 * float(np.finfo(float).eps) * float(abs(d).sum() + abs(dc[0]))
