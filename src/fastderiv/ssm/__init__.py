"""The selective scan: whole sequences, single steps, and the product of its transitions."""

from ._api import selective_scan, selective_state_update, transition_product

__all__ = ["selective_scan", "selective_state_update", "transition_product"]
