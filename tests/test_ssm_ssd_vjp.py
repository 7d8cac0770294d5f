"""The adjoint of Mamba-2's scan: its oracle against autograd and the scan itself, and the compiled
one against the oracle.
"""

import itertools
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import error, error_in_sums, layouts, magnitudes, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads
from test_ssm_ssd import REALS, ssd_problem
from test_ssm_vjp import assert_within, identical

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}  # the numerical contract
USUAL = {np.float32: 4e-6, np.float64: 2e-14}
DIFFERENTIABLE = ["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state"]
ALONG_L = ["dout", "x", "dt", "B", "C", "z"]


def vjp_problem(batch, steps, heads, width, states, dtype=np.float64, *, bounds=None, **kinds):
    """Arguments of an adjoint with every option on, packed at `bounds` if given."""
    segments = None if bounds is None else len(bounds) - 1
    p = ssd_problem(batch, steps, heads, width, states, dtype, segments=segments, **kinds)
    if bounds is not None:
        p["cu_seqlens"] = bounds
    rng = np.random.default_rng(kinds.get("seed", 0) + 1)
    p["dout"] = rng.normal(size=p["x"].shape).astype(dtype)
    p["dlast_state"] = rng.normal(size=p["initial_state"].shape).astype(dtype)
    return p


def exact(p):
    with np.errstate(all="ignore"):
        return reference.ssd_scan_vjp(**p)


def arrays_of(p):
    return {k: a for k, a in p.items() if isinstance(a, np.ndarray)}


def forward_of(p):
    return {k: a for k, a in p.items() if k not in ("dout", "dlast_state", "cache")}


# ---- the oracle -------------------------------------------------------------------------------


def loss(library, p):
    """The scalar whose gradients the adjoint computes."""
    y, last = library.ssd_scan(**forward_of(p), return_last_state=True)
    return (y * p["dout"]).sum() + (last * p["dlast_state"]).sum()


def slope(f, e=1e-3):
    """f'(0) by fourth-order differences."""
    return (8 * (f(e) - f(-e)) - (f(2 * e) - f(-2 * e))) / (12 * e)


@pytest.mark.parametrize("library", [reference, fd])
@pytest.mark.parametrize("form", ["batch", "unbatched", "packed", "unbatched, packed"])
@pytest.mark.parametrize("D", ["head", "channel"])
def test_gradients_are_slopes_of_the_scan(library, form, D):
    bounds = [0, 0, 4, 5, 5, 12] if "packed" in form else None
    batch = 1 if "packed" in form else 2
    p = vjp_problem(
        batch, 12, 4, 3, 5, bounds=bounds, D=D, groups=2, unbatched=form.startswith("unbatched")
    )
    p["dt_limit"] = (0.0, np.inf)  # at a limit the result has no derivative
    rng = np.random.default_rng(7)
    for name, gradient in zip(DIFFERENTIABLE, library.ssd_scan_vjp(**p), strict=True):
        way = rng.normal(size=p[name].shape)
        along = slope(lambda e, name=name, way=way: loss(library, {**p, name: p[name] + e * way}))
        assert abs((gradient * way).sum() - along) <= 1e-9 * max(1, np.abs(gradient).sum()), name


