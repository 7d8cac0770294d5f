"""decision_intervals: the intervals of one input on which each output of a network is the largest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._core import arrays
from .._core.floats import undisturbed
from ._network import SigmoidMLP, _kernels, check_network
from ._points import check_box
from ._roots import _others
from ._solve import solve_x1

_WIDE = 1e-3  # enclosures of multiple ties are narrower; no order is proven in plateaus and tails
_ROWS = 4096  # at a time: their ties and the points between them are some MiB
_ROW_BYTES = 41  # of the result, at least: one interval, its row's end and certificate
_U = 2.0**-53


@dataclass(frozen=True, eq=False, slots=True)
class DecisionIntervals:
    """The intervals of all rows, one row after the other: what `decision_intervals` returns.

    ``len(d)`` is the number of rows, and ``d[i]`` is row i on its own, a DecisionIntervals again.

    Attributes
    ----------
    indptr : ndarray of int, shape (m + 1,)
        Row i has the intervals ``indptr[i]`` to ``indptr[i + 1] - 1``.
    lower, upper : ndarray, shape (k,)
        In every row ascending; each interval begins where the one before it ends, and together they are the bounds.
    output : ndarray of int, shape (k,)
        The largest output inside, as ``argmax`` counts; with a single logit 1 where it is positive and else 0.
    complete : ndarray of bool, shape (m,)
        Whether all of the row is proven: the output of each of its intervals, and that the largest
        output changes where they meet, once, within the enclosure of that tie.
    proven : ndarray of bool, shape (k,)
        Whether it is proven that no other output is larger anywhere inside of the interval, apart
        from the enclosures of the ties at its ends.  Where it is not, `output` is what floating
        point evaluation says.

    Examples
    --------
    >>> import fastderiv as fd
    >>> d = fd.decision_intervals(fd.SigmoidMLP([[[1.0, 0.0], [0.0, 1.0]]], [[0.0, 0.0]]), [3.0, 5.0])
    >>> len(d), d[1].lower, d[1].upper, d[1].output
    (2, array([-inf,   5.]), array([ 5., inf]), array([1, 0]))
    """

    indptr: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    output: np.ndarray
    complete: np.ndarray
    proven: np.ndarray

    def __len__(self) -> int:
        return len(self.complete)

    def __getitem__(self, row: int) -> DecisionIntervals:
        i = arrays.row_number(row, len(self))
        part = slice(self.indptr[i], self.indptr[i + 1])
        size, complete = np.array([0, part.stop - part.start]), self.complete[i : i + 1]
        lower, upper, output = self.lower[part], self.upper[part], self.output[part]
        return DecisionIntervals(size, lower, upper, output, complete, self.proven[part])


@undisturbed
def decision_intervals(
    net: SigmoidMLP,
    x_other: ArrayLike,
    *,
    coordinate: int = 0,
    bounds: ArrayLike = (-math.inf, math.inf),
) -> DecisionIntervals:
    """On which intervals of one input each output is the largest, the other inputs held, for every row.

    Parameters
    ----------
    net : SigmoidMLP
        With any number of outputs.  A single one is the logit of class 1, against class 0.
    x_other : array_like, shape (m, n_inputs - 1)
        The inputs except `coordinate`, ``np.delete(X, coordinate, axis=1)``; with two inputs also (m,) or a scalar.
    coordinate : int, optional
        The input that varies, by default the first; negative ones count from the last.
    bounds : pair of float, optional
        The closed interval lo < hi that is divided, by default all numbers.

    Returns
    -------
    intervals : DecisionIntervals
        Where two intervals meet, outputs tie, and both claims are true in the limit; ``predict`` of scikit-learn gives
        such a point to the output of the smaller number, as ``argmax`` does.

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP or an argument has another type.
    ValueError
        For a wrong shape, option or bound, and NaN and inf in `x_other`.

    Notes
    -----
    All ties of all K (K − 1) / 2 pairs of outputs by `solve_x1`; between neighbouring enclosures no
    two outputs change their order, so that their order at one point there is that of the whole gap.
    It is proven: the outputs are evaluated with a bound of all rounding errors, and in decimal
    intervals of as many digits as it takes where they are closer than that. Two outputs that are
    the same function of the inputs never part, and count as the first.

    An interval is not `proven` if its output is one of two that float64 cannot tell apart on a
    stretch of it, or may touch another inside; a row is not `complete`, moreover, if enclosures
    overlap in which more than the two leading outputs change their order.  Where the tie at which
    the largest output changes is enclosed no closer than to 1e-3, as on a plateau, neither holds.
    The cost is that of K (K − 1) / 2 calls of `solve_x1`.  Rows are taken in blocks, so that
    the memory beside the result and one copy of `x_other` is bounded; a row's result does not
    depend on the others.

    References
    ----------
    docs/derivations.md §2.

    Examples
    --------
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[1.0, 0.0, -1.0]]], [[0.0, 1.0, 0.0]])      # logits x, 1 and −x
    >>> d = fd.decision_intervals(net, [[]], bounds=(-10, 10))
    >>> d.lower.round(9), d.upper.round(9), d.output
    (array([-10.,  -1.,   1.]), array([-1.,  1., 10.]), array([2, 1, 0]))
    """
    check_network(net)
    c = arrays.position("coordinate", coordinate, net.n_inputs, "inputs")
    others = _others(net, x_other, c)
    arrays.check_fits("the intervals", len(others) * _ROW_BYTES)
    lo, hi = check_box("bounds", bounds, 1, "(lo, hi)")[0].tolist()
    blocks = [
        _row_block(net, others[first : first + _ROWS], c, lo, hi)
        for first in range(0, len(others), _ROWS)
    ] or [_row_block(net, others, c, lo, hi)]
    counts, *fields = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return DecisionIntervals(np.concatenate([[0], np.cumsum(counts)]), *fields)


class _Ties(NamedTuple):
    """Enclosures of the ties of all pairs, sorted by row and lower end."""

    row: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    x: np.ndarray
    unique: np.ndarray
    pair: np.ndarray  # (k, 2)


class _Blocks(NamedTuple):
    """Enclosures that overlap, as one; `first` is where each begins among the ties."""

    row: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    first: np.ndarray


class _Gaps(NamedTuple):
    """What lies before, between and behind the blocks of every row: closed intervals, on whose
    inside no outputs tie.
    """

    row: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def _row_block(
    net: SigmoidMLP, others: np.ndarray, c: int, lo: float, hi: float
) -> tuple[np.ndarray, ...]:
    """(intervals of each row, then the other fields of the result) for some rows.

    1. ties     enclosures of all pairs; wide ones, where two outputs are nearly the same, only cast doubt
    2. blocks   those that overlap, merged: between them the order of the outputs is constant
    3. gaps     before, between and behind a row's blocks: the largest output at a point, proven
    4. cuts     blocks at which the largest output changes: where, and whether that is certain
    5. runs     of gaps with the same largest output: the intervals
    """
    m = len(others)
    found = _all_ties(net, others, c, lo, hi)
    wide = ~found.unique & ~(found.upper - found.lower <= _WIDE * np.maximum(1, abs(found.x)))
    ties = _Ties(*(field[~wide] for field in found))
    blocks = _merged(ties)
    gaps = _gaps(blocks, m, lo, hi)
    known = gaps.lower < gaps.upper
    winner, sure = _winners(net, others, c, gaps, known, _Ties(*(field[wide] for field in found)))
    complete = np.bincount(gaps.row, known, minlength=m) > 0  # some gap to begin with
    sure &= complete[gaps.row]
    winner = _filled(winner, known, gaps.row)
    before = np.arange(len(blocks.row)) + blocks.row  # a row has one gap more than blocks
    left, right = winner[before], winner[before + 1]
    cut, certain = _cuts(ties, blocks, left, right, known[before] & known[before + 1])
    with np.errstate(invalid="ignore"):
        blurred = ~(blocks.upper - blocks.lower <= _WIDE * np.maximum(1, abs(cut))) & (
            (left != right) | ~certain
        )
    certain &= ~blurred  # one tie, somewhere on a plateau
    complete[gaps.row[~sure]] = False
    complete[blocks.row[~certain]] = False
    begins = np.ones(len(winner), bool)
    begins[before + 1] = left != right
    at = np.full(len(winner), lo)
    at[before + 1] = cut
    lower, row = at[begins], gaps.row[begins]
    upper = np.full(len(lower), hi)
    inner = np.flatnonzero(row[1:] == row[:-1])
    upper[inner] = lower[inner + 1]
    run, proven = np.cumsum(begins) - 1, np.ones(len(lower), bool)
    proven[run[~sure]] = False
    proven[run[before[~certain & (left == right)]]] = False
    proven[run[before[blurred]]] = proven[run[before[blurred] + 1]] = False
    return np.bincount(row, minlength=m), lower, upper, winner[begins], complete, proven


def _all_ties(net: SigmoidMLP, others: np.ndarray, c: int, lo: float, hi: float) -> _Ties:
    """The ties of all pairs that are not the same function."""
    parts = []
    pairs = list(combinations(range(net.n_outputs), 2)) if net.n_outputs > 1 else [(0, 1)]
    for pair in pairs:
        d, dc = net._last_difference(net._columns(pair))
        if not d.any() and not dc.any():
            continue
        found = solve_x1(net, others, coordinate=c, outputs=pair, bounds=(lo, hi))
        rows = np.repeat(np.arange(len(others)), np.diff(found.indptr))
        which = np.broadcast_to(pair, (len(rows), 2))
        parts.append(_Ties(rows, found.lower, found.upper, found.x, found.unique, which))
    if not parts:
        none = np.zeros(0)
        return _Ties(
            none.astype(np.intp), none, none, none, none.astype(bool), np.zeros((0, 2), np.intp)
        )
    ties = _Ties(*(np.concatenate(field) for field in zip(*parts, strict=True)))
    order = np.lexsort((ties.lower, ties.row))
    return _Ties(*(field[order] for field in ties))


def _merged(ties: _Ties) -> _Blocks:
    """Blocks of enclosures with at least one number between each and the next."""
    if not len(ties.row):
        return _Blocks(ties.row, ties.lower, ties.upper, ties.row)
    rank = np.empty(len(ties.row), np.intp)
    by_upper = np.argsort(ties.upper, kind="stable")
    rank[by_upper] = np.arange(len(rank))
    # the running maximum of `upper` within each row: ranks of a later row exceed all of an earlier one
    reach = ties.upper[
        by_upper[np.maximum.accumulate(rank + ties.row * len(rank)) - ties.row * len(rank)]
    ]
    apart = np.nextafter(reach[:-1], np.inf) < ties.lower[1:]
    first = np.flatnonzero(np.concatenate([[True], (ties.row[1:] != ties.row[:-1]) | apart]))
    last = np.append(first[1:], len(reach)) - 1
    return _Blocks(ties.row[first], ties.lower[first], reach[last], first)


def _gaps(blocks: _Blocks, m: int, lo: float, hi: float) -> _Gaps:
    row = np.repeat(np.arange(m), np.bincount(blocks.row, minlength=m) + 1)
    lower, upper = np.full(len(row), lo), np.full(len(row), hi)
    before = np.arange(len(blocks.row)) + blocks.row
    upper[before] = blocks.lower
    lower[before + 1] = blocks.upper
    return _Gaps(row, lower, upper)


def _winners(
    net: SigmoidMLP, others: np.ndarray, c: int, gaps: _Gaps, known: np.ndarray, wide: _Ties
) -> tuple[np.ndarray, np.ndarray]:
    """The largest output in every gap, and whether that is proven; gaps without an inside, not
    `known`, need no proof.

    1. one evaluation at a point of the gap: the leader's distance from the others beside all errors
    2. in doubt for good, if the leader ties with another on a stretch of the gap
    3. else the order at that point in more digits
    """
    t = _middle(gaps.lower, gaps.upper)
    leads = _leads(net)
    z, error = leads.evaluate(others, c, gaps.row, t)
    winner = leads.distinct[z.argmax(1)]
    rest = leads.distinct != winner[:, None]
    most = np.where(rest, -np.inf, z).max(1), np.where(rest, -np.inf, error).max(1)  # the leader's
    clear = ~rest | (most[0][:, None] - z > 1.01 * (most[1][:, None] + error))
    doubtful = _doubtful(wide, gaps, winner)
    sure = (clear.all(1) & ~doubtful) | ~known
    for k in np.flatnonzero(~sure & ~doubtful):
        x = np.insert(others[gaps.row[k]], c, t[k])
        rivals = leads.distinct[~clear[k]].tolist()
        winner[k], sure[k] = leads.settled(net, x, int(winner[k]), rivals)
    return winner, sure


def _leads(net: SigmoidMLP) -> _Leads:
    if "leads" not in net._programs:
        net._programs["leads"] = _Leads(net)
    return net._programs["leads"]


class _Leads:
    """All outputs relative to the first one, which is then 0; a single logit is output 1, relative
    to 0.

    What is large and common to the outputs cancels in the weights, before it can cost
    digits.  `distinct`: the outputs that are not the same function as one before.
    """

    def __init__(self, net: SigmoidMLP) -> None:
        self.single = net.n_outputs == 1
        last = np.vstack([net.weights[-1], net.biases[-1]])
        last = np.hstack([0 * last, last]) if self.single else last
        _, first = np.unique(last + 0.0, axis=1, return_index=True)  # + 0.0: −0.0 equals 0.0
        self.distinct = np.sort(first)
        relative = last[:, self.distinct] - last[:, :1]
        weights = (*net.weights[:-1], np.ascontiguousarray(relative[:-1]))
        biases = (*net.biases[:-1], relative[-1].copy())
        self.program = _kernels.Program(weights, biases)
        self.sizes = [(np.abs(w), np.abs(b)) for w, b in zip(weights, biases, strict=True)]

    def evaluate(
        self, others: np.ndarray, c: int, row: np.ndarray, t: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The distinct outputs (k, n) of the rows (k,) of `others` at input c = t (k,), and bounds
        of their errors.

        With u = 2⁻⁵³, a sum of n products and a bias is off by at most (n + 1) u of the sum of
        magnitudes, and the last layer's numbers, which are differences, by u; σ is off by 3u, exp
        being within 4u, and passes on a quarter of an error at most.  1e-300 pays for products that
        underflow.
        """
        z = np.empty((len(row), len(self.distinct)))
        self.program.along(np.insert(others, c, 0.0, axis=1), row, t, c, z)
        (first, bias), *deeper = self.sizes
        if deeper:  # one bound for all units of a hidden layer
            first, bias = first.max(1, keepdims=True, initial=0), bias.max(keepdims=True, initial=0)
        size = (np.abs(others) @ np.delete(first, c, axis=0))[row]
        size = size + np.abs(t)[:, None] * first[c] + bias
        error = 1.01 * (len(first) + 3) * _U * size + 1e-300
        for left, (w, b) in zip(range(len(deeper) - 1, -1, -1), deeper, strict=True):
            total, n = w.sum(0), len(w)
            most = b + total
            if left:
                total, most = (a.max(keepdims=True, initial=0) for a in (total, most))
            error = (np.minimum(error / 4, 1) + 4 * _U) * total + (n + 4) * _U * most
            error = 1.01 * error + 1e-300
        return z, np.broadcast_to(error, z.shape)

    def settled(
        self, net: SigmoidMLP, x: np.ndarray, leader: int, rivals: list[int]
    ) -> tuple[int, bool]:
        """The largest of the leader and its rivals at x, and whether that is proven."""
        from ._digits import Point  # decimal arithmetic takes time to import

        point = Point(net, x)
        for rival in rivals:
            if self.single:
                order = point.leader(0, None) * (1 if leader else -1)
            else:
                order = point.leader(leader, rival)
            if order == 0:
                return leader, False
            leader = leader if order > 0 else rival
        return leader, True


