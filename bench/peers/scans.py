"""How others compute the scan of bench_ssm.py, and its gradients: NumPy, Numba, PyTorch, JAX,
AVX-512 intrinsics.

A peer's `forward(problem)` and `gradient(problem, dout)` return a function of no arguments that
computes y, or y and the gradients with respect to the eight arguments; None where it has none.
`peers()` leaves out what is not installed.
"""

import ctypes
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import fastderiv as fd
from fastderiv._cli.bench import numpy_scan

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Peer:
    """One way to compute the scan."""

    forward: Callable[[Arrays], Callable[[], np.ndarray]]
    gradient: Callable[[Arrays, np.ndarray], Callable[[], Arrays]] | None = None


def by_hand() -> Peer | None:
    """The intrinsics kernel, where there is a C compiler and such a CPU."""
    compiler = shutil.which("cc")
    if compiler is None or "x86-64-v4" not in fd.show_config()["CPU levels supported"]:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder) / "scan.so"
        source = pathlib.Path(__file__).parent / "scan_avx512.c"
        subprocess.run(
            [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", library, source],
            check=True,
        )
        scan = ctypes.CDLL(str(library)).scan

    def forward(problem):
        u, delta, A, B, C, D, z, bias = problem
        out = np.empty_like(u)
        sizes = *u.shape[:2], A.shape[1], u.shape[2]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (u, delta, A, B, C, D, z, bias, out)]
        arguments = *pointers, *(ctypes.c_ssize_t(n) for n in sizes)

        def call():
            scan(*arguments)
            return out

        return call

    return Peer(forward)


# ---- NumPy ------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_gradient(dout, u, delta, A, B, C, D, z, bias):
    """Loops over L; the states of all steps are kept."""
    dt = np.logaddexp(0, delta + bias[:, None])
    states = np.zeros((u.shape[2] + 1, *u.shape[:2], A.shape[1]), u.dtype)
    y = D[:, None] * u
    for l in range(u.shape[2]):
        states[l + 1] = (
            np.exp(dt[:, :, l, None] * A) * states[l] + (dt * u)[:, :, l, None] * B[:, None, :, l]
        )
        y[:, :, l] += np.matmul(states[l + 1], C[:, :, l, None])[..., 0]
    gate = sigmoid(z)
    dy, dz = dout * z * gate, dout * y * gate * (1 + z * (1 - gate))
    du, ddt, dA, dB, dC, g = (
        dy * D[:, None],
        np.empty_like(u),
        np.zeros_like(A),
        np.empty_like(B),
        np.empty_like(C),
        0,
    )
    for l in range(u.shape[2])[::-1]:
        g = g + dy[:, :, l, None] * C[:, None, :, l]
        dC[:, :, l] = np.einsum("bd,bdn->bn", dy[:, :, l], states[l + 1])
        dB[:, :, l] = np.einsum("bd,bdn->bn", (dt * u)[:, :, l], g)
        dx = np.matmul(g, B[:, :, l, None])[..., 0]
        g = g * np.exp(dt[:, :, l, None] * A)
        through = g * states[l]
        du[:, :, l] += dx * dt[:, :, l]
        ddt[:, :, l] = dx * u[:, :, l] + (through * A).sum(-1)
        dA += np.einsum("bdn,bd->dn", through, dt[:, :, l])
    ddelta = ddt * sigmoid(delta + bias[:, None])
    return y * z * gate, du, ddelta, dA, dB, dC, (dy * u).sum((0, 2)), dz, ddelta.sum((0, 2))


def by_numpy() -> Peer:
    return Peer(
        lambda problem: lambda: numpy_scan(*problem),
        lambda problem, dout: lambda: numpy_gradient(dout, *problem),
    )


# ---- Numba ------------------------------------------------------------------------------------


def by_numba() -> Peer | None:
    """By hand, channel by channel; the way back keeps the states of one channel's steps."""
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

    @numba.njit(fastmath=True)
    def back(dout, u, delta, A, B, C, D, z, bias, du, ddelta, dA, dB, dC, dD, dz, dbias, out):
        batch, channels, steps = u.shape
        states = A.shape[1]
        one = u.dtype.type(1)
        decay, before = np.empty((steps, states), u.dtype), np.empty((steps + 1, states), u.dtype)
        dt, slope, y = np.empty(steps, u.dtype), np.empty(steps, u.dtype), np.empty(steps, u.dtype)
        g = np.empty(states, u.dtype)
        for b in range(batch):
            for d in range(channels):
                before[0] = 0
                for t in range(steps):
                    x = delta[b, d, t] + bias[d]
                    e = np.exp(-abs(x))
                    dt[t] = max(x, u.dtype.type(0)) + np.log1p(e)
                    slope[t] = (one if x >= 0 else e) / (one + e)
                    dx = dt[t] * u[b, d, t]
                    y[t] = D[d] * u[b, d, t]
                    for n in range(states):
                        decay[t, n] = np.exp(dt[t] * A[d, n])
                        before[t + 1, n] = decay[t, n] * before[t, n] + dx * B[b, n, t]
                        y[t] += before[t + 1, n] * C[b, n, t]
                g[:] = 0
                for t in range(steps - 1, -1, -1):
                    s = one / (one + np.exp(-z[b, d, t]))
                    out[b, d, t] = y[t] * z[b, d, t] * s
                    dy = dout[b, d, t] * z[b, d, t] * s
                    dz[b, d, t] = dout[b, d, t] * y[t] * s * (one + z[b, d, t] * (one - s))
                    dx, dd = u.dtype.type(0), u.dtype.type(0)
                    for n in range(states):
                        g[n] += dy * C[b, n, t]
                        dC[b, n, t] += dy * before[t + 1, n]
                        dB[b, n, t] += g[n] * dt[t] * u[b, d, t]
                        dx += g[n] * B[b, n, t]
                        g[n] *= decay[t, n]
                        q = g[n] * before[t, n]
                        dd += q * A[d, n]
                        dA[d, n] += q * dt[t]
                    ddelta[b, d, t] = (dd + dx * u[b, d, t]) * slope[t]
                    du[b, d, t] = dx * dt[t] + dy * D[d]
                    dD[d] += dy * u[b, d, t]
                    dbias[d] += ddelta[b, d, t]

    def forward(problem):
        out = np.empty_like(problem[0])

        def call():
            scan(*problem, out)
            return out

        return call

    def gradient(problem, dout):
        def call():
            results = [np.zeros_like(a) for a in problem]
            out = np.empty_like(dout)
            back(dout, *problem, *results, out)
            return out, *results

        return call

    return Peer(forward, gradient)


