"""`GridRNN`: the two-dimensional recurrent network as a module, and its operator."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.functional import linear, pad, relu, softplus

from fastderiv import grid_rnn, grid_rnn_vjp

from ._operators import Arrays, Constants, Operator, Tensors
from ._tensors import cast, check

# written so that each has derivatives of every order and in both modes
_CURVES: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda a: a,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": relu,
    "softplus": softplus,
    "silu": lambda a: a * torch.sigmoid(a),
    "gelu": lambda a: a * 0.5 * torch.special.erfc(-a * math.sqrt(0.5)),
}


class GridRNN(Module):
    r"""The recurrent network over a grid, `fastderiv.grid_rnn`, on CPU tensors.

    .. math::
        h_{i,j} = \varphi(W_\text{in} x_{i,j} + W_\text{west} h_{i,j-1}
        + W_\text{north} h_{i-1,j} + b),

    where the states outside the grid are 0.

    Parameters
    ----------
    input_size, hidden_size : int
        D and H.
    activation : str or None, optional
        φ: "sigmoid", "tanh", "relu", "softplus", "silu" or "gelu"; None for no activation.
    bias : bool, optional
        Whether there is a `b`.
    device, dtype : optional
        Of the parameters.

    Attributes
    ----------
    W_in : Parameter, shape (H, D)
    W_west, W_north : Parameter, shape (H, H)
    b : Parameter, shape (H,), or None
        All are drawn from U(−1/√H, 1/√H), as the parameters of ``torch.nn.RNN`` are.

    Raises
    ------
    ValueError
        A size below 1 or an unknown activation.  In a call: a width that does not fit, or a tensor
        that is not on the CPU.
    TypeError
        A size or activation of another type.  In a call: not a tensor, or not one of float32,
        float64, bfloat16 and float16.

    Notes
    -----
    ``module(x)`` takes x of shape (G1, G2, D) or (batch, G1, G2, D) and returns the states of all
    cells, (G1, G2, H) or (batch, G1, G2, H), in the dtype of x, or within ``torch.autocast`` in
    that of autocast.  It computes in float64 if one of the tensors is float64, else in float32.

    A cell costs DH + 2H² multiply–adds forward and three times as many backward, where the states
    are computed again: for the backward pass only x and the parameters are kept.

    The module works under ``torch.compile(fullgraph=True)``.  Second derivatives, forward mode and
    the transforms of ``torch.func`` are computed by PyTorch's own operations, one anti-diagonal
    after the other: right, but not fast.

    See Also
    --------
    fastderiv.grid_rnn, fastderiv.grid_rnn_vjp : the same on NumPy arrays.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.torch import GridRNN
    >>> module = GridRNN(3, 5)
    >>> module
    GridRNN(3, 5, activation='tanh')
    >>> h = module(torch.randn(8, 4, 6, 3))
    >>> h.shape
    torch.Size([8, 4, 6, 5])
    >>> h.sum().backward()
    >>> module.W_west.grad.shape
    torch.Size([5, 5])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        activation: str | None = "tanh",
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in ("input_size", input_size), ("hidden_size", hidden_size):
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"{name} is a {type(size).__name__}; expected an int")
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        if activation is not None and not isinstance(activation, str):
            raise TypeError(f"activation is a {type(activation).__name__}; expected a name or None")
        if activation not in _CURVES:
            names = ", ".join(map(repr, _CURVES))
            raise ValueError(f"activation is {activation!r}; expected one of {names}")
        self.input_size, self.hidden_size, self.activation = input_size, hidden_size, activation
        D, H = input_size, hidden_size
        for name, shape in ("W_in", (H, D)), ("W_west", (H, H)), ("W_north", (H, H)), ("b", (H,)):
            wanted = bias or name != "b"
            empty = Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(name, empty)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters from U(−1/√H, 1/√H)."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            torch.nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        of_bias = "" if self.b is not None else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}, activation={self.activation!r}{of_bias}"

    def forward(self, x: Tensor) -> Tensor:
        check(x=x, W_in=self.W_in, W_west=self.W_west, W_north=self.W_north)
        if self.b is not None:
            check(b=self.b)
        if x.dim() not in (3, 4) or x.shape[-1] != self.input_size:
            expected = f"(G1, G2, D) or (batch, G1, G2, D) with D = {self.input_size}"
            raise ValueError(f"x has shape {tuple(x.shape)}; expected {expected}")
        variables = x, self.W_in, self.W_west, self.W_north, self.b
        h, _ = _grid_rnn(variables, (self.activation,))
        if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
            (h,) = cast(torch.get_autocast_dtype("cpu"), h)
        return h


class _GridRNN(Operator):
    """The second result is empty: a grid has no last state."""

    name = "grid_rnn"
    variables = "Tensor x, Tensor W_in, Tensor W_west, Tensor W_north, Tensor? b"
    constants = "str? activation"

    def compute(
        self, variables: Arrays, constants: Constants, remember: bool
    ) -> tuple[NDArray, NDArray, None]:
        h = grid_rnn(*variables, activation=constants[0])
        return h, h.reshape(-1)[:0].copy(), None

    def adjoint(
        self,
        dout: NDArray,
        dlast_state: NDArray,
        variables: Arrays,
        constants: Constants,
        kept: NDArray | None,
    ) -> Sequence[NDArray | None]:
        return grid_rnn_vjp(dout, *variables, activation=constants[0])

    def shapes(
        self, variables: Tensors, constants: Constants, remember: bool
    ) -> tuple[Sequence[Any], Sequence[Any], int]:
        x, W_in, *_ = variables
        return (*x.shape[:-1], W_in.shape[0]), (0,), 0

    def in_steps(self, variables: Tensors, constants: Constants) -> tuple[Tensor, Tensor]:
        """One anti-diagonal after the other."""
        x, W_in, W_west, W_north, b = variables
        curve = _CURVES[constants[0]]
        G1, G2 = x.shape[-3:-1]
        with torch.autocast("cpu", enabled=False):
            inputs = linear(x, W_in, b)
            cells, places = [], []
            before, first = inputs.new_zeros(*x.shape[:-3], 0, W_in.shape[0]), 0
            for d in range(G1 + G2 - 1 if G1 * G2 else 0):
                i = torch.arange(max(0, d - G2 + 1), min(G1, d + 1))
                # the diagonal before, between two states outside of the grid
                outside = pad(before, (0, 0, 1, 1))
                k, n = int(i[0]) - first, len(i)
                a = inputs[..., i, d - i, :] + linear(outside[..., k + 1 : k + 1 + n, :], W_west)
                before = curve(a + linear(outside[..., k : k + n, :], W_north))
                first = int(i[0])
                cells.append(before)
                places.append(i * G2 + d - i)
            if not cells:
                return inputs * 1, x.reshape(-1)[:0]
            h = torch.cat(cells, -2)[..., torch.argsort(torch.cat(places)), :]
            return h.reshape(*x.shape[:-1], len(W_in)), x.reshape(-1)[:0]


_grid_rnn = _GridRNN()
