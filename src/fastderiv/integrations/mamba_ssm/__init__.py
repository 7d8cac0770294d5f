"""`mamba_ssm` and `causal_conv1d` without a GPU: code written for them runs unchanged on a CPU.

``python -m fastderiv.integrations.mamba_ssm SCRIPT [ARGS…]`` runs a script with them, `install`
brings them into a running program.

How an import flows: ``import mamba_ssm`` → the finder, which looks for the real package → that, its
functions served where tensors are on the CPU, or our file in `packages/`, under the original name.
"""

from __future__ import annotations

import sys
import threading
from types import ModuleType

from ._finder import NAMES, Finder, forget, is_ours
from ._serving import SERVED, serve, stop_serving

__all__ = ["install", "uninstall"]

_lock = threading.RLock()  # guards what the two functions change
_installed: Finder | None = None  # while installed


def install() -> None:
    """Let ``mamba_ssm`` and ``causal_conv1d`` be imported and used on the CPU.

    Also ``selective_scan_cuda``, ``selective_scan_cuda_oflex``, ``selective_scan_cuda_core`` and
    ``causal_conv1d_cuda``, the compiled extensions that many models call directly.  Code that
    imports them runs as on a machine with a GPU, if its tensors are on the CPU.  Installing twice
    has no further effect.

    Notes
    -----
    Where a package is not there, its name leads to fastderiv's files: with a spec, and an answer of
    ``importlib.metadata.version``.  Nothing is imported before somebody asks for it.

    Where the real package is there, it is imported, and those of its functions that need a GPU
    leave calls with all tensors on the CPU to fastderiv, in every module that has imported them by
    name; other calls go on as before.  A real ``mamba_ssm`` that is complete does without
    ``causal_conv1d`` if that is missing, since it would use fastderiv's on the GPU.

    A real package that lacks its compiled extension counts as missing, because more than the scan
    needs a GPU: its attention, for one, decodes wrongly without ``flash_attn``.  If its import
    fails, for instance because the extension was built for another PyTorch, a RuntimeWarning says
    so, and fastderiv's package takes its place.

    Processes that are started with the method "spawn" import the main module anew, and find the
    packages if it calls `install` outside of ``if __name__ == "__main__":``.  All processes that a
    script starts find them if it runs under ``python -m fastderiv.integrations.mamba_ssm``.

    The models of transformers 5 find the packages when they are imported after `install`; those of
    4.5x ask for a GPU first.  `fastderiv.integrations.transformers` serves both.

    Examples
    --------
    >>> import importlib.metadata
    >>> from fastderiv.integrations.mamba_ssm import install, uninstall
    >>> install()
    >>> importlib.metadata.version("causal-conv1d") >= "1.6"
    True
    >>> uninstall()
    """
    global _installed  # noqa: PLW0603 (what is changed is global too)
    with _lock:
        if _installed is None:
            _installed = Finder()
            sys.meta_path.insert(0, _installed)
            for name in SERVED:
                module = sys.modules.get(name)
                if isinstance(module, ModuleType) and not is_ours(module):
                    serve(module)


def uninstall() -> None:
    """Undo `install`: names that were missing before are missing again.

    The functions of real packages are themselves again, wherever they were imported.  What was
    taken from fastderiv's packages in between remains usable, but cannot be pickled.

    Examples
    --------
    >>> from fastderiv.integrations.mamba_ssm import uninstall
    >>> uninstall()
    """
    global _installed  # noqa: PLW0603
    with _lock:
        if _installed is None:
            return
        if _installed in sys.meta_path:
            sys.meta_path.remove(_installed)
        _installed = None
        stop_serving()
        for name in NAMES:
            if is_ours(sys.modules.get(name)):
                forget(name)
