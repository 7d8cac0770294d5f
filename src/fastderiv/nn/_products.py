"""Matrix products by NumPy's BLAS: the same bits for any strides of the operands, and not deaf to Ctrl-C for long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .._core.arrays import F64, assign, empty
from .._core.dispatch import kernels

_kernels = kernels("nn")
_QUICK = 4e9  # multiply–adds that take less than about a tenth of a second
_FEW = 1 << 20  # numbers that are copied within milliseconds
_STEP = 64  # rows: blocks are whole numbers of what BLAS takes at a time


def contiguous(name: str, array: NDArray) -> NDArray:
    """`array`, the argument `name`, in C order."""
    if array.flags.c_contiguous:
        return array
    if array.size <= _FEW:
        return np.ascontiguousarray(array)
    copy = empty(f"a copy of {name}", array.shape, array.dtype)
    assign(copy, array)
    return copy


def packed(name: str, array: NDArray) -> NDArray:
    """The same with the strides of a new array: BLAS is called otherwise, with other bits, in other layouts."""
    array = contiguous(name, array)
    return array.reshape(-1).reshape(array.shape)  # axes of length 1 have any strides


def stacked(matrices: Sequence[NDArray]) -> NDArray:
    """The matrices one above the other, in C order."""
    if matrices[0].size + matrices[-1].size <= _FEW // 2:
        return np.ascontiguousarray(np.concatenate(matrices))
    stack = empty(
        "a copy of the weights", (sum(map(len, matrices)), matrices[0].shape[1]), matrices[0].dtype
    )
    first = 0
    for matrix in matrices:
        assign(stack[first : first + len(matrix)], matrix)
        first += len(matrix)
    return stack


def _blocks(rows: int, work: float) -> list[slice]:
    """`rows` cut into blocks; between two of them Python looks for signals."""
    blocks = max(1, int(work / _QUICK))
    step = -(-rows // (blocks * _STEP)) * _STEP
    return [slice(first, first + step) for first in range(0, rows, max(1, step))]


def product(a: NDArray, b: NDArray, out: NDArray | None = None) -> NDArray:
    """a @ b of matrices that are packed, or transposed views of such; `out` too is packed."""
    if out is None:
        out = empty("a product", (a.shape[0], b.shape[1]), a.dtype)
    if a.size == 0 or out.size == 0:  # NumPy would count the rows one by one, and hear no signal
        out[...] = 0
        return out
    if float(a.size) * b.shape[1] <= _QUICK:
        return np.matmul(a, b, out=out)
    for rows in _blocks(a.shape[0], float(a.size) * b.shape[1]):
        part = a[rows]
        for columns in _blocks(
            b.shape[1], float(part.size) * b.shape[1]
        ):  # one, but for weights of half a gigabyte
            np.matmul(part, b[:, columns], out=out[rows, columns])
    return out


def summed_product(a: NDArray, b: NDArray) -> NDArray:
    """a.T @ b, sums over a row that both share; blocks of them are added up in float64."""
    if float(a.size) * b.shape[1] <= _QUICK or a.size == 0 or b.size == 0:
        return product(a.T, b)
    blocks = _blocks(a.shape[0], float(a.size) * b.shape[1])
    total = empty("a product", (a.shape[1], b.shape[1]), F64, np.zeros)
    for block in blocks:
        total += product(a[block].T, b[block])
    return total.astype(a.dtype)


def column_sums(a: NDArray) -> NDArray:
    """a.sum(axis=0), groups of rows being added up in float64."""
    return total_of(_kernels[a.dtype].column_groups(a))


def total_of(groups: NDArray) -> NDArray:
    """The sum over groups of rows."""
    return groups.sum(axis=0, dtype=np.float64).astype(groups.dtype)
