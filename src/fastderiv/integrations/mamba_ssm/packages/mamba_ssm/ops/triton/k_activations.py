"""`swiglu`, the gated activation of a pair of branches."""

from torch import Tensor
from torch.nn.functional import silu

from fastderiv.integrations.torch._tensors import working

__all__ = ["swiglu"]


def swiglu(xy: Tensor) -> Tensor:
    """``silu(x) * y``, where x and y are the halves of the last axis.

    Parameters
    ----------
    xy : Tensor, shape (..., 2 d)
        Any floating dtype; 16-bit numbers are computed in float32.

    Returns
    -------
    out : Tensor, shape (..., d), dtype of `xy`

    Raises
    ------
    ValueError
        The last axis has no halves.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton.k_activations import (
    ...     swiglu,
    ... )
    >>> swiglu(torch.tensor([0.0, 3.0]))
    tensor([0.])
    """
    if xy.shape[-1] % 2:
        raise ValueError(f"xy has shape {tuple(xy.shape)}; expected an even last axis")
    x, y = xy.to(working(xy)).chunk(2, dim=-1)
    return (silu(x) * y).to(xy.dtype)
