"""boundary: networks, their margins and gradients, the exponential sum, one root per row."""

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import expit

import fastderiv as fd
from fastderiv import reference as ref
from fastderiv.boundary._compiled import kernels as _kernels
from fastderiv.boundary._network import margin_of
from fastderiv.boundary.line import _roots
from fastderiv.boundary.line._finders import METHODS
from helpers import floating_point
from helpers.awkward import error, layouts, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered

SHAPES = [
    (2, 2),
    (1, 1, 1),
    (2, 3, 2),
    (3, 7, 9, 3),
    (2, 300, 2),
    (5, 17, 1, 8, 33, 2),
    (4, 8, 8, 8, 8, 8, 1),
    (9, 2, 64, 12),
]
EVALUATIONS = ("logits", "forward", "margin", "margin_gradient")


def parameters(sizes, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    weights = [scale * rng.standard_normal(shape) for shape in pairwise(sizes)]
    return weights, [rng.standard_normal(n) for n in sizes[1:]]


def network(sizes, seed=0, scale=1.0):
    return fd.SigmoidMLP(*parameters(sizes, seed, scale))


def twin(net):
    return ref.SigmoidMLP(net.weights, net.biases)


def inputs(m, n, seed=1, scale=1.5):
    return scale * np.random.default_rng(seed).standard_normal((m, n))


def five_roots():
    """The example of derivations §2: three hidden units, five ties at x2 = 0.

    The second input only shifts the first unit.
    """
    return fd.SigmoidMLP(
        [[[0.25, 50, 51], [0.125, 0, 0]], [[6], [-1.5], [-1.5]]], [[0, 100, -102], [-1.5]]
    )


def every_evaluation(net, X):
    return [getattr(net, name)(X) for name in EVALUATIONS]


# ---- SigmoidMLP: values ----------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SHAPES)
@pytest.mark.parametrize("m", [0, 1, 2, 16, 17, 131])
@pytest.mark.parametrize("name", EVALUATIONS)
def test_network_equals_reference(sizes, m, name):
    net, X = network(sizes), inputs(m, sizes[0])
    result, exact = getattr(net, name)(X), getattr(twin(net), name)(X)
    assert result.shape == exact.shape
    assert result.dtype == np.float64
    assert error(result, exact) < 1e-14 * len(sizes)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=7),
    m=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.1, 1.0, 10.0, 1000.0]),
)
def test_any_network_equals_reference(sizes, m, seed, scale):
    net = network([*sizes, 2], seed, scale)
    X = inputs(m, sizes[0], seed)
    # a pre-activation's rounding error is as large as the weights, and σ' ≤ 1/4 of it passes on
    growth = np.prod([1 + np.abs(w).sum(0).max() / 4 for w in net.weights[1:]]) * (
        1 + np.abs(net.weights[0]).sum(0).max()
    )
    for name in ("logits", "margin"):
        result, exact = getattr(net, name)(X), getattr(twin(net), name)(X)
        assert np.all(np.abs(result - exact) <= 4e-15 * growth)


