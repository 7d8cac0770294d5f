"""solve_x1 with several hidden layers against SciPy: checks the results, then times interleaved; ratio first, time second.

    python bench/bench_boundary_deep.py [--json] [--rounds N] [--nets N]

Ours finds and proves all ties on the whole line.  The peers are *given* a bracket of each of them: SciPy's `find_root` takes all
brackets at once over a NumPy margin, `brentq` one after the other.
"""

from functools import partial
from itertools import pairwise

import numpy as np
from scipy.optimize import brentq
from scipy.optimize.elementwise import find_root
from scipy.special import expit

import fastderiv as fd
from bench_boundary import limited
from fastderiv._cli.timing import interleave
from report import compare, options, report

# hidden layers, scale of the weights, divided by the root of the number of inputs; rows of a network
SETS = {
    "2 x 16": ((16, 16), 1.5, False, 200),
    "3 x 16": ((16, 16, 16), 1.5, False, 100),
    "3 x 16, fan": ((16, 16, 16), 1.5, True, 200),
    "3 x 16, steep": ((16, 16, 16), 6.0, False, 50),
    "5 x 16, fan": ((16,) * 5, 4.0, True, 50),
    "3 x 64, fan": ((64, 64, 64), 1.5, True, 20),
    "2 x 256, fan": ((256, 256), 1.5, True, 8),
}
LOOPED = 8  # rows, one bracket after the other


def network(hidden, scale, fan, seed):
    """Random, the last bias such that ties exist."""
    rng, sizes = np.random.default_rng(seed), (3, *hidden, 1)
    weights = [scale / (n**0.5 if fan else 1) * rng.standard_normal((n, k)) for n, k in pairwise(sizes)]
    biases = [scale * rng.standard_normal(n) for n in sizes[1:]]
    biases[-1] = np.zeros(1)
    biases[-1] -= np.median(fd.SigmoidMLP(weights, biases).margin(4 * rng.standard_normal((400, 3))))
    return fd.SigmoidMLP(weights, biases)


class Brackets:
    """A finite bracket of every tie, and the margin along it as NumPy users write it."""

    def __init__(self, net, x, ties):
        self.net = net
        row = np.repeat(np.arange(len(x)), np.diff(ties.indptr))
        gap = np.where(row[1:] == row[:-1], (ties.x[1:] - ties.x[:-1]) / 2, 1.0)
        lo, hi = ties.x - np.append(1.0, gap), ties.x + np.append(gap, 1.0)
        self.others = x[row]
        change = self.margin(lo, *self.others.T) * self.margin(hi, *self.others.T) < 0
        self.lo, self.hi, self.others, self.x = lo[change], hi[change], self.others[change], ties.x[change]

    def margin(self, t, *others):
        y = np.stack([t, *others], -1)
        for w, b in zip(self.net.weights[:-1], self.net.biases[:-1], strict=True):
            y = expit(y @ w + b)
        return y @ self.net.weights[-1][:, 0] + self.net.biases[-1][0]

    def at_once(self):
        options = {"xatol": 5e-13, "xrtol": 0}
        return find_root(self.margin, (self.lo, self.hi), args=tuple(self.others.T), tolerances=options).x

    def looped(self):
        several = zip(self.lo, self.hi, self.others, strict=True)
        return np.array([brentq(self.margin, lo, hi, args=tuple(x), xtol=5e-13) for lo, hi, x in several])


def results(rounds, nets):
    for name, (hidden, scale, fan, m) in SETS.items():
        cases = []
        for seed in range(nets):
            net, x = network(hidden, scale, fan, seed), 1.5 * np.random.default_rng(seed).standard_normal((m, 2))
            ties = fd.solve_x1(net, x)
            brackets = Brackets(net, x, ties)
            assert np.abs(brackets.margin(ties.x, *x[np.repeat(np.arange(m), np.diff(ties.indptr))].T)).max(initial=0) < 1e-9
            cases.append((net, x, ties, brackets))
        rows, found = nets * m, sum(len(case[2].x) for case in cases)
        clusters = sum(np.count_nonzero(~ties.unique) for _, _, ties, _ in cases)
        calls = {
            "ours": lambda cases=cases: [fd.solve_x1(net, x) for net, x, *_ in cases],
            "find_root": lambda cases=cases: [brackets.at_once() for *_, brackets in cases],
        }
        for threads in (1, 2):
            with limited(threads):
                timings = interleave(calls, rounds=rounds)
            label = f"{name}, {found / rows:.2f} ties a row, {clusters} clusters, {threads} thread{'s' * (threads > 1)}"
            yield compare(label, timings, "ours", "find_root", "row", rows)
        net, x = cases[0][0], cases[0][1][:LOOPED]
        brackets = Brackets(net, x, fd.solve_x1(net, x))
        with limited(1):
            timings = interleave({"ours": partial(fd.solve_x1, net, x), "brentq": brackets.looped}, rounds=rounds)
        yield compare(f"{name}, {len(brackets.x)} brackets in {len(x)} rows", timings, "ours", "brentq", "row", len(x))


if __name__ == "__main__":
    parser = options(__doc__, rounds=5)
    parser.add_argument("--nets", type=int, default=10, help="networks of every kind (default: 10)")
    given = parser.parse_args()
    report(results(given.rounds, given.nets), given.json)
