"""`ssd_scan_vjp`: the adjoint of Mamba-2's scan."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import empty, flag
from ..._core.cache import Cache
from ..._core.floats import undisturbed
from ..._core.fpstate import ieee
from .._calls import total
from ._call import SSDCall


class SSDScanGrads(NamedTuple):
    """Gradients with respect to the arguments of `ssd_scan`, each in its argument's shape.

    A gradient is None where the argument was None.

    Examples
    --------
    >>> import numpy as np
    >>> import fastderiv as fd
    >>> x, dt, A, B = np.ones((1, 1, 1)), np.ones((1, 1)), -np.ones(1), np.ones((1, 1, 1))
    >>> grads = fd.ssd_scan_vjp(x, x, dt, A, B, B)
    >>> grads._fields
    ('dx', 'ddt', 'dA', 'dB', 'dC', 'dD', 'dz', 'ddt_bias', 'dinitial_state')
    >>> grads.dD is None
    True
    """

    dx: NDArray
    ddt: NDArray
    dA: NDArray
    dB: NDArray
    dC: NDArray
    dD: NDArray | None
    dz: NDArray | None
    ddt_bias: NDArray | None
    dinitial_state: NDArray | None


def ssd_scan_vjp(
    dout: ArrayLike,
    x: ArrayLike,
    dt: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    dt_bias: ArrayLike | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    dlast_state: ArrayLike | None = None,
    cache: Cache | None = None,
) -> SSDScanGrads:
    r"""The adjoint of `ssd_scan`: gradients of a scalar with respect to its arguments.

    They follow from the gradients of that scalar with respect to the scan's results.

    With :math:`\bar h_l` the gradient with respect to the state after step l, and :math:`\bar y_l`
    that with respect to :math:`h_l C_l`, backwards in time from :math:`\bar h_L` = `dlast_state`:

    .. math::
        \bar h_l = \bar y_l \otimes C_l + e^{\Delta_{l+1} A}\, \bar h_{l+1}

    from which every gradient is a product or a sum.

    Parameters
    ----------
    dout : array_like, shape of `x`
        Gradient with respect to the scan's result.
    x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, initial_state, cu_seqlens
        As they were passed to `ssd_scan`.
    dlast_state : array_like, shape (batch, H, P, N), optional
        Gradient with respect to the last state; zeros by default.  With `cu_seqlens` it is
        (sequences, H, P, N).
    cache : object, optional
        What `ssd_scan` returned for the same arguments.  Without it the states run forward once
        more.

    Returns
    -------
    grads : SSDScanGrads
        ``dx``, ``ddt``, ``dA``, ``dB``, ``dC``, ``dD``, ``dz``, ``ddt_bias`` and
        ``dinitial_state``, each of the shape of its argument, None where the argument was None.
        Those of B and C are summed over the heads of a group.  ``dx`` and ``dz`` lie in one piece
        of memory, which lives as long as either of them.  Where a step size lies outside of
        `dt_limit`, before it is limited, ``ddt`` is 0.  float32 if every floating argument is, else
        float64.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, or a cache of another call; the message names the
        argument, what was expected and what came.
    MemoryError
        Results or scratch larger than the machine's memory; the message says how many bytes.

    Notes
    -----
    O(batch·L·H·P·N) time.  Sequences are taken in chunks of 64 steps, or one of up to 128, in which
    everything is a matrix product: 5·P·N + 64·P multiply–adds a step and head, one P·N less with a
    cache, P·N + 32·P more with a gate, as the gradient of z needs the scan's result.  The steps of
    a single short chunk take 128·P, unless a state enters or leaves it.

    Memory beyond inputs and outputs has four parts.  States before chunks, of at most 6 heads, 32
    chunks and 2**21 numbers a thread (of 8 chunks of one head, if these are more), and in sequences
    of more chunks one for each 32 of them: 7 MiB in float32 at P·N = 64·128, and 7 MiB more for 65
    thousand steps.  A cache saves these.  Shares of ``dB`` and ``dC`` that await their summation
    take at most a sixth of inputs and outputs.  Sums over the batch have up to 32 shares of P + 2
    numbers a head.  Scratch for a chunk is about 1 MiB a thread at P·N = 64·128, and grows with P,
    N and P·N.

    Sums are taken in a fixed order: the bits of the result do not depend on the number of threads,
    nor on strides.  No gradient is formed as a difference of sums over many steps, so that it stays
    accurate however strong the decay is: float64 is within 1e-12, float32 within 1e-5 of the exact
    gradient, relative to its largest magnitude, or to the sum of its terms' magnitudes where a few
    of them cancel; typically 1e-15 and 5e-7.  Decays below e**-64, in float64 e**-600, count as 0.
     NaN and infinities stay in their head, and in the sums over heads
    that dB and dC are; within a head, they may spread over their chunk, and dt, A and the states
    over the whole sequence.  A gradient that overflows on the way may become NaN.

    References
    ----------
    docs/derivations.md §6.4.

    Examples
    --------
    The gradient of the last output with respect to every input decays as the state forgets:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> x = one = np.ones((4, 1, 1))
    >>> dout = np.array([0.0, 0.0, 0.0, 1.0]).reshape(4, 1, 1)
    >>> grads = fd.ssd_scan_vjp(dout, x, np.ones((4, 1)), -np.log([2]), one, one)
    >>> grads.dx.ravel()
    array([0.125, 0.25 , 0.5  , 1.   ])

    The states that the scan passed through serve its adjoint too:

    >>> y, cache = fd.ssd_scan(x, np.ones((4, 1)), [-1], one, one, return_cache=True)
    >>> fd.ssd_scan_vjp(dout, x, np.ones((4, 1)), [-1], one, one, cache=cache).dA.shape
    (1,)
    """
    call = SSDCall(
        x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, dt_limit, dout, dlast_state,
        dt_softplus=flag("dt_softplus", dt_softplus),
        required=("dout", "x", "dt", "A", "B", "C"),
    )  # fmt: skip
    return ssd_adjoint(call, None if cache is None else call.kept(cache))


def ssd_adjoint(call: SSDCall, kept: NDArray | None = None) -> SSDScanGrads:
    """The gradients; with the states that the scan has kept it does not run once more."""
    results = _Results(call)
    sums = _sums(call, kept, results)
    return _collect(call, sums, results)


class _Results:
    """What the kernel writes to, in the caller's shapes; dB and dC (Bt, L, G, N)."""

    def __init__(self, call: SSDCall) -> None:
        count = 1 if call.z is None else 2
        self.dx, *gate = empty("the gradients", (count, *call.shape), call.dtype)
        self.dz = gate[0] if gate else None
        self.ddt = empty("ddt", call.shape[:-1], call.dtype)
        self.dinitial_state = None if call.initial_state is None else call.new_state()
        self.dB = empty("dB", call.B.shape, call.dtype)
        self.dC = empty("dC", call.B.shape, call.dtype)
        if call.heads == 0:  # nothing is written
            self.dB[...] = self.dC[...] = 0


