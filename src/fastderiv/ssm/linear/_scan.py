"""`linear_scan`, and `LinearCall`: the checked arguments of the recurrence and of its adjoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import (
    as_dtype,
    copy_back,
    empty,
    expect,
    flag,
    index,
)
from ..._core.dispatch import kernels
from .._calls import ArrayCall

if TYPE_CHECKING:
    from .._kernels import Kernels

_kernels: dict[np.dtype, Kernels] = kernels("ssm")
_NAMES = ("a", "b", "initial_state", "dout", "dlast_state")


@overload
def linear_scan(
    a: ArrayLike,
    b: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    initial_state: ArrayLike | None = None,
    reverse: bool = False,
    return_last_state: Literal[False] = False,
    out: np.ndarray | None = None,
) -> NDArray: ...
@overload
def linear_scan(
    a: ArrayLike,
    b: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    initial_state: ArrayLike | None = None,
    reverse: bool = False,
    return_last_state: Literal[True],
    out: np.ndarray | None = None,
) -> tuple[NDArray, NDArray]: ...
@overload
def linear_scan(
    a: ArrayLike,
    b: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    initial_state: ArrayLike | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
    out: np.ndarray | None = None,
) -> NDArray | tuple[NDArray, NDArray]: ...
def linear_scan(
    a: ArrayLike,
    b: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    initial_state: ArrayLike | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
    out: np.ndarray | None = None,
) -> NDArray | tuple[NDArray, NDArray]:
    r"""The linear recurrence :math:`h_t = a_t h_{t-1} + b_t`, element by element along an axis.

    With `reverse` it runs from the end, :math:`h_t = a_t h_{t+1} + b_t`.

    Parameters
    ----------
    a : array_like
        Factors, of one of three shapes, where nothing is broadcast: that of `b`; that of `b`
        without `axis`, one factor for each recurrence; or (), one for all.
    b : array_like, at least 1-D
        What is added at each step.
    axis : int, optional
        The axis of `b` that is time; the last by default.
    initial_state : array_like, shape of `b` without `axis`, optional
        The state before the first step, or behind the last one with `reverse`; zeros by default.
    reverse : bool, optional
        Whether to run from the end of `axis` to its start.
    return_last_state : bool, optional
        Whether to return the state after the step that is taken last, too: h at the end of `axis`,
        or at index 0 with `reverse`.
    out : ndarray, optional
        Where to write the result: exact shape and dtype, any strides, no memory shared with an
        input.

    Returns
    -------
    out : ndarray, shape of `b`
        h at every step, its axes in memory in the order of those of `b`.  float32 if `a`, `b` and
        `initial_state` are, else float64; scalars do not count, so that a Python number `a` is
        rounded to float32 where `b` is float32.
    last_state : ndarray, shape of `b` without `axis`
        Only if `return_last_state`; a NumPy scalar if `b` is 1-D.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, naming the argument, what was expected and what came.
    AxisError
        `b` has no such axis (a ValueError and an IndexError, as in NumPy).
    MemoryError
        A result larger than the machine's memory; the message says how many bytes.

    See Also
    --------
    linear_scan_vjp : The gradients.
    selective_scan : The recurrence of Mamba, whose factors depend on step sizes.

    Notes
    -----
    Every element is ``fma(a, h, b)``, one after the other: product and sum are rounded once, where
    the CPU has the operation (x86-64-v3 and later), in the order of the definition.  Nothing is
    reordered, so that the bits are those of a plain loop, for any strides, axis and number of
    threads, and a sequence can be cut anywhere: pass the last state of one piece as the initial
    state of the next.  NaN and infinities go where IEEE arithmetic takes them, and never to another
    recurrence.

    A plain loop has its rounding errors, too: each state has a new one of half an ulp, and those
    before decay as the state does.  If :math:`|a| \le 1 - \delta` they add up to at most
    :math:`1/\delta` half ulps of the largest state; for :math:`|a| = 1`, a running sum, they grow
    with the number of steps.

    O(size) time; a single recurrence takes about four clock cycles a step, many take about the time
    of copying the arrays.  Memory beyond the result is about 1/8 MiB of scratch per thread: arrays
    of any strides are read in place (other dtypes, byte orders and misaligned arrays go through a
    copy).

    References
    ----------
    docs/derivations.md §6.7.  The last example is a layer of S. De et al., "Griffin: Mixing Gated
    Linear Recurrences with Local Attention for Efficient Language Models", 2024, arXiv:2402.19427.

    Examples
    --------
    A running sum, and one that forgets half at each step:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> x = np.array([1.0, 0.0, 0.0, 4.0])
    >>> fd.linear_scan(1, x)
    array([1., 1., 1., 5.])
    >>> fd.linear_scan(0.5, x)
    array([1.   , 0.5  , 0.25 , 4.125])

    Exponential smoothing, as pandas has it in ``x.ewm(alpha=alpha, adjust=False).mean()``:

    >>> alpha = 0.25
    >>> fd.linear_scan(1 - alpha, alpha * x, initial_state=x[0])
    array([1.      , 0.75    , 0.5625  , 1.421875])

    A filter of first order along each row of a matrix, every row with a pole of its own:

    >>> from scipy.signal import lfilter
    >>> X, poles = np.cos(np.arange(12.0)).reshape(3, 4), np.array([0.9, 0.5, -0.5])
    >>> rows = [lfilter([1], [1, -p], row) for p, row in zip(poles, X)]
    >>> np.allclose(fd.linear_scan(poles, X), rows, rtol=1e-12)
    True

    Discounted returns, from the end; where an episode is over, nothing is carried on:

    >>> rewards, over = np.array([0.0, 0.0, 1.0, 0.0, 2.0]), np.array([0, 0, 1, 0, 0])
    >>> fd.linear_scan(0.5 * (1 - over), rewards, reverse=True)
    array([0.25, 0.5 , 1.  , 1.  , 2.  ])

    The recurrence of Griffin's RG-LRU, x (L, channels) with gates r and i in (0, 1):

    >>> rng = np.random.default_rng(0)
    >>> x, r, i = rng.normal(size=(6, 4)), rng.uniform(size=(6, 4)), rng.uniform(size=(6, 4))
    >>> a = np.exp(-8 * np.log1p(np.exp(np.linspace(-4, 1, 4))) * r)
    >>> h = fd.linear_scan(a, np.sqrt(1 - a**2) * (i * x), axis=0)
    >>> np.allclose(h[3], a[3] * h[2] + np.sqrt(1 - a[3] ** 2) * (i[3] * x[3]))
    True
    """
    call = LinearCall(a, b, axis, initial_state)
    base = call.new_result("the result") if out is None else call.checked_out(out)
    result = base if out is None else as_dtype(base, call.dtype)
    last = call.new_state() if flag("return_last_state", return_last_state) else None
    call.kernels.linear_scan(
        call.a, call.b, call.axis, reverse=flag("reverse", reverse),
        initial_state=call.initial_state, last_state=last, out=result,
    )  # fmt: skip
    if out is not None:
        copy_back(result, base)
        result = out
    return result if last is None else (result, last[()])


class LinearCall(ArrayCall):
    """The checked arguments of one call, arrays of one dtype as kernels take them."""

    NAMES = _NAMES
    ALWAYS = 2

    def __init__(
        self,
        a: ArrayLike,
        b: ArrayLike,
        axis: SupportsIndex,
        initial_state: ArrayLike | None,
        dout: ArrayLike | None = None,
        dlast_state: ArrayLike | None = None,
        *,
        required: tuple[str, ...] = ("a", "b"),
    ) -> None:
        given: Any = (a, b, initial_state, dout, dlast_state)
        arrays = self.take(given, required)
        self.a, self.b, self.initial_state, self.dout, self.dlast_state = arrays
        self.dtype, self.shape = self.b.dtype, self.b.shape
        self.kernels: Kernels = _kernels[self.dtype]
        self.axis = check_axis(axis, self.shape)
        self.state_shape = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        self._check_factor()
        self._check_rest()

    def _check_factor(self) -> None:
        if self.a.shape not in (self.shape, self.state_shape, ()):
            raise ValueError(
                f"a has shape {self.a.shape}; expected that of b, {self.shape}, that without axis "
                f"{self.axis}, {self.state_shape}, or ()"
            )

    def _check_rest(self) -> None:
        if self.dout is not None:
            expect("dout", self.dout, self.shape, "the shape of b")
        for name, state in ("initial_state", self.initial_state), ("dlast_state", self.dlast_state):
            if state is not None:
                expect(name, state, self.state_shape, f"the shape of b without axis {self.axis}")

    def new_result(self, what: str) -> NDArray:
        """An array of b's shape, its axes in memory in b's order."""

        def make(shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
            return np.empty_like(self.b, dtype, order="K", shape=shape)

        return empty(what, self.shape, self.dtype, make)


def check_axis(axis: SupportsIndex, shape: tuple[int, ...]) -> int:
    """`axis` of an array b of this shape, as a number from 0 on."""
    if not shape:
        raise ValueError("b has shape (); expected at least one axis")
    i = index("axis", axis)
    if not -len(shape) <= i < len(shape):
        raise np.exceptions.AxisError(
            f"axis {i} is out of bounds for b, which has {len(shape)} axes"
        )
    return i % len(shape)
