"""solve_x1 with one hidden layer: certificates against oracles, known roots, the contract."""

import copy
import pickle
import tracemalloc

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import layouts, snapshot
from helpers.certificates import EXTENDED, check
from helpers.floating_point import AVAILABLE, STATES, in_state
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads

INF = np.inf
FIELDS = ("indptr", "x", "lower", "upper", "unique", "complete")
needs_extended = pytest.mark.skipif(
    not EXTENDED, reason="the oracle needs a long double wider than float64"
)


def along(a, s, d, c):
    """f(t) = c + Σ d_i σ(a_i t + s_i) as a network of one input."""
    return fd.SigmoidMLP(
        [np.array([a], float), np.array(d, float)[:, None]], [np.array(s, float), [c]]
    )


def network(H, n_in=2, seed=0, scale=1.5, n_out=2):
    rng = np.random.default_rng(seed)
    return fd.SigmoidMLP([rng.normal(0, scale, (n_in, H)), rng.normal(0, scale, (H, n_out))],
                         [rng.normal(0, scale, H), rng.normal(0, scale, n_out)])  # fmt: skip


def others(m, n, seed=1):
    return np.random.default_rng(seed).normal(0, 1.5, (m, n))


def alone(net, **options):
    """The crossings of a network of one input."""
    return fd.solve_x1(net, np.zeros((1, 0)), **options)


def same(a, b):
    return all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in FIELDS)


FIVE = along([0.25, 50, 51], [0, 100, -102], [6, -1.5, -1.5], -1.5)
STAIRS = along(
    np.full(120, 1e3), -1e3 * np.arange(120), np.tile([2, -2], 60), -1
)  # up and down: 120 ties


# ---- known root sets -------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-300, 1e-8, 1.0, 1e8, 1e300])
def test_one_unit_ties_where_algebra_says(scale):
    crossings = alone(along([-2 * scale], [0.5], [3 * scale], -scale))  # σ = 1/3
    assert crossings.unique.tolist() == [True]
    np.testing.assert_allclose(crossings.x, (0.5 + np.log(2)) / (2 * scale), rtol=1e-14, atol=1e-12)


def test_five_ties_with_three_hidden_units():
    crossings = alone(FIVE)
    assert crossings.status.tolist() == ["unique"] * 5
    assert crossings.root_bound == 7
    np.testing.assert_allclose(
        crossings[0], [-np.log(81), -1.99917129, 0, 1.99918784, np.log(81)], atol=1e-8
    )


def test_more_ties_than_a_buffer_holds():
    crossings = fd.solve_x1(STAIRS, np.zeros((70, 0)))
    assert len(crossings.x) == 70 * 120 and crossings.unique.all() and crossings.complete.all()
    np.testing.assert_allclose(crossings[69], np.arange(120), atol=1e-9)


@needs_extended
@pytest.mark.parametrize("height", [s * 10.0**-k for k in range(6, 18) for s in (1, -1)] + [0.0])
def test_near_double_roots_are_two_or_none_or_clusters_and_never_lost(height):
    net = along(
        [1, 1], [1, -1], [1, -1], -np.tanh(0.5) + height
    )  # f has its maximum near 0, about `height` high
    crossings = alone(net)
    assert check(net, np.zeros((1, 0)), crossings)[:2] == (0, 0)
    assert abs(height) < 1e-12 or crossings.unique.tolist() == [True] * (2 if height > 0 else 0)
    assert height < 0 or len(crossings.x) > 0
    assert (
        len(crossings.x) == 0
        or max(-crossings.lower[0], crossings.upper[-1]) < 4 * np.sqrt(abs(height)) + 1e-6
    )


def test_a_double_root_is_one_cluster_and_no_unique():
    crossings = alone(along([1, 1], [1, -1], [1, -1], -np.tanh(0.5)))
    assert crossings.status.tolist() == ["cluster"]
    assert crossings.lower[0] < 0 < crossings.upper[0] < 1e-6


def test_a_triple_root_is_one_narrow_cluster():
    crossings = alone(along([1, 2], [0, 0], [-2, 1], 0.5))
    assert crossings.status.tolist() == ["cluster"]
    assert -1e-4 < crossings.lower[0] < 0 < crossings.upper[0] < 1e-4


@pytest.mark.parametrize("bounds", [(0, 5), (-5, 0), (0, INF), (-INF, 0)])
def test_a_root_on_a_bound_belongs_to_the_row(bounds):
    crossings = alone(along([1], [0], [1], -0.5), bounds=bounds)
    assert len(crossings.x) == 1
    assert bounds[0] <= crossings.lower[0] <= 0 <= crossings.upper[0] <= bounds[1]
    assert crossings.upper[0] - crossings.lower[0] < 1e-13


