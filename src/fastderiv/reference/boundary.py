"""derivations §2 in plain NumPy and SciPy, one formula at a time, row by row, unit by unit."""

from __future__ import annotations

import itertools
import warnings
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import integrate, optimize
from scipy.special import expit


def _slope(n):
    """σ'(n) = e/(1+e)², e = exp(−|n|)."""
    e = np.exp(-abs(n))
    return e / (1 + e) ** 2


class SigmoidMLP:
    """y = σ(x W + b), layer after layer; the last layer gives the logits."""

    def __init__(self, weights: Sequence[ArrayLike], biases: Sequence[ArrayLike]) -> None:
        self.weights = tuple(np.array(w, np.float64) for w in weights)
        self.biases = tuple(np.array(b, np.float64) for b in biases)

    @classmethod
    def from_sklearn(cls, model: Any) -> Self:
        return cls(model.coefs_, model.intercepts_)

    @property
    def n_inputs(self) -> int:
        return self.weights[0].shape[0]

    @property
    def n_outputs(self) -> int:
        return self.weights[-1].shape[1]

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        return tuple(w.shape[1] for w in self.weights[:-1])

    def _layers(self, x):
        """The pre-activations n = b + Σ_k W[k] y[k] of all layers for a row x, real or complex."""
        y = np.asarray(x)
        for w, b in zip(self.weights, self.biases, strict=True):
            n = b.astype(y.dtype)
            for k in range(len(y)):
                n = n + w[k] * y[k]
            yield n
            y = 1 / (1 + np.exp(-n)) if np.iscomplexobj(n) else expit(n)

    def logits(self, X: ArrayLike) -> NDArray:
        X = np.asarray(X, np.float64)
        out = np.zeros((len(X), self.n_outputs))
        for r, x in enumerate(X):
            *_, out[r] = self._layers(x)
        return out

    def forward(self, X: ArrayLike) -> NDArray:
        return expit(self.logits(X))

    def margin(self, X: ArrayLike, outputs: Sequence[int] = (0, 1)) -> NDArray:
        z = self.logits(X)
        return z[:, 0] if self.n_outputs == 1 else z[:, outputs[0]] - z[:, outputs[1]]

    def margin_gradient(self, X: ArrayLike, outputs: Sequence[int] = (0, 1)) -> NDArray:
        """∇f = W₁ σ'(n₁) W₂ σ'(n₂) … (v_o0 − v_o1)."""
        X = np.asarray(X, np.float64)
        out = np.zeros((len(X), self.n_inputs))
        last = self.weights[-1]
        d = last[:, 0] if self.n_outputs == 1 else last[:, outputs[0]] - last[:, outputs[1]]
        for r, x in enumerate(X):
            *hidden, _ = self._layers(x)
            g = d
            for w, n in zip(self.weights[-2::-1], hidden[::-1], strict=True):
                g = w @ (_slope(n) * g)
            out[r] = g
        return out


class ExponentialSum:
    """Σ_S C_S exp(Σ_{i∈S} B_i), one term per subset; bit i of the mask is hidden unit i."""

    def __init__(self, net: SigmoidMLP, outputs: Sequence[int] = (0, 1)) -> None:
        (self._w, v), (self._b, c) = net.weights, net.biases
        if net.n_outputs == 1:
            self._d, self._dc = [Fraction(x) for x in v[:, 0]], Fraction(c[0])
        else:
            self._d = [
                Fraction(x) - Fraction(y) for x, y in zip(*v[:, list(outputs)].T, strict=True)
            ]
            self._dc = Fraction(c[outputs[0]]) - Fraction(c[outputs[1]])
        self._subsets = [[i for i in range(len(v)) if mask >> i & 1] for mask in range(2 ** len(v))]

    @classmethod
    def from_network(cls, net: SigmoidMLP, outputs: Sequence[int] = (0, 1)) -> Self:
        return cls(net, outputs)

    def _coefficient(self, S):
        return self._dc + sum(d for i, d in enumerate(self._d) if i not in S)

    @property
    def coefficients(self) -> NDArray:
        return np.array([float(self._coefficient(S)) for S in self._subsets])

    def frequencies(self, coordinate: int) -> NDArray:
        return np.array(
            [-float(sum(Fraction(self._w[coordinate, i]) for i in S)) for S in self._subsets]
        )

    def root_bound(self, coordinate: int) -> int:
        """The most changes of sign in order of frequency, whatever signs other inputs decide."""
        terms, groups = defaultdict[Any, Fraction](Fraction), defaultdict[Any, set[bool]](set)
        for S in self._subsets:
            exponent = tuple(sum(Fraction(row[i]) for i in S) for row in (*self._w, self._b))
            terms[exponent] += self._coefficient(S)
        for exponent, C in terms.items():
            if C:
                groups[exponent[coordinate % len(self._w)]].add(C > 0)
        if not groups:
            raise ValueError("the exponential sum is identically zero: every x is a root")
        choices = itertools.product(*(groups[a] for a in sorted(groups)))
        return max(sum(s != t for s, t in itertools.pairwise(signs)) for signs in choices)

    def log_evaluate(self, B: ArrayLike) -> tuple[NDArray, NDArray]:
        B = np.asarray(B, np.float64)
        E = np.stack([B[..., S].sum(axis=-1) for S in self._subsets], axis=-1)
        top = E.max(axis=-1, keepdims=True)
        total = (self.coefficients * np.exp(E - top)).sum(axis=-1)
        with np.errstate(divide="ignore"):
            return np.sign(total), np.log(abs(total)) + top[..., 0]


