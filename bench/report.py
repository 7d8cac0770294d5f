"""What the benches share: options, peak memory, and one form of results, ratio first."""

import argparse
import ctypes
import gc
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import fastderiv as fd
from fastderiv._cli.bench import threads_set_to
from fastderiv._cli.timing import Timing


@dataclass(frozen=True)
class Result:
    """One comparison.

    `ratio` is how many times as long the peer takes; times are the best round's; memory is the
    peak's.
    """

    name: str
    peer: str
    ratio: float
    unit: str  # of work: what the times are per
    ns: float
    peer_ns: float
    mib: float | None = None  # beyond what was there before the call
    peer_mib: float | None = None

    def __str__(self) -> str:
        mine, theirs = ("" if m is None else f", {m:.0f} MiB" for m in (self.mib, self.peer_mib))
        ours = f"{self.ratio:7.2f} x  {self.ns:10.3f} ns a {self.unit:<11}"
        return f"{ours} {self.name + mine:<62} {self.peer}: {self.peer_ns:.3f} ns{theirs}"


def compare(
    name: str,
    timings: Mapping[str, Timing],
    ours: str,
    peer: str,
    unit: str,
    units: int,
    memory: Mapping[str, float | None] = {},
) -> Result:
    """Two of the candidates that ran in turn, for so many `units` of work each."""
    mine, theirs = timings[ours], timings[peer]
    times = mine.best / units * 1e9, theirs.best / units * 1e9
    return Result(name, peer, mine.ratio(theirs), unit, *times, memory.get(ours), memory.get(peer))


def peak_memory(call: Callable[[], object], *, warm: bool = False) -> float | None:
    """MiB that a call adds to the process at its peak, with its result; None if that is unknown.

    `warm` says that it was called before, so that what is loaded and compiled once is there.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not warm:
        call()
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or the call would be given what earlier ones have left
        reset.write_text("5")
        before = _kib(status, "VmRSS")
        call()
        return (_kib(status, "VmHWM") - before) / 1024
    except (AttributeError, OSError):
        return None


def _kib(status: Path, field: str) -> int:
    return int(
        next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1]
    )


def options(description: str, rounds: int) -> argparse.ArgumentParser:
    """The command line of every bench."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of a table"
    )
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"rounds of every comparison (default: {rounds})"
    )
    return parser


def report(results: Iterable[Result], as_json: bool) -> None:
    """Print the results as they come, or all of them and the configuration as JSON."""
    if as_json:
        print(json.dumps({"config": fd.show_config(), "results": [asdict(r) for r in results]}))
        return
    for result in results:
        print(result, flush=True)


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Both libraries on so many threads; NumPy's BLAS needs threadpoolctl for that."""
    try:
        from threadpoolctl import threadpool_limits

        blas = threadpool_limits(threads)
    except ImportError:
        blas = nullcontext()
    with threads_set_to(threads), blas:
        yield
