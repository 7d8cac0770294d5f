"""Vector maths against mpmath, and argument checks."""

import os
import pickle
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastderiv._core import arrays, cpu, maths, plain
from fastderiv._core.dispatch import LEVEL_NAMES
from helpers.awkward import layouts, overlapping_views, same_bits

# largest errors in units of the last place, float32 and float64, at every level, found for millions
# of numbers and rounded up: simd_math.h states them
ULP = {
    "exp": (1.4, 1.5),
    "sigmoid": (2.5, 2.4),
    "silu": (3.3, 3.2),
    "softplus": (3.0, 3.0),
    "tanh": (3.4, 3.8),
    "tanh_grad": (6.0, 6.0),
}
EXACT = {
    "exp": mpmath.exp,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "tanh": mpmath.tanh,
    "tanh_grad": lambda x: mpmath.sech(x) ** 2,
}
EDGES = {
    np.float32: (-87.33655, 88.722839, -91.8568, 44.361418),
    np.float64: (-708.3964185322642, 709.7827128933841, -714.968657237966, 354.8913564466912),
}


def samples(dtype, count):
    """Everywhere in the range, dense near 0 and near every edge of it."""
    rng = np.random.default_rng(0)
    reach = 110 if dtype == np.float32 else 760
    near = [np.nextafter(dtype(edge), dtype(to)) for edge in EDGES[dtype] for to in (-1e4, 0, 1e4)]
    parts = [
        rng.uniform(-reach, reach, count),
        rng.normal(size=count),
        rng.normal(size=count) * 10 ** rng.uniform(-30, 0, count),
        -(10 ** rng.uniform(-2, np.log10(reach), count)),
        near,
        EDGES[dtype],
    ]
    return np.concatenate(parts).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", EXACT)
def test_maths_within_its_stated_error(name, dtype):
    x = samples(dtype, 1500)
    y = getattr(maths, name)(x)
    assert y.dtype == dtype
    tiny, huge = (mpmath.mpf(float(v)) for v in (np.finfo(dtype).tiny, np.finfo(dtype).max))
    worst = 0.0
    with mpmath.workprec(140):
        for xi, yi in zip(x.tolist(), y.tolist(), strict=True):
            exact = EXACT[name](mpmath.mpf(xi))
            if abs(exact) < tiny:
                assert abs(yi) <= tiny
            elif abs(exact) > huge:
                assert yi == np.inf
            else:
                ulp = float(np.spacing(np.abs(dtype(exact))))
                worst = max(worst, float(abs(mpmath.mpf(yi) - exact)) / ulp)
    assert worst <= ULP[name][dtype == np.float64]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_maths_at_the_ends_of_the_line(dtype):
    x = np.array([np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0, 1e30, -1e30], dtype)
    payload = (
        np.array([0x7FC00001], np.uint32).view(np.float32)
        if dtype == np.float32
        else np.array([0x7FF80000000000FF], np.uint64).view(np.float64)
    )
    x = np.concatenate([x, payload])
    expected = {
        "exp": [np.inf, 0, np.nan, np.nan, 1, 1, np.inf, 0, np.nan],
        "sigmoid": [1, 0, np.nan, np.nan, 0.5, 0.5, 1, 0, np.nan],
        "silu": [np.inf, 0, np.nan, np.nan, 0, 0, 1e30, 0, np.nan],
        "softplus": [np.inf, 0, np.nan, np.nan, np.log(2), np.log(2), 1e30, 0, np.nan],
        "tanh": [1, -1, np.nan, np.nan, 0, 0, 1, -1, np.nan],
        "tanh_grad": [0, 0, np.nan, np.nan, 1, 1, 0, 0, np.nan],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(maths, name)(x), np.array(values, dtype), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tanh_is_odd_bounded_and_keeps_the_sign_of_zero(dtype):
    x = np.abs(samples(dtype, 1500))
    y = maths.tanh(x)
    assert same_bits(maths.tanh(-x), -y) and (y <= 1).all()
    assert np.signbit(maths.tanh(np.array([0.0, -0.0], dtype))).tolist() == [False, True]
    assert (maths.tanh(np.array([9.1, 20], dtype)[int(dtype == np.float64) :]) == 1).all()


def test_exp_is_flat_nowhere_near_zero():
    """A slow recurrence accumulates the slope at 0: (e^x − 1)/x tends to 1, not to 1 + 3e-7."""
    x = np.float32(2.0) ** np.arange(-12, -3, dtype=np.float32)
    slope = (maths.exp(x).astype(np.float64) - 1) / x
    np.testing.assert_allclose(
        slope,
        np.expm1(x.astype(np.float64)) / x,
        atol=float(np.spacing(np.float32(1)) / x.min()) / 1.9,
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20000), st.sampled_from([np.float32, np.float64]))
def test_maths_of_any_length_and_layout(n, dtype):
    x = np.linspace(-30, 30, n, dtype=dtype)
    y = maths.softplus(x)
    assert same_bits(maths.softplus(x[::-1])[::-1].copy(), y)
    assert same_bits(maths.softplus(x.reshape(-1, 1))[:, 0].copy(), y)


