"""The Mamba layer of a 130M model as transformers computes it without CUDA, and the same with
fastderiv in it.
"""

import logging
from collections.abc import Callable

import numpy as np

import fastderiv as fd

Call = Callable[[], np.ndarray]


def layer(steps: int) -> dict[str, tuple[Call, Call]]:
    """What is computed -> (with fastderiv, the slow path), each a call; nothing where transformers
    or PyTorch is missing.
    """
    try:
        import torch
        from transformers import MambaConfig
        from transformers.models.mamba.modeling_mamba import MambaMixer

        from fastderiv.integrations import transformers as fast
    except ImportError:
        return {}
    logging.getLogger("transformers").setLevel(logging.ERROR)  # that it is slow is known
    torch.set_num_threads(fd.get_num_threads())
    torch.manual_seed(0)
    mixer = MambaMixer(
        MambaConfig(hidden_size=768, state_size=16, num_hidden_layers=1), layer_idx=0
    )
    x = torch.randn(1, steps, 768)

    def forward() -> np.ndarray:
        with torch.no_grad():
            return mixer(x).numpy()

    def both() -> np.ndarray:
        mixer.zero_grad()
        given = x.clone().requires_grad_()
        mixer(given).square().mean().backward()
        return given.grad.numpy()

    def with_fastderiv(call: Call) -> Call:
        def quick() -> np.ndarray:
            with fast.enabled():
                return call()

        return quick

    return {
        "forward": (with_fastderiv(forward), forward),
        "forward + backward": (with_fastderiv(both), both),
    }
