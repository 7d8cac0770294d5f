"""fastderiv: compiled kernels and their derivatives on plain NumPy arrays."""

__version__ = "0.1.0"

from ._core.config import get_num_threads, set_num_threads, show_config
from .boundary import ExponentialSum, RootResults, SigmoidMLP, find_x1

__all__ = [
    "ExponentialSum",
    "RootResults",
    "SigmoidMLP",
    "find_x1",
    "get_num_threads",
    "set_num_threads",
    "show_config",
]
