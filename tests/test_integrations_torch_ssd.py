"""fastderiv.integrations.torch: Mamba-2's scan and its single step, on tensors."""

import importlib.util
import inspect
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastderiv as fd

torch = pytest.importorskip("torch")
from fastderiv.integrations.torch import selective_state_update, ssd_scan
from fastderiv.ssm import SSDCall

# PyTorch about itself, on first use of its compiler and of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

BATCH, L, H, P, G, N = 2, 6, 4, 2, 2, 3
SHAPES = {
    "x": (BATCH, L, H, P),
    "dt": (BATCH, L, H),
    "A": (H,),
    "B": (BATCH, L, G, N),
    "C": (BATCH, L, G, N),
    "D": (H,),
    "z": (BATCH, L, H, P),
    "dt_bias": (H,),
    "initial_states": (BATCH, H, P, N),
}
OPTIONAL = ("D", "z", "dt_bias", "initial_states")
LIMITS = (0.4, 1.2)
SEQ_IDX = torch.tensor([[0, 0, 1, 1, 1, 4], [7, 7, 7, 0, 0, 0]])


def problem(dtype=torch.float64, without=(), seed=0, wide=False, **shapes):
    """Every tensor of a scan that requires its gradient, as keyword arguments."""
    generator = torch.Generator().manual_seed(seed)
    shapes = SHAPES | ({"D": (H, P)} if wide else {}) | shapes
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    tensors["A"] = -tensors["A"].abs()
    return {
        name: t.to(dtype).requires_grad_() for name, t in tensors.items() if name not in without
    }


def packed_problem(sequences, **options):
    """As `problem`, of one row with initial states for so many sequences."""
    one = {name: (1, *s[1:]) for name, s in SHAPES.items() if s[0] == BATCH}
    return problem(**one | {"initial_states": (sequences, H, P, N)}, **options)


def detached(p):
    return {name: t.detach() for name, t in p.items()}


def arrays(p):
    """As arguments of `fastderiv.ssd_scan`."""
    p = {name: t.numpy(force=True) for name, t in p.items()}
    if "initial_states" in p:
        p["initial_state"] = p.pop("initial_states")
    return p


def function_of(p, **options):
    """The scan as a function of tensors in the order of `p`."""
    return lambda *values: ssd_scan(**dict(zip(p, values, strict=True)), **options)


