"""The selective scan as docs/derivations.md §1 states it, one step after the other."""

from __future__ import annotations

import itertools
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._cache import Cache


def _softplus(x):
    return np.logaddexp(0, x)


def _sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def _silu(z):
    return z * _sigmoid(z)


def _rows(coefficient, channels, batched):
    """B or C as (L or 1, batch, D, N), whatever its layout."""
    c = np.asarray(coefficient, np.float64)
    if c.ndim == 2:
        return c[None, None]
    if batched and c.ndim == 3:
        c = c[:, None]
    elif not batched:
        c = c[None]
    c = np.repeat(c, channels // c.shape[1], axis=1)  # channel d uses group d // (D // G)
    return np.moveaxis(c, -1, 0)


def _at(rows, l):
    return rows[l] if len(rows) > 1 else rows[0]


def _states(step, u, A, B, initial):
    """h after every step."""
    h = initial
    for l in range(u.shape[-1]):
        dt, x = step[:, :, l, None], u[:, :, l, None]
        h = np.exp(dt * A) * h + dt * _at(B, l) * x
        yield h


def selective_scan(
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    out: NDArray | None = None,
    return_cache: bool = False,
) -> Any:
    states = [initial_state, cu_seqlens]
    arguments = u, delta, A, B, C, D, z, delta_bias, delta_softplus, *states
    u, delta, A = (np.asarray(a, np.float64) for a in (u, delta, A))
    batched = u.ndim == 3
    if cu_seqlens is not None:
        parts = u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state
        y, last, kept = _packed(parts, cu_seqlens, out)
        return _results(y, last if return_last_state else None, return_cache, kept, arguments)
    if not batched:
        u, delta = u[None], delta[None]
    batch, channels, steps = u.shape
    B, C = _rows(B, channels, batched), _rows(C, channels, batched)
    step = delta if delta_bias is None else delta + np.asarray(delta_bias, np.float64)[:, None]
    if delta_softplus:
        step = _softplus(step)
    first = np.zeros((batch, channels, A.shape[1]))
    if initial_state is not None:
        first = first + np.asarray(initial_state, np.float64)
    kept = [first, *_states(step, u, A, B, first)]
    y, h = np.empty((batch, channels, steps)), kept[-1]
    for l in range(steps):
        y[:, :, l] = (kept[l + 1] * _at(C, l)).sum(-1)
    if D is not None:
        y += np.asarray(D, np.float64)[:, None] * u
    if not batched:
        y, h = y[0], h[0]
    if z is not None:
        y = y * _silu(np.asarray(z, np.float64))
    if out is not None:
        out[...] = y
        y = out
    return _results(y, h if return_last_state else None, return_cache, kept, arguments)


def _results(y, last, return_cache, kept, arguments):
    cache = [Cache(kept, arguments)] if return_cache else []
    results = (y, *([] if last is None else [last]), *cache)
    return results if len(results) > 1 else y


def _packed(parts, cu_seqlens, out):
    """Every sequence by itself: results, last states, and what their caches hold."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state = parts
    result = np.empty(u.shape) if out is None else out
    last, kept = np.empty((len(cu_seqlens) - 1, *A.shape)), []
    for k, (start, stop) in enumerate(itertools.pairwise(cu_seqlens)):
        s = np.s_[..., start:stop]
        h0 = None if initial_state is None else np.asarray(initial_state)[k]
        if h0 is not None and u.ndim == 3:
            h0 = h0[None]
        b, c = (a if np.ndim(a) == 2 else np.asarray(a)[s] for a in (B, C))
        gate = None if z is None else np.asarray(z)[s]
        here = u[s], delta[s], A, b, c, D, gate, delta_bias, delta_softplus, True
        result[s], last[k], cache = selective_scan(*here, initial_state=h0, return_cache=True)
        kept.append(cache)
    return result, last, kept


class SelectiveScanGrads(NamedTuple):
    du: NDArray
    ddelta: NDArray
    dA: NDArray
    dB: NDArray
    dC: NDArray
    dD: NDArray | None
    dz: NDArray | None
    ddelta_bias: NDArray | None
    dinitial_state: NDArray | None


def selective_scan_vjp(
    dout: ArrayLike,
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = False,
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    dlast_state: ArrayLike | None = None,
    cache: Any = None,
) -> SelectiveScanGrads:
    if cache is not None:
        options = delta_softplus, initial_state, cu_seqlens
        cache = cache.of((u, delta, A, B, C, D, z, delta_bias, *options))
    given = (dout, u, delta, A, B, C, D, z, delta_bias, initial_state, dlast_state)
    arrays: list[Any] = [None if a is None else np.asarray(a, np.float64) for a in given]
    if cu_seqlens is not None:
        return _packed_vjp(arrays, delta_softplus, cu_seqlens, cache)
    if arrays[1].ndim == 3:
        return _batched_vjp(arrays, delta_softplus, cache)
    of_a_batch = [np.ndim(a) > 1 for a in arrays]
    of_a_batch[3:6] = (
        False,
        np.ndim(arrays[4]) == 3,
        np.ndim(arrays[5]) == 3,
    )  # A, and B and C if constant, have no batch axis
    batched = [a[None] if b else a for a, b in zip(arrays, of_a_batch, strict=True)]
    grads = _batched_vjp(batched, delta_softplus, cache)
    return SelectiveScanGrads(
        *(d[0] if b else d for d, b in zip(grads, of_a_batch[1:-1], strict=True))
    )


def _batched_vjp(arrays, delta_softplus, kept=None):
    dout, u, delta, A, B, C, D, z, delta_bias, initial_state, dlast_state = arrays
    batch, channels, steps = u.shape
    B_rows, C_rows = _rows(B, channels, True), _rows(C, channels, True)
    biased = delta if delta_bias is None else delta + delta_bias[:, None]
    step = _softplus(biased) if delta_softplus else biased
    zero = np.zeros((batch, channels, A.shape[1]))
    first = zero if initial_state is None else initial_state
    # h[l] before step l, h[l + 1] after it
    h = [first, *_states(step, u, A, B_rows, first)] if kept is None else kept

    dy, dz, du, dD = dout, None, np.zeros(u.shape), None
    if z is not None:
        y = np.zeros(u.shape) if D is None else D[:, None] * u
        for l in range(steps):
            y[:, :, l] += (h[l + 1] * _at(C_rows, l)).sum(-1)
        s = _sigmoid(z)
        dy, dz = dout * _silu(z), dout * y * s * (1 + z * (1 - s))
    if D is not None:
        du, dD = D[:, None] * dy, (dy * u).sum((0, 2))

    dh = zero if dlast_state is None else zero + dlast_state
    dstep, dA = np.empty(u.shape), np.zeros(A.shape)
    dB, dC = (np.empty((steps, *zero.shape)) for _ in "BC")
    for l in reversed(range(steps)):
        dt, x, dy_l = (a[:, :, l, None] for a in (step, u, dy))
        decay, b = np.exp(dt * A), _at(B_rows, l)
        dh = _at(C_rows, l) * dy_l + dh
        dC[l] = dy_l * h[l + 1]
        ddecay = dh * h[l]
        dstep[:, :, l] = (ddecay * decay * A).sum(-1) + (dh * b * x).sum(-1)
        dA += (ddecay * decay * dt).sum(0)
        dB[l] = dh * dt * x
        du[:, :, l] += (dh * b * dt).sum(-1)
        dh = decay * dh

    ddelta = dstep * _sigmoid(biased) if delta_softplus else dstep
    return SelectiveScanGrads(du, ddelta, dA, _shared(dB, B), _shared(dC, C), dD, dz,
                              None if delta_bias is None else ddelta.sum((0, 2)),
                              None if initial_state is None else dh)  # fmt: skip


def _shared(gradient, coefficient):
    """The gradient of a batched B or C in its shape, from that of its `_rows` (L, batch, D, N): the
    sum over all channels, and steps, that share an entry.
    """
    if coefficient.ndim == 2:
        return gradient.sum((0, 1))
    steps, batch, channels, states = gradient.shape
    groups = coefficient.shape[1] if coefficient.ndim == 4 else 1
    each = np.moveaxis(gradient, 0, -1).reshape(batch, groups, channels // groups, states, steps)
    return each.sum(2).reshape(coefficient.shape)


def _packed_vjp(arrays, delta_softplus, cu_seqlens, caches):
    """Each sequence by itself; gradients of what they share are summed."""
    total = SelectiveScanGrads(*(None if a is None else np.zeros(a.shape) for a in arrays[1:-1]))
    _, u, _, _, B, C, *_ = arrays
    for k, (start, stop) in enumerate(itertools.pairwise(cu_seqlens)):
        piece, all_of_it, state = (
            np.s_[..., start:stop],
            np.s_[...],
            np.s_[k : k + 1] if u.ndim == 3 else np.s_[k],
        )
        b, c = (all_of_it if a.ndim == 2 else piece for a in (B, C))
        where = (piece, piece, piece, all_of_it, b, c, all_of_it, piece, all_of_it, state, state)
        *here, h0, dlast = (None if a is None else a[w] for a, w in zip(arrays, where, strict=True))
        states = {"initial_state": h0, "dlast_state": dlast}
        cache = None if caches is None else caches[k]
        grads = selective_scan_vjp(*here, delta_softplus, **states, cache=cache)
        for whole, w, part in zip(total, where[1:-1], grads, strict=True):
            if whole is not None:
                whole[w] += part
    return total


def selective_state_update(
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
    x, dt, A = (np.asarray(a, np.float64) for a in (x, dt, A))
    step = dt if dt_bias is None else dt + np.asarray(dt_bias, np.float64)
    if dt_softplus:
        step = _softplus(step)
    step, x = step[..., None], x[..., None]
    B, C = (np.asarray(a, np.float64) for a in (B, C))
    channels = state.shape[-2]
    if B.ndim == state.ndim - 1:
        B = B[..., None, :]
    if C.ndim == state.ndim - 1:
        C = C[..., None, :]
    B, C = (np.repeat(a, channels // a.shape[-2], axis=-2) for a in (B, C))
    h = np.exp(step * A) * state + step * B * x
    state[...] = h
    y = (h * C).sum(-1)
    if D is not None:
        y = y + np.asarray(D, np.float64) * x[..., 0]
    return y if z is None else y * _silu(np.asarray(z, np.float64))


def transition_product(preactivation: ArrayLike, A: ArrayLike, *,
                       method: Literal["closed", "subsets"] = "closed") -> NDArray:  # fmt: skip
    delta, A = np.asarray(preactivation, np.float64), np.asarray(A, np.float64)
    if method == "closed":
        return np.exp(A * _softplus(delta).sum(-1)[..., None])
    if method != "subsets":
        raise ValueError(f"method is {method!r}; expected 'closed' or 'subsets'")
    total = np.full(delta.shape[:-1], -np.inf)
    for mask in itertools.product([False, True], repeat=delta.shape[-1]):
        total = np.logaddexp(total, delta[..., list(mask)].sum(-1))
    return np.exp(A * total[..., None])


class ChunkSummary(NamedTuple):
    P: NDArray
    q: NDArray


def chunk_summary(
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = False,
) -> ChunkSummary:
    zero, one = np.zeros(np.shape(A)), np.ones((*np.shape(u)[:-1], np.shape(A)[1]))
    last = [
        selective_scan(
            x, delta, A, B, zero, None, None, delta_bias, delta_softplus, True, initial_state=h
        )[1]
        for x, h in ((np.zeros(np.shape(u)), one), (u, None))
    ]
    return ChunkSummary(*last)


def combine_summaries(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike]
) -> ChunkSummary:
    (P1, q1), (P2, q2) = ([np.asarray(a, np.float64) for a in pair] for pair in (first, second))
    return ChunkSummary(P2 * P1, P2 * q1 + q2)


def scan_attention(
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = False,
    *,
    rows: ArrayLike | None = None,
) -> NDArray:
    delta, A = np.asarray(delta, np.float64), np.asarray(A, np.float64)
    batched = delta.ndim == 3
    if not batched:
        delta = delta[None]
    batch, channels, steps = delta.shape
    B, C = _rows(B, channels, batched), _rows(C, channels, batched)
    step = delta if delta_bias is None else delta + np.asarray(delta_bias, np.float64)[:, None]
    if delta_softplus:
        step = _softplus(step)
    rows = np.arange(steps)[slice(None) if rows is None else np.asarray(rows, np.intp)]
    attention = np.zeros((batch, channels, len(rows), steps))
    for i, l in enumerate(rows):
        w = np.broadcast_to(
            _at(C, l), (batch, channels, A.shape[1])
        )  # C[l] times the transitions after j
        for j in range(l, -1, -1):
            dt = step[:, :, j, None]
            attention[:, :, i, j] = (w * dt * _at(B, j)).sum(-1)
            w = w * np.exp(dt * A)
    return attention if batched else attention[0]


class S6Grads(NamedTuple):
    dx: NDArray
    dW_delta: NDArray
    db_delta: NDArray
    dA: NDArray
    dW_B: NDArray
    dW_C: NDArray
    dinitial_state: NDArray | None


class S6:
    """δ = x W_Δ + b_Δ, B = W_B x, C = W_C x, and the recurrence."""

    def __init__(
        self, W_delta: ArrayLike, b_delta: ArrayLike, A: ArrayLike, W_B: ArrayLike, W_C: ArrayLike
    ) -> None:
        self.W_delta, self.b_delta, self.A, self.W_B, self.W_C = (
            np.array(w, np.float64) for w in (W_delta, b_delta, A, W_B, W_C)
        )

    def _projected(self, x):
        """u and δ (..., E, L), B and C (..., 1, N, L): what the scan takes."""
        x = np.asarray(x, np.float64)
        u, delta, B, C = (
            _turned(a) for a in (x, x @ self.W_delta + self.b_delta, x @ self.W_B.T, x @ self.W_C.T)
        )
        return u, delta, B[..., None, :, :], C[..., None, :, :]

    def __call__(
        self, x: ArrayLike, initial_state: ArrayLike | None = None, return_last_state: bool = False
    ) -> Any:
        u, delta, B, C = self._projected(x)
        y, h = selective_scan(
            u, delta, self.A, B, C, None, None, None, True, True, initial_state=initial_state
        )
        return (_turned(y), h) if return_last_state else _turned(y)

    def vjp(self, dy: ArrayLike, x: ArrayLike, initial_state: ArrayLike | None = None,
            dlast_state: ArrayLike | None = None) -> S6Grads:  # fmt: skip
        u, delta, B, C = self._projected(x)
        scan = selective_scan_vjp(
            _turned(np.asarray(dy, np.float64)),
            u,
            delta,
            self.A,
            B,
            C,
            delta_softplus=True,
            initial_state=initial_state,
            dlast_state=dlast_state,
        )
        ddelta, dB, dC = scan.ddelta, scan.dB[..., 0, :, :], scan.dC[..., 0, :, :]
        dx = scan.du + self.W_delta @ ddelta + self.W_B.T @ dB + self.W_C.T @ dC
        dW_delta, dW_B, dW_C = (
            _summed(a @ _turned(b), 2) for a, b in ((u, ddelta), (dB, u), (dC, u))
        )
        db_delta = _summed(ddelta.sum(-1), 1)
        return S6Grads(_turned(dx), dW_delta, db_delta, scan.dA, dW_B, dW_C, scan.dinitial_state)

    def step_sizes(self, x: ArrayLike) -> NDArray:
        _, delta, _, _ = self._projected(x)
        return _softplus(_turned(delta))

    def transition_product(
        self,
        x: ArrayLike,
        start: SupportsIndex | None,
        stop: SupportsIndex | None,
        method: Literal["closed", "subsets"] = "closed",
    ) -> NDArray:
        _, delta, _, _ = self._projected(x)
        return transition_product(delta[..., start:stop], self.A, method=method)

    def attention(self, x: ArrayLike) -> NDArray:
        _, delta, B, C = self._projected(x)
        return scan_attention(delta, self.A, B, C, None, True)


def _turned(a):
    return a.swapaxes(-1, -2)


def _summed(a, axes):
    """The sum over the batch, if there is one: over all but the last `axes`."""
    return a.sum(tuple(range(a.ndim - axes)))
