"""The LSTM layer and its adjoints, compared with their reference, PyTorch and complex steps."""

import pickle
from pathlib import Path

import numpy as np
import pytest

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import error, layouts, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads

TOLERANCE = {np.float32: 5e-6, np.float64: 1e-13}
SHAPES = [
    (5, 3, 4, 3),
    (7, 1, 3, 17),
    (9, 20, 33, 40),
    (1, 2, 3, 1),
    (60, 1, 8, 64),
    (3, 4, 0, 5),
    (2, 50, 5, 3),
]
EMPTY = [(0, 3, 4, 5), (4, 0, 3, 5), (0, 0, 2, 3), (3, 2, 0, 1), (3, 2, 4, 0)]


def problem(shape, dtype=np.float64, seed=0, spread=1.0):
    """(x, weights, biases), (initial, last and output adjoints)."""
    T, B, D, H = shape
    rng = np.random.default_rng(seed)

    def normal(*s):
        return rng.normal(size=s).astype(dtype)

    scale = dtype(spread / np.sqrt(max(H, 1)))
    arguments = (
        normal(T, B, D),
        normal(4 * H, D) * scale,
        normal(4 * H, H) * scale,
        normal(4 * H),
        normal(4 * H),
    )
    return arguments, ((normal(B, H), normal(B, H)), (normal(B, H), normal(B, H)), normal(T, B, H))


def flat(results):
    return [a for r in results if r is not None for a in (r if isinstance(r, tuple) else [r])]


def everything(shape, dtype=np.float64, lengths=None, module=fd, **rest):
    """All results of all three functions, initial and last states and their adjoints included."""
    arguments, (first, dlast, dh) = problem(shape, dtype)
    rest = dict(initial_state=first, lengths=lengths)
    back = dict(rest, dlast_state=dlast)
    return flat([*module.lstm(*arguments, **rest), *module.lstm_vjp(dh, *arguments, **back),
                 *module.lstm_state_adjoints(dh, *arguments, **back)])  # fmt: skip


def some_lengths(shape, seed=0):
    T, B = shape[:2]
    lengths = np.random.default_rng(seed).integers(0, T + 1, B)
    if B > 1:
        lengths[:2] = T, 0
    return lengths


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ragged", [False, True])
def test_equals_the_reference(shape, dtype, ragged):
    lengths = some_lengths(shape) if ragged else None
    ours, theirs = everything(shape, dtype, lengths), everything(shape, dtype, lengths, reference)
    assert len(ours) == len(theirs) == 12
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        assert error(a, b) < TOLERANCE[dtype]


@pytest.mark.parametrize("shape", EMPTY)
def test_empty_axes_have_the_mathematics_answer(shape):
    for dtype in np.float32, np.float64:
        for a, b in zip(
            everything(shape, dtype), everything(shape, dtype, None, reference), strict=True
        ):
            assert a.dtype == dtype and a.shape == b.shape and error(a, b) < TOLERANCE[dtype]
    if shape[0] == 0:
        arguments, (first, dlast, dh) = problem(shape)
        assert all(map(np.array_equal, fd.lstm(*arguments, initial_state=first)[1], first))
        assert all(
            map(
                np.array_equal,
                fd.lstm_vjp(dh, *arguments, initial_state=first, dlast_state=dlast).dinitial_state,
                dlast,
            )
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(12, 5, 7, 9), (40, 33, 16, 32), (65, 1, 24, 64)])
def test_equals_pytorch(shape, dtype):
    torch = pytest.importorskip("torch")
    T, B, D, H = shape
    torch.manual_seed(0)
    layer = torch.nn.LSTM(D, H, dtype=getattr(torch, dtype))
    x, h0, c0 = (
        torch.randn(*s, dtype=layer.weight_ih_l0.dtype, requires_grad=True)
        for s in ((T, B, D), (1, B, H), (1, B, H))
    )
    h, last = layer(x, (h0, c0))
    dh, *dlast = (torch.randn_like(a) for a in (h, *last))
    sum((a * d).sum() for a, d in zip((h, *last), (dh, *dlast), strict=True)).backward()
    parameters = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0
    arguments = [a.detach().numpy() for a in (x, *parameters)]
    first, dlast = ([a.detach().numpy()[0] for a in pair] for pair in ((h0, c0), dlast))
    ours = fd.lstm(*arguments, initial_state=first)
    for a, b in zip(flat(ours), (h, *last), strict=True):
        assert error(a, b.detach().numpy().reshape(a.shape)) < (
            1e-5 if dtype == "float32" else 1e-10
        )
    assert same_bits(
        fd.lstm(arguments[0], *layer.state_dict().values(), initial_state=first)[0], ours[0]
    )
    grads = fd.lstm_vjp(dh.numpy(), *arguments, initial_state=first, dlast_state=dlast)
    for a, b in zip(flat(grads), (x, *parameters, h0, c0), strict=True):
        assert error(a, b.grad.numpy().reshape(a.shape)) < (1e-5 if dtype == "float32" else 1e-10)


