"""trace_boundary: every curve on which two outputs tie, in a box of two inputs, with a certificate.

The plane is cut into cells until each is decided: f ≠ 0 on it, or f strictly monotone in one of the two inputs with at
most one zero on each of its four edges.  Then the signs of f at its corners tell everything: they are all the same and
no curve comes by, or they change on exactly two edges and one arc joins these.  (Were there four changes, two opposite
edges would rise in opposite directions.)  Arcs meet where cells meet, and are refined along the input in which f is
monotone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._core import arrays
from .._core.floats import undisturbed
from ._network import Outputs, SigmoidMLP, _kernels, _pair, check_names, check_network

_U = 2.0**-53
_FINEST = 30  # a cell's side is at least 2**-30 of the box's
_FIRST = 3  # subdivision starts with 2**_FIRST cells a side
_COARSEST = 4  # and a cell with an arc in it is at most 2**-_COARSEST of the box's side
_MARGIN = 2.0**-40  # by how much more than its width the box is judged, on each side
_CHORD = 1e-3  # of the box: how far a curve may be from a chord
_LOOSEST = 2.0**-14  # of the box: how far points may be from the curve, whatever `tol` is
_TURNS, _PIECES = 60, 2**10  # limits: how often an arc is halved, and its pieces at once
_BEND = np.array([0.0371, -0.0523])  # of the grid lines
_CELLS, _WORK = 2**19, 4e10  # limits of the subdivision: cells judged, and multiply–adds
# bottom, top, left, right, by corners: (x0, y0), (x1, y0), (x0, y1), (x1, y1)
_EDGES = np.array([[0, 1], [2, 3], [0, 2], [1, 3]])


class BoundaryCurves(NamedTuple):
    """What `trace_boundary` returns.

    Attributes
    ----------
    points : list of ndarray, shape (n, 2)
        One array per curve, in the order of `coordinates`; the first of the two outputs leads on its left.
    closed : ndarray of bool, shape (k,)
        A closed curve's first point is repeated as its last.
    certified : bool
        Whether these are proven to be all curves in the box, joined as they are in truth, and no
        further from them than `trace_boundary` says: `undecided` is empty.
    undecided : ndarray, shape (u, 2, 2)
        Boxes, each in the form of `bounds`, outside of which the same is proven.  Curves end there,
        or run through where only the distance is not proven.

    Examples
    --------
    >>> import fastderiv as fd
    >>> curves = fd.trace_boundary(fd.SigmoidMLP([[[1.0], [1.0]]], [[0.0]]), ((-1, 1), (-1, 1)))
    >>> len(curves.points), curves.closed, curves.undecided.shape
    (1, array([False]), (0, 2, 2))
    """

    points: list[np.ndarray]
    closed: np.ndarray
    certified: bool
    undecided: np.ndarray


@undisturbed
def trace_boundary(
    net: SigmoidMLP,
    bounds: Sequence[ArrayLike] | np.ndarray,
    *,
    coordinates: Sequence[int] | np.ndarray = (0, 1),
    at: ArrayLike | None = None,
    outputs: Outputs = (0, 1),
    tol: float = 1e-10,
) -> BoundaryCurves:
    """All curves on which two outputs tie, in a box of two inputs, the others fixed.

    Parameters
    ----------
    net : SigmoidMLP
        Any depth.
    bounds : pair of pairs (lo, hi)
        The box, finite, in the order of `coordinates`.
    coordinates : pair of int, optional
        The two inputs that span the plane, by default the first two; negative ones count from the last.
    at : array_like, shape (n_inputs,), optional
        The other inputs; the entries at `coordinates` are ignored.  Needed with more than two inputs.
    outputs : pair of int, optional
        As in `SigmoidMLP.margin`.
    tol : float, optional
        How far from the curve its points may be, |margin|/|∇margin|, as far as rounding allows;
        2⁻¹⁴ of the box's shorter side at most.

    Returns
    -------
    curves : BoundaryCurves
        The curve is nowhere further from the chords than 0.1 % of the box, nor are they from it:
        the box taken for a square of side 1.  Open curves end on the box's edges, at `undecided`
        boxes, or at both.

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP or an argument has another type.
    ValueError
        For a wrong shape or number, NaN and inf among them, and where a box's width overflows.

    Notes
    -----
    A cell of the plane is decided by enclosures of the margin and its gradient over all of it,
    propagated layer by layer with proven bounds on rounding; only what they leave open is cut
    further.  The certificate is about the exact function of the given parameters, on a box that
    holds `bounds` and exceeds them by at most 2⁻³⁹ of their widths: where the boundary runs along
    an edge, or touches it, curves are complete up to that, and open ones no longer than 2⁻³⁶ of the
    sides are left out.  No proof is possible where a curve crosses itself, or where the margin
    vanishes on an area up to rounding; these places are listed, as is what is left when a limit of
    2¹⁹ cells (fewer for networks of more than 75 000 weights) is reached.

    A chord is judged by enclosures of the boundary's slope on the box that the piece of the curve
    lies in, and cut until these prove that it is close, so that no spike between two points can be
    overlooked, however narrow.  Where the margin is so flat that rounding may move a point by 2⁻¹⁴
    of the box, the place is undecided.

    The time grows with the length of the curves, not with the area of the box: 1 to 4 ms for a few
    units; beyond, about
    0.3 ns (AVX-512) for each weight and cell, some hundred cells for one hidden layer and 10⁴ to 10⁵ for three of 64.
    Enclosures widen with every layer: five layers of 256 are mostly left undecided, after some ten seconds.  Memory is
    in proportion to the cells judged, at most some 60 MiB beside the result.

    References
    ----------
    docs/derivations.md §2.  Subdivision with monotonicity tests: S. Plantinga, G. Vegter, "Isotopic approximation of
    implicit curves and surfaces", Symposium on Geometry Processing, 2004.

    Examples
    --------
    A ring, made of four units that each switch off beyond one side of a square:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[4.0, -4, 0, 0], [0, 0, 4, -4]], np.ones((4, 1))], [[4.0, 4, 4, 4], [-3.5]])
    >>> curves = fd.trace_boundary(net, ((-2, 2), (-2, 2)))
    >>> curves.closed, curves.certified
    (array([ True]), True)
    >>> bool(np.abs(net.margin(curves.points[0])).max() < 1e-12)
    True
    """
    plane = _plane(net, bounds, coordinates, at, outputs)
    tol = arrays.number("tol", tol)
    if not 0 < tol < math.inf:
        raise ValueError(f"tol is {tol}; expected a positive number")
    tol = min(tol, _LOOSEST * plane.width.min())
    cells, undecided = _subdivide(plane)  # enclosures may overflow: then they decide nothing
    points, closed, loose = _curves(plane, cells, tol)
    boxes = _clipped_boxes(plane, np.concatenate([undecided, cells.where[:, loose]], axis=1))
    return BoundaryCurves(points, closed, not len(boxes), boxes)


# ---- the plane ----------------------------------------------------------------------------------------------------


class _Plane:
    """The margin as a function of two inputs, over a box a little wider than the bounds.

    It is cut by a grid of 2**_FINEST cells a side.  Grid lines lie beside the middles: networks with symmetries have
    their boundary exactly there.
    """

    def __init__(
        self, program: Any, work: int, wide: np.ndarray, rounding: float, bounds: np.ndarray
    ) -> None:
        self.program, self.work, self.wide, self.rounding, self.bounds = (
            program,
            work,
            wide,
            rounding,
            bounds,
        )
        width, largest = bounds[:, 1] - bounds[:, 0], np.abs(bounds).max(axis=1)
        more = np.maximum(_MARGIN * width, 4 * np.spacing(largest))
        self.lo, self.hi = bounds[:, 0] - more * [1, 1.125], bounds[:, 1] + more * [1.25, 1.375]
        self.width = self.hi - self.lo
        room = np.log2(self.width / np.spacing(largest)).min()
        self.finest = int(np.clip(room - 2, _FIRST, _FINEST)) if np.isfinite(room) else _FIRST

    def line(self, axis: int | np.ndarray, k: np.ndarray) -> np.ndarray:
        """Where grid line k of 2**_FINEST is."""
        t = k * 2.0**-_FINEST
        t += _BEND[axis] * t * (1 - t)
        return np.where(k == 2**_FINEST, self.hi[axis], self.lo[axis] + self.width[axis] * t)

    def boxes(self, cells: np.ndarray) -> np.ndarray:
        """x0, x1, y0, y1 (4, n) of cells (3, n): column, row, side."""
        i, j, side = cells
        return np.stack(
            [self.line(0, i), self.line(0, i + side), self.line(1, j), self.line(1, j + side)]
        )

    def judge(self, boxes: np.ndarray) -> np.ndarray:
        return _kernels.judge_boxes(self.program, self.wide, boxes)

    def slopes(self, boxes: np.ndarray) -> np.ndarray:
        """(4, n): the least and largest ∂f/∂x over the boxes (4, n), and those of ∂f/∂y."""
        return _kernels.judge_boxes(self.program, self.wide, boxes, True)

    def margin(self, points: np.ndarray) -> np.ndarray:
        """(…,) at points (…, 2); the same bits wherever a point is met."""
        out = np.empty(points.shape[:-1])
        self.program.evaluate(points.reshape(-1, 2), out.reshape(-1), False)
        return out

    def gradient(self, points: np.ndarray) -> np.ndarray:
        out = np.empty(points.shape)
        self.program.gradient(points, out)
        return out


def _plane(
    net: SigmoidMLP, bounds: Any, coordinates: Any, at: ArrayLike | None, outputs: Outputs
) -> _Plane:
    """The checked arguments: every error is raised here."""
    check_network(net)
    if net.n_inputs < 2:
        raise ValueError(f"net has {net.n_inputs} input; expected at least two")
    pair = list(_pair("coordinates", coordinates, net.n_inputs, "inputs"))
    box = _box(bounds)
    others = _others(net, at, pair)
    d, dc = net._last_difference(net._columns(outputs))
    weights, biases = (*net.weights[:-1], d[:, None]), (*net.biases[:-1], dc)
    # here and below not by BLAS, whose bits may depend on its threads
    terms = others[:, None] * weights[0]
    shift = biases[0] + terms.sum(axis=0)
    shift_error = (net.n_inputs + 2) * _U * (np.abs(biases[0]) + np.abs(terms).sum(axis=0))
    weights, biases = (np.ascontiguousarray(weights[0][pair]), *weights[1:]), (shift, *biases[1:])
    wide, rounding = _rounding(weights, biases, shift_error, box)
    return _Plane(
        _kernels.Program(weights, biases), sum(w.size for w in weights), wide, rounding, box
    )


def _rounding(
    weights: tuple, biases: tuple, shift_error: np.ndarray, box: np.ndarray
) -> tuple[np.ndarray, float]:
    """For every unit what its sum over exact terms may be off by, and its value at a point; and the margin's.

    The first layer's s + a x + b y: 5u (|s| + |a x| + |b y|) and the error of s.  Sums of n terms: (n + 4) u of the
    terms' magnitudes, σ ≤ 1.  Through σ an error shrinks to a quarter at least, and σ itself is off by 3u.
    """
    reach = np.abs(box).max(axis=1) * (1 + 1e-6)
    sums = shift_error + 5 * _U * (
        np.abs(biases[0]) + (reach[:, None] * np.abs(weights[0])).sum(axis=0)
    )
    bounds, values = [sums, sums], sums
    for w, b in zip(weights[1:], biases[1:], strict=True):
        sums = (len(w) + 4) * _U * (np.abs(b) + np.abs(w).sum(axis=0))
        values = ((np.minimum(values / 4, 1) + 3 * _U)[:, None] * np.abs(w)).sum(axis=0) + sums
        bounds += [sums, values]
    padded = [np.pad(1.001 * bound, (0, -len(bound) % 8)) for bound in bounds]
    return np.concatenate(padded), max(1e-300, float(np.nan_to_num(1.001 * values[0], nan=np.inf)))


def _box(bounds: Any) -> np.ndarray:
    box = np.array(arrays.float64("bounds", bounds))  # our own, which nobody changes any more
    arrays.expect("bounds", box, (2, 2), "((lo, hi), (lo, hi))")
    arrays.finite("bounds", box)
    for k, (lo, hi) in enumerate(box.tolist()):
        if not lo < hi:
            raise ValueError(f"bounds[{k}] is ({lo}, {hi}); expected lo < hi")
        if not math.isfinite(1.01 * (hi - lo)):
            raise ValueError(f"bounds[{k}] is too wide: {hi} - {lo} overflows")
    return box


def _others(net: SigmoidMLP, at: ArrayLike | None, pair: list[int]) -> np.ndarray:
    """The inputs that are fixed, 0 at the `pair` that is not."""
    if at is None:
        if net.n_inputs > 2:
            raise ValueError(
                f"at is None; expected (n_inputs,) = ({net.n_inputs},), the values of the other inputs"
            )
        return np.zeros(2)
    check_names(net, "at", at, row=True)
    others = np.array(arrays.float64("at", at))
    arrays.expect("at", others, (net.n_inputs,), "(n_inputs,)")
    others[pair] = 0
    return arrays.finite("at", others)


# ---- subdivision --------------------------------------------------------------------------------------------------


class _Cells(NamedTuple):
    """Decided cells that the boundary runs through."""

    where: np.ndarray  # (3, n): column, row, side
    positive: np.ndarray  # (n, 4) bool, at the corners
    slopes: np.ndarray  # (2, n): gaps of ∂f/∂x and ∂f/∂y to zero, with their signs; not both are 0


def _subdivide(plane: _Plane) -> tuple[_Cells, np.ndarray]:
    """The cells with an arc, and those that could not be decided.

    Breadth first: what a limit leaves open is as fine everywhere.
    """
    side = 2 ** (_FINEST - _FIRST)
    grid = np.arange(2**_FIRST) * side
    cells = np.stack([*(a.ravel() for a in np.meshgrid(grid, grid)), np.full(4**_FIRST, side)])
    found, open_cells, judged = [], [np.empty((3, 0), np.int64)], 0
    for level in range(_FIRST, plane.finest + 1):
        judged += cells.shape[1]
        cells, flat, decided = _decide(plane, cells, level)
        open_cells.append(flat)
        found.append(decided)
        next_ones = 4 * cells.shape[1]
        if (
            level == plane.finest
            or judged + next_ones > _CELLS
            or (judged + next_ones) * plane.work > _WORK
        ):
            open_cells.append(cells)
            break
        cells = _quarters(cells)
        if not cells.size:
            break
    where, positive, slopes = zip(*found, strict=True)
    undecided = _joined(np.concatenate(open_cells, axis=1))
    joined = np.concatenate(where, axis=1), np.concatenate(positive), np.concatenate(slopes, axis=1)
    return _Cells(*joined), undecided


def _clipped_boxes(plane: _Plane, cells: np.ndarray) -> np.ndarray:
    """The boxes of cells, (n, 2, 2) in the form of `bounds`, as far as they are inside these."""
    boxes = plane.boxes(cells).T.reshape(-1, 2, 2)
    return np.clip(boxes, plane.bounds[:, :1], plane.bounds[:, 1:])


def _decide(plane: _Plane, cells: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray, _Cells]:
    """Of `cells`: what must be cut further, what is zero up to rounding and stays open, what is decided and has an arc.

    The sign of f at a corner is not known where |f| ≤ 2·rounding.  A cell that has such a corner is decided as if f
    were moved by so much around it: all cells there see the same sign, and if slopes times sides are well beyond
    (16·rounding), the moved f is as monotone as f is, and its curves lie as those of f.
    """
    noise = plane.rounding
    boxes = plane.boxes(cells)
    f, fx, fy, largest = plane.judge(boxes)
    flat = largest <= 16 * noise if noise < math.inf else np.ones(len(f), bool)
    open_cells = ~flat & (np.abs(f) <= 4 * noise)
    k = np.flatnonzero(open_cells & ((fx != 0) | (fy != 0)))
    box, slopes = boxes[:, k], np.stack([fx[k], fy[k]])
    corners = plane.margin(box[[[0, 2], [1, 2], [0, 3], [1, 3]]].transpose(2, 0, 1))
    unsure = np.abs(corners).min(axis=1, initial=math.inf) <= 2 * noise
    sides = np.stack([box[1] - box[0], box[3] - box[2]])
    least = np.where(unsure, 16 * noise, 0)
    steep = np.abs(slopes) * sides > least
    good = steep.all(axis=0)
    for axis in (
        0,
        1,
    ):  # monotone along this axis only: the two edges across it remain to be decided
        some = np.flatnonzero(steep[axis] & (slopes[1 - axis] == 0))
        good[some] = _edges_decided(plane, box[:, some], axis, least[some])
    positive = corners >= 0
    arc = positive.any(axis=1) & ~positive.all(axis=1)
    if level < _COARSEST:
        good &= ~arc
    open_cells[k[good]] = False
    with_arc = good & arc
    return (
        cells[:, open_cells],
        cells[:, flat],
        _Cells(cells[:, k[with_arc]], positive[with_arc], slopes[:, with_arc]),
    )


def _edges_decided(plane: _Plane, box: np.ndarray, axis: int, least: np.ndarray) -> np.ndarray:
    """Whether f has no zero, or is strictly monotone, on both edges at the lower and upper end of `axis`."""
    n = box.shape[1]
    edges = np.tile(box, 2)
    ends = box[2 * axis : 2 * axis + 2].reshape(-1)
    edges[2 * axis] = edges[2 * axis + 1] = ends
    along = 1 - axis
    length = edges[2 * along + 1] - edges[2 * along]
    gaps = plane.judge(edges)
    decided = (np.abs(gaps[0]) > 4 * plane.rounding) | (
        np.abs(gaps[1 + along]) * length > np.tile(least, 2)
    )
    return decided[:n] & decided[n:]


def _quarters(cells: np.ndarray) -> np.ndarray:
    i, j, side = cells
    half = side // 2
    columns, rows = (i, i + half, i, i + half), (j, j, j + half, j + half)
    return np.stack([np.concatenate(columns), np.concatenate(rows), np.tile(half, 4)])


def _joined(cells: np.ndarray) -> np.ndarray:
    """The same area, four quarters of a cell being that cell again."""
    done = []
    while cells.size:
        side = cells[2].min()
        fine = cells[2] == side
        rest, (i, j, _) = cells[:, ~fine], cells[:, fine]
        parents = np.stack([i, j]) // (2 * side) * (2 * side)
        key, index, count = np.unique(parents, axis=1, return_inverse=True, return_counts=True)
        whole = count == 4
        done.append(cells[:, fine][:, ~whole[index.reshape(-1)]])
        new = np.concatenate([key[:, whole], np.full((1, whole.sum()), 2 * side)])
        cells = np.concatenate([rest, new], axis=1)
    return np.concatenate([np.empty((3, 0), np.int64), *done], axis=1)


# ---- from cells to curves -----------------------------------------------------------------------------------------


def _curves(
    plane: _Plane, cells: _Cells, tol: float
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The curves, which are closed, and the cells in which chords are not proven to be close.

    1. where arcs leave their cells  2. who meets there  3. in the order of curves  4. points
    between  5. the box
    """
    if not cells.where.size:
        return [], np.zeros(0, bool), np.zeros(0, np.intp)
    ends = _ends(cells)
    partner, number = _meetings(ends)
    crossings = _crossings(plane, ends, number, tol)
    arcs, backwards, first, closed = _walk(partner.tolist(), ends.forward.tolist())
    begin, end = crossings[number[0::2]], crossings[number[1::2]]
    arc, t, points, loose = _refine(plane, cells, begin, end, tol)
    loose = np.union1d(loose, _vague(plane, arc, points, begin, end))
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
    return *_finished(plane, np.split(points, cuts)[:-1], closed), loose


