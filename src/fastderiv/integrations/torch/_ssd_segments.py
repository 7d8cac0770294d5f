"""Where the states of a packed `ssd_scan` restart, and which of them the caller has or wants."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._packed import packed

Integers = NDArray[np.integer]


class Segments(NamedTuple):
    """The segments of rows (batch, L) that are laid end to end; each begins with a state."""

    starts: Integers  # (k + 1,): where each of the k segments begins, and the end
    first: Integers  # of each given initial state, the number of the segment that begins with it
    entered: NDArray[np.bool_]  # whether it does; if not, that segment begins with zeros
    last: Integers  # of each wanted state, the number of the segment that ends with it

    def begin(self, states: NDArray | None) -> NDArray | None:
        """The states with which all segments begin; zero of a segment that `states` has none of."""
        return (
            None if states is None else self._spread(states[self.entered], self.first[self.entered])
        )

    def end(self, states: NDArray | None) -> NDArray | None:
        """What `states` has of the ends of all segments; zero of a segment that it has none of."""
        return None if states is None else self._spread(states, self.last)

    def _spread(self, states: NDArray, numbers: Integers) -> NDArray:
        spread = np.zeros((len(self.starts) - 1, *states.shape[1:]), states.dtype)
        spread[numbers] = states
        return spread

    def initial(self, states: NDArray) -> NDArray:
        """Of states of all segments those of `first`, zero where they were not entered."""
        chosen: NDArray = states[self.first]
        chosen[~self.entered] = 0
        return chosen


def segments(
    seq_idx: Integers | None, cu_seqlens: Integers | None, initial_states: NDArray | None
) -> Segments:
    """The state restarts where `seq_idx` (batch, L) changes and at each of `cu_seqlens` (k + 1,).

    One of them may be None.  Of initial states there is one for each row, or for each sequence of
    `cu_seqlens`.
    """
    if cu_seqlens is None:
        assert seq_idx is not None
        rows = packed(seq_idx)
        return Segments(rows.starts, rows.first, _numbered_zero(seq_idx), rows.last)
    count = 0 if initial_states is None else len(initial_states)
    entered = np.ones(count, bool)
    changes = np.zeros(0, np.int64)
    if seq_idx is not None:
        changes = np.setdiff1d(packed(seq_idx).starts, cu_seqlens)
        entered = _numbered_zero(seq_idx) if count == 1 else entered
    # of equal boundaries, between which sequences are empty, each is one of the result
    starts = np.sort(np.concatenate([cu_seqlens, changes]))
    place = np.searchsorted(changes, cu_seqlens) + np.arange(len(cu_seqlens))
    return Segments(starts, place[:count], entered, place[1:] - 1)


def _numbered_zero(seq_idx: Integers) -> NDArray[np.bool_]:
    """Which rows begin with sequence 0: only that continues from an initial state."""
    zero: NDArray[np.bool_] = seq_idx[:, 0] == 0
    return zero
