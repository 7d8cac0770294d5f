"""counterfactuals: the smallest change of each single input that makes two outputs tie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._core import arrays
from ._network import Outputs, SigmoidMLP, check_network
from ._points import check_box, check_point, rounding
from ._roots import find_x1
from ._solve import solve_x1

_FAR_LEFT = -1e300  # stands for −∞ where the margin is evaluated
_STEPS = 2.0 ** np.arange(-40, 998)  # from the sample on: what lies far out is seen relative to how far
_NARROW = 1e-3  # a cluster around a multiple root is narrower, one in a tail where the margin goes to zero is not


class Counterfactuals(NamedTuple):
    """The nearest tie along each of some inputs: what `counterfactuals` returns.

    Attributes
    ----------
    value : ndarray, shape (len(features),)
        What the input would have to be; NaN where no value of it makes a tie.
    change : ndarray, shape (len(features),)
        `value` less what it is.

    Examples
    --------
    >>> import fastderiv as fd
    >>> fd.counterfactuals(fd.SigmoidMLP([[[2.0], [0.0]]], [[-6.0]]), [1.0, 0.0])
    Counterfactuals(value=array([ 3., nan]), change=array([ 2., nan]))
    """

    value: np.ndarray
    change: np.ndarray


def counterfactuals(
    net: SigmoidMLP,
    x: ArrayLike,
    *,
    features: Sequence[int] | np.ndarray | None = None,
    outputs: Outputs = (0, 1),
    bounds: ArrayLike = (-math.inf, math.inf),
) -> Counterfactuals:
    """The nearest tie along each single input, the others held: what would have had to be different.

    Parameters
    ----------
    net : SigmoidMLP
    x : array_like, shape (n_inputs,)
        The sample.
    features : sequence of int, optional
        The inputs to change, one at a time; negative ones count from the last.  By default all of them.
    outputs : pair of int, optional
        As in `SigmoidMLP.margin`.
    bounds : array_like, shape (2,) or (len(features), 2), optional
        The closed interval lo < hi within which a value is looked for, one for all or one for each feature.  It need not
        hold the sample.

    Returns
    -------
    result : Counterfactuals
        `value` and `change`, (len(features),) in the order of `features`; NaN where there is no tie.

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP or an argument has another type.
    ValueError
        For a wrong shape, option or bound, and NaN and inf in `x`.

    Notes
    -----
    Each feature costs one row of `solve_x1`, which finds all ties along it: a nearer one is not overlooked, and NaN means
    that none exists.  A cluster, where float64 cannot tell ties apart, counts where the margin, as it is
    computed, changes its sign in it or is exactly zero, the nearest such value, and if it touches zero; it does not if
    the margin only goes to zero in a tail.

    References
    ----------
    docs/derivations.md §2.

    Examples
    --------
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[1.0], [-2.0]], [[1.0]]], [[0.0], [-0.5]])      # a tie where x1 = 2 x2
    >>> fd.counterfactuals(net, [3.0, 1.0]).change.round(9)
    array([-1. ,  0.5])
    >>> fd.counterfactuals(net, [3.0, 1.0], features=[1], bounds=(-1, 1)).value
    array([nan])
    """
    check_network(net)
    x, chosen = check_point("x", net, x), _features(features, net.n_inputs)
    box = check_box("bounds", bounds, len(chosen), "(2,) or (len(features), 2)")
    value = np.empty(len(chosen))
    for k, (j, (lo, hi)) in enumerate(zip(chosen, box.tolist(), strict=True)):
        value[k] = _nearest(net, x, j, outputs, (lo, hi))
    return Counterfactuals(value, value - x[chosen])


def _nearest(net: SigmoidMLP, x: np.ndarray, j: int, outputs: Outputs, bounds: tuple[float, float]) -> float:
    """The nearest tie of x along input j, or NaN."""
    found = solve_x1(net, np.delete(x, j)[None], coordinate=j, outputs=outputs, bounds=bounds)
    ties = found.x[found.unique].tolist()
    for k in np.flatnonzero(~found.unique):
        ties += _in_cluster(net, x, j, outputs, *(float(end[k]) for end in (found.lower, found.x, found.upper)))
    return min(ties, key=lambda tie: abs(tie - x[j]), default=math.nan)


def _in_cluster(
    net: SigmoidMLP, x: np.ndarray, j: int, outputs: Outputs, lower: float, middle: float, upper: float
) -> list[float]:
    """The ties of a cluster that are sure, or that float64 can tell neither from a tie nor from its neighbours."""
    ends = [max(lower, _FAR_LEFT), min(upper, -_FAR_LEFT)]
    near = min(max(x[j], ends[0]), ends[1])
    with np.errstate(over="ignore"):
        steps = _STEPS * max(1.0, abs(near))
    points = np.unique(np.clip(np.concatenate([near - steps, [near, middle], near + steps]), ends[0], ends[1]))
    X = np.repeat(x[None], len(points), axis=0)
    X[:, j] = points
    f = net.margin(X, outputs)
    k = np.flatnonzero(np.sign(f[:-1]) * np.sign(f[1:]) < 0)
    changes = []
    if len(k):
        changes = find_x1(net, np.delete(X[k], j, axis=1), points[[k, k + 1]], coordinate=j, outputs=outputs).x.tolist()
    touching = upper - lower <= _NARROW * max(1.0, abs(middle)) and np.sign(f[0]) * np.sign(f[-1]) >= 0
    return changes + points[(f == 0) | (touching & (abs(f) <= rounding(net, outputs)))].tolist()


def _features(features: Sequence[int] | np.ndarray | None, n_inputs: int) -> list[int]:
    if features is None:
        return list(range(n_inputs))
    try:
        given = list(features)
    except TypeError:
        raise TypeError(f"features is a {type(features).__name__}; expected a sequence of integers") from None
    return [arrays.position(f"features[{k}]", j, n_inputs, "inputs") for k, j in enumerate(given)]
