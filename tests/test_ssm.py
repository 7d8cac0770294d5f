"""The selective scan: against the reference, against itself in pieces, and at the edges."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import error, layouts, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads

TOLERANCE = {np.float32: 5e-6, np.float64: 2e-14}
REALS = [np.float32, np.float64]


def problem(
    batch, channels, states, steps, dtype=np.float64, *, B="time", C="time", seed=0, unbatched=False
):
    """Arguments of a scan with every option on; B and C are "constant", "time" or a number of
    groups.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    def coefficient(kind):
        if kind == "constant":
            return normal(channels, states)
        return (
            normal(batch, states, steps) if kind == "time" else normal(batch, kind, states, steps)
        )

    p = dict(
        u=normal(batch, channels, steps),
        delta=normal(batch, channels, steps) - dtype(1),
        A=-np.exp(normal(channels, states)),
        B=coefficient(B),
        C=coefficient(C),
        D=normal(channels),
        z=normal(batch, channels, steps),
        delta_bias=normal(channels),
        delta_softplus=True,
        initial_state=normal(batch, channels, states),
    )
    if unbatched:
        for name in "u", "delta", "z", "initial_state":
            p[name] = p[name][0]
        for name in "B", "C":
            if p[name].ndim > 2:
                p[name] = p[name] if p[name].ndim == 3 else p[name][0]
    return p


def both(p):
    y, h = fd.selective_scan(**p, return_last_state=True)
    y0, h0 = reference.selective_scan(**p, return_last_state=True)
    return (y, h), (y0, h0)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 16, 4, 8),
        (2, 5, 3, 7),
        (3, 33, 16, 300),
        (2, 48, 5, 129),
        (1, 1, 1, 1),
        (2, 17, 64, 40),
        (1, 4, 300, 20),
        (1, 16, 16, 257),
    ],
)
@pytest.mark.parametrize(
    "coefficients",
    [
        ("time", "time"),
        ("constant", "time"),
        ("time", "constant"),
        ("constant", "constant"),
        (1, "time"),
    ],
)
def test_scan_equals_reference(shape, dtype, coefficients):
    B, C = coefficients
    p = problem(*shape, dtype, B=B, C=C)
    (y, h), (y0, h0) = both(p)
    assert y.dtype == h.dtype == dtype
    assert error(y, y0) < TOLERANCE[dtype] and error(h, h0) < TOLERANCE[dtype]


@pytest.mark.parametrize("groups", [(3, 3), (2, 6), (12, 4), (1, 12)])
def test_groups_of_channels_share_their_coefficients(groups):
    p = problem(2, 36, 5, 33, B=groups[0], C=groups[1])
    (y, h), (y0, h0) = both(p)
    assert error(y, y0) < 1e-14 and error(h, h0) < 1e-14


@pytest.mark.parametrize("B", ["constant", "time", 2])
def test_unbatched_equals_batch_of_one(B):
    p = problem(1, 8, 3, 20, B=B)
    y, h = fd.selective_scan(**p, return_last_state=True)
    q = problem(1, 8, 3, 20, B=B, unbatched=True)
    y1, h1 = fd.selective_scan(**q, return_last_state=True)
    assert same_bits(y[0], y1) and same_bits(h[0], h1)


@pytest.mark.parametrize("without", ["D", "z", "delta_bias", "initial_state", "delta_softplus"])
def test_every_option_can_be_left_out(without):
    p = problem(2, 9, 4, 31)
    p["delta"] = np.abs(p["delta"]) / 4
    p[without] = False if without == "delta_softplus" else None
    (y, h), (y0, h0) = both(p)
    assert error(y, y0) < 1e-13 and error(h, h0) < 1e-13


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(0, 40),
    st.integers(0, 9),
    st.integers(0, 300),
    st.sampled_from(REALS),
    st.sampled_from(["constant", "time", 1]),
    st.sampled_from(["constant", "time", 1]),
    st.integers(0, 2**31),
)
def test_any_shape_empty_ones_too(batch, channels, states, steps, dtype, B, C, seed):
    p = problem(batch, channels, states, steps, dtype, B=B, C=C, seed=seed)
    if channels == 0:
        p["B"], p["C"] = (
            np.ones((0, states), dtype) if a.ndim != 3 else a for a in (p["B"], p["C"])
        )
    (y, h), (y0, h0) = both(p)
    assert y.shape == y0.shape and h.shape == h0.shape
    assert error(y, y0) < TOLERANCE[dtype] and error(h, h0) < TOLERANCE[dtype]


# ---- the same bits, however it is asked -------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"]
)
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("B", ["time", "constant"])
def test_layout_changes_no_bit(name, dtype, B):
    p = problem(2, 21, 6, 150, dtype, B=B, C=B)
    y, h = fd.selective_scan(**p, return_last_state=True)
    before = snapshot(*(a for a in p.values() if isinstance(a, np.ndarray)))
    for label, array in layouts(p[name]):
        y1, h1 = fd.selective_scan(**{**p, name: array}, return_last_state=True)
        assert same_bits(y, y1) and same_bits(h, h1), label
    assert snapshot(*(a for a in p.values() if isinstance(a, np.ndarray))) == before


