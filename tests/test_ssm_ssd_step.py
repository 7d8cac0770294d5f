"""One step of Mamba-2's scan: against the reference and the scan, and at the edges."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import error, error_in_sums, layouts, magnitudes, same_bits, snapshot
from helpers.machines import assert_levels_agree, by_threads
from test_ssm_ssd import REALS, TOLERANCE, ssd_problem

ARGUMENTS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")


def step_problem(batch=2, heads=6, width=5, states=9, dtype=np.float64, **options):
    """A state, and the other arguments of a step with every option on."""
    p = ssd_problem(batch, 1, heads, width, states, dtype, **options)
    p = {k: a[:, 0] if k in ("x", "dt", "B", "C", "z") else a for k, a in p.items()}
    del p["dt_limit"]
    return p.pop("initial_state"), p


def unbatched(state, p):
    return state[0], {k: a[0] if k in ("x", "dt", "B", "C", "z") else a for k, a in p.items()}


def close_to_reference(state, p, tolerance):
    """Whether a step of a copy of the state gives what the reference gives."""
    h, expected = state.copy(), state.astype(np.float64)
    y, y0 = fd.ssd_state_update(h, **p), reference.ssd_state_update(expected, **p)
    assert y.dtype == state.dtype and y.shape == state.shape[:-1]
    sums = np.abs(state).astype(np.float64)
    y_sums = reference.ssd_state_update(sums, **magnitudes(p))
    return error_in_sums(y, y0, y_sums) < tolerance and error_in_sums(h, expected, sums) < tolerance


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("D", ["head", "channel", None])
@pytest.mark.parametrize(
    "shape, groups",
    [
        ((1, 1, 1, 1), 1),
        ((2, 6, 17, 33), 3),
        ((1, 24, 64, 128), 1),
        ((3, 4, 5, 16), 2),
        ((1, 130, 4, 100), 130),
        ((2, 4, 70, 1024), 1),
        ((2, 65, 3, 7), 5),
    ],
)
def test_step_equals_reference(shape, groups, D, dtype):
    state, p = step_problem(*shape, dtype, groups=groups, D=D)
    assert close_to_reference(state, p, TOLERANCE[dtype])
    assert close_to_reference(*unbatched(state, p), TOLERANCE[dtype])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(0, 4),
    st.sampled_from([1, 2, 3, 40]),
    st.integers(0, 70),
    st.integers(0, 70),
    st.sampled_from(REALS),
    st.integers(0, 2**31),
)
def test_any_shape_empty_ones_too(batch, per_group, groups, width, states, dtype, seed):
    heads = per_group * groups
    state, p = step_problem(batch, heads, width, states, dtype, groups=groups, seed=seed)
    assert close_to_reference(state, p, TOLERANCE[dtype])


def test_without_groups_there_is_one():
    for state, p in (step_problem(groups=1), unbatched(*step_problem(groups=1))):
        expected = state.copy()
        y = fd.ssd_state_update(expected, **p)
        for names in ("B", "C"), ("B",), ("C",):
            h = state.copy()
            q = {**p, **{name: p[name][..., 0, :] for name in names}}
            assert same_bits(fd.ssd_state_update(h, **q), y) and same_bits(h, expected)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("steps", [1, 70])
def test_steps_equal_the_scan(dtype, steps):
    p = ssd_problem(2, steps, 6, 5, 20, dtype, groups=2)
    p["dt_limit"] = (0.0, np.inf)
    y, last = fd.ssd_scan(**p, return_last_state=True)
    state = p["initial_state"].copy()
    for t in range(steps):
        x, dt, B, C, z = (p[k][:, t] for k in ("x", "dt", "B", "C", "z"))
        step = fd.ssd_state_update(state, x, dt, p["A"], B, C, p["D"], z, p["dt_bias"], True)
        assert np.abs(step - y[:, t]).max() < TOLERANCE[dtype] * np.abs(y).max()
    assert error(state, last) < TOLERANCE[dtype]


def test_negative_step_sizes_are_taken_as_they_are():
    state, p = step_problem()
    p |= dict(dt=-np.abs(p["dt"]), dt_bias=None, dt_softplus=False)
    assert close_to_reference(state, p, 1e-14)


# ---- the same bits, however it is asked -------------------------------------------------------


@pytest.mark.parametrize("name", ["state", *ARGUMENTS])
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("shape", [(2, 6, 5, 9), (1, 2, 33, 64)])
def test_layout_changes_no_bit(name, dtype, shape):
    state, p = step_problem(*shape, dtype, groups=2, D="channel")
    expected = state.copy()
    y0 = fd.ssd_state_update(expected, **p)
    for label, view in layouts(state if name == "state" else p[name]):
        if name == "state" and label == "read-only":
            continue
        h = view if name == "state" else state.copy()
        before = snapshot(view)
        y = fd.ssd_state_update(h, **(p if name == "state" else {**p, name: view}))
        assert same_bits(y, y0), label
        assert same_bits(np.ascontiguousarray(h, dtype), expected), label
        assert name == "state" or snapshot(view) == before


@pytest.mark.parametrize("first", [1, 3, 16, 31])
def test_alignment_changes_no_bit(first):
    state, p = step_problem(1, 3, 8, 64, np.float32)
    memory = np.zeros(state.size + 64, np.float32)
    h, expected = memory[first : first + state.size].reshape(state.shape), state.copy()
    h[...] = state
    assert same_bits(fd.ssd_state_update(h, **p), fd.ssd_state_update(expected, **p))
    assert same_bits(h, expected) and not memory[:first].any()
    assert not memory[first + state.size :].any()


def test_state_with_gaps_keeps_what_lies_between():
    state, p = step_problem(2, 4, 5, 9)
    memory = np.full((2, 4, 5, 13), 7.0)
    h, expected = memory[..., 2:11], state.copy()
    h[...] = state
    assert same_bits(fd.ssd_state_update(h, **p), fd.ssd_state_update(expected, **p))
    assert same_bits(np.ascontiguousarray(h), expected)
    assert (memory[..., :2] == 7).all() and (memory[..., 11:] == 7).all()


def test_heads_of_a_call_do_not_depend_on_each_other():
    state, p = step_problem(2, 130, 3, 20, np.float32)
    whole = state.copy()
    y = fd.ssd_state_update(whole, **p)
    for head in 0, 63, 64, 129:
        s = slice(head, head + 1)
        h = state[:, s].copy()
        q = {k: a[:, s] if k in ("x", "dt", "z") else a[s] for k, a in p.items()
             if k not in ("B", "C", "dt_softplus")}  # fmt: skip
        one = fd.ssd_state_update(h, **q, B=p["B"], C=p["C"], dt_softplus=True)
        assert same_bits(one, np.ascontiguousarray(y[:, s]))
        assert same_bits(h, np.ascontiguousarray(whole[:, s]))


def test_thread_count_changes_no_bit():
    state, p = step_problem(16, 80, 64, 32, np.float32)

    def step():
        h = state.copy()
        return fd.ssd_state_update(h, **p), h

    first, *others = by_threads(step, 1, 2, 5)
    assert all(all(map(same_bits, first, other)) for other in others)


LEVEL_SCRIPT = """
import hashlib, sys
sys.path.insert(0, {tests!r})
import numpy as np
from test_ssm_ssd_step import step_problem
import fastderiv as fd
for dtype in np.float32, np.float64:
    for shape in (2, 6, 17, 33), (1, 3, 64, 128):
        h, p = step_problem(*shape, dtype)
        p["dt"][0, 1] = 90
        y = fd.ssd_state_update(h, **p)
        print(hashlib.sha256(y.tobytes() + h.tobytes()).hexdigest(), float(np.abs(y).sum()))