class RootResults(NamedTuple):
    """One root per row."""

    x: NDArray
    converged: NDArray
    iterations: NDArray
    function_calls: NDArray


def find_x1(
    net: SigmoidMLP,
    x_other: ArrayLike,
    bracket: Sequence[ArrayLike],
    *,
    coordinate: int = 0,
    outputs: Sequence[int] = (0, 1),
    method: str = "brentq",
    xtol: float = 2e-12,
    rtol: float = 8.881784197001252e-16,
    maxiter: int = 100,
) -> RootResults:
    """SciPy's root finder `method` on the margin along `coordinate`, row by row."""
    x_other = np.asarray(x_other, np.float64)
    x_other = x_other if x_other.ndim == 2 else x_other.reshape(-1, 1)
    X = np.insert(x_other, coordinate % net.n_inputs, 0, axis=1)
    lo, hi = (np.broadcast_to(np.asarray(end, np.float64), len(X)) for end in bracket)
    rows = []
    for x, a, b in zip(X, lo, hi, strict=True):

        def at(t, x=x):
            x[coordinate] = t
            return x[None]

        seen: dict[float, float] = {}

        def f(t, at=at, seen=seen):
            return seen.setdefault(float(t), net.margin(at(t), outputs)[0])

        root, converged, *work = _one_root(
            f,
            lambda t, at=at: net.margin_gradient(at(t), outputs)[0, coordinate],
            a,
            b,
            method,
            xtol,
            rtol,
            maxiter,
        )
        rows.append(
            (root, converged and _changes_sign(f, seen, root, xtol + rtol * abs(root)), *work)
        )
    return RootResults(
        *(
            np.array([row[k] for row in rows], kind)
            for k, kind in enumerate((float, bool, int, int))
        )
    )


def _changes_sign(f, seen, x, reach):
    """Whether f is 0 at x, or has both signs among the points seen within `reach` of x."""
    if not np.isfinite(x) or f(x) == 0:
        return bool(np.isfinite(x))
    f(np.nextafter(x - reach, x)), f(np.nextafter(x + reach, x))  # inwards, after rounding
    near = [np.sign(value) for t, value in seen.items() if abs(t - x) <= reach]
    return 0 in near or (1 in near and -1 in near)


def _one_root(f, slope, a, b, method, xtol, rtol, maxiter):
    """(x, converged, iterations, function_calls)."""
    for end in (a, b):
        if f(end) == 0:
            return end, True, 0, 2
    if f(a) * f(b) > 0:
        raise ValueError(
            f"bracket has no change of sign: the margin is {f(a)} at {a} and {f(b)} at {b}"
        )
    if method == "chandrupatla":
        tolerances = {"xatol": xtol, "xrtol": rtol}
        r = optimize.elementwise.find_root(
            np.vectorize(f), (a, b), tolerances=tolerances, maxiter=maxiter
        )
        return r.x, r.success, r.nit, r.nfev
    options = {"rtol": rtol, "maxiter": maxiter, "full_output": True, "disp": False}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        if method == "newton":
            x, r = optimize.newton(f, (a + b) / 2, slope, tol=xtol, **options)
        elif method == "secant":
            x, r = optimize.newton(f, a, x1=b, tol=xtol, **options)
        else:
            x, r = getattr(optimize, method)(f, a, b, xtol=xtol, **options)
    return x, r.converged, r.iterations, r.function_calls