@pytest.mark.parametrize("bounds", [(-INF, INF), (-1, 2), (3, INF)])
@pytest.mark.parametrize(
    "net",
    [
        along([1, 1], [0.3, 0.3], [1, -1], 0),
        along([1, -1], [0.3, -0.3], [1, 1], -1),
        along([0, 0], [0, 0], [1, -1], 0),
        along([1, 2], [1, 2], [0, 0], 0),
    ],
)
def test_zero_everywhere_is_one_cluster_over_the_bounds(net, bounds):
    crossings = alone(net, bounds=bounds)
    assert crossings.status.tolist() == ["cluster"] and crossings.complete.all()
    assert (crossings.lower[0], crossings.upper[0]) == bounds
    assert np.isfinite(crossings.x).all()


@pytest.mark.parametrize(
    ("net", "ties"),
    [
        (along([1, 2], [0, 0.3], [1, -1], 0), 1),  # both limits are 0
        (along([1, 3], [0, 5], [1, 1], -2), 0),
        (along([1, 1], [0, 1], [1, -1], 0), 0),  # the slowest units are two
        (along([1, -2], [0, 1], [1, -2], -1), 0),
        (along([1e3, 1e3], [0, 1e5], [1, -1], 0), 0),  # nearly 0 on most of the line
    ],
)
def test_a_limit_of_zero_is_no_tie(net, ties):
    crossings = alone(net)
    assert crossings.unique.tolist() == [True] * ties


@pytest.mark.parametrize(
    ("net", "tie"),
    [
        (
            along([-1], [0], [1], -(2.0**-60)),
            60 * np.log(2),
        ),  # where f is below float64's error for good
        (along([1], [0], [-1], 2.0**-60), -60 * np.log(2)),
        (along([-1, -1.1], [0, 0], [1, -(2.0**40)], 0), 400 * np.log(2)),  # its limit is 0
        (
            along([1, 2], [0, 0], [1e300, -1e300], 1e-30),
            330 * np.log(10),
        ),  # its limit is 1e-330 of the largest weight
        (along([1, 2], [0, 0], [1e308, -1e308], 1e-322), 630 * np.log(10)),
        (
            along([1, 2, 1e-3], [0, 0, 0], [1e308, -1e308, -1e-317], 1e-317),
            1e3 * np.log(10) * 625 / 999,
        ),
    ],
)
def test_a_tie_far_out_is_in_a_cluster(net, tie):
    crossings = alone(net)
    assert any(
        lower <= tie <= upper for lower, upper in zip(crossings.lower, crossings.upper, strict=True)
    )


@pytest.mark.parametrize(
    ("net", "ties"),
    [
        (along([1e300, 1e-300, 1], [0, 1, 2], [1, -2, 0.4], 0.3), 3),
        (along([1e300, 1e-300], [0, 0.1], [1, -1.7], 0.35), 3),
        (along([1e-300, 1e-300], [0, 0.1], [1, -1.7], 0.35), 1),
        (along([1e12, 1], [1e12, 1], [1, -1], 0.3), 2),
        (along([1, 2], [0, 1], [1e308, -1e308], 1e307), 2),
        (along([1, 2], [0, 1], [1e-310, -1e-310], 1e-311), 2),
        (along([1, 2], [1e15, 1], [1, -1], 0.3), 0),
        (along([0, 0], [0, 0.1], [1, 1], 0.35), 0),
        (along([1, 1], [0, 0], [0, 0], 1e-300), 0),
    ],
)
def test_weights_of_any_size(net, ties):
    crossings = alone(net)
    assert len(crossings.x) == ties
    assert check(net, np.zeros((1, 0)), crossings)[:2] == (0, 0) if EXTENDED else True


@pytest.mark.parametrize("power", [-950, -700, 700])
def test_enclosures_hold_their_ties_where_squares_of_weights_underflow_or_overflow(power):
    for seed in range(150):
        rng = np.random.default_rng(seed)
        H = rng.integers(5, 9)
        a, s, d, c = (
            1 + rng.random(H),
            rng.normal(1e7, 3, H),
            rng.uniform(0.1, 1, H),
            -rng.uniform(0.01, 0.6 * H),
        )
        narrow, wide = (
            alone(along(a, s, d, c)),
            alone(along(np.ldexp(a, power), s, d, c), xtol=rng.choice([1e-9, 1e-6])),
        )
        assert narrow.unique.tolist() == wide.unique.tolist()
        assert np.all(np.ldexp(narrow.lower, -power) <= wide.upper)
        assert np.all(wide.lower <= np.ldexp(narrow.upper, -power))


def test_enclosures_stay_within_bounds_near_the_largest_float():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        a = rng.normal(0, 3e-308, 6)
        s, d = -a * 1e308 * rng.uniform(0, 1.7, 6), rng.normal(0, 1, 6)
        tie = 10 ** rng.uniform(307.5, 308.1)
        crossings = alone(
            along(a, s, d, -along(a, s, d, 0).margin([[tie]])[0]), bounds=(1e307, 1.7e308)
        )
        assert np.all((crossings.lower >= 1e307) & (crossings.upper <= 1.7e308))
        assert np.all(crossings.upper[:-1] <= crossings.lower[1:])
        assert np.any(
            (crossings.lower <= tie) & (tie <= crossings.upper)
            | (abs(crossings.x / tie - 1) < 1e-9)
        )


