"""solve_x1: every tie along one input, with a certificate, for many rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..._core import arrays
from ..._core.fpstate import ieee
from ..._core.progress import Progress, reporting
from .._compiled import kernels
from .._margin import Outputs
from .._network import SigmoidMLP, check_network, margin_of
from ._rows import other_inputs
from ._solver import solver_of

# Rows at a time: their enclosures take 10 MiB before they are listed.  With fewer, threads wait.
_BLOCK = 1 << 16
_LARGE = 1 << 20  # numbers; below, no machine is short of memory
_ROW_BYTES = 34  # of a row without ties, beside a tie in each to begin with


@dataclass(frozen=True, eq=False, slots=True)
class Crossings:
    """Every tie of every row: what `solve_x1` returns, row by row as in a sparse matrix.

    ``len(c)`` is the number of rows m, ``c[i]`` the ties of row i.

    Attributes
    ----------
    indptr : ndarray of intp, shape (m + 1,)
        Row i has the ties ``indptr[i]`` to ``indptr[i + 1]``.
    x, lower, upper : ndarray, shape (k,)
        The ties, ascending within a row, and enclosures of them, which overlap at most at an end.
        An enclosure may reach to ±∞; its `x` is finite then too.
    unique : ndarray of bool, shape (k,)
        True: the enclosure holds exactly one tie, and a simple one.  False, a cluster: it holds all
        ties that are near there, perhaps none; float64 cannot tell.
    complete : ndarray of bool, shape (m,)
        Whether it is proven that all ties of the row are in its enclosures.  It is True in every
        row that `solve_x1` returns: what `solve_x1` cannot decide, for want of precision or because
        the row's work is spent, it lists as clusters.  Where the sums overflow, or the margin is
        zero everywhere, that is one cluster over the bounds.  So `unique` says what is known of a
        tie.  False occurs only in crossings of other origin: `fastderiv.reference.solve_x1`
        samples, and claims nothing.
    root_bound : int or None
        At most how many ties a row has, from `ExponentialSum.root_bound`; None unless the network
        has one hidden layer of four units or less.

    Examples
    --------
    >>> import fastderiv as fd
    >>> weights = [[[1.0, 2.0], [0.5, -0.5]], [[1.0], [1.0]]]
    >>> net = fd.SigmoidMLP(weights, [[0.0, 0.0], [-1.0]])
    >>> crossings = fd.solve_x1(net, [0.0, 1.0])
    >>> len(crossings), crossings[0].round(9) + 0.0, crossings.status
    (2, array([0.]), array(['unique', 'unique'], dtype='<U7'))
    """

    indptr: np.ndarray
    x: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    unique: np.ndarray
    complete: np.ndarray
    root_bound: int | None = None

    @property
    def status(self) -> np.ndarray:
        """``"unique"`` or ``"cluster"`` for every enclosure, shape (k,)."""
        return np.where(self.unique, "unique", "cluster")

    def __len__(self) -> int:
        return len(self.complete)

    def __getitem__(self, i: int) -> np.ndarray:
        i = arrays.row_number(i, len(self))
        return self.x[self.indptr[i] : self.indptr[i + 1]]


def solve_x1(
    net: SigmoidMLP,
    x_other: ArrayLike,
    *,
    coordinate: int = 0,
    outputs: Outputs = (0, 1),
    bounds: Sequence[float] | np.ndarray = (-math.inf, math.inf),
    xtol: float = 1e-12,
    progress: Progress = None,
) -> Crossings:
    """All solutions of z1 = z2 along one input, certified, for every row of the other inputs.

    Parameters
    ----------
    net : SigmoidMLP
        Any depth and width.
    x_other : array_like, shape (m, n_inputs - 1)
        The inputs except `coordinate`, ``np.delete(X, coordinate, axis=1)``; with two inputs also
        (m,) or a scalar.
    coordinate : int, optional
        The input to solve for, by default the first; negative ones count from the last.
    outputs : pair of int, optional
        As in `SigmoidMLP.margin`; a network with a single output ties where its logit is 0.
    bounds : pair of float, optional
        Where to look, lo < hi, both ends included; by default the whole line.
    xtol : float, optional
        How wide the enclosure of a single tie may be, relative to max(1, |x|).  Where rounding
        forbids that, the enclosure is as wide as what is proven.
    progress : bool or callable, optional
        True for a bar (needs tqdm), or a function called with (rows done, rows).

    Returns
    -------
    crossings : Crossings
        ``crossings[i]`` are the ties of row i, ascending; enclosures, certificates and what else is
        known are its arrays.

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP or an argument has another type.
    ValueError
        For a wrong shape or number.  NaN and infinite inputs and NaN bounds are among them, as no
        certificate rests on them.

    Notes
    -----
    What is certified is the exact real function of the given parameters, every float an exact
    number.  Intervals are excluded, accepted or split by the ranges of the margin and its
    derivative on them.  These cost two evaluations per unit, as σ is monotone and σ' unimodal; ±∞
    are ordinary points.  Every computed number comes with a bound of its rounding error (derived in
    docs/rounding.md), and no statement is made that does not clear it.  Newton's method then ends
    with a proof of its own.  What float64 cannot separate, such as a tie where the margin only
    touches zero, is one cluster; a margin that is zero along the whole line is one cluster over the
    bounds.  A row gets 4000 splits, with more than one hidden layer 20000; then what is undecided
    becomes a cluster.  Hidden units whose weights and biases are equal, or opposite, are merged.

    With more hidden layers the margin and two derivatives are enclosed layer by layer.  Behind each
    linear map, an enclosure is intersected with its centred form, which uses what is known of the
    next derivative.

    One row costs about 0.1 µs with three hidden units and 0.8 µs with 16; 25 µs with three layers
    of 16 units and 0.3 ms with three of 64.  A row's result does not depend on the others, the
    strides or the number of threads.  Memory beside the result is a copy of `x_other`, up to
    10 MiB, and at most 1 MiB a thread up to width 256.

    References
    ----------
    docs/derivations.md §2.

    Examples
    --------
    >>> import fastderiv as fd
    >>> weights = [[[0.25, 50, 51]], [[6], [-1.5], [-1.5]]]
    >>> net = fd.SigmoidMLP(weights, [[0, 100, -102], [-1.5]])
    >>> ties = fd.solve_x1(net, [[]])                           # five ties with three hidden units
    >>> ties[0].round(6) + 0.0
    array([-4.394449, -1.999171,  0.      ,  1.999188,  4.394449])
    >>> bool(ties.unique.all()), bool(ties.complete.all()), ties.root_bound
    (True, True, 7)
    """
    check_network(net)
    with ieee():
        coordinate = arrays.position("coordinate", coordinate, net.n_inputs, "inputs")
        margin, x = margin_of(net, outputs), other_inputs(net, x_other, coordinate)
        lo, hi = _bounds(bounds)
        xtol = arrays.number("xtol", xtol)
        if not 0 < xtol < math.inf:
            raise ValueError(f"xtol is {xtol}; expected a positive number")
        solver, root_bound = solver_of(margin, coordinate)
    if len(x) > _LARGE:  # a broadcast array may have more rows than any memory has enclosures
        arrays.check_fits("the enclosures of x_other's rows", len(x) * _ROW_BYTES)
    buffers, listing = solver.buffers(min(len(x), _BLOCK)), kernels.Listing(len(x))
    with reporting(progress, len(x), "solve_x1") as done:
        for first in range(0, len(x), _BLOCK):
            rows = x[first : first + _BLOCK]
            solver.solve(rows, lo, hi, xtol=xtol, buffers=buffers, listing=listing)
            if done:
                done(min(first + _BLOCK, len(x)))
    indptr, ties, lower, upper, unique = listing.arrays()
    complete = np.ones(len(x), np.bool_)
    return Crossings(indptr, ties, lower, upper, unique, complete, root_bound)


def _bounds(bounds: Sequence[float] | np.ndarray) -> tuple[float, float]:
    pair = arrays.sequence("bounds", bounds, "a pair (lo, hi)")
    if len(pair) != 2:
        raise ValueError(f"bounds has {len(pair)} elements; expected a pair (lo, hi)")
    lo, hi = arrays.number("bounds[0]", pair[0]), arrays.number("bounds[1]", pair[1])
    if not lo < hi:
        raise ValueError(f"bounds is ({lo}, {hi}); expected lo < hi")
    return lo, hi
