"""Mamba-2's scan against peers: checks the results, then times interleaved.

    python bench/bench_ssd.py [--json] [--rounds N] [--steps 2048,512,128]

Ratio first (how many times as long the peer takes), time second, in ns per state-step (L·H·P·N of
them).  Peers, in peers/ssd.py, are left out where they are not available: the PyTorch fallback of
transformers' Mamba-2, a chunked form in plain PyTorch.  "two FMA" is the roof: as many multiply–adds
in registers as the recurrence has, two a state-step; one chunk of a short sequence has fewer.
FASTDERIV_CPU=x86-64-v3 measures that level, and its roof.
"""

import os

for variable in "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS":  # one core for everyone
    os.environ.setdefault(variable, "1")

import numpy as np

import fastderiv as fd
from fastderiv._cli.timing import Timing, interleave
from peers.ssd import peers, roof
from report import compare, options, report

# heads, P, N, groups; fewer heads than the model has where "of" says so
SHAPES = {
    "mamba2-130m": (24, 64, 128, 1),
    "mamba2-2.7b, 20 of 80 heads": (20, 64, 128, 1),
    "Nemotron-H, 32 of 128 heads": (32, 64, 128, 2),
    "Falcon-H1-1.5B, 24 of 48 heads": (24, 64, 256, 1),
}
STEP = "state-step"


def problem(shape, steps, dtype=np.float32):
    """Arguments as Mamba-2 has them: A in −1 … −16, step sizes spread over 0.001 to 0.1."""
    heads, width, states, groups = shape
    rng = np.random.default_rng(0)

    def normal(*s):
        return rng.standard_normal(s, np.float32).astype(dtype)

    return dict(
        x=normal(1, steps, heads, width),
        dt=normal(1, steps, heads) / 2,
        A=-np.linspace(1, 16, heads, dtype=dtype),
        B=normal(1, steps, groups, states),
        C=normal(1, steps, groups, states),
        D=normal(heads),
        dt_bias=np.log(np.expm1(np.geomspace(1e-3, 1e-1, heads))).astype(dtype),
    )


def scan(p, threads=1, **asked):
    out = np.empty_like(p["x"])

    def call():
        fd.set_num_threads(threads)
        return fd.ssd_scan(**p, dt_softplus=True, out=out, **asked)

    return call


def scaled(t, by):
    """Timings of `by` times as much work."""
    return Timing(tuple(seconds * by for seconds in t.rounds))


def at(name, shape, steps, rounds):
    p, wide = problem(shape, steps), problem(shape, steps, np.float64)
    work, label = steps * int(np.prod(shape[:3])), f"{name}, L = {steps}"
    t = interleave({"1 thread": scan(p), "2 threads": scan(p, 2)}, rounds=rounds, rest=0.02)
    yield compare(f"{label}, 2 threads", t, "2 threads", "1 thread", STEP, work)
    calls = {
        "fastderiv": scan(p),
        "with the last state": scan(p, return_last_state=True),
        "float64": scan(wide),
    }
    exact = calls["float64"]()
    assert np.abs(calls["fastderiv"]() - exact).max() < 3e-6 * np.abs(exact).max()
    for peer, prepare in peers().items():
        calls[peer] = prepare(p)
        assert np.abs(calls[peer]() - exact).max() < 1e-4 * np.abs(exact).max(), peer
    peak = roof()
    if peak:
        calls["two FMA"] = peak[0]
    t = interleave(calls, rounds=rounds)
    if peak:
        t["two FMA"] = scaled(t["two FMA"], 2 * work / peak[1])
    for peer in calls:
        if peer != "fastderiv":
            yield compare(label, t, "fastderiv", peer, STEP, work)


def results(rounds, lengths):
    for name, shape in SHAPES.items():
        for steps in lengths:
            yield from at(name, shape, steps, rounds)


if __name__ == "__main__":
    parser = options(__doc__, rounds=7)
    parser.add_argument(
        "--steps", default="2048,512,128", help="values of L (default: %(default)s)"
    )
    given = parser.parse_args()
    report(results(given.rounds, [int(n) for n in given.steps.split(",")]), given.json)
