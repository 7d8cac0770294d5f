"""Momentum in floating point: a step, its inverse, its Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike

from .._core.arrays import (
    F32,
    F64,
    as_array,
    as_dtype,
    empty,
    in_place,
    number,
    overlap,
    pieces,
    working,
)
from .._core.dispatch import kernels
from .._core.floats import undisturbed
from .._core.fpstate import ieee
from .._core.plain import plain

if TYPE_CHECKING:
    from ._kernels import Kernels

Function = Callable[[np.ndarray], ArrayLike]
_kernels: dict[np.dtype, Kernels] = kernels("optim")
_FEW = 1 << 20  # so many numbers NumPy subtracts within milliseconds


def finite_number(name: str, value: ArrayLike) -> float:
    """`value`, a finite scalar, as a float."""
    x = value if type(value) is float else number(name, value)
    if not math.isfinite(x):
        raise ValueError(f"{name} is {x}; expected a finite number")
    return x


def expect_callable(name: str, value: object) -> None:
    if not callable(value):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a function")


def expect_like(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected that of theta, {shape}")


def momentum_step(
    theta: np.ndarray, p: np.ndarray, grad: ArrayLike, *, alpha: float, beta: float
) -> None:
    """One step of gradient descent with momentum, in place.

    ``p = beta*p - alpha*grad``, then ``theta = theta + p``.

    Parameters
    ----------
    theta, p : ndarray, any one shape
        Parameters and momentum: float32 or float64 arrays of one dtype, writeable, any strides.
        They are overwritten; if the call raises, they are as before.
    grad : array_like, of the same shape
        The gradient at `theta`; it is converted to the dtype of `theta`.
    alpha : float
        The learning rate, finite.
    beta : float
        The decay of the momentum, finite.

    Raises
    ------
    TypeError
        If `theta` or `p` is not a float32 or float64 array, their dtypes differ, or `grad` has
        another dtype.
    ValueError
        If the shapes differ, `theta` or `p` is read-only or shares memory with itself, any two of
        the arrays share memory, or a rate is not finite.

    See Also
    --------
    momentum_unstep : the inverse, up to rounding.
    ReversibleMomentum : the inverse bit for bit.

    Notes
    -----
    One pass over the three arrays: O(size) time and 24 KiB of memory per thread, and a copy of each
    array that is misaligned or of another byte order or dtype.  The bits do not depend on strides
    or threads.  Ctrl-C waits for the end of the step, so that the step is never half done.

    References
    ----------
    docs/derivations.md §4.5.

    Examples
    --------
    The gradient of ``|theta|**2 / 2`` is theta itself:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> theta, p = np.array([1.0, -2.0]), np.zeros(2)
    >>> for _ in range(2):
    ...     fd.momentum_step(theta, p, theta.copy(), alpha=0.25, beta=0.5)
    >>> theta, p
    (array([ 0.4375, -0.875 ]), array([-0.3125,  0.625 ]))
    """
    alpha, beta = finite_number("alpha", alpha), finite_number("beta", beta)
    ready = plain(theta, (p, grad), ()) and plain(p, (grad,), ())
    if ready and theta.shape == p.shape == grad.shape:  # type: ignore[union-attr]
        given = cast(np.ndarray, grad)
    else:
        theta, p, given = _checked(theta, p, grad)
    _update(theta, p, given, alpha, beta, back=False)


def momentum_unstep(
    theta: np.ndarray, p: np.ndarray, grad_fn: Function, *, alpha: float, beta: float
) -> None:
    """The inverse of `momentum_step`, in place.

    ``theta = theta - p``, then ``p = (p + alpha*grad_fn(theta)) / beta``.

    Every step backwards multiplies rounding errors by up to 1/beta; after some hundreds of steps
    they may have replaced the result (see the example).  `ReversibleMomentum` has no such limit.

    Parameters
    ----------
    theta, p : ndarray, any one shape
        Parameters and momentum as `momentum_step` has left them, with the same requirements.  They
        are overwritten; if the call raises, they are as before.
    grad_fn : callable
        ``grad_fn(theta)`` is the gradient, an array of theta's shape.  It is given an array of its
        own.
    alpha : float
        The learning rate of the step to be undone, finite.
    beta : float
        Its decay, finite and not 0.

    Raises
    ------
    TypeError
        If `theta` or `p` is not a float32 or float64 array, their dtypes differ, `grad_fn` is not
        callable, or the gradient has another dtype.
    ValueError
        If the shapes differ, `theta` or `p` is read-only or shares memory with itself, they share
        memory, a rate is not finite, or `beta` is 0 in their dtype.

    See Also
    --------
    momentum_step, ReversibleMomentum

    Notes
    -----
    Beside what `grad_fn` takes: O(size) time and one array of theta's size.  Exceptions of
    `grad_fn` pass through.

    References
    ----------
    docs/derivations.md §4.5.

    Examples
    --------
    With gradients that contain some noise, a hundred steps can be undone, and a thousand cannot:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> def gradient(theta):
    ...     return theta + np.sin(t * t)
    >>> for steps in 100, 1000:
    ...     theta, p = np.array([0.5, -0.5]), np.zeros(2)
    ...     for t in range(steps):
    ...         fd.momentum_step(theta, p, gradient(theta), alpha=0.1, beta=0.9)
    ...     for t in reversed(range(steps)):
    ...         fd.momentum_unstep(theta, p, gradient, alpha=0.1, beta=0.9)
    ...     print(np.allclose(theta, [0.5, -0.5], atol=1e-9))
    True
    False
    """
    alpha, beta = finite_number("alpha", alpha), finite_number("beta", beta)
    expect_callable("grad_fn", grad_fn)
    theta, p = _check_state(theta, p)
    dtype = _native(theta)
    before = empty("theta", theta.shape, dtype)
    with ieee(), np.errstate(all="ignore"):
        if dtype.type(beta) == 0:
            raise ValueError(f"beta is {beta}; a step that forgets the momentum has no inverse")
        if theta.size <= _FEW:
            np.subtract(theta, p, out=before)
        else:
            for part in pieces(theta.shape):
                np.subtract(theta[part], p[part], out=before[part])
    grad = as_array("grad_fn(theta)", grad_fn(before))
    theta, p = _check_state(theta, p)  # again, as grad_fn may have reshaped or locked them
    expect_like("grad_fn(theta)", grad, theta.shape)
    if overlap(grad, theta) or overlap(grad, p):
        grad = grad.copy()
    _update(theta, p, grad, alpha, beta, back=True)


def momentum_jacobian(hessian: ArrayLike, *, alpha: float, beta: float) -> np.ndarray:
    """The derivative of the (theta, p) after a `momentum_step` by the (theta, p) before it.

    Parameters
    ----------
    hessian : array_like, shape (D, D)
        Second derivatives of the loss at the parameters before the step: float32, float64 or
        integers.
    alpha, beta : float
        Learning rate and decay, finite.

    Returns
    -------
    jacobian : ndarray, shape (2D, 2D)
        ``[[I - alpha*H, beta*I], [-alpha*H, beta*I]]``; its determinant is ``beta**D`` for any H.

    Raises
    ------
    TypeError
        If `hessian` has another dtype.
    ValueError
        If it is not square, or a rate is not finite.

    Notes
    -----
    O(D²) time and memory.

    References
    ----------
    docs/derivations.md §4.5.

    Examples
    --------
    >>> import numpy as np
    >>> import fastderiv as fd
    >>> J = fd.momentum_jacobian([[2.0]], alpha=0.25, beta=0.75)
    >>> J
    array([[ 0.5 ,  0.75],
           [-0.5 ,  0.75]])
    >>> print(f"{np.linalg.det(J):.2f}")
    0.75
    """
    alpha, beta = finite_number("alpha", alpha), finite_number("beta", beta)
    (H,) = working(hessian=hessian)
    if H.ndim != 2 or H.shape[0] != H.shape[1]:
        raise ValueError(f"hessian has shape {H.shape}; expected (D, D)")
    return _jacobian(H, alpha, beta)


@undisturbed
def _jacobian(H: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """The matrix, written in pieces: between two of them Python answers signals."""
    D = len(H)
    J = empty("the jacobian", (2 * D, 2 * D), H.dtype)
    one, zero = beta * np.array([1, 0], H.dtype)
    for part in pieces(H.shape):
        # 0 - alpha * H and not -alpha * H, in which zeros would have the sign −
        J[:D, :D][part] = J[D:, :D][part] = 0 - alpha * H[part]
        J[:D, D:][part] = J[D:, D:][part] = zero
    i = np.arange(D)
    J[i, i] += 1
    J[i, D + i] = J[D + i, D + i] = one
    return J


def _check_state(theta: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Base arrays that view theta and p and can be updated in place, or an error."""
    theta, p = in_place("theta", theta), in_place("p", p)
    if _native(p) != _native(theta):
        raise TypeError(f"p has dtype {p.dtype}; expected that of theta, {theta.dtype}")
    expect_like("p", p, theta.shape)
    if overlap(theta, p):
        raise ValueError("theta shares memory with p")
    return theta, p


