"""Ties in a plane of two inputs, the others held: whole curves.

_trace.py       trace_boundary: all curves in a box, certified
  _section.py   the margin as a function of two inputs, and bounds of what rounding does to it
  _cells.py     the box cut into cells, until each holds one arc or none
  _curves.py    arcs joined to curves
  _chords.py    points between the ends of arcs, until chords are proven to be close
_follow.py      follow_boundary: one curve from a point on, by arc length
  _walk.py      its steps, by SciPy's integrator and projection
"""