def test_channels_last_everywhere_changes_no_bit():
    p = problem(2, 40, 16, 200, np.float32)
    last = {
        k: np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2) if np.ndim(a) > 1 else a
        for k, a in p.items()
    }
    assert same_bits(fd.selective_scan(**p), fd.selective_scan(**last))


@pytest.mark.parametrize("dtype", REALS)
def test_chunks_equal_the_whole_bitwise(dtype):
    p = problem(2, 19, 5, 301, dtype)
    y, h = fd.selective_scan(**p, return_last_state=True)
    state, parts = p["initial_state"], []
    for piece in np.s_[:1], np.s_[1:130], np.s_[130:130], np.s_[130:]:
        q = {k: a[..., piece] if k in ("u", "delta", "z", "B", "C") else a for k, a in p.items()}
        part, state = fd.selective_scan(**{**q, "initial_state": state}, return_last_state=True)
        parts.append(part)
    assert same_bits(y, np.concatenate(parts, -1)) and same_bits(h, state)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("groups", ["time", 3])
@pytest.mark.parametrize(
    "channels, states",
    [(18, n) for n in (0, 1, 3, 7, 8, 9, 15, 16, 17, 33)] + [(3, 16), (300, 5), (300, 16)],
)
def test_steps_equal_the_scan_bitwise(dtype, groups, channels, states):
    p = problem(3, channels, states, 12, dtype, B=groups, C=groups)
    y, h = fd.selective_scan(**p, return_last_state=True)
    state = p["initial_state"].copy()
    for t in range(12):
        x, dt, B, C, z = (p[k][..., t] for k in ("u", "delta", "B", "C", "z"))
        step = fd.selective_state_update(
            state, x, dt, p["A"], B, C, p["D"], z, p["delta_bias"], True
        )
        assert same_bits(step, np.ascontiguousarray(y[..., t]))
    assert same_bits(state, h)


@pytest.mark.parametrize("batched", [True, False])
def test_packed_sequences_equal_each_by_itself(batched):
    bounds = [0, 0, 1, 130, 130, 200]
    p = problem(1, 20, 4, 200, unbatched=not batched, B="time", C=1)
    p["initial_state"] = np.random.default_rng(1).normal(size=(5, 20, 4))
    y, last = fd.selective_scan(**p, cu_seqlens=bounds, return_last_state=True)
    y0, last0 = reference.selective_scan(**p, cu_seqlens=bounds, return_last_state=True)
    assert last.shape == (5, 20, 4) and error(y, y0) < 1e-14 and error(last, last0) < 1e-14
    assert same_bits(last[0], p["initial_state"][0])
    whole = {k: v for k, v in p.items() if k != "initial_state"}
    whole["initial_state"] = p["initial_state"][4:] if batched else p["initial_state"][4]
    alone = {k: a[..., 130:] if k in ("u", "delta", "z", "B", "C") else a for k, a in whole.items()}
    assert same_bits(np.ascontiguousarray(y[..., 130:]), fd.selective_scan(**alone))


def test_thread_count_changes_no_bit():
    p = problem(2, 200, 8, 700, np.float32)
    (y, h), *others = by_threads(
        lambda: fd.selective_scan(**p, return_last_state=True), 1, 2, 3, 7, 64
    )
    assert all(same_bits(y, other) and same_bits(h, last) for other, last in others)


LEVEL_SCRIPT = """
import hashlib, sys
sys.path.insert(0, {tests!r})
import numpy as np
from test_ssm import problem
import fastderiv as fd
for dtype in np.float32, np.float64:
    for B in "time", "constant":
        p = problem(2, 37, 9, 300, dtype, B=B)
        p["delta"][0, 5] *= 40
        y, h = fd.selective_scan(**p, return_last_state=True)
        print(hashlib.sha256(y.tobytes() + h.tobytes()).hexdigest(), float(np.abs(y).sum()))
        x, dt, B, C, z = (p[k][..., 0] for k in ("u", "delta", "C", "C", "z"))
        y = fd.selective_state_update(h, x, dt, p["A"], B, C, p["D"], z, p["delta_bias"], True)
        print(hashlib.sha256(y.tobytes() + h.tobytes()).hexdigest(), float(np.abs(y).sum()))
"""


def test_cpu_levels_agree():
    assert_levels_agree(LEVEL_SCRIPT.format(tests=os.path.dirname(__file__)))


