"""LayerNorm and RMSNorm of a residual stream: add the branches, then normalise.

The sum x·rowscale + x1 + residual, with dropout of x and x1, is what the next block adds to; its
normalisation, with one or two sets of weights, is what the next mixer reads.  Both are computed in
float32 if the tensors have 16 bits.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastderiv.integrations.torch._tensors import working

__all__ = [
    "RMSNorm",
    "layer_norm_fn",
    "layer_norm_linear_fn",
    "layer_norm_ref",
    "rms_norm_fn",
    "rms_norm_ref",
]


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Any:
    """LayerNorm, or RMSNorm, of ``dropout(rowscale * x) + dropout(x1) + residual``.

    Parameters
    ----------
    x : Tensor, shape (..., N)
    weight, bias : Tensor, shape (N,)
        `bias` may be None.
    residual, x1 : Tensor, shape of `x`, optional
        What is added to `x`; of the two, only `x1` is subject to dropout.
    weight1, bias1 : Tensor, shape (N,), optional
        A second set of weights, for a second result.
    eps : float, optional
        Added to the variance (or to the mean square).
    dropout_p : float, optional
        The probability that a number is dropped.
    rowscale : Tensor, shape of `x` without its last axis, optional
        Multiplies the rows of `x`.  Not together with `x1`.
    prenorm : bool, optional
        Whether to return the sum too.
    residual_in_fp32 : bool, optional
        Whether the sum is float32 where no `residual` says what it is.
    is_rms_norm : bool, optional
        RMSNorm: no mean is subtracted.
    return_dropout_mask : bool, optional
        Whether to return which numbers were kept.

    Returns
    -------
    y : Tensor, shape and dtype of `x`
    y1 : Tensor
        The same with the second set of weights; only if `weight1` is given.
    residual_out : Tensor
        The sum, in the dtype of `residual`; without one, in float32 if `residual_in_fp32`, else in
        the dtype of `x`.  Only if `prenorm`.
    dropout_mask, dropout_mask1 : Tensor of bool, shape of `x`
        None if nothing could be dropped.  Only if `return_dropout_mask`.

    A single result is not wrapped in a tuple.

    Raises
    ------
    ValueError
        A shape that does not fit, or `rowscale` together with `x1`.

    Notes
    -----
    The normalisation reads the sum before it is rounded to the dtype of `residual_out`.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton.layer_norm import (
    ...     layer_norm_fn,
    ... )
    >>> x = torch.tensor([[1.0, 3.0]])
    >>> layer_norm_fn(x, torch.ones(2), None, residual=x, prenorm=True, eps=0.0)
    (tensor([[-1.,  1.]]), tensor([[2., 6.]]))
    """
    _check(x, residual, x1, rowscale, weight=weight, bias=bias, weight1=weight1, bias1=bias1)
    total, mask, mask1 = _sum(x, residual, x1, dropout_p=dropout_p, rowscale=rowscale)
    results: list[Tensor | None] = [
        normalise(total, w, b, eps, is_rms_norm=is_rms_norm).to(x.dtype)
        for w, b in ((weight, bias), (weight1, bias1))
        if w is not None
    ]
    if prenorm:
        without = torch.float32 if residual_in_fp32 else x.dtype
        results.append(total.to(without if residual is None else residual.dtype))
    if return_dropout_mask:
        results += [mask, mask1]
    return results[0] if len(results) == 1 else tuple(results)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Any:
    """`layer_norm_fn` with ``is_rms_norm=True``.

    Parameters
    ----------
    x, weight, bias, residual, x1, weight1, bias1, rowscale : Tensor
    eps, dropout_p : float, optional
    prenorm, residual_in_fp32, return_dropout_mask : bool, optional
        As in `layer_norm_fn`.

    Returns
    -------
    Tensor or tuple of Tensor
        As `layer_norm_fn`.

    Raises
    ------
    ValueError
        As `layer_norm_fn`.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton.layer_norm import (
    ...     rms_norm_fn,
    ... )
    >>> rms_norm_fn(torch.tensor([[2.0, 2.0]]), torch.ones(2), None, eps=0.0)
    tensor([[1., 1.]])
    """
    return layer_norm_fn(
        x,
        weight,
        bias,
        residual=residual,
        x1=x1,
        weight1=weight1,
        bias1=bias1,
        eps=eps,
        dropout_p=dropout_p,
        rowscale=rowscale,
        prenorm=prenorm,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=True,
        return_dropout_mask=return_dropout_mask,
    )


class RMSNorm(torch.nn.Module):
    """RMSNorm of a residual stream as a module.

    Parameters
    ----------
    hidden_size : int
        The length of the last axis.
    eps : float, optional
        Added to the mean square.
    dropout_p : float, optional
        The probability that a number of the input is dropped in training.
    device, dtype : optional
        Those of the weight.

    Attributes
    ----------
    weight : Parameter, shape (hidden_size,)
        Ones at first.
    bias : None

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton.layer_norm import (
    ...     RMSNorm,
    ... )
    >>> RMSNorm(2, eps=0.0)(torch.tensor([[2.0, 2.0]])).detach()
    tensor([[1., 1.]])
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.drop = torch.nn.Dropout(dropout_p) if dropout_p > 0.0 else None
        self.weight = torch.nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to ones."""
        torch.nn.init.ones_(self.weight)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Any:
        """`rms_norm_fn` with the module's weight; dropout in training only."""
        return rms_norm_fn(
            x,
            self.weight,
            self.bias,
            residual=residual,
            eps=self.eps,
            dropout_p=self.drop.p if self.drop is not None and self.training else 0.0,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )


