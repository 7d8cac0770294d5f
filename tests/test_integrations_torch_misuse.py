"""What a caller may do wrong with tensors: an error that names the argument, no wrong numbers."""

import pytest

torch = pytest.importorskip("torch")

from fastderiv.integrations.torch import (
    LSTM,
    causal_conv1d,
    causal_conv1d_update,
    selective_scan,
    selective_state_update,
    ssd_scan,
)

BATCH, D, N, L, K = 2, 3, 4, 70, 3
INTEGERS = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "uint64"]


def draw(*shape, dtype=torch.float64):
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def scan_arguments(length=L, dtype=torch.float64):
    u, delta, B = draw(BATCH, D, length), draw(BATCH, D, length), draw(BATCH, N, length)
    return [t.to(dtype) for t in (u, delta, -draw(D, N), B, B)]


def ssd_arguments(batch=BATCH, length=L):
    x, dt, B = draw(batch, length, 2, 3), draw(batch, length, 2), draw(batch, length, 1, N)
    return [x, dt, -draw(2), B, B]


def step_arguments(batch=BATCH):
    return [draw(batch, D), draw(batch, D), -draw(D, N), draw(batch, N), draw(batch, N)]


# ---- operators called by name --------------------------------------------------------------------

SELECTIVE = (torch.ops.fastderiv.selective_scan, torch.ops.fastderiv.selective_scan_vjp)
SSD = (torch.ops.fastderiv.ssd_scan, torch.ops.fastderiv.ssd_scan_vjp)
NO_LIMITS = (float("-inf"), float("inf"))


@pytest.mark.parametrize(
    "operators, arguments",
    [
        (SELECTIVE, (*scan_arguments(), *[None] * 4, None, False)),
        (SSD, (*ssd_arguments(), *[None] * 4, None, None, False, *NO_LIMITS, True)),
    ],
)
def test_an_adjoint_takes_only_what_fits_the_call(operators, arguments):
    scan, adjoint = operators
    out, last, kept = scan(*arguments, True)
    assert kept.numel()
    adjoint(out, last, *arguments, kept)
    for other in (kept[1:], torch.cat([kept, kept]), kept.float(), kept[None]):
        with pytest.raises(ValueError, match=r"kept has shape .* and dtype .*; expected what"):
            adjoint(out, last, *arguments, other)
    with pytest.raises(ValueError, match="dout has shape "):
        adjoint(out[:1], last, *arguments, kept)
    with pytest.raises(ValueError, match="dlast_state has shape "):
        adjoint(out, last[:1], *arguments, kept)


@pytest.mark.parametrize("shape", [(1, L), (BATCH + 1, L), (BATCH, L - 1), (1, BATCH * L), (L,)])
def test_operators_refuse_a_seq_idx_of_another_shape(shape):
    seq_idx, message = torch.zeros(shape, dtype=torch.int64), "seq_idx has shape "
    x, weight = draw(BATCH, D, L), draw(D, K)
    with pytest.raises(ValueError, match=message):
        torch.ops.fastderiv.causal_conv1d(x, weight, None, None, seq_idx, None, None, False)
    limits = (False, *NO_LIMITS)
    with pytest.raises(ValueError, match=message):
        SSD[0](*ssd_arguments(), *[None] * 4, seq_idx, None, *limits, False, False)


@pytest.mark.parametrize("length", [0, 20, L])
@pytest.mark.parametrize("remember", [False, True])
def test_what_is_kept_is_foreseen_for_16_bit_tensors(length, remember):
    arguments = *scan_arguments(length, torch.bfloat16), *[None] * 4, None, False, remember
    torch.library.opcheck(SELECTIVE[0].default, arguments, test_utils="test_faketensor")


def test_a_program_exported_for_all_lengths():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.A = torch.nn.Parameter(-draw(D, N))

        def forward(self, u, delta, B, C):
            return selective_scan(u, delta, self.A, B, C)

    model, length = Model(), torch.export.Dim("length", min=2, max=4096)
    u, delta, _, B, C = scan_arguments(20)
    program = torch.export.export(model, (u, delta, B, C), dynamic_shapes=[{2: length}] * 4)
    u, delta, _, B, C = scan_arguments(L)
    outs = [m(u, delta, B, C) for m in (program.module(), model)]
    assert torch.equal(*outs)
    ours, theirs = (torch.autograd.grad(out.sum(), model.A)[0] for out in outs)
    torch.testing.assert_close(ours, theirs)


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seq_idx", [None, torch.tensor([[0, 0, 1, 1, 1]])])
def test_second_derivatives_of_a_scan_whose_states_nobody_wants(seq_idx):
    variables = [t.requires_grad_() for t in ssd_arguments(1, 5)]
    assert torch.autograd.gradgradcheck(lambda *v: ssd_scan(*v, seq_idx=seq_idx), variables)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("in_steps", [False, True])
