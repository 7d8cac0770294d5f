"""Ties that seem to be in a cluster, an enclosure in which float64 cannot tell them apart."""

from __future__ import annotations

import math

import numpy as np

from .._margin import Outputs
from .._network import SigmoidMLP, margin_of
from ._roots import find_x1

_FAR_LEFT = -1e300  # stands for −∞ where the margin is evaluated
# Steps from the sample on: what lies far out is looked at relative to how far it is.
_STEPS = 2.0 ** np.arange(-40, 998)
# A cluster around a multiple root is narrower; one in a tail, where the margin vanishes, is not.
_NARROW = 1e-3


def reach_of(lower: np.ndarray, upper: np.ndarray, x: np.ndarray) -> np.ndarray:
    """How far from x the nearest point of a cluster is, and so any tie that is found in it."""
    last = np.minimum(upper, -_FAR_LEFT)
    first = np.minimum(np.maximum(lower, _FAR_LEFT), last)
    return np.maximum(0, np.maximum(first - x, x - last))


def nearest_in_cluster(
    net: SigmoidMLP,
    x: np.ndarray,
    j: int,
    outputs: Outputs,
    lower: float,
    middle: float,
    upper: float,
) -> float:
    """Of `ties_in_cluster` the one that is nearest to x, or NaN if there is none."""
    ties = ties_in_cluster(net, x, j, outputs, lower, middle, upper)
    return min(ties, key=lambda tie: abs(tie - x[j]), default=math.nan)


def ties_in_cluster(
    net: SigmoidMLP,
    x: np.ndarray,
    j: int,
    outputs: Outputs,
    lower: float,
    middle: float,
    upper: float,
) -> list[float]:
    """The ties in a cluster along input j, as far as the computed margin shows them.

    The margin changes its sign there, is exactly zero, or touches zero: then float64 can tell them
    neither from ties nor from their neighbours.
    """
    margin = margin_of(net, outputs)
    ends = [max(lower, _FAR_LEFT), min(upper, -_FAR_LEFT)]
    near = min(max(x[j], ends[0]), ends[1])
    with np.errstate(over="ignore"):
        steps = _STEPS * max(1.0, abs(near))
    points = np.concatenate([near - steps, [near, middle], near + steps])
    points = np.unique(np.clip(points, ends[0], ends[1]))
    X = np.repeat(x[None], len(points), axis=0)
    X[:, j] = points
    f = margin.compiled.values(X)
    k = np.flatnonzero(np.sign(f[:-1]) * np.sign(f[1:]) < 0)
    changes = []
    if len(k):
        others, brackets = np.delete(X[k], j, axis=1), points[[k, k + 1]]
        changes = find_x1(net, others, brackets, coordinate=j, outputs=outputs).x.tolist()
    narrow = upper - lower <= _NARROW * max(1.0, abs(middle))
    touching = narrow and np.sign(f[0]) * np.sign(f[-1]) >= 0
    return changes + points[(f == 0) | (touching & (abs(f) <= margin.noise))].tolist()
