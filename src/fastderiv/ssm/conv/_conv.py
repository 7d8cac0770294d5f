"""`causal_conv1d`, and `ConvCall`: the checked arguments of functions over whole sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import (
    as_dtype,
    copy_back,
    empty,
    expect,
    flag,
)
from ..._core.dispatch import kernels
from .._calls import SequenceCall
from .._sequences import check_starts

if TYPE_CHECKING:
    from .._kernels import Kernels

_kernels: dict[np.dtype, Kernels] = kernels("ssm")
_REQUIRED = ("x", "weight")
_NAMES = (*_REQUIRED, "bias", "initial_state", "dout", "dlast_state")


@overload
def causal_conv1d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    *,
    initial_state: ArrayLike | None = None,
    return_last_state: Literal[False] = False,
    cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
) -> NDArray: ...
@overload
def causal_conv1d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    *,
    initial_state: ArrayLike | None = None,
    return_last_state: Literal[True],
    cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
) -> tuple[NDArray, NDArray]: ...
@overload
def causal_conv1d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    *,
    initial_state: ArrayLike | None = None,
    return_last_state: bool = False,
    cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
) -> NDArray | tuple[NDArray, NDArray]: ...
def causal_conv1d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    *,
    initial_state: ArrayLike | None = None,
    return_last_state: bool = False,
    cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
) -> NDArray | tuple[NDArray, NDArray]:
    r"""The causal depthwise convolution in front of a scan, with bias and activation in one pass.

    For every batch item and channel,

    .. math::
        y_t = \mathrm{act}\Bigl(b + \sum_{k=0}^{K-1} w_k\, x_{t-K+1+k}\Bigr),

    where inputs before the first are those of `initial_state`.  Arguments mean what they mean in
    ``causal_conv1d_fn`` of the package ``causal_conv1d``; there `seq_idx` comes before
    `activation`, and the states are ``initial_states`` and ``return_final_states``.

    Parameters
    ----------
    x : array_like, shape (batch, D, L) or (D, L)
        Input, in any memory order.  Without the batch axis, every other batch axis is dropped too.
    weight : array_like, shape (D, K)
        The taps of each channel, of which the last one meets the newest input; K >= 1.
    bias : array_like, shape (D,), optional
        Added to the sum.
    activation : None, "silu" or "swish", optional
        What is applied to the sum: nothing, or silu, which is swish by another name.
    initial_state : array_like, shape (batch, D, K - 1), optional
        The K - 1 inputs before the first, the newest last; zeros by default.
    return_last_state : bool, optional
        Whether to return the last K - 1 inputs too.
    cu_seqlens : array_like of int, shape (k + 1,), optional
        Boundaries of k sequences packed along L with batch 1, from 0 to L, non-decreasing.  No
        sequence sees another's inputs; `initial_state` and the last state are then (k, D, K - 1).
    out : ndarray, optional
        Where to write the result: exact shape and dtype, any strides, no memory shared with an
        input.

    Returns
    -------
    out : ndarray, shape of `x`
        float32 if every floating argument is, else float64.  In memory, channels are contiguous
        (channels last) if they are closer together in `x` than steps are, otherwise steps are.
    last_state : ndarray, shape (batch, D, K - 1)
        Only if `return_last_state`.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, naming the argument, what was expected and what came.
    MemoryError
        Results or scratch larger than the machine's memory; the message says how many bytes.

    Notes
    -----
    O(batch·D·L·K) time.  Memory beyond inputs and outputs is scratch of at most 128 KiB per thread
    for K <= 256, growing by 128 bytes with K.  Inputs of any strides are read in place (other
    dtypes, byte orders and misaligned arrays, a misaligned `out` too, go through a copy); fastest
    are those where the channels are contiguous, then those where time is, with an `out` like them.

    The bits of the result do not depend on strides or threads, nor on how a sequence is cut into
    pieces that hand on their state.  NaN and infinities stay in their channel, and in the K - 1
    steps behind them.

    References
    ----------
    A. Gu, T. Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023,
    arXiv:2312.00752; docs/derivations.md §6.6.

    Examples
    --------
    A moving sum of two steps:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> x = np.array([[1.0, 2.0, 3.0, 4.0]])
    >>> fd.causal_conv1d(x, [[1.0, 1.0]])
    array([[1., 3., 5., 7.]])

    The same in two halves, carrying the state:

    >>> first, state = fd.causal_conv1d(x[:, :2], [[1.0, 1.0]], return_last_state=True)
    >>> second = fd.causal_conv1d(x[:, 2:], [[1.0, 1.0]], initial_state=state)
    >>> np.hstack([first, second])
    array([[1., 3., 5., 7.]])
    """
    call = ConvCall(x, weight, bias, activation, initial_state, cu_seqlens)
    base = call.like_x("the result") if out is None else call.checked_out(out)
    result = base if out is None else as_dtype(base, call.dtype)
    last = call.new_state() if flag("return_last_state", return_last_state) else None
    call.kernels.convolution(
        call.x, call.weight, call.bias, silu=call.silu, initial_state=call.initial_state,
        cu_seqlens=call.starts, last_state=call.state(last), out=call.signal(result),
    )  # fmt: skip
    if out is not None:
        copy_back(result, base)
        result = out
    return result if last is None else (result, last)


class ConvCall(SequenceCall):
    """The checked arguments of one call.

    They are arrays of one dtype as kernels take them: signals (Bt, D, L), states
    (segments, D, K - 1).  Optional ones may be None and stay None.
    """

    NAMES = _NAMES
    ALWAYS = len(_REQUIRED)
    STATE = "D, K - 1"

    def __init__(
        self,
        x: ArrayLike,
        weight: ArrayLike,
        bias: ArrayLike | None,
        activation: str | None,
        initial_state: ArrayLike | None,
        cu_seqlens: ArrayLike | None,
        dout: ArrayLike | None = None,
        dlast_state: ArrayLike | None = None,
        *,
        required: tuple[str, ...] = _REQUIRED,
    ) -> None:
        given: Any = (x, weight, bias, initial_state, dout, dlast_state)
        arrays = self.take(given, required)
        self.x, self.weight, self.bias, self.initial_state, self.dout, self.dlast_state = arrays
        self.silu = check_activation(activation)
        self.dtype, self.shape = self.x.dtype, self.x.shape
        self.kernels, self.batched = _kernels[self.dtype], len(self.shape) == 3
        if len(self.shape) not in (2, 3):
            raise ValueError(f"x has shape {self.shape}; expected (batch, D, L) or (D, L)")
        if self.dout is not None:
            expect("dout", self.dout, self.shape, "(batch, D, L)" if self.batched else "(D, L)")
        taps = check_weight(self.weight, self.bias, self.shape[-2])
        self.starts = None
        self.state_shape = (*self.shape[:-1], taps - 1)
        if cu_seqlens is not None:
            self.starts, _ = check_starts(cu_seqlens, "x", self.shape, axes=3, time=-1)
            self.state_shape = (len(self.starts) - 1, self.shape[-2], taps - 1)
        self.check_states()
        if not self.batched:
            self.x = self.x[None]
            self.dout = None if self.dout is None else self.dout[None]
            self.initial_state = self.state(self.initial_state)
            self.dlast_state = self.state(self.dlast_state)

    def like_x(self, what: str) -> NDArray:
        """A new array in the caller's shape.

        Channels are contiguous if they are closer together in x than steps are.
        """
        *batch, channels, steps = self.shape
        d, t = (abs(stride) for stride in self.x.strides[1:])
        if 0 < d < t:
            return empty(what, (*batch, steps, channels), self.dtype).swapaxes(-1, -2)
        return empty(what, self.shape, self.dtype)


def check_activation(activation: object) -> bool:
    """Whether it is silu; an error unless it is None or silu, which has two names."""
    if activation is None:
        return False
    if isinstance(activation, str):
        if activation in ("silu", "swish"):
            return True
        raise ValueError(f"activation is {activation!r}; expected None, 'silu' or 'swish'")
    raise TypeError(f"activation is {activation!r}; expected None, 'silu' or 'swish'")


def check_weight(weight: NDArray, bias: NDArray | None, channels: int) -> int:
    """Check weight (D, K) and bias (D,); K."""
    if weight.ndim != 2 or weight.shape[0] != channels or not weight.shape[1]:
        raise ValueError(
            f"weight has shape {weight.shape}; expected (D, K) = ({channels}, K) with K >= 1"
        )
    if bias is not None:
        expect("bias", bias, (channels,), "(D,)")
    return weight.shape[1]
