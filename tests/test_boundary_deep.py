"""solve_x1 with no hidden layer or several: certificates against interval arithmetic."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

import fastderiv as fd
from fastderiv.boundary._compiled import kernels as _kernels
from fastderiv.boundary._network import margin_of
from fastderiv.boundary.line._solver import solver_of
from fastderiv.boundary.line._units import distinct_units
from helpers import floating_point, machines
from helpers.awkward import layouts, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.oracle_ties import Slice, judge

INF = np.inf
LINE = (-INF, INF)
# sizes, scale of the weights, whether divided by the root of the number of inputs
GENERIC = [
    ((3, 8, 8, 1), 1.5, False),
    ((2, 16, 16, 2), 1.5, False),
    ((3, 16, 16, 16, 1), 1.5, True),
    ((4, 9, 3, 17, 2), 2.0, True),
    ((2, 5, 1, 6, 3), 3.0, False),
    ((3, 4, 4, 4, 4, 4, 2), 4.0, True),
    ((1, 7, 12, 2), 2.0, False),
]


def network(sizes, seed, scale=1.5, fan=False):
    """Random, its last bias such that ties exist: the margin's median over some inputs is 0."""
    rng = np.random.default_rng(seed)
    width = [scale / np.sqrt(n) if fan else scale for n in sizes]
    weights = [
        w * rng.standard_normal((m, n)) for (m, n), w in zip(pairwise(sizes), width, strict=False)
    ]
    biases = [scale * rng.standard_normal(n) for n in sizes[1:]]
    X = 4 * rng.standard_normal((200, sizes[0]))
    biases[-1][0] -= (
        np.median(fd.SigmoidMLP(weights, biases).margin(X)) + 0.01 * rng.standard_normal()
    )
    return fd.SigmoidMLP(weights, biases)


def rows(m, n, seed=1):
    return 1.5 * np.random.default_rng(seed).standard_normal((m, n))


def verdict(net, x, ties, bounds=LINE, coordinate=0, outputs=(0, 1)):
    """(false uniques, missed roots, undecided claims) over all rows."""
    total = np.zeros(3, int)
    for i, row in enumerate(x):
        at = slice(ties.indptr[i], ties.indptr[i + 1])
        f = Slice(net.weights, net.biases, row, coordinate, outputs)
        total += judge(f, ties.lower[at], ties.upper[at], ties.unique[at], *bounds)
    return total.tolist()


def assert_in_order(ties, bounds=LINE):
    assert np.all(ties.lower <= ties.x)
    assert np.all(ties.x <= ties.upper)
    assert np.all((bounds[0] <= ties.lower) & (ties.upper <= bounds[1]))
    assert np.isfinite(ties.x).all()
    same_row = np.diff(np.repeat(np.arange(len(ties)), np.diff(ties.indptr))) == 0
    assert np.all((ties.upper[:-1] <= ties.lower[1:])[same_row])


def _program(net):
    return _kernels.Program(net.weights, net.biases)


def work(net, x, bounds=LINE):
    """How many enclosures each row took."""
    solver, _ = solver_of(margin_of(net, (0, 1)), 0)
    return solver.effort(x, *bounds, 1e-12)


def assert_proven(net, x, bounds=LINE, undecided=0, **options):
    ties = fd.solve_x1(net, x, bounds=bounds, **options)
    assert_in_order(ties, bounds)
    assert ties.complete.all()
    false, missed, unknown = verdict(
        net, x, ties, bounds, options.get("coordinate", 0), options.get("outputs", (0, 1))
    )
    assert (false, missed) == (0, 0)
    assert unknown <= undecided
    return ties


# ---- certificates ----------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "scale", "fan"), GENERIC)
@pytest.mark.parametrize("bounds", [LINE, (-10.0, 10.0), (-1.0, INF)])
def test_generic_networks_are_solved_and_proven(sizes, scale, fan, bounds):
    found = 0
    for seed in range(6):
        net, x = network(sizes, seed, scale, fan), rows(4, sizes[0] - 1)
        ties = assert_proven(net, x, bounds)
        assert ties.unique.all()
        found += len(ties.x)
    assert found >= 3


def test_generic_rows_are_all_unique_and_narrow():
    clusters = several = total = 0
    for seed in range(20):
        net, x = network((3, 16, 16, 16, 2), seed, 1.5, True), rows(100, 2)
        ties = fd.solve_x1(net, x)
        clusters += np.count_nonzero(~ties.unique)
        several += np.count_nonzero(np.diff(ties.indptr) > 1)
        total += len(ties.x)
        assert np.all(ties.upper - ties.lower < 1e-9 * np.maximum(1, np.abs(ties.x)))
        X = np.column_stack([ties.x, np.repeat(x, np.diff(ties.indptr), axis=0)])
        assert np.all(np.abs(net.margin(X)) < 1e-11)
    assert clusters <= 2  # of 2000 rows
    assert several > 100
    assert total > 1500


@pytest.mark.parametrize("scale", [30.0, 1000.0])
@pytest.mark.parametrize("sizes", [(2, 8, 8, 1), (2, 6, 6, 6, 1)])
def test_steep_networks(sizes, scale):
    for seed in range(5):
        net = network(sizes, seed, scale)
        assert_proven(net, rows(4, 1), undecided=1)


