"""The selective scan on PyTorch's CPU tensors: `selective_scan` with autograd, and `selective_state_update`.

How data flows: tensors → checks, one working dtype (differentiable casts) → a custom operator, opaque to ``torch.compile`` →
NumPy views of the same memory → fastderiv → tensors that are views of its results.
"""

from typing import Any, Literal, overload

import fastderiv

try:
    import torch
    from torch import Tensor
    from torch.autograd.forward_ad import unpack_dual
    from torch.library import custom_op
except ImportError as error:
    raise ImportError(
        "fastderiv.integrations.torch needs PyTorch 2.4 or later, which fastderiv does not depend on; "
        "https://pytorch.org/get-started/locally says how to install it",
        name="torch",
    ) from error

__all__ = ["selective_scan", "selective_state_update"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_OPTIONAL = ("D", "z", "delta_bias", "dt_bias", "initial_state")


@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: Literal[False] = False,
    *, initial_state: Tensor | None = None, cu_seqlens: Tensor | None = None,
) -> Tensor: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False,
    *, return_last_state: Literal[True], initial_state: Tensor | None = None, cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, return_last_state: Literal[True],
    *, initial_state: Tensor | None = None, cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, z: Tensor | None = None,
    delta_bias: Tensor | None = None, delta_softplus: bool = False, return_last_state: bool = False,
    *, initial_state: Tensor | None = None, cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]: ...  # fmt: skip
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
    """`fastderiv.selective_scan` on CPU tensors, differentiable: a stand-in for ``mamba_ssm``'s ``selective_scan_fn``.

    Parameters
    ----------
    u, delta, A, B, C, D, z, delta_bias, initial_state : Tensor
        The shapes of `fastderiv.selective_scan`, any strides.  float32, float64, bfloat16 or float16 in any mixture; computed
        in float64 if one of them is float64, else in float32.
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
    Every tensor that requires a gradient gets the exact one, `initial_state` included, and the last state may be part of the
    loss.  Works under ``torch.compile(fullgraph=True)`` as the operator ``fastderiv::selective_scan``.  Tensors in the dtype
    of the computation are not copied, neither in nor out.  The threads are fastderiv's: see `fastderiv.set_num_threads`.
    There are no second derivatives, no forward mode and no derivatives by ``torch.func``: these raise.
    O(batch·D·L·N) time; the backward pass keeps the inputs only, and recomputes the states.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.torch import selective_scan
    >>> u = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    >>> one = torch.ones(1, 1)
    >>> selective_scan(u, torch.ones(1, 3), -one, one, one).detach()
    tensor([[1.0000, 0.3679, 0.1353]])
    """
    _check(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state)
    tensors = u, delta, A, B, C, D, z, delta_bias, initial_state
    out, last = _scan(*_cast(_working(*tensors), *tensors), cu_seqlens, bool(delta_softplus))
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
    """`fastderiv.selective_state_update` on CPU tensors: a stand-in for the function of that name in ``mamba_ssm``.

    Parameters
    ----------
    state : Tensor, shape (batch, D, N) or (D, N)
        Overwritten with the new state.  The states with heads (batch, heads, P, N) of Mamba-2 are not supported.
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
    Computed in the dtype of `state`, in float32 if that is bfloat16 or float16.  O(batch·D·N) time, no copies of tensors
    that have that dtype.  Where a gradient is asked for, the step is a `selective_scan`, and differentiable like that.

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
    if 0 in state.stride() and any(n > 1 and step == 0 for n, step in zip(state.shape, state.stride(), strict=True)):
        raise ValueError(f"state is expanded: its {state.numel()} elements share memory, and cannot all be updated")
    arguments = (state, x, dt, A, B, C, D, z, dt_bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments):
        return _differentiable_step(*arguments, bool(dt_softplus))
    dtype = _working(state)
    h, *others = _cast(dtype, *arguments)
    out = torch.ops.fastderiv.selective_state_update(h, *others, bool(dt_softplus))
    if h is not state:
        state.copy_(h)
    return _cast(x.dtype, out)[0]


def _differentiable_step(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):  # type: ignore[no-untyped-def]
    """The same step as a scan of one, which has an adjoint."""
    x, dt, z = (None if t is None else t[..., None] for t in (x, dt, z))
    B, C = ((t if t.ndim > 1 else t[None])[..., None] for t in (B, C))  # unbatched (N,) is (G, N) with G = 1
    first = state.clone()  # the graph keeps it, while state is overwritten
    out, last = selective_scan(x, dt, A, B, C, D, z, dt_bias, dt_softplus, True, initial_state=first)
    state.copy_(last)
    return out[..., 0]


def _check(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is None and name in _OPTIONAL:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; expected a tensor")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} has dtype {tensor.dtype}; expected one of {', '.join(map(str, DTYPES))}")
        if not tensor.is_cpu:
            raise ValueError(f"{name} is on {tensor.device}; expected a CPU tensor")
        if unpack_dual(tensor).tangent is not None:  # PyTorch would drop it
            raise NotImplementedError(f"{name} has a tangent; there are no forward-mode derivatives here")


def _working(*tensors: Tensor | None) -> torch.dtype:
    """The dtype to compute in."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [t if t is None or t.dtype == dtype else t.to(dtype) for t in tensors]


