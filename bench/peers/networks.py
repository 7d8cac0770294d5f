"""Margins, ties and boundaries of sigmoid networks as users of NumPy and SciPy compute them."""

from itertools import combinations

import numpy as np
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.special import expit

try:
    from contourpy import contour_generator  # matplotlib's
except ImportError:
    contour_generator = None

GRID = np.linspace(-8, 8, 801)  # where changes of sign are looked for


class Peer:
    """The margin and its gradient as NumPy users write them: BLAS, `expit`, one array per layer."""

    def __init__(self, net):
        self.hidden = list(zip(net.weights[:-1], net.biases[:-1], strict=True))
        self.d = net.weights[-1][:, 0] - net.weights[-1][:, 1]
        self.dc = net.biases[-1][0] - net.biases[-1][1]

    def margin(self, X):
        for w, b in self.hidden:
            X = expit(X @ w + b)
        return X @ self.d + self.dc

    def margin_gradient(self, X):
        slopes = []
        for w, b in self.hidden:
            X = expit(X @ w + b)
            slopes.append(X * (1 - X))
        g = self.d
        for (w, _), s in zip(reversed(self.hidden), reversed(slopes), strict=True):
            g = (g * s) @ w.T
        return g


def contoured(net, n):
    """The usual way: the margin on a grid of n × n points, and straight lines through its cells."""
    x = np.linspace(-3, 3, n)
    grid = np.stack(np.meshgrid(x, x), axis=-1)
    return contour_generator(x, x, net.margin(grid.reshape(-1, 2)).reshape(n, n)).lines(0.0)


def with_input(x, c, values):
    X = np.repeat(x[None], len(values), axis=0)
    X[:, c] = values
    return X


def sampled_ties(margin, x, c):
    """Changes of sign on the grid, each by brentq: as one writes it."""
    f = margin(with_input(x, c, GRID))
    cells = np.flatnonzero(f[1:] * f[:-1] < 0)
    return np.array(
        [
            brentq(lambda t: margin(with_input(x, c, [t]))[0], GRID[k], GRID[k + 1], xtol=1e-12)
            for k in cells
        ]
    )


def sampled_counterfactuals(peer, x):
    ties = (sampled_ties(peer.margin, x, c) for c in range(len(x)))
    return np.array([t[abs(t - x[c]).argmin()] if len(t) else np.nan for c, t in enumerate(ties)])


def sampled_decisions(net, x, c):
    """The largest output between all ties of all pairs."""
    ties = np.sort(np.concatenate([
        sampled_ties(lambda X, a=a, b=b: np.subtract(*net.logits(X)[:, [a, b]].T), x, c)
        for a, b in combinations(range(net.n_outputs), 2)
    ]))  # fmt: skip
    ends = np.concatenate([[GRID[0]], ties, [GRID[-1]]])
    largest = net.logits(with_input(x, c, (ends[1:] + ends[:-1]) / 2)).argmax(1)
    return ends[:-1][np.append(True, largest[1:] != largest[:-1])]


def by_solve_ivp(peer, start, length):
    def field(s, p):
        a, b = peer.margin_gradient(p[None])[0]
        return np.array([-b, a]) / np.hypot(a, b)

    return solve_ivp(field, (0, length), start, method="DOP853", rtol=1e-10, atol=1e-10).y.T
