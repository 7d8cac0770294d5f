"""The causal convolution and its steps, against the reference and PyTorch."""

import itertools
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import error, layouts, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads, control_register

TOLERANCE = {np.float32: 3e-6, np.float64: 1e-14}
REALS = [np.float32, np.float64]
KS = [1, 2, 3, 4, 5, 8, 16, 37]
SHAPES = [(2, 3, 5), (1, 16, 64), (2, 37, 50), (1, 1, 700), (2, 70, 33), (3, 33, 1), (1, 100, 300)]


def problem(batch, channels, steps, taps, dtype=np.float64, *, bounds=None, seed=0):
    """Arguments with every option on; packed at `bounds` if given."""
    rng = np.random.default_rng(seed)
    segments = batch if bounds is None else len(bounds) - 1
    shapes = {
        "x": (batch, channels, steps),
        "weight": (channels, taps),
        "bias": (channels,),
        "initial_state": (segments, channels, taps - 1),
    }
    p = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    if bounds is not None:
        p["cu_seqlens"] = bounds
    return p | {"activation": "silu"}


def channels_last(a):
    """The same values with the last two axes swapped in memory."""
    return np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2)


def both(p, **options):
    """Result and last state of the compiled convolution and of the reference."""
    return (
        library.causal_conv1d(**p, return_last_state=True, **options) for library in (fd, reference)
    )


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("taps", KS)
@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_equals_reference(shape, taps, dtype):
    p = problem(*shape, taps, dtype)
    for memory in (np.ascontiguousarray, channels_last):
        (y, last), (expected, last_expected) = both(p | {"x": memory(p["x"])})
        assert y.dtype == dtype and error(y, expected) < TOLERANCE[dtype]
        assert same_bits(last, last_expected.astype(dtype))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("without", ["bias", "initial_state", "activation"])
def test_every_option_can_be_left_out(without, dtype):
    p = problem(2, 20, 40, 4, dtype)
    p[without] = None
    (y, _), (expected, _) = both(p)
    assert error(y, expected) < TOLERANCE[dtype]


def test_swish_is_silu():
    p = problem(2, 20, 40, 4)
    assert same_bits(fd.causal_conv1d(**p), fd.causal_conv1d(**p | {"activation": "swish"}))


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(0, 70),
    st.integers(0, 70),
    st.integers(1, 20),
    st.sampled_from(REALS),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_shape_empty_ones_too(batch, channels, steps, taps, dtype, last_axis, unbatched, seed):
    p = problem(batch, channels, steps, taps, dtype, seed=seed)
    if last_axis:
        p["x"] = channels_last(p["x"])
    if unbatched and batch:
        p["x"], p["initial_state"] = p["x"][0], p["initial_state"][0]
    before = snapshot(p["x"], p["weight"], p["bias"], p["initial_state"])
    (y, last), (expected, last_expected) = both(p)
    assert y.shape == expected.shape and error(y, expected) < TOLERANCE[dtype]
    assert same_bits(last, last_expected.astype(dtype))
    assert snapshot(p["x"], p["weight"], p["bias"], p["initial_state"]) == before


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 40), max_size=6),
    st.integers(1, 40),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
)
def test_packed_sequences_equal_separate_calls_bitwise(lengths, channels, taps, memory, unbatched):
    bounds = np.cumsum([0, *lengths])
    p = problem(1, channels, int(bounds[-1]), taps, np.float32, bounds=bounds)
    if memory:
        p["x"] = channels_last(p["x"])
    if unbatched:
        p["x"] = p["x"][0]
    y, last = fd.causal_conv1d(**p, return_last_state=True)
    assert last.shape == p["initial_state"].shape
    del p["cu_seqlens"]
    for k, (start, stop) in enumerate(itertools.pairwise(bounds)):
        here, own = np.s_[..., start:stop], k if unbatched else np.s_[k : k + 1]
        alone = p | {"x": p["x"][here], "initial_state": p["initial_state"][own]}
        expected, state = fd.causal_conv1d(**alone, return_last_state=True)
        assert same_bits(y[here], expected) and same_bits(last[own], state)


