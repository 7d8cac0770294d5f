"""Every public function in plain NumPy and SciPy: slow, short, independent of the compiled code; the oracle of the tests."""

from .boundary import ExponentialSum, RootResults, SigmoidMLP, find_x1
from .nn import LSTMGrads, lstm, lstm_state_adjoints, lstm_vjp
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
    "ExponentialSum",
    "LSTMGrads",
    "RootResults",
    "S6Grads",
    "SelectiveScanGrads",
    "SigmoidMLP",
    "chunk_summary",
    "combine_summaries",
    "find_x1",
    "iter_subset_sums",
    "lstm",
    "lstm_state_adjoints",
    "lstm_vjp",
    "scan_attention",
    "selective_scan",
    "selective_scan_vjp",
    "selective_state_update",
    "subset_logsumexp",
    "subset_sums",
    "transition_product",
]
