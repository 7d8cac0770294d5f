"""SciPy's root finders, one call for one row or for all rows of a block."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from .._compiled import kernels

if TYPE_CHECKING:
    from .._kernels import Line
    from ._roots import Block

Method = Literal[
    "brentq", "brenth", "ridder", "bisect", "toms748", "newton", "secant", "chandrupatla"
]
METHODS = get_args(Method)
Seen = list[tuple[float, float]]  # points at which the margin was evaluated, and its values there
# Solves rows of a block and returns their results' fields; adds to the last argument unless None.
Finder = Callable[["Block", np.ndarray, Seen | None], Iterable]
# as attributes these fields of SciPy's results cost 1 µs more a row
_report = operator.itemgetter("converged", "iterations", "function_calls")


def finder_of(method: str, xtol: float, rtol: float, maxiter: int) -> Finder:
    """What solves rows of a block by one of SciPy's functions with these options."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    if method == "chandrupatla":
        options = {"tolerances": {"xatol": xtol, "xrtol": rtol}, "maxiter": maxiter}
        return partial(_all_at_once, options)
    from scipy import optimize

    options = {"rtol": rtol, "maxiter": maxiter, "full_output": True, "disp": False}
    if method == "newton":
        solve = partial(_newton, optimize.newton, {"tol": xtol, **options})
    elif method == "secant":
        solve = partial(_secant, optimize.newton, {"tol": xtol, **options})
    else:
        solve = partial(_bracketing, partial(getattr(optimize, method), xtol=xtol, **options))
    return partial(_one_by_one, solve)


def _all_at_once(options: dict, block: Block, rows: np.ndarray, seen: Seen | None) -> Iterable:
    from scipy.optimize.elementwise import find_root

    def margin(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        f = block.margin(x, rows)
        if seen is not None:
            seen.extend(zip(x.tolist(), f.tolist(), strict=True))
        return f

    r = find_root(margin, (block.lo[rows], block.hi[rows]), args=(rows,), **options)
    return r.x, r.success, r.nit, r.nfev


class _Watched:
    """A margin along one input that notes where it was evaluated, and its values there."""

    def __init__(self, line: Line, seen: Seen) -> None:
        self.line, self.seen, self.derivative = line, seen, line.derivative

    def __call__(self, x: float) -> float:
        f = self.line(x)
        self.seen.append((x, f))
        return f


def _one_by_one(solve: Callable, block: Block, rows: np.ndarray, seen: Seen | None) -> Iterable:
    """solve(margin, lo, hi) for each of the rows: SciPy's scalar functions."""
    line, solved = kernels.Line(block.program, block.coordinate), []
    margin = line if seen is None else _Watched(line, seen)
    for i, lo, hi in zip(
        rows.tolist(), block.lo[rows].tolist(), block.hi[rows].tolist(), strict=True
    ):
        line.prepare(block.X, i)
        try:
            solved.append(solve(margin, lo, hi))
        except ValueError as error:
            raise ValueError(
                f"bracket from {lo} to {hi} in row {block.name(i)} is not solved: {error}"
            ) from error
    return zip(*solved, strict=True)


def _bracketing(find: Callable, line: Line, lo: float, hi: float) -> tuple:
    return _fields(*find(line, lo, hi))


class _Stuck(Exception):
    """Where `scipy.optimize.newton` would give up with a warning: the fields of the row's result.

    Warnings belong to the whole process: no filter of one thread is safe from the others.
    """


def _newton(find: Callable, options: dict, line: Line, lo: float, hi: float) -> tuple:
    steps = 0

    def slope(x: float) -> float:
        nonlocal steps
        steps += 1
        value = line.derivative(x)
        if value == 0:
            raise _Stuck(x, False, steps, 2 * steps)
        return value

    try:
        return _fields(*find(line, lo / 2 + hi / 2, slope, **options))
    except _Stuck as stuck:
        return stuck.args


def _secant(find: Callable, options: dict, line: Line, lo: float, hi: float) -> tuple:
    calls, last, f_last = 0, math.nan, math.nan

    def value(x: float) -> float:
        nonlocal calls, last, f_last
        calls, f = calls + 1, line(x)
        if f == f_last and x != last and calls <= options["maxiter"] + 1:
            raise _Stuck((x + last) / 2, False, calls - 1, calls)
        # of the first two points SciPy goes on from the one whose value is larger
        if calls != 2 or abs(f) >= abs(f_last):
            last, f_last = x, f
        return f

    try:
        return _fields(*find(value, lo, x1=hi, **options))
    except _Stuck as stuck:
        return stuck.args


def _fields(x: float, r: Any) -> tuple:
    return x, *_report(r)
