"""Small random models of transformers, by family, and what their tests share."""

import inspect
from importlib import import_module

import torch
import transformers

OLD = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 4)
"""Whether layers are classes with methods to be replaced, as in transformers 4.5x."""

SIZES = {"vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
ATTENTION = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
MAMBA = ATTENTION | {"mamba_d_state": 8, "mamba_dt_rank": 4}
MAMBA2 = ATTENTION | {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 4,
}
# two experts for a token: with one, its weight is always 1 and has no gradient
EXPERTS = {"num_experts": 3, "num_local_experts": 3, "num_experts_per_tok": 2}
DELTA = (
    ATTENTION
    | EXPERTS
    | {
        "head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    }
)
CONV = ATTENTION | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}
CONFIGURATIONS = {
    "Mamba": {"state_size": 8},
    "FalconMamba": {"state_size": 8},
    "Jamba": MAMBA
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1},
    "Zamba": MAMBA | {"num_hidden_layers": 4, "attn_layer_period": 1, "attn_layer_offset": 0},
    "Mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 4},
    "Bamba": MAMBA2 | {"attn_layer_indices": [1]},
    "FalconH1": MAMBA2 | {"mamba_d_ssm": 64, "head_dim": 8},
    "GraniteMoeHybrid": MAMBA2
    | EXPERTS
    | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 16},
    "NemotronH": ATTENTION
    | {
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 4,
        "head_dim": 8,
    },
    "Zamba2": ATTENTION
    | {
        "layers_block_type": ["mamba", "hybrid"],
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_d_state": 8,
        "mamba_ngroups": 2,
        "chunk_size": 4,
        "num_mem_blocks": 1,
    },
    "Lfm2": CONV,
    "Lfm2Moe": CONV | EXPERTS | {"moe_intermediate_size": 16, "num_dense_layers": 1},
    "Lfm3": CONV,
    "Qwen3Next": DELTA,
    "OlmoHybrid": DELTA,
}
if OLD:
    CONFIGURATIONS = {
        family: options | ({"use_mamba_kernels": False} if family in ("Jamba", "Zamba") else {})
        for family, options in CONFIGURATIONS.items()
        if hasattr(transformers, f"{family}ForCausalLM")
    }
    # its chunks of Zamba2 are put together wrongly
    CONFIGURATIONS["Zamba2"] |= {"chunk_size": 16}


# what forward and its result call the cache: new in transformers 5, older, oldest
def cache_name(model):
    names = "cache", "past_key_values", "cache_params"
    known = inspect.signature(model.forward).parameters
    return next(name for name in names if name in known)


def build(family="Mamba", **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | CONFIGURATIONS[family] | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in (
            model.parameters()
        ):  # freshly initialised biases, norms and D would be the same everywhere
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tokens(length=9, batch=2):
    return torch.randint(3, 37, (batch, length), generator=torch.Generator().manual_seed(1))


def step(model, ids=None, cache=None, **inputs):
    """Logits and cache after more tokens."""
    name = cache_name(model)
    if not OLD:
        out = model(ids, use_cache=True, **{name: cache}, **inputs)
        return out.logits, out[name]
    # transformers 4.5x wants to be told positions, and by some models to be given a first cache
    before = 0 if cache is None else cache.seen
    after = before + next(iter(inputs.values()), ids).shape[1]
    positions = torch.arange(before, after)
    if cache is None and name == "past_key_values":
        made = model.prepare_inputs_for_generation(ids, use_cache=True, cache_position=positions)
        cache = made.get(name)
    if cache is not None:
        inputs |= {name: cache, "cache_position": positions}
    out = model(ids, use_cache=True, **inputs)
    out[name].seen = after
    return out.logits, out[name]


def functions():
    """What is replaced for a few models, as it is now."""
    classes = {
        "mamba": "MambaMixer",
        "falcon_mamba": "FalconMambaMixer",
        "jamba": "JambaMambaMixer",
        "zamba": "ZambaMambaMixer",
    }
    names = "mamba_selective_scan", "mamba_selective_state_update", "causal_conv1d_fn"
    modules = [import_module(f"transformers.models.{name}.modeling_{name}") for name in classes]
    if OLD:
        owners = zip(modules, classes.values(), strict=True)
        return [getattr(module, name).slow_forward for module, name in owners]
    return [getattr(module, name) for module in modules for name in names]


def gradients(model, **inputs):
    """Those of every parameter that has one, by name."""
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(ours, theirs, tolerance=2e-5):
    return (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
