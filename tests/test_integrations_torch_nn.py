"""fastderiv.integrations.torch: LSTM, GridRNN and ReversibleSGD behave as PyTorch's own."""

import contextlib
import copy
import io
import pickle
import warnings

import numpy as np
import pytest

import fastderiv as fd

torch = pytest.importorskip("torch")
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from fastderiv.integrations.torch import LSTM, GridRNN, ReversibleSGD

# PyTorch about itself, on first use of its compiler, its tracer and of forward mode
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*isinstance.treespec.*:FutureWarning"
)

T, BATCH, D, H = 6, 4, 3, 5
LENGTHS = (2, 5, 1, 5)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other cost most of the time here
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def twins(*sizes, dtype=torch.float64, **options):
    """Two modules with the same parameters: PyTorch's and ours."""
    theirs = torch.nn.LSTM(*sizes or (D, H), dtype=dtype, **options)
    ours = LSTM(*sizes or (D, H), dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def leaf(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def inputs(kind, module, dtype=torch.float64):
    """Leaves, and a function of them that calls a module: every form of its arguments."""
    states = module.num_layers * (1 + module.bidirectional)
    if kind.startswith("packed"):
        x = [leaf(n, D, dtype=dtype) for n in LENGTHS]
    elif kind.startswith("unbatched"):
        x = [leaf(T, D, dtype=dtype)]
    else:
        x = [leaf(*((BATCH, T) if module.batch_first else (T, BATCH)), D, dtype=dtype)]
    of_one = () if kind.startswith("unbatched") else (BATCH,)
    hx = [leaf(states, *of_one, H, dtype=dtype) for _ in "hc"] if kind.endswith("states") else []

    def call(module, *leaves):
        x_, hx_ = leaves[: len(x)], leaves[len(x) :]
        given = pack_sequence(x_, enforce_sorted=False) if kind.startswith("packed") else x_[0]
        out, last = module(given, tuple(hx_) if hx_ else None)
        return (out.data if isinstance(out, PackedSequence) else out), *last

    return [*x, *hx], call


def everything(module, leaves, call):
    """Results and gradients of a weighted sum of them, with the same random numbers each time."""
    leaves = [t.detach().requires_grad_() for t in leaves]
    module.zero_grad()
    torch.manual_seed(7)
    results = call(module, *leaves)
    torch.autograd.backward(results, [torch.randn_like(r) for r in results])
    return [*results, *(t.grad for t in leaves), *(p.grad for p in module.parameters())]


def assert_close(ours, theirs, tolerance=1e-12):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert a.numel() == 0 or (a - b).abs().max() <= tolerance * max(b.abs().max(), 1e-3)


# ---- LSTM ----------------------------------------------------------------------------------------

KINDS = (
    "batched",
    "batched with states",
    "unbatched",
    "unbatched with states",
    "packed",
    "packed with states",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layers, bidirectional", [(1, False), (1, True), (3, False), (2, True)])
@pytest.mark.parametrize("bias, batch_first", [(True, True), (False, False)])
def test_results_and_gradients_are_those_of_pytorch(
    kind, dtype, layers, bidirectional, bias, batch_first
):
    options = {"bidirectional": bidirectional, "bias": bias, "batch_first": batch_first}
    modules = twins(D, H, layers, dtype=dtype, dropout=0.25 if layers > 1 else 0, **options)
    leaves, call = inputs(kind, modules[0], dtype)
    theirs, ours = (everything(module, leaves, call) for module in modules)
    assert_close(ours, theirs, TOLERANCE[dtype])
    assert [t.stride() for t in ours[:3]] == [t.stride() for t in theirs[:3]]
    theirs, ours = (call(module.eval(), *leaves) for module in modules)
    assert_close(ours, theirs, TOLERANCE[dtype])


def test_a_layer_is_fastderivs_bit_for_bit():
    module, x = LSTM(D, H), torch.randn(T, BATCH, D)
    out, (h_n, c_n) = module(x)
    arrays = [t.numpy(force=True) for t in (x, *module.parameters())]
    h, last = fd.lstm(*arrays)
    for tensor, array in (out, h), (h_n[0], last[0]), (c_n[0], last[1]):
        assert np.array_equal(tensor.numpy(force=True), array)


@pytest.mark.parametrize("sorted_already", [False, True])
def test_a_packed_sequence_keeps_its_order(sorted_already):
    modules = twins(bidirectional=True)
    lengths = sorted(LENGTHS, reverse=True) if sorted_already else LENGTHS
    padded = torch.randn(5, BATCH, D, dtype=torch.float64)
    packed = pack_padded_sequence(padded, lengths, enforce_sorted=sorted_already)
    (theirs, last), (ours, our_last) = (module(packed) for module in modules)
    assert_close([ours.data, *our_last], [theirs.data, *last])
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert a is b or torch.equal(a, b)


def test_a_batch_of_nothing():
    modules = twins()
    leaves = [leaf(T, 0, D)]
    theirs, ours = (everything(m, leaves, lambda m, x: (m(x)[0], *m(x)[1])) for m in modules)
    assert_close(ours, theirs)


def wrong_calls():
    x = torch.zeros(T, BATCH, D)
    state, single = torch.zeros(1, BATCH, H), torch.zeros(1, H)
    yield "width", (x[..., :2],)
    yield "rank", (x[None],)
    yield "no steps", (x[:0],)
    yield "dtype", (x.double(),)
    yield "batch of h", (x, (state[:, :1], state))
    yield "width of c", (x, (state, state[..., :2]))
    yield "rank of states", (x, (single, single))
    yield "rank of states, unbatched", (x[:, 0], (state, state))
    yield "dtype of states", (x, (state.double(), state.double()))


@pytest.mark.parametrize("arguments", [pytest.param(a, id=name) for name, a in wrong_calls()])
def test_what_pytorch_refuses_is_refused(arguments):
    theirs, ours = twins(dtype=torch.float32)
    with pytest.raises((RuntimeError, ValueError)):
        theirs(*arguments)
    with pytest.raises((RuntimeError, ValueError)):
        ours(*arguments)


@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck_of_every_derivative(packed):
    module = LSTM(2, 2, bidirectional=True, dtype=torch.float64)
    names = [name for name, _ in module.named_parameters()]
    sizes = torch.tensor([2, 1, 1])

    def function(x, h, c, *weights):
        given = PackedSequence(x, sizes) if packed else x
        replaced = dict(zip(names, weights, strict=True))
        out, last = torch.func.functional_call(module, replaced, (given, (h, c)))
        return (out.data if packed else out), *last

    x = leaf(4, 2) if packed else leaf(2, 2, 2)
    weights = (p.detach().requires_grad_() for p in module.parameters())
    values = x, leaf(2, 2, 2), leaf(2, 2, 2), *weights
    assert torch.autograd.gradcheck(function, values, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


def test_gradcheck_in_full():
    module = LSTM(2, 3, bidirectional=True, dtype=torch.float64)
    x = leaf(3, 2, 2)
    hx = leaf(2, 2, 3), leaf(2, 2, 3)
    assert torch.autograd.gradcheck(lambda x, *hx: (module(x, hx)[0], *module(x, hx)[1]), (x, *hx))


def test_gradients_of_samples_by_vmap():
    theirs, ours = twins()
    x = torch.randn(BATCH, T, D, dtype=torch.float64)

    def loss(parameters, x):
        return torch.func.functional_call(ours, parameters, x)[0].sin().sum()

    parameters = {name: p.detach() for name, p in ours.named_parameters()}
    of_each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    theirs(x[2])[0].sin().sum().backward()
    for name, p in theirs.named_parameters():
        assert_close([of_each[name][2]], [p.grad])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["batched with states", "packed"])
def test_half_precision_is_computed_in_float32(dtype, kind):
    half = LSTM(D, H, dtype=dtype)
    wide = copy.deepcopy(half).float()
    leaves, call = inputs(kind, half, dtype)
    ours = everything(half, leaves, call)
    expected = call(wide, *(t.detach().float() for t in leaves))
    for a, b in zip(ours, expected, strict=False):
        assert a.dtype == dtype and torch.equal(a, b.to(dtype))
    assert all(t.dtype == dtype for t in ours)
    # gradients: of the same weighted sum, whose weights have 16 bits too
    wide_leaves = [t.detach().float().requires_grad_() for t in leaves]
    torch.manual_seed(7)
    weights = [torch.randn_like(r).float() for r in ours[:3]]
    torch.autograd.backward(call(wide, *wide_leaves), weights)
    gradients = [t.grad for t in (*wide_leaves, *wide.parameters())]
    for a, b in zip(ours[3:], gradients, strict=True):
        assert torch.equal(a, b.to(dtype))


def test_no_float32_copy_of_a_16_bit_tensor_is_kept():
    module, x = LSTM(64, 32, bidirectional=True, dtype=torch.bfloat16), leaf(8, 3, 64).bfloat16()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        module(x)
    shapes = {tuple(t.shape) for t in (x, *module.parameters())}
    of_inputs = [t for t in kept if tuple(t.shape) in shapes]
    assert len(of_inputs) == 2 * 5 and all(t.dtype == torch.bfloat16 for t in of_inputs)
    assert sum(t.numel() for t in kept if t.dtype == torch.float32) == 2 * 5 * 8 * 3 * 32


def test_hooks_of_saved_tensors_may_move_them():
    module, x = LSTM(D, H), torch.randn(T, BATCH, D)

    def off_by_one_number(t):
        moved = torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view(t.shape)
        return moved.copy_(t)

    expected = torch.autograd.grad(module(x)[0].sum(), module.parameters())
    with torch.autograd.graph.saved_tensors_hooks(off_by_one_number, lambda t: t):
        ours = torch.autograd.grad(module(x)[0].sum(), module.parameters())
    assert all(map(torch.equal, ours, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_gives_the_dtypes_of_pytorch(dtype):
    modules = twins(D, H, 2, dtype=dtype)
    x = torch.randn(T, BATCH, D, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = (everything(m, [x], lambda m, x: (m(x)[0], *m(x)[1])) for m in modules)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and torch.allclose(a.float(), b.float(), rtol=0.1, atol=0.05)


def test_tensors_changed_before_the_backward_pass_are_noticed():
    module, x = LSTM(D, H), torch.randn(T, BATCH, D)
    out, _ = module(x)
    with torch.no_grad():
        module.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_weights_may_be_parametrized_and_replaced():
    theirs, ours = twins()
    x = torch.randn(T, BATCH, D, dtype=torch.float64)
    for module in theirs, ours:
        parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
        torch.nn.utils.parametrizations.weight_norm(module, "weight_ih_l0")
    assert_close([ours(x)[0]], [theirs(x)[0]])
    ours(x)[0].sum().backward()
    assert all(p.grad is not None for p in ours.parameters())
    plain, replaced = LSTM(D, H), torch.nn.Parameter(torch.zeros(4 * H, D))
    plain.weight_ih_l0 = replaced
    assert torch.equal(plain(torch.randn(T, D))[0], plain(torch.randn(T, D))[0])
    plain.flatten_parameters()


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(copied):
    module, x = LSTM(D, H, 2, bidirectional=True), torch.randn(T, BATCH, D)
    twin = copied(module)
    assert type(twin) is LSTM and torch.equal(twin(x)[0], module(x)[0])
    with torch.no_grad():
        twin.weight_hh_l0.zero_()
    assert not torch.equal(twin(x)[0], module(x)[0])


def test_a_module_of_pytorch_becomes_ours_in_place():
    module, x = torch.nn.LSTM(D, H, 2, dtype=torch.float64), leaf(T, BATCH, D)
    expected = everything(module, [x], lambda m, x: (m(x)[0], *m(x)[1]))
    module.__class__ = LSTM
    assert repr(module) == f"LSTM({D}, {H}, num_layers=2)"
    assert type(module(x)[0].grad_fn) is not type(expected[0].grad_fn)
    assert_close(everything(module, [x], lambda m, x: (m(x)[0], *m(x)[1])), expected)


def test_torch_compile_breaks_its_graph_as_at_pytorchs_and_is_right():
    model = torch.nn.Sequential(LSTM(D, H))
    x = torch.randn(T, BATCH, D)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    assert torch.equal(torch.compile(model, backend=backend)(x)[0], model(x)[0])
    assert not graphs  # nothing else is left of this model


def test_torch_compile_of_the_whole_graph_where_lstms_are_allowed():
    module = LSTM(D, H, bidirectional=True, batch_first=True)
    x = leaf(BATCH, T, D, dtype=torch.float32)
    hx = torch.randn(2, BATCH, H), torch.randn(2, BATCH, H)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        for given in x, leaf(BATCH, 4, D, dtype=torch.float32):
            (ours, last), (expected, expected_last) = compiled(given, hx), module(given, hx)
            assert torch.equal(ours, expected) and all(map(torch.equal, last, expected_last))
            for a, b in zip(
                *(
                    torch.autograd.grad(out.sin().sum(), module.parameters())
                    for out in (ours, expected)
                ),
                strict=True,
            ):
                assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_fake_tensors_have_the_shapes_and_strides_of_real_ones(dtype):
    from torch._subclasses.fake_tensor import FakeTensorMode

    module = LSTM(D, H, 2, bidirectional=True, batch_first=True, dtype=dtype)
    given = torch.randn(BATCH, T, D, dtype=dtype)
    real = module(given)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = module(mode.from_tensor(given))
    for a, b in zip((real[0], *real[1]), (fake[0], *fake[1]), strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@pytest.mark.parametrize("packed", [False, True])
def test_the_operator_keeps_pytorchs_rules(packed):
    x = leaf(7 if packed else 4, D) if packed else leaf(4, 2, D)
    sizes = torch.tensor([2, 2, 2, 1]) if packed else None
    weights = leaf(4 * H, D), leaf(4 * H, H), leaf(4 * H), None
    arguments = (x, *weights, leaf(2, H), leaf(2, H), sizes, True, True)
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if not packed:  # what is kept of steps that a sequence does not have is undefined
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.fastderiv.lstm.default, arguments, test_utils=checks)


def test_whoever_watches_operators_sees_ours():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **kwargs or {})

    module, x, seen = LSTM(D, H), leaf(T, BATCH, D, dtype=torch.float32), []
    expected = torch.autograd.grad(module(x)[0].sum(), x)
    with Watching():
        found = torch.autograd.grad(module(x)[0].sum(), x)
    assert {"fastderiv.lstm.default", "fastderiv.lstm_vjp.default"} <= {*seen}
    assert torch.equal(*found, *expected)


# ---- what our LSTM leaves to PyTorch's -----------------------------------------------------------


@pytest.fixture
def _silent_so_far(monkeypatch):
    from fastderiv.integrations.torch import _lstm

    monkeypatch.setattr(_lstm, "_said", set())


def said_once(call, reason):
    """What the first of two calls returns, which must warn once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
        call()
    ours = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert len(ours) == 1 and reason in ours[0], ours
    return result


@pytest.mark.usefixtures("_silent_so_far")
def test_projections_are_left_to_pytorch_with_a_word():
    theirs, ours = twins(D, H, proj_size=2)
    x = torch.randn(T, BATCH, D, dtype=torch.float64)
    out, last = said_once(lambda: ours(x), "proj_size")
    assert all(map(torch.equal, (out, *last), (theirs(x)[0], *theirs(x)[1])))


@pytest.mark.usefixtures("_silent_so_far")
def test_other_devices_are_left_to_pytorch_with_a_word():
    module = LSTM(D, H, device="meta")
    out, _ = said_once(lambda: module(torch.empty(T, BATCH, D, device="meta")), "on meta")
    assert out.shape == (T, BATCH, H)


@pytest.mark.usefixtures("_silent_so_far")
@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights:UserWarning")
def test_what_is_exported_needs_no_fastderiv():
    theirs, ours = twins(dtype=torch.float32)
    x = torch.randn(T, BATCH, D)
    traced = said_once(lambda: torch.jit.trace(ours, x, check_trace=False), "traced or exported")
    scripted = said_once(lambda: torch.jit.script(First(ours)), "scripted")
    exported = torch.export.export(ours, (x,))
    for graph in traced.graph, exported.graph_module.code:
        assert "fastderiv::" not in str(graph) and "ops.fastderiv" not in str(graph)
    for out in traced(x)[0], scripted(x), exported.module()(x)[0]:
        torch.testing.assert_close(out, theirs(x)[0])


class First(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)[0]


# ---- GridRNN -------------------------------------------------------------------------------------

ACTIVATIONS = (None, "sigmoid", "tanh", "relu", "softplus", "silu", "gelu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(3, 4, D), (2, 4, 3, D)])
def test_a_grid_is_fastderivs_bit_for_bit(activation, shape):
    module, x = GridRNN(D, H, activation), torch.randn(shape, requires_grad=True)
    h = module(x)
    state = {name: t.numpy() for name, t in module.state_dict().items()}
    expected = fd.grid_rnn(x.detach().numpy(), **state, activation=activation)
    assert np.array_equal(h.detach().numpy(), expected)
    dh = torch.randn_like(h)
    h.backward(dh)
    grads = fd.grid_rnn_vjp(dh.numpy(), x.detach().numpy(), **state, activation=activation)
    for t, grad in zip((x, *module.parameters()), grads, strict=True):
        assert np.array_equal(t.grad.numpy(), grad)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_derivative_of_a_grid(activation):
    module = GridRNN(2, 3, activation, bias=activation != "tanh", dtype=torch.float64)
    names = [name for name, _ in module.named_parameters()]

    def function(x, *weights):
        replaced = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(module, replaced, x)

    values = leaf(2, 2, 4, 2), *(p.detach().requires_grad_() for p in module.parameters())
    how = {"fast_mode": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(function, values, check_forward_ad=True, **how)
    assert torch.autograd.gradgradcheck(function, values, check_fwd_over_rev=True, **how)


@pytest.mark.parametrize("shape", [(0, 3, D), (3, 0, D), (0, 2, 3, D), (1, 1, D), (1, 5, D)])
def test_grids_of_few_cells_in_pytorchs_operations_too(shape):
    module, x = GridRNN(D, H, dtype=torch.float64), leaf(*shape)
    together = torch.func.vmap(module)(torch.stack([x, 2 * x]))
    assert_close([*together], [module(x), module(2 * x)])
    module(x).sum().backward()
    assert x.grad.shape == x.shape


def test_a_grid_under_torch_compile_and_autocast_and_in_16_bits():
    module, x = GridRNN(D, H), torch.randn(2, 3, 4, D)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), module(x))
    for a, b in zip(
        *(torch.autograd.grad(f(x).sum(), module.parameters()) for f in (compiled, module)),
        strict=True,
    ):
        assert torch.equal(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(x), module.float()(x).bfloat16())
    half = copy.deepcopy(module).bfloat16()
    wide = copy.deepcopy(half).float()
    assert torch.equal(half(x.bfloat16()), wide(x.bfloat16().float()).bfloat16())
    arguments = x, module.W_in, module.W_west, module.W_north, None, "gelu", True
    torch.library.opcheck(torch.ops.fastderiv.grid_rnn.default, arguments)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: GridRNN(0, 1), ValueError, "input_size is 0"),
        (lambda: GridRNN(1, 2.0), TypeError, "hidden_size is a float"),
        (lambda: GridRNN(1, 1, "swish"), ValueError, "activation is 'swish'; expected one of None"),
        (lambda: GridRNN(1, 1, 3), TypeError, "activation is a int"),
        (lambda: GridRNN(1, 1)(torch.zeros(2, 2, 3)), ValueError, r"x has shape \(2, 2, 3\)"),
        (lambda: GridRNN(1, 1)(torch.zeros(2, 1)), ValueError, "x has shape"),
        (lambda: GridRNN(1, 1)(torch.zeros(2, 2, 1).int()), TypeError, "x has dtype torch.int32"),
        (lambda: GridRNN(1, 1)(torch.zeros(2, 2, 1, device="meta")), ValueError, "x is on meta"),
        (lambda: GridRNN(1, 1, device="meta")(torch.zeros(2, 2, 1)), ValueError, "W_in is on meta"),
    ],
)
def test_errors_of_a_grid_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call()


# ---- ReversibleSGD -------------------------------------------------------------------------------

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Training:
    """A small network, its optimizer with two groups, and closures for every step."""

    def __init__(self, dtype=torch.float32, **rates):
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        ).to(dtype)
        with torch.no_grad():  # numbers that fixed point does not hold
            self.net[0].weight[0] = torch.tensor([1e-9, -0.0, 5e-324, 3e-7])
        self.x = torch.randn(16, 4).to(dtype)
        first, last = self.net[0].parameters(), self.net[2].parameters()
        groups = [{"params": first, "lr": 0.05}, {"params": last, "momentum": 0.5}]
        self.optimizer = ReversibleSGD(groups, **{"lr": 0.1, "momentum": 0.9} | rates)

    def closure(self, k):
        """That of step k; every third step leaves out a parameter."""

        def compute():
            self.optimizer.zero_grad()
            loss = (self.net(self.x + k / 64) ** 2).mean() - self.net(self.x).sum() / 64
            loss.backward()
            if k % 3 == 2:
                self.net[0].bias.grad = None
            return loss.detach()

        return compute

    def bits(self):
        views = (p.detach().view(torch.uint8) for p in self.net.parameters())
        return [v.clone() for v in views]

    def forth(self, steps):
        return [self.optimizer.step(self.closure(k)) for k in steps]

    def back(self, steps):
        return [self.optimizer.unstep(self.closure(k)) for k in reversed(steps)]


def same(these, those):
    return all(map(torch.equal, these, those))


@pytest.mark.parametrize("dtype", FLOATS)
def test_steps_are_undone_bit_for_bit(dtype):
    training = Training(dtype)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, 30)
    trail, losses = [], []
    for k in range(120):  # the buffers of momentum 0.5 spill seven times
        trail.append(training.bits())
        losses += training.forth([k])
        scheduler.step()
    for k in reversed(range(120)):
        assert training.back([k]) == [losses[k]] and same(training.bits(), trail[k])
    assert training.optimizer.steps == 0 and not training.optimizer.state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_is_that_of_sgd_but_for_rounding(dtype):
    training, plain = Training(dtype), Training(dtype)
    rates = [{"params": g["params"], "lr": g["lr"]} for g in plain.optimizer.param_groups]
    plain.optimizer = torch.optim.SGD(rates, momentum=0.9)
    training.optimizer = ReversibleSGD(
        [{"params": g["params"], "lr": g["lr"]} for g in training.optimizer.param_groups],
        momentum=round(0.9 * 2**16) / 2**16,
    )
    for k in (0, 1, 3, 4, 6):
        assert_close(
            training.forth([k]), plain.forth([k]), 1e-3 if dtype == torch.float32 else 1e-4
        )


@pytest.mark.parametrize("how", ["file", "pickle", "deepcopy"])
def test_a_copy_goes_on_with_the_same_bits_in_both_directions(how):
    training = Training()
    start = training.bits()
    training.forth(range(50))
    if how == "file":
        file = io.BytesIO()
        saved = {"net": training.net.state_dict(), "optimizer": training.optimizer.state_dict()}
        torch.save(saved, file)
        file.seek(0)
        loaded, twin = torch.load(file, weights_only=True), Training(lr=7.0, momentum=0.25)
        twin.optimizer.load_state_dict(loaded["optimizer"])
        twin.net.load_state_dict(loaded["net"])
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(training))
    else:
        twin = copy.deepcopy(training)
    for way in training, twin:
        assert way.optimizer.steps == 50
        way.forth(range(50, 60))
        way.back(range(30, 60))
    assert same(training.bits(), twin.bits())
    twin.back(range(30))
    assert same(twin.bits(), start) and not same(training.bits(), start)


def test_groups_added_later_are_taken_back_to_where_they_began():
    training = Training()
    late = torch.nn.Parameter(torch.tensor([1.0, 1e-10]))
    training.forth(range(5))
    training.optimizer.add_param_group({"params": [late], "lr": 0.01})

    def closure(k):
        def compute():
            loss = training.closure(k)()
            late.grad = late.detach().sin()
            return loss

        return compute

    for k in range(5, 9):
        training.optimizer.step(closure(k))
    for k in reversed(range(5, 9)):
        training.optimizer.unstep(closure(k))
    assert late.tolist() == torch.tensor([1.0, 1e-10]).tolist()
    training.back(range(5))
    assert same(training.bits(), Training().bits())


def test_parameters_of_any_strides_and_shapes():
    weight = torch.randn(3, 4, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    parameters = weight, torch.tensor(0.5, requires_grad=True), torch.zeros(0, requires_grad=True)
    start = [p.detach().clone() for p in parameters]
    optimizer = ReversibleSGD(parameters, lr=0.1, momentum=0.9)

    def closure():
        optimizer.zero_grad()
        sum((p**2).sum() for p in parameters).backward()

    for _ in range(3):
        optimizer.step(closure)
    assert torch.allclose(weight, start[0] * (weight / start[0])[0, 0, 0, 0], rtol=1e-5)
    for _ in range(3):
        optimizer.unstep(closure)
    assert same(parameters, start) and weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("modify", ["in place", "by .data", "by numpy"])
@pytest.mark.parametrize("forth", [True, False])
def test_a_parameter_that_others_wrote_to_is_noticed(modify, forth):
    training = Training()
    training.forth(range(2))
    weight = training.net[2].weight
    kept = weight.detach().clone()
    with torch.no_grad():
        if modify == "in place":
            weight[0, 3] += 1e-3
        elif modify == "by .data":
            weight.data[0, 3] = 0.0
        else:
            weight.detach().numpy()[0, 3] *= 2
    before = training.bits()
    with pytest.raises(RuntimeError, match=r"params\[0\] of group 1 was modified since"):
        training.forth([2]) if forth else training.back([1])
    assert training.optimizer.steps == 2 and same(training.bits(), before)
    with torch.no_grad():
        weight.copy_(kept)
    training.back(range(2))
    assert same(training.bits(), Training().bits())


def closures_that_fail(training):
    def raises():
        training.closure(1)()
        raise KeyboardInterrupt

    def modifies():
        training.closure(1)()
        training.net[0].weight.data.mul_(2)

    def steps():
        training.optimizer.step(training.closure(1))

    def forgets():
        training.closure(1)()
        training.net[0].weight.grad = None

    yield raises, KeyboardInterrupt, None
    yield modifies, RuntimeError, "was modified by the closure"
    yield steps, RuntimeError, "must not step"
    yield forgets, RuntimeError, r"params\[0\] of group 0 without a gradient"
    yield training.closure(0), RuntimeError, "other gradients than those of the step"


@pytest.mark.parametrize("which", range(5))
def test_an_unstep_that_fails_changes_nothing(which):
    training = Training()
    start = training.bits()
    training.forth(range(2))
    before = training.bits()
    closure, error, message = [*closures_that_fail(training)][which]
    with pytest.raises(error, match=message):
        training.optimizer.unstep(closure)
    assert same(training.bits(), before) and training.optimizer.steps == 2
    training.back(range(2))
    assert same(training.bits(), start)


@pytest.mark.parametrize(
    "value, error, message",
    [
        (float("nan"), ValueError, r"params\[1\] of group 1: grad\[0\] is nan"),
        (1e30, OverflowError, r"params\[1\] of group 1: the step would leave the range"),
    ],
)
def test_a_step_that_fails_changes_nothing(value, error, message):
    training = Training()
    start = training.bits()
    training.forth(range(1))
    before = training.bits()
    training.closure(1)()
    training.net[2].bias.grad[0] = value
    with pytest.raises(error, match=message):
        training.optimizer.step()
    assert same(training.bits(), before) and training.optimizer.steps == 1
    training.back(range(1))
    assert same(training.bits(), start)


def one(value=1.0, **options):
    return torch.nn.Parameter(torch.tensor([value], **options))


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: ReversibleSGD([one()], lr=-1.0), ValueError, "lr of group 0 is -1.0"),
        (lambda: ReversibleSGD([one()], momentum=1.0), ValueError, "momentum of group 0 is 1.0"),
        (lambda: ReversibleSGD([one()], momentum=0.0), ValueError, "momentum of group 0 is 0.0"),
        (lambda: ReversibleSGD([one(dtype=torch.complex64)]), TypeError, "has dtype torch.complex"),
        (lambda: ReversibleSGD([one(device="meta")]), ValueError, r"params\[0\].* is on meta"),
        (lambda: ReversibleSGD([one()]).unstep(lambda: 0), ValueError, "no step is left to undo"),
        (lambda: ReversibleSGD([one()]).unstep(3), TypeError, "closure is a int"),
        (lambda: stepped(one(3e5)), OverflowError, r"params\[0\] of group 0: theta\[0\] is 300000"),
        (
            lambda: sparse(),
            ValueError,
            r"the gradient of params\[0\] of group 0 is torch.sparse_coo",
        ),
        (lambda: changed_momentum(), RuntimeError, "momentum of group 0 is 0.8, but params"),
    ],
)
def test_errors_of_the_optimizer_say_what_is_wrong(make, error, message):
    with pytest.raises(error, match=message):
        make()


def stepped(parameter, **rates):
    optimizer = ReversibleSGD([parameter], **rates)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def changed_momentum():
    optimizer = stepped(one())
    optimizer.param_groups[0]["momentum"] = 0.8
    optimizer.step()


def sparse():
    rows = torch.nn.Embedding(3, 2, sparse=True)
    rows(torch.tensor([1])).sum().backward()
    ReversibleSGD(rows.parameters()).step()


def test_a_group_that_is_refused_is_not_added():
    optimizer = ReversibleSGD([one()])
    with contextlib.suppress(ValueError):
        optimizer.add_param_group({"params": [one()], "lr": float("inf")})
    assert len(optimizer.param_groups) == 1


def test_states_of_other_parameters_are_refused():
    state = stepped(one()).state_dict()
    for other in one(dtype=torch.float64), torch.nn.Parameter(torch.zeros(2)):
        with pytest.raises(ValueError, match=r"params\[0\] of group 0: the state is of shape"):
            ReversibleSGD([other]).load_state_dict(state)
    with pytest.raises(ValueError, match="state_dict has no history"):
        ReversibleSGD([one()]).load_state_dict(torch.optim.SGD([one()]).state_dict())
    state["history"]["changes"] = []
    with pytest.raises(ValueError, match="history of 1 steps"):
        ReversibleSGD([one()]).load_state_dict(state)