class Crossings:
    """Row i has the ties x[indptr[i]:indptr[i + 1]]."""

    def __init__(
        self,
        indptr: NDArray,
        x: NDArray,
        lower: NDArray,
        upper: NDArray,
        unique: NDArray,
        complete: NDArray,
        root_bound: int | None = None,
    ) -> None:
        self.indptr, self.x, self.lower, self.upper = indptr, x, lower, upper
        self.unique, self.complete, self.root_bound = unique, complete, root_bound

    @property
    def status(self) -> NDArray:
        return np.where(self.unique, "unique", "cluster")

    def __len__(self) -> int:
        return len(self.complete)

    def __getitem__(self, i: int) -> NDArray:
        i = range(len(self))[i]
        return self.x[self.indptr[i] : self.indptr[i + 1]]


def solve_x1(
    net: SigmoidMLP,
    x_other: ArrayLike,
    *,
    coordinate: int = 0,
    outputs: Sequence[int] = (0, 1),
    bounds: Sequence[float] | NDArray = (-np.inf, np.inf),
    xtol: float = 1e-12,
    progress: Any = None,
) -> Crossings:
    """Dense samples where units of the first layer bend, brentq where the margin changes its sign.

    It never claims to be complete.
    """
    x_other, coordinate = np.asarray(x_other, np.float64), coordinate % net.n_inputs
    x_other = x_other if x_other.ndim == 2 else x_other.reshape(-1, 1)
    rows = []
    for x in np.insert(x_other, coordinate, 0, axis=1):
        w = net.weights[0][coordinate]
        s = x @ net.weights[0] + net.biases[0]
        t = np.append((np.linspace(-40, 40, 201)[:, None] - s[w != 0]) / w[w != 0], 0)
        t = np.unique(
            np.append(
                t[(t > bounds[0]) & (t < bounds[1])], [end for end in bounds if np.isfinite(end)]
            )
        )

        def margin(t, x=x):
            return net.margin([np.where(np.arange(len(x)) == coordinate, t, x)], outputs)[0]

        f = np.array([margin(p) for p in t])
        cells = np.flatnonzero(f[:-1] * f[1:] < 0)
        rows.append(
            sorted(
                [
                    *t[f == 0],
                    *(optimize.brentq(margin, t[k], t[k + 1], xtol=xtol / 8) for k in cells),
                ]
            )
        )
    indptr = np.cumsum([0, *map(len, rows)])
    x = np.array([t for row in rows for t in row])
    half = xtol / 2 * np.maximum(1, abs(x))
    return Crossings(
        indptr, x, x - half, x + half, np.ones(len(x), bool), np.zeros(len(rows), bool)
    )


class BoundaryCurves(NamedTuple):
    """Curves, whether each is closed, whether they are proven to be all, and where that is open."""

    points: list[NDArray]
    closed: NDArray
    certified: bool
    undecided: NDArray


def trace_boundary(
    net: SigmoidMLP,
    bounds: Sequence[ArrayLike] | NDArray,
    *,
    coordinates: Sequence[int] | NDArray = (0, 1),
    at: ArrayLike | None = None,
    outputs: Sequence[int] = (0, 1),
    tol: float = 1e-10,
) -> BoundaryCurves:
    """Marching squares: zeros on the edges of a grid, joined cell by cell; it proves nothing."""
    n = 120
    box = np.array(bounds, np.float64)
    x, y = np.linspace(box[:, 0], box[:, 1], n + 1).T
    fixed = np.zeros(net.n_inputs) if at is None else np.array(at, np.float64)

    def f(u, v):
        point = fixed.copy()
        point[list(coordinates)] = u, v
        return net.margin(point[None], outputs)[0]

    above = np.array([[f(u, v) >= 0 for v in y] for u in x])
    zero = {}  # (i, j, axis), the edge from node (i, j) along the axis -> the point on it
    for i, j in itertools.product(range(n + 1), repeat=2):
        if i < n and above[i, j] != above[i + 1, j]:
            zero[i, j, 0] = optimize.brentq(f, x[i], x[i + 1], args=(y[j],), xtol=tol), y[j]
        if j < n and above[i, j] != above[i, j + 1]:
            zero[i, j, 1] = (
                x[i],
                optimize.brentq(lambda v, i=i: f(x[i], v), y[j], y[j + 1], xtol=tol),
            )
    joined = defaultdict[Any, list](list)
    for i, j in itertools.product(range(n), repeat=2):
        bottom, right, top, left = (i, j, 0), (i + 1, j, 1), (i, j + 1, 0), (i, j, 1)
        hit = [e for e in (bottom, right, top, left) if e in zero]
        if len(hit) == 4:  # the middle tells which two corners belong together
            middle = f((x[i] + x[i + 1]) / 2, (y[j] + y[j + 1]) / 2) >= 0
            hit = (
                [bottom, right, top, left] if middle == above[i, j] else [left, bottom, right, top]
            )
        for a, b in zip(hit[::2], hit[1::2], strict=True):
            joined[a].append(b)
            joined[b].append(a)
    return _chains(zero, joined)