def complex_loss(p, **changed):
    """The loss of one sequence, in the dtype of the arguments, without the limits of step sizes."""
    q = {**p, **changed}
    step = np.log1p(np.exp(q["dt"] + q["dt_bias"]))
    heads = step.shape[1]
    B, C = (np.repeat(q[name], heads // q[name].shape[1], axis=1) for name in "BC")
    h, total = q["initial_state"], 0
    for l in range(len(step)):
        d = step[l, :, None, None]
        h = np.exp(d * q["A"][:, None, None]) * h + d * q["x"][l, :, :, None] * B[l, :, None, :]
        y = (h * C[l, :, None, :]).sum(-1) + q["D"][:, None] * q["x"][l]
        total = total + (q["dout"][l] * y * q["z"][l] / (1 + np.exp(-q["z"][l]))).sum()
    return total + (h * q["dlast_state"]).sum()


def test_gradients_are_complex_steps():
    p = vjp_problem(1, 9, 4, 3, 5, groups=2, unbatched=True)
    p["dt_limit"] = (0.0, np.inf)
    grads, rng = fd.ssd_scan_vjp(**p), np.random.default_rng(3)
    for name, g in zip(DIFFERENTIABLE, grads, strict=True):
        way = rng.normal(size=p[name].shape)
        along = complex_loss(p, **{name: p[name] + 1e-30j * way}).imag * 1e30
        assert abs((g * way).sum() - along) <= 1e-13 * np.abs(g * way).sum(), name


def torch_gradients(p):
    """The gradients by PyTorch's autograd, from the recurrence of each sequence by itself."""
    torch = pytest.importorskip("torch")
    t = {k: torch.tensor(p[k], requires_grad=True) for k in DIFFERENTIABLE}
    batch, steps, heads, _ = p["x"].shape
    each = heads // p["B"].shape[2]
    B, C = (t[name].repeat_interleave(each, dim=2) for name in "BC")
    step = torch.nn.functional.softplus(t["dt"] + t["dt_bias"]).clamp(*p["dt_limit"])
    skip = t["D"] if t["D"].ndim == 2 else t["D"][:, None]
    bounds = p.get("cu_seqlens")
    pieces = itertools.pairwise(bounds) if bounds else [(0, steps)] * batch
    total = torch.zeros((), dtype=torch.float64)
    for k, (start, stop) in enumerate(pieces):
        item, h = 0 if bounds else k, t["initial_state"][k]
        for l in range(start, stop):
            d, x = step[item, l, :, None, None], t["x"][item, l]
            decay = torch.exp(d * t["A"][:, None, None])
            h = decay * h + d * x[..., None] * B[item, l, :, None, :]
            y = (h * C[item, l, :, None, :]).sum(-1) + skip * x
            gate = torch.nn.functional.silu(t["z"][item, l])
            total = total + (y * gate * torch.tensor(p["dout"][item, l])).sum()
        total = total + (h * torch.tensor(p["dlast_state"][k])).sum()
    grads = torch.autograd.grad(total, [t[name] for name in DIFFERENTIABLE])
    return reference.SSDScanGrads(*(g.numpy() for g in grads))


@pytest.mark.parametrize("D", ["head", "channel"])
@pytest.mark.parametrize("bounds", [None, [0, 0, 1, 7, 7, 15]])
def test_reference_equals_autograd(D, bounds):
    p = vjp_problem(1 if bounds else 2, 15, 4, 3, 5, D=D, groups=2, bounds=bounds)
    assert_within(1e-13, reference.ssd_scan_vjp(**p), torch_gradients(p))


def test_formulas_of_a_chunk():
    """docs/derivations.md §6.4, of one head whose state before and gradient behind are given."""
    steps = 11
    p = vjp_problem(1, steps, 1, 3, 4, unbatched=True)
    p.update(dict.fromkeys(["D", "z", "dt_bias"]))
    p["dt"], p["dt_softplus"], p["dt_limit"] = np.abs(p["dt"]), False, (0.0, np.inf)
    exact = reference.ssd_scan_vjp(**p)
    x, dt, B, C, y_bar = (p[name][:, 0] for name in ("x", "dt", "B", "C", "dout"))
    A, H, G = p["A"][0], p["initial_state"][0], p["dlast_state"][0]
    c = np.cumsum(dt * A)
    W = np.triu(np.exp(c - c[:, None]))  # [s, t]
    past, rest, inputs = np.exp(c)[:, None], np.exp(c[-1] - c)[:, None], dt[:, None] * x
    mixing, terms = W * (B @ C.T), W * (inputs @ y_bar.T)
    x_bar = rest * (B @ G.T) + mixing @ y_bar
    pairs = terms * (B @ C.T)
    flow = [
        pairs[:t, t:].sum()
        + (past * y_bar * (C @ H.T))[t:].sum()
        + (rest * inputs * (B @ G.T))[:t].sum()
        + past[-1, 0] * (G * H).sum()
        for t in range(steps)
    ]
    found = dict(
        dx=dt[:, None] * x_bar,
        ddt=(x * x_bar).sum(1) + A * np.array(flow),
        dA=(dt * flow).sum(),
        dB=rest * (inputs @ G) + terms @ C,
        dC=past * (y_bar @ H) + terms.T @ B,
        dinitial_state=past[-1] * G + (past * y_bar).T @ C,
    )
    for name, value in found.items():
        assert error(value, getattr(exact, name).reshape(np.shape(value))) < 1e-14, name


# ---- against the oracle -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize(
    "shape",  # batch, steps, heads, width, states, groups
    [
        (1, 1, 1, 1, 1, 1),
        (2, 7, 5, 3, 4, 1),
        (1, 64, 8, 16, 16, 2),
        (1, 65, 3, 64, 128, 1),
        (2, 127, 4, 17, 9, 4),
        (1, 128, 2, 15, 33, 1),
        (1, 129, 2, 31, 31, 2),
        (2, 200, 14, 8, 15, 1),
        (3, 256, 2, 5, 65, 2),
        (1, 300, 7, 33, 2, 1),
        (1, 20, 2, 3, 1000, 1),
        (1, 20, 2, 300, 3, 1),
        (4, 2, 30, 2, 3, 3),
    ],
)
def test_equals_reference(dtype, shape):
    *sizes, groups = shape
    p = vjp_problem(*sizes, dtype, groups=groups, D="channel" if shape[1] % 2 else "head")
    tolerance = TOLERANCE if shape[4] > 999 else USUAL  # sums of so many terms
    assert_within(tolerance[dtype], fd.ssd_scan_vjp(**p), exact(p))


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(0, 3),
    steps=st.integers(0, 150),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 8),
    width=st.integers(1, 20),
    states=st.integers(1, 20),
    absent=st.sets(st.sampled_from(["D", "z", "dt_bias", "initial_state", "dlast_state"])),
    softplus=st.booleans(),
    dtype=st.sampled_from(REALS),
)
def test_equals_reference_with_any_options(
    batch, steps, groups, per_group, width, states, absent, softplus, dtype
):
    p = vjp_problem(batch, steps, groups * per_group, width, states, dtype, groups=groups)
    p.update(dict.fromkeys(absent))
    p["dt_softplus"] = softplus
    grads, expected, sums = fd.ssd_scan_vjp(**p), exact(p), exact(magnitudes(p))
    for name, a, b, s in zip(grads._fields, grads, expected, sums, strict=True):
        assert (a is b is None) or error_in_sums(a, b, s) < TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", REALS)
