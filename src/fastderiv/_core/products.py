"""Matrix products by NumPy's BLAS, and arrays in the layout that they need.

BLAS chooses its routine by the strides of the operands, and routines differ in rounding.  Operands
are therefore brought to C order first, so that a result has the same bits for any strides.  Copies
and products of much data are made in pieces: Python looks for signals between two pieces, so that
Ctrl-C is answered within about a tenth of a second.  Pieces of a product are whole numbers of the
rows that BLAS takes at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .arrays import F64, assign, empty

_WORK = 4e9  # multiply–adds of one call of BLAS: less than about a tenth of a second
_SMALL_COPY = 1 << 20  # elements that NumPy copies within milliseconds
_BLOCK_ROWS = 64  # rows that BLAS takes at a time


def contiguous(name: str, array: NDArray) -> NDArray:
    """`array` in C order; `name` is what an error calls it."""
    if array.flags.c_contiguous:
        return array
    if array.size <= _SMALL_COPY:
        return np.ascontiguousarray(array)
    copy = empty(f"a copy of {name}", array.shape, array.dtype)
    assign(copy, array)
    return copy


def packed(name: str, array: NDArray) -> NDArray:
    """`array` in C order, with the strides of a new array: axes of length 1 may have any others."""
    array = contiguous(name, array)
    return array.reshape(-1).reshape(array.shape)


def stacked(name: str, matrices: Sequence[NDArray]) -> NDArray:
    """The matrices one above the other, in C order; `name` is what an error calls the result."""
    if sum(matrix.size for matrix in matrices) <= _SMALL_COPY:
        return np.ascontiguousarray(np.concatenate(matrices))
    rows, columns = sum(map(len, matrices)), matrices[0].shape[1]
    stack = empty(name, (rows, columns), matrices[0].dtype)
    first = 0
    for matrix in matrices:
        assign(stack[first : first + len(matrix)], matrix)
        first += len(matrix)
    return stack


def product(a: NDArray, b: NDArray, out: NDArray | None = None) -> NDArray:
    """a @ b.  The operands are packed, or transposed views of packed matrices; `out` is packed."""
    if out is None:
        out = empty("a product", (a.shape[0], b.shape[1]), a.dtype)
    if a.size == 0 or out.size == 0:  # NumPy would step through the rows and hear no signal
        out[...] = 0
        return out
    if float(a.size) * b.shape[1] <= _WORK:
        return np.matmul(a, b, out=out)
    for rows in _blocks(a.shape[0], float(a.size) * b.shape[1]):
        block = a[rows]
        # there is one block of columns, unless the weights take half a gigabyte
        for columns in _blocks(b.shape[1], float(block.size) * b.shape[1]):
            np.matmul(block, b[:, columns], out=out[rows, columns])
    return out


def summed_product(a: NDArray, b: NDArray) -> NDArray:
    """a.T @ b, a sum over the rows of both; sums over blocks of rows are added up in float64."""
    work = float(a.size) * b.shape[1]
    if work <= _WORK or a.size == 0 or b.size == 0:
        return product(a.T, b)
    total = empty("a product", (a.shape[1], b.shape[1]), F64, np.zeros)
    for rows in _blocks(a.shape[0], work):
        total += product(a[rows].T, b[rows])
    return total.astype(a.dtype)


def _blocks(rows: int, work: float) -> list[slice]:
    """`rows` cut into blocks of about _WORK multiply–adds each."""
    blocks = max(1, int(work / _WORK))
    step = -(-rows // (blocks * _BLOCK_ROWS)) * _BLOCK_ROWS
    return [slice(first, first + step) for first in range(0, rows, max(1, step))]
