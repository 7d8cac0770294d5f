"""Functions of fastderiv in the signatures of transformers 5."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.nn.functional import conv2d
from transformers.activations import ACT2FN

from ..torch import selective_scan, selective_state_update
from ._leaving import instead_of
from ._table import Replacement, Row


def replacements(row: Row, module: ModuleType) -> tuple[list[Replacement], list[str]]:
    """What to replace in the module of a row, and the names of functions that it does not have."""
    found, missing = [], []
    for name in row.functions:
        original = getattr(module, name, None)
        if original is None:
            missing.append(f"{row.module}.{name}")
        elif name in OURS:
            found.append(Replacement(module, name, instead_of(original, OURS[name])))
    return found, missing


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
) -> Tensor | tuple[Tensor, Tensor]:
    return selective_scan(
        hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus, return_last_state
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


def _convolve(
    hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """The same convolution in two dimensions.

    PyTorch takes adjacent channels as they are there; in one dimension it would transpose them.
    """
    length, taps = hidden_states.shape[-1], weight.shape[-1]
    rows = hidden_states.to(weight.dtype)[:, :, None]
    out = conv2d(rows, weight[:, None, None], bias, padding=(0, taps - 1), groups=len(weight))[
        :, :, 0, :length
    ]
    return (out if activation is None else ACT2FN[activation](out)).to(hidden_states.dtype)


OURS: dict[str, Callable[..., Any]] = {
    "causal_conv1d_fn": _convolve,
    "mamba_selective_scan": _scan,
    "mamba_selective_state_update": _step,
}