def test_one_long_packed_sequence_among_empty_ones():
    bounds = [0, 0, 0, 5000, 5000, 5001, 9000, 9000]
    p = problem(1, 40, 9000, 4, np.float32, bounds=bounds)
    for memory in (np.ascontiguousarray, channels_last):
        (y, last), (expected, last_expected) = both(p | {"x": memory(p["x"])})
        assert error(y, expected) < TOLERANCE[np.float32]
        assert same_bits(last, last_expected.astype(np.float32))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 9])
def test_pieces_that_hand_on_their_state_equal_the_whole_bitwise(taps, dtype):
    p = problem(2, 37, 100, taps, dtype)
    for memory in (np.ascontiguousarray, channels_last):
        p["x"] = memory(p["x"])
        whole, last = fd.causal_conv1d(**p, return_last_state=True)
        state, pieces = p["initial_state"], []
        for cut in np.split(p["x"], [1, 3, 20, 20, 77], axis=-1):
            here = p | {"x": cut, "initial_state": state}
            y, state = fd.causal_conv1d(**here, return_last_state=True)
            pieces.append(y)
        assert same_bits(np.concatenate(pieces, axis=-1), whole) and same_bits(state, last)


# ---- layouts, dtypes, out ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("taps", [3, 4, 7])
@pytest.mark.parametrize("name", ["x", "weight", "bias", "initial_state"])
def test_layout_changes_no_bit(name, taps, dtype):
    p = problem(2, 37, 60, taps, dtype)
    expected = fd.causal_conv1d(**p, return_last_state=True)
    for label, array in layouts(p[name]):
        given = array.tolist() if label == "list" else array
        y, last = fd.causal_conv1d(**p | {name: given}, return_last_state=True)
        assert same_bits(y, expected[0]) and same_bits(last, expected[1]), label


@pytest.mark.parametrize("taps", [4, 7])
def test_out_of_any_strides(taps):
    p = problem(2, 37, 60, taps, np.float32)
    expected = fd.causal_conv1d(**p)
    for memory in (np.ascontiguousarray, channels_last):
        for label, out in layouts(np.zeros_like(expected)):
            if label != "read-only" and out.dtype.byteorder != ">":
                given = p | {"x": memory(p["x"])}
                assert fd.causal_conv1d(**given, out=out) is out
                assert np.array_equal(out, expected), label


def test_a_broadcast_input_counts_as_its_copies():
    p = problem(3, 20, 50, 4, np.float32)
    for x in (
        np.broadcast_to(p["x"][:1], p["x"].shape),
        np.broadcast_to(p["x"][:, :1], p["x"].shape),
        np.broadcast_to(p["x"][:, :, :1], p["x"].shape),
    ):
        expected = fd.causal_conv1d(**p | {"x": x.copy()})
        assert same_bits(fd.causal_conv1d(**p | {"x": x}), expected)


def test_results_lie_in_memory_as_the_input_does():
    p = problem(2, 20, 50, 4, np.float32)
    assert fd.causal_conv1d(**p).flags.c_contiguous
    p["x"] = channels_last(p["x"])
    y = fd.causal_conv1d(**p)
    assert y.shape == (2, 20, 50) and y.swapaxes(1, 2).flags.c_contiguous
    grads = fd.causal_conv1d_vjp(np.ones((2, 20, 50), np.float32), **p)
    assert grads.dx.swapaxes(1, 2).flags.c_contiguous


