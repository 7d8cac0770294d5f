"""Calls `install` in Python processes that a script starts, then runs the next sitecustomize.

``python -m fastderiv.integrations.mamba_ssm`` puts this folder into PYTHONPATH.
"""

import contextlib
import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_SOURCE = str(_HERE.parents[3])  # the folder that fastderiv is in

sys.path[:] = [path for path in sys.path if Path(path).resolve() != _HERE]
if _SOURCE not in map(str, map(Path.resolve, map(Path, sys.path))):
    sys.path.append(_SOURCE)
with contextlib.suppress(ImportError):  # a Python that fastderiv was not built for
    from fastderiv.integrations.mamba_ssm import install

    install()

_this = sys.modules.pop(__name__)
try:
    importlib.import_module(__name__)
except ModuleNotFoundError as error:
    if error.name != __name__:
        raise
    sys.modules[__name__] = _this
