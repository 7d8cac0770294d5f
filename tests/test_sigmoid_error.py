"""Bounds of the float64 errors of exp, σ and σ' that certificates rest on, proven by ball
arithmetic.

An argument −|x| = (k + f) ln 2 is reduced to |f| ≤ ½, which is cut into pieces.  On each the code
of simd_math.h is followed operation by operation, with the values as balls and a bound of what rounding
has done to them, with fused operations and without.
"""

import math
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import fastderiv

flint = pytest.importorskip("flint")
arb = flint.arb

U = 2.0**-53
PIECES = 512  # of f in [−½, ½]
SMALLEST = -60  # k below which 1 + e rounds to 1, and every σ is e: as at this k
ROOT = Path(__file__).parents[1]
SOURCE = (ROOT / "src" / "fastderiv" / "_core" / "simd_math.h").read_text(encoding="utf-8")
PROVEN = {  # relative errors in u, and the largest absolute one of σ(−|x|); simd_math.h cites them
    True: {"exp": 2.2, "tail": 3.9, "sigmoid": 3.9, "slope": 5.9, "tail, absolute": 1.03},  # fused
    False: {"exp": 2.6, "tail": 4.31, "sigmoid": 4.31, "slope": 6.31, "tail, absolute": 1.13},
}


@pytest.fixture(autouse=True)
def precision():
    before, flint.ctx.prec = flint.ctx.prec, 160
    yield
    flint.ctx.prec = before


def constant(name):
    return float(re.search(rf"# define {name}\s+(-?[0-9.e+-]+)\s", SOURCE)[1])


@cache
def coefficients():
    """Of (2**f − 1)/f, ascending: the float64 branch of vslope2 with the exact slope."""
    body = SOURCE[SOURCE.index("VINL vf vslope2") :]
    body = body[body.index("if (sharp)") : body.index("} else")]
    numbers = [float(number) for number in re.findall(r"vset1\((-?[0-9.e+-]+)\)", body)]
    assert len(numbers) == 11 and body.count("vfma") == 9  # the two highest, swapped, then down
    return [*numbers[:1:-1], numbers[0], numbers[1]]


def top(x):
    """An upper bound of |x| as a float."""
    return math.nextafter(float(abs(x).upper()), math.inf)


def least(x):
    return math.nextafter(float(abs(x).lower()), 0)


def half_ulp(x):
    return math.ldexp(1, math.frexp(top(x))[1] - 54)


class Number:
    """A ball that holds an expression's exact value, and the largest error of its float64 value."""

    def __init__(self, value, wrong=0.0):
        self.value, self.wrong = arb(value), wrong

    def rounded(self):
        return Number(self.value, (self.wrong + half_ulp(self.value) * (1 + 1e-9)) * (1 + 1e-12))

    def __mul__(self, other):
        wrong = top(self.value) * other.wrong + (top(other.value) + other.wrong) * self.wrong
        return Number(self.value * other.value, wrong * (1 + 1e-12))

    def __add__(self, other):
        return Number(self.value + other.value, self.wrong + other.wrong)

    def relative(self):
        return self.wrong / least(self.value)


def multiply_add(a, b, c, fused):
    product = a * b
    return ((product if fused else product.rounded()) + c).rounded()


def pieces():
    edges = [(-0.5 + i / PIECES) for i in range(PIECES + 1)]
    edges[0], edges[-1] = edges[0] - 1e-12, edges[-1] + 1e-12  # k is rounded from a rounded product
    for lo, hi in pairwise(edges):
        yield arb.union(arb(lo), arb(hi))


def reduction(f, fused):
    """By how much the reduced argument may differ from the exact f, at the largest |k|."""
    ln2, k = arb(2).log(), 1023
    split = top(arb(constant("LN2_HI")) + arb(constant("LN2_LO")) - ln2) * k
    product = 0 if fused else half_ulp(arb(constant("LN2_LO")) * k)
    r = split + product + half_ulp(f * ln2)
    scale = top(f * ln2) * top(arb(constant("LOG2E")) - 1 / ln2)
    return (r / math.log(2) + scale + half_ulp(f)) * (1 + 1e-9)


