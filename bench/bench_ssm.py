"""The selective scan against peers: checks the results, then times interleaved; ratio first, time second.

    python bench/bench_ssm.py [--json] [--rounds N] [--all]

Peers, each left out where it is not available: AVX-512 intrinsics by hand (peers/scan_avx512.c, needs `cc` and such a CPU), a
NumPy loop over L, Numba by hand, the PyTorch reference loop, JAX's `lax.scan`.  The slow ones run at the first shape only,
at every shape with --all.
"""

import ctypes
import os
import pathlib
import shutil
import subprocess
import tempfile

for variable in "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS":  # one core for everyone
    os.environ.setdefault(variable, "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import numpy as np

import fastderiv as fd
from fastderiv._cli.bench import numpy_scan
from fastderiv._cli.timing import interleave
from report import compare, options, report

SHAPES = [(1, 1536, 16, 1024), (8, 256, 16, 512), (1, 64, 16, 65536)]
TINY = (1, 16, 4, 8)
NAMES = "u", "delta", "A", "B", "C", "D", "z", "delta_bias"


def problem(shape, dtype=np.float32):
    """Arguments as Mamba has them: A = −1 … −N, step sizes spread over 0.001 to 0.1 by the bias."""
    batch, channels, states, steps = shape
    rng = np.random.default_rng(0)

    def normal(*s):
        return rng.standard_normal(s, np.float32).astype(dtype)

    A = -np.tile(np.arange(1, states + 1, dtype=dtype), (channels, 1))
    bias = np.log(np.expm1(np.geomspace(1e-3, 1e-1, channels))).astype(dtype)
    u, delta, z = (normal(batch, channels, steps) for _ in range(3))
    return u, delta / 2, A, normal(batch, states, steps), normal(batch, states, steps), normal(channels), z, bias


# ---- peers -----------------------------------------------------------------------------------------------------------


def by_hand():
    """The intrinsics kernel as a function of a problem, or None."""
    compiler = shutil.which("cc")
    if compiler is None or "x86-64-v4" not in fd.show_config()["CPU levels supported"]:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder) / "scan.so"
        source = pathlib.Path(__file__).parent / "peers" / "scan_avx512.c"
        subprocess.run([compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source], check=True)
        scan = ctypes.CDLL(str(library)).scan

    def prepare(problem, out):
        u, delta, A, B, C, D, z, bias = problem
        sizes = *u.shape[:2], A.shape[1], u.shape[2]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (u, delta, A, B, C, D, z, bias, out)]
        arguments = *pointers, *(ctypes.c_ssize_t(n) for n in sizes)
        return lambda: scan(*arguments)

    return prepare


def by_numba():
    try:
        import numba
    except ImportError:
        return None

    @numba.njit(fastmath=True)
    def scan(u, delta, A, B, C, D, z, bias, out):
        batch, channels, steps = u.shape
        states = A.shape[1]
        h = np.empty(states, u.dtype)
        for b in range(batch):
            for d in range(channels):
                h[:] = 0
                for t in range(steps):
                    x = delta[b, d, t] + bias[d]
                    dt = max(x, u.dtype.type(0)) + np.log1p(np.exp(-abs(x)))
                    dx = dt * u[b, d, t]
                    y = D[d] * u[b, d, t]
                    for n in range(states):
                        h[n] = np.exp(dt * A[d, n]) * h[n] + dx * B[b, n, t]
                        y += h[n] * C[b, n, t]
                    g = z[b, d, t]
                    out[b, d, t] = y * g / (1 + np.exp(-g))

    return lambda problem, out: lambda: scan(*problem, out)


