"""`ReversibleSGD`: the reversible momentum as an optimizer over parameter groups."""

import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from fastderiv import ReversibleMomentum

from ..._core.cache import checksums
from ._tensors import DTYPES, cast

Closure = Callable[[], Any]
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the size of a number


class ReversibleSGD(Optimizer):
    """Gradient descent with momentum whose steps can be undone bit for bit, however many they are.

    A step is ``p = momentum*p - lr*grad``, then ``theta = theta + p``, computed exactly on integers
    as `fastderiv.ReversibleMomentum` does.  `unstep` takes the last step back, so that training
    can be run backwards, and its trajectory need not be stored.

    Parameters
    ----------
    params : iterable of Tensor, or of dict
        Parameters or groups of them, as for every optimizer of PyTorch; on the CPU, float32,
        float64, bfloat16 or float16, in [-262144, 262144).
    lr : float, optional
        The learning rate, at least 0.  A group may have its own, and a scheduler may change it
        between steps.
    momentum : float, optional
        In (0, 1); it is rounded to a multiple of 2**-16.  A group may have its own.  It must not
        change after the group's first step: let ``OneCycleLR`` and ``CyclicLR`` have
        ``cycle_momentum=False``.

    Raises
    ------
    ValueError, TypeError
        For a rate outside its range, and parameters of another dtype, device or layout.

    See Also
    --------
    fastderiv.ReversibleMomentum : the same for one NumPy array.
    fastderiv.hypergradient : the gradient of a loss after training, by going back.

    Notes
    -----
    The exact position and momentum of a parameter are multiples of 2**-44, held in the optimizer.
    The parameter itself is that position, rounded to its dtype: 16-bit parameters have exact master
    weights in this way.  A parameter's first step keeps the numbers that are no such multiples (in
    float32, those below 5e-7; in float64 nearly all), and undoing it restores them.

    A parameter's position is exact only as long as nobody else writes to it: a step, forwards or
    backwards, from a parameter with other bits than the last one left is refused.  So does `unstep`
    refuse gradients with other bits than those of the step: the closure must be deterministic, with
    the same batch, the same random numbers and the same number of threads.

    The optimizer takes 24 bytes a parameter, those of rounded numbers, and log2(1/momentum) bits
    a parameter and step (0.15 for 0.9); and for each step 8 bytes, and more if the learning rates
    changed.  A step reads and writes them in some passes of O(size) time.

    With a constant learning rate, the steps are those of ``torch.optim.SGD(lr=lr,
    momentum=momentum)`` but for rounding.  Where the learning rate changes, that one multiplies old
    gradients by the new rate, and this one by the rate of their step.

    ``state_dict`` is a snapshot, which ``torch.save`` and ``torch.load`` with ``weights_only=True``
    take; after ``load_state_dict`` the optimizer goes on, forwards and backwards, with the same
    bits.  Optimizers can be copied and pickled too.

    Examples
    --------
    >>> import torch
    >>> from fastderiv.integrations.torch import ReversibleSGD
    >>> x = torch.tensor([1.0, -2.0], requires_grad=True)
    >>> optimizer = ReversibleSGD([x], lr=0.1, momentum=0.9)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = (1 - torch.cos(x)).sum()
    ...     loss.backward()
    ...     return loss
    >>> for _ in range(1000):
    ...     loss = optimizer.step(closure)
    >>> x.detach().abs().max() < 1e-6
    tensor(True)
    >>> for _ in range(1000):
    ...     loss = optimizer.unstep(closure)
    >>> x.detach(), optimizer.steps
    (tensor([ 1., -2.]), 0)
    """

    def __init__(self, params: Any, lr: float = 1e-3, momentum: float = 0.9) -> None:
        self._history, self._running = _History(), False
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @property
    def steps(self) -> int:
        """Steps taken and not undone."""
        return self._history.steps

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, which takes part from the next step on."""
        super().add_param_group(param_group)
        try:
            _rates(self.param_groups[-1], len(self.param_groups) - 1)
            for place in self._places():
                _check_parameter(place)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:  # type: ignore[override]
        """Take one step with the gradients that the parameters have.

        Parameters
        ----------
        closure : callable, optional
            Called first; it computes the gradients and returns the loss.

        Returns
        -------
        loss
            What `closure` returned; None without one.

        Raises
        ------
        ValueError
            If a gradient holds NaN, or a rate is outside its range.
        OverflowError
            If a parameter, its momentum or lr·grad would leave [-262144, 262144).
        RuntimeError
            If a parameter was modified since the last step, or the momentum of its group.

        Notes
        -----
        Parameters whose ``grad`` is None are left as they are.  The step completes, or changes
        nothing.
        """
        self._expect_idle()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rates = [_rates(group, g) for g, group in enumerate(self.param_groups)]
        places = list(self._places())
        moving = [place for place in places if place.parameter.grad is not None]
        grads = [_gradient(place) for place in moving]
        paths = [self._path(place, rates[place.group][1]) for place in moving]
        lrs = tuple(lr for lr, _ in rates)
        with _all_or_nothing(moving, paths, grads):
            for place, path, grad in zip(moving, paths, grads, strict=True):
                with _named(place):
                    path.step(grad, lrs[place.group])
            for place, path in zip(moving, paths, strict=True):
                path.show(place.parameter)
        for place, path in zip(moving, paths, strict=True):
            self.state[place.parameter]["path"] = path
        still = tuple(place.key for place in places if place.parameter.grad is None)
        self._history.append(lrs, still, _digest(grads))
        return loss

    @torch.no_grad()
    def unstep(self, closure: Closure) -> Any:
        """Take the last step back.

        Parameters
        ----------
        closure : callable
            It computes the gradients at the parameters, which are then as they were before the
            step, and returns the loss: what is passed to `step`, usually.

        Returns
        -------
        loss
            What `closure` returned.

        Raises
        ------
        ValueError
            If no step is left to undo.
        RuntimeError
            If a parameter was modified since the last step, or the closure has modified one, has
            left one without a gradient, or has computed other gradients than those of the step.

        Notes
        -----
        It completes, or changes nothing but gradients.  Exceptions of `closure` pass through.  A
        learning rate scheduler is not taken back: the step's own rates are kept.
        """
        self._expect_idle()
        if not callable(closure):
            raise TypeError(f"closure is a {type(closure).__name__}; expected a function")
        if not self._history.steps:
            raise ValueError("no step is left to undo")
        lrs, still, digest = self._history.last()
        stayed = set(still)
        moving = [p for p in self._places() if p.group < len(lrs) and p.key not in stayed]
        paths = [self.state[place.parameter]["path"] for place in moving]
        for place, path in zip(moving, paths, strict=True):
            path.expect_unmodified(place)
        grads: list[NDArray] = []
        with _all_or_nothing(moving, paths, grads):
            loss = self._at_previous(moving, paths, closure)
            grads += [_gradient(place) for place in moving]
            if _digest(grads) != digest:
                raise RuntimeError(
                    "the closure has computed other gradients than those of the step; "
                    "it must be deterministic, down to the last bit"
                )
            for place, path, grad in zip(moving, paths, grads, strict=True):
                with _named(place):
                    path.unstep(grad, lrs[place.group])
        for place, path in zip(moving, paths, strict=True):
            if path.steps == 0:
                del self.state[place.parameter]
        self._history.pop()
        return loss

    def _at_previous(self, moving: list["_Place"], paths: list["_Path"], closure: Closure) -> Any:
        """What the closure returns at the parameters that the last step started from."""
        self._running = True
        try:
            for place, path in zip(moving, paths, strict=True):
                path.show(place.parameter, previous=True)
            with torch.enable_grad():
                loss = closure()
        finally:
            self._running = False
        for place, path in zip(moving, paths, strict=True):
            path.expect_unmodified(place, "by the closure")
            if place.parameter.grad is None:
                raise RuntimeError(f"the closure has left {place} without a gradient")
        return loss

    def _expect_idle(self) -> None:
        if self._running:
            raise RuntimeError("the closure of unstep must not step the optimizer")

    def _places(self) -> Iterator["_Place"]:
        for g, group in enumerate(self.param_groups):
            for k, parameter in enumerate(group["params"]):
                yield _Place(g, k, parameter)

    def _path(self, place: "_Place", momentum: float) -> "_Path":
        """The path of a parameter, which begins with its first step."""
        _check_parameter(place)
        path = self.state[place.parameter].get("path") if place.parameter in self.state else None
        if path is None:
            with _named(place):
                return _Path.begun(place.parameter, momentum)
        path.expect_unmodified(place)
        if round(momentum * 2**16) != round(path.momentum * 2**16):
            raise RuntimeError(
                f"momentum of group {place.group} is {momentum}, "
                f"but {place} has taken steps with {path.momentum}, which cannot change"
            )
        return path

    # ---- as files and copies -------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """A snapshot of the optimizer: tensors, numbers, lists and dicts.

        Returns
        -------
        state_dict : dict
            "state", "param_groups", as of every optimizer, and "history".
        """
        whole = super().state_dict()
        whole["state"] = {k: held["path"].to_tensors() for k, held in whole["state"].items()}
        whole["history"] = self._history.to_tensors()
        return whole

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken, with parameters as they were there.

        Parameters
        ----------
        state_dict : dict
            What `state_dict` returned, of an optimizer with the same groups of parameters.

        Raises
        ------
        ValueError, TypeError
            If it is of other parameters, or damaged.

        Notes
        -----
        Parameters may be loaded before or after; the next step compares them with the state.
        """
        if "history" not in state_dict:
            raise ValueError("state_dict has no history; expected that of a ReversibleSGD")
        places = list(self._places())
        history = _History.of_tensors(state_dict["history"])
        paths = {}
        for k, tensors in state_dict["state"].items():
            if not 0 <= k < len(places):
                raise ValueError(f"state_dict has a parameter {k}; expected up to {len(places)}")
            with _named(places[k]):
                paths[places[k].parameter] = {"path": _Path.of_tensors(tensors, places[k])}
        super().load_state_dict({**state_dict, "state": {}})
        self.state.update(paths)
        self._history = history

    def __getstate__(self) -> dict[str, Any]:
        own = {"_history": self._history, "_running": False}
        return {**super().__getstate__(), **own}  # type: ignore[misc]


