"""derivations §3–5 in plain NumPy."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, ndtr

Curve = Callable[[NDArray], ArrayLike]
Activation = str | tuple[Curve, Curve] | None


# ---- activations: φ and φ′, exact in both tails -------------------------------------------------------------------


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


# ---- fully connected: §3 and §5 -----------------------------------------------------------------------------------


class DenseGrads(NamedTuple):
    dX: NDArray
    dW: NDArray
    db: NDArray | None


def dense(
    X: ArrayLike, W: ArrayLike, b: ArrayLike | None = None, *, activation: Activation = None, out: NDArray | None = None
) -> NDArray:
    phi, _ = _pair(activation)
    N = np.asarray(X, float) @ np.asarray(W, float)
    if b is not None:
        N = N + np.asarray(b, float)
    Y = np.asarray(phi(N))
    if out is None:
        return Y
    out[...] = Y
    return out


def dense_vjp(
    dY: ArrayLike, X: ArrayLike, W: ArrayLike, b: ArrayLike | None = None, *, activation: Activation = None
) -> DenseGrads:
    _, slope = _pair(activation)
    x, w = np.asarray(X, float), np.asarray(W, float)
    N = x @ w
    if b is not None:
        N = N + np.asarray(b, float)
    dN = np.asarray(dY, float) * slope(N)
    return DenseGrads(dN @ w.T, x.T @ dN, None if b is None else dN.sum(0))


# ---- grid RNN: §4 -------------------------------------------------------------------------------------------------


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
