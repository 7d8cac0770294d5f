"""SigmoidMLP: the network, its outputs, the margin between two of them and the margin's gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from .._core import arrays
from .._core.dispatch import kernels

Outputs = Sequence[int] | np.ndarray
_kernels = kernels("boundary", ("f64",))[arrays.F64]


class SigmoidMLP:
    """A multilayer perceptron whose hidden layers are logistic: ``y = σ(x W + b)`` layer after layer, in float64.

    The network owns read-only copies of its parameters; it is immutable, compares by value, copies and pickles.

    Parameters
    ----------
    weights : sequence of array_like, shape (n_in, n_out)
        One matrix per layer, as scikit-learn's ``coefs_``.  The last one makes the logits and is followed by no σ;
        a single matrix is a linear network.  float32, float64 or integers.
    biases : sequence of array_like, shape (n_out,)
        One vector per layer, as scikit-learn's ``intercepts_``.

    Attributes
    ----------
    weights, biases : tuple of ndarray
        float64, read-only.
    n_inputs, n_outputs : int
    hidden_widths : tuple of int

    Raises
    ------
    TypeError
        If an argument is no sequence or an array of it has another dtype.
    ValueError
        If the shapes do not chain, no layer is given, or a parameter is NaN or infinite.

    Notes
    -----
    A row costs one multiply–add per weight and one sigmoid per hidden unit.  The layers run fused over tiles of rows:
    beside the parameters and their packed copies, memory is the result and at most 1 MiB per thread up to width 256 and
    depth 5, in proportion to width and depth beyond.  Every sum starts from the bias and runs over the inputs in order,
    so a row has the same bits for any strides, number of threads and position.

    References
    ----------
    docs/derivations.md §2.

    Examples
    --------
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[1.0, -1.0], [0.5, 0.5]], [[2.0, -2.0], [1.0, 3.0]]], [[0.0, 0.0], [0.0, 0.0]])
    >>> net
    SigmoidMLP(2-2-2)
    >>> net.margin([[0.0, 0.0], [1.0, 0.0]]).round(6)
    array([1.      , 2.386351])
    """

    __slots__ = ("__weakref__", "_biases", "_programs", "_weights")

    def __init__(self, weights: Sequence[ArrayLike], biases: Sequence[ArrayLike]) -> None:
        self._weights, self._biases = _parameters(weights, biases)
        self._programs: dict = {}  # what is evaluated -> packed kernels' network

    @classmethod
    def from_sklearn(cls, model: Any) -> Self:
        """The network inside a fitted ``sklearn.neural_network.MLPClassifier`` with ``activation="logistic"``.

        With two classes there is one output, the logit of ``classes_[1]``; with more, output k belongs to
        ``classes_[k]`` and two classes tie in ``predict_proba`` exactly where their logits do.

        Parameters
        ----------
        model : MLPClassifier

        Returns
        -------
        SigmoidMLP

        Raises
        ------
        TypeError
            If `model` is no MLPClassifier.
        ValueError
            If it is not fitted, or its activation is not "logistic".
        """
        if not all(hasattr(model, name) for name in ("activation", "hidden_layer_sizes", "predict_proba")):
            raise TypeError(f"model is a {type(model).__name__}; expected an MLPClassifier")
        if model.activation != "logistic":
            raise ValueError(f"model has activation {model.activation!r}; expected 'logistic'")
        if not hasattr(model, "coefs_"):
            raise ValueError(f"model is not fitted: this {type(model).__name__} has no coefs_")
        return cls(model.coefs_, model.intercepts_)

    @property
    def weights(self) -> tuple[np.ndarray, ...]:
        return self._weights

    @property
    def biases(self) -> tuple[np.ndarray, ...]:
        return self._biases

    @property
    def n_inputs(self) -> int:
        return self._weights[0].shape[0]

    @property
    def n_outputs(self) -> int:
        return self._weights[-1].shape[1]

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        return tuple(w.shape[1] for w in self._weights[:-1])

    def logits(self, X: ArrayLike) -> np.ndarray:
        """The outputs before the last σ.

        Parameters
        ----------
        X : array_like, shape (m, n_inputs)
            Any strides; NaN or inf in a row stays in that row.

        Returns
        -------
        logits : ndarray, shape (m, n_outputs)

        Raises
        ------
        TypeError, ValueError
            If `X` has another dtype or shape.

        Examples
        --------
        >>> import fastderiv as fd
        >>> fd.SigmoidMLP([[[1.0], [2.0]]], [[0.5]]).logits([[1, 1]])
        array([[3.5]])
        """
        return self._evaluate(X, squash=False)

    def forward(self, X: ArrayLike) -> np.ndarray:
        """The element-wise logistic of the logits, accurate relatively in both tails.

        Parameters
        ----------
        X : array_like, shape (m, n_inputs)

        Returns
        -------
        outputs : ndarray, shape (m, n_outputs)

        Raises
        ------
        TypeError, ValueError
            If `X` has another dtype or shape.

        Examples
        --------
        >>> import fastderiv as fd
        >>> fd.SigmoidMLP([[[1.0], [2.0]]], [[0.0]]).forward([[0, 0]])
        array([[0.5]])
        """
        return self._evaluate(X, squash=True)

    def margin(self, X: ArrayLike, outputs: Outputs = (0, 1)) -> np.ndarray:
        """How far one output leads another: ``logits[:, outputs[0]] - logits[:, outputs[1]]``.

        Computed from the difference of the last weights' two columns, Δc + Σ dᵢ yᵢ, so a tie is a root of one sum.
        With a single output it is the logit, and `outputs` is ignored.

        Parameters
        ----------
        X : array_like, shape (m, n_inputs)
        outputs : pair of int, optional
            Two different outputs, by default (0, 1); negative ones count from the last.

        Returns
        -------
        margin : ndarray, shape (m,)

        Raises
        ------
        TypeError, ValueError
            If `X` has another dtype or shape, or `outputs` is no pair of different outputs.

        Examples
        --------
        >>> import fastderiv as fd
        >>> fd.SigmoidMLP([[[1.0, 3.0]]], [[0.0, 0.0]]).margin([[2.0]], outputs=(1, 0))
        array([4.])
        """
        X, program = self._inputs(X), self._margin_program(outputs)
        out = np.empty(len(X))
        program.evaluate(X, out, False)
        return out

    def margin_gradient(self, X: ArrayLike, outputs: Outputs = (0, 1)) -> np.ndarray:
        """The gradient of `margin` with respect to the inputs, row by row.

        σ' is computed as e/(1+e)², so gradients stay accurate relatively where units saturate.  The cost is that of
        about two evaluations.

        Parameters
        ----------
        X : array_like, shape (m, n_inputs)
        outputs : pair of int, optional
            As in `margin`.

        Returns
        -------
        gradient : ndarray, shape (m, n_inputs)

        Raises
        ------
        TypeError, ValueError
            As `margin`.

        Examples
        --------
        >>> import fastderiv as fd
        >>> fd.SigmoidMLP([[[4.0]], [[1.0, -1.0]]], [[0.0], [0.0, 0.0]]).margin_gradient([[0.0]])
        array([[2.]])
        """
        X, program = self._inputs(X), self._margin_program(outputs)
        out = np.empty(X.shape)
        program.gradient(X, out)
        return out

    def _evaluate(self, X: ArrayLike, squash: bool) -> np.ndarray:
        X = self._inputs(X)
        out = np.empty((len(X), self.n_outputs))
        self._logits_program().evaluate(X, out, squash)
        return out

    def _inputs(self, X: ArrayLike) -> np.ndarray:
        X = arrays.float64("X", X)
        if X.ndim != 2 or X.shape[1] != self.n_inputs:
            raise ValueError(f"X has shape {X.shape}; expected (m, n_inputs) = (m, {self.n_inputs})")
        return X

    def _columns(self, outputs: Outputs) -> tuple[int, int] | None:
        """`outputs` as two non-negative numbers; None if there is only one output."""
        return None if self.n_outputs == 1 else _pair("outputs", outputs, self.n_outputs)

    def _logits_program(self) -> Any:
        if None not in self._programs:
            self._programs[None] = _kernels.Program(self._weights, self._biases)
        return self._programs[None]

    def _margin_program(self, outputs: Outputs) -> Any:
        """The network whose only output is the margin."""
        pair = self._columns(outputs)
        if pair not in self._programs:
            d, dc = self._last_difference(pair)
            self._programs[pair] = _kernels.Program((*self._weights[:-1], d[:, None]), (*self._biases[:-1], dc))
        return self._programs[pair]

    def _last_columns(self, pair: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
        """The last layer's weights and bias (n + 1,) of the two outputs; a single output leads zero."""
        v, c = self._weights[-1], self._biases[-1]
        if pair is None:
            return np.append(v[:, 0], c[0]), np.zeros(len(v) + 1)
        a, b = pair
        return np.append(v[:, a], c[a]), np.append(v[:, b], c[b])

    def _last_difference(self, pair: tuple[int, int] | None) -> tuple[np.ndarray, np.ndarray]:
        """Weights d (n,) and bias Δc (1,) of the margin in the last layer; infinite where the difference overflows."""
        first, second = self._last_columns(pair)
        with np.errstate(over="ignore"):
            difference = first - second
        return difference[:-1], difference[-1:]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SigmoidMLP):
            return NotImplemented
        mine, theirs = self._weights + self._biases, other._weights + other._biases
        return len(mine) == len(theirs) and all(map(np.array_equal, mine, theirs))

    def __hash__(self) -> int:
        return hash((self._sizes(), *((b + 0.0).tobytes() for b in self._biases)))  # + 0.0: −0.0 equals 0.0

    def __repr__(self) -> str:
        return f"SigmoidMLP({'-'.join(map(str, self._sizes()))})"

    def __reduce__(self) -> tuple:
        return type(self), (self._weights, self._biases)

    def _sizes(self) -> tuple[int, ...]:
        return (self.n_inputs, *self.hidden_widths, self.n_outputs)


