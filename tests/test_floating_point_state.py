"""No result depends on the floating-point state of the thread that calls, nor on NumPy's.

Both are afterwards as before.  `CALLS` has every public function, on numbers whose results are
rounded, fall below the normal numbers or overflow.  Arguments are made beforehand: only the call
itself runs in another state.
"""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

import fastderiv as fd
from helpers.awkward import same_bits
from helpers.floating_point import AVAILABLE, STATES, in_state, word
from helpers.machines import by_threads

glibc = pytest.mark.skipif(not AVAILABLE, reason="needs glibc's fenv on x86-64 or AArch64")
RNG = np.random.default_rng(5)
F32, TINY = np.float32, 1e-310  # subnormal


def normal(*shape, dtype=np.float64, scale=1.0):
    return (RNG.normal(size=shape) * scale).astype(dtype)


def mixed(*shape):
    """Numbers of every magnitude, among them subnormal ones."""
    return RNG.normal(size=shape) * 10.0 ** RNG.integers(-318, 3, size=shape)


def scan_arguments(batch, channels, states, steps, dtype=np.float64):
    def of(*shape):
        return normal(*shape, dtype=dtype)

    return dict(
        u=of(batch, channels, steps),
        delta=of(batch, channels, steps),
        A=-np.exp(of(channels, states)),
        B=of(batch, states, steps),
        C=of(batch, states, steps),
        D=of(channels),
        z=of(batch, channels, steps),
        delta_bias=of(channels),
        delta_softplus=True,
        initial_state=of(batch, channels, states),
    )


def without(arguments, *names):
    return {name: value for name, value in arguments.items() if name not in names}


SCAN, SCAN32 = scan_arguments(2, 5, 3, 40), scan_arguments(1, 17, 4, 40, F32)
SIGNAL = np.cos(np.arange(900.0)).reshape(1, 150, 2, 3)  # x of an SSD scan
SSD = SIGNAL[:, ::-1], SIGNAL, SIGNAL[..., 0], -1 - SIGNAL[0, 0, :, 0] ** 2, *[SIGNAL[:, :, :1]] * 2
SSD_STEP = tuple(a if a.ndim == 1 else a[:, 0] for a in SSD[1:])
SSD32 = tuple(a.astype(F32) for a in SSD)
WIDE, WIDE32 = (scan_arguments(2, 96, 16, 400, dtype) for dtype in (np.float64, F32))
TAPS = normal(5, 4)
STEP = dict(
    x=normal(2, 5),
    dt=normal(2, 5),
    A=-np.exp(normal(5, 3)),
    B=normal(2, 3),
    C=normal(2, 3),
    D=normal(5),
    z=normal(2, 5),
)
LAYER = [normal(4, 4), normal(4), -np.exp(normal(4, 3)), normal(3, 4), normal(3, 4)]
NET = fd.SigmoidMLP([normal(2, 5), normal(5, 2)], [normal(5), normal(2)])
DEEP = fd.SigmoidMLP([normal(2, 4), normal(4, 3), normal(3, 2)], [normal(4), normal(3), normal(2)])
TINY_NET = fd.SigmoidMLP([[[1.0, 2.0]], [[1e308], [-1e308]]], [[0.0, 0.0], [1e-322]])
UNDER_WEIGHTS = (
    [[[1e-200, 1.0], [1.0, 1e-300]], [[1.0, 1e-310], [2.0, 1e-320]]],
    [[0.0, 0.0], [-0.5, 1e-310]],
)
ROOT_NET = fd.SigmoidMLP(
    [[[1.3, 2.1], [0.5, -0.7]], [[1.0, 0.0], [1.1, 0.0]]], [[0.1, 0.0], [-1.0, 0.0]]
)
START = fd.nearest_tie(ROOT_NET, [0.1, 0.2]).x
CELLS = [normal(6, 3, 4), normal(20, 4), normal(20, 5), normal(20), normal(20)]
STATE = (normal(3, 5), normal(3, 5))
GRID = [normal(3, 4, 6), normal(7, 6), normal(7, 7, scale=0.3), normal(7, 7, scale=0.3), normal(7)]
X, W, V, Y = normal(9, 6), normal(6, 4), normal(4), normal(9, 4)
SUMS, ROWS, LONG = normal(20), normal(50, 4), normal(40_000)
THETA, GRAD = normal(60), normal(60)
X2, OTHER, B5, SQUARE = normal(30, 2), normal(300), normal(7, 5), normal(7, 7)
WHOLE, MIXED, STATE32, SMALL = (
    RNG.integers(-(2**60), 2**60, (1, 17, 40)),
    mixed(1, 4, 40),
    normal(2, 5, 3, dtype=F32),
    mixed(2, 5),
)
FEW, LITTLE, LOTS, RATES = (
    np.full((1, 3), 1e-200),
    np.full((1, 1), -1e-200),
    mixed(9, 6),
    -np.exp(normal(50, 3)),
)
SIX, UNDER_LAYER, UNDER = (
    normal(12, 4),
    fd.S6([[1e-200]], [0.0], [[-1.0]], [[1.0]], [[1.0]]),
    np.full((12, 1), 1e-200),
)
SUBNORMAL, ROWS32, LONG32 = TINY * normal(9), ROWS.astype(F32), LONG.astype(F32)
FAR, NEAR, THETA32, FAINT = FEW - 300, OTHER[:9] / 9, THETA.astype(F32), GRAD * 1e-40


