"""The margin's network with hidden units merged that are equal, or mirror images of each other."""

from __future__ import annotations

import math

import numpy as np

from .._core.floats import undisturbed
from ._network import SigmoidMLP

Layer = tuple[
    np.ndarray, np.ndarray
]  # weights (parts, n_in, n_out), biases (parts, n_out): exactly, sums of their parts
_MANY = (
    1 << 20
)  # weights of a layer, beyond which looking for equal units takes longer than it is worth
Unit = list[
    tuple[int, int]
]  # numbers of equal units, each with 1, or −1 for a mirror image of the first


@undisturbed
def distinct_units(
    net: SigmoidMLP, pair: tuple[int, int] | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights and biases of the network whose only output is the margin, each number correctly rounded.

    Units with the same incoming weights and bias have the same value; with opposite ones σ(−z) = 1 − σ(z).  One of them
    takes the outgoing weights of all, summed exactly and rounded once; units left with none are dropped, which may make
    units of the next layer equal, though not those whose weights rounding has changed: they may only look alike.  Ranges of units that cancel would add up.  Where no unit repeats, a sum overflows or a
    layer is very large, the weights are the network's own.
    """
    first, second = net._last_columns(pair)
    own = [(w[None], b[None]) for w, b in zip(net.weights[:-1], net.biases[:-1], strict=True)]
    parts = np.stack([first, -second])
    own.append((parts[:, :-1, None], parts[:, -1:]))
    layers, rounded = list(own), np.zeros(net.hidden_widths[0] if net.hidden_widths else 0, bool)
    try:
        for k in range(len(layers) - 1):
            rounded = _merge(layers, k, rounded)
    except OverflowError:
        layers = own
    return [_total(w) for w, _ in layers], [_total(b) for _, b in layers]


def _total(parts: np.ndarray) -> np.ndarray:
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _merge(layers: list[Layer], k: int, rounded: np.ndarray) -> np.ndarray:
    """Merge the units that layer k makes, except those whose weights are `rounded`; which ones of the next layer are."""
    W, b = map(_total, layers[k])
    out, bias = layers[k + 1]
    units = _alike(W, b, rounded) if max(W.size, out.size) <= _MANY else []
    inexact = np.zeros(bias.shape[-1], bool)
    if len(units) in (0, len(b)):
        return inexact
    first = [unit[0][0] for unit in units]
    rows = out[:, first].sum(axis=0)
    for j, unit in enumerate(units):
        if len(unit) > 1:
            rows[j], lost = _sums([sign * out[:, i] for i, sign in unit])
            inexact |= lost
    constants = [out[:, i] for unit in units for i, sign in unit if sign < 0]
    kept = rows.any(axis=1)
    layers[k] = np.ascontiguousarray(W[:, first][:, kept])[None], b[first][kept][None]
    total, lost = _sums([bias, *constants])
    layers[k + 1] = rows[kept][None], total[None]
    return inexact | lost


def _sums(terms: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Over all but the last axis, each rounded once; and whether that has changed it."""
    columns = np.concatenate(terms).T.tolist()
    sums = [math.fsum(column) for column in columns]
    lost = [math.fsum([*column, -total]) != 0 for column, total in zip(columns, sums, strict=True)]
    return np.array(sums), np.array(lost)


def _alike(W: np.ndarray, b: np.ndarray, rounded: np.ndarray) -> list[Unit]:
    """All units, those together that are equal up to their sign; a `rounded` one may differ from what it looks like."""
    sizes = np.abs(np.vstack([W[:1], b]))  # nearly always tell units apart
    if np.unique(sizes, axis=1).shape[1] == len(b):
        return [[(i, 1)] for i in range(len(b))]
    groups: dict[bytes, Unit] = {}
    for i in range(len(b)):
        if rounded[i]:
            groups[f"rounded {i}".encode()] = [(i, 1)]
            continue
        column = np.append(W[:, i], b[i])
        sign = -1 if column[np.argmax(column != 0)] < 0 else 1
        groups.setdefault((sign * column + 0.0).tobytes(), []).append(
            (i, sign)
        )  # + 0.0: −0.0 equals 0.0
    return [[(i, sign * unit[0][1]) for i, sign in unit] for unit in groups.values()]
