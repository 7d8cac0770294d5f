"""The grid RNN, compared with the page, its reference and PyTorch; its sweep by diagonals."""

import pickle

import numpy as np
import pytest

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import error, layouts, same_bits
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads

REALS = [np.float32, np.float64]
TOLERANCE = {np.float32: 5e-6, np.float64: 1e-13}
NAMES = ["tanh", "sigmoid", "relu", "softplus", "silu", "gelu", None]
# batch, G1, G2, D, H
SHAPES = [
    (2, 3, 4, 2, 5),
    (1, 1, 1, 1, 1),
    (3, 1, 6, 2, 17),
    (1, 5, 1, 0, 3),
    (2, 7, 3, 20, 33),
    (13, 4, 4, 3, 65),
    (1, 9, 11, 5, 130),
    (0, 3, 3, 2, 2),
    (2, 0, 3, 2, 2),
    (2, 3, 0, 2, 2),
    (2, 0, 0, 1, 2),
    (2, 3, 3, 2, 0),
]
FIELDS = ["dx", "dW_in", "dW_west", "dW_north", "db"]


def problem(batch=2, G1=3, G2=4, D=2, H=5, dtype=np.float64, seed=0):
    """dh, x, W_in, W_west, W_north, b; no batch axis for batch None."""
    rng = np.random.default_rng(seed)
    front = () if batch is None else (batch,)
    shapes = (*front, G1, G2, H), (*front, G1, G2, D), (H, D), (H, H), (H, H), (H,)
    dh, x, *W, b = (rng.normal(size=s) for s in shapes)
    W = [w / np.sqrt(2 * max(1, w.shape[1])) for w in W]
    return [a.astype(dtype) for a in (dh, x, *W, b)]


def page(x, W_in, W_west, W_north, b):
    """docs/derivations.md §4.4 with tanh, number by number; any argument may be complex."""
    G1, G2, D = x.shape
    h = np.zeros((G1, G2, len(b)), np.result_type(x, W_in, W_west, W_north, b))
    for i in range(G1):
        for j in range(G2):
            for u in range(len(b)):
                a = b[u] + sum(W_in[u, k] * x[i, j, k] for k in range(D))
                a += sum(W_west[u, k] * h[i, j - 1, k] for k in range(len(b))) if j else 0
                a += sum(W_north[u, k] * h[i - 1, j, k] for k in range(len(b))) if i else 0
                h[i, j, u] = np.tanh(a)
    return h


def test_states_are_what_the_page_says():
    _, *arguments = problem(None)
    assert error(fd.grid_rnn(*arguments), page(*arguments)) < 1e-15


@pytest.mark.parametrize("k", range(5))
def test_gradient_equals_complex_step_of_the_page(k):
    """The derivative along a random direction of x, a weight matrix or the bias."""
    dh, *arguments = problem(None, 4, 3)
    direction = np.random.default_rng(k).normal(size=arguments[k].shape)
    stepped = [a + 1e-100j * direction if i == k else a for i, a in enumerate(arguments)]
    slope = (dh * page(*stepped)).sum().imag / 1e-100
    gradient = fd.grid_rnn_vjp(dh, *arguments)[k]
    assert abs((gradient * direction).sum() - slope) < 1e-13 * max(1, abs(slope))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("shape", SHAPES)
def test_everything_equals_the_reference(shape, dtype):
    dh, *arguments = problem(*shape, dtype)
    for name in NAMES if shape[:3] == (2, 3, 4) else NAMES[:3]:
        for given in arguments, arguments[:-1]:
            ours, theirs = (
                [f.grid_rnn(*given, activation=name), *f.grid_rnn_vjp(dh, *given, activation=name)]
                for f in (fd, reference)
            )
            for a, e in zip(ours, theirs, strict=True):
                assert (a is None) == (e is None)
                if a is not None:
                    assert a.shape == e.shape and a.dtype == dtype and a.flags.c_contiguous
                    assert error(a, e) < TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", REALS)
