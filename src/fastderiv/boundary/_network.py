"""SigmoidMLP: the network, its outputs, the margin between two of them and the margin's gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from .._core import arrays
from .._core.dispatch import kernels
from .._core.fpstate import ieee
from ._sklearn import parameters_of

Outputs = Sequence[int] | np.ndarray
_kernels = kernels("boundary", ("f64",))[arrays.F64]
Network = TypeVar("Network", bound="SigmoidMLP")


class SigmoidMLP:
    """A multilayer perceptron whose hidden layers are logistic: ``y = σ(x W + b)`` layer after layer, in float64.

    The network owns copies of its parameters that nobody can write to; it is immutable, compares by value, copies and
    pickles.

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

    __slots__ = ("__weakref__", "_biases", "_names", "_programs", "_weights")

    def __init__(self, weights: Sequence[ArrayLike], biases: Sequence[ArrayLike]) -> None:
        with ieee():  # in which integers and float32 are converted alike everywhere
            self._weights, self._biases = _parameters(weights, biases)
        self._names: tuple[str, ...] | None = (
            None  # of the features, where a fitted model knew them
        )
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
            It remembers the model's ``feature_names_in_``: DataFrames with other columns, or in another order, are
            refused as scikit-learn refuses them.

        Raises
        ------
        TypeError
            If `model` is no MLPClassifier, as a Pipeline around one is none.
        ValueError
            If it is not fitted, its activation is not "logistic", it has several labels per sample or one class only,
            or predicts by other means than scikit-learn's own.
        """
        weights, biases, names = parameters_of(model)
        return _named(cls, weights, biases, names)

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
        With a single output it is the logit, whose sign tells class 1 from class 0.

        Parameters
        ----------
        X : array_like, shape (m, n_inputs)
        outputs : pair of int, optional
            Two different outputs, by default (0, 1); negative ones count from the last.  With a single output they are
            its two classes, and in either order give the logit.

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
        with ieee():
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
        with ieee():
            X, program = self._inputs(X), self._margin_program(outputs)
            out = np.empty(X.shape)
            program.gradient(X, out)
        return out

    def _evaluate(self, X: ArrayLike, squash: bool) -> np.ndarray:
        with ieee():
            X = self._inputs(X)
            out = np.empty((len(X), self.n_outputs))
            self._logits_program().evaluate(X, out, squash)
        return out

    def _inputs(self, X: ArrayLike) -> np.ndarray:
        check_names(self, "X", X)
        X = arrays.float64("X", X)
        if X.ndim != 2 or X.shape[1] != self.n_inputs:
            raise ValueError(
                f"X has shape {X.shape}; expected (m, n_inputs) = (m, {self.n_inputs})"
            )
        return X

    def _columns(self, outputs: Outputs) -> tuple[int, int] | None:
        """`outputs` as two non-negative numbers; None if there is only one output, that tells two classes apart."""
        if self.n_outputs > 1:
            return _pair("outputs", outputs, self.n_outputs)
        _pair("outputs", outputs, 2, "classes")
        return None

    def _unpacked(self) -> Self:
        """The same network, whose packed kernels' networks are its own and end with it."""
        other = object.__new__(type(self))
        other._weights, other._biases, other._names, other._programs = (
            self._weights,
            self._biases,
            self._names,
            {},
        )
        return other

    def _logits_program(self) -> Any:
        if None not in self._programs:
            self._programs[None] = _kernels.Program(self._weights, self._biases)
        return self._programs[None]

    def _margin_program(self, outputs: Outputs) -> Any:
        """The network whose only output is the margin."""
        pair = self._columns(outputs)
        if pair not in self._programs:
            d, dc = self._last_difference(pair)
            self._programs[pair] = _kernels.Program(
                (*self._weights[:-1], d[:, None]), (*self._biases[:-1], dc)
            )
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
        with ieee(), np.errstate(all="ignore"):
            difference = first - second
        return difference[:-1], difference[-1:]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SigmoidMLP):
            return NotImplemented
        mine, theirs = self._weights + self._biases, other._weights + other._biases
        with ieee():  # in which subnormal numbers differ
            return len(mine) == len(theirs) and all(map(np.array_equal, mine, theirs))

    def __hash__(self) -> int:
        with ieee(), np.errstate(all="ignore"):
            return hash(
                (self._sizes(), *((b + 0.0).tobytes() for b in self._biases))
            )  # + 0.0: −0.0 equals 0.0

    def __repr__(self) -> str:
        return f"SigmoidMLP({'-'.join(map(str, self._sizes()))})"

    def __reduce__(self) -> tuple:
        if self._names is None:
            return type(self), (self._weights, self._biases)
        return _named, (type(self), self._weights, self._biases, self._names)

    def _sizes(self) -> tuple[int, ...]:
        return (self.n_inputs, *self.hidden_widths, self.n_outputs)


