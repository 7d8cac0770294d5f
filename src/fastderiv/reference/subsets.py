"""Sums over subsets, by loops over bitmasks: docs/derivations.md §1.3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray


def subset_sums(x: ArrayLike, *, out: NDArray | None = None) -> NDArray:
    x = np.asarray(x, float)
    n = x.shape[-1]
    sums = np.zeros((*x.shape[:-1], 2**n))
    for mask in range(2**n):
        for i in range(n):
            if mask >> i & 1:
                sums[..., mask] += x[..., i]
    if out is None:
        return sums
    out[...] = sums
    return out


def iter_subset_sums(
    x: ArrayLike, *, block: int = 1 << 16, progress: Any = None
) -> Iterator[tuple[int, NDArray]]:
    x = np.array(x, float)
    if block < 1 or x.ndim != 1 or x.size > 62:
        raise ValueError("block >= 1, x (n,), n <= 62")
    total = 2**x.size
    while block & (block - 1):
        block += 1
    block = min(block, total)

    def blocks():
        for first in range(0, total, block):
            sums = [
                sum(x[i] for i in range(x.size) if mask >> i & 1)
                for mask in range(first, first + block)
            ]
            if callable(progress):
                progress(first + block, total)
            yield first, np.array(sums, float)

    return blocks()


def subset_logsumexp(
    x: ArrayLike, *, method: Literal["closed", "enumerate"] = "closed", progress: Any = None
) -> Any:
    x = np.asarray(x, float)
    if method not in ("closed", "enumerate"):
        raise ValueError(f"method is {method!r}; expected 'closed' or 'enumerate'")
    if method == "closed":
        return np.logaddexp(0, x).sum(-1)  # Σ softplus(x_i)
    return np.logaddexp.reduce(subset_sums(x), -1)  # log Σ_S exp(Σ_{i∈S} x_i)
