"""find_x1: one tie per row along one input, by SciPy's root finders on the compiled margin."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..._core import arrays
from ..._core.floats import undisturbed
from .._margin import Outputs
from .._network import SigmoidMLP, check_network, margin_of
from ._finders import Finder, Method, Seen, finder_of
from ._rows import other_inputs, own_numbers

Bracket = Sequence[ArrayLike] | np.ndarray
_RTOL = 4 * sys.float_info.epsilon  # the least that SciPy's solvers accept
_MAXITER = 2**31 - 1
_BLOCK = 4096  # rows at a time: some MiB of solver's arrays, and as fast as more
_ROW_BYTES = 25  # of the results


class RootResults(NamedTuple):
    """One root per row: what `find_x1` returns.

    `x` is named as in `scipy.optimize.elementwise.find_root`, the other fields as in
    `scipy.optimize.RootResults`.

    Attributes
    ----------
    x : ndarray, shape (m,)
        The roots; where `converged` is False, the last iterates.
    converged : ndarray of bool, shape (m,)
        True: the solver accepted x, and the margin as computed in float64 is zero at x or changes
        its sign no further than xtol + rtol·|x| from it.
    iterations, function_calls : ndarray of int, shape (m,)

    Examples
    --------
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[1.0]], [[1.0]]], [[0.0], [-0.5]])
    >>> result = fd.find_x1(net, [[]], (-3, 4), method="bisect")
    >>> result.converged, result.iterations
    (array([ True]), array([42]))
    """

    x: np.ndarray
    converged: np.ndarray
    iterations: np.ndarray
    function_calls: np.ndarray


@undisturbed
def find_x1(
    net: SigmoidMLP,
    x_other: ArrayLike,
    bracket: Bracket,
    *,
    coordinate: int = 0,
    outputs: Outputs = (0, 1),
    method: Method = "brentq",
    xtol: float = 2e-12,
    rtol: float = 8.881784197001252e-16,
    maxiter: int = 100,
) -> RootResults:
    """Where two outputs tie along one input: one root per row, by the root finders of SciPy.

    Parameters
    ----------
    net : SigmoidMLP
    x_other : array_like, shape (m, n_inputs - 1)
        The inputs except `coordinate`, ``np.delete(X, coordinate, axis=1)``; with two inputs also
        (m,) or a scalar.
    bracket : pair of array_like, shape () or (m,)
        Two finite ends, in either order, between which the margin changes its sign.
    coordinate : int, optional
        The input to solve for, by default the first; negative ones count from the last.
    outputs : pair of int, optional
        As in `SigmoidMLP.margin`.
    method : str, optional
        "brentq" (the default), "brenth", "ridder", "bisect", "toms748": `scipy.optimize` row by
        row.  "newton" starts at the bracket's midpoint, with the exact derivative, and "secant" at
        its ends; both may leave the bracket, and end at a tie outside of it.  "chandrupatla":
        `scipy.optimize.elementwise.find_root`, all rows at once; it is much the fastest when there
        are many.
    xtol, rtol : float, optional
        A root is accepted when it is known within xtol + rtol·|x|.  xtol > 0, rtol ≥ 4·eps.  What a
        solver accepts is checked: `converged` is False unless the margin changes its sign that
        close to x, or is zero at x.
    maxiter : int, optional
        At most how many iterations a row may take.

    Returns
    -------
    results : RootResults
        Arrays `x` float64, `converged` bool, `iterations` and `function_calls` int, all (m,), also
        for a scalar `x_other` (m = 1).  Where `converged` is False, `x` is the last iterate.  Where
        the margin is exactly zero at an end, that end is the answer, after 0 iterations and 2
        calls.

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP or an argument has another type.
    ValueError
        For a wrong shape, option or number, NaN and inf among them, and where the margin does not
        change its sign over the bracket or the bracket's width overflows.  All rows are checked
        before any is solved.

    Notes
    -----
    The callback continues the first layer's sums from the inputs before `coordinate` and allocates
    nothing; it returns the same bits as ``net.margin``.  Row by row the time of small networks is
    SciPy's own, from 10 µs ("brentq") to 400 µs ("toms748"), all at once about 1 µs; the check at
    the end costs three evaluations.  Rows are solved in blocks of 4096: memory beside the results
    is about 2 MiB and a copy of `x_other` and `bracket`, without what is broadcast in them.  A
    row's result does not depend on the others.

    References
    ----------
    docs/derivations.md §2.

    Examples
    --------
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[1.0], [-1.0]], [[1.0]]], [[0.0], [-0.5]])
    >>> fd.find_x1(net, [0.0, 2.0, 3.0], (-10, 10)).x.round(9)      # σ(x1 − x2) = 1/2
    array([0., 2., 3.])
    """
    call = _Call(net, x_other, bracket, coordinate, outputs)
    tolerances = _tolerances(xtol, rtol, maxiter)
    find = finder_of(method, *tolerances)
    arrays.check_fits("the results", call.m * _ROW_BYTES)
    results = RootResults(
        np.empty(call.m),
        np.empty(call.m, np.bool_),
        np.zeros(call.m, np.intp),
        np.full(call.m, 2, np.intp),
    )
    for block in call.blocks():
        results.x[block.rows], results.converged[block.rows] = block.checked_ends()
    for block in call.blocks():  # solvers may run away; `converged` tells
        part = RootResults(*(field[block.rows] for field in results))
        _solve_block(find, block, tolerances[:2], part)
    return results


class _Call:
    """The checked arguments of one call."""

    def __init__(
        self,
        net: SigmoidMLP,
        x_other: ArrayLike,
        bracket: Bracket,
        coordinate: int,
        outputs: Outputs,
    ) -> None:
        check_network(net)
        self.coordinate = arrays.position("coordinate", coordinate, net.n_inputs, "inputs")
        self.program = margin_of(net, outputs).compiled.program
        self.x_other = other_inputs(net, x_other, self.coordinate)
        self.m = len(self.x_other)
        self.ends = _ends(bracket, self.m)

    def blocks(self) -> Iterator[Block]:
        return (
            Block(self, slice(first, min(first + _BLOCK, self.m)))
            for first in range(0, self.m, _BLOCK)
        )


class Block:
    """Some rows of a call, and the margin along the input."""

    def __init__(self, call: _Call, rows: slice) -> None:
        self.rows, self.program, self.coordinate = rows, call.program, call.coordinate
        x_other = call.x_other[rows]
        self.X = np.zeros((len(x_other), x_other.shape[1] + 1))
        self.X[:, np.arange(self.X.shape[1]) != call.coordinate] = x_other
        a, b = (end[rows] for end in call.ends)
        self.lo, self.hi = np.minimum(a, b), np.maximum(a, b)

    def margin(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The margin at input x, (k,), of the block's rows (k,)."""
        x, out = np.ascontiguousarray(x, np.float64), np.empty(np.shape(x))
        rows = rows if rows.shape == x.shape else np.broadcast_to(rows, x.shape)
        rows = np.ascontiguousarray(rows, np.intp)
        self.program.along(self.X, rows, x, coordinate=self.coordinate, out=out)
        return out

    def checked_ends(self) -> tuple[np.ndarray, np.ndarray]:
        """An end of every bracket, and whether the margin is zero there.

        A ValueError if it is not, and does not change its sign over the bracket.
        """
        lo, hi, rows = self.lo, self.hi, np.arange(len(self.lo))
        finite = np.isfinite(hi - lo)
        if not finite.all():
            i = int(np.argmin(finite))
            raise ValueError(
                f"bracket is too wide in row {self.name(i)}: {hi[i]} - {lo[i]} overflows"
            )
        f_lo, f_hi = self.margin(lo, rows), self.margin(hi, rows)
        exact = (f_lo == 0) | (f_hi == 0)
        good = exact | (np.sign(f_lo) == -np.sign(f_hi))
        if not good.all():
            i = int(np.argmin(good))
            raise ValueError(
                f"bracket has no change of sign in row {self.name(i)}: "
                f"the margin is {f_lo[i]} at {lo[i]} and {f_hi[i]} at {hi[i]}"
            )
        return np.where(f_lo == 0, lo, hi), exact

    def name(self, i: int) -> int:
        """The number of the block's row i among all."""
        return self.rows.start + i


