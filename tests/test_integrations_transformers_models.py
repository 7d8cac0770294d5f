"""fastderiv.integrations.transformers: small random models give the same results with it."""

import copy
import inspect
import pkgutil
import re
import subprocess
import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.version import Version

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from fastderiv.integrations import transformers as fast
from fastderiv.integrations.transformers import _functions, _leaving, _mixers
from fastderiv.integrations.transformers._table import LEFT_ALONE, TABLE
from helpers.small_models import (
    CONFIGURATIONS,
    OLD,
    build,
    cache_name,
    close,
    gradients,
    step,
    tokens,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"
    ),
    pytest.mark.filterwarnings(
        "ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning"
    ),
]

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
SCAN = ("causal_conv1d", "causal_conv1d_update", "selective_scan", "selective_state_update")
SSD = ("causal_conv1d", "causal_conv1d_update", "ssd_scan", "selective_state_update")
CONVOLUTION = ("causal_conv1d", "causal_conv1d_update")
MAMBA = ("Mamba", "FalconMamba", "Jamba", "Zamba")
MAMBA2 = ("Mamba2", "Bamba", "FalconH1", "GraniteMoeHybrid", "NemotronH", "Zamba2")
PACKING = (*MAMBA2, "Lfm2", "Lfm2Moe")
REPRESENTATIVES = ("Mamba", "Mamba2", "Bamba", "Lfm2")
if OLD:
    PACKING = ("Bamba", "GraniteMoeHybrid")

of_functions = pytest.mark.skipif(OLD, reason="transformers 4.5x has methods instead of functions")


@pytest.fixture(autouse=True)
def off_afterwards():
    transformers.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on such small models, threads only wait for each other
    yield
    torch.set_num_threads(threads)
    fast.disable()


@pytest.fixture
def called(monkeypatch):
    """The names of the functions of integrations.torch that were called."""
    names = set()
    room = _mixers if OLD else _functions

    def noting(name):
        function = getattr(room, name)

        def noted(*args, **kwargs):
            names.add(name)
            return function(*args, **kwargs)

        return noted

    for name in {*SCAN, *SSD}:
        monkeypatch.setattr(room, name, noting(name))
    return names


def expected_calls(family):
    return set(SCAN if family in MAMBA else SSD if family in MAMBA2 else CONVOLUTION)


def left_padded():
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


# ---- the table -----------------------------------------------------------------------------------


def at_least(version):
    return Version(transformers.__version__) >= Version(version)


def installed():
    return {model.name for model in pkgutil.iter_modules(transformers.models.__path__)}


def kernel_functions():
    """(model, function) of the installed version: what transformers looks up in packages."""
    decorated = re.compile(
        r"^@use_kernel_func_from_hub\w*\((?:[^()]|\n)*\)\ndef (\w+)", re.MULTILINE
    )
    for model in pkgutil.iter_modules(transformers.models.__path__):
        for path in Path(model.module_finder.path, model.name).glob("modeling_*.py"):
            source = path.read_text(encoding="utf-8")
            for name in decorated.findall(source):
                yield model.name, name


@of_functions
def test_the_table_knows_every_kernel_function_of_the_installed_transformers():
    served = {(row.model, name) for row in TABLE for name in row.functions}
    found = set(kernel_functions())
    unknown = sorted((model, name) for model, name in found - served if name not in LEFT_ALONE)
    assert not unknown, f"not in the table, and not left alone for a reason: {unknown}"
    if at_least("5.24"):  # which the table was written for
        assert not served - found, f"not in this version: {sorted(served - found)}"
        assert set(LEFT_ALONE) <= {name for _, name in found}


@of_functions
def test_every_model_that_names_these_packages_is_in_the_table():
    named = re.compile(r"mamba_ssm|causal_conv1d_fn|selective_scan_fn|mamba_chunk_scan")
    comments = {"granitemoe_swa", "granitemoeshared"}  # a docstring of theirs names mamba_ssm
    models = {
        model.name
        for model in pkgutil.iter_modules(transformers.models.__path__)
        for path in Path(model.module_finder.path, model.name).glob("modeling_*.py")
        if named.search(path.read_text(encoding="utf-8"))
    }
    assert models - comments == {row.model for row in TABLE} & installed()


