"""From decided cells to curves: arcs meet where cells meet."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._cells import Cells
from ._chords import refined
from ._section import MARGIN, Section, zeros_along

LOOSEST = 2.0**-14  # of the box: how far points may be from the curve, whatever `tol` is
# bottom, top, left, right, by corners: (x0, y0), (x1, y0), (x0, y1), (x1, y1)
_EDGES = np.array([[0, 1], [2, 3], [0, 2], [1, 3]])


def curves_of(
    section: Section, cells: Cells, tol: float
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The curves, which are closed, and the cells in which chords are not proven to be close.

    1. where arcs leave their cells
    2. which arcs meet there
    3. the arcs in the order of curves
    4. points between their ends
    5. the curves as far as they are in the bounds
    """
    if not cells.where.size:
        return [], np.zeros(0, bool), np.zeros(0, np.intp)
    ends = _ends(cells)
    partner, number = _meetings(ends)
    crossings = _crossings(section, ends, number, tol)
    arcs, backwards, first, closed = _walk(partner.tolist(), ends.forward.tolist())
    begin, end = crossings[number[0::2]], crossings[number[1::2]]
    arc, t, points, loose = refined(section, cells, begin, end, tol)
    loose = np.union1d(loose, _vague(section, arc, points, begin, end))
    begin[backwards], end[backwards] = end[backwards], begin[backwards]
    t = np.where(backwards[arc], 1 - t, t)
    rank = np.empty(len(arcs), np.intp)
    rank[arcs] = np.arange(len(arcs))
    # every arc gives its first point and those between, the last arc of a curve its last point too
    last = arcs[np.append(first[1:], len(arcs)) - 1]
    place = np.concatenate([np.zeros(len(begin)), t, np.ones(len(last))])
    order = np.lexsort((place, np.concatenate([rank, rank[arc], rank[last]])))
    points = np.concatenate([begin, points, end[last]])[order]
    cuts = np.flatnonzero(place[order] == 1) + 1
    return *_finished(section, np.split(points, cuts)[:-1], closed), loose