def _solve_block(
    find: Finder, block: Block, tolerances: tuple[float, float], results: RootResults
) -> None:
    """Fill in the `results` of the block's rows that are not solved yet: `converged` says which."""
    rows = np.flatnonzero(~results.converged)
    if not len(rows):
        return
    for field, values in zip(results, find(block, rows, None), strict=True):
        field[rows] = values
    accepted = rows[results.converged[rows]]
    x = results.x[accepted]
    reach = tolerances[0] + tolerances[1] * np.abs(x)
    good = _changes_sign(block, accepted, x, reach)
    for k in np.flatnonzero(~good):
        good[k] = _has_seen_a_change(find, block, accepted[k], x[k], reach[k])
    results.converged[accepted] = good


def _changes_sign(block: Block, rows: np.ndarray, x: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """Whether the margin is zero at x, or changes its sign within `reach` of it.

    The signs are those at x and at `reach` to the left and to the right of it.
    """
    n, three = len(x), (np.nextafter(x - reach, x), np.nextafter(x + reach, x), x)  # inwards
    f = np.sign(block.margin(np.concatenate(three), np.concatenate([rows] * 3)))
    return np.isfinite(x) & ((f[:n] * f[2 * n :] <= 0) | (f[n : 2 * n] * f[2 * n :] <= 0))


def _has_seen_a_change(find: Finder, block: Block, row: int, x: float, reach: float) -> bool:
    """Whether the solver evaluated the margin within `reach` of x where it has different signs.

    Where rounding lets the margin change its sign several times, only the solver knows such points.
    """
    seen: Seen = [(x, float(block.margin(np.array([x]), np.array([row]))[0]))]
    find(block, np.array([row]), seen)
    near = [np.sign(f) for t, f in seen if abs(t - x) <= reach]
    return 0 in near or (1 in near and -1 in near)


def _tolerances(xtol: float, rtol: float, maxiter: int) -> tuple[float, float, int]:
    xtol, rtol = arrays.number("xtol", xtol), arrays.number("rtol", rtol)
    if not 0 < xtol < math.inf:
        raise ValueError(f"xtol is {xtol}; expected a positive number")
    if not _RTOL <= rtol < math.inf:
        raise ValueError(f"rtol is {rtol}; expected at least 4 eps = {_RTOL}")
    return xtol, rtol, min(arrays.index("maxiter", maxiter, least=1), _MAXITER)


def _ends(bracket: Bracket, m: int) -> list[np.ndarray]:
    """Both ends as (m,), our own."""
    pair = arrays.sequence("bracket", bracket, "a pair (lo, hi)")
    if len(pair) != 2:
        raise ValueError(f"bracket has {len(pair)} elements; expected a pair (lo, hi)")
    ends = []
    for k, end in enumerate(pair):
        end = own_numbers(f"bracket[{k}]", end)
        if end.ndim:
            arrays.expect(f"bracket[{k}]", end, (m,), "a scalar or (m,)")
        ends.append(np.broadcast_to(end, (m,)))
    return ends
