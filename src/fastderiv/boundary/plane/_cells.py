"""The plane cut into cells, until it is decided whether one arc of the boundary runs through each.

A cell is decided if f ≠ 0 on it, or if f is strictly monotone in one of the two inputs and has at
most one zero on each of its four edges.  Then the signs of f at its corners tell everything: they
are all the same and no curve comes by, or they change on exactly two edges and one arc joins these.
(Were there four changes, two opposite edges would rise in opposite directions.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ._section import FINEST, FIRST, Section

_COARSEST = 4  # a cell with an arc in it is at most 2**-_COARSEST of the box's side
_CELLS, _WORK = 2**19, 4e10  # limits of the subdivision: cells judged, and multiply–adds


class Cells(NamedTuple):
    """Decided cells that the boundary runs through."""

    where: np.ndarray  # (3, n): column, row, side
    positive: np.ndarray  # (n, 4) bool, at the corners
    slopes: np.ndarray  # (2, n): gaps of ∂f/∂x and ∂f/∂y to zero, with their signs; not both are 0


def subdivide(section: Section) -> tuple[Cells, np.ndarray]:
    """The cells with an arc, and those that could not be decided.

    All cells of one size are judged before they are cut: what a limit leaves open is as fine
    everywhere.
    """
    side = 2 ** (FINEST - FIRST)
    grid = np.arange(2**FIRST) * side
    cells = np.stack([*(a.ravel() for a in np.meshgrid(grid, grid)), np.full(4**FIRST, side)])
    found, open_cells, judged = [], [np.empty((3, 0), np.int64)], 0
    for level in range(FIRST, section.finest + 1):
        judged += cells.shape[1]
        cells, flat, decided = _decide(section, cells, level)
        open_cells.append(flat)
        found.append(decided)
        next_ones = 4 * cells.shape[1]
        if (
            level == section.finest
            or judged + next_ones > _CELLS
            or (judged + next_ones) * section.work > _WORK
        ):
            open_cells.append(cells)
            break
        cells = _quarters(cells)
        if not cells.size:
            break
    where, positive, slopes = zip(*found, strict=True)
    undecided = _joined(np.concatenate(open_cells, axis=1))
    joined = np.concatenate(where, axis=1), np.concatenate(positive), np.concatenate(slopes, axis=1)
    return Cells(*joined), undecided


def _decide(
    section: Section, cells: np.ndarray, level: int
) -> tuple[np.ndarray, np.ndarray, Cells]:
    """Of `cells`: those to be cut further, those that stay open, and those decided with an arc.

    A cell stays open if f is zero up to rounding on it.

    The sign of f at a corner is not known where |f| ≤ 2·rounding.  A cell that has such a corner is
    decided as if f were moved by so much around it: all cells there see the same sign, and if
    slopes times sides are well beyond (16·rounding), the moved f is as monotone as f is, and its
    curves lie as those of f.
    """
    noise = section.rounding
    boxes = section.boxes(cells)
    f, fx, fy, largest = section.judge(boxes)
    flat = largest <= 16 * noise if noise < math.inf else np.ones(len(f), bool)
    open_cells = ~flat & (np.abs(f) <= 4 * noise)
    k = np.flatnonzero(open_cells & ((fx != 0) | (fy != 0)))
    box, slopes = boxes[:, k], np.stack([fx[k], fy[k]])
    corners = section.margin(box[[[0, 2], [1, 2], [0, 3], [1, 3]]].transpose(2, 0, 1))
    unsure = np.abs(corners).min(axis=1, initial=math.inf) <= 2 * noise
    sides = np.stack([box[1] - box[0], box[3] - box[2]])
    least = np.where(unsure, 16 * noise, 0)
    steep = np.abs(slopes) * sides > least
    good = steep.all(axis=0)
    for axis in (0, 1):  # if f is monotone along it only, the two edges across remain open
        some = np.flatnonzero(steep[axis] & (slopes[1 - axis] == 0))
        good[some] = _edges_decided(section, box[:, some], axis, least[some])
    positive = corners >= 0
    arc = positive.any(axis=1) & ~positive.all(axis=1)
    if level < _COARSEST:
        good &= ~arc
    open_cells[k[good]] = False
    with_arc = good & arc
    return (
        cells[:, open_cells],
        cells[:, flat],
        Cells(cells[:, k[with_arc]], positive[with_arc], slopes[:, with_arc]),
    )


def _edges_decided(section: Section, box: np.ndarray, axis: int, least: np.ndarray) -> np.ndarray:
    """Whether f has no zero, or is strictly monotone, on both edges at the ends of `axis`."""
    n = box.shape[1]
    edges = np.tile(box, 2)
    ends = box[2 * axis : 2 * axis + 2].reshape(-1)
    edges[2 * axis] = edges[2 * axis + 1] = ends
    along = 1 - axis
    length = edges[2 * along + 1] - edges[2 * along]
    gaps = section.judge(edges)
    decided = (np.abs(gaps[0]) > 4 * section.rounding) | (
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


def clipped_boxes(section: Section, cells: np.ndarray) -> np.ndarray:
    """The boxes of cells, (n, 2, 2) in the form of `bounds`, as far as they are inside these."""
    boxes = section.boxes(cells).T.reshape(-1, 2, 2)
    return np.clip(boxes, section.bounds[:, :1], section.bounds[:, 1:])