@pytest.mark.parametrize("height", [1e-6, 1e-9, 1e-11, 1e-13, 1e-14, 1e-15])
def test_near_double_roots(height):
    """A local extremum at this height above or below zero: two simple roots, none, or a cluster."""
    decided = 0
    for seed in range(4):
        net, t = with_extremum((2, 8, 8, 1), seed)
        for side in (-1, 1):
            moved = fd.SigmoidMLP(net.weights, (*net.biases[:-1], net.biases[-1] + side * height))
            ties = assert_proven(moved, np.array([[0.5]]), undecided=5)  # the oracle's own rounding
            near = np.abs(ties.x - t) < 0.01
            assert np.count_nonzero(ties.unique & near) in (0, 2)
            decided += ties.unique[near].all()
    assert decided == 8 or height < 1e-11
    assert decided == 0 or height > 2e-15


def with_extremum(sizes, seed):
    """A network whose margin has a local extremum of height nearly 0 at t, the other input 0.5."""
    for trial in range(100):
        net = network(sizes, 1000 * seed + trial, 1.5)
        grid = np.linspace(-6, 6, 2001)
        f = net.margin(np.column_stack([grid, np.full(2001, 0.5)]))
        inner = 1 + np.flatnonzero((f[1:-1] - f[:-2]) * (f[2:] - f[1:-1]) < 0)
        inner = inner[np.abs(f[inner - 1] - 2 * f[inner] + f[inner + 1]) > 1e-6]
        if len(inner):
            break
    point = np.array([[grid[inner[0]], 0.5]])
    for _ in range(60):  # Newton's method on the slope, its derivative from differences
        slope = [net.margin_gradient(point + np.array([[e, 0]]))[0, 0] for e in (-1e-5, 0, 1e-5)]
        point[0, 0] -= 2e-5 * slope[1] / (slope[2] - slope[0])
    exact = Slice(net.weights, net.biases, [0.5]).exact(point[0, 0])
    biases = (*net.biases[:-1], net.biases[-1] - float(exact))
    for _ in range(3):  # the rounding of the bias
        rest = float(Slice(net.weights, biases, [0.5]).exact(point[0, 0]))
        biases = (*biases[:-1], biases[-1] - rest)
    return fd.SigmoidMLP(net.weights, biases), point[0, 0]


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    inputs=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    scales=st.lists(
        st.sampled_from([1e-300, 1e-30, 1e-3, 1.0, 3.0, 1e3, 1e12, 1e100, 1e300]),
        min_size=6,
        max_size=6,
    ),
    zeros=st.sampled_from([0.0, 0.3, 1.0]),
    bounds=st.sampled_from([LINE, (-2.0, 5.0), (0.0, INF), (-1e300, 1e300), (1.0, 1.0 + 1e-12)]),
)
def test_no_claim_is_false_whatever_the_weights(sizes, inputs, seed, scales, zeros, bounds):
    rng = np.random.default_rng(seed)
    sizes = [inputs, *sizes, 2]
    weights = [
        s * rng.standard_normal(n) * (rng.random(n) >= zeros)
        for n, s in zip(pairwise(sizes), scales, strict=False)
    ]
    net = fd.SigmoidMLP(weights, [rng.standard_normal(n) for n in sizes[1:]])
    x = rows(1, inputs - 1, seed)
    ties = fd.solve_x1(net, x, bounds=bounds)
    assert_in_order(ties, bounds)
    assert verdict(net, x, ties, bounds)[:2] == [0, 0]


@pytest.mark.parametrize("scale", [0.3, 1.5, 30.0])
def test_enclosures_hold_the_margin_and_its_derivatives(scale):
    """At 60 digits: f, f' and f'' at points of an interval, for intervals of all widths."""
    rng, largest = np.random.default_rng(11), 0.0
    for sizes in ((2, 9, 1), (2, 8, 5, 1), (3, 6, 17, 4, 2)):
        net = network(sizes, 3, scale)
        x = rows(1, sizes[0] - 1)
        solver, f = (
            _kernels.DeepNet(margin_of(net, (0, 1)).compiled.program, 0),
            Slice(net.weights, net.biases, x[0]),
        )
        for width in (1e-12, 1e-6, 1e-3, 0.1, 1.0, 20.0, INF):
            m = 4 * rng.standard_normal()
            l, r = m - width * rng.random(), m + width * rng.random()
            (mid, rad), (slope, slope_rad), *ranges = solver.enclosure(x, l, m, r)
            for t in (m, l, r, *rng.uniform(*np.clip([l, r], -1e3, 1e3), 3)):
                if not np.isfinite(t):
                    continue
                for value, (lo, hi) in zip(f.derivatives(t), ranges, strict=True):
                    assert lo <= value <= hi
            exact = f.derivatives(m)
            assert abs(exact[0] - mid) <= rad
            assert abs(exact[1] - slope) <= slope_rad
            largest = max(
                largest, float(abs(exact[0] - mid)) / rad, float(abs(exact[1] - slope)) / slope_rad
            )
    assert largest > 0.002  # the bounds are not idle


