"""solve_x1: every tie along one input, with a certificate, for many rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._core import arrays
from .._core.floats import undisturbed
from .._core.fpstate import ieee
from .._core.progress import Progress, reporting
from ._expsum import ExponentialSum, _integers
from ._network import Outputs, SigmoidMLP, _kernels, check_network
from ._roots import _others
from ._units import distinct_units

_BLOCK = (
    1 << 16
)  # rows at a time: their enclosures take 10 MiB before they are listed; fewer keep threads waiting
_BOUNDED_UNITS = 4  # beyond, Descartes' bound allows many more ties than there are, and takes longer than what it saves
_LARGE = 1 << 20  # numbers; below, no machine is short of memory
_ROW_BYTES = 34  # of a row without ties, beside a tie in each to begin with
_TINY = 5e-324
_SMALL = 1e-290  # multiplied by a power of two, numbers above lose no bits


@dataclass(frozen=True, eq=False, slots=True)
class Crossings:
    """Every tie of every row: what `solve_x1` returns, row by row as in a sparse matrix.

    ``len(c)`` is the number of rows m, ``c[i]`` the ties of row i.

    Attributes
    ----------
    indptr : ndarray of intp, shape (m + 1,)
        Row i has the ties ``indptr[i]`` to ``indptr[i + 1]``.
    x, lower, upper : ndarray, shape (k,)
        The ties, ascending within a row, and enclosures of them, which overlap at most at an end.  An enclosure may
        reach to ±∞; its `x` is finite then too.
    unique : ndarray of bool, shape (k,)
        True: the enclosure holds exactly one tie, and a simple one.  False, a cluster: it holds all that are near there,
        perhaps none; float64 cannot tell.
    complete : ndarray of bool, shape (m,)
        Whether it is proven that all ties of the row are in its enclosures.  True in every row
        that `solve_x1` returns: what it cannot decide, for want of precision or because the row's
        work is spent, it lists as clusters; where the sums overflow, or the margin is zero
        everywhere, that is one cluster over the bounds.  So look at `unique` for what is known of
        a tie.  False only in crossings of other origin: `fastderiv.reference.solve_x1` samples,
        and claims nothing.
    root_bound : int or None
        At most how many ties a row has, from `ExponentialSum.root_bound`; None if the network has not one hidden layer
        of four units or less.

    Examples
    --------
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[1.0, 2.0], [0.5, -0.5]], [[1.0], [1.0]]], [[0.0, 0.0], [-1.0]])
    >>> crossings = fd.solve_x1(net, [0.0, 1.0])
    >>> len(crossings), crossings[0].round(9) + 0.0, crossings.status
    (2, array([0.]), array(['unique', 'unique'], dtype='<U7'))
    """

    indptr: np.ndarray
    x: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    unique: np.ndarray
    complete: np.ndarray
    root_bound: int | None = None

    @property
    def status(self) -> np.ndarray:
        """``"unique"`` or ``"cluster"`` for every enclosure, shape (k,)."""
        return np.where(self.unique, "unique", "cluster")

    def __len__(self) -> int:
        return len(self.complete)

    def __getitem__(self, i: int) -> np.ndarray:
        i = arrays.row_number(i, len(self))
        return self.x[self.indptr[i] : self.indptr[i + 1]]


def solve_x1(
    net: SigmoidMLP,
    x_other: ArrayLike,
    *,
    coordinate: int = 0,
    outputs: Outputs = (0, 1),
    bounds: Sequence[float] | np.ndarray = (-math.inf, math.inf),
    xtol: float = 1e-12,
    progress: Progress = None,
) -> Crossings:
    """All solutions of z1 = z2 along one input, certified, for every row of the other inputs.

    Parameters
    ----------
    net : SigmoidMLP
        Any depth and width.
    x_other : array_like, shape (m, n_inputs - 1)
        The inputs except `coordinate`, ``np.delete(X, coordinate, axis=1)``; with two inputs also (m,) or a scalar.
    coordinate : int, optional
        The input to solve for, by default the first; negative ones count from the last.
    outputs : pair of int, optional
        As in `SigmoidMLP.margin`; a network with a single output ties where its logit is 0.
    bounds : pair of float, optional
        Where to look, lo < hi, both ends included; by default the whole line.
    xtol : float, optional
        How wide the enclosure of a single tie may be, relative to max(1, |x|).  Where rounding forbids that, the
        enclosure is as wide as what is proven.
    progress : bool or callable, optional
        True for a bar (needs tqdm), or a function called with (rows done, rows).

    Returns
    -------
    crossings : Crossings
        ``crossings[i]`` are the ties of row i, ascending; enclosures, certificates and what else is known are its arrays.

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP or an argument has another type.
    ValueError
        For a wrong shape or number; NaN and infinite inputs and NaN bounds are among them: no certificate rests on them.

    Notes
    -----
    What is certified is the exact real function of the given parameters, every float an exact number.  Intervals are
    excluded, accepted or split by the ranges of the margin and its derivative on them, which cost two evaluations per
    unit, as σ is monotone and σ' unimodal; ±∞ are ordinary points.  Every computed number comes with a bound of its
    rounding error (derived in ``_isolate.pxi`` and ``_deep.pxi``), and no statement is made that does not clear it.
    Newton's method then ends with a proof of its own.  What float64 cannot separate, such as a tie where the
    margin only touches zero, is one cluster; a margin that is zero along the whole line is one cluster over the bounds.
    A row gets 4000 splits, with more than one hidden layer 20000, then what is undecided becomes a cluster.
    Hidden units whose weights and biases are equal, or opposite, are one.

    With more hidden layers the margin and two derivatives are enclosed layer by layer, each behind its linear map cut by
    the centred form with what is known of the next derivative.

    One row costs about 0.1 µs with three hidden units and 0.8 µs with 16; 25 µs with three layers of 16 units and 0.3 ms
    with three of 64.  A row's result does not depend on the others, the strides or the number of threads.  Memory beside
    the result is a copy of `x_other`, up to 10 MiB, and at most 1 MiB a thread up to width 256.

    References
    ----------
    docs/derivations.md §2.

    Examples
    --------
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[0.25, 50, 51]], [[6], [-1.5], [-1.5]]], [[0, 100, -102], [-1.5]])
    >>> ties = fd.solve_x1(net, [[]])                           # five ties with three hidden units
    >>> ties[0].round(6) + 0.0
    array([-4.394449, -1.999171,  0.      ,  1.999188,  4.394449])
    >>> bool(ties.unique.all()), bool(ties.complete.all()), ties.root_bound
    (True, True, 7)
    """
    check_network(net)
    with ieee():
        coordinate = arrays.position("coordinate", coordinate, net.n_inputs, "inputs")
        pair, x = net._columns(outputs), _others(net, x_other, coordinate)
        lo, hi = _bounds(bounds)
        xtol = arrays.number("xtol", xtol)
        if not 0 < xtol < math.inf:
            raise ValueError(f"xtol is {xtol}; expected a positive number")
        solver, root_bound = _solver(net, pair, coordinate)
    if len(x) > _LARGE:  # a broadcast array may have more rows than any memory has enclosures
        arrays.check_fits("the enclosures of x_other's rows", len(x) * _ROW_BYTES)
    buffers, listing = solver.buffers(min(len(x), _BLOCK)), _kernels.Listing(len(x))
    with reporting(progress, len(x), "solve_x1") as done:
        for first in range(0, len(x), _BLOCK):
            solver.solve(x[first : first + _BLOCK], lo, hi, xtol, buffers, listing)
            if done:
                done(min(first + _BLOCK, len(x)))
    indptr, x_found, lower, upper, unique = listing.arrays()
    return Crossings(indptr, x_found, lower, upper, unique, np.ones(len(x), np.bool_), root_bound)


def _bounds(bounds: Sequence[float] | np.ndarray) -> tuple[float, float]:
    pair = arrays.sequence("bounds", bounds, "a pair (lo, hi)")
    if len(pair) != 2:
        raise ValueError(f"bounds has {len(pair)} elements; expected a pair (lo, hi)")
    lo, hi = arrays.number("bounds[0]", pair[0]), arrays.number("bounds[1]", pair[1])
    if not lo < hi:
        raise ValueError(f"bounds is ({lo}, {hi}); expected lo < hi")
    return lo, hi


def _solver(
    net: SigmoidMLP, pair: tuple[int, int] | None, coordinate: int
) -> tuple[Any, int | None]:
    """What solves rows, packed once, and Descartes' bound where it is worth its time."""
    key = ("solver", pair, coordinate)
    if key not in net._programs:
        net._programs[key] = _new_solver(net, pair, coordinate)
    return net._programs[key]


