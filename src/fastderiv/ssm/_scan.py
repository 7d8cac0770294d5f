"""`selective_scan` as users call it, and `ScanCall`, the checked arguments that every function over a whole sequence takes."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._core.arrays import (
    as_arrays,
    as_dtype,
    check_out,
    common,
    copy_back,
    empty,
    expect,
    flag,
    integers,
)
from .._core.dispatch import kernels
from .._core.plain import alike, widest

_kernels = kernels("ssm")
_SCAN = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
_ADJOINTS = ("dout", "dlast_state")
_LOOK = 1 << 24  # boundaries checked between two looks for signals
_OPTIONAL = (*_SCAN[5:], "dlast_state")


@overload
def selective_scan(
    u: ArrayLike, delta: ArrayLike, A: ArrayLike, B: ArrayLike, C: ArrayLike, D: ArrayLike | None = None,
    z: ArrayLike | None = None, delta_bias: ArrayLike | None = None, delta_softplus: bool = False,
    return_last_state: Literal[False] = False, *, initial_state: ArrayLike | None = None, cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
) -> NDArray: ...  # fmt: skip
@overload
def selective_scan(
    u: ArrayLike, delta: ArrayLike, A: ArrayLike, B: ArrayLike, C: ArrayLike, D: ArrayLike | None = None,
    z: ArrayLike | None = None, delta_bias: ArrayLike | None = None, delta_softplus: bool = False,
    *, return_last_state: Literal[True], initial_state: ArrayLike | None = None, cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
) -> tuple[NDArray, NDArray]: ...  # fmt: skip
@overload
def selective_scan(
    u: ArrayLike, delta: ArrayLike, A: ArrayLike, B: ArrayLike, C: ArrayLike, D: ArrayLike | None,
    z: ArrayLike | None, delta_bias: ArrayLike | None, delta_softplus: bool,
    return_last_state: Literal[True], *, initial_state: ArrayLike | None = None, cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
) -> tuple[NDArray, NDArray]: ...  # fmt: skip
@overload
def selective_scan(
    u: ArrayLike, delta: ArrayLike, A: ArrayLike, B: ArrayLike, C: ArrayLike, D: ArrayLike | None = None,
    z: ArrayLike | None = None, delta_bias: ArrayLike | None = None, delta_softplus: bool = False,
    return_last_state: bool = False, *, initial_state: ArrayLike | None = None, cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
) -> NDArray | tuple[NDArray, NDArray]: ...  # fmt: skip
def selective_scan(
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
) -> NDArray | tuple[NDArray, NDArray]:
    r"""The selective scan of Mamba (S6), in one fused pass.

    For every batch item and channel, with :math:`\Delta_l = \mathrm{softplus}(\delta_l + b)` (or :math:`\delta_l + b`),

    .. math::
        h_l = e^{\Delta_l A} \odot h_{l-1} + \Delta_l B_l u_l, \qquad y_l = (C_l \cdot h_l + D u_l)\,\mathrm{silu}(z_l).

    Argument names, order and semantics are those of ``mamba_ssm``'s ``selective_scan_fn``.

    Parameters
    ----------
    u : array_like, shape (batch, D, L) or (D, L)
        Input.  Without the batch axis, every other batch axis is dropped too.
    delta : array_like, shape of `u`
        Step sizes, before bias and softplus.
    A : array_like, shape (D, N)
        Continuous-time transition; negative where the state is to decay.
    B, C : array_like, shape (D, N), (batch, N, L) or (batch, G, N, L)
        Input and output coefficients: constant, varying in time, or shared by groups of ``D // G`` consecutive channels.
        Unbatched: a 2-D array is always the constant (D, N); one varying in time is (G, N, L), ``G = 1`` included.
    D : array_like, shape (D,), optional
        Skip connection.
    z : array_like, shape of `u`, optional
        Gate: the result is multiplied by silu(z).
    delta_bias : array_like, shape (D,), optional
        Added to `delta`.
    delta_softplus : bool, optional
        Whether softplus is applied to ``delta + delta_bias``.
    return_last_state : bool, optional
        Whether to return the state after the last step too.
    initial_state : array_like, shape (batch, D, N), optional
        State before the first step; zeros by default.
    cu_seqlens : array_like of int, shape (k + 1,), optional
        Boundaries of k sequences packed along L with batch 1, from 0 to L, non-decreasing.  The state restarts at each of
        them; `initial_state` and the last state are then (k, D, N).
    out : ndarray, optional
        Where to write the result: exact shape and dtype, any strides, no memory shared with an input.

    Returns
    -------
    out : ndarray, shape of `u`
        float32 if every floating argument is, else float64.
    last_state : ndarray, shape (batch, D, N)
        Only if `return_last_state`.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, naming the argument, what was expected and what came.
    MemoryError
        Results or scratch larger than the machine's memory; the message says how many bytes.

    Notes
    -----
    O(batch·D·L·N) time.  Memory beyond inputs and outputs is scratch of some tens of KiB per thread, growing by 320 bytes with
    N, by up to 4 KiB where B or C varies in time and is not contiguous along it: no array of batch·D·L·N elements is formed,
    and inputs of any strides are read in place (other dtypes, byte orders and misaligned arrays, a misaligned `out` too, go
    through a copy).  The bits of the result do not depend on strides or threads.

    float64 is within 1e-12, float32 within 2e-5 of the exact result, relative to its largest magnitude; typically 1e-15 and
    3e-7.  The state itself has the working precision: where it decays by less than 1e-3 a step and its increments all have one
    sign, their rounding errors may add up beyond that over thousands of float32 steps, hundreds of thousands in float64.

    References
    ----------
    A. Gu, T. Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv:2312.00752.

    Examples
    --------
    One channel that forgets with rate 1 and is fed a single impulse:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> u = np.array([[1.0, 0.0, 0.0, 0.0]])
    >>> delta = np.full((1, 4), np.log(2))
    >>> one = np.ones((1, 1))
    >>> fd.selective_scan(u, delta, -one, one, one) / np.log(2)
    array([[1.   , 0.5  , 0.25 , 0.125]])

    The same in two halves, carrying the state:

    >>> first, state = fd.selective_scan(u[:, :2], delta[:, :2], -one, one, one, return_last_state=True)
    >>> second = fd.selective_scan(u[:, 2:], delta[:, 2:], -one, one, one, initial_state=state)
    >>> np.hstack([first, second]) / np.log(2)
    array([[1.   , 0.5  , 0.25 , 0.125]])
    """
    call = ScanCall((u, delta, A, B, C, D, z, delta_bias, initial_state), cu_seqlens)
    base = call.checked_out(out)
    last = call.new_state() if flag("return_last_state", return_last_state) else None
    call.run(base, last, flag("delta_softplus", delta_softplus))
    result = base if out is None else out
    return result if last is None else (result, last)


class ScanCall:
    """The checked arguments of one scan or of its adjoint, and their kernels; `without` names one not taken, u or C."""

    C: Any  # None `without` it
    dout: NDArray | None
    dlast: NDArray | None

    def __init__(
        self,
        arguments: tuple[ArrayLike | None, ...],
        cu_seqlens: ArrayLike | None = None,
        adjoints: tuple[ArrayLike | None, ...] = (),  # dout, dlast_state
        without: str = "",
    ) -> None:
        self.given: Any = (*arguments, *adjoints)
        alikes = self.given
        if not alike(self.given, 5) or (adjoints and adjoints[0] is None):
            names = _SCAN + _ADJOINTS[: len(adjoints)]
            self.given = as_arrays(names, self.given, optional=(*_OPTIONAL, without))
            alikes = common(self.given)
        self.u, self.delta, self.A, B, C, self.D, self.z, self.bias, self.first, *adjoint = alikes
        self.dout, self.dlast = adjoint or (None, None)
        self.dtype, self.shape = self.delta.dtype, (self.delta if self.u is None else self.u).shape
        self.batched = len(self.shape) == 3
        self._check_sequences()
        states = check_parameters(self.A, self.shape[-2], D=self.D, delta_bias=self.bias)
        self.starts, self.longest = None, self.shape[-1]
        if cu_seqlens is not None:
            self.starts, self.longest = _check_starts(cu_seqlens, self.shape)
        self.state_shape, meaning = (
            (*self.shape[:-1], states),
            "(batch, D, N)" if self.batched else "(D, N)",
        )
        if self.starts is not None:
            self.state_shape, meaning = (
                (len(self.starts) - 1, self.shape[-2], states),
                "(sequences, D, N)",
            )
        for name, state in ("initial_state", self.first), ("dlast_state", self.dlast):
            if state is not None:
                expect(name, state, self.state_shape, meaning)
        self.B = _check_coefficient("B", B, self.shape, states)
        self.C = None if C is None else _check_coefficient("C", C, self.shape, states)

    def _check_sequences(self) -> None:
        if len(self.shape) not in (2, 3):
            name = "delta" if self.u is None else "u"
            raise ValueError(f"{name} has shape {self.shape}; expected (batch, D, L) or (D, L)")
        for name, array in ("delta", self.delta), ("z", self.z), ("dout", self.dout):
            if array is not None:
                expect(name, array, self.shape, "(batch, D, L)" if self.batched else "(D, L)")

    def checked_out(self, out: NDArray | None) -> NDArray:
        if out is None:
            return empty("the result", self.shape, self.dtype)
        return check_out(out, self.shape, self.dtype, zip(_SCAN, self.given, strict=True))

    def new_state(self) -> NDArray:
        return empty("the state", self.state_shape, self.dtype)

    def run(self, out: NDArray | None, last: NDArray | None, softplus: bool) -> None:
        """OUT out, last."""
        y = None if out is None else as_dtype(out, self.dtype)
        self.kernel.scan(*self.inputs(softplus), self.state(last), self.starts, self.signal(y))
        if out is not None and y is not None:
            copy_back(y, out)

    @property
    def kernel(self) -> Any:
        return _kernels[self.dtype]

    def inputs(self, softplus: bool) -> tuple[Any, ...]:
        """The scan's arguments as kernels take them."""
        u, delta, z = self.signal(self.u), self.signal(self.delta), self.signal(self.z)
        return (
            u,
            delta,
            self.A,
            self.B,
            self.C,
            self.D,
            z,
            self.bias,
            softplus,
            self.state(self.first),
        )

    def signal(self, a: NDArray | None) -> NDArray | None:
        """An array of u's shape, with the batch axis that kernels want."""
        return a if a is None or self.batched else a[None]

    def state(self, a: NDArray | None) -> NDArray | None:
        """A state as (segments, D, N)."""
        return a if a is None or self.batched or self.starts is not None else a[None]


