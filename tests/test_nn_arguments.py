"""What callers may pass to the rooms nn and optim as arrays.

Among them are subclasses, masked arrays, views that overlap themselves, tensors, and callables that
are no callables.
"""

import numpy as np
import pytest

import fastderiv as fd
from fastderiv.nn import _dense, _grid, _lstm
from helpers.awkward import layouts, same_bits, snapshot
from helpers.layers import CALLS, IN_PLACE, RATES, arrays, call

EACH = [(name, argument) for name in CALLS for argument in CALLS[name][0]]


class Hostile(np.ndarray):
    """An array that answers every question wrongly; nothing that it says may reach a kernel."""

    shape = property(lambda self: (1, 1))
    strides = property(lambda self: (1 << 40,) * 2)
    ndim = property(lambda self: 1)
    size = property(lambda self: 10**9)
    dtype = property(lambda self: np.dtype(np.int8))
    flags = property(lambda self: None)
    T = property(lambda self: np.zeros(1))
    data = property(lambda self: None)

    def nothing(self, *args, **kwargs):
        return np.zeros(1)

    __getitem__ = __setitem__ = __len__ = __iter__ = reshape = ravel = transpose = astype = copy = (
        view
    ) = nothing
    __array_ufunc__ = __array_function__ = __array_wrap__ = tobytes = item = nothing
    __sub__ = __add__ = __mul__ = __eq__ = nothing

    def __array_finalize__(self, other):
        pass


class Named(np.ndarray):
    """A subclass that carries an attribute, as those of users do."""

    def __array_finalize__(self, other):
        self.name = getattr(other, "name", None)


def hostile(a):
    return np.ndarray.view(a, Hostile)


def results_with(name, argument, wrap):
    """What the call returns, and what it left in the argument, which is passed as `wrap(array)`."""
    given = arrays(name)
    base = given[argument]
    given[argument] = wrap(base)
    return [np.asarray(r) for r in call(name, given)], base


@pytest.mark.parametrize(
    "wrap",
    [
        hostile,
        lambda a: np.ndarray.view(a, Named),
        lambda a: np.asmatrix(a) if a.ndim == 2 else np.ndarray.view(a, np.recarray),
    ],
)
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize(("name", "argument"), EACH)
def test_subclasses_are_arrays_and_nothing_more(name, argument, wrap):
    if argument == "train_grad(theta)":
        return  # the test's own callback computes with it
    expected = call(name, arrays(name))
    results, left = results_with(name, argument, wrap)
    assert all(map(same_bits, results, expected))
    if argument not in IN_PLACE.get(name, ()):
        assert same_bits(left, arrays(name)[argument])
    else:
        assert same_bits(left, expected[IN_PLACE[name].index(argument)])


@pytest.mark.parametrize(("name", "argument"), EACH)
def test_masked_arrays_are_refused_by_name(name, argument):
    if argument == "train_grad(theta)":
        argument = "theta"
    given = arrays(name)
    before = snapshot(*given.values())
    given[argument] = np.ma.masked_array(
        given[argument], mask=np.zeros(given[argument].shape, bool)
    )
    with pytest.raises(
        TypeError,
        match=f"^{argument}".replace("(", r"\(")
        .replace(")", r"\)")
        .replace("[", r"\[")
        .replace("]", r"\]")
        + " is a masked array",
    ):
        call(name, given)
    if name in IN_PLACE:
        assert snapshot(*(np.asarray(a) for a in given.values())) == before


@pytest.mark.parametrize("name", [name for name in CALLS if name.endswith("pair")])
def test_results_of_callbacks_are_arrays_and_nothing_more(name):
    """Subclasses that callables return are taken as arrays, and masked arrays are refused."""
    a = arrays(name)
    masked = (lambda x: np.ma.masked_array(np.sin(x)),) * 2
    calls = {
        "dense, pair": lambda pair: fd.dense(a["X"], a["W"], a["b"], activation=pair),
        "dense_vjp, pair": lambda pair: (
            fd.dense_vjp(a["dY"], a["X"], a["W"], a["b"], activation=pair).dX
        ),
        "grid_rnn, pair": lambda pair: fd.grid_rnn(
            a["x"], a["W_in"], a["W_west"], a["W_north"], activation=pair
        ),
        "grid_rnn_vjp, pair": lambda pair: (
            fd.grid_rnn_vjp(
                a["dh"], a["x"], a["W_in"], a["W_west"], a["W_north"], activation=pair
            ).dx
        ),
    }
    with pytest.raises(TypeError, match=r"activation\[[01]\]\(x\) is a masked array"):
        calls[name](masked)
    plain = calls[name]((np.sin, np.cos))
    assert same_bits(
        calls[name]((lambda x: hostile(np.sin(x)), lambda x: hostile(np.cos(x)))), plain
    )


