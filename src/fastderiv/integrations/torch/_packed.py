"""Sequences that are told apart by an index for each step, as ``seq_idx`` of ``mamba_ssm``."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Packed(NamedTuple):
    """The sequences in rows (batch, L) that are laid end to end."""

    starts: NDArray[np.int64]  # (k + 1,): where each of the k sequences begins, and the end
    first: NDArray[np.int64]  # (batch,): the number of each row's first sequence
    last: NDArray[np.int64]  # (batch,): the number of each row's last sequence


def packed(seq_idx: NDArray[np.integer]) -> Packed:
    """The sequences of `seq_idx` (batch, L >= 1): one begins with each row and each change."""
    batch, length = seq_idx.shape
    begins = np.ones((batch, length), bool)
    np.not_equal(seq_idx[:, 1:], seq_idx[:, :-1], out=begins[:, 1:])
    starts = np.append(np.flatnonzero(begins), batch * length)
    ends = np.cumsum(begins.sum(1))
    return Packed(starts, np.append(0, ends[:-1]), ends - 1)
