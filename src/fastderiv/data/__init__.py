"""Small real data for the demo and the tests; this folder's README.md says where it comes from.

iris.csv      -> load_iris_pair()   petals of two iris species
network.json  -> load_network()     a sigmoid 2-3-2 network trained on them by train_network.py
sunspots.csv  -> load_sunspots()    yearly sunspot numbers, 1700-2008
"""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from .._core.floats import undisturbed

__all__ = ["IrisPair", "Network", "Sunspots", "load_iris_pair", "load_network", "load_sunspots"]


class IrisPair(NamedTuple):
    """Petals of two iris species."""

    X: np.ndarray  # (100, 2) float64: petal length, petal width, in cm
    species: np.ndarray  # (100,) intp: index into `names`
    names: tuple[str, ...]


class Network(NamedTuple):
    """A trained sigmoid network, in the form that ``SigmoidMLP(weights, biases)`` takes."""

    weights: tuple[np.ndarray, ...]  # (2, 3), (3, 2); inputs are raw measurements
    biases: tuple[np.ndarray, ...]  # (3,), (2,)
    inputs: tuple[str, ...]
    units: tuple[str, ...]
    outputs: tuple[str, ...]
    training_accuracy: float


class Sunspots(NamedTuple):
    """Yearly mean sunspot numbers."""

    year: np.ndarray  # (309,) intp
    number: np.ndarray  # (309,) float64


def _text(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _rows(name: str) -> list[list[str]]:
    """The lines of a CSV file below its heading."""
    return list(csv.reader(_text(name).splitlines()))[1:]


@undisturbed
def load_iris_pair() -> IrisPair:
    """Petal length and width of 50 Iris versicolor and 50 Iris virginica.

    Examples
    --------
    >>> from fastderiv.data import load_iris_pair
    >>> X, species, names = load_iris_pair()
    >>> X.shape, names
    ((100, 2), ('versicolor', 'virginica'))
    """
    lengths, widths, species = zip(*_rows("iris.csv"), strict=True)
    names = tuple(sorted(set(species)))
    return IrisPair(
        np.array([lengths, widths], np.float64).T.copy(),
        np.array([names.index(s) for s in species]),
        names,
    )


@undisturbed
def load_network() -> Network:
    """The sigmoid 2-3-2 network trained on `load_iris_pair`; output k is the score of species k.

    Examples
    --------
    >>> from fastderiv.data import load_network
    >>> [w.shape for w in load_network().weights]
    [(2, 3), (3, 2)]
    """
    stored = json.loads(_text("network.json"))
    return Network(
        tuple(np.array(w) for w in stored["weights"]),
        tuple(np.array(b) for b in stored["biases"]),
        tuple(stored["inputs"]),
        tuple(stored["units"]),
        tuple(stored["outputs"]),
        stored["training_accuracy"],
    )


@undisturbed
def load_sunspots() -> Sunspots:
    """Yearly mean sunspot numbers from 1700 to 2008.

    Examples
    --------
    >>> from fastderiv.data import load_sunspots
    >>> year, number = load_sunspots()
    >>> year[[0, -1]].tolist(), year[number.argmax()].item()
    ([1700, 2008], 1957)
    """
    years, numbers = zip(*_rows("sunspots.csv"), strict=True)
    return Sunspots(np.array([int(y) for y in years]), np.array(numbers, np.float64))
