"""`selective_scan` with autograd on PyTorch's CPU tensors.

How data flows: tensors → checks, one working dtype (differentiable casts) → a custom operator,
opaque to ``torch.compile`` → NumPy views of the same memory → fastderiv → tensors that are views of
its results.  Second derivatives, forward mode and ``torch.func``, which the operator does not
support, are computed by PyTorch's own operations, step by step (`_in_steps`).
"""

from itertools import pairwise
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn.functional import softplus

import fastderiv
from fastderiv.ssm import ScanCall, kept_size, scan_adjoint

from ._tensors import (
    OF_VJP,
    arrays,
    as_flag,
    cast,
    check,
    check_starts,
    in_functorch,
    refuse_tangents,
    shape_of,
    transformed,
    working,
)


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
    check(
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
    check_starts(cu_seqlens)
    tensors = u, delta, A, B, C, D, z, delta_bias, initial_state
    scan = _in_steps if transformed(*tensors) else _scan
    option = as_flag("delta_softplus", delta_softplus)
    given = cast(working(*tensors), *tensors)
    remember = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    arguments: Any = (*given, cu_seqlens, option, remember)
    out, last, _ = scan(*arguments)
    (out,) = cast(u.dtype, out)
    return (out, last) if return_last_state else out


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
    refuse_tangents(u, delta, A, B, C, D, z, delta_bias, initial_state)
    x, dt, a, b, c, d, gate, bias = arrays(u, delta, A, B, C, D, z, delta_bias)
    before, starts = arrays(initial_state, cu_seqlens)
    if not remember:
        options: Any = dict(initial_state=before, cu_seqlens=starts)
        out, last = fastderiv.selective_scan(
            x, dt, a, b, c, d, gate, bias, delta_softplus, True, **options
        )
        return torch.from_numpy(out), torch.from_numpy(last), u.new_empty(0)
    # without the checksums of `return_cache`: autograd watches the arguments
    call = ScanCall(x, dt, a, b, c, d, gate, bias, before, starts)
    out, last, kept = call.new_result(), call.new_state(), call.new_kept()
    call.scan(out, last, delta_softplus, kept)
    return torch.from_numpy(out), torch.from_numpy(last), torch.from_numpy(kept.states)


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
    refuse_tangents(dout, dlast_state, u, delta, A, B, C, D, z, delta_bias, initial_state)
    dy, x, dt, a, b, c, d, gate, bias = arrays(dout, u, delta, A, B, C, D, z, delta_bias)
    before, starts, dlast = arrays(initial_state, cu_seqlens, dlast_state)
    call = ScanCall(x, dt, a, b, c, d, gate, bias, before, starts, dy, dlast, required=OF_VJP)
    (known,) = arrays(states)
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
        u_, dt_, a, b, c, d, gate, bias, h0 = map(shape_of, tensors)
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
    if in_functorch():
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