def layer_norm_linear_fn(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Any:
    """`layer_norm_fn`, then a linear map.

    Parameters
    ----------
    x : Tensor, shape (..., N)
    norm_weight, norm_bias : Tensor, shape (N,)
        `norm_bias` may be None.
    linear_weight : Tensor, shape (M, N)
    linear_bias : Tensor, shape (M,)
        May be None.
    residual : Tensor, shape of `x`, optional
    eps : float, optional
    prenorm, residual_in_fp32, is_rms_norm : bool, optional
        As in `layer_norm_fn`.

    Returns
    -------
    out : Tensor, shape (..., M)
        In the dtype of `linear_weight`, or in that of autocast where it is enabled.
    residual_out : Tensor
        As of `layer_norm_fn`; only if `prenorm`.

    Raises
    ------
    ValueError
        As `layer_norm_fn`.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton.layer_norm import (
    ...     layer_norm_linear_fn,
    ... )
    >>> one = torch.ones(2)
    >>> x, twice = torch.tensor([[1.0, 3.0]]), 2 * torch.eye(2)
    >>> layer_norm_linear_fn(x, one, None, twice, None, eps=0.0)
    tensor([[-2.,  2.]])
    """
    found = layer_norm_fn(
        x,
        norm_weight,
        norm_bias,
        residual=residual,
        eps=eps,
        prenorm=prenorm,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
    )
    y, *rest = found if prenorm else (found,)
    out = F.linear(y.to(linear_weight.dtype), linear_weight, linear_bias)
    return (out, *rest) if prenorm else out


def layer_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    upcast: bool = False,
) -> Any:
    """`layer_norm_fn` in the dtypes that PyTorch's operations give, for given masks of dropout.

    Parameters
    ----------
    x, weight, bias, residual, x1, weight1, bias1, rowscale : Tensor
    eps, dropout_p : float, optional
    prenorm : bool, optional
        As in `layer_norm_fn`.
    dropout_mask, dropout_mask1 : Tensor of bool, shape of `x`, optional
        What is kept of `x` and of `x1`; drawn if not given.
    upcast : bool, optional
        Whether to compute in float32.

    Returns
    -------
    Tensor or tuple of Tensor
        As `layer_norm_fn`.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton.layer_norm import (
    ...     layer_norm_ref,
    ... )
    >>> layer_norm_ref(torch.tensor([[1.0, 3.0]]), torch.ones(2), None, eps=0.0)
    tensor([[-1.,  1.]])
    """

    def norm(total: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.layer_norm(total.to(w.dtype), total.shape[-1:], w, b, eps)

    branches = x, residual, x1, dropout_p, rowscale, dropout_mask, dropout_mask1
    return _norms_ref(norm, branches, ((weight, bias), (weight1, bias1)), prenorm, upcast)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    upcast: bool = False,
) -> Any:
    """`rms_norm_fn` in the dtypes that PyTorch's operations give, for given masks of dropout.

    Parameters
    ----------
    x, weight, bias, residual, x1, weight1, bias1, rowscale : Tensor
    eps, dropout_p : float, optional
    prenorm : bool, optional
    dropout_mask, dropout_mask1 : Tensor of bool, shape of `x`, optional
    upcast : bool, optional
        As in `layer_norm_ref`.

    Returns
    -------
    Tensor or tuple of Tensor
        As `layer_norm_fn`.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton.layer_norm import (
    ...     rms_norm_ref,
    ... )
    >>> rms_norm_ref(torch.tensor([[2.0, 2.0]]), torch.ones(2), None, eps=0.0)
    tensor([[1., 1.]])
    """

    def norm(total: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        unit = total / torch.sqrt(total.square().mean(dim=-1, keepdim=True) + eps)
        return unit * w if b is None else unit * w + b

    branches = x, residual, x1, dropout_p, rowscale, dropout_mask, dropout_mask1
    return _norms_ref(norm, branches, ((weight, bias), (weight1, bias1)), prenorm, upcast)


def _layer_norm_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> tuple[Tensor | None, ...]:
    """The forward pass that copies of mamba_ssm's interface import.

    Returns y, y1, mean, 1/std, residual_out, seeds and masks of dropout; None for what there is
    not.  There are no seeds: the masks say what was dropped.
    """
    _check(x, residual, x1, rowscale, weight=weight, bias=bias, weight1=weight1, bias1=bias1)
    total, mask, mask1 = _sum(x, residual, x1, dropout_p=dropout_p, rowscale=rowscale)
    y, y1 = (
        w
        if w is None
        else normalise(total, w, b, eps, is_rms_norm=is_rms_norm).to(out_dtype or x.dtype)
        for w, b in ((weight, bias), (weight1, bias1))
    )
    mean = None if is_rms_norm else total.mean(-1)
    centred = total if mean is None else total - mean[:, None]
    rstd = torch.rsqrt(centred.square().mean(-1) + eps)
    kept = residual_dtype or x.dtype if residual is None else residual.dtype
    masks = (mask, mask1) if return_dropout_mask else (None, None)
    return y, y1, mean, rstd, total.to(kept), None, *masks


# ---- shared with other files of this folder ------------------------------------------------------


def normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, is_rms_norm: bool
) -> Tensor:
    """The norm over the last axis, in the dtype of `x`."""
    w, b = (None if t is None else t.to(x.dtype) for t in (weight, bias))
    if not is_rms_norm:
        return F.layer_norm(x, x.shape[-1:], w, b, eps)
    y = F.rms_norm(x, x.shape[-1:], w, eps)
    return y if b is None else y + b


