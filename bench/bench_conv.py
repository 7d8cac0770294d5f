"""The causal convolution, its adjoint and its steps against peers: checks the results, then times
interleaved.

    python bench/bench_conv.py [--json] [--rounds N] [--only forward,adjoint,step,taps]

Ratio first (how many times as long the peer takes), time second, on one thread.  Peers are in
peers/convolutions.py; copying the array, and silu alone, say what memory and arithmetic cost.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core for everyone

import numpy as np

import fastderiv as fd
from fastderiv._cli.timing import interleave
from peers.convolutions import peers
from report import compare, options, report

SHAPES = [(1, 1792, 2048), (1, 1792, 128), (8, 2048, 512)]
ELEMENT = "element"


def channels_last(a):
    return np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)


ORDERS = {"channels last": channels_last, "time last": np.ascontiguousarray}


def problem(shape, taps=4, dtype=np.float32):
    rng = np.random.default_rng(0)
    x, dout = rng.standard_normal((2, *shape), np.float32).astype(dtype)
    weight = rng.standard_normal((shape[1], taps), np.float32).astype(dtype) / 2
    return x, weight, rng.standard_normal(shape[1], np.float32).astype(dtype), dout


def agree(ours, theirs, name):
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a - b).max() < 1e-5 * np.abs(b).max(), f"{name} computes something else"


def at(threads, call):
    def run():
        fd.set_num_threads(threads)
        return call()

    return run


def forward(shape, rounds):
    size = int(np.prod(shape))
    for order, memory in ORDERS.items():
        x, weight, bias, _ = problem(shape)
        x = memory(x)
        out = fd.causal_conv1d(x, weight, bias, "silu")
        label = f"forward {shape}, {order}"

        def ours(x=x, weight=weight, bias=bias, out=out):
            return fd.causal_conv1d(x, weight, bias, "silu", out=out)

        wide = [a.astype(np.float64) for a in (x, weight, bias)]
        wide_out = fd.causal_conv1d(*wide, "silu")
        calls = {
            "fastderiv": at(1, ours),
            "2 threads": at(2, ours),
            "float64": lambda w=wide, o=wide_out: fd.causal_conv1d(*w, "silu", out=o),
            "a copy": lambda x=x, out=out: np.copyto(out, x),
            "no activation": lambda x=x, w=weight, b=bias, o=out: fd.causal_conv1d(x, w, b, out=o),
        }
        for name, peer in peers().items():
            calls[name] = peer.forward(x, weight, bias)
            agree([ours()], [calls[name]()], name)
        t = interleave(calls, rounds=rounds, rest=0.01)
        yield compare(f"{label}, 2 threads", t, "2 threads", "fastderiv", ELEMENT, size)
        for name in calls:
            if name not in ("fastderiv", "2 threads"):
                yield compare(label, t, "fastderiv", name, ELEMENT, size)


def adjoint(shape, rounds):
    size = int(np.prod(shape))
    for order, memory in ORDERS.items():
        x, weight, bias, dout = problem(shape)
        x, dout = memory(x), memory(dout)
        out = fd.causal_conv1d(x, weight, bias, "silu")
        label = f"adjoint {shape}, {order}"

        def ours(x=x, weight=weight, bias=bias, dout=dout):
            return fd.causal_conv1d_vjp(dout, x, weight, bias, "silu")[:3]

        def convolve(x=x, weight=weight, bias=bias, out=out):
            return fd.causal_conv1d(x, weight, bias, "silu", out=out)

        calls = {
            "adjoint": at(1, ours),
            "2 threads": at(2, ours),
            "forward": at(1, convolve),
            "fastderiv": lambda f=convolve, b=ours: (f(), b()),
        }
        for name, peer in peers().items():
            if peer.both is not None:
                calls[name] = peer.both(dout, x, weight, bias)
                agree(ours(), calls[name](), name)
        t = interleave(calls, rounds=rounds, rest=0.01)
        yield compare(label, t, "adjoint", "forward", ELEMENT, size)
        yield compare(f"{label}, 2 threads", t, "2 threads", "adjoint", ELEMENT, size)
        for name in calls.keys() & peers().keys():
            yield compare(f"forward + {label}", t, "fastderiv", name, ELEMENT, size)


def taps(rounds):
    """What more taps cost."""
    shape = SHAPES[0]
    for order, memory in ORDERS.items():
        calls = {}
        for K in (2, 3, 4, 8, 16):
            x, weight, bias, _ = problem(shape, K)
            x = memory(x)
            out = fd.causal_conv1d(x, weight, bias, "silu")
            calls[f"K = {K}"] = lambda a=(x, weight, bias), o=out: fd.causal_conv1d(
                *a, "silu", out=o
            )
        t = interleave(calls, rounds=rounds)
        for name in calls:
            label = f"forward {shape}, {order}, {name}"
            yield compare(label, t, name, "K = 4", ELEMENT, int(np.prod(shape)))


def steps(rounds):
    for batch, channels in ((1, 1792), (8, 1792)):
        x, weight, bias, _ = problem((batch, channels, 1))
        x, state = x[..., 0].copy(), np.zeros((batch, channels, 4), np.float32)

        def ours(x=x, state=state, weight=weight, bias=bias):
            return fd.causal_conv1d_update(x, state, weight, bias, "silu")

        calls = {"fastderiv": ours}
        for name, peer in peers().items():
            if peer.step is not None:
                calls[name] = peer.step(x, np.zeros_like(state), weight, bias)
                agree([ours()], [calls[name]()], name)
        t = interleave(calls, rounds=rounds)
        for name in calls.keys() - {"fastderiv"}:
            yield compare(f"step ({batch}, {channels})", t, "fastderiv", name, "call", 1)


def results(rounds, only):
    fd.set_num_threads(1)
    for shape in SHAPES:
        if "forward" in only:
            yield from forward(shape, rounds)
        if "adjoint" in only:
            yield from adjoint(shape, rounds)
    if "taps" in only:
        yield from taps(rounds)
    if "step" in only:
        yield from steps(rounds)


if __name__ == "__main__":
    parser = options(__doc__, rounds=7)
    parser.add_argument(
        "--only", default="forward,adjoint,step,taps", help="which of them (default: %(default)s)"
    )
    given = parser.parse_args()
    report(results(given.rounds, given.only.split(",")), given.json)
