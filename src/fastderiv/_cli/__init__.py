"""What ``python -m fastderiv`` runs: the demo, the microbenchmarks, and the timing they share with
``bench/``.
"""
