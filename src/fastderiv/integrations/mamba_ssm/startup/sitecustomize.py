"""Calls `install` in Python processes that a script starts, then runs the next sitecustomize.

``python -m fastderiv.integrations.mamba_ssm`` puts this folder into PYTHONPATH.
"""

import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_SOURCE = str(_HERE.parents[3])  # the folder that fastderiv is in

sys.path[:] = [path for path in sys.path if Path(path).resolve() != _HERE]
_added = _SOURCE not in map(str, map(Path.resolve, map(Path, sys.path)))
if _added:
    sys.path.append(_SOURCE)
try:
    from fastderiv.integrations.mamba_ssm import install
except ImportError:  # a Python that fastderiv, and what lies beside it, was not built for
    if _added:
        sys.path.remove(_SOURCE)
else:
    install()

_this = sys.modules.pop(__name__)
try:
    importlib.import_module(__name__)
except ModuleNotFoundError as error:
    if error.name != __name__:
        raise
    sys.modules[__name__] = _this
