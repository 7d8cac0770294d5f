"""Margin: two outputs of a network, their difference, and what is compiled of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .._core import arrays
from .._core.fpstate import ieee
from ._compiled import kernels

if TYPE_CHECKING:
    from ._kernels import Solver
    from ._network import SigmoidMLP

Outputs = Sequence[int] | np.ndarray
Pair = tuple[int, int]
_EPS = float(np.finfo(float).eps)  # 2u: twice what one operation is wrong by, relatively


class OneOutput:
    """A compiled network with one output: its values and gradients at rows of inputs."""

    def __init__(self, weights: tuple[np.ndarray, ...], biases: tuple[np.ndarray, ...]) -> None:
        self.program = kernels.Program(weights, biases)

    def values(self, points: np.ndarray) -> np.ndarray:
        """(m,) at points (m, n_inputs); a point has the same bits wherever it is met."""
        out = np.empty(len(points))
        self.program.evaluate(points, out, False)
        return out

    def gradients(self, points: np.ndarray) -> np.ndarray:
        """(m, n_inputs) at points (m, n_inputs)."""
        out = np.empty(points.shape)
        self.program.gradient(points, out)
        return out

    def at(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """The value and the gradient (n_inputs,) at one point."""
        row = point[None]
        return float(self.values(row)[0]), self.gradients(row)[0]


class Margin:
    """The margin between two outputs, z_a − z_b, or the logit if the network has one output.

    Everything that is derived from it is made when it is first asked for, and then kept.  There is
    no reference to the network, so that both end as soon as nobody uses the network any more.

    Attributes
    ----------
    pair : (a, b), or None if the network has one output
    weights, biases : those of the network
    solvers : what finds ties along an input, and the bound of their number, by that input
    """

    def __init__(self, net: SigmoidMLP, outputs: Outputs) -> None:
        self.pair = pair_of(net.n_outputs, outputs)
        self.weights, self.biases = net.weights, net.biases
        self.solvers: dict[int, tuple[Solver, int | None]] = {}

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """The last layer's weights and bias (n + 1,) of either output; a single one leads zero."""
        v, c = self.weights[-1], self.biases[-1]
        if self.pair is None:
            return np.append(v[:, 0], c[0]), np.zeros(len(v) + 1)
        a, b = self.pair
        return np.append(v[:, a], c[a]), np.append(v[:, b], c[b])

    @cached_property
    def difference(self) -> tuple[np.ndarray, np.ndarray]:
        """The last layer's weights d (n,) and bias Δc (1,); infinite where they overflow."""
        first, second = self.columns()
        with ieee(), np.errstate(all="ignore"):
            difference = first - second
        return difference[:-1], difference[-1:]

    @cached_property
    def layers(self) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """Weights and biases of the network whose only output is the margin."""
        d, dc = self.difference
        return (*self.weights[:-1], d[:, None]), (*self.biases[:-1], dc)

    @cached_property
    def compiled(self) -> OneOutput:
        return OneOutput(*self.layers)

    @cached_property
    def noise(self) -> float:
        """What rounding may add to a margin: within, it cannot be told from zero."""
        d, dc = self.difference
        with ieee(), np.errstate(all="ignore"):
            return 8 * _EPS * float(abs(d).sum() + abs(dc[0]))


def pair_of(n_outputs: int, outputs: Outputs, expected: str = "a pair of integers") -> Pair | None:
    """`outputs` as two numbers from 0 on; None for the two classes that one output tells apart."""
    if n_outputs > 1:
        return arrays.pair("outputs", outputs, n_outputs, "outputs", expected)
    arrays.pair("outputs", outputs, 2, "classes", expected)
    return None
