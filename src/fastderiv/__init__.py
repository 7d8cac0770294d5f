"""fastderiv: compiled kernels and their derivatives on plain NumPy arrays."""

__version__ = "0.1.0"

from ._core.config import get_num_threads, set_num_threads, show_config
from .subsets import iter_subset_sums, subset_logsumexp, subset_sums

__all__ = [
    "get_num_threads",
    "iter_subset_sums",
    "set_num_threads",
    "show_config",
    "subset_logsumexp",
    "subset_sums",
]
