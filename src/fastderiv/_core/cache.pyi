"""Types of `cache.pyx`."""

from typing import Any, NoReturn, Self, final

from numpy.typing import NDArray

@final
class Cache:
    """What a forward pass keeps for its adjoint.

    It is opaque and immutable, and can be used any number of times, in this process only.
    """

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
    """A cache of `function` that holds `arrays`.

    `call` is what the adjoint's call must agree in, `operands` the arrays that the forward pass
    was computed from.
    """

def opened(
    cache: object, function: str, /
) -> tuple[tuple[Any, ...], tuple[int | None, ...], tuple[Any, ...]]:
    """The call, checksums and arrays of a cache of `function`; a TypeError if it is none."""

def checksums(arrays: tuple[NDArray[Any] | None, ...], /) -> tuple[int | None, ...]:
    """For each array, which must be contiguous, a number that tells its bytes from others.

    None stays None.
    """
