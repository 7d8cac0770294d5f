"""follow_boundary: the boundary between two outputs, from a point on, as a curve in arc length."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from ..._core import arrays
from ..._core.floats import undisturbed
from .._margin import Outputs
from .._network import SigmoidMLP, check_network, margin_of
from .._points import check_point
from ._walk import Plane, Walk

_EPS = float(np.finfo(float).eps)


@undisturbed
def follow_boundary(
    net: SigmoidMLP,
    start: ArrayLike,
    length: float,
    *,
    coordinates: Outputs = (0, 1),
    outputs: Outputs = (0, 1),
    step: float | None = None,
    rtol: float = 1e-10,
    atol: float = 1e-10,
    stop_when_closed: bool = False,
) -> np.ndarray:
    """The boundary on which two outputs tie, from `start` on, as a curve in arc length.

    Two inputs (i, j) = `coordinates` move, the others stay as in `start`.  With the margin f, the
    curve solves dx/ds = (−∂f/∂x_j, ∂f/∂x_i) / |∇f|, which is regular at turning points: f is
    positive on its right hand side if x_i points to the right and x_j up.  Every point is projected
    back onto f = 0 by Newton's method.

    Parameters
    ----------
    net : SigmoidMLP
    start : array_like, shape (n_inputs,)
        A tie, no further than 1e-6 from the boundary.
    length : float
        Arc length to follow; a negative one goes the other way.  At most 2⁵² times the longest step
        that the curve allows.
    coordinates : pair of int, optional
        Two different inputs, by default (0, 1); negative ones count from the last.
    outputs : pair of int, optional
        As in `SigmoidMLP.margin`.
    step : float, optional
        Arc length between the points; the last piece may be shorter.  By default points lie where
        the integrator's steps end, as few as the curve needs.
    rtol, atol : float, optional
        What `scipy.integrate.DOP853` may err in a step: atol + rtol·|x|.  0 < rtol, atol < 1.
    stop_when_closed : bool, optional
        Stop where the curve comes back to `start`: the last point is then `start` itself, bit for
        bit.

    Returns
    -------
    points : ndarray, shape (n, n_inputs)
        The first is `start`.  The last lies at arc length `length`, unless the curve was to stop
        when closed and did.  Beyond the first, |margin| / |gradient| is as small as float64 allows,
        at most 1e-6 in any case.

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP or an argument has another type.
    ValueError
        For a wrong shape or option, NaN and inf; if `start` is no tie or the gradient vanishes
        there; if the curve runs into a point where it cannot be continued: a saddle, where it
        crosses itself, a plateau on which float64 does not tell the margin from zero, or so far out
        (4.5e9) that float64 does not tell 1e-6; if steps would be lost in rounding beside
        `length`.  The message says how far it can be followed.
    MemoryError
        If the points do not fit, as far as that can be told: at once with `step`, else after 65536
        of them.

    Notes
    -----
    Every step is sampled along its way, also where it passes a hidden unit's transition, however
    narrow.  It is taken back if it leaves the boundary, or if rounding moves the boundary by as
    much as a sixteenth of the step.  The errors of the steps' arc lengths add up, about 1e-10 a
    unit of length by default.  The time is some 0.4 ms a step, the memory that of the result.

    References
    ----------
    docs/derivations.md §2.

    Examples
    --------
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[1.0], [-1.0]], [[1.0]]], [[0.0], [-0.5]])     # a tie where x1 = x2
    >>> fd.follow_boundary(net, [1.0, 1.0], 2**0.5, step=1.0).round(6)
    array([[1.      , 1.      ],
           [1.707107, 1.707107],
           [2.      , 2.      ]])
    """
    check_network(net)
    margin = margin_of(net, outputs)
    columns = arrays.pair("coordinates", coordinates, net.n_inputs, "inputs")
    plane = Plane(net, margin, check_point("start", net, start), columns)
    length, step = _lengths(length, step, net.n_inputs)
    rtol, atol = (_tolerance(name, value) for name, value in (("rtol", rtol), ("atol", atol)))
    plane.check_start()
    stop_when_closed = arrays.flag("stop_when_closed", stop_when_closed)
    # NaN where the gradient vanishes: such steps are taken back
    return plane.lift(Walk(plane, length, rtol, atol).points(step, stop_when_closed))


def _lengths(length: float, step: float | None, n_inputs: int) -> tuple[float, float | None]:
    length = arrays.number("length", length)
    if not math.isfinite(length):
        raise ValueError(f"length is {length}; expected a finite number")
    if step is not None:
        step = arrays.number("step", step)
        if not 0 < step < math.inf:
            raise ValueError(f"step is {step}; expected a positive number")
        arrays.check_fits("the points", int(min(abs(length) / step, 1e300)) * 8 * n_inputs)
    return length, step


def _tolerance(name: str, value: float) -> float:
    value = arrays.number(name, value)
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}; expected a number between 0 and 1")
    return max(value, 100 * _EPS)  # SciPy's own floor, of which it warns
