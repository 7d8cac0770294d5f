"""`selective_scan` with autograd, and `selective_state_update`, on PyTorch's CPU tensors.

How data flows: tensors → checks, one working dtype (differentiable casts) → a custom operator,
opaque to ``torch.compile`` → NumPy views of the same memory → fastderiv → tensors that are views of
its results.  Second derivatives, forward mode and ``torch.func``, which the operator does not
support, are computed by PyTorch's own operations, step by step (`_in_steps`).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, overload

import numpy as np
from numpy.lib.stride_tricks import as_strided

import fastderiv
from fastderiv._core.arrays import flag, overlaps_itself
from fastderiv.ssm import ScanCall, kept_size, scan_adjoint

try:
    import torch
    from torch import Tensor
    from torch.autograd import forward_ad
    from torch.library import custom_op
    from torch.nn.functional import softplus
except ImportError as error:
    raise ImportError(
        "fastderiv.integrations.torch needs PyTorch 2.4 or later, which fastderiv does not depend "
        "on; https://pytorch.org/get-started/locally says how to install it",
        name="torch",
    ) from error

__all__ = ["selective_scan", "selective_state_update"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INTEGERS = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
_OPTIONAL = ("D", "z", "delta_bias", "dt_bias", "initial_state")
_OF_VJP = ("dout", "u", "delta", "A", "B", "C")


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: Literal[False] = False,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor: ...
@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    return_last_state: Literal[True],
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, return_last_state: Literal[True],
    *, initial_state: Tensor | None = None, cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]: ...
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """A differentiable `fastderiv.selective_scan` for CPU tensors.

    It takes the place of ``selective_scan_fn`` of ``mamba_ssm``.

    Parameters
    ----------
    u, delta, A, B, C, D, z, delta_bias, initial_state : Tensor
        The shapes of `fastderiv.selective_scan`, any strides.  float32, float64, bfloat16 or
        float16 in any mixture.  The computation is in float64 if one of them is, else in float32.
    delta_softplus, return_last_state : bool, optional
        As in `fastderiv.selective_scan`.
    cu_seqlens : Tensor of integers, shape (k + 1,), optional
        As in `fastderiv.selective_scan`.

    Returns
    -------
    out : Tensor, shape and dtype of `u`
    last_state : Tensor, shape (batch, D, N)
        Only if `return_last_state`; in the dtype of the computation.

    Raises
    ------
    ValueError
        A shape that does not fit, or a tensor that is not on the CPU.
    TypeError
        Not a tensor, or another dtype; complex `A` is not supported.

    Notes
    -----
    Every tensor that requires a gradient gets the exact one, `initial_state` included, and the last
    state may be part of the loss.  The function works under ``torch.compile(fullgraph=True)``, as
    the operator ``fastderiv::selective_scan``.  Tensors in the dtype of the computation are copied
    neither in nor out.  The threads are fastderiv's: see `fastderiv.set_num_threads`.  It takes
    O(batch·D·L·N) time.

    If a gradient may be asked for, the inputs are kept for the backward pass, and the states before
    every 32 steps (64 without `z`): batch·D·L·N/32 numbers, at N = 16 at most 15 % of inputs and
    result; where N is larger, before every 64 or 128 steps.  They are freed with the graph.

    Second and higher derivatives, forward mode and the transforms of ``torch.func`` (`grad`, `jvp`,
    `vmap`, …) are right, but not fast: there, the recurrence is computed by PyTorch's own
    operations, step by step, in O(batch·D·L·N) memory.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.torch import selective_scan
    >>> u = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    >>> one = torch.ones(1, 1)
    >>> selective_scan(u, torch.ones(1, 3), -one, one, one).detach()
    tensor([[1.0000, 0.3679, 0.1353]])
    """
    _check(
        u=u,
        delta=delta,
        A=A,
        B=B,
        C=C,
        D=D,
        z=z,
        delta_bias=delta_bias,
        initial_state=initial_state,
    )
    _check_starts(cu_seqlens)
    tensors = u, delta, A, B, C, D, z, delta_bias, initial_state
    scan = _in_steps if transformed(*tensors) else _scan
    option = _flag("delta_softplus", delta_softplus)
    cast = _cast(_working(*tensors), *tensors)
    remember = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in cast)
    arguments: Any = (*cast, cu_seqlens, option, remember)
    out, last, _ = scan(*arguments)
    (out,) = _cast(u.dtype, out)
    return (out, last) if return_last_state else out


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
    _check(state=state, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias)
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
        return _differentiable_step(*arguments, _flag("dt_softplus", dt_softplus))
    dtype = _working(state)
    h, *others = _cast(dtype, *arguments)
    if not torch.compiler.is_compiling() and h.is_neg():
        h = h.resolve_neg()  # PyTorch gives no operator a view to write that it negates lazily
    out = torch.ops.fastderiv.selective_state_update(h, *others, _flag("dt_softplus", dt_softplus))
    if h is not state:
        _write(state, h)
    return _cast(x.dtype, out)[0]


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
        _without_memory(state.shape, state.stride())
    ):
        raise ValueError("state shares memory with itself: several of its elements are one")
    state.copy_(new)


def _flag(name: str, value: object) -> bool:
    return value if isinstance(value, bool) else flag(name, value)


def _check(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None and name in _OPTIONAL:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; expected a tensor")
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f"{name} has dtype {tensor.dtype}; expected one of {', '.join(map(str, DTYPES))}"
            )
        _check_place(name, tensor)


def _check_starts(cu_seqlens: Tensor | None) -> None:
    if cu_seqlens is None:
        return
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(
            f"cu_seqlens is a {type(cu_seqlens).__name__}; expected a tensor of integers"
        )
    if cu_seqlens.dtype not in _INTEGERS:
        raise TypeError(f"cu_seqlens has dtype {cu_seqlens.dtype}; expected integers")
    _check_place("cu_seqlens", cu_seqlens)


def _check_place(name: str, tensor: Tensor) -> None:
    if not tensor.is_cpu:
        raise ValueError(f"{name} is on {tensor.device}; expected a CPU tensor")
    if tensor.is_nested or tensor.layout != torch.strided:
        raise ValueError(
            f"{name} is {'nested' if tensor.is_nested else tensor.layout}; expected a dense tensor"
        )


def transformed(*tensors: Tensor | None) -> bool:
    """Whether ``torch.func`` or forward mode is active, which cannot see into the operators."""
    return _in_functorch() or _any_tangent(tensors)


def _any_tangent(tensors: Sequence[Tensor | None]) -> bool:
    if getattr(forward_ad, "_current_level", 0) < 0:  # nearly always: not in forward mode
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _in_functorch() -> bool:
    return bool(torch._C._are_functorch_transforms_active())  # noqa: SLF001 (no public name tells)


def _working(*tensors: Tensor | None) -> torch.dtype:
    """The dtype to compute in."""
    return (
        torch.float64
        if any(t is not None and t.dtype == torch.float64 for t in tensors)
        else torch.float32
    )


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors]


def _arrays(*tensors: Tensor | None) -> list[Any]:
    """The same memory as NumPy arrays."""
    return [None if t is None else t.numpy(force=True) for t in tensors]


def _refuse_tangents(*tensors: Tensor | None) -> None:
    """A NotImplementedError for tensors with tangents.

    PyTorch would drop them silently where a compiled or traced call reaches an operator.
    """
    if _any_tangent(tensors):
        raise NotImplementedError(
            "forward-mode derivatives of fastderiv's operators need a call "
            "that is not compiled or traced"
        )


# The operators take tensors of one working dtype.  Those of the adjoints are operators too, because
# torch.compile traces the backward pass as well.


@custom_op("fastderiv::selective_scan", mutates_args=(), device_types="cpu")
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    remember: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The results, and the states that the adjoint needs; no states unless told to `remember`."""
    _refuse_tangents(u, delta, A, B, C, D, z, delta_bias, initial_state)
    x, dt, a, b, c, d, gate, bias = _arrays(u, delta, A, B, C, D, z, delta_bias)
    before, starts = _arrays(initial_state, cu_seqlens)
    call = ScanCall(x, dt, a, b, c, d, gate, bias, before, starts)
    out, last = call.new_result(), call.new_state()
    kept = call.new_kept() if remember else None
    call.scan(out, last, delta_softplus, kept)
    states = u.new_empty(0) if kept is None else torch.from_numpy(kept.states)
    return torch.from_numpy(out), torch.from_numpy(last), states


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, _, _, z, _, _, cu_seqlens, _, remember = others
    sequences = u.shape[:-2] if cu_seqlens is None else (cu_seqlens.shape[0] - 1,)
    states = kept_size(u.shape, A.shape[1], z is not None) if remember else 0
    return u.new_empty(u.shape), u.new_empty((*sequences, *A.shape)), u.new_empty(states)


