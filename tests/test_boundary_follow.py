"""follow_boundary: the boundary as a curve in arc length."""

import numpy as np
import pytest
from scipy.optimize import brentq

import fastderiv as fd
from fastderiv import reference as ref
from fastderiv.boundary.plane import _walk
from helpers.awkward import layouts, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree
from test_boundary import twin
from test_boundary_sensitivity import centred


def ring(radius_bias=-3.9):
    """Four units whose sum stays above a level on a rounded square: a closed boundary around 0."""
    return fd.SigmoidMLP(
        [[[2.0, -2, 0, 0], [0, 0, 2, -2]], [[1.0]] * 4], [[4.0] * 4, [radius_bias]]
    )


def on_axis(net, lo=0.0, hi=50.0):
    """A tie (x1, 0)."""
    return np.array(
        [brentq(lambda t: net.margin([[t, 0.0]])[0], lo, hi, xtol=1e-15, rtol=1e-15), 0.0]
    )


def away(net, points, plane=(0, 1), outputs=(0, 1)):
    """|margin| / |gradient in the plane| at the points."""
    gradient = net.margin_gradient(points, outputs)[:, list(plane)]
    return abs(net.margin(points, outputs)) / np.hypot(*gradient.T)


def arc_length(points):
    """Of evenly spaced points, by Richardson's extrapolation of the chords."""
    fine, coarse = (np.linalg.norm(np.diff(points[::k], axis=0), axis=1).sum() for k in (1, 2))
    return (4 * fine - coarse) / 3


# of ring(), to 1e-10; test_a_closed_curve_is_as_long_as_its_chords confirms it
PERIMETER = 3.8911487341970137


def test_starts_at_start_and_ends_at_length():
    net = ring()
    start = on_axis(net)
    for length in (0.3, -0.3, 1.7, 5.0):
        points = fd.follow_boundary(net, start, length, step=abs(length) / 400)
        assert same_bits(points[0], start)
        assert len(points) == 401
        assert arc_length(points) == pytest.approx(abs(length), rel=1e-8)
        assert away(net, points).max() < 1e-12


def test_direction():
    # f = x1 − x2 is positive where x1 is larger, on the right hand side of who goes up
    net = fd.SigmoidMLP([[[1.0], [-1.0]]], [[0.0]])
    assert fd.follow_boundary(net, [0, 0], 2**0.5)[-1] == pytest.approx([1.0, 1.0])
    assert fd.follow_boundary(net, [0, 0], -(2**0.5))[-1] == pytest.approx([-1.0, -1.0])
    assert fd.follow_boundary(net, [0, 0], 2**0.5, coordinates=(1, 0))[-1] == pytest.approx(
        [-1.0, -1.0]
    )
    for seed in range(3):
        net = centred((2, 6, 2), seed)
        first = fd.follow_boundary(net, np.zeros(2), 1e-4)[-1]
        ((a, b),) = net.margin_gradient(np.zeros((1, 2)))
        assert first == pytest.approx(np.array([-b, a]) / np.hypot(a, b) * 1e-4, abs=1e-7)


def test_a_closed_curve_is_as_long_as_its_chords():
    net = ring()
    start = on_axis(net)
    points = fd.follow_boundary(net, start, 100, step=0.002, stop_when_closed=True)
    assert same_bits(points[0], points[-1])
    whole = len(points) - 2 - (len(points) - 2) % 2  # evenly spaced chords
    rest = np.linalg.norm(np.diff(points[whole:], axis=0), axis=1).sum()
    assert arc_length(points[: whole + 1]) + rest == pytest.approx(PERIMETER, abs=1e-8)
    # once around and no more, on the whole of it
    angle = np.unwrap(np.arctan2(points[:, 1], points[:, 0]))
    assert abs(angle[-1] - angle[0]) == pytest.approx(2 * np.pi)
    assert np.all(
        np.diff(angle) < 0
    )  # f is positive inside, which is on its right hand side going clockwise
    assert away(net, points).max() < 1e-12


