"""fastderiv.integrations.torch: operators behave as PyTorch's own and compute what we do."""

import subprocess
import sys

import numpy as np
import pytest

import fastderiv as fd

torch = pytest.importorskip("torch")
from fastderiv.integrations.torch import selective_scan, selective_state_update
from fastderiv.ssm import ScanCall

# PyTorch about itself, on first use of its compiler and of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

BATCH, D, N, L = 2, 4, 3, 5
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
COEFFICIENTS = {"constant": (D, N), "in time": (BATCH, N, L), "grouped": (BATCH, 2, N, L)}


def problem(dtype=torch.float64, B="in time", C="in time", without=(), seed=0):
    """Every tensor of a scan that requires its gradient, as keyword arguments."""
    shapes = {
        "u": (BATCH, D, L),
        "delta": (BATCH, D, L),
        "A": (D, N),
        "B": COEFFICIENTS[B],
        "C": COEFFICIENTS[C],
        "D": (D,),
        "z": (BATCH, D, L),
        "delta_bias": (D,),
        "initial_state": (BATCH, D, N),
    }
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    tensors["A"] = -tensors["A"].abs()
    return {
        name: t.to(dtype).requires_grad_() for name, t in tensors.items() if name not in without
    }


def step(dtype=torch.float64, seed=0):
    """The positional arguments of a step."""
    p = problem(dtype, seed=seed)
    now = [p[name].detach()[..., 0] for name in ("u", "delta", "B", "C", "z")]
    x, dt, B, C, z = now
    A, skip, bias = (p[name].detach() for name in ("A", "D", "delta_bias"))
    return p["initial_state"].detach().clone(), x, dt, A, B, C, skip, z, bias, True


def arrays(tensors):
    return {name: t.numpy(force=True) for name, t in tensors.items()}


