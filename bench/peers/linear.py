"""How others compute the linear recurrence of bench_linear.py: a copy of the same bytes, Numba,
NumPy, `scipy.signal.lfilter`.

`peers(a, b)` gives functions of no arguments by name.  Each computes h along the last axis of b, or
along the first if `first`, but for the copy; what is not installed is left out.
"""

from collections.abc import Callable

import numpy as np


def numba_loops():
    """The recurrence along the last axis and along the first, as one would write them in Numba."""
    try:
        import numba
    except ImportError:
        return None

    @numba.njit(fastmath=True)
    def last(a, b, out):
        """Four rows at a time, so that their chains of operations overlap."""
        rows, steps = b.shape
        whole = rows - rows % 4
        for i in range(0, whole, 4):
            h0 = h1 = h2 = h3 = b.dtype.type(0)
            for t in range(steps):
                h0 = a[i, t] * h0 + b[i, t]
                h1 = a[i + 1, t] * h1 + b[i + 1, t]
                h2 = a[i + 2, t] * h2 + b[i + 2, t]
                h3 = a[i + 3, t] * h3 + b[i + 3, t]
                out[i, t], out[i + 1, t], out[i + 2, t], out[i + 3, t] = h0, h1, h2, h3
        for i in range(whole, rows):
            h = b.dtype.type(0)
            for t in range(steps):
                h = a[i, t] * h + b[i, t]
                out[i, t] = h

    @numba.njit(fastmath=True)
    def simple(a, b, out):
        for i in range(b.shape[0]):
            h = b.dtype.type(0)
            for t in range(b.shape[1]):
                h = a[i, t] * h + b[i, t]
                out[i, t] = h

    @numba.njit(fastmath=True)
    def first(a, b, out):
        for k in range(b.shape[1]):
            out[0, k] = b[0, k]
        for t in range(1, b.shape[0]):
            for k in range(b.shape[1]):
                out[t, k] = a[t, k] * out[t - 1, k] + b[t, k]

    return last, simple, first


LOOPS = numba_loops()


def copy(a: np.ndarray, b: np.ndarray) -> Callable[[], object]:
    """np.copyto of as many bytes as the arrays a, b and h have, half read and half written."""
    size = (2 * b.size + a.size) // 2
    source, target = np.ones(size, b.dtype), np.zeros(size, b.dtype)
    return lambda: np.copyto(target, source)


def loops(a: np.ndarray, b: np.ndarray, first: bool) -> dict[str, Callable[[], np.ndarray]]:
    """Numba's, of which `a` may be constant in time: it is then broadcast, and costs no memory."""
    if LOOPS is None:
        return {}
    out = np.zeros_like(b)
    full = a if a.ndim == 2 else np.broadcast_to(a if first else a[:, None], b.shape)

    def run(loop):
        def call():
            loop(full, b, out)
            return out

        return call

    four, simple, rows = LOOPS
    if first:
        return {"Numba": run(rows)}
    return {"Numba, four rows": run(four), "Numba, simple": run(simple)}


def numpy_rows(a: np.ndarray, b: np.ndarray) -> Callable[[], np.ndarray]:
    """Row by row along the first axis, with `out=`."""
    out = np.empty_like(b)

    def call():
        out[0] = b[0]
        for t in range(1, len(b)):
            np.multiply(a[t] if a.ndim == 2 else a, out[t - 1], out=out[t])
            out[t] += b[t]
        return out

    return call


def filters(a: np.ndarray, b: np.ndarray) -> Callable[[], np.ndarray]:
    """`lfilter` of every row, each with a factor of its own."""
    from scipy.signal import lfilter

    out = np.empty_like(b)
    one = np.ones(1, b.dtype)
    poles = [np.array([1, -factor], b.dtype) for factor in a]

    def call():
        for row, pole in enumerate(poles):
            out[row] = lfilter(one, pole, b[row])
        return out

    return call


def peers(a: np.ndarray, b: np.ndarray, first: bool) -> dict[str, Callable[[], np.ndarray]]:
    """All that compute h."""
    found = loops(a, b, first)
    if first:
        found["NumPy"] = numpy_rows(a, b)
    elif a.ndim == 1:
        found["lfilter, row by row"] = filters(a, b)
    return found