@pytest.mark.parametrize("way", [1, -1])
def test_a_closed_curve_closes_once_around_from_wherever_it_begins(way):
    net = ring()
    (curve,) = fd.trace_boundary(net, ((-3, 3), (-3, 3))).points
    for start in curve[:: len(curve) // 20]:
        start = start * (1 + 1e-8)  # a tie by less than 1e-6, as many are
        points = fd.follow_boundary(net, start, way * 100.0, stop_when_closed=True, step=0.01)
        assert same_bits(points[-1], start)
        assert np.linalg.norm(np.diff(points, axis=0), axis=1).sum() == pytest.approx(
            PERIMETER, rel=1e-3
        )


def test_gradients_whose_size_overflows_have_a_direction():
    net = fd.SigmoidMLP([[[1.7e308], [1.7e308]]], [[0.0]])
    assert fd.follow_boundary(net, [0.0, 0.0], 2**0.5)[-1] == pytest.approx([-1.0, 1.0])


def test_arc_length_is_kept_over_many_rounds():
    net = ring()
    start = on_axis(net)
    rounds = 40
    points = fd.follow_boundary(net, start, rounds * PERIMETER)
    assert np.linalg.norm(points[-1] - start) < 1e-8
    assert away(net, points).max() < 1e-12
    back = fd.follow_boundary(net, start, -0.25 * PERIMETER)[-1]
    forth = fd.follow_boundary(net, start, 0.75 * PERIMETER)[-1]
    assert back == pytest.approx(forth, abs=1e-9)


@pytest.mark.slow
def test_arc_length_is_kept_over_a_thousand_units():
    net = ring()
    start = on_axis(net)
    points = fd.follow_boundary(net, start, 257 * PERIMETER)
    assert np.linalg.norm(points[-1] - start) < 1e-7
    assert away(net, points).max() < 1e-12


def test_there_and_back_again():
    for seed in range(6):
        net = centred((2, 6, 2), seed)
        there = fd.follow_boundary(net, np.zeros(2), 3.0)[-1]
        assert np.hypot(*there) > 0.1
        assert fd.follow_boundary(net, there, -3.0)[-1] == pytest.approx([0, 0], abs=1e-8)


@pytest.mark.parametrize(
    ("sizes", "plane", "outputs"), [((2, 5, 2), (0, 1), (0, 1)), ((4, 6, 5, 3), (2, -4), (2, 0))]
)
def test_equals_reference(sizes, plane, outputs):
    for seed in range(3):
        net, start = centred(sizes, seed, outputs), np.zeros(sizes[0])
        options = dict(coordinates=plane, outputs=outputs, step=0.25)
        ours, plain = (
            fd.follow_boundary(net, start, -2.1, **options),
            ref.follow_boundary(twin(net), start, -2.1, **options),
        )
        np.testing.assert_allclose(ours, plain, atol=1e-7)
        assert same_bits(np.delete(ours, plane, axis=1), np.zeros((len(ours), sizes[0] - 2)))
        assert away(net, ours, plane, outputs).max() < 1e-11


def test_the_reference_closes_too():
    net = ring()
    start = on_axis(net)
    plain = ref.follow_boundary(twin(net), start, 5.0, step=1.0, stop_when_closed=True)
    ours = fd.follow_boundary(net, start, 5.0, step=1.0, stop_when_closed=True)
    np.testing.assert_allclose(ours, plain, atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e3, 1e6])
def test_steep_networks_with_sharp_corners(scale):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        weights, bias = (
            [scale * rng.standard_normal((2, 6)), rng.standard_normal((6, 1))],
            scale * rng.standard_normal(6),
        )
        x1 = (
            -bias[0] / weights[0][0, 0]
        )  # in the middle of the first unit's transition, which the boundary then runs along
        height = fd.SigmoidMLP(weights, [bias, [0.0]]).margin([[x1, 0.0]])
        net = fd.SigmoidMLP(weights, [bias, -height])
        points = fd.follow_boundary(net, [x1, 0.0], 5.0)
        assert away(net, points).max() < 1e-12
        assert 4.9 < np.linalg.norm(np.diff(points, axis=0), axis=1).sum() <= 5 + 1e-9


def test_a_narrow_bump_on_a_long_straight_way_is_seen():
    # x2 = 0 but for a bump of height 0.8 and width 1e-3 at x1 = 30
    net = fd.SigmoidMLP(
        [[[0, 1e4, 1e4], [1, 0, 0]], [[1.0], [0.2], [-0.2]]], [[0, -3e5, -3e5 - 10], [-0.5]]
    )
    points = fd.follow_boundary(net, [0.0, 0.0], -100.0)
    assert points[:, 1].min() < -0.8
    assert points[-1, 0] == pytest.approx(100 - 2 * 0.83316, abs=1e-3)
    straight = fd.SigmoidMLP([[[0.0], [1.0]], [[1.0]]], [[0.0], [-0.5]])
    assert fd.follow_boundary(straight, [0.0, 0.0], -1e6)[-1] == pytest.approx([1e6, 0])


