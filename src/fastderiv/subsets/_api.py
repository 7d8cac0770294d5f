"""The public functions on subset sums; docs/derivations.md §1.3 has the mathematics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._core.arrays import (
    F64,
    as_array,
    as_dtype,
    check_fits,
    check_out,
    copy_back,
    empty,
    index,
    working,
)
from .._core.dispatch import kernels
from .._core.floats import as_caller, undisturbed
from .._core.progress import Progress, reporting

if TYPE_CHECKING:
    from ._kernels import Kernels

_kernels: dict[np.dtype, Kernels] = kernels("subsets")
_MAX_N = 62
_MASKS_PER_TASK = _kernels[F64].MASKS_PER_TASK
_MASKS_PER_REPORT = _MASKS_PER_TASK << 8  # between two calls of `progress`: tens of milliseconds

Report = Callable[[int], object] | None


def _rows(x: ArrayLike) -> np.ndarray:
    """`x` (..., n) in its working dtype."""
    (array,) = working(x=x)
    if array.ndim == 0:
        raise ValueError("x has shape (); expected (..., n)")
    return array


def _masks(x: np.ndarray) -> int:
    """How many subsets the entries of a row have."""
    n = x.shape[-1]
    if n > _MAX_N:
        raise ValueError(
            f"x has {n} entries along its last axis; expected at most {_MAX_N}, "
            "as masks are 64-bit integers"
        )
    return 1 << n


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return empty("subset sums", shape, dtype)


def subset_sums(x: ArrayLike, *, out: np.ndarray | None = None) -> np.ndarray:
    """Sums of all subsets of the entries along the last axis.

    Parameters
    ----------
    x : array_like, shape (..., n)
        float32 or float64; integers count as float64.
    out : ndarray, shape (..., 2**n), optional
        The array to write the result to.  It has the result's dtype and is writeable; its strides
        may be any, and it shares no memory with `x`.  Writing into an array that exists is about
        three times as fast as making a new one, as the system must first hand out its pages.

    Returns
    -------
    sums : ndarray, shape (..., 2**n)
        Position `mask` holds the sum of the ``x[..., i]`` with bit `i` set in `mask`; so position 0
        holds 0.  This is `out` if it was given.

    Raises
    ------
    TypeError
        If `x` is of another dtype, or `out` not an array of the result's dtype.
    ValueError
        If `x` is a scalar or n > 62, or if `out` has the wrong shape, is read-only or shares memory
        with `x`.
    MemoryError
        If the result does not fit; the message says how many bytes it would take.

    See Also
    --------
    iter_subset_sums : the same sums in constant memory.
    subset_logsumexp : the log of the sum of their exponentials.

    Notes
    -----
    Every result is the ascending sum of the chosen entries among the first 10, plus the ascending
    sum of the other chosen entries.  A subset costs one addition, at the speed of memory.  The bits
    are the same for any strides, number of threads and CPU.  Time O(2**n) a row; memory beyond the
    result: 16 KiB per thread.

    Examples
    --------
    >>> import fastderiv as fd
    >>> fd.subset_sums([1.0, 10.0, 100.0])
    array([  0.,   1.,  10.,  11., 100., 101., 110., 111.])
    """
    source = as_array("x", x)
    x = _rows(source)
    shape = (*x.shape[:-1], _masks(x))
    base = (
        _empty(shape, x.dtype) if out is None else check_out(out, shape, x.dtype, [("x", source)])
    )
    target = as_dtype(base, x.dtype)
    _kernels[x.dtype].sums(x, target, first=0, reused=out is not None)
    copy_back(target, base)
    return base if out is None else out


def iter_subset_sums(
    x: ArrayLike, *, block: SupportsIndex = 1 << 16, progress: Progress = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Sums of all subsets, block by block in constant memory.

    Parameters
    ----------
    x : array_like, shape (n,)
        float32 or float64; integers count as float64.  Read when the function is called.
    block : int, optional
        Sums in a block, at least 1; rounded up to a power of two, and no more than 2**n.
    progress : bool or callable, optional
        True for a bar, or a function that is called as ``progress(done, total)`` with numbers of
        subsets after each block.

    Yields
    ------
    first_mask : int
        The mask of the block's first sum: a multiple of the block's length.
    sums : ndarray, shape (block,)
        The sums of the masks from `first_mask` on.  Each block is a new array; its bits are those
        of `subset_sums`, for any `block`.

    Raises
    ------
    TypeError
        If `x` is of another dtype, `block` is not an integer or `progress` is neither a bool nor
        callable.
    ValueError
        If `x` is not one-dimensional, n > 62 or `block` < 1.
    MemoryError
        If a block does not fit; the message says how many bytes it would take.

    See Also
    --------
    subset_sums : all of them in one array.

    Notes
    -----
    Errors are raised by the call, not by the first iteration.  Time O(2**n), memory O(block).

    Examples
    --------
    >>> import fastderiv as fd
    >>> for first_mask, sums in fd.iter_subset_sums([1.0, 10.0, 100.0], block=4):
    ...     print(first_mask, sums)
    0 [ 0.  1. 10. 11.]
    4 [100. 101. 110. 111.]
    """
    x = _rows(x)
    if x.ndim != 1:
        raise ValueError(f"x has shape {x.shape}; expected (n,)")
    total = _masks(x)
    block = min(total, 1 << (index("block", block, least=1) - 1).bit_length())
    check_fits(f"subset sums of shape {(block,)} and dtype {x.dtype}", block * x.dtype.itemsize)
    blocks = _blocks(x.copy(), block, total, progress)
    next(blocks)  # runs it to its first `yield`, so that a wrong `progress` is refused now
    return blocks


