"""Types of `cache.pyx`."""

from typing import Any, NoReturn, Self, final

from numpy.typing import NDArray

@final
class Cache:
    """What a forward pass keeps for its adjoint: opaque, immutable, usable any number of times, in this process only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __copy__(self) -> Self: ...
    def __deepcopy__(self, memo: dict[int, Any], /) -> Self: ...
    def __reduce__(self) -> NoReturn: ...

def keep(
    function: str,
    call: tuple[Any, ...],
    operands: tuple[NDArray[Any] | None, ...],
    arrays: tuple[NDArray[Any] | None, ...],
    /,
) -> Cache:
    """A cache: whose, what of the call its adjoint must agree in, the arrays it was computed from, and what it holds."""

def opened(
    cache: object, function: str, /
) -> tuple[tuple[Any, ...], tuple[int | None, ...], tuple[Any, ...]]:
    """The call, the checksums and the arrays of a cache of `function`; a TypeError if it is none."""

def checksums(arrays: tuple[NDArray[Any] | None, ...], /) -> tuple[int | None, ...]:
    """A number for each array, which must be contiguous, that tells its bytes from others; None for None."""