"""


def test_cpu_levels_agree():
    assert_levels_agree(LEVEL_SCRIPT.format(tests=os.path.dirname(__file__)))


# ---- extremes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("rate", [167.5 * 2.0**-24, 3e-3])  # exp(−rate) is between two float32
def test_slow_decay_is_not_rounded(dtype, rate):
    """A state that only decays, by the same ratio in each of many steps: a rounded ratio would be
    wrong by 6e-4 after them.
    """
    steps, dt = 20_000, dtype(rate)
    state, p = np.ones((1, 1, 16), dtype), dict(A=[-1.0], B=np.zeros(16), C=np.ones(16))
    for _ in range(steps):
        y = fd.ssd_state_update(state, x=np.zeros((1, 1)), dt=[dt], **p)
    exact = np.exp(-steps * float(dt))
    tolerance = 4e-4 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(state, exact, rtol=tolerance)
    np.testing.assert_allclose(y, 16 * exact, rtol=tolerance)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("exponent", [-300.0, -80.0, -59.5, -60.5, -1.0, 0.0, 1.0, 59.5, 80.0])
def test_ratio_of_any_size(dtype, exponent):
    """2**exponent, over the border between its two forms."""
    state = np.full((1, 1, 8), 3, dtype)
    one, zero = np.ones(8), np.zeros((1, 1))
    fd.ssd_state_update(state, zero, [np.log(2)], [exponent], one, one)
    exact = 3 * 2.0**exponent
    if dtype == np.float32 and exponent < -126:
        exact = 0
    tolerance = 1e-14 if dtype == np.float64 else 1e-6 if abs(exponent) < 2 else 3e-5
    np.testing.assert_allclose(state, exact, rtol=tolerance)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("states", [5, 32])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["state", *ARGUMENTS])
def test_nonfinite_goes_where_the_mathematics_says(dtype, states, bad, name):
    if name == "z" and bad == -np.inf:
        return  # silu is 0 there; the reference forms −inf·0
    state, p = step_problem(2, 4, 19, states, dtype, groups=2)
    clean = state.copy()
    y_clean = fd.ssd_state_update(clean, **p)
    h = state.copy()
    target = h if name == "state" else p[name]
    target[(target.shape[0] - 1, *(1,) * (target.ndim - 1))] = bad
    expected = h.astype(np.float64)
    with np.errstate(all="ignore"):
        y0 = reference.ssd_state_update(expected, **p)
    y = fd.ssd_state_update(h, **p)
    for ours, theirs, before in (y, y0, y_clean), (h, expected, clean):
        good = np.isfinite(theirs)
        assert np.array_equal(np.isnan(ours), np.isnan(theirs))
        assert np.array_equal(ours[~good], theirs[~good].astype(dtype), equal_nan=True)
        off = np.abs(ours[good] - theirs[good]).max()
        assert off < TOLERANCE[dtype] * np.abs(before).max()
    others = np.ones(y.shape[:2], bool)
    others[{"state": np.s_[1, 1], "x": np.s_[1, 1], "dt": np.s_[1, 1], "z": np.s_[1, 1],
            "B": np.s_[1, 2:], "C": np.s_[1, 2:]}.get(name, np.s_[:, 3])] = False  # fmt: skip
    assert same_bits(y[others], y_clean[others]) and same_bits(h[others], clean[others])


@pytest.mark.parametrize("dtype", REALS)
def test_infinite_state_stays_infinite_and_its_row_alone_is_hit(dtype):
    state, p = step_problem(1, 2, 6, 33, dtype, D=None)
    p["C"] = np.abs(p["C"]) + dtype(1)
    for dt in 1e-3, 0.3, 2.0, 60.0:
        h = state.copy()
        h[0, 0, 2, 32], h[0, 1, 3, 0] = np.inf, -np.inf
        q = {**p, "dt": np.full((1, 2), dt, dtype), "A": np.array([-1, -0.5], dtype), "z": None,
             "dt_bias": None, "dt_softplus": False}  # fmt: skip
        y = fd.ssd_state_update(h, **q)
        assert y[0, 0, 2] == h[0, 0, 2, 32] == np.inf and y[0, 1, 3] == h[0, 1, 3, 0] == -np.inf
        assert np.isinf(y).sum() == np.isinf(h).sum() == 2


def test_without_D_an_infinite_input_is_not_multiplied_by_0():
    state, p = step_problem(1, 2, 3, 4, D=None)
    p["x"][0, 0, 0], p["B"], p["C"] = np.inf, np.abs(p["B"]), np.abs(p["C"])
    assert fd.ssd_state_update(state, **{**p, "z": None})[0, 0, 0] == np.inf


@pytest.mark.parametrize("states", [4, 40])
def test_growth_overflows_where_it_should_and_nowhere_else(states):
    state, p = step_problem(1, 2, 3, states, np.float32)
    state = np.abs(state) + np.float32(1)
    p |= dict(A=np.array([50, -1], np.float32), dt=np.full((1, 2), 2, np.float32), z=None,
              dt_bias=None, dt_softplus=False, C=np.abs(p["C"]))  # fmt: skip
    y = fd.ssd_state_update(state, **p)
    assert (state[:, 0] == np.inf).all() and (y[:, 0] == np.inf).all()
    assert np.isfinite(state[:, 1]).all() and np.isfinite(y[:, 1]).all()


# ---- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize("without", ["D", "z", "dt_bias", "dt_softplus"])
@pytest.mark.parametrize("dtype", REALS)
def test_every_option_can_be_left_out(dtype, without):
    state, p = step_problem(2, 4, 20, 16, dtype)
    p[without] = False if without == "dt_softplus" else None
    assert close_to_reference(state, p, TOLERANCE[dtype])


def test_step_works_in_the_dtype_of_the_state():
    state, p = step_problem(dtype=np.float32)
    wide = {k: a.astype(np.float64) if isinstance(a, np.ndarray) else a for k, a in p.items()}
    a, b = state.copy(), state.copy()
    assert same_bits(fd.ssd_state_update(a, **p), fd.ssd_state_update(b, **wide))
    assert same_bits(a, b)


def test_state_interleaved_with_its_argument():
    state, p = step_problem()
    halves = np.zeros((*state.shape[:-1], 2 * state.shape[-1]))
    h, x, expected = halves[..., ::2], halves[..., 1], state.copy()
    h[...], x[...] = state, p["x"]
    y = fd.ssd_state_update(expected, **p)
    assert same_bits(fd.ssd_state_update(h, **{**p, "x": x}), y)
    assert same_bits(np.ascontiguousarray(h), expected)
    assert same_bits(np.ascontiguousarray(x), p["x"])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(x=np.zeros((2, 6))), r"x has shape \(2, 6\); expected \(batch, H, P\) = \(2, 6, 5\)"),
        (dict(dt=np.zeros(6)), r"dt has shape \(6,\); expected \(batch, H\) = \(2, 6\)"),
        (dict(A=np.zeros((6, 9))), r"A has shape \(6, 9\); expected \(H,\) = \(6,\)"),
        (dict(B=np.zeros((2, 5))), r"B has shape \(2, 5\); expected \(batch, N\) = \(2, 9\)"),
        (dict(B=np.zeros((2, 4, 9))), r"B has shape \(2, 4, 9\).* with G dividing H = 6"),
        (dict(B=np.zeros((2, 0, 9))), r"B has shape \(2, 0, 9\).* with G dividing H = 6"),
        (dict(C=np.zeros((2, 2, 9))), r"C has shape \(2, 2, 9\); expected the groups of B"),
        (dict(C=np.zeros((9,))), r"C has shape \(9,\)"),
        (dict(D=np.zeros(5)), r"D has shape \(5,\); expected \(H,\) = \(6,\) or \(H, P\)"),
        (dict(z=np.zeros(2)), r"z has shape \(2,\)"),
        (dict(dt_bias=np.zeros((1, 6))), r"dt_bias has shape \(1, 6\); expected \(H,\)"),
    ],
)
def test_wrong_shapes_name_the_argument_and_leave_the_state_alone(change, message):
    state, p = step_problem()
    before = state.copy()
    with pytest.raises(ValueError, match=message):
        fd.ssd_state_update(state, **{**p, **change})
    assert same_bits(before, state)


def test_state_is_checked():
    state, p = step_problem()
    before = state.copy()
    for wrong in state[0, 0], state[None]:
        with pytest.raises(ValueError, match=r"state has shape .*; expected \(batch, H, P, N\)"):
            fd.ssd_state_update(wrong.copy(), **p)
    with pytest.raises(ValueError, match="state shares memory with x"):
        fd.ssd_state_update(state, **{**p, "x": state[..., 0]})
    expanded = np.lib.stride_tricks.as_strided(state, strides=(0, *state.strides[1:]))
    with pytest.raises(ValueError, match="state shares memory with itself"):
        fd.ssd_state_update(expanded, **p)
    with pytest.raises(TypeError, match="state is a list"):
        fd.ssd_state_update(state.tolist(), **p)
    with pytest.raises(TypeError, match="state has dtype int64"):
        fd.ssd_state_update(state.astype(np.int64), **p)
    with pytest.raises(TypeError, match="dt_softplus is a ndarray"):
        fd.ssd_state_update(state, **{**p, "dt_softplus": np.ones(2)})
    with pytest.raises(TypeError, match="A has dtype object"):
        fd.ssd_state_update(state, **{**p, "A": None})
    frozen = state.view()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="state is read-only"):
        fd.ssd_state_update(frozen, **p)
    assert same_bits(before, state)


MEMORY_SCRIPT = """
import resource
import numpy as np
import fastderiv as fd
rng = np.random.default_rng(0)
state = rng.random((4, 16, 64, 1024), np.float32).swapaxes(-1, -2)  # 16 MiB; along P contiguous
x, dt, B = (rng.random(s, np.float32) for s in ((4, 16, 1024), (4, 16), (4, 1, 64)))
A = -rng.random(16, np.float32)
fd.ssd_state_update(state[:, :, :2, :4], x[..., :2], dt, A, B[..., :4], B[..., :4])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fd.ssd_state_update(state, x, dt, A, B, B)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux"
)
def test_memory_is_the_result():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) < 1024  # KiB; no array is copied


def test_equals_pytorch():
    torch = pytest.importorskip("torch")
    state, p = step_problem(2, 6, 5, 9, groups=3)
    t = {k: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for k, a in p.items()}
    dt = torch.nn.functional.softplus(t["dt"] + t["dt_bias"])
    B, C = (t[k].repeat_interleave(2, dim=1) for k in "BC")
    h = torch.exp(dt * t["A"])[..., None, None] * torch.from_numpy(state)
    h = h + torch.einsum("bh,bhp,bhn->bhpn", dt, t["x"], B)
    y = torch.einsum("bhpn,bhn->bhp", h, C) + t["D"][:, None] * t["x"]
    y = y * torch.nn.functional.silu(t["z"])
    assert error(fd.ssd_state_update(state, **p), y.numpy()) < 1e-14
    assert error(state, h.numpy()) < 1e-14
