"""Arrays as users pass them, arrays as kernels want them: dtypes, alignment, `out=`, and the errors that name an argument."""

import operator
import os
from collections.abc import Iterable
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

F32 = np.dtype(np.float32)
F64 = np.dtype(np.float64)
_MANY = 100_000  # work allowed to tell interleaved views from overlapping ones


def as_array(name: str, value: ArrayLike | None) -> np.ndarray:
    """`value` as an ndarray of a dtype that fastderiv computes with, still in its own dtype."""
    if type(value) is not np.ndarray:
        try:
            value = np.asarray(value)
        except ValueError as error:  # ragged lists
            raise ValueError(f"{name} is not an array of numbers: {error}") from None
    dtype = value.dtype
    if dtype is F32 or dtype is F64 or dtype.kind in "iu" or (dtype.kind == "f" and dtype.itemsize in (4, 8)):
        return value
    raise TypeError(f"{name} has dtype {dtype}; expected float32, float64 or integers")


def as_dtype(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`array` itself if it is native, aligned and of `dtype`, else a copy that is."""
    # == and not only `is`: unpickled arrays carry dtype objects of their own; swapped bytes compare unequal
    if (array.dtype is dtype or array.dtype == dtype) and array.flags.aligned:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype, copy=True, order="K")


def as_arrays(names: Iterable[str], values: Iterable[ArrayLike | None], optional: Iterable[str] = ()) -> list:
    """`as_array` of the named values; those that are `optional` may be None and stay None."""
    return [None if a is None and name in optional else as_array(name, a) for name, a in zip(names, values, strict=True)]


def common(arrays: list) -> list:
    """The arrays in one working dtype, None staying None.

    float32 if all are, else float64; integers count as float64, and 0-d values give way to arrays.
    """
    dtypes = {a.dtype for a in arrays if a is not None}
    if len(dtypes) == 1 and (F32 in dtypes or F64 in dtypes):  # nearly always
        (dtype,) = dtypes
    else:
        wide = {a.ndim > 0 for a in arrays if a is not None and not (a.dtype.kind == "f" and a.dtype.itemsize == 4)}
        narrow = not (True in wide or (wide and all(a.ndim == 0 for a in arrays if a is not None)))
        dtype = F32 if narrow else F64
    return [None if a is None else as_dtype(a, dtype) for a in arrays]


def working(**arguments: ArrayLike) -> list[np.ndarray]:
    """The named arguments as arrays of one working dtype."""
    return common(as_arrays(arguments.keys(), arguments.values()))


def float64(name: str, value: ArrayLike) -> np.ndarray:
    """`value` as a native, aligned float64 array."""
    return as_dtype(as_array(name, value), F64)


def finite(name: str, array: np.ndarray) -> np.ndarray:
    """`array`, or a ValueError that says where it is not finite."""
    if not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0]
        at = f"[{', '.join(map(str, where))}]" if array.ndim else ""
        raise ValueError(f"{name}{at} is {array[tuple(where)]}; expected finite numbers")
    return array


def integers(name: str, value: ArrayLike) -> np.ndarray:
    """`value` as a native intp array; floats and bools are a TypeError."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged lists
        raise ValueError(f"{name} is not an array of integers: {error}") from None
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers")
    if array.dtype.kind == "u":  # beyond intp they would turn negative
        array = np.minimum(array, np.iinfo(np.intp).max, dtype=np.uint64)
    return array.astype(np.intp, copy=False)


def expect(name: str, array: np.ndarray, shape: tuple[int, ...], meaning: str) -> None:
    """A ValueError unless `array` has `shape`; `meaning` spells the shape in symbols, e.g. "(batch, D, L)"."""
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected {meaning} = {shape}")


def overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the arrays share memory; True where that is too hard to tell."""
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=_MANY)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def check_out(
    out: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, inputs: Iterable[tuple[str, np.ndarray | None]], name: str = "out"
) -> None:
    """The checks of `out=`: exact shape and dtype, writeable, memory of its own."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} is a {type(out).__name__}; expected a NumPy array")
    if out.dtype != dtype:
        raise TypeError(f"{name} has dtype {out.dtype}; expected {dtype}")
    if out.shape != shape:
        raise ValueError(f"{name} has shape {out.shape}; expected {shape}")
    if not out.flags.writeable:
        raise ValueError(f"{name} is read-only")
    for other, array in inputs:
        if array is not None and overlap(out, array):
            raise ValueError(f"{name} shares memory with {other}")


def copy_back(target: np.ndarray, out: np.ndarray) -> None:
    """`out` = `target`, its stand-in `as_dtype(out, …)` that a kernel could write to, if it needed one."""
    if target is not out:
        out[...] = target


def index(name: str, value: SupportsIndex, least: int | None = None) -> int:
    """`value` as an int, not less than `least`; floats and bools are a TypeError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        i = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected an integer") from None
    if least is not None and i < least:
        raise ValueError(f"{name} is {i}; expected an integer of at least {least}")
    return i


def position(name: str, value: SupportsIndex, size: int, what: str) -> int:
    """`value` as a number in [0, size); negative ones count from the end.  `what` there are `size` of, e.g. "inputs"."""
    i = index(name, value)
    if not -size <= i < size:
        raise ValueError(f"{name} is {i}; expected an integer from {-size} to {size - 1}, there being {size} {what}")
    return i % size


def row_number(value: SupportsIndex, rows: int) -> int:
    """`value` as one of so many rows, as sequences are indexed: negative ones count from the end, others are an IndexError."""
    i = index("row", value)
    if not -rows <= i < rows:
        raise IndexError(f"row {i} is out of range, there being {rows} rows")
    return i % rows


def number(name: str, value: ArrayLike) -> float:
    """`value`, a scalar or 0-d array of integers or floats, as a float."""
    if isinstance(value, (int, float, np.generic, np.ndarray)):
        array = np.asarray(value)
        if array.ndim == 0 and array.dtype.kind in "iuf":
            return float(array)
    raise TypeError(f"{name} is {value!r}; expected a number")


def check_fits(what: str, nbytes: int) -> None:
    """A MemoryError for more bytes than the machine has.

    Systems that promise memory freely would grant them, and end the process when they are written.
    """
    if not _fits(nbytes):
        raise MemoryError(f"{what} would take {nbytes} bytes, more than this machine has")


def _fits(nbytes: int) -> bool:
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        memory = 0
    if memory > 0:
        return nbytes <= memory
    try:
        np.empty(nbytes, np.uint8)  # Windows has no sysconf, and promises no memory that it does not have
    except (MemoryError, OverflowError, ValueError):  # the latter two beyond NumPy's integers
        return False
    return True
