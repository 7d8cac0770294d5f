"""The one mechanism behind the differentiable functions: an operator, and its adjoint as another.

A subclass of `Operator` says what is computed on NumPy arrays, forward and backward, what shapes
that gives, and the same in PyTorch's own operations.  The operators take tensors of any mixture of
dtypes and cast them inside, so that autograd keeps the tensors that it was given, and no copies of
them.  The adjoint is an operator too, because ``torch.compile`` traces the backward pass as well.

Second derivatives, forward mode and ``torch.func``, which no operator supports, are computed by
PyTorch's own operations, from `Operator.in_steps`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from ._tensors import (
    arrays,
    cast,
    exporting,
    in_functorch,
    refuse_tangents,
    transformed,
    working,
)

Arrays = list[Any]  # of NDArray, or None for a tensor that was not given
Tensors = Sequence[Any]  # of Tensor, or None
Constants = Sequence[Any]


class Operator(ABC):
    """A function of tensors with two results, of which the second is its last state.

    The first result has the dtype of the first variable, the last state that of the computation.
    """

    name: ClassVar[str]
    variables: ClassVar[str]  # schema of the tensors that have gradients: "Tensor x, Tensor? D"
    constants: ClassVar[str]  # schema of the other arguments, never empty

    def __init__(self) -> None:
        self._count = self.variables.count(",") + 1
        kinds = [argument.split()[0] for argument in self.constants.split(", ")]
        self._tensors = [kind.startswith("Tensor") for kind in kinds]
        self._forward = self._define_forward()
        self._adjoint = self._define_adjoint()
        self._function = self._define_function()

    # what a subclass says

    @abstractmethod
    def compute(
        self, variables: Arrays, constants: Constants, remember: bool
    ) -> tuple[NDArray, NDArray, NDArray | None]:
        """Result, last state, and what the adjoint can use if told to `remember`.

        The variables have one dtype.  Tensors among the constants are arrays, too.
        """

    @abstractmethod
    def adjoint(
        self,
        dout: NDArray,
        dlast_state: NDArray,
        variables: Arrays,
        constants: Constants,
        kept: NDArray | None,
    ) -> Sequence[NDArray | None]:
        """The gradients of the variables, in order; None for a variable that is None."""

    @abstractmethod
    def shapes(
        self, variables: Tensors, constants: Constants, remember: bool
    ) -> tuple[Sequence[Any], Sequence[Any], int]:
        """Shapes of result and last state, and the size of what is kept."""

    @abstractmethod
    def in_steps(self, variables: Tensors, constants: Constants) -> tuple[Tensor, Tensor]:
        """Result and last state by PyTorch's operations, of variables of one dtype.

        Element-wise operations and sums only, which autocast leaves in that dtype.  What `compute`
        refuses is refused with the same errors.
        """

    def like_first(self, first: Tensor, shape: Sequence[Any]) -> Tensor:
        """A tensor for the first result, or for the gradient of the first variable.

        To be overridden where the order of these in memory follows that of `first`, which is the
        first variable in the dtype of the computation.
        """
        return first.new_empty(shape)

    def like_gradients(self, variables: Tensors) -> list[Any]:
        """Tensors for the gradients of the variables, which have one dtype; None for None.

        To be overridden where the order in memory is another.
        """
        first, *others = variables
        rest = (None if t is None else t.new_empty(t.shape) for t in others)
        return [self.like_first(first, first.shape), *rest]

    # what is made of it

    def __call__(self, variables: Tensors, constants: Constants) -> tuple[Tensor, Tensor]:
        if transformed(*variables):
            return self._in_steps(variables, constants)
        watched = torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in variables
        )
        # an exported program is mostly for inference; its backward pass runs the scan once more
        remember = watched and not exporting()
        if not _unwatched(variables):
            call = self._forward
        else:
            call = self._function.apply if remember else self._run
        out, last_state, _ = call(*variables, *constants, remember)
        return out, last_state

    def _define_function(self) -> Any:
        """The operator as a function of autograd.

        Where nobody watches operators, it does the same without the dispatcher, whose part in
        Python takes 15 µs of a call, and 50 where gradients are wanted.
        """

        def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
            output = self._run(*arguments)
            self._save(ctx, arguments, output)
            return output

        of_class = {"forward": staticmethod(forward), "backward": staticmethod(self._backward)}
        return type(self.name, (torch.autograd.Function,), of_class)

    def _define_forward(self) -> Any:
        schema = f"({self.variables}, {self.constants}, bool remember) -> (Tensor, Tensor, Tensor)"
        torch.library.define(f"fastderiv::{self.name}", schema)
        return self._register(self.name, self._run, self._fake, self._save, self._backward)

    def _define_adjoint(self) -> Any:
        name = f"{self.name}_vjp"
        # a tuple of tensors, because `vmap` knows neither lists nor None
        gradients = ", ".join(["Tensor"] * self._count)
        schema = (
            f"(Tensor dout, Tensor dlast_state, {self.variables}, {self.constants}, Tensor kept)"
            f" -> ({gradients})"
        )
        torch.library.define(f"fastderiv::{name}", schema)
        return self._register(
            name, self._run_adjoint, self._fake_adjoint, self._save_adjoint, self._backward_twice
        )

    def _register(self, name: str, run: Any, fake: Any, save: Any, backward: Any) -> Any:
        name_in_torch = f"fastderiv::{name}"
        torch.library.impl(name_in_torch, "cpu")(run)
        torch.library.register_fake(name_in_torch)(fake)
        torch.library.register_autograd(name_in_torch, backward, setup_context=save)
        return getattr(torch.ops.fastderiv, name).default

    def _split(self, arguments: Sequence[Any]) -> tuple[Tensors, Constants]:
        return arguments[: self._count], arguments[self._count :]

    def _as_arrays(self, variables: Tensors, constants: Constants) -> tuple[Arrays, Constants]:
        values = arrays(*cast(working(*variables), *variables))
        tensor_or_not = zip(constants, self._tensors, strict=True)
        return values, [arrays(c)[0] if is_tensor else c for c, is_tensor in tensor_or_not]

    # the scan

    def _run(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *given, remember = arguments
        variables, constants = self._split(given)
        refuse_tangents(*variables)
        out, last_state, kept = self.compute(*self._as_arrays(variables, constants), remember)
        first = variables[0]
        last = torch.from_numpy(last_state)
        states = last.new_empty(0) if kept is None else torch.from_numpy(kept)
        return torch.from_numpy(out).to(first.dtype), last, states

    def _fake(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *given, remember = arguments
        variables, constants = self._split(given)
        out, last_state, kept = self.shapes(variables, constants, remember)
        first, dtype = variables[0], working(*variables)
        states = first.new_empty(kept if remember else 0, dtype=dtype)
        result = self.like_first(first.to(dtype), out).to(first.dtype)
        return result, first.new_empty(last_state, dtype=dtype), states

    # What autograd saves it also watches: if a tensor was modified in place since, the backward
    # pass fails, so that states never meet other inputs than those that they were computed from.

    def _keep(self, ctx: Any, arguments: Sequence[Any], *more: Tensor) -> None:
        variables, constants = self._split(arguments)
        tensors = [c for c, is_tensor in zip(constants, self._tensors, strict=True) if is_tensor]
        ctx.save_for_backward(*variables, *tensors, *more)
        ctx.constants = [
            None if is_tensor else c for c, is_tensor in zip(constants, self._tensors, strict=True)
        ]

    def _kept(self, ctx: Any) -> tuple[Tensors, Constants, Sequence[Tensor]]:
        variables, others = self._split(ctx.saved_tensors)
        rest = iter(others)
        constants = [
            next(rest) if is_tensor else c
            for c, is_tensor in zip(ctx.constants, self._tensors, strict=True)
        ]
        return variables, constants, list(rest)

    def _save(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[2])
        self._keep(ctx, inputs[:-1], output[2])

    def _backward(
        self, ctx: Any, dout: Tensor, dlast_state: Tensor, _: Any
    ) -> tuple[Tensor | None, ...]:
        variables, constants, (kept,) = self._kept(ctx)
        gradients: Any
        if transformed(dout, dlast_state):
            gradients = self._vjp_in_steps(dout, dlast_state, variables, constants)
        else:
            direct = not torch.is_grad_enabled() and _unwatched((dout, dlast_state, *variables))
            adjoint = self._run_adjoint if direct else self._adjoint
            gradients = adjoint(dout, dlast_state, *variables, *constants, kept)
        given = (None if t is None else g for t, g in zip(variables, gradients, strict=True))
        return *given, *(None for _ in constants), None

    # the adjoint

    def _run_adjoint(self, dout: Tensor, dlast_state: Tensor, *arguments: Any) -> Any:
        """The gradients of the variables; an empty tensor for a variable that is None.

        What was kept is of the same tensors; if that is nothing, the scan runs once more.
        """
        *given, kept = arguments
        variables, constants = self._split(given)
        refuse_tangents(dout, dlast_state, *variables)
        self._check_adjoint(dout, dlast_state, variables, constants, kept)
        dy, dlast = arrays(*cast(working(*variables), dout, dlast_state))
        known = arrays(kept)[0] if kept.numel() else None
        found = self.adjoint(dy, dlast, *self._as_arrays(variables, constants), known)
        return tuple(
            dout.new_empty(0) if g is None else torch.from_numpy(g).to(t.dtype)
            for t, g in zip(variables, found, strict=True)
        )

    def _check_adjoint(
        self,
        dout: Tensor,
        dlast_state: Tensor,
        variables: Tensors,
        constants: Constants,
        kept: Tensor,
    ) -> None:
        """A ValueError for what is of another call, as far as shapes and dtypes tell."""
        out, last_state, size = self.shapes(variables, constants, True)
        for name, t, shape in (("dout", dout, out), ("dlast_state", dlast_state, last_state)):
            if t.shape != tuple(shape):
                raise ValueError(f"{name} has shape {tuple(t.shape)}; expected {tuple(shape)}")
        dtype = working(*variables)
        if kept.numel() and (kept.shape != (size,) or kept.dtype != dtype):
            raise ValueError(
                f"kept has shape {tuple(kept.shape)} and dtype {kept.dtype}; expected what the "
                f"forward pass of the same tensors has kept, of shape ({size},) and dtype {dtype}"
            )

    def _fake_adjoint(self, dout: Tensor, dlast_state: Tensor, *arguments: Any) -> Any:
        variables = arguments[: self._count]
        found = self.like_gradients(cast(working(*variables), *variables))
        return tuple(
            dout.new_empty(0) if g is None else g.to(t.dtype)
            for t, g in zip(variables, found, strict=True)
        )

    def _save_adjoint(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        dout, dlast_state, *arguments, _ = inputs
        self._keep(ctx, arguments, dout, dlast_state)

    def _backward_twice(self, ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """The adjoint of the adjoint, computed for the same function in PyTorch's operations."""
        tensors, constants, (dout, dlast_state) = self._kept(ctx)
        create = torch.is_grad_enabled()
        with torch.enable_grad():
            variables = [_variable(t, create) for t in (dout, dlast_state, *tensors)]
            dy, dlast, *operands = variables
            gradients = self._vjp_in_steps(dy, dlast, operands, constants)
            found = _gradients(gradients, variables, cotangents, create)
        return *found, *(None for _ in constants), None

    # the same in PyTorch's operations

    def _in_steps(self, variables: Tensors, constants: Constants) -> tuple[Tensor, Tensor]:
        out, last_state = self.in_steps(cast(working(*variables), *variables), constants)
        return out.to(variables[0].dtype), last_state

    def _vjp_in_steps(
        self, dout: Any, dlast_state: Any, variables: Tensors, constants: Constants
    ) -> list[Any]:
        """The gradients, with a graph where one is asked for; None for a variable that is None."""
        # torch.func allows no new variables, and is_grads_batched does not allow torch.func
        if in_functorch():
            return self._vjp_by_functorch((dout, dlast_state), variables, constants)
        create = torch.is_grad_enabled()
        with torch.enable_grad():
            own = [_variable(t, create) for t in variables]
            return _gradients(self._in_steps(own, constants), own, (dout, dlast_state), create)

    def _vjp_by_functorch(
        self, cotangents: Any, variables: Tensors, constants: Constants
    ) -> list[Any]:
        def function(*given: Tensor) -> Any:
            present = iter(given)
            complete = [None if t is None else next(present) for t in variables]
            return self._in_steps(complete, constants)

        _, pull_back = torch.func.vjp(function, *(t for t in variables if t is not None))
        found = iter(pull_back(cotangents))
        return [None if t is None else next(found) for t in variables]


