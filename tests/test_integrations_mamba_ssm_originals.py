r"""fastderiv's mamba_ssm against the original's parts in pure Python, where they are installed.

    MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE \
    CAUSAL_CONV1D_FORCE_BUILD=TRUE pip install --no-build-isolation mamba-ssm causal-conv1d
"""

import inspect
import io
import pickle
import sys
from functools import partial
from importlib import import_module
from types import ModuleType, SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

OURS = "fastderiv.integrations.mamba_ssm.packages.mamba_ssm"


def ours(name):
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(f"{OURS}.{module}"), attribute)


def theirs(name):
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(f"mamba_ssm.{module}"), attribute)


class _Unpickler(pickle.Unpickler):
    """Takes our classes where a pickle names the original's."""

    def find_class(self, module, name):
        top, _, below = module.partition(".")
        return super().find_class(f"{OURS}.{below}" if top == "mamba_ssm" else module, name)


@pytest.fixture(scope="module", autouse=True)
def originals():
    """The original packages, their CUDA extensions replaced by empty modules."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for extension in "selective_scan_cuda", "causal_conv1d_cuda":
            patch.setitem(sys.modules, extension, ModuleType(extension))
        pytest.importorskip("triton")
        pytest.importorskip("mamba_ssm", exc_type=ImportError)
        yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("mamba_ssm", "causal_conv1d"):
            del sys.modules[name]


@pytest.fixture
def in_pytorch(monkeypatch):
    """The original modules with the references of their kernels, which run on the CPU."""

    def replace(module, **names):
        for name, value in names.items():
            monkeypatch.setattr(f"mamba_ssm.{module}.{name}", value)

    gated = theirs("ops.triton.layernorm_gated.rms_norm_ref")
    replace("ops.triton.layernorm_gated", rmsnorm_fn=gated)
    conv = {"causal_conv1d_fn": None, "causal_conv1d_update": None}
    step = {"selective_state_update": None}
    scan = theirs("ops.selective_scan_interface.selective_scan_ref")
    replace("modules.mamba_simple", selective_scan_fn=scan, **conv, **step)
    scan = theirs("ops.triton.ssd_combined.ssd_chunk_scan_combined_ref")

    def chunk_scan(*args, chunk_size, **kwargs):
        known = {k: v for k, v in kwargs.items() if k in inspect.signature(scan).parameters}
        return scan(*args, chunk_size=args[0].shape[1], **known)

    replace("modules.mamba2", mamba_chunk_scan_combined=chunk_scan, **conv, **step)
    replace("modules.mamba2_simple", mamba_chunk_scan_combined=chunk_scan, causal_conv1d_fn=None)
    replace("modules.mha", **conv)
    norms = [theirs(f"ops.triton.layer_norm.{name}_norm_ref") for name in ("layer", "rms")]

    def norm(*args, is_rms_norm, residual_in_fp32, **kwargs):
        return norms[is_rms_norm](*args, **kwargs)

    replace("modules.block", layer_norm_fn=norm)
    replace("models.mixer_seq_simple", layer_norm_fn=norm)
    replace("ops.triton.layer_norm", rms_norm_fn=norms[1])


NAMES = [
    *("modules.mamba_simple.Mamba", "modules.mamba2.Mamba2", "modules.mamba2_simple.Mamba2Simple"),
    *("modules.block.Block", "modules.mlp.GatedMLP", "modules.mha.MHA"),
    *("modules.ssd_minimal.ssd_minimal_discrete", "models.config_mamba.MambaConfig"),
    *(f"models.mixer_seq_simple.{x}" for x in ("MambaLMHeadModel", "MixerModel", "create_block")),
    "models.mixer_seq_simple._init_weights",
    *(f"utils.generation.{x}" for x in ("InferenceParams", "decode", "sample")),
    *(f"utils.generation.{x}" for x in ("update_graph_cache", "GenerationMixin.generate")),
    *(f"utils.generation.modify_logits_for_{x}_filtering" for x in ("top_k", "top_p", "min_p")),
    "utils.generation.modify_logit_for_repetition_penalty",
    *(f"utils.hf.{x}" for x in ("load_config_hf", "load_state_dict_hf")),
    "distributed.distributed_utils.get_dim_for_local_rank",
]
METHODS = ("forward", "step", "allocate_inference_cache", "from_pretrained", "save_pretrained")
METHODS += ("_get_states_from_cache", "tie_weights", "reset")


def parameters(function):
    return [
        (p.name, p.kind, "factory" if "factory" in str(p.default) else p.default)
        for p in inspect.signature(function).parameters.values()
    ]


def find(where, name):
    if name.endswith("GenerationMixin.generate"):
        return where(name.rpartition(".")[0]).generate
    return where(name)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_those_of_the_original(name):
    mine, original = find(ours, name), find(theirs, name)
    expected = parameters(original)
    assert parameters(mine)[: len(expected)] == expected
    for method in METHODS if inspect.isclass(original) else ():
        if hasattr(original, method):
            expected = parameters(getattr(original, method))
            assert parameters(getattr(mine, method))[: len(expected)] == expected, method


@pytest.mark.parametrize(
    "name, options",
    [
        ("modules.mamba_simple.Mamba", {"d_state": 4}),
        ("modules.mamba2.Mamba2", {"headdim": 8, "ngroups": 2, "d_ssm": 16}),
        ("modules.mamba2_simple.Mamba2Simple", {"headdim": 8, "ngroups": 2}),
        ("modules.mha.MHA", {"num_heads": 2, "causal": True}),
    ],
)
def test_what_a_gpu_machine_has_pickled_runs_here_and_the_other_way_round(name, options):
    original = theirs(name)(16, layer_idx=0, **options)
    mine = ours(name)(16, layer_idx=0, **options)
    assert set(vars(original)) <= set(vars(mine))
    mine.load_state_dict(original.state_dict())
    loaded = _Unpickler(io.BytesIO(pickle.dumps(original))).load()
    assert type(loaded) is type(mine)
    u = torch.randn(2, 5, 16)
    assert torch.equal(loaded(u), mine(u))
    if hasattr(original, "step"):
        caches = [m.allocate_inference_cache(2, 9) for m in (loaded, mine)]
        assert torch.equal(loaded.step(u[:, :1], *caches[0])[0], mine.step(u[:, :1], *caches[1])[0])


def test_the_package_exports_what_the_original_does_but_mamba3():
    mine, original = import_module(OURS), import_module("mamba_ssm")
    assert original.__version__.startswith(mine.__version__.partition("+")[0])
    names = {name for name in vars(original) if name[0].isupper() or name.endswith("_fn")}
    assert names - {"Mamba3"} <= vars(mine).keys()


MODULES = {
    "Mamba": ("modules.mamba_simple.Mamba", {"d_model": 40}),
    "Mamba constant": (
        "modules.mamba_simple.Mamba",
        {"d_model": 8, "dt_init": "constant", "bias": True, "conv_bias": False, "dt_rank": 3}
        | {"expand": 1.5, "dtype": torch.bfloat16},
    ),
    "Mamba2": ("modules.mamba2.Mamba2", {"d_model": 64}),
    "Mamba2 options": (
        "modules.mamba2.Mamba2",
        {"d_model": 16, "d_ssm": 24, "headdim": 8, "ngroups": 3, "D_has_hdim": True, "bias": True}
        | {"conv_init": 0.3, "rmsnorm": True, "dtype": torch.bfloat16},
    ),
    "Mamba2 without norm": ("modules.mamba2.Mamba2", {"d_model": 32, "rmsnorm": False}),
    "Mamba2Simple": ("modules.mamba2_simple.Mamba2Simple", {"d_model": 64}),
    "Mamba2Simple states": (
        "modules.mamba2_simple.Mamba2Simple",
        {"d_model": 16, "headdim": 8, "ngroups": 2, "learnable_init_states": True},
    ),
    "MHA": ("modules.mha.MHA", {"embed_dim": 16, "num_heads": 4}),
    "MHA options": (
        "modules.mha.MHA",
        {"embed_dim": 16, "num_heads": 4, "num_heads_kv": 2, "mlp_dim": 300, "d_conv": 3}
        | {"head_dim": 6, "qkv_proj_bias": False, "causal": True, "softmax_scale": 0.2},
    ),
    "GatedMLP": ("modules.mlp.GatedMLP", {"in_features": 16}),
}
SIZES = {"d_model": 16, "n_layer": 3, "vocab_size": 19}
MODELS = {
    "Mamba": {},
    "Mamba without norms of its own": {"rms_norm": False, "fused_add_norm": False},
    "Mamba2": {"ssm_cfg": {"layer": "Mamba2", "headdim": 8}, "d_intermediate": 20},
    "hybrid": {
        "attn_layer_idx": [1],
        "attn_cfg": {"num_heads": 2, "causal": True},
        "tie_embeddings": False,
        "d_intermediate": 20,
    },
}


def model_of(where, name):
    config = where("models.config_mamba.MambaConfig")(**SIZES | MODELS[name])
    return where("models.mixer_seq_simple.MambaLMHeadModel")(config)


def both(name):
    """A module of ours and the original, from one seed."""
    built = []
    for where in ours, theirs:
        torch.manual_seed(0)
        if name in MODULES:
            path, options = MODULES[name]
            built.append(where(path)(**options))
        else:
            built.append(model_of(where, name.removeprefix("model: ")))
        built[-1].draw = torch.rand(1)
    return built


ALL = [*MODULES, *(f"model: {name}" for name in MODELS)]


@pytest.mark.parametrize("name", ALL)
def test_parameters_and_their_initial_values_are_those_of_the_original(name):
    mine, original = both(name)
    assert mine.draw == original.draw  # as many random numbers
    pairs = zip(mine.named_parameters(), original.named_parameters(), strict=True)
    for (a, p), (b, q) in pairs:
        assert (a, p.dtype, p.shape) == (b, q.dtype, q.shape)
        assert torch.allclose(p, q, rtol=1e-6, atol=0), a
        marks = ("_no_weight_decay", "_no_reinit")
        assert [hasattr(p, m) for m in marks] == [hasattr(q, m) for m in marks], a
    mine.load_state_dict(original.state_dict())
    original.load_state_dict(mine.state_dict())


def jittered(mine, original):
    torch.manual_seed(1)
    with torch.no_grad():
        for p in mine.parameters():
            p.add_(0.1 * torch.randn_like(p))
    original.load_state_dict(mine.state_dict())
    return mine.float(), original.float()


WIDTHS = ("d_model", "embed_dim", "in_features")


def close(a, b, tolerance=2e-5):
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max())


# without Triton, the original's scan takes no initial states
@pytest.mark.parametrize("name", [name for name in MODULES if name != "Mamba2Simple states"])
def test_outputs_are_those_of_the_original(name, in_pytorch):
    mine, original = jittered(*both(name))
    original.use_mem_eff_path = original.use_fast_path = False
    (width,) = (v for k, v in MODULES[name][1].items() if k in WIDTHS)
    x = torch.randn(2, 6, width)
    assert close(mine(x), original(x))
    if hasattr(original, "step") and getattr(mine, "ngroups", 1) == 1:
        states = [mine.allocate_inference_cache(2, 6) for _ in range(2)]
        for t in range(6):
            out, expected = (
                m.step(x[:, t : t + 1], *s)[0]
                for m, s in zip((mine, original), states, strict=True)
            )
            assert close(out, expected)
        for a, b in zip(*states, strict=True):
            assert close(a, b)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_original(name, in_pytorch):
    mine, original = jittered(*both(f"model: {name}"))
    for layer in original.backbone.layers:
        layer.mixer.use_mem_eff_path = layer.mixer.use_fast_path = False
    ids = torch.randint(0, 19, (2, 7))
    assert close(mine(ids, num_last_tokens=3).logits, original(ids, num_last_tokens=3).logits)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the original
@pytest.mark.parametrize("name", MODELS)
def test_files_of_either_are_read_by_the_other(name, tmp_path):
    mine, original = jittered(*both(f"model: {name}"))
    mine.save_pretrained(tmp_path / "mine")
    original.save_pretrained(tmp_path / "original")
    names = sorted(path.name for path in (tmp_path / "mine").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "original").iterdir())
    assert (tmp_path / "mine/config.json").read_text() == (
        tmp_path / "original/config.json"
    ).read_text()
    for folder in "mine", "original":
        for model in mine, original:
            again = type(model).from_pretrained(str(tmp_path / folder))
            pairs = zip(again.parameters(), mine.parameters(), strict=True)
            assert all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 4},
        {"top_k": 5, "top_p": 0.8, "temperature": 0.7},
        {"top_k": 0, "top_p": 0.9, "temperature": 1.3},
        {"repetition_penalty": 1.5},
        {"top_k": 3, "repetition_penalty": 1.5, "eos_token_id": 2, "vocab_size": 7},
    ],
)
def test_tokens_drawn_are_those_of_the_original(options, monkeypatch):
    event = SimpleNamespace(record=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: event)

    def model(input_ids, *, inference_params, **_):
        generator = torch.Generator().manual_seed(inference_params.seqlen_offset)
        return SimpleNamespace(logits=3 * torch.randn(2, 1, 9, generator=generator))

    prompt, results = torch.arange(6).view(2, 3), []
    for where in ours, theirs:
        torch.manual_seed(5)
        decode = partial(where("utils.generation.decode"), output_scores=True)
        results.append(decode(prompt, model, 20, **options))
    mine, original = results
    assert torch.equal(mine.sequences, original.sequences)
    assert all(torch.equal(a, b) for a, b in zip(mine.scores, original.scores, strict=True))


def test_the_minimal_scan_is_that_of_the_original():
    x, B, C = (torch.randn(2, 12, 3, n) for n in (4, 5, 5))
    A, state = -torch.rand(2, 12, 3), torch.randn(2, 1, 3, 4, 5)
    for start in None, state:
        results = [
            where("modules.ssd_minimal.ssd_minimal_discrete")(x, A, B, C, 4, start)
            for where in (ours, theirs)
        ]
        assert all(close(a, b) for a, b in zip(*results, strict=True))
