"""Momentum forwards and backwards, and hypergradients: derivations §4.5 to §4.9.

They are compared with the reference, in fixed point bit by bit, and with PyTorch.
"""

import copy
import math
import pickle
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference
from fastderiv._core.dispatch import kernels
from helpers.awkward import error, layouts, overlapping_views, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads, run_at_level

DTYPES = [np.float32, np.float64]
RATES = {"alpha": 0.1, "beta": 0.9}
SIZES = [0, 1, 3, 7, 8, 9, 64, 1000]
EDGE = 2.0**18  # of the fixed-point range


def random(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def bumpy(theta):
    """The gradient of a loss with many minima, none of them at 0."""
    return np.sin(3 * theta - 1) + 0.1 * theta


def state(momentum):
    """Everything that a step changes."""
    return momentum.theta.tobytes(), momentum.p.tobytes(), momentum.information_bits, momentum.steps


# ---- in floating point -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (5,), (17,), (3, 0), (4, 5), (2, 3, 7), (3000, 7)]
)
def test_steps_and_unsteps_are_those_of_the_reference(shape, dtype):
    theta, p, grad = (
        random(*shape, seed=s, dtype=dtype) if shape else np.array(s + 0.5, dtype) for s in range(3)
    )
    ours, theirs = [theta.copy(), p.copy()], [theta.astype(float), p.astype(float)]
    tolerance = 5e-7 if dtype == np.float32 else 1e-15
    assert fd.momentum_step(*ours, grad, **RATES) is None
    reference.momentum_step(*theirs, grad, **RATES)
    assert all(
        error(a, b) <= tolerance and a.dtype == dtype for a, b in zip(ours, theirs, strict=True)
    )
    assert fd.momentum_unstep(*ours, lambda _: grad, **RATES) is None
    reference.momentum_unstep(*theirs, lambda _: grad, **RATES)
    assert all(
        error(a, b) <= 3 * tolerance and a.dtype == dtype for a, b in zip(ours, theirs, strict=True)
    )
    assert all(error(a, b) <= 3 * tolerance for a, b in zip(ours, (theta, p), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37,), (5, 9), (3, 4, 11), (2, 1100)])
