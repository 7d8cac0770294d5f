"""The adjoint of the selective scan: its oracle against autograd and the scan itself, and the
compiled one against the oracle.
"""

import itertools
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastderiv as fd
from fastderiv import reference
from helpers.awkward import error, layouts, same_bits, snapshot
from helpers.interrupt import ALLOWED, seconds_until_answered
from helpers.machines import assert_levels_agree, by_threads
from test_ssm import REALS, problem

TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}  # the numerical contract
DIFFERENTIABLE = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"]
ALONG_L = ["dout", "u", "delta", "B", "C", "z"]
LAYOUTS = [
    ("time", "time"),
    ("constant", "time"),
    ("time", "constant"),
    ("constant", "constant"),
    (1, "time"),
    (3, 2),
    ("constant", 6),
]


def vjp_problem(
    batch,
    channels,
    states,
    steps,
    dtype=np.float64,
    *,
    bounds=None,
    unbatched=False,
    seed=0,
    **kinds,
):
    """Arguments of an adjoint with every option on, packed at `bounds` if given."""
    p = problem(batch, channels, states, steps, dtype, seed=seed, unbatched=unbatched, **kinds)
    rng = np.random.default_rng(seed + 1)
    if bounds is not None:
        p["initial_state"] = rng.normal(size=(len(bounds) - 1, channels, states)).astype(dtype)
        p["cu_seqlens"] = bounds
    p["dout"] = rng.normal(size=p["u"].shape).astype(dtype)
    p["dlast_state"] = rng.normal(size=p["initial_state"].shape).astype(dtype)
    return p


def positive_steps(p):
    """The problem with steps that need no softplus."""
    return {**p, **{name: np.abs(p[name]) / 4 for name in ("delta", "delta_bias")}}


def exact(p):
    with np.errstate(all="ignore"):
        return reference.selective_scan_vjp(**p)


def errors(grads, expected):
    """The error of every gradient relative to its own largest magnitude; None, shapes and fields
    are compared too.
    """
    assert [g is None for g in grads] == [e is None for e in expected]
    present = [
        (name, g, e)
        for name, g, e in zip(grads._fields, grads, expected, strict=True)
        if e is not None
    ]
    assert all(g.shape == e.shape for _, g, e in present)
    return {name: error(g, e) for name, g, e in present}


def assert_within(tolerance, grads, expected):
    for name, e in errors(grads, expected).items():
        assert e <= tolerance, name


def assert_equal_down_to_denormals(grads, expected, dtype):
    """Within the contract, under which what is below the smallest normal number may be zero."""
    for name, g, e in zip(grads._fields, grads, expected, strict=True):
        assert np.isfinite(g).all(), name
        assert (
            np.abs(g - e).max() <= TOLERANCE[dtype] * np.abs(e).max() + 1000 * np.finfo(dtype).tiny
        ), name


def identical(grads, others):
    return all(a is b is None or same_bits(a, b) for a, b in zip(grads, others, strict=True))


def arrays_of(p):
    return {k: a for k, a in p.items() if isinstance(a, np.ndarray)}


# ---- the oracle -------------------------------------------------------------------------------


def loss(library, p):
    """The scalar whose gradients the adjoint computes."""
    forward = {k: a for k, a in p.items() if k not in ("dout", "dlast_state")}
    y, last = library.selective_scan(**forward, return_last_state=True)
    return (y * p["dout"]).sum() + (
        0 if p["dlast_state"] is None else (last * p["dlast_state"]).sum()
    )


def slope(f, e=1e-3):
    """f'(0) by fourth-order differences."""
    return (8 * (f(e) - f(-e)) - (f(2 * e) - f(-2 * e))) / (12 * e)


def assert_gradients_are_slopes(library, p):
    """Every gradient against the slope of the loss along a random direction of its argument."""
    rng = np.random.default_rng(7)
    for name, gradient in zip(DIFFERENTIABLE, library.selective_scan_vjp(**p), strict=True):
        if p[name] is None:
            assert gradient is None
            continue
        way = rng.normal(size=p[name].shape)
        along = slope(lambda e, name=name, way=way: loss(library, {**p, name: p[name] + e * way}))
        assert abs((gradient * way).sum() - along) <= 1e-9 * max(1, np.abs(gradient).sum()), name


@pytest.mark.parametrize("library", [reference, fd])
@pytest.mark.parametrize("B, C", LAYOUTS)
@pytest.mark.parametrize("form", ["batch", "unbatched", "packed", "unbatched, packed"])
def test_gradients_are_slopes_of_the_scan(library, B, C, form):
    alone = form.startswith("unbatched")
    bounds = [0, 0, 4, 5, 5, 12] if "packed" in form else None
    p = vjp_problem(2 if form == "batch" else 1, 6, 3, 12, B=B, C=C, unbatched=alone, bounds=bounds)
    assert_gradients_are_slopes(library, p)


@pytest.mark.parametrize("library", [reference, fd])
@pytest.mark.parametrize(
    "without",
    [
        {"D"},
        {"z"},
        {"delta_bias"},
        {"delta_softplus"},
        {"initial_state"},
        {"dlast_state"},
        {"D", "z", "delta_bias", "delta_softplus", "initial_state", "dlast_state"},
    ],
    ids=sorted,
)
def test_gradients_without_an_option_are_slopes(library, without):
    p = positive_steps(vjp_problem(2, 6, 3, 9))
    assert_gradients_are_slopes(
        library, {**p, **{name: False if name == "delta_softplus" else None for name in without}}
    )