@pytest.mark.parametrize("far", [1e30, 1e100, 1e300])
@pytest.mark.parametrize("side", [-1, 1])
def test_wide_bounds_do_not_widen_enclosures(far, side):
    crossings = alone(
        along([side], [0], [1], -0.9), bounds=(-far, far)
    )  # one tie at most: no splits come before
    assert crossings.unique.tolist() == [True]
    np.testing.assert_allclose(crossings.x, side * np.log(9), rtol=1e-12)
    assert crossings.upper[0] - crossings.lower[0] < 3e-12


def test_overflowing_inputs_leave_everything_open():
    net = fd.SigmoidMLP([[[1.0, 2.0], [1e300, -1e300]], [[1.0], [-1.0]]], [[0.0, 0.0], [0.1]])
    crossings = fd.solve_x1(net, [1e300, 0.0])
    assert (crossings.lower[0], crossings.upper[0], crossings.unique[0]) == (-INF, INF, False)
    assert (
        len(crossings[1]) > 0 and crossings.unique[1:].all()
    )  # the other row is not touched by that


# ---- faults that were ------------------------------------------------------------------------


def holds(crossings, tie):
    return bool(np.any((crossings.lower <= tie) & (tie <= crossings.upper)))


@pytest.mark.parametrize(
    ("net", "l", "r"),
    [
        (
            along(
                [-2.7420735103876135, -2.332917454949804],
                [1.2513039166446588e16, 1.064591717737986e16],
                [2.58203125, -0.154296875],
                0.0,
            ),
            4563349275299992.0,
            4563349275299993.0,
        ),
        (
            along(
                [-0.988673228103446, -0.7324893344851138],
                [-880810568558621.5, -652575925827971.5],
                [-0.4111328125, 103.1591796875],
                -102.748046875,
            ),
            -890901607853119.0,
            -890901607853118.4,
        ),
    ],
)
def test_tails_with_large_offsets_are_cut_behind_their_ties(net, l, r):
    (a, d), (s, c) = net.weights, net.biases
    with mpmath.workdps(100):
        units = [tuple(map(mpmath.mpf, unit)) for unit in zip(a[0], s, d[:, 0], strict=True)]
        f = [
            mpmath.fsum([c[0], *(d / (1 + mpmath.exp(-a * t - s)) for a, s, d in units)])
            for t in (l, r)
        ]
        assert f[0] * f[1] < 0
    assert holds(alone(net), l) or holds(alone(net), r)


def test_a_saturated_steep_unit_does_not_widen_enclosures():
    net = along([-1e4, 1.0, 1e-3, 1e-12], [-3e3, -5.0, -4.0, -3.0], [-1.0, -1, 1, -1], 0.5)
    crossings = alone(net)
    assert crossings.unique.tolist() == [True] * 4
    assert np.all(crossings.upper - crossings.lower < 2e-12 * np.maximum(1, abs(crossings.x)))


def test_of_two_close_ties_both_are_unique_or_none():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        shift, height = rng.normal(), 10 ** rng.uniform(-14, -8)
        net = along([1, 1], [1 + shift, -1 + shift], [1, -1], -np.tanh(0.5) + height)
        assert len(set(alone(net).unique)) == 1


@pytest.mark.parametrize("by", [0, 2.0**-52, 1e-13, 1e-9, 1e-6, 1e-3])
def test_units_that_cancel_leave_clusters_only_where_the_margin_cannot_be_told_from_zero(by):
    s, d = [-0.75, -2.25, -0.75, -1.875], [3.0, 1.0, -3.0, -1.0]
    net = along([1.0, 3.0, 1.0 + by, 2.5], s, d, 0.0)
    crossings = alone(net, bounds=(-INF, 0.7))
    assert len(crossings.x) <= (3 if by else 0)  # the tail may be in two pieces
    clusters = ~crossings.unique
    for lower, upper in zip(crossings.lower[clusters], crossings.upper[clusters], strict=True):
        assert np.abs(net.margin(np.linspace(max(lower, -100), upper, 50)[:, None])).max() < 3e-14
    if EXTENDED:
        assert check(net, np.zeros((1, 0)), crossings, bounds=(-INF, 0.7))[:2] == (0, 0)


def test_equal_and_opposite_units_are_one():
    once = along([1.3, 0.7], [0.2, -1], [1.5, -2.5], 0.75)
    d = [2.0, 0.25, -2.0, -0.25, -0.5]  # 2 − ¼ − ¼ and −2 − ½; ¼ is added to c
    thrice = along([1.3, -1.3, 0.7, 1.3, 0.7], [0.2, -0.2, -1, 0.2, -1], d, 0.5)
    assert same(alone(thrice), alone(once))
    assert len(alone(along([1, 1, -1], [0, 0, 0], [1, 2, 3], -3)).x) == 1  # all cancel: f = 0
    assert len(alone(along([1, 1, -1], [0, 0, 0], [1, 2, 3], -2)).x) == 0  # f = 1
    crossings = alone(along([0, 0, 1], [1, -1, 0], [1, 1, 1], -1.5))  # σ(1) + σ(−1) = 1
    assert crossings.unique.tolist() == [True]