def test_pytorch_autograd_agrees(dtype):
    torch = pytest.importorskip("torch")
    dh, *arguments = problem(3, 6, 5, 4, 7, dtype)
    leaves = [torch.tensor(a, requires_grad=True) for a in arguments]
    x, W_in, W_west, W_north, b = leaves
    h = {}
    for i in range(6):
        for j in range(5):
            a = x[:, i, j] @ W_in.T + b
            a = a + h[i, j - 1] @ W_west.T if j else a
            h[i, j] = torch.tanh(a + h[i - 1, j] @ W_north.T if i else a)
    states = torch.stack([torch.stack([h[i, j] for j in range(5)], 1) for i in range(6)], 1)
    assert error(fd.grid_rnn(*arguments), states.detach().numpy()) < TOLERANCE[dtype]
    for ours, theirs in zip(
        fd.grid_rnn_vjp(dh, *arguments),
        torch.autograd.grad(states, leaves, torch.tensor(dh)),
        strict=True,
    ):
        assert error(ours, theirs.numpy()) < TOLERANCE[dtype]


def test_gradients_keep_their_digits_where_every_unit_is_saturated():
    """1 − h² is 0 in float32 beyond 9, but the adjoint uses the pre-activation."""
    dh, x, W_in, W_west, W_north, b = problem(2, 4, 4, 3, 5, np.float32)
    b += 30
    ours, exact = (f.grid_rnn_vjp(dh, x, W_in, W_west, W_north, b) for f in (fd, reference))
    assert np.abs(exact.db).max() < 1e-15
    for a, e in zip(ours, exact, strict=True):
        assert error(a, e) < 1e-5


@pytest.mark.parametrize("shape", [(2, 3, 4, 2, 5), (1, 1, 5, 2, 3), (2, 0, 3, 2, 2)])
def test_a_pair_of_callables_is_an_activation(shape):
    dh, *arguments = problem(*shape)
    pair = np.tanh, lambda a: 1 / np.cosh(a) ** 2
    ours = [
        fd.grid_rnn(*arguments, activation=pair),
        *fd.grid_rnn_vjp(dh, *arguments, activation=pair),
    ]
    named = [fd.grid_rnn(*arguments), *fd.grid_rnn_vjp(dh, *arguments)]
    assert all(a.shape == e.shape and error(a, e) < 1e-14 for a, e in zip(ours, named, strict=True))


def test_a_pair_must_return_as_many_numbers():
    dh, *arguments = problem()
    with pytest.raises(
        ValueError,
        match=r"activation\[0\]\(x\) has shape \(2, 1, 4\); expected that of x, \(2, 1, 5\)",
    ):
        fd.grid_rnn(*arguments, activation=(lambda a: a[..., :-1], np.cos))
    with pytest.raises(TypeError, match=r"activation\[1\]\(x\) has dtype complex128"):
        fd.grid_rnn_vjp(dh, *arguments, activation=(np.sin, lambda a: a + 1j))


# ---- structure -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (1, 5), (5, 1), (1, 1)])
def test_as_many_steps_as_there_are_diagonals(shape):
    """φ is called G1 + G2 − 1 times, φ′ as often for the adjoint; each cell is in one call."""
    G1, G2 = shape
    dh, *arguments = problem(3, G1, G2)
    calls = []

    def watched(name, f):
        return lambda a: calls.append((name, a.shape)) or f(a)

    pair = watched("phi", np.sin), watched("slope", np.cos)
    fd.grid_rnn(*arguments, activation=pair)
    assert (
        len(calls) == G1 + G2 - 1
        and sum(s[1] for _, s in calls) == G1 * G2
        and {s[::2] for _, s in calls} == {(3, 5)}
    )
    calls.clear()
    fd.grid_rnn_vjp(dh, *arguments, activation=pair)
    assert (
        sum(name == "slope" for name, _ in calls)
        == sum(name == "phi" for name, _ in calls)
        == G1 + G2 - 1
    )


def test_states_count_paths():
    """In a linear grid with weights of one, h[i, j] is the number of paths from the origin.

    dx[0, 0] is the number of paths to the last cell.
    """
    x, one = np.zeros((9, 6, 1)), np.ones((1, 1))
    x[0, 0] = 1
    h = fd.grid_rnn(x, one, one, one, activation=None)[..., 0]
    binomials = np.ones((9, 6))
    for i in range(1, 9):
        for j in range(1, 6):
            binomials[i, j] = binomials[i - 1, j] + binomials[i, j - 1]
    assert np.array_equal(h, binomials)
    dh = np.zeros((9, 6, 1))
    dh[-1, -1] = 1
    assert fd.grid_rnn_vjp(dh, x, one, one, one, activation=None).dx[0, 0] == binomials[-1, -1]


