"""The walk along a boundary in a plane: steps of SciPy's integrator, each projected onto it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..._core import arrays
from .._margin import Margin
from .._network import SigmoidMLP
from .._points import CLOSE

_EPS = float(np.finfo(float).eps)
_OFF = 1e-7  # how far the integrator's own curve may leave the boundary before a step is taken back
_EVENLY = np.linspace(0, 1, 17)[1:]  # where a step is sampled
_TRANSITION = np.arange(-12, 12.1, 1.5)  # and at which arguments of a hidden unit
_MANY = 400  # steps, after which one is as long as it gets: each may be ten times the one before
_MOST = 2.0**52  # steps of a walk: beside a longer way a step is lost in rounding
_EVEN_POINTS = 1 << 14  # of a long step at a time
_BLOCK = 1 << 16  # points that are kept as single arrays; so many show how many there will be
_FARTHEST = CLOSE / _EPS  # beyond, numbers are further apart than points may be from the boundary


class Plane:
    """The margin over two inputs, the others held."""

    def __init__(
        self, net: SigmoidMLP, margin: Margin, start: np.ndarray, coordinates: tuple[int, int]
    ) -> None:
        self.net, self.fixed, self.columns = net, start, list(coordinates)
        self.compiled, self.noise = margin.compiled, margin.noise
        self.start = start[self.columns]
        self.w = net.weights[0][self.columns]

    def lift(self, P: np.ndarray) -> np.ndarray:
        """The network's inputs (k, n_inputs) at points P (k, 2) of the plane."""
        X = np.repeat(self.fixed[None], len(P), axis=0)
        X[:, self.columns] = P
        return X

    def gradient(self, X: np.ndarray) -> np.ndarray:
        return self.compiled.gradients(X)[:, self.columns]

    def evaluate(self, P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Margin (k,) and gradient (k, 2) at P (k, 2)."""
        X = self.lift(P)
        return self.compiled.values(X), self.gradient(X)

    def project(self, P: np.ndarray) -> np.ndarray:
        """P (k, 2) on the boundary, by Newton's method along the gradient.

        It goes on as long as it comes closer.
        """
        best = np.full(len(P), np.inf)
        for _ in range(20):
            f, g = self.evaluate(P)
            slope = np.hypot(*g.T)
            move = (f / slope)[:, None] * (g / slope[:, None])
            size = abs(move).max(1)
            better = (size < best / 2) & (size > 0)
            if not better.any():
                return P
            P, best = np.where(better[:, None], P - move, P), np.where(better, size, 0)
        return P

    def check_start(self) -> None:
        (f,), (g,) = self.evaluate(self.start[None])
        slope = math.hypot(*g)
        if slope == 0:
            raise ValueError(
                f"start has a margin of {f:.6g} whose gradient is zero in the plane of coordinates "
                f"{tuple(self.columns)}; expected a point where the boundary has a direction"
            )
        if not abs(f) <= CLOSE * slope:
            raise ValueError(
                f"start is no tie: the margin is {f:.6g} there, about {abs(f) / slope:.3g} from "
                f"the boundary; expected a point within {CLOSE:g} of it"
            )

    def transitions(self, p: np.ndarray, q: np.ndarray) -> np.ndarray:
        """Where in [0, 1] the way from p to q passes transitions of units of the first layer.

        Only those units count that change quickly on it.
        """
        (x,) = self.lift(p[None])
        z, dz = self.net.biases[0] + x @ self.net.weights[0], (q - p) @ self.w
        quick = abs(dz) > 4
        t = (_TRANSITION - z[quick, None]) / dz[quick, None]
        return t[(t > 0) & (t < 1)]


class Walk:
    """The way along the boundary: integrator's steps from projected point to projected point."""

    def __init__(self, plane: Plane, length: float, rtol: float, atol: float) -> None:
        self.plane, self.rtol, self.atol = plane, rtol, atol
        self.length, self.sign = abs(length), math.copysign(1.0, length)
        self.x = np.repeat(plane.fixed[None], 1, axis=0)  # one row, for the field
        self.begin = self.p = plane.project(plane.start[None])[0]
        self.s, self.h = 0.0, None  # arc length so far; the next step's, if known
        self.steps, self.longest = 0, 0.0
        self.forward = self.field(0, self.p)

    def field(self, s: float, p: np.ndarray) -> np.ndarray:
        """dx/ds in the plane."""
        self.x[0, self.plane.columns] = p
        ((a, b),) = self.plane.gradient(self.x)
        size = math.hypot(a / 2, b / 2)  # halved: it must not overflow
        return np.array([-b, a]) / 2 * (self.sign / size) if size else np.full(2, np.nan)

    def points(self, step: float | None, stop_when_closed: bool) -> np.ndarray:
        """(k, 2): `start`, the points on the way, and the one at the end."""
        points, next_at = _Points(self.plane.start, self.plane.net.n_inputs), 1
        while self.s < self.length:
            s, way, samples = self.advance()
            end = self.closing(way, samples) if stop_when_closed else None
            reach = self.s if end is None else s + end
            if step is not None:
                last = min(math.ceil(reach / step - 1e-9), math.ceil(self.length / step - 1e-9))
                for first in range(next_at, last, _EVEN_POINTS):
                    at = np.arange(first, min(first + _EVEN_POINTS, last)) * step - s
                    points.add(self.plane.project(way(at).T))
                next_at = max(last, next_at)
            if end is not None:
                points.add(self.plane.start[None])
                break
            if step is None or self.s == self.length:
                points.add(self.p[None])
                if step is None:
                    points.expect(self.length / self.s)
        return points.all()

    def refuse_lost_steps(self, taken: float) -> None:
        """A ValueError if the rest of the way is so long that steps are lost in rounding beside it.

        It is judged by the longest step so far.
        """
        self.steps, self.longest = self.steps + 1, max(self.longest, taken)
        if self.steps >= _MANY and self.length - self.s > _MOST * self.longest:
            raise ValueError(
                f"length is {self.sign * self.length:g}, "
                "beside which steps along this boundary are lost in rounding: the longest of "
                f"{self.steps} was {self.longest:.3g}; expected at most 2**52 times that"
            )

    def advance(self) -> tuple[float, Callable, np.ndarray]:
        """One step that stays on the boundary.

        Returns where it began, the way from there, and where on it the step was sampled.
        """
        from scipy.integrate import DOP853

        left = self.length - self.s
        if not np.isfinite(self.field(0, self.p)).all():  # the integrator would never return
            raise self.stuck()
        h, taken_back = None if self.h is None else min(self.h, left), False
        while True:
            solver = DOP853(
                self.field, 0.0, self.p, left, first_step=h, rtol=self.rtol, atol=self.atol
            )
            solver.step()
            taken = solver.t
            if solver.status != "failed":
                way = solver.dense_output()
                samples = self.sampled(way, solver.y, taken, taken < left)
                if samples is not None:
                    break
                taken, taken_back = solver.t / 4, True
            if solver.status == "failed" or taken < 64 * _EPS * max(1.0, abs(self.p).max()):
                raise self.stuck()
            h = taken
        s, self.p = self.s, self.plane.project(solver.y[None])[0]
        self.s = self.length if left - solver.t <= 4 * _EPS * self.length else s + solver.t
        # `h_abs` is what the integrator would try next
        self.h = solver.t if taken_back else solver.h_abs
        self.refuse_lost_steps(solver.t)
        return s, way, samples

    def stuck(self) -> ValueError:
        at = self.plane.lift(self.p[None])[0].tolist()
        return ValueError(
            f"length is {self.sign * self.length:g}, but the boundary cannot be followed beyond "
            f"{self.sign * self.s + 0.0:.6g}: at {at} it has "
            f"no direction that float64 can tell, as at a saddle, on a plateau of the margin or "
            f"farther out than {_FARTHEST:.2g}"
        )

    def sampled(self, way: Callable, q: np.ndarray, h: float, chosen: bool) -> np.ndarray | None:
        """Where a step of length h to q was sampled, if all of it lies on the boundary; else None.

        The integrator has `chosen` some steps, others end where the curve does.  A chosen step must
        be sixteen times as long as what rounding may move the boundary by.  A shorter one does not
        tell where the boundary goes.
        """
        t = np.sort(np.concatenate([_EVENLY, self.plane.transitions(self.p, q)])) * h
        P = way(t).T
        f, g = self.plane.evaluate(P)
        size = np.hypot(*g.T)
        on = abs(f) <= _OFF * np.maximum(1.0, abs(P).max(1)) * size
        told = self.plane.noise <= (min(CLOSE, h / 16) if chosen else CLOSE) * size
        told &= abs(P).max(1) <= _FARTHEST
        return t if (on & told).all() else None

    def closing(self, way: Callable, t: np.ndarray) -> float | None:
        """How far into a step the curve comes back to its beginning, if it does.

        The beginning is `start` projected onto the boundary: from `start` itself, the first step
        may begin a little behind it.
        """
        from scipy.optimize import brentq

        def ahead(t: float) -> float:
            return float((way(t) - self.begin) @ self.forward)

        t = np.concatenate([[0.0], t])
        away = way(t).T - self.begin
        side = away @ self.forward
        near = np.hypot(*away[1:].T) <= 2 * np.diff(t) + CLOSE
        for k in np.flatnonzero((side[:-1] < 0) & (side[1:] >= 0) & near):
            at = brentq(ahead, t[k], t[k + 1], xtol=1e-14, rtol=4 * _EPS)
            if math.dist(way(at), self.begin) <= CLOSE * max(1.0, abs(self.begin).max()):
                return at
        return None


class _Points:
    """Points of the plane in the order in which they are added.

    They are kept in blocks, as single ones would take ten times the memory.
    """

    def __init__(self, start: np.ndarray, n_inputs: int) -> None:
        self.blocks, self.count, self.n_inputs = [start[None]], 1, n_inputs
        self.open: list[np.ndarray] = []

    def add(self, points: np.ndarray) -> None:
        self.open.append(points)
        self.count += len(points)
        if len(self.open) == _BLOCK:
            self.blocks, self.open = [*self.blocks, np.concatenate(self.open)], []

    def expect(self, ratio: float) -> None:
        """A MemoryError if `ratio` times the points so far do not fit, once there are many."""
        if self.count % _BLOCK == 0:
            arrays.check_fits("the points", int(min(self.count * ratio, 1e300)) * 8 * self.n_inputs)

    def all(self) -> np.ndarray:
        return np.concatenate([*self.blocks, *self.open])
