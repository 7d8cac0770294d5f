"""`ssd_chunk_summary`: what a chunk of steps does to any state, as a pair."""

from __future__ import annotations

import math
from typing import NamedTuple

from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import empty, flag
from ._call import SSDCall


class SSDChunkSummary(NamedTuple):
    """What a chunk of the SSD scan does to any state, ``h_out = P[..., None, None] * h_in + q``.

    Attributes
    ----------
    P : ndarray, shape (batch, H)
        The product of the chunk's decays.
    q : ndarray, shape (batch, H, P, N)
        The state after the chunk if the state before it is zero.

    Examples
    --------
    >>> import numpy as np
    >>> import fastderiv as fd
    >>> nothing = fd.SSDChunkSummary(P=np.ones(3), q=np.zeros((3, 4, 2)))  # a chunk of no steps
    >>> fd.combine_summaries(nothing, nothing).q.shape
    (3, 4, 2)
    """

    P: NDArray
    q: NDArray


def ssd_chunk_summary(
    x: ArrayLike,
    dt: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    dt_bias: ArrayLike | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> SSDChunkSummary:
    r"""Summarise a chunk of `ssd_scan` as the map it applies to any state.

    .. math::
        h_{\text{out}} = P\, h_{\text{in}} + q, \qquad P = e^{A \sum_l \Delta_l}

    Chunks can be summarised independently, on other machines too; `combine_summaries` composes
    them.

    Parameters
    ----------
    x : array_like, shape (batch, L, H, P) or (L, H, P)
    dt : array_like, shape (batch, L, H)
    A : array_like, shape (H,)
    B : array_like, shape (batch, L, G, N)
    dt_bias : array_like, shape (H,), optional
    dt_softplus : bool, optional
    dt_limit : pair of float, optional
        The parameters of `ssd_scan`.

    Returns
    -------
    summary : SSDChunkSummary
        The pair (P, q) of new arrays (batch, H) and (batch, H, P, N), without the batch axis if
        there is none: float32 if every floating argument is, else float64.  L = 0 gives P = 1,
        q = 0.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, naming the argument, what was expected and what came.
    MemoryError
        Results or scratch larger than the machine's memory; the message says how many bytes.

    Notes
    -----
    O(batch·L·H·P·N) time, and the memory of the scan; q is, bit for bit, the scan's last state from
    a zero initial state.  The step sizes are summed in float64, and P is formed once from the sum,
    so that rounding does not build up over long chunks.  The bits of the result do not depend on
    strides or threads.

    References
    ----------
    docs/derivations.md §6.5.

    Examples
    --------
    Two halves of a sequence, summarised apart, then applied to a state:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> x, dt, B = np.ones((4, 1, 1)), np.full((4, 1), np.log(2)), np.ones((4, 1, 1))
    >>> first = fd.ssd_chunk_summary(x[:2], dt[:2], [-1.0], B[:2])
    >>> second = fd.ssd_chunk_summary(x[2:], dt[2:], [-1.0], B[2:])
    >>> P, q = fd.combine_summaries(first, second)
    >>> bool(np.allclose(P, 1 / 16))
    True
    >>> state = np.full((1, 1, 1), 8.0)
    >>> _, last = fd.ssd_scan(x, dt, [-1.0], B, B, initial_state=state, return_last_state=True)
    >>> bool(np.allclose(P[:, None, None] * state + q, last))
    True
    """
    call = SSDCall(
        x, dt, A, B, None, dt_bias=dt_bias, dt_limit=dt_limit,
        dt_softplus=flag("dt_softplus", dt_softplus), required=("x", "dt", "A", "B"),
    )  # fmt: skip
    P, q = empty("products of decays", call.state_shape[:-2], call.dtype), call.new_state()
    call.scan(None, q)
    low, high = call.dt_limit
    call.kernels.ssd_decay(
        call.dt, call.A, call.B, dt_bias=call.dt_bias, dt_softplus=call.dt_softplus, low=low,
        high=high, out=call.signal(P),
    )  # fmt: skip
    return SSDChunkSummary(P, q)
