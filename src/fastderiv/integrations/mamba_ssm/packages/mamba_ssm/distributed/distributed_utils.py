"""Sums and gathers over the processes of a group: of one process only."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def one_process(process_group: Any) -> None:
    """A NotImplementedError unless process_group is None."""
    if process_group is not None:
        raise NotImplementedError(
            "mamba_ssm by fastderiv runs in one process; expected process_group=None"
        )


def all_reduce(input_: Tensor, process_group: Any = None) -> Tensor:
    """The tensor itself: the sum over one process."""
    one_process(process_group)
    return input_


all_gather = reduce_scatter = all_reduce  # of one process


def get_dim_for_local_rank(dim: int, world_size: int, local_rank: int, multiple_of: int = 1) -> int:
    """How much of dim a process takes, in multiples; the first ones take what is left over."""
    share, left = divmod(dim // multiple_of, world_size)
    return (share + (local_rank < left)) * multiple_of
