"""Sigmoid networks and where two of their outputs tie: docs/derivations.md §2.

The path of one call of `solve_x1`::

    line/_solve.py        checks the arguments; then, block by block of rows:
    _network.py           the network's Margin of the two outputs, made once (_margin.py)
    line/_solver.py       the margin's solver along the input, packed once: Isolator or DeepNet
    _kernels.pyx          Solver.solve: the rows as tasks of the thread pool, each row by itself
    line/_solve.py        the enclosures as Crossings

Which file holds what::

    _network.py           SigmoidMLP; what is made of a network and kept with it
    _margin.py            Margin: two outputs, their difference, and what is compiled of it
    _leads.py             which output leads at a point, and whether that is proven (_digits.py)
    _points.py, _names.py checks of points, boxes and the names of features; _sklearn.py of models
    line/                 ties along one input: solve_x1, find_x1, decision_intervals,
                          counterfactuals, ExponentialSum, tie_sensitivity
    plane/                ties in a plane of two inputs: trace_boundary, follow_boundary
    space/                ties anywhere: nearest_tie
    _kernels.pyx          the compiled module of all of them, typed in _kernels.pyi and imported
                          by _compiled.py
    _former_names.py      lets pickles load that were made before files moved

    a network ──► Margin ──┬──► line     one input varies       o──×────×──o
                           ├──► plane    two inputs vary        a curve in a box
                           └──► space    all inputs vary        the nearest point of a surface
"""

from .._core.former_names import register
from ._former_names import FORMER_NAMES
from ._network import SigmoidMLP
from .line._counterfactuals import Counterfactuals, counterfactuals
from .line._expsum import ExponentialSum
from .line._intervals import DecisionIntervals, decision_intervals
from .line._roots import RootResults, find_x1
from .line._sensitivity import TieSensitivity, tie_sensitivity
from .line._solve import Crossings, solve_x1
from .plane._follow import follow_boundary
from .plane._trace import BoundaryCurves, trace_boundary
from .space._nearest import NearestTie, nearest_tie

__all__ = [
    "BoundaryCurves",
    "Counterfactuals",
    "Crossings",
    "DecisionIntervals",
    "ExponentialSum",
    "NearestTie",
    "RootResults",
    "SigmoidMLP",
    "TieSensitivity",
    "counterfactuals",
    "decision_intervals",
    "find_x1",
    "follow_boundary",
    "nearest_tie",
    "solve_x1",
    "tie_sensitivity",
    "trace_boundary",
]

register(__name__, FORMER_NAMES)
