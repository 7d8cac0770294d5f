"""S6: against the page's formulas, its theorem and its attention, and as one expects of a layer."""

import copy
import inspect
import pickle

import numpy as np
import pytest

import fastderiv as fd
from fastderiv import reference
from fastderiv.ssm.s6 import _layer
from helpers.awkward import error, layouts, same_bits, snapshot
from helpers.machines import by_threads

REALS = [np.float32, np.float64]
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-13}
NAMES = ["W_delta", "b_delta", "A", "W_B", "W_C"]
SHAPES = [
    ((7,), 4, 3),
    ((2, 40), 5, 4),
    ((1,), 1, 1),
    ((3, 1), 2, 6),
    ((300,), 17, 16),
    ((2, 0), 3, 2),
    ((0, 5), 3, 2),
    ((4,), 3, 0),
    ((0,), 0, 0),
    ((2, 3), 0, 4),
]


def weights(channels, states, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (
        (channels, channels),
        channels,
        (channels, states),
        (states, channels),
        (states, channels),
    )
    W_delta, b_delta, A, W_B, W_C = (rng.normal(size=s).astype(dtype) for s in shapes)
    return W_delta / np.sqrt(max(1, channels), dtype=dtype), b_delta - 1, -np.exp(A), W_B, W_C


def problem(rows=(2, 40), channels=5, states=4, dtype=np.float64, seed=1):
    """A layer, x (..., L, E), and dy, initial_state and dlast_state for it."""
    rng = np.random.default_rng(seed)
    state = (*rows[:-1], channels, states)
    arrays = [
        rng.normal(size=s).astype(dtype)
        for s in ((*rows, channels), (*rows, channels), state, state)
    ]
    return fd.S6(*weights(channels, states, dtype)), *arrays


def twin(layer):
    return reference.S6(*(getattr(layer, name) for name in NAMES))


def page(x, W_delta, b_delta, A, W_B, W_C, h0):
    """derivations §1 for one sequence, number by number; any argument may be complex."""
    (L, E), N = x.shape, len(W_B)
    h = np.array(h0, np.result_type(x, W_delta, b_delta, A, W_B, W_C, h0))
    y = np.zeros((L, E), h.dtype)
    for l in range(L):
        for e in range(E):
            delta = np.log(1 + np.exp(sum(x[l, i] * W_delta[i, e] for i in range(E)) + b_delta[e]))
            for n in range(N):
                B, C = (sum(W[n, i] * x[l, i] for i in range(E)) for W in (W_B, W_C))
                h[e, n] = np.exp(delta * A[e, n]) * h[e, n] + delta * B * x[l, e]
                y[l, e] += h[e, n] * C
    return y, h


def test_layer_is_what_the_page_says():
    layer, x, _, h0, _ = problem((9,), 4, 3)
    y, last = layer(x, h0, return_last_state=True)
    y0, last0 = page(x, *weights(4, 3), h0)
    assert error(y, y0) < 1e-14 and error(last, last0) < 1e-14


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("shape", SHAPES)
def test_everything_equals_the_reference(shape, dtype):
    layer, x, dy, h0, dlast = problem(*shape, dtype)
    ours, theirs = (
        [
            *s(x, h0, True),
            s(x),
            s.step_sizes(x),
            s.transition_product(x, 1, -1),
            *s.vjp(dy, x, h0, dlast),
        ]
        for s in (layer, twin(layer))
    )
    if shape[0][-1] < 50:
        ours, theirs = ([*r, s.attention(x)] for r, s in ((ours, layer), (theirs, twin(layer))))
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == dtype and a.flags.c_contiguous
        assert error(a, b) < TOLERANCE[dtype]


def test_signatures_are_those_of_the_reference():
    for method in "__call__", "vjp", "step_sizes", "transition_product", "attention":
        ours, theirs = (
            inspect.signature(getattr(cls, method)).parameters.values()
            for cls in (fd.S6, reference.S6)
        )
        assert [(p.name, p.kind, p.default) for p in ours] == [
            (p.name, p.kind, p.default) for p in theirs
        ]


# ---- derivatives ------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(7))
def test_gradient_equals_complex_step_of_the_page(k):
    """Along a random direction of the k-th of x, the five weights and the initial state."""
    layer, x, dy, h0, dlast = problem((6,), 3, 2)
    arguments = [x, *weights(3, 2), h0]
    direction = np.random.default_rng(k).normal(size=arguments[k].shape)
    arguments[k] = arguments[k] + 1e-100j * direction
    y, last = page(*arguments)
    slope = ((dy * y).sum() + (dlast * last).sum()).imag / 1e-100
    gradient = layer.vjp(dy, x, h0, dlast)[k]
    assert abs((gradient * direction).sum() - slope) < 1e-12 * max(1, abs(slope))


@pytest.mark.parametrize("rows", [(30,), (3, 30)])
def test_gradients_equal_pytorch_autograd(rows):
    torch = pytest.importorskip("torch")
    layer, x, dy, h0, dlast = problem(rows, 5, 4)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, *weights(5, 4), h0)]
    tx, W_delta, b_delta, A, W_B, W_C, h = leaves
    step = torch.nn.functional.softplus(tx @ W_delta + b_delta)
    B, C, ys = tx @ W_B.T, tx @ W_C.T, []
    for l in range(rows[-1]):
        dt = step[..., l, :, None]
        h = torch.exp(dt * A) * h + dt * B[..., l, None, :] * tx[..., l, :, None]
        ys.append((h * C[..., l, None, :]).sum(-1))
    loss = (torch.stack(ys, -2) * torch.tensor(dy)).sum() + (h * torch.tensor(dlast)).sum()
    for ours, theirs in zip(
        layer.vjp(dy, x, h0, dlast), torch.autograd.grad(loss, leaves), strict=True
    ):
        assert error(ours, theirs.numpy()) < 1e-13