def updated(state, **arguments):
    state = state.copy()
    return fd.selective_state_update(state, **arguments), state


def stepped(theta, grad, alpha=0.1, beta=0.9):
    theta, p = theta.copy(), theta.copy()
    fd.momentum_step(theta, p, grad, alpha=alpha, beta=beta)
    return theta, p


def unstepped(theta, grad):
    theta, p = theta.copy(), theta.copy()
    fd.momentum_unstep(theta, p, lambda _: grad, alpha=0.1, beta=0.9)
    return theta, p


def reversed_momentum():
    momentum = fd.ReversibleMomentum(THETA, alpha=0.1, beta=0.9)
    for _ in range(30):
        momentum.step(GRAD)
    after = momentum.theta, momentum.p, momentum.information_bits
    for _ in range(30):
        momentum.unstep(lambda _: GRAD)
    return *after, momentum.theta, momentum.p


def s6_everything(layer=None, x=None):
    layer, x = layer or fd.S6(*LAYER), SIX if x is None else x
    return (
        layer(x, return_last_state=True),
        layer.step_sizes(x),
        layer.attention(x),
        layer.vjp(x, x),
        layer.transition_product(x, 1, 9),
        layer.transition_product(x, 1, 9, "subsets"),
    )


def network_everything(net):
    return net.logits(X2), net.forward(X2), net.margin(X2), net.margin_gradient(X2)


def sums_of_exponentials():
    s = fd.ExponentialSum.from_network(NET)
    return s.coefficients, s.frequencies(0), s.root_bound(0), s.log_evaluate(B5)


def layers(activation):
    return fd.dense(X, W, V, activation=activation), fd.dense_vjp(Y, X, W, V, activation=activation)


