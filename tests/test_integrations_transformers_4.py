"""fastderiv.integrations.transformers with transformers 4.5x: what that line has of its own."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from fastderiv.integrations import transformers as fast
from fastderiv.integrations.transformers import _leaving, _mixers
from helpers.small_models import OLD, build, close, step, tokens

if not OLD:
    pytest.skip("this is not transformers 4.5x", allow_module_level=True)


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
    """One element for each call of the scan."""
    calls, scan = [], _mixers.selective_scan

    def noted(*args, **kwargs):
        calls.append(1)
        return scan(*args, **kwargs)

    monkeypatch.setattr(_mixers, "selective_scan", noted)
    return calls


@pytest.mark.parametrize("family", ["Jamba", "Zamba"])
def test_the_models_that_refuse_a_cpu_work_as_they_are_configured(family, scans):
    expected = build(family)(tokens(), use_cache=False).logits
    model = build(family, use_mamba_kernels=True)
    with fast.enabled():
        assert close(model(tokens(), use_cache=False).logits, expected)
    assert scans
    with pytest.raises(ValueError, match="Fast Mamba kernels are not available"):
        model(tokens())


@pytest.mark.parametrize("method", ["slow_forward", "forward"])
def test_a_layer_of_a_user_keeps_its_own_methods(method, scans):
    from transformers.models.jamba.modeling_jamba import JambaMambaMixer

    def twice(self, *args, **kwargs):
        return 2 * getattr(JambaMambaMixer, method)(self, *args, **kwargs)

    model = build("Jamba")
    layer = model.model.layers[0].mamba
    layer.__class__ = type("Own", (JambaMambaMixer,), {method: twice})
    x = torch.randn(2, 5, 32)
    expected = layer(x)
    with fast.enabled():
        assert close(layer(x), expected)
    assert scans


def test_layers_of_qwen3_next_are_served_whenever_they_were_built(monkeypatch):
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet as Layer

    def functions(model):
        layer = model.model.layers[0].linear_attn
        return [layer.causal_conv1d_fn, layer.causal_conv1d_update]

    before = build("Qwen3Next")
    originals = functions(before)
    with fast.enabled():
        within = build("Qwen3Next")
        assert functions(before) == functions(within) != originals
        own = build("Qwen3Next")
        own.model.layers[0].linear_attn.causal_conv1d_fn = _mixers.qwen3_next
        assert functions(own)[0] is _mixers.qwen3_next
    assert functions(before) == functions(within) == originals
    assert functions(own)[0] is _mixers.qwen3_next
    assert not hasattr(Layer, "causal_conv1d_fn")


@pytest.mark.parametrize("family", ["Mamba", "Lfm2"])
def test_after_prompts_shorter_than_the_window_decoding_equals_a_full_pass(family):
    model, ids = build(family), tokens(5)
    with torch.no_grad(), fast.enabled():
        expected = model(ids, use_cache=False).logits
        first, cache = step(model, ids[:, :1])
        rest = [step(model, ids[:, i : i + 1], cache)[0] for i in range(1, 5)]
    assert close(torch.cat([first, *rest], 1), expected)


def test_the_chunks_of_zamba2_belong_to_one_sequence():
    """Transformers adds up their states wrongly, but has only one chunk of 16 here."""
    with torch.no_grad():
        expected = build("Zamba2", chunk_size=16)(tokens(16), use_cache=False).logits
        with fast.enabled():
            ours = build("Zamba2", chunk_size=4)(tokens(16), use_cache=False).logits
    assert close(ours, expected)


def test_zamba2_limits_its_step_sizes_from_below():
    def results(**options):
        model = build("Zamba2", **options)
        with torch.no_grad():
            first, cache = step(model, tokens())
            return torch.cat([first, step(model, tokens(1), cache)[0]], 1)

    expected = results(time_step_min=1.5)
    assert not close(results(), expected)
    with fast.enabled():
        assert close(results(time_step_min=1.5), expected)


def test_a_version_without_a_method_is_left_as_it_is(monkeypatch):
    from transformers.models.jamba.modeling_jamba import JambaMambaMixer

    monkeypatch.setattr(_leaving, "_said", set())
    monkeypatch.delattr(JambaMambaMixer, "slow_forward")
    with pytest.warns(RuntimeWarning, match=r"has no .*JambaMambaMixer.slow_forward$"):
        fast.enable()
    fast.disable()
    assert not hasattr(JambaMambaMixer, "slow_forward")