def test_the_oracle_notices():
    """Enclosures that are shifted, dropped or called unique by mistake do not pass."""
    net, x = network((2, 8, 8, 1), 3), rows(6, 1)
    ties = fd.solve_x1(net, x)
    f = Slice(net.weights, net.biases, x[int(np.argmax(np.diff(ties.indptr)))])
    at = slice(*ties.indptr[np.argmax(np.diff(ties.indptr)) :][:2])
    lower, upper, unique = ties.lower[at], ties.upper[at], ties.unique[at]
    assert len(lower)
    assert judge(f, lower, upper, unique, *LINE) == (0, 0, 0)
    assert judge(f, lower[1:], upper[1:], unique[1:], *LINE)[1] == 1
    width = 1e-9 + upper - lower
    assert judge(f, lower + width, upper + width, unique, *LINE)[:2] == (len(lower), len(lower))


# ---- what is special -------------------------------------------------------------------------


def odd_network():
    """f(t) = −f(−t): a root at exactly 0, and two more."""
    first, (p, q) = [[1.0, -1, 2, -2]], np.random.default_rng(5).standard_normal((2, 3))
    return fd.SigmoidMLP(
        [first, [p, -p, q, -q], np.ones((3, 1))], [np.zeros(4), np.zeros(3), [-1.5]]
    )


def test_root_of_an_odd_network_is_unique():
    net, x = odd_network(), np.empty((1, 0))
    ties = assert_proven(net, x)
    assert ties.unique.tolist() == [True] * 3
    assert ties.lower[1] <= 0 <= ties.upper[1]


@pytest.mark.parametrize("bounds", [(0.0, 3.0), (-3.0, 0.0)])
def test_root_on_a_bound_belongs_to_the_row(bounds):
    ties = assert_proven(odd_network(), np.empty((1, 0)), bounds)
    assert len(ties.x) == 2
    k = int(np.argmin(np.abs(ties.x)))
    assert ties.lower[k] <= 0 <= ties.upper[k]
    assert ties.upper[k] - ties.lower[k] < 1e-11


@pytest.mark.parametrize("bounds", [LINE, (-3.0, 4.0), (0.0, INF)])
def test_zero_everywhere_is_one_cluster_over_the_bounds(bounds):
    hidden = network((2, 8, 8, 1), 1)
    equal = fd.SigmoidMLP(
        [*hidden.weights[:2], np.repeat(hidden.weights[2], 2, 1)], [*hidden.biases[:2], [0.3, 0.3]]
    )
    twice, signs = (
        np.repeat(hidden.weights[1][:, :4], 2, 1),
        np.array([1.0, -1, 2, -2, 0.3, -0.3, 5, -5])[:, None],
    )
    cancels = fd.SigmoidMLP(
        [hidden.weights[0], twice, signs],
        [hidden.biases[0], np.repeat(hidden.biases[1][:4], 2), [0.0]],
    )
    for net in (equal, cancels):
        ties = fd.solve_x1(net, [[0.7], [-1.0]], bounds=bounds)
        assert ties.unique.tolist() == [False, False]
        assert list(zip(ties.lower, ties.upper, strict=True)) == [bounds, bounds]


def test_exact_triple_root_is_never_unique():
    """σ(2z) − ½ − 2(σ(z) − ½) vanishes with z³, here with z = 4(σ(t) − ½)."""
    net = fd.SigmoidMLP([[[1.0]], [[4.0, 8.0]], [[2.0], [-1.0]]], [[0.0], [-2.0, -4.0], [-0.5]])
    ties = assert_proven(net, np.empty((1, 0)), (-5.0, 6.0))
    assert ties.unique.tolist() == [False]
    assert ties.lower[0] <= 0 <= ties.upper[0]
    assert ties.upper[0] - ties.lower[0] < 1e-3


def test_limit_of_exactly_zero():
    """f rises to 0 without reaching it."""
    net = fd.SigmoidMLP(
        [[[1.0, 2, 0.5]], [[50.0], [60.0], [70.0]], [[1.0]]], [[0, 1, -1.0], [-180.0], [-0.5]]
    )
    ties = assert_proven(net, np.empty((1, 0)))
    assert not ties.unique.any()
    assert len(ties.x) == 1
    assert ties.lower[0] > 10
    assert ties.upper[0] == INF


def test_unit_that_cannot_be_told_apart_from_its_copy():
    """Units that cancel exactly change nothing."""
    net, x = network((2, 6, 6, 1), 2), rows(5, 1)
    w, b = net.weights, net.biases
    more = fd.SigmoidMLP(
        [
            w[0],
            np.hstack([w[1], w[1][:, :2]]),
            np.vstack([w[2], [[0.5], [0.7]]]) - np.vstack([[[0.5], [0.7]], np.zeros((6, 1))]),
        ],
        [b[0], np.append(b[1], b[1][:2]), b[2]],
    )
    plain, changed = fd.solve_x1(net, x), assert_proven(more, x)
    assert np.array_equal(plain.indptr, changed.indptr)
    assert np.allclose(plain.x, changed.x, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-300, 1e-100, 1e100, 1e300])
