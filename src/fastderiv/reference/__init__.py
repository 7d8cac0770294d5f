"""Every public function in plain NumPy and SciPy: slow, short, independent of the compiled code; the oracle of the tests."""

from .boundary import ExponentialSum, RootResults, SigmoidMLP, find_x1
from .ssm import (
    S6,
    S6Grads,
    SelectiveScanGrads,
    selective_scan,
    selective_scan_vjp,
    selective_state_update,
    transition_product,
)
from .subsets import iter_subset_sums, subset_logsumexp, subset_sums

__all__ = [
    "S6",
    "ExponentialSum",
    "RootResults",
    "S6Grads",
    "SelectiveScanGrads",
    "SigmoidMLP",
    "find_x1",
    "iter_subset_sums",
    "selective_scan",
    "selective_scan_vjp",
    "selective_state_update",
    "subset_logsumexp",
    "subset_sums",
    "transition_product",
]
