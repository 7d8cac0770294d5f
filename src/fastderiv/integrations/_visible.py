"""The part of a decision boundary that is seen in a plane: where the two outputs that tie lead."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .. import SigmoidMLP, trace_boundary

Pair = tuple[int, int]


class Place(NamedTuple):
    """The plane of two inputs that is shown."""

    coordinates: Sequence[int]  # the two of them
    at: np.ndarray  # (n_inputs,): the other inputs

    def inputs(self, points: np.ndarray) -> np.ndarray:
        """Inputs of the network at points (m, 2) of the plane."""
        X = np.tile(self.at, (len(points), 1))
        X[:, list(self.coordinates)] = points
        return X


def visible(
    net: SigmoidMLP, bounds: np.ndarray, coordinates: Pair, at: ArrayLike | None, tol: float
) -> tuple[dict[Pair, list[np.ndarray]], np.ndarray]:
    """For each two outputs the curves on which they tie and lead, and boxes that may hold more."""
    curves: dict[Pair, list[np.ndarray]] = {}
    boxes = [np.zeros((0, 2, 2))]
    for pair in combinations(range(max(net.n_outputs, 2)), 2):
        traced = trace_boundary(net, bounds, coordinates=coordinates, at=at, outputs=pair, tol=tol)
        place = Place(coordinates, np.array(at, np.float64))
        boxes.append(_may_lead(net, traced.undecided, pair, place))
        curves[pair] = [
            part for points in traced.points for part in _leading(net, points, pair, place)
        ]
    return curves, np.concatenate(boxes)


def _leading(net: SigmoidMLP, points: np.ndarray, pair: Pair, place: Place) -> list[np.ndarray]:
    """The parts of a curve on which no third output is larger, cut where one becomes so."""
    if net.n_outputs < 3:
        return [points]
    logits = net.logits(place.inputs(points))
    others = np.delete(logits, pair, axis=1)
    third = np.delete(np.arange(net.n_outputs), pair)[others.argmax(axis=1)]
    lead = logits[:, pair[0]] - others.max(axis=1)
    parts: list[list[np.ndarray]] = [[]]
    for k, point in enumerate(points):
        if k and (lead[k] > 0) != (lead[k - 1] > 0):
            before = points[k - 1]
            start = before + lead[k - 1] / (lead[k - 1] - lead[k]) * (point - before)
            other = third[k] if lead[k] <= 0 else third[k - 1]
            reach = float(np.hypot(*(point - before)))
            parts[-1].append(_triple(net, start, (*pair, int(other)), place, reach))
            if lead[k] <= 0:
                parts.append([])
        if lead[k] > 0:
            parts[-1].append(point)
    cut = len(parts) > 1 and len(parts[-1]) > 0 and lead[0] > 0
    if cut and np.array_equal(points[0], points[-1]):
        # a closed curve, cut, begins where its last part ends
        parts[0] = parts.pop()[:-1] + parts[0]
    return [np.array(part) for part in parts if len(part) > 1]


def _triple(
    net: SigmoidMLP,
    start: np.ndarray,
    outputs: tuple[int, int, int],
    place: Place,
    reach: float,
) -> np.ndarray:
    """Where three outputs tie, by Newton's method in two variables.

    It is `start` if that leads further away than `reach`.
    """
    i, j, k = outputs
    columns, p = list(place.coordinates), start
    for _ in range(8):
        X = place.inputs(p[None])
        f = np.array([net.margin(X, (i, j))[0], net.margin(X, (i, k))[0]])
        J = np.stack([net.margin_gradient(X, pair)[0, columns] for pair in ((i, j), (i, k))])
        try:
            p = p - np.linalg.solve(J, f)
        except np.linalg.LinAlgError:
            return start
    return p if np.hypot(*(p - start)) <= reach else start


def _may_lead(net: SigmoidMLP, boxes: np.ndarray, pair: Pair, place: Place) -> np.ndarray:
    """The boxes in which the pair may lead.

    In the middle or at a corner of them no third output is larger than both of the pair.
    """
    if net.n_outputs < 3 or not len(boxes):
        return boxes
    x, y = boxes[:, 0], boxes[:, 1]
    points = np.stack([x[:, [0, 1, 0, 1]], y[:, [0, 0, 1, 1]]], axis=-1)
    points = np.concatenate([points, boxes.mean(axis=2)[:, None]], axis=1)
    logits = net.logits(place.inputs(points.reshape(-1, 2)))
    leads = logits[:, pair].max(axis=1) >= np.delete(logits, pair, axis=1).max(axis=1)
    return boxes[leads.reshape(len(boxes), 5).any(axis=1)]
