"""An oracle for certified ties that shares nothing with the kernels.

It uses interval arithmetic in NumPy, rounded outward by more than its own errors, and signs of the
margin from mpmath.  It proves each claim of a row's enclosures, or says which it could not prove.
"""

import mpmath
import numpy as np

ROUND = 2.0**-52  # outward rounding counts these, twice as large as a rounding error
WIDE = 20 * ROUND  # for σ and its derivative
DIGITS = 60


class Slice:
    """The margin of a network along one input, the others fixed; every float is an exact number."""

    def __init__(self, weights, biases, x_other, coordinate=0, outputs=(0, 1)):
        weights, biases = (
            [np.asarray(w, float) for w in weights],
            [np.asarray(b, float) for b in biases],
        )
        x = [mpmath.mpf(float(v)) for v in np.ravel(x_other)]
        others = [k for k in range(len(weights[0])) if k != coordinate]
        with mpmath.workdps(DIGITS):
            self._w = [[[mpmath.mpf(v) for v in row] for row in w.tolist()] for w in weights]
            self._b = [[mpmath.mpf(v) for v in b.tolist()] for b in biases]
            if weights[-1].shape[1] > 1:
                i, j = outputs
                self._w[-1] = [[row[i] - row[j]] for row in self._w[-1]]
                self._b[-1] = [self._b[-1][i] - self._b[-1][j]]
            first = self._w[0]
            self._a = first[coordinate]
            self._s = [
                mpmath.fsum([b, *(first[k][o] * v for k, v in zip(others, x, strict=True))])
                for o, b in enumerate(self._b[0])
            ]
        # float copies, which intervals a few ulps wide make exact again
        self.a, self.s = (
            np.array([float(v) for v in self._a]),
            np.array([float(v) for v in self._s]),
        )
        self.w = [
            np.array([[float(v) for v in row] for row in w]).reshape(len(w), -1)
            for w in self._w[1:]
        ]
        self.b = [np.array([float(v) for v in b]) for b in self._b[1:]]
        self._signs = {}

    def exact(self, t):
        """f(t) in 60 digits."""
        with mpmath.workdps(DIGITS):
            z = [a * mpmath.mpf(float(t)) + s for a, s in zip(self._a, self._s, strict=True)]
            for w, b in zip(self._w[1:], self._b[1:], strict=True):
                y = [1 / (1 + mpmath.exp(-v)) for v in z]
                z = [
                    mpmath.fsum([c, *(row[o] * v for row, v in zip(w, y, strict=True))])
                    for o, c in enumerate(b)
                ]
            return z[0]

    def derivatives(self, t):
        """f, f' and f'' at t in 60 digits, by the chain rule layer by layer."""
        with mpmath.workdps(DIGITS):
            z = [
                (a * mpmath.mpf(float(t)) + s, a, mpmath.mpf(0))
                for a, s in zip(self._a, self._s, strict=True)
            ]
            for w, b in zip(self._w[1:], self._b[1:], strict=True):
                y = [_sigmoid_jet(*jet) for jet in z]
                z = [
                    tuple(
                        mpmath.fsum(
                            [c * (k == 0), *(row[o] * v[k] for row, v in zip(w, y, strict=True))]
                        )
                        for k in range(3)
                    )
                    for o, c in enumerate(b)
                ]
            return z[0]

    def sign(self, t):
        """The exact sign of f(t)."""
        if t not in self._signs:
            (lo,), (hi,), _, _ = self.ranges(np.array([t]), np.array([t]))
            self._signs[t] = 1 if lo > 0 else -1 if hi < 0 else int(mpmath.sign(self.exact(t)))
        return self._signs[t]

    def ranges(self, l, r):
        """Four arrays (k,): ranges of f and f' on [l, r], each (k,).  l = r may be infinite."""
        with np.errstate(all="ignore"):
            ends = [
                np.where(self.a == 0, 0, self.a * np.where(self.a == 0, 0, t[:, None])) + self.s
                for t in (l, r)
            ]
            err = [WIDE * np.where(np.isinf(e), 0, np.abs(e) + 2 * np.abs(self.s)) for e in ends]
            lo = np.minimum(ends[0] - err[0], ends[1] - err[1])
            hi = np.maximum(ends[0] + err[0], ends[1] + err[1])
            slo = shi = np.broadcast_to(self.a, lo.shape)
            for w, b in zip(self.w, self.b, strict=True):
                (lo, hi), (slo, shi) = _sigma(lo, hi, slo, shi)
                lo, hi = _map(w, b, lo, hi)
                slo, shi = _map(w, 0.0 * b, slo, shi)
        return lo[:, 0], hi[:, 0], slo[:, 0], shi[:, 0]


