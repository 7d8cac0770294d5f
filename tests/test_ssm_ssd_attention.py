"""The hidden attention of Mamba-2's scan, and its chunks: against the reference, the scan and exact
oracles, and at the edges.
"""

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
from helpers.awkward import error, error_in_sums, layouts, magnitudes, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads
from test_ssm_ssd import REALS, TOLERANCE, ssd_problem

ARGUMENTS = ("dt", "A", "B", "C", "dt_bias", "dt_softplus", "dt_limit")
OF_CHUNKS = ("x", "dt", "A", "B", "dt_bias", "dt_softplus", "dt_limit")


def attention_problem(batch, steps, heads, states, dtype=np.float64, **options):
    p = ssd_problem(batch, steps, heads, 1, states, dtype, **options)
    return {name: p[name] for name in ARGUMENTS}


def chunk_problem(*shape, **options):
    p = ssd_problem(*shape, **options)
    return {name: p[name] for name in OF_CHUNKS}


def piece(p, steps):
    """The chunk of these steps."""
    return {k: a[..., steps, :, :] if k in ("x", "B") else a[..., steps, :] if k == "dt" else a
            for k, a in p.items()}  # fmt: skip


def exact_rows(p, rows):
    """The rows of one head in extended precision, exponents summed backwards from each row."""
    dt, A, B, C = (np.asarray(p[name], np.longdouble) for name in ("dt", "A", "B", "C"))
    result = np.zeros((len(A), len(rows), len(dt)), np.longdouble)
    for i, t in enumerate(rows):
        behind = np.cumsum(np.vstack([np.zeros((1, len(A))), dt[t:0:-1]]), 0)[::-1]
        decayed = np.exp(A * behind) * dt[: t + 1] * (B[: t + 1, 0] @ C[t, 0])[:, None]
        result[:, i, : t + 1] = decayed.T
    return result


# ---- attention --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize(
    "shape, groups",
    [
        ((2, 1, 6, 5), 1),
        ((1, 63, 2, 16), 2),
        ((2, 64, 4, 3), 1),
        ((1, 65, 2, 1), 1),
        ((1, 200, 3, 140), 3),
        ((1, 130, 40, 7), 2),
    ],
)
def test_attention_equals_reference(shape, groups, dtype):
    p = attention_problem(*shape, dtype, groups=groups)
    attention = fd.ssd_attention(**p)
    batch, steps, heads, _ = shape
    assert attention.dtype == dtype and attention.shape == (batch, heads, steps, steps)
    assert error(attention, reference.ssd_attention(**p)) < TOLERANCE[dtype]
    assert not np.triu(attention, 1).any()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2),
    st.integers(0, 3),
    st.sampled_from([1, 2, 17]),
    st.integers(0, 18),
    st.integers(0, 150),
    st.sampled_from(REALS),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_shape_and_any_sign(batch, per_group, groups, states, steps, dtype, wild, seed):
    p = attention_problem(batch, steps, per_group * groups, states, dtype, groups=groups, seed=seed)
    if wild:
        p |= dict(A=np.tanh(p["A"] + dtype(1)) / dtype(2), dt=p["dt"] + dtype(1), dt_bias=None,
                  dt_softplus=False, dt_limit=(-9.0, np.inf))  # fmt: skip
    rows = np.random.default_rng(seed).integers(-steps, steps, min(steps, 7)) if steps else []
    attention = fd.ssd_attention(**p, rows=rows)
    expected = reference.ssd_attention(**p, rows=rows)
    sums = reference.ssd_attention(**magnitudes(p), rows=rows)
    assert attention.shape == expected.shape
    assert error_in_sums(attention, expected, sums) < 4 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("limits", [(0.0, np.inf), (0.2, 1.0)])
def test_attention_times_input_is_the_scan(dtype, limits):
    p = ssd_problem(2, 300, 6, 4, 8, dtype, groups=2)
    p |= dict(z=None, initial_state=None, dt_limit=limits)
    attention = fd.ssd_attention(*(p[name] for name in ARGUMENTS))
    y = np.einsum("bhts,bshp->bthp", attention, p["x"]) + p["D"][:, None] * p["x"]
    assert error(y, fd.ssd_scan(**p)) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("rates", [(-16.0, -1.0), (-1e-4, -1e-6), (-1e-2, 0.0)])