def test_sums_of_equal_units_count_their_rounding():
    d = [1, 2.0**-54, 2.0**-54, 1]  # the first three are 1 + 2⁻⁵³, which is rounded to 1
    crossings = alone(along([1, 1, 1, 2], [0, 0, 0, 0.5], d, -1))
    with mpmath.workdps(60):

        def f(t):
            first = (1 + mpmath.mpf(2) ** -53) / (1 + mpmath.exp(-t))
            return first + 1 / (1 + mpmath.exp(-2 * t - 0.5)) - 1

        tie = mpmath.findroot(f, -0.2)
        assert crossings.unique.tolist() == [True]
        assert mpmath.mpf(crossings.lower[0]) <= tie <= mpmath.mpf(crossings.upper[0])


def test_steep_units_of_weights_that_scaling_loses_are_not_forgotten():
    # near 0 the steep unit makes three ties of one
    crossings = alone(along([1e-40, 1e300], [0, 0], [1e308, -1e-22], -5e307))
    assert holds(crossings, 0.0) and not crossings.unique.any()


# ---- against the oracles ---------------------------------------------------------------------


def slices(seed, m):
    """A random network, rows and bounds, with any number of units, mild or steep weights."""
    rng = np.random.default_rng(seed)
    H, n = int(rng.choice([1, 2, 3, 3, 4, 5, 8, 16, 21])), int(rng.integers(1, 4))
    net = network(H, n, seed, rng.choice([0.3, 1.5, 1.5, 30, 1000]), int(rng.integers(2, 4)))
    if seed % 3 == 0:  # duplicates, zero weights and symmetries
        W, V = (w.copy() for w in net.weights)
        W[:, rng.integers(H)] = W[:, 0] * rng.choice([-1, 0, 1, 2])
        V[rng.integers(H)] = -V[0]
        net = fd.SigmoidMLP([W, V], net.biases)
    bounds = [
        (-INF, INF),
        tuple(np.sort(rng.normal(0, 3, 2))),
        (rng.normal(), INF),
        (-INF, rng.normal()),
    ][rng.integers(4)]
    return (
        net,
        rng.normal(0, 1.5, (m, n - 1)),
        {"coordinate": int(rng.integers(n)), "outputs": (1, 0), "bounds": bounds},
    )


def near_double_rows(seed, m):
    """Rows whose margin has an extremum about as high as the error of float64."""
    rng = np.random.default_rng(seed)
    net = network(int(rng.choice([3, 4, 8])), 2, seed)
    x = rng.normal(0, 1.5, (m, 1))
    w, b = net.weights[0], net.biases[0]
    t = np.linspace(-8, 8, 801)
    d = net.weights[1][:, 0] - net.weights[1][:, 1]
    values = [
        d @ (1 / (1 + np.exp(-(np.outer(w[0], t) + (w[1] * row + b)[:, None])))) for row in x[:, 0]
    ]
    tops = [t[k] for v in values for k in np.flatnonzero(np.diff(np.sign(np.diff(v)))) + 1][:m]
    for row, top in zip(x[:, 0], tops, strict=False):
        s = w[1] * row + b
        for _ in range(50):  # Newton for f' = 0
            y = 1 / (1 + np.exp(-np.clip(np.nan_to_num(w[0] * top + s), -700, 700)))
            with np.errstate(all="ignore"):
                top -= (w[0] * d) @ (y * (1 - y)) / ((w[0] ** 2 * d) @ (y * (1 - y) * (1 - 2 * y)))
        if abs(top) < 20:
            height = rng.choice([-1, 1]) * 10.0 ** rng.uniform(-17, -9)
            yield (
                fd.SigmoidMLP(
                    net.weights, [b, [height - d @ (1 / (1 + np.exp(-(w[0] * top + s)))), 0.0]]
                ),
                [row],
            )


def verify(cases):
    """(false uniques, missed ties, open questions), rows, complete ones, clusterless ones, ties."""
    judged, rows, complete, clean, ties = np.zeros(3, int), 0, 0, 0, 0
    for net, x, options in cases:
        crossings = fd.solve_x1(net, x, **options)
        judged += check(net, x, crossings, **options)
        clusters = np.repeat(np.arange(len(crossings)), np.diff(crossings.indptr))[
            ~crossings.unique
        ]
        rows, complete, ties = (
            rows + len(crossings),
            complete + crossings.complete.sum(),
            ties + len(crossings.x),
        )
        clean += len(crossings) - len(np.unique(clusters))
    return judged, rows, complete, clean, ties


@needs_extended
def test_certificates_of_random_slices():
    judged, rows, complete, clean, ties = verify(slices(seed, 150) for seed in range(120))
    assert judged[:2].tolist() == [0, 0]
    assert complete == rows and clean > 0.999 * rows and ties > 0.2 * rows
    assert judged[2] <= 2


