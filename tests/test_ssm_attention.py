"""The hidden attention of the scan: against the reference, the scan itself and an exact oracle, and
at the edges.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import error, layouts, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads
from test_ssm import REALS, TOLERANCE, problem

ARGUMENTS = ("delta", "A", "B", "C", "delta_bias", "delta_softplus")
KINDS = ["constant", "time", 2]


def attention_problem(*shape, **options):
    p = problem(*shape, **options)
    return {name: p[name] for name in ARGUMENTS}


def exact_rows(p, rows):
    """The rows of one channel of a group in extended precision, exponents summed backwards from
    each row.
    """
    dt, A, B, C = (np.asarray(p[name], np.longdouble) for name in ("delta", "A", "B", "C"))
    result = np.zeros((dt.shape[0], len(rows), dt.shape[1]), np.longdouble)
    for i, l in enumerate(rows):
        behind = np.cumsum(np.hstack([np.zeros((len(dt), 1)), dt[:, l:0:-1]]), 1)[:, ::-1]
        for n in range(A.shape[1]):
            result[:, i, : l + 1] += (
                C[0, n, l] * np.exp(A[:, n, None] * behind) * dt[:, : l + 1] * B[0, n, : l + 1]
            )
    return result


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize(
    "shape",
    [(2, 6, 5, 1), (1, 2, 16, 63), (2, 4, 3, 64), (1, 2, 1, 65), (1, 2, 17, 200), (1, 2, 40, 130)],
)
@pytest.mark.parametrize("B", KINDS)
@pytest.mark.parametrize("C", KINDS)
def test_attention_equals_reference(shape, dtype, B, C):
    p = attention_problem(*shape, dtype=dtype, B=B, C=C)
    attention = fd.scan_attention(**p)
    assert attention.dtype == dtype and attention.shape == (*shape[:2], shape[3], shape[3])
    assert error(attention, reference.scan_attention(**p)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("B, C", [("time", 2), (3, "constant"), ("constant", "time")])
def test_attention_times_input_is_the_scan(dtype, B, C):
    p = problem(2, 6, 8, 300, dtype, B=B, C=C)
    p |= dict(z=None, initial_state=None)
    attention = fd.scan_attention(*(p[name] for name in ARGUMENTS))
    y = (attention @ p["u"][..., None])[..., 0] + p["D"][:, None] * p["u"]
    assert error(y, fd.selective_scan(**p)) < TOLERANCE[dtype]
    assert not np.triu(attention, 1).any()


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("rates", [(-16.0, -1.0), (-1e-4, -1e-6), (-1e-2, 0.0)])
@pytest.mark.parametrize("constant", [True, False])
def test_attention_is_accurate_over_long_sequences(dtype, rates, constant):
    steps, rows = 65536, [0, 100, 40000, 65535]
    rng = np.random.default_rng(0)
    delta = np.full((2, steps), 0.1) if constant else rng.random((2, steps)) / 5
    p = dict(
        delta=delta.astype(dtype),
        A=np.tile(np.array(rates, dtype), (2, 1)),
        B=rng.normal(size=(1, 2, steps)).astype(dtype),
        C=rng.normal(size=(1, 2, steps)).astype(dtype),
    )
    attention, exact = fd.scan_attention(**p, rows=rows), exact_rows(p, rows)
    for i in range(len(rows)):
        assert error(attention[:, i], exact[:, i]) < (2e-6 if dtype == np.float32 else 1e-13), rows[
            i
        ]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2),
    st.integers(0, 5),
    st.integers(0, 18),
    st.integers(0, 150),
    st.sampled_from(REALS),
    st.sampled_from(["constant", "time", 1]),
    st.sampled_from(["constant", "time", 1]),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_shape_and_any_sign(batch, channels, states, steps, dtype, B, C, wild, seed):
    p = attention_problem(batch, channels, states, steps, dtype=dtype, B=B, C=C, seed=seed)
    if channels == 0:
        p["B"], p["C"] = (
            np.ones((0, states), dtype) if a.ndim != 3 else a for a in (p["B"], p["C"])
        )
    if wild:
        p |= dict(
            A=np.tanh(p["A"] + dtype(1)) / dtype(2),
            delta=p["delta"] + dtype(1),
            delta_bias=None,
            delta_softplus=False,
        )
    rows = np.random.default_rng(seed).integers(-steps, steps, min(steps, 7)) if steps else []
    attention, expected = (
        fd.scan_attention(**p, rows=rows),
        reference.scan_attention(**p, rows=rows),
    )
    assert attention.shape == expected.shape and error(attention, expected) < 4 * TOLERANCE[dtype]


# ---- rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        [5],
        [-1, 0, -200],
        [199, 3, 3, 3, 64, 63],
        range(150, 20, -7),
        np.arange(200, dtype=np.uint8),
        [],
        np.array([-3, 7], np.int8),
        list(range(200)) * 2,
    ],
)
@pytest.mark.parametrize("wild", [False, True])
def test_rows_index_like_numpy_and_change_no_bit(rows, wild):
    p = attention_problem(2, 3, 4, 200, dtype=np.float32)
    if wild:
        p["A"] = -p["A"] / 100
    attention = fd.scan_attention(**p)
    assert same_bits(fd.scan_attention(**p, rows=rows), attention[:, :, np.asarray(rows, int)])


@pytest.mark.parametrize("rows, kind, message", [
    ([0, 8], IndexError, r"rows\[1\] is 8; expected integers from -8 to 7"),
    ([-9], IndexError, r"rows\[0\] is -9; expected integers from -8 to 7"),
    (np.array([2**64 - 1], np.uint64), IndexError, r"rows\[0\] is "),
    ([0.0], TypeError, "rows has dtype float64; expected integers"),
    ([True], TypeError, "rows has dtype bool; expected integers"),
    (3, ValueError, r"rows has shape \(\); expected \(R,\)"),
    ([[1]], ValueError, r"rows has shape \(1, 1\); expected \(R,\)"),
    ([[1], [2, 3]], ValueError, "rows is not an array of integers"),
])  # fmt: skip
def test_bad_rows(rows, kind, message):
    with pytest.raises(kind, match=message):
        fd.scan_attention(**attention_problem(1, 2, 3, 8), rows=rows)


@pytest.mark.parametrize(
    "change, kind, message",
    [
        (
            dict(delta=np.zeros(5)),
            ValueError,
            r"delta has shape \(5,\); expected \(batch, D, L\) or \(D, L\)",
        ),
        (
            dict(A=np.zeros((5, 3))),
            ValueError,
            r"A has shape \(5, 3\); expected \(D, N\) = \(6, N\)",
        ),
        (
            dict(B=np.zeros((2, 4, 8))),
            ValueError,
            r"B has shape \(2, 4, 8\); expected \(batch, N, L\) = \(2, 3, 8\)",
        ),
        (dict(C=np.zeros((2, 4, 3, 8))), ValueError, "C has shape .* with G dividing D = 6"),
        (
            dict(delta_bias=np.zeros(1)),
            ValueError,
            r"delta_bias has shape \(1,\); expected \(D,\) = \(6,\)",
        ),
        (dict(delta=np.zeros((2, 6, 8), bool)), TypeError, "delta has dtype bool"),
        (dict(delta=None), TypeError, "delta has dtype object"),
        (dict(C=None), TypeError, "C has dtype object"),
    ],
)
def test_errors_name_the_argument(change, kind, message):
    with pytest.raises(kind, match=message):
        fd.scan_attention(**{**attention_problem(2, 6, 3, 8), **change})


def test_more_than_the_memory_is_refused_at_once():
    delta = np.broadcast_to(np.float32(0), (64, 10_000_000))
    one = np.ones((64, 1), np.float32)
    message = r"\(64, 10000000, 10000000\) and dtype float32 would take 25600000000000000 bytes"
    with pytest.raises(MemoryError, match=message):
        fd.scan_attention(delta, -one, one, one)


# ---- the same bits, however it is asked -------------------------------------------------------


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "delta_bias"])
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("kind", ["time", "constant"])
def test_layout_changes_no_bit(name, dtype, kind):
    p = attention_problem(2, 5, 6, 150, dtype=dtype, B=kind, C=kind)
    attention = fd.scan_attention(**p)
    before = snapshot(*(p[k] for k in ARGUMENTS[:5]))
    for label, array in layouts(p[name]):
        assert same_bits(attention, fd.scan_attention(**{**p, name: array})), label
    assert snapshot(*(p[k] for k in ARGUMENTS[:5])) == before


@pytest.mark.parametrize("B", ["constant", "time", 2])
def test_unbatched_equals_batch_of_one(B):
    batched = fd.scan_attention(**attention_problem(1, 8, 3, 70, B=B))
    assert same_bits(
        batched[0], fd.scan_attention(**attention_problem(1, 8, 3, 70, B=B, unbatched=True))
    )


def test_thread_count_changes_no_bit():
    p = attention_problem(2, 10, 8, 400, dtype=np.float32)
    first, *others = by_threads(lambda: fd.scan_attention(**p), 1, 2, 3, 64)
    assert all(same_bits(first, other) for other in others)


LEVEL_SCRIPT = """
import hashlib, sys
sys.path.insert(0, {tests!r})
import numpy as np
from test_ssm_attention import attention_problem
import fastderiv as fd
for dtype in np.float32, np.float64:
    for sign in 1, -1:
        p = attention_problem(2, 3, 9, 200, dtype=dtype)
        attention = fd.scan_attention(**{{**p, "A": sign * p["A"] / 9}})
        print(hashlib.sha256(attention.tobytes()).hexdigest(), float(np.abs(attention).sum()))