def arguments(name):
    """Keyword arguments for a function of transformers, in its layouts."""
    torch.manual_seed(0)
    b, length, d, n, h, p, g = 2, 9, 12, 4, 6, 2, 3
    x = torch.randn(b, length, d).transpose(1, 2)
    conv = {"weight": torch.randn(d, 4), "bias": torch.randn(d), "activation": "silu"}
    steps = {"dt_softplus": True}
    return {
        "causal_conv1d_fn": lambda: {"hidden_states": x, **conv},
        "causal_conv1d_update": lambda: {
            "hidden_states": x[..., :1],
            "conv_state": torch.randn(b, d, 4),
            **conv,
        },
        "mamba_selective_scan": lambda: {
            "hidden_states": x,
            "dt": torch.randn(b, d, length),
            "A": -torch.rand(d, n),
            "B": torch.randn(b, length, n).transpose(1, 2),
            "C": torch.randn(b, length, n).transpose(1, 2),
            "D": torch.randn(d),
            "z": torch.randn(b, d, length),
            "delta_bias": torch.randn(d),
            "delta_softplus": True,
            "return_last_state": True,
        },
        "mamba_selective_state_update": lambda: {
            "state": torch.randn(b, d, n),
            "hidden_states": torch.randn(b, d),
            "dt": torch.randn(b, d),
            "A": -torch.rand(d, n),
            "B": torch.randn(b, n),
            "C": torch.randn(b, n),
            "D": torch.randn(d),
            "z": torch.randn(b, d),
            "dt_bias": torch.randn(d),
            **steps,
        },
        "mamba2_chunk_scan": lambda: {
            "hidden_states": torch.randn(b, length, h, p),
            "dt": torch.randn(b, length, h),
            "A": -torch.rand(h),
            "B": torch.randn(b, length, g, n),
            "C": torch.randn(b, length, g, n),
            "chunk_size": 4,
            "D": torch.randn(h),
            "dt_bias": torch.randn(h),
            "initial_states": torch.randn(b, h, p, n),
            "dt_limit": (0.1, 1.0),
            "return_final_states": True,
            **steps,
        },
        "mamba2_selective_state_update": lambda: {
            "state": torch.randn(b, h, p, n),
            "hidden_states": torch.randn(b, h, p),
            "dt": torch.randn(b, h)[..., None].expand(-1, -1, p),
            "A": -torch.rand(h)[:, None, None].expand(-1, p, n),
            "B": torch.randn(b, g, n),
            "C": torch.randn(b, g, n),
            "D": torch.randn(h)[:, None].expand(-1, p),
            "dt_bias": torch.randn(h)[:, None].expand(-1, p),
            **steps,
        },
    }[name]()


@of_functions
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.model)
def test_every_function_of_the_table_equals_that_of_transformers(row, called):
    if find_spec(f"transformers.models.{row.model}") is None:
        pytest.skip("this version has no such model")
    module = import_module(row.module)
    for name in set(row.functions) - set(_functions.FUSED):
        theirs, ours = arguments(name), arguments(name)
        expected = getattr(module, name)(**theirs)
        assert not called
        with fast.enabled():
            results = getattr(module, name)(**ours)
        assert called, name
        called.clear()
        written = [(ours[key], theirs[key]) for key in ("state", "conv_state") if key in ours]
        pairs = zip(
            *(r if isinstance(r, tuple) else (r,) for r in (results, expected)), strict=True
        )
        assert all(close(a, b) and a.dtype == b.dtype for a, b in [*pairs, *written]), name