# ---- the product of gemm.h -----------------------------------------------------------------------

TREE = Path(__file__).resolve().parents[1]
COMPILER = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or ""]


@pytest.mark.skipif(not shutil.which(COMPILER[0]), reason="needs a C compiler")
@pytest.mark.skipif(os.name == "nt", reason="the compiler's options are those of GCC and Clang")
@pytest.mark.parametrize("real", [[], ["-DSIMD_F64"]], ids=["f32", "f64"])
@pytest.mark.parametrize("level", ["baseline", "x86-64-v3", "x86-64-v4"])
def test_gemm_is_one_chain_of_multiply_adds_and_reads_nothing_outside_triangles(
    level, real, tmp_path
):
    possible = {LEVEL_NAMES[tag] for tag in cpu.SUPPORTED}
    if level != "baseline" and (platform.machine() != "x86_64" or level not in possible):
        pytest.skip("another CPU")
    flags = [] if level == "baseline" else [f"-march={level}", "-DSIMD_FMA"]
    program = tmp_path / "chains"
    source = TREE / "tests" / "gemm_chains.c"
    include = f"-I{TREE / 'src' / 'fastderiv' / '_core'}"
    command = [*COMPILER, "-O1", "-ffp-contract=off", *flags, *real, include, source]
    subprocess.run([*command, "-lm", "-o", program], check=True)
    run = subprocess.run([program], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


# ---- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint64])
def test_any_layout_becomes_native_and_aligned(dtype):
    array = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    expected = dtype if array.dtype.kind == "f" else np.float64
    for label, view in layouts(array):
        (same,) = arrays.working(x=view)
        assert (
            same.dtype == expected
            and same.dtype.isnative
            and same.flags.aligned
            and np.array_equal(same, array)
        ), label
    assert (arrays.working(x=array)[0] is array) == (dtype == expected)


def test_working_dtype():
    single, double = np.zeros(2, np.float32), np.zeros(2)

    def dtype(*values):
        return next(
            a.dtype
            for a in arrays.common([v if v is None else arrays.as_array("a", v) for v in values])
            if a is not None
        )

    assert dtype(single, None) == np.float32
    assert dtype(single, double) == np.float64
    assert dtype(single, [1, 2]) == np.float64
    assert dtype(single, np.int8(3)) == dtype(single, 2.5) == np.float32  # scalars give way
    assert dtype(np.float32(1)) == np.float32
    assert dtype(1.0) == dtype(7) == np.float64


def test_dtype_objects_of_their_own_cost_no_copy():
    for dtype in np.float32, np.float64:
        array = pickle.loads(pickle.dumps(np.zeros(3, dtype)))
        assert arrays.working(x=array)[0] is array
        view = array.view(array.dtype.newbyteorder("="))
        assert arrays.working(x=view)[0] is view


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros(2, bool),
        True,
        np.zeros(2, complex),
        1j,
        np.zeros(2, np.float16),
        np.zeros(2, np.longdouble),
        np.array([None]),
        ["a"],
        np.zeros(2, "M8[s]"),
        object(),
    ],
)
def test_other_dtypes_are_type_errors(bad):
    with pytest.raises(
        TypeError, match=r"weight has dtype .*; expected float32, float64 or integers"
    ):
        arrays.as_array("weight", bad)


def test_overlap_is_told_from_interleaving():
    for a, b, shared in overlapping_views():
        assert arrays.overlap(a, b) == shared


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_plain_arrays_are_those_that_need_no_conversion(dtype):
    target = np.zeros((2, 3), dtype)
    for label, array in layouts(np.arange(6, dtype=dtype).reshape(2, 3)):
        assert plain.plain(target, (array,), (array, None)) == (
            label not in ("misaligned", "byte-swapped")
        ), label
        assert plain.plain(array, (), ()) == (
            label not in ("read-only", "misaligned", "byte-swapped")
        ), label
    other = np.float64 if dtype == np.float32 else np.float32
    for odd in (
        target.astype(other),
        target.astype(int),
        target.view(np.recarray),
        target.tolist(),
        None,
        1.0,
    ):
        assert not plain.plain(target, (odd,), ())
        assert not plain.plain(target, (), (odd,)) or odd is None
        assert not plain.plain(odd, (target,), ()) or getattr(odd, "dtype", None) == other
    assert not plain.plain(target.astype(int), (target.astype(int),), ())


