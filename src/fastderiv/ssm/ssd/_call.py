"""`SSDCall`: the checked arguments of functions over whole sequences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._core.arrays import empty, expect, number
from ..._core.cache import Cache, checksums, keep, opened
from ..._core.caches import expect_shape
from ..._core.dispatch import kernels
from ..._core.products import contiguous
from .._calls import SequenceCall
from .._sequences import check_starts

if TYPE_CHECKING:
    from .._kernels import Kernels

_kernels: dict[np.dtype, Kernels] = kernels("ssm")
_REQUIRED = ("x", "dt", "A", "B", "C")
_STATES_ARE_OF = ("x", "dt", "A", "B", "dt_bias", "initial_state")
_NAMES = (*_REQUIRED, "D", "z", "dt_bias", "initial_state", "dout", "dlast_state")


class SSDCall(SequenceCall):
    """The checked arguments of one call: of a scan, its adjoint, or what takes some of theirs.

    They are arrays of one dtype as kernels take them: x, z (Bt, L, H, P), dt (Bt, L, H), B and C
    (Bt, L, G, N), D (H,) or (H, P), states (segments, H, P, N).  Those that are not `required` may
    be None and stay None; without x, P is that of a state or 1.
    """

    NAMES = _NAMES
    ALWAYS = len(_REQUIRED)
    STATE = "H, P, N"
    CHUNK = 64  # steps between kept states, as SSD_CHUNK in _problem.pxi

    def __init__(
        self,
        x: ArrayLike | None,
        dt: ArrayLike,
        A: ArrayLike,
        B: ArrayLike,
        C: ArrayLike | None,
        D: ArrayLike | None = None,
        z: ArrayLike | None = None,
        dt_bias: ArrayLike | None = None,
        initial_state: ArrayLike | None = None,
        cu_seqlens: ArrayLike | None = None,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        dout: ArrayLike | None = None,
        dlast_state: ArrayLike | None = None,
        *,
        dt_softplus: bool = False,
        required: tuple[str, ...] = _REQUIRED,
    ) -> None:
        given: Any = (x, dt, A, B, C, D, z, dt_bias, initial_state, dout, dlast_state)
        self.x, self.dt, self.A, self.B, self.C, self.D, self.z, *arrays = self.take(
            given, required
        )
        self.dt_bias, self.initial_state, self.dout, self.dlast_state = arrays
        self.dtype = self.dt.dtype
        self.kernels = _kernels[self.dtype]
        self.dt_limit, self.dt_softplus = check_limits(dt_limit), dt_softplus
        self._check_signals()
        self._check_heads()
        self._check_coefficients()
        self.starts = None
        self.longest = self.dt.shape[-2]
        segments: tuple[int, ...] = self.dt.shape[:-2]
        if cu_seqlens is not None:
            name, signal = ("dt", self.dt) if self.x is None else ("x", self.x)
            axes = 3 if self.x is None else 4
            self.starts, self.longest = check_starts(
                cu_seqlens, name, signal.shape, axes=axes, time=1 - axes if self.batched else 0
            )
            segments = (len(self.starts) - 1,)
        self.state_shape = (*segments, self.heads, self.width, self.states)
        self.check_states()
        if not self.batched:
            self._add_batch_axis()

    def _check_signals(self) -> None:
        """x, dt, z and dout; whether there is a batch axis."""
        if self.x is not None:
            if self.x.ndim not in (3, 4):
                wanted = "(batch, L, H, P) or (L, H, P)"
                raise ValueError(f"x has shape {self.x.shape}; expected {wanted}")
            self.shape = self.x.shape
            self.batched = self.x.ndim == 4
            meaning = "(batch, L, H)" if self.batched else "(L, H)"
            expect("dt", self.dt, self.shape[:-1], meaning)
        else:
            if self.dt.ndim not in (2, 3):
                raise ValueError(f"dt has shape {self.dt.shape}; expected (batch, L, H) or (L, H)")
            self.batched = self.dt.ndim == 3
            self.shape = (*self.dt.shape, 1)
        meaning = "(batch, L, H, P)" if self.batched else "(L, H, P)"
        for name, array in ("z", self.z), ("dout", self.dout):
            if array is not None:
                expect(name, array, self.shape, meaning)
        self.steps, self.heads, self.width = self.shape[-3:]

    def _check_heads(self) -> None:
        check_heads(self.heads, self.width, A=self.A, D=self.D, dt_bias=self.dt_bias)

    def _check_coefficients(self) -> None:
        """B and C (batch, L, G, N), of one shape; G divides H."""
        batch = self.shape[:-3]
        self.states = check_coefficient("B", self.B, (*batch, self.steps), self.heads)
        if self.C is not None:
            states = check_coefficient("C", self.C, (*batch, self.steps), self.heads)
            if self.C.shape[-2:] != self.B.shape[-2:] or states != self.states:
                raise ValueError(f"C has shape {self.C.shape}; expected that of B, {self.B.shape}")

    def _add_batch_axis(self) -> None:
        for name in "x", "dt", "B", "C", "z", "dout":
            array = getattr(self, name)
            if array is not None:
                setattr(self, name, array[None])
        self.initial_state = self.state(self.initial_state)
        self.dlast_state = self.state(self.dlast_state)

    @property
    def kept_shape(self) -> tuple[int, int, int, int]:
        """The shape of the states before each chunk of CHUNK steps: _problem.pxi says which."""
        if self.starts is None:
            slots = math.prod(self.shape[:-3]) * -(-self.steps // self.CHUNK)
        else:
            slots = self.steps // self.CHUNK + len(self.starts) - 1
        return slots, self.heads, self.states, self.width

    def new_kept(self) -> NDArray:
        """An array for these states."""
        return empty("the states of the cache", self.kept_shape, self.dtype)

    def scan(
        self, out: NDArray | None, last_state: NDArray | None, kept: NDArray | None = None
    ) -> None:
        """OUT out, last_state: arrays in the caller's shapes, or None; kept: see `new_kept`."""
        low, high = self.dt_limit
        self.kernels.ssd_scan(
            self.x, self.dt, self.A, B=self.B, C=self.C, D=self.D, z=self.z, dt_bias=self.dt_bias,
            dt_softplus=self.dt_softplus, low=low, high=high, initial_state=self.initial_state,
            cu_seqlens=self.starts, last_state=self.state(last_state), kept=kept,
            out=self.signal(out),
        )  # fmt: skip

    def cache(self, kept: NDArray) -> Cache:
        """What the caller may keep for the adjoint."""
        about = self._sizes(), self._options(), self._operands()
        return keep("ssd_scan", about, (), (kept,))

    def kept(self, cache: Cache) -> NDArray:
        """The states in the caller's cache, if it is of this call."""
        (sizes, options, operands), _, (kept,) = opened(cache, "ssd_scan")
        expect_shape("(dtype, batch, L, H, P, G, N)", sizes, self._sizes())
        names = "dt_softplus", "dt_limit", "cu_seqlens", *_STATES_ARE_OF
        came, wanted = options + operands, self._options() + self._operands()
        for name, then, now in zip(names, came, wanted, strict=True):
            if then != now:
                raise ValueError(f"cache is of a call with another {name}")
        return kept

    def _sizes(self) -> tuple[Any, ...]:
        return (self.dtype, *self.x.shape, *self.B.shape[-2:])

    def _options(self) -> tuple[Any, ...]:
        return (
            self.dt_softplus,
            self.dt_limit,
            None if self.starts is None else self.starts.tobytes(),
        )

    def _operands(self) -> tuple[int | None, ...]:
        """Checksums of what states are computed from; one array at a time is copied for it."""
        arrays = ((name, getattr(self, name)) for name in _STATES_ARE_OF)
        return tuple(
            None if a is None else checksums((contiguous(name, a),))[0] for name, a in arrays
        )