@of_functions
@pytest.mark.parametrize("kind", ["seq_idx", "cu_seqlens"])
@pytest.mark.parametrize("name", ["causal_conv1d_fn", "mamba2_chunk_scan"])
def test_packed_arguments_of_a_function(name, kind):
    from transformers.models.mamba2 import modeling_mamba2 as module

    full = {
        key: v[:1] if torch.is_tensor(v) and v.ndim > 2 else v for key, v in arguments(name).items()
    }
    full["initial_states"] = None
    axis = 2 if name == "causal_conv1d_fn" else 1
    along = {"hidden_states": axis, "dt": 1, "B": 1, "C": 1}
    bounds = [0, 4, 5, 9]
    packing = {
        "seq_idx": torch.repeat_interleave(torch.arange(3), torch.tensor([4, 1, 4]))[None],
        "cu_seqlens": torch.tensor(bounds),
    }
    function = getattr(module, name)
    parts = [
        function(
            **full
            | {key: full[key].narrow(at, i, j - i) for key, at in along.items() if key in full}
        )
        for i, j in pairwise(bounds)
    ]
    with fast.enabled():
        whole = getattr(module, name)(**full, **{kind: packing[kind]})
    if name == "causal_conv1d_fn":
        assert close(whole, torch.cat(parts, axis))
    else:
        assert close(whole[0], torch.cat([out for out, _ in parts], axis))
        assert close(whole[1], parts[-1][1])


@of_functions
def test_functions_that_the_package_kernels_made_modules_are_replaced(monkeypatch, called):
    from transformers.models.lfm2 import modeling_lfm2 as module

    function = module.causal_conv1d_fn

    class Func(torch.nn.Module):
        def forward(self, *args, **kwargs):
            return function(*args, **kwargs)

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = inspect.signature(function).parameters.values()
    Func.forward.__signature__ = inspect.Signature([own, *names])
    monkeypatch.setattr(module, "causal_conv1d_fn", Func())
    inputs = arguments("causal_conv1d_fn")
    expected = module.causal_conv1d_fn(**inputs)
    with fast.enabled():
        assert close(module.causal_conv1d_fn(**inputs), expected)
    assert called == {"causal_conv1d"}


@of_functions
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_other_activations_follow_the_convolution(activation):
    from transformers.models.mamba2 import modeling_mamba2 as module

    for name in ("causal_conv1d_fn", "causal_conv1d_update"):
        expected = getattr(module, name)(**arguments(name) | {"activation": activation})
        with fast.enabled():
            ours = getattr(module, name)(**arguments(name) | {"activation": activation})
        assert close(ours, expected)


# ---- models against the stock ones ---------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGURATIONS)
def test_logits_tokens_and_beams(family, called):
    model, inputs = build(family), left_padded()

    def results():
        with torch.no_grad():
            logits = model(**inputs).logits
        beams = {"num_beams": 3, "num_return_sequences": 3}
        # transformers 4.5x itself fails in the other case
        searches = ({},) if OLD and family == "Lfm2" else ({}, beams)
        return logits, *(model.generate(**inputs, **GREEDY, **more) for more in searches)

    logits, *expected = results()
    assert not called
    with fast.enabled():
        ours, *generated = results()
    assert called == expected_calls(family)
    assert close(ours, logits) and all(map(torch.equal, generated, expected))


@pytest.mark.parametrize(
    "family, checkpointing",
    [
        *((family, False) for family in CONFIGURATIONS),
        *((family, True) for family in REPRESENTATIVES),
    ],
)
def test_gradients_of_every_parameter(family, checkpointing, called):
    model, ids = build(family).train(), tokens()
    if checkpointing:
        model.gradient_checkpointing_enable()
    expected = gradients(model, input_ids=ids, labels=ids)
    with fast.enabled():
        ours = gradients(model, input_ids=ids, labels=ids)
    assert called == expected_calls(family) - {"causal_conv1d_update", "selective_state_update"}
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        assert close(gradient, expected[name], 1e-4), name