def complex_loss(arguments, first, lengths, dh, dlast):
    """⟨dh, h⟩ + ⟨dlast, last state⟩ of complex arguments, written independently of the package."""
    x, W, U, b1, b2 = arguments
    total = 0
    for k, end in enumerate(lengths):
        h, c = first[0][k], first[1][k]
        for t in range(end):
            ai, af, ag, ao = np.split(W @ x[t, k] + b1 + U @ h + b2, 4)
            c = c / (1 + np.exp(-af)) + np.tanh(ag) / (1 + np.exp(-ai))
            h = np.tanh(c) / (1 + np.exp(-ao))
            total = total + dh[t, k] @ h
        total = total + dlast[0][k] @ h + dlast[1][k] @ c
    return total


@pytest.mark.parametrize("shape", [(6, 4, 3, 5), (17, 2, 5, 20)])
def test_gradients_are_the_slopes_of_complex_steps(shape):
    arguments, (first, dlast, dh) = problem(shape)
    lengths = some_lengths(shape, 1)
    grads = flat(
        fd.lstm_vjp(dh, *arguments, initial_state=first, lengths=lengths, dlast_state=dlast)
    )
    rng = np.random.default_rng(5)
    values = [*arguments, *first]
    for which, grad in enumerate(grads):
        for _ in range(3):
            direction = rng.normal(size=grad.shape)
            moved = [v + 1e-30j * direction if i == which else v for i, v in enumerate(values)]
            slope = complex_loss(moved[:5], moved[5:], lengths, dh, dlast).imag / 1e-30
            assert abs((grad * direction).sum() - slope) < 1e-12 * (
                np.abs(grad * direction).sum() + 1
            )


# ---- lengths and states --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(9, 5, 4, 6), (11, 40, 3, 17)])
def test_a_sequence_in_a_batch_is_the_sequence_alone_bitwise(shape, dtype):
    """What lies behind its end, NaN here, is never read."""
    arguments, (first, dlast, dh) = problem(shape, dtype)
    lengths = some_lengths(shape, 2)
    x, *weights = arguments
    for k, end in enumerate(lengths):
        x[end:, k] = dh[end:, k] = np.nan
    h, last = fd.lstm(x, *weights, initial_state=first, lengths=lengths)
    grads = fd.lstm_vjp(dh, x, *weights, initial_state=first, lengths=lengths, dlast_state=dlast)
    adjoints = fd.lstm_state_adjoints(
        dh, x, *weights, initial_state=first, lengths=lengths, dlast_state=dlast
    )
    total = [np.zeros_like(a) for a in grads[1:5]]
    for k, end in enumerate(lengths):
        alone, state, back = x[:end, k], [a[k] for a in first], [a[k] for a in dlast]
        h1, last1 = fd.lstm(alone, *weights, initial_state=state)
        assert same_bits(h[:end, k], h1) and not h[end:, k].any()
        assert all(same_bits(a[k], b) for a, b in zip(last, last1, strict=True))
        grads1 = fd.lstm_vjp(dh[:end, k], alone, *weights, initial_state=state, dlast_state=back)
        assert same_bits(grads.dx[:end, k], grads1.dx) and not grads.dx[end:, k].any()
        assert all(
            same_bits(a[k], b)
            for a, b in zip(grads.dinitial_state, grads1.dinitial_state, strict=True)
        )
        adjoints1 = fd.lstm_state_adjoints(
            dh[:end, k], alone, *weights, initial_state=state, dlast_state=back
        )
        assert all(
            same_bits(a[:end, k], b) and not a[end:, k].any()
            for a, b in zip(adjoints, adjoints1, strict=True)
        )
        for t, g in zip(total, grads1[1:5], strict=True):
            t += g
    for t, g in zip(total, grads[1:5], strict=True):
        assert error(g, t) < TOLERANCE[dtype]


