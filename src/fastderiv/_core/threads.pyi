"""One small pool of threads for every kernel; `run`, which starts a job, is for Cython only."""

def set_default(n: int, by_environment: bool) -> None:
    """How many threads, where no call of this process has said otherwise."""

def set_count(n: int) -> None:
    """`set_num_threads` without its checks."""

def count() -> int:
    """How many threads a call may use."""
