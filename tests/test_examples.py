"""The examples run, and what they claim to compute they compute."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mamba():
    return example("train_mamba")


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return example("grid_rnn_digits")


def test_mamba_gradients_of_every_parameter_equal_differences(mamba):
    """In float64, along a random direction of one parameter after the other, by a central difference."""
    rng = np.random.default_rng(1)
    model = mamba.cast(mamba.initial_model(rng, 7), np.float64)
    text = rng.integers(0, 7, (2, 12))
    _, grads = mamba.loss_and_grads(model, text)
    for p, d in zip(model, grads, strict=True):
        assert p.keys() == d.keys()
        for name, value in p.items():
            direction, ends = rng.normal(size=value.shape) / np.sqrt(value.size), []
            for t in 1e-5, -1e-5:
                p[name] = value + t * direction
                ends.append(mamba.loss_and_grads(model, text)[0])
            p[name] = value
            slope = (ends[0] - ends[1]) / 2e-5
            assert abs((d[name] * direction).sum() - slope) < 1e-9, name


def test_mamba_trains_in_float32_and_twice_the_same(mamba):
    text, _, characters = mamba.load_text()
    runs = []
    for _ in range(2):
        rng, reports = np.random.default_rng(0), []
        model = mamba.initial_model(rng, len(characters))
        runs.append(mamba.train(model, text, 3, rng, lambda t, losses, reports=reports: reports.append((t, losses[-1]))))
        assert reports == list(enumerate(runs[-1], start=1))
    assert runs[0] == runs[1] and runs[0][2] < runs[0][0]
    assert all(a.dtype == np.float32 for p in model for a in p.values())


def test_mamba_reads_in_chunks_as_at_once(mamba):
    model = mamba.initial_model(np.random.default_rng(2), 9)
    text = np.random.default_rng(3).integers(0, 9, 80)
    assert np.isclose(mamba.held_out_bits(model, text, chunk=7), mamba.held_out_bits(model, text, chunk=100), rtol=1e-5)


def test_ngrams_are_distributions_that_learn(mamba):
    """Summed over every possible last character, what an n-gram says of it is 1; and it says nothing of an unseen order."""
    train = np.random.default_rng(4).integers(0, 5, 300)
    for n in 1, 2, 3:
        ends = [mamba.ngram_bits(train, np.append(train[: n - 1], c), n, 5)[-1] for c in range(5)]
        assert np.isclose(sum(2.0**-b for b in ends), 1)
    period = np.tile([0, 1, 2, 3], 100)
    assert mamba.ngram_bits(period, period[:40], 2, 4)[1] < 0.05


def test_digits_gradients_of_every_parameter_equal_differences(digits):
    """In float64, along a random direction of one parameter after the other, by a central difference."""
    rng = np.random.default_rng(1)
    model = digits.initial_model(rng, np.float64)
    images, labels = rng.normal(size=(5, 8, 8, 1)), rng.integers(0, 10, 5)
    _, grads = digits.loss_and_grads(model, images, labels)
    assert grads.keys() == model.keys()
    for name, value in model.items():
        direction, ends = rng.normal(size=value.shape) / np.sqrt(value.size), []
        for t in 1e-5, -1e-5:
            model[name] = value + t * direction
            ends.append(digits.loss_and_grads(model, images, labels)[0])
        model[name] = value
        slope = (ends[0] - ends[1]) / 2e-5
        assert abs((grads[name] * direction).sum() - slope) < 1e-8 * max(1, abs(slope)), name


def test_digits_are_learned_and_twice_the_same(digits):
    """Ten epochs come to 94 %, forty to 97 %."""
    train_set, test_set = digits.load()
    assert len(train_set[1]) + len(test_set[1]) == 1797
    runs = []
    for epochs in 10, 10:
        rng = np.random.default_rng(0)
        model = digits.initial_model(rng)
        runs.append(digits.train(model, train_set, test_set, epochs, rng))
        assert all(a.dtype == np.float32 for a in model.values())
    assert runs[0] == runs[1] and runs[0][1][-1] > 0.9
