"""Peers of `ssd_scan`: the PyTorch fallback of transformers' Mamba-2, a chunked form in plain
PyTorch, and the roof: how fast a core multiplies and adds.
"""

import ctypes
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable

import numpy as np

import fastderiv as fd

Call = Callable[[], np.ndarray]


def roof() -> tuple[Callable[[], object], int] | None:
    """A call, and how many float32 multiply–adds it does; None without a C compiler."""
    compiler, level = shutil.which("cc"), fd.show_config()["CPU level in use"]
    if compiler is None or not level.startswith("x86-64"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder) / "peak.so"
        source = pathlib.Path(__file__).parent / "fma_peak.c"
        flags = ["-O2", "-ffp-contract=fast", f"-march={level}", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, "-o", library, source], check=True)
        peak = ctypes.CDLL(str(library)).fma_peak
    peak.restype, kept = ctypes.c_long, ctypes.c_float()
    turns = ctypes.c_long(100_000)
    count = peak(turns, ctypes.byref(kept))
    return lambda: peak(turns, ctypes.byref(kept)), count


def peers() -> dict[str, Callable[[dict[str, np.ndarray]], Call]]:
    """Name -> from arguments to a call; empty without PyTorch."""
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    found = {"PyTorch, chunks of 64": _chunked}
    try:
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
    except ImportError:
        return found

    def fallback(p: dict[str, np.ndarray]) -> Call:
        t = {k: torch.from_numpy(a) for k, a in p.items()}
        arguments = t["x"], t["dt"], t["A"], t["B"], t["C"], 256
        options = dict(D=t["D"], dt_bias=t["dt_bias"], dt_softplus=True, return_final_states=False)

        def call() -> np.ndarray:
            y = mamba2_chunk_scan(*arguments, **options)
            return (y[0] if isinstance(y, tuple) else y).numpy()

        return call

    return {"transformers": fallback, **found}


def _chunked(p: dict[str, np.ndarray]) -> Call:
    """Three batched products a chunk of Q steps: the best that PyTorch's operations gave."""
    import torch

    Q = 64
    x, dt, B, C = (torch.from_numpy(p[name][0]) for name in ("x", "dt", "B", "C"))
    A, D, bias = (torch.from_numpy(p[name]) for name in ("A", "D", "dt_bias"))
    L, H, P = x.shape
    G, N = B.shape[1:]
    chunks, causal = L // Q, torch.ones(Q, Q, dtype=torch.bool).triu(1)

    def call() -> np.ndarray:
        step = torch.nn.functional.softplus(dt + bias)
        sums = (step * A).view(chunks, Q, H).permute(2, 0, 1).cumsum(-1)  # (H, chunks, Q)
        X = (x * step[..., None]).view(chunks, Q, H, P).permute(2, 0, 1, 3)
        b, c = (a.view(chunks, Q, G, N).permute(2, 0, 1, 3) for a in (B, C))
        products = torch.matmul(c, b.transpose(-1, -2)).repeat_interleave(H // G, 0)
        b, c = (a if G == 1 else a.repeat_interleave(H // G, 0) for a in (b, c))
        weights = (sums[..., :, None] - sums[..., None, :]).masked_fill_(causal, -torch.inf).exp_()
        y = torch.matmul(weights.mul_(products), X)
        left = (X * (sums[..., -1:] - sums).exp()[..., None]).transpose(-1, -2)
        added, state = torch.matmul(left, b), torch.zeros(H, P, N)
        states = torch.empty_like(added)
        for i in range(chunks):
            states[:, i] = state
            state = state * sums[:, i, -1].exp()[:, None, None] + added[:, i]
        y += torch.matmul(c, states.transpose(-1, -2)) * sums.exp()[..., None]
        return (y.permute(1, 2, 0, 3).reshape(L, H, P) + D[:, None] * x)[None].numpy()

    return call
