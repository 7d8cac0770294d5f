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
_UNITS = 2.0**44  # θ and p are whole numbers of these parts of 1 …
_EDGE = 2.0**62  # … in [−2**62, 2**62)
_INTERVAL = f"[-{_EDGE / _UNITS:.0f}, {_EDGE / _UNITS:.0f})"
_D = 1 << 16  # β = n / _D; a spilled word holds a remainder by _D
_LANES = 8  # of the widest vectors: arrays are padded to whole ones
_I64, _U16 = np.dtype(np.int64), np.dtype(np.uint16)
_PARTS = 40  # binary digits of the bits per step that the schedule counts with


class ReversibleMomentum:
    """Gradient descent with momentum that runs backwards bit for bit, however long it was.

    ``p = beta*p - alpha*grad``, ``theta = theta + p``, from p = 0, on integers: what the multiplication by `beta` discards,
    log2(1/beta) bits per parameter and step, is kept, and a step backwards finds everything as it was.  This is how a
    gradient through thousands of training steps needs no stored trajectory: see `hypergradient`.

    Parameters
    ----------
    theta : array_like, any shape
        Initial parameters, float32, float64 or integers, in [-262144, 262144); rounded to multiples of 2**-44.
    alpha : float
        The learning rate, finite.
    beta : float
        The decay of the momentum; rounded to a multiple of 2**-16, which must lie in (0, 1).

    Attributes
    ----------
    theta, p : ndarray
        Parameters and momentum: new float64 arrays in theta's shape.
    alpha, beta : float
        The rates as used: `beta` is rounded.
    steps : int
        Steps taken and not undone.
    information_bits : int
        Bits that the way back needs, held now for all parameters together: 16 for every word that the buffers have spilled,
        and the digits of every number in a buffer.  0 at the start; grows by log2(1/beta) per parameter and step, beyond a
        constant of at most 35 per parameter.

    Raises
    ------
    TypeError
        If an argument has another dtype or is no number.
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
    θ and p are multiples of 2**-44 in int64, the gradient enters as round(alpha·2**44·grad), and p becomes beta·p within
    one unit: 6e-14, whatever the size of p.  `theta` is rounded once more where it is above 512, as float64 has 53 bits; a
    gradient function sees the same rounded number in both directions.  All this is the same bits on any CPU for any number
    of threads; it is the gradient function that must return the same bits for the same array.

    A step is O(size) time in one compiled pass.  Memory: 24 bytes per parameter, and 16 bits per parameter whenever the
    buffers spill, every 16/log2(1/beta) steps (105 for beta = 0.9) or, at large beta, a little earlier: by 0.04 % at 0.99, by
    4 % at 0.9999, by a quarter at the largest.
    `step` and `unstep` complete or change nothing; Ctrl-C waits for their end (some milliseconds for a million parameters).
    Objects copy, pickle and compare by identity.  One object must not be used by several threads at once.

    References
    ----------
    D. Maclaurin, D. Duvenaud, R. P. Adams, Gradient-based hyperparameter optimization through reversible learning,
    arXiv:1502.03492; docs/derivations.md §4.

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
        self._state = empty(
            "the state", (3, _padded(start.size)), _I64, np.zeros
        )  # θ, p, and the buffers as float64
        self._state[0, : start.size] = _units(start).reshape(-1)
        self._count = np.zeros(1, np.int64)
        self._stack: list[np.ndarray] = []  # spilled words, uint16

    def __repr__(self) -> str:
        return f"ReversibleMomentum(shape={self._shape}, alpha={self.alpha}, beta={self.beta}, steps={self.steps})"

    def __getstate__(self) -> tuple[Any, ...]:
        """Copies of what is updated in place; spilled words never are."""
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
        """Checked whole, since a file may be damaged or not ours; and copies, since its arrays may be shared with another object."""
        if not isinstance(state, tuple) or len(state) != 7:
            raise TypeError(
                f"state is a {type(state).__name__}; expected the tuple of 7 that __getstate__ returns"
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
    def p(self) -> np.ndarray:
        return self._positions(1)

    @property
    def information_bits(self) -> int:
        size = math.prod(self._shape)
        digits = np.frexp(self._state[2].view(F64))[
            1
        ]  # of a positive integer: its bit length; 0 of 0
        return 16 * size * len(self._stack) + int(digits.sum())

    def step(self, grad: ArrayLike) -> None:
        """One step forwards.

        Parameters
        ----------
        grad : array_like, of theta's shape
            The gradient at `theta`, float32, float64 or integers, any strides.

        Raises
        ------
        TypeError
            If `grad` has another dtype.
        ValueError
            If it has another shape or holds NaN.
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
        self._step("grad", grad)

    def unstep(self, grad_fn: Function) -> None:
        """One step backwards.

        Parameters
        ----------
        grad_fn : callable
            ``grad_fn(theta)`` is the gradient that the step was taken with, given the `theta` it was taken at (an array of
            its own).  If it differs from that in a single bit, the way back leads elsewhere.

        Raises
        ------
        TypeError
            If the gradient has another dtype.
        ValueError
            If no step is left to undo, or the gradient has another shape or holds NaN.
        OverflowError
            If no step with this gradient can have led here.
        RuntimeError
            If `grad_fn` has itself moved this object.

        Notes
        -----
        What `grad_fn` raises passes through.

        Examples
        --------
        >>> import fastderiv as fd
        >>> momentum = fd.ReversibleMomentum([1.0], alpha=0.5, beta=0.5)
        >>> momentum.step([0.25])
        >>> momentum.unstep(lambda theta: theta / 4)
        >>> momentum.theta, momentum.p
        (array([1.]), array([0.]))
        """
        self._unstep("grad_fn(theta)", grad_fn)

    def _step(self, name: str, grad: ArrayLike) -> None:
        """`step`, where errors call the gradient `name`."""
        array = self._gradient(name, grad)
        words = None
        if _spills(self.steps + 1, self._rate) > len(self._stack):
            # kernels of narrow vectors leave the end of the padding as it is
            words = empty("the words", self._state.shape[1:], _U16, np.zeros)
        if not _kernels[array.dtype].fixed_step(
            self._state,
            self._count,
            self._stack,
            grad=array,
            alpha=self._alpha,
            n=self._n,
            words=words,
        ):
            self._refuse(name, array, "the step would leave")

    def _unstep(self, name: str, grad_fn: Function) -> None:
        expect_callable("grad_fn", grad_fn)
        steps = self.steps
        if steps == 0:
            raise ValueError("no step is left to undo")
        array = self._gradient(name, grad_fn(self._positions(0, before=True)))
        if self.steps != steps:
            raise RuntimeError(f"{name} has moved this object from step {steps} to {self.steps}")
        spilled = _spills(steps - 1, self._rate) < len(self._stack)
        if not _kernels[array.dtype].fixed_unstep(
            self._state,
            self._count,
            self._stack,
            grad=array,
            alpha=self._alpha,
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
        nan = np.isnan(grad)
        if nan.any():
            raise ValueError(f"{name}{_first(nan)} is nan; expected numbers")
        raise OverflowError(f"{what} the range of theta, p and alpha * {name}, {_INTERVAL}")

    def _spills(self, steps: int) -> int:
        return _spills(steps, self._rate)

    def _positions(self, row: int, *, before: bool = False) -> np.ndarray:
        """θ (row 0), p (row 1), or θ as it was before the last step."""
        out = empty("theta" if row == 0 else "p", self._state.shape[1:], F64)
        _kernels[F64].positions(self._state, row, before=before, out=out)
        return out[: math.prod(self._shape)].reshape(self._shape)


def _padded(size: int) -> int:
    return -(-size // _LANES) * _LANES


@undisturbed
def _units(start: np.ndarray) -> np.ndarray:
    """θ in units, or an error that says where it is not in the range."""
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
    """n of β = n/d."""
    n = round(beta * _D) if abs(beta) < 2 else 0
    if not 0 < n < _D:
        raise ValueError(
            f"beta is {beta}; expected a number that rounds to a multiple of 2**-16 in (0, 1)"
        )
    return n


@undisturbed
def _bits_per_step(n: int) -> int:
    """An upper bound of what a buffer grows by in a step, in units of 2**-40 bits.

    i < B turns into i < ⌈B/n⌉ d <= B (d/n) (1 + (n−1)/B), and B stays above 2**34 if 16 bits are spilled only when it would
    exceed 2**50: docs/derivations.md §4.
    """
    exact = math.log2(_D / n) + math.log1p((n - 1) / 2**34) / math.log(2)
    return math.ceil(exact * (1 << _PARTS))


def _spills(steps: int, rate: int) -> int:
    """How often the buffers have spilled after so many steps."""
    return max(0, -(-steps * rate // (16 << _PARTS)) - 1)


# ---- a state that comes from outside ------------------------------------------------------------------------------------


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
    """The schedule is part of the state, since another platform's logarithm may differ in its last digit."""
    wanted = _bits_per_step(n)
    if abs(index("state: rate", rate) - wanted) > 1:
        raise ValueError(f"state: rate is {rate}; expected {wanted} for n = {n}")


def _own(what: str, array: Any, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A copy of `array`, contiguous; it must have this shape and this dtype, in any byte order."""
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
    stack = [*stack]  # a subclass may say another length than it has
    if len(stack) != spills:
        raise ValueError(
            f"state: there are {len(stack)} arrays of words; expected {spills}, as often as the buffers have spilled"
        )
    own = [_own("words", words, _U16, (_padded(size),)) for words in stack]
    if any(words[size:].any() for words in own):
        raise ValueError("state: words behind the last parameter are not 0")
    return own


def _check_numbers(numbers: np.ndarray, size: int, steps: int, rate: int) -> None:
    """θ, p and the buffers of a state."""
    if steps < 0:
        raise ValueError(f"state: count is {steps}; expected at least 0")
    if numbers[:, size:].any():
        raise ValueError("state: numbers behind the last parameter are not 0")
    edge = int(_EDGE)
    for name, row in ("theta", numbers[0]), ("p", numbers[1]):
        outside = (row < -edge) | (row >= edge)
        if outside.any():
            raise ValueError(
                f"state: {name}{_first(outside)} is {row[outside][0]} units; expected integers in [-2**62, 2**62)"
            )
    _check_buffers(numbers[2].view(F64), steps, rate)


@undisturbed
def _check_buffers(buffers: np.ndarray, steps: int, rate: int) -> None:
    """Whole numbers below what so many steps make of 2**34 at most: docs/derivations.md §4.

    A quarter more is let pass, and harmless: steps undone with other gradients than they were taken with may exceed the bound.
    """
    bits = 34 + (steps * rate - _spills(steps, rate) * (16 << _PARTS)) / (1 << _PARTS)
    bound = 1.25 * 2.0 ** min(bits, 50)
    wrong = ~(
        (buffers >= 0) & (buffers < bound) & (buffers == np.floor(buffers)) & ~np.signbit(buffers)
    )
    if wrong.any():
        raise ValueError(
            f"state: buffer{_first(wrong)} is {buffers[wrong][0]}; expected integers in [0, {bound:.0f})"
        )


def _first(flags: np.ndarray) -> str:
    """The first position where `flags` is set, as an index."""
    at = np.argwhere(flags)[0]
    return f"[{', '.join(map(str, at))}]" if flags.ndim else ""