def test_scaling_of_the_first_layer_scales_the_ties(scale):
    net = network((1, 7, 5, 1), 4, 2.0)
    scaled = fd.SigmoidMLP([net.weights[0] * scale, *net.weights[1:]], net.biases)
    plain, ties = (fd.solve_x1(n, np.empty((1, 0))) for n in (net, scaled))
    assert len(ties.x) == len(plain.x) > 0
    assert ties.unique.all()
    assert np.all((ties.lower * scale <= plain.x + 1e-9) & (plain.x - 1e-9 <= ties.upper * scale))


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_scaling_of_the_last_layer_changes_nothing(scale):
    net, x = network((2, 7, 5, 2), 5), rows(8, 1)
    scaled = fd.SigmoidMLP(
        [*net.weights[:-1], net.weights[-1] * scale], [*net.biases[:-1], net.biases[-1] * scale]
    )
    plain, ties = fd.solve_x1(net, x), fd.solve_x1(scaled, x)
    assert len(plain.x)
    assert np.array_equal(plain.indptr, ties.indptr)
    assert np.array_equal(plain.unique, ties.unique)
    assert np.allclose(plain.x, ties.x, rtol=1e-9)


def test_overflowing_difference_is_an_honest_cluster():
    net = network((2, 4, 4, 1), 1)
    wide = fd.SigmoidMLP(
        [*net.weights[:2], [[1.7e308, -1.7e308]] * 4], [*net.biases[:2], [1.0, 1.0]]
    )
    ties = fd.solve_x1(wide, [[0.3]])
    assert (ties.unique.tolist(), ties.lower.tolist(), ties.upper.tolist()) == (
        [False],
        [-INF],
        [INF],
    )


def test_coordinate_and_outputs():
    net, x = network((4, 8, 6, 3), 6), rows(5, 3)
    for coordinate in range(4):
        ties = assert_proven(net, x, coordinate=coordinate, outputs=(2, 1))
        turned = fd.solve_x1(net, x, coordinate=coordinate - 4, outputs=(1, 2))
        assert np.array_equal(ties.indptr, turned.indptr)
        assert np.array_equal(ties.unique, turned.unique)
        assert np.allclose(ties.x, turned.x, atol=1e-9)


def test_translation_and_permutation():
    net, x = network((2, 9, 9, 2), 7), rows(6, 1)
    order, shift = np.random.default_rng(0).permutation(9), 0.75
    (a, b, c), (p, q, r) = net.weights, net.biases
    same = fd.SigmoidMLP(
        [a[:, order], b[order][:, order], c[order]], [p[order] + shift * a[0][order], q[order], r]
    )
    plain, moved = fd.solve_x1(net, x), fd.solve_x1(same, x)
    assert len(plain.x) > 3
    assert np.array_equal(plain.indptr, moved.indptr)
    assert np.allclose(plain.x, moved.x + shift, atol=1e-8)


def test_wide_and_deep():
    net, x = network((3, 256, 256, 1), 8, 1.5, True), rows(3, 2)
    ties = fd.solve_x1(net, x, bounds=(-10, 10))
    assert ties.unique.all()
    assert_every_change_of_sign_is_listed(net, x, ties)
    net = network((3, 40, 40, 40, 40, 40, 2), 9, 1.5, True)
    ties = fd.solve_x1(net, x, bounds=(-10, 10))
    assert ties.unique.all()
    assert_every_change_of_sign_is_listed(net, x, ties)


def assert_every_change_of_sign_is_listed(net, x, ties):
    grid = np.linspace(-10, 10, 4001)
    for i, row in enumerate(x):
        f = net.margin(np.column_stack([grid, np.tile(row, (4001, 1))]))
        at = slice(ties.indptr[i], ties.indptr[i + 1])
        for k in np.flatnonzero(f[1:] * f[:-1] < 0):
            assert np.any((ties.lower[at] <= grid[k + 1]) & (ties.upper[at] >= grid[k]))


def comb(teeth):
    """Steep steps up and down along the input: about as many ties as there are teeth."""
    first = np.full((1, teeth), 60.0)
    second = np.array([[40.0, 0.0]]).repeat(teeth, 0)
    second[1::2, 0] = -40.0
    return fd.SigmoidMLP(
        [first, second, [[1.0], [0.0]]], [-60.0 * np.arange(teeth), [-20.0, 0.0], [-0.5]]
    )


def test_more_ties_than_a_first_buffer_holds():
    net = comb(64)
    w = net.weights
    net = fd.SigmoidMLP([np.vstack([w[0], np.zeros((1, 64))]), *w[1:]], net.biases)
    ties = fd.solve_x1(net, np.zeros(300))
    assert ties.unique.all()
    assert np.diff(ties.indptr).tolist() == [64] * 300
    alone = fd.solve_x1(net, 0.0)
    assert same_bits(ties.x, np.tile(alone.x, 300))
    assert np.allclose(alone.x, np.arange(64), atol=1e-3)


def test_work_is_bounded():
    hard = work(cancelling(network((2, 8, 8, 1), 1), 1e-13), rows(2, 1))
    assert np.all((hard > 1000) & (hard <= 20100))
    assert np.all(work(network((3, 16, 16, 16, 1), 1, 1.5, True), rows(50, 2)) < 200)