def _arrays(*tensors: Tensor | None) -> list[Any]:
    """The same memory as NumPy arrays."""
    return [None if t is None else t.numpy(force=True) for t in tensors]


# The operators take tensors of one working dtype.  Those of the adjoints are operators too, because torch.compile traces
# the backward pass as well.


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
) -> tuple[Tensor, Tensor]:
    *arrays, first, starts = _arrays(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens)
    out, last = fastderiv.selective_scan(  # type: ignore[call-overload]  # it cannot count what a star hands over
        *arrays, delta_softplus, True, initial_state=first, cu_seqlens=starts
    )
    return torch.from_numpy(out), torch.from_numpy(last)


@_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, delta_softplus):  # type: ignore[no-untyped-def]
    sequences = u.shape[:-2] if cu_seqlens is None else (cu_seqlens.shape[0] - 1,)
    return u.new_empty(u.shape), u.new_empty((*sequences, *A.shape))


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
) -> list[Tensor]:
    """The gradients of the tensors that are given, in order."""
    dy, dlast, *arrays, first, starts = _arrays(
        dout, dlast_state, u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens
    )
    grads = fastderiv.selective_scan_vjp(  # type: ignore[misc]  # nor here
        dy, *arrays, delta_softplus, initial_state=first, cu_seqlens=starts, dlast_state=dlast
    )
    return [torch.from_numpy(gradient) for gradient in grads if gradient is not None]


@_scan_vjp.register_fake
def _(dout, dlast_state, *arguments):  # type: ignore[no-untyped-def]
    *differentiable, _, _ = arguments
    return [t.new_empty(t.shape) for t in differentiable if t is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dout: Tensor, dlast_state: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    gradients = iter(_scan_vjp(dout, dlast_state, *saved, ctx.delta_softplus))
    return *(None if t is None else next(gradients) for t in saved[:-1]), None, None


_scan.register_autograd(_backward, setup_context=_save)


# A step is so short that what custom_op adds to a call, 35 µs, would double it.
torch.library.define(
    "fastderiv::selective_state_update",
    "(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
    "bool dt_softplus) -> Tensor",
)


@torch.library.impl("fastderiv::selective_state_update", "cpu")
def _step(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):  # type: ignore[no-untyped-def]
    h = state.detach().numpy()  # not forced as in _arrays: it must be the tensor's own memory
    out = fastderiv.selective_state_update(h, *_arrays(x, dt, A, B, C, D, z, dt_bias), dt_softplus)
    torch.autograd.graph.increment_version(state)  # so that a graph which kept the old state will say so
    return torch.from_numpy(out)


@torch.library.register_fake("fastderiv::selective_state_update")
def _(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):  # type: ignore[no-untyped-def]
    return state.new_empty(state.shape[:-1])