def _blocks(
    x: np.ndarray, block: int, total: int, progress: Progress
) -> Iterator[tuple[int, np.ndarray]]:
    """An empty block, then all sums in blocks of so many."""
    with reporting(progress, total, "subset sums") as report:
        yield 0, np.empty(0, x.dtype)  # taken by iter_subset_sums
        for first in range(0, total, block):
            sums = _empty((block,), x.dtype)
            _kernels[x.dtype].sums(x, sums, first=first, reused=False)
            if report:
                report(first + block)
            yield first, sums


def subset_logsumexp(
    x: ArrayLike, *, method: Literal["closed", "enumerate"] = "closed", progress: Progress = None
) -> Any:  # an array or a NumPy scalar: NumPy's own functions of both are typed so
    """Log of the sum over all subsets of the exponential of the subset's sum.

    This is log Σ_S exp(Σ_{i∈S} x_i) along the last axis, where S runs over all subsets of the
    entries I, the empty one included.  As Σ_{S⊆I} Π_{i∈S} e^{x_i} = Π_{i∈I} (1 + e^{x_i}), it
    equals Σ_i softplus(x_i): docs/derivations.md §1.3.

    Parameters
    ----------
    x : array_like, shape (..., n)
        float32 or float64; integers count as float64.
    method : {"closed", "enumerate"}, optional
        "closed" adds n softplus terms.  "enumerate" forms each of the 2**n subset sums and its
        exponential: a second, independent way to the same number.
    progress : bool or callable, optional
        True for a bar, or a function that is called as ``progress(done, total)`` with numbers of
        subsets if `method` is "enumerate", else of rows.

    Returns
    -------
    logsum : ndarray, shape (...), or a NumPy scalar if `x` is one-dimensional
        In the working dtype.  0 for n = 0.

    Raises
    ------
    TypeError
        If `x` is of another dtype, or `progress` neither a bool nor callable.
    ValueError
        If `x` is a scalar, `method` is unknown, or n > 62 subsets were to be enumerated.

    See Also
    --------
    subset_sums : the sums themselves.
    transition_product : where a selective scan meets this sum.

    Notes
    -----
    Nothing overflows on the way: exponentials are taken relative to the largest subset sum, which
    is that of the positive entries.  The term of the empty subset is kept apart, so that a result
    far below 1 has all its digits too.  A row with NaN gives NaN, a row with inf and no NaN gives
    inf, and an entry −inf contributes the factor 1; other rows are not affected.

    Sums are accumulated in float64 in an order that depends on n alone, so that the bits are the
    same for any strides and number of threads.  Time O(n), or O(2**n) for "enumerate": about 0.3 ns
    a subset and core in float64.  Memory beyond the result: 8 bytes a row; "enumerate": 16 KiB a
    thread.

    Examples
    --------
    >>> import fastderiv as fd
    >>> x = [0.5, -1.0, 2.0]
    >>> print(f"{fd.subset_logsumexp(x):.12f} {fd.subset_logsumexp(x, method='enumerate'):.12f}")
    3.414266682741 3.414266682741
    >>> float(fd.subset_logsumexp([400.0, 400.0], method="enumerate"))
    800.0
    """
    x = _rows(x)
    if method not in ("closed", "enumerate"):
        raise ValueError(f"method is {method!r}; expected 'closed' or 'enumerate'")
    return _logsumexp(x, method, as_caller(progress) if callable(progress) else progress)[()]


