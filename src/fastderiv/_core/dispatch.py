"""Which CPU level's kernels are used: chosen once, before any of them is imported.

Every room's ``_kernels.pyx`` is compiled once per level; a room asks `kernels(room)` and never sees
levels.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TypeVar, cast

import numpy as np

from . import cpu

LEVEL_NAMES = {"any": "portable", "v1": "x86-64", "v3": "x86-64-v3", "v4": "x86-64-v4"}
Kernels = TypeVar("Kernels")  # the Protocol that a room's _kernels.pyi declares
_REALS: dict[str, np.dtype] = {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}


def _choose(wanted: str) -> str:
    """The tag of the level named `wanted`, or of the best one if it is empty."""
    possible = {LEVEL_NAMES[tag]: tag for tag in cpu.SUPPORTED}
    if not wanted:
        return cpu.SUPPORTED[-1]
    if wanted not in possible:
        built = wanted in map(LEVEL_NAMES.get, cpu.COMPILED)
        known = "is built but not supported by this CPU" if built else "is unknown to this build"
        raise ImportError(f"FASTDERIV_CPU={wanted!r} {known}; possible here: {', '.join(possible)}")
    return possible[wanted]


LEVEL = _choose(os.environ.get("FASTDERIV_CPU", ""))


def kernels(room: str, reals: tuple[str, ...] = ("f32", "f64")) -> dict[np.dtype, Kernels]:
    """The compiled kernels of a room at the chosen level, by working dtype.

    What they offer is declared in the room's ``_kernels.pyi``; mypy takes it from the annotation of
    the name that the result is given: ``_kernels: dict[np.dtype, Kernels] = kernels("ssm")``.
    """
    names = {_REALS[real]: f"fastderiv.{room}._kernels_{real}_{LEVEL}" for real in reals}
    return {dtype: cast(Kernels, import_module(name)) for dtype, name in names.items()}