def _unwatched(tensors: Tensors) -> bool:
    """Whether nothing but autograd would see an operator that is called with these tensors."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    # no public names tell; old batches are those of ``is_grads_batched``
    batched = torch._C._functorch.is_legacy_batchedtensor  # noqa: SLF001
    if torch._C._len_torch_dispatch_stack():  # noqa: SLF001
        return False
    return all(t is None or (type(t) in (Tensor, Parameter) and not batched(t)) for t in tensors)


def _gradients(outputs: Any, variables: Tensors, cotangents: Any, create: bool) -> list[Any]:
    """The gradients with respect to all variables; None for a variable that is None.

    Outputs that are None or constant, like states that nobody asked for, add nothing.
    """
    pairs = [
        (y, c)
        for y, c in zip(outputs, cotangents, strict=True)
        if y is not None and y.requires_grad
    ]
    if not pairs:
        return [None for _ in variables]
    given = [t for t in variables if t is not None]
    ys, seeds = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(ys, given, seeds, create_graph=create, allow_unused=True))
    return [None if t is None else next(found) for t in variables]


def _variable(t: Tensor | None, attached: bool) -> Tensor | None:
    """`t` as a variable of its own, since one tensor may be several arguments.

    If `attached`, it belongs to the graph of `t`.
    """
    if t is None:
        return None
    return t.view_as(t) if attached and t.requires_grad else t.detach().requires_grad_()
