"""The margin's last layer, with an exact bound of what rounding did to its numbers."""

from __future__ import annotations

import math

import numpy as np

from .._margin import Margin
from ._exact import integers
from ._units import Unit, equal_units

_TINY = 5e-324


class LastLayer:
    """The last layer Σ d_i y_i + c of one hidden layer's margin, scaled by a power of two.

    Its largest number is about 1.  d (n,) and c are rounded; `error` bounds Σ|d_i − exact d_i| +
    |c − exact c|.  Units that are equal for every input are one, and so are opposite ones, as
    σ(−z) = 1 − σ(z): the first stands for all, with the sum of their d_i.  `used` says which units
    are left and do not have a d_i of exactly 0.
    """

    def __init__(self, margin: Margin) -> None:
        first, second = margin.columns()
        exponent = max(0, math.frexp(max(np.abs(first).max(), np.abs(second).max()))[1] - 1000)
        lost = len(first) * _TINY if exponent else 0.0  # bits shifted out to avoid an overflow
        self._columns, self.used = (first, second), (first != second)[:-1]
        first, second = np.ldexp(first, -exponent), np.ldexp(second, -exponent)
        difference = first - second
        back = difference - first
        rest = (first - (difference - back)) - (second + back)  # exactly
        self._joined: dict[int, Unit] = {}  # unit, or −1 for c -> the units whose d it takes
        self._merge(equal_units(np.vstack([margin.weights[0], margin.biases[0]]), self.used))
        self._add(first, second, difference, rest)
        exponent = math.frexp(np.abs(difference).max())[1]
        scaled = np.ldexp(difference, -exponent)
        self.d, self.c = scaled[:-1], float(scaled[-1])
        self.error = math.ldexp(1.001 * np.abs(rest).sum() + lost, -exponent)
        if math.ldexp(lost, -exponent) > 2 * _TINY:
            # scaling back has magnified what was lost, which no bound of a slope accounts for
            self.error = math.inf

    def _merge(self, alike: dict[int, Unit]) -> None:
        """Let the first of equal units stand for all; what opposite ones add goes to c."""
        for lead, others in alike.items():
            self._joined[lead] = others
            self._joined.setdefault(-1, []).extend((k, 1) for k, sign in others if sign < 0)
            self.used[[k for k, _ in others]] = False
            self.used[lead] = self._exact([lead]) != 0

    def _add(self, first: np.ndarray, second: np.ndarray, d: np.ndarray, rest: np.ndarray) -> None:
        """OUT d, whose last is c: the sums of units that are one; and rest, what rounding lost."""
        for lead, others in self._joined.items():
            together = [(lead, 1), *others]
            terms = [sign * column[k] for k, sign in together for column in (first, -second)]
            d[lead] = math.fsum(terms)
            rest[lead] = math.fsum([*terms, -d[lead]])
        for k in {k for others in self._joined.values() for k, _ in others}:
            d[k] = rest[k] = 0

    def limit(self, on: np.ndarray) -> float:
        """The margin where the used units `on` give 1 and the others 0.

        Its sign is exact, its size is rounded.
        """
        units = [*np.flatnonzero(self.used)[on].tolist(), -1]
        exact, size = self._exact(units), abs(math.fsum([*self.d[units[:-1]], self.c]))
        return max(size, _TINY) * ((exact > 0) - (exact < 0))

    def _exact(self, units: list[int]) -> int:
        """The sum of these units' d, c's at −1, times a power of two."""
        first, second = self._columns
        joined = [pair for unit in units for pair in self._joined.get(unit, ())]
        others = [sign * column[k] for k, sign in joined for column in (first, -second)]
        return sum(integers([*first[units], *-second[units], *others]))
