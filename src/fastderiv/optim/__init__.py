"""Momentum as a reversible map, exact reversal in fixed point, and hypergradients: docs/derivations.md §4."""