def check_limits(dt_limit: tuple[float, float]) -> tuple[float, float]:
    """The least and the largest step size."""
    try:
        low, high = dt_limit
    except (TypeError, ValueError):
        raise TypeError(f"dt_limit is {dt_limit!r}; expected a pair of numbers") from None
    low, high = number("dt_limit[0]", low), number("dt_limit[1]", high)
    if not low <= high:
        raise ValueError(f"dt_limit is {dt_limit!r}; expected two numbers in ascending order")
    return low, high


def check_heads(
    heads: int, width: int, *, A: NDArray, D: NDArray | None, dt_bias: NDArray | None
) -> None:
    """Check A, dt_bias (H,) and D (H,) or (H, P)."""
    for name, array in ("A", A), ("dt_bias", dt_bias):
        if array is not None:
            expect(name, array, (heads,), "(H,)")
    if D is not None and D.shape not in ((heads,), (heads, width)):
        raise ValueError(
            f"D has shape {D.shape}; expected (H,) = {(heads,)} or (H, P) = {(heads, width)}"
        )


def check_coefficient(name: str, a: NDArray, before: tuple[int, ...], heads: int) -> int:
    """B or C, (*before, G, N) with G dividing H; N."""
    if a.ndim == len(before) + 2 and a.shape[:-2] == before:
        groups = a.shape[-2]
        if groups and heads % groups == 0:
            return a.shape[-1]
    letters = ("batch", "L")[-len(before) :]
    meaning = f"({', '.join((*letters, 'G', 'N'))})"
    at = ", ".join(map(str, (*before, "G", "N")))
    raise ValueError(
        f"{name} has shape {a.shape}; expected {meaning} = ({at}) with G dividing H = {heads}"
    )
