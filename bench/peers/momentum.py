"""Momentum and its exact reversal in NumPy, and momentum in PyTorch."""

from collections.abc import Callable

import numpy as np

try:
    import torch
except ImportError:
    torch = None

ALPHA, BETA, N = 0.1, 58982 / 2**16, 58982
D = 1 << 16


def numpy_step(theta: np.ndarray, p: np.ndarray, grad: np.ndarray) -> None:
    """In place, with one temporary array."""
    p *= p.dtype.type(BETA)
    p -= p.dtype.type(ALPHA) * grad
    theta += p


def torch_step(
    theta: np.ndarray, grad: np.ndarray
) -> tuple[Callable[[], None], Callable[[], np.ndarray]]:
    """A step of torch.optim.SGD in one fused pass, and a function that returns its parameters.

    Its buffer is −p/α.
    """
    parameter = torch.nn.Parameter(torch.from_numpy(theta.copy()))
    parameter.grad = torch.from_numpy(grad)
    optimizer = torch.optim.SGD([parameter], lr=ALPHA, momentum=BETA, fused=True)
    return optimizer.step, lambda: parameter.detach().numpy()


class NumPyReversal:
    """The map of Maclaurin, Duvenaud and Adams on int64 arrays, with // and %; it never spills."""

    def __init__(self, theta: np.ndarray) -> None:
        self.theta = np.rint(theta * 2.0**44).astype(np.int64)
        self.p, self.i = np.zeros_like(self.theta), np.zeros_like(self.theta)

    def step(self, grad: np.ndarray) -> None:
        i = self.i * D + self.p % D
        self.p = self.p // D * N + i % N - np.rint(ALPHA * 2.0**44 * grad).astype(np.int64)
        self.i = i // N
        self.theta += self.p

    def unstep(self, grad: np.ndarray) -> None:
        self.theta -= self.p
        p = self.p + np.rint(ALPHA * 2.0**44 * grad).astype(np.int64)
        i = self.i * N + p % N
        self.p = p // N * D + i % D
        self.i = i // D
