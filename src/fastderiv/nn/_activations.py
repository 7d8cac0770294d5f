"""Activations by name, or as a pair (φ, φ′) of callables."""

from __future__ import annotations

from collections.abc import Callable

from numpy.typing import ArrayLike, NDArray

from .._core.arrays import as_array, as_dtype
from .._core.floats import as_caller

# in the order of the kernels' enum Curve, where no activation is 0
NAMES = ("sigmoid", "tanh", "relu", "softplus", "silu", "gelu")
NONE, PAIR = 0, -1  # no activation; a pair of callables, which no kernel computes
_EXPECTED = f"expected None, {', '.join(map(repr, NAMES))} or a pair (φ, φ′) of callables"

Curve = Callable[[NDArray], ArrayLike]
Activation = str | tuple[Curve, Curve] | None
Pair = tuple[Curve, Curve]


def check(activation: Activation) -> tuple[int, Pair | None]:
    """The kernels' number of an activation, and the pair of callables if it is one.

    The callables of a pair run in their caller's floating-point state.
    """
    if activation is None:
        return NONE, None
    if isinstance(activation, str):
        if activation not in NAMES:
            raise ValueError(f"activation is {activation!r}; {_EXPECTED}")
        return NAMES.index(activation) + 1, None
    if not (
        isinstance(activation, tuple) and len(activation) == 2 and all(map(callable, activation))
    ):
        raise TypeError(f"activation is {activation!r}; {_EXPECTED}")
    phi, slope = activation
    return PAIR, (as_caller(phi), as_caller(slope))


def name(curve: int) -> str:
    """What messages call the activation of this number."""
    return "a pair of callables" if curve == PAIR else repr((None, *NAMES)[curve])


def evaluate(pair: Pair, k: int, x: NDArray) -> NDArray:
    """φ(x) of a pair, or φ′(x) for k = 1, in the shape and dtype of `x`.

    The callable may keep or overwrite `x`.
    """
    shape, dtype = x.shape, x.dtype
    value = as_array(f"activation[{k}](x)", pair[k](x))
    if value.shape != shape:
        raise ValueError(f"activation[{k}](x) has shape {value.shape}; expected that of x, {shape}")
    return as_dtype(value, dtype)
