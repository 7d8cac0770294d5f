"""The fully connected layer, grid RNN and LSTM in plain NumPy: docs/derivations.md §3–§5."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, ndtr

from ._cache import Cache

Curve = Callable[[NDArray], ArrayLike]
Activation = str | tuple[Curve, Curve] | None


# ---- activations: φ and φ′, exact in both tails --------------------------------------------------


def _density(x):
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


CURVES: dict[str, tuple[Curve, Curve]] = {
    "sigmoid": (expit, lambda x: expit(x) * expit(-x)),
    "tanh": (np.tanh, lambda x: 1 / np.cosh(np.clip(x, -360, 360)) ** 2),
    "relu": (lambda x: np.where(x > 0, x, 0 * x), lambda x: np.where(x > 0, 1.0, 0 * x)),
    "softplus": (lambda x: np.logaddexp(0, x), expit),
    "silu": (lambda x: x * expit(x), lambda x: expit(x) * (1 + x * expit(-x))),
    "gelu": (lambda x: x * ndtr(x), lambda x: ndtr(x) + x * _density(x)),
}


def _pair(activation: Activation) -> tuple[Curve, Curve]:
    if activation is None:
        return lambda x: x, np.ones_like
    return CURVES[activation] if isinstance(activation, str) else activation


# ---- fully connected: §3.1 and §5.1---------------------------------------------------------------


class DenseGrads(NamedTuple):
    dX: NDArray
    dW: NDArray
    db: NDArray | None


def dense(
    X: ArrayLike,
    W: ArrayLike,
    b: ArrayLike | None = None,
    *,
    activation: Activation = None,
    out: NDArray | None = None,
    return_cache: bool = False,
) -> Any:
    phi, _ = _pair(activation)
    N = np.asarray(X, float) @ np.asarray(W, float)
    if b is not None:
        N = N + np.asarray(b, float)
    Y = np.asarray(phi(N.copy()))
    if out is not None:
        out[...] = Y
        Y = out
    return (Y, Cache(N, (X, W, b))) if return_cache else Y


def dense_vjp(
    dY: ArrayLike,
    X: ArrayLike,
    W: ArrayLike,
    b: ArrayLike | None = None,
    *,
    activation: Activation = None,
    cache: Any = None,
) -> DenseGrads:
    _, slope = _pair(activation)
    x, w = np.asarray(X, float), np.asarray(W, float)
    N = dense(x, w, b) if cache is None else cache.of((X, W, b))
    dN = np.asarray(dY, float) * slope(N.copy())
    return DenseGrads(dN @ w.T, x.T @ dN, None if b is None else dN.sum(0))


# ---- grid RNN: §4.4 ------------------------------------------------------------------------------


class GridRNNGrads(NamedTuple):
    dx: NDArray
    dW_in: NDArray
    dW_west: NDArray
    dW_north: NDArray
    db: NDArray | None


def _grid(x, W_in, W_west, W_north, b, activation):
    """h and φ′, both (Bt, G1, G2, H)."""
    phi, slope = _pair(activation)
    Bt, G1, G2, _ = x.shape
    h, s = np.zeros((2, Bt, G1, G2, len(W_in)))
    for t in range(Bt):
        for i in range(G1):
            for j in range(G2):
                a = W_in @ x[t, i, j] + b
                if j > 0:
                    a = a + W_west @ h[t, i, j - 1]
                if i > 0:
                    a = a + W_north @ h[t, i - 1, j]
                h[t, i, j], s[t, i, j] = phi(a), slope(a)
    return h, s


def _arrays(x, W_in, W_west, W_north, b) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    x, W_in, W_west, W_north = (np.asarray(a, float) for a in (x, W_in, W_west, W_north))
    return (
        x if x.ndim == 4 else x[None],
        W_in,
        W_west,
        W_north,
        np.zeros(len(W_in)) if b is None else np.asarray(b, float),
    )


def grid_rnn(
    x: ArrayLike,
    W_in: ArrayLike,
    W_west: ArrayLike,
    W_north: ArrayLike,
    b: ArrayLike | None = None,
    *,
    activation: Activation = "tanh",
) -> NDArray:
    h, _ = _grid(*_arrays(x, W_in, W_west, W_north, b), activation)
    return h if np.ndim(x) == 4 else h[0]


def grid_rnn_vjp(
    dh: ArrayLike,
    x: ArrayLike,
    W_in: ArrayLike,
    W_west: ArrayLike,
    W_north: ArrayLike,
    b: ArrayLike | None = None,
    *,
    activation: Activation = "tanh",
) -> GridRNNGrads:
    shape = np.shape(x)
    X, W_I, W_W, W_N, bias = _arrays(x, W_in, W_west, W_north, b)
    h, slope = _grid(X, W_I, W_W, W_N, bias, activation)
    Bt, G1, G2, _ = X.shape
    dx, dW_in, dW_west, dW_north, db = (np.zeros_like(a) for a in (X, W_I, W_W, W_N, bias))
    dstate = np.array(dh, float).reshape(h.shape)
    for t in range(Bt):
        for i in reversed(range(G1)):
            for j in reversed(range(G2)):
                da = dstate[t, i, j] * slope[t, i, j]
                dx[t, i, j] = W_I.T @ da
                dW_in += np.outer(da, X[t, i, j])
                db += da
                if j > 0:
                    dstate[t, i, j - 1] += W_W.T @ da
                    dW_west += np.outer(da, h[t, i, j - 1])
                if i > 0:
                    dstate[t, i - 1, j] += W_N.T @ da
                    dW_north += np.outer(da, h[t, i - 1, j])
    return GridRNNGrads(dx.reshape(shape), dW_in, dW_west, dW_north, None if b is None else db)


# ---- LSTM: §4.1 ----------------------------------------------------------------------------------


def _sequences(x, weight_ih, weight_hh, bias_ih, bias_hh, initial_state, lengths):
    """The weights, and for every sequence its inputs and initial states; all float64."""
    x, W, U = (np.asarray(a, np.float64) for a in (x, weight_ih, weight_hh))
    x = x if x.ndim == 3 else x[:, None]
    T, B, _ = x.shape
    H = U.shape[1]
    b = sum(
        (np.asarray(bias, np.float64) for bias in (bias_ih, bias_hh) if bias is not None),
        np.zeros(4 * H),
    )
    ends = np.full(B, T) if lengths is None else np.reshape(lengths, B)
    h0, c0 = (
        (np.zeros((B, H)),) * 2
        if initial_state is None
        else (np.reshape(np.asarray(s, np.float64), (B, H)) for s in initial_state)
    )
    return W, U, b, [(x[: ends[k], k], h0[k], c0[k]) for k in range(B)]


def _steps(x, h, c, W, U, b):
    """For every step i, f, g, o, h before, c before, h, c, and the pre-activations (4, H)."""
    steps = []
    for xt in x:
        ai, af, ag, ao = np.split(W @ xt + U @ h + b, 4)
        i, f, g, o = expit(ai), expit(af), np.tanh(ag), expit(ao)
        h_before, c_before = h, c
        c = f * c + i * g
        h = o * np.tanh(c)
        steps.append((i, f, g, o, h_before, c_before, h, c, (ai, af, ag, ao)))
    return steps


def _slope(a):
    """σ′(a) = tanh′(a/2) / 4, exact in both tails."""
    return 0.25 / np.cosh(np.clip(a, -700, 700) / 2) ** 2


def _adjoints(steps, dh, hbar, cbar, U):
    """(t, h̄, c̄, ā) of every step, backwards; then (−1, h̄, c̄, None) of the initial state.

    `hbar` and `cbar` are the adjoints of the last state.
    """
    for t in reversed(range(len(steps))):
        i, f, g, o, _, c_before, _, c, (ai, af, ag, ao) = steps[t]
        hbar = dh[t] + hbar
        cbar = hbar * o * 4 * _slope(2 * c) + cbar
        obar, gbar, ibar, fbar = hbar * np.tanh(c), cbar * i, cbar * g, cbar * c_before
        abar = np.concatenate(
            [ibar * _slope(ai), fbar * _slope(af), gbar * 4 * _slope(2 * ag), obar * _slope(ao)]
        )
        yield t, hbar, cbar, abar
        hbar, cbar = U.T @ abar, cbar * f
    yield -1, hbar, cbar, None


def lstm(
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias_ih: ArrayLike | None = None,
    bias_hh: ArrayLike | None = None,
    *,
    initial_state: Sequence[ArrayLike] | NDArray | None = None,
    lengths: ArrayLike | None = None,
    return_cache: bool = False,
) -> Any:
    W, U, b, sequences = _sequences(
        x, weight_ih, weight_hh, bias_ih, bias_hh, initial_state, lengths
    )
    T, batched = np.shape(x)[0], np.ndim(x) == 3
    h = np.zeros((T, len(sequences), U.shape[1]))
    h_n, c_n, cache = np.zeros(h.shape[1:]), np.zeros(h.shape[1:]), []
    for k, (xk, h0, c0) in enumerate(sequences):
        steps = _steps(xk, h0, c0, W, U, b)
        cache.append(steps)
        h[: len(steps), k] = [step[6] for step in steps] or h[:0, k]
        h_n[k], c_n[k] = steps[-1][6:8] if steps else (h0, c0)
    last = (h_n, c_n) if batched else (h_n[0], c_n[0])
    result = h if batched else h[:, 0], last
    arguments = x, weight_ih, weight_hh, bias_ih, bias_hh, initial_state, lengths
    return (*result, Cache(cache, arguments)) if return_cache else result


class LSTMGrads(NamedTuple):
    dx: NDArray
    dweight_ih: NDArray
    dweight_hh: NDArray
    dbias_ih: NDArray | None
    dbias_hh: NDArray | None
    dinitial_state: tuple[NDArray, NDArray] | None


def _last_adjoints(dlast_state, batch, hidden):
    dlast = (None, None) if dlast_state is None else dlast_state
    return [
        np.zeros((batch, hidden))
        if d is None
        else np.reshape(np.asarray(d, np.float64), (batch, hidden))
        for d in dlast
    ]


def lstm_vjp(
    dh: ArrayLike,
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias_ih: ArrayLike | None = None,
    bias_hh: ArrayLike | None = None,
    *,
    initial_state: Sequence[ArrayLike] | NDArray | None = None,
    lengths: ArrayLike | None = None,
    dlast_state: Sequence[ArrayLike | None] | NDArray | None = None,
    cache: Any = None,
) -> LSTMGrads:
    W, U, b, sequences = _sequences(
        x, weight_ih, weight_hh, bias_ih, bias_hh, initial_state, lengths
    )
    arguments = x, weight_ih, weight_hh, bias_ih, bias_hh, initial_state, lengths
    kept = None if cache is None else cache.of(arguments)
    B, H = len(sequences), U.shape[1]
    T, dlast = np.shape(x)[0], _last_adjoints(dlast_state, B, H)
    dh, dx = np.asarray(dh, np.float64).reshape(T, B, H), np.zeros((T, B, W.shape[1]))
    dW, dU, db, dinitial = (np.zeros(s) for s in (W.shape, U.shape, 4 * H, (2, B, H)))
    for k, (xk, h0, c0) in enumerate(sequences):
        steps = _steps(xk, h0, c0, W, U, b) if kept is None else kept[k]
        for t, hbar, cbar, abar in _adjoints(steps, dh[:, k], dlast[0][k], dlast[1][k], U):
            if t < 0:
                dinitial[:, k] = hbar, cbar
                continue
            dx[t, k] = W.T @ abar
            dW += np.outer(abar, xk[t])
            dU += np.outer(abar, steps[t][4])
            db += abar
    states = tuple(dinitial) if np.ndim(x) == 3 else tuple(dinitial[:, 0])
    return LSTMGrads(
        dx if np.ndim(x) == 3 else dx[:, 0],
        dW,
        dU,
        None if bias_ih is None else db,
        None if bias_hh is None else db.copy(),
        None if initial_state is None else states,
    )


def lstm_state_adjoints(
    dh: ArrayLike,
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias_ih: ArrayLike | None = None,
    bias_hh: ArrayLike | None = None,
    *,
    initial_state: Sequence[ArrayLike] | NDArray | None = None,
    lengths: ArrayLike | None = None,
    dlast_state: Sequence[ArrayLike | None] | NDArray | None = None,
    cache: Any = None,
) -> tuple[NDArray, NDArray]:
    W, U, b, sequences = _sequences(
        x, weight_ih, weight_hh, bias_ih, bias_hh, initial_state, lengths
    )
    arguments = x, weight_ih, weight_hh, bias_ih, bias_hh, initial_state, lengths
    kept = None if cache is None else cache.of(arguments)
    T, B, H = np.shape(x)[0], len(sequences), U.shape[1]
    dh, dlast = np.asarray(dh, np.float64).reshape(T, B, H), _last_adjoints(dlast_state, B, H)
    both = np.zeros((2, T, B, H))
    for k, (xk, h0, c0) in enumerate(sequences):
        steps = _steps(xk, h0, c0, W, U, b) if kept is None else kept[k]
        for t, hbar, cbar, _ in _adjoints(steps, dh[:, k], dlast[0][k], dlast[1][k], U):
            if t >= 0:
                both[:, t, k] = hbar, cbar
    return (both[0], both[1]) if np.ndim(x) == 3 else (both[0, :, 0], both[1, :, 0])
