"""Momentum, its exact reversal and hypergradients against NumPy and PyTorch.

    python bench/bench_optim.py [--json] [--rounds N] [--size N] [--long]
                                [--only step,reversal,hyper]

The results are checked; then all candidates are timed in turn.  With --long, 2000 steps with 10**6
parameters are taken and undone first, and every bit is compared (about half a minute).
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # limits NumPy; PyTorch has its own threads

import numpy as np

import fastderiv as fd
from fastderiv._cli.bench import threads_set_to
from fastderiv._cli.timing import interleave
from report import Result, compare, options, peak_memory, report

try:
    import torch
except ImportError:
    torch = None

ALPHA, BETA, N = 0.1, 58982 / 2**16, 58982
D = 1 << 16


@contextmanager
def threads(n: int) -> Iterator[None]:
    """`n` threads for fastderiv and PyTorch."""
    before = torch.get_num_threads() if torch else None
    with threads_set_to(n):
        if torch:
            torch.set_num_threads(n)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


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


def check_steps(theta: np.ndarray, grad: np.ndarray) -> None:
    """After ten steps all candidates have the same parameters."""
    # NumPyReversal needs so much; the others agree to rounding
    tolerance = 1e-4 if theta.dtype == np.float32 else 1e-8
    ours, numpys = (theta.copy(), np.zeros_like(theta)), (theta.copy(), np.zeros_like(theta))
    fixed, ints = fd.ReversibleMomentum(theta, alpha=ALPHA, beta=BETA), NumPyReversal(theta)
    start = fixed.theta, ints.theta.copy()
    for _ in range(10):
        fd.momentum_step(*ours, grad, alpha=ALPHA, beta=BETA)
        numpy_step(*numpys, grad)
        fixed.step(grad)
        ints.step(grad)
    for other in numpys[0], fixed.theta, ints.theta * 2.0**-44:
        assert abs(ours[0] - other).max() < tolerance * abs(ours[0]).max()
    if torch:
        step, result = torch_step(theta, grad)
        for _ in range(10):
            step()
        assert abs(ours[0] - result()).max() < tolerance * abs(ours[0]).max()
    for _ in range(10):
        fixed.unstep(lambda _: grad)
        ints.unstep(grad)
    assert np.array_equal(fixed.theta, start[0]) and np.array_equal(ints.theta, start[1])


def bench_steps(size: int, dtype: type, n: int, rounds: int) -> Iterator[Result]:
    """The step in floating point against NumPy and PyTorch."""
    theta, grad = np.random.default_rng(0).normal(size=(2, size)).astype(dtype)
    check_steps(theta, grad)
    grad *= 1e-3  # parameters stay small, however many steps the timing takes
    ours, numpys = (theta.copy(), np.zeros_like(theta)), (theta.copy(), np.zeros_like(theta))
    candidates: dict[str, Callable[[], object]] = {
        "fastderiv": lambda: fd.momentum_step(*ours, grad, alpha=ALPHA, beta=BETA),
        "NumPy, in place": lambda: numpy_step(*numpys, grad),
    }
    if torch:
        candidates["PyTorch SGD, fused"] = torch_step(theta, grad)[0]
    with threads(n):
        timings = interleave(candidates, rounds=rounds)
    for peer in list(timings)[1:]:
        yield compare(
            f"momentum_step, {np.dtype(dtype).name}, {size} parameters, {n} thread(s)",
            timings,
            "fastderiv",
            peer,
            "parameter",
            size,
        )


def bench_reversal(size: int, n: int, rounds: int) -> Iterator[Result]:
    """What exactness costs: steps in fixed point against steps in floating point, and NumPy's."""
    theta, grad = np.random.default_rng(0).normal(size=(2, size))
    grad *= 1e-3
    floats, fixed, ints = (
        (theta.copy(), np.zeros(size)),
        fd.ReversibleMomentum(theta, alpha=ALPHA, beta=BETA),
        NumPyReversal(theta),
    )

    def float_back() -> None:
        fd.momentum_step(*floats, grad, alpha=ALPHA, beta=BETA)
        fd.momentum_unstep(*floats, lambda _: grad, alpha=ALPHA, beta=BETA)

    def there_and_back() -> None:
        fixed.step(grad)
        fixed.unstep(lambda _: grad)

    def numpy_there_and_back() -> None:
        ints.step(grad)
        ints.unstep(grad)

    moving = fd.ReversibleMomentum(theta, alpha=ALPHA, beta=BETA)
    with threads(n):
        timings = interleave(
            {
                "momentum_step": lambda: fd.momentum_step(*floats, grad, alpha=ALPHA, beta=BETA),
                "ReversibleMomentum.step": lambda: moving.step(grad),
                "momentum_step and unstep": float_back,
                "step and unstep": there_and_back,
                "NumPy, int64": numpy_there_and_back,
            },
            rounds=rounds,
        )
    label = f"{size} parameters, {n} thread(s)"
    yield compare(
        f"momentum_step, float64, {label}",
        timings,
        "momentum_step",
        "ReversibleMomentum.step",
        "parameter",
        size,
    )
    yield compare(
        f"there and back, float64, {label}",
        timings,
        "momentum_step and unstep",
        "step and unstep",
        "parameter",
        size,
    )
    yield compare(
        f"ReversibleMomentum, there and back, {label}",
        timings,
        "step and unstep",
        "NumPy, int64",
        "parameter",
        size,
    )


