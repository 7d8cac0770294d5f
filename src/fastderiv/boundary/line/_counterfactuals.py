"""counterfactuals: the smallest change of each single input at which a decision changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..._core import arrays
from ..._core.floats import undisturbed
from .._leads import columns_of, decision, first_equal, leader, leads_of
from .._margin import Outputs, Pair
from .._network import SigmoidMLP, check_network, unpacked
from .._points import check_box, check_samples
from ._clusters import nearest_in_cluster, reach_of
from ._solve import solve_x1

_BLOCK = 1 << 20  # numbers at a time: inputs of all lines of some samples
_KEPT = 1 << 27  # bytes of packed solvers that a network may be left with


class Counterfactuals(NamedTuple):
    """The nearest change along each of some inputs: what `counterfactuals` returns.

    Its arrays have the shape (len(features),) for one sample, (m, len(features)) for m of them.

    Attributes
    ----------
    value : ndarray
        What the input would have to be; NaN where no value of it is known to do.
    change : ndarray
        `value` less what it is.
    lower, upper : ndarray
        The enclosure in which the nearest tie is, or the nearest that may be one: no tie is nearer
        to the sample than this interval.  (Of two that are equally near but for their widths it may
        be either.)  NaN where there is none at all.
    status : ndarray of str
        "unique": exactly one tie is in the enclosure, a simple one, and `value` is it.  "cluster":
        float64 cannot tell how many there are, perhaps none.  `value` is then what the tie seems to
        be; if none seems to be in the enclosure, `value` lies outside, further away, or is NaN.
        "none": it is proven that no value of the input makes a tie.
    output : ndarray of int
        What the decision changes to: the output that is tied, at `value`, with the one that leads
        at the sample (of the pair, if one was asked for); -1 where `value` is NaN.  A single output
        counts as its two classes.
    decisive : ndarray of bool
        Whether no third output is larger at `value`, so that the prediction changes there; False
        where `value` is NaN.
    certified : ndarray of bool
        Whether all of this is proven: `status` is not "cluster", and `decisive` holds on the whole
        enclosure.

    Examples
    --------
    >>> import fastderiv as fd
    >>> found = fd.counterfactuals(fd.SigmoidMLP([[[2.0], [0.0]]], [[-6.0]]), [1.0, 0.0])
    >>> found.value, found.change, found.status
    (array([ 3., nan]), array([ 2., nan]), array(['unique', 'none'], dtype='<U7'))
    """

    value: np.ndarray
    change: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    status: np.ndarray
    output: np.ndarray
    decisive: np.ndarray
    certified: np.ndarray


@undisturbed
def counterfactuals(
    net: SigmoidMLP,
    x: ArrayLike,
    *,
    features: Sequence[int] | np.ndarray | None = None,
    outputs: Outputs | Literal["any"] = "any",
    bounds: ArrayLike = (-math.inf, math.inf),
) -> Counterfactuals:
    """The nearest change of the decision along each single input, the others held.

    Parameters
    ----------
    net : SigmoidMLP
    x : array_like, shape (n_inputs,) or (m, n_inputs)
        The sample, or several.
    features : sequence of int, optional
        The inputs to change, one at a time; negative ones count from the last.  By default all of
        them.
    outputs : "any" or pair of int, optional
        "any", the default: where the largest output ties with another, and the prediction changes.
        A pair, as in `SigmoidMLP.margin`: where these two tie, whether or not a third one is larger
        (see `decisive`).  With one or two outputs both are the same.
    bounds : array_like, shape (2,) or (len(features), 2), optional
        The closed interval lo < hi within which a value is looked for, one for all or one for each
        feature.  It need not hold the sample; what leads is then what leads at the bound next to
        it.

    Returns
    -------
    result : Counterfactuals
        `value`, `change`, enclosures and what is known of them, in the order of `features`.

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP or an argument has another type.
    ValueError
        For a wrong shape, option or bound, and NaN and inf in `x`.

    Notes
    -----
    Each feature costs one row of `solve_x1`, which finds all ties along it: a nearer one is not
    overlooked.  With "any" there is one for every other output, as the first tie of the leading
    output is where the prediction changes.  A bound of rounding proves that it leads at the sample,
    and what third outputs do at a tie; where the bound does not suffice, `certified` is False.
    What is packed for a line stays with the network, as for `solve_x1`, up to 128 MiB.

    A cluster is an enclosure in which float64 cannot tell ties apart.  It gives a `value` where the
    margin, as it is computed, changes its sign in it or is exactly zero, the nearest such value,
    and if the margin touches zero.  It gives none if the margin only goes to zero in a tail.  A
    cluster that is nearer than the `value` is the enclosure all the same, and `status` says so.

    References
    ----------
    docs/derivations.md §2.

    Examples
    --------
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[1.0], [-2.0]], [[1.0]]], [[0.0], [-0.5]])   # a tie where x1 = 2 x2
    >>> fd.counterfactuals(net, [3.0, 1.0]).change.round(9)
    array([-1. ,  0.5])
    >>> fd.counterfactuals(net, [3.0, 1.0], features=[1], bounds=(-1, 1)).status
    array(['none'], dtype='<U7')
    >>> net = fd.SigmoidMLP([[[1.0, 0.0, -1.0]]], [[0.0, 1.0, 0.0]])          # logits x, 1 and −x
    >>> found = fd.counterfactuals(net, [[3.0], [-4.0]])
    >>> found.value.round(9).T, found.output.T                                # first to output 1
    (array([[ 1., -1.]]), array([[1, 1]]))
    >>> found = fd.counterfactuals(net, [3.0], outputs=(0, 2))
    >>> found.value.round(9) + 0, found.decisive            # where output 1 is larger than both
    (array([0.]), array([False]))
    """
    check_network(net)
    X, chosen = check_samples("x", net, x), _features(features, net.n_inputs)
    box = check_box("bounds", bounds, len(chosen), "(2,) or (len(features), 2)")
    pair, samples = decision(net, outputs), X.reshape(-1, net.n_inputs)
    work = net if pair or lasting(net, len(chosen)) else unpacked(net)
    size = max(1, _BLOCK // max(1, len(chosen) * net.n_inputs))
    blocks = [
        _fields(_Lines(work, samples[first : first + size], chosen, box, pair))
        for first in range(0, max(1, len(samples)), size)
    ]
    shape = (*X.shape[:-1], len(chosen))
    return Counterfactuals(
        *(np.concatenate(field).reshape(shape) for field in zip(*blocks, strict=True))
    )


def lasting(net: SigmoidMLP, features: int) -> bool:
    """Whether all solvers that "any" may need are small enough to be kept with the network."""
    K = net.n_outputs
    return K * (K - 1) * features * sum(w.nbytes for w in net.weights) <= _KEPT


def nearest_along(
    net: SigmoidMLP, x: np.ndarray, chosen: Sequence[int], pair: Pair, box: np.ndarray
) -> np.ndarray:
    """The changes of `counterfactuals` for one checked sample and a pair."""
    return _fields(_Lines(net, x[None], list(chosen), box, pair))[1][0]


class _Lines(NamedTuple):
    """Some samples X and the lines through them along the `chosen` inputs, cut off by a box.

    Sample r's line along the k-th chosen input has the number r · len(chosen) + k.
    """

    net: SigmoidMLP
    X: np.ndarray  # (m, n_inputs)
    chosen: list[int]
    box: np.ndarray  # (len(chosen), 2)
    pair: Pair | None  # of outputs, or None for any

    def starts(self) -> np.ndarray:
        """The samples' own values (m, len(chosen)) of the chosen inputs."""
        return self.X[:, self.chosen]


