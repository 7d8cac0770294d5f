"""The fully connected layer, the LSTM and the grid RNN, each with its adjoint: docs/derivations.md §3–5."""

from ._lstm import LSTMGrads, lstm, lstm_state_adjoints, lstm_vjp

__all__ = ["LSTMGrads", "lstm", "lstm_state_adjoints", "lstm_vjp"]
