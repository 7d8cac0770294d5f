"""`transition_product`: the product of the scan's transitions, by either side of the theorem."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core import maths
from ..._core.arrays import empty, pieces, working
from ..._core.floats import undisturbed
from ...subsets import subset_logsumexp
from ._scan import check_parameters


def transition_product(
    preactivation: ArrayLike, A: ArrayLike, *, method: Literal["closed", "subsets"] = "closed"
) -> NDArray:
    r"""The product of the scan's transitions over a range of steps, by either side of the theorem.

    .. math::
        \prod_l e^{\mathrm{softplus}(\delta_l) A}
        = \Big(\sum_{S \subseteq \{1..L\}} e^{\sum_{i \in S} \delta_i}\Big)^{A}

    Parameters
    ----------
    preactivation : array_like, shape (..., D, L)
        The :math:`\delta` of each step, bias included, before softplus.
    A : array_like, shape (D, N)
    method : {"closed", "subsets"}, optional
        "closed" evaluates the left side from L terms; "subsets" the right side, with all 2**L terms
        formed one by one.

    Returns
    -------
    product : ndarray, shape (..., D, N)
        float32 if both arguments are, else float64.

    Raises
    ------
    ValueError, TypeError
        Shapes or dtypes that do not fit, an unknown method, or more than 62 steps by "subsets".

    Notes
    -----
    O(D·(L + N)) time by "closed", O(D·(2**L + N)) by "subsets", for every item of the leading axes;
    memory beyond inputs and result is O(D) for each, and some KiB per thread.  These are two
    independent routes to one number, and so the library's own end-to-end check.  "subsets" works in
    the log domain relative to the largest term, as any one term may overflow.

    References
    ----------
    docs/derivations.md §1.3.

    Examples
    --------
    >>> import numpy as np
    >>> import fastderiv as fd
    >>> delta = np.array([[0.0, 1.0, 400.0, 400.0]])
    >>> A = np.array([[-0.01, -0.5]])
    >>> closed = fd.transition_product(delta, A)
    >>> subsets = fd.transition_product(delta, A, method="subsets")
    >>> bool(np.allclose(closed, subsets, rtol=1e-13, atol=0))
    True
    """
    if method not in ("closed", "subsets"):
        raise ValueError(f"method is {method!r}; expected 'closed' or 'subsets'")
    delta, rates = working(preactivation=preactivation, A=A)
    if delta.ndim < 2:
        raise ValueError(f"preactivation has shape {delta.shape}; expected (..., D, L)")
    if method == "subsets" and delta.shape[-1] > 62:
        raise ValueError(
            f"preactivation has {delta.shape[-1]} steps; expected at most 62 by method 'subsets'"
        )
    check_parameters(rates, delta.shape[-2])
    return power(
        subset_logsumexp(delta, method="closed" if method == "closed" else "enumerate"), rates
    )


@undisturbed
def power(total: NDArray, A: NDArray) -> NDArray:
    """exp(total[..., None] · A), (..., D) and (D, N) -> (..., D, N).

    It is formed in place, and in pieces between which signals are answered.
    """
    product = empty("the product", (*total.shape, A.shape[1]), A.dtype)
    if not product.size:
        return product
    rows, totals = product.reshape(-1, *A.shape), total.reshape(-1, A.shape[0])
    for part in pieces(rows.shape):
        item, channel, state = part + (slice(None),) * (3 - len(part))
        piece = rows[item, channel, state]
        np.multiply(totals[item, channel, None], A[channel, state], out=piece)
        maths.exp_in_place(piece)
    return product