def torch_gradients(p):
    """The gradients by PyTorch's autograd, through a plain loop over sequences, items and steps."""
    torch = pytest.importorskip("torch")
    t = {k: torch.tensor(a, requires_grad=True) for k, a in arrays_of(p).items()}
    u, delta, z, dout = (
        t[k] if t[k].ndim == 3 else t[k][None] for k in ("u", "delta", "z", "dout")
    )
    first, dlast = (
        t[k] if t[k].ndim == 3 else t[k][None] for k in ("initial_state", "dlast_state")
    )
    channels, steps = u.shape[1:]

    def at(name, item, step):  # B or C as (D, N)
        c = t[name]
        if c.ndim == 2:
            return c
        if p["u"].ndim == 3:
            c = c[item]
        c = c[None] if c.ndim == 2 else c
        return c.repeat_interleave(channels // c.shape[0], 0)[:, :, step]

    dt = torch.nn.functional.softplus(delta + t["delta_bias"][:, None])
    packed = "cu_seqlens" in p
    bounds = p.get("cu_seqlens", [0, steps])
    total = sum((a * 0).sum() for a in t.values())  # L = 0: a gradient of zeros, not none
    for sequence in range(len(first)):
        item, k = (0, sequence) if packed else (sequence, 0)
        h = first[sequence]
        for l in range(bounds[k], bounds[k + 1]):
            step = dt[item, :, l, None]
            h = torch.exp(step * t["A"]) * h + step * at("B", item, l) * u[item, :, l, None]
            y = (h * at("C", item, l)).sum(-1) + t["D"] * u[item, :, l]
            total = total + (y * torch.nn.functional.silu(z[item, :, l]) * dout[item, :, l]).sum()
        total = total + (h * dlast[sequence]).sum()
    grads = torch.autograd.grad(total, [t[name] for name in DIFFERENTIABLE])
    return reference.SelectiveScanGrads(*(g.numpy() for g in grads))


@pytest.mark.parametrize("B, C", LAYOUTS)
@pytest.mark.parametrize("bounds", [None, [0, 0, 1, 7, 7, 15]])
def test_reference_equals_autograd(B, C, bounds):
    p = vjp_problem(1 if bounds else 2, 6, 3, 15, B=B, C=C, bounds=bounds)
    assert_within(1e-13, reference.selective_scan_vjp(**p), torch_gradients(p))
    p = vjp_problem(1, 6, 3, 15, B=B, C=C, bounds=bounds, unbatched=True)
    assert_within(1e-13, reference.selective_scan_vjp(**p), torch_gradients(p))


@pytest.mark.parametrize("bounds", [None, [0, 0, 0]])
def test_reference_equals_autograd_without_steps(bounds):
    p = vjp_problem(1 if bounds else 2, 4, 3, 0, bounds=bounds)
    assert_within(0, reference.selective_scan_vjp(**p), torch_gradients(p))


# ---- against the oracle -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 16, 4, 8),
        (2, 5, 3, 7),
        (3, 33, 16, 300),
        (2, 48, 5, 129),
        (1, 1, 1, 1),
        (2, 17, 64, 40),
        (1, 4, 300, 20),
        (1, 16, 16, 257),
        (1, 15, 1, 31),
        (2, 31, 2, 32),
        (1, 32, 8, 33),
        (2, 63, 7, 63),
        (1, 64, 16, 64),
        (1, 65, 9, 65),
        (2, 16, 17, 127),
        (1, 17, 16, 128),
        (1, 8, 15, 255),
        (2, 12, 33, 256),
    ],
)
@pytest.mark.parametrize("B, C", LAYOUTS[:5])
def test_vjp_equals_reference(shape, dtype, B, C):
    p = vjp_problem(*shape, dtype, B=B, C=C)
    grads = fd.selective_scan_vjp(**p)
    assert all(g.dtype == dtype for g in grads)
    assert_within(TOLERANCE[dtype], grads, exact(p))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("B, C", [(3, 3), (2, 6), (12, 4), (1, 36), (36, 2), (4, "constant")])
def test_gradients_of_shared_coefficients_are_sums(B, C, dtype):
    p = vjp_problem(2, 36, 5, 133, dtype, B=B, C=C)
    assert_within(TOLERANCE[dtype], fd.selective_scan_vjp(**p), exact(p))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize(
    "bounds",
    [[0, 0, 1, 130, 130, 200], [0, 64, 128, 200], [0, 200], [*range(0, 201, 2)], [0, 0, 200, 200]],
    ids=len,
)
@pytest.mark.parametrize("B, C", [("time", 2), ("constant", "constant")])
def test_packed_sequences_equal_reference(bounds, dtype, B, C):
    p = vjp_problem(1, 20, 4, 200, dtype, B=B, C=C, bounds=bounds)
    assert_within(TOLERANCE[dtype], fd.selective_scan_vjp(**p), exact(p))
    p["initial_state"] = p["dlast_state"] = None
    assert_within(TOLERANCE[dtype], fd.selective_scan_vjp(**p), exact(p))


