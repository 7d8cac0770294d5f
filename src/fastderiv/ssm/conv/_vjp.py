"""`causal_conv1d_vjp`: the adjoint of the causal convolution."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import F64, as_dtype, assign
from ..._core.fpstate import ieee
from .._calls import total
from ._conv import ConvCall


class CausalConv1dGrads(NamedTuple):
    """Gradients with respect to the arguments of `causal_conv1d`, each in its argument's shape.

    A gradient is None where the argument was None.

    Examples
    --------
    >>> import numpy as np
    >>> import fastderiv as fd
    >>> one = np.ones((1, 1))
    >>> grads = fd.causal_conv1d_vjp(one, one, one)
    >>> grads._fields
    ('dx', 'dweight', 'dbias', 'dinitial_state')
    >>> grads.dbias is None
    True
    """

    dx: NDArray
    dweight: NDArray
    dbias: NDArray | None
    dinitial_state: NDArray | None


def causal_conv1d_vjp(
    dout: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    dlast_state: ArrayLike | None = None,
) -> CausalConv1dGrads:
    r"""The adjoint of `causal_conv1d`: gradients of a scalar with respect to its arguments.

    They follow from the gradients of that scalar with respect to the results.  With :math:`s_t` the
    sum that the activation is applied to and :math:`e_t = \bar y_t\, \mathrm{act}'(s_t)`,

    .. math::
        \bar x_t = \sum_k w_k\, e_{t+K-1-k}, \qquad
        \bar w_k = \sum_t e_t\, x_{t-K+1+k}, \qquad \bar b = \sum_t e_t.

    Parameters
    ----------
    dout : array_like, shape of `x`
        Gradient with respect to the convolution's result.
    x, weight, bias, activation, initial_state, cu_seqlens
        As they were passed to `causal_conv1d`.
    dlast_state : array_like, shape (batch, D, K - 1), optional
        Gradient with respect to the last state; zeros by default.  With `cu_seqlens` it is
        (sequences, D, K - 1).

    Returns
    -------
    grads : CausalConv1dGrads
        ``dx``, ``dweight``, ``dbias`` and ``dinitial_state``, each of the shape of its argument,
        None where the argument was None; ``dx`` lies in memory as the result of `causal_conv1d`
        does.  float32 if every floating argument is, else float64.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, naming the argument, what was expected and what came.
    MemoryError
        Results or scratch larger than the machine's memory; the message says how many bytes.

    Notes
    -----
    O(batch·D·L·K) time, about two convolutions.  Nothing of the forward pass is stored: the sums
    are computed again.  ``dweight`` and ``dbias`` have up to 64 shares of D·(K + 1) numbers, at
    most a sixteenth of the size of `x`.  Scratch takes at most 160 KiB per thread for K <= 16, and
    grows by about 1 KiB with K.

    Sums are taken in a fixed order: the bits of the result do not depend on the number of threads,
    nor on strides. float64 is within 1e-12, float32 within 1e-5 of the exact gradient, relative to
    its largest magnitude, or to the sum of its terms' magnitudes where a few of them cancel.  NaN
    and infinities stay in their channel.

    References
    ----------
    docs/derivations.md §6.6.

    Examples
    --------
    The last output of a moving sum of two steps depends on the last two inputs:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> x = np.array([[1.0, 2.0, 3.0, 4.0]])
    >>> grads = fd.causal_conv1d_vjp([[0, 0, 0, 1]], x, [[1.0, 1.0]])
    >>> grads.dx
    array([[0., 0., 1., 1.]])
    >>> grads.dweight
    array([[3., 4.]])
    """
    call = ConvCall(
        x, weight, bias, activation, initial_state, cu_seqlens, dout, dlast_state,
        required=("x", "weight", "dout"),
    )  # fmt: skip
    dx = call.like_x("dx")
    dinitial = None if call.initial_state is None else call.new_state()
    with ieee():  # the number of shares is computed in floating point, too
        shares = call.kernels.convolution_adjoint(
            call.dout, call.x, call.weight, bias=call.bias, silu=call.silu,
            initial_state=call.initial_state, cu_seqlens=call.starts,
            dlast_state=call.dlast_state, dx=call.signal(dx), dinitial_state=call.state(dinitial),
        )  # fmt: skip
    if dinitial is not None:
        _hand_on(call, dinitial)
    sums = as_dtype(total(shares, F64), call.dtype)
    dweight = np.empty(call.weight.shape, call.dtype)
    assign(dweight, sums[:-1].T)
    return CausalConv1dGrads(
        dx=dx,
        dweight=dweight,
        dbias=None if call.bias is None else sums[-1].copy(),
        dinitial_state=dinitial,
    )


def _hand_on(call: ConvCall, dinitial: NDArray) -> None:
    """OUT dinitial of empty sequences, whose last state is the initial one."""
    empty = np.s_[:]
    if call.starts is not None:
        empty = np.diff(call.starts) == 0
    elif call.shape[-1]:
        return
    last = call.dlast_state
    state = call.state(dinitial)
    assert state is not None
    state[empty] = 0 if last is None else last[empty]
