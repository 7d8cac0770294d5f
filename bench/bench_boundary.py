"""The boundary room against NumPy and SciPy: results are checked, then timed in turn.

python bench/bench_boundary.py [--json] [--rounds N] [--only evaluations,roots,ties,curves,calls]
"""

from functools import partial
from itertools import pairwise

import numpy as np
from scipy.optimize import brentq
from scipy.optimize.elementwise import find_root
from scipy.special import expit

try:
    from contourpy import contour_generator  # matplotlib's
except ImportError:
    contour_generator = None

import fastderiv as fd
from fastderiv._cli.bench import threads_set_to
from fastderiv._cli.timing import Timing, interleave
from report import compare, limited, options, report

NETWORKS = {"2-3-2": 100_000, "2-16-2": 100_000, "64-256-256-2": 20_000}  # rows
ROOTS = {"row by row": 500, "at once": 20_000}
TIES = {
    "2-3-2": 40_000,
    "2-16-2": 8_000,
    "2-128-2": 1_000,
    "2-16-16-16-2": 100,
    "2-64-64-64-2": 10,
}  # rows of each network
RANDOM_NETWORKS = 12
REACH = 10.0  # of a bracket beyond its tie: it ends in the middle to the next tie, or that far out


def network(sizes, seed=0):
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal(shape) for shape in pairwise(sizes)]
    return fd.SigmoidMLP(weights, [rng.standard_normal(n) for n in sizes[1:]])


class Peer:
    """The margin and its gradient as NumPy users write them: BLAS, `expit`, one array per layer."""

    def __init__(self, net):
        self.hidden = list(zip(net.weights[:-1], net.biases[:-1], strict=True))
        self.d = net.weights[-1][:, 0] - net.weights[-1][:, 1]
        self.dc = net.biases[-1][0] - net.biases[-1][1]

    def margin(self, X):
        for w, b in self.hidden:
            X = expit(X @ w + b)
        return X @ self.d + self.dc

    def margin_gradient(self, X):
        slopes = []
        for w, b in self.hidden:
            X = expit(X @ w + b)
            slopes.append(X * (1 - X))
        g = self.d
        for (w, _), s in zip(reversed(self.hidden), reversed(slopes), strict=True):
            g = (g * s) @ w.T
        return g


def evaluations(rounds):
    for name, m in NETWORKS.items():
        sizes = tuple(map(int, name.split("-")))
        net, X = network(sizes), np.random.default_rng(1).standard_normal((m, sizes[0]))
        peer = Peer(net)
        for what in ("margin", "margin_gradient"):
            ours, theirs = getattr(net, what), getattr(peer, what)
            exact = theirs(X)
            assert np.abs(ours(X) - exact).max() < 1e-12 * np.abs(exact).max()
            calls = {"fastderiv": partial(ours, X), "NumPy": partial(theirs, X)}
            for threads in (1, 2):
                with limited(threads):
                    timings = interleave(calls, rounds=rounds, rest=0.02)
                label = f"{what} {name}, {threads} thread{'s' * (threads > 1)}"
                yield compare(label, timings, "fastderiv", "NumPy", "row", m)


def roots(rounds):
    net = network((2, 3, 2))
    peer = Peer(net)
    (w, b), d, dc = peer.hidden[0], peer.d, peer.dc
    x2, lo, hi = np.random.default_rng(2).standard_normal(max(ROOTS.values())), -30.0, 30.0
    ends = [net.margin(np.c_[np.full_like(x2, end), x2]) for end in (lo, hi)]
    x2 = x2[ends[0] * ends[1] < 0]

    def looped(x2):
        return np.array(
            [
                brentq(lambda t, s=s: d @ expit(t * w[0] + s) + dc, lo, hi)
                for s in x2[:, None] * w[1] + b
            ]
        )

    def vectorised(x2):
        return find_root(
            lambda t, x: expit(np.stack([t, x], -1) @ w + b) @ d + dc,
            (lo, hi),
            args=(x2,),
            tolerances={"xatol": 2e-12},
        ).x

    few, many = x2[: ROOTS["row by row"]], x2[: ROOTS["at once"]]
    assert np.abs(fd.find_x1(net, few, (lo, hi)).x - looped(few)).max() < 1e-10
    assert (
        np.abs(fd.find_x1(net, many, (lo, hi), method="chandrupatla").x - vectorised(many)).max()
        < 1e-10
    )
    for method in ("brentq", "chandrupatla"):
        rows, other = (
            (few, "brentq over NumPy") if method == "brentq" else (many, "find_root over NumPy")
        )
        peer_call = looped if method == "brentq" else vectorised
        with limited(1):
            timings = interleave({
                "fastderiv": lambda m=method, r=rows: fd.find_x1(net, r, (lo, hi), method=m),
                other: lambda f=peer_call, r=rows: f(r),
            }, rounds=rounds)  # fmt: skip
        yield compare(f"find_x1 {method} 2-3-2", timings, "fastderiv", other, "row", len(rows))