OPTIONS = ["D", "z", "delta_bias", "initial_state", "dlast_state", "delta_softplus"]


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize(
    "without", [*([name] for name in OPTIONS), OPTIONS[:2], OPTIONS[3:5], OPTIONS], ids=" ".join
)
def test_every_option_can_be_left_out(without, dtype):
    p = positive_steps(vjp_problem(2, 19, 4, 131, dtype))
    p.update((name, False if name == "delta_softplus" else None) for name in without)
    grads = fd.selective_scan_vjp(**p)
    assert_within(TOLERANCE[dtype], grads, exact(p))
    assert identical(
        grads,
        fd.selective_scan_vjp(**{k: a for k, a in p.items() if a is not None and a is not False}),
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 3),
    st.integers(0, 40),
    st.integers(0, 9),
    st.integers(0, 200),
    st.sampled_from(REALS),
    st.sampled_from(["constant", "time", 1]),
    st.sampled_from(["constant", "time", 1]),
    st.integers(0, 2**31),
)
def test_any_shape_empty_ones_too(batch, channels, states, steps, dtype, B, C, seed):
    p = vjp_problem(batch, channels, states, steps, dtype, B=B, C=C, seed=seed)
    if channels == 0:
        p["B"], p["C"] = (
            np.ones((0, states), dtype) if a.ndim != 3 else a for a in (p["B"], p["C"])
        )
    expected, grads = exact(p), fd.selective_scan_vjp(**p)
    same_signs = exact(
        {
            k: a if k in ("A", "delta", "delta_bias", "delta_softplus") else np.abs(a)
            for k, a in p.items()
        }
    )
    for g, e, unsigned in zip(grads, expected, same_signs, strict=True):
        assert g.shape == e.shape and g.dtype == dtype
        scale = np.abs([e, unsigned]).max(
            initial=0
        )  # a few terms may happen to cancel: then relative to what they would be
        assert np.abs(g - e).max(initial=0) <= TOLERANCE[dtype] * scale


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 70), max_size=8),
    st.integers(1, 40),
    st.integers(1, 9),
    st.sampled_from(["constant", "time", 1]),
)
def test_any_packing(lengths, channels, states, B):
    bounds = [0, *np.cumsum(lengths, dtype=int)]
    p = vjp_problem(1, channels, states, bounds[-1], B=B, C="time", bounds=bounds)
    assert_within(
        1e-11, fd.selective_scan_vjp(**p), exact(p)
    )  # relative to a largest magnitude that may happen to be small


def test_nothing_to_do():
    p = vjp_problem(2, 5, 3, 0)
    grads = fd.selective_scan_vjp(**p)
    assert same_bits(grads.dinitial_state, p["dlast_state"])
    assert not any(getattr(grads, name).any() for name in ("dA", "dD", "ddelta_bias"))
    constant = vjp_problem(0, 5, 3, 7, B="constant", C="constant")
    grads = fd.selective_scan_vjp(**constant)
    assert grads.dB.shape == (5, 3) and not any(
        getattr(grads, name).any() for name in ("dA", "dB", "dC", "dD", "ddelta_bias")
    )
    p = vjp_problem(1, 5, 3, 0, bounds=[0])
    assert fd.selective_scan_vjp(**p).dinitial_state.shape == (0, 5, 3)


# ---- how the gradients hang together ----------------------------------------------------------


def part(p, piece, **changes):
    """The steps `piece` of a problem."""
    along = [k for k in ALONG_L if k not in ("B", "C") or p[k].ndim > 2]
    return {**p, **{k: p[k][..., piece] for k in along}, **changes}


@pytest.mark.parametrize("cut", [1, 64, 100, 149])
def test_gradients_pass_from_piece_to_piece(cut):
    p = vjp_problem(2, 19, 5, 150, B="time", C="constant")
    first, second = part(p, np.s_[:cut]), part(p, np.s_[cut:])
    forward = {k: a for k, a in first.items() if k not in ("dout", "dlast_state")}
    _, between = fd.selective_scan(**forward, return_last_state=True)
    later = fd.selective_scan_vjp(**{**second, "initial_state": between})
    earlier = fd.selective_scan_vjp(**{**first, "dlast_state": later.dinitial_state})

    def joined(name):
        return np.concatenate((getattr(earlier, name), getattr(later, name)), -1)

    def summed(name):
        return getattr(earlier, name) + getattr(later, name)

    pieces = reference.SelectiveScanGrads(
        *map(joined, ("du", "ddelta")),
        summed("dA"),
        joined("dB"),
        *map(summed, ("dC", "dD")),
        joined("dz"),
        summed("ddelta_bias"),
        earlier.dinitial_state,
    )
    assert_within(1e-13, fd.selective_scan_vjp(**p), pieces)


def test_gradients_are_linear_in_what_comes_back():
    p, q = (vjp_problem(2, 19, 5, 150, seed=seed) for seed in (0, 1))
    mixed = {**p, **{k: 2.5 * p[k] - 0.75 * q[k] for k in ("dout", "dlast_state")}}
    a, b = (
        fd.selective_scan_vjp(**p),
        fd.selective_scan_vjp(**{**p, "dout": q["dout"], "dlast_state": q["dlast_state"]}),
    )
    sums = reference.SelectiveScanGrads(*(2.5 * x - 0.75 * y for x, y in zip(a, b, strict=True)))
    assert_within(1e-13, fd.selective_scan_vjp(**mixed), sums)
    nothing = fd.selective_scan_vjp(**{**p, "dout": 0 * p["dout"], "dlast_state": None})
    assert not any(np.any(g) for g in nothing)


@pytest.mark.parametrize("unbatched", [False, True])
def test_packed_sequences_are_each_by_itself(unbatched):
    bounds = [0, 0, 1, 130, 130, 200]
    p = vjp_problem(1, 20, 4, 200, bounds=bounds, B=1, C="constant", unbatched=unbatched)
    packed = fd.selective_scan_vjp(**p)
    shared = [np.zeros_like(a) for a in (packed.dA, packed.dC, packed.dD, packed.ddelta_bias)]
    for k, (start, stop) in enumerate(itertools.pairwise(bounds)):
        states = {
            name: p[name][k] if unbatched else p[name][k : k + 1]
            for name in ("initial_state", "dlast_state")
        }
        alone = fd.selective_scan_vjp(**part(p, np.s_[start:stop], **states, cu_seqlens=None))
        for total, d in zip(shared, (alone.dA, alone.dC, alone.dD, alone.ddelta_bias), strict=True):
            total += d
        for name in "du", "ddelta", "dB", "dz":
            assert error(getattr(packed, name)[..., start:stop], getattr(alone, name)) < 1e-13, name
        assert error(packed.dinitial_state[k], alone.dinitial_state.reshape(20, 4)) < 1e-13
    for total, name in zip(shared, ("dA", "dC", "dD", "ddelta_bias"), strict=True):
        assert error(getattr(packed, name), total) < 1e-13, name


