"""Every public function in plain NumPy and SciPy: slow, short, independent of the compiled code; the oracle of the tests."""

from .boundary import ExponentialSum, RootResults, SigmoidMLP, find_x1
from .nn import DenseGrads, GridRNNGrads, dense, dense_vjp, grid_rnn, grid_rnn_vjp
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
    "ChunkSummary",
    "DenseGrads",
    "ExponentialSum",
    "GridRNNGrads",
    "RootResults",
    "S6Grads",
    "SelectiveScanGrads",
    "SigmoidMLP",
    "chunk_summary",
    "combine_summaries",
    "dense",
    "dense_vjp",
    "find_x1",
    "grid_rnn",
    "grid_rnn_vjp",
    "iter_subset_sums",
    "scan_attention",
    "selective_scan",
    "selective_scan_vjp",
    "selective_state_update",
    "subset_logsumexp",
    "subset_sums",
    "transition_product",
]