def test_attention_is_accurate_over_long_sequences(dtype, rates):
    steps, rows = 65536, [0, 100, 40000, 65535]
    rng = np.random.default_rng(0)
    p = dict(
        dt=(rng.random((steps, 2)) / 5).astype(dtype),
        A=np.array(rates, dtype),
        B=rng.normal(size=(steps, 1, 3)).astype(dtype),
        C=rng.normal(size=(steps, 1, 3)).astype(dtype),
    )
    attention, exact = fd.ssd_attention(**p, rows=rows), exact_rows(p, rows)
    for i in range(len(rows)):
        assert error(attention[:, i], exact[:, i]) < (1e-6 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("rows", [
    [5], [-1, 0, -200], [199, 3, 3, 3, 64, 63], range(150, 20, -7), np.arange(200, dtype=np.uint8),
    [], np.array([-3, 7], np.int8), list(range(200)) * 2,
])  # fmt: skip
@pytest.mark.parametrize("wild", [False, True])
def test_rows_index_like_numpy_and_change_no_bit(rows, wild):
    p = attention_problem(2, 200, 3, 4, np.float32)
    if wild:
        p["A"] = -p["A"] / 100
    attention = fd.ssd_attention(**p)
    assert same_bits(fd.ssd_attention(**p, rows=rows), attention[:, :, np.asarray(rows, int)])


def test_heads_of_a_call_do_not_depend_on_each_other():
    p = attention_problem(2, 150, 40, 6, np.float32)
    attention = fd.ssd_attention(**p)
    for head in 0, 15, 16, 39:
        s = slice(head, head + 1)
        q = {**p, "dt": p["dt"][..., s], "A": p["A"][s], "dt_bias": p["dt_bias"][s]}
        assert same_bits(np.ascontiguousarray(attention[:, s]), fd.ssd_attention(**q))


@pytest.mark.parametrize("rows, kind, message", [
    ([0, 8], IndexError, r"rows\[1\] is 8; expected integers from -8 to 7"),
    ([0.0], TypeError, "rows has dtype float64; expected integers"),
    (3, ValueError, r"rows has shape \(\); expected \(R,\)"),
])  # fmt: skip
def test_bad_rows(rows, kind, message):
    with pytest.raises(kind, match=message):
        fd.ssd_attention(**attention_problem(1, 8, 2, 3), rows=rows)


@pytest.mark.parametrize(
    "change, kind, message",
    [
        (dict(dt=np.zeros(5)), ValueError, r"dt has shape \(5,\); expected \(batch, L, H\)"),
        (dict(A=np.zeros((6, 3))), ValueError, r"A has shape \(6, 3\); expected \(H,\) = \(6,\)"),
        (dict(B=np.zeros((2, 7, 1, 3))), ValueError, r"B has shape \(2, 7, 1, 3\)"),
        (dict(C=np.zeros((2, 8, 4, 3))), ValueError, "C has shape .* G dividing H = 6"),
        (dict(dt_bias=np.zeros(1)), ValueError, r"dt_bias has shape \(1,\); expected \(H,\)"),
        (dict(dt_limit=(1.0, 0.0)), ValueError, "dt_limit is .* ascending order"),
        (dict(dt=np.zeros((2, 8, 6), bool)), TypeError, "dt has dtype bool"),
        (dict(C=None), TypeError, "C has dtype object"),
    ],
)
def test_errors_name_the_argument(change, kind, message):
    with pytest.raises(kind, match=message):
        fd.ssd_attention(**{**attention_problem(2, 8, 6, 3), **change})


def test_more_than_the_memory_is_refused_at_once():
    dt = np.broadcast_to(np.float32(0), (10_000_000, 64))
    one = np.broadcast_to(np.float32(1), (10_000_000, 1, 1))
    with pytest.raises(MemoryError, match="would take 25600000000000000 bytes"):
        fd.ssd_attention(dt, np.ones(64, np.float32), one, one)


@pytest.mark.parametrize("name", ["dt", "A", "B", "C", "dt_bias"])
@pytest.mark.parametrize("dtype", REALS)
def test_layout_changes_no_bit(name, dtype):
    p = attention_problem(2, 150, 6, 20, dtype, groups=2)
    attention = fd.ssd_attention(**p)
    before = snapshot(*(p[k] for k in ARGUMENTS[:5]))
    for label, array in layouts(p[name]):
        assert same_bits(attention, fd.ssd_attention(**{**p, name: array})), label
    assert snapshot(*(p[k] for k in ARGUMENTS[:5])) == before


def test_unbatched_equals_batch_of_one():
    p, q = (attention_problem(1, 70, 8, 3, groups=2, unbatched=u) for u in (False, True))
    assert same_bits(fd.ssd_attention(**p)[0], fd.ssd_attention(**q))


def test_thread_count_changes_no_bit():
    p = attention_problem(2, 400, 20, 8, np.float32)
    first, *others = by_threads(lambda: fd.ssd_attention(**p), 1, 2, 3, 64)
    assert all(same_bits(first, other) for other in others)


LEVEL_SCRIPT = """
import hashlib, sys
sys.path.insert(0, {tests!r})
import numpy as np
from test_ssm_ssd_attention import attention_problem, chunk_problem
import fastderiv as fd
for dtype in np.float32, np.float64:
    p = attention_problem(2, 200, 3, 140, dtype=dtype)
    for A in p["A"], -p["A"] / 9:
        results = [fd.ssd_attention(**{{**p, "A": A}})]
        results += fd.ssd_chunk_summary(**{{**chunk_problem(2, 9, 3, 4, 5, dtype=dtype), "A": A}})
        for a in results:
            print(hashlib.sha256(a.tobytes()).hexdigest(), float(np.abs(a).sum()))
"""


def test_cpu_levels_agree():
    assert_levels_agree(LEVEL_SCRIPT.format(tests=os.path.dirname(__file__)))


@pytest.mark.parametrize("dtype", REALS)
def test_growth_overflows_only_where_it_must(dtype):
    steps, top = 300, np.log(float(np.finfo(dtype).max))
    one = np.ones((1, steps, 1, 1), dtype)
    dt = np.full((1, steps, 2), 1.5 * top / steps, dtype)
    attention = fd.ssd_attention(dt, np.array([1, -1], dtype), one, one)[0]
    assert np.isinf(attention[0, -1, 0]) and np.isfinite(attention[1]).all()
    assert np.isfinite(attention[0, 150]).all() and not np.isnan(attention).any()
    assert not np.triu(attention, 1).any()


@pytest.mark.parametrize("dtype", REALS)
def test_overflow_times_0_is_0(dtype):
    B = np.ones((300, 1, 1), dtype)
    B[7] = 0
    dt = np.full((300, 1), 9, dtype)
    attention = fd.ssd_attention(dt, np.ones(1, dtype), B, np.ones_like(B))[0]
    assert (attention[:, 7] == 0).all() and np.isinf(attention[-1, 6])


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("wild", [50, -50])
@pytest.mark.parametrize("counts", [(64, 64, 64), (32, 32, 64)])
def test_sums_that_cancel_make_a_finite_product(dtype, wild, counts):
    """Steps of both signs: sums over blocks are beyond the range of exp, the sum from row to column
    is not.
    """
    dt = np.repeat(np.array([1, wild, -wild * counts[1] / counts[2]], dtype), counts)[:, None]
    one = np.ones((sum(counts), 1, 1), dtype)
    attention = fd.ssd_attention(dt, -np.ones(1, dtype), one, one, dt_limit=(-np.inf, np.inf),
                                 rows=[-1])  # fmt: skip
    exact = np.exp(np.arange(1.0 - counts[0], 1))
    assert error(attention[0, 0, : counts[0]], exact) < TOLERANCE[dtype]
    assert not np.isnan(attention).any()


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("rate, forgotten", [(-1.0, 0), (0.0, np.nan)])
def test_infinite_step_forgets(dtype, rate, forgotten):
    dt, A, one = np.ones((200, 1), dtype), np.full(1, rate, dtype), np.ones((200, 1, 1), dtype)
    dt[100] = np.inf
    attention = fd.ssd_attention(dt, A, one, one)[0]
    np.testing.assert_array_equal(attention[100:, :100], forgotten)
    assert np.isinf(attention[100:110, 100]).all() and np.isfinite(attention[:100]).all()
    assert np.isfinite(attention[:, 101:]).all()


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["dt", "A", "dt_bias", "B", "C"])
def test_nonfinite_stays_where_it_belongs(dtype, bad, name):
    p = attention_problem(2, 200, 4, 5, dtype, groups=2)
    p["dt_limit"] = (0.0, np.inf)
    clean, hit = fd.ssd_attention(**p), np.zeros((2, 4, 200, 200), bool)
    q = {**p, name: p[name].copy()}
    if name in ("A", "dt_bias"):
        q[name][3] = bad
        hit[:, 3] = True
    elif name == "dt":
        q[name][1, 130, 3] = bad
        hit[1, 3, 130:, :131] = True
    else:
        q[name][1, 130, 1, 2] = bad
        hit[(1, slice(2, 4), *((slice(130, None), 130) if name == "B" else (130, slice(131))))] = 1
    attention = fd.ssd_attention(**q)
    assert error(attention[~hit], clean[~hit]) < TOLERANCE[dtype]
    assert not np.triu(attention, 1).any()
    if np.isnan(bad):
        assert np.isnan(attention[np.tril(hit)]).any()
        assert name not in ("B", "C") or np.isnan(attention[np.tril(hit)]).all()
    hit[1, 3] |= name == "dt"  # elsewhere in its block another form of exp may be used
    assert same_bits(attention[~hit], clean[~hit])


