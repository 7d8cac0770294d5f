"""Sums over all subsets of a row: materialised, streamed, and the log of the sum of their exponentials."""

from ._api import iter_subset_sums, subset_logsumexp, subset_sums

__all__ = ["iter_subset_sums", "subset_logsumexp", "subset_sums"]