def _vague(
    plane: _Plane, arc: np.ndarray, points: np.ndarray, begin: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """Arcs with a point that rounding may have moved by more than `_LOOSEST` of the box.

    f is so flat there that its zero is known no better, which no enclosure of slopes tells.
    """
    every = np.arange(len(begin))
    slopes = plane.gradient(np.concatenate([points, begin, end])) * plane.width
    known = plane.rounding <= _LOOSEST * np.hypot(*slopes.T)
    return np.concatenate([arc, every, every])[~known]


class _Ends(NamedTuple):
    """The two ends of every arc, one after the other: an edge of the arc's cell on which f changes its sign."""

    cell: np.ndarray
    vertical: np.ndarray  # bool
    line: np.ndarray  # which grid line the edge lies on
    start: np.ndarray  # where on it the edge begins
    side: np.ndarray  # its length
    rising: np.ndarray  # bool: f rises along the edge
    forward: np.ndarray  # bool: entering the cell here, f > 0 is to the left


def _ends(cells: _Cells) -> _Ends:
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
    """For every end the one it meets across the edge, or -1; and the one of the two whose edge is shorter.

    Edges with a change of sign on one side of a line are disjoint, each with one zero, and so are those on the other
    side; of two that share a zero one holds the other, as cells are nested.  So in the order along the line they are
    neighbours, and neighbours that overlap share a zero.
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


def _crossings(plane: _Plane, ends: _Ends, number: np.ndarray, tol: float) -> np.ndarray:
    """(number of ends, 2): the zero on the edge of each end that occurs in `number`."""
    points, k = np.empty((len(number), 2)), np.unique(number)
    axis, rows = ends.vertical[k].astype(np.intp), np.arange(len(k))
    lo, hi = (plane.line(axis, x) for x in (ends.start[k], ends.start[k] + ends.side[k]))
    start = np.empty((len(k), 2))
    start[rows, axis] = lo / 2 + hi / 2
    start[rows, 1 - axis] = plane.line(1 - axis, ends.line[k])
    points[k] = _solve(plane, start, axis, lo, hi, np.where(ends.rising[k], 1.0, -1.0), tol)
    return points


def _solve(
    plane: _Plane,
    points: np.ndarray,
    axis: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    rising: np.ndarray,
    tol: float,
) -> np.ndarray:
    """Move points along `axis` to the only zero in [lo, hi]: Newton's steps in it, bisection where they fail."""
    result, rows = points, np.arange(len(points))
    lo, hi = lo.copy(), hi.copy()
    p, slow = points.copy(), np.zeros(len(points), np.intp)
    for _ in range(200):
        if not len(rows):
            break
        every = np.arange(len(rows))
        x, f, slope = p[every, axis], plane.margin(p), plane.gradient(p)[every, axis]
        below, above = f * rising <= 0, f * rising >= 0
        before = hi - lo
        lo, hi = np.where(below, x, lo), np.where(above, x, hi)
        slow = np.where(hi - lo > before / 2, slow + 1, 0)
        step = f / slope
        new = x - step
        outside = ~((new >= lo) & (new <= hi)) | (slow > 3)
        slow[slow > 3] = 0
        middle = lo / 2 + hi / 2
        p[every, axis] = np.where(outside, middle, new)
        least = np.maximum(tol / 4, 2 * np.spacing(np.abs(x)))
        done = (~outside & (np.abs(step) <= least)) | (hi - lo <= 2 * np.spacing(np.abs(x)))
        if done.any():
            result[rows[done]] = p[done]
            left = ~done
            rows, p, axis, lo, hi, rising, slow = (
                a[left] for a in (rows, p, axis, lo, hi, rising, slow)
            )
    result[rows] = p
    return result


def _walk(
    partner: list[int], forward: list[bool]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Arcs in the order of curves, which are walked backwards, where each curve begins, and whether it is closed.

    Arc r has the ends 2r and 2r + 1, one of which is forward.
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


def _refine(
    plane: _Plane, cells: _Cells, a: np.ndarray, b: np.ndarray, tol: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points between the ends of arcs until chords are close: whose each is, where in (0, 1) along
    it, and the points; and the arcs of which that is not proven.

    A piece is cut where one input, in which f is not needed to be monotone, is half way; the other is solved for.
    """
    one_way = (cells.slopes == 0).any(axis=0)
    box, wide = plane.boxes(cells.where), cells.where[2] > _CHORD * 2**_FINEST
    arc: np.ndarray = np.arange(len(a))
    axis = (one_way & (cells.slopes[1] != 0)).astype(np.intp)  # solved for
    lo, hi = box[2 * axis, arc], box[2 * axis + 1, arc]
    s: np.ndarray = np.zeros(len(a))
    t, far, loose = s + 1, s > 0, [arc[:0]]
    found: list[tuple[np.ndarray, ...]] = [(arc[:0], s[:0], a[:0])]
    for turn in range(_TURNS + 1):
        chord = np.abs(b - a) / plane.width
        flatter = chord[:, 0] >= chord[:, 1]
        axis = np.where(one_way[arc], cells.slopes[1, arc] != 0, flatter).astype(np.intp)
        if turn < 2:  # most arcs need these cuts: no look is taken before
            far |= np.where(one_way[arc], wide[arc], chord.max(axis=1) > _CHORD)
        whole = _whole(a, b, axis) | (turn == _TURNS)
        close, k = np.zeros(len(arc), bool), np.flatnonzero(~far | whole)
        pieces = _Pieces(cells.slopes[:, arc[k]], a[k], b[k], axis[k], lo[k], hi[k])
        close[k], lo[k], hi[k] = _close(plane, pieces, tol)
        wanted = far | ~close
        whole |= np.bincount(arc, wanted, minlength=len(wide))[arc] > _PIECES  # no end is in sight
        loose.append(arc[whole & ~close])
        wanted &= ~whole
        arc, s, t, a, b, axis, lo, hi = (v[wanted] for v in (arc, s, t, a, b, axis, lo, hi))
        if not len(arc):
            break
        cell = box[2 * axis, arc], box[2 * axis + 1, arc]
        middle = _solve(plane, a / 2 + b / 2, axis, *cell, np.sign(cells.slopes[axis, arc]), tol)
        far = np.tile(_distance(middle, a, b, plane.width) > _CHORD, 2)
        m = s / 2 + t / 2
        found.append((arc, m, middle))
        arc, lo, hi = np.tile(arc, 2), np.tile(lo, 2), np.tile(hi, 2)
        s, t = np.concatenate([s, m]), np.concatenate([m, t])
        a, b = np.concatenate([a, middle]), np.concatenate([middle, b])
    arcs, places, points = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return arcs, places, points, np.unique(np.concatenate(loose))


def _whole(a: np.ndarray, b: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Pieces with no number in the middle of the input that is not number `axis`."""
    ends = np.where(axis == 0, [a[:, 1], b[:, 1]], [a[:, 0], b[:, 0]])
    return np.abs(ends[0] - ends[1]) <= 2 * np.spacing(np.abs(ends).max(axis=0))


class _Pieces(NamedTuple):
    """Pieces of arcs between points of the curve."""

    gaps: np.ndarray  # (2, n): what is known of ∂f/∂x and ∂f/∂y on the piece's cell, as in `_Cells`
    a: np.ndarray  # (n, 2)
    b: np.ndarray
    axis: np.ndarray  # number of the input v in which f is monotone; the other one is u
    lo: np.ndarray  # between which v is on all of the piece
    hi: np.ndarray


def _close(plane: _Plane, pieces: _Pieces, tol: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether a piece is proven to be nowhere further than `_CHORD` of the box from its chord; its
    lo and hi, narrowed.

    1. As a graph of a narrow range.  2. By its slopes on the box that it lies in.  3. The same once
    more, where f has the proper signs on lines v = constant next to the chord: f rises or falls
    along v, so that the curve stays between them.
    """
    swap = np.take_along_axis(pieces.a - pieces.b, 1 - pieces.axis[:, None], axis=1) > 0
    p = pieces._replace(a=np.where(swap, pieces.b, pieces.a), b=np.where(swap, pieces.a, pieces.b))
    p = _between_ends(p, tol)
    lo, hi, off = p.lo, p.hi, _off_by_range(plane, p, tol)
    for narrow in (False, True):
        k = np.flatnonzero(~(off <= _CHORD) & ((p.gaps == 0).any(axis=0) if narrow else True))
        if not len(k):
            break
        some = _Pieces(p.gaps[:, k], p.a[k], p.b[k], p.axis[k], lo[k], hi[k])
        if narrow:
            some = _narrower(plane, some)
            off[k] = _off_by_range(plane, some, tol)
        by_slopes, lo[k], hi[k] = _off_by_slopes(plane, some, tol)
        off[k] = np.fmin(off[k], by_slopes)
    return off <= _CHORD, lo, hi


def _slack(p: _Pieces, tol: float) -> np.ndarray:
    return 4 * np.maximum(tol, np.spacing(np.maximum(np.abs(p.lo), np.abs(p.hi))))


def _between_ends(p: _Pieces, tol: float) -> _Pieces:
    """Where f is monotone along both inputs so is the curve, and v lies between its ends; these may
    be `tol` off it.
    """
    rows, slack = np.arange(len(p.axis)), _slack(p, tol)
    v, both = (p.a[rows, p.axis], p.b[rows, p.axis]), (p.gaps != 0).all(axis=0)
    lo = np.where(both, np.minimum(*v) - slack, p.lo)
    return p._replace(lo=lo, hi=np.where(both, np.maximum(*v) + slack, p.hi))


def _off_by_range(plane: _Plane, p: _Pieces, tol: float) -> np.ndarray:
    """A bound of the curve's distance from the chord, of the box: u changes little, and v leaves
    the chord's range little.
    """
    rows = np.arange(len(p.axis))
    v = p.a[rows, p.axis], p.b[rows, p.axis]
    beyond = np.maximum(np.minimum(*v) - p.lo, p.hi - np.maximum(*v)) / plane.width[p.axis]
    across = (p.b - p.a)[rows, 1 - p.axis] / plane.width[1 - p.axis]
    return np.hypot(across, np.maximum(beyond, 0)) + 4 * tol / plane.width[p.axis]


def _off_by_slopes(
    plane: _Plane, p: _Pieces, tol: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Such a bound, and lo and hi, by enclosures of the slopes.

    The curve is a graph v(u), with slopes −f_u/f_v in [m, M] on the box that it lies in. So it
    stays between the lines with these slopes through either end: with gl and gh, by how much v
    rises more than m and less than M allow it, no further from the chord than gl gh / (gl + gh)
    along v. Where m and M have one sign the curve and the chord are monotone: then the distance is
    less, by the cosine of the chord's angle. Ends may be `tol` off the curve, which changes none of
    the bounds by more than 4 tol.
    """
    rows, other = np.arange(len(p.axis)), 1 - p.axis
    v0, v1, w = p.a[rows, p.axis], p.b[rows, p.axis], (p.b - p.a)[rows, other]
    least, most = np.minimum(v0, v1), np.maximum(v0, v1)
    m, M = _slopes(plane.slopes(_boxes(p, p.lo, p.hi)), p.gaps, p.axis)
    low, high = np.maximum(v1 - v0 - m * w, 0), np.maximum(M * w - (v1 - v0), 0)
    across, along = w / plane.width[other], (v1 - v0) / plane.width[p.axis]
    off = (1 / (1 / low + 1 / high) + 4 * tol) / plane.width[p.axis]
    off *= np.where((m >= 0) | (M <= 0), across / np.hypot(across, along), 1)
    share, slack = 1 / (1 + high / low), _slack(p, tol)
    lo = np.fmax(p.lo, np.fmin(least, v0 + m * (w * (1 - share))) - slack)
    hi = np.fmin(p.hi, np.fmax(most, v0 + M * (w * share)) + slack)
    return off, lo, hi


def _narrower(plane: _Plane, p: _Pieces) -> _Pieces:
    """With lo and hi next to the chord, where f has the sign beyond the curve on the whole line
    there.
    """
    rows, n = np.arange(len(p.axis)), len(p.axis)
    across = (p.b - p.a)[rows, 1 - p.axis] / plane.width[1 - p.axis]
    beside = np.maximum(_CHORD * 0.4, across / 2) * plane.width[p.axis]
    v = p.a[rows, p.axis], p.b[rows, p.axis]
    lo, hi = np.minimum(*v) - beside, np.maximum(*v) + beside
    lines = np.concatenate([_boxes(p, lo, lo), _boxes(p, hi, hi)], axis=1)
    signs = np.sign(plane.judge(lines)[0]) * np.tile(np.sign(p.gaps[p.axis, rows]), 2)
    lo = np.where((signs[:n] < 0) & (lo > p.lo), lo, p.lo)
    return p._replace(lo=lo, hi=np.where((signs[n:] > 0) & (hi < p.hi), hi, p.hi))


def _boxes(p: _Pieces, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """x0, x1, y0, y1 (4, n): what the pieces cover in u, and from lo to hi in v."""
    rows, other = np.arange(len(p.axis)), 1 - p.axis
    boxes = np.empty((4, len(rows)))
    boxes[2 * other, rows], boxes[2 * other + 1, rows] = p.a[rows, other], p.b[rows, other]
    boxes[2 * p.axis, rows], boxes[2 * p.axis + 1, rows] = lo, hi
    return boxes


def _slopes(
    ranges: np.ndarray, gaps: np.ndarray, axis: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The least and largest slope −f_u/f_v for the `ranges` (4, n) of ∂f/∂x and ∂f/∂y; v is input
    number `axis`.

    `gaps` (2, n): what is known of these on the whole cell, the end next to zero, or 0.
    """
    rows, other = np.arange(len(axis)), 1 - axis
    least = np.where(gaps > 0, np.fmax(ranges[::2], gaps), ranges[::2])
    most = np.where(gaps < 0, np.fmin(ranges[1::2], gaps), ranges[1::2])
    u0, u1, v0, v1 = least[other, rows], most[other, rows], least[axis, rows], most[axis, rows]
    ratios = -np.stack([u0 / v0, u0 / v1, u1 / v0, u1 / v1])
    m, M = ratios.min(axis=0), ratios.max(axis=0)  # NaN if one is
    m, M = m - 4 * _U * np.abs(m), M + 4 * _U * np.abs(M)
    known = (v0 <= v1) & ((v0 > 0) | (v1 < 0)) & ~np.isnan(m)
    return np.where(known, m, -np.inf), np.where(known, M, np.inf)


def _distance(p: np.ndarray, a: np.ndarray, b: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Of p from the chord from a to b, the box being a square of side 1."""
    d, e = (b - a) / width, (p - a) / width
    t = np.clip((d * e).sum(axis=1) / np.maximum((d * d).sum(axis=1), 1e-300), 0, 1)
    return np.hypot(*(e - t[:, None] * d).T)


def _finished(
    plane: _Plane, curves: list[np.ndarray], closed: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """Inside the bounds, no point twice in a row, and nothing that only touches the box from outside."""
    lo, hi = plane.bounds.T
    ends = [row for curve in curves for row in (curve[0], curve[-1])]
    corrected = _on_the_edges(plane, np.array(ends))
    points, kept = [], []
    for k, is_closed in enumerate(closed.tolist()):
        curve = np.clip(curves[k], lo, hi)
        if not is_closed:
            curve[0], curve[-1] = corrected[2 * k], corrected[2 * k + 1]
        curve = curve[np.append(True, (curve[1:] != curve[:-1]).any(axis=1))]
        if is_closed or (np.ptp(curve, axis=0) / plane.width).max() > 16 * _MARGIN:
            points.append(curve)
            kept.append(is_closed)
    return points, np.array(kept, bool)


def _on_the_edges(plane: _Plane, points: np.ndarray) -> np.ndarray:
    """Points moved from the box that was judged onto the edges of the bounds, and along them back onto the curve."""
    clipped = np.clip(points, *plane.bounds.T)
    moved = clipped != points
    g, f = plane.gradient(clipped), plane.margin(clipped)
    step = np.where(moved[:, ::-1] & ~moved, f[:, None] / g, 0)
    step[~(np.abs(step) <= 16 * np.abs(clipped - points).max(axis=1, initial=0)[:, None])] = 0
    return np.clip(clipped - step, *plane.bounds.T)