def _sigmoid_jet(z, dz, ddz):
    y = 1 / (1 + mpmath.exp(-z))
    p = y * (1 - y)
    return y, p * dz, p * (1 - 2 * y) * dz**2 + p * ddz


def _sigma(lo, hi, slo, shi):
    tl, th = (np.exp(-np.abs(z)) / (1 + np.exp(-np.abs(z))) for z in (lo, hi))
    yl, yh = np.where(lo < 0, tl, 1 - tl), np.where(hi < 0, th, 1 - th)
    pl, ph = tl * (1 - tl), th * (1 - th)
    least, most = (
        np.minimum(pl, ph) * (1 - WIDE),
        np.where((lo <= 0) & (hi >= 0), 0.25, np.maximum(pl, ph)) * (1 + WIDE) + 1e-307,
    )
    products = [least * slo, least * shi, most * slo, most * shi]
    down, up = np.min(products, axis=0), np.max(products, axis=0)
    pad = WIDE * np.maximum(np.abs(down), np.abs(up)) + 1e-307
    return (yl - WIDE, yh + WIDE), (down - pad, up + pad)


def _map(w, b, lo, hi):
    pad = (len(w) + 20) * ROUND * (
        np.maximum(np.abs(lo), np.abs(hi)) @ np.abs(w) + np.abs(b)
    ) + 1e-306
    plus, minus = np.maximum(w, 0), np.minimum(w, 0)
    return lo @ plus + hi @ minus + b - pad, hi @ plus + lo @ minus + b + pad


def _middle(l, r):
    if np.isinf(l) and np.isinf(r):
        return 0.0123
    if np.isinf(r):
        return l + max(10.0, abs(l))
    if np.isinf(l):
        return r - max(10.0, abs(r))
    return l / 2 + r / 2


def roots_between(f, l, r, budget=40000):
    """0: proven free of roots.  1: proven to hold one.  None: undecided."""
    todo = [(l, r)]
    while todo:
        budget -= len(todo)
        if budget < 0:
            return None
        L, R = np.array(todo).T
        M = np.array([_middle(*span) for span in todo])
        lo, hi, slo, shi = f.ranges(L, R)
        mlo, mhi, _, _ = f.ranges(M, M)
        with np.errstate(all="ignore"):
            reach = np.maximum(R - M, M - L) * np.maximum(np.abs(slo), np.abs(shi)) * (1 + 1e-10)
            free = (lo > 0) | (hi < 0) | (mlo - reach > 0) | (mhi + reach < 0)
        left = []
        for k in np.flatnonzero(~free):
            if (slo[k] > 0 or shi[k] < 0) and np.isfinite(R[k] - L[k]):
                product = f.sign(L[k]) * f.sign(R[k])
                if product < 0:
                    return 1
                if product > 0:
                    continue
            if not L[k] < M[k] < R[k]:
                return None
            left += [(L[k], M[k]), (M[k], R[k])]
        todo = left
    return 0


def judge(f, lower, upper, unique, lo, hi):
    """Counts for the enclosures of one row: (false uniques, missed roots, undecided claims)."""
    false = missed = undecided = 0
    for l, r, one in zip(lower, upper, unique, strict=True):
        if one:
            _, _, slo, shi = f.ranges(np.array([l]), np.array([r]))
            if f.sign(l) * f.sign(r) > 0 or not (lo <= l <= r <= hi):
                false += 1
            elif not (slo[0] > 0 or shi[0] < 0):
                undecided += 1
    at = lo
    for l, r in [*zip(lower, upper, strict=True), (hi, hi)]:
        if l > at:
            found = roots_between(f, at, l)
            missed += found == 1
            undecided += found is None
        at = max(at, r)
    return false, missed, undecided
