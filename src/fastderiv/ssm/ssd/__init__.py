"""Mamba-2's scan, state space duality (SSD): docs/derivations.md §6.1 to §6.5."""
