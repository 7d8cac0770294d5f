"""An oracle for certificates of one hidden layer: an isolation of its own in ball arithmetic
(python-flint).

Every statement is a proof: the parameters are exact numbers, and arb's balls hold what is computed
with them.  A question that stays open at one precision is asked again at a higher one.
"""

from itertools import pairwise

import flint
import numpy as np

arb = flint.arb
PRECISIONS = (192, 800, 3000)
WORK = 3000  # intervals per gap
FACTORIALS = [arb(1) / n for n in (1, 2, 6, 24, 120)]


class Point:
    """f at t as K + Σ ±d_i σ(−|z_i|), which keeps tails that cancel with the constants."""

    __slots__ = ("f", "p", "slope", "t", "tail", "up")

    def __init__(self, row, t):
        self.t, self.f, self.slope, self.up, self.tail, self.p = t, row.c, arb(0), [], [], []
        for a, s, d in row.units:
            z = a * t + s
            up = bool(z > 0)
            e = (-z if up else z).exp()
            tail = e / (1 + e)
            p = tail * (1 - tail)
            self.f += d - d * tail if up else d * tail
            self.slope += a * d * p
            self.up.append(up)
            self.tail.append(tail)
            self.p.append(p)

    @property
    def sign(self):
        return 1 if self.f > 0 else -1 if self.f < 0 else 0


class Row:
    """f(t) = c + Σ d_i σ(a_i t + s_i), exactly as the floats say."""

    def __init__(self, net, x, coordinate=0, outputs=(0, 1)):
        (W, V), (b, c) = net.weights, net.biases
        first, second = outputs if V.shape[1] > 1 else (0, None)
        others = [arb(float(v)) for v in x]
        units, self.c = [], arb(float(c[first]))
        if second is not None:
            self.c -= arb(float(c[second]))
        for i in range(len(b)):
            w = [arb(v) for v in W[:, i].tolist()]
            a = w.pop(coordinate)
            s = sum((wk * xk for wk, xk in zip(w, others, strict=True)), arb(float(b[i])))
            d = arb(float(V[i, first])) - (arb(float(V[i, second])) if second is not None else 0)
            # equal units are one, and opposite ones, as σ(−z) = 1 − σ(z)
            for k, (p, q, before) in enumerate(units):
                if a == p and s == q:
                    units[k] = p, q, before + d
                    break
                if a == -p and s == -q:
                    units[k], self.c = (p, q, before - d), self.c + d
                    break
            else:
                units.append((a, s, d))
        self.units = [unit for unit in units if unit[2] != 0]

    def cuts(self, l, r):
        """Floats in (l, r) around the units' centres, ascending."""
        found = set()
        for a, s, _ in self.units:
            if a != 0:
                for k in (-20, 0.0371, 20):
                    t = float(((k - s) / a).mid())
                    if l < t < r:
                        found.add(t)
        return sorted(found)


def monotone(row, l, r):
    """Whether the ranges of its terms prove that f' has no root on [l, r].

    Their ends are balls of their own: the radius of a ball around [e^−9000, 1] would reach below 0.
    """
    low = high = arb(0)
    for (a, _, d), up, vp, p, q in zip(row.units, l.up, r.up, l.p, r.p, strict=True):
        ends = a * d * p.min(q), a * d * (arb(0.25) if up != vp else p.max(q))
        low, high = low + ends[0].min(ends[1]), high + ends[0].max(ends[1])
    return bool(low > 0 or high < 0)


def excludes_by_ranges(row, l, r):
    low = high = l.f
    for (_, _, d), up, vp, p, q in zip(row.units, l.up, r.up, l.tail, r.tail, strict=True):
        step = d * ((p - q if up else q - p) if up == vp else (1 - p - q if vp else p + q - 1))
        if step > 0:
            high += step
        elif step < 0:
            low += step
        else:
            low, high = low + arb.union(step, arb(0)), high + arb.union(step, arb(0))
    return bool(low > 0 or high < 0)


def excludes_by_taylor(row, l, m, r):
    """What Taylor's polynomial of degree 4 at m, with its rest, proves on [l, r].

    2: f has no root; 1: f' has none; 0: nothing.
    """
    right, left = r.t - m.t, m.t - l.t
    h = max(left, right).upper()
    c, rest = [m.f, arb(0), arb(0), arb(0), arb(0)], arb(0)
    units = zip(row.units, m.up, m.p, l.p, r.p, l.up, r.up, strict=True)
    for (a, _, d), up, p, q, v, vl, vr in units:
        k, largest = a * h, arb(0.25) if vl != vr else arb.union(q, v)
        if abs(k) * largest > 1:
            return 0  # too long for a polynomial
        s2 = 1 - 4 * p  # (1 − 2σ)²
        s = s2.sqrt() if s2 > 0 else arb(0, 1e-3) if s2 < 1e-6 else None
        if s is None:
            return 0
        s = -s if up else s
        e = d * k * p
        for n, factor in enumerate((1, s, 1 - 6 * p, s * (1 - 12 * p)), 1):
            c[n] += e * factor * FACTORIALS[n - 1]
            e = e * k
        rest += abs(d * k**5) * largest.upper() * FACTORIALS[4]
    rest = rest.upper()
    whole = arb(0, 1)
    slope = abs(c[1]) - 2 * abs(c[2]) - 3 * abs(c[3]) - 4 * abs(c[4]) - 5 * rest
    if slope > 0:
        return 1
    f = c[0] + c[3] * whole + c[4] * whole + rest * whole
    for part in (arb(-0.75, 0.25), arb(-0.25, 0.25), arb(0.25, 0.25), arb(0.75, 0.25)):
        g = f + c[1] * part + c[2] * part * part
        if not (g > 0 or g < 0):
            return 0
    return 2