# ---- the same bits, however it is asked -------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("B", ["constant", "time", 2])
@pytest.mark.parametrize("bounds", [None, [0, 3, 3, 70]])
def test_unbatched_equals_batch_of_one(B, dtype, bounds):
    of_one = fd.selective_scan_vjp(**vjp_problem(1, 20, 3, 70, dtype, B=B, C=2, bounds=bounds))
    p = vjp_problem(1, 20, 3, 70, dtype, B=B, C=2, bounds=bounds, unbatched=True)
    for argument, alone, d in zip(DIFFERENTIABLE, fd.selective_scan_vjp(**p), of_one, strict=True):
        assert alone.shape == p[argument].shape
        assert same_bits(alone, d.reshape(alone.shape)), argument


@pytest.mark.parametrize("name", ["dout", *DIFFERENTIABLE, "dlast_state"])
@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("B", ["time", "constant", 3])
def test_layout_changes_no_bit(name, dtype, B):
    p = vjp_problem(2, 21, 6, 150, dtype, B=B, C=B)
    grads = fd.selective_scan_vjp(**p)
    before = snapshot(*arrays_of(p).values())
    for label, array in layouts(p[name]):
        assert identical(grads, fd.selective_scan_vjp(**{**p, name: array})), label
    assert snapshot(*arrays_of(p).values()) == before


def test_channels_last_everywhere_changes_no_bit():
    p = vjp_problem(2, 40, 16, 200, np.float32)
    last = {
        k: np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2) if np.ndim(a) > 1 else a
        for k, a in p.items()
    }
    assert identical(fd.selective_scan_vjp(**p), fd.selective_scan_vjp(**last))


@pytest.mark.parametrize("dtype", REALS)
def test_broadcast_arguments_change_no_bit(dtype):
    p = vjp_problem(2, 21, 6, 150, dtype, B=1, C=3)
    shown = {k: np.broadcast_to(a[..., :1], a.shape) for k, a in arrays_of(p).items()}
    shown["u"] = np.broadcast_to(dtype(1.5), p["u"].shape)
    shown["C"] = np.broadcast_to(p["C"][:1, :1], p["C"].shape)
    copied = {k: a.copy() for k, a in shown.items()}
    assert identical(*(fd.selective_scan_vjp(**a, delta_softplus=True) for a in (shown, copied)))


@pytest.mark.parametrize(
    "case",
    [  # each above a quarter of a millisecond of work, from where on threads share it
        dict(batch=24, channels=24, states=8, steps=200),
        dict(batch=1, channels=530, states=8, steps=200),
        dict(batch=2, channels=150, states=16, steps=300, B="constant", C=3),
        dict(batch=1, channels=16, states=16, steps=4000),
        dict(batch=1, channels=80, states=8, steps=2000, bounds=[0, 0, *range(5, 1000, 31), 2000]),
        dict(
            batch=1,
            channels=80,
            states=8,
            steps=2000,
            bounds=[0, 1000, 2000],
            B="constant",
            C="constant",
        ),
    ],
    ids=["items", "channels", "constant and grouped", "steps", "many sequences", "two sequences"],
)
@pytest.mark.parametrize("dtype", REALS)
def test_thread_count_changes_no_bit(case, dtype):
    p = vjp_problem(**case, dtype=dtype)
    first, *others = by_threads(lambda: fd.selective_scan_vjp(**p), 1, 2, 3, 7, 7, 1)
    assert all(identical(first, other) for other in others)


LEVEL_SCRIPT = """
import hashlib, pickle
import numpy as np
import fastderiv as fd
for p in pickle.load(open({path!r}, "rb")):
    for d in fd.selective_scan_vjp(**p):
        print(hashlib.sha256(d.tobytes()).hexdigest(), float(np.abs(d).sum()))
"""


def test_cpu_levels_agree(tmp_path):
    kinds = [
        dict(batch=2, B="time", C=37),
        dict(batch=2, B="constant", C="time"),
        dict(batch=1, B=1, C=1, bounds=[0, 0, 70, 300]),
    ]
    problems = [
        vjp_problem(**kind, channels=37, states=9, steps=300, dtype=dtype)
        for kind in kinds
        for dtype in REALS
    ]
    for p in problems:
        p["delta"][0, 5] *= 40
    (tmp_path / "problems").write_bytes(pickle.dumps(problems))
    assert_levels_agree(LEVEL_SCRIPT.format(path=str(tmp_path / "problems")))


