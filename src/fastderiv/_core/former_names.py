"""Where files were before they moved into folders: pickles name a class by its file.

A pickle of a Crossings that was made then asks for ``fastderiv.boundary._solve``.
"""

from __future__ import annotations

import sys
from types import ModuleType


def register(room: str, modules: dict[str, ModuleType]) -> None:
    """Let modules be imported from `room` under names they had there."""
    for name, module in modules.items():
        sys.modules[f"{room}.{name}"] = module
