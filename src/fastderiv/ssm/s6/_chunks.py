"""`chunk_summary` and `combine_summaries`: what a chunk of steps does to any state, as a pair.

`combine_summaries` serves the summaries of both scans.
"""

from __future__ import annotations

from typing import NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import as_arrays, common, empty, expect, flag, pieces
from ..._core.floats import undisturbed
from ..ssd._chunks import SSDChunkSummary
from ._scan import ScanCall
from ._transition import power


class ChunkSummary(NamedTuple):
    """What a chunk of a scan does to any state, ``h_out = P * h_in + q``.

    Attributes
    ----------
    P : ndarray, shape (batch, D, N)
        The product of the chunk's transitions.
    q : ndarray, shape (batch, D, N)
        The state after the chunk if the state before it is zero.

    Examples
    --------
    >>> import numpy as np
    >>> import fastderiv as fd
    >>> nothing = fd.ChunkSummary(P=np.ones((3, 2)), q=np.zeros((3, 2)))    # a chunk of no steps
    >>> fd.combine_summaries(nothing, nothing).q.shape
    (3, 2)
    """

    P: NDArray
    q: NDArray


def chunk_summary(
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = False,
) -> ChunkSummary:
    r"""Summarise a chunk of `selective_scan` as the map it applies to any state.

    .. math::
        h_{\text{out}} = P \odot h_{\text{in}} + q, \qquad P = e^{A \sum_l \Delta_l}

    Chunks can be summarised independently, on other machines too; `combine_summaries` composes
    them.

    Parameters
    ----------
    u, delta : array_like, shape (batch, D, L) or (D, L)
    A : array_like, shape (D, N)
    B : array_like, shape (D, N), (batch, N, L) or (batch, G, N, L)
    delta_bias : array_like, shape (D,), optional
    delta_softplus : bool, optional
        The parameters of `selective_scan`.

    Returns
    -------
    summary : ChunkSummary
        The pair (P, q) of new arrays (batch, D, N), or (D, N) unbatched: float32 if every floating
        argument is, else float64.  L = 0 gives P = 1, q = 0.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, naming the argument, what was expected and what came.
    MemoryError
        Results or scratch larger than the machine's memory; the message says how many bytes.

    Notes
    -----
    O(batch·D·L·N) time, as the scan; q is, bit for bit, the scan's last state from a zero initial
    state.  Memory beyond inputs and results is that of the scan.  The step sizes are summed in
    float64, eight by eight, and P is formed once from the sum, so that rounding does not build up
    over long chunks.  The bits of the result do not depend on strides or threads.

    References
    ----------
    docs/derivations.md §1.7.

    Examples
    --------
    Two halves of a sequence, summarised apart, then applied to a state:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> u, delta = np.ones((1, 4)), np.full((1, 4), np.log(2))
    >>> A, B = np.array([[-1.0]]), np.array([[1.0]])
    >>> first = fd.chunk_summary(u[:, :2], delta[:, :2], A, B)
    >>> second = fd.chunk_summary(u[:, 2:], delta[:, 2:], A, B)
    >>> P, q = fd.combine_summaries(first, second)
    >>> bool(np.allclose(P, 1 / 16))
    True
    >>> state = np.array([[8.0]])
    >>> _, last = fd.selective_scan(u, delta, A, B, B, initial_state=state, return_last_state=True)
    >>> bool(np.allclose(P * state + q, last))
    True
    """
    call = ScanCall(u, delta, A, B, None, delta_bias=delta_bias, required=("u", "delta", "A", "B"))
    total, q = empty("sums of step sizes", call.shape[:-1], call.dtype), call.new_state()
    softplus = flag("delta_softplus", delta_softplus)
    call.scan(None, q, softplus)
    call.kernels.step_sum(call.delta, call.delta_bias, softplus, total=call.signal(total))
    return ChunkSummary(power(total, call.A), q)


@overload
def combine_summaries(  # type: ignore[overload-overlap]
    first: SSDChunkSummary, second: SSDChunkSummary
) -> SSDChunkSummary: ...
@overload
def combine_summaries(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike]
) -> ChunkSummary: ...
def combine_summaries(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike]
) -> ChunkSummary | SSDChunkSummary:
    r"""Compose the summaries of two chunks that follow each other.

    .. math::
        (P_2, q_2) \circ (P_1, q_1) = (P_2 \odot P_1,\; P_2 \odot q_1 + q_2)

    Parameters
    ----------
    first, second : ChunkSummary, SSDChunkSummary or pair of array_like
        The earlier and the later chunk.  Both have arrays P of one shape, whatever it is, and
        arrays q of that shape too; or, as in an `SSDChunkSummary`, with two axes more at its end.

    Returns
    -------
    summary : ChunkSummary or SSDChunkSummary
        New arrays of these shapes: float32 if all four are, else float64.  An `SSDChunkSummary` if
        q has two axes more than P.

    Raises
    ------
    ValueError, TypeError
        Something else than a pair, a dtype or a shape that does not fit, naming the argument.

    Notes
    -----
    Linear in the size of the arrays, in time and memory.  Associative up to rounding, with (1, 0)
    as its neutral element: a parallel prefix over summaries gives the states at all chunks' ends.

    References
    ----------
    docs/derivations.md §1.7.

    Examples
    --------
    >>> import fastderiv as fd
    >>> fd.combine_summaries(([0.5], [1.0]), ([0.25], [3.0]))
    ChunkSummary(P=array([0.125]), q=array([3.25]))
    """
    pairs = [
        array
        for name, pair in (("first", first), ("second", second))
        for array in _pair(name, pair)
    ]
    P1, q1, P2, q2 = common(as_arrays(("first", "first", "second", "second"), pairs))
    of_heads = q1.ndim == P1.ndim + 2 and q1.shape[:-2] == P1.shape
    if not of_heads:
        expect("first", q1, P1.shape, "shape of P in first")
    expect("second", P2, P1.shape, "shape of P in first")
    expect("second", q2, q1.shape, f"shape of {'q' if of_heads else 'P'} in first")
    P, q = (empty("the summary", a.shape, a.dtype) for a in (P1, q1))
    _combine(P1, q1, P2, q2, P, q)
    return SSDChunkSummary(P, q) if of_heads else ChunkSummary(P, q)


@undisturbed
def _combine(P1: NDArray, q1: NDArray, P2: NDArray, q2: NDArray, P: NDArray, q: NDArray) -> None:
    """OUT P = P2·P1, q = P2·q1 + q2, where an element of P may serve the last two axes of q."""
    for part in pieces(P.shape):
        np.multiply(P2[part], P1[part], out=P[part])
    spread = P2 if P.ndim == q.ndim else np.broadcast_to(P2[..., None, None], q.shape)
    for part in pieces(q.shape):
        np.multiply(spread[part], q1[part], out=q[part])
        q[part] += q2[part]


def _pair(name: str, pair: tuple[ArrayLike, ArrayLike]) -> tuple[ArrayLike, ArrayLike]:
    try:
        P, q = pair
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} is a {type(pair).__name__}; expected a ChunkSummary or another pair (P, q)"
        ) from None
    return P, q