def check_network(net: SigmoidMLP) -> None:
    if not isinstance(net, SigmoidMLP):
        raise TypeError(f"net is a {type(net).__name__}; expected a SigmoidMLP")


def _parameters(weights: Sequence[ArrayLike], biases: Sequence[ArrayLike]) -> tuple[tuple, tuple]:
    """Both as tuples of read-only float64 copies, with every error that can be in them."""
    given, given_b = _sequence("weights", weights), _sequence("biases", biases)
    if not given:
        raise ValueError("weights is empty; expected at least one matrix")
    if len(given_b) != len(given):
        raise ValueError(f"biases has {len(given_b)} arrays; expected one per weight matrix = {len(given)}")
    ws = tuple(_parameter(f"weights[{k}]", w) for k, w in enumerate(given))
    bs = tuple(_parameter(f"biases[{k}]", b) for k, b in enumerate(given_b))
    for k, (w, b) in enumerate(zip(ws, bs, strict=True)):
        if w.ndim != 2:
            raise ValueError(f"weights[{k}] has shape {w.shape}; expected (n_in, n_out)")
        if k and w.shape[0] != ws[k - 1].shape[1]:
            raise ValueError(
                f"weights[{k}] has shape {w.shape}; expected (n_in, n_out) = ({ws[k - 1].shape[1]}, n_out), "
                f"weights[{k - 1}] having shape {ws[k - 1].shape}"
            )
        arrays.expect(f"biases[{k}]", b, w.shape[1:], "(n_out,)")
    return ws, bs


def _sequence(name: str, value: Iterable) -> list:
    try:
        return list(value)
    except TypeError:
        raise TypeError(f"{name} is a {type(value).__name__}; expected a sequence of arrays, one per layer") from None


def _parameter(name: str, value: ArrayLike) -> np.ndarray:
    own = np.array(arrays.finite(name, arrays.float64(name, value)), order="C")
    own.flags.writeable = False
    return own


def _pair(name: str, value: Outputs, size: int, what: str = "outputs") -> tuple[int, int]:
    try:
        a, b = value
    except (TypeError, ValueError):
        raise (ValueError if isinstance(value, (Sequence, np.ndarray)) else TypeError)(
            f"{name} is {value!r}; expected a pair of integers"
        ) from None
    a, b = (arrays.position(f"{name}[{k}]", o, size, what) for k, o in enumerate((a, b)))
    if a == b:
        raise ValueError(f"{name} is {value!r}; expected two different {what}")
    return a, b