def test_options_left_out_are_zero(dtype):
    p = vjp_problem(2, 80, 4, 5, 6, dtype)
    p.update(dict.fromkeys(["D", "z", "dt_bias", "initial_state", "dlast_state"]))
    p["dt_softplus"], p["dt_limit"] = False, (0.0, np.inf)
    p["dt"] = np.abs(p["dt"])
    grads = fd.ssd_scan_vjp(**p)
    needed = {k: p[k] for k in ("dout", "x", "dt", "A", "B", "C")}
    assert identical(grads, fd.ssd_scan_vjp(**needed))
    assert [g is None for g in grads] == [False] * 5 + [True] * 4


@pytest.mark.parametrize("dtype", REALS)
def test_held_step_sizes_have_no_gradient(dtype):
    p = vjp_problem(1, 90, 4, 5, 6, dtype)
    p["dt_limit"] = (0.2, 1.0)
    step = np.logaddexp(0, p["dt"] + p["dt_bias"])
    held = (step < 0.2) | (step > 1)
    grads = fd.ssd_scan_vjp(**p)
    assert held.any() and not grads.ddt[held].any() and (grads.ddt[~held] != 0).all()
    p["dt_limit"] = (0.5, 0.5)
    grads = fd.ssd_scan_vjp(**p)
    assert not grads.ddt.any() and not grads.ddt_bias.any() and grads.dA.all()
    assert_within(USUAL[dtype], grads, exact(p))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("steps", [100, 300, 2200])  # one chunk, one window, two
def test_halves_chained_by_their_states_are_the_whole(dtype, steps):
    p = vjp_problem(1, steps, 2, 5, 6, dtype)
    grads, half = fd.ssd_scan_vjp(**p), steps // 3

    def part(s, **states):
        return {**{k: a[:, s] if k in ALONG_L else a for k, a in p.items()}, **states}

    first, second = part(np.s_[:half]), part(np.s_[half:])
    _, between = fd.ssd_scan(**forward_of(first), return_last_state=True)
    later = fd.ssd_scan_vjp(**{**second, "initial_state": between})
    earlier = fd.ssd_scan_vjp(**{**first, "dlast_state": later.dinitial_state})
    joined = [
        earlier.dinitial_state
        if name == "initial_state"
        else np.concatenate([getattr(g, f"d{name}") for g in (earlier, later)], 1)
        if name in ALONG_L
        else getattr(earlier, f"d{name}") + getattr(later, f"d{name}")
        for name in DIFFERENTIABLE
    ]
    assert_within(TOLERANCE[dtype] / 3, grads, reference.SSDScanGrads(*joined))


