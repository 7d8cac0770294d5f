"""``python -m fastderiv``: the library's main jobs on real data, in a few seconds.

Each result is checked.  `run` prints as it goes and returns what it computed, for the exit status
and for the plot.  The text is plain ASCII.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

import fastderiv as fd
from fastderiv import reference
from fastderiv.data import IrisPair, Network, Sunspots, load_iris_pair, load_network, load_sunspots

from . import bench

WIDTH = 92


class Ties(NamedTuple):
    """Where the network's outputs tie, row by row of (x2, x1)."""

    x2: np.ndarray
    x1: np.ndarray
    rows_without: np.ndarray  # the x2 at which there is none


class Scan(NamedTuple):
    """What a selective scan takes, in the layout (L, E) of a layer, and what it gave."""

    x: np.ndarray  # (L, E)
    preactivation: np.ndarray  # (L, E), the bias included
    A: np.ndarray  # (E, N)
    B: np.ndarray  # (L, N)
    C: np.ndarray  # (L, N)
    y: np.ndarray  # (L, E)


@dataclass
class Demo:
    """What the demo prints to, what failed, and what the plot needs."""

    failed: list[str] = field(default_factory=list)
    iris: IrisPair = field(default_factory=load_iris_pair)
    network: Network = field(default_factory=load_network)
    sunspots: Sunspots = field(default_factory=load_sunspots)
    ties: Ties | None = None
    scan: Scan | None = None

    @property
    def status(self) -> int:
        return 1 if self.failed else 0

    def say(self, title: str, text: str) -> None:
        """Print a section's title and what it shows."""
        print(f"\n{title}\n{textwrap.fill(text, WIDTH)}\n")

    def check(self, passed: bool | np.bool_, claim: str, figure: str) -> None:
        """Print a claim, its figure and whether it holds."""
        if not passed:
            self.failed.append(claim)
        print(f"  {'ok' if passed else 'FAILED':<6}  {claim}: {figure}")


def relative(value: np.ndarray, exact: np.ndarray) -> float:
    """The largest deviation relative to the largest magnitude.

    It is NaN, which passes no check, if either array holds one.
    """
    return float(np.abs(value - exact).max() / np.abs(exact).max())


def digits(a: np.ndarray, b: np.ndarray) -> float:
    """The decimal digits to which all elements of two arrays agree, each relative to itself.

    17 if they are equal.
    """
    worst = float((np.abs(a - b) / np.abs(b)).max())
    return -np.log10(worst) if worst else 17.0


# ---- (a) ties -----------------------------------------------------------------------------------

X2 = np.linspace(1.0, 2.0, 101)  # petal widths, cm
X1 = np.linspace(0.0, 8.0, 801)  # petal lengths, cm: the margin's sign is looked at on this grid