# ---- extremes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
def test_softplus_far_into_both_tails(dtype):
    p = problem(1, 16, 4, 60, dtype)
    p["delta"] = np.tile(np.linspace(-700, 700, 60, dtype=dtype), (1, 16, 1))
    (y, _), (y0, _) = both(p)
    assert np.isfinite(y).all() and error(y, y0) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("rate", [-16.0, -1e-4])
def test_long_fast_and_slow_decay(dtype, rate):
    p = problem(1, 16, 4, 4096, dtype)
    p["A"] = np.full_like(p["A"], rate)
    p["delta"], p["delta_softplus"], p["delta_bias"] = np.full_like(p["u"], 0.1), False, None
    (y, _), (y0, _) = both(p)
    assert error(y, y0) < (2e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("dtype", REALS)
def test_growing_transitions_overflow_where_they_should(dtype):
    p = problem(1, 3, 2, 200, dtype)
    p["A"] = np.array([[2.0, 2.0], [-1, -1], [0, 0]], dtype)
    p["delta"], p["delta_bias"] = np.full_like(p["u"], 5), None
    p["z"] = None
    with np.errstate(over="ignore", invalid="ignore"):
        (y, _), (y0, _) = both(p)
    assert not np.isfinite(y[0, 0, -1]) and np.isfinite(y[0, 1:]).all()
    assert error(y[0, 1:], y0[0, 1:]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", REALS)
def test_denormals_are_kept_or_become_zero(dtype):
    tiny = np.finfo(dtype).tiny
    p = problem(1, 16, 4, 50, dtype)
    p = {**p, "u": p["u"] * tiny, "initial_state": p["initial_state"] * tiny / 2}
    (y, _), (y0, _) = both(p)
    assert np.isfinite(y).all() and np.abs(y - y0).max() <= 60 * tiny


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["u", "delta", "z", "initial_state", "A", "D", "delta_bias"])
def test_nonfinite_stays_in_its_channel_and_after_its_step(dtype, bad, name):
    p = problem(2, 20, 4, 140, dtype)
    clean, clean_h = fd.selective_scan(**p, return_last_state=True)
    q = {**p, name: p[name].copy()}
    hit = np.zeros(clean.shape, bool)
    if name in ("A", "D", "delta_bias"):
        q[name][7] = bad
        hit[:, 7] = True
    elif name == "initial_state":
        q[name][1, 7] = bad
        hit[1, 7] = True
    else:
        q[name][1, 7, 130] = bad
        hit[1, 7, 130:] = True
    y, h = fd.selective_scan(**q, return_last_state=True)
    assert same_bits(y[~hit], clean[~hit])
    untouched = np.ones(h.shape[:2], bool)
    untouched[:, 7] = False
    assert same_bits(h[untouched], clean_h[untouched])
    with np.errstate(all="ignore"):
        y0 = reference.selective_scan(**q)
    if not np.isinf(bad) or name in ("u", "D"):  # silu(-inf) is 0 here, NaN in plain arithmetic
        assert np.array_equal(np.isnan(y), np.isnan(y0))


def test_infinite_step_forgets():
    one = np.ones((1, 1))
    y = fd.selective_scan(one, [[np.inf]], -one, one, one, initial_state=[[5.0]])
    assert not np.isfinite(y).any()
    y = fd.selective_scan(0 * one, [[1e30]], -one, one, one, initial_state=[[5.0]])
    assert y == 0


# ---- arguments --------------------------------------------------------------------------------


def test_dtypes_are_promoted_together():
    p = problem(1, 4, 2, 5, np.float32)
    assert fd.selective_scan(**p).dtype == np.float32
    assert fd.selective_scan(**{**p, "A": p["A"].astype(np.float64)}).dtype == np.float64
    assert fd.selective_scan(**{**p, "D": np.arange(4)}).dtype == np.float64
    assert (
        fd.selective_scan(
            **{k: a.tolist() if isinstance(a, np.ndarray) else a for k, a in p.items()}
        ).dtype
        == np.float64
    )


@pytest.mark.parametrize(
    "label",
    ["contiguous", "fortran", "strided", "negative strides", "last two swapped", "misaligned"],
)
@pytest.mark.parametrize("dtype", REALS)
def test_out_of_any_strides(dtype, label):
    p = problem(2, 21, 3, 150, dtype)
    y = fd.selective_scan(**p)
    out = dict(layouts(np.full(y.shape, 7, dtype)))[label]
    assert fd.selective_scan(**p, out=out) is out
    assert same_bits(np.ascontiguousarray(out), y)


def test_out_is_checked():
    p = problem(1, 4, 2, 6, np.float32)
    with pytest.raises(TypeError, match="out is a list; expected a NumPy array"):
        fd.selective_scan(**p, out=[0])
    with pytest.raises(TypeError, match="out has dtype float64; expected float32"):
        fd.selective_scan(**p, out=np.empty((1, 4, 6)))
    with pytest.raises(ValueError, match=r"out has shape \(4, 6\); expected \(1, 4, 6\)"):
        fd.selective_scan(**p, out=np.empty((4, 6), np.float32))
    frozen = np.empty((1, 4, 6), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        fd.selective_scan(**p, out=frozen)
    before = p["u"].copy()
    for name in "u", "delta", "z":
        with pytest.raises(ValueError, match=f"out shares memory with {name}"):
            fd.selective_scan(**p, out=p[name][:, ::-1])
    assert same_bits(before, p["u"])
    both_halves = np.zeros((1, 4, 12), np.float32)
    both_halves[..., ::2] = p["u"]
    out = fd.selective_scan(
        **{**p, "u": both_halves[..., ::2]}, out=both_halves[..., 1::2]
    )  # interleaved: no overlap
    assert same_bits(np.ascontiguousarray(out), fd.selective_scan(**p))


@pytest.mark.parametrize(
    "name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"]
)
@pytest.mark.parametrize("other", [np.float32, np.int64, ">f8"])
def test_out_may_not_overlap_an_input_that_is_converted(name, other):
    p = problem(2, 6, 3, 8)
    memory = np.zeros(4096, np.uint8)
    size = p[name].size * np.dtype(other).itemsize
    p[name] = memory[:size].view(other).reshape(p[name].shape)
    with pytest.raises(ValueError, match=f"out shares memory with {name}"):
        fd.selective_scan(**p, out=memory[: 2 * 6 * 8 * 8].view(np.float64).reshape(2, 6, 8))
    assert not memory.any()


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C", "D", "z", "dt_bias"])
def test_state_may_not_overlap_an_argument_that_is_converted(name):
    state, p = step_problem()
    memory = np.zeros(state.size, np.float64)
    p[name] = memory.view(np.float32)[: p[name].size].reshape(p[name].shape)
    with pytest.raises(ValueError, match=f"state shares memory with {name}"):
        fd.selective_state_update(memory.reshape(state.shape), **p)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C"])
def test_what_is_required_may_not_be_none(name):
    with pytest.raises(TypeError, match=f"{name} has dtype object"):
        fd.selective_scan(**{**problem(1, 2, 2, 3), name: None})


BAD_SCANS = [
    (dict(u=np.zeros(5)), ValueError, r"u has shape \(5,\); expected \(batch, D, L\) or \(D, L\)"),
    (
        dict(delta=np.zeros((2, 6, 9))),
        ValueError,
        r"delta has shape \(2, 6, 9\); expected \(batch, D, L\) = \(2, 6, 8\)",
    ),
    (
        dict(z=np.zeros((2, 1, 8))),
        ValueError,
        r"z has shape \(2, 1, 8\); expected \(batch, D, L\) = \(2, 6, 8\)",
    ),
    (dict(A=np.zeros((5, 3))), ValueError, r"A has shape \(5, 3\); expected \(D, N\) = \(6, N\)"),
    (
        dict(B=np.zeros((2, 4, 8))),
        ValueError,
        (
            r"B has shape \(2, 4, 8\); expected \(batch, N, L\) = \(2, 3, 8\), "
            r"\(batch, G, N, L\) = \(2, G, 3, 8\) with G dividing D = 6, or \(D, N\) = \(6, 3\)"
        ),
    ),
    (dict(C=np.zeros((2, 4, 3, 8))), ValueError, "C has shape .* with G dividing D = 6"),
    (dict(D=np.zeros(1)), ValueError, r"D has shape \(1,\); expected \(D,\) = \(6,\)"),
    (
        dict(delta_bias=np.zeros((6, 1))),
        ValueError,
        r"delta_bias has shape \(6, 1\); expected \(D,\) = \(6,\)",
    ),
    (
        dict(initial_state=np.zeros((6, 3))),
        ValueError,
        r"initial_state has shape \(6, 3\); expected \(batch, D, N\) = \(2, 6, 3\)",
    ),
    (
        dict(u=np.zeros((2, 6, 8), bool)),
        TypeError,
        "u has dtype bool; expected float32, float64 or integers",
    ),
    (dict(A=np.zeros((6, 3), complex)), TypeError, "A has dtype complex128"),
    (dict(B=np.zeros((2, 3, 8), np.float16)), TypeError, "B has dtype float16"),
    (dict(C=np.zeros((2, 3, 8), np.longdouble)), TypeError, "C has dtype"),
    (dict(D=["a"] * 6), TypeError, "D has dtype"),
    (dict(z=[[1], [2, 3]]), ValueError, "z is not an array of numbers"),
    (
        dict(cu_seqlens=[0, 8]),
        ValueError,
        r"cu_seqlens packs sequences along L and needs batch 1; u has shape \(2, 6, 8\)",
    ),
]


@pytest.mark.parametrize("change, kind, message", BAD_SCANS)
def test_errors_name_the_argument(change, kind, message):
    p = {**problem(2, 6, 3, 8), **change}
    with pytest.raises(kind, match=message):
        fd.selective_scan(**p)


@pytest.mark.parametrize(
    "bounds, kind",
    [
        ([0, 9], ValueError),
        ([1, 8], ValueError),
        ([0, 5, 4, 8], ValueError),
        ([[0, 8]], ValueError),
        ([], ValueError),
        ([[0, 1], [8]], ValueError),
        ([0, 2**63 - 1, -2, 8], ValueError),
        (np.array([0, 2**64 - 1, 8], np.uint64), ValueError),
        ([0.0, 8.0], TypeError),
        ([False, True], TypeError),
    ],
)
def test_bad_boundaries(bounds, kind):
    p = {**problem(1, 6, 3, 8), "initial_state": None}
    with pytest.raises(kind, match="cu_seqlens"):
        fd.selective_scan(**p, cu_seqlens=bounds)


# ---- one step ---------------------------------------------------------------------------------


def step_problem(batch=2, channels=6, states=3, dtype=np.float64):
    p = problem(batch, channels, states, 1, dtype)
    x, dt, B, C, z = (np.ascontiguousarray(p[k][..., 0]) for k in ("u", "delta", "B", "C", "z"))
    return p["initial_state"], dict(
        x=x, dt=dt, A=p["A"], B=B, C=C, D=p["D"], z=z, dt_bias=p["delta_bias"], dt_softplus=True
    )


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("unbatched", [True, False])
def test_step_equals_reference_in_any_layout_of_the_state(dtype, unbatched):
    state, p = step_problem(1 if unbatched else 2, 20, 7, dtype)
    if unbatched:
        state, p = (
            state[0],
            {k: a[0] if k in ("x", "dt", "B", "C", "z") else a for k, a in p.items()},
        )
    expected = state.astype(np.float64)
    y0 = reference.selective_state_update(expected, **p)
    for label, view in layouts(state):
        if label == "read-only":
            continue
        y = fd.selective_state_update(view, **p)
        assert (
            error(y, y0) < TOLERANCE[dtype]
            and error(view.astype(dtype), expected) < TOLERANCE[dtype]
        ), label


def scan_of_one_step(state, p):
    """What a step gives, by the scan: y and the new state."""
    x, dt, B, C, z = (
        None if p[k] is None else np.asarray(p[k])[..., None] for k in ("x", "dt", "B", "C", "z")
    )
    y, h = fd.selective_scan(
        x, dt, p["A"], B, C, p["D"], z, p["dt_bias"], p["dt_softplus"], True, initial_state=state
    )
    return np.ascontiguousarray(y[..., 0]), h


def step_equals_scan(state, p):
    y0, h0 = scan_of_one_step(state, p)
    y = fd.selective_state_update(state, **p)
    return all(
        same_bits(a[~np.isnan(a)], b[~np.isnan(b)]) and np.array_equal(np.isnan(a), np.isnan(b))
        for a, b in ((y, y0), (state, h0))
    )


@pytest.mark.parametrize("name", ["state", "x", "dt", "A", "B", "C", "D", "z", "dt_bias"])
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("states", [5, 32])
def test_layout_changes_no_bit_of_a_step(name, dtype, states):
    state, p = step_problem(2, 20, states, dtype)
    y0, h0 = scan_of_one_step(state, p)
    for label, view in layouts(state if name == "state" else p[name]):
        if name == "state" and label == "read-only":
            continue
        h = view if name == "state" else state.copy()
        before = snapshot(view)
        y = fd.selective_state_update(h, **(p if name == "state" else {**p, name: view}))
        assert same_bits(y, y0) and same_bits(np.ascontiguousarray(h, dtype), h0), label
        assert name == "state" or snapshot(view) == before


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("without", ["D", "z", "dt_bias", "dt_softplus"])
def test_every_option_of_a_step_can_be_left_out(dtype, without):
    state, p = step_problem(2, 150, 16, dtype)
    p["x"][0, 0], p["B"], p["C"] = (
        np.inf,
        np.abs(p["B"]),
        np.abs(p["C"]),
    )  # no 0·inf where D is left out
    assert step_equals_scan(state, {**p, without: False if without == "dt_softplus" else None})


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("states", [3, 16, 33])
@pytest.mark.parametrize("name", ["state", "x", "dt", "A", "B", "C", "D", "z", "dt_bias"])
def test_step_treats_extremes_as_the_scan_does(dtype, states, name):
    top = np.finfo(dtype).max
    for bad in np.nan, np.inf, -np.inf, 0.6 * top, -1e5, 0.0:
        for softplus in True, False:
            state, p = step_problem(2, 19, states, dtype)
            p["dt_softplus"] = softplus
            target = state if name == "state" else p[name]
            target[(target.shape[0] - 1, *(1,) * (target.ndim - 1))] = bad
            assert step_equals_scan(state, p), (bad, softplus)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("states", [3, 16])
def test_step_is_right_where_only_the_power_of_two_overflows(dtype, states):
    state, p = step_problem(1, 16, states, dtype)
    p |= dict(
        A=np.ones_like(p["A"]), dt=np.full_like(p["dt"], 0.42), dt_bias=None, dt_softplus=False
    )  # e^0.42 is 2·0.76
    state[0, 2, 1] = 0.6 * np.finfo(dtype).max
    p["C"][0, 1] = 0
    expected = state[0, 2, 1] * np.exp(0.42)
    assert step_equals_scan(state, p)
    assert np.isclose(state[0, 2, 1], expected, rtol=1e-6) and np.isfinite(state).all()


def test_thread_count_changes_no_bit_of_a_step():
    state, p = step_problem(64, 700, 16, np.float32)

    def step():
        h = state.copy()
        return fd.selective_state_update(h, **p), h

    assert all(map(same_bits, *by_threads(step, 1, 3)))


def test_step_of_a_state_interleaved_with_its_argument():
    state, p = step_problem()
    both_halves = np.zeros((*state.shape[:2], 2 * state.shape[2]))
    h, x = both_halves[..., ::2], both_halves[..., 1]
    h[...], x[...] = state, p["x"]
    y0, h0 = scan_of_one_step(state, p)
    assert same_bits(fd.selective_state_update(h, **{**p, "x": x}), y0) and same_bits(
        np.ascontiguousarray(h), h0
    )
    assert same_bits(np.ascontiguousarray(x), p["x"])


def test_step_works_in_the_dtype_of_the_state():
    state, p = step_problem(dtype=np.float32)
    wide = {k: a.astype(np.float64) if isinstance(a, np.ndarray) else a for k, a in p.items()}
    a, b = state.copy(), state.copy()
    assert same_bits(
        fd.selective_state_update(a, **p), fd.selective_state_update(b, **wide)
    ) and same_bits(a, b)


def test_step_leaves_the_state_alone_when_it_raises():
    state, p = step_problem()
    before = state.copy()
    for change in (
        dict(x=np.zeros((2, 5))),
        dict(A=np.zeros((6, 4))),
        dict(B=np.zeros((2, 4))),
        dict(D=np.zeros(3)),
        dict(z=np.zeros(2)),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(change))} has shape"):
            fd.selective_state_update(state, **{**p, **change})
    with pytest.raises(ValueError, match="state shares memory with x"):
        fd.selective_state_update(state, **{**p, "x": state[:, :, 0]})
    with pytest.raises(TypeError, match="state is a list"):
        fd.selective_state_update(state.tolist(), **p)
    with pytest.raises(TypeError, match="state has dtype int64"):
        fd.selective_state_update(state.astype(np.int64), **p)
    frozen = state.view()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="state is read-only"):
        fd.selective_state_update(frozen, **p)
    assert same_bits(before, state)