def test_full_lengths_are_no_lengths_bitwise():
    shape = 6, 20, 3, 5
    assert all(map(same_bits, everything(shape), everything(shape, lengths=np.full(20, 6))))


def test_a_sequence_in_two_halves_carries_its_state():
    (x, *weights), (first, _, _) = problem((10, 3, 4, 6))
    h, last = fd.lstm(x, *weights, initial_state=first)
    head, state = fd.lstm(x[:4], *weights, initial_state=first)
    tail, end = fd.lstm(x[4:], *weights, initial_state=state)
    assert same_bits(np.concatenate([head, tail]), h) and all(map(same_bits, end, last))


@pytest.mark.parametrize("lengths", [None, 3])
def test_unbatched_is_a_batch_of_one(lengths):
    arguments, (first, dlast, dh) = problem((5, 1, 3, 4))
    batch = everything((5, 1, 3, 4), lengths=None if lengths is None else [lengths])
    (x, *weights), first, dlast, dh = (
        arguments,
        [a[0] for a in first],
        [a[0] for a in dlast],
        dh[:, 0],
    )
    rest = dict(initial_state=first, lengths=lengths)
    back = dict(rest, dlast_state=dlast)
    one = flat([*fd.lstm(x[:, 0], *weights, **rest), *fd.lstm_vjp(dh, x[:, 0], *weights, **back),
                *fd.lstm_state_adjoints(dh, x[:, 0], *weights, **back)])  # fmt: skip
    for a, b in zip(one, batch, strict=True):
        assert same_bits(a.ravel(), b.ravel())
    assert [a.ndim for a in one] == [2, 1, 1, 2, 2, 2, 1, 1, 1, 1, 2, 2]


def test_what_is_none_counts_as_zeros_and_has_no_gradient():
    arguments, (_, dlast, dh) = problem((5, 3, 4, 6))
    x, W, U = arguments[:3]
    zero, states = np.zeros(24), (np.zeros((3, 6)),) * 2
    none, zeros = fd.lstm(x, W, U), fd.lstm(x, W, U, zero, zero, initial_state=states)
    assert all(map(same_bits, flat(none), flat(zeros)))
    grads, full = (
        fd.lstm_vjp(dh, x, W, U),
        fd.lstm_vjp(dh, x, W, U, zero, zero, initial_state=states, dlast_state=states),
    )
    assert grads.dbias_ih is None and grads.dbias_hh is None and grads.dinitial_state is None
    assert all(map(same_bits, grads[:3], full[:3]))
    half = fd.lstm_vjp(dh, x, W, U, None, zero, dlast_state=(None, dlast[1]))
    assert half.dbias_ih is None and same_bits(
        half.dbias_hh, fd.lstm_vjp(dh, x, W, U, zero, dlast_state=(states[0], dlast[1])).dbias_ih
    )
    assert not np.shares_memory(full.dbias_ih, full.dbias_hh)


# ---- the cache -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_cache_serves_any_number_of_times_and_changes_no_bit(dtype):
    shape = 7, 18, 5, 9
    arguments, (first, dlast, dh) = problem(shape, dtype)
    rest = dict(initial_state=first, lengths=some_lengths(shape))
    h, last, cache = fd.lstm(*arguments, **rest, return_cache=True)
    assert all(map(same_bits, flat([h, last]), flat(fd.lstm(*arguments, **rest))))
    h[...] = np.nan  # the caller's own
    for f in fd.lstm_vjp, fd.lstm_vjp, fd.lstm_state_adjoints, fd.lstm_state_adjoints:
        without = f(dh, *arguments, **rest, dlast_state=dlast)
        assert all(
            map(
                same_bits,
                flat(f(dh, *arguments, **rest, dlast_state=dlast, cache=cache)),
                flat(without),
            )
        )


