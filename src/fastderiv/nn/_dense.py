"""`dense` and `dense_vjp`: the fully connected layer and its adjoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._core import caches
from .._core.arrays import F64, as_arrays, assign, check_out, common, empty, expect, flag
from .._core.cache import Cache, keep, opened
from .._core.dispatch import kernels
from .._core.floats import undisturbed
from .._core.products import packed, product, summed_product
from . import _activations
from ._activations import NONE, Activation

if TYPE_CHECKING:
    from ._kernels import Kernels

_kernels: dict[np.dtype, Kernels] = kernels("nn")
_OPERANDS = "X", "W", "b"


class DenseGrads(NamedTuple):
    """Gradients with respect to the arguments of `dense`.

    Each has the shape of its argument; it is None where the argument was None.

    Examples
    --------
    >>> import fastderiv as fd
    >>> grads = fd.dense_vjp([[1.0, 0.5]], [[3.0]], [[1.0, 2.0]])
    >>> grads.dX, grads.dW, grads.db
    (array([[2.]]), array([[3. , 1.5]]), None)
    """

    dX: NDArray
    dW: NDArray
    db: NDArray | None


@overload
def dense(
    X: ArrayLike,
    W: ArrayLike,
    b: ArrayLike | None = None,
    *,
    activation: Activation = None,
    out: np.ndarray | None = None,
    return_cache: Literal[False] = False,
) -> NDArray: ...
@overload
def dense(
    X: ArrayLike,
    W: ArrayLike,
    b: ArrayLike | None = None,
    *,
    activation: Activation = None,
    out: np.ndarray | None = None,
    return_cache: Literal[True],
) -> tuple[NDArray, Cache]: ...
@overload
def dense(
    X: ArrayLike,
    W: ArrayLike,
    b: ArrayLike | None = None,
    *,
    activation: Activation = None,
    out: np.ndarray | None = None,
    return_cache: bool = False,
) -> NDArray | tuple[NDArray, Cache]: ...
def dense(
    X: ArrayLike,
    W: ArrayLike,
    b: ArrayLike | None = None,
    *,
    activation: Activation = None,
    out: np.ndarray | None = None,
    return_cache: bool = False,
) -> NDArray | tuple[NDArray, Cache]:
    r"""The fully connected layer :math:`Y = \varphi(X W + b)`; the rows of X are samples.

    Parameters
    ----------
    X : array_like, shape (K, n)
    W : array_like, shape (n, m)
    b : array_like, shape (m,), optional
        Added to every row.
    activation : str or tuple of two callables, optional
        φ, applied element by element: "sigmoid" (the logistic function), "tanh", "relu",
        "softplus", "silu" or "gelu" (the exact x·Φ(x)); None for no activation.  The callables of a
        pair (φ, φ′) are given the pre-activations (K, m) in an array of their own, which they may
        overwrite, and return as many numbers.
    out : ndarray, shape (K, m), optional
        Where to put the result.  It has the result's dtype, is writeable, shares no memory with an
        argument, and may have any strides.
    return_cache : bool, optional
        Whether to return also what `dense_vjp` needs.  Without a cache it computes the product once
        more.

    Returns
    -------
    Y : ndarray, shape (K, m)
        float32 if all arrays are, else float64.  `out` if it was given.
    cache : object
        Only if `return_cache`.  It is opaque and immutable, can be used any number of times with
        the same arguments, and cannot be pickled.

    Raises
    ------
    ValueError, TypeError
        If a shape or dtype does not fit, or the activation is unknown.  The message names the
        argument, what was expected and what came.

    See Also
    --------
    dense_vjp : its gradients.

    Notes
    -----
    The product, K·n·m multiply–adds, is NumPy's.  Bias and activation are one pass over its result
    and need no memory.  A cache takes K·m numbers, or none without an activation, and a checksum of
    the arguments, which is computed at the speed of memory; by the checksum `dense_vjp` recognises
    a cache of other arguments.  The bits of the result depend neither on strides nor on fastderiv's
    threads; they may depend on the threads of BLAS.  Activations are within 4 units in the last
    place (gelu 9), far into their tails, and raise no floating-point warnings.

    References
    ----------
    docs/derivations.md §3.1, §3.2 and §5.1.

    Examples
    --------
    >>> import numpy as np
    >>> import fastderiv as fd
    >>> X = np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]])
    >>> W, b = np.array([[1.0, -1.0], [0.5, 2.0]]), np.array([0.0, -3.0])
    >>> fd.dense(X, W, b, activation="relu")
    array([[2.  , 0.  ],
           [0.  , 0.  ],
           [3.25, 0.  ]])

    An activation that is not among the names, with its derivative:

    >>> square = (lambda x: x * x, lambda x: 2 * x)
    >>> fd.dense(X, W, b, activation=square)[0]
    array([4., 0.])

    If the columns are samples, Y = W X + b, pass transposed views; the result is not copied:

    >>> Wc, Xc = W.T, X.T
    >>> Y = fd.dense(Xc.T, Wc.T, b).T
    >>> bool(np.allclose(Y, Wc @ Xc + b[:, None]))
    True
    """
    call = _DenseCall(_OPERANDS, (X, W, b), activation)
    base = None
    if out is not None:
        operands = zip(_OPERANDS, call.given, strict=True)
        base = check_out(out, call.shape, call.dtype, operands)
    direct = base is not None and base.flags.c_contiguous and base.flags.aligned
    Y, cache = call.forward(base if direct else None, flag("return_cache", return_cache))
    if base is not None and not direct:
        assign(base, Y)
    result = Y if out is None else out
    return result if cache is None else (result, cache)


def dense_vjp(
    dY: ArrayLike,
    X: ArrayLike,
    W: ArrayLike,
    b: ArrayLike | None = None,
    *,
    activation: Activation = None,
    cache: Cache | None = None,
) -> DenseGrads:
    r"""The adjoint of `dense`: the gradients of a scalar, given that with respect to the result.

    With the pre-activations :math:`N = X W + b` and
    :math:`\bar N = \bar Y \odot \varphi'(N)`, the gradients are

    .. math::
        \bar X = \bar N W^T, \qquad \bar W = X^T \bar N, \qquad \bar b = \textstyle\sum_k \bar N_k.

    Parameters
    ----------
    dY : array_like, shape (K, m)
        Gradient with respect to the result of `dense`.
    X, W, b, activation
        As they were passed to `dense`.
    cache : object, optional
        What `dense` returned for the same arguments.  Without it, X W is computed once more.

    Returns
    -------
    grads : DenseGrads
        ``dX`` (K, n), ``dW`` (n, m) and ``db`` (m,), None where b was None.  float32 if all arrays
        are, else float64.

    Raises
    ------
    ValueError, TypeError
        If a shape or dtype does not fit, the cache is of another call, or the activation is
        unknown.  The message names the argument, what was expected and what came.

    See Also
    --------
    dense : the layer.

    Notes
    -----
    The adjoint takes three products of K·n·m multiply–adds, or two with a cache or without an
    activation.  Memory beyond inputs and results is one array (K, m), and a sixty-fourth of it for
    the sums over groups of rows from which ``db`` is added up in float64.

    φ′ is not made from φ, but has a closed form of its own: σ′, softplus′ and silu′ have all their
    digits down to the smallest normal number, where σ(1 − σ) has none for x > 17 in float32.
    relu′(0) is 0.

    References
    ----------
    docs/derivations.md §3.1, §3.2 and §5.1.

    Examples
    --------
    The gradient of Σ Y² / 2, whose adjoint is Y itself:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> rng = np.random.default_rng(0)
    >>> X, W, b = rng.normal(size=(5, 3)), rng.normal(size=(3, 2)), rng.normal(size=2)
    >>> Y = fd.dense(X, W, b, activation="tanh")
    >>> grads = fd.dense_vjp(Y, X, W, b, activation="tanh")
    >>> dN = Y * (1 - Y**2)
    >>> bool(np.allclose(grads.dW, X.T @ dN) and np.allclose(grads.db, dN.sum(0)))
    True

    With the layer's cache, nothing is computed twice:

    >>> Y, cache = fd.dense(X, W, b, activation="tanh", return_cache=True)
    >>> again = fd.dense_vjp(Y, X, W, b, activation="tanh", cache=cache)
    >>> bool((again.dW == grads.dW).all())
    True

    If the columns are samples, Y = W X + b, the results are transposed, too:

    >>> dYc, Wc, Xc = Y.T, W.T, X.T
    >>> dX, dW, db = fd.dense_vjp(dYc.T, Xc.T, Wc.T, b)
    >>> bool(np.allclose(dX.T, Wc.T @ dYc) and np.allclose(dW.T, dYc @ Xc.T))
    True
    >>> bool(np.allclose(db, dYc.sum(axis=1)))
    True
    """
    return _DenseCall(("dY", "X", "W", "b"), (dY, X, W, b), activation).adjoint(cache)


class _DenseCall:
    """The checked arguments of one call, in one dtype and one layout."""

    def __init__(
        self, names: tuple[str, ...], values: tuple[ArrayLike | None, ...], activation: Activation
    ) -> None:
        self.curve, self.pair = _activations.check(activation)
        self.given = as_arrays(names, values, optional=("b",))
        *dY, X, W, b = common(self.given)
        if X.ndim != 2:
            raise ValueError(f"X has shape {X.shape}; expected (K, n)")
        if W.ndim != 2 or len(W) != X.shape[1]:
            raise ValueError(f"W has shape {W.shape}; expected (n, m) with n = {X.shape[1]}")
        self.shape, self.dtype = (len(X), W.shape[1]), X.dtype
        if b is not None:
            expect("b", b, self.shape[1:], "(m,)")
        for a in dY:
            expect("dY", a, self.shape, "(K, m)")
        self.kernel = _kernels[self.dtype]
        self.X, self.W = packed("X", X), packed("W", W)
        self.b = None if b is None else packed("b", b)
        self.dY = [packed("dY", a) for a in dY]

    @undisturbed
    def forward(self, Y: NDArray | None, return_cache: bool) -> tuple[NDArray, Cache | None]:
        """Y = φ(X W + b), in `Y` if it is given, and a cache for the adjoint if it is asked for."""
        if Y is None:
            Y = empty("the result", self.shape, self.dtype)
        kept = None
        if return_cache and self.curve != NONE:
            # X W is kept, and the adjoint adds the bias where it reads it: that costs nothing, and
            # to write N would cost a pass over memory.  Y would not do: where φ saturates, it has
            # too few digits left for φ′.
            kept = empty("the cache", self.shape, self.dtype)
        into = kept
        if (
            kept is None and self.pair is None
        ):  # a callable may raise, and then leaves `Y` unchanged
            into = Y
        XW = product(self.X, self.W, into)
        cache = None
        if return_cache:  # now, since a callable could change the arguments
            cache = keep("dense", (self.sizes(), self.curve), self.operands(), (kept,))
        if self.pair is not None:
            N = self.biased(XW, XW if kept is None else None)
            Y[...] = _activations.evaluate(self.pair, 0, N)
        elif self.curve != NONE or self.b is not None:
            self.kernel.activate(XW, self.b, self.curve, out=Y)
        return Y, cache

    @undisturbed
    def adjoint(self, cache: Cache | None) -> DenseGrads:
        (dY,) = self.dY
        kept = self.kept(cache)
        dN, groups = dY, None
        if self.curve != NONE:
            XW = product(self.X, self.W) if kept is None else kept
            if self.pair is not None:
                dN = np.multiply(dY, _activations.evaluate(self.pair, 1, self.biased(XW)))
            else:
                dN = XW if kept is None else np.empty_like(XW)
                groups = self.kernel.activate_vjp(dY, XW, self.b, curve=self.curve, out=dN)
        db = None
        if self.b is not None:
            if groups is None:
                groups = self.kernel.column_groups(dN)
            db = groups.sum(axis=0, dtype=F64).astype(self.dtype)
        return DenseGrads(product(dN, self.W.T), summed_product(self.X, dN), db)

    def kept(self, cache: Cache | None) -> NDArray | None:
        """X W from the caller's cache, if that is of this call."""
        if cache is None:
            return None
        (sizes, curve), checksums, (XW,) = opened(cache, "dense")
        caches.expect_shape("(dtype, K, n, m)", sizes, self.sizes())
        if curve != self.curve:
            came, wanted = map(_activations.name, (curve, self.curve))
            raise ValueError(f"cache is of a call with activation {came}; expected {wanted}")
        caches.expect_operands(_OPERANDS, checksums, self.operands())
        return XW

    def sizes(self) -> tuple[Any, ...]:
        return self.dtype, *self.X.shape, self.shape[1]

    def operands(self) -> tuple[NDArray, NDArray, NDArray | None]:
        return self.X, self.W, self.b

    def biased(self, XW: NDArray, N: NDArray | None = None) -> NDArray:
        """X W + b, in `N`, which may be XW; in a new array if that is None."""
        if N is None:
            N = np.empty_like(XW)
        self.kernel.activate(XW, self.b, NONE, out=N)
        return N