CALLS = {
    "selective_scan": lambda: fd.selective_scan(**SCAN, return_last_state=True),
    "selective_scan: float32": lambda: fd.selective_scan(**SCAN32, return_last_state=True),
    "selective_scan: converted": lambda: fd.selective_scan(**{**SCAN32, "u": WHOLE, "B": MIXED}),
    "selective_scan: threads": lambda: fd.selective_scan(**WIDE),
    "selective_scan: float32 and threads": lambda: fd.selective_scan(**WIDE32),
    "selective_scan_vjp": lambda: fd.selective_scan_vjp(SCAN["z"], **SCAN),
    "selective_scan_vjp: cache": lambda: fd.selective_scan_vjp(
        SCAN["z"], **SCAN, cache=fd.selective_scan(**SCAN, return_cache=True)[1]
    ),
    "selective_scan_vjp: float32": lambda: fd.selective_scan_vjp(SCAN32["z"], **SCAN32),
    "selective_scan_vjp: threads": lambda: fd.selective_scan_vjp(WIDE["z"], **WIDE),
    "selective_scan_vjp: float32 and threads": lambda: fd.selective_scan_vjp(WIDE32["z"], **WIDE32),
    "ssd_scan": lambda: fd.ssd_scan(*SSD[1:], D=SSD[3], z=SSD[1], return_last_state=True),
    "ssd_scan: float32": lambda: fd.ssd_scan(*SSD32[1:], dt_softplus=True),
    "ssd_state_update": lambda: fd.ssd_state_update(
        np.ones((*SSD[1][:, 0].shape, SSD[4].shape[-1])), *SSD_STEP
    ),
    "ssd_attention": lambda: fd.ssd_attention(*SSD[2:], dt_softplus=True),
    "ssd_chunk_summary": lambda: fd.ssd_chunk_summary(*SSD[1:5], dt_softplus=True),
    "linear_scan": lambda: [
        fd.linear_scan(0.5, SSD[1], axis=1),
        fd.linear_scan(SSD32[1], SSD32[1], axis=-1, reverse=True),
    ],
    "linear_scan_vjp": lambda: [
        fd.linear_scan_vjp(SSD[0], 0.5, SSD[1], axis=1),
        fd.linear_scan_vjp(SSD32[0], SSD32[1], SSD32[1], axis=-1, reverse=True),
    ],
    "ssd_scan_vjp": lambda: fd.ssd_scan_vjp(*SSD, D=SSD[3], z=SSD[1], dt_bias=SSD[3]),
    "ssd_scan_vjp: float32": lambda: fd.ssd_scan_vjp(*SSD32),
    "selective_state_update": lambda: updated(SCAN["initial_state"], **STEP),
    "selective_state_update: converted": lambda: updated(STATE32, **STEP),
    "selective_state_update: subnormal": lambda: updated(STATE32, **{**STEP, "x": SMALL}),
    "causal_conv1d": lambda: [
        fd.causal_conv1d(SCAN["u"], TAPS, SCAN["D"], "silu"),
        fd.causal_conv1d(SCAN32["u"], np.ones((17, 3), F32), SCAN32["D"], "silu"),
    ],
    "causal_conv1d_vjp": lambda: fd.causal_conv1d_vjp(
        SCAN["z"], SCAN["u"], TAPS, SCAN["D"], "silu"
    ),
    "causal_conv1d_update": lambda: fd.causal_conv1d_update(
        SCAN["u"], SCAN["initial_state"].copy(), TAPS, SCAN["D"], "silu"
    ),
    "chunk_summary": lambda: fd.chunk_summary(**without(SCAN, "C", "D", "z", "initial_state")),
    "chunk_summary: subnormal": lambda: fd.chunk_summary(np.ones((1, 3)), FEW, LITTLE, LITTLE),
    "combine_summaries": lambda: fd.combine_summaries((X, X), (LOTS, X)),
    "scan_attention": lambda: fd.scan_attention(**without(SCAN, "u", "D", "z", "initial_state")),
    "transition_product": lambda: [
        fd.transition_product(ROWS, RATES, method=m) for m in ("closed", "subsets")
    ],
    "transition_product: subnormal": lambda: fd.transition_product(FAR, LITTLE),
    "S6": s6_everything,
    "S6: subnormal": lambda: s6_everything(UNDER_LAYER, UNDER),
    "subset_sums": lambda: [
        fd.subset_sums(SUMS),
        fd.subset_sums(ROWS32),
        fd.subset_sums(SUBNORMAL),
    ],
    "iter_subset_sums": lambda: list(fd.iter_subset_sums(SUMS[:12], block=256)),
    "subset_logsumexp": lambda: [
        fd.subset_logsumexp(x, method=m)
        for x in (SUMS, ROWS, ROWS32)
        for m in ("closed", "enumerate")
    ],
    "subset_logsumexp: long": lambda: [
        fd.subset_logsumexp(LONG),
        fd.subset_logsumexp(LONG32),
        fd.subset_logsumexp(SUBNORMAL),
    ],
    "subset_logsumexp: progress": lambda: [
        fd.subset_logsumexp(SUMS, method="enumerate", progress=len_of),
        fd.subset_logsumexp(ROWS, progress=len_of),
    ],
    "SigmoidMLP": lambda: [network_everything(net) for net in (NET, DEEP)],
    "ExponentialSum": sums_of_exponentials,
    "solve_x1": lambda: fd.solve_x1(NET, OTHER),
    "solve_x1: deep": lambda: fd.solve_x1(DEEP, OTHER[:40]),
    "solve_x1: subnormal": lambda: [
        fd.solve_x1(TINY_NET, [[]]),
        fd.solve_x1(fd.SigmoidMLP(*UNDER_WEIGHTS), [0.0]),
    ],
    "solve_x1: bounds": lambda: fd.solve_x1(NET, OTHER[:30], bounds=(-3.7, 2.3)),
    "find_x1": lambda: [
        fd.find_x1(ROOT_NET, NEAR, (-50, 50), method=m).x
        for m in ("brentq", "toms748", "newton", "chandrupatla")
    ],
    "decision_intervals": lambda: fd.decision_intervals(NET, OTHER[:40], bounds=(-5.0, 5.0)),
    "counterfactuals": lambda: fd.counterfactuals(ROOT_NET, [0.5, 0.3]),
    "nearest_tie": lambda: fd.nearest_tie(ROOT_NET, [1.0, 1.0]),
    "tie_sensitivity": lambda: fd.tie_sensitivity(ROOT_NET, START),
    "trace_boundary": lambda: fd.trace_boundary(NET, ((-3, 3), (-3, 3))),
    "follow_boundary": lambda: fd.follow_boundary(ROOT_NET, START, 1.5),
    "dense": lambda: [
        layers(name)[0] for name in (None, "sigmoid", "tanh", "relu", "softplus", "silu", "gelu")
    ],
    "dense_vjp": lambda: [
        layers(name)[1] for name in (None, "sigmoid", "tanh", "relu", "softplus", "silu", "gelu")
    ],
    "lstm": lambda: fd.lstm(*CELLS, initial_state=STATE, lengths=[6, 0, 3]),
    "lstm_vjp": lambda: fd.lstm_vjp(
        CELLS[0][:, :, [0, 1, 2, 3, 0]], *CELLS, initial_state=STATE, dlast_state=STATE
    ),
    "lstm_state_adjoints": lambda: fd.lstm_state_adjoints(
        CELLS[0][:, :, [0, 1, 2, 3, 0]], *CELLS, initial_state=STATE
    ),
    "grid_rnn": lambda: [fd.grid_rnn(*GRID, activation=name) for name in ("tanh", "gelu")],
    "grid_rnn_vjp": lambda: fd.grid_rnn_vjp(GRID[0][..., [0, 1, 2, 3, 4, 5, 0]], *GRID),
    "momentum_step": lambda: stepped(THETA, GRAD),
    "momentum_step: converted": lambda: stepped(THETA32, FAINT),
    "momentum_unstep": lambda: unstepped(THETA, GRAD),
    "momentum_jacobian": lambda: fd.momentum_jacobian(SQUARE, alpha=0.1, beta=0.9),
    "ReversibleMomentum": reversed_momentum,
    "hypergradient": lambda: fd.hypergradient(
        np.copy, np.copy, lambda theta, v: v.copy(), THETA, n_steps=9, alpha=0.1, beta=0.9
    ),
}

