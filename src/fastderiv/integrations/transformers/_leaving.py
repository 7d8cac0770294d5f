"""Which calls are left to transformers, and the warning that says so."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..torch._tensors import DTYPES, transformed

_said: set[str] = set()


def instead_of(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls `ours` wherever it can, and else the original."""
    known = frozenset(inspect.signature(ours).parameters)

    @functools.wraps(original)
    def either(*args: Any, **kwargs: Any) -> Any:
        given = {name: value for name, value in kwargs.items() if value is not None}
        obstacle = _obstacle(known, args, given)
        if obstacle is None:
            return ours(*args, **given)
        say(obstacle)
        return original(*args, **kwargs)

    return either


def _obstacle(known: frozenset[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why this call is not for fastderiv."""
    if getattr(torch.compiler, "is_exporting", bool)():  # since PyTorch 2.7
        return "an exported model is to run without fastderiv"
    if torch.jit.is_tracing():
        return "a traced model is to run without fastderiv"
    for name in kwargs:
        if name not in known:
            return f"the argument {name} is unknown here"
    values = (*args, *kwargs.values())
    tensors = [value for value in values if isinstance(value, Tensor)]
    if transformed(*tensors):
        return "forward mode and the transforms of torch.func look into the scan"
    for value in values:
        reason = _foreign(value)
        if reason is not None:
            return reason
    return None


def _foreign(value: Any) -> str | None:
    """Why this argument is not for fastderiv."""
    if not isinstance(value, Tensor):
        if value is None or isinstance(value, (bool, int, str)):
            return None
        return f"an argument is a {type(value).__name__}"  # of another tool that traces the call
    if not value.is_cpu:
        return f"a tensor is on {value.device.type}, not on cpu"
    if value.dtype not in DTYPES:
        return f"a tensor has dtype {value.dtype}"
    if value.is_nested or value.layout != torch.strided:
        return "a tensor is not dense"
    if type(value).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"a tensor is a {type(value).__name__}, which has operations of its own"
    return None


def say(reason: str) -> None:
    """Warn, once for each reason."""
    # Dynamo cannot trace a warning
    if reason not in _said and not torch.compiler.is_dynamo_compiling():
        _said.add(reason)
        warnings.warn(
            f"fastderiv leaves this to transformers: {reason}", RuntimeWarning, stacklevel=2
        )