def check_weights(x: Tensor, **weights: Tensor | None) -> None:
    """A ValueError unless each has one number for each place on the last axis of x, or is None."""
    for name, weight in weights.items():
        if weight is not None and weight.shape != x.shape[-1:]:
            raise ValueError(
                f"{name} has shape {tuple(weight.shape)}; expected {tuple(x.shape[-1:])}, "
                "the last axis of x"
            )


# ---- the sum of the branches ---------------------------------------------------------------------


def _check(
    x: Tensor,
    residual: Tensor | None,
    x1: Tensor | None,
    rowscale: Tensor | None,
    **weights: Tensor | None,
) -> None:
    for name, tensor in (("residual", residual), ("x1", x1)):
        if tensor is not None and tensor.shape != x.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; expected that of x, {tuple(x.shape)}"
            )
    check_weights(x, **weights)
    if rowscale is not None and x1 is not None:
        raise ValueError("rowscale is given together with x1; expected at most one of them")


def _sum(
    x: Tensor,
    residual: Tensor | None,
    x1: Tensor | None,
    *,
    dropout_p: float,
    rowscale: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The sum of the branches in the working dtype, and the masks of dropout."""
    dtype = working(x, residual, x1)
    total, mask1 = x.to(dtype), None
    if rowscale is not None:
        total = total * rowscale.reshape(x.shape[:-1])[..., None].to(dtype)
    total, mask = _drop(total, dropout_p)
    if x1 is not None:
        kept, mask1 = _drop(x1.to(dtype), dropout_p)
        total = total + kept
    return (total if residual is None else total + residual.to(dtype)), mask, mask1


def _drop(x: Tensor, dropout_p: float, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """x with dropout, and the mask of what was kept."""
    if dropout_p == 0.0:
        return x, None
    kept = torch.rand(x.shape, device=x.device) >= dropout_p if mask is None else mask
    scale = 1 / (1 - dropout_p) if dropout_p < 1 else 0.0
    return x.masked_fill(~kept, 0.0) * scale, kept


def _norms_ref(
    norm: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    branches: tuple[Any, ...],
    weights: tuple[tuple[Any, Any], ...],
    prenorm: bool,
    upcast: bool,
) -> Any:
    """What both references return for the arguments `branches` of `_sum_ref`."""
    x, residual, x1, *others = branches
    dtype = x.dtype
    if upcast:
        x, residual, x1 = _upcast(x, residual, x1)
        weights = tuple(tuple(_upcast(*pair)) for pair in weights)
    total = _sum_ref(x, residual, x1, *others)
    results = [norm(total, w, b).to(dtype) for w, b in weights if w is not None]
    results += [total] if prenorm else []
    return results[0] if len(results) == 1 else tuple(results)


def _upcast(*tensors: Tensor | None) -> Any:
    return [None if t is None else t.float() for t in tensors]


def _sum_ref(
    x: Tensor,
    residual: Tensor | None,
    x1: Tensor | None,
    dropout_p: float,
    rowscale: Tensor | None,
    dropout_mask: Tensor | None,
    dropout_mask1: Tensor | None,
) -> Tensor:
    if rowscale is not None and x1 is not None:
        raise ValueError("rowscale is given together with x1; expected at most one of them")
    if rowscale is not None:
        x = x * rowscale[..., None]
    x, _ = _drop(x, dropout_p, dropout_mask)
    if x1 is not None:
        x = x + _drop(x1, dropout_p, dropout_mask1)[0]
    return x if residual is None else (x + residual).to(x.dtype)