@pytest.mark.parametrize("xtol", [1e-3, 1e-9, 1e-12, 1e-300])
def test_enclosures_are_as_narrow_as_asked(xtol):
    net, x = network((2, 8, 8, 1), 3), rows(20, 1)
    ties = fd.solve_x1(net, x, xtol=xtol)
    width = ties.upper - ties.lower
    assert ties.unique.all()
    assert np.all(width <= max(xtol, 1e-9) * np.maximum(1, np.abs(ties.x)))
    assert verdict(net, x, ties) == [0, 0, 0]


def rounding_allows(net, x, xtol=1e-12):
    """How wide the enclosure of a tie at x may be.

    It is xtol, or twice the error of f over its slope, and some ulps.
    """
    solver = _kernels.DeepNet(margin_of(net, (0, 1)).compiled.program, 0)
    (_, error), (slope, _), *_ = solver.enclosure(np.empty((1, 0)), x, x, x)
    return max(xtol * max(1, abs(x)), 2 * error / abs(slope) + 2e-15 * abs(x))


def steep_second_layer():
    """Its tie at 0.85578661849547619, where f' is −7.1; f' nearly vanishes 0.15 further on."""
    W = [
        [[1.6948753956479068, -1.1196504520110484, -0.29774328648181164]],
        [
            [-149.41911463116577, 96.32033910058027, -48.96803300341738],
            [285.9691558489707, 12.708907424860104, 166.10478740224013],
            [-81.7476437852254, -235.8905747992525, 329.5948034286889],
        ],
        [[0.7247245553372019], [2.0922314600410408], [-0.25969056440253513]],
    ]
    b = [
        [-0.8892993298889309, -0.862015296060947, 2.749996098888843],
        [-52.99962549125955, 157.11578430096978, -360.58117473992957],
        [-1.9015594564370968],
    ]
    return fd.SigmoidMLP(W, b)


def test_slope_is_renewed_while_the_enclosure_shrinks():
    ties = assert_proven(steep_second_layer(), np.empty((1, 0)))
    (k,) = np.flatnonzero((ties.lower < 0.8558) & (ties.upper > 0.8557))
    assert ties.unique[k]
    assert ties.upper[k] - ties.lower[k] <= 1e-12
    assert ties.lower[k] < 0.8557866184954762 < ties.upper[k]


def test_unique_enclosures_are_as_narrow_as_rounding_allows():
    rng, found = np.random.default_rng(0), 0
    for _ in range(400):
        sizes = [1, *rng.integers(2, 6, rng.integers(2, 4)), 1]
        scales = [1.5, *10 ** rng.uniform(0, 3, len(sizes) - 3), 1.5]
        W = [s * rng.standard_normal(n) for s, n in zip(scales, pairwise(sizes), strict=True)]
        b = [s * rng.standard_normal(n) for s, n in zip(scales, sizes[1:], strict=True)]
        b[-1] -= (
            np.median(fd.SigmoidMLP(W, b).margin(rng.normal(0, 3, (40, 1))))
            + 0.01 * rng.standard_normal()
        )
        net = fd.SigmoidMLP(W, b)
        ties = fd.solve_x1(net, [[]])
        for k in np.flatnonzero(ties.unique):
            assert ties.upper[k] - ties.lower[k] <= 1.5 * rounding_allows(net, ties.x[k])
            found += 1
    assert found > 300


def test_one_hidden_layer_in_this_kernel_is_as_narrow():
    """A unit of slope 1e4, saturated at the tie, makes the curvature on the line useless there."""
    a, d = np.array([-1e4, 1.0, 1e-3, 1e-12]), np.array([-1.0, -1, 1, -1])
    net = fd.SigmoidMLP([a[None], d[:, None]], [[-3e3, -5.0, -4.0, -3.0], [0.5]])
    solver, listing = _kernels.DeepNet(margin_of(net, (0, 1)).compiled.program, 0), _kernels.Listing(1)
    solver.solve(np.empty((1, 0)), -INF, INF, 1e-12, solver.buffers(1), listing)
    _, x, lower, upper, unique = listing.arrays()
    assert unique.all()
    assert np.all(upper - lower <= [1.5 * rounding_allows(net, t) for t in x])


def test_tie_on_a_plateau_is_unique_though_it_is_wide():
    """f falls by 1e-9 over 40, f' < 0: the tie is known to 1e-5 only, and to be the only one."""
    net = fd.SigmoidMLP([[[1.0, 1.0]], [[60.0], [60.0]], [[1.0]]], [[20.0, -20.0], [-80.0], [0.0]])
    middle = float(Slice(net.weights, net.biases, []).exact(0.3))
    net = fd.SigmoidMLP(net.weights, [*net.biases[:-1], [-middle]])
    ties = assert_proven(net, np.empty((1, 0)))
    (k,) = np.flatnonzero((ties.lower < 0.3) & (ties.upper > 0.3))
    assert ties.unique[k]
    assert ties.upper[k] - ties.lower[k] > 1e-8


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_units_that_cancel_are_merged(layer, sign):
    """Copies and mirror images that cancel up to a constant change no tie and take no work."""
    net, x = network((2, 7, 6, 5, 1), 3), rows(4, 1)
    W, b = [w.copy() for w in net.weights], [v.copy() for v in net.biases]
    W[layer] = np.hstack([W[layer], sign * W[layer][:, :3]])
    b[layer] = np.append(b[layer], sign * b[layer][:3])
    extra = np.random.default_rng(0).standard_normal((3, W[layer + 1].shape[1]))
    W[layer + 1] = np.vstack([W[layer + 1][:3] + extra, W[layer + 1][3:], -sign * extra])
    if sign < 0:  # σ(−z) = 1 − σ(z)
        b[layer + 1] = b[layer + 1] - extra.sum(0)
    more = fd.SigmoidMLP(W, b)
    plain, ties = fd.solve_x1(net, x), assert_proven(more, x)
    assert len(plain.x) > 2
    assert np.array_equal(plain.indptr, ties.indptr)
    assert np.allclose(plain.x, ties.x, atol=1e-9)
    assert np.array_equal(work(net, x), work(more, x))