@pytest.mark.parametrize("family", REPRESENTATIVES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_precisions(family, dtype, tolerance, called):
    model, inputs = build(family).to(dtype), left_padded()
    with torch.no_grad():
        expected = model(**inputs).logits
        with fast.enabled():
            logits = model(**inputs).logits
            model.generate(**inputs, **GREEDY)
    assert called == expected_calls(family)
    assert logits.dtype == expected.dtype and close(logits, expected, tolerance)


@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_autocast(family):
    model, ids = build(family), tokens()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(ids).logits
        with fast.enabled():
            assert close(model(ids).logits, expected, 3e-2)


@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_pieces_on_a_cache_are_what_transformers_makes_of_them(family):
    model, ids = build(family), tokens(12)

    def pieces():
        cache, logits = None, []
        with torch.no_grad():
            several = () if OLD else ((6, 10), (10, 11), (11, 12))
            for start, stop in (0, 5), (5, 6), *several:
                part, cache = step(model, ids[:, start:stop], cache)
                logits.append(part)
        return torch.cat(logits, 1)

    expected = pieces()
    with fast.enabled():
        assert close(pieces(), expected)


def kept(generated):
    """The cache of what generate returned, under either of its names in transformers 5."""
    return generated["cache" if "cache" in generated else "past_key_values"]


@of_functions
@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_a_cache_goes_on_from_one_generate_to_the_next(family):
    model, ids = build(family), tokens()
    name = cache_name(model)

    def conversation():
        first = model.generate(ids, **GREEDY, return_dict_in_generate=True)
        longer = torch.cat([first.sequences, tokens(3)], 1)
        return model.generate(longer, **GREEDY, **{name: kept(first)})

    expected = conversation()
    with fast.enabled():
        assert torch.equal(conversation(), expected)
    with fast.enabled():  # begun with fastderiv, continued without
        first = model.generate(ids, **GREEDY, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, tokens(3)], 1)
    assert torch.equal(model.generate(longer, **GREEDY, **{name: kept(first)}), expected)


@of_functions
def test_assisted_decoding():
    model, assistant, ids = build("Lfm2"), build("Lfm2", num_hidden_layers=2), tokens(batch=1)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    expected = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, **GREEDY, assistant_model=assistant), expected)
    with fast.enabled():
        assert torch.equal(model.generate(ids, **GREEDY, assistant_model=assistant), expected)


