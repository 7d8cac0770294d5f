"""More states, sequences, rows and entries than are worked on between two looks for signals."""

import numpy as np
import pytest

import fastderiv as fd
from fastderiv import reference
from fastderiv._core import arrays
from helpers.awkward import error, layouts, same_bits
from helpers.interrupt import ALLOWED, seconds_until_answered

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}


def problem(channels, states, steps, dtype, B, C, rate=1.0):
    rng = np.random.default_rng(states)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    def coefficient(kind):
        if kind == "constant":
            return normal(channels, states)
        if kind == "time":
            return normal(1, states, steps)
        return normal(1, steps, states).swapaxes(1, 2)  # gathered

    A = -np.exp(normal(channels, states)) * dtype(rate)
    u, delta, z = (normal(1, channels, steps) for _ in range(3))
    return dict(u=u, delta=delta, A=A, B=coefficient(B), C=coefficient(C), z=z, delta_softplus=True,
                initial_state=normal(1, channels, states))  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("states", [4095, 4096, 4097, 8195])
@pytest.mark.parametrize(
    "B, C", [("time", "gathered"), ("constant", "time"), ("gathered", "constant")]
)
@pytest.mark.parametrize("rate", [1.0, 300.0])  # the latter beyond exp's range
def test_scan_and_adjoint_of_many_states(dtype, states, B, C, rate):
    p = problem(3, states, 5, dtype, B, C, rate)
    got = fd.selective_scan(**p, return_last_state=True)
    for a, exact in zip(got, reference.selective_scan(**p, return_last_state=True), strict=True):
        assert a.dtype == dtype and error(a, exact) < TOLERANCE[dtype]
    dout, dlast = p["z"][:, ::-1], p["initial_state"][:, ::-1]
    grads = fd.selective_scan_vjp(dout, **p, dlast_state=dlast)
    for a, exact in zip(
        grads, reference.selective_scan_vjp(dout, **p, dlast_state=dlast), strict=True
    ):
        assert (a is None) == (exact is None)
        if a is not None:
            assert a.dtype == dtype and error(a, exact) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("B, C", [("time", "gathered"), ("constant", "time")])
def test_attention_and_summary_of_many_states(dtype, B, C):
    p = problem(2, 5003, 70, dtype, B, C)
    for sign in 1, -1e-3:  # the latter grows
        arguments = p["delta"][..., :7], p["A"] * dtype(sign), *(cut(p[name]) for name in "BC")
        exact = reference.scan_attention(*arguments, None, True)
        assert error(fd.scan_attention(*arguments, None, True), exact) < TOLERANCE[dtype]
    last = fd.scan_attention(p["delta"], p["A"], p["B"], p["C"], None, True, rows=[-1])
    exact = reference.scan_attention(p["delta"], p["A"], p["B"], p["C"], None, True, rows=[-1])
    assert error(last, exact) < TOLERANCE[dtype]
    arguments = p["u"], p["delta"], p["A"], p["B"], None, True
    for a, exact in zip(
        fd.chunk_summary(*arguments), reference.chunk_summary(*arguments), strict=True
    ):
        assert error(a, exact) < TOLERANCE[dtype]


def cut(coefficient):
    return coefficient if coefficient.ndim == 2 else coefficient[..., :7]


@pytest.mark.parametrize(
    "shape",
    [(), (0,), (1,), (7,), (8,), (3, 4), (2, 3, 5), (30, 1, 2), (1, 40), (0, 9), (2, 20, 3)],
)
def test_pieces_are_all_of_an_array_once(shape, monkeypatch):
    for piece in 1, 2, 7, 1000:
        monkeypatch.setattr(arrays, "_PIECE", piece)
        seen = np.zeros(shape)
        for part in arrays.pieces(shape):
            assert seen[part].size <= max(piece, 1)
            seen[part] += 1
        assert (seen == 1).all()


@pytest.mark.parametrize("piece", [1, 5, 64])
def test_pieces_change_no_bit(piece, monkeypatch):
    rng = np.random.default_rng(0)
    x, A = rng.normal(size=(3, 4, 6)), -np.exp(rng.normal(size=(4, 7)))
    layer = fd.S6(*(rng.normal(size=shape) for shape in ((4, 4), (4,), (4, 2), (2, 4), (2, 4))))
    long = np.asfortranarray(rng.normal(size=(9, 4)))

    def results():
        yield from fd.combine_summaries((x, x[::-1]), (x[:, ::-1], x))
        yield fd.transition_product(x, A)
        yield fd.transition_product(x[0], A)
        yield fd.scan_attention(x, A, A, A, rows=[3, -1, 0, 5, -6, 2, 2])
        yield from fd.chunk_summary(x, x, A, A)
        yield from (g for g in fd.selective_scan_vjp(x, x, x, A, A, A) if g is not None)
        yield layer(long)
        for _, view in layouts(np.arange(24, dtype=np.int32).reshape(4, 6)):
            yield fd.selective_scan(view, view, -A, A, A)
        out = np.zeros(3 * 4 * 64 * 8 + 1, np.uint8)[1:]
        out = out.view(np.float64).reshape(3, 4, 64)  # misaligned
        yield fd.subset_sums(x, out=out).copy()

    expected = list(results())
    monkeypatch.setattr(arrays, "_PIECE", piece)
    for a, b in zip(results(), expected, strict=True):
        assert same_bits(a, b)
    for bad, at in (([0, 1, 2, 6, 9], 3), ([-7], 0), ([0] * 20 + [7, 8], 20)):
        with pytest.raises(IndexError, match=rf"^rows\[{at}\] is {bad[at]};"):
            fd.scan_attention(x, A, A, A, rows=bad)


def long_scan(states, steps, function):
    def of(*shape):
        return np.broadcast_to(np.float32(-1), shape)

    u, A = of(1, steps), of(1, states)
    return lambda: function(u, u, A, A, A)


def empty_sequences(count, function, **options):
    u, A, bounds = np.zeros((8, 0)), -np.ones((8, 16)), np.broadcast_to(0, count)
    return lambda: function(u, u, A, A, A, cu_seqlens=bounds, **options)


def gradient(u, *arguments, **options):
    return fd.selective_scan_vjp(u, u, *arguments, **options)


DEAF = {  # what was answered after half a second to never
    "scan of many states": (0.3, long_scan(1_000_000, 2000, fd.selective_scan)),
    "scan of very many states": (0.1, long_scan(4_000_000, 8, fd.selective_scan)),
    "adjoint of many states": (0.3, long_scan(100_000, 2000, gradient)),
    "summary of many states": (
        0.3,
        long_scan(1_000_000, 2000, lambda u, delta, A, B, C: fd.chunk_summary(u, delta, A, B)),
    ),
    "attention of many states": (
        0.3,
        long_scan(500_000, 2000, lambda u, delta, A, B, C: fd.scan_attention(delta, A, B, C)),
    ),
    "adjoint of empty sequences": (0.3, empty_sequences(20_000_000, gradient)),
    "scan of empty sequences": (
        0.3,
        empty_sequences(8_000_000, fd.selective_scan, return_last_state=True),
    ),
}


@pytest.mark.parametrize("name", DEAF)
def test_ctrl_c_is_answered_amid_many(name):
    delay, call = DEAF[name]
    assert seconds_until_answered(call, delay=delay) < ALLOWED
