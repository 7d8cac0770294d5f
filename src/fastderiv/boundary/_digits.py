"""The order of two outputs at one point, proven in as many decimal digits as it takes.

Every quantity is an interval [lower, upper] of decimal numbers, rounded outward; floats are decimal
numbers exactly. `decimal` rounds exp correctly, so that the next number below and the next above
enclose it.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, ROUND_FLOOR, Context, Decimal

import numpy as np

from ._network import SigmoidMLP

_DIGITS = (40, 160, 640)  # one after the other: the last one tells e^(-1400) from nothing beside 1
_ZERO, _ONE = Decimal(0), Decimal(1)

Interval = tuple[Decimal, Decimal]


class Point:
    """A network at one point x, float64 (n_inputs,): which of two outputs is the larger there."""

    def __init__(self, net: SigmoidMLP, x: np.ndarray) -> None:
        self._net, self._x = net, x
        self._last: dict[int, list[Interval]] = {}  # digits -> what the last weights multiply

    def leader(self, first: int, second: int | None) -> int:
        """1 if output `first` is proven to exceed `second`, -1 if it is proven to be less, else 0.

        None stands for zero.
        """
        w, b = self._net.weights[-1], self._net.biases[-1]
        for digits in _DIGITS:
            arithmetic = _Arithmetic(digits)
            weights = [_difference(arithmetic, row, first, second) for row in w]
            lower, upper = arithmetic.total(
                _difference(arithmetic, b, first, second), weights, self._inputs(digits)
            )
            if lower > 0 or upper < 0:
                return 1 if lower > 0 else -1
        return 0

    def _inputs(self, digits: int) -> list[Interval]:
        """The last layer's inputs: the point itself, or the last hidden layer's units."""
        if digits not in self._last:
            arithmetic = _Arithmetic(digits)
            y: list[Interval] = [_exact(v) for v in self._x.tolist()]
            for w, b in zip(self._net.weights[:-1], self._net.biases[:-1], strict=True):
                columns = zip(b.tolist(), w.T.tolist(), strict=True)
                y = [
                    arithmetic.sigmoid(arithmetic.total(_exact(c), map(_exact, row), y))
                    for c, row in columns
                ]
            self._last[digits] = y
        return self._last[digits]


def _exact(value: float) -> Interval:
    number = Decimal(value)
    return number, number


def _difference(
    arithmetic: _Arithmetic, row: np.ndarray, first: int, second: int | None
) -> Interval:
    a, b = Decimal(float(row[first])), _ZERO if second is None else Decimal(float(row[second]))
    return arithmetic.down.subtract(a, b), arithmetic.up.subtract(a, b)


class _Arithmetic:
    """Intervals of so many digits.

    Nothing traps, and no exponent of a network's numbers is beyond the range.
    """

    def __init__(self, digits: int) -> None:
        self.down, self.up = (
            Context(digits, way, MIN_EMIN, MAX_EMAX, capitals=1, clamp=0, flags=[], traps=[])
            for way in (ROUND_FLOOR, ROUND_CEILING)
        )

    def total(
        self, start: Interval, weights: Iterable[Interval], values: list[Interval]
    ) -> Interval:
        """start + Σ w y; both ends of a w have the same sign."""
        lower, upper = start
        for (w0, w1), (y0, y1) in zip(weights, values, strict=True):
            least, most = (y0, y1) if w0 >= 0 else (y1, y0)
            lower = self.down.fma(w0 if least >= 0 else w1, least, lower)
            upper = self.up.fma(w1 if most >= 0 else w0, most, upper)
        return lower, upper

    def sigmoid(self, z: Interval) -> Interval:
        """1 / (1 + e^(−z)), which rises."""
        lower, upper = z
        most = self.up.next_plus(self.up.exp(lower.copy_negate()))
        least = max(_ZERO, self.down.next_minus(self.down.exp(upper.copy_negate())))
        below, above = self.up.add(_ONE, most), self.down.add(_ONE, least)
        return self.down.divide(_ONE, below), self.up.divide(_ONE, above)