def test_merged_sums_are_exact():
    """1e16 + 1 − 1e16 is 1 in any order, and so over two outputs; units that sum to 0 vanish."""
    W = [
        [[1.0, 1, 1, 2]],
        [[1e16, 3.0], [1.0, 2.0], [-1e16, -5.0], [1.0, 1.0]],
        [[0.5, 1e16], [2.0, 1e16 + 2]],
    ]
    net = fd.SigmoidMLP(W, [[0.0] * 4, [0.0, 0.0], [0.0, 1.0]])
    weights, biases = distinct_units(margin_of(net, (0, 1)))
    assert [w.tolist() for w in weights] == [
        [[1.0, 2.0]],
        [[1.0, 0.0], [1.0, 1.0]],
        [[-1e16], [-1e16]],
    ]
    assert [b.tolist() for b in biases] == [[0.0, 0.0], [0.0, 0.0], [-1.0]]
    own = network((2, 5, 4, 2), 0)
    weights, biases = distinct_units(margin_of(own, (0, 1)))
    assert all(map(np.shares_memory, weights[:-1], own.weights[:-1]))
    huge = fd.SigmoidMLP([[[1.0, 1]], [[1.7e308], [1.7e308]], [[1.0]]], [[0, 0], [0.0], [0.0]])
    assert distinct_units(margin_of(huge, (0, 1)))[0][0].shape == (1, 2)


@pytest.mark.parametrize("noise", [0.0, 1e-14, 1e-12])
def test_a_stretch_where_units_cancel_does_not_take_the_work_from_the_rest(noise):
    """f = σ(3τ) − σ(2.5τ) ± 3σ(τ), τ = t − 0.75: cancelling units hide f far out.

    The tie at 0.75 is found all the same.
    """
    a, d = (
        np.array([1.0, 3.0, 1.0, 2.5]) * (1 + noise * np.array([0, 0, 1, 0])),
        np.array([3.0, 1.0, -3.0, -1.0]),
    )
    net = fd.SigmoidMLP([a[None], d[:, None]], [-0.75 * a, [0.0]])
    solver, listing = _kernels.DeepNet(margin_of(net, (0, 1)).compiled.program, 0), _kernels.Listing(1)
    solver.solve(np.empty((1, 0)), -INF, INF, 1e-12, solver.buffers(1), listing)
    _, _, lower, upper, unique = listing.arrays()
    (k,) = np.flatnonzero(unique)
    assert lower[k] <= 0.75 <= upper[k]
    near = ~unique & (upper > -4) & (lower < 6)
    assert np.all((upper - lower)[near] < 0.1)


# ---- no hidden layer -------------------------------------------------------------------------


def test_linear_network():
    rng = np.random.default_rng(3)
    net, x = fd.SigmoidMLP([rng.standard_normal((3, 2))], [rng.standard_normal(2)]), rows(50, 2)
    ties = assert_proven(net, x, coordinate=1)
    assert ties.unique.all()
    assert len(ties.x) == 50
    assert np.all(ties.upper - ties.lower < 1e-13 * np.maximum(1, np.abs(ties.x)) * 4)
    a, s = np.delete(net.weights[0], 1, axis=0), net.biases[0]
    exact = -(x @ (a[:, 0] - a[:, 1]) + s[0] - s[1]) / (net.weights[0][1, 0] - net.weights[0][1, 1])
    assert np.allclose(ties.x, exact, rtol=1e-13)
    inside = fd.solve_x1(net, x, coordinate=1, bounds=(-0.5, 1.0))
    assert np.array_equal(np.diff(inside.indptr), (exact >= -0.5) & (exact <= 1.0))


def test_linear_network_without_slope():
    flat = fd.SigmoidMLP([[[1.0, 1.0], [1.0, 2.0]]], [[0.5, 0.5]])
    assert len(fd.solve_x1(flat, [1.0, -2.0]).x) == 0
    ties = fd.solve_x1(flat, 0.0, bounds=(-1, 2))
    assert (ties.lower.tolist(), ties.upper.tolist(), ties.unique.tolist()) == (
        [-1.0],
        [2.0],
        [False],
    )
    on_bound = fd.solve_x1(fd.SigmoidMLP([[[1.0]]], [[0.0]]), np.empty((1, 0)), bounds=(0, 1))
    assert len(on_bound.x) == 1
    assert on_bound.lower[0] == 0