# ---- extremes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["dout", *DIFFERENTIABLE, "dlast_state"])
def test_nonfinite_stays_in_its_channel_and_item(dtype, bad, name):
    p = vjp_problem(2, 20, 4, 140, dtype, B=4, C=4)
    clean = fd.selective_scan_vjp(**p)
    q = {**p, name: p[name].copy()}
    channels, items = slice(7, 8), slice(1, 2)  # channel 7 belongs to group 1 of four
    if name in ("A", "D", "delta_bias"):
        q[name][7], items = bad, slice(None)
    elif name in ("B", "C"):
        q[name][1, 1, 2, 130], channels = bad, slice(5, 10)
    else:
        q[name][(1, 7, 130) if name in ALONG_L else (1, 7, 2)] = bad
    grads, expected = fd.selective_scan_vjp(**q), exact(q)
    per_channel, per_group = np.ones((2, 20), bool), np.ones((2, 4), bool)
    per_channel[items, channels] = per_group[items, 1] = False
    for field, d, d0, e in zip(clean._fields, grads, clean, expected, strict=True):
        if field in ("dB", "dC"):
            assert same_bits(d[per_group], d0[per_group]), field
        elif field in ("dA", "dD", "ddelta_bias"):
            assert same_bits(np.delete(d, channels, 0), np.delete(d0, channels, 0)), field
        else:
            assert same_bits(d[per_channel], d0[per_channel]), field
        if np.isnan(bad):
            assert np.array_equal(np.isnan(d), np.isnan(e)), field


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("bad, total", [(np.inf, np.nan), ("most", np.inf)])
def test_nonfinite_sums_over_the_batch_are_silent(dtype, bad, total):
    p = vjp_problem(
        2, 64, 4, 520, dtype
    )  # enough for sums of several ranges, which are then added up
    p["u"][:] = 1
    p["z"] = None
    p["dout"][0, 3, 5] = np.finfo(dtype).max if bad == "most" else bad
    p["dout"][1, 3, 5] = np.finfo(dtype).max if bad == "most" else -bad
    dD = fd.selective_scan_vjp(**p).dD
    np.testing.assert_equal(dD[3], total)
    assert np.isfinite(np.delete(dD, 3)).all()


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("name", ["dout", "u", "delta", "z", "B", "C"])
@pytest.mark.parametrize("sequence", [1, 3])
def test_nonfinite_stays_in_its_sequence(dtype, name, sequence):
    p = vjp_problem(1, 20, 4, 140, dtype, bounds=[0, 0, 50, 50, 140])
    clean = fd.selective_scan_vjp(**p)
    q = {**p, name: p[name].copy()}
    q[name][0, 2, 20 if sequence == 1 else 120] = np.nan
    grads = fd.selective_scan_vjp(**q)
    other = np.s_[..., 50:] if sequence == 1 else np.s_[..., :50]
    for field in "du", "ddelta", "dB", "dC", "dz":
        assert same_bits(getattr(grads, field)[other], getattr(clean, field)[other]), field
    assert same_bits(
        np.delete(grads.dinitial_state, sequence, 0), np.delete(clean.dinitial_state, sequence, 0)
    )


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("B", ["constant", "time"])
@pytest.mark.parametrize("faster", [30, 1e5])
def test_transitions_that_forget_everything(dtype, B, faster):
    p = vjp_problem(2, 19, 4, 140, dtype, B=B)
    p["A"] *= dtype(faster)
    assert_equal_down_to_denormals(fd.selective_scan_vjp(**p), exact(p), dtype)


@pytest.mark.parametrize("dtype", REALS)
def test_softplus_far_into_both_tails(dtype):
    p = vjp_problem(1, 19, 4, 61, dtype)
    p["delta"] = np.tile(np.linspace(-700, 700, 61, dtype=dtype), (1, 19, 1))
    assert_within(TOLERANCE[dtype], fd.selective_scan_vjp(**p), exact(p))


@pytest.mark.parametrize("dtype", REALS)
def test_gate_far_into_both_tails(dtype):
    p = vjp_problem(1, 19, 4, 61, dtype)
    p["z"] = np.tile(np.linspace(-700, 700, 61, dtype=dtype), (1, 19, 1))
    assert_within(TOLERANCE[dtype], fd.selective_scan_vjp(**p), exact(p))
    p["z"] = np.full_like(
        p["u"], -10
    )  # both the gate and its slope are small: relative to their own magnitude
    assert_within(TOLERANCE[dtype], fd.selective_scan_vjp(**p), exact(p))


@pytest.mark.parametrize("dtype", REALS)
def test_steps_of_no_length(dtype):
    p = vjp_problem(1, 19, 4, 140, dtype)
    p["delta"], p["delta_softplus"], p["delta_bias"] = np.zeros_like(p["u"]), False, None
    grads = fd.selective_scan_vjp(**p)
    assert not grads.dA.any() and not grads.dB.any()
    assert_within(TOLERANCE[dtype], grads, exact(p))
    p["delta"][..., ::3] = 0.3
    assert_within(TOLERANCE[dtype], fd.selective_scan_vjp(**p), exact(p))


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("softplus", [False, True])
def test_infinite_step(dtype, softplus):
    p = vjp_problem(2, 19, 4, 140, dtype, B="constant", C="constant")
    p["delta"] = np.abs(p["delta"])
    p["delta_bias"], p["delta_softplus"] = None, softplus
    p["delta"][1, 3, 100] = np.inf
    grads, expected = fd.selective_scan_vjp(**p), exact(p)
    assert np.isfinite(
        expected.ddelta[1, 3, :101]
    ).all()  # the step's own gradient too, and what came before it
    for name, g, e in zip(grads._fields, grads, expected, strict=True):
        if e is not None:
            sound = np.isfinite(e)
            assert error(g[sound], e[sound]) < TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", REALS)
def test_growing_transitions_overflow_where_they_should(dtype):
    p = vjp_problem(1, 5, 2, 200, dtype, B="constant", C="constant")
    p["A"] = np.array([[2.0, 2.0], [-1, -1], [0, 0], [-1, 0], [-1e-3, -2]], dtype)
    p["delta"], p["delta_bias"] = np.full_like(p["u"], 5), None
    grads, expected = fd.selective_scan_vjp(**p), exact(p)
    assert not np.isfinite(grads.du[0, 0, 0]) and not np.isfinite(grads.dA[0]).any()
    for name, axis in dict(du=1, ddelta=1, dz=1, dinitial_state=1, dA=0, dB=0, dC=0, dD=0).items():
        g, e = (np.delete(getattr(grads_, name), 0, axis) for grads_ in (grads, expected))
        assert np.isfinite(g).all() and error(g, e) < TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", REALS)
def test_moderate_growth_equals_reference(dtype):
    p = vjp_problem(1, 19, 4, 60, dtype)
    p["A"] = np.abs(p["A"]) / 10
    assert_within(TOLERANCE[dtype], fd.selective_scan_vjp(**p), exact(p))


