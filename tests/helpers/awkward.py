"""The one generator of awkward arrays: the same values in every memory layout a user may have."""

import numpy as np


def layouts(array):
    """Yield pairs of a label and an array with the same values.

    They are strided, reversed, transposed, read-only, misaligned, swapped, and a list.
    """
    array = np.asarray(array)
    yield "contiguous", array.copy()
    yield "fortran", np.asfortranarray(array)
    unread = np.nan if array.dtype.kind == "f" else 99
    wide = np.full(tuple(2 * n + 1 for n in array.shape), unread, array.dtype)
    inner = wide[tuple(slice(1, None, 2) for _ in array.shape)]
    inner[...] = array
    yield "strided", inner
    backwards = np.ascontiguousarray(array[tuple(slice(None, None, -1) for _ in array.shape)])
    yield "negative strides", backwards[tuple(slice(None, None, -1) for _ in array.shape)]
    if array.ndim >= 2:
        yield "last two swapped", np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)
    frozen = array.copy()
    frozen.flags.writeable = False
    yield "read-only", frozen
    raw = np.zeros(array.nbytes + 1, np.uint8)
    odd = raw[1:].view(array.dtype).reshape(array.shape) if array.size else array
    odd[...] = array
    yield "misaligned", odd
    yield "byte-swapped", array.astype(array.dtype.newbyteorder())


def snapshot(*arrays):
    """Bytes of the arrays, to assert later that nothing was modified."""
    return [None if a is None else np.asarray(a).tobytes() for a in arrays]


def same_bits(a, b):
    """Whether two arrays agree in shape, dtype and every bit."""
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def error(value, exact):
    """Largest deviation relative to the largest magnitude of `exact`, as in the contract."""
    return error_in_sums(value, exact, exact)


def magnitudes(arguments, keep=("A", "dt", "dt_bias")):
    """The same arguments with the magnitudes of arrays: no terms of a sum cancel."""
    return {
        name: np.abs(a) if isinstance(a, np.ndarray) and name not in keep else a
        for name, a in arguments.items()
    }


def error_in_sums(value, exact, sums):
    """Largest deviation relative to the largest magnitude of `exact`, or of `sums`.

    `sums` are of magnitudes: a result of few numbers may be a sum whose terms happen to cancel.
    """
    exact = np.asarray(exact)
    if exact.size == 0:
        return 0.0
    scale = max(np.abs(exact).max(), np.abs(sums).max())
    return float(np.abs(np.asarray(value).astype(exact.dtype) - exact).max() / (scale or 1))


def overlapping_views():
    """(a, b, whether they share memory), including views that only interleave."""
    base = np.zeros((6, 8))
    yield base, np.zeros((6, 8)), False
    yield base[:3], base[3:], False
    yield base[:, ::2], base[:, 1::2], False
    yield base[:, ::2], base[:, 2::4], True
    yield base[::-1], base.T, True
    yield base[:0], base, False