def test_gradients_are_linear_in_the_adjoints_of_the_results():
    p, q = vjp_problem(1, 150, 3, 5, 6), vjp_problem(1, 150, 3, 5, 6, seed=5)
    mixed = {**p, **{k: 2 * p[k] - 3 * q[k] for k in ("dout", "dlast_state")}}
    other = {**p, **{k: q[k] for k in ("dout", "dlast_state")}}
    one, two = fd.ssd_scan_vjp(**p), fd.ssd_scan_vjp(**other)
    sums = reference.SSDScanGrads(*(2 * a - 3 * b for a, b in zip(one, two, strict=True)))
    assert_within(1e-13, fd.ssd_scan_vjp(**mixed), sums)
    nothing = fd.ssd_scan_vjp(**{**p, "dout": 0 * p["dout"], "dlast_state": None})
    assert not any(np.any(g) for g in nothing)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("unbatched", [False, True])
def test_packed_sequences_are_each_by_itself_bitwise(dtype, unbatched):
    bounds = [0, 0, 1, 130, 130, 200, 263]
    p = vjp_problem(1, 263, 14, 5, 6, dtype, bounds=bounds, unbatched=unbatched)
    packed = fd.ssd_scan_vjp(**p)
    sums = np.zeros((3, 14))
    time = 0 if unbatched else 1
    for k, (start, stop) in enumerate(itertools.pairwise(bounds)):
        alone = {
            name: a.take(range(start, stop), time) if name in ALONG_L else a
            for name, a in p.items()
        }
        own = k if unbatched else np.s_[k : k + 1]
        alone.update({name: p[name][own] for name in ("initial_state", "dlast_state")})
        alone["cu_seqlens"] = None
        grads = fd.ssd_scan_vjp(**alone)
        for name in ("dx", "ddt", "dB", "dC", "dz"):
            piece = getattr(packed, name).take(range(start, stop), time)
            assert same_bits(piece, getattr(grads, name)), name
        assert same_bits(packed.dinitial_state[own], grads.dinitial_state)
        sums += grads.dA, grads.dD, grads.ddt_bias
    for whole, total in zip((packed.dA, packed.dD, packed.ddt_bias), sums, strict=True):
        assert error(whole, total) < TOLERANCE[dtype] / 10


# ---- the cache --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("bounds", [None, [0, 0, 1, 130, 130, 200, 400]])
@pytest.mark.parametrize("initial", [False, True])
def test_cache_replaces_the_way_forward(dtype, bounds, initial):
    p = vjp_problem(1 if bounds else 2, 400, 4, 17, 9, dtype, groups=2, bounds=bounds)
    p["initial_state"] = p["initial_state"] if initial else None
    _, p["cache"] = fd.ssd_scan(**forward_of(p), return_cache=True)
    grads = fd.ssd_scan_vjp(**p)
    assert_within(USUAL[dtype], grads, exact({**p, "cache": None}))
    assert identical(grads, fd.ssd_scan_vjp(**p))  # it serves any number of times
    p["dout"] = -p["dout"]
    assert_within(USUAL[dtype], fd.ssd_scan_vjp(**p), exact({**p, "cache": None}))


@pytest.mark.parametrize("library", [reference, fd])
@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "dt_bias", "initial_state"])
def test_cache_of_another_call_is_refused(library, name):
    p = vjp_problem(1, 100, 2, 3, 4)
    _, cache = library.ssd_scan(**forward_of(p), return_cache=True)
    with pytest.raises(ValueError, match="cache"):
        library.ssd_scan_vjp(**{**p, name: p[name] + 1}, cache=cache)


# ---- bits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("name", ["dout", *DIFFERENTIABLE, "dlast_state"])
def test_layout_changes_no_bit(name, dtype):
    p = vjp_problem(2, 150, 4, 21, 6, dtype, groups=2, D="channel")
    grads, before = fd.ssd_scan_vjp(**p), snapshot(*arrays_of(p).values())
    for label, array in layouts(p[name]):
        assert identical(grads, fd.ssd_scan_vjp(**{**p, name: array})), label
    assert snapshot(*arrays_of(p).values()) == before