def test_padding_that_is_nan_has_no_part_in_any_gradient(activation, in_steps):
    seq_idx, cotangent = torch.tensor([[0, 0, -1, 1, 1, -1]]), draw(1, D, 6)

    def gradients(padding):
        x = draw(1, D, 6).masked_fill(seq_idx[:, None] < 0, padding)

        def loss(*variables):
            out = causal_conv1d(*variables, seq_idx=seq_idx, activation=activation)
            return (cotangent * out).sum()

        variables = [x, draw(D, K), draw(D)]
        if in_steps:
            return torch.func.grad(loss, argnums=(0, 1, 2))(*variables)
        return torch.autograd.grad(loss(*(v.requires_grad_() for v in variables)), variables)

    for ours, wanted in zip(gradients(float("nan")), gradients(0.0), strict=True):
        torch.testing.assert_close(ours, wanted)


# ---- integers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", INTEGERS)
def test_boundaries_and_numbers_of_sequences_may_be_any_integers_together(kind):
    seq_idx, starts = torch.arange(L)[None] // 7, torch.tensor([0, 10, L])
    wanted = ssd_scan(*ssd_arguments(1), seq_idx=seq_idx, cu_seqlens=starts)
    dtype = getattr(torch, kind)
    out = ssd_scan(*ssd_arguments(1), seq_idx=seq_idx.to(dtype), cu_seqlens=starts.to(dtype))
    assert torch.equal(out, wanted)


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_indices_of_a_pool_may_be_any_integers(kind, requires_grad):
    indices = torch.tensor([1, 0])
    given = indices.to(getattr(torch, kind))
    arguments, weight = step_arguments(), draw(D, K)
    arguments[0].requires_grad_(requires_grad)
    for step in (
        lambda pool, i: selective_state_update(pool, *arguments, state_batch_indices=i),
        lambda pool, i: causal_conv1d_update(
            arguments[0], pool, weight, cache_seqlens=i, conv_state_indices=i
        ),
    ):
        ours, theirs = draw(2, D, N), draw(2, D, N)
        assert torch.equal(step(ours, given), step(theirs, indices))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.vmap])
@pytest.mark.parametrize("indices, message", [([1, 1], "no index twice"), ([0, 4], "of 4 states")])
def test_indices_are_checked_under_transforms(transform, indices, message):
    given, others = torch.tensor(indices), step_arguments()[1:]

    def step(x):
        pool = x.new_zeros(4, D, N)
        return selective_state_update(pool, x, *others, state_batch_indices=given).sum()

    with pytest.raises(ValueError, match=f"state_batch_indices is .*{message}"):
        transform(step)(draw(3, BATCH, D) if transform is torch.vmap else draw(BATCH, D))


def test_sequences_that_differ_within_a_batch_of_vmap_are_refused_where_they_must_be_known():
    x, weight, seq_idx = draw(2, 1, D, L), draw(D, K), torch.zeros(2, 1, L, dtype=torch.int64)
    with pytest.raises(NotImplementedError, match=r"seq_idx is a batch of torch\.vmap"):
        torch.vmap(lambda x, s: causal_conv1d(x, weight, seq_idx=s))(x, seq_idx)
    starts = torch.tensor([[0, L], [0, L]])
    u, delta, A, B, C = scan_arguments()
    scan, ssd = (u[:1], delta[:1], A, B[:1], C[:1]), ssd_arguments(1)
    for call in (
        lambda cu: causal_conv1d(x[0], weight, cu_seqlens=cu),
        lambda cu: selective_scan(*scan, cu_seqlens=cu),
        lambda cu: ssd_scan(*ssd, cu_seqlens=cu),
    ):
        with pytest.raises(NotImplementedError, match=r"cu_seqlens is a batch of torch\.vmap"):
            torch.vmap(call)(starts)


# ---- memory that is shared, and rows that do not fit ---------------------------------------------


