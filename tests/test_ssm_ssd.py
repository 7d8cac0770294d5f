"""Mamba-2's scan: against the reference, against itself in pieces, and at the edges."""

import itertools
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference
from fastderiv.reference import ssd
from fastderiv.ssm.ssd._call import SSDCall
from helpers.awkward import error, error_in_sums, layouts, magnitudes, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads

TOLERANCE = {np.float32: 3e-6, np.float64: 1e-12}
REALS = [np.float32, np.float64]
SIGNALS = ("x", "dt", "B", "C", "z")  # what has a time axis


def ssd_problem(
    batch,
    steps,
    heads,
    width,
    states,
    dtype=np.float64,
    *,
    groups=1,
    D="head",
    seed=0,
    unbatched=False,
    segments=None,
):
    """Arguments of `ssd_scan` with every option on.

    D is of the kind "head" (H,), "channel" (H, P) or None; `segments` is the number of initial
    states if sequences are packed.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    p = dict(
        x=normal(batch, steps, heads, width),
        dt=normal(batch, steps, heads) - dtype(1),
        A=-np.exp(normal(heads)),
        B=normal(batch, steps, groups, states),
        C=normal(batch, steps, groups, states),
        D=None if D is None else normal(heads, width) if D == "channel" else normal(heads),
        z=normal(batch, steps, heads, width),
        dt_bias=normal(heads),
        dt_softplus=True,
        dt_limit=(0.01, 3.0),
        initial_state=normal(batch if segments is None else segments, heads, width, states),
    )
    if unbatched:
        for name in (*SIGNALS, "initial_state"):
            if name != "initial_state" or segments is None:
                p[name] = p[name][0]
    return p


def both(p, **options):
    """Result and last state: ours, and the reference's."""
    ours = fd.ssd_scan(**p, return_last_state=True, **options)
    return ours, reference.ssd_scan(**p, return_last_state=True, **options)


def assert_close(ours, exact, dtype):
    for a, b in zip(ours, exact, strict=True):
        assert a.shape == b.shape and a.dtype == dtype and error(a, b) < TOLERANCE[dtype]


def oracle(p):
    """Result and last state of a batch without `dt_limit`, in long double."""
    q = {k: a.astype(np.longdouble) if isinstance(a, np.ndarray) else a for k, a in p.items()}
    step = ssd._step_sizes(q["dt"], q["dt_bias"], q["dt_softplus"], q["dt_limit"])
    first = np.longdouble(0) if q["initial_state"] is None else q["initial_state"]
    return ssd._sequences(q["x"], step, q["A"], q["B"], q["C"], q["D"], q["z"], first)


def arrays_of(p):
    return [a for a in p.values() if isinstance(a, np.ndarray)]


# ---- against the reference ---------------------------------------------------------------------

# (batch, L, H, P, N, G): sizes that are multiples of nothing, of everything, and beyond a panel
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 7, 3, 5, 3, 3),
    (1, 40, 2, 64, 128, 1),
    (2, 100, 4, 16, 16, 2),
    (1, 65, 6, 80, 33, 3),
    (1, 300, 3, 5, 7, 1),
    (1, 200, 2, 129, 24, 2),
    (1, 20, 2, 3, 1025, 1),
    (1, 257, 4, 33, 8, 4),
]


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start", [True, False])
def test_ssd_scan_equals_reference(shape, dtype, start):
    *sizes, groups = shape
    p = ssd_problem(*sizes, dtype, groups=groups, D="channel" if groups == 3 else "head")
    if not start:
        p["initial_state"] = None
    ours, exact = both(p)
    sums = reference.ssd_scan(**magnitudes(p), return_last_state=True)
    for a, b, s in zip(ours, exact, sums, strict=True):
        assert a.shape == b.shape and a.dtype == dtype
        assert error_in_sums(a, b, s) < TOLERANCE[dtype]