def test_margin_and_gradient_against_mpmath():
    net, X = network((2, 5, 4, 3)), inputs(6, 2)
    weights, biases = (
        [mpmath.matrix(a.tolist()) for a in part] for part in (net.weights, net.biases)
    )

    def margin(*x):
        y = mpmath.matrix(x)
        for k, (w, b) in enumerate(zip(weights, biases, strict=True)):
            n = w.T * y + b
            y = n.apply(lambda t: 1 / (1 + mpmath.exp(-t))) if k < 2 else n
        return y[2] - y[0]

    with mpmath.workdps(40):
        for x, value, gradient in zip(
            X, net.margin(X, (2, 0)), net.margin_gradient(X, (2, 0)), strict=True
        ):
            assert abs(value - float(margin(*x))) < 5e-15
            exact = [float(mpmath.diff(margin, tuple(x), order)) for order in ((1, 0), (0, 1))]
            assert np.allclose(gradient, exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("sizes", [s for s in SHAPES if len(s) > 2])
def test_gradient_equals_complex_step(sizes):
    net, X = network(sizes), inputs(9, sizes[0])
    plain = twin(net)
    d = net.weights[-1][:, 0] - (net.weights[-1][:, 1] if sizes[-1] > 1 else 0)
    steps = np.empty(X.shape)
    for r, x in enumerate(X):
        for k in range(sizes[0]):
            z = x.astype(complex)
            z[k] += 1e-100j
            *_, n, _ = plain._layers(z)
            steps[r, k] = (d @ (1 / (1 + np.exp(-n)))).imag / 1e-100
    assert error(net.margin_gradient(X), steps) < 1e-13


def test_gradient_by_random_projection():
    net, rng = network((6, 20, 20, 4)), np.random.default_rng(5)
    x, u, t = inputs(1, 6), rng.standard_normal(6), 1e-5
    slope = (net.margin(x + t * u, (1, 3)) - net.margin(x - t * u, (1, 3))) / (2 * t)
    assert abs(net.margin_gradient(x, (1, 3)) @ u - slope) < 1e-9


def test_saturated_gradient_is_accurate_relatively():
    net = fd.SigmoidMLP([[[1.0]], [[1.0]]], [[0.0], [0.0]])
    x = np.array([-700.0, -300, -40, 40, 300, 700])
    with mpmath.workdps(50):
        exact = [float(mpmath.exp(-abs(v)) / (1 + mpmath.exp(-abs(v))) ** 2) for v in x]
    assert np.allclose(net.margin_gradient(x[:, None])[:, 0], exact, rtol=2e-15, atol=0)
    assert np.array_equal(net.margin_gradient([[-1e9], [1e9]]), [[0.0], [0.0]])


def test_saturated_units_are_exactly_0_and_1():
    net = fd.SigmoidMLP([[[1e3, -1e3]], [[2.0], [5.0]]], [[0, 0], [1.0]])
    assert np.array_equal(net.margin([[1.0], [-1.0], [np.inf], [-np.inf]]), [3.0, 6.0, 3.0, 6.0])
    assert np.array_equal(net.forward([[1e300]]), expit([[3.0]]))


def test_forward_is_the_logistic_of_the_logits():
    net, X = network((3, 8, 4), scale=30.0), inputs(200, 3)
    assert np.allclose(net.forward(X), expit(net.logits(X)), rtol=1e-15, atol=0)


PAYLOAD_NAN = np.uint64(0x7FF8000000000FFF).view(
    np.float64
)  # its low bits reach the exponent inside exp


@pytest.mark.parametrize("bad", [np.nan, PAYLOAD_NAN, np.inf, -np.inf])
def test_non_finite_rows_stay_alone(bad):
    net, X = network((3, 20, 5, 2)), inputs(40, 3)
    dirty = X.copy()
    dirty[7, 1] = bad
    others = np.arange(40) != 7
    for clean, result in zip(every_evaluation(net, X), every_evaluation(net, dirty), strict=True):
        assert same_bits(clean[others], result[others])
    assert np.isnan(net.margin(dirty)[7]) == np.isnan(bad)
    assert np.all(np.isnan(net.margin_gradient(dirty)[7]) == np.isnan(bad))


def test_a_linear_net_has_constant_gradient():
    net = fd.SigmoidMLP([[[1.0, 4.0], [2.0, -1.0]]], [[0.5, 0.0]])
    assert np.array_equal(net.margin([[1.0, 1.0]]), [0.5])
    assert np.array_equal(net.margin_gradient([[np.nan, 1.0], [2.0, 3.0]]), [[-3.0, 3.0]] * 2)


def test_empty_axes():
    assert (
        fd.SigmoidMLP([np.zeros((2, 0)), np.zeros((0, 2))], [[], [3.0, 1.0]]).margin([[1.0, 2.0]])
        == 2.0
    )
    assert fd.SigmoidMLP([np.zeros((0, 1))], [[3.0]]).margin(np.zeros((2, 0))).tolist() == [
        3.0,
        3.0,
    ]
    assert fd.SigmoidMLP([np.zeros((2, 0)), np.zeros((0, 2))], [[], [3.0, 1.0]]).margin_gradient(
        [[1.0, 2.0]]
    ).tolist() == [[0, 0]]


def test_outputs_choose_the_columns():
    net, X = network((2, 6, 4)), inputs(10, 2)
    z = net.logits(X)
    for a, b in [(0, 1), (3, 1), (-1, 0), (1, -2)]:
        assert error(net.margin(X, (a, b)), z[:, a] - z[:, b]) < 1e-14
    assert same_bits(net.margin(X, (-1, 0)), net.margin(X, np.array([3, 0])))
    single = network((2, 6, 1))
    assert same_bits(single.margin(X, outputs=(1, 0)), single.logits(X)[:, 0])


# ---- SigmoidMLP: the same bits ---------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 3, 2), (3, 40, 9, 3)])
def test_any_layout_gives_the_same_bits(sizes):
    net, X = network(sizes), inputs(37, sizes[0])
    expected = every_evaluation(net, X)
    for label, view in layouts(X):
        before = snapshot(view)
        for a, b in zip(every_evaluation(net, view), expected, strict=True):
            assert same_bits(a, b), label
        assert snapshot(view) == before
    assert same_bits(net.margin(X.tolist()), expected[2])
    assert same_bits(
        net.margin(X.astype(np.float32)), net.margin(X.astype(np.float32).astype(np.float64))
    )


@pytest.mark.parametrize("sizes", [(2, 3, 2), (3, 300, 2), (8, 64, 64, 3)])
def test_any_number_of_threads_gives_the_same_bits(sizes):
    net, X, before = network(sizes), inputs(30011, sizes[0]), fd.get_num_threads()
    try:
        results = []
        for n in (1, 2, 7):
            fd.set_num_threads(n)
            results.append(every_evaluation(net, X))
    finally:
        fd.set_num_threads(before)
    assert all(
        same_bits(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True)
    )


@pytest.mark.parametrize("sizes", SHAPES)
def test_a_row_has_the_same_bits_in_every_position(sizes):
    net, X = network(sizes), inputs(150, sizes[0])
    for whole, name in zip(every_evaluation(net, X), EVALUATIONS, strict=True):
        rows = np.concatenate([getattr(net, name)(X[i : i + 1]) for i in range(len(X))])
        assert same_bits(whole, rows)
        assert same_bits(whole[13:], getattr(net, name)(X[13:]))


@pytest.mark.parametrize("sizes", SHAPES)
def test_the_scalar_callback_has_the_bits_of_the_tiles(sizes):
    net, X = network(sizes, scale=2.0), inputs(20, sizes[0])
    margin, gradient = net.margin(X), net.margin_gradient(X)
    for coordinate in range(sizes[0]):
        line = _kernels.Line(margin_of(net, (0, 1)).compiled.program, coordinate)
        for i, x in enumerate(X):
            line.prepare(np.where(np.arange(sizes[0]) == coordinate, np.nan, X), i)
            assert line(x[coordinate]) == margin[i]
            assert (
                abs(line.derivative(x[coordinate]) - gradient[i, coordinate])
                <= 1e-13 * np.abs(gradient).max()
            )


PROBE = """
import sys, numpy as np, fastderiv as fd
rng = np.random.default_rng(3)
sizes = (5, 33, 70, 3)
weights = [rng.standard_normal(s) for s in zip(sizes, sizes[1:])]
net = fd.SigmoidMLP(weights, [rng.standard_normal(n) for n in sizes[1:]])
X = 2 * rng.standard_normal((203, 5))
parts = [net.logits(X), net.forward(X), net.margin(X), net.margin_gradient(X)]
sys.stdout.buffer.write(np.concatenate([p.ravel() for p in parts]).tobytes())
"""


def test_cpu_levels_agree():
    results = {}
    for level in fd.show_config()["CPU levels supported"]:
        env = {**os.environ, "FASTDERIV_CPU": level}
        run = subprocess.run(
            [sys.executable, "-c", PROBE], env=env, capture_output=True, check=True
        )
        results[level] = np.frombuffer(run.stdout)
    first = next(iter(results.values()))
    assert all(np.allclose(first, other, rtol=1e-12, atol=1e-13) for other in results.values())
    if {"x86-64-v3", "x86-64-v4"} <= results.keys():
        assert same_bits(results["x86-64-v3"], results["x86-64-v4"])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer here")
def test_signals_are_seen_while_wide_layers_are_packed_and_evaluated():
    n, seen = 12000, []
    net = fd.SigmoidMLP([np.broadcast_to(1e-3, (n, n)), np.ones((n, 1))], [np.zeros(n), [0.0]])
    X = np.ones((16, n))
    handler = signal.signal(signal.SIGALRM, lambda *_: seen.append(time.perf_counter()))
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    try:
        for call in (lambda: margin_of(net, (0, 1)).compiled.program, lambda: net.margin_gradient(X)):
            seen[:] = [time.perf_counter()]
            call()
            assert time.perf_counter() - seen[0] > 0.1  # or this shows nothing
            assert np.diff([*seen, time.perf_counter()]).max() < 0.1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


# ---- the kernels, handed what they do not expect ---------------------------------------------


def program(sizes=(3, 5, 1), seed=0):
    weights, biases = parameters(sizes, seed)
    return _kernels.Program(tuple(weights), tuple(biases))


BAD_PROGRAMS = [
    ((), ()),
    ((np.ones((2, 3)),), ()),
    ((np.ones(3),), (np.ones(3),)),
    ((np.ones((2, 3)).T,), (np.ones(2),)),
    ((np.ones((2, 3), np.float32),), (np.ones(3),)),
    ((np.ones((2, 3)).astype(">f8"),), (np.ones(3),)),
    ((np.ones((2, 3)),), (np.ones(2),)),
    ((np.ones((2, 3)),), (np.ones((3, 1)),)),
    ((np.ones((2, 3)), np.ones((2, 1))), (np.ones(3), np.ones(1))),
    ((None,), (None,)),
    (None, None),
]


@pytest.mark.parametrize("arguments", BAD_PROGRAMS)
def test_a_program_takes_only_matrices_that_chain(arguments):
    with pytest.raises((TypeError, ValueError)):
        _kernels.Program(*arguments)


def test_kernels_refuse_arrays_that_do_not_fit():
    p, X, out = program(), np.ones((4, 3)), np.empty(4)
    rows, t = np.arange(4), np.zeros(4)
    read_only = out.view()
    read_only.flags.writeable = False
    calls = [
        *(
            lambda X=bad: p.evaluate(X, out, False)
            for bad in (X[:, :2], X[0], X[None], X.astype(np.float32), X > 0, None)
        ),
        *(
            lambda o=bad: p.evaluate(X, o, False)
            for bad in (out[:3], np.empty(8)[::2], read_only, np.empty(4, int), None)
        ),
        lambda: p.gradient(X, out),
        lambda: program((3, 2)).gradient(X, np.empty((4, 3))),
        *(
            lambda r=bad: p.along(X, r, t, 0, out)
            for bad in (rows + 1, rows - 1, rows[:3], rows[::-1], rows * 1.0, None)
        ),
        *(
            lambda t=bad: p.along(X, rows, t, 0, out)
            for bad in (t[:3], np.zeros(8)[::2], rows, None)
        ),
        *(lambda c=bad: p.along(X, rows, t, c, out) for bad in (-1, 3, 1 << 62)),
        *(lambda c=bad: _kernels.Line(p, c) for bad in (-1, 3)),
        lambda: _kernels.Line(program((3, 2)), 0),
        lambda: _kernels.Line(None, 0),
        *(lambda i=bad: _kernels.Line(p, 0).prepare(X, i) for bad in (-1, 4, 1 << 61)),
        *(
            lambda X=bad: _kernels.Line(p, 0).prepare(X, 0)
            for bad in (X[:, :2], X.T.copy().T, X[0], None)
        ),
    ]
    for k, call in enumerate(calls):
        with pytest.raises((TypeError, ValueError, IndexError)):
            pytest.fail(f"call {k} returned {call()}")


def test_kernel_objects_cannot_be_copied_and_a_new_line_is_safe():
    p = program()
    line = _kernels.Line(p, 1)
    for thing in (p, line):
        for copied in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError):
                copied(thing)
        with pytest.raises(TypeError):
            type(thing).__new__(type(thing))
    assert line(0.5) == line(0.5)  # before `prepare`
    assert np.isfinite(line.derivative(0.5))


