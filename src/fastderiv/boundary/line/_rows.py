"""The inputs that are held while one input varies: `x_other` and its rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..._core import arrays
from .._network import SigmoidMLP, check_names


def other_inputs(net: SigmoidMLP, x_other: ArrayLike, coordinate: int) -> np.ndarray:
    """`x_other`, the inputs except `coordinate`, as (m, n_inputs - 1), our own."""
    check_names(net, "x_other", x_other, without=coordinate)
    x, n = own_numbers("x_other", x_other), net.n_inputs - 1
    if n == 1 and x.ndim < 2:
        return x.reshape(-1, 1)
    if x.ndim != 2 or x.shape[1] != n:
        short = ", (m,) or a scalar" if n == 1 else ""
        raise ValueError(
            f"x_other has shape {x.shape}; expected (m, n_inputs - 1) = (m, {n}){short}"
        )
    return x


def own_numbers(name: str, value: ArrayLike) -> np.ndarray:
    """`value` as finite float64 numbers that nobody else can change.

    What is broadcast in it is copied once.
    """
    array = arrays.float64(name, value)
    if 0 not in array.strides:
        return arrays.finite(name, array.copy())
    apart = tuple(slice(1) if step == 0 else slice(None) for step in array.strides)
    own = arrays.finite(name, np.array(array[apart], order="C"))
    return np.broadcast_to(own, array.shape) if own.shape != array.shape else own
