"""The shipped data: what the loaders return, and that the network can be trained again."""

import json
import subprocess
import sys
from importlib.resources import as_file, files

import numpy as np
import pytest

from fastderiv.data import load_iris_pair, load_network, load_sunspots
from helpers.floating_point import AVAILABLE, STATES, in_state


def test_iris_pair_is_scikit_learns_copy():
    load_iris = pytest.importorskip("sklearn.datasets").load_iris
    iris, ours = load_iris(), load_iris_pair()
    np.testing.assert_array_equal(ours.X, iris.data[50:, 2:])
    np.testing.assert_array_equal(ours.species, iris.target[50:] - 1)
    assert ours.names == tuple(iris.target_names[1:])


def test_sunspots_are_yearly_and_complete():
    year, number = load_sunspots()
    np.testing.assert_array_equal(year, np.arange(1700, 2009))
    assert number.shape == (309,) and number.dtype == np.float64
    assert number.min() >= 0 and number.max() == 190.2


def test_network_classifies_as_stated():
    network, iris = load_network(), load_iris_pair()
    hidden = 1 / (1 + np.exp(-(iris.X @ network.weights[0] + network.biases[0])))
    logits = hidden @ network.weights[1] + network.biases[1]
    assert (logits.argmax(1) == iris.species).mean() == network.training_accuracy == 0.97
    assert network.outputs == iris.names


def test_train_network_reproduces_network_json(tmp_path):
    again = tmp_path / "network.json"
    with as_file(files("fastderiv.data") / "train_network.py") as script:
        subprocess.run([sys.executable, script, again], check=True)
    stored = json.loads((files("fastderiv.data") / "network.json").read_text())
    trained = json.loads(again.read_text())
    for key in ("weights", "biases"):
        for ours, theirs in zip(trained.pop(key), stored.pop(key), strict=True):
            # six digits are kept; another platform's exp may flip the last
            np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    assert trained.pop("loss") == pytest.approx(stored.pop("loss"), rel=2e-5)
    assert trained == stored


def test_training_that_cannot_be_written_is_refused_before_it_begins(tmp_path):
    with as_file(files("fastderiv.data") / "train_network.py") as script:
        for target in (tmp_path, tmp_path / "none" / "network.json"):
            done = subprocess.run(
                [sys.executable, script, target], capture_output=True, text=True, check=False
            )
            assert done.returncode == 1
            assert "expected a file to write" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(not AVAILABLE, reason="needs glibc's fenv on x86-64 or AArch64")
@pytest.mark.parametrize("state", STATES)
def test_numbers_are_read_alike_in_any_floating_point_state(state):
    def numbers():
        network = load_network()
        return [*network.weights, *network.biases, load_iris_pair().X, load_sunspots().number]

    expected = numbers()
    with in_state(state):
        read = numbers()
    assert all(map(np.array_equal, read, expected))