def test_a_line_of_many_threads_does_not_crash():
    line = _kernels.Line(program((3, 64, 64, 1)), 0)
    X = np.ones((2, 3))

    def work(k):
        for i in range(300):
            line.prepare(X, i % 2)
            line(i * 0.1)
            line.derivative(k * 0.1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_sizes_no_memory_holds_are_memory_errors():
    """Arrays without elements may have axes of 2**59."""
    huge = np.zeros((1 << 59, 0))
    with pytest.raises(MemoryError, match=f"{8 << 59} bytes"):
        _kernels.Program((huge, np.zeros((0, 1))), (np.zeros(0), np.zeros(1)))
    with pytest.raises(MemoryError, match="bytes"):
        _kernels.Program((np.zeros((1 << 57, 0)),), (np.zeros(0),))


@pytest.mark.parametrize("name", ["logits", "forward"])
def test_a_network_without_outputs_takes_no_time(name):
    net, X = fd.SigmoidMLP([np.zeros((2, 0))], [np.zeros(0)]), np.broadcast_to(1.0, (1 << 58, 2))
    program, out = _kernels.Program(net.weights, net.biases), np.empty((1 << 58, 0))
    program.evaluate(X, out, name == "forward")


@pytest.mark.skipif(not floating_point.AVAILABLE, reason="no control register to set here")
@pytest.mark.parametrize("state", floating_point.STATES)
@pytest.mark.parametrize("threads", [1, 3])
def test_kernels_have_the_same_bits_in_every_floating_point_state(state, threads):
    """Subnormal weights and inputs among them; a large enough batch for several threads."""
    net = network((3, 40, 30, 1), scale=2.0)
    p, small = (
        margin_of(net, (0, 1)).compiled.program,
        _kernels.Program((np.array([[5e-320], [3e-310]]),), (np.array([2e-311]),)),
    )
    X, Z = inputs(20_000, 3), np.array([[0.3, 1e3], [-0.7, 0.5]])
    line, pick, t = (
        _kernels.Line(p, 1),
        np.arange(0, 20_000, 7),
        np.linspace(-2, 2, 2858)[: len(range(0, 20_000, 7))],
    )

    def everything():
        results = [
            np.empty(len(X)),
            np.empty(len(X)),
            np.empty(X.shape),
            np.empty(len(pick)),
            np.empty(2),
        ]
        p.evaluate(X, results[0], False)
        p.evaluate(X, results[1], True)
        p.gradient(X, results[2])
        p.along(X, pick, t, 1, results[3])
        small.evaluate(Z, results[4], False)
        line.prepare(X, 5)
        return [*results, np.array([line(0.3), line.derivative(0.3), line(-1e300)])]

    expected = everything()
    assert np.all(expected[4] != 0)
    before = fd.get_num_threads()
    try:
        fd.set_num_threads(threads)
        with floating_point.in_state(state):
            word = floating_point.word()
            results = everything()
            assert floating_point.word() == word
    finally:
        fd.set_num_threads(before)
    assert all(map(same_bits, results, expected))


# ---- SigmoidMLP: as an object ----------------------------------------------------------------


def test_the_network_owns_read_only_copies():
    weights, biases = parameters((2, 3, 2))
    net, X = fd.SigmoidMLP(weights, biases), inputs(4, 2)
    expected = network((2, 3, 2)).margin(X)
    for array in weights + biases:
        array[:] = 99
    assert same_bits(net.margin(X), expected)
    assert net == network((2, 3, 2))
    for array in net.weights + net.biases:
        assert array.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(AttributeError):
        net.weights = ()


def test_parameters_of_any_layout():
    weights, biases = parameters((3, 5, 2))
    net = fd.SigmoidMLP(weights, biases)
    for (_, w0), (_, w1) in zip(layouts(weights[0]), layouts(weights[1]), strict=True):
        other = fd.SigmoidMLP([w0, w1], tuple(biases))
        assert other == net
        assert same_bits(
            other.margin_gradient(np.ones((3, 3))), net.margin_gradient(np.ones((3, 3)))
        )
    assert fd.SigmoidMLP([[[1, 2]]], [[0, 0]]).weights[0].dtype == np.float64
    assert fd.SigmoidMLP(np.ones((2, 3, 3), np.float32), np.zeros((2, 3))).hidden_widths == (3,)


def test_pickles_copies_compares_and_prints():
    net, X = network((2, 3, 2)), inputs(5, 2)
    net.margin(X)
    for other in (pickle.loads(pickle.dumps(net)), copy.copy(net), copy.deepcopy(net)):
        assert other == net
        assert hash(other) == hash(net)
        assert same_bits(other.margin(X), net.margin(X))
        assert not other.weights[0].flags.writeable
    signed = [fd.SigmoidMLP([[[1.0]]], [[zero]]) for zero in (0.0, -0.0)]
    assert signed[0] == signed[1]
    assert hash(signed[0]) == hash(signed[1])
    assert net != network((2, 3, 2), seed=1)
    assert net != network((2, 3, 3))
    assert net != "net"
    assert repr(net) == "SigmoidMLP(2-3-2)"
    assert (net.n_inputs, net.n_outputs, net.hidden_widths) == (2, 2, (3,))


W, B = parameters((2, 4, 3))


@pytest.mark.parametrize(
    ("weights", "biases", "kind", "message"),
    [
        ([], [], ValueError, "weights is empty"),
        (W, B[:1], ValueError, "biases has 1 arrays; expected one per weight matrix = 2"),
        (
            [W[0], W[1][:3]],
            B,
            ValueError,
            r"weights\[1\] has shape \(3, 3\); expected .* \(4, n_out\), weights\[0\] .* \(2, 4\)",
        ),
        (
            [W[0][0], W[1]],
            B,
            ValueError,
            r"weights\[0\] has shape \(4,\); expected \(n_in, n_out\)",
        ),
        (
            W,
            [B[0], B[1][:2]],
            ValueError,
            r"biases\[1\] has shape \(2,\); expected \(n_out,\) = \(3,\)",
        ),
        (W, [B[0][:, None], B[1]], ValueError, r"biases\[0\] has shape \(4, 1\)"),
        ([W[0] * np.nan, W[1]], B, ValueError, r"weights\[0\]\[0, 0\] is nan"),
        (W, [B[0], [0, np.inf, 0]], ValueError, r"biases\[1\]\[1\] is inf"),
        ([W[0] > 0, W[1]], B, TypeError, r"weights\[0\] has dtype bool"),
        ([W[0] + 0j, W[1]], B, TypeError, r"weights\[0\] has dtype complex128"),
        (W, [B[0].astype(np.float16), B[1]], TypeError, r"biases\[0\] has dtype float16"),
        (3, B, TypeError, "weights is a int"),
        (W, None, TypeError, "biases is a NoneType"),
    ],
)
def test_bad_parameters_are_named(weights, biases, kind, message):
    with pytest.raises(kind, match=message):
        fd.SigmoidMLP(weights, biases)


@pytest.mark.parametrize("name", EVALUATIONS)
@pytest.mark.parametrize(
    ("X", "kind", "message"),
    [
        (np.zeros(2), ValueError, r"X has shape \(2,\); expected \(m, n_inputs\) = \(m, 2\)"),
        (np.zeros((2, 3)), ValueError, r"X has shape \(2, 3\)"),
        (np.zeros((1, 2, 2)), ValueError, r"X has shape \(1, 2, 2\)"),
        (np.zeros((3, 2), bool), TypeError, "X has dtype bool"),
        (np.zeros((3, 2), np.longdouble), TypeError, "X has dtype"),
        ([["a", "b"]], TypeError, "X has dtype"),
    ],
)
def test_bad_inputs_are_named(name, X, kind, message):
    with pytest.raises(kind, match=message):
        getattr(network((2, 3, 2)), name)(X)


@pytest.mark.parametrize(
    ("outputs", "kind", "message"),
    [
        ((0, 3), ValueError, r"outputs\[1\] is 3; expected an integer from -3 to 2"),
        ((1, -2), ValueError, r"outputs is \(1, -2\); expected two different outputs"),
        ((0, 1, 2), ValueError, "outputs is .* expected a pair"),
        (1, TypeError, "outputs is 1; expected a pair"),
        ((0, 1.0), TypeError, r"outputs\[1\] is 1.0; expected an integer"),
    ],
)
def test_bad_outputs_are_named(outputs, kind, message):
    net = network((2, 4, 3))
    for call in (net.margin, net.margin_gradient):
        with pytest.raises(kind, match=message):
            call(np.zeros((1, 2)), outputs)


# ---- scikit-learn ----------------------------------------------------------------------------


def trained(classes, layers=(6,), **options):
    from sklearn.datasets import load_iris
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    X, y = load_iris(return_X_y=True)
    X, y = X[y < classes], y[y < classes]
    options = {
        "activation": "logistic",
        "max_iter": 60,
        "random_state": 0,
        "learning_rate_init": 0.05,
        **options,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MLPClassifier(layers, **options).fit(X, y), X


@pytest.mark.parametrize("layers", [(6,), (10, 5, 4), ()])
def test_a_trained_classifier_gives_its_own_probabilities(layers):
    model, X = trained(3, layers)
    z = fd.SigmoidMLP.from_sklearn(model).logits(X)
    p = np.exp(z - z.max(1, keepdims=True))
    assert np.allclose(p / p.sum(1, keepdims=True), model.predict_proba(X), rtol=1e-12)
    assert np.array_equal(z.argmax(1), model.predict(X))


def test_a_trained_binary_classifier_has_one_output():
    model, X = trained(2)
    net = fd.SigmoidMLP.from_sklearn(model)
    assert net.n_outputs == 1
    assert np.allclose(net.forward(X)[:, 0], model.predict_proba(X)[:, 1], rtol=1e-12)
    assert np.array_equal(net.margin(X) > 0, model.predict(X) == 1)


def test_a_tie_of_a_trained_classifier_is_one_of_its_probabilities():
    model, X = trained(3)
    net = fd.SigmoidMLP.from_sklearn(model)
    rows = np.flatnonzero(net.margin(X, (1, 2)) > 0)[:20]
    others = np.delete(X[rows], 2, axis=1)
    with_end = [np.insert(others, 2, end, axis=1) for end in (-100, 100)]
    flips = net.margin(with_end[0], (1, 2)) * net.margin(with_end[1], (1, 2)) < 0
    assert flips.any()
    r = fd.find_x1(net, others[flips], (-100, 100), coordinate=2, outputs=(1, 2))
    p = model.predict_proba(np.insert(others[flips], 2, r.x, axis=1))
    assert np.allclose(p[:, 1], p[:, 2], rtol=1e-9)


def test_other_models_are_refused():
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    with pytest.raises(ValueError, match="model has activation 'relu'; expected 'logistic'"):
        fd.SigmoidMLP.from_sklearn(trained(3, activation="relu", max_iter=2)[0])
    with pytest.raises(ValueError, match="model is not fitted"):
        fd.SigmoidMLP.from_sklearn(MLPClassifier(activation="logistic"))
    for model in (MLPRegressor(activation="logistic"), LogisticRegression(), "model"):
        with pytest.raises(TypeError, match="expected an MLPClassifier"):
            fd.SigmoidMLP.from_sklearn(model)


def test_scikit_learn_and_scipy_are_imported_late():
    code = "import sys, fastderiv; print([m for m in ('sklearn', 'scipy') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, text=True
        ).stdout
        == "[]\n"
    )


