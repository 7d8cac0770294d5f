"""The fully connected layer, compared with the page's symbols, its reference and PyTorch."""

import itertools
import pickle
import time

import mpmath
import numpy as np
import pytest
from scipy.special import erf

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import error, layouts, same_bits
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads

REALS = [np.float32, np.float64]
TOLERANCE = {np.float32: 2e-6, np.float64: 2e-14}
NAMES = ["sigmoid", "tanh", "relu", "softplus", "silu", "gelu"]
SHAPES = [
    (4, 3, 2),
    (1, 1, 1),
    (1, 7, 1),
    (9, 1, 5),
    (130, 17, 33),
    (70, 5, 300),
    (1000, 3, 1),
    (2, 40, 17),
    (0, 3, 2),
    (3, 0, 2),
    (3, 2, 0),
]
GRADIENTS = ["dX", "dW", "db"]


def problem(K=6, n=4, m=3, dtype=np.float64, seed=0):
    """dY (K, m), X (K, n), W (n, m), b (m,)."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s).astype(dtype) for s in ((K, m), (K, n), (n, m), (m,))]


def smooth(x, name):
    """φ as a function of complex numbers."""
    return {
        "sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "tanh": lambda: np.tanh(x),
        "relu": lambda: np.where(x.real > 0, x, 0),
        "softplus": lambda: np.log(1 + np.exp(x)),
        "silu": lambda: x / (1 + np.exp(-x)),
        "gelu": lambda: x * (1 + erf(x / np.sqrt(2))) / 2,
        None: lambda: x,
    }[name]()


# ---- the page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 3, 2), (2, 4, 3)])
@pytest.mark.parametrize("b", [True, False])
def test_gradients_are_the_symbolic_derivatives_element_by_element(shape, b):
    """L = λ(σ(X W + b)) is written out in its elements, and λ is no sum.

    The first shape is that of the source.
    """
    sympy = pytest.importorskip("sympy")
    n, m, p = shape
    X, W = (
        np.array(sympy.symbols(f"{name}:{r}:{c}")).reshape(r, c)
        for name, r, c in (("x", n, m), ("w", m, p))
    )
    bias = np.array(sympy.symbols(f"b:{p}")) if b else np.zeros(p, int)
    N = [[sum(X[i, k] * W[k, j] for k in range(m)) + bias[j] for j in range(p)] for i in range(n)]
    S = np.array(sympy.symbols(f"s:{n}:{p}")).reshape(n, p)
    loss = (
        sum((i + 2 * j + 1) * S[i, j] ** 2 for i in range(n) for j in range(p))
        + S[0, 0] * S[n - 1, p - 1]
    )
    at = {S[i, j]: 1 / (1 + sympy.exp(-N[i][j])) for i in range(n) for j in range(p)}
    symbols = [*X.ravel(), *W.ravel(), *(bias if b else ())]
    derivatives = [
        sum(sympy.diff(loss, s).subs(at) * sympy.diff(at[s], v) for s in at) for v in symbols
    ]
    rng = np.random.default_rng(1)
    numbers = rng.normal(size=len(symbols))
    exact = np.array(sympy.lambdify(symbols, derivatives)(*numbers))
    x, w, c = (
        numbers[: n * m].reshape(n, m),
        numbers[n * m : n * m + m * p].reshape(m, p),
        numbers[n * m + m * p :] if b else None,
    )
    Y = fd.dense(x, w, c, activation="sigmoid")
    dY = np.array(
        sympy.lambdify(list(S.ravel()), [sympy.diff(loss, s) for s in S.ravel()])(*Y.ravel())
    ).reshape(n, p)
    grads = fd.dense_vjp(dY, x, w, c, activation="sigmoid")
    ours = np.concatenate([g.ravel() for g in grads if g is not None])
    assert error(ours, exact) < 1e-14
    # the page's erratum: the source's dW is wrong where λ is not a sum
    if shape == (3, 3, 2) and not b:
        slope = Y * (1 - Y)
        assert error(dY * (x.T @ slope), grads.dW) > 0.1


@pytest.mark.parametrize("name", [*NAMES, None])
@pytest.mark.parametrize("k", range(3))
def test_gradient_equals_complex_step(name, k):
    """The derivative along a random direction of X, W or b."""
    dY, *arguments = problem()
    direction = np.random.default_rng(k).normal(size=arguments[k].shape)
    stepped = [a + 1e-100j * direction if i == k else a for i, a in enumerate(arguments)]
    slope = (dY * smooth(stepped[0] @ stepped[1] + stepped[2], name)).sum().imag / 1e-100
    gradient = fd.dense_vjp(dY, *arguments, activation=name)[k]
    assert abs((gradient * direction).sum() - slope) < 1e-13 * max(1, abs(slope))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("shape", SHAPES)
def test_everything_equals_the_reference(shape, dtype):
    dY, X, W, b = problem(*shape, dtype)
    for name, bias in itertools.product([*NAMES, None], [b, None]):
        ours = fd.dense(X, W, bias, activation=name), *fd.dense_vjp(dY, X, W, bias, activation=name)
        theirs = (
            reference.dense(X, W, bias, activation=name),
            *reference.dense_vjp(dY, X, W, bias, activation=name),
        )
        for a, e in zip(ours, theirs, strict=True):
            assert (a is None) == (e is None) == (bias is None and a is None)
            if a is not None:
                assert a.shape == e.shape and a.dtype == dtype and a.flags.c_contiguous
                assert error(a, e) < TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("name", [*NAMES, None])
def test_pytorch_agrees(name, dtype):
    torch = pytest.importorskip("torch")
    dY, X, W, b = problem(40, 30, 20, dtype)
    W /= 5
    leaves = [torch.tensor(a, requires_grad=True) for a in (X, W, b)]
    N = torch.addmm(leaves[2], leaves[0], leaves[1])
    Y = (
        N
        if name is None
        else getattr(torch if name in ("sigmoid", "tanh") else torch.nn.functional, name)(N)
    )
    assert error(fd.dense(X, W, b, activation=name), Y.detach().numpy()) < TOLERANCE[dtype]
    for ours, theirs in zip(
        fd.dense_vjp(dY, X, W, b, activation=name),
        torch.autograd.grad(Y, leaves, torch.tensor(dY)),
        strict=True,
    ):
        assert error(ours, theirs.numpy()) < TOLERANCE[dtype]


def test_columns_as_samples_are_transposed_views():
    """docs/derivations.md §5.1: Y = W X + b, dX = Wᵀ dY, dW = dY Xᵀ, db summed over the columns."""
    dY, X, W, b = (a.T for a in problem(7, 5, 3))
    grads = fd.dense_vjp(dY.T, X.T, W.T, b)
    assert error(fd.dense(X.T, W.T, b).T, W @ X + b[:, None]) < 1e-15
    for ours, exact in zip(grads, (W.T @ dY, dY @ X.T, dY.sum(1)), strict=True):
        assert error(ours.T, exact) < 1e-15


# ---- caches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("name", [*NAMES, None, (np.sin, np.cos)])
def test_a_cache_gives_the_same_bits_any_number_of_times(name, dtype):
    for shape, with_bias in itertools.product(SHAPES, (True, False)):
        dY, X, W, b = problem(*shape, dtype)
        b = b if with_bias else None
        Y, cache = fd.dense(3 * X, W, b, activation=name, return_cache=True)
        assert same_bits(Y, fd.dense(3 * X, W, b, activation=name))
        for adjoint in dY, np.cos(dY), dY:
            grads = fd.dense_vjp(adjoint, 3 * X, W, b, activation=name)
            for a, e in zip(
                fd.dense_vjp(adjoint, 3 * X, W, b, activation=name, cache=cache), grads, strict=True
            ):
                assert a is e is None or same_bits(a, e)


def test_with_a_cache_the_product_is_not_computed_again(monkeypatch):
    """The adjoint with a sigmoid needs X W and two more products."""
    dY, X, W, b = problem(20, 5, 4)
    products = []

    def counted(a, b, out=None):
        products.append((a.shape, b.shape))
        return np.matmul(a, b, out=out)

    for name in "sigmoid", (np.sin, np.cos):
        _, cache = fd.dense(X, W, b, activation=name, return_cache=True)
        with monkeypatch.context() as patched:
            patched.setitem(fd.dense_vjp.__globals__, "product", counted)
            fd.dense_vjp(dY, X, W, b, activation=name)
            assert products.count(((20, 5), (5, 4))) == 1
            products.clear()
            fd.dense_vjp(dY, X, W, b, activation=name, cache=cache)
            assert products == [((20, 4), (4, 5))]
            products.clear()


def test_a_cache_is_not_of_the_callers_memory():
    """A cache is unchanged when the result, `out` or what a callable is given is overwritten."""
    dY, X, W, bias = problem(20, 5, 4)
    in_place = lambda x: np.sin(x, out=x), lambda x: np.cos(x, out=x)
    for name, b in itertools.product(("gelu", in_place), (bias, None)):
        exact = fd.dense_vjp(dY, X, W, b, activation=name)
        out = np.zeros((4, 20)).T
        Y, cache = fd.dense(X, W, b, activation=name, out=out, return_cache=True)
        assert Y is out and same_bits(Y.copy("C"), fd.dense(X, W, b, activation=name))
        out[...] = 7
        Y, again = fd.dense(X, W, b, activation=name, return_cache=True)
        Y[...] = 7
        for c in cache, cache, again:
            grads = fd.dense_vjp(dY, X, W, b, activation=name, cache=c)
            assert all(a is e is None or same_bits(a, e) for a, e in zip(grads, exact, strict=True))


def test_callables_that_change_the_arguments_do_not_make_a_cache_of_the_changed_ones():
    dY, X, W, b = problem(6, 4, 3)

    def spoils(x):
        X[0, 0] += 1
        return np.sin(x)

    _, cache = fd.dense(X, W, b, activation=(spoils, np.cos), return_cache=True)
    with pytest.raises(ValueError, match="cache is of a call with another X"):
        fd.dense_vjp(dY, X, W, b, activation=(spoils, np.cos), cache=cache)


def test_out_is_as_it_was_if_a_callable_raises():
    _, X, W, b = problem(6, 4, 3)
    for wrong in lambda x: 1 / 0, lambda x: x[0], lambda x: "sin":
        out = np.full((6, 3), 7.0)
        with pytest.raises((ZeroDivisionError, ValueError, TypeError)):
            fd.dense(X, W, b, activation=(wrong, np.cos), out=out)
        assert (out == 7).all()


def test_the_references_cache_changes_nothing():
    dY, X, W, b = problem()
    Y, cache = reference.dense(X, W, b, activation="tanh", return_cache=True)
    grads = reference.dense_vjp(dY, X, W, b, activation="tanh")
    assert same_bits(Y, reference.dense(X, W, b, activation="tanh"))
    assert all(
        same_bits(a, e)
        for a, e in zip(
            reference.dense_vjp(dY, X, W, b, activation="tanh", cache=cache), grads, strict=True
        )
    )


def test_another_calls_cache_is_refused():
    dY, X, W, b = problem()
    cache = fd.dense(X, W, b, activation="tanh", return_cache=True)[1]
    single = fd.dense(
        *(a.astype(np.float32) for a in (X, W, b)), activation="tanh", return_cache=True
    )[1]
    rows, inputs = (
        fd.dense(*problem(*s)[1:], activation="tanh", return_cache=True)[1]
        for s in ((5, 4, 3), (6, 2, 3))
    )
    of = r"cache is of a call with \(dtype, K, n, m\) = "
    for bad, name, kind, text in (
        (rows, "tanh", ValueError, of + r"\(float64, 5, 4, 3\); expected \(float64, 6, 4, 3\)"),
        (inputs, "tanh", ValueError, of + r"\(float64, 6, 2, 3\); expected \(float64, 6, 4, 3\)"),
        (single, "tanh", ValueError, of + r"\(float32, 6, 4, 3\); expected \(float64, 6, 4, 3\)"),
        (cache, "relu", ValueError, "cache is of a call with activation 'tanh'; expected 'relu'"),
        (cache, None, ValueError, "cache is of a call with activation 'tanh'; expected None"),
        (
            cache,
            (np.sin, np.cos),
            ValueError,
            "cache is of a call with activation 'tanh'; expected a pair of callables",
        ),
        (
            X @ W,
            "tanh",
            TypeError,
            r"cache is a ndarray; expected what dense\(…, return_cache=True\) returns",
        ),
    ):
        with pytest.raises(kind, match=text):
            fd.dense_vjp(dY, X, W, b, activation=name, cache=bad)
    grads = fd.dense_vjp(dY, X, W, b, activation="tanh", cache=cache)
    assert same_bits(grads.dX, fd.dense_vjp(dY, X, W, b, activation="tanh").dX)


# ---- activations ---------------------------------------------------------------------------------

half = mpmath.mpf(0.5)
EXACT = {  # φ, φ′
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), lambda x: mpmath.sech(x / 2) ** 2 / 4),
    "tanh": (mpmath.tanh, lambda x: mpmath.sech(x) ** 2),
    "relu": (lambda x: max(x, mpmath.mpf(0)), lambda x: mpmath.mpf(int(x > 0))),
    "softplus": (lambda x: mpmath.log1p(mpmath.exp(x)), lambda x: 1 / (1 + mpmath.exp(-x))),
    "silu": (
        lambda x: x / (1 + mpmath.exp(-x)),
        lambda x: (1 + x / (1 + mpmath.exp(x))) / (1 + mpmath.exp(-x)),
    ),
    "gelu": (
        lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) * half,
        lambda x: mpmath.erfc(-x / mpmath.sqrt(2)) * half + x * mpmath.npdf(x),
    ),
}
# The largest errors in units of the last place over millions of numbers at every CPU level, rounded
# up.
ULP = dict.fromkeys(NAMES, (4, 4)) | {
    "sigmoid": (4, 5),
    "tanh": (4, 6),
    "silu": (4, 7),
    "gelu": (9, 9),
}
# Here φ′ changes sign, and only its absolute error is small.
ZEROS = {"silu": (-2.5, -0.8), "gelu": (-1.2, -0.4)}
REACH = {"gelu": {np.float32: 14, np.float64: 39}}
ENDS = {
    np.float32: (-88.722, -87.3366, -91.84, -91.846, -44.3614, -13.146, -13.3418),
    np.float64: (-709.782, -708.397, -714.967, -354.891, -37.6158, -37.712),
}


def elementwise(x, name):
    """φ(x) and φ′(x) through layers of one input, one output and weight 1."""
    one = np.ones((1, 1), x.dtype)
    column = x[:, None]
    return fd.dense(column, one, activation=name)[:, 0], fd.dense_vjp(
        np.ones_like(column), column, one, activation=name
    ).dX[:, 0]


def tail_samples(name, dtype, count):
    rng = np.random.default_rng(2)
    reach = REACH.get(name, {np.float32: 105, np.float64: 750})[dtype]
    parts = (
        rng.uniform(-reach, reach, count),
        rng.normal(size=count),
        rng.normal(size=count) * 10 ** rng.uniform(-30, 0, count),
        ENDS[dtype],
    )
    return np.concatenate(parts).astype(dtype)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("name", NAMES)
def test_activations_and_slopes_have_their_digits_in_the_tails(name, dtype):
    x, tiny = tail_samples(name, dtype, 300), mpmath.mpf(float(np.finfo(dtype).tiny))
    lo, hi = ZEROS.get(name, (0, 0))
    with np.errstate(all="raise"), mpmath.workprec(200):
        for k, values in enumerate(elementwise(x, name)):
            for xi, y in zip(x.tolist(), values.tolist(), strict=True):
                exact = EXACT[name][k](mpmath.mpf(xi))
                if abs(exact) < tiny:
                    assert abs(y) <= tiny
                    continue
                near_zero = k == 1 and lo < xi < hi
                ulp = float(np.spacing(dtype(0.25) if near_zero else np.abs(dtype(float(exact)))))
                assert abs(mpmath.mpf(y) - exact) <= ULP[name][k] * ulp, (xi, y, exact)


@pytest.mark.parametrize("dtype", REALS)
def test_activations_at_the_ends_of_the_line(dtype):
    x = np.array([np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0, 1e30, -1e30, 1e-37], dtype)
    nan = np.nan
    expected = {
        "sigmoid": (
            [1, 0, nan, nan, 0.5, 0.5, 1, 0, 0.5],
            [0, 0, nan, nan, 0.25, 0.25, 0, 0, 0.25],
        ),
        "tanh": ([1, -1, nan, nan, 0, 0, 1, -1, 1e-37], [0, 0, nan, nan, 1, 1, 0, 0, 1]),
        "relu": ([np.inf, 0, nan, nan, 0, 0, 1e30, 0, 1e-37], [1, 0, nan, nan, 0, 0, 1, 0, 1]),
        "softplus": (
            [np.inf, 0, nan, nan, np.log(2), np.log(2), 1e30, 0, np.log(2)],
            [1, 0, nan, nan, 0.5, 0.5, 1, 0, 0.5],
        ),
        "silu": (
            [np.inf, 0, nan, nan, 0, 0, 1e30, 0, 5e-38],
            [1, 0, nan, nan, 0.5, 0.5, 1, 0, 0.5],
        ),
        "gelu": (
            [np.inf, 0, nan, nan, 0, 0, 1e30, 0, 5e-38],
            [1, 0, nan, nan, 0.5, 0.5, 1, 0, 0.5],
        ),
    }
    for name, both in expected.items():
        for values, wanted in zip(elementwise(x, name), both, strict=True):
            np.testing.assert_allclose(
                values, np.array(wanted, dtype), rtol=1e-6, atol=1.2e-38, err_msg=name
            )


def test_relu_hears_nothing_from_where_it_is_zero():
    grads = fd.dense_vjp([[np.inf, 1.0]], [[1.0]], [[-1.0, 2.0]], [0.0, 0.0], activation="relu")
    assert grads.dX == 2 and grads.db.tolist() == [0, 1]


def test_a_pair_of_callables_is_an_activation():
    dY, X, W, b = problem(20, 5, 4)
    pair = np.sin, np.cos
    N = X @ W + b
    assert error(fd.dense(X, W, b, activation=pair), np.sin(N)) < 1e-15
    grads, theirs = (f.dense_vjp(dY, X, W, b, activation=pair) for f in (fd, reference))
    assert all(error(a, e) < 1e-14 for a, e in zip(grads, theirs, strict=True))
    assert fd.dense(X, W, activation=(np.sin, None.__init__)).shape == (20, 4)


def test_a_pair_may_overwrite_what_it_is_given_and_keep_what_it_returns():
    dY, X, W, b = problem(20, 5, 4)
    kept = np.ones((20, 4))

    def in_place(x):
        return np.sin(x, out=x)

    Y = fd.dense(X, W, b, activation=(in_place, lambda x: kept))
    assert error(Y, np.sin(X @ W + b)) < 1e-15
    Y = fd.dense(X, W, b, activation=(lambda x: kept, in_place))
    Y[...] = 7
    assert (kept == 1).all()
    assert (
        error(
            fd.dense_vjp(dY, X, W, b, activation=(in_place, in_place)).db,
            (dY * np.sin(X @ W + b)).sum(0),
        )
        < 1e-14
    )
    single = fd.dense(
        *(a.astype(np.float32) for a in (X, W)),
        activation=(lambda x: x.astype(float).tolist(), np.cos),
    )
    assert single.dtype == np.float32


@pytest.mark.parametrize(
    "bad, kind, text",
    [
        (
            "logistic",
            ValueError,
            (
                "activation is 'logistic'; expected None, 'sigmoid', 'tanh', 'relu', 'softplus', "
                "'silu', 'gelu' or a pair"
            ),
        ),
        (np.tanh, TypeError, r"activation is <ufunc 'tanh'>; expected None, .* or a pair"),
        ((np.sin,), TypeError, "or a pair"),
        ((np.sin, "cos"), TypeError, "or a pair"),
        (1, TypeError, "activation is 1; expected None"),
    ],
)
def test_other_activations_are_errors_that_list_the_names(bad, kind, text):
    dY, X, W, b = problem()
    for call in (
        lambda: fd.dense(X, W, b, activation=bad),
        lambda: fd.dense_vjp(dY, X, W, b, activation=bad),
    ):
        with pytest.raises(kind, match=text):
            call()


@pytest.mark.parametrize(
    "value, kind, text",
    [
        (lambda x: x[:-1], ValueError, r"\(x\) has shape \(5, 3\); expected that of x, \(6, 3\)"),
        (lambda x: x.sum(), ValueError, r"\(x\) has shape \(\); expected"),
        (lambda x: x + 1j, TypeError, r"\(x\) has dtype complex128"),
        (lambda x: x > 0, TypeError, r"\(x\) has dtype bool"),
    ],
)
def test_a_pair_must_return_as_many_real_numbers(value, kind, text):
    dY, X, W, b = problem()
    with pytest.raises(kind, match=r"activation\[0\]" + text):
        fd.dense(X, W, b, activation=(value, np.cos))
    with pytest.raises(kind, match=r"activation\[1\]" + text):
        fd.dense_vjp(dY, X, W, b, activation=(np.sin, value))


# ---- bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize(
    "shape", [(5, 4, 3), (1, 6, 1), (1, 1, 9), (7, 1, 1), (70, 1, 20), (65, 40, 300)]
)
def test_any_layout_gives_the_same_bits(shape, dtype):
    arguments = problem(*shape, dtype)
    Y = fd.dense(*arguments[1:], activation="silu")
    grads = fd.dense_vjp(*arguments, activation="silu")
    for k in range(4):
        for label, view in layouts(arguments[k]):
            changed = [*arguments[:k], view, *arguments[k + 1 :]]
            assert same_bits(fd.dense(*changed[1:], activation="silu"), Y), label
            for a, e in zip(fd.dense_vjp(*changed, activation="silu"), grads, strict=True):
                assert same_bits(a, e), label
    for label, out in layouts(np.zeros_like(Y)):
        if label not in ("read-only", "byte-swapped"):
            assert fd.dense(*arguments[1:], activation="silu", out=out) is out and np.array_equal(
                out, Y
            ), label


@pytest.mark.parametrize("dtype", REALS)
def test_any_number_of_threads_gives_the_same_bits(dtype):
    dY, X, W, b = problem(3000, 8, 700, dtype)

    def call():
        Y, cache = fd.dense(X, W, b, activation="gelu", return_cache=True)
        return [
            Y,
            *fd.dense_vjp(dY, X, W, b, activation="gelu"),
            *fd.dense_vjp(dY, X, W, b, activation="gelu", cache=cache),
        ]

    for others in zip(*by_threads(call, 1, 2, 5), strict=True):
        assert all(same_bits(a, others[0]) for a in others)


def test_levels_agree():
    assert_levels_agree("""if True:
        import hashlib, numpy as np, fastderiv as fd
        rng = np.random.default_rng(0)
        for dtype in np.float32, np.float64:
            shapes = (90, 9), (9, 37), 37, (90, 37)
            X, W, b, dY = (rng.normal(size=s).astype(dtype) for s in shapes)
            for name in "sigmoid", "tanh", "relu", "softplus", "silu", "gelu":
                Y = fd.dense(3 * X, W, b, activation=name)
                for y in Y, *fd.dense_vjp(dY, 3 * X, W, b, activation=name):
                    print(hashlib.sha256(y.tobytes()).hexdigest(), np.abs(y).sum())
        """)


def test_a_row_does_not_hear_of_another():
    dY, X, W, b = problem(40, 5, 20)
    Y, dX = fd.dense(X, W, b, activation="gelu"), fd.dense_vjp(dY, X, W, b, activation="gelu").dX
    X[7], X[9, 2], dY[20, 3] = np.nan, np.inf, np.nan
    touched = np.isin(np.arange(40), (7, 9, 20))
    assert same_bits(
        fd.dense(X, W, b, activation="gelu")[~touched | (np.arange(40) == 20)],
        Y[~touched | (np.arange(40) == 20)],
    )
    assert same_bits(fd.dense_vjp(dY, X, W, b, activation="gelu").dX[~touched], dX[~touched])


def test_sum_over_many_rows_keeps_float32s_digits():
    """A running float32 sum of this many equal numbers would be wrong by one percent."""
    dY = np.full((300_001, 3), 0.1, np.float32)
    db = fd.dense_vjp(
        dY,
        np.zeros((300_001, 1), np.float32),
        np.zeros((1, 3), np.float32),
        np.zeros(3, np.float32),
    ).db
    assert error(db, np.full(3, 300_001 * np.float64(np.float32(0.1)))) < 1e-6


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "k, shape, text",
    [
        (1, (6,), r"X has shape \(6,\); expected \(K, n\)"),
        (1, (1, 6, 4), r"X has shape"),
        (2, (5, 3), r"W has shape \(5, 3\); expected \(n, m\) with n = 4"),
        (2, (4,), r"W has shape \(4,\); expected \(n, m\) with n = 4"),
        (3, (1,), r"b has shape \(1,\); expected \(m,\) = \(3,\)"),
        (3, (1, 3), r"b has shape"),
        (0, (6, 1), r"dY has shape \(6, 1\); expected \(K, m\) = \(6, 3\)"),
        (0, (3,), r"dY has shape"),
    ],
)
def test_shapes_that_do_not_fit_are_named(k, shape, text):
    arguments = problem()
    arguments[k] = np.zeros(shape)
    with pytest.raises(ValueError, match=text):
        fd.dense_vjp(*arguments)
    if k:
        with pytest.raises(ValueError, match=text):
            fd.dense(*arguments[1:])


def test_out_must_fit_and_be_of_its_own_memory():
    _, X, W, b = problem(5, 4, 4)
    for bad, kind, text in (
        (np.zeros((5, 3)), ValueError, r"out has shape \(5, 3\); expected \(5, 4\)"),
        (np.zeros((5, 4), np.float32), TypeError, "out has dtype"),
        (X, ValueError, "out shares memory with X"),
        ([[0.0]], TypeError, "out is a list"),
    ):
        with pytest.raises(kind, match=text):
            fd.dense(X, W, b, out=bad)
    square = np.zeros((8, 4))
    with pytest.raises(ValueError, match="out shares memory with W"):
        fd.dense(np.ones((4, 4)), square[:4], out=square[3:7])


def test_dtypes_mix_to_the_wider():
    dY, X, W, b = problem(dtype=np.float32)
    assert fd.dense(X, W.astype(float), b).dtype == np.float64
    assert {g.dtype for g in fd.dense_vjp(dY.astype(int), X, W, b)} == {np.dtype(np.float64)}
    assert {g.dtype for g in fd.dense_vjp(dY, X, W, b)} == {np.dtype(np.float32)}


def test_results_pickle():
    grads = fd.dense_vjp(*problem()[:3])
    again = pickle.loads(pickle.dumps(grads))
    assert (
        type(again) is fd.DenseGrads
        and again._fields == tuple(GRADIENTS)
        and again.db is None
        and same_bits(again.dW, grads.dW)
    )


def test_ctrl_c_is_answered_amid_products():
    X, W = np.ones((20_000, 3000), np.float32), np.ones((3000, 1500), np.float32)
    assert (
        seconds_until_answered(lambda: [fd.dense(X, W) for _ in range(20)], delay=0.2)
        < ALLOWED + 0.3
    )


def test_a_small_call_stays_small():
    """A call with its argument checks takes far less than a millisecond on any machine."""
    dY, X, W, b = problem(8, 4, 3, np.float32)
    fd.dense_vjp(dY, X, W, b, activation="tanh")
    times = []
    for _ in range(50):
        start = time.perf_counter()
        fd.dense_vjp(dY, X, W, b, activation="tanh")
        times.append(time.perf_counter() - start)
    assert min(times) < 5e-4