@pytest.mark.parametrize("without", ["D", "z", "dt_bias", "dt_softplus", "dt_limit"])
@pytest.mark.parametrize("steps", [31, 150])
def test_every_option_can_be_left_out(without, steps):
    p = ssd_problem(2, steps, 4, 9, 40)
    p["dt"] = np.abs(p["dt"]) / 4
    if without == "dt_limit":
        del p["dt_limit"]
    else:
        p[without] = False if without == "dt_softplus" else None
    for start in p["initial_state"], None:
        assert_close(*both({**p, "initial_state": start}), np.float64)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2),
    st.integers(0, 150),
    st.sampled_from([(0, 1), (1, 1), (2, 2), (4, 2), (6, 3), (9, 1)]),
    st.integers(0, 70),
    st.integers(0, 70),
    st.sampled_from(REALS),
    st.sampled_from(["head", "channel", None]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_shape_empty_ones_too(batch, steps, heads, width, states, dtype, D, start, seed):
    p = ssd_problem(batch, steps, heads[0], width, states, dtype, groups=heads[1], D=D, seed=seed)
    if not start:
        p["initial_state"] = None
    assert_close(*both(p), dtype)


@pytest.mark.parametrize("low, high", [(0.1, 0.2), (-np.inf, np.inf), (0, 0), (-0.5, -0.1)])
def test_step_sizes_are_limited(low, high):
    p = {**ssd_problem(1, 50, 3, 4, 5), "dt_limit": (low, high), "dt_softplus": False}
    assert_close(*both(p), np.float64)


@pytest.mark.parametrize("steps", [20, 150])
def test_unbatched_equals_batch_of_one(steps):
    for start in True, False:
        results = []
        for unbatched in True, False:
            p = ssd_problem(1, steps, 4, 8, 16, groups=2, unbatched=unbatched)
            p["initial_state"] = p["initial_state"] if start else None
            results.append(fd.ssd_scan(**p, return_last_state=True))
        (y, h), (y1, h1) = results
        assert same_bits(y, y1[0]) and same_bits(h, h1[0])


# ---- the same bits, however it is asked --------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state", "out"]
)
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("shape", [(2, 70, 4, 21, 16, 2), (1, 40, 2, 64, 32, 1)])
def test_layout_changes_no_bit(name, dtype, shape):
    *sizes, groups = shape
    p = ssd_problem(*sizes, dtype, groups=groups, D="channel")
    for start in (p["initial_state"], None) if name != "initial_state" else (p["initial_state"],):
        q = {**p, "initial_state": start}
        y, h = fd.ssd_scan(**q, return_last_state=True)
        before = snapshot(*arrays_of(q))
        for label, array in layouts(y if name == "out" else p[name]):
            if name == "out" and label in ("read-only", "byte-swapped"):
                continue
            y1, h1 = fd.ssd_scan(**{**q, name: array}, return_last_state=True)
            assert same_bits(y, np.ascontiguousarray(y1)) and same_bits(h, h1), label
        assert snapshot(*arrays_of(q)) == before


@pytest.mark.parametrize("steps", [40, 300])
def test_what_is_returned_beside_changes_no_bit(steps):
    p = {**ssd_problem(2, steps, 3, 8, 64, np.float32), "initial_state": None}
    y = fd.ssd_scan(**p)
    y1, h1 = fd.ssd_scan(**p, return_last_state=True)
    y2, h2, _ = fd.ssd_scan(**p, return_last_state=True, return_cache=True)
    y3, _ = fd.ssd_scan(**p, return_cache=True)
    assert all(same_bits(y, other) for other in (y1, y2, y3)) and same_bits(h1, h2)


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_packed_sequences_equal_each_by_itself(start, batched):
    bounds = [0, 0, 1, 130, 130, 260, 300]
    p = ssd_problem(1, 300, 4, 20, 70, groups=2, unbatched=not batched, segments=6)
    if not start:
        p["initial_state"] = None
    ours, exact = both(p, cu_seqlens=bounds)
    assert_close(ours, exact, np.float64)
    y, last = ours
    assert last.shape == (6, 4, 20, 70)
    for k, (a, b) in enumerate(itertools.pairwise(bounds)):
        here = np.s_[:, a:b] if batched else np.s_[a:b]
        q = {name: value[here] if name in SIGNALS else value for name, value in p.items()}
        if start:
            q["initial_state"] = p["initial_state"][k : k + 1] if batched else p["initial_state"][k]
        y1, last1 = fd.ssd_scan(**q, return_last_state=True)
        assert same_bits(np.ascontiguousarray(y[here]), y1)
        assert same_bits(last[k], last1[0] if batched else last1)