@pytest.mark.parametrize("back", [False, True])
def test_every_layout_gives_the_same_bits(shape, dtype, back):
    values = [random(*shape, seed=s, dtype=dtype) for s in range(3)]

    def run(theta, p, grad):
        if back:
            fd.momentum_unstep(theta, p, lambda _: grad, **RATES)
        else:
            fd.momentum_step(theta, p, grad, **RATES)
        return np.array(theta, dtype), np.array(p, dtype)

    expected = run(values[0].copy(), values[1].copy(), values[2])
    for k in range(3):
        for label, array in layouts(values[k]):
            if k < 2 and label == "read-only":
                continue
            given = [a.copy() if j != k else array for j, a in enumerate(values)]
            given[k] = array.copy() if array is values[k] else array
            kept, before = given[k].dtype, snapshot(given[2])
            assert all(map(same_bits, run(*given), expected)), (k, label)
            assert given[k].dtype == kept and snapshot(given[2]) == before
    turned = [np.asfortranarray(a) for a in values]
    assert all(map(same_bits, run(*turned), expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bits(dtype):
    values = [random(100_003, seed=s, dtype=dtype) for s in range(3)]

    def run():
        theta, p = values[0].copy(), values[1].copy()
        for _ in range(3):
            fd.momentum_step(theta, p, values[2], **RATES)
        fd.momentum_unstep(theta, p, lambda _: values[2], **RATES)
        return theta, p

    first, *others = by_threads(run, 1, 2, 5)
    assert all(all(map(same_bits, first, other)) for other in others)


def test_what_is_not_finite_stays_in_its_place():
    theta, p, grad = np.ones(20), np.ones(20), np.ones(20)
    theta[2], p[7], grad[13] = np.inf, -np.inf, np.nan
    fd.momentum_step(theta, p, grad, **RATES)
    assert np.flatnonzero(~np.isfinite(theta)).tolist() == [2, 7, 13]
    assert np.flatnonzero(~np.isfinite(p)).tolist() == [7, 13]
    fd.momentum_unstep(theta, p, lambda _: np.ones(20), **RATES)
    assert np.flatnonzero(~np.isfinite(theta)).tolist() == [2, 7, 13]


def test_the_gradient_may_be_of_any_dtype_and_is_computed_with_in_that_of_theta():
    for grad in [1, 2, 3], np.array([1, 2, 3], np.int16), np.array([1, 2, 3.0]):
        theta, p = np.zeros((2, 3), np.float32)
        fd.momentum_step(theta, p, grad, **RATES)
        assert theta.dtype == np.float32 and same_bits(
            theta, np.float32(-0.1) * np.float32([1, 2, 3])
        )


def test_any_finite_decay_is_a_step_and_all_but_zero_an_unstep():
    for beta in -1.5, 0, 1, 2.0, np.float32(0.5), np.array(3):
        theta, p = random(2, 5)
        expected = reference_step(theta, p, beta)
        fd.momentum_step(theta, p, np.ones(5), alpha=0.5, beta=beta)
        np.testing.assert_allclose([theta, p], expected, rtol=1e-15)
    for dtype, beta in (np.float64, 0), (np.float64, -0.0), (np.float32, 1e-60):
        theta, p = random(2, 5, dtype=dtype)
        before = snapshot(theta, p)
        with pytest.raises(
            ValueError, match=r"^beta is .*; a step that forgets the momentum has no inverse$"
        ):
            fd.momentum_unstep(theta, p, np.sin, alpha=0.5, beta=beta)
        assert snapshot(theta, p) == before


def reference_step(theta, p, beta):
    theta, p = theta.copy(), p.copy()
    reference.momentum_step(theta, p, np.ones(5), alpha=0.5, beta=float(beta))
    return theta, p


def test_grad_fn_is_given_an_array_of_its_own():
    theta, p = random(2, 30)
    given = []

    def spoil(x):
        given.append(x.copy())
        x[:] = np.nan
        return np.ones(30)

    expected = theta - p
    fd.momentum_unstep(theta, p, spoil, **RATES)
    assert np.array_equal(given[0], expected) and np.array_equal(theta, expected)
    theta, p = random(2, 30)
    before = theta - p
    expected = (p + RATES["alpha"] * theta) / RATES["beta"]
    fd.momentum_unstep(
        theta, p, lambda _: theta, **RATES
    )  # it returns an array that is about to be overwritten
    assert np.array_equal(theta, before) and error(p, expected) < 1e-15


BAD_STATES = [
    (
        [1.0, 2.0],
        np.zeros(2),
        TypeError,
        r"^theta is a list; expected a NumPy array, which is updated in place$",
    ),
    (
        np.zeros(2, int),
        np.zeros(2),
        TypeError,
        r"^theta has dtype int64; expected float32 or float64$",
    ),
    (
        np.zeros(2),
        np.zeros(2, np.float16),
        TypeError,
        r"^p has dtype float16; expected float32 or float64$",
    ),
    (
        np.zeros(2),
        np.zeros(2, np.float32),
        TypeError,
        r"^p has dtype float32; expected that of theta, float64$",
    ),
    (np.zeros(2), np.zeros(3), ValueError, r"^p has shape \(3,\); expected that of theta, \(2,\)$"),
    (np.zeros(2), np.broadcast_to(0.0, 2), ValueError, r"^p is read-only; it is updated in place$"),
]


@pytest.mark.parametrize(("theta", "p", "exception", "message"), BAD_STATES)
def test_what_cannot_be_updated_in_place_is_named(theta, p, exception, message):
    with pytest.raises(exception, match=message):
        fd.momentum_step(theta, p, np.zeros(2), **RATES)
    with pytest.raises(exception, match=message):
        fd.momentum_unstep(theta, p, np.zeros_like, **RATES)


@pytest.mark.parametrize(
    "grad", [np.zeros(3), [[1.0, 2.0]], 1.0, "word", [True, False], None, [1j, 0], [[1], [1, 2]]]
)
def test_a_bad_gradient_leaves_everything_as_it_was(grad):
    theta, p = random(2, 2)
    momentum = fd.ReversibleMomentum(theta, **RATES)
    momentum.step([1.0, 2.0])
    before, held = snapshot(theta, p), state(momentum)
    for name, call in {
        "grad": lambda: fd.momentum_step(theta, p, grad, **RATES),
        r"grad_fn\(theta\)": lambda: fd.momentum_unstep(theta, p, lambda _: grad, **RATES),
    }.items():
        with pytest.raises((ValueError, TypeError), match=f"^{name} (has|is)"):
            call()
    for name, call in {
        "grad": lambda: momentum.step(grad),
        r"grad_fn\(theta\)": lambda: momentum.unstep(lambda _: grad),
    }.items():
        with pytest.raises((ValueError, TypeError), match=f"^{name} (has|is)"):
            call()
    assert snapshot(theta, p) == before and state(momentum) == held


@pytest.mark.parametrize("rate", [np.nan, np.inf, -np.inf])
def test_rates_that_are_not_finite_are_refused(rate):
    for name in "alpha", "beta":
        rates = RATES | {name: rate}
        for call in (
            lambda rates=rates: fd.momentum_step(np.zeros(2), np.zeros(2), np.zeros(2), **rates),
            lambda rates=rates: fd.momentum_unstep(np.zeros(2), np.zeros(2), np.sin, **rates),
            lambda rates=rates: fd.momentum_jacobian(np.eye(2), **rates),
            lambda rates=rates: fd.ReversibleMomentum(np.zeros(2), **rates),
            lambda rates=rates: fd.hypergradient(
                np.sin, np.sin, np.multiply, np.zeros(2), n_steps=1, **rates
            ),
        ):
            with pytest.raises(ValueError, match=f"^{name} is {rate}; expected a finite number$"):
                call()
    with pytest.raises(TypeError, match=r"^alpha is 'fast'; expected a number$"):
        fd.momentum_step(np.zeros(2), np.zeros(2), np.zeros(2), alpha="fast", beta=0.9)


def test_shared_memory_is_refused_and_interleaved_views_are_not():
    x = np.zeros(9)
    pairs = [(a, b, shared) for a, b, shared in overlapping_views() if a.shape == b.shape]
    for a, b, shared in [
        *pairs,
        (x[1:], x[:-1], True),
        (x, x[::-1], True),
        (x, x, True),
        (x[:8:2], x[1::2], False),
    ]:
        for arguments in (
            (a, b, np.zeros(a.shape)),
            (a, np.zeros(a.shape), b),
            (np.zeros(a.shape), a, b),
        ):
            if shared:
                with pytest.raises(ValueError, match="shares memory with"):
                    fd.momentum_step(*arguments, **RATES)
            else:
                fd.momentum_step(*arguments, **RATES)


def test_what_grad_fn_has_made_of_the_arrays_is_checked_again():
    def lock():
        theta.flags.writeable = False

    def shorten():
        p.resize(2, refcheck=False)

    def reshape():
        theta.resize((3, 1), refcheck=False)  # the same memory: assigning to .shape is deprecated

    for change, message in (
        (lock, "theta is read-only"),
        (shorten, r"p has shape \(2,\)"),
        (reshape, r"p has shape \(3,\)"),
    ):
        theta, p = np.zeros(3), np.ones(3)
        with pytest.raises(ValueError, match=message):
            fd.momentum_unstep(
                theta, p, lambda x, change=change: (change(), np.zeros(3))[1], **RATES
            )
        assert not theta.any() and p.all()


def test_an_exception_of_grad_fn_passes_through_and_nothing_has_changed():
    theta, p = random(2, 9)
    momentum = fd.ReversibleMomentum(theta, **RATES)
    momentum.step(p)
    before, held = snapshot(theta, p), state(momentum)
    for stop in KeyError("mine"), KeyboardInterrupt():

        def grad_fn(x, stop=stop):
            x[:] = 5
            raise stop

        with pytest.raises(type(stop)):
            fd.momentum_unstep(theta, p, grad_fn, **RATES)
        with pytest.raises(type(stop)):
            momentum.unstep(grad_fn)
    assert snapshot(theta, p) == before and state(momentum) == held


# ---- the Jacobian ------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [0, 1, 2, 7])
def test_jacobian_is_that_of_the_step_by_complex_differences(D):
    """With F(θ) = Σ cos(A θ), whose Hessian is −Aᵀ diag(cos(A θ)) A.

    A step of 1e-30j makes an error far below that of rounding.
    """
    A, theta, p = random(D, D), random(D, seed=1), random(D, seed=2)
    J = fd.momentum_jacobian(-A.T @ (np.cos(A @ theta)[:, None] * A), **RATES)

    def step(s):
        p = RATES["beta"] * s[D:] - RATES["alpha"] * (-A.T @ np.sin(A @ s[:D]))
        return np.concatenate([s[:D] + p, p])

    s = np.concatenate([theta, p]).astype(complex)
    columns = [step(s + 1e-30j * e).imag / 1e-30 for e in np.eye(2 * D)]
    assert J.shape == (2 * D, 2 * D)
    if D:
        assert error(J, np.stack(columns, 1)) < 1e-14
    assert np.isclose(np.linalg.det(J), RATES["beta"] ** D, rtol=1e-12)
    assert (
        error(J, reference.momentum_jacobian(-A.T @ (np.cos(A @ theta)[:, None] * A), **RATES))
        < 1e-15
    )


def test_jacobian_checks_its_argument():
    assert fd.momentum_jacobian(np.eye(2, dtype=np.float32), **RATES).dtype == np.float32
    assert np.isnan(fd.momentum_jacobian([[np.inf]], alpha=0.0, beta=0.5)[0, 0])
    for bad in np.zeros(3), np.zeros((2, 3)), np.zeros((2, 2, 2)), 1.0:
        with pytest.raises(ValueError, match=r"^hessian has shape \(.*\); expected \(D, D\)$"):
            fd.momentum_jacobian(bad, **RATES)


# ---- bit for bit -------------------------------------------------------------------------------

gradients = st.lists(st.floats(-1e3, 1e3), min_size=5, max_size=5)


@settings(max_examples=100, deadline=None)
@given(
    gradients=st.lists(gradients, max_size=40),
    theta=st.lists(st.floats(-1e4, 1e4), min_size=5, max_size=5),
    alpha=st.floats(-10, 10),
    n=st.integers(1, 2**16 - 1),
)
def test_steps_are_undone_to_the_bit_and_are_those_of_the_reference(gradients, theta, alpha, n):
    ours, theirs = (
        kind(theta, alpha=alpha, beta=n / 2**16)
        for kind in (fd.ReversibleMomentum, reference.ReversibleMomentum)
    )
    trail = []
    for g in gradients:
        trail.append(state(ours))
        ours.step(g)
        theirs.step(g)
        assert state(ours) == state(theirs)
    for g in reversed(gradients):
        ours.unstep(lambda _, g=g: g)
        theirs.unstep(lambda _, g=g: g)
        assert state(ours) == state(theirs) == trail.pop()


@pytest.mark.parametrize("beta", [2**-16, 0.01, 0.3, 0.5, 0.9, 0.999, 1 - 2**-16])
@pytest.mark.parametrize("size", SIZES)
def test_many_steps_are_those_of_the_reference_and_come_back(beta, size):
    """There are several spills at ordinary decays.  The reference takes a few of the parameters."""
    theta, steps = random(size), 400
    ours, theirs = (
        fd.ReversibleMomentum(theta, alpha=0.05, beta=beta),
        reference.ReversibleMomentum(theta[:3], alpha=0.05, beta=beta),
    )
    start = state(ours)
    for _ in range(steps):
        ours.step(bumpy(ours.theta))
        theirs.step(bumpy(theirs.theta))
    assert same_bits(ours.theta[:3], theirs.theta) and same_bits(ours.p[:3], theirs.p)
    if size <= 3:
        assert ours.information_bits == theirs.information_bits
    for _ in range(steps):
        ours.unstep(bumpy)
    assert state(ours) == start


def test_the_order_of_steps_and_unsteps_is_free():
    momentum, rng = fd.ReversibleMomentum(random(50), **RATES), np.random.default_rng(0)
    trail = [state(momentum)]
    for forwards in rng.random(3000) < 0.55:
        if forwards:
            momentum.step(bumpy(momentum.theta))
            trail.append(state(momentum))
        elif len(trail) > 1:
            momentum.unstep(bumpy)
            trail.pop()
        assert state(momentum) == trail[-1]
    assert momentum.steps > 200


def test_float_steps_backwards_diverge_where_fixed_point_ones_do_not():
    """This is why fixed point is needed.

    With noise in the gradients, as in training, an error of 1e-16 grows by β**-½ or more a step.
    """
    theta, p, steps = random(20), np.zeros(20), 1200
    momentum = fd.ReversibleMomentum(theta, **RATES)
    start, noise = momentum.theta, random(steps, 20, seed=1)
    np.testing.assert_allclose(start, theta, atol=2**-45, rtol=0)
    for t in range(steps):
        fd.momentum_step(theta, p, theta + noise[t], alpha=0.1, beta=momentum.beta)
        momentum.step(momentum.theta + noise[t])
    np.testing.assert_allclose(theta, momentum.theta, atol=1e-10)
    for t in reversed(range(steps)):
        fd.momentum_unstep(theta, p, lambda x, t=t: x + noise[t], alpha=0.1, beta=momentum.beta)
        momentum.unstep(lambda x, t=t: x + noise[t])
    assert abs(theta - start).min() > 1e3
    assert (
        same_bits(momentum.theta, start) and not momentum.p.any() and momentum.information_bits == 0
    )


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99])
def test_information_grows_by_the_bits_that_beta_discards(beta):
    """By log2(1/β) a step beyond a constant, and so does the memory of the stack.

    No buffer outgrows the range in which quotients are exact.
    """
    size, at = 500, []
    momentum = fd.ReversibleMomentum(random(size), alpha=0.1, beta=beta)
    for _ in range(3):
        for _ in range(1500):
            momentum.step(bumpy(momentum.theta))
        at.append(momentum.information_bits / size)
        buffers, words = momentum._state[2].view(float), sum(w.nbytes for w in momentum._stack)
        assert (
            buffers.max() < 2**50
            and np.array_equal(buffers, np.rint(buffers))
            and buffers.min() >= 0
        )
        assert 8 * words <= at[-1] * (size + 8) <= 8 * words + 50 * (size + 8)
    bits = -math.log2(momentum.beta)
    assert at[-1] < 35 + 1.01 * 4500 * bits
    assert 3000 * bits - 20 < at[2] - at[0] < 1.05 * 3000 * bits + 20


