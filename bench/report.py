"""What the benches share: their options, and one form of their results, ratio first, then nanoseconds per unit of work."""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import fastderiv as fd
from fastderiv._cli.timing import Timing


@dataclass(frozen=True)
class Result:
    """One comparison; `ratio` is how many times as long the peer takes, times are the best round's."""

    name: str
    peer: str
    ratio: float
    unit: str  # of work: what the times are per
    ns: float
    peer_ns: float

    def __str__(self) -> str:
        return f"{self.ratio:7.2f} x  {self.ns:10.3f} ns a {self.unit:<11} {self.name:<54} {self.peer}: {self.peer_ns:.3f} ns"


def compare(name: str, timings: Mapping[str, Timing], ours: str, peer: str, unit: str, units: int) -> Result:
    """Two of the candidates that ran in turn, for so many `units` of work each."""
    mine, theirs = timings[ours], timings[peer]
    return Result(name, peer, mine.ratio(theirs), unit, mine.best / units * 1e9, theirs.best / units * 1e9)


def options(description: str, rounds: int) -> argparse.ArgumentParser:
    """The command line of every bench."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds of every comparison (default: {rounds})")
    return parser


def report(results: Iterable[Result], as_json: bool) -> None:
    """Print the results as they come, or all of them and the configuration as JSON."""
    if as_json:
        print(json.dumps({"config": fd.show_config(), "results": [asdict(r) for r in results]}))
        return
    for result in results:
        print(result, flush=True)
