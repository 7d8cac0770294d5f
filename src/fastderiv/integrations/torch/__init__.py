"""fastderiv on PyTorch's CPU tensors: autograd, torch.compile.

Functions for the scans, the modules `LSTM` and `GridRNN`, and the optimizer `ReversibleSGD`.

How data flows: tensors → checks → a custom operator, opaque to ``torch.compile`` → NumPy views of
the same memory → fastderiv → tensors that are views of its results.
"""

try:
    import torch as _torch  # noqa: F401 (to say at once, and plainly, that it is missing)
except ImportError as error:
    raise ImportError(
        "fastderiv.integrations.torch needs PyTorch 2.4 or later, which fastderiv does not depend "
        "on; https://pytorch.org/get-started/locally says how to install it",
        name="torch",
    ) from error

from ._causal_conv1d import causal_conv1d
from ._causal_conv1d_update import causal_conv1d_update
from ._grid_rnn import GridRNN
from ._linear_scan import linear_scan
from ._lstm import LSTM
from ._reversible import ReversibleSGD
from ._selective_scan import selective_scan
from ._ssd_scan import ssd_scan
from ._state_update import selective_state_update

__all__ = [
    "LSTM",
    "GridRNN",
    "ReversibleSGD",
    "causal_conv1d",
    "causal_conv1d_update",
    "linear_scan",
    "selective_scan",
    "selective_state_update",
    "ssd_scan",
]