@undisturbed
def _new_solver(
    net: SigmoidMLP, pair: tuple[int, int] | None, coordinate: int
) -> tuple[Any, int | None]:
    if len(net.weights) == 2:
        return _isolator(net, pair, coordinate)
    return _kernels.DeepNet(_margin_program(net, pair), coordinate), None


def _isolator(
    net: SigmoidMLP, pair: tuple[int, int] | None, coordinate: int
) -> tuple[Any, int | None]:
    last = LastLayer(net, pair)
    W, b = net.weights[0][:, last.used], net.biases[0][last.used]
    others, bound = (
        np.ascontiguousarray(np.delete(W, coordinate, axis=0)),
        _root_bound(net, pair, coordinate),
    )
    packed = _kernels.Isolator(
        np.ascontiguousarray(W[coordinate]), last.d[last.used], last.c, last.error, bound is not None and bound <= 1,
        (last.limit(W[coordinate] < 0), last.limit(W[coordinate] > 0)) if W[coordinate].all() else (math.nan, math.nan),
        _kernels.Program((others,), (b,)), _kernels.Program((np.abs(others),), (np.abs(b),)),
    )  # fmt: skip
    return packed, bound


def _margin_program(net: SigmoidMLP, pair: tuple[int, int] | None) -> Any:
    """The network whose only output is the margin, times a power of two so that d is about 1 where that loses no bits."""
    weights, biases = distinct_units(net, pair)
    d, c = weights.pop()[:, 0], biases.pop()  # infinite differences make every row a cluster
    sizes = np.abs(np.append(d, c))
    exponent = -math.frexp(sizes.max())[1]
    if np.all((sizes == 0) | (np.ldexp(sizes, exponent) > _SMALL)):
        d, c = np.ldexp(d, exponent), np.ldexp(c, exponent)
    return _kernels.Program((*weights, np.ascontiguousarray(d[:, None])), (*biases, c))


