"""nearest_tie: the nearest point of the boundary, as far as SciPy's optimiser finds it from many certified starts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._core import maths
from .._core.floats import undisturbed
from ._counterfactuals import lasting, nearest_along
from ._network import Outputs, SigmoidMLP, check_network
from ._points import (
    check_box,
    check_point,
    columns_of,
    decision,
    kin,
    leader,
    leads,
    margin_and_gradient,
    rounding,
)
from ._solve import solve_x1

_LINES = 24  # straight ways into the space that are searched for ties, beside those along the inputs and the gradient
_POLISHED = 6  # the nearest starts from which the optimiser is run
_APART = 0.2  # the angle between the ways to starts that count as others
_ELSEWHERE = 4  # starts on other ways, from which it is run as well
_ROUNDS = 8  # of looking for a tie nearer than the one found
_PROBES = 12  # directions beside the found one, each time
_ROUGH, _FINE = (
    1e-3,
    1e-6,
)  # what the optimiser may leave of the squared distance: to compare starts, for Newton's method
_NEAR = 1e-5  # part of the distance within which an input is as good as at the end of its bounds
_SURE = 1e-6  # a residual below makes a tie converged


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
        How far x is from the conditions of a nearest point, relative to the distance: x is the point of the box that
        lies nearest to "the given point plus a multiple of the margin's gradient at x".
    converged : bool
        Whether `x` is a local minimum of the distance: residual ≤ 1e-6, x a tie to within rounding, the distance not
        curved downwards along the boundary, and with "any" no third output larger.  It does not say that there is no
        nearer tie elsewhere.
    output : int
        What the decision changes to: the output that is tied, at `x`, with the one that leads at the given point (of the
        pair, if one was asked for); -1 if none was found.  A single output counts as its two classes.
    decisive : bool
        Whether no third output is larger at `x`, but for rounding, so that the prediction changes there.

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
    """A nearest point to `x`, in the Euclidean norm, at which the decision changes, or two outputs tie.

    It is the best of many local minima of the distance, and not proven to be the nearest of all.

    Parameters
    ----------
    net : SigmoidMLP
    x : array_like, shape (n_inputs,)
    outputs : "any" or pair of int, optional
        "any", the default: where the largest output ties with another, and the prediction changes.  A pair, as in
        `SigmoidMLP.margin`: where these two tie, whether or not a third one is larger (see `decisive`).  With one or two
        outputs both are the same.
    bounds : array_like, shape (n_inputs, 2) or (2,), optional
        The box lo ≤ hi that the tie has to lie in, one pair for each input or for all; lo = hi holds an input.  It need
        not hold `x`.  By default there is none.

    Returns
    -------
    result : NearestTie
        `x`, `distance`, `margin`, `residual`, `converged`, `output`, `decisive`.  It is never further away than the
        nearest of `counterfactuals` within the bounds.  Where no tie is found, NaN and False.

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP or an argument has another type.
    ValueError
        For a wrong shape, option or bound, and NaN and inf in `x`.

    Notes
    -----
    The starts are the nearest ties along straight lines: along every input, along the gradient, and in fixed random
    directions, all by `solve_x1`, which overlooks none on its line.  From the nearest of them, and from some on other
    ways, `scipy.optimize.minimize` (SLSQP) goes on with exact gradients, and from the best of those Newton's method, with
    exact second derivatives; then lines beside the way to the best one are searched for ties that are nearer still.  With
    "any" all of this is done for every output that the leading one may tie with.

    The result is a **local** minimum of the distance, the best of all starts.  A narrow part of the boundary that no line
    meets is overlooked: for 2 of 480 points of steep random networks 2–8–8–2 a tie 0.6 and 0.9 % nearer existed before
    starts on other ways were taken, and for none since.  The result is the same each time.

    Without bounds, only the way the first layer's weights span matters, and the search takes place in no more dimensions
    than that layer has units.

    References
    ----------
    docs/derivations.md §2.

    Examples
    --------
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[1.0], [1.0]], [[1.0]]], [[0.0], [-0.5]])       # a tie where x1 + x2 = 0
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
    net: SigmoidMLP, x: np.ndarray, pair: tuple[int, int] | None, box: np.ndarray | None
) -> list[_Search]:
    """One for the pair, or for each output that the leading one is not the same function as."""
    begin = x if box is None else np.clip(x, *box.T)
    (ahead,) = leader(net, begin[None], pair)[0].tolist()
    if pair is not None:
        return [_Search(net, x, pair, box, sum(pair) - ahead)]
    net = net if lasting(net, net.n_inputs) else net._unpacked()
    same = kin(net)
    return [
        _Search(net, x, (ahead, c), box, c) for c in np.unique(same).tolist() if c != same[ahead]
    ]