@pytest.mark.parametrize(("name", "argument"), EACH)
def test_every_layout_of_every_argument_gives_the_same_bits(name, argument):
    expected = call(name, arrays(name))
    for label, array in layouts(arrays(name)[argument]):
        given = arrays(name)
        given[argument] = array
        if argument in IN_PLACE.get(name, ()) and label == "read-only":
            with pytest.raises(ValueError, match=f"{argument} is read-only"):
                call(name, given)
            continue
        results = call(name, given)
        assert all(
            same_bits(np.asarray(r, e.dtype), e) for r, e in zip(results, expected, strict=True)
        ), label


@pytest.mark.parametrize(("name", "argument"), EACH)
def test_expanded_arguments_are_read_and_never_written(name, argument):
    given, one = arrays(name), np.array(0.25)
    shape = given[argument].shape
    given[argument] = np.full(shape, 0.25)
    expanded = {**given, argument: np.broadcast_to(one, shape)}
    if argument in IN_PLACE.get(name, ()):
        expanded[argument] = np.lib.stride_tricks.as_strided(
            one.reshape(1), shape, (0,) * len(shape)
        )
        with pytest.raises(ValueError, match=f"{argument} shares memory with itself"):
            call(name, expanded)
    else:
        assert all(map(same_bits, call(name, expanded), call(name, given)))
    assert one == 0.25


def test_out_is_a_base_array_to_the_kernels_and_itself_to_the_caller():
    a = arrays("dense, tanh")
    expected = fd.dense(a["X"], a["W"], a["b"], activation="tanh")
    for out in (
        np.ndarray.view(np.zeros((6, 3)), Named),
        hostile(np.zeros((6, 3))),
        hostile(np.zeros((3, 6)).T),
        hostile(np.zeros((12, 6))[::2, ::2]),
    ):
        assert fd.dense(a["X"], a["W"], a["b"], activation="tanh", out=out) is out
        assert same_bits(np.asarray(out).copy("C"), expected)
    with pytest.raises(TypeError, match="out is a masked array"):
        fd.dense(a["X"], a["W"], a["b"], out=np.ma.zeros((6, 3)))
    one = np.zeros(64)
    for strides in (
        (0, 8),
        (8, 0),
        (8, 8),
        (16, 8),
    ):  # rows that are the same row, or overlap the next one
        with pytest.raises(ValueError, match="out shares memory with itself"):
            fd.dense(
                a["X"], a["W"], a["b"], out=np.lib.stride_tricks.as_strided(one, (6, 3), strides)
            )
    assert not one.any()


@pytest.mark.parametrize("name", IN_PLACE)
def test_states_that_overlap_themselves_or_each_other_are_refused(name):
    memory = np.arange(64.0)

    def view(offset, *strides):
        return np.lib.stride_tricks.as_strided(memory[offset:], (3, 4), strides)

    for theta, p, text in (
        (view(0, 8, 8), view(30, 32, 8), "theta shares memory with itself"),
        (view(30, 32, 8), view(0, 24, 8), "p shares memory with itself"),
        (view(0, 32, 8), view(0, 32, 8), "theta shares memory with p"),
        (view(0, 32, 8), view(11, 32, 8), "theta shares memory with p"),
        (view(0, 64, 16), view(2, 64, 16), "theta shares memory with p"),
    ):
        other = next(k for k in CALLS[name][0] if k.startswith("grad"))
        with pytest.raises(ValueError, match=text):
            call(name, {"theta": theta, "p": p, other: np.ones((3, 4))})
    assert (memory == np.arange(64)).all()
    apart = {
        "theta": view(0, 64, 16),
        "p": view(1, 64, 16),
        other: np.ones((3, 4)),
    }  # these are interleaved, but have no element twice
    expected = call(name, {k: a.copy() for k, a in apart.items()})
    assert all(same_bits(a.copy(), e) for a, e in zip(call(name, apart), expected, strict=True))