# ---- the product of the transitions -----------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("steps", [0, 1, 5, 12])
def test_theorem_both_routes_agree(dtype, steps):
    rng = np.random.default_rng(steps)
    delta, A = (rng.normal(size=s).astype(dtype) for s in ((2, 3, 5, steps), (5, 4)))
    closed, subsets = (fd.transition_product(delta, A, method=m) for m in ("closed", "subsets"))
    exact = reference.transition_product(delta, A)
    assert closed.shape == (2, 3, 5, 4) and closed.dtype == dtype
    tolerance = 2e-6 if dtype == np.float32 else 1e-14
    assert error(closed, exact) < tolerance and error(subsets, exact) < tolerance
    assert error(reference.transition_product(delta, A, method="subsets"), exact) < 1e-13


def test_theorem_where_single_terms_overflow():
    delta, A = np.full((1, 20), 400.0), np.array([[-1e-3, 0.0]])
    closed, subsets = (fd.transition_product(delta, A, method=m) for m in ("closed", "subsets"))
    np.testing.assert_allclose(closed, subsets, rtol=1e-13)
    np.testing.assert_allclose(closed, [[np.exp(-8.0), 1]], rtol=1e-13)


def test_product_is_what_the_scan_multiplies_by():
    rng = np.random.default_rng(0)
    delta, A = rng.normal(size=(3, 9)), -rng.random((3, 2))
    zero = np.zeros((3, 9))
    _, last = fd.selective_scan(
        zero,
        delta,
        A,
        zero[:, :2],
        zero[:, :2],
        delta_softplus=True,
        return_last_state=True,
        initial_state=np.ones((3, 2)),
    )
    np.testing.assert_allclose(last, fd.transition_product(delta, A), rtol=1e-14)


