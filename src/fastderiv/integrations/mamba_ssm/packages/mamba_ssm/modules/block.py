"""`Block`: residual sum, norm, mixer, and an MLP with a norm of its own if there is one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.triton.layer_norm import RMSNorm, layer_norm_fn


class Block(nn.Module):
    """A layer of a language model, which adds to the residual before its norm.

    Parameters
    ----------
    dim : int
        Width.
    mixer_cls, mlp_cls, norm_cls : callable
        They make the parts from the width; ``mlp_cls=torch.nn.Identity`` stands for no MLP.
    fused_add_norm : bool
        Whether sum and norm are one function; norms are then ``LayerNorm`` or ``RMSNorm``.
    residual_in_fp32 : bool
        Whether the residual is kept in float32.
    """

    def __init__(
        self,
        dim: int,
        mixer_cls: Any,
        mlp_cls: Any,
        norm_cls: Any = nn.LayerNorm,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.norm, self.mixer, self.mlp = norm_cls(dim), mixer_cls(dim), None
        if mlp_cls is not nn.Identity:
            self.norm2, self.mlp = norm_cls(dim), mlp_cls(dim)
        if fused_add_norm and not isinstance(self.norm, (nn.LayerNorm, RMSNorm)):
            raise TypeError(
                f"the norm is a {type(self.norm).__name__}; "
                "fused_add_norm expects a LayerNorm or an RMSNorm"
            )

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor | None = None,
        inference_params: Any = None,
        **mixer_kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """What is to be added, and the residual that it is to be added to.

        The first block takes no residual.
        """
        how = (self.fused_add_norm, self.residual_in_fp32)
        x, residual = add_and_norm(hidden_states, residual, self.norm, *how)
        x = self.mixer(x, inference_params=inference_params, **mixer_kwargs)
        if self.mlp is not None:
            x, residual = add_and_norm(x, residual, self.norm2, *how)
            x = self.mlp(x)
        return x, residual

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        """What the mixer keeps between calls."""
        return self.mixer.allocate_inference_cache(batch_size, max_seqlen, dtype=dtype, **kwargs)


def add_and_norm(
    x: Tensor, residual: Tensor | None, norm: Any, fused: bool, in_fp32: bool
) -> tuple[Tensor, Tensor]:
    """The norm of x + residual, and the sum."""
    if fused:
        return layer_norm_fn(
            x,
            norm.weight,
            norm.bias,
            residual=residual,
            eps=norm.eps,
            prenorm=True,
            residual_in_fp32=in_fp32,
            is_rms_norm=isinstance(norm, RMSNorm),
        )
    total = x if residual is None else x + residual
    return norm(total.to(norm.weight.dtype)), total.float() if in_fp32 else total
