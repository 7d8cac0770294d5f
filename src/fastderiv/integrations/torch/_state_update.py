"""`selective_state_update`: a step of Mamba's or Mamba-2's scan on tensors, in place."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastderiv

from ._in_place import refuse_expanded, refuse_overlap, write
from ._pool import check_indices, chosen, refuse_shared, replaced, runs, without_padding
from ._selective_scan import selective_scan
from ._ssd_scan import ssd_scan
from ._tensors import (
    arrays,
    as_flag,
    cast,
    check,
    check_integers,
    refuse_tangents,
    transformed,
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
        itself or another argument, an index that occurs twice or for which there is no state.
    TypeError
        Not a tensor, or another dtype.

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
    refuse_expanded("state", state)
    if state_batch_indices is not None:
        _check_indices(state, x, state_batch_indices)
    softplus = as_flag("dt_softplus", dt_softplus)
    if state.ndim != 4:
        return _step((state, x, dt, A, B, C, D, z, dt_bias), softplus, state_batch_indices)
    of_head = state.shape[1:]
    if x.ndim != 3 or x.shape[1:] != of_head[:2]:
        _expect("x", x, (len(state), *of_head[:2]))
    dt = _one_a_head("dt", dt, x.shape, 2)
    A = _one_a_head("A", A, of_head, 1)
    dt_bias = None if dt_bias is None else _one_a_head("dt_bias", dt_bias, of_head[:2], 1)
    arguments = (state, x, dt, A, B, C, D, z, dt_bias)
    if dt.ndim == 2 and A.ndim == 1 and (dt_bias is None or dt_bias.ndim == 1):
        return _step(arguments, softplus, state_batch_indices)
    return _step_of_channels(arguments, softplus, state_batch_indices)


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


def _one_a_head(name: str, t: Tensor, shape: Sequence[int], axes: int) -> Tensor:
    """`t` (*shape[:axes]), one number a head, if it is that or expanded from that."""
    if t.ndim == axes:
        return t
    if t.shape != shape:
        _expect(name, t, tuple(shape), tuple(shape[:axes]))
    steps = t.stride()
    for axis in range(axes, len(shape)):
        if steps[axis] and shape[axis] != 1:
            return t
    one: Tensor = t.select(-1, 0)
    return one if one.ndim == axes else one.select(-1, 0)


def _step_of_channels(
    arguments: tuple[Any, ...], dt_softplus: bool, indices: Tensor | None
) -> Tensor:
    """A step with heads inside which dt, A or dt_bias differ: that of Mamba-1 with D = H·P."""
    state, x, dt, A, B, C, D, z, dt_bias = arguments
    heads, width, states = state.shape[1:]
    signal = (len(state) if indices is None else len(indices), heads, width)
    if B.ndim == 3 and (B.shape[1] == 0 or heads % B.shape[1]):
        wanted = f"(batch, G, N) with G dividing H = {heads}"
        raise ValueError(f"B has shape {tuple(B.shape)}; expected {wanted}")
    flat = state.flatten(1, 2)  # a view if that is possible
    channels = (
        flat,
        _whole("x", x, signal, 3).flatten(1),
        _whole("dt", dt, signal, 2).flatten(1),
        _whole("A", A, (heads, width, states), 1).flatten(0, 1),
        B,
        C,
        None if D is None else _whole("D", D, signal[1:], 1).flatten(),
        None if z is None else _whole("z", z, signal, 3).flatten(1),
        None if dt_bias is None else _whole("dt_bias", dt_bias, signal[1:], 1).flatten(),
    )
    out = _step(channels, dt_softplus, indices)
    if heads > 1 and width > 1 and state.stride(1) != width * state.stride(2):
        write("state", state, flat.view(state.shape))
    return out.view(signal)


def _whole(name: str, t: Tensor, shape: tuple[int, ...], axes: int) -> Tensor:
    """`t` of this shape, expanded from its first `axes` axes if it has no others."""
    if t.shape == shape:
        return t
    _expect(name, t, *dict.fromkeys((shape, shape[:axes])))
    return t[(..., *(None for _ in shape[axes:]))].expand(shape)


def _expect(name: str, t: Tensor, *shapes: tuple[int, ...]) -> None:
    if t.shape not in shapes:
        wanted = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"{name} has shape {tuple(t.shape)}; expected {wanted}")


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
        write("state", state, h)
    return out


def _differentiable_step(
    arguments: tuple[Any, ...], dt_softplus: bool, indices: Tensor | None
) -> Tensor:
    """The same as a scan of one step, which has an adjoint."""
    state, x, dt, A, B, C, D, z, dt_bias = arguments
    # the graph keeps it, while state is overwritten
    before = state.clone() if indices is None else chosen("state_batch_indices", state, indices)
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
        write("state", state, last)
        return out
    write("state", state, replaced(state, last, indices))
    return without_padding(out, indices)


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
    result = torch.from_numpy(out)
    return result if result.dtype == x.dtype else result.to(x.dtype)


@torch.library.register_fake("fastderiv::selective_state_update")
def _(state: Tensor, x: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.shape)


def _update(state: Tensor, others: list[Any], dt_softplus: bool) -> NDArray:
    step: Any = fastderiv.ssd_state_update if state.ndim == 4 else fastderiv.selective_state_update
    if state.dtype in (torch.float32, torch.float64):
        # not forced as in arrays: it must be the tensor's own memory
        out: NDArray = step(state.numpy(), *others, dt_softplus)
        return out
    refuse_overlap("state", state)
    wide = state.float()
    out = step(wide.numpy(), *others, dt_softplus)
    state.copy_(wide)
    return out


def _update_some(
    state: Tensor, others: list[Any], dt_softplus: bool, indices: list[int]
) -> NDArray:
    """A step of some of the states, in place: runs of neighbours are updated at once."""
    check_indices("state_batch_indices", indices, len(state))
    x, dt, A, B, C, D, z, dt_bias = others
    for name, rows in ("x", x), ("dt", dt), ("B", B), ("C", C), ("z", z):
        if rows is not None and rows.shape[:1] != (len(indices),):
            raise ValueError(f"{name} has shape {rows.shape}; expected batch = {len(indices)} rows")
    refuse_overlap("state", state)
    # if there is none, a step of no rows checks the shapes
    pieces = list(runs(indices)) or [(0, 0, 0)]
    # of one run, the step itself tells; arguments of a 16-bit state are copies
    if len(pieces) > 1 and state.dtype in (torch.float32, torch.float64):
        names = "x", "dt", "A", "B", "C", "D", "z", "dt_bias"
        refuse_shared("state", state, **dict(zip(names, others, strict=True)))
    out = np.zeros(x.shape, x.dtype)
    for start, stop, first in pieces:
        s = slice(start, stop)
        gate = None if z is None else z[s]
        some = [x[s], dt[s], A, B[s], C[s], D, gate, dt_bias]
        out[s] = _update(state[first : first + stop - start], some, dt_softplus)
    return out
