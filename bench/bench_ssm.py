"""The selective scan, its adjoint and its single step against peers: checks the results, then times
interleaved.

    python bench/bench_ssm.py [--json] [--rounds N] [--all] [--only forward,adjoint,step,layer]

Ratio first (how many times as long the peer takes), time second, then the peak of memory beyond the
arguments.  Peers, in peers/scans.py, are left out where they are not available: AVX-512 intrinsics
by hand, a NumPy loop over L, Numba by hand, the PyTorch reference loop and autograd through it,
JAX's `lax.scan` and `associative_scan`, the slow path of transformers' Mamba layer.  All but the
first run at the first shape only, at every shape with --all.
"""

import os

for variable in (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
):  # one core for everyone
    os.environ.setdefault(variable, "1")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import numpy as np

import fastderiv as fd
from fastderiv._cli.bench import numpy_scan
from fastderiv._cli.timing import interleave
from peers.mamba_layer import layer
from peers.scans import peers
from report import compare, options, peak_memory, report

SHAPES = [(1, 1536, 16, 1024), (8, 256, 16, 512), (1, 64, 16, 65536)]
TINY = (1, 16, 4, 8)
NAMES = "u", "delta", "A", "B", "C", "D", "z", "delta_bias"
QUICK = {"AVX-512 by hand"}
STEP = "state-step"


def problem(shape, dtype=np.float32):
    """Arguments as Mamba has them: A = −1 … −N, step sizes spread over 0.001 to 0.1 by the bias."""
    batch, channels, states, steps = shape
    rng = np.random.default_rng(0)

    def normal(*s):
        return rng.standard_normal(s, np.float32).astype(dtype)

    A = -np.tile(np.arange(1, states + 1, dtype=dtype), (channels, 1))
    bias = np.log(np.expm1(np.geomspace(1e-3, 1e-1, channels))).astype(dtype)
    u, delta, z = (normal(batch, channels, steps) for _ in range(3))
    return (
        u,
        delta / 2,
        A,
        normal(batch, states, steps),
        normal(batch, states, steps),
        normal(channels),
        z,
        bias,
    )


def adjoint_of(p):
    return np.random.default_rng(1).standard_normal(p[0].shape, np.float32).astype(p[0].dtype)


def scan(p, threads=1, out=None):
    def call():
        fd.set_num_threads(threads)
        return fd.selective_scan(*p, delta_softplus=True, out=out)

    return call


def vjp(p, dout, threads=1):
    def call():
        fd.set_num_threads(threads)
        return fd.selective_scan_vjp(dout, *p, delta_softplus=True)

    return call


def remembering_scan(p, out=None):
    return lambda: fd.selective_scan(*p, delta_softplus=True, out=out, return_cache=True)


def vjp_by_cache(p, dout):
    """The adjoint with the cache of a scan; checked to be that without, bit for bit."""
    cache = remembering_scan(p)()[-1]

    def call():
        fd.set_num_threads(1)
        return fd.selective_scan_vjp(dout, *p, delta_softplus=True, cache=cache)

    for ours, theirs in zip(call()[:8], vjp(p, dout)()[:8], strict=True):
        assert np.array_equal(ours, theirs), "a cache changes a gradient"
    return call


def scan_and_vjp(p, dout):
    forward, back = scan(p), vjp(p, dout)
    return lambda: (forward(), *back()[:8])


def channels_last(p):
    return tuple(
        np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) if a.ndim == 3 else a for a in p
    )


def agree(ours, theirs, name):
    for field, a, b in zip(("y", *NAMES), ours, theirs, strict=False):
        assert np.abs(a - b).max() < 2e-4 * np.abs(a).max(), f"{name} computes another {field}"


# ---- measurements -----------------------------------------------------------------------------


def against_ourselves(name, shape, call, rounds):
    """Two threads, float64 and the other layout; before the peers, some of which keep threads of
    their own awake ever after.
    """
    label, steps = f"{name} {shape} float32", int(np.prod(shape))
    p, wide = problem(shape), problem(shape, np.float64)
    t = interleave({"1 thread": call(p), "2 threads": call(p, 2)}, rounds=rounds, rest=0.02)
    yield compare(f"{label}, 2 threads", t, "2 threads", "1 thread", STEP, steps)
    t = interleave({"float32": call(p), "float64": call(wide)}, rounds=rounds, rest=0.02)
    yield compare(label, t, "float32", "float64", STEP, steps)
    t = interleave(
        {"channels first": call(p), "channels last": call(channels_last(p))},
        rounds=rounds,
        rest=0.02,
    )
    yield compare(label, t, "channels first", "channels last", STEP, steps)


def forward(shape, others, rounds):
    """One thread against the peers, results into memory that exists."""
    yield from against_ourselves(
        "scan", shape, lambda p, threads=1: scan(p, threads, np.empty_like(p[0])), rounds
    )
    p = problem(shape)
    ours = scan(p, out=np.empty_like(p[0]))
    for name, peer in others.items():
        theirs = peer.forward(p)
        agree([ours()], [theirs()], name)
        memory = {"fastderiv": peak_memory(scan(p)), name: peak_memory(theirs)}
        t = interleave({"fastderiv": ours, name: theirs}, rounds=rounds, rest=0.02)
        yield compare(
            f"scan {shape} float32", t, "fastderiv", name, STEP, int(np.prod(shape)), memory
        )


