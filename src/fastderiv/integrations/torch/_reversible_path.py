"""What `ReversibleSGD` keeps: a path for each parameter, and the history of the steps."""

import math
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastderiv import ReversibleMomentum

from ..._core.cache import checksums
from ._tensors import DTYPES, cast

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the size of a number


class Place(NamedTuple):
    """A parameter, and where it is among the groups."""

    group: int
    order: int
    parameter: Tensor

    @property
    def key(self) -> tuple[int, int]:
        return self.group, self.order

    def __str__(self) -> str:
        return f"params[{self.order}] of group {self.group}"


class Path:
    """The way of one parameter: its exact state, and what its tensor must show."""

    def __init__(
        self, exact: ReversibleMomentum, like: Tensor, rounded: tuple[Tensor, Tensor]
    ) -> None:
        self.exact, self.dtype, self.shape = exact, like.dtype, like.shape
        # which numbers of the first tensor are not multiples of 2**-44, and their bits
        self.rounded = rounded
        self.checksum: int | None = None  # of what was shown last
        self.lr = 0.0  # of the last call of `step` or `unstep`

    @classmethod
    def begun(cls, parameter: Tensor, momentum: float) -> "Path":
        start = parameter.detach()
        (wide,) = cast(torch.float64, start)
        exact = ReversibleMomentum(wide.numpy(force=True), alpha=0.0, beta=momentum)
        shown = torch.from_numpy(exact.theta).to(start.dtype)
        bits = _bits(start)
        at = torch.nonzero(bits != _bits(shown)).reshape(-1)
        path = cls(exact, start, (at, bits[at]))
        path.checksum = _checksum(bits)
        return path

    @property
    def steps(self) -> int:
        return self.exact.steps

    @property
    def momentum(self) -> float:
        return self.exact.beta

    def step(self, grad: NDArray, lr: float) -> None:
        self.lr = lr
        self.exact.step(grad, alpha=lr)

    def unstep(self, grad: NDArray, lr: float) -> None:
        self.lr = lr
        self.exact.unstep(lambda theta: grad, alpha=lr)

    def take_to(self, steps: int, grad: NDArray) -> None:
        """Undo what the last call of `step` or `unstep` has done, if it has."""
        if self.steps > steps:
            self.unstep(grad, self.lr)
        elif self.steps < steps:
            self.step(grad, self.lr)

    def show(self, parameter: Tensor, *, previous: bool = False) -> None:
        """OUT parameter: the exact position, rounded, or the first numbers, bit for bit.

        `previous` asks for what the parameter was before the last step.
        """
        theta = torch.from_numpy(self.exact.previous_theta if previous else self.exact.theta)
        at, bits = self.rounded
        if self.steps == int(previous) and len(at):
            theta = theta.to(self.dtype)
            _bits(theta)[at] = bits
        parameter.copy_(theta)
        self.checksum = _checksum(_bits(parameter.detach()))

    def expect_unmodified(self, place: Place, whose: str = "since the last step") -> None:
        parameter = place.parameter
        if parameter.dtype != self.dtype or parameter.shape != self.shape:
            raise RuntimeError(
                f"{place} has shape {tuple(parameter.shape)} and dtype {parameter.dtype}; "
                f"its first step was with {tuple(self.shape)} and {self.dtype}"
            )
        if self.checksum is None:
            self.show(torch.empty_like(parameter, memory_format=torch.contiguous_format))
        if _checksum(_bits(parameter.detach())) != self.checksum:
            raise RuntimeError(
                f"{place} was modified {whose}; its steps can be undone "
                "only from the numbers that the optimizer has written"
            )

    def to_tensors(self) -> dict[str, Any]:
        alpha, n, rate, shape, numbers, count, words = self.exact.__getstate__()
        at, bits = self.rounded
        none = np.zeros((0, numbers.shape[1]), np.uint16)
        spilled = np.stack(words) if words else none
        return {
            "numbers": torch.from_numpy(numbers),
            "words": torch.from_numpy(spilled.view(np.int16)),
            "rates": [alpha, n, rate],
            "shape": list(shape),
            "steps": int(count[0]),
            "rounded": [at, bits],
            "dtype": str(self.dtype),
        }

    @classmethod
    def of_tensors(cls, tensors: dict[str, Any], place: Place) -> "Path":
        """The inverse of `to_tensors`, for this parameter."""
        shape, parameter = tuple(tensors["shape"]), place.parameter
        if shape != parameter.shape or tensors["dtype"] != str(parameter.dtype):
            raise ValueError(
                f"the state is of shape {shape} and {tensors['dtype']}; "
                f"expected {tuple(parameter.shape)} and {parameter.dtype}"
            )
        numbers, words = tensors["numbers"].numpy(), tensors["words"].numpy().view(np.uint16)
        exact = ReversibleMomentum.__new__(ReversibleMomentum)
        count = np.array([tensors["steps"]], np.int64)
        exact.__setstate__((*tensors["rates"], shape, numbers, count, list(words)))
        at, bits = (t.clone() for t in tensors["rounded"])
        return cls(exact, parameter, (at, bits))


