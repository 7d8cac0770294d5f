"""Subset sums, in memory and streamed, and their log-sum-exp: derivations §1.3.

They are compared with their references and with mpmath, and bit by bit with their definition.
"""

import math
import os
import subprocess
import sys

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import error, layouts, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered

DTYPES = [np.float32, np.float64]
METHODS = ["closed", "enumerate"]
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}


@pytest.fixture(autouse=True)
def _restore_threads():
    n = fd.get_num_threads()
    yield
    fd.set_num_threads(n)


def random(shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def doubled(x):
    """All sums of x (n,) in float64, by doubling: an oracle that is fast enough for n = 24."""
    sums = np.zeros(1)
    for value in np.asarray(x, float):
        sums = np.concatenate([sums, sums + value])
    return sums


def defined(x):
    """The sums of x (n,) with the bits that `subset_sums` promises.

    Each is the ascending sum of the first ten entries plus the ascending sum of the others.
    """

    def ascending(values):
        sums = np.zeros(1, x.dtype)
        for value in values:
            sums = np.concatenate([sums, sums + value])
        return sums

    return np.add.outer(ascending(x[10:]), ascending(x[:10])).reshape(-1)


# ---- subset_sums -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        (0,),
        (1,),
        (2,),
        (3,),
        (4,),
        (9,),
        (12,),
        (3, 2),
        (2, 3, 5),
        (0, 3),
        (4, 0),
        (2, 0, 3),
        (5, 11),
        (3000, 1),
    ],
)
def test_sums_are_those_of_the_reference(shape, dtype):
    x = random(shape, dtype)
    sums = fd.subset_sums(x)
    assert sums.dtype == dtype and sums.shape == (*shape[:-1], 2 ** shape[-1])
    assert error(sums, reference.subset_sums(x)) < TOLERANCE[dtype] / 10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [*range(14), 18, 19, 21, 23])
def test_sums_have_the_bits_of_their_definition(n, dtype):
    x = random(n, dtype, n)
    exact = defined(x)
    out = np.empty(2**n + 8, dtype)
    assert same_bits(fd.subset_sums(x), exact)
    for first in range(0, 8, 3 if n > 14 else 1):  # every alignment of the result
        assert same_bits(fd.subset_sums(x, out=out[first : first + 2**n]), exact)


@given(st.lists(st.floats(-1e3, 1e3, width=32), max_size=12), st.integers(0, 2**12 - 1))
def test_position_is_the_mask(x, mask):
    mask %= 2 ** len(x)
    chosen = [value for i, value in enumerate(x) if mask >> i & 1]
    assert math.isclose(
        fd.subset_sums(np.array(x, float))[mask], math.fsum(chosen), rel_tol=1e-12, abs_tol=1e-9
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 10, 11])
def test_many_rows_are_rows_one_by_one(n, dtype):
    x = random((777, n), dtype)
    sums = fd.subset_sums(x)
    assert same_bits(sums, np.stack([fd.subset_sums(row) for row in x]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_results_of_many_rows_in_place(dtype):
    x = random((2**13 + 3, 10), dtype)
    out = np.full((2**13 + 3, 2**10), np.nan, dtype)
    fd.subset_sums(x, out=out)
    assert same_bits(out[:, 0], np.zeros(len(x), dtype))
    for row in (0, 1, 255, 256, 4097, -1):
        assert same_bits(out[row], fd.subset_sums(x[row]))
    assert same_bits(out[:, 512], x[:, 9])


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_awkward_layouts(dtype):
    x = random((3, 4, 5), dtype)
    plain = fd.subset_sums(x)
    for label, array in layouts(x):
        before = snapshot(array)
        assert same_bits(fd.subset_sums(array), plain), label
        assert snapshot(array) == before, label


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, ">i4"])
def test_integers_count_as_float64(dtype):
    x = np.arange(24).reshape(4, 6).astype(dtype)
    for integers in (x, x[::-1].copy()[::-1], x.tolist()):
        assert same_bits(fd.subset_sums(integers), fd.subset_sums(x.astype(float)))
        assert same_bits(fd.subset_logsumexp(integers), fd.subset_logsumexp(x.astype(float)))


