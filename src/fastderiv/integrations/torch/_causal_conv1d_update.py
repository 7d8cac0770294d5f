"""`causal_conv1d_update` on tensors."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastderiv

from ._causal_conv1d import causal_conv1d
from ._in_place import refuse_expanded, refuse_overlap, write
from ._pool import check_indices, chosen, refuse_shared, replaced, runs, without_padding
from ._tensors import arrays, cast, check, check_integers, refuse_tangents, transformed, working

_INDICES = "conv_state_indices"


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """`fastderiv.causal_conv1d_update` for CPU tensors.

    It takes the place of the function of that name in the package ``causal_conv1d``.

    Parameters
    ----------
    x : Tensor, shape (batch, D) or (batch, D, S)
        Input of one step, or of S steps, in any strides.  Without its batch axis if that of
        `conv_state` is missing.
    conv_state : Tensor, shape (batch, D, W) or (D, W)
        The last W >= K - 1 inputs, the newest last; in any strides.  The inputs after the steps
        overwrite it.
    weight : Tensor, shape (D, K)
    bias : Tensor, shape (D,), optional
    activation : None, "silu" or "swish", optional
        The parameters of `causal_conv1d`.
    cache_seqlens : Tensor of integers, shape (batch,), optional
        Makes `conv_state` a circular buffer: of each row, how many inputs came before.  Inputs are
        written to the places ``cache_seqlens % W`` and following, and to no others.
    conv_state_indices : Tensor of integers, shape (batch,), optional
        Makes `conv_state` a pool (P, D, W), of which each row of `x` has the row with this number.
        No row is taken twice.  A negative number is padding: its result is zero, and no state
        changes.

    Returns
    -------
    out : Tensor, shape and dtype of `x`

    Raises
    ------
    ValueError
        A shape that does not fit, a tensor that is not on the CPU, a row of the pool that does not
        exist or is named twice, or a state whose elements share memory.
    TypeError
        Not a tensor, or another dtype.

    Notes
    -----
    The computation is in the dtype of `conv_state`, or in float32 if that is bfloat16 or float16.
    O(batch·D·S·(K + W)) time.  A state in the dtype of the computation is updated in place, in a
    pool neighbours together; other dtypes and circular buffers go through copies of batch·D·W
    numbers at most.  Where a derivative is asked for, the steps are a `causal_conv1d`, and
    differentiable like that.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.torch import causal_conv1d_update
    >>> state = torch.zeros(1, 1, 1)
    >>> for x in 1.0, 2.0, 3.0:
    ...     print(causal_conv1d_update(torch.tensor([[x]]), state, torch.ones(1, 2)))
    tensor([[1.]])
    tensor([[3.]])
    tensor([[5.]])
    >>> state
    tensor([[[3.]]])
    """
    check(x=x, conv_state=conv_state, weight=weight, bias=bias)
    pooled = cache_seqlens is not None or conv_state_indices is not None
    if pooled:
        check_integers(cache_seqlens=cache_seqlens, conv_state_indices=conv_state_indices)
    _check_shapes(x, conv_state, weight, cache_seqlens, conv_state_indices)
    refuse_expanded("conv_state", conv_state)
    arguments = x, conv_state, weight, bias, activation, cache_seqlens, conv_state_indices
    tensors = arguments[:4]
    if transformed(*tensors) or (
        torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    ):
        return _differentiable_step(*arguments)
    if torch.compiler.is_compiling() or not conv_state.is_neg():
        out: Tensor = _step(*arguments)
        return out
    # PyTorch gives no operator a view to write that it negates lazily
    state = conv_state.resolve_neg()
    out = _step(x, state, *arguments[2:])
    write("conv_state", conv_state, state)
    return out


def _check_shapes(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    cache_seqlens: Tensor | None,
    indices: Tensor | None,
) -> None:
    shape, axes = x.shape, state.ndim - 1
    if axes not in (1, 2) or (axes == 1 and not (cache_seqlens is None and indices is None)):
        raise ValueError(
            f"conv_state has shape {tuple(state.shape)}; expected (batch, D, W), or (D, W) without "
            "cache_seqlens and conv_state_indices"
        )
    rows = state.shape[:axes] if indices is None else (shape[0], state.shape[1])
    if shape[:axes] != rows or x.ndim not in (axes, axes + 1):
        raise ValueError(
            f"x has shape {tuple(shape)}; expected {tuple(rows)} or {(*rows, 'S')}, as conv_state "
            f"has shape {tuple(state.shape)}"
        )
    if weight.ndim != 2 or weight.shape[0] != state.shape[-2]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; expected (D, K) = ({state.shape[-2]}, K)"
        )
    if state.shape[-1] < weight.shape[1] - 1:
        raise ValueError(
            f"conv_state has shape {tuple(state.shape)}; expected its last axis W to be at least "
            f"K - 1 = {weight.shape[1] - 1}"
        )
    for name, numbers in ("cache_seqlens", cache_seqlens), (_INDICES, indices):
        if numbers is not None and numbers.shape != shape[:1]:
            raise ValueError(
                f"{name} has shape {tuple(numbers.shape)}; expected (batch,) = ({shape[0]},)"
            )


# What custom_op adds to a call, 35 µs, would be several times the step itself.
torch.library.define(
    "fastderiv::causal_conv1d_update",
    "(Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias, str? activation, "
    "Tensor? cache_seqlens, Tensor? conv_state_indices) -> Tensor",
)


@torch.library.impl("fastderiv::causal_conv1d_update", "cpu")
def _(  # type: ignore[no-untyped-def]
    x, conv_state, weight, bias, activation, cache_seqlens, indices
):
    refuse_tangents(x, conv_state, weight, bias)
    if indices is None:
        return _advance(x, conv_state, (weight, bias, activation), cache_seqlens)
    rows = indices.tolist()
    check_indices(_INDICES, rows, len(conv_state))
    if len(rows) != len(x):
        raise ValueError(f"{_INDICES} has {len(rows)} numbers; expected batch = {len(x)}")
    dtype = working(conv_state)
    inputs, *of_all = cast(dtype, x, weight, bias)
    refuse_overlap("conv_state", conv_state)
    pieces = list(runs(rows))
    # of one run, the step itself tells; arguments of a 16-bit state are copies
    if len(pieces) > 1 and conv_state.dtype == dtype:
        x_, weight_, bias_ = arrays(inputs, *of_all)
        refuse_shared("conv_state", conv_state, x=x_, weight=weight_, bias=bias_)
    out = x.new_zeros(x.shape)
    for start, stop, first in pieces:
        some = slice(start, stop)
        counts = None if cache_seqlens is None else cache_seqlens[some]
        states = conv_state[first : first + stop - start]
        out[some] = _advance(inputs[some], states, (*of_all, activation), counts)
    return out


def _advance(
    x: Tensor, conv_state: Tensor, parameters: tuple[Any, ...], counts: Tensor | None
) -> Tensor:
    """Steps of states without a pool, updated in place."""
    refuse_overlap("conv_state", conv_state)
    dtype = working(conv_state)
    weight, bias, activation = parameters
    state, inputs, taps, offset = cast(dtype, conv_state, x, weight, bias)
    h = state.detach().numpy()  # not forced as in arrays: it must be the tensor's own memory
    step = *arrays(inputs, taps, offset), activation
    out = torch.from_numpy(
        fastderiv.causal_conv1d_update(step[0], h, *step[1:])
        if counts is None
        else _through_buffer(h, step, *arrays(counts))
    )
    if state is conv_state:
        # a graph that kept the old state will then say so
        torch.autograd.graph.increment_version(conv_state)
    else:
        write("conv_state", conv_state, state)
    return out if x.dtype == dtype else out.to(x.dtype)


def _through_buffer(buffer: NDArray, step: tuple[Any, ...], counts: NDArray) -> NDArray:
    """Steps of states that are circular buffers (batch, D, W)."""
    x, weight, bias, activation = step
    width, taps = buffer.shape[-1], weight.shape[1]
    inputs = x if x.ndim == 3 else x[..., None]
    number = inputs.shape[-1]
    in_time = buffer.swapaxes(1, 2)
    rows = np.arange(len(buffer))[:, None]
    begin = counts.astype(np.int64)[:, None]
    recent = in_time[rows, (begin + np.arange(1 - taps, 0)) % max(width, 1)].swapaxes(1, 2)
    out = fastderiv.causal_conv1d_update(x, recent, weight, bias, activation)
    kept = np.arange(max(number - width, 0), number)  # the others would be overwritten
    in_time[rows, (begin + kept) % max(width, 1)] = inputs[..., kept].swapaxes(1, 2)
    return out


@torch.library.register_fake("fastderiv::causal_conv1d_update")
def _(x, conv_state, *others):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


_step = torch.ops.fastderiv.causal_conv1d_update.default


def _differentiable_step(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    cache_seqlens: Tensor | None,
    indices: Tensor | None,
) -> Tensor:
    """The same as a convolution, which has an adjoint."""
    axes, width, recent = conv_state.ndim, conv_state.shape[-1], weight.shape[1] - 1
    steps = x if x.ndim == axes else x[..., None]
    # the graph keeps it, while conv_state is overwritten
    state = conv_state.clone() if indices is None else chosen(_INDICES, conv_state, indices)
    if cache_seqlens is None:
        before = state[..., width - recent :]
        after = torch.cat([state, steps.to(state.dtype)], -1)[..., steps.shape[-1] :]
    else:
        before, after = _buffered(state, steps.to(state.dtype), recent, cache_seqlens)
    out = causal_conv1d(steps, weight, bias, initial_states=before, activation=activation)
    if indices is not None:
        out, after = without_padding(out, indices), replaced(conv_state, after, indices)
    write("conv_state", conv_state, after)
    return out if x.ndim == axes else out[..., 0]


def _buffered(buffer: Tensor, steps: Tensor, recent: int, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The `recent` inputs in the circular buffers (batch, D, W), and the buffers after steps."""
    width, number = buffer.shape[-1], steps.shape[-1]
    begin = counts.long()[:, None, None]

    def places(numbers: Tensor) -> Tensor:
        return ((begin + numbers) % max(width, 1)).expand(-1, buffer.shape[1], -1)

    before = buffer.gather(2, places(torch.arange(-recent, 0)))
    kept = torch.arange(max(number - width, 0), number)  # the others would be overwritten
    return before, buffer.scatter(2, places(kept), steps[..., number - len(kept) :])
