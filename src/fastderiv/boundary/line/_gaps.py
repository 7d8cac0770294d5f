"""Enclosures of all ties along one input, the gaps between them, and which output leads in each."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np

from .._leads import first_equal, leads_of
from .._network import SigmoidMLP, margin_of
from ._solve import solve_x1


class Ties(NamedTuple):
    """Enclosures of the ties of all pairs, sorted by row and lower end."""

    row: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    x: np.ndarray
    unique: np.ndarray
    pair: np.ndarray  # (k, 2)


class Blocks(NamedTuple):
    """Enclosures that overlap, as one; `first` is where each begins among the ties."""

    row: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    first: np.ndarray


class Gaps(NamedTuple):
    """What lies before, between and behind the blocks of every row.

    They are closed intervals, on whose inside no outputs tie.
    """

    row: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def all_ties(net: SigmoidMLP, others: np.ndarray, c: int, lo: float, hi: float) -> Ties:
    """The ties of all pairs that are not the same function."""
    parts = []
    pairs = list(combinations(range(net.n_outputs), 2)) if net.n_outputs > 1 else [(0, 1)]
    for pair in pairs:
        d, dc = margin_of(net, pair).difference
        if not d.any() and not dc.any():
            continue
        found = solve_x1(net, others, coordinate=c, outputs=pair, bounds=(lo, hi))
        rows = np.repeat(np.arange(len(others)), np.diff(found.indptr))
        which = np.broadcast_to(pair, (len(rows), 2))
        parts.append(Ties(rows, found.lower, found.upper, found.x, found.unique, which))
    if not parts:
        none = np.zeros(0)
        return Ties(
            none.astype(np.intp), none, none, none, none.astype(bool), np.zeros((0, 2), np.intp)
        )
    ties = Ties(*(np.concatenate(field) for field in zip(*parts, strict=True)))
    order = np.lexsort((ties.lower, ties.row))
    return Ties(*(field[order] for field in ties))


def merged(ties: Ties) -> Blocks:
    """Blocks of enclosures with at least one number between each and the next."""
    if not len(ties.row):
        return Blocks(ties.row, ties.lower, ties.upper, ties.row)
    rank = np.empty(len(ties.row), np.intp)
    by_upper = np.argsort(ties.upper, kind="stable")
    rank[by_upper] = np.arange(len(rank))
    # the running maximum of `upper` within each row: a later row has higher ranks than all before
    of_row = ties.row * len(rank)
    reach = ties.upper[by_upper[np.maximum.accumulate(rank + of_row) - of_row]]
    apart = np.nextafter(reach[:-1], np.inf) < ties.lower[1:]
    first = np.flatnonzero(np.concatenate([[True], (ties.row[1:] != ties.row[:-1]) | apart]))
    last = np.append(first[1:], len(reach)) - 1
    return Blocks(ties.row[first], ties.lower[first], reach[last], first)


def gaps_between(blocks: Blocks, m: int, lo: float, hi: float) -> Gaps:
    row = np.repeat(np.arange(m), np.bincount(blocks.row, minlength=m) + 1)
    lower, upper = np.full(len(row), lo), np.full(len(row), hi)
    before = np.arange(len(blocks.row)) + blocks.row
    upper[before] = blocks.lower
    lower[before + 1] = blocks.upper
    return Gaps(row, lower, upper)


def middle_of(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Points well inside of the intervals, finite where an end is not."""
    middle = lower / 2 + upper / 2
    middle = np.where(np.isfinite(lower), middle, upper - np.maximum(1, abs(upper)))
    middle = np.where(np.isfinite(upper), middle, lower + np.maximum(1, abs(lower)))
    return np.where(np.isfinite(lower) | np.isfinite(upper), middle, 0.0)