@needs_extended
def test_certificates_of_near_double_roots():
    judged, rows, *_ = verify(
        (net, x, {}) for seed in range(20) for net, x in near_double_rows(seed, 6)
    )
    assert rows > 40 and judged[:2].tolist() == [0, 0]


@needs_extended
@pytest.mark.slow
def test_certificates_of_more_than_a_hundred_thousand_slices():
    judged, rows, complete, clean, _ = verify(slices(seed, 400) for seed in range(1000, 1300))
    assert rows >= 120_000
    assert judged[:2].tolist() == [0, 0]
    assert complete == rows and clean > 0.999 * rows
    judged, rows, *_ = verify(
        (net, x, {}) for seed in range(100, 300) for net, x in near_double_rows(seed, 10)
    )
    assert rows > 1000 and judged[:2].tolist() == [0, 0]


@needs_extended
def test_the_oracle_notices_what_is_wrong():
    net, x = network(4, 3, seed=4), others(200, 2)
    good = fd.solve_x1(net, x)
    assert len(good.x) > 50 and check(net, x, good) == (0, 0, 0)
    moved = copy.copy(good)
    object.__setattr__(moved, "lower", good.lower + 1e-9)
    object.__setattr__(moved, "x", good.x + 1e-9)
    object.__setattr__(moved, "upper", good.upper + 1e-9)
    assert check(net, x, moved)[0] == len(good.x)
    indptr = good.indptr - np.searchsorted([0], good.indptr, side="left")  # the first is dropped
    kept = [getattr(good, name)[1:] for name in ("x", "lower", "upper", "unique")]
    assert check(net, x, fd.Crossings(indptr, *kept, good.complete))[1] == 1


def test_ends_against_fifty_digits():
    net, x = network(4, 3, seed=2), others(40, 2)
    crossings = fd.solve_x1(net, x)
    assert crossings.unique.all() and len(crossings.x) > 20
    W, b, v, c = (
        mpmath.matrix(p.tolist())
        for p in (net.weights[0], net.biases[0], net.weights[1], net.biases[1])
    )

    def margin(t, row):
        z = W.T * mpmath.matrix([t, *map(mpmath.mpf, row)]) + b
        y = z.apply(lambda p: 1 / (1 + mpmath.exp(-p)))
        return sum((v[i, 0] - v[i, 1]) * y[i] for i in range(4)) + c[0] - c[1]

    with mpmath.workdps(50):
        for i, row in enumerate(x.tolist()):
            for k in range(crossings.indptr[i], crossings.indptr[i + 1]):
                assert (
                    margin(mpmath.mpf(crossings.lower[k]), row)
                    * margin(mpmath.mpf(crossings.upper[k]), row)
                    < 0
                )


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_reference(seed):
    net = network([1, 2, 3, 5, 9, 20][seed], 2, seed)
    twin, x = reference.SigmoidMLP(net.weights, net.biases), others(8, 1, seed)
    bounds = (-INF, INF) if seed % 2 else (-2.0, 1.5)
    ours, theirs = fd.solve_x1(net, x, bounds=bounds), reference.solve_x1(twin, x, bounds=bounds)
    assert [len(row) for row in (ours[i] for i in range(8))] == [
        len(row) for row in (theirs[i] for i in range(8))
    ]
    np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-9, atol=1e-9)


# ---- properties ------------------------------------------------------------------------------

NETS = st.builds(
    network,
    st.sampled_from([1, 2, 3, 4, 7, 17]),
    st.just(2),
    st.integers(0, 10_000),
    st.sampled_from([0.5, 1.5, 20]),
)


def assert_same_ties(a, b, move=lambda t: t):
    """If both certify the same number of ties these are the same.

    A cluster may be decided in one of them only.
    """
    for i in range(len(a)):
        if len(a[i]) == len(b[i]) and a.unique[a.indptr[i] : a.indptr[i + 1]].all():
            for one, lower, upper in zip(
                np.sort(move(a[i])), b.lower[b.indptr[i] :], b.upper[b.indptr[i] :], strict=False
            ):
                slack = 1e-9 * max(1, abs(one)) + 1e-9
                assert lower - slack <= one <= upper + slack
        else:
            assert not (a.unique.all() and b.unique.all())


@settings(max_examples=40, deadline=None)
@given(
    net=NETS,
    shift=st.floats(-5, 5),
    stretch=st.sampled_from([-4.0, -1.0, 0.25, 8.0]),
    seed=st.integers(0, 100),
)
def test_ties_move_with_the_input(net, shift, stretch, seed):
    (W, v), (b, c), x = net.weights, net.biases, others(20, 1, seed)
    moved = fd.SigmoidMLP(
        [np.array([W[0] / stretch, W[1]]), v], [b - W[0] / stretch * shift, c]
    )  # at stretch·t + shift
    assert_same_ties(fd.solve_x1(net, x), fd.solve_x1(moved, x), lambda t: stretch * t + shift)


