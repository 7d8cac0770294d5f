"""Points among a network's inputs: their checks, how far they are from being ties, and which output leads there."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .._core import arrays, maths
from .._core.fpstate import ieee
from ._network import Outputs, SigmoidMLP, _kernels, check_names

_EPS = np.finfo(float).eps  # two of the u by which an operation is wrong
_TINY = 1e-300  # more than what is lost where numbers are subnormal
CLOSE = (
    1e-6  # a point nearer than this to the boundary, in units of max(1, |x|), is taken for a tie
)


def check_point(name: str, net: SigmoidMLP, x: ArrayLike) -> np.ndarray:
    """`x` as a finite float64 (n_inputs,) array of our own."""
    x = _own(name, net, x)
    arrays.expect(name, x, (net.n_inputs,), "(n_inputs,)")
    return arrays.finite(name, x)


def check_samples(name: str, net: SigmoidMLP, x: ArrayLike) -> np.ndarray:
    """`x`, one sample (n_inputs,) or several (m, n_inputs), as a finite float64 array of our own."""
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


def margin_and_gradient(
    net: SigmoidMLP, x: np.ndarray, outputs: Outputs
) -> tuple[float, np.ndarray]:
    X = x[None]
    return float(net.margin(X, outputs)[0]), net.margin_gradient(X, outputs)[0]


def check_tie(name: str, x: np.ndarray, margin: float, gradient: np.ndarray) -> None:
    """A ValueError unless the boundary passes within `CLOSE` of `x`, by Newton's step |margin| / |gradient|."""
    allowed, slope = CLOSE * max(1.0, abs(x).max(initial=0.0)), float(np.linalg.norm(gradient))
    if not abs(margin) <= allowed * slope:
        away = (
            f"about {abs(margin) / slope:.3g} from the boundary"
            if slope
            else "where the margin's gradient is zero"
        )
        raise ValueError(
            f"{name} is no tie: the margin is {margin:.6g} there, {away}; expected a point within {allowed:.3g} of it"
        )


def check_box(
    name: str, bounds: ArrayLike, size: int, meaning: str, *, equal: bool = False
) -> np.ndarray:
    """`bounds` as (size, 2), one pair standing for all: lo < hi in every row, or lo ≤ hi if they may be `equal`."""
    with ieee():
        box = np.array(arrays.float64(name, bounds))
    if box.shape not in ((2,), (size, 2)):
        raise ValueError(f"{name} has shape {box.shape}; expected {meaning} = (2,) or {(size, 2)}")
    box = np.broadcast_to(box, (size, 2))
    good = box[:, 0] <= box[:, 1] if equal else box[:, 0] < box[:, 1]
    if not good.all():
        k = int(np.argmin(good))
        raise ValueError(
            f"{name} has the pair {box[k].tolist()} for input {k}; expected lo {'≤' if equal else '<'} hi"
        )
    if not np.isfinite(box[box[:, 0] == box[:, 1]]).all():
        raise ValueError(
            f"{name} has a pair of equal infinities; expected finite numbers where lo = hi"
        )
    return box


def rounding(net: SigmoidMLP, outputs: Outputs) -> float:
    """What rounding may add to a margin: it cannot be told from zero within."""
    d, dc = net._last_difference(net._columns(outputs))
    with ieee(), np.errstate(all="ignore"):
        return 8 * float(_EPS) * float(abs(d).sum() + abs(dc[0]))


def decision(net: SigmoidMLP, outputs: Outputs | str) -> tuple[int, int] | None:
    """The two outputs of a pair, a single one's as classes; None for "any" of more than two."""
    if isinstance(outputs, str) and outputs == "any":
        if net.n_outputs > 2:
            return None
        outputs = (0, 1)
    elif isinstance(outputs, str):
        raise ValueError(f"outputs is {outputs!r}; expected a pair of integers or 'any'")
    pair = net._columns(outputs)
    return (1, 0) if pair is None else pair  # a logit is what class 1 leads class 0 by


