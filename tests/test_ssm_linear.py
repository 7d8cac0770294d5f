"""The linear recurrence and its adjoint: against the reference, plain loops, autograd, pandas-like
definitions and exact arithmetic; the contract.
"""

import itertools
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import error, layouts, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads, control_register

REALS = [np.float32, np.float64]
KINDS = ["scalar", "constant", "full"]
TOLERANCE = {np.float32: 3e-6, np.float64: 1e-14}
GRADIENTS = {np.float32: 1e-5, np.float64: 1e-13}
SHAPES = [
    ((1,), 0), ((7,), 0), ((300,), 0), ((17, 300), 1), ((300, 17), 0), ((33, 129), 1),
    ((129, 33), 1), ((2, 130, 40), 1), ((3, 4, 5, 6), 2), ((16, 2, 129), 0), ((8, 9, 131), 2),
    ((70, 3), 0), ((3, 70), 1), ((2, 1, 5, 1), 2),
]  # fmt: skip


def problem(shape, axis, kind, dtype=np.float64, seed=0):
    """Arguments of the adjoint, all options on but `reverse`."""
    rng = np.random.default_rng(seed)
    state = shape[:axis] + shape[axis + 1 :]
    factor = {"scalar": (), "constant": state, "full": shape}[kind]

    def normal(shape):
        return rng.normal(size=shape).astype(dtype)

    return {
        "dout": normal(shape),
        "a": np.asarray(rng.uniform(-1, 1, size=factor), dtype),
        "b": normal(shape),
        "axis": axis,
        "initial_state": normal(state),
        "dlast_state": normal(state),
    }


def forward(p):
    return {k: v for k, v in p.items() if k not in ("dout", "dlast_state")}


def scan(p, library=fd):
    return library.linear_scan(**forward(p), return_last_state=True)


def vjp(p, library=fd):
    return library.linear_scan_vjp(**p)


def flat(p):
    """All results: h, the last state, and the gradients."""
    return [*scan(p), *(g for g in vjp(p) if g is not None)]


def identical(results, others):
    return all(same_bits(a, b) for a, b in zip(results, others, strict=True))


def assert_equals_reference(p, dtype):
    for result, exact in zip(scan(p), scan(p, reference), strict=True):
        assert result.dtype == dtype and np.shape(result) == np.shape(exact)
        assert error(result, exact) <= TOLERANCE[dtype]
    for name, result, exact in zip(
        fd.LinearScanGrads._fields, vjp(p), vjp(p, reference), strict=True
    ):
        if exact is None:
            assert result is None
            continue
        assert result.dtype == dtype and np.shape(result) == np.shape(exact), name
        # of a sum, relative to what random terms of this size add up to
        scale = max(1.0, np.abs(exact).max(initial=0))
        if name == "da" and np.ndim(p["a"]) < p["b"].ndim:
            scale = max(scale, np.sqrt(p["b"].size))
        assert np.abs(result - exact).max(initial=0) <= GRADIENTS[dtype] * scale, name


# ---- against the reference --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape, axis", SHAPES)
def test_linear_scan_equals_reference(shape, axis, reverse, kind, dtype):
    p = problem(shape, axis, kind, dtype) | {"reverse": reverse}
    assert_equals_reference(p, dtype)
    assert_equals_reference(p | {"initial_state": None, "dlast_state": None}, dtype)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_linear_scan_equals_reference_in_any_layout(data):
    shape = tuple(data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=4)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1)) % len(shape)
    dtype = data.draw(st.sampled_from(REALS))
    p = problem(shape, axis, data.draw(st.sampled_from(KINDS)), dtype)
    for name in ("dout", "a", "b", "initial_state", "dlast_state"):
        array = p[name]
        order = data.draw(st.permutations(range(array.ndim)))
        array = array.transpose(order).copy().transpose(np.argsort(order))
        turned = tuple(slice(None, None, data.draw(st.sampled_from([1, -1]))) for _ in order)
        p[name] = array[turned].copy(order="K")[turned]
    p["reverse"] = data.draw(st.booleans())
    assert_equals_reference(p, dtype)


