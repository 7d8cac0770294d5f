"""Momentum as a reversible map, exact reversal in fixed point, and hypergradients: docs/derivations.md §4."""

from ._hypergradient import Hypergradients, hypergradient
from ._momentum import momentum_jacobian, momentum_step, momentum_unstep
from ._reversible import ReversibleMomentum

__all__ = [
    "Hypergradients",
    "ReversibleMomentum",
    "hypergradient",
    "momentum_jacobian",
    "momentum_step",
    "momentum_unstep",
]
