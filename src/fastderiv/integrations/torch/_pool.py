"""States of a batch that lie in a pool of states, at the places that indices say.

A negative index is padding: no state belongs to it.
"""

from collections.abc import Iterator

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._core.arrays import overlap
from ._tensors import hidden


def check_indices(name: str, indices: list[int], states: int) -> None:
    """A ValueError if an index occurs twice, or if there is no such state in the pool."""
    present = [i for i in indices if i >= 0]
    if len(set(present)) < len(present):
        raise ValueError(f"{name} is {indices}; expected no index twice")
    if present and max(present) >= states:
        raise ValueError(f"{name} is {indices}; expected indices of {states} states")


def runs(indices: list[int]) -> Iterator[tuple[int, int, int]]:
    """Of each run of indices i, i + 1, …, none negative: where it begins and ends, and i."""
    start = 0
    for k in range(1, len(indices) + 1):
        if k == len(indices) or indices[k] != indices[k - 1] + 1 or indices[start] < 0:
            if indices[start] >= 0:
                yield start, k, indices[start]
            start = k


def refuse_shared(name: str, pool: Tensor, **arguments: NDArray | None) -> None:
    """A ValueError if a pool, of a dtype of NumPy's, shares memory with an argument.

    Runs are updated one after the other, and the first would change what the next one reads.
    """
    memory = pool.detach().numpy()
    for other, array in arguments.items():
        if array is not None and overlap(memory, array):
            raise ValueError(f"{name} shares memory with {other}")


def chosen(name: str, pool: Tensor, indices: Tensor) -> Tensor:
    """A copy of the states of `indices`, of any states where these are negative."""
    if not hidden(indices):
        check_indices(name, indices.tolist(), len(pool))
    return pool[indices.long().clamp(min=0)]  # 8-bit indices would be masks


def replaced(pool: Tensor, new: Tensor, indices: Tensor) -> Tensor:
    """All states, those of `indices` new; by operations whose shapes do not depend on data."""
    owners = indices.long() == torch.arange(len(pool), device=pool.device)[:, None]
    changed = owners.any(1).view(-1, *(1 for _ in pool.shape[1:]))
    return torch.where(changed, new[owners.int().argmax(1)].to(pool.dtype), pool)


def without_padding(out: Tensor, indices: Tensor) -> Tensor:
    """The results of a batch, zero where there is no state."""
    return torch.where((indices.long() >= 0).view(-1, *(1 for _ in out.shape[1:])), out, 0.0)
