"""What `_kernels.pyx` offers, compiled for one real type and one CPU level."""

from typing import Literal, Protocol, TypeAlias

from numpy import ndarray

Curve: TypeAlias = Literal["exp", "sigmoid", "silu", "softplus", "tanh", "tanh_grad"]

class Kernels(Protocol):
    def elementwise(self, x: ndarray, y: ndarray, curve: Curve) -> None:
        """IN x; OUT y = the curve at x.

        Both are contiguous, of one size and the kernel's type, and may be the same array.
        """

    def simd_bits(self) -> int:
        """The width of a vector."""
