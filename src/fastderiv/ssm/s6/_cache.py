"""What a scan keeps for its adjoint, and the checks that a cache is of the adjoint's own call."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..._core import caches
from ..._core.arrays import empty
from ..._core.cache import Cache, checksums, keep, opened
from ..._core.products import contiguous

if TYPE_CHECKING:
    from ._scan import ScanCall

_SIGNALS = ("delta", "u", "z")  # in the order of the kernels' checksums
_OPERANDS = ("A", "B", "C", "D", "delta_bias", "initial_state")
_U64 = np.dtype(np.uint64)


class Kept(NamedTuple):
    """States that a scan leaves on its way, and checksums, as the kernels take them."""

    states: NDArray | None = None
    span: int = 0
    checks: NDArray[np.uint64] | None = None


def new_kept(call: ScanCall) -> Kept:
    """An array in which a scan can keep its states."""
    size = kept_size(call.delta.shape, call.A.shape[1], call.z is not None)
    return kept_of(call, empty("the cache", (size,), call.dtype))


def checked(kept: Kept) -> Kept:
    """The same, with checksums of the signals."""
    return kept._replace(checks=np.zeros(len(_SIGNALS), _U64))


def kept_of(call: ScanCall, states: NDArray) -> Kept:
    """States that the scan of the same arguments has kept, whose owner answers for that."""
    return Kept(states, _span(call.A.shape[1], call.z is not None))


def kept_size(shape: tuple[int, ...], states: int, gated: bool) -> int:
    """How many numbers a scan of u of this shape keeps."""
    *batch, channels, steps = shape
    return math.prod((*batch, channels, states)) * (steps // _span(states, gated))


def _span(states: int, gated: bool) -> int:
    """The least number of steps between two states that are kept for which all of them take at most
    15 % of inputs and outputs, as far as blocks of 128 steps allow.

    With z, inputs and outputs are four numbers a step and channel, and three without.
    """
    signals = 4 if gated else 3
    return next((span for span in (32, 64) if states <= 0.15 * signals * span), 128)


def cache_of(call: ScanCall, kept: Kept, delta_softplus: bool) -> Cache:
    """The cache that `selective_scan` returns."""
    assert kept.checks is not None
    about = _sizes(call), delta_softplus, call.starts, _operands(call), tuple(kept.checks.tolist())
    return keep("selective_scan", about, (), (kept.states,))


def recalled(
    call: ScanCall, cache: Cache | None, delta_softplus: bool
) -> tuple[Kept, tuple[int, ...]]:
    """What the caller's cache holds, and the checksums that the signals must have.

    A ValueError if the cache is of another call, as far as that can be seen without reading the
    signals.
    """
    if cache is None:
        return Kept(), ()
    about, _, (states,) = opened(cache, "selective_scan")
    sizes, softplus, starts, operands, signals = about
    caches.expect_shape("(dtype, batch, D, L, N)", sizes, _sizes(call))
    if softplus != delta_softplus:
        raise ValueError(f"cache is of a call with delta_softplus = {softplus}")
    if not _same(starts, call.starts):
        raise ValueError("cache is of a call with other cu_seqlens")
    for name, then, now in zip(_OPERANDS, operands, _operands(call), strict=True):
        if then != now:
            raise ValueError(f"cache is of a call with another {name}")
    if (signals[-1] == 0) != (call.z is None) and call.delta.size:
        raise ValueError("cache is of a call with another z")
    return checked(kept_of(call, states)), signals


def expect_signals(kept: Kept, signals: tuple[int, ...]) -> None:
    """A ValueError unless the adjoint has read the signals that the cache was computed from."""
    if kept.checks is None:
        return
    for name, then, now in zip(_SIGNALS, signals, kept.checks.tolist(), strict=True):
        if then != now:
            raise ValueError(f"cache is of a call with another {name}")


def _sizes(call: ScanCall) -> tuple[Any, ...]:
    return call.dtype, *call.delta.shape, call.A.shape[1]


def _same(a: NDArray | None, b: NDArray | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def _operands(call: ScanCall) -> tuple[Any, ...]:
    """Of each of the other arguments, its shape and checksum; None for None."""
    return tuple(_fingerprint(name, getattr(call, name)) for name in _OPERANDS)


def _fingerprint(name: str, array: NDArray | None) -> tuple[Any, ...] | None:
    return None if array is None else (array.shape, *checksums((contiguous(name, array),)))
