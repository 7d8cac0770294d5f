"""The margin's network with hidden units merged that are equal, or mirror images of each other."""

from __future__ import annotations

import math

import numpy as np

from .._core.floats import undisturbed
from ._network import SigmoidMLP

Layer = tuple[np.ndarray, np.ndarray]  # weights (parts, n_in, n_out), biases (parts, n_out): exactly, sums of their parts
_MANY = 1 << 20  # weights of a layer, beyond which looking for equal units takes longer than it is worth
Unit = list[tuple[int, int]]  # numbers of equal units, each with 1, or −1 for a mirror image of the first


@undisturbed
def distinct_units(net: SigmoidMLP, pair: tuple[int, int] | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights and biases of the network whose only output is the margin, each number correctly rounded.

    Units with the same incoming weights and bias have the same value; with opposite ones σ(−z) = 1 − σ(z).  One of them
    takes the outgoing weights of all, summed exactly and rounded once; units left with none are dropped, which may make
    units of the next layer equal.  Ranges of units that cancel would add up.  Where no unit repeats, a sum overflows or a
    layer is very large, the weights are the network's own.
    """
    first, second = net._last_columns(pair)
    own = [(w[None], b[None]) for w, b in zip(net.weights[:-1], net.biases[:-1], strict=True)]
    parts = np.stack([first, -second])
    own.append((parts[:, :-1, None], parts[:, -1:]))
    layers = list(own)
    try:
        for k in range(len(layers) - 1):
            _merge(layers, k)
    except OverflowError:
        layers = own
    return [_total(w) for w, _ in layers], [_total(b) for _, b in layers]


def _total(parts: np.ndarray) -> np.ndarray:
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _merge(layers: list[Layer], k: int) -> None:
    """Merge the units that layer k makes."""
    W, b = map(_total, layers[k])
    units = _alike(W, b) if max(W.size, layers[k + 1][0].size) <= _MANY else []
    if len(units) in (0, len(b)):
        return
    out, bias = layers[k + 1]
    first = [unit[0][0] for unit in units]
    rows = out[:, first].sum(axis=0)
    for j, unit in enumerate(units):
        if len(unit) > 1:
            rows[j] = _sums([sign * out[:, i] for i, sign in unit])
    constants = [out[:, i] for unit in units for i, sign in unit if sign < 0]
    kept = rows.any(axis=1)
    layers[k] = np.ascontiguousarray(W[:, first][:, kept])[None], b[first][kept][None]
    layers[k + 1] = rows[kept][None], _sums([bias, *constants])[None]


def _sums(terms: list[np.ndarray]) -> np.ndarray:
    """Over all but the last axis, each rounded once."""
    return np.array([math.fsum(column) for column in np.concatenate(terms).T.tolist()])


def _alike(W: np.ndarray, b: np.ndarray) -> list[Unit]:
    """All units, those together that are equal up to their sign."""
    sizes = np.abs(np.vstack([W[:1], b]))  # nearly always tell units apart
    if np.unique(sizes, axis=1).shape[1] == len(b):
        return [[(i, 1)] for i in range(len(b))]
    groups: dict[bytes, Unit] = {}
    for i in range(len(b)):
        column = np.append(W[:, i], b[i])
        sign = -1 if column[np.argmax(column != 0)] < 0 else 1
        groups.setdefault((sign * column + 0.0).tobytes(), []).append((i, sign))  # + 0.0: −0.0 equals 0.0
    return [[(i, sign * unit[0][1]) for i, sign in unit] for unit in groups.values()]
