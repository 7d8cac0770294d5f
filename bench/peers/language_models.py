"""Language models of transformers with random weights, one or two layers of the widths of released
ones.
"""

import inspect
import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

try:
    import torch
    import transformers
except ImportError:
    torch = transformers = None

# Embedding, attention and MLPs are the same with and without fastderiv.  They are as small as the
# model allows, so that the figures are about the mixers.  Where a model mixes both kinds of layers,
# it has one of each, as the cache of transformers 5 needs a layer with attention.
_VOCABULARY = 1024
_STEPS = 8  # of one call of a decoder
_NARROW = {"intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 1}
_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}
_HEADS_OF_64 = {"mamba_d_head": 64, "mamba_d_conv": 4, "mamba_expand": 2}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba-130m": ("Mamba", {"hidden_size": 768, "num_hidden_layers": 2}),
    "mamba-2.8b": ("Mamba", {"hidden_size": 2560, "num_hidden_layers": 1}),
    "falcon-mamba-7b": ("FalconMamba", {"hidden_size": 4096, "num_hidden_layers": 1}),
    "jamba-v0.1": (
        "Jamba",
        _NARROW
        | _EXPERTS
        | {"hidden_size": 4096, "num_hidden_layers": 2, "use_mamba_kernels": False}
        | {"attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    "mamba2-130m": (
        "Mamba2",
        {"hidden_size": 768, "num_heads": 24, "n_groups": 1, "num_hidden_layers": 2},
    ),
    "mamba2-2.7b": (
        "Mamba2",
        {"hidden_size": 2560, "num_heads": 80, "n_groups": 1, "num_hidden_layers": 1},
    ),
    "bamba-9b": (
        "Bamba",
        _NARROW
        | _HEADS_OF_64
        | {"hidden_size": 4096, "mamba_n_heads": 128, "mamba_d_state": 128}
        | {"num_hidden_layers": 2, "attn_layer_indices": [1]},
    ),
    "falcon-h1-1.5b": (
        "FalconH1",
        _NARROW
        | _HEADS_OF_64
        | {"hidden_size": 2048, "mamba_n_heads": 48, "mamba_d_ssm": 3072, "mamba_d_state": 256}
        | {"num_hidden_layers": 1, "head_dim": 64},
    ),
    "granite-4-h-tiny": (
        "GraniteMoeHybrid",
        _NARROW
        | _HEADS_OF_64
        | {"hidden_size": 1536, "mamba_n_heads": 48, "mamba_d_state": 128}
        | {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]}
        | {"shared_intermediate_size": 256, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "nemotron-h-8b": (
        "NemotronH",
        _NARROW
        | {"hidden_size": 4096, "layers_block_type": ["mamba", "attention"], "head_dim": 64},
    ),
    "zamba2-1.2b": (
        "Zamba2",
        _NARROW
        | {"hidden_size": 2048, "n_mamba_heads": 64, "mamba_d_state": 64, "mamba_ngroups": 1}
        | {"num_hidden_layers": 2, "layers_block_type": ["mamba", "hybrid"], "adapter_rank": 8},
    ),
    "lfm2-1.2b": (
        "Lfm2",
        _NARROW
        | {"hidden_size": 2048, "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
        | {"block_auto_adjust_ff_dim": False},
    ),
}
QUADRATIC = ("Mamba", "FalconMamba", "Jamba")
"""Their gradients in transformers alone take time that grows with the square of the length."""
QUICK = ("mamba-130m", "mamba2-130m", "lfm2-1.2b")


def build(name: str, dtype: str) -> Any:
    """The model, or None if this version of transformers does not have it."""
    logging.getLogger("transformers").setLevel(logging.ERROR)  # that it is slow is known
    warnings.filterwarnings("ignore", category=FutureWarning)  # of arguments with other names
    family, options = MODELS[name]
    if not hasattr(transformers, f"{family}ForCausalLM"):
        return None
    options = options | {"vocab_size": _VOCABULARY, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**options)
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForCausalLM")(config).to(getattr(torch, dtype)).eval()


def tokens(batch: int, length: int) -> Any:
    return torch.randint(3, _VOCABULARY, (batch, length), generator=torch.manual_seed(1))


def decoder(model: Any, batch: int, prompt: int = 16) -> tuple[Callable[[], None], int]:
    """A call that decodes a few more tokens of every sequence, and how many."""
    position = torch.tensor([prompt])
    with torch.no_grad():
        out = model(tokens(batch, prompt), use_cache=True)
    cache = out["cache_params"] if "cache_params" in out else out["past_key_values"]
    known = inspect.signature(model.forward).parameters
    names = ("cache", "cache_params", "past_key_values")
    options = {next(name for name in names if name in known): cache, "use_cache": True}
    if "cache_position" in known:
        options["cache_position"] = position
    token = tokens(batch, 1)

    def steps() -> None:
        for _ in range(_STEPS):
            with torch.no_grad():
                model(token, **options)
            position.add_(1)

    return steps, _STEPS


def projections(model: Any, length: int) -> Callable[[], None]:
    """A call of every linear layer of the model, for so many tokens."""
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    rows = [torch.randn(1, length, m.in_features, dtype=m.weight.dtype) for m in layers]

    def call() -> None:
        with torch.no_grad():
            for layer, x in zip(layers, rows, strict=True):
                layer(x)

    return call


def largest_error(ours: list[Any], theirs: list[Any]) -> float:
    """Of all tensors, relative to the largest magnitude of theirs; inf if one is not finite."""
    largest = 0.0
    for a, b in zip(ours, theirs, strict=True):
        scale = float(b.float().abs().max())
        error = float((a.float() - b.float()).abs().max()) / scale if scale else 0.0
        largest = max(largest, error if math.isfinite(error) else math.inf)
    return largest