def test_out_is_checked():
    p = problem(2, 3, 5, 4)
    for out, kind, message in [
        (np.zeros((2, 3, 4)), ValueError, "out has shape"),
        (np.zeros((2, 3, 5), np.float32), TypeError, "out has dtype float32"),
        ([0.0], TypeError, "out is a list"),
        (p["x"], ValueError, "out shares memory with x"),
        (p["x"][:, ::-1], ValueError, "out shares memory with x"),
        (np.broadcast_to(np.zeros(5), (2, 3, 5)), ValueError, "out"),
    ]:
        with pytest.raises(kind, match=message):
            fd.causal_conv1d(**p, out=out)


def test_dtypes_are_promoted_together():
    p = problem(2, 3, 5, 4, np.float32)
    for name in ("x", "weight", "bias", "initial_state"):
        y, last = fd.causal_conv1d(**p | {name: p[name].astype(float)}, return_last_state=True)
        assert y.dtype == last.dtype == np.float64
    assert fd.causal_conv1d([[1, 2, 3]], [[1, 1]]).dtype == np.float64


# ---- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"x": np.zeros(3)}, ValueError, r"x has shape \(3,\); expected \(batch, D, L\)"),
        ({"x": None}, TypeError, "x"),
        ({"weight": None}, TypeError, "weight"),
        ({"weight": np.zeros((4, 4))}, ValueError, r"weight has shape \(4, 4\); expected \(D, K\)"),
        ({"weight": np.zeros((3, 0))}, ValueError, r"weight has shape \(3, 0\)"),
        ({"weight": np.zeros((3, 1, 4))}, ValueError, r"weight has shape \(3, 1, 4\)"),
        ({"bias": np.zeros(4)}, ValueError, r"bias has shape \(4,\); expected \(D,\) = \(3,\)"),
        ({"initial_state": np.zeros((2, 3, 4))}, ValueError, r"initial_state .* \(batch, D, K - 1"),
        ({"activation": "relu"}, ValueError, "activation is 'relu'; expected None, 'silu' or"),
        ({"activation": 1}, TypeError, "activation is 1; expected None"),
        ({"cu_seqlens": [0, 5]}, ValueError, "cu_seqlens packs sequences along L and needs batch"),
        ({"return_last_state": np.zeros(2)}, TypeError, "return_last_state"),
    ],
)
def test_errors_name_the_argument(change, kind, message):
    with pytest.raises(kind, match=message):
        fd.causal_conv1d(**problem(2, 3, 5, 4) | change)


@pytest.mark.parametrize("bounds", [[0, 4], [1, 5], [0, 3, 2, 5], [], [[0, 5]]])
def test_bad_boundaries(bounds):
    p = problem(1, 3, 5, 4) | {"initial_state": None, "cu_seqlens": bounds}
    with pytest.raises(ValueError, match="cu_seqlens"):
        fd.causal_conv1d(**p)
    with pytest.raises(ValueError, match=r"initial_state has shape .* \(sequences, D, K - 1\)"):
        fd.causal_conv1d(**problem(1, 3, 5, 4) | {"cu_seqlens": [0, 2, 5]})


# ---- arithmetic -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("taps", [2, 3, 4, 9])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_stays_in_its_channel_and_its_taps(bad, taps, dtype):
    p = problem(2, 37, 60, taps, dtype)
    expected = fd.causal_conv1d(**p)
    p["x"][1, 20, 30] = bad
    for memory in (np.ascontiguousarray, channels_last):
        y = fd.causal_conv1d(**p | {"x": memory(p["x"])})
        reached = np.zeros(y.shape, bool)
        reached[1, 20, 30 : 30 + taps] = True
        assert np.array_equal(y[~reached], expected[~reached])
        exact = expected.copy()  # silu is 0 at -inf
        exact[reached] = [np.nan if np.isnan(bad) else max(0, w * bad) for w in p["weight"][20]][
            ::-1
        ]
        assert np.array_equal(y, exact, equal_nan=True)


