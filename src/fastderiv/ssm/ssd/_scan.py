"""`ssd_scan`: Mamba-2's scan."""

from __future__ import annotations

import math
from typing import Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import as_dtype, copy_back, flag
from ..._core.cache import Cache
from ._call import SSDCall


@overload
def ssd_scan(
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
    return_last_state: Literal[False] = False,
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    return_cache: Literal[False] = False,
    out: np.ndarray | None = None,
) -> NDArray: ...
@overload
def ssd_scan(
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
    return_last_state: Literal[True],
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    return_cache: Literal[False] = False,
    out: np.ndarray | None = None,
) -> tuple[NDArray, NDArray]: ...
@overload
def ssd_scan(
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
    return_last_state: Literal[False] = False,
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    return_cache: Literal[True],
    out: np.ndarray | None = None,
) -> tuple[NDArray, Cache]: ...
@overload
def ssd_scan(
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
    return_last_state: Literal[True],
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    return_cache: Literal[True],
    out: np.ndarray | None = None,
) -> tuple[NDArray, NDArray, Cache]: ...
@overload
def ssd_scan(
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
    return_last_state: bool = False,
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    return_cache: bool = False,
    out: np.ndarray | None = None,
) -> NDArray | tuple[NDArray | Cache, ...]: ...
def ssd_scan(
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
    return_last_state: bool = False,
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    return_cache: bool = False,
    out: np.ndarray | None = None,
) -> NDArray | tuple[NDArray | Cache, ...]:
    r"""The scan of Mamba-2 (state space duality, SSD), in one fused pass.

    For every batch item and head, with :math:`\Delta_l` the step size
    :math:`\mathrm{softplus}(dt_l + b)` (or :math:`dt_l + b`), limited to `dt_limit`,

    .. math::
        h_l = e^{\Delta_l A}\, h_{l-1} + \Delta_l\, x_l \otimes B_l, \qquad
        y_l = (h_l C_l + D x_l)\,\mathrm{silu}(z_l).

    The first ten arguments mean what they mean in ``mamba_ssm``'s ``mamba_chunk_scan_combined``.
    Its chunk size is missing, its ``initial_states``, ``seq_idx`` and ``return_final_states`` are
    `initial_state`, `cu_seqlens` and `return_last_state` here, and pass these by name.

    Parameters
    ----------
    x : array_like, shape (batch, L, H, P) or (L, H, P)
        Input: H heads of P numbers.  Without the batch axis, every other batch axis is dropped too.
    dt : array_like, shape (batch, L, H)
        Step sizes, before bias, softplus and limits.
    A : array_like, shape (H,)
        Continuous-time transition of a head; negative where the state is to decay.
    B, C : array_like, shape (batch, L, G, N)
        Input and output coefficients; G divides H, and head h takes group ``h // (H // G)``.
    D : array_like, shape (H,) or (H, P), optional
        Skip connection.
    z : array_like, shape of `x`, optional
        Gate: the result is multiplied by silu(z).
    dt_bias : array_like, shape (H,), optional
        Added to `dt`.
    dt_softplus : bool, optional
        Whether softplus is applied to ``dt + dt_bias``.
    dt_limit : pair of float, optional
        The least and the largest step size.
    return_last_state : bool, optional
        Whether to return the state after the last step too.
    initial_state : array_like, shape (batch, H, P, N), optional
        State before the first step; zeros by default.
    cu_seqlens : array_like of int, shape (k + 1,), optional
        Boundaries of k sequences packed along L with batch 1, from 0 to L, non-decreasing.  The
        state restarts at each of them; `initial_state` and the last state are then (k, H, P, N).
    return_cache : bool, optional
        Whether to return also what `ssd_scan_vjp` needs.  Without a cache it runs forward once
        more.
    out : ndarray, optional
        Where to write the result: exact shape and dtype, any strides, no memory shared with an
        input.

    Returns
    -------
    out : ndarray, shape of `x`
        float32 if every floating argument is, else float64.
    last_state : ndarray, shape (batch, H, P, N)
        Only if `return_last_state`.
    cache : object
        Only if `return_cache`.  It is opaque and immutable, can be used any number of times with
        the same arguments (C, D and z, on which no state depends, may be others), and cannot be
        pickled.

    Raises
    ------
    ValueError, TypeError
        A shape or dtype that does not fit, naming the argument, what was expected and what came.
    MemoryError
        Results or scratch larger than the machine's memory; the message says how many bytes.

    Notes
    -----
    O(batch·L·H·P·N) time.  Memory beyond inputs and outputs is scratch of a thread: the states of
    at most 8 heads, and up to 1 MiB for short sequences; inputs of any strides are read in place
    (other dtypes, byte orders and misaligned arrays, a misaligned `out` too, go through a copy).  A
    cache holds a state (H, P, N) for every 64 steps that a sequence begins, which is N/64 times the
    memory of `x` for long sequences.  For its checksums, arguments that are not C-contiguous are
    copied, one at a time.  The bits of the result do not depend on strides, on threads, or on what
    else is returned.

    float64 is within 1e-12, float32 within 3e-6 of the exact result, relative to its largest
    magnitude; typically 1e-15 and 3e-7, for strong and for weak decay, as the decay itself is never
    rounded into the state.  The state has the working precision: where it decays by less than 1e-4
    a step, the rounding errors of its increments may add up beyond that over tens of thousands of
    float32 steps: 5e-6 after 65536 steps at 1e-5, and more if all increments have one sign.

    References
    ----------
    T. Dao, A. Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through
    Structured State Space Duality", 2024, arXiv:2405.21060.

    Examples
    --------
    One head of one number that forgets with rate 1 and is fed a single impulse:

    >>> import numpy as np
    >>> import fastderiv as fd
    >>> x = np.array([1.0, 0.0, 0.0, 0.0]).reshape(4, 1, 1)
    >>> dt = np.full((4, 1), np.log(2))
    >>> one = np.ones((4, 1, 1))
    >>> fd.ssd_scan(x, dt, [-1], one, one).ravel() / np.log(2)
    array([1.   , 0.5  , 0.25 , 0.125])

    Sixteen steps of 4 heads whose states are 8 by 6, at once and in two halves:

    >>> rng = np.random.default_rng(0)
    >>> x, dt = rng.normal(size=(16, 4, 8)), rng.normal(size=(16, 4))
    >>> B, C = rng.normal(size=(2, 16, 1, 6))
    >>> A = -np.arange(1.0, 5)
    >>> y, last = fd.ssd_scan(x, dt, A, B, C, dt_softplus=True, return_last_state=True)
    >>> first, state = fd.ssd_scan(
    ...     x[:9], dt[:9], A, B[:9], C[:9], dt_softplus=True, return_last_state=True
    ... )
    >>> second = fd.ssd_scan(
    ...     x[9:], dt[9:], A, B[9:], C[9:], dt_softplus=True, initial_state=state
    ... )
    >>> np.allclose(np.concatenate([first, second]), y)
    True
    >>> last.shape
    (4, 8, 6)
    """
    call = SSDCall(
        x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, dt_limit,
        dt_softplus=flag("dt_softplus", dt_softplus),
    )  # fmt: skip
    base = call.new_result() if out is None else call.checked_out(out)
    result = base if out is None else as_dtype(base, call.dtype)
    last = call.new_state() if flag("return_last_state", return_last_state) else None
    kept = call.new_kept() if flag("return_cache", return_cache) else None
    call.scan(result, last, kept)
    if out is not None:
        copy_back(result, base)
        result = out
    wanted = (result,) if last is None else (result, last)
    if kept is not None:
        return (*wanted, call.cache(kept))
    return wanted if last is not None else result