def test_non_finite_entries_stay_in_their_subsets():
    x = random((3, 12))
    x[1, 3] = np.nan
    x[1, 11] = np.inf
    sums, masks = fd.subset_sums(x), np.arange(2**12)
    clean = fd.subset_sums(np.where(np.isfinite(x), x, 0))
    touched = (masks >> 3 & 1) | (masks >> 11 & 1)
    assert same_bits(sums[[0, 2]], clean[[0, 2]])
    assert same_bits(sums[1][touched == 0], clean[1][touched == 0])
    assert np.isnan(sums[1][masks >> 3 & 1 == 1]).all()
    assert (sums[1][(masks >> 3 & 1 == 0) & (masks >> 11 & 1 == 1)] == np.inf).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 4), (2, 2, 12)])
def test_out_of_any_layout(shape, dtype):
    x = random(shape, dtype)
    exact = fd.subset_sums(x)
    for label, out in layouts(np.zeros_like(exact)):
        if label in ("read-only", "byte-swapped"):
            continue
        assert fd.subset_sums(x, out=out) is out
        assert same_bits(out, exact), label


def test_strided_out_leaves_its_neighbours_alone():
    x = random((3, 13))
    wide = np.full((5, 2**14 + 2), 7.0)
    fd.subset_sums(x, out=wide[1:4, 1:-1:2])
    assert same_bits(wide[1:4, 1:-1:2], fd.subset_sums(x))
    assert (wide[[0, 4]] == 7).all() and (wide[:, ::2] == 7).all()


def test_out_is_checked():
    x = random(3)
    frozen = np.zeros(8)
    frozen.flags.writeable = False
    shared = np.zeros(16)
    for out, exception, message in [
        ([0.0] * 8, TypeError, "out is a list"),
        (np.zeros(8, np.float32), TypeError, "out has dtype float32; expected float64"),
        (np.zeros(8, ">f8"), TypeError, "out has dtype >f8"),
        (np.zeros(4), ValueError, r"out has shape \(4,\); expected \(8,\)"),
        (np.zeros((1, 8)), ValueError, "out has shape"),
        (frozen, ValueError, "out is read-only"),
    ]:
        with pytest.raises(exception, match=message):
            fd.subset_sums(x, out=out)
    with pytest.raises(ValueError, match="out shares memory with x"):
        fd.subset_sums(shared[:3], out=shared[2:10])
    with pytest.raises(ValueError, match="out shares memory with x"):
        fd.subset_sums(shared.view(np.int64)[:3], out=shared[:8])
    assert same_bits(
        fd.subset_sums(shared[::6], out=shared[1:16:2][:8]), np.zeros(8)
    )  # the arrays interleave, and share no number


def test_results_that_do_not_fit_say_how_many_bytes():
    for shape, dtype in [
        ((62,), np.float64),
        ((60,), np.float32),
        ((50,), np.float64),
        ((2**20, 62), np.float64),
    ]:
        x = np.broadcast_to(np.ones((), dtype), shape)
        needed = math.prod(shape[:-1]) * 2 ** shape[-1] * np.dtype(dtype).itemsize
        with pytest.raises(MemoryError, match=f"{needed} bytes"):
            fd.subset_sums(x)
    with pytest.raises(MemoryError, match=f"{2**62 * 8} bytes"):
        fd.iter_subset_sums(np.ones(62), block=2**62)


def test_an_empty_result_beyond_numpys_shapes_says_so():
    with pytest.raises(MemoryError, match=rf"NumPy cannot represent the shape \(0, {2**62}\)"):
        fd.subset_sums(np.zeros((0, 62)))


# ---- every function ----------------------------------------------------------------------------

CALLS = [fd.subset_sums, fd.iter_subset_sums, fd.subset_logsumexp]


@pytest.mark.parametrize("function", CALLS)
def test_x_is_checked(function):
    for bad in (
        np.zeros(3, bool),
        np.zeros(3, complex),
        np.zeros(3, np.float16),
        np.zeros(3, np.longdouble),
        ["a"],
        [None],
    ):
        with pytest.raises(TypeError, match="x has dtype"):
            function(bad)
    with pytest.raises(ValueError, match=r"x has shape \(\)"):
        function(1.0)
    with pytest.raises(ValueError, match="x is not an array"):
        function([[1.0], [1.0, 2.0]])