@settings(max_examples=40, deadline=None)
@given(net=NETS, seed=st.integers(0, 100), factor=st.sampled_from([-3.0, 0.1, 2.0**500, 2.0**-500]))
def test_ties_do_not_depend_on_the_order_of_units_or_outputs_or_the_scale_of_the_margin(
    net, seed, factor
):
    (W, v), (b, c), x = net.weights, net.biases, others(20, 1, seed)
    order = np.random.default_rng(seed).permutation(len(b))
    first = fd.solve_x1(net, x)
    assert_same_ties(first, fd.solve_x1(fd.SigmoidMLP([W[:, order], v[order]], [b[order], c]), x))
    assert_same_ties(first, fd.solve_x1(net, x, outputs=(1, 0)))
    assert_same_ties(first, fd.solve_x1(fd.SigmoidMLP([W, factor * v], [b, factor * c]), x))


@settings(max_examples=30, deadline=None)
@given(net=NETS, seed=st.integers(0, 100), ends=st.tuples(st.floats(-6, 6), st.floats(0.01, 6)))
def test_bounds_only_leave_out_what_is_outside(net, seed, ends):
    x, (lo, width) = others(20, 1, seed), ends
    everything, inner = fd.solve_x1(net, x), fd.solve_x1(net, x, bounds=(lo, lo + width))
    for i in range(20):
        expected = [t for t in everything[i] if lo + 1e-6 < t < lo + width - 1e-6]
        found = [t for t in inner[i] if lo + 1e-6 < t < lo + width - 1e-6]
        if everything.unique.all() and inner.unique.all():
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(
    net=st.builds(network, st.integers(1, 4), st.just(2), st.integers(0, 10_000)),
    seed=st.integers(0, 100),
)
def test_descartes_bound_is_reported_and_holds(net, seed):
    crossings = fd.solve_x1(net, others(50, 1, seed))
    assert crossings.root_bound == fd.ExponentialSum(net).root_bound(0)
    if crossings.unique.all():
        assert np.diff(crossings.indptr).max() <= crossings.root_bound
    assert fd.solve_x1(network(5), others(2, 1)).root_bound is None


@pytest.mark.parametrize("xtol", [1e-3, 1e-9, 1e-12, 1e-15])
def test_enclosures_are_as_narrow_as_xtol_or_as_rounding_allows(xtol):
    net, x = network(4, 3, seed=4), others(500, 2)
    crossings = fd.solve_x1(net, x, xtol=xtol)
    slopes = abs(
        net.margin_gradient(
            np.column_stack([crossings.x, np.repeat(x, np.diff(crossings.indptr), axis=0)])
        )[:, 0]
    )
    rounding = (
        64 * 2.0**-53 * (np.abs(net.weights[1]).sum() + np.abs(net.biases[1]).sum())
    )  # of the margin, 4 units
    allowed = np.maximum(xtol * np.maximum(1, abs(crossings.x)), 8 * rounding / slopes)
    assert crossings.unique.all() and np.all(crossings.upper - crossings.lower <= allowed)


# ---- what a caller may rely on ---------------------------------------------------------------


@pytest.mark.parametrize("n_out", [1, 3])
@pytest.mark.parametrize("coordinate", [0, 1, -1])
def test_any_input_and_any_pair_of_outputs(coordinate, n_out):
    net, x, pair = (
        network(6, 3, seed=3, n_out=n_out),
        others(100, 2),
        (2, 0) if n_out > 1 else (1, 0),
    )
    crossings = fd.solve_x1(net, x, coordinate=coordinate, outputs=pair)
    X = np.insert(
        np.repeat(x, np.diff(crossings.indptr), axis=0), coordinate % 3, crossings.x, axis=1
    )
    assert len(X) > 5 and np.abs(net.margin(X, pair)).max() < 1e-13


@pytest.mark.parametrize("H", [3, 17, 70])
def test_same_bits_for_any_layout_and_number_of_threads(H):
    net, x = network(H, 3, seed=1), others(700, 2)
    whole = fd.solve_x1(net, x)
    assert all(same(whole, one) for one in by_threads(lambda: fd.solve_x1(net, x), 1, 2, 5))
    assert all(same(fd.solve_x1(net, view), whole) for _, view in layouts(x))
    for i in (0, 137, 699):
        assert np.array_equal(fd.solve_x1(net, x[i : i + 1])[0], whole[i])


def test_cpu_levels_agree():
    assert_levels_agree("""
import hashlib
import numpy as np
import fastderiv as fd

for H, n, scale in ((1, 1, 1.5), (3, 2, 1.5), (3, 2, 1000), (16, 3, 1.5), (40, 2, 1.5)):
    rng = np.random.default_rng(H)
    weights = [rng.normal(0, scale, (n, H)), rng.normal(0, scale, (H, 2))]
    net = fd.SigmoidMLP(weights, [rng.normal(0, scale, H), rng.normal(0, 1, 2)])
    c = fd.solve_x1(net, rng.normal(size=(300, n - 1)))
    parts = (c.indptr, c.x, c.lower, c.upper, c.unique)
    print(hashlib.sha256(b"".join(a.tobytes() for a in parts)).hexdigest(), c.x.sum())
""")


