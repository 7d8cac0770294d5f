"""Layers that are divided among processes: here, for one process."""