class _Place(NamedTuple):
    """A parameter, and where it is among the groups."""

    group: int
    order: int
    parameter: Tensor

    @property
    def key(self) -> tuple[int, int]:
        return self.group, self.order

    def __str__(self) -> str:
        return f"params[{self.order}] of group {self.group}"


class _Path:
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
    def begun(cls, parameter: Tensor, momentum: float) -> "_Path":
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

    def expect_unmodified(self, place: _Place, whose: str = "since the last step") -> None:
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
    def of_tensors(cls, tensors: dict[str, Any], place: _Place) -> "_Path":
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


class _History:
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
    def of_tensors(cls, tensors: dict[str, Any]) -> "_History":
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
def _all_or_nothing(
    places: Sequence[_Place], paths: Sequence[_Path], grads: Sequence[NDArray]
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
def _named(place: _Place) -> Iterator[None]:
    """Errors say which parameter they are about."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{place}: {error}") from error


def _rates(group: dict[str, Any], number: int) -> tuple[float, float]:
    lr, momentum = float(group["lr"]), float(group["momentum"])
    if not 0 <= lr < math.inf:
        raise ValueError(f"lr of group {number} is {lr}; expected a finite number, at least 0")
    if not (0 <= momentum <= 1 and 0 < round(momentum * 2**16) < 2**16):
        raise ValueError(
            f"momentum of group {number} is {momentum}; "
            "expected a number that rounds to a multiple of 2**-16 in (0, 1)"
        )
    return lr, momentum


def _check_parameter(place: _Place) -> None:
    parameter = place.parameter
    if parameter.dtype not in DTYPES:
        expected = f"expected one of {', '.join(map(str, DTYPES))}"
        raise TypeError(f"{place} has dtype {parameter.dtype}; {expected}")
    if not parameter.is_cpu or parameter.layout != torch.strided:
        kind = f"on {parameter.device}, {parameter.layout}"
        raise ValueError(f"{place} is {kind}; expected a dense tensor on the CPU")


def _gradient(place: _Place) -> NDArray:
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
    return _digest([bits.numpy()])


def _digest(arrays: list[NDArray]) -> int:
    """A number that tells the arrays' bytes from others."""
    of_each = np.array(checksums(tuple(arrays)), np.uint64)
    (all_together,) = checksums((of_each,))
    assert all_together is not None
    return all_together
