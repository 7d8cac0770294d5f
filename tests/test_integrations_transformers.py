"""fastderiv.integrations.transformers: the switch, and which calls are left to transformers."""

import copy
import subprocess
import sys
import threading
import warnings

import pytest

import fastderiv as fd

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from fastderiv.integrations import transformers as fast
from fastderiv.integrations.transformers import _leaving
from fastderiv.ssm import ScanCall
from helpers.small_models import OLD, build, close, functions, step, tokens

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"
    ),
    pytest.mark.filterwarnings(
        "ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning"
    ),
]

of_functions = pytest.mark.skipif(OLD, reason="transformers 4.5x has methods instead of functions")

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture(autouse=True)
def off_afterwards():
    transformers.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on such small models, threads only wait for each other
    yield
    torch.set_num_threads(threads)
    fast.disable()


@pytest.fixture
def scans(monkeypatch):
    """Counts the calls of fastderiv by name."""
    counts = {"selective_scan": 0, "selective_state_update": 0}

    def counting(name, function):
        def counted(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return counted

    # a scan is a `ScanCall`, with states kept for its gradients or not
    monkeypatch.setattr(ScanCall, "scan", counting("selective_scan", ScanCall.scan))
    name = "selective_state_update"
    monkeypatch.setattr(fd, name, counting(name, getattr(fd, name)))
    return counts


def test_cached_prefill_then_tokens_one_by_one(scans):
    model, ids = build(), tokens()

    def decode():
        with torch.no_grad():
            first, cache = step(model, ids[:, :4])
            rest = [step(model, ids[:, i : i + 1], cache)[0] for i in range(4, ids.shape[1])]
        return torch.cat([first, *rest], 1)

    expected = decode()
    with fast.enabled():
        assert close(decode(), expected)
        with torch.no_grad():
            assert close(model(ids, use_cache=False).logits, expected)
    assert scans["selective_state_update"] == 5 * 2


@pytest.mark.skipif(OLD, reason="transformers 4.5x cannot")
def test_several_tokens_on_a_used_cache_are_what_transformers_makes_of_them():
    model, ids = build(), tokens()

    def pieces():
        with torch.no_grad():
            return step(model, ids[:, 4:], step(model, ids[:, :4])[1])[0]

    expected = pieces()
    with fast.enabled():
        assert close(pieces(), expected)


@of_functions
@pytest.mark.parametrize("adjacent", ["channels", "steps"])
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-14), (torch.bfloat16, 1e-2)]
)
@pytest.mark.parametrize("options", [{}, {"activation": "silu"}, {"bias": True, "seq_idx": None}])
def test_convolution(adjacent, dtype, tolerance, options):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 7, 12), torch.randn(6, 4), torch.randn(6)
    x = x[..., :6].transpose(1, 2) if adjacent == "channels" else x[:, :6]
    if "bias" in options:
        options = options | {"bias": bias.to(dtype)}
    convolve = functions()[2]
    expected = convolve(x.to(dtype), weight.to(dtype), **options)
    fast.enable()
    assert functions()[2] is not convolve
    result = functions()[2](x.to(dtype), weight.to(dtype), **options)
    assert result.dtype == dtype and close(result, expected, tolerance)


def test_decoding_may_be_part_of_the_loss(scans):
    model, ids = build(), tokens()
    with fast.enabled():
        step(model, ids[:, -1:], step(model, ids[:, :-1])[1])[0].sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(ids, use_cache=False).logits[:, -1].sum().backward()  # transformers' own step refuses
    for name, p in model.named_parameters():
        assert close(ours[name], p.grad, 1e-4), name


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)]
)
def test_other_precisions(dtype, tolerance, scans):
    model, ids = build().to(dtype), tokens()
    with torch.no_grad():
        expected = model(ids).logits
        with fast.enabled():
            logits = model(ids).logits
            model.generate(ids, **GREEDY)
    assert scans["selective_scan"] > 0 and scans["selective_state_update"] > 0
    assert logits.dtype == expected.dtype and close(logits, expected, tolerance)


def test_autocast(scans):
    model, ids = build(), tokens()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(ids).logits
        with fast.enabled():
            assert close(model(ids).logits, expected, 2e-2)
    assert scans["selective_scan"] > 0


def test_a_compiled_model_follows_the_switch(scans):
    model, ids = build(num_hidden_layers=1), tokens(3)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        for on, calls in (True, 1), (False, 1), (True, 2):
            (fast.enable if on else fast.disable)()
            assert close(compiled(ids, use_cache=False).logits, expected)
            assert scans["selective_scan"] == calls


