"""What a reference keeps for its adjoint: what was computed, and the arguments it was computed
from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Cache:
    def __init__(self, value: Any, arguments: Sequence[Any]) -> None:
        self.value = value
        self.arguments = [None if a is None else np.array(a, np.float64) for a in arguments]

    def of(self, arguments: Sequence[Any]) -> Any:
        for then, now in zip(self.arguments, arguments, strict=True):
            if (then is None) != (now is None) or (
                then is not None
                and not np.array_equal(then, np.asarray(now, np.float64), equal_nan=True)
            ):
                raise ValueError("cache is of another call")
        return self.value
