"""The causal depthwise convolution as docs/derivations.md §6.6 states it, tap by tap."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


def _sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


def _number(dtype):
    """Complex numbers stay complex, so that derivatives can be taken by complex steps."""
    return np.complex128 if np.issubdtype(dtype, np.complexfloating) else np.float64


def _array(a: Any) -> NDArray:
    """As an array; None stays None."""
    if a is None:
        return a  # type: ignore[return-value]
    return np.asarray(a, _number(np.asarray(a).dtype))


def _sums(x, weight, bias, before):
    """The sums that the activation is applied to; `before` (..., D, K - 1) precedes x."""
    steps, taps = x.shape[-1], weight.shape[1]
    line = np.concatenate([before, x], axis=-1)
    s = sum(weight[:, k, None] * line[..., k : k + steps] for k in range(taps))
    return s if bias is None else s + bias[:, None]


def _before(x, weight, initial_state):
    if initial_state is not None:
        return initial_state
    return np.zeros((*x.shape[:-1], weight.shape[1] - 1))


def causal_conv1d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    *,
    initial_state: ArrayLike | None = None,
    return_last_state: bool = False,
    cu_seqlens: ArrayLike | None = None,
    out: np.ndarray | None = None,
) -> Any:
    x, weight, bias, initial_state = (_array(a) for a in (x, weight, bias, initial_state))
    if cu_seqlens is not None:
        y, last = _packed(x, weight, bias, activation, initial_state, cu_seqlens)
    else:
        before = _before(x, weight, initial_state)
        y = _sums(x, weight, bias, before)
        if activation is not None:
            y = y / (1 + np.exp(-y)) if np.iscomplexobj(y) else y * _sigmoid(y)
        last = np.concatenate([before, x], axis=-1)[..., x.shape[-1] :]
    if out is not None:
        out[...] = y
        y = out
    return (y, last) if return_last_state else y


def _pieces(x, cu_seqlens, *states):
    """Each packed sequence's slice of time, with its states as a call of its own has them."""
    for k, (start, stop) in enumerate(itertools.pairwise(cu_seqlens)):
        own = np.s_[k : k + 1] if x.ndim == 3 else k
        yield np.s_[..., start:stop], own, [None if a is None else a[own] for a in states]


def _packed(x, weight, bias, activation, initial_state, cu_seqlens):
    """Every sequence by itself."""
    y = np.empty(x.shape)
    last = np.empty((len(cu_seqlens) - 1, x.shape[-2], weight.shape[1] - 1))
    for here, own, (h0,) in _pieces(x, cu_seqlens, initial_state):
        y[here], last[own] = causal_conv1d(
            x[here], weight, bias, activation, initial_state=h0, return_last_state=True
        )
    return y, last


class CausalConv1dGrads(NamedTuple):
    dx: NDArray
    dweight: NDArray
    dbias: NDArray | None
    dinitial_state: NDArray | None


def causal_conv1d_vjp(
    dout: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    *,
    initial_state: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    dlast_state: ArrayLike | None = None,
) -> CausalConv1dGrads:
    given = (dout, x, weight, bias, initial_state, dlast_state)
    dout, x, weight, bias, initial_state, dlast_state = (_array(a) for a in given)
    if cu_seqlens is not None:
        return _packed_vjp(
            dout, x, weight, bias, activation, initial_state, cu_seqlens, dlast_state
        )
    steps, taps = x.shape[-1], weight.shape[1]
    before = _before(x, weight, initial_state)
    s, line = _sums(x, weight, bias, before), np.concatenate([before, x], axis=-1)
    slope = _sigmoid(s) * (1 + s * (1 - _sigmoid(s))) if activation is not None else 1
    e = dout * slope
    dline, dweight = np.zeros(line.shape), np.zeros(weight.shape)
    over_all_but_channels = (0, 2) if x.ndim == 3 else 1
    for k in range(taps):
        dline[..., k : k + steps] += weight[:, k, None] * e
        dweight[:, k] = (e * line[..., k : k + steps]).sum(over_all_but_channels)
    if dlast_state is not None:
        dline[..., steps:] += dlast_state
    return CausalConv1dGrads(
        dline[..., taps - 1 :],
        dweight,
        None if bias is None else e.sum(over_all_but_channels),
        None if initial_state is None else dline[..., : taps - 1],
    )


def _packed_vjp(dout, x, weight, bias, activation, initial_state, cu_seqlens, dlast_state):
    """Each sequence by itself; gradients of what they share are summed."""
    given = (x, weight, bias, initial_state)
    total = CausalConv1dGrads(*(None if a is None else np.zeros(a.shape) for a in given))
    for here, own, (h0, dlast) in _pieces(x, cu_seqlens, initial_state, dlast_state):
        grads = causal_conv1d_vjp(
            dout[here], x[here], weight, bias, activation, initial_state=h0, dlast_state=dlast
        )
        for whole, where, part in zip(total, (here, ..., ..., own), grads, strict=True):
            if whole is not None:
                whole[where] += part
    return total


def causal_conv1d_update(
    x: ArrayLike,
    state: NDArray,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    activation: str | None = None,
) -> NDArray:
    x, weight, width = _array(x), _array(weight), state.shape[-1]
    steps = x[..., None] if x.ndim == state.ndim - 1 else x
    before = state[..., width - weight.shape[1] + 1 :]
    y = causal_conv1d(steps, weight, bias, activation, initial_state=before)
    state[...] = np.concatenate([state, steps], axis=-1)[..., steps.shape[-1] :]
    return y.reshape(x.shape)