class _Ties(NamedTuple):
    """Enclosures of ties on lines."""

    line: np.ndarray
    value: np.ndarray  # of a cluster, the nearest that seems to be in it, or NaN
    lower: np.ndarray
    upper: np.ndarray
    unique: np.ndarray
    ahead: np.ndarray  # the output that leads at the sample
    output: np.ndarray  # the one that it ties with


def _fields(lines: _Lines) -> tuple[np.ndarray, ...]:
    """The fields of the result, (samples, features).

    1. leaders   which output leads at the sample, and whether that is proven
    2. ties      all of its ties with every other output, or those of the pair
    3. nearest   the nearest value, and the nearest enclosure
    4. thirds    whether another output is larger at the value
    """
    x = lines.starts()
    ahead, sure = _leaders(lines)
    ties = _all_ties(lines, ahead)
    best, at = _nearest(ties, x.ravel())
    value, output = np.full(x.size, math.nan), np.full(x.size, -1, np.intp)
    has, near = best >= 0, at >= 0
    value[has], output[has] = ties.value[best[has]], ties.output[best[has]]
    lower, upper = np.full(x.size, math.nan), np.full(x.size, math.nan)
    unique = np.zeros(x.size, bool)
    lower[near], upper[near], unique[near] = (
        field[at[near]] for field in (ties.lower, ties.upper, ties.unique)
    )
    status = np.where(near, np.where(unique, "unique", "cluster"), "none")
    decisive, proven = has.copy(), np.ones(x.size, bool)
    if lines.net.n_outputs > 2 and has.any():
        some = np.flatnonzero(has)
        leading = ties.ahead[best[some]]
        enclosed = value[some], lower[some], upper[some]
        decisive[some], proven[some] = _thirds(lines, some, enclosed, leading, output[some])
    certified = (status != "cluster") & sure.ravel() & proven
    fields = value, value - x.ravel(), lower, upper, status, output, decisive, certified
    return tuple(field.reshape(x.shape) for field in fields)


