"""`grid_rnn` and `grid_rnn_vjp`: the two-dimensional RNN, swept diagonal by diagonal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._core.arrays import F64, as_arrays, common, empty, expect, pieces
from .._core.dispatch import kernels
from .._core.floats import undisturbed
from .._core.products import contiguous, packed, stacked
from . import _activations
from ._activations import Activation

if TYPE_CHECKING:
    from ._kernels import Kernels

_kernels: dict[np.dtype, Kernels] = kernels("nn")
_SMALL_SUM = 1 << 20  # elements that NumPy adds up within milliseconds


class GridRNNGrads(NamedTuple):
    """Gradients with respect to the arguments of `grid_rnn`.

    Each has the shape of its argument; it is None where the argument was None.

    Examples
    --------
    >>> import fastderiv as fd
    >>> dh, x = [[[0.0], [1.0]]], [[[1.0], [1.0]]]
    >>> grads = fd.grid_rnn_vjp(dh, x, [[2.0]], [[0.5]], [[0.0]], activation="relu")
    >>> grads.dx.tolist(), grads.dW_west.tolist(), grads.db
    ([[[1.0], [2.0]]], [[2.0]], None)
    """

    dx: NDArray
    dW_in: NDArray
    dW_west: NDArray
    dW_north: NDArray
    db: NDArray | None


def grid_rnn(
    x: ArrayLike,
    W_in: ArrayLike,
    W_west: ArrayLike,
    W_north: ArrayLike,
    b: ArrayLike | None = None,
    *,
    activation: Activation = "tanh",
) -> NDArray:
    r"""The recurrent network over a grid.

    A cell sees its input and the states of its western and northern neighbours,

    .. math::
        h_{i,j} = \varphi(W_\text{in} x_{i,j} + W_\text{west} h_{i,j-1}
        + W_\text{north} h_{i-1,j} + b),

    where the states outside the grid are 0.

    Parameters
    ----------
    x : array_like, shape (G1, G2, D) or (batch, G1, G2, D)
    W_in : array_like, shape (H, D)
    W_west, W_north : array_like, shape (H, H)
    b : array_like, shape (H,), optional
    activation : str, tuple of two callables, or None
        φ, as in `dense`; "tanh" by default.  A pair (φ, φ′) is called once for each anti-diagonal,
        with pre-activations (batch, cells, H); NumPy then does the sweep.

    Returns
    -------
    h : ndarray, shape (G1, G2, H) or (batch, G1, G2, H)
        The states of all cells.  float32 if all arrays are, else float64.

    Raises
    ------
    ValueError, TypeError
        If a shape or dtype does not fit, or the activation is unknown.  The message names the
        argument, what was expected and what came.

    See Also
    --------
    grid_rnn_vjp : its gradients.

    Notes
    -----
    A cell costs DH + 2H² multiply–adds.  The cells of one anti-diagonal i + j do not depend on each
    other: a sweep has G1 + G2 − 1 steps, and each step is the product of a matrix of all its cells
    with a matrix of all weights.  Batch items are shared out among threads.  Memory beyond inputs
    and result is a copy of the weights, and for each thread sums for 48 cells.

    The bits of the result do not depend on strides, threads or the rest of the batch.  BLAS is
    called only for a pair of callables, whose results then have the bits of NumPy's products.  The
    zeros outside the grid are multiplied, too: a weight that is not finite makes NaN at the rim.

    References
    ----------
    docs/derivations.md §4.4.

    Examples
    --------
    With weights of one and no activation, the states count the paths from the origin:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> x = np.zeros((4, 5, 1))
    >>> x[0, 0] = 1
    >>> one = np.ones((1, 1))
    >>> fd.grid_rnn(x, one, one, one, activation=None)[..., 0]
    array([[ 1.,  1.,  1.,  1.,  1.],
           [ 1.,  2.,  3.,  4.,  5.],
           [ 1.,  3.,  6., 10., 15.],
           [ 1.,  4., 10., 20., 35.]])

    A pair of callables can watch the G1 + G2 − 1 steps, here for (G1, G2) = (4, 5):

    >>> cells = []
    >>> def phi(a):
    ...     cells.append(a.shape[1])
    ...     return np.tanh(a)
    >>> h = fd.grid_rnn(x, one, one, one, activation=(phi, lambda a: 1 / np.cosh(a) ** 2))
    >>> cells
    [1, 2, 3, 4, 4, 3, 2, 1]
    >>> bool(np.allclose(h, fd.grid_rnn(x, one, one, one)))
    True

    To sweep from another corner, flip the axes of x and of the result.
    """
    return _GridCall(("x", *_WEIGHTS), (x, W_in, W_west, W_north, b), activation).forward()


def grid_rnn_vjp(
    dh: ArrayLike,
    x: ArrayLike,
    W_in: ArrayLike,
    W_west: ArrayLike,
    W_north: ArrayLike,
    b: ArrayLike | None = None,
    *,
    activation: Activation = "tanh",
) -> GridRNNGrads:
    r"""The adjoint of `grid_rnn`: the gradients of a scalar, given that with respect to all states.

    The adjoints of the pre-activations :math:`a` are, from the last cell to the first,

    .. math::
        \bar a_{i,j} = (\bar h_{i,j} + W_\text{west}^T \bar a_{i,j+1}
        + W_\text{north}^T \bar a_{i+1,j}) \odot \varphi'(a_{i,j}),

    and every gradient is a product with them or a sum of them.

    Parameters
    ----------
    dh : array_like, shape (G1, G2, H) or (batch, G1, G2, H)
        Gradient with respect to the result of `grid_rnn`.
    x, W_in, W_west, W_north, b, activation
        As they were passed to `grid_rnn`.

    Returns
    -------
    grads : GridRNNGrads
        ``dx``, ``dW_in``, ``dW_west``, ``dW_north`` and ``db``, each in the shape of its argument;
        ``db`` is None if b was None.  The gradients of the weights are summed over the batch.
        float32 if all arrays are, else float64.

    Raises
    ------
    ValueError, TypeError
        If a shape or dtype does not fit, or the activation is unknown.  The message names the
        argument, what was expected and what came.

    See Also
    --------
    grid_rnn : the network.

    Notes
    -----
    The states and φ′ are computed again and then swept backwards, which takes about three times as
    long as `grid_rnn`: DH + 2H² multiply–adds for the states of a cell, as many for the weights'
    gradients, and as many again for adjoints and ``dx``.  Memory beyond inputs and results is

    - 2 G1 G2 H numbers for each batch item that a thread works on: the batch is cut into up to 16
      parts, and into fewer if a part would have less than 24 cells on an average diagonal;
    - for each part a share of the weights' gradients in float64: together at most a quarter of the
      size of all states, or two shares, if these are more;
    - scratch of the size of the weights for each thread.

    The weights' gradients are sums over groups of 48 to 1536 cells, which are added up in float64.
    The bits of the result do not depend on strides or threads; those of ``dx`` do not depend on the
    rest of the batch either.  BLAS is called only for a pair of callables, which also takes memory
    for the states, slopes, adjoints and operands of all cells at once.  As in `grid_rnn` the zeros
    outside the grid are multiplied: a weight, or an adjoint at the rim, that is not finite makes
    NaN of them.

    References
    ----------
    docs/derivations.md §4.4.

    Examples
    --------
    The last state of a 2 × 3 grid depends on each input by the number of paths between them:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> x, one, dh = np.ones((2, 3, 1)), np.ones((1, 1)), np.zeros((2, 3, 1))
    >>> dh[-1, -1] = 1
    >>> fd.grid_rnn_vjp(dh, x, one, one, one, activation=None).dx[..., 0]
    array([[3., 2., 1.],
           [1., 1., 1.]])
    """
    return _GridCall(
        ("dh", "x", *_WEIGHTS), (dh, x, W_in, W_west, W_north, b), activation
    ).adjoint()


_WEIGHTS = "W_in", "W_west", "W_north", "b"


class _GridCall:
    """The checked arguments of one call, in one dtype and one layout, a batch axis in front."""

    def __init__(
        self, names: tuple[str, ...], values: tuple[ArrayLike | None, ...], activation: Activation
    ) -> None:
        self.curve, self.pair = _activations.check(activation)
        *dh, x, W_in, W_west, W_north, b = common(as_arrays(names, values, optional=("b",)))
        if x.ndim not in (3, 4):
            raise ValueError(f"x has shape {x.shape}; expected (G1, G2, D) or (batch, G1, G2, D)")
        if W_in.ndim != 2 or W_in.shape[1] != x.shape[-1]:
            raise ValueError(f"W_in has shape {W_in.shape}; expected (H, D) with D = {x.shape[-1]}")
        self.H, self.D = W_in.shape
        for name, W in ("W_west", W_west), ("W_north", W_north):
            expect(name, W, (self.H, self.H), "(H, H)")
        if b is not None:
            expect("b", b, (self.H,), "(H,)")
        self.shape = (*x.shape[:-1], self.H)
        for a in dh:
            expect("dh", a, self.shape, "(batch, G1, G2, H)" if x.ndim == 4 else "(G1, G2, H)")
        self.dtype, self.x_shape = x.dtype, x.shape
        self.W_in, self.W_west = packed("W_in", W_in), packed("W_west", W_west)
        self.W_north = packed("W_north", W_north)
        self.b = None if b is None else packed("b", b)
        self.x = packed("x", x if x.ndim == 4 else x[None])
        self.dh = [packed("dh", a if a.ndim == 4 else a[None]) for a in dh]

    @undisturbed
    def forward(self) -> NDArray:
        h = empty("the result", (*self.x.shape[:3], self.H), self.dtype)
        if self.pair is not None:
            self.sweep_pair(self.pair, h, None)
        elif h.size:
            _kernels[self.dtype].grid_forward(self.x, self.stacked(), self.b, curve=self.curve, h=h)
        return h.reshape(self.shape)

    def stacked(self) -> NDArray:
        """The weights (D + 2H, H) of a row [x | west | north]."""
        return stacked("a copy of the weights", [self.W_in.T, self.W_west.T, self.W_north.T])

    @undisturbed
    def adjoint(self) -> GridRNNGrads:
        (dh,) = self.dh
        dx = empty("dx", self.x.shape, self.dtype, np.zeros)
        if self.pair is not None:
            h, slope = (empty(f"the {what}", dh.shape, self.dtype) for what in ("states", "slopes"))
            self.sweep_pair(self.pair, h, slope)
            shares = self.sweep_back_pair(h, slope, dx)
        elif dh.size:
            shares = _kernels[self.dtype].grid_adjoint(
                dh,
                self.x,
                self.stacked(),
                bias=self.b,
                W_in=self.W_in,
                turned=stacked("a copy of the weights", [self.W_west, self.W_north]),
                curve=self.curve,
                dx=dx,
            )
        else:
            shares = empty("the gradients", (1, self.H, self.D + 2 * self.H + 1), F64, np.zeros)
        D, H, sums = self.D, self.H, self.added_up(shares)
        dW_in, dW_west, dW_north = (
            contiguous("a gradient", sums[:, i:j])
            for i, j in ((0, D), (D, D + H), (D + H, D + 2 * H))
        )
        return GridRNNGrads(
            dx.reshape(self.x_shape),
            dW_in,
            dW_west,
            dW_north,
            None if self.b is None else sums[:, D + 2 * H].copy(),
        )

    def added_up(self, shares: NDArray) -> NDArray:
        """The sum over shares (tasks, H, columns) in float64, rounded once."""
        if shares.size <= _SMALL_SUM:
            return shares.sum(axis=0).astype(self.dtype)
        total = empty("the gradients", shares.shape[1:], self.dtype)
        for part in pieces(total.shape):
            total[part] = shares[(slice(None), *part)].sum(axis=0)
        return total

    # ---- the same for a pair of callables, in NumPy, a diagonal's cells at a time ----------------

    def diagonals(self) -> Iterator[tuple[NDArray, NDArray]]:
        """The rows and columns of the cells of every anti-diagonal."""
        _, G1, G2, _ = self.x.shape
        for d in range(G1 + G2 - 1):
            i = np.arange(max(0, d - G2 + 1), min(G1, d + 1))
            yield i, d - i

    def sweep_pair(self, pair: _activations.Pair, h: NDArray, slope: NDArray | None) -> None:
        batch, G1, G2, _ = h.shape
        inputs = self.x @ self.W_in.T
        if self.b is not None:
            inputs += self.b
        states = empty("the states", (batch, G1 + 1, G2 + 1, self.H), self.dtype, np.zeros)
        for i, j in self.diagonals():
            a = (
                inputs[:, i, j]
                + states[:, i + 1, j] @ self.W_west.T
                + states[:, i, j + 1] @ self.W_north.T
            )
            if slope is not None:
                slope[:, i, j] = _activations.evaluate(pair, 1, a.copy())
            states[:, i + 1, j + 1] = h[:, i, j] = _activations.evaluate(pair, 0, a)

    def sweep_back_pair(self, h: NDArray, slope: NDArray, dx: NDArray) -> NDArray:
        """OUT dx; the gradients of [W_in | W_west | W_north | b] are returned."""
        batch, G1, G2, H = h.shape
        dh = empty("the states' adjoints", (batch, G1 + 1, G2 + 1, H), self.dtype, np.zeros)
        dh[:, 1:, 1:] = self.dh[0]
        seen = np.ones((batch, G1, G2, self.D + 2 * H + 1), self.dtype)
        seen[..., : self.D], seen[..., self.D : -1] = self.x, 0
        seen[:, :, 1:, self.D : self.D + H], seen[:, 1:, :, self.D + H : -1] = (
            h[:, :, :-1],
            h[:, :-1],
        )
        shares = np.zeros((1, H, seen.shape[-1]))
        for i, j in reversed(list(self.diagonals())):
            da = dh[:, i + 1, j + 1] * slope[:, i, j]
            dh[:, i + 1, j] += da @ self.W_west
            dh[:, i, j + 1] += da @ self.W_north
            dx[:, i, j] = da @ self.W_in
            shares += np.einsum("bcu,bck->uk", da, seen[:, i, j])
        return shares
