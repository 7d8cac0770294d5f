"""trace_boundary: enclosures against mpmath, curves against known ones and fine grids."""

import pickle
from itertools import pairwise

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import cKDTree

import fastderiv as fd
from fastderiv import reference as ref
from fastderiv.boundary.plane import _cells, _chords
from fastderiv.boundary.plane._section import section_of
from helpers.awkward import layouts, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads

BOX = ((-3.0, 3.0), (-3.0, 3.0))
DIAGONAL = 6 * np.sqrt(2)


def network(sizes, seed, scale=2.0, through=(0.3, -0.2)):
    """Random, with the margin shifted so that it is zero at a point of the plane."""
    rng = np.random.default_rng(seed)
    weights = [
        rng.normal(0, scale if k == 0 else 3 / np.sqrt(m), (m, n))
        for k, (m, n) in enumerate(pairwise(sizes))
    ]
    biases = [rng.normal(0, scale, n) for n in sizes[1:]]
    point = np.append(through, np.zeros(sizes[0] - 2))
    biases[-1][0] -= fd.SigmoidMLP(weights, biases).margin([point])[0]
    return fd.SigmoidMLP(weights, biases)


def bumps(centres, width=0.5, steep=12.0, level=0.75):
    """f > 0 on a hill around each centre: four units of the first layer, one of the second."""
    first, shift, second = [], [], np.zeros((4 * len(centres), len(centres)))
    for k, (x, y) in enumerate(centres):
        for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            first.append((steep * a, steep * b))
            shift.append(steep * (width - a * x - b * y))
        second[4 * k : 4 * k + 4, k] = steep
    weights = [np.transpose(first), second, np.ones((len(centres), 1))]
    return fd.SigmoidMLP(weights, [shift, np.full(len(centres), -3.5 * steep), [-level]])


def ring():
    """f = σ(4x + 4) + σ(4 − 4x) + σ(4y + 4) + σ(4 − 4y) − 3.5.

    Its boundary is a closed curve with all symmetries of the square.
    """
    return fd.SigmoidMLP(
        [[[4.0, -4, 0, 0], [0, 0, 4, -4]], np.ones((4, 1))], [[4.0, 4, 4, 4], [-3.5]]
    )


def plane_curve(net, points, coordinates=(0, 1), at=None):
    X = np.tile(np.zeros(net.n_inputs) if at is None else at, (len(points), 1))
    X[:, list(coordinates)] = points
    return X


def residual(net, points, outputs=(0, 1), **plane):
    """|margin|/|∇margin| in the plane."""
    X = plane_curve(net, points, **plane)
    g = net.margin_gradient(X, outputs)[:, list(plane.get("coordinates", (0, 1)))]
    return np.abs(net.margin(X, outputs)) / np.hypot(*g.T)


def dense(curves, step=6e-3):
    """Points on the chords, no further apart than `step`."""
    parts = [np.zeros((0, 2))]
    for curve in curves:
        for a, b in pairwise(curve):
            n = int(np.ceil(np.hypot(*(b - a)) / step)) + 1
            parts.append(a + np.linspace(0, 1, n)[:, None] * (b - a))
    return np.concatenate(parts)


def apart(first, second):
    """How far the curves of two results are from each other at most."""
    a, b = dense(first.points), dense(second.points)
    return max(cKDTree(a).query(b)[0].max(), cKDTree(b).query(a)[0].max())


def signs(net, n, box=BOX):
    x, y = (np.linspace(*side, n) for side in box)
    X = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)
    return X, (net.margin(X.reshape(-1, 2)) > 0).reshape(n, n)


def regions(positive):
    """Disjoint curves that are closed or end on the box cut it into one part more than they are."""
    return ndimage.label(positive)[1] + ndimage.label(~positive)[1]


def on_box(points, box=BOX):
    return (points == np.transpose(box)[:, None]).any(axis=(0, 2))


# ---- enclosures ---------------------------------------------------------------------------------


def exact(net, x, y):
    """f and its gradient with 80 digits."""
    with mpmath.workdps(80):
        values, slopes = (
            [mpmath.mpf(x), mpmath.mpf(y)],
            [(mpmath.mpf(1), mpmath.mpf(0)), (mpmath.mpf(0), mpmath.mpf(1))],
        )
        for k, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
            w, n = [[mpmath.mpf(v) for v in row] for row in w.tolist()], len(b)
            z = [b[o] + mpmath.fsum(w[i][o] * v for i, v in enumerate(values)) for o in range(n)]
            g = [
                [mpmath.fsum(w[i][o] * s[a] for i, s in enumerate(slopes)) for a in (0, 1)]
                for o in range(n)
            ]
            if k < len(net.weights) - 1:
                rest = [1 / (1 + mpmath.exp(v)) for v in z]  # 1 − σ would cancel
                z = [1 / (1 + mpmath.exp(-v)) for v in z]
                g = [[v * r * s for s in pair] for v, r, pair in zip(z, rest, g, strict=True)]
            values, slopes = z, g
        (f, *others), (gf, *go) = values, slopes
        return (f - others[0], gf[0] - go[0][0], gf[1] - go[0][1]) if others else (f, *gf)


