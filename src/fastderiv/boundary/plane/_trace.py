"""trace_boundary: every curve on which two outputs tie, in a box of two inputs, certified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..._core import arrays
from ..._core.floats import undisturbed
from .._margin import Outputs
from .._network import SigmoidMLP
from ._cells import clipped_boxes, subdivide
from ._curves import LOOSEST, curves_of
from ._section import section_of


class BoundaryCurves(NamedTuple):
    """What `trace_boundary` returns.

    Attributes
    ----------
    points : list of ndarray, shape (n, 2)
        One array per curve, in the order of `coordinates`; the first of the two outputs leads on
        its left.
    closed : ndarray of bool, shape (k,)
        A closed curve's first point is repeated as its last.
    certified : bool
        Whether these are proven to be all curves in the box, joined as the true curves are, and no
        further from them than `trace_boundary` says: `undecided` is empty.
    undecided : ndarray, shape (u, 2, 2)
        Boxes, each in the form of `bounds`, outside of which the same is proven.  Curves end there,
        or run through where only the distance is not proven.

    Examples
    --------
    >>> import fastderiv as fd
    >>> curves = fd.trace_boundary(fd.SigmoidMLP([[[1.0], [1.0]]], [[0.0]]), ((-1, 1), (-1, 1)))
    >>> len(curves.points), curves.closed, curves.undecided.shape
    (1, array([False]), (0, 2, 2))
    """

    points: list[np.ndarray]
    closed: np.ndarray
    certified: bool
    undecided: np.ndarray


@undisturbed
def trace_boundary(
    net: SigmoidMLP,
    bounds: Sequence[ArrayLike] | np.ndarray,
    *,
    coordinates: Sequence[int] | np.ndarray = (0, 1),
    at: ArrayLike | None = None,
    outputs: Outputs = (0, 1),
    tol: float = 1e-10,
) -> BoundaryCurves:
    """All curves on which two outputs tie, in a box of two inputs, the others fixed.

    Parameters
    ----------
    net : SigmoidMLP
        Any depth.
    bounds : pair of pairs (lo, hi)
        The box, finite, in the order of `coordinates`.
    coordinates : pair of int, optional
        The two inputs that span the plane, by default the first two; negative ones count from the
        last.
    at : array_like, shape (n_inputs,), optional
        The other inputs; the entries at `coordinates` are ignored.  Needed with more than two
        inputs.
    outputs : pair of int, optional
        As in `SigmoidMLP.margin`.
    tol : float, optional
        How far from the curve its points may be, |margin|/|∇margin|, as far as rounding allows;
        2⁻¹⁴ of the box's shorter side at most.

    Returns
    -------
    curves : BoundaryCurves
        The curve is nowhere further from the chords than 0.1 % of the box, and they are nowhere
        further from it; the box counts as a square of side 1.  Open curves end on the box's edges,
        at `undecided` boxes, or at both.

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP or an argument has another type.
    ValueError
        For a wrong shape or number, NaN and inf among them, and where a box's width overflows.

    Notes
    -----
    A cell of the plane is decided by enclosures of the margin and its gradient over all of it,
    propagated layer by layer with proven bounds on rounding; only what they leave open is cut
    further.  The certificate is about the exact function of the given parameters, on a box that
    holds `bounds` and exceeds them by at most 2⁻³⁹ of their widths: where the boundary runs along
    an edge, or touches it, curves are complete up to that, and open ones no longer than 2⁻³⁶ of the
    sides are left out.  No proof is possible where a curve crosses itself, or where the margin
    vanishes on an area up to rounding; these places are listed, as is what is left when a limit of
    2¹⁹ cells (fewer for networks of more than 75 000 weights) is reached.

    A chord is judged by enclosures of the boundary's slope on the box that the piece of the curve
    lies in, and cut until these prove that it is close, so that no spike between two points can be
    overlooked, however narrow.  Where the margin is so flat that rounding may move a point by 2⁻¹⁴
    of the box, the place is undecided.

    The time grows with the length of the curves, not with the area of the box: 1 to 4 ms for a few
    units; beyond, about 0.3 ns (AVX-512) for each weight and cell, some hundred cells for one
    hidden layer and 10⁴ to 10⁵ for three of 64.  Enclosures widen with every layer: five layers of
    256 are mostly left undecided, after some ten seconds.  Memory is in proportion to the cells
    judged, at most some 60 MiB beside the result.

    References
    ----------
    docs/derivations.md §2.  Subdivision with monotonicity tests: S. Plantinga, G. Vegter, "Isotopic
    approximation of implicit curves and surfaces", Symposium on Geometry Processing, 2004.

    Examples
    --------
    A ring, made of four units that each switch off beyond one side of a square:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> weights = [[[4.0, -4, 0, 0], [0, 0, 4, -4]], np.ones((4, 1))]
    >>> net = fd.SigmoidMLP(weights, [[4.0, 4, 4, 4], [-3.5]])
    >>> curves = fd.trace_boundary(net, ((-2, 2), (-2, 2)))
    >>> curves.closed, curves.certified
    (array([ True]), True)
    >>> bool(np.abs(net.margin(curves.points[0])).max() < 1e-12)
    True
    """
    section = section_of(net, bounds, coordinates, at, outputs)
    tol = arrays.number("tol", tol)
    if not 0 < tol < math.inf:
        raise ValueError(f"tol is {tol}; expected a positive number")
    tol = min(tol, LOOSEST * section.width.min())
    cells, undecided = subdivide(section)  # enclosures may overflow: then they decide nothing
    points, closed, loose = curves_of(section, cells, tol)
    boxes = clipped_boxes(section, np.concatenate([undecided, cells.where[:, loose]], axis=1))
    return BoundaryCurves(points, closed, not len(boxes), boxes)