# ---- ExponentialSum --------------------------------------------------------------------------


def minus_preactivations(net, X):
    return -(X @ net.weights[0] + net.biases[0])


@pytest.mark.parametrize("units", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("outputs", [1, 3])
def test_exponential_sum_equals_reference(units, outputs):
    net, pair = network((3, units, outputs)), (2, 0) if outputs > 1 else (1, 0)
    ours, plain = (
        fd.ExponentialSum.from_network(net, pair),
        ref.ExponentialSum.from_network(twin(net), pair),
    )
    assert error(ours.coefficients, plain.coefficients) < 1e-14
    B = minus_preactivations(net, inputs(11, 3))
    for a, b in zip(ours.log_evaluate(B), plain.log_evaluate(B), strict=True):
        assert np.allclose(a, b, rtol=1e-10)
    for coordinate in (0, 1, -1):
        assert error(ours.frequencies(coordinate), plain.frequencies(coordinate)) < 1e-14
        assert ours.root_bound(coordinate) == plain.root_bound(coordinate)


def test_coefficients_of_the_source_with_three_units():
    net = network((2, 3, 2))
    d, dc = net.weights[1][:, 0] - net.weights[1][:, 1], net.biases[1][0] - net.biases[1][1]
    C = fd.ExponentialSum.from_network(net).coefficients
    # C0 … C7 of the source: {}, {1}, {2}, {3}, {2,3}, {1,3}, {1,2}, {1,2,3}
    by_source = [d.sum(), d[1] + d[2], d[0] + d[2], d[0] + d[1], d[0], d[1], d[2], 0.0]
    assert np.allclose(C[[0, 1, 2, 4, 6, 5, 3, 7]], dc + np.array(by_source), rtol=0, atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(H=st.integers(1, 8), seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.3, 1.0, 4.0]))
def test_the_sum_over_subsets_has_the_margins_sign_and_size(H, seed, scale):
    net = network((2, H, 2), seed, scale)
    X = inputs(20, 2, seed)
    B, f = minus_preactivations(net, X), net.margin(X)
    sign, logabs = fd.ExponentialSum.from_network(net).log_evaluate(B)
    clear = np.abs(f) > 1e-9 * (1 + np.abs(net.weights[1]).sum())
    assert np.array_equal(sign[clear], np.sign(f[clear]))
    logs = logabs - np.logaddexp(0, B).sum(axis=1)
    assert np.allclose(np.exp(logs[clear]), np.abs(f[clear]), rtol=1e-5)


def test_log_evaluate_does_not_overflow():
    terms = fd.ExponentialSum.from_network(network((1, 16, 2)))
    C = terms.coefficients
    for B in (1000.0, -1000.0, 1e300):
        sign, logabs = terms.log_evaluate(np.full(16, B))
        assert sign == np.sign(C[-1] if B > 0 else C[0])
        assert np.isclose(logabs, (16 * B if B > 0 else 0) + np.log(abs(C[-1] if B > 0 else C[0])))
    wide = np.where(np.arange(16) % 2, 1000.0, -1000.0)
    assert np.isclose(terms.log_evaluate(wide)[1], 8000 + np.log(abs(C[0b1010101010101010])))


def test_log_evaluate_of_any_finite_numbers():
    terms = fd.ExponentialSum.from_network(network((1, 3, 2)))
    C, huge = terms.coefficients, 1e308
    for B, mask, logabs in [
        ([huge] * 3, 7, np.inf),
        ([huge, -huge, 0], 1, huge),
        ([-huge] * 3, 0, np.log(abs(C[0]))),
    ]:
        sign, log = terms.log_evaluate(B)
        top = C[mask] + (C[mask | 4] if B[2] == 0 else 0)
        assert sign == np.sign(top)
        assert np.isclose(log, logabs, rtol=1e-15)
    # d = 3, −3 and Δc = 0: the terms are −3 e^B1 + 3 e^B2, and C is 0 for both at once
    terms = fd.ExponentialSum.from_network(fd.SigmoidMLP([[[1, 1]], [[3], [-3]]], [[0, 0], [0]]))
    assert terms.log_evaluate([huge, huge]) == (0, -np.inf)
    assert terms.log_evaluate([huge, np.nextafter(huge, np.inf)]) == (1, np.nextafter(huge, np.inf))
    # as Σ d = 0 they cancel where their exponents overflow, too
    terms = fd.ExponentialSum.from_network(
        fd.SigmoidMLP([[[1] * 4], [[1], [-1], [0], [0]]], [[0] * 4, [0]])
    )
    assert terms.log_evaluate([huge] * 4) == (0, -np.inf)


