"""fastderiv.integrations.torch: the operators behave as PyTorch's own do, and compute what fastderiv computes."""

import subprocess
import sys

import numpy as np
import pytest

import fastderiv as fd

torch = pytest.importorskip("torch")
from fastderiv.integrations.torch import selective_scan, selective_state_update

# PyTorch about itself, on first use of its compiler and of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

BATCH, D, N, L = 2, 4, 3, 5
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
COEFFICIENTS = {"constant": (D, N), "in time": (BATCH, N, L), "grouped": (BATCH, 2, N, L)}


def problem(dtype=torch.float64, B="in time", C="in time", without=(), seed=0):
    """Every tensor of a scan that requires its gradient, as keyword arguments."""
    shapes = {"u": (BATCH, D, L), "delta": (BATCH, D, L), "A": (D, N), "B": COEFFICIENTS[B], "C": COEFFICIENTS[C],
              "D": (D,), "z": (BATCH, D, L), "delta_bias": (D,), "initial_state": (BATCH, D, N)}  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].abs()
    return {name: t.to(dtype).requires_grad_() for name, t in tensors.items() if name not in without}


def step(dtype=torch.float64, seed=0):
    """The positional arguments of a step."""
    p = problem(dtype, seed=seed)
    now = [p[name].detach()[..., 0] for name in ("u", "delta", "B", "C", "z")]
    x, dt, B, C, z = now
    A, skip, bias = (p[name].detach() for name in ("A", "D", "delta_bias"))
    return p["initial_state"].detach().clone(), x, dt, A, B, C, skip, z, bias, True


def arrays(tensors):
    return {name: t.numpy(force=True) for name, t in tensors.items()}


