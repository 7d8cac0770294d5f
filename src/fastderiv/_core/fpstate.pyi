"""Types of `fpstate.pyx`."""

from types import TracebackType
from typing import Self

class ieee:
    """``with ieee():`` puts this thread into round to nearest, gradual underflow and no traps.

    Afterwards the caller's state is back.
    """

    @staticmethod
    def current() -> ieee:
        """A context manager of the state in force now, for callbacks inside ``with ieee()``."""

    def again(self) -> ieee:
        """Another one for the same state: one object cannot be entered inside itself."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
