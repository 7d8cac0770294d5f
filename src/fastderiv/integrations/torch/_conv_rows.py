"""The causal convolution, and its adjoint, of sequences told apart by an index for each step.

Every row (D, L) is a call of its own, so that rows of any strides are read in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import EllipsisType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastderiv
from fastderiv.ssm import ConvCall

from ._operators import Arrays
from ._packed import packed


class Row(NamedTuple):
    """The sequences of one row."""

    at: int | EllipsisType  # the row's place in a batch, if there is one
    starts: NDArray[np.int64]  # where each sequence begins, and the end
    padding: NDArray[np.bool_]  # of each step, whether it is padding

    def states(self, given: NDArray | None, sequence: int) -> NDArray | None:
        """The states of all sequences: zeros, save those given for one sequence of each row."""
        if given is None:
            return None
        all_states = np.zeros((len(self.starts) - 1, *given.shape[-2:]), given.dtype)
        all_states[sequence] = given[self.at]
        return all_states


def rows_of(seq_idx: NDArray[np.integer]) -> Iterator[Row]:
    """The rows of `seq_idx` (batch, L) or (L,), L >= 1."""
    for i, row in enumerate(np.atleast_2d(seq_idx)):
        at = i if seq_idx.ndim == 2 else ...
        yield Row(at, packed(row[None]).starts, row < 0)


def convolve_rows(
    variables: Arrays, seq_idx: NDArray[np.integer], activation: str | None
) -> tuple[NDArray, NDArray]:
    """The result, zero in padding, and the state after the last sequence of each row.

    The variables are those of `_CausalConv1d`.
    """
    x, weight, bias, initial = variables
    call = ConvCall(x, weight, bias, activation, initial, None)
    out, last = call.like_x("the result"), call.new_state()
    for row in rows_of(seq_idx):
        _, states = fastderiv.causal_conv1d(
            x[row.at], weight, bias, activation, initial_state=row.states(initial, 0),
            return_last_state=True, cu_seqlens=row.starts, out=out[row.at],
        )  # fmt: skip
        out[row.at][:, row.padding] = 0
        last[row.at] = states[-1]
    return out, last


def adjoint_of_rows(
    dout: NDArray,
    dlast: NDArray,
    variables: Arrays,
    seq_idx: NDArray[np.integer],
    activation: str | None,
) -> Arrays:
    """The gradients of the variables; None for one that is None."""
    x, weight, bias, initial = variables
    call = ConvCall(x, weight, bias, activation, initial, None)
    dx, dinitial = call.like_x("dx"), None if initial is None else call.new_state()
    sums: Any = [np.zeros(a.shape) if a is not None else None for a in (weight, bias)]
    for row in rows_of(seq_idx):
        dy = dout[row.at]
        if row.padding.any():
            dy = dy.copy()
            dy[:, row.padding] = 0
        grads = fastderiv.causal_conv1d_vjp(
            dy, x[row.at], weight, bias, activation, initial_state=row.states(initial, 0),
            cu_seqlens=row.starts, dlast_state=row.states(dlast, -1),
        )  # fmt: skip
        dx[row.at] = grads.dx
        if dinitial is not None and grads.dinitial_state is not None:
            dinitial[row.at] = grads.dinitial_state[0]
        for whole, share in zip(sums, (grads.dweight, grads.dbias), strict=True):
            if whole is not None:
                whole += share
    return [dx, *(None if a is None else a.astype(x.dtype) for a in sums), dinitial]
