"""The adjoint of the causal convolution: its oracle against slopes, and the compiled one against
the oracle.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import error, layouts, same_bits
from helpers.machines import by_threads
from test_ssm_conv import KS, REALS, SHAPES, channels_last, problem

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-13}


def vjp_problem(*sizes, **options):
    """Arguments of an adjoint with every option on."""
    p = problem(*sizes, **options)
    rng = np.random.default_rng(99)
    for name, like in (("dout", "x"), ("dlast_state", "initial_state")):
        p[name] = rng.normal(size=p[like].shape).astype(p[like].dtype)
    return p


def assert_equal_reference(p, tolerance):
    grads, expected = fd.causal_conv1d_vjp(**p), reference.causal_conv1d_vjp(**p)
    for name, ours, theirs in zip(grads._fields, grads, expected, strict=True):
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert ours.shape == theirs.shape and error(ours, theirs) < tolerance, name
    return grads


# ---- the oracle -------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("bounds", [None, [0, 0, 3, 9]])
@pytest.mark.parametrize("name", ["x", "weight", "bias", "initial_state"])
def test_gradients_are_slopes_by_complex_steps(name, bounds, activation):
    """Along a random direction, and for the last state too."""
    p = vjp_problem(1, 3, 9, 4, bounds=bounds) | {"activation": activation}
    dout, dlast = p.pop("dout"), p.pop("dlast_state")
    rest = {key: p[key] for key in p if key != "cu_seqlens"}
    direction = np.random.default_rng(3).normal(size=p[name].shape)
    moved = rest | {name: p[name] + 1e-30j * direction}
    pieces = list(itertools.pairwise(bounds)) if bounds else [(0, 9)]
    slope = 0
    for k, (start, stop) in enumerate(pieces):
        here = moved | {
            "x": moved["x"][..., start:stop],
            "initial_state": moved["initial_state"][k : k + 1],
        }
        y, last = reference.causal_conv1d(**here, return_last_state=True)
        slope += ((dout[..., start:stop] * y).sum() + (dlast[k : k + 1] * last).sum()).imag / 1e-30
    for library in (reference, fd):
        grads = library.causal_conv1d_vjp(dout, **p, dlast_state=dlast)
        ours = (getattr(grads, f"d{name}") * direction).sum()
        assert abs(ours - slope) < 1e-12 * (1 + abs(slope))


# ---- the compiled adjoint ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("taps", KS)
@pytest.mark.parametrize("shape", SHAPES)
def test_vjp_equals_reference(shape, taps, dtype):
    p = vjp_problem(*shape, taps, dtype)
    assert_equal_reference(p, TOLERANCE[dtype])


@pytest.mark.parametrize("without", ["bias", "initial_state", "activation", "dlast_state"])
def test_every_option_can_be_left_out(without):
    for taps in (4, 6):
        p = vjp_problem(2, 40, 50, taps)
        p[without] = None
        if without == "initial_state":
            p["dlast_state"] = vjp_problem(2, 40, 50, taps)["dlast_state"]
        assert_equal_reference(p, 1e-13)


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(0, 70),
    st.integers(0, 70),
    st.integers(1, 20),
    st.sampled_from(REALS),
    st.booleans(),
    st.booleans(),
)
def test_any_shape_empty_ones_too(batch, channels, steps, taps, dtype, memory, unbatched):
    p = vjp_problem(batch, channels, steps, taps, dtype)
    if memory:
        p["x"], p["dout"] = channels_last(p["x"]), channels_last(p["dout"])
    if unbatched and batch:
        for name in ("x", "dout", "initial_state", "dlast_state"):
            p[name] = p[name][0]
    assert_equal_reference(p, TOLERANCE[dtype])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 60), max_size=6),
    st.integers(1, 40),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
)
def test_any_packing(lengths, channels, taps, memory, unbatched):
    """Sums over all sequences, and the rest as of each by itself, bitwise."""
    bounds = np.cumsum([0, *lengths])
    p = vjp_problem(1, channels, int(bounds[-1]), taps, np.float32, bounds=bounds)
    if memory:
        p["x"], p["dout"] = channels_last(p["x"]), channels_last(p["dout"])
    if unbatched:
        p["x"], p["dout"] = p["x"][0], p["dout"][0]
    grads = assert_equal_reference(p, 1e-5)
    del p["cu_seqlens"]
    for k, (start, stop) in enumerate(itertools.pairwise(bounds)):
        here, own = np.s_[..., start:stop], k if unbatched else np.s_[k : k + 1]
        alone = {name: p[name][here] for name in ("x", "dout")}
        alone |= {name: p[name][own] for name in ("initial_state", "dlast_state")}
        part = fd.causal_conv1d_vjp(**p | alone)
        assert same_bits(part.dx, np.ascontiguousarray(grads.dx[here]))
        assert same_bits(part.dinitial_state, grads.dinitial_state[own])


@pytest.mark.parametrize("taps", [2, 4, 6])
@pytest.mark.parametrize("cut", [1, 2, 16, 90])
def test_gradients_pass_from_piece_to_piece(cut, taps):
    p = vjp_problem(2, 20, 100, taps)
    whole = fd.causal_conv1d_vjp(**p)
    first = p | {"x": p["x"][..., :cut], "dout": p["dout"][..., :cut]}
    second = p | {"x": p["x"][..., cut:], "dout": p["dout"][..., cut:]}
    forward = {key: first[key] for key in first if key not in ("dout", "dlast_state")}
    _, second["initial_state"] = fd.causal_conv1d(**forward, return_last_state=True)
    later = fd.causal_conv1d_vjp(**second)
    earlier = fd.causal_conv1d_vjp(**first | {"dlast_state": later.dinitial_state})
    assert error(np.concatenate([earlier.dx, later.dx], axis=-1), whole.dx) < 1e-14
    assert error(earlier.dweight + later.dweight, whole.dweight) < 1e-14
    assert error(earlier.dbias + later.dbias, whole.dbias) < 1e-14
    assert error(earlier.dinitial_state, whole.dinitial_state) < 1e-14


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("taps", [3, 4, 7])
@pytest.mark.parametrize("name", ["dout", "x", "weight", "bias", "initial_state", "dlast_state"])
def test_layout_changes_no_bit(name, taps, dtype):
    p = vjp_problem(2, 37, 300, taps, dtype)
    expected = fd.causal_conv1d_vjp(**p)
    for label, array in layouts(p[name]):
        grads = fd.causal_conv1d_vjp(**p | {name: array})
        for field, ours, theirs in zip(grads._fields, grads, expected, strict=True):
            assert same_bits(ours, theirs), (label, field)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("taps", [2, 3, 4, 7])
@pytest.mark.parametrize("steps", [1, 17, 36, 37, 300, 1500])
def test_channels_last_everywhere_changes_no_bit(steps, taps, dtype):
    p = vjp_problem(2, 40, steps, taps, dtype)
    expected = fd.causal_conv1d_vjp(**p)
    last = {name: channels_last(p[name]) for name in ("x", "dout")}
    for field, ours, theirs in zip(
        expected._fields, fd.causal_conv1d_vjp(**p | last), expected, strict=True
    ):
        assert same_bits(ours, theirs), field


def test_thread_count_changes_no_bit():
    for shape, taps in (((1, 600, 900), 4), ((40, 3, 3000), 4), ((2, 200, 900), 6)):
        p = vjp_problem(*shape, taps, np.float32)
        for memory in (np.ascontiguousarray, channels_last):
            p["x"], p["dout"] = memory(p["x"]), memory(p["dout"])
            one, two, five = by_threads(lambda p=p: fd.causal_conv1d_vjp(**p), 1, 2, 5)
            for a, b, c in zip(one, two, five, strict=True):
                assert same_bits(a, b) and same_bits(a, c)


# ---- accuracy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 3, 65536), (4096, 3, 16), (2, 20, 20000)])
@pytest.mark.parametrize("mean", [0, 1])
def test_long_sums_are_accurate(shape, mean):
    """Also where all terms have one sign, and are nearly equal."""
    p = vjp_problem(*shape, 4, np.float32)
    p["x"] = (mean + 0.1 * p["x"]).astype(np.float32)
    p["dout"] = (mean + 0.1 * p["dout"]).astype(np.float32)
    for activation in (None, "silu"):
        grads = fd.causal_conv1d_vjp(**p | {"activation": activation})
        expected = reference.causal_conv1d_vjp(**p | {"activation": activation})
        assert error(grads.dweight, expected.dweight) < 2e-6
        assert error(grads.dbias, expected.dbias) < 2e-6


def test_sums_that_cancel_over_a_long_time_are_accurate():
    steps = 1 << 17
    x = np.ones((1, steps), np.float32)
    dout = np.where(np.arange(steps) < steps // 2, 1, -1).astype(np.float32)[None] / 3
    dout[0, -1] += 1e-3
    grads = fd.causal_conv1d_vjp(dout, x, np.ones((1, 4), np.float32), np.zeros(1, np.float32))
    exact = dout.astype(float).sum()
    assert abs(grads.dbias[0] - exact) < 1e-6 * np.abs(dout).sum() * 1e-3


@pytest.mark.parametrize("dtype", REALS)
def test_gate_far_into_both_tails(dtype):
    x = np.linspace(-300, 300, 601).astype(dtype)[None]
    p = {"x": x, "weight": np.ones((1, 1), dtype), "activation": "silu"}
    assert_equal_reference(p | {"dout": np.ones_like(x)}, TOLERANCE[dtype])


# ---- what is not finite -----------------------------------------------------------------------


@pytest.mark.parametrize("taps", [2, 4, 6])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["x", "dout"])
def test_nonfinite_stays_in_its_channel_and_its_reach(name, bad, taps):
    p = vjp_problem(2, 37, 60, taps, np.float32)
    expected = fd.causal_conv1d_vjp(**p)
    p[name][1, 20, 30] = bad
    for memory in (np.ascontiguousarray, channels_last):
        p["x"], p["dout"] = memory(p["x"]), memory(p["dout"])
        grads = fd.causal_conv1d_vjp(**p)
        reached = np.zeros(grads.dx.shape, bool)
        reached[1, 20, 30 - taps + 1 : 30 + taps] = True
        assert np.array_equal(grads.dx[~reached], expected.dx[~reached])
        if name == "dout" or np.isnan(bad):  # the slope of silu is finite at infinity
            assert not np.isfinite(grads.dx[reached]).all()
        others = np.arange(37) != 20
        for field in ("dweight", "dbias"):
            ours, theirs = getattr(grads, field), getattr(expected, field)
            assert np.array_equal(ours[others], theirs[others])
            if name == "dout" or np.isnan(bad) or field == "dweight":
                assert not np.isfinite(ours[20]).all()


def test_infinite_weights_have_no_part_in_what_they_do_not_reach():
    """The steps behind the end are no zeros that a weight is multiplied with."""
    p = {"dout": np.ones((1, 40)), "x": np.ones((1, 40))}
    for taps in (2, 3, 4, 6):
        weight = np.ones((1, taps))
        weight[0, 0] = np.inf
        with np.errstate(invalid="ignore"):
            expected = reference.causal_conv1d_vjp(**p, weight=weight)
        grads = fd.causal_conv1d_vjp(**p, weight=weight)
        assert np.array_equal(grads.dx, expected.dx)
        assert np.isfinite(grads.dx[0, -taps + 1 :]).all()


def test_sums_that_overflow_are_infinite():
    x = np.full((1, 5000), 3e38, np.float32)
    grads = fd.causal_conv1d_vjp(np.ones_like(x), x, np.ones((1, 4), np.float32))
    assert (grads.dweight == np.inf).all()


# ---- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"dout": np.zeros((2, 3, 4))},
            ValueError,
            r"dout has shape \(2, 3, 4\); expected \(batch",
        ),
        ({"dout": None}, TypeError, "dout"),
        ({"dlast_state": np.zeros((2, 3, 4))}, ValueError, "dlast_state has shape"),
        ({"weight": np.zeros((2, 4))}, ValueError, "weight has shape"),
        ({"activation": "tanh"}, ValueError, "activation is 'tanh'"),
    ],
)
def test_errors_name_the_argument(change, kind, message):
    with pytest.raises(kind, match=message):
        fd.causal_conv1d_vjp(**vjp_problem(2, 3, 5, 4) | change)


def test_dtypes_are_promoted_together():
    p = vjp_problem(2, 3, 5, 4, np.float32)
    for name in ("dout", "x", "weight", "bias", "initial_state", "dlast_state"):
        grads = fd.causal_conv1d_vjp(**p | {name: p[name].astype(float)})
        assert all(g.dtype == np.float64 for g in grads)
    assert all(g.dtype == np.float32 for g in fd.causal_conv1d_vjp(**p))