@undisturbed
def _logsumexp(x: np.ndarray, method: str, progress: Progress) -> np.ndarray:
    return (_closed if method == "closed" else _enumerated)(x, progress)


def _closed(x: np.ndarray, progress: Progress) -> np.ndarray:
    """Σ softplus of each row, of partial sums that the kernel makes."""
    kernel = _kernels[x.dtype]
    rows = math.prod(x.shape[:-1])
    with reporting(progress, rows, "softplus") as report:
        parts = empty("partial sums", (rows, kernel.closed_parts(x.shape[-1])), F64)
        kernel.closed(x, parts)
        if report and rows:
            report(rows)
    total = parts[:, 0]
    for k in range(1, parts.shape[1] if rows else 0):
        total += parts[:, k]
    return as_dtype(total.reshape(x.shape[:-1]), x.dtype)


def _enumerated(x: np.ndarray, progress: Progress) -> np.ndarray:
    """The log of the sum over all subsets of each row."""
    masks, rows = _masks(x), math.prod(x.shape[:-1])
    result = empty("the result", x.shape[:-1], x.dtype)
    with reporting(progress, rows * masks, "subsets") as report:
        if masks <= _MASKS_PER_TASK:
            _enumerate_short_rows(x, result, report)
        else:
            for done, row in enumerate(np.ndindex(result.shape)):
                result[row] = _enumerate_long_row(x[row], masks, report, done * masks)
    return result


def _enumerate_short_rows(x: np.ndarray, result: np.ndarray, report: Report) -> None:
    """Rows whose subsets are one task or less: in one call, or in one for each report."""
    kernel, masks, rows = _kernels[x.dtype], 1 << x.shape[-1], result.size
    if report is None:
        kernel.enumerate_rows(x, result)
        return
    x, flat = x.reshape(rows, x.shape[-1]), result.reshape(rows)
    step = max(1, _MASKS_PER_REPORT // (masks + 32))
    for first in range(0, rows, step):
        kernel.enumerate_rows(x[first : first + step], flat[first : first + step])
        report(min(rows, first + step) * masks)


def _enumerate_long_row(x: np.ndarray, masks: int, report: Report, done: int) -> float:
    """One row of several tasks; `done` subsets of earlier rows have been reported."""
    kernel = _kernels[x.dtype]
    peak, total = kernel.peak(x), 0.0
    at_once = min(masks, _MASKS_PER_REPORT)
    partial = np.empty(at_once // _MASKS_PER_TASK)
    for first in range(0, masks if math.isfinite(peak) else 0, at_once):
        kernel.enumerate_masks(x, first, partial)
        for part in partial.tolist():
            total += part
        if report:
            report(done + first + at_once)
    if not math.isfinite(peak) and report:
        report(done + masks)
    return peak + math.log1p(total)
