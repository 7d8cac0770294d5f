"""`hypergradient`: the gradient of a loss after training, by training backwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._core.arrays import F64, as_array, as_dtype, index
from .._core.floats import as_caller, undisturbed
from ._momentum import Function, expect_callable, expect_like
from ._reversible import ReversibleMomentum


class Hypergradients(NamedTuple):
    """What `hypergradient` returns: the gradients by initial parameters and momentum, and by the two rates.

    Examples
    --------
    >>> import fastderiv as fd
    >>> fd.Hypergradients._fields
    ('dtheta', 'dp', 'dalpha', 'dbeta')
    """

    dtheta: np.ndarray
    dp: np.ndarray
    dalpha: float
    dbeta: float


def hypergradient(
    loss_grad: Function,
    train_grad: Function,
    train_hvp: Callable[[np.ndarray, np.ndarray], ArrayLike],
    theta: ArrayLike,
    *,
    n_steps: SupportsIndex,
    alpha: float,
    beta: float,
) -> Hypergradients:
    """Gradients of a loss after `n_steps` of gradient descent with momentum, without storing the trajectory.

    Trains forwards with `ReversibleMomentum`, then goes the same way back, bit for bit, carrying the adjoints along.

    Parameters
    ----------
    loss_grad : callable
        ``loss_grad(theta)``: the gradient of the loss in question (of validation data, say) at the trained parameters.
    train_grad : callable
        ``train_grad(theta)``: the gradient of the loss that is trained on.  It must return the same bits for the same
        array.
    train_hvp : callable
        ``train_hvp(theta, v)``: the product of that loss's second derivatives at `theta` with `v`.
    theta : array_like, any shape
        Initial parameters; the momentum starts at 0.  All callbacks are given, and return, arrays of this shape.
    n_steps : int
        At least 0.
    alpha, beta : float
        Learning rate and decay of `ReversibleMomentum`; `beta` is rounded to a multiple of 2**-16.

    Returns
    -------
    Hypergradients
        ``dtheta``, ``dp`` : float64 arrays of theta's shape, by the initial parameters and momentum;
        ``dalpha``, ``dbeta`` : floats, by the rates, at `beta` as rounded.

    Raises
    ------
    TypeError
        If an argument or what a callback returns has another dtype, or a callback is not callable.
    ValueError
        If `n_steps` is negative, a rate or `theta` is not as `ReversibleMomentum` takes it, a callback returns another shape,
        `train_grad` returns NaN, or it returns different bits on the way back.
    OverflowError
        If training leaves the range of [-262144, 262144).

    See Also
    --------
    ReversibleMomentum

    Notes
    -----
    Backwards from θ̄ = loss_grad(θ) and p̄ = 0, with g and H the first and second derivatives where the step began:
    ``p̄ += θ̄; dalpha -= p̄·g; dbeta += p̄·p; θ̄ -= alpha H p̄; p̄ *= beta``.

    `train_grad` is evaluated 2 n_steps times, `train_hvp` n_steps times.  Memory, beside what the callbacks take: about ten
    arrays of theta's size, and log2(1/beta) bits per parameter and step.  What callbacks raise passes through.

    References
    ----------
    D. Maclaurin, D. Duvenaud, R. P. Adams, arXiv:1502.03492; docs/derivations.md §4.

    Examples
    --------
    Which learning rate is better for a quadratic, a larger or a smaller one?

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> curvature = np.array([1.0, 0.1])
    >>> gradient = lambda theta: curvature * theta
    >>> for alpha in 0.5, 2.99:
    ...     d = fd.hypergradient(gradient, gradient, lambda theta, v: curvature * v, [1.0, 1.0],
    ...                          n_steps=50, alpha=alpha, beta=0.5)
    ...     print("larger" if d.dalpha < 0 else "smaller")
    larger
    smaller
    """
    for name, callback in (
        ("loss_grad", loss_grad),
        ("train_grad", train_grad),
        ("train_hvp", train_hvp),
    ):
        expect_callable(name, callback)
    steps = index("n_steps", n_steps, least=0)
    momentum = ReversibleMomentum(theta, alpha=alpha, beta=beta)
    return _there_and_back(
        momentum, as_caller(loss_grad), as_caller(train_grad), as_caller(train_hvp), steps
    )


@undisturbed
def _there_and_back(
    momentum: ReversibleMomentum,
    loss_grad: Function,
    train_grad: Function,
    train_hvp: Callable[[np.ndarray, np.ndarray], ArrayLike],
    steps: int,
) -> Hypergradients:
    start, alpha, beta = momentum.theta, momentum.alpha, momentum.beta
    for _ in range(steps):
        momentum._step("train_grad(theta)", train_grad(momentum.theta))
    dtheta = _like("loss_grad(theta)", loss_grad(momentum.theta), start).copy()
    dp, dalpha, dbeta = np.zeros_like(dtheta), 0.0, 0.0
    for _ in range(steps):
        grad = _go_back(momentum, train_grad)
        dp += dtheta
        dalpha -= float((dp * grad).sum())  # not BLAS, whose sums depend on its threads
        dbeta += float((dp * momentum.p).sum())
        dtheta -= alpha * _like("train_hvp(theta, v)", train_hvp(momentum.theta, dp.copy()), start)
        dp *= beta
    if momentum.information_bits or momentum.p.any() or not np.array_equal(momentum.theta, start):
        raise ValueError(
            "train_grad has returned other bits on the way back than on the way there, for the same theta"
        )
    return Hypergradients(dtheta, dp, dalpha, dbeta)


def _go_back(momentum: ReversibleMomentum, train_grad: Function) -> np.ndarray:
    """One step backwards; the gradient that it was taken with."""
    seen = []

    def remember(theta: np.ndarray) -> np.ndarray:
        seen.append(_like("train_grad(theta)", train_grad(theta), theta).copy())
        return seen[-1]

    momentum._unstep("train_grad(theta)", remember)
    return seen[0]


def _like(name: str, value: ArrayLike, theta: np.ndarray) -> np.ndarray:
    """What the callback `name` has returned, as float64."""
    array = as_array(name, value)
    expect_like(name, array, theta.shape)
    return as_dtype(array, F64)
