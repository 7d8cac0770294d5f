"""The modules, models and generation of fastderiv's mamba_ssm: formulas, caches, files."""

import copy
import io
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as F

from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.distributed import (
    distributed_utils,
    tensor_parallel,
)
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.models.config_mamba import MambaConfig
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.models.mixer_seq_simple import (
    MambaLMHeadModel,
    create_block,
)
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.modules import mamba_simple
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.modules.block import Block
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.modules.mamba2 import Mamba2
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.modules.mamba2_simple import Mamba2Simple
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.modules.mamba_simple import Mamba
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.modules.mha import MHA
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.modules.mlp import GatedMLP
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.modules.ssd_minimal import (
    ssd_minimal_discrete,
)
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.selective_scan_interface import (
    bimamba_inner_fn,
)
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.ops.triton.layer_norm import RMSNorm
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.utils import generation, hf
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.utils.generation import InferenceParams
from fastderiv.integrations.mamba_ssm.packages.mamba_ssm.utils.torch import custom_bwd, custom_fwd

WIDTH = 12
MAMBA1 = partial(Mamba, WIDTH, d_state=5, layer_idx=0)
MAMBA2 = partial(Mamba2, WIDTH, d_state=6, headdim=4, layer_idx=0)
MIXERS = {
    "Mamba": MAMBA1,
    "Mamba with biases": partial(MAMBA1, bias=True, conv_bias=False, d_conv=3, expand=1.5),
    "Mamba2": MAMBA2,
    "Mamba2 with groups": partial(
        MAMBA2, ngroups=3, norm_before_gate=True, bias=True, use_mem_eff_path=False, chunk_size=4
    ),
    "Mamba2 with MLP": partial(MAMBA2, d_ssm=16, D_has_hdim=True, conv_bias=False),
    "Mamba2 without norm": partial(MAMBA2, rmsnorm=False, d_conv=2, dt_limit=(0.01, 0.05)),
    "Mamba2Simple": partial(
        Mamba2Simple, WIDTH, d_state=6, headdim=4, ngroups=2, learnable_init_states=True
    ),
    "Mamba2Simple with one norm": partial(
        Mamba2Simple, WIDTH, d_state=6, headdim=4, ngroups=2, use_mem_eff_path=False
    ),
    "MHA": partial(MHA, WIDTH, 3, causal=True, layer_idx=0),
    "MHA with options": partial(
        MHA, WIDTH, 4, num_heads_kv=2, head_dim=6, mlp_dim=100, causal=True, layer_idx=0, d_conv=3,
        rotary_emb_dim=4, qkv_proj_bias=False, softmax_scale=0.3,
    ),
    "MHA with other rotations": partial(
        MHA, WIDTH, 2, causal=True, layer_idx=0, rotary_emb_dim=6, rotary_emb_interleaved=True
    ),
}  # fmt: skip
CACHED = {name: new for name, new in MIXERS.items() if not name.startswith("Mamba2Simple")}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on such small models, threads only wait for each other
    yield
    torch.set_num_threads(threads)


def build(new, **changes):
    """A module whose biases, norms, D and initial states are not all the same."""
    torch.manual_seed(0)
    module = new(**changes)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.double()


def inputs(length=9, batch=2, width=WIDTH):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, width, generator=generator, dtype=torch.float64)


def close(ours, expected, tolerance=1e-11):
    return ours.shape == expected.shape and bool(
        (ours - expected).abs().max() <= tolerance * expected.abs().max()
    )


# ---- formulas in plain PyTorch ------------------------------------------------------------------


def causal(conv, x):
    """x (batch, L, channels)."""
    return conv(x.mT)[..., : x.shape[1]].mT


def recurrence(x, dt, A, B, C, state=None):
    """h = exp(dt A) h + dt x ⊗ B, y = h C; all (batch, L, channels, …), A (channels, N or 1)."""
    h, y = 0 if state is None else state, []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt * x)[:, t, :, None] * B[:, t]
        y.append((h * C[:, t]).sum(-1))
    return torch.stack(y, dim=1)


