"""fastderiv: selective scans, subset sums, the ties of sigmoid networks and layers with adjoints, compiled, on NumPy arrays.

How data flows::

    your arrays ──► a room's functions ──► its _kernels, compiled for this CPU's level ──► new arrays (or out=)
                    shapes, dtypes,        nogil, fused, no temporaries;
                    every error            tasks shared out by _core.threads

    ssm/        selective_scan and its adjoint selective_scan_vjp, selective_state_update, chunk_summary, scan_attention,
                transition_product, S6
    subsets/    subset_sums, iter_subset_sums, subset_logsumexp
    boundary/   SigmoidMLP, ExponentialSum, find_x1
    nn/         dense, grid_rnn, and their adjoints dense_vjp, grid_rnn_vjp
    reference/  the same names in plain NumPy: the oracle
    _core/      argument checks, threads, choice of CPU level, vector maths (simd.h)
    data/       the real data of ``python -m fastderiv``
    integrations/   PyTorch and transformers on fastderiv, imported only when asked for
"""

__version__ = "0.1.0"

from ._core.config import get_num_threads, set_num_threads, show_config
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
    "get_num_threads",
    "grid_rnn",
    "grid_rnn_vjp",
    "iter_subset_sums",
    "scan_attention",
    "selective_scan",
    "selective_scan_vjp",
    "selective_state_update",
    "set_num_threads",
    "show_config",
    "subset_logsumexp",
    "subset_sums",
    "transition_product",
]