def test_open_curves_do_not_close():
    net = fd.SigmoidMLP([[[1.0], [-1.0]], [[1.0]]], [[0.0], [-0.5]])
    points = fd.follow_boundary(net, [0.0, 0.0], 10.0, stop_when_closed=True)
    assert np.hypot(*points[-1]) == pytest.approx(10)


def test_length_zero_and_steps_that_do_not_divide():
    net = ring()
    start = on_axis(net)
    assert same_bits(fd.follow_boundary(net, start, 0), start[None])
    points = fd.follow_boundary(net, start, 1.0, step=0.3)
    assert len(points) == 5
    assert points[-1] == pytest.approx(fd.follow_boundary(net, start, 1.0)[-1], abs=1e-9)
    assert len(fd.follow_boundary(net, start, 0.9, step=0.3)) == 4
    assert len(fd.follow_boundary(net, start, 0.2, step=0.3)) == 2


def saddle():
    """g(x1) − g(x2) with an even bump g: the boundary is both diagonals, which cross at 0."""
    return fd.SigmoidMLP(
        [[[1.0, 1, 0, 0], [0, 0, 1, 1]], [[1.0], [-1], [-1], [1]]], [[3.0, -3, 3, -3], [0.0]]
    )


def test_a_saddle_ends_the_way_with_an_error():
    net = saddle()
    with pytest.raises(
        ValueError,
        match=r"^length is 10, but the boundary cannot be followed beyond 2.828\d*: at .*saddle",
    ):
        fd.follow_boundary(net, [-2.0, -2.0], 10)
    assert fd.follow_boundary(net, [-2.0, -2.0], 2.8)[-1] == pytest.approx(
        [-0.0201, -0.0201], abs=1e-4
    )
    with pytest.raises(
        ValueError,
        match=r"start has a margin of .* whose gradient is zero in the plane of .* \(0, 1\)",
    ):
        fd.follow_boundary(net, [0.0, 0.0], 1)


def test_a_plateau_ends_the_way_with_an_error():
    with pytest.raises(ValueError, match="cannot be followed beyond -.*plateau of the margin"):
        fd.follow_boundary(saddle(), [-2.0, -2.0], -1000)


@pytest.mark.parametrize("length", [1e17, 1e160, -1e160, 1.7e308])
def test_lengths_that_no_step_can_resolve_are_refused(length):
    net = ring()
    with pytest.raises(
        ValueError,
        match=r"^length is -?1.*e\+\d+, beside which .* lost in rounding: the longest of 400",
    ):
        fd.follow_boundary(net, on_axis(net), length)
    with pytest.raises(ValueError, match=r"^length is -?1.*e\+\d+, beside which steps are lost"):
        ref.follow_boundary(twin(net), on_axis(net), length)


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("length", [1e10, 1e160, -1e300])
def test_a_way_ends_where_numbers_are_too_far_apart(hidden, length):
    net = (
        fd.SigmoidMLP([[[1.0], [-1.0]], [[1.0]]], [[0.0], [-0.5]])
        if hidden
        else fd.SigmoidMLP([[[1.0], [-1.0]]], [[0.0]])
    )
    with pytest.raises(
        ValueError,
        match=r"cannot be followed beyond -?6.36\d*e\+09: at .* farther out than 4.5e\+09",
    ):
        fd.follow_boundary(net, [0.0, 0.0], length)
    assert fd.follow_boundary(net, [0.0, 0.0], 6e9)[-1] == pytest.approx([6e9 / 2**0.5] * 2)
    with pytest.raises(ValueError, match="cannot be followed beyond 0: at"):
        fd.follow_boundary(net, [1e15, 1e15], 1.0)


def test_a_gradient_that_overflows_has_no_direction():
    # SciPy's first step would be NaN, and never end
    net = fd.SigmoidMLP(
        [[[1e200, -1e200], [1e200, 1e200]], [[1e200], [1e200]]], [[0.0, 0.0], [-1e200]]
    )
    with pytest.raises(ValueError, match="cannot be followed beyond 0: at .* no direction"):
        fd.follow_boundary(net, [0.0, 0.0], 1.0)


