"""`causal_conv1d` with autograd on PyTorch's CPU tensors.

How data flows: tensors → checks → an operator (`Operator`) → NumPy views of the same memory →
fastderiv → tensors that are views of its results.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastderiv
from fastderiv.ssm import ConvCall

from ._conv_rows import adjoint_of_rows, convolve_rows, rows_of
from ._operators import Arrays, Constants, Operator, Tensors
from ._packed import expect_seq_idx
from ._tensors import as_flag, check, check_integers, numbers, shape_of


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: Literal[False] = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    *,
    cu_seqlens: Tensor | None = None,
) -> Tensor: ...
@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    *,
    return_final_states: Literal[True],
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None,
    initial_states: Tensor | None, return_final_states: Literal[True],
    final_states_out: Tensor | None = None, activation: str | None = None,
    *, cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    *,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]: ...
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    *,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """A differentiable `fastderiv.causal_conv1d` for CPU tensors.

    It takes the place of ``causal_conv1d_fn`` of the package ``causal_conv1d``, whose arguments it
    has in the same order.

    Parameters
    ----------
    x : Tensor, shape (batch, D, L) or (D, L)
        In any memory order.  float32, float64, bfloat16 or float16, as all that follow, in any
        mixture.  The computation is in float64 if one of them is, else in float32.
    weight : Tensor, shape (D, K)
        The taps of each channel, the last one for the newest input.
    bias : Tensor, shape (D,), optional
    seq_idx : Tensor of integers, shape (batch, L) or (L,), optional
        Which of the packed sequences a step belongs to.  A new one begins wherever the number
        changes along L, and sees no input of another.  Steps with a negative number are padding:
        the result is zero there, and so is their part in every gradient.
    initial_states : Tensor, shape (batch, D, K - 1), optional
        The inputs before the first step, the newest last; zeros by default.  With `seq_idx` those
        of the first sequence of each row; with `cu_seqlens` (sequences, D, K - 1).
    return_final_states : bool, optional
        Whether to return the last K - 1 inputs too; with `seq_idx` those of the last sequence of
        each row, with `cu_seqlens` those of each sequence.
    final_states_out : Tensor, shape of the final states, optional
        They are written there, and it is returned in their place.  Ignored if they are not asked
        for.
    activation : None, "silu" or "swish", optional
        As in `fastderiv.causal_conv1d`.
    cu_seqlens : Tensor of integers, shape (k + 1,), optional
        Boundaries of k sequences packed along L with batch 1, from 0 to L, non-decreasing.

    Returns
    -------
    out : Tensor, shape and dtype of `x`
        In memory, channels are contiguous (channels last) if they are closer together in `x` than
        steps are, otherwise steps are.
    final_states : Tensor, shape (batch, D, K - 1), dtype of `x`
        Only if `return_final_states`.

    Raises
    ------
    ValueError
        A shape that does not fit, a tensor that is not on the CPU, or both `seq_idx` and
        `cu_seqlens`.
    TypeError
        Not a tensor, or another dtype.

    Notes
    -----
    Every tensor that requires a gradient gets the exact one, `initial_states` included, and the
    final states may be part of the loss.  The function works under
    ``torch.compile(fullgraph=True)``, as the operator ``fastderiv::causal_conv1d``.  Tensors in the
    dtype of the computation are read in place.  Autograd keeps the arguments and nothing else.

    O(batch·D·L·K) time.  With `seq_idx` each row is a call of its own, and its sequences have
    states of K - 1 inputs.  Second derivatives, forward mode and the transforms of ``torch.func``
    are computed by PyTorch's own operations.

    The original refuses `seq_idx` with `return_final_states`; here the two go together.  Where one
    number comes twice with less than K - 1 steps of others between, these are two sequences here,
    and one in the original.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.torch import causal_conv1d
    >>> x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    >>> causal_conv1d(x, torch.ones(1, 2))
    tensor([[[1., 3., 5., 7.]]])

    Two sequences in one row:

    >>> causal_conv1d(x, torch.ones(1, 2), seq_idx=torch.tensor([[0, 0, 1, 1]]))
    tensor([[[1., 3., 3., 7.]]])
    """
    check(x=x, weight=weight, bias=bias, initial_states=initial_states)
    if seq_idx is not None or cu_seqlens is not None:
        _check_sequences(x, seq_idx, cu_seqlens)
    out, last = _convolution((x, weight, bias, initial_states), (seq_idx, cu_seqlens, activation))
    if not as_flag("return_final_states", return_final_states):
        return out
    if final_states_out is None:
        return out, last.to(x.dtype)
    return out, _written(last, final_states_out)


def _check_sequences(x: Tensor, seq_idx: Tensor | None, cu_seqlens: Tensor | None) -> None:
    check_integers(seq_idx=seq_idx, cu_seqlens=cu_seqlens)
    if seq_idx is None:
        return
    if cu_seqlens is not None:
        raise ValueError("both seq_idx and cu_seqlens say where sequences begin; expected one")
    expect_seq_idx(seq_idx, (*x.shape[:-2], *x.shape[-1:]))


def _written(last: Tensor, out: Tensor) -> Tensor:
    check(final_states_out=out)
    if out.shape != last.shape:
        raise ValueError(
            f"final_states_out has shape {tuple(out.shape)}; expected that of the final states, "
            f"{tuple(last.shape)}"
        )
    return out.copy_(last)


class _CausalConv1d(Operator):
    name = "causal_conv1d"
    variables = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_states"
    constants = "Tensor? seq_idx, Tensor? cu_seqlens, str? activation"

    def compute(
        self, variables: Arrays, constants: Constants, remember: bool
    ) -> tuple[NDArray, NDArray, NDArray | None]:
        x, weight, bias, initial = variables
        seq_idx, starts, activation = constants
        if seq_idx is not None and seq_idx.size:
            return *convolve_rows(variables, seq_idx, activation), None
        results = fastderiv.causal_conv1d(
            x, weight, bias, activation, initial_state=initial, return_last_state=True,
            cu_seqlens=starts,
        )  # fmt: skip
        return *results, None

    def adjoint(
        self,
        dout: NDArray,
        dlast_state: NDArray,
        variables: Arrays,
        constants: Constants,
        kept: NDArray | None,
    ) -> Sequence[NDArray | None]:
        x, weight, bias, initial = variables
        seq_idx, starts, activation = constants
        if seq_idx is not None and seq_idx.size:
            return adjoint_of_rows(dout, dlast_state, variables, seq_idx, activation)
        return fastderiv.causal_conv1d_vjp(
            dout, x, weight, bias, activation, initial_state=initial, cu_seqlens=starts,
            dlast_state=dlast_state,
        )  # fmt: skip

    def shapes(
        self, variables: Tensors, constants: Constants, remember: bool
    ) -> tuple[Sequence[Any], Sequence[Any], int]:
        x, weight, _, _ = variables
        _, starts, _ = constants
        sequences = x.shape[:-2] if starts is None else (starts.shape[0] - 1,)
        return x.shape, (*sequences, x.shape[-2], weight.shape[1] - 1), 0

    def in_steps(self, variables: Tensors, constants: Constants) -> tuple[Tensor, Tensor]:
        return _in_steps(*variables, *constants)

    def like_first(self, first: Tensor, shape: Sequence[Any]) -> Tensor:
        """As `ConvCall.like_x` has it."""
        *batch, channels, steps = shape
        if 0 < first.stride(-2) < first.stride(-1):
            return first.new_empty((*batch, steps, channels)).transpose(-1, -2)
        return first.new_empty(shape)


_convolution = _CausalConv1d()


def _in_steps(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    starts = numbers("cu_seqlens", cu_seqlens)
    if not torch.compiler.is_compiling():
        # every error of shapes is raised here
        given = shape_of(x), shape_of(weight), shape_of(bias)
        ConvCall(*given, activation, shape_of(initial_states), starts)
    convolved = _Sum(weight, bias, activation is not None)
    if seq_idx is not None and seq_idx.numel():
        return _rows_in_steps(x, convolved, initial_states, seq_idx)
    if starts is None:
        return convolved(x, initial_states)
    pieces = [
        convolved(x[..., start:stop], None if initial_states is None else initial_states[k])
        for k, (start, stop) in enumerate(pairwise(starts))
    ]
    if not pieces:
        return x * 1, x.new_empty(0, weight.shape[0], weight.shape[1] - 1)
    states = [state.reshape(state.shape[-2:]) for _, state in pieces]
    return torch.cat([out for out, _ in pieces], -1), torch.stack(states)


def _rows_in_steps(
    x: Tensor, convolved: "_Sum", initial_states: Tensor | None, seq_idx: Tensor
) -> tuple[Tensor, Tensor]:
    outs, lasts = [], []
    for row in rows_of(np.array(numbers("seq_idx", seq_idx)), x):
        signal = x[row.at]
        last = None if initial_states is None else initial_states[row.at]
        pieces = []
        for k, (start, stop) in enumerate(pairwise(row.starts.tolist())):
            out, last = convolved(signal[:, start:stop], last if k == 0 else None)
            # not a product with 0, since padding may be NaN
            pieces.append(torch.zeros_like(out) if row.padding[start] else out)
        outs.append(torch.cat(pieces, -1))
        lasts.append(last)
    if x.ndim == 2:
        return outs[0], lasts[0]
    return torch.stack(outs), torch.stack(lasts)


class _Sum(NamedTuple):
    """The convolution of one sequence (..., D, L)."""

    weight: Tensor
    bias: Tensor | None
    silu: bool

    def __call__(self, x: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor]:
        """The result, and the last inputs."""
        taps, steps = self.weight.shape[1], x.shape[-1]
        before = x.new_zeros(*x.shape[:-1], taps - 1) if initial is None else initial
        if before.ndim < x.ndim:
            before = before[None]
        inputs = torch.cat([before, x], -1)
        out = sum(self.weight[:, k, None] * inputs[..., k : k + steps] for k in range(taps))
        out = out if self.bias is None else out + self.bias[:, None]
        out = out * torch.sigmoid(out) if self.silu else out  # silu has fewer derivatives
        return out, inputs[..., steps:]
