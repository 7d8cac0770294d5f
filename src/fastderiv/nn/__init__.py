"""The fully connected layer, the LSTM and the grid RNN, each with its adjoint: docs/derivations.md §3–5."""
