"""The fully connected layer, the LSTM and the grid RNN, each with its adjoint: docs/derivations.md §3–5."""

from ._dense import DenseGrads, dense, dense_vjp
from ._grid import GridRNNGrads, grid_rnn, grid_rnn_vjp
from ._lstm import LSTMGrads, lstm, lstm_state_adjoints, lstm_vjp

__all__ = [
    "DenseGrads",
    "GridRNNGrads",
    "LSTMGrads",
    "dense",
    "dense_vjp",
    "grid_rnn",
    "grid_rnn_vjp",
    "lstm",
    "lstm_state_adjoints",
    "lstm_vjp",
]
