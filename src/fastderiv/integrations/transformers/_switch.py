"""Replacing attributes of transformers by ours, in the whole process, and putting them back."""

from __future__ import annotations

import threading
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import transformers

from . import _functions, _mixers
from ._leaving import say
from ._table import TABLE

_lock = threading.Lock()  # guards all of this
_wanted = False  # whether enable() was called last
_blocks = 0  # of enabled(), entered and not yet left
_originals: dict[tuple[Any, str], Any] = {}
_ABSENT = object()  # what a class has instead of an attribute that is only ours


def switch(*, wanted: bool | None = None, blocks: int = 0) -> None:
    """Note what was called, and replace or restore if that follows from it."""
    global _wanted, _blocks  # noqa: PLW0603 (what is replaced is global too)
    with _lock:
        _wanted = _wanted if wanted is None else wanted
        _blocks += blocks
        if not (_wanted or _blocks):
            _restore()
        elif not _originals:
            _replace()


def _replace() -> None:
    missing, strange = [], []
    for row in TABLE:
        if find_spec(f"transformers.models.{row.model}") is None:
            continue  # this version does not have the model: nobody can miss its functions
        module = import_module(row.module)
        if _functions.are_in(module):
            found, unknown = _functions.replacements(row, module)
        elif row.mixers and _mixers.are_here():
            found, unknown = _mixers.replacements(row, module)
        else:
            strange.append(row.model)
            continue
        missing += unknown
        for owner, name, new in found:
            _originals[owner, name] = vars(owner).get(name, _ABSENT)
            setattr(owner, name, new)
    version = f"version {transformers.__version__}"
    if missing:
        say(f"{version} has no {', '.join(missing)}")
    if strange:
        say(f"{version} has layers that are unknown here in the models {', '.join(strange)}")


def _restore() -> None:
    while _originals:
        (owner, name), original = _originals.popitem()
        if original is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, original)
