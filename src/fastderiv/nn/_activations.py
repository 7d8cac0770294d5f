"""Activations by name, or as a pair (φ, φ′) of callables."""

from __future__ import annotations

from collections.abc import Callable

from numpy.typing import ArrayLike, NDArray

from .._core.arrays import as_array, as_dtype

NAMES = ("sigmoid", "tanh", "relu", "softplus", "silu", "gelu")  # in the kernels' order, where none comes first
_EXPECTED = f"expected None, {', '.join(map(repr, NAMES))} or a pair (φ, φ′) of callables"

Curve = Callable[[NDArray], ArrayLike]
Activation = str | tuple[Curve, Curve] | None


def check(activation: Activation) -> int | None:
    """The kernels' number of a named activation, 0 for none; None if it is a pair."""
    if activation is None:
        return 0
    if isinstance(activation, str):
        if activation not in NAMES:
            raise ValueError(f"activation is {activation!r}; {_EXPECTED}")
        return NAMES.index(activation) + 1
    if not (isinstance(activation, tuple) and len(activation) == 2 and all(map(callable, activation))):
        raise TypeError(f"activation is {activation!r}; {_EXPECTED}")
    return None


def name(curve: int | None) -> str:
    """What `check` was given, for messages."""
    return "a pair of callables" if curve is None else repr((None, *NAMES)[curve])


def evaluate(activation: Activation, k: int, x: NDArray) -> NDArray:
    """φ(x), or for k = 1 φ′(x), of a pair, in the shape and dtype of `x`, which is the callable's to keep or overwrite."""
    assert isinstance(activation, tuple)
    shape, dtype = x.shape, x.dtype
    value = as_array(f"activation[{k}](x)", activation[k](x))
    if value.shape != shape:
        raise ValueError(f"activation[{k}](x) has shape {value.shape}; expected that of x, {shape}")
    return as_dtype(value, dtype)
