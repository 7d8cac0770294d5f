"""`selective_scan`, and `ScanCall`: the checked arguments of functions over whole sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import (
    as_dtype,
    copy_back,
    expect,
    flag,
)
from ..._core.cache import Cache
from ..._core.dispatch import kernels
from .._calls import SequenceCall
from .._sequences import check_starts
from ._cache import Kept, cache_of, checked, kept_of, new_kept

if TYPE_CHECKING:
    from .._kernels import Kernels

_kernels: dict[np.dtype, Kernels] = kernels("ssm")
_REQUIRED = ("u", "delta", "A", "B", "C")
_ALWAYS = len(_REQUIRED)
Result = NDArray | tuple[NDArray, NDArray] | tuple[NDArray, Cache] | tuple[NDArray, NDArray, Cache]
_NAMES = (*_REQUIRED, "D", "z", "delta_bias", "initial_state", "dout", "dlast_state")


@overload
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
    return_last_state: Literal[False] = False,
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
    return_cache: Literal[False] = False,
) -> NDArray: ...
@overload
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
    return_last_state: Literal[False] = False,
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
    return_cache: Literal[True],
) -> tuple[NDArray, Cache]: ...
@overload
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
    *,
    return_last_state: Literal[True],
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
    return_cache: Literal[False] = False,
) -> tuple[NDArray, NDArray]: ...
@overload
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
    *,
    return_last_state: Literal[True],
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
    return_cache: Literal[True],
) -> tuple[NDArray, NDArray, Cache]: ...
@overload
def selective_scan(
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None,
    z: ArrayLike | None,
    delta_bias: ArrayLike | None,
    delta_softplus: bool,
    return_last_state: Literal[True],
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
    return_cache: Literal[False] = False,
) -> tuple[NDArray, NDArray]: ...
@overload
def selective_scan(
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None,
    z: ArrayLike | None,
    delta_bias: ArrayLike | None,
    delta_softplus: bool,
    return_last_state: Literal[True],
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
    return_cache: Literal[True],
) -> tuple[NDArray, NDArray, Cache]: ...
@overload
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
    return_cache: Literal[False] = False,
) -> NDArray | tuple[NDArray, NDArray]: ...
@overload
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
    return_cache: bool = False,
) -> Result: ...
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
    return_cache: bool = False,
) -> Result:
    r"""The selective scan of Mamba (S6), in one fused pass.

    For every batch item and channel, with :math:`\Delta_l = \mathrm{softplus}(\delta_l + b)`
    (or :math:`\delta_l + b`),

    .. math::
        h_l = e^{\Delta_l A} \odot h_{l-1} + \Delta_l B_l u_l, \qquad
        y_l = (C_l \cdot h_l + D u_l)\,\mathrm{silu}(z_l).

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
        Input and output coefficients: constant, varying in time, or shared by groups of ``D // G``
        consecutive channels.  Unbatched: a 2-D array is always the constant (D, N); one varying in
        time is (G, N, L), ``G = 1`` included.
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
        Boundaries of k sequences packed along L with batch 1, from 0 to L, non-decreasing.  The
        state restarts at each of them; `initial_state` and the last state are then (k, D, N).
    out : ndarray, optional
        Where to write the result: exact shape and dtype, any strides, no memory shared with an
        input.
    return_cache : bool, optional
        Whether to return also what `selective_scan_vjp` needs.  Without a cache it runs the scan
        once more.

    Returns
    -------
    out : ndarray, shape of `u`
        float32 if every floating argument is, else float64.
    last_state : ndarray, shape (batch, D, N)
        Only if `return_last_state`.
    cache : object
        Only if `return_cache`.  It is opaque and immutable, can be used any number of times with
        the same arguments, from several threads too, and cannot be pickled.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, naming the argument, what was expected and what came.
    MemoryError
        Results or scratch larger than the machine's memory; the message says how many bytes.

    Notes
    -----
    O(batch·D·L·N) time.  Memory beyond inputs and outputs is scratch of some tens of KiB per
    thread, growing by 320 bytes with N, by up to 4 KiB where B or C varies in time and is not
    contiguous along it: no array of batch·D·L·N elements is formed, and inputs of any strides are
    read in place (other dtypes, byte orders and misaligned arrays, a misaligned `out` too, go
    through a copy).  The bits of the result do not depend on strides or threads.

    A cache holds the states before every K steps: batch·D·N·L/K numbers.  K is 32, 64 or 128, the
    least for which that is at most 15 % of u, delta, z and the result; beyond N = 64 (48 without z)
    it is 128, and the cache grows with N.  With it, a scan takes about 5 % longer.  It also holds
    checksums of all arguments, by which `selective_scan_vjp` recognises a cache of other ones; for
    these, A, B, C and `initial_state` are copied, one at a time, where they are not C-contiguous.
    Other directions are views: ``u[..., ::-1]`` and so on for all that vary in time is scanned from
    the end, and transposed images by columns (``examples/directions.py``).

    float64 is within 1e-12, float32 within 2e-5 of the exact result, relative to its largest
    magnitude; typically 1e-15 and 3e-7.  The state itself has the working precision: where it
    decays by less than 1e-3 a step and its increments all have one sign, their rounding errors may
    add up beyond that over thousands of float32 steps, hundreds of thousands in float64.

    References
    ----------
    A. Gu, T. Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023,
    arXiv:2312.00752.

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

    >>> rest = (-one, one, one)
    >>> first, state = fd.selective_scan(u[:, :2], delta[:, :2], *rest, return_last_state=True)
    >>> second = fd.selective_scan(u[:, 2:], delta[:, 2:], *rest, initial_state=state)
    >>> np.hstack([first, second]) / np.log(2)
    array([[1.   , 0.5  , 0.25 , 0.125]])

    Keeping what the gradients need:

    >>> y, cache = fd.selective_scan(u, delta, *rest, return_cache=True)
    >>> fd.selective_scan_vjp(y, u, delta, *rest, cache=cache).du.shape
    (1, 4)
    """
    call = ScanCall(u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens)
    base = call.new_result() if out is None else call.checked_out(out)
    result = base if out is None else as_dtype(base, call.dtype)
    last = call.new_state() if flag("return_last_state", return_last_state) else None
    kept = checked(call.new_kept()) if flag("return_cache", return_cache) else None
    softplus = flag("delta_softplus", delta_softplus)
    call.scan(result, last, softplus, kept)
    if out is not None:
        copy_back(result, base)
        result = out
    results = result, last, None if kept is None else cache_of(call, kept, softplus)
    given: Any = tuple(a for a in results if a is not None)
    return result if len(given) == 1 else given


class ScanCall(SequenceCall):
    """The checked arguments of one call: of a scan, its adjoint, or what takes some of theirs.

    They are arrays of one dtype as kernels take them: signals (Bt, D, L), states (segments, D, N),
    B and C (D, N) or (Bt, G, N, L).  Those that are not `required` may be None and stay None.
    """

    NAMES = _NAMES
    ALWAYS = _ALWAYS
    STATE = "D, N"

    def __init__(
        self,
        u: ArrayLike | None,
        delta: ArrayLike,
        A: ArrayLike,
        B: ArrayLike,
        C: ArrayLike | None,
        D: ArrayLike | None = None,
        z: ArrayLike | None = None,
        delta_bias: ArrayLike | None = None,
        initial_state: ArrayLike | None = None,
        cu_seqlens: ArrayLike | None = None,
        dout: ArrayLike | None = None,
        dlast_state: ArrayLike | None = None,
        *,
        required: tuple[str, ...] = _REQUIRED,
    ) -> None:
        given: Any = (u, delta, A, B, C, D, z, delta_bias, initial_state, dout, dlast_state)
        self.u, self.delta, self.A, self.B, self.C, self.D, self.z, *arrays = self.take(
            given, required
        )
        self.delta_bias, self.initial_state, self.dout, self.dlast_state = arrays
        self.dtype, self.shape = self.delta.dtype, (self.delta if self.u is None else self.u).shape
        self.kernels, self.batched = _kernels[self.dtype], len(self.shape) == 3
        self._check_signals()
        states = check_parameters(self.A, self.shape[-2], D=self.D, delta_bias=self.delta_bias)
        self.starts = None
        self.longest = self.shape[-1]
        self.state_shape = (*self.shape[:-1], states)
        if cu_seqlens is not None:
            self.starts, self.longest = check_starts(cu_seqlens, "u", self.shape, axes=3, time=-1)
            self.state_shape = (len(self.starts) - 1, self.shape[-2], states)
        if self.initial_state is not None or self.dlast_state is not None:
            self.check_states()
        self.coefficient_shapes = self.B.shape, None if self.C is None else self.C.shape
        self.B = _check_coefficient("B", self.B, self.shape, states)
        self.C = None if self.C is None else _check_coefficient("C", self.C, self.shape, states)
        if not self.batched:
            self._add_batch_axis()

    def _check_signals(self) -> None:
        if len(self.shape) not in (2, 3):
            name = "delta" if self.u is None else "u"
            raise ValueError(f"{name} has shape {self.shape}; expected (batch, D, L) or (D, L)")
        for name, array in ("delta", self.delta), ("z", self.z), ("dout", self.dout):
            if array is not None:
                expect(name, array, self.shape, "(batch, D, L)" if self.batched else "(D, L)")

    def _add_batch_axis(self) -> None:
        self.u = None if self.u is None else self.u[None]
        self.delta = self.delta[None]
        self.z = None if self.z is None else self.z[None]
        self.dout = None if self.dout is None else self.dout[None]
        self.initial_state = self.state(self.initial_state)
        self.dlast_state = self.state(self.dlast_state)

    def new_kept(self) -> Kept:
        """An array for the states that the adjoint needs."""
        return new_kept(self)

    def kept(self, states: NDArray) -> Kept:
        """States that the scan of the same arguments has left in such an array."""
        return kept_of(self, states)

    def scan(
        self,
        out: NDArray | None,
        last_state: NDArray | None,
        delta_softplus: bool,
        kept: Kept | None = None,
    ) -> None:
        """OUT out, last_state: arrays in the caller's shapes, or None; kept."""
        states, span, checks = kept or Kept()
        self.kernels.scan(
            self.u, self.delta, self.A, B=self.B, C=self.C, D=self.D, z=self.z,
            delta_bias=self.delta_bias, delta_softplus=delta_softplus,
            initial_state=self.initial_state, cu_seqlens=self.starts,
            last_state=self.state(last_state), out=self.signal(out), states=states,
            span=span, checks=checks,
        )  # fmt: skip


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
        f"{name} has shape {a.shape}; expected {whole} = ({at}) with G dividing D = {channels}, "
        f"or (D, N) = {(channels, states)}"
    )
