"""Arrays and scalars as users pass them, and as kernels want them; every error names the argument.

Conversion to arrays comes first, then shapes and shared memory, `out=` and arguments updated in
place, scalars, and new arrays.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .fpstate import ieee

F32 = np.dtype(np.float32)
F64 = np.dtype(np.float64)
_MANY = 100_000  # work allowed to tell interleaved views from overlapping ones
_PIECE = 1 << 21  # elements that NumPy works on between two looks for signals: some milliseconds
_LARGE = 1 << 28  # bytes of a result from which on it is asked whether the machine has them


def as_array(name: str, value: ArrayLike | None) -> np.ndarray:
    """`value` as a base ndarray of a dtype that fastderiv computes with, still in its own dtype."""
    if type(value) is not np.ndarray:
        value = base_array(name, value)
    dtype = value.dtype
    if (
        dtype is F32
        or dtype is F64
        or dtype.kind in "iu"
        or (dtype.kind == "f" and dtype.itemsize in (4, 8))
    ):
        return value
    raise TypeError(f"{name} has dtype {dtype}; expected float32, float64 or integers")


def base_array(name: str, value: Any, of: str = "numbers") -> np.ndarray:
    """`value` as an ndarray and no subclass, whose methods would be its own.

    Errors that its type raises on the way name the argument.
    """
    refuse_masked(name, value)
    try:
        if hasattr(value, "to_numpy") and (hasattr(value, "dtype") or hasattr(value, "dtypes")):
            array = _columns(value)  # of a DataFrame or a Series
        else:
            array = np.asanyarray(value)
    except (MemoryError, RecursionError):
        raise
    except TypeError as error:
        what = f"a {type(value).__name__} that is not an array of {of}"
        raise TypeError(f"{name} is {what}: {_first_line(error)}") from error
    except Exception as error:  # ragged lists; what `__array__` of another library's type raises
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name} is not an array of {of}: {_first_line(error)}") from error
    refuse_masked(name, array)
    return np.asarray(array)


def refuse_masked(name: str, value: object) -> None:
    """A TypeError for masked arrays: as plain arrays they would show the values that are hidden."""
    ma = sys.modules.get("numpy.ma")
    if ma is None or not (isinstance(value, ma.MaskedArray) or _holds(value, ma.MaskedArray)):
        return
    raise TypeError(
        f"{name} is a masked array, whose mask would be ignored; "
        f"pass an ordinary array, such as {name}.filled(0)"
    )


def _holds(value: object, kind: type, depth: int = 64) -> bool:
    """Whether a list, or a list in it, has an item of this kind.

    NumPy's arrays have 64 axes at most, so deeper lists are not searched.
    """
    if not isinstance(value, (list, tuple)) or depth == 0:
        return False
    return any(isinstance(item, kind) or _holds(item, kind, depth - 1) for item in value)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _columns(frame: Any) -> np.ndarray:
    """The numbers of a DataFrame or Series as scikit-learn takes them; missing ones are NaN.

    The dtype is float32 if every column has it, an integer one if that holds every column and no
    number is missing, else float64.
    """
    dtypes = list(frame.dtypes) if hasattr(frame, "columns") else [frame.dtype]
    if all(
        isinstance(dtype, np.dtype) and dtype.kind in "iuf" and dtype.itemsize in (4, 8)
        for dtype in dtypes
    ):
        return np.asanyarray(frame.to_numpy())
    for dtype in dtypes:
        # of others, such as dates, NumPy would make numbers
        if getattr(dtype, "kind", "f") not in "biufO":
            raise TypeError(f"it has a column of dtype {dtype}")
    try:
        whole = _integer(dtypes)
        if whole is not None and not np.asarray(frame.isna()).any():
            return np.asarray(frame.to_numpy(dtype=whole))
        return np.asarray(frame.to_numpy(dtype=F64, na_value=np.nan))
    except (AttributeError, TypeError):  # not pandas, whose methods and arguments these are
        values = np.asanyarray(frame.to_numpy())
    if values.dtype.kind not in "biufO":
        raise TypeError(f"its columns have dtype {values.dtype}")
    return values if values.dtype in (F32, F64) else values.astype(F64)


def _integer(dtypes: list[Any]) -> type[np.integer] | None:
    """The integers that hold all columns of these dtypes, if there are some."""
    kinds = {getattr(dtype, "kind", "f") for dtype in dtypes}
    if kinds == {"u"}:
        return np.uint64
    if not kinds <= set("iu"):
        return None
    large = any(dtype.kind == "u" and getattr(dtype, "itemsize", 8) == 8 for dtype in dtypes)
    return None if large else np.int64


def as_dtype(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`array` itself if it is native, aligned and of `dtype`, else a copy that is."""
    # == and not only `is`: unpickled arrays carry dtype objects of their own, and swapped bytes
    # compare unequal
    if (array.dtype is dtype or array.dtype == dtype) and array.flags.aligned:
        return array
    with ieee(), np.errstate(all="ignore"):
        if array.size <= _PIECE:
            return array.astype(dtype, copy=True, order="K")
        check_fits(f"a copy of shape {array.shape} and dtype {dtype}", array.size * dtype.itemsize)
        copy = np.empty_like(array, dtype, order="K")
        assign(copy, array)
        return copy


