"""`ReversibleMomentum`: momentum in fixed point that runs backwards bit for bit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .._core.arrays import F32, F64, as_array, as_dtype, empty, index
from .._core.dispatch import kernels
from .._core.floats import undisturbed
from ._momentum import Function, expect_callable, expect_like, finite_number

if TYPE_CHECKING:
    from ._kernels import Kernels

_kernels: dict[np.dtype, Kernels] = kernels("optim")
_UNITS = 2.0**44  # the number 1 as θ and p count it: they are integers in units of 2**-44
_EDGE = 2.0**62  # these integers lie in [−2**62, 2**62)
_INTERVAL = f"[-{_EDGE / _UNITS:.0f}, {_EDGE / _UNITS:.0f})"
_D = 1 << 16  # β = n / _D; a spilled word holds a remainder by _D
_LANES = 8  # 64-bit numbers in the widest vector: arrays are padded to whole vectors
_I64, _U16 = np.dtype(np.int64), np.dtype(np.uint16)
_PARTS = 40  # the schedule of spills counts bits per step in units of 2**-40


class ReversibleMomentum:
    """Gradient descent with momentum that runs backwards bit for bit, however long it was.

    A step is ``p = beta*p - alpha*grad``, then ``theta = theta + p``, computed on integers; p
    starts at 0.  The object keeps the bits that the multiplication by `beta` discards, log2(1/beta)
    per parameter and step, and so a step backwards restores every bit.  With it, a gradient through
    thousands of training steps needs no stored trajectory: see `hypergradient`.

    Parameters
    ----------
    theta : array_like, any shape
        Initial parameters, float32, float64 or integers, in [-262144, 262144).  They are rounded to
        multiples of 2**-44.
    alpha : float
        The learning rate, finite.
    beta : float
        The decay of the momentum; rounded to a multiple of 2**-16, which must lie in (0, 1).

    Attributes
    ----------
    theta, p : ndarray
        Parameters and momentum: new float64 arrays in theta's shape.
    previous_theta : ndarray
        The parameters that the last step started from: what `unstep` passes to its function.
    alpha, beta : float
        The rates as used: `beta` is rounded.
    steps : int
        Steps taken and not undone.
    information_bits : int
        How many bits are held now, over all parameters, to undo the steps: 16 for every word that
        the buffers have spilled, and the binary digits of every number in a buffer.  It is 0 at the
        start and grows by log2(1/beta) per parameter and step, plus a constant of at most 35 per
        parameter.

    Raises
    ------
    TypeError
        If an argument has another dtype or is not a number.
    ValueError
        If `theta` holds NaN, `alpha` is not finite or `beta` does not round into (0, 1).
    OverflowError
        If `theta` lies outside the range.

    See Also
    --------
    momentum_step, momentum_unstep : in floating point.
    hypergradient : the gradient of a loss after training, by going back.

    Notes
    -----
    θ and p are multiples of 2**-44, held in int64.  The gradient enters as
    round(alpha·2**44·grad), and the decay turns p into beta·p with an error below one unit, 6e-14,
    whatever the size of p.  The attribute `theta` is rounded once more where it is above 512, as
    float64 has 53 bits; a gradient function sees the same rounded number in both directions.  The
    results have the same bits on any CPU and for any number of threads, provided that the gradient
    function returns the same bits for the same array.

    A step takes O(size) time, in one compiled pass.  The memory is 24 bytes per parameter, and 16
    bits per parameter more whenever the buffers spill.  They spill every 16/log2(1/beta) steps (105
    for beta = 0.9), and at large beta a little more often: by 0.04 % at 0.99, by 4 % at 0.9999, by
    a quarter at the largest.

    `step` and `unstep` either complete or change nothing; Ctrl-C waits for their end (some
    milliseconds for a million parameters).  Objects can be copied and pickled; they compare by
    identity.  One object must not be used by several threads at once.

    References
    ----------
    D. Maclaurin, D. Duvenaud, R. P. Adams, Gradient-based hyperparameter optimization through
    reversible learning, arXiv:1502.03492; docs/derivations.md §4.6.

    Examples
    --------
    >>> import numpy as np
    >>> import fastderiv as fd
    >>> momentum = fd.ReversibleMomentum([1.0, -2.0], alpha=0.1, beta=0.9)
    >>> for _ in range(1000):
    ...     momentum.step(np.sin(momentum.theta))
    >>> bits = momentum.information_bits
    >>> for _ in range(1000):
    ...     momentum.unstep(np.sin)
    >>> momentum.theta, momentum.p, momentum.information_bits
    (array([ 1., -2.]), array([0., 0.]), 0)
    >>> 0.14 < bits / 2 / 1000 < 0.18  # log2(1/0.9) = 0.152
    True
    """

    __slots__ = ("__weakref__", "_alpha", "_count", "_n", "_rate", "_shape", "_stack", "_state")

    def __init__(self, theta: ArrayLike, *, alpha: float, beta: float) -> None:
        self._alpha = finite_number("alpha", alpha)
        self._n = _numerator(finite_number("beta", beta))
        self._rate = _bits_per_step(self._n)
        start = as_dtype(as_array("theta", theta), F64)
        self._shape = start.shape
        # θ, p, and the buffers: float64 numbers in the memory of int64 ones
        self._state = empty("the state", (3, _padded(start.size)), _I64, np.zeros)
        self._state[0, : start.size] = _units(start).reshape(-1)
        self._count = np.zeros(1, np.int64)
        self._stack: list[np.ndarray] = []  # spilled words, uint16

    def __repr__(self) -> str:
        rates = f"alpha={self.alpha}, beta={self.beta}"
        return f"ReversibleMomentum(shape={self._shape}, {rates}, steps={self.steps})"

    def __getstate__(self) -> tuple[Any, ...]:
        """The state; what steps overwrite is copied, and spilled words they never overwrite."""
        return (
            self._alpha,
            self._n,
            self._rate,
            self._shape,
            self._state.copy(),
            self._count.copy(),
            list(self._stack),
        )

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Take the state, or refuse it whole: a file may be damaged, or another program's.

        Its arrays are copied, since another object may share them.
        """
        if not isinstance(state, tuple) or len(state) != 7:
            raise TypeError(
                f"state is a {type(state).__name__}; "
                "expected the tuple of 7 that __getstate__ returns"
            )
        alpha, n, rate, shape, numbers, count, stack = state
        alpha, n, shape = (
            finite_number("state: alpha", alpha),
            _state_numerator(n),
            _state_shape(shape),
        )
        _check_rate(rate, n)
        size = math.prod(shape)
        numbers = _own("theta, p and buffers", numbers, _I64, (3, _padded(size)))
        count = _own("count", count, _I64, (1,))
        steps = int(count[0])
        words = _state_words(stack, _spills(steps, rate), size)
        _check_numbers(numbers, size, steps, rate)
        self._alpha, self._n, self._rate, self._shape = alpha, n, rate, shape
        self._state, self._count, self._stack = numbers, count, words

    @property
    def alpha(self) -> float:
        return self._alpha

    @property
    def beta(self) -> float:
        return self._n / _D

    @property
    def steps(self) -> int:
        return int(self._count[0])

    @property
    def theta(self) -> np.ndarray:
        return self._positions(0)

    @property
    def previous_theta(self) -> np.ndarray:
        if self.steps == 0:
            raise ValueError("no step is left to undo")
        return self._positions(0, before=True)

    @property
    def p(self) -> np.ndarray:
        return self._positions(1)

    @property
    def information_bits(self) -> int:
        size = math.prod(self._shape)
        # the exponent of a positive integer is its bit length, and that of 0 is 0
        _, digits = np.frexp(self._state[2].view(F64))
        return 16 * size * len(self._stack) + int(digits.sum())

    def step(self, grad: ArrayLike, *, alpha: float | None = None) -> None:
        """One step forwards.

        Parameters
        ----------
        grad : array_like, of theta's shape
            The gradient at `theta`, float32, float64 or integers, any strides.
        alpha : float, optional
            A learning rate for this step alone, finite.

        Raises
        ------
        TypeError
            If `grad` has another dtype.
        ValueError
            If it has another shape or holds NaN, or `alpha` is not finite.
        OverflowError
            If θ, p or alpha·grad would leave the range of [-262144, 262144).

        Examples
        --------
        >>> import fastderiv as fd
        >>> momentum = fd.ReversibleMomentum([1.0], alpha=0.5, beta=0.5)
        >>> momentum.step([0.25])
        >>> momentum.theta, momentum.p
        (array([0.875]), array([-0.125]))
        """
        self._step("grad", grad, alpha)

    def unstep(self, grad_fn: Function, *, alpha: float | None = None) -> None:
        """One step backwards.

        Parameters
        ----------
        grad_fn : callable
            ``grad_fn(theta)`` must be the gradient that the step was taken with; it is given the
            `theta` that the step started from, as an array of its own.  If the gradient differs in
            a single bit, the step backwards leads elsewhere.
        alpha : float, optional
            The learning rate that the step was taken with, if it had its own.

        Raises
        ------
        TypeError
            If the gradient has another dtype.
        ValueError
            If no step is left to undo, the gradient has another shape or holds NaN, or `alpha` is
            not finite.
        OverflowError
            If no step with this gradient can have led here.
        RuntimeError
            If `grad_fn` has itself stepped this object.

        Notes
        -----
        Exceptions of `grad_fn` pass through.

        Examples
        --------
        >>> import fastderiv as fd
        >>> momentum = fd.ReversibleMomentum([1.0], alpha=0.5, beta=0.5)
        >>> momentum.step([0.25])
        >>> momentum.unstep(lambda theta: theta / 4)
        >>> momentum.theta, momentum.p
        (array([1.]), array([0.]))
        """
        self._unstep("grad_fn(theta)", grad_fn, alpha)

    def _step(self, name: str, grad: ArrayLike, alpha: float | None = None) -> None:
        """One step forwards; error messages call the gradient `name`."""
        rate = self._alpha if alpha is None else finite_number("alpha", alpha)
        array = self._gradient(name, grad)
        words = None
        if _spills(self.steps + 1, self._rate) > len(self._stack):
            # zeros, as kernels of narrow vectors do not write the end of the padding
            words = empty("the words", self._state.shape[1:], _U16, np.zeros)
        if not _kernels[array.dtype].fixed_step(
            self._state,
            self._count,
            self._stack,
            grad=array,
            alpha=rate,
            n=self._n,
            words=words,
        ):
            self._refuse(name, array, "the step would leave")

    def _unstep(self, name: str, grad_fn: Function, alpha: float | None = None) -> None:
        """One step backwards; error messages call the gradient `name`."""
        rate = self._alpha if alpha is None else finite_number("alpha", alpha)
        expect_callable("grad_fn", grad_fn)
        steps = self.steps
        array = self._gradient(name, grad_fn(self.previous_theta))
        if self.steps != steps:
            raise RuntimeError(f"{name} has moved this object from step {steps} to {self.steps}")
        spilled = _spills(steps - 1, self._rate) < len(self._stack)
        if not _kernels[array.dtype].fixed_unstep(
            self._state,
            self._count,
            self._stack,
            grad=array,
            alpha=rate,
            n=self._n,
            spilled=spilled,
        ):
            self._refuse(
                name,
                array,
                "no step with this gradient has led here: the one before would be outside",
            )

    def _gradient(self, name: str, grad: ArrayLike) -> np.ndarray:
        """`grad` as a contiguous float32 or float64 array."""
        array = as_array(name, grad)
        expect_like(name, array, self._shape)
        dtype = F32 if array.dtype.kind == "f" and array.dtype.itemsize == 4 else F64
        return np.ascontiguousarray(as_dtype(array, dtype), dtype)

    def _refuse(self, name: str, grad: np.ndarray, what: str) -> None:
        """The error for a step that the kernel has refused."""
        nan = np.isnan(grad)
        if nan.any():
            raise ValueError(f"{name}{_first(nan)} is nan; expected numbers")
        raise OverflowError(f"{what} the range of theta, p and alpha * {name}, {_INTERVAL}")

    def _spills(self, steps: int) -> int:
        return _spills(steps, self._rate)

    def _positions(self, row: int, *, before: bool = False) -> np.ndarray:
        """θ (row 0) or p (row 1); `before` asks for the θ that the last step started from."""
        out = empty("theta" if row == 0 else "p", self._state.shape[1:], F64)
        _kernels[F64].positions(self._state, row, before=before, out=out)
        return out[: math.prod(self._shape)].reshape(self._shape)