@pytest.mark.parametrize("n", [1, 2, 3, 255, 4096, 30000, 58982, 65000, 65471, 65534, 65535])
def test_no_buffer_can_outgrow_its_bound(n):
    """Under the schedule of spills the exact bound ⌈B/n⌉·d, in integers, stays below 2**50.4.

    Up to there quotients are exact.
    """
    momentum, bound = fd.ReversibleMomentum(0.0, alpha=0.0, beta=n / 2**16), 2**34
    schedule = reference.ReversibleMomentum(0.0, alpha=0.0, beta=n / 2**16)
    steps = min(20_000, 5 + int(400 / -math.log2(n / 2**16)))
    for t in range(1, steps):
        spills = momentum._spills(t) - momentum._spills(t - 1)
        assert spills in (0, 1) and spills == schedule._spills(t) - schedule._spills(t - 1)
        bound = -(-bound // n) * (1 if spills else 2**16)
        assert bound < 2**50.4


def test_p_becomes_beta_p_within_one_unit():
    beta, size = 58982 / 2**16, 1000
    momentum = fd.ReversibleMomentum(np.zeros(size), alpha=1.0, beta=beta)
    momentum.step(random(size) * 1e3)
    for _ in range(100):
        before = momentum._state[1].copy()
        momentum.step(np.zeros(size))
        exact = [int(b) * 58982 for b in before]
        assert all(
            abs(int(a) * 2**16 - e) < 2**16 for a, e in zip(momentum._state[1], exact, strict=True)
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_of_any_layout_and_dtype_give_the_same_bits(dtype):
    theta, grad = random(5, 13), random(5, 13, seed=1, dtype=dtype)

    def run(theta, grad):
        momentum = fd.ReversibleMomentum(theta, **RATES)
        momentum.step(grad)
        momentum.unstep(lambda _: grad)
        momentum.step(grad)
        return momentum.theta, momentum.p

    expected = run(theta, grad.astype(float))
    assert expected[0].shape == (5, 13) and expected[0].flags.c_contiguous
    for _, array in layouts(grad):
        before = snapshot(array)
        assert all(map(same_bits, run(theta, array), expected))
        assert snapshot(array) == before
    for _, array in layouts(theta):
        assert all(map(same_bits, run(array, grad), expected))
    assert all(map(same_bits, run(theta, grad.tolist()), expected))


def test_the_same_bits_for_any_number_of_threads():
    theta, grad = random(200_003), random(200_003, seed=1)

    def run():
        momentum = fd.ReversibleMomentum(theta, **RATES)
        for _ in range(107):  # the buffers spill at step 211 of 0.9, and at every 17th of 0.5
            momentum.step(grad)
        return momentum.theta, momentum.p, momentum.information_bits

    first, *others = by_threads(run, 1, 2, 7)
    assert all(all(map(same_bits, first, other)) for other in others)


LEVEL_SCRIPT = """
import hashlib
import numpy as np, fastderiv as fd

for dtype in np.float32, np.float64:
    theta, p, grad = np.random.default_rng(0).normal(size=(3, 1003)).astype(dtype)
    for _ in range(5):
        fd.momentum_step(theta, p, grad, alpha=0.1, beta=0.9)
    fd.momentum_unstep(theta, p, lambda _: grad, alpha=0.1, beta=0.9)
    print(hashlib.sha256(theta.tobytes() + p.tobytes()).hexdigest(), theta.sum(), end=" ")
"""
EXACT_SCRIPT = """
import hashlib
import numpy as np, fastderiv as fd

for beta in 0.5, 0.9, 0.999:
    theta = np.random.default_rng(0).normal(size=1003)
    momentum = fd.ReversibleMomentum(theta, alpha=0.1, beta=beta)
    for _ in range(300):
        momentum.step(np.round(momentum.theta, 2).astype(np.float32))
        momentum.step(np.round(momentum.theta, 2))
    for _ in range(20):
        momentum.unstep(lambda theta: np.round(theta, 2))
        momentum.unstep(lambda theta: np.round(theta, 2).astype(np.float32))
    both = momentum.theta.tobytes() + momentum.p.tobytes()
    print(hashlib.sha256(both).hexdigest(), momentum.information_bits)
"""


def test_cpu_levels_agree():
    assert_levels_agree(LEVEL_SCRIPT)


def test_fixed_point_is_the_same_bits_on_every_cpu_level():
    assert (
        len(
            {
                run_at_level(level, EXACT_SCRIPT)
                for level in fd.show_config()["CPU levels supported"]
            }
        )
        == 1
    )


def out_of_band(momentum):
    """A copy by pickle whose arrays view memory of another owner, as between processes."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(momentum, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(b) for b in buffers])


@pytest.mark.parametrize(
    "make", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), out_of_band]
)
def test_copies_go_their_own_way(make):
    momentum = fd.ReversibleMomentum(random(3, 4), **RATES)
    for _ in range(250):
        momentum.step(bumpy(momentum.theta))
    held, other = state(momentum), make(momentum)
    assert state(other) == held and repr(other) == repr(momentum)
    for _ in range(250):
        other.unstep(bumpy)
    assert state(momentum) == held and np.allclose(other.theta, random(3, 4), atol=1e-12, rtol=0)
    assert other.information_bits == 0 and (other.alpha, other.beta) == (
        momentum.alpha,
        momentum.beta,
    )


def test_pickled_buffers_are_snapshots_that_nothing_writes_to():
    momentum = fd.ReversibleMomentum(random(3, 4), **RATES)
    for _ in range(110):  # one spill
        momentum.step(bumpy(momentum.theta))
    held, buffers = state(momentum), []
    data = pickle.dumps(momentum, protocol=5, buffer_callback=buffers.append)
    momentum.step(bumpy(momentum.theta))
    kept = [bytes(b) for b in buffers]
    whole = [bytes(bytearray(b)) for b in kept]
    one, two = pickle.loads(data, buffers=kept), pickle.loads(data, buffers=kept)
    assert state(one) == state(two) == held
    one.step(bumpy(one.theta))
    assert state(two) == held and kept == whole


# ---- a state that comes from outside -----------------------------------------------------------


def long_run(size=13, steps=230, beta=0.9):
    """A run with two spills."""
    momentum = fd.ReversibleMomentum(random(size), alpha=0.1, beta=beta)
    for _ in range(steps):
        momentum.step(bumpy(momentum.theta))
    return momentum


def set_parts(target, momentum, changed):
    """Give `target` momentum's state with some of its seven parts, by name, replaced."""
    names = "alpha", "n", "rate", "shape", "numbers", "count", "stack"
    parts = dict(zip(names, momentum.__getstate__(), strict=True))
    assert set(changed) <= set(names)
    target.__setstate__(tuple({**parts, **changed}.values()))


def restored(momentum, **changed):
    """A new object of momentum's state with some of its parts replaced."""
    other = fd.ReversibleMomentum.__new__(fd.ReversibleMomentum)
    set_parts(other, momentum, changed)
    return other


def put(array, at, value):
    """A copy with one element changed."""
    array = array.copy()
    array[at] = value
    return array


def bits(x):
    """The integer with the bits of the float64 x."""
    return np.float64(x).view(np.int64)


def wrong_parts(m):
    """For each part of m's state: values that are refused, the error, and its text."""
    _, _, _, _, N, _, S = m.__getstate__()
    return {
        "alpha": [
            (math.nan, ValueError, "alpha is nan; expected a finite number"),
            (math.inf, ValueError, "alpha is inf"),
            ("0.1", TypeError, "alpha is '0.1'; expected a number"),
        ],
        "n": [
            (0, ValueError, "n is 0; expected an integer in"),
            (2**16, ValueError, "n is 65536"),
            (2**80, ValueError, "n is 1208925819614629174706176"),
            (0.9, TypeError, "n is 0.9; expected an integer"),
            (30000, ValueError, "rate is .*; expected .* for n = 30000"),
        ],
        "rate": [
            (5, ValueError, "rate is 5; expected"),
            (1e11, TypeError, "rate is 100000000000.0; expected an integer"),
        ],
        "shape": [
            ((3,), ValueError, r"theta, p and buffers have shape \(3, 16\); expected \(3, 8\)"),
            ((2**20,), ValueError, r"theta, p and buffers .* expected \(3, 1048576\)"),
            ((9,), ValueError, "words behind the last parameter are not 0"),  # of the same padding
            ((2**40, 2**40), ValueError, "shape is .*; no array has it"),
            ((2**63 + 13,), ValueError, "shape is .*; no array has it"),  # 13 in 64 bits
            ((-1, -13), ValueError, "shape is -1"),
            ((13.0,), TypeError, "shape is 13.0"),
            ([13], TypeError, "shape is a list; expected a tuple"),
        ],
        "numbers": [
            (N[:, :8].copy(), ValueError, r"theta, p and buffers have shape \(3, 8\); expected"),
            (N.ravel(), ValueError, r"theta, p and buffers have shape \(48,\)"),
            (N[:2], ValueError, r"theta, p and buffers have shape \(2, 16\)"),
            (N.astype(float), TypeError, "theta, p and buffers have dtype float64; expected int64"),
            (N.astype(np.int32), TypeError, "theta, p and buffers have dtype int32"),
            (N.astype(object), TypeError, "theta, p and buffers have dtype object"),
            (N.tolist(), TypeError, "theta, p and buffers are a list; expected an array"),
            (
                put(N, (0, 3), 2**62),
                ValueError,
                r"theta\[3\] is 4611686018427387904 units; expected",
            ),
            (put(N, (1, 0), -(2**62) - 1), ValueError, r"p\[0\] is -4611686018427387905 units"),
            (put(N, (0, 14), 1), ValueError, "numbers behind the last parameter are not 0"),
            (put(N, (2, 15), bits(1.0)), ValueError, "numbers behind the last parameter are not 0"),
            (put(N, (2, 1), bits(math.nan)), ValueError, r"buffer\[1\] is nan; expected integers"),
            (put(N, (2, 1), bits(math.inf)), ValueError, r"buffer\[1\] is inf"),
            (put(N, (2, 1), bits(-1.0)), ValueError, r"buffer\[1\] is -1.0"),
            (put(N, (2, 1), bits(-0.0)), ValueError, r"buffer\[1\] is -0.0"),
            (put(N, (2, 1), bits(1.5)), ValueError, r"buffer\[1\] is 1.5"),
            (put(N, (2, 1), bits(2.0**51)), ValueError, r"buffer\[1\] is 2251799813685248.0"),
            (put(N, (2, 1), 7), ValueError, r"buffer\[1\] is 3.5e-323"),
        ],
        "count": [
            (np.array([230, 1]), ValueError, r"count have shape \(2,\); expected \(1,\)"),
            (np.array([], np.int64), ValueError, r"count have shape \(0,\)"),
            (np.array([230.0]), TypeError, "count have dtype float64"),
            (230, TypeError, "count are a int; expected an array"),
            (np.array([500]), ValueError, "there are 2 arrays of words; expected 4"),
            (np.array([0]), ValueError, "there are 2 arrays of words; expected 0"),
        ],
        "stack": [
            (S[:1], ValueError, "there are 1 arrays of words; expected 2"),
            ([], ValueError, "there are 0 arrays of words"),
            ([*S, S[0]], ValueError, "there are 3 arrays of words"),
            ([S[0], S[1][:8]], ValueError, r"words have shape \(8,\); expected \(16,\)"),
            ([S[0], S[1].astype(np.uint32)], TypeError, "words have dtype uint32; expected uint16"),
            ([S[0], S[1].view(np.int16)], TypeError, "words have dtype int16"),
            ([b"", b""], TypeError, "words are a bytes; expected an array"),
            ([S[0], put(S[1], 15, 1)], ValueError, "words behind the last parameter are not 0"),
            (tuple(S), TypeError, "words are a tuple; expected a list"),
        ],
    }


WRONG = [
    pytest.param({part: value}, error, text, id=f"{part} {k}")
    for part, cases in wrong_parts(long_run()).items()
    for k, (value, error, text) in enumerate(cases)
]
NEGATIVE_COUNT = {"count": np.array([-1]), "stack": []}
WRONG.append(pytest.param(NEGATIVE_COUNT, ValueError, "count is -1; expected at least 0"))


@pytest.mark.parametrize(("changed", "error", "text"), WRONG)
def test_a_state_that_is_none_is_refused_whole(changed, error, text):
    momentum = long_run()
    held = state(momentum)
    with pytest.raises(error, match=f"^state: {text}"):
        restored(momentum, **changed)
    with pytest.raises(error, match=f"^state: {text}"):  # an object keeps the state it has
        set_parts(momentum, momentum, changed)
    assert state(momentum) == held


@pytest.mark.parametrize("wrong", [(), [], None, {}, (1,) * 6, (1,) * 8, "1234567"])
def test_a_state_is_a_tuple_of_seven(wrong):
    with pytest.raises(TypeError, match="expected the tuple of 7 that __getstate__ returns"):
        fd.ReversibleMomentum.__new__(fd.ReversibleMomentum).__setstate__(wrong)


def test_a_state_in_any_layout_is_the_same_state_and_the_objects_own():
    momentum = long_run()
    _, _, _, _, numbers, count, stack = momentum.__getstate__()
    held = state(momentum)
    for _, array in layouts(numbers):
        words = [next(a for label, a in layouts(w) if label == "negative strides") for w in stack]
        other = restored(momentum, numbers=array, stack=words, count=count.astype(">i8"))
        assert state(other) == held
        if array.flags.writeable:
            array[...] = 0
        for w in words:
            w[...] = 0
        for _ in range(230):
            other.unstep(bumpy)
        assert other.information_bits == 0 and not other.p.any()
    assert state(momentum) == held


def test_states_that_left_their_way_can_be_copied():
    """Undoing steps with other gradients than theirs leads elsewhere, but always to a state."""
    for beta in 0.5, 0.9, 65535 / 2**16:
        momentum = long_run(5, 150, beta)
        for k in range(150):
            try:
                momentum.unstep(lambda theta, k=k: np.cos(theta * k))
            except OverflowError:  # 1/beta a step
                break
            if k % 7 == 0:
                assert state(copy.copy(momentum)) == state(momentum)
        assert k > 10
        assert state(pickle.loads(pickle.dumps(momentum))) == state(momentum)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64, np.int16])
