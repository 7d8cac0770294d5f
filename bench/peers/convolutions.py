"""How others compute the causal convolution of bench_conv.py: the fallbacks of transformers, which
are PyTorch, and SciPy.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Peer:
    """One way to compute the convolution; each method returns a function without arguments."""

    forward: Callable[..., Callable[[], np.ndarray]]
    both: Callable[..., Callable[[], tuple]] | None = None  # forward and gradients
    step: Callable[..., Callable[[], np.ndarray]] | None = None


def transformers() -> Peer | None:
    """Mamba-2's fallbacks: `conv1d` with groups, cut off, and silu; a product and a sum for a
    step.
    """
    try:
        import torch
        from transformers.models.mamba2 import modeling_mamba2 as mamba
    except ImportError:
        return None
    convolve = getattr(mamba, "causal_conv1d_fn", None)
    update = getattr(mamba, "causal_conv1d_update", None)
    if not callable(convolve) or not callable(update):
        return None
    torch.set_num_threads(1)

    def forward(x, weight, bias):
        given = [torch.from_numpy(a) for a in (x, weight, bias)]

        def call():
            with torch.no_grad():
                return convolve(*given, "silu").numpy()

        return call

    def both(dout, x, weight, bias):
        given = [torch.from_numpy(a).requires_grad_() for a in (x, weight, bias)]
        adjoint = torch.from_numpy(dout)

        def call():
            y = convolve(*given, "silu")
            return tuple(g.numpy() for g in torch.autograd.grad(y, given, adjoint))

        return call

    def step(x, state, weight, bias):
        given = [torch.from_numpy(a) for a in (x[..., None], state, weight, bias)]

        def call():
            with torch.no_grad():
                return update(*given, "silu").numpy().reshape(x.shape)

        return call

    return Peer(forward, both, step)


def scipy() -> Peer:
    """`scipy.ndimage.correlate1d`, channel by channel."""
    from scipy import ndimage

    def forward(x, weight, bias):
        taps = weight.shape[1]

        def call():
            y = np.empty_like(x)
            for b in range(x.shape[0]):
                for d in range(x.shape[1]):
                    ndimage.correlate1d(
                        x[b, d], weight[d], output=y[b, d], mode="constant", origin=(taps - 1) // 2
                    )
            y += bias[:, None]
            return y / (1 + np.exp(-y))

        return call

    return Peer(forward)


def peers() -> dict[str, Peer]:
    """Those that are installed."""
    found = {"transformers": transformers(), "SciPy": scipy()}
    return {name: peer for name, peer in found.items() if peer is not None}
