"""The compiled extension of `mamba_ssm`, on the CPU."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu

from fastderiv.integrations.mamba_ssm._raw_scan import backward, forward


def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """The result before the gate, the states, and the gated result if there is a gate `z`.

    Shapes are those of `selective_scan_fn`, with B and C (D, N) or (batch, G, N, L).  The states
    are (batch, D, chunks, 2N) in float32, the last one is ``x[:, :, -1, 1::2]``.
    """
    out, x = forward(u, delta, A, B, C, D, delta_bias, delta_softplus, delta.dtype)
    return [out, x] if z is None else [out, x, _gated(out, z)]


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """Gradients of u, delta, A, B, C, D and delta_bias; with a gate `z`, its gradient too.

    The gradient of `z` is written to `dz` if that is given.  The gated result comes last if there
    is a gate and `recompute_out_z`.  `x` is not needed, `out` only for the gated result.
    """
    *grads, new_dz = backward(u, delta, A, B, C, D, delta_bias, dout, delta_softplus, z)
    if z is None:
        return grads
    assert new_dz is not None
    grads.append(new_dz if dz is None else dz.copy_(new_dz))
    if recompute_out_z:
        if out is None:
            out, _ = forward(u, delta, A, B, C, D, delta_bias, delta_softplus, delta.dtype)
        grads.append(_gated(out, z))
    return grads


def _gated(out: Tensor, z: Tensor) -> Tensor:
    return (out.float() * silu(z.float())).to(z.dtype)