def columns_of(net: SigmoidMLP, pair: tuple[int, int]) -> tuple[int, int]:
    """`outputs` of a margin for what `decision` gives."""
    return pair if net.n_outputs > 1 else (0, 1)


def leader(
    net: SigmoidMLP, X: np.ndarray, pair: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Which output of the `pair`, or of all, is the largest in every row (the first of equal ones), and whether that is proven."""
    if pair is not None:
        margin, (a, b) = net.margin(X, columns_of(net, pair)), pair
        return np.where((margin > 0) | ((margin == 0) & (a < b)), a, b), _decided(net, X, pair)
    first = net.logits(X).argmax(axis=1)
    sure = np.zeros(len(X), bool)
    for a in np.unique(first):
        rows = np.flatnonzero(first == a)
        ahead, doubt = leads(net, X[rows], a)
        ahead[:, kin(net) == kin(net)[a]] = np.inf
        least = ahead.argmin(
            axis=1
        )  # differences of columns know better than logits which of two close ones leads
        first[rows] = np.where(ahead.min(axis=1) < 0, least, a)
        sure[rows] = (ahead > doubt).all(axis=1)
    return first, sure


def _decided(net: SigmoidMLP, X: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    """Whether the sign of the pair's margin is proven in every row; it is where both are the same function."""
    if net.n_outputs == 1:
        ahead, doubt = leads(net, X, None)
        return np.abs(ahead[:, 0]) > doubt[:, 0]
    a, b = pair
    ahead, doubt = leads(net, X, a)
    return (np.abs(ahead[:, b]) > doubt[:, b]) | (kin(net)[a] == kin(net)[b])


def kin(net: SigmoidMLP) -> np.ndarray:
    """For every output the first one that is the same function of the inputs."""
    if "kin" not in net._programs:
        columns = np.vstack([net._weights[-1], net._biases[-1]]).T + 0.0  # −0.0 is 0.0
        first: dict[bytes, int] = {}
        net._programs["kin"] = np.array(
            [first.setdefault(column.tobytes(), k) for k, column in enumerate(columns)]
        )
    return net._programs["kin"]


def leads(
    net: SigmoidMLP, X: np.ndarray, a: int | None, reach: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """By how much output `a` is larger than every other at X, (m, n_outputs), and a bound of what that is wrong by.

    With None, by how much every output is larger than 0.

    The bound holds for all inputs within `reach` (m, n_inputs) of X: |computed(X) − exact(X′)| ≤ bound if
    |X′ − X| ≤ reach.  In every layer, behind inputs y that are wrong by e, y W + b is wrong by e |W| and by rounding, which
    is less than (n + 2) u (|y| |W| + |b|) in whatever order the n products are added; σ has slope 1/4 at most.  Twice
    that covers the bound's own rounding.
    """
    key = ("leads", None if a is None else int(a))
    if key not in net._programs:
        v, c = net._weights[-1], net._biases[-1]
        d, dc = (v, c) if a is None else (v[:, [a]] - v, c[a] - c)
        net._programs[key] = (
            _kernels.Program((*net._weights[:-1], d), (*net._biases[:-1], dc)),
            d,
            dc,
        )
    program, d, dc = net._programs[key]
    ahead = np.empty((len(X), net.n_outputs))
    program.evaluate(X, ahead, False)
    y, e = X, np.broadcast_to(reach, X.shape)
    for w, b in zip(net._weights[:-1], net._biases[:-1], strict=True):
        e = _wrong(y, e, w, b) / 4
        y = maths.sigmoid(y @ w + b)
        e = np.minimum(e + 8 * _EPS * y, 1.0)
    return ahead, 2 * _wrong(y, e, d, dc)


def _wrong(y: np.ndarray, e: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A bound of what y w + b is wrong by, of which w and b are already wrong by u."""
    w, b = abs(w), abs(b)
    return e @ w + (len(w) + 4) * _EPS * (abs(y) @ w + b) + _TINY
