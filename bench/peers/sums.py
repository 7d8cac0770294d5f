"""Subset sums compiled by Numba."""

from collections.abc import Callable


def numba_sums() -> Callable | None:
    """The same algorithm compiled by Numba; None if that is not installed."""
    try:
        import numba
    except ImportError:
        return None

    @numba.njit
    def sums(x, out):
        low = min(x.size, 10)
        out[0] = 0
        for i in range(low):
            for j in range(1 << i):
                out[(1 << i) + j] = out[j] + x[i]
        for h in range(1, 1 << (x.size - low)):
            shift = x.dtype.type(0)
            for i in range(x.size - low):
                if h >> i & 1:
                    shift += x[low + i]
            for j in range(1 << low):
                out[(h << low) + j] = out[j] + shift
        return out

    return sums
