"""`ssd_attention`: the matrix that the SSD scan applies to its input, head by head."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import empty, flag
from .._rows import positions
from ._call import SSDCall


def ssd_attention(
    dt: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    dt_bias: ArrayLike | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    *,
    rows: ArrayLike | None = None,
) -> NDArray:
    r"""The hidden attention of the SSD scan: for every head, the matrix that maps x to y.

    It is lower-triangular, and the same for all P numbers of a head.

    With :math:`\Delta_t` the step size, as `ssd_scan` has it,

    .. math::
        \alpha_{ts} = (C_t \cdot B_s)\, e^{A (\Delta_{s+1} + \dots + \Delta_t)}\, \Delta_s
        \quad (s \le t),
        \qquad y_t = \sum_{s \le t} \alpha_{ts} x_s

    is `ssd_scan` from state zero, without D and z.

    Parameters
    ----------
    dt : array_like, shape (batch, L, H) or (L, H)
    A : array_like, shape (H,)
    B, C : array_like, shape (batch, L, G, N)
    dt_bias : array_like, shape (H,), optional
    dt_softplus : bool, optional
    dt_limit : pair of float, optional
        The parameters of `ssd_scan`.
    rows : array_like of int, shape (R,), optional
        Which rows to compute, indexing the L steps as NumPy does: negative ones count from the end,
        any order, repeats allowed.  All L of them by default.

    Returns
    -------
    attention : ndarray, shape (batch, H, R, L)
        (H, R, L) unbatched; exactly zero right of the diagonal.  float32 if every floating argument
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
    O(batch·H·R·L) time for the exponentials, and O(batch·R·L·N) for the products C·B, which up to
    16 heads of a group share.  Memory beyond inputs and result is 80 KiB per thread in float32, 130
    in float64.

    Sums of step sizes run backwards from each row, in float64: no prefix sums are subtracted.
    float64 is within 1e-12, float32 within 2e-5 of the exact result, relative to its largest
    magnitude, or to the sum of magnitudes in C·B where these cancel.  Exponentials below the
    smallest normal number are 0.  A row's bits do not depend on which others are asked for, nor on
    strides or threads.

    References
    ----------
    T. Dao, A. Gu, "Transformers are SSMs", 2024, arXiv:2405.21060; docs/derivations.md §6.5.

    Examples
    --------
    A head that forgets half of its state with every step:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> dt, one = np.ones((4, 1)), np.ones((4, 1, 1))
    >>> attention = fd.ssd_attention(dt, [-np.log(2)], one, one)
    >>> attention.round(12)
    array([[[1.   , 0.   , 0.   , 0.   ],
            [0.5  , 1.   , 0.   , 0.   ],
            [0.25 , 0.5  , 1.   , 0.   ],
            [0.125, 0.25 , 0.5  , 1.   ]]])
    >>> fd.ssd_attention(dt, [-np.log(2)], one, one, rows=[-1]).round(12)
    array([[[0.125, 0.25 , 0.5  , 1.   ]]])
    """
    call = SSDCall(
        None,
        dt,
        A,
        B,
        C,
        dt_bias=dt_bias,
        dt_limit=dt_limit,
        dt_softplus=flag("dt_softplus", dt_softplus),
        required=("dt", "A", "B", "C"),
    )
    wanted = np.arange(call.steps) if rows is None else positions(rows, call.steps)
    shape = (*call.shape[:-3], call.heads, len(wanted), call.steps)
    attention = empty("attention", shape, call.dtype, np.zeros)
    if attention.size:
        low, high = call.dt_limit
        call.kernels.ssd_attention(
            call.dt, call.A, call.B, C=call.C, dt_bias=call.dt_bias,
            dt_softplus=call.dt_softplus, low=low, high=high,
            rows=wanted, out=call.signal(attention),
        )  # fmt: skip
    return attention
