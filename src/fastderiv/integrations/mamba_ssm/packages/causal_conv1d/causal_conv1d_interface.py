"""`causal_conv1d_fn` and `causal_conv1d_update`, and both in PyTorch's operations."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastderiv.integrations import torch as operators

__all__ = [
    "causal_conv1d_fn",
    "causal_conv1d_ref",
    "causal_conv1d_update",
    "causal_conv1d_update_ref",
]


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Any:
    """The causal depthwise convolution, with bias and activation, differentiable.

    Parameters
    ----------
    x : Tensor, shape (batch, D, L)
        In any memory order.
    weight : Tensor, shape (D, width)
    bias : Tensor, shape (D,), optional
    seq_idx : Tensor of integers, shape (batch, L), optional
        Which sequence a step belongs to; no sequence sees another.  Where it is negative, the
        result is zero.
    initial_states : Tensor, shape (batch, D, width - 1), optional
        The inputs before the first step.
    return_final_states : bool, optional
        Whether to return the last width - 1 inputs too.
    final_states_out : Tensor, shape (batch, D, width - 1), optional
        Where to write them.
    activation : None, "silu" or "swish", optional

    Returns
    -------
    out : Tensor, shape and dtype of `x`
    final_states : Tensor, shape (batch, D, width - 1), dtype of `x`
        `final_states_out` if that is given.  Only if `return_final_states`.

    Raises
    ------
    NotImplementedError
        Another activation.
    ValueError, TypeError
        As `fastderiv.integrations.torch.causal_conv1d`.

    Notes
    -----
    O(batch·D·L·width) time.  Unlike the original, the function takes `return_final_states` with any
    memory order, and with `seq_idx`.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.causal_conv1d import causal_conv1d_fn
    >>> causal_conv1d_fn(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.ones(1, 2))
    tensor([[[1., 3., 5.]]])
    """
    _check_activation(activation)
    return operators.causal_conv1d(
        x,
        weight,
        bias,
        seq_idx=seq_idx,
        initial_states=initial_states,
        return_final_states=return_final_states,
        final_states_out=final_states_out,
        activation=activation,
    )


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    seq_idx: Tensor | None = None,
) -> Any:
    """`causal_conv1d_fn` in PyTorch's operations, computed in the dtype of `weight`.

    Parameters
    ----------
    x, weight : Tensor
    bias, initial_states : Tensor, optional
    return_final_states : bool, optional
    final_states_out : Tensor, optional
    activation : None, "silu" or "swish", optional
    seq_idx : Tensor of integers, optional
        As in `causal_conv1d_fn`, in another order.

    Returns
    -------
    Tensor or tuple of Tensor
        As `causal_conv1d_fn`.

    Raises
    ------
    NotImplementedError
        Another activation.
    ValueError
        `return_final_states` together with `seq_idx`.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.causal_conv1d import (
    ...     causal_conv1d_interface as interface,
    ... )
    >>> interface.causal_conv1d_ref(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.ones(1, 2))
    tensor([[[1., 3., 5.]]])
    """
    _check_activation(activation)
    if seq_idx is not None and return_final_states:
        raise ValueError("return_final_states is True with seq_idx; expected only one of them")
    before = weight.shape[1] - 1
    row = x.to(weight.dtype)
    if initial_states is None:
        row = F.pad(row, (before, 0))
    else:
        row = torch.cat([initial_states.to(weight.dtype), row], dim=-1)
    if seq_idx is None:
        out = F.conv1d(row, weight[:, None], bias, groups=len(weight))
    else:
        out = _convolve_packed(row, weight, bias, seq_idx, unstarted=initial_states is None)
    out = (out if activation is None else F.silu(out)).to(x.dtype)
    if not return_final_states:
        return out
    final_states = row[..., row.shape[-1] - before :].to(x.dtype)
    if final_states_out is not None:
        final_states = final_states_out.copy_(final_states)
    return out, final_states


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The convolution of new inputs with those before, which are updated in place.

    Parameters
    ----------
    x : Tensor, shape (batch, D) or (batch, D, S)
        S steps, of which there may be one.
    conv_state : Tensor, shape (batch, D, W), W >= width - 1
        The last W inputs; those after the steps overwrite it.
    weight : Tensor, shape (D, width)
    bias : Tensor, shape (D,), optional
    activation : None, "silu" or "swish", optional
    cache_seqlens : Tensor of integers, shape (batch,), optional
        Makes `conv_state` a circular buffer: how many inputs of each batch item came before.
    conv_state_indices : Tensor of integers, shape (batch,), optional
        Which state of a larger `conv_state` belongs to a batch item.  Where it is negative the
        result is zero, and no state is updated.

    Returns
    -------
    out : Tensor, shape and dtype of `x`

    Raises
    ------
    NotImplementedError
        Another activation.
    ValueError, TypeError
        As `fastderiv.integrations.torch.causal_conv1d_update`.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.causal_conv1d import causal_conv1d_update
    >>> state = torch.ones(1, 1, 1)
    >>> causal_conv1d_update(torch.tensor([[2.0]]), state, torch.ones(1, 2))
    tensor([[3.]])
    >>> state
    tensor([[[2.]]])
    """
    _check_activation(activation)
    return operators.causal_conv1d_update(
        x,
        conv_state,
        weight,
        bias=bias,
        activation=activation,
        cache_seqlens=cache_seqlens,
        conv_state_indices=conv_state_indices,
    )


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """`causal_conv1d_update` in PyTorch's operations, computed in the dtype of `weight`.

    Parameters
    ----------
    x, conv_state, weight : Tensor
    bias : Tensor, optional
    activation : None, "silu" or "swish", optional
    cache_seqlens : Tensor of integers, optional
        As in `causal_conv1d_update`.

    Returns
    -------
    out : Tensor, shape and dtype of `x`

    Raises
    ------
    NotImplementedError
        Another activation.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.causal_conv1d import (
    ...     causal_conv1d_interface as interface,
    ... )
    >>> state = torch.ones(1, 1, 1)
    >>> interface.causal_conv1d_update_ref(torch.tensor([[2.0]]), state, torch.ones(1, 2))
    tensor([[3.]])
    """
    _check_activation(activation)
    steps = x[..., None] if x.ndim == 2 else x
    width, size, length = weight.shape[1], conv_state.shape[-1], steps.shape[-1]
    if cache_seqlens is None:
        row = torch.cat([conv_state, steps], dim=-1)
        new = row[..., row.shape[-1] - size :]
        row = row[..., row.shape[-1] - length - width + 1 :]
    else:
        first, channels = cache_seqlens.long()[:, None, None], steps.shape[1]
        behind = (first + torch.arange(1 - width, 0)).remainder(size).expand(-1, channels, -1)
        row = torch.cat([conv_state.gather(2, behind), steps], dim=-1)
        ahead = (first + torch.arange(length)).remainder(size).expand(-1, channels, -1)
        new = conv_state.scatter(2, ahead, steps.to(conv_state.dtype))
    out = F.conv1d(row.to(weight.dtype), weight[:, None], bias, groups=len(weight))
    conv_state.copy_(new)
    return (out if activation is None else F.silu(out)).to(x.dtype).reshape(x.shape)


def _check_activation(activation: str | None) -> None:
    if activation not in (None, "silu", "swish"):  # the original's error
        raise NotImplementedError(f"activation is {activation!r}; expected None, 'silu' or 'swish'")


def _convolve_packed(
    row: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor, *, unstarted: bool
) -> Tensor:
    """The convolution in which no sequence sees another; `row` has the inputs before, too."""
    width = weight.shape[1]
    # inputs before the first step are of the first sequence, or of none
    before = seq_idx[:, :1].expand(-1, width - 1)
    numbers = torch.cat([torch.full_like(before, -1) if unstarted else before, seq_idx], dim=-1)
    seen = numbers.unfold(-1, width, 1) == seq_idx[..., None]
    out = (row.unfold(-1, width, 1) * seen[:, None] * weight[:, None]).sum(-1)
    out = out if bias is None else out + bias[:, None]
    return out.masked_fill((seq_idx < 0)[:, None], 0.0)