def _leaders(lines: _Lines) -> tuple[np.ndarray, np.ndarray]:
    """The leading output (samples, features) at the sample, or at the bound next to it."""
    net, X, chosen, box, pair = lines
    ahead, sure = (np.repeat(field[:, None], len(chosen), axis=1) for field in leader(net, X, pair))
    start = np.clip(X[:, chosen], *box.T)
    r, k = np.nonzero(start != X[:, chosen])
    if len(r):
        moved = X[r]
        moved[np.arange(len(r)), np.array(chosen)[k]] = start[r, k]
        ahead[r, k], sure[r, k] = leader(net, moved, pair)
    return ahead, sure


def _all_ties(lines: _Lines, ahead: np.ndarray) -> _Ties:
    """The ties on all lines."""
    net, X, chosen, box, pair = lines
    every, inputs, width = np.arange(len(X)), np.arange(X.shape[1]), len(chosen)
    numbers, both, found = [], [], []
    for k, (j, bounds) in enumerate(zip(chosen, map(tuple, box.tolist()), strict=True)):
        others = X[:, inputs != j]
        for two in [pair] if pair else _pairs(net, ahead[:, k]):
            r = every if pair else np.flatnonzero((ahead[:, k] == two[0]) | (ahead[:, k] == two[1]))
            given = others if pair else others[r]
            outputs = columns_of(net, two)
            found.append(solve_x1(net, given, coordinate=j, outputs=outputs, bounds=bounds))
            numbers.append(r * width + k)
            both.append(sum(two))
    if not found:
        whole, real = np.zeros(0, np.intp), np.zeros(0)
        return _Ties(whole, real, real, real, np.zeros(0, bool), whole, whole)
    counts = np.concatenate([c.indptr[1:] - c.indptr[:-1] for c in found])
    line = np.concatenate(numbers).repeat(counts)
    value, lower, upper, unique = (
        np.concatenate([getattr(c, name) for c in found])
        for name in ("x", "lower", "upper", "unique")
    )
    lead = ahead.ravel()[line]
    output = np.repeat(both, [len(c.x) for c in found]) - lead
    ties = _Ties(line, value, lower, upper, unique, lead, output)
    _look_into_clusters(lines, ties)
    return ties


def _pairs(net: SigmoidMLP, ahead: np.ndarray) -> list[Pair]:
    """The pairs of an output that leads somewhere and another one.

    Of outputs that are the same function only the first counts.
    """
    same = first_equal(net)
    others = np.unique(same).tolist()
    return sorted(
        {(min(a, c), max(a, c)) for a in np.unique(ahead).tolist() for c in others if c != same[a]}
    )