def test_product_in_pieces():
    rng = np.random.default_rng(0)
    for shape, states in ((3, 2, 5), 700_000), ((2, 600, 4), 900), ((300, 40, 3), 150):
        delta, A = (
            rng.normal(size=shape).astype(np.float32),
            -rng.random((shape[-2], states), np.float32),
        )
        product = fd.transition_product(delta, A)
        np.testing.assert_allclose(
            product, np.exp(fd.subset_logsumexp(delta)[..., None] * A), rtol=1e-5
        )


def test_product_errors():
    with pytest.raises(
        ValueError, match="preactivation has 63 steps; expected at most 62 by method 'subsets'"
    ):
        fd.transition_product(np.zeros((1, 63)), np.zeros((1, 1)), method="subsets")
    with pytest.raises(ValueError, match="method is 'sum'; expected 'closed' or 'subsets'"):
        fd.transition_product(np.zeros((2, 3)), np.zeros((2, 1)), method="sum")
    with pytest.raises(ValueError, match=r"A has shape \(3, 1\); expected \(D, N\) = \(2, N\)"):
        fd.transition_product(np.zeros((2, 3)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"preactivation has shape \(3,\); expected \(..., D, L\)"):
        fd.transition_product(np.zeros(3), np.zeros((3, 1)))


# ---- threads, processes, signals --------------------------------------------------------------


def test_many_python_threads_at_once():
    p = problem(1, 100, 8, 600, np.float32)
    expected = fd.selective_scan(**p)
    results = [None] * 8

    def work(i):
        for _ in range(5):
            results[i] = fd.selective_scan(**p)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(same_bits(r, expected) for r in results)


FORK_SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
import numpy as np
from test_ssm import problem
import fastderiv as fd
fd.set_num_threads(3)
p = problem(2, 100, 8, 600, np.float32)
expected = fd.selective_scan(**p)              # the pool exists now
pid = os.fork()
same = all(np.array_equal(fd.selective_scan(**p), expected) for _ in range(3))
if pid == 0:
    os._exit(0 if same else 1)
assert same and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
import multiprocessing
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [1, -2]) == [1, 2]
print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_after_the_pool_was_used():
    script = FORK_SCRIPT.format(tests=os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.strip() == "fine", done.stderr


def _scan_sum(seed):
    return float(fd.selective_scan(**problem(1, 50, 4, 300, np.float32, seed=seed)).sum())


def test_spawned_processes():
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_scan_sum, [1, 2]) == [_scan_sum(1), _scan_sum(2)]


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_is_answered_at_once(threads):
    # seconds of work; of the result's memory only what is written exists
    long = np.broadcast_to(np.ones((32, 1), np.float32), (32, 10_000_000))
    coefficient = np.broadcast_to(np.ones((1, 16, 1), np.float32), (1, 16, 10_000_000))
    A, before = -np.ones((32, 16), np.float32), fd.get_num_threads()
    fd.set_num_threads(threads)
    try:
        assert (
            seconds_until_answered(
                lambda: fd.selective_scan(long, long, A, coefficient, coefficient)
            )
            < ALLOWED
        )
    finally:
        fd.set_num_threads(before)


