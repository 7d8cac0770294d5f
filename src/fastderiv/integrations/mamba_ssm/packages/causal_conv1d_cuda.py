"""The compiled extension of `causal_conv1d`, on the CPU.

Its functions have had other arguments in other versions, which forks still pass.  Those of the
current one write into tensors that they are given; earlier ones return new tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastderiv.integrations.torch import causal_conv1d
from fastderiv.integrations.torch import causal_conv1d_update as _update

Optional = Tensor | None


@torch.no_grad()
def causal_conv1d_fwd(x: Tensor, weight: Tensor, bias: Optional, *options: Any) -> Optional:
    """The causal convolution of `x` (batch, D, L) by `weight` (D, K).

    `options` are ``seq_idx, initial_states, out, final_states_out, silu`` in the current version,
    the same without ``out`` from 1.2, ``seq_idx, silu`` in 1.1, and ``silu`` in 1.0.
    """
    *tensors, silu = options
    in_place = len(tensors) == 4
    out = tensors.pop(2) if in_place else None
    seq_idx, initial_states, final_states_out = [*tensors, None, None, None][:3]
    result = causal_conv1d(
        x,
        weight,
        bias,
        seq_idx,
        initial_states,
        return_final_states=final_states_out is not None,
        final_states_out=final_states_out,
        activation="silu" if silu else None,
    )
    y = result if isinstance(result, Tensor) else result[0]
    if out is None:
        return y
    out.copy_(y)
    return None


def causal_conv1d_bwd(
    x: Tensor, weight: Tensor, bias: Optional, dout: Tensor, *options: Any
) -> list[Optional] | None:
    """The gradients of `x`, `weight`, `bias` and the initial states.

    `options` are ``seq_idx, initial_states, dfinal_states, dx, dweight, dbias, dinitial_states,
    silu`` in the current version, which adds to ``dweight`` and ``dbias``; ``seq_idx,
    initial_states, dfinal_states, dx, return_dinitial_states, silu`` from 1.2; ``seq_idx, dx,
    silu`` in 1.1, and ``dx, silu`` in 1.0.
    """
    *tensors, silu = options
    seq_idx = initial_states = dfinal_states = wanted = None
    if len(tensors) == 7:
        seq_idx, initial_states, dfinal_states, dx, dweight, dbias, wanted = tensors
    elif len(tensors) == 5:
        seq_idx, initial_states, dfinal_states, dx, wanted = tensors
    else:
        seq_idx, dx = [None, *tensors][-2:]
    grads = _gradients(x, weight, bias, dout, seq_idx, initial_states, dfinal_states, silu)
    if len(tensors) == 7:
        dx.copy_(grads[0])
        for total, gradient in ((dweight, grads[1]), (dbias, grads[2])):
            if total is not None:
                total.add_(gradient)
        if wanted is not None:
            wanted.copy_(grads[3])
        return None
    if dx is not None:
        grads[0] = dx.copy_(grads[0])
    return grads if wanted else [*grads[:3], None] if len(tensors) == 5 else grads[:3]


def _gradients(
    x: Tensor,
    weight: Tensor,
    bias: Optional,
    dout: Tensor,
    seq_idx: Optional,
    initial_states: Optional,
    dfinal_states: Optional,
    silu: bool,
) -> list[Optional]:
    with torch.enable_grad():
        variables = [
            None if t is None else t.detach().requires_grad_()
            for t in (x, weight, bias, initial_states)
        ]
        x_, weight_, bias_, initial_ = variables
        result = causal_conv1d(
            x_,
            weight_,
            bias_,
            seq_idx,
            initial_,
            return_final_states=dfinal_states is not None,
            activation="silu" if silu else None,
        )
    outputs = [result] if isinstance(result, Tensor) else list(result)
    given = [t for t in variables if t is not None]
    found = iter(torch.autograd.grad(outputs, given, [dout, dfinal_states][: len(outputs)]))
    return [None if t is None else next(found) for t in variables]


@torch.no_grad()
def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Optional, *options: Any
) -> Optional:
    """Steps of the convolution, which write to `conv_state`.

    `options` are ``out, silu, cache_seqlens, conv_state_indices`` in the current version, the same
    without ``out`` from 1.4, and fewer of the last two before.
    """
    in_place = not isinstance(options[0], bool)
    out, silu, *places = options if in_place else (None, *options)
    cache_seqlens, conv_state_indices = [*places, None, None][:2]
    y: Tensor = _update(
        x,
        conv_state,
        weight,
        bias,
        "silu" if silu else None,
        cache_seqlens,
        conv_state_indices,
    )
    if out is None:
        return y
    out.copy_(y)
    return None
