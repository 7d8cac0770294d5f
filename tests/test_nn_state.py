"""The rooms nn and optim in every floating-point state that a caller's thread may be in.

Results have the same bits, and the state is afterwards as it was.
"""

import ctypes
import platform
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest

import fastderiv as fd
from helpers.awkward import same_bits
from helpers.layers import CALLS, PAIR, RATES, arrays, call, rough
from helpers.machines import by_threads

LINUX = sys.platform == "linux" and platform.machine() == "x86_64"
needs_the_register = pytest.mark.skipif(
    not LINUX, reason="sets the control register of x86-64 by glibc"
)
MODES = {
    "down": 0x2000,
    "up": 0x4000,
    "to zero": 0x6000,
    "FTZ": 0x8000,
    "DAZ": 0x0040,
    "FTZ and DAZ, up": 0xC040,
}
DTYPES = [np.float32, np.float64]
libm = ctypes.CDLL("libm.so.6") if LINUX else None


def environment():
    """glibc's fenv_t, whose last word is MXCSR."""
    env = ctypes.create_string_buffer(32)
    libm.fegetenv(env)
    return env


def register():
    """The control bits of MXCSR."""
    return int.from_bytes(environment().raw[28:], "little") & 0xFFC0


@contextmanager
def state(bits):
    """The thread with these bits of MXCSR set, besides those that mask traps."""
    saved = environment()
    libm.fesetenv(
        ctypes.create_string_buffer(saved.raw[:28] + (0x1F80 | bits).to_bytes(4, "little"), 32)
    )
    try:
        yield
    finally:
        libm.fesetenv(saved)


def same(results, expected):
    return len(results) == len(expected) and all(map(same_bits, results, expected))


@needs_the_register
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_in_every_state(name, dtype):
    """Tiny numbers have subnormal products, and numbers of order 1 are rounded everywhere."""
    for scale in 1.0, float(np.finfo(dtype).smallest_normal) ** 0.5:
        if name.endswith("pair") or (name == "hypergradient" and scale != 1):
            continue  # callables run in the caller's state
        expected = call(name, arrays(name, dtype, scale))
        for mode, bits in MODES.items():
            if name in ("ReversibleMomentum", "hypergradient") and mode != "FTZ":
                continue  # their gradient functions do too; FTZ changes none of their numbers
            given = arrays(name, dtype, scale)
            with state(bits):
                results, after = call(name, given), register()
            assert same(results, expected) and after == (0x1F80 | bits), mode


@needs_the_register
@pytest.mark.parametrize("given", [np.float32, np.float64, np.int64])
def test_conversions_are_rounded_alike(given):
    """From float64 to a float32 state, of integers beyond 2**53, and to subnormal numbers."""
    grad = (
        np.array([1 / 3, 1e-40, -1e-46, 2.0**-149 * 1.5, 0.1])
        if given != np.int64
        else np.array([2**53 + 1, 2**62 + 3, -(2**55) - 3, 1, 0])
    )
    grad, alpha, beta = grad.astype(given), np.float32(0.3), np.float32(1e-40)

    def steps():
        theta, p = np.zeros((2, 5), np.float32)
        fd.momentum_step(theta, p, grad, alpha=alpha, beta=0.7)
        fd.momentum_unstep(theta, p, lambda _: grad, alpha=1e-40, beta=beta)
        return (
            theta,
            p,
            fd.dense(np.diag(grad), np.ones((5, 1))),
            fd.momentum_jacobian(np.diag(grad), alpha=1e-310, beta=5e-324),
        )

    expected = steps()
    for mode, bits in MODES.items():
        with state(bits):
            results = steps()
        assert same(results, expected), mode


@needs_the_register
def test_a_trajectory_comes_back_exactly_from_any_state():
    start = np.random.default_rng(0).normal(size=1000)
    for bits in MODES.values():
        with state(bits):
            momentum = fd.ReversibleMomentum(start, **RATES)
            first, beta = momentum.theta, momentum.beta
            for _ in range(300):
                momentum.step(rough(momentum.theta))
            for _ in range(300):
                momentum.unstep(rough)
            back = momentum.theta, momentum.p, momentum.information_bits
        assert (
            same_bits(first, np.rint(start * 2.0**44) / 2.0**44)
            and beta == round(0.9 * 2**16) / 2**16
        )
        assert same_bits(back[0], first) and not back[1].any() and back[2] == 0


