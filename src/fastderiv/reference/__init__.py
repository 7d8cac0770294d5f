"""Every public function in plain NumPy and SciPy: slow, short, independent of the compiled code; the oracle of the tests."""

from .boundary import ExponentialSum, RootResults, SigmoidMLP, find_x1

__all__ = ["ExponentialSum", "RootResults", "SigmoidMLP", "find_x1"]
