"""Sigmoid networks and where two of their outputs tie: docs/derivations.md §2."""

from ._counterfactuals import Counterfactuals, counterfactuals
from ._expsum import ExponentialSum
from ._follow import follow_boundary
from ._intervals import DecisionIntervals, decision_intervals
from ._nearest import NearestTie, nearest_tie
from ._network import SigmoidMLP
from ._roots import RootResults, find_x1
from ._sensitivity import TieSensitivity, tie_sensitivity
from ._solve import Crossings, solve_x1
from ._trace import BoundaryCurves, trace_boundary

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
