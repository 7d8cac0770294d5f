"""find_x1: one tie per row along one input, by SciPy's root finders on the compiled margin."""

import math
import operator
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._core import arrays
from ._network import SigmoidMLP, _kernels

_BRACKETING = ("brentq", "brenth", "ridder", "bisect", "toms748")
METHODS = (*_BRACKETING, "newton", "secant", "chandrupatla")
_RTOL = 4 * np.finfo(np.float64).eps  # the least that SciPy's solvers accept
_MAXITER = 2**31 - 1
_fields = operator.itemgetter("converged", "iterations", "function_calls")  # as attributes they cost 1 µs more a row


class RootResults(NamedTuple):
    """One root per row: what `find_x1` returns, in the fields of `scipy.optimize.RootResults`, each an (m,) array.

    Attributes
    ----------
    x : ndarray of float64
        The roots; where `converged` is False, the last iterates.
    converged : ndarray of bool
    iterations, function_calls : ndarray of int

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


def find_x1(
    net: SigmoidMLP,
    x_other: ArrayLike,
    bracket: tuple[ArrayLike, ArrayLike],
    *,
    coordinate: int = 0,
    outputs: tuple[int, int] = (0, 1),
    method: str = "brentq",
    xtol: float = 2e-12,
    rtol: float = 8.881784197001252e-16,
    maxiter: int = 100,
) -> RootResults:
    """Where two outputs tie along one input: one root per row, by the root finders of SciPy.

    Parameters
    ----------
    net : SigmoidMLP
    x_other : (m, n_inputs - 1) array_like
        The inputs except `coordinate`, ``np.delete(X, coordinate, axis=1)``; with two inputs also (m,) or a scalar.
    bracket : pair of scalars or (m,) array_like
        Two ends, in either order, between which the margin changes its sign.
    coordinate : int, default=0
        The input to solve for; negative ones count from the last.
    outputs : pair of int, default=(0, 1)
        As in `SigmoidMLP.margin`.
    method : str, default="brentq"
        "brentq", "brenth", "ridder", "bisect", "toms748": `scipy.optimize` row by row.  "newton" starts at the
        bracket's midpoint, with the exact derivative, and "secant" at its ends; both may leave the bracket.
        "chandrupatla": `scipy.optimize.elementwise.find_root`, all rows at once, much the fastest when there are many.
    xtol, rtol : float, default=2e-12, 8.881784197001252e-16
        A root is accepted when it is known within xtol + rtol·|x|.  xtol > 0, rtol ≥ 4·eps.
    maxiter : int, default=100

    Returns
    -------
    RootResults
        Arrays `x` float64, `converged` bool, `iterations` and `function_calls` int, all (m,), also for a scalar
        `x_other` (m = 1).  Where `converged` is False, `x` is the last iterate.  Where the margin is exactly zero at an
        end, that end is the answer, after 0 iterations and 2 calls.

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP or an argument has another type.
    ValueError
        For a wrong shape, option or number, NaN and inf among them, and where the margin does not change its sign over
        the bracket.  All rows are checked before any is solved.

    Notes
    -----
    The callback continues the first layer's sums from the inputs before `coordinate` and allocates nothing; it returns
    the same bits as ``net.margin``.  Row by row the time of small networks is SciPy's own, from 10 µs ("brentq") to
    400 µs ("toms748"), all at once about 1 µs; memory is one copy of the rows.
    Source: derivations §2.

    Examples
    --------
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[1.0], [-1.0]], [[1.0]]], [[0.0], [-0.5]])
    >>> fd.find_x1(net, [0.0, 2.0, 3.0], (-10, 10)).x.round(9)      # σ(x1 − x2) = 1/2
    array([0., 2., 3.])
    """
    call = _Call(net, x_other, bracket, coordinate, outputs)
    solve, options = _solver(method, *_tolerances(xtol, rtol, maxiter))
    f_lo, f_hi = call.checked_ends()
    exact = (f_lo == 0) | (f_hi == 0)
    results = RootResults(
        np.where(f_lo == 0, call.lo, call.hi), exact, np.zeros(call.m, np.intp), np.full(call.m, 2, np.intp)
    )
    rows = np.flatnonzero(~exact)
    if len(rows):
        solve(call, rows, results, options)
    return results


class _Call:
    """The checked arguments of one call, and the margin along the input."""

    def __init__(self, net, x_other, bracket, coordinate, outputs) -> None:
        if not isinstance(net, SigmoidMLP):
            raise TypeError(f"net is a {type(net).__name__}; expected a SigmoidMLP")
        self.coordinate = arrays.position("coordinate", coordinate, net.n_inputs, "inputs")
        self.program = net._margin_program(outputs)
        x_other = _others(net, x_other)
        self.m = len(x_other)
        self.X = np.zeros((self.m, net.n_inputs))
        self.X[:, np.arange(net.n_inputs) != self.coordinate] = x_other
        a, b = _ends(bracket, self.m)
        self.lo, self.hi = np.minimum(a, b), np.maximum(a, b)

    def margin(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The margin at input x, (k,), of the rows (k,)."""
        x, out = np.ascontiguousarray(x, np.float64), np.empty(np.shape(x))
        rows = np.ascontiguousarray(np.broadcast_to(rows, x.shape), np.intp)
        self.program.along(self.X, rows, x, self.coordinate, out)
        return out

    def line(self) -> Any:
        return _kernels.Line(self.program, self.coordinate)

    def checked_ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The margin at both ends, of opposite signs or zero in every row."""
        rows = np.arange(self.m)
        f_lo, f_hi = self.margin(self.lo, rows), self.margin(self.hi, rows)
        good = (f_lo == 0) | (f_hi == 0) | (np.sign(f_lo) == -np.sign(f_hi))
        if not good.all():
            i = int(np.argmin(good))
            raise ValueError(
                f"bracket has no change of sign in row {i}: "
                f"the margin is {f_lo[i]} at {self.lo[i]} and {f_hi[i]} at {self.hi[i]}"
            )
        return f_lo, f_hi


def _one_by_one(call: _Call, rows: np.ndarray, results: RootResults, solve: Callable) -> None:
    """solve(line, lo, hi) -> (x, r) for each of the rows: SciPy's scalar functions."""
    line, X, solved = call.line(), call.X, []
    for i, lo, hi in zip(rows.tolist(), call.lo[rows].tolist(), call.hi[rows].tolist(), strict=True):
        line.prepare(X, i)
        x, r = solve(line, lo, hi)
        solved.append((x, *_fields(r)))
    for field, values in zip(results, zip(*solved, strict=True), strict=True):
        field[rows] = values


