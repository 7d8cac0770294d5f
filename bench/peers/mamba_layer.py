"""The Mamba layer of a 130M model at L = 2048 as transformers computes it without CUDA, and the same with fastderiv in it."""

from collections.abc import Callable, Iterator

import numpy as np

import fastderiv as fd

STEPS = 2048


def layers() -> Iterator[tuple[str, Callable[[], np.ndarray], Callable[[], np.ndarray]]]:
    """(what, with fastderiv, the slow path), each a call; nothing where transformers or PyTorch is missing."""
    try:
        import torch
        from transformers import MambaConfig
        from transformers.models.mamba.modeling_mamba import MambaMixer

        from fastderiv.integrations import transformers as fast
    except ImportError:
        return
    torch.set_num_threads(fd.get_num_threads())
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=768, state_size=16, num_hidden_layers=1)
    mixer = MambaMixer(config, layer_idx=0)
    x = torch.randn(1, STEPS, 768)

    def forward() -> np.ndarray:
        with torch.no_grad():
            return mixer(x).numpy()

    def both() -> np.ndarray:
        mixer.zero_grad()
        given = x.clone().requires_grad_()
        mixer(given).square().mean().backward()
        return given.grad.numpy()

    def with_fastderiv(call: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
        def quick() -> np.ndarray:
            with fast.enabled():
                return call()

        return quick

    size = f"(1, {config.intermediate_size}, 16, {STEPS})"
    yield f"Mamba layer {size}, forward", with_fastderiv(forward), forward
    yield f"Mamba layer {size}, forward + backward", with_fastderiv(both), both
