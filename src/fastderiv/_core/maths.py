"""The curves of simd_math.h as functions of arrays: what kernels compute with, for tests and for
Python code that must agree with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from .arrays import assign, empty, working
from .dispatch import kernels

if TYPE_CHECKING:
    from ._kernels import Curve, Kernels

_kernels: dict[np.dtype, Kernels] = kernels("_core")
SIMD_BITS = next(iter(_kernels.values())).simd_bits()


def _elementwise(curve: Curve, x: ArrayLike) -> np.ndarray:
    (array,) = working(x=x)
    out = empty("the result", array.shape, array.dtype)
    assign(out, array)
    _kernels[array.dtype].elementwise(out, out, curve)
    return out


def exp(x: ArrayLike) -> np.ndarray:
    """e**x within 2 ulp."""
    return _elementwise("exp", x)


def exp_in_place(x: np.ndarray) -> None:
    """x = e**x, x C-contiguous and of a working dtype."""
    _kernels[x.dtype].elementwise(x, x, "exp")


def sigmoid(x: ArrayLike) -> np.ndarray:
    """1/(1 + e**-x), accurate relatively in both tails."""
    return _elementwise("sigmoid", x)


def silu(x: ArrayLike) -> np.ndarray:
    """x·sigmoid(x)."""
    return _elementwise("silu", x)


def softplus(x: ArrayLike) -> np.ndarray:
    """log(1 + e**x), accurate relatively in the left tail."""
    return _elementwise("softplus", x)


def tanh(x: ArrayLike) -> np.ndarray:
    """tanh(x), accurate relatively near 0."""
    return _elementwise("tanh", x)


def tanh_grad(x: ArrayLike) -> np.ndarray:
    """1 − tanh(x)**2, accurate relatively in both tails."""
    return _elementwise("tanh_grad", x)
