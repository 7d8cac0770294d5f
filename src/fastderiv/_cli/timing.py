"""The one way of timing: candidates in turn, round by round, so that a slow moment slows all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Timing:
    """Seconds per call in every round.

    Rounds of different candidates with the same index ran one right after the other.
    """

    rounds: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.rounds)

    @property
    def median(self) -> float:
        return median(self.rounds)

    def ratio(self, peer: Timing) -> float:
        """How many times longer `peer` took: the median of the ratios round by round."""
        return median(theirs / ours for theirs, ours in zip(peer.rounds, self.rounds, strict=True))


def _seconds(call: Callable[[], object], loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        call()
    return (time.perf_counter() - start) / loops


def interleave(
    candidates: dict[str, Callable[[], object]],
    *,
    rounds: int = 7,
    round_time: float = 0.05,
    rest: float = 0.0,
) -> dict[str, Timing]:
    """Time the candidates against each other.

    Every candidate is called once to warm up, then in each round as often as fits `round_time` (at
    least once).  `rest` seconds of sleep before each sample let another library's spinning threads
    go to sleep.
    """
    loops = {}
    for name, call in candidates.items():
        call()
        loops[name] = max(1, int(round_time / max(_seconds(call, 1), 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            if rest:
                time.sleep(rest)
                call()
            samples[name].append(_seconds(call, loops[name]))
    return {name: Timing(tuple(times)) for name, times in samples.items()}