def test_adjoints_left_out_count_as_zero():
    layer, x, dy, h0, dlast = problem()
    assert layer.vjp(dy, x, dlast_state=dlast).dinitial_state is None
    assert layer.vjp(dy, x).dinitial_state is None
    for a, b in zip(layer.vjp(dy, x, h0), layer.vjp(dy, x, h0, 0 * dlast), strict=True):
        assert same_bits(a, b)


def test_gradients_of_chunks_compose():
    """The adjoint of a chunk's initial state is that of the last state of the chunk before."""
    layer, x, dy, h0, dlast = problem((2, 50))
    whole = layer.vjp(dy, x, h0, dlast)
    _, middle = layer(x[:, :20], h0, return_last_state=True)
    second = layer.vjp(dy[:, 20:], x[:, 20:], middle, dlast)
    first = layer.vjp(dy[:, :20], x[:, :20], h0, second.dinitial_state)
    assert error(np.concatenate([first.dx, second.dx], 1), whole.dx) < 1e-13
    assert error(first.dinitial_state, whole.dinitial_state) < 1e-13
    for name in "dW_delta", "db_delta", "dA", "dW_B", "dW_C":
        assert error(getattr(first, name) + getattr(second, name), getattr(whole, name)) < 1e-13


# ---- the theorem and the attention ------------------------------------------------------------


@pytest.mark.parametrize("method", ["closed", "subsets"])
@pytest.mark.parametrize(
    "steps",
    [(0, 12), (3, 10), (None, -4), (-5, None), (7, 8), (9, 4), (2, 99), (np.int8(1), np.int64(3))],
)
@pytest.mark.parametrize("rows", [(12,), (2, 12)])
def test_transition_product_is_the_product_of_the_transitions(method, steps, rows):
    layer, x, *_ = problem(rows)
    transitions = np.exp(layer.step_sizes(x)[..., None] * layer.A)  # (..., L, E, N)
    product = transitions[..., slice(*steps), :, :].prod(-3)
    assert np.allclose(
        layer.transition_product(x, *steps, method=method), product, rtol=1e-13, atol=0
    )