def ties(rounds):
    """All ties of random rows, certified, against SciPy's finders, which are given brackets."""
    for name, m in TIES.items():
        yield from solving(
            name,
            [Ties(tuple(map(int, name.split("-"))), m, seed) for seed in range(RANDOM_NETWORKS)],
            rounds,
        )


def solving(name, problems, rounds):
    rows, found = sum(len(p.crossings) for p in problems), sum(len(p.crossings.x) for p in problems)
    sure = sum(p.crossings.unique.sum() for p in problems)
    label = f"solve_x1 {name}, {found / rows:.2f} ties a row, {1 - sure / found:.3%} clusters"
    assert all(p.crossings.complete.all() for p in problems)

    def each(method, *arguments):
        return lambda: [getattr(p, method)(*arguments) for p in problems]

    with limited(1):
        timings = interleave(
            {"fastderiv": each("solve"), "find_root": each("find_root")}, rounds=rounds
        )
    yield compare(label, timings, "fastderiv", "find_root", "row", rows)
    if name == "2-3-2":
        some = 100
        with limited(1):
            timings = interleave(
                {"fastderiv": each("solve"), "brentq": each("brentq", some)}, rounds=3
            )
        tried = sum(min(some, len(p.x)) for p in problems)
        timings["brentq"] = Timing(tuple(t * found / tried for t in timings["brentq"].rounds))
        yield compare(label, timings, "fastderiv", "brentq", "row", rows)
    timings = interleave(
        {f"{n} threads": partial(on_threads, n, problems) for n in (1, 2)}, rounds=rounds, rest=0.02
    )
    yield compare(f"solve_x1 {name}, 2 threads", timings, "2 threads", "1 threads", "row", rows)


def on_threads(n, problems):
    with threads_set_to(n):
        for p in problems:
            p.solve()


class Ties:
    """Rows of a random network N(0, 1.5), its ties, and brackets of these for the peers.

    With more than one hidden layer the last bias is minus the median of the margin without it:
    otherwise most networks have no tie at all.
    """

    def __init__(self, sizes, m, seed):
        rng = np.random.default_rng(seed)
        weights = [rng.normal(0, 1.5, shape) for shape in pairwise(sizes)]
        biases = [rng.normal(0, 1.5, n) for n in sizes[1:]]
        self.x2 = rng.normal(0, 1.5, m)
        if len(sizes) > 3:
            margin = fd.SigmoidMLP(weights, biases).margin(
                np.column_stack([rng.normal(0, 5, m), self.x2])
            )
            biases[-1][1] += np.median(margin)
        self.net = fd.SigmoidMLP(weights, biases)
        self.peer = Peer(self.net)
        self.crossings = c = self.solve()
        self.rows = np.repeat(self.x2, np.diff(c.indptr))
        same = np.diff(np.repeat(np.arange(m), np.diff(c.indptr))) == 0
        middle = (c.x[1:] + c.x[:-1]) / 2
        self.lo = np.append(-np.inf, np.where(same, middle, -np.inf))[: len(c.x)].clip(
            min=c.x - REACH
        )
        self.hi = np.append(np.where(same, middle, np.inf), np.inf)[: len(c.x)].clip(
            max=c.x + REACH
        )
        good = c.unique & (self.margin(self.lo, self.rows) * self.margin(self.hi, self.rows) < 0)
        self.lo, self.hi, self.rows, self.x = (
            self.lo[good],
            self.hi[good],
            self.rows[good],
            c.x[good],
        )
        assert len(self.x) == 0 or np.abs(self.find_root() - self.x).max() < 1e-8 * (
            1 + np.abs(self.x).max()
        )

    def margin(self, t, x2):
        return self.peer.margin(np.stack([t, x2], -1))

    def solve(self):
        return fd.solve_x1(self.net, self.x2)

    def find_root(self):
        tolerances = {"xatol": 1e-12, "xrtol": 1e-15}
        return (
            find_root(self.margin, (self.lo, self.hi), args=(self.rows,), tolerances=tolerances).x
            if len(self.lo)
            else self.lo
        )

    def brentq(self, most):
        return [
            brentq(lambda t, x=x: self.margin(np.float64(t), x), lo, hi, xtol=1e-12)
            for lo, hi, x in list(zip(self.lo, self.hi, self.rows, strict=True))[:most]
        ]