def points_on_curves(net, count):
    points = np.concatenate(
        [[(0.3, -0.2)] * count, *fd.trace_boundary(net, ((-2, 2), (-2, 2))).points]
    )
    return points[:: len(points) // count][:count]


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("sizes", [(2, 2), (2, 1, 1), (2, 3, 2), (2, 11, 1), (2, 4, 3, 2)])
def test_enclosures_hold_the_exact_values(sizes, scale):
    """No gap may exceed what mpmath says, over points too: intervals are as narrow as rounding."""
    net, rng = network(sizes, len(sizes), scale), np.random.default_rng(7)
    section = section_of(net, ((-2, 2), (-2, 2)), (0, 1), None, (0, 1))
    lo = rng.uniform(-1, 1, (2, 24)) * 2.0 ** rng.integers(-9, 1, 24)
    hi = np.minimum(lo + np.where(np.arange(24) < 12, 0, 2.0 ** rng.integers(-30, 0, (2, 24))), 2)
    lo[:, :6] = hi[:, :6] = points_on_curves(net, 6).T  # where terms cancel
    boxes = np.stack([lo[0], hi[0], lo[1], hi[1]])
    out = section.judge(boxes)
    assert (out[:3] != 0).any()
    for k, (x0, x1, y0, y1) in enumerate(boxes.T):
        inside = [(x0, y0), (x1, y1), (x0, y1), tuple(rng.uniform((x0, y0), (x1, y1)))]
        for x, y in inside[: 1 if k < 12 else 4]:
            values = exact(net, x, y)
            for gap, value in zip(out[:3, k], values, strict=True):
                assert gap == 0 or (abs(value) >= abs(gap) and (value > 0) == (gap > 0))
            assert abs(values[0]) <= out[3, k]
            assert abs(section.margin(np.array([x, y])) - values[0]) <= section.rounding


def test_enclosures_know_the_sign_of_a_slope_down_to_the_smallest_numbers():
    """One unit, far from its centre: ∂f/∂x = 10 σ' is about 1e-260, and nothing cancels."""
    net = fd.SigmoidMLP([[[10.0], [-10.0]], [[1.0]]], [[0.0], [0.5]])
    section = section_of(net, ((-100, 100), (-100, 100)), (0, 1), None, (0, 1))
    f, fx, fy, largest = section.judge(np.array([[50.0, 60, 0, 1]]).T)
    assert 1e-260 < fx[0] < 2.7e-260 and fy[0] == -fx[0] and 1.49 < f[0] <= 1.5 <= largest[0] < 1.51


def test_enclosures_are_the_same_in_any_lane_and_at_any_position():
    net = network((2, 5, 4, 2), 3)
    section = section_of(net, BOX, (0, 1), None, (0, 1))
    lo = np.random.default_rng(1).uniform(-3, 2, (2, 37))
    boxes = np.stack([lo[0], lo[0] + 0.1, lo[1], lo[1] + 0.2])
    together = section.judge(boxes)
    alone = np.concatenate([section.judge(boxes[:, k : k + 1]) for k in range(37)], axis=1)
    assert same_bits(together, alone) and section.judge(boxes[:, :0]).shape == (4, 0)


# ---- known curves -------------------------------------------------------------------------------


def test_linear_boundary_is_a_straight_line_between_the_edges():
    curves = fd.trace_boundary(
        fd.SigmoidMLP([[[1.0, -1.0], [0.0, 1.0]]], [[0.0, 0.25]]), ((-1, 1), (-1, 1))
    )
    (line,) = curves.points  # 2x − y − 1/4 = 0
    assert curves.certified and not curves.closed.any()
    assert np.abs(2 * line[:, 0] - line[:, 1] - 0.25).max() < 1e-15
    assert np.allclose(
        line[np.argsort(line[:, 1])[[0, -1]]], [(-0.375, -1.0), (0.625, 1.0)], rtol=1e-15
    )
    assert line[[0, -1], 1].tolist() in ([-1.0, 1.0], [1.0, -1.0])


def test_ring_is_one_closed_curve_around_its_middle():
    curves = fd.trace_boundary(ring(), ((-2, 2), (-2, 2)))
    (loop,) = curves.points
    assert (
        curves.certified and curves.closed.tolist() == [True] and np.array_equal(loop[0], loop[-1])
    )
    angle = np.unwrap(np.arctan2(loop[:, 1], loop[:, 0]))
    assert np.isclose(angle[-1] - angle[0], 2 * np.pi)  # f > 0 inside, on the left
    half = np.log(1.9) / 4  # on the axes: σ(4x + 4) + σ(4 − 4x) = 3.5 − 2 σ(4)
    (root,) = fd.find_x1(ring(), [0.0], (0, 2)).x
    assert np.isclose(np.abs(loop[:, 0]).max(), root, rtol=1e-4) and root > half


@pytest.mark.parametrize("count", [2, 5])
def test_every_hill_has_its_own_closed_curve(count):
    angles = 2 * np.pi * np.arange(count) / count
    centres = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    curves = fd.trace_boundary(bumps(centres), BOX)
    assert curves.certified and curves.closed.tolist() == [True] * count
    middles = np.array([(p.min(axis=0) + p.max(axis=0)) / 2 for p in curves.points])
    assert cKDTree(middles).query(centres)[0].max() < 1e-3


def test_many_parallel_lines():
    """Steps up and down at ±1, ±2, …: as many lines, tilted."""
    at = np.arange(-5, 6)
    net = fd.SigmoidMLP(
        [[np.full(11, 30.0), np.full(11, 3.0)], ((-1.0) ** at)[:, None]], [-30.0 * at, [0.5]]
    )
    curves = fd.trace_boundary(net, ((-5.5, 5.5), (-1, 1)))
    assert curves.certified and len(curves.points) == 11 and not curves.closed.any()
    x = sorted(
        p[np.abs(p[:, 1]).argmin(), 0] + p[np.abs(p[:, 1]).argmin(), 1] / 10 for p in curves.points
    )
    assert np.allclose(x, at, atol=1e-3)


@pytest.mark.parametrize("unit", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, -1.0)])
def test_symmetric_networks_are_certified(unit):
    """The boundary runs through the box's middle or along its axes, and through its corners."""
    net = fd.SigmoidMLP([np.transpose([unit]), [[1.0]]], [[0.0], [-0.5]])
    curves = fd.trace_boundary(net, ((-1, 1), (-1, 1)))
    assert (
        curves.certified
        and len(curves.points) == 1
        and residual(net, curves.points[0]).max() <= 1e-11
    )
    ends = curves.points[0][[0, -1]]
    assert np.allclose(np.abs(ends), np.abs(unit)[::-1], atol=1e-11)


