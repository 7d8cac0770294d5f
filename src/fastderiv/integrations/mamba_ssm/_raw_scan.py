"""The scan and its adjoint as compiled extensions offer them: on plain tensors, without a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..torch import selective_scan

CHUNK = 2048  # steps between the states that the extensions return


@torch.no_grad()
def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    out_dtype: torch.dtype,
) -> list[Tensor]:
    """The scan without a gate, and its states `x` of shape (batch, D, chunks, 2N).

    ``x[:, :, c, 1::2]`` is the state behind chunk `c` of 2048 steps.  The other half is zeros; the
    originals keep products of decays there, which only they themselves read.  `delta` and its bias
    may have fewer channels than `u`, each for as many neighbours of `u`.
    """
    delta, delta_bias = _spread(u.shape[1], delta, 1), _spread(u.shape[1], delta_bias, 0)
    u = u.to(torch.promote_types(u.dtype, torch.float32))  # for a result that is not rounded twice
    outs: list[Tensor] = []
    states: list[Tensor] = []
    for start in range(0, max(u.shape[-1], 1), CHUNK):
        part = slice(start, start + CHUNK)
        b, c = (t if t.ndim == 2 else t[..., part] for t in (B, C))
        out, state = selective_scan(
            u[..., part],
            delta[..., part],
            A,
            b,
            c,
            D,
            delta_bias=delta_bias,
            delta_softplus=delta_softplus,
            return_last_state=True,
            initial_state=states[-1] if states else None,
        )
        outs.append(out)
        states.append(state)
    x = state.new_zeros(*u.shape[:2], len(states), 2 * A.shape[1])
    x[..., 1::2] = torch.stack(states, 2)
    return [(outs[0] if len(outs) == 1 else torch.cat(outs, -1)).to(out_dtype), x]


@torch.no_grad()
def backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    delta_softplus: bool,
    z: Tensor | None = None,
) -> list[Tensor | None]:
    """Gradients of u, delta, A, B, C, D, delta_bias and z, each in the dtype of its tensor.

    The scan runs once more, because the states that `forward` returns are too far apart.
    """
    wide_delta, wide_bias = _spread(u.shape[1], delta, 1), _spread(u.shape[1], delta_bias, 0)
    no_gradient = A.new_zeros(u.shape[0], *A.shape)  # of the last state
    tensors = u, wide_delta, A, B, C, D, z, wide_bias, None
    grads = torch.ops.fastderiv.selective_scan_vjp(
        dout, no_gradient, *tensors, None, delta_softplus, A.new_empty(0)
    )
    known: list[Any] = [None if t is None else g for t, g in zip(tensors, grads, strict=True)]
    du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, _ = known
    if wide_delta is not delta:
        ddelta = ddelta.unflatten(1, (delta.shape[1], -1)).sum(2)
        ddelta_bias = None if delta_bias is None else ddelta_bias.view(delta.shape[1], -1).sum(1)
    return [du, ddelta, dA, dB, dC, dD, ddelta_bias, dz]


def _spread(channels: int, t: Any, axis: int) -> Any:
    """`t` with as many channels along the axis, each of its own repeated; None for None."""
    if t is None or t.shape[axis] in (0, channels) or channels % t.shape[axis]:
        return t
    return t.repeat_interleave(channels // t.shape[axis], axis)


def bwd_without_gate(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor | None]:
    """Gradients of u, delta, A, B, C, D and delta_bias; `x` and `nrows` are not needed."""
    return backward(u, delta, A, B, C, D, delta_bias, dout, delta_softplus)[:7]