class LastLayer:
    """The margin's last layer Σ d_i y_i + c, times a power of two so that its largest number is about 1.

    d (n,) and c are rounded; `error` bounds Σ|d_i − exact d_i| + |c − exact c|.  Units that are
    equal for every input, and those that are opposite, as σ(−z) = 1 − σ(z), are one: the first
    stands for all, with the sum of their d_i.  `used`: the units that are left and not exactly 0.
    """

    def __init__(self, net: SigmoidMLP, pair: tuple[int, int] | None) -> None:
        first, second = net._last_columns(pair)
        exponent = max(0, math.frexp(max(np.abs(first).max(), np.abs(second).max()))[1] - 1000)
        lost = (
            len(first) * _TINY if exponent else 0.0
        )  # bits that are shifted out to avoid an overflow
        self._columns, self.used = (first, second), (first != second)[:-1]
        first, second = np.ldexp(first, -exponent), np.ldexp(second, -exponent)
        difference = first - second
        back = difference - first
        rest = (first - (difference - back)) - (second + back)  # exactly
        self._joined: dict[int, list[tuple[int, int]]] = {}  # unit, or −1 for c -> (unit, sign)
        self._merge(_alike(np.vstack([net.weights[0], net.biases[0]]), self.used))
        self._add(first, second, difference, rest)
        exponent = math.frexp(np.abs(difference).max())[1]
        scaled = np.ldexp(difference, -exponent)
        self.d, self.c = scaled[:-1], float(scaled[-1])
        self.error = math.ldexp(1.001 * np.abs(rest).sum() + lost, -exponent)
        if math.ldexp(lost, -exponent) > 2 * _TINY:
            self.error = (
                math.inf
            )  # scaling back has magnified what was lost, which no bound of a slope accounts for

    def _merge(self, alike: dict[int, list[tuple[int, int]]]) -> None:
        """Let the first of units that are alike stand for all; what opposite ones add goes to c."""
        for lead, others in alike.items():
            self._joined[lead] = others
            self._joined.setdefault(-1, []).extend((k, 1) for k, sign in others if sign < 0)
            self.used[[k for k, _ in others]] = False
            self.used[lead] = self._exact([lead]) != 0

    def _add(self, first: np.ndarray, second: np.ndarray, d: np.ndarray, rest: np.ndarray) -> None:
        """OUT d, whose last is c: the sums of units that are one; and rest, what rounding lost."""
        for lead, others in self._joined.items():
            together = [(lead, 1), *others]
            terms = [sign * column[k] for k, sign in together for column in (first, -second)]
            d[lead] = math.fsum(terms)
            rest[lead] = math.fsum([*terms, -d[lead]])
        for k in {k for others in self._joined.values() for k, _ in others}:
            d[k] = rest[k] = 0

    def limit(self, on: np.ndarray) -> float:
        """The margin where the used units `on` give 1 and the others 0: its sign is exact, its size rounded."""
        units = [*np.flatnonzero(self.used)[on].tolist(), -1]
        exact, size = self._exact(units), abs(math.fsum([*self.d[units[:-1]], self.c]))
        return max(size, _TINY) * ((exact > 0) - (exact < 0))

    def _exact(self, units: list[int]) -> int:
        """The sum of these units' d, c's at −1, times a power of two."""
        first, second = self._columns
        joined = [pair for unit in units for pair in self._joined.get(unit, ())]
        others = [sign * column[k] for k, sign in joined for column in (first, -second)]
        return sum(_integers([*first[units], *-second[units], *others]))