def test_time_last_everywhere_changes_no_bit():
    p = vjp_problem(2, 200, 4, 16, 32, np.float32)
    last = {
        k: np.ascontiguousarray(a.swapaxes(1, -1)).swapaxes(1, -1) if k in ALONG_L else a
        for k, a in p.items()
    }
    assert identical(fd.ssd_scan_vjp(**p), fd.ssd_scan_vjp(**last))


@pytest.mark.parametrize("dtype", REALS)
def test_broadcast_arguments_change_no_bit(dtype):
    p = vjp_problem(2, 90, 4, 5, 6, dtype)
    shown = {k: np.broadcast_to(a[..., :1], a.shape) for k, a in arrays_of(p).items()}
    shown["x"] = np.broadcast_to(dtype(1.5), p["x"].shape)
    copied = {k: a.copy() for k, a in shown.items()}
    assert identical(*(fd.ssd_scan_vjp(**a, dt_softplus=True) for a in (shown, copied)))


@pytest.mark.parametrize(
    "case",  # each above a quarter of a millisecond of work, from where on threads share it
    [
        dict(batch=1, steps=600, heads=24, width=16, states=16),
        dict(batch=5, steps=200, heads=6, width=16, states=16, groups=2),
        dict(batch=1, steps=2000, heads=8, width=8, states=8, bounds=[0, 5, *range(9, 2001, 181)]),
    ],
    ids=["heads", "batch", "sequences"],
)
@pytest.mark.parametrize("dtype", REALS)
def test_thread_count_changes_no_bit(case, dtype):
    p = vjp_problem(**case, dtype=dtype)
    first, *others = by_threads(lambda: fd.ssd_scan_vjp(**p), 1, 2, 3, 7, 7, 1)
    assert all(identical(first, other) for other in others)


LEVEL_SCRIPT = """
import hashlib, pickle
import numpy as np
import fastderiv as fd
for p in pickle.load(open({path!r}, "rb")):
    for d in fd.ssd_scan_vjp(**p):
        print(hashlib.sha256(d.tobytes()).hexdigest(), float(np.abs(d).sum()))
"""


def test_cpu_levels_agree(tmp_path):
    kinds = [
        dict(batch=2, steps=100, groups=2),
        dict(batch=1, steps=300, D="channel"),
        dict(batch=1, steps=300, bounds=[0, 0, 70, 300]),
    ]
    problems = [
        vjp_problem(**kind, heads=8, width=37, states=21, dtype=dtype)
        for kind in kinds
        for dtype in REALS
    ]
    for p in problems:
        p["dt"][0, 5] *= 40
    (tmp_path / "problems").write_bytes(pickle.dumps(problems))
    assert_levels_agree(LEVEL_SCRIPT.format(path=str(tmp_path / "problems")))


# ---- extremes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["dout", *DIFFERENTIABLE, "dlast_state"])
def test_nonfinite_stays_in_its_head_and_item(dtype, bad, name):
    p = vjp_problem(2, 140, 8, 5, 6, dtype, groups=4)
    clean = fd.ssd_scan_vjp(**p)
    q = {**p, name: p[name].copy()}
    heads, items = slice(3, 4), slice(1, 2)  # head 3 belongs to group 1 of four
    if name in ("A", "D", "dt_bias"):
        q[name][3], items = bad, slice(None)
    elif name in ("B", "C"):
        q[name][1, 100, 1, 2], heads = bad, slice(2, 4)
    elif name in ALONG_L:
        q[name][1, 100, 3] = bad
    else:
        q[name][1, 3, 2, 1] = bad
    grads = fd.ssd_scan_vjp(**q)
    other = np.ones((2, 8), bool)
    other[items, heads] = False
    group = np.ones((2, 4), bool)
    group[items, 1] = False
    for field, d, d0 in zip(clean._fields, grads, clean, strict=True):
        if field in ("dB", "dC"):
            assert same_bits(d.swapaxes(1, 2)[group], d0.swapaxes(1, 2)[group]), field
        elif field in ("dA", "dD", "ddt_bias"):
            assert same_bits(np.delete(d, heads, 0), np.delete(d0, heads, 0)), field
        elif field == "dinitial_state":
            assert same_bits(d[other], d0[other]), field
        else:
            assert same_bits(d.swapaxes(1, 2)[other], d0.swapaxes(1, 2)[other]), field


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("name", ["dout", "x", "dt", "z", "B", "C"])
@pytest.mark.parametrize("sequence", [1, 3])
def test_nonfinite_stays_in_its_sequence(dtype, name, sequence):
    p = vjp_problem(1, 140, 4, 5, 6, dtype, bounds=[0, 0, 50, 50, 140])
    clean = fd.ssd_scan_vjp(**p)
    q = {**p, name: p[name].copy()}
    q[name][0, 20 if sequence == 1 else 120] = np.nan
    grads = fd.ssd_scan_vjp(**q)
    other = np.s_[:, 50:] if sequence == 1 else np.s_[:, :50]
    for field in "dx", "ddt", "dB", "dC", "dz":
        assert same_bits(getattr(grads, field)[other], getattr(clean, field)[other]), field
    assert same_bits(
        np.delete(grads.dinitial_state, sequence, 0), np.delete(clean.dinitial_state, sequence, 0)
    )


