"""`linear_scan_vjp`: the adjoint of the linear recurrence."""

from __future__ import annotations

from typing import NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import F64, as_dtype, empty, flag
from ._scan import LinearCall


class LinearScanGrads(NamedTuple):
    """Gradients with respect to the arguments of `linear_scan`, each in its argument's shape.

    Examples
    --------
    >>> import numpy as np
    >>> import fastderiv as fd
    >>> grads = fd.linear_scan_vjp(np.ones(3), 0.5, np.ones(3))
    >>> grads._fields
    ('da', 'db', 'dinitial_state')
    >>> grads.dinitial_state is None
    True
    """

    da: NDArray
    db: NDArray
    dinitial_state: NDArray | None


def linear_scan_vjp(
    dout: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    *,
    axis: SupportsIndex = -1,
    initial_state: ArrayLike | None = None,
    reverse: bool = False,
    dlast_state: ArrayLike | None = None,
) -> LinearScanGrads:
    r"""The adjoint of `linear_scan`: gradients of a scalar with respect to its arguments.

    They follow from the gradients of that scalar with respect to the scan's results: backwards in
    time from `dlast_state`,

    .. math::
        \bar b_t = \bar y_t + a_{t+1} \bar b_{t+1}, \qquad \bar a_t = \bar b_t h_{t-1},

    and the gradient with respect to the initial state is :math:`a_0 \bar b_0`.

    Parameters
    ----------
    dout : array_like, shape of `b`
        Gradient with respect to the scan's result.
    a, b, axis, initial_state, reverse
        As they were passed to `linear_scan`.
    dlast_state : array_like, shape of `b` without `axis`, optional
        Gradient with respect to the last state; zeros by default.

    Returns
    -------
    grads : LinearScanGrads
        ``da``, ``db`` and ``dinitial_state``, each of the shape of its argument, None where the
        argument was None; 0-d ones are NumPy scalars.  float32 if the floating arguments are, else
        float64, as in `linear_scan`.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, naming the argument, what was expected and what came.
    AxisError
        `b` has no such axis.
    MemoryError
        A result larger than the machine's memory; the message says how many bytes.

    Notes
    -----
    O(size) time.  ``db`` is a scan itself, backwards; then the recurrence runs once more, forwards,
    and each state meets the gradient that it belongs to.  So no state is stored: memory beyond the
    results is about 1/8 MiB of scratch per thread, and a float64 for each recurrence where `a` has
    no time axis.

    Where `a` is shared by several elements, its gradient is a sum: over time in groups of 16
    products (8 in float64), which are added up in float64; then over all recurrences, in float64
    too, if `a` is a scalar.  The order is fixed: bits do not depend on strides or threads.

    References
    ----------
    docs/derivations.md §6.7.

    Examples
    --------
    What the last state owes to each input, and to the factor:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> grads = fd.linear_scan_vjp([0.0, 0.0, 0.0, 1.0], 0.5, [1.0, 0.0, 0.0, 0.0])
    >>> grads.db
    array([0.125, 0.25 , 0.5  , 1.   ])
    >>> print(grads.da)  # d/da of a³
    0.75
    """
    call = LinearCall(a, b, axis, initial_state, dout, dlast_state, required=("dout", "a", "b"))
    da = call.new_result("da") if call.a.shape == call.shape else np.empty((), call.dtype)
    varies = da.ndim > 0
    db = call.new_result("db")
    dinitial_state = None if call.initial_state is None else call.new_state()
    sums = None if varies else empty("the sums over time", call.state_shape, F64)
    call.kernels.linear_adjoint(
        call.dout, call.a, call.b, axis=call.axis, reverse=flag("reverse", reverse),
        initial_state=call.initial_state, dlast_state=call.dlast_state,
        da=da if varies else None, db=db, dinitial_state=dinitial_state, sums=sums,
        total=None if varies else da,
    )  # fmt: skip
    if sums is not None and call.a.ndim:
        da = as_dtype(sums, call.dtype)
    return LinearScanGrads(da[()], db, None if dinitial_state is None else dinitial_state[()])