def test_transposing_the_grid_exchanges_west_and_north():
    dh, x, W_in, W_west, W_north, b = problem()
    turned = fd.grid_rnn(x.swapaxes(1, 2), W_in, W_north, W_west, b)
    assert error(turned.swapaxes(1, 2), fd.grid_rnn(x, W_in, W_west, W_north, b)) < 1e-14
    grads, back = (
        fd.grid_rnn_vjp(dh, x, W_in, W_west, W_north, b),
        fd.grid_rnn_vjp(dh.swapaxes(1, 2), x.swapaxes(1, 2), W_in, W_north, W_west, b),
    )
    assert (
        error(back.dW_north, grads.dW_west) < 1e-14
        and error(back.dx.swapaxes(1, 2), grads.dx) < 1e-14
    )


@pytest.mark.parametrize("dtype", REALS)
def test_an_item_has_the_same_bits_alone_and_in_any_batch(dtype):
    """Every sum has the same order, however cells are grouped into products."""
    dh, *arguments = problem(31, 5, 8, 3, 20, dtype)
    whole, grads = fd.grid_rnn(*arguments), fd.grid_rnn_vjp(dh, *arguments)
    for t in 0, 7, 30:
        assert same_bits(fd.grid_rnn(arguments[0][t], *arguments[1:]), whole[t])
        assert same_bits(
            fd.grid_rnn_vjp(dh[t : t + 1], arguments[0][t : t + 1], *arguments[1:]).dx,
            grads.dx[t : t + 1],
        )


def test_not_finite_data_stay_in_their_item_and_downstream():
    dh, x, *rest = problem(3, 6, 6)
    h, dx = fd.grid_rnn(x, *rest), fd.grid_rnn_vjp(dh, x, *rest).dx
    x[1, 2, 3], dh[2, 4, 4] = np.nan, np.inf
    nan = np.isnan(fd.grid_rnn(x, *rest))
    assert nan[1, 2:, 3:].all() and nan.sum() == nan[1, 2:, 3:].sum()
    assert same_bits(fd.grid_rnn(x, *rest)[~nan], h[~nan])
    again = fd.grid_rnn_vjp(dh, x, *rest).dx
    assert (
        same_bits(again[0], dx[0])
        and same_bits(again[2, 5], dx[2, 5])
        and np.isfinite(again[2, :, 5]).all()
    )
    assert not np.isfinite(again[2, :5, :5]).any()


def test_long_sums_keep_float32s_digits():
    """A running float32 sum over this many cells of one sign would be wrong by 1e-4 or more."""
    x, one = np.full((4, 300, 300, 1), 0.1, np.float32), np.ones((1, 1), np.float32)
    zero, dh = np.zeros((1, 1), np.float32), np.full((4, 300, 300, 1), 0.3, np.float32)
    grads = fd.grid_rnn_vjp(dh, x, one, zero, zero, np.zeros(1, np.float32), activation=None)
    exact = 360_000 * np.float64(np.float32(0.3))
    assert (
        error(grads.db, [exact]) < 2e-6
        and error(grads.dW_in, [[exact * np.float64(np.float32(0.1))]]) < 2e-6
    )


# ---- bits and arguments --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 2, 5), (1, 1, 1, 1, 1), (None, 4, 1, 3, 17)])
def test_any_layout_gives_the_same_bits(shape, dtype):
    arguments = problem(*shape, dtype)
    h, grads = fd.grid_rnn(*arguments[1:]), fd.grid_rnn_vjp(*arguments)
    for k in range(6):
        for label, view in layouts(arguments[k]):
            changed = [*arguments[:k], view, *arguments[k + 1 :]]
            assert same_bits(fd.grid_rnn(*changed[1:]), h), label
            assert all(
                same_bits(a, e) for a, e in zip(fd.grid_rnn_vjp(*changed), grads, strict=True)
            ), label