@pytest.mark.parametrize(("name", "argument"), EACH)
def test_tensors_that_numpy_cannot_take_are_errors_with_the_arguments_name(name, argument):
    torch = pytest.importorskip("torch")
    if argument == "train_grad(theta)":
        return
    for tensor in (
        torch.nn.Parameter(torch.from_numpy(arrays(name)[argument])),
        torch.from_numpy(arrays(name)[argument]).requires_grad_(),
        torch.from_numpy(arrays(name)[argument]).to(torch.bfloat16),
        torch.empty(arrays(name)[argument].shape, device="meta"),
    ):
        given = arrays(name)
        given[argument] = tensor
        with pytest.raises((TypeError, ValueError)) as caught:
            call(name, given)
        assert str(caught.value).startswith(argument + " is")


NOT_CALLABLE = [0.5, None, "sin", np.ones(3), (np.sin, np.cos)]


@pytest.mark.parametrize("wrong", NOT_CALLABLE)
def test_callables_that_are_not_are_type_errors_with_a_name(wrong):
    theta, p = np.ones((2, 3))
    momentum = fd.ReversibleMomentum(theta, **RATES)
    momentum.step(theta)
    with pytest.raises(
        TypeError, match=f"^grad_fn is a {type(wrong).__name__}; expected a function"
    ):
        fd.momentum_unstep(theta, p, wrong, **RATES)
    with pytest.raises(
        TypeError, match=f"^grad_fn is a {type(wrong).__name__}; expected a function"
    ):
        momentum.unstep(wrong)
    for k, name in enumerate(("loss_grad", "train_grad", "train_hvp")):
        callbacks = [np.copy, np.copy, np.add]
        callbacks[k] = wrong
        with pytest.raises(
            TypeError, match=f"^{name} is a {type(wrong).__name__}; expected a function"
        ):
            fd.hypergradient(*callbacks, theta, n_steps=0, **RATES)
    for pair in (wrong, np.sin), (np.sin, wrong):
        for f in (
            fd.dense,
            lambda X, W, activation: fd.grid_rnn(X[None], W, W, W, activation=activation),
        ):
            with pytest.raises(
                TypeError, match=r"^activation is .*; expected None, 'sigmoid', .* or a pair"
            ):
                f(np.ones((2, 2)), np.ones((2, 2)), activation=pair)
    assert (theta == 1).all() and momentum.steps == 1


# ---- the kernels' door ---------------------------------------------------------------------------

CALLED = (
    *("dense, tanh", "dense_vjp, gelu", "dense_vjp, None", "dense_vjp, cache", "lstm", "lstm_vjp"),
    *("lstm_state_adjoints", "grid_rnn", "grid_rnn_vjp"),
)


class Recorder:
    """A kernel module that notes how it is called: (function, arguments by position or name)."""

    def __init__(self, kernels, calls):
        self.kernels, self.calls = kernels, calls

    def __getattr__(self, name):
        def function(*given, **named):
            self.calls.append((getattr(self.kernels, name), dict(enumerate(given)) | named))
            return getattr(self.kernels, name)(*given, **named)

        return function


def misfits(array):
    """Arrays that differ from `array` in their size, type or layout."""
    other = np.float32 if array.dtype == np.float64 else np.float64
    return array[:-1].copy(), array.astype(other), np.stack([array, array], -1)[..., 0]


@pytest.mark.parametrize("name", CALLED)
def test_kernels_refuse_arrays_that_do_not_fit(name, monkeypatch):
    """Whatever a mistake in Python code makes of the arrays, nothing beyond them is touched."""
    calls = []
    for module in (_dense, _grid, _lstm):
        recorders = {dtype: Recorder(one, calls) for dtype, one in module._kernels.items()}
        monkeypatch.setattr(module, "_kernels", recorders)
    call(name, arrays(name, np.float64))
    assert calls
    for function, given in calls:
        for key, value in given.items():
            if isinstance(value, np.ndarray):
                for wrong in misfits(value)[function.__name__ == "column_groups" :]:
                    changed = given | {key: wrong}
                    first = [changed.pop(k) for k in range(sum(isinstance(k, int) for k in given))]
                    with pytest.raises(ValueError, match="arrays of the wrong type, rank or size"):
                        function(*first, **changed)


# ---- sizes ---------------------------------------------------------------------------------------


def wide(*shape, dtype=np.float64):
    """An array of this shape that takes eight bytes."""
    return np.broadcast_to(np.zeros((), dtype), shape)


