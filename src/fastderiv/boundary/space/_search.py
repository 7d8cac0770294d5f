"""One search for the nearest tie: from ties on straight lines to a minimum of the distance."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

from .._network import SigmoidMLP
from ..line._counterfactuals import nearest_along
from ..line._solve import solve_x1
from ._problem import Problem, unit_rows

_LINES = 24  # directions that are searched for ties, beside those of the inputs and the gradient
_PROBES = 12  # directions beside the found one, each time


class Search(Problem):
    """The nearest tie of a pair, as far as it is found from starts on lines through the origin."""

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
        """The nearest tie on each line z = s v, for `directions` v (k, d) into the box."""
        w, b = self.net.weights, self.net.biases
        offset = b[0] + self.origin @ w[0]
        for v in self.inward(directions):
            along = (self.Q @ v) @ w[0]
            ends = np.sort([self.lo[v != 0] / v[v != 0], self.hi[v != 0] / v[v != 0]], axis=0)
            lo, hi = ends[0].max(initial=-np.inf), ends[1].min(initial=np.inf)
            if not (lo < hi and np.isfinite(along).all() and np.isfinite(offset).all()):
                continue
            line = SigmoidMLP((along[None], *w[1:]), (offset, *b[1:]))
            ties = solve_x1(line, np.zeros((1, 0)), outputs=self.outputs, bounds=(lo, hi)).x
            z = ties[:, None] * v
            z = z[np.isfinite(z).all(1)]
            if len(z):
                nearest = self.projected(z[np.linalg.norm(z - self.target, axis=1).argmin()])
                if self.is_tie(nearest):
                    yield nearest

    def inward(self, directions: np.ndarray) -> np.ndarray:
        """The directions without the parts that lead out of the box at once.

        There are such parts where the origin lies on an edge of the box.
        """
        outward = ((self.lo == 0) & (directions < 0)) | ((self.hi == 0) & (directions > 0))
        return unit_rows(np.where(outward, 0.0, directions))

    def spread(self, g: np.ndarray) -> np.ndarray:
        """Directions: g, others evenly (in a plane) or at random, and to corners of the box."""
        d = len(self.target)
        if d == 2:
            angles = np.arange(0.5, _LINES) * np.pi / _LINES
            others = np.column_stack([np.cos(angles), np.sin(angles)])
        else:
            others = self.random.standard_normal((_LINES if d > 1 else 1, d))
        corners = np.where(others > 0, self.hi, self.lo)  # a boundary may only cut off a corner
        return unit_rows(np.vstack([g, self.target, others, corners[np.isfinite(corners).all(1)]]))

    def between(self) -> np.ndarray:
        """Directions between those of `spread`, in a plane; elsewhere others at random."""
        d = len(self.target)
        if d == 2:
            angles = np.arange(_LINES) * np.pi / _LINES
            return np.column_stack([np.cos(angles), np.sin(angles)])
        return unit_rows(self.random.standard_normal((_LINES if d > 1 else 0, d)))

    def beside(self, z: np.ndarray) -> np.ndarray:
        """Directions around the one of z, from close by to far off."""
        spread = np.geomspace(0.02, 2, _PROBES)[:, None]
        aside = spread * unit_rows(self.random.standard_normal((_PROBES, len(z))))
        return unit_rows(z / (np.linalg.norm(z) or 1.0) + aside)

    def downhill(self) -> np.ndarray:
        """Directions to points beyond the boundary, found by descent, if it meets no other line."""
        from scipy.optimize import minimize

        def height(z: np.ndarray) -> tuple[float, np.ndarray]:
            value, g = self.evaluate(z)
            return value / f, g / f

        f, _ = self.evaluate(0 * self.target)
        if not len(self.target):
            return np.empty((0, 0))
        random = self.random.standard_normal((_PROBES, len(self.target)))
        begins = np.clip(np.vstack([0 * self.target, random]), self.lo, self.hi)
        bounds = np.column_stack([self.lo, self.hi])
        ends = [minimize(height, z, jac=True, method="L-BFGS-B", bounds=bounds).x for z in begins]
        beyond = np.array([z for z in ends if height(z)[0] <= 0])
        return unit_rows(beyond.reshape(-1, len(self.target)))

    def polished(self, start: np.ndarray, ftol: float) -> np.ndarray:
        """A local minimum of the distance, from a tie; that tie itself if nothing better is found.

        In units of the start's distance and of the gradient there, both the distance and the
        constraint are of size 1.
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

    def refined(self, z: np.ndarray) -> np.ndarray:
        """Newton's method on the conditions of a nearest point, as long as that comes closer."""
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
            near = self.distance(new) <= self.distance(z) * (1 + 1e-6)
            if not (residual < best and self.is_tie(new) and near):
                break
            z, best = new, residual
        return z