def test_a_pool_that_shares_memory_with_an_argument_is_refused():
    """Two runs of indices: the first would change what the second one reads."""
    pool, indices = draw(4, D, N), torch.tensor([3, 0])
    before = pool.clone()
    x = pool[2:, :, 0]
    with pytest.raises(ValueError, match="state shares memory with x"):
        selective_state_update(pool, x, *step_arguments()[1:], state_batch_indices=indices)
    with pytest.raises(ValueError, match="conv_state shares memory with x"):
        causal_conv1d_update(x, pool, draw(D, K), conv_state_indices=indices)
    assert torch.equal(pool, before)


def test_a_16_bit_pool_may_share_memory_with_an_argument():
    pool, indices = draw(4, D, N, dtype=torch.bfloat16), torch.tensor([3, 0])
    x, weight = pool[2:, :, 0], draw(D, K, dtype=torch.bfloat16)
    arguments = [t.bfloat16() for t in step_arguments()[1:]]
    for step in (
        lambda pool, x: selective_state_update(pool, x, *arguments, state_batch_indices=indices),
        lambda pool, x: causal_conv1d_update(x, pool, weight, conv_state_indices=indices),
    ):
        other = pool.clone()
        expected = step(other, x.clone())
        assert torch.equal(step(pool, x), expected)
        assert torch.equal(pool, other)


def test_a_pool_whose_states_overlap_is_refused():
    pool = draw(100).as_strided((4, D, N), (6, 4, 1))
    before = pool.clone()
    with pytest.raises(ValueError, match="state shares memory with itself"):
        selective_state_update(pool, *step_arguments(), state_batch_indices=torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="conv_state shares memory with itself"):
        causal_conv1d_update(draw(4, D), pool, draw(D, K))
    assert torch.equal(pool, before)


@pytest.mark.parametrize("place, name", [(1, "dt"), (3, "B"), (4, "C")])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("indices", [(0, 2), (-1, -1)])
def test_rows_that_do_not_fit_a_pool_change_no_state(place, name, rows, indices):
    arguments, pool = step_arguments(), draw(4, D, N)
    arguments[place] = step_arguments(rows)[place]
    before = pool.clone()
    with pytest.raises(ValueError, match=f"{name} has shape "):
        selective_state_update(pool, *arguments, state_batch_indices=torch.tensor(indices))
    assert torch.equal(pool, before)


def test_shapes_are_checked_where_all_indices_are_padding():
    arguments, padding = step_arguments(), torch.tensor([-1, -1])
    arguments[2] = -draw(D + 1, N)
    with pytest.raises(ValueError, match="A has shape "):
        selective_state_update(draw(4, D, N), *arguments, state_batch_indices=padding)


@pytest.mark.parametrize(
    "out, error, message",
    [
        (torch.zeros(BATCH, D, K - 1, dtype=torch.int32), TypeError, "has dtype torch.int32"),
        (torch.zeros(BATCH, D, K - 1, device="meta"), ValueError, "is on meta"),
    ],
)
def test_final_states_are_written_only_to_what_can_hold_them(out, error, message):
    x = draw(BATCH, D, L)
    with pytest.raises(error, match=f"final_states_out {message}"):
        causal_conv1d(x, draw(D, K), return_final_states=True, final_states_out=out)


# ---- the LSTM ------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_an_lstm_of_one_step_in_both_directions(packed):
    ours, theirs = (kind(D, N, bidirectional=True).double() for kind in (LSTM, torch.nn.LSTM))
    ours.load_state_dict(theirs.state_dict())
    x = draw(1, BATCH, D)
    if packed:
        x = torch.nn.utils.rnn.pack_padded_sequence(x, [1] * BATCH)
    (out, last), (expected, expected_last) = ours(x), theirs(x)
    out, expected = (o.data if packed else o for o in (out, expected))
    torch.testing.assert_close((out, *last), (expected, *expected_last))
    gradients = [
        torch.autograd.grad(o.sum(), m.parameters()) for o, m in ((out, ours), (expected, theirs))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("sizes", [[3, 3, 3, 4], [3, 3, 3], [4, 4, 4, 4], [1, 2, 9], [7, 6, -1]])
def test_sizes_of_packed_steps_that_do_not_fit_are_refused(sizes):
    packed = torch.nn.utils.rnn.PackedSequence(draw(12, D), torch.tensor(sizes))
    with pytest.raises(ValueError, match="batch_sizes is "):
        LSTM(D, N).double()(packed)
