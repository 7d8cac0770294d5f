"""VMamba's compiled extension `selective_scan_cuda_core`, on the CPU."""

from __future__ import annotations

from torch import Tensor

from fastderiv.integrations.mamba_ssm._raw_scan import bwd_without_gate as bwd
from fastderiv.integrations.mamba_ssm._raw_scan import forward

__all__ = ["bwd", "fwd"]


def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor]:
    """The result in the dtype of `u`, and the states.

    Shapes are those of `selective_scan_fn`, with B and C (batch, G, N, L).  The states are
    (batch, D, chunks, 2N) in float32, the last one is ``x[:, :, -1, 1::2]``.  `nrows`, how a GPU
    divides the work, has no effect.
    """
    return forward(u, delta, A, B, C, D, delta_bias, delta_softplus, u.dtype)
