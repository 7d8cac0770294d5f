"""`S6`: the layer of docs/derivations.md §1.1, projections by matrix products and then the scan."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, SupportsIndex, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core import maths
from ..._core.arrays import as_array, as_arrays, assign, common, empty, expect, index, working
from ..._core.floats import undisturbed
from ._attention import scan_attention
from ._scan import selective_scan
from ._transition import transition_product
from ._vjp import SelectiveScanGrads, selective_scan_vjp

_WORK, _ROWS = 1_000_000_000, 1 << 18  # most multiply–adds and rows of one call of BLAS
_CALL = ("x", "initial_state", "dy", "dlast_state")


class S6Grads(NamedTuple):
    """The gradients that `S6.vjp` returns, each in the shape of what it belongs to.

    Attributes
    ----------
    dx : ndarray, shape (L, E) or (batch, L, E)
    dW_delta : ndarray, shape (E, E)
    db_delta : ndarray, shape (E,)
    dA : ndarray, shape (E, N)
    dW_B, dW_C : ndarray, shape (N, E)
        The weights' gradients are sums over the batch.
    dinitial_state : ndarray, shape (E, N) or (batch, E, N), or None
        None if no initial state was given.

    Examples
    --------
    >>> import fastderiv as fd
    >>> layer = fd.S6([[0.0]], [0.0], [[-1.0]], [[1.0]], [[1.0]])
    >>> grads = layer.vjp([[1.0]], [[2.0]])
    >>> grads.dW_B.shape, grads.dinitial_state is None
    ((1, 1), True)
    """

    dx: NDArray
    dW_delta: NDArray
    db_delta: NDArray
    dA: NDArray
    dW_B: NDArray
    dW_C: NDArray
    dinitial_state: NDArray | None


class _Weights(NamedTuple):
    W_delta: NDArray
    b_delta: NDArray
    A: NDArray
    W_B: NDArray
    W_C: NDArray


class S6:
    r"""The selective state space layer, with its own projections and time as the last axis but one.

    For every sequence x (L, E) and channel e,

    .. math::
        \Delta_l = \mathrm{softplus}(x_l W_\Delta + b_\Delta), \quad B_l = W_B x_l,
        \quad C_l = W_C x_l, \qquad
        h_{l,e} = e^{\Delta_{l,e} A_e} \odot h_{l-1,e} + \Delta_{l,e} B_l x_{l,e},
        \quad y_{l,e} = C_l \cdot h_{l,e}.

    The layer owns read-only copies of its weights; it is immutable, copies and pickles.  Gradient
    descent makes a new layer in every step, best with log(−A) for a parameter, so that A stays
    negative: its gradient is ``dA * A``.

    Parameters
    ----------
    W_delta : array_like, shape (E, E)
        Column e makes the step sizes of channel e.
    b_delta : array_like, shape (E,)
    A : array_like, shape (E, N)
        Continuous-time transition; negative where the state is to decay.
    W_B, W_C : array_like, shape (N, E)

    Attributes
    ----------
    W_delta, b_delta, A, W_B, W_C : ndarray
        Read-only; float32 if all of them are given so, else float64.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, naming the argument, what was expected and what came.

    Notes
    -----
    O(L·E·(E + N)) time per sequence.  Memory beyond input and result is that of the projections,
    L·(E + 2N) elements; the scan reads them through transposed views.  The projections are matrix
    products of NumPy: the bits of a result do not depend on strides or on fastderiv's threads, but
    those of a batch or a chunk equal those of its parts to rounding only.

    Every method computes in float32 if the weights and all its arguments are float32, else in
    float64, and takes arrays of any strides.  `x` is (L, E), or (batch, L, E) for a batch, which
    every other array then has as its first axis too.

    References
    ----------
    docs/derivations.md §1.1 and §1.5.  A. Gu, T. Dao, "Mamba: Linear-Time Sequence Modeling with
    Selective State Spaces", 2023, arXiv:2312.00752.

    Examples
    --------
    Two channels and one state, the whole sequence and the same in two chunks:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> W_delta, b_delta, A = [[0.5, 0.0], [0.0, -0.5]], [0.0, 1.0], [[-1.0], [-0.1]]
    >>> layer = fd.S6(W_delta, b_delta, A, W_B=[[1.0, 1.0]], W_C=[[0.5, 2.0]])
    >>> layer
    S6(E=2, N=1, float64)
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, -1.0]])
    >>> y = layer(x)
    >>> first, state = layer(x[:2], return_last_state=True)
    >>> second = layer(x[2:], initial_state=state)
    >>> bool(np.allclose(y, np.vstack([first, second]), rtol=1e-14))
    True
    """

    __slots__ = ("__weakref__", "_weights")

    def __init__(
        self, W_delta: ArrayLike, b_delta: ArrayLike, A: ArrayLike, W_B: ArrayLike, W_C: ArrayLike
    ) -> None:
        given = _Weights(*working(W_delta=W_delta, b_delta=b_delta, A=A, W_B=W_B, W_C=W_C))
        _check_weights(given)
        self._weights = _Weights(*map(_copy, _Weights._fields, given))
        for w in self._weights:
            w.flags.writeable = False

    @property
    def W_delta(self) -> NDArray:
        return self._weights.W_delta

    @property
    def b_delta(self) -> NDArray:
        return self._weights.b_delta

    @property
    def A(self) -> NDArray:
        return self._weights.A

    @property
    def W_B(self) -> NDArray:
        return self._weights.W_B

    @property
    def W_C(self) -> NDArray:
        return self._weights.W_C

    @overload
    def __call__(
        self,
        x: ArrayLike,
        initial_state: ArrayLike | None = None,
        return_last_state: Literal[False] = False,
    ) -> NDArray: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        initial_state: ArrayLike | None = None,
        *,
        return_last_state: Literal[True],
    ) -> tuple[NDArray, NDArray]: ...
    @overload
    def __call__(
        self, x: ArrayLike, initial_state: ArrayLike | None, return_last_state: Literal[True]
    ) -> tuple[NDArray, NDArray]: ...
    @overload
    def __call__(
        self, x: ArrayLike, initial_state: ArrayLike | None = None, return_last_state: bool = False
    ) -> NDArray | tuple[NDArray, NDArray]: ...
    def __call__(
        self, x: ArrayLike, initial_state: ArrayLike | None = None, return_last_state: bool = False
    ) -> NDArray | tuple[NDArray, NDArray]:
        """The layer's output.

        Parameters
        ----------
        x : array_like, shape (L, E) or (batch, L, E)
        initial_state : array_like, shape (E, N) or (batch, E, N), optional
            State before the first step; zeros by default.
        return_last_state : bool, optional
            Whether to return the state after the last step too: the `initial_state` of the next
            chunk.

        Returns
        -------
        y : ndarray, shape of `x`
        last_state : ndarray, shape (E, N) or (batch, E, N)
            Only if `return_last_state`.

        Raises
        ------
        ValueError, TypeError
            A shape or dtype that does not fit.

        Examples
        --------
        >>> import fastderiv as fd
        >>> layer = fd.S6([[0.0]], [0.0], [[-1.0]], [[1.0]], [[1.0]])
        >>> y, last = layer([[1.0], [0.0], [1.0]], return_last_state=True)
        >>> y.round(6)
        array([[0.693147],
               [0.      ],
               [0.866434]])
        >>> layer([[1.0]], initial_state=last).shape
        (1, 1)
        """
        call = _Call(self._weights, x, initial_state)
        y = empty("the result", call.x.shape, call.x.dtype)
        result = selective_scan(
            *call.scan_arguments(),
            delta_bias=call.w.b_delta,
            delta_softplus=True,
            return_last_state=return_last_state,
            initial_state=call.initial_state,
            out=_turned(y),
        )
        return (y, result[1]) if isinstance(result, tuple) else y

    def vjp(
        self,
        dy: ArrayLike,
        x: ArrayLike,
        initial_state: ArrayLike | None = None,
        dlast_state: ArrayLike | None = None,
    ) -> S6Grads:
        """The gradients of Σ dy ⊙ y + Σ dlast_state ⊙ last_state.

        Parameters
        ----------
        dy : array_like, shape of `x`
            The adjoint of the output.
        x : array_like, shape (L, E) or (batch, L, E)
        initial_state : array_like, shape (E, N) or (batch, E, N), optional
            As the layer was called with.
        dlast_state : array_like, shape (E, N) or (batch, E, N), optional
            The adjoint of the last state; zeros by default.

        Returns
        -------
        S6Grads

        Raises
        ------
        ValueError, TypeError
            A shape or dtype that does not fit.

        Notes
        -----
        The time is three to five times that of the output.  Memory beyond inputs and results is
        that of the projections and of their adjoints, and the checkpoints of `selective_scan_vjp`.

        Examples
        --------
        A step along the gradient of Σ y² / 2 makes it smaller:

        >>> import numpy as np
        >>> import fastderiv as fd
        >>> rng = np.random.default_rng(0)
        >>> x, W = rng.normal(size=(8, 3)), rng.normal(size=(3, 3))
        >>> layer = fd.S6(W, np.zeros(3), -np.ones((3, 2)), W[:2], W[1:])
        >>> y = layer(x)
        >>> dW_C = layer.vjp(y, x).dW_C
        >>> smaller = fd.S6(W, np.zeros(3), -np.ones((3, 2)), W[:2], W[1:] - 1e-3 * dW_C)
        >>> bool((smaller(x) ** 2).sum() < (y ** 2).sum())
        True
        """
        call = _Call(self._weights, x, initial_state, as_array("dy", dy), dlast_state)
        scan = selective_scan_vjp(
            _turned(call.dy),
            *call.scan_arguments(),
            delta_bias=call.w.b_delta,
            delta_softplus=True,
            initial_state=call.initial_state,
            dlast_state=call.dlast_state,
        )
        return call.projections_vjp(scan)

    def step_sizes(self, x: ArrayLike) -> NDArray:
        """The Δ of every step and channel: how far each input moves its channel's state on.

        Parameters
        ----------
        x : array_like, shape (L, E) or (batch, L, E)

        Returns
        -------
        delta : ndarray, shape of `x`

        Raises
        ------
        ValueError, TypeError
            A shape or dtype that does not fit.

        Examples
        --------
        >>> import fastderiv as fd
        >>> fd.S6([[1.0]], [0.0], [[-1.0]], [[1.0]], [[1.0]]).step_sizes([[0.0], [1.0]]).round(6)
        array([[0.693147],
               [1.313262]])
        """
        return maths.softplus(_Call(self._weights, x).preactivations())

    def transition_product(
        self,
        x: ArrayLike,
        start: SupportsIndex | None,
        stop: SupportsIndex | None,
        method: Literal["closed", "subsets"] = "closed",
    ) -> NDArray:
        """The product of the transitions of the steps ``start:stop``: which part of the state
        before them is left after them.

        Parameters
        ----------
        x : array_like, shape (L, E) or (batch, L, E)
        start, stop : int or None
            The range of steps, half-open, as in a slice: negative ones count from the end, None is
            an end of the sequence.
        method : {"closed", "subsets"}, optional
            By which side of the theorem: "closed" sums one term per step, "subsets" one per subset
            of the steps.

        Returns
        -------
        product : ndarray, shape (E, N) or (batch, E, N)

        Raises
        ------
        ValueError, TypeError
            A shape, dtype or range that does not fit, an unknown method, or more than 62 steps by
            "subsets".

        See Also
        --------
        fastderiv.transition_product : the same from pre-activations, with the theorem and its cost.

        Examples
        --------
        >>> import numpy as np
        >>> import fastderiv as fd
        >>> layer = fd.S6([[1.0]], [0.0], [[-1.0]], [[1.0]], [[1.0]])
        >>> x = np.linspace(-1, 1, 9)[:, None]
        >>> layer.transition_product(x, 2, 7).round(6)
        array([[0.028921]])
        >>> layer.transition_product(x, 2, 7, method="subsets").round(6)
        array([[0.028921]])
        """
        call = _Call(self._weights, x)
        first, last = (
            None if i is None else index(name, i) for name, i in (("start", start), ("stop", stop))
        )
        delta = _turned(call.preactivations(slice(first, last)))
        if method == "subsets" and delta.shape[-1] > 62:
            raise ValueError(
                f"start:stop = {first}:{last} has {delta.shape[-1]} steps; "
                "expected at most 62 by method 'subsets'"
            )
        return transition_product(delta, call.w.A, method=method)

    def attention(self, x: ArrayLike) -> NDArray:
        r"""The layer's hidden attention at `x`: a lower-triangular matrix for every channel, with
        ``y[:, e] = alpha[e] @ x[:, e]``.

        Parameters
        ----------
        x : array_like, shape (L, E) or (batch, L, E)

        Returns
        -------
        alpha : ndarray, shape (E, L, L) or (batch, E, L, L)
            ``alpha[e, l, j]`` is the weight of ``x[j, e]`` in ``y[l, e]``, the initial state being
            zero.

        Raises
        ------
        ValueError, TypeError
            A shape or dtype that does not fit.

        See Also
        --------
        fastderiv.scan_attention : any rows of it, for sequences whose whole matrix does not fit.

        Notes
        -----
        O(E·L²·N) time, and the result's E·L² elements per sequence.

        Examples
        --------
        >>> import fastderiv as fd
        >>> layer = fd.S6([[0.0]], [0.0], [[-1.0]], [[1.0]], [[1.0]])
        >>> x = [[1.0], [0.0], [1.0]]
        >>> layer.attention(x)[0].round(3)
        array([[0.693, 0.   , 0.   ],
               [0.   , 0.   , 0.   ],
               [0.173, 0.   , 0.693]])
        """
        call = _Call(self._weights, x)
        _, delta, A, B, C = call.scan_arguments()
        return scan_attention(delta, A, B, C, call.w.b_delta, True)

    def __repr__(self) -> str:
        channels, states = self.A.shape
        return f"S6(E={channels}, N={states}, {self.A.dtype})"

    def __reduce__(self) -> tuple:
        return type(self), tuple(self._weights)


class _Call:
    """The checked arguments of one call in one dtype, and its projections."""

    def __init__(
        self,
        weights: _Weights,
        x: ArrayLike,
        initial_state: ArrayLike | None = None,
        dy: ArrayLike | None = None,
        dlast_state: ArrayLike | None = None,
    ) -> None:
        given = as_arrays(_CALL, (x, initial_state, dy, dlast_state), optional=_CALL[1:])
        self.x, self.initial_state, self.dy, self.dlast_state, *w = common([*given, *weights])
        self.w = _Weights(*w)
        self._check()
        if not self.x.flags.c_contiguous:  # in other layouts its products could have other bits
            self.x = _copy("x", self.x)

    def _check(self) -> None:
        x, (channels, states) = self.x, self.w.A.shape
        if x.ndim not in (2, 3) or x.shape[-1] != channels:
            raise ValueError(
                f"x has shape {x.shape}; expected (L, E) or (batch, L, E) with E = {channels}"
            )
        batch, symbol = x.shape[:-2], "batch, " * (x.ndim - 2)
        if self.dy is not None:
            expect("dy", self.dy, x.shape, f"({symbol}L, E)")
        for name, state in ("initial_state", self.initial_state), ("dlast_state", self.dlast_state):
            if state is not None:
                expect(name, state, (*batch, channels, states), f"({symbol}E, N)")

    @undisturbed
    def preactivations(self, steps: slice = slice(None)) -> NDArray:
        """δ = x W_Δ + b_Δ (..., L, E) of these steps."""
        delta = _product(self.x[..., steps, :], self.w.W_delta)
        delta += self.w.b_delta
        return delta

    @undisturbed
    def scan_arguments(self) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
        """The scan's arguments u = x, δ = x W_Δ still without its bias, A, B = W_B x and C = W_C x:
        views in its layout.
        """
        x, w = self.x, self.w
        delta, B, C = (_product(x, W) for W in (w.W_delta, w.W_B.T, w.W_C.T))
        return (
            _turned(x),
            _turned(delta),
            w.A,
            _turned(B)[..., None, :, :],
            _turned(C)[..., None, :, :],
        )

    @undisturbed
    def projections_vjp(self, scan: SelectiveScanGrads) -> S6Grads:
        """The layer's gradients from those of the scan (docs/derivations.md §1.5).

        x̄ = ū + δ̄ W_Δᵀ + B̅ W_B + C̅ W_C,  W̅_Δ = xᵀ δ̄,  W̅_B = B̅ᵀ x,  W̅_C = C̅ᵀ x.
        """
        x, w = self.x, self.w
        ddelta, dB, dC = (
            _turned(scan.ddelta),
            _turned(scan.dB[..., 0, :, :]),
            _turned(scan.dC[..., 0, :, :]),
        )
        dx = _product(ddelta, w.W_delta.T)
        for more in _product(dB, w.W_B), _product(dC, w.W_C), _turned(scan.du):
            dx += more
        dW_delta, dW_B, dW_C = (_summed_product(a, b) for a, b in ((x, ddelta), (dB, x), (dC, x)))
        assert scan.ddelta_bias is not None  # the scan was given one
        return S6Grads(dx, dW_delta, scan.ddelta_bias, scan.dA, dW_B, dW_C, scan.dinitial_state)


def _copy(name: str, a: NDArray) -> NDArray:
    """A C-contiguous copy of the argument called `name`."""
    own = empty(f"the copy of {name}", a.shape, a.dtype)
    assign(own, a)
    return own


def _product(a: NDArray, W: NDArray) -> NDArray:
    """a (..., n) times W (n, m)."""
    rows = math.prod(a.shape[:-1])
    return _dot(a.reshape(rows, a.shape[-1]), W).reshape(*a.shape[:-1], W.shape[1])


def _summed_product(a: NDArray, b: NDArray) -> NDArray:
    """Σ over batch and time of a (..., n) ⊗ b (..., m)."""
    rows = math.prod(a.shape[:-1])
    return _dot(np.moveaxis(a, -1, 0).reshape(a.shape[-1], rows), b.reshape(rows, b.shape[-1]))


def _dot(a: NDArray, b: NDArray) -> NDArray:
    """The product of matrices, a few rows at a time, between which signals are looked for."""
    out = empty("a projection", (a.shape[0], b.shape[1]), a.dtype)
    step = max(
        64, min(_ROWS, _WORK // max(1, b.size)) // 64 * 64
    )  # BLAS itself works in multiples of 64
    for first in range(0, len(a), step):
        np.dot(a[first : first + step], b, out=out[first : first + step])
    return out


def _turned(a: NDArray) -> NDArray:
    """The view with time where channels are, and the other way round."""
    return a.swapaxes(-1, -2)


def _check_weights(w: _Weights) -> None:
    if w.W_delta.ndim != 2 or w.W_delta.shape[0] != w.W_delta.shape[1]:
        raise ValueError(f"W_delta has shape {w.W_delta.shape}; expected (E, E)")
    channels = len(w.W_delta)
    expect("b_delta", w.b_delta, (channels,), "(E,)")
    if w.A.ndim != 2 or len(w.A) != channels:
        raise ValueError(f"A has shape {w.A.shape}; expected (E, N) = ({channels}, N)")
    for name, W in ("W_B", w.W_B), ("W_C", w.W_C):
        expect(name, W, w.A.shape[::-1], "(N, E)")