@pytest.mark.parametrize("bounds", [LINE, (-1.0, INF)])
def test_linear_network_with_its_tie_beyond_all_floats(bounds):
    ties = fd.solve_x1(fd.SigmoidMLP([[[1e-300], [-1.0]]], [[0.0]]), [[1e300]], bounds=bounds)
    assert (ties.lower.tolist(), ties.upper.tolist(), ties.unique.tolist()) == (
        [0.0],
        [INF],
        [False],
    )
    assert np.isfinite(ties.x).all()


@pytest.mark.parametrize("a", [1e-300, 1e-5, 1e300])
def test_linear_network_of_any_scale(a):
    net = fd.SigmoidMLP([[[a], [1.0]]], [[0.25]])
    ties = fd.solve_x1(net, [0.5])
    assert len(ties.x) == 1
    assert ties.lower[0] <= -0.75 / a <= ties.upper[0]


# ---- the contract ----------------------------------------------------------------------------


def every(ties):
    return [ties.indptr, ties.x, ties.lower, ties.upper, ties.unique, ties.complete]


def test_any_layout_gives_the_same_bits():
    net, x = network((3, 9, 5, 2), 3), rows(7, 2)
    before = snapshot(x)
    expected = every(fd.solve_x1(net, x))
    assert len(expected[1])
    for label, view in layouts(x):
        assert all(map(same_bits, expected, every(fd.solve_x1(net, view)))), label
    assert snapshot(x) == before


def test_threads_and_neighbours_do_not_change_the_bits():
    net, x = network((3, 16, 16, 16, 2), 3, 1.5, True), rows(400, 2)
    results = machines.by_threads(lambda: every(fd.solve_x1(net, x)), 1, 2, 5)
    for other in results[1:]:
        assert all(map(same_bits, results[0], other))
    alone = [fd.solve_x1(net, x[i : i + 1]) for i in range(20)]
    assert same_bits(np.concatenate([t.x for t in alone]), results[0][1][: results[0][0][20]])


def test_kernels_refuse_arrays_that_do_not_fit():
    program = margin_of(network((3, 4, 4, 1), 0), (0, 1)).compiled.program
    X = np.ones((2, 2))
    solver = _kernels.DeepNet(program, 0)

    def solve(X, rows=2):
        buffers = solver.buffers(rows)
        solver.solve(X, -1.0, 1.0, 1e-9, buffers, _kernels.Listing(len(X)))

    bad = (X[:, :1], X[0], X[None], X.astype(np.float32), X.astype(">f8"), None)
    calls = [
        *(lambda X=b: solve(X) for b in bad),
        *(lambda X=b: solver.enclosure(X, 0.0, 1.0, 2.0) for b in (*bad, X, X[:0])),
        *(lambda X=b: solver.effort(X, 0.0, 1.0, 1e-9) for b in bad),
        lambda: solver.enclosure(X[:1], 0.0, 2.0, 1.0),
        lambda: solver.enclosure(X[:1], np.nan, 2.0, 3.0),
        lambda: _kernels.DeepNet(program, 3),
        lambda: _kernels.DeepNet(program, -1),
        lambda: _kernels.DeepNet(None, 0),
        lambda: _kernels.DeepNet(_program(network((3, 4, 2), 0)), 0),
        lambda: _kernels.DeepNet(_program(network((3, 1), 0)), 0).enclosure(
            X[:1], 0.0, 1.0, 2.0
        ),
    ]
    for k, call in enumerate(calls):
        with pytest.raises((TypeError, ValueError, IndexError, AttributeError)):
            pytest.fail(f"call {k} returned {call()}")
    assert not hasattr(solver, "work")  # nothing that a test sets outlives its call


@pytest.mark.skipif(not floating_point.AVAILABLE, reason="no control register to set here")
@pytest.mark.parametrize("state", floating_point.STATES)
def test_every_floating_point_state_gives_the_same_bits(state):
    nets = [
        network((3, 16, 16, 2), 3),
        network((2, 6, 5, 4, 1), 4),
        network((2, 1), 5),
        steep_second_layer(),
    ]
    solvers = [solver_of(margin_of(net, (0, 1)), 0)[0] for net in nets]
    inputs = [rows(60, net.n_inputs - 1) for net in nets]

    def everything():
        results = []
        for solver, x in zip(solvers, inputs, strict=True):
            listing = _kernels.Listing(len(x))
            solver.solve(x, -INF, INF, 1e-12, solver.buffers(len(x)), listing)
            results += listing.arrays()
        return [*results, *map(np.array, solvers[0].enclosure(inputs[0][:1], -0.5, 0.1, 0.3))]

    expected = everything()

    def in_state():
        with floating_point.in_state(state):
            return everything()

    for results in machines.by_threads(in_state, 1, 3):
        assert all(map(same_bits, results, expected))


def test_no_rows():
    ties = fd.solve_x1(network((3, 4, 4, 2), 0), np.empty((0, 2)))
    assert len(ties) == len(ties.x) == 0


