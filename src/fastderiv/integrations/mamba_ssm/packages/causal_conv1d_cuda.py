"""The compiled extension of `causal_conv1d`, on the CPU.

Its functions have had other arguments in other versions, which forks still pass.  Those of the
latest write into tensors that they are given; earlier ones return new tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastderiv.integrations.torch import causal_conv1d
from fastderiv.integrations.torch import causal_conv1d_update as _update


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
    found = causal_conv1d(
        x,
        weight,
        bias,
        seq_idx,
        initial_states,
        return_final_states=final_states_out is not None,
        final_states_out=final_states_out,
        activation="silu" if silu else None,
    )
    y = found if final_states_out is None else found[0]
    if out is None:
        return y
    out.copy_(y)
    return None


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
    if len(tensors) == 7:
        seq_idx, initial_states, dfinal_states, *totals = tensors
        found = _gradients(x, weight, bias, dout, seq_idx, initial_states, dfinal_states, silu)
        dx, dweight, dbias, dinitial_states = totals
        dx.copy_(found[0])
        dweight.add_(found[1])
        if dbias is not None:
            dbias.add_(found[2])
        if dinitial_states is not None:
            dinitial_states.copy_(found[3])
        return None
    if len(tensors) == 5:
        seq_idx, initial_states, dfinal_states, dx, wanted = tensors
    else:
        *found, dx = tensors
        seq_idx = found[0] if found else None
        initial_states = dfinal_states = wanted = None
    found = _gradients(x, weight, bias, dout, seq_idx, initial_states, dfinal_states, silu)
    if dx is not None:
        found[0] = dx.copy_(found[0])
    if wanted is None:
        return found[:3]
    return found if wanted else [*found[:3], None]


def _gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    silu: bool,
) -> list[Any]:
    """By the operator itself: autograd, which `causal_conv1d` needs, is off inside of operators."""
    tensors = x, weight, bias, initial_states
    if dfinal_states is None:
        dfinal_states = x.new_zeros(*x.shape[:2], weight.shape[1] - 1)
    grads = torch.ops.fastderiv.causal_conv1d_vjp(
        dout, dfinal_states, *tensors, seq_idx, None, "silu" if silu else None, x.new_empty(0)
    )
    return [None if t is None else g for t, g in zip(tensors, grads, strict=True)]


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
    activation = "silu" if silu else None
    y = _update(x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices)
    if out is None:
        return y
    out.copy_(y)
    return None