def test_curve_along_an_edge_of_the_box():
    net = fd.SigmoidMLP([[[2.0], [0.0]], [[1.0]]], [[0.0], [-0.5]])
    for box in (((0, 1), (-1, 1)), ((-1, 0), (-1, 1))):
        curves = fd.trace_boundary(net, box)
        (line,) = curves.points
        assert (
            curves.certified
            and np.abs(line[:, 0]).max() < 1e-15
            and sorted(line[[0, -1], 1]) == [-1, 1]
        )


def test_ring_that_touches_the_edges_from_within():
    (loop,) = fd.trace_boundary(ring(), ((-2, 2), (-2, 2))).points
    (r,) = fd.find_x1(ring(), [0.0], (0, 2)).x
    curves = fd.trace_boundary(ring(), ((-r, r), (-r, r)))
    assert curves.certified and curves.closed.tolist() == [True]
    assert (
        apart(curves, fd.BoundaryCurves([loop], np.array([True]), True, np.zeros((0, 2, 2)))) < 0.01
    )


def test_box_that_cuts_the_ring_into_open_curves():
    curves = fd.trace_boundary(ring(), ((-1.2, 1.2), (-0.5, 2.0)))
    assert curves.certified and curves.closed.tolist() == [False]
    ends = curves.points[0][[0, -1]]
    assert (ends[:, 1] == -0.5).all() and np.allclose(ends[0, 0], -ends[1, 0])
    four = fd.trace_boundary(ring(), ((-0.9, 0.9), (-0.9, 0.9)))
    assert len(four.points) in (0, 4) and all(
        on_box(p[[0, -1]], ((-0.9, 0.9),) * 2).all() for p in four.points
    )


def test_saddle_is_left_open_and_the_curves_that_run_into_it_are_given():
    net = fd.SigmoidMLP(
        [[[3.0, -3, 0, 0], [0, 0, 3, -3]], [[1.0], [1], [-1], [-1]]], [[2.0, 2, 2, 2], [0.0]]
    )
    curves = fd.trace_boundary(net, ((-2, 2), (-1.9, 2)))
    assert not curves.certified and len(curves.points) == 4 and not curves.closed.any()
    assert (
        np.abs(curves.undecided).max() < 1e-5
        and (curves.undecided[..., 0] < curves.undecided[..., 1]).all()
    )
    for points in curves.points:  # on the diagonals, from the box to the saddle
        assert np.abs(np.abs(points[:, 0]) - np.abs(points[:, 1])).max() < 2e-6
        assert (
            on_box(points[[0, -1]], ((-2, 2), (-1.9, 2))).sum() == 1
            and np.abs(points[[0, -1]]).max(axis=1).min() < 1e-5
        )


def test_curves_that_nearly_cross_are_told_apart_or_left_open():
    """f = hill(x) − hill(y) + ε.

    Above and below the saddle its two curves join other corners of the box.
    """
    for k in range(1, 16):
        for sign in (1, -1):
            last = [[1.0], [1], [-1], [-1]]
            net = fd.SigmoidMLP(
                [[[3.0, -3, 0, 0], [0, 0, 3, -3]], last], [[2.0, 2, 2, 2], [sign * 10.0**-k]]
            )
            curves = fd.trace_boundary(net, ((-2, 2), (-1.9, 2)))
            assert curves.certified or k > 11
            if curves.certified:
                ends = np.sign([p[[0, -1]] for p in curves.points])[..., 0 if sign > 0 else 1]
                assert len(curves.points) == 2 and sorted(map(tuple, ends)) == [(-1, -1), (1, 1)]
            else:
                assert np.abs(curves.undecided).max() < 1e-3 and len(curves.points) >= 2


def test_small_closed_curves_are_found_or_left_open_and_never_invented():
    """A hill whose top is ε above zero or below it: a loop of size √ε or none."""
    with mpmath.workdps(40):
        top = 4 / (1 + mpmath.exp(-4))
        for k in range(1, 16):
            for sign in (1, -1):
                shift = float(sign * mpmath.mpf(10) ** -k - top)
                height = float(
                    top + mpmath.mpf(shift)
                )  # of the network's own top, which is not quite ε
                net = fd.SigmoidMLP([ring().weights[0], np.ones((4, 1))], [[4.0] * 4, [shift]])
                curves = fd.trace_boundary(net, ((-2, 2), (-1.7, 2)))
                assert curves.certified or k > 11
                if curves.certified:
                    assert curves.closed.tolist() == [True] * (height > 0)
                    assert all(
                        abs(np.ptp(p[:, 0]) / np.sqrt(height) - 3.8) < 0.4
                        for p in curves.points
                        if k > 2
                    )
                else:
                    assert np.abs(curves.undecided).max() < 1e-3


# ---- every curve, and nothing else --------------------------------------------------------------


