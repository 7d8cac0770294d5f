"""solve_x1 with one hidden layer against ball arithmetic (python-flint), on rows made hard."""

import numpy as np
import pytest

import fastderiv as fd
from helpers.adversaries import KINDS, adversary

pytest.importorskip("flint")
from helpers.balls import judge

ROWS = 8  # of a network


def verdict(kind, seeds):
    """(false uniques, missed ties, open questions), rows and enclosures of these networks."""
    judged, rows, ties = np.zeros(3, int), 0, 0
    for seed in seeds:
        net, x = adversary(kind, seed, ROWS)
        crossings = fd.solve_x1(net, x)
        assert crossings.complete.all()
        for i, part in enumerate(map(slice, crossings.indptr[:-1], crossings.indptr[1:])):
            found = crossings.lower[part], crossings.upper[part], crossings.unique[part]
            one = judge(net, x[i], *found)
            assert one[:2] == (0, 0), (kind, seed, i)
            judged += one
        rows, ties = rows + len(crossings), ties + len(crossings.x)
    return judged, rows, ties


@pytest.mark.parametrize("kind", KINDS)
def test_enclosures_hold_one_tie_and_gaps_none(kind):
    judged, rows, found = verdict(kind, range(5))
    assert rows == 40 and found > 0
    assert judged.tolist() == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_hard_rows(kind):
    judged, rows, _ = verdict(kind, range(100, 1700))
    assert rows * len(KINDS) > 100_000
    assert judged[:2].tolist() == [0, 0] and judged[2] <= rows // 1000


def test_the_oracle_notices_what_is_wrong():
    false = missed = 0
    for seed in range(20):
        net, x = adversary("random", seed, 2)
        c = fd.solve_x1(net, x[1:])
        if len(c.x):
            by = 10 * (c.upper - c.lower)
            false += judge(net, x[1], c.lower + by, c.upper + by, c.unique)[0] == len(c.x)
            missed += judge(net, x[1], c.lower[1:], c.upper[1:], c.unique[1:])[1] == 1
            assert judge(net, x[1], c.lower, c.upper, c.unique) == (0, 0, 0)
    assert false == missed > 5
