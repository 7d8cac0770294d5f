"""The vector maths of simd.h as functions of arrays: what the kernels compute with, made testable and reusable."""

import numpy as np

from .arrays import working
from .dispatch import kernels

_kernels = kernels("_core")
SIMD_BITS: int = next(iter(_kernels.values())).simd_bits()


def _elementwise(name: str, x) -> np.ndarray:
    (x,) = working(x=x)
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty_like(flat)
    getattr(_kernels[x.dtype], name)(flat, out)
    return out.reshape(x.shape)


def exp(x):
    """e**x within 2 ulp."""
    return _elementwise("exp", x)


def sigmoid(x):
    """1/(1 + e**-x), accurate relatively in both tails."""
    return _elementwise("sigmoid", x)


def silu(x):
    """x·sigmoid(x)."""
    return _elementwise("silu", x)


def softplus(x):
    """log(1 + e**x), accurate relatively in the left tail."""
    return _elementwise("softplus", x)