def check_against_grid(net, curves, n=220):
    X, positive = signs(net, n)
    if regions(positive) != 1 + len(curves.points):
        _, fine = signs(net, 8 * n)  # a neck or a loop below the grid
        assert regions(fine) == 1 + len(curves.points)
    change = np.concatenate([
        ((X[1:] + X[:-1]) / 2)[positive[1:] != positive[:-1]],
        ((X[:, 1:] + X[:, :-1]) / 2)[positive[:, 1:] != positive[:, :-1]],
    ])  # fmt: skip
    cell, traced = np.hypot(*(X[1, 1] - X[0, 0])), dense(curves.points, 0.02)
    assert len(change) and cKDTree(traced).query(change)[0].max() < cell
    large = dense([p for p in curves.points if np.ptp(p, axis=0).max() > 4 * cell])
    assert not len(large) or cKDTree(change).query(large)[0].max() < 3 * cell


def check_points(net, curves):
    for points, closed in zip(curves.points, curves.closed, strict=True):
        assert residual(net, points).max() <= 1e-10
        assert np.array_equal(points[0], points[-1]) if closed else on_box(points[[0, -1]]).all()
        assert (np.diff(points, axis=0) != 0).any(axis=1).all()
        chords = dense([points], 0.02)
        assert residual(net, chords).max() < 0.002 * DIAGONAL  # measured: 0.03 %
        middle, ahead = points[:-1] / 2 + points[1:] / 2, np.diff(points, axis=0)
        g = net.margin_gradient(points[:-1] * 0.999 + points[1:] * 0.001)
        assert (ahead[:, 0] * g[:, 1] > ahead[:, 1] * g[:, 0]).mean() > 0.99 and len(middle)


NETS = [
    ((2, 3, 2), 2.0),
    ((2, 3, 2), 5.0),
    ((2, 6, 3), 3.0),
    ((2, 16, 1), 3.0),
    ((2, 6, 6, 2), 3.0),
]


@pytest.mark.parametrize("sizes,scale", NETS, ids=str)
def test_twenty_networks_against_a_fine_grid(sizes, scale):
    for seed in range(20):
        net = network(sizes, seed, scale)
        curves = fd.trace_boundary(net, BOX)
        assert curves.certified and len(curves.points)
        check_against_grid(net, curves)
        check_points(net, curves)


@pytest.mark.slow
@pytest.mark.parametrize("sizes,scale", [*NETS, ((2, 30, 2), 4.0), ((2, 5, 5, 5, 2), 4.0)], ids=str)
def test_many_networks_against_a_fine_grid(sizes, scale):
    for seed in range(100, 300):
        net = network(sizes, seed, scale)
        curves = fd.trace_boundary(net, BOX)
        assert curves.certified or np.abs(net.margin(curves.undecided.mean(axis=2))).max() < 1e-11
        if curves.certified:
            check_against_grid(net, curves)
            check_points(net, curves)


@pytest.mark.parametrize("sizes", [(2, 3, 2), (2, 4, 3, 1)])
def test_curves_are_those_of_the_reference(sizes):
    for seed in range(2):
        net = network(sizes, seed, 2.5)
        curves = fd.trace_boundary(net, BOX)
        theirs = ref.trace_boundary(ref.SigmoidMLP(net.weights, net.biases), BOX)
        assert sorted(curves.closed) == sorted(theirs.closed) and apart(curves, theirs) < 0.02
        assert not theirs.certified


# ---- how far chords are from the curve ----------------------------------------------------------