def _padded(size: int) -> int:
    """`size`, rounded up to whole vectors."""
    return -(-size // _LANES) * _LANES


@undisturbed
def _units(start: np.ndarray) -> np.ndarray:
    """θ in units; an error says where it is outside the range."""
    units = np.rint(start * _UNITS)
    nan, inside = np.isnan(units), (units >= -_EDGE) & (units < _EDGE)
    if nan.any():
        raise ValueError(f"theta{_first(nan)} is nan; expected numbers")
    if not inside.all():
        raise OverflowError(
            f"theta{_first(~inside)} is {start[~inside][0]}; expected numbers in {_INTERVAL}"
        )
    return units


@undisturbed
def _numerator(beta: float) -> int:
    """The n of β = n/d."""
    n = round(beta * _D) if abs(beta) < 2 else 0
    if not 0 < n < _D:
        raise ValueError(
            f"beta is {beta}; expected a number that rounds to a multiple of 2**-16 in (0, 1)"
        )
    return n


@undisturbed
def _bits_per_step(n: int) -> int:
    """An upper bound of what a buffer grows by in a step, in units of 2**-40 bits.

    A step turns i < B into i < ⌈B/n⌉ d <= B (d/n) (1 + (n−1)/B).  B stays above 2**34, as 16 bits
    are spilled only where it would exceed 2**50: docs/derivations.md §4.7.
    """
    exact = math.log2(_D / n) + math.log1p((n - 1) / 2**34) / math.log(2)
    return math.ceil(exact * (1 << _PARTS))


def _spills(steps: int, rate: int) -> int:
    """How often the buffers have spilled after so many steps."""
    return max(0, -(-steps * rate // (16 << _PARTS)) - 1)


# ---- a state that comes from outside -----------------------------------------------------------


def _state_numerator(n: Any) -> int:
    n = index("state: n", n)
    if not 0 < n < _D:
        raise ValueError(f"state: n is {n}; expected an integer in (0, {_D})")
    return n


def _state_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple):
        raise TypeError(f"state: shape is a {type(shape).__name__}; expected a tuple")
    shape = tuple(index("state: shape", axis, least=0) for axis in shape)
    try:
        np.broadcast_to(np.int8(0), shape)
    except ValueError:
        raise ValueError(f"state: shape is {shape}; no array has it") from None
    return shape


def _check_rate(rate: Any, n: int) -> None:
    """An error unless the rate is that of `n`.

    The rate is part of the state, and may differ by 1, as another platform's logarithm may have
    another last digit.
    """
    wanted = _bits_per_step(n)
    if abs(index("state: rate", rate) - wanted) > 1:
        raise ValueError(f"state: rate is {rate}; expected {wanted} for n = {n}")


def _own(what: str, array: Any, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A contiguous copy of `array`, which must have this shape and, but for byte order, dtype."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"state: {what} are a {type(array).__name__}; expected an array")
    array = np.asarray(array)
    if array.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"state: {what} have dtype {array.dtype}; expected {dtype}")
    if array.shape != shape:
        raise ValueError(f"state: {what} have shape {array.shape}; expected {shape}")
    return np.array(array, dtype, order="C", subok=False)


def _state_words(stack: Any, spills: int, size: int) -> list[np.ndarray]:
    if not isinstance(stack, list):
        raise TypeError(f"state: words are a {type(stack).__name__}; expected a list")
    stack = [*stack]  # len() of a subclass may differ from what it holds
    if len(stack) != spills:
        raise ValueError(
            f"state: there are {len(stack)} arrays of words; expected {spills}, "
            "as often as the buffers have spilled"
        )
    own = [_own("words", words, _U16, (_padded(size),)) for words in stack]
    if any(words[size:].any() for words in own):
        raise ValueError("state: words behind the last parameter are not 0")
    return own


def _check_numbers(numbers: np.ndarray, size: int, steps: int, rate: int) -> None:
    """An error unless θ, p and the buffers can be those of a state."""
    if steps < 0:
        raise ValueError(f"state: count is {steps}; expected at least 0")
    if numbers[:, size:].any():
        raise ValueError("state: numbers behind the last parameter are not 0")
    edge = int(_EDGE)
    for name, row in ("theta", numbers[0]), ("p", numbers[1]):
        outside = (row < -edge) | (row >= edge)
        if outside.any():
            raise ValueError(
                f"state: {name}{_first(outside)} is {row[outside][0]} units; "
                "expected integers in [-2**62, 2**62)"
            )
    _check_buffers(numbers[2].view(F64), steps, rate)


@undisturbed
def _check_buffers(buffers: np.ndarray, steps: int, rate: int) -> None:
    """An error unless they are whole numbers below the bound that so many steps turn 2**34 into.

    docs/derivations.md §4.7 has the bound.  A quarter more is accepted and harmless: buffers may
    exceed it where steps were undone with other gradients than they were taken with.
    """
    bits = 34 + (steps * rate - _spills(steps, rate) * (16 << _PARTS)) / (1 << _PARTS)
    bound = 1.25 * 2.0 ** min(bits, 50)
    wrong = ~(
        (buffers >= 0) & (buffers < bound) & (buffers == np.floor(buffers)) & ~np.signbit(buffers)
    )
    if wrong.any():
        raise ValueError(
            f"state: buffer{_first(wrong)} is {buffers[wrong][0]}; "
            f"expected integers in [0, {bound:.0f})"
        )


def _first(flags: np.ndarray) -> str:
    """The first position where `flags` is set, as an index."""
    at = np.argwhere(flags)[0]
    return f"[{', '.join(map(str, at))}]" if flags.ndim else ""
