"""The compiled kernels of this room, which exist for float64 only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._core import arrays, dispatch

if TYPE_CHECKING:
    from ._kernels import Kernels

_kernels: dict[np.dtype, Kernels] = dispatch.kernels("boundary", ("f64",))
kernels = _kernels[arrays.F64]