def _checked(
    theta: np.ndarray, p: np.ndarray, grad: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three as base arrays, or an error."""
    theta, p = _check_state(theta, p)
    given = as_array("grad", grad)
    expect_like("grad", given, theta.shape)
    for name, array in ("theta", theta), ("p", p):
        if overlap(array, given):
            raise ValueError(f"{name} shares memory with grad")
    return theta, p, given


def _native(array: np.ndarray) -> np.dtype:
    """The dtype of `array` in this machine's byte order."""
    return F32 if array.dtype.itemsize == 4 else F64


def _update(
    theta: np.ndarray, p: np.ndarray, grad: np.ndarray, alpha: float, beta: float, *, back: bool
) -> None:
    """A step in place, or its inverse if `back`, of arrays that have been checked."""
    if theta.size == 0:
        return
    dtype = _native(theta)
    t, q, g = as_dtype(theta, dtype), as_dtype(p, dtype), as_dtype(grad, dtype)
    copies = () if t is theta and q is p else ((theta, t), (p, q))
    t, q, g = _rows(t, q, g)
    _kernels[dtype].update(t, q, g, alpha=alpha, beta=beta, back=back, copies=copies)


def _rows(theta: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """The arrays with their axes in the order of theta's strides, the smallest one last.

    They are flattened to one axis if the memory of all of them has no gaps.
    """
    if theta.ndim == 1:
        return [theta, *others]
    order = sorted(range(theta.ndim), key=lambda axis: -abs(theta.strides[axis]))
    views = [a.transpose(order) for a in (theta, *others)]
    if all(a.flags.c_contiguous for a in views):
        return [a.reshape(-1) for a in views]
    return views
