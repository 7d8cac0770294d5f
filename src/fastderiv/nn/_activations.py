"""Activations by name, or as a pair (φ, φ′) of callables."""

from __future__ import annotations

from collections.abc import Callable

from numpy.typing import ArrayLike, NDArray

from .._core.arrays import as_array, as_dtype
from .._core.floats import as_caller

NAMES = (
    "sigmoid",
    "tanh",
    "relu",
    "softplus",
    "silu",
    "gelu",
)  # in the kernels' order, where none comes first
_EXPECTED = f"expected None, {', '.join(map(repr, NAMES))} or a pair (φ, φ′) of callables"

Curve = Callable[[NDArray], ArrayLike]
Activation = str | tuple[Curve, Curve] | None


Pair = tuple[Curve, Curve]


def check(activation: Activation) -> tuple[int | None, Pair | None]:
    """The kernels' number of a named activation, 0 for none; or None and the pair, which runs in its caller's floating-point state."""
    if activation is None:
        return 0, None
    if isinstance(activation, str):
        if activation not in NAMES:
            raise ValueError(f"activation is {activation!r}; {_EXPECTED}")
        return NAMES.index(activation) + 1, None
    if not (
        isinstance(activation, tuple) and len(activation) == 2 and all(map(callable, activation))
    ):
        raise TypeError(f"activation is {activation!r}; {_EXPECTED}")
    phi, slope = activation
    return None, (as_caller(phi), as_caller(slope))


def name(curve: int | None) -> str:
    """What `check` was given, for messages."""
    return "a pair of callables" if curve is None else repr((None, *NAMES)[curve])


def evaluate(pair: Pair, k: int, x: NDArray) -> NDArray:
    """φ(x), or for k = 1 φ′(x), of a pair, in the shape and dtype of `x`, which is the callable's to keep or overwrite."""
    shape, dtype = x.shape, x.dtype
    value = as_array(f"activation[{k}](x)", pair[k](x))
    if value.shape != shape:
        raise ValueError(f"activation[{k}](x) has shape {value.shape}; expected that of x, {shape}")
    return as_dtype(value, dtype)
