"""Arithmetic with sizes, all of them non-negative."""
from fastderiv._core.simd cimport ix


cdef inline ix ceil_div(ix n, ix size) noexcept nogil:
    """How many pieces of `size` hold n."""
    return (n + size - 1) // size


cdef inline ix round_up(ix n, ix size) noexcept nogil:
    """The smallest multiple of `size` that is at least n."""
    return (n + size - 1) // size * size
