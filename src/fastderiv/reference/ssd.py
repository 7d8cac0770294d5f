"""Mamba-2's scan (SSD) as docs/derivations.md §6.1 states it, one step after the other."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _silu(z):
    return z * np.exp(-np.logaddexp(0, -z))


def _step_sizes(dt, dt_bias, dt_softplus, dt_limit):
    """Δ of shape (batch, L, H)."""
    step = dt if dt_bias is None else dt + dt_bias
    return np.clip(np.logaddexp(0, step) if dt_softplus else step, *dt_limit)


def _per_head(coefficient, heads):
    """B or C (batch, L, G, N) as (batch, L, H, N): head h uses group h // (H // G)."""
    return np.repeat(coefficient, heads // coefficient.shape[2], axis=2)


def _states(step, x, A, B, initial):
    """h (batch, H, P, N) after every step."""
    h = initial
    for l in range(x.shape[1]):
        d = step[:, l]
        h = np.exp(d * A)[..., None, None] * h
        h = h + (d[..., None] * x[:, l])[..., None] * B[:, l, :, None, :]
        yield h


def _sequences(x, step, A, B, C, D, z, initial):
    """y (batch, L, H, P) and the last state, in the dtype of the arguments."""
    heads, h, y = x.shape[2], initial, np.empty_like(x)
    B, C = _per_head(B, heads), _per_head(C, heads)
    for l, h in enumerate(_states(step, x, A, B, initial)):
        y[:, l] = (h * C[:, l, :, None, :]).sum(-1)
    if D is not None:
        y = y + (D if D.ndim == 2 else D[:, None]) * x
    return (y if z is None else y * _silu(z)), h


def _scan(arguments, dt_softplus, dt_limit, cu_seqlens):
    """y and the last state, for arguments with a batch axis or without."""
    arrays = [None if a is None else np.asarray(a, np.float64) for a in arguments]
    batched = arrays[0].ndim == 4
    if not batched:  # x, dt, B, C and z gain a batch axis, and the state too unless it is packed
        for i in (0, 1, 3, 4, 6) if cu_seqlens is not None else (0, 1, 3, 4, 6, 8):
            arrays[i] = arrays[i] if arrays[i] is None else arrays[i][None]
    x, dt, A, B, C, D, z, dt_bias, initial = arrays
    batch, steps, heads, width = x.shape
    step = _step_sizes(dt, dt_bias, dt_softplus, dt_limit)
    bounds = [0, steps] if cu_seqlens is None else list(np.asarray(cu_seqlens))
    segments = batch if cu_seqlens is None else len(bounds) - 1
    if initial is None:
        initial = np.zeros((segments, heads, width, B.shape[-1]))
    y, states = np.empty(x.shape), []
    for k, (start, stop) in enumerate(itertools.pairwise(bounds)):
        s = np.s_[:, start:stop]
        first = initial if cu_seqlens is None else initial[k : k + 1]
        gate = None if z is None else z[s]
        y[s], last = _sequences(x[s], step[s], A, B[s], C[s], D, gate, first)
        states.append(last)
    last = np.concatenate(states) if states else initial
    if not batched:
        y, last = y[0], last if cu_seqlens is not None else last[0]
    return y, last


class _Cache:
    """The arguments of a call: the reference computes everything again."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = [None if a is None else np.array(a, np.float64) for a in arguments]

    def check(self, *arguments: Any) -> None:
        for then, now in zip(self.arguments, arguments, strict=True):
            if (then is None) != (now is None) or (
                then is not None
                and not np.array_equal(then, np.asarray(now, np.float64), equal_nan=True)
            ):
                raise ValueError("cache is of another call")


def ssd_scan(
    x: ArrayLike,
    dt: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    dt_bias: ArrayLike | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_last_state: bool = False,
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    return_cache: bool = False,
    out: NDArray | None = None,
) -> Any:
    arguments = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    y, last = _scan(arguments, dt_softplus, dt_limit, cu_seqlens)
    if out is not None:
        out[...] = y
        y = out
    result: tuple[Any, ...] = (y,)
    if return_last_state:
        result += (last,)
    if return_cache:
        result += (_Cache(*arguments),)
    return result if len(result) > 1 else y


def ssd_state_update(
    state: NDArray,
    x: ArrayLike,
    dt: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    dt_bias: ArrayLike | None = None,
    dt_softplus: bool = False,
) -> NDArray:
    arrays: Any = [np.asarray(a, np.float64) for a in (x, dt, A, B, C)]
    u, step, rate, *coefficients = arrays
    if dt_bias is not None:
        step = step + np.asarray(dt_bias, np.float64)
    if dt_softplus:
        step = np.logaddexp(0, step)
    coefficients = [a if a.ndim == u.ndim else a[..., None, :] for a in coefficients]
    repeats = [state.shape[-3] // a.shape[-2] for a in coefficients]
    b, c = (np.repeat(a, n, axis=-2) for a, n in zip(coefficients, repeats, strict=True))
    h = np.exp(step * rate)[..., None, None] * state
    h = h + (step[..., None] * u)[..., None] * b[..., None, :]
    state[...] = h
    y = (h * c[..., None, :]).sum(-1)
    if D is not None:
        d = np.asarray(D, np.float64)
        y = y + (d if d.ndim == 2 else d[:, None]) * u
    return y if z is None else y * _silu(np.asarray(z, np.float64))


def ssd_attention(
    dt: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    dt_bias: ArrayLike | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    *,
    rows: ArrayLike | None = None,
) -> NDArray:
    arrays: Any = [np.asarray(a, np.float64) for a in (dt, B, C)]
    batched = arrays[0].ndim == 3
    if not batched:
        arrays = [a[None] for a in arrays]
    step = _step_sizes(arrays[0], dt_bias, dt_softplus, dt_limit)
    batch, steps, heads = step.shape
    b, c = (_per_head(a, heads) for a in arrays[1:])
    wanted = np.arange(steps)[slice(None) if rows is None else np.asarray(rows, np.intp)]
    attention = np.zeros((batch, heads, len(wanted), steps))
    for i, t in enumerate(wanted):
        behind = np.zeros((batch, heads))  # the sum of the step sizes after s
        for s in range(t, -1, -1):
            product = (c[:, t] * b[:, s]).sum(-1)
            attention[:, :, i, s] = product * np.exp(np.asarray(A) * behind) * step[:, s]
            behind = behind + step[:, s]
    return attention if batched else attention[0]


class SSDChunkSummary(NamedTuple):
    P: NDArray
    q: NDArray


def ssd_chunk_summary(
    x: ArrayLike,
    dt: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    dt_bias: ArrayLike | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> SSDChunkSummary:
    step = _step_sizes(np.asarray(dt, np.float64), dt_bias, dt_softplus, dt_limit)
    P = np.exp(np.asarray(A, np.float64) * step.sum(-2))
    C = np.zeros(np.shape(B))
    _, q = ssd_scan(x, dt, A, B, C, None, None, dt_bias, dt_softplus, dt_limit, True)
    return SSDChunkSummary(P, q)