"""


def test_cpu_levels_agree():
    assert_levels_agree(LEVEL_SCRIPT.format(tests=os.path.dirname(__file__)))


# ---- extremes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
def test_growth_overflows_only_where_it_must(dtype):
    p = attention_problem(1, 2, 3, 300, dtype=dtype)
    p |= dict(
        A=np.array([[1.0, 0.5, 0.0], [-1.0, -2.0, -3.0]], dtype),
        delta_softplus=False,
        delta_bias=None,
    )
    top = np.log(float(np.finfo(dtype).max))
    p["delta"] = np.full((1, 2, 300), 1.5 * top / 300, dtype)
    attention = fd.scan_attention(**p)
    exact = reference.scan_attention(**p) if dtype == np.float32 else None
    assert not np.isfinite(attention[0, 0, -1, 0]) and np.isfinite(attention[0, 1]).all()
    assert (
        np.isfinite(attention[0, 0, 150]).all()
        and np.isfinite(attention[0, 0, :, 200:]).all()
        and not np.isnan(attention).any()
    )
    if exact is not None:
        assert error(attention[0, 0, 150], exact[0, 0, 150]) < 2e-5


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("wild", [50, -50])
@pytest.mark.parametrize("counts", [(64, 64, 64), (32, 32, 64)])
def test_factors_that_overflow_apart_make_a_finite_product(dtype, wild, counts):
    """Steps of both signs: sums over blocks, or within one, are beyond the range of exp, the sum
    from row to column is not.
    """
    delta = np.repeat(np.array([[1, wild, -wild * counts[1] / counts[2]]], dtype), counts, axis=1)
    one = np.ones((1, 1), dtype)
    attention = fd.scan_attention(delta, -one, one, one, rows=[-1])
    assert (
        error(attention[0, 0, : counts[0]], np.exp(np.arange(1.0 - counts[0], 1)))
        < TOLERANCE[dtype]
    )
    assert not np.isnan(attention).any()


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("rate, forgotten", [(-1.0, 0), (0.0, np.nan)])
def test_infinite_step_forgets(dtype, rate, forgotten):
    delta, A, one = np.ones((1, 200), dtype), np.full((1, 1), rate, dtype), np.ones((1, 1), dtype)
    delta[0, 100] = np.inf
    attention = fd.scan_attention(delta, A, one, one)[0]
    np.testing.assert_array_equal(attention[100:, :100], forgotten)
    assert (
        np.isinf(attention[100:110, 100]).all()
        and np.isfinite(attention[:100]).all()
        and np.isfinite(attention[:, 101:]).all()
    )


def test_infinite_rate_forgets():
    attention = fd.scan_attention(np.ones((1, 200)), [[-np.inf]], [[1.0]], [[1.0]])[0]
    assert not np.tril(attention, -1).any()


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["delta", "A", "delta_bias", "B", "C"])
def test_nonfinite_stays_where_it_belongs(dtype, bad, name):
    p = attention_problem(2, 5, 4, 200, dtype=dtype, C=1)
    clean = fd.scan_attention(**p)
    q = {**p, name: p[name].copy()}
    hit = np.zeros(clean.shape, bool)
    if name in ("A", "delta_bias"):
        q[name][3] = bad
        hit[:, 3] = True
    elif name == "delta":
        q[name][1, 3, 130] = bad
        hit[1, 3, 130:, :131] = True
    elif name == "B":
        q[name][1, 2, 130] = bad
        hit[1, :, 130:, 130] = True
    else:
        q[name][1, 0, 2, 130] = bad
        hit[1, :, 130, :131] = True
    attention = fd.scan_attention(**q)
    assert error(attention[~hit], clean[~hit]) < TOLERANCE[dtype]
    assert not np.triu(attention, 1).any()
    if name == "delta":
        hit[1, 3] = True  # elsewhere in the channel blocks may be computed in another way
    assert same_bits(attention[~hit], clean[~hit])
    if np.isnan(bad):
        assert (
            np.isnan(attention[np.tril(hit)]).all()
            if name in ("B", "C")
            else np.isnan(attention).any()
        )


# ---- threads, memory, signals -----------------------------------------------------------------


MEMORY_SCRIPT = """
import resource import numpy as np import fastderiv as fd fd.set_num_threads(2) rng =
np.random.default_rng(0) delta = rng.random((8, 100_000), np.float32) B, C = (rng.random((1,
100_000, 16), np.float32).swapaxes(1, 2) for _ in range(2))  # strided: copied block by block A =
-rng.random((8, 16), np.float32) fd.scan_attention(delta[:, :64], A, B[..., :64], C[..., :64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss result = fd.scan_attention(delta, A, B,
C, rows=range(-16, 0)) print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before -
result.nbytes // 1024)
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
    assert int(done.stdout) < 2048  # KiB: 1 MiB per thread; one copy of B would be 6 MiB


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_ctrl_c_is_answered_at_once(threads, sign):
    delta = np.broadcast_to(np.float32(1e-6), (8, 400_000))  # seconds of work
    B = np.broadcast_to(np.float32(1), (1, 2048, 400_000))
    A, before = np.full((8, 2048), sign, np.float32), fd.get_num_threads()
    fd.set_num_threads(threads)
    try:
        assert (
            seconds_until_answered(lambda: fd.scan_attention(delta, A, B, B, rows=range(-8, 0)))
            < ALLOWED
        )
    finally:
        fd.set_num_threads(before)