def roots_between(row, points):
    """How many roots f has between the first and the last of these points, all simple; None if that
    stays open.
    """
    todo, work, count = list(pairwise(points)), WORK, 0
    while todo:
        l, r = todo.pop()
        signs, work = l.sign * r.sign, work - 1
        if signs > 0 and excludes_by_ranges(row, l, r):
            continue
        steady = monotone(row, l, r)
        if not steady:
            # not in the middle, where symmetric rows have roots
            m = Point(row, (l.t + (r.t - l.t) * arb(0.4873)).mid())
            known = excludes_by_taylor(row, l, m, r)
            if known == 2:
                continue
            steady = known == 1
        if steady and signs != 0:
            count += signs < 0
        elif steady or work < 0 or not l.t < m.t < r.t:
            return None
        else:
            todo += [(l, m), (m, r)]
    return count


def decided_from(row, t, side):
    """Whether f has one sign from t to side·∞.

    There σ(−|z|) = e^(−|z|) up to e^(−2|z|), and the slowest units outweigh the rest, or the limit
    both.
    """
    limit, nearest = row.c, None
    for a, s, d in row.units:
        if a == 0:
            limit += d / (1 + (-s).exp())
            continue
        z = (a * t + s) * (1 if a > 0 else -1) * side
        if not z > 0:
            return False
        if a * side > 0:
            limit += d
        nearest = abs(a) if nearest is None or abs(a) < nearest else nearest
    slow, rest = arb(0), arb(0)
    for a, s, d in row.units:
        if a == 0:
            continue
        e = (-abs(a * t + s)).exp()
        delta = -d if a * side > 0 else d
        if abs(a) == nearest:
            slow, rest = slow + delta * e, rest + abs(delta) * e * e
        else:
            rest += abs(delta) * e
    if (limit > 0 or limit < 0) and abs(limit) > abs(slow) + rest:
        return True
    agree = limit == 0 or (limit > 0 and slow > 0) or (limit < 0 and slow < 0)
    return bool(agree and abs(slow) > rest)


def roots_in(row, l, r):
    """How many roots f has between the floats l < r, which may be infinite; None if that stays
    open.
    """
    if all(a == 0 for a, _, _ in row.units):
        return 0 if Point(row, arb(0)).sign else None
    inner = row.cuts(l, r)
    slowest = min(float(abs(a).mid()) for a, _, _ in row.units if a != 0)
    anchor = inner or [r if np.isfinite(r) else l if np.isfinite(l) else 0.0]
    before, after = [], []
    for infinite, side, start, found in ((l, -1, anchor[0], before), (r, 1, anchor[-1], after)):
        if np.isfinite(infinite):
            continue
        reach, at = 0.0, start
        for _ in range(60):
            if decided_from(row, arb(at), side):
                break
            if at != start:
                found.append(at)
            reach = 2 * reach + 1 / slowest
            at = start + side * reach
            if not np.isfinite(at):
                return None
        else:
            return None
        if at != start:
            found.append(at)
    cuts = sorted({*before, *inner, *after, *([anchor[0]] if l < anchor[0] < r else [])})
    return roots_between(row, [Point(row, arb(t)) for t in [l, *cuts, r] if np.isfinite(t)])


def judge(net, x, lower, upper, unique, *, coordinate=0, outputs=(0, 1), bounds=(-np.inf, np.inf)):
    """(false uniques, gaps with a root, open questions) of one row's enclosures."""
    false = missed = open_ = 0
    uniques = [(l, r) for l, r, one in zip(lower, upper, unique, strict=True) if one]
    ends = [bounds[0], *(end for pair in zip(lower, upper, strict=True) for end in pair), bounds[1]]
    gaps = [(l, r) for l, r in zip(ends[::2], ends[1::2], strict=True) if l < r]
    for k, precision in enumerate(PRECISIONS):
        with flint.ctx.workprec(precision):
            row, last = Row(net, x, coordinate, outputs), k == len(PRECISIONS) - 1
            again_uniques, again_gaps = [], []
            for pair in uniques:
                roots = roots_in(row, *map(float, pair))
                false += roots is not None and roots != 1
                if roots is None:
                    again_uniques.append(pair)
            for pair in gaps:
                roots = roots_in(row, *map(float, pair))
                missed += roots is not None and roots > 0
                if roots is None:
                    again_gaps.append(pair)
            uniques, gaps = again_uniques, again_gaps
            if not uniques and not gaps:
                break
            if last:
                open_ = len(uniques) + len(gaps)
    return false, missed, open_
