"""`lstm` and its adjoint as users call them."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._core.arrays import as_arrays, common, expect, integers
from .._core.dispatch import kernels

_kernels = kernels("nn")
_NAMES = ("x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "initial_state[0]", "initial_state[1]")
_ADJOINTS = ("dh", "dlast_state[0]", "dlast_state[1]")
_OPTIONAL = (*_NAMES[3:], *_ADJOINTS[1:])

State = Sequence[ArrayLike] | NDArray


class LSTMCache:
    """What a forward pass keeps for its adjoint: opaque, read-only, usable any number of times."""

    __slots__ = ("cells", "gates", "lengths", "order", "shape")

    def __init__(self, call: "LSTMCall") -> None:
        vectors, lanes = call.kernel.lstm_units(call.hidden)
        pairs = call.steps * call.batch
        self.shape = (call.dtype, call.steps, call.batch, call.hidden)
        self.order, self.lengths = call.order, call.lengths
        self.gates = call.kernel.aligned(vectors * pairs * 4 * lanes)
        self.cells = call.kernel.aligned(vectors * pairs * lanes)


class LSTMGrads(NamedTuple):
    """TODO"""

    dx: NDArray
    dweight_ih: NDArray
    dweight_hh: NDArray
    dbias_ih: NDArray | None
    dbias_hh: NDArray | None
    dinitial_state: tuple[NDArray, NDArray] | None


def lstm(
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias_ih: ArrayLike | None = None,
    bias_hh: ArrayLike | None = None,
    *,
    initial_state: State | None = None,
    lengths: ArrayLike | None = None,
    return_cache: bool = False,
) -> Any:
    """TODO"""
    call = LSTMCall((x, weight_ih, weight_hh, bias_ih, bias_hh), initial_state, lengths)
    cache = LSTMCache(call) if return_cache else None
    h = np.empty((call.steps, call.batch, call.hidden), call.dtype)
    last = call.forward(h, cache)
    result = call.squeeze(h), (last[0].reshape(call.state_shape), last[1].reshape(call.state_shape))
    return result if cache is None else (*result, cache)


def lstm_vjp(
    dh: ArrayLike,
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias_ih: ArrayLike | None = None,
    bias_hh: ArrayLike | None = None,
    *,
    initial_state: State | None = None,
    lengths: ArrayLike | None = None,
    dlast_state: Sequence[ArrayLike | None] | NDArray | None = None,
    cache: LSTMCache | None = None,
) -> LSTMGrads:
    """TODO"""
    call = LSTMCall((x, weight_ih, weight_hh, bias_ih, bias_hh), initial_state, lengths, (dh, dlast_state))
    kept = call.kept(cache)
    abar = call.kernel.aligned(kept.gates.size) if cache is kept else kept.gates
    dx, h = np.empty(call.x.shape, call.dtype), np.empty((call.steps, call.batch, call.hidden), call.dtype)
    dfirst = call.adjoint(kept, abar, h, dx)
    dweight_ih, dweight_hh, dbias = call.kernel.lstm_weight_sums(abar, call.x, h, call.h0, call.order, call.lengths, call.hidden)
    return LSTMGrads(
        call.squeeze(dx),
        dweight_ih,
        dweight_hh,
        None if call.bias_ih is None else dbias,
        None if call.bias_hh is None else dbias.copy(),
        None if call.h0 is None else (dfirst[0].reshape(call.state_shape), dfirst[1].reshape(call.state_shape)),
    )


def lstm_state_adjoints(
    dh: ArrayLike,
    x: ArrayLike,
    weight_ih: ArrayLike,
    weight_hh: ArrayLike,
    bias_ih: ArrayLike | None = None,
    bias_hh: ArrayLike | None = None,
    *,
    initial_state: State | None = None,
    lengths: ArrayLike | None = None,
    dlast_state: Sequence[ArrayLike | None] | NDArray | None = None,
    cache: LSTMCache | None = None,
) -> tuple[NDArray, NDArray]:
    """TODO"""
    call = LSTMCall((x, weight_ih, weight_hh, bias_ih, bias_hh), initial_state, lengths, (dh, dlast_state))
    hbar, cbar = (np.empty((call.steps, call.batch, call.hidden), call.dtype) for _ in range(2))
    call.adjoint(call.kept(cache), None, None, None, hbar, cbar)
    return call.squeeze(hbar), call.squeeze(cbar)


class LSTMCall:
    """The checked arguments of one call, in one layout and with a batch axis, and what kernels compute from them."""

    def __init__(
        self,
        arguments: tuple[ArrayLike | None, ...],
        initial_state: Any,
        lengths: ArrayLike | None,
        adjoints: tuple[Any, Any] | tuple[()] = (),  # dh, dlast_state
    ) -> None:
        values = *arguments, *_pair("initial_state", initial_state, "(h0, c0)")
        names = _NAMES
        if initial_state is not None:
            values_first = values[5:]
            for name, value in zip(_NAMES[5:], values_first, strict=True):
                if value is None:
                    raise TypeError(f"{name} is None; expected an array")
        if adjoints:
            values, names = (*values, adjoints[0], *_pair("dlast_state", adjoints[1], "(dh_n, dc_n)")), _NAMES + _ADJOINTS
        self.x, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, self.h0, self.c0, *adjoint = common(
            as_arrays(names, values, optional=_OPTIONAL)
        )
        self.dh, self.dh_n, self.dc_n = adjoint or (None, None, None)
        self.dtype = self.x.dtype
        self._check_shapes()
        self._sort(lengths)
        self._one_layout()

    def _check_shapes(self) -> None:
        if self.x.ndim not in (2, 3):
            raise ValueError(f"x has shape {self.x.shape}; expected (T, B, D) or (T, D)")
        self.batched = self.x.ndim == 3
        self.steps, self.inputs = self.x.shape[0], self.x.shape[-1]
        self.batch = self.x.shape[1] if self.batched else 1
        shape = self.weight_hh.shape
        if len(shape) != 2 or shape[0] != 4 * shape[1]:
            raise ValueError(f"weight_hh has shape {shape}; expected (4H, H)")
        self.hidden = H = shape[1]
        expect("weight_ih", self.weight_ih, (4 * H, self.inputs), "(4H, D)")
        self.state_shape = (self.batch, H) if self.batched else (H,)
        states, meaning = (self.h0, self.c0, self.dh_n, self.dc_n), "(B, H)" if self.batched else "(H,)"
        for name, state in zip(_NAMES[5:] + _ADJOINTS[1:], states, strict=True):
            if state is not None:
                expect(name, state, self.state_shape, meaning)
        for name, bias in ("bias_ih", self.bias_ih), ("bias_hh", self.bias_hh):
            if bias is not None:
                expect(name, bias, (4 * H,), "(4H,)")
        if self.dh is not None:
            expect("dh", self.dh, (*self.x.shape[:-1], H), "(T, B, H)" if self.batched else "(T, H)")

    def _sort(self, given: ArrayLike | None) -> None:
        """Rows by descending length: those that still run are then the first ones."""
        if given is None:
            self.order, self.lengths = np.arange(self.batch), np.full(self.batch, self.steps)
            return
        lengths = integers("lengths", given)
        expect("lengths", lengths, (self.batch,) if self.batched else (), "(B,)" if self.batched else "()")
        wrong = np.flatnonzero((lengths < 0) | (lengths > self.steps))
        if wrong.size:
            at = f"[{wrong[0]}]" if self.batched else ""
            raise ValueError(f"lengths{at} is {lengths.ravel()[wrong[0]]}; expected integers from 0 to T = {self.steps}")
        self.order = np.argsort(-lengths.ravel(), kind="stable")
        self.lengths = lengths.ravel()[self.order]

    def _one_layout(self) -> None:
        shape = (self.steps, self.batch, -1) if self.x.size else (self.steps, self.batch, self.inputs)
        self.x = np.ascontiguousarray(self.x).reshape(shape)
        self.weight_ih, self.weight_hh = np.ascontiguousarray(self.weight_ih), np.ascontiguousarray(self.weight_hh)
        for name in "dh", "h0", "c0", "dh_n", "dc_n":
            if getattr(self, name) is not None:
                setattr(self, name, np.ascontiguousarray(getattr(self, name)))

    @property
    def kernel(self) -> Any:
        return _kernels[self.dtype]

    def squeeze(self, a: NDArray) -> NDArray:
        """A result over time without the batch axis that x does not have."""
        return a if self.batched else a[:, 0]

    def forward(self, h: NDArray | None, cache: LSTMCache | None) -> NDArray:
        """OUT h, cache; the last states (2, B, H)."""
        bias = np.zeros((4 * self.hidden, 1), self.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            for given in self.bias_ih, self.bias_hh:
                if given is not None:
                    bias[:, 0] += given
        last = np.empty((2, self.batch, self.hidden), self.dtype)
        gates, cells = (None, None) if cache is None else (cache.gates, cache.cells)
        self.kernel.lstm(self.x, self.weight_ih, self.weight_hh, bias, self.h0, self.c0, self.order, self.lengths,
                         h, last[0], last[1], gates, cells)  # fmt: skip
        return last

    def kept(self, cache: LSTMCache | None) -> LSTMCache:
        """The caller's cache if it fits, or one of its own from another forward pass."""
        if cache is None:
            cache = LSTMCache(self)
            self.forward(None, cache)
            return cache
        if not isinstance(cache, LSTMCache):
            raise TypeError(f"cache is a {type(cache).__name__}; expected what lstm(…, return_cache=True) returns")
        shape = (self.dtype, self.steps, self.batch, self.hidden)
        if cache.shape != shape:
            came, wanted = (f"(dtype, T, B, H) = ({', '.join(map(str, s))})" for s in (cache.shape, shape))
            raise ValueError(f"cache is of a call with {came}; expected {wanted}")
        if not (np.array_equal(cache.lengths, self.lengths) and np.array_equal(cache.order, self.order)):
            raise ValueError("cache is of a call with other lengths")
        return cache

    def adjoint(self, kept: LSTMCache, abar: NDArray | None, h: NDArray | None, dx: NDArray | None,
                hbar: NDArray | None = None, cbar: NDArray | None = None) -> NDArray:  # fmt: skip
        """OUT abar, h, dx, hbar, cbar; the initial states' adjoints (2, B, H)."""
        dfirst = np.empty((2, self.batch, self.hidden), self.dtype)
        self.kernel.lstm_adjoint(self.dh, self.dh_n, self.dc_n, self.weight_ih, self.weight_hh, self.c0, self.order, self.lengths,
                                 kept.gates, kept.cells, abar, h, dx, dfirst[0], dfirst[1], hbar, cbar)  # fmt: skip
        return dfirst


def _pair(name: str, value: Any, meaning: str) -> tuple[Any, Any]:
    if value is None:
        return None, None
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a pair {meaning}") from None
    return first, second
