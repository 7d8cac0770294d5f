"""Every public function in plain NumPy and SciPy: slow, short, independent of the compiled code; the oracle of the tests."""

from .boundary import Crossings, ExponentialSum, RootResults, SigmoidMLP, find_x1, solve_x1
from .boundary import BoundaryCurves, ExponentialSum, RootResults, SigmoidMLP, find_x1, trace_boundary
from .ssm import (
    S6,
    ChunkSummary,
    S6Grads,
    SelectiveScanGrads,
    chunk_summary,
    combine_summaries,
    scan_attention,
    selective_scan,
    selective_scan_vjp,
    selective_state_update,
    transition_product,
)
from .subsets import iter_subset_sums, subset_logsumexp, subset_sums

__all__ = [
    "S6",
    "BoundaryCurves",
    "ChunkSummary",
    "Crossings",
    "ExponentialSum",
    "RootResults",
    "S6Grads",
    "SelectiveScanGrads",
    "SigmoidMLP",
    "chunk_summary",
    "combine_summaries",
    "find_x1",
    "iter_subset_sums",
    "scan_attention",
    "selective_scan",
    "selective_scan_vjp",
    "selective_state_update",
    "solve_x1",
    "subset_logsumexp",
    "subset_sums",
    "trace_boundary",
    "transition_product",
]
