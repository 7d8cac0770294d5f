"""The margin as a function of two inputs in a box, and bounds of what rounding does to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..._core import arrays
from .._compiled import kernels
from .._margin import OneOutput, Outputs
from .._network import SigmoidMLP, check_names, check_network, margin_of

_U = 2.0**-53
FINEST = 30  # a cell's side is at least 2**-FINEST of the box's
FIRST = 3  # subdivision starts with 2**FIRST cells a side
MARGIN = 2.0**-40  # by how much more than its width the box is judged, on each side
_BEND = np.array([0.0371, -0.0523])  # of the grid lines


class Section:
    """The margin as a function of two inputs, over a box a little wider than the bounds.

    It is cut by a grid of 2**FINEST cells a side.  Grid lines lie beside the middles, as networks
    with symmetries have their boundary exactly there.

    Attributes
    ----------
    compiled : the margin of the two inputs
    work : multiply–adds of one evaluation
    errors, rounding : what rounding may do to sums inside, as `judge_boxes` takes it; and to f
    bounds, lo, hi, width : what is asked for, and the box that is judged
    finest : how often a cell may be quartered
    """

    def __init__(
        self,
        compiled: OneOutput,
        work: int,
        errors: np.ndarray,
        rounding: float,
        bounds: np.ndarray,
    ) -> None:
        self.compiled, self.work, self.bounds = compiled, work, bounds
        self.errors, self.rounding = errors, rounding
        width, largest = bounds[:, 1] - bounds[:, 0], np.abs(bounds).max(axis=1)
        more = np.maximum(MARGIN * width, 4 * np.spacing(largest))
        self.lo, self.hi = bounds[:, 0] - more * [1, 1.125], bounds[:, 1] + more * [1.25, 1.375]
        self.width = self.hi - self.lo
        room = np.log2(self.width / np.spacing(largest)).min()
        self.finest = int(np.clip(room - 2, FIRST, FINEST)) if np.isfinite(room) else FIRST

    def line(self, axis: int | np.ndarray, k: np.ndarray) -> np.ndarray:
        """Where grid line k of 2**FINEST is."""
        t = k * 2.0**-FINEST
        t += _BEND[axis] * t * (1 - t)
        return np.where(k == 2**FINEST, self.hi[axis], self.lo[axis] + self.width[axis] * t)

    def boxes(self, cells: np.ndarray) -> np.ndarray:
        """x0, x1, y0, y1 (4, n) of cells (3, n): column, row, side."""
        i, j, side = cells
        return np.stack(
            [self.line(0, i), self.line(0, i + side), self.line(1, j), self.line(1, j + side)]
        )

    def judge(self, boxes: np.ndarray) -> np.ndarray:
        """(4, n): gaps of f, ∂f/∂x, ∂f/∂y to zero over the boxes (4, n), and the largest |f|."""
        return kernels.judge_boxes(self.compiled.program, self.errors, boxes)

    def slopes(self, boxes: np.ndarray) -> np.ndarray:
        """(4, n): the least and largest ∂f/∂x over the boxes (4, n), and those of ∂f/∂y."""
        return kernels.judge_boxes(self.compiled.program, self.errors, boxes, slopes=True)

    def margin(self, points: np.ndarray) -> np.ndarray:
        """(…,) at points (…, 2)."""
        return self.compiled.values(points.reshape(-1, 2)).reshape(points.shape[:-1])

    def gradient(self, points: np.ndarray) -> np.ndarray:
        return self.compiled.gradients(points)


def section_of(
    net: SigmoidMLP,
    bounds: Sequence[ArrayLike] | np.ndarray,
    coordinates: Sequence[int] | np.ndarray,
    at: ArrayLike | None,
    outputs: Outputs,
) -> Section:
    """The checked arguments: every error is raised here."""
    check_network(net)
    if net.n_inputs < 2:
        raise ValueError(f"net has {net.n_inputs} input; expected at least two")
    pair = list(arrays.pair("coordinates", coordinates, net.n_inputs, "inputs"))
    box = _box(bounds)
    others = _others(net, at, pair)
    weights, biases = margin_of(net, outputs).layers
    # here and below not by BLAS, whose bits may depend on its threads
    terms = others[:, None] * weights[0]
    shift = biases[0] + terms.sum(axis=0)
    shift_error = (net.n_inputs + 2) * _U * (np.abs(biases[0]) + np.abs(terms).sum(axis=0))
    weights = (np.ascontiguousarray(weights[0][pair]), *weights[1:])
    biases = (shift, *biases[1:])
    errors, rounding = _rounding(weights, biases, shift_error, box)
    work = sum(w.size for w in weights)
    return Section(OneOutput(weights, biases), work, errors, rounding, box)


def _rounding(
    weights: tuple, biases: tuple, shift_error: np.ndarray, box: np.ndarray
) -> tuple[np.ndarray, float]:
    """What rounding may do to every unit's sum over exact terms, and to its value at a point.

    Both are bounds in the order that `judge_boxes` expects; the last one is that of the margin.

    The first layer's s + a x + b y is off by 5u (|s| + |a x| + |b y|) and the error of s.  A sum of
    n terms is off by (n + 4) u of the terms' magnitudes, as σ ≤ 1.  Through σ an error shrinks to a
    quarter at least, and σ itself is off by 3u.  Proof: docs/rounding.md.
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
                f"at is None; expected (n_inputs,) = ({net.n_inputs},), "
                "the values of the other inputs"
            )
        return np.zeros(2)
    check_names(net, "at", at, row=True)
    others = np.array(arrays.float64("at", at))
    arrays.expect("at", others, (net.n_inputs,), "(n_inputs,)")
    others[pair] = 0
    return arrays.finite("at", others)


def zeros_along(
    section: Section,
    points: np.ndarray,
    axis: np.ndarray,
    lo: np.ndarray,
    hi: np.ndarray,
    rising: np.ndarray,
    tol: float,
) -> np.ndarray:
    """`points` moved along `axis` to the only zero in [lo, hi]; `rising` is the sign of the slope.

    By Newton's steps as long as they stay inside and are quick, else by bisection.
    """
    result, rows = points, np.arange(len(points))
    lo, hi = lo.copy(), hi.copy()
    p, slow = points.copy(), np.zeros(len(points), np.intp)
    for _ in range(200):
        if not len(rows):
            break
        every = np.arange(len(rows))
        x, f, slope = p[every, axis], section.margin(p), section.gradient(p)[every, axis]
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
