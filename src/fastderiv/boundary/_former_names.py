"""Where files were before they moved into folders: pickles name a class by its file.

A pickle of a Crossings that was made then asks for ``fastderiv.boundary._solve``.
"""

from __future__ import annotations

import sys

from .line import _counterfactuals, _expsum, _intervals, _roots, _sensitivity, _solve
from .plane import _trace
from .space import _nearest

_MOVED = (
    _counterfactuals, _expsum, _intervals, _nearest, _roots, _sensitivity, _solve, _trace,
)  # fmt: skip


def register() -> None:
    """Let the former names of the modules be imported."""
    room = __name__.rpartition(".")[0]
    for module in _MOVED:
        leaf = module.__name__.rpartition(".")[2]
        sys.modules[f"{room}.{leaf}"] = module
