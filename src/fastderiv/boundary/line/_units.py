"""Hidden units that are equal for every input, or mirror images of each other, merged into one."""

from __future__ import annotations

import math

import numpy as np

from ..._core.floats import undisturbed
from .._margin import Margin

# weights (parts, n_in, n_out), biases (parts, n_out): exactly, sums of their parts
Layer = tuple[np.ndarray, np.ndarray]
# numbers of equal units, each with 1, or with −1 for a mirror image of the first
Unit = list[tuple[int, int]]
_MANY = 1 << 20  # weights of a layer, beyond which the search for equal units costs too much


def equal_units(columns: np.ndarray, usable: np.ndarray) -> dict[int, Unit]:
    """Of usable units with equal or opposite `columns` (n, H): the first -> the others.

    `columns` are a unit's exact incoming weights and bias: they are compared bit by bit, and units
    that stand alone are left out.
    """
    seen: dict[bytes, int] = {}
    found: dict[int, Unit] = {}
    _, same, counts = np.unique(np.abs(columns[-1]), return_inverse=True, return_counts=True)
    units = np.flatnonzero(usable & (counts[same] > 1))  # mostly few: only they are read wholly
    columns = columns[:, units]
    leading = np.take_along_axis(columns, (columns != 0).argmax(axis=0)[None], axis=0)[0]
    signs = np.where(leading < 0, -1, 1)
    rows = np.ascontiguousarray((columns * signs).T) + 0.0  # −0.0 equals 0.0
    sign_of = dict(zip(units.tolist(), signs.tolist(), strict=True))
    for k, row in zip(units.tolist(), rows, strict=True):
        first = seen.setdefault(row.tobytes(), k)
        if first != k:
            found.setdefault(first, []).append((k, sign_of[k] * sign_of[first]))
    return found


@undisturbed
def distinct_units(margin: Margin) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights and biases of the network whose only output is the margin, each rounded once.

    Units with the same incoming weights and bias have the same value; with opposite ones
    σ(−z) = 1 − σ(z).  One of them takes the outgoing weights of all, summed exactly and rounded
    once.  Units that are left with none are dropped, which may make units of the next layer equal.
    A unit whose own weights had to be rounded is not merged with others.  Where no unit repeats, a
    sum overflows or a layer is very large, the weights are the network's own.
    """
    first, second = margin.columns()
    own = [(w[None], b[None]) for w, b in zip(margin.weights[:-1], margin.biases[:-1], strict=True)]
    parts = np.stack([first, -second])
    own.append((parts[:, :-1, None], parts[:, -1:]))
    layers, rounded = list(own), np.zeros(margin.weights[0].shape[1], bool)
    try:
        for k in range(len(layers) - 1):
            rounded = _merge(layers, k, rounded)
    except OverflowError:
        layers = own
    return [_total(w) for w, _ in layers], [_total(b) for _, b in layers]


def _total(parts: np.ndarray) -> np.ndarray:
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _merge(layers: list[Layer], k: int, rounded: np.ndarray) -> np.ndarray:
    """Merge equal units of layer k, except those whose weights are `rounded`.

    Returns which units of the next layer have rounded weights after that.
    """
    W, b = map(_total, layers[k])
    out, bias = layers[k + 1]
    alike: dict[int, Unit] = {}
    if max(W.size, out.size) <= _MANY:
        alike = equal_units(np.vstack([W, b]), ~rounded)
    inexact = np.zeros(bias.shape[-1], bool)
    if not alike:
        return inexact
    merged = {j for others in alike.values() for j, _ in others}
    units = [[(j, 1), *alike.get(j, [])] for j in range(len(b)) if j not in merged]
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
    """Sums over all but the last axis, each rounded once; and which of them rounding changed."""
    columns = np.concatenate(terms).T.tolist()
    sums = [math.fsum(column) for column in columns]
    lost = [math.fsum([*column, -total]) != 0 for column, total in zip(columns, sums, strict=True)]
    return np.array(sums), np.array(lost)