# ---- PyTorch ----------------------------------------------------------------------------------


def by_torch() -> Peer | None:
    """mamba's `selective_scan_ref`: decays and inputs of all steps materialised, then a loop;
    autograd through it.
    """
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)

    def scan(u, delta, A, B, C, D, z, bias):
        dt = torch.nn.functional.softplus(delta + bias[:, None])
        decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, A)).unbind(2)
        feed = torch.einsum("bdl,bnl,bdl->bdln", dt, B, u).unbind(2)
        h, ys = u.new_zeros(*u.shape[:2], A.shape[1]), []
        for a, x, c in zip(decay, feed, C.unbind(2), strict=True):
            h = a * h + x
            ys.append(torch.einsum("bdn,bn->bd", h, c))
        return (torch.stack(ys, 2) + u * D[:, None]) * torch.nn.functional.silu(z)

    def forward(problem):
        arguments = [torch.from_numpy(a) for a in problem]

        def call():
            with torch.no_grad():
                return scan(*arguments).numpy()

        return call

    def gradient(problem, dout):
        arguments = [torch.from_numpy(a).requires_grad_() for a in problem]

        def call():
            y = scan(*arguments)
            grads = torch.autograd.grad(y, arguments, torch.from_numpy(dout))
            return y.detach().numpy(), *(g.numpy() for g in grads)

        return call

    return Peer(forward, gradient)


# ---- JAX --------------------------------------------------------------------------------------


def by_jax(associative: bool) -> Peer | None:
    """`lax.scan` or `lax.associative_scan`, compiled."""
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None

    def one_by_one(dt, u, A, B, C):
        def step(h, now):
            dt, u, B, C = now
            h = jnp.exp(dt[..., None] * A) * h + (dt * u)[..., None] * B[:, None]
            return h, (h * C[:, None]).sum(-1)

        time_first = tuple(jnp.moveaxis(a, -1, 0) for a in (dt, u, B, C))
        _, y = jax.lax.scan(step, jnp.zeros((*u.shape[:2], A.shape[1]), u.dtype), time_first)
        return jnp.moveaxis(y, 0, -1)

    def all_at_once(dt, u, A, B, C):
        def combine(first, second):
            return first[0] * second[0], second[0] * first[1] + second[1]

        decay = jnp.exp(jnp.einsum("bdl,dn->lbdn", dt, A))
        feed = jnp.einsum("bdl,bnl->lbdn", dt * u, B)
        _, h = jax.lax.associative_scan(combine, (decay, feed))
        return jnp.einsum("lbdn,bnl->bdl", h, C)

    def scan(u, delta, A, B, C, D, z, bias):
        dt = jax.nn.softplus(delta + bias[:, None])
        y = (all_at_once if associative else one_by_one)(dt, u, A, B, C)
        return (y + u * D[:, None]) * jax.nn.silu(z)

    def both(dout, *arguments):
        y, pull = jax.vjp(scan, *arguments)
        return y, *pull(dout)

    compiled, compiled_both = jax.jit(scan), jax.jit(both)

    def forward(problem):
        arguments = [jnp.asarray(a) for a in problem]
        return lambda: np.asarray(compiled(*arguments).block_until_ready())

    def gradient(problem, dout):
        arguments = [jnp.asarray(a) for a in (dout, *problem)]
        return lambda: tuple(
            np.asarray(a) for a in jax.block_until_ready(compiled_both(*arguments))
        )

    return Peer(forward, gradient)


def peers() -> dict[str, Peer]:
    """Those that are installed."""
    made = {
        "AVX-512 by hand": by_hand(),
        "NumPy loop": by_numpy(),
        "Numba by hand": by_numba(),
        "PyTorch loop": by_torch(),
        "JAX lax.scan": by_jax(associative=False),
        "JAX associative": by_jax(associative=True),
    }
    return {name: peer for name, peer in made.items() if peer is not None}
