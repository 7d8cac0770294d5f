"""solve_x1 against ball arithmetic (python-flint), where that is installed: an isolation of its own, at 240 bits."""

import numpy as np
import pytest

import fastderiv as fd

flint = pytest.importorskip("flint")
arb = flint.arb


@pytest.fixture(autouse=True)
def precision():
    before, flint.ctx.prec = flint.ctx.prec, 240
    yield
    flint.ctx.prec = before


def at_point(z):
    e = (-abs(z)).exp()
    return 1 / (1 + e) if z >= 0 else e / (1 + e)


def slope_at_point(z):
    e = (-abs(z)).exp()
    return e / ((1 + e) * (1 + e))


def sigmoid(z):
    """Over a ball from its ends: 1/(1 + exp) of a wide ball would be everything."""
    return at_point(z) if z.is_exact() else arb.union(at_point(z.lower()), at_point(z.upper()))


def slope(z):
    if z.is_exact():
        return slope_at_point(z)
    ends = arb.union(slope_at_point(z.lower()), slope_at_point(z.upper()))
    return arb.union(ends, arb(0.25)) if z.contains(0) else ends


class Row:
    """f and f' of one row over balls, every parameter an exact number."""

    def __init__(self, net, x):
        (W, V), (b, c) = net.weights, net.biases
        self.a = [arb(float(w)) for w in W[0]]
        self.s = [sum((arb(float(w)) * arb(float(xj)) for w, xj in zip(W[1:, i], x, strict=True)), arb(float(b[i]))) for i in range(len(b))]
        self.d = [arb(float(v0)) - arb(float(v1)) for v0, v1 in V]
        self.c = arb(float(c[0])) - arb(float(c[1]))

    def value(self, t):
        return sum((d * sigmoid(a * t + s) for a, d, s in zip(self.a, self.d, self.s, strict=True)), self.c)

    def slope(self, t):
        return sum((a * d * slope(a * t + s) for a, d, s in zip(self.a, self.d, self.s, strict=True)), arb(0))


def opposite(p, q):
    return (p > 0 and q < 0) or (p < 0 and q > 0)


def holds_none(row, l, r, work=4000):
    """Whether there is no tie from l to r; None if there is one; a failed assertion if that stays open."""
    todo = [(arb(float(l)), arb(float(r)))]
    while todo:
        work -= 1
        assert work > 0
        l, r = todo.pop()
        whole, left, right = arb.union(l, r), row.value(l), row.value(r)
        if opposite(left, right):
            return None
        value, g = row.value(whole), row.slope(whole)
        same = (left > 0 and right > 0) or (left < 0 and right < 0)
        if value > 0 or value < 0 or (same and (g > 0 or g < 0)):
            continue
        middle = ((l + r) / 2).mid()
        todo += [(l, middle), (middle, r)]
    return True


@pytest.mark.parametrize("seed", range(12))
def test_enclosures_hold_one_tie_and_gaps_none(seed):
    rng = np.random.default_rng(seed)
    H, scale = [(2, 1.5), (3, 1.5), (4, 1.5), (3, 30)][seed % 4]
    net = fd.SigmoidMLP([rng.normal(0, scale, (2, H)), rng.normal(0, scale, (H, 2))], [rng.normal(0, scale, H), rng.normal(0, scale, 2)])
    x = rng.normal(0, 1.5, (8, 1))
    crossings = fd.solve_x1(net, x, bounds=(-8.0, 8.0))
    assert crossings.complete.all()
    for i in range(8):
        row, last = Row(net, x[i]), -8.0
        for k in range(crossings.indptr[i], crossings.indptr[i + 1]):
            l, r = crossings.lower[k], crossings.upper[k]
            assert holds_none(row, last, l)
            if crossings.unique[k]:
                g = row.slope(arb.union(arb(float(l)), arb(float(r))))
                assert opposite(row.value(arb(float(l))), row.value(arb(float(r)))) and (g > 0 or g < 0)
            last = r
        assert holds_none(row, last, 8.0)
