"""The linear recurrence against copying its arrays, and against peers: checks the results, then
times interleaved.

    python bench/bench_linear.py [--json] [--rounds N] [--only forward,adjoint,few]

Ratio first (how many times as long the peer takes), time second.  The copy is np.copyto of as many
bytes as the arrays have, all of them out of the caches: a ratio of 0.8 says that the scan takes
1.25 times its time.  Peers, in peers/linear.py: Numba by hand, NumPy along the first axis, SciPy's
`lfilter` row by row.
"""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np

import fastderiv as fd
from fastderiv._cli.timing import interleave
from peers.linear import copy, peers
from report import compare, options, report

SHAPES = [((4096, 4096), -1), ((3000, 5001), -1), ((4096, 4096), 0), ((8192, 1500), 0)]
FEW = [(1, 1 << 20), (4, (1 << 20) + 80)]
ELEMENT = "element"


def problem(shape, axis, constant, dtype=np.float32):
    """a and b; a is constant in time, or not."""
    rng = np.random.default_rng(0)
    b = rng.standard_normal(shape, np.float32).astype(dtype)
    factor = tuple(np.delete(shape, axis)) if constant else shape
    return rng.uniform(0, 1, factor).astype(dtype), b


def scan(a, b, axis, threads=1):
    out = np.zeros_like(b)

    def call():
        fd.set_num_threads(threads)
        return fd.linear_scan(a, b, axis=axis, out=out)

    return call


def vjp(a, b, axis, threads=1):
    dout = np.ones_like(b)

    def call():
        fd.set_num_threads(threads)
        return fd.linear_scan_vjp(dout, a, b, axis=axis)

    return call


def label(shape, axis, a, b):
    kind = "full" if a.ndim == b.ndim else "constant"
    return f"{shape}, axis {axis}, a {kind}, {b.dtype}"


def forward(shape, axis, constant, rounds, dtype=np.float32):
    a, b = problem(shape, axis, constant, dtype)
    ours, name = scan(a, b, axis), label(shape, axis, a, b)
    others = peers(a, b, axis == 0) if dtype == np.float32 else {}
    expected = ours()
    for peer, call in others.items():
        assert np.abs(call() - expected).max() < 1e-4 * np.abs(expected).max(), peer
    calls = {"ours": ours, "copy": copy(a, b), "2 threads": scan(a, b, axis, 2), **others}
    t = interleave(calls, rounds=rounds)
    for peer in ("copy", *others):
        yield compare(name, t, "ours", peer, ELEMENT, b.size)
    yield compare(f"{name}, 2 threads", t, "2 threads", "ours", ELEMENT, b.size)


def adjoint(shape, axis, constant, rounds):
    a, b = problem(shape, axis, constant)
    calls = {"adjoint": vjp(a, b, axis), "forward": lambda: fd.linear_scan(a, b, axis=axis)}
    fd.set_num_threads(1)
    t = interleave(calls, rounds=rounds)
    name = f"adjoint of {label(shape, axis, a, b)}"
    yield compare(name, t, "adjoint", "forward", ELEMENT, b.size)


def measure(only, rounds):
    for shape, axis in SHAPES:
        for constant in (False, True):
            if "forward" in only:
                yield from forward(shape, axis, constant, rounds)
            if "adjoint" in only:
                yield from adjoint(shape, axis, constant, rounds)
    if "forward" in only:
        for axis in (-1, 0):
            yield from forward((2048, 4096), axis, False, rounds, np.float64)
    if "few" in only:
        for shape in FEW:
            yield from forward(shape, -1, False, rounds)


def main():
    parser = options(__doc__, rounds=7)
    parser.add_argument("--only", default="forward,adjoint,few")
    given = parser.parse_args()
    report(measure(given.only.split(","), given.rounds), given.json)


if __name__ == "__main__":
    main()