def _middle(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Points well inside of the intervals, finite where an end is not."""
    middle = lower / 2 + upper / 2
    middle = np.where(np.isfinite(lower), middle, upper - np.maximum(1, abs(upper)))
    middle = np.where(np.isfinite(upper), middle, lower + np.maximum(1, abs(lower)))
    return np.where(np.isfinite(lower) | np.isfinite(upper), middle, 0.0)


def _filled(winner: np.ndarray, known: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Gaps without an inside take the output of the nearest one to the left in their row, or else to the right."""
    place = np.arange(len(row))
    left = np.maximum.accumulate(np.where(known, place, -1))
    right = np.minimum.accumulate(np.where(known, place, len(row))[::-1])[::-1]
    has_left = (left >= 0) & (row[np.maximum(left, 0)] == row)
    has_right = (right < len(row)) & (row[np.minimum(right, len(row) - 1)] == row)
    return winner[np.where(has_left, left, np.where(has_right, right, place))]


def _doubtful(wide: _Ties, gaps: _Gaps, winner: np.ndarray) -> np.ndarray:
    """Gaps in which one of two outputs that float64 cannot tell apart somewhere is the largest
    there.
    """
    doubtful = np.zeros(len(winner), bool)
    begins = np.searchsorted(gaps.row, wide.row), np.searchsorted(gaps.row, wide.row, side="right")
    for i, j, a, b, pair in zip(*begins, wide.lower, wide.upper, wide.pair, strict=True):
        meets = (gaps.lower[i:j] <= b) & (gaps.upper[i:j] >= a)
        doubtful[i:j] |= meets & np.isin(winner[i:j], pair)
    return doubtful


def _cuts(
    ties: _Ties, blocks: _Blocks, left: np.ndarray, right: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the largest output changes from `left` to `right` at each block, and whether that is certain.

    Outputs change their order only where they tie.  Unless a tie of the leading ones lies in the block nothing happens to
    them; and a single one, unique and between those two, is the change itself.
    """
    block = np.repeat(np.arange(len(blocks.row)), np.diff(np.append(blocks.first, len(ties.row))))
    a, b = left[block], right[block]
    p, q = ties.pair.T
    touches = (p == a) | (q == a) | (p == b) | (q == b)
    between = ((p == a) & (q == b)) | ((p == b) & (q == a))
    n_touching = np.bincount(block, touches, minlength=len(blocks.row))
    n_unique = np.bincount(block, between & ties.unique, minlength=len(blocks.row))
    n_simple = np.bincount(block, touches & ties.unique, minlength=len(blocks.row))
    certain = np.where(left == right, n_touching == 0, (n_touching == 1) & (n_unique == 1))
    certain |= (
        ~known & (n_touching == 1) & (n_simple == 1)
    )  # a tie on a bound: nothing lies beyond it
    with np.errstate(over="ignore", invalid="ignore"):
        cut = _middle(blocks.lower, blocks.upper)
    cut[block[between][::-1]] = ties.x[between][::-1]  # the first one counts
    return cut, certain
