"""The examples run, and what they claim to compute they compute."""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastderiv as fd

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, *arguments, **environment):
    """An example in a process of its own."""
    command = [sys.executable, EXAMPLES / f"{name}.py", *arguments]
    encoding = environment.setdefault("PYTHONIOENCODING", "utf-8")
    return subprocess.run(
        command,
        env=os.environ | environment,
        check=False,
        capture_output=True,
        encoding=encoding,
        timeout=240,
    )


ALL = sorted(path.stem for path in EXAMPLES.glob("*.py"))
DRAWING = [name for name in ALL if name not in ("ssd_chunks", "mamba2_language_model")]
WITHOUT_MATPLOTLIB = """
import runpy, sys
sys.modules["matplotlib"] = None
sys.argv = [sys.argv[1], "--plot", "never-written.png"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", DRAWING)
def test_help_fits_a_narrow_encoding(name):
    if name not in ("directions", "lstm_carousel", "train_mamba", "tune_hyperparameters"):
        pytest.importorskip("sklearn")
    done = run(name, "--help", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "--plot FILE" in done.stdout


@pytest.mark.parametrize(
    ("name", "options", "encoding"),
    [
        ("lstm_carousel", ["--steps", "12"], "ascii"),
        ("lstm_carousel", ["--steps", "12"], "cp1252"),
        ("tune_hyperparameters", ["--rounds", "1"], "ascii"),
    ],
)
def test_what_is_printed_fits_a_narrow_encoding(name, options, encoding):
    if name != "lstm_carousel":
        pytest.importorskip("sklearn")
    done = run(name, *options, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert "\\u" in done.stdout


@pytest.mark.parametrize(
    ("name", "options"),
    [("lstm_carousel", ["--steps", "12"]), ("grid_rnn_digits", ["--epochs", "1"])],
)
def test_the_picture_is_where_it_says(name, options, tmp_path):
    pytest.importorskip("matplotlib")
    if name != "lstm_carousel":
        pytest.importorskip("sklearn")
    done = run(name, *options, "--plot", str(tmp_path / "picture"))
    assert done.returncode == 0, done.stderr
    (said,) = re.findall("^Wrote (.*)$", done.stdout, re.MULTILINE)
    assert [Path(said)] == [*tmp_path.iterdir()] and said.endswith("picture.png")


@pytest.mark.parametrize("name", DRAWING)
def test_pictures_that_cannot_be_drawn_are_refused_before_any_work(name, tmp_path):
    if name not in ("directions", "lstm_carousel", "train_mamba", "tune_hyperparameters"):
        pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    done = run(name, "--plot", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "is a folder; expected a file" in done.stderr
    command = [sys.executable, "-c", WITHOUT_MATPLOTLIB, EXAMPLES / f"{name}.py"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'fastderiv[demo]'" in done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_numbers_of_steps_are_positive(value):
    done = run("lstm_carousel", "--steps", value)
    assert done.returncode == 2 and "expected a positive integer" in done.stderr


@pytest.mark.parametrize(("steps", "machines"), [(1000, 4), (3, 5), (200, 1)])
def test_chunks_on_several_machines_give_the_scan_of_the_whole(steps, machines):
    chunks = example("ssd_chunks")
    x, dt, A, B, C = chunks.sequence(steps)
    cuts = np.array_split(np.arange(steps), machines)
    y, sent = chunks.in_chunks([chunks.Machine(x[at], dt[at], A, B[at], C[at]) for at in cuts])
    whole = fd.ssd_scan(x, dt, A, B, C, dt_softplus=True)
    assert np.abs(y - whole).max() < 2e-6 * np.abs(whole).max()
    assert sent == 4 * (A.size + A.size * x.shape[-1] * B.shape[-1])


def test_the_example_of_chunks_runs():
    done = run("ssd_chunks", "--steps", "500", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "500 steps in 4 chunks" in done.stdout


@pytest.fixture(scope="module")
def mamba():
    return example("train_mamba")


@pytest.fixture(scope="module")
def boundary():
    pytest.importorskip("sklearn")
    return example("decision_boundary")


def test_mamba_gradients_of_every_parameter_equal_differences(mamba):
    """In float64, along a random direction of one parameter after the other, by a central
    difference.
    """
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
        runs.append(
            mamba.train(
                model,
                text,
                3,
                rng,
                lambda t, losses, reports=reports: reports.append((t, losses[-1])),
            )
        )
        assert reports == list(enumerate(runs[-1], start=1))
    assert (
        np.allclose(*runs, rtol=1e-4, atol=0) and runs[0][2] < runs[0][0]
    )  # BLAS may sum otherwise by alignment
    assert all(a.dtype == np.float32 for p in model for a in p.values())


def test_mamba_reads_in_chunks_as_at_once(mamba):
    model = mamba.initial_model(np.random.default_rng(2), 9)
    text = np.random.default_rng(3).integers(0, 9, 80)
    assert np.isclose(
        mamba.held_out_bits(model, text, chunk=7),
        mamba.held_out_bits(model, text, chunk=100),
        rtol=1e-5,
    )


def test_ngrams_are_distributions_that_learn(mamba):
    """The probabilities of every possible last character add up to 1, for every order of n-gram."""
    train = np.random.default_rng(4).integers(0, 5, 300)
    for n in 1, 2, 3:
        ends = [mamba.ngram_bits(train, np.append(train[: n - 1], c), n, 5)[-1] for c in range(5)]
        assert np.isclose(sum(2.0**-b for b in ends), 1)
    period = np.tile([0, 1, 2, 3], 100)
    assert mamba.ngram_bits(period, period[:40], 2, 4)[1] < 0.05


def test_folded_networks_are_the_network_of_folded_inputs(boundary):
    rng = np.random.default_rng(5)
    net = fd.SigmoidMLP(
        [rng.normal(size=(4, 5)), rng.normal(size=(5, 3))], [rng.normal(size=5), rng.normal(size=3)]
    )
    X, mean, scale = rng.normal(size=(9, 4)), rng.normal(size=4), rng.uniform(0.5, 2, 4)
    assert np.allclose(
        boundary.in_units_of(net, mean, scale).logits(X), net.logits((X - mean) / scale), rtol=1e-12
    )
    origin, directions, places = boundary.plane_through(X[:3])
    assert np.allclose(directions @ directions.T, np.eye(2)) and np.allclose(
        origin + places @ directions, X[:3]
    )
    assert np.allclose(
        boundary.in_plane(net, origin, directions).logits(places), net.logits(X[:3]), rtol=1e-12
    )


def test_nearest_point_of_a_curve_is_the_foot_of_the_perpendicular(boundary):
    """On the line x + 2y = 1, y counted in units of 1/2: the circle that touches x + y' = 1."""
    curves = fd.trace_boundary(fd.SigmoidMLP([[[1.0], [2.0]]], [[-1.0]]), ((-3, 3), (-3, 3)))
    foot, distance = boundary.nearest_on(curves, np.array([1.0, 1.0]), np.array([1.0, 0.5]))
    assert np.allclose(foot, [0.0, 0.5]) and np.isclose(distance, np.sqrt(2))