def _best(searches: list[_Search], n_inputs: int, every: bool) -> NearestTie:
    """The best tie of all searches; `every`: they are those of all outputs, and at the tie none may be larger."""
    for search in searches:
        if search.evaluate(0 * search.target)[0] == 0:
            return search.result(0 * search.target, every)
    starts = [(search, z) for search in searches for z in search.starts()]
    starts = starts or [
        (search, z) for search in searches for z in search.along_lines(search.downhill())
    ]
    if not starts:
        return NearestTie(np.full(n_inputs, np.nan), np.nan, np.nan, np.nan, False, -1, False)
    starts.sort(key=_distance)
    best = min(
        ((search, search.polished(z, _ROUGH)) for search, z in starts[:_POLISHED]), key=_distance
    )
    search, z = _improved(searches, *best)
    others = [
        *starts[_POLISHED:],
        *((search, y) for search in searches for y in search.along_lines(search.between())),
    ]
    elsewhere = [
        (search, search.polished(y, _ROUGH))
        for search, y in _other_ways(z, sorted(others, key=_distance))
    ]
    nearer = min(elsewhere, key=_distance, default=(search, z))
    if _distance(nearer) < search.distance(z) * (1 - 1e-6):
        search, z = _improved(searches, *nearer)
    return search.result(z, every)


def _improved(
    searches: list[_Search], search: _Search, z: np.ndarray
) -> tuple[_Search, np.ndarray]:
    """From a tie to one that is a local minimum, and nearer than those on lines beside the way to it."""
    for _ in range(_ROUNDS):
        z = search.refined(search.polished(z, _FINE))
        ways = search.beside(z)
        ties = [(search, y) for y in search.along_lines(ways)]
        ties += [
            (s, y)
            for s in searches
            if s is not search
            for y in s.along_lines(np.vstack([_units(z[None]), ways]))
        ]
        nearer = min(ties, key=_distance, default=(search, z))
        if not _distance(nearer) < search.distance(z) * (1 - 1e-9):
            break
        search, z = nearer
    return search, z


def _other_ways(
    z: np.ndarray, starts: list[tuple[_Search, np.ndarray]]
) -> list[tuple[_Search, np.ndarray]]:
    """The first few starts that lie in other directions than z and than each other."""
    ways, chosen = _units(z[None]), []
    for search, y in starts:
        way = _units(y[None])
        if len(chosen) < _ELSEWHERE and (ways @ way.T < math.cos(_APART)).all():
            ways = np.vstack([ways, way])
            chosen.append((search, y))
    return chosen


def _distance(start: tuple[_Search, np.ndarray]) -> float:
    search, z = start
    return search.distance(z)


