"""Momentum as a reversible map: in floating point, exactly reversible in fixed point, and the
gradients of a loss through training, docs/derivations.md §4.5 to §4.9.

The path of a call, ``ReversibleMomentum.step(grad)``:

    _reversible.py     step: checks the gradient, decides whether this step spills its buffers
    _kernels.pyx       fixed_step: compares shapes (_door.pxi), runs the step or takes it back
    _fixed.pxi         step_task: 16384 parameters, a vector of them at a time
    fixed.h            step_lanes: the arithmetic

`momentum_step` goes from _momentum.py by `update` to _momentum.pxi; `hypergradient`, in
_hypergradient.py, calls a `ReversibleMomentum` forwards and backwards.  _kernels.pyi says what each
door of the compiled modules takes.
"""

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
