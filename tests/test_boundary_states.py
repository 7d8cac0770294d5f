"""The same bits of every function whatever the caller's thread, arrays and machine are like."""

import threading

import numpy as np
import pytest

import fastderiv as fd
from fastderiv.boundary.line import _roots
from fastderiv.boundary.line._finders import METHODS
from fastderiv.boundary.line._rows import other_inputs
from helpers.awkward import same_bits
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import control_register
from test_boundary import network
from test_boundary_follow import on_axis, ring
from test_boundary_sensitivity import centred

BOX = ((-2.0, 2.0), (-2.0, 2.0))


def tiny():
    """Weights, sums and slopes whose products underflow, beside ordinary ones."""
    rng = np.random.default_rng(3)
    weights = [
        rng.normal(size=(2, 6)) * [1, 1, 1e-200, 1, 1e-310, 1],
        rng.normal(size=(6, 3)) * [[1], [1], [1], [1e-310], [1], [1e-200]],
    ]
    return fd.SigmoidMLP(weights, [np.array([0.1, -0.2, 1e-310, 0, 0, 0.3]), [0.1, 0.0, -1e-320]])


def fields(result):
    return [
        np.asarray(a)
        for part in result
        for a in (part if isinstance(part, (tuple, list)) else [part])
    ]


def intervals(d):
    return [d.indptr, d.lower, d.upper, d.output, d.complete, d.proven]


NETS = {
    "centred": centred((2, 5, 2), 3),
    "many": network((2, 7, 4), 2, 3.0),
    "tiny": tiny(),
    "plane": centred((2, 6, 2), 4),
    "ring": ring(),
    "three": centred((3, 6, 4), 1),
    "products": fd.SigmoidMLP([[[1e-155], [1.0]]], [[0.0]]),
}
ROWS, START = np.linspace(-2, 2, 9), on_axis(ring())


def fresh(name):
    """The network, of which nothing is packed yet: that happens inside of the call."""
    return fd.SigmoidMLP(NETS[name].weights, NETS[name].biases)


def methods():
    return [a for m in METHODS for a in fd.find_x1(fresh("centred"), [0.0], (-1.5, 1.25), method=m)]


CALLS = {
    "find_x1": methods,
    "decision_intervals": lambda: intervals(fd.decision_intervals(fresh("many"), ROWS)),
    "decision_intervals, tiny": lambda: intervals(fd.decision_intervals(fresh("tiny"), ROWS)),
    "trace_boundary": lambda: fields(fd.trace_boundary(fresh("plane"), BOX)),
    "trace_boundary, tiny": lambda: fields(fd.trace_boundary(fresh("tiny"), BOX, outputs=(0, 1))),
    "follow_boundary": lambda: [fd.follow_boundary(fresh("ring"), START, 1.5, step=0.1)],
    "tie_sensitivity": lambda: fields(fd.tie_sensitivity(fresh("three"), np.zeros(3))),
    "tie_sensitivity, tiny": lambda: fields(
        fd.tie_sensitivity(fresh("products"), [0.0, 0.0], coordinate=1)
    ),
}
STATES = [
    {"rounding": "up"},
    {"rounding": "down"},
    {"rounding": "zero"},
    {"flush": True},
    {"rounding": "up", "flush": True},
]


@pytest.mark.parametrize("state", STATES, ids=lambda s: " ".join(map(str, s.values())))
@pytest.mark.parametrize("name", CALLS)
def test_the_threads_floating_point_state_does_not_matter(name, state):
    call = CALLS[name]
    expected = call()
    with control_register(**state):
        before = witness()
        results = call()
        after = witness()
    assert before == after
    assert len(results) == len(expected)
    assert all(map(same_bits, results, expected))


def witness():
    """Sums, quotients and products that differ from state to state."""
    one, small = np.float64(1.0), np.float64(2.0**-1022)
    return (
        float(one / 3),
        float(-one / 3),
        float(one + small),
        float(one - small),
        float(small / 2),
        float(small / 2 * 4),
    )


