"""`ssd_scan`, Mamba-2's scan, with autograd on PyTorch's CPU tensors."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from fastderiv.ssm import SSDCall, check_limits, ssd_adjoint

from ._operators import Arrays, Constants, Operator, Tensors
from ._packed import expect_seq_idx
from ._ssd_segments import Segments, segments
from ._tensors import DTYPES, as_flag, check, check_integers, numbers, shape_of

# numbers of kept states for each of x: they save a tenth of forward and backward pass, not more
_MOST_KEPT = 2
_OF_VJP = ("dout", "x", "dt", "A", "B", "C")


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int | None = None,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Any:
    """A differentiable `fastderiv.ssd_scan`, Mamba-2's scan, for CPU tensors.

    It takes the place of ``mamba_chunk_scan_combined`` of ``mamba_ssm``, with its arguments in
    their order.

    Parameters
    ----------
    x, z : Tensor, shape (batch, L, H, P)
    dt : Tensor, shape (batch, L, H)
    A, dt_bias : Tensor, shape (H,)
    B, C : Tensor, shape (batch, L, G, N)
    D : Tensor, shape (H,) or (H, P)
        As in `fastderiv.ssd_scan`; `D`, `z` and `dt_bias` are optional.  float32, float64, bfloat16
        or float16 in any mixture, any strides.  The computation is in float64 if one of them is,
        else in float32.
    chunk_size : int, optional
        Has no effect: how a sequence is divided is no matter of the result.
    initial_states : Tensor, shape (batch, H, P, N), optional
        States before the first step; zeros by default.  With `cu_seqlens` it may also have one for
        each sequence; one alone is that of the first.
    seq_idx : Tensor of integers, shape (batch, L), optional
        The number of the sequence to which a step belongs.  The state restarts where it changes.
        As in ``mamba_ssm``, `initial_states` belong to sequence 0: a row that begins with another
        number begins with a state of zeros.
    cu_seqlens : Tensor of integers, shape (k + 1,), optional
        Boundaries of k sequences packed along L with batch 1, from 0 to L, non-decreasing.  The
        state restarts at each of them, too.  (In ``mamba_ssm`` it restarts by `seq_idx` only.)
    dt_softplus, dt_limit : optional
        As in `fastderiv.ssd_scan`.
    return_final_states, return_varlen_states : bool, optional
        Whether to return states; the latter needs `cu_seqlens`.
    state_dtype : torch.dtype, optional
        That of the returned states; by default that of the computation.

    Returns
    -------
    out : Tensor, shape and dtype of `x`
    final_states : Tensor, shape (batch, H, P, N)
        Only if `return_final_states`: the states after the last step of each row.
    varlen_states : Tensor, shape (k, H, P, N)
        Only if `return_varlen_states`: the states at the end of each sequence of `cu_seqlens`.

    Raises
    ------
    ValueError
        A shape that does not fit, a tensor that is not on the CPU, or `return_varlen_states`
        without `cu_seqlens`.
    TypeError
        Not a tensor, or another dtype.

    Notes
    -----
    Every tensor that requires a gradient gets the exact one, `initial_states` included, and all
    returned states may be part of the loss.  The function works under
    ``torch.compile(fullgraph=True)``, as the operator ``fastderiv::ssd_scan``.  The threads are
    fastderiv's: see `fastderiv.set_num_threads`.  It takes O(batch·L·H·P·N) time.

    Tensors in the dtype of the computation are copied neither in nor out, with one exception: with
    `seq_idx`, rows are laid end to end, and a tensor of several rows for which that is no view is
    copied.  With `seq_idx` or `cu_seqlens`, states given or asked for are made for all sequences.

    If a gradient may be asked for, the inputs are kept for the backward pass, and the states before
    every 64 steps: batch·L·H·P·N/64 numbers, N/64 times as many as those of `x`.  They are freed
    with the graph.  They save a tenth of the time of forward and backward pass together; none are
    kept if N is more than 128, or if sequences of `seq_idx` are shorter than 64 steps in the mean.

    Second and higher derivatives, forward mode and the transforms of ``torch.func`` (`grad`, `jvp`,
    `vmap`, …) are right, but not fast: there, the recurrence is computed by PyTorch's own
    operations, step by step, in O(batch·L·H·P·N) memory.

    Examples
    --------
    One head of one number that forgets half of its state with every step:

    >>> import math, torch
    >>> from fastderiv.integrations.torch import ssd_scan
    >>> x = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 4, 1, 1)
    >>> one, A = torch.ones(1, 4, 1, 1), torch.tensor([-math.log(2)])
    >>> ssd_scan(x, torch.ones(1, 4, 1), A, one, one).flatten()
    tensor([1.0000, 0.5000, 0.2500, 0.1250])

    The same with two sequences of two steps:

    >>> seq_idx = torch.tensor([[0, 0, 1, 1]])
    >>> ssd_scan(x, torch.ones(1, 4, 1), A, one, one, seq_idx=seq_idx).flatten()
    tensor([1.0000, 0.5000, 0.0000, 0.0000])
    """
    variables = x, dt, A, B, C, D, z, dt_bias, initial_states
    check(
        x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, initial_states=initial_states
    )  # fmt: skip
    check_integers(seq_idx=seq_idx, cu_seqlens=cu_seqlens)
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (batch, L, H, P)")
    if seq_idx is not None:
        expect_seq_idx(seq_idx, x.shape[:2])
    if state_dtype not in (None, *DTYPES):
        raise TypeError(f"state_dtype is {state_dtype!r}; expected one of {DTYPES}")
    final = as_flag("return_final_states", return_final_states)
    varlen = as_flag("return_varlen_states", return_varlen_states)
    if varlen and cu_seqlens is None:
        raise ValueError("return_varlen_states is True and cu_seqlens is None; expected boundaries")
    limits: Any = dt_limit
    if isinstance(limits, (tuple, list)):  # compilers cannot trace the check of integers
        limits = tuple(float(v) if type(v) is int else v for v in limits)
    low, high = check_limits(limits)
    softplus_ = as_flag("dt_softplus", dt_softplus)
    out, states = _scan(variables, (seq_idx, cu_seqlens, softplus_, low, high, final or varlen))
    if not (final or varlen):
        return out
    states = states if state_dtype is None else states.to(state_dtype)
    # there is a state for each sequence if there are boundaries of them
    last = (states if cu_seqlens is None else states[-1:].clone(),) if final else ()
    return (out, *last, states) if varlen else (out, *last)


class _SSDScan(Operator):
    """The last states are those of rows, or of the sequences if there are `cu_seqlens`.

    If no `states` are wanted, they are an empty tensor.
    """

    name = "ssd_scan"
    variables = (
        "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
        "Tensor? dt_bias, Tensor? initial_states"
    )
    constants = (
        "Tensor? seq_idx, Tensor? cu_seqlens, bool dt_softplus, float low, float high, bool states"
    )

    def compute(
        self, variables: Arrays, constants: Constants, remember: bool
    ) -> tuple[NDArray, NDArray, NDArray | None]:
        wanted = constants[-1]
        call, pieces = _call(variables, constants)
        out = call.new_result()
        states = call.new_state() if wanted else None
        kept = None
        if remember:
            x, _, _, B, *_ = variables
            size = _kept_size(x, B, *constants[:2])
            # packed, it may have more room than is used, whose bits are not to be those of chance
            kept = (np.empty if pieces is None else np.zeros)(size, call.dtype) if size else None
        call.scan(out, states, _kept(call, kept))
        if states is None:
            states = np.empty(0, call.dtype)
        elif pieces is not None:
            states = states[pieces.last]
        return out.reshape(variables[0].shape), states, kept

    def adjoint(
        self,
        dout: NDArray,
        dlast_state: NDArray,
        variables: Arrays,
        constants: Constants,
        kept: NDArray | None,
    ) -> Sequence[NDArray | None]:
        wanted = constants[-1]
        call, pieces = _call(variables, constants, dout, dlast_state if wanted else None)
        grads = ssd_adjoint(call, _kept(call, kept))
        if pieces is None:
            return grads
        found = [
            g if g is None else g.reshape(v.shape)
            for g, v in zip(grads[:-1], variables, strict=False)
        ]
        initial = grads.dinitial_state
        return *found, None if initial is None else pieces.initial(initial)

    def shapes(
        self, variables: Tensors, constants: Constants, remember: bool
    ) -> tuple[Sequence[Any], Sequence[Any], int]:
        x, _, _, B, *_ = variables
        seq_idx, cu_seqlens, *_, wanted = constants
        batch, _, heads, width = x.shape
        sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
        states = (sequences, heads, width, B.shape[-1]) if wanted else (0,)
        return x.shape, states, _kept_size(x, B, seq_idx, cu_seqlens) if remember else 0

    def in_steps(self, variables: Tensors, constants: Constants) -> tuple[Tensor, Tensor]:
        return _in_steps(*variables, *constants)


_scan = _SSDScan()


def _call(
    variables: Sequence[Any],
    constants: Sequence[Any],
    dout: NDArray | None = None,
    dstates: NDArray | None = None,
) -> tuple[SSDCall, Segments | None]:
    """The checked call, in which packed rows are laid end to end, and its segments if packed."""
    *given, initial = variables
    seq_idx, cu_seqlens, dt_softplus, *limits, _ = constants
    options: Any = {"dt_softplus": dt_softplus}
    if dout is not None:
        options["required"] = _OF_VJP
    if seq_idx is not None and seq_idx.size == 0:  # rows without steps
        seq_idx = None
    packed = seq_idx is not None or cu_seqlens is not None
    if packed or initial is not None:
        _check(given, initial, cu_seqlens, limits)
    if not packed:
        arguments: Any = *given, initial, None, limits, dout, dstates
        return SSDCall(*arguments, **options), None
    x, dt, A, B, C, D, z, dt_bias = given
    if seq_idx is not None:
        expect_seq_idx(seq_idx, x.shape[:2])
    pieces = segments(seq_idx, cu_seqlens, initial)
    x, dt, B, C, z, dout = (_end_to_end(a) for a in (x, dt, B, C, z, dout))
    first, dlast = pieces.begin(initial), pieces.end(dstates)
    arguments = x, dt, A, B, C, D, z, dt_bias, first, pieces.starts, limits, dout, dlast
    return SSDCall(*arguments, **options), pieces


def _check(given: Arrays, initial: NDArray | None, cu_seqlens: Any, limits: Any) -> None:
    """Raise the errors of a packed call, of the tensors as the caller has given them."""
    x, dt, A, B, C, D, z, dt_bias = given
    call = SSDCall(x, dt, A, B, C, D, z, dt_bias, None, cu_seqlens, limits)
    if initial is None:
        return
    rest = call.heads, call.width, call.states
    expected, meaning = {(len(x), *rest)}, "batch"
    if cu_seqlens is not None:
        count = len(cu_seqlens) - 1
        expected, meaning = {(min(1, count), *rest), (count, *rest)}, "1 or sequences"
    if initial.shape not in expected:
        shapes = " or ".join(map(str, sorted(expected)))
        raise ValueError(
            f"initial_states has shape {initial.shape}; expected ({meaning}, H, P, N) = {shapes}"
        )


def _end_to_end(a: NDArray | None) -> NDArray | None:
    """(batch, L, …) -> (1, batch·L, …), a view where strides allow."""
    return a if a is None else a.reshape(1, -1, *a.shape[2:])


def _kept_size(x: Any, B: Any, seq_idx: Any, cu_seqlens: Any) -> int:
    """How many numbers are kept: of states before each chunk of a segment.

    With `seq_idx` there is room for as many segments as chunks, as the size is not to depend on
    data.  States that would take more than twice the memory of x are not kept.
    """
    batch, length, heads, width = x.shape
    if B.shape[-1] > _MOST_KEPT * SSDCall.CHUNK:
        return 0
    if seq_idx is not None:
        slots = 2 * (batch * length // SSDCall.CHUNK) + batch
    elif cu_seqlens is not None:
        slots = length // SSDCall.CHUNK + cu_seqlens.shape[0] - 1
    else:
        slots = batch * -(-length // SSDCall.CHUNK)
    size: int = slots * heads * width * B.shape[-1]
    return size


def _kept(call: SSDCall, memory: NDArray | None) -> NDArray | None:
    """An array for the states in `memory`, if that is enough for them."""
    size = math.prod(call.kept_shape)
    return None if memory is None or size > memory.size else memory[:size].reshape(call.kept_shape)


# ---- the same in PyTorch's operations ------------------------------------------------------------


def _in_steps(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    dt_softplus: bool,
    low: float,
    high: float,
    states: bool,
) -> tuple[Tensor, Tensor]:
    starts = numbers("cu_seqlens", cu_seqlens)
    if not torch.compiler.is_compiling():
        tensors = x, dt, A, B, C, D, z, dt_bias
        _check([shape_of(t) for t in tensors], shape_of(initial_states), starts, (low, high))
    step = dt if dt_bias is None else dt + dt_bias
    step = softplus(step) if dt_softplus else step
    step = step if (low, high) == (-math.inf, math.inf) else step.clamp(low, high)
    B, C = (t.repeat_interleave(x.shape[2] // t.shape[2], 2)[:, :, :, None] for t in (B, C))
    ys, ends = [], []
    for k, (start, stop) in enumerate(pairwise([0, x.shape[1]] if starts is None else starts)):
        h = _before(x, B, initial_states, seq_idx, None if starts is None else k)
        for i in range(start, stop):
            if seq_idx is not None and i > start:
                h = _where(seq_idx[:, i] == seq_idx[:, i - 1], h)
            d = step[:, i, :, None]
            h = torch.exp(d * A[:, None])[..., None] * h + (d * x[:, i])[..., None] * B[:, i]
            ys.append((h * C[:, i]).sum(-1))
        ends.append(h)
    out = torch.stack(ys, 1) if ys else x * 1
    out = out if D is None else out + (D if D.ndim == 2 else D[:, None]) * x
    out = out if z is None else out * (z * torch.sigmoid(z))  # silu has fewer derivatives
    if not states:
        return out, x.new_empty(0)
    return out, torch.cat(ends) * 1 if ends else x.new_empty(0, *x.shape[2:], B.shape[-1])


def _before(
    x: Tensor, B: Tensor, initial_states: Any, seq_idx: Tensor | None, sequence: int | None
) -> Tensor:
    """The states before the first step of each row, or of a sequence of `cu_seqlens`."""
    if initial_states is None or (sequence and len(initial_states) == 1):
        return x.new_zeros(len(x), *x.shape[2:], B.shape[-1])
    if len(initial_states) > len(x):  # one for each sequence
        h: Tensor = initial_states[sequence, None]
        return h
    return _where(seq_idx[:, 0] == 0, initial_states) if seq_idx is not None else initial_states


def _where(condition: Tensor, h: Tensor) -> Tensor:
    """h (batch, H, P, N) of the rows for which the condition holds, zero of the others."""
    return torch.where(condition[:, None, None, None], h, 0.0)