DAEMON_SCRIPT = """
import sys, threading, time
import numpy as np
import fastderiv as fd
fd.set_num_threads(4)
u, out = np.ones((4, 512, 10240), np.float32), np.empty((4, 512, 10240), np.float32)
A, B = -np.ones((512, 16), np.float32), np.ones((4, 16, 10240), np.float32)

def deep(n):                                    # a C stack that unwinding visibly overwrites
    if n == 0:
        while True:
            fd.selective_scan(u, u, A, B, B, out=out)
    return max([n], key=lambda _: deep(n - 1))

threading.Thread(target=deep, args=(60,), daemon=True).start()

class Slow:                                     # keeps the interpreter finalizing for a while
    def __del__(self, sleep=time.sleep):
        sleep(0.3)

slow = Slow()
slow.cycle = sys.slow = slow
time.sleep(0.2)
"""


def test_interpreter_ends_while_a_daemon_thread_computes():
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", DAEMON_SCRIPT],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr


FORK_IN_HANDLER_SCRIPT = """
import os, signal, sys, time
import numpy as np
import fastderiv as fd
fd.set_num_threads(3)
u = np.broadcast_to(np.float32(0), (256, 1_000_000))
B = np.broadcast_to(np.float32(0), (1, 16, 1_000_000))
child = []
signal.signal(signal.SIGALRM, lambda *_: child.append(os.fork()))
for delay in 0.1, 0.5, 2.5:             # longer where the machine has not begun with the call yet
    child.clear()
    signal.setitimer(signal.ITIMER_REAL, delay)
    try:
        fd.selective_scan(u, u, -np.ones((256, 16), np.float32), B, B)
    except RuntimeError as error:
        assert child == [0] and "forked" in str(error), (child, error)
        u, A = np.ones((64, 9000)), np.ones((64, 16))
        fd.selective_scan(u, u, -A, A, A)
        os._exit(7)
    assert child, "the call was over before the signal came"
    if child[0] == 0:
        os._exit(3)                     # forked before the call had begun
    code = os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1])
    if code != 3:
        break
assert code == 7, code
print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_signal_handler_that_forks_amid_a_call():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK_IN_HANDLER_SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.strip() == "fine", done.stderr


MEMORY_SCRIPT = """
import resource
import numpy as np
import fastderiv as fd
fd.set_num_threads(2)
rng = np.random.default_rng(0)
u, delta, z = (rng.random((1, 512, 4096), np.float32) for _ in range(3))
# strided along time: gathered block by block
B, C = (rng.random((1, 4096, 16), np.float32).swapaxes(1, 2) for _ in range(2))
A, out = -rng.random((512, 16), np.float32), np.zeros_like(u)
fd.selective_scan(*(a[..., :64] for a in (u, delta)), A, *(a[..., :64] for a in (B, C)),
                  z=z[..., :64], out=out[..., :64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fd.selective_scan(u, delta, A, B, C, z=z, delta_softplus=True, out=out)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux"
)
def test_memory_is_inputs_and_outputs():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) < 2048  # KiB: 1 MiB per thread; a (B, D, L, N) array would be 128 MiB


