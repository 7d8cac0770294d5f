"""Networks that scikit-learn trains on its bundled real data, each once a session."""

import functools
import warnings
from typing import NamedTuple

import numpy as np

import fastderiv as fd

OPTIONS = {  # hidden layers and epochs
    "iris": ((8,), 150),
    "breast_cancer": ((10,), 20),
    "digits": ((24,), 15),
}


class Trained(NamedTuple):
    """A fitted classifier, its network, and the standardised data."""

    model: object
    net: fd.SigmoidMLP
    X: np.ndarray


@functools.cache
def trained(name, layers=None):
    """`name`: iris (4 inputs, 3 classes), breast_cancer (30 and 2) or digits (64 and 10)."""
    from sklearn import datasets
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    usual, epochs = OPTIONS[name]
    model = MLPClassifier(
        layers or usual,
        activation="logistic",
        max_iter=epochs,
        random_state=0,
        learning_rate_init=0.03,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)
    assert model.score(X, y) > 0.9
    return Trained(model, fd.SigmoidMLP.from_sklearn(model), X)
