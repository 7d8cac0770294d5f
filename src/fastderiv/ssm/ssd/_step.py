"""`ssd_state_update`: one step of the SSD scan, the state in place."""

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
from ._call import check_heads

if TYPE_CHECKING:
    from .._kernels import Kernels

_kernels: dict[np.dtype, Kernels] = kernels("ssm")
_STEP = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")
_Optional = NDArray | None
_Arrays = tuple[NDArray, NDArray, NDArray, NDArray, NDArray, _Optional, _Optional, _Optional]


def ssd_state_update(
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
    r"""One step of `ssd_scan`, which updates the state in place, as a decoder takes it.

    With :math:`\Delta = \mathrm{softplus}(dt + b)` (or :math:`dt + b`),

    .. math::
        h \leftarrow e^{\Delta A} h + \Delta\, x \otimes B, \qquad
        y = (h\, C + D\, x) \odot \mathrm{silu}(z)

    for every head, where h is (P, N), x and y (P,), B and C (N,).

    Parameters
    ----------
    state : ndarray, shape (batch, H, P, N) or (H, P, N)
        float32 or float64, writeable, any strides; its dtype is the working dtype.  Without the
        batch axis, every other batch axis is dropped too.  Overwritten with the new state; if the
        call raises, it is as before.
    x : array_like, shape (batch, H, P)
    dt : array_like, shape (batch, H)
        Step size before bias and softplus.
    A : array_like, shape (H,)
    B, C : array_like, shape (batch, G, N) or (batch, N)
        Head h takes group h // (H // G); without G there is one group.
    D : array_like, shape (H,) or (H, P), optional
    z : array_like, shape (batch, H, P), optional
    dt_bias : array_like, shape (H,), optional
    dt_softplus : bool, optional
        The parameters of `ssd_scan` at one step.

    Returns
    -------
    out : ndarray, shape (batch, H, P)

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, a state that is not a writeable float32 or float64
        array, or one that shares memory with another argument or with itself.

    Notes
    -----
    O(batch·H·P·N) time: a state that is contiguous along N is read and written once, at the speed
    of memory.  Memory beyond inputs and outputs is 8 KiB per thread, growing by 8 bytes with N in
    float32, by 16 in float64.  Ctrl-C waits for the end of the step, so that the state is never
    half updated.

    The result is that of `ssd_scan` up to rounding.  As in ``mamba_ssm``'s
    ``selective_state_update``, there is no ``dt_limit``: a negative Δ, which `ssd_scan` clamps to 0
    by default, is taken as it is.

    References
    ----------
    T. Dao, A. Gu, "Transformers are SSMs", 2024, arXiv:2405.21060; docs/derivations.md §6.5.

    Examples
    --------
    >>> import numpy as np
    >>> import fastderiv as fd
    >>> state = np.zeros((1, 1, 1))
    >>> one = np.ones((1, 1))
    >>> for x in [1.0, 0.0, 0.0]:
    ...     y = fd.ssd_state_update(state, [[x]], [1.0], [-np.log(2)], one, one)
    ...     print(y)
    [[1.]]
    [[0.5]]
    [[0.25]]
    """
    arrays: _Arrays = (x, dt, A, B, C, D, z, dt_bias)  # type: ignore[assignment]  # or converted
    base, h = state, state
    if not plain(state, arrays[:5], arrays[5:]):
        base, h, arrays = converted(state, _STEP, arrays, 5)
    dtype = F32 if h.itemsize == 4 else F64
    try:
        out = np.empty(base.shape[:-1], dtype)
        # By position, as in `selective_state_update`: names would cost a fifth of a small call.
        # The kernel compares the shapes.
        _kernels[dtype].ssd_step(h, *arrays, flag("dt_softplus", dt_softplus), out)
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
    if len(shape) not in (3, 4):
        raise ValueError(f"state has shape {shape}; expected (batch, H, P, N) or (H, P, N)")
    batch = "batch, " * (len(shape) - 3)
    for name, array in ("x", x), ("z", z):
        if array is not None:
            expect(name, array, shape[:-1], f"({batch}H, P)")
    expect("dt", dt, shape[:-2], f"({batch}H)" if batch else "(H,)")
    check_heads(*shape[-3:-1], A=A, D=D, dt_bias=dt_bias)
    if _groups("B", B, shape) != _groups("C", C, shape):
        raise ValueError(f"C has shape {C.shape}; expected the groups of B, {B.shape}")


def _groups(name: str, a: NDArray, shape: tuple[int, ...]) -> int:
    """The groups of B or C at one step, (batch, G, N) or (batch, N), which is checked."""
    batch, heads, states = shape[:-3], shape[-3], shape[-1]
    if a.shape == (*batch, states):
        return 1
    if a.ndim == len(batch) + 2 and a.shape[:-2] == batch and a.shape[-1] == states:
        groups = a.shape[-2]
        if groups and heads % groups == 0:
            return groups
    first = "(batch, N)" if batch else "(N,)"
    at = ", ".join(map(str, (*batch, "G", states)))
    raise ValueError(
        f"{name} has shape {a.shape}; expected {first} = {(*batch, states)} or "
        f"({'batch, ' * len(batch)}G, N) = ({at}) with G dividing H = {heads}"
    )
