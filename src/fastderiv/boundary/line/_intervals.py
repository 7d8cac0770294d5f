"""decision_intervals: the intervals of one input on which each output is the largest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..._core import arrays
from ..._core.floats import undisturbed
from .._network import SigmoidMLP, check_network
from .._points import check_box
from ._gaps import Blocks, Gaps, Ties, all_ties, filled, gaps_between, merged, middle_of, winners
from ._rows import other_inputs

_WIDE = 1e-3  # enclosures of multiple ties are narrower; no order is proven in plateaus and tails
_ROWS = 4096  # at a time: their ties and the points between them are some MiB
_ROW_BYTES = 41  # of the result, at least: one interval, its row's end and certificate


@dataclass(frozen=True, eq=False, slots=True)
class DecisionIntervals:
    """The intervals of all rows, one row after the other: what `decision_intervals` returns.

    ``len(d)`` is the number of rows, and ``d[i]`` is row i on its own, a DecisionIntervals again.

    Attributes
    ----------
    indptr : ndarray of int, shape (m + 1,)
        Row i has the intervals ``indptr[i]`` to ``indptr[i + 1] - 1``.
    lower, upper : ndarray, shape (k,)
        In every row ascending; each interval begins where the one before it ends, and together they
        fill the bounds.
    output : ndarray of int, shape (k,)
        The largest output inside, as ``argmax`` counts; with a single logit 1 where it is positive
        and else 0.
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
    >>> net = fd.SigmoidMLP([[[1.0, 0.0], [0.0, 1.0]]], [[0.0, 0.0]])
    >>> d = fd.decision_intervals(net, [3.0, 5.0])
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
    """On which intervals of one input each output is the largest, for every row of the others.

    Parameters
    ----------
    net : SigmoidMLP
        With any number of outputs.  A single one is the logit of class 1, against class 0.
    x_other : array_like, shape (m, n_inputs - 1)
        The inputs except `coordinate`, ``np.delete(X, coordinate, axis=1)``; with two inputs also
        (m,) or a scalar.
    coordinate : int, optional
        The input that varies, by default the first; negative ones count from the last.
    bounds : pair of float, optional
        The closed interval lo < hi that is divided, by default all numbers.

    Returns
    -------
    intervals : DecisionIntervals
        Where two intervals meet, outputs tie, and both claims are true in the limit.  ``predict``
        of scikit-learn gives such a point to the output of the smaller number, as ``argmax`` does.

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP or an argument has another type.
    ValueError
        For a wrong shape, option or bound, and NaN and inf in `x_other`.

    Notes
    -----
    `solve_x1` finds all ties of all K (K − 1) / 2 pairs of outputs.  Between neighbouring
    enclosures no two outputs change their order, so that their order at one point there is that of
    the whole gap.  It is proven: the outputs are evaluated with a bound of all rounding errors, and
    where they are closer than that, in decimal intervals of as many digits as it takes.  Two
    outputs that are the same function of the inputs never part, and count as the first.

    An interval is not `proven` if its output is one of two that float64 cannot tell apart on a
    stretch of it, or may touch another inside.  A row is not `complete`, moreover, if enclosures
    overlap in which more than the two leading outputs change their order.  Where the tie at which
    the largest output changes is enclosed no closer than to 1e-3, as on a plateau, neither holds.
    The cost is that of K (K − 1) / 2 calls of `solve_x1`.  Rows are taken in blocks, so that the
    memory beside the result and one copy of `x_other` is bounded; a row's result does not depend on
    the others.

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
    others = other_inputs(net, x_other, c)
    arrays.check_fits("the intervals", len(others) * _ROW_BYTES)
    lo, hi = check_box("bounds", bounds, 1, "(lo, hi)")[0].tolist()
    blocks = [
        _row_block(net, others[first : first + _ROWS], c, lo, hi)
        for first in range(0, len(others), _ROWS)
    ] or [_row_block(net, others, c, lo, hi)]
    counts, *fields = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return DecisionIntervals(np.concatenate([[0], np.cumsum(counts)]), *fields)


class _Changes(NamedTuple):
    """What happens to the largest output at every block."""

    gap: np.ndarray  # the gap before the block; the next one is behind it
    happens: np.ndarray  # bool: another output leads behind it
    at: np.ndarray  # where
    certain: np.ndarray  # bool: whether that is all, and proven
    blurred: np.ndarray  # bool: the tie is somewhere on a plateau


def _row_block(
    net: SigmoidMLP, others: np.ndarray, c: int, lo: float, hi: float
) -> tuple[np.ndarray, ...]:
    """(intervals of each row, then the other fields of the result) for some rows.

    1. ties     enclosures of all pairs; wide ones, on which two outputs are nearly the same, only
                cast doubt
    2. blocks   those that overlap, merged: between them the order of the outputs is constant
    3. gaps     before, between and behind a row's blocks: the largest output at a point, proven
    4. cuts     blocks at which the largest output changes: where, and whether that is certain
    5. runs     of gaps with the same largest output: the intervals
    """
    m = len(others)
    found = all_ties(net, others, c, lo, hi)
    wide = ~found.unique & ~(found.upper - found.lower <= _WIDE * np.maximum(1, abs(found.x)))
    ties = Ties(*(field[~wide] for field in found))
    blocks = merged(ties)
    gaps = gaps_between(blocks, m, lo, hi)
    known = gaps.lower < gaps.upper
    winner, sure = winners(net, others, c, gaps, known, Ties(*(field[wide] for field in found)))
    complete = np.bincount(gaps.row, known, minlength=m) > 0  # some gap to begin with
    sure &= complete[gaps.row]
    winner = filled(winner, known, gaps.row)
    before = np.arange(len(blocks.row)) + blocks.row  # a row has one gap more than blocks
    left, right = winner[before], winner[before + 1]
    cut, certain = _cuts(ties, blocks, left, right, known[before] & known[before + 1])
    with np.errstate(invalid="ignore"):
        narrow = blocks.upper - blocks.lower <= _WIDE * np.maximum(1, abs(cut))
    blurred = ~narrow & ((left != right) | ~certain)
    certain &= ~blurred
    complete[gaps.row[~sure]] = False
    complete[blocks.row[~certain]] = False
    changes = _Changes(before, left != right, cut, certain, blurred)
    row, lower, upper, output, proven = _runs(gaps, winner, sure, changes, lo, hi)
    return np.bincount(row, minlength=m), lower, upper, output, complete, proven


def _cuts(
    ties: Ties, blocks: Blocks, left: np.ndarray, right: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where the largest output changes from `left` to `right` at each block.

    Also whether that is certain.  Outputs change their order only where they tie.  Nothing happens
    to the leading ones unless a tie of theirs lies in the block; and a single one, unique and
    between those two, is the change itself.
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
    # a tie on a bound: nothing lies beyond it
    certain |= ~known & (n_touching == 1) & (n_simple == 1)
    with np.errstate(over="ignore", invalid="ignore"):
        cut = middle_of(blocks.lower, blocks.upper)
    cut[block[between][::-1]] = ties.x[between][::-1]  # the first one counts
    return cut, certain


def _runs(
    gaps: Gaps, winner: np.ndarray, sure: np.ndarray, changes: _Changes, lo: float, hi: float
) -> tuple[np.ndarray, ...]:
    """Row, lower, upper, output and `proven` of the runs of gaps with the same largest output."""
    behind = changes.gap + 1
    begins = np.ones(len(winner), bool)
    begins[behind] = changes.happens
    at = np.full(len(winner), lo)
    at[behind] = changes.at
    lower, row = at[begins], gaps.row[begins]
    upper = np.full(len(lower), hi)
    inner = np.flatnonzero(row[1:] == row[:-1])
    upper[inner] = lower[inner + 1]
    run, proven = np.cumsum(begins) - 1, np.ones(len(lower), bool)
    proven[run[~sure]] = False
    proven[run[changes.gap[~changes.certain & ~changes.happens]]] = False
    proven[run[changes.gap[changes.blurred]]] = proven[run[behind[changes.blurred]]] = False
    return row, lower, upper, winner[begins], proven
