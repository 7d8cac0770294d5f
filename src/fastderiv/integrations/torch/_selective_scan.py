"""`selective_scan` with autograd on PyTorch's CPU tensors."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, overload

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from fastderiv.ssm import ScanCall, kept_size, scan_adjoint

from ._operators import Arrays, Constants, Operator, Tensors
from ._tensors import as_flag, check, check_integers, numbers, shape_of

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
    return_last_state: bool | None = False,
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
    return_last_state: bool | None = False,
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
        As in `fastderiv.selective_scan`; a `return_last_state` of None is False.
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
    check_integers(cu_seqlens=cu_seqlens)
    variables = u, delta, A, B, C, D, z, delta_bias, initial_state
    out, last = _scan(variables, (cu_seqlens, as_flag("delta_softplus", delta_softplus)))
    return (out, last) if return_last_state else out


class _SelectiveScan(Operator):
    name = "selective_scan"
    variables = (
        "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
        "Tensor? delta_bias, Tensor? initial_state"
    )
    constants = "Tensor? cu_seqlens, bool delta_softplus"

    def compute(
        self, variables: Arrays, constants: Constants, remember: bool
    ) -> tuple[NDArray, NDArray, NDArray | None]:
        starts, delta_softplus = constants
        given: Any = (*variables, starts)
        call = ScanCall(*given)
        # without the checksums of `return_cache`: autograd watches the arguments
        kept = call.new_kept() if remember else None
        out, last = call.new_result(), call.new_state()
        call.scan(out, last, delta_softplus, kept)
        return out, last, None if kept is None else kept.states

    def adjoint(
        self,
        dout: NDArray,
        dlast_state: NDArray,
        variables: Arrays,
        constants: Constants,
        kept: NDArray | None,
    ) -> Sequence[NDArray | None]:
        starts, delta_softplus = constants
        given: Any = (*variables, starts, dout, dlast_state)
        call = ScanCall(*given, required=_OF_VJP)
        return scan_adjoint(call, delta_softplus, None if kept is None else call.kept(kept))

    def shapes(
        self, variables: Tensors, constants: Constants, remember: bool
    ) -> tuple[Sequence[Any], Sequence[Any], int]:
        u, _, A, _, _, _, z, _, _ = variables
        starts, _ = constants
        sequences = u.shape[:-2] if starts is None else (starts.shape[0] - 1,)
        return u.shape, (*sequences, *A.shape), kept_size(u.shape, A.shape[1], z is not None)

    def in_steps(self, variables: Tensors, constants: Constants) -> tuple[Tensor, Tensor]:
        return _in_steps(*variables, *constants)


_scan = _SelectiveScan()


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
) -> tuple[Tensor, Tensor]:
    tensors = u, delta, A, B, C, D, z, delta_bias, initial_state
    starts = numbers("cu_seqlens", cu_seqlens)
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
    return out, last


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
