"""fastderiv.integrations.torch: the causal convolution and its steps on tensors."""

import numpy as np
import pytest

import fastderiv as fd

torch = pytest.importorskip("torch")
from torch._subclasses import FakeTensorMode

from fastderiv.integrations.torch import causal_conv1d, causal_conv1d_update

# PyTorch about itself, on first use of its compiler and of forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

BATCH, D, K, L = 2, 4, 3, 8
NAMES = ("x", "weight", "bias", "initial_states")
SHAPES = {"x": (BATCH, D, L), "weight": (D, K), "bias": (D,), "initial_states": (BATCH, D, K - 1)}
# three sequences and padding behind them; padding, then a sequence of one step, then another
SEQ_IDX = torch.tensor([[0, 0, 0, 1, 2, 2, -1, -1], [-1, 5, 4, 4, 4, 4, 4, 4]], dtype=torch.int32)
SEQUENCES = ((0, 0, 3), (0, 3, 4), (0, 4, 6), (1, 1, 2), (1, 2, 8))  # row, start, stop
STARTS = torch.tensor([0, 3, 3, 4, L])  # one of them empty


def time_last(t):
    return t.contiguous()


def channels_last(t):
    return t.swapaxes(-1, -2).contiguous().swapaxes(-1, -2)


def of_a_projection(t):
    """Some columns of a wider array (batch, L, 2 D + 1), as models cut them out."""
    wide = t.new_zeros((*t.shape[:-2], t.shape[-1], 2 * t.shape[-2] + 1))
    columns = wide[..., 1 : t.shape[-2] + 1]
    return columns.copy_(t.swapaxes(-1, -2)).swapaxes(-1, -2)


ORDERS = [time_last, channels_last, of_a_projection]


def problem(dtype=torch.float64, without=(), seed=0, **shapes):
    """Every tensor of a convolution, each with its gradient, as keyword arguments."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in (SHAPES | shapes).items()
    }
    return {n: t.to(dtype).requires_grad_() for n, t in drawn.items() if n not in without}


def arrays(p, **other):
    """The arguments of the NumPy function."""
    given = {name: t.numpy(force=True) for name, t in p.items()}
    if "initial_states" in given:
        given["initial_state"] = given.pop("initial_states")
    return given | other


def plain(x, weight, bias=None, initial_states=None, activation=None):
    """The convolution in PyTorch's own operations."""
    taps, steps = weight.shape[1], x.shape[-1]
    before = x.new_zeros(*x.shape[:-1], taps - 1) if initial_states is None else initial_states
    inputs = torch.cat([before, x], -1)
    sums = torch.stack([(inputs[..., i : i + taps] * weight).sum(-1) for i in range(steps)], -1)
    sums = sums if bias is None else sums + bias[:, None]
    return sums * torch.sigmoid(sums) if activation else sums, inputs[..., steps:]


