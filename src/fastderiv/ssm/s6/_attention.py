"""`scan_attention`: the matrix that the scan applies to its input, channel by channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import empty, flag
from .._rows import positions
from ._scan import ScanCall


def scan_attention(
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = False,
    *,
    rows: ArrayLike | None = None,
) -> NDArray:
    r"""The hidden attention of the scan: for every channel, the matrix that maps u to y.

    It is lower-triangular.

    With :math:`\Delta_l = \mathrm{softplus}(\delta_l + b)` (or :math:`\delta_l + b`),

    .. math::
        \alpha_{lj} = \sum_n C_{ln}\, e^{A_n (\Delta_{j+1} + \dots + \Delta_l)}\, \Delta_j B_{jn}
        \quad (j \le l),
        \qquad y_l = \sum_{j \le l} \alpha_{lj} u_j

    is `selective_scan` from state zero, without D and z.

    Parameters
    ----------
    delta : array_like, shape (batch, D, L) or (D, L)
    A : array_like, shape (D, N)
    B, C : array_like, shape (D, N), (batch, N, L) or (batch, G, N, L)
    delta_bias : array_like, shape (D,), optional
    delta_softplus : bool, optional
        The parameters of `selective_scan`.
    rows : array_like of int, shape (R,), optional
        Which rows to compute, indexing the L steps as NumPy does: negative ones count from the end,
        any order, repeats allowed.  All L of them by default.

    Returns
    -------
    attention : ndarray, shape (batch, D, R, L)
        (D, R, L) unbatched; exactly zero right of the diagonal.  float32 if every floating argument
        is, else float64.

    Raises
    ------
    IndexError
        A row outside [-L, L).
    ValueError, TypeError
        A shape or dtype that does not fit, naming the argument, what was expected and what came.
    MemoryError
        A result larger than the machine's memory, before anything is computed.

    Notes
    -----
    O(batch·D·R·L·N) time.  Memory beyond inputs and result is scratch of less than 1 MiB per thread
    up to N = 256, growing by 1 KiB with N in float32, by 2 KiB in float64.

    Where A ≤ 0 ≤ Δ, blocks of 64 columns are matrix products of two decaying factors, which the
    rows below share; elsewhere, at some ten times the cost, each exponential is taken by itself, so
    that it overflows only where it must.  Sums of step sizes run backwards from each row, in
    float64: no prefix sums are subtracted, no products divided.  float64 is within 1e-12, float32
    within 2e-5 of the exact result, relative to its largest magnitude.  A row's bits do not depend
    on which others are asked for, nor on strides or threads.

    References
    ----------
    A. Ali, I. Zimerman, L. Wolf, "The Hidden Attention of Mamba Models", 2024, arXiv:2403.01590;
    docs/derivations.md §1.2.

    Examples
    --------
    A channel that forgets half of its state with every step:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> delta, one = np.ones((1, 4)), np.ones((1, 1))
    >>> attention = fd.scan_attention(delta, -np.log(2) * one, one, one)
    >>> attention.round(12)
    array([[[1.   , 0.   , 0.   , 0.   ],
            [0.5  , 1.   , 0.   , 0.   ],
            [0.25 , 0.5  , 1.   , 0.   ],
            [0.125, 0.25 , 0.5  , 1.   ]]])
    >>> u = np.array([[3.0, -1.0, 4.0, 1.0]])
    >>> y = fd.selective_scan(u, delta, -np.log(2) * one, one, one)
    >>> bool(np.allclose(attention[0] @ u[0], y[0]))
    True
    >>> fd.scan_attention(delta, -np.log(2) * one, one, one, rows=[-1]).round(12)
    array([[[0.125, 0.25 , 0.5  , 1.   ]]])
    """
    call = ScanCall(None, delta, A, B, C, delta_bias=delta_bias, required=("delta", "A", "B", "C"))
    steps = call.shape[-1]
    wanted = None if rows is None else positions(rows, steps)
    shape = (*call.shape[:-1], steps if wanted is None else len(wanted), steps)
    attention = empty("attention", shape, call.dtype, np.zeros)
    if attention.size:
        call.kernels.attention(
            call.delta, call.A, call.B, C=call.C, delta_bias=call.delta_bias,
            delta_softplus=flag("delta_softplus", delta_softplus),
            rows=np.arange(steps) if wanted is None else wanted,
            out=call.signal(attention),
        )  # fmt: skip
    return attention
