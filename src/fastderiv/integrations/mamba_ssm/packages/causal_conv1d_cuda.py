"""The compiled extension of `causal_conv1d`, on the CPU.

Its functions have had other arguments in other versions, which forks still pass.  Those of the
latest write into tensors that they are given; earlier ones return new tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastderiv.integrations.mamba_ssm.packages.causal_conv1d.cpp_functions import (
    causal_conv1d_bwd_function,
    causal_conv1d_fwd_function,
    causal_conv1d_update_function,
)


@torch.no_grad()
def causal_conv1d_fwd(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Any:
    """The causal convolution of `x` (batch, D, L) by `weight` (D, K).

    `options` are ``seq_idx, initial_states, out, final_states_out, silu`` in the latest version,
    the same without ``out`` from 1.2, ``seq_idx, silu`` in 1.1, and ``silu`` in 1.0.
    """
    *tensors, silu = options
    in_place = len(tensors) == 4
    out = tensors.pop(2) if in_place else None
    seq_idx, initial_states, final_states_out = [*tensors, None, None, None][:3]
    y = causal_conv1d_fwd_function(
        x, weight, bias, seq_idx, initial_states, final_states_out, silu
    )
    return y if out is None else _write(out, y)


@torch.no_grad()
def causal_conv1d_bwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, dout: Tensor, *options: Any
) -> Any:
    """The gradients of `x`, `weight`, `bias` and, from 1.2, the initial states.

    `options` are ``seq_idx, initial_states, dfinal_states, dx, dweight, dbias, dinitial_states,
    silu`` in the latest version, which adds to ``dweight`` and ``dbias``; ``seq_idx,
    initial_states, dfinal_states, dx, return_dinitial_states, silu`` from 1.2; ``seq_idx, dx,
    silu`` in 1.1, and ``dx, silu`` in 1.0.
    """
    *tensors, silu = options
    if len(tensors) < 5:
        seq_idx, dx = [None, *tensors][-2:]
        found = causal_conv1d_bwd_function(
            x, weight, bias, dout, seq_idx, None, None, dx, False, silu
        )
        return list(found[:3])
    seq_idx, initial_states, dfinal_states, dx, *sums, dinitial_states = tensors
    wanted = dinitial_states is not None and dinitial_states is not False
    found = causal_conv1d_bwd_function(
        x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx, wanted, silu
    )
    if not sums:
        return list(found)
    for total, gradient in zip(sums, found[1:3], strict=True):
        if total is not None:
            total.add_(gradient)
    return _write(dinitial_states, found[3]) if wanted else None


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> Any:
    """Steps of the convolution, which write to `conv_state`.

    `options` are ``out, silu, cache_seqlens, conv_state_indices`` in the latest version, the same
    without ``out`` from 1.4, and without the last or the last two before.
    """
    out, silu, *places = options if isinstance(options[0], Tensor) else (None, *options)
    cache_seqlens, conv_state_indices = [*places, None, None][:2]
    y = causal_conv1d_update_function(
        x, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices
    )
    return y if out is None else _write(out, y)


def _write(out: Tensor, values: Tensor | None) -> None:
    assert values is not None
    out.copy_(values)
