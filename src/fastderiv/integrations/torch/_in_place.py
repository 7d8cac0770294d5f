"""States that are updated in place: which tensors cannot be, and how a new state is written."""

import torch
from torch import Tensor

from ..._core.arrays import overlaps_itself
from ._tensors import without_memory


def refuse_expanded(name: str, state: Tensor) -> None:
    """A ValueError if elements of the state share memory because it is expanded."""
    if 0 in state.stride() and any(
        n > 1 and step == 0 for n, step in zip(state.shape, state.stride(), strict=True)
    ):
        raise ValueError(
            f"{name} is expanded: its {state.numel()} elements share memory, "
            "and cannot all be updated"
        )


def refuse_overlap(name: str, state: Tensor) -> None:
    """A ValueError if several elements of the state are one, outside of compiled code."""
    if torch.compiler.is_compiling() or state.is_contiguous():
        return
    if overlaps_itself(without_memory(state.shape, state.stride())):
        raise ValueError(f"{name} shares memory with itself: several of its elements are one")


def write(name: str, state: Tensor, new: Tensor) -> None:
    """Overwrite the state, unless several of its elements are one."""
    refuse_overlap(name, state)
    state.copy_(new)