def test_log_evaluate_of_infinities_is_quiet():
    terms = fd.ExponentialSum.from_network(network((1, 3, 2)))
    assert np.isnan(terms.log_evaluate([np.inf, -np.inf, 0])).all()
    sign, logabs = terms.log_evaluate([-np.inf, -np.inf, 0])
    C = terms.coefficients
    assert (sign, logabs) == (np.sign(C[0] + C[4]), np.log(abs(C[0] + C[4])))


def test_huge_parameters_are_summed_quietly():
    net = fd.SigmoidMLP([[[1e308, 1e308]], [[1e308, -1e308], [1, 2]]], [[0, 0], [0, 0]])
    terms = fd.ExponentialSum.from_network(net)
    assert terms.coefficients.tolist() == [np.inf, -1, np.inf, 0]
    assert terms.frequencies(0).tolist() == [0, -1e308, -1e308, -np.inf]
    net = fd.SigmoidMLP([np.ones((1, 3)), [[4e307]] * 3], [[0] * 3, [4e307]])
    terms = fd.ExponentialSum.from_network(net)
    sign, logabs = terms.log_evaluate(np.zeros(3))  # 8·(1 + 3/2)·4e307 is more than float64 holds
    assert sign == 1
    assert np.isclose(logabs, np.log(20) + np.log(4e307), rtol=1e-15)


def test_log_evaluate_shapes_zeros_and_nan():
    terms = fd.ExponentialSum.from_network(
        fd.SigmoidMLP([[[1, 1]], [[1], [-1]]], [[0, 0], [0]])
    )  # e^B2 − e^B1
    sign, logabs = terms.log_evaluate(np.zeros((3, 4, 2)))
    assert sign.shape == logabs.shape == (3, 4)
    assert np.all(sign == 0)
    assert np.all(logabs == -np.inf)
    sign, logabs = terms.log_evaluate([[0, np.nan], [2, 1], [-np.inf, 1]])
    assert np.isnan(sign[0]) and np.isnan(logabs[0])
    assert np.array_equal(sign[1:], [-1, 1])
    # a term whose coefficient is zero says nothing, however large its exponential
    sign, logabs = terms.log_evaluate([[1000.0, 2000.0], [2000.0, 1000.0], [-np.inf, -np.inf]])
    assert np.array_equal(sign, [1, -1, 0])
    assert np.array_equal(logabs, [2000.0, 2000.0, -np.inf])
    assert terms.log_evaluate(np.zeros((0, 2)))[0].shape == (0,)
    assert isinstance(terms.log_evaluate(np.zeros(2))[0], np.float64)


def test_log_evaluate_in_blocks_equals_one_block(monkeypatch):
    from fastderiv.boundary.line import _expsum

    net, B = network((1, 9, 2)), inputs(50, 9)
    whole = fd.ExponentialSum.from_network(net).log_evaluate(B)
    monkeypatch.setattr(_expsum, "_BLOCK_UNITS", 4)
    for a, b in zip(whole, fd.ExponentialSum.from_network(net).log_evaluate(B), strict=True):
        assert np.allclose(a, b, rtol=1e-12)


def test_the_network_with_five_roots_is_within_its_bound():
    net = five_roots()
    bound = fd.ExponentialSum.from_network(net).root_bound(0)
    t = np.unique(
        np.concatenate(
            [
                np.linspace(-20, 20, 200001),
                2 + np.linspace(-1, 1, 20001),
                -2 + np.linspace(-1, 1, 20001),
            ]
        )
    )
    f = net.margin(np.c_[t, np.zeros_like(t)])
    roots = np.flatnonzero(f[:-1] * f[1:] < 0)
    assert len(roots) == 5
    assert bound >= 5
    assert (bound - 5) % 2 == 0
    found = fd.find_x1(net, np.zeros(5), (t[roots], t[roots + 1]))
    assert np.all(found.converged)
    assert np.all(np.abs(net.margin(np.c_[found.x, np.zeros(5)])) < 1e-10)


@settings(max_examples=60, deadline=None)
@given(H=st.integers(1, 5), seed=st.integers(0, 2**32 - 1), whole=st.booleans())
def test_no_row_has_more_ties_than_the_bound(H, seed, whole):
    rng = np.random.default_rng(seed)
    draw = (
        (lambda *s: rng.integers(-2, 3, s).astype(float))
        if whole
        else (lambda *s: 3 * rng.standard_normal(s))
    )
    net = fd.SigmoidMLP([draw(2, H), draw(H, 2)], [draw(H), draw(2)])
    try:
        bound = fd.ExponentialSum.from_network(net).root_bound(0)
    except ValueError:
        assert np.allclose(net.margin(inputs(30, 2)), 0, atol=1e-14)
        return
    t = np.linspace(-12, 12, 4001)
    for x2 in (-1.3, 0.0, 0.4, 2.0):
        f = net.margin(np.c_[t, np.full_like(t, x2)])
        f = f[np.abs(f) > 1e-13]
        assert np.count_nonzero(f[:-1] * f[1:] < 0) <= bound


@settings(max_examples=150, deadline=None)
@given(H=st.integers(1, 4), n_in=st.integers(1, 2), seed=st.integers(0, 2**32 - 1))
def test_root_bound_equals_reference_where_many_terms_merge(H, n_in, seed):
    rng = np.random.default_rng(seed)
    weights, biases = rng.integers(-1, 2, (n_in, H)), rng.integers(0, 2, H)
    net = fd.SigmoidMLP([weights, rng.integers(-3, 4, (H, 1))], [biases, rng.integers(-3, 4, 1)])
    bounds = []
    for module, same in ((fd, net), (ref, twin(net))):
        try:
            bounds.append(module.ExponentialSum.from_network(same).root_bound(n_in - 1))
        except ValueError as error:
            bounds.append(str(error))
    assert bounds[0] == bounds[1]


def test_terms_of_equal_frequency_merge_only_if_the_other_inputs_cannot_part_them():
    # along coordinate 0 the frequencies are 0, −1, −1, −2 and C = (1, −2, 2, −1)·…: the sum of the
    # middle pair may have either sign
    weights, head, bias = [[1, 1], [0, 5]], [[3.0], [-1.0]], [[0, 0], [-1.0]]
    net = fd.SigmoidMLP([weights, head], bias)
    terms = fd.ExponentialSum.from_network(net)
    assert terms.coefficients.tolist() == [1.0, -2.0, 2.0, -1.0]
    assert terms.root_bound(0) == 1  # +, ±, −
    net = fd.SigmoidMLP([[[1, 1], [0, 5]], [[3.0], [-1.0]]], [[0, 0], [1.0]])
    assert fd.ExponentialSum.from_network(net).coefficients.tolist() == [3.0, 0.0, 4.0, 1.0]
    assert fd.ExponentialSum.from_network(net).root_bound(0) == 0
    # C = (3, −3, 7, 1): + ± +, so two ties may appear as the other input moves
    net = fd.SigmoidMLP([[[1, 1], [0, 5]], [[6.0], [-4.0]]], [[0, 0], [1.0]])
    terms = fd.ExponentialSum.from_network(net)
    assert terms.coefficients.tolist() == [3.0, -3.0, 7.0, 1.0]
    assert terms.root_bound(0) == 2
    t = np.linspace(-30, 30, 6001)
    counts = [
        np.count_nonzero(np.diff(np.sign(net.margin(np.c_[t, np.full_like(t, x2)]))))
        for x2 in (-3.0, 3.0)
    ]
    assert 2 in counts
    # with equal weights on every input the two units are one: C = 3, −3 + 7, 1
    net = fd.SigmoidMLP([[[1, 1], [5, 5]], [[6.0], [-4.0]]], [[2, 2], [1.0]])
    assert fd.ExponentialSum.from_network(net).root_bound(0) == 0


