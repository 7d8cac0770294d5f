"""Where commands and examples write: files that are checked before any work, and the terminal."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

_NEEDED = "needs matplotlib: pip install 'fastderiv[demo]'"


def picture(text: str) -> Path:
    """The file of a picture, as argparse's type: in a folder, with an ending matplotlib knows.

    Without an ending it gets the one that matplotlib would append: the path says what is written.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise argparse.ArgumentTypeError(_NEEDED) from None
    path = Path(text)
    if not path.name or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; expected a file")
    known = FigureCanvasBase.get_supported_filetypes()
    if not path.suffix:
        path = path.with_name(f"{path.name.rstrip('.')}.png")
    elif path.suffix[1:].lower() not in known:
        raise argparse.ArgumentTypeError(
            f"{text} ends in {path.suffix}; expected one of {', '.join(sorted(known))}"
        )
    return writable(str(path))


def writable(text: str) -> Path:
    """A file that can be written, as argparse's type; nothing is created."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; expected a file")
    folder = path.parent
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path} may not be written")
    return path


def count(text: str) -> int:
    """A positive number of steps, as argparse's type."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a positive integer, not {text}")
    return int(text)


def fit_terminal() -> None:
    """Print characters that the output's encoding lacks as escapes instead of raising an error."""
    for stream in sys.stdout, sys.stderr:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
