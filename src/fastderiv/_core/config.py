"""Threads, and what this installation is."""

from __future__ import annotations

import operator
import os
import sys
from typing import SupportsIndex

from . import cpu, dispatch, processors, threads

_MAX_THREADS = 2**31 - 1


class Config(dict):
    """A dict that prints as a table."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(
            f"{key:<{width}}  {', '.join(value) if isinstance(value, list) else value}"
            for key, value in self.items()
        )

    __repr__ = __str__


def set_num_threads(n: SupportsIndex) -> None:
    """Set how many threads a call may use, the calling thread included.

    Results are the same bits for every number.  Calls of less than about a quarter of a millisecond
    stay in the calling thread, and no call uses more than 256 threads.

    Parameters
    ----------
    n : int
        At least 1.  The default is the environment variable ``FASTDERIV_NUM_THREADS``; without
        it, the number of processors this process may run on, the CPU quota of its container
        (rounded up) or ``OMP_NUM_THREADS``, whichever is least.

    Raises
    ------
    ValueError
        If `n` is not a positive integer; the old value stays.

    Notes
    -----
    threadpoolctl finds and limits these threads as the library "fastderiv", joblib's processes
    limit them by ``OMP_NUM_THREADS``, and in a worker process of PyTorch's DataLoader the default
    is 1, as it is for PyTorch.  Of several calls at the same time, one uses the threads, and each
    of the others its own thread only.

    Examples
    --------
    >>> import fastderiv as fd
    >>> before = fd.get_num_threads()
    >>> fd.set_num_threads(1)
    >>> fd.get_num_threads()
    1
    >>> fd.set_num_threads(before)
    """
    try:
        count = 0 if isinstance(n, bool) else operator.index(n)
    except TypeError:
        count = 0
    if not 1 <= count <= _MAX_THREADS:
        raise ValueError(f"n is {n!r}; expected a positive integer")
    threads.set_count(count)


def get_num_threads() -> int:
    """How many threads a call may use, the calling thread included.

    Examples
    --------
    >>> import fastderiv as fd
    >>> fd.get_num_threads() >= 1
    True
    """
    return threads.count()


def show_config() -> Config:
    """What this installation is: versions, compiler, CPU levels, SIMD width and threads.

    Returns
    -------
    Config
        A dict that prints as a table.

    Examples
    --------
    >>> import fastderiv as fd
    >>> config = fd.show_config()
    >>> config["CPU level in use"] in config["CPU levels compiled"]
    True
    """
    from importlib.metadata import version

    from .maths import SIMD_BITS

    return Config({
        "fastderiv": _package_version(),
        "Python": sys.version.split()[0],
        "NumPy": version("numpy"),
        "SciPy": version("scipy"),
        "compiler": cpu.COMPILER,
        "compiler flags": cpu.FLAGS,
        "CPU levels compiled": [dispatch.LEVEL_NAMES[tag] for tag in cpu.COMPILED],
        "CPU levels supported": [dispatch.LEVEL_NAMES[tag] for tag in cpu.SUPPORTED],
        "CPU level in use": dispatch.LEVEL_NAMES[dispatch.LEVEL],
        "SIMD width": f"{SIMD_BITS} bits",
        "threads": get_num_threads(),
    })  # fmt: skip


def _package_version() -> str:
    """The version that the package states; it imports this room, not the other way round."""
    return str(sys.modules["fastderiv"].__version__)


def _set_default() -> None:
    """The number of threads at import."""
    wanted = os.environ.get("FASTDERIV_NUM_THREADS", "")
    if not wanted:
        threads.set_default(min(processors.available(), _openmp_threads()), by_environment=False)
        return
    if not _is_count(wanted):
        raise ImportError(f"FASTDERIV_NUM_THREADS={wanted!r}; expected a positive integer")
    threads.set_default(int(wanted), by_environment=True)


def _is_count(text: str) -> bool:
    digits = text.isascii() and text.isdigit() and len(text) <= 10
    return digits and 1 <= int(text) <= _MAX_THREADS


def _openmp_threads() -> int:
    """The number in `OMP_NUM_THREADS`; of a list the first one, which is for the outermost loops.

    A value that OpenMP would not take sets no limit.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if _is_count(first) else _MAX_THREADS


def _register() -> None:
    """Have threadpoolctl, if there is one, find the pool, as it documents for other libraries."""
    try:
        from threadpoolctl import LibController, register
    except ImportError:  # none, or one before 3.2
        return

    class FastderivController(LibController):
        user_api = internal_api = "fastderiv"
        filename_prefixes = ("threads.",)  # of fastderiv._core.threads
        check_symbols = ("fastderiv_get_num_threads",)

        def get_num_threads(self) -> int:
            return get_num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            # unlike ours, this ignores what is below 1, as other libraries do
            self.dynlib.fastderiv_set_num_threads(num_threads)

        def get_version(self) -> str:
            return _package_version()

    register(FastderivController)


_set_default()
_register()
