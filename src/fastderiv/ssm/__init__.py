"""The selective scan: whole sequences, single steps, and the product of its transitions."""

from ._scan import selective_scan
from ._step import selective_state_update
from ._transition import transition_product

__all__ = ["selective_scan", "selective_state_update", "transition_product"]