def fused(a, b, c):
    """a·b + c in float32, rounded once: the product is exact in float64, and rounding the sum to
    odd before it is rounded to float32 makes two roundings one.
    """
    product, c = np.float64(a) * np.float64(b), np.float64(c)
    total = product + c
    # the error of the sum, by Knuth
    part = total - product
    rest = (product - (total - part)) + (c - part)
    bits = total.view(np.int64)
    away = np.where((rest > 0) == (total > 0), 1, -1)
    odd = np.where((rest != 0) & (bits % 2 == 0), bits + np.where(away > 0, 1, -1), bits)
    return odd.view(np.float64).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1])
def test_every_element_is_one_fused_operation_in_order(axis):
    p = problem((50, 40), axis, "full", np.float32)
    a, b, h = (np.moveaxis(p[k], axis, 0) if k != "initial_state" else p[k]
               for k in ("a", "b", "initial_state"))  # fmt: skip
    fuses = fd.show_config()["CPU level in use"] != "x86-64"
    expected = []
    for t in range(len(b)):
        h = fused(a[t], h, b[t]) if fuses else a[t] * h + b[t]
        expected.append(h)
    assert same_bits(np.moveaxis(scan(p)[0], axis, 0), np.array(expected))


# ---- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [reference, fd])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_linear_gradients_are_slopes(library, kind, reverse):
    """The scan is linear in b and the initial state, and a polynomial in a."""
    p = problem((3, 9, 5), 1, kind) | {"reverse": reverse}
    rng = np.random.default_rng(5)

    def loss(q):
        h, last = scan(q, library)
        return (h * q["dout"]).sum() + (last * q["dlast_state"]).sum()

    grads = vjp(p, library)
    for name, gradient in zip(("a", "b", "initial_state"), grads, strict=True):
        way = rng.normal(size=np.shape(p[name]))
        values = [loss({**p, name: p[name] + s * way}) for s in (-2e-3, -1e-3, 1e-3, 2e-3)]
        along = (8 * (values[2] - values[1]) - (values[3] - values[0])) / 12e-3
        assert abs((gradient * way).sum() - along) <= 1e-9 * max(1, np.abs(gradient).sum()), name


@pytest.mark.parametrize("kind", KINDS)
def test_linear_gradients_equal_complex_steps(kind):
    p = problem((4, 30), 1, kind)
    rng = np.random.default_rng(6)
    way = {k: rng.normal(size=np.shape(p[k])) for k in ("a", "b", "initial_state")}
    for name, gradient in zip(way, vjp(p), strict=True):
        q = {k: p[k] + (1e-200j * way[k] if k == name else 0) for k in way}
        a = np.broadcast_to(q["a"] if kind == "full" else q["a"][..., None], (4, 30))
        h, total = q["initial_state"], 0
        for t in range(30):
            h = a[:, t] * h + q["b"][:, t]
            total = total + (h * p["dout"][:, t]).sum()
        slope = (total + (h * p["dlast_state"]).sum()).imag / 1e-200
        assert abs((gradient * way[name]).sum() - slope) <= 1e-12 * max(1, np.abs(gradient).sum())


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_linear_gradients_equal_autograd(kind, reverse):
    torch = pytest.importorskip("torch")
    p = problem((6, 20), 1, kind)
    t = {k: torch.tensor(v, requires_grad=True) for k, v in p.items() if k != "axis"}
    a = t["a"] if kind == "full" else t["a"][..., None].expand(6, 20)
    h, total = t["initial_state"], 0
    for step in reversed(range(20)) if reverse else range(20):
        h = a[:, step] * h + t["b"][:, step]
        total = total + (h * t["dout"][:, step]).sum()
    total = total + (h * t["dlast_state"]).sum()
    expected = torch.autograd.grad(total, [t["a"], t["b"], t["initial_state"]])
    for mine, theirs in zip(vjp(p | {"reverse": reverse}), expected, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-12, atol=1e-12)