def loop(
    x, dt, A, B, C, D=None, z=None, dt_bias=None, initial_states=None,
    *, dt_softplus=False, dt_limit=(0.0, math.inf),
):  # fmt: skip
    """The recurrence in PyTorch's own operations: results and last states."""
    dt = dt if dt_bias is None else dt + dt_bias
    dt = torch.nn.functional.softplus(dt) if dt_softplus else dt
    dt = dt.clamp(*dt_limit)
    B, C = (t.repeat_interleave(x.shape[2] // t.shape[2], 2) for t in (B, C))
    h = initial_states
    h = x.new_zeros(len(x), *x.shape[2:], B.shape[-1]) if h is None else h
    ys = []
    for i in range(x.shape[1]):
        decay = torch.exp(dt[:, i] * A)[..., None, None]
        h = decay * h + torch.einsum("bhp,bhn->bhpn", dt[:, i, :, None] * x[:, i], B[:, i])
        ys.append(torch.einsum("bhpn,bhn->bhp", h, C[:, i]))
    y = torch.stack(ys, 1)
    y = y if D is None else y + (D if D.ndim == 2 else D[:, None]) * x
    return y if z is None else y * z * torch.sigmoid(z), h


def assert_close(ours, theirs, tolerance=1e-11):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert a.numel() == 0 or (a - b).abs().max() <= tolerance * b.abs().max()


# ---- what is computed ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("without", [(), OPTIONAL])
@pytest.mark.parametrize("wide", [False, True])
def test_scan_is_fastderivs_bit_for_bit(dtype, without, wide):
    p = problem(dtype, without=without, wide=wide)
    options = {"dt_softplus": True, "dt_limit": LIMITS}
    out, last = ssd_scan(**p, **options, return_final_states=True)
    expected = fd.ssd_scan(**arrays(p), **options, return_last_state=True)
    for ours, theirs in zip((out, last), expected, strict=True):
        assert ours.dtype == dtype and ours.numpy(force=True).tobytes() == theirs.tobytes()
    for size in 64, 256:
        assert torch.equal(out, ssd_scan(**p, chunk_size=size, **options))


def test_arguments_are_those_of_mamba_chunk_scan_combined_in_order():
    names = (
        "x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, "
        "dt_softplus, dt_limit, return_final_states, return_varlen_states, state_dtype"
    )
    assert list(inspect.signature(ssd_scan).parameters) == names.split(", ")
    p = detached(problem())
    x, dt, A, B, C, skip, z, bias, before = p.values()
    ours = ssd_scan(x, dt, A, B, C, 4, skip, z, bias, before, SEQ_IDX, None, True, LIMITS, True)
    named = ssd_scan(
        **p, seq_idx=SEQ_IDX, dt_softplus=True, dt_limit=LIMITS, return_final_states=True
    )
    assert all(map(torch.equal, ours, named))


def projected(dtype=torch.float32, batch=BATCH):
    """Arguments as a Mamba-2 layer has them: views of one projection, and per head parameters."""
    widths = {"z": H * P, "x": H * P, "B": G * N, "C": G * N, "dt": H}
    whole = torch.randn(batch, L, sum(widths.values()), dtype=dtype)
    parts = dict(zip(widths, whole.split(list(widths.values()), -1), strict=True))
    p = {name: parts[name].unflatten(-1, (H, P)) for name in ("x", "z")}
    p |= {name: parts[name].unflatten(-1, (G, N)) for name in ("B", "C")}
    p |= {"dt": parts["dt"], "A": -torch.rand(1, dtype=dtype).expand(H)}
    return whole, p


@pytest.mark.parametrize("packed", [False, True])
def test_views_of_one_projection_are_not_copied(packed, monkeypatch):
    whole, p = projected()
    seen, original = [], SSDCall.scan

    def spy(call, *outputs):
        seen.extend([call.x, call.dt, call.B, call.C, call.z])
        assert call.A.ctypes.data == p["A"].data_ptr()
        return original(call, *outputs)

    monkeypatch.setattr(SSDCall, "scan", spy)
    options = {"seq_idx": SEQ_IDX} if packed else {}
    ssd_scan(**p, **options)
    assert len(seen) == 5
    for name, array in zip(("x", "dt", "B", "C", "z"), seen, strict=True):
        assert array.ctypes.data == p[name].data_ptr()
        assert array.strides[1] == 4 * whole.shape[-1]


@pytest.mark.parametrize("options", [{}, {"seq_idx": SEQ_IDX}])
def test_any_strides(options):
    p = detached(problem(torch.float32))
    expected = ssd_scan(**p, **options, return_final_states=True)
    turned = {
        name: t.transpose(1, -1).contiguous().transpose(1, -1) if t.ndim > 2 else t
        for name, t in p.items()
    }
    turned["D"] = p["D"].repeat_interleave(2)[::2]
    assert all(map(torch.equal, ssd_scan(**turned, **options, return_final_states=True), expected))
    p |= {"B": p["B"][:1, :1].expand(SHAPES["B"]), "dt_bias": p["dt_bias"][:1].expand(H)}
    expected = ssd_scan(**{k: t.contiguous() for k, t in p.items()}, **options)
    assert torch.equal(ssd_scan(**p, **options), expected)


CU_SEQLENS = torch.tensor([0, 2, 2, 5, 6])


def test_what_is_returned_and_in_which_order():
    p = detached(packed_problem(1))
    out = ssd_scan(**p, cu_seqlens=CU_SEQLENS)
    assert torch.is_tensor(out) and out.shape == (1, L, H, P)
    final = ssd_scan(**p, cu_seqlens=CU_SEQLENS, return_final_states=True)
    each = ssd_scan(**p, cu_seqlens=CU_SEQLENS, return_varlen_states=True)
    both = ssd_scan(**p, cu_seqlens=CU_SEQLENS, return_final_states=True, return_varlen_states=True)
    assert [len(r) for r in (final, each, both)] == [2, 2, 3]
    assert all(torch.equal(r[0], out) for r in (final, each, both))
    assert torch.equal(final[1], both[1]) and both[1].shape == (1, H, P, N)
    assert torch.equal(each[1], both[2]) and both[2].shape == (4, H, P, N)
    assert torch.equal(both[1][0], both[2][-1])


def separately(p, bounds, row=0, initial=None):
    """Results and last states of calls for the sequences of a row, laid end to end."""
    outs, states = [], []
    for k, (start, stop) in enumerate(itertools.pairwise(bounds)):
        q = {
            name: t[row : row + 1, start:stop] if name in ("x", "dt", "B", "C", "z") else t
            for name, t in p.items()
            if name != "initial_states"
        }
        if initial is not None and initial[k] is not None:
            q["initial_states"] = initial[k][None]
        out, last = loop(**q, dt_softplus=True) if start < stop else (q["x"], q["x"].new_zeros(0))
        if start == stop:
            given = q.get("initial_states")
            last = p["x"].new_zeros(1, H, P, N) if given is None else given * 1
        outs.append(out)
        states.append(last)
    return torch.cat(outs, 1), torch.cat(states)


def both_with_gradients(p, ours, theirs):
    """The results of two functions without arguments, and gradients with respect to `p`."""
    for function in ours, theirs:
        results = function()
        seeds = [torch.cos(torch.arange(float(r.numel()))).view(r.shape).to(r) for r in results]
        gradients = torch.autograd.grad(results, list(p.values()), seeds, allow_unused=True)
        zero = [torch.zeros_like(t) for t in p.values()]
        yield [*results, *(z if g is None else g for g, z in zip(gradients, zero, strict=True))]


@pytest.mark.parametrize("with_states", [False, True])
def test_seq_idx_equals_a_call_for_each_sequence(with_states):
    """Initial states are those of sequence 0, with which the first row begins."""
    p = problem(without=() if with_states else ("initial_states",))
    before = p["initial_states"][0] if with_states else None

    def ours():
        return ssd_scan(**p, seq_idx=SEQ_IDX, dt_softplus=True, return_final_states=True)

    def theirs():
        first, ends = separately(p, [0, 2, 5, 6], 0, [before, None, None])
        second, last = separately(p, [0, 3, 6], 1)
        return torch.cat([first, second]), torch.stack([ends[-1], last[-1]])

    assert_close(*both_with_gradients(p, ours, theirs))


@pytest.mark.parametrize("states", [0, 1, 4])
@pytest.mark.parametrize("also_seq_idx", [False, True])
def test_cu_seqlens_equal_a_call_for_each_sequence(states, also_seq_idx):
    p = packed_problem(states or 1, without=() if states else ("initial_states",))
    seq_idx = torch.tensor([[0, 0, 1, 1, 2, 3]]) if also_seq_idx else None
    bounds = [0, 2, 2, 4, 5, 6] if also_seq_idx else CU_SEQLENS.tolist()
    given = list(p["initial_states"]) if states else []
    initial = given + [None] * (4 - states)
    if also_seq_idx:
        initial.insert(3, None)  # the second half of the third sequence

    def ours():
        return ssd_scan(
            **p, seq_idx=seq_idx, cu_seqlens=CU_SEQLENS, dt_softplus=True,
            return_varlen_states=True,
        )  # fmt: skip

    def theirs():
        out, ends = separately(p, bounds, 0, initial)
        return out, ends[[0, 1, 3, 4]] if also_seq_idx else ends

    assert_close(*both_with_gradients(p, ours, theirs))


def test_one_initial_state_enters_sequence_0_only():
    p = packed_problem(1)
    for first, entered in (0, True), (1, False):
        seq_idx = torch.tensor([[first, first, 2, 2, 2, 2]])
        for boundaries in None, torch.tensor([0, 2, 6]):
            out = ssd_scan(**p, seq_idx=seq_idx, cu_seqlens=boundaries)
            (gradient,) = torch.autograd.grad(out.sum(), p["initial_states"])
            assert bool(gradient.any()) == entered


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.uint8])
def test_numbers_of_sequences_may_be_any_integers(kind):
    p = detached(problem())
    expected = ssd_scan(**p, seq_idx=SEQ_IDX)
    assert torch.equal(ssd_scan(**p, seq_idx=SEQ_IDX.to(kind)), expected)
    strided = SEQ_IDX.T.contiguous().T
    assert torch.equal(ssd_scan(**p, seq_idx=strided), expected)


