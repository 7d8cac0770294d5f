"""`selective_state_update`: one step of a selective scan, for a token decoded from the cache."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from fastderiv.integrations import torch as operators
from fastderiv.integrations.torch._tensors import working

__all__ = ["selective_state_update", "selective_state_update_ref"]


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """One step: the state is updated in place, and the step's result returned.

    Parameters
    ----------
    state : Tensor, shape (batch, D, N) or (batch, heads, P, N)
        The new state overwrites it.
    x, dt : Tensor, shape (batch, D) or (batch, heads, P)
        Input and step size; `dt` is often a view that repeats one number of every head.
    A : Tensor, shape (D, N) or (heads, P, N)
    B, C : Tensor, shape (batch, N) or (batch, groups, N)
    D, dt_bias : Tensor, shape (D,) or (heads, P), optional
    z : Tensor, shape of `x`, optional
        Gate: the result is multiplied by silu(z).
    dt_softplus : bool, optional
        Whether softplus is applied to ``dt + dt_bias``.
    state_batch_indices : Tensor of integers, shape (batch,), optional
        Which state of a larger `state` belongs to a batch item.  Where it is negative the result
        is zero, and no state is updated.

    Returns
    -------
    out : Tensor, shape and dtype of `x`

    Raises
    ------
    ValueError, TypeError
        As `fastderiv.integrations.torch.selective_state_update`.

    Notes
    -----
    O(batch·D·N) time.  Unlike that of mamba_ssm, the function is differentiable.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton import (
    ...     selective_state_update as module,
    ... )
    >>> state, one = torch.zeros(1, 1, 1), torch.ones(1, 1)
    >>> module.selective_state_update(state, one, one, -one, one, one)
    tensor([[1.]])
    >>> state
    tensor([[[1.]]])
    """
    if state.ndim == 3:  # each of the others may have an axis of one head all the same
        x, dt, z, B, C = (_without_head(t, 1, 3) for t in (x, dt, z, B, C))
        A, D, dt_bias = (_without_head(t, 0, n) for t, n in ((A, 3), (D, 2), (dt_bias, 2)))
    else:
        x, dt, z, B, C = (_with_head(t, 1, 3) for t in (x, dt, z, B, C))
        A, D, dt_bias = (_with_head(t, 0, n) for t, n in ((A, 3), (D, 2), (dt_bias, 2)))
    return operators.selective_state_update(
        state,
        x,
        dt,
        A,
        B,
        C,
        D=D,
        z=z,
        dt_bias=dt_bias,
        dt_softplus=dt_softplus,
        state_batch_indices=state_batch_indices,
    )


def selective_state_update_ref(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """`selective_state_update` in PyTorch's operations.

    Parameters
    ----------
    state, x, dt, A, B, C, D, z, dt_bias : Tensor
    dt_softplus : bool, optional
        As in `selective_state_update`.

    Returns
    -------
    out : Tensor, shape and dtype of `x`

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton import (
    ...     selective_state_update as module,
    ... )
    >>> state, one = torch.zeros(1, 1, 1), torch.ones(1, 1)
    >>> module.selective_state_update_ref(state, one, one, -one, one, one)
    tensor([[1.]])
    """
    shape, dtype = x.shape, working(state, x, dt, A, B, C)
    h = _with_head(state, 1, 4)
    x_, dt_, gate, B_, C_ = (_with_head(t, 1, 3, dtype) for t in (x, dt, z, B, C))
    A_, D_, bias = (_with_head(t, 0, n, dtype) for t, n in ((A, 3), (D, 2), (dt_bias, 2)))
    B_, C_ = (t.repeat_interleave(h.shape[1] // t.shape[1], dim=1) for t in (B_, C_))
    step = dt_ if bias is None else dt_ + bias
    step = (softplus(step) if dt_softplus else step)[..., None]
    before = h.to(dtype, copy=True)  # a graph keeps it, while the state is overwritten
    new = torch.exp(step * A_) * before + step * B_[:, :, None] * x_[..., None]
    out = (new * C_[:, :, None]).sum(-1)
    out = out if D_ is None else out + D_ * x_
    out = out if gate is None else out * silu(gate)
    h.copy_(new)
    result: Tensor = out.reshape(shape).to(x.dtype)
    return result


def _without_head(t: Any, axis: int, axes: int) -> Any:
    """The tensor without its axis of one head, if it has as many `axes` as that makes."""
    return t.squeeze(axis) if t is not None and t.ndim == axes else t


def _with_head(t: Any, axis: int, axes: int, dtype: torch.dtype | None = None) -> Any:
    """The tensor with an axis of one head where it has none, in this dtype if one is given."""
    if t is None:
        return None
    t = t if t.ndim == axes else t.unsqueeze(axis)
    return t if dtype is None else t.to(dtype)
