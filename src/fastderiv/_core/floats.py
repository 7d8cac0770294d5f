"""Floating-point arithmetic in Python code, whatever state the caller's thread is in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np

from .fpstate import ieee

P = ParamSpec("P")
T = TypeVar("T")


def undisturbed(function: Callable[P, T]) -> Callable[P, T]:
    """`function` in the default floating-point state, with NumPy's floating-point errors ignored.

    The state is the control register's (rounding mode, gradual underflow, traps) and NumPy's
    (`np.errstate`); the caller's is back afterwards.  Functions for which a microsecond counts use
    ``with ieee():`` around what needs it; the thread pool sets the register by itself.  A function
    of the user's, called inside, runs in the user's state if it was passed through `as_caller`
    before.
    """
    # as a decorator, errstate takes half as long as it does as a context manager
    quiet = np.errstate(all="ignore")(function)

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with ieee():
            return quiet(*args, **kwargs)

    return inside


def as_caller(function: Callable[P, T]) -> Callable[P, T]:
    """`function` in the floating-point and error state in force now, wherever it is called."""
    loud = np.errstate(**np.geterr())(function)
    state = ieee.current()

    @wraps(function)
    def outside(*args: P.args, **kwargs: P.kwargs) -> T:
        with state.again():
            return loud(*args, **kwargs)

    return outside