@pytest.mark.slow
def test_boundaries_are_certified_and_drawn(boundary, monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(
        "sys.argv", ["decision_boundary.py", "--plot", str(tmp_path / "picture.png")]
    )
    boundary.main()
    said = capsys.readouterr().out
    assert said.count("certified: True") == 2 and said.count("flips within") == 6
    assert (tmp_path / "picture.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def tuning():
    pytest.importorskip("sklearn")
    return example("tune_hyperparameters")


def test_tuning_follows_slopes_that_equal_differences(tuning):
    train, tune, _ = tuning.load()
    for alpha, odds in (0.01, 1.0), (0.05, 3.0), (0.005, 63.0):  # β = 1/2, 3/4, 63/64
        assert tuning.gradient_error(train, tune, np.log([alpha, odds])) < 1e-8


def test_tuning_goes_downhill_to_where_the_slopes_vanish(tuning):
    train, tune, judge = tuning.load()
    path = tuning.descend(train, tune, 20, lambda *_: None)
    assert path[-1][1] < 0.25 * path[0][1]
    first, last = (np.hypot(*tuning.slopes(train, tune, at)[1]) for at in (path[0][0], path[-1][0]))
    assert last < 0.01 * first
    before, after = (
        judge.loss(tuning.trained(train, *tuning.rates(at))) for at in (path[0][0], path[-1][0])
    )
    assert after < 0.3 * before


def test_tuning_draws_its_path(tuning, tmp_path):
    pytest.importorskip("matplotlib")
    train, tune, _ = tuning.load()
    tuning.draw(
        train, tune, tuning.descend(train, tune, 2, lambda *_: None), tmp_path / "path.png", cells=3
    )
    assert (tmp_path / "path.png").stat().st_size > 5000


def test_carousel_shows_what_it_says():
    carousel = example("lstm_carousel")
    norms = {
        name.split(":")[0]: carousel.adjoint_norms(200, *regime)
        for name, regime in carousel.REGIMES.items()
    }
    hbar, cbar = norms["carousel"]
    assert np.abs(cbar - 1).max() < 0.01 and hbar[:-1].max() < 0.01
    assert max(n[0] for n in norms["no biases"]) < 1e-20
    assert min(n[0] for n in norms["no biases, recurrent weights × 8"]) > 1e10


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return example("grid_rnn_digits")


def test_digits_gradients_of_every_parameter_equal_differences(digits):
    """In float64, along a random direction of one parameter after the other, by a central
    difference.
    """
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


@pytest.fixture(scope="module")
def language():
    pytest.importorskip("torch")
    from fastderiv.integrations import mamba_ssm

    yield example("mamba2_language_model")
    mamba_ssm.uninstall()


def test_a_language_model_of_mamba_ssm_learns_without_a_gpu(language, tmp_path):
    """Words that repeat, read by the model of the example."""
    import torch

    torch.manual_seed(0)
    text = torch.tensor(list(b"the state is what it has read. " * 40))
    model = language.MambaLMHeadModel(replace(language.CONFIG, d_model=64, n_layer=1))
    language.LENGTH, language.BATCH, language.LONG = 31, 4, 64
    reports = []
    losses = language.train(model, text, 50, lambda *at: reports.append(at[0]))
    assert len(losses) == 50 and losses[0] > 6 and losses[-1] < 1
    assert reports == list(range(1, 51))
    assert language.write(model, "the state is", 9)[:16] == "the state is wha"
    by_position = language.held_out_bits(model, text, language.LONG)
    assert by_position.shape == (16, 64)
    pytest.importorskip("matplotlib")
    language.draw(losses, [(50, losses[-1])], by_position, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_the_text_of_the_language_model_is_that_of_python(language):
    text, rest = language.load_text()
    assert len(text) > 400_000 and len(rest) > 40_000 and max(text.max(), rest.max()) < 128
    assert "\n\nReturn " in bytes(text.tolist()).decode("ascii")


@pytest.mark.slow
def test_the_language_model_runs(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    done = run("mamba2_language_model", "--steps", "2", "--plot", str(tmp_path / "curve.png"))
    assert done.returncode == 0, done.stderr
    assert "step    2" in done.stdout and "Return the" in done.stdout
    assert (tmp_path / "curve.png").is_file()