def test_crossings_are_a_sequence_of_rows():
    net, x = network(4, 3, seed=4), others(30, 2)
    crossings = fd.solve_x1(net, x)
    assert len(crossings) == 30 and sum(map(len, crossings)) == len(crossings.x)
    assert np.array_equal(crossings[-1], crossings[29])
    for i in (30, -31):
        with pytest.raises(IndexError, match=f"row {i} is out of range, there being 30 rows"):
            crossings[i]
    again = pickle.loads(pickle.dumps(crossings))
    assert same(again, crossings) and again.root_bound == crossings.root_bound
    assert set(crossings.status) <= {"unique", "cluster"}
    assert [getattr(crossings, name).dtype for name in FIELDS] == [
        np.intp,
        float,
        float,
        float,
        bool,
        bool,
    ]


def test_shapes_of_the_other_inputs():
    net = network(3, seed=2)
    expected = fd.solve_x1(net, [[0.3], [1.0]])
    assert same(fd.solve_x1(net, [0.3, 1.0]), expected)
    assert np.array_equal(fd.solve_x1(net, 0.3).x, expected[0])
    empty = fd.solve_x1(net, [])
    assert len(empty) == 0 and empty.indptr.tolist() == [0] and len(empty.x) == 0


ERRORS = [
    (TypeError, "net is a list; expected a SigmoidMLP", {"net": []}),
    (
        TypeError,
        "x_other has dtype complex128; expected float32, float64 or integers",
        {"x_other": [1j]},
    ),
    (
        ValueError,
        r"x_other has shape \(2, 3\); expected \(m, n_inputs - 1\) = \(m, 1\), \(m,\) or a scalar",
        {"x_other": np.ones((2, 3))},
    ),
    (
        ValueError,
        r"x_other\[1, 0\] is nan; expected finite numbers",
        {"x_other": [[0.0], [np.nan]]},
    ),
    (ValueError, r"x_other\[0\] is inf; expected finite numbers", {"x_other": [INF]}),
    (
        ValueError,
        "coordinate is 2; expected an integer from -2 to 1, there being 2 inputs",
        {"coordinate": 2},
    ),
    (TypeError, "coordinate is 0.0; expected an integer", {"coordinate": 0.0}),
    (ValueError, r"outputs is \(1, 1\); expected two different outputs", {"outputs": (1, 1)}),
    (ValueError, r"bounds is \(1.0, 1.0\); expected lo < hi", {"bounds": (1, 1)}),
    (ValueError, r"bounds is \(2.0, -2.0\); expected lo < hi", {"bounds": (2, -2)}),
    (ValueError, r"bounds is \(nan, 1.0\); expected lo < hi", {"bounds": (np.nan, 1)}),
    (ValueError, r"bounds has 3 elements; expected a pair \(lo, hi\)", {"bounds": (0, 1, 2)}),
    (TypeError, r"bounds is a float; expected a pair \(lo, hi\)", {"bounds": 1.0}),
    (TypeError, r"bounds\[1\] is 'x'; expected a number", {"bounds": (0, "x")}),
    (ValueError, "xtol is 0.0; expected a positive number", {"xtol": 0}),
    (ValueError, "xtol is nan; expected a positive number", {"xtol": np.nan}),
    (TypeError, "xtol is None; expected a number", {"xtol": None}),
    (TypeError, "progress is a int; expected None, True or a callable", {"progress": 3}),
]


@pytest.mark.parametrize(("kind", "message", "change"), ERRORS)
def test_errors_name_the_argument(kind, message, change):
    arguments = {"net": network(3), "x_other": [0.5], **change}
    with pytest.raises(kind, match=message):
        fd.solve_x1(arguments.pop("net"), arguments.pop("x_other"), **arguments)


def test_inputs_stay_as_they_are():
    net, x = network(3), others(50, 1)
    before = snapshot(x, *net.weights, *net.biases)
    fd.solve_x1(net, x, bounds=np.array([-1.0, 1.0]))
    assert snapshot(x, *net.weights, *net.biases) == before


