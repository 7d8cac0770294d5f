"""What the checked calls of all families share: arrays, sequences, single steps, sums."""

from __future__ import annotations

from typing import Any, ClassVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._core.arrays import (
    F32,
    F64,
    as_arrays,
    as_dtype,
    check_out,
    common,
    empty,
    expect,
    in_place,
)
from .._core.floats import undisturbed
from .._core.plain import alike


class ArrayCall:
    """Arguments of a call as arrays of one dtype, and arrays for its results."""

    NAMES: ClassVar[tuple[str, ...]]  # of all arrays, in the order of `given`
    ALWAYS: ClassVar[int]  # so many of the first are never None in a forward pass

    given: Any  # named by NAMES: `out` is compared with them
    dtype: np.dtype
    shape: tuple[int, ...]  # of the result
    state_shape: tuple[int, ...]

    def take(self, given: Any, required: tuple[str, ...]) -> Any:
        """The arguments as arrays of one dtype; those that are not `required` may be None."""
        arrays = given
        if not alike(given, self.ALWAYS) or (
            "dout" in required and given[self.NAMES.index("dout")] is None
        ):
            optional = [name for name in self.NAMES if name not in required]
            given = as_arrays(self.NAMES, given, optional)
            arrays = common(given)
        self.given = given
        return arrays

    def checked_out(self, out: NDArray) -> NDArray:
        """The base array of the caller's `out`."""
        return check_out(out, self.shape, self.dtype, zip(self.NAMES, self.given, strict=True))

    def new_state(self) -> NDArray:
        """An array for a state, in the caller's shape."""
        return empty("the state", self.state_shape, self.dtype)


class SequenceCall(ArrayCall):
    """A call over whole sequences.

    Arrays in the caller's shapes may lack the batch axis, which kernels always have; states have
    one for each segment.
    """

    STATE: ClassVar[str]  # the axes of a segment's state

    batched: bool
    starts: NDArray[np.intp] | None  # of packed sequences
    initial_state: NDArray | None
    dlast_state: NDArray | None

    def check_states(self) -> None:
        for name, state in ("initial_state", self.initial_state), ("dlast_state", self.dlast_state):
            if state is not None:
                first = "batch, " if self.batched else ""
                if self.starts is not None:
                    first = "sequences, "
                expect(name, state, self.state_shape, f"({first}{self.STATE})")

    def new_result(self) -> NDArray:
        """An array for the result, in the caller's shape."""
        return empty("the result", self.shape, self.dtype)

    @overload
    def signal(self, a: NDArray) -> NDArray: ...
    @overload
    def signal(self, a: NDArray | None) -> NDArray | None: ...
    def signal(self, a: NDArray | None) -> NDArray | None:
        """An array in the caller's shape, with the batch axis that kernels want."""
        return a if a is None or self.batched else a[None]

    def state(self, a: NDArray | None) -> NDArray | None:
        """A state in the caller's shape, with the axis of segments that kernels want."""
        return a if a is None or self.batched or self.starts is not None else a[None]


def converted(
    state: np.ndarray,
    names: tuple[str, ...],
    arguments: tuple[ArrayLike | None, ...],
    required: int,
) -> tuple[NDArray, NDArray, tuple[Any, ...]]:
    """Of a single step: the base view of the state, then state and arguments in one dtype.

    All arguments but the first `required` may be None.
    """
    base = in_place("state", state)
    dtype = F32 if base.dtype.itemsize == 4 else F64
    given = as_arrays(names, arguments, optional=names[required:])
    check_out(base, base.shape, base.dtype, zip(names, given, strict=True), name="state")
    return (
        base,
        as_dtype(base, dtype),
        tuple(None if a is None else as_dtype(a, dtype) for a in given),
    )


def total(shares: NDArray, dtype: np.dtype | None = None) -> NDArray:
    """The sum of what tasks have added up, (shares, …), in their order."""
    return shares[0] if len(shares) == 1 else _summed(shares, dtype)


@undisturbed
def _summed(shares: NDArray, dtype: np.dtype | None) -> NDArray:
    whole: NDArray = shares.sum(axis=0, dtype=dtype)
    return whole