@pytest.mark.parametrize("dtype", REALS)
def test_sums_over_the_batch_that_overflow_are_silent(dtype):
    p = vjp_problem(2, 130, 2, 3, 4, dtype)
    p["z"], p["x"][:] = None, 1
    p["dout"][:, 5, 1] = np.finfo(dtype).max
    dD = fd.ssd_scan_vjp(**p).dD
    assert np.isinf(dD[1]) and np.isfinite(dD[0])


def exact_decay(p, dtype=np.longdouble):
    """The gradients of one sequence in another precision, for arguments without options."""
    x, dt, A, B, C, dout = (p[k][0].astype(dtype) if k != "A" else p[k].astype(dtype)
                            for k in ("x", "dt", "A", "B", "C", "dout"))  # fmt: skip
    steps, heads, width = x.shape
    h = np.zeros((steps + 1, heads, width, B.shape[-1]), dtype)
    decay = np.exp(dt * A)
    for l in range(steps):
        h[l + 1] = decay[l, :, None, None] * h[l]
        h[l + 1] += (dt[l, :, None] * x[l])[..., None] * B[l, 0]
    g = np.zeros_like(h[0])
    dx, ddt, dA = np.empty_like(x), np.empty_like(dt), np.zeros_like(A)
    dB, dC = np.empty_like(B), np.empty_like(C)
    for l in reversed(range(steps)):
        g = g + dout[l, :, :, None] * C[l, 0]
        dC[l, 0] = (dout[l, :, :, None] * h[l + 1]).sum((0, 1))
        dB[l, 0] = ((dt[l, :, None] * x[l])[..., None] * g).sum((0, 1))
        each = (g * B[l, 0]).sum(-1)
        flow = decay[l] * (g * h[l]).sum((-2, -1))
        dx[l] = dt[l, :, None] * each
        ddt[l] = A * flow + (x[l] * each).sum(-1)
        dA += dt[l] * flow
        g = decay[l, :, None, None] * g
    batch = (a[None] for a in (dx, ddt))
    return reference.SSDScanGrads(*batch, dA, dB[None], dC[None], None, None, None, None)


