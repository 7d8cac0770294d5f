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
    recent = len(tensors) >= 5
    seq_idx, initial_states, dfinal_states, dx, *sums, dinitial_states = (
        tensors if recent else [*[None, *tensors][-2:-1], None, None, tensors[-1], None]
    )
    weights = x, weight, bias, initial_states
    if dfinal_states is None:
        dfinal_states = x.new_zeros(*x.shape[:2], weight.shape[1] - 1)
    # the operator itself: autograd does not work inside of operators, where `causal_conv1d` calls
    grads = torch.ops.fastderiv.causal_conv1d_vjp(
        dout, dfinal_states, *weights, seq_idx, None, "silu" if silu else None, x.new_empty(0)
    )
    found = [None if t is None else g for t, g in zip(weights, grads, strict=True)]
    if dx is not None:
        found[0] = dx.copy_(found[0])
    if not sums:
        return (found if dinitial_states else [*found[:3], None]) if recent else found[:3]
    for total, gradient in zip(sums, found[1:3], strict=True):
        if total is not None:
            total.add_(gradient)
    return None if dinitial_states is None else _write(dinitial_states, found[3])


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
    return y if out is None else _write(out, y)


def _write(out: Tensor, values: Tensor | None) -> None:
    assert values is not None
    out.copy_(values)
