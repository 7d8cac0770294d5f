"""Ties along one input, the others held: all of them, one of them, what they mean, how they move.

_rows.py                 the other inputs, row by row, as arguments
_solve.py, Crossings     solve_x1: all ties, certified
  _solver.py             what is packed for it, once per margin and input
    _last_layer.py       the margin's last weights, and what rounding did to them
    _units.py            hidden units that are equal or opposite, merged exactly
_roots.py, _finders.py   find_x1: one tie, by SciPy's root finders
_intervals.py            decision_intervals: which output leads where
_counterfactuals.py      counterfactuals: the nearest tie along each single input
_expsum.py               ExponentialSum: the margin as a sum of exponentials, bounds of ties
_sensitivity.py          tie_sensitivity: how a tie moves with every parameter
"""