def plain_loop(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, *, initial_state=None
):
    """The recurrence in PyTorch's own operations, for the layouts of `problem`."""
    rows = [
        t.expand(BATCH, L, *A.shape)
        if t.ndim == 2
        else (t if t.ndim == 4 else t[:, None])
        .repeat_interleave(A.shape[0] // (t.shape[1] if t.ndim == 4 else 1), 1)
        .permute(0, 3, 1, 2)
        for t in (B, C)
    ]
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
    assert np.array_equal(out.numpy(force=True), expected[0]) and np.array_equal(
        last.numpy(force=True), expected[1]
    )


def test_nothing_is_copied_neither_in_nor_out(monkeypatch):
    p = {name: t.detach() for name, t in problem(torch.float32).items()}
    p["u"] = p["u"].transpose(1, 2).contiguous().transpose(1, 2)
    seen = []

    def spy(self, out, last_state, *options):
        seen.extend([*self.given[:9], out, last_state])
        return original(self, out, last_state, *options)

    original = ScanCall.scan
    monkeypatch.setattr(ScanCall, "scan", spy)
    results = selective_scan(**p, return_last_state=True)
    for array, tensor in zip(seen, [*(p[name] for name in NAMES), *results], strict=True):
        assert array.ctypes.data == tensor.data_ptr() and array.strides == tuple(
            4 * s for s in tensor.stride()
        )


def test_unbatched_and_packed():
    p = {name: t.detach() for name, t in problem(B="grouped", C="constant").items()}
    one = {
        name: t[0] if name in ("u", "delta", "B", "z", "initial_state") else t
        for name, t in p.items()
    }
    expected = fd.selective_scan(**arrays(one), return_last_state=True)
    for ours, theirs in zip(selective_scan(**one, return_last_state=True), expected, strict=True):
        assert np.array_equal(ours, theirs)
    packed = one | {
        "initial_state": p["initial_state"],
        "cu_seqlens": torch.tensor([0, 2, L], dtype=torch.int32),
    }
    for ours, theirs in zip(
        selective_scan(**packed, return_last_state=True),
        fd.selective_scan(**arrays(packed), return_last_state=True),
        strict=True,
    ):
        assert np.array_equal(ours, theirs)


def call(names, values, **options):
    return selective_scan(
        **dict(zip(names, values, strict=True)), return_last_state=True, **options
    )


@pytest.mark.parametrize("B", COEFFICIENTS)
@pytest.mark.parametrize("C", COEFFICIENTS)
def test_gradcheck(B, C):
    p = problem(B=B, C=C)
    assert torch.autograd.gradcheck(
        lambda *values: call(p, values, delta_softplus=True), tuple(p.values())
    )


@pytest.mark.parametrize("without", [("D",), ("z",), ("delta_bias", "initial_state")])
@pytest.mark.parametrize("softplus", [False, True])
def test_gradcheck_without_some(without, softplus):
    p = problem(without=without)
    assert torch.autograd.gradcheck(
        lambda *values: call(p, values, delta_softplus=softplus), tuple(p.values())
    )


def test_gradcheck_packed():
    p = problem(B="constant", C="constant")
    of_one = {
        name: (t[:1] if name in ("u", "delta", "z") else t).detach().requires_grad_()
        for name, t in p.items()
    }
    starts = torch.tensor([0, 2, L])
    assert torch.autograd.gradcheck(
        lambda *values: call(of_one, values, cu_seqlens=starts), tuple(of_one.values())
    )


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_gradients_are_autograds_through_a_plain_loop(dtype, tolerance, weights):
    p = problem(dtype, B="grouped")
    exact = {name: t.detach().double().requires_grad_() for name, t in p.items()}
    for scan, values in (selective_scan, p), (plain_loop, exact):
        options = {"return_last_state": True} if scan is selective_scan else {}
        results = scan(**values, delta_softplus=True, **options)
        torch.autograd.backward(
            sum(w * (r**2).sum() for w, r in zip(weights, results, strict=True) if w)
        )
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
    wide, wide_last = selective_scan(
        **{name: t.double() for name, t in p.items()}, return_last_state=True
    )
    assert (
        out.dtype == torch.float32
        and torch.equal(out, wide.float())
        and torch.equal(last, wide_last)
    )


# ---- what the operators cannot do is done by PyTorch's operations --------------------------------


def silu_of_many_derivatives(z):
    return z * torch.sigmoid(z)  # PyTorch's has no second forward derivative


def loop(*values):
    """`plain_loop` of the tensors of `problem`, in order."""
    p = dict(zip(NAMES, values, strict=True))
    z = p.pop("z")
    out, last = plain_loop(**p, delta_softplus=True)
    return out * silu_of_many_derivatives(z), last


def scan(*values):
    return call(NAMES, values, delta_softplus=True)


def squares(function):
    return lambda *values: sum((r**2).sum() for r in function(*values))


def both(program):
    """What `program` makes of our scan and of the loop, as lists of tensors."""
    return [torch.utils._pytree.tree_leaves(program(function)) for function in (scan, loop)]


def assert_close(ours, theirs, tolerance=1e-11):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize(
    "B, C", [("constant", "in time"), ("in time", "grouped"), ("grouped", "constant")]
)
def test_second_derivatives(B, C):
    p = problem(B=B, C=C)
    assert torch.autograd.gradgradcheck(
        lambda *values: call(p, values, delta_softplus=True), tuple(p.values()), fast_mode=True
    )


@pytest.mark.parametrize("without", [("D", "z"), ("delta_bias", "initial_state")])
@pytest.mark.parametrize("first", [False, True])
def test_derivatives_in_forward_mode_of_batches_and_second_ones_without_some(without, first):
    p = problem(without=without, B="grouped")
    if first:  # of an unbatched scan
        p = {
            name: (t if name in ("A", "D", "delta_bias") else t[0]).detach().requires_grad_()
            for name, t in p.items()
        }
        p["C"] = p["C"][None].detach().requires_grad_()
    how = {"check_batched_grad": True, "fast_mode": True}
    values = tuple(p.values())
    assert torch.autograd.gradcheck(lambda *v: call(p, v), values, check_forward_ad=True, **how)
    assert torch.autograd.gradgradcheck(
        lambda *v: call(p, v), values, check_fwd_over_rev=True, **how
    )


@pytest.mark.parametrize("unbatched", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_second_derivatives_packed(unbatched, with_state):
    p = problem(B="constant", C="constant")
    one = {
        name: (t[0] if unbatched else t[:1]) if name in ("u", "delta", "z") else t
        for name, t in p.items()
    }
    starts = torch.tensor([0, 2, 2, L])
    one["initial_state"] = torch.randn(3, D, N, dtype=torch.float64)
    if not with_state:
        del one["initial_state"]
    values = tuple(t.detach().requires_grad_() for t in one.values())

    def packed(*v):
        return call(one, v, cu_seqlens=starts)

    assert torch.autograd.gradgradcheck(packed, values, fast_mode=True)
    assert torch.autograd.gradcheck(packed, values, check_forward_ad=True, fast_mode=True)


def test_third_derivatives():
    def third(function):
        values = [t.detach().requires_grad_() for t in problem().values()]
        value = squares(function)(*values)
        for i in (1, 2):
            (gradient,) = torch.autograd.grad(value, values[i], create_graph=True)
            value = (gradient**2).sum()
        return torch.autograd.grad(value, values)

    assert_close(*both(third))


def test_second_derivatives_where_one_tensor_is_several_arguments():
    u, _, A, B, _, skip, _, bias, state = (t.detach() for t in problem().values())
    u.abs_().requires_grad_()

    def second(function):
        value = squares(function)(u, u, A, B, B, skip, u, bias, state)
        (gradient,) = torch.autograd.grad(value, u, create_graph=True)
        return gradient.detach(), torch.autograd.grad((gradient**2).sum(), u)

    assert_close(*both(second))


def test_the_first_derivatives_have_the_same_bits_with_a_graph():
    values = tuple(problem().values())
    for a, b in zip(
        *(
            torch.autograd.grad(squares(scan)(*values), values, create_graph=graph)
            for graph in (False, True)
        ),
        strict=True,
    ):
        assert torch.equal(a, b)


EVERY = tuple(range(len(NAMES)))
TRANSFORMS = {
    "grad": lambda f: torch.func.grad(squares(f), EVERY),
    "vjp": lambda f: lambda *v: torch.func.vjp(f, *v)[1]((v[0], v[-1])),
    "jvp": lambda f: lambda *v: torch.func.jvp(f, v, v),
    "jacrev": lambda f: torch.func.jacrev(f, EVERY),
    "jacfwd": lambda f: torch.func.jacfwd(f, EVERY),
    "hessian": lambda f: torch.func.hessian(squares(f), (0, 2)),
    "vmap": lambda f: lambda *v: torch.func.vmap(f)(*(torch.stack([t, 2 * t]) for t in v)),
    "vmap of u": lambda f: (
        lambda *v: torch.func.vmap(f, (0, *[None] * 8))(torch.stack([v[0], 2 * v[0]]), *v[1:])
    ),
    "vmap of grad": lambda f: (
        lambda *v: torch.func.vmap(torch.func.grad(squares(f), EVERY))(
            *(torch.stack([t, -t]) for t in v)
        )
    ),
    "functional.hvp": lambda f: lambda *v: torch.autograd.functional.hvp(squares(f), v, v),
    "functional.jacobian": lambda f: (
        lambda *v: torch.autograd.functional.jacobian(f, v, vectorize=True)
    ),
    "functional.hessian": lambda f: (
        lambda *v: torch.autograd.functional.hessian(squares(f), v, vectorize=True)
    ),
    "forward jacobian": lambda f: (
        lambda *v: torch.autograd.functional.jacobian(f, v, vectorize=True, strategy="forward-mode")
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("autocast", [False, True])
def test_transforms(name, autocast):
    values = tuple(t.detach() for t in problem().values())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert_close(*both(lambda function: TRANSFORMS[name](function)(*values)))


BATCHES = {
    "is_grads_batched": lambda out, v, G: torch.autograd.grad(out, v, G, is_grads_batched=True),
    "vmap": lambda out, v, G: torch.vmap(
        lambda g: torch.autograd.grad(out, v, g, retain_graph=True)
    )(G),
    "vmap with a graph": lambda out, v, G: torch.vmap(
        lambda g: torch.autograd.grad(out, v, g, create_graph=True)
    )(G),
    "jvp": lambda out, v, G: torch.func.jvp(
        lambda g: torch.autograd.grad(out, v, g), (G[0],), (G[1],)
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_the_backward_pass_alone_may_be_transformed(name):
    def gradients(function):
        values = [t.detach().requires_grad_() for t in problem().values()]
        out, _ = function(*values)
        G = torch.randn(3, *out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(0))
        return torch.utils._pytree.tree_map(torch.Tensor.detach, BATCHES[name](out, values[:8], G))

    assert_close(*both(gradients))


def test_a_tangent_of_the_output_adjoint():
    from torch.autograd import forward_ad

    def tangents(function):
        values = [t.detach().requires_grad_() for t in problem().values()]
        out, _ = function(*values)
        with forward_ad.dual_level():
            dout = forward_ad.make_dual(torch.ones_like(out), torch.full_like(out, 0.5))
            return [
                forward_ad.unpack_dual(t).tangent
                for t in torch.autograd.grad(out, values[:8], dout)
            ]

    assert_close(*both(tangents))


def test_errors_name_the_argument_under_transforms():
    p = {name: t.detach() for name, t in problem().items()}
    for name, shape in ("B", (D, N + 1)), ("z", (1, D, L)), ("delta", (BATCH, 1, L)):
        bad = p | {name: torch.zeros(shape, dtype=torch.float64)}
        with pytest.raises(ValueError, match=f"{name} has shape"):
            torch.func.jvp(
                lambda u, bad=bad: selective_scan(**bad | {"u": u}), (p["u"],), (p["u"],)
            )


@pytest.mark.parametrize("trace", [True, False])
def test_a_tangent_is_never_lost_without_a_word(trace):
    from torch.autograd import forward_ad

    values = tuple(t.detach() for t in problem().values())
    torch._dynamo.reset()
    opaque = (
        torch.jit.trace(scan, values, check_trace=False)
        if trace
        else torch.compile(scan, backend="eager")
    )
    opaque(*values)
    with (
        forward_ad.dual_level(),
        pytest.raises((RuntimeError, NotImplementedError), match="forward-mode derivatives"),
    ):
        opaque(forward_ad.make_dual(values[0], values[0]), *values[1:])


@pytest.mark.parametrize("which", range(9))
def test_every_derivative_of_a_step(which):
    given = step()

    def results(x):
        arguments = [t.clone() if torch.is_tensor(t) else t for t in given]
        arguments[which] = x * 1.0
        return selective_state_update(*arguments), arguments[0]

    x = given[which].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        results, x, check_forward_ad=True, check_batched_grad=True, fast_mode=True
    )
    assert torch.autograd.gradgradcheck(results, x, fast_mode=True)
    for a, b in zip(
        torch.func.jacfwd(results)(x.detach()), torch.func.jacrev(results)(x.detach()), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_step_of_many_states():
    state, x, *others = step()
    states, xs = torch.stack([state, 2 * state]), torch.stack([x, 3 * x])
    expected = states.clone()
    each = [selective_state_update(s, x, *others) for s, x in zip(expected, xs, strict=True)]
    out = torch.vmap(lambda s, x: selective_state_update(s, x, *others))(states, xs)
    torch.testing.assert_close(out, torch.stack(each), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(states, expected, rtol=1e-13, atol=1e-13)


# ---- neighbours ----------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    from torch.utils.checkpoint import checkpoint

    def gradients(keep):
        p = problem()
        out, _ = keep(lambda *values: call(p, values), *p.values())
        out.sum().backward()
        return [t.grad for t in p.values()]

    ours = gradients(
        lambda function, *values: checkpoint(function, *values, use_reentrant=use_reentrant)
    )
    assert all(map(torch.equal, ours, gradients(lambda function, *values: function(*values))))


def test_hooks_of_saved_tensors():
    p = problem()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True), torch.from_numpy):
        ours = torch.autograd.grad(squares(scan)(*p.values()), p.values())
    assert all(map(torch.equal, ours, torch.autograd.grad(squares(scan)(*p.values()), p.values())))


def test_tensors_changed_before_the_backward_pass_are_noticed():
    p = problem()
    z = p["z"].detach().clone()
    out = selective_scan(**p | {"z": z})
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_flushing_denormals_changes_nothing():
    p = problem(torch.float32)
    p["u"], p["B"] = (
        p[name].detach() * 1e-20 for name in ("u", "B")
    )  # so that states and gradients are subnormal
    state, x, dt, A, B, *others = step(torch.float32)
    state, B = state * 1e-40, B * 1e-40

    def results():
        results = call(NAMES, p.values(), delta_softplus=True)
        variables = [t for t in p.values() if t.requires_grad]
        gradients = torch.autograd.grad(results, variables, [torch.ones_like(t) for t in results])
        new = state.clone()
        return [
            t.numpy(force=True)
            for t in (*results, *gradients, selective_state_update(new, x, dt, A, B, *others), new)
        ]

    expected = results()
    assert any((np.abs(a[a != 0]) < np.finfo(np.float32).tiny).any() for a in expected)
    assert torch.set_flush_denormal(True)
    try:
        ours = results()
    finally:
        torch.set_flush_denormal(False)
    for a, b in zip(ours, expected, strict=True):
        assert a.tobytes() == b.tobytes()


def test_views_that_are_negated_lazily():
    def lazily(t):
        view = torch.imag(torch.complex(torch.zeros_like(t), -t).conj())
        assert view.is_neg() and torch.equal(view, t)
        return view

    values = [t.detach() for t in problem().values()]
    for a, b in zip(scan(*map(lazily, values)), scan(*values), strict=True):
        assert torch.equal(a, b)
    ours, theirs = step(), step()
    ours = (lazily(ours[0]), *ours[1:])
    assert torch.equal(
        selective_state_update(*ours), selective_state_update(*theirs)
    ) and torch.equal(ours[0], theirs[0])


def test_subclasses_and_parameters():
    class Tagged(torch.Tensor):
        pass

    values = [t.detach() for t in problem().values()]
    for kind in Tagged, torch.nn.Parameter:
        for a, b in zip(
            scan(*(t.as_subclass(Tagged) if kind is Tagged else kind(t) for t in values)),
            scan(*values),
            strict=True,
        ):
            assert torch.equal(a.detach(), b)


def test_fake_tensors():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        values = [mode.from_tensor(t.detach()) for t in problem().values()]
        assert [tuple(t.shape) for t in scan(*values)] == [(BATCH, D, L), (BATCH, D, N)]
        for dtype in torch.float32, torch.bfloat16:
            out = selective_state_update(
                *(mode.from_tensor(t) if torch.is_tensor(t) else t for t in step(dtype))
            )
            assert out.shape == (BATCH, D) and out.dtype == dtype


def test_a_traced_scan_is_the_operator():
    values = tuple(t.detach().requires_grad_() for t in problem().values())
    traced = torch.jit.trace(scan, values, check_trace=False)
    assert "fastderiv::selective_scan" in str(traced.graph)
    for function in scan, traced:
        torch.testing.assert_close(
            torch.autograd.grad(squares(function)(*values), values),
            torch.autograd.grad(squares(loop)(*values), values),
            rtol=1e-11,
            atol=1e-12,
        )


@pytest.mark.parametrize("requires_grad", [False, True])
def test_operators_are_registered_as_pytorch_wants_them(requires_grad):
    p = [t.detach().requires_grad_(requires_grad) for t in problem().values()]
    operators = torch.ops.fastderiv
    for remember in False, True:
        torch.library.opcheck(operators.selective_scan.default, (*p, None, True, remember))
        some = *p[:5], None, None, None, None, None, False, remember
        torch.library.opcheck(operators.selective_scan.default, some)
    if not requires_grad:
        adjoints = torch.ones(BATCH, D, L).double(), torch.ones(BATCH, D, N).double()
        arguments = *adjoints, *p, None, True, torch.empty(0).double()
        torch.library.opcheck(operators.selective_scan_vjp.default, arguments)
        torch.library.opcheck(operators.selective_state_update.default, step())


def long_problem(dtype=torch.float64):
    """A problem whose states are kept: longer than an interval."""
    p = problem(dtype)
    steps = 150
    generator = torch.Generator().manual_seed(1)
    for name, t in p.items():
        if t.ndim == 3 and t.shape[-1] == L:
            t = torch.randn((*t.shape[:-1], steps), generator=generator, dtype=torch.float64)
            p[name] = t.to(dtype).requires_grad_()
    return p


def saved_sizes(function):
    """The sizes of what autograd saves while a function runs."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, id):
        function()
    return sizes


def test_states_are_kept_only_where_a_gradient_may_be_asked_for():
    p = long_problem()
    size = BATCH * D * N * (150 // 32)
    assert size in saved_sizes(lambda: selective_scan(**p))
    with torch.no_grad():
        assert not saved_sizes(lambda: selective_scan(**p))
    detached = {name: t.detach() for name, t in p.items()}
    _, _, states = torch.ops.fastderiv.selective_scan(*detached.values(), None, False, False)
    assert states.numel() == 0
    _, _, states = torch.ops.fastderiv.selective_scan(*detached.values(), None, False, True)
    assert states.numel() == size and not states.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kept_states_give_fastderivs_gradients_bit_for_bit(dtype, monkeypatch):
    """And the scan runs once, not twice."""
    p = long_problem(dtype)
    out = selective_scan(**p, delta_softplus=True)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    seen, original = [], fd.ssm.scan_adjoint

    def spy(call, softplus, kept):
        seen.append(kept)
        return original(call, softplus, kept)

    monkeypatch.setattr("fastderiv.integrations.torch._selective_scan.scan_adjoint", spy)
    grads = torch.autograd.grad(out, list(p.values()), dout, retain_graph=True)
    again = torch.autograd.grad(out, list(p.values()), dout)
    a = arrays(p)
    first = a.pop("initial_state")
    expected = fd.selective_scan_vjp(
        dout.numpy(), *a.values(), True, initial_state=first, dlast_state=np.zeros_like(first)
    )
    for ours, same, theirs in zip(grads, again, expected, strict=True):
        assert np.array_equal(ours.numpy(), theirs) and torch.equal(ours, same)
    assert len(seen) == 2 and all(kept.states.size for kept in seen)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "z"])
def test_an_argument_modified_before_the_backward_pass_is_an_error(name):
    p = {k: t.detach().clone().requires_grad_(k != name) for k, t in long_problem().items()}
    out = selective_scan(**p)
    p[name] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_checkpointing_and_double_backward_with_kept_states():
    p = list(long_problem().values())

    def loss(*values):
        return (call(NAMES, values, delta_softplus=True)[0] ** 2).sum()

    expected = torch.autograd.grad(loss(*p), p)
    for reentrant in False, True:
        result = torch.utils.checkpoint.checkpoint(loss, *p, use_reentrant=reentrant)
        found = torch.autograd.grad(result, p) if not reentrant else None
        if reentrant:
            result.backward()
            found = [t.grad for t in p]
        assert all(map(torch.equal, found, expected))
    first = torch.autograd.grad(loss(*p), p, create_graph=True)
    assert all(torch.allclose(a, b) for a, b in zip(first, expected, strict=True))
    assert torch.isfinite(torch.autograd.grad(first[0].sum(), p[1])[0]).all()


def test_compiled_with_kept_states():
    """Forward and backward are compiled, and sizes may be symbols."""

    def loss(*values):
        return (call(NAMES, values, delta_softplus=True)[0] ** 2).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    values = list(long_problem().values())
    ours, theirs = (torch.autograd.grad(f(*values), values) for f in (compiled, loss))
    assert all(map(torch.equal, ours, theirs))


def test_compiles_in_one_graph():
    def loss(*values):
        out, last = call(NAMES, [v * 2 for v in values], delta_softplus=True)
        return (out**2).sum() + last.sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        values = tuple(problem(seed=seed).values())
        assert torch.equal(compiled(*values), loss(*values))
        for ours, theirs in zip(
            *(torch.autograd.grad(f(*values), values) for f in (compiled, loss)), strict=True
        ):
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
    assert np.array_equal(out, fd.selective_state_update(*theirs)) and np.array_equal(
        ours[0], theirs[0]
    )
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
    expected = selective_state_update(
        state, *(t.float() if torch.is_tensor(t) else t for t in wide[1:])
    )
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
        (
            {"A": torch.zeros(D, N, dtype=torch.complex64)},
            TypeError,
            "A has dtype torch.complex64; expected one of torch.float32,",
        ),
        (
            {"delta": torch.zeros(BATCH, D, L, dtype=torch.int64)},
            TypeError,
            "delta has dtype torch.int64",
        ),
        (
            {"z": torch.zeros(BATCH, D, L, device="meta")},
            ValueError,
            "z is on meta; expected a CPU tensor",
        ),
        ({"C": torch.zeros(BATCH, N + 1, L)}, ValueError, r"C has shape \(2, 4, 5\); expected"),
        (
            {"cu_seqlens": torch.tensor([0.0, L])},
            TypeError,
            "cu_seqlens has dtype torch.float32; expected integers",
        ),
        (
            {"cu_seqlens": torch.tensor([False, True])},
            TypeError,
            "cu_seqlens has dtype torch.bool; expected integers",
        ),
        ({"cu_seqlens": [0, L]}, TypeError, "cu_seqlens is a list; expected a tensor of integers"),
        (
            {"cu_seqlens": torch.tensor([0, L], device="meta")},
            ValueError,
            "cu_seqlens is on meta; expected a CPU tensor",
        ),
        ({"D": 1.0}, TypeError, "D is a float; expected a tensor"),
        (
            {"u": torch.zeros(BATCH, D, L).to_sparse()},
            ValueError,
            "u is torch.sparse_coo; expected a dense tensor",
        ),
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


@pytest.mark.parametrize(
    "dtype, requires_grad", [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False)]
)
def test_states_that_overlap_themselves_are_refused(dtype, requires_grad):
    state, *others = step(dtype)
    others[0].requires_grad_(requires_grad)
    memory = torch.zeros(30, dtype=dtype)
    with pytest.raises(ValueError, match="state shares memory with itself"):
        selective_state_update(memory.as_strided(state.shape, (6, 1, 1)), *others)
    assert not memory.any()


def test_without_pytorch_it_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "try: import fastderiv.integrations.torch\n"
        "except ImportError as e: print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert "needs PyTorch" in done.stdout and "pytorch.org" in done.stdout


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autograd_keeps_16_bit_inputs_and_no_copies_of_them(dtype):
    kept = []
    p = problem(dtype)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out, _ = selective_scan(**p, delta_softplus=True, return_last_state=True)
    states = BATCH * D * N  # of one checkpoint
    assert sum(t.numel() for t in kept if t.dtype == torch.float32) <= states
    inputs = {t.data_ptr() for t in p.values()}
    assert {t.data_ptr() for t in kept if t.dtype == dtype} == inputs
    out.sum().backward()
    assert all(t.grad.dtype == dtype for t in p.values())


def test_return_last_state_may_be_none_as_some_models_pass_it():
    p = problem()
    out = selective_scan(**p, return_last_state=None)
    assert torch.equal(out, selective_scan(**p))