def pieces(shape: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """Indices that cut an array of this shape into parts, between which signals are seen.

    Each part is worked on within milliseconds.
    """
    size = math.prod(shape)
    if size <= _PIECE:
        yield (...,)
    elif size // shape[0] > _PIECE:
        for i in range(shape[0]):
            for part in pieces(shape[1:]):
                yield (i, *part)
    else:
        step = _PIECE // (size // shape[0])
        for start in range(0, shape[0], step):
            yield (slice(start, start + step),)


def assign(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source`, of one shape, in pieces that a signal can come between."""
    for part in pieces(target.shape):
        target[part] = source[part]


def as_arrays(
    names: Iterable[str], values: Iterable[ArrayLike | None], optional: Iterable[str] = ()
) -> list:
    """`as_array` of the named values; those that are `optional` may be None and stay None."""
    return [
        None if a is None and name in optional else as_array(name, a)
        for name, a in zip(names, values, strict=True)
    ]


def common(arrays: list) -> list:
    """The arrays in one working dtype, None staying None.

    float32 if all are, else float64; integers count as float64, and 0-d values give way to arrays.
    """
    dtypes = {a.dtype for a in arrays if a is not None}
    if len(dtypes) == 1 and (F32 in dtypes or F64 in dtypes):  # nearly always
        (dtype,) = dtypes
    else:
        wide = {
            a.ndim > 0
            for a in arrays
            if a is not None and not (a.dtype.kind == "f" and a.dtype.itemsize == 4)
        }
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
    if array.size <= _PIECE:  # nearly always, and then a microsecond counts
        good = np.isfinite(array).all()
    else:
        good = all(np.isfinite(array[part]).all() for part in pieces(array.shape))
    if not good:
        where = np.argwhere(~np.isfinite(array))[0]
        at = f"[{', '.join(map(str, where))}]" if array.ndim else ""
        raise ValueError(f"{name}{at} is {array[tuple(where)]}; expected finite numbers")
    return array


def integers(name: str, value: ArrayLike) -> np.ndarray:
    """`value` as a native, contiguous intp array of our own, which nobody else can change.

    Floats and bools are a TypeError.
    """
    array = base_array(name, value, "integers")
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers")
    if array.size <= _PIECE and array.dtype.kind != "u":
        return np.array(array, np.intp, order="C")
    own = empty(f"the copy of {name}", array.shape, np.dtype(np.intp))
    for part in pieces(array.shape):
        piece = array[part]
        if array.dtype.kind == "u":  # beyond intp they would turn negative
            piece = np.minimum(piece, np.iinfo(np.intp).max, dtype=np.uint64)
        own[part] = piece
    return own


def expect(name: str, array: np.ndarray, shape: tuple[int, ...], meaning: str) -> None:
    """A ValueError unless `array` has `shape`.

    `meaning` spells the shape in symbols, e.g. "(batch, D, L)".
    """
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


def overlaps_itself(array: np.ndarray) -> bool:
    """Whether two elements share memory, as in expanded views.

    True where that is too hard to tell.
    """
    if array.size <= 1 or array.flags.c_contiguous or array.flags.f_contiguous:
        return False
    reach = array.itemsize
    for stride, size in sorted(
        (abs(stride), size)
        for stride, size in zip(array.strides, array.shape, strict=True)
        if size > 1
    ):
        if stride < reach:  # steps of one axis lie between those of another, or on them
            return _meet(array)
        reach += stride * (size - 1)
    return False


def _meet(array: np.ndarray) -> bool:
    if array.size > _MANY:
        return True
    at = np.zeros((), np.intp)
    for stride, size in zip(array.strides, array.shape, strict=True):
        at = np.add.outer(at, stride * np.arange(size))
    return bool((np.diff(np.sort(at, axis=None)) < array.itemsize).any())


def _expect_apart(name: str, array: np.ndarray) -> None:
    if overlaps_itself(array):
        raise ValueError(f"{name} shares memory with itself: several of its elements are one")


def in_place(name: str, array: Any) -> np.ndarray:
    """The base ndarray view of an argument that is updated in place, float32 or float64."""
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"{name} is a {type(array).__name__}; expected a NumPy array, which is updated in place"
        )
    refuse_masked(name, array)
    view = np.asarray(array)  # a subclass's own methods are never called
    if view.dtype.kind != "f" or view.dtype.itemsize not in (4, 8):
        raise TypeError(f"{name} has dtype {view.dtype}; expected float32 or float64")
    if not view.flags.writeable:
        raise ValueError(f"{name} is read-only; it is updated in place")
    _expect_apart(name, view)
    return view


def check_out(
    out: Any,
    shape: tuple[int, ...],
    dtype: np.dtype,
    inputs: Iterable[tuple[str, np.ndarray | None]],
    name: str = "out",
) -> np.ndarray:
    """The base ndarray view of `out=`, checked.

    It must have exactly this shape and dtype, be writeable, and share no memory with itself or
    with an input.
    """
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} is a {type(out).__name__}; expected a NumPy array")
    refuse_masked(name, out)
    view = np.asarray(out)  # a subclass's own methods are never called
    if view.dtype != dtype:
        raise TypeError(f"{name} has dtype {view.dtype}; expected {dtype}")
    if view.shape != shape:
        raise ValueError(f"{name} has shape {view.shape}; expected {shape}")
    if not view.flags.writeable:
        raise ValueError(f"{name} is read-only")
    _expect_apart(name, view)
    for other, array in inputs:
        if array is not None and overlap(view, array):
            raise ValueError(f"{name} shares memory with {other}")
    return view


def copy_back(target: np.ndarray, out: np.ndarray) -> None:
    """`out` = `target`, where a kernel could not write to `out` and wrote to `target` instead.

    `target` is `as_dtype(out, …)`; nothing happens if that is `out` itself.
    """
    if target is not out:
        assign(out, target)


def index(name: str, value: SupportsIndex, least: int | None = None) -> int:
    """`value` as an int, not less than `least`; floats and bools are a TypeError."""
    refuse_masked(name, value)
    try:
        if isinstance(value, (bool, np.bool)):  # which NumPy 2.0 would take for 0 and 1
            raise TypeError
        i = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected an integer") from None
    if least is not None and i < least:
        raise ValueError(f"{name} is {i}; expected an integer of at least {least}")
    return i


def position(name: str, value: SupportsIndex, size: int, what: str) -> int:
    """`value` as a number in [0, size); negative ones count from the end.

    `what` is what there are `size` of, e.g. "inputs".
    """
    i = index(name, value)
    if not -size <= i < size:
        wanted = f"expected an integer from {-size} to {size - 1}"
        raise ValueError(f"{name} is {i}; {wanted}, there being {size} {what}")
    return i % size


def pair(
    name: str, value: Any, size: int, what: str, expected: str = "a pair of integers"
) -> tuple[int, int]:
    """`value` as two different numbers in [0, size); negative ones count from the end.

    There are `size` of `what`, e.g. "inputs"; `expected` is what an error asks for.
    """
    try:
        a, b = value
    except (TypeError, ValueError):
        raise (ValueError if isinstance(value, (Sequence, np.ndarray)) else TypeError)(
            f"{name} is {value!r}; expected {expected}"
        ) from None
    a, b = position(f"{name}[0]", a, size, what), position(f"{name}[1]", b, size, what)
    if a == b:
        raise ValueError(f"{name} is {value!r}; expected two different {what}")
    return a, b


def row_number(value: SupportsIndex, rows: int) -> int:
    """`value` as one of so many rows, as sequences are indexed.

    Negative numbers count from the end; others out of range are an IndexError.
    """
    i = index("row", value)
    if not -rows <= i < rows:
        raise IndexError(f"row {i} is out of range, there being {rows} rows")
    return i % rows


def flag(name: str, value: object) -> bool:
    """`value` as Python has it, true or false.

    What is neither, such as an array of several elements, is a TypeError.
    """
    try:
        return bool(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name} is a {type(value).__name__} that is neither true nor false; expected a bool"
        ) from None


def sequence(name: str, value: Any, expected: str) -> list:
    """The items of `value`.

    An array's are those of its base view, because a subclass's own indexing may never end.
    """
    if hasattr(value, "__array__"):
        value = base_array(name, value)
    try:
        return list(value)
    except TypeError:
        raise TypeError(f"{name} is a {type(value).__name__}; expected {expected}") from None


def number(name: str, value: ArrayLike) -> float:
    """`value`, a scalar or 0-d array of integers or floats, as a float."""
    if type(value) is float:  # nearly always
        return value
    refuse_masked(name, value)
    if isinstance(value, (int, float, np.generic, np.ndarray)):
        array = np.asarray(value)
        if array.ndim == 0 and array.dtype.kind in "iuf":
            with ieee():
                return float(array)
    raise TypeError(f"{name} is {value!r}; expected a number")


def empty(
    what: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    make: Callable[..., np.ndarray] = np.empty,
) -> np.ndarray:
    """A new array by `make`, np.empty or np.zeros.

    If the machine has not so much memory, a MemoryError says how many bytes it would take.
    """
    try:
        array = make(shape, dtype)
    except (MemoryError, ValueError):  # the latter beyond NumPy's integers
        nbytes = math.prod(shape) * dtype.itemsize
        wrong = f"{what} of shape {shape} and dtype {dtype} would take {nbytes} bytes"
        if not nbytes:  # NumPy multiplies the axes that are not empty
            wrong = f"NumPy cannot represent the shape {shape} of {what}, although it is empty"
        raise MemoryError(wrong) from None
    if array.nbytes > _LARGE:
        check_fits(f"{what} of shape {shape} and dtype {dtype}", array.nbytes)
    return array


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
        np.empty(nbytes, np.uint8)  # Windows, without sysconf, promises only memory that it has
    except (MemoryError, OverflowError, ValueError):  # the latter two beyond NumPy's integers
        return False
    return True