def test_jacobians_of_integers_are_those_of_floats(dtype):
    H = np.array([[1, 2], [2, 3]], dtype)
    for room in fd, reference:
        assert same_bits(
            room.momentum_jacobian(H, alpha=2, beta=0.5),
            room.momentum_jacobian(H.astype(float), alpha=2, beta=0.5),
        )


def test_no_unstep_leaves_the_range():
    """θ − p lies outside: no step can have begun there."""
    for room in fd, reference:
        momentum = room.ReversibleMomentum([EDGE - 1], alpha=1.0, beta=0.5)
        momentum.step([1e5])
        momentum.step([0.0])
        momentum.unstep(lambda theta: [-1e4])
        before = momentum.theta.tolist(), momentum.p.tolist()
        with pytest.raises(OverflowError):
            momentum.unstep(lambda theta: theta)
        assert (momentum.theta.tolist(), momentum.p.tolist()) == before


def test_kernels_compare_what_they_are_given():
    """A mistake in Python code that hands over wrong arrays touches no memory beyond them."""
    momentum, grad = fd.ReversibleMomentum(random(13), **RATES), np.ones(13)
    kernel = kernels("optim")[np.dtype(np.float64)]
    _, n, _, _, numbers, count, _ = momentum.__getstate__()
    words, refused = np.zeros(16, np.uint16), "arrays of the wrong type, rank or size"
    right = {"state": numbers, "count": count, "stack": [], "grad": grad, "alpha": 0.1, "n": n}
    for changed in (
        {"state": numbers[:, :8].copy()},
        {"state": numbers[:2]},
        {"state": np.asfortranarray(numbers)},
        {"state": numbers.astype(float)},
        {"state": numbers.ravel()},
        {"count": count.astype(float)},
        {"count": np.zeros(0, np.int64)},
        {"grad": np.ones(17)},
        {"grad": np.ones(8)},
        {"grad": np.ones(13, np.float32)},
        {"grad": np.ones(26)[::2]},
        {"n": 0},
        {"n": 65536},
        {"words": words[:8]},
        {"words": words.astype(np.uint32)},
    ):
        with pytest.raises(ValueError, match=refused):
            kernel.fixed_step(**{**right, "words": words, **changed})
    for stack in [], [words[:8]]:
        with pytest.raises(ValueError, match=refused):
            kernel.fixed_unstep(**{**right, "stack": stack, "spilled": True})
    for row, out in (0, np.zeros(8)), (0, np.zeros(16, np.float32)), (2, np.zeros(16)):
        with pytest.raises(ValueError, match=refused):
            kernel.positions(numbers, row, before=False, out=out)
    t, p, g = np.zeros((3, 4, 5))
    for theta, momenta, gradient in (
        (t, p, g[:, :4]),
        (t, p[:3], g),
        (t.ravel(), p, g),
        (t, p.astype(np.float32), g),
        (t, p, g.astype(">f8")),
        (t, p, None),
    ):
        with pytest.raises(ValueError, match=refused):
            kernel.update(theta, momenta, gradient, alpha=0.1, beta=0.9, back=False, copies=())
    assert not t.any()
    assert same_bits(momentum.theta, fd.ReversibleMomentum(random(13), **RATES).theta)