def from_chords(points, curves, width):
    """How far the points are from the nearest chord, the box being a square of side 1."""
    a, b = (
        np.concatenate([p[cut] for p in curves.points]) / width
        for cut in (slice(None, -1), slice(1, None))
    )
    d, nearest = b - a, []
    for part in np.array_split(points / width, len(points) // 64 + 1):
        e = part[:, None] - a
        t = np.clip((e * d).sum(-1) / np.maximum((d * d).sum(-1), 1e-300), 0, 1)
        nearest.append(np.linalg.norm(e - t[..., None] * d, axis=-1).min(1))
    return np.concatenate(nearest)


def assert_chords_are_close(net, curves, x, box):
    """Certified ties along lines x₁ = x and x₂ = x are within 0.1 % of the box of the chords."""
    lo, hi = np.transpose(np.array(box, float))
    worst, count = 0.0, 0
    for c in (0, 1):
        at = np.clip(x, lo[c], hi[c])
        ties = fd.solve_x1(net, at, coordinate=1 - c, bounds=box[1 - c])
        row = np.repeat(np.arange(len(at)), np.diff(ties.indptr))[ties.unique]
        points = np.stack([at[row], ties.x[ties.unique]], axis=1)[:, :: 1 - 2 * c]
        if len(points):
            worst, count = (
                max(worst, from_chords(points, curves, hi - lo).max()),
                count + len(points),
            )
    assert worst <= 1e-3 + 1e-9
    return count


def spiky(seed):
    """A nearly straight boundary with up to four bumps, of any width down to 1e-6, and where."""
    rng = np.random.default_rng(seed)
    gentle, base = 10.0 ** rng.uniform(-2, 0), rng.uniform(-0.5, 0.5)
    first, shift, last, where = [(0.0, gentle)], [0.0], [4 / gentle], []
    for _ in range(rng.integers(1, 5)):
        width, height = (
            10.0 ** rng.uniform(-6, -0.5),
            rng.choice([-1, 1]) * 10.0 ** rng.uniform(-3, -0.3),
        )
        at, steep, tilt = (
            rng.uniform(-0.9, 0.9),
            rng.uniform(4, 60) / width,
            rng.choice([0, 0, rng.normal() * 0.3]),
        )
        first += [(steep, steep * tilt)] * 2
        shift += [-steep * at, -steep * (at + width)]
        last += [-height, height]
        where += list(at + width * np.linspace(-1, 2, 40))
    level = 2 / gentle * (1 + np.tanh(gentle * base / 2))
    return fd.SigmoidMLP(
        [np.transpose(first), np.reshape(last, (-1, 1))], [shift, [-level]]
    ), np.array([*where, *rng.uniform(-1, 1, 80)])


def test_a_narrow_spike_is_not_missed():
    h, base, width, a, e = 0.06, 0.0375, 1e-3, 0.3123, 0.1
    D, k = 4 / e, 40 / width
    c = -D * 0.5 * (1 + np.tanh(e * base / 2))
    net = fd.SigmoidMLP(
        [[[0.0, k, k], [e, 0, 0]], [[D], [-h], [h]]], [[0, -k * a, -k * (a + width)], [c]]
    )
    curves = fd.trace_boundary(net, ((-1, 1), (-1, 1)))
    assert curves.certified
    assert curves.points[0][:, 1].max() > base + h - 2e-3
    across = fd.trace_boundary(net, ((-1, 1), (-1, 1)), coordinates=(1, 0))
    assert across.points[0][:, 0].max() > base + h - 2e-3


def test_chords_are_close_to_curves_with_spikes():
    checked = 0
    for seed in range(20):
        net, x = spiky(seed)
        curves = fd.trace_boundary(net, ((-1, 1), (-1, 1)))
        if curves.certified and sum(map(len, curves.points)) < 4000:
            checked += assert_chords_are_close(net, curves, x, ((-1, 1), (-1, 1)))
    assert checked > 800


@pytest.mark.slow
def test_chords_are_close_to_many_curves():
    certified = []
    for seed in range(100, 400):
        net, x = spiky(seed)
        curves = fd.trace_boundary(net, ((-1, 1), (-1, 1)))
        certified.append(curves.certified)
        if curves.certified and sum(map(len, curves.points)) < 30_000:
            assert_chords_are_close(net, curves, x, ((-1, 1), (-1, 1)))
        assert sum(map(len, curves.points)) < 400_000
    assert np.mean(certified) > 0.7
    for seed in range(200):
        net = network(
            ((2, 3, 2), (2, 9, 2), (2, 5, 4, 2))[seed % 3],
            seed,
            10.0 ** np.random.default_rng(seed).uniform(0, 5),
        )
        curves = fd.trace_boundary(net, BOX)
        if curves.certified and len(curves.points):
            assert_chords_are_close(
                net, curves, np.random.default_rng(seed).uniform(-3, 3, 150), BOX
            )


@pytest.mark.parametrize(
    "sizes,scale", [((2, 3, 2), 2.0), ((2, 16, 1), 5.0), ((2, 5, 5, 2), 3.0), ((2, 5, 2), 20.0)]
)
def test_chords_are_close_to_curves(sizes, scale):
    for seed in range(6):
        net = network(sizes, seed, scale)
        curves = fd.trace_boundary(net, BOX)
        assert curves.certified
        assert (
            assert_chords_are_close(
                net, curves, np.random.default_rng(seed).uniform(-3, 3, 150), BOX
            )
            > 20
        )


def test_chords_of_a_box_much_smaller_than_the_tolerance():
    net = network((2, 4, 2), 1)
    box = ((0.3 - 1e-8, 0.3 + 1e-8), (-0.2 - 1e-8, -0.2 + 1e-8))
    curves = fd.trace_boundary(net, box, tol=1.0)
    (a, b) = curves.points[0][[0, -1]]
    ahead, g = b - a, net.margin_gradient([(0.3, -0.2)])[0]
    assert abs(ahead @ g) < 1e-2 * np.hypot(*ahead) * np.hypot(*g)  # along the boundary


def test_chords_that_are_never_proven_are_listed(monkeypatch):
    net, _ = spiky(3)
    all_of_it = fd.trace_boundary(net, ((-1, 1), (-1, 1)))
    assert all_of_it.certified
    monkeypatch.setattr(
        _chords,
        "_off_by_slopes",
        lambda section, p, tol: (np.full(len(p.axis), np.inf), p.lo, p.hi),
    )
    monkeypatch.setattr(
        _chords, "_off_by_range", lambda section, p, tol: np.full(len(p.axis), np.inf)
    )
    monkeypatch.setattr(_chords, "_PIECES", 8)
    loose = fd.trace_boundary(net, ((-1, 1), (-1, 1)))
    assert not loose.certified
    assert (loose.undecided[..., 0] < loose.undecided[..., 1]).all()
    points = np.concatenate(loose.points)
    inside = (
        (points[:, None] >= loose.undecided[..., 0]) & (points[:, None] <= loose.undecided[..., 1])
    ).all(axis=2)
    assert inside.any(axis=1).all()
    assert len(loose.points) == len(all_of_it.points)


def test_points_that_rounding_may_move_are_not_certified():
    for gentle in (1e-9, 1e-10, 1e-11, 1e-12, 1e-13):
        net = fd.SigmoidMLP([[[0.0], [gentle]], [[1.0]]], [[0.7], [-1 / (1 + np.exp(-0.7))]])
        curves = fd.trace_boundary(net, ((-1, 1.1), (-1, 1.2)))
        with mpmath.workdps(50):  # gentle·y + 0.7 = logit(level)
            level = -mpmath.mpf(net.biases[1][0])
            y = float((mpmath.log(level / (1 - level)) - mpmath.mpf(0.7)) / mpmath.mpf(gentle))
        if curves.certified:
            assert np.abs(curves.points[0][:, 1] - y).max() < 2.0**-13 * 2.2
        assert curves.certified == (gentle > 2e-11)


def test_enclosures_of_slopes_hold_the_exact_ones():
    for sizes, scale in [((2, 2), 1.0), ((2, 3, 2), 30.0), ((2, 4, 3, 2), 3.0)]:
        net, rng = network(sizes, 5, scale), np.random.default_rng(2)
        section = section_of(net, ((-2, 2), (-2, 2)), (0, 1), None, (0, 1))
        lo = rng.uniform(-1, 1, (2, 12))
        hi = lo + 2.0 ** rng.integers(-30, 0, (2, 12))
        least_x, most_x, least_y, most_y = section.slopes(np.stack([lo[0], hi[0], lo[1], hi[1]]))
        gaps = section.judge(np.stack([lo[0], hi[0], lo[1], hi[1]]))
        assert np.array_equal(gaps[1] > 0, least_x > 0)
        assert np.array_equal(gaps[2] < 0, most_y < 0)
        for k in range(12):
            for x, y in [lo[:, k], hi[:, k], rng.uniform(lo[:, k], hi[:, k])]:
                _, fx, fy = exact(net, x, y)
                assert least_x[k] <= fx <= most_x[k]
                assert least_y[k] <= fy <= most_y[k]


@pytest.mark.parametrize("size", [1e5, 1e10, 1e15, 1e100, 1e300])
def test_enclosures_hold_where_sums_are_large_and_cancel(size):
    """Other inputs and biases of `size` nearly cancel in the first layer's sums s.

    |s| is small, but its error is not.
    """
    rng = np.random.default_rng(1)
    for _ in range(4):
        w = rng.normal(size=(4, 5))
        at, bias = np.array([0, 0, size, -size]), rng.normal(size=5)
        bias -= w[2] * size - w[3] * size  # rounded: what is left of s is its own error and more
        net = fd.SigmoidMLP([w, rng.normal(size=(5, 2))], [bias, rng.normal(size=2)])
        section = section_of(net, ((-2, 2), (-2, 2)), (0, 1), at, (0, 1))
        lo = rng.uniform(-1, 1, (2, 8))
        out = section.judge(np.stack([lo[0], lo[0], lo[1], lo[1]]))
        with mpmath.workdps(700):
            for k, (x, y) in enumerate(lo.T):
                point = (x, y, *at[2:])
                s = []
                for column, b in zip(w.T, bias, strict=True):
                    terms = (mpmath.mpf(float(v)) * u for v, u in zip(column, point, strict=True))
                    s.append(mpmath.fsum([b, *terms]))
                d = (net.weights[1][:, 0].tolist(), net.weights[1][:, 1].tolist())
                f = mpmath.fsum(
                    (mpmath.mpf(p) - q) / (1 + mpmath.exp(-z))
                    for p, q, z in zip(*d, s, strict=True)
                )
                f += mpmath.mpf(net.biases[1][0]) - net.biases[1][1]
                assert out[0, k] == 0 or (abs(f) >= abs(out[0, k]) and (f > 0) == (out[0, k] > 0))
                assert abs(f) <= out[3, k]


# ---- planes, outputs, depth ---------------------------------------------------------------------


def test_plane_of_two_chosen_inputs_of_many():
    net, rng = network((6, 9, 4), 5), np.random.default_rng(2)
    at = rng.normal(size=6)
    where = {"coordinates": (4, 1), "at": at}
    at[[4, 1]] = np.nan  # ignored
    outputs = (3, 1)
    middle = np.where(np.isnan(at), 0, at)
    shifted = fd.SigmoidMLP(
        net.weights, (net.biases[0], net.biases[1] - [0, 0, 0, net.margin([middle], outputs)[0]])
    )
    curves = fd.trace_boundary(shifted, BOX, outputs=outputs, **where)
    assert curves.certified and len(curves.points)
    assert np.array_equal(
        curves.points[0],
        fd.trace_boundary(shifted, BOX, coordinates=[-2, 1], at=at, outputs=outputs).points[0],
    )
    for points in curves.points:
        assert residual(shifted, points, outputs, coordinates=(4, 1), at=middle).max() < 1e-10


def test_single_logit_is_traced_where_it_is_zero():
    net = network((2, 4, 1), 8)
    two = fd.SigmoidMLP(
        [net.weights[0], np.c_[net.weights[1], np.zeros(4)]], [net.biases[0], [net.biases[1][0], 0]]
    )
    for a, b in zip(
        fd.trace_boundary(net, BOX).points, fd.trace_boundary(two, BOX).points, strict=True
    ):
        assert same_bits(a, b)


@pytest.mark.parametrize("sizes", [(2, 16, 16, 16, 2), (2, 64, 2), (2, 8, 8, 8, 8, 8, 2)])
def test_deep_and_wide_networks_are_certified(sizes):
    net = network(sizes, 4, 2.0)
    curves = fd.trace_boundary(net, BOX)
    assert curves.certified
    check_against_grid(net, curves, 100)


@pytest.mark.parametrize("scale", [1e3, 1e5])
def test_steep_networks_are_certified(scale):
    for seed in range(5):
        net = network((2, 5, 2), seed, scale)
        plateaus = np.unique(net.margin(signs(net, 60)[0].reshape(-1, 2)).round(6))
        level = plateaus[len(plateaus) // 2 :][:2].mean()  # half way up a step
        net = fd.SigmoidMLP(net.weights, [net.biases[0], net.biases[1] - [level, 0]])
        curves = fd.trace_boundary(net, BOX)
        assert curves.certified and len(curves.points)
        assert all(
            on_box(p[[0, -1]]).all()
            for p, c in zip(curves.points, curves.closed, strict=True)
            if not c
        )
        assert max(residual(net, p).max() for p in curves.points) <= 1e-10


def test_tie_that_no_box_holds_gives_no_curve():
    net = fd.SigmoidMLP([[[1.0], [1.0]], [[1.0]]], [[0.0], [0.5]])
    curves = fd.trace_boundary(net, BOX)
    assert (
        curves.certified
        and curves.points == []
        and curves.closed.shape == (0,)
        and curves.undecided.shape == (0, 2, 2)
    )


@pytest.mark.parametrize("last", [[[1.0], [-1.0]], [[0.0], [0.0]]])
def test_margin_that_vanishes_everywhere_is_left_open_as_one_box(last):
    net = fd.SigmoidMLP([np.ones((2, 2)), last], [[0.5, 0.5], [0.0]])
    curves = fd.trace_boundary(net, ((-1, 2), (0, 5)))
    assert (
        not curves.certified
        and not curves.points
        and np.array_equal(curves.undecided, [[(-1, 2), (0, 5)]])
    )


@pytest.mark.parametrize(
    "box",
    [
        ((-1e9, 1e9), (-1e9, 1e9)),
        ((-1e300, 1e300), (-1, 1)),
        ((1e8, 1e8 + 1), (-1, 1)),
        ((0, 1e-300), (0, 1e-12)),
    ],
)
def test_extreme_boxes_end_and_never_certify_what_is_not_so(box):
    net = fd.SigmoidMLP([[[1.0, 0.5], [0.5, -1.0]], np.eye(2)], [[-1e8, 0.0], [0.1, 0.0]])
    curves = fd.trace_boundary(net, box)
    lo, hi = np.transpose(np.array(box, float))
    for points in (*curves.points, *curves.undecided.transpose(0, 2, 1)):
        assert (points >= lo).all() and (points <= hi).all()
    corners = np.sign(net.margin(np.stack(np.meshgrid(*box), axis=-1).reshape(-1, 2)))
    if curves.certified and not curves.points:
        assert np.ptp(corners) == 0


@pytest.mark.parametrize("size", [1e160, 1e300])
def test_weights_that_overflow_certify_nothing(size):
    net = fd.SigmoidMLP([[[size, -size], [1.0, size]], [[size], [-size]]], [[0.0, 1.0], [size]])
    curves = fd.trace_boundary(net, ((-1e10, 1e10), (-1, 1)))
    assert curves.certified or len(curves.undecided)
    opposite = fd.SigmoidMLP(
        [np.eye(2), [[1e308, -1e308], [1.0, 2.0]]], [[0.0, 0], [0.0, 0]]
    )  # v1 − v2 overflows
    assert not fd.trace_boundary(opposite, BOX).certified


def test_work_limit_leaves_boxes_that_hold_what_is_missing(monkeypatch):
    net = network((2, 6, 6, 2), 3, 3.0)
    all_of_it = fd.trace_boundary(net, BOX)
    monkeypatch.setattr(_cells, "_CELLS", 300)
    some = fd.trace_boundary(net, BOX)
    assert not some.certified and len(some.undecided)
    found, missing = cKDTree(dense(some.points)), dense(all_of_it.points)
    far = missing[found.query(missing)[0] > 0.02] if len(some.points) else missing
    inside = (
        ((far[:, None] >= some.undecided[..., 0]) & (far[:, None] <= some.undecided[..., 1]))
        .all(axis=2)
        .any(axis=1)
    )
    assert inside.all()
    (lo, hi), (low, high) = some.undecided[0]
    assert (
        fd.trace_boundary(net, some.undecided[0]).certified and lo < hi and low < high
    )  # a box like `bounds`


def test_larger_tolerance_is_kept_too():
    net = network((2, 3, 2), 1)
    for tol in (1e-3, 1e-6, 1e-14):
        assert max(
            residual(net, p).max() for p in fd.trace_boundary(net, BOX, tol=tol).points
        ) <= max(tol, 1e-14)


# ---- invariances --------------------------------------------------------------------------------


def sorted_rows(curves):
    rows = np.concatenate([np.zeros((0, 2)), *curves.points])
    return np.unique(rows, axis=0)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(2, 3, 2), (2, 7, 2), (2, 4, 3, 2)]),
    st.sampled_from([1.0, 3.0]),
)
def test_invariances(seed, sizes, scale):
    """Other names for the same thing give the same curves.

    Exactly, or as closely as other grid lines allow.
    """
    net = network(sizes, seed, scale)
    w, b = list(net.weights), list(net.biases)
    curves = fd.trace_boundary(net, BOX)
    if not curves.certified or not curves.points:
        return
    swapped = fd.trace_boundary(net, BOX, outputs=(1, 0))
    assert same_bits(sorted_rows(swapped), sorted_rows(curves))
    order = np.random.default_rng(seed).permutation(sizes[1])
    permuted = fd.SigmoidMLP([w[0][:, order], w[1][order], *w[2:]], [b[0][order], *b[1:]])
    moved = fd.SigmoidMLP(w, [b[0] - [0.5, -0.25] @ w[0], *b[1:]])
    scaled = fd.SigmoidMLP([w[0] / 2, *w[1:]], b)
    others = [
        fd.trace_boundary(permuted, BOX),
        (c := fd.trace_boundary(net, BOX, coordinates=(1, 0)))._replace(
            points=[p[:, ::-1] for p in c.points]
        ),
        (c := fd.trace_boundary(moved, ((-2.5, 3.5), (-3.25, 2.75))))._replace(
            points=[p - [0.5, -0.25] for p in c.points]
        ),
        (c := fd.trace_boundary(scaled, ((-6, 6), (-6, 6))))._replace(
            points=[p / 2 for p in c.points]
        ),
    ]
    for other in others:
        assert (
            sorted(other.closed) == sorted(curves.closed) and apart(other, curves) < 4e-3 * DIAGONAL
        )