def _chains(zero, joined):
    points, closed, left = [], [], set(joined)
    for start in sorted(joined, key=lambda e: len(joined[e])):  # open ends first
        chain = []
        edge = start if start in left else None
        while edge is not None:
            left.discard(edge)
            chain.append(edge)
            edge = next((e for e in joined[edge] if e in left), None)
        if chain:
            closed.append(len(joined[start]) == 2)
            points.append(np.array([zero[e] for e in chain + chain[:1] * closed[-1]]))
    return BoundaryCurves(points, np.array(closed, bool), False, np.zeros((0, 2, 2)))


class TieSensitivity(NamedTuple):
    """∂x*/∂p, shaped as the network's parameters and its other inputs."""

    weights: tuple[NDArray, ...]
    biases: tuple[NDArray, ...]
    inputs: NDArray


def _complex_margin(parameters, x, outputs):
    """f for any complex parameters and inputs."""
    y = x
    for k, (w, b) in enumerate(zip(*parameters, strict=True)):
        y = (1 / (1 + np.exp(-y)) if k else y) @ w + b
    return y[0] if len(y) == 1 else y[outputs[0]] - y[outputs[1]]


def tie_sensitivity(
    net: SigmoidMLP, x: ArrayLike, *, coordinate: int = 0, outputs: Sequence[int] = (0, 1)
) -> TieSensitivity:
    """∂x*/∂p = −(∂f/∂p) / (∂f/∂x*), every derivative of f on its own by a complex step."""
    weights, biases = ([a.astype(complex) for a in part] for part in (net.weights, net.biases))
    x, h = np.array(x, complex), 1e-100

    def derivatives(array):
        out = np.zeros(array.shape)
        for at in np.ndindex(array.shape):
            array[at] += 1j * h
            out[at] = _complex_margin((weights, biases), x, outputs).imag / h
            array[at] -= 1j * h
        return out

    gradient = derivatives(x)
    slope = gradient[coordinate]
    return TieSensitivity(
        tuple(-derivatives(w) / slope for w in weights),
        tuple(-derivatives(b) / slope for b in biases),
        -np.delete(gradient, coordinate) / slope,
    )


def follow_boundary(
    net: SigmoidMLP,
    start: ArrayLike,
    length: float,
    *,
    coordinates: Sequence[int] = (0, 1),
    outputs: Sequence[int] = (0, 1),
    step: float | None = None,
    rtol: float = 1e-10,
    atol: float = 1e-10,
    stop_when_closed: bool = False,
) -> NDArray:
    """dx/ds = (−∂f/∂x_j, ∂f/∂x_i) / |∇f| over the whole length; `step`: by default length / 200."""
    start, plane = np.asarray(start, np.float64), list(coordinates)

    def at(p):
        X = start[None].copy()
        X[0, plane] = p
        return X

    def field(s, p):
        a, b = net.margin_gradient(at(p), outputs)[0, plane]
        return np.array([-b, a]) / np.hypot(a, b) * np.sign(length)

    def projected(p):
        for _ in range(10):
            g = net.margin_gradient(at(p), outputs)[0, plane]
            p = p - net.margin(at(p), outputs)[0] * g / (g @ g)
        return at(p)[0]

    p0, size, taken = start[plane], abs(length), [0.0]

    def after_step(s, p):
        taken.append(s)
        if len(taken) % 400 == 0 and size - s > 2.0**52 * max(np.diff(taken)):
            raise ValueError(f"length is {length:g}, beside which steps are lost in rounding")
        return 1.0  # an event would be a change of its sign

    way = integrate.solve_ivp(
        field, (0, size), p0, "DOP853", rtol=rtol, atol=atol, dense_output=True, events=after_step
    ).sol
    end = size
    if stop_when_closed:
        s = np.linspace(0, size, 20001)
        ahead = field(0, p0) @ (way(s) - p0[:, None])
        near = np.hypot(*(way(s[1:]) - p0[:, None])) < 2 * s[1]
        for k in np.flatnonzero((ahead[:-1] < 0) & (ahead[1:] >= 0) & near)[:1]:
            end = optimize.brentq(lambda s: field(0, p0) @ (way(s) - p0), s[k], s[k + 1])
    h = size / 200 if step is None else step
    middle = [projected(way(s)) for s in np.arange(1, np.ceil(end / h)) * h] if end else []
    last = [start if end < size else projected(way(end))] if end else []
    return np.array([start, *middle, *last])