def test_a_step_may_have_a_learning_rate_of_its_own():
    start, rates = random(9), [0.1, 0.05, 2.0, 0.0, -0.3]
    momentum, slow = (
        m(start, **RATES) for m in (fd.ReversibleMomentum, reference.ReversibleMomentum)
    )
    trail = []
    for rate in rates:
        trail.append(momentum.theta)
        for m in momentum, slow:
            m.step(bumpy(m.theta), alpha=rate)
        assert same_bits(momentum.theta, slow.theta) and momentum.alpha == RATES["alpha"]
        assert same_bits(momentum.previous_theta, trail[-1])
    for rate, before in zip(rates[::-1], trail[::-1], strict=True):
        for m in momentum, slow:
            m.unstep(bumpy, alpha=rate)
        assert same_bits(momentum.theta, before) and same_bits(slow.theta, before)
    with pytest.raises(ValueError, match="no step is left to undo"):
        momentum.previous_theta  # noqa: B018
    for move in momentum.step, momentum.unstep:
        with pytest.raises(ValueError, match="alpha is nan"):
            move(bumpy, alpha=math.nan)


def test_attributes_are_copies_that_cannot_be_set():
    momentum = fd.ReversibleMomentum([[1, 2], [3, 4]], alpha=0.25, beta=0.3)
    momentum.theta[:] = 0
    momentum.p[:] = 1
    assert momentum.theta.tolist() == [[1, 2], [3, 4]] and not momentum.p.any()
    assert (
        momentum.beta == round(0.3 * 2**16) / 2**16
        and momentum.alpha == 0.25
        and momentum.steps == 0
    )
    for name in "theta", "p", "alpha", "beta", "information_bits", "steps", "other":
        with pytest.raises(AttributeError):
            setattr(momentum, name, 1)


