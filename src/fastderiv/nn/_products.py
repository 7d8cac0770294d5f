"""Matrix products by NumPy's BLAS: the same bits for any strides of the operands, and not deaf to Ctrl-C for long."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .._core.dispatch import kernels

_kernels = kernels("nn")
_QUICK = 4e9  # multiply–adds that take less than about a tenth of a second
_STEP = 64  # rows: blocks are whole numbers of what BLAS takes at a time

quietly = np.errstate(all="ignore")  # data that are not finite, or overflow, are no reason to warn


def packed(array: NDArray) -> NDArray:
    """`array` in C order, with the strides of a new array: BLAS is called otherwise, with other bits, in other layouts."""
    array = np.ascontiguousarray(array)
    return array.reshape(-1).reshape(array.shape)  # axes of length 1 have any strides


def _blocks(rows: int, work: float) -> list[slice]:
    """`rows` cut into blocks; between two of them Python looks for signals."""
    blocks = max(1, int(work / _QUICK))
    step = -(-rows // (blocks * _STEP)) * _STEP
    return [slice(first, first + step) for first in range(0, rows, max(1, step))]


def product(a: NDArray, b: NDArray, out: NDArray | None = None) -> NDArray:
    """a @ b of matrices that are packed, or transposed views of such; `out` too is packed."""
    if out is None:
        out = np.empty((a.shape[0], b.shape[1]), a.dtype)
    for block in _blocks(a.shape[0], float(a.size) * b.shape[1]):
        np.matmul(a[block], b, out=out[block])
    return out


def summed_product(a: NDArray, b: NDArray) -> NDArray:
    """a.T @ b, sums over a row that both share; blocks of them are added up in float64."""
    blocks = _blocks(a.shape[0], float(a.size) * b.shape[1])
    if len(blocks) <= 1:
        return np.matmul(a.T, b)
    total = np.zeros((a.shape[1], b.shape[1]))
    for block in blocks:
        total += np.matmul(a[block].T, b[block])
    return total.astype(a.dtype)


def column_sums(a: NDArray) -> NDArray:
    """a.sum(axis=0), groups of rows being added up in float64."""
    return total_of(_kernels[a.dtype].column_groups(a))


def total_of(groups: NDArray) -> NDArray:
    """The sum over groups of rows."""
    return groups.sum(axis=0, dtype=np.float64).astype(groups.dtype)