def _vague(
    section: Section, arc: np.ndarray, points: np.ndarray, begin: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """Arcs with a point that rounding may have moved by more than `LOOSEST` of the box.

    f is so flat there that its zero is known no better, which no enclosure of slopes tells.
    """
    every = np.arange(len(begin))
    slopes = section.gradient(np.concatenate([points, begin, end])) * section.width
    known = section.rounding <= LOOSEST * np.hypot(*slopes.T)
    return np.concatenate([arc, every, every])[~known]


class _Ends(NamedTuple):
    """The two ends of every arc, one after the other.

    An end is an edge of the arc's cell on which f changes its sign.
    """

    cell: np.ndarray
    vertical: np.ndarray  # bool
    line: np.ndarray  # which grid line the edge lies on
    start: np.ndarray  # where on it the edge begins
    side: np.ndarray  # its length
    rising: np.ndarray  # bool: f rises along the edge
    forward: np.ndarray  # bool: entering the cell here, f > 0 is to the left


def _ends(cells: Cells) -> _Ends:
    positive = cells.positive[:, _EDGES]
    cell, edge = np.nonzero(positive[..., 0] != positive[..., 1])
    i, j, side = cells.where[:, cell]
    vertical, upper = edge >= 2, edge % 2 == 1
    line = np.where(vertical, i, j) + np.where(upper, side, 0)
    rising = positive[cell, edge, 1]
    return _Ends(
        cell, vertical, line, np.where(vertical, j, i), side, rising, rising == (vertical ^ upper)
    )


def _meetings(ends: _Ends) -> tuple[np.ndarray, np.ndarray]:
    """For every end the one it meets across the edge, or -1.

    Also the one of the two whose edge is shorter.

    Edges with a change of sign on one side of a line are disjoint, each with one zero, and so are
    those on the other side.  Of two that share a zero one holds the other, as cells are nested.  So
    in the order along the line they are neighbours, and neighbours that overlap share a zero.
    """
    order = np.lexsort((ends.start, ends.line, ends.vertical))
    sorted_ends = _Ends(*(field[order] for field in ends))
    a, b = (
        _Ends(*(field[cut] for field in sorted_ends)) for cut in (slice(None, -1), slice(1, None))
    )
    same_line = (a.vertical == b.vertical) & (a.line == b.line)
    meet = same_line & (b.start < a.start + a.side)
    p, q = order[:-1][meet], order[1:][meet]
    partner, number = np.full(len(order), -1), np.arange(len(order))
    partner[p], partner[q] = q, p
    number[p] = number[q] = np.where(ends.side[p] <= ends.side[q], p, q)
    return partner, number


def _crossings(section: Section, ends: _Ends, number: np.ndarray, tol: float) -> np.ndarray:
    """(number of ends, 2): the zero on the edge of each end that occurs in `number`."""
    points, k = np.empty((len(number), 2)), np.unique(number)
    axis, rows = ends.vertical[k].astype(np.intp), np.arange(len(k))
    lo, hi = (section.line(axis, x) for x in (ends.start[k], ends.start[k] + ends.side[k]))
    start = np.empty((len(k), 2))
    start[rows, axis] = lo / 2 + hi / 2
    start[rows, 1 - axis] = section.line(1 - axis, ends.line[k])
    points[k] = zeros_along(section, start, axis, lo, hi, np.where(ends.rising[k], 1.0, -1.0), tol)
    return points


def _walk(
    partner: list[int], forward: list[bool]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Arcs in the order of curves, and which of them are walked backwards.

    Also where in that order each curve begins, and whether it is closed.  Arc r has the ends 2r and
    2r + 1, one of which is forward.
    """
    backwards: list[bool | None] = [None] * (len(partner) // 2)
    arcs: list[int] = []
    first: list[int] = []
    closed: list[bool] = []
    starts = [e for e, entering in enumerate(forward) if entering]
    for is_closed in (False, True):
        for end in starts:
            if backwards[end >> 1] is not None or (partner[end] >= 0 and not is_closed):
                continue
            first.append(len(arcs))
            closed.append(is_closed)
            while end >= 0 and backwards[end >> 1] is None:
                backwards[end >> 1] = bool(end & 1)
                arcs.append(end >> 1)
                end = partner[end ^ 1]
    return (
        np.array(arcs, np.intp),
        np.array(backwards, bool),
        np.array(first, np.intp),
        np.array(closed, bool),
    )


def _finished(
    section: Section, curves: list[np.ndarray], closed: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """The curves inside the bounds, and which are closed.

    No point occurs twice in a row, and what only touches the box from outside is left out.
    """
    lo, hi = section.bounds.T
    ends = [row for curve in curves for row in (curve[0], curve[-1])]
    corrected = _on_the_edges(section, np.array(ends))
    points, kept = [], []
    for k, is_closed in enumerate(closed.tolist()):
        curve = np.clip(curves[k], lo, hi)
        if not is_closed:
            curve[0], curve[-1] = corrected[2 * k], corrected[2 * k + 1]
        curve = curve[np.append(True, (curve[1:] != curve[:-1]).any(axis=1))]
        if is_closed or (np.ptp(curve, axis=0) / section.width).max() > 16 * MARGIN:
            points.append(curve)
            kept.append(is_closed)
    return points, np.array(kept, bool)


def _on_the_edges(section: Section, points: np.ndarray) -> np.ndarray:
    """Points moved from the box that was judged onto the edges of the bounds.

    Then they are moved along the edges back onto the curve.
    """
    clipped = np.clip(points, *section.bounds.T)
    moved = clipped != points
    g, f = section.gradient(clipped), section.margin(clipped)
    step = np.where(moved[:, ::-1] & ~moved, f[:, None] / g, 0)
    step[~(np.abs(step) <= 16 * np.abs(clipped - points).max(axis=1, initial=0)[:, None])] = 0
    return np.clip(clipped - step, *section.bounds.T)