class History:
    """What undoing the steps needs to know of each: rates, parameters without a gradient."""

    def __init__(self) -> None:
        self.digests = array("Q")  # of each step's gradients
        # (first step, the groups' learning rates, the parameters left as they were), where they
        # differ from those of the step before
        self.changes: list[tuple[int, tuple[float, ...], tuple[tuple[int, int], ...]]] = []

    @property
    def steps(self) -> int:
        return len(self.digests)

    def append(
        self, lrs: tuple[float, ...], still: tuple[tuple[int, int], ...], digest: int
    ) -> None:
        if not self.changes or self.changes[-1][1:] != (lrs, still):
            self.changes.append((self.steps, lrs, still))
        self.digests.append(digest)

    def last(self) -> tuple[tuple[float, ...], tuple[tuple[int, int], ...], int]:
        _, lrs, still = self.changes[-1]
        return lrs, still, self.digests[-1]

    def pop(self) -> None:
        self.digests.pop()
        if self.changes[-1][0] == self.steps:
            self.changes.pop()

    def to_tensors(self) -> dict[str, Any]:
        digests = np.array(self.digests, np.uint64).view(np.int64)
        changes = [[first, list(lrs), [*map(list, still)]] for first, lrs, still in self.changes]
        return {"digests": torch.from_numpy(digests), "changes": changes}

    @classmethod
    def of_tensors(cls, tensors: dict[str, Any]) -> "History":
        history = cls()
        history.digests.extend(tensors["digests"].numpy().view(np.uint64).tolist())
        history.changes = [
            (first, tuple(lrs), tuple(map(tuple, still)))
            for first, lrs, still in tensors["changes"]
        ]
        firsts = [first for first, _, _ in history.changes]
        steps = range(history.steps)
        if firsts != sorted(set(firsts) & set(steps)) or firsts[:1] != [*steps[:1]]:
            raise ValueError(f"history of {history.steps} steps has changes at {firsts}")
        return history


@contextmanager
def all_or_nothing(
    places: Sequence[Place], paths: Sequence[Path], grads: Sequence[NDArray]
) -> Iterator[None]:
    """After an error, take back what has been done to some of the parameters."""
    steps = [path.steps for path in paths]
    try:
        yield
    except BaseException:
        for k, path in enumerate(paths):
            if path.steps != steps[k]:
                path.take_to(steps[k], grads[k])
            path.show(places[k].parameter)
        raise


@contextmanager
def named(place: Place) -> Iterator[None]:
    """Errors say which parameter they are about."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{place}: {error}") from error


def rates_of(group: dict[str, Any], number: int) -> tuple[float, float]:
    lr, momentum = float(group["lr"]), float(group["momentum"])
    if not 0 <= lr < math.inf:
        raise ValueError(f"lr of group {number} is {lr}; expected a finite number, at least 0")
    if not (0 <= momentum <= 1 and 0 < round(momentum * 2**16) < 2**16):
        raise ValueError(
            f"momentum of group {number} is {momentum}; "
            "expected a number that rounds to a multiple of 2**-16 in (0, 1)"
        )
    return lr, momentum


def check_parameter(place: Place) -> None:
    parameter = place.parameter
    if parameter.dtype not in DTYPES:
        expected = f"expected one of {', '.join(map(str, DTYPES))}"
        raise TypeError(f"{place} has dtype {parameter.dtype}; {expected}")
    if not parameter.is_cpu or parameter.layout != torch.strided:
        kind = f"on {parameter.device}, {parameter.layout}"
        raise ValueError(f"{place} is {kind}; expected a dense tensor on the CPU")


def gradient_of(place: Place) -> NDArray:
    """The gradient as a contiguous array of float32 or float64."""
    grad = place.parameter.grad
    assert grad is not None
    if grad.layout != torch.strided:
        raise ValueError(f"the gradient of {place} is {grad.layout}; expected a dense tensor")
    wide = grad if grad.dtype == torch.float64 else grad.to(torch.float32)
    return np.asarray(wide.numpy(force=True), order="C")


def _bits(t: Tensor) -> Tensor:
    """The numbers' bits as integers, in one row; of a contiguous tensor, its own memory."""
    return t.contiguous().reshape(-1).view(_BITS[t.element_size()])


def _checksum(bits: Tensor) -> int:
    return digest_of([bits.numpy()])


def digest_of(arrays: list[NDArray]) -> int:
    """A number that tells the arrays' bytes from others."""
    of_each = np.array(checksums(tuple(arrays)), np.uint64)
    (all_together,) = checksums((of_each,))
    assert all_together is not None
    return all_together
