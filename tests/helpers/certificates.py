"""An oracle for certificates of one hidden layer: it checks what `solve_x1` claims, row by row.

It shares nothing with the library: it has its own evaluation, error bounds, ranges and subdivision,
in `numpy.longdouble`.
Where that is no wider than float64 (`EXTENDED` is False) it can decide nothing.
"""

import numpy as np

REAL = np.longdouble
EPS = float(np.finfo(REAL).eps)
EXTENDED = EPS < 2.0**-60


class Rows:
    """f(t) = c + Σ d_i σ(a_i t + s_i) for rows of offsets: values, ranges and rounding."""

    def __init__(self, net, x_other, coordinate, outputs):
        W, b = (np.asarray(p[0], REAL) for p in (net.weights, net.biases))
        v, c = np.asarray(net.weights[1], REAL), np.asarray(net.biases[1], REAL)
        others = np.delete(W, coordinate, axis=0)
        x = np.asarray(x_other, REAL)
        x = x.reshape(x.size // len(others) if len(others) else len(x), len(others))
        self.a = W[coordinate]
        self.d, self.c = (
            (v[:, 0], c[0])
            if len(c) == 1
            else (v[:, outputs[0]] - v[:, outputs[1]], c[outputs[0]] - c[outputs[1]])
        )
        self.s = (x[:, :, None] * others).sum(axis=1) + b
        self.size = (abs(x[:, :, None] * others)).sum(axis=1) + abs(b)
        self.terms = len(others) + 3
        largest = abs(v).sum() + abs(c).sum()  # of what the differences d and c are made of
        self.noise = (
            (len(self.d) + 12) * EPS * (abs(self.c) + abs(self.d).sum() + largest * 2.0**-10)
        )

    def at(self, rows, t):
        """z, σ, σ' and a bound on the error of z: (len(rows), H) each."""
        with np.errstate(all="ignore"):
            product = np.where(self.a == 0, 0, self.a * t[:, None])
            z = product + self.s[rows]
            wrong = (
                self.terms * EPS * np.where(np.isinf(product), 0, abs(product) + self.size[rows])
            )
            e = np.exp(-abs(z))
            return z, np.where(z < 0, e, 1) / (1 + e), e / (1 + e) ** 2, wrong

    def value(self, rows, t):
        """f and a bound on its error."""
        _, y, slope, wrong = self.at(rows, t)
        return (self.d * y).sum(axis=1) + self.c, (abs(self.d) * _spread(slope, wrong)).sum(
            axis=1
        ) + self.noise

    def ranges(self, rows, l, r):
        """Bounds of f and of f' on [l, r]."""
        zl, yl, pl, wl = self.at(rows, l)
        zr, yr, pr, wr = self.at(rows, r)
        wrong = np.maximum(wl, wr)
        spread = abs(self.d) * np.maximum(_spread(pl, wl), _spread(pr, wr))
        one, two = self.d * yl, self.d * yr
        low = (np.minimum(one, two) - spread).sum(axis=1) + self.c - self.noise
        high = (np.maximum(one, two) + spread).sum(axis=1) + self.c + self.noise
        centre = np.minimum(abs(zl), abs(zr)) <= wrong
        top = np.where(centre | (np.sign(zl) != np.sign(zr)), 0.25, np.maximum(pl, pr)) * np.exp(
            np.minimum(wrong, 1)
        )
        bottom = np.minimum(pl, pr) * np.exp(-wrong)
        g = self.a * self.d
        noise = (len(g) + 12) * EPS * (abs(g) * top).sum(axis=1)
        least, most = (
            np.minimum(g * top, g * bottom).sum(axis=1) - noise,
            np.maximum(g * top, g * bottom).sum(axis=1) + noise,
        )
        return low, high, least, most


def _spread(slope, wrong):
    """The error of σ from that of z: σ' nearby is at most e^|error| times as steep."""
    return wrong * np.where(wrong < 1, slope * np.exp(np.minimum(wrong, 1)), 0.25)


def check(
    net, x_other, crossings, *, coordinate=0, outputs=(0, 1), bounds=(-np.inf, np.inf), depth=200
):
    """Counts among the crossings of all rows: (false uniques, missed ties, questions left open)."""
    f = Rows(net, x_other, coordinate % net.n_inputs, outputs)
    count = np.diff(crossings.indptr)
    row = np.repeat(np.arange(len(count)), count)
    lower, upper = crossings.lower.astype(REAL), crossings.upper.astype(REAL)
    assert np.all(crossings.lower <= crossings.x) and np.all(crossings.x <= crossings.upper)
    assert np.all((crossings.upper[:-1] <= crossings.lower[1:]) | (row[:-1] != row[1:])), (
        "overlapping enclosures"
    )
    assert np.all(crossings.lower >= bounds[0]) and np.all(crossings.upper <= bounds[1])
    false, doubtful = _uniques(
        f, row[crossings.unique], lower[crossings.unique], upper[crossings.unique]
    )
    rows = np.concatenate(
        [row, np.arange(len(count))]
    )  # gaps begin behind an enclosure or at the bound
    begins = np.concatenate([upper, np.full(len(count), bounds[0], REAL)])
    order = np.lexsort([begins, rows])
    order = order[np.isin(rows[order], np.flatnonzero(crossings.complete))]
    ends = np.concatenate([lower, np.full(len(count), bounds[1], REAL)])
    ends = ends[np.lexsort([ends, rows])]
    ends = ends[np.isin(np.sort(rows), np.flatnonzero(crossings.complete))]
    missed, open_ = _gaps(f, rows[order], begins[order], ends, depth)
    return false, missed, doubtful + open_


def _signs(f, rows, t):
    value, wrong = f.value(rows, t)
    return np.where(value > wrong, 1, np.where(value < -wrong, -1, 0))


def _uniques(f, rows, lower, upper):
    """Enclosures that do not hold exactly one simple root; and those where that cannot be told."""
    left, right = _signs(f, rows, lower), _signs(f, rows, upper)
    _, _, least, most = f.ranges(rows, lower, upper)
    steady = (least > 0) | (most < 0)
    false = (left * right > 0) & steady
    return int(false.sum()), int((~(steady & (left * right < 0)) & ~false).sum())


def _gaps(f, rows, l, r, depth):
    """Roots strictly between the given ends; and gaps where that cannot be told."""
    missed, open_, limit = set(), 0, 50 * len(rows) + 10_000
    for _ in range(depth):
        keep = l < r
        rows, l, r = rows[keep], l[keep], r[keep]
        if not 0 < len(rows) < limit:
            break
        low, high, least, most = f.ranges(rows, l, r)
        left, right = _signs(f, rows, l), _signs(f, rows, r)
        missed.update(rows[left * right < 0].tolist())
        done = (
            (low > 0)
            | (high < 0)
            | (left * right < 0)
            | ((left * right > 0) & ((least > 0) | (most < 0)))
        )
        rows, l, r = rows[~done], l[~done], r[~done]
        m = _middle(l, r)
        stuck = (m <= l) | (m >= r) | (np.maximum(high, -low)[~done] < 8 * f.noise)
        open_ += int(stuck.sum())
        rows, l, m, r = rows[~stuck], l[~stuck], m[~stuck], r[~stuck]
        rows, l, r = np.concatenate([rows, rows]), np.concatenate([l, m]), np.concatenate([m, r])
    return len(missed), open_ + len(rows)


def _middle(l, r):
    with np.errstate(all="ignore"):
        m = (l + r) / 2
        m = np.where(np.isinf(l), r - np.maximum(1, abs(r)), m)
        m = np.where(np.isinf(r), l + np.maximum(1, abs(l)), m)
        m = np.where(np.isinf(l) & np.isinf(r), 0, m)
        wide = np.isfinite(l) & np.isfinite(r) & (l > 0) & (r > 1e3 * l)
        m = np.where(wide, np.sqrt(abs(l)) * np.sqrt(abs(r)), m)
        wide = np.isfinite(l) & np.isfinite(r) & (r < 0) & (l < 1e3 * r)
        return np.where(wide, -np.sqrt(abs(l)) * np.sqrt(abs(r)), m)