def _sums(call: SSDCall, kept: NDArray | None, results: _Results) -> NDArray[np.float64]:
    """OUT results; the sums over batch and time (H, 2 or more): dA, ddt_bias, dD."""
    with ieee():  # the work is divided in floating point, too
        shares = call.kernels.ssd_adjoint(
            call.dout, call.x, call.dt, A=call.A, B=call.B, C=call.C, D=call.D, z=call.z,
            dt_bias=call.dt_bias, dt_softplus=call.dt_softplus, low=call.dt_limit[0],
            high=call.dt_limit[1], initial_state=call.initial_state, cu_seqlens=call.starts,
            longest=call.longest, dlast_state=call.dlast_state, kept=kept,
            dx=call.signal(results.dx), ddt=call.signal(results.ddt), dz=call.signal(results.dz),
            dinitial_state=call.state(results.dinitial_state), dB=results.dB, dC=results.dC,
        )  # fmt: skip
    return total(shares)


@undisturbed
def _rounded(sums: NDArray, dtype: np.dtype) -> NDArray:
    return sums.astype(dtype)


def _collect(call: SSDCall, sums: NDArray, results: _Results) -> SSDScanGrads:
    """The kernel's results in the arguments' shapes."""
    sums = _rounded(sums, call.dtype)
    dD = None
    if call.D is not None:
        dD = (sums[:, 2] if call.D.ndim == 1 else sums[:, 2:]).copy()
    return SSDScanGrads(
        dx=results.dx,
        ddt=results.ddt,
        dA=sums[:, 0].copy(),
        dB=results.dB if call.batched else results.dB[0],
        dC=results.dC if call.batched else results.dC[0],
        dD=dD,
        dz=results.dz,
        ddt_bias=None if call.dt_bias is None else sums[:, 1].copy(),
        dinitial_state=results.dinitial_state,
    )