def plain_loop(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, *, initial_state=None):
    """The recurrence in PyTorch's own operations, for the layouts of `problem`."""
    rows = [t.expand(BATCH, L, *A.shape) if t.ndim == 2 else
            (t if t.ndim == 4 else t[:, None]).repeat_interleave(A.shape[0] // (t.shape[1] if t.ndim == 4 else 1), 1).permute(0, 3, 1, 2)
            for t in (B, C)]  # fmt: skip
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = torch.nn.functional.softplus(delta) if delta_softplus else delta
    h = u.new_zeros(BATCH, *A.shape) if initial_state is None else initial_state
    ys = []
    for i in range(L):
        dt = delta[:, :, i, None]
        h = torch.exp(dt * A) * h + dt * rows[0][:, i] * u[:, :, i, None]
        ys.append((h * rows[1][:, i]).sum(-1))
    y = torch.stack(ys, -1)
    y = y if D is None else y + D[:, None] * u
    return y if z is None else y * torch.nn.functional.silu(z), h


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("B", COEFFICIENTS)
@pytest.mark.parametrize("without", [(), ("D", "z", "delta_bias", "initial_state")])
def test_scan_is_fastderivs_bit_for_bit(dtype, B, without):
    p = problem(dtype, B=B, without=without)
    out, last = selective_scan(**p, delta_softplus=True, return_last_state=True)
    expected = fd.selective_scan(**arrays(p), delta_softplus=True, return_last_state=True)
    for ours, theirs in zip((out, last), expected, strict=True):
        assert ours.dtype == dtype and ours.numpy(force=True).tobytes() == theirs.tobytes()
    assert torch.equal(out, selective_scan(**p, delta_softplus=True))


def test_arguments_are_those_of_mamba_ssm_in_order():
    p = problem(without=["initial_state"])
    out, last = selective_scan(*p.values(), True, True)
    expected = fd.selective_scan(*arrays(p).values(), True, True)
    assert np.array_equal(out.numpy(force=True), expected[0]) and np.array_equal(last.numpy(force=True), expected[1])


def test_nothing_is_copied_neither_in_nor_out(monkeypatch):
    p = {name: t.detach() for name, t in problem(torch.float32).items()}
    p["u"] = p["u"].transpose(1, 2).contiguous().transpose(1, 2)
    seen = []

    def spy(*args, **kwargs):
        seen.extend([*args[:8], kwargs["initial_state"]])
        results = original(*args, **kwargs)
        seen.extend(results)
        return results

    original = fd.selective_scan
    monkeypatch.setattr(fd, "selective_scan", spy)
    results = selective_scan(**p, return_last_state=True)
    for array, tensor in zip(seen, [*(p[name] for name in NAMES), *results], strict=True):
        assert array.ctypes.data == tensor.data_ptr() and array.strides == tuple(4 * s for s in tensor.stride())


def test_unbatched_and_packed():
    p = {name: t.detach() for name, t in problem(B="grouped", C="constant").items()}
    one = {name: t[0] if name in ("u", "delta", "B", "z", "initial_state") else t for name, t in p.items()}
    expected = fd.selective_scan(**arrays(one), return_last_state=True)
    for ours, theirs in zip(selective_scan(**one, return_last_state=True), expected, strict=True):
        assert np.array_equal(ours, theirs)
    packed = one | {"initial_state": p["initial_state"], "cu_seqlens": torch.tensor([0, 2, L], dtype=torch.int32)}
    for ours, theirs in zip(selective_scan(**packed, return_last_state=True),
                            fd.selective_scan(**arrays(packed), return_last_state=True), strict=True):  # fmt: skip
        assert np.array_equal(ours, theirs)


def call(names, values, **options):
    return selective_scan(**dict(zip(names, values, strict=True)), return_last_state=True, **options)


@pytest.mark.parametrize("B", COEFFICIENTS)
@pytest.mark.parametrize("C", COEFFICIENTS)
def test_gradcheck(B, C):
    p = problem(B=B, C=C)
    assert torch.autograd.gradcheck(lambda *values: call(p, values, delta_softplus=True), tuple(p.values()))


@pytest.mark.parametrize("without", [("D",), ("z",), ("delta_bias", "initial_state")])
@pytest.mark.parametrize("softplus", [False, True])
def test_gradcheck_without_some(without, softplus):
    p = problem(without=without)
    assert torch.autograd.gradcheck(lambda *values: call(p, values, delta_softplus=softplus), tuple(p.values()))


def test_gradcheck_packed():
    p = problem(B="constant", C="constant")
    of_one = {name: (t[:1] if name in ("u", "delta", "z") else t).detach().requires_grad_() for name, t in p.items()}
    starts = torch.tensor([0, 2, L])
    assert torch.autograd.gradcheck(lambda *values: call(of_one, values, cu_seqlens=starts), tuple(of_one.values()))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_gradients_are_autograds_through_a_plain_loop(dtype, tolerance, weights):
    p = problem(dtype, B="grouped")
    exact = {name: t.detach().double().requires_grad_() for name, t in p.items()}
    for scan, values in (selective_scan, p), (plain_loop, exact):
        options = {"return_last_state": True} if scan is selective_scan else {}
        results = scan(**values, delta_softplus=True, **options)
        torch.autograd.backward(sum(w * (r**2).sum() for w, r in zip(weights, results, strict=True) if w))
    for name, t in p.items():
        if weights[0] or name not in ("C", "D", "z"):
            expected = exact[name].grad
            assert t.grad.dtype == dtype
            assert (t.grad - expected).abs().max() <= tolerance * expected.abs().max(), name


def test_half_precision_is_computed_in_float32():
    p = problem(torch.bfloat16)
    p["A"] = p["A"].detach().float().requires_grad_()
    out, last = selective_scan(**p, delta_softplus=True, return_last_state=True)
    wide = {name: t.detach().float().requires_grad_() for name, t in p.items()}
    expected, expected_last = selective_scan(**wide, delta_softplus=True, return_last_state=True)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected.bfloat16())
    assert last.dtype == torch.float32 and torch.equal(last, expected_last)
    out.sum().backward()
    expected.sum().backward()
    for name, t in p.items():
        assert t.grad.dtype == t.dtype and torch.equal(t.grad, wide[name].grad.to(t.dtype)), name


def test_one_float64_makes_it_float64():
    p = problem(torch.float32, without=["initial_state"]) | {"A": problem()["A"]}
    out, last = selective_scan(**p, return_last_state=True)
    wide, wide_last = selective_scan(**{name: t.double() for name, t in p.items()}, return_last_state=True)
    assert out.dtype == torch.float32 and torch.equal(out, wide.float()) and torch.equal(last, wide_last)