def test_more_than_62_entries_cannot_be_enumerated():
    for call in (
        fd.subset_sums,
        fd.iter_subset_sums,
        lambda x: fd.subset_logsumexp(x, method="enumerate"),
    ):
        with pytest.raises(ValueError, match=r"63 entries .* at most 62"):
            call(np.zeros(63))
    assert fd.subset_logsumexp(np.zeros(63)) == pytest.approx(63 * math.log(2), rel=1e-15)


# ---- iter_subset_sums --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 5, 12])
@pytest.mark.parametrize("block", [1, 2, 3, 8, 100, 1024, 3000, 1 << 16, 1 << 40])
def test_blocks_have_the_bits_of_the_whole(n, block, dtype):
    x = random(n, dtype)
    whole = fd.subset_sums(x)
    masks, blocks = zip(*fd.iter_subset_sums(x, block=block), strict=True)
    length = min(2**n, 1 << (block - 1).bit_length())
    assert masks == tuple(range(0, 2**n, length)) and all(type(mask) is int for mask in masks)
    assert all(len(sums) == length for sums in blocks)
    assert same_bits(np.concatenate(blocks), whole)  # no block has overwritten another


@pytest.mark.parametrize("block", [1 << 17, 1 << 20])
def test_large_blocks_have_the_bits_of_the_whole(block):
    x = random(21, np.float32)
    whole = fd.subset_sums(x)
    for first, sums in fd.iter_subset_sums(x, block=block):
        assert same_bits(sums, whole[first : first + len(sums)])


def test_stream_of_62_entries_starts_at_once():
    x = random(62)
    for step, (first, sums) in enumerate(fd.iter_subset_sums(x, block=4096)):
        assert first == step * 4096
        assert (
            error(
                sums[:2],
                [
                    math.fsum(x[i] for i in range(62) if mask >> i & 1)
                    for mask in (first, first + 1)
                ],
            )
            < 1e-12
        )
        if step == 20:
            break


def test_stream_reads_x_when_called():
    x = random(8)
    blocks = fd.iter_subset_sums(x, block=16)
    exact = fd.subset_sums(x)
    x[:] = 0
    assert same_bits(np.concatenate([sums for _, sums in blocks]), exact)


def test_stream_matches_the_reference():
    x = random(7)
    for (mask, sums), (mask_, sums_) in zip(
        fd.iter_subset_sums(x, block=10), reference.iter_subset_sums(x, block=10), strict=True
    ):
        assert mask == mask_ and error(sums, sums_) < 1e-14


def test_stream_raises_when_called():
    for kwargs, exception, message in [
        ({"block": 0}, ValueError, "block is 0"),
        ({"block": -4}, ValueError, "block is -4"),
        ({"block": 2.0}, TypeError, "block is 2.0; expected an integer"),
        ({"block": True}, TypeError, "block is True; expected an integer"),
        ({"progress": 3}, TypeError, "progress is a int"),
    ]:
        with pytest.raises(exception, match=message):
            fd.iter_subset_sums(random(3), **kwargs)
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\); expected \(n,\)"):
        fd.iter_subset_sums(random((2, 3)))


def test_stream_reports_each_block():
    seen = []
    for first, sums in fd.iter_subset_sums(
        random(10), block=256, progress=lambda *report: seen.append(report)
    ):
        assert seen[-1] == (first + len(sums), 1024)
    assert seen == [(256, 1024), (512, 1024), (768, 1024), (1024, 1024)]


# ---- subset_logsumexp --------------------------------------------------------------------------


def exact_logsumexp(x):
    """Σ log(1 + e**x) with 60 digits."""
    with mpmath.workdps(60):
        return float(mpmath.fsum(mpmath.log1p(mpmath.exp(mpmath.mpf(float(value)))) for value in x))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "x",
    [
        [],
        [0.0],
        [400.0, 400.0],
        [700.0, -700.0],
        [-700.0] * 7,
        [700.0] * 19,
        [-40.0] * 12,
        [1e-300] * 5,
        [-1e-300] * 5,
        [1e-300, -700.0, 3.0],
        [-345.0] * 12,
        [1e5, -1e5, 1.0, 1e-5],
        [-0.0, 0.0],
        [-37.0, -38.0, -36.5],
        list(np.linspace(-30, 30, 13)),
    ],
    ids=str,
)
def test_logsumexp_has_twelve_digits(x, method):
    assert math.isclose(
        fd.subset_logsumexp(np.array(x), method=method), exact_logsumexp(x), rel_tol=1e-13
    )
    single = np.array(x, np.float32)
    value = fd.subset_logsumexp(single, method=method)
    tiny = np.finfo(np.float32).tiny
    assert value.dtype == np.float32 and math.isclose(
        value, exact_logsumexp(single), rel_tol=1e-5, abs_tol=tiny
    )