def brackets(
    net: fd.SigmoidMLP, x1: np.ndarray, x2: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of neighbours on the grid between which the margin changes sign.

    Returns x2, the lower x1 and the upper x1 of each.
    """
    grid = np.stack(np.meshgrid(x1, x2), -1)  # (len(x2), len(x1), 2)
    positive = net.margin(grid.reshape(-1, 2)).reshape(grid.shape[:2]) > 0
    row, cell = np.nonzero(positive[:, 1:] != positive[:, :-1])
    return x2[row], x1[cell], x1[cell + 1]


def exponents(network: Network, X: np.ndarray) -> np.ndarray:
    """B_i = -(hidden unit i's pre-activation), in which the exponential sum is written."""
    return -(X @ network.weights[0] + network.biases[0])


def show_ties(demo: Demo) -> None:
    network, net = demo.network, fd.SigmoidMLP(demo.network.weights, demo.network.biases)
    demo.say(
        "(a) Where a trained network cannot decide",
        f"A sigmoid network with three hidden units tells Iris {network.outputs[0]} from "
        f"Iris {network.outputs[1]} by petal length x1 and petal width x2 "
        f"({network.training_accuracy:.0%} of 100 plants right). At a given width, at which "
        "length do its outputs z1 and z2 tie? The tie line turns back on itself, so there may "
        "be two answers, or none.",
    )
    x2, lower, upper = brackets(net, X1, X2)
    found = fd.find_x1(net, x2, (lower, upper), xtol=1e-14)
    demo.ties = Ties(x2, found.x, np.setdiff1d(X2, x2))

    z = net.forward(np.column_stack([found.x, x2]))
    residual = np.abs(z[:, 0] - z[:, 1])
    sums = fd.ExponentialSum.from_network(net)
    # just beside each root, near enough to have no other root in between
    left, right = (
        sums.log_evaluate(exponents(network, np.column_stack([found.x + h, x2])))[0]
        for h in (-1e-6, 1e-6)
    )

    print("    x2 [cm]   x1 [cm]         |z1 - z2|   exponential sum, left and right of x1")
    sign = {-1: "-", 0: "0", 1: "+"}
    for width in X2[::10]:
        for k in np.nonzero(x2 == width)[0]:
            signs = f"{sign[int(left[k])]} {sign[int(right[k])]}"
            print(f"     {width:.2f}     {found.x[k]:.12f}   {residual[k]:.1e}    {signs}")
        if width <= x2.max() < width + 0.1:
            print(f"   ~ {x2.max():.2f}     the tie line turns back; wider petals have no tie")
        if width in demo.ties.rows_without:
            print(f"     {width:.2f}     none from {X1[0]:g} to {X1[-1]:g}")
    print()
    calls = found.function_calls.sum()
    demo.check(
        found.converged.all(),
        f"{len(x2)} ties at {len(X2)} widths converged",
        f"{calls} evaluations of the network, {calls / len(x2):.1f} per tie",
    )
    crossings = fd.solve_x1(net, X2, bounds=(X1[0], X1[-1]))
    proven = crossings.unique.all() and crossings.complete.all() and len(crossings.x) == len(x2)
    demo.check(
        proven and np.abs(crossings.x - found.x).max() < 1e-10,
        "solve_x1 finds the same without a grid and proves that there are no others",
        f"{len(crossings.x)} intervals of one tie each, at most "
        f"{(crossings.upper - crossings.lower).max():.0e} cm wide",
    )
    demo.check(
        residual.max() <= 1e-12,
        "substitution gives z1 = z2",
        f"largest |z1 - z2| = {residual.max():.1e}",
    )
    changes = left * right == -1
    demo.check(
        changes.all(),
        "the exponential sum (8 terms) changes sign there too",
        f"{changes.sum()} of {len(x2)}",
    )
    per_row, bound = (x2 == X2[:, None]).sum(1), sums.root_bound(0)
    allowed = (per_row <= bound) & ((bound - per_row) % 2 == 0)
    counts = " or ".join(map(str, np.unique(per_row)))
    permitted = ", ".join(map(str, range(bound, -1, -2)))
    demo.check(
        allowed.all(),
        "Descartes' rule of signs allows as many",
        f"{counts} per width; "
        f"coefficients that change sign {bound} times permit one of {permitted}",
    )


# ---- (b) scan -----------------------------------------------------------------------------------

CHANNELS, STATES, LAGS = 64, 16, 12


def layer_on(sunspots: Sunspots) -> Scan:
    """An S6 layer with fixed random weights; y is still empty.

    Its inputs are random mixtures of the last twelve years' numbers.
    """
    rng = np.random.default_rng(1700)

    def mixture(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) / np.sqrt(shape[0])

    # counts have an even spread on the scale of their square roots
    value = np.sqrt(sunspots.number) / 6
    lagged = np.stack(
        [np.concatenate([np.zeros(k), value[: len(value) - k]]) for k in range(LAGS)], axis=1
    )
    x = lagged @ mixture(LAGS, CHANNELS)
    # from channels that remember for long to channels that forget at once
    steps = np.geomspace(0.01, 0.5, CHANNELS)
    preactivation = x @ (mixture(CHANNELS, CHANNELS) / 4) + np.log(np.expm1(steps))
    A = -np.tile(np.arange(1.0, STATES + 1), (CHANNELS, 1))
    return Scan(
        x,
        preactivation,
        A,
        x @ mixture(CHANNELS, STATES),
        x @ mixture(CHANNELS, STATES),
        np.empty_like(x),
    )


def scan_arguments(
    scan: Scan, dtype: DTypeLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The kernel's u and delta (E, L), A (E, N), B and C (1, N, L).

    They are transposed views of the layer's arrays.
    """
    # not y, which may not be computed yet
    x, preactivation, A, B, C = (a.astype(dtype) for a in scan[:5])
    return x.T, preactivation.T, A, B.T[None], C.T[None]


def show_scan(demo: Demo) -> None:
    year = demo.sunspots.year
    scan = layer_on(demo.sunspots)
    demo.say(
        "(b) A selective scan over three centuries of sunspots",
        f"The yearly sunspot numbers {year[0]}-{year[-1]} run through a layer of the kind Mamba "
        f"models are made of, with fixed random weights: {len(year)} steps, {CHANNELS} channels "
        f"with {STATES} states each, step sizes and read-outs that depend on the data.",
    )
    exact = reference.selective_scan(*scan_arguments(scan, np.float64), delta_softplus=True)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 2e-5)):
        y = fd.selective_scan(*scan_arguments(scan, dtype), delta_softplus=True)
        if dtype is np.float64:
            demo.scan = scan._replace(y=y.T)
        error = relative(y, exact)
        demo.check(
            error <= tolerance,
            f"{np.dtype(dtype).name} agrees with the NumPy reference",
            f"within {error:.1e} of the largest output",
        )


# ---- (c) theorem --------------------------------------------------------------------------------

WINDOW, FIRST_YEAR = 20, 1800  # 2**20 subsets; the Dalton minimum


def show_theorem(demo: Demo) -> None:
    assert demo.scan is not None
    start = FIRST_YEAR - int(demo.sunspots.year[0])
    delta = np.ascontiguousarray(demo.scan.preactivation[start : start + WINDOW].T)  # (E, WINDOW)
    demo.say(
        "(c) One product, two routes",
        f"From {FIRST_YEAR} to {FIRST_YEAR + WINDOW - 1} a state decays by a product of {WINDOW} "
        "factors exp(step size * A). A theorem says that this product is a sum over all "
        f"2^{WINDOW} = {2**WINDOW:,} subsets of those steps, to the power A. Here are both sides, "
        f"for all {CHANNELS} channels.",
    )
    before = time.perf_counter()
    logs = fd.subset_logsumexp(delta, method="enumerate")
    took = bench.duration(time.perf_counter() - before)
    work = f"{CHANNELS * 2**WINDOW / 1e6:.0f} million terms in {took}"
    agreement = digits(logs, fd.subset_logsumexp(delta, method="closed"))
    demo.check(agreement >= 12, "the logarithms agree", f"{agreement:.1f} digits or more; {work}")
    closed, enumerated = (
        fd.transition_product(delta, demo.scan.A, method=m) for m in ("closed", "subsets")
    )
    agreement = digits(enumerated, closed)
    demo.check(
        agreement >= 12,
        "the products agree",
        f"{agreement:.1f} digits or more; "
        f"{closed.size} products, {closed.min():.0e} to {closed.max():.2f}",
    )


# ---- (d) timing ---------------------------------------------------------------------------------


def show_timing(demo: Demo) -> None:
    demo.say(
        "(d) How much faster than NumPy",
        "The same results from carefully written NumPy (it is in fastderiv/_cli/bench.py), timed "
        "in turn with fastderiv on one thread of this machine. Ratio first, then the times.",
    )
    with bench.threads_set_to(1):
        for case in (
            bench.scan_case(1, 256, 16, 512),
            bench.enumeration_case(20),
            bench.margin_case(100_000, (2, 3, 2)),
        ):
            result = bench.measure(case, rounds=3, round_time=0.05)
            ours, numpys = map(bench.duration, (result.seconds, result.numpy_seconds))
            demo.check(
                result.agrees,
                f"{result.kernel:<17} {result.ratio:5.1f}x",
                f"{ours} instead of {numpys}  ({result.size}; differs by {result.error:.0e})",
            )


SECTIONS: tuple[Callable[[Demo], None], ...] = (show_ties, show_scan, show_theorem, show_timing)


def run() -> Demo:
    """Run every section; `.status` is 1 if a check failed."""
    started = time.perf_counter()
    config = fd.show_config()
    kernels = f"{config['CPU level in use']} kernels, {config['SIMD width']} wide"
    print(f"fastderiv {fd.__version__}: {kernels}, {bench.on_threads(fd.get_num_threads())}")
    demo = Demo()
    for section in SECTIONS:
        section(demo)
    verdict = f"FAILED: {'; '.join(demo.failed)}" if demo.failed else "All checks passed"
    print(f"\n{verdict} ({time.perf_counter() - started:.1f} s).")
    return demo