def test_another_calls_cache_is_refused():
    arguments, (_, _, dh) = problem((4, 3, 2, 5))
    *_, cache = fd.lstm(*arguments, lengths=[4, 2, 3], return_cache=True)
    with pytest.raises(ValueError, match="cache is of a call with other lengths"):
        fd.lstm_vjp(dh, *arguments, lengths=[4, 3, 2], cache=cache)
    with pytest.raises(
        ValueError,
        match=r"cache is of a call with \(dtype, T, B, H\) = \(float64, 4, 3, 5\); "
        r"expected \(float32, 4, 3, 5\)",
    ):
        fd.lstm_vjp(
            *(a.astype(np.float32) for a in (dh, *arguments)), lengths=[4, 2, 3], cache=cache
        )
    with pytest.raises(
        TypeError, match=r"cache is a list; expected what lstm\(…, return_cache=True\) returns"
    ):
        fd.lstm_vjp(dh, *arguments, cache=[])
    with pytest.raises(TypeError, match="cache cannot be pickled"):
        pickle.dumps(cache)


# ---- the numerical contract ----------------------------------------------------------------------


def test_any_layout_gives_the_same_bits_and_stays_unmodified():
    shape = 4, 3, 5, 6
    arguments, (first, dlast, dh) = problem(shape, np.float32)
    given = [*arguments, *first, dh, *dlast]

    def call(a):
        rest = dict(initial_state=a[5:7], lengths=[4, 0, 3])
        return flat(
            [
                *fd.lstm(*a[:5], **rest),
                *fd.lstm_vjp(a[7], *a[:5], **rest, dlast_state=a[8:]),
                *fd.lstm_state_adjoints(a[7], *a[:5], **rest, dlast_state=a[8:]),
            ]
        )

    expected = call(given)
    for which in range(len(given)):
        for label, view in layouts(given[which]):
            awkward = [view if i == which else a for i, a in enumerate(given)]
            before = snapshot(*awkward)
            assert all(map(same_bits, call(awkward), expected)), (which, label)
            assert snapshot(*awkward) == before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_number_of_threads_gives_the_same_bits(dtype):
    shape = 24, 50, 40, 96
    one, two, five = by_threads(lambda: everything(shape, dtype, some_lengths(shape)), 1, 2, 5)
    assert all(map(same_bits, one, two)) and all(map(same_bits, one, five))


SCRIPT = f"""
import hashlib
import sys
import numpy as np
import fastderiv as fd
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_nn_lstm import everything, some_lengths
for shape in (9, 20, 33, 40), (60, 1, 8, 64), (5, 3, 4, 17):
    for dtype in np.float32, np.float64:
        for r in everything(shape, dtype, some_lengths(shape)):
            print(hashlib.sha256(r.tobytes()).hexdigest(), float(np.abs(r).sum()))
"""


def test_cpu_levels_agree():
    assert_levels_agree(SCRIPT)


def test_nan_and_infinity_stay_in_their_sequence():
    shape = 6, 20, 4, 18
    (x, *weights), (first, _, dh) = problem(shape)
    clean = (
        fd.lstm(x, *weights),
        fd.lstm_vjp(dh, x, *weights, initial_state=first),
        fd.lstm_state_adjoints(dh, x, *weights),
    )
    x[3, 5, 1], x[2, 7, 0], dh[4, 9, 2] = np.nan, np.inf, np.nan
    others = np.setdiff1d(np.arange(20), [5, 7, 9])
    h, last = fd.lstm(x, *weights)
    assert same_bits(h[:, others], clean[0][0][:, others]) and same_bits(
        h[:3, 5], clean[0][0][:3, 5]
    )
    assert np.isnan(h[3:, 5]).all() and np.isnan(last[0][5]).all() and np.isfinite(h[:, 9]).all()
    grads = fd.lstm_vjp(dh, x, *weights, initial_state=first)
    assert (
        same_bits(grads.dx[:, others], clean[1].dx[:, others]) and np.isnan(grads.dx[:5, 9]).all()
    )
    assert same_bits(grads.dx[5:, 9], clean[1].dx[5:, 9])
    for a, b in zip(fd.lstm_state_adjoints(dh, x, *weights), clean[2], strict=True):
        assert same_bits(a[:, others], b[:, others])


