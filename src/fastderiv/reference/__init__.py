"""Every public function in plain NumPy and SciPy: slow, short, independent of the compiled code; the oracle of the tests."""

from .subsets import iter_subset_sums, subset_logsumexp, subset_sums

__all__ = [
    "iter_subset_sums",
    "subset_logsumexp",
    "subset_sums",
]
