"""Forward and backward pass of the convolution, which code with its own autograd calls."""

import torch
from torch import Tensor

from .causal_conv1d_interface import causal_conv1d_fn, causal_conv1d_update

__all__ = [
    "causal_conv1d_bwd_function",
    "causal_conv1d_fwd_function",
    "causal_conv1d_update_function",
]


def causal_conv1d_fwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    """`causal_conv1d_fn`, whose final states are written where a tensor for them is given.

    Parameters
    ----------
    x, weight : Tensor
    bias, seq_idx, initial_states, final_states_out : Tensor or None
        As in `causal_conv1d_fn`.
    silu_activation : bool
        Whether the activation is silu, or none.

    Returns
    -------
    out : Tensor, shape and dtype of `x`

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.causal_conv1d import cpp_functions
    >>> x, weight = torch.tensor([[[1.0, 2.0]]]), torch.ones(1, 2)
    >>> cpp_functions.causal_conv1d_fwd_function(x, weight, None, None, None, None, False)
    tensor([[[1., 3.]]])
    """
    found = causal_conv1d_fn(
        x,
        weight,
        bias,
        seq_idx=seq_idx,
        initial_states=initial_states,
        return_final_states=final_states_out is not None,
        final_states_out=final_states_out,
        activation="silu" if silu_activation else None,
    )
    out: Tensor = found if final_states_out is None else found[0]
    return out


def causal_conv1d_bwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu_activation: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The gradients of `causal_conv1d_fwd_function`.

    Parameters
    ----------
    x, weight : Tensor
    bias, seq_idx, initial_states : Tensor or None
        As in `causal_conv1d_fn`.
    dout : Tensor, shape of `x`
    dfinal_states : Tensor, shape (batch, D, width - 1), or None
        The gradients with respect to the results.
    dx : Tensor, shape of `x`, or None
        Where to write the gradient with respect to `x`.
    return_dinitial_states : bool
        Whether that of `initial_states` is wanted.
    silu_activation : bool

    Returns
    -------
    dx, dweight, dbias, dinitial_states : Tensor
        The last two are None without a bias, or if not wanted.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.causal_conv1d import cpp_functions
    >>> x, weight = torch.tensor([[[1.0, 2.0]]]), torch.ones(1, 2)
    >>> dx, *_ = cpp_functions.causal_conv1d_bwd_function(
    ...     x, weight, None, torch.ones(1, 1, 2), None, None, None, None, False, False
    ... )
    >>> dx
    tensor([[[2., 1.]]])
    """
    with torch.enable_grad():
        variables = [
            None if t is None else t.detach().requires_grad_()
            for t in (x, weight, bias, initial_states)
        ]
        u, w, b, first = variables
        results = causal_conv1d_fn(
            u,
            w,
            b,
            seq_idx=seq_idx,
            initial_states=first,
            return_final_states=dfinal_states is not None,
            activation="silu" if silu_activation else None,
        )
    cotangents = (dout,) if dfinal_states is None else (dout, dfinal_states)
    given = [t for t in variables if t is not None]
    found = iter(torch.autograd.grad(results, given, cotangents))
    du, dweight, dbias, dfirst = (None if t is None else next(found) for t in variables)
    assert du is not None and dweight is not None
    du = du if dx is None else dx.copy_(du)
    return du, dweight, dbias, dfirst if return_dinitial_states else None


def causal_conv1d_update_function(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    """`causal_conv1d_update` with the activation as a flag.

    Parameters
    ----------
    x, conv_state, weight : Tensor
    bias : Tensor or None
    silu_activation : bool
        Whether the activation is silu, or none.
    cache_seqlens, conv_state_indices : Tensor or None
        As in `causal_conv1d_update`.

    Returns
    -------
    out : Tensor, shape and dtype of `x`

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.causal_conv1d import cpp_functions
    >>> x, weight = torch.tensor([[2.0]]), torch.ones(1, 2)
    >>> cpp_functions.causal_conv1d_update_function(
    ...     x, torch.ones(1, 1, 1), weight, None, False, None, None
    ... )
    tensor([[3.]])
    """
    return causal_conv1d_update(
        x,
        conv_state,
        weight,
        bias,
        activation="silu" if silu_activation else None,
        cache_seqlens=cache_seqlens,
        conv_state_indices=conv_state_indices,
    )
