"""`ReversibleSGD`: the reversible momentum as an optimizer over parameter groups."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch.optim import Optimizer

from ._reversible_path import (
    History,
    Path,
    Place,
    all_or_nothing,
    check_parameter,
    digest_of,
    gradient_of,
    named,
    rates_of,
)

Closure = Callable[[], Any]


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
        self._history, self._running = History(), False
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @property
    def steps(self) -> int:
        """Steps taken and not undone."""
        return self._history.steps

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, which takes part from the next step on."""
        super().add_param_group(param_group)
        try:
            rates_of(self.param_groups[-1], len(self.param_groups) - 1)
            for place in self._places():
                check_parameter(place)
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
        rates = [rates_of(group, g) for g, group in enumerate(self.param_groups)]
        places = list(self._places())
        moving = [place for place in places if place.parameter.grad is not None]
        grads = [gradient_of(place) for place in moving]
        paths = [self._path(place, rates[place.group][1]) for place in moving]
        lrs = tuple(lr for lr, _ in rates)
        with all_or_nothing(moving, paths, grads):
            for place, path, grad in zip(moving, paths, grads, strict=True):
                with named(place):
                    path.step(grad, lrs[place.group])
            for place, path in zip(moving, paths, strict=True):
                path.show(place.parameter)
        for place, path in zip(moving, paths, strict=True):
            self.state[place.parameter]["path"] = path
        still = tuple(place.key for place in places if place.parameter.grad is None)
        self._history.append(lrs, still, digest_of(grads))
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
        with all_or_nothing(moving, paths, grads):
            loss = self._at_previous(moving, paths, closure)
            grads += [gradient_of(place) for place in moving]
            if digest_of(grads) != digest:
                raise RuntimeError(
                    "the closure has computed other gradients than those of the step; "
                    "it must be deterministic, down to the last bit"
                )
            for place, path, grad in zip(moving, paths, grads, strict=True):
                with named(place):
                    path.unstep(grad, lrs[place.group])
        for place, path in zip(moving, paths, strict=True):
            if path.steps == 0:
                del self.state[place.parameter]
        self._history.pop()
        return loss

    def _at_previous(self, moving: list[Place], paths: list[Path], closure: Closure) -> Any:
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

    def _places(self) -> Iterator[Place]:
        for g, group in enumerate(self.param_groups):
            for k, parameter in enumerate(group["params"]):
                yield Place(g, k, parameter)

    def _path(self, place: Place, momentum: float) -> Path:
        """The path of a parameter, which begins with its first step."""
        check_parameter(place)
        path = self.state[place.parameter].get("path") if place.parameter in self.state else None
        if path is None:
            with named(place):
                return Path.begun(place.parameter, momentum)
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
        history = History.of_tensors(state_dict["history"])
        paths = {}
        for k, tensors in state_dict["state"].items():
            if not 0 <= k < len(places):
                raise ValueError(f"state_dict has a parameter {k}; expected up to {len(places)}")
            with named(places[k]):
                paths[places[k].parameter] = {"path": Path.of_tensors(tensors, places[k])}
        super().load_state_dict({**state_dict, "state": {}})
        self.state.update(paths)
        self._history = history

    def __getstate__(self) -> dict[str, Any]:
        own = {"_history": self._history, "_running": False}
        return {**super().__getstate__(), **own}  # type: ignore[misc]