FUNCTIONS = {
    name
    for name in fd.__all__
    if not (isinstance(getattr(fd, name), type) and hasattr(getattr(fd, name), "_fields"))
}
RESULTS = {
    "BoundaryCurves",
    "Counterfactuals",
    "Crossings",
    "DecisionIntervals",
    "NearestTie",
    "RootResults",
    "TieSensitivity",
}
CONFIGURATION = {"get_num_threads", "set_num_threads", "show_config"}


def len_of(done, total):
    """A progress callable that does nothing."""


def leaves(result):
    """All arrays and numbers of a result, whatever holds them."""
    if isinstance(result, (tuple, list)):
        return [leaf for item in result for leaf in leaves(item)]
    if isinstance(result, dict):
        return leaves(list(result.values()))
    if hasattr(result, "__dict__") and not isinstance(result, np.ndarray):
        return leaves(vars(result))
    slots = [name for name in getattr(type(result), "__slots__", ()) if name != "__weakref__"]
    return leaves([getattr(result, name) for name in slots]) if slots else [result]


def assert_same(got, expected):
    got, expected = leaves(got), leaves(expected)
    assert len(got) == len(expected) > 0
    for a, b in zip(got, expected, strict=True):
        assert same_bits(a, b), (a, b)


def test_every_function_is_here():
    assert {name.split(":")[0] for name in CALLS} == FUNCTIONS - RESULTS - CONFIGURATION


@glibc
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", CALLS)
def test_same_bits_in_every_state_which_is_left_as_it_was(name, state):
    call = CALLS[name]
    expected = call()
    for threads in 1, 3:
        before = fd.get_num_threads()
        fd.set_num_threads(threads)
        try:
            with in_state(state):
                found = word()
                got = call()
                left = word()
        finally:
            fd.set_num_threads(before)
        assert left == found
        assert_same(got, expected)