def mamba_formula(m, u):
    x, z = m.in_proj(u).chunk(2, dim=-1)
    x = F.silu(causal(m.conv1d, x))
    dt, B, C = m.x_proj(x).split([m.dt_rank, m.d_state, m.d_state], dim=-1)
    dt = F.softplus(m.dt_proj(dt))
    y = recurrence(x, dt, -m.A_log.exp(), B[:, :, None], C[:, :, None])
    return m.out_proj((y + m.D * x) * F.silu(z))


def mamba2_formula(m, u):
    P, N, G, H = m.headdim, m.d_state, m.ngroups, m.nheads
    d_mlp = m.d_inner - m.d_ssm
    sizes = [d_mlp, d_mlp, m.d_ssm, m.d_ssm + 2 * G * N, H]
    z0, x0, z, xBC, dt = m.in_proj(u).split(sizes, dim=-1)
    x, B, C = F.silu(causal(m.conv1d, xBC)).split([m.d_ssm, G * N, G * N], dim=-1)
    B, C = (t.unflatten(-1, (G, N)).repeat_interleave(m.d_ssm // G, dim=2) for t in (B, C))
    dt = F.softplus(dt + m.dt_bias).clamp(*m.dt_limit).repeat_interleave(P, dim=-1)
    A = -m.A_log.exp().repeat_interleave(P)[:, None]
    state = m.init_states.flatten(0, 1) if hasattr(m, "init_states") else None
    y = recurrence(x, dt, A, B, C, state)
    y = y + (m.D if m.D_has_hdim else m.D.repeat_interleave(P)) * x
    if not m.rmsnorm:
        y = y * F.silu(z)
    else:
        y = y if m.norm_before_gate else y * F.silu(z)
        together = isinstance(m, Mamba2Simple) and not m.use_mem_eff_path
        groups = y.unflatten(-1, (1 if together else G, -1))
        y = (groups * (groups.square().mean(-1, keepdim=True) + 1e-5).rsqrt()).flatten(-2)
        y = y * m.norm.weight
        y = y * F.silu(z) if m.norm_before_gate else y
    return m.out_proj(torch.cat([F.silu(z0) * x0, y], dim=-1))


def rotated(m, x):
    """x (batch, L, heads, features): each pair of features as a complex number."""
    d = m.rotary_emb_dim
    first = torch.arange(0, d, 2) if m.rotary_emb.interleaved else torch.arange(d // 2)
    second = first + (1 if m.rotary_emb.interleaved else d // 2)
    angles = torch.arange(x.shape[1])[:, None, None] * 10000.0 ** (
        -torch.arange(0.0, d, 2).double() / d
    )
    turned = torch.complex(x[..., first], x[..., second]) * torch.exp(1j * angles)
    x = x.clone()
    x[..., first], x[..., second] = turned.real, turned.imag
    return x


def mha_formula(m, u):
    qkv = m.in_proj(u)
    if m.mlp_dim:
        qkv, up, gate = qkv.split([qkv.shape[-1] - m.mlp_dim] + [m.mlp_dim // 2] * 2, dim=-1)
    if m.d_conv:
        qkv = causal(m.conv1d, qkv)
    heads = [m.num_heads, m.num_heads_kv, m.num_heads_kv]
    q, k, v = qkv.unflatten(-1, (-1, m.head_dim)).split(heads, dim=2)
    if m.rotary_emb_dim:
        q, k = rotated(m, q), rotated(m, k)
    k, v = (t.repeat_interleave(m.num_heads // m.num_heads_kv, dim=2) for t in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * (m.softmax_scale or m.head_dim**-0.5)
    if m.causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    y = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(-2)
    return m.out_proj(torch.cat([y, up * F.silu(gate)], dim=-1) if m.mlp_dim else y)


FORMULAS = {Mamba: mamba_formula, Mamba2: mamba2_formula, MHA: mha_formula}


@pytest.mark.parametrize("name", MIXERS)
def test_outputs_and_gradients_are_those_of_the_formula(name):
    module, u = build(MIXERS[name]), inputs().requires_grad_()
    (formula,) = (f for kind, f in FORMULAS.items() if isinstance(module, kind))
    out, expected = module(u), formula(module, u)
    assert close(out, expected)
    weights, wanted = torch.randn_like(out), (u, *module.parameters())
    ours, theirs = (torch.autograd.grad((y * weights).sum(), wanted) for y in (out, expected))
    for name, a, b in zip(["u", *dict(module.named_parameters())], ours, theirs, strict=True):
        assert close(a, b, 1e-9), name


def test_attention_is_not_causal_unless_asked():
    module = build(MIXERS["MHA"], causal=False)
    assert close(module(inputs()), mha_formula(module, inputs()))


def test_two_directions_are_two_mixers():
    both, u = build(MAMBA1, bimamba_type="v2", init_layer_scale=0.5), inputs()
    there, back = build(MAMBA1), build(MAMBA1)
    values = both.state_dict()
    there.load_state_dict({name: values[name] for name in there.state_dict()})
    back.load_state_dict(there.state_dict())
    back.A_log = both.A_b_log
    for name in ("conv1d", "x_proj", "dt_proj", "D"):
        setattr(back, name, getattr(both, f"{name}_b"))
    expected = both.gamma * (there(u) + back(u.flip(1)).flip(1))
    assert close(both(u), expected)
    both.if_divide_out = True
    assert close(both(u), expected / 2)


def test_two_directions_after_one_convolution_are_the_function_of_that_name():
    m, u = build(MAMBA1, bimamba_type="v1", bias=True), inputs()
    projections = (m.x_proj.weight, m.dt_proj.weight, m.out_proj.weight, m.out_proj.bias)
    expected = bimamba_inner_fn(
        m.in_proj(u).mT,
        m.conv1d.weight,
        m.conv1d.bias,
        *projections,
        -m.A_log.exp(),
        -m.A_b_log.exp(),
        D=m.D,
        delta_bias=m.dt_proj.bias,
    )
    assert close(m(u), expected)


def test_names_of_other_forks():
    assert "conv1d_b.weight" in Mamba(8, bimamba=True).state_dict()
    assert Mamba(8, bimamba_type="V2", if_devide_out=True).if_divide_out
    with pytest.raises(ValueError, match="bimamba_type is 'v3'; expected"):
        Mamba(8, bimamba_type="v3")


def test_mixers_name_an_input_that_does_not_fit():
    wanted = r"expected \(batch, L, d_model\) with d_model = \d+"
    for module, name in (build(MAMBA1), "hidden_states"), (build(MAMBA2), "u"):
        width = module.d_model
        for u in (torch.ones(2, width), torch.ones(2, 9, width + 1)):
            with pytest.raises(ValueError, match=rf"{name} has shape .*{wanted}"):
                module(u.double())


def test_mamba2_takes_batch_and_time_in_one_axis():
    module, u = build(MAMBA2), inputs()
    assert close(module(u.flatten(0, 1), seqlen=9), module(u).flatten(0, 1))


def test_the_minimal_scan_is_the_recurrence_whatever_its_blocks():
    rng = torch.Generator().manual_seed(2)
    x, B, C = (torch.randn(2, 7, 3, n, generator=rng, dtype=torch.float64) for n in (4, 5, 5))
    A = -torch.rand(2, 7, 3, generator=rng, dtype=torch.float64)
    state = torch.randn(2, 3, 4, 5, generator=rng, dtype=torch.float64)
    h, expected = state, []
    for t in range(7):
        h = A[:, t, :, None, None].exp() * h + x[:, t, ..., None] * B[:, t, :, None]
        expected.append((h * C[:, t, :, None]).sum(-1))
    for block, start in ((1, state), (3, state[:, None]), (7, state), (100, state)):
        y, last = ssd_minimal_discrete(x, A, B, C, block, start)
        assert close(y, torch.stack(expected, dim=1)) and close(last, h)
    zeros = torch.zeros_like(state)
    assert torch.equal(
        ssd_minimal_discrete(x, A, B, C, 2)[0], ssd_minimal_discrete(x, A, B, C, 2, zeros)[0]
    )


# ---- states between calls -----------------------------------------------------------------------


def in_pieces(module, u, params, pieces):
    out = []
    for part in u.split(pieces, dim=1):
        out.append(module(part, inference_params=params))
        params.seqlen_offset += part.shape[1]
    return torch.cat(out, dim=1)


@pytest.mark.parametrize("first", [1, 2, 5], ids="prefill of {}".format)
@pytest.mark.parametrize("name", CACHED)
def test_cached_decoding_equals_the_full_pass(name, first):
    module, u = build(CACHED[name]), inputs()
    pieces = [first, 1, 1, 7 - first]
    with torch.no_grad():
        expected = module(u)
        params = InferenceParams(max_seqlen=9, max_batch_size=2)
        assert close(in_pieces(module, u, params, pieces), expected)
        params = InferenceParams(9, 2, key_value_memory_dict={0: None})
        params.key_value_memory_dict[0] = module.allocate_inference_cache(2, 9)
        assert close(in_pieces(module, u, params, pieces), expected)
        params.reset(9, 2)  # with the same cache, whose content is not to matter
        assert close(in_pieces(module, u, params, pieces), expected)


@pytest.mark.parametrize("name", CACHED)
def test_batch_items_have_their_own_place_in_the_cache(name):
    module, u = build(CACHED[name]), inputs()
    params = InferenceParams(9, 2)
    params.key_value_memory_dict[0] = module.allocate_inference_cache(2, 9)
    with torch.no_grad():
        for start, end in (0, 4), (4, 5), (5, 9):
            params.seqlen_offset = start
            for item in 1, 0:
                params.batch_size_offset = item
                out = module(u[item : item + 1, start:end], inference_params=params)
                assert close(out, module(u)[item : item + 1, start:end])


@pytest.mark.parametrize("name", ["Mamba", "Mamba2 without norm"])
def test_gradients_flow_through_the_cache(name):
    module, u = build(CACHED[name]), inputs().requires_grad_()
    out = in_pieces(module, u, InferenceParams(9, 2), [4, 1, 1, 3])
    wanted = (u, *module.parameters())
    ours, expected = (torch.autograd.grad(y.square().sum(), wanted) for y in (out, module(u)))
    assert all(close(a, b, 1e-9) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("name", ["Mamba", "Mamba2 with MLP"])
def test_steps_overwrite_the_states_they_are_given(name):
    module, u = build(CACHED[name]), inputs()
    states = module.allocate_inference_cache(2, 9)
    with torch.no_grad():
        for t in range(9):
            out, *same = module.step(u[:, t : t + 1], *states)
            assert all(a is b for a, b in zip(same, states, strict=True))
    assert close(out, module(u)[:, -1:])


def test_attention_where_batch_items_have_different_lengths():
    """Prompts of 3 and 6 tokens, padded at the end, then three tokens for each."""
    module, u = build(MIXERS["MHA with other rotations"]), inputs()
    params = InferenceParams(9, 2, lengths_per_sample=torch.zeros(2, dtype=torch.int32))
    lengths = torch.tensor([3, 6])
    with torch.no_grad():
        module(u[:, :6], inference_params=params)
        for step in range(3):
            params.seqlen_offset = 6 + step
            params.lengths_per_sample = lengths + step
            x = torch.stack([u[0, 3 + step], u[1, 6 + step]])[:, None]
            out = module(x, inference_params=params)
            expected = module(u)
            assert close(out[0, 0], expected[0, 3 + step])
            assert close(out[1, 0], expected[1, 6 + step])


@pytest.mark.parametrize("name", CACHED)
def test_calls_with_a_cache_may_have_no_tokens(name):
    module, u = build(CACHED[name]), inputs()
    with torch.no_grad():
        found = in_pieces(module, u, InferenceParams(9, 2), [0, 4, 0, 5])
        assert close(found, module(u))
        assert in_pieces(module, u[:0], InferenceParams(9, 2), [4, 5]).shape == u[:0].shape


def test_a_cache_that_is_full_says_so():
    module, params = build(MIXERS["MHA"]), InferenceParams(5, 2)
    with pytest.raises(ValueError, match="room for 5 tokens; expected at least 9"):
        module(inputs(), inference_params=params)


@pytest.mark.parametrize("kind", [MAMBA1, MAMBA2, partial(MHA, WIDTH, 2)])
def test_a_cache_needs_the_number_of_the_layer(kind):
    with pytest.raises(ValueError, match="layer_idx is None"):
        kind(layer_idx=None)(inputs().float(), inference_params=InferenceParams(9, 2))


def test_two_directions_cannot_be_decoded():
    with pytest.raises(ValueError, match="'v2' cannot decode step by step"):
        build(MAMBA1, bimamba_type="v2")(inputs(), inference_params=InferenceParams(9, 2))


# ---- packed sequences ---------------------------------------------------------------------------

STARTS = torch.tensor([0, 2, 3, 9], dtype=torch.int32)
PACKED = [name for name in MIXERS if name.startswith("Mamba2")]


@pytest.mark.parametrize("name", PACKED)
def test_packed_sequences_do_not_see_each_other(name):
    changes = {"learnable_init_states": False} if name.startswith("Mamba2Simple") else {}
    module, u = build(MIXERS[name], **changes), inputs()
    expected = torch.cat([module(part) for part in u.split([2, 1, 6], dim=1)], dim=1)
    of_step = torch.tensor([[0, 0, 1, 2, 2, 2, 2, 2, 2]], dtype=torch.int32)
    assert close(module(u, seq_idx=of_step.expand(2, -1)), expected)
    if not name.startswith("Mamba2Simple"):
        assert close(module(u[:1], cu_seqlens=STARTS), expected[:1])


@pytest.mark.parametrize("name", [name for name in PACKED if name in CACHED])
def test_packed_prompts_are_continued_as_a_batch(name):
    module, u, more = build(MIXERS[name]), inputs(batch=1), inputs(length=2, batch=3)
    params = InferenceParams(11, 3)
    with torch.no_grad():
        module(u, cu_seqlens=STARTS, inference_params=params)
        params.seqlen_offset = 9
        out = [module(more[:, t : t + 1], inference_params=params) for t in range(2)]
        for i, prompt in enumerate(u.split([2, 1, 6], dim=1)):
            expected = module(torch.cat([prompt, more[i : i + 1]], dim=1))[:, -2:]
            assert close(torch.cat(out, dim=1)[i : i + 1], expected)


# ---- blocks and models --------------------------------------------------------------------------

SIZES = {"d_model": WIDTH, "n_layer": 3, "vocab_size": 19}
ATTENTION = {"num_heads": 2, "causal": True, "rotary_emb_dim": 6, "d_conv": 4}
MODELS = {
    "Mamba": {},
    "Mamba2": {"ssm_cfg": {"layer": "Mamba2", "headdim": 4, "d_state": 6}, "d_intermediate": 20},
    "hybrid": {"attn_layer_idx": [1], "attn_cfg": ATTENTION, "tie_embeddings": False},
}


def model_of(name, **changes):
    config = MambaConfig(**SIZES | MODELS[name] | changes)
    return build(partial(MambaLMHeadModel, config)).float()


def tokens(length=6, batch=2):
    return torch.randint(0, 19, (batch, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("rms_norm", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_sum_and_norm_in_one_function_change_nothing(name, rms_norm):
    ids = tokens()
    fused, apart = (model_of(name, rms_norm=rms_norm, fused_add_norm=f) for f in (True, False))
    assert fused.state_dict().keys() == apart.state_dict().keys()
    apart.load_state_dict(fused.state_dict())
    assert close(fused(ids).logits, apart(ids).logits, 1e-5)
    assert fused(ids, num_last_tokens=2).logits.shape == (2, 2, 24)
    assert torch.equal(fused(ids, num_last_tokens=2).logits, fused(ids).logits[:, -2:])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("in_fp32", [True, False])
def test_the_residual_has_the_dtype_that_was_asked_for(fused, in_fp32):
    block = create_block(
        WIDTH, 16, rms_norm=True, residual_in_fp32=in_fp32, fused_add_norm=fused,
        layer_idx=4, dtype=torch.bfloat16,
    )  # fmt: skip
    assert block.layer_idx == 4 and isinstance(block.mlp, GatedMLP)
    residual = None
    x = inputs().bfloat16()
    for _ in range(2):
        x, residual = block(x, residual)
        assert x.dtype == torch.bfloat16
        assert residual.dtype == (torch.float32 if in_fp32 else torch.bfloat16)


def test_blocks_of_either_generation():
    new = Block(WIDTH, Mamba, torch.nn.Identity, RMSNorm, True, True)
    old = mamba_simple.Block(WIDTH, Mamba, RMSNorm, True, True)
    assert old.state_dict().keys() == new.state_dict().keys() and old.fused_add_norm
    with pytest.raises(TypeError, match="the norm is a GroupNorm"):
        mamba_simple.Block(WIDTH, Mamba, partial(torch.nn.GroupNorm, 2), True)


def test_mixers_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"'Mamba7'; expected one of \['Mamba1', 'Mamba2'\]"):
        create_block(WIDTH, 0, ssm_cfg={"layer": "Mamba7"})


# ---- generation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_that_of_full_passes(name):
    model, ids = model_of(name).double(), tokens(4)
    expected = ids
    with torch.no_grad():
        for _ in range(7):
            logits = model(expected).logits[:, -1, :19]
            expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
        full = model(expected).logits[:, 3:-1, :19]
    out = model.generate(
        ids, 11, vocab_size=19, cg=True, return_dict_in_generate=True, output_scores=True
    )
    assert torch.equal(out.sequences, expected) and out["sequences"] is out.sequences
    assert close(torch.stack(out.scores, dim=1), full)
    assert torch.equal(model.generate(ids, 11, vocab_size=19), expected)


def fixed(logits):
    """A model that gives the same logits whatever came before, and counts its calls."""
    calls = []

    def model(input_ids, **kwargs):
        calls.append(kwargs)
        return SimpleNamespace(logits=logits[:, None].clone())

    return model, calls


def test_generation_stops_where_all_texts_end():
    logits = torch.eye(4)[[2, 2]]
    model, calls = fixed(logits)
    assert generation.decode(tokens(3), model, 9, eos_token_id=2).sequences.shape == (2, 4)
    taught = torch.tensor([[9, 9, 9, 2, 1, 0], [9, 9, 9, 0, 2, 0]])
    out = generation.decode(tokens(3), model, 9, eos_token_id=2, teacher_outputs=taught)
    assert out.sequences[:, 3:].tolist() == [[2, 1, 0, 2], [0, 2, 0, 2]] and out.scores == ()
    assert [call["position_ids"] is None for call in calls] == [True, True, False, False, False]
    assert calls[2]["position_ids"].tolist() == [[3], [3]]
    assert calls[2]["num_last_tokens"] == 1
    assert generation.decode(tokens(3), model, 2).sequences.shape == (2, 4)  # one at least
    assert out[0] is out["sequences"] is out.sequences and out[1] == out["scores"]


def test_a_text_has_a_beginning():
    model, _ = fixed(torch.eye(4)[[2, 2]])
    for prompts in (tokens(0), tokens()[0]):
        with pytest.raises(ValueError, match=r"input_ids has shape .* length >= 1"):
            generation.decode(prompts, model, 9)


def test_what_comes_is_streamed_and_timed(capsys):
    model, _ = fixed(torch.eye(4)[[2, 1]])
    got = []
    streamer = SimpleNamespace(put=got.append, end=lambda: got.append("end"))
    generation.decode(tokens(3), model, 5, streamer=streamer, enable_timing=True)
    assert torch.equal(got[0], tokens(3)) and got[3] == "end"
    assert [t.tolist() for t in got[1:3]] == [[[2], [1]]] * 2
    assert capsys.readouterr().out.startswith("Prompt processing + decoding time: ")


def test_repetition_is_punished():
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    ours = generation.modify_logit_for_repetition_penalty(logits, torch.tensor([[0, 2, 0]]), 1.25)
    assert ours is logits and torch.allclose(logits, torch.tensor([[1.6, 1.9, -1.25]]))
    model, _ = fixed(torch.tensor([[2.0, 1.9, 1.8]]))
    out = generation.decode(torch.tensor([[0]]), model, 4, repetition_penalty=2.0)
    assert out.sequences.tolist() == [[0, 1, 2, 0]]


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 99}, [0, 1, 2, 3]),
        ({"top_k": 0}, [0, 1, 2, 3]),
        ({"top_k": 0, "top_p": 0.5}, [1]),
        ({"top_k": 0, "top_p": 0.75}, [1, 3]),
        ({"top_k": 3, "top_p": 0.99}, [0, 1, 3]),
        ({"top_k": 0, "min_p": 0.3}, [1, 3]),
        ({"top_k": 0, "min_p": 0.1}, [0, 1, 3]),
        ({"top_k": 0, "temperature": 0.01}, [1]),
        ({"top_k": 4, "temperature": 0.01}, [1]),
    ],
)
def test_tokens_are_drawn_from_those_that_were_asked_for(options, possible):
    """Probabilities 0.13, 0.55, 0.02, 0.3, for each of many items."""
    logits = torch.tensor([0.13, 0.55, 0.02, 0.3]).log().repeat(1000, 1)
    before = logits.clone()
    torch.manual_seed(0)
    drawn = generation.sample(logits, **options)
    assert torch.equal(logits, before)
    assert drawn.unique().tolist() == possible
    if "temperature" not in options:
        p = before[0].exp()[possible] / before[0].exp()[possible].sum()
        shares = torch.stack([(drawn == token).float().mean() for token in possible])
        assert (shares - p).abs().max() < 0.06


def test_the_likeliest_tokens_are_kept():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    generation.modify_logits_for_top_k_filtering(logits, 2)
    assert logits.tolist() == [[-torch.inf, 3.0, 2.0]]
    with pytest.raises(ValueError, match=r"top_p is 1.5; expected a probability"):
        generation.sample(logits, top_k=0, top_p=1.5)


def test_code_for_graphs_runs_the_model_with_its_cache():
    model, ids = model_of("hybrid"), tokens(6)
    cache = generation.update_graph_cache(model, None, 2, 4, 8)
    params = cache.inference_params
    with torch.no_grad():
        expected = model(ids).logits
        model(ids[:, :4], inference_params=params)
        for t in 4, 5:
            assert close(cache.run(ids[:, t : t + 1], None, t), expected[:, t : t + 1], 1e-5)
    assert generation.update_graph_cache(model, cache, 1, 4, 8).inference_params is params
    assert generation.update_graph_cache(model, cache, 3, 4, 8).inference_params is not params


# ---- files, copies, dtypes ----------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_models_come_back_from_files(name, tmp_path, monkeypatch):
    model, ids = model_of(name), tokens()
    model.save_pretrained(tmp_path / "model")
    again = MambaLMHeadModel.from_pretrained(tmp_path / "model")
    assert asdict(again.config) == asdict(model.config)
    assert torch.equal(again(ids).logits, model(ids).logits)
    half = MambaLMHeadModel.from_pretrained(str(tmp_path / "model"), dtype=torch.bfloat16)
    assert half.lm_head.weight.dtype == torch.bfloat16
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        return str(tmp_path / "model" / file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    again = MambaLMHeadModel.from_pretrained("somebody/model")
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert asked == [("somebody/model", hf.CONFIG_NAME), ("somebody/model", hf.WEIGHTS_NAME)]


def test_a_single_mixer_goes_to_the_hub_and_back(tmp_path):
    pytest.importorskip("huggingface_hub")
    pytest.importorskip("safetensors")
    module = build(MIXERS["Mamba2 with groups"]).float()
    module.save_pretrained(tmp_path)
    again = Mamba2.from_pretrained(tmp_path)
    assert again.ngroups == 3 and torch.equal(again(inputs().float()), module(inputs().float()))


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_are_saved_and_copied(name):
    model, ids = model_of(name), tokens()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (torch.load(file, weights_only=False), copy.deepcopy(model)):
        assert torch.equal(again(ids).logits, model(ids).logits)
        assert torch.equal(again.generate(ids, 9), model.generate(ids, 9))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_models_in_16_bits(name, dtype):
    """Logits are close to those in float32, cached ones too, and gradients come in the dtype."""
    model, ids = model_of(name), tokens()
    expected = model(ids).logits
    half = copy.deepcopy(model).to(dtype)
    out = half(ids).logits
    tolerance = 0.1 if dtype == torch.bfloat16 else 0.01
    assert out.dtype == dtype and close(out.float(), expected, tolerance)
    with torch.no_grad():
        cached = in_pieces(
            lambda x, **kwargs: half(x, **kwargs).logits, ids, InferenceParams(6, 2), [3, 1, 1, 1]
        )
    assert cached.dtype == dtype and close(cached.float(), expected, tolerance)
    out.float().square().sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in half.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_models_under_autocast(name):
    model, ids = model_of(name), tokens()
    expected = model(ids).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(ids).logits
        generated = model.generate(ids, 9)
    assert out.dtype == torch.bfloat16 and close(out.float(), expected, 0.1)
    assert generated.shape == (2, 9)
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", ["Mamba", "Mamba2"])
def test_compiled_blocks_are_whole_graphs(name):
    block = model_of(name).backbone.layers[1]
    x, results = inputs().float(), []
    for call in block, torch.compile(block, fullgraph=True, backend="aot_eager"):
        block.zero_grad()
        out, _ = call(x, x)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in block.parameters())])
    assert all(close(a, b, 1e-5) for a, b in zip(*results, strict=True))


def test_autograd_functions_with_the_decorators():
    class Double(torch.autograd.Function):
        @staticmethod
        @custom_fwd
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        @custom_bwd
        def backward(ctx, dy):
            return 2 * dy

    x = torch.ones(3, requires_grad=True)
    Double.apply(x).sum().backward()
    assert x.grad.tolist() == [2, 2, 2]


# ---- one process --------------------------------------------------------------------------------


def test_layers_of_one_process_are_those_of_pytorch():
    x = inputs().float()
    for kind in tensor_parallel.ColumnParallelLinear, tensor_parallel.RowParallelLinear:
        layer = kind(WIDTH, 5, None, bias=False)
        assert torch.equal(layer(x), x @ layer.weight.T)
        with pytest.raises(NotImplementedError, match="expected process_group=None"):
            kind(WIDTH, 5, object())
    embedding = tensor_parallel.VocabParallelEmbedding(7, 3, process_group=None)
    assert embedding.weight.shape == (7, 3)
    assert distributed_utils.all_reduce(x) is x
    shares = [distributed_utils.get_dim_for_local_rank(28, 3, rank, 4) for rank in range(3)]
    assert shares == [12, 8, 8]
    with pytest.raises(NotImplementedError, match="runs in one process"):
        Mamba2(WIDTH, headdim=4, process_group=object())
