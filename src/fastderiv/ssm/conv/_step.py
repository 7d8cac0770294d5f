"""`causal_conv1d_update`: steps of the causal convolution, the state in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import (
    F32,
    F64,
    copy_back,
    empty,
)
from ..._core.dispatch import kernels
from ..._core.plain import plain
from .._calls import converted
from ._conv import check_activation, check_weight

if TYPE_CHECKING:
    from .._kernels import Kernels

_kernels: dict[np.dtype, Kernels] = kernels("ssm")
_STEP = ("x", "weight", "bias")
_Arrays = tuple[NDArray, NDArray, NDArray | None]


def causal_conv1d_update(
    x: ArrayLike,
    state: np.ndarray,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    activation: str | None = None,
) -> NDArray:
    """One or several steps of `causal_conv1d`, which update the state in place.

    Argument names, order and semantics are those of ``causal_conv1d_update`` of the package
    ``causal_conv1d``, whose argument ``conv_state`` is `state` here.  Steps taken one by one give
    the same bits as `causal_conv1d` over the whole sequence.

    Parameters
    ----------
    x : array_like, shape (batch, D), (batch, D, S), (D,) or (D, S)
        Input of one step, or of S steps.  Its batch axis is there if that of `state` is.
    state : ndarray, shape (batch, D, W) or (D, W)
        The last W >= K - 1 inputs, the newest last: float32 or float64, writeable, any strides; its
        dtype is the working dtype.  Overwritten with the last W inputs after the steps; if the call
        raises, it is as before.
    weight : array_like, shape (D, K)
    bias : array_like, shape (D,), optional
    activation : None, "silu" or "swish", optional
        The parameters of `causal_conv1d`.

    Returns
    -------
    out : ndarray, shape of `x`

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, a state that is not a writeable float32 or float64
        array, or one that shares memory with another argument or with itself.

    Notes
    -----
    O(batch·D·S·(K + W)) time; memory beyond inputs and outputs is scratch of at most 128 KiB per
    thread for K and W <= 256, growing by 64 bytes with each of them.  Ctrl-C waits for the end of
    the call, so that the state is never half updated.

    References
    ----------
    docs/derivations.md §6.6.

    Examples
    --------
    >>> import numpy as np
    >>> import fastderiv as fd
    >>> state = np.zeros((1, 1))
    >>> for x in [1.0, 2.0, 3.0]:
    ...     print(fd.causal_conv1d_update([x], state, [[1.0, 1.0]]))
    [1.]
    [3.]
    [5.]
    >>> state
    array([[3.]])
    """
    silu = check_activation(activation)
    base, kept = state, state
    arrays: _Arrays = (x, weight, bias)  # type: ignore[assignment]  # or converted
    if not plain(state, arrays[:2], arrays[2:]):
        base, kept, arrays = converted(state, _STEP, arrays, 2)
    inputs, taps, offset = arrays
    dtype = F32 if kept.itemsize == 4 else F64
    _check_shapes(base.shape, inputs, taps, offset)
    out = empty("the result", inputs.shape, dtype)
    _kernels[dtype].convolution_step(
        _as_signal(inputs, base.ndim), kept if base.ndim == 3 else kept[None], taps,
        bias=offset, silu=silu, out=_as_signal(out, base.ndim),
    )  # fmt: skip
    copy_back(kept, base)
    return out


def _as_signal(a: NDArray, axes: int) -> NDArray:
    """An array of the shape of x, as (Bt, D, S), where the state has so many axes."""
    if a.ndim == axes - 1:
        a = a[..., None]
    return a if axes == 3 else a[None]


def _check_shapes(
    shape: tuple[int, ...], x: NDArray, weight: NDArray, bias: NDArray | None
) -> None:
    if len(shape) not in (2, 3):
        raise ValueError(f"state has shape {shape}; expected (batch, D, W) or (D, W)")
    if x.shape[: len(shape) - 1] != shape[:-1] or x.ndim > len(shape):
        of = "(batch, D)" if len(shape) == 3 else "(D,)"
        several = "(batch, D, S)" if len(shape) == 3 else "(D, S)"
        raise ValueError(
            f"x has shape {x.shape}; expected {of} = {shape[:-1]} or {several}, as state has "
            f"shape {shape}"
        )
    taps = check_weight(weight, bias, shape[-2])
    if shape[-1] < taps - 1:
        raise ValueError(
            f"state has shape {shape}; expected its last axis W to be at least K - 1 = {taps - 1}"
        )
