"""`selective_scan_vjp`: the adjoint of the scan."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import assign, empty, flag
from ..._core.cache import Cache
from ..._core.fpstate import ieee
from .._calls import total
from ._cache import Kept, expect_signals, recalled
from ._scan import ScanCall


class SelectiveScanGrads(NamedTuple):
    """Gradients with respect to the arguments of `selective_scan`, each in its argument's shape.

    A gradient is None where the argument was None.

    Examples
    --------
    >>> import numpy as np
    >>> import fastderiv as fd
    >>> one = np.ones((1, 1))
    >>> grads = fd.selective_scan_vjp(one, one, one, -one, one, one)
    >>> grads._fields
    ('du', 'ddelta', 'dA', 'dB', 'dC', 'dD', 'dz', 'ddelta_bias', 'dinitial_state')
    >>> grads.dD is None
    True
    """

    du: NDArray
    ddelta: NDArray
    dA: NDArray
    dB: NDArray
    dC: NDArray
    dD: NDArray | None
    dz: NDArray | None
    ddelta_bias: NDArray | None
    dinitial_state: NDArray | None


def selective_scan_vjp(
    dout: ArrayLike,
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = False,
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    dlast_state: ArrayLike | None = None,
    cache: Cache | None = None,
) -> SelectiveScanGrads:
    r"""The adjoint of `selective_scan`: gradients of a scalar with respect to its arguments.

    They follow from the gradients of that scalar with respect to the scan's results.

    With :math:`\bar h_l` the gradient with respect to the state after step l, and :math:`\bar y_l`
    that with respect to :math:`C_l \cdot h_l`, backwards in time from :math:`\bar h_L` =
    `dlast_state`:

    .. math::
        \bar h_l = C_l \bar y_l + e^{\Delta_{l+1} A} \odot \bar h_{l+1}

    from which every gradient is a product or a sum.

    Parameters
    ----------
    dout : array_like, shape of `u`
        Gradient with respect to the scan's result.
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, cu_seqlens
        As they were passed to `selective_scan`.
    dlast_state : array_like, shape (batch, D, N), optional
        Gradient with respect to the last state; zeros by default.  With `cu_seqlens` it is
        (sequences, D, N).
    cache : object, optional
        What `selective_scan` returned for the same arguments.  Without it the scan runs once more.

    Returns
    -------
    grads : SelectiveScanGrads
        ``du``, ``ddelta``, ``dA``, ``dB``, ``dC``, ``dD``, ``dz``, ``ddelta_bias`` and
        ``dinitial_state``, each of the shape of its argument, None where the argument was None.
        Those of B and C that channels share are summed over these channels.  ``du``, ``ddelta`` and
        ``dz`` lie in one piece of memory, which lives as long as any of them.  float32 if every
        floating argument is, else float64.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, naming the argument, what was expected and what came; a
        cache of another call.  (That `u`, `delta` or `z` is another is found while the gradients
        are computed: such an error comes as late as they would.)
    MemoryError
        Results or scratch larger than the machine's memory; the message says how many bytes.

    Notes
    -----
    O(batch·D·L·N) time, about three scans, or two with a cache.  States are never stored for all
    steps nor recovered by division: the scan runs once more, leaving its state every 32 steps, and
    is replayed from there on the way back.  A cache has these states already, or every second or
    fourth of them where N is larger (see `selective_scan`): then a half or three quarters of the
    scan run once more.  A cache changes no bit of the gradients.

    Memory beyond inputs and outputs has four parts.  Without a cache, checkpoints are kept for 64
    to 256 bytes of channels at once: at most 8·L·N bytes per thread (128·L at N = 16; with
    `cu_seqlens`, L is that of the longest sequence).  Shares of ``dB`` and ``dC`` that await their
    summation take at most a twelfth of inputs and outputs.  What is summed over the batch has up to
    32 shares, each of N + 2 numbers a channel, or 3N + 2 where B and C are constant.  Scratch takes
    about 1/4 MiB per thread at N = 16; it grows with N, by 8 KiB in float32 and by 14 KiB in
    float64.

    Sums are taken in a fixed order: the bits of the result do not depend on the number of threads,
    nor on strides.  float64 is within 1e-12, float32 within 2e-5 of the exact gradient, relative to
    its largest magnitude; typically 1e-15 and 5e-7.  NaN and infinities stay in their channel; a
    gradient that overflows on the way may become NaN instead of an infinity.

    References
    ----------
    docs/derivations.md §1.4 and §6.8.

    Examples
    --------
    The gradient of the last output with respect to every input decays as the state forgets:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> u = np.ones((1, 4))
    >>> one = np.ones((1, 1))
    >>> grads = fd.selective_scan_vjp([[0, 0, 0, 1]], u, u, -np.log(2) * one, one, one)
    >>> grads.du
    array([[0.125, 0.25 , 0.5  , 1.   ]])
    """
    call = ScanCall(
        u, delta, A, B, C, D, z, delta_bias, initial_state, cu_seqlens, dout, dlast_state,
        required=("dout", "u", "delta", "A", "B", "C"),
    )  # fmt: skip
    softplus = flag("delta_softplus", delta_softplus)
    kept, signals = recalled(call, cache, softplus)
    grads = scan_adjoint(call, softplus, kept)
    expect_signals(kept, signals)
    return grads


def scan_adjoint(
    call: ScanCall, delta_softplus: bool, kept: Kept | None = None
) -> SelectiveScanGrads:
    """The gradients; with what the scan has kept it does not run once more.  OUT kept.checks."""
    results = _Results(call)
    sums = _sums(call, delta_softplus, results, kept or Kept())
    return _collect(call, sums, results)


class _Results:
    """What the kernel writes to, in the caller's shapes; dB and dC (Bt, G, N, L)."""

    def __init__(self, call: ScanCall) -> None:
        # They are one array: allocators return several large ones to the system, and getting their
        # memory back would take a quarter of the time.
        count = 2 if call.z is None else 3
        self.du, self.ddelta, *gate = empty("the gradients", (count, *call.shape), call.dtype)
        self.dz = gate[0] if gate else None
        self.dinitial_state = None if call.initial_state is None else call.new_state()
        self.dB, self.dC = _varying("dB", call.B), _varying("dC", call.C)


