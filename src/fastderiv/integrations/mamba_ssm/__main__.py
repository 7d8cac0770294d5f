"""``python -m fastderiv.integrations.mamba_ssm SCRIPT [ARGS…]``: run a script with `install`."""

from __future__ import annotations

import os
import runpy
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from . import install

USAGE = """\
usage: python -m fastderiv.integrations.mamba_ssm SCRIPT [ARGS…]
       python -m fastderiv.integrations.mamba_ssm -m MODULE [ARGS…]

Run a script or a module that was written for mamba_ssm and causal_conv1d on a GPU; fastderiv
computes what is on the CPU.  Arguments, paths and exit codes are as if Python itself ran it.
Python processes that it starts find the packages as well."""


def main(arguments: list[str]) -> None:
    """Run what the arguments name, then return or exit as it does."""
    match arguments:
        case ["-h" | "--help"]:
            print(USAGE)
        case ["-m", module, *rest]:
            _begin(module, rest)
            _run(partial(runpy.run_module, module, run_name="__main__", alter_sys=True))
        case [script, *rest] if not script.startswith("-"):
            script = os.path.abspath(script)
            _check(script)
            _begin(script, rest)
            _set_first_path(script)
            _run(partial(runpy.run_path, script, run_name="__main__"))
        case _:
            print(USAGE, file=sys.stderr)
            sys.exit(2)


def _check(script: str) -> None:
    """Say what Python says of a script that cannot be read."""
    try:
        if not os.path.isdir(script):
            open(script, "rb").close()
    except OSError as error:
        reason = f"[Errno {error.errno}] {error.strerror}"
        print(f"{sys.executable}: can't open file {script!r}: {reason}", file=sys.stderr)
        sys.exit(2)


def _begin(name: str, rest: list[str]) -> None:
    sys.argv[:] = [name, *rest]
    install()
    # multiprocessing and launchers start interpreters of their own, which import sitecustomize
    startup = str(Path(__file__).with_name("startup"))
    paths = [startup, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def _set_first_path(script: str) -> None:
    """Put the script's folder where Python has put the current one for ``-m``."""
    if not sys.flags.safe_path:
        del sys.path[0]
        if os.path.isfile(script) and not zipfile.is_zipfile(script):  # others see to it themselves
            sys.path.insert(0, os.path.dirname(os.path.realpath(script)))


def _run(run: Callable[[], Any]) -> None:
    try:
        run()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 (what Python would show)
        below = _below_here(error.__traceback__)
        if below is None and isinstance(error, ImportError):  # nothing was found that could be run
            sys.exit(f"{sys.executable}: {error}")
        sys.excepthook(type(error), error.with_traceback(below), below)
        sys.exit(1)


def _below_here(traceback: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that Python would show if it ran the script itself."""
    while traceback and any(
        traceback.tb_frame.f_globals is one for one in (globals(), vars(runpy))
    ):
        traceback = traceback.tb_next
    return traceback


if __name__ == "__main__":
    main(sys.argv[1:])
