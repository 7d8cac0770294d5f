"""Functions of fastderiv in the signatures of transformers 5.

Arguments that say how transformers should compute are accepted and not used.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor
from transformers.activations import ACT2FN

from ..torch import (
    causal_conv1d,
    causal_conv1d_update,
    selective_scan,
    selective_state_update,
    ssd_scan,
)
from ._leaving import instead_of, none_instead_of, parameters
from ._table import Replacement, Row

_FUSED = (None, "silu", "swish")  # the activations that fastderiv's convolution knows


def are_in(module: ModuleType) -> bool:
    """Whether the module of a model has functions of transformers 5.

    That of 4.5x may have the same names for functions of the packages, which have other arguments.
    """
    convolve = getattr(module, "causal_conv1d_fn", None)
    return convolve is not None and parameters(convolve)[0].name == "hidden_states"


def replacements(row: Row, module: ModuleType) -> tuple[list[Replacement], list[str]]:
    """What to replace in the module of a row, and the names of functions that it does not have."""
    found, missing = [], []
    for name in row.functions:
        original = getattr(module, name, None)
        if original is None:
            missing.append(f"{row.module}.{name}")
        else:
            new = (
                none_instead_of(original)
                if name in FUSED
                else instead_of(original, OURS[name], row.packs)
            )
            found.append(Replacement(module, name, new))
    return found, missing


def _convolve(
    hidden_states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    fused = activation if activation in _FUSED else None
    out: Any = causal_conv1d(
        hidden_states, weight, bias, seq_idx, activation=fused, cu_seqlens=cu_seqlens
    )
    return out if fused == activation else ACT2FN[activation](out)


def _convolve_more(
    hidden_states: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    fused = activation if activation in _FUSED else None
    out = causal_conv1d_update(hidden_states, conv_state, weight, bias, fused)
    return out if fused == activation else ACT2FN[activation](out)


def _scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    use_mambapy: bool = False,
    use_associative_scan: bool = False,
    *,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    return selective_scan(
        hidden_states,
        dt,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        delta_softplus,
        return_last_state,
        cu_seqlens=cu_seqlens,
    )


def _chunk_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int | None = None,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    *,
    z: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    return ssd_scan(
        hidden_states,
        dt,
        A,
        B,
        C,
        chunk_size,
        D=D,
        z=z,
        dt_bias=dt_bias,
        initial_states=initial_states,
        seq_idx=seq_idx,
        cu_seqlens=cu_seqlens,
        dt_softplus=dt_softplus,
        dt_limit=dt_limit,
        return_final_states=return_final_states,
    )


def _step(
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
) -> Tensor:
    return selective_state_update(state, hidden_states, dt, A, B, C, D, z, dt_bias, dt_softplus)


OURS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _convolve,
    "causal_conv1d_update": _convolve_more,
    "mamba_selective_scan": _scan,
    "mamba_selective_state_update": _step,
    "mamba2_chunk_scan": _chunk_scan,
    "mamba2_selective_state_update": _step,
}
FUSED = ("mamba_inner_fn", "mamba2_split_conv1d_scan_combined")
"""Functions that may return None: a mixer then calls those above one by one.

They always do so without ``mamba_ssm``, and here for CPU tensors, which ``mamba_ssm`` refuses.
(In Falcon-Mamba the two ways differ: the layer normalises dt before its projection, ``mamba_ssm``
after it.)
"""
