"""Functions of the real packages that leave tensors on the CPU to ours."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

_OPS = "mamba_ssm.ops.triton"

# By module, the functions that are served in it.
SERVED: dict[str, tuple[str, ...]] = {
    "mamba_ssm.ops.selective_scan_interface": (
        "selective_scan_fn",
        "mamba_inner_fn",
        "mamba_inner_fn_no_out_proj",
        "bimamba_inner_fn",
    ),
    f"{_OPS}.selective_state_update": ("selective_state_update",),
    f"{_OPS}.ssd_combined": (
        "mamba_chunk_scan",
        "mamba_chunk_scan_combined",
        "mamba_split_conv1d_scan_combined",
    ),
    f"{_OPS}.k_activations": ("swiglu",),
    f"{_OPS}.layer_norm": ("layer_norm_fn", "layer_norm_linear_fn", "rms_norm_fn"),
    f"{_OPS}.layernorm": ("layer_norm_fn", "rms_norm_fn"),  # of version 1
    f"{_OPS}.layernorm_gated": ("layernorm_fn", "rmsnorm_fn"),
    "mamba_ssm.utils.generation": ("decode",),  # it takes times by events of a GPU
    "causal_conv1d.causal_conv1d_interface": ("causal_conv1d_fn", "causal_conv1d_update"),
    "causal_conv1d.causal_conv1d_varlen": ("causal_conv1d_varlen_states",),
    "causal_conv1d.cpp_functions": (
        "causal_conv1d_fwd_function",
        "causal_conv1d_bwd_function",
        "causal_conv1d_update_function",
    ),
    "selective_scan_cuda": ("fwd", "bwd"),
    "selective_scan_cuda_core": ("fwd", "bwd"),
    "selective_scan_cuda_oflex": ("fwd", "bwd"),
    "causal_conv1d_cuda": ("causal_conv1d_fwd", "causal_conv1d_bwd", "causal_conv1d_update"),
    "mamba_ssm": (),  # watched for its failure
    "causal_conv1d": (),
}

Function = Callable[..., Any]
_pairs: list[tuple[Function, Function]] = []  # what was replaced, and by what


def serve(module: ModuleType) -> None:
    """Let the functions of a real module leave tensors on the CPU to ours, wherever they are."""
    found = []
    for name in SERVED.get(module.__name__, ()):
        original = vars(module).get(name)
        if callable(original) and not _is_known(original):
            found.append((original, _either(original, module.__name__, name)))
    _pairs.extend(found)
    _exchange(found)


def stop_serving() -> None:
    """Put the originals back, wherever they were imported by name."""
    _exchange([(ours, original) for original, ours in _pairs])
    _pairs.clear()


def _is_known(function: Function) -> bool:
    return any(function is one for pair in _pairs for one in pair)


def _exchange(pairs: list[tuple[Function, Function]]) -> None:
    """Replace the first of each pair by the second among the globals of all modules."""
    by_id = {id(old): new for old, new in pairs}
    for module in list(sys.modules.values()) if pairs else []:
        names = getattr(module, "__dict__", {})
        for name, value in list(names.items()):
            if id(value) in by_id:
                names[name] = by_id[id(value)]


def _either(original: Function, module: str, name: str) -> Function:
    """Ours if all tensors are on the CPU, else the original."""
    from torch import Tensor

    ours: Function = getattr(import_module(f"{__package__}.packages.{module}"), name)
    known, theirs = _arguments(ours), _arguments(original)
    # older versions have other orders; extensions do not say what theirs is, and have that of ours
    same_order = all(a == b for a, b in zip(known, theirs, strict=False))

    @functools.wraps(original)
    def either(*args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if tensors and all(t.is_cpu for t in tensors):
            if same_order and all(argument in known for argument in kwargs):
                return ours(*args, **kwargs)
            named = {**dict(zip(theirs, args, strict=False)), **kwargs}
            if not same_order and all(argument in known for argument in named):
                return ours(**named)
        return original(*args, **kwargs)

    return either


def _arguments(function: Function) -> tuple[str, ...]:
    """The names of a function's arguments, as far as they are known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