def test_a_compiled_model():
    model, ids = build("Mamba2", num_hidden_layers=1), tokens(3)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        torch._dynamo.reset()
        fast.enable()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert close(compiled(ids, use_cache=False).logits, expected)
        fast.disable()
        assert close(compiled(ids, use_cache=False).logits, expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_a_compiled_model_in_training(family):
    if OLD and family == "Bamba":
        pytest.skip("transformers 4.5x branches on data here")
    model, ids = build(family).train(), tokens()
    expected = gradients(model, input_ids=ids, labels=ids)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with fast.enabled():
        model.zero_grad()
        compiled(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            assert close(parameter.grad, expected[name], 1e-4), name


@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_copies_in_threads_give_their_gradients_to_the_model(family):
    """As DataParallel makes them: with tensors that are no parameters, one thread each."""
    model, ids = build(family).train(), tokens()

    def replica():
        copied = copy.deepcopy(model)
        for (_, theirs), (_, ours) in zip(
            model.named_modules(), copied.named_modules(), strict=True
        ):
            for name, parameter in list(ours._parameters.items()):
                if parameter is not None:
                    del ours._parameters[name]
                    setattr(ours, name, theirs._parameters[name].clone())
        return copied

    def summed():
        model.zero_grad()
        losses = {}

        def run(k):
            losses[k] = replica()(ids[k : k + 1], labels=ids[k : k + 1]).loss

        threads = [threading.Thread(target=run, args=(k,)) for k in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (losses[0] + losses[1]).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = summed()
    with fast.enabled():
        ours = summed()
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        assert close(gradient, expected[name], 1e-4), name


# ---- packed sequences ----------------------------------------------------------------------------


def packed(lengths=(5, 2, 1, 6)):
    """What a collator without padding makes of sequences, and the sequences."""
    ids = [tokens(n, 1) for n in lengths]
    collate = transformers.DataCollatorWithFlattening(return_seq_idx=True)
    batch = collate([{"input_ids": one[0].tolist()} for one in ids])
    return {name: batch[name] for name in ("input_ids", "position_ids", "seq_idx")}, ids


def states_and_gradients(model, batches):
    """Of the model without its head: the last hidden states, and gradients of a sum of them."""
    model.zero_grad()
    states = torch.cat([model(**one, use_cache=False).last_hidden_state for one in batches], 1)
    (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    return states, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


REFUSAL = (
    (NotImplementedError, "`seq_idx` support requires fast path")
    if OLD
    else (ValueError, "can't keep packed sequences apart")
)


@pytest.mark.parametrize("family", PACKING)
@pytest.mark.parametrize("training", [False, True])
def test_packed_sequences_equal_separate_ones(family, training, called):
    model = build(family).base_model.train(training)
    batch, ids = packed()
    if OLD or family == "GraniteMoeHybrid":  # its attention does not look at position ids
        together = torch.block_diag(*(torch.ones(one.shape[1], one.shape[1]) for one in ids)).tril()
        batch["attention_mask"] = torch.where(together > 0, 0.0, -torch.inf)[None, None]
    with pytest.raises(REFUSAL[0], match=REFUSAL[1]):
        model(**batch)
    with fast.enabled():
        states, ours = states_and_gradients(model, [batch])
        assert called == expected_calls(family) - {"causal_conv1d_update", "selective_state_update"}
        expected, theirs = states_and_gradients(model, [{"input_ids": one} for one in ids])
    assert close(states, expected) and ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert close(gradient, theirs[name], 2e-4), name


@of_functions
@pytest.mark.parametrize("family", ["Zamba", "Qwen3Next"])
def test_models_that_would_mix_packed_sequences_refuse_them_as_before(family, monkeypatch):
    monkeypatch.setattr(_leaving, "_said", set())
    model = build(family)
    with (
        fast.enabled(),
        pytest.warns(RuntimeWarning, match="layers of the model would mix"),
        pytest.raises(ValueError, match="can't keep packed sequences apart"),
    ):
        model(**packed()[0])


# ---- with packages for GPUs ----------------------------------------------------------------------

WITH_PACKAGES = """
import sys, types
import torch

def refusing(name):
    def function(*args, **kwargs):
        raise RuntimeError(f"Expected x.is_cuda() to be true, but got false. ({name})")
    function.__name__ = name
    return function

def package(name, **functions):
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        path = ".".join(parts[:i])
        module = sys.modules.setdefault(path, types.ModuleType(path))
        module.__path__ = []
        if i > 1:
            setattr(sys.modules[".".join(parts[: i - 1])], parts[i - 1], module)
    for key in functions:
        setattr(sys.modules[name], key, refusing(key))

for path, names in {
    "causal_conv1d": ["causal_conv1d_fn", "causal_conv1d_update"],
    "mamba_ssm.ops.selective_scan_interface": ["selective_scan_fn", "mamba_inner_fn"],
    "mamba_ssm.ops.triton.selective_state_update": ["selective_state_update"],
    "mamba_ssm.ops.triton.ssd_combined": [
        "mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined"
    ],
}.items():
    package(path, **dict.fromkeys(names))

sys.path.insert(0, TESTS)
from fastderiv.integrations import transformers as fast
from helpers.small_models import build, gradients, tokens

torch.set_num_threads(1)
ids = tokens()
for family in ("Mamba", "Mamba2", "Lfm2"):
    model = build(family)
    try:
        model(ids)
    except RuntimeError as error:
        assert "is_cuda" in str(error), error
    else:
        raise AssertionError("the package was not used")
    with fast.enabled():
        made = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
        found = gradients(model.train(), input_ids=ids, labels=ids)
        torch.jit.trace(model.eval().requires_grad_(False).get_input_embeddings(), ids)
        torch.func.vmap(lambda one: model(one[None], use_cache=False).logits)(ids)
    print(family, made.tolist(), float(sum(g.abs().sum() for g in found.values())))
    try:
        model(ids)
    except RuntimeError:
        pass
    else:
        raise AssertionError("the package's function was not put back")
"""


@of_functions
def test_with_packages_that_refuse_cpu_tensors_generation_and_training_work(tmp_path):
    code = WITH_PACKAGES.replace("TESTS", repr(str(Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        family, rest = line.split(" ", 1)
        made, total = rest.rsplit(" ", 1)
        model, ids = build(family), tokens()
        expected = model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert made == str(expected.tolist())
        grads = gradients(model.train(), input_ids=ids, labels=ids)
        assert float(total) == pytest.approx(
            float(sum(g.abs().sum() for g in grads.values())), rel=1e-4
        )
    assert done.stdout.count("\n") == 3