@pytest.mark.parametrize("dtype", REALS)
def test_far_into_both_tails_of_silu(dtype):
    x = np.linspace(-200, 200, 401).astype(dtype)[None]
    y = fd.causal_conv1d(x, np.ones((1, 1), dtype), activation="silu")
    assert error(y, reference.causal_conv1d(x, np.ones((1, 1)), activation="silu")) < 1e-6


def test_accuracy_of_long_sums_of_taps():
    p = problem(1, 5, 3000, 1000, np.float32)
    (y, _), (expected, _) = both(p | {"activation": None})
    assert error(y, expected) < 1e-5


def test_thread_count_changes_no_bit():
    for shape, taps in (((1, 900, 700), 4), ((40, 3, 5000), 4), ((2, 300, 900), 6)):
        p = problem(*shape, taps, np.float32)
        for memory in (np.ascontiguousarray, channels_last):
            given = p | {"x": memory(p["x"])}
            one, two, five = by_threads(lambda p=given: fd.causal_conv1d(**p), 1, 2, 5)
            assert same_bits(one, two) and same_bits(one, five)


LEVELS = """
import hashlib, numpy as np, fastderiv as fd
def show(*arrays):
    for a in arrays:
        a = np.ascontiguousarray(a)
        print(hashlib.sha256(a.tobytes()).hexdigest(), float(np.abs(a).astype(float).sum()))
rng = np.random.default_rng(0)
for dtype in (np.float32, np.float64):
    for taps in (1, 2, 3, 4, 5, 18):
        for shape in ((2, 37, 70), (1, 5, 500), (3, 64, 9)):
            x, dy = rng.normal(size=(2, *shape)).astype(dtype)
            w, b = rng.normal(size=(shape[1], taps)), rng.normal(size=shape[1])
            s = rng.normal(size=(*shape[:2], taps - 1))
            rest = [a.astype(dtype) for a in (w, b, s)]
            for flip in (False, True):
                if flip:
                    x = np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2)
                    dy = np.ascontiguousarray(dy.swapaxes(1, 2)).swapaxes(1, 2)
                show(fd.causal_conv1d(x, *rest[:2], "silu", initial_state=rest[2]))
                g = dict(initial_state=rest[2], dlast_state=rest[2])
                show(*fd.causal_conv1d_vjp(dy, x, *rest[:2], "silu", **g))
"""


def test_cpu_levels_agree():
    assert_levels_agree(LEVELS)


def test_rounding_mode_of_the_caller_has_no_effect():
    p = problem(2, 20, 40, 4, np.float32)
    expected = fd.causal_conv1d(**p)
    for mode in ("up", "down", "zero"):
        with control_register(mode, flush=True):
            y = fd.causal_conv1d(**p)
        assert same_bits(y, expected)


# ---- the machine ------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [np.ascontiguousarray, channels_last])
@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_is_answered_at_once(memory, threads):
    x = memory(np.zeros((1, 64, 300_000), np.float32))
    weight = np.ones((64, 200), np.float32)
    calls = [
        lambda: [fd.causal_conv1d(x, weight, activation="silu") for _ in range(20)],
        lambda: [fd.causal_conv1d_vjp(x, x, weight, activation="silu") for _ in range(20)],
    ]
    for call in calls:
        took = by_threads(lambda call=call: seconds_until_answered(call, delay=0.1), threads)
        assert took[0] < ALLOWED


@pytest.mark.parametrize("memory", [np.ascontiguousarray, channels_last])
def test_memory_is_inputs_and_outputs(memory):
    x = memory(np.zeros((1, 512, 4000), np.float32))
    weight = np.ones((512, 4), np.float32)
    fd.causal_conv1d(x, weight)
    tracemalloc.start()
    fd.causal_conv1d(x, weight, activation="silu")
    convolution = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    fd.causal_conv1d_vjp(x, x, weight, activation="silu")
    adjoint = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert convolution < x.nbytes * 1.01 + 1e5 and adjoint < x.nbytes * 1.07 + 1e5