@pytest.mark.parametrize(("dtype", "far"), [(np.float32, 60.0), (np.float64, 500.0)])
def test_saturated_gates_keep_relatively_accurate_derivatives(dtype, far):
    """With one step and one unit, every gradient is a product of slopes in closed form."""
    for signs in np.ndindex(2, 2, 2, 2):
        a = np.where(np.array(signs) == 1, far, -far) * [1, 1, 0.5, 1]
        a[2] *= 0.9
        c0 = 0.25
        grads = fd.lstm_vjp(
            np.ones((1, 1), dtype),
            np.ones((1, 1), dtype),
            a[:, None].astype(dtype),
            np.zeros((4, 1), dtype),
            initial_state=(np.zeros(1, dtype), np.full(1, c0, dtype)),
        )
        a = a.astype(dtype).astype(np.float64)
        s, slope = 1 / (1 + np.exp(-a)), np.exp(-np.abs(a)) / (1 + np.exp(-np.abs(a))) ** 2
        g, dg = np.tanh(a[2]), 1 / np.cosh(a[2]) ** 2
        c = s[1] * c0 + s[0] * g
        cbar = s[3] / np.cosh(c) ** 2
        exact = np.array(
            [cbar * g * slope[0], cbar * c0 * slope[1], cbar * s[0] * dg, np.tanh(c) * slope[3]]
        )
        normal = np.abs(exact) > np.finfo(dtype).tiny * 10
        np.testing.assert_allclose(
            grads.dweight_ih[normal, 0], exact[normal], rtol=2e-6 if dtype == np.float32 else 1e-14
        )


@pytest.mark.parametrize("seed", range(20))
def test_saturated_layers_equal_the_reference(seed):
    """Tiny gradients are the same gradients, scaled."""
    (x, W, U, b, _), (first, dlast, dh) = problem((3, 1, 3, 1), seed=seed, spread=30.0)
    rest = dict(initial_state=first, dlast_state=dlast)
    for a, e in zip(
        *(flat(module.lstm_vjp(dh, x, W, U, b, **rest)) for module in (fd, reference)), strict=True
    ):
        assert error(a, e) < 1e-11


def test_long_sums_in_float32_stay_within_the_contract():
    """What twenty thousand steps add to the weights' gradient all has one sign."""
    T = 20000
    x, W, U, b = (
        np.ones((T, 1, 1), np.float32),
        np.full((4, 1), 0.01, np.float32),
        np.zeros((4, 1), np.float32),
        np.full(4, 0.3, np.float32),
    )
    dh = np.ones((T, 1, 1), np.float32)
    single, double = (
        fd.lstm_vjp(dh, x, W, U, b),
        fd.lstm_vjp(*(a.astype(np.float64) for a in (dh, x, W, U, b))),
    )
    for a, e in zip(flat(single), flat(double), strict=True):
        assert error(a, e) < 2e-6


def test_interrupts_are_answered():
    rng = np.random.default_rng(0)
    x, W, U = (
        rng.normal(size=s).astype(np.float32) / 8
        for s in ((1500, 64, 128), (1024, 128), (1024, 256))
    )

    def forever(call):
        while True:
            call()

    for call in (
        (lambda: fd.lstm(x, W, U)),
        (lambda: fd.lstm_vjp(np.ones((1500, 64, 256), np.float32), x, W, U)),
    ):
        assert seconds_until_answered(lambda call=call: forever(call)) < ALLOWED


@pytest.mark.slow
def test_interrupts_are_answered_amid_wide_layers():
    """A single step, or packing the weights, takes long here."""
    dh, x, W, U = (
        np.full(s, 1e-3) for s in ((3, 16, 2500), (3, 16, 64), (10000, 64), (10000, 2500))
    )

    def forever(call):
        while True:
            call()

    for call in (lambda: fd.lstm(x, W, U)), (lambda: fd.lstm_vjp(dh, x, W, U)):
        for delay in 0.2, 0.45:
            assert seconds_until_answered(lambda call=call: forever(call), delay=delay) < ALLOWED