def test_what_cannot_be_differentiated_says_so():
    p = problem()
    (gradient,) = torch.autograd.grad(selective_scan(**p).sum(), p["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="selective_scan_vjp.*no autograd formula"):
        gradient.sum().backward()
    with torch.autograd.forward_ad.dual_level():
        p["z"] = torch.autograd.forward_ad.make_dual(p["z"].detach(), torch.ones_like(p["z"]))
        with pytest.raises(NotImplementedError, match="z has a tangent"):
            selective_scan(**p)


def test_checkpointing():
    from torch.utils.checkpoint import checkpoint

    p = problem()
    expected = torch.autograd.grad(call(p, p.values())[0].sum(), p.values())
    out, _ = checkpoint(lambda *values: call(p, values), *p.values(), use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(out.sum(), p.values()), expected))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_operators_are_registered_as_pytorch_wants_them(requires_grad):
    p = [t.detach().requires_grad_(requires_grad) for t in problem().values()]
    operators = torch.ops.fastderiv
    torch.library.opcheck(operators.selective_scan.default, (*p, None, True))
    torch.library.opcheck(operators.selective_scan.default, (*p[:5], None, None, None, None, None, False))
    if not requires_grad:
        adjoints = torch.ones(BATCH, D, L).double(), torch.ones(BATCH, D, N).double()
        torch.library.opcheck(operators.selective_scan_vjp.default, (*adjoints, *p, None, True))
        torch.library.opcheck(operators.selective_state_update.default, step())


def test_compiles_in_one_graph():
    def loss(*values):
        out, last = call(NAMES, [v * 2 for v in values], delta_softplus=True)
        return (out**2).sum() + last.sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        values = tuple(problem(seed=seed).values())
        assert torch.equal(compiled(*values), loss(*values))
        for ours, theirs in zip(*(torch.autograd.grad(f(*values), values) for f in (compiled, loss)), strict=True):
            assert torch.equal(ours, theirs)


def test_a_compiled_step_updates_the_state():
    def double_step(state, *others):
        return selective_state_update(state, *others) + selective_state_update(state, *others)

    torch._dynamo.reset()
    ours, theirs = step(), step()
    compiled = torch.compile(double_step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*ours), double_step(*theirs)) and torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_step_is_fastderivs_bit_for_bit_and_in_place(dtype):
    ours, theirs = step(dtype), [t.numpy() if torch.is_tensor(t) else t for t in step(dtype)]
    memory, version = ours[0].data_ptr(), ours[0]._version
    out = selective_state_update(*ours)
    assert np.array_equal(out, fd.selective_state_update(*theirs)) and np.array_equal(ours[0], theirs[0])
    assert ours[0].data_ptr() == memory and ours[0]._version > version


@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_step_is_differentiable_where_asked(unbatched, grouped):
    state, x, dt, A, B, C, skip, z, bias, softplus = step()
    if unbatched:
        state, x, dt, B, C, z = (t[0] for t in (state, x, dt, B, C, z))
    if grouped:
        B = torch.stack([B, -B], -2)
    given = tuple(t.requires_grad_() for t in (state, x, dt, A, B, C, skip, z, bias))

    def results(state, *others):
        state = state.clone()
        return selective_state_update(state, *others, softplus), state

    with torch.no_grad():
        expected = results(*given)
    for ours, theirs in zip(results(*given), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(results, given)


def test_a_graph_that_needs_the_old_state_notices_the_step():
    state, *others = step()
    factor = torch.ones((), dtype=state.dtype, requires_grad=True)
    product = factor * state
    with torch.no_grad():
        selective_state_update(state, *others)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_step_of_half_precision_states_and_in_inference_mode():
    ours, wide = step(torch.bfloat16), step(torch.bfloat16)
    state = wide[0].float()
    expected = selective_state_update(state, *(t.float() if torch.is_tensor(t) else t for t in wide[1:]))
    with torch.inference_mode():
        ours = [t.clone() if torch.is_tensor(t) else t for t in ours]
        out = selective_state_update(*ours)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected.bfloat16())
    assert ours[0].dtype == torch.bfloat16 and torch.equal(ours[0], state.bfloat16())


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"u": np.zeros((BATCH, D, L))}, TypeError, "u is a ndarray; expected a tensor"),
        ({"B": None}, TypeError, "B is a NoneType; expected a tensor"),
        ({"A": torch.zeros(D, N, dtype=torch.complex64)}, TypeError, "A has dtype torch.complex64; expected one of torch.float32,"),
        ({"delta": torch.zeros(BATCH, D, L, dtype=torch.int64)}, TypeError, "delta has dtype torch.int64"),
        ({"z": torch.zeros(BATCH, D, L, device="meta")}, ValueError, "z is on meta; expected a CPU tensor"),
        ({"C": torch.zeros(BATCH, N + 1, L)}, ValueError, r"C has shape \(2, 4, 5\); expected"),
        ({"cu_seqlens": torch.tensor([0.0, L])}, TypeError, "cu_seqlens has dtype float32; expected integers"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        selective_scan(**problem() | change)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_expanded_states_are_refused(requires_grad):
    state, *others = step()
    others[0].requires_grad_(requires_grad)
    with pytest.raises(ValueError, match="state is expanded"):
        selective_state_update(torch.zeros_like(state[:1]).expand(state.shape), *others)


def test_states_with_heads_are_refused():
    state, *others = step()
    with pytest.raises(ValueError, match=r"state has shape \(2, 1, 4, 3\); expected \(batch, D, N\)"):
        selective_state_update(state[:, None], *others)


def test_without_pytorch_it_says_what_to_install():
    code = "import sys; sys.modules['torch'] = None\ntry: import fastderiv.integrations.torch\nexcept ImportError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert "needs PyTorch" in done.stdout and "pytorch.org" in done.stdout
