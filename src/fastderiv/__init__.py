"""fastderiv: compiled kernels and their derivatives on plain NumPy arrays."""

__version__ = "0.1.0"

from ._core.config import get_num_threads, set_num_threads, show_config
from .ssm import selective_scan, selective_state_update, transition_product

__all__ = [
    "get_num_threads",
    "selective_scan",
    "selective_state_update",
    "set_num_threads",
    "show_config",
    "transition_product",
]
