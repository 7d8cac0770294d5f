"""The linear recurrence as docs/derivations.md §6.7 states it, one step after the other."""

from __future__ import annotations

from typing import NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _in_time(a, b, axis, reverse):
    """a and b as float64 (L, …) in the order in which steps are taken."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:  # constant in time
        a = np.broadcast_to(np.expand_dims(a, axis) if a.ndim else a, b.shape)
    order = slice(None, None, -1 if reverse else 1)
    return np.moveaxis(a, axis, 0)[order], np.moveaxis(b, axis, 0)[order]


def _back(h, axis, reverse):
    """`_in_time` undone."""
    return np.moveaxis(h[:: -1 if reverse else 1], 0, axis)


def _states(a, b, initial_state):
    """h before the first step and after every step."""
    first = np.zeros(b.shape[1:]) if initial_state is None else np.asarray(initial_state, float)
    states = [first]
    for t in range(len(b)):
        states.append(a[t] * states[-1] + b[t])
    return states


def linear_scan(
    a: ArrayLike,
    b: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    initial_state: ArrayLike | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
    out: np.ndarray | None = None,
) -> NDArray | tuple[NDArray, NDArray]:
    """h[t] = a[t] h[t−1] + b[t] along an axis."""
    A, B = _in_time(a, b, axis, reverse)
    states = _states(A, B, initial_state)
    h = _back(np.reshape(states[1:], B.shape), axis, reverse)
    if out is None:
        out = h
    else:
        out[...] = h
    return (out, states[-1]) if return_last_state else out


class LinearScanGrads(NamedTuple):
    """Gradients with respect to the arguments of `linear_scan`."""

    da: NDArray
    db: NDArray
    dinitial_state: NDArray | None


def linear_scan_vjp(
    dout: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    initial_state: ArrayLike | None = None,
    reverse: bool = False,
    dlast_state: ArrayLike | None = None,
) -> LinearScanGrads:
    """Gradients of Σ dout·h + Σ dlast_state·(last h)."""
    A, B = _in_time(a, b, axis, reverse)
    _, dh = _in_time(a, dout, axis, reverse)
    states = _states(A, B, initial_state)
    da, db = np.empty(B.shape), np.empty(B.shape)
    hbar = np.zeros(B.shape[1:]) if dlast_state is None else np.asarray(dlast_state, np.float64)
    for t in reversed(range(len(B))):
        db[t] = hbar + dh[t]
        da[t] = db[t] * states[t]
        hbar = A[t] * db[t]
    da, db = _back(da, axis, reverse), _back(db, axis, reverse)
    if np.ndim(a) < B.ndim:
        da = da.sum(axis=axis)
    if np.ndim(a) == 0:
        da = da.sum()
    return LinearScanGrads(da, db, None if initial_state is None else hbar)
