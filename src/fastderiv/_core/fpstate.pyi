"""Types of `fpstate.pyx`."""

from types import TracebackType
from typing import Self

class ieee:
    """``with ieee():`` round to nearest, gradual underflow and no traps in this thread inside, whatever the caller had."""

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