@pytest.mark.parametrize("steps", [100, 1500])
def test_thread_count_changes_no_bit(steps):
    p = ssd_problem(2, steps, 6, 48, 80, np.float32, groups=2)
    for start in p["initial_state"], None:
        (y, h), *others = by_threads(
            lambda start=start: fd.ssd_scan(
                **{**p, "initial_state": start}, return_last_state=True
            ),
            *(1, 2, 3, 7, 64),
        )
        assert all(same_bits(y, other) and same_bits(h, last) for other, last in others)


LEVEL_SCRIPT = """
import hashlib, sys
sys.path.insert(0, {tests!r})
import numpy as np
from test_ssm_ssd import ssd_problem
import fastderiv as fd
for dtype in np.float32, np.float64:
    for shape in (2, 90, 4, 37, 64), (1, 300, 2, 16, 5), (1, 50, 2, 1, 1):
        for start in True, False:
            p = ssd_problem(*shape, dtype, groups=2)
            p["dt"][0, 5] *= 40
            p["x"][0, 9] *= 1e25
            if not start:
                p["initial_state"] = None
            y, h = fd.ssd_scan(**p, return_last_state=True)
            print(hashlib.sha256(y.tobytes() + h.tobytes()).hexdigest(), float(np.abs(y).sum()))
"""


def test_cpu_levels_agree():
    assert_levels_agree(LEVEL_SCRIPT.format(tests=os.path.dirname(__file__)))


# ---- pieces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
def test_chunks_with_a_carried_state_equal_the_whole(dtype):
    p = ssd_problem(2, 301, 3, 19, 40, dtype)
    (y, h), _ = both(p)
    state, parts = p["initial_state"], []
    for piece in np.s_[:, :1], np.s_[:, 1:130], np.s_[:, 130:130], np.s_[:, 130:]:
        q = {k: a[piece] if k in SIGNALS else a for k, a in p.items()}
        part, state = fd.ssd_scan(**{**q, "initial_state": state}, return_last_state=True)
        parts.append(part)
    assert_close((np.concatenate(parts, 1), state), (y, h), dtype)