@pytest.mark.parametrize("shape", [(BATCH, 0), (0, L)])
def test_nothing_to_scan(shape):
    batch, length = shape
    sizes = {name: (batch, length, *s[2:]) for name, s in SHAPES.items() if s[:2] == (BATCH, L)} | {
        "initial_states": (batch, H, P, N)
    }
    p = problem(**sizes)
    for seq_idx in None, torch.zeros(shape, dtype=torch.int64):
        out, last = ssd_scan(**p, seq_idx=seq_idx, return_final_states=True)
        assert out.shape == sizes["x"] and torch.equal(last, p["initial_states"])
        (out.sum() + last.sum()).backward()
    assert torch.equal(p["initial_states"].grad, torch.full((batch, H, P, N), 2.0).double())
    assert not p["A"].grad.any()


@pytest.mark.slow
def test_the_original_kernels_compute_the_same():
    """The real ones, run by Triton's interpreter; in a process whose autotuner is replaced."""
    for module in "mamba_ssm", "triton", "einops":
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    script = Path(__file__).parent / "helpers" / "original_ssd.py"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, script], check=False, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---- dtypes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_tensors_are_computed_in_float32(dtype):
    p = problem(dtype)
    for name in ("A", "D", "dt_bias"):
        p[name] = p[name].detach().float().requires_grad_()
    wide = {name: t.detach().float().requires_grad_() for name, t in p.items()}
    options = {"dt_softplus": True, "seq_idx": SEQ_IDX, "return_final_states": True}
    (out, last), (expected, wide_last) = (ssd_scan(**q, **options) for q in (p, wide))
    assert out.dtype == dtype and torch.equal(out, expected.to(dtype))
    assert last.dtype == torch.float32 and torch.equal(last, wide_last)
    out.sum().backward()
    expected.sum().backward()
    for name, t in p.items():
        assert t.grad.dtype == t.dtype and torch.equal(t.grad, wide[name].grad.to(t.dtype)), name


def test_one_float64_makes_it_float64():
    p = problem(torch.float32) | {"A": problem()["A"]}
    out, last = ssd_scan(**p, return_final_states=True)
    wide, wide_last = ssd_scan(**{k: t.double() for k, t in p.items()}, return_final_states=True)
    assert out.dtype == torch.float32 and torch.equal(out, wide.float())
    assert torch.equal(last, wide_last)


def test_the_dtype_of_returned_states_may_be_asked_for():
    p = problem(torch.float32)
    _, expected = ssd_scan(**p, return_final_states=True)
    out, last = ssd_scan(**p, return_final_states=True, state_dtype=torch.bfloat16)
    assert out.dtype == torch.float32 and torch.equal(last, expected.bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"seq_idx": SEQ_IDX}])
def test_autograd_keeps_16_bit_inputs_and_no_copies_of_them(dtype, options):
    kept = []
    p = problem(dtype)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = ssd_scan(**p, dt_softplus=True, **options)
    states = BATCH * H * P * N  # of one chunk a row
    assert sum(t.numel() for t in kept if t.dtype.itemsize == 4) <= states
    inputs = {t.data_ptr() for t in p.values()}
    assert {t.data_ptr() for t in kept if t.dtype == dtype} == inputs
    out.sum().backward()


def test_autocast_changes_nothing():
    p = detached(problem(torch.float32))

    def results():
        scan = function_of(p, return_final_states=True)
        values = tuple(p.values())
        outputs, tangents = torch.func.jvp(scan, values, values)
        return *scan(*values), *outputs, *tangents

    expected = results()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, results(), expected))


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("limits", [(0.0, math.inf), LIMITS])
def test_gradcheck(wide, softplus, limits):
    p = problem(wide=wide)
    function = function_of(p, dt_softplus=softplus, dt_limit=limits, return_final_states=True)
    assert torch.autograd.gradcheck(function, tuple(p.values()), fast_mode=True)