def test_awkward_layouts_give_the_same_bits_and_stay_as_they_are():
    net = network((3, 5, 2), 3)
    at = np.array([0.0, 0.0, 0.7])
    bounds = np.array(BOX)
    expected = fd.trace_boundary(net, bounds, at=at)
    for name, box in layouts(bounds):
        for _, other in layouts(at):
            before = snapshot(box, other)
            curves = fd.trace_boundary(net, box, at=other)
            assert snapshot(box, other) == before, name
            assert all(map(same_bits, curves.points, expected.points)) and len(
                curves.points
            ) == len(expected.points)
    single = fd.trace_boundary(net, bounds.astype(np.float32), at=[0, 0, 0.7])
    assert all(map(same_bits, single.points, expected.points))


def test_same_bits_for_any_number_of_threads():
    net = network((2, 40, 40, 2), 2, 3.0)
    results = by_threads(lambda: fd.trace_boundary(net, BOX), 1, 2, 5)
    for curves in results[1:]:
        assert all(map(same_bits, curves.points, results[0].points)) and len(curves.points) == len(
            results[0].points
        )


def test_cpu_levels_agree():
    assert_levels_agree("""
import hashlib
import numpy as np
import fastderiv as fd
rng = np.random.default_rng(5)
weights = [rng.normal(0, 2, s) for s in ((2, 9), (9, 7), (7, 2))]
net = fd.SigmoidMLP(weights, [rng.normal(0, 1, n) for n in (9, 7, 2)])
shift = [net.margin([[0.3, -0.2]])[0], 0]
net = fd.SigmoidMLP(net.weights, [*net.biases[:2], net.biases[2] - shift])
curves = fd.trace_boundary(net, ((-3, 3), (-3, 3)))
points = np.concatenate(curves.points)
print(hashlib.sha256(points.tobytes()).hexdigest(), abs(points).sum() + len(curves.points))
""")  # the number of points and the places they sit in do not depend on rounding