MEMORY_SCRIPT = """
import resource
import numpy as np
import fastderiv as fd
fd.set_num_threads(2)
rng = np.random.default_rng(0)
dt = rng.random((100_000, 8), np.float32)
B, C = (rng.random((16, 100_000, 1), np.float32).T.swapaxes(0, 1) for _ in range(2))
A = -rng.random(8, np.float32)
fd.ssd_attention(dt[:64], A, B[:64], C[:64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = fd.ssd_attention(dt, A, B, C, rows=range(-16, 0))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before - result.nbytes // 1024)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux"
)
def test_memory_is_the_result():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) < 2048  # KiB: 1 MiB per thread


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_is_answered_at_once(threads):
    dt = np.broadcast_to(np.float32(1e-6), (400_000, 8))  # seconds of work
    B, A = np.broadcast_to(np.float32(1), (400_000, 1, 2048)), -np.ones(8, np.float32)
    before = fd.get_num_threads()
    fd.set_num_threads(threads)
    try:
        call = lambda: fd.ssd_attention(dt, A, B, B, rows=range(-60, 0))  # noqa: E731
        assert seconds_until_answered(call) < ALLOWED
    finally:
        fd.set_num_threads(before)


# ---- chunks -----------------------------------------------------------------------------------


def close(summary, expected, tolerance):
    return all(error(a, b) < tolerance for a, b in zip(summary, expected, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2),
    st.integers(0, 3),
    st.sampled_from([1, 2, 33]),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 200),
    st.sampled_from(REALS),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_summary_equals_reference(
    batch, per_group, groups, width, states, steps, dtype, unbatched, seed
):
    shape = 1 if unbatched else batch, steps, per_group * groups, width, states
    options = dict(dtype=dtype, groups=groups, seed=seed, unbatched=unbatched)
    p = chunk_problem(*shape, **options)
    p["dt"] = p["dt"] - dtype(3)
    summary, expected = fd.ssd_chunk_summary(**p), reference.ssd_chunk_summary(**p)
    assert isinstance(summary, fd.SSDChunkSummary) and all(a.dtype == dtype for a in summary)
    assert [a.shape for a in summary] == [a.shape for a in expected]
    sums = reference.ssd_chunk_summary(**magnitudes(p))
    assert error_in_sums(summary.q, expected.q, sums.q) < TOLERANCE[dtype]
    assert np.abs(summary.P - expected.P).max(initial=0) < TOLERANCE[dtype]  # P <= 1


def test_no_steps_change_nothing():
    summary = fd.ssd_chunk_summary(**chunk_problem(2, 0, 3, 4, 5))
    assert (summary.P == 1).all() and (summary.q == 0).all()


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("factor", [1e-3, 1, 100])
def test_chunks_combine_to_the_last_state(dtype, unbatched, factor):
    p = ssd_problem(1 if unbatched else 2, 301, 6, 5, 7, dtype, groups=2, unbatched=unbatched)
    p["A"] = p["A"] * dtype(factor)
    q = {name: p[name] for name in OF_CHUNKS}
    parts = [fd.ssd_chunk_summary(**piece(q, s)) for s in np.s_[:1, 1:130, 130:130, 130:]]
    whole = parts[0]
    for part in parts[1:]:
        whole = fd.combine_summaries(whole, part)
    assert isinstance(whole, fd.SSDChunkSummary)
    _, last = fd.ssd_scan(**p, return_last_state=True)
    combined = whole.P[..., None, None] * p["initial_state"] + whole.q
    assert error(combined, last) < 2 * TOLERANCE[dtype]
    assert close(whole, fd.ssd_chunk_summary(**q), 4 * TOLERANCE[dtype])
    _, from_zero = fd.ssd_scan(**{**p, "initial_state": None}, return_last_state=True)
    assert same_bits(fd.ssd_chunk_summary(**q).q, from_zero)


def test_combination_equals_reference_and_has_a_neutral_element():
    rng = np.random.default_rng(0)
    a, b = ((rng.random((2, 3)), rng.normal(size=(2, 3, 4, 5))) for _ in range(2))
    assert close(fd.combine_summaries(a, b), reference.combine_summaries(a, b), 1e-15)
    assert isinstance(reference.combine_summaries(a, b), reference.SSDChunkSummary)
    nothing = np.ones((2, 3)), np.zeros((2, 3, 4, 5))
    for same in fd.combine_summaries(a, nothing), fd.combine_summaries(nothing, a):
        assert np.array_equal(same.P, a[0]) and np.array_equal(same.q, a[1])


@pytest.mark.parametrize(
    "P1, q1, P2, q2, message",
    [
        ((3,), (3, 4, 5), (3,), (3,), r"second has shape \(3,\); expected shape of q in first"),
        (
            (3,),
            (3, 4, 5),
            (2,),
            (3, 4, 5),
            r"second has shape \(2,\); expected shape of P in first",
        ),
        ((3,), (2, 4, 5), (3,), (2, 4, 5), r"first has shape \(2, 4, 5\); expected shape of P"),
        ((3,), (3, 4), (3,), (3, 4), r"first has shape \(3, 4\); expected shape of P in first"),
    ],
)
def test_combination_errors(P1, q1, P2, q2, message):
    with pytest.raises(ValueError, match=message):
        fd.combine_summaries((np.ones(P1), np.ones(q1)), (np.ones(P2), np.ones(q2)))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("rate", [-16.0, -1e-4])
def test_product_over_a_long_chunk_is_accurate(dtype, rate):
    dt = np.full((100_000, 1), 1e-5 if rate < -1 else 0.1, dtype)
    A, zero = np.full(1, rate, dtype), np.zeros((100_000, 1, 1), dtype)
    P = fd.ssd_chunk_summary(zero, dt, A, zero).P
    exact = np.exp(float(A[0]) * 100_000 * float(dt[0, 0]))
    np.testing.assert_allclose(P, [exact], rtol=3e-7 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "dt_bias"])
@pytest.mark.parametrize("dtype", REALS)
def test_layout_changes_no_bit_of_a_summary(name, dtype):
    p = chunk_problem(2, 150, 6, 5, 7, dtype=dtype, groups=3)
    summary = fd.ssd_chunk_summary(**p)
    for label, array in layouts(p[name]):
        other = fd.ssd_chunk_summary(**{**p, name: array})
        assert same_bits(summary.P, other.P) and same_bits(summary.q, other.q), label


def test_thread_count_changes_no_bit_of_a_summary():
    p = chunk_problem(2, 700, 70, 8, 9, dtype=np.float32)
    first, *others = by_threads(lambda: fd.ssd_chunk_summary(**p), 1, 2, 3, 64)
    assert all(all(map(same_bits, first, other)) for other in others)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x", "dt", "A", "dt_bias"])
def test_nonfinite_stays_in_its_head(dtype, bad, name):
    p = chunk_problem(2, 140, 20, 3, 4, dtype=dtype)
    clean = fd.ssd_chunk_summary(**p)
    q = {**p, name: p[name].copy()}
    q[name][{"x": (1, 130, 7, 1), "dt": (1, 130, 7)}.get(name, 7)] = bad
    untouched = np.ones((2, 20), bool)
    untouched[1 if name in ("x", "dt") else slice(None), 7] = False
    summary = fd.ssd_chunk_summary(**q)
    assert all(same_bits(a[untouched], b[untouched]) for a, b in zip(summary, clean, strict=True))
    assert np.isnan(summary.q[1, 7]).any() or not np.isnan(bad)
    assert np.isnan(summary.P[1, 7]) == (np.isnan(bad) and name != "x")


def test_summary_pickles():
    summary = fd.ssd_chunk_summary(**chunk_problem(1, 4, 2, 3, 5))
    again = pickle.loads(pickle.dumps(summary))
    assert isinstance(again, fd.SSDChunkSummary) and all(map(same_bits, summary, again))
