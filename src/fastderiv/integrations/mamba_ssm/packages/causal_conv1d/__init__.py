"""The interface of the package ``causal_conv1d`` on CPU tensors, by fastderiv.

How a call flows: arguments as ``causal_conv1d`` takes them → the operators of
``fastderiv.integrations.torch`` → results as it returns them.

causal_conv1d_interface   convolution of sequences, and of a token with the inputs before it
causal_conv1d_varlen      the last inputs of packed sequences
cpp_functions             forward and backward pass, which code with its own autograd calls
"""

from fastderiv.integrations.mamba_ssm._distributions import VERSIONS

from .causal_conv1d_interface import causal_conv1d_fn, causal_conv1d_update

__version__ = VERSIONS["causal_conv1d"]

__all__ = ["causal_conv1d_fn", "causal_conv1d_update"]