def regression(rows: int, columns: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    X, w = rng.normal(size=(2 * rows, columns)) / math.sqrt(columns), rng.normal(size=columns)
    y = (X @ w + 0.3 * rng.normal(size=2 * rows) > 0).astype(float)
    return X[:rows], y[:rows], X[rows:], y[rows:]


def bench_hypergradients(
    rows: int, columns: int, steps: int, n: int, rounds: int
) -> Iterator[Result]:
    """Gradients through the training of a logistic regression, against autograd through it."""
    X, y, Xh, yh = regression(rows, columns)

    def sigma(x: np.ndarray) -> np.ndarray:
        return 0.5 + 0.5 * np.tanh(0.5 * x)

    def train_hvp(theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        s = sigma(X @ theta)
        return X.T @ (s * (1 - s) * (X @ v)) / rows + 1e-3 * v

    def held_grad(theta: np.ndarray) -> np.ndarray:
        return Xh.T @ (sigma(Xh @ theta) - yh) / rows

    def train_grad(theta: np.ndarray) -> np.ndarray:
        return X.T @ (sigma(X @ theta) - y) / rows + 1e-3 * theta

    def ours() -> fd.Hypergradients:
        rates = {"alpha": ALPHA, "beta": BETA}
        start = np.zeros(columns)
        return fd.hypergradient(held_grad, train_grad, train_hvp, start, n_steps=steps, **rates)

    def theirs() -> tuple:
        A, b, Ah, bh = map(torch.from_numpy, (X, y, Xh, yh))
        start, momentum = (
            torch.zeros(columns, dtype=torch.float64, requires_grad=True) for _ in range(2)
        )
        alpha, beta = (
            torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (ALPHA, BETA)
        )
        t, p = start, momentum
        for _ in range(steps):
            loss = (
                torch.nn.functional.binary_cross_entropy_with_logits(A @ t, b)
                + 5e-4 * (t * t).sum()
            )
            (g,) = torch.autograd.grad(loss, t, create_graph=True)
            p = beta * p - alpha * g
            t = t + p
        held = torch.nn.functional.binary_cross_entropy_with_logits(Ah @ t, bh)
        return torch.autograd.grad(held, (start, momentum, alpha, beta))

    with threads(n):
        for a, b in zip(ours(), theirs(), strict=True):
            a, b = np.asarray(a), b.numpy()
            assert abs(a - b).max() <= 1e-7 * abs(b).max()
        timings = interleave({"fastderiv": ours, "PyTorch, unrolled": theirs}, rounds=rounds)
        memory = {"fastderiv": peak_memory(ours), "PyTorch, unrolled": peak_memory(theirs)}
    label = f"hypergradient, {rows} x {columns}, {steps} steps, {n} thread(s)"
    yield compare(label, timings, "fastderiv", "PyTorch, unrolled", "step", steps, memory)


def long_way() -> None:
    """10**6 parameters, 2000 steps forwards and backwards: differing bits, bits held, time."""

    def grad(theta: np.ndarray) -> np.ndarray:
        """One that never comes to rest and makes no temporary array: the time is the steps'."""
        return np.copysign(0.125, theta, out=theta)

    momentum = fd.ReversibleMomentum(
        np.random.default_rng(0).normal(size=10**6), alpha=ALPHA, beta=BETA
    )
    start, began, held = momentum.theta, time.perf_counter(), []
    for t in range(2000):
        momentum.step(grad(momentum.theta))
        if t in (999, 1999):
            held.append(momentum.information_bits / 10**6)
    for _ in range(2000):
        momentum.unstep(grad)
    differing = int(
        np.bitwise_count(momentum.theta.view(np.uint64) ^ start.view(np.uint64)).sum()
        + np.count_nonzero(momentum.p)
    )
    assert differing == 0 and momentum.information_bits == 0
    print(
        f"10**6 parameters, 2000 steps and back in {time.perf_counter() - began:.1f} s: "
        f"{differing} bits differ; {held[1] / 2000:.4f} bits a parameter and step, "
        f"{(held[1] - held[0]) / 1000:.4f} in the second half, "
        f"log2(1/beta) = {-math.log2(BETA):.4f}"
    )


def results(size: int, rounds: int, only: set[str]) -> Iterator[Result]:
    for n in 1, 2:
        if "step" in only:
            for dtype in np.float32, np.float64:
                yield from bench_steps(size, dtype, n, rounds)
        if "reversal" in only:
            yield from bench_reversal(size, n, rounds)
    if "hyper" in only and torch:
        for rows, columns, steps in (64, 30, 1000), (512, 1000, 300):
            yield from bench_hypergradients(rows, columns, steps, 1, min(rounds, 5))


if __name__ == "__main__":
    parser = options(__doc__, rounds=9)
    parser.add_argument("--size", type=int, default=10**6, help="parameters (default: %(default)s)")
    parser.add_argument(
        "--only", default="step,reversal,hyper", help="which comparisons (default: %(default)s)"
    )
    parser.add_argument("--long", action="store_true", help="also 2000 steps there and back")
    given = parser.parse_args()
    if given.long:
        long_way()
    report(results(given.size, given.rounds, set(given.only.split(","))), given.json)
