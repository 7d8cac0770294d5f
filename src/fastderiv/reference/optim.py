"""Momentum in plain NumPy, and on Python's integers one parameter after the other.

docs/derivations.md §4.5 to §4.9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

Function = Callable[[NDArray], ArrayLike]


def momentum_step(
    theta: NDArray, p: NDArray, grad: ArrayLike, *, alpha: float, beta: float
) -> None:
    p[...] = beta * p - alpha * np.asarray(grad)
    theta += p


def momentum_unstep(
    theta: NDArray, p: NDArray, grad_fn: Function, *, alpha: float, beta: float
) -> None:
    if beta == 0:
        raise ValueError("beta is 0")
    before = theta - p
    p[...] = (p + alpha * np.asarray(grad_fn(before.copy()))) / beta
    theta[...] = before


def momentum_jacobian(hessian: ArrayLike, *, alpha: float, beta: float) -> NDArray:
    H = np.asarray(hessian)
    H = H if H.dtype.kind == "f" else H.astype(np.float64)
    eye = np.eye(len(H))
    return np.block([[eye - alpha * H, beta * eye], [-alpha * H, beta * eye]])


class ReversibleMomentum:
    """θ, p and i are Python's integers, β = n/d; // and % round towards −∞.  §4.6."""

    d = 2**16
    unit = 2.0**-44

    def __init__(self, theta: ArrayLike, *, alpha: float, beta: float) -> None:
        theta = np.asarray(theta, np.float64)
        self.alpha, self.n = float(alpha), round(beta * self.d)
        if not 0 < self.n < self.d or not math.isfinite(alpha):
            raise ValueError("0 < beta < 1 and alpha finite")
        self.beta = self.n / self.d
        self.shape = theta.shape
        self._theta = [self._check(int(np.rint(x * 2.0**44))) for x in theta.ravel().tolist()]
        self._p = [0] * theta.size
        self._i = [0] * theta.size
        self._words: list[list[int]] = []
        self.steps = 0

    def _check(self, x: int) -> int:
        if not -(2**62) <= x < 2**62:
            raise OverflowError
        return x

    def _increments(self, grad: ArrayLike, alpha: float | None) -> list[int]:
        """k = round(α·2**44·g), |k| < 2**62."""
        grad = np.asarray(grad, np.float64)
        if grad.shape != self.shape:
            raise ValueError("shape")
        alpha = self.alpha if alpha is None else float(alpha)
        k = [int(np.rint(alpha * 2.0**44 * g)) for g in grad.ravel().tolist()]
        if any(abs(x) == 2**62 for x in map(self._check, k)):
            raise OverflowError
        return k

    def _spills(self, steps: int) -> int:
        """How often 16 bits have left each buffer; §4.7.

        They do so whenever its bound, which is 2**34 at first, would exceed 2**50.
        """
        bits = math.log2(self.d / self.n) + math.log1p((self.n - 1) / 2**34) / math.log(2)
        return max(0, -(-steps * math.ceil(bits * 2**40) // 2**44) - 1)

    @property
    def theta(self) -> NDArray:
        return np.array(self._theta, np.float64).reshape(self.shape) * self.unit

    @property
    def p(self) -> NDArray:
        return np.array(self._p, np.float64).reshape(self.shape) * self.unit

    @property
    def information_bits(self) -> int:
        return 16 * len(self._theta) * len(self._words) + sum(i.bit_length() for i in self._i)

    def step(self, grad: ArrayLike, *, alpha: float | None = None) -> None:
        increments, spill = (
            self._increments(grad, alpha),
            self._spills(self.steps + 1) > self._spills(self.steps),
        )
        theta, p, buffers, words = [], [], [], []
        for t, q, i, k in zip(self._theta, self._p, self._i, increments, strict=True):
            i, s = divmod(i, self.n)
            q, r = divmod(q * self.n + s, self.d)
            words.append(r)
            buffers.append(i if spill else i * self.d + r)
            p.append(self._check(q - k))
            theta.append(self._check(t + q - k))
        self._theta, self._p, self._i = theta, p, buffers
        self._words += [words] if spill else []
        self.steps += 1

    def unstep(self, grad_fn: Function, *, alpha: float | None = None) -> None:
        if self.steps == 0:
            raise ValueError("no step is left to undo")
        before = [self._check(t - q) for t, q in zip(self._theta, self._p, strict=True)]
        increments = self._increments(
            grad_fn(np.array(before, np.float64).reshape(self.shape) * self.unit), alpha
        )
        p: list[int] = []
        buffers: list[int] = []
        spilled = self._spills(self.steps) > self._spills(self.steps - 1)
        words = self._words[-1] if spilled else [0] * len(p)
        for j, (q, i, k) in enumerate(zip(self._p, self._i, increments, strict=True)):
            i, r = (i, words[j]) if spilled else divmod(i, self.d)
            q, s = divmod((q + k) * self.d + r, self.n)
            p.append(self._check(q))
            buffers.append(i * self.n + s)
        self._theta, self._p, self._i = before, p, buffers
        self._words = self._words[:-1] if spilled else self._words
        self.steps -= 1


class Hypergradients(NamedTuple):
    dtheta: NDArray
    dp: NDArray
    dalpha: float
    dbeta: float


def hypergradient(
    loss_grad: Function,
    train_grad: Function,
    train_hvp: Callable[[NDArray, NDArray], ArrayLike],
    theta: ArrayLike,
    *,
    n_steps: SupportsIndex,
    alpha: float,
    beta: float,
) -> Hypergradients:
    """The whole trajectory is stored, in floating point.  §4.9."""
    beta = round(beta * 2**16) / 2**16
    x = np.array(theta, np.float64)
    p, trajectory = np.zeros_like(x), []
    for _ in range(int(n_steps)):
        g = np.asarray(train_grad(x.copy()))
        trajectory.append((x, p, g))
        p = beta * p - alpha * g
        x = x + p
    dtheta, dp, dalpha, dbeta = np.array(loss_grad(x.copy()), float), np.zeros_like(x), 0.0, 0.0
    for x, p, g in reversed(trajectory):
        dp = dp + dtheta  # θ' = θ + p'
        dalpha -= float((dp * g).sum())  # p' = βp − αg(θ)
        dbeta += float((dp * p).sum())
        dtheta = dtheta - alpha * np.asarray(train_hvp(x.copy(), dp.copy()))
        dp = beta * dp
    return Hypergradients(dtheta, dp, dalpha, dbeta)