@cache
def difference():
    """p(f) − 2**f as a power series with as many terms as matter."""
    c, ln2, term, series = coefficients(), arb(2).log(), arb(1), [arb(0)]
    for n in range(40):
        term = term * ln2 / (n + 1)
        series.append((arb(c[n]) if n < len(c) else 0) - term)
    return flint.arb_poly(series)


def distance(f, parts=4):
    """A bound of |p − 2**f| on f, p exact: by the mean value theorem on parts of it."""
    worst, width = 0.0, (f.upper() - f.lower()) / parts
    for i in range(parts):
        l = f.lower() + width * i
        part, middle = arb.union(l, l + width), (l + width / 2).mid()
        slope = difference().derivative()(part)
        worst = max(worst, top(difference()(middle) + slope * (part - middle)))
    return worst + 1e-50  # the terms beyond


def power_error(f, fused):
    """|p/2**f − 1|, p as computed."""
    c, x = [Number(a) for a in coefficients()], Number(f)
    q = (x * x).rounded()
    chains = []
    for chain in (c[::2], c[1::2]):
        value = chain[-1]
        for term in reversed(chain[:-1]):
            value = multiply_add(value, q, term, fused)
        chains.append(value)
    slope = multiply_add(chains[1], x, chains[0], fused)
    p = multiply_add(slope, x, Number(1), fused)
    rest = distance(f)
    exact = arb(2) ** f
    wrong = (rest + p.wrong) / least(exact) + math.log(2) * reduction(f, fused)
    return wrong * (1 + 1e-9), exact


def errors(fused):
    """The largest errors of exp(−|x|), σ(−|x|), σ and σ', as in PROVEN."""
    worst = dict.fromkeys(PROVEN[fused], 0.0)

    def found(name, relative, value):
        """What an expression has lost so far, and the rounding of its last operation."""
        relative = (relative + half_ulp(value) / least(value)) * (1 + 1e-9)
        worst[name] = max(worst[name], relative / U)
        return relative

    for f in pieces():
        wrong, power = power_error(f, fused)
        worst["exp"] = max(worst["exp"], wrong / U)
        for k in range(SMALLEST, 1):
            e = power * arb(2) ** k
            if not least(e) <= 1 + 1e-12:
                continue  # −|x| is not positive
            s = 1 + e
            total = U / least(s)  # 1 + e as rounded
            tail = found("tail", wrong / least(s) + total, e / s)
            worst["tail, absolute"] = max(worst["tail, absolute"], tail * top(e / s) / U)
            worst["sigmoid"] = max(worst["sigmoid"], worst["tail"])  # of negative arguments
            found("sigmoid", wrong * top(e / s) + total, 1 / s)
            square = 2 * total + half_ulp(s * s) / least(s * s)
            found("slope", wrong * top((1 - e) / s) + square, e / (s * s))
    return worst


@pytest.mark.parametrize("fused", [True, False])
def test_errors_are_within_what_is_cited(fused):
    worst = errors(fused)
    assert all(worst[name] <= bound for name, bound in PROVEN[fused].items()), worst
    assert all(worst[name] >= 0.95 * bound for name, bound in PROVEN[fused].items()), worst


def test_computed_values_are_within_the_proven_errors():
    net = fastderiv.SigmoidMLP([[[1.0]], [[1.0]]], [[0.0], [0.0]])  # its logit is σ, its slope σ'
    rng = np.random.default_rng(0)
    x = [-np.abs(rng.normal(0, 3, 4000)), rng.uniform(-708, 0, 3000), [-6.2376964720716055]]
    x = np.concatenate(x)
    y, slope, worst = net.logits(x[:, None])[:, 0], net.margin_gradient(x[:, None])[:, 0], 0.0
    for xi, yi, gi in zip(x.tolist(), y.tolist(), slope.tolist(), strict=True):
        e = arb(xi).exp()
        worst = max(worst, top(arb(yi) * (1 + e) / e - 1) / U)
        assert top(arb(gi) * (1 + e) * (1 + e) / e - 1) < PROVEN[False]["slope"] * U
    assert 2.3 < worst < PROVEN[False]["sigmoid"]