def check_network(net: SigmoidMLP) -> None:
    if not isinstance(net, SigmoidMLP):
        raise TypeError(f"net is a {type(net).__name__}; expected a SigmoidMLP")


def check_names(
    net: SigmoidMLP, name: str, value: object, *, without: int | None = None, row: bool = False
) -> None:
    """A ValueError if `value` has columns of other names, or in another order, than the model of `net` was fitted with.

    `without` is the number of an input whose column `value` has not got; `row`: a Series is one sample, whose index
    bears the names.  What has no names, or a network that knows none, passes, as with scikit-learn.
    """
    if net._names is None or type(value) is np.ndarray:
        return
    given, known = _names_of(value, row), list(net._names)
    if without is not None:
        del known[without]
    if given is not None and given != known:
        raise ValueError(
            f"{name} has other columns than the model was fitted with: {_difference(given, known)}"
        )


def _names_of(value: object, row: bool) -> list[str] | None:
    names = getattr(
        value, "column_names", getattr(value, "columns", None)
    )  # the former of pyarrow's tables
    if names is None and row and hasattr(value, "to_numpy"):
        names = getattr(value, "index", None)
    try:
        names = list(names)  # type: ignore[call-overload]
    except TypeError:
        return None
    return list(map(str, names)) if any(isinstance(n, str) for n in names) else None


def _difference(given: list[str], known: list[str]) -> str:
    """How names differ, in the words of scikit-learn."""
    unseen, missing = ([n for n in a if n not in b] for a, b in ((given, known), (known, given)))
    said = ["The feature names should match those that were passed during fit."]
    if unseen:
        said.append(f"Feature names unseen at fit time: {_few(unseen)}.")
    if missing:
        said.append(f"Feature names seen at fit time, yet now missing: {_few(missing)}.")
    if not (unseen or missing):
        said.append(f"Feature names must be in the same order as they were in fit: {_few(known)}.")
    return " ".join(said)


def _few(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + ", …" * (len(names) > 5)


def _named(
    kind: type[Network],
    weights: Sequence[ArrayLike],
    biases: Sequence[ArrayLike],
    names: Iterable[str] | None,
) -> Network:
    """A network whose features have names; what unpickling calls."""
    net = kind(weights, biases)
    if names is not None:
        names = tuple(map(str, names))
        if len(names) != net.n_inputs:
            raise ValueError(
                f"feature_names_in_ has {len(names)} names; expected one per input = {net.n_inputs}"
            )
        net._names = names
    return net


def _parameters(weights: Sequence[ArrayLike], biases: Sequence[ArrayLike]) -> tuple[tuple, tuple]:
    """Both as tuples of read-only float64 copies, with every error that can be in them."""
    given, given_b = _sequence("weights", weights), _sequence("biases", biases)
    if not given:
        raise ValueError("weights is empty; expected at least one matrix")
    if len(given_b) != len(given):
        raise ValueError(
            f"biases has {len(given_b)} arrays; expected one per weight matrix = {len(given)}"
        )
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
    return arrays.sequence(name, value, "a sequence of arrays, one per layer")


def _parameter(name: str, value: ArrayLike) -> np.ndarray:
    """A finite float64 copy in memory of a bytes object: its `writeable` flag cannot be set again."""
    given = arrays.float64(name, value)
    own = arrays.empty(name, given.shape, arrays.F64)
    arrays.assign(own, given)
    return np.ndarray(own.shape, arrays.F64, arrays.finite(name, own).tobytes())


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
