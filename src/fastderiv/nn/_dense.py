"""`dense` and `dense_vjp`: the fully connected layer, its products by BLAS and all the rest in one compiled pass."""

from __future__ import annotations

from typing import Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._core.arrays import as_arrays, as_dtype, check_out, common, copy_back, expect
from .._core.dispatch import kernels
from . import _activations
from ._activations import Activation
from ._products import column_sums, packed, product, quietly, summed_product, total_of

_kernels = kernels("nn")


class DenseCache:
    """What a forward pass keeps for its adjoint: opaque, read-only, usable any number of times."""

    __slots__ = ("curve", "product", "shape")

    def __init__(self, call: "_DenseCall") -> None:
        self.shape, self.curve = (call.dtype, *call.X.shape, call.shape[1]), call.curve
        # X W, to which the bias is added where it is read: that costs nothing, writing N would cost a pass.  Y would not
        # do: where φ saturates, it has no digits left to make φ′ of.
        self.product = None if call.curve == 0 else np.empty(call.shape, call.dtype)


class DenseGrads(NamedTuple):
    """Gradients with respect to the arguments of `dense`, each of its argument's shape; None where that was None.

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
    X: ArrayLike, W: ArrayLike, b: ArrayLike | None = None, *, activation: Activation = None, out: np.ndarray | None = None,
    return_cache: Literal[False] = False,
) -> NDArray: ...  # fmt: skip
@overload
def dense(
    X: ArrayLike, W: ArrayLike, b: ArrayLike | None = None, *, activation: Activation = None, out: np.ndarray | None = None,
    return_cache: Literal[True],
) -> tuple[NDArray, DenseCache]: ...  # fmt: skip
@overload
def dense(
    X: ArrayLike, W: ArrayLike, b: ArrayLike | None = None, *, activation: Activation = None, out: np.ndarray | None = None,
    return_cache: bool = False,
) -> NDArray | tuple[NDArray, DenseCache]: ...  # fmt: skip
def dense(
    X: ArrayLike,
    W: ArrayLike,
    b: ArrayLike | None = None,
    *,
    activation: Activation = None,
    out: np.ndarray | None = None,
    return_cache: bool = False,
) -> NDArray | tuple[NDArray, DenseCache]:
    r"""The fully connected layer :math:`Y = \varphi(X W + b)`; the rows of X are samples.

    Parameters
    ----------
    X : array_like, shape (K, n)
    W : array_like, shape (n, m)
    b : array_like, shape (m,), optional
        Added to every row.
    activation : {"sigmoid", "tanh", "relu", "softplus", "silu", "gelu"} or tuple of two callables, optional
        φ, element by element; None for none.  "sigmoid" is the logistic function, "gelu" the exact x·Φ(x).  A pair (φ,
        φ′) of callables is given the pre-activations (K, m), an array of its own that it may overwrite, and returns as
        many numbers.
    out : ndarray, shape (K, m), optional
        Where to put the result: of the result's dtype, writeable, any strides, no memory shared with an argument.
    return_cache : bool, optional
        Whether to return what `dense_vjp` needs, which otherwise computes the product once more.

    Returns
    -------
    Y : ndarray, shape (K, m)
        float32 if all arrays are, else float64.  `out` if it was given.
    cache : object
        Only if `return_cache`: opaque, read-only, usable any number of times, with the same arguments.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, naming the argument, what was expected and what came; an unknown activation.

    See Also
    --------
    dense_vjp : its gradients.

    Notes
    -----
    The product, K·n·m multiply–adds, is NumPy's; bias and activation are one pass over its result, with no memory of
    their own.  A cache takes K·m numbers, without an activation none.  The bits of the result depend neither on strides
    nor on fastderiv's threads; on those of BLAS they may.  Activations are within 4 units in the last place (gelu 7),
    far into their tails, and raise no floating-point warnings.

    References
    ----------
    docs/derivations.md §3 and §5.

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

    Where the columns are samples, Y = W X + b, transposed views do, with no copy of the result:

    >>> Wc, Xc = W.T, X.T
    >>> Y = fd.dense(Xc.T, Wc.T, b).T
    >>> bool(np.allclose(Y, Wc @ Xc + b[:, None]))
    True
    """
    call = _DenseCall(("X", "W", "b"), (X, W, b), activation)
    cache = DenseCache(call) if return_cache else None
    if out is None:
        Y = call.forward(np.empty(call.shape, call.dtype), cache)
    else:
        Y = out
        base = check_out(out, call.shape, call.dtype, zip(("X", "W", "b"), call.given, strict=True))
        target = as_dtype(base, call.dtype)
        if target.flags.c_contiguous:
            call.forward(target, cache)
        else:
            target[...] = call.forward(np.empty(call.shape, call.dtype), cache)
        copy_back(target, base)
    return Y if cache is None else (Y, cache)


def dense_vjp(
    dY: ArrayLike,
    X: ArrayLike,
    W: ArrayLike,
    b: ArrayLike | None = None,
    *,
    activation: Activation = None,
    cache: DenseCache | None = None,
) -> DenseGrads:
    r"""The adjoint of `dense`: gradients of a scalar from that with respect to the layer's result.

    With the pre-activations :math:`N = X W + b`, which are computed again without a cache, and
    :math:`\bar N = \bar Y \odot \varphi'(N)`,

    .. math::
        \bar X = \bar N W^T, \qquad \bar W = X^T \bar N, \qquad \bar b = \textstyle\sum_k \bar N_k.

    Parameters
    ----------
    dY : array_like, shape (K, m)
        Gradient with respect to the result of `dense`.
    X, W, b, activation
        As they were passed to `dense`.
    cache : object, optional
        What `dense` returned for the same arguments.  Without it their product is computed once more.

    Returns
    -------
    grads : DenseGrads
        ``dX`` (K, n), ``dW`` (n, m) and ``db`` (m,), None where b was None.  float32 if all arrays are, else float64.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, or a cache of another call, naming the argument, what was expected and what
        came; an unknown activation.

    See Also
    --------
    dense : the layer.

    Notes
    -----
    Three products of K·n·m multiply–adds, two with a cache or without an activation.  Memory beyond inputs and results:
    one array (K, m), and a sixty-fourth of it for the sums that ``db`` is made of, which are added up in float64.

    φ′ is a closed form of its own, not made from φ: σ′, softplus′ and silu′ have all their digits down to the smallest
    normal number, where σ(1 − σ) has none for x > 17 in float32.  relu′(0) = 0.

    References
    ----------
    docs/derivations.md §3 and §5.

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

    Nothing is computed twice where the layer's cache is passed on:

    >>> Y, cache = fd.dense(X, W, b, activation="tanh", return_cache=True)
    >>> again = fd.dense_vjp(Y, X, W, b, activation="tanh", cache=cache)
    >>> bool((again.dW == grads.dW).all())
    True

    Columns as samples, Y = W X + b: the results are transposes too.

    >>> dYc, Wc, Xc = Y.T, W.T, X.T
    >>> dX, dW, db = fd.dense_vjp(dYc.T, Xc.T, Wc.T, b)
    >>> bool(np.allclose(dX.T, Wc.T @ dYc) and np.allclose(dW.T, dYc @ Xc.T) and np.allclose(db, dYc.sum(1)))
    True
    """
    return _DenseCall(("dY", "X", "W", "b"), (dY, X, W, b), activation).adjoint(cache)


class _DenseCall:
    """The checked arguments of one call, in one dtype and one layout."""

    def __init__(self, names: tuple[str, ...], values: tuple[ArrayLike | None, ...], activation: Activation) -> None:
        self.given = as_arrays(names, values, optional=("b",))
        self.activation, self.curve = activation, _activations.check(activation)
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
        self.X, self.W, self.b, self.dY = (
            packed(X),
            packed(W),
            None if b is None else packed(b),
            [packed(a) for a in dY],
        )

    @quietly
    def forward(self, Y: NDArray, cache: DenseCache | None) -> NDArray:
        """OUT Y = φ(X W + b), and X W in the cache."""
        XW = product(self.X, self.W, Y if cache is None or cache.product is None else cache.product)
        if self.curve is None:
            Y[...] = _activations.evaluate(self.activation, 0, self.biased(XW))
        elif self.curve or self.b is not None:
            self.kernel.activate(XW, self.b, self.curve, Y)
        return Y

    @quietly
    def adjoint(self, cache: DenseCache | None) -> DenseGrads:
        (dY,) = self.dY
        kept = self.kept(cache)
        dN, groups = dY, None
        if self.curve != 0:
            XW = product(self.X, self.W) if kept is None else kept
            if self.curve is None:
                dN = np.multiply(dY, _activations.evaluate(self.activation, 1, self.biased(XW)))
            else:
                dN = XW if kept is None else np.empty_like(XW)
                groups = self.kernel.activate_vjp(dY, XW, self.b, self.curve, dN)
        db = total_of(groups) if groups is not None else None if self.b is None else column_sums(dN)
        return DenseGrads(product(dN, self.W.T), summed_product(self.X, dN), db)

    def kept(self, cache: DenseCache | None) -> NDArray | None:
        """X W from the caller's cache, if that fits."""
        if cache is None:
            return None
        if not isinstance(cache, DenseCache):
            raise TypeError(f"cache is a {type(cache).__name__}; expected what dense(…, return_cache=True) returns")
        shape = (self.dtype, *self.X.shape, self.shape[1])
        if cache.shape != shape:
            came, wanted = (f"({', '.join(map(str, s))})" for s in (cache.shape, shape))
            raise ValueError(f"cache is of a call with (dtype, K, n, m) = {came}; expected {wanted}")
        if cache.curve != self.curve:
            came, wanted = map(_activations.name, (cache.curve, self.curve))
            raise ValueError(f"cache is of a call with activation {came}; expected {wanted}")
        return cache.product

    def biased(self, XW: NDArray) -> NDArray:
        """X W + b, an array of its own."""
        N = np.empty_like(XW)
        self.kernel.activate(XW, self.b, 0, N)
        return N