def _look_into_clusters(lines: _Lines, ties: _Ties) -> None:
    """OUT `ties.value` of clusters: the nearest tie that seems to be in it, or NaN.

    A line's clusters are taken from the nearest on, and only as far as they may hold a tie that is
    nearer than the nearest one found: each costs an evaluation at some hundred points.
    """
    net, X, chosen, _, pair = lines
    clusters = np.flatnonzero(~ties.unique)
    if not len(clusters):
        return
    starts = lines.starts().ravel()
    nearest = np.full(len(starts), math.inf)
    known = ties.line[ties.unique]
    np.minimum.at(nearest, known, abs(ties.value[ties.unique] - starts[known]))
    reach = reach_of(ties.lower[clusters], ties.upper[clusters], starts[ties.line[clusters]])
    middle = ties.value[clusters]
    ties.value[clusters] = math.nan
    for c in np.argsort(reach, kind="stable").tolist():
        i, line = int(clusters[c]), int(ties.line[clusters[c]])
        if reach[c] > nearest[line]:
            continue
        r, k = divmod(line, len(chosen))
        outputs = columns_of(net, pair or (int(ties.ahead[i]), int(ties.output[i])))
        ends = float(ties.lower[i]), float(middle[c]), float(ties.upper[i])
        ties.value[i] = nearest_in_cluster(net, X[r], chosen[k], outputs, *ends)
        nearest[line] = np.fmin(nearest[line], abs(ties.value[i] - starts[line]))


def _nearest(ties: _Ties, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every line the numbers of the tie with the nearest value and of the nearest enclosure.

    They are -1 where there is none.
    """
    at = x[ties.line]
    away = abs(ties.value - at)
    gap = np.where(ties.unique, away, np.maximum(0, np.maximum(ties.lower - at, at - ties.upper)))
    best = _first(np.lexsort((~ties.unique, away, ties.line)), ties.line, len(x))
    chosen = np.zeros(len(ties.line), bool)
    chosen[best[best >= 0]] = True
    nearest = _first(np.lexsort((~chosen, gap, ties.line)), ties.line, len(x))
    best[best >= 0] = np.where(np.isnan(ties.value[best[best >= 0]]), -1, best[best >= 0])
    return best, nearest


def _first(order: np.ndarray, line: np.ndarray, lines: int) -> np.ndarray:
    """The first of every line in an order by line, or -1."""
    first = np.full(lines, -1, np.intp)
    first[line[order[::-1]]] = order[::-1]  # of equal indices the last assignment counts
    return first


def _thirds(
    lines: _Lines,
    some: np.ndarray,
    enclosed: tuple[np.ndarray, np.ndarray, np.ndarray],
    ahead: np.ndarray,
    output: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Whether no third output is larger at the values of `some` lines.

    Also whether that is proven on all of their enclosures; `enclosed` is value, lower and upper,
    and the tie is one of the outputs `ahead` and `output`.
    """
    net, (value, lower, upper) = lines.net, enclosed
    r, k = np.divmod(some, len(lines.chosen))
    every, j = np.arange(len(r)), np.array(lines.chosen)[k]
    points, reach = lines.X[r], np.zeros((len(r), net.n_inputs))
    points[every, j] = value
    reach[every, j] = np.nextafter(np.maximum(upper - value, value - lower), math.inf)
    decisive, proven, same = np.zeros(len(r), bool), np.zeros(len(r), bool), first_equal(net)
    for a in set(ahead.tolist()):
        rows = np.flatnonzero(ahead == a)
        third = (same != same[a]) & (same != same[output[rows]][:, None])
        lead, doubt = leads_of(net, a).at(points[rows], reach[rows])  # on the enclosures
        unsure = third & ~(abs(lead) > doubt)  # NaN, where numbers overflow, is not sure
        proven[rows] = ~unsure.any(axis=1) | (third & (lead < -doubt)).any(axis=1)
        if unsure.any():
            lead, doubt = leads_of(net, a).at(points[rows])  # at the values themselves
        decisive[rows] = ~(third & (lead < -doubt)).any(axis=1)
    return decisive, proven


def _features(features: Sequence[int] | np.ndarray | None, n_inputs: int) -> list[int]:
    if features is None:
        return list(range(n_inputs))
    given = arrays.sequence("features", features, "a sequence of integers")
    return [arrays.position(f"features[{k}]", j, n_inputs, "inputs") for k, j in enumerate(given)]
