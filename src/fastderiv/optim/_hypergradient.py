"""`hypergradient`: the gradient of a loss after training, found by undoing the training."""

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
    """What `hypergradient` returns: gradients by initial parameters and momentum, and by the rates.

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
    """Gradients of a loss after `n_steps` of gradient descent with momentum.

    The trajectory is not stored: the function trains forwards with `ReversibleMomentum`, then takes
    the same steps back, bit for bit, and computes the adjoints on the way.

    Parameters
    ----------
    loss_grad : callable
        ``loss_grad(theta)`` is the gradient of the loss whose gradients are wanted (on validation
        data, say); it is called at the trained parameters.
    train_grad : callable
        ``train_grad(theta)`` is the gradient of the loss that training decreases.  It must return
        the same bits for the same array.
    train_hvp : callable
        ``train_hvp(theta, v)`` is the product of the training loss's second derivatives at `theta`
        with `v`.
    theta : array_like, any shape
        Initial parameters; the momentum starts at 0.  All callbacks are given, and return, arrays
        of this shape.
    n_steps : int
        At least 0.
    alpha, beta : float
        Learning rate and decay of `ReversibleMomentum`; `beta` is rounded to a multiple of 2**-16.

    Returns
    -------
    Hypergradients
        ``dtheta`` and ``dp`` are float64 arrays of theta's shape: the gradients by the initial
        parameters and momentum.  ``dalpha`` and ``dbeta`` are floats: those by the rates, at `beta`
        as rounded.

    Raises
    ------
    TypeError
        If an argument or what a callback returns has another dtype, or a callback is not callable.
    ValueError
        If `n_steps` is negative, `ReversibleMomentum` refuses a rate or `theta`, a callback returns
        another shape, or `train_grad` returns NaN or, on the way back, other bits than before.
    OverflowError
        If training leaves the range of [-262144, 262144).

    See Also
    --------
    ReversibleMomentum

    Notes
    -----
    The adjoints start with θ̄ = loss_grad(θ) and p̄ = 0.  Each step backwards computes
    ``p̄ += θ̄; dalpha -= p̄·g; dbeta += p̄·p; θ̄ -= alpha H p̄; p̄ *= beta``, where g and H are the
    first and second derivatives of the training loss at the parameters that the step started from.

    `train_grad` is evaluated 2 n_steps times, `train_hvp` n_steps times.  Beside what the callbacks
    take, the memory is about ten arrays of theta's size, and log2(1/beta) bits per parameter and
    step.  Exceptions of callbacks pass through.

    References
    ----------
    D. Maclaurin, D. Duvenaud, R. P. Adams, arXiv:1502.03492; docs/derivations.md §4.9.

    Examples
    --------
    Which learning rate is better for a quadratic, a larger or a smaller one?

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> curvature = np.array([1.0, 0.1])
    >>> gradient = lambda theta: curvature * theta
    >>> for alpha in 0.5, 2.99:
    ...     d = fd.hypergradient(
    ...         gradient, gradient, lambda theta, v: curvature * v, [1.0, 1.0],
    ...         n_steps=50, alpha=alpha, beta=0.5,
    ...     )
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
    training = _Training(theta, alpha=alpha, beta=beta)
    return _through_training(
        training, as_caller(loss_grad), as_caller(train_grad), as_caller(train_hvp), steps
    )


@undisturbed
def _through_training(
    training: _Training,
    loss_grad: Function,
    train_grad: Function,
    train_hvp: Callable[[np.ndarray, np.ndarray], ArrayLike],
    steps: int,
) -> Hypergradients:
    """`steps` steps forwards, then the same steps backwards with the adjoints; §4.9."""
    start, alpha, beta = training.theta, training.alpha, training.beta
    for _ in range(steps):
        training.forwards(train_grad)
    dtheta = _like("loss_grad(theta)", loss_grad(training.theta), start).copy()
    dp, dalpha, dbeta = np.zeros_like(dtheta), 0.0, 0.0
    for _ in range(steps):
        grad = training.backwards(train_grad)
        dp += dtheta
        dalpha -= float((dp * grad).sum())  # not BLAS, whose sums depend on its threads
        dbeta += float((dp * training.p).sum())
        dtheta -= alpha * _like("train_hvp(theta, v)", train_hvp(training.theta, dp.copy()), start)
        dp *= beta
    if training.information_bits or training.p.any() or not np.array_equal(training.theta, start):
        raise ValueError(
            "train_grad has returned other bits on the way back than on the way there, "
            "for the same theta"
        )
    return Hypergradients(dtheta, dp, dalpha, dbeta)


class _Training(ReversibleMomentum):
    """Momentum whose gradients come from `train_grad`; error messages name that function."""

    __slots__ = ()

    def forwards(self, train_grad: Function) -> None:
        self._step("train_grad(theta)", train_grad(self.theta))

    def backwards(self, train_grad: Function) -> np.ndarray:
        """Undo one step; returns the gradient that it was taken with."""
        seen = []

        def remember(theta: np.ndarray) -> np.ndarray:
            seen.append(_like("train_grad(theta)", train_grad(theta), theta).copy())
            return seen[-1]

        self._unstep("train_grad(theta)", remember)
        return seen[0]


def _like(name: str, value: ArrayLike, theta: np.ndarray) -> np.ndarray:
    """What the callback `name` has returned, as float64."""
    array = as_array(name, value)
    expect_like(name, array, theta.shape)
    return as_dtype(array, F64)