def test_no_step_leaves_the_state():
    p = ssd_problem(2, 0, 3, 4, 5)
    y, h = fd.ssd_scan(**p, return_last_state=True)
    assert y.shape == (2, 0, 3, 4) and same_bits(h, p["initial_state"])
    h = fd.ssd_scan(**{**p, "initial_state": None}, return_last_state=True)[1]
    assert h.shape == (2, 3, 4, 5) and not h.any()


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("steps, start", [(1, True), (64, True), (300, True), (150, False)])
def test_the_cache_holds_the_states_before_chunks(dtype, steps, start):
    p = ssd_problem(2, steps, 3, 5, 120, dtype)
    if not start:
        p["initial_state"] = None
    _, cache = fd.ssd_scan(**p, return_cache=True)
    call = SSDCall(**p)
    kept = call.kept(cache)
    for c in range(-(-steps // SSDCall.CHUNK)):
        q = {k: a[:, : c * SSDCall.CHUNK] if k in SIGNALS else a for k, a in p.items()}
        states = reference.ssd_scan(**q, return_last_state=True)[1]
        ours = kept.reshape(2, -1, 3, 120, 5)[:, c].swapaxes(-1, -2)
        assert error(ours, states) < TOLERANCE[dtype]


def test_the_cache_of_packed_sequences_holds_the_states_before_chunks():
    bounds = [0, 70, 70, 264, 300]
    p = ssd_problem(1, 300, 2, 5, 6, segments=4)
    _, cache = fd.ssd_scan(**p, cu_seqlens=bounds, return_cache=True)
    kept = SSDCall(**p, cu_seqlens=bounds).kept(cache)
    for k, (a, b) in enumerate(itertools.pairwise(bounds)):
        for c in range(-(-(b - a) // SSDCall.CHUNK)):
            q = {
                name: v[:, a : a + c * SSDCall.CHUNK] if name in SIGNALS else v
                for name, v in p.items()
            }
            q["initial_state"] = p["initial_state"][k : k + 1]
            state = reference.ssd_scan(**q, return_last_state=True)[1][0]
            assert error(kept[a // SSDCall.CHUNK + k + c].swapaxes(-1, -2), state) < 1e-14


def test_a_cache_knows_its_call():
    p = ssd_problem(1, 70, 2, 4, 8)
    _, cache = fd.ssd_scan(**p, return_cache=True)
    assert SSDCall(**p).kept(cache) is SSDCall(**p).kept(cache)
    assert SSDCall(**{**p, "C": p["C"] + 1}).kept(cache) is not None  # no state depends on C
    for name in "x", "dt", "A", "B", "dt_bias", "initial_state":
        with pytest.raises(ValueError, match=f"another {name}"):
            SSDCall(**{**p, name: p[name] + 1}).kept(cache)
    for name, other in ("dt_softplus", False), ("dt_limit", (0, 1)):
        with pytest.raises(ValueError, match=f"another {name}"):
            SSDCall(**{**p, name: other}).kept(cache)
    with pytest.raises(ValueError, match=r"\(dtype, batch, L, H, P, G, N\)"):
        SSDCall(**ssd_problem(1, 71, 2, 4, 8)).kept(cache)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(cache)


# ---- extremes ----------------------------------------------------------------------------------


def long_problem(steps, dtype, rates):
    p = ssd_problem(1, steps, len(rates), 2, 3, dtype)
    p["A"] = -np.array(rates, dtype)
    return {**p, "dt_limit": (0, np.inf)}


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("steps", [200, 4096, pytest.param(65536, marks=pytest.mark.slow)])
def test_long_sequences_of_any_decay(dtype, steps):
    rates = [1e-5, 1e-3, 0.1, 1, 10, 100, 1000]
    p = long_problem(steps, dtype, rates)
    exact = oracle(p)
    ours = fd.ssd_scan(**p, return_last_state=True)
    for h in range(7):  # head by head, as they differ in size
        for a, b in zip(ours, exact, strict=True):
            axis = 2 if a is ours[0] else 1
            # the roundings of a state that forgets nothing add up, as its docstring says
            tolerance = TOLERANCE[dtype] * (3 if rates[h] * steps < 1 and steps > 10000 else 1)
            assert error(a.take(h, axis), b.take(h, axis)) < tolerance


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("steps", [100, 5000])
def test_constant_step_sizes_accumulate_no_error(dtype, steps):
    p = long_problem(steps, dtype, [1e-3, 3e-2, 1])
    p = {**p, "dt": np.full_like(p["dt"], 0.1), "dt_bias": None, "dt_softplus": False, "z": None}
    p["x"] = np.abs(p["x"])
    for start in p["initial_state"], None:
        q = {**p, "initial_state": start}
        y, exact = fd.ssd_scan(**q), oracle(q)[0]
        for h in range(3):
            assert error(y[:, :, h], exact[:, :, h]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("steps", [60, 300])
def test_growth_and_step_sizes_of_any_sign(dtype, steps):
    p = ssd_problem(1, steps, 4, 5, 80, dtype)
    p["A"] = np.array([0.05, 0, -1, -0.05], dtype)
    p = {**p, "dt_softplus": False, "dt_bias": None, "dt_limit": (-np.inf, np.inf)}
    p["dt"] = p["dt"] + dtype(1)
    for start in p["initial_state"], None:
        ours, exact = both({**p, "initial_state": start})
        for h in range(4):
            assert error(ours[0][:, :, h], exact[0][:, :, h]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("steps", [60, 300])
@pytest.mark.parametrize("start", [True, False])
def test_states_that_overflow_only_in_their_scale_are_right(dtype, steps, start):
    p = ssd_problem(1, steps, 3, 5, 80, dtype)
    large = 1e30 if dtype == np.float32 else 1e300
    p["x"] = (p["x"] * large).astype(dtype)
    p = {**p, "dt": np.full_like(p["dt"], 0.5), "dt_softplus": False, "dt_bias": None, "z": None}
    p["A"] = np.full_like(p["A"], -1)
    p["x"][:, :, 1] = p["x"][:, :, 1] / large  # a head that stays on the fast path
    if not start:
        p["initial_state"] = None
    ours, exact = both(p)
    assert np.isfinite(ours[0]).all() and np.isfinite(ours[1]).all()
    assert_close(ours, exact, dtype)


def large_steps(steps, states, dtype):
    """One head whose states are large, and larger in their scale; C makes y small."""
    large = 1e20 if dtype == np.float32 else 1e290
    x = np.full((steps, 1, 1), large, dtype)
    B = np.full((steps, 1, states), 100, dtype)
    return x, np.full((steps, 1), 1.3, dtype), np.array([-30], dtype), B, (B * 1e-8).astype(dtype)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("steps, states", [(1, 4), (200, 256), (300, 4)])
def test_states_are_right_where_only_they_overflow_in_their_scale(steps, states, start, dtype):
    p = large_steps(steps, states, dtype)
    zeros = np.zeros((1, 1, states), dtype) if start else None
    y, last, cache = fd.ssd_scan(*p, return_last_state=True, initial_state=zeros, return_cache=True)
    y0, last0 = reference.ssd_scan(*p, return_last_state=True)
    assert error(y, y0) < TOLERANCE[dtype] and error(last, last0) < TOLERANCE[dtype]
    if not start:
        assert same_bits(fd.ssd_chunk_summary(*p[:4]).q, last)
    dout = np.full_like(y, 1e-9)
    alone = fd.ssd_scan_vjp(dout, *p, initial_state=zeros)
    cached = fd.ssd_scan_vjp(dout, *p, initial_state=zeros, cache=cache)
    for a, b in zip(alone, cached, strict=True):
        assert a is None or (np.isfinite(b).all() and error(b, a) < 10 * TOLERANCE[dtype])


@pytest.mark.parametrize("steps", [1, 2, 70, 300])
@pytest.mark.parametrize("A, dt", [(np.nan, 1.0), (np.inf, 1.0), (-np.inf, 0.0)])
def test_zero_times_infinity_is_nan_in_the_first_step_too(A, dt, steps):
    one = np.ones((steps, 1, 1))
    given = one, np.full((steps, 1), dt), [A], one, one
    y, last = fd.ssd_scan(*given, return_last_state=True)
    begun = fd.ssd_scan(*given, initial_state=np.zeros((1, 1, 1)))
    assert np.isnan(y).all() and np.isnan(last).all() and np.isnan(begun).all()


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("rate", [1.0, 10, 100])
def test_growing_transitions_overflow_where_they_should(dtype, rate):
    p = ssd_problem(1, 150, 2, 3, 4, dtype)
    p["A"] = np.array([rate, -1], dtype)
    p["dt"], p["dt_bias"] = np.full_like(p["dt"], 8), None
    p = {**p, "z": None, "dt_limit": (0, np.inf)}
    with np.errstate(over="ignore", invalid="ignore"):
        (y, h), (y0, _) = both(p)
    assert not np.isfinite(y[0, -1, 0]).any() and np.isfinite(y[0, :, 1]).all()
    assert error(y[:, :, 1], y0[:, :, 1]) < TOLERANCE[dtype]
    assert np.isfinite(h[0, 1]).all() and not np.isfinite(h[0, 0]).any()


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("start", [True, False])
def test_denormals_are_kept_or_become_zero(dtype, start):
    tiny = np.finfo(dtype).tiny
    p = ssd_problem(1, 50, 2, 16, 40, dtype)
    p = {**p, "x": p["x"] * tiny, "initial_state": p["initial_state"] * tiny / 2 if start else None}
    y, y0 = fd.ssd_scan(**p), reference.ssd_scan(**p)
    assert np.isfinite(y).all() and np.abs(y - y0).max() <= 300 * tiny


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x", "dt", "z", "B", "C", "initial_state", "A", "D", "dt_bias"])
@pytest.mark.parametrize("steps, start", [(60, False), (60, True), (150, True)])
def test_nonfinite_stays_in_its_head_and_after_its_step(dtype, bad, name, steps, start):
    p = ssd_problem(2, steps, 4, 20, 50, dtype, groups=2)
    p["dt_limit"] = (-np.inf, np.inf)
    if not start:
        if name == "initial_state":
            return
        p["initial_state"] = None
    clean, clean_h = fd.ssd_scan(**p, return_last_state=True)
    q = {**p, name: p[name].copy()}
    hit, hit_h = np.zeros(clean.shape, bool), np.zeros(clean_h.shape, bool)
    at = {
        "x": np.s_[1, 37:, 3, 5],
        "dt": np.s_[1, 37:, 3],
        "z": np.s_[1, 37, 3, 5],
        "B": np.s_[1, 37:, 2:],
        "C": np.s_[1, 37, 2:],
        "initial_state": np.s_[1, :, 3, 5],
        "D": np.s_[:, :, 3],
        "A": np.s_[:, :, 3],
        "dt_bias": np.s_[:, :, 3],
    }[name]
    first = {
        "x": (1, 37, 3, 5),
        "dt": (1, 37, 3),
        "z": (1, 37, 3, 5),
        "B": (1, 37, 1, 7),
        "C": (1, 37, 1, 7),
        "initial_state": (1, 3, 5, 7),
    }.get(name, (3,))
    q[name][first] = bad
    hit[at] = True
    state_at = {
        "x": np.s_[1, 3, 5],
        "dt": np.s_[1, 3],
        "B": np.s_[1, 2:, :, 7],
        "initial_state": np.s_[1, 3, 5, 7],
        "A": np.s_[:, 3],
        "dt_bias": np.s_[:, 3],
    }
    if name in state_at:
        hit_h[state_at[name]] = True
    y, h = fd.ssd_scan(**q, return_last_state=True)
    # a head that ran again without scale is rounded otherwise
    same = np.ones(4, bool)
    same[2 if name in "BC" else 3 :] = False
    assert same_bits(y[:, :, same], clean[:, :, same]) and same_bits(h[:, same], clean_h[:, same])
    assert np.isfinite(y[~hit]).all() and error(y[~hit], clean[~hit]) < TOLERANCE[dtype]
    assert np.isfinite(h[~hit_h]).all() and error(h[~hit_h], clean_h[~hit_h]) < TOLERANCE[dtype]
    with np.errstate(all="ignore"):
        y0, h0 = reference.ssd_scan(**q, return_last_state=True)
    if name != "z" or not np.isinf(bad):  # silu(-inf) is 0 here, NaN in plain arithmetic
        assert np.array_equal(np.isnan(y), np.isnan(y0))
        assert np.array_equal(np.isinf(y), np.isinf(y0))
    assert np.array_equal(np.isnan(h), np.isnan(h0)) and np.array_equal(np.isinf(h), np.isinf(h0))


def test_an_infinite_step_forgets():
    one = np.ones((1, 1, 1, 1))
    y = fd.ssd_scan(one, [[[np.inf]]], [-1], one, one, initial_state=[[[[5.0]]]])
    assert np.isposinf(y).all()
    assert fd.ssd_scan(0 * one, [[[1e30]]], [-1], one, one, initial_state=[[[[5.0]]]]) == 0


# ---- PyTorch as a second oracle ----------------------------------------------------------------


@pytest.mark.parametrize("steps", [50, 300])
def test_the_chunked_form_in_pytorch_agrees(steps):
    torch = pytest.importorskip("torch")
    p = {**ssd_problem(1, steps, 4, 8, 40, groups=2), "initial_state": None, "z": None}
    named = {k: p[k] for k in ("A", "D", "dt_bias")} | {k: p[k][0] for k in ("x", "dt", "B", "C")}
    t = {k: torch.tensor(a) for k, a in named.items()}
    step = torch.nn.functional.softplus(t["dt"] + t["dt_bias"]).clamp(*p["dt_limit"])
    sums = torch.cumsum(step * t["A"], 0).T  # (H, L)
    decay = (sums[:, :, None] - sums[:, None]).masked_fill(
        torch.ones(steps, steps).triu(1).bool(), -torch.inf
    )
    B, C = (t[name].repeat_interleave(2, 1).transpose(0, 1) for name in "BC")  # (H, L, N)
    weights = (C @ B.transpose(1, 2)) * decay.exp()
    y = (weights @ (t["x"] * step[..., None]).transpose(0, 1)).transpose(0, 1)
    y = y + t["D"][:, None] * t["x"]
    assert error(fd.ssd_scan(**p)[0], y.numpy()) < 1e-13


# ---- arguments ---------------------------------------------------------------------------------


def test_dtypes_are_promoted_together():
    p = ssd_problem(1, 5, 2, 3, 4, np.float32)
    assert fd.ssd_scan(**p).dtype == np.float32
    for name in "x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state":
        q = {**p, name: p[name].astype(np.float64)}
        assert all(a.dtype == np.float64 for a in fd.ssd_scan(**q, return_last_state=True))
    assert fd.ssd_scan(**{**p, "D": np.arange(2)}).dtype == np.float64
    lists = {k: a.tolist() if isinstance(a, np.ndarray) else a for k, a in p.items()}
    assert fd.ssd_scan(**lists).dtype == np.float64


def test_out_is_checked():
    p = ssd_problem(1, 6, 2, 3, 4, np.float32)
    with pytest.raises(TypeError, match="out is a list; expected a NumPy array"):
        fd.ssd_scan(**p, out=[0])
    with pytest.raises(TypeError, match="out has dtype float64; expected float32"):
        fd.ssd_scan(**p, out=np.empty((1, 6, 2, 3)))
    with pytest.raises(ValueError, match=r"out has shape \(6, 2, 3\); expected \(1, 6, 2, 3\)"):
        fd.ssd_scan(**p, out=np.empty((6, 2, 3), np.float32))
    frozen = np.empty((1, 6, 2, 3), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        fd.ssd_scan(**p, out=frozen)
    before = p["x"].copy()
    for name in "x", "z":
        with pytest.raises(ValueError, match=f"out shares memory with {name}"):
            fd.ssd_scan(**p, out=p[name][:, ::-1])
    assert same_bits(before, p["x"])
    both_halves = np.zeros((1, 6, 2, 6), np.float32)
    both_halves[..., ::2] = p["x"]
    out = fd.ssd_scan(**{**p, "x": both_halves[..., ::2]}, out=both_halves[..., 1::2])
    assert same_bits(np.ascontiguousarray(out), fd.ssd_scan(**p))


BAD_CALLS = [
    (dict(x=np.zeros(5)), ValueError, r"x has shape \(5,\); expected \(batch, L, H, P\)"),
    (dict(dt=np.zeros((2, 8, 5))), ValueError, r"dt has shape .* \(batch, L, H\) = \(2, 8, 6\)"),
    (dict(z=np.zeros((2, 8, 6, 1))), ValueError, r"z has shape .* = \(2, 8, 6, 3\)"),
    (dict(A=np.zeros(5)), ValueError, r"A has shape \(5,\); expected \(H,\) = \(6,\)"),
    (dict(B=np.zeros((2, 8, 4, 3))), ValueError, "B has shape .* with G dividing H = 6"),
    (dict(C=np.zeros((2, 8, 2, 4))), ValueError, "C has shape .*; expected that of B"),
    (dict(D=np.zeros((6, 2))), ValueError, r"D has shape .* \(H, P\) = \(6, 3\)"),
    (dict(dt_bias=np.zeros((6, 1))), ValueError, r"dt_bias has shape .* \(H,\) = \(6,\)"),
    (dict(initial_state=np.zeros((6, 3, 5))), ValueError, r"initial_state .* = \(2, 6, 3, 5\)"),
    (dict(x=np.zeros((2, 8, 6, 3), bool)), TypeError, "x has dtype bool; expected float32"),
    (dict(A=np.zeros(6, complex)), TypeError, "A has dtype complex128"),
    (dict(B=np.zeros((2, 8, 2, 5), np.float16)), TypeError, "B has dtype float16"),
    (dict(dt_limit=0.1), TypeError, "dt_limit is 0.1; expected a pair of numbers"),
    (dict(dt_limit=(1, 0)), ValueError, r"dt_limit is \(1, 0\)"),
    (dict(dt_limit=(np.nan, 1)), ValueError, "dt_limit"),
    (dict(cu_seqlens=[0, 8]), ValueError, "cu_seqlens packs sequences along L and needs batch 1"),
]


@pytest.mark.parametrize("change, kind, message", BAD_CALLS)
def test_errors_name_the_argument(change, kind, message):
    p = {**ssd_problem(2, 8, 6, 3, 5, groups=2), **change}
    with pytest.raises(kind, match=message):
        fd.ssd_scan(**p)


@pytest.mark.parametrize("bounds", [[0, 9], [1, 8], [0, 5, 4, 8], [[0, 8]], []])
def test_bad_boundaries(bounds):
    p = {**ssd_problem(1, 8, 2, 3, 4), "initial_state": None}
    with pytest.raises(ValueError, match="cu_seqlens"):
        fd.ssd_scan(**p, cu_seqlens=bounds)


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C"])
def test_what_is_required_may_not_be_none(name):
    with pytest.raises(TypeError, match=f"{name} has dtype object"):
        fd.ssd_scan(**{**ssd_problem(1, 2, 2, 3, 4), name: None})


# ---- time and memory ---------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [200, 4000])
def test_ctrl_c_is_answered(steps):
    small = ssd_problem(1, steps, 2, 64, 1024, np.float32)
    p = dict(small)
    for name in SIGNALS:
        p[name] = np.broadcast_to(p[name], (4000, *p[name].shape[1:]))
    p["initial_state"] = None
    waited = seconds_until_answered(lambda: fd.ssd_scan(**p))
    assert waited < ALLOWED


MEMORY_SCRIPT = """
import resource, sys
sys.path.insert(0, {tests!r})
import numpy as np
import fastderiv as fd
from test_ssm_ssd import ssd_problem
p = ssd_problem(1, 3000, 16, 64, 128, np.float32)
short = {{**ssd_problem(20, 150, 16, 64, 128, np.float32), "initial_state": None}}
out, outs = np.empty_like(p["x"]), np.empty_like(short["x"])
fd.set_num_threads(1)
fd.ssd_scan(**ssd_problem(1, 3, 2, 3, 4, np.float32))
out.fill(0), outs.fill(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fd.ssd_scan(**p, out=out)
fd.ssd_scan(**short, out=outs)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_no_array_of_all_states_is_formed():
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT.format(tests=os.path.dirname(__file__))],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) < 2048  # KiB; all states would be 1.5 GiB