def test_the_switch():
    originals = functions()
    fast.enable()
    ours = functions()
    assert not any(new is old for new, old in zip(ours, originals, strict=True))
    fast.enable()
    assert functions() == ours
    with fast.enabled():
        assert functions() == ours
    assert functions() == ours
    fast.disable()
    assert functions() == originals
    fast.disable()
    with fast.enabled():
        with fast.enabled():
            fast.disable()
        assert functions() != originals
    assert functions() == originals
    with pytest.raises(KeyError), fast.enabled():
        raise KeyError
    assert functions() == originals


def test_blocks_of_several_threads_overlap():
    originals = functions()
    entered, leave = threading.Event(), threading.Event()

    def other():
        with fast.enabled():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with fast.enabled():
        thread.start()
        assert entered.wait(60)
    assert functions() != originals
    leave.set()
    thread.join(60)
    assert functions() == originals


@pytest.fixture
def unsaid(monkeypatch):
    monkeypatch.setattr(_leaving, "_said", set())


def test_what_cannot_be_handled_is_left_to_transformers_and_said_once(unsaid, scans):
    model, ids = copy.deepcopy(build()).to("meta"), tokens().to("meta")
    with fast.enabled(), torch.no_grad():
        with pytest.warns(
            RuntimeWarning, match="leaves this to transformers: a tensor is on meta, not on cpu"
        ):
            assert model(ids).logits.shape == (2, 9, 37)
        assert model(ids).logits.shape == (2, 9, 37)
    assert sum(scans.values()) == 0


@of_functions
def test_what_cannot_be_handled_compiles_too(unsaid):
    fast.enable()
    torch._dynamo.reset()
    scan = torch.compile(functions()[0], backend="aot_eager", fullgraph=True)
    with torch.device("meta"):
        u, A, B = torch.ones(1, 3, 2), torch.ones(3, 2), torch.ones(1, 2, 2)
    assert scan(u, u, A, B, B).shape == u.shape


# ---- derivatives that look into the scan, or differentiate it twice ------------------------------


def program(name):
    """A function of the model, its embedded tokens and the tokens, by name; each runs on plain
    transformers.
    """

    def logits(model, x):
        return model(inputs_embeds=x, use_cache=False).logits

    def of_parameters(model, ids):
        def loss(parameters, one):
            called = torch.func.functional_call(
                model, parameters, (one[None],), {"use_cache": False}
            )
            return called.logits.square().mean()

        return loss, {key: p.detach() for key, p in model.named_parameters()}

    def jvp(model, x, ids):
        return torch.func.jvp(lambda x: logits(model, x), (x,), (x,))

    def grad(model, x, ids):
        loss, parameters = of_parameters(model, ids)
        return torch.func.grad(loss)(parameters, ids[0])

    def per_sample(model, x, ids):
        loss, parameters = of_parameters(model, ids)
        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, ids)

    def dual(model, x, ids):
        with torch.autograd.forward_ad.dual_level():
            out = logits(model, torch.autograd.forward_ad.make_dual(x, x))
            return torch.autograd.forward_ad.unpack_dual(out).tangent.detach()

    def decoding(model, x, ids):
        def last(x):
            cache = step(model, inputs_embeds=x[:, :-1])[1]
            return step(model, cache=cache, inputs_embeds=x[:, -1:])[0]

        with torch.no_grad():
            return torch.func.jvp(last, (x,), (x,))

    def twice(model, x, ids):
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(logits(model, x).square().mean(), x, create_graph=True)
        scans = [
            p for key, p in model.named_parameters() if key.endswith(("A_log", "dt_proj.weight"))
        ]
        return gradient.detach(), torch.autograd.grad(1e3 * gradient.square().sum(), [x, *scans])

    def twice_with_checkpoints(model, x, ids):
        model = copy.deepcopy(model).train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        return twice(model, x, ids)

    def batched(model, x, ids):
        x = x.clone().requires_grad_()
        out = logits(model, x)[:, -1, :3].sum(0)
        return torch.autograd.grad(out, x, torch.eye(3), is_grads_batched=True)

    def hvp(model, x, ids):
        return torch.autograd.functional.hvp(lambda x: logits(model, x).square().mean(), x, x)

    def inference(model, x, ids):
        with torch.inference_mode():
            return logits(model, x)

    def copied(model, x, ids):
        return logits(copy.deepcopy(model), x).detach()

    return locals()[name]


LEFT = ("jvp", "grad", "per_sample", "dual", "decoding")
KEPT = ("twice", "twice_with_checkpoints", "batched", "hvp", "inference", "copied")


@pytest.mark.parametrize("name", [*LEFT, *KEPT])
def test_programs_that_run_on_plain_transformers_run_here(name, unsaid, scans):
    model, ids = build(num_hidden_layers=1), tokens(5)
    x = model.get_input_embeddings()(ids).detach()
    expected = torch.utils._pytree.tree_leaves(program(name)(model, x, ids))
    assert sum(scans.values()) == 0
    with fast.enabled():
        if name in LEFT:
            with pytest.warns(
                RuntimeWarning,
                match=r"leaves this to transformers: forward mode and the transforms of torch.func",
            ):
                results = program(name)(model, x, ids)
        else:
            results = program(name)(model, x, ids)
    assert (sum(scans.values()) > 0) == (name in KEPT)
    for ours, theirs in zip(torch.utils._pytree.tree_leaves(results), expected, strict=True):
        assert close(ours, theirs, 1e-4)


