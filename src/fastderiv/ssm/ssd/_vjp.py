"""`ssd_scan_vjp`: the adjoint of Mamba-2's scan."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import assign, empty, flag
from ..._core.floats import undisturbed
from ..._core.fpstate import ieee
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
    cache: Any = None,
) -> SSDScanGrads:
    call = SSDCall(
        x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, dt_limit, dout, dlast_state,
        required=("dout", "x", "dt", "A", "B", "C"),
    )  # fmt: skip
    results = _Results(call)
    sums = _sums(call, flag("dt_softplus", dt_softplus), None, results)
    return _collect(call, sums, results)


class _Results:
    """What the kernel writes to, in the caller's shapes; dB and dC (Bt, L, G, N)."""

    def __init__(self, call: SSDCall) -> None:
        count = 1 if call.z is None else 2
        self.dx, *gate = empty("the gradients", (count, *call.shape), call.dtype)
        self.dz = gate[0] if gate else None
        self.ddt = empty("ddt", call.shape[:-1], call.dtype)
        self.dinitial_state = None if call.initial_state is None else call.new_state()
        kind = np.empty if call.heads else np.zeros  # without heads nothing is written
        self.dB, self.dC = (empty(name, call.B.shape, call.dtype, kind) for name in ("dB", "dC"))


def _sums(
    call: SSDCall, dt_softplus: bool, kept: NDArray | None, results: _Results
) -> NDArray[np.float64]:
    """OUT results; the sums over batch and time (H, 2 or more): dA, ddt_bias, dD."""
    ddt = results.ddt if call.batched else results.ddt[None]
    with ieee():  # the work is divided in floating point, too
        shares = call.kernels.ssd_adjoint(
            call.dout, call.x, call.dt, A=call.A, B=call.B, C=call.C, D=call.D, z=call.z,
            dt_bias=call.dt_bias, dt_softplus=dt_softplus, low=call.dt_limit[0],
            high=call.dt_limit[1], initial_state=call.initial_state, cu_seqlens=call.starts,
            longest=call.longest, dlast_state=call.dlast_state, kept=kept,
            dx=call.signal(results.dx), ddt=ddt, dz=call.signal(results.dz),
            dinitial_state=call.state(results.dinitial_state), dB=results.dB, dC=results.dC,
        )  # fmt: skip
    return shares[0] if len(shares) == 1 else _total(shares)


@undisturbed
def _total(shares: NDArray) -> NDArray:
    total: NDArray = shares.sum(axis=0)
    return total


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