def _alike(columns: np.ndarray, used: np.ndarray) -> dict[int, list[tuple[int, int]]]:
    """Of used units whose columns (n, H) are equal or opposite: the first -> (another, 1 or −1)."""
    seen: dict[bytes, int] = {}
    found: dict[int, list[tuple[int, int]]] = {}
    _, same, counts = np.unique(np.abs(columns[-1]), return_inverse=True, return_counts=True)
    units = np.flatnonzero(used & (counts[same] > 1))  # mostly few, of which whole columns are read
    columns = columns[:, units]
    leading = np.take_along_axis(columns, (columns != 0).argmax(axis=0)[None], axis=0)[0]
    signs = np.where(leading < 0, -1, 1)
    rows = np.ascontiguousarray((columns * signs).T) + 0.0  # and no −0
    sign_of = dict(zip(units.tolist(), signs.tolist(), strict=True))
    for k, row in zip(units.tolist(), rows, strict=True):
        lead = seen.setdefault(row.tobytes(), k)
        if lead != k:
            found.setdefault(lead, []).append((k, sign_of[k] * sign_of[lead]))
    return found


def _root_bound(net: SigmoidMLP, pair: tuple[int, int] | None, coordinate: int) -> int | None:
    if net.hidden_widths[0] > _BOUNDED_UNITS:
        return None
    try:
        return ExponentialSum(net, pair or (0, 1)).root_bound(coordinate)
    except ValueError:  # zero everywhere
        return None
