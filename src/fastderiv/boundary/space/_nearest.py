"""nearest_tie: the nearest point of the boundary that several searches find."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..._core.floats import undisturbed
from .._leads import decision, first_equal, leader
from .._margin import Outputs, Pair
from .._network import SigmoidMLP, check_network, unpacked
from .._points import check_box, check_point
from ..line._counterfactuals import lasting
from ._problem import unit_rows
from ._search import Search

_POLISHED = 6  # the nearest starts from which the optimiser is run
_APART = 0.2  # radians: starts whose directions differ by less count as one
_ELSEWHERE = 4  # starts in other directions, from which it is run as well
_ROUNDS = 8  # of looking for a tie nearer than the one found
# what the optimiser may leave of the squared distance: to compare starts, and for Newton's method
_ROUGH, _FINE = 1e-3, 1e-6


class NearestTie(NamedTuple):
    """What `nearest_tie` returns.

    Attributes
    ----------
    x : ndarray, shape (n_inputs,)
        The tie; NaN if none was found.
    distance : float
        From the given point, in the Euclidean norm; NaN if none was found.
    margin : float
        The margin at `x`: zero but for rounding.
    residual : float
        How far x is from the conditions of a nearest point, relative to the distance.  They are
        that x is the point of the box that lies nearest to "the given point plus a multiple of the
        margin's gradient at x".
    converged : bool
        Whether `x` is a local minimum of the distance: residual ≤ 1e-6, x a tie to within rounding,
        the distance not curved downwards along the boundary, and with "any" no third output larger.
        It does not say that there is no nearer tie elsewhere.
    output : int
        What the decision changes to: the output that is tied, at `x`, with the one that leads at
        the given point (of the pair, if one was asked for); -1 if none was found.  A single output
        counts as its two classes.
    decisive : bool
        Whether no third output is larger at `x`, but for rounding, so that the prediction changes
        there.

    Examples
    --------
    >>> import fastderiv as fd
    >>> fd.nearest_tie(fd.SigmoidMLP([[[3.0], [4.0]]], [[-5.0]]), [0.0, 0.0]).x.round(9)
    array([0.6, 0.8])
    """

    x: np.ndarray
    distance: float
    margin: float
    residual: float
    converged: bool
    output: int
    decisive: bool


@undisturbed
def nearest_tie(
    net: SigmoidMLP,
    x: ArrayLike,
    *,
    outputs: Outputs | Literal["any"] = "any",
    bounds: ArrayLike | None = None,
) -> NearestTie:
    """A nearest point to `x`, in the Euclidean norm, where the decision changes or two outputs tie.

    It is the best of many local minima of the distance, and not proven to be the nearest of all.

    Parameters
    ----------
    net : SigmoidMLP
    x : array_like, shape (n_inputs,)
    outputs : "any" or pair of int, optional
        "any", the default: where the largest output ties with another, and the prediction changes.
        A pair, as in `SigmoidMLP.margin`: where these two tie, whether or not a third one is larger
        (see `decisive`).  With one or two outputs both are the same.
    bounds : array_like, shape (n_inputs, 2) or (2,), optional
        The box lo ≤ hi that the tie has to lie in, one pair for each input or for all; lo = hi
        holds an input.  It need not hold `x`.  By default there is none.

    Returns
    -------
    result : NearestTie
        `x`, `distance`, `margin`, `residual`, `converged`, `output`, `decisive`.  It is never
        further away than the nearest of `counterfactuals` within the bounds.  Where no tie is
        found, NaN and False.

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP or an argument has another type.
    ValueError
        For a wrong shape, option or bound, and NaN and inf in `x`.

    Notes
    -----
    The starts are the nearest ties along straight lines: along every input, along the gradient, and
    in fixed random directions, all by `solve_x1`, which overlooks none on its line.  From the
    nearest of them, and from some in other directions, `scipy.optimize.minimize` (SLSQP) goes on
    with exact gradients, and from the best of those Newton's method, with exact second derivatives.
    Then lines beside the one through the best tie are searched for ties that are nearer still.
    With "any" all of this is done for every output that the leading one may tie with.

    The result is a **local** minimum of the distance, the best of all starts.  A narrow part of the
    boundary that no line meets is overlooked: for 2 of 480 points of steep random networks 2–8–8–2
    a tie 0.6 and 0.9 % nearer existed before starts in other directions were taken, and for none
    since.  The result is the same each time.

    Without bounds, only the directions count that the first layer's weights span, and the search
    takes place in no more dimensions than that layer has units.

    References
    ----------
    docs/derivations.md §2.

    Examples
    --------
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[1.0], [1.0]], [[1.0]]], [[0.0], [-0.5]])    # a tie where x1 + x2 = 0
    >>> tie = fd.nearest_tie(net, [1.0, 2.0])
    >>> tie.x.round(9), round(tie.distance, 9), tie.converged
    (array([-0.5,  0.5]), 2.12132034..., True)
    >>> fd.nearest_tie(net, [1.0, 2.0], bounds=[(0, 9), (-9, 9)]).x.round(9) + 0
    array([0., 0.])
    """
    check_network(net)
    x = check_point("x", net, x)
    box = (
        None
        if bounds is None
        else check_box("bounds", bounds, net.n_inputs, "(n_inputs, 2)", equal=True)
    )
    pair = decision(net, outputs)
    return _best(_searches(net, x, pair, box), net.n_inputs, every=pair is None)


def _searches(
    net: SigmoidMLP, x: np.ndarray, pair: Pair | None, box: np.ndarray | None
) -> list[Search]:
    """One for the pair, or one for each output that is another function than the leading one."""
    begin = x if box is None else np.clip(x, *box.T)
    (ahead,) = leader(net, begin[None], pair)[0].tolist()
    if pair is not None:
        return [Search(net, x, pair, box, sum(pair) - ahead)]
    net = net if lasting(net, net.n_inputs) else unpacked(net)
    same = first_equal(net)
    return [
        Search(net, x, (ahead, c), box, c) for c in np.unique(same).tolist() if c != same[ahead]
    ]


def _best(searches: list[Search], n_inputs: int, every: bool) -> NearestTie:
    """The best tie of all searches.

    With `every` they are those of all outputs, and at the tie no other output may be larger.
    """
    for search in searches:
        if search.evaluate(0 * search.target)[0] == 0:
            return _result(search, 0 * search.target, every)
    starts = [(search, z) for search in searches for z in search.starts()]
    if not starts:
        starts = [(s, z) for s in searches for z in s.along_lines(s.downhill())]
    if not starts:
        return NearestTie(np.full(n_inputs, np.nan), np.nan, np.nan, np.nan, False, -1, False)
    starts.sort(key=_distance)
    polished = [(search, search.polished(z, _ROUGH)) for search, z in starts[:_POLISHED]]
    search, z = _improved(searches, *min(polished, key=_distance))
    between = [(s, y) for s in searches for y in s.along_lines(s.between())]
    others = sorted([*starts[_POLISHED:], *between], key=_distance)
    elsewhere = [(s, s.polished(y, _ROUGH)) for s, y in _other_ways(z, others)]
    nearer = min(elsewhere, key=_distance, default=(search, z))
    if _distance(nearer) < search.distance(z) * (1 - 1e-6):
        search, z = _improved(searches, *nearer)
    return _result(search, z, every)


def _result(search: Search, z: np.ndarray, every: bool) -> NearestTie:
    found = search.verdict(z)
    converged = found.converged and (found.decisive or not every)
    x, distance, margin, residual, _, decisive = found
    return NearestTie(x, distance, margin, residual, converged, search.output, decisive)


def _improved(searches: list[Search], search: Search, z: np.ndarray) -> tuple[Search, np.ndarray]:
    """From a tie to a local minimum, and on to ties on lines beside that are nearer."""
    for _ in range(_ROUNDS):
        z = search.refined(search.polished(z, _FINE))
        ways = search.beside(z)
        ties = [(search, y) for y in search.along_lines(ways)]
        others = np.vstack([unit_rows(z[None]), ways])
        ties += [(s, y) for s in searches if s is not search for y in s.along_lines(others)]
        nearer = min(ties, key=_distance, default=(search, z))
        if not _distance(nearer) < search.distance(z) * (1 - 1e-9):
            break
        search, z = nearer
    return search, z


def _other_ways(
    z: np.ndarray, starts: list[tuple[Search, np.ndarray]]
) -> list[tuple[Search, np.ndarray]]:
    """The first few starts that lie in other directions than z and than each other."""
    ways = unit_rows(z[None])
    chosen: list[tuple[Search, np.ndarray]] = []
    for search, y in starts:
        way = unit_rows(y[None])
        if len(chosen) < _ELSEWHERE and (ways @ way.T < math.cos(_APART)).all():
            ways = np.vstack([ways, way])
            chosen.append((search, y))
    return chosen


def _distance(start: tuple[Search, np.ndarray]) -> float:
    search, z = start
    return search.distance(z)
