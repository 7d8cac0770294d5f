"""Ties anywhere among the inputs.

_nearest.py     nearest_tie: the nearest one to a point, the best of several searches
  _search.py    one search: its starts, ties on straight lines, and the way from these
  _problem.py   what is searched: the distance, the boundary, the conditions of a nearest point
"""
