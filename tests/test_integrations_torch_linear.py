"""fastderiv.integrations.torch: the linear recurrence on tensors."""

import numpy as np
import pytest

import fastderiv as fd

torch = pytest.importorskip("torch")
from torch._subclasses import FakeTensorMode

from fastderiv.integrations.torch import linear_scan

# PyTorch about itself, on first use of its compiler and of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

SHAPE = (2, 5, 3)
FACTORS = ["of every step", "of every recurrence", "one"]


def without(shape, axis):
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def problem(dtype=torch.float64, factor="of every step", axis=1, initial=True, seed=0):
    """a, b and the initial state, each with its gradient."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"of every step": SHAPE, "of every recurrence": without(SHAPE, axis), "one": ()}
    a, b, state = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in (shapes[factor], SHAPE, without(SHAPE, axis))
    )
    return a, b, state if initial else None


def scan(axis=1, reverse=False):
    def function(a, b, state=None):
        return linear_scan(
            a, b, axis=axis, initial_state=state, reverse=reverse, return_last_state=True
        )

    return function


def loop(axis=1, reverse=False):
    """The same in PyTorch's own operations."""

    def function(a, b, state=None):
        steps = list(b.unbind(axis))
        factors = list(a.unbind(axis)) if a.shape == b.shape else [a] * len(steps)
        h, found = torch.zeros_like(steps[0]) if state is None else state, []
        for f, step in list(zip(factors, steps, strict=True))[:: -1 if reverse else 1]:
            h = f * h + step
            found.append(h)
        return torch.stack(found[:: -1 if reverse else 1], axis), h

    return function


def array(t):
    return None if t is None else t.numpy(force=True)


def permuted(t):
    """The same numbers in another order in memory."""
    return t.permute(2, 0, 1).contiguous().permute(1, 2, 0)