def call(names, values, **options):
    return causal_conv1d(
        **dict(zip(names, values, strict=True)), return_final_states=True, **options
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("without", [(), ("bias", "initial_states")])
def test_convolution_is_fastderivs_bit_for_bit_and_lies_as_that(dtype, order, without):
    p = problem(dtype, without)
    p["x"] = order(p["x"].detach())
    ours = causal_conv1d(**p, activation="silu", return_final_states=True)
    theirs = fd.causal_conv1d(**arrays(p, activation="silu", return_last_state=True))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype and a.numpy(force=True).tobytes() == b.tobytes()
        assert a.numpy(force=True).strides == b.strides
    assert torch.equal(ours[0], causal_conv1d(**p, activation="swish"))


def test_arguments_are_those_of_the_original_in_order():
    x, weight, bias, first = problem().values()
    states = torch.empty(BATCH, D, K - 1, dtype=torch.float64)
    out, last = causal_conv1d(x, weight, bias, SEQ_IDX, first, True, states, "silu")
    expected = causal_conv1d(
        x, weight, bias=bias, seq_idx=SEQ_IDX, initial_states=first, activation="silu"
    )
    assert torch.equal(out, expected) and last is states


@pytest.mark.parametrize("packed", [False, True])
def test_no_signal_is_copied_on_the_way_in(packed, monkeypatch):
    p = problem(torch.float32)
    p["x"] = of_a_projection(p["x"].detach())
    seen, original = [], fd.causal_conv1d

    def spy(x, *others, **options):
        seen.append(x)
        return original(x, *others, **options)

    monkeypatch.setattr(fd, "causal_conv1d", spy)
    causal_conv1d(**p, seq_idx=SEQ_IDX if packed else None)
    rows = [p["x"]] if not packed else list(p["x"])
    assert [a.ctypes.data for a in seen] == [t.data_ptr() for t in rows]
    assert all(a.strides == t.numpy().strides for a, t in zip(seen, rows, strict=True))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_sequences_of_seq_idx_are_those_of_calls_of_their_own(order, activation):
    p = problem(torch.float32)
    p["x"] = order(p["x"].detach()).requires_grad_()
    first = p.pop("initial_states")
    out, last = causal_conv1d(
        **p, seq_idx=SEQ_IDX, initial_states=first, activation=activation, return_final_states=True
    )
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(out, [*p.values(), first], dout)
    expected, sums = torch.zeros_like(p["x"]), [0, 0]
    for row, start, stop in SEQUENCES:
        alone = {n: t.detach().clone().requires_grad_() for n, t in p.items()}
        x = alone["x"] = p["x"].detach()[row, :, start:stop].requires_grad_()
        state = first.detach()[row].requires_grad_() if start == 0 else None
        y, end = causal_conv1d(
            **alone, initial_states=state, activation=activation, return_final_states=True
        )
        assert torch.equal(out[row, :, start:stop], y)
        if stop == L:
            assert torch.equal(last[row], end)
        y.backward(dout[row, :, start:stop])
        expected[row, :, start:stop] = x.grad
        sums = [s + alone[n].grad for s, n in zip(sums, ("weight", "bias"), strict=True)]
        if start == 0:
            assert torch.equal(gradients[3][row], state.grad)
    assert not out[:, :, :][(SEQ_IDX < 0)[:, None].expand_as(out)].any()
    assert torch.equal(gradients[0], expected) and not gradients[3][1].any()
    for ours, theirs in zip(gradients[1:3], sums, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_no_sequence_sees_another_nor_padding():
    p = problem(torch.float32, without=["initial_states"])
    expected = causal_conv1d(**p, seq_idx=SEQ_IDX)
    x = p["x"].detach().clone()
    for hidden in SEQ_IDX == 1, SEQ_IDX < 0:
        x.swapaxes(1, 2)[hidden] = torch.nan
    others = (SEQ_IDX != 1)[:, None].expand_as(x)
    x.requires_grad_()
    out = causal_conv1d(**p | {"x": x}, seq_idx=SEQ_IDX)
    assert torch.equal(out[others], expected[others]) and out[0, :, 3].isnan().all()
    (dx,) = torch.autograd.grad(out[others].sum(), x)
    assert dx[others].isfinite().all()


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.uint8])
@pytest.mark.parametrize("unbatched", [False, True])
def test_seq_idx_of_one_row_is_cu_seqlens(kind, unbatched):
    p = problem(without=["initial_states"], x=(D, L) if unbatched else (1, D, L))
    numbers = torch.tensor([7, 7, 7, 3, 4, 4, 4, 4], dtype=kind)
    ours = causal_conv1d(**p, seq_idx=numbers if unbatched else numbers[None])
    theirs, states = causal_conv1d(**p, cu_seqlens=STARTS, return_final_states=True)
    expected = fd.causal_conv1d(**arrays(p, cu_seqlens=STARTS.numpy(), return_last_state=True))
    assert torch.equal(ours, theirs) and np.array_equal(theirs.detach(), expected[0])
    assert states.shape == (4, D, K - 1) and np.array_equal(states.detach(), expected[1])


