"""The fully connected layer, the LSTM and the grid RNN, each with its adjoint.

The equations are in docs/derivations.md §3, §4.1–4.4 and §5.

The path of one call, ``lstm(x, weight_ih, …)``:

    _lstm.py            `lstm` makes an LSTMCall, which checks the arguments, brings them to one
                        dtype and layout and sorts the sequences by length
    _kernels.pyx        its door, `lstm`, compares sizes, packs the weights and fills a struct;
                        _kernels.pyi declares it for Python
    _lstm_forward.pxi   `lstm_forward`, a task of the thread pool: some sequences, all their steps
    _gemm.pxi           the products of that task, by _core/gemm.h; σ and tanh are in
                        _core/simd_math.h
    _lstm.py            wraps the results, and packs what the adjoint needs into a cache

`dense` goes through _dense.py and _dense.pxi; its product is NumPy's, through _core/products.py.
`grid_rnn` goes through _grid.py and _grid_sweeps.pxi.  _lstm_problem.pxi and _grid_problem.pxi have
the structs and explain how work is cut into tasks.  _activations.py, _activations.pxi and
activations.h have φ and φ′.  _core/caches.py checks that a cache is of the call that it is passed
to.
"""

from ._dense import DenseGrads, dense, dense_vjp
from ._grid import GridRNNGrads, grid_rnn, grid_rnn_vjp
from ._lstm import LSTMCall as LSTMCall  # for integrations: a forward pass and its adjoint apart
from ._lstm import LSTMGrads, lstm, lstm_state_adjoints, lstm_vjp
from ._lstm import kept_in as kept_in  # for integrations, as LSTMCall
from ._lstm import kept_size as kept_size
from ._lstm import lstm_adjoint as lstm_adjoint

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