def test_curves_pickle():
    curves = fd.trace_boundary(ring(), BOX)
    again = pickle.loads(pickle.dumps(curves))
    assert (
        type(again) is fd.BoundaryCurves
        and same_bits(again.points[0], curves.points[0])
        and again.certified is True
    )
    assert (
        curves.points[0].flags.owndata
        or curves.points[0].base is None
        or curves.points[0].flags.writeable
    )


# ---- errors -------------------------------------------------------------------------------------

ERRORS = [
    (TypeError, {"net": 3}, "net is a int; expected a SigmoidMLP"),
    (
        ValueError,
        {"net": fd.SigmoidMLP([[[1.0]]], [[0.0]])},
        "net has 1 input; expected at least two",
    ),
    (
        ValueError,
        {"bounds": (-1, 1)},
        r"bounds has shape \(2,\); expected \(\(lo, hi\), \(lo, hi\)\) = \(2, 2\)",
    ),
    (ValueError, {"bounds": ((0, 1), (1, 1))}, r"bounds\[1\] is \(1.0, 1.0\); expected lo < hi"),
    (
        ValueError,
        {"bounds": ((0, np.inf), (0, 1))},
        r"bounds\[0, 1\] is inf; expected finite numbers",
    ),
    (
        ValueError,
        {"bounds": ((-1.7e308, 1.7e308), (0, 1))},
        r"bounds\[0\] is too wide: 1.7e\+308 - -1.7e\+308 overflows",
    ),
    (
        TypeError,
        {"bounds": ((0, 1j), (0, 1))},
        "bounds has dtype complex128; expected float32, float64 or integers",
    ),
    (ValueError, {"coordinates": (0, 0)}, "expected two different inputs"),
    (
        ValueError,
        {"coordinates": (0, 3)},
        r"coordinates\[1\] is 3; expected an integer from -3 to 2, there being 3 inputs",
    ),
    (TypeError, {"coordinates": 1}, "coordinates is 1; expected a pair of integers"),
    (ValueError, {"at": None}, r"at is None; expected \(n_inputs,\) = \(3,\)"),
    (ValueError, {"at": [1.0, 2.0]}, r"at has shape \(2,\); expected \(n_inputs,\) = \(3,\)"),
    (ValueError, {"at": [0, 0, np.nan]}, r"at\[2\] is nan; expected finite numbers"),
    (ValueError, {"outputs": (0, 5)}, r"outputs\[1\] is 5"),
    (ValueError, {"tol": 0.0}, "tol is 0.0; expected a positive number"),
    (ValueError, {"tol": np.nan}, "tol is nan; expected a positive number"),
    (TypeError, {"tol": "small"}, "tol is 'small'; expected a number"),
]


@pytest.mark.parametrize(
    "kind,given_arguments,message", ERRORS, ids=lambda v: "" if isinstance(v, type) else None
)
def test_errors_name_the_argument(kind, given_arguments, message):
    arguments = {"net": network((3, 4, 2), 0), "bounds": BOX, "at": [0.0, 0, 1]} | given_arguments
    with pytest.raises(kind, match=message):
        fd.trace_boundary(arguments.pop("net"), arguments.pop("bounds"), **arguments)


@pytest.mark.parametrize("signal_after", [0.1])
def test_ctrl_c_is_answered(signal_after):
    rng = np.random.default_rng(0)
    sizes = (2, 256, 256, 256, 256, 1)
    weights = [rng.normal(0, 0.5, s) for s in pairwise(sizes)]
    net = fd.SigmoidMLP(weights, [rng.normal(0, 1, n) for n in sizes[1:]])
    assert seconds_until_answered(lambda: fd.trace_boundary(net, BOX), delay=signal_after) < ALLOWED