def test_progress_counts_the_rows():
    seen = []
    fd.solve_x1(
        network(3), others(100_000, 1), progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (100_000, 100_000) and len(seen) > 1 and seen == sorted(seen)


def test_what_progress_writes_into_the_inputs_changes_nothing():
    net, x = network(3, seed=2), others(70_000, 1)
    expected = fd.solve_x1(net, x)

    def spoil(done, total):
        x[:] = np.nan

    assert same(fd.solve_x1(net, x, progress=spoil), expected)


def test_frames_are_taken_as_arrays():
    pandas = pytest.importorskip("pandas")
    net, x = network(4, 3, seed=4), others(30, 2)
    expected = fd.solve_x1(net, x)
    assert same(fd.solve_x1(net, pandas.DataFrame(x, columns=["p", "q"])), expected)
    nullable = pandas.DataFrame(x).convert_dtypes(dtype_backend="numpy_nullable")
    assert same(fd.solve_x1(net, nullable), expected)
    single = network(3, seed=2)
    assert same(fd.solve_x1(single, pandas.Series(x[:, 0])), fd.solve_x1(single, x[:, 0]))
    with pytest.raises(ValueError, match=r"x_other\[1, 0\] is nan"):
        fd.solve_x1(net, pandas.DataFrame({"p": [1, None], "q": [0.5, 1]}).convert_dtypes())
    with pytest.raises(TypeError, match="x_other is a masked array"):
        fd.solve_x1(net, np.ma.masked_array(x))


@pytest.mark.parametrize("shape", [(2**58, 1), (2**40, 1), (2**58, 0), (2**40, 0)])
def test_more_rows_than_fit_are_a_memory_error_that_says_how_many_bytes(shape):
    x = np.broadcast_to(np.float64(0.5), shape)
    with pytest.raises(MemoryError, match=r"\d+ bytes"):
        fd.solve_x1(network(3, 1 + shape[1]), x)


HARD = [
    (network(4, 3, seed=4), [[0.5, -0.25], [1, 2]], {}),
    (network(3, seed=2), np.array([1e-40, 1.0], np.float32), {"bounds": (-5e-324, 3.0)}),
    (network(3, seed=2, n_out=1), [2**53 + 1, -(2**60) - 1], {"xtol": 1e-310}),
    (along([1, 2], [0, 0], [1e308, -1e308], 1e-322), np.zeros((1, 0)), {}),
    (along([1, 1, 1, 2], [0, 0, 0, 0.5], [0.1, 0.2, 0.3, 1], -1), np.zeros((1, 0)), {}),
    (network(5, 2, seed=3, scale=1e-160), [1e-150], {}),
]


EXPONENTS = np.linspace(-2, 1, 10).reshape(2, 5)


def fresh(net):
    """Prepared anew: nothing is cached."""
    return fd.SigmoidMLP(net.weights, net.biases)


def everything(net, x, options):
    terms = fd.ExponentialSum(fresh(net))
    return [
        *(getattr(fd.solve_x1(fresh(net), x, **options), name).tobytes() for name in FIELDS),
        terms.coefficients.tobytes(), terms.frequencies(0).tobytes(), terms.root_bound(0),
        *(part.tobytes() for part in terms.log_evaluate(EXPONENTS[:, : net.hidden_widths[0]])),
    ]  # fmt: skip


@pytest.mark.skipif(not AVAILABLE, reason="sets the control register by glibc")
@pytest.mark.parametrize("state", STATES)
def test_same_bits_in_every_floating_point_state(state):
    expected = [everything(*case) for case in HARD]
    with in_state(state):
        found = [everything(*case) for case in HARD]
    assert found == expected


@pytest.mark.skipif(not AVAILABLE, reason="sets the control register by glibc")
def test_same_bits_in_every_floating_point_state_and_number_of_threads():
    net, x = network(17, 3, seed=1), others(2000, 2)
    expected = fd.solve_x1(net, x)
    for state in STATES:
        with in_state(state):
            found = by_threads(lambda: fd.solve_x1(net, x), 1, 3)
        assert all(same(one, expected) for one in found), state


def test_numpy_errors_are_not_let_through():
    with np.errstate(all="raise"):
        for case in HARD:
            everything(*case)
        weights = [[[1e-200, 1.0], [1.0, 1e-300]], [[1e-310], [1e308]], [[1e308, -1e308]]]
        fd.solve_x1(fd.SigmoidMLP(weights, [[0, 0], [0], [0, 0]]), [0.0])


def test_answers_an_interrupt():
    net, x = STAIRS, np.zeros((30_000, 0))  # every row takes a thousand splits
    assert seconds_until_answered(lambda: fd.solve_x1(net, x)) < ALLOWED


def test_memory_is_the_result_and_some_mib():
    net, x = network(3, seed=2), others(200_000, 1)
    result = fd.solve_x1(net, x)
    size = sum(getattr(result, name).nbytes for name in FIELDS)
    tracemalloc.start()
    try:
        fd.solve_x1(net, x)
        assert (
            tracemalloc.get_traced_memory()[1] < size + 34 * len(x) + 16 * 2**20
        )  # room for a tie a row, to begin with
    finally:
        tracemalloc.stop()


def test_what_scaling_loses_is_no_tie_called_unique():
    """A column of 1e305 scales all numbers down: subnormal ones lose bits, and grow again later."""
    q, big, small = 5e-324, 10**5 * 2**14, 6553
    c = -(big - small) // 2
    last = np.array([[big * q, 0], [0, small * q], [1e305, 1e305]])
    ties = fd.solve_x1(fd.SigmoidMLP([[[1.0, 1e7, 3.0]], last], [[0, 0, 0], [0, -c * q]]), [[]])
    assert not ties.unique.any() and ties.lower.min() <= -1e-6 and ties.upper.max() >= 1e-5
