"""`progress=`: None, True (a tqdm bar) or a callable `progress(done, total)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = bool | Callable[[int, int], object] | None


@contextmanager
def reporting(
    progress: Progress, total: int, what: str
) -> Iterator[Callable[[int], object] | None]:
    """A function to call with the work done so far, or None if nobody asked."""
    if progress is None or progress is False:
        yield None
    elif progress is True:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            raise ImportError(
                "progress=True needs tqdm: pip install 'fastderiv[progress]'"
            ) from None
        with tqdm(total=total, desc=what, unit_scale=True) as bar:
            yield lambda done: bar.update(done - bar.n)
    elif callable(progress):
        yield lambda done: progress(done, total)
    else:
        raise TypeError(
            f"progress is a {type(progress).__name__}; "
            "expected None, True or a callable progress(done, total)"
        )