@pytest.mark.parametrize("name", OPTIONAL)
def test_gradcheck_without_one(name):
    p = problem(without=(name,))
    assert torch.autograd.gradcheck(function_of(p, dt_softplus=True), tuple(p.values()))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_gradients_are_autograds_through_a_plain_loop(dtype, tolerance, weights):
    p = problem(dtype, wide=True)
    exact = {name: t.detach().double().requires_grad_() for name, t in p.items()}
    options = {"dt_softplus": True, "dt_limit": LIMITS}
    for results in (
        ssd_scan(**p, **options, return_final_states=True),
        loop(**exact, **options),
    ):
        torch.autograd.backward(
            sum(w * (r**2).sum() for w, r in zip(weights, results, strict=True) if w)
        )
    for name, t in p.items():
        if weights[0] or name not in ("C", "D", "z"):
            expected = exact[name].grad
            assert t.grad.dtype == dtype
            assert (t.grad - expected).abs().max() <= tolerance * expected.abs().max(), name


PACKED = {
    "rows": {},
    "seq_idx": {"seq_idx": SEQ_IDX},
    "cu_seqlens": {"cu_seqlens": CU_SEQLENS},
    "both": {"cu_seqlens": CU_SEQLENS, "seq_idx": SEQ_IDX[:1]},
}