# ---- the source's question 1c --------------------------------------------------------------------


def carousel(T, H, far):
    """A layer with f ≈ 1, i ≈ 0, o ≈ 0, and inputs that would drive it."""
    rng = np.random.default_rng(8)
    x, W, U = (
        rng.normal(size=(T, 2, 3)),
        rng.normal(size=(4 * H, 3)) / 4,
        rng.normal(size=(4 * H, H)) / 4,
    )
    return x, W, U, np.repeat([-far, far, 0.0, -far], H)


def test_in_the_carousel_the_gradient_of_c_stays_and_that_of_h_does_not_explode():
    T, H = 400, 8
    x, W, U, bias = carousel(T, H, 14.0)
    dlast = np.random.default_rng(9).normal(size=(2, 2, H))
    hbar, cbar = fd.lstm_state_adjoints(np.zeros((T, 2, H)), x, W, U, bias, dlast_state=dlast)
    np.testing.assert_allclose(cbar, np.broadcast_to(dlast[1], cbar.shape), atol=1e-2)
    assert np.abs(hbar[:-1]).max() < 1e-4
    assert same_bits(hbar[-1], dlast[0])
    h, (_, c_n) = fd.lstm(x, W, U, bias, initial_state=dlast)
    np.testing.assert_allclose(c_n, dlast[1], atol=1e-2)
    assert np.abs(h).max() < 1e-4
    grads = fd.lstm_vjp(np.zeros((T, 2, H)), x, W, U, bias, initial_state=dlast, dlast_state=dlast)
    assert np.abs(grads.dbias_ih).max() < 0.1 and np.abs(grads.dx).max() < 1e-4
    np.testing.assert_allclose(grads.dinitial_state[1], dlast[1], atol=1e-2)


def test_away_from_the_carousel_the_gradient_vanishes():
    x, W, U, bias = carousel(400, 8, 0.0)
    dlast = np.ones((2, 2, 8))
    _, cbar = fd.lstm_state_adjoints(np.zeros((400, 2, 8)), x, W, U, bias, dlast_state=dlast)
    assert np.abs(cbar[-1]).max() > 0.5 and np.abs(cbar[0]).max() < 1e-20


def test_state_adjoints_are_those_of_restarted_sequences():
    """h̄_t and c̄_t are the initial state's gradients of the steps after t, plus dh[t] itself."""
    arguments, (first, dlast, dh) = problem((7, 3, 4, 5))
    x, *weights = arguments
    hbar, cbar = fd.lstm_state_adjoints(dh, x, *weights, initial_state=first, dlast_state=dlast)
    for t in range(6):
        _, state = fd.lstm(x[: t + 1], *weights, initial_state=first)
        tail = fd.lstm_vjp(
            dh[t + 1 :], x[t + 1 :], *weights, initial_state=state, dlast_state=dlast
        ).dinitial_state
        np.testing.assert_allclose(hbar[t], dh[t] + tail[0], rtol=1e-12, atol=1e-14)
        c, o = (
            state[1],
            reference.lstm(x[: t + 1], *weights, initial_state=first, return_cache=True)[2],
        )
        gate = np.array([steps[-1][3] for steps in o.value])
        np.testing.assert_allclose(
            cbar[t], tail[1] + hbar[t] * gate * (1 - np.tanh(c) ** 2), rtol=1e-12, atol=1e-14
        )


# ---- errors --------------------------------------------------------------------------------------


def with_(arguments, **changed):
    names = "x", "weight_ih", "weight_hh", "bias_ih", "bias_hh"
    return [changed.get(name, a) for name, a in zip(names, arguments, strict=True)]