def _lead(net, x, outputs):
    """The outputs that may tie with the leading one, as pairs (leading, other).

    A single output counts as two classes.
    """
    z = net.logits(x[None])[0]
    z = np.append(0, z) if len(z) == 1 else z
    if outputs == "any" and len(z) > 2:
        first = int(np.argmax(z))
        return [(first, c) for c in range(len(z)) if c != first]
    a, b = (0, 1) if outputs == "any" or net.n_outputs == 1 else (int(o) % len(z) for o in outputs)
    return [(a, b) if (z[a], -a) > (z[b], -b) else (b, a)]


def _decisive(net, x, pair):
    """Whether no third output is larger."""
    z = net.logits(x[None])[0]
    return len(z) < 3 or bool(np.max(np.delete(z, pair)) <= np.max(z[list(pair)]) + 1e-9)


class Counterfactuals(NamedTuple):
    """The nearest change along each input, never certified: a root on a grid proves nothing."""

    value: NDArray
    change: NDArray
    lower: NDArray
    upper: NDArray
    status: NDArray
    output: NDArray
    decisive: NDArray
    certified: NDArray


def counterfactuals(
    net: SigmoidMLP,
    x: ArrayLike,
    *,
    features: Sequence[int] | NDArray | None = None,
    outputs: Sequence[int] | NDArray | Literal["any"] = "any",
    bounds: ArrayLike = (-np.inf, np.inf),
) -> Counterfactuals:
    """For one input, the nearest change of sign between the leading output and another."""
    x = np.asarray(x, np.float64)
    if x.ndim == 2:
        rows = [
            counterfactuals(net, row, features=features, outputs=outputs, bounds=bounds)
            for row in x
        ]
        return Counterfactuals(*(np.stack(field) for field in zip(*rows, strict=True)))
    chosen = range(len(x)) if features is None else features
    found = [
        _along(net, x, j, outputs, lo, hi)
        for j, (lo, hi) in zip(chosen, np.broadcast_to(bounds, (len(chosen), 2)), strict=True)
    ]
    kinds: list[Any] = [float, float, float, "U7", int, bool]
    value, lower, upper, status, output, decisive = (
        np.array([f[k] for f in found], kind) for k, kind in enumerate(kinds)
    )
    return Counterfactuals(
        value,
        value - x[list(chosen)],
        lower,
        upper,
        status,
        output,
        decisive,
        np.zeros(len(value), bool),
    )


def _along(net, x, j, outputs, lo, hi):
    """(value, lower, upper, status, output, decisive) of one input."""
    start, nearest = x.copy(), (np.nan, np.nan, np.nan, "none", -1, False)
    start[j] = np.clip(x[j], lo, hi)
    for a, b in _lead(net, start, outputs):
        ties = solve_x1(net, np.delete(x, j)[None], coordinate=j, outputs=(a, b), bounds=(lo, hi))
        for t, low, high in zip(ties.x, ties.lower, ties.upper, strict=True):
            if not abs(t - x[j]) >= abs(nearest[0] - x[j]):
                there = np.insert(np.delete(x, j), j % len(x), t)
                nearest = t, low, high, "unique", b, _decisive(net, there, (a, b))
    return nearest


class NearestTie(NamedTuple):
    """The nearest tie, and whether it is one."""

    x: NDArray
    distance: float
    margin: float
    residual: float
    converged: bool
    output: int
    decisive: bool