@pytest.mark.parametrize("length", [5e-324, 1e-310, 1e-300, 1e-17, -1e-20])
def test_lengths_that_are_lost_beside_the_start(length):
    net = ring()
    points = fd.follow_boundary(net, on_axis(net), length)
    assert points.shape == (2, 2)
    assert np.abs(points[1] - points[0]).max() < 1e-15


def test_long_ways_in_blocks(monkeypatch):
    net = ring()
    start = on_axis(net)
    expected, evenly = (
        fd.follow_boundary(net, start, 9.0),
        fd.follow_boundary(net, start, 9.0, step=0.01),
    )
    monkeypatch.setattr(_walk, "_BLOCK", 7)
    monkeypatch.setattr(_walk, "_EVEN_POINTS", 3)
    assert same_bits(fd.follow_boundary(net, start, 9.0), expected)
    np.testing.assert_allclose(fd.follow_boundary(net, start, 9.0, step=0.01), evenly, atol=1e-14)
    with pytest.raises(MemoryError, match=r"the points would take \d+ bytes"):
        fd.follow_boundary(net, start, 1e13)  # 1e14 steps, as is seen after the first seven


def test_any_layout_gives_the_same_bits_and_is_left_alone():
    net = ring()
    start = on_axis(net)
    expected = fd.follow_boundary(net, start, 1.0)
    for label, view in layouts(start):
        before = snapshot(view)
        assert same_bits(fd.follow_boundary(net, view, 1.0), expected), label
        assert snapshot(view) == before


def test_cpu_levels_agree():
    assert_levels_agree("""
import hashlib, numpy as np, fastderiv as fd
net = fd.SigmoidMLP([[[1.0, -2.0], [0.5, 1.0]], [[1.0], [2.0]]], [[0.0, 0.0], [-1.5]])
points = fd.follow_boundary(net, [0.0, 0.0], 3.0)
print(hashlib.sha256(points.tobytes()).hexdigest(), points[-1].sum())
""")


@pytest.mark.slow
def test_ctrl_c():
    net = ring()
    start = on_axis(net)
    assert seconds_until_answered(lambda: fd.follow_boundary(net, start, 1e6)) < ALLOWED


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"net": 3}, TypeError, "net is a int; expected a SigmoidMLP"),
        ({"start": [0.0, 0.0]}, ValueError, r"^start (is no tie|has a margin)"),
        (
            {"start": [0.7, 0.0]},
            ValueError,
            r"start is no tie: the margin is .* about 0.08\d* from .* a point within 1e-06",
        ),
        ({"start": [np.nan, 0.0]}, ValueError, r"start\[0\] is nan"),
        ({"start": [0.0]}, ValueError, r"start has shape \(1,\); expected \(n_inputs,\) = \(2,\)"),
        ({"length": np.inf}, ValueError, "length is inf; expected a finite number"),
        ({"length": np.nan}, ValueError, "length is nan; expected a finite number"),
        ({"length": -np.inf}, ValueError, "length is -inf; expected a finite number"),
        ({"step": np.nan}, ValueError, "step is nan; expected a positive number"),
        ({"length": "1"}, TypeError, "length is '1'; expected a number"),
        ({"step": 0}, ValueError, "step is 0.0; expected a positive number"),
        ({"step": 1e-300}, MemoryError, "would take"),
        ({"rtol": 0}, ValueError, "rtol is 0.0; expected a number between 0 and 1"),
        ({"atol": 2}, ValueError, "atol is 2.0"),
        (
            {"coordinates": (0, 2)},
            ValueError,
            r"coordinates\[1\] is 2; expected an integer from -2 to 1, there being 2 inputs",
        ),
        ({"coordinates": (0, 0)}, ValueError, "expected two different inputs"),
        ({"coordinates": 1}, TypeError, "coordinates is 1; expected a pair"),
    ],
)
def test_errors_are_named(change, kind, message):
    net = ring()
    arguments = {"net": net, "start": on_axis(net), "length": 1.0} | change
    with pytest.raises(kind, match=message):
        fd.follow_boundary(
            arguments.pop("net"), arguments.pop("start"), arguments.pop("length"), **arguments
        )
