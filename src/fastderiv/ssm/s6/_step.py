"""`selective_state_update`: one step of the scan, the state in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import (
    F32,
    F64,
    copy_back,
    empty,
    expect,
    flag,
)
from ..._core.dispatch import kernels
from ..._core.plain import plain
from .._calls import converted
from ._scan import check_parameters

if TYPE_CHECKING:
    from .._kernels import Kernels

_kernels: dict[np.dtype, Kernels] = kernels("ssm")
_STEP = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")
_Optional = NDArray | None
_Arrays = tuple[NDArray, NDArray, NDArray, NDArray, NDArray, _Optional, _Optional, _Optional]


def selective_state_update(
    state: np.ndarray,
    x: ArrayLike,
    dt: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    dt_bias: ArrayLike | None = None,
    dt_softplus: bool = False,
) -> NDArray:
    """One step of `selective_scan`, which updates the state in place, as a decoder takes it.

    Argument names, order and semantics are those of ``mamba_ssm``'s ``selective_state_update``.
    Steps taken one by one give the same bits as `selective_scan` over the whole sequence.

    Parameters
    ----------
    state : ndarray, shape (batch, D, N) or (D, N)
        float32 or float64, writeable, any strides; its dtype is the working dtype.  Without the
        batch axis, every other batch axis is dropped too.  Overwritten with the new state; if the
        call raises, it is as before.
    x, dt : array_like, shape (batch, D)
        Input, and step size before bias and softplus.
    A : array_like, shape (D, N)
    B, C : array_like, shape (batch, N) or (batch, G, N)
        Unbatched: (N,) or (G, N).
    D : array_like, shape (D,), optional
    z : array_like, shape (batch, D), optional
    dt_bias : array_like, shape (D,), optional
    dt_softplus : bool, optional
        The parameters of `selective_scan` at one step.

    Returns
    -------
    out : ndarray, shape (batch, D)

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, a state that is not a writeable float32 or float64
        array, or one that shares memory with another argument or with itself.

    Notes
    -----
    O(batch·D·N) time; memory beyond inputs and outputs is less than 8 KiB per thread.  Ctrl-C waits
    for the end of the step, so that the state is never half updated.

    References
    ----------
    docs/derivations.md §1.1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastderiv as fd
    >>> state = np.zeros((1, 1))
    >>> one = np.ones(1)
    >>> for x in [1.0, 0.0, 0.0]:
    ...     y = fd.selective_state_update(state, [x], one, -np.log(2) * one[:, None], one, one)
    ...     print(y)
    [1.]
    [0.5]
    [0.25]
    """
    arrays: _Arrays = (x, dt, A, B, C, D, z, dt_bias)  # type: ignore[assignment]  # or converted
    base, h = state, state
    if not plain(state, arrays[:5], arrays[5:]):
        base, h, arrays = converted(state, _STEP, arrays, 5)
    dtype = F32 if h.itemsize == 4 else F64
    try:
        out = np.empty(base.shape[:-1], dtype)
        # The only door whose arguments go by position: names would cost 0.3 microseconds, a fifth
        # of the smallest call.  The kernel compares the shapes.
        _kernels[dtype].step(h, *arrays, flag("dt_softplus", dt_softplus), out)
    except (MemoryError, TypeError, ValueError):
        _check_shapes(base.shape, *arrays)
        empty("the result", base.shape[:-1], dtype)
        raise
    copy_back(h, base)
    return out


def _check_shapes(
    shape: tuple[int, ...],
    x: NDArray,
    dt: NDArray,
    A: NDArray,
    B: NDArray,
    C: NDArray,
    D: NDArray | None,
    z: NDArray | None,
    dt_bias: NDArray | None,
) -> None:
    if len(shape) not in (2, 3):
        raise ValueError(f"state has shape {shape}; expected (batch, D, N) or (D, N)")
    for name, array in ("x", x), ("dt", dt), ("z", z):
        if array is not None:
            expect(name, array, shape[:-1], "(batch, D)" if len(shape) == 3 else "(D,)")
    if check_parameters(A, shape[-2], D=D, dt_bias=dt_bias) != shape[-1]:
        raise ValueError(f"A has shape {A.shape}; expected (D, N) = {shape[-2:]}")
    _check_coefficient("B", B, shape)
    _check_coefficient("C", C, shape)


def _check_coefficient(name: str, a: NDArray, shape: tuple[int, ...]) -> None:
    """B or C of one step: (batch, N) or (batch, G, N)."""
    batch, (channels, states) = shape[:-2], shape[-2:]
    if a.shape == (*batch, states):
        return
    if a.ndim == len(shape) and a.shape[:-2] == batch and a.shape[-1] == states:
        groups = a.shape[-2]
        if groups and channels % groups == 0:
            return
    first = "(batch, N)" if batch else "(N,)"
    at = ", ".join(map(str, (*batch, "G", states)))
    raise ValueError(
        f"{name} has shape {a.shape}; expected {first} = {(*batch, states)} or "
        f"({'batch, ' * len(batch)}G, N) = ({at}) with G dividing D = {channels}"
    )