def check_parameters(A: NDArray, channels: int, **per_channel: NDArray | None) -> int:
    """Check A (D, N) and arrays (D,); N."""
    if A.ndim != 2 or A.shape[0] != channels:
        raise ValueError(f"A has shape {A.shape}; expected (D, N) = ({channels}, N)")
    for name, array in per_channel.items():
        if array is not None:
            expect(name, array, (channels,), "(D,)")
    return A.shape[1]


def _check_coefficient(name: str, a: NDArray, shape: tuple[int, ...], states: int) -> NDArray:
    """B or C as (D, N) or (batch, G, N, L)."""
    channels, steps = shape[-2:]
    batch = shape[:-2]
    if a.ndim == 2 and a.shape == (channels, states):
        return a
    if a.ndim == 3 and batch and a.shape == (*batch, states, steps):
        return a[:, None]
    grouped = a if batch else a[None]
    if grouped.ndim == 4:
        groups = grouped.shape[1]
        if (
            grouped.shape == (*(batch or (1,)), groups, states, steps)
            and groups
            and channels % groups == 0
        ):
            return grouped
    whole = f"(batch, N, L) = {(*batch, states, steps)}, (batch, G, N, L)" if batch else "(G, N, L)"
    at = ", ".join(map(str, (*batch, "G", states, steps)))
    raise ValueError(
        f"{name} has shape {a.shape}; expected {whole} = ({at}) with G dividing D = {channels}, or (D, N) = {(channels, states)}"
    )


def _check_starts(cu_seqlens: ArrayLike, shape: tuple[int, ...]) -> tuple[NDArray[np.intp], int]:
    """The boundaries, a copy of our own, and the length of the longest sequence."""
    starts = integers("cu_seqlens", cu_seqlens)
    steps = shape[-1]
    if len(shape) == 3 and shape[0] != 1:
        raise ValueError(
            f"cu_seqlens packs sequences along L and needs batch 1; u has shape {shape}"
        )
    if starts.ndim != 1 or starts.size == 0:
        raise ValueError(f"cu_seqlens has shape {starts.shape}; expected (sequences + 1,)")
    longest = 0
    for first in range(0, len(starts) - 1, _LOOK):
        width = widest(starts[first : first + _LOOK + 1])
        if width < 0:
            break
        longest = max(longest, width)
    else:
        if starts[0] == 0 and starts[-1] == steps:
            return starts, longest
    expected = f"integers from 0 to L = {steps}, non-decreasing"
    raise ValueError(f"cu_seqlens is {starts}; expected {expected}")
