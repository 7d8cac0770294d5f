"""Which calls are left to transformers, and the warning that says so."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..torch._tensors import DTYPES, exporting, transformed

_PACKING = ("seq_idx", "cu_seqlens")  # arguments that say where one of several sequences begins
_PLAIN = frozenset((bool, int, float, str, tuple, type(None)))
_NAMELESS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_DTYPES = frozenset(DTYPES)
_said: set[str] = set()


# cached, so that enabling once more is quick, and compiled models find the functions they know
@functools.cache
def instead_of(
    original: Callable[..., Any], ours: Callable[..., Any], packs: bool
) -> Callable[..., Any]:
    """A function that calls `ours` wherever it can, and else the original.

    `packs` says whether the model can tell sequences apart that are packed into one.
    """
    keywords = _names(ours)
    # transformers ignores what its own function does not name
    unknown = _names(original) - keywords
    refused = {name: f"the argument {name} is unknown here" for name in unknown}
    if not packs:
        mixing = "layers of the model would mix sequences that are told apart by"
        refused |= {name: f"{mixing} {name}" for name in _PACKING}

    @functools.wraps(original)
    def either(*args: Any, **kwargs: Any) -> Any:
        given, values, reason = {}, [*args], None
        for name, value in kwargs.items():
            if value is None:
                continue
            if name in refused:
                reason = refused[name]
            elif name in keywords:
                given[name] = value
                if name not in _PACKING:
                    values.append(value)
        reason = obstacle(values) or reason
        if reason is None:
            return ours(*args, **given)
        say(reason)
        return _left(original, args, kwargs)

    return either


@functools.cache
def none_instead_of(original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that returns None for CPU tensors, and else calls the original."""

    @functools.wraps(original)
    def either(*args: Any, **kwargs: Any) -> Any:
        return None if _on_cpu((*args, *kwargs.values())) else original(*args, **kwargs)

    return either


def _on_cpu(values: Sequence[Any]) -> bool:
    return all(value.is_cpu for value in values if isinstance(value, Tensor))


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    # the package `kernels` makes a module of a function, whose forward has its signature
    return [*inspect.signature(getattr(function, "forward", function)).parameters.values()]


def _names(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(p.name for p in parameters(function) if p.kind not in _NAMELESS)


def _left(original: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What transformers makes of a call.

    If ``mamba_ssm`` or ``causal_conv1d`` is installed, the original is its function, which knows no
    CPU tensors; transformers' own knows them, but no packed sequences.
    """
    packed = any(kwargs.get(name) is not None for name in _PACKING)
    if _on_cpu((*args, *kwargs.values())) and not packed:
        original = getattr(original, "__wrapped__", original)
    return original(*args, **kwargs)


def obstacle(values: Sequence[Any]) -> str | None:
    """Why a call with these arguments is not for fastderiv."""
    if exporting():
        return "an exported model is to run without fastderiv"
    if torch.jit.is_tracing():
        return "a traced model is to run without fastderiv"
    tensors = []
    for value in values:
        kind = type(value)
        if kind is Tensor or kind is Parameter:
            dense = value.layout is torch.strided and not value.is_nested
            if value.is_cpu and value.dtype in _DTYPES and dense:
                tensors.append(value)
                continue
        elif kind in _PLAIN:
            continue
        reason = _foreign(value, kind)
        if reason is not None:
            return reason
        tensors.append(value)
    if transformed(*tensors):
        return "forward mode and the transforms of torch.func look into the scan"
    return None


def _foreign(value: Any, kind: Any) -> str | None:
    """Why this argument is not for fastderiv."""
    if not isinstance(value, Tensor):
        return f"an argument is a {kind.__name__}"  # of another tool that traces the call
    if not value.is_cpu:
        return f"a tensor is on {value.device.type}, not on cpu"
    if value.dtype not in _DTYPES:
        return f"a tensor has dtype {value.dtype}"
    if value.is_nested or value.layout != torch.strided:
        return "a tensor is not dense"
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"a tensor is a {kind.__name__}, which has operations of its own"
    return None


def say(reason: str) -> None:
    """Warn, once for each reason."""
    # Dynamo cannot trace a warning
    if reason not in _said and not torch.compiler.is_dynamo_compiling():
        _said.add(reason)
        warnings.warn(
            f"fastderiv leaves this to transformers: {reason}", RuntimeWarning, stacklevel=2
        )