def test_the_bound_is_decided_exactly():
    # d1 + d2 + Δc is 2**-60: lost in floating point beside 1
    net = fd.SigmoidMLP([[[1, 2]], [[1.0], [-1.0]]], [[0, 0], [2.0**-60]])
    assert (
        fd.ExponentialSum.from_network(net).root_bound(0) == 2
    )  # 2^-60, −1 + 2^-60, 1 + 2^-60, 2^-60
    net = fd.SigmoidMLP([[[1, 1 + 2**-52]], [[3.0], [-3.0]]], [[0, 0], [0.0]])
    assert fd.ExponentialSum.from_network(net).root_bound(0) == 1
    # v1 − v2 is exact here although it rounds in floating point
    net = fd.SigmoidMLP([[[1]], [[1.0, -(2.0**-60)]]], [[0], [-1.0, 0.0]])
    assert fd.ExponentialSum.from_network(net).root_bound(0) == 1


def test_an_identically_zero_sum_is_an_error():
    nets = [
        fd.SigmoidMLP([[[1, 2]], [[1, 1], [3, 3]]], [[0, 0], [2, 2]]),
        fd.SigmoidMLP([[[2, 2]], [[1.5], [-1.5]]], [[1, 1], [0]]),
        fd.SigmoidMLP([[[1, -1]], [[1], [1]]], [[3, -3], [-1]]),  # σ(t) + σ(−t) = 1
    ]
    for net in nets:
        with pytest.raises(ValueError, match="every x is a root"):
            fd.ExponentialSum.from_network(net).root_bound(0)


def test_exponential_sum_errors_and_copies():
    with pytest.raises(ValueError, match="net has 2 hidden layers; expected one"):
        fd.ExponentialSum.from_network(network((2, 3, 3, 2)))
    with pytest.raises(ValueError, match="net has 0 hidden layers"):
        fd.ExponentialSum.from_network(network((2, 2)))
    with pytest.raises(ValueError, match="63 hidden units; expected at most 62"):
        fd.ExponentialSum.from_network(network((2, 63, 2)))
    with pytest.raises(TypeError, match="net is a str"):
        fd.ExponentialSum.from_network("net")
    huge = fd.ExponentialSum.from_network(network((2, 60, 2)))
    for call in (
        lambda: huge.coefficients,
        lambda: huge.frequencies(0),
        lambda: huge.root_bound(0),
        lambda: huge.log_evaluate(np.zeros(60)),
    ):
        with pytest.raises(MemoryError, match=r"would take \d+ bytes"):
            call()
    terms = fd.ExponentialSum.from_network(network((2, 3, 2)))
    with pytest.raises(ValueError, match=r"B has shape \(4, 2\); expected \(..., H\) = \(..., 3\)"):
        terms.log_evaluate(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="coordinate is 2; expected an integer from -2 to 1"):
        terms.frequencies(2)
    with pytest.raises(TypeError, match=r"coordinate is 0\.0"):
        terms.root_bound(0.0)
    with pytest.raises(ValueError, match="read-only"):
        terms.coefficients[0] = 1
    assert same_bits(pickle.loads(pickle.dumps(terms)).coefficients, terms.coefficients)


# ---- find_x1 ---------------------------------------------------------------------------------


def monotone(sizes=(2, 5, 2), seed=0):
    """A network whose margin increases along every input and changes sign: one root per row."""
    weights, biases = parameters(sizes, seed)
    weights = [np.abs(w) + 0.1 for w in weights]
    weights[-1][:, 1:] *= -1
    net = fd.SigmoidMLP(weights, biases)
    middle = net.margin(np.zeros((1, sizes[0])))[0]
    return fd.SigmoidMLP(weights, [*biases[:-1], biases[-1] - np.eye(sizes[-1])[0] * middle])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [(2, 5, 2), (1, 3, 1), (3, 4, 4, 3)])
def test_every_method_finds_the_root(method, sizes):
    net, coordinate = monotone(sizes), sizes[0] - 1
    x_other = inputs(8, sizes[0] - 1, scale=0.2)
    r = fd.find_x1(net, x_other, (-2.0, 2.5), coordinate=coordinate, method=method)
    assert r.converged.all()
    X = np.insert(x_other, coordinate, r.x, axis=1)
    assert np.abs(net.margin(X)).max() < 1e-11
    expected = ref.find_x1(twin(net), x_other, (-2.0, 2.5), coordinate=coordinate, method="bisect")
    assert np.allclose(r.x, expected.x, rtol=0, atol=1e-11)
    assert r.x.dtype == np.float64 and r.converged.dtype == bool
    assert r.iterations.dtype == r.function_calls.dtype == np.intp
    assert all(field.shape == (8,) for field in r)


@pytest.mark.parametrize("method", METHODS)
def test_roots_against_mpmath(method):
    net = monotone()
    w, v = net.weights
    x2 = np.array([-0.2, 0.1])
    r = fd.find_x1(net, x2, (-3, 3), method=method)

    def margin(t, x):
        n = [w[0, i] * t + (mpmath.mpf(w[1, i]) * x + net.biases[0][i]) for i in range(5)]
        y = [1 / (1 + mpmath.exp(-k)) for k in n]
        return (
            sum((mpmath.mpf(v[i, 0]) - v[i, 1]) * y[i] for i in range(5))
            + mpmath.mpf(net.biases[1][0])
            - net.biases[1][1]
        )

    with mpmath.workdps(30):
        exact = [
            float(mpmath.findroot(lambda t, x=x: margin(t, x), (-3, 3), solver="anderson"))
            for x in x2
        ]
    assert np.allclose(r.x, exact, rtol=0, atol=5e-12)


@pytest.mark.parametrize("method", METHODS)
def test_find_x1_does_what_the_reference_does(method):
    net, x2 = monotone(), inputs(6, 1, scale=0.2)[:, 0]
    ours, plain = (
        fd.find_x1(net, x2, (-2, 3), method=method),
        ref.find_x1(twin(net), x2, (-2, 3), method=method),
    )
    assert np.array_equal(ours.converged, plain.converged)
    assert np.allclose(ours.x, plain.x, rtol=0, atol=1e-11)
    assert np.abs(ours.iterations - plain.iterations).max() <= 3
    assert np.abs(ours.function_calls - plain.function_calls).max() <= 6


def test_the_row_loop_is_scipys_brentq_on_the_margin():
    net, x2 = monotone(), inputs(5, 1, scale=0.2)[:, 0]
    ours = fd.find_x1(net, x2, (-2, 3), xtol=1e-9, maxiter=50)
    for i, x in enumerate(x2):

        def f(t, x=x):
            return net.margin([[t, x]])[0]

        root, r = optimize.brentq(f, -2, 3, xtol=1e-9, maxiter=50, full_output=True)
        assert (ours.x[i], ours.iterations[i], ours.function_calls[i]) == (
            root,
            r.iterations,
            r.function_calls,
        )


@pytest.mark.parametrize("method", METHODS)
def test_a_root_at_an_end_is_that_end(method):
    net = fd.SigmoidMLP([[[1.0], [1.0]], [[1.0]]], [[0.0], [-0.5]])  # ties exactly at x1 = −x2
    r = fd.find_x1(net, [1.0, 1.0, 1.0], ([-1.0, -3.0, -2.0], [4.0, -1.0, 1.0]), method=method)
    assert np.all(r.converged)
    assert np.array_equal(r.x[:2], [-1.0, -1.0])
    assert np.isclose(r.x[2], -1.0)
    assert r.iterations[:2].tolist() == [0, 0]
    assert fd.find_x1(net, 2.0, (-2.0, -2.0), method=method).x == -2.0


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_do_not_converge_say_so(method):
    net, x2 = five_roots(), np.array([0.0, 0.1])
    r = fd.find_x1(net, x2, (-30.0, 31.0), method=method, maxiter=1)
    assert not r.converged.any()
    assert r.x.shape == (2,)


def test_secant_steps_shorter_than_the_tolerance_are_not_convergence():
    net = fd.SigmoidMLP(
        [[[1.0]], [[1.0]]], [[0.0], [-1e-14]]
    )  # a tie at −32.236, a margin of 1e-14 far left of it
    tie = np.log(1e-14 / (1 - 1e-14))
    for library in (fd, ref):
        r = library.find_x1(
            library.SigmoidMLP(net.weights, net.biases), [[]], (-50.0, 5.0), method="secant"
        )
        assert not r.converged[0]
        assert abs(r.x[0] - tie) > 1
        for method in METHODS:
            r = library.find_x1(
                library.SigmoidMLP(net.weights, net.biases), [[]], (-33.0, -32.0), method=method
            )
            assert abs(r.x[0] - tie) < 1e-11 or not r.converged[0]