@pytest.mark.parametrize("dtype", REALS)
def test_denormals_are_kept_or_become_zero(dtype):
    tiny = np.finfo(dtype).tiny
    p = vjp_problem(1, 16, 4, 50, dtype)
    p["dout"] *= tiny
    p["dlast_state"] *= tiny
    assert_equal_down_to_denormals(fd.selective_scan_vjp(**p), exact(p), dtype)


def constant_rate(rate, delta, shape, dtype):
    """Every state decays by exp(delta · rate) a step."""
    p = vjp_problem(*shape, dtype)
    p["A"] = np.full_like(p["A"], rate)
    p["delta"], p["delta_softplus"], p["delta_bias"] = np.full_like(p["u"], delta), False, None
    return p


@pytest.mark.parametrize("dtype", REALS)
@pytest.mark.parametrize("rate", [-1e-4, -1e-3, -1e-2])
def test_long_slow_decay(dtype, rate):
    p = constant_rate(rate, 0.1, (1, 16, 4, 4096), dtype)
    assert_within(TOLERANCE[dtype], fd.selective_scan_vjp(**p), exact(p))


@pytest.mark.parametrize("dtype", REALS)
def test_fast_decay_is_accurate_in_small_gradients_too(dtype):
    p = constant_rate(-20, 1.0, (1, 16, 4, 200), dtype)
    p["dlast_state"] = None
    grads, expected = fd.selective_scan_vjp(**p), exact(p)
    assert np.abs(expected.dA).max() < 1e-5
    assert_within(TOLERANCE[dtype], grads, expected)


def test_one_long_channel():
    p = vjp_problem(1, 1, 16, 65536, np.float32)
    assert_within(2e-5, fd.selective_scan_vjp(**p), exact(p))


# ---- arguments and results --------------------------------------------------------------------


def test_dtypes_are_promoted_together():
    p = vjp_problem(1, 4, 2, 5, np.float32)

    def dtypes(**change):
        return {g.dtype for g in fd.selective_scan_vjp(**{**p, **change})}

    assert dtypes() == {np.dtype(np.float32)}
    for name, array in arrays_of(p).items():
        assert dtypes(**{name: array.astype(np.float64)}) == {np.dtype(np.float64)}, name
    assert (
        dtypes(D=np.arange(4)) == dtypes(dout=np.ones((1, 4, 5), np.int8)) == {np.dtype(np.float64)}
    )


def test_lists_and_integers_count_as_float64():
    p = vjp_problem(1, 4, 2, 5)
    grads = fd.selective_scan_vjp(**p)
    assert identical(
        grads,
        fd.selective_scan_vjp(
            **{k: a.tolist() if isinstance(a, np.ndarray) else a for k, a in p.items()}
        ),
    )
    whole = {
        k: np.round(3 * a).astype(np.int16) if isinstance(a, np.ndarray) else a
        for k, a in p.items()
    }
    floats = {k: a.astype(np.float64) if isinstance(a, np.ndarray) else a for k, a in whole.items()}
    assert identical(fd.selective_scan_vjp(**whole), fd.selective_scan_vjp(**floats))


def test_arguments_may_be_given_by_position():
    p = vjp_problem(2, 4, 2, 5)
    positional = [p[k] for k in ("dout", *DIFFERENTIABLE[:-1], "delta_softplus")]
    states = {k: p[k] for k in ("initial_state", "dlast_state")}
    assert identical(fd.selective_scan_vjp(*positional, **states), fd.selective_scan_vjp(**p))


@pytest.mark.parametrize("steps", [0, 1, 50])
def test_results_are_new_and_writable(steps):
    p = vjp_problem(2, 9, 3, steps)
    p["dlast_state"] = p["initial_state"]  # the same array twice
    before = snapshot(*arrays_of(p).values())
    grads = fd.selective_scan_vjp(**p)
    assert not any(np.may_share_memory(g, a) for g in grads for a in arrays_of(p).values())
    assert not any(np.may_share_memory(g, h) for i, g in enumerate(grads) for h in grads[:i])
    for g in grads:
        g[...] = 7
    assert snapshot(*arrays_of(p).values()) == before


def test_grads_pickle():
    grads = fd.selective_scan_vjp(**{**vjp_problem(1, 4, 2, 5), "D": None})
    again = pickle.loads(pickle.dumps(grads))
    assert (
        type(again) is type(grads) is fd.SelectiveScanGrads
        and identical(again, grads)
        and again.dD is None
    )
    assert grads._fields == tuple(f"d{name}" for name in DIFFERENTIABLE)


