"""Where files of this room were before they moved into folders; pickles name them."""

from __future__ import annotations

from .line import _counterfactuals, _expsum, _intervals, _roots, _sensitivity, _solve
from .plane import _trace
from .space import _nearest

_MOVED = (
    _counterfactuals, _expsum, _intervals, _nearest, _roots, _sensitivity, _solve, _trace,
)  # fmt: skip

FORMER_NAMES = {module.__name__.rpartition(".")[2]: module for module in _MOVED}