@pytest.mark.parametrize(
    ("changed", "rest", "message"),
    [
        ({"x": np.zeros(3)}, {}, r"x has shape \(3,\); expected \(T, B, D\) or \(T, D\)"),
        (
            {"weight_hh": np.zeros((20, 4))},
            {},
            r"weight_hh has shape \(20, 4\); expected \(4H, H\)",
        ),
        (
            {"weight_ih": np.zeros((20, 4))},
            {},
            r"weight_ih has shape \(20, 4\); expected \(4H, D\) = \(20, 3\)",
        ),
        (
            {"bias_ih": np.zeros((1, 20))},
            {},
            r"bias_ih has shape \(1, 20\); expected \(4H,\) = \(20,\)",
        ),
        ({"bias_hh": np.zeros(5)}, {}, r"bias_hh has shape \(5,\); expected \(4H,\) = \(20,\)"),
        (
            {},
            {"initial_state": (np.zeros((2, 5)), np.zeros((1, 5)))},
            r"initial_state\[1\] has shape \(1, 5\); expected \(B, H\) = \(2, 5\)",
        ),
        ({}, {"lengths": [1, 5]}, r"lengths\[1\] is 5; expected integers from 0 to T = 4"),
        ({}, {"lengths": [-1, 4]}, r"lengths\[0\] is -1; expected integers from 0 to T = 4"),
        ({}, {"lengths": [1]}, r"lengths has shape \(1,\); expected \(B,\) = \(2,\)"),
    ],
)
def test_wrong_shapes_are_value_errors_that_name_the_argument(changed, rest, message):
    arguments, (_, _, dh) = problem((4, 2, 3, 5))
    for call in (
        fd.lstm,
        lambda *a, **k: fd.lstm_vjp(dh, *a, **k),
        lambda *a, **k: fd.lstm_state_adjoints(dh, *a, **k),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            call(*with_(arguments, **changed), **rest)


def test_wrong_adjoints_are_value_errors_that_name_the_argument():
    arguments, (_, dlast, dh) = problem((4, 2, 3, 5))
    for f in fd.lstm_vjp, fd.lstm_state_adjoints:
        with pytest.raises(
            ValueError, match=r"^dh has shape \(3, 2, 5\); expected \(T, B, H\) = \(4, 2, 5\)$"
        ):
            f(dh[1:], *arguments)
        with pytest.raises(
            ValueError, match=r"^dlast_state\[0\] has shape \(2, 4\); expected \(B, H\) = \(2, 5\)$"
        ):
            f(dh, *arguments, dlast_state=(dlast[0][:, 1:], None))


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ({"lengths": [1.0, 2.0]}, "lengths has dtype float64; expected integers"),
        ({"lengths": [True, False]}, "lengths has dtype bool; expected integers"),
        ({"initial_state": 3.0}, r"initial_state is a float; expected a pair \(h0, c0\)"),
        (
            {"initial_state": np.zeros((2, 5))[:1]},
            r"initial_state is a ndarray; expected a pair \(h0, c0\)",
        ),
        (
            {"initial_state": (None, np.zeros((2, 5)))},
            r"initial_state\[0\] has dtype object; expected float32, float64 or integers",
        ),
        (
            {"initial_state": (np.zeros((2, 5)), np.zeros((2, 5), complex))},
            r"initial_state\[1\] has dtype complex128; .*",
        ),
    ],
)
def test_wrong_types_are_type_errors_that_name_the_argument(rest, message):
    arguments, _ = problem((4, 2, 3, 5))
    with pytest.raises(TypeError, match=f"^{message}$"):
        fd.lstm(*arguments, **rest)


def test_one_wide_argument_widens_the_results():
    arguments, (first, _, _) = problem((3, 2, 4, 5), np.float32)
    for which in range(7):
        mixed = [
            a.astype(np.float64) if i == which else a for i, a in enumerate([*arguments, *first])
        ]
        assert {a.dtype for a in flat(fd.lstm(*mixed[:5], initial_state=mixed[5:]))} == {
            np.dtype(np.float64)
        }
    assert fd.lstm(*arguments, initial_state=first)[0].dtype == np.float32


def test_gradients_pickle():
    arguments, (first, _, dh) = problem((3, 2, 4, 5))
    grads = fd.lstm_vjp(dh, *arguments, initial_state=first)
    again = pickle.loads(pickle.dumps(grads))
    assert type(again) is fd.LSTMGrads and all(map(same_bits, flat(again), flat(grads)))