BAD = [
    (
        dict(dout=np.zeros((2, 6, 9))),
        ValueError,
        r"dout has shape \(2, 6, 9\); expected .+ = \(2, 6, 8\)",
    ),
    (
        dict(dout=np.zeros((6, 8))),
        ValueError,
        r"dout has shape \(6, 8\); expected .+ = \(2, 6, 8\)",
    ),
    (
        dict(dout=np.zeros((1, 6, 8))),
        ValueError,
        r"dout has shape \(1, 6, 8\); expected .+ = \(2, 6, 8\)",
    ),
    (dict(dout=np.float64(1)), ValueError, r"dout has shape \(\); expected"),
    (
        dict(dlast_state=np.zeros((6, 3))),
        ValueError,
        r"dlast_state has shape \(6, 3\); expected .+ = \(2, 6, 3\)",
    ),
    (
        dict(dlast_state=np.zeros((2, 6, 1))),
        ValueError,
        r"dlast_state has shape \(2, 6, 1\); expected .+ = \(2, 6, 3\)",
    ),
    (
        dict(initial_state=np.zeros((6, 3))),
        ValueError,
        r"initial_state has shape \(6, 3\); expected \(batch, D, N\) = \(2, 6, 3\)",
    ),
    (dict(u=np.zeros(5)), ValueError, r"u has shape \(5,\); expected \(batch, D, L\) or \(D, L\)"),
    (
        dict(delta=np.zeros((2, 6, 9))),
        ValueError,
        r"delta has shape \(2, 6, 9\); expected \(batch, D, L\) = \(2, 6, 8\)",
    ),
    (
        dict(z=np.zeros((2, 1, 8))),
        ValueError,
        r"z has shape \(2, 1, 8\); expected \(batch, D, L\) = \(2, 6, 8\)",
    ),
    (dict(A=np.zeros((5, 3))), ValueError, r"A has shape \(5, 3\); expected \(D, N\) = \(6, N\)"),
    (
        dict(B=np.zeros((2, 4, 8))),
        ValueError,
        r"B has shape \(2, 4, 8\); expected \(batch, N, L\) = \(2, 3, 8\)",
    ),
    (dict(C=np.zeros((2, 4, 3, 8))), ValueError, "C has shape .* with G dividing D = 6"),
    (dict(D=np.zeros(1)), ValueError, r"D has shape \(1,\); expected \(D,\) = \(6,\)"),
    (
        dict(delta_bias=np.zeros((6, 1))),
        ValueError,
        r"delta_bias has shape \(6, 1\); expected \(D,\) = \(6,\)",
    ),
    (
        dict(dout=np.zeros((2, 6, 8), bool)),
        TypeError,
        "dout has dtype bool; expected float32, float64 or integers",
    ),
    (dict(dout=None), TypeError, "dout has dtype object"),
    (dict(u=None), TypeError, "u has dtype object"),
    (dict(dlast_state=np.zeros((2, 6, 3), complex)), TypeError, "dlast_state has dtype complex128"),
    (dict(dlast_state=np.zeros((2, 6, 3), np.float16)), TypeError, "dlast_state has dtype float16"),
    (dict(dout=[[1], [2, 3]]), ValueError, "dout is not an array of numbers"),
    (
        dict(cu_seqlens=[0, 8]),
        ValueError,
        r"cu_seqlens packs sequences along L and needs batch 1; u has shape \(2, 6, 8\)",
    ),
]


@pytest.mark.parametrize("change, kind, message", BAD)
def test_errors_name_the_argument(change, kind, message):
    with pytest.raises(kind, match=f"^{message}"):
        fd.selective_scan_vjp(**{**vjp_problem(2, 6, 3, 8), **change})


def test_errors_of_packed_and_unbatched_calls():
    p = vjp_problem(1, 6, 3, 8, bounds=[0, 3, 8])
    with pytest.raises(
        ValueError, match=r"^dlast_state has shape \(1, 6, 3\); expected .+ = \(2, 6, 3\)"
    ):
        fd.selective_scan_vjp(**{**p, "dlast_state": p["dlast_state"][:1]})
    with pytest.raises(ValueError, match=r"^cu_seqlens is"):
        fd.selective_scan_vjp(**{**p, "cu_seqlens": [0, 9, 8]})
    with pytest.raises(TypeError, match=r"^cu_seqlens has dtype float64"):
        fd.selective_scan_vjp(**{**p, "cu_seqlens": [0.0, 3.0, 8.0]})
    p = vjp_problem(1, 6, 3, 8, unbatched=True, B=1, C=1)
    with pytest.raises(ValueError, match=r"^dout has shape \(1, 6, 8\); expected .+ = \(6, 8\)"):
        fd.selective_scan_vjp(**{**p, "dout": p["dout"][None]})
    with pytest.raises(
        ValueError, match=r"^dlast_state has shape \(1, 6, 3\); expected .+ = \(6, 3\)"
    ):
        fd.selective_scan_vjp(**{**p, "dlast_state": p["dlast_state"][None]})


# ---- memory, signals --------------------------------------------------------------------------