@pytest.mark.parametrize("name", CALLS)
def test_numpys_error_state_does_not_matter(name):
    expected = CALLS[name]()
    with np.errstate(all="raise"):
        results = CALLS[name]()
        assert set(np.geterr().values()) == {"raise"}
    assert all(map(same_bits, results, expected))


# ---- arguments ----------------------------------------------------------------------------------


def hostile(value, name):
    """(argument, kind of error, message) that are no plain numbers."""
    torch = pytest.importorskip("torch")
    value = np.array(value, float)
    yield (
        np.ma.masked_array(value, mask=np.ones(value.shape, bool)),
        TypeError,
        f"{name} is a masked array",
    )
    yield torch.tensor(value, requires_grad=True), (TypeError, ValueError), f"{name} .*grad"
    yield value.astype(complex), TypeError, f"{name} has dtype complex128"
    yield np.full(value.shape, "1"), TypeError, f"{name} has dtype"
    yield np.full(value.shape, np.nan), ValueError, name


ARGUMENTS = {
    "x_other": ([0.0, 0.1], lambda a: fd.find_x1(centred((2, 5, 2), 3), a, (-1.5, 1.25))),
    "x_other ": ([0.0, 0.1], lambda a: fd.decision_intervals(network((2, 5, 2)), a)),
    r"bracket\[0\]": ([-1.5], lambda a: fd.find_x1(centred((2, 5, 2), 3), [0.0], (a, 1.25))),
    "bounds": ([-1.5, 1.0], lambda a: fd.decision_intervals(network((2, 5, 2)), [0.0], bounds=a)),
    "bounds ": (BOX, lambda a: fd.trace_boundary(network((2, 5, 2)), a)),
    "at": ([0.0, 0.0, 0.5], lambda a: fd.trace_boundary(network((3, 5, 2)), BOX, at=a)),
    "start": ([0.0, 0.0], lambda a: fd.follow_boundary(centred((2, 5, 2)), a, 1.0)),
    "x": ([0.0, 0.0], lambda a: fd.tie_sensitivity(centred((2, 5, 2)), a)),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arrays_that_are_no_plain_numbers_are_named(name):
    value, call = ARGUMENTS[name]
    for bad, kind, message in hostile(value, name.strip()):
        with pytest.raises(kind, match=message):
            call(bad)
    call(np.array(value))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_tensors_and_frames_of_numbers_are_taken(name):
    torch, pandas = pytest.importorskip("torch"), pytest.importorskip("pandas")
    value, call = ARGUMENTS[name]
    array = np.array(value)
    frame = pandas.Series(array) if array.ndim == 1 else pandas.DataFrame(array)
    expected = call(array)
    for same in (torch.tensor(array), frame):
        result = call(same)
        if isinstance(expected, np.ndarray):
            assert same_bits(result, expected)
        elif isinstance(expected, fd.DecisionIntervals):
            assert all(map(same_bits, intervals(result), intervals(expected)))
        else:
            assert all(map(same_bits, fields(result), fields(expected)))


def test_what_is_checked_is_our_own():
    array = np.array([[0.5], [0.25]])
    for x in (
        array,
        array[:, 0],
        array[::-1],
        np.broadcast_to(array[:1], (5, 1)),
        np.broadcast_to(0.5, 3),
    ):
        own = other_inputs(network((2, 3, 2)), x, 0)
        assert not np.shares_memory(own, x)
        assert np.array_equal(own, np.reshape(x, (-1, 1)))
    lo = np.array([-1.0, -2.0])
    assert not any(np.shares_memory(end, lo) for end in _roots._ends((lo, lo), 2))
    with pytest.raises(ValueError, match=r"x_other\[0, 1\] is nan"):
        other_inputs(network((3, 3, 2)), np.broadcast_to([0.0, np.nan], (4, 2)), 0)


def test_arrays_that_change_during_a_call_have_no_effect():
    net, m = centred((2, 5, 2), 3), 20_000
    x_other, lo = np.zeros(m), np.full(m, -1.5)
    expected = fd.find_x1(net, [0.0], (-1.5, 1.25)).x[0]
    done = threading.Event()

    def spoil():
        while not done.wait(1e-4):
            x_other[:], lo[:] = np.nan, 5.0
            x_other[:], lo[:] = 0.0, -1.5

    thread = threading.Thread(target=spoil)
    thread.start()
    try:
        for _ in range(3):
            try:
                result = fd.find_x1(net, x_other, (lo, 1.25), method="chandrupatla")
            except ValueError:  # it met the spoiled numbers when it took its copies
                continue
            assert np.allclose(result.x, expected, atol=1e-11)
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("m", [2**40, 2**58])
def test_more_rows_than_memory_has_room_for(m):
    x_other = np.broadcast_to(0.1, m)
    for call in (
        lambda: fd.find_x1(network((2, 3, 2)), x_other, (-1, 1)),
        lambda: fd.decision_intervals(network((2, 3, 2)), x_other),
    ):
        with pytest.raises(MemoryError, match=r"would take \d+ bytes"):
            call()


@pytest.mark.parametrize("outputs", [(0, 0), (0, 7), 3, ("a", 1), (0.5, 1)])
def test_outputs_of_a_single_logit_are_checked(outputs):
    net = fd.SigmoidMLP([[[1.0], [1.0]], [[1.0]]], [[0.0], [-0.5]])
    calls = (
        lambda: fd.find_x1(net, [0.0], (-2, 2), outputs=outputs),
        lambda: fd.trace_boundary(net, BOX, outputs=outputs),
        lambda: fd.follow_boundary(net, [0.0, 0.0], 1.0, outputs=outputs),
        lambda: fd.tie_sensitivity(net, [0.0, 0.0], outputs=outputs),
    )
    for call in calls:
        with pytest.raises((ValueError, TypeError), match="outputs"):
            call()


# ---- signals ------------------------------------------------------------------------------------


def wide(n):
    rng = np.random.default_rng(0)
    return fd.SigmoidMLP(
        [rng.normal(size=(2, n)), rng.normal(size=(n, n)) / 50, rng.normal(size=(n, 2))],
        [np.zeros(n), np.zeros(n), [0.0, 0.0]],
    )


def long_calls():
    yield (
        "intervals of many rows",
        lambda: fd.decision_intervals(network((2, 40, 6), 1, 3.0), np.linspace(-3, 3, 100_000)),
    )
    plane = fd.SigmoidMLP([[[1.0], [0.0]], [[1.0]]], [[0.0], [-0.5]])
    yield (
        "evenly spaced points on a straight line",
        lambda: fd.follow_boundary(plane, [0.0, 0.0], 1e8, step=5.0),
    )
    net = ring()
    start = on_axis(net)
    yield "a ring, over and over", lambda: fd.follow_boundary(net, start, 1e9)


@pytest.mark.parametrize(
    ("label", "call"), list(long_calls()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_ctrl_c_is_answered_at_once(label, call):
    assert seconds_until_answered(call, delay=0.3) < ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize("method", ["brentq", "bisect"])
def test_ctrl_c_amid_the_evaluations_of_one_row(method):
    net = wide(6000)
    middle = net.margin(
        [[-1e3, 0.0], [1e3, 0.0]]
    ).mean()  # moved to zero, so that both ends differ in sign
    net = fd.SigmoidMLP(net.weights, [*net.biases[:-1], [-middle, 0.0]])
    assert (
        seconds_until_answered(
            lambda: fd.find_x1(net, np.zeros(50), (-1e3, 1e3), method=method), delay=0.5
        )
        < ALLOWED
    )
