"""Which output leads at a point, by how much, and whether that is proven."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from .._core import maths
from ._compiled import kernels
from ._margin import Outputs, Pair, pair_of
from ._network import SigmoidMLP, kept, margin_of

_U = 2.0**-53
_EPS = 2 * _U
_TINY = 1e-300  # more than what is lost where numbers are subnormal


class Leads:
    """By how much output `a` exceeds each output, or each output exceeds 0 if `a` is None.

    The difference is taken between columns of the last weights, so that what is large and common
    to the outputs cancels before it can cost digits.

    There are two bounds of the rounding errors.  That of `at` follows every point through all
    layers, which costs as much as an evaluation, and holds in a box around the point.  That of
    `along` treats the units of a layer alike, and costs nearly nothing for each of many points.
    """

    def __init__(self, net: SigmoidMLP, a: int | None) -> None:
        v, c = net.weights[-1], net.biases[-1]
        d, dc = (v, c) if a is None else (v[:, [a]] - v, c[a] - c)
        self.weights, self.biases = (*net.weights[:-1], d), (*net.biases[:-1], dc)
        self.program = kernels.Program(self.weights, self.biases)

    def at(self, X: np.ndarray, reach: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """The leads at X, (m, n_outputs), and bounds of what they are wrong by.

        A bound holds for all inputs within `reach` (m, n_inputs) of X: |computed(X) − exact(X′)| ≤
        bound if |X′ − X| ≤ reach.  In every layer, behind inputs y that are wrong by e, y W + b is
        wrong by e |W| and by rounding, which is less than (n + 2) u (|y| |W| + |b|) in whatever
        order the n products are added; σ has slope 1/4 at most.  Twice that covers the bound's own
        rounding.
        """
        ahead = np.empty((len(X), len(self.biases[-1])))
        self.program.evaluate(X, ahead, False)
        y, e = X, np.broadcast_to(reach, X.shape)
        for w, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            e = _wrong(y, e, w, b) / 4
            y = maths.sigmoid(y @ w + b)
            e = np.minimum(e + 8 * _EPS * y, 1.0)
        return ahead, 2 * _wrong(y, e, self.weights[-1], self.biases[-1])

    def along(
        self, others: np.ndarray, coordinate: int, row: np.ndarray, t: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The leads (k, n_outputs) at rows (k,) of `others`, their input `coordinate` being t (k,).

        Also bounds of what they are wrong by.  A sum of n products and a bias is off by at most
        (n + 1) u of the sum of magnitudes, and the last layer's numbers, which are differences, by
        u; σ is off by 3u, exp being within 4u, and passes on a quarter of an error at most.
        `_TINY` pays for products that underflow.
        """
        ahead = np.empty((len(row), len(self.biases[-1])))
        X = np.insert(others, coordinate, 0.0, axis=1)
        self.program.along(X, row, t, coordinate=coordinate, out=ahead)
        (first, bias), *deeper = self._sizes
        if deeper:  # one bound for all units of a hidden layer
            first, bias = first.max(1, keepdims=True, initial=0), bias.max(keepdims=True, initial=0)
        size = (np.abs(others) @ np.delete(first, coordinate, axis=0))[row]
        size = size + np.abs(t)[:, None] * first[coordinate] + bias
        error = 1.01 * (len(first) + 3) * _U * size + _TINY
        for left, (w, b) in zip(range(len(deeper) - 1, -1, -1), deeper, strict=True):
            total, n = w.sum(0), len(w)
            most = b + total
            if left:
                total, most = (a.max(keepdims=True, initial=0) for a in (total, most))
            error = (np.minimum(error / 4, 1) + 4 * _U) * total + (n + 4) * _U * most
            error = 1.01 * error + _TINY
        return ahead, np.broadcast_to(error, ahead.shape)

    @cached_property
    def _sizes(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.abs(w), np.abs(b)) for w, b in zip(self.weights, self.biases, strict=True)]


def _wrong(y: np.ndarray, e: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A bound of what y w + b is wrong by, of which w and b are already wrong by u."""
    w, b = abs(w), abs(b)
    return e @ w + (len(w) + 4) * _EPS * (abs(y) @ w + b) + _TINY


def leads_of(net: SigmoidMLP, a: int | None) -> Leads:
    """The network's Leads of output `a`, made once."""
    a, leads = None if a is None else int(a), kept(net).leads
    if a not in leads:
        leads[a] = Leads(net, a)
    return leads[a]


def first_equal(net: SigmoidMLP) -> np.ndarray:
    """For every output the first one that is the same function of the inputs."""
    known = kept(net).first_equal
    if known is None:
        columns = np.vstack([net.weights[-1], net.biases[-1]]).T + 0.0  # −0.0 is 0.0
        first: dict[bytes, int] = {}
        firsts = [first.setdefault(column.tobytes(), k) for k, column in enumerate(columns)]
        known = np.array(firsts)
        kept(net).first_equal = known
    return known


def decision(net: SigmoidMLP, outputs: Outputs | str) -> Pair | None:
    """The two outputs of a pair, a single one's as classes; None for "any" of more than two."""
    expected = "'any' or a pair of integers"
    if isinstance(outputs, str):
        if outputs != "any":
            raise ValueError(f"outputs is {outputs!r}; expected {expected}")
        if net.n_outputs > 2:
            return None
        outputs = (0, 1)
    pair = pair_of(net.n_outputs, outputs, expected)
    return (1, 0) if pair is None else pair  # a logit is what class 1 leads class 0 by


def columns_of(net: SigmoidMLP, pair: Pair) -> Pair:
    """`outputs` of a margin for what `decision` gives."""
    return pair if net.n_outputs > 1 else (0, 1)


def leader(net: SigmoidMLP, X: np.ndarray, pair: Pair | None) -> tuple[np.ndarray, np.ndarray]:
    """Which output of the `pair`, or of all, is the largest in every row, and whether it is proven.

    Of equal ones it is the first.
    """
    if pair is not None:
        margin, (a, b) = margin_of(net, columns_of(net, pair)).compiled.values(X), pair
        return np.where((margin > 0) | ((margin == 0) & (a < b)), a, b), _decided(net, X, pair)
    first, same = net.logits(X).argmax(axis=1), first_equal(net)
    sure = np.zeros(len(X), bool)
    for a in np.unique(first):
        rows = np.flatnonzero(first == a)
        ahead, doubt = leads_of(net, a).at(X[rows])
        ahead[:, same == same[a]] = np.inf
        # of two outputs that are close, differences of columns tell better than logits which leads
        least = ahead.argmin(axis=1)
        first[rows] = np.where(ahead.min(axis=1) < 0, least, a)
        sure[rows] = (ahead > doubt).all(axis=1)
    return first, sure


def _decided(net: SigmoidMLP, X: np.ndarray, pair: Pair) -> np.ndarray:
    """Whether the sign of the pair's margin is proven in every row.

    It counts as proven where both outputs are the same function.
    """
    if net.n_outputs == 1:
        ahead, doubt = leads_of(net, None).at(X)
        return np.abs(ahead[:, 0]) > doubt[:, 0]
    (a, b), same = pair, first_equal(net)
    ahead, doubt = leads_of(net, a).at(X)
    return (np.abs(ahead[:, b]) > doubt[:, b]) | (same[a] == same[b])
