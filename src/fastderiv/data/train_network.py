"""Train the demo's network and write network.json: ``python train_network.py [OUTPUT]``.

The network is y = s(Z W1 + b1), z = s(y W2 + b2) with the logistic function s; its inputs Z are
standardised while it is trained.  The loss is the mean cross-entropy of the two logistic outputs
against one-hot species, plus DECAY/2 times the squared weights.  The gradient is written out by
hand.  Everything is deterministic: fixed starts, one minimum chosen, one canonical form.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

HERE = Path(__file__).parent
HIDDEN, OUTPUTS = 3, 2
DECAY = 2e-4
STARTS = 12
DIGITS = 6  # kept; far fewer than the minimiser resolves, so that every platform rounds alike


def read_iris() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Measurements (100, 2), class indices (100,) and class names of iris.csv."""
    table = np.genfromtxt(
        HERE / "iris.csv", delimiter=",", names=True, dtype=None, encoding="ascii"
    )
    X = np.column_stack([table["petal_length_cm"], table["petal_width_cm"]])
    names, labels = np.unique(table["species"], return_inverse=True)
    return X, labels, tuple(map(str, names))


def unpack(p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """W1 (2, HIDDEN), b1, W2 (HIDDEN, OUTPUTS), b2 as views of the parameter vector."""
    W1, b1, W2, b2 = np.split(p, np.cumsum([2 * HIDDEN, HIDDEN, HIDDEN * OUTPUTS]))
    return W1.reshape(2, HIDDEN), b1, W2.reshape(HIDDEN, OUTPUTS), b2


def loss_and_gradient(p: np.ndarray, Z: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss at parameters `p` and its gradient, layer by layer backwards."""
    W1, b1, W2, b2 = unpack(p)
    y = 1 / (1 + np.exp(-(Z @ W1 + b1)))
    n = y @ W2 + b2  # the logits
    # cross-entropy of s(n) against t is softplus(n) - t n, and its derivative by n is s(n) - t
    loss = (np.logaddexp(0, n) - target * n).sum() / len(Z) + DECAY / 2 * (
        (W1**2).sum() + (W2**2).sum()
    )
    dn = (1 / (1 + np.exp(-n)) - target) / len(Z)
    da = (dn @ W2.T) * y * (1 - y)
    gradient = [
        (Z.T @ da + DECAY * W1).ravel(),
        da.sum(0),
        (y.T @ dn + DECAY * W2).ravel(),
        dn.sum(0),
    ]
    return float(loss), np.concatenate(gradient)


def train(Z: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """The lowest of the minima reached from STARTS fixed random starts."""
    rng = np.random.default_rng(1936)
    found = []
    for _ in range(STARTS):
        start = rng.standard_normal(2 * HIDDEN + HIDDEN + HIDDEN * OUTPUTS + OUTPUTS)
        result = minimize(
            loss_and_gradient,
            start,
            (Z, target),
            "BFGS",
            jac=True,
            options={"gtol": 1e-10, "maxiter": 5000},
        )
        found.append((result.fun, tuple(result.x)))
    loss, p = min(found)
    return float(loss), np.array(p)


def canonical(W1, b1, W2, b2):
    """One of the forms of the same function.

    There are several since s(-a) = 1 - s(a), and hidden units may stand in any order.
    """
    flip = np.where(W1[0] < 0, -1.0, 1.0)
    b2 = b2 + W2[flip < 0].sum(0)
    W1, b1, W2 = W1 * flip, b1 * flip, W2 * flip[:, None]
    order = np.argsort(W1[0])
    return W1[:, order], b1[order], W2[order], b2


def rounded(array: np.ndarray) -> list:
    """Nested lists of DIGITS significant digits."""
    if array.ndim > 1:
        return [rounded(row) for row in array]
    return [float(f"{value:.{DIGITS}g}") for value in array]


def network() -> dict:
    """The trained network as it is written to network.json; its inputs are raw centimetres."""
    X, labels, names = read_iris()
    mean, std = X.mean(0), X.std(0)
    target = np.eye(OUTPUTS)[labels]
    loss, p = train((X - mean) / std, target)
    W1, b1, W2, b2 = unpack(p)
    # fold the standardisation into the first layer:
    # ((x - mean)/std) W1 + b1 = x (W1/std) + (b1 - mean/std W1)
    W1, b1, W2, b2 = canonical(W1 / std[:, None], b1 - (mean / std) @ W1, W2, b2)
    logits = 1 / (1 + np.exp(-(X @ W1 + b1))) @ W2 + b2
    return {
        "description": "sigmoid 2-3-2 network: "
        "petal length and width in cm -> which of two iris species",
        "data": "iris.csv",
        "script": "train_network.py",
        "inputs": ["petal length", "petal width"],
        "units": ["cm", "cm"],
        "outputs": list(names),
        "standardisation": {
            "mean": rounded(mean),
            "std": rounded(std),
            "note": "already folded into weights[0] and biases[0]",
        },
        "weights": [rounded(W1), rounded(W2)],
        "biases": [rounded(b1), rounded(b2)],
        "loss": float(f"{loss:.{DIGITS}g}"),
        "training_accuracy": float((logits.argmax(1) == labels).mean()),
    }


def main(arguments: list[str]) -> None:
    target = Path(arguments[0]) if arguments else HERE / "network.json"
    if target.is_dir() or not target.parent.is_dir():  # said before the training, not after
        sys.exit(f"{target} is a folder, or in none that exists; expected a file to write")
    target.write_text(json.dumps(network(), indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    main(sys.argv[1:])