@custom_op("fastderiv::selective_scan_vjp", mutates_args=(), device_types="cpu")
def _scan_vjp(
    dout: Tensor,
    dlast_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, …, initial_state, in order; an empty tensor for an argument that is None.

    They are a tuple of tensors because `vmap` knows neither lists nor None.  The `states` are those
    that the scan returned for the same tensors; without any, it runs once more.
    """
    _refuse_tangents(dout, dlast_state, u, delta, A, B, C, D, z, delta_bias, initial_state)
    dy, x, dt, a, b, c, d, gate, bias = _arrays(dout, u, delta, A, B, C, D, z, delta_bias)
    before, starts, dlast = _arrays(initial_state, cu_seqlens, dlast_state)
    call = ScanCall(x, dt, a, b, c, d, gate, bias, before, starts, dy, dlast, required=_OF_VJP)
    (known,) = _arrays(states)
    grads = scan_adjoint(call, delta_softplus, call.kept(known) if known.size else None)
    found: Any = tuple(dout.new_empty(0) if g is None else torch.from_numpy(g) for g in grads)
    return found


@_scan_vjp.register_fake
def _(dout, dlast_state, *arguments):  # type: ignore[no-untyped-def]
    *differentiable, _, _, _ = arguments
    return tuple(dout.new_empty(0) if t is None else t.new_empty(t.shape) for t in differentiable)


# What autograd saves it also watches: if a tensor was modified in place since, the backward pass
# fails, so that states never meet other inputs than those that they were computed from.


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.delta_softplus, _ = inputs
    states = output[2]
    ctx.mark_non_differentiable(states)
    ctx.save_for_backward(*tensors, states)


def _backward(ctx: Any, dout: Tensor, dlast_state: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *saved, states = ctx.saved_tensors
    if transformed(dout, dlast_state):
        return *_vjp_in_steps(dout, dlast_state, *saved, ctx.delta_softplus), None, None, None
    gradients = _scan_vjp(dout, dlast_state, *saved, ctx.delta_softplus, states)
    return (
        *(None if t is None else g for t, g in zip(saved[:-1], gradients, strict=True)),
        None,
        None,
        None,
    )


def _save_adjoint(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.delta_softplus, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward_twice(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """The adjoint of the adjoint, computed for the same function in PyTorch's operations."""
    *tensors, starts = ctx.saved_tensors
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        variables = [_variable(t, create) for t in tensors]
        gradients = _vjp_in_steps(*variables, starts, ctx.delta_softplus)
        pairs = [
            (g, c)
            for g, c in zip(gradients, cotangents, strict=True)
            if g is not None and g.requires_grad
        ]
        return (
            *_gradients([g for g, _ in pairs], variables, [c for _, c in pairs], create),
            None,
            None,
            None,
        )


_scan.register_autograd(_backward, setup_context=_save)
_scan_vjp.register_autograd(_backward_twice, setup_context=_save_adjoint)


# The same functions in PyTorch's operations, for derivatives that the operators do not have.  They
# use element-wise operations and sums only, which autocast leaves in the working dtype.


def _in_steps(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    delta_softplus: bool,
    remember: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_scan`, which need not `remember` here."""
    tensors = u, delta, A, B, C, D, z, delta_bias, initial_state
    starts = None if cu_seqlens is None else cu_seqlens.tolist()
    if not torch.compiler.is_compiling():
        # every error of shapes is raised here
        u_, dt_, a, b, c, d, gate, bias, h0 = map(_shape_of, tensors)
        ScanCall(u_, dt_, a, b, c, d, gate, bias, h0, starts)
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    dt = softplus(dt) if delta_softplus else dt
    B, C = (_coefficient(t, u.shape) for t in (B, C))
    ys, lasts, segments = [], [], [0, u.shape[-1]] if starts is None else starts
    for k, (start, stop) in enumerate(pairwise(segments)):
        h = _first(u, A, initial_state, None if starts is None else k)
        for i in range(start, stop):
            step = dt[..., i, None]
            h = torch.exp(step * A) * h + step * _at(B, i) * u[..., i, None]
            ys.append((h * _at(C, i)).sum(-1))
        lasts.append(h if starts is None or u.ndim == 2 else h[0])
    out = torch.stack(ys, -1) if ys else u * 1
    out = out if D is None else out + D[:, None] * u
    last = (
        lasts[0] * 1
        if starts is None
        else torch.stack(lasts)
        if lasts
        else u.new_empty(0, *A.shape)
    )
    out = out if z is None else out * (z * torch.sigmoid(z))  # silu has fewer derivatives
    return out, last, u.new_empty(0)


def _coefficient(t: Tensor, shape: torch.Size) -> Tensor:
    """B or C as (D, N), or as (batch, D, N, L) without the batch if there is none."""
    if t.ndim == 2:
        return t
    grouped = t if t.ndim == len(shape) + 1 else t[:, None]
    return grouped.repeat_interleave(shape[-2] // grouped.shape[-3], -3)


def _at(coefficient: Tensor, i: int) -> Tensor:
    return coefficient if coefficient.ndim == 2 else coefficient[..., i]


def _first(u: Tensor, A: Tensor, initial_state: Tensor | None, sequence: int | None) -> Tensor:
    """The state before the first step, of a packed sequence if it has a number."""
    if initial_state is None:
        return u.new_zeros(*u.shape[:-2], *A.shape)
    return (
        initial_state
        if sequence is None
        else initial_state[sequence].expand(*u.shape[:-2], *A.shape)
    )


def _vjp_in_steps(dout, dlast_state, *arguments):  # type: ignore[no-untyped-def]
    """`_scan_vjp`, with a graph where one is asked for; None for an argument that is None."""
    *tensors, starts, delta_softplus = arguments
    # torch.func allows no new variables, and is_grads_batched does not allow torch.func
    if _in_functorch():
        return _vjp_by_functorch((dout, dlast_state), tensors, starts, delta_softplus)
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        variables = [_variable(t, create) for t in tensors]
        results = _in_steps(*variables, starts, delta_softplus)[:2]
        return _gradients(results, variables, (dout, dlast_state), create)


def _vjp_by_functorch(cotangents, tensors, starts, delta_softplus):  # type: ignore[no-untyped-def]
    def function(*given):  # type: ignore[no-untyped-def]
        present = iter(given)
        return _in_steps(
            *(None if t is None else next(present) for t in tensors), starts, delta_softplus
        )[:2]

    _, pull_back = torch.func.vjp(function, *(t for t in tensors if t is not None))
    found = iter(pull_back(cotangents))
    return [None if t is None else next(found) for t in tensors]


def _gradients(outputs, variables, cotangents, create):  # type: ignore[no-untyped-def]
    """The gradients with respect to all variables; None for a variable that is None."""
    given = [t for t in variables if t is not None]
    found = iter(
        torch.autograd.grad(outputs, given, cotangents, create_graph=create, allow_unused=True)
    )
    return [None if t is None else next(found) for t in variables]


def _variable(t: Tensor | None, attached: bool) -> Tensor | None:
    """`t` as a variable of its own, since one tensor may be several arguments.

    If `attached`, it belongs to the graph of `t`.
    """
    if t is None:
        return None
    return t.view_as(t) if attached and t.requires_grad else t.detach().requires_grad_()


def _shape_of(t: Tensor | None) -> Any:
    """An array of a tensor's shape that must not be read; None for None."""
    return None if t is None else _without_memory(t.shape, [0] * t.ndim)


def _without_memory(shape: torch.Size, strides: Sequence[int]) -> np.ndarray:
    """An array of this shape and these strides, in elements, that must not be read."""
    return as_strided(np.zeros((), np.float32), tuple(shape), [4 * step for step in strides])


# A step is so short that what custom_op adds to a call, 35 µs, would double it.
torch.library.define(
    "fastderiv::selective_state_update",
    "(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? dt_bias, bool dt_softplus) -> Tensor",
)


@torch.library.impl("fastderiv::selective_state_update", "cpu")
def _step(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):  # type: ignore[no-untyped-def]
    _refuse_tangents(state, x, dt, A, B, C, D, z, dt_bias)
    h = state.detach().numpy()  # not forced as in _arrays: it must be the tensor's own memory
    out = fastderiv.selective_state_update(h, *_arrays(x, dt, A, B, C, D, z, dt_bias), dt_softplus)
    # a graph that kept the old state will then say so
    torch.autograd.graph.increment_version(state)
    return torch.from_numpy(out)


@torch.library.register_fake("fastderiv::selective_state_update")
def _(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):  # type: ignore[no-untyped-def]
    return state.new_empty(state.shape[:-1])
