"""Layers that are divided among the processes of a group: of one process only."""

from __future__ import annotations

from typing import Any

from torch import nn

from .distributed_utils import one_process


class ColumnParallelLinear(nn.Linear):
    """``torch.nn.Linear``; `process_group` must be None."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        process_group: Any = None,
        bias: bool = True,
        sequence_parallel: bool = True,
        multiple_of: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        one_process(process_group)
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)


class RowParallelLinear(ColumnParallelLinear):
    """``torch.nn.Linear``; `process_group` must be None."""


class VocabParallelEmbedding(nn.Embedding):
    """``torch.nn.Embedding``; `process_group` must be None."""

    def __init__(
        self, num_embeddings: int, *args: Any, process_group: Any = None, **kwargs: Any
    ) -> None:
        one_process(process_group)
        super().__init__(num_embeddings, *args, **kwargs)


class ColumnParallelEmbedding(VocabParallelEmbedding):
    """``torch.nn.Embedding``; `process_group` must be None."""
