"""How others compute the gradients of Mamba-2's scan: transformers' fallback, and a chunked form in
plain PyTorch, both by autograd.

`peers()` gives functions of a problem and the adjoint of y, which return a function of no arguments
that computes the gradients with respect to x, dt, A, B, C, D and dt_bias.
"""

from collections.abc import Callable

import numpy as np

Arrays = dict[str, np.ndarray]
Gradient = Callable[[Arrays, np.ndarray], Callable[[], list[np.ndarray]]]


def chunked(x, dt, A, B, C, D, dt_bias, *, size=64):
    """y of one sequence, by as few and as large products as chunks of `size` steps have."""
    import torch

    _, L, H, P = x.shape
    chunks, groups = L // size, B.shape[2]
    step = torch.nn.functional.softplus(dt[0] + dt_bias)
    c = (step * A).view(chunks, size, H).permute(2, 0, 1).cumsum(-1)  # (H, chunks, size)
    X = (x[0] * step[..., None]).view(chunks, size, H, P).permute(2, 0, 1, 3)
    b, k = (
        a[0].view(chunks, size, groups, -1).permute(2, 0, 1, 3).repeat_interleave(H // groups, 0)
        for a in (B, C)
    )
    later = torch.ones(size, size, dtype=torch.bool).triu(1)
    decay = (c[..., :, None] - c[..., None, :]).masked_fill(later, -torch.inf).exp()
    y = (k @ b.transpose(-1, -2) * decay) @ X
    added = (X * (c[..., -1:] - c).exp()[..., None]).transpose(-1, -2) @ b
    state, states = torch.zeros_like(added[:, 0]), []
    for i in range(chunks):
        states.append(state)
        state = state * c[:, i, -1].exp()[:, None, None] + added[:, i]
    y = y + (k @ torch.stack(states, 1).transpose(-1, -2)) * c.exp()[..., None]
    return y.permute(1, 2, 0, 3).reshape(1, L, H, P) + D[:, None] * x


def by_autograd(forward) -> Gradient:
    import torch

    torch.set_num_threads(1)

    def gradient(p, dout):
        seed = torch.from_numpy(dout)

        def call():
            t = {name: torch.from_numpy(a).requires_grad_() for name, a in p.items()}
            y = forward(**t)
            return [g.numpy() for g in torch.autograd.grad(y, list(t.values()), seed)]

        return call

    return gradient


def peers() -> dict[str, Gradient]:
    """Those that are installed."""
    found: dict[str, Gradient] = {}
    try:
        import torch  # noqa: F401

        found["PyTorch, chunked"] = by_autograd(chunked)
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
    except ImportError:
        return found

    def fallback(x, dt, A, B, C, D, dt_bias):
        return mamba2_chunk_scan(x, dt, A, B, C, 256, D=D, dt_bias=dt_bias, dt_softplus=True)

    found["transformers"] = by_autograd(fallback)
    return found