# ---- what it is used for ----------------------------------------------------------------------


def test_filter_of_first_order_equals_scipy():
    signal = pytest.importorskip("scipy.signal")
    x = np.random.default_rng(0).normal(size=(5, 400))
    for pole in (0.9, -0.99, 1.0):
        expected, last = signal.lfilter([1], [1, -pole], x, zi=np.zeros((5, 1)))
        h, state = fd.linear_scan(pole, x, return_last_state=True)
        assert error(h, expected) <= 1e-14
        assert error(pole * state[:, None], last) <= 1e-14


def test_exponential_smoothing_equals_its_definition():
    x, alpha = np.random.default_rng(1).normal(size=200), 0.3
    y = [x[0]]
    for value in x[1:]:
        y.append((1 - alpha) * y[-1] + alpha * value)
    assert error(fd.linear_scan(1 - alpha, alpha * x, initial_state=x[0]), y) <= 1e-15


def test_a_sum_is_cumsum_and_reverse_is_the_other_way_round():
    b = np.random.default_rng(2).integers(-9, 9, (6, 50))
    assert np.array_equal(fd.linear_scan(1, b), np.cumsum(b, axis=1))
    back = fd.linear_scan(1, b, reverse=True)
    assert np.array_equal(back, np.cumsum(b[:, ::-1], axis=1)[:, ::-1])


# ---- accuracy ---------------------------------------------------------------------------------


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 2.0**-60, reason="longdouble is float64 here")
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("decay", [1e-30, 0.5, 0.99, 0.9999])
def test_long_sequences_against_longdouble(decay, dtype):
    """The bound of the docstring: the state's rounding errors decay as it does."""
    p = problem((3, 1 << 14), 1, "constant", dtype)
    p["a"] = np.asarray([decay, -decay, decay / 3], dtype)
    a, h = p["a"].astype(np.longdouble), p["initial_state"].astype(np.longdouble)
    exact = np.empty((3, 1 << 14), np.longdouble)
    for t in range(1 << 14):
        h = exact[:, t] = a * h + p["b"][:, t]
    eps = np.finfo(dtype).eps
    assert error(scan(p)[0], exact) <= eps * min(1 / (1 - decay), 2000)
    back, total = p["dlast_state"].astype(np.longdouble), np.zeros(3, np.longdouble)
    for t in reversed(range(1 << 14)):
        back = back + p["dout"][:, t]
        total += back * (exact[:, t - 1] if t else p["initial_state"])
        back = a * back
    grads = vjp(p)
    assert error(grads.dinitial_state, back) <= 100 * eps
    size = max(np.sqrt(1 << 14) / (1 - decay), float(np.abs(total).max()))
    assert np.abs(grads.da - total).max() <= 50 * eps * size


def test_sums_over_time_keep_what_float32_would_lose():
    n = 1 << 18
    ones = np.ones(n, np.float32)
    grads = fd.linear_scan_vjp(ones, np.float32(0), ones)
    assert grads.da == n - 1
    grads = fd.linear_scan_vjp(np.ones((n, 2), np.float32), np.zeros(2, np.float32),
                               np.full((n, 2), np.float32(0.1)), axis=0)  # fmt: skip
    np.testing.assert_allclose(grads.da, (n - 1) * np.float64(np.float32(0.1)), rtol=3e-7)