MEMORY_SCRIPT = """
import resource
import numpy as np
import fastderiv as fd
fd.set_num_threads(2)
rng = np.random.default_rng(0)
dout, u, delta, z = (rng.random((1, 512, 4096), np.float32) for _ in range(4))
# strided along time: gathered block by block
B, C = (rng.random((1, 4096, 16), np.float32).swapaxes(1, 2) for _ in range(2))
A = -rng.random((512, 16), np.float32)

def gradients(steps):
    here = [a[..., :steps] for a in (dout, u, delta, B, C, z)]
    return fd.selective_scan_vjp(*here[:3], A, *here[3:5], z=here[5], delta_softplus=True)

gradients(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
grads = gradients(4096)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
results = sum(g.nbytes for g in grads if g is not None)
print((grown - results) / (results + sum(a.nbytes for a in (dout, u, delta, z, A, B, C))))
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux"
)
def test_memory_is_inputs_outputs_and_checkpoints():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert float(done.stdout) < 0.15  # a (B, D, L, N) array would be 2.3


def test_sums_of_many_short_sequences_are_few():
    p = vjp_problem(
        1, 1024, 16, 512, np.float32, bounds=range(0, 513, 8), B="constant", C="constant"
    )
    p["initial_state"] = p["dlast_state"] = None
    tracemalloc.start()
    try:
        grads = fd.selective_scan_vjp(**p)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    results = sum(g.nbytes for g in grads if g is not None)
    assert peak - results < 0.15 * (
        results + sum(a.nbytes for a in p.values() if isinstance(a, np.ndarray))
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_is_answered_at_once(threads):
    long = np.broadcast_to(np.float32(1), (512, 8192))
    coefficient = np.broadcast_to(
        np.float32(1), (1, 256, 8192)
    )  # a second of work at the very least
    A, before = -np.ones((512, 256), np.float32), fd.get_num_threads()
    fd.set_num_threads(threads)
    try:
        assert (
            seconds_until_answered(
                lambda: fd.selective_scan_vjp(long, long, long, A, coefficient, coefficient),
                delay=0.1,
            )
            < ALLOWED
        )
    finally:
        fd.set_num_threads(before)


# ---- extended precision -----------------------------------------------------------------------


def longdouble_vjp(p):
    """The adjoint in extended precision, some channels at a time; B and C vary in time, z is given,
    dlast_state is not.
    """
    whole = {k: a.astype(np.longdouble) for k, a in arrays_of(p).items()}
    parts = [
        _longdouble_channels(whole, np.s_[first : first + 16])
        for first in range(0, p["u"].shape[1], 16)
    ]
    columns = list(zip(*parts, strict=True))
    axes = dict(du=1, ddelta=1, dA=0, dD=0, dz=1, ddelta_bias=0, dinitial_state=1)
    names = reference.SelectiveScanGrads._fields
    return reference.SelectiveScanGrads(
        *(
            np.concatenate(c, axes[name]) if name in axes else sum(c)
            for name, c in zip(names, columns, strict=True)
        )
    )


def _longdouble_channels(whole, some):
    dout, u, delta, z, h0 = (
        whole[k][:, some] for k in ("dout", "u", "delta", "z", "initial_state")
    )
    A, D, bias = (whole[k][some] for k in ("A", "D", "delta_bias"))
    B, C = (np.moveaxis(whole[k], -1, 0)[:, :, None] for k in ("B", "C"))  # (L, batch, 1, N)
    steps = u.shape[-1]
    step = np.logaddexp(0, delta + bias[:, None])
    decay = np.exp(np.moveaxis(step, -1, 0)[..., None] * A)
    h = np.empty((steps + 1, *h0.shape), np.longdouble)
    h[0] = h0
    for t in range(steps):
        h[t + 1] = decay[t] * h[t] + (step[..., t] * u[..., t])[..., None] * B[t]
    y = np.moveaxis((h[1:] * C).sum(-1), 0, -1) + D[:, None] * u
    s = 1 / (1 + np.exp(-z))
    dy, dz = dout * z * s, dout * y * s * (1 + z * (1 - s))
    dh, at = np.empty_like(decay), np.moveaxis(dy, -1, 0)[..., None]
    carried = np.zeros_like(h0)
    for t in reversed(range(steps)):
        dh[t] = C[t] * at[t] + carried
        carried = decay[t] * dh[t]
    dt, x = (np.moveaxis(a, -1, 0)[..., None] for a in (step, u))
    dC, dB, fed = (at * h[1:]).sum(2), (dh * (dt * x)).sum(2), (dh * B).sum(-1)
    decay *= dh
    decay *= h[:-1]  # now the adjoint of Ā times Ā
    ddelta = np.moveaxis((decay * A).sum(-1) + fed * x[..., 0], 0, -1) / (
        1 + np.exp(-delta - bias[:, None])
    )
    dA = (decay * dt).sum((0, 1))
    du = D[:, None] * dy + np.moveaxis(fed * dt[..., 0], 0, -1)
    back = [np.moveaxis(d, 0, -1) for d in (dB, dC)]
    return du, ddelta, dA, *back, (dy * u).sum((0, 2)), dz, ddelta.sum((0, 2)), carried


def benchmarked(shape):
    """Mamba's own A and step sizes; every value a float32, so that one oracle serves both
    precisions.
    """
    p = vjp_problem(*shape, np.float32)
    p["A"] = -np.tile(np.arange(1, 17, dtype=np.float32), (shape[1], 1))
    p["delta_bias"] = np.log(np.expm1(np.geomspace(1e-3, 1e-1, shape[1]))).astype(np.float32)
    p["dlast_state"] = None
    return p


def test_longdouble_oracle_equals_reference():
    p = benchmarked((2, 40, 16, 50))
    assert_within(1e-13, longdouble_vjp(p), exact(p))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1536, 16, 1024), (8, 256, 16, 512), (1, 16, 16, 65536)])
def test_accuracy_at_the_benchmarked_shapes(shape):
    p = benchmarked(shape)
    expected = longdouble_vjp(p)
    assert_within(2e-5, fd.selective_scan_vjp(**p), expected)
    doubles = {k: a.astype(np.float64) for k, a in arrays_of(p).items()}
    assert_within(1e-12, fd.selective_scan_vjp(**{**p, **doubles}), expected)


@pytest.mark.parametrize("name", ["B", "C"])
@pytest.mark.parametrize("channels", [1, 4, 17, 33])
def test_an_infinite_coefficient_meets_no_channel_that_is_not_there(name, channels):
    # vectors are filled up with zeros, and 0·inf is NaN
    one = np.ones((channels, 4))
    p = dict(u=one, delta=one, A=-one[:, :1], B=np.ones((1, 1, 4)), C=np.ones((1, 1, 4)))
    p[name][0, 0, 1] = np.inf
    ours = fd.selective_scan_vjp(one, **p)
    with np.errstate(invalid="ignore"):
        theirs = reference.selective_scan_vjp(one, **p)
    for field in "dB", "dC":
        np.testing.assert_allclose(
            getattr(ours, field), getattr(theirs, field), rtol=1e-13, err_msg=field
        )


@pytest.mark.parametrize("dout", [[0.0, 0, 0, np.inf], [0, -np.inf, 0, 1], [np.inf, 0, 0, 0]])
@pytest.mark.parametrize("dtype", REALS)
def test_infinite_adjoints_stay_infinite_on_their_way_back(dout, dtype):
    one = np.ones((1, 4), dtype)
    p = dict(u=one, delta=one, A=-one[:, :1] / 10, B=one[None], C=one[None])
    ours = fd.selective_scan_vjp(np.array([dout], dtype), **p)
    with np.errstate(invalid="ignore"):
        theirs = reference.selective_scan_vjp([dout], **p)
    for field in "du", "dB", "dC", "dA":
        np.testing.assert_allclose(
            getattr(ours, field), getattr(theirs, field), rtol=1e-5, err_msg=field
        )