def winners(
    net: SigmoidMLP, others: np.ndarray, c: int, gaps: Gaps, known: np.ndarray, wide: Ties
) -> tuple[np.ndarray, np.ndarray]:
    """The largest output in every gap, and whether that is proven.

    Gaps that are not `known` have no inside, and need no proof.

    1. The outputs at a point of the gap: does the leader lead by more than all rounding errors?
    2. If not, and it ties with another on a stretch of the gap, that stays in doubt.
    3. Else the order at that point is settled in more digits.
    """
    t = middle_of(gaps.lower, gaps.upper)
    distinct = _distinct(net)
    z, error = _relative(net, others, c, gaps.row, t)
    z, error = z[:, distinct], error[:, distinct]
    winner = distinct[z.argmax(1)]
    rest = distinct != winner[:, None]
    most = np.where(rest, -np.inf, z).max(1), np.where(rest, -np.inf, error).max(1)  # the leader's
    clear = ~rest | (most[0][:, None] - z > 1.01 * (most[1][:, None] + error))
    doubtful = _doubtful(wide, gaps, winner)
    sure = (clear.all(1) & ~doubtful) | ~known
    for k in np.flatnonzero(~sure & ~doubtful):
        x = np.insert(others[gaps.row[k]], c, t[k])
        winner[k], sure[k] = _settled(net, x, int(winner[k]), distinct[~clear[k]].tolist())
    return winner, sure


def _distinct(net: SigmoidMLP) -> np.ndarray:
    """The outputs that are not the same function as one before; a single logit is output 1."""
    same = first_equal(net)
    if net.n_outputs > 1:
        return np.flatnonzero(same == np.arange(len(same)))
    zero = not (net.weights[-1].any() or net.biases[-1].any())
    return np.array([0] if zero else [0, 1])


def _relative(
    net: SigmoidMLP, others: np.ndarray, c: int, row: np.ndarray, t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """All outputs (k, n) at the rows (k,) of `others` and input c = t (k,), and bounds of errors.

    They are relative to the first output, which is then 0.  A single logit is output 1, relative
    to 0.
    """
    if net.n_outputs > 1:
        behind, error = leads_of(net, 0).along(others, c, row, t)
        return -behind, error
    z, error = leads_of(net, None).along(others, c, row, t)
    return np.insert(z, 0, 0.0, axis=1), np.insert(error, 0, 0.0, axis=1)


def _settled(net: SigmoidMLP, x: np.ndarray, leader: int, rivals: list[int]) -> tuple[int, bool]:
    """The largest of the leader and its rivals at x, and whether that is proven."""
    from .._digits import Point  # decimal arithmetic takes time to import

    point = Point(net, x)
    for rival in rivals:
        if net.n_outputs == 1:
            order = point.leader(0, None) * (1 if leader else -1)
        else:
            order = point.leader(leader, rival)
        if order == 0:
            return leader, False
        leader = leader if order > 0 else rival
    return leader, True


def filled(winner: np.ndarray, known: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The outputs of all gaps, given those of gaps with an inside.

    A gap without an inside takes the output of the nearest one to the left in its row, or else of
    the nearest one to the right.
    """
    place = np.arange(len(row))
    left = np.maximum.accumulate(np.where(known, place, -1))
    right = np.minimum.accumulate(np.where(known, place, len(row))[::-1])[::-1]
    has_left = (left >= 0) & (row[np.maximum(left, 0)] == row)
    has_right = (right < len(row)) & (row[np.minimum(right, len(row) - 1)] == row)
    return winner[np.where(has_left, left, np.where(has_right, right, place))]


def _doubtful(wide: Ties, gaps: Gaps, winner: np.ndarray) -> np.ndarray:
    """Gaps in which one of two outputs that float64 cannot tell apart there is the largest."""
    doubtful = np.zeros(len(winner), bool)
    begins = np.searchsorted(gaps.row, wide.row), np.searchsorted(gaps.row, wide.row, side="right")
    for i, j, a, b, pair in zip(*begins, wide.lower, wide.upper, wide.pair, strict=True):
        meets = (gaps.lower[i:j] <= b) & (gaps.upper[i:j] >= a)
        doubtful[i:j] |= meets & np.isin(winner[i:j], pair)
    return doubtful