# ---- steps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("width", [0, 1, 5])
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("channels", [3, 16, 37])
def test_steps_equal_the_whole_convolution_bitwise(channels, taps, width, dtype):
    """Whatever is older than K - 1 inputs in the state has no effect."""
    p = problem(2, channels, 30, taps, dtype)
    expected = fd.causal_conv1d(**p)
    older = np.full((2, channels, width), 7, dtype)
    rest = [p[name] for name in ("weight", "bias", "activation")]
    kept = np.concatenate([older, p["initial_state"], p["x"]], axis=-1)
    for cuts in (range(1, 30), [1, 4, 20], []):
        state = np.concatenate([older, p["initial_state"]], axis=-1)
        pieces = [fd.causal_conv1d_update(x, state, *rest) for x in np.split(p["x"], cuts, axis=-1)]
        assert same_bits(np.concatenate(pieces, axis=-1), expected)
        assert same_bits(state, np.ascontiguousarray(kept[..., 30:]))
    state = np.concatenate([older, p["initial_state"]], axis=-1)
    one = fd.causal_conv1d_update(p["x"][..., 0], state, *rest)
    assert same_bits(one, np.ascontiguousarray(expected[..., 0]))


@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_step_equals_reference(several, unbatched):
    p = problem(3, 20, 6 if several else 1, 4)
    state = np.random.default_rng(1).normal(size=(3, 20, 7))
    x = p["x"] if several else p["x"][..., 0]
    if unbatched:
        x, state = x[0], state[0]
    theirs = state.copy()
    rest = [p[name] for name in ("weight", "bias", "activation")]
    y = fd.causal_conv1d_update(x, state, *rest)
    expected = reference.causal_conv1d_update(x, theirs, *rest)
    assert y.shape == x.shape and error(y, expected) < 1e-14 and same_bits(state, theirs)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("name", ["x", "state", "weight", "bias"])
def test_layout_changes_no_bit_of_a_step(name, dtype):
    p = problem(2, 37, 1, 4, dtype)
    given = {
        "x": p["x"][..., 0],
        "state": p["initial_state"],
        "weight": p["weight"],
        "bias": p["bias"],
    }
    first = given | {"state": given["state"].copy()}
    expected = fd.causal_conv1d_update(**first, activation="silu")
    for label, array in layouts(given[name]):
        if name == "state" and label == "read-only":
            continue
        own = given | {"state": given["state"].copy()} | {name: array}
        y = fd.causal_conv1d_update(**own, activation="silu")
        assert same_bits(y, expected), label
        assert np.array_equal(own["state"], first["state"]), label


def test_step_works_in_the_dtype_of_the_state():
    p = problem(2, 5, 1, 4)
    state = p["initial_state"].astype(np.float32)
    y = fd.causal_conv1d_update(p["x"][..., 0], state, p["weight"])
    assert y.dtype == state.dtype == np.float32


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"state": [[[0.0] * 3] * 3] * 2}, TypeError, "state is a list"),
        ({"state": np.zeros((2, 3, 3), int)}, TypeError, "state has dtype int64"),
        ({"state": np.zeros((2, 3, 2))}, ValueError, r"W to be at least K - 1 = 3"),
        ({"state": np.zeros(3)}, ValueError, "state has shape"),
        ({"x": np.zeros((2, 4))}, ValueError, r"x has shape \(2, 4\); expected \(batch, D\)"),
        ({"x": np.zeros(3)}, ValueError, r"x has shape \(3,\)"),
        ({"x": np.zeros((2, 3, 1, 1))}, ValueError, "x has shape"),
        ({"weight": np.zeros((2, 4))}, ValueError, "weight has shape"),
        ({"bias": np.zeros(2)}, ValueError, "bias has shape"),
        ({"activation": "gelu"}, ValueError, "activation is 'gelu'"),
        ({"x": np.zeros((2, 3), complex)}, TypeError, "x has dtype complex128"),
        ({"x": None}, TypeError, "x"),
    ],
)
def test_step_leaves_the_state_alone_when_it_raises(change, kind, message):
    given = {"x": np.ones((2, 3)), "state": np.full((2, 3, 3), 5.0), "weight": np.ones((3, 4))}
    state = given["state"]
    with pytest.raises(kind, match=message):
        fd.causal_conv1d_update(**given | change)
    assert (state == 5).all()


