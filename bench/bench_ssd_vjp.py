"""The adjoint of Mamba-2's scan against peers: checks the gradients, then times interleaved.

    python bench/bench_ssd_vjp.py [--json] [--rounds N] [--all]

Forward and backward together, as a training step has them, on one core.  Peers: `transformers`'s
fallback and a chunked form in plain PyTorch, both with autograd; they are left out where they are
not installed.  Ratio first (how many times as long the peer takes), time second.  The times of the
adjoint alone follow; "count" is the roof, as many multiply–adds in registers as the adjoint has by
docs/derivations.md §6.4.  Only the first shape is compared with peers, every shape with --all.
"""

import os

for variable in "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS":
    os.environ.setdefault(variable, "1")

import numpy as np

import fastderiv as fd
from fastderiv._cli.timing import Timing, interleave
from peers.ssd import roof
from peers.ssd_gradients import peers
from report import compare, options, report

SHAPES = {  # L, H, P, G, N
    "mamba2-130m": (2048, 24, 64, 1, 128),
    "mamba2-130m, short": (128, 24, 64, 1, 128),
    "mamba2-2.7b, a quarter": (2048, 20, 64, 1, 128),
    "nemotron-h, a quarter": (2048, 32, 64, 2, 128),
    "falcon-h1, a third": (2048, 8, 64, 1, 256),
}
NAMES = "x", "dt", "A", "B", "C", "D", "dt_bias"


def problem(shape, dtype=np.float32):
    """Arguments as Mamba-2 has them: A = −1 … −H, step sizes spread over 0.001 to 0.1."""
    L, H, P, G, N = shape
    rng = np.random.default_rng(0)

    def normal(*s):
        return rng.standard_normal(s, np.float32).astype(dtype)

    bias = np.log(np.expm1(np.geomspace(1e-3, 1e-1, H))).astype(dtype)
    arrays = normal(1, L, H, P), normal(1, L, H) / 2, -np.arange(1, H + 1, dtype=dtype)
    values = *arrays, normal(1, L, G, N), normal(1, L, G, N), normal(H), bias
    return dict(zip(NAMES, values, strict=True)), normal(1, L, H, P)


def multiply_adds(shape):
    """Of the adjoint, without those that heads share."""
    L, H, P, _, N = shape
    chunk = L if L <= 128 else 64
    return H * (5 * P * N * (L - chunk) + chunk * P * L)


def ours(p, dout, *, cached=False):
    def call():
        fd.set_num_threads(1)
        if cached:
            _, cache = fd.ssd_scan(**p, dt_softplus=True, return_cache=True)
            return fd.ssd_scan_vjp(dout, **p, dt_softplus=True, cache=cache)
        fd.ssd_scan(**p, dt_softplus=True)
        return fd.ssd_scan_vjp(dout, **p, dt_softplus=True)

    return call


def check(p, dout, gradient):
    """The peer's gradients, and float32's against those of float64."""
    grads = fd.ssd_scan_vjp(dout, **p, dt_softplus=True)
    wide = fd.ssd_scan_vjp(
        dout.astype(float), **{k: a.astype(float) for k, a in p.items()}, dt_softplus=True
    )
    for name, theirs in zip(NAMES, gradient(), strict=True):
        exact, mine = getattr(wide, f"d{name}"), getattr(grads, f"d{name}")
        scale = np.abs(exact).max()
        assert np.abs(mine - exact).max() <= 1e-5 * scale, name
        assert np.abs(theirs - exact).max() <= 1e-3 * scale, name


def results(rounds, everything):
    fd.set_num_threads(1)
    for name, shape in SHAPES.items():
        p, dout = problem(shape)
        L, H, P, _, N = shape
        calls = {"fastderiv": ours(p, dout), "with a cache": ours(p, dout, cached=True)}
        calls["adjoint"] = lambda p=p, dout=dout: fd.ssd_scan_vjp(dout, **p, dt_softplus=True)
        if everything or shape == SHAPES["mamba2-130m"]:
            for peer, gradient in peers().items():
                calls[peer] = gradient(p, dout)
                check(p, dout, calls[peer])
        peak = roof()
        if peak:
            calls["count"] = peak[0]
        timings = interleave(calls, rounds=rounds)
        if peak:
            by = multiply_adds(shape) / peak[1]
            timings["count"] = Timing(tuple(seconds * by for seconds in timings["count"].rounds))
            yield compare(
                f"adjoint alone, {name}", timings, "adjoint", "count", "state-step", L * H * P * N
            )
        for peer in calls:
            if peer not in ("fastderiv", "adjoint", "count"):
                title = f"forward and backward, {name} {shape}"
                yield compare(title, timings, "fastderiv", peer, "state-step", L * H * P * N)
        yield compare(
            f"adjoint alone, {name}", timings, "adjoint", "fastderiv", "state-step", L * H * P * N
        )


if __name__ == "__main__":
    parser = options(__doc__, rounds=5)
    parser.add_argument("--all", action="store_true", help="peers at every shape")
    arguments = parser.parse_args()
    report(results(arguments.rounds, arguments.all), arguments.json)
