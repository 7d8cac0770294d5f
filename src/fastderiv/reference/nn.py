"""derivations §3–5 in plain NumPy."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def _sequences(x, weight_ih, weight_hh, bias_ih, bias_hh, initial_state, lengths):
    """The weights, and of every sequence its inputs and initial states; all float64."""
    x, W, U = (np.asarray(a, np.float64) for a in (x, weight_ih, weight_hh))
    x = x if x.ndim == 3 else x[:, None]
    T, B, _ = x.shape
    H = U.shape[1]
    b = sum((np.asarray(bias, np.float64) for bias in (bias_ih, bias_hh) if bias is not None), np.zeros(4 * H))
    ends = np.full(B, T) if lengths is None else np.reshape(lengths, B)
    h0, c0 = (np.zeros((B, H)),) * 2 if initial_state is None else (np.reshape(np.asarray(s, np.float64), (B, H)) for s in initial_state)
    return W, U, b, [(x[: ends[k], k], h0[k], c0[k]) for k in range(B)]


def _steps(x, h, c, W, U, b):
    """Of every step: i, f, g, o, h before, c before, h, c, and the pre-activations (4, H)."""
    steps = []
    for xt in x:
        ai, af, ag, ao = np.split(W @ xt + U @ h + b, 4)
        i, f, g, o = _sigmoid(ai), _sigmoid(af), np.tanh(ag), _sigmoid(ao)
        h_before, c_before = h, c
        c = f * c + i * g
        h = o * np.tanh(c)
        steps.append((i, f, g, o, h_before, c_before, h, c, (ai, af, ag, ao)))
    return steps


def _slope(a):
    """σ′(a) = tanh′(a/2) / 4, exact in both tails."""
    return 0.25 / np.cosh(np.clip(a, -700, 700) / 2) ** 2


def _adjoints(steps, dh, hbar, cbar, U):
    """Backwards, from the last state's adjoints: (t, h̄, c̄, ā) of every step, then (−1, h̄, c̄, None) of the initial state."""
    for t in reversed(range(len(steps))):
        i, f, g, o, _, c_before, _, c, (ai, af, ag, ao) = steps[t]
        hbar = dh[t] + hbar
        cbar = hbar * o * 4 * _slope(2 * c) + cbar
        obar, gbar, ibar, fbar = hbar * np.tanh(c), cbar * i, cbar * g, cbar * c_before
        abar = np.concatenate([ibar * _slope(ai), fbar * _slope(af), gbar * 4 * _slope(2 * ag), obar * _slope(ao)])
        yield t, hbar, cbar, abar
        hbar, cbar = U.T @ abar, cbar * f
    yield -1, hbar, cbar, None


def lstm(x: ArrayLike, weight_ih: ArrayLike, weight_hh: ArrayLike, bias_ih: ArrayLike | None = None,
         bias_hh: ArrayLike | None = None, *, initial_state: Sequence[ArrayLike] | NDArray | None = None,
         lengths: ArrayLike | None = None, return_cache: bool = False) -> Any:  # fmt: skip
    W, U, b, sequences = _sequences(x, weight_ih, weight_hh, bias_ih, bias_hh, initial_state, lengths)
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
    return (*result, cache) if return_cache else result


class LSTMGrads(NamedTuple):
    dx: NDArray
    dweight_ih: NDArray
    dweight_hh: NDArray
    dbias_ih: NDArray | None
    dbias_hh: NDArray | None
    dinitial_state: tuple[NDArray, NDArray] | None


def _last_adjoints(dlast_state, batch, hidden):
    dlast = (None, None) if dlast_state is None else dlast_state
    return [np.zeros((batch, hidden)) if d is None else np.reshape(np.asarray(d, np.float64), (batch, hidden)) for d in dlast]


def lstm_vjp(dh: ArrayLike, x: ArrayLike, weight_ih: ArrayLike, weight_hh: ArrayLike, bias_ih: ArrayLike | None = None,
             bias_hh: ArrayLike | None = None, *, initial_state: Sequence[ArrayLike] | NDArray | None = None,
             lengths: ArrayLike | None = None, dlast_state: Sequence[ArrayLike | None] | NDArray | None = None,
             cache: Any = None) -> LSTMGrads:  # fmt: skip
    W, U, b, sequences = _sequences(x, weight_ih, weight_hh, bias_ih, bias_hh, initial_state, lengths)
    B, H = len(sequences), U.shape[1]
    dh, dlast = np.asarray(dh, np.float64).reshape(np.shape(x)[0], B, H), _last_adjoints(dlast_state, B, H)
    dx, dW, dU, db, dfirst = np.zeros((np.shape(x)[0], B, W.shape[1])), np.zeros(W.shape), np.zeros(U.shape), np.zeros(4 * H), np.zeros((2, B, H))
    for k, (xk, h0, c0) in enumerate(sequences):
        steps = _steps(xk, h0, c0, W, U, b) if cache is None else cache[k]
        for t, hbar, cbar, abar in _adjoints(steps, dh[:, k], dlast[0][k], dlast[1][k], U):
            if t < 0:
                dfirst[:, k] = hbar, cbar
                continue
            dx[t, k] = W.T @ abar
            dW += np.outer(abar, xk[t])
            dU += np.outer(abar, steps[t][4])
            db += abar
    first = tuple(dfirst) if np.ndim(x) == 3 else tuple(dfirst[:, 0])
    return LSTMGrads(
        dx if np.ndim(x) == 3 else dx[:, 0], dW, dU, None if bias_ih is None else db, None if bias_hh is None else db.copy(),
        None if initial_state is None else first,
    )  # fmt: skip


def lstm_state_adjoints(dh: ArrayLike, x: ArrayLike, weight_ih: ArrayLike, weight_hh: ArrayLike, bias_ih: ArrayLike | None = None,
                        bias_hh: ArrayLike | None = None, *, initial_state: Sequence[ArrayLike] | NDArray | None = None,
                        lengths: ArrayLike | None = None, dlast_state: Sequence[ArrayLike | None] | NDArray | None = None,
                        cache: Any = None) -> tuple[NDArray, NDArray]:  # fmt: skip
    W, U, b, sequences = _sequences(x, weight_ih, weight_hh, bias_ih, bias_hh, initial_state, lengths)
    T, B, H = np.shape(x)[0], len(sequences), U.shape[1]
    dh, dlast = np.asarray(dh, np.float64).reshape(T, B, H), _last_adjoints(dlast_state, B, H)
    both = np.zeros((2, T, B, H))
    for k, (xk, h0, c0) in enumerate(sequences):
        steps = _steps(xk, h0, c0, W, U, b) if cache is None else cache[k]
        for t, hbar, cbar, _ in _adjoints(steps, dh[:, k], dlast[0][k], dlast[1][k], U):
            if t >= 0:
                both[:, t, k] = hbar, cbar
    return (both[0], both[1]) if np.ndim(x) == 3 else (both[0, :, 0], both[1, :, 0])