def test_state_fades_by_the_transition_product():
    """Without input to the state (W_B = 0), what remains of it is the product of all
    transitions.
    """
    W_delta, b_delta, A, W_B, W_C = weights(5, 4)
    _, x, _, h0, _ = problem()
    layer = fd.S6(W_delta, b_delta, A, 0 * W_B, W_C)
    _, last = layer(x, h0, return_last_state=True)
    assert np.allclose(last, layer.transition_product(x, None, None) * h0, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rows", [(70,), (2, 33)])
def test_attention_times_x_is_the_output(rows):
    layer, x, *_ = problem(rows)
    alpha = layer.attention(x)
    assert alpha.shape == (*rows[:-1], 5, rows[-1], rows[-1])
    assert not np.triu(alpha, 1).any()
    assert error(np.einsum("...elj,...je->...le", alpha, x), layer(x)) < 1e-13


# ---- in pieces, and however it is asked -------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
def test_chunks_equal_the_whole(dtype):
    layer, x, _, h0, _ = problem((2, 150), dtype=dtype)
    y, last = layer(x, h0, return_last_state=True)
    state, parts = h0, []
    for piece in np.s_[:1], np.s_[1:90], np.s_[90:90], np.s_[90:]:
        part, state = layer(x[:, piece], state, return_last_state=True)
        parts.append(part)
    assert (
        error(np.concatenate(parts, 1), y) < TOLERANCE[dtype]
        and error(state, last) < TOLERANCE[dtype]
    )


def test_batch_equals_each_sequence_by_itself():
    layer, x, dy, h0, dlast = problem((3, 25))
    together, apart = (
        layer.vjp(dy, x, h0, dlast),
        [layer.vjp(*item) for item in zip(dy, x, h0, dlast, strict=True)],
    )
    assert error(np.stack([layer(*item) for item in zip(x, h0, strict=True)]), layer(x, h0)) < 1e-14
    for name, total in together._asdict().items():
        each = [getattr(grads, name) for grads in apart]
        assert (
            error(np.stack(each) if name in ("dx", "dinitial_state") else sum(each), total) < 1e-13
        )


def test_no_steps_leave_the_state():
    layer, _, _, h0, dlast = problem((2, 0))
    y, last = layer(np.empty((2, 0, 5)), h0, return_last_state=True)
    assert y.shape == (2, 0, 5) and same_bits(last, h0)
    grads = layer.vjp(y, y, h0, dlast)
    assert same_bits(grads.dinitial_state, dlast) and not any(g.any() for g in grads[:-1])


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("argument", ["x", "dy", "initial_state", "dlast_state"])
@pytest.mark.parametrize(
    ("rows", "states"), [((60,), 1), ((3, 40), 6), ((1,), 6)]
)  # a single row or column is another product
def test_layout_changes_no_bit(argument, dtype, rows, states):
    layer, x, dy, h0, dlast = problem(rows, 21, states, dtype)
    arrays = dict(x=x, dy=dy, initial_state=h0, dlast_state=dlast)
    before = snapshot(*arrays.values())

    def results(x, dy, initial_state, dlast_state):
        outputs = (
            *layer(x, initial_state, return_last_state=True),
            layer.attention(x),
            layer.transition_product(x, 3, 9),
        )
        return *outputs, layer.step_sizes(x), *layer.vjp(dy, x, initial_state, dlast_state)

    expected = results(**arrays)
    for label, array in layouts(arrays[argument]):
        assert all(map(same_bits, results(**{**arrays, argument: array}), expected)), label
    assert snapshot(*arrays.values()) == before


@pytest.mark.parametrize("name", NAMES)
def test_layout_of_a_weight_changes_no_bit(name):
    layer, x, *_ = problem()
    given = dict(zip(NAMES, weights(5, 4), strict=True))
    for label, array in layouts(given[name]):
        assert same_bits(fd.S6(**{**given, name: array})(x), layer(x)), label


def test_thread_count_changes_no_bit():
    layer, x, dy, h0, dlast = problem((2, 400), 100, 8, np.float32)
    first, *others = by_threads(lambda: [layer(x, h0), *layer.vjp(dy, x, h0, dlast)], 1, 2, 5)
    assert all(all(map(same_bits, first, other)) for other in others)


def test_dtypes_are_promoted_together():
    narrow, x, dy, h0, _ = problem(dtype=np.float32)
    wide = fd.S6(*weights(5, 4))
    assert narrow.A.dtype == narrow(x).dtype == narrow.vjp(dy, x).dA.dtype == np.float32
    for y in (
        narrow(x.astype(np.float64)),
        narrow(x, h0.astype(np.float64)),
        wide(x),
        narrow(np.ones((3, 5), int)),
    ):
        assert y.dtype == np.float64
    assert fd.S6(*(w.tolist() for w in weights(5, 4))).A.dtype == np.float64


def test_nonfinite_stays_in_its_sequence_and_after_its_step():
    layer, x, dy, *_ = problem((3, 20))
    clean, grads = layer(x), layer.vjp(dy, x)
    for bad in np.nan, np.inf, -np.inf:
        y = layer(np.where(np.arange(60).reshape(3, 20, 1) == 27, bad, x))
        dx = layer.vjp(np.where(np.arange(3) == 1, bad, 0)[:, None, None] + dy, x).dx
        assert (
            same_bits(y[[0, 2]], clean[[0, 2]])
            and same_bits(y[1, :7], clean[1, :7])
            and not np.isfinite(y[1, 7]).any()
        )
        assert same_bits(dx[[0, 2]], grads.dx[[0, 2]])


# ---- the object -------------------------------------------------------------------------------


def test_weights_are_read_only_copies():
    given = weights(5, 4)
    layer = fd.S6(*given)
    _, x, *_ = problem()
    y = layer(x)
    for name, w in zip(NAMES, given, strict=True):
        own = getattr(layer, name)
        assert same_bits(own, w) and not own.flags.writeable and not np.shares_memory(own, w)
        with pytest.raises(AttributeError):
            setattr(layer, name, w)
        w[...] = 0
    assert same_bits(layer(x), y)


def test_layer_pickles_and_copies():
    layer, x, dy, *_ = problem(dtype=np.float32)
    assert repr(layer) == "S6(E=5, N=4, float32)"
    for other in pickle.loads(pickle.dumps(layer)), copy.copy(layer), copy.deepcopy(layer):
        assert (
            repr(other) == repr(layer)
            and same_bits(other(x), layer(x))
            and not other.A.flags.writeable
        )
    grads = layer.vjp(dy, x)
    assert all(
        a is b is None or same_bits(a, b)
        for a, b in zip(pickle.loads(pickle.dumps(grads)), grads, strict=True)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W_delta": np.ones((4, 5))}, r"W_delta has shape \(4, 5\); expected \(E, E\)"),
        ({"W_delta": np.ones(4)}, r"W_delta has shape \(4,\); expected \(E, E\)"),
        ({"b_delta": np.ones(4)}, r"b_delta has shape \(4,\); expected \(E,\) = \(5,\)"),
        ({"A": np.ones((4, 5))}, r"A has shape \(4, 5\); expected \(E, N\) = \(5, N\)"),
        ({"W_B": np.ones((5, 4))}, r"W_B has shape \(5, 4\); expected \(N, E\) = \(4, 5\)"),
        ({"W_C": np.ones((3, 5))}, r"W_C has shape \(3, 5\); expected \(N, E\) = \(4, 5\)"),
    ],
)
def test_weights_are_checked(change, message):
    given = dict(zip(NAMES, weights(5, 4), strict=True))
    with pytest.raises(ValueError, match=message):
        fd.S6(**{**given, **change})
    (name,) = change
    with pytest.raises(
        TypeError, match=f"{name} has dtype complex128; expected float32, float64 or integers"
    ):
        fd.S6(**{**given, name: given[name] + 0j})