def nearest_tie(
    net: SigmoidMLP,
    x: ArrayLike,
    *,
    outputs: Sequence[int] | NDArray | Literal["any"] = "any",
    bounds: ArrayLike | None = None,
) -> NearestTie:
    """min |y − x| with f(y) = 0, by SLSQP from ties on random lines, for every f that counts."""
    x = np.asarray(x, np.float64)
    box = np.broadcast_to((-np.inf, np.inf) if bounds is None else bounds, (len(x), 2))
    middle, rng = np.clip(x, *box.T), np.random.default_rng(1)
    best = NearestTie(np.full(len(x), np.nan), np.nan, np.nan, np.nan, False, -1, False)
    for v, pair in itertools.product(
        rng.standard_normal((10, len(x))), _lead(net, middle, outputs)
    ):
        line = SigmoidMLP(
            (v[None] @ net.weights[0], *net.weights[1:]),
            (net.biases[0] + middle @ net.weights[0], *net.biases[1:]),
        )
        for t in solve_x1(line, np.zeros((1, 0)), outputs=pair).x:
            tie = _slsqp(net, x, np.clip(middle + t * v, *box.T), pair, box)
            if tie.converged and not tie.distance >= best.distance:
                best = tie
    return best


def _slsqp(net, x, start, pair, box):
    def off(y):
        return (y - x) @ (y - x), 2 * (y - x)

    constraint = {
        "type": "eq",
        "fun": lambda y: net.margin([y], pair)[0],
        "jac": lambda y: net.margin_gradient([y], pair)[0],
    }
    y = optimize.minimize(
        off,
        start,
        jac=True,
        method="SLSQP",
        bounds=box,
        constraints=constraint,
        options={"ftol": 1e-14},
    ).x
    margin, g, distance = (
        net.margin([y], pair)[0],
        net.margin_gradient([y], pair)[0],
        np.linalg.norm(y - x),
    )
    pull = np.clip(x + g * (g @ (y - x)) / (g @ g), *box.T)
    residual = float(np.linalg.norm(y - pull) / distance)
    return NearestTie(
        y,
        float(distance),
        float(margin),
        residual,
        bool(abs(margin) < 1e-9),
        pair[1],
        _decisive(net, y, pair),
    )


class DecisionIntervals:
    """The intervals of all rows, one row after the other."""

    def __init__(
        self,
        indptr: NDArray,
        lower: NDArray,
        upper: NDArray,
        output: NDArray,
        complete: NDArray,
        proven: NDArray,
    ) -> None:
        self.indptr, self.lower, self.upper, self.output = indptr, lower, upper, output
        self.complete, self.proven = complete, proven

    def __len__(self) -> int:
        return len(self.complete)

    def __getitem__(self, row: int) -> DecisionIntervals:
        part = slice(*self.indptr[row : row + 2])
        rows, ends = np.array([0, part.stop - part.start]), (self.lower[part], self.upper[part])
        return DecisionIntervals(
            rows, *ends, self.output[part], self.complete[row : row + 1], self.proven[part]
        )


def decision_intervals(
    net: SigmoidMLP,
    x_other: ArrayLike,
    *,
    coordinate: int = 0,
    bounds: ArrayLike = (-np.inf, np.inf),
) -> DecisionIntervals:
    """The largest output at many points; where neighbours differ, the place by bisection.

    Nothing of it is proven.
    """
    x_other = np.asarray(x_other, np.float64)
    x_other = x_other if x_other.ndim == 2 else x_other.reshape(-1, 1)
    lo, hi = np.asarray(bounds, np.float64)
    rows = []
    for x in np.insert(x_other, coordinate % net.n_inputs, 0, axis=1):

        def largest(t, x=x):
            x[coordinate] = t
            (z,) = net.logits(x[None])
            return int(np.argmax(z)) if len(z) > 1 else int(z[0] > 0)

        def changes(a, b):
            """(where, new output) of the changes between a and b."""
            if largest(a) == largest(b):
                return []
            c = a / 2 + b / 2
            return [(b, largest(b))] if c in (a, b) else changes(a, c) + changes(c, b)

        t = np.unique(np.clip(np.sinh(np.linspace(-20, 20, 801)), lo, hi))
        rows.append(
            [
                (lo, largest(t[0])),
                *itertools.chain(*itertools.starmap(changes, itertools.pairwise(t))),
            ]
        )
    indptr = np.cumsum([0, *map(len, rows)])
    uppers = [[*(at for at, _ in row[1:]), hi] for row in rows]
    flat = [pair for row in rows for pair in row]
    return DecisionIntervals(
        indptr,
        np.array([at for at, _ in flat]),
        np.array(list(itertools.chain(*uppers))),
        np.array([output for _, output in flat], int),
        np.zeros(len(rows), bool),
        np.zeros(len(flat), bool),
    )
