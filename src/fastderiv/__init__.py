"""fastderiv: selective scans, ties of sigmoid networks, recurrent layers, reversible momentum.

All of it works on plain NumPy arrays.  How data flows::

    your arrays
        │   a room's functions: shapes, dtypes, every error that names an argument
        ▼
    plain ndarrays (no subclass) of one dtype, float32 or float64
        │   the room's _kernels, compiled for this CPU's level: fused, without temporaries;
        │   _core.threads shares the tasks out
        ▼
    new arrays, or the one given as out=

Each room is a folder:

    ssm/           selective_scan and its adjoint selective_scan_vjp, selective_state_update,
                   chunk_summary, combine_summaries, scan_attention, transition_product, S6;
                   ssd_scan, ssd_scan_vjp, ssd_state_update, ssd_chunk_summary, ssd_attention;
                   causal_conv1d, causal_conv1d_vjp, causal_conv1d_update;
                   linear_scan, linear_scan_vjp
    subsets/       subset_sums, iter_subset_sums, subset_logsumexp
    boundary/      SigmoidMLP, ExponentialSum, find_x1, solve_x1, decision_intervals,
                   counterfactuals, nearest_tie, tie_sensitivity, trace_boundary, follow_boundary
    nn/            dense, lstm, grid_rnn and their adjoints dense_vjp, lstm_vjp, grid_rnn_vjp;
                   lstm_state_adjoints
    optim/         momentum_step and its inverse momentum_unstep, momentum_jacobian,
                   ReversibleMomentum, hypergradient
    reference/     the same names in plain NumPy and SciPy: the oracle
    _core/         argument checks, threads, choice of CPU level, vector maths
    data/          the real data of ``python -m fastderiv``
    integrations/  PyTorch and transformers on fastderiv, boundaries in matplotlib; each is imported
                   only when asked for
"""

__version__ = "0.1.0"

from ._core.config import get_num_threads, set_num_threads, show_config
from .boundary import (
    BoundaryCurves,
    Counterfactuals,
    Crossings,
    DecisionIntervals,
    ExponentialSum,
    NearestTie,
    RootResults,
    SigmoidMLP,
    TieSensitivity,
    counterfactuals,
    decision_intervals,
    find_x1,
    follow_boundary,
    nearest_tie,
    solve_x1,
    tie_sensitivity,
    trace_boundary,
)
from .nn import (
    DenseGrads,
    GridRNNGrads,
    LSTMGrads,
    dense,
    dense_vjp,
    grid_rnn,
    grid_rnn_vjp,
    lstm,
    lstm_state_adjoints,
    lstm_vjp,
)
from .optim import (
    Hypergradients,
    ReversibleMomentum,
    hypergradient,
    momentum_jacobian,
    momentum_step,
    momentum_unstep,
)
from .ssm import (
    S6,
    CausalConv1dGrads,
    ChunkSummary,
    LinearScanGrads,
    S6Grads,
    SelectiveScanGrads,
    SSDChunkSummary,
    SSDScanGrads,
    causal_conv1d,
    causal_conv1d_update,
    causal_conv1d_vjp,
    chunk_summary,
    combine_summaries,
    linear_scan,
    linear_scan_vjp,
    scan_attention,
    selective_scan,
    selective_scan_vjp,
    selective_state_update,
    ssd_attention,
    ssd_chunk_summary,
    ssd_scan,
    ssd_scan_vjp,
    ssd_state_update,
    transition_product,
)
from .subsets import iter_subset_sums, subset_logsumexp, subset_sums

__all__ = [
    "S6",
    "BoundaryCurves",
    "CausalConv1dGrads",
    "ChunkSummary",
    "Counterfactuals",
    "Crossings",
    "DecisionIntervals",
    "DenseGrads",
    "ExponentialSum",
    "GridRNNGrads",
    "Hypergradients",
    "LSTMGrads",
    "LinearScanGrads",
    "NearestTie",
    "ReversibleMomentum",
    "RootResults",
    "S6Grads",
    "SSDChunkSummary",
    "SSDScanGrads",
    "SelectiveScanGrads",
    "SigmoidMLP",
    "TieSensitivity",
    "causal_conv1d",
    "causal_conv1d_update",
    "causal_conv1d_vjp",
    "chunk_summary",
    "combine_summaries",
    "counterfactuals",
    "decision_intervals",
    "dense",
    "dense_vjp",
    "find_x1",
    "follow_boundary",
    "get_num_threads",
    "grid_rnn",
    "grid_rnn_vjp",
    "hypergradient",
    "iter_subset_sums",
    "linear_scan",
    "linear_scan_vjp",
    "lstm",
    "lstm_state_adjoints",
    "lstm_vjp",
    "momentum_jacobian",
    "momentum_step",
    "momentum_unstep",
    "nearest_tie",
    "scan_attention",
    "selective_scan",
    "selective_scan_vjp",
    "selective_state_update",
    "set_num_threads",
    "show_config",
    "solve_x1",
    "ssd_attention",
    "ssd_chunk_summary",
    "ssd_scan",
    "ssd_scan_vjp",
    "ssd_state_update",
    "subset_logsumexp",
    "subset_sums",
    "tie_sensitivity",
    "trace_boundary",
    "transition_product",
]