def test_arguments_are_checked():
    layer, x, dy, h0, _ = problem()
    takes_x = (
        layer,
        layer.step_sizes,
        layer.attention,
        lambda x: layer.transition_product(x, 0, 1),
        lambda x: layer.vjp(dy, x),
    )
    for call in takes_x:
        for wrong in np.ones(5), np.ones((2, 40, 4)), np.ones((1, 2, 40, 5)):
            with pytest.raises(
                ValueError, match=r"x has shape .*; expected \(L, E\) or \(batch, L, E\) with E = 5"
            ):
                call(wrong)
        with pytest.raises(
            TypeError, match="x has dtype bool; expected float32, float64 or integers"
        ):
            call(x > 0)
    with pytest.raises(
        ValueError,
        match=r"initial_state has shape \(5, 4\); expected \(batch, E, N\) = \(2, 5, 4\)",
    ):
        layer(x, h0[0])
    with pytest.raises(
        ValueError, match=r"dlast_state has shape \(2, 5, 4\); expected \(E, N\) = \(5, 4\)"
    ):
        layer.vjp(dy[0], x[0], dlast_state=h0)
    with pytest.raises(
        ValueError, match=r"dy has shape \(1, 40, 5\); expected \(batch, L, E\) = \(2, 40, 5\)"
    ):
        layer.vjp(dy[:1], x)
    with pytest.raises(TypeError, match="dy has dtype object"):
        layer.vjp(None, x)
    with pytest.raises(TypeError, match=r"stop is 1.5; expected an integer"):
        layer.transition_product(x, 0, 1.5)
    with pytest.raises(ValueError, match="method is 'sum'; expected 'closed' or 'subsets'"):
        layer.transition_product(x, 0, 1, method="sum")
    with pytest.raises(
        ValueError,
        match=r"start:stop = None:-1 has 79 steps; expected at most 62 by method 'subsets'",
    ):
        layer.transition_product(np.ones((80, 5)), None, -1, "subsets")


def test_products_in_blocks(monkeypatch):
    rng = np.random.default_rng(2)
    W, b, A, N = (
        rng.normal(size=(5, 5)),
        rng.normal(size=5),
        -rng.random((5, 3)),
        rng.normal(size=(3, 5)),
    )
    layer, x = fd.S6(W, b, A, N, N), rng.normal(size=(2, 150, 5))
    expected = [layer(x), layer.step_sizes(x), *layer.vjp(x, x)[:6]]
    monkeypatch.setattr(_layer, "_ROWS", 64)
    for got, whole in zip(
        [layer(x), layer.step_sizes(x), *layer.vjp(x, x)[:6]], expected, strict=True
    ):
        np.testing.assert_allclose(got, whole, rtol=1e-12, atol=1e-12)
