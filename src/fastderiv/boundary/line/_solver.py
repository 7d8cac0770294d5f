"""What finds all ties along one input: packed once for a margin and an input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..._core.floats import undisturbed
from .._compiled import kernels
from .._margin import Margin
from ._expsum import root_bound
from ._last_layer import LastLayer
from ._units import distinct_units

if TYPE_CHECKING:
    from .._kernels import Program, Solver

_BOUNDED_UNITS = 4  # with more units the bound is far above the number of ties, and takes long
_SMALL = 1e-290  # numbers above lose no bits when they are multiplied by a power of two


def solver_of(margin: Margin, coordinate: int) -> tuple[Solver, int | None]:
    """The margin's solver along an input, made once, and a bound of a row's ties if it is cheap."""
    if coordinate not in margin.solvers:
        margin.solvers[coordinate] = _new_solver(margin, coordinate)
    return margin.solvers[coordinate]


@undisturbed
def _new_solver(margin: Margin, coordinate: int) -> tuple[Solver, int | None]:
    if len(margin.weights) != 2:
        return kernels.DeepNet(_scaled_program(margin), coordinate), None
    bound = _cheap_root_bound(margin, coordinate)
    return _isolator(margin, coordinate, one_root_at_most=bound is not None and bound <= 1), bound


def _isolator(margin: Margin, coordinate: int, one_root_at_most: bool) -> Solver:
    last = LastLayer(margin)
    W, b = margin.weights[0][:, last.used], margin.biases[0][last.used]
    a, others = W[coordinate], np.ascontiguousarray(np.delete(W, coordinate, axis=0))
    limits = (last.limit(a < 0), last.limit(a > 0)) if a.all() else (math.nan, math.nan)
    return kernels.Isolator(
        np.ascontiguousarray(a),
        last.d[last.used],
        last.c,
        error=last.error,
        one_root_at_most=one_root_at_most,
        limits=limits,
        offsets=kernels.Program((others,), (b,)),
        magnitudes=kernels.Program((np.abs(others),), (np.abs(b),)),
    )


def _scaled_program(margin: Margin) -> Program:
    """The network whose only output is the margin, times a power of two.

    With it the last weights are about 1; it is left out where it would lose bits.
    """
    weights, biases = distinct_units(margin)
    d, c = weights.pop()[:, 0], biases.pop()  # infinite differences make every row a cluster
    sizes = np.abs(np.append(d, c))
    exponent = -math.frexp(sizes.max())[1]
    if np.all((sizes == 0) | (np.ldexp(sizes, exponent) > _SMALL)):
        d, c = np.ldexp(d, exponent), np.ldexp(c, exponent)
    return kernels.Program((*weights, np.ascontiguousarray(d[:, None])), (*biases, c))


def _cheap_root_bound(margin: Margin, coordinate: int) -> int | None:
    if margin.weights[0].shape[1] > _BOUNDED_UNITS:
        return None
    try:
        return root_bound(margin, coordinate)
    except ValueError:  # zero everywhere
        return None
