"""`linear_scan` with autograd on PyTorch's CPU tensors.

How data flows: tensors → checks → an operator (`Operator`) → NumPy views of the same memory →
fastderiv → tensors that are views of its results.
"""

from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastderiv
from fastderiv.ssm import LinearCall

from ..._core.arrays import index
from ._operators import Arrays, Constants, Operator, Tensors
from ._tensors import as_flag, check, shape_of, working


@overload
def linear_scan(
    a: Tensor | float,
    b: Tensor,
    *,
    axis: SupportsIndex = -1,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    return_last_state: Literal[False] = False,
) -> Tensor: ...
@overload
def linear_scan(
    a: Tensor | float,
    b: Tensor,
    *,
    axis: SupportsIndex = -1,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    return_last_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def linear_scan(
    a: Tensor | float,
    b: Tensor,
    *,
    axis: SupportsIndex = -1,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]: ...
def linear_scan(
    a: Tensor | float,
    b: Tensor,
    *,
    axis: SupportsIndex = -1,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""A differentiable `fastderiv.linear_scan` for CPU tensors: :math:`h_t = a_t h_{t-1} + b_t`.

    Parameters
    ----------
    a : Tensor or number
        Factors, of one of three shapes, where nothing is broadcast: that of `b`; that of `b`
        without `axis`; or ().  float32, float64, bfloat16 or float16, as all that follow, in any
        mixture.  The computation is in float64 if a tensor is, else in float32.
    b : Tensor, at least 1-D
        What is added at each step, in any strides.
    axis : int, optional
        The axis of `b` that is time; the last by default.
    initial_state : Tensor, shape of `b` without `axis`, optional
        The state before the first step, or behind the last one with `reverse`; zeros by default.
    reverse : bool, optional
        Whether to run from the end of `axis` to its start.
    return_last_state : bool, optional
        Whether to return the state after the step that is taken last, too.

    Returns
    -------
    out : Tensor, shape and dtype of `b`
        h at every step.
    last_state : Tensor, shape of `b` without `axis`
        Only if `return_last_state`; in the dtype of the computation.

    Raises
    ------
    ValueError
        A shape that does not fit, or a tensor that is not on the CPU.
    IndexError
        `b` has no such axis.
    TypeError
        Not a tensor, or another dtype; complex ones are not supported.

    Notes
    -----
    Every tensor that requires a gradient gets the exact one, `initial_state` included, and the last
    state may be part of the loss.  The function works under ``torch.compile(fullgraph=True)``, as
    the operator ``fastderiv::linear_scan``.  Autograd keeps the arguments and nothing else.

    O(size) time.  Second derivatives, forward mode and the transforms of ``torch.func`` are
    computed by PyTorch's own operations, step by step.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.torch import linear_scan
    >>> x = torch.tensor([1.0, 0.0, 0.0, 4.0], requires_grad=True)
    >>> h = linear_scan(0.5, x)
    >>> h.detach()
    tensor([1.0000, 0.5000, 0.2500, 4.1250])
    >>> h[-1].backward()
    >>> x.grad
    tensor([0.1250, 0.2500, 0.5000, 1.0000])
    """
    check(b=b, initial_state=initial_state)
    if isinstance(a, (int, float)):
        a = b.new_full((), a, dtype=working(b, initial_state))
    check(a=a)
    constants = _place(axis, b), as_flag("reverse", reverse)
    out, last = _scan((b, a, initial_state), constants)
    return (out, last) if as_flag("return_last_state", return_last_state) else out


def _place(axis: SupportsIndex, b: Tensor) -> int:
    """The axis of b as a number from 0 on."""
    i = axis if type(axis) is int else index("axis", axis)
    if not b.ndim:
        raise ValueError("b has shape (); expected at least one axis")
    if not -b.ndim <= i < b.ndim:
        raise np.exceptions.AxisError(f"axis {i} is out of bounds for b, which has {b.ndim} axes")
    return i % b.ndim


class _LinearScan(Operator):
    name = "linear_scan"
    variables = "Tensor b, Tensor a, Tensor? initial_state"
    constants = "int axis, bool reverse"

    def compute(
        self, variables: Arrays, constants: Constants, remember: bool
    ) -> tuple[NDArray, NDArray, NDArray | None]:
        b, a, initial = variables
        axis, reverse = constants
        out, last = fastderiv.linear_scan(
            a, b, axis=axis, initial_state=initial, reverse=reverse, return_last_state=True
        )
        return out, np.asarray(last), None

    def adjoint(
        self,
        dout: NDArray,
        dlast_state: NDArray,
        variables: Arrays,
        constants: Constants,
        kept: NDArray | None,
    ) -> Sequence[NDArray | None]:
        b, a, initial = variables
        axis, reverse = constants
        da, db, dinitial = fastderiv.linear_scan_vjp(
            dout, a, b, axis=axis, initial_state=initial, reverse=reverse, dlast_state=dlast_state
        )
        return db, np.asarray(da), None if dinitial is None else np.asarray(dinitial)

    def shapes(
        self, variables: Tensors, constants: Constants, remember: bool
    ) -> tuple[Sequence[Any], Sequence[Any], int]:
        shape, axis = variables[0].shape, constants[0]
        return shape, (*shape[:axis], *shape[axis + 1 :]), 0

    def like_first(self, first: Tensor, shape: Sequence[Any]) -> Tensor:
        """Axes in memory in the order of those of `first`."""
        order = sorted(range(first.ndim), key=lambda i: -first.stride(i))
        places = sorted(range(first.ndim), key=order.__getitem__)
        return first.new_empty([shape[i] for i in order]).permute(places)

    def like_gradients(self, variables: Tensors) -> list[Any]:
        b, a, _ = variables
        db, da, *rest = super().like_gradients(variables)
        return [db, self.like_first(b, b.shape) if a.shape == b.shape else da, *rest]

    def in_steps(self, variables: Tensors, constants: Constants) -> tuple[Tensor, Tensor]:
        return _in_steps(*variables, *constants)


_scan = _LinearScan()


def _in_steps(
    b: Tensor, a: Tensor, initial_state: Tensor | None, axis: int, reverse: bool
) -> tuple[Tensor, Tensor]:
    if not torch.compiler.is_compiling():
        # every error of shapes is raised here
        LinearCall(shape_of(a), shape_of(b), axis, shape_of(initial_state))
    steps = b.unbind(axis)
    factors = a.unbind(axis) if a.shape == b.shape else [a] * len(steps)
    h = torch.zeros_like(b).sum(axis) if initial_state is None else initial_state * 1
    found = []
    for i in reversed(range(len(steps))) if reverse else range(len(steps)):
        h = factors[i] * h + steps[i]
        found.append(h)
    states = found[::-1] if reverse else found
    return torch.stack(states, axis) if states else b * 1, h * 1
