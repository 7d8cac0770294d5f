"""Points between the ends of arcs, until every chord is proven to be close to the curve."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._cells import Cells
from ._section import FINEST, Section, zeros_along

_U = 2.0**-53
_CHORD = 1e-3  # of the box: how far a curve may be from a chord
_TURNS, _PIECES = 60, 2**10  # limits: how often an arc is halved, and its pieces at once


def refined(
    section: Section, cells: Cells, a: np.ndarray, b: np.ndarray, tol: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points between the ends a and b of arcs, until chords are close.

    Returns the arc of every point, where in (0, 1) along it the point is, the points, and the arcs
    of which it is not proven that chords are close.  A piece is cut where one input is half way,
    in which f need not be monotone; the other input is solved for.
    """
    one_way = (cells.slopes == 0).any(axis=0)
    box, wide = section.boxes(cells.where), cells.where[2] > _CHORD * 2**FINEST
    arc: np.ndarray = np.arange(len(a))
    axis = (one_way & (cells.slopes[1] != 0)).astype(np.intp)  # solved for
    lo, hi = box[2 * axis, arc], box[2 * axis + 1, arc]
    s: np.ndarray = np.zeros(len(a))
    t, far, loose = s + 1, s > 0, [arc[:0]]
    found: list[tuple[np.ndarray, ...]] = [(arc[:0], s[:0], a[:0])]
    for turn in range(_TURNS + 1):
        chord = np.abs(b - a) / section.width
        flatter = chord[:, 0] >= chord[:, 1]
        axis = np.where(one_way[arc], cells.slopes[1, arc] != 0, flatter).astype(np.intp)
        if turn < 2:  # most arcs need these cuts: no look is taken before
            far |= np.where(one_way[arc], wide[arc], chord.max(axis=1) > _CHORD)
        whole = _whole(a, b, axis) | (turn == _TURNS)
        close, k = np.zeros(len(arc), bool), np.flatnonzero(~far | whole)
        pieces = _Pieces(cells.slopes[:, arc[k]], a[k], b[k], axis[k], lo[k], hi[k])
        close[k], lo[k], hi[k] = _close(section, pieces, tol)
        wanted = far | ~close
        whole |= np.bincount(arc, wanted, minlength=len(wide))[arc] > _PIECES  # no end is in sight
        loose.append(arc[whole & ~close])
        wanted &= ~whole
        arc, s, t, a, b, axis, lo, hi = (v[wanted] for v in (arc, s, t, a, b, axis, lo, hi))
        if not len(arc):
            break
        cell = box[2 * axis, arc], box[2 * axis + 1, arc]
        middle = zeros_along(
            section, a / 2 + b / 2, axis, *cell, np.sign(cells.slopes[axis, arc]), tol
        )
        far = np.tile(_distance(middle, a, b, section.width) > _CHORD, 2)
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

    gaps: np.ndarray  # (2, n): what is known of ∂f/∂x and ∂f/∂y on the piece's cell, as in `Cells`
    a: np.ndarray  # (n, 2)
    b: np.ndarray
    axis: np.ndarray  # number of the input v in which f is monotone; the other one is u
    lo: np.ndarray  # between which v is on all of the piece
    hi: np.ndarray


def _close(
    section: Section, pieces: _Pieces, tol: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether a piece is proven to be nowhere further than `_CHORD` of the box from its chord; its
    lo and hi, narrowed.

    1. As a graph of a narrow range.  2. By its slopes on the box that it lies in.  3. The same once
    more, where f has the proper signs on lines v = constant next to the chord: f rises or falls
    along v, so that the curve stays between them.
    """
    swap = np.take_along_axis(pieces.a - pieces.b, 1 - pieces.axis[:, None], axis=1) > 0
    p = pieces._replace(a=np.where(swap, pieces.b, pieces.a), b=np.where(swap, pieces.a, pieces.b))
    p = _between_ends(p, tol)
    lo, hi, off = p.lo, p.hi, _off_by_range(section, p, tol)
    for narrow in (False, True):
        k = np.flatnonzero(~(off <= _CHORD) & ((p.gaps == 0).any(axis=0) if narrow else True))
        if not len(k):
            break
        some = _Pieces(p.gaps[:, k], p.a[k], p.b[k], p.axis[k], lo[k], hi[k])
        if narrow:
            some = _narrower(section, some)
            off[k] = _off_by_range(section, some, tol)
        by_slopes, lo[k], hi[k] = _off_by_slopes(section, some, tol)
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


def _off_by_range(section: Section, p: _Pieces, tol: float) -> np.ndarray:
    """A bound of the curve's distance from the chord, of the box: u changes little, and v leaves
    the chord's range little.
    """
    rows = np.arange(len(p.axis))
    v = p.a[rows, p.axis], p.b[rows, p.axis]
    beyond = np.maximum(np.minimum(*v) - p.lo, p.hi - np.maximum(*v)) / section.width[p.axis]
    across = (p.b - p.a)[rows, 1 - p.axis] / section.width[1 - p.axis]
    return np.hypot(across, np.maximum(beyond, 0)) + 4 * tol / section.width[p.axis]


def _off_by_slopes(
    section: Section, p: _Pieces, tol: float
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
    m, M = _slopes(section.slopes(_boxes(p, p.lo, p.hi)), p.gaps, p.axis)
    low, high = np.maximum(v1 - v0 - m * w, 0), np.maximum(M * w - (v1 - v0), 0)
    across, along = w / section.width[other], (v1 - v0) / section.width[p.axis]
    off = (1 / (1 / low + 1 / high) + 4 * tol) / section.width[p.axis]
    off *= np.where((m >= 0) | (M <= 0), across / np.hypot(across, along), 1)
    share, slack = 1 / (1 + high / low), _slack(p, tol)
    lo = np.fmax(p.lo, np.fmin(least, v0 + m * (w * (1 - share))) - slack)
    hi = np.fmin(p.hi, np.fmax(most, v0 + M * (w * share)) + slack)
    return off, lo, hi


def _narrower(section: Section, p: _Pieces) -> _Pieces:
    """With lo and hi next to the chord, where f has the sign beyond the curve on the whole line
    there.
    """
    rows, n = np.arange(len(p.axis)), len(p.axis)
    across = (p.b - p.a)[rows, 1 - p.axis] / section.width[1 - p.axis]
    beside = np.maximum(_CHORD * 0.4, across / 2) * section.width[p.axis]
    v = p.a[rows, p.axis], p.b[rows, p.axis]
    lo, hi = np.minimum(*v) - beside, np.maximum(*v) + beside
    lines = np.concatenate([_boxes(p, lo, lo), _boxes(p, hi, hi)], axis=1)
    signs = np.sign(section.judge(lines)[0]) * np.tile(np.sign(p.gaps[p.axis, rows]), 2)
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
