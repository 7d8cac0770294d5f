"""Chunk summaries: the map that a chunk applies to a state, and its composition."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import error, layouts, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import by_threads
from test_ssm import REALS, TOLERANCE, problem

ARGUMENTS = ("u", "delta", "A", "B", "delta_bias", "delta_softplus")


def chunk_problem(*shape, **options):
    p = problem(*shape, **options)
    return {name: p[name] for name in ARGUMENTS}


def piece(p, steps):
    """The chunk of these steps."""
    return {
        k: a[..., steps] if k in ("u", "delta") or (k == "B" and np.ndim(a) > 2) else a
        for k, a in p.items()
    }


def close(summary, expected, tolerance):
    return all(error(a, b) < tolerance for a, b in zip(summary, expected, strict=True))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("shape", [(2, 5, 3, 7), (1, 33, 16, 300), (3, 4, 1, 1), (2, 17, 5, 129)])
@pytest.mark.parametrize("B", ["constant", "time", 1])
def test_summary_equals_reference(shape, dtype, B):
    p = chunk_problem(*shape, dtype=dtype, B=B)
    p["delta"] = p["delta"] - dtype(3)
    summary = fd.chunk_summary(**p)
    assert isinstance(summary, fd.ChunkSummary) and all(
        a.dtype == dtype and a.shape == shape[:3] for a in summary
    )
    assert close(summary, reference.chunk_summary(**p), TOLERANCE[dtype])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(0, 40),
    st.integers(0, 9),
    st.integers(0, 200),
    st.sampled_from(REALS),
    st.sampled_from(["constant", "time", 1]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_shape_empty_ones_too(batch, channels, states, steps, dtype, B, softplus, seed):
    p = chunk_problem(batch, channels, states, steps, dtype=dtype, B=B, seed=seed)
    if channels == 0 and p["B"].ndim != 3:
        p["B"] = np.ones((0, states), dtype)
    if not softplus:
        p |= dict(delta=np.abs(p["delta"]) / 9, delta_softplus=False, delta_bias=None)
    summary, expected = fd.chunk_summary(**p), reference.chunk_summary(**p)
    assert summary.P.shape == summary.q.shape == (batch, channels, states)
    assert error(summary.q, expected.q) < TOLERANCE[dtype]
    assert np.abs(summary.P - expected.P).max(initial=0) < TOLERANCE[dtype]  # P <= 1


def test_no_steps_change_nothing():
    summary = fd.chunk_summary(**chunk_problem(2, 3, 4, 0))
    assert (summary.P == 1).all() and (summary.q == 0).all()


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("B", ["constant", "time", 2])
@pytest.mark.parametrize("unbatched", [False, True])
def test_chunks_combine_to_the_last_state(dtype, B, unbatched):
    p = problem(1 if unbatched else 2, 6, 5, 301, dtype, B=B, unbatched=unbatched)
    q = {name: p[name] for name in ARGUMENTS}
    parts = [fd.chunk_summary(**piece(q, s)) for s in np.s_[:1, 1:130, 130:130, 130:]]
    whole = parts[0]
    for part in parts[1:]:
        whole = fd.combine_summaries(whole, part)
    _, last = fd.selective_scan(**p, return_last_state=True)
    assert error(whole.P * p["initial_state"] + whole.q, last) < TOLERANCE[dtype]
    assert close(whole, fd.chunk_summary(**q), 4 * TOLERANCE[dtype])
    _, from_zero = fd.selective_scan(**{**p, "initial_state": None}, return_last_state=True)
    assert same_bits(fd.chunk_summary(**q).q, from_zero)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(REALS), st.integers(0, 2**31))
def test_combination_is_associative_and_has_a_neutral_element(shape, dtype, seed):
    rng = np.random.default_rng(seed)
    a, b, c = (
        (rng.random(shape).astype(dtype), rng.normal(size=shape).astype(dtype)) for _ in range(3)
    )
    left = fd.combine_summaries(fd.combine_summaries(a, b), c)
    right = fd.combine_summaries(a, fd.combine_summaries(b, c))
    eps = 8 * np.finfo(dtype).eps
    for l, r, scale in zip(left, right, (1, 1 + sum(np.abs(s[1]) for s in (a, b, c))), strict=True):
        assert (np.abs(l - r) <= eps * scale).all()
    nothing = np.ones(shape, dtype), np.zeros(shape, dtype)
    for same in fd.combine_summaries(a, nothing), fd.combine_summaries(nothing, a):
        assert np.array_equal(same.P, a[0]) and np.array_equal(same.q, a[1])


def test_combination_equals_reference_and_promotes():
    rng = np.random.default_rng(0)
    a, b = ([rng.normal(size=(2, 3)) for _ in range(2)] for _ in range(2))
    assert close(fd.combine_summaries(a, b), reference.combine_summaries(a, b), 1e-15)
    assert all(
        x.dtype == np.float64 for x in fd.combine_summaries([x.astype(np.float32) for x in a], b)
    )
    assert all(
        x.dtype == np.float32
        for x in fd.combine_summaries(*([x.astype(np.float32) for x in s] for s in (a, b)))
    )
    with np.errstate(all="raise"):
        fd.combine_summaries((np.inf, 1e308), (0.0, np.nan))  # whatever it is, without a warning


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("rate", [-16.0, -1e-4])
def test_product_over_a_long_chunk_is_accurate(dtype, rate):
    delta = np.full((1, 100_000), 1e-5 if rate < -1 else 0.1, dtype)
    A = np.full((1, 1), rate, dtype)
    P = fd.chunk_summary(np.zeros_like(delta), delta, A, A).P
    exact = np.exp(float(A[0, 0]) * 100_000 * float(delta[0, 0]))
    np.testing.assert_allclose(P, [[exact]], rtol=3e-6 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "delta_bias"])
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("B", ["time", "constant"])
def test_layout_changes_no_bit(name, dtype, B):
    p = chunk_problem(2, 21, 6, 150, dtype=dtype, B=B)
    summary = fd.chunk_summary(**p)
    before = snapshot(*(p[k] for k in ARGUMENTS[:5]))
    for label, array in layouts(p[name]):
        other = fd.chunk_summary(**{**p, name: array})
        assert same_bits(summary.P, other.P) and same_bits(summary.q, other.q), label
    assert snapshot(*(p[k] for k in ARGUMENTS[:5])) == before


def test_thread_count_changes_no_bit():
    p = chunk_problem(2, 200, 8, 700, dtype=np.float32)
    first, *others = by_threads(lambda: fd.chunk_summary(**p), 1, 2, 3, 64)
    assert all(all(map(same_bits, first, other)) for other in others)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["u", "delta", "A", "delta_bias"])
def test_nonfinite_stays_in_its_channel(dtype, bad, name):
    p = chunk_problem(2, 20, 4, 140, dtype=dtype)
    clean = fd.chunk_summary(**p)
    q = {**p, name: p[name].copy()}
    q[name][(1, 7, 130) if name in ("u", "delta") else 7] = bad
    untouched = np.ones((2, 20), bool)
    untouched[1 if name in ("u", "delta") else slice(None), 7] = False
    summary = fd.chunk_summary(**q)
    assert all(same_bits(a[untouched], b[untouched]) for a, b in zip(summary, clean, strict=True))
    assert np.isnan(summary.q[1, 7]).any() or not np.isnan(bad)
    assert np.isnan(summary.P[1, 7]).any() == (np.isnan(bad) and name != "u")


@pytest.mark.parametrize(
    "change, kind, message",
    [
        (
            dict(u=np.zeros(5)),
            ValueError,
            r"u has shape \(5,\); expected \(batch, D, L\) or \(D, L\)",
        ),
        (
            dict(delta=np.zeros((2, 6, 9))),
            ValueError,
            r"delta has shape \(2, 6, 9\); expected \(batch, D, L\) = \(2, 6, 8\)",
        ),
        (
            dict(A=np.zeros((5, 3))),
            ValueError,
            r"A has shape \(5, 3\); expected \(D, N\) = \(6, N\)",
        ),
        (dict(B=np.zeros((2, 4, 8))), ValueError, r"B has shape \(2, 4, 8\)"),
        (
            dict(delta_bias=np.zeros(1)),
            ValueError,
            r"delta_bias has shape \(1,\); expected \(D,\) = \(6,\)",
        ),
        (dict(u=np.zeros((2, 6, 8), bool)), TypeError, "u has dtype bool"),
        (dict(u=None), TypeError, "u has dtype object"),
        (dict(B=None), TypeError, "B has dtype object"),
    ],
)
def test_errors_name_the_argument(change, kind, message):
    with pytest.raises(kind, match=message):
        fd.chunk_summary(**{**chunk_problem(2, 6, 3, 8), **change})


@pytest.mark.parametrize(
    "first, second, kind, message",
    [
        (
            ([1.0], [1.0]),
            ([1.0], [1.0, 2.0]),
            ValueError,
            r"second has shape \(2,\); expected shape of P in first = \(1,\)",
        ),
        (([1.0], [[1.0]]), ([1.0], [1.0]), ValueError, r"first has shape \(1, 1\)"),
        (([1.0], [True]), ([1.0], [1.0]), TypeError, "first has dtype bool"),
        (([1.0], [1.0]), ([1j], [1.0]), TypeError, "second has dtype complex128"),
        (
            ([1.0], [1.0]),
            ([1.0], [1.0], [1.0]),
            TypeError,
            "second is a tuple; expected a ChunkSummary or another pair",
        ),
        (1.0, ([1.0], [1.0]), TypeError, "first is a float; expected a ChunkSummary"),
    ],
)
def test_combination_errors(first, second, kind, message):
    with pytest.raises(kind, match=message):
        fd.combine_summaries(first, second)


def test_summary_pickles():
    summary = fd.chunk_summary(**chunk_problem(1, 2, 3, 4))
    again = pickle.loads(pickle.dumps(summary))
    assert isinstance(again, fd.ChunkSummary) and all(map(same_bits, summary, again))


def test_ctrl_c_is_answered_at_once():
    long = np.broadcast_to(np.ones((32, 1), np.float32), (32, 40_000_000))
    A, before = -np.ones((32, 8), np.float32), fd.get_num_threads()
    fd.set_num_threads(2)
    try:
        assert seconds_until_answered(lambda: fd.chunk_summary(long, long, A, A)) < ALLOWED
    finally:
        fd.set_num_threads(before)


@pytest.mark.parametrize(
    "module, name",
    [
        ("_chunks", "ChunkSummary"),
        ("_s6", "S6"),
        ("_s6", "S6Grads"),
        ("_vjp", "SelectiveScanGrads"),
    ],
)
def test_pickles_from_before_the_files_moved_still_load(module, name):
    assert pickle.loads(f"cfastderiv.ssm.{module}\n{name}\n.".encode()) is getattr(fd, name)