def spread(t):
    """The same numbers, not side by side."""
    wide = t.new_zeros((*t.shape, 2))
    return wide[..., 1].copy_(t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan_is_fastderivs_bit_for_bit_gradients_too(dtype, factor, axis, reverse):
    for initial in False, True:
        a, b, state = problem(dtype, factor, axis, initial)
        out, last = scan(axis, reverse)(a, b, state)
        options = {"axis": axis, "reverse": reverse, "initial_state": array(state)}
        expected = fd.linear_scan(array(a), array(b), return_last_state=True, **options)
        for ours, theirs in zip((out, last), expected, strict=True):
            assert ours.dtype == dtype and array(ours).tobytes() == theirs.tobytes()
        assert torch.equal(linear_scan(a, b, axis=axis, initial_state=state, reverse=reverse), out)
        dout, dlast = torch.cos(out.detach()), torch.sin(last.detach())
        variables = [t for t in (a, b, state) if t is not None]
        gradients = torch.autograd.grad([out, last], variables, [dout, dlast])
        exact = fd.linear_scan_vjp(
            array(dout), array(a), array(b), dlast_state=array(dlast), **options
        )
        for ours, theirs in zip(gradients, exact, strict=False):
            assert array(ours).tobytes() == theirs.tobytes()


@pytest.mark.parametrize("order", [permuted, spread])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_results_lie_in_memory_as_foreseen(order, factor, dtype):
    """Those of the adjoint too: what `opcheck` compares."""
    a, b, state = (t.detach() for t in problem(dtype, factor))
    b = order(b)
    operators, rest = torch.ops.fastderiv, (state, 1, True)
    out, last, _ = operators.linear_scan.default(b, a, *rest, False)
    if dtype == torch.float64:
        assert array(out).strides == fd.linear_scan(array(a), array(b), axis=1).strides
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(operators.linear_scan.default, (b, a, *rest, False), test_utils=tests)
    torch.library.opcheck(
        operators.linear_scan_vjp.default,
        (out, last, b, a, *rest, torch.empty(0)),
        test_utils=tests,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_of_expanded_tensors_are_foreseen(dtype):
    for shape in (1, 5, 3), (2, 1, 3), (2, 5, 1), (1, 5, 1):
        b = torch.ones(shape, dtype=dtype).expand(SHAPE)
        with FakeTensorMode() as mode:
            fake = linear_scan(0.5, mode.from_tensor(b))
        assert fake.stride() == linear_scan(0.5, b).stride(), shape


def test_the_operator_is_registered_as_pytorch_wants_it():
    a, b, state = problem(factor="of every recurrence")
    torch.library.opcheck(torch.ops.fastderiv.linear_scan.default, (b, a, state, 1, True, False))
    b, state = b.detach(), state.detach()
    with FakeTensorMode() as mode:
        b, state = mode.from_tensor(b), mode.from_tensor(state)
        out, last = linear_scan(0.5, b, axis=1, initial_state=state, return_last_state=True)
        assert (out.shape, last.shape) == (SHAPE, without(SHAPE, 1))


def test_nothing_is_copied_on_the_way_in(monkeypatch):
    seen, original = [], fd.linear_scan

    def spy(a, b, *, initial_state, **options):
        seen.extend([a, b, initial_state])
        return original(a, b, initial_state=initial_state, **options)

    monkeypatch.setattr(fd, "linear_scan", spy)
    a, b, state = (t.detach() for t in problem(torch.float32))
    given = permuted(a), spread(b), state
    scan()(*given)
    assert [x.ctypes.data for x in seen] == [t.data_ptr() for t in given]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("axis, reverse", [(0, True), (1, False), (2, True)])
@pytest.mark.parametrize("initial", [False, True])
def test_gradients_of_every_order_and_mode(factor, axis, reverse, initial):
    values = tuple(t for t in problem(factor=factor, axis=axis, initial=initial) if t is not None)
    function = scan(axis, reverse)
    assert torch.autograd.gradcheck(function, values, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


def test_one_recurrence_with_scalar_states():
    a, b, state = (torch.tensor(v, dtype=torch.float64) for v in (0.5, [1.0, 0.0, 4.0], 2.0))
    values = tuple(t.requires_grad_() for t in (a, b, state))
    out, last = scan(0)(*values)
    assert out.tolist() == [2.0, 1.0, 4.5] and last.shape == () and last == 4.5
    assert torch.autograd.gradcheck(scan(0), values)
    assert linear_scan(0.5, b, initial_state=state).tolist() == out.tolist()
    assert linear_scan(1, b, reverse=True).tolist() == [5.0, 4.0, 4.0]
    assert linear_scan(0.3, torch.ones(2)).dtype == torch.float32


def test_no_steps_and_no_recurrences():
    for shape in (0, 3), (4, 0):
        a, b, state = (
            torch.ones(s, dtype=torch.float64, requires_grad=True) for s in ((), shape, shape[1:])
        )
        out, last = scan(0)(a, b, state)
        assert out.shape == shape and torch.equal(last, state)
        gradients = torch.autograd.grad(out.sum() + last.sum(), (a, b, state))
        assert not gradients[0] and torch.equal(gradients[2], torch.ones_like(state))


SCANS = {"ours": scan(1, True), "loop": loop(1, True)}
TRANSFORMS = {
    "jvp": lambda f: lambda *v: torch.func.jvp(f, v, v),
    "vmap": lambda f: lambda *v: torch.func.vmap(f)(*(torch.stack([t, 2 * t]) for t in v)),
    "vmap of b": lambda f: (
        lambda a, b, state: torch.func.vmap(f, (None, 0, None))(a, torch.stack([b, 2 * b]), state)
    ),
    "vmap of grad": lambda f: (
        lambda *v: torch.func.vmap(
            torch.func.grad(lambda *u: sum((r**2).sum() for r in f(*u)), (0, 1, 2))
        )(*(torch.stack([t, -t]) for t in v))
    ),
    "jacrev": lambda f: torch.func.jacrev(f, (0, 1, 2)),
    "hessian": lambda f: torch.func.hessian(lambda *v: (f(*v)[0] ** 2).sum(), (0, 1)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("factor", FACTORS)
def test_transforms(name, factor):
    values = tuple(t.detach() for t in problem(factor=factor))
    ours, theirs = (TRANSFORMS[name](f)(*values) for f in SCANS.values())
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
def test_16_bit_numbers_are_computed_in_float32_and_kept_as_they_are(autocast):
    a, b, state = problem(torch.bfloat16)
    a = a.detach().half().requires_grad_()
    wide = [t.detach().float().requires_grad_() for t in (a, b, state)]
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        ours = scan()(a, b, state)
    theirs = scan()(*wide)
    assert {t.data_ptr() for t in kept if t.numel()} == {t.data_ptr() for t in (a, b, state)}
    assert ours[0].dtype == torch.bfloat16 and torch.equal(ours[0], theirs[0].bfloat16())
    assert ours[1].dtype == torch.float32 and torch.equal(ours[1], theirs[1])
    for out, last in ours, theirs:
        (out.sum() + 2 * last.sum()).backward()
    for t, exact in zip((a, b, state), wide, strict=True):
        assert t.grad.dtype == t.dtype and torch.equal(t.grad, exact.grad.to(t.dtype))


def test_one_float64_makes_it_float64():
    a, b, state = problem(torch.float32)
    out, last = scan()(a.double(), b, state)
    exact = scan()(a.double(), b.double(), state.double())
    assert out.dtype == torch.float32 and torch.equal(out, exact[0].float())
    assert torch.equal(last, exact[1])


def test_compiled_forward_and_backward_are_one_graph_each():
    def loss(r, x, state):
        a = torch.sigmoid(r)
        h, last = linear_scan(a, (1 - a) * x, axis=1, initial_state=state, return_last_state=True)
        return (h**2).sum() + last.sum() + linear_scan(0.5, h).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for seed in 0, 1:
        r, x, state = problem(seed=seed)
        values = [permuted(t.detach()).requires_grad_() for t in (r, x)] + [state]
        assert torch.equal(compiled(*values), loss(*values))
        for ours, theirs in zip(
            *(torch.autograd.grad(f(*values), values) for f in (compiled, loss)), strict=True
        ):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"b": np.zeros(3)}, TypeError, "b is a ndarray; expected a tensor"),
        ({"a": "half"}, TypeError, "a is a str; expected a tensor"),
        ({"a": torch.zeros(SHAPE, dtype=torch.complex64)}, TypeError, "a has dtype torch.complex"),
        ({"b": torch.zeros(SHAPE, device="meta")}, ValueError, "b is on meta; expected a CPU"),
        ({"a": torch.zeros(5)}, ValueError, r"a has shape \(5,\); expected that of b, \(2, 5, 3\)"),
        ({"initial_state": torch.zeros(3)}, ValueError, r"initial_state has shape \(3,\); expect"),
        ({"axis": 3}, IndexError, "axis 3 is out of bounds for b, which has 3 axes"),
        ({"axis": 1.0}, TypeError, "axis is 1.0; expected an integer"),
        ({"b": torch.zeros(())}, ValueError, r"b has shape \(\); expected at least one axis"),
        ({"reverse": np.ones(2)}, TypeError, "reverse is"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    a, b, state = problem(torch.float32)
    with pytest.raises(error, match=message):
        linear_scan(**{"a": a, "b": b, "axis": 1, "initial_state": state} | change)
