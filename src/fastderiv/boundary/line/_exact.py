"""Floats as integers: sums of them without rounding."""

from __future__ import annotations

from collections.abc import Iterable


def integers(values: Iterable[float]) -> list[int]:
    """The same finite floats times one power of two, exactly."""
    ratios = [float(value).as_integer_ratio() for value in values]
    unit = max((denominator for _, denominator in ratios), default=1)
    return [numerator * (unit // denominator) for numerator, denominator in ratios]