# ---- what cannot be ----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 210, 211, 212])  # before and at a spill
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("value", "exception"),
    [(np.nan, ValueError), (np.inf, OverflowError), (-1e30, OverflowError), (2.7e6, OverflowError)],
)
def test_a_step_that_cannot_be_changes_nothing(steps, value, exception, dtype):
    """The gradient is bad at the end of an array of several tasks; the others must be undone."""
    size = 40_003
    momentum = fd.ReversibleMomentum(random(size), **RATES)
    for _ in range(steps):
        momentum.step(bumpy(momentum.theta))
    held = state(momentum)
    bad = np.ones(size, dtype)
    bad[size - 2] = value
    message = (
        rf"^grad\[{size - 2}\] is nan; expected numbers$"
        if exception is ValueError
        else r"range of theta, p and alpha \* grad"
    )
    with pytest.raises(exception, match=message):
        momentum.step(bad)
    assert state(momentum) == held
    if steps:
        with pytest.raises(exception):
            momentum.unstep(lambda _: bad)
        assert state(momentum) == held
    for _ in range(steps):
        momentum.unstep(bumpy)
    assert (
        np.allclose(momentum.theta, random(size), atol=2**-45, rtol=0)
        and momentum.information_bits == 0
    )


def test_the_range_is_as_the_reference_has_it():
    """θ, p and α·g up to the edge and one unit beyond it, with both signs, in both directions."""
    unit = 2.0**-9  # small beside the edge; sums with it are exact in float64
    steps = 0
    for start in -EDGE, -EDGE + unit, EDGE - unit, 0.0:
        for g in (
            0.0,
            unit,
            -unit,
            EDGE - unit,
            unit - EDGE,
            EDGE,
            -EDGE,
            EDGE / 2,
            -EDGE / 2,
            2 * EDGE,
            -2 * EDGE,
        ):
            ours, theirs = (
                kind([start], alpha=1.0, beta=0.5)
                for kind in (fd.ReversibleMomentum, reference.ReversibleMomentum)
            )
            for grad in g, -g, g / 4, 0.0:
                before, outcomes = state(theirs), []
                for momentum in ours, theirs:
                    try:
                        momentum.step([grad])
                        outcomes.append("done")
                    except OverflowError:
                        outcomes.append("refused")
                assert outcomes[0] == outcomes[1] and state(ours) == state(theirs)
                assert outcomes[0] == "done" or state(ours) == before
                steps += outcomes[0] == "done"
            for grad in 3 * g, g, -g, g / 2:
                outcomes = []
                for momentum in ours, theirs:
                    try:
                        momentum.unstep(lambda _, grad=grad: [grad])
                        outcomes.append("done")
                    except (OverflowError, ValueError) as problem:
                        outcomes.append(type(problem))
                assert outcomes[0] == outcomes[1] and state(ours) == state(theirs)
    assert steps > 50


def test_momentum_alone_beyond_the_range_is_refused():
    """θ would come back near 0, and the increment is in the range: p alone is outside."""
    for kind in fd.ReversibleMomentum, reference.ReversibleMomentum:
        momentum = kind([-EDGE], alpha=1.0, beta=0.9)
        momentum.step([-1000.0])
        held = state(momentum)
        with pytest.raises(OverflowError):
            momentum.step([-262000.0])
        assert state(momentum) == held
        momentum.step([-261000.0])
        assert EDGE - 300 < momentum.p[0] < EDGE


@pytest.mark.parametrize(
    "theta", [[1.0, np.nan], [1.0, np.inf], [0, EDGE], [0, -EDGE - 1], [1.0, 1e300]]
)
def test_initial_parameters_outside_the_range_are_refused(theta):
    exception, said = (
        (ValueError, "nan")
        if np.isnan(theta[1])
        else (OverflowError, r".*expected numbers in \[-262144, 262144\)")
    )
    with pytest.raises(exception, match=rf"^theta\[1\] is {said}"):
        fd.ReversibleMomentum(theta, **RATES)
    with pytest.raises(exception):
        reference.ReversibleMomentum(theta, **RATES)
    assert fd.ReversibleMomentum(-EDGE, **RATES).theta == -EDGE