# ---- the contract -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape, axis", [((17, 140), 1), ((140, 17), 0), ((3, 20, 6), 1)])
def test_linear_bits_do_not_depend_on_layout(shape, axis, reverse, kind, dtype):
    p = problem(shape, axis, kind, dtype) | {"reverse": reverse}
    expected = flat(p)
    for name in ("a", "b", "dout", "initial_state", "dlast_state"):
        for label, array in layouts(p[name]) if p[name].ndim else ():
            assert identical(flat(p | {name: array}), expected), (name, label)
    names = [name for name in ("a", "b", "dout") if p[name].ndim > 1]
    for together in zip(*(layouts(p[name]) for name in names), strict=True):
        changed = {name: array for name, (_, array) in zip(names, together, strict=True)}
        assert identical(flat(p | changed), expected), together[0][0]


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("offset", [0, 1, 4, 15])
@pytest.mark.parametrize("kind", ["constant", "full"])
def test_large_results_past_the_caches_have_the_same_bits(kind, offset, dtype):
    """Rows that begin anywhere in a cache line, in either direction, in all three forms."""
    n = (32 << 20) // np.dtype(dtype).itemsize + 4096
    rng = np.random.default_rng(3)
    pool = rng.normal(size=n).astype(dtype)
    for width in (1037, n // 40):
        rows = n // width
        b = pool[: rows * width].reshape(rows, width)
        for axis, reverse in itertools.product((0, 1), (False, True)):
            a = (b if kind == "full" else b.take(3, axis)) / 8
            memory = np.full(b.size + 64, np.nan, dtype)
            start = (-memory.ctypes.data // memory.itemsize) % 16 + offset
            out = memory[start : start + b.size].reshape(b.shape)
            fd.linear_scan(a, b, axis=axis, reverse=reverse, out=out)
            assert np.isnan(memory[:start]).all() and np.isnan(memory[start + b.size :]).all()
            few = slice(2, 5)
            part = (few, slice(None)) if axis == 1 else (slice(None), few)
            small = a[part] if kind == "full" else a[few]
            assert same_bits(
                np.ascontiguousarray(out[part]),
                np.ascontiguousarray(fd.linear_scan(small, b[part], axis=axis, reverse=reverse)),
            ), (width, axis, reverse)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape, axis", [((64, 9000), 1), ((9000, 64), 0), ((40, 300, 40), 1)])
def test_linear_bits_do_not_depend_on_threads(shape, axis, kind):
    p = problem(shape, axis, kind, np.float32)
    one, two, many = by_threads(lambda: flat(p), 1, 2, 5)
    assert identical(one, two) and identical(one, many)


def test_linear_levels_agree():
    assert_levels_agree(
        """
import hashlib, itertools, numpy as np, fastderiv as fd
for shape, axis in [((33, 200), 1), ((200, 33), 0), ((3, 100, 7), 1), ((5, 60), 1)]:
    for dtype, kind in itertools.product((np.float32, np.float64), range(3)):
        rng = np.random.default_rng(kind)
        state = shape[:axis] + shape[axis + 1 :]
        b, dout = rng.normal(size=(2, *shape)).astype(dtype)
        a = np.asarray(rng.uniform(0.1, 0.9, size=[(), state, shape][kind]), dtype)
        h = rng.normal(size=state).astype(dtype)
        results = *fd.linear_scan(a, b, axis=axis, initial_state=h, return_last_state=True), \\
            *fd.linear_scan_vjp(dout, a, b, axis=axis, initial_state=h, dlast_state=h)
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(r).tobytes() for r in results))
        print(digest.hexdigest(), np.abs(results[0]).sum(dtype=float))
"""
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reverse", [False, True])
def test_pieces_chain_by_their_last_state_bitwise(kind, reverse):
    p = problem((21, 200), 1, kind) | {"reverse": reverse}
    whole, last = scan(p)
    state, parts = p["initial_state"], []
    bounds = [0, 1, 17, 17, 100, 200]
    pieces = list(itertools.pairwise(bounds))
    for start, stop in reversed(pieces) if reverse else pieces:
        a = p["a"][:, start:stop] if kind == "full" else p["a"]
        h, state = fd.linear_scan(a, p["b"][:, start:stop], initial_state=state, reverse=reverse,
                                  return_last_state=True)  # fmt: skip
        parts.append(h)
    assert same_bits(np.hstack(parts[::-1] if reverse else parts), whole)
    assert same_bits(state, last)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_numbers_stay_in_their_column_and_its_later_steps(bad, kind, axis):
    p = problem((40, 40), axis, kind)
    clean = scan(p)[0], *vjp(p)
    at = (20, 7) if axis == 0 else (7, 20)
    others = (slice(None), np.arange(40) != 7)[:: 1 if axis == 0 else -1]
    before = (slice(None, 20), 7) if axis == 0 else (7, slice(None, 20))
    p["b"][at] = bad
    h, grads = scan(p)[0], vjp(p)
    assert same_bits(h[others], clean[0][others]) and same_bits(h[before], clean[0][before])
    assert not np.isfinite(h[at])
    assert same_bits(grads.db, clean[2])
    if kind == "full":
        assert same_bits(grads.da[others], clean[1][others])
    p = problem((40, 40), axis, kind)
    p["dout"][at] = bad
    grads = vjp(p)
    assert same_bits(grads.db[others], clean[2][others])
    assert np.isfinite(np.delete(grads.dinitial_state, 7)).all()


def test_empty_axes_have_the_initial_state_as_the_last():
    for shape, axis in (((3, 0), 1), ((0, 3), 0), ((3, 0), 0), ((0,), 0), ((2, 0, 0, 3), 1)):
        state_shape = shape[:axis] + shape[axis + 1 :]
        for kind in KINDS:
            p = problem(shape, axis, kind)
            h, last = scan(p)
            assert h.shape == shape and same_bits(last, p["initial_state"][()])
            zero = fd.linear_scan(p["a"], p["b"], axis=axis, return_last_state=True)[1]
            assert np.array_equal(zero, np.zeros(state_shape))
            grads = vjp(p)
            assert grads.db.shape == shape and np.shape(grads.da) == np.shape(p["a"])
            assert not np.any(grads.da) and same_bits(grads.dinitial_state, p["dlast_state"][()])


def test_scalars_do_not_promote_and_integers_do():
    b = np.ones(5, np.float32)
    for a in (0.5, 1, np.float64(0.5), np.array(0.5), np.array(1)):
        assert fd.linear_scan(a, b).dtype == np.float32
        assert fd.linear_scan(a, b, initial_state=2.0).dtype == np.float32
    assert fd.linear_scan(0.5, np.ones(5, np.int32)).dtype == np.float64
    assert fd.linear_scan(np.full(5, 0.5), b).dtype == np.float64
    assert fd.linear_scan(np.float32(0.5), np.ones(5)).dtype == np.float64
    assert fd.linear_scan([1, 2], [[1, 2], [3, 4]]).tolist() == [[1, 3], [3, 10]]
    grads = fd.linear_scan_vjp(b, 0.5, b, initial_state=1.0)
    assert type(grads.da) is type(grads.dinitial_state) is np.float32


def test_one_dimensional_states_are_scalars():
    h, last = fd.linear_scan(0.5, [1.0, 2.0], return_last_state=True)
    assert type(last) is np.float64 and last == h[-1]
    _, state = fd.linear_scan(0.5, [1.0], return_last_state=True)
    assert fd.linear_scan(0.5, [2.0], initial_state=state)[0] == h[1]


def test_results_have_their_axes_in_the_order_of_b():
    b = np.ones((4, 5, 6)).transpose(2, 0, 1)
    assert fd.linear_scan(0.5, b).strides == b.strides
    assert fd.linear_scan(0.5, np.broadcast_to(1.0, (3, 4))).flags.c_contiguous


@pytest.mark.parametrize(
    "changed, kind, message",
    [
        ({"a": np.ones((1, 4))}, ValueError, r"a has shape \(1, 4\); expected that of b, \(3, 4\)"),
        ({"a": np.ones((3, 1))}, ValueError, "a has shape"),
        ({"a": np.ones(4)}, ValueError, "a has shape"),
        ({"a": np.ones((4, 3))}, ValueError, "a has shape"),
        ({"b": 1.0}, ValueError, r"b has shape \(\); expected at least one axis"),
        ({"initial_state": np.ones(4)}, ValueError, "initial_state has shape"),
        ({"initial_state": 1.0}, ValueError, "initial_state has shape"),
        ({"axis": 2}, np.exceptions.AxisError, "axis 2 is out of bounds for b"),
        ({"axis": -3}, IndexError, "axis -3 is out of bounds for b"),
        ({"axis": 10**30}, ValueError, "axis 1"),
        ({"axis": 1.0}, TypeError, "axis is 1.0; expected an integer"),
        ({"axis": None}, TypeError, "axis is None"),
        ({"axis": True}, TypeError, "axis is True"),
        ({"b": np.ones((3, 4), complex)}, TypeError, "b has dtype complex128"),
        ({"a": True}, TypeError, "a has dtype bool"),
        ({"a": None}, TypeError, "a has dtype object"),
        ({"reverse": np.ones(2)}, TypeError, "reverse"),
    ],
)
def test_linear_errors_name_the_argument(changed, kind, message):
    given = {"a": 0.5, "b": np.ones((3, 4)), **changed}
    with pytest.raises(kind, match=rf"^{message}"):
        fd.linear_scan(**given)
    given.setdefault("dout", np.ones((3, 4)))
    with pytest.raises(kind, match=rf"^{message}"):
        fd.linear_scan_vjp(**given)


def test_more_linear_errors_name_the_argument():
    b = np.ones((3, 4))
    with pytest.raises(ValueError, match=r"^dout has shape \(3,\); expected the shape of b"):
        fd.linear_scan_vjp(np.ones(3), 0.5, b)
    with pytest.raises(ValueError, match=r"^dlast_state has shape"):
        fd.linear_scan_vjp(b, 0.5, b, dlast_state=np.ones(4))
    with pytest.raises(TypeError, match=r"^dout has dtype object"):
        fd.linear_scan_vjp(None, 0.5, b)
    with pytest.raises(TypeError, match=r"^return_last_state"):
        fd.linear_scan(0.5, b, return_last_state=np.ones(2))


def test_out_is_exact_apart_and_of_any_strides():
    p = problem((5, 40), 1, "full")
    expected = scan(p)[0]
    for label, out in layouts(np.zeros((5, 40))):
        if label not in ("read-only", "byte-swapped"):
            assert fd.linear_scan(**forward(p), out=out) is out
            assert same_bits(np.ascontiguousarray(out), expected), label
    with pytest.raises(TypeError, match=r"^out has dtype float32"):
        fd.linear_scan(**forward(p), out=np.zeros((5, 40), np.float32))
    with pytest.raises(ValueError, match=r"^out has shape"):
        fd.linear_scan(**forward(p), out=np.zeros((5, 41)))
    with pytest.raises(ValueError, match=r"^out is read-only"):
        fd.linear_scan(**forward(p), out=np.broadcast_to(0.0, (5, 40)))
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=rf"^out shares memory with {name}"):
            fd.linear_scan(**forward(p), out=p[name])
    memory = np.zeros(5 + 200)
    with pytest.raises(ValueError, match=r"^out shares memory with initial_state"):
        fd.linear_scan(0.5, p["b"], initial_state=memory[2:7], out=memory[5:].reshape(5, 40))


def test_broadcast_views_work_as_their_copies():
    b, a = np.broadcast_to(np.arange(60.0), (20, 60)), np.broadcast_to(0.5, (20, 60))
    for axis in (0, 1):
        p = {"dout": a, "a": a, "b": b, "axis": axis}
        assert identical(flat(p), flat({**p, "a": a.copy(), "b": b.copy(), "dout": a.copy()}))
        p["b"] = np.broadcast_to(np.arange(20.0)[:, None], (20, 60))
        assert identical(flat(p), flat({**p, "b": p["b"].copy()}))


def test_as_many_axes_as_numpy_has():
    shape = (1,) * 40 + (2, 1, 3) + (1,) * 20 + (2,)
    p = problem(shape, 42, "full")
    q = problem((2, 3, 2), 1, "full")
    for name in ("a", "b", "dout"):
        q[name] = p[name].reshape(2, 3, 2)
    for name in ("initial_state", "dlast_state"):
        q[name] = p[name].reshape(2, 2)
    for result, other in zip(flat(p), flat(q), strict=True):
        assert np.array_equal(np.ravel(result), np.ravel(other))


def test_linear_inputs_are_never_modified():
    p = problem((6, 50), 1, "full")
    arrays = [v for v in p.values() if isinstance(v, np.ndarray)]
    before = snapshot(*arrays)
    flat(p)
    assert snapshot(*arrays) == before


def test_linear_gradients_pickle():
    grads = vjp(problem((3, 4), 1, "constant"))
    again = pickle.loads(pickle.dumps(grads))
    assert type(again) is fd.LinearScanGrads and identical(again, grads)


def test_linear_memory_beyond_results_is_nothing():
    p = problem((512, 2048), 1, "full", np.float32)
    p["b"] = p["b"][::-1, ::-1]
    scan(p), vjp(p)
    tracemalloc.start()
    try:
        out = np.empty_like(p["b"])
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        fd.linear_scan(**forward(p), out=out)
        assert tracemalloc.get_traced_memory()[1] - before < 50_000
        tracemalloc.reset_peak()
        grads = vjp(p)
        results = sum(g.nbytes for g in grads)
        assert tracemalloc.get_traced_memory()[1] - before < results + 50_000
    finally:
        tracemalloc.stop()


def test_results_that_do_not_fit_are_memory_errors():
    vast = np.broadcast_to(1.0, (2**30, 2**20))
    with pytest.raises(MemoryError, match="the result of shape"):
        fd.linear_scan(0.5, vast)
    with pytest.raises(MemoryError, match="db of shape"):
        fd.linear_scan_vjp(vast, 0.5, vast)
    with pytest.raises((MemoryError, ValueError)):
        fd.linear_scan(0.5, np.broadcast_to(1.0, (2**61, 0)), return_last_state=True, axis=1)


@pytest.mark.parametrize("shape, axis", [((2**16, 2**14), 0), ((2**14, 2**16), 1), ((2**31,), 0)])
def test_linear_scan_is_interrupted(shape, axis):
    b = np.broadcast_to(np.float32(1), shape)
    vast = np.broadcast_to(np.float32(0.5), shape)
    assert seconds_until_answered(lambda: fd.linear_scan_vjp(b, vast, b, axis=axis)) < ALLOWED


def test_the_door_refuses_what_python_would_not_pass():
    from fastderiv.ssm.linear._scan import _kernels

    kernels = _kernels[np.dtype(np.float64)]
    b, state = np.zeros((3, 4)), np.zeros(3)
    good = [np.full((), 0.5), b, 1, False, state, state.copy(), np.zeros((3, 4))]
    kernels.linear_scan(*good)
    wrong = {0: np.ones(5), 1: np.ones((3, 4), np.float32), 2: 2, 4: np.ones(4), 5: np.ones((3, 1)),
             6: np.broadcast_to(0.0, (3, 4))}  # fmt: skip
    for at, bad in wrong.items():
        with pytest.raises(TypeError):
            kernels.linear_scan(*good[:at], bad, *good[at + 1 :])
    rest = [state, state, None, np.zeros((3, 4)), state.copy(), np.zeros(3), np.zeros(())]
    kernels.linear_adjoint(b, good[0], b, 1, False, *rest)
    for bad in (np.zeros(3, np.float32), np.zeros(6)[::2], np.zeros(4)):
        with pytest.raises(TypeError):
            kernels.linear_adjoint(b, good[0], b, 1, False, *rest[:5], bad, rest[6])


def test_rounding_mode_of_the_caller_has_no_effect():
    p = problem((7, 90), 1, "constant", np.float32)
    expected = flat(p)
    with control_register(rounding="up"):
        got = flat(p)
    assert identical(got, expected)