def calls(rounds):
    """One row: what a call costs."""
    net = network((2, 3, 2))
    peer, X = Peer(net), np.random.default_rng(3).standard_normal((1, 2))
    timings = interleave(
        {"fastderiv": lambda: net.margin(X), "NumPy": lambda: peer.margin(X)}, rounds=rounds
    )
    yield compare("margin 2-3-2, one row", timings, "fastderiv", "NumPy", "call", 1)
    problem = Ties((2, 3, 2), 200, 2)
    timings = interleave(
        {"fastderiv": lambda: fd.solve_x1(problem.net, 0.3), "brentq": lambda: problem.brentq(1)},
        rounds=rounds,
    )
    yield compare("solve_x1 2-3-2, one row", timings, "fastderiv", "brentq", "call", 1)


CURVES = {
    "2-3-2": (2, 3, 2),
    "2-16-2": (2, 16, 2),
    "2-64-2": (2, 64, 2),
    "2-16-16-16-2": (2, 16, 16, 16, 2),
}


def contoured(net, n):
    """The usual way: the margin on a grid of n × n points, and straight lines through its cells."""
    x = np.linspace(-3, 3, n)
    grid = np.stack(np.meshgrid(x, x), axis=-1)
    return contour_generator(x, x, net.margin(grid.reshape(-1, 2)).reshape(n, n)).lines(0.0)


def curves(rounds):
    """Every tie in a box, certified and to 1e-10, against a contour of the margin.

    The contour is that of 1000 × 1000 points, which is right to 1e-5.
    """
    if contour_generator is None:
        return
    for name, sizes in CURVES.items():
        net = through_middle(network(sizes, seed=4))
        traced = fd.trace_boundary(net, ((-3, 3), (-3, 3)))
        assert traced.certified and len(traced.points) == len(contoured(net, 1000))
        for points in traced.points:
            distance = np.abs(net.margin(points)) / np.hypot(*net.margin_gradient(points).T)
            assert distance.max() < 1e-10
        timings = interleave({
            "fastderiv": lambda n=net: fd.trace_boundary(n, ((-3, 3), (-3, 3))),
            "contour": lambda n=net: contoured(n, 1000),
        }, rounds=rounds)  # fmt: skip
        yield compare(f"trace_boundary {name}", timings, "fastderiv", "contour", "call", 1)


def through_middle(net):
    """The same network, its two outputs tied at the origin."""
    *biases, last = net.biases
    return fd.SigmoidMLP(net.weights, [*biases, last - [net.margin(np.zeros((1, 2)))[0], 0]])


PARTS = (evaluations, roots, ties, curves, calls)


def results(rounds, only):
    for part in PARTS:
        if part.__name__ in only:
            yield from part(rounds)


if __name__ == "__main__":
    parser = options(__doc__, rounds=9)
    parser.add_argument(
        "--only", default=",".join(part.__name__ for part in PARTS), help="parts to run"
    )
    given = parser.parse_args()
    report(results(given.rounds, given.only.split(",")), given.json)