@pytest.mark.parametrize("beta", [0, 1, -0.5, 1.5, 1e-6, 1 - 1e-6, 2**60])
def test_decays_that_do_not_round_into_the_open_interval_are_refused(beta):
    for kind in fd.ReversibleMomentum, reference.ReversibleMomentum:
        with pytest.raises(ValueError, match="beta"):
            kind(np.zeros(2), alpha=0.1, beta=beta)


def test_no_step_is_left_to_undo():
    momentum = fd.ReversibleMomentum([1.0], **RATES)
    with pytest.raises(ValueError, match=r"^no step is left to undo$"):
        momentum.unstep(np.sin)
    momentum.step([1.0])
    momentum.unstep(np.ones_like)
    with pytest.raises(ValueError, match=r"^no step is left to undo$"):
        momentum.unstep(np.sin)


def test_a_gradient_function_may_not_move_what_asks_it():
    momentum = fd.ReversibleMomentum([1.0], **RATES)
    momentum.step([1.0])

    def moves(theta):
        momentum.step(theta)
        return theta

    with pytest.raises(RuntimeError, match=r"has moved this object from step 1 to 2$"):
        momentum.unstep(moves)
    with pytest.raises(OverflowError, match="no step with this gradient has led here"):
        momentum.unstep(lambda theta: theta + 2.5e6)


def test_huge_rates_are_refused_by_the_step():
    momentum = fd.ReversibleMomentum([1.0, 2.0], alpha=1e308, beta=0.5)
    with pytest.raises(OverflowError):
        momentum.step([1.0, 0.0])
    assert momentum.theta.tolist() == [1, 2]


def interrupted_at(bytecode, call):
    """Run `call` with a KeyboardInterrupt before that bytecode of the package's Python code.

    Returns whether it came, as the call may have ended before.
    """
    count, before = 0, sys.gettrace()

    def trace(frame, event, _):
        nonlocal count
        if "fastderiv" not in frame.f_globals["__name__"]:
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        if count == bytecode:
            raise KeyboardInterrupt
        return trace

    # Python 3.12 reports bytecodes only if a frame has asked for them before the trace function
    # is set.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("back", [False, True])
def test_ctrl_c_leaves_no_float_step_half_done(back):
    seen, bytecode, more = set(), 0, True
    while more:
        theta, p = (
            np.arange(2, dtype=">f8"),
            np.ones(2, ">f8"),
        )  # the other byte order on most machines, so that copies are made
        function, grad = (
            (fd.momentum_unstep, lambda _: np.ones(2)) if back else (fd.momentum_step, np.ones(2))
        )
        bytecode += 1
        more = interrupted_at(
            bytecode, lambda f=function, t=theta, p=p, g=grad: f(t, p, g, alpha=0.5, beta=0.25)
        )
        seen.add((*theta.tolist(), *p.tolist()))
    after = (-1, 0, 6, 6) if back else (-0.25, 0.75, -0.25, -0.25)
    assert seen == {(0, 1, 1, 1), after} and bytecode > 50


@pytest.mark.parametrize("delay", [0.1, 0.17, 0.23])
def test_ctrl_c_comes_between_steps_and_never_amid_one(delay):
    """Whenever it comes, forwards or backwards, all steps that were counted can be undone."""
    momentum, turn = fd.ReversibleMomentum(random(20_000), **RATES), 150
    start = state(momentum)

    def to_and_fro():
        while True:
            for _ in range(turn):
                momentum.step(momentum.theta)
            for _ in range(turn // 2):
                momentum.unstep(np.copy)

    assert seconds_until_answered(to_and_fro, delay=delay) < ALLOWED
    while momentum.steps:
        momentum.unstep(np.copy)
    assert state(momentum) == start


@pytest.mark.slow
def test_a_large_jacobian_answers_ctrl_c():
    hessian = np.full((3000, 3000), 1e-3)

    def call():
        while True:
            fd.momentum_jacobian(hessian, **RATES)

    assert seconds_until_answered(call, delay=0.2) < ALLOWED


def test_hypergradient_answers_ctrl_c():
    def call():
        fd.hypergradient(bowl, bowl, lambda theta, v: 0.3 * v, random(1000), n_steps=10**6, **RATES)

    assert seconds_until_answered(call, delay=0.1) < ALLOWED


@pytest.mark.slow
def test_a_million_parameters_two_thousand_steps_and_back():
    """No bit differs, and the way back needs no more than 1.3·log2(1/β) bits a step."""

    def run():
        momentum = fd.ReversibleMomentum(random(1_000_000, dtype=np.float32), **RATES)
        start, bits = state(momentum), []
        for t in range(2000):
            momentum.step(grad(momentum.theta))
            if t in (999, 1999):
                bits.append(momentum.information_bits / 1e6)
        for _ in range(2000):
            momentum.unstep(grad)
        assert state(momentum) == start
        return bits

    def grad(theta):  # that of 0.125·|θ|, which never comes to rest, without a temporary array
        return np.copysign(0.125, theta, out=theta)

    ((first, second),) = by_threads(run, 2)
    assert second - first <= 1.3 * 1000 * -math.log2(0.9)


# ---- through training --------------------------------------------------------------------------


def problem(seed=0, D=6, rows=40):
    """Logistic regression, trained on one half of the data and judged on the other.

    Returns both gradients, the product with the training loss's second derivatives, and the data.
    """
    X, w = random(rows, D, seed=seed), random(D, seed=seed + 1)
    y = (X @ w + 0.3 * random(rows, seed=seed + 2) > 0).astype(float)
    train, held = (X[: rows // 2], y[: rows // 2]), (X[rows // 2 :], y[rows // 2 :])

    def sigma(x):
        return 0.5 + 0.5 * np.tanh(0.5 * x)

    def gradient(theta, data):
        X, y = data
        return X.T @ (sigma(X @ theta) - y) / len(y) + 1e-2 * theta

    def hvp(theta, v):
        X, y = train
        s = sigma(X @ theta)
        return X.T @ (s * (1 - s) * (X @ v)) / len(y) + 1e-2 * v

    return (lambda t: gradient(t, held)), (lambda t: gradient(t, train)), hvp, train, held


@pytest.mark.parametrize("n_steps", [0, 1, 2, 50, 300])
@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99])
def test_hypergradients_are_those_of_the_stored_trajectory(n_steps, beta):
    loss, train, hvp, *_ = problem()
    theta = random(6, seed=9)
    ours, theirs = (
        f(loss, train, hvp, theta, n_steps=n_steps, alpha=0.5, beta=beta)
        for f in (fd.hypergradient, reference.hypergradient)
    )
    for name, a, b in zip(ours._fields, ours, theirs, strict=True):
        assert error(a, b) < 1e-9 or abs(np.asarray(a) - b).max() < 1e-10, name
    assert type(ours.dalpha) is float and ours.dtheta.dtype == np.float64
    assert all(map(same_bits, pickle.loads(pickle.dumps(ours)), ours))


def test_hypergradients_are_those_of_differences_in_the_complex_plane():
    """All four arguments are moved by 1e-30j: an oracle that shares no line with the adjoints."""
    loss, train, hvp, (X, y), (Xh, yh) = problem()
    theta, steps, beta = random(6, seed=9), 60, 58982 / 2**16
    grads = fd.hypergradient(loss, train, hvp, theta, n_steps=steps, alpha=0.5, beta=beta)

    def final(theta, p, alpha, beta):
        for _ in range(steps):
            p = beta * p - alpha * (
                X.T @ (1 / (1 + np.exp(-X @ theta)) - y) / len(y) + 1e-2 * theta
            )
            theta = theta + p
        z = Xh @ theta
        return (np.log(1 + np.exp(z)) - yh * z).mean() + 5e-3 * (theta * theta).sum()

    u, p, h = random(6, seed=4), np.zeros(6), 1e-30j
    assert np.isclose(final(theta + h * u, p, 0.5, beta).imag / 1e-30, grads.dtheta @ u, rtol=1e-9)
    assert np.isclose(final(theta, p + h * u, 0.5, beta).imag / 1e-30, grads.dp @ u, rtol=1e-9)
    assert np.isclose(final(theta, p, 0.5 + h, beta).imag / 1e-30, grads.dalpha, rtol=1e-9)
    assert np.isclose(final(theta, p, 0.5, beta + h).imag / 1e-30, grads.dbeta, rtol=1e-9)


def test_hypergradients_are_those_of_pytorch_through_the_unrolled_loop():
    torch = pytest.importorskip("torch")
    loss, train, hvp, (X, y), (Xh, yh) = problem(D=12, rows=80)
    start, steps, rounded = random(12, seed=9), 200, round(0.9 * 2**16) / 2**16
    grads = fd.hypergradient(loss, train, hvp, start, n_steps=steps, alpha=0.5, beta=0.9)
    theta, p, alpha, beta = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True)
        for v in (start, np.zeros(12), 0.5, rounded)
    )
    X, y, Xh, yh = map(torch.from_numpy, (X, y, Xh, yh))

    def objective(t, X, y):
        return torch.nn.functional.binary_cross_entropy_with_logits(X @ t, y) + 5e-3 * (t * t).sum()

    t, q = theta, p
    for _ in range(steps):
        (g,) = torch.autograd.grad(objective(t, X, y), t, create_graph=True)
        q = beta * q - alpha * g
        t = t + q
    theirs = torch.autograd.grad(objective(t, Xh, yh), (theta, p, alpha, beta))
    for name, ours, other in zip(grads._fields, grads, theirs, strict=True):
        assert error(ours, other.numpy()) < 1e-8, name