HUGE = 2**58
TOO_LARGE = {
    "dense: the result": lambda: fd.dense(wide(HUGE, 0), np.ones((0, 4))),
    "dense: X": lambda: fd.dense(wide(HUGE, 2), np.ones((2, 2))),
    "dense: W": lambda: fd.dense(np.ones((1, 1)), wide(1, HUGE)),
    "dense: rows and columns": lambda: fd.dense(wide(2**40, 0), wide(0, 2**40)),
    "dense_vjp": lambda: fd.dense_vjp(wide(HUGE, 2), wide(HUGE, 0), np.ones((0, 2))),
    "dense, cache": lambda: fd.dense(
        wide(2**45, 0), np.ones((0, 4)), activation="tanh", return_cache=True
    ),
    "lstm: T": lambda: fd.lstm(wide(HUGE, 1, 0), np.ones((8, 0)), np.ones((8, 2))),
    "lstm: B": lambda: fd.lstm(wide(0, HUGE, 1), np.ones((8, 1)), np.ones((8, 2))),
    "lstm: B, H = 0": lambda: fd.lstm(wide(0, HUGE, 1), np.ones((0, 1)), np.ones((0, 0))),
    "lstm: x": lambda: fd.lstm(wide(2**30, 2**28, 1), np.ones((4, 1)), np.ones((4, 1))),
    "lstm: D": lambda: fd.lstm(wide(0, 0, 2**56), wide(4, 2**56), np.ones((4, 1))),
    "lstm: H": lambda: fd.lstm(np.ones((1, 1, 1)), wide(2**22, 1), wide(2**22, 2**20)),
    "lstm, cache": lambda: fd.lstm(
        wide(2**40, 1, 0), np.ones((4, 0)), np.ones((4, 1)), return_cache=True
    ),
    "lstm_vjp": lambda: fd.lstm_vjp(
        wide(HUGE, 1, 2), wide(HUGE, 1, 0), np.ones((8, 0)), np.ones((8, 2))
    ),
    "lstm_state_adjoints": lambda: fd.lstm_state_adjoints(
        wide(HUGE, 1, 2), wide(HUGE, 1, 0), np.ones((8, 0)), np.ones((8, 2))
    ),
    "grid_rnn": lambda: fd.grid_rnn(
        wide(HUGE, 1, 0), np.ones((2, 0)), np.ones((2, 2)), np.ones((2, 2))
    ),
    "grid_rnn: D": lambda: fd.grid_rnn(
        wide(1, 1, HUGE), wide(1, HUGE), np.ones((1, 1)), np.ones((1, 1))
    ),
    "grid_rnn: H": lambda: fd.grid_rnn(
        np.ones((1, 1, 1)), wide(2**20, 1), wide(2**20, 2**20), wide(2**20, 2**20)
    ),
    "grid_rnn, pair": lambda: fd.grid_rnn(
        wide(HUGE, 1, 0), np.ones((2, 0)), *np.ones((2, 2, 2)), activation=(np.sin, np.cos)
    ),
    "grid_rnn_vjp": lambda: fd.grid_rnn_vjp(
        wide(HUGE, 1, 2), wide(HUGE, 1, 0), np.ones((2, 0)), np.ones((2, 2)), np.ones((2, 2))
    ),
    "momentum_jacobian": lambda: fd.momentum_jacobian(wide(2**29, 2**29), alpha=0.1, beta=0.5),
    "ReversibleMomentum": lambda: fd.ReversibleMomentum(wide(HUGE), alpha=0.1, beta=0.5),
    "hypergradient": lambda: fd.hypergradient(
        np.copy, np.copy, np.add, wide(HUGE), n_steps=1, alpha=0.1, beta=0.5
    ),
}


@pytest.mark.parametrize("what", TOO_LARGE)
def test_sizes_that_no_memory_has_are_memory_errors_that_say_how_many_bytes(what):
    with pytest.raises(MemoryError, match=r"\d bytes|\d Ei?B|\d [TP]i?B"):
        TOO_LARGE[what]()


def test_empty_axes_beside_huge_ones_have_an_answer_at_once():
    """No loop runs over the rows of an array that has no elements."""
    assert fd.dense(wide(HUGE, 0), np.ones((0, 0)), activation="tanh").shape == (HUGE, 0)
    assert fd.dense(np.ones((0, 5)), wide(5, 0)).shape == (0, 0)
    dX, dW, db = fd.dense_vjp(
        wide(HUGE, 0), wide(HUGE, 0), np.ones((0, 0)), np.ones(0), activation="gelu"
    )
    assert dX.shape == (HUGE, 0) and dW.shape == (0, 0) and db.shape == (0,)
