"""Where files of this room were before they moved into folders; pickles name them."""

from __future__ import annotations

from .s6 import _chunks, _layer, _vjp

FORMER_NAMES = {"_chunks": _chunks, "_s6": _layer, "_vjp": _vjp}