def test_state_is_writable_and_shares_no_memory():
    x, weight = np.ones((2, 3)), np.ones((3, 4))
    state = np.zeros((2, 3, 4))
    state.flags.writeable = False
    with pytest.raises(ValueError, match="state is read-only"):
        fd.causal_conv1d_update(x, state, weight)
    shared = np.lib.stride_tricks.as_strided(np.zeros(9), (2, 3, 4), (8, 8, 8))
    with pytest.raises(ValueError, match="state shares memory with itself"):
        fd.causal_conv1d_update(x, shared, weight)
    state = np.zeros((2, 3, 4))
    with pytest.raises(ValueError, match="state shares memory with x"):
        fd.causal_conv1d_update(state[..., 0], state, weight)


def test_thread_count_changes_no_bit_of_a_step():
    p = problem(64, 3000, 1, 4, np.float32)

    def step():
        state = p["initial_state"].copy()
        return fd.causal_conv1d_update(p["x"][..., 0], state, p["weight"], p["bias"]), state

    one, two, five = by_threads(step, 1, 2, 5)
    for a, b, c in zip(one, two, five, strict=True):
        assert same_bits(a, b) and same_bits(a, c)


# ---- PyTorch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", [2, 3, 4, 7])
def test_convolution_and_gradients_equal_pytorch(taps):
    torch = pytest.importorskip("torch")
    p = problem(2, 20, 40, taps)
    dy = np.random.default_rng(5).normal(size=p["x"].shape)
    given = [torch.tensor(p[n], requires_grad=True) for n in ("x", "weight", "bias")]
    state = torch.tensor(p["initial_state"], requires_grad=True)
    line = torch.cat([state, given[0]], -1)
    y = torch.nn.functional.conv1d(line, given[1][:, None], given[2], groups=20)
    y = torch.nn.functional.silu(y)
    assert error(fd.causal_conv1d(**p), y.detach().numpy()) < 1e-14
    expected = torch.autograd.grad(y, [*given, state], torch.tensor(dy))
    grads = fd.causal_conv1d_vjp(dy, **p)
    for ours, theirs in zip(grads, expected, strict=True):
        assert error(ours, theirs.numpy()) < 1e-13


def test_step_equals_that_of_transformers():
    """Which keeps K inputs in its state."""
    torch = pytest.importorskip("torch")
    mamba = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    step = getattr(mamba, "causal_conv1d_update", None)
    if step is None:
        pytest.skip("this version of transformers has no fallback of its own")
    p = problem(2, 20, 1, 4, np.float32)
    ours = np.random.default_rng(1).normal(size=(2, 20, 4)).astype(np.float32)
    theirs = torch.tensor(ours)
    rest = [torch.tensor(p[name]) for name in ("weight", "bias")]
    expected = step(torch.tensor(p["x"]), theirs, *rest, "silu")
    y = fd.causal_conv1d_update(p["x"], ours, p["weight"], p["bias"], "silu")
    assert error(y, expected.numpy().reshape(y.shape)) < 1e-6
    assert np.array_equal(ours, theirs.numpy())


def test_grads_pickle():
    p = problem(2, 3, 5, 4)
    grads = fd.causal_conv1d_vjp(np.ones((2, 3, 5)), **p)
    again = pickle.loads(pickle.dumps(grads))
    assert type(again) is fd.CausalConv1dGrads
    assert all(same_bits(a, b) for a, b in zip(grads, again, strict=True))