@pytest.mark.parametrize("dtype", REALS)
def test_any_number_of_threads_gives_the_same_bits(dtype):
    dh, *arguments = problem(20, 24, 24, 4, 20, dtype)
    for others in zip(
        *by_threads(lambda: [fd.grid_rnn(*arguments), *fd.grid_rnn_vjp(dh, *arguments)], 1, 2, 5),
        strict=True,
    ):
        assert all(same_bits(a, others[0]) for a in others)


def test_levels_agree():
    assert_levels_agree("""if True:
        import hashlib, numpy as np, fastderiv as fd
        rng = np.random.default_rng(0)
        for dtype in np.float32, np.float64:
            for B, G1, G2, D, H in (9, 7, 5, 3, 21), (2, 3, 30, 17, 70):
                shapes = (B, G1, G2, H), (B, G1, G2, D), (H, D), (H, H), (H, H), (H,)
                arrays = (rng.normal(size=s) / max(1, s[-1]) ** 0.5 for s in shapes)
                dh, x, Wi, Ww, Wn, b = (a.astype(dtype) for a in arrays)
                for name in "tanh", "sigmoid", "relu":
                    rest = x, Wi, Ww / 2, Wn / 2, b
                    h = fd.grid_rnn(*rest, activation=name)
                    for y in h, *fd.grid_rnn_vjp(dh, *rest, activation=name):
                        print(hashlib.sha256(y.tobytes()).hexdigest(), np.abs(y).sum())
        """)


@pytest.mark.parametrize(
    "k, shape, text",
    [
        (1, (4, 2), r"x has shape \(4, 2\); expected \(G1, G2, D\) or \(batch, G1, G2, D\)"),
        (2, (5, 3), r"W_in has shape \(5, 3\); expected \(H, D\) with D = 2"),
        (2, (5,), "W_in has shape"),
        (3, (5, 4), r"W_west has shape \(5, 4\); expected \(H, H\) = \(5, 5\)"),
        (4, (4, 5), r"W_north has shape \(4, 5\)"),
        (5, (4,), r"b has shape \(4,\); expected \(H,\) = \(5,\)"),
        (0, (3, 4, 5), r"dh has shape \(3, 4, 5\); expected \(batch, G1, G2, H\) = \(2, 3, 4, 5\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(k, shape, text):
    arguments = problem()
    arguments[k] = np.zeros(shape)
    for call in (fd.grid_rnn_vjp, lambda dh, *rest: fd.grid_rnn(*rest))[: 2 if k else 1]:
        with pytest.raises(ValueError, match=text):
            call(*arguments)


def test_unknown_activations_are_errors():
    dh, *arguments = problem()
    with pytest.raises(ValueError, match="activation is 'sin'; expected None, 'sigmoid', 'tanh'"):
        fd.grid_rnn(*arguments, activation="sin")
    with pytest.raises(TypeError, match="activation is 3; expected None"):
        fd.grid_rnn_vjp(dh, *arguments, activation=3)


def test_results_pickle():
    grads = fd.grid_rnn_vjp(*problem())
    again = pickle.loads(pickle.dumps(grads))
    assert (
        type(again) is fd.GridRNNGrads
        and again._fields == tuple(FIELDS)
        and all(map(same_bits, again, grads))
    )


@pytest.mark.parametrize("back", [False, True])
def test_ctrl_c_is_answered(back):
    dh, *arguments = problem(8, 180, 180, 4, 96, np.float32)

    def call():
        for _ in range(40):
            fd.grid_rnn_vjp(dh, *arguments) if back else fd.grid_rnn(*arguments)

    assert seconds_until_answered(call, delay=0.2) < ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize("back", [False, True])
def test_ctrl_c_is_answered_amid_wide_layers(back):
    """The cells of one diagonal, or the weights alone, take long here."""
    dh, *arguments = (
        np.full(s, 1e-3)
        for s in ((1, 2, 2, 2500), (1, 2, 2, 8), (2500, 8), (2500, 2500), (2500, 2500))
    )

    def call():
        while True:
            fd.grid_rnn_vjp(dh, *arguments) if back else fd.grid_rnn(*arguments)

    for delay in 0.2, 0.45:
        assert seconds_until_answered(call, delay=delay) < ALLOWED