def by_torch():
    """mamba's `selective_scan_ref`: decays and inputs of all steps materialised, then a loop."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)

    def prepare(problem, out):
        u, delta, A, B, C, D, z, bias = map(torch.from_numpy, problem)
        target = torch.from_numpy(out)

        def scan():
            dt = torch.nn.functional.softplus(delta + bias[:, None])
            decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
            feed = torch.einsum("bdl,bnl,bdl->bdln", dt, B, u)
            h, ys = decay.new_zeros(*u.shape[:2], A.shape[1]), []
            for t in range(u.shape[2]):
                h = decay[:, :, t] * h + feed[:, :, t]
                ys.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
            target.copy_((torch.stack(ys, 2) + u * D[:, None]) * torch.nn.functional.silu(z))

        return scan

    return prepare


def by_jax():
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None

    @jax.jit
    def scan(u, delta, A, B, C, D, z, bias):
        dt = jax.nn.softplus(delta + bias[:, None])

        def step(h, now):
            dt, u, B, C = now
            h = jnp.exp(dt[..., None] * A) * h + (dt * u)[..., None] * B[:, None]
            return h, (h * C[:, None]).sum(-1)

        time_first = tuple(jnp.moveaxis(a, -1, 0) for a in (dt, u, B, C))
        _, y = jax.lax.scan(step, jnp.zeros((*u.shape[:2], A.shape[1]), u.dtype), time_first)
        return (jnp.moveaxis(y, 0, -1) + u * D[:, None]) * jax.nn.silu(z)

    def prepare(problem, out):
        arguments = [jnp.asarray(a) for a in problem]
        np.copyto(out, scan(*arguments))
        return lambda: scan(*arguments).block_until_ready()

    return prepare


def by_numpy(problem, out):
    return lambda: np.copyto(out, numpy_scan(*problem))


PEERS = {"AVX-512 by hand": by_hand, "NumPy loop": lambda: by_numpy, "Numba by hand": by_numba, "PyTorch loop": by_torch,
         "JAX lax.scan": by_jax}  # fmt: skip
QUICK = {"AVX-512 by hand"}
STEP = "state-step"


# ---- measurements ----------------------------------------------------------------------------------------------------


def ours(problem, threads=1, out=None):
    arguments = dict(zip(NAMES, problem, strict=True))

    def call():
        fd.set_num_threads(threads)
        fd.selective_scan(**arguments, delta_softplus=True, out=out)

    return call


def against_peers(shape, peers, rounds):
    """float32, every option on: two threads, float64 and the other layout against ourselves, then one thread against the peers.

    Ourselves first: some peers keep threads of their own awake ever after.
    """
    p, steps = problem(shape), int(np.prod(shape))
    label = f"scan {shape} float32"
    out = np.empty_like(p[0])
    ours(p, out=out)()
    t = interleave({"1 thread": ours(p, out=out), "2 threads": ours(p, 2, out=out)}, rounds=rounds, rest=0.02)
    yield compare(f"{label}, 2 threads", t, "2 threads", "1 thread", STEP, steps)
    wide = problem(shape, np.float64)
    out64 = np.empty_like(wide[0])
    t = interleave({"float32": ours(p, out=out), "float64": ours(wide, out=out64)}, rounds=rounds, rest=0.02)
    yield compare(label, t, "float32", "float64", STEP, steps)
    last = tuple(np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2) if a.ndim == 3 else a for a in p)
    both = {"channels first": ours(p, out=out), "channels last": ours(last, out=np.empty_like(last[0]))}
    t = interleave(both, rounds=rounds, rest=0.02)
    yield compare(label, t, "channels first", "channels last", STEP, steps)
    for name, prepare in peers.items():
        theirs = np.empty_like(out)
        call = prepare(p, theirs)
        call()
        assert np.abs(theirs - out).max() < 1e-5 * np.abs(out).max(), f"{name} computes something else"
        t = interleave({"fastderiv": ours(p, out=out), name: call}, rounds=rounds, rest=0.02)
        yield compare(label, t, "fastderiv", name, STEP, steps)


def small_calls(rounds):
    """A tiny scan, and a decoding step at the size of a 130M model, against NumPy."""
    p = problem(TINY)
    t = interleave({"fastderiv": ours(p), "NumPy loop": lambda: numpy_scan(*p)}, rounds=rounds)
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
    t = interleave({"fastderiv": step, "NumPy": numpy_step}, rounds=rounds)
    yield compare("step (1, 1536, 16)", t, "fastderiv", "NumPy", "call", 1)


def results(rounds, every_peer):
    peers = {name: prepare for name, make in PEERS.items() if (prepare := make()) is not None}
    for shape in SHAPES:
        here = peers if every_peer or shape == SHAPES[0] else {k: v for k, v in peers.items() if k in QUICK}
        yield from against_peers(shape, here, rounds)
    yield from small_calls(rounds)


if __name__ == "__main__":
    parser = options(__doc__, rounds=7)
    parser.add_argument("--all", action="store_true", help="every peer at every shape")
    given = parser.parse_args()
    report(results(given.rounds, given.all), given.json)
