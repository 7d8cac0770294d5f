"""Functions that use ties, against NumPy and SciPy: results are checked, then timed in turn.

python bench/bench_ties.py [--json] [--rounds N]
"""

from functools import partial
from itertools import combinations

import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

import fastderiv as fd
from bench_boundary import Peer, network
from fastderiv._cli.timing import interleave
from report import compare, options, report

GRID = np.linspace(-8, 8, 801)  # where peers look for changes of sign


def with_input(x, c, values):
    X = np.repeat(x[None], len(values), axis=0)
    X[:, c] = values
    return X


def sampled_ties(margin, x, c):
    """Changes of sign on the grid, each by brentq: as one writes it."""
    f = margin(with_input(x, c, GRID))
    cells = np.flatnonzero(f[1:] * f[:-1] < 0)
    return np.array(
        [
            brentq(lambda t: margin(with_input(x, c, [t]))[0], GRID[k], GRID[k + 1], xtol=1e-12)
            for k in cells
        ]
    )


def sampled_counterfactuals(peer, x):
    ties = (sampled_ties(peer.margin, x, c) for c in range(len(x)))
    return np.array([t[abs(t - x[c]).argmin()] if len(t) else np.nan for c, t in enumerate(ties)])


def sampled_decisions(net, x, c):
    """The largest output between all ties of all pairs."""
    ties = np.sort(np.concatenate([
        sampled_ties(lambda X, a=a, b=b: np.subtract(*net.logits(X)[:, [a, b]].T), x, c)
        for a, b in combinations(range(net.n_outputs), 2)
    ]))  # fmt: skip
    ends = np.concatenate([[GRID[0]], ties, [GRID[-1]]])
    largest = net.logits(with_input(x, c, (ends[1:] + ends[:-1]) / 2)).argmax(1)
    return ends[:-1][np.append(True, largest[1:] != largest[:-1])]


def by_solve_ivp(peer, start, length):
    def field(s, p):
        a, b = peer.margin_gradient(p[None])[0]
        return np.array([-b, a]) / np.hypot(a, b)

    return solve_ivp(field, (0, length), start, method="DOP853", rtol=1e-10, atol=1e-10).y.T


def timed(name, unit, rounds, ours, theirs, peer, units=1):
    timings = interleave({"fastderiv": ours, peer: theirs}, rounds=rounds, rest=0.02)
    return compare(name, timings, "fastderiv", peer, unit, units)


def comparisons(rounds):
    rng = np.random.default_rng(0)
    net, x = network((30, 10, 2)), 0.3 * rng.standard_normal(30)
    peer = Peer(net)
    value = fd.counterfactuals(net, x, bounds=(-8, 8)).value
    np.testing.assert_allclose(value, sampled_counterfactuals(peer, x), atol=1e-9)
    yield timed(
        "counterfactuals 30-10-2",
        "sample",
        rounds,
        partial(fd.counterfactuals, net, x, bounds=(-8, 8)),
        partial(sampled_counterfactuals, peer, x),
        "grid and brentq",
    )

    net, x = network((64, 24, 10)), 0.3 * rng.standard_normal(64)
    call = partial(fd.decision_intervals, net, np.delete(x, 3)[None], coordinate=3, bounds=(-8, 8))
    np.testing.assert_allclose(call().lower, sampled_decisions(net, x, 3), atol=1e-9)
    yield timed(
        "decision_intervals 64-24-10",
        "row",
        rounds,
        call,
        partial(sampled_decisions, net, x, 3),
        "grid and brentq",
    )
    X = 0.3 * rng.standard_normal((100, 64))
    call = partial(
        fd.decision_intervals, net, np.delete(X, 3, axis=1), coordinate=3, bounds=(-8, 8)
    )
    yield timed(
        "the same, 100 rows",
        "row",
        rounds,
        call,
        lambda: [sampled_decisions(net, x, 3) for x in X],
        "grid and brentq",
        100,
    )

    net = network((2, 8, 2))
    net = fd.SigmoidMLP(net.weights, [net.biases[0], net.biases[1] - [net.margin([[0, 0]])[0], 0]])
    ours, theirs = (
        partial(fd.follow_boundary, net, np.zeros(2), 20.0),
        partial(by_solve_ivp, Peer(net), np.zeros(2), 20.0),
    )
    np.testing.assert_allclose(ours()[-1], theirs()[-1], atol=1e-6)
    yield timed(
        "follow_boundary 2-8-2, length 20", "curve", rounds, ours, theirs, "solve_ivp, unprojected"
    )


if __name__ == "__main__":
    arguments = options(__doc__, rounds=7).parse_args()
    report(comparisons(arguments.rounds), arguments.json)