def _varying(name: str, coefficient: NDArray) -> NDArray | None:
    """Zeros for the gradient of a time-varying B or C; a constant one's is among the sums."""
    if coefficient.ndim == 2:
        return None
    return empty(name, coefficient.shape, coefficient.dtype, np.zeros)


def _sums(call: ScanCall, delta_softplus: bool, results: _Results, kept: Kept) -> NDArray:
    """OUT results; the sums over batch and time (rows, D)."""
    with ieee():  # the number of shares is computed in floating point, too
        shares = call.kernels.adjoint(
            call.dout, call.u, call.delta, A=call.A, B=call.B, C=call.C, D=call.D, z=call.z,
            delta_bias=call.delta_bias, delta_softplus=delta_softplus,
            initial_state=call.initial_state, cu_seqlens=call.starts, longest=call.longest,
            dlast_state=call.dlast_state, du=call.signal(results.du),
            ddelta=call.signal(results.ddelta), dz=call.signal(results.dz),
            dinitial_state=call.state(results.dinitial_state), dB=results.dB, dC=results.dC,
            states=kept.states, span=kept.span, checks=kept.checks,
        )  # fmt: skip
    return total(shares)


def _collect(call: ScanCall, sums: NDArray, results: _Results) -> SelectiveScanGrads:
    """The kernel's results in the arguments' shapes.

    Rows of `sums` (rows, D) are dA state by state, then dB and dC likewise where they are constant,
    dD, and ddelta_bias.
    """
    N = call.A.shape[1]
    states = range(1 + (results.dB is None) + (results.dC is None))
    dA, *constant = (_turned(sums[i * N : (i + 1) * N]) for i in states)
    B_shape, C_shape = call.coefficient_shapes
    dB = constant.pop(0) if results.dB is None else results.dB.reshape(B_shape)
    dC = constant.pop(0) if results.dC is None else results.dC.reshape(C_shape)
    return SelectiveScanGrads(
        du=results.du,
        ddelta=results.ddelta,
        dA=dA,
        dB=dB,
        dC=dC,
        dD=None if call.D is None else sums[-2].copy(),
        dz=results.dz,
        ddelta_bias=None if call.delta_bias is None else sums[-1].copy(),
        dinitial_state=results.dinitial_state,
    )


def _turned(a: NDArray) -> NDArray:
    """(N, D) -> (D, N), in an array of its own."""
    turned = np.empty(a.shape[::-1], a.dtype)
    assign(turned, a.T)
    return turned