class _Search:
    """A nearest tie of a pair among y = origin + Q z: z nearest to `target` with f(z) = 0, anywhere or in a box around 0.

    Q has orthonormal columns, so that distances of z are distances of y: those of the inputs that are free in a box, or,
    without one, a basis of what the first layer's weights span.  On the way out of that span f does not change, and so
    neither does the nearest tie leave it.
    """

    def __init__(
        self,
        net: SigmoidMLP,
        x: np.ndarray,
        pair: tuple[int, int],
        box: np.ndarray | None,
        output: int = -1,
    ) -> None:
        self.net, self.x, self.pair, self.output = net, x, pair, output
        self.outputs = columns_of(net, pair)
        self.noise = rounding(net, self.outputs)
        self.box = np.tile((-np.inf, np.inf), (net.n_inputs, 1)) if box is None else box
        self.free = self.box[:, 0] < self.box[:, 1]
        self.origin = np.clip(x, *self.box.T)
        self.Q = _span(net.weights[0]) if box is None else np.eye(net.n_inputs)[:, self.free]
        ends = (
            np.inf * np.ones((self.Q.shape[1], 2)) * (-1, 1)
            if box is None
            else (box - self.origin[:, None])[self.free]
        )
        self.lo, self.hi = ends.T
        self.target = self.Q.T @ (x - self.origin)
        self.largest = max(
            1.0, float(abs(self.origin).max(initial=0))
        )  # z is as coarse as the origin's numbers
        self.random = np.random.default_rng(0)

    # ---- the problem

    def at(self, z: np.ndarray) -> np.ndarray:
        return np.clip(self.origin + self.Q @ z, *self.box.T)

    def distance(self, z: np.ndarray) -> float:
        return math.hypot(*(z - self.target))  # which does not overflow

    def evaluate(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """f and its gradient at z."""
        f, g = margin_and_gradient(self.net, self.at(z), self.outputs)
        return f, self.Q.T @ g

    def residual(self, z: np.ndarray) -> float:
        """|z − the box's nearest point to target + λ g|, relative to the distance, with the best λ for the inputs not held."""
        pull = self.pull(z, ~self.held(z))
        off = float(np.linalg.norm(z - np.clip(pull, self.lo, self.hi)))
        return off / (self.distance(z) or np.nan) if off else 0.0

    def pull(self, z: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """target + λ g with the λ for which that is nearest to z, as far as the inputs `inside` go."""
        _, g = self.evaluate(z)
        if not inside.any():
            return z
        u = g / np.linalg.norm(g[inside])
        return self.target + (u[inside] @ (z - self.target)[inside]) * u

    def held(self, z: np.ndarray) -> np.ndarray:
        """Which inputs an end of the box holds: they are at it, nearly, and are pulled beyond."""
        near = np.minimum(z - self.lo, self.hi - z) <= _NEAR * self.distance(z)
        pull = self.pull(z, ~near) if near.any() else z
        return near & np.where(z - self.lo < self.hi - z, pull <= self.lo, pull >= self.hi)

    def result(self, z: np.ndarray, every: bool = False) -> NearestTie:
        x = self.at(z)
        (margin,), (_, g) = self.net.margin(x[None], self.outputs), self.evaluate(z)
        distance = math.dist(x, self.x)
        here = (
            16 * np.finfo(float).eps * max(self.largest, float(abs(x).max(initial=0)))
        )  # as exactly as x can be placed
        residual = self.residual(z) if distance > here else 0.0
        tie = abs(margin) <= self.noise + here * np.linalg.norm(g)
        minimum = distance <= here or self.curvature(z) >= -_SURE
        decisive = self.decisive(x)
        converged = bool(tie and residual <= _SURE and minimum and (decisive or not every))
        return NearestTie(x, distance, float(margin), residual, converged, self.output, decisive)

    def decisive(self, x: np.ndarray) -> bool:
        """Whether no third output is larger at x, but for rounding."""
        if self.net.n_outputs < 3:
            return True
        lead, doubt = leads(self.net, x[None], self.pair[0])
        third = ~np.isin(kin(self.net), kin(self.net)[list(self.pair)])
        return not (lead < -doubt)[:, third].any()

    # ---- starts

    def starts(self) -> list[np.ndarray]:
        f, g = self.evaluate(0 * self.target)
        return [*self.along_inputs(), *self.along_lines(self.spread(-np.sign(f) * g))]

    def along_inputs(self) -> Iterator[np.ndarray]:
        features = np.flatnonzero(self.free)
        found = nearest_along(
            self.net, self.origin, features.tolist(), self.pair, self.box[features]
        )
        for j, change in zip(features, found, strict=True):
            if np.isfinite(change):
                yield self.Q[j] * change

    def along_lines(self, directions: np.ndarray) -> Iterator[np.ndarray]:
        """The nearest tie on each line z = s v, for the `directions` v (k, d) as far as they lead into the box."""
        w, b = self.net.weights, self.net.biases
        offset = b[0] + self.origin @ w[0]
        for v in self.inward(directions):
            along = (self.Q @ v) @ w[0]
            ends = np.sort([self.lo[v != 0] / v[v != 0], self.hi[v != 0] / v[v != 0]], axis=0)
            lo, hi = ends[0].max(initial=-np.inf), ends[1].min(initial=np.inf)
            if not (lo < hi and np.isfinite(along).all() and np.isfinite(offset).all()):
                continue
            line = SigmoidMLP((along[None], *w[1:]), (offset, *b[1:]))
            z = (
                solve_x1(line, np.zeros((1, 0)), outputs=self.outputs, bounds=(lo, hi)).x[:, None]
                * v
            )
            z = z[np.isfinite(z).all(1)]
            if len(z):
                nearest = self.projected(z[np.linalg.norm(z - self.target, axis=1).argmin()])
                if self.is_tie(nearest):
                    yield nearest

    def inward(self, directions: np.ndarray) -> np.ndarray:
        """The directions without what leads out of the box at once, where the origin lies on its edge."""
        outward = ((self.lo == 0) & (directions < 0)) | ((self.hi == 0) & (directions > 0))
        return _units(np.where(outward, 0.0, directions))

    def spread(self, g: np.ndarray) -> np.ndarray:
        """Directions into the space: g, and others evenly (in a plane) or at random, and to corners of the box."""
        d = len(self.target)
        if d == 2:
            angles = np.arange(0.5, _LINES) * np.pi / _LINES
            others = np.column_stack([np.cos(angles), np.sin(angles)])
        else:
            others = self.random.standard_normal((_LINES if d > 1 else 1, d))
        corners = np.where(
            others > 0, self.hi, self.lo
        )  # of the box, where a boundary may only cut one off
        return _units(np.vstack([g, self.target, others, corners[np.isfinite(corners).all(1)]]))

    def between(self) -> np.ndarray:
        """Directions between those of `spread`, in a plane; elsewhere others at random."""
        d = len(self.target)
        if d == 2:
            angles = np.arange(_LINES) * np.pi / _LINES
            return np.column_stack([np.cos(angles), np.sin(angles)])
        return _units(self.random.standard_normal((_LINES if d > 1 else 0, d)))

    def beside(self, z: np.ndarray) -> np.ndarray:
        """Directions around the one of z, from close by to far off."""
        spread = np.geomspace(0.02, 2, _PROBES)[:, None]
        return _units(
            z / (np.linalg.norm(z) or 1.0)
            + spread * _units(self.random.standard_normal((_PROBES, len(z))))
        )

    def downhill(self) -> np.ndarray:
        """Directions to points on the other side of the boundary, by descent: where it meets no line."""
        from scipy.optimize import minimize

        def height(z: np.ndarray) -> tuple[float, np.ndarray]:
            value, g = self.evaluate(z)
            return value / f, g / f

        f, _ = self.evaluate(0 * self.target)
        if not len(self.target):
            return np.empty((0, 0))
        begins = np.vstack(
            [0 * self.target, self.random.standard_normal((_PROBES, len(self.target)))]
        )
        begins = np.clip(begins, self.lo, self.hi)
        bounds = np.column_stack([self.lo, self.hi])
        ends = [minimize(height, z, jac=True, method="L-BFGS-B", bounds=bounds).x for z in begins]
        return _units(
            np.array([z for z in ends if height(z)[0] <= 0]).reshape(-1, len(self.target))
        )

    # ---- from a start to the nearest tie

    def polished(self, start: np.ndarray, ftol: float) -> np.ndarray:
        """A local minimum of the distance, from a tie; that tie itself if nothing better is found.

        In units of the start's distance and of the gradient there, both the distance and the constraint are of size 1.
        """
        from scipy.optimize import minimize

        size = self.distance(start)
        _, g = self.evaluate(start)
        slope = np.linalg.norm(g)
        if not (size > 0 and slope > 0):
            return start
        constraint = {
            "type": "eq",
            "fun": lambda u: self.evaluate(self.target + size * u)[0] / (size * slope),
            "jac": lambda u: self.evaluate(self.target + size * u)[1] / slope,
        }
        bounds = np.column_stack([self.lo - self.target, self.hi - self.target]) / size
        with warnings.catch_warnings():  # SciPy before 1.16 says when it clips a step to the bounds
            warnings.filterwarnings("ignore", "Values in x were outside bounds", RuntimeWarning)
            u = minimize(
                lambda u: (u @ u / 2, u),
                (start - self.target) / size,
                jac=True,
                method="SLSQP",
                bounds=bounds if np.isfinite(bounds).any() else None,
                constraints=constraint,
                options={"ftol": ftol, "maxiter": 100},
            ).x
        z = np.clip(self.target + size * u, self.lo, self.hi)
        end = np.where(z - self.lo < self.hi - z, self.lo, self.hi)
        z = self.projected(np.where(self.held(z), end, z))
        return z if self.is_tie(z) and self.distance(z) < size else start

    def lagrangian(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """At z, over the inputs that no end holds: u = g/|g|, z − target + λu, I + λ ∇²f/|g|, f/|g|, with the best λ."""
        f, g = self.evaluate(z)
        inside = ~self.held(z)
        slope, away = float(np.linalg.norm(g[inside])) or np.nan, (z - self.target)[inside]
        u = g[inside] / slope
        force = -(u @ away)
        H = (
            _hessian(self.net, self.at(z), self.Q[:, inside], self.net._columns(self.outputs))
            / slope
        )
        return u, away + force * u, np.eye(len(u)) + force * H, f / slope

    def refined(self, z: np.ndarray) -> np.ndarray:
        """Newton's method on the conditions of a nearest point, as long as it comes closer to them."""
        best = self.residual(z)
        for _ in range(8):
            u, rest, M, off = self.lagrangian(z)
            if not (np.isfinite(M).all() and np.isfinite(u).all()):
                break
            system = np.block([[M, u[:, None]], [u, np.zeros(1)]])
            new = z.copy()
            try:
                new[~self.held(z)] += np.linalg.solve(system, -np.append(rest, off))[:-1]
            except np.linalg.LinAlgError:
                break
            new = self.projected(np.clip(new, self.lo, self.hi))
            residual = self.residual(new)
            if not (
                residual < best
                and self.is_tie(new)
                and self.distance(new) <= self.distance(z) * (1 + 1e-6)
            ):
                break
            z, best = new, residual
        return z

    def curvature(self, z: np.ndarray) -> float:
        """The least curvature of the squared distance along the boundary: of a minimum it is not negative."""
        u, _, M, _ = self.lagrangian(z)
        if len(u) < 2 or not np.isfinite(M).all():
            return 0.0
        along = np.linalg.qr(np.column_stack([u, np.eye(len(u))]))[0][:, 1:]
        return float(np.linalg.eigvalsh(along.T @ M @ along)[0])

    def projected(self, z: np.ndarray) -> np.ndarray:
        """z on the boundary, by Newton's method along the gradient within the box, as long as it comes closer."""
        f, g = self.evaluate(z)
        for _ in range(30):
            inside = ((self.lo < z) | (g * f < 0)) & ((z < self.hi) | (g * f > 0))
            slope = np.linalg.norm(g[inside])
            new = np.clip(z - f / slope * np.where(inside, g / slope, 0), self.lo, self.hi)
            f_new, g_new = self.evaluate(new)
            if not abs(f_new) < abs(f):
                break
            z, f, g = new, f_new, g_new
        return z

    def is_tie(self, z: np.ndarray) -> bool:
        f, g = self.evaluate(z)
        return bool(
            abs(f)
            <= self.noise
            + 1e-12 * np.linalg.norm(g) * (self.largest + abs(self.at(z)).max(initial=0))
        )


def _hessian(
    net: SigmoidMLP, x: np.ndarray, Q: np.ndarray, pair: tuple[int, int] | None
) -> np.ndarray:
    """Qᵀ ∇²f Q of the margin at x: Σ_k J_k diag(σ''(n_k) ⊙ ȳ_k) J_kᵀ, J_k = ∂n_k/∂z for the layers' pre-activations n_k.

    1. forward   n_k = b_k + y_{k-1} W_k, J_k = (J_{k-1} ⊙ σ'(n_{k-1})) W_k;  y_{-1} = x and J_{-1} = Qᵀ, whose σ' is 1
    2. backward  ȳ_k = W_{k+1} (ȳ_{k+1} ⊙ σ'(n_{k+1})), beginning with the margin's last weights
    """
    y, J, layers = x, Q.T, []
    for w, b in zip(net.weights[:-1], net.biases[:-1], strict=True):
        n, J = b + y @ w, J @ w
        y = maths.sigmoid(n)
        slope = y * maths.sigmoid(-n)
        layers.append((w, J, slope, slope * (1 - 2 * y)))
        J = J * slope
    dy, _ = net._last_difference(pair)
    H = np.zeros((Q.shape[1], Q.shape[1]))
    for w, J, slope, bend in reversed(layers):
        H += (J * (bend * dy)) @ J.T
        dy = w @ (dy * slope)
    return H


def _units(V: np.ndarray) -> np.ndarray:
    """The rows of V that have a direction, as unit vectors."""
    size = np.linalg.norm(V, axis=1)
    return V[size > 0] / size[size > 0, None]


def _span(w: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span those of w (n, h); all of space if h ≥ n."""
    if w.shape[1] >= w.shape[0]:
        return np.eye(w.shape[0])
    return np.linalg.qr(w / np.maximum(abs(w).max(0, initial=0), np.finfo(float).tiny))[0]