def test_plain_arrays_share_no_memory():
    for a, b, shared in overlapping_views():
        assert not (shared and plain.plain(a, (b,), ())) and not (
            shared and plain.plain(b, (), (a,))
        )
    base = np.zeros((6, 8))
    for a, b in (
        (base[:3], base[3:]),
        (base[3:][::-1], base[:3, ::-1]),
        (base[0, :4], base[0, 4:]),
        (base[1], base[1, 3:3]),
    ):
        assert plain.plain(a, (b,), ()) and plain.plain(b, (), (a,))
    assert not plain.plain(base[::-1], (base[0],), ()) and not plain.plain(
        base[0], (base[::-1],), ()
    )
    assert not plain.plain(base[:, :4], (base[:, 4:],), ())  # interleaved: left to the exact test


@pytest.mark.parametrize("value", [3, np.int8(3), np.array(3)])
def test_an_index_is_an_integer_of_any_kind(value):
    assert type(arrays.index("k", value)) is int and arrays.index("k", value, least=3) == 3
    assert arrays.position("k", value, 4, "inputs") == arrays.position("k", -1, 4, "inputs") == 3
    with pytest.raises(ValueError, match="k is 3; expected an integer of at least 4"):
        arrays.index("k", value, least=4)
    with pytest.raises(
        ValueError, match="k is 3; expected an integer from -3 to 2, there being 3 inputs"
    ):
        arrays.position("k", value, 3, "inputs")


@pytest.mark.parametrize(
    "value", [3.0, np.float64(3), True, np.True_, "3", None, [3], np.array([3, 4])]
)
def test_nothing_else_is_an_index(value):
    with pytest.raises(TypeError, match=r"k is .*; expected an integer"):
        arrays.index("k", value)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.uint8(2), np.array(2.0), np.array(2)])
def test_a_number_is_a_scalar_of_any_kind(value):
    assert type(arrays.number("tol", value)) is float and arrays.number("tol", value) == 2


@pytest.mark.parametrize(
    "value", [True, np.True_, "2", None, 2j, [2], [[2], [2, 3]], np.array([2.0]), np.array(True)]
)
def test_nothing_else_is_a_number(value):
    with pytest.raises(TypeError, match=r"tol is .*; expected a number"):
        arrays.number("tol", value)


@pytest.mark.parametrize("sysconf", [True, False])
@pytest.mark.parametrize("nbytes", [2**61, 2**63, 10**30])
def test_more_bytes_than_the_machine_has_are_refused(monkeypatch, sysconf, nbytes):
    if not sysconf:
        monkeypatch.delattr(os, "sysconf", raising=False)  # as on Windows
    arrays.check_fits("a page", 4096)
    with pytest.raises(MemoryError, match=f"the terms would take {nbytes} bytes"):
        arrays.check_fits("the terms", nbytes)


def test_arrays_that_are_alike_need_no_conversion():
    a, narrow = np.ones(3), np.ones(3, np.float32)
    assert (
        plain.alike((a, a[::-1], None), 2)
        and plain.alike((narrow, None), 1)
        and plain.alike((a,), 1)
    )
    swapped, odd = (
        a.astype(">f8" if np.little_endian else "<f8"),
        np.zeros(25, np.uint8)[1:].view(np.float64),
    )
    for other in (
        narrow,
        swapped,
        odd,
        a.view(np.recarray),
        np.ma.array(a),
        a.astype(int),
        [1.0],
        1.0,
        a.astype(np.longdouble),
    ):
        assert not plain.alike((a, other), 1) and not plain.alike((other, a), 1)
    assert not plain.alike((a, None), 2) and not plain.alike((None, None), 0)


def test_widest_gap_of_boundaries():
    assert plain.widest(np.array([0, 2, 2, 7])) == 5 and plain.widest(np.array([3])) == 0
    assert plain.widest(np.array([0, 2, 1])) == -1
    for bad in (
        np.zeros((1, 2), int),
        np.zeros(2),
        np.arange(6)[::2],
        np.arange(3, dtype=np.int16),
    ):
        with pytest.raises(TypeError):
            plain.widest(bad)


def test_numbers_beyond_float64s_integers_are_rounded_to_nearest():
    assert arrays.number("alpha", np.int64(2**53 + 1)) == 2.0**53
    with pytest.raises(TypeError, match=r"^block is a masked array"):
        arrays.index("block", np.ma.array(3))