@given(st.lists(st.floats(-720, 720), max_size=11))
@settings(max_examples=200)
def test_both_methods_agree(x):
    closed, enumerated = (
        fd.subset_logsumexp(np.array(x, float), method=method) for method in METHODS
    )
    assert math.isclose(closed, enumerated, rel_tol=1e-13, abs_tol=2.3e-308 * 2**11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "shape", [(0,), (0, 3), (3, 0), (7,), (2, 3, 5), (1000, 4), (300, 10), (2, 19)]
)
def test_logsumexp_is_that_of_the_reference(shape, method, dtype):
    x = random(shape, dtype) * 3
    value = fd.subset_logsumexp(x, method=method)
    assert value.dtype == dtype and value.shape == shape[:-1]
    assert isinstance(value, np.generic if len(shape) == 1 else np.ndarray)
    routes = METHODS if shape[-1] < 12 else ["closed"]
    for route in routes:
        assert error(value, reference.subset_logsumexp(x, method=route)) < TOLERANCE[dtype] / 10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1023, 1024, 1025, 16384, 40001])
def test_long_rows_of_the_closed_form(n, dtype):
    x = random((3, n), dtype)
    value = fd.subset_logsumexp(x)
    assert error(value, np.logaddexp(0, x.astype(float)).sum(-1)) < TOLERANCE[dtype] / 10
    wide = np.zeros((n, 6), dtype)
    wide[:, ::2] = x.T
    assert same_bits(fd.subset_logsumexp(wide[:, ::2].T), value)
    assert same_bits(fd.subset_logsumexp(x[1]), value[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_logsumexp_of_awkward_layouts(method, dtype):
    x = random((3, 4, 5), dtype)
    plain = fd.subset_logsumexp(x, method=method)
    for label, array in layouts(x):
        before = snapshot(array)
        assert same_bits(fd.subset_logsumexp(array, method=method), plain), label
        assert snapshot(array) == before, label
    assert same_bits(
        plain.ravel(),
        np.array([fd.subset_logsumexp(row, method=method) for row in x.reshape(-1, 5)]),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [4, 19])
def test_logsumexp_of_non_finite_rows(n, method, dtype):
    x = random((6, n), dtype)
    clean = fd.subset_logsumexp(x, method=method)
    x[0, 2] = np.nan
    x[1, 1] = np.inf
    x[2, :3] = np.inf, np.nan, -np.inf
    x[3, :2] = np.inf, -np.inf
    x[4, 1] = -np.inf
    with np.errstate(all="raise"):
        value = fd.subset_logsumexp(x, method=method)
    assert np.isnan(value[[0, 2]]).all() and (value[[1, 3]] == np.inf).all()
    assert value[4] == pytest.approx(
        fd.subset_logsumexp(np.delete(x[4], 1), method=method),
        rel=1e-5 if dtype == np.float32 else 1e-14,
    )
    assert same_bits(value[5], clean[5])
    assert fd.subset_logsumexp(np.full(n, -np.inf, dtype), method=method) == 0


@pytest.mark.parametrize("method", METHODS)
def test_overflow_is_silent_infinity(method):
    with np.errstate(all="raise"):
        for x in (np.full(3, 3e38, np.float32), np.full(3, 1.7e308), np.full(20, 1.7e308)):
            assert fd.subset_logsumexp(x, method=method) == np.inf
        assert fd.subset_logsumexp(np.full(40_000, 1e305)) == np.inf


def test_unknown_method():
    with pytest.raises(ValueError, match="method is 'open'; expected 'closed' or 'enumerate'"):
        fd.subset_logsumexp(random(3), method="open")
    with pytest.raises(ValueError, match="method is 3"):
        fd.subset_logsumexp(random(3), method=3)


@pytest.mark.parametrize(
    "shape, method, total",
    [
        ((21,), "enumerate", 2**21),
        ((2, 20), "enumerate", 2**21),
        ((70_000, 10), "enumerate", 70_000 << 10),
        ((5, 3), "closed", 5),
    ],
)
def test_logsumexp_reports_to_the_end(shape, method, total):
    seen, x = [], random(shape)
    value = fd.subset_logsumexp(x, method=method, progress=lambda *report: seen.append(report))
    assert same_bits(value, fd.subset_logsumexp(x, method=method))
    done = [report[0] for report in seen]
    assert (
        done == sorted(set(done))
        and seen[-1] == (total, total)
        and all(report[1] == total for report in seen)
    )
    if shape == (70_000, 10):
        assert len(done) > 1


def test_logsumexp_reports_every_few_milliseconds():
    seen = []
    fd.subset_logsumexp(
        random(28, np.float32), method="enumerate", progress=lambda done, total: seen.append(done)
    )
    assert seen == [2**26, 2**27, 3 * 2**26, 2**28]


@pytest.mark.parametrize(
    "call",
    [
        lambda p: list(fd.iter_subset_sums(random(9), block=8, progress=p)),
        lambda p: fd.subset_logsumexp(random(20), progress=p),
        lambda p: fd.subset_logsumexp(random(20), method="enumerate", progress=p),
    ],
)
def test_exceptions_of_progress_propagate(call):
    def stop(done, total):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        call(stop)
    with pytest.raises(TypeError, match="progress is a str"):
        call("yes")
    call(None)
    call(False)


def test_progress_true_draws_a_bar(capsys):
    pytest.importorskip("tqdm")
    list(fd.iter_subset_sums(random(9), block=8, progress=True))
    fd.subset_logsumexp(random(9), method="enumerate", progress=True)
    assert "100%" in capsys.readouterr().err


# ---- bits: threads and levels; signals ---------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_number_of_threads_does_not_change_a_bit(dtype):
    long, rows, wide = random(22, dtype), random((50_000, 5), dtype), random((3, 200_001), dtype)

    def everything():
        return [
            fd.subset_sums(long),
            fd.subset_sums(rows),
            fd.subset_logsumexp(wide),
            fd.subset_logsumexp(rows),
            *(fd.subset_logsumexp(x, method="enumerate") for x in (long, rows, wide[:, :20])),
        ]

    results = []
    for n in (1, 2, 5):
        fd.set_num_threads(n)
        results.append(everything())
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


LEVEL_SCRIPT = """
import sys
import numpy as np, fastderiv as fd
rng, results = np.random.default_rng(1), []
for dtype in (np.float32, np.float64):
    for shape in ((3, 1), (5, 2), (40, 3), (3, 9), (2, 13), (20,)):
        x = (4 * rng.normal(size=shape)).astype(dtype)
        results += [fd.subset_sums(x), fd.subset_logsumexp(x)]
        results += [fd.subset_logsumexp(x, method="enumerate")]
        results += [fd.subset_logsumexp(x * 99, method="enumerate")]
    results += [fd.subset_logsumexp(rng.normal(size=(3, 20001)).astype(dtype))]
sys.stdout.buffer.write(np.concatenate([np.ravel(r).astype(float) for r in results]).tobytes())
"""


def at_level(level):
    env = os.environ | {"FASTDERIV_CPU": level}
    run = subprocess.run(
        [sys.executable, "-c", LEVEL_SCRIPT], env=env, capture_output=True, check=True
    )
    return np.frombuffer(run.stdout)


def test_levels_agree():
    supported = fd.show_config()["CPU levels supported"]
    if len(supported) == 1:
        pytest.skip("there is one level to compare")
    values = {level: at_level(level) for level in supported}
    base = values.pop("x86-64")
    for level, value in values.items():
        assert np.allclose(value, base, rtol=2e-6, atol=1e-6), level
    if len(values) == 2:
        assert same_bits(*values.values())


@pytest.mark.parametrize("threads", [1, 2])
def test_interrupt_is_answered_within_a_fifth_of_a_second(threads):
    fd.set_num_threads(threads)
    assert (
        seconds_until_answered(lambda: fd.subset_logsumexp(random(40), method="enumerate"))
        < ALLOWED
    )
