"""`selective_state_update`: a step of Mamba's or Mamba-2's scan on tensors, in place."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastderiv
from fastderiv._core.arrays import overlaps_itself

from ._selective_scan import selective_scan
from ._ssd_scan import ssd_scan
from ._tensors import (
    arrays,
    as_flag,
    cast,
    check,
    check_integers,
    in_functorch,
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
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """One step of Mamba's or Mamba-2's scan for CPU tensors; it updates the state in place.

    It takes the place of the function of that name in ``mamba_ssm``, and computes what
    `fastderiv.selective_state_update` and `fastderiv.ssd_state_update` do.

    Parameters
    ----------
    state : Tensor, shape (batch, D, N), (D, N) or (batch, H, P, N)
        The new state overwrites it.
    x, z : Tensor, shape (batch, D), (D,) or (batch, H, P)
    dt : Tensor, shape of `x`
    A : Tensor, shape (D, N) or (H, P, N)
    B, C : Tensor, shape (batch, N) or (batch, G, N)
    D, dt_bias : Tensor, shape (D,) or (H, P)
        `D`, `z` and `dt_bias` are optional.  float32, float64, bfloat16 or float16 in any mixture,
        any strides.  With heads, `dt`, `A` and `dt_bias` are mostly expanded from one number for a
        head; they may have the shapes (batch, H), (H,) and (H,) as well, and `D` (H,).
    dt_softplus : bool, optional
        Whether softplus is applied to ``dt + dt_bias``.
    state_batch_indices : Tensor of integers, shape (batch,), optional
        Which states of `state`, (states, D, N) or (states, H, P, N), are taken, and updated; no two
        are the same.  Where the index is negative, the result is 0 and no state is touched.

    Returns
    -------
    out : Tensor, shape and dtype of `x`

    Raises
    ------
    ValueError
        A shape that does not fit, a tensor that is not on the CPU, a state that shares memory with
        itself or another argument, or an index that occurs twice.
    TypeError
        Not a tensor, or another dtype.
    IndexError
        An index for which there is no state.

    Notes
    -----
    The computation is in the dtype of `state`, or in float32 if that is bfloat16 or float16.  It
    takes O(batch·D·N) time (D = H·P with heads) and copies no tensor that has that dtype.  Where
    `dt`, `A` and `dt_bias` are expanded from one number for a head, the step is that of Mamba-2,
    otherwise a step of Mamba-1 with H·P channels: as right, but slower.  Where a derivative is
    asked for, the step is a `selective_scan` or an `ssd_scan`, and differentiable like that.

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

    Two of four states of one head, 2 by 3:

    >>> states, x, B = torch.zeros(4, 1, 2, 3), torch.ones(2, 1, 2), torch.ones(2, 3)
    >>> selective_state_update(
    ...     states, x, x, -torch.ones(1, 2, 3), B, B, state_batch_indices=torch.tensor([3, 1])
    ... )[:, 0]
    tensor([[3., 3.],
            [3., 3.]])
    >>> states.sum((1, 2, 3))
    tensor([0., 6., 0., 6.])
    """
    check(state=state, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias)
    if 0 in state.stride() and any(
        n > 1 and step == 0 for n, step in zip(state.shape, state.stride(), strict=True)
    ):
        raise ValueError(
            f"state is expanded: its {state.numel()} elements share memory, "
            "and cannot all be updated"
        )
    if state_batch_indices is not None:
        _check_indices(state, x, state_batch_indices)
    softplus = as_flag("dt_softplus", dt_softplus)
    if state.ndim != 4:
        return _step((state, x, dt, A, B, C, D, z, dt_bias), softplus, state_batch_indices)
    _check_heads(state, x, B, dt=dt, A=A, D=D, dt_bias=dt_bias)
    of_heads = _first(dt, 2), _first(A, 1), _first(dt_bias, 1)
    if of_heads[0] is None or of_heads[1] is None or (of_heads[2] is None) != (dt_bias is None):
        return _step_of_channels(
            (state, x, dt, A, B, C, D, z, dt_bias), softplus, state_batch_indices
        )
    dt, A, dt_bias = of_heads
    return _step((state, x, dt, A, B, C, D, z, dt_bias), softplus, state_batch_indices)


def _check_indices(state: Tensor, x: Tensor, state_batch_indices: Tensor) -> None:
    check_integers(state_batch_indices=state_batch_indices)
    if state.ndim < 3:
        raise ValueError(
            f"state has shape {tuple(state.shape)}; with state_batch_indices, "
            "(states, D, N) or (states, H, P, N) is expected"
        )
    if state_batch_indices.shape != x.shape[:1]:
        came, wanted = tuple(state_batch_indices.shape), tuple(x.shape[:1])
        raise ValueError(f"state_batch_indices has shape {came}; expected (batch,) = {wanted}")


def _check_heads(state: Tensor, x: Tensor, B: Tensor, **per_head: Tensor | None) -> None:
    """Check what the later checks do not see, as one number of a head is taken for all."""
    heads, width, states = state.shape[1:]
    batch = x.shape[:1]
    expected = {
        "dt": ((*batch, heads, width), (*batch, heads)),
        "A": ((heads, width, states), (heads,)),
        "D": ((heads, width), (heads,)),
        "dt_bias": ((heads, width), (heads,)),
    }
    for name, tensor in per_head.items():
        if tensor is not None and tensor.shape not in expected[name]:
            shapes = " or ".join(map(str, expected[name]))
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shapes}")
    if B.ndim == 3 and (B.shape[1] == 0 or heads % B.shape[1]):
        raise ValueError(
            f"B has shape {tuple(B.shape)}; expected (batch, G, N) with G dividing H = {heads}"
        )


def _first(t: Tensor | None, axes: int) -> Tensor | None:
    """The one number of a head, of a tensor that is expanded from that; None if it is not."""
    while t is not None and t.ndim > axes:
        if t.stride(-1) and t.shape[-1] != 1:
            return None
        t = t.select(-1, 0)
    return t


def _step_of_channels(
    arguments: tuple[Any, ...], dt_softplus: bool, indices: Tensor | None
) -> Tensor:
    """A step with heads inside which dt, A or dt_bias differ: that of Mamba-1 with D = H·P."""
    state, x, dt, A, B, C, D, z, dt_bias = arguments
    heads, width, states = state.shape[1:]
    batch = state.shape[:1] if indices is None else indices.shape
    for name, t in ("x", x), ("z", z):
        if t is not None and t.shape != (*batch, heads, width):
            wanted = f"(batch, H, P) = {(*batch, heads, width)}"
            raise ValueError(f"{name} has shape {tuple(t.shape)}; expected {wanted}")
    A = A if A.ndim == 3 else A[:, None, None].expand(heads, width, states)
    dt, D, dt_bias = (
        t if t is None or t.shape[-2:] == (heads, width) else t[..., None].expand(*t.shape, width)
        for t in (dt, D, dt_bias)
    )
    flat = state.flatten(1, 2)  # a view if that is possible
    x_, dt, z, D, dt_bias = (t if t is None else t.flatten(-2) for t in (x, dt, z, D, dt_bias))
    channels = (flat, x_, dt, A.flatten(0, 1), B, C, D, z, dt_bias)
    out = _step(channels, dt_softplus, indices)
    if heads > 1 and width > 1 and state.stride(1) != width * state.stride(2):
        _write(state, flat.view(state.shape))
    return out.view(x.shape)


def _step(arguments: tuple[Any, ...], dt_softplus: bool, indices: Tensor | None) -> Tensor:
    """A step of Mamba-2 if the state has heads, of Mamba-1 otherwise."""
    if transformed(*arguments) or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments)
    ):
        return _differentiable_step(arguments, dt_softplus, indices)
    state, *others = arguments
    # PyTorch gives no operator a view to write that it negates lazily
    negated = not torch.compiler.is_compiling() and state.is_neg()
    h = state.resolve_neg() if negated else state
    out: Tensor = torch.ops.fastderiv.selective_state_update(h, *others, dt_softplus, indices)
    if negated:
        _write(state, h)
    return out


def _differentiable_step(
    arguments: tuple[Any, ...], dt_softplus: bool, indices: Tensor | None
) -> Tensor:
    """The same as a scan of one step, which has an adjoint."""
    state, x, dt, A, B, C, D, z, dt_bias = arguments
    # the graph keeps it, while state is overwritten
    before = state.clone() if indices is None else _chosen(state, indices)
    of_heads = state.ndim == 4
    axis = 1 if of_heads else -1
    x_, dt, z = (t if t is None else t.unsqueeze(axis) for t in (x, dt, z))
    if of_heads:
        B, C = ((t if t.ndim > 2 else t[:, None])[:, None] for t in (B, C))
        out, last = ssd_scan(
            x_, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, initial_states=before,
            dt_softplus=dt_softplus, dt_limit=(-math.inf, math.inf), return_final_states=True,
        )  # fmt: skip
    else:
        # unbatched (N,) is (G, N) with G = 1
        B, C = ((t if t.ndim > 1 else t[None])[..., None] for t in (B, C))
        out, last = selective_scan(
            x_, dt, A, B, C, D, z, dt_bias, dt_softplus, True, initial_state=before
        )
    out = out.squeeze(axis)
    if indices is None:
        _write(state, last)
        return out
    _write(state, _replaced(state, last, indices))
    present = (indices >= 0).view(-1, *(1 for _ in x.shape[1:]))
    return torch.where(present, out, 0.0)


def _chosen(state: Tensor, indices: Tensor) -> Tensor:
    """The states of `indices`, any states where these are negative."""
    if not torch.compiler.is_compiling() and not in_functorch():
        _check_values(indices.tolist(), len(state))
    return state[indices.clamp(min=0)]


def _replaced(state: Tensor, new: Tensor, indices: Tensor) -> Tensor:
    """All states, those of `indices` new; by operations whose shapes do not depend on data."""
    owners = indices == torch.arange(len(state), device=state.device)[:, None]
    replaced = owners.any(1).view(-1, *(1 for _ in state.shape[1:]))
    return torch.where(replaced, new[owners.int().argmax(1)].to(state.dtype), state)


def _write(state: Tensor, new: Tensor) -> None:
    if not torch.compiler.is_compiling():
        _refuse_overlap(state)
    state.copy_(new)


def _refuse_overlap(state: Tensor) -> None:
    if overlaps_itself(without_memory(state.shape, state.stride())):
        raise ValueError("state shares memory with itself: several of its elements are one")


# A step is so short that what custom_op adds to a call, 35 µs, would double it.
torch.library.define(
    "fastderiv::selective_state_update",
    "(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? dt_bias, bool dt_softplus, Tensor? state_batch_indices=None) -> Tensor",
)


@torch.library.impl("fastderiv::selective_state_update", "cpu")
def _run(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    refuse_tangents(state, x, dt, A, B, C, D, z, dt_bias)
    own = state.detach()
    others = arrays(*cast(working(state), x, dt, A, B, C, D, z, dt_bias))
    if state_batch_indices is None:
        out = _update(own, others, dt_softplus)
    else:
        out = _update_some(own, others, dt_softplus, state_batch_indices.tolist())
    # a graph that kept the old state will then say so
    torch.autograd.graph.increment_version(state)
    return torch.from_numpy(out).to(x.dtype)


@torch.library.register_fake("fastderiv::selective_state_update")
def _(state: Tensor, x: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.shape)


def _update(state: Tensor, others: list[Any], dt_softplus: bool) -> NDArray:
    step: Any = fastderiv.ssd_state_update if state.ndim == 4 else fastderiv.selective_state_update
    if state.dtype in (torch.float32, torch.float64):
        # not forced as in arrays: it must be the tensor's own memory
        out: NDArray = step(state.numpy(), *others, dt_softplus)
        return out
    _refuse_overlap(state)
    wide = state.float()
    out = step(wide.numpy(), *others, dt_softplus)
    state.copy_(wide)
    return out


def _update_some(
    state: Tensor, others: list[Any], dt_softplus: bool, indices: list[int]
) -> NDArray:
    """A step of some of the states, in place: runs of neighbours are updated at once."""
    _check_values(indices, len(state))
    x, dt, A, B, C, D, z, dt_bias = others
    out = np.zeros(x.shape, x.dtype)
    for start, stop, first in _runs(indices):
        s = slice(start, stop)
        gate = None if z is None else z[s]
        some = [x[s], dt[s], A, B[s], C[s], D, gate, dt_bias]
        out[s] = _update(state[first : first + stop - start], some, dt_softplus)
    return out


def _runs(indices: list[int]) -> Iterator[tuple[int, int, int]]:
    """Of each run of indices i, i + 1, …, none negative: where it begins and ends, and i."""
    start = 0
    for k in range(1, len(indices) + 1):
        if k == len(indices) or indices[k] != indices[k - 1] + 1 or indices[start] < 0:
            if indices[start] >= 0:
                yield start, k, indices[start]
            start = k


def _check_values(indices: list[int], states: int) -> None:
    present = [i for i in indices if i >= 0]
    if len(set(present)) < len(present):
        raise ValueError(f"state_batch_indices is {indices}; expected no index twice")
    if present and max(present) >= states:
        raise IndexError(f"state_batch_indices is {indices}; expected indices of {states} states")
