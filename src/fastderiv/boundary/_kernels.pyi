"""What the compiled kernels of this room offer to Python.  All numbers are float64.

m is the number of rows, n_in and n_out are a network's inputs and outputs, H its hidden units, k a
number of enclosures.  Arrays are C-contiguous unless the docstring says otherwise.  OUT arguments
are filled.
"""

from typing import Protocol

import numpy as np

class Program:
    """A network packed for the kernels; its hidden layers are logistic."""

    def __init__(self, weights: tuple[np.ndarray, ...], biases: tuple[np.ndarray, ...]) -> None:
        """Pack weights[k] (n_in, n_out) and biases[k] (n_out,) of every layer k."""

    def evaluate(self, X: np.ndarray, out: np.ndarray, squash: bool) -> None:
        """OUT out (m, n_out) or of that size: the outputs at X (m, n_in) of any strides.

        With `squash` they pass through σ.
        """

    def gradient(self, X: np.ndarray, out: np.ndarray) -> None:
        """OUT out (m, n_in): the gradient of the only output at X (m, n_in) of any strides."""

    def along(
        self,
        X: np.ndarray,
        pick: np.ndarray,
        t: np.ndarray,
        coordinate: int,
        out: np.ndarray,
    ) -> None:
        """OUT out (k, n_out) or (k,): the outputs at rows of X (m, n_in), one input replaced.

        The rows are pick (k,) intp; their input `coordinate` is t (k,).
        """

class Line:
    """The only output as a function of one input: what a scalar root finder calls."""

    def __init__(self, program: Program, coordinate: int) -> None: ...
    def prepare(self, X: np.ndarray, row: int) -> None:
        """Fix the other inputs to those of one row of X (m, n_in)."""

    def __call__(self, t: float) -> float: ...
    def derivative(self, t: float) -> float: ...

class Listing:
    """The enclosures of all rows of a call, row after row."""

    def __init__(self, rows: int) -> None:
        """Expect the enclosures of so many rows."""

    def arrays(
        self,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """indptr (m + 1,) intp, x, lower, upper (k,), unique (k,) bool; closes the listing."""

class Buffers:
    """Memory for the enclosures of a limited number of rows: made by `Solver.buffers`."""

    def __init__(self, rows: int, task_rows: int, cap: int) -> None:
        """Tasks of `task_rows` rows, each with room for `cap` enclosures."""

class Solver:
    """Finds all ties along one input."""

    def buffers(self, rows: int, cap: int = 0) -> Buffers:
        """Memory for up to so many rows at a time.

        A task has room for `cap` enclosures; if that is 0, for eight a row on average.
        """

    def solve(
        self,
        X: np.ndarray,
        lo: float,
        hi: float,
        xtol: float,
        buffers: Buffers,
        listing: Listing,
    ) -> None:
        """Add the enclosures of the ties in [lo, hi] to `listing`.

        X (m, n_in − 1) of any strides holds the other inputs.
        """

class Isolator(Solver):
    """The ties of a network with one hidden layer: f(t) = c + Σ d_i σ(a_i t + s_i)."""

    def __init__(
        self,
        a: np.ndarray,
        d: np.ndarray,
        c: float,
        error: float,
        one_root_at_most: bool,
        limits: tuple[float, float],
        offsets: Program,
        magnitudes: Program,
    ) -> None:
        """Pack a (H,), d (H,) and c.

        error: a bound of Σ |d̂_i − d_i| + |ĉ − c|, what d and c may be off by.
        one_root_at_most: whether every row is known to have one root at most, a simple one.
        limits: numbers with the exact signs of f(−∞) and f(∞); NaN where a unit has a_i = 0.
        offsets: the network of one layer that makes s (H,) from the other inputs.
        magnitudes: `offsets` with absolute values for weights and biases.
        """

class DeepNet(Solver):
    """The ties of a network of any depth, whose only output is the margin."""

    def __init__(self, program: Program, coordinate: int) -> None:
        """`program`: the numbers of its last layer are correctly rounded differences."""

    def enclosure(
        self, X: np.ndarray, l: float, m: float, r: float
    ) -> tuple[
        tuple[float, float],
        tuple[float, float],
        tuple[float, float],
        tuple[float, float],
        tuple[float, float],
    ]:
        """Enclose the margin f for the one row of X (1, n_in − 1).

        (middle, radius) of f and f' at m, then (lower, upper) of f, f' and f'' on [l, r].
        """

    def effort(self, X: np.ndarray, lo: float, hi: float, xtol: float) -> np.ndarray:
        """(m,) intp: how many enclosures each row takes to solve; what is found is not listed."""

# Types for the attributes of `Kernels`, whose names hide the classes'.
_Packed = Program
_Program = type[Program]
_Line = type[Line]
_Listing = type[Listing]
_Isolator = type[Isolator]
_DeepNet = type[DeepNet]

class Kernels(Protocol):
    """The compiled module."""

    Program: _Program
    Line: _Line
    Listing: _Listing
    Isolator: _Isolator
    DeepNet: _DeepNet
    def judge_boxes(
        self,
        program: _Packed,
        errors: np.ndarray,
        boxes: np.ndarray,
        slopes: bool = False,
    ) -> np.ndarray:
        """(4, n): what f, the only output of two inputs, does on each of n boxes.

        Signed gaps between zero and the ranges of f, ∂f/∂x and ∂f/∂y, then the largest |f|; or with
        `slopes` the least and largest ∂f/∂x and the least and largest ∂f/∂y.
        boxes (4, n): x0, x1, y0, y1, all finite.
        errors: layer after layer, padded to multiples of 8, what rounding may do to the sums of the
        units, then to their values at a point.
        """