LONG_SCRIPT = """
import resource
import numpy as np
import fastderiv as fd
u = np.ones((1, 10_000_000), np.float32)
delta, out, one = np.full_like(u, 0.01), np.zeros_like(u), np.ones((1, 2), np.float32)
fd.selective_scan(u[:, :64], delta[:, :64], -one, one, one, out=out[:, :64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fd.selective_scan(u, delta, -one, one, one, out=out)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert np.abs(out[0, 5000:] / (0.02 / -np.expm1(-0.01)) - 1).max() < 2e-5
print(grown)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux"
)
def test_ten_million_steps_in_one_call():
    done = subprocess.run(
        [sys.executable, "-c", LONG_SCRIPT], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) < 1024  # KiB; the arrays take 40 MB each


STEP_MEMORY_SCRIPT = """
import resource
import numpy as np
import fastderiv as fd
rng = np.random.default_rng(0)
# 16 MiB and 4 MiB
state, A = rng.random((4, 4096, 256), np.float32), -rng.random((4096, 256), np.float32)
x, B = rng.random((4, 4096), np.float32), rng.random((4, 256), np.float32)
fd.selective_state_update(state[:, :16, :4], x[:, :16], x[:, :16], A[:16, :4], B[:, :4], B[:, :4])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fd.selective_state_update(state, x, x, A, B, B)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux"
)
def test_step_copies_no_argument():
    done = subprocess.run(
        [sys.executable, "-c", STEP_MEMORY_SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) < 2048


# ---- other oracles ----------------------------------------------------------------------------


def test_equals_pytorch_loop():
    torch = pytest.importorskip("torch")
    p = problem(2, 12, 5, 60)
    t = {k: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for k, a in p.items()}
    dt = torch.nn.functional.softplus(t["delta"] + t["delta_bias"][:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, t["A"]))
    feed = torch.einsum("bdl,bnl,bdl->bdln", dt, t["B"], t["u"])
    h, ys = t["initial_state"], []
    for i in range(60):
        h = decay[:, :, i] * h + feed[:, :, i]
        ys.append(torch.einsum("bdn,bn->bd", h, t["C"][:, :, i]))
    y = (torch.stack(ys, -1) + t["D"][:, None] * t["u"]) * torch.nn.functional.silu(t["z"])
    assert error(fd.selective_scan(**p), y.numpy()) < 1e-14


def longdouble_scan(p):
    """The scan in extended precision, last state included."""
    q = {k: a.astype(np.longdouble) if isinstance(a, np.ndarray) else a for k, a in p.items()}
    dt = np.logaddexp(0, q["delta"] + q["delta_bias"][:, None])
    h = q["initial_state"]
    y = np.empty(dt.shape, np.longdouble)
    for t in range(dt.shape[-1]):
        step = dt[:, :, t, None]
        h = np.exp(step * q["A"]) * h + step * q["B"][:, None, :, t] * q["u"][:, :, t, None]
        y[:, :, t] = (h * q["C"][:, None, :, t]).sum(-1)
    z = q["z"]
    return (y + q["D"][:, None] * q["u"]) * z / (1 + np.exp(-z)), h


@pytest.mark.slow
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("shape", [(1, 1536, 16, 1024), (8, 256, 16, 512), (1, 64, 16, 65536)])
def test_accuracy_at_the_benchmarked_shapes(shape, dtype, tolerance):
    p = problem(*shape, dtype)
    p["A"] = -np.tile(np.arange(1, 17, dtype=dtype), (shape[1], 1))
    p["delta_bias"] = np.log(np.expm1(np.geomspace(1e-3, 1e-1, shape[1]))).astype(dtype)
    y, h = fd.selective_scan(**p, return_last_state=True)
    y0, h0 = longdouble_scan(p)
    assert error(y, y0) < tolerance and error(h, h0) < tolerance