def random_lines(count):
    """Networks of one input, flat and steep, with a bracket of one tie or of several."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        scale, units = 10.0 ** rng.uniform(-2, 3), int(rng.integers(1, 6))
        sizes = 10.0 ** rng.integers(-8, 8, (units, 1)) if seed % 3 == 0 else 1.0
        weights, bias = (
            [rng.normal(0, scale, (1, units)), rng.normal(0, 1, (units, 1)) * sizes],
            rng.normal(0, scale, units) * 3,
        )
        lo, hi = sorted(rng.normal(size=2) * 10.0 ** rng.uniform(-1, 2))
        middle = fd.SigmoidMLP(weights, [bias, [0.0]]).margin([[rng.uniform(lo, hi)]])
        net = fd.SigmoidMLP(weights, [bias, -middle])
        f = net.margin([[lo], [hi]])
        if f[0] * f[1] < 0:
            yield net, lo, hi


@pytest.mark.parametrize("method", METHODS)
def test_converged_is_what_it_says(method):
    converged = []
    for net, lo, hi in random_lines(120):
        (x,), (good,) = fd.find_x1(net, [[]], (lo, hi), method=method)[:2]
        reach = 2e-12 + 8.881784197001252e-16 * abs(x)
        if good:
            near = net.margin(np.linspace(x - reach, x + reach, 2001)[:, None])
            assert near.min() <= 0 <= near.max()
        converged.append(good)
    assert np.mean(converged) > (0.6 if method in ("newton", "secant") else 0.999)


@pytest.mark.parametrize("method", METHODS)
def test_the_solvers_own_change_of_sign_counts_where_rounding_makes_many(method):
    # 1e8 (σ(x) − ½) as the difference of terms of 1e16: within 1e-8 of 0 rounding decides signs
    net = fd.SigmoidMLP([[[1.0, 1.0]], [[1e16], [-1e16 + 1e8]]], [[0.0, 0.0], [-5e7]])
    r = fd.find_x1(net, [[]], (-3.0, 4.0), method=method)
    if method not in ("newton", "secant"):
        assert r.converged[0]
    assert abs(r.x[0]) < 1e-6 or not r.converged[0]


def test_newton_that_runs_away_is_not_converged():
    net = fd.SigmoidMLP([[[1.0]], [[1.0]]], [[0.0], [-0.5]])
    r = fd.find_x1(net, np.zeros((1, 0)), (-20.0, 60.0), method="newton")
    assert not r.converged[0]


def test_many_rows_at_once_equal_the_rows_alone():
    net, m = monotone((3, 5, 2)), 3000
    x_other, lo = inputs(m, 2, scale=0.1), np.full(m, -3.0)
    lo[::7] = fd.find_x1(
        net, x_other[::7], (-3, 3), coordinate=1
    ).x  # some so close to an end that few steps remain
    lo[::7] -= 1e-9
    together = fd.find_x1(net, x_other, (lo, 3.0), coordinate=1, method="chandrupatla")
    assert together.converged.all()
    assert np.abs(net.margin(np.insert(x_other, 1, together.x, axis=1))).max() < 1e-11
    for i in (0, 1, 7, 1500, 2999):
        alone = fd.find_x1(
            net, x_other[i : i + 1], (lo[i], 3.0), coordinate=1, method="chandrupatla"
        )
        assert same_bits(together.x[i : i + 1], alone.x)


def test_where_newton_and_secant_start(monkeypatch):
    starts, newton = [], optimize.newton
    monkeypatch.setattr(
        optimize,
        "newton",
        lambda f, x0, *a, **k: starts.append((x0, k.get("x1"))) or newton(f, x0, *a, **k),
    )
    fd.find_x1(monotone(), [0.0, 0.1], ([-2, -3], 2.5), method="newton")
    fd.find_x1(monotone(), [0.0], (2.5, -2), method="secant")
    assert starts == [(0.25, None), (-0.25, None), (-2.0, 2.5)]


def test_infinity_is_never_a_root(monkeypatch):
    found = {"converged": True, "iterations": 3, "function_calls": 4}
    monkeypatch.setattr(optimize, "newton", lambda *a, **k: (np.inf, found))
    assert not fd.find_x1(monotone(), 0.0, (-2, 3), method="secant").converged


def test_bracket_forms():
    net, x2 = monotone(), np.array([0.05, -0.05, 0.1])
    expected = fd.find_x1(net, x2, (-2.0, 3.0)).x
    for bracket in [
        ([-2.0] * 3, 3.0),
        (np.float32(-2), [3] * 3),
        (3.0, -2.0),
        np.array([-2.0, 3.0]),
        [[3, -2, 3], [-2, 3, -2]],
    ]:
        for method in METHODS:
            assert np.allclose(fd.find_x1(net, x2, bracket, method=method).x, expected, atol=1e-11)


def test_x_other_forms():
    net = monotone()
    scalar = fd.find_x1(net, 0.1, (-2, 3))
    assert scalar.x.shape == (1,)
    for x_other in ([0.1], [[0.1]], np.array(0.1), np.array([0.1], ">f8")):
        assert same_bits(fd.find_x1(net, x_other, (-2, 3)).x, scalar.x)
    empty = fd.find_x1(net, [], (-2, 3))
    assert all(field.shape == (0,) for field in empty)
    assert empty.converged.dtype == bool
    three = monotone((3, 4, 2))
    rows = inputs(4, 2, scale=0.1)
    expected = fd.find_x1(three, rows, (-3, 3), coordinate=1).x
    for label, view in layouts(rows):
        before = snapshot(view)
        assert same_bits(fd.find_x1(three, view, (-3, 3), coordinate=-2).x, expected), label
        assert snapshot(view) == before


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"net": "net"}, TypeError, "net is a str; expected a SigmoidMLP"),
        (
            {"x_other": [[0.1, 0.2]]},
            ValueError,
            r"x_other has shape \(1, 2\); expected .* = \(m, 1\), \(m,\) or a scalar",
        ),
        ({"x_other": [0.0, np.nan]}, ValueError, r"x_other\[1\] is nan"),
        ({"x_other": np.inf}, ValueError, "x_other is inf"),
        ({"x_other": [True]}, TypeError, "x_other has dtype bool"),
        ({"bracket": (-2, np.inf)}, ValueError, r"bracket\[1\] is inf"),
        ({"bracket": (np.nan, 2)}, ValueError, r"bracket\[0\] is nan"),
        ({"bracket": 2}, TypeError, "bracket is a int; expected a pair"),
        ({"bracket": (1, 2, 3)}, ValueError, "bracket has 3 elements"),
        (
            {"bracket": ([1, 2], 3)},
            ValueError,
            r"bracket\[0\] has shape \(2,\); expected a scalar or \(m,\) = \(3,\)",
        ),
        ({"bracket": ([-2], 3)}, ValueError, r"bracket\[0\] has shape \(1,\)"),
        ({"bracket": (-2j, 3)}, TypeError, r"bracket\[0\] has dtype complex128"),
        (
            {"bracket": ([-2, 2.5, -2], 3)},
            ValueError,
            r"bracket has no change of sign in row 1: the margin is \d.* at 2.5 and \d.* at 3",
        ),
        (
            {"bracket": ([-2, -1.7e308, -2], [3, 1.7e308, 3])},
            ValueError,
            r"bracket is too wide in row 1: 1.7e\+308 - -1.7e\+308 overflows",
        ),
        ({"coordinate": 2}, ValueError, "coordinate is 2; expected an integer from -2 to 1"),
        ({"coordinate": "x"}, TypeError, "coordinate is 'x'"),
        ({"outputs": (0, 0)}, ValueError, "outputs is"),
        (
            {"method": "regula"},
            ValueError,
            "method is 'regula'; expected one of brentq, .*, chandrupatla",
        ),
        ({"xtol": 0}, ValueError, "xtol is 0.0; expected a positive number"),
        ({"xtol": np.nan}, ValueError, "xtol is nan"),
        ({"xtol": "1"}, TypeError, "xtol is '1'"),
        ({"xtol": np.array([1e-3])}, TypeError, "xtol is array.*; expected a number"),
        ({"rtol": 1e-17}, ValueError, "rtol is 1e-17; expected at least 4 eps"),
        ({"rtol": None}, TypeError, "rtol is None"),
        ({"maxiter": 0}, ValueError, "maxiter is 0; expected an integer of at least 1"),
        ({"maxiter": 5.0}, TypeError, "maxiter is 5.0; expected an integer"),
    ],
)
def test_bad_arguments_of_find_x1_are_named(arguments, kind, message):
    call = {"net": monotone(), "x_other": [0.0, 0.1, 0.2], "bracket": (-2.0, 3.0), **arguments}
    with pytest.raises(kind, match=message):
        fd.find_x1(**call)


def test_options_may_be_arrays_without_axes():
    expected = fd.find_x1(monotone(), [0.1], (-2, 3), coordinate=1, xtol=1e-3, rtol=1e-6, maxiter=7)
    options = {
        "coordinate": np.array(1),
        "xtol": np.array(1e-3),
        "rtol": np.array(1e-6),
        "maxiter": np.array(7),
    }
    result = fd.find_x1(monotone(), [0.1], (-2, 3), **options)
    assert all(same_bits(a, b) for a, b in zip(result, expected, strict=True))


def test_no_row_is_solved_before_all_are_checked(monkeypatch):
    monkeypatch.setattr(optimize, "brentq", lambda *a, **k: pytest.fail("solved"))
    with pytest.raises(ValueError, match="row 1"):
        fd.find_x1(monotone(), [0.0, 0.0], ([-2.0, 2.0], 3.0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "bracket", [(-1.7e308, 1.7e308), (-8e307, 8e307), (1e308, -7e307), (-1e308, 2.0)]
)
def test_huge_brackets_are_solved_or_refused_quietly(method, bracket):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            r = fd.find_x1(monotone(), [0.0, 0.3], bracket, method=method, maxiter=2000)
        except ValueError as refusal:
            assert bracket == (-1.7e308, 1.7e308) and "bracket is too wide in row 0" in str(refusal)
        else:
            assert np.all(np.isfinite(r.x) | ~r.converged)
            if method in ("bisect", "chandrupatla"):
                assert np.allclose(
                    r.x, fd.find_x1(monotone(), [0.0, 0.3], (-50, 50)).x, rtol=0, atol=1e-11
                )


@pytest.mark.parametrize("method", METHODS)
def test_infinite_margins_are_solved_or_refused_quietly(method):
    # −inf to inf: two units of weight 1.7e308 rise where two others fall
    net = fd.SigmoidMLP(
        [[[9.0, 9.0, -9.0, -9.0]], [[1.7e308], [1.7e308], [-1.7e308], [-1.7e308]]], [[0] * 4, [0]]
    )
    try:
        r = fd.find_x1(net, np.zeros((2, 0)), ([-30, -30], 40), method=method)
    except ValueError as refusal:
        assert "bracket from -30.0 to 40.0 in row 0" in str(refusal)
    else:
        assert not r.converged.any() or np.allclose(r.x, 0, atol=1e-11)


@pytest.mark.parametrize("method", ["newton", "secant"])
@pytest.mark.parametrize("maxiter", [1, 2, 3, 50])
def test_flat_ends_are_scipys_to_the_last_field(method, maxiter):
    rng = np.random.default_rng(7)
    stuck = 0
    for _ in range(150):
        w = 10 ** rng.uniform(0, 3)
        net = fd.SigmoidMLP(
            [[[w, w]], [[2.0], [rng.integers(-3, 4)]]], [rng.normal(size=2) * w, [rng.normal()]]
        )
        lo, hi = rng.normal(size=2) * 3
        f = _kernels.Line(margin_of(net, (0, 1)).compiled.program, 0)
        f.prepare(np.zeros((1, 1)), 0)
        if f(lo) * f(hi) >= 0:
            continue
        lo, hi = sorted((lo, hi))
        options = {
            "tol": 1e-12,
            "rtol": 1e-15,
            "maxiter": maxiter,
            "full_output": True,
            "disp": False,
        }
        with warnings.catch_warnings(record=True) as given, np.errstate(all="ignore"):
            warnings.simplefilter("always")
            start = (
                {"x0": lo, "x1": hi}
                if method == "secant"
                else {"x0": lo / 2 + hi / 2, "fprime": f.derivative}
            )
            x, r = optimize.newton(f, **start, **options)
        stuck += len(given)
        ours = fd.find_x1(
            net, [[]], (lo, hi), method=method, xtol=1e-12, rtol=1e-15, maxiter=maxiter
        )
        expected = (x, r.converged and np.isfinite(x), r.iterations, r.function_calls)
        assert np.array_equal([field[0] for field in ours], expected, equal_nan=True)
    assert stuck > 3 or maxiter == 1


def test_python_threads_leave_the_warning_filters_alone():
    net = fd.SigmoidMLP([[[300.0]], [[1.0]]], [[0.0], [-0.3]])  # flat away from the root
    before = list(warnings.filters)

    def work(_):
        for method in ("newton", "secant") * 20:
            fd.find_x1(net, np.zeros((20, 0)), (-8, 9), method=method)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))  # raises what a thread raised
    finally:
        sys.setswitchinterval(interval)
    assert warnings.filters == before


@pytest.mark.parametrize("method", ["brentq", "secant", "chandrupatla"])
def test_blocks_of_rows_give_the_bits_of_one_block(method, monkeypatch):
    net, x_other, lo = monotone(), inputs(50, 1, scale=0.2), np.linspace(-4, -2, 50)
    lo[7] = fd.find_x1(net, x_other[7:8], (-2, 3), method="bisect", xtol=1e-300).x[0]
    whole = fd.find_x1(net, x_other, (lo, 3.0), method=method)
    monkeypatch.setattr(_roots, "_BLOCK", 7)
    assert all(
        same_bits(a, b)
        for a, b in zip(fd.find_x1(net, x_other, (lo, 3.0), method=method), whole, strict=True)
    )
    with pytest.raises(ValueError, match="bracket has no change of sign in row 29: "):
        fd.find_x1(net, x_other, (np.where(np.arange(50) == 29, 2.9, lo), 3.0), method=method)


@pytest.mark.parametrize("method", ["brentq", "chandrupatla"])
def test_memory_beside_the_results_is_bounded(method):
    net, x2 = monotone(), np.broadcast_to(0.1, 20_000)
    fd.find_x1(net, x2[:10], (-2, 3), method=method)
    tracemalloc.start()
    try:
        results = fd.find_x1(net, x2, (-2, 3), method=method, maxiter=4)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - sum(field.nbytes for field in results) < 2 << 20


def test_results_pickle():
    r = fd.find_x1(monotone(), [0.0, 0.1], (-2, 3))
    again = pickle.loads(pickle.dumps(r))
    assert isinstance(again, fd.RootResults)
    assert all(same_bits(a, b) for a, b in zip(r, again, strict=True))


# ---- signals ---------------------------------------------------------------------------------


def a_big_batch():
    net, X = network((16, 256, 256, 2)), np.broadcast_to(inputs(1, 16), (2_000_000, 16))
    return lambda: net.margin(X)


def many_rows(method):
    net, x_other = monotone(), np.broadcast_to(0.1, 2_000_000)
    return lambda: fd.find_x1(net, x_other, (-2.0, 3.0), method=method)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "long",
    [a_big_batch(), *map(many_rows, ("brentq", "newton", "toms748", "chandrupatla"))],
    ids=["margin", "brentq", "newton", "toms748", "chandrupatla"],
)
def test_ctrl_c_is_answered_at_once(long, threads):
    before = fd.get_num_threads()
    fd.set_num_threads(threads)
    try:
        assert seconds_until_answered(long, delay=0.2) < ALLOWED
    finally:
        fd.set_num_threads(before)