def test_a_traced_model_does_not_need_fastderiv(unsaid):
    class Logits(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, ids):
            return self.inner(ids, use_cache=False).logits

    model, ids = build(num_hidden_layers=1).requires_grad_(False), tokens(4)
    with fast.enabled(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # PyTorch and transformers have warnings of their own here
        traced = torch.jit.trace(Logits(model), (ids,), check_trace=False)
    assert any(
        "leaves this to transformers: a traced model" in str(warning.message) for warning in said
    )
    assert "fastderiv" not in str(traced.inlined_graph)
    assert close(traced(ids), model(ids, use_cache=False).logits)


@of_functions
def test_tensors_with_operations_of_their_own_and_proxies_are_left_to_transformers(unsaid):
    from torch.testing._internal.two_tensor import TwoTensor

    fast.enable()
    convolve = functions()[2]
    x, weight = torch.randn(2, 3, 8), torch.randn(3, 4)
    expected = convolve(x, weight)
    with pytest.warns(
        RuntimeWarning, match="a tensor is a TwoTensor, which has operations of its own"
    ):
        assert close(convolve(TwoTensor(x, x.clone()), weight).a, expected)
    with pytest.warns(RuntimeWarning, match="an argument is a Proxy"):
        graph = torch.fx.symbolic_trace(lambda s, x: functions()[1](s, x, x, x, x, x))
    assert "fastderiv" not in str(graph.graph)


def test_an_exported_model_does_not_need_fastderiv(unsaid):
    model, ids = build(), tokens(4)
    with fast.enabled(), torch.no_grad():
        with pytest.warns(RuntimeWarning, match="exported"):
            exported = torch.export.export(model, (ids,), {"use_cache": False}, strict=False)
        expected = model(ids, use_cache=False).logits
    assert "fastderiv" not in str(exported.graph)
    assert close(exported.module()(ids, use_cache=False).logits, expected)


@of_functions
def test_arguments_of_a_newer_function_are_left_to_transformers(unsaid, monkeypatch):
    from transformers.models.mamba import modeling_mamba as module

    original = module.mamba_selective_scan

    def newer(hidden_states, *args, scale=None, **kwargs):
        return (1 if scale is None else scale) * original(hidden_states, *args, **kwargs)

    newer.__module__ = module.__name__
    monkeypatch.setattr(module, "mamba_selective_scan", newer)
    u, A, B = torch.ones(1, 3, 4), -torch.ones(3, 2), torch.ones(1, 2, 4)
    expected = 2 * original(u, u, A, B, B)
    with fast.enabled(), pytest.warns(RuntimeWarning, match="the argument scale is unknown here"):
        assert close(module.mamba_selective_scan(u, u, A, B, B, scale=2.0), expected)


@of_functions
def test_arguments_that_transformers_ignores_are_ignored(scans):
    fast.enable()
    u, A, B = torch.ones(1, 3, 4), -torch.ones(3, 2), torch.ones(1, 2, 4)
    functions()[0](u, u, A, B, B, position_ids=torch.arange(4), backend="other")
    assert scans["selective_scan"] == 1


@of_functions
def test_a_version_without_these_functions_is_left_as_it_is(unsaid, monkeypatch):
    from transformers.models.jamba import modeling_jamba

    monkeypatch.delattr(modeling_jamba, "mamba_selective_scan")
    with pytest.warns(RuntimeWarning, match="has no .*modeling_jamba.mamba_selective_scan"):
        fast.enable()
    fast.disable()
    assert not hasattr(modeling_jamba, "mamba_selective_scan")


@of_functions
def test_a_version_with_other_layers_is_left_as_it_is(unsaid, monkeypatch):
    from transformers.models.jamba import modeling_jamba

    monkeypatch.delattr(modeling_jamba, "causal_conv1d_fn")
    scan = modeling_jamba.mamba_selective_scan
    with pytest.warns(RuntimeWarning, match="layers that are unknown here in the models jamba$"):
        fast.enable()
    assert modeling_jamba.mamba_selective_scan is scan


@pytest.mark.parametrize(
    "missing, advice", [("torch", "needs PyTorch"), ("transformers", "pip install transformers")]
)
def test_without_its_libraries_it_says_what_to_install(missing, advice):
    code = (
        f"import sys; sys.modules['{missing}'] = None\n"
        "try: import fastderiv.integrations.transformers\n"
        "except ImportError as e: print(e)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert advice in done.stdout
