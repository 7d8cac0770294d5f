"""Every public function in plain NumPy and SciPy: slow, short, independent of the compiled code; the oracle of the tests."""

from .ssm import selective_scan, selective_state_update, transition_product

__all__ = ["selective_scan", "selective_state_update", "transition_product"]
