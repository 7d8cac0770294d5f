"""Sigmoid networks and where two of their outputs tie: docs/derivations.md §2."""

from ._expsum import ExponentialSum
from ._network import SigmoidMLP
from ._roots import RootResults, find_x1
from ._solve import Crossings, solve_x1

__all__ = ["Crossings", "ExponentialSum", "RootResults", "SigmoidMLP", "find_x1", "solve_x1"]
from ._trace import BoundaryCurves, trace_boundary

__all__ = ["BoundaryCurves", "ExponentialSum", "RootResults", "SigmoidMLP", "find_x1", "trace_boundary"]
