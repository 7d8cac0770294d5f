"""SigmoidMLP: the network, its outputs, the margin between two of them and its gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from .._core import arrays
from .._core.fpstate import ieee
from . import _names
from ._compiled import kernels
from ._margin import Margin, Outputs, Pair, pair_of
from ._sklearn import parameters_of

if TYPE_CHECKING:
    from ._kernels import Program
    from ._leads import Leads

Network = TypeVar("Network", bound="SigmoidMLP")


class Kept:
    """What is made of a network when it is first asked for; it is kept with the network."""

    def __init__(self) -> None:
        self.logits: Program | None = None
        self.margins: dict[Pair | None, Margin] = {}
        self.leads: dict[int | None, Leads] = {}
        self.first_equal: np.ndarray | None = None


class SigmoidMLP:
    """A multilayer perceptron with logistic hidden layers: ``y = σ(x W + b)``, layer after layer.

    It computes in float64.  The network owns copies of its parameters that nobody can write to; it
    is immutable, compares by value, copies and pickles.

    Parameters
    ----------
    weights : sequence of array_like, shape (n_in, n_out)
        One matrix per layer, as scikit-learn's ``coefs_``.  The last one makes the logits and is
        followed by no σ; a single matrix is a linear network.  float32, float64 or integers.
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
    A row costs one multiply–add per weight and one sigmoid per hidden unit.  The layers run fused
    over tiles of rows: beside the parameters and their packed copies, memory is the result and at
    most 1 MiB per thread up to width 256 and depth 5, in proportion to width and depth beyond.
    Every sum starts from the bias and runs over the inputs in order, so that a row has the same
    bits for any strides, number of threads and position.

    References
    ----------
    docs/derivations.md §2.

    Examples
    --------
    >>> import fastderiv as fd
    >>> weights = [[[1.0, -1.0], [0.5, 0.5]], [[2.0, -2.0], [1.0, 3.0]]]
    >>> net = fd.SigmoidMLP(weights, [[0.0, 0.0], [0.0, 0.0]])
    >>> net
    SigmoidMLP(2-2-2)
    >>> net.margin([[0.0, 0.0], [1.0, 0.0]]).round(6)
    array([1.      , 2.386351])
    """

    __slots__ = ("__weakref__", "_biases", "_kept", "_names", "_weights")

    def __init__(self, weights: Sequence[ArrayLike], biases: Sequence[ArrayLike]) -> None:
        with ieee():  # in which integers and float32 are converted alike everywhere
            self._weights, self._biases = _parameters(weights, biases)
        self._names: tuple[str, ...] | None = None  # of the features, if a fitted model knew them
        self._kept = Kept()

    @classmethod
    def from_sklearn(cls, model: Any) -> Self:
        """The network inside a fitted ``sklearn.neural_network.MLPClassifier``.

        Its activation has to be "logistic".  With two classes there is one output, the logit of
        ``classes_[1]``; with more, output k belongs to ``classes_[k]`` and two classes tie in
        ``predict_proba`` exactly where their logits do.

        Parameters
        ----------
        model : MLPClassifier

        Returns
        -------
        SigmoidMLP
            It remembers the model's ``feature_names_in_``: DataFrames with other columns, or in
            another order, are refused as scikit-learn refuses them.

        Raises
        ------
        TypeError
            If `model` is no MLPClassifier, as a Pipeline around one is none.
        ValueError
            If it is not fitted, its activation is not "logistic", it has several labels per sample
            or one class only, or predicts by other means than scikit-learn's own.
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

        It is computed from the difference of the last weights' two columns, Δc + Σ dᵢ yᵢ, so that a
        tie is a root of one sum.  With a single output it is the logit, whose sign tells class 1
        from class 0.

        Parameters
        ----------
        X : array_like, shape (m, n_inputs)
        outputs : pair of int, optional
            Two different outputs, by default (0, 1); negative ones count from the last.  With a
            single output they are its two classes, and in either order give the logit.

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
            X = self._inputs(X)
            return margin_of(self, outputs).compiled.values(X)

    def margin_gradient(self, X: ArrayLike, outputs: Outputs = (0, 1)) -> np.ndarray:
        """The gradient of `margin` with respect to the inputs, row by row.

        σ' is computed as e/(1+e)², so that gradients stay accurate relatively where units saturate.
        The cost is that of about two evaluations.

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
            X = self._inputs(X)
            return margin_of(self, outputs).compiled.gradients(X)

    def _evaluate(self, X: ArrayLike, squash: bool) -> np.ndarray:
        with ieee():
            X = self._inputs(X)
            if self._kept.logits is None:
                self._kept.logits = kernels.Program(self._weights, self._biases)
            out = np.empty((len(X), self.n_outputs))
            self._kept.logits.evaluate(X, out, squash)
        return out

    def _inputs(self, X: ArrayLike) -> np.ndarray:
        check_names(self, "X", X)
        X = arrays.float64("X", X)
        if X.ndim != 2 or X.shape[1] != self.n_inputs:
            raise ValueError(
                f"X has shape {X.shape}; expected (m, n_inputs) = (m, {self.n_inputs})"
            )
        return X

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
    """A ValueError if `value` has columns of other names than the model of `net` was fitted with.

    `without` is the number of an input whose column `value` does not have.  With `row`, a Series is
    one sample, and its index bears the names.
    """
    _names.check(net._names, name, value, without, row)


def kept(net: SigmoidMLP) -> Kept:
    return net._kept


def unpacked(net: SigmoidMLP) -> SigmoidMLP:
    """The same network, but what is made of it is kept apart and ends with this object."""
    other = object.__new__(type(net))
    other._weights, other._biases, other._names = net._weights, net._biases, net._names
    other._kept = Kept()
    return other


def margin_of(net: SigmoidMLP, outputs: Outputs) -> Margin:
    """The network's margin between two outputs, made once."""
    pair, margins = pair_of(net.n_outputs, outputs), net._kept.margins
    margin = margins.get(pair)
    if margin is None:
        margin = margins[pair] = Margin(net, pair or (0, 1))
    return margin


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
                f"weights[{k}] has shape {w.shape}; expected (n_in, n_out) = "
                f"({ws[k - 1].shape[1]}, n_out), weights[{k - 1}] having shape {ws[k - 1].shape}"
            )
        arrays.expect(f"biases[{k}]", b, w.shape[1:], "(n_out,)")
    return ws, bs


def _sequence(name: str, value: Iterable) -> list:
    return arrays.sequence(name, value, "a sequence of arrays, one per layer")


def _parameter(name: str, value: ArrayLike) -> np.ndarray:
    """A finite float64 copy in a bytes object's memory: its `writeable` flag stays False."""
    given = arrays.float64(name, value)
    own = arrays.empty(name, given.shape, arrays.F64)
    arrays.assign(own, given)
    return np.ndarray(own.shape, arrays.F64, arrays.finite(name, own).tobytes())
