"""Subset sums and their enumeration against NumPy, and against the speed of memory.

    python bench/bench_subsets.py [--json] [--rounds N] [--n N]

The results are checked; then all candidates are timed in turn.
"""

from collections.abc import Callable, Iterator

import numpy as np

import fastderiv as fd
from fastderiv._cli.bench import numpy_doubling, numpy_logsumexp, threads_set_to
from fastderiv._cli.timing import Timing, interleave
from report import Result, compare, options, report


def numba_sums() -> Callable | None:
    """The same algorithm compiled by Numba; None if that is not installed."""
    try:
        import numba
    except ImportError:
        return None

    @numba.njit
    def sums(x, out):
        low = min(x.size, 10)
        out[0] = 0
        for i in range(low):
            for j in range(1 << i):
                out[(1 << i) + j] = out[j] + x[i]
        for h in range(1, 1 << (x.size - low)):
            shift = x.dtype.type(0)
            for i in range(x.size - low):
                if h >> i & 1:
                    shift += x[low + i]
            for j in range(1 << low):
                out[(h << low) + j] = out[j] + shift
        return out

    return sums


def bench_sums(n: int, dtype: type, rounds: int) -> dict[str, Timing]:
    """All sums of n entries, written into an existing array; two peers only fill such an array."""
    x = np.random.default_rng(0).normal(size=n).astype(dtype)
    out, theirs = np.zeros(2**n, dtype), np.zeros(2**n, dtype)
    exact = numpy_doubling(x.astype(float), np.empty(2**n))
    assert abs(fd.subset_sums(x, out=out) - exact).max() < (1e-5 if dtype == np.float32 else 1e-13)
    assert abs(numpy_doubling(x, theirs) - exact).max() < (1e-5 if dtype == np.float32 else 1e-13)
    del exact
    peers = {
        "fastderiv": lambda: fd.subset_sums(x, out=out),
        "out.fill(0)": lambda: out.fill(0),
        "np.copyto(out, 1.5)": lambda: np.copyto(out, 1.5),
        "NumPy doubling": lambda: numpy_doubling(x, out),
    }
    if compiled := numba_sums():
        peers["Numba, blocked"] = lambda: compiled(x, out)
    return interleave(peers, rounds=rounds)


def bench_logsumexp(n: int, dtype: type, rounds: int) -> dict[str, Timing]:
    """The log of the sum over all subsets, by enumeration."""
    x = np.random.default_rng(0).normal(size=n).astype(dtype)
    exact = np.logaddexp(0, x.astype(float)).sum()
    for value in (fd.subset_logsumexp(x, method="enumerate"), numpy_logsumexp(x)):
        assert abs(value / exact - 1) < (1e-5 if dtype == np.float32 else 1e-12)
    return interleave(
        {
            "fastderiv": lambda: fd.subset_logsumexp(x, method="enumerate"),
            "NumPy blocked": lambda: numpy_logsumexp(x),
        },
        rounds=rounds,
    )


def results(n: int, rounds: int) -> Iterator[Result]:
    """Both functions in both dtypes, on one thread and on two."""
    for threads in (1, 2):
        for what, bench in (
            ("subset_sums(out=)", bench_sums),
            ("subset_logsumexp(enumerate)", bench_logsumexp),
        ):
            for dtype in (np.float32, np.float64):
                with threads_set_to(threads):
                    timings = bench(n, dtype, rounds)
                label = f"{what}, n = {n}, {dtype.__name__}, {threads} thread{'s' * (threads > 1)}"
                for peer in list(timings)[1:]:
                    yield compare(label, timings, "fastderiv", peer, "subset", 2**n)


if __name__ == "__main__":
    parser = options(__doc__, rounds=9)
    parser.add_argument("--n", type=int, default=24, help="entries of x (default: 24)")
    given = parser.parse_args()
    report(results(given.n, given.rounds), given.json)
