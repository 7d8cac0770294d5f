"""Checks that a cache is of the call whose adjoint is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from .cache import checksums


def expect_shape(symbols: str, came: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
    """A ValueError unless the cache is of a call of these sizes, spelled by `symbols`."""
    if came != wanted:
        of, expected = (f"({', '.join(map(str, sizes))})" for sizes in (came, wanted))
        raise ValueError(f"cache is of a call with {symbols} = {of}; expected {expected}")


def expect_operands(
    names: Iterable[str], came: tuple[int | None, ...], operands: tuple[NDArray | None, ...]
) -> None:
    """A ValueError unless the checksums say that the cache was computed from these operands."""
    for name, then, now in zip(names, came, checksums(operands), strict=True):
        if then != now:
            raise ValueError(f"cache is of a call with another {name}")