def with_cache(shape, p, dout, rounds):
    """The scan that keeps its states, and the adjoint that takes them, against the scan alone."""
    steps, out = int(np.prod(shape)), np.empty_like(p[0])
    calls = {
        "scan": scan(p, out=out),
        "scan with cache": remembering_scan(p, out),
        "vjp with cache": vjp_by_cache(p, dout),
    }
    t = interleave(calls, rounds=4 * rounds, rest=0.02)
    memory = {"scan": peak_memory(calls["scan"])}
    for name in ("scan with cache", "vjp with cache"):
        both = memory | {name: peak_memory(calls[name])}
        yield compare(f"{name} {shape} float32", t, name, "scan", STEP, steps, both)


def adjoint(shape, others, rounds):
    """The adjoint against the scan, then both together against the peers' way there and back."""
    p, steps = problem(shape), int(np.prod(shape))
    dout = adjoint_of(p)
    t = interleave(
        {"scan": scan(p, out=np.empty_like(p[0])), "vjp": vjp(p, dout)},
        rounds=2 * rounds,
        rest=0.02,
    )
    memory = {"vjp": peak_memory(vjp(p, dout)), "scan": peak_memory(scan(p))}
    yield compare(f"vjp {shape} float32", t, "vjp", "scan", STEP, steps, memory)
    yield from with_cache(shape, p, dout, rounds)
    yield from against_ourselves(
        "vjp", shape, lambda p, threads=1: vjp(p, adjoint_of(p), threads), rounds
    )
    ours = scan_and_vjp(p, dout)
    for name, peer in others.items():
        if peer.gradient is None:
            continue
        theirs = peer.gradient(p, dout)
        agree(ours(), theirs(), name)
        memory = {"fastderiv": peak_memory(ours), name: peak_memory(theirs)}
        t = interleave({"fastderiv": ours, name: theirs}, rounds=max(3, rounds // 2), rest=0.02)
        yield compare(f"scan + vjp {shape} float32", t, "fastderiv", name, STEP, steps, memory)


def small_calls(rounds):
    """A tiny scan, and a decoding step at the size of a 130M model: against NumPy, and against as
    many state-steps of a long scan.
    """
    p = problem(TINY)
    t = interleave({"fastderiv": scan(p), "NumPy loop": lambda: numpy_scan(*p)}, rounds=rounds)
    yield compare(f"call {TINY}", t, "fastderiv", "NumPy loop", "call", 1)
    u, delta, A, B, C, D, z, bias = problem((1, 1536, 16, 1))
    x, dt, B, C, z = (np.ascontiguousarray(a[..., 0]) for a in (u, delta, B, C, z))
    state, other = np.zeros((1, 1536, 16), np.float32), np.zeros((1, 1536, 16), np.float32)

    def step():
        return fd.selective_state_update(state, x, dt, A, B, C, D, z, bias, True)

    def numpy_step():
        d = np.logaddexp(0, dt + bias)
        other[...] = np.exp(d[..., None] * A) * other + (d * x)[..., None] * B[:, None]
        return ((other * C[:, None]).sum(-1) + D * x) * z / (1 + np.exp(-z))

    assert np.allclose(step(), numpy_step(), atol=1e-5)
    long = problem((1, 1536, 16, 256))
    t = interleave(
        {
            "fastderiv": step,
            "NumPy": numpy_step,
            "256 steps": scan(long, out=np.empty_like(long[0])),
        },
        rounds=rounds,
    )
    yield compare("step (1, 1536, 16)", t, "fastderiv", "NumPy", "call", 1)
    yield compare("step (1, 1536, 16)", t, "fastderiv", "256 steps", "call", 1)


def mamba_layer(rounds, long):
    """A Mamba layer of a 130M model in transformers: its slow path, and the same with fastderiv.

    The slow path's way back is quadratic in L, as every step's gradient fills an array of all
    steps; L = 2048 is left to --all.
    """
    yield from layer_of("forward", 2048, rounds)
    yield from layer_of("forward + backward", 256, rounds)
    if long:
        yield from layer_of("forward + backward", 2048, 1)


def layer_of(what, steps, rounds):
    calls = layer(steps)
    if what not in calls:
        return
    ours, theirs = calls[what]
    agree([ours()], [theirs()], "transformers")
    memory = {"fastderiv": peak_memory(ours), "slow path": peak_memory(theirs)}
    t = interleave({"fastderiv": ours, "slow path": theirs}, rounds=rounds, rest=0.02)
    yield compare(
        f"Mamba layer (1, 1536, 16, {steps}), {what}",
        t,
        "fastderiv",
        "slow path",
        "call",
        1,
        memory,
    )


def results(rounds, every_peer, only):
    fd.set_num_threads(1)
    all_of_them = peers()
    few = {name: peer for name, peer in all_of_them.items() if name in QUICK}
    for shape in SHAPES:
        here = all_of_them if every_peer or shape == SHAPES[0] else few
        if "forward" in only:
            yield from forward(shape, here, rounds)
        if "adjoint" in only:
            yield from adjoint(shape, here, rounds)
    if "step" in only:
        yield from small_calls(rounds)
    if "layer" in only:
        yield from mamba_layer(max(3, rounds // 2), every_peer)


if __name__ == "__main__":
    parser = options(__doc__, rounds=7)
    parser.add_argument("--all", action="store_true", help="every peer at every shape")
    parser.add_argument(
        "--only", default="forward,adjoint,step,layer", help="which of them (default: %(default)s)"
    )
    given = parser.parse_args()
    report(results(given.rounds, given.all, given.only.split(",")), given.json)
