"""ExponentialSum: the margin of a network with one hidden layer as a sum of 2**H exponentials."""

from __future__ import annotations

import math
import sys
from itertools import groupby
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from ..._core import arrays
from ..._core.floats import undisturbed
from ...subsets import subset_sums
from .._margin import Margin, Outputs
from .._network import SigmoidMLP, check_network, margin_of
from ._exact import integers

_MOST_UNITS = 62  # masks are int64
_BLOCK_UNITS = 14  # 2**14 terms at once
_FAR = 128.0  # exponents are sums of fewer numbers
_MAX = sys.float_info.max
_BYTES_PER_TERM = 370  # of a Python dict from exponents to coefficients


class ExponentialSum:
    """The exponential sum whose zeros are the ties of a network with one hidden layer.

    With ``B_i = −(w_i·x + b_i)``, the margin times the positive product ``Π_i (1 + exp B_i)`` is

        Σ_{S ⊆ {1..H}} C_S exp(Σ_{i∈S} B_i),     C_S = Δc + Σ_{i∉S} d_i,     d_i = v_i,o0 − v_i,o1.

    Subsets are bitmasks: bit i of the position belongs to hidden unit i.  Use the sum for structure
    and bounds.  Never evaluate the margin through it, as its terms cancel.

    Parameters
    ----------
    net : SigmoidMLP
        One hidden layer of H ≤ 62 units.
    outputs : pair of int, optional
        As in `SigmoidMLP.margin`.

    Attributes
    ----------
    coefficients : ndarray, shape (2**H,)
        C_S by bitmask, float64, read-only, computed when first asked for; not finite where the sums
        overflow.

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP.
    ValueError
        If it has not exactly one hidden layer, or H > 62.
    MemoryError
        Where all 2**H terms are needed and do not fit; it names the bytes.

    References
    ----------
    docs/derivations.md §2, with the minus sign of B_i in front of the whole sum.

    Examples
    --------
    >>> import fastderiv as fd
    >>> weights = [[[0.25, 50, 51]], [[6], [-1.5], [-1.5]]]
    >>> net = fd.SigmoidMLP(weights, [[0, 100, -102], [-1.5]])
    >>> terms = fd.ExponentialSum.from_network(net)
    >>> terms.coefficients
    array([ 1.5, -4.5,  3. , -3. ,  3. , -3. ,  4.5, -1.5])
    >>> terms.root_bound(0)
    7
    """

    def __init__(self, net: SigmoidMLP, outputs: Outputs = (0, 1)) -> None:
        check_network(net)
        if len(net.weights) != 2:
            raise ValueError(f"net has {len(net.weights) - 1} hidden layers; expected one")
        if net.hidden_widths[0] > _MOST_UNITS:
            raise ValueError(
                f"net has {net.hidden_widths[0]} hidden units; expected at most {_MOST_UNITS}"
            )
        self._net, self._pair = net, margin_of(net, outputs).pair
        self._coefficients: np.ndarray | None = None

    @classmethod
    def from_network(cls, net: SigmoidMLP, outputs: Outputs = (0, 1)) -> Self:
        """The exponential sum of ``net.margin(X, outputs)``.

        Parameters
        ----------
        net : SigmoidMLP
            One hidden layer.
        outputs : pair of int, optional

        Returns
        -------
        ExponentialSum

        Raises
        ------
        TypeError, ValueError
            If `net` is no SigmoidMLP with one hidden layer of at most 62 units, or `outputs` is no
            pair of different outputs.
        """
        return cls(net, outputs)

    @property
    def _margin(self) -> Margin:
        return margin_of(self._net, self._pair or (0, 1))

    @property
    def coefficients(self) -> np.ndarray:
        if self._coefficients is None:
            self._coefficients = self._sums()
        return self._coefficients

    @undisturbed
    def _sums(self) -> np.ndarray:
        d, dc = self._margin.difference
        sums = subset_sums(d)
        sums += dc
        sums.flags.writeable = False
        return sums[::-1]  # position S: the sum over the complement of S

    @undisturbed
    def frequencies(self, coordinate: int) -> np.ndarray:
        """How fast each term grows along one input: ``a(S) = −Σ_{i∈S} w[coordinate, i]``.

        Parameters
        ----------
        coordinate : int
            The input; negative ones count from the last.

        Returns
        -------
        frequencies : ndarray, shape (2**H,)
            By bitmask; infinite where the sums overflow.

        Raises
        ------
        TypeError, ValueError
            If `coordinate` is no input.
        MemoryError
            If 8·2**H bytes are too many.

        Examples
        --------
        >>> import fastderiv as fd
        >>> net = fd.SigmoidMLP([[[1, 2]], [[1], [1]]], [[0, 0], [0]])
        >>> fd.ExponentialSum.from_network(net).frequencies(0)
        array([ 0., -1., -2., -3.])
        """
        sums = subset_sums(self._net.weights[0][self._coordinate(coordinate)])
        return np.subtract(0.0, sums, out=sums)

    @undisturbed
    def root_bound(self, coordinate: int) -> int:
        """At most how many ties there are along one input, whatever the other inputs are.

        The generalised rule of signs: an exponential sum has no more zeros than its coefficients,
        in order of their frequencies, have changes of sign.  It is decided in exact integer
        arithmetic, as every float is a dyadic rational.

        Terms merge, and their coefficients add up, only if their whole exponents are equal: every
        input's weights, and the bias.  Terms whose frequencies are equal along `coordinate` alone
        do not merge.  Their offsets, which come from the other inputs and the bias, may differ;
        each coefficient is weighted by e^offset, and what they add up to depends on the row.  If
        such coefficients have both signs, the choice of signs that gives most changes counts.  (A
        row where every term cancels, so that every x is a root, is beyond any bound.)

        Parameters
        ----------
        coordinate : int
            The input; negative ones count from the last.

        Returns
        -------
        bound : int
            If no two subsets share a frequency, the bound minus the number of roots, counted with
            multiplicity, is even.

        Raises
        ------
        TypeError, ValueError
            If `coordinate` is no input; if the sum is identically zero, so that every x is a root.
        MemoryError
            If the 2**H terms do not fit.  Time and memory are O(2**H), about 6 µs and 370 bytes a
            term.
        """
        coordinate = self._coordinate(coordinate)
        return root_bound(self._margin, coordinate)

    @undisturbed
    def log_evaluate(self, B: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Sign and logarithm of ``Σ_S C_S exp(Σ_{i∈S} B_i)``, by enumeration in the log domain.

        Parameters
        ----------
        B : array_like, shape (..., H)
            Finite numbers of any magnitude: no sum of them overflows on the way.  −inf removes the
            terms of its unit.  NaN gives NaN in its row, and so does +inf, beside which the weights
            of the other terms are not defined.

        Returns
        -------
        sign : ndarray, shape (...)
            −1, 0 or 1.
        logabs : ndarray, shape (...)
            −inf where the sum is zero, inf where even the logarithm is beyond float64; as
            `numpy.linalg.slogdet`.

        Raises
        ------
        TypeError, ValueError
            If `B` has another dtype or shape.
        MemoryError
            If the coefficients do not fit.  Time is O(2**H) a row; beside the coefficients, memory
            is bounded.

        Examples
        --------
        >>> import fastderiv as fd
        >>> net = fd.SigmoidMLP([[[1]], [[2]]], [[0], [-1]])
        >>> sign, logabs = fd.ExponentialSum.from_network(net).log_evaluate([[0.0], [1000.0]])
        >>> sign, logabs                                        # 1 − exp(B)
        (array([ 0., -1.]), array([ -inf, 1000.]))
        """
        B, H = arrays.float64("B", B), self._net.hidden_widths[0]
        if B.ndim == 0 or B.shape[-1] != H:
            raise ValueError(f"B has shape {B.shape}; expected (..., H) = (..., {H})")
        rows = B.reshape(math.prod(B.shape[:-1]), H)
        sign, logabs = np.empty(len(rows)), np.empty(len(rows))
        step, C = 1 << max(0, _BLOCK_UNITS - H), self.coefficients
        unit = 2.0**H if max(C.max(), -C.min()) > _MAX / 2.0**H else 1.0
        for i in range(0, len(rows), step):
            sign[i : i + step], logabs[i : i + step] = _log_sum(rows[i : i + step], C, unit)
        return sign.reshape(B.shape[:-1])[()], logabs.reshape(B.shape[:-1])[()]

    def _coordinate(self, coordinate: int) -> int:
        return arrays.position("coordinate", coordinate, self._net.n_inputs, "inputs")


def root_bound(margin: Margin, coordinate: int) -> int:
    """`ExponentialSum.root_bound` of a margin with one hidden layer."""
    arrays.check_fits("the terms of root_bound", _BYTES_PER_TERM << margin.weights[0].shape[1])
    terms, shift = _exact_terms(margin, coordinate)
    signs = [
        {c > 0 for _, c in group if c}
        for _, group in groupby(terms, lambda term: _frequency(term[0], shift))
    ]
    signs = [choice for choice in signs if choice]
    if not signs:
        raise ValueError("the exponential sum is identically zero: every x is a root")
    return _most_changes(signs)


def _exact_terms(margin: Margin, coordinate: int) -> tuple[list[tuple[int, int]], int]:
    """(exponent, coefficient) of the distinct exponents, ascending, as integers.

    Also the bit where frequencies begin.  Unit by unit, subsets with one exponent E are a pair
    (n, D): how many there are, and their sum of Σ_{i∈S} d_i.  Their coefficients
    Δc + Σ d − Σ_{i∈S} d_i add up to n·(Δc + Σ d) − D.
    """
    w, b = margin.weights[0], margin.biases[0]
    exponents, shift = _packed([*np.delete(w, coordinate, axis=0), b, w[coordinate]])
    first, second = margin.columns()
    values = integers([*first, *second])
    *d, dc = [a - b for a, b in zip(values[: len(first)], values[len(first) :], strict=True)]
    terms = {0: (1, 0)}
    for e, di in zip(exponents, d, strict=True):
        more = dict(terms)
        for E, (n, D) in terms.items():
            there = more.get(E + e, (0, 0))
            more[E + e] = there[0] + n, there[1] + D + n * di
        terms = more
    total = dc + sum(d)
    return sorted((E, n * total - D) for E, (n, D) in terms.items()), shift


def _log_sum(B: np.ndarray, C: np.ndarray, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Sign and logarithm of the sums for B (r, H), block by block.

    They are relative to the largest exponent so far.  Exponents are kept divided by _FAR and
    coefficients by `unit`, both powers of two, so that no sum of finite ones overflows.
    """
    units = min(B.shape[1], _BLOCK_UNITS)
    low, high = subset_sums(B[:, :units] / _FAR), B[:, units:] / _FAR
    peak, total = np.full(len(B), -np.inf), np.zeros(len(B))
    bits = np.arange(high.shape[1])
    for mask in range(1 << len(bits)):
        c = C[mask << units : (mask + 1) << units] / unit
        exponent = low + high[:, (mask >> bits & 1).astype(bool)].sum(axis=1)[:, None]
        exponent[:, c == 0] = -np.inf
        top = np.maximum(peak, exponent.max(axis=1))
        base = np.where(top == -np.inf, 0, top)
        terms = np.exp((exponent - base[:, None]) * _FAR) * c
        total = total * np.exp((peak - base) * _FAR) + terms.sum(axis=1)
        peak = top
    logabs = np.log(np.abs(total)) + math.log(unit) + peak * _FAR
    return np.sign(total), np.where(total == 0, -np.inf, logabs)


def _packed(components: list[np.ndarray]) -> tuple[list[int], int]:
    """One integer per unit for its vector of components.

    Sums of them over units are equal only if the sums of every component are.  The last component
    is on top, from the returned bit on.
    """
    codes, at, shift = [0] * len(components[0]), 0, 0
    for component in components:
        values, shift = integers(component), at
        codes = [code + (value << at) for code, value in zip(codes, values, strict=True)]
        at += (2 * sum(map(abs, values)) + 1).bit_length()
    return codes, shift


def _frequency(code: int, shift: int) -> int:
    """The last component of a sum of codes.

    What lies below is less than half a unit of it, of either sign.
    """
    return (code + (1 << shift >> 1)) >> shift


def _most_changes(signs: list[set[bool]]) -> int:
    """Most changes of sign in a sequence, each sign chosen from its set."""
    # the best so far, by the sign at the end
    best = dict.fromkeys(signs[0], 0)
    for choice in signs[1:]:
        best = {sign: max(count + (end != sign) for end, count in best.items()) for sign in choice}
    return max(best.values())