def _wandering(call: _Call, rows: np.ndarray, results: RootResults, solve: Callable) -> None:
    """As `_one_by_one` for methods that may run away: `converged` tells, not warnings."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        _one_by_one(call, rows, results, solve)
    results.converged[~np.isfinite(results.x)] = False


def _all_at_once(call: _Call, rows: np.ndarray, results: RootResults, options: dict) -> None:
    from scipy.optimize.elementwise import find_root

    r = find_root(call.margin, (call.lo[rows], call.hi[rows]), args=(rows,), **options)
    for field, values in zip(results, (r.x, r.success, r.nit, r.nfev), strict=True):
        field[rows] = values


def _solver(method: str, xtol: float, rtol: float, maxiter: int) -> tuple[Callable, Any]:
    """What fills the results, and with which of SciPy's functions and options."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if method == "chandrupatla":
        return _all_at_once, {"tolerances": {"xatol": xtol, "xrtol": rtol}, "maxiter": maxiter}
    from scipy import optimize

    options = {"rtol": rtol, "maxiter": maxiter, "full_output": True, "disp": False}
    if method == "newton":
        return _wandering, lambda f, lo, hi: optimize.newton(f, lo / 2 + hi / 2, f.derivative, tol=xtol, **options)
    if method == "secant":
        return _wandering, lambda f, lo, hi: optimize.newton(f, lo, x1=hi, tol=xtol, **options)
    find = getattr(optimize, method)
    return _one_by_one, lambda f, lo, hi: find(f, lo, hi, xtol=xtol, **options)


def _tolerances(xtol: float, rtol: float, maxiter: int) -> tuple[float, float, int]:
    xtol, rtol = arrays.number("xtol", xtol), arrays.number("rtol", rtol)
    if not 0 < xtol < math.inf:
        raise ValueError(f"xtol is {xtol}; expected a positive number")
    if not _RTOL <= rtol < math.inf:
        raise ValueError(f"rtol is {rtol}; expected at least 4 eps = {_RTOL}")
    return xtol, rtol, min(arrays.index("maxiter", maxiter, least=1), _MAXITER)


def _others(net: SigmoidMLP, x_other: ArrayLike) -> np.ndarray:
    """`x_other` as (m, n_inputs - 1)."""
    x, n = arrays.finite("x_other", arrays.float64("x_other", x_other)), net.n_inputs - 1
    if n == 1 and x.ndim < 2:
        return x.reshape(-1, 1)
    if x.ndim != 2 or x.shape[1] != n:
        short = ", (m,) or a scalar" if n == 1 else ""
        raise ValueError(f"x_other has shape {x.shape}; expected (m, n_inputs - 1) = (m, {n}){short}")
    return x


def _ends(bracket: tuple[ArrayLike, ArrayLike], m: int) -> list[np.ndarray]:
    """Both ends as (m,)."""
    try:
        pair = list(bracket)
    except TypeError:
        raise TypeError(f"bracket is a {type(bracket).__name__}; expected a pair (lo, hi)") from None
    if len(pair) != 2:
        raise ValueError(f"bracket has {len(pair)} elements; expected a pair (lo, hi)")
    ends = []
    for k, end in enumerate(pair):
        end = arrays.finite(f"bracket[{k}]", arrays.float64(f"bracket[{k}]", end))
        if end.ndim:
            arrays.expect(f"bracket[{k}]", end, (m,), "a scalar or (m,)")
        ends.append(np.broadcast_to(end, (m,)))
    return ends