@needs_the_register
def test_the_same_bits_on_several_threads():
    """The pool's threads may have been started in any state."""
    rng = np.random.default_rng(1)
    x, W, U, b = (
        rng.normal(size=(30, 48, 32)),
        rng.normal(size=(256, 32)) / 8,
        rng.normal(size=(256, 64)) / 12,
        rng.normal(size=256),
    )
    X, V, c = (
        rng.normal(size=(9000, 16)) * 1e-155,
        rng.normal(size=(16, 64)) * 1e-155,
        rng.normal(size=64) * 1e-308,
    )
    grid = [rng.normal(size=s) / 8 for s in ((8, 16, 16, 8), (32, 8), (32, 32), (32, 32), (32,))]
    theta, grad = rng.normal(size=300_000) * 1e-300, rng.normal(size=300_000) * 1e-300
    wide, dh = rng.normal(size=(2, 300_000)), rng.normal(size=(30, 48, 64))

    def calls():
        t, p = theta.copy(), np.zeros_like(theta)
        fd.momentum_step(t, p, grad, alpha=1e-10, beta=0.5)
        momentum = fd.ReversibleMomentum(wide, **RATES)
        momentum.step(wide)
        return (
            fd.lstm(x, W, U, b)[0],
            fd.lstm_vjp(dh, x, W, U, b).dweight_hh,
            fd.dense(X, V, c, activation="silu"),
            fd.grid_rnn(*grid),
            *fd.grid_rnn_vjp(fd.grid_rnn(*grid), *grid),
            t,
            p,
            momentum.theta,
        )

    expected = by_threads(calls, 1)[0]
    for bits in 0x4000, 0xC040:

        def inside(bits=bits):
            with state(bits):
                return calls()

        for results in by_threads(inside, 1, 3):
            assert same(results, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_numpys_error_state_never_surfaces(name, dtype):
    for scale in (
        1.0,
        float(np.finfo(dtype).smallest_normal) ** 0.5,
        float(np.finfo(dtype).max) ** 0.5,
    ):
        if (name.endswith("pair") or "omentum" in name or name == "hypergradient") and scale > 1:
            continue  # callables may raise, and fixed point has a range
        if (name.endswith("pair") or name in ("hypergradient", "ReversibleMomentum")) and scale < 1:
            continue
        expected = call(name, arrays(name, dtype, scale))
        given = arrays(name, dtype, scale)
        before = np.geterr()
        with np.errstate(all="raise"):
            results = call(name, given)
        assert same(results, expected) and np.geterr() == before
    quiet = arrays(name, dtype)
    with np.errstate(all="raise"):  # with a float64 array, so that there are conversions, too
        first = next(iter(quiet))
        quiet[first] = quiet[first].astype(
            np.float64 if name not in ("momentum_step", "momentum_unstep") else dtype
        )
        call(name, quiet)


def test_conversions_do_not_raise_what_numpy_would():
    """A user had set underflow to raise, and had a gradient of 1e-50 for float32 parameters."""
    theta, p = np.zeros((2, 3), np.float32)
    tiny = np.full(
        (2, 2), 1e-40, np.float32
    )  # made out here, since NumPy 2.0 raises for this conversion
    with np.errstate(all="raise"):
        fd.momentum_step(theta, p, np.full(3, 1e-50), alpha=0.1, beta=0.9)
        fd.momentum_step(theta, p, np.full(3, 1e300), alpha=0.1, beta=0.9)
        fd.momentum_unstep(theta, p, lambda _: np.full(3, 1e-50), alpha=1e-300, beta=1e300)
        fd.ReversibleMomentum([1e-310], alpha=5e-324, beta=0.5).step([1e-300])
        fd.momentum_jacobian(tiny, alpha=1e-300, beta=1e300)


class Watcher:
    """A callable that notes the states it is called in."""

    def __init__(self, function):
        self.function, self.seen = function, set()

    def __call__(self, *given):
        self.seen.add((register() if LINUX else 0, np.geterr()["under"], np.geterr()["divide"]))
        return self.function(*given)


def test_callbacks_run_in_their_callers_state():
    phi, slope = Watcher(np.sin), Watcher(np.cos)
    gradient, product = Watcher(lambda theta: 0.5 * theta), Watcher(lambda theta, v: 0.5 * v)
    theta, p = np.ones((2, 3))
    X, grid = np.ones((3, 2)), (np.ones((2, 2, 1)), *np.ones((3, 1, 1)))

    def calls():
        fd.dense(X, np.ones((2, 2)), activation=(phi, slope))
        fd.dense_vjp(np.ones((3, 2)), X, np.ones((2, 2)), activation=(phi, slope))
        fd.grid_rnn(*grid, activation=(phi, slope))
        fd.grid_rnn_vjp(np.ones((2, 2, 1)), *grid, activation=(phi, slope))
        fd.momentum_unstep(theta, p, gradient, **RATES)
        momentum = fd.ReversibleMomentum(theta, **RATES)
        momentum.step(theta)
        momentum.unstep(gradient)
        fd.hypergradient(gradient, gradient, product, theta, n_steps=2, **RATES)

    with np.errstate(under="call", divide="print"):
        if LINUX:
            with state(0xC040):
                calls()
        else:
            calls()
    for watcher in phi, slope, gradient, product:
        assert watcher.seen == {(0xDFC0 if LINUX else 0, "call", "print")}


@needs_the_register
def test_exceptions_leave_the_state_as_it_was():
    def fails(*_):
        raise KeyError

    theta = np.ones(3)
    failing = (
        lambda: fd.dense(np.ones((2, 2)), np.ones((2, 2)), activation=(fails, fails)),
        lambda: fd.grid_rnn(np.ones((2, 2, 1)), *np.ones((3, 1, 1)), activation=(fails, fails)),
        lambda: fd.momentum_unstep(theta, theta.copy(), fails, **RATES),
        lambda: fd.hypergradient(fails, fails, fails, theta, n_steps=1, **RATES),
    )
    for one in failing:
        with state(0xC040), np.errstate(under="print"):
            with pytest.raises(KeyError):
                one()
            after = register(), np.geterr()["under"]
        assert after == (0xDFC0, "print")


@needs_the_register
def test_a_thread_born_in_another_state_computes_the_same():
    a = arrays("lstm", np.float32)
    expected, results = call("lstm", a), []
    with state(0xC040):
        thread = threading.Thread(
            target=lambda: results.extend(call("lstm", a))
        )  # inherits the register
        thread.start()
        thread.join()
    assert same(results, expected)


def test_pairs_may_be_anything_callable():
    """One object for both, builtins and partials lack what functions have, such as a name."""
    assert same(flat_dense((np.sin, np.cos)), flat_dense(PAIR))


def flat_dense(pair):
    a = arrays("dense, None")
    return [fd.dense(a["X"], a["W"], a["b"], activation=pair)]