@glibc
@pytest.mark.parametrize("state", STATES)
def test_the_state_outlives_an_exception(state):
    with in_state(state):
        found = word()
        with pytest.raises(ValueError, match="expected"):
            fd.selective_scan_vjp(X, X, X, W, W, W)
        with pytest.raises(ZeroDivisionError):
            fd.subset_logsumexp(SUMS, method="enumerate", progress=lambda done, total: 1 // 0)
        left = word()
    assert left == found


BORN = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import fastderiv as fd
from helpers.floating_point import in_state
rng = np.random.default_rng(0)
u, delta, z = rng.normal(size=(3, 96, 400))
A, B = -rng.random((96, 16)), rng.normal(size=(1, 16, 400))
fd.set_num_threads(3)
with in_state(sys.argv[2]):
    out = fd.selective_scan(u, delta, A, B, B, z=z)
    results = out, *fd.selective_scan_vjp(u, u, delta, A, B, B, z=z)
print(hashlib.sha256(b"".join(r.tobytes() for r in results if r is not None)).hexdigest())
"""


@glibc
def test_threads_born_in_another_state():
    """Workers start with the register of the thread that starts them."""

    def result(state):
        command = [sys.executable, "-c", BORN, os.path.dirname(__file__), state]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=120
        ).stdout

    assert len({result(state) for state in ("nearest", "up", "flushed")}) == 1


@pytest.mark.parametrize("errors", ["raise", "warn", "call"])
@pytest.mark.parametrize("name", CALLS)
def test_numpys_error_state_does_not_come_through(name, errors):
    call = CALLS[name]
    expected = call()

    def seen(kind, flag):
        raise AssertionError(kind)

    with np.errstate(all=errors, call=seen), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = np.geterr()
        got = call()
        assert np.geterr() == found
    assert_same(got, expected)


def watched(states, function):
    """`function`, noting the state it is called in."""

    def watching(*arguments):
        states.append((word(), np.geterr()))
        return function(*arguments)

    return watching


CALLBACKS = {
    "dense": lambda f: fd.dense(X, W, activation=(f(np.copy), f(np.ones_like))),
    "dense_vjp": lambda f: fd.dense_vjp(Y, X, W, activation=(f(np.copy), f(np.ones_like))),
    "grid_rnn": lambda f: fd.grid_rnn(*GRID, activation=(f(np.copy), f(np.ones_like))),
    "grid_rnn_vjp": lambda f: fd.grid_rnn_vjp(
        GRID[0][..., [0, 1, 2, 3, 4, 5, 0]], *GRID, activation=(f(np.copy), f(np.ones_like))
    ),
    "momentum_unstep": lambda f: fd.momentum_unstep(
        THETA.copy(), GRAD.copy(), f(np.copy), alpha=0.1, beta=0.9
    ),
    "ReversibleMomentum.unstep": lambda f: undone(f(np.copy)),
    "hypergradient": lambda f: fd.hypergradient(
        f(np.copy), f(np.copy), f(lambda theta, v: v.copy()), THETA, n_steps=2, alpha=0.1, beta=0.9
    ),
    "iter_subset_sums": lambda f: list(fd.iter_subset_sums(SUMS[:4], progress=f(len_of))),
    "subset_logsumexp": lambda f: fd.subset_logsumexp(SUMS, method="enumerate", progress=f(len_of)),
    "subset_logsumexp: closed": lambda f: fd.subset_logsumexp(ROWS, progress=f(len_of)),
    "solve_x1": lambda f: fd.solve_x1(NET, OTHER, progress=f(len_of)),
}


def undone(grad_fn):
    momentum = fd.ReversibleMomentum(THETA, alpha=0.1, beta=0.9)
    momentum.step(GRAD)
    momentum.unstep(grad_fn)


@glibc
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_users_function_runs_in_the_users_state(name, state):
    seen = []
    with in_state(state), np.errstate(under="warn", over="raise"):
        expected = word(), np.geterr()
        CALLBACKS[name](lambda function: watched(seen, function))
    assert seen and all(one == expected for one in seen), (seen, expected)


@glibc
@pytest.mark.parametrize("state", STATES)
def test_a_generator_holds_no_state_between_its_items(state):
    blocks = fd.iter_subset_sums(SUMS[:6], block=16)
    expected = list(fd.iter_subset_sums(SUMS[:6], block=16))
    got = []
    for _ in expected:
        with in_state(state):
            found = word()
            got.append(next(blocks))
            assert word() == found
    assert_same(got, expected)


def test_number_of_threads_changes_nothing_here_either():
    for name, call in CALLS.items():
        if "threads" in name:
            assert_same(*by_threads(call, 1, 3))