def plain_problem(steps, heads, width, states, dtype, rate=1.0, seed=0):
    """Arguments of `exact_decay` with a typical decay, made stronger or weaker by `rate`."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    return dict(
        dout=normal(1, steps, heads, width),
        x=normal(1, steps, heads, width),
        dt=np.exp(normal(1, steps, heads) - dtype(3)),
        A=-np.exp(normal(heads)) * dtype(rate),
        B=normal(1, steps, 1, states),
        C=normal(1, steps, 1, states),
    )


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("rate", [1e-3, 1, 100])
def test_strong_and_weak_decays(dtype, rate):
    p = plain_problem(1500, 2, 5, 6, dtype, rate)
    assert_within(TOLERANCE[dtype] / 5, fd.ssd_scan_vjp(**p), exact_decay(p))


@pytest.mark.parametrize("dtype", REALS)
def test_states_that_forget_everything(dtype):
    p = plain_problem(200, 2, 5, 6, dtype, 1e5)
    forgotten = np.exp(-64) if dtype == np.float32 else np.exp(-600)
    for g, e in zip(fd.ssd_scan_vjp(**p)[:5], exact_decay(p), strict=False):
        assert np.abs(g - e).max() <= TOLERANCE[dtype] / 5 * np.abs(e).max() + 1e4 * forgotten


@pytest.mark.parametrize("dtype", REALS)
def test_fast_decay_is_accurate_in_small_gradients_too(dtype):
    p = plain_problem(200, 2, 5, 6, dtype)
    p["dt"][:], p["A"][:] = 1, -20
    grads, expected = fd.ssd_scan_vjp(**p), exact_decay(p)
    assert np.abs(expected.dA).max() < 1e-5
    assert_within(TOLERANCE[dtype] / 5, grads, expected)


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("rate", [1e-3, 1, 100])
@pytest.mark.parametrize("width, states", [(64, 128), (33, 40)])
def test_large_states_decay(dtype, rate, width, states):
    p = plain_problem(260, 3, width, states, dtype, rate)
    assert_within(TOLERANCE[dtype] / 5, fd.ssd_scan_vjp(**p), exact_decay(p))


def test_long_sequences_are_accurate_in_float32():
    for rate in (1e-3, 1, 100):
        p = plain_problem(65536, 2, 8, 8, np.float32, rate)
        wide = {k: a.astype(np.float64) for k, a in p.items()}
        assert_within(TOLERANCE[np.float32] / 2, fd.ssd_scan_vjp(**p), fd.ssd_scan_vjp(**wide))


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1e-3, 1, 100])
def test_long_sequences_are_accurate_in_float64(rate):
    p = plain_problem(65536, 1, 4, 4, np.float64, rate)
    assert_within(TOLERANCE[np.float64] / 5, fd.ssd_scan_vjp(**p), exact_decay(p))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("steps", [60, 200])
def test_moderate_growth_equals_reference(dtype, steps):
    p = vjp_problem(1, steps, 4, 5, 6, dtype)
    p["A"] = np.abs(p["A"]) / 20
    assert_within(TOLERANCE[dtype], fd.ssd_scan_vjp(**p), exact(p))


@pytest.mark.parametrize("dtype", REALS)
def test_growth_that_overflows_stays_in_its_head(dtype):
    p = vjp_problem(1, 200, 4, 5, 6, dtype, groups=4)
    clean = fd.ssd_scan_vjp(**p)
    p["A"][2] = 50
    grads = fd.ssd_scan_vjp(**p)
    assert not np.isfinite(grads.dA[2])
    assert same_bits(np.delete(grads.dx, 2, 2), np.delete(clean.dx, 2, 2))
    assert same_bits(np.delete(grads.dB, 2, 2), np.delete(clean.dB, 2, 2))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("name", ["dt", "z"])
def test_softplus_and_gate_far_into_both_tails(dtype, name):
    p = vjp_problem(1, 61, 3, 5, 6, dtype)
    p["dt_limit"] = (0.0, np.inf)
    line = np.linspace(-700, 700, 61, dtype=dtype)
    p[name] = p[name] * 0 + line.reshape(1, 61, *[1] * (p[name].ndim - 2))
    assert_within(TOLERANCE[dtype], fd.ssd_scan_vjp(**p), exact(p))


@pytest.mark.parametrize("dtype", REALS)
def test_steps_of_no_length(dtype):
    p = vjp_problem(1, 140, 3, 5, 6, dtype)
    p["dt"], p["dt_softplus"], p["dt_bias"] = np.zeros_like(p["dt"]), False, None
    p["dt_limit"] = (0.0, np.inf)
    grads = fd.ssd_scan_vjp(**p)
    assert not grads.dA.any() and not grads.dB.any()
    assert_within(TOLERANCE[dtype], grads, exact(p))


@pytest.mark.parametrize("dtype", REALS)
def test_denormals_are_kept_or_become_zero(dtype):
    p, tiny = vjp_problem(1, 80, 3, 5, 6, dtype), np.finfo(dtype).tiny
    p["dout"] *= tiny
    p["dlast_state"] *= tiny
    for g, e in zip(fd.ssd_scan_vjp(**p), exact(p), strict=True):
        bound = TOLERANCE[dtype] * np.abs(e).max() + 1000 * tiny
        assert np.abs(g - e).max() <= bound


# ---- arguments and results --------------------------------------------------------------------


def test_dtypes_are_promoted_together():
    p = vjp_problem(1, 5, 4, 2, 3, np.float32)

    def dtypes(**change):
        return {g.dtype for g in fd.ssd_scan_vjp(**{**p, **change})}

    assert dtypes() == {np.dtype(np.float32)}
    for name, array in arrays_of(p).items():
        assert dtypes(**{name: array.astype(np.float64)}) == {np.dtype(np.float64)}, name
    assert dtypes(D=np.arange(4)) == {np.dtype(np.float64)}


def test_lists_count_as_float64():
    p = vjp_problem(1, 5, 4, 2, 3)
    lists = {k: a.tolist() if isinstance(a, np.ndarray) else a for k, a in p.items()}
    assert identical(fd.ssd_scan_vjp(**p), fd.ssd_scan_vjp(**lists))


@pytest.mark.parametrize("steps", [0, 1, 90])
def test_results_are_new_and_writable(steps):
    p = vjp_problem(2, steps, 4, 2, 3)
    p["dlast_state"] = p["initial_state"]  # the same array twice
    before = snapshot(*arrays_of(p).values())
    grads = fd.ssd_scan_vjp(**p)
    assert not any(np.may_share_memory(g, a) for g in grads for a in arrays_of(p).values())
    assert not any(np.may_share_memory(g, h) for i, g in enumerate(grads) for h in grads[:i])
    for g in grads:
        g[...] = 7
    assert snapshot(*arrays_of(p).values()) == before


@pytest.mark.parametrize("axis", ["batch", "steps", "heads", "width", "states"])
@pytest.mark.parametrize("absent", [(), ("z", "initial_state", "dlast_state", "D")])
def test_empty_axes(axis, absent):
    sizes = dict(batch=2, steps=70, heads=4, width=3, states=5)
    sizes[axis] = 0
    p = vjp_problem(**sizes)
    p.update(dict.fromkeys(absent))
    assert_within(1e-13, fd.ssd_scan_vjp(**p), exact(p))


@pytest.mark.parametrize("bounds", [[0], [0, 0], [0, 0, 0]])
def test_packed_without_steps(bounds):
    p = vjp_problem(1, 0, 4, 3, 5, bounds=bounds)
    assert_within(0, fd.ssd_scan_vjp(**p), exact(p))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(dout=np.ones((2, 6, 4, 3))), r"dout has shape \(2, 6, 4, 3\); expected .*2, 7, 4, 3"),
        (dict(dout=None), "dout"),
        (dict(dlast_state=np.ones((2, 4, 5, 3))), "dlast_state has shape"),
        (dict(D=np.ones(3)), "D has shape"),
        (dict(B=np.ones((2, 7, 3, 5))), "B has shape"),
        (dict(dt_limit=3), "dt_limit"),
        (dict(dt_softplus=np.ones(2)), "dt_softplus"),
        (dict(cache=7), "cache"),
        (dict(z=np.ones((2, 7, 4, 3), complex)), "z has dtype"),
        (dict(cu_seqlens=[0, 7]), "cu_seqlens"),
    ],
)
def test_errors_name_the_argument(change, message):
    p = vjp_problem(2, 7, 4, 3, 5)
    with pytest.raises((ValueError, TypeError), match=message):
        fd.ssd_scan_vjp(**{**p, **change})


def test_grads_pickle():
    grads = fd.ssd_scan_vjp(**{**vjp_problem(1, 5, 4, 2, 3), "D": None})
    again = pickle.loads(pickle.dumps(grads))
    assert type(again) is type(grads) is fd.SSDScanGrads
    assert identical(again, grads) and again.dD is None
    assert grads._fields == tuple(f"d{name}" for name in DIFFERENTIABLE)


def test_shares_take_a_sixth_of_the_memory_of_inputs_and_results():
    p = vjp_problem(1, 1000, 24, 64, 128, np.float32)
    p.update(dict.fromkeys(["z", "initial_state", "dlast_state"]))
    tracemalloc.start()
    try:
        grads = fd.ssd_scan_vjp(**p)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    results = sum(g.nbytes for g in grads if g is not None)
    inputs = sum(a.nbytes for a in arrays_of(p).values())
    assert peak <= results + (results + inputs) / 6 + 1e5


def test_ctrl_c_is_answered():
    p = plain_problem(20000, 8, 64, 512, np.float32)
    for threads in (1, 2):
        (seconds,) = by_threads(
            lambda: seconds_until_answered(lambda: fd.ssd_scan_vjp(**p), delay=0.1), threads
        )
        assert seconds < ALLOWED
