"""Mamba-2's scan (SSD) as docs/derivations.md §6.1 states it, one step after the other."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._cache import Cache


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
        states_are_of = (x, dt, A, B, dt_bias, initial_state, dt_softplus, dt_limit, cu_seqlens)
        result += (Cache(None, states_are_of),)  # everything is computed again
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


class SSDScanGrads(NamedTuple):
    dx: NDArray
    ddt: NDArray
    dA: NDArray
    dB: NDArray
    dC: NDArray
    dD: NDArray | None
    dz: NDArray | None
    ddt_bias: NDArray | None
    dinitial_state: NDArray | None


def ssd_scan_vjp(
    dout: ArrayLike,
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
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    dlast_state: ArrayLike | None = None,
    cache: Any = None,
) -> SSDScanGrads:
    if cache is not None:
        cache.of((x, dt, A, B, dt_bias, initial_state, dt_softplus, dt_limit, cu_seqlens))
    given = (dout, x, dt, A, B, C, D, z, dt_bias, initial_state, dlast_state)
    arrays: list[Any] = [None if a is None else np.asarray(a, np.float64) for a in given]
    batched = arrays[1].ndim == 4
    along = (0, 1, 2, 4, 5, 7)  # dout, x, dt, B, C, z
    grown = along if batched or cu_seqlens is not None else (*along, 9, 10)
    if not batched:
        arrays = [a[None] if i in grown and a is not None else a for i, a in enumerate(arrays)]
    grads: list[Any] = [None if a is None else np.zeros(a.shape) for a in arrays[1:-1]]
    steps = arrays[1].shape[1]
    bounds = [0, steps] if cu_seqlens is None else list(np.asarray(cu_seqlens))
    for k, (start, stop) in enumerate(itertools.pairwise(bounds)):
        whole, piece = np.s_[...], np.s_[:, start:stop]
        state = whole if cu_seqlens is None else np.s_[k : k + 1]
        at = [piece if i in along else state if i >= 9 else whole for i in range(11)]
        here = [None if a is None else a[w] for a, w in zip(arrays, at, strict=True)]
        found = _sequences_vjp(here, dt_softplus, dt_limit)
        for total, w, d in zip(grads, at[1:], found, strict=False):
            if total is not None:
                total[w] += d
    if not batched:
        grads = [d[0] if i + 1 in grown and d is not None else d for i, d in enumerate(grads)]
    return SSDScanGrads(*grads)


def _sequences_vjp(arrays, dt_softplus, dt_limit):
    """The gradients of sequences of equal length (batch, L, …), in the dtype of the arguments."""
    dout, x, dt, A, B, C, D, z, dt_bias, initial, dlast = arrays
    batch, steps, heads, width = x.shape
    biased = dt if dt_bias is None else dt + dt_bias
    raw = np.logaddexp(0, biased) if dt_softplus else biased
    slope = np.exp(-np.logaddexp(0, -biased)) if dt_softplus else np.ones_like(biased)
    slope = np.where((raw < dt_limit[0]) | (raw > dt_limit[1]), 0, slope)
    step = np.clip(raw, *dt_limit)
    b, c = _per_head(B, heads), _per_head(C, heads)
    zero = np.zeros_like(x, shape=(batch, heads, width, B.shape[-1]))
    h = [zero if initial is None else initial]  # h[l] before step l, h[l + 1] after it
    h.extend(_states(step, x, A, b, h[0]))
    skip = None if D is None else D if D.ndim == 2 else D[:, None]

    dy, dz = dout, None
    if z is not None:
        y = np.zeros_like(x) if skip is None else skip * x
        for l in range(steps):
            y[:, l] += (h[l + 1] * c[:, l, :, None, :]).sum(-1)
        s = np.exp(-np.logaddexp(0, -z))
        dy, dz = dout * _silu(z), dout * y * s * (1 + z * (1 - s))
    dx = np.zeros_like(x) if skip is None else skip * dy
    dD = None if D is None else (dy * x).sum((0, 1))

    g = zero if dlast is None else dlast
    dstep, dA = np.zeros_like(dt), np.zeros_like(A)
    db, dc = np.zeros_like(b), np.zeros_like(c)
    for l in reversed(range(steps)):
        d = step[:, l]
        decay = np.exp(d * A)
        g = g + dy[:, l, :, :, None] * c[:, l, :, None, :]
        dc[:, l] = (dy[:, l, :, :, None] * h[l + 1]).sum(2)
        db[:, l] = ((d[..., None] * x[:, l])[..., None] * g).sum(2)
        dinput = (g * b[:, l, :, None, :]).sum(-1)
        dexponent = decay * (g * h[l]).sum((-2, -1))
        dx[:, l] += d[..., None] * dinput
        dstep[:, l] = A * dexponent + (x[:, l] * dinput).sum(-1)
        dA += (d * dexponent).sum(0)
        g = decay[..., None, None] * g

    ddt = dstep * slope
    shape = (batch, steps, B.shape[2], heads // B.shape[2], B.shape[3])
    return (dx, ddt, dA, db.reshape(shape).sum(3), dc.reshape(shape).sum(3),
            dD if D is None or D.ndim == 2 else dD.sum(-1), dz,
            None if dt_bias is None else ddt.sum((0, 1)),
            None if initial is None else g)  # fmt: skip