@pytest.mark.parametrize("how", PACKED)
def test_derivatives_in_forward_mode_of_batches_and_second_ones(how):
    options = PACKED[how]
    p = packed_problem(4 if how == "cu_seqlens" else 1) if "cu_seqlens" in options else problem()
    function = function_of(p, dt_softplus=True, **options, return_final_states=True)
    values = tuple(p.values())
    check = {"check_forward_ad": True, "check_batched_grad": how == "rows", "fast_mode": True}
    assert torch.autograd.gradcheck(function, values, **check)
    assert torch.autograd.gradgradcheck(function, values, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("how", PACKED)
def test_second_derivatives_without_states(how):
    options = PACKED[how]
    p = packed_problem(4 if how == "cu_seqlens" else 1) if "cu_seqlens" in options else problem()
    function = function_of(p, dt_softplus=True, **options)
    assert torch.autograd.gradgradcheck(function, tuple(p.values()), fast_mode=True)


def test_third_derivatives():
    def third(scan):
        p = problem()
        out, last = scan(**p, dt_softplus=True)
        value = (out**2).sum() + (last**2).sum()
        for name in "dt", "A":
            (gradient,) = torch.autograd.grad(value, p[name], create_graph=True)
            value = (gradient**2).sum()
        return torch.autograd.grad(value, list(p.values()))

    assert_close(third(lambda **p: ssd_scan(**p, return_final_states=True)), third(loop))


def squares(function):
    return lambda *values: sum((r**2).sum() for r in function(*values))


EVERY = tuple(range(len(SHAPES)))
TRANSFORMS = {
    "grad": lambda f: torch.func.grad(squares(f), EVERY),
    "jvp": lambda f: lambda *v: torch.func.jvp(f, v, v),
    "jacrev": lambda f: torch.func.jacrev(f, (1, 2)),
    "hessian": lambda f: torch.func.hessian(squares(f), (2,)),
    "vmap": lambda f: lambda *v: torch.func.vmap(f)(*(torch.stack([t, 2 * t]) for t in v)),
    "vmap of grad": lambda f: (
        lambda *v: torch.func.vmap(torch.func.grad(squares(f), EVERY))(
            *(torch.stack([t, -t]) for t in v)
        )
    ),
    "functional.hvp": lambda f: lambda *v: torch.autograd.functional.hvp(squares(f), v, v),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name):
    values = tuple(t.detach() for t in problem(wide=True).values())
    options = {"dt_softplus": True, "dt_limit": LIMITS}
    ours, theirs = (
        torch.utils._pytree.tree_leaves(TRANSFORMS[name](f)(*values))
        for f in (
            function_of(SHAPES, **options, return_final_states=True),
            lambda *v: loop(*v, **options),
        )
    )
    assert_close(ours, theirs)


# ---- what is kept for the backward pass ----------------------------------------------------------


def long_problem(dtype=torch.float64, steps=150, **options):
    sizes = {name: (BATCH, steps, *s[2:]) for name, s in SHAPES.items() if s[:2] == (BATCH, L)}
    return problem(dtype, **sizes, **options)


def saved_sizes(function):
    """The sizes of what autograd saves while a function runs."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, id):
        function()
    return sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kept_states_give_fastderivs_gradients_bit_for_bit(dtype, monkeypatch):
    """And the scan runs once, not twice."""
    p = long_problem(dtype)
    out = ssd_scan(**p, dt_softplus=True, dt_limit=LIMITS)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    seen = watched_adjoint(monkeypatch)
    grads = torch.autograd.grad(out, list(p.values()), dout, retain_graph=True)
    again = torch.autograd.grad(out, list(p.values()), dout)
    options = {"dt_softplus": True, "dt_limit": LIMITS}
    _, cache = fd.ssd_scan(**arrays(p), **options, return_cache=True)
    expected = fd.ssd_scan_vjp(dout.numpy(), **arrays(p), **options, cache=cache)
    for ours, same, theirs in zip(grads, again, expected, strict=True):
        assert np.array_equal(ours.numpy(), theirs) and torch.equal(ours, same)
    assert [kept.shape for kept in seen] == [(2 * 3, H, N, P)] * 2


def watched_adjoint(monkeypatch):
    """A list of the kept states that later adjoints are given."""
    seen, original = [], fd.ssm.ssd_adjoint

    def spy(call, kept):
        seen.append(kept)
        return original(call, kept)

    monkeypatch.setattr("fastderiv.integrations.torch._ssd_scan.ssd_adjoint", spy)
    return seen


def test_kept_states_take_at_most_twice_the_memory_of_x():
    for states, size in (128, 2 * H * P * 64), (129, 0):
        p = problem(
            x=(1, 64, H, P),
            dt=(1, 64, H),
            B=(1, 64, 1, states),
            C=(1, 64, 1, states),
            without=("z", "initial_states"),
        )
        x, dt, A, B, C, *_ = p.values()
        given = x, dt, A, B, C, *(None for _ in range(6)), False, 0.0, math.inf, False, True
        assert torch.ops.fastderiv.ssd_scan(*given)[2].numel() == size


def test_states_are_kept_only_where_a_gradient_may_be_asked_for():
    p = long_problem()
    size = BATCH * 3 * H * P * N
    assert size in saved_sizes(lambda: ssd_scan(**p))
    with torch.no_grad():
        assert not saved_sizes(lambda: ssd_scan(**p))
    given = *detached(p).values(), None, None, False, 0.0, math.inf, False
    for remember in False, True:
        _, states, kept = torch.ops.fastderiv.ssd_scan(*given, remember)
        assert states.numel() == 0 and kept.numel() == (size if remember else 0)


@pytest.mark.parametrize("length, kept", [(70, True), (10, False)])
def test_states_are_kept_of_sequences_that_are_not_short(length, kept, monkeypatch):
    p = long_problem(steps=210)
    seq_idx = (torch.arange(210) // length).expand(BATCH, 210)
    out = ssd_scan(**p, seq_idx=seq_idx)
    seen = watched_adjoint(monkeypatch)
    grads = torch.autograd.grad(out.sum(), list(p.values()))
    assert [states is not None for states in seen] == [kept]
    for row in range(BATCH):
        q = {name: t[row : row + 1] if len(t) == BATCH else t for name, t in p.items()}
        q |= {"initial_states": p["initial_states"][row : row + 1]}
        cu = torch.arange(0, 211, length)
        total = ssd_scan(**q, cu_seqlens=cu).sum()
        one = torch.autograd.grad(total, [p["x"], p["dt"], p["initial_states"]])
        for a, b in zip((grads[0], grads[1], grads[-1]), one, strict=True):
            assert torch.allclose(a[row], b[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*SHAPES, "seq_idx"])
def test_an_argument_modified_before_the_backward_pass_is_an_error(name):
    p = {k: t.detach().clone().requires_grad_(k != name) for k, t in problem().items()}
    p["seq_idx"] = SEQ_IDX.clone()
    out = ssd_scan(**p)
    p[name] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    p = long_problem()

    def gradients(checkpointed):
        values = [t.detach().requires_grad_() for t in p.values()]
        scan = function_of(p, dt_softplus=True)
        out = (
            torch.utils.checkpoint.checkpoint(scan, *values, use_reentrant=use_reentrant)
            if checkpointed
            else scan(*values)
        )
        out.sum().backward()
        return [t.grad for t in values]

    assert all(map(torch.equal, gradients(True), gradients(False)))


# ---- compilers and tracers -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["rows", "seq_idx", "cu_seqlens"])
def test_compiles_in_one_graph(how):
    options = PACKED[how]
    if how == "cu_seqlens":
        options = options | {"return_varlen_states": True}

    def loss(*values):
        scan = function_of(
            SHAPES, dt_softplus=True, return_final_states=True, dt_limit=[0, math.inf], **options
        )
        return squares(scan)(*(v * 2 for v in values))

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    p = packed_problem(4) if how == "cu_seqlens" else problem()
    values = list(p.values())
    assert torch.equal(compiled(*values), loss(*values))
    ours, theirs = (torch.autograd.grad(f(*values), values) for f in (compiled, loss))
    assert all(map(torch.equal, ours, theirs))


def test_compiled_once_for_all_lengths_and_kept_states():
    def loss(seq_idx, *values):
        return (function_of(SHAPES, dt_softplus=True, seq_idx=seq_idx)(*values) ** 2).sum()

    torch._dynamo.reset()
    backend = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=backend, dynamic=True)
    compilations = []
    for steps in 150, 200:
        values = list(long_problem(steps=steps).values())
        seq_idx = (torch.arange(steps) // 70).repeat(BATCH, 1)
        ours, theirs = (torch.autograd.grad(f(seq_idx, *values), values) for f in (compiled, loss))
        assert all(map(torch.equal, ours, theirs))
        compilations.append(backend.frame_count)
    assert compilations[0] == compilations[1]


@pytest.mark.slow
def test_compiled_by_inductor():
    def loss(*values):
        return squares(function_of(SHAPES, dt_softplus=True, return_final_states=True))(*values)

    torch._dynamo.reset()
    values = list(problem().values())
    ours, theirs = (
        torch.autograd.grad(f(*values), values) for f in (torch.compile(loss, fullgraph=True), loss)
    )
    assert_close(ours, theirs, 1e-13)


def test_fake_tensors():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        p = {k: mode.from_tensor(t.detach()) for k, t in problem(torch.bfloat16).items()}
        seq_idx = mode.from_tensor(SEQ_IDX)
        out, last = ssd_scan(**p, seq_idx=seq_idx, return_final_states=True)
        assert out.shape == SHAPES["x"] and last.shape == (BATCH, H, P, N)
        assert (out.dtype, last.dtype) == (torch.bfloat16, torch.float32)
        step = [mode.from_tensor(t) if torch.is_tensor(t) else t for t in steps(torch.bfloat16)]
        out = selective_state_update(*step)
        assert out.shape == (BATCH, H, P) and out.dtype == torch.bfloat16


@pytest.mark.parametrize("requires_grad", [False, True])
def test_operators_are_registered_as_pytorch_wants_them(requires_grad):
    p = [t.detach().requires_grad_(requires_grad) for t in problem().values()]
    one = [t.detach().requires_grad_(requires_grad) for t in packed_problem(1).values()]
    options = False, 0.0, math.inf
    operators = torch.ops.fastderiv
    some = *p[:5], None, None, None, None
    calls = {
        True: [(*p, SEQ_IDX, None, *options, True), (*one, None, CU_SEQLENS, *options, True)],
        False: [(*p, None, None, *options, True), (*some, SEQ_IDX, None, *options, False)],
    }
    for arguments in calls[requires_grad]:
        torch.library.opcheck(operators.ssd_scan.default, (*arguments, requires_grad))
    if not requires_grad:
        douts = torch.ones(SHAPES["x"]).double(), torch.ones(BATCH, H, P, N).double()
        arguments = *douts, *p, SEQ_IDX, None, *options, True, torch.empty(0).double()
        torch.library.opcheck(operators.ssd_scan_vjp.default, arguments)
        for indices in None, torch.tensor([1, 0]):
            state, x, dt, A, B, C, skip, z, bias, _ = steps()
            short = state, x, dt[..., 0], A[:, 0, 0], B, C, skip, z, bias[:, 0], True, indices
            torch.library.opcheck(operators.selective_state_update.default, short)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": np.zeros(SHAPES["x"])}, TypeError, "x is a ndarray; expected a tensor"),
        ({"C": None}, TypeError, "C is a NoneType; expected a tensor"),
        (
            {"z": torch.zeros(SHAPES["z"], device="meta")},
            ValueError,
            "z is on meta; expected a CPU tensor",
        ),
        ({"dt": torch.zeros(SHAPES["dt"], dtype=torch.int64)}, TypeError, "dt has dtype torch.int"),
        ({"x": torch.zeros(L, H, P)}, ValueError, r"x has shape \(6, 4, 2\); expected \(batch, L,"),
        ({"B": torch.zeros(BATCH, L, 3, N)}, ValueError, r"B has shape .* with G dividing H = 4"),
        ({"dt": torch.zeros(BATCH, L)}, ValueError, r"dt has shape \(2, 6\); expected"),
        (
            {"initial_states": torch.zeros(1, H, P, N)},
            ValueError,
            r"initial_states has shape \(1, .*\); expected \(batch, H, P, N\) = \(2, 4, 2, 3\)",
        ),
        ({"seq_idx": torch.zeros(L)}, TypeError, "seq_idx has dtype torch.float32; expected int"),
        (
            {"seq_idx": torch.zeros(BATCH, 1, dtype=torch.int32)},
            ValueError,
            r"seq_idx has shape \(2, 1\); expected \(batch, L\) = \(2, 6\)",
        ),
        ({"seq_idx": [[0] * L] * BATCH}, TypeError, "seq_idx is a list; expected a tensor of int"),
        ({"cu_seqlens": CU_SEQLENS}, ValueError, "cu_seqlens packs sequences along L and needs"),
        ({"return_varlen_states": True}, ValueError, "return_varlen_states is True and cu_seqlens"),
        ({"dt_limit": (1.0, 0.0)}, ValueError, "dt_limit is .*; expected two numbers in ascending"),
        ({"state_dtype": torch.int8}, TypeError, "state_dtype is torch.int8; expected one of"),
        ({"dt_softplus": np.zeros(2)}, TypeError, "dt_softplus is a ndarray"),
    ],
)
@pytest.mark.parametrize("transformed", [False, True])
def test_errors_name_the_argument(change, error, message, transformed):
    p = detached(problem()) | change

    def scan(A):
        return ssd_scan(**p | {"A": A})

    with pytest.raises(error, match=message):
        torch.func.jvp(scan, (p["A"],), (p["A"],)) if transformed else scan(p["A"])


@pytest.mark.parametrize("states, wanted", [(3, r"\(1, .*\) or \(4, "), (0, r"\(1, ")])
def test_initial_states_are_one_or_one_for_each_sequence(states, wanted):
    p = detached(packed_problem(1)) | {"initial_states": torch.zeros(states, H, P, N)}
    with pytest.raises(ValueError, match=rf"expected \(1 or sequences, H, P, N\) = {wanted}"):
        ssd_scan(**p, cu_seqlens=CU_SEQLENS)


# ---- one step, of states with heads --------------------------------------------------------------


def steps(dtype=torch.float64, seed=0, equal=True):
    """The positional arguments of a step; dt, A, dt_bias and D are expanded if `equal` in heads."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def of_heads(t, *shape):
        return t.view(*t.shape, *(1 for _ in shape)).expand(*t.shape, *shape)

    state, x, z = random(BATCH, H, P, N), random(BATCH, H, P), random(BATCH, H, P)
    B, C = random(BATCH, G, N), random(BATCH, G, N)
    if equal:
        dt, A = of_heads(random(BATCH, H), P), of_heads(-random(H).abs(), P, N)
        skip, bias = of_heads(random(H), P), of_heads(random(H), P)
    else:
        dt, A = random(BATCH, H, P), -random(H, P, N).abs()
        skip, bias = random(H, P), random(H, P)
    return state, x, dt, A, B, C, skip, z, bias, True


def plain_step(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """Result and new state in PyTorch's operations."""
    dt = dt if dt_bias is None else dt + dt_bias
    dt = torch.nn.functional.softplus(dt) if dt_softplus else dt
    B, C = (t.repeat_interleave(H // G, 1)[:, :, None] for t in (B, C))
    h = torch.exp(dt[..., None] * A) * state + (dt * x)[..., None] * B
    y = (h * C).sum(-1)
    y = y if D is None else y + D * x
    return (y if z is None else y * z * torch.sigmoid(z)), h


def spied(monkeypatch, name):
    """The arguments of later calls of a function of fastderiv."""
    seen, original = [], getattr(fd, name)

    def spy(*arguments):
        seen.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(fd, name, spy)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("some", [True, False])
def test_step_is_that_of_a_plain_formula_and_in_place(dtype, equal, some):
    given = steps(dtype, equal=equal)
    if not some:
        given = *given[:6], None, None, None, False
    expected = plain_step(*(t.double() if torch.is_tensor(t) else t for t in given))
    state, memory = given[0], given[0].data_ptr()
    version = state._version
    out = selective_state_update(*given)
    assert out.dtype == dtype and state.data_ptr() == memory and state._version > version
    assert_close(
        (out.double(), state.double()), expected, 3e-6 if dtype == torch.float32 else 1e-13
    )


def test_numbers_of_heads_that_are_expanded_make_a_step_of_mamba_2(monkeypatch):
    seen = spied(monkeypatch, "ssd_state_update")
    given = steps(torch.float32)
    state, x, dt, A, B, C, skip, z, bias, softplus = given
    short = state.clone(), x, dt[..., 0], A[:, 0, 0], B, C, skip[:, 0], z, bias[:, 0], softplus
    assert torch.equal(selective_state_update(*given), selective_state_update(*short))
    assert torch.equal(state, short[0])
    (ours, *others, _), _ = seen
    assert ours.ctypes.data == state.data_ptr()
    for array, t in zip(others, (x, dt, A, B, C, skip, z, bias), strict=True):
        assert array.ctypes.data == t.data_ptr()
    assert others[1].shape == (BATCH, H) and others[2].shape == others[-1].shape == (H,)


@pytest.mark.parametrize("name", ["dt", "A", "dt_bias"])
def test_a_number_that_differs_inside_a_head_is_not_taken_for_one(name, monkeypatch):
    seen = spied(monkeypatch, "selective_state_update")
    given = list(steps())
    place = {"dt": 2, "A": 3, "dt_bias": 8}[name]
    given[place] = steps(equal=False)[place]
    expected = plain_step(*given)
    out = selective_state_update(*given)
    assert len(seen) == 1
    assert_close((out, given[0]), expected, 1e-13)


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("order", [(0, 2, 1, 3), (3, 1, 0, 2)])
def test_step_of_states_of_any_strides(equal, order):
    given = steps(equal=equal)
    expected = plain_step(*given)
    inverse = [order.index(k) for k in range(4)]
    state = given[0].permute(order).contiguous().permute(inverse)
    assert_close((selective_state_update(state, *given[1:]), state), expected, 1e-13)


def in_float32(t):
    """The same, expanded where `t` is."""
    own = t[tuple(slice(1) if step == 0 else slice(None) for step in t.stride())]
    return own.float().expand(t.shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("equal", [True, False])
def test_step_of_16_bit_tensors(dtype, state_dtype, equal):
    given = steps(dtype, equal=equal)
    state = given[0].to(state_dtype)
    wide = [in_float32(t) if torch.is_tensor(t) else t for t in (state.clone(), *given[1:])]
    expected = selective_state_update(*wide)
    out = selective_state_update(state, *given[1:])
    assert out.dtype == dtype and torch.equal(out, expected.to(dtype))
    assert state.dtype == state_dtype and torch.equal(state, wide[0].to(state_dtype))


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("indices", [None, [3, 0], [-1, 2]])
def test_derivatives_of_a_step(equal, indices):
    state, x, dt, A, B, C, skip, z, bias, softplus = steps(equal=equal)
    if indices is None:
        softplus = False  # a negative step size is taken as it is
    else:
        state = torch.randn(4, H, P, N, dtype=torch.float64)
    if equal:
        dt, A, skip, bias = dt[..., 0], A[:, 0, 0], skip[:, 0], bias[:, 0]
    given = [t.clone().requires_grad_() for t in (state, x, dt, A, B, C, skip, z, bias)]
    at = None if indices is None else torch.tensor(indices)

    def results(state, *others):
        state = state.clone()
        return selective_state_update(state, *others, softplus, at), state

    with torch.no_grad():
        expected = results(*given)
    assert_close(results(*given), expected, 1e-13)
    assert torch.autograd.gradcheck(results, given, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(results, given, fast_mode=True)


def test_derivatives_with_respect_to_the_number_of_a_head():
    """Through the views that are expanded from it."""
    state, x, dt, A, B, C, skip, z, bias, softplus = steps()
    given = tuple(
        t.clone().requires_grad_() for t in (dt[..., 0], A[:, 0, 0], skip[:, 0], bias[:, 0])
    )

    def results(dt, A, skip, bias):
        dt, A = dt[..., None].expand(-1, -1, P), A[:, None, None].expand(-1, P, N)
        skip, bias = skip[:, None].expand(-1, P), bias[:, None].expand(-1, P)
        h = state.clone()
        return selective_state_update(h, x, dt, A, B, C, skip, z, bias, softplus), h

    assert torch.autograd.gradcheck(results, given)


def test_a_step_under_vmap():
    state, x, *others = steps()
    states, xs = torch.stack([state, 2 * state]), torch.stack([x, 3 * x])
    expected = states.clone()
    each = [selective_state_update(s, x, *others) for s, x in zip(expected, xs, strict=True)]
    out = torch.vmap(lambda s, x: selective_state_update(s, x, *others))(states, xs)
    assert_close((out, states), (torch.stack(each), expected), 1e-13)


@pytest.mark.parametrize("equal", [True, False])
def test_a_compiled_step_updates_the_state(equal):
    indices = torch.tensor([2, -1])

    def three_steps(state, pool, *others):
        first = selective_state_update(state, *others)
        return first + selective_state_update(state, *others), selective_state_update(
            pool, *others, state_batch_indices=indices
        )

    torch._dynamo.reset()
    given = steps(equal=equal)
    results = []
    for function in three_steps, torch.compile(three_steps, fullgraph=True, backend="aot_eager"):
        state, pool = given[0].clone(), given[0].repeat(2, 1, 1, 1)
        results.append((*function(state, pool, *given[1:]), state, pool))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("indices", [[5, 1], [2, 3], [-1, 4], [0, -3], [-1, -1]])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_step_of_some_states_of_a_pool(dtype, equal, indices, requires_grad):
    _, *others = steps(dtype, equal=equal)
    others[0].requires_grad_(requires_grad)
    before = torch.randn(6, H, P, N).to(dtype)
    pool, at = before.clone(), torch.tensor(indices, dtype=torch.int32)
    out = selective_state_update(pool, *others, state_batch_indices=at)
    rows = before[at.clamp(min=0).long()]
    expected = selective_state_update(rows, *others)
    taken = at >= 0
    kept = [k for k in range(6) if k not in indices]
    tolerance = 1e-13 if dtype == torch.float64 else 1e-2
    assert torch.equal(pool[kept], before[kept]) and not out[~taken].any()
    if taken.any():
        ours = out[taken].double(), pool[at[taken].long()].double()
        assert_close(ours, (expected[taken].double(), rows[taken].double()), tolerance)


def test_pooled_states_of_mamba_1():
    rng = torch.Generator().manual_seed(0)
    before = torch.randn(5, 4, N, generator=rng)
    x, dt, z = (torch.randn(2, 4, generator=rng) for _ in range(3))
    B, C = (torch.randn(2, N, generator=rng) for _ in range(2))
    others = x, dt, -torch.rand(4, N, generator=rng), B, C, x[0], z, x[1], True
    pool, rows = before.clone(), before[[3, 1]]
    out = selective_state_update(pool, *others, torch.tensor([3, 1]))
    assert torch.equal(out, selective_state_update(rows, *others))
    before[[3, 1]] = rows
    assert torch.equal(pool, before)


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize(
    "indices, error, message",
    [
        ([1, 1], ValueError, r"state_batch_indices is \[1, 1\]; expected no index twice"),
        ([0, 4], ValueError, r"state_batch_indices is \[0, 4\]; expected indices of 4 states"),
        ([0], ValueError, r"state_batch_indices has shape \(1,\); expected \(batch,\) = \(2,\)"),
        ([0.0, 1.0], TypeError, "state_batch_indices has dtype torch.float32; expected integers"),
    ],
)
def test_wrong_indices_change_no_state(indices, error, message, requires_grad):
    _, *others = steps()
    others[0].requires_grad_(requires_grad)
    pool = torch.ones(4, H, P, N, dtype=torch.float64)
    with pytest.raises(error, match=message):
        selective_state_update(pool, *others, state_batch_indices=torch.tensor(indices))
    assert (pool == 1).all()


@pytest.mark.parametrize(
    "place, shape, message",
    [
        (1, (BATCH, H), r"x has shape \(2, 4\); expected .*\(2, 4, 2\)"),
        (7, (BATCH, P, H), r"z has shape \(2, 2, 4\); expected "),
        (2, (BATCH, H, P + 1), r"dt has shape \(2, 4, 3\); expected \(2, 4, 2\) or \(2, 4\)"),
        (3, (H, P, N + 1), r"A has shape \(4, 2, 4\); expected \(4, 2, 3\) or \(4,\)"),
        (4, (BATCH, 3, N), r"B has shape \(2, 3, 3\); expected .* with G dividing H = 4"),
        (6, (P, H), r"D has shape \(2, 4\); expected "),
        (8, (P, H), r"dt_bias has shape \(2, 4\); expected \(4, 2\) or \(4,\)"),
    ],
)
@pytest.mark.parametrize("equal", [True, False])
def test_wrong_shapes_of_a_step(place, shape, message, equal):
    given = list(steps(equal=equal))
    given[place] = torch.zeros(1).double().expand(shape)
    before = given[0].clone()
    with pytest.raises(ValueError, match=message):
        selective_state_update(*given)
    assert torch.equal(given[0], before)