@pytest.mark.parametrize("shape", [(BATCH, D, 0), (0, D, L), (D, 0)])
def test_nothing_to_convolve(shape):
    states = (*shape[:-1], K - 1)
    p = problem(x=shape, initial_states=states)
    numbers = torch.zeros((*shape[:-2], shape[-1]), dtype=torch.int32)
    out, last = causal_conv1d(**p, seq_idx=numbers, return_final_states=True)
    assert out.shape == shape and torch.equal(last, p["initial_states"])
    gradients = torch.autograd.grad(out.sum() + last.sum(), list(p.values()))
    assert [g.shape for g in gradients] == [t.shape for t in p.values()]
    assert not gradients[1].any() and (gradients[3] == 1).all()


# ---- gradients -----------------------------------------------------------------------------------

PACKINGS = {"": {}, "seq_idx": {"seq_idx": SEQ_IDX}, "cu_seqlens": {"cu_seqlens": STARTS}}


def packed_problem(packing, without=(), dtype=torch.float64):
    shapes = {} if packing != "cu_seqlens" else {"x": (1, D, L), "initial_states": (4, D, K - 1)}
    return problem(dtype, without, **shapes)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    "activation, without",
    [("silu", ()), (None, ()), ("silu", ("bias",)), ("silu", ("initial_states",))],
)
def test_gradients_of_every_order_and_mode(packing, activation, without):
    p = packed_problem(packing, without)

    def function(*values):
        return call(p, values, activation=activation, **PACKINGS[packing])

    values = tuple(p.values())
    assert torch.autograd.gradcheck(function, values, fast_mode=not activation or bool(without))
    assert torch.autograd.gradcheck(function, values, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


@pytest.mark.parametrize("packing", PACKINGS)
def test_gradients_are_fastderivs_bit_for_bit_and_the_same_in_pytorchs_operations(packing):
    """Those that are computed for torch.func agree with the operator's."""
    p = packed_problem(packing)
    values = tuple(t.detach() for t in p.values())

    def loss(*values):
        out, last = call(p, values, activation="silu", **PACKINGS[packing])
        return (out**3).sum() + (last**2).sum()

    ours = torch.autograd.grad(loss(*p.values()), list(p.values()))
    steps = torch.func.grad(loss, tuple(range(4)))(*values)
    torch.testing.assert_close(ours, steps, rtol=1e-12, atol=1e-12)
    if packing != "seq_idx":
        starts = PACKINGS[packing].get("cu_seqlens")
        options = {"activation": "silu", "cu_seqlens": starts if starts is None else starts.numpy()}
        out, last = fd.causal_conv1d(**arrays(p, **options, return_last_state=True))
        dout = 3 * torch.from_numpy(out) ** 2
        theirs = fd.causal_conv1d_vjp(
            dout=dout.numpy(), dlast_state=2 * last, **arrays(p, **options)
        )
        for a, b in zip(ours, theirs, strict=True):
            assert np.array_equal(a, b)


def plain_of_values(*values):
    return plain(*values, activation="silu")


def ours_of_values(*values):
    return call(NAMES, values, activation="silu")


TRANSFORMS = {
    "jvp": lambda f: lambda *v: torch.func.jvp(f, v, v),
    "vmap": lambda f: lambda *v: torch.func.vmap(f)(*(torch.stack([t, 2 * t]) for t in v)),
    "vmap of grad": lambda f: (
        lambda *v: torch.func.vmap(
            torch.func.grad(lambda *u: sum((r**2).sum() for r in f(*u)), (0, 1, 2, 3))
        )(*(torch.stack([t, -t]) for t in v))
    ),
    "jacrev": lambda f: torch.func.jacrev(f, (0, 1, 2, 3)),
    "hessian": lambda f: torch.func.hessian(lambda *v: (f(*v)[0] ** 2).sum(), (0, 1)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("autocast", [False, True])
def test_transforms(name, autocast):
    values = tuple(t.detach() for t in problem().values())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours, theirs = (TRANSFORMS[name](f)(*values) for f in (ours_of_values, plain_of_values))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_final_states_are_written_where_asked_and_carry_gradients():
    p = problem()
    target = torch.zeros(BATCH, D, K - 1, dtype=torch.float32)
    _, last = causal_conv1d(**p, final_states_out=target, return_final_states=True)
    assert last is target and torch.equal(target.detach(), p["x"].detach()[..., 1 - K :].float())
    (dx,) = torch.autograd.grad(last.sum(), p["x"])
    assert dx.sum() == BATCH * D * (K - 1) and not dx[..., : 1 - K].any()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_signals_are_computed_in_float32_and_kept_as_they_are(packing, dtype):
    p = packed_problem(packing, dtype=dtype)
    p["weight"] = p["weight"].detach().float().requires_grad_()
    wide = {name: t.detach().float().requires_grad_() for name, t in p.items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours = call(p, p.values(), activation="silu", **PACKINGS[packing])
    theirs = call(wide, wide.values(), activation="silu", **PACKINGS[packing])
    arguments = {t.data_ptr() for t in (*p.values(), SEQ_IDX, STARTS)}
    assert {t.data_ptr() for t in kept if t.numel()} <= arguments
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype and torch.equal(a, b.to(dtype))
    dout = torch.randn(ours[0].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours[0].backward(dout)
    theirs[0].backward(dout.float())
    for name, t in p.items():
        assert t.grad.dtype == t.dtype and torch.equal(t.grad, wide[name].grad.to(t.dtype)), name


def test_autocast_leaves_the_convolution_alone():
    p = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = causal_conv1d(**p, activation="silu")
    assert out.dtype == torch.float32 and torch.equal(out, causal_conv1d(**p, activation="silu"))


# ---- compilers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    "order, dtype",
    [
        (time_last, torch.float64),
        (channels_last, torch.float64),
        (channels_last, torch.bfloat16),
        (of_a_projection, torch.bfloat16),
    ],
)
def test_the_operator_is_registered_as_pytorch_wants_it(packing, order, dtype):
    p = packed_problem(packing, dtype=dtype)
    values = [order(p.pop("x").detach()).requires_grad_(), *p.values()]
    options = PACKINGS[packing]
    constants = options.get("seq_idx"), options.get("cu_seqlens"), "silu"
    operators = torch.ops.fastderiv
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if (order, dtype, packing) == (channels_last, torch.float64, "seq_idx"):
        tests.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(
        operators.causal_conv1d.default, (*values, *constants, False), test_utils=tests
    )
    detached = [t.detach() for t in values]
    out, last, _ = operators.causal_conv1d(*detached, *constants, False)
    torch.library.opcheck(
        operators.causal_conv1d_vjp.default,
        (out, last, *detached, *constants, torch.empty(0)),
        test_utils=tests[:3],
    )


def test_strides_of_expanded_and_spread_signals_are_foreseen():
    weight = torch.ones(D, K, dtype=torch.float64)
    for x in (
        torch.ones(1, D, L, dtype=torch.bfloat16).expand(BATCH, D, L),
        channels_last(torch.ones(1, D, L)).expand(BATCH, D, L),
        torch.ones(BATCH, 1, L).expand(BATCH, D, L),
        torch.ones(BATCH, D, 1).expand(BATCH, D, L),
        torch.ones(BATCH, L, 2 * D)[..., ::2].transpose(1, 2),
    ):
        with FakeTensorMode() as mode:
            fake = causal_conv1d(mode.from_tensor(x), mode.from_tensor(weight))
        real = causal_conv1d(x, weight)
        assert (fake.stride(), fake.dtype) == (real.stride(), real.dtype)


def test_compiled_forward_and_backward_are_one_graph_each():
    def loss(xz, weight, bias, numbers):
        x = xz[..., :D].transpose(1, 2)
        out, last = causal_conv1d(x, weight, bias, numbers, None, True, None, "silu")
        return (out**2).sum() + last.sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    _, weight, bias, _ = problem().values()
    xz = torch.randn(BATCH, L, 2 * D, dtype=torch.float64, requires_grad=True)
    for numbers in SEQ_IDX, SEQ_IDX.flip(0):  # the second meets no new shape
        values = xz, weight, bias
        assert torch.equal(compiled(*values, numbers), loss(*values, numbers))
        for ours, theirs in zip(
            *(torch.autograd.grad(f(*values, numbers), values) for f in (compiled, loss)),
            strict=True,
        ):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": np.zeros((BATCH, D, L))}, TypeError, "x is a ndarray; expected a tensor"),
        ({"weight": None}, TypeError, "weight is a NoneType; expected a tensor"),
        ({"bias": torch.zeros(D, dtype=torch.int64)}, TypeError, "bias has dtype torch.int64"),
        (
            {"x": torch.zeros(BATCH, D, L, device="meta")},
            ValueError,
            "x is on meta; expected a CPU tensor",
        ),
        ({"weight": torch.zeros(D + 1, K)}, ValueError, r"weight has shape \(5, 3\); expected"),
        ({"bias": torch.zeros(1)}, ValueError, r"bias has shape \(1,\); expected"),
        (
            {"initial_states": torch.zeros(BATCH, D, K)},
            ValueError,
            r"initial_states? has shape \(2, 4, 3\); expected \(batch, D, K - 1\)",
        ),
        ({"activation": "gelu"}, ValueError, "activation is 'gelu'; expected None, 'silu'"),
        ({"seq_idx": SEQ_IDX.float()}, TypeError, "seq_idx has dtype torch.float32; expected int"),
        ({"seq_idx": SEQ_IDX[:1]}, ValueError, r"seq_idx has shape \(1, 8\); expected \(batch, L"),
        (
            {"seq_idx": SEQ_IDX.to("meta")},
            ValueError,
            "seq_idx is on meta; expected a CPU tensor",
        ),
        ({"cu_seqlens": STARTS}, ValueError, "cu_seqlens packs sequences along L and needs batch"),
        (
            {"seq_idx": SEQ_IDX, "cu_seqlens": STARTS},
            ValueError,
            "both seq_idx and cu_seqlens say where sequences begin",
        ),
        (
            {"return_final_states": True, "final_states_out": torch.zeros(BATCH, D, K)},
            ValueError,
            r"final_states_out has shape \(2, 4, 3\); expected that of the final states, \(2, 4, 2",
        ),
        ({"return_final_states": np.ones(2)}, TypeError, "return_final_states is"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        causal_conv1d(**problem() | change)


# ---- single steps --------------------------------------------------------------------------------


def step_problem(dtype=torch.float64, steps=None, width=K + 1, rows=BATCH, seed=0):
    """x, state, weight and bias of steps."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(BATCH, D) if steps is None else (BATCH, D, steps), (rows, D, width), (D, K), (D,)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def slow_steps(x, states, weight, bias, counts, indices):
    """Steps of states that may be circular buffers and rows of a pool, one number at a time."""
    out, states = torch.zeros_like(x), states.clone()
    inputs, results = (t if t.ndim == 3 else t[..., None] for t in (x, out))
    width = states.shape[-1]
    for i, signal in enumerate(inputs):
        row = i if indices is None else int(indices[i])
        for s in range(inputs.shape[-1] if row >= 0 else 0):
            here = width if counts is None else int(counts[i]) + s
            before = [states[row, :, (here - K + 1 + k) % width] for k in range(K - 1)]
            taps = torch.stack([*before, signal[:, s]], -1)
            total = (weight * taps).sum(-1) + bias
            results[i, :, s] = total * torch.sigmoid(total)
            if counts is None:
                states[row] = torch.cat([states[row, :, 1:], signal[:, s, None]], -1)
            else:
                states[row, :, here % width] = signal[:, s]
    return out, states


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [None, 1, 6])
@pytest.mark.parametrize("unbatched", [False, True])
def test_steps_are_fastderivs_bit_for_bit_and_in_place(dtype, steps, unbatched):
    x, state, weight, bias = step_problem(dtype, steps)
    x, state = (x[0], state[0]) if unbatched else (x, state)
    theirs = state.numpy().copy()
    memory, version = state.data_ptr(), state._version
    out = causal_conv1d_update(x, state, weight, bias, "silu")
    expected = fd.causal_conv1d_update(x.numpy(), theirs, weight.numpy(), bias.numpy(), "silu")
    assert out.shape == x.shape and np.array_equal(out, expected)
    assert np.array_equal(state, theirs)
    assert state.data_ptr() == memory and state._version > version


def test_steps_one_by_one_are_the_convolution_bit_for_bit():
    p = problem(torch.float32)
    p = {name: t.detach() for name, t in p.items()}
    state = p["initial_states"].clone()
    expected, last = causal_conv1d(**p, activation="silu", return_final_states=True)
    for i in range(L):
        x = p["x"][..., i]
        out = causal_conv1d_update(x, state, p["weight"], p["bias"], "silu")
        assert torch.equal(out, expected[..., i])
    assert torch.equal(state, last)


@pytest.mark.parametrize("steps", [None, 7])
@pytest.mark.parametrize("width", [K - 1, K + 2])
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("indices", [None, (2, 3), (4, 1), (3, -1), (-2, -1)])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_circular_buffers_and_rows_of_a_pool(steps, width, circular, indices, requires_grad):
    rows = BATCH if indices is None else 5
    x, states, weight, bias = step_problem(steps=steps, width=width, rows=rows)
    places = [
        torch.tensor([0, 12], dtype=torch.int32) if circular else None,
        None if indices is None else torch.tensor(indices, dtype=torch.int32),
    ]
    expected = slow_steps(x, states, weight, bias, *places)
    out = causal_conv1d_update(
        x, states, weight.requires_grad_(requires_grad), bias, "silu", *places
    )
    assert out.requires_grad == requires_grad
    for ours, theirs in zip((out, states), expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("steps", [None, 7])
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("pool", [False, True])
def test_steps_are_differentiable_where_asked(steps, circular, pool):
    given = [t.requires_grad_() for t in step_problem(steps=steps, rows=5 if pool else BATCH)]
    places = [
        torch.tensor([1, 12]) if circular else None,
        torch.tensor([3, -1]) if pool else None,
    ]

    def results(x, state, *parameters):
        state = state.clone()
        return causal_conv1d_update(x, state, *parameters, "silu", *places), state

    with torch.no_grad():
        expected = results(*given)
    for ours, theirs in zip(results(*given), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.autograd.gradcheck(results, given, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(results, given, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("pool", [False, True])
def test_steps_of_16_bit_states_are_computed_in_float32(dtype, requires_grad, pool):
    x, state, weight, bias = step_problem(dtype, rows=5 if pool else BATCH)
    indices = torch.tensor([3, -1]) if pool else None
    wide = state.float()
    expected = causal_conv1d_update(
        x.float(), wide, weight.float(), bias.float(), "silu", None, indices
    )
    weight.requires_grad_(requires_grad)
    out = causal_conv1d_update(x, state, weight, bias, "silu", None, indices)
    assert out.dtype == state.dtype == dtype
    assert torch.equal(out, expected.to(dtype)) and torch.equal(state, wide.to(dtype))


def test_a_pool_of_16_bits_is_not_copied_whole():
    """Only the rows of the batch may be."""
    rows = 1 << 14
    pool = torch.zeros(rows, D, K, dtype=torch.bfloat16)
    x, _, weight, bias = step_problem(torch.bfloat16)
    with torch.profiler.profile(profile_memory=True) as profile:
        causal_conv1d_update(x, pool, weight, bias, None, None, torch.tensor([rows - 1, 7]))
    taken = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert 0 < taken < pool.numel()
    assert pool.any(-1).any(-1).nonzero().flatten().tolist() == [7, rows - 1]


def test_a_graph_that_needs_the_old_state_notices_the_step():
    x, state, weight, bias = step_problem()
    for indices in None, torch.tensor([1, 0]):
        factor = torch.ones((), dtype=state.dtype, requires_grad=True)
        product = factor * state
        with torch.no_grad():
            causal_conv1d_update(x, state, weight, bias, None, None, indices)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()


def test_states_of_any_strides_in_inference_mode_and_negated_lazily():
    x, state, weight, bias = step_problem(torch.float32)
    expected = state.clone()
    out = causal_conv1d_update(x, expected, weight, bias)
    for order in ORDERS:
        ours = order(state.clone())
        with torch.inference_mode():
            assert torch.equal(causal_conv1d_update(x, ours, weight, bias), out)
        assert torch.equal(ours, expected)
    lazy = torch.imag(torch.complex(torch.zeros_like(state), -state).conj())
    assert lazy.is_neg()
    assert torch.equal(causal_conv1d_update(x, lazy, weight, bias), out)
    assert torch.equal(lazy, expected)


def test_compiled_steps_update_the_state():
    x, state, weight, bias = step_problem()
    indices = torch.tensor([3, -1])

    def twice(x, state, pool, weight):
        first = causal_conv1d_update(x, state, weight, bias, "silu")
        return (
            first
            + causal_conv1d_update(first, state, weight, bias)
            + causal_conv1d_update(x, pool, weight, bias, None, None, indices)
        )

    pool = torch.randn(5, D, K, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    for gradient in False, True:
        weight.requires_grad_(gradient)
        ours, theirs = ((state.clone(), pool.clone()) for _ in range(2))
        results = [f(x, *states, weight) for f, states in ((compiled, ours), (twice, theirs))]
        assert torch.equal(*results) and all(map(torch.equal, ours, theirs))
        if gradient:
            gradients = [torch.autograd.grad(r.sum(), weight)[0] for r in results]
            torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_of_steps_is_registered_as_pytorch_wants_it(dtype):
    given = step_problem(dtype, steps=2, rows=5)
    places = torch.tensor([1, 9]), torch.tensor([3, -1])
    operator = torch.ops.fastderiv.causal_conv1d_update.default
    torch.library.opcheck(operator, (*given, "silu", *places))
    torch.library.opcheck(operator, (*step_problem(dtype), None, None, None))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": [1.0]}, TypeError, "x is a list; expected a tensor"),
        ({"x": torch.zeros(BATCH, D + 1)}, ValueError, r"x has shape \(2, 5\); expected \(2, 4\)"),
        ({"x": torch.zeros(BATCH, D, 1, 1)}, ValueError, r"x has shape \(2, 4, 1, 1\); expected"),
        ({"conv_state": torch.zeros(D)}, ValueError, r"conv_state has shape \(4,\); expected"),
        (
            {"conv_state": torch.zeros(BATCH, D, K - 2)},
            ValueError,
            "conv_state has shape .* W to be at least K - 1 = 2",
        ),
        (
            {"conv_state": torch.zeros(BATCH, D, K, dtype=torch.int64)},
            TypeError,
            "conv_state has dtype torch.int64",
        ),
        (
            {"conv_state": torch.zeros(BATCH, D, K, device="meta")},
            ValueError,
            "conv_state is on meta; expected a CPU tensor",
        ),
        (
            {"conv_state": torch.zeros(1, D, K).expand(BATCH, D, K)},
            ValueError,
            "conv_state is expanded",
        ),
        (
            {"conv_state": torch.zeros(30, dtype=torch.bfloat16).as_strided((2, 4, 4), (6, 1, 1))},
            ValueError,
            "conv_state shares memory with itself",
        ),
        ({"weight": torch.zeros(D)}, ValueError, r"weight has shape \(4,\); expected \(D, K\)"),
        ({"activation": "relu"}, ValueError, "activation is 'relu'"),
        ({"cache_seqlens": [1, 2]}, TypeError, "cache_seqlens is a list; expected a tensor of int"),
        (
            {"cache_seqlens": torch.zeros(3, dtype=torch.int32)},
            ValueError,
            r"cache_seqlens has shape \(3,\); expected \(batch,\) = \(2,\)",
        ),
        (
            {"conv_state_indices": torch.tensor([0, 2])},
            ValueError,
            r"conv_state_indices is \[0, 2\]; expected indices of 2 states",
        ),
        (
            {"conv_state_indices": torch.tensor([1, 1])},
            ValueError,
            r"conv_state_indices is \[1, 1\]; expected no index twice",
        ),
        (
            {"conv_state_indices": torch.tensor([0.0, 1.0])},
            TypeError,
            "conv_state_indices has dtype torch.float32; expected integers",
        ),
    ],
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_errors_of_steps_name_the_argument_and_change_nothing(
    change, error, message, requires_grad
):
    x, state, weight, bias = step_problem()
    before = state.clone()
    bias.requires_grad_(requires_grad)
    given = {"x": x, "conv_state": state, "weight": weight, "bias": bias} | change
    with pytest.raises(error, match=message):
        causal_conv1d_update(**given)
    assert torch.equal(state, before)