def test_hypergradients_hold_information_bits_and_no_trajectory():
    """1000 more steps add 1000·log2(1/β) bits a parameter; a trajectory would add 128 000."""
    size, peaks = 20_000, []
    for steps in 10, 1010:
        tracemalloc.start()
        fd.hypergradient(
            bowl, bowl, lambda theta, v: 0.3 * v, random(size), n_steps=steps, alpha=0.1, beta=0.9
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 1.1 * size / 8 * (1000 * -math.log2(0.9)) + 2 * size + 1e5
    assert peaks[0] < 15 * 8 * size


def bowl(theta):
    return 0.3 * theta


def test_shapes_of_any_number_of_axes_go_through():
    for shape in (), (0,), (2, 3):
        theta = np.full(shape, 0.5)
        ours = fd.hypergradient(
            np.sin, np.sin, lambda t, v: np.cos(t) * v, theta, n_steps=5, **RATES
        )
        theirs = reference.hypergradient(
            np.sin, np.sin, lambda t, v: np.cos(t) * v, theta, n_steps=5, **RATES
        )
        assert ours.dtheta.shape == ours.dp.shape == shape
        np.testing.assert_allclose(ours.dtheta, theirs.dtheta, rtol=1e-9)
        np.testing.assert_allclose(
            [ours.dalpha, ours.dbeta], [theirs.dalpha, theirs.dbeta], rtol=1e-9
        )


def test_callbacks_own_what_they_are_given():
    """A callback that overwrites its arguments, and returns one of them, changes nothing."""

    def gradient(theta):
        theta *= 0.5
        return theta

    def hvp(theta, v):
        v *= 0.5
        theta[:] = np.nan
        return v

    ours = fd.hypergradient(gradient, gradient, hvp, [1.0, 2.0], n_steps=20, **RATES)
    theirs = reference.hypergradient(
        lambda t: t / 2, lambda t: t / 2, lambda t, v: v / 2, [1.0, 2.0], n_steps=20, **RATES
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.parametrize("which", ["loss_grad", "train_grad", "train_hvp"])
def test_a_callback_of_another_shape_or_dtype_is_named(which):
    callbacks = {
        "loss_grad": np.sin,
        "train_grad": np.sin,
        "train_hvp": lambda theta, v: np.cos(theta) * v,
    }
    for wrong, exception in (
        (np.zeros(4), ValueError),
        (np.zeros((1, 3)), ValueError),
        (np.zeros(3, bool), TypeError),
    ):
        with pytest.raises(exception, match=rf"^{which}\(theta(, v)?\) has"):
            fd.hypergradient(
                **(callbacks | {which: lambda *_, wrong=wrong: wrong}),
                theta=np.ones(3),
                n_steps=2,
                **RATES,
            )

    def fails(*_):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        fd.hypergradient(**(callbacks | {which: fails}), theta=np.ones(3), n_steps=2, **RATES)


def test_infinite_and_subnormal_adjoints_come_without_warnings():
    rates = {"theta": [1.0, -1.0], "n_steps": 5, "alpha": 0.1, "beta": 0.5}
    for size in np.inf, 1e308, 1e-310:
        with np.errstate(all="raise"):
            d = fd.hypergradient(
                lambda x, size=size: np.full(2, size),
                np.negative,
                lambda x, v, size=size: np.full(2, size),
                **rates,
            )
        assert np.isfinite(d.dalpha) == (size < 1)


def test_what_cannot_be_trained_is_refused():
    def hyper(train=np.sin, n_steps=5):
        return fd.hypergradient(np.sin, train, np.multiply, np.ones(3), n_steps=n_steps, **RATES)

    with pytest.raises(ValueError, match=r"^n_steps is -1; expected an integer of at least 0$"):
        hyper(n_steps=-1)
    with pytest.raises(TypeError, match=r"^n_steps is 5.0; expected an integer$"):
        hyper(n_steps=5.0)
    with pytest.raises(ValueError, match=r"^train_grad\(theta\)\[0\] is nan; expected numbers$"):
        hyper(train=lambda theta: theta * np.nan)
    with pytest.raises(OverflowError, match=r"alpha \* train_grad\(theta\)"):
        hyper(train=lambda theta: -100 * theta, n_steps=50)
    calls = iter(range(100))
    with pytest.raises(
        ValueError,
        match=r"^train_grad has returned other bits on the way back than on the way there",
    ):
        hyper(train=lambda theta: theta * (1 + 1e-12 * next(calls)))
