"""tie_sensitivity: how a tie moves with every parameter, by implicit differentiation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..._core import arrays, maths
from ..._core.floats import undisturbed
from .._margin import Margin, Outputs
from .._network import SigmoidMLP, check_network, margin_of
from .._points import check_point, check_tie


class TieSensitivity(NamedTuple):
    """The derivatives of a tie x*: what `tie_sensitivity` returns.

    Attributes
    ----------
    weights, biases : tuple of ndarray
        ∂x*/∂W and ∂x*/∂b, layer by layer, shaped as the network's.
    inputs : ndarray, shape (n_inputs - 1,)
        ∂x*/∂x_j for the other inputs, in their order.

    Examples
    --------
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[2.0], [1.0]]], [[-6.0]])                      # x1 = (6 − x2) / 2
    >>> fd.tie_sensitivity(net, [3.0, 0.0]).inputs
    array([-0.5])
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    inputs: np.ndarray


@undisturbed
def tie_sensitivity(
    net: SigmoidMLP, x: ArrayLike, *, coordinate: int = 0, outputs: Outputs = (0, 1)
) -> TieSensitivity:
    """How the tie at `x` moves along one input when a parameter or another input changes.

    With the margin f, a tie satisfies f(x*; p) = 0, so that ∂x*/∂p = −(∂f/∂p) / (∂f/∂x*) for every
    parameter p.  The parameters of the two outputs enter f with opposite signs, those of other
    outputs not at all.

    Parameters
    ----------
    net : SigmoidMLP
    x : array_like, shape (n_inputs,)
        A tie, for instance from `solve_x1`: no further than 1e-6·max(1, max|x|) from the boundary.
    coordinate : int, optional
        The input that is solved for, by default the first; negative ones count from the last.
    outputs : pair of int, optional
        As in `SigmoidMLP.margin`.

    Returns
    -------
    sensitivity : TieSensitivity
        `weights` and `biases`, tuples shaped as the network's, and `inputs`, (n_inputs - 1,).

    Raises
    ------
    TypeError
        If `net` is no SigmoidMLP or an argument has another type.
    ValueError
        For a wrong shape or option, NaN and inf; if `x` is no tie; if the margin does not change
        with that input there, so that no x* as a function of the others exists.

    Notes
    -----
    The cost is one evaluation and its adjoint: one multiply–add per weight each, and the memory of
    three networks.  The derivatives are those of the exact function at `x`; they grow without
    bound, and lose digits, as ∂f/∂x* goes to zero.

    References
    ----------
    docs/derivations.md §2.

    Examples
    --------
    >>> import fastderiv as fd
    >>> net = fd.SigmoidMLP([[[2.0], [1.0]], [[3.0]]], [[-6.0], [-1.5]])     # ties: 2 x1 + x2 = 6
    >>> s = fd.tie_sensitivity(net, [2.5, 1.0])
    >>> s.weights[0].tolist(), s.biases[0].tolist(), s.inputs.tolist()
    ([[-1.25], [-0.5]], [-0.5], [-0.5])
    """
    check_network(net)
    c = arrays.position("coordinate", coordinate, net.n_inputs, "inputs")
    x = check_point("x", net, x)
    # extreme parameters overflow to inf, as IEEE says
    margin, weights, biases, gradient = _margin_vjp(net, x, margin_of(net, outputs))
    check_tie("x", x, margin, gradient)
    slope = gradient[c]
    if slope == 0:
        raise ValueError(
            f"x is a tie at which the margin does not change with input {c}; "
            "expected a coordinate whose derivative is not zero: "
            f"the gradient is {gradient.tolist()}"
        )
    return TieSensitivity(
        tuple(-w / slope for w in weights),
        tuple(-b / slope for b in biases),
        -np.delete(gradient, c) / slope,
    )


def _margin_vjp(
    net: SigmoidMLP, x: np.ndarray, of: Margin
) -> tuple[float, list[np.ndarray], list[np.ndarray], np.ndarray]:
    """The margin f at x (n_in,), and ∂f by every layer's weights, biases, and by x.

    1. forward   n_k = b_k + y_{k-1} W_k,  y_k = σ(n_k),  y_{-1} = x;  the margin is the difference
                 of the last n at `of.pair`
    2. last      n̄ = +1 at pair[0], −1 at pair[1]
    3. backward  W̄_k = y_{k-1} n̄_kᵀ,  b̄_k = n̄_k,  ȳ_{k-1} = W_k n̄_k,
                 n̄_{k-1} = ȳ_{k-1} ⊙ σ'(n_{k-1})
    """
    y, inputs, slopes = x, [], []
    for w, b in zip(net.weights[:-1], net.biases[:-1], strict=True):
        n = b + y @ w
        inputs.append(y)
        y = maths.sigmoid(n)
        slopes.append(y * maths.sigmoid(-n))  # σ' = σ(n) σ(−n), accurate relatively in both tails
    inputs.append(y)
    d, dc = of.difference
    margin = float(dc[0] + y @ d)
    dn = np.zeros(net.n_outputs)
    dn[0 if of.pair is None else of.pair[0]] = 1
    if of.pair is not None:
        dn[of.pair[1]] = -1
    weights, biases = [np.outer(y, dn)], [dn]
    dy = d  # W n̄ of the last layer
    for w, y, slope in zip(net.weights[-2::-1], inputs[-2::-1], slopes[::-1], strict=True):
        dn = dy * slope
        weights.append(np.outer(y, dn))
        biases.append(dn)
        dy = w @ dn
    return margin, weights[::-1], biases[::-1], dy