def test_cpu_levels_agree():
    machines.assert_levels_agree("""
import hashlib
import numpy as np
import fastderiv as fd
rng = np.random.default_rng(0)
for sizes in ((3, 16, 16, 16, 1), (2, 5, 9, 2), (2, 40, 33, 1)):
    weights = [rng.standard_normal(n) for n in zip(sizes, sizes[1:])]
    net = fd.SigmoidMLP(weights, [rng.standard_normal(n) for n in sizes[1:]])
    shift = np.median(net.margin(rng.standard_normal((50, sizes[0]))))
    net = fd.SigmoidMLP(weights, (*net.biases[:-1], net.biases[-1] - shift
                        * np.eye(sizes[-1])[0]))
    ties = fd.solve_x1(net, rng.standard_normal((30, sizes[0] - 1)))
    assert len(ties.x) and ties.unique.all()
    bits = b"".join(a.tobytes() for a in (ties.x, ties.lower, ties.upper, ties.unique))
    print(hashlib.sha256(bits).hexdigest(), ties.x.sum())
""")


def test_interrupt_is_answered():
    net = cancelling(network((2, 64, 64, 1), 1, 1.5, True), 1e-13)
    assert seconds_until_answered(lambda: fd.solve_x1(net, rows(1000, 1))) < ALLOWED


@pytest.mark.slow
def test_interrupt_is_answered_within_one_enclosure_of_a_wide_network():
    n, rng = 6000, np.random.default_rng(0)
    net = fd.SigmoidMLP(
        [
            rng.standard_normal((1, n)),
            rng.standard_normal((n, n)) / 77,
            rng.standard_normal((n, 1)),
        ],
        [rng.standard_normal(n), rng.standard_normal(n), [0.1]],
    )
    solver_of(margin_of(net, (0, 1)), 0)  # packed
    for delay in (0.2, 0.27):
        assert (
            seconds_until_answered(lambda: fd.solve_x1(net, np.empty((50, 0))), delay=delay)
            < ALLOWED
        )


def cancelling(net, noise):
    """Half of the last hidden layer's units, each with a copy that, but for noise, cancels it."""
    rng, half = np.random.default_rng(3), net.hidden_widths[-1] // 2
    w, b = net.weights[-2][:, :half], net.biases[-2][:half]
    near = 1 + noise * rng.standard_normal((w.shape[0], 2 * half))
    out = np.tile(net.weights[-1][:half], (2, 1)) * np.repeat([[1.0], [-1.0]], half, 0)
    return fd.SigmoidMLP(
        [*net.weights[:-2], np.tile(w, 2) * near, out], [*net.biases[:-2], np.tile(b, 2), [0.0]]
    )


def test_ties_of_a_trained_network_change_the_prediction():
    neural = pytest.importorskip("sklearn.neural_network")
    from sklearn.datasets import load_iris
    from sklearn.preprocessing import StandardScaler

    X, y = load_iris(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    model = neural.MLPClassifier(
        (8, 8), activation="logistic", solver="lbfgs", max_iter=60, tol=1e-2, random_state=0
    ).fit(X, y > 0)
    net = fd.SigmoidMLP.from_sklearn(model)
    ties = fd.solve_x1(net, X[:, [0, 1, 3]], coordinate=2, bounds=(-20, 20))
    assert ties.unique.all()
    assert len(ties.x) > 50
    others, margins = np.repeat(X[:, [0, 1, 3]], np.diff(ties.indptr), axis=0), []
    for end in (ties.lower - 1e-7, ties.upper + 1e-7):
        at = np.insert(others, 2, end, axis=1)
        p = model.predict_proba(at)[:, 1]
        assert np.all(np.abs(p - 0.5) < 1e-4)
        margins.append(net.margin(at))
        assert np.allclose(expit(margins[-1]), p, atol=1e-12)
    assert np.all(margins[0] * margins[1] < 0)


# ---- at length -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "scale", "fan"),
    [*GENERIC, ((3, 16, 16, 1), 30.0, False), ((3, 16, 16, 16, 1), 4.0, True)],
)
def test_thousands_of_rows(sizes, scale, fan):
    undecided = clusters = 0
    for seed in range(100, 160):
        net, x = network(sizes, seed, scale, fan), rows(5, sizes[0] - 1, seed)
        ties = fd.solve_x1(net, x)
        assert_in_order(ties)
        false, missed, unknown = verdict(net, x, ties)
        assert (false, missed) == (0, 0)
        undecided, clusters = undecided + unknown, clusters + np.count_nonzero(~ties.unique)
    assert undecided <= 3
    assert clusters <= (0 if scale < 10 else 10)


def test_units_that_rounding_makes_alike_are_not_merged():
    """The sums 1 + 1 and 1 + 2**-54 + … of units round alike, but exactly they differ, and tie."""
    net = fd.SigmoidMLP(
        [[[1.0, 1.0]], [[1.0, 1.0], [2.0**-54, 0.0]], [[1.0], [-1.0]]], [[0, 0], [0, 0], [-5e-18]]
    )
    ties = fd.solve_x1(net, [[]])
    assert any(
        lower <= 0 and upper >= -5 for lower, upper in zip(ties.lower, ties.upper, strict=True)
    )
    assert not fd.decision_intervals(net, [[]]).proven.all()
    assert not fd.counterfactuals(net, [0.0]).certified.all()
