"""What a search for the nearest tie solves: the distance, and conditions of a nearest point."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..._core import maths
from .._leads import columns_of, first_equal, leads_of
from .._margin import Margin, Pair
from .._network import SigmoidMLP, margin_of

_NEAR = 1e-5  # part of the distance within which an input is as good as at the end of its bounds
_SURE = 1e-6  # a residual below makes a tie converged


class Verdict(NamedTuple):
    """What is known of a point as the nearest tie: the fields of `NearestTie`."""

    x: np.ndarray
    distance: float
    margin: float
    residual: float
    converged: bool
    decisive: bool


class Problem:
    """The nearest tie of a pair among y = origin + Q z: z nearest to `target` with f(z) = 0.

    z may be anywhere, or in a box around 0.  Q has orthonormal columns, so that distances of z are
    distances of y: those of the inputs that are free in a box, or, without one, a basis of what the
    first layer's weights span.  Across that span f does not change, and so the nearest tie does not
    leave it.
    """

    def __init__(
        self,
        net: SigmoidMLP,
        x: np.ndarray,
        pair: Pair,
        box: np.ndarray | None,
        output: int = -1,
    ) -> None:
        self.net, self.x, self.pair, self.output = net, x, pair, output
        self.outputs = columns_of(net, pair)
        self.margin = margin_of(net, self.outputs)
        self.box = np.tile((-np.inf, np.inf), (net.n_inputs, 1)) if box is None else box
        self.free = self.box[:, 0] < self.box[:, 1]
        self.origin = np.clip(x, *self.box.T)
        self.Q = span(net.weights[0]) if box is None else np.eye(net.n_inputs)[:, self.free]
        ends = np.tile((-np.inf, np.inf), (self.Q.shape[1], 1))
        if box is not None:
            ends = (box - self.origin[:, None])[self.free]
        self.lo, self.hi = ends.T
        self.target = self.Q.T @ (x - self.origin)
        # z is as coarse as the origin's numbers
        self.largest = max(1.0, float(abs(self.origin).max(initial=0)))
        self.random = np.random.default_rng(0)

    def at(self, z: np.ndarray) -> np.ndarray:
        return np.clip(self.origin + self.Q @ z, *self.box.T)

    def distance(self, z: np.ndarray) -> float:
        return math.hypot(*(z - self.target))  # which does not overflow

    def evaluate(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """f and its gradient at z."""
        f, g = self.margin.compiled.at(self.at(z))
        return f, self.Q.T @ g

    def residual(self, z: np.ndarray) -> float:
        """|z − the box's nearest point to target + λ g|, relative to the distance.

        λ is the best one for the inputs that no end of the box holds.
        """
        pull = self.pull(z, ~self.held(z))
        off = float(np.linalg.norm(z - np.clip(pull, self.lo, self.hi)))
        return off / (self.distance(z) or np.nan) if off else 0.0

    def pull(self, z: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """target + λ g with the λ for which it is nearest to z, among the inputs `inside`."""
        _, g = self.evaluate(z)
        if not inside.any():
            return z
        u = g / np.linalg.norm(g[inside])
        return self.target + (u[inside] @ (z - self.target)[inside]) * u

    def held(self, z: np.ndarray) -> np.ndarray:
        """Which inputs an end of the box holds: they are nearly at it, and are pulled beyond."""
        near = np.minimum(z - self.lo, self.hi - z) <= _NEAR * self.distance(z)
        pull = self.pull(z, ~near) if near.any() else z
        return near & np.where(z - self.lo < self.hi - z, pull <= self.lo, pull >= self.hi)

    def projected(self, z: np.ndarray) -> np.ndarray:
        """z on the boundary, by Newton's method along the gradient within the box.

        It goes on as long as it comes closer.
        """
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
        size = self.largest + abs(self.at(z)).max(initial=0)
        return bool(abs(f) <= self.margin.noise + 1e-12 * np.linalg.norm(g) * size)

    def lagrangian(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """At z, with the best λ: u = g/|g|, z − target + λu, I + λ ∇²f/|g|, f/|g|.

        They are taken over the inputs that no end of the box holds.
        """
        f, g = self.evaluate(z)
        inside = ~self.held(z)
        slope, away = float(np.linalg.norm(g[inside])) or np.nan, (z - self.target)[inside]
        u = g[inside] / slope
        force = -(u @ away)
        H = hessian(self.net, self.at(z), self.Q[:, inside], self.margin) / slope
        return u, away + force * u, np.eye(len(u)) + force * H, f / slope

    def curvature(self, z: np.ndarray) -> float:
        """The least curvature of the squared distance along the boundary.

        It is not negative at a minimum.
        """
        u, _, M, _ = self.lagrangian(z)
        if len(u) < 2 or not np.isfinite(M).all():
            return 0.0
        along = np.linalg.qr(np.column_stack([u, np.eye(len(u))]))[0][:, 1:]
        return float(np.linalg.eigvalsh(along.T @ M @ along)[0])

    def decisive(self, x: np.ndarray) -> bool:
        """Whether no third output is larger at x, but for rounding."""
        if self.net.n_outputs < 3:
            return True
        lead, doubt = leads_of(self.net, self.pair[0]).at(x[None])
        same = first_equal(self.net)
        third = ~np.isin(same, same[list(self.pair)])
        return not (lead < -doubt)[:, third].any()

    def verdict(self, z: np.ndarray) -> Verdict:
        x = self.at(z)
        (margin,), (_, g) = self.margin.compiled.values(x[None]), self.evaluate(z)
        distance = math.dist(x, self.x)
        # as exactly as x can be placed
        here = 16 * np.finfo(float).eps * max(self.largest, float(abs(x).max(initial=0)))
        residual = self.residual(z) if distance > here else 0.0
        tie = abs(margin) <= self.margin.noise + here * np.linalg.norm(g)
        minimum = distance <= here or self.curvature(z) >= -_SURE
        converged = bool(tie and residual <= _SURE and minimum)
        return Verdict(x, distance, float(margin), residual, converged, self.decisive(x))


def hessian(net: SigmoidMLP, x: np.ndarray, Q: np.ndarray, margin: Margin) -> np.ndarray:
    """Qᵀ ∇²f Q of the margin at x: Σ_k J_k diag(σ''(n_k) ⊙ ȳ_k) J_kᵀ.

    J_k = ∂n_k/∂z, for the layers' pre-activations n_k.

    1. forward   n_k = b_k + y_{k-1} W_k, J_k = (J_{k-1} ⊙ σ'(n_{k-1})) W_k;  y_{-1} = x and
                 J_{-1} = Qᵀ, whose σ' is 1
    2. backward  ȳ_k = W_{k+1} (ȳ_{k+1} ⊙ σ'(n_{k+1})), beginning with the margin's last weights
    """
    y, J, layers = x, Q.T, []
    for w, b in zip(net.weights[:-1], net.biases[:-1], strict=True):
        n, J = b + y @ w, J @ w
        y = maths.sigmoid(n)
        slope = y * maths.sigmoid(-n)
        layers.append((w, J, slope, slope * (1 - 2 * y)))
        J = J * slope
    dy, _ = margin.difference
    H = np.zeros((Q.shape[1], Q.shape[1]))
    for w, J, slope, bend in reversed(layers):
        H += (J * (bend * dy)) @ J.T
        dy = w @ (dy * slope)
    return H


def unit_rows(V: np.ndarray) -> np.ndarray:
    """The rows of V that have a direction, as unit vectors."""
    size = np.linalg.norm(V, axis=1)
    return V[size > 0] / size[size > 0, None]


def span(w: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span those of w (n, h); all of space if h ≥ n."""
    if w.shape[1] >= w.shape[0]:
        return np.eye(w.shape[0])
    return np.linalg.qr(w / np.maximum(abs(w).max(0, initial=0), np.finfo(float).tiny))[0]
