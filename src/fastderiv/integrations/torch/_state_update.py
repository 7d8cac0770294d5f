"""`selective_state_update` on tensors."""

from typing import Any

import torch
from torch import Tensor

import fastderiv
from fastderiv._core.arrays import overlaps_itself

from ._selective_scan import selective_scan
from ._tensors import (
    arrays,
    as_flag,
    cast,
    check,
    refuse_tangents,
    transformed,
    without_memory,
    working,
)


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
) -> Tensor:
    """`fastderiv.selective_state_update` for CPU tensors.

    It takes the place of the function of that name in ``mamba_ssm``.

    Parameters
    ----------
    state : Tensor, shape (batch, D, N) or (D, N)
        The new state overwrites it.  The states with heads (batch, heads, P, N) of Mamba-2 are
        not supported.
    x, dt, A, B, C, D, z, dt_bias : Tensor
        The shapes of `fastderiv.selective_state_update`, any strides.
    dt_softplus : bool, optional
        As in `fastderiv.selective_state_update`.

    Returns
    -------
    out : Tensor, shape and dtype of `x`

    Raises
    ------
    ValueError, TypeError
        As `selective_scan`.

    Notes
    -----
    The computation is in the dtype of `state`, or in float32 if that is bfloat16 or float16.  It
    takes O(batch·D·N) time and copies no tensor that has that dtype.  Where a derivative is asked
    for, the step is a `selective_scan`, and differentiable like that.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.torch import selective_state_update
    >>> state = torch.zeros(1, 1)
    >>> one = torch.ones(1)
    >>> selective_state_update(state, one, one, -one[None], one, one)
    tensor([1.])
    >>> state
    tensor([[1.]])
    """
    check(state=state, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias)
    if 0 in state.stride() and any(
        n > 1 and step == 0 for n, step in zip(state.shape, state.stride(), strict=True)
    ):
        raise ValueError(
            f"state is expanded: its {state.numel()} elements share memory, "
            "and cannot all be updated"
        )
    arguments = (state, x, dt, A, B, C, D, z, dt_bias)
    if transformed(*arguments) or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments)
    ):
        return _differentiable_step(*arguments, as_flag("dt_softplus", dt_softplus))
    dtype = working(state)
    h, *others = cast(dtype, *arguments)
    if not torch.compiler.is_compiling() and h.is_neg():
        h = h.resolve_neg()  # PyTorch gives no operator a view to write that it negates lazily
    out = torch.ops.fastderiv.selective_state_update(
        h, *others, as_flag("dt_softplus", dt_softplus)
    )
    if h is not state:
        _write(state, h)
    return cast(x.dtype, out)[0]


def _differentiable_step(
    state: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *options: Any
) -> Tensor:
    """The same as a scan of one step, which has an adjoint; options: D, z, dt_bias, dt_softplus."""
    D, gate, dt_bias, dt_softplus = options
    x, dt = (t[..., None] for t in (u, delta))
    z = None if gate is None else gate[..., None]
    # unbatched (N,) is (G, N) with G = 1
    B, C = ((t if t.ndim > 1 else t[None])[..., None] for t in (B, C))
    before = state.clone()  # the graph keeps it, while state is overwritten
    out, last = selective_scan(
        x, dt, A, B, C, D, z, dt_bias, dt_softplus, True, initial_state=before
    )
    _write(state, last)
    return out[..., 0]


def _write(state: Tensor, new: Tensor) -> None:
    if not torch.compiler.is_compiling() and overlaps_itself(
        without_memory(state.shape, state.stride())
    ):
        raise ValueError("state shares memory with itself: several of its elements are one")
    state.copy_(new)


# A step is so short that what custom_op adds to a call, 35 µs, would double it.
torch.library.define(
    "fastderiv::selective_state_update",
    "(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? dt_bias, bool dt_softplus) -> Tensor",
)


@torch.library.impl("fastderiv::selective_state_update", "cpu")
def _step(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):  # type: ignore[no-untyped-def]
    refuse_tangents(state, x, dt, A, B, C, D, z, dt_bias)
    h = state.detach().numpy()  # not forced as in arrays: it must be the tensor's own memory
    out = fastderiv.selective_state_update(h, *arrays(x, dt, A, B, C, D, z, dt_bias), dt_softplus)
    # a graph that kept the old state will then say so
    torch.autograd.graph.increment_version(state)
    return torch.from_numpy(out)


@torch.library.register_fake("fastderiv::selective_state_update")
def _(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):  # type: ignore[no-untyped-def]
    return state.new_empty(state.shape[:-1])
